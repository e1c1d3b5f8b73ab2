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
from dataclasses import dataclass, field
from datetime import datetime, timezone
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
    check_problem, encode_problems, fits, get_device, invalid_annotations, matches_answer, number,
    parse_number, parse_rows, read_problems, read_rows, run_script, same_answer, states_answer, to_jsonl,
    train_tokenizer, whole_number, write_problems)
from infer import Sampling, load_student, socratic, solve

SPLITS = "train", "valid", "test"


# ---- the template teacher ----------------------------------------------------------------------------------

# -- words

NAMES = """Adam Alice Amara Anna Ben Bruno Carl Carmen Chloe Clara Dana David Diego Elena Emma Eric Farah
Felix Fiona Frank Gina Grace Greta Hana Hugo Igor Ines Irene Ivan Jack Jane Jonas Julia Kofi
Kurt Laura Leo Liam Lina Lucas Maria Max Mia Milo Nadia Nina Noah Nora Olga Omar Oscar Paul
Petra Quinn Rania Rosa Ruth Sam Sara Sofia Tariq Theo Tina Uma Vera Victor Wanda Yara Yuri Zoe""".split()
OBJECTS = """apples badges bags balls balloons bananas beads bells biscuits books bottles bowls bricks
brushes buckets buttons cakes candles cans cards chairs coins cookies crayons cups dolls eggs
envelopes erasers feathers figs flags flowers forks grapes hats jars keys kites lamps lemons
magnets maps marbles melons mugs napkins nuts oranges peaches pears pencils pens photos pins
plates plums postcards puzzles ribbons rings rocks ropes rulers scarves seeds shells spoons
stamps stars stickers stones tickets tiles tomatoes towels toys tulips whistles""".split()
ONSETS = ("b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kl kr pl pr qu sc sh sk sl sm "
          "sn sp st th tr wh").split()
VOWELS = "a a a e e e i i i o o o u u ai ay ea ee ia ie oa oo ou y".split()
CODAS = "b ck d g k l ll m n n nd ng nn nt p r rd rk rt s ss st t tt th x".split()


def make_up_word(rng, training, words):
    """A word of one to three syllables, some behind the beginning of one of `words`. Those for training and
    those for evaluation are two disjoint sets, told apart by a checksum, so that no made-up word of an
    evaluation file, of whatever seed, stands in any training file."""
    while True:
        word = ""
        if rng.random() < 0.4:
            word = rng.choice(words).lower()
            word = word[:rng.randrange(1, len(word))]
        for _ in range(rng.choice((0, 1, 1, 2)) if word else rng.choice((1, 2, 2, 3))):
            word += rng.choice(ONSETS) if rng.random() < 0.9 else ""
            word += rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.4 else "")
        known = word.capitalize() in NAMES or word in OBJECTS or word + "s" in OBJECTS
        if 3 <= len(word) <= 10 and not known and (zlib.crc32(word.encode()) % 4 > 0) == training:
            return word


# -- quantities

VERBS = {  # as a statement says it: as a question does
    "has": "have", "have": "have", "gets": "get", "buys": "buy", "collects": "collect",
    "gives away": "give away", "fills": "fill", "still needs": "still need", "last": "last"}
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
        """Whether one person has so many of an object: what events happen to and what two names together
        mean."""
        return self.verb == "has" and self.tail in ("", "left", "now")

    def question(self):
        do = "do" if self.verb in PLURAL else "does"
        tail = f" {self.tail}" if self.tail else ""
        return f"How many {self.obj} {do} {self.owner} {VERBS[self.verb]}{tail}?"

    def statement(self, number):
        tail = f" {self.tail}" if self.tail else ""
        return f"{self.owner} {self.verb} {number} {self.obj}{tail}"

    def references(self, obj):
        """How a sentence about `obj` speaks of this quantity: {R} "more than Yuri", {V} "the number that
        Yuri has"."""
        tail = f" {self.tail}" if self.tail else ""
        what = f" {self.obj}" if self.obj != obj else ""
        clause = f"{self.owner} {self.verb}{what}{tail}"
        short = not what and (self.verb == "have" or self.verb == "has" and not tail)
        return {"R": self.owner + tail if short else clause, "V": clause}


