"""Everything that makes annotation files, in this order: the template teacher, which draws problems with their sub-questions
and solutions; converters of published datasets; the LLM teacher, a model behind a server; the students as their own teacher;
and a check of what came out.

A problem of the template teacher is a list of quantities. A quantity is "Yuri has 30 apples": an owner, a verb, an object
and a number; so it has one sub-question, "How many apples does Yuri have?", and later sentences find it by its owner,
"5 more apples than Yuri". A quantity is given or follows from earlier ones by a kind of relation or event, a row of KINDS.
"""
import argparse
import hashlib
import http.client
import json
import math
import os
import queue
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
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from data import MARK, ROLES, Parser, Tokenizer, UserError, check_problem, encode_problems, find_device, fits, jsonl, learn_tokenizer, \
    parse_rows, read_problems, read_rows, run, write_problems, written_aside
from infer import Sampling, calculate, open_student, same_answer, socratic, solve

SPLITS = "train", "valid", "test"
SHARES = 95, 5, 0  # percent of a dataset's problems in each split
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
ONSETS = "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kl kr pl pr qu sc sh sk sl sm sn sp st th tr wh".split()
VOWELS = "a a a e e e i i i o o o u u ai ay ea ee ia ie oa oo ou y".split()
CODAS = "b ck d g k l ll m n n nd ng nn nt p r rd rk rt s ss st t tt th x".split()


def make_up_word(rng, training, words):
    """A word of one to three syllables, some behind the beginning of one of `words`. Those for training and those for
    evaluation are two disjoint sets, told apart by a checksum, so that no made-up word of an evaluation file, of whatever
    seed, stands in any training file."""
    while True:
        word = ""
        if rng.random() < 0.4:
            word = rng.choice(words).lower()
            word = word[:rng.randrange(1, len(word))]
        for _ in range(rng.choice((0, 1, 1, 2)) if word else rng.choice((1, 2, 2, 3))):
            word += rng.choice(ONSETS) if rng.random() < 0.9 else ""
            word += rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.4 else "")
        if 3 <= len(word) <= 10 and (zlib.crc32(word.encode()) % 4 > 0) == training and word.capitalize() not in NAMES \
                and word not in OBJECTS and word + "s" not in OBJECTS:
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
    written than from the question alone; and the equation then takes them as they stand. "short" says the result alone:
    "Yuri has <<10+20=30>>30 apples."
    """
    note = f"<<{equation(q)}={q.value}>>"
    if style == "short":
        return _capital(q.statement(f"{note}{q.value}")) + "."
    told = " and ".join(f"{x.owner} {x.verb} {x.value}" for x in q.operands if isinstance(x, Quantity))
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


def wordings_of(wordings, part):
    """Of a relation's wordings the one that is held out ("test"), the others ("train"), or all."""
    held_out = list(dict.fromkeys(wordings))[1]
    return wordings if part == "all" else [wording for wording in wordings if (wording == held_out) == (part == "test")]


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
    wordings: str  # "all", "train" or "test": see `wordings_of`
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
        wording = self.rng.choice(wordings_of(wordings, self.wordings))
        self.facts.append(Fact(wording.format(**words), quantity, frozenset(people), event))

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


def draw_story(rng, level, n_steps, made_up=False, training=True, wordings="all"):
    """Draw a problem of `n_steps` steps as a Story. made_up: of made-up words, those for training or those for evaluation;
    wordings: "all", "train" or "test"."""
    n_names = 3 * n_steps + 3  # more than it can use
    while True:
        if made_up:
            names = {make_up_word(rng, training, NAMES).capitalize(): None for _ in range(n_names)}
            names, objects = list(names), [make_up_word(rng, training, OBJECTS) + "s" for _ in range(2)]
        else:
            names, objects = rng.sample(NAMES, n_names), rng.sample(OBJECTS, 2)
        story = Story(rng, level, wordings, names, objects)
        try:
            story.grow(n_steps)
        except DeadEnd:
            continue
        if rng.random() < UNNEEDED:
            story.distract()
        if level > 1 and rng.random() < OUT_OF_ORDER:
            story.shuffle()
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
    wordings = "all" if args.wordings == "all" else "test" if split == "test" else "train"
    rows = []
    while len(rows) < getattr(args, split):
        n_steps = low + len(rows) % (high - low + 1)
        story = draw_story(rng, args.level, n_steps, rng.random() < made_up, split == "train", wordings)
        row = write_problem(story, args.style)
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
            files[args.out / f"{split}.jsonl"] = rows
            replaceable(files, args.force)
    save(files)
    steps = Counter(len(row["steps"]) for row in rows)
    print("train by steps: " + ", ".join(f"{n}: {steps[n]:,}" for n in sorted(steps)))
    report(args.out, {args.out / f"{split}.jsonl": getattr(args, split) for split in SPLITS})


# ---- converters: published files as they are ---------------------------------------------------------------------------

class Unfit(Exception):
    """What cannot become an annotated problem, and why."""


def text_of(row, name):
    """The text in a field of a published row; raises Unfit."""
    if not isinstance(row.get(name), str) or not row[name].strip():
        raise Unfit(f"field '{name}' is missing, empty or no text")
    return row[name]


def from_gsm8k(row, args):
    """GSM8K: lines of an answer, the last "#### 70,000". In the Socratic files a line is "sub-question ** solution".

    The main files have no sub-questions. Their lines become steps all the same, each with the plain question "What is step
    1?", so that a student of the role cot or answer learns from them as they are; "questions": "plain" marks the row.
    A decomposer has nothing to learn there: `annotate.py teacher --style questions` asks for real sub-questions.
    """
    problem = text_of(row, "question")
    *lines, last = [stripped for line in text_of(row, "answer").splitlines() if (stripped := line.strip())]
    if not last.startswith(MARK):
        raise Unfit("no last line '#### answer'")
    answer = last.removeprefix(MARK).strip().replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", answer, re.ASCII):
        raise Unfit("the answer after '####' is no number")
    if not lines:
        raise Unfit("no steps")
    if not any("**" in line for line in lines):
        steps = [{"question": f"What is step {k}?", "solution": line} for k, line in enumerate(lines, 1)]
        return {"problem": problem, "steps": steps, "answer": answer, "questions": "plain"}
    steps = []
    for line in lines:
        question, _, solution = (part.strip() for part in line.partition("**"))
        if not question or not solution:
            raise Unfit("a line that is not 'sub-question ** solution'")
        steps.append({"question": question, "solution": solution})
    return {"problem": problem, "steps": steps, "answer": answer}


OPERATION = re.compile(r"\(\s*(-?[\d.]+)\s*([-+*/])\s*(-?[\d.]+)\s*\)")


def from_svamp(row, args):
    """SVAMP (Patel et al. 2021): body, question, equation, answer. Each operation of the equation, the innermost first, is a
    step, whose sub-question is "What is 3 + 4?"; the last step asks SVAMP's own question."""
    body, question = text_of(row, "Body").strip(), text_of(row, "Question").strip()
    equation, answer = text_of(row, "Equation"), calculate(str(row.get("Answer")))
    if answer is None:
        raise Unfit("field 'Answer' is missing or no number")
    left, steps = re.sub(r"\.0\b", "", equation), []
    while match := OPERATION.search(left):
        a, op, b = match.groups()
        result = calculate(f"{a}{op}{b}")
        if result is None:
            raise Unfit(f"its equation {equation} does not compute")
        steps.append({"question": f"What is {a} {op} {b}?", "solution": f"{a} {op} {b} = <<{a}{op}{b}={result}>>{result}"})
        left = left[:match.start()] + result + left[match.end():]
    if not same_answer(left, answer):
        raise Unfit(f"its equation {equation} is not its answer {answer}")
    steps = steps or [{"solution": answer}]
    steps[-1]["question"] = question
    if body[-1] not in ".?!":  # "If each pack costs 3 dollars", "How much ...?": two halves of a sentence
        body, question = body + ",", question[0].lower() + question[1:]
    return {"id": f"svamp-{row.get('ID')}", "problem": f"{body} {question}", "answer": answer,
            "steps": [{"question": step["question"], "solution": step["solution"]} for step in steps]}


