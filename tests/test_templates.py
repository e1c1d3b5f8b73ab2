"""The template teacher. A reader of English that knows nothing of how problems are drawn, `Reading`, takes
each problem's text to pieces and solves it with exact fractions; what the teacher wrote must agree."""
import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest

import annotate
import data

ROOT = Path(annotate.__file__).parent
TABLE = [*annotate.KINDS, *annotate.FRESH, *annotate.GAINS, *annotate.PAIRS, annotate.PART]


# ---- an independent reader ---------------------------------------------------------------------------------

NAME, NUMBER, THING = "[A-Z][a-z]+", r"\d+", "[a-z]+"
HOLES = {"A": NAME, "B": f"{NAME}(?: and {NAME})?", "X": NAME, "Y": NAME, "R": ".+", "V": ".+", "o": THING,
         "k": NUMBER, "m": NUMBER}


def pattern(wording):
    seen = set()

    def hole(match):
        name = match[1]
        again, _ = name in seen, seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>{HOLES[name]})"
    return re.compile(re.sub(r"\{(\w)\}", hole, wording.replace(".", r"\.")))


PATTERNS = [(kind.name, pattern(w)) for kind in TABLE for w in kind.wordings] + [("given", pattern(w))
        for w in set(annotate.GIVEN)]

RELATIONS = {  # what the number of A is, and what that of R is where A's is known
    "more": (lambda r, k: r + k, lambda a, k: a - k), "fewer": (lambda r, k: r - k, lambda a, k: a + k),
    "times": (lambda r, k: r * k, lambda a, k: a / k), "filled": (lambda r, k: r * k, lambda a, k: a / k),
    "twice": (lambda r, k: r * 2, lambda a, k: a / 2), "half": (lambda r, k: r / 2, lambda a, k: a * 2),
    "third": (lambda r, k: r / 3, lambda a, k: a * 3), "quarter": (lambda r, k: r / 4, lambda a, k: a * 4)}
EVENTS = {  # what B has then, from what B had
    "gives": ("left", lambda b, k: b - k), "finds": ("now", lambda b, k: b + k), "gives half": ("left",
            lambda b, k: b / 2)}
OUTCOMES = {  # owner, verb and object of what comes of what B has
    "shares": ("each friend of {B}", "gets", "{o}", lambda b, k: b / k),
    "they share": ("each friend of {B}", "gets", "{o}", lambda b, k: b / k),
    "packs": ("{B}", "fills", "boxes", lambda b, k: b / k), "sells": ("{B}", "gets", "dollars", lambda b,
                                                                      k: b * k),
    "lasts": ("the {o} of {B}", "last", "days", lambda b, k: b / k), "needs": ("{B}", "still needs", "{o}",
            lambda b, k: k - b)}
GAINS = {"buys packs": ("buys", "now", 1), "collects daily": ("collects", "now", 1),
         "gives daily": ("gives away", "left", -1)}
VERB = "has|have|gets|collects|fills|still needs"
BASE = {"have": "has", "get": "gets", "buy": "buys", "collect": "collects", "give away": "gives away",
        "fill": "fills",
        "still need": "still needs", "last": "last"}


class Reading:
    """A problem's text, solved. `values`: {(owner, verb, object, version): Fraction}; version counts what
    happened to it.

    `used`: the numbers of the sentences that the answer needs; `late`: whether one of them needs a later one;
    `backwards`: whether one of them was read from right to left; `kinds`: the kind of each sentence.
    """

    def __init__(self, text):
        *sentences, question = re.split(r"(?<=[.?]) (?=[A-Z])", text)
        self.tails, self.kinds = {}, []  # {(owner, object): the tails of its versions}
        self.gone = set()                # (owner, object) that were given away, sold, used up
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
            assert (m[3] or "") == self.tails[m[1], m[2]
                                              or obj][-1] or not m[3], f"{text!r} speaks of what is past"
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
            told(self.holding(g["A"], o) if kind == "has packs" else (g["A"], "collects", o, 0),
                 lambda: k * m, [])
        elif kind in GAINS:
            verb, tail, sign = GAINS[kind]
            told((g["B"], verb, o, 0), lambda: k * m, [])
            self.happen(i, g["B"], o, tail, lambda b, part: b + sign * part, (g["B"], verb, o, 0))
        elif kind in ("sum", "difference"):
            sign = 1 if kind == "sum" else -1
            told(self.holding(g["A"], o), lambda x, y: x + sign * y, [self.holding(g["X"], o),
                                                                      self.holding(g["Y"], o)])
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
        m = re.fullmatch(f"How many ({THING}) (?:does|do) (.+?) ({'|'.join(BASE)})(?: (left|now))?\\?",
                         question)
        obj, owner, verb, tail = m[1], m[2], BASE[m[3]], m[4] or ""
        version = self.tails[owner, obj].index(tail) if verb == "has" else 0
        return [(owner, verb, obj, version)], self.values[owner, verb, obj, version]


