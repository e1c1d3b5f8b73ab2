"""infer.py against independent truths: Python's fractions, a brute-force loop without cache, scripted students."""
import html.parser
import io
import json
import math
import random
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import infer
import train
from data import MARK, ROLES, Tokenizer, UserError, encode_problems, line, make_batch, run, segments, write_problems
from infer import PROCEDURES, Sampling, Student, Unfinished, bleu, calculate, calculator_result, evaluate, main, mcnemar, \
    open_student, same_answer, solve, vote, wilson
from model import EMBEDDING, GPT, GPTConfig

BYTES = Tokenizer.learn([], 257)  # every byte is a token


# ---- the calculator ----------------------------------------------------------------------------------------------------

def random_expression(draw, depth=4):
    """A random expression as (what GSM8K would write, its value or None for a division by zero)."""
    kind = draw.randrange(8) if depth else 0
    if kind < 3:
        whole, places = draw.randrange(10 ** draw.randrange(1, 5)), draw.randrange(3)
        digits = "".join(draw.choice("0123456789") for _ in range(places))
        text = f"{whole:,}" if draw.random() < 0.5 else str(whole)
        text = "." + digits if digits and whole == 0 and draw.random() < 0.5 else text + ("." + digits if digits else "")
        value = Fraction(whole) + (Fraction(int(digits), 10 ** places) if digits else 0)
        percent = draw.random() < 0.1
        return text + "%" * percent, value / 100 if percent else value
    if kind == 3:
        text, value = random_expression(draw, depth - 1)
        return f"-({text})", None if value is None else -value
    sign = draw.choice("+-*/")
    (a, x), (b, y) = random_expression(draw, depth - 1), random_expression(draw, depth - 1)
    space = " " * draw.randrange(2)
    text = f"({a}){space}{sign}{space}({b})"
    if x is None or y is None or sign == "/" and y == 0:
        return text, None
    return text, {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[sign]


def test_calculator_equals_fractions_on_random_expressions():
    draw, tried = random.Random(1), 0
    while tried < 5000:
        text, value = random_expression(draw)
        if len(text) > infer.LONGEST:
            continue
        tried += 1
        result = calculate(text)
        if value is None:
            assert result is None, text
        elif (value * 10000).denominator == 1:
            assert Fraction(result) == value, text
        else:
            assert abs(Fraction(result) - value) <= Fraction(1, 200), text
            assert re.fullmatch(r"-?\d+(\.\d{1,2})?", result), text


@pytest.mark.parametrize("expression, value", [
    ("1+2*3-4/5", "6.2"), ("8/4/2", "1"), ("8-4-2", "2"), ("8-4+2", "6"), ("2*-3", "-6"), ("-2+3", "1"), ("--2", "2"),
    ("-2*-3", "6"), ("+4-+1", "3"), ("2*(3+4)*5", "70"), ("((7))", "7"), ("10//4*3", "6"), ("-7//2", "-4"), ("7/2*2", "7")])
def test_calculator_binds_as_arithmetic_does(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize("expression, result", [
    ("20*50%", "10"), ("1,000+2,500", "3500"), ("$5*3", "15"), ("100/3", "33.33"), ("2/3", "0.67"), ("1/8", "0.125"),
    ("1-1.5", "-0.5"), ("1/3-1/3", "0"), ("0-1/1000000", "0"), ("007", "7"), ("5.", "5"), (".25*4", "1")])
def test_calculator_writes_as_gsm8k_does(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize("expression", [
    "", " ", "1/0", "1/(2-2)", "7//0", "1+", "*2", "(1", "1)", "()", "1 2", "2**3", "2^3", "x", "1e9", "0x10", "__import__('os')",
    "9" * 101, "(" * 50 + "1" + ")" * 51, "(" * 100, "-" * 100, ",1", "²", "٣", "1\u00a0+1x", "1;2", "1=1", "\x00", ",", "%", "5%%", "."])
def test_calculator_refuses_what_is_no_expression(expression):
    assert calculate(expression) is None


def test_calculator_survives_random_strings():
    draw = random.Random(2)
    for _ in range(20000):
        result = calculate("".join(draw.choice("0123456789.,+-*/()% $x=<\n") for _ in range(draw.randrange(12))))
        assert result is None or re.fullmatch(r"-?\d+(\.\d{1,4})?", result)
    assert calculate("(" * 40 + "9" * 20 + ")" * 40) == "9" * 20
    assert calculate("*".join(["99999999"] * 11)) == str(99999999 ** 11)


@pytest.mark.parametrize("text, added", [
    (b"has <<3+4=", "7>>"), (b"<<3+4=7>> and <<7*2=", "14>>"), (b"<<3+4=7>> so x =", None), (b"3+4=", None), (b"<<3+4", None),
    (b"<<3+=", None), (b"<<3+4==", None), (b"<<=", None), (b"\xff<<\xff=", None)])
def test_calculator_has_its_turn_at_an_open_annotation(text, added):
    assert calculator_result(text) == added


# ---- the engine --------------------------------------------------------------------------------------------------------

NAMES = "Ann Bob Cleo Dan Eve".split()
PROBLEMS = [{"problem": f"{NAMES[n % 5]} has {n} cats{', and more' * (n % 3)}.", "answer": str(n + n % 4), "steps": [
    {"question": f"Now {i} more?", "solution": f"It is <<{n}+{i}={n + i}>>{n + i}."} for i in range(1 + n % 4)]} for n in range(24)]


@pytest.fixture(scope="session")
def trained():
    """Half-trained students, {role: (model, tokenizer)}: their dialogues take all kinds of turns.

    In float64, so that no two next tokens are as likely as each other but for rounding.
    """
    students = {}
    for k, role in enumerate(ROLES):
        tokenizer = Tokenizer.learn((text for problem in PROBLEMS for text, _ in segments(problem, role) if text), 290 + k)  # each its own vocabulary
        model = GPT(GPTConfig(tokenizer.vocab_size, 90, 2, 2, 32)).initialise(k)
        with torch.no_grad():  # embeddings as small as GPT-2's: they learn more slowly, and err in more ways
            model.wte.weight /= EMBEDDING
            model.wpe.weight /= EMBEDDING
            model.ln_f.weight.fill_(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        ids, at, targets, _ = make_batch([sequence for sequence in encode_problems(PROBLEMS, role, tokenizer) if len(sequence[0]) <= 90])
        for _ in range(60):
            F.cross_entropy(model(ids, at), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        students[role] = model.double(), tokenizer
    return students


def drawn(logits, sampling, height):
    """The token at a height of the probabilities that may be drawn, stacked, the most likely first; in plain Python."""
    weights = [math.exp(x / sampling.temperature) for x in (logits - logits.max()).tolist()]
    ranked = sorted(((w / sum(weights), -token) for token, w in enumerate(weights)), reverse=True)[:sampling.top_k or None]
    whole, below, allowed = sum(p for p, _ in ranked), 0.0, []
    for p, token in ranked:
        if below < sampling.top_p:
            allowed.append((p / whole, -token))
        below += p / whole
    height *= sum(p for p, _ in allowed)
    for p, token in allowed:
        height -= p
        if height < 0:
            break
    return token


def plain_loop(problem, procedure, students, calculator, sampling=None, sample=0):
    """What the engine must do: one problem, one sequence of ids for each student, all of it read again for every token.

    Returns the record and the tokens that the students wrote, a list of (role, id).
    """
    record, sequences, written, reply = {"steps": [], "answer": None, "unfinished": None}, {}, [], None
    generator, draw = procedure(problem, record), random.Random(f"{sampling and sampling.seed} {sample} {problem['problem']}").random
    while True:
        try:
            role, _, feed = generator.send(reply)
        except StopIteration:
            return record, written
        except Unfinished as e:
            return record | {"unfinished": str(e)}, written
        model, tokenizer = students[role].model, students[role].tokenizer
        block_size, text, tokens, stop = model.config.block_size, b"", 0, None
        prompt = tokenizer.encode(line(problem["problem"]))
        ids = sequences.setdefault(role, list(prompt))
        for segment in feed:
            ids += tokenizer.encode(segment)
        while not stop:
            if tokens == infer.MAX_LINE:
                stop = f"wrote more than {infer.MAX_LINE} tokens on a line"
            elif len(prompt) > block_size:
                stop = f"cannot read the problem: {len(prompt)} tokens, its block has {block_size}"
            elif len(ids) > block_size:
                stop = f"filled its block of {block_size} tokens"
            else:
                with torch.no_grad():
                    logits = model(torch.tensor([ids]))[0, -1]
                token = drawn(logits, sampling, draw()) if sampling else int(logits.argmax())
                written.append((role, token))
                tokens += 1
                if token == tokenizer.end:
                    stop = "end"
                    continue
                ids.append(token)
                text += tokenizer.decode_bytes([token])
                if text.endswith(b"\n"):
                    stop = "newline"
                elif calculator and text.endswith(b"=") and (result := calculator_result(text)):
                    ids += tokenizer.encode(result)
                    text += result.encode()
        reply = text.decode("utf-8", "replace").strip(), stop


@pytest.fixture
def tokens_written(monkeypatch):
    """The tokens that the students wrote in each dialogue, {index: [(role, id), ...]}."""
    written, take = {}, infer.Dialogue.take

    def recorded(self, token, calculator):
        written.setdefault(self.index, []).append((self.want.role, token))
        return take(self, token, calculator)

    monkeypatch.setattr(infer.Dialogue, "take", recorded)
    return written


@pytest.mark.parametrize("name", PROCEDURES)
def test_engine_writes_the_tokens_of_a_plain_loop_at_any_number_of_slots(name, trained, tokens_written, monkeypatch):
    monkeypatch.setattr(infer, "MAX_LINE", 25)
    procedure, roles = PROCEDURES[name]
    for calculator in (True, False):
        students = {role: Student(*trained[role], slots=1) for role in roles}
        plain = [plain_loop(problem, procedure, students, calculator) for problem in PROBLEMS]
        for slots in (1, 3, 64):
            tokens_written.clear()
            students = {role: Student(*trained[role], slots) for role in roles}
            found = dict(solve(PROBLEMS, procedure, students, calculator))
            assert sorted(found) == list(range(len(PROBLEMS)))
            for index, (record, written) in enumerate(plain):
                assert found[index] == record
                assert tokens_written.get(index, []) == written
            assert sum(student.written for student in students.values()) == sum(len(written) for _, written in plain)
        assert any(record["answer"] for record, _ in plain)
        if name != "answer":  # as varied as it should be
            assert len({record["unfinished"] for record, _ in plain}) > 2
            assert any(re.search(r"=\d+>>", json.dumps(record)) for record, _ in plain)


@pytest.mark.parametrize("name", ["socratic", "stepwise"])
def test_samples_are_those_of_a_plain_loop_whatever_the_slots_and_the_order(name, trained, monkeypatch):
    monkeypatch.setattr(infer, "MAX_LINE", 25)
    procedure, roles = PROCEDURES[name]
    sampling, problems = Sampling(temperature=1.2, top_k=40, top_p=0.95, seed=7), PROBLEMS[:8]
    students = {role: Student(*trained[role], slots=1) for role in roles}
    plain = {(problem["problem"], k): plain_loop(problem, procedure, students, True, sampling, k)[0] for problem in problems for k in range(3)}
    assert len({json.dumps(record) for record in plain.values()}) > 20
    for slots in (1, 3, 64):
        problems = random.Random(slots).sample(problems, len(problems))
        students = {role: Student(*trained[role], slots) for role in roles}
        found = list(solve(problems, procedure, students, True, sampling=sampling, samples=3))
        assert len(found) == len(plain)
        for index, record in found:
            assert record == plain[problems[index]["problem"], record["sample"]] | {"sample": record["sample"]}


@pytest.mark.parametrize("sampling, allowed", [(Sampling(), 6), (Sampling(0.5), 6), (Sampling(1.0, 3), 3), (Sampling(1.0, 0, 0.8), 4),
                                               (Sampling(2.0, 4, 0.5), 2), (Sampling(1.0, 1), 1), (Sampling(1e-3), 1)])
def test_tokens_are_drawn_as_often_as_softmax_says(sampling, allowed):
    """Pearson's chi-squared against the probabilities in float64."""
    logits, n = torch.tensor([0.3, 2.0, 1.5, -1.0, 1.2, 0.8], dtype=torch.float64), 20000
    p = (logits / sampling.temperature).softmax(0)
    p[p.argsort(descending=True)[allowed:]] = 0
    expected = n * p / p.sum()
    draw = random.Random(3)
    tokens = infer.choose(logits.expand(n, 6).clone(), sampling, [draw.random() for _ in range(n)])
    counts = tokens.bincount(minlength=6)
    assert (counts[expected < 1e-9] == 0).all()
    some = expected >= 1e-9
    chi = ((counts - expected)[some] ** 2 / expected[some]).sum()
    assert chi < {1: 1e-9, 2: 10.8, 3: 13.8, 4: 16.3, 6: 20.6}[allowed]  # exceeded once in a thousand draws
    assert set(infer.choose(logits.expand(2, 6).clone(), sampling, [0.0, 1 - 2 ** -53]).tolist()) <= set(some.nonzero()[:, 0].tolist())


def test_packed_matrices_give_the_same_logits():
    model = GPT(GPTConfig(600, 32, 2, 8, 512)).initialise(5)
    ids = torch.randint(600, (3, 32), generator=torch.Generator().manual_seed(0))
    expected = GPT(model.config)
    expected.load_state_dict(model.state_dict())
    with torch.inference_mode():
        found, expected = infer.packed(model)(ids), expected.double()(ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


class Script:
    """A model that continues its row's text, byte by byte, by the first of its scripts that begins like it."""

    def __init__(self, *scripts, block_size=400):
        self.scripts = [BYTES.encode(script) + [BYTES.end] for script in scripts]
        self.config = GPTConfig(BYTES.vocab_size, block_size, 1, 1, 2)
        self.wte = SimpleNamespace(weight=torch.zeros(1))
        self.rows, self.forwards, self.forks = {}, [], []

    def eval(self):
        return self

    def __call__(self, ids, at, cache):
        """Logits (N, vocab_size); `forwards` keeps for each call which row read what: {row: (first position, text)}."""
        logits, read, first = torch.zeros(len(at), BYTES.vocab_size), {}, 0
        for k, end in enumerate(at.tolist()):
            row, start, new = int(cache.rows[end]), int(cache.positions[first]), ids[0, first:end + 1].tolist()
            first = end + 1
            sequence = self.rows[row] = self.rows.get(row, [])[:start] + new
            assert len(sequence) == start + len(new), "a row skips a position"
            read[row] = start, BYTES.decode(new)
            following = [script for script in self.scripts if script[:len(sequence)] == sequence]
            logits[k, following[0][len(sequence)] if following else ord("?")] = 1
        self.forwards.append(read)
        return logits


def student(model, slots=1):
    """The Student of a Script: when the engine copies a part of a row of the cache, the script's row is copied too."""
    it = Student(model, BYTES, slots)
    it.cache.fork = lambda source, target, n: (model.forks.append((source, target, n)),
                                               model.rows.update({target: model.rows[source][:n]}))
    return it


ASK = " Ann has 3.\n How many with 4?\n How many with 5?\n"
WRONG = " Ann has 3.\n How many with 4?\n <<3+4=9>> 9.\n How many with 5?\n <<9+5=15>> 15.\n#### 15"
RIGHT = " Ann has 3.\n How many with 4?\n <<3+4=7>> 7.\n How many with 5?\n <<7+5=12>> 12.\n#### 12"
ANN = {"problem": "Ann has 3.", "answer": "12", "steps": [
    {"question": "How many with 4?", "solution": "<<3+4=7>> 7."}, {"question": "How many with 5?", "solution": "<<7+5=12>> 12."}]}


def scripted(slots=1):
    """A decomposer and a solver who cannot reckon but can read on from a right result."""
    return {"solver": student(Script(WRONG, RIGHT), slots), "decomposer": student(Script(ASK), slots)}


def test_calculator_corrects_a_student_and_without_it_the_student_reckons():
    for calculator, full in ((True, RIGHT), (False, WRONG)):
        (index, record), = solve([ANN], infer.socratic, scripted(), calculator)
        solutions = re.findall(r"<<.*", full)
        assert record == {"steps": [{"question": "How many with 4?", "solution": solutions[0]},
                                    {"question": "How many with 5?", "solution": solutions[1]}],
                          "answer": full.split("#### ")[1], "unfinished": None}


def test_forced_tokens_are_read_in_one_block_and_nothing_is_read_twice():
    students = scripted()
    list(solve([ANN], infer.socratic, students))
    for student, read in ((students["decomposer"], ASK), (students["solver"], RIGHT)):
        blocks = [block for forward in student.model.forwards for block in forward.values()]
        joined = ""
        for start, text in blocks:
            assert start == len(joined)
            joined += text
        assert joined == read
    texts = [text for _, text in blocks]
    assert texts[0] == " Ann has 3.\n How many with 4?\n"  # the problem is read with the first question
    assert {"=7>>", "\n How many with 5?\n", "=12>>", "\n####"} == {text for text in texts[1:] if len(text) > 1}


def test_free_slots_take_the_next_problem_and_all_decode_together():
    problems = [{"problem": "x" * n, "answer": "1", "steps": []} for n in (3, 30, 5, 4, 8)]
    model = Script(*(f" {problem['problem']}\n#### {'7' * (1 + 5 * (k == 0))}" for k, problem in enumerate(problems)))
    ended = list(solve(problems, infer.answer, {"answer": student(model, slots=2)}))
    assert [index for index, _ in ended] == [1, 2, 0, 3, 4]  # 0 writes eight tokens, every other three
    assert all(set(record["answer"]) == {"7"} for _, record in ended)
    assert set(model.rows) == {0, 1}


def test_a_full_block_and_a_problem_that_is_too_long_end_the_dialogue_and_no_other():
    long = {"problem": "Ann has 3. " * 60, "answer": "1", "steps": []}
    students = scripted(slots=2)
    found = dict(solve([long, ANN, long, ANN], infer.socratic, students))
    assert [found[i]["answer"] for i in range(4)] == [None, "12", None, "12"]
    assert found[0]["unfinished"] == f"the decomposer cannot read the problem: {60 * 11 + 1} tokens, its block has 400"
    small = student(Script(RIGHT, block_size=len(RIGHT) - 10), 1)
    (_, record), = solve([ANN], infer.given, {"solver": small})
    assert record["answer"] is None and record["unfinished"] == f"the solver filled its block of {len(RIGHT) - 10} tokens"
    exact = student(Script(RIGHT, block_size=len(RIGHT)), 1)  # the last position's next token is still the student's to write
    (_, record), = solve([ANN], infer.given, {"solver": exact})
    assert record["answer"] == "12"


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_samples_read_their_problem_once(slots):
    """Of three samples one reads the problem, the others copy it and read its last token again, where their own text begins."""
    students = {"solver": student(Script(RIGHT), slots), "decomposer": student(Script(ASK), slots)}
    assert {record["answer"] for _, record in solve([ANN], infer.socratic, students, sampling=Sampling(1e-6), samples=3)} == {"12"}
    for one in students.values():
        starts = [read[1] for forward in one.model.forwards for read in forward.values() if read[1].startswith((" Ann", "\n How many with 4"))]
        assert sorted(text[:4] for text in starts if text.startswith(" Ann")) == [" Ann"]
    assert len(students["decomposer"].model.forks) == min(slots, 3) - 1  # in a slot of its own a problem stays where it is


def test_rows_that_decode_are_not_held_up_by_prompts():
    """A row writes in the forwards, too, in which another reads a long problem."""
    problems = [{"problem": "x" * (300 + k), "answer": "1", "steps": []} for k in range(6)]
    model = Script(*(f" {problem['problem']}\n#### {'7' * (20 + 13 * k)}" for k, problem in enumerate(problems)))
    assert len(list(solve(problems, infer.answer, {"answer": student(model, 3)}))) == 6
    beside = [sorted(len(text) for _, text in forward.values()) for forward in model.forwards[1:]]
    assert sum(lengths[-1] > 300 for lengths in beside) == 3 and all(lengths[:2] == [1, 1] for lengths in beside if lengths[-1] > 300)
    writes = [22 + 13 * k for k in range(6)]
    assert sum(map(len, model.forwards)) == sum(writes)
    assert len(model.forwards) == writes[2] + writes[5]  # the busiest slot's: it was held up by nobody


def test_a_prompt_beyond_what_a_forward_reads_waits_for_no_shorter_ones(monkeypatch):
    monkeypatch.setattr(infer, "PREFILL_TOKENS", 20)
    problems = [{"problem": "x" * n, "answer": "1", "steps": []} for n in (9, 60, *(9 + k % 7 for k in range(30)))]
    model = Script(*(f" {problem['problem']}\n#### 7" for problem in problems))
    order = [index for index, _ in solve(problems, infer.answer, {"answer": student(model, 3)})]
    assert sorted(order) == list(range(32)) and order.index(1) < 6
    assert all(len(forward) == 1 or sum(len(text) for _, text in forward.values()) <= 20 for forward in model.forwards)


@pytest.mark.parametrize("role, procedure, text", [
    ("decomposer", infer.socratic, ASK), ("stepwise", infer.stepwise, RIGHT.removesuffix("#### 12")), ("unified", infer.unified, RIGHT)])
@pytest.mark.parametrize("guidance, told", [("steps", " 2\n"), ("equations", " 3+4=7, 7+5=12\n")])
def test_guidance_stands_between_the_problem_and_the_questions(role, procedure, text, guidance, told):
    laid_out = segments(ANN, role, guidance)
    assert laid_out[1] == (told, False) and [laid_out[0], *laid_out[2:]] == segments(ANN, role)
    guided, others = student(Script(text.replace("3.\n", "3.\n" + told, 1))), {"solver": student(Script(RIGHT))}
    guided.guidance = guidance
    (_, record), = solve([ANN], procedure, {**others, role: guided})
    assert record["answer"] == "12" and record["steps"] == ANN["steps"]
    guided.model.scripts = []
    list(solve([ANN | {"guide": "9"}], procedure, {**others, role: guided}))
    assert guided.prompt[0] == BYTES.encode(" Ann has 3.\n 9\n")


# ---- the procedures ----------------------------------------------------------------------------------------------------

def talk(name, *lines):
    """Drive a procedure by hand: `lines` are the students' texts, "." for <|endoftext|> alone, "text." for text and then that.

    Returns what it wanted, a list of (role, kind, fed text), and the dialogue.
    """
    dialogue = {"steps": [], "answer": None}
    procedure, wanted, reply = PROCEDURES[name][0](ANN, dialogue), [], None
    for text in (*lines, None):
        try:
            role, kind, feed = procedure.send(reply)
        except StopIteration:
            return wanted, dialogue
        wanted.append((role, kind, "".join(feed)))
        assert text is not None, "the procedure wants more"
        reply = (text[:-1], "end") if text.endswith(".") else (text, "newline")
    raise AssertionError("the procedure never ended")


TEACHER = {"socratic": ["q1", "q2", ".", "s1", "s2", "a."], "given": ["s1", "s2", "a."],
           "stepwise": ["q1", "s1", "q2", "s2", ".", "a."], "unified": ["q1", "s1", "q2", "s2", "#### a."],
           "cot": ["s1", "s2", "#### a."], "answer": ["a."]}


@pytest.mark.parametrize("name", PROCEDURES)
def test_each_student_reads_and_writes_the_sequence_of_its_role(name):
    """What a student has read and written in the end is what data.segments lays out for the training of its role."""
    problem = {"problem": ANN["problem"], "answer": "a", "steps": [{"question": f"q{i}", "solution": f"s{i}"} for i in (1, 2)]}
    questions = ANN["steps"][0]["question"], ANN["steps"][1]["question"]
    wanted, dialogue = talk(name, *TEACHER[name])
    sequences = {role: line(ANN["problem"]) for role in PROCEDURES[name][1]}
    for (role, kind, fed), text in zip(wanted, TEACHER[name]):
        written = text.removesuffix(".") if kind == "answer" or text.startswith(MARK) else line(text) if text != "." else ""
        sequences[role] += fed + (" " + written if kind == "answer" else written)
    for role, sequence in sequences.items():
        laid_out = "".join(text or "" for text, _ in segments(problem, role))
        if name == "given":
            laid_out = laid_out.replace("q1", questions[0]).replace("q2", questions[1])
        assert sequence == laid_out
    assert dialogue["answer"] == "a"
    if name not in ("answer", "given"):
        assert [set(step) for step in dialogue["steps"]] == [{"solution"} if name == "cot" else {"question", "solution"}] * 2


@pytest.mark.parametrize("name, lines, why", [
    ("socratic", ["."], "the decomposer wrote no question"),
    ("socratic", ["q", "p"] + ["q"] * 5, "the decomposer asked the same again and again"),
    ("socratic", [f"q{i}" for i in range(17)], "the decomposer went on after 16 steps"),
    ("socratic", ["q1."], "the decomposer did not end its question properly"),
    ("socratic", ["q1", "q2."], "the decomposer did not end its question properly"),
    ("socratic", ["q1", ".", ""], "the solver wrote no solution"),
    ("socratic", ["q1", ".", "."], "the solver wrote no solution"),
    ("socratic", ["q1", ".", "s", "a"], "the solver did not end its answer properly"),
    ("stepwise", ["q", "s"] * 5 + ["q"], "the stepwise student asked the same again and again"),
    ("unified", ["q", "#### 5."], "the unified student did not end its solution properly"),
    ("cot", [f"s{i}" for i in range(17)], "the cot student went on after 16 steps"),
    ("cot", ["s", "####."], "the cot student wrote no answer"),
    ("cot", ["s", "#### 5"], "the cot student did not end its answer properly"),
    ("answer", ["."], "the answer student wrote no answer")])
def test_a_dialogue_that_goes_astray_ends_and_says_why(name, lines, why):
    with pytest.raises(Unfinished) as caught:
        talk(name, *lines)
    assert str(caught.value) == why


def test_a_line_without_end_is_cut():
    endless = student(Script(" Ann has 3.\n#### " + "5" * 399), 1)
    (_, record), = solve([ANN], infer.answer, {"answer": endless})
    assert record["unfinished"] == f"the answer student wrote more than {infer.MAX_LINE} tokens on a line"


# ---- evaluation --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("a, b, same", [
    ("70,000", "70000.0", True), ("$70000", "70,000", True), ("18", "18.", True), ("-5", "-5.0", True), ("5", "-5", False),
    ("$-5", "-$5", True), ("Yes.", "true", True), ("False", "no", True), ("yes", "1", False), (".5", "0.50", True), ("50%", "50", True), ("Yes", "yes", True), ("yes", "no", False),
    (" 12 ", "12", True), ("1 2", "12", False), ("", "0", False), ("five", "5", False), ("1/2", "0.5", False), ("9" * 5000, "9", False),
    ("12" + "0" * 30, "12" + "0" * 29 + "1", False)])
def test_answers_are_compared_as_numbers_or_as_words(a, b, same):
    assert same_answer(a, b) == same and same_answer(b, a) == same


def test_wilson_interval_is_where_the_score_test_turns():
    """Its ends are the shares p at which the observed share lies 1.96 deviations away (found by bisection)."""
    for right, n in ((0, 10), (3, 10), (10, 10), (953, 1000), (1, 1319)):
        for end, (inside, outside) in zip(wilson(right, n), ((right / n, 0.0), (right / n, 1.0))):
            if inside == outside:
                assert end == pytest.approx(outside, abs=1e-12)
                continue
            for _ in range(100):
                p = (inside + outside) / 2
                far = abs(right / n - p) > 1.959964 * math.sqrt(p * (1 - p) / n)
                inside, outside = (inside, p) if far else (p, outside)
            assert end == pytest.approx(inside, abs=1e-9)


def test_mcnemar_is_the_binomial_test():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle here: pip install scipy")
    for a, b in ((0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 71), (0, 12)):
        assert mcnemar(a, b) == pytest.approx(stats.binomtest(a, a + b).pvalue if a + b else 1.0, rel=1e-9)


def test_bleu_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is the oracle here: pip install sacrebleu")
    draw = random.Random(4)
    words = "How many apples, does Ann's have? $3.50 1,000 5-6 (all) &quot;x&amp; a.b 7. . - x/y \u00e9t\u00e9 don't <b>".split()
    for n in (1, 1, 1, 3, 10, 40):
        for _ in range(20):
            references = [" ".join(draw.choices(words, k=draw.randrange(1, 15))) for _ in range(n)]
            hypotheses = [" ".join(word for word in text.split() if draw.random() < 0.9) + draw.choice(["", " x", "."]) for text in references]
            assert bleu(hypotheses, references) == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score, abs=1e-9)


def test_a_problem_that_no_utf8_can_spell_can_be_sampled(trained):
    students = {"answer": Student(*trained["answer"], slots=2)}
    problem = PROBLEMS[0] | {"problem": "Ann has 3 \ud800 cats."}
    (_, record), = infer.solve_by_vote([problem], infer.answer, students, sampling=Sampling(), samples=2)
    assert len(record["votes"]) == 2


def test_samples_vote_by_answers_as_numbers():
    def record(k, answer):
        return {"sample": k, "answer": answer, "unfinished": None if answer else "why"}
    records = [record(k, answer) for k, answer in enumerate(("7", None, "8", "8.0", "$8", None))]
    for order in (records, records[::-1]):
        assert vote(order) == record(2, "8") | {"votes": ["7", None, "8", "8.0", "$8", None]}
    assert vote([record(1, "6"), record(0, "5")])["answer"] == "5"
    assert vote([record(0, None), record(1, None)])["unfinished"] == "why"


def test_evaluation_counts_and_keeps_every_dialogue(tmp_path, capsys):
    unknown = {"problem": "Bob?", "answer": "1", "steps": ANN["steps"][:1], "id": "bob", "source": "b"}
    with open(tmp_path / "out.jsonl", "wb", buffering=0) as out:
        evaluate([ANN, unknown, ANN | {"answer": "15"}], infer.socratic, scripted(2), True, out)
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert {id: row["right"] for id, row in rows.items()} == {1: True, "bob": False, 3: False}
    assert rows[1] == {"row": 1, "id": 1, "problem": "Ann has 3.", "steps": ANN["steps"], "answer": "12", "unfinished": None,
                       "right": True, "teacher": "12"}
    assert rows["bob"]["unfinished"].startswith("the decomposer wrote more than")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:7] == ["1 step: 0.0 % (0/1)", "2 steps: 50.0 % (1/2)", "b: 0.0 % (0/1)", "no source: 50.0 % (1/2)"]
    assert lines[7] == "questions exactly the teacher's: 66.7 % (2/3), in any order: 66.7 % (2/3)"
    assert lines[8].startswith("as many questions as the teacher's: 66.7 % (2/3); BLEU ")
    assert lines[-1].startswith("accuracy 33.3 % (1/3), 95 % interval 6.1-79.2")
    assert re.fullmatch(r"solver: \d+ forwards, [\d.]+ of 2 slots taken, [\d.]+ tokens read and [\d.]+ written in a forward; "
                        r"cache of at most [\d.]+ MiB a slot", lines[1])


HOSTILE = "</summary><script>alert(1)</script><img src=x onerror=alert(1)> & \ud800 {0} %s"


def test_report_shows_every_text_as_text_and_marks_the_first_wrong_step(tmp_path, capsys):
    class Reader(html.parser.HTMLParser):
        tags, texts, marked = set(), "", None

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)
            self.marked = (self.marked or []) + [len(self.texts)] if ("class", "first") in attrs else self.marked

        def handle_data(self, data):
            self.texts += data

    hostile = {"problem": HOSTILE, "answer": HOSTILE, "steps": [{"question": HOSTILE, "solution": HOSTILE}], "source": HOSTILE}
    wrong = ANN | {"answer": "13", "steps": [ANN["steps"][0], {"question": "How many with 5?", "solution": "<<7+6=13>> 13."}]}
    evaluate([ANN, wrong, hostile], infer.socratic, scripted(2), True, report_to=tmp_path / "page.html")
    page, reader = (tmp_path / "page.html").read_text(encoding="utf-8"), Reader()
    reader.feed(page)
    assert not reader.tags & {"script", "img", "link", "iframe"} and "http" not in page
    assert reader.texts.count(HOSTILE.replace("\ud800", "\\ud800")) == 4  # problem, question, solution, answer
    assert reader.texts.count(HOSTILE.replace("\ud800", "\N{REPLACEMENT CHARACTER}")) == 1  # source
    assert [reader.texts[at:].split(".")[0] for at in reader.marked[:1]] == ["How many with 5? <<7+5=12>> 12"]


def test_a_killed_evaluation_goes_on_where_it_stopped(folder, capsys):
    """Killed (SIGKILL), with its last line cut off: in the end every problem stands there once, as without."""
    write_problems(folder / "eval.jsonl", PROBLEMS * 8)
    argv = ["--procedure", "given", "--eval", folder / "eval.jsonl", "--solver", folder, "--slots", 4, "--device", "cpu"]

    def evaluated(name, *flags):
        main([str(arg) for arg in (*argv, "--out", folder / name, *flags)])
        rows = sorted(map(json.loads, (folder / name).read_text().splitlines()[1:]), key=lambda row: row["row"])
        return capsys.readouterr().out.splitlines()[-1], rows

    out = folder / "killed.jsonl"
    command = [sys.executable, "infer.py", *map(str, argv), "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(infer.__file__).parent)
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 20):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    survived = out.read_bytes()
    assert 20 <= survived.count(b"\n") < 1 + len(PROBLEMS) * 8
    for cut in b"", b'{"row": 3, "id"', b'{"row": 3, "id": "\xc3':
        out.write_bytes(survived + cut)
        told, rows = evaluated("killed.jsonl")
        assert out.read_bytes().startswith(survived) and (told, rows) == evaluated("whole.jsonl") and len(rows) == len(PROBLEMS) * 8
    before = out.read_bytes()
    assert evaluated("killed.jsonl") == (told, rows) and out.read_bytes() == before  # nothing left to do
    for name, flags, why in ((out.name, ("--no-calculator", "--limit", 9), "holds another run's results (not the same problems, calculator)"),
                             ("eval.jsonl", (), "this file holds something else")):
        before = (folder / name).read_bytes()
        assert fails(capsys, *argv, "--out", folder / name, *flags) == (2, f"error: --out {folder / name}: {why}; name another file, or remove it\n")
        assert (folder / name).read_bytes() == before


def test_two_results_files_are_compared(tmp_path, capsys):
    def results(name, rights, first=1):
        rows = [{"row": k, "problem": f"p{k}", "right": right} for k, right in enumerate(rights, first)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in [{"run": {}}, *rows]))
        return str(tmp_path / name)

    a, b = results("a", [True] * 9 + [False] * 3), results("b", [True] * 2 + [False] * 8 + [True] * 2)
    main(["--compare", a, b])
    assert capsys.readouterr().out.splitlines() == [f"{a}: 75.0 % (9/12)", f"{b}: 33.3 % (4/12)",
        "both right: 2, only the first: 7, only the second: 2, neither: 1", "McNemar's exact test: p = 0.18"]
    (tmp_path / "d").write_text((tmp_path / "a").read_text() + '{"row": 13, "problem": "p13"}\n')
    assert fails(capsys, "--compare", a, tmp_path / "d") == (1, f"error: {tmp_path}/d:14: not a line of --eval FILE --out FILE\n")
    assert fails(capsys, "--compare", tmp_path / "e", a) == (1, f"error: {tmp_path}/e: No such file or directory\n")
    assert fails(capsys, "--compare", a, results("c", [True] * 12, 2)) == (
        1, f"error: --compare: {a} and {tmp_path}/c are not of the same problems (12 and 12, 11 in both)\n")