def from_strategyqa(row, args):
    """StrategyQA (Geva et al. 2021): a yes/no question, its human decomposition, and facts.

    The decomposition are the sub-questions. Facts are as many as the sub-questions in a third of the rows only, and not
    always in their order: each fact is the solution of the sub-question with which it shares most words, and a
    sub-question that none has chosen takes the fact that suits it best. The last solution closes with the answer.
    """
    problem, questions, facts = text_of(row, "question"), row.get("decomposition"), row.get("facts")
    for name, texts in ("decomposition", questions), ("facts", facts):
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise Unfit(f"field '{name}' is missing, empty or no list of texts")
    if not isinstance(row.get("answer"), bool):
        raise Unfit("field 'answer' is missing or neither true nor false")
    answer = "yes" if row["answer"] else "no"
    words = [stems(REFERENCE.sub("", question)) for question in questions]
    rarity = Counter(stem for one in words for stem in one)
    shared = [[sum(1 / rarity[stem] for stem in stems(fact) & one) for one in words] for fact in facts]
    told = [[] for _ in questions]
    for i, scores in enumerate(shared):
        told[scores.index(max(scores)) if any(scores) else min(i, len(questions) - 1)].append(i)
    for k in range(len(questions) - 1):
        told[k] = told[k] or [max(range(len(facts)), key=lambda i: (shared[i][k], -abs(i - k)))]
    solutions = [" ".join(facts[i].strip().rstrip(".") + "." for i in one) for one in told]
    solutions[-1] = f"{solutions[-1]} So the answer is {answer}.".strip()
    asked = []
    for question in questions:
        if any(not 1 <= int(k) <= len(asked) for k in REFERENCE.findall(question)):
            raise Unfit("a sub-question refers to one that does not come before it")
        asked.append(question.strip() if args.references == "kept" else resolve(question.strip(), asked))
    steps = [{"question": question, "solution": solution} for question, solution in zip(asked, solutions)]
    return {"id": f"strategyqa-{row.get('qid')}", "problem": problem, "steps": steps, "answer": answer}


REFERENCE = re.compile(r"#(\d+)")


def resolve(question, asked):
    """A sub-question with what `#1` refers to put into words: 'Where was the answer to "Who played Bond?" born?'

    asked: the sub-questions before it, resolved. What stands in quotes within quotes gets single ones.
    """
    return REFERENCE.sub(lambda m: 'the answer to "{}"'.format(asked[int(m[1]) - 1].replace('"', "'")), question)


def stems(text):
    """What identifies a text's words, whatever their endings: their first five letters, of words of four and more."""
    return {word[:5] for word in re.findall(r"[^\W_]{4,}|\d+", text.casefold())}


CONVERTERS = {"gsm8k": (from_gsm8k, "question, answer"), "svamp": (from_svamp, "Body, Question, Equation, Answer"),
              "strategyqa": (from_strategyqa, "question, answer, decomposition, facts")}


def split_of(problem, shares):
    """The split of a problem, by a hash of its text: it stays there when the file grows or is reordered. shares: percent."""
    place = int.from_bytes(hashlib.sha256(" ".join(problem.split()).encode("utf-8", "replace")).digest()[:8], "big") % 10000
    return next(split for split, upto in zip(SPLITS, accumulate(shares)) if place < 100 * upto)


def destinations(args):
    """{split: path}: DIR/train.jsonl and so on, or for all splits the one file that --out names."""
    if args.out.suffix == ".jsonl":
        if args.split:
            raise UserError("--split needs a folder: --out DIR", 2)
        return dict.fromkeys(SPLITS, args.out)
    return {split: args.out / f"{split}.jsonl" for split, part in zip(SPLITS, args.split or SHARES) if part}


def convert(args):
    """Convert the files of a dataset into train.jsonl, valid.jsonl and test.jsonl, or into one file; account for each row."""
    converter, fields = CONVERTERS[args.command]
    paths = destinations(args)
    files, seen, left_out, n_read = {}, set(), [], 0
    for file in args.files:
        for where, row in read_rows(file):
            n_read += 1
            try:
                new = {"id": f"{args.command}-{n_read}"} | converter(row, args) | {"source": args.command}
                if new["problem"] in seen:
                    raise Unfit("the same problem as an earlier row")
            except Unfit as e:
                if args.strict:
                    raise UserError(f"{where}: {e} (--strict)")
                left_out.append((str(e), where, row.get("qid") or row.get("ID") or f"{args.command}-{n_read}"))
                continue
            seen.add(new["problem"])
            files.setdefault(paths[split_of(new["problem"], args.split or SHARES)], []).append(new)
    if not n_read:
        raise UserError(f"{args.files[-1]}: holds no row")
    if not seen:
        reasons = "; ".join(f"{n:,} left out: {reason}" for reason, n in Counter(reason for reason, *_ in left_out).items())
        raise UserError(f"{args.files[0]}: {n_read:,} rows read, none can be used: {reasons}; {args.command}'s rows have the "
                        f"fields {fields}")
    if empty := set(paths.values()) - files.keys():
        raise UserError(f"{len(seen):,} problems, and none falls into {min(empty).name}: give it a larger part, as in --split "
                        "80/10/10, or write one file: --out FILE.jsonl", 2)
    usable(args.out.parent if args.out.suffix else args.out)
    replaceable(files, args.force)
    save(files)
    for reason, where, name in left_out:
        print(f"left out: {where} ({name}): {reason}")
    print(f"{n_read:,} rows read, {len(seen):,} written, {len(left_out):,} left out")
    rows = [row for part in files.values() for row in part]
    if plain := sum("questions" in row for row in rows):
        print(f"{plain:,} have no sub-questions of their own but plain ones, \"What is step 1?\": for --role cot and answer, or "
              "as the FILE of annotate.py teacher")
    report(args.out, {path: len(files[path]) for path in dict.fromkeys(paths.values())}, "cot" if 2 * plain > len(rows) else "solver")


# ---- equations and answers ---------------------------------------------------------------------------------------------

NOTE = re.compile(r"<<([^<>]*?)=([^<>=]*)>>")
# an equation without a note: numbers and signs, not in the middle of a longer expression
PLAIN = re.compile(r"(?<![\w.,)^%*/+=-])(?<![*/+=-] )(\$?\d[\d.,]*(?:\s*[-+*/x×]\s*\$?\d[\d.,]*)+)\s*=\s*(\$?)(\d[\d,]*(?:\.\d+)?)"
                   r"(?!\s*[-+*/x×%^]|[\d.,]*\d)")


def computes(expression, result):
    """Whether the calculator comes to `result` (text), which may be rounded to two places or more or to those it has."""
    value = calculate(expression)
    if value is None or same_answer(value, result):
        return value is not None
    match = re.fullmatch(r"[$\s]*(-?\d*\.(\d+))\s*", result.replace(",", ""), re.ASCII)
    return bool(match) and abs(Fraction(value) - Fraction(match[1])) <= Fraction(1, 10 ** min(2, len(match[2])))


def wrong_equations(solution):
    """The notes <<...=...>> of a solution that do not compute or are broken, each in words."""
    notes = NOTE.findall(solution)
    if not len(notes) == solution.count("<<") == solution.count(">>"):
        yield "a broken note <<...=...>>"
    for result, said in re.findall(r"=([^<>=]*)>>\$?(\d[\d,]*(?:\.\d+)?)(?![\d,]*\d|/\d)", solution):
        if not computes(result, said):
            yield f"<<...={result}>> stands before {said}"
    for expression, result in notes:
        if not computes(expression, result):
            yield f"<<{expression}={result}>> does not compute: the calculator says {calculate(expression) or 'nothing'}"


