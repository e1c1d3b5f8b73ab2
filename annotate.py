"""Everything that makes annotation files: the template teacher, which writes problems with their sub-questions and
solutions, and the converter of GSM8K's Socratic files.

A problem of the template teacher is a list of quantities. A quantity is "Yuri has 30 apples": an owner, a verb, an object
and a number; so it has one sub-question, "How many apples does Yuri have?", and later sentences find it by its owner,
"5 more apples than Yuri". A quantity is given or follows from earlier ones by a kind of relation or event, a row of KINDS.
"""
import argparse
import json
import os
import re
import shlex
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random

from tqdm import tqdm

from data import Parser, UserError, check_text, read_rows, run, written_aside

SPLITS = "train", "valid", "test"
STYLES = "restate", "short"  # how solutions are laid out: see write_solution


# ---- words -------------------------------------------------------------------------------------------------------------

NAMES = """Adam Alice Amara Anna Ben Bruno Carl Carmen Chloe Clara Dana David Diego Elena Emma Eric Farah Felix Fiona Frank
Gina Grace Greta Hana Hugo Igor Ines Irene Ivan Jack Jane Jonas Julia Kofi Kurt Laura Leo Liam Lina Lucas Maria Max Mia
Milo Nadia Nina Noah Nora Olga Omar Oscar Paul Petra Quinn Rania Rosa Ruth Sam Sara Sofia Tariq Theo Tina Uma Vera Victor
Wanda Yara Yuri Zoe""".split()
OBJECTS = """apples badges bags balls balloons bananas beads bells biscuits books bottles bowls bricks brushes buckets buttons
cakes candles cans cards chairs coins cookies crayons cups dolls eggs envelopes erasers feathers figs flags flowers forks
grapes hats jars keys kites lamps lemons magnets maps marbles melons mugs napkins nuts oranges peaches pears pencils pens
photos pins plates plums postcards puzzles ribbons rings rocks ropes rulers scarves seeds shells spoons stamps stars
stickers stones tickets tiles tomatoes towels toys tulips whistles""".split()
_SYLLABLES = [c + v for c in "b d f g k l m n p r s t v z br dr fl gr kl pl st tr".split() for v in "a e i o u".split()]


def make_up_word(rng, training):
    """A word of two or three syllables. Those for training and those for evaluation are two disjoint sets, told apart by
    a checksum, so that no made-up word of an evaluation file, of whatever seed, stands in any training file."""
    while True:
        word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 3, 3))))
        if (zlib.crc32(word.encode()) % 4 > 0) == training and word.capitalize() not in NAMES and word + "s" not in OBJECTS:
            return word


# ---- quantities --------------------------------------------------------------------------------------------------------

VERBS = {"has": "have", "have": "have", "gets": "get", "buys": "buy", "collects": "collect", "gives away": "give away",
         "fills": "fill", "still needs": "still need", "last": "last"}  # as a statement says it: as a question does
PLURAL = "have", "last"


@dataclass(eq=False)
class Quantity:
    """`owner verb value obj tail`: "Yuri has 30 apples left". `people`: the names in the owner."""
    owner: str
    verb: str
    obj: str
    tail: str
    people: tuple
    value: int = 0
    kind: str = "given"
    op: str = ""
    operands: tuple = ()  # quantities and numbers, in the order of the equation
    told: tuple = ()      # those operands that are quantities, in the order in which they became known

    @property
    def plain(self):
        """Whether one person has so many of an object: what events happen to and what two names together mean."""
        return self.verb == "has" and self.tail in ("", "left", "now")

    def question(self):
        do = "do" if self.verb in PLURAL else "does"
        tail = f" {self.tail}" if self.tail else ""
        return f"How many {self.obj} {do} {self.owner} {VERBS[self.verb]}{tail}?"

    def statement(self, number):
        tail = f" {self.tail}" if self.tail else ""
        return f"{self.owner} {self.verb} {number} {self.obj}{tail}"

    def references(self, obj):
        """How a sentence about `obj` speaks of this quantity: {R} "more than Yuri", {V} "the number that Yuri has"."""
        tail = f" {self.tail}" if self.tail else ""
        what = f" {self.obj}" if self.obj != obj else ""
        clause = f"{self.owner} {self.verb}{what}{tail}"
        short = not what and (self.verb == "have" or self.verb == "has" and not tail)
        return {"R": self.owner + tail if short else clause, "V": clause}


def equation(q):
    """The right side of a quantity's equation, such as "10+20"."""
    a, b = (x.value if isinstance(x, Quantity) else x for x in q.operands)
    return f"{a}{q.op}{b}"


def write_solution(style, q):
    """The solution of a quantity's sub-question; each style holds exactly one GSM8K annotation `<<10+20=30>>`.

    "restate" says first what the step takes from earlier ones, each number behind its owner: "Carl has 10 and Dana has
    20. <<10+20=30>> Yuri has 30 apples." A small student finds a number far more easily behind a name that it has just
    written than from the question alone; and two of them in the order in which they became known, those that the problem
    tells before those worked out, than in the order of the equation. "short" says the result alone: "Yuri has
    <<10+20=30>>30 apples."
    """
    note = f"<<{equation(q)}={q.value}>>"
    if style == "short":
        return _capital(q.statement(f"{note}{q.value}")) + "."
    told = " and ".join(f"{x.owner} {x.verb} {x.value}" for x in q.told)
    return (_capital(told) + ". " if told else "") + f"{note} {_capital(q.statement(q.value))}."