# ---- the command -------------------------------------------------------------------------------------------------------

@pytest.fixture
def solver_and_decomposer(monkeypatch):
    """main() finds the scripted students."""
    monkeypatch.setattr(infer, "open_student", lambda folder, role, slots, device, dtype: scripted(slots)[role])


TRANSCRIPT = """Question 1: How many with 4?
Question 2: How many with 5?
Solution 1: <<3+4=7>> 7.
Solution 2: <<7+5=12>> 12.
Answer: 12
"""


def test_problem_is_solved_before_the_readers_eyes(solver_and_decomposer, capsys):
    main(["--problem", "Ann  has\n3."])
    assert capsys.readouterr().out == TRANSCRIPT
    with pytest.raises(SystemExit) as caught:
        main(["--problem", "\x1b[2J" * 100])
    assert caught.value.code == 1
    assert capsys.readouterr().out == "No answer: the decomposer cannot read the problem: 402 tokens, its block has 400\n"


def test_on_a_terminal_the_calculators_hand_is_underlined(solver_and_decomposer, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["--problem", "Ann has 3."])
    assert capsys.readouterr().out == re.sub(r"=(\d+>>)", "=\033[4m\\1\033[24m", TRANSCRIPT)


def test_a_line_is_printed_as_it_is_written(solver_and_decomposer, monkeypatch):
    pieces = []
    monkeypatch.setattr(infer, "print", lambda *text, end="\n", flush=False: pieces.append((*text, end, flush)), raising=False)
    main(["--problem", "Ann has 3."])
    assert "".join(text + end for text, end, _ in pieces) == TRANSCRIPT
    streamed = [text for text, _, flush in pieces[:pieces.index(("?", "", True)) + 1] if flush]
    assert streamed == [*"How many with 4?"]  # byte by byte, as these students write


