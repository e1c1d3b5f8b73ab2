"""Make files of annotated problems, and check them. Who annotates is the command:

    python annotate.py                                      # the template teacher: 50,000 problems of its own
    python annotate.py gsm8k train_socratic.jsonl           # a published dataset; also svamp and strategyqa
    python annotate.py teacher problems.jsonl --url http://localhost:8000/v1 --model NAME      # an LLM
    python annotate.py self problems.jsonl                  # trained students, on problems with known answers
    python annotate.py check annotations/train.jsonl annotations/valid.jsonl

All write rows as data.py shows one, in a folder of train.jsonl, valid.jsonl and test.jsonl for train.py. What
a model wrote is kept only if its equations compute and it ends at the problem's known answer.
"""
import argparse
import csv
import hashlib
import json
import math
import operator
import os
import random
import re
import shlex
import socket
import ssl
import sys
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from fractions import Fraction
from functools import cache, reduce
from itertools import accumulate
from multiprocessing.pool import ThreadPool
from pathlib import Path
from random import Random
from typing import NamedTuple
from urllib.parse import urlsplit

import requests  # brought along by tiktoken, as is urllib3
import urllib3
from tqdm import tqdm

from data import (
    ANNOTATION, MARK, ROLES, Parser, Tokenizer, UserError, annotate_equations, atomic_write, calculate,
    check_problem, encode_problems, fits, get_device, invalid_annotations, matches_answer, number, one_line,
    parse_number, read_problems, read_rows, read_run_file, run_script, same_answer, states_answer, to_jsonl,
    train_tokenizer, whole_number, write_problems)
from infer import Sampling, load_student, socratic, solve

SPLITS = "train", "valid", "test"


# ---- the template teacher's language: forms of words -------------------------------------------------------

def word_list(text):
    """The words of a table; a "_" in one is a space."""
    return [word.replace("_", " ") for word in text.split()]


def row_list(text):
    """Like `word_list`, each split at its colons."""
    return [word.split(":") for word in word_list(text)]


def by_letter(**texts):
    """Tables, one a keyword, as {letter: list of words}."""
    return {letter: word_list(text) for letter, text in texts.items()}


