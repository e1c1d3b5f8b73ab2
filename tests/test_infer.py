"""infer.py against independent truths: a plain loop without cache, scripted students, numpy, scipy."""
import html.parser
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import infer
from data import (ROLES, Tokenizer, UserError, calculator_result, encode_problems, make_batch, run_script,
                  segments, to_line, write_problems)
from infer import (PROCEDURES, Sampling, Student, Unfinished, is_doubtful, load_student, main, mcnemar, solve,
                   vote, wilson)
from model import GPT, GPTConfig, init_weights

BYTES = Tokenizer.train([], 257)  # every byte is a token
ROOT = Path(infer.__file__).parent


# ---- many problems at once, against a plain loop -----------------------------------------------------------

NAMES = "Ann Bob Cleo Dan Eve".split()
PROBLEMS = [{"problem": f"{NAMES[n % 5]} has {n} cats{', and more' * (n % 3)}.", "answer": str(n + n % 4),
             "steps": [{"question": f"Now {i} more?", "solution": f"It is <<{n}+{i}={n + i}>>{n + i}."}
                       for i in range(1 + n % 4)]} for n in range(24)]


@pytest.fixture(scope="session")
def trained():
    """Half-trained students, {role: (model, tokenizer)}: their dialogues take all kinds of turns.

    In float64, so that no two next tokens are as likely as each other but for rounding.
    """
    students = {}
    for k, role in enumerate(ROLES):  # each with a vocabulary of its own
        texts = [text for problem in PROBLEMS for text, _ in segments(problem, role) if text]
        tokenizer = Tokenizer.train(texts, 290 + k)
        model = init_weights(GPT(GPTConfig(tokenizer.vocab_size, 90, 2, 2, 32)), k)
        with torch.no_grad():  # embeddings as small as GPT-2's: they learn more slowly, and err in more ways
            model.wte.weight /= 10
            model.wpe.weight /= 10
            model.ln_f.weight.fill_(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        sequences = encode_problems(PROBLEMS, role, tokenizer, calculator=False)
        sequences = [one for one in sequences if len(one[0]) <= 90]
        ids, positions, targets, _ = make_batch(sequences)
        for _ in range(60):
            F.cross_entropy(model(ids, positions), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        students[role] = model.double(), tokenizer
    return students


def sampled(logits, sampling, u):
    """The token that the number u samples, by numpy: probabilities cut by top-k, then by top-p."""
    z = logits.numpy() / sampling.temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")[:sampling.top_k or None]
    p = p[order] / p[order].sum()
    p = p[:np.searchsorted(p.cumsum(), sampling.top_p) + 1]
    return int(order[min(np.searchsorted(p.cumsum(), u * p.sum(), side="right"), len(p) - 1)])


def plain_loop(problem, procedure, students, calculator, sampling=None, sample=0):
    """What `solve` must do: one problem, one sequence of ids a student, all of it read again for each token.

    Returns the record and how many tokens the students wrote.
    """
    record, sequences, written, reply = {"steps": [], "answer": None, "unfinished": None}, {}, 0, None
    requests = procedure(problem, record)
    rng = random.Random(f"{sampling and sampling.seed} {sample} {problem['problem']}")
    while True:
        try:
            role, _, append = requests.send(reply)
        except StopIteration:
            return record, written
        except Unfinished as e:
            return record | {"unfinished": str(e)}, written
        model, tokenizer = students[role].model, students[role].tokenizer
        block_size, text, line, stop = model.config.block_size, b"", [], None
        ids = sequences.setdefault(role, tokenizer.encode(to_line(problem["problem"])))
        for part in append:
            ids += tokenizer.encode(part)
        while not stop:
            if len(ids) > block_size:
                stop = f"can read no more than {block_size} tokens, the text is too long"
            elif len(line) == infer.MAX_LINE:
                stop = f"wrote more than {infer.MAX_LINE} tokens on a line"
            elif len(line) % 8 == 0 and says_again(line):
                stop = "repeated itself"
            else:
                with torch.no_grad():
                    logits = model(torch.tensor([ids]))[0, -1]
                token = sampled(logits, sampling, rng.random()) if sampling else int(logits.argmax())
                written += 1
                if token == tokenizer.end:
                    stop = "end"
                    continue
                line.append(token)
                ids.append(token)
                text += tokenizer.decode_bytes([token])
                if text.endswith(b"\n"):
                    stop = "newline"
                elif calculator and text.endswith(b"=") and (result := calculator_result(text)):
                    ids += tokenizer.encode(result)
                    text += result.encode()
        reply = text.decode("utf-8", "replace").strip(), stop


def says_again(tokens):
    """Whether tokens end in a phrase at least three times, of 32 tokens at least: by counting how often."""
    for n in range(1, len(tokens) + 1):
        periodic = n
        while periodic < len(tokens) and tokens[-1 - periodic] == tokens[-1 - periodic + n]:
            periodic += 1
        if periodic >= max(3 * n, 32):
            return True
    return False


@pytest.mark.parametrize("name", PROCEDURES)
def test_batched_dialogues_are_those_of_a_plain_loop(name, trained, monkeypatch):
    """At any number of rows, also where not all prompts fit into one forward."""
    monkeypatch.setattr(infer, "MAX_LINE", 25)
    monkeypatch.setattr(infer, "PREFILL_TOKENS", 100)
    procedure, roles = PROCEDURES[name]
    for calculator in (True, False):
        students = {role: Student(*trained[role], rows=1) for role in roles}
        plain = [plain_loop(problem, procedure, students, calculator) for problem in PROBLEMS]
        for rows in (1, 3, 64):
            students = {role: Student(*trained[role], rows) for role in roles}
            found = dict(solve(PROBLEMS, procedure, students, calculator))
            assert found == dict(enumerate(record for record, _ in plain))
            counted = sum(student.tokens_written for student in students.values())
            assert counted == sum(n_written for _, n_written in plain)
        assert any(record["answer"] for record, _ in plain)
        if name != "answer":  # as varied as it should be
            assert len({record["unfinished"] for record, _ in plain}) > 2
            assert any(re.search(r"=\d+>>", json.dumps(record)) for record, _ in plain)


@pytest.mark.parametrize("name", ["socratic", "stepwise"])
def test_samples_are_those_of_a_plain_loop_whatever_the_rows_and_the_order(name, trained, monkeypatch):
    monkeypatch.setattr(infer, "MAX_LINE", 25)
    procedure, roles = PROCEDURES[name]
    sampling, problems = Sampling(temperature=1.2, top_k=40, top_p=0.95, seed=7), PROBLEMS[:8]
    students = {role: Student(*trained[role], rows=1) for role in roles}
    plain = {(problem["problem"], k): plain_loop(problem, procedure, students, True, sampling, k)[0]
             for problem in problems for k in range(3)}
    assert len({json.dumps(record) for record in plain.values()}) > 20
    for rows in (1, 3, 64):
        problems = random.Random(rows).sample(problems, len(problems))
        students = {role: Student(*trained[role], rows) for role in roles}
        found = list(solve(problems, procedure, students, sampling=sampling, samples=3))
        assert len(found) == len(plain)
        for index, record in found:
            expected = plain[problems[index]["problem"], record["sample"]]
            assert record == expected | {"sample": record["sample"]}


@pytest.mark.parametrize("sampling, allowed", [
    (Sampling(), 6), (Sampling(0.5), 6), (Sampling(1.0, 3), 3), (Sampling(1.0, 0, 0.8), 4),
    (Sampling(2.0, 4, 0.5), 2), (Sampling(1.0, 1), 1), (Sampling(1e-3), 1)])
def test_sampled_tokens_are_those_of_numpy(sampling, allowed):
    """In float64; at the borders between two tokens float32 may decide otherwise."""
    logits, n = torch.tensor([0.3, 2.0, 1.5, -1.0, 1.2, 0.8], dtype=torch.float64), 5000
    uniform = [0.0, 1 - 2 ** -53, *np.random.default_rng(3).random(n)]
    tokens = infer.choose(logits.expand(n + 2, 6).clone(), sampling, uniform).tolist()
    assert np.mean([sampled(logits, sampling, u) == token for u, token in zip(uniform, tokens)]) > 0.999
    assert len(set(tokens)) == allowed
    share = tokens.count(1) / n - (logits / sampling.temperature).softmax(0)[1].item()
    assert sampling.top_k or sampling.top_p < 1 or abs(share) < 0.03  # as often as softmax says


# ---- what scripted students read and write -----------------------------------------------------------------

class Script:
    """A model that continues its row's text, byte by byte, by the first of its scripts that begins like it.

    It is also its own cache: `rows` holds what has been read into each row, `forwards` each call's new texts.
    """

    def __init__(self, *scripts, block_size=400):
        self.scripts = [BYTES.encode(script) + [BYTES.end] for script in scripts]
        self.config = GPTConfig(BYTES.vocab_size, block_size, 1, 1, 2)
        self.wte = SimpleNamespace(weight=torch.zeros(1))
        self.rows, self.forwards = {}, []
        self.k = self.v = torch.zeros(1)

    def eval(self):
        return self

    def place(self, rows, starts, counts):
        self.placed = list(zip(rows, starts, counts))

    def copy_prefix(self, source, target, n):
        self.rows[target] = self.rows[source][:n]

    def __call__(self, ids, out_positions, cache):
        logits, read, first = torch.zeros(len(out_positions), BYTES.vocab_size), [], 0
        for k, (row, start, n) in enumerate(self.placed):
            new, first = ids[0, first:first + n].tolist(), first + n
            sequence = self.rows[row] = self.rows.get(row, [])[:start] + new
            assert len(sequence) == start + n, "a row skips a position"
            read.append(BYTES.decode(new))
            following = [script for script in self.scripts if script[:len(sequence)] == sequence]
            logits[k, following[0][len(sequence)] if following else ord("?")] = 1
        self.forwards.append(read)
        return logits


def student(model, rows=1):
    """The Student of a Script."""
    it = Student(model, BYTES, rows)
    it.cache = model
    return it


ASK = " Ann has 3.\n How many with 4?\n How many with 5?\n"
WRONG = " Ann has 3.\n How many with 4?\n <<3+4=9>> 9.\n How many with 5?\n <<9+5=15>> 15.\n#### 15"
RIGHT = " Ann has 3.\n How many with 4?\n <<3+4=7>> 7.\n How many with 5?\n <<7+5=12>> 12.\n#### 12"
ANN = {"problem": "Ann has 3.", "answer": "12", "steps": [
    {"question": "How many with 4?", "solution": "<<3+4=7>> 7."},
    {"question": "How many with 5?", "solution": "<<7+5=12>> 12."}]}


def scripted(rows=1):
    """A decomposer, and a solver that cannot do arithmetic but goes on correctly after a correct result."""
    return {"solver": student(Script(WRONG, RIGHT), rows), "decomposer": student(Script(ASK), rows)}


def test_appended_texts_are_read_in_one_forward_and_nothing_is_read_twice():
    """A solver's cache is kept from one sub-question to the next."""
    students = scripted()
    list(solve([ANN], infer.socratic, students))
    for one, sequence in ((students["decomposer"], ASK), (students["solver"], RIGHT)):
        blocks = [text for forward in one.model.forwards for text in forward]
        assert "".join(blocks) == sequence
    assert blocks[0] == " Ann has 3.\n How many with 4?\n"  # the problem is read with the first question
    appended = {text for text in blocks[1:] if len(text) > 1}
    assert appended == {"=7>>", "\n How many with 5?\n", "=12>>", "\n####"}


def test_a_full_block_and_a_problem_that_is_too_long_end_the_dialogue_and_no_other():
    long = {"problem": "Ann has 3. " * 60, "answer": "1", "steps": []}
    found = dict(solve([long, ANN, long, ANN], infer.socratic, scripted(rows=2)))
    assert [found[i]["answer"] for i in range(4)] == [None, "12", None, "12"]
    assert found[0]["unfinished"] == "the decomposer can read no more than 400 tokens, the text is too long"
    for block_size, answer in ((len(RIGHT) - 1, None), (len(RIGHT), "12")):
        (_, record), = solve([ANN], infer.given, {"solver": student(Script(RIGHT, block_size=block_size))})
        assert record["answer"] == answer  # what follows the last position is written


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_samples_read_their_problem_once(rows):
    """Of three samples one reads the problem, the others copy it and read its last token again."""
    students = {"solver": student(Script(RIGHT), rows), "decomposer": student(Script(ASK), rows)}
    found = solve([ANN], infer.socratic, students, sampling=Sampling(1e-6), samples=3)
    assert {record["answer"] for _, record in found} == {"12"}
    for one in students.values():
        texts = [text for forward in one.model.forwards for text in forward]
        assert sum(text.startswith(" Ann") for text in texts) == 1


@pytest.mark.parametrize("role, procedure, text", [
    ("decomposer", infer.socratic, ASK), ("stepwise", infer.stepwise, RIGHT.removesuffix("#### 12")),
    ("unified", infer.unified, RIGHT)])
@pytest.mark.parametrize("guidance, told", [("steps", " 2\n"), ("equations", " 3+4=7, 7+5=12\n")])
def test_guidance_stands_between_the_problem_and_the_questions(role, procedure, text, guidance, told):
    parts = segments(ANN, role, guidance)
    assert parts[1] == (told, False) and [parts[0], *parts[2:]] == segments(ANN, role)
    guided = student(Script(text.replace("3.\n", "3.\n" + told, 1)))
    guided.guidance, others = guidance, {"solver": student(Script(RIGHT))}
    (_, record), = solve([ANN], procedure, {**others, role: guided})
    assert record["answer"] == "12" and record["steps"] == ANN["steps"]
    guided.model.scripts = []
    list(solve([ANN | {"guide": "9"}], procedure, {**others, role: guided}))
    assert BYTES.decode(guided.model.rows[0]).startswith(" Ann has 3.\n 9\n")


# ---- the procedures ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", PROCEDURES)
def test_each_student_reads_and_writes_the_sequence_of_its_role(name):
    """A scripted student errs as soon as it reads anything but what data.segments lays out for training."""
    procedure, roles = PROCEDURES[name]
    sequences = {role: "".join(text or "" for text, _ in segments(ANN, role)) for role in roles}
    students = {role: student(Script(sequence)) for role, sequence in sequences.items()}
    (_, record), = solve([ANN], procedure, students)
    fields = {"cot": ["solution"], "answer": []}.get(name, ["question", "solution"])
    steps = [{field: step[field] for field in fields} for step in ANN["steps"]] if fields else []
    assert record == {"steps": steps, "answer": "12", "unfinished": None}
    for role, sequence in sequences.items():
        assert BYTES.decode(students[role].model.rows[0]) == sequence


@pytest.mark.parametrize("name, lines, why", [  # of what students write; "." is <|endoftext|>
    ("socratic", ["."], "the decomposer wrote no question"),
    ("socratic", [f"q{i}" for i in range(17)], "the decomposer went on after 16 steps"),
    ("socratic", ["q1", "q2."], "the decomposer did not end its question properly"),
    ("socratic", ["q1", ".", "."], "the solver wrote no solution"),
    ("socratic", ["q1", ".", "s", "a"], "the solver did not end its answer properly"),
    ("stepwise", ["q", "s"] * 16 + ["q"], "the stepwise student went on after 16 steps"),
    ("unified", ["q", "#### 5."], "the unified student did not end its solution properly"),
    ("cot", [f"s{i}" for i in range(17)], "the cot student went on after 16 steps"),
    ("cot", ["s", "####."], "the cot student wrote no answer"),
    ("cot", ["s", "#### 5"], "the cot student did not end its answer properly"),
    ("answer", ["."], "the answer student wrote no answer")])
def test_a_dialogue_that_goes_astray_ends_and_says_why(name, lines, why):
    requests = PROCEDURES[name][0](ANN, {"steps": [], "answer": None})
    requests.send(None)
    with pytest.raises(Unfinished, match=f"^{why}$"):
        for text in lines:
            requests.send((text[:-1], "end") if text.endswith(".") else (text, "newline"))


def test_a_line_without_end_is_cut_and_one_that_repeats_itself_sooner():
    digits = "".join(random.Random(0).choices("0123456789", k=300))
    for text, why in ((digits, f"wrote more than {infer.MAX_LINE} tokens on a line"),
                      ("how many now, " * 20, "repeated itself")):
        students = {"answer": student(Script(f" Ann has 3.\n#### {text}"))}
        (_, record), = solve([ANN], infer.answer, students)
        assert record["unfinished"] == f"the answer student {why}"
    assert students["answer"].tokens_written == 48  # three times 14 letters, then the next multiple of 8
    for text in ("1*2*2*2*2*2*2*2*2*2*2*2*2=", "10+10+10+10+10+10=", "1,000,000,000,000"):
        assert not infer.repeats_itself(list(text))


# ---- metrics and evaluation --------------------------------------------------------------------------------

def test_wilson_and_mcnemar_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle here: pip install scipy")
    for correct, n in ((0, 10), (3, 10), (10, 10), (953, 1000), (1, 1319)):
        interval = stats.binomtest(correct, n).proportion_ci(method="wilson")
        assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-6)
    for a, b in ((0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 71), (0, 12)):
        assert mcnemar(a, b) == pytest.approx(stats.binomtest(a, a + b).pvalue if a + b else 1.0, rel=1e-9)


def test_samples_vote_by_answers_as_numbers(trained):
    def record(k, answer):
        return {"sample": k, "answer": answer, "unfinished": None if answer else "why"}

    records = [record(k, answer) for k, answer in enumerate(("7", None, "8", "8.0", "$8", None))]
    for order in (records, records[::-1]):
        assert vote(order) == record(2, "8") | {"votes": ["7", None, "8", "8.0", "$8", None]}
    assert vote([record(1, "6"), record(0, "5")])["answer"] == "5"
    assert vote([record(0, None), record(1, None)])["unfinished"] == "why"
    students = {"answer": Student(*trained["answer"], rows=2)}
    problem = {"problem": "Ann has 3 \ud800 cats."}  # which no UTF-8 can spell
    (_, record), = infer.solve_by_vote([problem], infer.answer, students, sampling=Sampling(), samples=2)
    assert len(record["votes"]) == 2


def dialogue(result, answer=None, **more):
    steps = [{"question": "How many?", "solution": f"<<5-8={result}>>{result}"}]
    return {"steps": steps, "answer": answer or result, "unfinished": None, **more}


@pytest.mark.parametrize("problem, result, doubtful", [
    ("Tom has 5 apples.", "3", False), ("Tom has 5 apples.", "-3", True), ("Tom has 5 apples.", "2.5", True),
    ("Tom has $5.", "2.5", False), ("Tom has 5 dollars.", "-3", True), ("The price is 5.", "2.5", False),
    ("A rope of 2.5 meters.", "1.25", False), ("He eats 1/2 of it.", "2.5", False)])
def test_results_below_zero_or_with_decimals_are_doubtful(problem, result, doubtful):
    assert is_doubtful({"problem": problem}, dialogue(result)) == doubtful


def test_doubtful_problems_are_solved_again_by_vote(monkeypatch):
    """The first dialogues of three problems, then four more of each doubtful one: doubtful ones do not vote."""
    first = [dialogue("-3"), dialogue("13"), dialogue("0.6", "3")]
    more = {"a": ["2", "13", "-3", "13"], "c": ["0.6", "-3", "0.6", "-3"]}

    def solve(problems, procedure, students, samples=1, sampling=None, **options):
        if sampling is None:
            yield from enumerate(first)
            return
        assert [problem["problem"] for problem in problems] == (["a", "c"] if samples else [])
        for k in range(samples):
            for index, problem in enumerate(problems):
                yield index, dialogue(more[problem["problem"]][k], sample=k)

    monkeypatch.setattr(infer, "solve", solve)
    problems = [{"problem": name} for name in "abc"]
    found = dict(infer.solve_by_vote(problems, infer.cot, {}, retries=4))
    assert found[0]["answer"] == "13" and found[0]["votes"] == ["2", "13", "13"]
    assert (found[1], found[2]) == (first[1], first[2])
    assert dict(infer.solve_by_vote(problems, infer.cot, {})) == dict(enumerate(first))


def fails(capsys, *argv):
    """Run the command in vain; returns its exit status and what it said on stderr."""
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: main([str(arg) for arg in argv]))
    return caught.value.code, capsys.readouterr().err


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Run the command with the scripted students, problems in p.jsonl; returns the lines that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(infer, "load_student", lambda folder, role, rows, device, dtype: scripted(rows)[role])
    for role in "solver", "decomposer":
        Path("runs", role).mkdir(parents=True)
        Path("runs", role, "model.safetensors").write_text(role)

    def shown(*argv, problems=None):
        if problems:
            write_problems("p.jsonl", problems)
            argv = "--eval", "p.jsonl", *argv
        main(list(argv))
        return capsys.readouterr().out.splitlines()
    return shown


