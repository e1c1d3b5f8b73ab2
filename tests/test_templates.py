"""The template teacher: every problem against a world that is simulated here; grammar by rule; variety."""
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


def draw(rng, level=1, low=1, high=5, made_up=0.4, wordings="all"):
    n_steps = rng.choices(range(low, high + 1), teacher.STEP_SHARES[low - 1:high])[0]
    words = lambda: teacher.Words(rng, rng.random() < made_up, rng.random() < made_up)
    return teacher.draw_story(rng, level, n_steps, words, wordings)


@pytest.fixture(scope="module")
def stories():
    """(story, row) of many problems of all levels."""
    rng = Random(5)
    drawn = [draw(rng, level=(1, 1, 2, 3)[k % 4]) for k in range(N)]
    return [(story, teacher.write_problem(story)) for story in drawn]


# ---- the world: facts in, answers out; it knows nothing of equations and steps --------------------------------

LEGS = dict(dog=4, cat=4, horse=4, spider=8, bird=2, chicken=2, ant=6, bee=6, car=4, bicycle=2, tricycle=3,
            octopus=8, hand=5, week=7, year=12, hour=60, triangle=3, square=4, table=4, stool=3, day=24, cube=6,
            dozen=12, wagon=4, truck=6, pentagon=5, meter=100, quarter=25, dime=10, minute=60, crab=10, cow=4,
            sheep=4, nickel=5)
GAINS = {"gain", "come", "earn", "grows"}
LOSSES = {"lose", "go", "spend", "is shortened"}
CHANGES = {"gains twice": "+b+c", "loses twice": "-l-v", "loses and gains": "-l+b", "gains and loses": "+b-v",
           "go twice": "-l-v", "go and come": "-l+b", "come and go": "+b-v", "spends twice": "-l-v"}
