"""The template teacher: every problem against a simulation of its world that is written here, grammar by rule, variety."""
import re
from collections import Counter, defaultdict
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


# ---- the world: facts in, answer out; knows nothing of steps -----------------------------------------------------------

GAIN, LOSS = {"gain", "given", "earn", "come"}, {"lose", "gives", "go", "spend"}
VAGUE = {"some gained": 1, "some given": 1, "some came": 1, "some lost": -1, "some gave": -1, "some left": -1}
RATIO = {"times": None, "twice": 2, "half": Fraction(1, 2), "fraction": None}
LEGS = dict(dog=4, cat=4, horse=4, spider=8, bird=2, chicken=2, ant=6, bee=6, car=4, bicycle=2, tricycle=3,
            octopus=8, hand=5, week=7,
            year=12, hour=60, triangle=3, square=4, table=4, stool=3, day=24, cube=6, dozen=12, wagon=4,
            truck=6, pentagon=5, meter=100,
            quarter=25, dime=10, minute=60, crab=10, cow=4, sheep=4, nickel=5)
PARTS = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}


WHOLES = defaultdict(list)
for *kinds, whole in teacher.WHOLES:
    WHOLES[str(whole)] += map(str, kinds)
TIMES = [time for times in (*teacher.TIMES, *teacher.SPOTS) for time in times]
STATES = {"have", "act", "money", "there", "be", "age", "weigh", "now has", "now there"}


