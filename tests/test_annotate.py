"""The teachers, the converters and the check. A reader of English that knows nothing of how problems are drawn, `Reading`,
takes each template problem's text to pieces and solves it with exact fractions; what the teacher wrote must agree. The LLM
teacher is run against a server that fails in every way of mock_teacher.FAULTS."""
import gzip
import http.client
import json
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from fractions import Fraction
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

import annotate
import data
import mock_teacher

ROOT = Path(annotate.__file__).parent
TABLE = [*annotate.KINDS, *annotate.FRESH, *annotate.GAINS, *annotate.PAIRS, annotate.PART]


# ---- an independent reader ---------------------------------------------------------------------------------------------

NAME, NUMBER, THING = "[A-Z][a-z]+", r"\d+", "[a-z]+"
HOLES = {"A": NAME, "B": f"{NAME}(?: and {NAME})?", "X": NAME, "Y": NAME, "R": ".+", "V": ".+", "o": THING, "k": NUMBER, "m": NUMBER}


def pattern(wording):
    seen = set()

    def hole(match):
        name = match[1]
        again, _ = name in seen, seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>{HOLES[name]})"
    return re.compile(re.sub(r"\{(\w)\}", hole, wording.replace(".", r"\.")))


PATTERNS = [(kind.name, pattern(w)) for kind in TABLE for w in kind.wordings] + [("given", pattern(w)) for w in set(annotate.GIVEN)]

RELATIONS = {  # what the number of A is, and what that of R is where A's is known
    "more": (lambda r, k: r + k, lambda a, k: a - k), "fewer": (lambda r, k: r - k, lambda a, k: a + k),
    "times": (lambda r, k: r * k, lambda a, k: a / k), "filled": (lambda r, k: r * k, lambda a, k: a / k),
    "twice": (lambda r, k: r * 2, lambda a, k: a / 2), "half": (lambda r, k: r / 2, lambda a, k: a * 2),
    "third": (lambda r, k: r / 3, lambda a, k: a * 3), "quarter": (lambda r, k: r / 4, lambda a, k: a * 4)}
EVENTS = {  # what B has then, from what B had
    "gives": ("left", lambda b, k: b - k), "finds": ("now", lambda b, k: b + k), "gives half": ("left", lambda b, k: b / 2)}
OUTCOMES = {  # owner, verb and object of what comes of what B has
    "shares": ("each friend of {B}", "gets", "{o}", lambda b, k: b / k),
    "they share": ("each friend of {B}", "gets", "{o}", lambda b, k: b / k),
    "packs": ("{B}", "fills", "boxes", lambda b, k: b / k), "sells": ("{B}", "gets", "dollars", lambda b, k: b * k),
    "lasts": ("the {o} of {B}", "last", "days", lambda b, k: b / k), "needs": ("{B}", "still needs", "{o}", lambda b, k: k - b)}
GAINS = {"buys packs": ("buys", "now", 1), "collects daily": ("collects", "now", 1), "gives daily": ("gives away", "left", -1)}
VERB = "has|have|gets|collects|fills|still needs"
BASE = {"have": "has", "get": "gets", "buy": "buys", "collect": "collects", "give away": "gives away", "fill": "fills",
        "still need": "still needs", "last": "last"}


class Reading:
    """A problem's text, solved. `values`: {(owner, verb, object, version): Fraction}; version counts what happened to it.

    `used`: the numbers of the sentences that the answer needs; `late`: whether one of them needs a later one;
    `backwards`: whether one of them was read from right to left; `kinds`: the kind of each sentence.
    """

    def __init__(self, text):
        *sentences, question = re.split(r"(?<=[.?]) (?=[A-Z])", text)
        self.tails, self.kinds = {}, []  # {(owner, object): the tails of its versions}
        self.gone = set()                # (owner, object) that were given away, sold, used up: nothing may speak of them
        self.forms = []                  # (sentence, from right to left, target, function, sources)
        for i, sentence in enumerate(sentences):
            matches = [(kind, m.groupdict()) for kind, p in PATTERNS if (m := p.fullmatch(sentence))]
            assert len({kind for kind, _ in matches}) == 1, f"{sentence!r} is read as {matches}"
            self.kinds.append(matches[0][0])
            self.read(i, *matches[0])
        self.values, self.cause = {}, {}
        grows = True
        while grows:
            grows = False
            for i, back, target, function, sources in self.forms:
                if target not in self.values and all(s in self.values for s in sources):
                    self.values[target] = Fraction(function(*(self.values[s] for s in sources)))
                    self.cause[target] = i, back, sources
                    grows = True
        keys, self.answer = self.ask(question)
        self.used, self.late, self.backwards, todo = set(), False, False, list(keys)
        while todo:
            i, back, sources = self.cause[todo.pop()]
            self.used.add(i)
            self.backwards |= back
            self.late |= any(self.cause[s][0] > i for s in sources)
            todo += sources
        self.n_sentences = len(sentences)

    def holding(self, name, obj):
        assert (name, obj) not in self.gone, f"{name} has no {obj} any more"
        return name, "has", obj, len(self.tails.setdefault((name, obj), [""])) - 1

    def refer(self, text, obj):
        """The quantities of which a reference is the sum."""
        if m := re.fullmatch(f"({NAME}) and ({NAME}) (?:have )?(?:({THING}) )?together", text):
            return [self.holding(m[1], m[3] or obj), self.holding(m[2], m[3] or obj)]
        if m := re.fullmatch(f"({NAME})(?: has(?: (?!left|now)({THING}))?(?: (left|now))?)?", text):
            key = self.holding(m[1], m[2] or obj)
            assert (m[3] or "") == self.tails[m[1], m[2] or obj][-1] or not m[3], f"{text!r} speaks of what is past"
            return [key]
        m = re.fullmatch(f"(.+) ({VERB})(?: ({THING}))?", text)
        return [(m[1], m[2], m[3] or obj, 0)]

    def happen(self, i, name, obj, tail, function, *others):
        old = self.holding(name, obj)
        self.tails[name, obj].append(tail)
        self.forms.append((i, False, self.holding(name, obj), function, [old, *others]))

    def read(self, i, kind, g):
        o = g["o"]
        k, m = (int(g[x]) if g.get(x) else None for x in "km")

        def told(target, function, sources, back=False):
            self.forms.append((i, back, target, function, sources))
        if kind == "given":
            told(self.holding(g["A"], o), lambda: k, [])
        elif kind in RELATIONS:
            there, here = RELATIONS[kind]
            target, sources = self.holding(g["A"], o), self.refer(g.get("R") or g["V"], o)
            told(target, lambda *r: there(sum(r), k), sources)
            if len(sources) == 1:
                told(sources[0], lambda a: here(a, k), [target], True)
        elif kind in EVENTS:
            tail, function = EVENTS[kind]
            self.happen(i, g["B"], o, tail, lambda b: function(b, k))
        elif kind in OUTCOMES:
            owner, verb, obj, function = OUTCOMES[kind]
            sources = [self.holding(name, o) for name in g["B"].split(" and ")]
            told((owner.format(**g), verb, obj.format(**g), 0), lambda *b: function(sum(b), k), sources)
            self.gone |= {source[::2] for source in sources}
        elif kind in ("has packs", "per day"):
            told(self.holding(g["A"], o) if kind == "has packs" else (g["A"], "collects", o, 0), lambda: k * m, [])
        elif kind in GAINS:
            verb, tail, sign = GAINS[kind]
            told((g["B"], verb, o, 0), lambda: k * m, [])
            self.happen(i, g["B"], o, tail, lambda b, part: b + sign * part, (g["B"], verb, o, 0))
        elif kind in ("sum", "difference"):
            sign = 1 if kind == "sum" else -1
            told(self.holding(g["A"], o), lambda x, y: x + sign * y, [self.holding(g["X"], o), self.holding(g["Y"], o)])
        elif kind in ("receives all", "gives as many"):
            sign, tail = (1, "now") if kind == "receives all" else (-1, "left")
            self.happen(i, g["X"], o, tail, lambda x, y: x + sign * y, self.holding(g["Y"], o))
            self.gone |= {(g["Y"], o)} if kind == "receives all" else set()
        elif kind == "part":
            a, b = self.holding(g["A"], o), self.holding(g["B"], o)
            told(a, lambda b: k - b, [b], True)
            told(b, lambda a: k - a, [a], True)
        else:
            raise AssertionError(f"no reading for {kind}")

    def ask(self, question):
        """A question's quantities and its answer."""
        if m := re.fullmatch(f"How many more ({THING}) does ({NAME}) have than ({NAME})\\?", question):
            keys = [self.holding(m[2], m[1]), self.holding(m[3], m[1])]
            return keys, self.values[keys[0]] - self.values[keys[1]]
        if m := re.fullmatch(f"How many ({THING}) do ({NAME}) and ({NAME}) have together\\?", question):
            keys = [self.holding(m[2], m[1]), self.holding(m[3], m[1])]
            return keys, sum(self.values[key] for key in keys)
        m = re.fullmatch(f"How many ({THING}) (?:does|do) (.+?) ({'|'.join(BASE)})(?: (left|now))?\\?", question)
        obj, owner, verb, tail = m[1], m[2], BASE[m[3]], m[4] or ""
        version = self.tails[owner, obj].index(tail) if verb == "has" else 0
        return [(owner, verb, obj, version)], self.values[owner, verb, obj, version]