RATIOS = {"times": "kj", "twice": 2, "half": Fraction(1, 2), "fraction": "q"}


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
        for names, key in ((what, lambda one: (who, one, when)), (who, lambda one: (one, what, when))):
            parts = [self.get(*key(one)) for one in re.split(", | and ", names)] if " and " in names else [None]
            if None not in parts:
                return sum(parts)
        kinds = [n for (a, b, c), n in self.now.items() if a == who and c == when
                 and (b.endswith(f" {what}") or [b, what] in WHOLES)]
        days = [n for (a, b, c), n in self.now.items() if a == who and b == what and c and not when]
        return sum(kinds or days) if kinds or days else None

    def put(self, who, what, when, n):
        self.now[who, what, when] = n
        return True

    def change(self, f, n, what=None):
        """n more of what S has; False: not known yet how many that were."""
        who, what, when = name(f), what or str(f["T"]), tail(f)
        before = self.get(who, what, when)
        return before is not None and self.put(who, what, when, before + n)

    def compare(self, f, of_other, of_this):
        """Of two amounts one follows from the other."""
        this = name(f), str(f["T"]), tail(f)
        ref = f["ref"]
        other = ((ref.name, *this[1:]) if hasattr(ref, "name") else
                 (this[0], this[1], ref) if ref in TIMES else (this[0], ref, this[2]))
        if (n := self.get(*other)) is not None:
            return self.put(*this, of_other(n))
        if (n := self.get(*this)) is not None:
            return self.put(*other, of_this(n))
        return False

    def read(self, kind, f):
        """Take in a fact; False: it cannot be understood yet."""
        n = SimpleNamespace(**{letter: f[letter] for letter in f if len(letter) == 1 and letter.islower()})
        who, what = name(f), str(f["T"])
        base = re.sub("^(there|is|costs) |, backwards$", "", kind)
        if kind in ("unneeded", "setting"):
            return True
        if kind in ("own", "act", "there", "money", "price", "be", "age", "weigh"):
            return self.put(who, what, tail(f), n.a)
        if kind == "spent":
            return self.pay(f, n.a)
        if kind in GAINS:
            return self.change(f, n.b)
        if kind in LOSSES:
            return self.change(f, -n.l)
        if kind in CHANGES:
            return self.change(f, sum(int(sign + "1") * getattr(n, letter)
                                      for sign, letter in re.findall("(.)(.)", CHANGES[kind])))
        if kind == "loses half" or kind == "loses part":
            before = self.get(who, what)
            self.found["lost"] = before / (2 if kind == "loses half" else n.q)
            return self.change(f, -self.found["lost"])
        if base in ("more", "less", "fewer"):
            k = next(getattr(n, one) for one in "blp" if hasattr(n, one))
            k = k if base == "more" else -k
            return self.compare(f, lambda other: other + k, lambda this: this - k)
        if base in RATIOS:
            k = RATIOS[base]
            k = next((getattr(n, one) for one in k if hasattr(n, one)), None) if isinstance(k, str) else k
            k = Fraction(1, k) if base == "fraction" else k
            return self.compare(f, lambda other: other * k, lambda this: Fraction(this) / k)
        if kind in ("gains some", "some come"):
            self.found[{"gains some": "got", "some come": "came"}[kind]] = n.g - self.get(who, what, tail(f))
        elif kind in ("loses some", "some go"):
            self.found[{"loses some": "lost", "some go": "went"}[kind]] = self.get(who, what, tail(f)) - n.l
        elif kind in ("had before a loss", "were before some left", "had money before"):
            self.found["at first"] = n.b + n.c
        elif kind in ("had before a gain", "were before some came"):
            self.found["at first"] = n.a - n.l
        elif kind == "had before two losses":
            self.found["at first"] = n.c + n.b + n.y
        elif kind in ("shares the rest", "packs the rest"):
            self.found["share" if kind[0] == "s" else "boxes"] = Fraction(self.get(who, what) - n.l) / n.z
        elif kind in ("form groups", "form equal groups"):
            asked = "form groups" if kind == "form groups" else "in a group"
            self.found[asked] = Fraction(self.get(who, what, tail(f))) / n.d
        elif kind == "does the rest":
            if self.get(who, what, tail(f)) is None:
                return False
            self.found["takes"] = Fraction(n.g - self.get(who, what, tail(f))) / n.z
        elif kind == "price of others":
            self.found["cost of others"] = Fraction(n.s) / n.n * n.w
        elif kind == "splits the cost":
            self.found["each pays"] = Fraction(self.spent[who]) / n.d
        elif kind == "several do it":
            self.found["all of them"] = n.n * n.w * n.r
        elif kind == "hours a day":
            return self.put(who, what, "", n.r * n.w * n.n)
        elif kind == "had before both":
            self.found["at first"] = n.a - n.l + n.b
        elif kind in ("gains groups", "gains from each"):
            return self.change(f, n.n * n.m)
        elif kind in ("loses groups", "gives each"):
            return self.change(f, -n.n * n.m)
        elif kind in ("wants", "wants to do", "wants to buy"):
            if self.get(who, what, tail(f)) is None:
                return False
            self.found["need"] = n.g - self.get(who, what, tail(f))
        elif kind == "saves up":
            self.found["weeks"] = (n.g - self.get(who, what)) / n.z
        elif kind == "half price":
            self.found["sale"] = Fraction(self.get(who, what)) / 2
        elif kind == "other part":
            self.found["same"] = n.g - n.a
        elif kind in ("rest", "rest after a share"):
            of = self.get(who, what, tail(f))
            self.found["other kind"] = of - (n.l if kind == "rest" else Fraction(of) / n.q)
        elif kind in ("share of a kind", "half of a kind"):
            self.found["kind"] = Fraction(self.get(who, what, tail(f))) / (n.q if kind[0] == "s" else 2)
        elif kind in ("groups", "each person has", "dozens", "there are groups"):
            return self.put(who, what, "", n.n * (12 if kind == "dozens" else n.m))
        elif kind == "in so many groups":
            self.found["in groups"] = n.n * n.m
        elif kind in ("number of groups", "groups for so many"):
            self.found["groups" if kind[0] == "n" else "groups for"] = Fraction(n.t) / n.m
        elif kind == "size of groups":
            self.found["each"] = Fraction(n.t) / n.n
        elif kind == "contents":
            if self.get(who, what) is None:
                return False
            return self.put(who, str(f["content"]), "", self.get(who, what) * n.m)
        elif kind in ("shares", "packs by size", "packs by number", "uses daily", "can afford", "is cut"):
            asked = {"shares": "share", "packs by size": "boxes", "packs by number": "each", "is cut": "pieces",
                     "uses daily": "lasts", "can afford": "can buy"}[kind]
            self.found[asked] = Fraction(self.get(who, what)) / n.d
        elif kind == "sells at a price":
            return self.put(who, "dollars", "", self.get(who, what) * n.p)
        elif kind in ("buys at a price", "buys more at a price"):
            return self.pay(f, n.n * n.p)
        elif kind == "spends more":
            return self.pay(f, n.p)
        elif kind == "price of one":
            self.found["one costs"] = Fraction(n.s) / n.n
        elif kind == "number bought":
            self.found["bought"] = Fraction(n.s) / n.p
        elif kind == "cost of so many":
            self.found["cost of"] = n.n * n.p
        elif kind == "pays with":
            self.found["change"] = n.i - self.spent[who]
        elif kind == "had money":
            return self.put(who, "dollars", "", n.g - self.spent[who])
        elif kind == "buys from money":
            return self.change(f, -n.n * n.p)
        elif kind in ("for so long", "for so many weeks"):
            return self.put(who, what, "", n.r * (n.n if kind == "for so long" else 7 * n.w))
        elif kind == "in so long":
            self.found["in time"] = n.r * n.n
        elif kind in ("how long", "how much a day"):
            self.found["takes" if kind == "how long" else "rate"] = Fraction(n.u) / (n.r if kind == "how long" else n.n)
        elif kind in ("parts", "parts of so many"):
            self.found[kind.removesuffix(" so many")] = LEGS[f["T"].one] * (n.b if kind == "parts" else n.n)
        else:
            raise AssertionError(f"a kind of fact that this simulation does not know: {kind}")
        return True

    def pay(self, f, n):
        self.spent[name(f)] += n
        return True