def with_notes(solution):
    """A solution in which each plain equation, "3 x 4 = $12", has its note: "3 x 4 = $<<3*4=12>>12". Notes that are there stay.

    Raises Unfit for a wrong one. Students learn to call the calculator from notes alone, and not every teacher writes them.
    """
    def note(match):
        expression, currency, result = match.groups()
        terms = re.sub(r"[x×]", "*", re.sub(r"[\s,$]", "", expression))
        if not computes(terms, result):
            raise Unfit(f"{match[0]} does not compute")
        return f"{match[0][:len(match[0]) - len(result)]}<<{terms}={result.replace(',', '')}>>{result}"
    return "".join(part if part.startswith("<<") else PLAIN.sub(note, part) for part in re.split(r"(<<[^<>]*>>)", solution))


NUMBERS = re.compile(r"-?\$?[\d,.]*\d")  # a number in a text


def reaches(solution, answer):
    """Whether a solution says the answer: as one of its numbers, or else in these words."""
    said = NOTE.sub(r" \2 ", solution)
    return any(same_answer(number, answer) for number in NUMBERS.findall(said)) or \
        re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer.strip())}(?!\w|[.,]\d)", said, re.I) is not None


def agrees(said, answer):
    """Whether what a teacher gives as the answer is the known one: alone, as the only number, "12 apples", or as "Yes, it could"."""
    numbers = NUMBERS.findall(said)
    return any(same_answer(one, answer) for one in (said, re.split(r"[,.;:!](?!\d)", said)[0], *(numbers if len(numbers) == 1 else ())))


# ---- the LLM teacher: prompts ------------------------------------------------------------------------------------------

EXAMPLES = [
    {"problem": "A baker fills 6 trays with 12 rolls each and sells 50 of the rolls. How many rolls are left?", "answer": "22",
     "steps": [{"question": "How many rolls does the baker make?", "solution": "The baker makes 6*12 = <<6*12=72>>72 rolls."},
               {"question": "How many rolls are left?", "solution": "There are 72-50 = <<72-50=22>>22 rolls left."}]},
    {"problem": "A ticket costs $7.50, for children half as much. What do 2 adults and 3 children pay?", "answer": "26.25",
     "steps": [{"question": "What does a child's ticket cost?", "solution": "A child's ticket costs 7.5/2 = $<<7.5/2=3.75>>3.75."},
               {"question": "What do the adults pay?", "solution": "The adults pay 2*7.5 = $<<2*7.5=15>>15."},
               {"question": "What do the children pay?", "solution": "The children pay 3*3.75 = $<<3*3.75=11.25>>11.25."},
               {"question": "What do they pay together?", "solution": "Together they pay 15+11.25 = $<<15+11.25=26.25>>26.25."}]},
    {"problem": "Could a goldfish live in the Dead Sea?", "answer": "no",
     "steps": [{"question": "What water does a goldfish need?", "solution": "A goldfish needs fresh water."},
               {"question": "How salty is the Dead Sea?", "solution": "The Dead Sea is several times as salty as an ocean."},
               {"question": "Can a goldfish live in such salty water?", "solution": "It needs fresh water, so the answer is no."}]},
]
INSTRUCTIONS = {
    "socratic": "Solve the last problem as in the examples: ask yourself one sub-question after another, and give each a short "
                "solution. Write each calculation as 3*4 = <<3*4=12>>12. Close with the answer alone: a number without a unit, "
                "or yes or no. Write nothing else.",
    "cot": "Solve the last problem as in the examples: one short step a line. Write each calculation as 3*4 = <<3*4=12>>12. Close "
           "with the answer alone: a number without a unit, or yes or no. Write nothing else.",
    "questions": "For each solution of the last problem write the sub-question that it answers, as in the examples. Write nothing "
                 "else.",
}
STAGES = {"socratic": ["socratic"], "cot": ["cot", "questions"], "questions": ["questions"]}  # the requests of each style


def laid_out(stage, steps, answer):
    """What a prompt shows of an example and what the teacher is to write about it: two texts, for a stage of STAGES."""
    questions, solutions = ([f"{name.capitalize()} {k}: {step[name]}" for k, step in enumerate(steps, 1) if name in step]
                            for name in ("question", "solution"))
    close = [f"Answer: {answer}"]
    if stage == "questions":
        return "\n" + "\n".join(solutions), "\n".join(questions)
    return "", "\n".join([line for pair in zip(questions, solutions) for line in pair] + close if stage == "socratic" else
                         [step["solution"] for step in steps] + close)


def built_in(stage):
    """Our prompt of a stage, few-shot as the paper's, with the placeholders {problem} and, for questions, {solutions}."""
    shots = [f"Problem: {example['problem']}{given}\n{wanted}" for example in EXAMPLES
             for given, wanted in [laid_out(stage, example["steps"], example["answer"])]]
    return "\n\n".join([INSTRUCTIONS[stage], *shots, "Problem: {problem}" + "\n{solutions}" * (stage == "questions")]) + "\n"


def read_prompts(args):
    """The prompts of a style, {stage: text}: ours, or those that --prompt names, one for each request. Raises UserError."""
    stages = STAGES[args.style]
    if len(args.prompt) > len(stages):
        raise UserError(f"--prompt {args.prompt[len(stages)]}: --style {args.style} sends {len(stages)} to a problem", 2)
    prompts = {stage: built_in(stage) for stage in stages}
    for stage, path in zip(stages, args.prompt):
        try:
            prompts[stage] = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"--prompt {path}: not UTF-8")
        except OSError as e:
            raise UserError(f"--prompt {path}: {e.strerror}")
        for place in ("{problem}", "{solutions}")[:1 + (stage == "questions")]:
            if place not in prompts[stage]:
                raise UserError(f"--prompt {path}: the placeholder {place} is missing: write it where that is to stand")
    return prompts


def fill(prompt, problem, steps=()):
    """A prompt about a problem (text) and, for questions, the solutions of its steps."""
    given, _ = laid_out("questions", [{"solution": step["solution"]} for step in steps], "")
    values = {"{problem}": " ".join(problem.split()), "{solutions}": given.strip()}
    return re.sub(r"\{problem\}|\{solutions\}", lambda match: values[match[0]], prompt)


# what chat models adorn a reply with: thoughts, LaTeX, signs that the calculator does not know, Markdown
MARKUP = [(re.compile(pattern, re.M), plain) for pattern, plain in (
    (r"\A(?s:.*)</think(?:ing)?>", ""), (r"\$([^$\n]*\\[^$\n]*)\$", r"\1"), (r"\\(?:boxed|text)\{([^{}\n]*)\}", r"\1"), (r"\\times|\\cdot|[×·]", "*"),
    (r"\\div|÷", "/"), ("−", "-"), (r"\\[()[\]]", ""), (r"(?<!\d)\*\*|\*\*(?!\d)", ""), (r"^```\w*$|`|^-{3,}$", ""))]
LABEL = re.compile(r"^[ \t#>*_-]*(?:\d+[.)][ \t]*)?(?:(?:final |sub-?)?(question|solution|answer)[ \t]*#?\d*[ \t*_]*(?::|$)|####)[ \t*_]*", re.I | re.M)


def labelled(reply):
    """A reply without MARKUP: the text before its first label, and its parts up to the first answer (also "####"), a list of
    (label, text), the label "question", "solution" or "answer"."""
    for pattern, plain in MARKUP:
        reply = pattern.sub(plain, reply)
    before, *parts = LABEL.split(reply)
    parts = [((label or "answer").lower(), text) for label, text in zip(parts[::2], parts[1::2])]
    parts = [(label, text) for label, text in parts if label != "answer" or text.strip()]  # "Answer:", and below it "#### 12"
    labels = [label for label, _ in parts]
    if "answer" in labels:
        parts = parts[:labels.index("answer") + 1]
        parts[-1] = "answer", (parts[-1][1].strip().splitlines() or [""])[0]
    parts = [(label, text.strip().split("\n\n")[0] if label == "question" else text) for label, text in parts]  # "Let me know ..."
    parts = [(label, " ".join(text.split()).strip("*_ ")) for label, text in parts]
    if any(not text for _, text in parts):
        raise Unfit("the reply has an empty part")
    return before, parts