def draw(level, size, seed=1, **how):
    rng = Random(seed)
    high = 6 if level == 3 else 5
    return [annotate.write_problem(annotate.draw_story(rng, level, 2 + i % (high - 1), **how)) for i in range(size)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def drawn(request):
    """2,000 problems of a level, each with its reading."""
    rows = draw(request.param, 2000)
    return request.param, [(row, Reading(row["problem"])) for row in rows]


def share(values):
    values = list(values)
    return sum(map(bool, values)) / len(values)


# ---- what problems say -------------------------------------------------------------------------------------------------

NOTE = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>\D*(\d+)")
EXACT = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}


def test_the_text_alone_gives_every_answer_and_every_step(drawn):
    for row, reading in drawn[1]:
        assert reading.answer == Fraction(row["answer"]), row
        assert row["problem"].endswith(" " + row["steps"][-1]["question"])
        for step in row["steps"][:-1]:
            value = int(NOTE.search(step["solution"])[4])
            if " together?" in step["question"]:  # of a total in the middle: what both had when it was used
                continue
            assert reading.ask(step["question"])[1] == value, (row, step)


def test_each_solution_holds_one_exact_equation_of_numbers_that_are_known(drawn):
    for row, _ in drawn[1]:
        known = set(re.findall(r"\d+", row["problem"]))
        known |= {n for word, n in (("twice", "2"), ("double", "2"), ("half", "2"), ("third", "3"), ("quarter", "4"))
                  if word in row["problem"]}
        for step in row["steps"]:
            (a, op, b, result, again), = NOTE.findall(step["solution"])
            assert EXACT[op](Fraction(a), Fraction(b)) == int(result) == int(again), step
            assert 1 <= int(result) <= 1000
            assert {a, b} <= known, (row, step)
            known.add(result)
        assert result == row["answer"]


def test_a_solution_restates_what_it_uses_in_the_order_of_the_equation(drawn):
    verbs = "has|have|gets|fills|collects|buys|gives away|still needs"
    owner = rf"(?:each friend of |Each friend of )?{NAME}(?: and {NAME})?"
    for row, reading in drawn[1]:
        for step in row["steps"]:
            restated = step["solution"].partition("<<")[0]
            a, _, b, *_ = NOTE.search(step["solution"]).groups()
            told = re.findall(rf"({owner}) (?:{verbs}) (\d+)", restated)
            assert len(told) == len(re.findall(r"\d+", restated))
            for who, n in told:
                assert " and " in who or any(value == int(n) for key, value in reading.values.items()
                                               if key[0].lower() == who.lower()), (row, step)
            assert [n for _, n in told] == [a, b] if len(told) == 2 else {n for _, n in told} <= {a, b}, (row, step)


def test_start_values_are_whole_numbers_up_to_100(drawn):
    starts = [int(n) for row, _ in drawn[1] for n in re.findall(r"(?:has|owns) (\d+) [a-z]+\.", row["problem"])]
    assert 1 <= min(starts) and max(starts) <= 100
    assert max(Counter(starts).values()) < 0.03 * len(starts)


def test_no_question_is_asked_twice_in_a_problem(drawn):
    for row, _ in drawn[1]:
        questions = [step["question"] for step in row["steps"]]
        assert len(set(questions)) == len(questions), row


def test_a_step_comes_after_the_steps_that_it_uses_and_all_are_needed(drawn):
    rng = Random(7)
    for i in range(500):
        steps = annotate.draw_story(rng, drawn[0], 2 + i % 4).steps
        needed, todo = set(), [steps[-1]]
        while todo:
            q = todo.pop()
            needed.add(q)
            todo += [x for x in q.operands if isinstance(x, annotate.Quantity)]
        assert needed.issuperset(steps)
        for k, q in enumerate(steps):
            assert not set(q.operands) & set(steps[k:])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_steps_stand_in_the_order_in_which_a_reader_can_take_them(level):
    rng = Random(11)
    for i in range(500):
        story = annotate.draw_story(rng, level, 2 + i % 4)
        at = {fact.makes: k for k, fact in enumerate(story.facts) if fact.makes}

        def told(q):  # the sentences that must be worked out before q, in q's own stead where no sentence tells it
            return [t for x in q.operands if isinstance(x, annotate.Quantity) for t in ([x] if x in at else told(x))]
        todo = [q for q in story.steps if q in at]
        for q in [q for q in story.steps if q in at]:
            assert q is min((q for q in todo if not set(told(q)) & set(todo)), key=at.get)
            todo.remove(q)
        for q, after in zip(story.steps, story.steps[1:]):
            assert q.kind != "together" or q in after.operands


def test_no_problem_asks_what_one_of_its_sentences_says(drawn):
    for row, _ in drawn[1]:
        text, question = row["problem"], row["steps"][-1]["question"]
        if "Then" in text:  # what a sentence says may have changed since
            continue
        if m := re.fullmatch("How many more (.+) does (.+) have than (.+)\\?", question):
            o, a, b = m.groups()
            assert not re.search(f"{a} (has|owns) \\d+ (more {o}|{o} more) than {b}\\.", text), text
            assert not re.search(f"{b} (has|owns) \\d+ (fewer {o}|{o} fewer) than {a}\\.", text), text
        if m := re.fullmatch("How many (.+) do (.+) and (.+) have together\\?", question):
            o, a, b = m.groups()
            assert not re.search(f"({a} and {b}|{b} and {a}) (have|own) \\d+", text), text


# ---- shares ------------------------------------------------------------------------------------------------------------

def test_shares_are_as_promised(drawn):
    level, rows = drawn
    steps = Counter(len(row["steps"]) for row, _ in rows)
    assert sorted(steps) == list(range(2, 7 if level == 3 else 6)) and max(steps.values()) - min(steps.values()) <= 1
    signs = Counter(NOTE.search(step["solution"])[2] for row, _ in rows for step in row["steps"])
    assert min(signs[op] / signs.total() for op in "+-*/") > 0.13
    assert 0.2 < share(len(reading.used) < reading.n_sentences for _, reading in rows) < 0.3
    two = {kind.name for kind in annotate.PAIRS} | {"then"}
    low, high = (0.45, 0.6) if level == 1 else (0.6, 0.75)
    assert low < share(two & set(row["kinds"]) for row, _ in rows) < high
    late, backwards = (share(getattr(reading, what) for _, reading in rows) for what in ("late", "backwards"))
    assert late == 0 if level == 1 else 0.25 < late < 0.42
    assert backwards > 0.4 if level == 3 else backwards == 0


@pytest.mark.parametrize("level, low, high", [(1, 0.6, 0.72), (2, 0, 0.55), (3, 0, 0.55)])
def test_most_steps_of_level_1_refer_to_the_latest_result_and_later_levels_to_any(level, low, high):
    rng, latest = Random(3), []
    for i in range(1000):  # from level 2 on among problems that combine results: in the others each step has but one to use
        steps = annotate.draw_story(rng, level, 2 + i % 4 if level == 1 else 5).steps
        refs = [(q, x, steps[k]) for k, q in enumerate(steps[1:]) for x in q.operands if isinstance(x, annotate.Quantity)]
        if level == 1 or any(sum(isinstance(x, annotate.Quantity) for x in q.operands) == 2 for q in steps):
            latest += [x is before for _, x, before in refs]
    assert low < share(latest) < high


# ---- words -------------------------------------------------------------------------------------------------------------