def capital(text):
    """A text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def article(noun):
    """A noun behind its article: "an apple"."""
    return f"{'an' if noun[0] in 'aeio' or noun.startswith(('um', 'hour')) else 'a'} {noun}"


def join(names):
    """Names in a row: "Ann, Ben and Carl"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def add_s(word, hissing="s|sh|ch|x|z"):
    """A word with the s of a plural or of he, she, it: "boxes", "cries"."""
    if re.search(f"({hissing})$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search("[^aeou]y$", word) else word + "s"


PLURALS = dict(row_list("""leaf:leaves knife:knives shelf:shelves scarf:scarves loaf:loaves goose:geese
sheep:sheep fish:fish goldfish:goldfish mouse:mice man:men woman:women child:children grandchild:grandchildren
person:people tomato:tomatoes potato:potatoes mango:mangoes foot:feet scissors:scissors
antenna:antennae"""))


def plural(noun):
    """"slice of bread" -> "slices of bread"."""
    head, of, rest = noun.partition(" of ")
    *before, last = head.split(" ")
    return " ".join([*before, PLURALS.get(last) or add_s(last)]) + of + rest


@dataclass(frozen=True)
class Thing:
    """What is counted: red apples, dollars, pages."""
    one: str
    many: str = ""
    letter: str = ""  # of NOUNS
    adjective: str = ""
    content: "Thing" = None  # of a box: what is in it

    def __post_init__(self):
        object.__setattr__(self, "many", self.many or plural(self.one))

    @property
    def money(self):
        return self.one == "dollar"

    def of(self, value):
        return f"{self.adjective} {self.one if value == 1 else self.many}".strip()

    def __str__(self):
        return self.of(2)


AUXILIARIES = {  # present of many and of one, past of many and of one; DO is that of a question
    "DO": ("do", "does", "did", "did"), "be": ("are", "is", "were", "was"),
    "have": ("have", "has", "had", "had")}
PAST = dict(row_list("""do:did go:went get:got give:gave keep:kept pay:paid spend:spent find:found make:made
take:took put:put cost:cost hold:held leave:left bring:brought send:sent grow:grew split:split see:saw cut:cut
say:said buy:bought sell:sold draw:drew know:knew think:thought begin:began win:won catch:caught dig:dug
build:built choose:chose lose:lost eat:ate break:broke throw:threw tear:tore lend:lent hide:hid read:read
run:ran drive:drove swim:swam write:wrote drink:drank sleep:slept sing:sang ride:rode lay:laid feed:fed
hang:hung teach:taught light:lit fly:flew come:came quit:quit meet:met"""))
DOUBLED = word_list("knit stop plan chop jog hop skip wrap shop drop ship trip jam rub grab swim cut dig")


def conjugate(verb, tense, many):
    """A verb's form: ("give away", "past", False) -> "gave away". many: of more than one. Tenses: present,
    past, will, would, can.
    """
    verb, *rest = verb.split(" ")
    if tense in ("will", "would", "can"):
        form = tense if verb == "DO" else f"{tense} {verb}"
    elif verb in AUXILIARIES:
        form = AUXILIARIES[verb][2 * (tense == "past") + (not many)]
    elif tense == "past":
        stem = verb[:-1] + "i" if re.search("[^aeou]y$", verb) else verb + verb[-1] * (verb in DOUBLED)
        form = PAST.get(verb) or (verb + "d" if verb[-1] == "e" else stem + "ed")
    else:
        form = verb if many else add_s(verb, "s|sh|ch|x|z|o")
    return " ".join([form, *rest])


# ---- the template teacher's language: words ----------------------------------------------------------------

BOYS = word_list("""Adam Ali Anton Ben Bill Bruno Carl Chen Dan David Diego Eric Felix Finn Frank Fred George
Hassan Henry Hugo Ivan Jack Jake James Jamal Jim Joe John Jonas Josh Juan Karl Kevin Kofi Kurt Leo Liam Luis
Marco Mark Matt Max Mike Milo Ned Nick Noah Oliver Omar Oscar Paul Pedro Peter Raj Robert Ryan Sam Simon Steve
Tariq Ted Theo Tim Tom Tony Victor Will Yuri Zack""")
GIRLS = word_list("""Alice Amara Amy Ana Anna Beth Carla Carmen Carol Chloe Clara Dana Daisy Elena Ella Emily
Emma Eva Farah Fiona Gina Grace Greta Hana Hannah Helen Ines Irene Jane Jenny Jill Joan Julia Kate Kim Laila
Laura Lena Lily Lina Lisa Lucy Maria Mary Maya Megan Mia Mina Nadia Nancy Nina Nora Olga Olivia Priya Rania
Rita Rosa Ruth Sally Sandra Sara Sofia Sue Tina Uma Vera Wanda Yara Zoe""")
SURNAMES = word_list("""Adams Baker Brown Carter Clark Cook Davis Diaz Evans Fisher Garcia Gray Green Hall
Hill Jones Khan Kim King Lee Lopez Miller Moore Patel Reed Rivera Smith Stone Taylor Walker White Young""")
PEOPLE = word_list("""farmer teacher gardener baker carpenter painter fisherman shopkeeper waiter florist
tailor librarian cook builder driver coach nurse artist scout tourist student boy girl man woman shepherd
potter postman grocer collector chef neighbour mechanic magician sailor hunter jeweler dentist pilot""")
PLACES = word_list("""school shop library museum farm zoo bakery factory club hotel hospital store market
stand restaurant pet_shop toy_shop bookshop supermarket company kindergarten garden_center village bike_shop
charity""")
RELATIVES = row_list("""brother:he sister:she mother:she father:he cousin:he cousin:she uncle:he aunt:she
grandmother:she grandfather:he friend:he friend:she neighbour:he neighbour:she classmate:she teammate:he
roommate:she son:he daughter:she twin_brother:he little_sister:she older_brother:he best_friend:she""")
SHARERS = word_list("""friend child student cousin neighbour classmate sister brother grandchild player person
teammate guest visitor""")

# Things have letters: f food, g what grows and is picked, t toys and collections, s school and paper,
# c clothes and things made by hand, h household and tools, a animals.
NOUNS = by_letter(
    f="""cookie cupcake sandwich muffin egg pancake donut biscuit cracker pretzel pie cake candy
bar_of_chocolate piece_of_candy slice_of_pizza slice_of_bread bottle_of_juice can_of_soup glass_of_milk
cup_of_tea jar_of_jam bag_of_chips chocolate hot_dog burger waffle sausage taco meatball dumpling lollipop
gumdrop marshmallow popsicle jelly_bean candy_bar bun bagel brownie tart loaf_of_bread pizza ice_cream_cone
snack_bar bowl_of_rice bottle_of_water carton_of_milk fish_stick chicken_wing spring_roll bread_roll
granola_bar raisin almond peanut walnut hazelnut cashew caramel mint toffee omelet croissant bowl_of_soup
plate_of_pasta cheese_stick fruit_bar pudding""",
    g="""apple orange banana pear peach plum lemon lime melon grape cherry strawberry blueberry raspberry
mango kiwi tomato potato carrot onion cucumber pumpkin pepper radish bean corncob cabbage coconut apricot fig
date olive turnip beet rose tulip daisy lily sunflower daffodil violet orchid mushroom acorn chestnut pinecone
leaf herb seedling pineapple papaya watermelon nectarine tangerine grapefruit ear_of_corn head_of_lettuce
zucchini eggplant marigold carnation poppy pomegranate avocado sweet_potato pea_pod""",
    t="""marble sticker balloon doll puzzle kite ball block card coin stamp shell rock badge toy_car
teddy_bear robot bead button crystal magnet medal poster photo postcard token ticket ribbon whistle drum yo-yo
top baseball_card action_figure video_game board_game stuffed_animal seashell fossil feather comic_book
bottle_cap paper_plane model_plane trading_card playing_card toy_soldier tennis_ball soccer_ball basketball
jump_rope rubber_duck glow_stick water_balloon skateboard scooter bike drone pebble gem charm trophy keychain
snow_globe souvenir wrapper bracelet ring""",
    s="""pencil pen crayon eraser marker notebook book folder ruler envelope stapler brush paintbrush
sharpener paperclip highlighter magazine newspaper letter map chart diary textbook sheet_of_paper
piece_of_chalk glue_stick piece_of_paper library_book workbook flashcard index_card greeting_card invitation
sticky_note story_book atlas binder thumbtack backpack lunch_box calculator pencil_case bookmark calendar""",
    c="""shirt hat scarf sock dress skirt coat jacket sweater glove mitten belt tie cap shoe boot sandal
necklace blanket pillow quilt basket vase pot bowl paper_flower paper_crane costume mask puppet birdhouse
table chair bench shelf wreath lantern clay_pot friendship_bracelet T-shirt uniform flag cushion apron purse
painting drawing bow vest bathrobe""",
    h="""plate cup spoon fork knife glass mug bottle jar can box bag bucket towel lamp clock key bulb nail
screw brick tile hammer rope battery mirror umbrella plant broom sponge candle match bolt board plank napkin
tray pan kettle stool ladder paint_can light_bulb curtain rug flower_pot fence_post suitcase tent flashlight
pipe hose stone log stick straw coupon bar_of_soap paper_towel roll_of_tape pair_of_scissors pair_of_gloves
tool""",
    a="""chicken duck goose goat sheep cow pig horse rabbit hen turkey fish goldfish hamster puppy kitten
parrot turtle pony lamb frog bee donkey guinea_pig pigeon lizard snail snake mouse canary duckling llama
ostrich crab beetle caterpillar""")
ADJECTIVES = row_list("""red:blue:green:yellow big:small old:new white:black long:short wooden:plastic
fresh:dried large:small round:square plain:striped brown:gray pink:purple heavy:light cheap:expensive
broken:whole ripe:unripe sweet:sour gold:silver clean:dirty shiny:dull thick:thin full:empty
orange:white:black tall:short dark:light used:new""")
FITTING = by_letter(  # the adjectives of a thing
    f="fresh dried big large small sweet sour plain round square",
    a="white brown black big small old gray large new",
    g="red green yellow blue ripe unripe fresh dried big small large sweet sour white black",
    other="""red blue green yellow big small old new white black long short wooden plastic large round square
plain striped brown gray pink purple heavy light cheap expensive broken whole gold silver clean dirty shiny
dull thick thin orange dark used""")
CONTAINERS = by_letter(
    f="box bag plate jar tray basket packet tin bowl", g="basket crate bag box sack bowl bucket carton",
    t="box bag jar pack case drawer tin pile bin", s="box pack drawer desk folder stack carton bag",
    c="box bag pile drawer crate suitcase rack", h="box crate pack carton drawer stack",
    a="cage pen barn pond group")
BOXES = word_list("box bag jar basket crate pack")
GROUPS = row_list("""chair:row:in tree:row:in student:team:in child:group:in photo:page:on book:shelf:on
car:row:in seat:row:in soldier:line:in desk:row:in player:team:on passenger:bus:on flower:vase:in bird:cage:in
guest:table:at dancer:group:in plant:row:in page:chapter:in camper:tent:in problem:page:on stamp:page:on
picture:wall:on window:floor:on apple:tree:on room:floor:on worker:crew:in singer:row:in rower:boat:in
kid:van:in star:flag:on bead:necklace:on button:shirt:on candle:cake:on petal:flower:on slice:pizza:in
song:album:on light:string:on lamp:street:in nail:board:in""")
HAVE_PARTS = row_list("""dog:4:leg cat:4:leg horse:4:leg spider:8:leg bird:2:wing chicken:2:leg ant:6:leg
bee:6:leg car:4:wheel bicycle:2:wheel tricycle:3:wheel octopus:8:arm hand:5:finger week:7:day year:12:month
hour:60:minute triangle:3:side square:4:side table:4:leg stool:3:leg day:24:hour cube:6:face dozen:12:egg
wagon:4:wheel truck:6:wheel pentagon:5:side meter:100:centimeter quarter:25:cent dime:10:cent minute:60:second
crab:10:leg cow:4:leg sheep:4:leg nickel:5:cent""")

# verbs of events, and the things that they go with
GAINS = row_list("""buy:fgtscha get:fgtscha find:gtsh receive:fgtscha collect:gts pick:g gather:g win:ftsc
make:fc bake:f cook:f grow:g order:ftsch borrow:tsh earn:t harvest:g bring_home:ftsch discover:t catch:a sew:c
knit:c paint:c print:s craft:c raise:a adopt:a unpack:tsch acquire:tsh dig_up:g prepare:f rescue:a build:c
draw:s obtain:tsh purchase:fgtscha choose:tsc take_home:fgtsc add:tsch pick_up:gtsh pull_out:g fetch:gh""")
LOSSES = row_list("""lose:tscha eat:fg sell:fgtscha use:fsh give_away:fgtscha break:th throw_away:gtsh
donate:tsch trade:t drop:fgth share:f return:tsh burn:h waste:fs serve:fg finish:f remove:tsch misplace:tsch
tear:s lend_out:tsh ship:tsch hand_out:ftsg pass_out:fts put_away:tsch send_off:sat recycle:sh ruin:c
release:a hide:t smash:h crush:f drop_off:tsch mail:s bury:t spoil:f leave_behind:tsch squash:g chop_up:g""")
# what shops and schools do
FOR_PLACES = "buy, get, order, receive, sell, use, give away, donate, lend out, ship, purchase"
# what people do and count
ACTS = [(verb, Thing(noun)) for verb, noun in row_list("""read:page walk:mile run:mile jog:mile drive:mile
cycle:kilometer swim:lap solve:problem do:push-up do:sit-up score:point score:goal take:photo write:letter
wash:car watch:movie deliver:newspaper answer:question plant:tree paint:picture climb:stair
drink:glass_of_water type:word bake:loaf_of_bread catch:fish send:message learn:new_word practice:hour
work:hour sleep:hour hike:kilometer visit:museum clean:window repair:bike milk:cow mow:lawn sell:newspaper
pick:apple make:bracelet fold:paper_crane study:hour receive:email play:game win:game wrap:gift grade:test
carry:brick build:model draw:picture sing:song ride:mile row:mile travel:kilometer eat:cookie knit:scarf
lay:tile dig:hole cut:log count:bird walk:dog feed:duck pack:box iron:shirt cook:meal collect:can save:dollar
earn:dollar spend:dollar raise:dollar serve:customer load:truck print:poster record:video shovel:driveway
water:plant peel:potato sharpen:pencil hang:picture post:photo stack:block pay:dollar teach:lesson
attend:class fix:computer sew:button crack:egg fill:bottle light:candle design:card sell:ticket jump:rope""")]
# who or what is where; how they come, how they go
SCENES = [(Thing(noun), *rest) for noun, *rest in row_list("""bird:in_the_tree:land:fly_away
passenger:on_the_bus:get_on:get_off child:in_the_park:come:go_home duck:on_the_pond:swim_over:fly_off
car:in_the_parking_lot:arrive:drive_away student:in_the_classroom:come_in:leave
guest:at_the_party:arrive:go_home person:in_the_line:join:leave fish:in_the_tank:be_added:die
boat:in_the_harbor:sail_in:sail_out visitor:in_the_museum:come_in:leave ant:on_the_leaf:crawl_up:crawl_off
frog:on_the_log:hop_on:jump_off book:on_the_shelf:be_put_there:be_borrowed
cow:in_the_field:come_back:wander_off kid:on_the_playground:run_over:go_inside
player:on_the_field:come_on:leave_the_field sheep:in_the_meadow:arrive:run_away
flower:in_the_vase:be_added:wilt egg:in_the_fridge:be_put_in:be_eaten customer:in_the_store:walk_in:walk_out
person:on_the_train:get_on:get_off bee:in_the_garden:fly_in:fly_off monkey:in_the_cage:be_brought_in:escape
tree:in_the_orchard:be_planted:be_cut_down skater:on_the_ice:skate_in:go_home
dancer:on_the_stage:come_on:step_off butterfly:in_the_meadow:flutter_in:flutter_off
cookie:in_the_jar:be_added:be_eaten toy:in_the_box:be_put_in:be_taken_out member:in_the_club:join:quit
runner:in_the_race:sign_up:drop_out plane:at_the_airport:land:take_off worker:at_the_factory:be_hired:retire
bottle:in_the_crate:be_put_in:be_taken_out coin:in_the_fountain:be_thrown_in:be_fished_out
candle:on_the_cake:be_lit:be_blown_out""")]
# measures: whose, unit, adjective, its opposite if it is not the usual one; adjectives: more, less, noun
MEASURES = row_list("""person:year:old person:centimeter:tall person:inch:tall person:pound:heavy
person:kilogram:heavy rope:meter:long rope:foot:long ribbon:inch:long ribbon:centimeter:long tower:meter:tall
building:foot:tall tree:foot:tall tree:meter:tall bridge:meter:long river:mile:long road:kilometer:long
movie:minute:long lake:foot:deep pool:meter:deep box:pound:heavy dog:kilogram:heavy table:inch:wide
garden:meter:wide snake:inch:long train:meter:long mountain:foot:high wall:foot:high fence:meter:long
plant:inch:tall dog:year:old house:year:old:newer car:year:old:newer trail:mile:long board:inch:long
stick:centimeter:long street:meter:long lesson:minute:long package:pound:heavy""")
DEGREES = {adjective: degrees for adjective, *degrees in row_list("""old:older:younger:age
tall:taller:shorter:height heavy:heavier:lighter:weight long:longer:shorter:length deep:deeper:shallower:depth
wide:wider:narrower:width high:higher:lower:height""")}
WHICH = row_list("first:second red:blue old:new wooden:metal left:right small:large northern:southern")
RATES = row_list("""earn:dollar:hour earn:dollar:week save:dollar:month save:dollar:week get:dollar:day
travel:mile:hour drive:kilometer:hour walk:mile:hour ride:mile:hour make:cookie:hour bake:loaf_of_bread:day
paint:wall:day fill:bottle:minute sell:ticket:day sew:shirt:week build:toy:day read:page:day read:page:hour
drink:bottle_of_water:day eat:apple:day pick:apple:hour run:mile:week type:word:minute solve:problem:hour
do:push-up:day spend:dollar:week pay:dollar:month swim:lap:day plant:tree:day""")
TIMES = row_list("""on_Monday:on_Tuesday:on_Wednesday in_the_morning:in_the_afternoon:in_the_evening
yesterday:today last_week:this_week in_May:in_June:in_July on_Saturday:on_Sunday
on_the_first_day:on_the_second_day:on_the_third_day last_month:this_month last_year:this_year
on_Thursday:on_Friday:on_Saturday before_lunch:after_lunch in_spring:in_summer:in_autumn
in_the_first_half:in_the_second_half in_March:in_April at_school:at_home
in_the_first_week:in_the_second_week:in_the_third_week in_January:in_February
in_the_first_hour:in_the_second_hour in_the_first_game:in_the_second_game""")
SPOTS = row_list("""in_the_basket:in_the_bowl on_the_table:on_the_floor in_the_kitchen:in_the_cellar
in_the_red_box:in_the_blue_box in_the_front_yard:in_the_back_yard on_the_left:on_the_right upstairs:downstairs
in_the_bag:in_the_box in_the_first_room:in_the_second_room at_home:at_school
on_the_top_shelf:on_the_bottom_shelf in_the_old_house:in_the_new_house""")
WHERE = word_list("""at_the_market at_the_fair in_the_shop at_a_yard_sale at_school at_the_park at_the_store
in_the_garden at_the_mall on_the_way_home at_the_beach in_the_attic after_school for_a_party for_a_friend
last_weekend during_the_holidays on_Friday in_the_morning yesterday before_dinner at_camp last_summer""")
HERE = ["", "", ""] + word_list("at_the_market at_the_fair at_school in_town on_the_island at_camp")
LATER = word_list("""an_hour_later in_the_evening at_noon in_the_afternoon the_next_morning after_ten_minutes
before_sunset""")
# what sentences without a number say
WHILES = word_list("""one_day after_lunch before_school on_a_rainy_day during_the_holidays after_a_long_day
on_the_way_home at_the_beginning_of_the_year in_the_middle_of_the_week without_telling_the_others as_always
because_of_the_cold_weather for_the_first_time at_the_end_of_the_month after_a_hearty_breakfast
on_the_last_day_of_the_trip before_sunrise for_the_big_festival with_a_little_help before_dinner
early_in_the_morning late_at_night to_pass_the_time in_a_small_town_near_the_sea""")
DOINGS = word_list("""walk_to_the_market help_in_the_garden get_ready_for_a_long_trip
plan_a_party_for_the_whole_family clean_the_old_garage visit_the_museum talk_about_the_weather
prepare_everything_for_the_next_day wait_for_the_bus play_in_the_park look_out_of_the_window
want_to_learn_something_new work_on_a_school_project go_to_a_concert decorate_the_house listen_to_the_radio
watch_the_birds start_a_new_hobby open_a_small_shop join_a_club make_a_list have_an_idea
need_things_for_the_kitchen take_part_in_a_contest move_to_another_house follow_an_old_recipe
meet_friends_at_the_station carry_everything_home think_about_a_present try_something_new""")
CROWDS_AT_WORK = word_list("""the_neighbours many_people the_children most_families the_teachers all_visitors
the_workers the_students some_friends the_tourists the_people_of_the_town the_members_of_the_club""")
JOBS = word_list("""mowing_lawns washing_cars walking_dogs babysitting selling_lemonade delivering_newspapers
cleaning_windows raking_leaves helping_at_home watering_plants painting_a_fence shoveling_snow tutoring
feeding_cats carrying_bags""")
WHOLES = [[Thing(one) for one in row] for row in row_list("""boy:girl:child man:woman:person
adult:child:person cat:dog:pet rose:tulip:flower apple:pear:fruit novel:comic:book dime:nickel:coin
car:truck:vehicle cow:sheep:animal duck:goose:bird carrot:onion:vegetable student:teacher:person pine:oak:tree
chair:stool:seat goldfish:guppy:fish violin:guitar:instrument""")]
CROWDS = word_list("""in_the_class on_the_bus in_the_park at_the_party in_the_choir in_the_club at_the_camp
in_the_hall on_the_train in_the_theater at_the_pool in_the_museum""")
NUMBER_WORDS = word_list("no one two three four five six seven eight nine ten eleven twelve")
NTH = {3: "third", 4: "quarter", 5: "fifth", 6: "sixth", 10: "tenth"}
PRONOUNS = {row[0]: dict(zip(("", "obj", "'s"), row))
            for row in row_list("he:him:his she:her:her it:it:its they:them:their")}
ONSETS = word_list("""b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kl kr pl pr qu sc sh
sk sl sm sn sp st th tr wh""")
VOWELS = word_list("a a a e e e i i i o o o u u ai ay ea ee ia ie oa oo ou y")
CODAS = word_list("b ck d g k l ll m n n nd ng nn nt p r rd rk rt s ss st t tt th x")


# ---- the template teacher's language: wordings -------------------------------------------------------------

def read_wordings(text):
    """Lines "kind: wording | another (wording|one)", continued behind spaces, as {kind: [wording, ...]}."""
    kinds = {}
    for row in re.sub(r"\n\s+", " ", text.strip()).split("\n"):
        kind, _, wordings = row.partition(": ")
        kinds[kind] = []
        for wording in wordings.split(" | "):
            before, _, rest = wording.partition("(")
            options, _, after = rest.partition(")")
            kinds[kind] += [tidy(before + option + after) for option in options.split("|")]
    return kinds


def tidy(text):
    """Without spaces that are too many."""
    return re.sub(r" ([,.?])", r"\1", " ".join(text.split()))


# A line is a kind of fact and its wordings. {S} is who it is about, {O} another one, 's behind it makes the
# possessive. {N} is the number with its noun ("5 apples"), {M} "5 more apples", {L} "5 fewer apples", {G}
# like {M} or "another 5", {F} "5 of them", {k} the number alone, {T} the noun; {Tail} is {tail} at the
# beginning of a sentence. [have] is a verb in the story's tense: of {S}, [#be] of the number, [+be] of many,
# [-be] of one, [&have] of {O}, [!have] of {S} now. {S:obj} is "him". Of some kinds alone: {m} how many each
# group has, {P} a price, {D} a duration, {x} how many times, {nth} "third", {ref} what is compared with,
# {box} a container, {per} "each day", {at} "in" or "on". A wording is drawn only where all its fields are
# there.
FACTS = read_wordings("""
have: {S} ([have]|[own]) {N} {tail}. | {S} [have] a {box} with {N}. | There [#be] {N} in {S's} {box}. | In
  {S's} {box} there [#be] {N}. | {S} [keep] {N} in a {box}. | {S} ([start] with|[have] a collection of) {N}.
act: {S} [{V}] {N} {tail}. | {Tail}, {S} [{V}] {N}. | {Tail} {S} [{V}] {N}. | {S} ([manage] to {V}|[be] able
  to {V}|[{V}] exactly) {N} {tail}.
cost: {S} [cost] {N}. | The price of {S} [-be] {N}. | ({S} [be] sold|One can buy {S}) for {N}. | {N} [-be] the
  price of {S:obj}. | The shop [-sell] {S} for {N}.
there: There [#be] {N} {tail}. | {Tail} there [#be] {N}. | Someone [-count] {N} {tail}. | {N} [#be] {tail}. |
  {Tail}, ({N} can be seen|there [#be] exactly {N}).
money: {S} [have] ({N} {tail}|{N} in {his} pocket|saved {N}). | There [#be] {N} in {S's} purse. | {S} [start]
  with {N}. | {S} [carry] {N} with {him}. | In {S's} wallet there [#be] {N}.
be: {S} [be] {N} {adj} {tail}. | The {side} of {S} [-be] {N}. | {S} [have] a {side} of {N}. | {S's} {side}
  [-be] {N}. | {S} [be] exactly {N} {adj}. | In {side}, {S} [measure] {N}.
age: {S} [be] ({N} old {tail}|{k} years of age|{k}). | {S's} age [-be] {k}. | At the moment, {S} [be] {N} old.
  | {S} [be] now {k} years old. | The age of {S} [-be] {N}.
weigh: {S} [weigh] {N}. | ({S's} weight|The weight of {S:obj}) [-be] {N}. | The scale [-show] {N} for {S}. |
  {S} ([weigh] exactly|[be] weighed:) {N}.
gain: {S} [{V}] {G} (|{where}). | (Then {S}|Later {S}|{Where}, {S}|After that {S}|{S} also) [{V}] {G}.
given: {O} [&give] ({S:obj} {G}|{G} to {S:obj}). | {S} ([get] {G} from|[be] given {G} by|[receive] {G} from)
  {O}. | Then {O} [&bring] {S:obj} {G}. | {O} [&send] {G} to {S:obj}. | Then {O} [&give] {S:obj} {G}.
lose: {S} [{V}] ({F}|{k} of {own}|{F} {where}). | (Then {S}|{S} then|{Where}, {S}|Later {S}|After that {S})
  [{V}] {F}.
gives: {S} [give] ({F} to {O}|{k} of {own} to {O}|{O} {F}). | Then {S} [give] {F} to {O}. | {O} [&get] {F}
  from {S:obj}. | {S} ([hand] {F}|[pass] {F} on|[sell] {F}|[give] {F} away) to {O}.
spend: {S} [spend] {N} on {item}. | {S} [buy] {item} for {N}. | {S} [pay] {N} for {item}. | For {item} {S}
  [pay] {N}. | Then {S} [spend] {N} on {item}. | {S} [use] {N} to buy {item}. | {S} [buy] {item} that [-cost]
  {N}.
earn: {S} ([earn] {M} by|[get] {N} for) {job}. | For {job} {S} [earn] {M}. | {O} [&give] {S:obj} {N}. | {S}
  [make] {N} by {job}. | {S} [receive] {N} for {his} birthday. | {S} [find] {N} in the street.
come: (|Then|Later|After a while|{Later},|Soon) {G} [#{V}].
go: (|Then|Later|After a while|{Later},|Suddenly) {F} [#{V}].
some gained: {S} [{V}] some more. | Then {S} [{V}] some more {T}. | {S} [{V}] some more {where}. | Later {S}
  [{V}] a few more {T}. | {S} [{V}] another lot of {T}. | Then {S} [{V}] some others.
some given: {O} [&give] {S:obj} some more. | {S} [get] some more {T} from {O}. | {O} [&bring] {S:obj} some
  {T}. | {S} [be] given some more by {O}. | Then {O} [&give] some {T} to {S:obj}. | {S} [receive] a few more
  from {O}.
some lost: {S} [{V}] some of them. | Then {S} [{V}] some. | {S} [{V}] some of the {T} {where}. | Later {S}
  [{V}] a few of them. | {S} [{V}] some {T}. | {Where}, {S} [{V}] some of them.
some gave: {S} [give] (some of them to {O}|{O} some of the {T}). | ({S} [hand] some|Then {S} [give] some {T})
  to {O}. | ({O} [&take] some|{S} [give] {O} a few) of them.
some came: Some more {T} [+{V}]. | Then some (more {T}|others) [+{V}]. | More {T} [+{V}]. | (Later a
  few|{Later}, some) more [+{V}].
some left: Some of them [+{V}]. | Then some (of the|) {T} [+{V}]. | Later a few of them [+{V}]. | {Later},
  some [+{V}]. | After a while some of them [+{V}].
some had: {S} ([have] some|[have] a {box} of|[own] some|[have] a number of) {T}. | {S} ([have]|[keep]) some
  {T} in a {box}.
some there: There [+be] some {T} {tail}. | Some {T} [+be] {tail}. | {Tail} there [+be] some {T}. | {Tail},
  some {T} can be seen. | There [+be] (a number of|) {T} {tail}.
now has: Now {S} [!have] {N}. | {S} [!have] {N} now. | {S} now [!have] {N}. | That [-leave] {S:obj} with {N}.
  | (After that|In the end) {S} [have] {N}. | {S} [end] up with {N}. | {S} [have] {N} after that.
now there: (Now|After that) there [#be] {N} {tail}. | Now {N} [#be] {tail}. | (In the end|Then) there [#be]
  {N} {tail}. | After that {N} [#be] {tail}.
more: ({S} [{V}] {M} {tail}|{Tail}, {S} [{V}] {M}) than {ref:obj}. | Compared with {ref:obj}, {S} [{V}] {M}
  {tail}. | {S} [{V}] ({M} {tail} than {ref} {do}|{N} more {tail} than {ref:obj}).
fewer: ({S} [{V}] {L} {tail}|{Tail}, {S} [{V}] {L}) than {ref:obj}. | Compared with {ref:obj}, {S} [{V}] {L}
  {tail}. | {S} [{V}] ({L} {tail} than {ref} {do}|{N} {less} {tail} than {ref:obj}).
times: {S} [{V}] {x} times as {many} {what} {tail} as {ref:obj}. | {S} [{V}] {x} times the {amount} {tail}
  that {ref} {do}. | {Tail}, {S} [{V}] {x} times as {many} {what} as {ref:obj}. | {S} [{V}] {x} times as
  {many} {what} {tail} as {ref} {do}. | {S} [{V}] {x} times {O's} {amount}. | Compared with {ref:obj}, {S}
  [{V}] {x} times as {many} {what} {tail}.
twice: {S} [{V}] twice as {many} {what} {tail} as {ref:obj}. | {S} [{V}] double the {amount} {tail} that {ref}
  {do}. | {S} [{V}] two times as {many} {what} {tail} as {ref:obj}. | {Tail}, {S} [{V}] twice as {many} {what}
  as {ref:obj}. | {S} [{V}] twice the {amount} {tail} that {ref} {do}. | {S} [{V}] double {O's} {amount}.
half: {S} [{V}] half as {many} {what} {tail} as {ref:obj}. | {S} [{V}] half the {amount} {tail} that {ref}
  {do}. | {S} [{V}] only half as {many} {what} {tail} as {ref:obj}. | {Tail}, {S} [{V}] half as {many} {what}
  as {ref:obj}. | {S} [{V}] half (of the {amount} that {ref} {do}|{O's} {amount}).
fraction: {S} [{V}] (a|one) {nth} as {many} {what} {tail} as {ref:obj}. | {S} [{V}] a {nth} of the {amount}
  that {ref} {do}. | {Tail}, {S} [{V}] a {nth} as {many} {what} as {ref:obj}. | {S} [{V}] only a {nth} as
  {many} {what} {tail} as {ref:obj}. | {S} [{V}] one {nth} of the {amount} that {ref} {do}.
there more: There [#be] {M} {tail} than {ref:obj}. | {Tail} there [#be] {M} than {ref:obj}. | Compared with
  the {ref}, there [#be] {M}. | {M} than {ref:obj} [#be] {tail}. | There [#be] {N} more {tail} than {ref:obj}.
there fewer: There [#be] {L} {tail} than {ref:obj}. | {Tail} there [#be] {L} than {ref}. | {L} than {ref:obj}
  [#be] {tail}. | There [#be] {N} {less} {tail} than {ref:obj}.
there times: There [+be] {x} times as many {T} {tail} as {ref:obj}. | {Tail} there [+be] {x} times as many {T}
  as {ref:obj}. | There [+be] {x} times as many {T} as {ref:obj} {tail}. | {X} times as many {T} as {ref:obj}
  [+be] {tail}.
there twice: There [+be] (twice|two times) as many {T} {tail} as {ref:obj}. | {Tail} there [+be] twice as many
  {T} as {ref:obj}. | Twice as many {T} as {ref:obj} [+be] {tail}.
there half: There [+be] (|only) half as many {T} {tail} as {ref:obj}. | {Tail} there [+be] half as many {T} as
  {ref:obj}. | Half as many {T} as {ref:obj} [+be] {tail}.
there fraction: There [+be] (a|one) {nth} as many {T} {tail} as {ref:obj}. | {Tail} there [+be] a {nth} as
  many {T} as {ref:obj}. | Only a {nth} as many {T} as {ref:obj} [+be] {tail}.
is more: {S} [be] ({N}|{k} {units}) {more} than {O}. | {S} [be] {N} {more} than {O} [&be]. | Compared with
  {O:obj}, {S} [be] {N} {more}. | {S} [be] exactly {N} {more} than {O}. | {O} [&be] {N} {less} than {S:obj}.
is fewer: {S} [be] ({N}|{k} {units}) {less} than {O}. | {S} [be] {N} {less} than {O} [&be]. | Compared with
  {O:obj}, {S} [be] {N} {less}. | {S} [be] exactly {N} {less} than {O}. | {O} [&be] {N} {more} than {S:obj}.
is times: {S} [be] {x} times as {adj} as {O} (|[&be]). | (The {side} of {S:obj}|{S's} {side}) [-be] {x} times
  that of {O:obj}. | {S} [be] exactly {x} times as {adj} as {O}. | Compared with {O:obj}, {S} [be] {x} times
  as {adj}.
is twice: {S} [be] twice as {adj} as {O} (|[&be]). | The {side} of {S} [-be] twice that of {O:obj}. | {S}
  ([have] twice the {side} of|[be] exactly twice as {adj} as) {O}. | Compared with {O:obj}, {S} [be] twice as
  {adj}.
is half: {S} [be] (|only) half as {adj} as {O}. | The {side} of {S} [-be] half that of {O:obj}. | {S} [be]
  half as {adj} as {O} [&be]. | {S} [have] half the {side} of {O:obj}. | {O} [&be] twice as {adj} as {S:obj}.
is fraction: {S} [be] (a|one) {nth} as {adj} as {O}. | The {side} of {S} [-be] a {nth} of that of {O:obj}. |
  {S} [be] only a {nth} as {adj} as {O}. | ({S's} {side} [-be] a {nth} of that|{S} [have] a {nth} of the
  {side}) of {O:obj}.
all: {S} [{V}] ({N} {tail}|a total of {N}). | In total, {S} [{V}] {N}. | {S} [{V}] {N} in all. | Altogether,
  {S} [{V}] {N}. | {S} [{V}] {N} altogether.
all there: There [#be] ({N} {tail} in all|{N} in all {tail}|a total of {N} {tail}). | {Tail} there [#be] {N}.
  | (In all|Altogether) there [#be] {N} {tail}.
some are: ({K} of them|Of these, {k}|{K} of the {T}|{K}|Only {k} of them|Among them, {k}) [#be] {adj}.
share is: ({Share} of them|{Share} of the {T}|Of these, {share}|Exactly {share} of the {T}|{Share} of these
  {T}|Among them, {share}) [+be] {adj}.
the rest: (The rest|The others|All the others|The remaining ones|The remaining {T}|All other {T}) [+be] {adj}.
groups: {S} [have] {N} (with {m} {T} {at}|of {m} {T}) each. | {S} [have] {N}. Each {group} [-have] {m} {T}. |
  {S} ([have] {N}. There [+be]|[own] {N} with) {m} {T} {at} each {group}. | {S} [have] {N} and {at} each
  {group} there [+be] {m} {T}. | {S} [have] {N}. Every {group} [-hold] {m} {T}.
there groups: There [#be] {N} {here} with {m} {T} {at} each {group}. | There [#be] {N}, each with {m} {T}. |
  There [#be] {N}. (Every {group} [-have]|{At} each {group} there [+be]) {m} {T}. | {N} [#have] {m} {T} each.
  | Each of {N} [-have] {m} {T}.
each has: There [+be] {m} {T} {at} each {group}. | (Each {group} [-have]|{At} each {group} there [+be]|Every
  {group} [-have]|Each {group} [-contain]) {m} {T}. | {m} {T} [+be] {at} each {group}.
buys groups: {S} [{V}] {N} (of {m} {T} each|with {m} {T} in each {group}). | Then {S} [{V}] {N} with {m} {T}
  each. | {S} [{V}] {N} of {T}. Each {group} [-have] {m} {T}. | {S} [{V}] {N} of {T} with {m} in each. | Then
  {S} [{V}] {N} of {m} {T}.
shares: {S} ([share]|[divide]) {them} equally among {N}. | {S} [give] {them} to {N}, the same number to each.
  | {S} [split] {them} evenly between {N}. | {S} [want] to share {them} equally among {N}. | {N} [#get] {them}
  in equal shares.
packs of: {S} [pack] {them} in {groups} of {m}. | {S} [put] {m} of {them} into each {group}. | Each {group}
  can hold {m} {T}. | {S} [put] {them} into {groups} with {m} in each. | {S} [want] to put {them} into
  {groups} of {m}. | {m} {T} fit into one {group}. | {S} [arrange] {them} in {groups} of {m}.
packs into: {S} [pack] {them} into {N}, the same number in each. | {S} [put] {them} equally into {N}. | {S}
  ([divide]|[want] to put) {them} into {N} equally. | {S} [split] {them} evenly into {N}. | {S} [sort] {them}
  into {N} with equally many in each.
sells at: {S} [sell] {them} (for|at) {N} each. | Each {one} [-be] sold for {N}. | {S} [sell] {them} all for
  {N} apiece. | {S} [get] {N} for each {one}. | {S} [sell] each {one} for {N}.
uses daily: {S} [use] {k} {T} each {unit}. | Every {unit} {S} [use] {k} of {them}. | {S} ([need] {k} {T}
  every|[use] {k} {T} per) {unit}. | Each {unit} {S} [give] away {k} {T}. | {S} [use] up {k} of {them} every
  {unit}.
wants: {S} ([want]|[need]|would like|[hope]) to {bare} {N}. | {S} [have] to {bare} {N} in all. | {S's} goal
  [-be] to {bare} {N}.
gives each: {S} [give] {m} {T} (to each of|each to) {N}. | Then {S} [give] each of {N} {m} {T}. | {S} [hand]
  {m} {T} to each of {N}. | ({N} [#get] {m} {T} each|Each of {N} [-get] {m} {T}) from {S:obj}.
gets from each: Each of {N} [-give] {S:obj} {m} {T}. | {N} [#give] {S:obj} {m} {T} each. | {S} [get] {m} {T}
  from each of {N}. | Then each of {N} [-give] {S:obj} {m} {T}. | {S} [receive] {m} {T} from each of {N}. |
  {N} [#bring] {S:obj} {m} {T} each.
each person: {N} [#have] {m} {T} each {here}. | (Each of {N}|There [#be] {N}. Each {one}) [-have] {m} {T}. |
  {N} [#bring] {m} {T} each. | There [#be] {N} and each {one} [-own] {m} {T}. | {N} each [#have] {m} {T}.
per: {S} [{V}] {N} {per}. | {Per}, {S} [{V}] {N}. | {S} (always|usually) [{V}] {N} {per}. | {S} [{V}] ({N} in
  one {unit}|exactly {N} {per}).
for so long: ({S} [do] this|{S} [keep] this up|This [-go] on|{S} [do] so|{S} [continue] like this) for {N}. |
  This [-last] {N}.
per for: {S} [{V}] {N} {per} for {D}. | For {D} {S} [{V}] {N} {per}. | {S} [{V}] {N} (every|each) {unit} for
  {D}. | {Per}, {S} [{V}] {N}, for {D}. | For {D}, {S} [{V}] {N} each {unit}.
in so long: {S} [{V}] {N} in {D}. | In {D}, {S} [{V}] {N}. | It [-take] {S:obj} {D} to {V} {N}. | {S} [{V}]
  ({N} within|a total of {N} in) {D}. | {S} [need] {D} to {V} {N}.
costs: (One {one}|{A one}|Each {one}) [-cost] {P}. | The price of one {one} [-be] {P}. | {T} ([+cost]|[+be]
  sold at) {P} each.
buys at: {S} [{V}] {N} (for|at) {P} each. | {S} [{V}] {N}. Each {one} [-cost] {P}. | {S} [{V}] {N} that
  [#cost] {P} each. | One {one} [-cost] {P} and {S} [{V}] {N}. | {S} [{V}] {N} at a price of {P} each.
buys: {S} ([{V}]|[want] to buy|[take]|[order]) {N}. | {S} [get] {N} {where}. | {S} [pay] for {N}.
paid for all: {S} [pay] {P} for {N} {here}. | {S} [{V}] {N} for {P} in all. | {S} [spend] {P} on {N}. | {N}
  [#cost] {S:obj} {P} in all. | Together, {N} [#cost] {P}. | {S} [{V}] {N} and [pay] {P}.
spent in all: {S} ([spend] {N} on|[pay] {N} for) {T}. | {S} [buy] {T} for {N}. | For {T}, {S} [spend] {N}. |
  {S} ([spend] a total of {N} on|[give] {N} for) {T}.
pays with: {S} ([pay] with|[give] the cashier|[hand] over) {bill}. | {S} [pay] with {N}. | {S} [put] {bill} on
  the counter. | {S} [give] {N} to the cashier.
cuts: {S} [be] cut into pieces of {N}. | Someone [-cut] {S} into pieces of {N} each. | {S} [be] cut into
  pieces, each {N} long. | ({O} [&cut] {S} into|{O} [&divide] {S} into|{S} [be] sawn into equal) pieces of
  {N}.
cut off: {O} [&cut] {N} off {S:obj}. | {N} of {S} [#be] cut off. | (Someone [-cut] off|{O} [&use]|{O} [&take])
  {N} of {S:obj}. | {S} [be] shortened by {N}.
grows: {S} [grow] ({M}|by {N}). | Then {S} [grow] another {N}. | In a year {S} [grow] {N}. | {S} then [grow]
  {M}. | During the summer {S} [grow] {N}.
loses half: {S} [{V}] half of ({them}|the {T}). | (Then {S} [{V}]|{S} [{V}] exactly|{Where}, {S} [{V}]|{S}
  [{V}] one) half of {them}.
loses part: {S} [{V}] (a {nth} of {them}|one {nth} of the {T}). | Then {S} [{V}] a {nth} of {them}. | {S}
  [{V}] a {nth} of the {T}. | ({Where}, {S} [{V}]|{S} [{V}] exactly) a {nth} of {them}.
parts: (There [#be]|{O} [&see]) {N} {tail}. | {O} [&have] {N}. | {O} [&count] {N} {tail}. | {O} [&draw] {N}. |
  {O} [&look] at {N} {tail}.
unneeded age: {S} [be] {k} (years old|). | {S} [have] {k} cousins. | {S} [live] at number {k}. | {S} [have]
  {k} classmates. | {S} [be] in room {k}.
setting: {While}, {S} [{V}]. | {S} [{V}] {while}. | {While} {S} [{V}]. | {While}, {crowd} [+{V}]. | {Crowd}
  [+{V}] {while}. | {S} [{V}]. | {S} [{V}] because {crowd} [+like] it. | {S} [{V}], and {crowd} [+watch]. | It
  [-be] a sunny day. | {S} [like] {T}. | It [-be] raining, and {S} [be] at home. | {S} [collect] {T}. |
  Everybody [-know] {S:obj}. | It [-be] the last week of the summer. | {S} [think] about {T}. | Here is a
  story about {T}.
has parts: ({S}|Every {what one}|Each {what one}|One {what one}|{S} always|Any {what one}) [have] {N}.
unneeded time: It [-take] {k} minutes. | It [-be] {k} degrees outside. | It [-be] day {k} of the year. | There
  [+be] {k} clouds in the sky. | {k} people [+be] watching. | The shop [-be] {k} miles away.
""")
# How each kind of clause is asked for; the first wording is that of a sub-question, the others are for the
# problem's last.
QUESTIONS = read_wordings("""
in groups: {How} [+be] (there|) {at} {number}? | {At} {number}, {how} [+be] there? | What [-be] the number of
  {T} {at} {number}? | Find {how} there [+be] {at} {number}.
cost of: How much (money [DO] {S} spend on {number}|would {number} cost)? | (What [DO] {S} pay|How much [DO]
  {S} pay|How much money [DO] {S} need) for {number}? | Find the price of {number}.
in time: {How} [DO] {S} {V} {tail}? | {Tail}, {how} [DO] {S} {V}? | {How} will {S} {V} {tail}? | Find out
  {how} {S} [{V}] {tail}. | So {how} [DO] {S} {V} {tail}?
have: ({How}|What number of {T}) [DO] {S} have {tail}? | What [-be] the number of {T} that {S} [have] {tail}?
  | {How} [+belong] to {S:obj} {tail}? | So {how} [DO] {S} have {tail}? | (Find out|Tell me) {how} {S} [have]
  {tail}.
act: ({How}|What number of {T}) [DO] {S} {V} {tail}? | {Tail}, {how} [DO] {S} {V}? | Find out {how} {S} [{V}]
  {tail}. | (Can you tell {how}|What [-be] the number of {T} that) {S} [{V}] {tail}? | So {how} [DO] {S} {V}
  {tail}?
now: {How} [DO] {S} have (left|now)? | {How} [+be] left? | {How} [DO] {S} still have? | With {how} [DO] {S}
  end up? | {How} [DO] {S} have in the end? | Now {how} [DO] {S} have? | {How} [-DO] that leave {S:obj}? |
  {How} [+remain]? | {How} [DO] {S} have after that?
more now: {How} [DO] {S} have (now|in all|altogether|in total)? | With {how} [DO] {S} end up? | {How} [DO] {S}
  have in the end? | Now {how} [DO] {S} have? | What [-be] the total number of {T} that {S} [have] now? |
  {How} [DO] {S} have after that?
at first: {How} [DO] {S} (have at first|have in the beginning|have before|start with|have to begin with|have
  originally|have before that)?
before: {How} [DO] {S} have before {event}?
there before: {How} [+be] there {tail} before {event}?
there: {How} [+be] (there|) {tail}? | What number of {T} [+be] there {tail}? | {Tail}, {how} [+be] there? |
  Find {how} there [+be] {tail}. | {How} can be seen {tail}?
now there: {How} [+be] (left {tail}|there now {tail}|{tail} now|{tail} in the end|still there {tail}|{tail}
  after that)? | {How} [+remain] {tail}?
more there: {How} [+be] (there now {tail}|there {tail} in all|{tail} now|{tail} in the end|there altogether
  {tail}|{tail} after that)?
there at first: {How} [+be] (there at first {tail}|{tail} at first|there in the beginning {tail}|there {tail}
  before|{tail} to begin with|originally {tail})?
move: {How} [+{V}]? | What number of {T} [+{V}]? | {How} [+{V}] then? | Find out {how} [+{V}]. | Can you tell
  {how} [+{V}]?
be: (How {adj} [be]|What [-be] the {side} of|How many {units} {adj} [be]|In {units}, how {adj} [be]) {S}
  {tail}? | What [-be] {S's} {side} {tail}? | Find the {side} of {S:obj} {tail}.
age: How old [be] {S} {tail}? | What [-be] {S's} age {tail}? | (How many years|In years, how|So how) old [be]
  {S} {tail}? | Can you tell how old {S} [be] {tail}?
weigh: How much [DO] {S} weigh {tail}? | What [-be] {S's} weight {tail}? | How (many {units} [DO] {S}
  weigh|heavy [be] {S}) {tail}? | (What|In {units}, how much) [DO] {S} weigh {tail}?
diff: {How more} [DO] {S} {V} {tail} (than {ref:obj}|compared with {ref:obj}|than {ref} {do})? | Compared with
  {ref:obj}, {how more} [DO] {S} {V} {tail}? | Find {how more} {S} [{V}] {tail} than {ref:obj}. | {How more}
  than {ref:obj} [DO] {S} {V} {tail}?
fewer: {How fewer} [DO] {S} {V} {tail} (than {ref:obj}|compared with {ref:obj}|than {ref} {do})?
there diff: {How more} ([+be] there {tail} than {ref:obj}|than {ref:obj} [+be] there {tail}|[+be] {tail} than
  {ref:obj})? | Compared with {ref:obj}, {how more} [+be] there {tail}?
event diff: {How more} [DO] {S} {V} than {S} {other}? | Find {how more} {S} [{V}] than {S} {other}.
move diff: {How more} [+{V}] than {other}? | Find {how more} [+{V}] than {other}.
be diff: How (much|many {units}) {more} [be] {S} than {O}? | By how much [be] {S} {more} than {O}? | What
  [-be] the difference in {side} between {S:obj} and {O:obj}? | How many {units} {less} [&be] {O} than
  {S:obj}? | By how many {units} [be] {S} {more} than {O}?
total: {How} [DO] {S} {V} {tail}? | What [-be] the total number of {T} that {S} [{V}]? | {How} [DO] {S} {V}
  (altogether|in all|in total)? | (Altogether, {how}|What total of {T}) [DO] {S} {V}?
total there: {How} [+be] (there {tail} in all|there in total {tail}|{tail} altogether)? | What [-be] the total
  number of {T} {tail}? | (In all, {how}|{How}) [+be] there {tail}?
lasts: ({How}|For {how}|How long) [DO] {S} last? | (After {how} [+be] {S}|{How} will pass until {S} are) used
  up?
so long: {How} [DO] {S} need for that? | For {how} [DO] {S} {V} {thing}? | (How long|{How}) [-DO] it take
  {S:obj}? | In {how} [DO] {S} do that? | How many {T} [-DO] this take {S:obj}?
pay: How much (money|) [DO] {S} spend {tail}? | How much [DO] {S} pay? | How many dollars [DO] {S} spend
  {tail}? | What [DO] {S} pay in all? | How much [DO] {S} have to pay?
change: How much change [DO] {S} get? | How (much money|many dollars) [DO] {S} get back? | What [-be] {S's}
  change? | How much ([DO] {S} get back|change should {S} get)?
cost: How much [DO] {S} cost {tail}? | What [-be] the price of {S:obj}? | (What|How many dollars) [DO] {S}
  cost? | Find the price of {S:obj}. | How expensive [be] {S}?
boxes: {How} [DO] {S} (fill|need)? | {How} [+be] needed? | {How} will there be? | {How} [DO] {S} get? | {How}
  can {S} fill?
each: {How} ([+be] there|go) {tail}? | {Tail}, {how} [+be] there? | What number of {T} [+be] {tail}? | {How}
  will there be {tail}?
each gets: {How} ([DO]|will) {S} get? | {How} ([+be] there for|go to) {S}? | What number of {T} [DO] {S} get?
need more: {How more} [DO] {S} (|still) {V}? | {How} [DO] {S} still {V}? | So {how more} [DO] {S} {V}?
can buy: {How} can {S} (buy|afford|get for {his} money)? | What number of {T} can {S} buy?
rate: {How} [DO] {S} {V} ({tail}|per {unit}|in one {unit})? | {Tail}, {how} [DO] {S} {V}?
""")


# ---- the template teacher: sentences -----------------------------------------------------------------------

SAYS = {  # how solutions say the forms of clauses
    "act": "{N} {tail}", "there": "{N} {tail}", "move": "{N} [#{V}] {tail}", "be": "{N} {adj} {tail}",
    "age": "{N} old {tail}", "needs": "{M}", "be diff": "{N} {more} than {O}",
    "diff": "{M} {tail} than {ref}", "fewer": "{L} {tail} than {ref}", "there diff": "{M} {tail} than {ref}",
    "event diff": "{M} than {S} {other}", "move diff": "{M} [#{V}] than {other}"}
DOLLARS = Thing("dollar")


@dataclass(eq=False)
class Entity:
    """Whom or what a sentence is about."""
    name: str
    sex: str = "it"  # he, she, it or they
    first: str = ""  # how a story introduces it: "a farmer", "brother"; "-": never by a pronoun
    owner: "Entity" = None  # whose brother


class Teacher:
    """How sub-questions and solutions speak: names, not pronouns; digits."""

    def name(self, entity, case):
        return self.inflected(entity, entity.name, case)

    def inflected(self, entity, name, case):
        return name + ("'" if entity.sex == "they" and entity.name.endswith("s") else "'s") * (case == "'s")

    def number(self, value):
        return str(int(value)) if value == int(value) else f"{float(value):.2f}"

    def count(self, value, thing, kind):
        """The number with its thing; kind: as in FACTS."""
        extra = {"M": "more ", "L": "less " if thing.money else "fewer "}.get(kind, "")
        return f"{self.number(value)} {extra}{thing.of(value)}"


class Narrator(Teacher):
    """How the text of a problem speaks: pronouns, numbers in words, "$5", "5 of them"."""

    def __init__(self, rng):
        self.rng, self.subject, self.known, self.before, self.here = rng, None, set(), set(), set()
        self.in_words, self.commas, self.signs = rng.random() < 0.15, rng.random() < 0.3, rng.random() < 0.75
        self.pronouns = rng.choice((0.2, 0.6, 0.9))

    def name(self, entity, case):
        self.here.add(entity)
        rival = any(one.sex == entity.sex and one is not entity for one in self.before | self.here)
        rare = entity.sex == "it" and not entity.first
        likely = self.pronouns * (0.1 if rival else 1) * (0.15 if rare else 1)
        if (entity is self.subject and entity.first != "-" and self.rng.random() < likely
                or entity.first == "they" and len(self.known) > 1 and self.rng.random() < self.pronouns / 2):
            return PRONOUNS[entity.sex][case]
        name, owner = entity.name, entity.owner
        if owner:
            whose = PRONOUNS[owner.sex]["'s"] if owner is self.subject else f"{owner.name}'s"
            name = f"{whose} {entity.first}"
        elif entity not in self.known and entity.first not in ("", "-", "they"):
            name = entity.first
        self.known.add(entity)
        return self.inflected(entity, name, case)

    def end(self, subject):
        """A sentence has ended; what it was about is the next one's pronoun."""
        self.subject = subject if subject in self.here else self.subject
        self.before, self.here = self.here, set()

    def number(self, value):
        if value != int(value):
            return super().number(value)
        if self.in_words and value <= 12:
            return NUMBER_WORDS[int(value)]
        return f"{int(value):,}" if self.commas else str(int(value))

    def count(self, value, thing, kind):
        n, what, rng = self.number(value), thing.of(value), self.rng
        if thing.money:
            amount = f"${super().number(value)}" if self.signs else f"{n} {what}"
            if kind == "L":
                return f"{amount} less"
            return f"{amount} more" if kind == "M" or kind == "G" and rng.random() < 0.6 else amount
        if kind in "ML":
            return f"{n} {'more' if kind == 'M' else 'fewer'} {what}"
        if kind == "G":
            more = f"{n} more {what}"
            return rng.choice((more, f"{n} more", f"another {n} {what}", f"{n} {what}", more))
        if kind == "F":
            return rng.choice((f"{n} of them", f"{n} of the {thing}", f"{n} {what}", n, f"{n} {what}"))
        return f"a dozen {thing}" if value == 12 and rng.random() < 0.15 else f"{n} {what}"


TEACHER = Teacher()


def lower(text):
    """The opposite of `capital`."""
    return text[0].lower() + text[1:]


def fill(wording, fields, tense, speaker):
    """A wording with its fields filled in and its verbs conjugated: see FACTS. {Tail} is {tail} at the
    beginning of a sentence.
    """
    subject = fields.get("S")

    def text_of(match):
        name, case = match[1], (match[2] or "").strip(":")
        if name in ("him", "his"):
            return PRONOUNS[subject.sex]["obj" if name == "him" else "'s"]
        found = fields[name] if name in fields else fields[lower(name)]
        if isinstance(found, Entity):
            return speaker.name(found, case)
        text = str(found(speaker) if callable(found) else found)
        return text if name in fields else capital(text)

    def verb(match):
        mark, base = match[1], match[2]
        if mark == "#":
            many = fields["value"] != 1
        elif mark == "+":
            many = fields["many"] == "many"
        else:
            many = mark != "-" and (fields["O"] if mark == "&" else subject).sex == "they"
        return conjugate(base, "present" if mark == "!" and tense == "past" else tense, many)

    text = re.sub(r"\{([\w ]+)('s|:obj)?\}", text_of, wording)
    text = re.sub(r"\[([!#+&-]?)([^\]]+)\]", verb, text)
    return tidy(text)


@cache
def needed(wording):
    """The fields that a wording cannot do without; {tail} may be empty, but not where it is all that "is"."""
    names = set(re.findall(r"\{([\w ]+)", wording)) - {"tail", "here", "him", "his", "what"}
    names |= {"O"} if "[&" in wording else set()
    return names | ({"tail"} if re.search(r"(be|remain)\] \{tail\}", wording) else set())


def available(wording, fields):
    """Whether all that a wording needs is there."""
    return all(fields.get(name, fields.get(lower(name))) not in ("", None) for name in needed(wording))


@dataclass(eq=False)
class Clause:
    """A quantity as a clause that has a value: it can be told, asked for, concluded. "Tom bought 5 apples on
    Monday".
    """
    form: str  # how it is said: see SAYS
    S: Entity = None
    V: str = "have"
    T: Thing = None
    tail: str = ""
    tense: str = "present"
    asks: str = ""  # how it is asked for: see QUESTIONS
    value: int = None
    kind: str = "last"  # what a story can go on with: own, act, there, money, be, cost; last: nothing
    more: dict = field(default_factory=dict)  # more fields of its wordings
    alternatives: dict = field(default_factory=dict)  # what it may say instead: {"tail": [...], "T": [...]}
    told: bool = False  # whether its value is known: told by a fact, or found by a step

    @property
    def about(self):
        return self.form, self.S, self.V

    def with_value(self, value):
        self.value, self.told = value, True
        return self

    def digits(self, speaker):
        return speaker.number(self.value)

    def counted(self, speaker, kind="N"):
        return speaker.count(self.value, self.T, kind)

    def fields(self, **others):
        """What stands for the names in wordings: texts, entities, or functions of the speaker."""
        thing = self.T
        if thing.money:
            amount, what = ("price", "") if self.V == "cost" else ("amount of money", "money")
            how, more, many, less = "how much money", "how much more money", "much", "less"
        else:
            amount, what, many, less = f"number of {thing}", str(thing), "many", "fewer"
            how, more = f"how many {thing}", f"how many more {thing}"
        if self.more.get("how") == "how much":
            more = "how much more"
        fields = {"S": self.S, "V": self.V, "T": str(thing), "one": thing.of(1), "them": f"the {thing}",
                  "tail": self.tail, "value": self.value, "k": self.digits, "how": how, "how more": more,
                  "how fewer": more.replace("more", less), "less": less, "many": many,
                  "amount": amount, "what": what}
        if self.S and self.S.sex != "it":
            fields["own"] = PRONOUNS[self.S.sex]["'s"] + f" {thing}"
        fields |= {kind: lambda speaker, kind=kind: self.counted(speaker, kind) for kind in "NMLGF"}
        return fields | self.more | others

    def say(self, start=""):
        """The clause as solutions say it: "5 apples on Monday"; start: a wording's first words."""
        return fill(start + SAYS[self.form], self.fields(), self.tense, TEACHER)

    def ask(self):
        """The sub-question that asks for its value."""
        return capital(fill(QUESTIONS[self.asks or self.form][0], self.fields(), self.tense, TEACHER))


# ---- the template teacher: a story and its world -----------------------------------------------------------

class DeadEnd(Exception):
    """A story cannot go on as drawn: begin another one."""


def require(condition):
    """Raise DeadEnd unless the condition holds."""
    if not condition:
        raise DeadEnd


class Fact(NamedTuple):
    """What one sentence tells: a kind of FACTS, one of its wordings, and what fills it."""
    kind: str
    wording: str
    clause: Clause
    fields: dict
    tense: str


class Step(NamedTuple):
    """What one step finds: operands, which are clauses or numbers, joined by + - * or /."""
    clause: Clause
    op: str
    operands: tuple

    def values(self):
        return [one.value if isinstance(one, Clause) else one for one in self.operands]


PLAIN = 0.3  # how often the first wording of a kind is taken
COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}
LISTED = {word.lower() for listed in (BOYS, GIRLS, SURNAMES, *NOUNS.values(), word_list(
    "she her his him they them the and one who how what")) for word in listed}


