"""The template teacher: every problem against a world that is simulated here; grammar by rule; variety."""
import operator
import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

import annotate as teacher
import data

N = 20_000


def draw(rng, level=1, high=5, wordings="all"):
    """A story of one to `high` steps; names and nouns are often made up."""
    n_steps = rng.choices(range(1, high + 1), teacher.STEP_SHARES[:high])[0]
    words = lambda: teacher.Words(rng, rng.random() < 0.4, rng.random() < 0.4)
    return teacher.draw_story(rng, level, n_steps, words, wordings)


@pytest.fixture(scope="module")
def stories():
    """(story, row) of many problems of all levels."""
    rng = Random(5)
    drawn = [draw(rng, level=(1, 1, 2, 3)[k % 4]) for k in range(N)]
    return [(story, teacher.write_problem(story)) for story in drawn]


# ---- the world: facts in, answers out; it knows nothing of equations and steps -----------------------------

LEGS = dict(dog=4, cat=4, horse=4, spider=8, bird=2, chicken=2, ant=6, bee=6, car=4, bicycle=2, tricycle=3,
            octopus=8, hand=5, week=7, year=12, hour=60, triangle=3, square=4, table=4, stool=3, day=24,
            cube=6, dozen=12, wagon=4, truck=6, pentagon=5, meter=100, quarter=25, dime=10, minute=60,
            crab=10, cow=4, sheep=4, nickel=5)

# What the kinds of facts do to what is there, by their numbers (single letters). have: how much S has of what
# the fact is about, at its time; dollars, spent: S's; content: how much is in S's boxes.
CHANGES = {
    "have = a": "own, act, there, money, price, be, age, weigh",
    "have = have + b": "gain, come, earn, grows",
    "have = have - l": "lose, go, spend, is shortened",
    "have = have + b + c": "gains twice",
    "have = have - l - v": "loses twice, go twice, spends twice",
    "have = have - l + b": "loses and gains, go and come",
    "have = have + b - v": "gains and loses, come and go",
    "have = have + n * m": "gains groups, gains from each, more groups",
    "have = have + r * n": "saves so long",
    "have = have - n * m": "loses groups, gives each, loses so long",
    "have = have - n * p": "buys from money",
    "have = have / 2": "loses half",
    "have = have - have / q": "loses part",
    "have = n * m": "groups, each person has, there are groups",
    "have = n * 12": "dozens",
    "have = have * 2": "the same again",
    "have = n * m + b": "groups and single ones",
    "have = r * n": "for so long",
    "have = r * 7 * w": "for so many weeks",
    "content = have * m": "contents",
    "spent = spent + a": "spent",
    "spent = spent + p": "spends more",
    "spent = spent + n * p": "buys at a price, buys more at a price",
    "spent = n * p + w * f": "buys two at prices",
    "dollars = g - spent": "had money"}
