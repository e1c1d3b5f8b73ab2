"""Make files of annotated problems, and check them. Who annotates is the command:

    python annotate.py                                      # the template teacher: 50,000 problems of its own
    python annotate.py gsm8k train_socratic.jsonl           # a published dataset; also svamp and strategyqa
    python annotate.py teacher problems.jsonl --url http://localhost:8000/v1 --model NAME      # an LLM
    python annotate.py self problems.jsonl                  # trained students, on problems with known answers
    python annotate.py check annotations/train.jsonl annotations/valid.jsonl

All but `check`, which reads, write rows as data.py shows one, for train.py. What a model wrote is kept only
if its equations compute and it ends at the problem's known answer.
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
from itertools import accumulate, product
from multiprocessing.pool import ThreadPool
from pathlib import Path
from random import Random
from typing import NamedTuple
from urllib.parse import urlsplit

import requests  # brought along by tiktoken, as is urllib3
import urllib3
from tqdm import tqdm

from data import (
    ANNOTATION, MARK, Parser, UserError, annotate_equations, atomic_write, calculate, check_problem,
    get_device, invalid_annotations, matches_answer, number, one_line, parse_number, read_problems, read_rows,
    read_run_file, run_script, same_answer, states_answer, to_jsonl, whole_number, write_problems)
from infer import Sampling, load_student, socratic, solve

SPLITS = "train", "valid", "test"


# ---- the template teacher ----------------------------------------------------------------------------------
# How a problem is made. An opening draws a quantity, say Tom's apples. Then entries of KINDS that take such a
# quantity go on from it, as many as the problem is to have steps:
#
#     kind("gain", "own", "own", 76, "a + b: now", "{S} [GET] {b added T} {where}. | ...")
#
# Each tells a fact, draws what the fact needs, and finds a new quantity, from which the next entry goes on:
#
#     facts        {S} [have] {a T}.                  S = Tom, a = 5, T = apples
#                  {S} [GET] {b added T} {where}.     GET = buy, b = 3, where = at the market
#     step         5 + 3, asked for in the wordings QUESTIONS["now"]
#     problem      Tom has 5 apples. He buys another 3 apples at the market. How many apples does he have now?
#
# In an equation, a is the value of the quantity that a kind goes on from, x what the step before has found;
# DRAW says how other letters are drawn. What stands in {} and [] is explained above TELL. First comes the
# code (story, fields, how it begins and goes on, sentences, problem), then the language (wordings, forms of
# words, words).


# ---- the template teacher: a story and its world -----------------------------------------------------------

class DeadEnd(Exception):
    """This story cannot go on; begin another."""


def require(condition):
    """Raise DeadEnd unless the condition holds."""
    if not condition:
        raise DeadEnd


@dataclass(frozen=True)
class Thing:
    """What is counted: red apples, dollars, pages."""
    one: str
    many: str = ""
    sort: str = ""  # see NOUNS
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


@dataclass(eq=False)
class Entity:
    """Whom or what a sentence is about."""
    name: str
    sex: str = "it"  # he, she, it or they; I, we
    first: str = ""  # how a story introduces it: "a farmer", "brother"; "they" of two who are known;
                     # "-": as always, and never by a pronoun
    owner: "Entity" = None  # whose brother

    @property
    def many(self):
        """Whether its verbs are those of many."""
        return self.sex in ("they", "we", "I")


@dataclass(frozen=True)
class Quantity:
    """What a story is about at some point: of whom, what, when or where, and how much."""
    form: str               # which KINDS take it: "own", "act", "there", ... (see OPENINGS and GIVES)
    S: Entity = None        # whose it is, or who does it; None: things that are there
    V: str = "have"         # the verb
    T: Thing = None         # what is counted
    tail: str = ""          # when or where
    value: Fraction = None  # None: not told yet
    others: dict = field(default_factory=dict)  # what it may be compared with: {"tail": ["on Tuesday"]}
    extra: dict = field(default_factory=dict)   # more fields of its wordings
    also: tuple = ()                            # more forms that it has


class Fact(NamedTuple):
    """What one sentence or two tell: the name of a Kind or of an entry of TELL, one of its wordings, and what
    fills it."""
    kind: str
    wording: str
    fields: dict


class Step(NamedTuple):
    """What is found: the equation "5+3", its value, wordings that ask for it, and what fills them."""
    equation: str
    value: Fraction
    wordings: list
    fields: dict


class Story:
    """A problem in the making: what it tells (facts), and what is found step by step (steps).

    level: 1; 2: facts that are TIMELESS are told in any order, and comparisons backwards by names alone, "Tom
    has 3 more than Ann"; 3: more of these. wordings: "all"; "train": all but those held out; "test": these
    alone.
    """

    def __init__(self, rng, words, n_steps, level=1, wordings="all"):
        self.rng, self.words, self.n_steps, self.level, self.allowed = rng, words, n_steps, level, wordings
        self.tense = rng.choice(("past", "past", "present"))
        self.now = "present" if self.tense == "present" or rng.random() < 0.5 else "past"
        self.size = rng.choices((12, 20, 100, 1000, 10_000, 1_000_000), (14, 22, 36, 16, 6, 6))[0]
        self.facts, self.steps, self.people = [], [], []
        self.mixed = False    # whether it tells of several things
        self.changed = ""     # "now" if of the quantity something has just been gained, "left" if lost
        self.ordered = False  # whether its facts must stay in their order
        self.ways = []        # "S", "tail" or "T": how the quantities differ that it has compared
        self.compared = None  # with what the last step compared, and in which way they differ

    @property
    def steps_left(self):
        """How many steps are still to come."""
        return self.n_steps - len(self.steps)

    def chance(self, probability):
        return self.rng.random() < probability

    def pick(self, options):
        """One of a list; DeadEnd if it is empty."""
        require(options)
        return self.rng.choice(options)

    # -- words

    def person(self):
        sex = self.pick(("he", "she"))
        draw = 1 if self.words.made_up_names else self.rng.random()
        if draw < 0.07:
            title = "Mr." if sex == "he" else self.pick(("Mrs.", "Ms."))
            name = self.words.new(lambda: f"{title} {self.pick(SURNAMES)}")
        elif draw < 0.12:
            name = self.words.new(lambda: self.pick(FAMILY[sex]))
        else:
            name = self.words.name(sex)
        self.people.append(Entity(name, sex))
        return self.people[-1]

    def someone(self):
        """Mostly a person with a name, else "I" or "we"."""
        word = self.pick(("I", "I", "we"))
        return Entity(word, word, "-") if self.chance(0.08) else self.person()

    def holder(self):
        """Who has things: as `someone`, or a farmer, a shop."""
        draw = self.rng.random()
        if draw < 0.8:
            return self.someone()
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

    def thing(self, sorts="fgtsch"):
        return self.words.thing(sorts)

    def second_thing(self, thing):
        """Another thing beside this one."""
        self.mixed = True
        return self.thing(thing.sort or "fgtsch")

    def container(self, thing, boxes=None):
        """What a thing is kept in."""
        boxes = boxes or CONTAINERS.get(thing.sort, BOXES)
        return Thing(self.pick([box for box in boxes if box not in thing.one and box not in self.words.used]))

    def verb(self, verbs, thing, who):
        """One of `verbs` (GAINS or LOSSES) that goes with a thing; for a shop or a school of FOR_PLACES."""
        return self.pick([verb for verb, sorts in verbs if thing.sort and thing.sort in sorts
                          and (not who or who.sex != "it" or verb in FOR_PLACES)])

    # -- numbers

    def amount(self, low=2, high=None):
        """A number of the story's size; among large ones, smaller ones are more likely."""
        high = self.size if high is None else min(high, self.size)
        require(high >= low)
        if high <= 100:
            return self.rng.randint(low, high)
        return min(high, max(low, int(math.exp(self.rng.uniform(math.log(max(low, 5)), math.log(high + 1))))))

    def few(self, low=2, high=12):
        """A number of boxes, days, friends."""
        return self.rng.randint(low, high if self.size < 1000 else 3 * high)

    def price(self):
        """A price: mostly whole dollars."""
        if self.chance(0.12):
            return Fraction(self.rng.randint(2, 60), 4)
        return self.rng.randint(2, max(30, min(self.size // 20, 3000)))

    def less_than(self, top):
        """A number below `top`."""
        return self.amount(2, math.ceil(top) - 1)

    def divisor(self, value, choices):
        """One of `choices` that divides a value."""
        return self.pick([k for k in choices if value % k == 0 and value > k])

    def first_value(self, form):
        """The value that a story begins with; often one that can be shared."""
        if form in ("price", "spent"):
            return self.price()
        return self.few() * self.few() if self.chance(0.35) else self.amount(3)

    # -- telling and finding

    def tell(self, kind, wordings, fields, place=None):
        """Add a fact, in one of its wordings for which all fields are there; that at place 1 is held out for
        test files. place: where among the facts (the end).
        """
        if self.allowed != "all":
            wordings = wordings[1:2] if self.allowed == "test" else wordings[:1] + wordings[2:]
        for wording in self.in_random_order(wordings):
            if can_fill(wording, fields):
                place = len(self.facts) if place is None else place
                return self.facts.insert(place, Fact(kind, wording, fields))
        raise DeadEnd

    def in_random_order(self, wordings):
        """The wordings shuffled; with probability PLAIN the first one comes before them."""
        plain = wordings[:1] if self.chance(PLAIN) else []
        return plain + self.rng.sample(wordings, len(wordings))

    def tell_quantity(self, quantity):
        """Tell a quantity with its value, in the wordings of its form."""
        form = "act" if quantity.form == "own" and quantity.V != "have" else quantity.form
        self.tell(form, TELL[form], Fields(self, quantity))

    def find(self, equation, asks, fields):
        """The next step: its value becomes the field x. Raises DeadEnd where the value is no number for a
        child, or where the same has been asked before.
        """
        left, sign, right = equation.split(" ")
        operands = [Fraction(fields[one] if one.isalpha() else one) for one in (left, right)]
        fields["x"] = value = COMPUTE[sign](*operands)
        require(1 <= value <= 1_000_000 and (100 * value if fields["T"].money else value).denominator == 1)
        wordings = questions_for(asks, fields.quantity)
        step = Step(sign.join(map(SPEAKER.number, operands)), value, wordings, fields)
        question = self.sub_question(step)
        require(question not in map(self.sub_question, self.steps))
        self.steps.append(step)
        self.compared = None
        return value

    def sub_question(self, step):
        """How a step is asked for: "How many does Tom have now?" What is counted is named only where a story
        tells of several things.
        """
        clear = not self.mixed and not step.fields["T"].money
        wording = step.wordings[0]
        wording = re.sub(r"How many \{T\} (?!and)", "How many ", wording) if clear else wording
        require(can_fill(wording, step.fields))
        return self.ask(wording, step.fields, SPEAKER)

    def ask(self, wording, fields, speaker, tense=None):
        """A question. tense: "will" or "would", where the sentence before it is a condition."""
        if "DO]" not in wording:  # not "how old will be Tom?"
            tense = None
        if re.search(r"at first|in the beginning|to begin with|\{S\} start", wording):
            tense = "past"
        now = "present" if re.search(r"\bnow\b", wording) else self.now
        return capital(fill(wording, fields, tense or self.tense, tense or now, speaker))


COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def questions_for(asks, quantity):
    """How QUESTIONS asks for what a step finds: of this form of quantity, if it has questions of its own."""
    form = quantity.form
    if asks == "same":
        asks = "act" if form == "own" and quantity.V != "have" else {"own": "have"}.get(form, form)
    names = f"{asks} {form}", f"{asks} money" if quantity.T.money else asks, asks
    return next(QUESTIONS[name] for name in names if name in QUESTIONS)


# ---- the template teacher: the fields of wordings and equations --------------------------------------------

class Fields(dict):
    """What stands for the names in wordings and equations: of a quantity, drawn as DRAW says, or None."""

    def __init__(self, story, quantity, **given):
        super().__init__({"S": quantity.S, "V": quantity.V, "T": quantity.T, "tail": quantity.tail,
                          "a": quantity.value} | quantity.extra | given)
        self.story, self.quantity = story, quantity

    def __missing__(self, name):
        if name in DRAW:
            self[name] = DRAW[name](self.story, self)
            return self[name]
        small = uncapital(name)
        if small != name and (small in self or small in DRAW):
            return capital(str(self[small]))  # {Tail}


DRAW = {  # drawn where a wording or an equation has them
    # numbers
    "b": lambda story, f: story.amount(),
    "c": lambda story, f: story.amount(),
    "l": lambda story, f: story.less_than(f["a"]),
    "g": lambda story, f: f["a"] + story.amount(),
    "d": lambda story, f: story.divisor(f["a"], range(2, 26)),
    "j": lambda story, f: story.divisor(f["a"], range(2, 11)),
    "q": lambda story, f: story.divisor(f["a"], (3, 4, 5, 6, 10)),
    "z": lambda story, f: story.divisor(f["x"], range(2, 51)),
    "h": lambda story, f: 2,
    "k": lambda story, f: story.pick((2, 2, 2, *range(3, 11))),
    "n": lambda story, f: story.few(),
    "w": lambda story, f: story.pick([n for n in range(2, 9) if n != f.get("n")]),
    "v": lambda story, f: story.less_than(f["x"] if "x" in f else f["a"] - f["l"]),
    "o": lambda story, f: story.rng.randint(1, f["b"] - 1),
    "y": lambda story, f: story.rng.randint(2, 20),
    "m": lambda story, f: story.amount(2, 60 if story.size <= 1000 else None),
    "r": lambda story, f: story.rng.randint(2, 10) if f["T"].one == "hour" else story.amount(2, 2000),
    "p": lambda story, f: story.price(),
    "f": lambda story, f: story.price(),
    "s": lambda story, f: f["n"] * f["p"],
    "t": lambda story, f: f["n"] * f["m"],
    "u": lambda story, f: f["n"] * f["r"],
    "i": lambda story, f: story.pick([bill for bill in BILLS if bill > f.get("x", f["a"])][:2]),
    # verbs, people, things
    "GET": lambda story, f: story.verb(GAINS, f["T"], f["S"]),
    "LOSE": lambda story, f: story.verb(LOSSES, f["T"], f["S"]),
    "BUY": lambda story, f: story.pick(("buy", "buy", "order", "get")),
    "USE": lambda story, f: "use" if f["T"].sort and f["T"].sort in "fghs" else None,
    "DOING": lambda story, f: story.pick(DOINGS),
    "O": lambda story, f: story.other(f["S"]),
    "M": lambda story, f: story.person(),
    "friends": lambda story, f: Thing(story.pick(SHARERS)),
    "groups": lambda story, f: story.container(f["T"]),
    "things": lambda story, f: story.thing(),
    "things2": lambda story, f: story.thing(),
    "T2": lambda story, f: story.second_thing(f["T"]),
    "units": lambda story, f: Thing(story.pick(("day", "day", "day", "week", "hour", "month"))),
    "money": lambda story, f: DOLLARS,
    "weeks": lambda story, f: Thing("week"),
    "age": lambda story, f: story.rng.randint(6, 60) if f["S"] in (None, *story.people) else None,
    "clock": lambda story, f: str(story.rng.randint(1, 12)),
    # texts
    "T1": lambda story, f: None if f["T"].money else f["T"].one,
    "a_T1": lambda story, f: article(f["T"].one),
    "friend": lambda story, f: f["friends"].one,
    "group": lambda story, f: f["groups"].one,
    "thing": lambda story, f: f["things"].one,
    "a_thing": lambda story, f: article(f["things"].one),
    "thing2": lambda story, f: f["things2"].one,
    "a_thing2": lambda story, f: article(f["things2"].one),
    "unit": lambda story, f: f["units"].one,
    "many": lambda story, f: "much money" if f["T"].money else f"many {f['T']}",
    "number": lambda story, f: "amount of money" if f["T"].money else f"number of {f['T']}",
    "them": lambda story, f: ("the money" if f["T"].money else THEM_NOW[story.changed] if story.changed
                              else "the {T}" if story.mixed else story.pick(THEM)),
    "box": lambda story, f: story.container(f["T"]).one if f["T"].sort else None,
    "item": lambda story, f: article(story.thing("ftsch").one),
    "item2": lambda story, f: article(story.thing("ftsch").one),
    "the_item": lambda story, f: "the " + f["item"].partition(" ")[2],
    "the_item2": lambda story, f: "the " + f["item2"].partition(" ")[2],
    "at": lambda story, f: "in",
    "where": lambda story, f: story.pick(WHERE) if story.chance(0.7) else "",
    "store": lambda story, f: story.pick(STORES) if story.chance(0.7) else "",
    "here": lambda story, f: story.pick(HERE),
    "later": lambda story, f: story.pick(LATER),
    "job": lambda story, f: story.pick(JOBS),
    "per": lambda story, f: story.pick((article(f["unit"]), *(f"{each} {f['unit']}" for each in EACH))),
    "each_unit": lambda story, f: f"{story.pick(EACH[:2])} {f['unit']}",
    "bill": lambda story, f: story.pick((f"a ${f['i']} bill", f"a {f['i']}-dollar bill")),
    "adjectives": lambda story, f: [thing.adjective for thing in with_adjectives(story, f["T"])],
    "adj": lambda story, f: f["adjectives"][0],
    "adj2": lambda story, f: f["adjectives"][1],
    "adj3": lambda story, f: f["adjectives"][2] if len(f["adjectives"]) > 2 else None,
    "adj1": lambda story, f: f["T"].adjective or None,
    "rest": lambda story, f: story.pick(("the rest", "the others", "all the others", "the remaining {T}")),
    "now_g": lambda story, f: story.pick(NOW_HAS).replace("#", "{g T}"),
    "now_l": lambda story, f: story.pick(NOW_HAS).replace("#", "{l T}"),
    "now_c": lambda story, f: story.pick(NOW_HAS).replace("#", "{c T} left"),
    "while": lambda story, f: story.pick(WHILES),
    "crowd": lambda story, f: story.pick(CROWDS_AT_WORK),
}


# ---- the template teacher: how a story begins --------------------------------------------------------------
# An opening draws a quantity that has no value yet and is not told.


def first_of(name, options):
    """The fields of a quantity that is the first of several: "on Monday", and what the others are."""
    return {name: options[0], "others": {name: options[1:]}}


def with_adjectives(story, thing):
    """A thing with two adjectives or more: red apples, green apples."""
    require(thing.sort and not thing.adjective and not thing.content)
    fit = FITTING.get(thing.sort, FITTING["other"])
    group = story.pick([group for group in ADJECTIVES if all(one in fit for one in group)])
    return [replace(thing, adjective=adjective) for adjective in story.rng.sample(group, len(group))]


def open_own(story):
    """Tom has 5 apples; 5 red apples; picks 5 apples on Monday; has 5 boxes."""
    thing, draw = story.thing("fgtscha"), story.rng.random()
    quantity = Quantity("own", story.holder(), "have", thing)
    if draw < 0.15:
        return replace(quantity, **first_of("T", with_adjectives(story, thing)))
    if draw < 0.2:
        return replace(quantity, **first_of("T", story.rng.sample(story.pick(WHOLES[PEOPLE_WHOLES:])[:2], 2)))
    if draw < 0.3:
        return replace(quantity, V=story.verb(GAINS, thing, quantity.S))
    if draw < 0.4:
        story.tense, verb = "past", story.verb(GAINS, thing, quantity.S)
        return replace(quantity, form="act", V=verb, **first_of("tail", story.pick(TIMES)))
    if draw < 0.48 and story.steps_left > 1 and thing.sort != "a" and thing.one not in BOXES:
        boxes = replace(story.container(thing, BOXES), sort="h", content=thing)
        return replace(quantity, T=boxes, also=("boxes",), extra={"content": thing})
    return quantity


def open_act(story):
    """Tom reads 5 pages on Monday."""
    quantity = Quantity("act", story.someone(), *story.pick(ACTS))
    if story.chance(0.3):
        return quantity
    story.tense = "past"
    return replace(quantity, **first_of("tail", story.pick(TIMES)))


def open_there(story):
    """There are 5 birds in the tree; 5 red pens in the bag; 5 boys in the class."""
    draw = story.rng.random()
    if draw < 0.5:
        thing, where, comes, goes = story.pick(SCENES)
        return Quantity("there", T=thing, tail=where, extra={"COME": comes, "GO": goes})
    if draw < 0.75:
        thing, places = story.thing(), story.pick(SPOTS)
        several = first_of("tail", places)
        if story.chance(0.4):
            several = first_of("T", with_adjectives(story, thing)) | {"tail": places[0]}
        return Quantity("there", **{"T": thing} | several, extra={"COME": "be added", "GO": "be taken away"})
    several = first_of("T", story.rng.sample(story.pick(WHOLES[:PEOPLE_WHOLES])[:2], 2))
    return Quantity("there", tail=story.pick(CROWDS), **several, extra={"COME": "come", "GO": "leave"})


def open_money(story):
    """Tom has $5."""
    return Quantity("money", story.someone(), "have", DOLLARS)


def open_spent(story):
    """Tom spends $14 on a hat."""
    return Quantity("spent", story.someone(), "spend", DOLLARS)


def open_price(story):
    """The hat costs $12."""
    names = [story.thing().one for _ in range(2)]
    items = [Entity(f"the {name}", "it", article(name)) for name in names]
    return Quantity("price", items[0], "cost", DOLLARS, others={"S": items[1:]})


def open_be(story):
    """Tom is 5 years old; the rope is 5 meters long."""
    what, unit, adjective, *opposite = story.pick(MEASURES)
    if what == "person":
        who = [story.person()]
        who.append(story.other(who[0]))
    elif adjective == "old":
        who = [Entity(f"{story.person().name}'s {what}", "it", "-") for _ in range(2)]
    else:
        who = [Entity(f"the {word} {what}") for word in story.pick(WHICH)]
    more, less, side = DEGREES[adjective]
    grows = what in ("tree", "plant", "snake") or (what, adjective) == ("person", "tall")
    also = ("grows",) if grows else ("cut",) if what in ("rope", "ribbon", "board", "stick") else ()
    form = {"old": "age", "heavy": "weigh"}.get(adjective, "be")
    story.size = min(story.size, 40 if form == "age" else 200)
    story.tense = "present" if form == "age" else story.tense
    extra = {"adj": adjective, "more": more, "less": opposite[0] if opposite else less, "side": side}
    return Quantity(form, who[0], "be", Thing(unit), others={"S": who[1:]}, extra=extra, also=also)


def open_groups(story):
    """Seats in rows, cookies in jars."""
    thing, at = story.thing(), "in"
    if story.chance(0.5):
        item, group, at = story.pick(GROUPS)
        thing, group = Thing(item), Thing(group)
    else:
        group = story.container(thing)
    extra = {"groups": group, "at": at, "COME": "be added", "GO": "be taken away"}
    return Quantity("groups", T=thing, extra=extra)


def open_crowd(story):
    """Some children have so many crayons each."""
    friends = Thing(story.pick(SHARERS))
    who = Entity(f"the {friends}", "they", "-")
    return Quantity("crowd", who, T=story.thing(), extra={"friends": friends})


def open_shop(story):
    """Tom buys pens."""
    return Quantity("shop", story.someone(), "buy", DOLLARS)


def open_rate(story):
    """Tom reads so many pages a day."""
    verb, noun, unit = story.pick(RATES)
    thing = Thing(noun)
    if story.chance(0.4):
        (verb, thing), unit = story.pick(ACTS), story.pick(("day", "day", "day", "week", "month"))
    vehicle = Entity(f"the {story.pick(('train', 'plane', 'bus', 'car', 'ship'))}")
    who = vehicle if verb == "travel" else story.someone()
    return Quantity("rate", who, verb, thing, extra={"units": Thing(unit)})


def open_parts(story):
    """Dogs have 4 legs, weeks 7 days."""
    name, n, part = story.pick(HAVE_PARTS + UNITS)
    form = "parts" if [name, n, part] in HAVE_PARTS else "units"
    story.tense = "present"
    return Quantity(form, story.person(), T=Thing(name), extra={"e": int(n), "parts": Thing(part)})


def open_field(story):
    """A garden is 5 meters long and 4 wide."""
    story.size = min(story.size, 200)
    field = story.pick(FIELDS)
    return Quantity("field", Entity(f"the {field}", "it", article(field)), "be",
                    Thing(story.pick(("meter", "foot", "yard"))))


OPENINGS = {  # how often one begins a problem of one step, and one of several
    open_own: (50, 64), open_act: (11, 11), open_there: (16, 12), open_money: (6, 6), open_be: (7, 5),
    open_groups: (8, 6), open_shop: (10, 10), open_rate: (10, 7), open_price: (4, 2), open_spent: (6, 8),
    open_crowd: (2, 2), open_parts: (2, 1), open_field: (2, 2)}


# ---- the template teacher: how a story goes on -------------------------------------------------------------

GIVES = {  # the quantity that a kind gives, of the one that it has taken and its fields
    "own": lambda old, f: replace(old, form="own", V="have", tail=""),
    "act": lambda old, f: replace(old, form="act", tail="", others={}),
    "there": lambda old, f: replace(old, form="there", others={}),
    "grouped": lambda old, f: replace(old, form="there", also=("grouped",)),
    "money": lambda old, f: Quantity("money", old.S, "have", DOLLARS),
    "spent": lambda old, f: Quantity("spent", old.S, "spend", DOLLARS),
    "content": lambda old, f: Quantity("own", old.S, "have", f["content"]),
    "end": lambda old, f: old,
}
LAST = "end", "difference", "part", "two", "three"  # a story ends with what these kinds give


def go_on(story, quantity):
    """Tell what happens to a quantity and find the one that comes of it. Raises DeadEnd."""
    kind = draw_kind(story, quantity)
    if quantity.value is None:
        quantity = replace(quantity, value=story.first_value(quantity.form))
        if not kind.takes[0].endswith("?"):
            story.tell_quantity(quantity)
    go = {"other": relate, "part": other_part, "joint": put_together, "difference": put_together,
          "two": ask_about_two, "three": add_three}.get(kind.gives, happen)
    return go(story, kind, quantity)


def happen(story, kind, quantity):
    """Tell what a kind tells, and find what it asks for."""
    fields = Fields(story, quantity)
    for equation, asks in kind.steps:  # this draws the numbers that are told
        value = story.find(equation, asks, fields)
    if kind.say:
        story.tell(kind.name, kind.say, fields)
    for _, asks in kind.steps:
        if asks in THEM_NOW:
            story.changed = asks
    return replace(GIVES[kind.gives](quantity, fields), value=value)


def draw_kind(story, quantity):
    """One of the KINDS that take such a quantity, with as many steps as the story has left, or with fewer."""
    forms = {quantity.form, *quantity.also}
    forms |= {f"{form}?" for form in forms} if quantity.value is None else set()
    fit, weights, left = [], [], story.steps_left
    bought = story.facts and story.facts[-1].kind == "had money"
    for kind in KINDS:
        left_then = left - len(kind.steps)
        if forms.isdisjoint(kind.takes) or left_then < 0 or left_then > 0 and kind.gives in LAST:
            continue
        if story.steps and not any("a" in equation for equation, _ in kind.steps):
            continue  # nobody would need what the steps before have found
        if kind.steps[0][1] in ("got", "lost", "came", "went") and kind.gives == "end" and story.changed:
            continue  # "6 come. Later some more come. How many come?"
        if kind.steps[0][1] == "need" and "act" in kind.takes and "tail" in story.ways:
            continue  # what was done on another day is part of the goal
        if kind.takes == ["boxes"] and story.ways:
            continue  # others have boxes too
        if kind.gives in ("other", "joint", "difference") and bought:
            continue  # "He had $20 at first. Ann had $3 more." More than he had then, or has now?
        fit.append(kind)
        rare = story.level < 3 and kind.backwards
        weights.append(kind.weight / 4 if rare else kind.weight)
    require(fit)
    return story.rng.choices(fit, weights)[0]


def other_quantity(story, quantity, only=None):
    """A quantity that can be compared with this one: of another person, time, place or thing; and in what
    they differ: "S", "tail" or "T". only: in this.
    """
    ways = [way for way in ("S", "tail", "T") if quantity.others.get(way)] * 4
    if quantity.S in story.people and "S" not in ways:
        ways += ["S"] * 3
    plain = quantity.T.sort and not quantity.T.adjective and not quantity.T.content and not quantity.others
    if quantity.form in ("own", "there") and plain:
        ways += ["T"] * 2
    way, others = story.pick([way for way in ways if only in (None, way)]), dict(quantity.others)
    if others.get(way):
        new, *others[way] = others[way]
    else:
        new = story.other(quantity.S) if way == "S" else story.thing(quantity.T.sort)
    story.mixed |= way == "T"
    story.ways.append(way)
    extra = {} if way == "tail" else quantity.extra  # birds come, but to which of two places?
    return replace(quantity, value=None, others=others, extra=extra, **{way: new}), way


def with_value(story, quantity):
    """A quantity with a value that is drawn."""
    return replace(quantity, value=story.price() if quantity.form == "price" else story.amount())


def reference(story, quantity, way):
    """The fields of what something is compared with: {ref} is Tom, "on Monday" or "red apples"."""
    ref = {"S": quantity.S, "tail": quantity.tail, "T": str(quantity.T)}[way]
    if way in ("tail", "T"):
        return {"ref": ref}
    if quantity.form == "price":
        return {"ref": ref, "one": ref}
    verb = "have" if quantity.V == "have" else "do"
    return {"ref": ref, "one": ref, "do": conjugate(verb, story.tense, quantity.S.many)}


def relate(story, kind, quantity):
    """Ann has 3 more apples than Tom; or backwards: Tom has 3 more than Ann, and Ann's are asked for."""
    other, way = other_quantity(story, quantity)
    told, ref = (quantity, other) if kind.backwards else (other, quantity)
    fields = Fields(story, told, **{"a": quantity.value} | reference(story, ref, way))
    asked = Fields(story, other, **{"a": quantity.value} | {equation[-1]: fields[equation[-1]]
                                                            for equation, _ in kind.steps})
    for equation, asks in kind.steps:
        value = story.find(equation, asks, asked)
    named = not kind.backwards or story.level > 1  # backwards, "Tom has 3 more than Ann" is too hard
    is_first = named and len(story.facts) == 1 and story.chance(0.3)  # told before what it is compared with
    follows = story.level == 1 and not is_first and story.facts[-1].fields.quantity is quantity
    if named:
        fields["named"] = ""
    if follows and (way == "S" or kind.backwards):
        fields["brief"] = ""
    story.tell(kind.name, kind.say, fields, place=0 if is_first else None)
    story.compared, story.changed = (quantity, way), ""
    return replace(other, value=value)


def put_together(story, kind, quantity):
    """How many do Tom and Ann have together? How many more has Ann than Tom? Ann's are told, or were compared
    with Tom's.
    """
    if kind.say:
        other, way = other_quantity(story, quantity)
        other = with_value(story, other)
        two = quantity, other
        if way == "T" and not story.steps and quantity.form != "price" and story.chance(0.4):
            del story.facts[-1]  # it is told again, with the other
            tell_row(story, two, "2 T")
        else:
            story.tell_quantity(other)
    else:
        require(story.compared)
        other, way = story.compared
        two = other, quantity
    (equation, asks), = kind.steps
    if kind.gives == "joint":
        joint, tail = join_quantities(story, *two, way)
        days = [one for one in story.ways if one != "S"]
        require(days == ([way] if way != "S" else []))  # no other day or thing is left out
        story.ways = []
        last = story.steps_left == 1  # nothing can happen to "apples and pears", or to a sum of ages
        require(last or joint.T.one != "thing" and joint.form not in ("age", "weigh"))
        require(joint.form != "age" or quantity.S in story.people)
        story.ordered |= story.steps_left > 1
        story.changed = ""
        fields = Fields(story, joint, a=two[0].value, b=two[1].value, tail=tail)
        if way == "S" and len(story.people) == 2:
            fields["both"] = story.pick(("both", "the two"))
        if way == "tail":
            fields["both_times"] = (BOTH_TIMES.get(quantity.tail) or BOTH_TIMES.get(other.tail)
                                    or "in both places")
        return replace(joint, value=story.find(equation, asks, fields))
    find_difference(story, kind, two, way)
    return quantity


def find_difference(story, kind, two, way):
    """How many more has Ann than Tom? Or how many fewer has Tom."""
    (equation, asks), = kind.steps
    small, big = sorted(two, key=lambda one: one.value)
    told, ref = (small, big) if asks == "fewer" else (big, small)
    fields = Fields(story, told, **reference(story, ref, way) | {"a": big.value, "b": small.value})
    story.find(equation, asks, fields)


def ask_about_two(story, kind, quantity):
    """Several quantities are told and two are asked for: the question decides which numbers are needed.

    They are three in a row, pages on Monday, Tuesday and Friday; or two by two, Tom's and Ann's apples and
    pears.
    """
    is_new = not story.steps  # else the steps before have found it: it is one of the two
    other, way = other_quantity(story, quantity)
    row = [quantity, with_value(story, other)]
    story.ordered = True
    if is_new and way != "T" and quantity.T.sort and quantity.form != "price" and story.chance(0.5):
        second = other_quantity(story, replace(quantity, others={}), only="T")[0].T
        del story.facts[-1]  # it is told again, with the second thing
        table = [[one, with_value(story, replace(one, T=second))] for one in row]
        for row in table:
            tell_row(story, row, "2 T")
        two = story.pick(list(zip(*table)))
        if story.chance(0.5):
            two, way = story.pick(table), "T"
    else:
        row.append(tell_two_more(story, quantity, row[1], way))
        two = story.rng.sample(row, 2) if is_new else [quantity, story.pick(row[1:])]
    (equation, asks), = kind.steps
    if asks == "diff":
        find_difference(story, kind, two, way)
    else:
        joint, tail = join_quantities(story, *two, way, alone=False)
        story.find(equation, asks, Fields(story, joint, a=two[0].value, b=two[1].value, tail=tail))
    return quantity


def tell_two_more(story, quantity, second, way):
    """Tell two more quantities beside one: another day, person or thing each. Returns the third."""
    third = with_value(story, other_quantity(story, second, only=way)[0])
    require({*story.ways} == {way})  # no other day or thing is left out
    told_by = f"3 {way}"
    if not story.steps and told_by in TELL and quantity.form != "there" and story.chance(0.6):
        del story.facts[-1]  # it is told again, in one sentence with these
        tell_row(story, [quantity, second, third], told_by)
    else:
        story.tell_quantity(second)
        story.tell_quantity(third)
    return third


def add_three(story, kind, quantity):
    """Pages on Monday, Tuesday and Friday: how many in all? Tom's, Ann's and Bob's: how many together?"""
    other, way = other_quantity(story, quantity)
    second = with_value(story, other)
    third = tell_two_more(story, quantity, second, way)
    story.ordered = True
    (first, asks), (last, total) = kind.steps
    two, tail = join_quantities(story, quantity, second, way, alone=False)
    value = story.find(first, asks, Fields(story, two, b=second.value, a=quantity.value, tail=tail))
    whole, tail = join_quantities(story, quantity, second, way)
    if way == "S":
        they = "they" if len(story.people) == 3 and story.chance(0.5) else ""
        names = join([one.S.name for one in (quantity, second, third)])
        whole = replace(whole, S=Entity(names, "they", they))
    elif way == "T" and whole.T.one == "thing":
        names = join(sorted(str(one.T) for one in (quantity, second, third)))
        whole = replace(whole, T=Thing("thing", names))
    story.find(last, total, Fields(story, whole, x=value, c=third.value, tail=tail))
    return quantity


def tell_row(story, row, kind):
    """Tell two or three quantities in one sentence, of the wordings that TELL has for this kind of row:
    "2 T", or "2 T there" of what is there."""
    kind += " there" if row[0].form == "there" else ""
    fields = Fields(story, row[0])
    for k, letter, one in zip((2, 3), "bc", row[1:]):
        fields |= {letter: one.value, f"T{k}": one.T, f"tail{k}": one.tail}
    story.tell(kind, TELL[kind], fields)


def join_quantities(story, first, second, way, alone=True):
    """What two quantities count together; and how a question says so: "in all", "together". alone: whether
    the story has no others of this kind, which would be among all.
    """
    joint = replace(first, value=None, tail="", others={}, also=())
    if way == "S":
        they = "they" if len(story.people) == 2 and story.chance(0.5) else ""
        return replace(joint, S=Entity(name_both(first.S, second.S), "they", they)), "together"
    if way == "tail":
        if not alone:
            return joint, join([first.tail, second.tail])
        return joint, "" if first.form == "there" else "in all"
    names = sorted((str(first.T), str(second.T)))
    both = Thing("thing", join(names))
    if not alone:
        return replace(joint, T=both, tail=first.tail), first.tail
    wholes = [whole for *kinds, whole in WHOLES if sorted(map(str, kinds)) == names]
    both = replace(first.T, adjective="") if first.T.adjective else wholes[0] if wholes else both
    return replace(joint, T=both, tail=first.tail), first.tail if first.form == "there" else "in all"


def name_both(one, other):
    """Two people, shops or things: "Ann and Tom", "Ann and her brother"."""
    if one.owner is other:
        one, other = other, one
    other_name = " ".join((PRONOUNS[one.sex]["'s"], other.first)) if other.owner is one else other.name
    return join([one.name, other_name])


def other_part(story, kind, quantity):
    """Tom has 9 apples in all. 5 of them are green. How many are red?"""
    other, way = other_quantity(story, quantity)
    require(way != "S")
    whole, _ = join_quantities(story, quantity, other, way)
    if way == "tail":
        whole = replace(whole, tail=join([quantity.tail, other.tail]))
    elif quantity.T.adjective:  # there are no others: "9 red and green apples"
        both = join([quantity.T.adjective, other.T.adjective])
        whole = replace(whole, T=replace(quantity.T, adjective=both))
    of_kind = (quantity.T.adjective or str(quantity.T)) if way == "T" else None
    fields = Fields(story, quantity, whole=whole.T, whole_tail=whole.tail, of_kind=of_kind,
                    has="there [+be]" if quantity.form == "there" else "{S} [V]")
    (equation, asks), = kind.steps
    story.find(equation, asks, Fields(story, other, a=quantity.value, g=fields["g"]))
    story.tell(kind.name, kind.say, fields)
    return other


# ---- the template teacher: from wordings to sentences ------------------------------------------------------

class Speaker:
    """How sub-questions speak: names, not pronouns; digits."""

    def name(self, entity, case):
        return self.inflected(entity, entity.name, case)

    def inflected(self, entity, name, case):
        if entity.sex in ("I", "we"):
            return PRONOUNS[entity.sex][case]
        return name + ("'" if entity.sex == "they" and entity.name.endswith("s") else "'s") * (case == "'s")

    def number(self, value):
        return str(int(value)) if value == int(value) else f"{float(value):.2f}"

    def dollars(self, value):
        """A number of dollars without the word."""
        return f"${self.number(value)}"

    def count(self, value, thing, more):
        """The number with its thing; more: "", "more", "fewer", "added" or "of", as in wordings."""
        more = {"more": "more ", "fewer": "less " if thing.money else "fewer "}.get(more, "")
        return f"{self.number(value)} {more}{thing.of(value)}"


class Narrator(Speaker):
    """How the text of a problem speaks: pronouns, numbers in words, "$5", "5 of them"."""

    def __init__(self, rng, mixed, made_up):
        """mixed: whether the story tells of several things, so that "5 of them" could be any. made_up:
        whether its names are, which do not say who is "he" and who "she"."""
        self.rng, self.mixed, self.made_up = rng, mixed, made_up
        self.subject, self.known, self.before, self.here = None, set(), set(), set()
        self.in_words, self.commas, self.signs = rng.random() < 0.15, rng.random() < 0.3, rng.random() < 0.75
        self.pronouns = rng.choice((0.2, 0.6, 0.9))

    def name(self, entity, case):
        self.here.add(entity)
        rival = any(self.made_up or one.sex == entity.sex for one in (self.before | self.here) - {entity})
        rare = entity.sex == "it" and not entity.first
        likely = 0 if rival else self.pronouns * (0.15 if rare else 1)
        if entity is self.subject and entity.first != "-" and self.rng.random() < likely:
            return PRONOUNS[entity.sex][case]
        name, owner = entity.name, entity.owner
        if entity.first == "they" and entity not in self.known:
            self.known.add(entity)
            return PRONOUNS["they"][case]
        if owner:
            whose = PRONOUNS[owner.sex]["'s"] if owner is self.subject else f"{owner.name}'s"
            name = f"{whose} {entity.first}"
        elif entity not in self.known and entity.first not in ("", "-"):
            name = entity.first
        self.known.add(entity)
        return self.inflected(entity, name, case)

    def end(self, subject):
        """A sentence has ended; what it was about is the next one's pronoun."""
        if subject in self.here:
            self.subject = subject
        elif self.subject and self.subject.sex == "it":
            self.subject = None  # "It" would be what this sentence is about
        self.before, self.here = self.here, set()

    def number(self, value):
        if value != int(value):
            return super().number(value)
        if self.in_words and value <= 12:
            return NUMBER_WORDS[int(value)]
        return f"{int(value):,}" if self.commas else str(int(value))

    def dollars(self, value):
        return f"${Speaker.number(self, value)}" if self.signs else self.number(value)

    def count(self, value, thing, more):
        n, what, rng = self.number(value), thing.of(value), self.rng
        if thing.money:
            amount = self.dollars(value) if self.signs else f"{n} {what}"
            return amount + {"more": " more", "added": " more", "fewer": " less"}.get(more, "")
        if more in ("more", "fewer"):
            return f"{n} {more} {what}"
        if more == "added":
            ways = f"{n} more {what}", f"another {n} {what}", f"{n} {what}", f"{n} more"
            return rng.choice(ways[:3] if self.mixed else ways)
        if more == "of" and not self.mixed:
            return rng.choice((f"{n} of them", f"{n} of the {thing}", n, f"{n} {what}"))
        return f"a dozen {thing}" if value == 12 and rng.random() < 0.15 else f"{n} {what}"


SPEAKER = Speaker()
# a number, what it is said with, the name of a field, its case: {b more T}, {q nth}, {tail}, {S:him}
PLACEHOLDER = re.compile(r"\{(?:(\w) (?:(more|fewer|added|of|nth|times|share) ?)?)?(\w*)(?::([\w']+))?\}")
VERB = re.compile(r"\[([!+-]*)([^\]]+)\]")


def uncapital(text):
    """The opposite of `capital`."""
    return text[0].lower() + text[1:]


def fill(wording, fields, tense, now, speaker):
    """A wording with its fields filled in and its verbs conjugated: see TELL. now: the tense of [!have]."""
    subject = fields["S"]

    def text_of(match):
        letter, more, name, case = match.groups()
        if more == "nth":
            return NTH[fields[letter]]
        if more == "share":
            return "half" if fields[letter] == 2 else article(NTH[fields[letter]])
        if more == "times":
            return "twice" if fields[letter] == 2 else f"{speaker.number(fields[letter])} times"
        if letter:
            return speaker.count(fields[letter], fields[name], more or "")
        if name in ("him", "his"):
            return PRONOUNS[subject.sex]["him" if name == "him" else "'s"]
        if len(name) == 1 and name.islower():
            money = name in "abcgl" and fields["T"].money  # amounts of T, and not "3 times"
            return (speaker.dollars if money else speaker.number)(fields[name])
        found = fields[name]
        return speaker.name(found, case or "") if isinstance(found, Entity) else str(found)

    def form_of(match):
        mark, verb = match.groups()
        verb = fields[verb] if verb.isupper() and verb != "DO" else verb
        many = "+" in mark or "-" not in mark and bool(subject) and subject.many
        return conjugate(verb, now if "!" in mark else tense, many)

    for _ in range(2):  # what stands for a field may have fields itself
        wording = PLACEHOLDER.sub(text_of, wording)
    return tidy(VERB.sub(form_of, wording))


def can_fill(wording, fields):
    """Whether there is something for each field of a wording: those that nothing has used so far are drawn.
    {tail} may be empty, but not {Tail}, nor where things only "are {tail}".
    """
    names = [match[3] for match in PLACEHOLDER.finditer(wording)]  # a list: in their order fields are drawn
    names += [verb for _, verb in VERB.findall(wording) if verb.isupper()]
    names += ["Tail"] if re.search(r"be\] \{tail\}", wording) else []
    return not any(fields[name] is None or fields[name] == "" and name[0].isupper() for name in names
                   if name not in ("", "him", "his", "DO"))


# ---- the template teacher: from a story to a problem -------------------------------------------------------

STEP_SHARES = 46, 38, 12, 2, 2, 2, 2, 2  # of problems with one step, two, ... (that --steps allows)
PLAIN = 0.15          # how often the first wording is preferred
UNNEEDED = 78, 18, 4  # of problems with so many quantities that nobody needs: 0, 1, 2
SETTING = 0.2         # of problems with a sentence without a number
ASIDES = "unneeded", "setting"
STARTS = "Then ", "Later ", "After that ", "Soon ", "Suddenly "


def draw_story(rng, level, n_steps, words, wordings="all"):
    """Draw a Story of `n_steps` steps. words: () -> Words; wordings: "all", "train" or "test"."""
    while True:
        story = Story(rng, words(), n_steps, level, wordings)
        try:
            weights = [weights[n_steps > 1] for weights in OPENINGS.values()]
            quantity = rng.choices(list(OPENINGS), weights)[0](story)
            while story.steps_left:
                quantity = try_to_go_on(story, quantity)
            if level > 1 and not story.ordered and {fact.kind for fact in story.facts} <= TIMELESS:
                rng.shuffle(story.facts)
            for _ in range(rng.choices((0, 1, 2), UNNEEDED)[0]):
                tell_aside(story, "unneeded", story.pick((0, 1, len(story.facts), len(story.facts))))
            if story.chance(SETTING):
                tell_aside(story, "setting", 0 if story.chance(0.75) else len(story.facts))
            return story
        except DeadEnd:
            pass


def try_to_go_on(story, quantity, tries=6):
    """As go_on, again where that is a dead end; the story is then as it was. Raises DeadEnd."""
    for _ in range(tries):
        before = {name: list(one) if isinstance(one, list) else one for name, one in vars(story).items()}
        used = set(story.words.used)
        try:
            return go_on(story, quantity)
        except DeadEnd:
            vars(story).update(before)
            story.words.used = used
    raise DeadEnd


def tell_aside(story, kind, place):
    """Tell what nobody needs: a quantity ("unneeded"), or a sentence without a number ("setting")."""
    quantity = (story.pick(story.facts) if kind == "unneeded" else story.facts[0]).fields.quantity
    story.mixed |= kind == "unneeded"
    who = quantity.S if quantity.S in story.people else None
    if place < len(story.facts) and "{brief}" in story.facts[place].wording:
        place = 0  # nothing comes between that and what it is compared with
    story.tell(kind, TELL[kind], Fields(story, quantity, S=who), place)
    asides = [fact.wording for fact in story.facts if fact.kind == kind]
    require(len({*asides}) == len(asides))


def write_question(story, narrator, tense):
    """The problem's last sentence, which asks for what the last step finds."""
    wordings, fields = story.steps[-1].wordings, story.steps[-1].fields
    fit = [one for one in story.in_random_order(wordings) if can_fill(one, fields)]
    wording = next((one for one in fit if not (tense and "now" in one)), fit[0])  # not "will he have now"
    return story.ask(wording, fields, narrator, tense)


def decapital(text, story):
    """A sentence as the rest of a longer one: "He eats" -> "he eats", but "Tom eats"."""
    names = {re.match(r"\w*", one.name)[0] for one in story.people}
    return text if re.match(r"\w*", text)[0] in {"I", *names} else uncapital(text)


def write_text(story):
    """The text of a problem, its facts and its question; and the question alone."""
    rng, sentences, goes_on = story.rng, [], False
    narrator = Narrator(rng, story.mixed, story.words.made_up_names)
    for k, fact in enumerate(story.facts):
        wording, subject, aside = fact.wording, fact.fields["S"], fact.kind in ASIDES
        if all(earlier.kind in ASIDES for earlier in story.facts[:k]):
            wording = re.sub("^(" + "|".join(STARTS) + ")", "", wording)
            wording = re.sub(r"^\{S\} also", "{S}", wording).replace(" too.", ".")
        opening = re.match(r"\{S\} \[[^\]]+\] ", wording)  # "{S} [have] "
        fit = goes_on and opening and subject is narrator.subject and fact.kind not in (*ASIDES, "had money")
        joined = fit and " and " not in sentences[-1] and rng.random() < 0.35
        wording = wording.removeprefix("{S} ") if joined else wording
        text = fill(wording, fact.fields, story.tense, story.now, narrator)
        text = re.sub(r"(?<=\. )[a-z]", lambda m: m[0].upper(), text)
        narrator.end(subject)
        others = goes_on and opening and not fit and not aside and subject and " and " not in sentences[-1]
        if joined:
            sentences[-1] = f"{sentences[-1][:-1]} and {text}"
        elif text.startswith("which"):
            sentences[-1] = f"{sentences[-1][:-1]}, {text}"
        elif others and rng.random() < 0.15:  # "Tom has 5, and Ann has 3 more."
            sentences[-1] = f"{sentences[-1][:-1]}, and {decapital(text, story)}"
        else:
            sentences.append(capital(text))
        goes_on = opening and not joined and not aside and wording.count(".") == 1
    last = sentences[-1]
    simple = last.count(".") == 1 and "," not in last and len(last) < 90 and not last.startswith(STARTS)
    if simple and not aside and rng.random() < 0.3:  # "If Tom buys 3 more, how many will he have?"
        is_event = fact.kind not in TIMELESS and rng.random() < 0.6
        would = {"present": "will", "past": "would"}[story.tense] if is_event else None
        question = write_question(story, narrator, would)
        if re.match(r"(How|What|With|For|By) .*\?", question):
            sentences[-1] = f"If {decapital(last[:-1], story)},"
            return " ".join([*sentences, uncapital(question)]), question
    else:
        question = write_question(story, narrator, None)
    return " ".join([*sentences, question]), question


def write_solution(step):
    """The solution of a step: an annotation and what it finds, "<<5+3=8>>8".

    It has no more words: students train for minutes, so every token counts (tests/RESULTS.md).
    """
    return f"<<{step.equation}={result_of(step)}>>{result_of(step)}"


def result_of(step):
    """A step's value as the calculator writes it: not 7.50 but 7.5."""
    return re.sub(r"(\.\d)0$", r"\1", SPEAKER.number(step.value))


def write_problem(story):
    """A story as a row of the JSONL file, without its id.

    The last sub-question is the problem's own: where words are new to a decomposer, it copies a question more
    reliably than it asks one.
    """
    text, question = write_text(story)
    steps = [{"question": story.sub_question(step), "solution": write_solution(step)} for step in story.steps]
    if question not in [step["question"] for step in steps]:
        steps[-1]["question"] = question
    return {"problem": text, "steps": steps, "answer": result_of(story.steps[-1]),
            "source": "templates", "kinds": [fact.kind for fact in story.facts]}


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
            files[args.out / f"{split}.jsonl"] = draw_split(split, args, seen, bar)
    save_files(files, args.force)
    steps = Counter(len(row["steps"]) for row in files[args.out / "train.jsonl"])
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
                   help="1 (default): as in books for children; 2: facts in any order where it does not "
                        "matter, comparisons told backwards by names alone; 3: four times as many of these")
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


# ---- the template teacher's language: wordings -------------------------------------------------------------

def read_wordings(text):
    """A list of wordings, separated by "|"; "(a|b)" inside one stands for either."""
    wordings = []
    for wording in re.split(r"\|(?![^()]*\))", " ".join(text.split())):
        options = [part.split("|") for part in re.split(r"[()]", wording)]
        wordings += [tidy("".join(parts)) for parts in product(*options)]
    return [one for one in wordings if one]


def tidy(text):
    """Without superfluous spaces."""
    return re.sub(r" ([,.?])", r"\1", " ".join(text.split()))


# In a wording, {S} is who a quantity is about, {T} what is counted, {tail} when or where; {Tail} the same at
# the beginning of a sentence. {S:him} is a pronoun's form, {S:'s} the possessive; {his} and {him} are of S.
# {b T} is the number b with its noun ("5 apples"), {b more T} "5 more apples", {b fewer T} "5 fewer apples",
# {b added T} like {b more T} or "another 5", {b of T} "5 of them", {b} the number alone, {q nth} "third",
# {j share} "half" or "a third", {k times} "twice" or "3 times".
# [have] is a verb in the story's tense: of {S}; [-have] of one, [+have] of many; [!have] in the tense of now.
# [V] is the quantity's verb; [GET], [LOSE] and others are drawn as fields are: see DRAW.
TELL = {form: read_wordings(text) for form, text in {  # how a quantity is told, by its form; asides; tell_row
    "own": """{S} ([have]|[own]) {a T}. | {S} [have] a {box} with {a T}. | There [+be] {a T} in {S:'s}
        {box}. | In {S:'s} {box} there [+be] {a T}. | {S} [keep] {a T} in a {box}. | {S} ([start] with|[have]
        a collection of) {a T}. | {S}, who [be] {age}, [have] {a T}. | {S} already [have] {a T}.""",
    "act": """{S} [V] {a T} {tail}. | {Tail}, {S} [V] {a T}. | {Tail} {S} [V] {a T}. | {S} [V] exactly {a T}
        {tail}.""",
    "there": """There [+be] {a T} {tail}. | {Tail} there [+be] {a T}. | {a T} [+be] {tail}. | Someone [-count]
        {a T} {tail}. | {Tail}, {a T} [+can] be seen. | At {clock} o'clock there [+be] {a T} {tail}.""",
    "money": """{S} [have] {a T}. | {S} [have] ({a T} in {his} pocket|saved {a T}). | There [-be] {a T}
        in {S:'s} purse. | {S} [start] with {a T}. | {S} [carry] {a T} with {him}. | In {S:'s} wallet there
        [-be] {a T}.""",
    "spent": """{S} [spend] {a T} on {item}. | {S} [buy] {item} for {a T}. | {S} [pay] {a T} for {item}. | For
        {item}, {S} [pay] {a T}. | {S} [buy] {item} that [-cost] {a T}.""",
    "price": """{S} [cost] {a T}. | The price of {S:him} [-be] {a T}. | {S} [be] sold for {a T}. | The shop
        [-sell] {S} for {a T}. | {a T} [-be] the price of {S:him}.""",
    "be": """{S} [be] {a T} {adj}. | The {side} of {S:him} [-be] {a T}. | {S} [have] a {side} of {a T}. |
        {S:'s} {side} [-be] {a T}. | {S} [be] exactly {a T} {adj}.""",
    "age": """{S} [be] {a T} old. | {S} [be] ({a} years of age|{a}). | {S:'s} age [-be] {a}. | At the moment,
        {S} [be] {a T} old. | {S} [be] now {a T} old.""",
    "weigh": """{S} [weigh] {a T}. | ({S:'s} weight|The weight of {S:him}) [-be] {a T}. | The scale [-show]
        {a T} for {S:him}. | {S} [weigh] exactly {a T}.""",
    "unneeded": """{S} also [have] {b things}. | {O} [-have] {b things}. | {S} [have] {b things} too. | {S}
        [be] {age} years old. | {S} [live] at house number {y}. | {S} [have] {y} cousins. | It [-be] {y}
        degrees outside. | The shop [-be] {y} miles away. | {S} [have] {y} neighbors.""",
    "2 T": """{S} [V] {a T} and {b T2} {tail}. | {S} [V] {a} {adj1} and {b T2} {tail}. | {S} [V] {a T} {tail}
        and {b T2}. | {S} [V] {a T} {tail}. {S} also [V] {b T2}. | {S} [V] {a T} {tail}, and also {b T2}.""",
    "2 T there": """There [+be] {a T} and {b T2} {tail}. | There [+be] {a} {adj1} and {b T2} {tail}. | {Tail}
        there [+be] {a T} and {b T2}. | {a T} and {b T2} [+be] {tail}. | Someone [-count] {a T} and {b T2}
        {tail}.""",
    "3 T": """{S} [V] {a T}, {b T2} and {c T3}. | {S} [V] {a T}, {b T2}, and {c T3}. | {S} [V] {a T}. {S} also
        [V] {b T2} and {c T3}. | {S} [V] {a T} and {b T2}. {S} also [V] {c T3}.""",
    "3 tail": """{S} [V] {a T} {tail}, {b T} {tail2} and {c T} {tail3}. | {S} [V] {a T} {tail}, {b} {tail2},
        and {c} {tail3}. | {S} [V] {a T} {tail}. {S} [V] {b T} {tail2} and {c T} {tail3}.""",
    "setting": """{While}, {S} [DOING]. | {S} [DOING] {while}. | {While}, {crowd} [+DOING]. | {Crowd} [+DOING]
        {while}. | {S} [DOING]. | {S} [DOING], and {crowd} [+watch]. | It [-be] a sunny day. | It [-be]
        raining, and {S} [be] at home. | Everybody [-know] {S:him}. | It [-be] the last week of the
        summer.""",
}.items()}

# How a question asks. The first wording is that of a sub-question, without its {T} where that is clear; the
# last sub-question is the problem's own. "left money" is "left" for money, "left there" for a quantity of the
# form "there"; a step that asks for "same" asks as for any quantity of its form.
QUESTIONS = {name: read_wordings(text) for name, text in {
    "have": """How many {T} [DO] {S} have? | What number of {T} [DO] {S} have? | What [-be] the
        number of {T} that {S} [have]? | How many {T} [+belong] to {S:him}? | Find how many {T}
        {S} [have].""",
    "money": """How much money [DO] {S} have? | How many dollars [DO] {S} have? | Find how much
        money {S} [have].""",
    "act": """How many {T} [DO] {S} {V} {tail}? | {Tail}, how many {T} [DO] {S} {V}? | What number of {T} [DO]
        {S} {V} {tail}? | Find how many {T} {S} [V] {tail}. | Can you tell how many {T} {S} [V] {tail}?""",
    "there": """How many {T} [+be] (there|) {tail}? | What number of {T} [+be] there {tail}? | {Tail}, how
        many {T} [+be] there? | Find how many {T} there [+be] {tail}.""",
    "price": """How much [DO] {S} cost? | What [-be] the price of {S:him}? | What [DO] {S} cost? | How many
        dollars [DO] {S} cost? | Find the price of {S:him}.""",
    "be": """How (|many {T}) {adj} [be] {S}? | What [-be] the {side} of {S:him}? | In {T}, how
        {adj} [be] {S}? | Find the {side} of {S:him}. | What [-be] {S:'s} {side}?""",
    "age": """How old [be] {S}? | What [-be] {S:'s} age? | How many years old [be] {S}? |
        Can you tell how old {S} [be]?""",
    "weigh": """How much [DO] {S} weigh? | What [-be] {S:'s} weight? | How many {T} [DO] {S}
        weigh? | How heavy [be] {S}?""",
    "left": """How many {T} [!DO] {S} have (left|now)? | How many {T} [!+be] left? | How many {T} [!DO] {S}
        still have? | How many {T} [DO] {S} have in the end? | How many {T} [!+remain]? | How many {T} [DO]
        {S} have after that? | With how many {T} [DO] {S} end up?""",
    "now": """How many {T} [!DO] {S} have (now|in all|altogether|in total|)? | How many {T} [DO] {S} have (in
        the end|after that)? | With how many {T} [DO] {S} end up? | What [!-be] the total number of {T} that
        {S} [!have] now?""",
    "left money": """How much money [!DO] {S} have (left|now)? | How much money [!-be] left? | How many
        dollars [!DO] {S} have (left|now)? | How much money [!DO] {S} still have? | How much [!-be] left? |
        With how much money [DO] {S} end up?""",
    "now money": """How much money [!DO] {S} have (now|in all|altogether|)? | How many dollars [!DO] {S} have
        now? | How much money [DO] {S} have in the end?""",
    "left there": """How many {T} [!+be] (left {tail}|there now {tail}|{tail} now|still there {tail})? | How
        many {T} [!+remain] {tail}? | How many {T} [+be] {tail} (in the end|after that)?""",
    "now there": """How many {T} [!+be] (there now {tail}|there {tail}|there {tail} in all|{tail} now|there
        altogether {tail})? | How many {T} [+be] {tail} (in the end|after that)?""",
    "got": """How many {T} [DO] {S} {GET}? | What number of {T} [DO] {S} {GET}? | How many more {T} [DO] {S}
        {GET}? | Find how many {T} {S} [GET].""",
    "got in all": """How many (|more) {T} [DO] {S} {GET} (in all|altogether|in total|)? | What [-be] the total
        number of {T} that {S} [GET]?""",
    "lost in all": """How many {T} [DO] {S} {LOSE} (in all|altogether|in total|)? | What [-be] the total
        number of {T} that {S} [LOSE]?""",
    "got more": """How many more {T} [DO] {S} {GET} than {S} [LOSE]? | Find how many more {T} {S} [GET] than
        {S} [LOSE].""",
    "lost more": """How many more {T} [DO] {S} {LOSE} than {S} [GET]? | Find how many more {T} {S} [LOSE] than
        {S} [GET].""",
    "left of the other": """How many {T2} [!DO] {S} have (left|now)? | How many {T2} [!+be] left? | How many
        {T2} [!DO] {S} still have? | How many {T2} [DO] {S} have in the end?""",
    "now of the other": """How many {T2} [!DO] {S} have (now|in all|altogether|in total|)? | How many {T2}
        [DO] {S} have in the end?""",
    "has to lose": """How many {T} [DO] {S} have to give away? | How many of the {T} [DO] {S} have to give
        away? | How many {T} [DO] {S} not need?""",
    "in each": """How many {T} and {T2} [+be] there {at} (each|every|one) {group}? | How many {T} and {T2}
        [-DO] each {group} have?""",
    "each has": "How many {T} and {T2} [-DO] each {friend} have?",
    "both in all": """How many {T} and {T2} [+be] there (in all|altogether|in total|)? | What [-be] the total
        number of {T} and {T2}?""",
    "are given": "How many {T} [DO] {S} get from them?",
    "they have": """How many {T} [DO] {S} have (in all|altogether|together|in total|)? | What [-be] the total
        number of {T}? | How many {T} [-be] that (in all|altogether)? | Find how many {T} {S} [have] (in
        all|altogether).""",
    "so many times": "How many [-be] {k times} as many?",
    "so many times money": "How much money [-be] {k times} as much?",
    "has then": "How many {T} [-DO] {M} have (then|now|in the end|after that)?",
    "the others": "How many {T} [+be] not {adj}?",
    "third kind": """How many {adj3} {T} [+be] there? | How many of the {T} [+be] {adj3}? | How many {T} [+be]
        {adj3}?""",
    "pay in the end": """How much [DO] {S} pay in the end? | How much (money|) [DO] {S} (have to|still have
        to) pay? | What [DO] {S} pay in the end?""",
    "in other time": """How many {T} [DO] {S} {V} in {w units}? | In {w units}, how many {T} [DO] {S} {V}? |
        At that rate, how many {T} [DO] {S} {V} in {w units}?""",
    "each part": "How long [-be] each (part|piece)? | How many {T} long [-be] each (part|piece)?",
    "both sides": "How long are two sides together?",
    "around": """How long [-be] a fence around {S:him}? | What [-be] the perimeter of {S:him}? | How many {T}
        [-be] it (all the way|) around {S:him}? | How many {T} of (rope|fence) [+be] needed to go around
        {S:him}?""",
    "area": """What [-be] the area of {S:him} (|in square {T})? | How many square {T} [-DO] {S:him} cover? |
        Find the area of {S:him}.""",
    "lost": """How many {T} [DO] {S} {LOSE}? | What number of {T} [DO] {S} {LOSE}? | How many of the {T} [DO]
        {S} {LOSE}? | Find how many {T} {S} [LOSE].""",
    "came": "How many {T} [+COME]? | What number of {T} [+COME]? | How many more {T} [+COME]?",
    "went": "How many {T} [+GO]? | What number of {T} [+GO]? | How many of the {T} [+GO]?",
    "at first": """How many {T} [DO] {S} have (at first|in the beginning|to begin with)? |
        With how many {T} [DO] {S} start?""",
    "at first money": "How much money [DO] {S} have (at first|in the beginning|to begin with)?",
    "at first there": """How many {T} [+be] (there at first {tail}|{tail} at first|there {tail} before|{tail}
        in the beginning)?""",
    "before the last": "How many {T} [DO] {S} have then? | How many {T} [DO] {S} have in between?",
    "before the last there": "How many {T} [+be] there {tail} then?",
    "before the last money": "How much money [DO] {S} have then?",
    "shared": "How many {T} [DO] {S} share?",
    "gave": "How many {T} [DO] {S} give away?",
    "content": "How many {content} [DO] {S} have? | How many {content} [DO] {S} have (in all|altogether)?",
    "in years": """How old will {S} be in {y T}? | In {y T}, how old will {S} be? | What will {S:'s} age be in
        {y T}?""",
    "years ago": "How old was {S} {l T} ago? | {l T} ago, how old was {S}? | What was {S:'s} age {l T} ago?",
    "be now": """How {adj} [!be] {S} now? | How many {T} {adj} [!be] {S} now? | What [!-be] the {side} of
        {S:him} now?""",
    "diff": """How many more {T} [DO] {S} {V} {tail} than {ref:him}? | How many more {T} than {ref:him} [DO]
        {S} {V} {tail}? | Find how many more {T} {S} [V] {tail} than {ref:him}. | Compared with {one:him}, how
        many more {T} [DO] {S} {V} {tail}?""",
    "fewer": """How many fewer {T} [DO] {S} {V} {tail} than {ref:him}? | How many fewer {T} than {ref:him}
        [DO] {S} {V} {tail}?""",
    "diff money": """How much more money [DO] {S} {V} {tail} than {ref:him}? | How many more dollars [DO] {S}
        {V} {tail} than {ref:him}? | How much more [DO] {S} {V} {tail} than {ref:him}?""",
    "diff price": """How much more [DO] {S} cost than {ref:him}? | By how much [be] {S} more expensive than
        {ref:him}? | What [-be] the difference in price between {S:him} and {ref:him}?""",
    "diff there": """How many more {T} [+be] there {tail} than {ref:him}? | How many more {T} [+be] {tail}
        than {ref:him}? | Find how many more {T} there [+be] {tail} than {ref:him}.""",
    "diff be": """How (much|many {T}) {more} [be] {S} than {ref:him}? | By how many {T} [be] {S} {more} than
        {ref:him}? | What [-be] the difference in {side} between {S:him} and {ref:him}? | By how much [be] {S}
        {more} than {ref:him}?""",
    "total": """How many {T} [DO] {S} {V} {tail}? | What [-be] the total number of {T} that {S} [V]? | How
        many {T} [DO] {S} {V} (altogether|in all|in total|{both_times})? | (Altogether|In total), how many {T}
        [DO] {S} {V}? | How many {T} [DO] {S} {V}? | How many {T} [+DO] {both} of them {V} (|together|in
        all)?""",
    "total money": """How much money [DO] {S} {V} {tail}? | How many dollars [DO] {S} {V} {tail}? | How much
        money [DO] {S} {V} (altogether|in all|in total|{both_times})? | How much money [+DO] {both} of them
        {V} (together|)?""",
    "total price": """How much [DO] {S} cost together? | What [DO] {S} cost (in all|together)? | How much
        [+DO] both cost?""",
    "total age": "How old [be] {S} together? | What [-be] the (sum|total) of their ages?",
    "total weigh": "How (much|many {T}) [DO] {S} weigh (together|in all|altogether)?",
    "total there": """How many {T} [+be] there {tail} in all? | How many {T} [+be] (there|) {tail}? | How many
        {T} [+be] there (in total {tail}|altogether {tail}|{both_times})? | How many {T} [+be] {both_times}? |
        What [-be] the total number of {T} {tail}? | In all, how many {T} [+be] there {tail}?""",
    "each": """How many {T} [+be] there {at} (each|every|one) {group}? | How many {T} [+go] {at} each {group}?
        | What number of {T} [+be] {at} each {group}?""",
    "boxes": """How many {groups} [DO] {S} (fill|need)? | How many {groups} [+be] needed? | How many {groups}
        [+will] there be? | How many {groups} [can] {S} fill?""",
    "groups": """How many {groups} [+be] there (|in all)? | What [-be] the number of {groups}? | How many
        {groups} ([+will] there be|[-DO] that make)? | Find how many {groups} there [+be].""",
    "groups for": """How many {groups} [+be] needed for {t T}? | How many {groups} [+DO] {t T} (fill|need)? |
        For {t T}, how many {groups} [+be] needed?""",
    "share": """How many {T} [-DO] each {friend} get? | How many {T} [-will] each {friend} get? | How many {T}
        [+go] to each {friend}? | What number of {T} [-DO] each {friend} get?""",
    "share money": """How much money [-DO] each {friend} get? | How many dollars [-DO] each {friend} get? |
        How much [-will] each {friend} get?""",
    "each pays": """How much (money|) [-DO] each {friend} pay? | How many dollars [-DO] each {friend} pay? |
        How much [-DO] each {friend} have to pay? | How much [-be] that for each {friend}?""",
    "form groups": """How many groups [+be] there? | How many groups [-be] that? | How many groups [+DO] the
        {T} form?""",
    "rows": "How many rows [+be] there? | How many rows [-be] that? | What [-be] the number of rows?",
    "pairs": "How many pairs [+be] there? | How many pairs [-be] that? | What [-be] the number of pairs?",
    "in a group": """How many {T} [+be] there in (each|one) group? | How many {T} [+be] in (each|every) group?
        | What [-be] the number of {T} in each group?""",
    "weeks": """How many {units} [DO] {S} need for that? | How many {units} [-will] it take {S:him}? | For how
        many {units} [DO] {S} have to save?""",
    "lasts": """How many {units} [+DO] the {T} last? | For how many {units} [+DO] the {T} last? | How long
        [+DO] the {T} last? | After how many {units} [+be] the {T} used up?""",
    "need": """How many more {T} [DO] {S} need? | How many {T} [DO] {S} still need? | How many more {T} [DO]
        {S} need for that? | How many {T} [DO] {S} still have to get?""",
    "need money": """How much more money [DO] {S} need? | How much more [DO] {S} have to save? | How many more
        dollars [DO] {S} need? | How much money [DO] {S} still need?""", "need act": """How many more {T} [DO]
        {S} have to {V}? | How many {T} [DO] {S} still have to {V}? | How many more {T} [DO] {S} need to
        {V}?""",
    "can buy": """How many {things} [can] {S} (buy|afford|get for {his} money)? | What number of {things}
        [can] {S} buy? | How many of the {things} [can] {S} buy?""",
    "bought": """How many {things} [DO] {S} buy? | What number of {things} [DO] {S} buy? | Find how many
        {things} {S} [buy].""",
    "pay": """How much (money|) [DO] {S} spend on the {things}? | How much [DO] {S} pay (in all|)? | How many
        dollars [DO] {S} spend? | What [DO] {S} pay? | How much (money|) [DO] {S} spend (in all|)?""",
    "spend in all": """How much (money|) [DO] {S} spend in all? | How much [DO] {S} pay (in all|altogether)? |
        What [DO] {S} pay in all? | How much [DO] {S} spend (in total|altogether)?""",
    "pay for others": """How much (money|) [DO] {S} spend on the {things2}? | How much [DO] {S} pay for the
        {things2}?""",
    "get for": "How much money [DO] {S} get for the {things}?",
    "get for others": "How much money [DO] {S} get for the {things2}?",
    "spend more": """How much more (money|) [DO] {S} spend on {the_item2} than on {the_item}? | How many more
        dollars [DO] {S} spend on {the_item2} than on {the_item}?""",
    "one costs": """How much [-DO] one {thing} cost? | What [-be] the price of one {thing}? | How much [-DO]
        each {thing} cost? | How much [DO] {S} pay for one {thing}?""",
    "change": """How much change [DO] {S} get (back|)? | How much (money|) [DO] {S} get back? | What [-be]
        {S:'s} change? | How many dollars [DO] {S} get back?""",
    "earns": """How much money [DO] {S} get? | How much (money|) [DO] {S} (earn|make)? | How many dollars [DO]
        {S} get?""",
    "in time": """How many {T} [DO] {S} {V} in {n units}? | In {n units}, how many {T} [DO] {S} {V}? | How
        many {T} [will] {S} {V} in {n units}?""",
    "rate of the other": "How many {T} [-DO] {O} {V} {per}?",
    "other in time": """How many {T} [-DO] {O} {V} in {n units}? | In {n units}, how many {T} [-DO] {O} {V}? |
        What number of {T} [-DO] {O} {V} in {n units}?""",
    "takes": """How many {units} [DO] {S} need for that? | How many {units} [-DO] it take {S:him}? | In how
        many {units} [DO] {S} do that?""",
    "rate": """How many {T} [DO] {S} {V} each {unit}? | How many {T} [DO] {S} {V} (per {unit}|in one
        {unit}|every {unit})?""",
    "left after": """How many {T} [!+be] left after {n units}? | After {n units}, how many {T} ([!+be]
        left|[!DO] {S} have left)? | How many {T} [will] {S} have left after {n units}?""",
    "has after": """How much money [will] {S} have after {n units}? | After {n units}, how much money [DO] {S}
        have? | How many dollars [DO] {S} have after {n units}?""",
    "to do after": """How many {T} [DO] {S} still have to {V} after {n units}? | After {n units}, how many {T}
        [DO] {S} still have to {V}? | How many {T} [+be] left to {V} after {n units}?""",
    "get in time": "How much money [DO] {S} get in {n units}?",
    "in all groups": """How many {T} [+be] there altogether? | How many {T} [+be] there (in total|in all|)? |
        What [-be] the total number of {T}? | Altogether, how many {T} [+be] there?""",
    "in groups": """How many {T} [+be] there in {n groups}? | How many {T} [+be] needed for {n groups}? | In
        {n groups}, how many {T} [+be] there? | What [-be] the number of {T} in {n groups}? | How many {T}
        [+DO] {n groups} hold?""",
    "cost of": """How much ([+DO]|would) {n things} cost (|in all|altogether)? | How much [DO] {S} pay for
        {n things}? | What ([+DO]|would) {n things} cost? | How much money [DO] {S} need for {n things}?""",
    "cost of others": """How much ([+DO]|would) {w things} cost (|at the same price)? | At the same price, how
        much [+DO] {w things} cost? | How much money [DO] {S} need for {w things}?""",
    "cost of the others": "How much [+DO] {w things2} cost?",
    "cost of both": """How much ([+DO]|would) {n things} and {w things2} cost (|together|in all|altogether)? |
        What [+DO] {n things} and {w things2} cost (|together|in all)? | How much [DO] {S} pay for {n things}
        and {w things2}? | How much money [DO] {S} need for {n things} and {w things2}?""",
    "one alone": "How many {T} [-DO] one {friend} {V}?",
    "one alone money": "How much money [-DO] one {friend} {V}?",
    "all of them": """How many {T} [+DO] the {friends} {V} (together|in all|altogether|)? | What [-be] the
        total number of {T} that the {friends} [+V]?""",
    "all of them money": "How much money [+DO] the {friends} {V} (together|in all|altogether)?",
    "days": "How many days [-be] that?",
    "pieces": """How many pieces [+be] there? | How many pieces [+will] there be? | Into how many pieces [be]
        {S} cut?""",
    "parts": """How many {parts} [+DO] the {T} have (|in all|altogether|in total)? | How many {parts} [-be]
        that (|in all)? | What [-be] the (total|) number of {parts}?""",
    "parts of": """How many {parts} [+DO] {n T} have (|in all|altogether)? | What [-be] the number of {parts}
        of {n T}? | How many {parts} [+be] there on {n T}?""",
    "kind": """How many {adj} {T} [+be] there? | How many {adj} {T} [+be] there {tail}? | How many of the {T}
        [+be] {adj}?""",
    "other kind": """How many {adj2} {T} [+be] there? | How many {adj2} {T} [+be] there {tail}? | How many of
        the {T} [+be] {adj2}?""",
}.items()}


class Kind(NamedTuple):
    """What may happen to a quantity, or be told about it."""
    name: str
    takes: list   # the forms of quantity that it goes on from; "own?": one that is not told itself
    gives: str    # what comes of it: see GIVES and go_on
    weight: int   # how often it is drawn
    steps: list   # of (equation, how it is asked for: see QUESTIONS)
    say: list     # wordings; ["@"]: another quantity, as TELL tells it; []: nothing
    backwards: bool = False  # a comparison that is told of the quantity which is known


def kind(name, takes, gives, weight, steps, say):
    """A Kind from texts; takes: "form form"; steps: as `read_steps` reads them."""
    return Kind(name, takes.split(), gives, weight, read_steps(steps), read_wordings(say))


def read_steps(text):
    """The steps of a Kind, from "equation: question; equation: question"."""
    return [step.split(": ") for step in text.split("; ")]


# How two are compared: {S} is the one that is told about, {ref:him} the other; {brief} marks what follows a
# sentence about one of them: "Ann has 3 more apples." For each form of quantity: how the names of its kinds
# begin; how so many more or fewer (#) is told; so many times as many, or a part; and both told backwards,
# behind a sentence about the one that is known: "Tom has 12 apples. That is 3 more than Ann has."
COMPARED = {
    "own act money": ("", """
        {S} [V] # {tail} than {ref:him}. | {Tail}, {S} [V] # than {ref:him}. | Compared with {one:him}, {S}
        [V] # {tail}. | {S} [V] # than {ref} {do} {tail}. | {brief}{S} [V] # {tail}.""", """
        {S} [V] (|exactly) # as {many} {tail} as {ref:him}. | {S} [V] # the {number} that {ref} {do} {tail}. |
        {Tail}, {S} [V] # as {many} as {ref:him}. | {S} [V] # as {many} {tail} as {ref} {do}. | {brief}{S} [V]
        # as {many} {tail}.""", """
        {brief}(That|This|which) [-be] # than {ref} {do} {tail}. | {brief}That [-be] # than {ref:him}.""", """
        {brief}(That|This|which) [-be] (|exactly) # as {many} as {ref} {do} {tail}. | {brief}That [-be] # as
        {many} as {ref:him}."""),
    "there": ("there ", """
        There [+be] # {tail} than {ref:him}. | {Tail} there [+be] # than {ref:him}. | # than {ref:him}
        [+be] {tail}. | {Tail}, # than {ref:him} [+can] be seen.""", """
        There [+be] (|exactly) # as many {T} {tail} as {ref:him}. | {Tail} there [+be] # as many {T} as
        {ref:him}. | # as many {T} as {ref:him} [+be] {tail}.""", """
        {brief}(That|This|which) [-be] # than {ref:him}.""", """
        {brief}(That|This|which) [-be] (|exactly) # as many {T} as {ref:him}."""),
    "price": ("costs ", """
        {S} [cost] # than {ref:him}. | Compared with {one:him}, {S} [cost] #. | One [-pay] # for {S} than for
        {ref:him}. | The price of {S:him} [-be] # than that of {ref:him}.""", """
        {S} [cost] (|exactly) # as much as {ref:him}. | The price of {S:him} [-be] # as high as that of
        {ref:him}. | {S} [be] # as expensive as {ref:him}.""", """
        {brief}That [-be] # than {ref} [-cost]. | {brief}That [-be] # than the price of {ref:him}.
        """, """
        {brief}That [-be] # as much as {ref} [-cost]."""),
    "be age weigh": ("is ", """
        {S} [be] # than {ref:him}. | {S} [be] # than {ref} [-be]. | Compared with {one:him}, {S} [be]
        #. | {brief}{S} [be] #.""", """
        {S} [be] (|exactly) # as {adj} as {ref:him}. | {S} [be] # as {adj} as {ref} [-be]. | The {side} of
        {S:him} [-be] # that of {ref:him}. | {S} [be] # {ref:'s} {side}. | {brief}{S} [be] # as {adj}.""", """
        {brief}That [-make] {S:him} # than {ref:him}.""", """
        {brief}That [-make] {S:him} (|exactly) # as {adj} as {ref:him}.""")}


def comparisons():
    """The kinds that compare two, "more", "there times", "costs less", "is part", ..., each also told
    backwards: in the same wordings, which are {named}, and in those of its own."""
    for takes, (beginning, by, as_many, known_by, known_as_many) in COMPARED.items():
        more, less = ("{# T} {more}", "{# T} {less}") if "be" in takes else ("{# more T}", "{# fewer T}")
        plus, share_of = "a + p" if takes == "price" else "a + b", as_many.replace("# the", "# of the")
        for name, weight, equation, inverse, much, say, of_known in (
                ("more", 40, plus, "a - l", more, by, known_by),
                ("less", 34, "a - l", plus, less, by, known_by),
                ("times", 34, "a * k", "a / j", "{# times}", as_many, known_as_many),
                ("part", 20, "a / j", "a * k", "{# share}", share_of, known_as_many)):
            told = lambda wordings, steps: wordings.replace("#", much.replace("#", steps[-1]))
            named = " | ".join("{named}" + one for one in read_wordings(say) if "{brief}" not in one)
            name, named_and_brief = beginning + name, f"{named} | {of_known}"
            yield kind(name, takes, "other", weight, f"{equation}: same", told(say, equation))
            yield kind(f"{name}, backwards", takes, "other", weight, f"{inverse}: same",
                       told(named_and_brief, inverse))._replace(backwards=True)


# The numbers of an equation but a and x are drawn, as DRAW says: b and c any, l less than a, v less than x,
# g greater than a, d one that divides a, z one that divides x, n and w a few, m so many in each group, p and
# f a price, r a rate, k 2 to 10, h 2. A kind of your own is an entry here and, if none of QUESTIONS fits, one
# there.
KINDS = [
    # something changes
    kind("gain", "own", "own", 76, "a + b: now", """
        {S} [GET] {b added T} {where}. | (Then|Later|After that) {S} [GET] {b added T}. | {S} also [GET]
        {b added T}. | {O} [-give] ({S:him} {b added T}|{b added T} to {S:him}). | {S} [get] {b added T} from
        {O}. | Then {O} [-bring] {S:him} {b added T}."""),
    kind("lose", "own", "own", 86, "a - l: left", """
        {S} [LOSE] {l of T} {where}. | (Then|Later|After that) {S} [LOSE] {l of T}. | {Where}, {S} [LOSE]
        {l of T}. | {S} [give] ({l of T} to {O}|{O} {l of T}). | Then {S} [give] {l of T} to {O}. | {O} [-get]
        {l of T} from {S:him}. | {S} [hand] {l of T} to {O}."""),
    kind("come", "there", "there", 44, "a + b: now", """
        (|Then|Later|{Later},|Soon|After a while) {b added T} [+COME]."""),
    kind("go", "there", "there", 44, "a - l: left", """
        (|Then|Later|{Later},|Suddenly|After a while) {l of T} [+GO]."""),
    kind("earn", "money", "money", 30, "a + b: now", """
        {S} ([earn] {b more T} by|[get] {b T} for) {job}. | For {job}, {S} [earn] {b more T}. | {O} [-give]
        {S:him} {b T}. | {S} [receive] {b T} for {his} birthday. | Then {S} [find] {b T} in the street."""),
    kind("spend", "money", "money", 40, "a - l: left", """
        {S} [spend] {l T} on {item}. | {S} [buy] {item} for {l T}. | {S} [pay] {l T} for {item}. | For {item},
        {S} [pay] {l T}. | Then {S} [spend] {l T} on {item}. | {S} [use] {l T} to buy {item}. | {S} [give]
        {l T} to {O}."""),
    kind("gains twice", "own", "own", 30, "a + b: before the last; x + c: now", """
        {S} [GET] {b added T} and then another {c}. | {O} [-give] {S:him} {b more T} and {S} [GET] {c} more
        {where}. | {S} [GET] {b added T} (in the morning and {c} in the afternoon|on Monday and {c} on
        Tuesday). | First {S} [GET] {b added T}, then {c} more."""),
    kind("loses twice", "own", "own", 44, "a - l: before the last; x - v: left", """
        {S} [LOSE] {l of T} and then another {v}. | {S} [LOSE] {l of T} (in the morning and {v} in the
        afternoon|before lunch and {v} after lunch|on Monday and {v} on Tuesday). | {S} [give] {l of T} to {O}
        and [LOSE] {v} more. | First {S} [LOSE] {l of T}, then {v} more."""),
    kind("loses and gains", "own", "own", 40, "a - l: before the last; x + b: now", """
        {S} [LOSE] {l of T} and then [GET] {b added T}. | {S} [LOSE] {l of T} but [GET] {b added T} {where}. |
        After {S} [LOSE] {l of T}, ({O} [-give] {S:him} {b more T}|{S} [GET] {b added T}). | {S} [give]
        {l of T} to {O} and (|then) [GET] {b added T}. | First {S} [LOSE] {l of T}, (then|later) {S} [GET]
        {b added T}. | (Then|Later) {S} [LOSE] {l of T} and [GET] {b added T} {where}."""),
    kind("gains and loses", "own", "own", 40, "a + b: before the last; x - v: left", """
        {S} [GET] {b added T} and then [LOSE] {v T}. | {S} [GET] {b added T} but [LOSE] {v T} {where}. |
        After {S} [GET] {b added T}, {S} ([give] {v T} to {O}|[LOSE] {v T}). | {O} [-give] {S:him}
        {b more T} and {S} [LOSE] {v T}. | {S} [get] {b more T} from {O} and [LOSE] {v T}."""),
    kind("go twice", "there", "there", 20, "a - l: before the last; x - v: left", """
        {l of T} [+GO], and then (another {v}|{v} more) [+GO]. | First {l of T} [+GO], then {v} more. | {l of
        T} [+GO] and (later|{later}) {v} more [+GO]. | After {l of T} [+GO], another {v} [+GO]."""),
    kind("go and come", "there", "there", 20, "a - l: before the last; x + b: now", """
        {l of T} [+GO], and (|then|later|{later}) {b added T} [+COME]. | (After|When) {l of T} [+GO],
        {b added T} [+COME]. | {l} [+GO] and {b} [+COME]."""),
    kind("come and go", "there", "there", 20, "a + b: before the last; x - v: left", """
        {b added T} [+COME], and (|then|later|{later}) {v T} [+GO]. | (After|When) {b added T} [+COME],
        {v T} [+GO]. | {b} [+COME] and {v} [+GO]."""),
    kind("spends twice", "money", "money", 40, "a - l: before the last; x - v: left", """
        {S} [buy] {item} for {l T} and {item2} for {v T}. | {S} [spend] {l T} on {item} and {v T} on {item2}.
        | {S} [pay] {l T} for {item} and {v T} for {item2}. | {Item} [-cost] {S:him} {l T} and {item2} {v T}.
        | {S} [buy] {item} and {item2}. {The_item} [-cost] {l T} and {the_item2} [-cost] {v T}."""),
    kind("gains some", "own", "end", 26, "g - a: got", """
        {S} [GET] some more {T} (|{where}). {Now_g}. | {Now_g}. | Then {S} [GET] a few more {T}. {Now_g}. |
        After {S} [GET] some more {T}, {S} [have] {g T}. | {S} [GET] some other {T}. {Now_g}."""),
    kind("loses some", "own", "end", 26, "a - l: lost", """
        {S} [LOSE] some of the {T} (|{where}). {Now_l}. | Now {S} [!have] only {l} left. | Then {S} [LOSE]
        some {T}. {Now_l}. | After {S} [LOSE] some of the {T}, {S} [have] {l T} left. | {S} [LOSE] a few of
        the {T}. {Now_l}."""),
    kind("some come", "there", "end", 18, "g - a: came", """
        Some more {T} [+COME]. Now there [!+be] {g T}. | Now there [!+be] {g T} {tail}. | Then more {T}
        [+COME]. Now {g T} [!+be] {tail}. | (Later|{Later},) some more [+COME]. After that there [+be]
        {g T}."""),
    kind("some go", "there", "end", 18, "a - l: went", """
        Some of them [+GO]. Now there [!+be] {l T}. | Now (only|just) {l T} [!+be] left. | Then some of the
        {T} [+GO]. Now {l T} [!+be] left. | (Later|{Later},) a few of them [+GO]. After that there [+be]
        {l T}."""),
    kind("had before a loss", "own?", "end", 36, "b + c: at first", """
        {S} [have] some {T}. {S} [LOSE] {b of T}. {Now_c}. | {S} ([have] a {box} of|[own] some) {T}. {S}
        [give] {b} of them to {O}. {Now_c}. | After {S} [LOSE] {b T}, {S} [have] {c T} left. | {S} [have] some
        {T} and [LOSE] {b T} {where}. {Now_c}."""),
    kind("had before a gain", "own?", "end", 28, "a - l: at first", """
        {S} [have] some {T}. {S} [GET] {l added T}. Now {S} [!have] {a T}. | {S} ([have] a {box} of|[own]
        some) {T}. {O} [-give] {S:him} {l more T}. {S} now [!have] {a T}. | After {S} [GET] {l more T}, {S}
        [have] {a T}. | {S} [have] some {T}. Then {S} [GET] {l added T} {where} and [end] up with {a T}."""),
    kind("were before some left", "there?", "end", 30, "b + c: at first", """
        There [+be] some {T} {tail}. {b of T} [+GO]. Now there [!+be] {c T} left. | {Tail} there [+be] some
        {T}. Then {b of T} [+GO] and {c} [+be] left. | After {b T} [+GO], {c T} [+be] left {tail}."""),
    kind("were before some came", "there?", "end", 22, "a - l: at first", """
        There [+be] some {T} {tail}. {l more T} [+COME]. Now there [!+be] {a T}. | {Tail} there [+be] some
        {T}. Then {l added T} [+COME]. After that there [+be] {a T}. | After {l T} [+COME], there [+be] {a T}
        {tail}."""),
    kind("had money before", "money?", "end", 40, "b + c: at first", """
        {S} [spend] {b T} on {item} and [have] {c T} left. | After {S} [spend] {b T} on {item}, {S} [have]
        {c T} left. | {S} [have] some money. {S} [buy] {item} for {b T}. Now {S} [!have] {c T}. | {S} [pay]
        {b T} for {item}. {S} [have] {c T} left."""),
    kind("had money before both", "money?", "end", 24, "b + c: before the last; x + y: at first", """
        {S} ([spend] {y T} on {item} and {b T} on {item2}|[buy] {item} for {y T} and {item2} for {b T}). Now
        {S} [!have] {c T} left. | After {S} [buy] {item} for {y T} and {item2} for {b T}, {S} [have] {c T}
        left. | {S} [pay] {y T} for {item} and {b T} for {item2}. {S} [have] {c T} left. | {Item} [-cost]
        {S:him} {y T} and {item2} {b T}. {S} [have] {c T} left."""),
    kind("had before both", "own?", "end", 10, "a - l: before the last; x + b: at first", """
        {S} [have] some {T}. {S} [LOSE] {b of T}. Then {S} [GET] {l more T}. Now {S} [!have] {a T}. | {S}
        [own] some {T}. After {S} [LOSE] {b} of them and [GET] {l more T}, {S} [have] {a T}. | {S} [LOSE]
        {b T} and [GET] {l more T}. Now {S} [!have] {a T}."""),
    kind("had before two losses", "own?", "end", 14, "b + c: before the last; x + y: at first", """
        {S} [have] some {T}. {S} [LOSE] {y of T} and then {b} more. {Now_c}. | {S} [have] some {T}. {S} [give]
        {y} of them to {O} and [LOSE] {b} more. {Now_c}. | After {S} [LOSE] {y T} and then another {b}, {S}
        [have] {c T} left."""),
    kind("the same again", "own", "own", 10, "a * h: now", """
        {S} [GET] (the same number|as many) (|once) again. | Then {S} [GET] (the same number|as
        many) once more."""),
    kind("loses half", "own", "own", 10, "a / h: left", """
        {S} [LOSE] half of the {T}. | Then {S} [LOSE] half of {them}. | {S} [give] half of {them} to {O}. |
        {Where}, {S} [LOSE] half of {them}."""),
    kind("loses part", "own", "own", 12, "a / q: lost; a - x: left", """
        {S} [LOSE] (a|one|exactly one) {q nth} of the {T}. | Then {S} [LOSE] a {q nth} of {them}."""),
    kind("gains groups", "own", "own", 26, "n * m: got; a + x: now", """
        {S} [GET] {n groups} (of|with) {m T} each. | Then {S} [GET] {n groups} with {m T} in each {group}. |
        {S} [GET] {n groups} of {T}. Each {group} [-have] {m T}. | {S} [GET] {n groups} of {T} with {m} in
        each."""),
    kind("gains from each", "own", "own", 14, "n * m: are given; a + x: now", """
        Each of the {n friends} [-give] {S:him} {m T}. | {n friends} [+give] {S:him} {m T} each. | {S} [get]
        {m T} from each of the {n friends}. | {n friends} [+bring] {S:him} {m T} each."""),
    kind("gives each", "own", "own", 22, "n * m: gave; a - x: left", """
        {S} [give] {m T} (to each of|each to) {n friends}. | Then {S} [give] each of the {n friends} {m T}. |
        {S} [hand] {m T} to each of the {n friends}. | {n friends} each [+take] {m} of the {T}. |
        ({n friends} [+get] {m T} each|Each of the {n friends} [-get] {m T}) from {S:him}."""),
    kind("loses so long", "own", "own", 40, "n * m: lost; a - x: left", """
        {S} [LOSE] {m T} {per} for {n units}. | (Each|Every) {unit}, {S} [LOSE] {m of T}, for {n units}. | For
        {n units}, {S} [LOSE] {m T} {per}."""),
    kind("saves so long", "money", "money", 40, "r * n: get in time; a + x: now", """
        {S} [save] {r T} {per} for {n units}. | {S} [get] {r T} (each|every) {unit}, for {n units}. | For
        {n units}, {S} [earn] {r T} {per}. | Every {unit} {S} [earn] another {r T}, for {n units}."""),
    kind("loses until then", "own", "end", 20, "n * m: lost; a - x: left after", """
        {S} [LOSE] {m T} {per}. | From then on, {S} [LOSE] {m T} {per}. | (Each|Every) {unit}, {S} [LOSE]
        {m of T}. | Then {S} [LOSE] {m of T} (each|every) {unit}."""),
    kind("saves until then", "money", "end", 20, "r * n: get in time; a + x: has after", """
        {S} [save] {r T} {per}. | {S} [get] {r T} {per}. | (Each|Every) {unit} {S} [earn] another {r T}. |
        From then on, {S} [save] {r T} {per}. | {S} [earn] {r T} {per}."""),
    kind("loses groups", "own", "own", 20, "n * m: lost; a - x: left", """
        (|Then|Later) {S} [LOSE] {n groups} (of|with) {m T} each. | (|Then) {S} [LOSE] {n groups} with {m T}
        in each {group}. | {S} [LOSE] {n groups} of {m T}."""),
    kind("wants", "own", "end", 18, "g - a: need", """
        {S} ([want]|[need]|would like) to have {g T}. | {S} [need] {g T} {where}. | {S} [want] to have {g T}
        in all. | {S:'s} goal [-be] to have {g T}."""),
    kind("wants to buy", "money", "end", 26, "g - a: need", """
        {Item} [-cost] {g T} and {S} [want] to buy it. | {S} [want] to buy {item} for {g T}. | {S} [need]
        {g T} for {item}. | {S} [save] for {item} that [-cost] {g T}. | {S} [want] {item}. It [-cost]
        {g T}."""),
    kind("saves up", "money", "end", 30, "g - a: need; x / z: weeks", """
        {S} [want] to buy {item} for {g T} and [save] {z T} {per}. | {Item} [-cost] {g T}. {S} [save] {z T}
        {per}. | {S} [need] {g T} for {item} and [earn] {z T} {per}. | {S} [save] {z T} {per} to buy {item}
        for {g T}."""),
    kind("wants to do", "act", "end", 8, "g - a: need", """
        {S} [want] to {V} {g T} in all. | {S} [have] to {V} {g T} in all. | {S:'s} goal [-be] to {V} {g T} in
        all. | {S} [hope] to {V} {g T} altogether."""),
    kind("does the rest", "act", "end", 16, "g - a: need; x / z: takes", """
        {S} [want] to {V} {g T} in all. From then on, {S} [V] {z T} {per}. | {S} [have] to {V} {g T} in all
        and [V] {z T} {per} from then on. | {S:'s} goal [-be] to {V} {g T} in all. From then on, {S} [V] {z T}
        each {unit}."""),
    kind("times and more", "own act money", "other", 16, "a * k: so many times; x + b: same", """
        {S} [V] {b} more than {k times} as {many} {tail} as {ref:him}. | {S} [V] {b more T} than {k times} the
        {number} that {ref} {do} {tail}."""),
    kind("times and less", "own act", "other", 16, "a * k: so many times; x - y: same", """
        {S} [V] {y} (fewer|less) than {k times} as {many} {tail} as {ref:him}. | {S} [V] {y fewer T} than
        {k times} the {number} that {ref} {do} {tail}."""),
    # two are put together or set apart; "@": the other one is told as TELL says; "": it was compared before
    kind("together", "own act money there price age weigh", "joint", 60, "a + b: total", "@"),
    kind("together again", "own act money there price age weigh", "joint", 90, "a + b: total", ""),
    kind("difference", "own act money there price be age weigh", "difference", 50, "a - b: diff", "@"),
    kind("difference, fewer", "own act", "difference", 12, "a - b: fewer", "@"),
    kind("other part", "own? act? there?", "part", 60, "g - a: same", """
        {Has} {g whole} {whole_tail}. {Has} {a T} {tail}. | {Has} {a T} {tail}. {Has} {g whole} {whole_tail}
        in all. | {Has} a total of {g whole} {whole_tail}. {Has} {a T} {tail}. | {Has} {g whole} {whole_tail}.
        {a} of them [+be] {of_kind}. | {Has} {g whole} {whole_tail}. Of these, {a} [+be] {of_kind}. | Of
        {g whole} {whole_tail}, {a} [+be] {of_kind}."""),
    kind("rest", "own there", "end", 16, "a - l: other kind", """
        {l} of {them} [+be] {adj}. {Rest} [+be] {adj2}. | {l} of the {T} [+be] {adj} and the rest
        [+be] {adj2}. | (Of these|Among them), {l} [+be] {adj}. {Rest} [+be] {adj2}."""),
    kind("rest of three kinds", "own there", "end", 60, "a - l: the others; x - v: third kind", """
        {l} of {them} [+be] {adj}, {v} [+be] {adj2} and {rest} [+be] {adj3}. | (Of these|Among them), {l}
        [+be] {adj} and {v} [+be] {adj2}. {Rest} [+be] {adj3}."""),
    kind("share of a kind", "own there", "end", 14, "a / q: kind", """
        (A|One|Exactly one) {q nth} of ({them}|the {T}) [+be] {adj}."""),
    kind("half of a kind", "own there", "end", 10, "a / h: kind", """
        (Half|Only half|Exactly half) of ({them}|the {T}) [+be] {adj}."""),
    # three are told and put together: see add_three; several are told, two are asked for: see ask_about_two
    kind("three in all", "own act there money", "three", 50, "a + b: two; x + c: total", "@"),
    kind("two of several", "own act there money price age weigh", "two", 60, "a + b: two", "@"),
    kind("two of several differ", "own act there money price be age weigh", "two", 60, "a - b: diff", "@"),
    kind("one of two things", "own", "end", 16, "a - l: lost", """
        {S} also [have] {b T2}. After {S} [LOSE] some of them, {S} [have] {l T} and {o T2} left. | {S} also
        [have] {b T2}. {S} [LOSE] some {T} and some {T2}. Now {S} [!have] {o T2} and {l T} left. | {S} also
        [have] {b T2}. {S} [LOSE] some of these and [!have] {l T} and {o T2} now."""),
    kind("two things lost", "own", "end", 22, "a - l: left", """
        {S} also [have] {b T2}. (|Then|Later) {S} [LOSE] {l T} and {o T2}. | {S} [have] {b T2} too. (|Then)
        {S} [LOSE] {o T2} and {l T} {where}. | {S} also [have] {b T2}. {Where}, {S} [LOSE] {o T2} and {l T}. |
        {S} [have] {b T2} as well. After that {S} [LOSE] {l T} and {o} of the {T2}."""),
    kind("two things gained", "own", "end", 18, "a + b: now", """
        {S} also [have] {c T2}. (|Then|Later) {S} [GET] {b added T} and {m T2} {where}. | {S} [have] {c T2}
        too. (|Then) {S} [GET] {m more T2} and {b more T}. | {S} also [have] {c T2}. {O} [-give] {S:him}
        {b more T} and {m more T2}."""),
    kind("loses some of the rest", "own", "end", 24, "a - l: before the last; x - v: lost", """
        {S} [give] {l of T} to {O}. (Then|Later) {S} [LOSE] some of the rest. {S} [have] {v T} left. | {O}
        [-get] {l of T} from {S:him}. After {S} [LOSE] some of the others, {S} [have] {v T} left. | {S} [give]
        {O} {l of T} and (|then) [LOSE] some too. (In the end|After that) {S} [have] {v T}."""),
    kind("wants to keep", "own", "end", 16, "a - l: has to lose", """
        {S} [want] to keep (only|) {l of T}. | {S} [need] (only|no more than) {l of T}. | {S} [want] to have
        only {l T}. | {S} [have] room for only {l of T}."""),
    kind("some go before some come", "there", "end", 16, "l + b: now", """
        Some of the {T} [+GO], and only {l} [+be] left. (Then|Later|{Later},) {b more T} [+COME]. | After some
        of them [+GO], there [+be] {l T} left. (Then|{Later},) {b added T} [+COME]. | Some [+GO], so that
        there [+be] {l T} left, and then {b more T} [+COME]."""),
    kind("two things in each", "groups?", "end", 14, "n * m: total there", """
        There [+be] {n groups} {here} with {m T} and {c T2} {at} each {group}. | There [+be] {n groups}
        {here}. (Every|Each) {group} ([-have]|[-contain]|[-hold]) {m T} and {c T2}. | Each of the
        {n groups} {here} ([-have]|[-hold]) {c T2} and {m T}."""),
    # equal groups
    kind("groups", "own?", "own", 70, "n * m: have", """
        {S} [have] {n groups} (with {m T} {at}|of {m T}) each {here}. | {S} [have] {n groups} {here}.
        (Each|Every) {group} ([-have]|[-hold]|[-contain]) {m T}. | {S} [own] {n groups}. There [+be] {m T}
        {at} (each|every) {group}. | {S} [have] {n groups} {here} and {at} each {group} there [+be] {m T}. |
        {S} [keep] {m T} {at} each of {his} {n groups} {here}."""),
    kind("there are groups", "groups?", "grouped", 50, "n * m: total there", """
        There [+be] {n groups} {here} with {m T} {at} each {group}. | There [+be] {n groups} {here}, each with
        {m T}. | There [+be] {n groups} {here}. (Every|Each) {group} ([-have]|[-contain]|[-hold]) {m T}. |
        There [+be] {n groups} {here}. {At} each {group} there [+be] {m T}. | {n groups} {here}
        ([+have]|[+hold]) {m T} each. | Each of the {n groups} {here} ([-have]|[-hold]) {m T}."""),
    kind("more groups", "grouped", "there", 60, "n * m: in groups; a + x: in all groups", """
        Another {n groups} ([+have]|[+hold]) {m T} each. | There [+be] also {n groups} with {m T} {at} each. |
        {n} more {groups} ([+have]|[+hold]|[+contain]) {m T} each. | {n} other {groups} {here} [+have] {m T}
        each."""),
    kind("in so many groups", "groups?", "end", 16, "n * m: in groups", """
        There [+be] {m T} {at} (each|every|one) {group} {here}. | (Each|Every|One) {group}
        ([-have]|[-contain]|[-hold]) {m T}. | {At} (each|every) {group} there [+be] {m T}. | {m T} [+fit] {at}
        (one|each) {group}. | Someone [-put] {m T} {at} each {group}."""),
    kind("groups for so many", "groups?", "end", 20, "t / m: groups for", """
        There [+be] {m T} {at} (each|every|one) {group} {here}. | (Each|Every|One) {group}
        ([-have]|[-hold]|[-contain]) {m T}. | {m T} [+fit] {at} (one|each) {group}. | Someone [-put] {m T}
        {at} each {group}."""),
    kind("number of groups", "groups?", "end", 34, "t / m: groups", """
        There [+be] {t T} (in all|altogether|) {here}. (Each|Every|One) {group} ([-have]|[-hold]|[-contain])
        {m T}. | {At} each {group} there [+be] {m T}. (In all|Altogether), there [+be] {t T}. | There [+be]
        {t T}, {m} {at} each {group}. | {t T} [+be] {at} {groups}, with {m} {at} each {group}. | Someone
        [-put] {t T} {at} {groups}, {m} {at} each. | {m T} [+fit] {at} one {group}, and there [+be] {t T}
        {here}."""),
    kind("size of groups", "groups?", "end", 34, "t / n: each", """
        There [+be] {t T} and {n groups}. (Each|Every) {group} ([-have]|[-hold]|[-contain]) the same number of
        {T}. | {t T} [+be] {at} {n groups}, the same number {at} each. | There [+be] {n groups} {here} and (in
        all|altogether) {t T}, equally many {at} each {group}. | {n groups} ([+have]|[+hold]|[+contain]) {t T}
        in all, the same number each. | Someone [-put] {t T} {at} {n groups} equally."""),
    kind("each person has", "crowd?", "own", 20, "n * m: they have", """
        {n friends} ([+have]|[+bring]|[+own]|[+get]) {m T} each {where}. | Each of the {n friends}
        ([-have]|[-bring]|[-own]) {m T} {where}. | There [+be] {n friends} {here}. Each {friend}
        ([-have]|[-bring]) {m T}. | There [+be] {n friends} {here} and each {friend} ([-own]|[-get])
        {m T}."""),
    kind("dozens", "own?", "own", 10, "n * 12: have", """
        {S} ([have]|[own]) {n} dozen {T}. | {S} ([buy]|[get]) {n} dozen {T} {where}. | (There [+be]|Someone
        [-put]) {n} dozen {T} in {S:'s} {box}."""),
    kind("groups and single ones", "own?", "own", 20, "n * m: have; x + b: now", """
        {S} [have] {n groups} (of|with) {m T} each and {b} (more|loose|single) {T}. | {S} [have] {n groups}
        with {m T} in each, plus {b more T}. | {S} already [have] {b T}. Then {S} [GET] {n groups} of
        {m}."""),
    kind("two for each person", "crowd?", "end", 12, "m + c: each has; n * x: both in all", """
        Each of the {n friends} ([-have]|[-bring]|[-get]) {m T} and {c T2} {where}. | {n friends}
        ([+have]|[+get]) {m T} and {c T2} each."""),
    kind("contents", "boxes", "content", 200, "a * m: content", """
        There [+be] {m content} in (each|every) {T1}. | (Each|Every) {T1} ([-have]|[-contain]|[-hold])
        {m content}. | {m content} [+be] in each {T1}."""),
    kind("shares", "own money", "end", 60, "a / d: share", """
        {S} [share] {them} equally among {d friends}. | {S} [give] {them} to {d friends} in equal parts. | {S}
        [split] {them} evenly among {d friends}. | {S} [want] to share {them} equally among {d friends}. |
        {d friends} [+get] {them} from {S:him} in equal shares."""),
    kind("shares with one who has", "own", "end", 16, "a / d: share; x + b: has then", """
        {S} [share] {them} equally among {d friends}. One of them, {M}, already [-have] {b T}. | {S} [split]
        {them} evenly among {d friends}. {M}, one of them, [-have] {b} others."""),
    kind("shares with one who loses", "own", "end", 16, "a / d: share; x - v: has then", """
        {S} [share] {them} equally among {d friends}. One of them, {M}, [-LOSE] {v}. | {S} [split] {them}
        evenly among {d friends}. {M}, one of them, [-LOSE] {v T}."""),
    kind("shares the rest", "own", "end", 26, "a - l: shared; x / z: share", """
        {l} of {them} [+be] {adj}. {S} [share] (the rest|the others) equally among {z friends}. |
        {S} ([keep] {l} of {them}|[LOSE] {l of T}) and [share] the rest equally among {z friends}. | {S}
        [keep] {l} of {them} and [give] the rest to {z friends} in equal parts. | {S} ([keep] {l} of
        {them}|[LOSE] {l of T}). {z friends} [+get] the rest in equal shares."""),
    kind("packs the rest", "own", "end", 26, "a - l: left; x / z: boxes", """
        {S} [LOSE] {l of T} and [put] the rest into {groups} of {z}. | {l} of {them} [+be] set aside. {S}
        [pack] the (others|rest) into {groups} of {z}. | {S} [LOSE] {l of T} and [pack] the (others|rest), {z}
        into each {group}."""),
    kind("stand in rows", "there", "end", 16, "a / d: rows", """
        The {T} [+be] (in|put in|standing in) rows of {d}. | There [+be] {d T} in (each|every) row. | Each row
        [-have] {d T}. | The {T} [+be] in equal rows, {d} in each."""),
    kind("form groups", "there", "end", 20, "a / d: form groups", """
        (The|All the) {T} [+form] groups of {d}. | (The|All the) {T} [+be] (split|put) into groups of {d}. |
        In each group there [+be] {d T}."""),
    kind("form pairs", "there", "end", 8, "a / h: pairs", """
        (The|All the) {T} ([+form] pairs|[+line] up in pairs). | The {T} [+be] (put|set|) in pairs."""),
    kind("form equal groups", "there", "end", 20, "a / d: in a group", """
        (The|All the) {T} [+form] {d} equal groups. | The {T} [+be] (split|put) equally into {d} groups. |
        There [+be] {d} groups, and each [-have] the same number of {T}."""),
    kind("packs by size", "own", "end", 50, "a / d: boxes", """
        {S} [pack] {them} in {groups} of {d}. | {S} [put] {d} of {them} into each {group}. | Each {group}
        [-can] hold {d T}. | {S} [put] {them} into {groups} with {d} in each. | {S} [want] to put {them} into
        {groups} of {d}. | {d T} [+fit] into one {group}. | {S} [make] {groups} of {d} (|from {them})."""),
    kind("packs by number", "own", "end", 50, "a / d: each", """
        {S} [pack] {them} into {d groups}, the same number in each. | {S} [put] {them} equally into
        {d groups}. | {S} [divide] {them} into {d groups} equally. | {S} [split] {them} evenly into
        {d groups}. | {S} [sort] {them} into {d groups} with equally many in each."""),
    kind("uses daily", "own", "end", 20, "a / d: lasts", """
        {S} [USE] {d T} each {unit}. | Every {unit} {S} [USE] {d} of {them}. | {S} [USE] {d T} per {unit}. |
        {S} [USE] up {d} of {them} every {unit}."""),
    # money
    kind("buys at a price", "shop?", "spent", 60, "n * p: pay", """
        {S} [BUY] {n things} (for|at) {p money} each. | {S} [BUY] {n things}. Each {thing} [-cost] {p money}.
        | {S} [BUY] {n things} that [+cost] {p money} each. | One {thing} [-cost] {p money} and {S} [BUY]
        {n things}. | (One|Each) {thing} [-cost] {p money}. {S} [BUY] {n things}."""),
    kind("buys two at prices", "shop?", "spent", 160,
         "n * p: pay; w * f: pay for others; s + x: spend in all", """
        {S} [BUY] {n things} (for|at) {p money} each and {w things2} (for|at) {f money} each. | {S} [BUY]
        {n things} and {w things2}. Each {thing} [-cost] {p money} and each {thing2} [-cost] {f money}. |
        ({A_thing}|One {thing}) [-cost] {p money} and ({a_thing2}|one {thing2}) [-cost] {f money}. {S} [BUY]
        {n things} and {w things2}. | {S} [BUY] {n things} that [+cost] {p money} each and {w things2} that
        [+cost] {f money} each. | {Things} [+cost] {p money} each, {things2} {f money} each. {S} [BUY]
        {n things} and {w things2}."""),
    kind("sells two at prices", "shop?", "end", 50, "n * p: get for; w * f: get for others; s + x: earns", """
        {S} [sell] {n things} (for|at) {p money} each and {w things2} (for|at) {f money} each. | {S} [sell]
        {things} for {p money} each and {things2} for {f money} each. (|{Later},|That day) {S} [sell]
        {n things} and {w things2}."""),
    kind("cost of two kinds", "shop?", "end", 90,
         "n * p: cost of; w * f: cost of the others; s + x: cost of both", """
        ({A_thing}|One {thing}) [-cost] {p money} and ({a_thing2}|one {thing2}) [-cost] {f money} {store}. |
        {Things} [+cost] {p money} each and {things2} (|[+cost]) {f money} each {store}. | {Store}, the price
        of one {thing} [-be] {p money} and that of one {thing2} {f money}."""),
    kind("price of one", "shop?", "end", 30, "s / n: one costs", """
        {S} [pay] {s money} for {n things} {store}. | {S} [BUY] {n things} for {s money} {store}. | {S}
        [spend] {s money} on {n things} {store}. | {n things} [+cost] {S:him} {s money} (in all|altogether|).
        | {S} [BUY] {n things} and [pay] {s money} for them. | For {n things}, {S} [pay] {s money}."""),
    kind("price of others", "shop?", "end", 24, "s / n: one costs; x * w: cost of others", """
        {S} [pay] {s money} for {n things} {store}. | {S} [BUY] {n things} for {s money} {store}. |
        {n things} [+cost] {s money} {store}. | For {n things}, {S} [pay] {s money}. | The price of {n things}
        [-be] {s money} {store}."""),
    kind("number bought", "shop?", "end", 30, "s / p: bought", """
        {S} [spend] {s money} on {things} {store}. Each {thing} [-cost] {p money}. | (One|Each) {thing}
        [-cost] {p money}. {S} [buy] {things} for {s money} {store}. | {S} [spend] a total of {s money} on
        {things} that [+cost] {p money} each. | {S} [pay] {s money} for {things} at {p money} each. | {S}
        [have] {s money} and [spend] it all on {things} at {p money} each."""),
    kind("cost of so many", "shop?", "end", 24, "n * p: cost of", """
        (One {thing}|{A_thing}|Each {thing}) [-cost] {p money} {store}. | The price of one {thing} [-be]
        {p money} {store}. | {Things} ([+cost]|[+be]) {p money} each {store}. | The shop [-sell] {things} at
        {p money} each. | {Store}, one {thing} [-cost] {p money}."""),
    kind("pays with", "spent", "end", 60, "i - a: change", """
        {S} [pay] with {bill}. | {S} [give] the cashier {bill}. | {S} [hand] over {bill}. | {S} [pay] with
        {i T}. | {S} [give] {i T} to the cashier."""),
    kind("spends more", "spent", "spent", 50, "a + p: spend in all", """
        {S} also [buy] {item} for {p T}. | {S} [pay] {p T} for {item}. | Then {S} [spend] {p T} on {item}. |
        {S} [buy] {item} that [-cost] {p T}. | {Item} [-cost] {S:him} {p T}."""),
    kind("buys more at a price", "spent", "spent", 40, "n * p: pay; a + x: spend in all", """
        {S} (also|then) [buy] {n things} for {p T} each. | {S} [buy] {n things}. (Each|One) {thing} [-cost]
        {p T}. | {S} (also|) [buy] {n things} at {p T} each."""),
    kind("pays less", "spent", "end", 24, "a - l: pay in the end", """
        {S} [have] a coupon for {l T} off. | {S} [get] a discount of {l T}. | {S} [use] a gift card of {l T}.
        | The shop [-take] {l T} off."""),
    kind("pays a bill for", "shop?", "end", 40, "n * p: pay; i - x: change", """
        {S} [give] the cashier {bill} for {n things} that [+cost] {p money} each. | {S} [pay] with {bill} for
        {n things} at {p money} each. | {S} [BUY] {n things} for {p money} each with {bill}. | {S} [have]
        {bill} and [BUY] {n things} at {p money} each. | {S} [pay] for {n things} with {bill}. (Each|One)
        {thing} [-cost] {p money}."""),
    kind("splits the cost", "spent", "end", 30, "a / d: each pays", """
        {d friends} [+share] the cost (equally|evenly). | The cost [-be] (split|shared) equally among
        {d friends}. | {d friends} [+split] the cost evenly. | {d friends} [+pay] for it together, each the
        same."""),
    kind("had money", "spent", "money", 50, "g - a: left", """
        {S} had {g T} (at first|before that|in the beginning). | {S} had come to the shop with {g T}. | {S}
        started with {g T}. | There was {g T} in {S:'s} (purse|wallet) (at first|before that)."""),
    kind("buys from money", "money", "money", 40, "n * p: pay; a - x: left", """
        {S} [buy] {n things} for {p T} each. | {S} [buy] {n things}. Each {thing} [-cost] {p T}. | {S} [buy]
        {n things} at {p T} each. | (One|Each) {thing} [-cost] {p T}. {S} [buy] {n of things}. | {S} [buy]
        {n things} that [+cost] {p T} each."""),
    kind("can afford", "money", "end", 40, "a / d: can buy", """
        (One {thing}|{A_thing}|Each {thing}) [-cost] {d T}. | The price of one {thing} [-be] {d T}. | {Things}
        [+cost] {d T} each. | {S} [want] to buy {things} that [+cost] {d T} each."""),
    kind("sells at a price", "own", "end", 40, "a * p: earns", """
        {S} [sell] {them} (for|at) {p money} each. | Each {T1} [-be] sold for {p money}. | {S} [sell] all of
        the {T} for {p money} apiece. | {S} [get] {p money} for each {T1}."""),
    # so much in so long
    kind("for so long", "rate?", "act", 70, "r * n: total", """
        {S} [V] {r T} {per} for {n units}. | For {n units}, {S} [V] {r T} {per}. | {S} [V] {r T} (every|each)
        {unit} for {n units}. | {Each_unit}, {S} [V] {r T}, for {n units}. | {S} [V] {r T} {per}. (This [-go]
        on|{S} [do] so|{S} [keep] this up) for {n units}."""),
    kind("in so long", "rate?", "end", 26, "r * n: in time", """
        {S} [V] {r T} {per}. | {Each_unit}, {S} [V] {r T}. | {S} usually [V] {r T} {per}. | {S} [V] {r T} in
        one {unit}."""),
    kind("more a day", "rate?", "end", 20, "r + b: rate of the other; x * n: other in time", """
        {S} [V] {r T} {per}. {O} [-V] {b more T} {per} than {S:him}. | {S} [V] {r T} {per}, and {O} [-V]
        {b more T} {per}. | {Each_unit}, {S} [V] {r T} and {O} [-V] {b more T}."""),
    kind("times as many a day", "rate?", "end", 14, "r * k: rate of the other; x * n: other in time", """
        {S} [V] {r T} {per}. {O} [-V] {k times} as {many} {per} as {S:him}. | {S} [V] {r T} {per}, and {O}
        [-V] {k times} as {many}. | {Each_unit}, {S} [V] {r T} and {O} [-V] {k times} as {many}. | {O} [-V]
        {k times} as {many} {per} as {S:him}. {S} [V] {r T} {per}."""),
    kind("still to do", "rate?", "end", 40, "r * n: in time; g - x: need act", """
        {S} [have] to {V} {g T}. {S} [V] {r T} {per} for {n units}. | {S} [want] to {V} {g T} in all. For
        {n units}, {S} [V] {r T} {per}. | {S:'s} goal [-be] to {V} {g T}. {Each_unit}, {S} [V] {r T}, for
        {n units}."""),
    kind("to do after so long", "rate?", "end", 24, "r * n: in time; g - x: to do after", """
        {S} [have] to {V} {g T}. {S} [V] {r T} {per}. | {S} [V] {r T} {per} and [want] to {V} {g T} in all. |
        {S} [need] to {V} {g T} and [V] {r T} {per}. | {S:'s} goal [-be] to {V} {g T}. {Each_unit}, {S} [V]
        {r T}."""),
    kind("how long", "rate?", "end", 26, "u / r: takes", """
        {S} [V] {r T} {per}. {S} [want] to {V} {u T}. | {Each_unit}, {S} [V] {r T}. {S} [have] to {V} {u T} in
        all. | {S} [need] to {V} {u T} and [V] {r T} {per}. | {S} [V] {u T} in all, {r} {per}."""),
    kind("how much a day", "rate?", "end", 26, "u / n: rate", """
        {S} [V] {u T} in {n units}. | In {n units}, {S} [V] {u T}. | It [-take] {S:him} {n units} to {V}
        {u T}. | {S} [V] {u T} in {n units}, the same number every {unit}."""),
    kind("in another time", "rate?", "end", 20, "u / n: rate; x * w: in other time", """
        {S} [V] {u T} in {n units}. | In {n units}, {S} [V] {u T}. | It [-take] {S:him} {n units} to {V}
        {u T}. | {S} [can] {V} {u T} in {n units}. | {S} [need] {n units} to {V} {u T}."""),
    kind("is paid for each", "act", "end", 14, "a * p: earns", """
        {S} [get] {p money} for each {T1}. | For each {T1}, {S} [get] {p money}. | {S} [be] paid {p money} for
        every {T1}. | {O} [-pay] {S:him} {p money} for each {T1}."""),
    kind("for so many weeks", "rate?", "act", 10, "w * 7: days; r * x: total", """
        {S} [V] {r T} (each|every|a) day for {w weeks}. | For {w weeks}, {S} [V] {r T} (each|every|a)
        day."""),
    kind("several do it", "rate?", "end", 24, "r * w: one alone; x * n: all of them", """
        (Each of the|Each of) {n friends} [-V] {r T} {per} for {w units}. | For {w units}, {n friends} [+V]
        {r T} {per} each. | There [+be] {n friends}. Each {friend} [-V] {r T} {per} for {w units}. |
        {n friends} each [+V] {r T} {per} for {w units}."""),
    # ages, lengths, weights
    kind("in years", "age", "end", 60, "a + y: in years", ""),
    kind("years ago", "age", "end", 40, "a - l: years ago", ""),
    kind("grows", "grows", "end", 60, "a + b: be now", """
        {S} [grow] ({b more T}|by {b T}). | Then {S} [grow] another {b T}. | In a year {S} [grow] {b T}. |
        During the summer, {S} [grow] {b more T}."""),
    kind("is shortened", "cut", "end", 60, "a - l: be now", """
        {O} [-cut] {l T} off {S:him}. | {l T} of {S:him} [+be] cut off. | {O} [-use] {l T} of {S:him}. | {O}
        [-cut] off {l T} of {S:him}."""),
    kind("is cut", "cut", "end", 60, "a / d: pieces", """
        {S} [be] cut into pieces of {d T}. | {O} [-cut] {S} into pieces of {d T} each. | {S} [be] cut into
        pieces, each {d T} long. | {O} [-divide] {S:him} into pieces of {d T}."""),
    kind("rest is cut", "cut", "end", 30, "a - l: be now; x / z: each part", """
        {O} [-cut] off {l T} and [-cut] the rest into {z} equal pieces. | First {l T} [+be] cut off, then the
        rest [-be] cut into {z} equal parts."""),
    # around a garden
    kind("around", "field?", "end", 60, "a + b: both sides; x * h: around", """
        {S} [be] {a T} long and {b T} wide. | {S} [be] a rectangle of {a T} by {b T}. | The sides of {S:him}
        [+be] {a T} and {b T} long. | {S} [have] a length of {a T} and a width of {b T}."""),
    kind("around a square", "field?", "end", 30, "a * 4: around", """
        {S} [be] a square with sides of {a T}. | {S} [be] a square. Each side [-be] {a T} long. | Each of the
        four sides of {S:him} [-be] {a T} long."""),
    kind("area", "field?", "end", 40, "a * b: area", """
        {S} [be] {a T} long and {b T} wide. | {S} [be] a rectangle of {a T} by {b T}. | {S} [have] a length of
        {a T} and a width of {b T}."""),
    kind("parts", "parts?", "end", 14, "b * e: parts", """
        There [+be] {b T} {here}. | {S} ([see]|[have]|[count]|[draw]|[paint]|[photograph]) {b T} {here}. | {S}
        [look] at {b T} {here}. | {S} [have] a picture of {b T}."""),
    kind("parts of so many", "parts? units?", "end", 10, "n * e: parts of", """
        (Every {T1}|Each {T1}|{A_T1}|One {T1}) [-have] {e parts}. | {S} [know] that (every {T1}|each
        {T1}|{a_T1}|one {T1}) [-have] {e parts}. | In a book {S} [read] that (every {T1}|each
        {T1}|{a_T1}) [-have] {e parts}."""),
]
QUESTIONS |= {name: QUESTIONS[same] for name, same in {
    "diff age": "diff be", "diff weigh": "diff be", "two": "act", "two there": "there",
    "two price": "total price", "two age": "total age", "two weigh": "total weigh"}.items()}


def other_question(name, weight, steps):
    """A Kind that tells the same as the one of this name and asks for something else: where Tom has 9 apples,
    buys 5 and then 3, not what he has now but what he bought. What people gave him he did not buy.
    """
    same = next(kind for kind in KINDS if kind.name == name)
    say = [wording for wording in same.say if not re.search("got|lost", steps) or "give]" not in wording]
    steps = read_steps(steps)
    return same._replace(name=f"{name} ({steps[-1][1]})", gives="end", weight=weight, steps=steps, say=say)


KINDS += [other_question(*row) for row in (
    ("loses twice", 14, "l + v: lost in all"),
    ("gains twice", 14, "b + c: got in all"),
    ("gains groups", 14, "n * m: got"),
    ("gives each", 14, "n * m: gave"),
    ("spends twice", 16, "l + v: spend in all"),
    ("loses and gains", 14, "b - l: got more"),
    ("loses and gains", 14, "l - b: lost more"),
    ("two things lost", 22, "b - o: left of the other"),
    ("two things gained", 18, "c + m: now of the other"),
    ("had money before both", 14, "y + b: spend in all"),
    ("had money before both", 14, "b - y: spend more"),
    ("buys from money", 12, "n * p: pay"),
    ("two things in each", 12, "m + c: in each"),
    ("two things in each", 10, "m + c: in each; n * x: both in all"))]

KINDS += comparisons()
TIMELESS = {"groups", "there are groups", *TELL, *(  # facts that can be told in any order
    kind.name for kind in KINDS if kind.gives in ("other", "joint", "difference"))}


# ---- the template teacher's language: forms of words -------------------------------------------------------

def word_list(text):
    """The words of a table; a "_" in one is a space."""
    return [word.replace("_", " ") for word in text.split()]


def row_list(text):
    """Like `word_list`, each split at its colons."""
    return [word.split(":") for word in word_list(text)]


def by_sort(**texts):
    """Tables, one a keyword, as {sort of thing: list of words}."""
    return {sort: word_list(text) for sort, text in texts.items()}


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
person:people tomato:tomatoes potato:potatoes mango:mangoes foot:feet"""))


def plural(noun):
    """"slice of bread" -> "slices of bread"."""
    head, of, rest = noun.partition(" of ")
    *before, last = head.split(" ")
    return " ".join([*before, PLURALS.get(last) or add_s(last)]) + of + rest


AUXILIARIES = {  # present of many and of one, past of many and of one; DO is that of a question
    "DO": ("do", "does", "did", "did"), "can": ("can", "can", "could", "could"),
    "will": ("will", "will", "would", "would"), "be": ("are", "is", "were", "was"),
    "have": ("have", "has", "had", "had")}
PAST = dict(row_list("""fit:fit do:did go:went get:got give:gave keep:kept pay:paid spend:spent find:found
    make:made take:took put:put cost:cost hold:held leave:left bring:brought send:sent grow:grew
    split:split see:saw cut:cut say:said buy:bought sell:sold draw:drew know:knew think:thought
    begin:began win:won catch:caught dig:dug build:built choose:chose lose:lost eat:ate break:broke
    throw:threw lend:lent read:read run:ran drive:drove swim:swam write:wrote drink:drank sleep:slept
    sing:sang ride:rode lay:laid feed:fed hang:hung teach:taught light:lit fly:flew come:came quit:quit
    meet:met"""))
DOUBLED = word_list("knit stop plan chop jog hop skip wrap shop drop ship trip jam rub grab step")


def conjugate(verb, tense, many):
    """A verb's form: ("give away", "past", False) -> "gave away". many: of more than one. Tenses: present,
    past, will, would.
    """
    verb, *rest = verb.split(" ")
    if tense in ("will", "would"):
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

DOLLARS = Thing("dollar")
BOYS = word_list("""Adam Ali Anton Ben Bill Bruno Carl Chen Dan David Diego Eric Felix Finn Frank Fred George
Hassan Henry Hugo Ivan Jack Jake James Jamal Jim Joe John Jonas Josh Juan Karl Kevin Kofi Kurt Leo Liam Luis
Marco Mark Matt Max Mike Milo Ned Nick Noah Oliver Omar Oscar Paul Pedro Peter Raj Robert Ryan Sam Simon Steve
Tariq Ted Theo Tim Tom Tony Victor Yuri Zack""")
GIRLS = word_list("""Alice Amara Amy Ana Anna Beth Carla Carmen Carol Chloe Clara Dana Daisy Elena Ella Emily
Emma Eva Farah Fiona Gina Grace Greta Hana Hannah Helen Ines Irene Jane Jenny Jill Joan Julia Kate Kim Laila
Laura Lena Lily Lina Lisa Lucy Maria Mary Maya Megan Mia Mina Nadia Nancy Nina Nora Olga Olivia Priya Rania
Rita Rosa Ruth Sally Sandra Sara Sofia Sue Tina Uma Vera Wanda Yara Zoe""")
SURNAMES = word_list("""Adams Baker Brown Carter Clark Cook Davis Diaz Evans Fisher Garcia Gray Green Hall
Hill Jones Khan Kim King Lee Lopez Miller Moore Patel Reed Rivera Smith Stone Taylor Walker White Young""")
FAMILY = {"he": word_list("Dad Grandpa my_brother my_uncle my_cousin Uncle_Bob Uncle_Joe my_friend"),
          "she": word_list("Mom Grandma my_sister my_aunt my_teacher Aunt_May Aunt_Rose my_mother")}
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

# Sorts of things: f food, g what grows and is picked, t toys and collections, s school and paper,
# c clothes and things made by hand, h household and tools, a animals.
NOUNS = by_sort(
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
orange:white:black red:white:yellow small:medium:large green:purple:pink tall:short dark:light used:new""")
FITTING = by_sort(  # the adjectives of a thing
    f="fresh dried big large small medium sweet sour plain round square",
    a="white brown black big small medium old gray large new",
    g="red green yellow blue ripe unripe fresh dried big small medium large sweet sour white black",
    other="""medium red blue green yellow big small old new white black long short wooden plastic large round
square plain striped brown gray pink purple heavy light cheap expensive broken whole gold silver clean dirty
shiny dull thick thin orange dark used""")
CONTAINERS = by_sort(
    f="box bag plate jar tray basket packet tin bowl", g="basket crate bag box sack bowl bucket carton",
    t="box bag jar pack drawer tin pile bin", s="box pack drawer folder stack carton bag",
    c="box bag pile drawer crate suitcase rack", h="box crate pack carton drawer stack",
    a="cage pen barn")
BOXES = word_list("box bag jar basket crate pack")
GROUPS = row_list("""chair:row:in tree:row:in student:team:in child:group:in photo:page:on book:shelf:on
car:row:in seat:row:in soldier:line:in desk:row:in player:team:on passenger:bus:on flower:vase:in bird:cage:in
guest:table:at dancer:group:in plant:row:in page:chapter:in camper:tent:in problem:page:on stamp:page:on
picture:wall:on window:floor:on apple:tree:on room:floor:on worker:crew:in singer:row:in rower:boat:in
kid:van:in star:flag:on bead:necklace:on button:shirt:on candle:cake:on petal:flower:on slice:pizza:in
song:album:on light:string:on lamp:street:in nail:board:in""")
HAVE_PARTS = row_list("""dog:4:leg cat:4:leg horse:4:leg spider:8:leg bird:2:wing chicken:2:leg ant:6:leg
bee:6:leg car:4:wheel bicycle:2:wheel tricycle:3:wheel octopus:8:arm hand:5:finger triangle:3:side
square:4:side table:4:leg stool:3:leg cube:6:face wagon:4:wheel truck:6:wheel pentagon:5:side crab:10:leg
cow:4:leg sheep:4:leg""")
UNITS = row_list("""week:7:day year:12:month hour:60:minute day:24:hour dozen:12:egg meter:100:centimeter
quarter:25:cent dime:10:cent minute:60:second nickel:5:cent""")

# verbs of events, and the things that they go with
GAINS = row_list("""buy:fgtscha get:fgtscha find:gtsh receive:fgtscha collect:gts pick:g gather:g win:ftsc
make:fc bake:f cook:f grow:g order:ftsch borrow:tsh earn:t harvest:g bring_home:ftsch discover:t catch:a sew:c
knit:c paint:c print:s craft:c raise:a adopt:a unpack:tsch acquire:tsh dig_up:g prepare:f rescue:a
draw:s obtain:tsh purchase:fgtscha choose:tsc take_home:fgtsc add:tsch pick_up:gtsh pull_out:g fetch:gh""")
LOSSES = row_list("""lose:tscha eat:fg sell:fgtscha use:fsh give_away:fgtscha break:th throw_away:gtsh
donate:tsch trade:t drop:fgth return:tsh burn:h waste:fs serve:fg finish:f remove:tsch misplace:tsch
lend_out:tsh ship:tsch hand_out:ftsg pass_out:fts send_off:sat recycle:sh ruin:c
release:a smash:h crush:f drop_off:tsch mail:s bury:t spoil:f leave_behind:tsch squash:g chop_up:g""")
# what shops and schools do
FOR_PLACES = word_list("buy get order receive sell use give_away donate lend_out ship purchase")
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
fly:on_the_window:land:fly_off""")]
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
WHICH = row_list("first:second old:new")
FIELDS = word_list("garden playground field park pool room pen vegetable_patch parking_lot backyard lawn")
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
# of two times together, by the first
BOTH_TIMES = {first: both for both, *firsts in row_list("""
on_both_days:on_Monday:yesterday:on_Thursday over_the_weekend:on_Saturday that_day:in_the_morning:before_lunch
over_the_two_days:on_the_first_day in_both_months:in_May:last_month:in_March:in_January
in_both_weeks:last_week:in_the_first_week in_both_years:last_year in_both_hours:in_the_first_hour
in_both_games:in_the_first_game in_the_whole_game:in_the_first_half that_year:in_spring""")
              for first in firsts}
SPOTS = row_list("""in_the_basket:in_the_bowl on_the_table:on_the_floor in_the_kitchen:in_the_cellar
in_the_red_box:in_the_blue_box in_the_front_yard:in_the_back_yard on_the_left:on_the_right upstairs:downstairs
in_the_bag:in_the_box in_the_first_room:in_the_second_room at_home:at_school
on_the_top_shelf:on_the_bottom_shelf in_the_old_house:in_the_new_house""")
STORES = word_list("at_the_market at_the_fair in_the_shop at_a_yard_sale at_the_store at_the_mall on_Friday")
WHERE = STORES + word_list("""at_school at_the_park on_the_way_home at_home after_school for_a_party
for_a_friend during_the_holidays in_the_morning before_dinner at_camp in_the_evening""")
HERE = ["", "", "", ""] + word_list("at_the_market at_the_fair at_school in_the_hall")
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
adult:child:person student:teacher:person cat:dog:pet rose:tulip:flower apple:pear:fruit novel:comic:book
dime:nickel:coin car:truck:vehicle cow:sheep:animal duck:goose:bird carrot:onion:vegetable pine:oak:tree
chair:stool:seat goldfish:guppy:fish violin:guitar:instrument""")]
PEOPLE_WHOLES = 4  # the first so many of WHOLES are people: they come and go
CROWDS = word_list("""in_the_class on_the_bus in_the_park at_the_party in_the_choir in_the_club at_the_camp
in_the_hall on_the_train in_the_theater at_the_pool in_the_museum""")
NUMBER_WORDS = word_list("no one two three four five six seven eight nine ten eleven twelve")
BILLS = 5, 10, 20, 50, 100, 500, 1000, 5000
EACH = "each", "every", "per"
THEM = "the {T}", "the {T}", "them"
THEM_NOW = {"now": "all the {T}", "left": "the remaining {T}"}  # after a gain, after a loss
NOW_HAS = "now {S} [!have] #", "{S} [!have] # now", "{S} now [!have] #", "in the end {S} [have] #"
NTH = dict(enumerate(word_list("third quarter fifth sixth seventh eighth ninth tenth"), 3))
PRONOUNS = {row[0]: dict(zip(("", "him", "'s"), row))
            for row in row_list("he:him:his she:her:her it:it:its they:them:their I:me:my we:us:our")}