def test_at_least_15_kinds_in_3_wordings_and_60_names_and_objects():
    assert len({kind.name for kind in TABLE if len(set(kind.wordings)) >= 3}) >= 15
    assert all(len(set(kind.wordings)) >= 3 for kind in TABLE if kind.name not in ("together", "how many more"))
    for words in annotate.NAMES, annotate.OBJECTS:
        assert len(set(words)) == len(words) >= 60 and all(word.isascii() and word.isalpha() for word in words)


def test_every_kind_and_wording_occurs():
    rows = [row for level in (1, 3) for row in draw(level, 2000, seed=5)]
    said = {(kind, p.pattern) for row in rows for s in re.split(r"(?<=\.) ", row["problem"]) for kind, p in PATTERNS if p.fullmatch(s)}
    assert said == {(kind, p.pattern) for kind, p in PATTERNS}
    kinds = {kind.removesuffix(" backwards") for row in rows for kind in row["kinds"]}
    assert kinds == {kind.name for kind in TABLE} | {"then"}


def names_and_objects(row):
    words = set(re.findall("[A-Za-z]+", row["problem"]))
    return {w for w in words if w in annotate.NAMES}, {w for w in words if w in annotate.OBJECTS}


def test_made_up_problems_have_no_known_word_and_those_for_evaluation_none_of_training():
    train = draw(1, 1000, seed=1, made_up=True)
    test = draw(1, 1000, seed=2, made_up=True, training=False)
    assert all(names_and_objects(row) == (set(), set()) for row in train + test)
    plain = {w for row in draw(1, 2000, seed=3) for w in re.findall("[A-Za-z]+", row["problem"])}
    new = [{w for row in rows for w in re.findall("[A-Za-z]+", row["problem"])} - plain for rows in (train, test)]
    assert len(new[1]) > 3000 and not new[0] & new[1]
    for row in train + test:
        assert Reading(row["problem"]).answer == int(row["answer"])


@pytest.mark.parametrize("style", annotate.STYLES)
def test_every_style_holds_the_same_equation(style):
    for seed in range(50):
        story = annotate.draw_story(Random(seed), 3, 5)
        for a, b in zip(*(annotate.write_problem(story, s)["steps"] for s in (style, "restate"))):
            assert NOTE.findall(b["solution"]) == NOTE.findall(a["solution"])
            assert a["solution"].endswith(".") and a["solution"].count("<<") == 1


# ---- files -------------------------------------------------------------------------------------------------------------

def call(*argv):
    args = annotate.parse_args([str(a) for a in argv])
    args.run(args)


def script(*argv, **env):
    return subprocess.run([sys.executable, ROOT / "annotate.py", *map(str, argv)], capture_output=True, text=True, env={"PATH": "", **env})


SMALL = "--train", 300, "--valid", 40, "--test", 60


def test_same_seed_same_bytes_in_another_process_and_no_text_in_two_splits(tmp_path, capsys):
    call(*SMALL, "--out", tmp_path / "a", "--level", 2)
    done = script(*SMALL, "--out", tmp_path / "b", "--level", 2, PYTHONHASHSEED="77")
    assert done.returncode == 0, done.stderr
    call(*SMALL, "--out", tmp_path / "c", "--level", 2, "--seed", 1)
    texts = []
    for split, size in zip(annotate.SPLITS, (300, 40, 60)):
        a, b, c = ((tmp_path / folder / f"{split}.jsonl").read_bytes() for folder in "abc")
        assert a == b != c
        rows = data.read_problems(tmp_path / "a" / f"{split}.jsonl")
        assert len(rows) == size
        texts += [row["problem"] for row in rows]
    assert len(set(texts)) == len(texts)
    assert "next: python train.py --role solver --train" in capsys.readouterr().out
    call("--train", 1, "--valid", 1, "--test", 5, "--out", tmp_path / "unseen")
    assert capsys.readouterr().out.endswith(f"next: python infer.py --eval {tmp_path / 'unseen' / 'test.jsonl'}\n")


def test_made_up_shares_and_steps_are_flags(tmp_path):
    call("--train", 1000, "--valid", 10, "--test", 50, "--out", tmp_path, "--steps", "3-4", "--made-up", 0.3, "--made-up-test", 1)
    train, test = (data.read_problems(tmp_path / f"{split}.jsonl") for split in ("train", "test"))
    assert Counter(len(row["steps"]) for row in train) == {3: 500, 4: 500}
    assert 0.26 < share(not names_and_objects(row)[0] for row in train) < 0.34
    assert not any(names_and_objects(row)[0] for row in test)


def test_files_that_differ_are_kept_unless_forced(tmp_path, capsys):
    call(*SMALL, "--out", tmp_path)
    before = (tmp_path / "test.jsonl").read_bytes()
    call(*SMALL, "--out", tmp_path)
    assert "there already" in capsys.readouterr().out
    with pytest.raises(data.UserError, match=r"test.jsonl.*--force") as e:
        call(*SMALL, "--out", tmp_path, "--seed", 9)
    assert e.value.status == 2 and (tmp_path / "test.jsonl").read_bytes() == before
    call(*SMALL, "--out", tmp_path, "--seed", 9, "--force")
    assert (tmp_path / "test.jsonl").read_bytes() != before


# ---- wordings held out -------------------------------------------------------------------------------------------------

def test_wordings_held_out_stand_in_the_test_file_alone(tmp_path):
    call("--level", 3, "--train", 3000, "--valid", 200, "--test", 800, "--wordings", "test", "--out", tmp_path)
    said = {}
    for split in annotate.SPLITS:
        rows = data.read_problems(tmp_path / f"{split}.jsonl")
        sentences = [s for row in rows for s in re.split(r"(?<=\.) ", row["problem"])]
        said[split] = {(kind, p.pattern) for s in sentences for kind, p in PATTERNS if p.fullmatch(s)}
        assert all(Reading(row["problem"]).answer == int(row["answer"]) for row in rows[:300])
    assert said["train"] >= said["valid"] and not said["train"] & said["test"]
    held_out = {kind.name: kind.wordings[1] for kind in TABLE if kind.wordings} | {"given": annotate.GIVEN[2]}
    assert said["test"] == {(name, pattern(wording).pattern) for name, wording in held_out.items()}
    assert len(said["train"]) == len(set(PATTERNS)) - len(held_out)


# ---- converters --------------------------------------------------------------------------------------------------------

def gsm8k_file(path, rows):
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows), encoding="utf-8")
    return path


GOOD = [(f"Problem {i}, caf\u00e9?", f"How many? ** 2*{i}=<<2*{i}={2 * i}>>{2 * i}\nAnd then? ** {2 * i},000\n#### {2 * i},000")
        for i in range(1, 201)]
BAD = [("No lines?", "#### 4"), ("No mark?", "How many? ** 4\nfour"), ("No number?", "How many? ** 4\n#### four"),
       ("Half a line?", "How many? ** 4\nand so on\n#### 4"), ("Empty?", "How many? ** \n#### 4"), GOOD[0], (" ", "#### 4")]


def test_gsm8k_rows_are_all_accounted_for(tmp_path, capsys):
    path = gsm8k_file(tmp_path / "socratic.jsonl", GOOD[:10] + BAD + GOOD[10:])
    call("gsm8k", path, "--out", tmp_path / "out", "--split", "80/10/10")
    out = capsys.readouterr().out
    assert "207 rows read, 200 written, 7 left out" in out
    for number, reason in enumerate(("no steps", "no last line", "is no number", "a line that is not", "a line that is not",
                                     "earlier row", "field 'question' is missing"), 11):
        assert re.search(f"left out: {path}:{number} \\(gsm8k-{number}\\): .*{reason}", out), out
    splits = [data.read_problems(tmp_path / "out" / f"{split}.jsonl") for split in annotate.SPLITS]
    assert sum(map(len, splits)) == 200 and 140 < len(splits[0]) < 180 and min(map(len, splits)) > 8
    rows = {row["problem"]: row for rows in splits for row in rows}
    for i, (question, answer) in enumerate(GOOD):
        number = i + 1 if i < 10 else i + 8
        assert rows[question] == {
            "id": f"gsm8k-{number}", "problem": question, "answer": f"{2 * i + 2}000", "source": "gsm8k",
            "steps": [{"question": "How many?", "solution": answer.split("\n")[0].split(" ** ")[1]},
                      {"question": "And then?", "solution": f"{2 * i + 2},000"}]}
    with pytest.raises(data.UserError, match=r"socratic.jsonl:11: no steps \(--strict\)"):
        call("gsm8k", path, "--out", tmp_path / "strict", "--strict")
    assert not (tmp_path / "strict").exists()