# What one may ask after facts of some kinds ("kind: question", or both in one), and the answer. legs: LEGS.
ANSWERS = {
    "have / d": "shares: share, packs by size: boxes, packs by number: each, uses daily: lasts, is cut: "
                "pieces, can afford: can buy, form groups, form equal groups: in a group, "
                "stand in rows: rows",
    "have / 2": "loses half: lost, half of a kind: kind, form pairs: pairs",
    "have / q": "loses part: lost, share of a kind: kind",
    "have - l": "loses some: lost, some go: went, rest: other kind, one of two things: lost, "
                "two things lost: left, wants to keep: has to lose",
    "have + b": "two things gained: now",
    "have - l - v": "loses some of the rest: lost, rest of three kinds: third kind",
    "b - o": "two things lost (left of the other): left of the other",
    "c + m": "two things gained (now of the other): now of the other",
    "b - l": "loses and gains (got more): got more",
    "l - b": "loses and gains (lost more): lost more",
    "l + b": "some go before some come: now",
    "y + b + c": "had money before both: at first",
    "y + b": "had money before both (spend in all): spend in all",
    "b - y": "had money before both (spend more): spend more",
    "g - have": "gains some: got, some come: came, wants: need, wants to do: need, wants to buy: need",
    "(g - have) / z": "saves up: weeks, does the rest: takes",
    "(have - l) / z": "shares the rest: share, packs the rest: boxes, rest is cut: each part",
    "a - l": "had before a gain: at first, were before some came: at first",
    "b + c + y": "had before two losses: at first",
    "a - l + b": "had before both: at first",
    "g - a": "other part: same",
    "n * m": "in so many groups: in groups, gains groups (got): got, gives each (gave): gave, "
             "two things in each: total",
    "t / m": "number of groups: groups, groups for so many: groups for",
    "t / n": "size of groups: each",
    "i - spent": "pays with: change",
    "spent / d": "splits the cost: each pays",
    "s / n": "price of one: one costs",
    "s / n * w": "price of others: cost of others",
    "s / p": "number bought: bought",
    "n * p": "cost of so many: cost of, buys from money (pay): pay",
    "n * p + w * f": "sells two at prices: earns, cost of two kinds: cost of both",
    "r * n": "in so long: in time",
    "(r + b) * n": "more a day: other in time",
    "r * k * n": "times as many a day: other in time",
    "g - r * n": "still to do: need, to do after so long: to do after",
    "have - n * m": "loses until then: left after",
    "have + r * n": "saves until then: has after",
    "u / r": "how long: takes",
    "u / n": "how much a day: rate",
    "r * w * n": "several do it: all of them",
    "l + v": "loses twice (lost in all): lost in all, spends twice (spend in all): spend in all",
    "b + c": "had before a loss: at first, were before some left: at first, had money before: at first, "
             "gains twice (got in all): got in all",
    "m + c": "two things in each (in each): in each",
    "n * (m + c)": "two things in each (both in all): both in all, two for each person: both in all",
    "spent - l": "pays less: pay in the end",
    "i - n * p": "pays a bill for: change",
    "u / n * w": "in another time: in other time",
    "have * p": "sells at a price: earns, is paid for each: earns",
    "have / d + b": "shares with one who has: has then",
    "have / d - v": "shares with one who loses: has then",
    "(a + b) * 2": "around",
    "a * 4": "around a square: around",
    "a * b": "area",
    "legs * b": "parts",
    "legs * n": "parts of so many: parts of"}
EFFECTS = {"unneeded": [], "setting": []}  # {kind: [(what changes or may be asked, expression)]}
for expression, kinds in ANSWERS.items():
    for kind, _, question in (one.partition(": ") for one in kinds.split(", ")):
        EFFECTS.setdefault(kind, []).append((question or kind, expression))
for change, kinds in CHANGES.items():
    for kind in kinds.split(", "):
        EFFECTS.setdefault(kind, []).append(change.split(" = "))

# Comparisons, also with "there", "is" or "costs" before them: S has so many times as much as the other, and
# so much more, by the fact's number k.
COMPARISONS = {"more": lambda k: (1, k), "less": lambda k: (1, -k), "times": lambda k: (k, 0),
               "part": lambda k: (1 / k, 0)}

TIMES = {time for times in (*teacher.TIMES, *teacher.SPOTS) for time in times}
WHOLES = [[str(kind), str(whole)] for *kinds, whole in teacher.WHOLES for kind in kinds]


def about(f):
    """Who, what and when a fact or a question is about."""
    when = f["tail"] if {*f["tail"].split(" and ")} <= TIMES else ""
    return f["S"].name if f["S"] else "", str(f["T"]), when


def compared_with(f):
    """The same of what that is compared with: of another person, another time, or another thing."""
    (who, what, when), ref = about(f), f["ref"]
    if hasattr(ref, "name"):
        return ref.name, what, when
    return (who, what, ref) if ref in TIMES else (who, ref, when)