def name(f):
    return f["S"].name if f["S"] else ""


def tail(f):
    return f["tail"] if f["tail"] in TIMES else ""


TIMES = {time for times in (*teacher.TIMES, *teacher.SPOTS) for time in times}
WHOLES = [[str(kind), str(whole)] for *kinds, whole in teacher.WHOLES for kind in kinds]


def answer(story):
    """What the world says to the last question of a story."""
    world, step = World(story), story.steps[-1]
    f, asks = step.fields, asked_for(step)
    who, what = name(f), str(f["T"])
    if asks in world.found:
        return world.found[asks]
    if asks in ("pay", "spend in all"):
        return world.spent[who]
    if asks in ("diff", "fewer"):
        ref = f["ref"]
        other = ((ref.name, what, tail(f)) if hasattr(ref, "name") else
                 (who, what, ref) if ref in TIMES else (who, ref, tail(f)))
        return abs(world.get(who, what, tail(f)) - world.get(*other))
    if asks in ("in years", "years ago"):
        return world.get(who, what) + (f["y"] if asks == "in years" else -f["l"])
    if asks == "content":
        return world.get(who, str(f["content"]))
    if asks == "earns":
        return world.get(who, "dollars")
    if asks in ("same", "total"):
        return world.get(who, what, tail(f))
    if asks in ("now", "left", "be now", "total there", "they have"):
        return world.get(who, what, tail(f) if f.quantity.form in ("there", "act") else "")
    raise AssertionError(f"a question that this simulation does not know: {asks}")


def asked_for(step):
    """The name in QUESTIONS of how a step is asked for, without its forms."""
    names = [name for name, wordings in teacher.QUESTIONS.items() if wordings is step.wordings]
    name = names[0] if names[0] == "total there" else re.sub(" (money|there|act|price|be|age|weigh)$", "", names[0])
    return "same" if name in ("have", "money", "act", "there", "price", "be", "age", "weigh") else name


def test_the_world_answers_every_question(stories):
    for story, row in stories:
        assert answer(story) == Fraction(row["answer"]), row


# ---- rows ------------------------------------------------------------------------------------------------------

def test_rows_have_steps_that_compute(stories):
    for story, row in stories:
        assert row["source"] == "templates" and len(row["steps"]) == len(story.steps) == story.n_steps
        assert row["problem"][-1] in "?."
        for step in row["steps"]:
            (expression, result), = re.findall(r"<<([^=<>]+)=([^<>]+)>>", step["solution"])
            a, sign, b = re.fullmatch(r"([\d.]+)([-+*/])([\d.]+)", expression).groups()
            a, b = Fraction(a), Fraction(b)
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
            said = step["solution"].split(">>")[1]
            assert value == Fraction(result) == Fraction(said), step
            assert result == data.calculate(expression), step  # what a student finds there when it solves
        assert Fraction(result) == Fraction(row["answer"])
        assert len({step["question"] for step in row["steps"]}) == len(row["steps"])


PARTS = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "tenth": 10}