def rows_of(path):
    """The results in a file of --out, in the order of the problems."""
    return sorted([json.loads(line) for line in Path(path).read_text().splitlines()][1:],
                  key=lambda result: result["row"])


def test_evaluation_counts_and_keeps_every_dialogue(shown):
    unknown = {"problem": "Bob?", "answer": "1", "steps": ANN["steps"][:1], "id": "bob", "source": "b"}
    unscored = [{"problem": "Ann has 3."}, {"problem": "Ann has 3.", "answer": None, "id": 7}]
    lines = shown("--out", "o", problems=[ANN, unknown, ANN | {"answer": "15"}, *unscored])
    assert re.fullmatch(r"[\d.]+ s, [\d.]+ problems/s, [\d,]+ tokens/s written", lines[0])
    assert [line for line in lines[1:] if "BLEU" not in line] == [
        "1 step: 0.0 % (0/1)", "2 steps: 50.0 % (1/2)", "b: 0.0 % (0/1)", "no source: 50.0 % (1/2)",
        "questions exactly the teacher's: 66.7 % (2/3), in any order: 66.7 % (2/3)",
        "unfinished: 1 (the decomposer repeated itself)",
        "not scored, without a known answer: 2 of 5", "accuracy 33.3 % (1/3), 95 % interval 6.1-79.2"]
    results = rows_of("o")
    assert [result["correct"] for result in results] == [True, False, False, None, None]
    assert results[0] == {"row": 1, "id": 1, "problem": "Ann has 3.", "steps": ANN["steps"], "answer": "12",
                          "unfinished": None, "correct": True, "teacher": "12"}
    assert results[1]["id"] == "bob" and results[1]["unfinished"] == "the decomposer repeated itself"
    assert results[3]["answer"] == "12" and results[3]["teacher"] is None and results[4]["id"] == 7
    assert shown(problems=unscored)[1:] == ["not scored, without a known answer: 2 of 2"]
    questions = [{"question": step["question"]} for step in ANN["steps"]]
    lines = shown("--procedure", "given", problems=[ANN | {"steps": questions}])
    assert "100.0 % (1/1)" in lines[-1]