class World:
    """Who has how much of what, and when, as the facts of a story tell it one after the other."""

    def __init__(self, story):
        self.now, self.found, self.spent = {}, {}, Counter()
        waiting = []
        for fact in story.facts:
            waiting.append(fact)
            while read := next((one for one in waiting if self.read(one.kind, one.fields)), None):
                waiting.remove(read)  # "Ann has 3 more than Tom" waits for what Tom has
        assert not waiting, waiting

    def get(self, who, what, when=""):
        """An amount; of "Tom and Ann", of "apples and pears", of red and green ones, of two days: a sum."""
        if (who, what, when) in self.now:
            return self.now[who, what, when]

        def listed(names):  # "Ann and Tom"; "Ann and her brother" are Ann and Ann's brother
            first, *others = re.split(", | and ", names)
            return [first, *(re.sub("^(his|her) ", f"{first}'s ", one) for one in others)] if others else []

        parts = [(who, one, when) for one in listed(what)] or [(one, what, when) for one in listed(who)]
        parts = parts or [(who, what, one) for one in listed(when)]
        parts = parts or [(who, kind, when) for whose, kind, time in self.now if (whose, time) == (who, when)
                          and (kind.endswith(f" {what}") or [kind, what] in WHOLES)]
        parts = parts or [one for one in self.now if one[:2] == (who, what) and not when]
        amounts = [self.get(*part) for part in parts]
        return sum(amounts) if amounts and None not in amounts else None

    def read(self, kind, f):
        """Take in a fact; False: it cannot be understood yet."""
        who, what, when = about(f)
        if kind[:3] in ("2 T", "3 T", "3 t"):  # several things or times in a row
            for n, thing, tail in zip("abc", ("T", "T2", "T3"), ("tail", "tail2", "tail3")):
                if thing in f:
                    self.now[about(f | {"T": f[thing], "tail": f[tail] or f["tail"]})] = Fraction(f[n])
            return True
        known = {name: Fraction(n) for name, n in f.items() if re.fullmatch("[a-z]", name) and n is not None}
        comparison = re.sub("^(there|is|costs) |, backwards$", "", kind)
        if comparison in COMPARISONS:
            k = next((known[letter] for letter in "blpkj" if letter in known), None)
            return self.compare(about(f), compared_with(f), *COMPARISONS[comparison](k))
        if kind in ("times and more", "times and less"):
            more = known["b"] if kind == "times and more" else -known["y"]
            return self.compare(about(f), compared_with(f), known["k"], more)
        known |= {"have": self.get(who, what, when), "spent": self.spent[who], "legs": LEGS.get(f["T"].one)}
        for target, expression in EFFECTS[kind]:
            if "have" in expression and known["have"] is None:
                return False
            value = eval(expression, known)
            if target == "spent":
                self.spent[who] = value
            elif target in ("have", "dollars", "content"):
                place = {"have": (what, when), "dollars": ("dollars", ""), "content": (str(f["content"]), "")}
                self.now[(who, *place[target])] = value
            else:
                self.found[target] = value
        return True

    def compare(self, this, other, factor, more):
        """Of two amounts one follows from the other."""
        if (n := self.get(*other)) is not None:
            self.now[this] = factor * n + more
        elif (n := self.get(*this)) is not None:
            self.now[other] = (n - more) / factor
        else:
            return False
        return True


def asked_for(step):
    """The name in QUESTIONS of how a step is asked for, without the form of quantity that it ends in."""
    name = next(name for name, wordings in teacher.QUESTIONS.items() if wordings is step.wordings)
    forms = "money|there|act|price|be|age|weigh"
    return "same" if re.fullmatch(f"{forms}|have", name) else re.sub(f" ({forms})$", "", name)