ONSETS = word_list("""b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kl kr pl pr qu sc sh
sk sl sm sn sp st th tr wh""")
VOWELS = word_list("a a a e e e i i i o o o u u ai ay ea ee ia ie oa oo ou y")
CODAS = word_list("b ck d g k l ll m n n nd ng nn nt p r rd rk rt s ss st t tt th x")
LISTED = {word.lower() for listed in (BOYS, GIRLS, SURNAMES, *NOUNS.values(), word_list(
    "she her his him they them the and one none who how what")) for word in listed}


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

    def thing(self, sorts):
        nouns = NOUNS[sort := self.rng.choice(sorts)]
        made_up, listed = lambda: make_up_word(self.rng, self.training, nouns), lambda: self.rng.choice(nouns)
        return Thing(self.new(made_up if self.made_up_nouns else listed), sort=sort)


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
    body = text_field(row, "Body") if str(row.get("Body") or "").strip() else ""  # some have a question alone
    question = text_field(row, "Question")
    equation, answer = text_field(row, "Equation"), calculate(str(row.get("Answer")))
    if answer is None:
        raise Unfit("field 'Answer' is missing or no number")
    left, steps = re.sub(r"\.0\b", "", equation), []
    while match := OPERATION.search(left):
        a, op, b = match.groups()
        result = calculate(f"{a}{op}{b}")
        if result is None:
            raise Unfit(f"its equation {equation} does not compute")
        solution = f"<<{a}{op}{b}={result}>>{result}"
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
    """The settings that a run must share with its log."""
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode("utf-8")).hexdigest()
    return {"model": args.model, "style": args.style, "prompt": digest[:12], "extra": args.extra}