def test_samples_vote_in_an_evaluation(shown):
    flags, problems = ["--out", "o", "--votes", "3", "--temperature", "0.01"], [ANN, ANN | {"answer": "13"}]
    for _ in range(2):
        lines = shown(*flags, problems=problems)
        assert "accuracy 50.0 % (1/2)" in lines[-1]
        assert [row["votes"] for row in rows_of("o")] == [["12"] * 3] * 2
        Path("o").write_bytes(b"".join(Path("o").read_bytes().splitlines(True)[:-1]))  # the second is lost


def test_report_shows_every_text_as_text(shown):
    class Reader(html.parser.HTMLParser):
        tags, texts = set(), ""

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)

        def handle_data(self, data):
            self.texts += data

    hostile = "</summary><script>alert(1)</script><img src=x onerror=alert(1)> & {0} %s"
    steps = [{"question": hostile, "solution": hostile}]
    shown("--report", "r.html", problems=[ANN, ANN | {"answer": "13"}, {"problem": "Ann has 3."}, {
        "problem": hostile, "answer": hostile, "steps": steps, "source": hostile}])
    page, reader = Path("r.html").read_text(), Reader()
    reader.feed(page)
    assert not reader.tags & {"script", "img", "link", "iframe"} and "http" not in page
    assert reader.texts.count(hostile) == 5  # problem, question, solution, answer, source
    assert reader.texts.count("How many with 4? <<3+4=7>> 7.") == 5  # students' and two teachers'
    assert re.findall("<details class=(.*?)>", page) == ["correct", "wrong", "unscored", "wrong"]