def read_dialogue(reply):
    """Steps and answer of a reply "Question 1: ... Solution 1: ... Answer: ..."; raises Unfit."""
    _, parts = labelled(reply)
    if [label for label, _ in parts] != ["question", "solution"] * (len(parts) // 2) + ["answer"] or len(parts) < 3:
        raise Unfit("the reply is not question, solution, ..., answer")
    texts = [text for _, text in parts]
    return [{"question": q, "solution": s} for q, s in zip(texts[:-1:2], texts[1::2])], texts[-1]


def read_chain(reply):
    """Steps, without questions, and answer of a reply "... Answer: ..."; raises Unfit."""
    chain, parts = labelled(reply)
    lines = (re.sub(r"^[\s#>]*(?:(?:[-*]|(?:step )?\d+[.:)])\s+)?", "", line, flags=re.I).strip() for line in chain.splitlines())
    steps = [{"solution": line} for line in lines if line and not line.endswith(":")]  # no heading, no "Here are the steps:"
    if [label for label, _ in parts] != ["answer"] or not steps:
        raise Unfit("the reply is not lines and 'Answer: ...'")
    return steps, parts[0][1]


def read_questions(reply, steps):
    """The steps with the questions of a reply "Question 1: ..."; raises Unfit."""
    _, parts = labelled(reply)
    if [label for label, _ in parts] != ["question"] * len(steps):
        raise Unfit(f"the reply is not {len(steps)} questions")
    return [{"question": question, "solution": step["solution"]} for (_, question), step in zip(parts, steps)]


def verified(steps, answer, problem):
    """The steps, if their equations compute and they come to the problem's known answer; raises Unfit."""
    for step in steps:
        step["solution"] = with_notes(step["solution"])
        for wrong in wrong_equations(step["solution"]):
            raise Unfit(wrong)
    if not agrees(answer, problem["answer"]):
        raise Unfit(f"the answer is {answer[:40]}, not {problem['answer']}")
    if not reaches(steps[-1]["solution"], problem["answer"]):
        raise Unfit("the last solution does not come to the answer")
    return steps


def annotate(problem, endpoint, prompts, args):
    """Have a problem annotated, asking up to --tries times at rising temperature.

    In the style cot the teacher thinks first and asks afterwards, a question for each line; in the style questions the file's own
    solutions stand, and questions are all that is asked for.
    Returns the row that is to be written: the problem with its new steps and with how they came about under "teacher", or,
    with neither, "rejected": why the last try was no use, and "reply", what the teacher said.
    """
    about = provenance(prompts, args) | {"tokens": [0, 0]}
    said, style, steps = "", args.style, problem.get("steps", ())

    def ask(stage):
        nonlocal said
        reply = endpoint.ask(fill(prompts[stage], problem["problem"], steps), about["temperature"])
        about["served"], said = reply.model, reply.text
        about["tokens"] = [a + b for a, b in zip(about["tokens"], reply.tokens)]
        if reply.finish == "length":
            raise Unfit(f"the reply was cut off after {reply.tokens[1]} tokens (--max-tokens)")
        if not said.strip():
            raise Unfit("the reply is empty: are there thoughts alone?")
        return said

    for k in range(args.tries):
        rise = max(0, 1 - args.temperature) * k / max(1, args.tries - 1)
        about |= {"try": k + 1, "temperature": args.extra.get("temperature", round(args.temperature + rise, 2)),
                  "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        try:
            if style == "socratic":
                steps = verified(*read_dialogue(ask("socratic")), problem)
            if style == "cot":
                steps, style = verified(*read_chain(ask("cot")), problem), "questions"  # also of the next try, if these are no use
            if style == "questions":
                steps = read_questions(ask("questions"), steps)
            return {**problem, "steps": steps, "teacher": about}
        except Unfit as e:
            reason = str(e)
            if isinstance(e, Refused):
                break
    return {key: problem[key] for key in ("id", "problem", "answer")} | {"rejected": reason, "reply": said, "teacher": about}


def provenance(prompts, args):
    """What is the same for all rows of a run: the model, the style, a hash of the prompts, and --extra."""
    text = json.dumps(prompts, sort_keys=True)
    return {"model": args.model, "style": args.style, "prompt": hashlib.sha256(text.encode("utf-8")).hexdigest()[:12],
            "extra": args.extra}


# ---- the LLM teacher: its server ---------------------------------------------------------------------------------------

LONGEST_REPLY = 10_000_000  # bytes
LONGEST_PAUSE = 60          # seconds between two requests of a problem, unless the server asks for more
LONGEST_WAIT = 600          # seconds that a server may ask for
OF_ONE = 400, 413, 422      # statuses that may be about one problem: it is too long, or breaks the server's rules


class Refused(Unfit):
    """The server would not take this problem, or failed with it again and again."""


class Reply(NamedTuple):
    """A completion: its text, why it ended ("stop", "length"), the model that the server names, (read, written) tokens."""
    text: str
    finish: str
    model: str
    tokens: tuple


class Endpoint:
    """The chat completions of an OpenAI-compatible server, for many threads: each has a connection, which is kept alive.

    The key comes from the environment and goes into the request's header and nowhere else; should a server echo it, it is
    struck out before anyone sees the reply, unless it is a word such as "none" or "EMPTY", which replies have of their own.
    """

    def __init__(self, args):
        self.args, self.key = args, os.environ.get(args.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]*", self.key):
            raise UserError(f"{args.key_variable}: the key holds characters that no HTTP header can carry")
        try:
            url = urlsplit(args.url)
            self.address = url.hostname, url.port
        except ValueError as e:
            raise UserError(f"--url {args.url}: {e}", 2)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or not re.fullmatch("[!-~]+", args.url):
            raise UserError(f"--url {args.url}: expected as in http://localhost:8000/v1, without user or password", 2)
        path = url.path.rstrip("/") or "/v1"
        self.path = path + "/chat/completions" * (not path.endswith("/chat/completions")) + (f"?{url.query}" if url.query else "")
        self.tls = ssl.create_default_context() if url.scheme == "https" else None
        self.url = f"{url.scheme}://{url.netloc}{self.path}"
        self.headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "annotate.py"}
        if self.key:
            self.headers["Authorization"] = f"Bearer {self.key}"
        self.threads, self.lock, self.stop = threading.local(), threading.Lock(), threading.Event()
        self.requests = self.good = self.failures = 0  # requests sent; good replies; problems given up since the last of these
        self.earlier = False  # whether there were good replies in an earlier run
        self.refused = set()  # requests, before the first good reply
        self.tokens = [0, 0]  # read and written, of all good replies

    @property
    def proven(self):
        """Whether there was a good reply, in this run or an earlier one: url and model were right then."""
        return self.good > 0 or self.earlier

    def body(self, prompt, temperature):
        """The request's JSON object."""
        body = {"model": self.args.model, "messages": [{"role": "user", "content": prompt}], "temperature": temperature,
                "max_tokens": self.args.max_tokens} | self.args.extra
        return {key: value for key, value in body.items() if value is not None}

    def ask(self, prompt, temperature):
        """Send a prompt; returns the Reply. What may pass is tried again, up to --retries times, after a pause.

        Raises Refused for what concerns this prompt, UserError for what concerns all.
        """
        body = json.dumps(self.body(prompt, temperature)).encode()
        for k in range(self.args.retries + 1):
            wait = 0
            try:
                status, headers, content = self.post(body)
                if status == 200:
                    return self.read(content, len(body))
                trouble, wait = f"HTTP {status}: {message_of(content)}", retry_after(headers.get("Retry-After")) or 0
                passing = status in (408, 409, 425, 429) or status >= 500
                if not passing:
                    if not self.proven:
                        self.refused.add(body)
                    # before any good reply it may be this problem alone, too long perhaps: the next one, good or refused, shows it
                    if self.proven or len(self.refused) > 1 or status not in OF_ONE:
                        raise self.refusal(status, trouble)
            except (OSError, http.client.HTTPException) as e:
                trouble = self.explain(e)
            except ValueError as e:
                trouble = f"no chat completion but {e}"
            pause = random.uniform(0.1, 1) * min(LONGEST_PAUSE, self.args.pause * 2 ** k)
            if wait > LONGEST_WAIT:
                raise UserError(f"{self.url}: {trouble}; it asks for a pause of {wait:,.0f} s: the same command goes on then")
            if wait + pause > 1:  # longer than some servers keep a connection
                self.close()
            if k < self.args.retries and self.stop.wait(wait + pause):
                raise UserError("stopped")  # by another's error or Ctrl-C: nothing is known of this problem, and nothing is written
        with self.lock:
            self.failures += 1
            lost = not self.proven or self.failures > 1  # two problems in a row: it is not the problem
        if lost:
            raise UserError(f"{self.url}: {trouble} (after {self.args.retries + 1} requests); " +
                            ("what is written stays, the same command goes on from there" if self.proven else "check --url"))
        raise Refused(trouble)

    def post(self, body):
        """One request: (status, headers, content). Raises OSError or HTTPException if no whole reply comes in time."""
        if not hasattr(self.threads, "connection"):
            (host, port), timeout = self.address, self.args.timeout
            self.threads.connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self.tls) if self.tls \
                else http.client.HTTPConnection(host, port, timeout=timeout)
        connection, deadline = self.threads.connection, time.monotonic() + self.args.timeout
        with self.lock:
            self.requests += 1
        try:
            connection.request("POST", self.path, body, self.headers)
            with connection.getresponse() as response:
                content = b""
                while part := response.read1(1 << 16):
                    content += part
                    if time.monotonic() > deadline or len(content) > LONGEST_REPLY:
                        raise TimeoutError
                if response.length:  # bytes that the header promised
                    raise http.client.IncompleteRead(content, response.length)
        except BaseException:
            self.close()
            raise
        return response.status, response.headers, content.replace(self.key.encode(), b"***") if len(self.key) >= 16 else content

    def close(self):
        """Close this thread's connection; the next request opens it anew."""
        if hasattr(self.threads, "connection"):
            self.threads.connection.close()

    def read(self, content, length):
        """The Reply in the response to a request of so many bytes. Raises ValueError that shows what is there instead."""
        try:
            found = json.loads(content)
            choice, usage = found["choices"][0], found.get("usage") or {}
            text = choice["message"].get("content") or ""
            if isinstance(text, list):  # of parts, some of which may be thoughts
                text = "".join(part["text"] for part in text if part["type"] == "text")
            if not isinstance(text, str):
                raise TypeError
            tokens = tuple(int(usage.get(name) or guess // 4)  # where the server does not count, four bytes are a token
                           for name, guess in (("prompt_tokens", length), ("completion_tokens", len(text))))
            reply = Reply(text, choice.get("finish_reason"), str(found.get("model")), tokens)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(repr(content[:80].decode("utf-8", "replace")))
        with self.lock:
            self.good, self.failures = self.good + 1, 0
            self.tokens = [a + b for a, b in zip(self.tokens, tokens)]
        return reply

    def refusal(self, status, trouble):
        """What to raise for a status that will not pass: UserError if it concerns all problems, as after ten in a row, else Refused."""
        if status in (401, 402, 403):
            given = "was sent" if self.key else "is not set"
            return UserError(f"{self.url}: {trouble} (the key comes from the environment: {self.args.key_variable} {given})")
        with self.lock:
            self.failures += 1
            concerns_all = not (self.good or self.earlier and status in OF_ONE) or self.failures > 10
        return UserError(f"{self.url}: {trouble}; check --url and --model {self.args.model}") if concerns_all else Refused(trouble)

    def explain(self, error):
        """A failure of the connection in words; raises UserError for one that will not pass."""
        if isinstance(error, ssl.SSLCertVerificationError):
            raise UserError(f"{self.url}: the server's TLS certificate is not trusted: {error.verify_message}; the environment "
                            "variable SSL_CERT_FILE names the certificate of an authority of your own")
        for kind, why in ((socket.gaierror, "no such host"), (ssl.SSLError, "no TLS there: is it an http:// server?"),
                          (ConnectionRefusedError, "nothing listens there: is the server running?")):
            if isinstance(error, kind) and not self.good:
                raise UserError(f"{self.url}: {why} ({error})")
        if isinstance(error, TimeoutError):
            return f"no whole reply within {self.args.timeout:g} s (--timeout)"
        return f"{type(error).__name__}: {error}"


def message_of(content):
    """What the body of an error says, on one line: JSON's message, or its first words. A page's tags are left out."""
    text = content[:2000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
        found = found.get("error", found.get("detail", found))
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError, RecursionError):
        text = re.sub(r"<[^>]*>", " ", text)
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", " ".join(text.split()))[:200] or "(nothing)"


def retry_after(value):
    """Seconds to wait, from a Retry-After header: seconds or a date (RFC 9110, 10.2.3). None for anything else."""
    if value is None or re.fullmatch(r"\s*\d+(\.\d+)?\s*", value, re.ASCII):
        return value and float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None


# ---- the LLM teacher: a run --------------------------------------------------------------------------------------------

def in_parallel(work, items, n_threads, stop):
    """Yield work(item) for each item as soon as it is done, by so many threads; what `work` raises is raised here.

    When the caller leaves, `stop` (an Event) is set, and each thread ends after the item that it is at.
    """
    items, lock, results = iter(items), threading.Lock(), queue.SimpleQueue()

    def thread():
        try:
            while not stop.is_set():
                with lock:
                    item = next(items, None)
                if item is None:
                    break
                results.put((work(item), None, False))
            results.put((None, None, True))
        except BaseException as e:
            results.put((None, e, True))

    for _ in range(n_threads):
        threading.Thread(target=thread, daemon=True).start()
    try:
        while n_threads:
            result, error, ended = results.get()
            if error:
                raise error
            n_threads -= ended
            if not ended:
                yield result
    finally:
        stop.set()


ROW = b'{"id": '  # how a row of `annotate` begins in a file


class Output:
    """The files of a teacher's run, which grow row by row. An earlier run's rows are kept, and tell what is done.

    `done`: the texts of the problems that need not be asked again; `tokens`: what they cost; `counts`: {path: rows}.
    """

    def __init__(self, args, prompts):
        self.paths, self.shares = destinations(args), args.split or SHARES
        one_file = args.out.suffix == ".jsonl"
        self.rejected = args.out.with_suffix(".rejected.jsonl") if one_file else args.out / "rejected.jsonl"
        usable(args.out.parent if one_file else args.out)
        self.done, self.tokens, self.counts = set(), [0, 0], Counter()
        self.lock, self.synced = threading.Lock(), time.monotonic()
        self.files = {}  # those that this run has written to, open
        before = [args.out] if one_file else [args.out / f"{split}.jsonl" for split in SPLITS]
        lengths = {path: self.read(path, provenance(prompts, args)) for path in (*before, self.rejected) if path.exists()}
        for path, length in lengths.items():
            os.truncate(path, length)  # without a last line that a kill cut short

    def read(self, path, mine):
        """Take up the rows of an earlier run; returns the length in bytes of its whole lines. Raises UserError if not `mine`."""
        content = path.read_bytes()
        length = content.rfind(b"\n") + 1
        last = content[length:]  # cut short, perhaps just before its end
        whole = True
        try:
            json.loads(last)
        except ValueError:
            whole = False
            if not last.startswith(ROW) and not ROW.startswith(last):
                raise UserError(f"{path}: holds something else than annotations; choose another --out", 2)
        rows = list(parse_rows(content if whole else content[:length], path))
        for where, row in rows:
            about = row.get("teacher")
            if not isinstance(about, dict) or any(about.get(key, {}) != value for key, value in mine.items()):
                theirs = " ".join(f"{key} {about.get(key)}" for key in mine) if isinstance(about, dict) else "no teacher's"
                raise UserError(f"{where}: of another run ({theirs}; this one: {' '.join(f'{k} {v}' for k, v in mine.items())}); "
                                "choose another --out", 2)
        for _, row in rows[:-1] if whole else rows:
            self.count(path, row)
        return length

    def count(self, path, row):
        """Take note of a row that is in a file."""
        self.done.add(row["problem"])
        self.counts[path] += 1
        self.tokens = [a + b for a, b in zip(self.tokens, row["teacher"]["tokens"])]

    def write(self, row):
        """Append a row of `annotate` to the file of its split, or to the rejected ones; fsync once a second."""
        path = self.rejected if "rejected" in row else self.paths[split_of(row["problem"], self.shares)]
        with self.lock:
            try:
                if path not in self.files:
                    self.files[path] = open(path, "ab")
                self.files[path].write(jsonl([row]))
                self.files[path].flush()
                if time.monotonic() - self.synced > 1:
                    self.sync()
            except OSError as e:
                raise UserError(f"{path}: {e.strerror}")
            self.count(path, row)

    def sync(self):
        """Bring what is written onto the disk."""
        for file in list(self.files.values()):  # other threads may open more
            os.fsync(file.fileno())
        self.synced = time.monotonic()


def for_new_steps(row):
    """A row without what it says of the steps that it had."""
    return {key: value for key, value in row.items() if key not in ("questions", "kinds")}


def teacher(args):
    """The LLM teacher: have the problems of a file annotated by a model behind an OpenAI-compatible server."""
    prompts, endpoint = read_prompts(args), Endpoint(args)
    problems = {}
    for n, row in enumerate(read_problems(args.file, steps=args.style == "questions"), 1):
        row = {"id": f"{args.file.stem}-{n}"} | for_new_steps(row)
        problems.setdefault(row["problem"], row)
    if args.dry_run:
        first = next(iter(problems.values()))
        body = endpoint.body(fill(prompts[STAGES[args.style][0]], first["problem"], first.get("steps", ())), args.temperature)
        key = {"Authorization": f"Bearer ${args.key_variable}"} if endpoint.key else {}
        print(f"POST {endpoint.url}", *(f"{name}: {value}" for name, value in (endpoint.headers | key).items()), "",
              json.dumps(body, indent=2, ensure_ascii=False), sep="\n")
        return
    output = Output(args, prompts)
    endpoint.tokens, endpoint.earlier = list(output.tokens), len(output.done) > output.counts[output.rejected]
    todo = [row for text, row in problems.items() if text not in output.done]
    reasons, earlier = Counter(), len(problems) - len(todo)
    if earlier:
        tqdm.write(f"{args.out}: {earlier:,} of {len(problems):,} problems are done already", file=sys.stderr)

    def work(row):
        row = annotate(row, endpoint, prompts, args)
        output.write(row)  # before this thread goes on: a kill loses what is in flight and nothing else
        return row.get("rejected")

    def within_budget():
        for row in todo:
            if args.budget_tokens is not None and sum(endpoint.tokens) >= args.budget_tokens:
                return
            yield row

    def cost():
        prices = args.price and sum(n * price / 1e6 for n, price in zip(endpoint.tokens, args.price))
        return f"{sum(endpoint.tokens):,} tokens" + (f", {prices:.2f} in money" if args.price else "")

    with tqdm(total=len(problems), initial=earlier, unit=" problems", disable=None, dynamic_ncols=True) as bar:
        try:
            for reason in in_parallel(work, within_budget(), args.parallel, endpoint.stop):
                reasons[reason] += 1
                rejected = output.counts[output.rejected]
                bar.set_postfix_str(f"{len(output.done) - rejected:,} kept, {rejected:,} rejected, {cost()}", refresh=False)
                bar.update()
        finally:
            output.sync()
    del reasons[None]
    for reason, n in reasons.most_common(5):
        print(f"rejected: {n:,} ({reason})")
    if left := len(problems.keys() - output.done):
        print(f"stopped at --budget-tokens {args.budget_tokens:,}, {left:,} problems before the end; the same command with a "
              "larger budget goes on")
    kept, rejected = len(output.done) - output.counts[output.rejected], output.counts[output.rejected]
    where = f", in {output.rejected} (without this file they are asked again)" if rejected else ""
    print(f"{kept:,} annotations kept, {rejected:,} problems rejected{where}; {endpoint.requests:,} requests, {cost()}")
    if not kept and not left:
        raise UserError(f"{args.file}: no annotation was kept")
    report(args.out, {path: output.counts[path] for path in dict.fromkeys(output.paths.values())})


# ---- the students as their own teacher ---------------------------------------------------------------------------------

def self_teacher(args):
    """Let the students sample solutions; distinct ones that come to the known answer are new annotations.

    Rejection sampling, as in STaR (Zelikman et al. 2022) and RFT (Yuan et al. 2023). A problem that has as many as --keep is not
    sampled again.
    """
    problems = read_problems(args.file, steps=False)[:args.limit]
    slots = min(args.slots, len(problems))
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} is there already: --force replaces it, --out FILE leaves it", 2)
    device = find_device(args.device)
    students = {role: open_student(getattr(args, role), role, slots, device) for role in ("decomposer", "solver")}
    for role, student in students.items():
        if student.guidance:
            raise UserError(f"{getattr(args, role)}: trained with --guidance {student.guidance}, which a new problem does not bring", 2)
    usable(args.out.parent)
    found = [[] for _ in problems]  # each one's new rows
    seen = [{json.dumps(row.get("steps"))} for row in problems]
    rows, right, drawn = [], 0, 0
    with tqdm(total=len(problems) * args.samples, unit=" samples", disable=None, dynamic_ncols=True) as bar:
        for k in range(args.samples):
            todo = [index for index in range(len(problems)) if len(found[index]) < args.keep]
            bar.total = drawn + len(todo) * (args.samples - k)  # at most
            sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed * args.samples + k)
            for at, record in solve([problems[index] for index in todo], socratic, students, sampling=sampling):
                bar.update()
                drawn += 1
                index, problem = todo[at], problems[todo[at]]
                try:
                    if record["answer"] is None:
                        continue
                    steps = verified(record["steps"], record["answer"], problem)
                except Unfit:
                    continue
                right += 1
                if json.dumps(steps) not in seen[index] and len(found[index]) < args.keep:
                    seen[index].add(json.dumps(steps))
                    about = {"decomposer": str(args.decomposer), "solver": str(args.solver), "temperature": args.temperature,
                             "sample": k + 1}
                    name = f"{problem.get('id', index + 1)}-self-{len(found[index]) + 1}"
                    found[index].append({**for_new_steps(problem), "id": name, "steps": steps, "teacher": about})
                bar.set_postfix_str(f"{sum(map(len, found)):,} new annotations", refresh=False)
            if len(rows) < sum(map(len, found)):
                rows = [row for one in found for row in one]
                save({args.out: rows})  # a kill loses the round that it interrupts
    if not rows:
        raise UserError(f"none of {drawn:,} samples is right and new: more --samples, or a higher --temperature?")
    print(f"{right:,} of {drawn:,} samples right; new annotations for {sum(map(bool, found)):,} of "
          f"{len(problems):,} problems")
    report(args.out, {args.out: len(rows)})