class World:
    """Replays what the facts of a story say, in the order in which they say it: who has how many of what, and when."""

    def __init__(self, story):
        self.now, self.first, self.delta, self.spent, self.paid = {}, {}, Counter(), Counter(), Counter()
        self.found = {}  # what is no amount that somebody has: prices, boxes, shares, events, totals
        self.places = len({fact.fields["tail"] for fact in story.facts if fact.clause.form == "there"
                           and fact.fields["tail"] in TIMES}) > 1 or any(fact.fields.get("ref") in TIMES
                               for fact in story.facts)
        last = story.steps[-1].clause
        self.places |= last.form == "there" and last.tail in TIMES and last.asks == "there" and len(story.steps) == 1
        done = last.V != "have" and last.asks in ("total", "diff",
                                                  "fewer")  # what is lost later does not count
        silent = "unneeded", "setting", "some had", "some there", "the rest"
        pending = [fact for fact in story.facts if not fact.kind.startswith(silent)
                   and not (done and fact.kind in ("lose", "gives") and str(fact.clause.T) == str(last.T))]
        waiting = []
        for fact in pending:
            waiting.append(fact)
            k = 0
            while k < len(waiting):  # "Ann has 3 more than Tom" waits for what Tom has
                if self.read(waiting[k].kind, waiting[k].fields, waiting[k].clause):
                    del waiting[k]
                    k = 0
                else:
                    k += 1

    def get(self, who, what, when="", of=None):
        """An amount; of "Tom and Ann", of "apples and pears", of apples where red and green ones were told: a sum."""
        amounts = self.now if of is None else of
        if (who, what, when) in amounts:
            return amounts[who, what, when]
        if not when and (held := self.in_boxes(who, what)):
            parts = held
        elif " and " in what:
            parts = [self.get(who, one, when) for one in re.split(", | and ", what)]
        elif " and " in who:
            parts = [self.get(one, what, when) for one in re.split(", | and ", who)]
        elif not when:
            parts = [n for (a, b, c), n in self.now.items() if a == who
                     and (b.endswith(" " + what) or b in WHOLES.get(what, ()) or b == what and c)]
            if ("total", who, what) in self.found:
                parts = [self.found["total", who, what]]
        else:
            parts = []
        return self.other_part(who, what, when) if not parts or None in parts else sum(parts)

    def in_boxes(self, who, what):
        """What somebody's boxes hold, if so many are in each: a list of one amount, or of none."""
        boxes, each = self.found.get(("content", what), ("", None))
        n = self.get(who, boxes) if each else None
        return [] if n is None else [n * each]

    def other_part(self, who, what, when):
        """Of a whole that was told, what its other parts leave."""
        for key, n in self.found.items():
            if key[0] == "total" and (who in key[1] and (what.endswith(key[2]) or what in WHOLES.get(key[2],
                ()) or what in re.split(", | and ", key[2]))):
                others = [(a, b, c) for a, b, c in self.now if a in key[1]
                          and (b.endswith(" " + key[2]) or b in WHOLES.get(key[2], ())
                               or b in re.split(", | and ", key[2]))
                          and (a, b, c) != (who, what, when)]
                here = [one for one in others if one[2] == when]  # at this time or place
                if others:
                    other = self.now[(here or others)[0]]
                    self.put(who, what, when, n - other + self.delta[who, what, when])
                    return self.now[who, what, when]
        return None

    def put(self, who, what, when, n):
        """Now it is so many, and at first it was as many less what was added since."""
        key = who, what, when
        self.now[key] = n
        self.first.setdefault(key, n - self.delta[key])
        return True

    def change(self, who, what, n):
        key, before = (who, what, ""), self.get(who, what)
        if before is None:
            self.delta[key] += n
        else:
            self.first.setdefault(key, before)
            self.now[key] = before + n
        return True

    def relate(self, mine, other, forwards, backwards):
        a, b = self.get(*mine), self.get(*other)
        if a is None and b is not None:
            return self.put(*mine, forwards(b))
        if b is None and a is not None:
            return self.put(*other, backwards(a))
        return a is not None

    def pay(self, who, n, what):
        """Somebody spends so many dollars; perhaps the story says only later what there was."""
        self.paid[who] += n
        self.found["cost", who, what] = n
        if self.get(who, "dollars") is None:
            self.spent[who] += n
            self.delta[who, "dollars", ""] -= n
            return True
        return self.change(who, "dollars", -n)

    def read(self, kind, f, clause):
        """Take in a fact; False: not yet."""
        who, what, n = name(f.get("S")), str(clause.T), clause.value
        when = f["tail"] if f["tail"] in TIMES and (who or self.places) else ""
        number = lambda field: Fraction(re.search(r"[\d.]+", f[field](teacher.TEACHER))[0])
        base = kind.removeprefix("there ").removeprefix("is ")
        if kind in ("now has", "now there"):
            if (key := ("vague", who, what)) in self.found:
                self.found["event", *self.found[key], what] = abs(n - self.get(who, what))
            return self.put(who, what, "", n)
        if kind == "money":
            return self.put(who, what, "", n - self.spent[who])
        if kind == "cost":
            return self.put(who, what, "", n)
        if kind in STATES:
            return self.put(who, what, when, n)
        if kind in ("all", "all there"):
            self.found["total", who, what] = n
            return True
        if kind in VAGUE:
            self.found["vague", who, what] = (name(clause.S), clause.V)
            return True
        if kind == "spend":
            return self.pay(who, n, f["item"])
        if kind in GAIN | LOSS:
            self.found["event", name(clause.S), clause.V, what] = n
            if kind == "gives":
                self.get(f["O"].name, what) is not None and self.change(f["O"].name, what, n)
            return self.change(who, what, n if kind in GAIN else -n)
        if kind in ("loses half", "loses part"):
            before = self.get(who, what)
            if before is None:
                return False
            self.found["event", who, clause.V, what] = gone = before / PARTS[f["nth"] or "half"]
            return self.change(who, what, -gone)
        if base in ("more", "fewer", *RATIO):
            ref = f["O"] if kind.startswith("is ") else f["ref"]
            other = (ref.name, what, when) if hasattr(ref, "name") else (who, what,
                ref) if ref in TIMES else (who, ref, when)
            k = n if base == "times" else Fraction(1,
                                                   PARTS[f["nth"]]) if base == "fraction" else RATIO.get(base)
            sign = -1 if base == "fewer" else 1
            if base in RATIO:
                return self.relate((who, what, when), other, lambda b: b * k, lambda a: a / Fraction(k))
            return self.relate((who, what, when), other, lambda b: b + sign * n, lambda a: a - sign * n)
        if kind in ("groups", "there groups", "each person"):
            who = f"the {clause.T}" if kind == "each person" else who
            return self.put(who, f["T"], "", n * number("m"))
        if kind == "each has":
            self.found["each", f["group"]] = number("m")
            self.found["content", f["T"]] = teacher.plural(f["group"]), number("m")
            return True
        if kind in ("buys groups", "gives each", "gets from each"):
            lost = kind == "gives each" or clause.V in ("sell", "give away", "use", "donate", "lose")
            return self.change(who, f["T"], (-1 if lost else 1) * n * number("m"))
        if kind in ("shares", "packs of", "packs into", "uses daily", "sells at", "wants", "cuts", "some are",
                    "share is"):
            thing = f["them"].removeprefix("the ") if kind in ("shares", "packs into",
                                                               "sells at") else f["T"] if kind in ("some are",
                                                                   "share is") else what
            if kind == "wants" and f["bare"] != "have":
                thing = what
            of = next((n for key, n in list(self.now.items())[::-1] if key[1] == thing),
                      None) if kind in ("some are", "share is") else self.get(who, thing)
            if of is None:
                return False
            key = {"shares": ("share", what), "packs of": ("boxes", f.get("groups")),
                   "packs into": ("each", clause.T.one), "uses daily": ("lasts", what),
                   "sells at": ("sold", who), "wants": ("need", who), "cuts": ("pieces",),
                   "some are": ("rest",)}.get(kind)
            if kind == "share is":
                self.found["part",] = Fraction(of) / PARTS[f["share"].split(" ")[-1]]
                self.found["rest",] = of - self.found["part",]
                return True
            self.found[key] = of * n if kind == "sells at" else n - of if kind == "wants" else of - n if kind == "some are" else Fraction(of) / n
            return self.put(who, "dollars", "", of * n) if kind == "sells at" else True
        if kind in ("per", "per for"):
            self.found["rate", who] = n
            return self.put(who, what, "", n * number("D") * (7 if f["unit"] == "day"
                                                              and "week" in f["D"](teacher.TEACHER)
                                                              else 1)) if kind == "per for" else True
        if kind == "for so long":
            return ("rate", who) in self.found and self.put(who, clause.more["thing"], "",
                                                            n * self.found["rate", who])
        if kind == "in so long":
            self.found["rate", who] = Fraction(n) / number("D")
            return True
        if kind == "costs":
            self.found["price", f["one"].removesuffix(" ")] = number("P")
            return True
        if kind == "paid for all":
            self.found["price", clause.T.of(1)] = number("P") / n
            return True
        if kind in ("buys", "buys at"):
            price = number("P") if kind == "buys at" else self.found.get(("price", clause.T.of(1)))
            return price is not None and self.pay(who, n * price, what)
        if kind == "spent in all":
            self.found["spent", who] = n
            return True
        if kind == "pays with":
            self.found["bill"] = n
            return True
        if kind in ("cut off", "grows"):
            return self.get(who, what) is not None and self.change(who, what, n if kind == "grows" else -n)
        if kind == "has parts":
            return True
        if kind == "parts":
            self.found["legs"] = n * LEGS[clause.T.one]
            return True
        raise AssertionError(f"a kind of fact that this simulation does not know: {kind}")