# ---- results files -----------------------------------------------------------------------------------------

@pytest.fixture
def folder(trained, tmp_path):
    """The folder of a solver."""
    model, tokenizer = trained["solver"]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "student.json").write_text('{"role": "solver", "steps": 60}')
    return tmp_path


def test_a_killed_evaluation_goes_on_where_it_stopped(folder, capsys):
    """Killed (SIGKILL), with its last line cut off: in the end every problem stands there once."""
    write_problems(folder / "eval.jsonl", PROBLEMS * 6)
    argv = ["--procedure", "given", "--eval", folder / "eval.jsonl", "--solver", folder, "--rows", 4]
    argv, out = [str(arg) for arg in (*argv, "--device", "cpu")], folder / "killed.jsonl"

    def evaluated(path):
        main([*argv, "--out", str(path)])
        return capsys.readouterr().out.splitlines()[-1], rows_of(path)

    process = subprocess.Popen([sys.executable, "infer.py", *argv, "--out", out], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, cwd=ROOT)
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 20):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    survived = out.read_bytes()
    assert 20 <= survived.count(b"\n") < 1 + len(PROBLEMS) * 6
    whole = evaluated(folder / "whole.jsonl")
    assert len(whole[1]) == len(PROBLEMS) * 6
    for cut in b"", b'{"row": 3, "id": "\xc3':
        out.write_bytes(survived + cut)
        assert evaluated(out) == whole and out.read_bytes().startswith(survived)
    before = out.read_bytes()
    assert evaluated(out) == whole and out.read_bytes() == before  # nothing left to do
    out.write_bytes(b'{"set')  # killed before the first line was whole
    assert evaluated(out) == whole