def make_up_word(rng, training, listed):
    """A word of one to three syllables, some behind the beginning of one of `listed`. Those for training and
    those for evaluation are two disjoint sets, told apart by a checksum, so that no made-up word of an
    evaluation file, of whatever seed, stands in any training file.
    """
    while True:
        word = ""
        if rng.random() < 0.4:
            word = rng.choice(listed).split(" ")[-1].lower()
            word = word[:rng.randrange(1, len(word))]
        for _ in range(rng.choice((0, 1, 1, 2) if word else (1, 2, 2, 3))):
            word += rng.choice(ONSETS) if rng.random() < 0.9 else ""
            word += rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.4 else "")
        if 3 <= len(word) <= 10 and word.isalpha() and word not in LISTED and all(
                (zlib.crc32(one.encode()) % 4 > 0) == training for one in (word, plural(word))):
            return word


class Words:
    """Where a story's names and nouns come from: the lists, or made up from syllables. training: which
    made-up words.
    """

    def __init__(self, rng, made_up_names=False, made_up_nouns=False, training=True):
        self.rng, self.training, self.used = rng, training, set()
        self.made_up_names, self.made_up_nouns = made_up_names, made_up_nouns

    def new(self, draw):
        """A word whose last part is new to the story: no books beside library books or textbooks."""
        while True:
            last = (word := draw()).split(" ")[-1]
            if not any(last.endswith(one) or one.endswith(last) for one in self.used):
                self.used.add(last)
                return word

    def name(self, sex):
        made_up = lambda: make_up_word(self.rng, self.training, BOYS + GIRLS).capitalize()
        listed = lambda: self.rng.choice(BOYS if sex == "he" else GIRLS)
        return self.new(made_up if self.made_up_names else listed)

    def thing(self, letters):
        nouns = NOUNS[letter := self.rng.choice(letters)]
        made_up, listed = lambda: make_up_word(self.rng, self.training, nouns), lambda: self.rng.choice(nouns)
        return Thing(self.new(made_up if self.made_up_nouns else listed), letter=letter)