def answer(story):
    """What the world says to the last question of a story."""
    world, f, asks = World(story), story.steps[-1].fields, asked_for(story.steps[-1])
    if asks in world.found:
        return world.found[asks]
    who, what, when = about(f)
    if asks in ("pay", "spend in all"):
        return world.spent[who]
    if asks == "content":
        return world.get(who, str(f["content"]))
    have = world.get(who, what, when)
    if asks in ("diff", "fewer"):
        return abs(have - world.get(*compared_with(f)))
    if asks in ("in years", "years ago"):
        return have + (f["y"] if asks == "in years" else -f["l"])
    assert asks in ("same", "total", "now", "left", "be now", "they have", "in all groups"), asks
    return have


def test_the_world_answers_every_question(stories):
    for story, row in stories:
        assert answer(story) == Fraction(row["answer"]), row


# ---- rows --------------------------------------------------------------------------------------------------

COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def equations(row):
    """(a, sign, b, result) of each step, which has no other words: "<<5+3=8>>8"."""
    solution = r"<<([\d.]+)([-+*/])([\d.]+)=([\d.]+)>>\4"
    return [re.fullmatch(solution, step["solution"]).groups() for step in row["steps"]]


def test_rows_have_steps_that_compute(stories):
    for story, row in stories:
        assert row["source"] == "templates" and len(row["steps"]) == len(story.steps) == story.n_steps
        for a, sign, b, result in equations(row):
            assert COMPUTE[sign](Fraction(a), Fraction(b)) == Fraction(result), row
            assert result == data.calculate(f"{a}{sign}{b}")  # what a student finds there when it solves
        assert result == row["answer"]


def test_the_last_sub_question_is_the_problems_own_and_none_is_asked_twice(stories):
    for _, row in stories:
        questions = {step["question"].lower() for step in row["steps"]}
        assert len(questions) == len(row["steps"]) and row["problem"][-1] in "?."
        assert any(row["problem"].lower().endswith(question) for question in questions)  # or an earlier one


PARTS = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
         "tenth": 10}
IMPLIED = [("twice", 2), *((f"{as_many} {again}", 2) for as_many in ("the same number", "as many")
                           for again in ("again", "once again", "once more")),
           *((f"{verb} pairs", 2) for verb in ("form", "formed", "in")),
           *((f"{what} around", 2) for what in ("fence", "it", "way", "go")), ("perimeter", 2),
           ("is a square", 4), ("was a square", 4), *PARTS.items(), *LEGS.items()]


def test_numbers_are_those_of_children_and_stand_in_the_text(stories):
    """Every number of an equation is told, found by an earlier step, or a share, a week, a dozen."""
    for story, row in stories:
        text = row["problem"].replace(",", "").lower()
        told = {Fraction(n.rstrip(".")) for n in re.findall(r"\d[\d.]*", text)}
        told |= {k for k, word in enumerate(teacher.NUMBER_WORDS) if re.search(rf"\b{word}\b", text)}
        told |= {n for word, n in IMPLIED if word in text or teacher.plural(word) in text}
        for a, _, b, result in equations(row):
            assert {Fraction(a), Fraction(b)} <= told, row
            told.add(Fraction(result))
            assert 1 <= Fraction(result) <= 1_000_000
        last = row["steps"][-1]["question"].lower()
        is_money = re.search("money|dollar|cost|price|pay|spend|change|how much", last)
        assert Fraction(row["answer"]).denominator == 1 or is_money, row


# ---- grammar -----------------------------------------------------------------------------------------------

ARTICLES = re.compile(r"\b(a) (?=[aeio]|um)|\b(an) (?![aeio]|um|hour)", re.I)
MANY = {teacher.plural(noun) for nouns in teacher.NOUNS.values() for noun in nouns if " " not in noun}
MANY -= {"fish", "sheep", "goldfish", "leaves"}
SEXES = {"he": "he", "his": "he", "him": "he", "she": "she", "her": "she"}