def test_another_runs_results_and_foreign_files_are_refused(shown, capsys):
    shown("--out", "o", problems=[ANN, ANN])
    own = Path("o").read_bytes()
    another = "--out o: holds another run's results (not the same {}); name another file, or remove it"
    foreign = "o: no results file of --eval FILE --out FILE"
    Path("other_weights").mkdir()
    Path("other_weights/model.safetensors").write_text("x")
    for content, flags, status, message in (
            (own, ["--no-calculator", "--limit", 1], 2, another.format("problems, calculator")),
            (own, ["--solver", "other_weights"], 2, another.format("students")),
            (b'{"problem": "x"}\n', [], 1, foreign), (b"notes", [], 1, foreign)):
        Path("o").write_bytes(content)
        assert fails(capsys, "--eval", "p.jsonl", "--out", "o", *flags) == (status, f"error: {message}\n")
        assert Path("o").read_bytes() == content


@pytest.mark.parametrize("flag, path, message", [
    ("--out", "/dev/full", "[Errno 28] No space left on device"),
    ("--out", "no/such/folder.jsonl", "no/such/folder.jsonl: No such file or directory"),
    ("--report", "none/x.html", "none/x.html: No such file or directory"),  # before the evaluation
])
def test_results_that_cannot_be_written_are_one_line(shown, monkeypatch, capsys, flag, path, message):
    if path.startswith("/dev") and not Path(path).exists():
        pytest.skip("no /dev/full here")
    if flag == "--report":
        monkeypatch.setattr(infer, "solve", None)
    write_problems("p.jsonl", [ANN])
    assert fails(capsys, "--eval", "p.jsonl", flag, path) == (1, f"error: {message}\n")