def name(S):
    return S.name if S else ""


def answer(story):
    """What the world says to the story's last question."""
    world, c = World(story), story.steps[-1].clause
    who, what, asks = "" if c.form in ("there", "there diff", "move") else name(c.S), str(c.T), c.asks
    when = c.tail if c.tail in TIMES and asks not in ("more there", "now there") and (who
        or world.places) else ""
    person = name(c.S)
    if asks in ("diff", "fewer", "there diff", "be diff"):
        ref = c.more["O"] if asks == "be diff" else c.more["ref"]
        other = (ref.name, what, when) if hasattr(ref, "name") else (who, what,
            ref) if ref in TIMES else (who, ref, when)
        a, b = world.get(who, what, when), world.get(*other)
        return None if None in (a, b) else b - a if asks == "fewer" else a - b
    if asks in ("event diff", "move diff"):
        events = {teacher.conjugate(key[2], c.tense, asks == "move diff"): n for key,
                  n in world.found.items() if key[0] == "event"}
        return events[teacher.conjugate(c.V, c.tense, asks == "move diff")] - events[c.more["other"]]
    if asks == "pay":
        costs = {key[2]: n for key, n in world.found.items() if key[:2] == ("cost", person)}
        return sum(costs.values()) if c.tail == "in all" else costs[c.tail.removeprefix("on ").removeprefix("the ")]
    if asks == "change":
        return world.found["bill"] - world.paid[person]
    if asks == "can buy":
        return Fraction(world.get(person, "dollars")) / world.found["price", c.T.of(1)]
    if asks == "cost" and ("price", c.T.of(1)) in world.found or asks == "cost" and person.startswith("one "):
        return world.found["price", person.removeprefix("one ")]
    key = {"each gets": ("share", what), "boxes": ("boxes", what),
           "lasts": ("lasts", person.removeprefix("the ")), "need more": ("need", person),
           "rate": ("rate", person)}.get(asks)
    key = ("share", story.facts[-1].clause.T and plural_of(person)) if asks == "each gets" else key
    if key:
        return world.found.get(key)
    if asks == "so long":
        return Fraction(world.get(person, c.more["thing"])) / world.found["rate", person]
    if asks == "age" and c.tail not in ("", "together", "now"):
        k = int(re.search(r"\d+", c.tail)[0])
        return world.get(who, what) + (-k if "ago" in c.tail else k)
    if asks == "each":
        group = c.tail.split(" each ")[1]
        if ("each", group) in world.found:
            return world.found["each", group]
        total, number = world.get("", what) or next((n for k, n in world.found.items() if k[0] == "total"),
                                                    None), [n for (a, b, _), n in world.now.items()
                                                            if b == teacher.plural(group)]
        return Fraction(total, number[0])
    if asks in ("at first", "there at first"):
        return world.first.get((who, what, ""))
    if ("event", person, c.V, what) in world.found and asks in ("act", "move"):
        return world.found["event", person, c.V, what]
    if asks == "in groups":
        return world.found["each", c.tail and teacher_one(story)] * int(re.search(r"\d+", c.tail)[0])
    if asks == "cost of":
        return world.found["price", story.steps[0].operands[0].T.of(1)] * int(re.search(r"\d+", c.tail)[0])
    if asks == "in time":
        return world.found["rate", person] * int(re.search(r"\d+", c.tail)[0])
    if re.match(r"\d", person) and len(story.steps) == 1:
        return int(person.split(" ")[0]) * LEGS[[k for k in LEGS if person.endswith(teacher.plural(k))
                                                 or person.endswith(k)][0]]
    if ("part",) in world.found and what.split(" ")[0] in [f.fields.get("adj") for f in story.facts
                                                           if f.kind == "share is"]:
        return world.found["part",]
    if what == "pieces":
        return world.found["pieces",]
    if "rest" in str(world.found.keys()) and what.split(" ")[0] in [f.fields.get("adj") for f in story.facts
        if f.kind == "the rest"]:
        return world.found["rest",]
    if "legs" in world.found:
        return world.found["legs"]
    if ("spent", person) in world.found and asks == "act":
        return world.found["spent", person] / world.found["price", c.T.of(1)]
    found = world.first.get((who, what, when)) if asks == "act" else None
    found = world.get(who, what, when) if found is None else found
    if found is None:  # the other part of a whole
        totals = [n for key, n in world.found.items() if key[0] == "total"]
        if len(totals) == 1 and ("each" in str(list(world.found)) and asks in ("have", "there")):
            return totals[0] / next(n for key, n in world.found.items() if key[0] == "each")
        told = [n for (a, b, t), n in world.now.items()]
        found = totals[0] - told[0] if totals and told else None
    return found