def equation(q):
    """The right side of a quantity's equation, such as "10+20"."""
    a, b = (x.value if isinstance(x, Quantity) else x for x in q.operands)
    return f"{a}{q.op}{b}"


def write_solution(q):
    """The solution of a quantity's sub-question, with exactly one GSM8K annotation `<<10+20=30>>`.

    It says first what the step takes from earlier ones, each number behind its owner: "Carl has 10 and Dana
    has 20. <<10+20=30>> Yuri has 30 apples." A small student finds a number far more easily behind a name
    that it has just written than from the question alone; and the equation then takes them as they stand.
    """
    annotation = f"<<{equation(q)}={q.value}>>"
    restated = " and ".join(f"{x.owner} {x.verb} {x.value}" for x in q.operands if isinstance(x, Quantity))
    return (_capital(restated) + ". " if restated else "") + f"{annotation} {_capital(q.statement(q.value))}."


def _capital(text):
    return text[0].upper() + text[1:]


# -- kinds of relation and event

@dataclass(frozen=True)
class Kind:
    """A way in which a quantity follows from others, and how a problem tells it.

    form: the operands in the equation's order: R is a quantity, k and m are numbers, X and Y two
    quantities. new: owner, verb, object and tail of the new quantity. on: what R may be: "any" quantity;
    "one", what one person has, which the new amount supersedes; "pair", what two have together. numbers:
    the range of k (and of m). wordings speak of {A} a new person, {B} R's owner, {R} or {V} R itself, {o}
    the object, {X} and {Y} the owners of X and Y, {k} and {m} the numbers.
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
        "Then {B} fills boxes with {k} {o} each until none are left."),
        on="one", numbers=(2, 12), weight=6, countable=True),
    Kind("lasts", "/", "Rk", ("the {o} of {B}", "last", "days", ""), (
        "Then {B} uses {k} {o} a day until none are left.",
        "Every day {B} uses {k} of the {o} until none are left.",
        "Then {B} gives away {k} {o} each day until none are left."), on="one", numbers=(2, 12), weight=4),
    Kind("sells", "*", "Rk", ("{B}", "gets", "dollars", ""), (
        "Then {B} sells the {o} for {k} dollars each.",
        "Then {B} sells the {o} at a price of {k} dollars each.",
        "Then {B} sells all of the {o}, and the price of each is {k} dollars."),
        on="one", numbers=(2, 12), weight=5, countable=True),
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
GAINS = [  # as FRESH, and the product then adds to (takes from) what B has: two steps, one sentence
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
BACKWARDS_OP = {"more": "-", "fewer": "+", "times": "/", "twice": "/", "half": "*", "third": "*",
                "quarter": "*", "part": "-"}
REVERSIBLE = [PART, *(kind for kind in KINDS if kind.name in BACKWARDS_OP)]
GIVEN = "{A} has {k} {o}.", "{A} has {k} {o}.", "{A} owns {k} {o}."
KIND_WEIGHTS = list(accumulate(kind.weight for kind in KINDS))
PAIR_WEIGHTS = list(accumulate(kind.weight for kind in PAIRS))


def wordings_of(wordings, part):
    """Of a relation's wordings the one that is held out ("test"), the others ("train"), or all."""
    held_out = list(dict.fromkeys(wordings))[1]
    return wordings if part == "all" else [w for w in wordings if (w == held_out) == (part == "test")]