def test_two_results_files_are_compared(tmp_path, monkeypatch, capsys):
    def results(name, correct, first=1):
        rows = [{"row": k, "problem": f"p{k}", "correct": each} for k, each in enumerate(correct, first)]
        write_problems(name, [{"settings": {}}, *rows])

    monkeypatch.chdir(tmp_path)
    results("a", [True] * 9 + [False] * 3 + [None])
    results("b", [True] * 2 + [False] * 8 + [True] * 2 + [None])
    results("c", [True] * 12, 2)
    main(["--compare", "a", "b"])
    assert capsys.readouterr().out.splitlines() == [
        "a: 75.0 % (9/12)", "b: 33.3 % (4/12)",
        "both correct: 2, only the first: 7, only the second: 2, neither: 1",
        "McNemar's exact test: p = 0.18"]
    refusal = "error: --compare: a and c are not of the same problems\n"
    assert fails(capsys, "--compare", "a", "c") == (1, refusal)


# ---- the prompt and the flags ------------------------------------------------------------------------------

TRANSCRIPT = ["Question 1: How many with 4?", "Question 2: How many with 5?",
              "Solution 1: <<3+4=7>> 7.", "Solution 2: <<7+5=12>> 12.", "Answer: 12"]


@pytest.fixture
def typed(shown, monkeypatch):
    """Let a text (bytes) come on stdin, through a pipe; returns the lines that the prompt prints."""
    def typed(text, *argv):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        return shown(*argv)
    return typed