def _capital(text):
    return text[0].upper() + text[1:]


# ---- kinds of relation and event ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Kind:
    """A way in which a quantity follows from others, and how a problem tells it.

    form: the operands in the equation's order: R is a quantity, k and m are numbers, X and Y two quantities.
    new: owner, verb, object and tail of the new quantity. on: what R may be: "any" quantity; "one", what one person has,
    which the new amount supersedes; "pair", what two have together. numbers: the range of k (and of m).
    wordings speak of {A} a new person, {B} R's owner, {R} or {V} R itself, {o} the object, {X} and {Y} the owners of X
    and Y, {k} and {m} the numbers.
    """
    name: str
    op: str
    form: str
    new: tuple
    wordings: tuple
    on: str = "any"
    numbers: tuple = (2, 100)
    weight: int = 3
    countable: bool = False  # not for dollars, boxes and the like


A_HAS = "{A}", "has", "{o}", ""
B_LEFT = "{B}", "has", "{o}", "left"
B_NOW = "{B}", "has", "{o}", "now"

KINDS = [  # one operand is a quantity R, the other a number k
    Kind("more", "+", "Rk", A_HAS, (
        "{A} has {k} more {o} than {R}.",
        "{A} has {k} {o} more than {R}.",
        "{A} owns {k} more {o} than {R}."), weight=5),
    Kind("fewer", "-", "Rk", A_HAS, (
        "{A} has {k} fewer {o} than {R}.",
        "{A} has {k} {o} fewer than {R}.",
        "{A} owns {k} fewer {o} than {R}."), weight=5),
    Kind("times", "*", "Rk", A_HAS, (
        "{A} has {k} times as many {o} as {R}.",
        "{A} owns {k} times as many {o} as {R}.",
        "{A} has {k} times the number of {o} that {V}."), numbers=(3, 12), weight=6),
    Kind("twice", "*", "Rk", A_HAS, (
        "{A} has twice as many {o} as {R}.",
        "{A} owns twice as many {o} as {R}.",
        "{A} has double the number of {o} that {V}."), numbers=(2, 2)),
    Kind("half", "/", "Rk", A_HAS, (
        "{A} has half as many {o} as {R}.",
        "{A} owns half as many {o} as {R}.",
        "{A} has half the number of {o} that {V}."), numbers=(2, 2), weight=7),
    Kind("third", "/", "Rk", A_HAS, (
        "{A} has a third as many {o} as {R}.",
        "{A} owns a third as many {o} as {R}.",
        "{A} has a third of the number of {o} that {V}."), numbers=(3, 3), weight=7),
    Kind("quarter", "/", "Rk", A_HAS, (
        "{A} has a quarter as many {o} as {R}.",
        "{A} owns a quarter as many {o} as {R}.",
        "{A} has a quarter of the number of {o} that {V}."), numbers=(4, 4), weight=7),
    Kind("filled", "*", "Rk", A_HAS, (
        "{A} has {k} crates, each with as many {o} as {R}.",
        "{A} has {k} crates with as many {o} in each as {R}.",
        "In each of {k} crates {A} has as many {o} as {R}."), numbers=(2, 12), countable=True),
    Kind("gives", "-", "Rk", B_LEFT, (
        "Then {B} gives {k} {o} away.",
        "Then {B} gives {k} of the {o} to a friend.",
        "Then {B} loses {k} of the {o}."), on="one", weight=4),
    Kind("finds", "+", "Rk", B_NOW, (
        "Then {B} finds {k} more {o}.",
        "Then {B} gets {k} more {o}.",
        "Then a friend gives {k} more {o} to {B}."), on="one", weight=3),
    Kind("gives half", "/", "Rk", B_LEFT, (
        "Then {B} gives half of the {o} away.",
        "Then {B} gives half of the {o} to a friend.",
        "Then {B} loses half of the {o}."), on="one", numbers=(2, 2)),
    Kind("shares", "/", "Rk", ("each friend of {B}", "gets", "{o}", ""), (
        "Then {B} shares the {o} equally among {k} friends.",
        "Then {B} gives the {o} to {k} friends, equally many to each.",
        "Then {B} divides the {o} equally among {k} friends."), on="one", numbers=(2, 12), weight=6),
    Kind("packs", "/", "Rk", ("{B}", "fills", "boxes", ""), (
        "Then {B} packs the {o} in boxes of {k}.",
        "Then {B} puts the {o} into boxes, {k} in each box.",
        "Then {B} fills boxes with {k} {o} each until none are left."), on="one", numbers=(2, 12), weight=6, countable=True),
    Kind("lasts", "/", "Rk", ("the {o} of {B}", "last", "days", ""), (
        "Then {B} uses {k} {o} a day until none are left.",
        "Every day {B} uses {k} of the {o} until none are left.",
        "Then {B} gives away {k} {o} each day until none are left."), on="one", numbers=(2, 12), weight=4),
    Kind("sells", "*", "Rk", ("{B}", "gets", "dollars", ""), (
        "Then {B} sells the {o} for {k} dollars each.",
        "Then {B} sells the {o} at a price of {k} dollars each.",
        "Then {B} sells all of the {o}, and the price of each is {k} dollars."), on="one", numbers=(2, 12), weight=5,
        countable=True),
    Kind("needs", "-", "kR", ("{B}", "still needs", "{o}", ""), (
        "{B} wants to have {k} {o}.",
        "{B} would like to have {k} {o}.",
        "{B} hopes to have {k} {o} one day."), on="one"),
    Kind("they share", "/", "Rk", ("each friend of {B}", "gets", "{o}", ""), (
        "{B} share their {o} equally among {k} friends.",
        "{B} put their {o} together and share them equally among {k} friends.",
        "{B} give their {o} to {k} friends, equally many to each."), on="pair", numbers=(2, 12), weight=8),
]
FRESH = [  # both operands are numbers
    Kind("has packs", "*", "km", A_HAS, (
        "{A} has {k} packs of {m} {o} each.",
        "{A} has {k} packs of {o} with {m} {o} in each pack.",
        "{A} owns {k} packs with {m} {o} in each."), numbers=(2, 20)),
    Kind("per day", "*", "km", ("{A}", "collects", "{o}", ""), (
        "{A} collects {k} {o} a day for {m} days.",
        "Every day {A} collects {k} {o}, for {m} days.",
        "For {m} days {A} collects {k} {o} each day."), numbers=(2, 20)),
]
GAINS = [  # both operands are numbers, and the product then adds to (takes from) what B has: two steps, one sentence
    Kind("buys packs", "*", "km", ("{B}", "buys", "{o}", ""), (
        "Then {B} buys {k} packs of {m} {o} each.",
        "Then {B} buys {k} packs of {o} with {m} {o} in each pack.",
        "Then {B} buys {k} more packs with {m} {o} in each."), on="one", numbers=(2, 20)),
    Kind("collects daily", "*", "km", ("{B}", "collects", "{o}", ""), (
        "Then {B} collects {k} {o} a day for {m} days.",
        "Then every day {B} collects {k} {o}, for {m} days.",
        "Then for {m} days {B} collects {k} {o} each day."), on="one", numbers=(2, 20)),
    Kind("gives daily", "*", "km", ("{B}", "gives away", "{o}", ""), (
        "Then {B} gives away {k} {o} a day for {m} days.",
        "Then every day {B} gives away {k} {o}, for {m} days.",
        "Then for {m} days {B} gives away {k} {o} each day."), on="one", numbers=(2, 20)),
]
PAIRS = [  # both operands are quantities
    Kind("sum", "+", "XY", A_HAS, (
        "{A} has as many {o} as {X} and {Y} together.",
        "{A} owns as many {o} as {X} and {Y} together.",
        "{A} has the same number of {o} as {X} and {Y} together."), weight=8),
    Kind("difference", "-", "XY", A_HAS, (
        "{A} has as many {o} as the difference between {X} and {Y}.",
        "{A} owns as many {o} as the difference between {X} and {Y}.",
        "{A} has the difference between the {o} of {X} and the {o} of {Y}."), weight=4),
    Kind("receives all", "+", "XY", ("{X}", "has", "{o}", "now"), (
        "Then {X} gets all the {o} of {Y}.",
        "Then {X} receives all the {o} of {Y}.",
        "Then {X} is given all the {o} of {Y}."), on="one", weight=3),
    Kind("gives as many", "-", "XY", ("{X}", "has", "{o}", "left"), (
        "Then {X} gives away as many {o} as {Y} has.",
        "Then {X} loses as many {o} as {Y} has.",
        "Then {X} gives a friend as many {o} as {Y} has."), on="one", weight=4),
    Kind("together", "+", "XY", ("{X} and {Y}", "have", "{o}", "together"), (), weight=6),
    Kind("how many more", "-", "XY", ("{X}", "has", "more {o}", "than {Y}"), (), weight=6),
]
PART = Kind("part", "-", "kR", A_HAS, (
    "{B} and {A} have {k} {o} together.",
    "Together {B} and {A} have {k} {o}.",
    "{B} and {A} own {k} {o} together."))