# ---- check: what may be wrong in annotation files ----------------------------------------------------------------------

WRONG = {"schema": "rows that are no annotated problem", "equation": "notes that do not compute",
         "answer": "problems whose last solution does not come to the answer", "twice": "problems that stand in the file before",
         "leak": "problems that stand in an earlier file", "long": "problems longer than the block"}


def bare(problem, common):
    """A problem's text without its names and numbers: what two problems share that differ in nothing else.

    A name is a word in capitals that stands nowhere in small letters (`common`: the set of those that do).
    """
    names = {}

    def strip(match):
        word = match[0]
        if word[0].isdigit():
            return "0"
        return word.lower() if word.lower() in common else names.setdefault(word, f"N{len(names)}")
    return re.sub(r"\d[\d.,]*|[^\W\d_]\w*", strip, " ".join(problem.split()))


def check(args):
    """Check files of annotations one by one and against each other; print what is wrong, then a table. Exit status 1 if so."""
    files, found = {}, {}  # {path: [(where, row), ...]}, {path: Counter of what is wrong}
    shown = Counter()

    def wrong(path, kind, where, what):
        found[path][kind] += 1
        shown[kind] += 1
        if args.all or shown[kind] <= 10:
            print(f"{where}: {what}")

    for path in args.files:
        files[path], found[path] = [], Counter()
        try:
            for where, row in read_rows(path):
                try:
                    check_problem(row, where)
                    files[path].append((where, row))
                except UserError as e:
                    wrong(path, "schema", *str(e).split(": ", 1))
        except UserError as e:
            if not path.is_file():
                raise
            wrong(path, "schema", *str(e).split(": ", 1))
            if files[path]:
                print(f"{path}: not read any further")
        if not files[path] and not found[path]:
            wrong(path, "schema", path, "holds no annotated problem")
    rows = [row for path in files for _, row in files[path]]
    if not rows:
        sys.exit(1)
    tokenizer = choose_tokenizer(args.tokenizer, next([row for _, row in part] for part in files.values() if part))
    common = {word for row in rows for word in re.findall(r"[^\W\d_]\w*", row["problem"]) if word[0].islower()}
    first, first_like, table = {}, {}, []  # problem, bare problem -> where it stands first: (path, where)
    for path, part in files.items():
        sequences = encode_problems([row for _, row in part], args.role, tokenizer)
        figures = Counter(problems=len(part), tokens=max((len(ids) for ids, _ in sequences), default=0))
        for (where, row), sequence in zip(part, sequences):
            text, like = " ".join(row["problem"].split()), bare(row["problem"], common)
            for step in row["steps"]:
                figures["steps"] += 1
                figures["notes"] += len(NOTE.findall(step["solution"]))
                for what in wrong_equations(step["solution"]):
                    wrong(path, "equation", where, what)
            if not reaches(row["steps"][-1]["solution"], row["answer"]):
                wrong(path, "answer", where, f"the last solution does not come to the answer {row['answer']}")
            if not fits(sequence, args.block_size):
                wrong(path, "long", where, f"{len(sequence[0]):,} tokens, the block has {args.block_size:,}")
            before, where_before = first.setdefault(text, (path, where))
            if where_before != where:
                wrong(path, "twice" if before == path else "leak", where, f"the same problem as {where_before}")
            else:
                before, where_before = first_like.setdefault(like, (path, where))
                if before != path:
                    figures["alike"] += 1
                    if args.all:
                        print(f"{where}: like {where_before} but for names and numbers")
            figures["plain"] += "questions" in row
        table.append([str(path), *(figures[name] for name in ("problems", "steps", "notes", "tokens")),
                      *(found[path][kind] for kind in WRONG), figures["alike"], figures["plain"]])
    for kind, n in shown.items():
        if n > 10 and not args.all:
            print(f"... and {n - 10:,} more {WRONG[kind]} (--all)")
    head = ["file", "problems", "steps", "notes", "tokens", *WRONG, "alike", "plain"]
    cells = [head, *([str(cell) if isinstance(cell, str) else f"{cell:,}" for cell in line] for line in table)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(zip(line, widths))))
    print(f"tokens: the longest problem's for --role {args.role}; alike: to a problem of an earlier file but for names and "
          "numbers; plain: without real sub-questions")
    if shown:
        print("wrong: " + ", ".join(f"{n:,} {WRONG[kind]}" for kind, n in shown.items()))
        sys.exit(1)