def teacher_one(story):
    return next(f.fields["group"] for f in story.facts if f.kind == "each has")


def plural_of(person):
    return teacher.plural(person.removeprefix("each "))


def test_the_world_answers_every_question(stories):
    unknown = 0
    for story, row in stories:
        found = answer(story)
        unknown += found is None
        assert found in (None, Fraction(row["answer"])), (found, row)
    assert unknown < 0.01 * len(stories)


# ---- rows --------------------------------------------------------------------------------------------------------------

def test_rows_have_steps_that_compute(stories):
    for story, row in stories:
        assert row["source"] == "templates" and len(row["steps"]) == len(story.steps) == story.n_steps
        assert row["problem"].endswith(story_end := row["problem"][-1]) and story_end in "?."
        for step in row["steps"]:
            (expression, result), = re.findall(r"<<([^=<>]+)=([^<>]+)>>", step["solution"])
            numbers = [Fraction(n) for n in re.findall(r"[\d.]+", expression)]
            operators = re.findall(r"[-+*/]", expression)
            value = numbers[0]
            for operator, number in zip(operators, numbers[1:]):
                value = {"+": value + number, "-": value - number, "*": value * number,
                         "/": value / number}[operator]
            said = re.search(r"[\d.]*\d", step["solution"].split(">>")[1])[0]
            assert value == Fraction(result) == Fraction(said), step
            assert result == data.calculate(expression), step  # what a student finds there when it solves
        assert Fraction(result) == Fraction(row["answer"])