class Story:
    """A problem in the making: what it tells (facts) and what is found step by step (steps). Every number is
    the value of a clause; the steps lead from the clauses that are told to the one that is asked for.
    """

    def __init__(self, rng, words, n_steps, level=1, wordings="all"):
        self.rng, self.words, self.n_steps, self.wordings = rng, words, n_steps, wordings
        self.tense = rng.choice(("past", "past", "present"))
        self.now = "present" if self.tense == "present" or rng.random() < 0.5 else "past"
        self.size = rng.choices((12, 20, 100, 1000, 10_000, 1_000_000), (14, 22, 36, 16, 6, 6))[0]
        self.level, self.backwards = level, 0.6 if level == 3 else 0.2  # share of relations told backwards
        self.facts, self.steps, self.people = [], [], []
        self.differ, self.whole = [], None  # pairs of clauses whose difference is told; two whose sum is told
        self.last_pair = None  # the two clauses that were compared last, and in which way they differ

    @property
    def left(self):
        """How many steps are still to come."""
        return self.n_steps - len(self.steps)

    def clauses(self):
        """All that is told or found so far."""
        return [one.clause for one in self.facts + self.steps]

    # -- chance

    def chance(self, probability):
        return self.rng.random() < probability

    def pick(self, options):
        return self.rng.choice(options)

    # -- words

    def person(self):
        sex = self.pick(("he", "she"))
        if self.chance(0.07) and not self.words.made_up_names:
            title = "Mr." if sex == "he" else self.pick(("Mrs.", "Ms."))
            name = self.words.new(lambda: f"{title} {self.pick(SURNAMES)}")
        else:
            name = self.words.name(sex)
        self.people.append(Entity(name, sex))
        return self.people[-1]

    def holder(self):
        """Who has things: mostly a person with a name, else a farmer, a shop."""
        draw = self.rng.random()
        if draw < 0.8:
            return self.person()
        word = self.pick(PEOPLE if draw < 0.9 else PLACES)
        sexes = {"boy": "he", "man": "he", "girl": "she", "woman": "she", "fisherman": "he", "postman": "he"}
        sex = "it" if draw >= 0.9 else sexes.get(word, self.pick(("he", "she")))
        return Entity(f"the {word}", sex, article(word))

    def other(self, person):
        """Another person: a new name, or a relative of `person`."""
        if person in self.people and not person.owner and self.chance(0.25):
            relative, sex = self.pick(RELATIVES)
            new = Entity(f"{person.name}'s {relative}", sex, relative, person)
            if all(one.name != new.name for one in self.people):
                self.people.append(new)
                return new
        return self.person()

    def thing(self, letters="fgtsch"):
        return self.words.thing(letters)

    def container(self, thing, boxes=None):
        """What a thing is kept in: one of `boxes`, if they are given."""
        boxes = boxes or CONTAINERS.get(thing.letter, ["group"])
        return Thing(self.pick([one for one in boxes if one not in thing.one and one not in self.words.used]))

    def verb(self, sign, thing, who=None, among=None):
        """A verb of getting (sign 1) or losing (-1) a thing; for a shop or a school of `who`, and else if
        need be, one of `among`.
        """
        among = FOR_PLACES if who and who.sex == "it" else among
        fit = [verb for verb, letters in (GAINS if sign > 0 else LOSSES) if thing.letter in letters
               and (among is None or verb in among.split(", "))]
        require(fit and thing.letter)
        return self.pick(fit)

    # -- clauses in the story's tense; those with a value are told

    def act(self, S, V, T, value=None, asks="act", tail="", kind="last", **more):
        return Clause("act", S, V, T, tail, self.tense, asks, value, kind, more, told=value is not None)

    def there(self, T, value=None, asks="there", tail="", kind="last", **more):
        return replace(self.act(None, "be", T, value, asks, tail, kind, **more), form="there")

    def total(self, S, V, T, kind="last"):
        return self.act(S, V, T, None, "total", "in all", kind)

    def in_each(self, thing, group, value=None, at="in"):
        return self.there(thing, value, "each", f"{at} each {group.one}")

    def spending(self, S, value=None, tail=""):
        """Tom spends $14 on a hat, which is drawn unless `tail` says on what."""
        item = "" if tail else article(self.thing().one)
        return self.act(S, "spend", DOLLARS, value, "pay", tail or f"on {item}", "cost", item=item)

    # -- numbers

    def draw(self, low=2, high=None):
        """A number of the story's size; among large ones, smaller ones are more likely."""
        high = self.size if high is None else min(high, self.size)
        require(high >= low)
        if high <= 100:
            return self.rng.randint(low, high)
        return min(high, max(low, int(math.exp(self.rng.uniform(math.log(max(low, 5)), math.log(high + 1))))))

    def few(self, low=2, high=12):
        """A number of boxes, days, friends."""
        return self.rng.randint(low, high if self.size < 1000 else 3 * high)

    def price(self, high=30):
        """A price: mostly whole dollars."""
        if self.chance(0.12):
            return Fraction(self.rng.randint(2, 60), 4)
        return self.rng.randint(2, max(high, min(self.size // 20, 3000)))

    def value(self, clause, low=2, high=None):
        """A clause's value, drawn now if it has none."""
        if clause.value is None:
            clause.value = self.draw(low, high)
        return clause.value

    def less_than(self, clause):
        """A number below a clause's value."""
        return self.draw(1 if clause.value and clause.value < 20 else 2, int(self.value(clause, 3)) - 1)

    def divisor(self, clause, choices):
        """One of `choices` that divides a clause's value, which is drawn to fit if it has none."""
        if clause.value is None:
            k = self.pick(choices)
            clause.value = k * self.draw(2, max(12, self.size // k))
            return k
        fit = [k for k in choices if clause.value % k == 0 and clause.value > k]
        require(fit)
        return self.pick(fit)

    # -- telling, relating, finding

    def tell(self, kind, clause, tense=None, place=None, each=None, **extra):
        """Add a fact. place: where among the facts (the end); each: of what there are {m}; extra: fields."""
        fields = clause.fields(where=self.pick(WHERE), here=self.pick(HERE), later=self.pick(LATER))
        if clause.T.letter and not clause.T.content:
            fields["box"] = self.pick(CONTAINERS[clause.T.letter])
        if each:
            fields |= {"T": str(each.T), "m": each.digits}
        fields |= extra
        fact = Fact(kind, self.choose(FACTS[kind], fields), clause, fields, tense or clause.tense)
        self.facts.insert(len(self.facts) if place is None else place, fact)

    def choose(self, wordings, fields):
        """One of the wordings for which all fields are there; that at place 1 is held out for test files."""
        if self.wordings != "all":
            wordings = wordings[1:2] if self.wordings == "test" else wordings[:1] + wordings[2:]
        plain = wordings[:1] if self.rng.random() < PLAIN else []
        for wording in plain + self.rng.sample(wordings, len(wordings)):
            if available(wording, fields):
                return wording
        raise DeadEnd

    def give(self, clause, low=2, high=None):
        """Tell a clause with its value, unless it is known."""
        if clause.told:
            return
        self.value(clause, low, high)
        clause.told = True
        if clause.asks in ("age", "weigh", "be", "there", "cost"):
            kind = clause.asks
        elif clause.V == "have" and clause.kind != "cost":
            kind = "money" if clause.T.money else "have"
        else:
            kind = "spend" if clause.kind == "cost" else "act"
        self.tell(kind, clause)

    def either(self, *tells, first=0.65):
        """Tell two things, the first one first with probability `first`; from level 2 on with the other's."""
        for tell in tells if self.rng.random() < (first if self.level == 1 else 1 - first) else tells[::-1]:
            tell()

    def others_like(self, clause, way, known=()):
        """Clauses of the story that differ from this one in the time (place, thing) alone; not `known`."""
        same = [one for one in self.clauses() if one not in (clause, *known) and one.about == clause.about]
        if way == "tail":
            return [one for one in same if one.tail != clause.tail and str(one.T) == str(clause.T)]
        return [one for one in same if one.T.one == clause.T.one
                and one.T.adjective not in ("", clause.T.adjective)]

    def step(self, clause, op, *operands):
        """The next step, which finds `clause`. Raises DeadEnd where that is no number for a child."""
        step = Step(clause, op, operands)
        value = reduce(COMPUTE[op], map(Fraction, step.values()))
        require(1 <= value <= 1_000_000 and (value.denominator == 1 or clause.T.money))
        clause.value = int(value) if value.denominator == 1 else value
        require(clause.ask() not in [one.clause.ask() for one in self.steps])
        clause.told = True
        self.steps.append(step)
        return clause


# ---- the template teacher: how a story begins --------------------------------------------------------------

def like(clause, **changes):
    """A copy of a clause that has no value yet."""
    new = {"value": None, "told": False, "more": dict(clause.more), "alternatives": {}} | changes
    return replace(clause, **new)


def it(name):
    """An entity that pronouns do not stand for: each friend."""
    return Entity(name, "it", "-")


def all_of(thing):
    """The friends."""
    return Entity(f"the {thing}", "they", "-")


def vary(clause, what, ways):
    """Give a clause the first one of `ways` ("on Monday", "on Tuesday"); the others are its alternatives."""
    first, *others = ways
    setattr(clause, what, first)
    clause.alternatives[what] = others


def with_adjectives(story, thing):
    """A thing with two or more adjectives: red apples, green apples."""
    fit = FITTING.get(thing.letter, FITTING["other"])
    group = story.pick([group for group in ADJECTIVES if all(one in fit for one in group)])
    return [replace(thing, adjective=adjective) for adjective in story.rng.sample(group, len(group))]


def two_of(story, wholes):
    """Two things that are kinds of a third one, which `joint` knows: boys, girls."""
    return story.rng.sample(story.pick(wholes)[:2], 2)


def hide(story, total, number, each, weights):
    """Of three clauses, total = number * each, draw the one that a story of one step asks for (of more: the
    total). It loses its value, the others are told.
    """
    unknown = story.rng.choices((total, number, each), weights)[0] if story.left == 1 else total
    total.with_value(number.value * each.value)
    unknown.value, unknown.told = None, False
    return unknown


def find(story, unknown, total, number, each):
    """The step that finds the one which `hide` has drawn."""
    if unknown is total:
        return story.step(total, "*", number, each)
    return story.step(unknown, "/", total, each if unknown is number else number)


def price_of(story, thing, value=None, name="one"):
    """What one pen (or the pen) costs."""
    first = "-" if name == "one" else article(thing.of(1))
    entity = Entity(f"{name} {thing.of(1)}", "it", first)
    return story.act(entity, "cost", DOLLARS, value, "cost", how="how much")


def tell_price(story, thing, price):
    """One pen costs $3."""
    story.tell("costs", price, P=price.counted, one=thing.of(1), T=capital(str(thing)), many="many",
               **{"a one": article(thing.of(1))})


ADDED = {"comes": "be added", "goes": "be taken away"}  # how things come to a place, and go


# An opening returns the clause that the story goes on from: to be given yet, or found by one of its steps.

def open_own(story):
    """Tom has 5 apples."""
    thing = story.thing("fgtscha")
    clause = story.act(story.holder(), "have", thing, asks="have", kind="own")
    draw = story.rng.random()
    if story.left > 1 and thing.letter != "a" and story.chance(0.15):
        clause.T = replace(story.container(thing, BOXES), letter="h", content=thing)
        story.words.used.add(clause.T.one)
    if draw < 0.25 and not clause.T.content:
        vary(clause, "T", with_adjectives(story, thing))
    elif draw < 0.33 and not clause.T.content:
        vary(clause, "T", two_of(story, WHOLES[3:]))
    elif draw < 0.5:
        clause.V, clause.asks = story.verb(1, clause.T, clause.S), "act"
        story.tense = clause.tense = "past"
        if draw < 0.42:
            vary(clause, "tail", story.pick(TIMES))
    return clause


def open_act(story):
    """Tom reads 5 pages on Monday."""
    clause = story.act(story.person(), *story.pick(ACTS), kind="act")
    if story.chance(0.7):
        vary(clause, "tail", story.pick(TIMES))
        story.tense = clause.tense = "past"
    return clause


def open_there(story):
    """There are 5 birds in the tree."""
    thing, where, comes, goes = story.pick(SCENES)
    clause = story.there(thing, tail=where, kind="there", comes=comes, goes=goes)
    if story.chance(0.4):
        clause.T, clause.more = story.thing("fgtscha"), dict(ADDED)
        vary(clause, "tail", story.pick(SPOTS))
        if story.chance(0.4):
            clause.T, *clause.alternatives["T"] = with_adjectives(story, clause.T)
    elif story.chance(0.25):
        vary(clause, "T", two_of(story, WHOLES[:3]))
        clause.tail, clause.more = story.pick(CROWDS), {"comes": "come", "goes": "leave"}
    return clause


def open_money(story):
    """Tom has $5."""
    return story.act(story.person(), "have", DOLLARS, asks="have", kind="money")


def open_price(story):
    """A book costs $12."""
    return replace(price_of(story, story.thing(), name="the"), kind="price")


def open_be(story):
    """Tom is 5 years old; the rope is 5 meters long."""
    story.size = min(story.size, 300)
    what, unit, adjective, *less = story.pick(MEASURES)
    if what == "person" or adjective == "old":
        who = [story.person() for _ in range(3)]
        if what != "person":
            who = [it(f"{one.name}'s {what}") for one in who]
        elif story.chance(0.4):
            who[1] = story.other(who[0])
    else:
        who = [Entity(f"the {word} {what}") for word in (*story.pick(WHICH), "other")]
    more, usual, side = DEGREES[adjective]
    asks = {"old": "age", "heavy": "weigh"}.get(adjective, "be")
    return Clause("act" if asks == "weigh" else asks, who[0], "weigh", Thing(unit), asks=asks, kind="be",
                  more={"adj": adjective, "more": more, "less": less[0] if less else usual,
                        "units": plural(unit), "side": side, "others": who[1:]})


def open_groups(story):
    """There are 3 boxes with 4 apples in each: the total, the number or the size is asked for."""
    holder, at = None, "in"
    if story.chance(0.35):
        item, group, at = story.pick(GROUPS)
        thing, group = Thing(item), Thing(group)
    else:
        thing, holder = story.thing(), story.holder() if story.chance(0.75) else None
        group = story.container(thing)
    total = story.there(thing, asks="total there", kind="there", **ADDED)
    number = story.there(group, story.few(2, 20))
    if holder:
        total = story.total(holder, "have", thing, "own")
        number = story.act(holder, "have", group, story.few(2, 20), "have")
    each = story.in_each(thing, group, story.draw(2, 16_000), at)
    fields = {"group": group.one, "at": at, "each": each}
    unknown = hide(story, total, number, each, (5, 3, 3))
    if unknown is total and story.left == 1 and story.chance(0.3):  # "How many apples are there in 3 boxes?"
        story.tell("each has", each, **fields)
        total = story.there(thing, asks="in groups", tail=f"{at} {number.counted(TEACHER)}", at=at,
                            number=number.counted)
        return story.step(total, "*", each, number.value)
    if unknown is total:
        story.tell("groups" if holder else "there groups", number, **fields)
    else:
        story.either(lambda: story.tell("all" if holder else "all there", total),
                     lambda: story.tell("each has", each, **fields) if unknown is number
                     else story.tell("have" if holder else "there", number))
    return find(story, unknown, total, number, each)


def open_shared(story):
    """4 children have 20 crayons each. How many do they have in all?"""
    who, thing = Thing(story.pick(SHARERS)), story.thing()
    number = story.there(who, story.few())
    each = story.act(it(f"each {who.one}"), "have", thing, story.draw(2, 16_000))
    story.tell("each person", number, each=each)
    return story.step(story.total(all_of(who), "have", thing, "own"), "*", number, each)


def open_prices(story):
    """Tom buys 3 pens at $2 each: what he pays, how many he gets, or the price of one is asked for."""
    person, thing = story.person(), story.thing()
    number = story.act(person, story.pick(("buy", "buy", "buy", "order", "get")), thing, story.few(2, 15))
    one = price_of(story, thing, story.price())
    total = story.spending(person, tail=f"on the {thing}")
    unknown = hide(story, total, number, one, (5, 2, 2))
    costs = lambda: tell_price(story, thing, one)
    if unknown is one:
        story.tell("paid for all", number, P=total.counted)
    elif unknown is number:
        story.either(costs, lambda: story.tell("spent in all", total, T=str(thing)))
    elif story.left == 1 and story.chance(0.3):  # "How much do 3 pens cost?"
        costs()
        total.asks, total.tail = "cost of", f"on {number.counted(TEACHER)}"
        total.more["number"] = number.counted
    elif story.chance(0.5):
        story.tell("buys at", number, P=one.counted)
    else:
        story.either(costs, lambda: story.tell("buys", number))
    return find(story, unknown, total, number, one)


def open_cost(story):
    """Tom spends $14 on a hat."""
    clause = story.spending(None)
    clause.S = story.person()
    return clause


def open_rate(story):
    """Tom reads 5 pages a day for 4 days: the total, the days, or the pages a day are asked for."""
    verb, noun, unit = story.pick(RATES)
    thing = Thing(noun)
    if story.chance(0.4):
        (verb, thing), unit = story.pick(ACTS), story.pick(("day", "day", "day", "week", "month"))
    vehicle = story.pick(("train", "plane", "bus", "car", "ship"))
    person = Entity(f"the {vehicle}") if verb == "travel" else story.person()
    rate = story.act(person, verb, thing, story.draw(2, 2000), "rate", f"each {unit}", unit=unit)
    time = story.act(person, "take", Thing(unit), story.few(2, 14), "so long", thing=str(thing))
    total = story.total(person, verb, thing, "money" if verb in ("earn", "save", "get") else "act")
    unknown = hide(story, total, time, rate, (6, 3, 3))
    each, every = f"each {unit}", f"every {unit}"
    fields = {"per": story.pick((each, every, article(unit), f"per {unit}")),
              "Per": capital(story.pick((each, every))), "unit": unit, "V": verb, "D": time.counted}
    if unknown is time:
        story.either(lambda: story.tell("per", rate, **fields), lambda: story.tell("act", total))
    elif unknown is rate:
        story.tell("in so long", total, **fields)
    elif story.left == 1 and story.chance(0.35):  # "How many pages does he read in 4 days?"
        story.tell("per", rate, **fields)
        total.asks, total.tail = "in time", f"in {time.counted(TEACHER)}"
    elif story.left > 1 and unit == "day" and story.chance(0.4):
        weeks = story.act(person, "take", Thing("week"), story.few(2, 8), "so long")
        time.value, time.told = None, False
        story.tell("per for", rate, **fields | {"D": weeks.counted})
        story.step(time, "*", weeks, 7)
    elif story.chance(0.6):
        story.tell("per for", rate, **fields)
    else:
        story.tell("per", rate, **fields)
        story.tell("for so long", time)
    return find(story, unknown, total, rate, time)


def open_parts(story):
    """How many legs do 5 dogs have?"""
    name, k, part = story.pick(HAVE_PARTS)
    thing, story.tense = Thing(name), "present"
    number = story.there(thing, tail=story.pick(("", "", "in a picture", "in a book")),
                         value=story.draw(2, 500))
    one = story.act(it(article(name)), "have", Thing(part), int(k))
    if story.chance(0.4):
        story.tell("has parts", one, **{"what one": name})
        dogs = Entity(number.counted(TEACHER), "they", "-")
        return story.step(story.act(dogs, "have", Thing(part)), "*", number.value, one)
    story.tell("parts", number, O=story.person())
    return story.step(story.total(all_of(thing), "have", Thing(part)), "*", number, one)


OPENINGS = {  # how often one begins a problem of one step, and one of several
    open_own: (46, 64), open_act: (11, 11), open_there: (12, 12), open_money: (6, 6), open_be: (7, 5),
    open_groups: (12, 7), open_prices: (8, 6), open_rate: (10, 7), open_price: (2, 2), open_cost: (6, 6),
    open_shared: (2, 2), open_parts: (2, 1)}


# ---- the template teacher: how a story goes on -------------------------------------------------------------
# A link makes a step (or two) from a clause, given or found, and returns the clause that it finds.

LINKS = []  # (function, kinds of clause that it takes, weight as a story's first link, as a later one)


def link(kinds, weight, later=None):
    """Register a link for clauses of some kinds."""
    def register(function):
        LINKS.append((function, kinds.split(), weight, weight if later is None else later))
        return function
    return register


# -- something changes

SIGNS = {1: "+", -1: "-"}
VAGUE = {"gain": "some gained", "given": "some given", "lose": "some lost", "gives": "some gave",
         "come": "some came", "go": "some left"}


def happen(story, clause, sign, value, of_them=True, vague=False, alone=False):
    """Draw and tell an event: something is added to what a clause counts (sign 1) or taken from it (-1).
    Returns the event's clause. of_them: whether the story has said of what "3 of them" are; vague: "some of
    them"; alone: without another person.
    """
    S, thing, gain, extra = clause.S, clause.T, sign > 0, {}
    if clause.kind == "there":
        kind = "come" if gain else "go"
        verb = clause.more["comes" if gain else "goes"]
        event = Clause("move", None, verb, thing, "", story.tense, "move", value)
    elif clause.kind == "money" and gain:
        kind, event = "earn", story.act(S, "get", DOLLARS, value)
        extra = {"job": story.pick(JOBS), "O": story.other(S)}
    elif clause.kind == "money":
        kind, event = "spend", story.spending(S, value)
    elif story.chance(0.35):
        other = story.other(S)
        kind, extra = "given" if gain else "gives", {"S": S, "O": other}
        giver, taker = (other, S) if gain else (S, other)
        event = story.act(giver, "give", thing, value, tail=f"to {taker.name}")
    else:
        kind, event = "gain" if gain else "lose", story.act(S, story.verb(sign, thing, S), thing, value)
    told = story.clauses()
    repeated = any(one.about == event.about for one in told)
    mixed = thing.adjective or any(one.S is S and str(one.T) != str(thing) and (one.T.letter or not S)
                                   for one in told)
    places = clause.kind == "there" and any(one.form == "there" and one.tail != clause.tail for one in told)
    require(clause.kind == "money" or not repeated)  # "How many came?" Then, or before?
    require(not (places or vague and mixed or alone and kind in ("given", "gives")))  # where? of what?
    if mixed or not of_them:
        extra |= {"F": event.counted, "G": event.counted}
    story.tell(VAGUE[kind] if vague else kind, event, **extra)
    event.told = not vague
    return event


def ordered(two):
    """Two clauses, the smaller one first. Raises DeadEnd where they are equal."""
    small, big = sorted(two, key=lambda one: one.value)
    require(small.value < big.value)
    return small, big


def later(clause, sign):
    """What a clause counts, after an event."""
    if clause.kind == "there":
        return like(clause, tense="present", asks="more there" if sign > 0 else "now there")
    tail, asks = ("now", "more now") if sign > 0 else ("left", "now")
    return Clause("act", clause.S, "have", clause.T, tail, asks=asks, kind=clause.kind)


def tell_later(story, clause, value):
    """Tell what there is in the end."""
    kind = "now there" if clause.kind == "there" else "now has"
    story.tell(kind, clause.with_value(value), tense=story.now)


@link("own money there", 18)
def change(story, clause):
    """Tom has 5 apples. He buys 3 more. How many does he have now?"""
    sign = story.pick((1, -1))
    story.give(clause)
    event = happen(story, clause, sign, story.draw(1) if sign > 0 else story.less_than(clause))
    return story.step(later(clause, sign), SIGNS[sign], clause, event)


@link("own there", 6)
def change_by(story, clause):
    """Tom has 5 apples. He buys some more. Now he has 8. How many did he buy?"""
    sign = story.pick((1, -1))
    story.give(clause)
    event, after = happen(story, clause, sign, None, vague=True), later(clause, sign)
    tell_later(story, after, clause.value + story.draw(1) if sign > 0 else story.less_than(clause))
    return story.step(event, "-", *((after, clause) if sign > 0 else (clause, after)))


@link("own there money", 8)
def change_from(story, clause):
    """Tom has some apples. He buys 3 more. Now he has 8. How many did he have at first? Or two changes."""
    require(not clause.told and clause.V in ("have", "be"))
    there = "there " if clause.kind == "there" else ""
    of_them = not clause.T.money and story.chance(0.7)
    if of_them:
        story.tell("some there" if there else "some had", clause)
    events, amount = [], story.value(clause, 3)
    for _ in range(min(story.left, 2)):
        sign = story.pick((1, -1))
        event = happen(story, clause, sign, story.draw(1, amount - 1 if sign < 0 else None), of_them)
        amount += sign * event.value
        events.append((event, sign))
    before, clause.value = later(clause, sign), None
    tell_later(story, before, amount)
    while events:
        event, sign = events.pop()
        tail = clause.tail if there else "" if events else "at first"
        asks, said = "before" if events else "at first", event.say("{S} [{V}] " if event.S else "")
        new = like(clause, tail=tail, tense="past", kind="last", asks=there + asks, more={"event": said})
        before = story.step(new, SIGNS[-sign], before, event)
    return before


@link("own there", 5)
def compare_events(story, clause):
    """Tom eats 3 of the apples and gives 2 away. How many more did he eat than he gave away? The end."""
    there, told, left = clause.kind == "there", clause.told or story.chance(0.7), None
    if told:
        story.give(clause, 6)
        left = clause.value
    events = []
    for sign in story.pick(((-1, 1), (1, -1)) if there else ((-1, -1), (-1, 1), (1, 1), (1, -1))):
        value = story.draw(1, left - 1 if sign < 0 and left else None)
        events.append(happen(story, clause, sign, value, told, alone=True))
        left = left and left + sign * value
    small, big = ordered(events)
    form = "move diff" if there else "event diff"
    new = like(big, form=form, asks=form, more={"other": conjugate(small.V, small.tense, there)})
    return story.step(new, "-", big, small)


@link("own", 4)
def lose_part(story, clause):
    """Tom gives half of the apples away. How many are left? A third of them: two steps."""
    k = story.divisor(clause, (2, 2, 3, 4, 5) if story.left > 1 else (2,))
    story.give(clause)
    gone, nth = story.act(clause.S, story.verb(-1, clause.T, clause.S), clause.T), NTH.get(k, "")
    story.tell("loses part" if nth else "loses half", gone, nth=nth)
    if not nth:
        return story.step(later(clause, -1), "/", clause, k)
    story.step(gone, "/", clause, k)
    return story.step(later(clause, -1), "-", clause, gone)


def change_by_groups(story, clause, sign, kind, number, each, **fields):
    """Two steps: so many groups of so many are added (taken), and what there is then."""
    if clause.value is None and sign < 0:
        clause.value = number.value * each.value + story.draw(1)
    story.give(clause)
    story.tell(kind, number, each=each, **fields)
    moved = story.act(clause.S, fields.get("do", number.V), clause.T, tail="in all")
    story.step(moved, "*", number, each)
    return story.step(later(clause, sign), SIGNS[sign], clause, moved)


@link("own", 4)
def buy_groups(story, clause):
    """Tom buys 3 bags of 4 apples each: two steps."""
    sign = story.pick((1, 1, -1))
    among = "buy, get, order, find, receive, make" if sign > 0 else "sell, give away, use, donate, lose"
    group = story.container(clause.T)
    number = story.act(clause.S, story.verb(sign, clause.T, among=among), group, story.few(2, 9))
    each = story.in_each(clause.T, group, story.draw(2, 50))
    return change_by_groups(story, clause, sign, "buys groups", number, each, group=group.one)


@link("own", 3)
def give_each(story, clause):
    """Tom gives 4 apples to each of 3 friends; or each of them gives him 4: two steps."""
    sign, who = story.pick((1, -1, -1)), Thing(story.pick(SHARERS))
    kind, verb, do = ("gets from each", "give", "get") if sign > 0 else ("gives each", "get", "give away")
    friends = story.there(who, story.few(2, 9))
    each = story.act(it(f"each {who.one}"), verb, clause.T, story.draw(2, 50))
    return change_by_groups(story, clause, sign, kind, friends, each, S=clause.S, do=do)


@link("own act money", 4)
def want(story, clause):
    """Tom wants to have 20 apples. How many more does he need?"""
    require(clause.V == "have" or clause.tail in ("", "in all"))
    story.give(clause)
    value, verb = clause.value + story.draw(1), "need" if clause.V == "have" else f"have to {clause.V}"
    goal = like(clause, tail="", tense=story.now, V=f"want to {clause.V}").with_value(value)
    story.tell("wants", goal, bare=clause.V)
    return story.step(like(goal, V=verb, asks="need more", form="needs", kind="last"), "-", goal, clause)


# -- two are compared, or put together

PASSING = "now", "left", "at first", "in all", "together"  # tails that say nothing of others


def sibling(story, clause):
    """A clause that can be compared with `clause`: of another person, time, place or thing; and in what they
    differ.
    """
    if clause.more.get("others"):
        first, *others = clause.more["others"]
        return like(clause, S=first, more=clause.more | {"others": others}), "person"
    person = clause.S and clause.S.sex in ("he", "she") or clause.kind == "price"
    ways = ["person"] * 3 if person else []
    ways += [way for way in ("tail", "T") if clause.alternatives.get(way)] * 4
    plain = clause.T.letter and not clause.T.adjective and not clause.alternatives
    if clause.kind in ("own", "there") and plain:
        ways += ["T"] * 2
    require(ways)
    way, new = story.pick(ways), like(clause)
    if clause.tail in PASSING:
        new.tail, new.tense = "", story.now if clause.tense == "present" else story.tense
        new.asks = "have" if clause.V == "have" else "there" if clause.form == "there" else "act"
    if way == "person" and clause.kind == "price":
        new.S = price_of(story, story.thing(), name="the").S
    elif way == "person":
        new.S = story.other(clause.S)
    elif clause.alternatives.get(way):
        vary(new, way, clause.alternatives[way])
    else:
        new.T = story.thing(clause.T.letter)
    return new, way


def against(clause, other, way):
    """The fields that compare a clause with another one: {ref} is "Tom", "on Monday", "red apples"."""
    fields = {"ref": {"person": other.S, "tail": other.tail, "T": str(other.T)}[way],
              "tail": "" if clause.tail in PASSING else clause.tail}
    if way == "person":
        do = conjugate(clause.V if clause.V == "have" else "do", clause.tense, other.S.sex == "they")
        fields |= {"O": other.S, "do": "" if clause.kind == "price" else do}
    return fields


RELATIONS = {  # of a clause to another one: how it is computed, with which numbers, how often
    "more": ("+", None, 8), "fewer": ("-", None, 5), "times": ("*", (3, 4, 5, 6, 7, 8, 10), 3),
    "twice": ("*", (2,), 3), "half": ("/", (2,), 2), "fraction": ("/", tuple(NTH), 1)}


@link("own act there money price be", 9)
def compare(story, clause):
    """Ann has 3 more apples than Tom; or backwards: Tom has 3 more than Ann, and Ann's are asked for."""
    new, way = sibling(story, clause)
    kind = story.rng.choices(list(RELATIONS), [weight for *_, weight in RELATIONS.values()])[0]
    op, ratios, _ = RELATIONS[kind]
    backwards = story.chance(story.backwards)
    op = INVERSE[op] if backwards else op
    if op == "/":
        k = story.divisor(clause, ratios)
    elif op == "*":
        k = story.pick(ratios)
        story.value(clause, high=1_000_000 // k)
    else:
        k = story.less_than(clause) if op == "-" else story.draw(2)
    told, other = (clause, new) if backwards else (new, clause)
    by = like(told).with_value(k)
    fields = against(told, other, way) | {"x": by.digits, "nth": NTH.get(k, "")}
    start = {"there": "there ", "be": "is "}.get(clause.kind, "")
    story.either(lambda: story.give(clause), lambda: story.tell(start + kind, by, **fields))
    if not ratios:
        story.differ.append({clause, new})
    story.step(new, op, clause, k)
    story.last_pair = clause, new, way
    return new


def pair(story, clause):
    """`clause` and another one, both known: the one that it was compared with, or one that is given."""
    if story.last_pair and story.last_pair[1] is clause and story.chance(0.6):
        return story.last_pair
    new, way = sibling(story, clause)
    story.give(clause)
    if story.left > 1 and new.V == "have" and new.T.letter and story.chance(0.2):
        group = story.container(new.T)  # "Ann has 3 bags of 4": a step
        number = like(new, T=group).with_value(story.few())
        each = story.in_each(new.T, group, story.draw(2, 16_000))
        story.tell("groups", number, each=each, group=group.one, at="in")
        story.step(new, "*", number, each)
    story.give(new)
    return clause, new, way


@link("own act there money price be", 11)
def difference(story, clause):
    """How many more apples does Tom have than Ann? The last question of a story."""
    *two, way = pair(story, clause)
    small, big = ordered(two)
    require(set(two) not in story.differ)
    form, told, other = {"there": "there diff", "be": "be diff"}.get(big.kind, "diff"), big, small
    if big.form == "act" and big.kind != "be" and story.chance(0.2):
        form, told, other = "fewer" if form == "diff" else form, small, big
    fields = against(told, other, way)
    new = like(told, form=form, asks=form, kind="last", tail=fields["tail"], more=told.more | fields)
    return story.step(new, "-", big, small)


def joint(clauses, way):
    """What several clauses count together."""
    first = clauses[0]
    new = like(first, tail="in all", asks=first.asks if first.kind == "be" else "total")
    if first.form == "there":
        new.tail, new.asks = first.tail if way == "T" else "", "total there"
    if way == "person":
        new.S, new.tail = Entity(join([one.S.name for one in clauses]), "they", "they"), "together"
        new.kind = "last" if first.kind in ("price", "be") else first.kind
    elif way == "T":
        names = [str(one.T) for one in clauses]
        wholes = [whole for *kinds, whole in WHOLES if sorted(map(str, kinds)) == sorted(names)]
        new.T = (replace(first.T, adjective="") if all(one.T.adjective for one in clauses)
                 else wholes[0] if wholes else Thing("thing", join(names)))
        new.kind = first.kind if new.T.letter else "last"
    return new


@link("own act there money price be", 11)
def together(story, clause):
    """How many apples do Tom and Ann have together? How many pages does Tom read on both days?"""
    *parts, way = pair(story, clause)
    other = parts[1]
    if way != "person" and other.alternatives.get(way) and story.chance(0.35):
        parts.append(like(other, **{way: other.alternatives[way][0]}))
    elif way == "person" and clause.kind not in ("price", "be") and story.chance(0.15):
        parts.append(like(other, S=story.other(clause.S)))
    story.give(parts[-1])
    ways = {"tail", way} - {"person"}
    require(not any(story.others_like(one, what, parts) for one in parts for what in ways))
    require(not story.whole or set(parts[:2]) != story.whole)
    return story.step(joint(parts, way), "+", *parts)


@link("own act there", 9)
def part(story, clause):
    """Tom has 9 apples in all. 5 of them are green. How many are red? The clause is one of the parts."""
    require(not clause.told and clause.alternatives)
    other, way = sibling(story, clause)
    require(way != "person" or not clause.tail)
    whole = joint([clause, other], way)
    story.value(whole, 4)
    clause.value, whole.told = story.less_than(whole), True
    story.either(lambda: story.tell("all there" if whole.form == "there" else "all", whole),
                 lambda: story.give(clause), first=0.75)
    story.whole, other.alternatives = {clause, other}, {}
    return story.step(other, "-", whole, clause)


def unmixed(story, clause):
    """Two parts of what a clause counts: red ones, green ones. DeadEnd where a reader would ask: of which?"""
    mixed = clause.S and clause.S.sex == "they" or story.whole or story.others_like(clause, "tail")
    mixed = mixed or story.others_like(clause, "T") or any(one.kind == "own" and one.S is not clause.S
                                                           for one in story.clauses())
    require(clause.T.letter and not clause.T.adjective and not clause.T.content and not mixed)
    return [story.there(thing) for thing in with_adjectives(story, clause.T)[:2]]


def tell_part(story, kind, some, clause, **fields):
    """Of the apples, some are red."""
    story.tell(kind, some, adj=some.T.adjective, T=str(clause.T), **fields)


@link("own there", 3)
def rest(story, clause):
    """5 of the apples are red, the rest are green. How many are green?"""
    some, others = unmixed(story, clause)
    story.give(clause)
    tell_part(story, "some are", some.with_value(story.less_than(clause)), clause)
    tell_part(story, "the rest", others, clause)
    return story.step(others, "-", clause, some)


@link("own there", 3)
def part_of(story, clause):
    """A third of the apples are red. How many are red? The rest are green. How many are green?"""
    some, others = unmixed(story, clause)
    k = story.divisor(clause, (2, 3, 4, 5))
    story.give(clause)
    share = "half" if k == 2 else f"a {NTH[k]}"
    tell_part(story, "share is", some, clause, share=share)
    story.step(some, "/", clause, k)
    if not story.left:
        return some
    tell_part(story, "the rest", others, clause)
    return story.step(others, "-", clause, some)


# -- equal groups, and money

def combine(story, clause, kind, other, new, op="/", **fields):
    """Tell `other`, which says something of all that a clause counts, and the step that finds `new`."""
    story.give(clause)
    story.tell(kind, other, S=clause.S, them=f"the {clause.T}", **fields)
    return story.step(new, op, clause, other)


@link("own", 6, 22)
def share(story, clause):
    """Tom shares the apples equally among 3 friends. How many does each of them get?"""
    who = Thing(story.pick(SHARERS))
    friends = story.there(who, story.divisor(clause, range(2, 21)))
    each = story.act(it(f"each {who.one}"), "get", clause.T, asks="each gets")
    return combine(story, clause, "shares", friends, each)


@link("own", 8, 24)
def pack(story, clause):
    """Tom packs the apples in bags of 4: how many bags? Or into 3 bags: how many are in each?"""
    k, group = story.divisor(clause, range(2, 26)), story.container(clause.T)
    story.give(clause)
    number, each = story.act(clause.S, "fill", group, asks="boxes"), story.in_each(clause.T, group)
    by_size = story.chance(0.55)
    known, new, kind = (each, number, "packs of") if by_size else (number, each, "packs into")
    fields = {"groups": group.many, "group": group.one, "m": known.digits}
    return combine(story, clause, kind, known.with_value(k), new, **fields)


@link("own", 0, 60)
def contents(story, clause):
    """Tom has 5 boxes left. Each box holds 4 apples. How many apples does he have?"""
    require(clause.T.content)
    story.give(clause, high=300)
    each = story.in_each(clause.T.content, clause.T, story.draw(2, 200))
    story.tell("each has", each, each=each, group=clause.T.one, at="in")
    return story.step(story.total(clause.S, "have", clause.T.content, "own"), "*", clause, each)


@link("own", 3)
def use_daily(story, clause):
    """Tom uses 3 of the apples every day. How many days do they last?"""
    unit = Thing(story.pick(("day", "day", "day", "week", "hour", "month")))
    daily = story.act(clause.S, "use", clause.T, story.divisor(clause, range(2, 13)), tail=f"each {unit.one}")
    days = story.act(all_of(clause.T), "last", unit, asks="lasts")
    return combine(story, clause, "uses daily", daily, days, unit=unit.one)


@link("own", 5, 22)
def sell(story, clause):
    """Tom sells the apples for $2 each. How much money does he get?"""
    story.give(clause, high=50_000)
    one, money = price_of(story, clause.T, story.price(12)), story.act(clause.S, "get", DOLLARS, kind="money")
    return combine(story, clause, "sells at", one, money, "*", one=clause.T.of(1))


@link("cost", 10)
def bill(story, clause):
    """Tom pays with a $20 bill. How much change does he get?"""
    story.give(clause, high=90)
    bills = [value for value in (5, 10, 20, 50, 100, 500, 1000) if value > clause.value]
    require(bills)
    value = story.pick(bills[:2])
    paid = story.act(clause.S, "pay", DOLLARS, value)
    story.tell("pays with", paid, bill=lambda speaker: f"a ${value} bill" if speaker.signs
               else f"a {value}-dollar bill")
    back = story.act(clause.S, "get", DOLLARS, asks="change", tail="back", how="how much change")
    return story.step(back, "-", paid, clause)


@link("cost", 9)
def more_costs(story, clause):
    """Tom also buys a hat for $14, or 3 pens at $2 each (a step). What does he spend in all?"""
    clause.value = clause.value or story.price()
    story.give(clause)
    thing, parts = story.thing(), [clause]
    if story.left > 1 and story.chance(0.5):
        number = story.act(clause.S, "buy", thing, story.few(2, 15))
        one = price_of(story, thing, story.price())
        story.tell("buys at", number, P=one.counted)
        cost = story.spending(clause.S, tail=f"on the {thing}")
        parts.append(story.step(cost, "*", number, one))
    else:
        for _ in range(story.pick((1, 1, 2))):
            parts.append(story.spending(clause.S))
            parts[-1].value = story.price()
            story.give(parts[-1])
    return story.step(story.spending(clause.S, tail="in all"), "+", *parts)


@link("cost", 8)
def money_left(story, clause):
    """Tom had $50. How much is left?"""
    clause.value = clause.value or story.price()
    story.give(clause)
    had = story.act(clause.S, "have", DOLLARS, clause.value + story.draw(1), "have", "at first")
    story.tell("money", had, place=0 if story.chance(0.6) else None,
               tail="" if story.chance(0.7) else "at first")
    return story.step(replace(later(clause, -1), kind="money"), "-", had, clause)


@link("money", 5)
def afford(story, clause):
    """One pen costs $3. How many can Tom buy?"""
    thing = story.thing()
    one = replace(price_of(story, thing, story.divisor(clause, range(2, 26))), tense="present")
    story.either(lambda: story.give(clause), lambda: tell_price(story, thing, one))
    return story.step(Clause("act", clause.S, "buy", thing, tense="can", asks="can buy"), "/", clause, one)


# -- ages, lengths, weights

@link("be", 3)
def in_years(story, clause):
    """How old will Tom be in 5 years? The last question of a story."""
    require(clause.asks == "age")
    value, ago = story.value(clause, 3, 60), story.chance(0.35)
    story.give(clause)
    k = story.draw(1, value - 1 if ago else 20)
    years = TEACHER.count(k, clause.T, "N")
    tail, tense, op = (f"{years} ago", "past", "-") if ago else (f"in {years}", "will", "+")
    return story.step(like(clause, tail=tail, tense=tense, kind="last"), op, clause, k)


@link("be", 16)
def cut(story, clause):
    """A rope is cut into pieces; a piece is cut off it; a plant grows. The last question of a story."""
    what = clause.S.name.split(" ")[-1]
    grows = what in ("tree", "plant", "snake") or clause.more["adj"] == "tall" and clause.S in story.people
    require(grows or what in ("rope", "ribbon", "board", "stick"))
    if not grows and story.chance(0.5):
        piece = like(clause, S=it("each piece")).with_value(story.divisor(clause, range(2, 13)))
        story.give(clause)
        story.tell("cuts", piece, S=clause.S, O=story.person(), tense=story.tense)
        return story.step(story.there(Thing("piece")), "/", clause, piece)
    story.give(clause, 4, 300)
    by = story.act(clause.S, "grow", clause.T, story.draw(1, 60) if grows else story.less_than(clause))
    if grows:
        story.tell("grows", by)
    else:
        story.tell("cut off", by, O=story.person())
    return story.step(like(clause, tail="now", kind="last"), "+" if grows else "-", clause, by)


# ---- the template teacher: from a story to a problem -------------------------------------------------------

TOTALS = "total", "total there"
UNNEEDED = 80, 16, 4   # of problems with so many quantities that nobody needs: 0, 1, 2
SETTINGS = 82, 15, 3   # of problems with so many sentences without a number: 0, 1, 2
TIMELESS = {  # facts that can be told in any order: nothing happens in them
    "have", "act", "money", "be", "age", "weigh", "cost", "there", "all", "all there", "groups",
    "unneeded age", *(start + kind for kind in RELATIONS for start in ("", "there ", "is "))}
STATES = TIMELESS | {"wants", "now has"}
STARTS = "Then ", "Later ", "After that ", "Soon ", "Suddenly "
STEP_SHARES = 48, 35, 11, 4, 2, 2, 1, 1  # of problems with one step, two, ... (that --steps allows)


def tell_unneeded(story):
    """Tell a quantity that nobody needs: of another person, day or thing, or by the way. Raises DeadEnd where
    it would be needed.
    """
    rng, draw, kinds = story.rng, story.rng.random(), {fact.kind for fact in story.facts}
    require(not kinds & {"some are", "share is"})  # some of which?
    places = [k for k, fact in enumerate(story.facts) if fact.kind in TIMELESS] + [len(story.facts)]
    told = [fact for fact in story.facts
            if fact.kind in ("have", "act", "there", "money") and fact.clause.kind != "last"]
    if told and draw < 0.6:
        fact = rng.choice(told)
        tell_sibling(story, fact.clause, kinds)
        return story.facts.insert(story.facts.index(fact) + rng.choice((0, 1, 1)), story.facts.pop())
    last = story.steps[-1].clause
    people = [one for one in story.people if any(fact.fields.get("S") is one for fact in story.facts)]
    past = last.form in ("act", "diff", "fewer") and last.V != "have" and last.tense == "past"
    if past and last.T.letter and last.S in people and "now has" not in kinds:
        return happen(story, like(last, kind="own"), -1, rng.randint(1, min(last.value, 20)), of_them=False)
    holders = [fact for fact in told
               if fact.kind == "have" and fact.clause.S in people and fact.clause.T.letter]
    if holders and draw < 0.85 and not kinds & set(VAGUE.values()):
        name_things(story)
        fact = rng.choice(holders)
        other = like(fact.clause, T=story.thing(fact.clause.T.letter))
        happen(story, other, rng.choice((1, -1)), story.draw(), of_them=False)
        place = rng.randint(story.facts.index(fact) + 1, len(story.facts) - 1)
        return story.facts.insert(place, story.facts.pop())
    if people and draw < 0.93:
        years = Clause("act", rng.choice(people), "be", Thing("year"), asks="age", value=rng.randint(4, 90))
        require(years.ask() not in [one.ask() for one in story.clauses()])
        return story.tell("unneeded age", years, place=rng.choice(places))
    require(not kinds & {"per", "per for", "in so long", "unneeded time"})  # which time?
    minutes = story.there(Thing("minute"), rng.randint(2, 60))
    story.tell("unneeded time", minutes, place=rng.choice([k for k in places if k]))


def name_things(story):
    """Where other things are told too, an event is one of "3 apples", not of "3 of them"."""
    for fact in story.facts:
        fact.fields.update(F=fact.clause.counted, G=fact.clause.counted)


def tell_sibling(story, clause, kinds):
    """Tell what can be compared with a clause, unless the story's last question would then be another one."""
    new, way = sibling(story, clause)
    totals = any(step.clause.asks in TOTALS for step in story.steps)
    timeless = any(step.clause.tail not in sum(TIMES + SPOTS, []) for step in story.steps)
    events = new.form == "there" and kinds & {"come", "go", "some came", "some left"}
    require(not (events and way != "person" or totals and way == "T" or timeless and way == "tail"))
    if way == "T":
        require(not kinds & set(VAGUE.values()))
        name_things(story)
    require(new.ask() not in [one.ask() for one in story.clauses()])
    story.give(new)


def tell_setting(story):
    """A sentence without a number, at the beginning or before the question. DeadEnd where it stands there."""
    clause, place = story.facts[0].clause, 0 if story.chance(0.75) else len(story.facts)
    noun = str(clause.T) if place == 0 and clause.T.letter and not clause.T.adjective else ""
    story.tell("setting", like(clause, V=story.pick(DOINGS)), place=place, crowd=story.pick(CROWDS_AT_WORK),
               S=clause.S if clause.S in story.people else None, T=noun, many="many",
               **{"while": story.pick(WHILES)})
    said = [fill(fact.wording, fact.fields, fact.tense, TEACHER) for fact in story.facts
            if fact.kind == "setting"]
    require(len(said) == len(set(said)))


def draw_story(rng, level, n_steps, words, wordings="all"):
    """Draw a Story of `n_steps` steps. words: () -> Words; wordings: "all", "train" or "test"."""
    while True:
        story = Story(rng, words(), n_steps, level, wordings)
        try:
            weights = [weights[n_steps > 1] for weights in OPENINGS.values()]
            clause = rng.choices(list(OPENINGS), weights)[0](story)
            while story.left > 0:
                clause = go_on(story, clause)
            require(story.left == 0)
            for _ in range(rng.choices((0, 1, 2), UNNEEDED)[0]):
                attempt(story, clause, tell_unneeded)
            totals = any(step.clause.asks in TOTALS for step in story.steps[:-1])
            if level > 1 and not totals and {fact.kind for fact in story.facts} <= TIMELESS:
                rng.shuffle(story.facts)
            for _ in range(rng.choices((0, 1, 2), SETTINGS)[0]):
                attempt(story, clause, tell_setting)
            return story
        except DeadEnd:
            pass


def go_on(story, clause):
    """Draw a link from a clause: another one where it does not fit, for a few times. Raises DeadEnd."""
    some = clause.kind == "own" and story.others_like(clause, "tail")  # only some of what somebody has got
    kind, place = "act" if some else clause.kind, 3 if story.steps else 2
    fit = [(entry[0], entry[place]) for entry in LINKS if kind in entry[1] and entry[place]]
    require(fit)
    for _ in range(8):
        one = story.rng.choices(*zip(*fit))[0]
        new = attempt(story, clause, lambda story: one(story, clause),
                      lambda new: story.left == 0 or story.left > 0 and new.kind != "last")
        if new:
            return new
    raise DeadEnd


def attempt(story, clause, tell, good=lambda new: True):
    """tell(story), or, where that is a dead end or not good, nothing: then the story is as it was."""
    before = {name: list(one) if isinstance(one, list) else one for name, one in vars(story).items()}
    value, told = clause.value, clause.told
    try:
        new = tell(story)
        require(good(new))
        return new
    except DeadEnd:
        vars(story).update(before)
        clause.value, clause.told = value, told


def write_question(story, narrator, tense=None):
    """The problem's last sentence, which asks for what the last step finds."""
    clause, fields = story.steps[-1].clause, story.steps[-1].clause.fields()
    one_thing = len({str(one.T) for one in story.clauses()}) == 1 and not clause.T.money
    if one_thing and clause.form in ("act", "move") and story.chance(0.25):
        fields["how"] = "how many"  # of what is clear
    wordings = QUESTIONS[clause.asks or clause.form]
    if clause.S and any(one.S not in (None, clause.S) and one.T.one == clause.T.one
                        for one in story.clauses()):
        wordings = wordings[:2] + [one for one in wordings[2:] if "{S" in one]  # whose?
    try:
        wording = story.choose(wordings, fields)
    except DeadEnd:  # no held-out one fits
        wording = wordings[0]
    now = clause.tail in ("now", "left") or clause.asks in ("now there", "more there")
    tense = tense or story.now if now else clause.tense
    if tense == "past" and re.search(r"\bnow\b", wording):
        tense = "present"
    return capital(fill(wording, fields, tense, narrator))


def decapital(text, story):
    """A sentence as the rest of a longer one: "He eats" -> "he eats", but "Tom eats"."""
    names = {one.name.split("'")[0].split(" ")[0] for one in story.people}
    word = re.match(r"\w*", text)[0]
    return text if word in names else lower(text)


def name_those_together(story):
    """Where a story has a third one, "Tom and Ann" are "they" only as what the sentence before is about."""
    subjects = {step.clause.S for step in story.steps}
    for together in [one for one in subjects if one and one.first == "they"]:
        names = {one.S.name for one in story.clauses() if one.S and one.S is not together}
        if names - set(re.split(", | and ", together.name)):
            together.first = ""


def write_text(story):
    """The text of a problem, its facts and its question; and the question alone."""
    name_those_together(story)
    rng, narrator, sentences, previous = story.rng, Narrator(story.rng), [], None
    for k, fact in enumerate(story.facts):
        wording, subject = fact.wording, fact.fields.get("S")
        aside, before = fact.kind.startswith(("unneeded", "setting")), story.facts[k - 1]
        if k == 0:
            wording = re.sub("^(" + "|".join(STARTS) + ")", "", wording)
        elif fact.kind in ("have", "act"):
            alike = (before.clause.T, before.clause.V) == (fact.clause.T, fact.clause.V)
            if alike and not before.fields.get("ref") and rng.random() < 0.3:
                wording = "{S} [{V}] {k} {tail}."  # "Ann picked 5 apples. Tom picked 7."
        opening = re.match(r"\{S\} \[[^\]]+\] ", wording)  # "{S} [have] "
        fit = previous and opening and not aside and fact.tense == before.tense
        joined = fit and subject is narrator.subject and rng.random() < 0.35
        same = (joined and previous.startswith(opening[0]) and not wording.startswith(opening[0] + "to ")
                and ("{V}" not in opening[0] or fact.fields["V"] == before.fields["V"])
                and not before.fields.get("ref") and rng.random() < 0.8)  # no "more than Ann and 5 pears"
        if joined:
            wording = wording.removeprefix(opening[0] if same else "{S} ")
        text = fill(wording, fact.fields, fact.tense, narrator)
        narrator.end(subject)
        if aside and not subject:
            narrator.subject = None
        if joined:
            joint = " and " if same or fact.kind in STATES else rng.choice((" and ", " and then "))
            sentences[-1] = sentences[-1][:-1] + joint + text
        else:
            sentences.append(capital(text))
        previous = wording if not joined and opening and not aside and wording.count(".") == 1 else None
    last = sentences[-1]
    simple = last.count(".") == 1 and "," not in last and len(last) < 90 and not last.startswith(STARTS)
    if rng.random() < 0.3 and simple and not aside:  # "If Tom buys 3 more, how many will he have?"
        would = {"present": "will", "past": "would"}.get(fact.tense)
        question = write_question(story, narrator, would if rng.random() < 0.6 else None)
        if re.match("(How|What|With|For|By) .*\\?", question):
            sentences[-1] = f"If {decapital(last[:-1], story)},"
            return " ".join([*sentences, decapital(question, story)]), question
    else:
        question = write_question(story, narrator)
    return " ".join([*sentences, question]), question


def write_solution(step):
    """The solution of a step, its annotation and what it finds: "<<5+3=8>>8 apples".

    It is short because students learn from its tokens, and have minutes: with "Tom has 5 apples and Ann has 3
    more." before it, twice as long, they solve a third less (tests/RESULTS.md).
    """
    equation = step.op.join(TEACHER.number(value) for value in step.values())
    value = TEACHER.number(step.clause.value)
    result = re.sub(r"(\.\d)0$", r"\1", value)  # not 7.50 but 7.5, as the calculator writes it
    return f"<<{equation}={result}>>{step.clause.say()}."


def write_problem(story):
    """A story as a row of the JSONL file, without its id.

    The last sub-question is the problem's own: in words that it never saw a decomposer copies it more surely
    than it asks anew.
    """
    text, question = write_text(story)
    steps = [{"question": step.clause.ask(), "solution": write_solution(step)} for step in story.steps]
    if question not in [step["question"] for step in steps]:
        steps[-1]["question"] = question
    return {"problem": text, "steps": steps,
            "answer": TEACHER.number(story.steps[-1].clause.value), "source": "templates",
            "kinds": [fact.kind for fact in story.facts]}


def draw_split(split, args, seen, bar):
    """Draw a split's problems, none of whose texts is in `seen` (a set of str, which grows)."""
    rng = Random(f"{args.seed} {split}")  # one each: the test problems do not depend on the training ones
    counts = range(args.steps[0], args.steps[1] + 1)
    made_up = args.made_up if split == "train" else args.made_up_test
    wordings = "all" if args.wordings == "all" else "test" if split == "test" else "train"
    words = lambda: Words(rng, rng.random() < made_up, rng.random() < made_up, split == "train")
    rows = []
    while len(rows) < getattr(args, split):
        n_steps = rng.choices(counts, [STEP_SHARES[n - 1] for n in counts])[0]
        row = write_problem(draw_story(rng, args.level, n_steps, words, wordings))
        if row["problem"] not in seen:
            seen.add(row["problem"])
            rows.append({"id": f"templates-{args.level}-{args.seed}-{split}-{len(rows) + 1}", **row})
            bar.update()
    return rows


def templates(args):
    """The template teacher: write train.jsonl, valid.jsonl and test.jsonl."""
    make_folder(args.out)
    seen, files = set(), {}
    with tqdm(total=args.train + args.valid + args.test, unit=" problems", disable=None) as bar:
        for split in reversed(SPLITS):
            rows = draw_split(split, args, seen, bar)
            files[args.out / f"{split}.jsonl"] = rows
    save_files(files, args.force)
    steps = Counter(len(row["steps"]) for row in rows)
    print("train by steps: " + ", ".join(f"{n}: {steps[n]:,}" for n in sorted(steps)))
    print_next(args.out, {split: getattr(args, split) for split in SPLITS})


def steps_range(text):
    """An argument type: numbers of steps, "2-5" or "3", as (lowest, highest)."""
    match = re.fullmatch(r"([1-8])(?:-([1-8]))?", text)
    if not match or int(match[1]) > int(match[2] or match[1]):
        raise argparse.ArgumentTypeError(f"{text} is no range such as 2-5, from 1 to 8")
    return int(match[1]), int(match[2] or match[1])


def add_template_flags(p):
    """The flags of `templates`."""
    p.add_argument("--out", type=Path, default=Path("annotations"), metavar="DIR",
                   help="folder of the files (%(default)s)")
    p.add_argument("--level", type=int, choices=(1, 2, 3), default=1,
                   help="1 (default): as in books for children; 2: facts in another order; 3: also backwards")
    p.add_argument("--steps", type=steps_range, default=(1, 5), metavar="LOW-HIGH",
                   help="steps of a problem, 1 to 8 (1-5)")
    for split, n in zip(SPLITS, (50_000, 500, 1_000)):
        p.add_argument(f"--{split}", type=whole_number(1), default=n, metavar="N",
                       help=f"problems in {split}.jsonl (%(default)s)")
    p.add_argument("--made-up", type=number(0, 1), default=0.3, metavar="FRACTION",
                   help="training problems with made-up names, and with made-up nouns (%(default)s)")
    p.add_argument("--made-up-test", type=number(0, 1), default=0.0, metavar="FRACTION",
                   help="the same for valid.jsonl and test.jsonl, with words of their own (%(default)s)")
    p.add_argument("--wordings", choices=("all", "test"), default="all",
                   help="all (default): every file says a fact in all its wordings; test: one of each kind's "
                        "is held out, for test.jsonl alone")
    add_seed_and_force(p)


# ---- converters: published datasets ------------------------------------------------------------------------

class Unfit(Exception):
    """Why a row of a dataset, a teacher's reply or a student's sample cannot become an annotation."""


def text_field(row, name):
    """The text in a field of a published row. Raises Unfit."""
    if not isinstance(row.get(name), str) or not row[name].strip():
        raise Unfit(f"field '{name}' is missing, empty or no text")
    return row[name].strip()


# Between sub-question and solution in GSM8K's Socratic files: "How many? ** 4", "Simplify ** So x is 2". The
# power in "2 ** 3" is no separator.
SEPARATOR = re.compile(r"(?<=\?)\s*\*\*|\s\*\*\s+(?=[A-Z])")


def from_gsm8k(row):
    """GSM8K (Cobbe et al. 2021): an answer of several lines, the last "#### 70,000".

    In the Socratic files a line is "sub-question ** solution". The main files have no sub-questions: their
    lines become steps with plain questions, "What is step 1?", for students of the roles cot and answer; the
    row is marked by "questions": "plain". `annotate.py teacher --style questions` asks for real ones.
    """
    problem = text_field(row, "question")
    *lines, last = [line.strip() for line in re.split(r"[\r\n]", text_field(row, "answer")) if line.strip()]
    if not last.startswith(MARK):
        raise Unfit("no last line '#### answer'")
    answer = last.removeprefix(MARK).strip().replace(",", "").replace("\u2212", "-")
    if parse_number(answer) is None:
        raise Unfit("the answer after '####' is no number")
    if not lines:
        raise Unfit("no steps")
    if not any(SEPARATOR.search(line) for line in lines):
        steps = [{"question": f"What is step {k}?", "solution": line} for k, line in enumerate(lines, 1)]
        return {"problem": problem, "steps": steps, "answer": answer, "questions": "plain"}
    steps = []
    for line in lines:
        parts = SEPARATOR.split(line, maxsplit=1) if SEPARATOR.search(line) else line.split("**", 1)
        if len(parts) < 2 or not parts[0].strip() or not parts[1].strip():
            raise Unfit("a line that is not 'sub-question ** solution'")
        steps.append({"question": parts[0].strip(), "solution": parts[1].strip()})
    return {"problem": problem, "steps": steps, "answer": answer}


OPERATION = re.compile(r"\(\s*(-?[\d.]+)\s*([-+*/])\s*(-?[\d.]+)\s*\)")


def from_svamp(row):
    """SVAMP (Patel et al. 2021): body, question, equation, answer.

    Each operation of the equation, innermost first, is a step with the sub-question "What is 3 + 4?"; the
    last step asks the problem's own question.
    """
    if "Numbers" in row:
        row = from_training_table(row)
    body, question = (row.get("Body") or "").strip(), text_field(row, "Question")
    equation, answer = text_field(row, "Equation"), calculate(str(row.get("Answer")))
    if answer is None:
        raise Unfit("field 'Answer' is missing or no number")
    left, steps = re.sub(r"\.0\b", "", equation), []
    while match := OPERATION.search(left):
        a, op, b = match.groups()
        result = calculate(f"{a}{op}{b}")
        if result is None:
            raise Unfit(f"its equation {equation} does not compute")
        solution = f"{a} {op} {b} = <<{a}{op}{b}={result}>>{result}"
        steps.append({"question": f"What is {a} {op} {b}?", "solution": solution})
        left = left[:match.start()] + result + left[match.end():]
    if not same_answer(left, answer):
        raise Unfit(f"its equation {equation} is not its answer {answer}")
    steps = steps or [{"question": "", "solution": answer}]
    steps[-1]["question"] = question
    if body and body[-1] not in ".?!":  # two halves of a sentence: "If a pen costs $3", "How much are 2?"
        body, question = body + ",", question[0].lower() + question[1:]
    name = {"id": f"svamp-{row['ID']}"} if "ID" in row else {}
    return name | {"problem": f"{body} {question}".strip(), "answer": answer, "steps": steps}


def from_training_table(row):
    """A row of the tables that SVAMP's repository trains on (data/*/train.csv), with SVAMP's own fields.

    {"Question": "Ann had number0 pens . She lost number1 . How many has she ?", "Numbers": "9.0 2.0",
     "Equation": "- number0 number1", "Answer": "7.0"} becomes {"Body": "Ann had 9 pens. She lost 2.",
     "Question": "How many has she?", "Equation": "( 9 - 2 )", "Answer": "7.0"}.
    """
    numbers = {f"number{i}": n.removesuffix(".0") for i, n in enumerate(text_field(row, "Numbers").split())}
    words = [numbers.get(word, word) for word in text_field(row, "Question").split()]
    sentence_ends = [i + 1 for i, word in enumerate(words[:-1]) if word in (".", "?", "!")]
    last = max(sentence_ends, default=0)
    tokens = iter(text_field(row, "Equation").split())

    def infix():
        token = next(tokens, "")
        if token in ("+", "-", "*", "/"):
            return f"( {infix()} {token} {infix()} )"
        return numbers.get(token, token)
    return {"Body": join_tokens(words[:last]), "Question": join_tokens(words[last:]), "Equation": infix(),
            "Answer": row.get("Answer")}


JOINED = [(re.compile(pattern), joined) for pattern, joined in (
    ("\u2019", "'"), (r"(?<![\w'])' ([^']+) '(?!\w)", r"'\1'"),    # playing ' whack a mole '
    (r" ' ?(?=(?:s|t|re|ll|ve|d|m)\b)", "'"), (r" n't\b", "n't"),  # Ann 's, did n't
    (r"(?<=s) '(?= )", "'"), (r" ([.,;:?!%)])", r"\1"), (r"([$(]) ", r"\1"),
    (r"(?<=[^\W_]) - (?=[^\W\d_])", "-"))]                         # a 5 - page book


def join_tokens(words):
    """A text from its tokens: "It costs $5." from ["It", "costs", "$", "5", "."]."""
    text = " ".join(words)
    for pattern, joined in JOINED:
        text = pattern.sub(joined, text)
    return text


REFERENCE = re.compile(r"#(\d+)")


def from_strategyqa(row):
    """StrategyQA (Geva et al. 2021): a yes/no question, its human decomposition, and facts.

    The decomposition is the sub-questions. Only a third of the rows have as many facts, and not always in the
    same order. So each fact is a solution of the sub-question with which it shares most words, and a
    sub-question that no fact has chosen takes the one that fits it best. The last solution closes with the
    answer.
    """
    problem, questions, facts = text_field(row, "question"), row.get("decomposition"), row.get("facts")
    for name, texts in ("decomposition", questions), ("facts", facts):
        if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts or [None]):
            raise Unfit(f"field '{name}' is missing, empty or no list of texts")
    if not isinstance(row.get("answer"), bool):
        raise Unfit("field 'answer' is missing or neither true nor false")
    answer = "yes" if row["answer"] else "no"

    stems = [word_stems(REFERENCE.sub("", question)) for question in questions]
    rarity = Counter(stem for one in stems for stem in one)
    shared = [[sum(1 / rarity[stem] for stem in word_stems(fact) & one) for one in stems] for fact in facts]
    chosen = [[] for _ in questions]  # the facts of each sub-question
    for i, scores in enumerate(shared):
        chosen[scores.index(max(scores)) if any(scores) else min(i, len(questions) - 1)].append(i)
    for k in range(len(questions) - 1):
        chosen[k] = chosen[k] or [max(range(len(facts)), key=lambda i: (shared[i][k], -abs(i - k)))]
    solutions = [" ".join(facts[i].strip().rstrip(".") + "." for i in one) for one in chosen]
    solutions[-1] = f"{solutions[-1]} So the answer is {answer}.".strip()

    resolved = []

    def in_words(match):  # "#1" is 'the answer to "Who played Bond?"'
        quoted = resolved[int(match[1]) - 1].replace('"', "'")
        return f'the answer to "{quoted}"'

    for question in questions:
        if any(not 1 <= int(k) <= len(resolved) for k in REFERENCE.findall(question)):
            raise Unfit("a sub-question refers to one that does not come before it")
        resolved.append(REFERENCE.sub(in_words, question.strip()))
    steps = [{"question": question, "solution": solution} for question, solution in zip(resolved, solutions)]
    name = {"id": f"strategyqa-{row['qid']}"} if "qid" in row else {}
    return name | {"problem": problem, "steps": steps, "answer": answer}


def word_stems(text):
    """A text's words without their endings: the first five letters of each that has four or more."""
    return {word[:5] for word in re.findall(r"[^\W_]{4,}|\d+", text.casefold())}


CONVERTERS = {  # command: converter, the fields of its rows
    "gsm8k": (from_gsm8k, "question, answer"), "svamp": (from_svamp, "Body, Question, Equation, Answer"),
    "strategyqa": (from_strategyqa, "question, answer, decomposition, facts")}


def read_table(path):
    """As data.py's `read_rows`, and also the rows of a CSV file."""
    if path.suffix != ".csv":
        yield from read_rows(path)
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            for n, row in enumerate(csv.DictReader(f), 1):
                yield f"{path}, row {n}", row
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: no CSV file in UTF-8: {e}")


def split_of(problem, shares):
    """The split of a problem (text), by a hash: it stays there when the file grows or changes its order.

    shares: percent of train, valid and test.
    """
    digest = hashlib.sha256(one_line(problem).encode("utf-8", "replace")).digest()
    place = int.from_bytes(digest[:8], "big") % 10000
    return next(split for split, upto in zip(SPLITS, accumulate(shares)) if place < 100 * upto)


def convert(args):
    """Convert the files of a dataset into train.jsonl, valid.jsonl and test.jsonl; account for each row."""
    converter, fields = CONVERTERS[args.command]
    splits = {split: [] for split, share in zip(SPLITS, args.split) if share}
    seen, left_out, n_read, n_plain = set(), [], 0, 0
    for file in args.files:
        for where, row in read_table(file):
            n_read += 1
            source = file.stem if file.suffix == ".csv" else args.command  # such as mawps
            name = f"{args.command}-{n_read}"
            try:
                new = {"id": name} | converter(row) | {"source": source}
                if one_line(new["problem"]) in seen:
                    raise Unfit("the same problem as an earlier row")
            except Unfit as e:
                left_out.append((str(e), where, row.get("qid") or row.get("ID") or name))
                continue
            seen.add(one_line(new["problem"]))
            splits[split_of(new["problem"], args.split)].append(new)
            n_plain += "questions" in new
    if not seen:
        reasons = "".join(f"; {n:,} left out: {reason}"
                          for reason, n in Counter(reason for reason, *_ in left_out).items())
        raise UserError(f"{args.files[0]}: {n_read:,} rows read, none can be used{reasons}; {args.command}'s "
                        f"rows have the fields {fields}")
    if empty := [split for split, rows in splits.items() if not rows]:
        raise UserError(f"{len(seen):,} problems, and none falls into {empty[0]}.jsonl: give it a larger "
                        "part, as in --split 80/10/10", 2)
    save_files({args.out / f"{split}.jsonl": rows for split, rows in splits.items()}, args.force)
    for reason, where, name in left_out:
        print(f"left out: {where} ({name}): {reason}")
    print(f"{n_read:,} rows read, {len(seen):,} written, {len(left_out):,} left out")
    if n_plain:
        print(f"{n_plain:,} have no sub-questions but \"What is step 1?\": good for --role cot and answer, "
              "or as the FILE of annotate.py teacher")
    counts = {split: len(rows) for split, rows in splits.items()}
    print_next(args.out, counts, "cot" if 2 * n_plain > len(seen) else "solver")


# ---- the LLM teacher: what it is asked ---------------------------------------------------------------------

EXAMPLES = [  # problem, answer, (sub-question, solution) of each step
    ("A baker fills 6 trays with 12 rolls each and sells 50 of the rolls. How many rolls are left?", "22", [
        ("How many rolls does the baker make?", "The baker makes 6*12 = <<6*12=72>>72 rolls."),
        ("How many rolls are left?", "There are 72-50 = <<72-50=22>>22 rolls left.")]),
    ("A ticket costs $7.50, for children half as much. What do 2 adults and 3 children pay?", "26.25", [
        ("What does a child's ticket cost?", "A child's ticket costs 7.5/2 = $<<7.5/2=3.75>>3.75."),
        ("What do the adults pay?", "The adults pay 2*7.5 = $<<2*7.5=15>>15."),
        ("What do the children pay?", "The children pay 3*3.75 = $<<3*3.75=11.25>>11.25."),
        ("What do they pay together?", "Together they pay 15+11.25 = $<<15+11.25=26.25>>26.25.")]),
    ("Could a goldfish live in the Dead Sea?", "no", [
        ("What water does a goldfish need?", "A goldfish needs fresh water."),
        ("How salty is the Dead Sea?", "The Dead Sea is several times as salty as an ocean."),
        ("Can a goldfish live in such salty water?", "It needs fresh water, so the answer is no.")]),
]
CLOSE = "Close with the answer alone: a number without a unit, or yes or no. Write nothing else."
INSTRUCTIONS = {
    "socratic": "Solve the last problem as in the examples: ask yourself one sub-question after another, and "
                f"give each a short solution. Write each calculation as 3*4 = <<3*4=12>>12. {CLOSE}",
    "cot": "Solve the last problem as in the examples: one short step a line. Write each calculation as "
           f"3*4 = <<3*4=12>>12. {CLOSE}",
    "questions": "For each solution of the last problem write the sub-question that it answers, as in the "
                 "examples. Write nothing else.",
}
# the requests of each --style
STAGES = {"socratic": ["socratic"], "cot": ["cot", "questions"], "questions": ["questions"]}


def numbered(label, texts):
    """Lines "Question 1: ..." """
    return "\n".join(f"{label} {k}: {text}" for k, text in enumerate(texts, 1))


def default_prompt(stage):
    """Our few-shot prompt of a stage, with the placeholders {problem} and, for questions, {solutions}."""
    parts = [INSTRUCTIONS[stage]]
    for problem, answer, steps in EXAMPLES:
        questions, solutions = zip(*steps)
        if stage == "socratic":
            pairs = [f"Question {k}: {q}\nSolution {k}: {s}" for k, (q, s) in enumerate(steps, 1)]
            lines = [*pairs, f"Answer: {answer}"]
        elif stage == "cot":
            lines = [*solutions, f"Answer: {answer}"]
        else:
            lines = [numbered("Solution", solutions), numbered("Question", questions)]
        parts.append("\n".join([f"Problem: {problem}", *lines]))
    parts.append("Problem: {problem}" + ("\n{solutions}" if stage == "questions" else ""))
    return "\n\n".join(parts) + "\n"


def read_prompts(args):
    """The prompts of a style, {stage: text}: ours, or those that --prompt names. Raises UserError."""
    stages = STAGES[args.style]
    if len(args.prompt) > len(stages):
        raise UserError(f"--prompt {args.prompt[-1]}: --style {args.style} takes {len(stages)}", 2)
    prompts = {stage: default_prompt(stage) for stage in stages}
    for stage, path in zip(stages, args.prompt):
        try:
            prompts[stage] = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"--prompt {path}: not UTF-8")
        for place in ("{problem}", "{solutions}")[:2 if stage == "questions" else 1]:
            if place not in prompts[stage]:
                raise UserError(f"--prompt {path}: the placeholder {place} is missing")
    return prompts


def fill_prompt(prompt, problem, steps):
    """A prompt about a problem (text) and, for questions, the solutions of its steps."""
    solutions = numbered("Solution", [step["solution"] for step in steps])
    values = {"{problem}": one_line(problem), "{solutions}": solutions}
    return re.sub(r"\{problem\}|\{solutions\}", lambda match: values[match[0]], prompt)


# ---- the LLM teacher: what it replies ----------------------------------------------------------------------

# What chat models adorn a reply with, taken away or put in plain signs, in this order
MARKUP = [(re.compile(pattern, re.M), plain) for pattern, plain in (
    # thoughts before the reply; marks of the chat's format; characters of no width
    (r"\A(?s:.*)(?:</think(?:ing)?>|</thought>|</reasoning>|\[/THINK\]|<\|channel\|>final<\|message\|>)", ""),
    (r"<\|\w+\|>|[\u200b-\u200d\u2060\ufeff]", ""),
    # LaTeX: $\frac{1}{2}$, \boxed{\$9{,}500}, \text{ apples}
    (r"(?<!\\)\$((?:[^$\\\n]*\\[^\n])+[^$\\\n]*)\$", r"\1"), (r"\\([$%#&])", r"\1"), (r"\{,\}", ","),
    (r"\\[,;:!]|\\(?:left|right|quad|displaystyle)\b", ""),
    (r"\\[dt]?frac\s*\{([\d.,]+)\}\s*\{([\d.,]+)\}", r" \1/\2"),
    (r"\\[dt]?frac\s*\{([^{}\n]+)\}\s*\{([^{}\n]+)\}", r" (\1)/(\2)"),
    (r"\\(?:text|math)\w*\{([^{}\n]*)\}", r"\1"), (r"\\f?box(?:ed)?\{([^{}\n]*)\}", r"\1"),
    (r"\\[()[\]]", ""),
    # signs as the calculator knows them: 3 × 4, 24 ÷ 2, −5, 12 000 (with a narrow space)
    (r"\\times\b|\\cdot\b|[×·⋅]", "*"), (r"\\div\b|÷", "/"), ("\u2212", "-"),
    (r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", ""),
    # Markdown: **bold**, but not 2**3; `code`; rules
    (r"(?<!\d)(?<!\d )\*\*|\*\*(?! ?\d)", ""), (r"^```\w*$|`|^-{3,}$", ""))]

# "Question 1:", "**Sub-question 2.** ", "Q1:", "### Solution" on a line of its own, "Final answer:", "####".
# SP: a few spaces of any kind; bounded, since models at times write thousands.
LABEL = re.compile(r"""
    ^ (?: [#>*_-] | [^\S\n] ){0,20}  (?: (?:step SP)? \d+ [.):] SP )?
    (?: (?:the SP)? (?P<final>final)? (?:sub|next|follow[ -]?up)? SP -? SP
        (?P<name> question | solution | answer | [qsa] (?= SP [\d:\uff1a]) )
        SP [#\u2116]? SP (?: \d+ | \(\d+\) | \[\d+\] )? [*_]* SP [*_]* (?: is SP )?
        (?: [:\uff1a] | $ | [.)] [^\S\n] | (?<=\d[^\S\n]) [\u2013\u2014-] [^\S\n] )
      | \#\#\#\# )
    """.replace("SP", r"[^\S\n]{0,5}"), re.I | re.M | re.X)
LABELS = {"q": "question", "s": "solution", "a": "answer"}


def labelled_parts(reply):
    """A reply without MARKUP: the text before its first label, and its parts up to the final answer.

    The parts are a list of (label, text) with the labels "question", "solution" and "answer". What is
    labelled as an answer right behind a question is that question's solution. Raises Unfit.
    """
    for pattern, plain in MARKUP:
        reply = pattern.sub(plain, reply)
    matches, parts = list(LABEL.finditer(reply)), []
    ends = [match.start() for match in matches] + [len(reply)]
    for match, end in zip(matches, ends[1:]):
        label, text = LABELS[(match["name"] or "answer")[0].lower()], reply[match.end():end].strip()
        behind_question = parts and parts[-1][0] == "question"
        if label == "answer" and behind_question and match["name"] and not match["final"]:
            label = "solution"
        if label == "answer" and not text:  # "Answer:", and below it "#### 12"
            continue
        if label == "question":
            text = text.split("\n\n")[0]  # without "Let me know if ..."
        if label == "answer":
            text = text.split("\n")[0]
        parts.append((label, one_line(text).strip("*_ ")))
        if not parts[-1][1]:
            raise Unfit("the reply has an empty part")
        if label == "answer":
            break
    return reply[:ends[0]], parts


def read_dialogue(reply):
    """Steps and answer of a reply "Question 1: ... Solution 1: ... Answer: ...". Raises Unfit."""
    _, parts = labelled_parts(reply)
    labels, texts = [label for label, _ in parts], [text for _, text in parts]
    if labels != ["question", "solution"] * (len(parts) // 2) + ["answer"] or len(parts) < 3:
        raise Unfit("the reply is not question, solution, ..., answer")
    return [{"question": q, "solution": s} for q, s in zip(texts[:-1:2], texts[1::2])], texts[-1]


def read_chain(reply):
    """Steps, without questions, and answer of a reply "... Answer: ...". Raises Unfit."""
    chain, parts = labelled_parts(reply)
    lines = [re.sub(r"^[\s#>]*(?:(?:[-*\u2022]|(?:step )?\d+[.:)])\s+)?", "", line, flags=re.I).strip()
             for line in chain.split("\n")]
    steps = [{"solution": line} for line in lines if line and not line.endswith(":")]  # "Here are the steps:"
    if [label for label, _ in parts] != ["answer"] or not steps:
        raise Unfit("the reply is not lines and 'Answer: ...'")
    return steps, parts[0][1]


def read_questions(reply, steps):
    """The steps with the questions of a reply "Question 1: ...". Raises Unfit."""
    _, parts = labelled_parts(reply)
    if [label for label, _ in parts] != ["question"] * len(steps):
        raise Unfit(f"the reply is not {len(steps)} questions")
    return [{"question": question, "solution": step["solution"]} for (_, question), step in zip(parts, steps)]


def verify(steps, answer, problem):
    """The steps, with annotations, if their equations compute and they end at the problem's known answer.

    Raises Unfit.
    """
    for step in steps:
        try:
            step["solution"] = annotate_equations(step["solution"])
        except ValueError as e:
            raise Unfit(str(e))
        for reason in invalid_annotations(step["solution"]):
            raise Unfit(reason)
    verify_questions(steps)
    if not matches_answer(answer, problem["answer"]):
        raise Unfit(f"the answer is {answer[:40]}, not {problem['answer']}")
    if not states_answer(steps[-1]["solution"], problem["answer"]):
        raise Unfit("the last solution does not say the answer")
    return steps


def verify_questions(steps):
    """The steps, if none asks what another has asked. Raises Unfit."""
    asked = Counter(one_line(step["question"]).casefold() for step in steps if "question" in step)
    for question, n in asked.items():
        if n > 1:
            raise Unfit(f"it asks {n} times: {question[:60]}")
    return steps


def read_stage(stage, reply, steps, problem):
    """The checked steps that a reply gives a problem; steps: those of the stage before. Raises Unfit."""
    if stage == "questions":
        return verify_questions(read_questions(reply, steps))
    steps, answer = read_dialogue(reply) if stage == "socratic" else read_chain(reply)
    return verify(steps, answer, problem)


CUT_OFF = "length", "max_tokens", "model_length"        # how servers say why a reply ended
REFUSED = "content_filter", "refusal", "safety", "sensitive", "prohibited_content", "blocklist"


def annotate_problem(problem, endpoint, prompts, args):
    """Have a problem annotated: ask up to --tries times, at rising temperature.

    In the style cot the teacher thinks first and asks afterwards, a question for each line. In the style
    questions the file's own solutions stay. Returns a row of the log: the problem with its new "steps" and
    how they came about, under "teacher"; or, without steps, "rejected", why the last try was unfit, and
    "reply", what the model said; or "failed", the failure of the server that set the problem aside.
    """
    about = run_settings(prompts, args) | {"tokens": [0, 0]}
    stages, steps, said = list(STAGES[args.style]), problem.get("steps", []), ""
    result = {key: problem[key] for key in ("id", "problem", "answer")} | {"teacher": about}

    for k in range(args.tries):
        rise = max(0, 1 - args.temperature) * k / max(1, args.tries - 1)
        temperature = args.extra.get("temperature", round(args.temperature + rise, 2))
        about |= {"try": k + 1, "temperature": temperature,
                  "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        try:
            while stages:
                reply = endpoint.ask(fill_prompt(prompts[stages[0]], problem["problem"], steps), temperature)
                about["served"] = reply.model
                about["tokens"] = add(about["tokens"], reply.tokens)
                said = reply.text if reply.text.strip() else reply.thoughts
                check_reply(reply)
                steps = read_stage(stages[0], said, steps, problem)
                stages.pop(0)  # also for the next tries: a chain that is fit is not asked for again
            return {**problem, "steps": steps, "teacher": about}
        except Unfit as e:
            reason = str(e) if reply.text.strip() or not said else f"no reply but thoughts, and of these: {e}"
        except SetAside as e:
            return result | {"failed": str(e)}
    return result | {"rejected": reason, "reply": said}


def check_reply(reply):
    """Raise Unfit if the model did not come to an end, would not reply, or said nothing."""
    if reply.finish in CUT_OFF:
        raise Unfit(f"the reply was cut off after {reply.tokens[1]} tokens (--max-tokens)")
    if reply.finish in REFUSED:
        raise Unfit(f"the model refused ({reply.finish})")
    if not reply.text.strip() and not reply.thoughts.strip():
        raise Unfit("the reply is empty")


def run_settings(prompts, args):
    """What is the same for all rows of an annotation run."""
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode("utf-8")).hexdigest()
    return {"model": args.model, "style": args.style, "prompt": digest[:12], "extra": args.extra}


# ---- the LLM teacher: its server ---------------------------------------------------------------------------

# What a failed request means is decided in one place, `Endpoint.ask`. A failure that may pass is retried,
# --retries times. One that stays sets its problem aside: nothing is known of it, the next run asks it again.
# When as many problems in a row as the failure's `limit` were set aside, no good reply between them, the run
# stops.
EVERY_PROBLEM = 1  # the limit of a failure that concerns all problems
OUTAGE = 2         # of one that should have passed
REFUSALS = 10      # of one that may be due to the problem, which is too long perhaps

MAY_PASS = 408, 409, 425, 429        # statuses, and those from 500
OF_A_PROBLEM = 400, 403, 413, 422    # others, such as 404, concern all problems until there is a good reply
NO_CREDIT = re.compile(r"insufficient[_ ](quota|balance|credit|fund)|credit balance|billing_(hard|not)", re.I)
UNSUPPORTED = re.compile(r"un(supported|recogni[sz]ed|known|expected)|not (support|permit|allow)|n't support|"
                         r"deprecated|extra_forbidden", re.I)
# why a reply ended, as servers say it: the server failed
BROKEN_OFF = "error", "abort", "aborted", "cancelled", "network_error", "insufficient_system_resource"

LONGEST_REPLY = 10_000_000  # bytes
FIRST_PAUSE = 0.5           # seconds before a retry, doubled from one to the next up to ...
LONGEST_PAUSE = 60          # ... this, unless the server asks for more
LONGEST_WAIT = 600          # seconds that a server may ask for


class Failure(Exception):
    """A request that brought no reply of the model. wait: seconds that the server asks for."""

    def __init__(self, message, limit, may_pass=False, wait=0):
        super().__init__(message)
        self.limit, self.may_pass, self.wait = limit, may_pass, wait


class SetAside(Exception):
    """The failure that sets a problem aside."""


class Stopped(Exception):
    """The run has ended while a request waited for its retry."""


class Reply(NamedTuple):
    """A completion: text, thoughts, why it ended, the model that the server names, [read, written] tokens."""
    text: str
    thoughts: str
    finish: str
    model: str
    tokens: list


class Endpoint:
    """The chat completions of an OpenAI-compatible server, for many threads, each with a requests.Session.

    requests knows proxies, redirects, gzip and TLS, and keeps connections alive. The retries are ours, since
    those of urllib3 see a status alone: not a quota that is used up, an error in an HTTP 200, a reply cut
    short.

    The key comes from the environment and goes into the request's header and nowhere else. Should a server
    echo it, it is struck out before anyone sees the reply, unless it is a word such as "none" that replies
    have anyway.
    """

    def __init__(self, args):
        self.args, self.url = args, completions_url(args.url)
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not re.fullmatch(r"[!-~]*", self.key):
            raise UserError("OPENAI_API_KEY: the key holds characters that no HTTP header can carry")
        self.thread, self.lock = threading.local(), threading.Lock()
        self.stop = threading.Event()  # set when the run ends: nobody waits any longer
        self.n_requests = self.good = 0  # sent; good replies
        self.set_aside = 0             # problems set aside since the latest good reply
        self.tokens = [0, 0]           # read and written, of all good replies

    def body(self, prompt, temperature):
        """The request's JSON object."""
        body = {"model": self.args.model, "messages": [{"role": "user", "content": prompt}], "stream": False,
                "temperature": temperature, "max_tokens": self.args.max_tokens} | self.args.extra
        return {name: value for name, value in body.items() if value is not None}

    def ask(self, prompt, temperature):
        """Send a prompt; returns the Reply. Raises SetAside for the problem, UserError for the run."""
        body = json.dumps(self.body(prompt, temperature)).encode()
        for attempt in range(self.args.retries + 1):
            try:
                reply = self.read(self.post(body), len(body))
                with self.lock:
                    self.good, self.set_aside = self.good + 1, 0
                    self.tokens = add(self.tokens, reply.tokens)
                return reply
            except Failure as e:
                failure = e
            if not failure.may_pass:
                break
            pause = random.uniform(0.5, 1) * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** attempt)
            if attempt < self.args.retries and self.stop.wait(max(pause, failure.wait)):
                raise Stopped
        message = f"{failure} (after {attempt + 1} requests)" if attempt else str(failure)
        with self.lock:
            self.set_aside += 1
            if self.set_aside >= failure.limit:
                self.stop.set()
                goes_on = "; what is written stays, the same command goes on from there" if self.good else ""
                raise UserError(f"{self.url}: {message}{goes_on}")
        raise SetAside(message)

    def post(self, body):
        """One request: returns the body (bytes) of an HTTP 200. Raises Failure."""
        if not hasattr(self.thread, "session"):
            self.thread.session = requests.Session()
            self.thread.session.auth = self.authorize  # without it requests takes a password from ~/.netrc
        deadline, content = time.monotonic() + self.args.timeout, b""
        with self.lock:
            self.n_requests += 1
        try:
            post = self.thread.session.post
            with post(self.url, data=body, timeout=self.args.timeout, stream=True) as response:
                read = getattr(response.raw, "read1", response.raw.read)  # urllib3 before 2.2 has no read1
                while part := read(1 << 16, decode_content=True):
                    content += part
                    if time.monotonic() > deadline or len(content) > LONGEST_REPLY:
                        raise TimeoutError
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as e:
            raise self.connection_failure(e)
        if len(self.key) >= 16:
            content = content.replace(self.key.encode(), b"***")
        if response.request.method != "POST":
            raise Failure(f"redirected to {response.url}, but as a GET: adapt --url", EVERY_PROBLEM)
        if response.status_code != 200:
            raise self.status_failure(response.status_code, content, response.headers.get("Retry-After"))
        return content

    def authorize(self, request):
        """Put the headers on a request that requests is about to send."""
        request.headers.update({"Content-Type": "application/json", "User-Agent": "annotate.py"})
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def read(self, content, n_sent):
        """The Reply in the body (bytes) of an HTTP 200, to a request of so many bytes. Raises Failure."""
        try:
            text = re.sub(r"\Adata:|data:\s*\[DONE\]\Z", "", content.decode("utf-8-sig").strip())
            found = json.loads(text, strict=False)  # strict=False: with bare line ends inside strings
            choice = (found.get("choices") or [{}])[0]
            if error := found.get("error") or choice.get("error"):
                code = str(error.get("code")) if isinstance(error, dict) else ""
                raise self.status_failure(int(code) if re.fullmatch(r"[45]\d\d", code) else 500, content)
            message, usage = choice["message"], found.get("usage") or {}
            said, finish = text_in(message.get("content")), str(choice.get("finish_reason")).lower()
            thoughts = text_in(message.get("reasoning_content") or message.get("reasoning"))
            guesses = {"prompt_tokens": n_sent // 4, "completion_tokens": len(said + thoughts) // 4}
            tokens = [int(usage.get(name) or guess) for name, guess in guesses.items()]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            shown = content[:80].decode("utf-8", "replace")
            raise Failure(f"no chat completion but {shown!r}", OUTAGE, may_pass=True)
        if finish in BROKEN_OFF or finish == "none" and not said:
            raise Failure(f"the server broke the reply off (finish_reason {finish})", OUTAGE, may_pass=True)
        if message.get("refusal"):
            said, finish = said or str(message["refusal"]), "refusal"
        return Reply(said, thoughts, finish, str(found.get("model")), tokens)

    def status_failure(self, status, content, retry_after=None):
        """The Failure that an HTTP status other than 200 is, or an error with such a code in an HTTP 200."""
        text, wait = content[:2000].decode("utf-8", "replace"), seconds_to_wait(retry_after)
        said = f"HTTP {status}: {error_message(text)}"
        if status == 402 or NO_CREDIT.search(text):
            return Failure(f"{said} (no credit left: see the account's billing page)", EVERY_PROBLEM)
        if wait > LONGEST_WAIT:
            return Failure(f"{said}; it asks for a pause of {wait:,.0f} s", EVERY_PROBLEM)
        if status in MAY_PASS or status >= 500:
            return Failure(said, OUTAGE, may_pass=True, wait=wait)
        if UNSUPPORTED.search(text) and (field := re.search(r"max_tokens|temperature|\bstream\b", text)):
            return Failure(f"{said} (leave it out: --extra '{{\"{field[0]}\": null}}')", EVERY_PROBLEM)
        if status in (401, 403):
            said += f" (the environment variable OPENAI_API_KEY {'was sent' if self.key else 'is not set'})"
        else:
            said += f"; check --url and --model {self.args.model}"
        return Failure(said, REFUSALS if self.good or status in OF_A_PROBLEM else EVERY_PROBLEM)

    def connection_failure(self, error):
        """The Failure of a request that brought no whole response."""
        cause = error
        while cause.__cause__ or cause.__context__:  # what the libraries' exceptions are about
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, TimeoutError):
            return Failure(f"no whole reply in {self.args.timeout:g} s (--timeout)", OUTAGE, may_pass=True)
        said = f"{type(cause).__name__}: {cause}"
        if isinstance(error, requests.exceptions.ProxyError):
            said = f"the proxy of the environment: {said}"
        if isinstance(cause, ConnectionRefusedError | socket.gaierror | ssl.SSLError) and not self.good:
            return Failure(f"{said}; is the server running, and --url right?", EVERY_PROBLEM)
        return Failure(said, OUTAGE, may_pass=True)


def completions_url(url):
    """The URL of the chat completions at --url, such as http://localhost:8000/v1. Raises UserError."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or not re.fullmatch("[!-~]+", url):
        raise UserError(f"--url {url}: expected as in http://localhost:8000/v1, without user or password", 2)
    path = (parts.path.rstrip("/") or "/v1").removesuffix("/chat/completions")
    if other := re.search(r"/(completions|responses|messages|models|embeddings|api/(chat|generate))$", path):
        base = f"{parts.scheme}://{parts.netloc}{path.removesuffix(other[0]) or '/v1'}"
        raise UserError(f"--url {url}: {other[0]} is no endpoint of chat completions; give --url {base}", 2)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions{query}"


def text_in(content):
    """The text of a message's content: a str, None, or a list of parts, some of which may be thoughts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError
    return content or ""


def error_message(text):
    """What the body of an error says, on one line: the message in its JSON, or a page without its tags."""
    try:
        found = json.loads(text, strict=False)
        found = found[0] if isinstance(found, list) else found
        error = found.get("error") or found.get("detail") or found
        text = str(error.get("message") or error if isinstance(error, dict) else error)
    except (ValueError, LookupError, AttributeError, RecursionError):
        text = re.sub(r"<[^>]*>", " ", text)
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", one_line(text))[:200] or "(nothing)"


def seconds_to_wait(retry_after):
    """Seconds, from a Retry-After header: a number or a date; 0 for none and for anything else."""
    try:
        return urllib3.Retry().parse_retry_after(retry_after or "0")
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0


def add(tokens, more):
    """Two pairs [read, written] of numbers of tokens as one."""
    return [a + b for a, b in zip(tokens, more)]


# ---- the LLM teacher: the annotation run -------------------------------------------------------------------

class AnnotationLog:
    """DIR/log.jsonl, the one file that an annotation run appends to. The other files of DIR are made from it.

    Its first line holds the run's settings. Then comes a row for each problem, as soon as it is done: with
    "steps", "rejected" for what the model said, or "failed", set aside since the server failed.

    rows: {text of a problem: its latest row}. tokens: [read, written] for all rows.
    """

    def __init__(self, folder, settings):
        """Open the log of `folder`, or begin one. Raises UserError if it is of a run with other settings."""
        make_folder(folder)
        self.folder, self.path = folder, folder / "log.jsonl"
        self.rows, self.tokens = {}, [0, 0]
        self.lock, self.synced = threading.Lock(), time.monotonic()
        if not self.path.exists() and (files := sorted(folder.glob("*.jsonl"))):
            raise UserError(f"{files[0]}: not made from an annotation run's log; use another --out", 2)
        self.file = open(self.path, "ab")
        error = "not the log of an annotation run; use another --out"
        theirs, rows, size = read_run_file(self.path, error, 2)
        if theirs != settings:
            if any("failed" not in row for row in rows):
                raise UserError(f"{self.path}: of another run ({theirs}); use another --out", 2)
            rows, size = [], 0  # it holds nothing that a model said: begin anew
        for row in rows:
            self.count(row)
        self.file.truncate(size)
        self.file.write(b"" if size else to_jsonl([{"settings": settings}]))
        self.file.flush()

    def count(self, row):
        self.rows[one_line(row["problem"])] = row
        self.tokens = add(self.tokens, row["teacher"]["tokens"])

    def append(self, row):
        """Write a row. It is on the disk a second later at the latest."""
        with self.lock:
            self.file.write(to_jsonl([row]))
            self.file.flush()
            if time.monotonic() - self.synced > 1:
                os.fsync(self.file.fileno())
                self.synced = time.monotonic()
            self.count(row)

    def rows_with(self, field):
        """The rows with a field: "steps", "rejected" or "failed"."""
        return [row for row in list(self.rows.values()) if field in row]  # a list: threads may still append

    def write_splits(self, shares):
        """Write train.jsonl, valid.jsonl, test.jsonl and rejected.jsonl anew, those that have rows.

        shares: percent of the splits. Returns {split: number of rows}.
        """
        files = {name: [] for name in SPLITS} | {"rejected": self.rows_with("rejected")}
        for row in self.rows_with("steps"):
            files[split_of(row["problem"], shares)].append(row)
        with atomic_write(self.folder) as temporary:
            for name, rows in files.items():
                if rows:
                    write_problems(temporary / f"{name}.jsonl", rows)
                else:
                    (self.folder / f"{name}.jsonl").unlink(missing_ok=True)
        return {split: len(files[split]) for split in SPLITS if files[split]}


def llm_teacher(args):
    """The LLM teacher: have a file's problems annotated by a model behind an OpenAI-compatible server."""
    prompts, endpoint, problems = read_prompts(args), Endpoint(args), {}
    for n, row in enumerate(read_problems(args.file, steps=args.style == "questions"), 1):
        row = {"id": f"{args.file.stem}-{n}"} | without_old_steps(row)
        problems.setdefault(one_line(row["problem"]), row)
    if args.dry_run:
        first = next(iter(problems.values()))
        prompt = fill_prompt(prompts[STAGES[args.style][0]], first["problem"], first.get("steps", []))
        body = json.dumps(endpoint.body(prompt, args.temperature), indent=2, ensure_ascii=False)
        print(f"POST {endpoint.url}\n{body}")
        return
    log = AnnotationLog(args.out, run_settings(prompts, args))
    endpoint.tokens = log.tokens
    set_aside = [key for key in problems if "failed" in log.rows.get(key, {})]
    todo = [key for key in problems if key not in log.rows] + set_aside
    if n_done := len(problems) - len(todo):
        tqdm.write(f"{args.out}: {n_done:,} of {len(problems):,} problems are done already", file=sys.stderr)

    def work(key):
        """Annotate a problem and write it, so that a kill loses what is in flight alone. False: not begun."""
        if endpoint.stop.is_set() or args.budget_tokens and sum(endpoint.tokens) >= args.budget_tokens:
            return False
        try:
            log.append(annotate_problem(problems[key], endpoint, prompts, args))
            return True
        except Stopped:
            return False

    n_asked = 0
    bar = tqdm(total=len(problems), initial=n_done, unit=" problems", disable=None, dynamic_ncols=True)
    try:
        # unlike those of concurrent.futures this pool's threads are daemons: a stop does not wait for replies
        with bar, ThreadPool(args.parallel) as pool:
            for asked in pool.imap_unordered(work, todo):
                n_asked += asked
                bar.set_postfix_str(f"{sum(endpoint.tokens):,} tokens", refresh=False)
                bar.update(asked)
    finally:
        endpoint.stop.set()
        counts = log.write_splits(args.split)

    annotated, rejected, failed = (log.rows_with(key) for key in ("steps", "rejected", "failed"))
    for key, rows in ("rejected", rejected), ("failed", failed):
        for reason, n in Counter(row[key] for row in rows).most_common(5):
            print(f"{key}: {n:,} ({reason})")
    print(f"{len(annotated):,} problems annotated, {len(rejected):,} rejected, {len(failed):,} set aside for "
          f"the next run; {endpoint.n_requests:,} requests, {sum(endpoint.tokens):,} tokens")
    if n_asked < len(todo):
        print(f"stopped at --budget-tokens {args.budget_tokens:,}, {len(todo) - n_asked:,} problems before "
              "the end; the same command with a larger budget goes on")
    elif not annotated:
        raise UserError(f"{args.file}: no problem was annotated")
    print_next(args.out, counts)


def without_old_steps(row):
    """A row without what it says of the steps that it had."""
    return {name: value for name, value in row.items() if name not in ("questions", "kinds")}


# ---- the students as their own teacher ---------------------------------------------------------------------

def self_teacher(args):
    """Let the students sample solutions; distinct ones that end at the known answer are new annotations.

    Rejection sampling, as in STaR (Zelikman et al. 2022) and RFT (Yuan et al. 2023). A problem that has as
    many as --keep is not sampled again.
    """
    problems = read_problems(args.file, steps=False)[:args.limit]
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} is there already: --force replaces it, --out FILE leaves it", 2)
    make_folder(args.out.parent)
    students, about = {}, {"temperature": args.temperature}
    for role, folder in ("decomposer", args.decomposer), ("solver", args.solver):
        student = load_student(folder, role, min(args.rows, len(problems)), get_device(args.device))
        if student.guidance:
            raise UserError(f"{folder}: trained with --guidance {student.guidance}, not known here", 2)
        students[role], about[role] = student, str(folder)
    found = [[] for _ in problems]  # the new rows of each problem
    seen = [{json.dumps(row.get("steps"))} for row in problems]
    n_sampled = n_correct = 0
    with tqdm(total=len(problems) * args.samples, unit=" samples", disable=None, dynamic_ncols=True) as bar:
        for k in range(args.samples):
            todo = [index for index in range(len(problems)) if len(found[index]) < args.keep]
            bar.total = n_sampled + len(todo) * (args.samples - k)  # at most
            sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed * args.samples + k)
            n_before = sum(map(len, found))
            asked = [problems[index] for index in todo]
            for i, record in solve(asked, socratic, students, sampling=sampling):
                index, problem = todo[i], asked[i]
                n_sampled += 1
                bar.update()
                try:
                    steps = record["answer"] and verify(record["steps"], record["answer"], problem)
                except Unfit:
                    steps = None
                n_correct += bool(steps)
                if steps and (text := json.dumps(steps)) not in seen[index]:
                    seen[index].add(text)
                    name = f"{problem.get('id', index + 1)}-self-{len(found[index]) + 1}"
                    found[index].append({**without_old_steps(problem), "id": name, "steps": steps,
                                         "teacher": about | {"sample": k + 1}})
                bar.set_postfix_str(f"{sum(map(len, found)):,} new annotations", refresh=False)
            if sum(map(len, found)) > n_before:  # a kill loses the round that it interrupts
                save_files({args.out: [row for rows in found for row in rows]}, force=True)
    if not any(found):
        raise UserError(f"none of {n_sampled:,} samples is correct and new: try more --samples")
    print(f"{n_correct:,} of {n_sampled:,} samples correct; new annotations for {sum(map(bool, found)):,} of "
          f"{len(problems):,} problems")
    print(f"{args.out}: {sum(map(len, found)):,} problems")


# ---- check: what may be wrong in annotation files ----------------------------------------------------------

FAULTS = {"schema": "rows that are no annotated problem", "equation": "invalid annotations",
          "answer": "last solutions that do not say the answer", "long": "problems longer than the block",
          "twice": "problems that the file has already", "leak": "problems of an earlier file"}


def check(args):
    """Check files of annotations, each and against the earlier ones: print what is wrong and a line a file.

    Exit status 1 if anything is wrong.
    """
    earlier, shown, lines = {}, Counter(), []  # earlier: {text of a problem of earlier files: where it is}
    tokenizer = args.tokenizer
    if tokenizer:
        tokenizer = Tokenizer.gpt2() if tokenizer == "gpt2" else Tokenizer.from_pretrained(tokenizer)
    for path in args.files:
        problems, faults = read_leniently(path)
        own = {}  # the same of this file
        rows = [row for _, row in problems]
        tokenizer = tokenizer or (train_tokenizer(rows) if rows else None)
        sequences = encode_problems(rows, args.role, tokenizer) if rows else []
        for (where, row), sequence in zip(problems, sequences):
            for step in row["steps"]:
                faults += [("equation", where, fault) for fault in invalid_annotations(step["solution"])]
            if not states_answer(row["steps"][-1]["solution"], row["answer"]):
                faults.append(("answer", where, f"the last solution does not say the answer {row['answer']}"))
            if not fits(sequence, args.block_size):
                n_tokens = len(sequence[0])
                faults.append(("long", where, f"{n_tokens:,} tokens, the block has {args.block_size:,}"))
            text = one_line(row["problem"])
            if first := earlier.get(text) or own.get(text):
                kind = "leak" if text in earlier else "twice"
                faults.append((kind, where, f"the same problem as {first}"))
            own.setdefault(text, where)
        earlier = own | earlier
        counts = Counter(kind for kind, *_ in faults)
        for kind, where, fault in faults:
            shown[kind] += 1
            if args.all or shown[kind] <= 10:
                print(f"{where}: {fault}")
        solutions = [step["solution"] for row in rows for step in row["steps"]]
        n_annotations = sum(len(ANNOTATION.findall(text)) for text in solutions)
        longest = max((len(ids) for ids, _ in sequences), default=0)
        wrong = ", ".join(f"{n:,} {FAULTS[kind]}" for kind, n in counts.items()) or "nothing"
        lines.append(f"{path}: {len(rows):,} problems, {len(solutions):,} steps, {n_annotations:,} "
                     f"calculator annotations, longest {longest:,} tokens; wrong: {wrong}")
    for kind, n in shown.items():
        if n > 10 and not args.all:
            print(f"... and {n - 10:,} more {FAULTS[kind]} (--all)")
    print("\n".join(lines))
    if shown:
        sys.exit(1)


def read_leniently(path):
    """A file's problems, as (where, row), and what is wrong with its other rows: ("schema", where, fault)."""
    problems, faults = [], []
    try:
        for where, row in read_rows(path):
            try:
                check_problem(row, where)
                problems.append((where, row))
            except UserError as e:
                faults.append(("schema", *str(e).split(": ", 1)))
    except UserError as e:  # a line that is no JSON
        where, fault = str(e).split(": ", 1)
        faults.append(("schema", where, f"{fault}; the file is not read any further"))
    if not problems and not faults:
        faults.append(("schema", path, "holds no annotated problem"))
    return problems, faults


# ---- files, flags and main ---------------------------------------------------------------------------------

def make_folder(folder):
    """Make sure, before any work, that `folder` is there and takes files. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--out {folder}: {e.strerror}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder}: no permission to write there")


def save_files(files, force):
    """Write `files`, {path: rows}, all of one folder, each whole or not at all.

    Raises UserError if one is there already with other rows, unless `force`.
    """
    folder = next(iter(files)).parent
    make_folder(folder)
    other = [path for path, rows in files.items() if path.exists() and path.read_bytes() != to_jsonl(rows)]
    if other and not force:
        raise UserError(f"{other[0]} is there already and holds other problems: --force replaces it", 2)
    with atomic_write(folder) as temporary:
        for path, rows in files.items():
            write_problems(temporary / path.name, rows)


def print_next(folder, counts, role="solver"):
    """Say how many problems are in a folder, {split: int}, and which command comes next, for which role."""
    print(f"{folder}: " + ", ".join(f"{split} {n:,}" for split, n in counts.items()) + " problems")
    train, valid, test = (shlex.quote(str(folder / f"{split}.jsonl")) for split in SPLITS)
    if counts.get("test", 0) > counts.get("train", 0):
        print(f"next: python infer.py --eval {test}")
    elif "valid" not in counts:
        return  # these are to be put beside others
    elif folder == Path("annotations"):
        print(f"next: python train.py --role {role}")
    else:
        print(f"next: python train.py --role {role} --train {train} --valid {valid}")


def shares(text):
    """An argparse type: percents such as "95/5/0", a tuple of three that sum to 100."""
    try:
        values = tuple(map(float, text.split("/")))
    except ValueError:
        values = ()
    if len(values) != 3 or min(values) < 0 or sum(values) != 100:
        raise argparse.ArgumentTypeError(f"{text} is not three numbers with / between them that sum to 100")
    return values


def json_object(text):
    """An argparse type: a JSON object."""
    try:
        if isinstance(value := json.loads(text), dict):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is no JSON object")


def add_seed_and_force(p):
    """The flags --seed and --force."""
    p.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same bytes (0)")
    p.add_argument("--force", action="store_true", help="replace files that hold other problems")


def add_split(p):
    """The flag --split."""
    p.add_argument("--split", type=shares, default=(95, 5, 0), metavar="TRAIN/VALID/TEST",
                   help="percent of the problems, by a hash of each (95/5/0)")


def add_converter_flags(p, name):
    """The flags of gsm8k, svamp and strategyqa."""
    p.add_argument("files", nargs="+", type=Path, metavar="FILE")
    p.add_argument("--out", type=Path, default=Path("annotations", name), metavar="DIR",
                   help="folder of train.jsonl, valid.jsonl and test.jsonl (%(default)s)")
    add_split(p)
    p.add_argument("--force", action="store_true", help="replace files that hold other problems")


def add_teacher_flags(p):
    """The flags of teacher."""
    flag, count = p.add_argument, whole_number(1)
    flag("file", type=Path, metavar="FILE", help="problems with their answers")
    flag("--url", required=True, help="such as http://localhost:8000/v1; its key is read from OPENAI_API_KEY")
    flag("--model", required=True, metavar="NAME", help="as the server calls it")
    flag("--style", choices=STAGES, default="socratic",
         help="socratic (default): ask for sub-questions and solutions; cot: for a chain of thought, then "
              "for its questions; questions: for the questions of the FILE's own solutions")
    flag("--prompt", type=Path, metavar="FILE", action="append", default=[],
         help="your own prompt: {problem} stands for the problem and, where questions alone are asked for, "
              "{solutions}; a second --prompt is that of --style cot's second request")
    flag("--out", type=Path, default=Path("annotations/teacher"), metavar="DIR",
         help="folder of the log and what is made from it (%(default)s)")
    add_split(p)
    flag("--parallel", type=count, default=8, metavar="N", help="requests at a time (8)")
    flag("--tries", type=count, default=4, metavar="N", help="of a problem, until it is rejected (4)")
    flag("--temperature", type=number(0, 2), default=0.0, help="of the first try; the last has 1 (0)")
    flag("--max-tokens", type=count, default=1024, metavar="N", help="of a reply (1024)")
    flag("--extra", type=json_object, default={}, metavar="JSON", help="more fields; null takes one out")
    flag("--budget-tokens", type=count, metavar="N",
         help="begin no further problem when so many are used, earlier runs' included")
    flag("--timeout", type=number(0, 86400, above=True), default=300.0, metavar="SECONDS", help="(300)")
    flag("--retries", type=whole_number(0), default=8, metavar="N", help="of a failed request (8)")
    flag("--dry-run", action="store_true", help="show the first request and leave")


def add_self_flags(p):
    """The flags of self."""
    flag, count = p.add_argument, whole_number(1)
    flag("file", type=Path, metavar="FILE", help="problems with their answers")
    flag("--decomposer", type=Path, default=Path("runs/decomposer"), metavar="DIR", help="(%(default)s)")
    flag("--solver", type=Path, default=Path("runs/solver"), metavar="DIR", help="(%(default)s)")
    flag("--samples", type=count, default=8, metavar="K", help="of a problem at most (8)")
    flag("--keep", type=count, default=4, metavar="N", help="new annotations of a problem at most (4)")
    flag("--temperature", type=number(0, 10, above=True), default=0.7, help="(0.7)")
    flag("--top-k", type=whole_number(0), default=0, metavar="K", help="sample from the K likeliest tokens")
    flag("--top-p", type=number(0, 1, above=True), default=1.0, metavar="P",
         help="sample from the likeliest tokens whose probabilities sum to P (1)")
    flag("--limit", type=count, metavar="N", help="only the first N problems")
    flag("--out", type=Path, default=Path("annotations/self.jsonl"), metavar="FILE", help="(%(default)s)")
    flag("--rows", type=count, default=64, metavar="N", help="problems solved at once (64)")
    flag("--device", help="(cuda or mps if there is one, else cpu)")
    add_seed_and_force(p)


def add_check_flags(p):
    """The flags of check."""
    p.add_argument("files", nargs="+", type=Path, metavar="FILE")
    p.add_argument("--role", choices=ROLES, default="solver", help="whose sequences are measured (solver)")
    p.add_argument("--block-size", type=whole_number(1), default=512, metavar="N", help="tokens (512)")
    p.add_argument("--tokenizer", metavar="DIR", help="a student's, or gpt2 (one trained on the first file)")
    p.add_argument("--all", action="store_true", help="list all that is wrong, not the first 10 of a kind")


def parse_args(argv):
    """The flags of annotate.py. Raises UserError (status 2) for bad usage."""
    p = Parser(description="Write annotated problems, or check them.", epilog="Without a command: templates.")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add_command(name, run, text):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        return command

    add_template_flags(add_command("templates", templates, "the template teacher: problems of its own"))
    add_converter_flags(add_command("gsm8k", convert, "convert GSM8K's files, main and Socratic"), "gsm8k")
    add_converter_flags(add_command("svamp", convert, "convert SVAMP.json and train.csv files"), "svamp")
    add_converter_flags(add_command("strategyqa", convert, "convert StrategyQA's train.json"), "strategyqa")
    add_teacher_flags(add_command("teacher", llm_teacher, "let a model annotate, at an OpenAI-like server"))
    add_self_flags(add_command("self", self_teacher, "let students find further solutions of known problems"))
    add_check_flags(add_command("check", check, "check annotation files; status 1 if anything is wrong"))

    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["templates", *argv]
    args = p.parse_args(argv)
    if args.run is self_teacher and args.out.suffix != ".jsonl":
        raise UserError(f"--out {args.out}: expected a file, ...jsonl", 2)
    return args


def main():
    """Parse, then run the chosen command."""
    args = parse_args(sys.argv[1:])
    args.run(args)


if __name__ == "__main__":
    run_script(main)