def test_grammar(stories):
    """a/an; singular behind 1; nothing unfilled; capitals; he and she are of somebody who is in the story."""
    for story, row in stories:
        for text in [row["problem"], *(text for step in row["steps"] for text in step.values())]:
            assert not re.search(r"[{}\[\]|_]|  | [.,?]|\.\.|None", text), text
            sentences = filter(None, re.split(r"(?<=[.?]) ", text))
            assert all(re.match(r"[A-Z\d$<]", sentence) for sentence in sentences), text
        problem = row["problem"]
        for first, second in re.findall(r"(?<![\d,.$/])\b1 (\w+)(?: (\w+))?", problem):
            is_noun = first not in ("of", "more", "fewer", "less", "and", "to", "was", "is", "will")
            assert not (is_noun and {first, second} & MANY), problem
        assert not ARTICLES.search(problem), problem
        people = story.people + [fact.fields["S"] for fact in story.facts if fact.fields["S"]]
        pronouns = {SEXES[word] for word in re.findall(r"\w+", problem.lower()) if word in SEXES}
        assert pronouns <= {one.sex for one in people}, problem


def test_words_have_their_forms():
    plurals = {"box": "boxes", "slice of bread": "slices of bread", "berry": "berries", "leaf": "leaves",
               "toy car": "toy cars", "tomato": "tomatoes", "paintbrush": "paintbrushes", "key": "keys"}
    assert {noun: teacher.plural(noun) for noun in plurals} == plurals
    verbs = {"buy": ("buys", "bought"), "give away": ("gives away", "gave away"), "play": ("plays", "played"),
             "carry": ("carries", "carried"), "plan": ("plans", "planned"), "catch": ("catches", "caught"),
             "DO": ("does", "did"), "be added": ("is added", "was added")}
    forms = lambda verb, many: tuple(teacher.conjugate(verb, tense, many) for tense in ("present", "past"))
    assert {verb: forms(verb, many=False) for verb in verbs} == verbs
    assert forms("have", many=True) + forms("be", many=True) == ("have", "had", "are", "were")
    assert teacher.conjugate("DO", "will", False) == "will"


# ---- variety -----------------------------------------------------------------------------------------------

def skeleton(story, text):
    """A problem's text but for names, nouns and numbers."""
    words = {one.name for one in story.people}
    for part in story.facts + story.steps:
        for value in part.fields.values():
            if isinstance(value, teacher.Thing):
                words |= {value.one, value.many, value.of(1), str(value)}
            elif isinstance(value, teacher.Entity):
                words.add(value.name.removeprefix("the "))
        if "item" in part.fields:
            words.add(part.fields["item"].split(" ", 1)[1])
    known = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    numbers = r"\$?\d[\d,.]*\d|\$?\d|\b(?:" + "|".join(teacher.NUMBER_WORDS[2:]) + r")\b"
    return re.sub(numbers, "#", re.sub(rf"\b(?:{known})\b", "_", text, flags=re.I))


def test_hardly_two_problems_share_a_text_but_for_names_nouns_and_numbers(stories):
    counts = Counter(skeleton(story, row["problem"]) for story, row in stories)
    assert sum(n for n in counts.values() if n > 1) < 0.02 * len(stories)


def told_kinds():
    """{kind of fact: its wordings}"""
    return teacher.TELL | {kind.name: kind.say for kind in teacher.KINDS if kind.say and kind.say != ["@"]}