def test_numbers_are_those_of_children_and_stand_in_the_text(stories):
    """Every number of an equation is told, found by an earlier step, or a share, a week, a dozen."""
    for story, row in stories:
        text = row["problem"].replace(",", "")
        told = {Fraction(n.rstrip(".")) for n in re.findall(r"\d[\d.]*", text)}
        told |= {Fraction(k) for k, word in enumerate(teacher.NUMBER_WORDS) if re.search(rf"\b{word}\b", text, re.I)}
        told |= {Fraction(PARTS[word]) for word in PARTS if word in text.lower()}
        told |= {Fraction(12)} if "dozen" in text else set()
        told |= {Fraction(2)} if re.search("twice|double", text, re.I) else set()
        told |= {Fraction(7)} if "week" in text else set()
        told |= {Fraction(n) for thing, n in LEGS.items() if thing in text or teacher.plural(thing) in text}
        for step in row["steps"]:
            (expression, result), = re.findall(r"<<([^=<>]+)=([^<>]+)>>", step["solution"])
            for number in re.findall(r"[\d.]+", expression):
                assert Fraction(number) in told, (number, row)
            told.add(Fraction(result))
            assert 1 <= Fraction(result) <= 1_000_000
        money = re.search(r"money|dollar|cost|price|pay|spend|change|how much", row["steps"][-1]["question"], re.I)
        assert Fraction(row["answer"]).denominator == 1 or money, row


def test_the_last_sub_question_is_the_problems_own(stories):
    for _, row in stories:
        questions = [step["question"].lower() for step in row["steps"]]  # one of the earlier ones may be the same
        assert any(row["problem"].lower().endswith(question) for question in questions)


# ---- grammar ---------------------------------------------------------------------------------------------------

ARTICLES = re.compile(r"\b(a) (?=[aeio]|um)|\b(an) (?![aeio]|um|hour)", re.I)
MANY = {teacher.plural(noun) for nouns in teacher.NOUNS.values() for noun in nouns if " " not in noun}
MANY -= {"fish", "sheep", "goldfish", "leaves"}


def test_grammar(stories):
    """a/an; singular behind 1; nothing unfilled; capitals; he and she are of somebody who is in the story."""
    for story, row in stories:
        for text in [row["problem"], *(text for step in row["steps"] for text in step.values())]:
            assert not re.search(r"[{}\[\]|_]|  | [.,?]|\.\.|None", text), text
            assert all(part[0].isupper() or part[0].isdigit() or part[0] in "$<"
                       for part in re.split(r"(?<=[.?]) ", text) if part), text
        for match in re.finditer(r"(?<![\d,.$/])\b1 (\w+)(?: (\w+))?", row["problem"]):
            assert match[1] in ("of", "more", "fewer", "less", "and", "to", "was", "is", "will") or not {
                match[1], match[2]} & MANY, row["problem"]
        assert not ARTICLES.search(row["problem"]), row["problem"]
        sexes = {one.sex for one in story.people} | {fact.fields["S"].sex for fact in story.facts if fact.fields["S"]}
        for pronoun, sex in (("he", "he"), ("his", "he"), ("him", "he"), ("she", "she"), ("her", "she")):
            assert sex in sexes or not re.search(rf"\b{pronoun}\b", row["problem"], re.I), row["problem"]


@pytest.mark.parametrize("verb, tense, many, form", [
    ("buy", "past", False, "bought"), ("give away", "present", False, "gives away"), ("have", "present", True, "have"),
    ("be", "past", True, "were"), ("carry", "present", False, "carries"), ("plan", "past", False, "planned"),
    ("catch", "present", False, "catches"), ("DO", "past", False, "did"), ("DO", "will", False, "will"),
    ("be added", "past", False, "was added"), ("play", "past", True, "played")])
def test_verbs_have_their_forms(verb, tense, many, form):
    assert teacher.conjugate(verb, tense, many) == form


def test_nouns_have_their_plurals():
    words = "box", "slice of bread", "berry", "leaf", "toy car", "tomato", "paintbrush", "key"
    assert [*map(teacher.plural, words)] == ["boxes", "slices of bread", "berries", "leaves", "toy cars", "tomatoes",
                                             "paintbrushes", "keys"]


# ---- variety ---------------------------------------------------------------------------------------------------

def skeleton(story, text):
    """A problem's text but for names, nouns and numbers."""
    words = {one.name for one in story.people}
    for part in story.facts + story.steps:
        things = [value for value in part.fields.values() if isinstance(value, teacher.Thing)]
        words |= {word for thing in things for word in (thing.one, thing.many, thing.of(1), str(thing))}
        words |= {re.sub("^the ", "", value.name) for value in part.fields.values() if isinstance(value, teacher.Entity)}
        words |= {part.fields["item"].split(" ", 1)[1]} if "item" in part.fields else set()
    known = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    number = "|".join(teacher.NUMBER_WORDS[2:])
    return re.sub(rf"\$?\d[\d,.]*\d|\$?\d|\b(?:{number})\b", "#", re.sub(rf"\b(?:{known})\b", "_", text, flags=re.I))