def test_a_problem_is_solved_before_the_readers_eyes(shown, monkeypatch, capsys):
    """Each line is printed when it is written, not at the end."""
    asked = []

    def choose(logits, *_):
        asked.append(capsys.readouterr().out)
        return logits.argmax(-1)

    assert shown("--problem", "Ann  has\n3.") == TRANSCRIPT
    monkeypatch.setattr(infer, "choose", choose)
    assert shown("--problem", "Ann has 3.") == TRANSCRIPT[-1:]
    assert [text for text in asked if text] == [f"{line}\n" for line in TRANSCRIPT[:-1]]


def test_the_mark_of_cot_is_no_solution_and_no_text_steers_the_terminal(shown, monkeypatch):
    script = Script(" Ann has 3.\n 3, 4.\n \x1b7\n#### \x9b7")
    monkeypatch.setattr(infer, "load_student", lambda *_: student(script))
    assert shown("--procedure", "cot", "--problem", ANN["problem"]) == [
        "Solution 1: 3, 4.", "Solution 2: \N{REPLACEMENT CHARACTER}7", "Answer: \N{REPLACEMENT CHARACTER}7"]


def test_prompt_reads_a_problem_a_line_and_leaves_at_the_end(typed):
    too_long = "No answer: the decomposer can read no more than 400 tokens, the text is too long"
    found = typed(b"Ann has 3.\n\n  \n" + b"9" * 500 + b"\nAnn has 3.\n")
    assert found == [*TRANSCRIPT, too_long, *TRANSCRIPT]
    assert typed(b"\xff\xfe?\n")[-1] == "No answer: the decomposer repeated itself"


def test_what_is_no_problem_gets_one_line(typed, capsys):
    no_problem, *others = typed(b"Hello\nAnn has two.\nDo cats fly?\n")
    assert no_problem == infer.NO_PROBLEM and infer.NO_PROBLEM not in others and len(others) == 4
    assert typed(b"Hello\n", "--procedure", "given") == [infer.NO_PROBLEM]
    for text in "Hello", "", " ":
        assert fails(capsys, "--problem", text)[0] == 1


def test_own_questions_are_put_to_the_solver_alone(typed):
    found = typed(b"Ann has 3.\nHow many with 4?\nHow many with 5?\n\n", "--procedure", "given")
    assert found == TRANSCRIPT[2:]


def test_a_guided_student_wants_its_guide(shown, monkeypatch, capsys):
    def guided(folder, role, rows, device, dtype):
        students = scripted(rows) | {"decomposer": student(Script(ASK.replace("3.\n", "3.\n 2\n")), rows)}
        students["decomposer"].guidance = "steps"
        return students[role]

    monkeypatch.setattr(infer, "load_student", guided)
    refusal = (2, "error: the decomposer was trained with --guidance steps: tell it by --guide TEXT, "
               "or in a file by 'steps' or 'guide' of each problem\n")
    assert fails(capsys, "--problem", "Ann has 3.") == refusal
    assert shown("--problem", "Ann has 3.", "--guide", "2") == TRANSCRIPT
    lines = shown(problems=[ANN, {"problem": "Ann has 3.", "guide": 2}])
    assert "guided by the steps of the file's own solutions" in lines and "100.0 % (1/1)" in lines[-1]
    write_problems("p.jsonl", [ANN, {"problem": "Ann has 3."}])
    assert fails(capsys, "--eval", "p.jsonl") == refusal