# ---- the LLM teacher: its server ---------------------------------------------------------------------------

# What a failed request means is decided in one place, `Endpoint.ask`. A failure that may pass is retried,
# --retries times. If it does not pass, its problem is set aside: it has no result yet, and the next run asks
# again. When as many problems in a row as the failure's `limit` were set aside, no good reply between them,
# the run stops.
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
    echo it, it is struck out before anyone sees the reply, unless it has less than 8 characters: words such
    as "none" are in replies anyway.
    """

    def __init__(self, args):
        self.args, self.url = args, completions_url(args.url)
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not re.fullmatch(r"[!-~]*", self.key):
            raise UserError("OPENAI_API_KEY: the key holds characters that no HTTP header can carry")
        # the key as a server may echo it: JSON can escape any of its characters, as \/ or \u002f
        echo = "".join(rf"(?:\\*{re.escape(char)}|\\+u(?i:{ord(char):04x}))" for char in self.key)
        self.echo = re.compile(echo.encode())
        self.thread, self.lock = threading.local(), threading.Lock()
        self.stop = threading.Event()  # set when the run ends: waiting requests give up
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
        if len(self.key) >= 8:
            content = self.echo.sub(b"***", content)
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
        text, wait = content.decode("utf-8", "replace"), seconds_to_wait(retry_after)
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
        """Write a row. The system has it at once, the disk about once a second."""
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
        """Annotate a problem and write it, so that a kill loses unanswered requests alone. Returns whether it
        has begun with it.
        """
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
          "answer": "last solutions that do not say the answer",
          "twice": "problems that the file has already", "leak": "problems of an earlier file"}


def check(args):
    """Check files of annotations, each and against the earlier ones: print what is wrong and a line a file.

    Exit status 1 if anything is wrong.
    """
    earlier, shown, lines = {}, Counter(), []  # earlier: {text of a problem of earlier files: where it is}
    for path in args.files:
        problems, faults = read_leniently(path)
        own = {}  # the same of this file
        for where, row in problems:
            for step in row["steps"]:
                faults += [("equation", where, fault) for fault in invalid_annotations(step["solution"])]
            if not states_answer(row["steps"][-1]["solution"], row["answer"]):
                faults.append(("answer", where, f"the last solution does not say the answer {row['answer']}"))
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
        solutions = [step["solution"] for _, row in problems for step in row["steps"]]
        n_annotations = sum(len(ANNOTATION.findall(text)) for text in solutions)
        wrong = ", ".join(f"{n:,} {FAULTS[kind]}" for kind, n in counts.items()) or "nothing"
        lines.append(f"{path}: {len(problems):,} problems, {len(solutions):,} steps, {n_annotations:,} "
                     f"calculator annotations; wrong: {wrong}")
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
        values = tuple(map(Fraction, text.split("/")))  # as floats 95.3, 4.6 and 0.1 do not sum to 100
    except (ValueError, ZeroDivisionError):
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
         help="begin no more problems once so many are used, those of earlier runs included")
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