def test_numbers_are_those_of_children_and_stand_in_the_text(stories):
    """Every number of an equation is told by the problem, found by an earlier step, or a share, a week, a dog's legs."""
    for story, row in stories:
        text = row["problem"].replace(",", "")
        told = {Fraction(n.rstrip(".")) for n in re.findall(r"\d[\d.]*", text)}
        told |= {Fraction(k) for k, word in enumerate(teacher.NUMBER_WORDS)
                 if re.search(rf"\b{word}\b", text, re.I)}
        told |= {Fraction(PARTS[word]) for word in PARTS if word in text.lower()} | ({Fraction(12)}
            if "dozen" in text else set())
        told |= {Fraction(2)} if re.search("twice|double", text, re.I) else set()
        told |= {Fraction(7)} if "week" in text else set()
        told |= {Fraction(legs) for thing, legs in LEGS.items() if thing in text
                 or teacher.plural(thing) in text}
        for step in row["steps"]:
            (expression, result), = re.findall(r"<<([^=<>]+)=([^<>]+)>>", step["solution"])
            for number in re.findall(r"[\d.]+", expression):
                assert Fraction(number) in told, (number, row)
            told.add(Fraction(result))
            assert 1 <= Fraction(result) <= 1_000_000
            assert Fraction(result).denominator == 1 or "dollar" in step["solution"]


# ---- grammar -----------------------------------------------------------------------------------------------------------

VOWEL = re.compile(r"\b(a) (?=[aeio]|um)|\b(an) (?![aeio]|um|hour)", re.I)


def test_grammar(stories):
    """a/an; singular behind 1; nothing unfilled; sentences begin with a capital; he and she are those of the right person."""
    for story, row in stories:
        texts = [row["problem"], *(text for step in row["steps"] for text in step.values())]
        for text in texts:
            assert not re.search(r"[{}\[\]|_]|  | [.,?]|\.\.|None", text), text
            assert all(part[0].isupper() or part[0].isdigit() or part[0] in "$<"
                       for part in re.split(r"(?<=[.?]) ", text) if part), text
        for match in re.finditer(r"(?<![\d,.$/])\b1 (\w+)(?: (\w+))?", row["problem"]):
            assert match[1] in ("of", "more", "fewer", "less", "and", "to", "was", "is",
                                "will") or not {match[1], match[2]} & MANY, row["problem"]
        for match in VOWEL.finditer(row["problem"]):
            raise AssertionError((match[0], row["problem"]))
        sexes = {one.sex for one in story.people} | {fact.clause.S.sex for fact in story.facts
                                                     if fact.clause.S}
        for pronoun, sex in (("he", "he"), ("his", "he"), ("him", "he"), ("she", "she"), ("her", "she")):
            if re.search(rf"\b{pronoun}\b", row["problem"], re.I):
                assert sex in sexes, (pronoun, row["problem"])


MANY = {teacher.plural(noun) for nouns in teacher.NOUNS.values() for noun in nouns
        if " " not in noun} - {"fish", "sheep", "goldfish", "leaves"}


@pytest.mark.parametrize("verb, tense, many, form", [
    ("buy", "past", False, "bought"), ("give away", "present", False, "gives away"),
    ("have", "present", True, "have"),
    ("be", "past", True, "were"), ("carry", "present", False, "carries"), ("plan", "past", False, "planned"),
    ("catch", "present", False, "catches"),
    ("DO", "past", False, "did"), ("DO", "will", False, "will"), ("be added", "past", False, "was added"),
    ("play", "past", True, "played")])
def test_verbs_have_their_forms(verb, tense, many, form):
    assert teacher.conjugate(verb, tense, many) == form


def test_nouns_have_their_plurals():
    assert [teacher.plural(one) for one in ("box", "slice of bread", "berry", "leaf", "toy car", "tomato",
                                            "paintbrush", "key")] == [
        "boxes", "slices of bread", "berries", "leaves", "toy cars", "tomatoes", "paintbrushes", "keys"]


# ---- variety -----------------------------------------------------------------------------------------------------------