def test_a_row_stays_in_its_split_when_the_file_grows_or_is_reordered(tmp_path):
    split_of = {}
    for name, rows in ("a", GOOD[:120]), ("b", GOOD[::-1]):
        call("gsm8k", gsm8k_file(tmp_path / f"{name}.jsonl", rows), "--out", tmp_path / name, "--split", "80/10/10")
        for split in annotate.SPLITS:
            for row in data.read_problems(tmp_path / name / f"{split}.jsonl"):
                assert split_of.setdefault(row["problem"], split) == split
    assert len(split_of) == len(GOOD)


def test_gsm8k_into_one_file_keeps_the_order_and_solutions_without_questions_are_marked(tmp_path, capsys):
    path = gsm8k_file(tmp_path / "main.jsonl", [("A?", "2+2=<<2+2=4>>4\nSo 4.\n#### 4"), *GOOD[:3]])
    call("gsm8k", path, "--out", tmp_path / "all.jsonl")
    first, *rest = data.read_problems(tmp_path / "all.jsonl")
    assert [row["problem"] for row in rest] == [q for q, _ in GOOD[:3]] and not any("questions" in row for row in rest)
    assert first["steps"] == [{"question": "What is step 1?", "solution": "2+2=<<2+2=4>>4"},
                              {"question": "What is step 2?", "solution": "So 4."}]
    assert first["questions"] == "plain" and "1 have no sub-questions of their own" in capsys.readouterr().out


def test_what_a_dataset_without_sub_questions_is_good_for_is_what_is_to_type_next(tmp_path, capsys):
    plain = [(problem, "So 4.\n#### 4") for problem, _ in GOOD]
    for name, rows, role in ("main", plain, "cot"), ("socratic", GOOD, "solver"):
        call("gsm8k", gsm8k_file(tmp_path / f"{name}.jsonl", rows), "--out", tmp_path / name)
        assert f"\nnext: python train.py --role {role} --train " in capsys.readouterr().out


def svamp_row(number, body, question, equation, answer):
    return {"ID": f"chal-{number}", "Body": body, "Question": question, "Equation": equation, "Answer": answer, "Type": "Subtraction"}