BACKWARDS_OP = {"more": "-", "fewer": "+", "times": "/", "twice": "/", "half": "*", "third": "*", "quarter": "*", "part": "-"}
REVERSIBLE = [PART, *(kind for kind in KINDS if kind.name in BACKWARDS_OP)]
GIVEN = "{A} has {k} {o}.", "{A} has {k} {o}.", "{A} owns {k} {o}."
KIND_WEIGHTS = list(accumulate(kind.weight for kind in KINDS))
PAIR_WEIGHTS = list(accumulate(kind.weight for kind in PAIRS))


def draw_number(rng, op, form, value, low, high):
    """A number k that makes `value op k` (or `k op value`) whole and from 2 to 1,000, or None."""
    if op == "/":
        return rng.choice([k for k in range(low, min(high, value // 2) + 1) if value % k == 0] or [None])
    if form == "kR":  # k - value
        low, high = value + low, min(value + high, 1000)
    else:
        high = min(high, {"+": 1000 - value, "-": value - 2, "*": 1000 // value}[op])
    return rng.randint(low, high) if low <= high else None


COMPUTE = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b}


# ---- the template teacher: a story that grows --------------------------------------------------------------------------

TWO_RESULTS = {1: 0.55, 2: 0.7, 3: 0.7}  # by level: share of problems with a step that uses two earlier quantities
UNNEEDED = 0.25      # share of problems with a quantity that nobody needs
OUT_OF_ORDER = 0.4   # share of the problems of levels 2 and 3 to be told out of order (a few have one order only)
BACKWARDS = 0.35     # level 3: how often a relation to what one person has is told backwards


class DeadEnd(Exception):
    """This problem cannot be finished as it was begun: draw another."""


@dataclass(eq=False)
class Fact:
    """A sentence of the problem. `makes`: the quantity that it tells, None if nobody needs it. `people`: all it names."""
    text: str
    makes: Quantity | None
    people: frozenset
    event: bool = False  # events happen in time: no sentence about the same people moves past them


@dataclass
class Story:
    """A problem as it grows: forward, step by step, so that every number is known when the next relation is drawn.

    In the end each step's result is used by a later step, but the last, which is what the problem asks. So the results
    that wait for their use, `open`, may never be more than the steps still to come can combine.
    """
    rng: Random
    level: int
    names: list    # taken from the end
    objects: list  # what the problem is about, and another
    facts: list = field(default_factory=list)
    steps: list = field(default_factory=list)  # the quantities to be asked, in order
    live: list = field(default_factory=list)   # the quantities that a new sentence may refer to
    open: list = field(default_factory=list)   # the steps that no later step has used
    two: bool = False      # whether the problem has a step that uses two earlier quantities
    two_due: bool = False  # whether that step is still to come

    # -- the plot

    def grow(self, n_steps):
        """Draw the steps and the facts that tell them."""
        rng = self.rng
        self.two = self.two_due = rng.random() < TWO_RESULTS[self.level]
        if n_steps == 1 and self.two:
            self.combine(self.give(), self.give(), 1)
        elif n_steps > 1 and rng.random() < 0.1:
            self.multiply(FRESH[:1] if self.two else FRESH)
        else:
            self.relate(self.give(), self.two_due, last=n_steps == 1)
        while len(self.steps) < n_steps:
            self.next_step(n_steps - len(self.steps))

    def next_step(self, left):
        """Draw the next step (or two), `left` steps before the end."""
        rng, latest, n_open = self.rng, self.steps[-1], len(self.open)
        others = [q for q in self.live if q is not latest and q.obj == self.objects[0]]
        ways = {"latest": 1}
        if self.two and latest.plain and latest.obj == self.objects[0]:
            ways["pair"] = 8
            if n_open < left:
                ways |= {"gain": 2, "begin": 1, "earlier": 6 if self.level == 1 else len(others)}
        if latest.verb == "have":  # a total: asked where the very next sentence needs it
            ways = {"latest": 1}
        elif n_open > left or left == 1 and self.two_due:
            ways = {"pair": 1}
        way = rng.choices(list(ways), ways.values())[0]
        if way == "latest":
            self.relate(latest, n_open > 1 or self.two_due, left == 1)
        elif way == "gain":
            self.gain(latest)
        elif way == "begin" and rng.random() < 0.5:
            self.multiply(FRESH[:1])
        elif way == "begin" or way == "earlier" and not others:
            self.relate(self.give(), keep_plain=True)
        elif way == "earlier":
            self.relate(rng.choice(others), keep_plain=True)
        else:
            self.pair(latest, others, left)

    def pair(self, latest, others, left):
        """Draw a step from two quantities, one of them the latest; from level 2 on any two, where the steps left allow."""
        rng = self.rng
        others = [q for q in others if q.plain and q.people != latest.people]
        if len(self.open) > left:
            others = [q for q in others if q in self.open]
        elif rng.random() < 1 / (1 + len(others)):
            return self.combine(latest, self.give(), left)
        if not others:
            raise DeadEnd
        if self.level > 1 and len(self.open) < left:
            others.append(latest)
            return self.combine(*rng.sample(others, 2), left)
        return self.combine(latest, rng.choice(others), left)

    # -- facts, each with the quantity that it makes

    def tell(self, wordings, quantity, people, event=False, **words):
        self.facts.append(Fact(self.rng.choice(wordings).format(**words), quantity, frozenset(people), event))

    def give(self):
        """A given amount."""
        name, obj = self.names.pop(), self.objects[0]
        q = Quantity(name, "has", obj, "", (name,), self.rng.randint(2, 100))
        self.tell(GIVEN, q, q.people, A=name, k=q.value, o=obj)
        self.live.append(q)
        return q

    def add(self, kind, operands, people, obj, words, supersedes=()):
        """The quantity of a step. people: its owners, a tuple of names; words: what stands for {A}, {B}, {X} and {Y};
        supersedes: quantities that nothing may refer to any more."""
        owner, verb, what, tail = (part.format(o=obj, **words) for part in kind.new)
        a, b = (x.value if isinstance(x, Quantity) else x for x in operands)
        q = Quantity(owner, verb, what, tail, people, COMPUTE[kind.op](a, b), kind.name, kind.op, tuple(operands))
        if not 2 <= q.value <= 1000 or any(q.question() == step.question() for step in self.steps):
            raise DeadEnd
        self.open = [x for x in self.open if x not in operands] + [q]
        self.live = [x for x in self.live if x not in supersedes]
        if len(people) == 1 and verb != "last":  # totals, differences and days are not referred to again
            self.live.append(q)
        self.steps.append(q)
        return q

    def relate(self, ref, keep_plain, last=False):
        """A step from one quantity and a number. keep_plain: what it makes is to be combined with others."""
        rng = self.rng
        if self.level == 3 and ref.plain and not ref.tail and rng.random() < BACKWARDS:
            return self.relate_backwards(ref)
        for _ in range(20):
            kind, obj, event = rng.choices(KINDS, cum_weights=KIND_WEIGHTS)[0], ref.obj, False
            if kind.on != "any":
                event = True
                if not (ref.plain if kind.on == "one" else ref.verb == "have"):
                    continue
            elif not keep_plain and obj == self.objects[0] and rng.random() < 0.1:
                obj = self.objects[1]
            if keep_plain and (kind.new[1] != "has" or obj != self.objects[0]) or kind.new[1] == "last" and not last:
                continue
            if kind.countable and obj not in self.objects:
                continue
            k = draw_number(rng, kind.op, kind.form, ref.value, *kind.numbers)
            if k is None:
                continue
            words = {"B": ref.owner} if event else {"A": self.names.pop()}
            people = ref.people if event else (words["A"],)
            gone = () if not event else (ref, *ref.operands) if kind.on == "pair" else (ref,)
            q = self.add(kind, (ref, k) if kind.form == "Rk" else (k, ref), people, obj, words, gone)
            wordings = kind.wordings if obj == ref.obj else kind.wordings[:2]  # the third cannot name two objects
            self.tell(wordings, q, {*people, *ref.people}, event, k=k, o=obj, **words, **ref.references(obj))
            return
        raise DeadEnd

    def relate_backwards(self, ref):
        """A step whose sentence speaks of what is known by what is asked: "Yuri has 5 more apples than Carl", Carl asked."""
        rng, name = self.rng, self.names.pop()
        for _ in range(20):
            kind = rng.choice(REVERSIBLE)
            op = BACKWARDS_OP[kind.name]
            k = draw_number(rng, op, kind.form, ref.value, *kind.numbers)
            if k is None:
                continue
            new = Kind(kind.name + " backwards", op, kind.form, A_HAS, ())
            q = self.add(new, (ref, k) if kind.form == "Rk" else (k, ref), (name,), ref.obj, {"A": name})
            words = {"B": ref.owner, "A": name} if kind is PART else {"A": ref.owner, **q.references(ref.obj)}
            self.tell(kind.wordings, q, {name, *ref.people}, k=k, o=ref.obj, **words)
            return
        raise DeadEnd

    def multiply(self, kinds, ref=None):
        """A step from two numbers: what a new person, or the owner of `ref`, gets. Returns its quantity."""
        kind = self.rng.choice(kinds)
        k, m = (self.rng.randint(*kind.numbers) for _ in "km")
        words, obj = ({"B": ref.owner}, ref.obj) if ref else ({"A": self.names.pop()}, self.objects[0])
        people = ref.people if ref else (words["A"],)
        q = self.add(kind, (k, m), people, obj, words)
        self.tell(kind.wordings, q, people, ref is not None, k=k, m=m, o=obj, **words)
        return q

    def gain(self, ref):
        """Two steps from one sentence: what `ref`'s owner buys (collects, gives away), and then has."""
        part = self.multiply(GAINS, ref)
        new = Kind("then", "-", "XY", B_LEFT, ()) if part.kind == "gives daily" else Kind("then", "+", "XY", B_NOW, ())
        self.add(new, (ref, part), ref.people, ref.obj, {"B": ref.owner}, (ref, part))
        self.two_due = False

    def combine(self, x, y, left):
        """A step from two quantities, `left` steps before the end."""
        rng = self.rng
        n_open = len(self.open) + 1 - (x in self.open) - (y in self.open)  # after this step
        for _ in range(20):
            kind = rng.choices(PAIRS, cum_weights=PAIR_WEIGHTS)[0]
            if left > 1 and (kind.name == "how many more" or kind.name == "together" and n_open >= left):
                continue
            if x.value < y.value if kind.op == "-" else rng.random() < 0.5:
                x, y = y, x
            result = COMPUTE[kind.op](x.value, y.value)
            if not 2 <= result <= 1000 or told_already(kind.op, x, y) or told_already(kind.op, y, x):
                continue
            event = kind.on == "one"
            words = {"X": x.owner, "Y": y.owner}
            if kind.new is A_HAS:
                words["A"] = self.names.pop()
            people = x.people if event else (words["A"],) if "A" in words else x.people + y.people
            gone = () if not event else (x, y) if kind.name == "receives all" else (x,)
            q = self.add(kind, (x, y), people, x.obj, words, gone)
            if kind.wordings:
                self.tell(kind.wordings, q, {*people, *x.people, *y.people}, event, o=x.obj, **words)
            self.two_due = False
            return
        raise DeadEnd

    # -- what makes a problem harder

    def distract(self):
        """Tell a quantity that nobody needs; from level 2 on it may be a relation."""
        rng, name = self.rng, self.names.pop()
        known = [fact for fact in self.facts if fact.makes.plain and not fact.event]
        if self.level > 1 and known and rng.random() < 0.5:
            fact, kind = rng.choice(known), rng.choice(KINDS[:3])
            q = fact.makes
            k = draw_number(rng, kind.op, kind.form, q.value, *kind.numbers)
            if k:
                self.tell(kind.wordings, None, {name, *q.people}, A=name, k=k, o=q.obj, **q.references(q.obj))
                self.facts.insert(self.facts.index(fact) + 1, self.facts.pop())
                return
        self.tell(GIVEN, None, {name}, A=name, k=rng.randint(2, 100), o=rng.choice(self.objects))
        self.facts.insert(rng.randrange(len(self.facts)), self.facts.pop())

    def shuffle(self):
        """Tell the facts in another order than they are needed, if one of 8 draws finds such an order."""
        for _ in range(8):
            told, rest = [], list(self.facts)
            while rest:
                free = [f for i, f in enumerate(rest)
                        if not any((e.event or f.event) and e.people & f.people for e in rest[:i])]
                told.append(self.rng.choice(free))
                rest.remove(told[-1])
            at = {f.makes: i for i, f in enumerate(told) if f.makes}
            if any(at.get(x, -1) > at[q] for q in self.steps if q in at for x in q.operands):
                self.facts = told
                self.steps = self.in_reading_order(at)
                return

    def order_operands(self):
        """Bring each step's operands into the order in which they became known, in the equation where that makes none wrong."""
        known = {fact.makes: (0, i) for i, fact in enumerate(self.facts)} | {q: (1, i) for i, q in enumerate(self.steps)}
        for q in self.steps:
            q.told = tuple(sorted((x for x in q.operands if isinstance(x, Quantity)), key=known.get))
            if q.op == "+" and len(q.told) == 2:
                q.operands = q.told

    def in_reading_order(self, at):
        """The steps as a reader takes them: of those that can be taken, the one that was told first. at: {quantity: place}.

        What no sentence tells is asked after the gain that it adds, or else before the first sentence that uses it.
        """
        place = {}
        for q in reversed(self.steps):
            gains = [at[x] for x in q.operands if x in at and q.kind == "then"]
            users = [place[user] for user in place if q in user.operands]
            place[q] = at[q] if q in at else max(gains) + 0.5 if gains else min(users, default=len(at)) - 0.5
        steps, todo = [], list(self.steps)
        while todo:
            steps.append(min((q for q in todo if not any(x in todo for x in q.operands)), key=place.get))
            todo.remove(steps[-1])
        return steps


def told_already(op, x, y):
    """Whether y came from x by the very relation that `op` undoes: how many more Ann has than Bob is then no question."""
    return x in y.operands and y.op in "+-" if op == "-" else y.op == "-" and x is y.operands[1]


def draw_story(rng, level, n_steps, made_up=False, training=True):
    """Draw a problem of `n_steps` steps as a Story. made_up: of made-up words, those for training or those for evaluation."""
    n_names = 3 * n_steps + 3  # more than it can use
    while True:
        if made_up:
            names = {make_up_word(rng, training).capitalize(): None for _ in range(n_names)}
            names, objects = list(names), [make_up_word(rng, training) + "s" for _ in range(2)]
        else:
            names, objects = rng.sample(NAMES, n_names), rng.sample(OBJECTS, 2)
        story = Story(rng, level, names, objects)
        try:
            story.grow(n_steps)
        except DeadEnd:
            continue
        if rng.random() < UNNEEDED:
            story.distract()
        if level > 1 and rng.random() < OUT_OF_ORDER:
            story.shuffle()
        story.order_operands()
        return story


def write_problem(story, style=STYLES[0]):
    """A story as a row of the JSONL file, without its id."""
    steps = [{"question": q.question(), "solution": write_solution(style, q)} for q in story.steps]
    text = " ".join([*(fact.text for fact in story.facts), steps[-1]["question"]])
    return {"problem": text, "steps": steps, "answer": str(story.steps[-1].value), "source": "templates",
            "level": story.level, "kinds": [q.kind for q in story.steps]}


def draw_split(split, args, seen, bar):
    """Draw a split's problems, none of whose texts is in `seen` (a set of str, which grows)."""
    rng = Random(f"{args.seed} {split}")  # one each: the test problems do not depend on how many are for training
    low, high = args.steps
    made_up = args.made_up if split == "train" else args.made_up_test
    rows = []
    while len(rows) < getattr(args, split):
        n_steps = low + len(rows) % (high - low + 1)
        row = write_problem(draw_story(rng, args.level, n_steps, rng.random() < made_up, split == "train"), args.style)
        if row["problem"] not in seen:
            seen.add(row["problem"])
            rows.append({"id": f"templates-{args.level}-{args.seed}-{split}-{len(rows) + 1}", **row})
            bar.update()
    return rows


def templates(args):
    """The template teacher: write train.jsonl, valid.jsonl and test.jsonl."""
    usable(args.out)
    seen, files = set(), {}
    with tqdm(total=args.train + args.valid + args.test, unit=" problems", disable=None) as bar:
        for split in reversed(SPLITS):  # the small ones first: if other problems are there already, that shows at once
            rows = draw_split(split, args, seen, bar)
            files[args.out / f"{split}.jsonl"] = encode(rows)
            replaceable(files, args.force)
    save(files)
    print(f"{args.out}: " + ", ".join(f"{split} {getattr(args, split):,}" for split in SPLITS) + " problems")
    steps = Counter(len(row["steps"]) for row in rows)
    print("train by steps: " + ", ".join(f"{n}: {steps[n]:,}" for n in sorted(steps)))
    print(next_command(args.out))


# ---- GSM8K's Socratic files --------------------------------------------------------------------------------------------

def convert_gsm8k(answer):
    """GSM8K's Socratic answer, lines "sub-question ** solution" and a last line "#### 70,000", as (steps, "70000").

    Raises ValueError that says why not.
    """
    *lines, last = [line.strip() for line in answer.splitlines() if line.strip()]
    if not last.startswith("####"):
        raise ValueError("no last line '#### answer'")
    number = last.removeprefix("####").strip().replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", number, re.ASCII):
        raise ValueError("the answer after '####' is no number")
    if not any("**" in line for line in lines):
        raise ValueError("no sub-questions")
    steps = []
    for line in lines:
        question, _, solution = (part.strip() for part in line.partition("**"))
        if not question or not solution:
            raise ValueError("a line that is not 'sub-question ** solution'")
        steps.append({"question": question, "solution": solution})
    return steps, number


def gsm8k(args):
    """Convert GSM8K's Socratic files into train.jsonl, valid.jsonl and test.jsonl, or into one file."""
    one_file = args.out.suffix == ".jsonl"
    if one_file and (args.valid or args.test):
        raise UserError("--valid and --test need a folder: --out DIR", 2)
    rows, left_out, seen, n_read = [], {}, set(), 0
    for path in args.files:
        for where, row in read_rows(path):
            check_text(row, "question", where)
            check_text(row, "answer", where)
            question, answer = row["question"], row["answer"]
            n_read += 1
            try:
                if question in seen:
                    raise ValueError("the same problem as an earlier row")
                steps, answer = convert_gsm8k(answer)
            except ValueError as e:
                left_out.setdefault(str(e), []).append(where)
                continue
            seen.add(question)
            rows.append({"id": f"gsm8k-{n_read}", "problem": question, "steps": steps, "answer": answer,
                         "source": "gsm8k"})
    reasons = [f"{len(places):,} left out: {reason} ({', '.join(places[:3])}{', ...' if len(places) > 3 else ''})"
               for reason, places in left_out.items()]
    if not rows:
        hint = "; GSM8K's Socratic files have them, as lines 'sub-question ** solution'" if "no sub-questions" in left_out else ""
        raise UserError(f"{n_read:,} rows read, none can be used: " + "; ".join(reasons) + hint if n_read else
                        f"{args.files[-1]}: holds no row")

    n_valid = (0 if one_file else max(1, len(rows) // 20)) if args.valid is None else args.valid
    if n_valid + args.test >= len(rows):
        raise UserError(f"--valid {n_valid} and --test {args.test} leave nothing of {len(rows)} rows for training", 2)
    drawn = Random(args.seed).sample(range(len(rows)), n_valid + args.test)
    split_of = {i: "valid" if k < n_valid else "test" for k, i in enumerate(drawn)}
    splits = {}
    for i, row in enumerate(rows):
        splits.setdefault(split_of.get(i, "train"), []).append(row)
    files = {args.out if one_file else args.out / f"{split}.jsonl": encode(part) for split, part in splits.items()}
    usable(args.out.parent if one_file else args.out)
    replaceable(files, args.force)
    save(files)
    print(f"{n_read:,} rows read, {len(rows):,} written, {n_read - len(rows):,} left out")
    for reason in reasons:
        print(f"  {reason}")
    if one_file:
        print(f"{args.out}: {len(rows):,} problems")
    else:
        counts = ", ".join(f"{split} {len(splits[split]):,}" for split in SPLITS if split in splits)
        print(f"{args.out}: {counts} problems")
        print(next_command(args.out))


# ---- files and flags ---------------------------------------------------------------------------------------------------

def encode(rows):
    """Rows as the bytes of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")


def usable(folder):
    """Make sure, before any work, that `folder` is there and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"--out {folder}: this is a file, not a folder")
    except OSError as e:
        raise UserError(f"--out {folder}: {e.strerror}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder}: no permission to write there")


def replaceable(files, force):
    """Raise UserError if one of `files`, {path: bytes}, is there already with another content, unless `force`."""
    for path, content in files.items():
        if path.exists() and not force and path.read_bytes() != content:
            raise UserError(f"{path} is there already and holds other problems: --force replaces it, --out DIR leaves it", 2)


def save(files):
    """Write `files`, {path: bytes}, all in one folder, each whole or not at all."""
    folder = next(iter(files)).parent
    if all(path.exists() and path.read_bytes() == content for path, content in files.items()):
        print(f"{folder}: the same problems are there already")
        return
    try:
        with written_aside(folder) as aside:
            for path, content in files.items():
                (aside / path.name).write_bytes(content)
    except OSError as e:
        raise UserError(f"--out {folder}: {e.strerror}")


def next_command(out):
    """What to type when the files in the folder `out` are there."""
    if out == Path("annotations"):
        return "next: python train.py --role solver"
    train, valid = (shlex.quote(str(out / f"{split}.jsonl")) for split in ("train", "valid"))
    return f"next: python train.py --role solver --train {train} --valid {valid}"


def whole(low):
    """An argument type: a whole number from `low`."""
    def parse(text):
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {low}")
        return int(text)
    return parse


def fraction(text):
    """An argument type: a number from 0 to 1."""
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is no number from 0 to 1")


def span(text):
    """An argument type: numbers of steps, "2-5" or "3", as (lowest, highest)."""
    m = re.fullmatch(r"([1-8])(?:-([1-8]))?", text)
    if not m or int(m[1]) > int(m[2] or m[1]):
        raise argparse.ArgumentTypeError(f"{text} is no range such as 2-5, from 1 to 8")
    return int(m[1]), int(m[2] or m[1])


def parse_args(argv):
    """The flags of annotate.py. Raises UserError (status 2) for bad usage."""
    p = Parser(description="Write annotated problems: train.jsonl, valid.jsonl and test.jsonl.",
               epilog="Without a command: templates.")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)

    t = commands.add_parser("templates", help="the template teacher: see annotate.py templates --help")
    t.add_argument("--out", type=Path, default=Path("annotations"), metavar="DIR", help="folder of the files (%(default)s)")
    t.add_argument("--level", type=int, choices=(1, 2, 3), default=1,
                   help="1 (default): told in the order needed; 2: in any order; 3: relations told backwards too")
    t.add_argument("--steps", type=span, metavar="LOW-HIGH", help="steps of a problem (2-5, at level 3 2-6)")
    for split, n in zip(SPLITS, (50_000, 500, 1_000)):
        t.add_argument(f"--{split}", type=whole(1), default=n, metavar="N", help=f"problems in {split}.jsonl (%(default)s)")
    t.add_argument("--made-up", type=fraction, default=0.1, metavar="FRACTION",
                   help="training problems with names and objects made up from syllables (%(default)s)")
    t.add_argument("--made-up-test", type=fraction, default=0.0, metavar="FRACTION",
                   help="the same for valid.jsonl and test.jsonl, with words that stand in no train.jsonl (%(default)s)")
    t.add_argument("--style", choices=STYLES, default=STYLES[0], help="solutions that restate what they use, or short ones (%(default)s)")
    t.set_defaults(teacher=templates)

    g = commands.add_parser("gsm8k", help="convert GSM8K's Socratic files: see annotate.py gsm8k --help")
    g.add_argument("files", nargs="+", type=Path, metavar="FILE")
    g.add_argument("--out", type=Path, default=Path("annotations/gsm8k"), metavar="DIR",
                   help="folder of train.jsonl, valid.jsonl and test.jsonl (annotations/gsm8k), or one file, ...jsonl")
    g.add_argument("--valid", type=whole(1), metavar="N", help="problems set aside at random for valid.jsonl (one in 20)")
    g.add_argument("--test", type=whole(0), default=0, metavar="N", help="problems set aside at random for test.jsonl (0)")
    g.set_defaults(teacher=gsm8k)

    for command in t, g:
        command.add_argument("--seed", type=int, default=0, metavar="N",
                             help="the same seed gives the same bytes (%(default)s)")
        command.add_argument("--force", action="store_true", help="replace files that hold other problems")
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["templates", *argv]
    args = p.parse_args(argv)
    if args.teacher is templates and args.steps is None:
        args.steps = (2, 6) if args.level == 3 else (2, 5)
    return args


def main():
    """Parse, then let the chosen teacher write its files."""
    args = parse_args(sys.argv[1:])
    args.teacher(args)


if __name__ == "__main__":
    run(main)