def draw(level, size, seed=1, **how):
    rng = Random(seed)
    high = 6 if level == 3 else 5
    return [annotate.write_problem(annotate.draw_story(rng, level, 2 + i % (high - 1), **how))
            for i in range(size)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def drawn(request):
    """2,000 problems of a level, each with its reading."""
    rows = draw(request.param, 2000)
    return request.param, [(row, Reading(row["problem"])) for row in rows]


def share(values):
    values = list(values)
    return sum(map(bool, values)) / len(values)


# ---- what problems say -------------------------------------------------------------------------------------

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
        known |= {n for word, n in (("twice", "2"), ("double", "2"), ("half", "2"), ("third", "3"),
                                    ("quarter", "4"))
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
            assert [n for _, n in told] == [a, b] if len(told) == 2 else {n for _, n in told} <= {a, b}, (row,
                    step)


def test_start_values_are_whole_numbers_up_to_100(drawn):
    starts = [int(n) for row, _ in drawn[1] for n in re.findall(r"(?:has|owns) (\d+) [a-z]+\.",
                                                                row["problem"])]
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

        def told(q):  # the sentences that must be worked out before q
            return [t for x in q.operands if isinstance(x, annotate.Quantity)
                    for t in ([x] if x in at else told(x))]
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


# ---- shares ------------------------------------------------------------------------------------------------

def test_shares_are_as_promised(drawn):
    level, rows = drawn
    steps = Counter(len(row["steps"]) for row, _ in rows)
    assert sorted(steps) == list(range(2, 7 if level == 3 else 6))
    assert max(steps.values()) - min(steps.values()) <= 1
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
    for i in range(1000):  # from level 2 on among problems that combine results
        steps = annotate.draw_story(rng, level, 2 + i % 4 if level == 1 else 5).steps
        refs = [(q, x, steps[k]) for k, q in enumerate(steps[1:]) for x in q.operands if isinstance(x,
                annotate.Quantity)]
        if level == 1 or any(sum(isinstance(x, annotate.Quantity) for x in q.operands) == 2 for q in steps):
            latest += [x is before for _, x, before in refs]
    assert low < share(latest) < high


# ---- words -------------------------------------------------------------------------------------------------

def test_at_least_15_kinds_in_3_wordings_and_60_names_and_objects():
    assert len({kind.name for kind in TABLE if len(set(kind.wordings)) >= 3}) >= 15
    assert all(len(set(kind.wordings)) >= 3 for kind in TABLE if kind.name not in ("together",
            "how many more"))
    for words in annotate.NAMES, annotate.OBJECTS:
        assert len(set(words)) == len(words) >= 60 and all(word.isascii() and word.isalpha()
                                                           for word in words)


def test_every_kind_and_wording_occurs():
    rows = [row for level in (1, 3) for row in draw(level, 2000, seed=5)]
    said = {(kind, p.pattern) for row in rows for s in re.split(r"(?<=\.) ", row["problem"]) for kind,
            p in PATTERNS if p.fullmatch(s)}
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
    new = [{w for row in rows for w in re.findall("[A-Za-z]+", row["problem"])} - plain for rows in (train,
            test)]
    assert len(new[1]) > 3000 and not new[0] & new[1]
    for row in train + test:
        assert Reading(row["problem"]).answer == int(row["answer"])


# ---- files -------------------------------------------------------------------------------------------------

def call(*argv):
    args = annotate.parse_args([str(a) for a in argv])
    args.run(args)


def script(*argv, **env):
    return subprocess.run([sys.executable, ROOT / "annotate.py", *map(str, argv)], capture_output=True,
                          text=True, env={**os.environ, **env})


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
    path = tmp_path / "unseen" / "test.jsonl"
    assert capsys.readouterr().out.endswith(f"next: python infer.py --eval {path}\n")


def test_made_up_shares_and_steps_are_flags(tmp_path):
    call("--train", 1000, "--valid", 10, "--test", 50, "--out", tmp_path, "--steps", "3-4", "--made-up", 0.3,
         "--made-up-test", 1)
    train, test = (data.read_problems(tmp_path / f"{split}.jsonl") for split in ("train", "test"))
    assert Counter(len(row["steps"]) for row in train) == {3: 500, 4: 500}
    assert 0.26 < share(not names_and_objects(row)[0] for row in train) < 0.34
    assert not any(names_and_objects(row)[0] for row in test)


def test_files_that_differ_are_kept_unless_forced(tmp_path):
    call(*SMALL, "--out", tmp_path)
    before = (tmp_path / "test.jsonl").read_bytes()
    call(*SMALL, "--out", tmp_path)
    with pytest.raises(data.UserError, match=r"test.jsonl.*--force") as e:
        call(*SMALL, "--out", tmp_path, "--seed", 9)
    assert e.value.status == 2 and (tmp_path / "test.jsonl").read_bytes() == before
    call(*SMALL, "--out", tmp_path, "--seed", 9, "--force")
    assert (tmp_path / "test.jsonl").read_bytes() != before


# ---- wordings held out -------------------------------------------------------------------------------------

def test_wordings_held_out_stand_in_the_test_file_alone(tmp_path):
    call("--level", 3, "--train", 3000, "--valid", 200, "--test", 800, "--wordings", "test", "--out",
         tmp_path)
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