def test_svamp_equations_become_steps(tmp_path, capsys):
    rows = [svamp_row(1, "Ann had 9 pens. She lost 2.", "How many are left?", "( 9.0 - 2.0 )", 7.0),
            svamp_row(2, "Bo has 3. If he gets 4 twice", "How many has he?", "( ( 4.0 * 2.0 ) + 3.0 )", 11.0),
            svamp_row(3, "A rope is 5 m. It is cut in 2.", "How long is a half?", "( 5.0 / 2.0 )", 2.5),
            svamp_row(4, "Cy has 8 cats.", "How many cats?", "8.0", 8.0),
            svamp_row(5, "Di has 3.", "How many?", "( 3.0 - 8.0 )", 5.0), svamp_row(6, "E.", "How many?", "( 3.0 / 0.0 )", 5.0)]
    (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
    call("svamp", tmp_path / "SVAMP.json", "--out", tmp_path / "all.jsonl")
    out = capsys.readouterr().out
    assert "row 5 (chal-5): its equation ( 3.0 - 8.0 ) is not its answer 5" in out and "chal-6): its equation" in out
    one, two, three, four = data.read_problems(tmp_path / "all.jsonl")
    assert one == {"id": "svamp-chal-1", "problem": "Ann had 9 pens. She lost 2. How many are left?", "answer": "7", "source": "svamp",
                   "steps": [{"question": "How many are left?", "solution": "9 - 2 = <<9-2=7>>7"}]}
    assert two["problem"] == "Bo has 3. If he gets 4 twice, how many has he?" and two["answer"] == "11"
    assert two["steps"] == [{"question": "What is 4 * 2?", "solution": "4 * 2 = <<4*2=8>>8"},
                            {"question": "How many has he?", "solution": "8 + 3 = <<8+3=11>>11"}]
    assert three["answer"] == "2.5" and four["steps"] == [{"question": "How many cats?", "solution": "8"}]


STRATEGY = {"qid": "ab", "question": "Could Ann's four sons ride in a Zip at once?", "answer": False,
            "decomposition": ["How many seats has a Zip?", "How many sons has Ann?", "Is #1 at least #2?"],
            "facts": ["Ann has four sons.", "A Zip has 2 seats"]}


def test_strategyqa_facts_answer_the_sub_questions_and_references_are_put_into_words(tmp_path, capsys):
    bad = [STRATEGY | change for change in ({"question": "Q1?", "facts": []}, {"question": "Q2?", "decomposition": None},
                                            {"question": "Q3?", "answer": "no"}, {"question": "Q4?", "decomposition": ["Is #2 so?", "Is it?"]})]
    (tmp_path / "train.json").write_text(json.dumps([STRATEGY, *bad]))
    for flags, last in ((), 'Is the answer to "How many seats has a Zip?" at least the answer to "How many sons has Ann?"?'), \
            (("--references", "kept"), "Is #1 at least #2?"):
        call("strategyqa", tmp_path / "train.json", "--out", tmp_path / "all.jsonl", "--force", *flags)
        row, = data.read_problems(tmp_path / "all.jsonl")
        assert row == {"id": "strategyqa-ab", "problem": STRATEGY["question"], "answer": "no", "source": "strategyqa", "steps": [
            {"question": "How many seats has a Zip?", "solution": "A Zip has 2 seats."},
            {"question": "How many sons has Ann?", "solution": "Ann has four sons."},
            {"question": last, "solution": "So the answer is no."}]}
    out = capsys.readouterr().out
    assert all(f"row {k} (ab): {reason}" in out for k, reason in (
        (2, "field 'facts'"), (3, "field 'decomposition'"), (4, "field 'answer'"), (5, "a sub-question refers to one")))


@pytest.mark.parametrize("content, message", [
    (b'{"question": "a"', r"f:2: not JSON"), (b'{"question": "\xff"}', r"f:2: not UTF-8 at byte 14"), (b"[1]", r"f:2: a JSON object is expected"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    first = json.dumps(dict(zip(("question", "answer"), GOOD[0]))).encode()
    (tmp_path / "f").write_bytes(first + b"\n" + content + b"\n")
    with pytest.raises(data.UserError, match=message) as e:
        call("gsm8k", tmp_path / "f", "--out", tmp_path / "out")
    assert e.value.status == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command, content, message", [
    ("gsm8k", b'[{"Body": "a"}]', r"1 rows read, none can be used: 1 left out: field 'question' .*fields question, answer"),
    ("svamp", b'{"question": "a"}', r"field 'Body' .*fields Body, Question, Equation, Answer"),
    ("strategyqa", b'{"question": "a"}', r"field 'decomposition' .*fields question, answer, decomposition, facts"),
    ("gsm8k", b"", "holds no row"), ("svamp", b"[]", "holds no row"), ("svamp", b'[{"a": 1}', "f: not JSON"),
    ("gsm8k", gzip.compress(b"{}"), "compressed by gzip; unpack it"), ("gsm8k", '{"a": 1}'.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
])
def test_another_file_than_the_command_says_is_one_line_that_tells(tmp_path, command, content, message):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(data.UserError, match=message) as e:
        call(command, tmp_path / "f", "--out", tmp_path / "out")
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_a_split_that_stays_empty_is_an_error(tmp_path):
    with pytest.raises(data.UserError, match="none falls into valid.jsonl"):
        call("gsm8k", gsm8k_file(tmp_path / "f", GOOD[:2]), "--out", tmp_path / "out")


# ---- equations and answers ---------------------------------------------------------------------------------------------

def test_equations_compute_as_fractions_do():
    rng = Random(5)
    for _ in range(2000):
        a, b, op = rng.randint(1, 60), rng.randint(1, 60), rng.choice("+-*/")
        exact = EXACT[op](Fraction(a), Fraction(b))
        assert annotate.computes(f"{a}{op}{b}", f"{float(exact):.2f}")
        assert annotate.computes(f"{a}{op}{b}", str(int(exact))) == (exact.denominator == 1)
        assert not annotate.computes(f"{a}{op}{b}", f"{float(exact) + 0.02:.2f}") and not annotate.computes(f"{a}{op}{b}", f"{int(exact) + 1}")


def test_wrong_and_broken_notes_are_told_and_plain_equations_get_theirs():
    assert list(annotate.wrong_equations("It is 2+2=<<2+2=4>>4 and $<<10/4=2.50>>2.50 and <<5>>.")) == ["a broken note <<...=...>>"]
    assert [text[:9] for text in annotate.wrong_equations("<<2+2=5>>5 <<a+1=2>>2")] == ["<<2+2=5>>", "<<a+1=2>>"]
    for plain, noted in (("So 3 x 4 = $12.", "So 3 x 4 = $<<3*4=12>>12."), ("1,000 + 5 = 1,005 in all", "1,000 + 5 = <<1000+5=1005>>1,005 in all"),
                         ("2+3*4 = 14", "2+3*4 = <<2+3*4=14>>14"), ("7-2-1=4, 8/2 = 4.", "7-2-1=<<7-2-1=4>>4, 8/2 = <<8/2=4>>4."),
                         ("x = 5", "x = 5"), ("(2+1)*5 = 15", "(2+1)*5 = 15"), ("no sum", "no sum"),
                         ("1+1 = <<1+1=2>>2, 2+1 = 3", "1+1 = <<1+1=2>>2, 2+1 = <<2+1=3>>3")):
        assert annotate.with_notes(plain) == noted
    for wrong in "So 3 x 4 = 13.", "2+3 = <<2+3=5>>5, then 3 x 4 = 13":
        with pytest.raises(annotate.Unfit, match="3 . 4 = 13 does not compute"):
            annotate.with_notes(wrong)
    assert list(annotate.wrong_equations("<<3*4=12>>13 pens, <<10/3=3.33>>3.3 and <<1/3=0.33>>1/3")) == ["<<...=12>> stands before 13"]


@pytest.mark.parametrize("solution, answer, reached", [
    ("He has <<3+4=7>>7.", "7", True), ("He pays $1,250.50 now.", "1250.5", True), ("He has 70 of 100.", "7", False),
    ("So the answer is No.", "no", True), ("Nothing is known.", "no", False), ("It is -5.", "-5", True), ("A 5-4 win.", "5", True),
    ("He has 7.5 left.", "7", False), ("It costs $1,250.", "250", False), ("It is 12.5 miles.", "5", False), ("He ate 3/4, all.", "3/4", True)])
def test_a_solution_reaches_the_answer_it_says(solution, answer, reached):
    assert annotate.reaches(solution, answer) == reached


# ---- the LLM teacher ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("reply", [
    "Question 1: a?\nSolution 1: b\nQuestion 2: c?\nSolution 2: d\nAnswer: 4",
    "Sure!\n\n**Question 1:** a?\n**Solution 1:** b\n\n### Sub-question 2: c?\nSolution 2:\nd\n**Answer:** 4\nQuestion 3: e?",
    " Question 1: a?\n Solution 1: b\n - Question: c?\n Solution: d\n#### 4\n",
    "<think>\nQuestion 1: x?\nSolution 1: y\nAnswer: 5\n</think>\n1. Question: a?\nSolution #1: b\n\n2. Question: c?\nSolution #2: d\n```\nAnswer:\n#### `4`",
    "### Question 1\na?\n### Solution 1\nb\n---\n### Question 2\nc?\n### Solution 2\nd\n\n**Final Answer**: \\(\\boxed{4}\\)"])
def test_a_dialogue_is_read_however_a_chat_model_adorns_it(reply):
    assert annotate.read_dialogue(reply) == ([{"question": "a?", "solution": "b"}, {"question": "c?", "solution": "d"}], "4")


def test_replies_that_are_no_annotation_are_unfit():
    for reply in "", "42", "Answer: 4", "Question 1: a?\nAnswer: 4", "Question 1: a?\nSolution 1:\nAnswer: 4", "Solution 1: a\nQuestion 1: b\nAnswer: 4":
        with pytest.raises(annotate.Unfit):
            annotate.read_dialogue(reply)
    assert annotate.read_chain("1. One.\n- Two.\nStep 3: Three.\n\nAnswer: 4") == ([{"solution": t} for t in ("One.", "Two.", "Three.")], "4")
    for reply in "One.", "Answer: 4", "Question 1: a?\nAnswer: 4":
        with pytest.raises(annotate.Unfit):
            annotate.read_chain(reply)
    with pytest.raises(annotate.Unfit, match="not 2 questions"):
        annotate.read_questions("Question 1: a?", [{"solution": "b"}] * 2)
    assert annotate.read_questions("Question 1: a\nb?\n\nLet me know if you need more!", [{"solution": "c"}]) == [{"question": "a b?", "solution": "c"}]


def test_thoughts_and_chatter_are_no_steps_and_signs_are_the_calculators():
    reply = "<think>\n3 by 4, so 13?\n</think>\n\nSure! Here are the steps:\n**Step 1:** It is 3 \u00d7 4 = **12**.\n$24 \\div 2 = 12$\n\nAnswer: \u20ac12"
    steps, answer = annotate.read_chain(reply)
    assert annotate.verified(steps, answer, {"answer": "12"}) == [{"solution": "It is 3 * 4 = <<3*4=12>>12."}, {"solution": "24 / 2 = <<24/2=12>>12"}]


@pytest.mark.parametrize("said, answer, agrees", [
    ("12 apples", "12", True), ("12 dollars.", "12", True), ("$12.00", "12", True), ("70,000 pens", "70000", True), ("Yes, it could.", "yes", True),
    ("3 of 12", "12", False), ("12.5", "12", False), ("No one knows", "no", False), ("-12", "12", False), ("", "12", False)])
def test_an_answer_may_have_a_unit_or_go_on(said, answer, agrees):
    assert annotate.agrees(said, answer) == agrees


def test_our_prompts_hold_examples_that_pass_their_own_check():
    for example in annotate.EXAMPLES:
        _, wanted = annotate.laid_out("socratic", example["steps"], example["answer"])
        assert annotate.verified(*annotate.read_dialogue(wanted), example) == example["steps"]
        assert all(list(annotate.wrong_equations(step["solution"])) == [] for step in example["steps"])
        assert all(annotate.fill(annotate.built_in(stage), "{x} %s \\1", example["steps"]).count("{x} %s \\1") == 1 for stage in annotate.INSTRUCTIONS)


def test_retry_after_comes_in_seconds_and_as_a_date():
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    assert annotate.retry_after("120") == 120 and 88 < annotate.retry_after(soon) <= 90
    assert annotate.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [annotate.retry_after(text) for text in (None, "soon", "-5", "", "1e9")] == [None] * 5
    assert annotate.retry_after("1.5") == 1.5


KEY = "sk-abc.DEF_123-not-for-others"


@pytest.fixture
def server():
    """Starts mock_teacher.py with flags; returns its URL. All are stopped in the end."""
    running = []

    def start(*flags):
        running.append(subprocess.Popen([sys.executable, mock_teacher.__file__, *map(str, flags)], stdout=subprocess.PIPE, text=True))
        return f"http://127.0.0.1:{int(running[-1].stdout.readline())}"
    yield start
    for process in running:
        process.kill()
        process.communicate()


def log_of(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/log")
    return json.loads(connection.getresponse().read())


def problems_file(path, n):
    path.write_bytes(data.jsonl(map(mock_teacher.problem, range(n))))
    return path


def rows_in(folder):
    return [row for path in sorted(folder.glob("*.jsonl")) for _, row in data.read_rows(path)]


def teach(path, url, out, *flags):
    call("teacher", path, "--url", url, "--model", "mock", "--out", out, "--pause", 0.02, *flags)


@pytest.mark.parametrize("style", ["socratic", "cot"])
def test_every_problem_is_annotated_or_rejected_once_by_a_server_that_fails_in_every_way(tmp_path, server, capfd, monkeypatch, style):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = server("--faults", 0.5, "--stall", 20, "--seed", 3)
    path = problems_file(tmp_path / "problems.jsonl", 250)
    teach(path, url, tmp_path / "out", "--style", style, "--parallel", 24, "--timeout", 0.7, "--price", "1/2")
    log, rows, printed = log_of(url), rows_in(tmp_path / "out"), capfd.readouterr()
    assert set(log["faults"]) >= set(mock_teacher.FAULTS) and log["keys"] == [KEY]
    assert sorted(row["problem"] for row in rows) == sorted(mock_teacher.problem(i)["problem"] for i in range(250))
    kept = [row for row in rows if "rejected" not in row]
    assert len(kept) > 150 and f"{len(kept)} annotations kept" in printed.out and "in money" in printed.out
    for row in kept:
        a, b = map(int, re.findall(r"\d+", row["problem"])[:2])
        assert int(row["answer"]) == 2 * a + b and len(row["steps"]) == 2 and row["steps"][0]["question"] == "How many has Bo?"
        assert [re.findall(r"<<(.*?)>>", s["solution"]) for s in row["steps"]] == [[f"{a}+{b}={a + b}"], [f"{a}+{a + b}={2 * a + b}"]]
    for row in rows:
        about = row["teacher"]
        assert about["model"] == "mock" and about["style"] == style and 1 <= about["try"] <= 4 and about["temperature"] in (0, 0.33, 0.67, 1)
        assert re.fullmatch(r"[0-9a-f]{12}", about["prompt"]) and datetime.fromisoformat(about["date"]).tzinfo
    assert all(row["rejected"] and "reply" in row and "steps" not in row for row in rows if "rejected" in row)
    assert KEY not in printed.out + printed.err and not any(KEY in p.read_text() for p in (tmp_path / "out").iterdir())
    assert log["connections"] < log["requests"] / 2  # kept alive


def test_killed_and_resumed_no_problem_is_asked_again_but_those_in_flight(tmp_path, server):
    url, parallel = server("--latency", 0.05), 8
    path, out = problems_file(tmp_path / "problems.jsonl", 100), tmp_path / "out"
    run = subprocess.Popen([sys.executable, ROOT / "annotate.py", "teacher", path, "--url", url, "--model", "mock", "--out", out],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(log_of(url)["asked"]) < 40:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert 40 - parallel <= len(rows_in(out)) < 100
    with open(out / "train.jsonl", "ab") as f:
        f.write(b'{"id": "p-1", "probl')  # cut short as by a kill in the middle of a write
    teach(path, url, out)
    rows, log = rows_in(out), log_of(url)
    assert sorted(row["problem"] for row in rows) == sorted(mock_teacher.problem(i)["problem"] for i in range(100))
    assert sum(n - 1 for n in log["asked"].values()) <= parallel
    for changed in ("--style", "cot"), ("--model", "other"):
        with pytest.raises(data.UserError, match=r"train.jsonl:1: of another run .*--out$") as e:
            teach(path, url, out, *changed)
        assert e.value.status == 2
    assert rows_in(out) == rows and log_of(url)["requests"] == log["requests"]


def test_a_problem_that_the_server_refuses_does_not_stop_the_others(tmp_path, server):
    first = mock_teacher.problem(0)["problem"]
    path = problems_file(tmp_path / "f.jsonl", 12)
    teach(path, server("--refuse", re.escape(first), "--latency", 0.2), tmp_path / "out", "--parallel", 4)
    rejected, = [row for row in rows_in(tmp_path / "out") if "rejected" in row]
    assert rejected["problem"] == first and rejected["rejected"] == "HTTP 400: maximum context length exceeded" and len(rows_in(tmp_path / "out")) == 12
    # in the same files later ones, one behind the other: that the server is right is known from before
    teach(problems_file(tmp_path / "f.jsonl", 16), server("--refuse", "."), tmp_path / "out", "--parallel", 1)
    assert sum("rejected" in row for row in rows_in(tmp_path / "out")) == 5
    with pytest.raises(data.UserError, match="maximum context length exceeded; check --url and --model"):
        teach(path, server("--refuse", "."), tmp_path / "other")
    # but not that it is right for ever: another model, or none that takes anything
    before, path = rows_in(tmp_path / "out"), problems_file(tmp_path / "f.jsonl", 60)
    for flags, more in (("--faults", 1, "--only", "wrong model"), 0), (("--refuse", "."), 10):
        with pytest.raises(data.UserError, match="check --url and --model"):
            teach(path, server(*flags), tmp_path / "out", "--parallel", 1)
        assert len(rows_in(tmp_path / "out")) == len(before) + more


@pytest.mark.parametrize("content", [b'{"id": "a", "problem": "P", "answer": "1"}', b'[{"id": "a"}]', b"notes", b'{"id": "a"}\n{"id": "b'])
def test_a_file_of_something_else_is_left_as_it_is(content, tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(data.UserError, match="mine.jsonl.*choose another --out") as e:
        teach(problems_file(tmp_path / "f.jsonl", 3), "http://localhost:1", tmp_path / "mine.jsonl")
    assert e.value.status == 2 and (tmp_path / "mine.jsonl").read_bytes() == content


def test_a_row_whose_line_was_cut_before_its_end_is_asked_again(tmp_path, server):
    url, path, out = server(), problems_file(tmp_path / "f.jsonl", 4), tmp_path / "out.jsonl"
    teach(path, url, out, "--parallel", 1)
    out.write_bytes(out.read_bytes()[:-1])
    teach(path, url, out)
    assert len(data.read_problems(out)) == 4 and log_of(url)["requests"] == 5


def test_what_extra_says_of_the_temperature_is_what_a_row_says(tmp_path, server):
    url, path = server(), problems_file(tmp_path / "f.jsonl", 2)
    teach(path, url, tmp_path / "out", "--extra", '{"temperature": 0.6}')
    assert [row["teacher"]["temperature"] for row in rows_in(tmp_path / "out")] == [0.6, 0.6]
    with pytest.raises(data.UserError, match="of another run"):
        teach(path, url, tmp_path / "out")


def test_a_key_that_is_a_word_is_not_struck_out(tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "pens")
    teach(problems_file(tmp_path / "f.jsonl", 1), server(), tmp_path / "out.jsonl")
    assert "pens" in data.read_problems(tmp_path / "out.jsonl")[0]["steps"][0]["solution"]


def test_a_reply_may_come_in_parts_or_be_empty():
    endpoint = annotate.Endpoint(annotate.parse_args(["teacher", "f", "--url", "http://h", "--model", "m"]))
    for content, text in ([{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"), (None, ""), ("", ""):
        assert endpoint.read(json.dumps({"choices": [{"message": {"content": content, "reasoning_content": "x"}}]}).encode(), 8).text == text
    assert endpoint.read(b'{"choices": [{"message": {}}]}', 8).text == ""
    chain, asked = "2+2 = 4\nAnswer: 4", ["Question 1: a?\nQuestion 2: b?", "Question 1: a?"]
    for replies, wanted in ([chain, *asked], [{"question": "a?", "solution": "2+2 = <<2+2=4>>4"}]), ([chain, *asked[:1] * 3], None):
        talker = SimpleNamespace(ask=lambda prompt, temperature: annotate.Reply(replies.pop(0), "stop", "m", (1, 1)))
        args = annotate.parse_args(["teacher", "f", "--url", "http://h", "--model", "m", "--style", "cot", "--tries", "3"])
        row = annotate.annotate({"id": "1", "problem": "P", "answer": "4"}, talker, annotate.read_prompts(args), args)
        assert row.get("steps") == wanted and not replies  # a chain that is right is not asked for again
    silent = SimpleNamespace(ask=lambda prompt, temperature: annotate.Reply("", "stop", "m", (1, 0)))
    row = annotate.annotate(mock_teacher.problem(0), silent, {"socratic": "{problem}"}, endpoint.args)
    assert row["rejected"].startswith("the reply is empty") and row["teacher"]["try"] == endpoint.args.tries


def test_a_budget_stops_the_run_cleanly_and_a_larger_one_goes_on(tmp_path, server, capsys):
    url, path = server(), problems_file(tmp_path / "problems.jsonl", 40)
    teach(path, url, tmp_path / "out", "--budget-tokens", 3000, "--parallel", 2)
    spent = [sum(row["teacher"]["tokens"]) for row in rows_in(tmp_path / "out")]
    assert 3000 <= sum(spent) <= 3000 + 2 * max(spent) and "stopped at --budget-tokens 3,000" in capsys.readouterr().out
    teach(path, url, tmp_path / "out", "--budget-tokens", 10**6, "--split", "50/25/25")
    assert len(rows_in(tmp_path / "out")) == 40 and log_of(url)["requests"] == 40


def test_questions_are_asked_for_the_solutions_of_a_file(tmp_path, server):
    url, a, b = server(), 5, 2
    row = mock_teacher.problem(2) | {"questions": "plain", "steps": [{"question": "What is step 1?", "solution": "Bo has 7."},
                                                                   {"question": "What is step 2?", "solution": "12."}]}
    (tmp_path / "f.jsonl").write_bytes(data.jsonl([row]))
    teach(tmp_path / "f.jsonl", url, tmp_path / "out.jsonl", "--style", "questions")
    new, = data.read_problems(tmp_path / "out.jsonl")
    assert [step["solution"] for step in new["steps"]] == ["Bo has 7.", "12."] and new["steps"][0]["question"] == "How many has Bo?"
    assert "questions" not in new


def test_each_request_of_a_problem_can_have_a_prompt_of_the_users(tmp_path, server, monkeypatch):
    (tmp_path / "think").write_text("Think. Problem: {problem}")
    (tmp_path / "ask").write_text("Ask. Problem: {problem}\n{solutions}")
    sent, ask = [], annotate.Endpoint.ask
    monkeypatch.setattr(annotate.Endpoint, "ask", lambda self, prompt, temperature: sent.append(prompt) or ask(self, prompt, temperature))
    teach(problems_file(tmp_path / "f.jsonl", 1), server(), tmp_path / "out.jsonl", "--style", "cot", "--prompt", tmp_path / "think",
          "--prompt", tmp_path / "ask")
    text, (row,) = mock_teacher.problem(0)["problem"], data.read_problems(tmp_path / "out.jsonl")
    solutions = "\n".join(f"Solution {k}: {step['solution']}" for k, step in enumerate(row["steps"], 1))
    assert sent == [f"Think. Problem: {text}", f"Ask. Problem: {text}\n{solutions}"]


def test_a_dry_run_shows_the_request_without_sending_it_and_without_the_key(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    (tmp_path / "prompt").write_text("Think {x}: {problem}!")
    path = problems_file(tmp_path / "problems.jsonl", 3)
    teach(path, "http://localhost:1/v1/", tmp_path / "out", "--dry-run", "--prompt", tmp_path / "prompt", "--key-variable", "MY_KEY",
          "--extra", '{"max_tokens": null, "top_p": 0.9}', "--temperature", 0.2)
    out = capsys.readouterr().out
    assert out.startswith("POST http://localhost:1/v1/chat/completions\n") and "Bearer $MY_KEY" in out and KEY not in out
    assert json.loads(out.partition("\n\n")[2]) == {"model": "mock", "temperature": 0.2, "top_p": 0.9, "messages": [
        {"role": "user", "content": f"Think {{x}}: {mock_teacher.problem(0)['problem']}!"}]}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("faults, message", [
    (["401"], r"HTTP 401: Incorrect API key: \*\*\* \(the key comes from the environment: OPENAI_API_KEY was sent"),
    (["wrong model"], "HTTP 404: no such model; check --url and --model mock"), (["500"], r"HTTP 500: out of memory \(after 3 requests"),
    (["HTML"], "no chat completion but '<html>"), (["stall"], r"no whole reply within 0.3 s"), (["reset"], "Remote|reset"), (["half"], "Incomplete")])
def test_a_server_that_cannot_work_is_one_line_and_nothing_is_written(tmp_path, server, monkeypatch, faults, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = server("--faults", 1, "--only", *faults)
    with pytest.raises(data.UserError, match=message) as e:
        teach(problems_file(tmp_path / "f.jsonl", 9), url, tmp_path / "out", "--retries", 2, "--timeout", 0.3)
    assert "\n" not in str(e.value) and e.value.status == 1 and KEY not in str(e.value)
    assert rows_in(tmp_path / "out") == []


class SpeaksNoTLS(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_servers_that_are_not_there_are_one_line(tmp_path):
    path = problems_file(tmp_path / "f.jsonl", 3)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SpeaksNoTLS) as plain, socket.socket() as free:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        free.bind(("127.0.0.1", 0))
        for where, message in ((f"http://127.0.0.1:{free.getsockname()[1]}/v1", "nothing listens there"),
                               ("http://no-such-host.invalid/v1", "no such host"),
                               (f"https://127.0.0.1:{plain.server_address[1]}/v1", "no TLS there")):
            with pytest.raises(data.UserError, match=message):
                teach(path, where, tmp_path / "out", "--retries", 0)
        plain.shutdown()


@pytest.mark.parametrize("flags, message, status", [
    (["--url", "localhost:8000"], "expected as in http://localhost:8000/v1", 2), (["--url", "http://u:p@h/v1"], "without user or password", 2),
    (["--url", "http://h:99999/v1"], "--url http://h:99999/v1", 2), (["--prompt", "prompt"], "placeholder {problem} is missing", 1),
    (["--prompt", "nowhere"], "--prompt nowhere: No such file", 1), (["--prompt", "x", "--prompt", "y"], "--prompt y: --style socratic sends 1", 2),
    (["--style", "cot", "--prompt", "whole", "--prompt", "whole"], "placeholder {solutions} is missing", 1), (["--extra", "[1]"], "no JSON object", 2),
    (["--split", "50/40/20"], "sum to 100", 2), (["--price", "3"], "is not 2 numbers", 2), (["--temperature", "nan"], "nan is no number", 2),
    (["--timeout", "0"], "0 is no number", 2), (["--style", "riddle"], "invalid choice: 'riddle'", 2)])
def test_bad_flags_of_the_teacher_are_one_line(tmp_path, monkeypatch, flags, message, status):
    monkeypatch.chdir(tmp_path)
    Path("prompt").write_text("Solve it.")
    Path("whole").write_text("Solve {problem}")
    with pytest.raises(data.UserError, match=re.escape(message)) as e:
        teach(problems_file(tmp_path / "f.jsonl", 3), "http://localhost:1", tmp_path / "out", *flags)
    assert e.value.status == status and "\n" not in str(e.value)


def test_a_key_that_no_header_can_carry_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u20ac-secret")
    with pytest.raises(data.UserError, match="OPENAI_API_KEY: the key holds characters") as e:
        teach(problems_file(tmp_path / "f.jsonl", 3), "http://localhost:1", tmp_path / "out")
    assert "secret" not in str(e.value)


# ---- the students as their own teacher ---------------------------------------------------------------------------------

def test_distinct_right_samples_become_annotations(tmp_path, monkeypatch):
    calls = []

    def solve(problems, procedure, students, calculator=True, watch=None, sampling=None):
        """A student that is right at the first seed of two, in one of two ways, and wrong or unfinished else."""
        calls.append(sampling)
        rng = random.Random(sampling.seed)
        for index, problem in enumerate(problems):
            way, right = rng.choice("AB"), rng.random() < 0.5
            step = {"question": f"{way}?", "solution": f"So <<{problem['answer']}+0={problem['answer']}>>{problem['answer']}."}
            wrong = rng.choice([{"answer": None}, {"answer": "-1"}, {"steps": [step | {"solution": f"<<1+1=3>>{problem['answer']}"}]}])
            yield index, {"steps": [step], "answer": problem["answer"], "unfinished": None} | ({} if right else wrong)

    student = SimpleNamespace(guidance=None)
    monkeypatch.setattr(annotate, "solve", solve)
    monkeypatch.setattr(annotate, "open_student", lambda folder, role, slots, device: student)
    problems = [mock_teacher.problem(i) | {"steps": [{"question": "A?", "solution": "as {0}".format(i)}], "questions": "plain"} for i in range(30)]
    (tmp_path / "f.jsonl").write_bytes(data.jsonl(problems))
    call("self", tmp_path / "f.jsonl", "--samples", 6, "--temperature", 0.5, "--seed", 2, "--out", tmp_path / "new.jsonl")
    assert calls == [(0.5, 0, 1.0, 12 + k) for k in range(6)]
    rows = data.read_problems(tmp_path / "new.jsonl")
    per_problem = Counter(row["problem"] for row in rows)
    assert 20 < len(per_problem) <= 30 and set(per_problem.values()) == {1, 2}
    assert len({json.dumps([row["problem"], row["steps"]]) for row in rows}) == len(rows) == len({row["id"] for row in rows})
    for row in rows:
        assert row["steps"][0]["solution"] == "So <<{0}+0={0}>>{0}.".format(row["answer"]) and row["teacher"]["temperature"] == 0.5
        assert "questions" not in row  # that its sub-questions were none is true no more
    before = (tmp_path / "new.jsonl").read_bytes()
    for guidance, message in (None, "is there already: --force replaces it"), ("steps", "trained with --guidance steps"):
        student.guidance = guidance
        with pytest.raises(data.UserError, match=message):  # at once, not after hours of sampling
            call("self", tmp_path / "f.jsonl", "--out", tmp_path / ("other.jsonl" if guidance else "new.jsonl"))
    assert len(calls) == 6 and (tmp_path / "new.jsonl").read_bytes() == before


def test_a_problem_with_enough_new_annotations_is_not_sampled_again(tmp_path, monkeypatch, capsys):
    asked, there = [], []  # of each round: whom; how many annotations are in the file by then

    def solve(problems, procedure, students, calculator=True, watch=None, sampling=None):
        """A student that finds something new for every second of the problems, the last first."""
        there.append(len(data.read_problems(tmp_path / "new.jsonl")) if (tmp_path / "new.jsonl").exists() else 0)
        asked.append([problem["id"] for problem in problems])
        for index in reversed(range(len(problems))):
            step = {"question": f"{len(asked)}?", "solution": f"It is {problems[index]['answer']}."}
            yield index, {"steps": [step], "answer": problems[index]["answer"] if index % 2 else "-1", "unfinished": None}

    monkeypatch.setattr(annotate, "solve", solve)
    monkeypatch.setattr(annotate, "open_student", lambda folder, role, slots, device: SimpleNamespace(guidance=None))
    problems = [mock_teacher.problem(i) | {"id": str(i)} for i in range(8)]
    (tmp_path / "f.jsonl").write_bytes(data.jsonl(problems))
    call("self", tmp_path / "f.jsonl", "--samples", 5, "--keep", 1, "--out", tmp_path / "new.jsonl")
    # of 8 the odd are found, of 0 2 4 6 then 2 6, of 0 4 then 4; 0 is sampled to the end
    assert asked == [list("01234567"), list("0246"), list("04"), ["0"], ["0"]] and there == [0, 4, 6, 7, 7]
    rows = data.read_problems(tmp_path / "new.jsonl")
    assert [row["problem"] for row in rows] == [problems[i]["problem"] for i in range(1, 8)]
    assert "7 of 16 samples right; new annotations for 7 of 8 problems" in capsys.readouterr().out


# ---- check -------------------------------------------------------------------------------------------------------------

def good_row(i, name="Ann", thing="pens"):
    return {"id": f"x-{i}", "problem": f"{name} has {i} {thing}. She buys 2 more. How many {thing} has she now?", "answer": str(i + 2),
            "steps": [{"question": "How many?", "solution": f"She has {i}+2=<<{i}+2={i + 2}>>{i + 2} {thing}."}]}


def checked(tmp_path, capsys, files, *flags):
    """Run check on {name: rows or bytes}; returns (exit status, {file: {column: cell}}, what was printed)."""
    for name, rows in files.items():
        (tmp_path / name).write_bytes(rows if isinstance(rows, bytes) else data.jsonl(rows))
    status = 0
    try:
        call("check", *(tmp_path / name for name in files), *flags)
    except SystemExit as e:
        status = e.code
    out = capsys.readouterr().out
    head, *lines = [line.split() for line in out.splitlines() if re.match(rf"file  |{tmp_path}/\S+  ", line)]
    return status, {Path(line[0]).name: dict(zip(head[1:], map(int, line[1:]))) for line in lines}, out


def test_check_finds_nothing_in_good_files(tmp_path, capsys):
    status, table, out = checked(tmp_path, capsys, {"a": [good_row(i) for i in range(50)], "b": [good_row(i, thing="cats") for i in range(9)]})
    assert status == 0 and "wrong" not in out
    assert table["a"]["problems"] == table["a"]["notes"] == 50 and not any(table["a"][kind] for kind in annotate.WRONG)
    call("--train", 300, "--valid", 20, "--test", 20, "--out", tmp_path / "t")
    call("check", *(tmp_path / "t" / f"{split}.jsonl" for split in annotate.SPLITS))


def test_check_names_each_fault_and_counts_it(tmp_path, capsys):
    a = [good_row(i) for i in range(20)]
    a[3]["steps"][0]["solution"] = "She has 3+2=<<3+2=6>>6, no: 5."
    a[5] |= {"answer": "99"}
    a[7] = good_row(2)
    a[9] = {"problem": "P"}
    a[11]["problem"] += " Really?" * 60
    status, table, out = checked(tmp_path, capsys, {"a": a, "b": [good_row(1), good_row(77, "Zoe"), good_row(3, thing="cats")]}, "--block-size", 150)
    assert status == 1
    assert table["a"] | dict.fromkeys(("tokens", "steps", "problems"), 0) == {
        "problems": 0, "steps": 0, "notes": 19, "tokens": 0, "schema": 1, "equation": 1, "answer": 1, "twice": 1, "leak": 0, "long": 1,
        "alike": 0, "plain": 0}
    assert table["b"]["leak"] == 1 and table["b"]["alike"] == 1 and table["b"]["problems"] == 3
    for told in ("a:10: field 'answer' is missing", "a:4: <<3+2=6>> does not compute: the calculator says 5", "a:6: the last solution does not",
                 f"a:8: the same problem as {tmp_path / 'a'}:3", f"b:1: the same problem as {tmp_path / 'a'}:2", "tokens, the block has 150"):
        assert told in out, (told, out)
    told = f"b:2: like {tmp_path / 'a'}:1 but for names and numbers"
    assert told not in out and told in checked(tmp_path, capsys, {"a": a, "b": [good_row(1), good_row(77, "Zoe")]}, "--all")[2]


def test_check_counts_a_file_that_cannot_be_read_and_goes_on(tmp_path, capsys):
    status, table, out = checked(tmp_path, capsys, {"a": b'{"problem": "x', "b": [good_row(1)], "c": [good_row(i, thing="cats") for i in range(30)]})
    assert status == 1 and table["a"]["schema"] == 1 and table["b"]["schema"] == 0 and "a:1: not JSON" in out
    _, table, out = checked(tmp_path, capsys, {"a": data.jsonl([good_row(1)]) + b'{"problem": "x\n' + data.jsonl([good_row(2)])})
    assert table["a"]["problems"] == 1 and table["a"]["schema"] == 1 and f"{tmp_path}/a: not read any further" in out
    bad = [good_row(i, thing="cats") | {"answer": "no"} for i in range(30)]
    assert "... and 20 more problems whose last solution" in checked(tmp_path, capsys, {"d": bad})[2]
    assert checked(tmp_path, capsys, {"d": bad}, "--all")[2].count("does not come to the answer no") == 30


# ---- bad usage ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, message", [
    (["--level", 9], "--level: invalid choice: 9"), (["--steps", "5-2"], "--steps: 5-2"), (["--steps", "0-3"], "--steps: 0-3"),
    (["--steps", "many"], "--steps: many"), (["--train", 0], "--train: 0"), (["--test", "-3"], "--test: -3"),
    (["--valid", "x"], "--valid: x"), (["--made-up", 1.5], "--made-up: 1.5"), (["--seed", "x"], "--seed"),
    (["svampp"], "invalid choice: 'svampp'"), (["gsm8k"], "required: FILE"), (["--nonsense"], "--nonsense"),
    (["gsm8k", "x.jsonl", "--out", "y.jsonl", "--split", "90/5/5"], "needs a folder"), (["check"], "required: FILE"),
    (["teacher", "x"], "required: --url, --model"), (["self", "x", "--out", "y"], "expected a file"), (["--wordings", "some"], "--wordings"),
    (["gsm8k", "x.jsonl", "--split", "90/10"], "is not 3 numbers"),
])
def test_bad_usage_is_one_line_and_status_2(argv, message):
    with pytest.raises(data.UserError) as e:
        call(*argv)
    assert e.value.status == 2 and message in str(e.value) and "\n" not in str(e.value)


def test_an_unusable_out_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in tmp_path / "file", tmp_path / "file" / "below":
        with pytest.raises(data.UserError, match="--out .*file") as e:
            call("--out", out)
        assert e.value.status == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_leave_the_script_as_one_line_without_a_traceback(tmp_path):
    for argv, status in ((["--steps", "5-2"], 2), (["gsm8k", tmp_path / "missing.jsonl"], 1)):
        done = script(*argv)
        assert done.returncode == status and done.stdout == ""
        assert re.fullmatch(r"error: .*\n", done.stderr), done.stderr