def test_a_student_that_did_not_learn_to_calculate_has_the_calculator(shown, monkeypatch, capsys):
    def uncounting(folder, role, rows, device, dtype):
        students = scripted(rows)
        for each in students.values():
            each.calculates = False
        return students[role]

    monkeypatch.setattr(infer, "load_student", uncounting)
    assert fails(capsys, "--problem", "Ann has 3.", "--no-calculator") == (
        2, "error: the solver was not trained to calculate: train.py --no-calculator does\n")
    assert shown("--problem", "Ann has 3.") == TRANSCRIPT


@pytest.mark.parametrize("where", ["builtins.input", "infer.choose"])
def test_ctrl_c_leaves_the_prompt_quietly(typed, monkeypatch, where):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert typed(b"Ann has 3.\n") == []


def test_prompt_in_a_terminal(folder):
    """Through a pseudo-terminal: it greets, labels what it wants, and leaves at Ctrl-D with a new line."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    ours, theirs = pty.openpty()
    command = [sys.executable, "infer.py", "--procedure", "given", "--solver", folder, "--device", "cpu"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    seen = b""
    for waits_for, answer in ((b"Problem: ", b"Ann has 1 cats.\n"), (b"Question: ", b"Now 0 more?\n"),
                              (b"Question: ", b"\n"), (b"nswer: ", b""), (b"Problem: ", b"\x04")):
        part = b""
        while waits_for not in part:
            part += os.read(ours, 1)
        seen += part
        os.write(ours, answer)
    assert process.wait() == 0
    os.close(ours)
    assert seen.startswith(b"Type a problem") and b"Solution 1: " in seen and b"Traceback" not in seen


@pytest.mark.parametrize("argv, status, message", [
    ("", 1, "runs/solver: no student here yet; make one with: python train.py --role solver\n"),
    ("--solver s", 1, "s: no student here yet; make one with: python train.py --role solver --out s\n"),
    ("--procedure cot --solver x", 2, "--procedure cot has no use for --solver\n"),
    ("--procedure given --problem x", 2, "--procedure given needs sub-questions: from --eval "),
    ("--eval none.jsonl", 1, "none.jsonl: No such file or directory\n"),
    ("--eval bad.jsonl", 1, "bad.jsonl:2: field 'problem' is missing\n"),
    ("--eval empty.jsonl", 1, "empty.jsonl: holds no problem\n"),
    ("--problem x --eval good.jsonl", 2, "argument --eval: not allowed with argument --problem"),
    ("--report x", 2, "--report goes with --eval FILE\n"),
    ("--votes 3", 2, "--votes goes with --eval FILE\n"),
    ("--votes 3 --temperature 0 --eval good.jsonl", 2, "--votes, --top-k and --top-p need a --temperature "),
    ("--guide 3 --eval good.jsonl", 2, "--guide does not go with --eval, which tells the steps "),
    ("--votes 0", 2, "argument --votes: 0 is no whole number from 1"),
    ("--top-p 0", 2, "argument --top-p: 0 is no number above 0 to 1"),
    ("--compare good.jsonl good.jsonl", 1, "good.jsonl: no results file of --eval FILE --out FILE\n"),
    ("--compare none good.jsonl", 1, "none: No such file or directory\n"),
    ("--device abacus", 2, "--device abacus: ")])
def test_bad_usage_is_one_line(argv, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_problems("good.jsonl", [ANN])
    write_problems("bad.jsonl", [ANN, {"answer": "x", "steps": []}])
    Path("empty.jsonl").write_text("\n")
    code, said = fails(capsys, *argv.split())
    assert code == status and said.startswith("error: " + message) and said.count("\n") == 1


# ---- students' folders -------------------------------------------------------------------------------------

def test_a_student_opens_with_its_own_vocabulary(folder, trained):
    (folder / "student.json").write_text('{"role": "solver", "guidance": "equations"}')
    loaded = load_student(folder, "solver", rows=2)
    assert loaded.tokenizer.ranks == trained["solver"][1].ranks and loaded.guidance == "equations"
    for p, q in zip(loaded.model.parameters(), trained["solver"][0].parameters()):
        torch.testing.assert_close(p.double(), q, rtol=1e-6, atol=1e-7)


def test_a_folder_that_does_not_fit_is_one_line(folder, trained):
    def refusal(role="solver"):
        with pytest.raises(UserError) as caught:
            load_student(folder, role, rows=1)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    wrong_role = f"{folder}: a student of the role 'solver', expected is the role 'decomposer'"
    assert refusal("decomposer") == wrong_role
    trained["decomposer"][1].save_pretrained(folder)
    assert "config.json says" in refusal()
    for file in "vocab.json", "model.safetensors", "config.json":
        (folder / file).write_bytes(b"[1] 5678" * 9)
        assert file in refusal()


def test_output_closed_early_ends_quietly(folder):
    write_problems(folder / "eval.jsonl", PROBLEMS)
    command = [sys.executable, "infer.py", "--procedure", "given", "--solver", folder]
    command += ["--eval", folder / "eval.jsonl", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