def skeleton(story, text):
    """A problem's text but for names, nouns and numbers."""
    words = {re.sub("^(the|each|one) ", "", one.name.removesuffix("'s")) for one in story.people}
    for clause in story.clauses():
        words |= {clause.T.one, clause.T.many} | ({re.sub("^(the|each|one) ", "", clause.S.name)} if clause.S
                                                  else set())
    words |= {str(fact.fields[name]) for fact in story.facts for name in ("one", "group", "groups")
              if fact.fields.get(name)}
    words |= {fact.fields["item"].split(" ", 1)[1] for fact in story.facts if fact.fields.get("item")}
    known = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    number = "|".join(teacher.NUMBER_WORDS[2:])
    return re.sub(rf"\$?\d[\d,.]*\d|\$?\d|\b(?:{number})\b", "#",
                  re.sub(rf"\b(?:{known})\b", "_", text, flags=re.I))


def repeated(drawn):
    """Of (story, row), the share of problems whose skeleton another one has too."""
    counts = Counter(skeleton(story, row["problem"]) for story, row in drawn)
    return sum(n for n in counts.values() if n > 1) / len(drawn)


def test_the_last_sub_question_is_the_problems_own(stories):
    for _, row in stories:
        *earlier, last = (step["question"] for step in row["steps"])
        assert last not in earlier
        own = row["problem"].endswith((last, last[0].lower() + last[1:]))
        assert own or any(row["problem"].endswith(question) for question in earlier)


def test_hardly_two_problems_share_a_text_but_for_names_nouns_and_numbers(stories):
    assert repeated(stories) < 0.02


def test_the_language_is_rich():
    verbs = {verb for verb, _ in teacher.GAINS + teacher.LOSSES + teacher.ACTS} | {verb for _, _,
        *two in teacher.SCENES for verb in two}
    nouns = {noun for nouns in teacher.NOUNS.values() for noun in nouns} | {thing.one for _,
        thing in teacher.ACTS} | {scene[0].one for scene in teacher.SCENES}
    assert len(teacher.FACTS) >= 60 and sum(map(len, teacher.FACTS.values())) >= 6 * len(teacher.FACTS)
    assert len(verbs) >= 150 and len(nouns) >= 400 and len({one for ways in teacher.QUESTIONS.values()
                                                            for one in ways}) >= 40


def test_each_kind_wording_verb_and_link_occurs(stories, monkeypatch):
    used = {(fact.kind, fact.wording) for story, _ in stories for fact in story.facts}
    verbs, links = set(), Counter()
    for story, row in stories:
        verbs |= {clause.V for clause in story.clauses()}
        links.update({step.clause.asks or step.clause.form for step in story.steps})
    missing = {(kind, one) for kind, wordings in teacher.FACTS.items() for one in wordings} - used
    rare = teacher.open_be, teacher.open_parts, teacher.open_there, teacher.open_own
    monkeypatch.setattr(teacher, "OPENINGS", dict.fromkeys(rare, (1, 1)))
    rng = Random(6)
    for _ in range(2 * N):  # wordings that are too rare to be sure of
        if missing:
            missing -= {(fact.kind, fact.wording) for fact in draw(rng, high=1).facts}
    assert not missing
    assert not {verb for verb, _ in teacher.GAINS + teacher.LOSSES + teacher.ACTS} - verbs
    assert not set(teacher.QUESTIONS) - set(links)


# ---- splits, seeds, held-out wordings, made-up words -------------------------------------------------------------------

def rows_of(split="train", n=300, **changes):
    args = SimpleNamespace(**{"seed": 0, split: n, "steps": (1, 5), "made_up": 0.4, "made_up_test": 0.0,
                              "wordings": "all", "level": 1} | changes)
    return teacher.draw_split(split, args, set(), SimpleNamespace(update=lambda: None))


def test_the_same_seed_gives_the_same_rows():
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
    train, test = ({teacher.make_up_word(rng, training, nouns) for _ in range(5000)}
                   for training in (True, False))
    train, test = (words | set(map(teacher.plural, words)) for words in (train, test))
    assert len(test) > 3000 and not train & test
    texts = " ".join(row["problem"] for row in rows_of("test", n=300, made_up_test=1.0)).lower()
    real = set(re.findall("[a-z]+", Path(teacher.__file__).read_text().lower()))
    real |= set(map(teacher.plural, real))  # "pines", "he plays"
    assert not train & set(re.findall("[a-z]{5,}", texts)) - real


def test_held_out_wordings_stay_out():
    held_out = {(kind, wordings[1]) for kind, wordings in teacher.FACTS.items()}
    for part in ("train", "test"):
        rng = Random(3)
        for _ in range(300):
            story = draw(rng, wordings=part, high=3)
            assert all(((fact.kind, fact.wording) in held_out) == (part == "test") for fact in story.facts)