def test_hardly_two_problems_share_a_text_but_for_names_nouns_and_numbers(stories):
    counts = Counter(skeleton(story, row["problem"]) for story, row in stories)
    assert sum(n for n in counts.values() if n > 1) < 0.02 * len(stories)


def told_kinds():
    """{kind of fact: its wordings}"""
    return teacher.TELL | {kind.name: kind.say for kind in teacher.KINDS if kind.say and kind.say != ["@"]}


def test_the_language_is_rich():
    verbs = {verb for verb, _ in teacher.GAINS + teacher.LOSSES + teacher.ACTS}
    verbs |= {verb for _, _, *two in teacher.SCENES for verb in two}
    nouns = {noun for nouns in teacher.NOUNS.values() for noun in nouns} | {thing.one for _, thing in teacher.ACTS}
    kinds = {name: wordings for name, wordings in told_kinds().items() if not name.endswith("backwards")}
    assert len(kinds) >= 60 and sum(map(len, kinds.values())) >= 6 * len(kinds)
    assert len(verbs) >= 150 and len(nouns) >= 400
    assert len({one for ways in teacher.QUESTIONS.values() for one in ways}) >= 40


def test_each_kind_wording_verb_and_question_occurs(stories):
    used = {(fact.kind, fact.wording) for story, _ in stories for fact in story.facts}
    verbs = {fact.fields[name] for story, _ in stories for fact in story.facts for name in ("V", "GET", "LOSE")
             if name in fact.fields}
    asked = {id(step.wordings) for story, _ in stories for step in story.steps}
    missing = {(kind, one) for kind, wordings in told_kinds().items() for one in wordings} - used
    rng = Random(6)
    for _ in range(2 * N):  # wordings that are too rare to be sure of
        if missing:
            missing -= {(fact.kind, fact.wording) for fact in draw(rng, level=3, high=2).facts}
    assert not missing
    assert not {verb for verb, _ in teacher.GAINS + teacher.LOSSES + teacher.ACTS} - verbs
    assert not [name for name, wordings in teacher.QUESTIONS.items() if id(wordings) not in asked]


# ---- splits, seeds, held-out wordings, made-up words -----------------------------------------------------------

def rows_of(split="train", n=300, **changes):
    args = SimpleNamespace(**{"seed": 0, split: n, "steps": (1, 5), "made_up": 0.4, "made_up_test": 0.0,
                              "wordings": "all", "level": 1} | changes)
    return teacher.draw_split(split, args, set(), SimpleNamespace(update=lambda: None))


def test_the_same_seed_gives_the_same_rows(tmp_path):
    for hash_seed in "1", "2":  # in another process, whose sets have another order
        command = [sys.executable, teacher.__file__, "--train", "300", "--valid", "1", "--test", "1", "--out", hash_seed]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "1/train.jsonl").read_bytes() == (tmp_path / "2/train.jsonl").read_bytes()
    assert rows_of() == rows_of() and rows_of(n=50) == rows_of()[:50]
    assert rows_of()[0]["problem"] != rows_of(seed=1)[0]["problem"] != rows_of("test")[0]["problem"]


def test_no_problem_twice():
    texts = [row["problem"] for row in rows_of(n=3000, steps=(1, 1))]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("steps", [(1, 1), (3, 3), (6, 8)])
def test_steps_are_as_many_as_asked_for(steps):
    assert {len(row["steps"]) for row in rows_of(n=100, steps=steps)} <= set(range(steps[0], steps[1] + 1))


def test_made_up_words_of_test_files_stand_in_no_training_file():
    rng, nouns = Random(1), sum(teacher.NOUNS.values(), teacher.BOYS)
    train, test = ({teacher.make_up_word(rng, training, nouns) for _ in range(5000)} for training in (True, False))
    train, test = (words | set(map(teacher.plural, words)) for words in (train, test))
    assert len(test) > 3000 and not train & test
    texts = " ".join(row["problem"] for row in rows_of("test", n=300, made_up_test=1.0)).lower()
    real = set(re.findall("[a-z]+", Path(teacher.__file__).read_text().lower()))
    real |= set(map(teacher.plural, real))  # "pines", "he plays"
    assert not train & set(re.findall("[a-z]{5,}", texts)) - real


def test_held_out_wordings_stay_out():
    held_out = {(kind, wordings[1]) for kind, wordings in told_kinds().items()}
    for part in ("train", "test"):
        rng = Random(3)
        for _ in range(300):
            story = draw(rng, wordings=part, high=3)
            assert all(((fact.kind, fact.wording) in held_out) == (part == "test") for fact in story.facts)