def draw_number(rng, op, form, value, low, high):
    """A number k that makes `value op k` (or `k op value`) whole and from 2 to 1,000, or None."""
    if op == "/":
        return rng.choice([k for k in range(low, min(high, value // 2) + 1) if value % k == 0] or [None])
    if form == "kR":  # k - value
        low, high = value + low, min(value + high, 1000)
    else:
        high = min(high, {"+": 1000 - value, "-": value - 2, "*": 1000 // value}[op])
    return rng.randint(low, high) if low <= high else None


COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


# -- a story that grows

# by level: share of problems with a step that uses two earlier quantities
TWO_RESULTS = {1: 0.55, 2: 0.7, 3: 0.7}
UNNEEDED = 0.25      # share of problems with a quantity that nobody needs
OUT_OF_ORDER = 0.4   # share of the problems of levels 2 and 3 to be told in another order (a few have one)
BACKWARDS = 0.35     # level 3: how often a relation to what one person has is told backwards


class DeadEnd(Exception):
    """This problem cannot be finished as it was begun: draw another."""


@dataclass(eq=False)
class Fact:
    """A sentence of the problem. `makes`: the quantity that it tells, None if nobody needs it. `people`:
    all it names."""
    text: str
    makes: Quantity | None
    people: frozenset
    event: bool = False  # events happen in time: no sentence about the same people moves past them


@dataclass
class Story:
    """A problem as it grows: forward, step by step, so that every number is known when the next relation is
    drawn.

    In the end each step's result is used by a later step, but the last, which is what the problem asks. So
    the results that wait for their use, `open`, may never be more than the steps still to come can combine.
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

    # the plot

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
        """Draw a step from two quantities, one of them the latest; from level 2 on any two, where the steps
        left allow."""
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

    # facts, each with the quantity that it makes

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
        """The quantity of a step. people: its owners, a tuple of names; words: what stands for {A}, {B},
        {X} and {Y}; supersedes: quantities that nothing may refer to any more."""
        owner, verb, what, tail = (part.format(o=obj, **words) for part in kind.new)
        a, b = (x.value if isinstance(x, Quantity) else x for x in operands)
        value = COMPUTE[kind.op](a, b)
        q = Quantity(owner, verb, what, tail, people, value, kind.name, kind.op, tuple(operands))
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
            if keep_plain and (kind.new[1] != "has" or obj != self.objects[0]):
                continue
            if kind.new[1] == "last" and not last:
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
            # the third wording cannot name two objects
            wordings = kind.wordings if obj == ref.obj else kind.wordings[:2]
            self.tell(wordings, q, {*people, *ref.people}, event, k=k, o=obj, **words, **ref.references(obj))
            return
        raise DeadEnd

    def relate_backwards(self, ref):
        """A step whose sentence speaks of what is known by what is asked: "Yuri has 5 more apples than
        Carl", Carl asked."""
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
        op, what = ("-", B_LEFT) if part.kind == "gives daily" else ("+", B_NOW)
        new = Kind("then", op, "XY", what, ())
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

    # what makes a problem harder

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
        """The steps as a reader takes them: of those that can be taken, the one that was told first. at:
        {quantity: place}.

        What no sentence tells is asked after the gain that it adds, or else before the first sentence that
        uses it.
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
    """Whether y came from x by the very relation that `op` undoes: how many more Ann has than Bob is then
    no question."""
    return x in y.operands and y.op in "+-" if op == "-" else y.op == "-" and x is y.operands[1]


def draw_story(rng, level, n_steps, made_up=False, training=True, wordings="all"):
    """Draw a problem of `n_steps` steps as a Story. made_up: of made-up words, those for training or those
    for evaluation; wordings: "all", "train" or "test"."""
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


def write_problem(story):
    """A story as a row of the JSONL file, without its id."""
    steps = [{"question": q.question(), "solution": write_solution(q)} for q in story.steps]
    text = " ".join([*(fact.text for fact in story.facts), steps[-1]["question"]])
    return {"problem": text, "steps": steps, "answer": str(story.steps[-1].value), "source": "templates",
            "level": story.level, "kinds": [q.kind for q in story.steps]}


def draw_split(split, args, seen, bar):
    """Draw a split's problems, none of whose texts is in `seen` (a set of str, which grows)."""
    rng = Random(f"{args.seed} {split}")  # so the test problems do not depend on how many are for training
    low, high = args.steps or ((2, 6) if args.level == 3 else (2, 5))
    made_up = args.made_up if split == "train" else args.made_up_test
    wordings = "all" if args.wordings == "all" else "test" if split == "test" else "train"
    rows = []
    while len(rows) < getattr(args, split):
        n_steps = low + len(rows) % (high - low + 1)
        story = draw_story(rng, args.level, n_steps, rng.random() < made_up, split == "train", wordings)
        row = write_problem(story)
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
                   help="1 (default): in the order needed; 2: in any order; 3: relations told backwards too")
    p.add_argument("--steps", type=steps_range, metavar="LOW-HIGH",
                   help="steps of a problem, 1 to 8 (2-5, at level 3 2-6)")
    for split, n in zip(SPLITS, (50_000, 500, 1_000)):
        p.add_argument(f"--{split}", type=whole_number(1), default=n, metavar="N",
                       help=f"problems in {split}.jsonl (%(default)s)")
    p.add_argument("--made-up", type=number(0, 1), default=0.25, metavar="FRACTION",
                   help="training problems with names and objects made up from syllables (%(default)s)")
    p.add_argument("--made-up-test", type=number(0, 1), default=0.0, metavar="FRACTION",
                   help="the same for valid.jsonl and test.jsonl, with words of their own (%(default)s)")
    p.add_argument("--wordings", choices=("all", "test"), default="all",
                   help="all (default): every file says a relation in all its wordings; test: one of each "
                        "relation's is held out, test.jsonl has that alone, the others never")
    add_seed_and_force(p)


# ---- converters: published datasets ------------------------------------------------------------------------

class Unfit(Exception):
    """Why a row of a dataset, a teacher's reply or a student's sample cannot become an annotation."""


def text_of(row, name):
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
    problem = text_of(row, "question")
    *lines, last = [line.strip() for line in re.split(r"[\r\n]", text_of(row, "answer")) if line.strip()]
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
    body, question = (row.get("Body") or "").strip(), text_of(row, "Question")
    equation, answer = text_of(row, "Equation"), calculate(str(row.get("Answer")))
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
    numbers = {f"number{i}": n.removesuffix(".0") for i, n in enumerate(text_of(row, "Numbers").split())}
    words = [numbers.get(word, word) for word in text_of(row, "Question").split()]
    sentence_ends = [i + 1 for i, word in enumerate(words[:-1]) if word in (".", "?", "!")]
    last = max(sentence_ends, default=0)
    tokens = iter(text_of(row, "Equation").split())

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
    problem, questions, facts = text_of(row, "question"), row.get("decomposition"), row.get("facts")
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
    return {"id": f"strategyqa-{row.get('qid')}", "problem": problem, "steps": steps, "answer": answer}


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


def text_key(text):
    """A text's words. Texts that differ in white space alone share them and are the same problem."""
    return " ".join(text.split())


def split_of(problem, shares):
    """The split of a problem (text), by a hash: it stays there when the file grows or changes its order.

    shares: percent of train, valid and test.
    """
    digest = hashlib.sha256(text_key(problem).encode("utf-8", "replace")).digest()
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
            name = f"{args.command}-{n_read}"
            try:
                new = {"id": name} | converter(row) | {"source": args.command}
                if text_key(new["problem"]) in seen:
                    raise Unfit("the same problem as an earlier row")
            except Unfit as e:
                left_out.append((str(e), where, row.get("qid") or row.get("ID") or name))
                continue
            seen.add(text_key(new["problem"]))
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
    values = {"{problem}": text_key(problem), "{solutions}": solutions}
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
        parts.append((label, text_key(text).strip("*_ ")))
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
    asked = Counter(text_key(step["question"]).casefold() for step in steps if "question" in step)
    for question, n in asked.items():
        if n > 1:
            raise Unfit(f"it asks {n} times: {question[:60]}")
    return steps


def read_stage(stage, reply, steps, problem):
    """The checked steps that a reply gives a problem; steps: those of the stage before. Raises Unfit."""
    if stage == "questions":
        return verify_questions(read_questions(reply, steps))
    return verify(*(read_dialogue if stage == "socratic" else read_chain)(reply), problem)


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
        self.requests = self.good = 0  # requests sent, good replies
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
            self.requests += 1
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
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", text_key(text))[:200] or "(nothing)"


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

class Log:
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
        self.file = open(self.path, "ab+")
        self.file.seek(0)
        content, first_line = self.file.read(), to_jsonl([{"settings": settings}])
        whole = content[:content.rfind(b"\n") + 1]  # without a last line that a kill cut short
        rows = [row for _, row in parse_rows(whole, self.path)]
        theirs = rows.pop(0).get("settings") if rows else None
        if theirs is None and not first_line.startswith(content):
            raise UserError(f"{self.path}: not the log of an annotation run; use another --out", 2)
        if theirs != settings:
            if any("failed" not in row for row in rows):
                raise UserError(f"{self.path}: of another run ({theirs}); use another --out", 2)
            rows, whole = [], b""  # it holds nothing that a model said: begin anew
        for row in rows:
            self.count(row)
        self.file.truncate(len(whole))
        self.file.write(b"" if whole else first_line)
        self.file.flush()

    def count(self, row):
        self.rows[text_key(row["problem"])] = row
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


def teacher(args):
    """The LLM teacher: have a file's problems annotated by a model behind an OpenAI-compatible server."""
    prompts, endpoint, problems = read_prompts(args), Endpoint(args), {}
    for n, row in enumerate(read_problems(args.file, steps=args.style == "questions"), 1):
        row = {"id": f"{args.file.stem}-{n}"} | without_old_steps(row)
        problems.setdefault(text_key(row["problem"]), row)
    if args.dry_run:
        first = next(iter(problems.values()))
        prompt = fill_prompt(prompts[STAGES[args.style][0]], first["problem"], first.get("steps", []))
        body = json.dumps(endpoint.body(prompt, args.temperature), indent=2, ensure_ascii=False)
        print(f"POST {endpoint.url}\n{body}")
        return
    log = Log(args.out, run_settings(prompts, args))
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

    annotated, rejected, failed = (log.rows_with(field) for field in ("steps", "rejected", "failed"))
    for field, rows in ("rejected", rejected), ("failed", failed):
        for reason, n in Counter(row[field] for row in rows).most_common(5):
            print(f"{field}: {n:,} ({reason})")
    print(f"{len(annotated):,} problems annotated, {len(rejected):,} rejected, {len(failed):,} set aside for "
          f"the next run; {endpoint.requests:,} requests, {sum(endpoint.tokens):,} tokens")
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
    first, shown, lines = {}, Counter(), []  # first: {text of a problem: the path and where it is first}
    tokenizer = args.tokenizer
    if tokenizer:
        tokenizer = Tokenizer.gpt2() if tokenizer == "gpt2" else Tokenizer.from_pretrained(tokenizer)
    for path in args.files:
        problems, faults = read_leniently(path)
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
            first_path, first_where = first.setdefault(text_key(row["problem"]), (path, where))
            if first_where != where:
                kind = "twice" if first_path == path else "leak"
                faults.append((kind, where, f"the same problem as {first_where}"))
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
        if not path.is_file():
            raise
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
    p.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same bytes (0)")
    p.add_argument("--force", action="store_true", help="replace files that hold other problems")


def add_split(p):
    p.add_argument("--split", type=shares, default=(95, 5, 0), metavar="TRAIN/VALID/TEST",
                   help="percent of the problems, by a hash of each (95/5/0)")


def add_converter_flags(p, name):
    p.add_argument("files", nargs="+", type=Path, metavar="FILE")
    p.add_argument("--out", type=Path, default=Path("annotations", name), metavar="DIR",
                   help="folder of train.jsonl, valid.jsonl and test.jsonl (%(default)s)")
    add_split(p)
    p.add_argument("--force", action="store_true", help="replace files that hold other problems")


def add_teacher_flags(p):
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
    add_teacher_flags(add_command("teacher", teacher, "let a model annotate, at an OpenAI-compatible server"))
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