def choose_tokenizer(name, problems):
    """The tokenizer of a student's folder, GPT-2's, or one learned from `problems` as train.py does."""
    if name == "learned":
        return learn_tokenizer(problems)
    return Tokenizer.gpt2() if name == "gpt2" else Tokenizer.open(name)


# ---- files and flags ---------------------------------------------------------------------------------------------------

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
    """Raise UserError if one of `files`, {path: rows}, is there already with other rows, unless `force`."""
    for path, rows in files.items():
        if path.exists() and not force and path.read_bytes() != jsonl(rows):
            raise UserError(f"{path} is there already and holds other problems: --force replaces it, --out DIR leaves it", 2)


def save(files):
    """Write `files`, {path: rows}, all in one folder, each whole or not at all."""
    folder = next(iter(files)).parent
    if all(path.exists() and path.read_bytes() == jsonl(rows) for path, rows in files.items()):
        print(f"{folder}: the same problems are there already")
        return
    with written_aside(folder) as aside:
        for path, rows in files.items():
            write_problems(aside / path.name, rows)


def report(out, counts, role="solver"):
    """Say how many problems are in the files, {path: int}, of --out, and what to type next, for which role's training they are."""
    if out.suffix == ".jsonl":
        print(f"{out}: {counts[out]:,} problems")
        return
    print(f"{out}: " + ", ".join(f"{path.stem} {n:,}" for path, n in counts.items()) + " problems")
    train, valid, test = (shlex.quote(str(out / f"{split}.jsonl")) for split in SPLITS)
    if counts.get(out / "test.jsonl", 0) > counts.get(out / "train.jsonl", 0):
        print(f"next: python infer.py --eval {test}")
    elif out == Path("annotations"):
        print(f"next: python train.py --role {role}")
    else:
        print(f"next: python train.py --role {role} --train {train} --valid {valid}")