def test_samples_vote_at_the_prompt_and_in_a_file(solver_and_decomposer, tmp_path, capsys):
    sampled = ["--votes", "3", "--temperature", "0.01"]
    main(["--problem", "Ann has 3.", *sampled])
    lines = TRANSCRIPT.splitlines()
    assert capsys.readouterr().out.splitlines() == [lines[0], lines[2], lines[1], lines[3], "Votes: 12 (3)", lines[4]]
    write_problems(tmp_path / "p.jsonl", [ANN, ANN | {"answer": "13"}])
    command = ["--eval", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out.jsonl"), *sampled]
    main(command)
    assert "accuracy 50.0 % (1/2)" in capsys.readouterr().out
    whole = (tmp_path / "out.jsonl").read_bytes()
    assert [json.loads(row)["votes"] for row in whole.splitlines()[1:]] == [["12"] * 3] * 2
    (tmp_path / "out.jsonl").write_bytes(whole[:whole[:-1].rindex(b"\n") + 1])  # the second dialogue is lost
    main(command)
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_the_mark_of_cot_is_no_solution(monkeypatch, capsys):
    monkeypatch.setattr(infer, "open_student", lambda *_: student(Script(" Ann has 3.\n 3, 4.\n \x1b7\n#### 7"), 1))
    main(["--procedure", "cot", "--problem", ANN["problem"]])
    assert capsys.readouterr().out == "Solution 1: 3, 4.\nSolution 2: \N{REPLACEMENT CHARACTER}7\nAnswer: 7\n"


def test_prompt_reads_a_problem_a_line_and_leaves_at_the_end(solver_and_decomposer, monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO(b"Ann has 3.\n\n  \n" + b"x" * 500 + b"\n\xff\xfe\nAnn has 3.\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    main([])
    out = capsys.readouterr().out
    assert out.startswith(TRANSCRIPT + "No answer: the decomposer cannot read the problem: 502 tokens") and out.endswith(TRANSCRIPT)


def test_own_questions_are_put_to_the_solver_alone(solver_and_decomposer, monkeypatch, capsys):
    typed = b"/questions\nAnn has 3.\n/questions\nHow many with 4?\nHow many with 5?\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    main([])
    solutions = TRANSCRIPT[TRANSCRIPT.index("Solution 1"):]
    assert capsys.readouterr().out == "/questions: type a problem first\n" + TRANSCRIPT + solutions


def test_json_lines_are_answered_one_for_one(solver_and_decomposer, monkeypatch, capsys):
    lines = [json.dumps({"problem": "Ann has 3.", "id": "a"}), "", "no", "[]", '{"problem": ""}', '{"id": 1}', json.dumps({"problem": "Ann has 3."})]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    main(["--json"])
    rows = {row["line"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows[1] == {"line": 1, "id": "a", "problem": "Ann has 3.", "steps": ANN["steps"], "answer": "12", "unfinished": None}
    assert rows[7]["answer"] == "12" and sorted(rows) == [1, 3, 4, 5, 6, 7]
    assert all("error" in rows[k] for k in (3, 4, 5, 6)) and rows[6]["error"] == "field 'problem' is missing"


def test_json_answers_before_the_next_line_comes(folder):
    command = [sys.executable, "infer.py", "--json", "--procedure", "given", "--solver", folder]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(infer.__file__).parent)
    for problem in PROBLEMS[:3]:
        process.stdin.write(json.dumps(problem) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["problem"] == problem["problem"]
    process.stdin.close()
    assert process.stdout.read() == "" and process.wait() == 0


def test_a_guided_student_wants_its_guide(monkeypatch, capsys):
    def guided(slots):
        students = scripted(slots) | {"decomposer": student(Script(ASK.replace("3.\n", "3.\n 2\n")), slots)}
        students["decomposer"].guidance = "steps"
        return students

    monkeypatch.setattr(infer, "open_student", lambda folder, role, slots, device, dtype: guided(slots)[role])
    assert fails(capsys, "--problem", "Ann has 3.") == (2, "error: the decomposer was trained with --guidance steps: tell it what to "
                                                           "expect by --guide TEXT\n")
    main(["--problem", "Ann has 3.", "--guide", "2"])
    assert capsys.readouterr().out == TRANSCRIPT


def test_guidance_goes_from_training_into_the_students_folder(tmp_path, capsys):
    write_problems(tmp_path / "train.jsonl", PROBLEMS)
    argv = ["--train", tmp_path / "train.jsonl", "--valid", tmp_path / "train.jsonl", "--steps", 1, "--n-layer", 1, "--n-embd", 16,
            "--recite", 0, "--device", "cpu", "--out", tmp_path / "student", "--guidance", "equations"]
    train.main([str(arg) for arg in ("--role", "decomposer", *argv)])
    assert open_student(tmp_path / "student", "decomposer", slots=1).guidance == "equations"
    with pytest.raises(UserError, match="--role cot asks none"):
        train.main([str(arg) for arg in ("--role", "cot", *argv)])


@pytest.mark.parametrize("where", ["typing", "solving"])
def test_ctrl_c_leaves_the_prompt_quietly(solver_and_decomposer, monkeypatch, capsys, where):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ann has 3.\n")))
    monkeypatch.setattr("builtins.input" if where == "typing" else "infer.choose", interrupted, raising=True)
    main([])
    assert capsys.readouterr() == ("", "")


def fails(capsys, *argv):
    """Run the command in vain; returns its exit status and what it said on stderr."""
    with pytest.raises(SystemExit) as caught:
        run(lambda: main([str(arg) for arg in argv]))
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize("argv, status, message", [
    ([], 1, "error: runs/solver: no student here yet; make one with: python train.py --role solver\n"),
    (["--solver", "s"], 1, "error: s: no student here yet; make one with: python train.py --role solver --out s\n"),
    (["--procedure", "cot"], 1, "error: runs/cot: no student here yet; make one with: python train.py --role cot\n"),
    (["--procedure", "cot", "--solver", "x"], 2, "error: --procedure cot has no use for --solver\n"),
    (["--eval", "none.jsonl"], 1, "error: none.jsonl: No such file or directory\n"),
    (["--eval", "bad.jsonl"], 1, "error: bad.jsonl:2: field 'answer' is missing\n"),
    (["--votes", "0"], 2, "error: --slots, --votes and --limit must be at least 1\n"),
    (["--votes", "3", "--temperature", "0"], 2, "error: --votes, --top-k and --top-p need a --temperature of more than 0\n"),
    (["--top-p", "0"], 2, "error: --temperature and --top-k must be 0 or more, --top-p more than 0 and at most 1\n"),
    (["--json", "--eval", "good.jsonl"], 2, "error: --eval does not go with --json\n"),
    (["--report", "x"], 2, "error: --report goes with --eval FILE\n"),
    (["--report", "none/x.html", "--eval", "good.jsonl"], 2, "error: --report none/x.html: no such folder\n"),
    (["--guide", "3", "--eval", "good.jsonl"], 2, "error: --guide does not go with --eval, which tells the steps or equations of the file\n"),
    (["--compare", "good.jsonl", "good.jsonl"], 1, "error: good.jsonl: no results file of --eval FILE --out FILE\n"),
    (["--compare", "none", "good.jsonl"], 1, "error: none: No such file or directory\n"),
    (["--out", "x"], 2, "error: --out goes with --eval FILE\n"),
    (["--limit", "0", "--eval", "good.jsonl"], 2, "error: --slots, --votes and --limit must be at least 1\n"),
    (["--problem", " "], 2, "error: --problem takes a problem's text\n"),
    (["--procedure", "given", "--problem", "x"], 2, "error: --procedure given takes sub-questions from --eval FILE, --json or the prompt, not from --problem\n"),
    (["--device", "abacus"], 2, "error: --device abacus: ")])
def test_bad_usage_is_one_line(argv, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_problems("good.jsonl", [ANN])
    Path("bad.jsonl").write_text(Path("good.jsonl").read_text() + '{"problem": "x", "steps": []}\n')
    code, said = fails(capsys, *argv)
    assert code == status and said.startswith(message) and said.count("\n") == 1


def test_unknown_procedure_is_bad_usage(capsys):
    code, said = fails(capsys, "--procedure", "magic")
    assert code == 2 and "magic" in said and "socratic" in said and said.count("\n") == 1


@pytest.mark.parametrize("out, message", [("/dev/full", "error: /dev/full: No space left on device\n"),
                                          ("no/such/folder.jsonl", "error: no/such/folder.jsonl: No such file or directory\n")])
def test_results_that_cannot_be_written_are_one_line(solver_and_decomposer, tmp_path, capsys, out, message):
    if out.startswith("/dev") and not Path(out).exists():
        pytest.skip("no /dev/full here")
    write_problems(tmp_path / "eval.jsonl", [ANN])
    assert fails(capsys, "--eval", tmp_path / "eval.jsonl", "--out", out) == (1, message)


@pytest.fixture
def folder(trained, tmp_path):
    """The folder of a solver."""
    model, tokenizer = trained["solver"]
    model.save(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "student.json").write_text('{"role": "solver", "steps": 60}')
    return tmp_path


def test_a_student_opens_with_its_own_vocabulary(folder, trained):
    student = open_student(folder, "solver", slots=2)
    assert student.tokenizer.ranks == trained["solver"][1].ranks
    for p, q in zip(student.model.parameters(), trained["solver"][0].parameters()):
        torch.testing.assert_close(p.double(), q, rtol=1e-6, atol=1e-7)


def test_a_folder_that_does_not_fit_is_one_line(folder, trained):
    def refusal(role="solver"):
        with pytest.raises(UserError) as caught:
            open_student(folder, role, slots=1)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refusal("decomposer") == f"{folder}: this student learned the role 'solver', here it takes one of the role 'decomposer'"
    trained["decomposer"][1].save(folder)
    assert "config.json says" in refusal()
    (folder / "vocab.json").write_text("{")
    assert "vocab.json" in refusal()
    (folder / "model.safetensors").write_bytes(b"12345678" * 9)
    assert "model.safetensors" in refusal()
    (folder / "config.json").write_text("[]")
    assert "config.json" in refusal()
    for broken in ("", "[]", '"x"', "{}", "\x00"):
        (folder / "student.json").write_text(broken)
        assert refusal() == f"{folder}/student.json: field 'role' is missing or broken"


def test_output_closed_early_ends_quietly(folder):
    write_problems(folder / "eval.jsonl", PROBLEMS)
    command = [sys.executable, "infer.py", "--procedure", "given", "--eval", folder / "eval.jsonl", "--solver", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(infer.__file__).parent)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