def test_each_of_many_kinds_wordings_verbs_and_questions_occurs(stories):
    facts = [fact for story, _ in stories for fact in story.facts]
    wordings = {(kind, one) for kind, wordings in told_kinds().items() for one in wordings}
    kinds = {kind for kind, _ in wordings if not kind.endswith("backwards")}
    assert len(kinds) >= 60 and sum(kind in kinds for kind, _ in wordings) >= 6 * len(kinds)
    wordings -= {(fact.kind, fact.wording) for fact in facts}
    rng = Random(6)
    for _ in range(2 * N):  # wordings that are too rare to be sure of
        if wordings:
            story = draw(rng, level=rng.choice((1, 3)), high=2)
            wordings -= {(fact.kind, fact.wording) for fact in story.facts}
    assert not wordings

    verbs = {fact.fields[name] for fact in facts for name in ("V", "GET", "LOSE", "COME", "GO")
             if name in fact.fields}
    assert {verb for verb, _ in teacher.GAINS + teacher.LOSSES + teacher.ACTS} <= verbs and len(verbs) >= 150
    nouns = {fact.fields["T"].one for fact in facts}
    listed = {*sum(teacher.NOUNS.values(), []), *(thing.one for _, thing in teacher.ACTS)}
    assert len(nouns & listed) >= 400  # others are made up
    asked = {id(step.wordings) for story, _ in stories for step in story.steps}
    assert {id(ways) for ways in teacher.QUESTIONS.values()} <= asked and len(asked) >= 40


# ---- splits, seeds, held-out wordings, made-up words -------------------------------------------------------

def rows_of(split="train", n=300, seen=(), **changes):
    """The rows of a split, with other flags of annotate.py than the usual ones; seen: texts of another."""
    flags = {"seed": 0, "steps": (1, 5), "made_up": 0.4, "made_up_test": 0.0, "wordings": "all", "level": 1}
    args = SimpleNamespace(**flags | {split: n} | changes)
    return teacher.draw_split(split, args, set(seen), SimpleNamespace(update=lambda: None))


def test_the_same_seed_gives_the_same_rows(tmp_path):
    for hash_seed in "1", "2":  # in another process, whose sets have another order
        flags = f"--train 300 --valid 1 --test 1 --out {hash_seed}".split()
        subprocess.run([sys.executable, teacher.__file__, *flags], cwd=tmp_path, check=True,
                       capture_output=True, env=os.environ | {"PYTHONHASHSEED": hash_seed})
    assert (tmp_path / "1/train.jsonl").read_bytes() == (tmp_path / "2/train.jsonl").read_bytes()
    assert rows_of(n=50) == rows_of()[:50]
    assert rows_of()[0]["problem"] != rows_of(seed=1)[0]["problem"] != rows_of("test")[0]["problem"]


def test_no_problem_comes_twice():
    first = {row["problem"] for row in rows_of(n=50)}
    assert first.isdisjoint(row["problem"] for row in rows_of(n=50, seen=first))  # of the same seed


@pytest.mark.parametrize("low, high", [(1, 1), (3, 3), (6, 8)])
def test_steps_are_as_many_as_asked_for(low, high):
    assert all(low <= len(row["steps"]) <= high for row in rows_of(n=100, steps=(low, high)))


def test_made_up_words_of_test_files_stand_in_no_training_file():
    rng, nouns = Random(1), sum(teacher.NOUNS.values(), teacher.BOYS)
    train, test = ({teacher.make_up_word(rng, training, nouns) for _ in range(5000)}
                   for training in (True, False))
    train, test = (words | set(map(teacher.plural, words)) for words in (train, test))
    assert len(test) > 3000 and not train & test
    texts = " ".join(row["problem"] for row in rows_of("test", made_up_test=1.0)).lower()
    real = set(re.findall("[a-z]+", Path(teacher.__file__).read_text().lower()))
    real |= set(map(teacher.plural, real))  # "pines", "he plays"
    assert not train & set(re.findall("[a-z]{5,}", texts)) - real


def test_held_out_wordings_stay_out():
    held_out = {(kind, wordings[1]) for kind, wordings in told_kinds().items()}
    for part in "train", "test":
        rng = Random(3)
        for _ in range(300):
            story = draw(rng, wordings=part, high=3)
            assert all(((fact.kind, fact.wording) in held_out) == (part == "test") for fact in story.facts)