def whole_number(low):
    """An argument type: a whole number from `low`."""
    def parse(text):
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {low}")
        return int(text)
    return parse


def number(low, high, above=False):
    """An argument type: a number from `low` to `high`; above: more than `low`."""
    def parse(text):
        try:
            if low <= float(text) <= high and not (above and float(text) == low):
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text} is no number from {low:g} to {high:g}")
    return parse


def span(text):
    """An argument type: numbers of steps, "2-5" or "3", as (lowest, highest)."""
    m = re.fullmatch(r"([1-8])(?:-([1-8]))?", text)
    if not m or int(m[1]) > int(m[2] or m[1]):
        raise argparse.ArgumentTypeError(f"{text} is no range such as 2-5, from 1 to 8")
    return int(m[1]), int(m[2] or m[1])


def numbers(text, count, total=None):
    """So many numbers with / between them, such as "90/5/5", as a tuple; total: what they must sum to."""
    parts = text.split("/")
    try:
        values = tuple(map(float, parts))
    except ValueError:
        values = ()
    if len(values) != count or not all(0 <= value < math.inf for value in values) or total not in (None, sum(values)):
        raise argparse.ArgumentTypeError(f"{text} is not {count} numbers with / between them" +
                                         (f" that sum to {total}" if total else ""))
    return values


def json_object(text):
    """An argument type: a JSON object."""
    try:
        if isinstance(value := json.loads(text), dict):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is no JSON object")


def parse_args(argv):
    """The flags of annotate.py. Raises UserError (status 2) for bad usage."""
    p = Parser(description="Write annotated problems, or check them.", epilog="Without a command: templates.")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)

    t = commands.add_parser("templates", help="the template teacher: draw problems with their solutions")
    t.add_argument("--out", type=Path, default=Path("annotations"), metavar="DIR", help="folder of the files (%(default)s)")
    t.add_argument("--level", type=int, choices=(1, 2, 3), default=1,
                   help="1 (default): told in the order needed; 2: in any order; 3: relations told backwards too")
    t.add_argument("--steps", type=span, metavar="LOW-HIGH", help="steps of a problem, 1 to 8 (2-5, at level 3 2-6)")
    for split, n in zip(SPLITS, (50_000, 500, 1_000)):
        t.add_argument(f"--{split}", type=whole_number(1), default=n, metavar="N", help=f"problems in {split}.jsonl (%(default)s)")
    t.add_argument("--made-up", type=number(0, 1), default=0.25, metavar="FRACTION",
                   help="training problems with names and objects made up from syllables (%(default)s)")
    t.add_argument("--made-up-test", type=number(0, 1), default=0.0, metavar="FRACTION",
                   help="the same for valid.jsonl and test.jsonl, with words that stand in no train.jsonl (%(default)s)")
    t.add_argument("--wordings", choices=("all", "test"), default="all", help="all (default): every file says a relation in all its "
                   "wordings; test: one of each relation's is held out, test.jsonl has that alone, the others never")
    t.add_argument("--style", choices=STYLES, default=STYLES[0], help="solutions that restate what they use, or short ones (%(default)s)")
    t.set_defaults(run=templates)

    for name, files in (("gsm8k", "its main files and its Socratic ones"), ("svamp", "SVAMP.json"), ("strategyqa", "its train.json")):
        c = commands.add_parser(name, help=f"convert published files: {files}")
        c.add_argument("files", nargs="+", type=Path, metavar="FILE")
        c.add_argument("--out", type=Path, default=Path("annotations", name), metavar="DIR",
                       help="folder of train.jsonl, valid.jsonl and test.jsonl (%(default)s), or one file, ...jsonl")
        c.add_argument("--strict", action="store_true", help="a row that cannot be used is an error")
        if name == "strategyqa":
            c.add_argument("--references", choices=("resolved", "kept"), default="resolved",
                           help="#1 in a sub-question: put into words (default), or left as it is")
        c.set_defaults(run=convert)

    m = commands.add_parser("teacher", help="have problems annotated by a model behind an OpenAI-compatible server")
    m.add_argument("file", type=Path, metavar="FILE", help="problems with their answers, as of gsm8k, svamp or strategyqa")
    m.add_argument("--url", required=True, help="such as http://localhost:8000/v1")
    m.add_argument("--model", required=True, metavar="NAME", help="as the server calls it")
    m.add_argument("--style", choices=STAGES, default="socratic", help="socratic (default): ask for sub-questions and solutions; cot: for "
                   "a chain of thought, then for its questions; questions: for the questions of the FILE's own solutions")
    m.add_argument("--prompt", type=Path, metavar="FILE", action="append", default=[],
                   help="your own prompt: {problem} stands for the problem and, where the questions alone are asked for, {solutions}; a second "
                        "--prompt is that of --style cot's second request")
    m.add_argument("--out", type=Path, default=Path("annotations/teacher"), metavar="DIR", help="folder, or one file, ...jsonl (%(default)s)")
    m.add_argument("--parallel", type=whole_number(1), default=8, metavar="N", help="requests at a time (%(default)s)")
    m.add_argument("--tries", type=whole_number(1), default=4, metavar="N", help="times that a problem is asked before it is rejected (%(default)s)")
    m.add_argument("--temperature", type=number(0, 2), default=0.0, help="of the first try; the last has 1 (%(default)s)")
    m.add_argument("--max-tokens", type=whole_number(1), default=1024, metavar="N", help="of a reply (%(default)s)")
    m.add_argument("--extra", type=json_object, default={}, metavar="JSON", help="more fields of the request; null takes one out")
    m.add_argument("--budget-tokens", type=whole_number(1), metavar="N", help="begin no further problem when so many are used, earlier runs' included")
    m.add_argument("--price", type=lambda text: numbers(text, 2), metavar="READ/WRITTEN", help="of a million tokens, to show the cost")
    m.add_argument("--timeout", type=number(0, 86400, above=True), default=300.0, metavar="SECONDS", help="for a reply (%(default)g)")
    m.add_argument("--retries", type=whole_number(0), default=8, metavar="N", help="of a request that failed (%(default)s)")
    m.add_argument("--pause", type=number(0, 60), default=0.5, metavar="SECONDS",
                   help="before a retry, doubled from one to the next, unless the server says how long (%(default)g)")
    m.add_argument("--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable of the key (%(default)s)")
    m.add_argument("--dry-run", action="store_true", help="show the first request and leave")
    m.set_defaults(run=teacher)

    s = commands.add_parser("self", help="let trained students find further solutions of problems with known answers")
    s.add_argument("file", type=Path, metavar="FILE", help="problems with their answers")
    s.add_argument("--decomposer", type=Path, default=Path("runs/decomposer"), metavar="DIR", help="(%(default)s)")
    s.add_argument("--solver", type=Path, default=Path("runs/solver"), metavar="DIR", help="(%(default)s)")
    s.add_argument("--samples", type=whole_number(1), default=8, metavar="K", help="of each problem at most (%(default)s)")
    s.add_argument("--keep", type=whole_number(1), default=4, metavar="N", help="new annotations of a problem at most (%(default)s)")
    s.add_argument("--temperature", type=number(0, 10, above=True), default=0.7, help="(%(default)s)")
    s.add_argument("--top-k", type=whole_number(0), default=0, metavar="K", help="sample among the K likeliest tokens; 0: all (%(default)s)")
    s.add_argument("--top-p", type=number(0, 1, above=True), default=1.0, metavar="P", help="... among those that have the share P (%(default)s)")
    s.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first N problems")
    s.add_argument("--out", type=Path, default=Path("annotations/self.jsonl"), metavar="FILE", help="(%(default)s)")
    s.add_argument("--slots", type=whole_number(1), default=64, metavar="N", help="problems that are solved at once (%(default)s)")
    s.add_argument("--device", help="(cuda or mps if there is one, else cpu)")
    s.set_defaults(run=self_teacher)

    k = commands.add_parser("check", help="check annotation files, each and against each other; status 1 if something is wrong")
    k.add_argument("files", nargs="+", type=Path, metavar="FILE")
    k.add_argument("--role", choices=ROLES, default="solver", help="whose sequences are measured (%(default)s)")
    k.add_argument("--block-size", type=whole_number(1), default=512, metavar="N", help="tokens (%(default)s)")
    k.add_argument("--tokenizer", default="learned", metavar="DIR", help="a student's folder, gpt2, or learned from the first file (default)")
    k.add_argument("--all", action="store_true", help="list all that is wrong, not the first 10 of a kind, and what is alike")
    k.set_defaults(run=check)

    for name, command in commands.choices.items():
        if name in ("templates", "self"):
            command.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same bytes (%(default)s)")
        if name in CONVERTERS or name == "teacher":
            command.add_argument("--split", type=lambda text: numbers(text, 3, 100), metavar="TRAIN/VALID/TEST",
                                 help=f"percent of the problems, by a hash of each ({'/'.join(map(str, SHARES))})")
        if name in CONVERTERS or name in ("templates", "self"):
            command.add_argument("--force", action="store_true", help="replace files that hold other problems")
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["templates", *argv]
    args = p.parse_args(argv)
    if args.run is templates and args.steps is None:
        args.steps = (2, 6) if args.level == 3 else (2, 5)
    if args.run is self_teacher and args.out.suffix != ".jsonl":
        raise UserError(f"--out {args.out}: expected a file, ...jsonl", 2)
    return args


def main():
    """Parse, then run the chosen command."""
    args = parse_args(sys.argv[1:])
    args.run(args)


if __name__ == "__main__":
    run(main)
