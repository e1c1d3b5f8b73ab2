"""infer.py against independent truths: a plain loop without cache, scripted students, numpy, scipy."""
import contextlib
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
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import infer
from data import (ROLES, Tokenizer, UserError, calculator_result, encode_problems, make_batch, run_script,
                  segments, to_line, write_problems)
from infer import (PROCEDURES, Sampling, Student, Unfinished, load_student, main, mcnemar, solve, vote,
                   wilson)
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
        ids, positions, targets, _ = make_batch([one for one in sequences if len(one[0]) <= 90])
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
    record, sequences, written, reply = infer.new_record(), {}, 0, None
    record |= {"sample": sample} if sampling else {}
    requests = procedure(problem, record)
    rng = random.Random(f"{sampling and sampling.seed} {sample} {problem['problem']}")
    while True:
        try:
            role, _, append, anew = requests.send(reply)
        except StopIteration:
            return record, written
        except Unfinished as e:
            return record | {"unfinished": str(e)}, written
        model, tokenizer = students[role].model, students[role].tokenizer
        block_size, text, line, stop, log_p = model.config.block_size, b"", [], None, 0.0
        prompt = tokenizer.encode(to_line(problem["problem"]))
        ids = sequences[role] = prompt if anew else sequences.get(role, prompt)
        for part in append:
            ids += tokenizer.encode(part)
        while not stop:
            if len(ids) > block_size:
                stop = f"can read no more than {block_size} tokens, the text is too long"
            elif len(line) == infer.MAX_LINE:
                stop = f"wrote {infer.MAX_LINE} tokens on a line and no end of it"
            else:
                with torch.no_grad():
                    logits = model(torch.tensor([ids]))[0, -1]
                token = sampled(logits, sampling, rng.random()) if sampling else int(logits.argmax())
                log_p += logits.log_softmax(-1)[token].item()
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
        reply = text.decode("utf-8", "replace").strip(), stop, log_p


def but_for_rounding(record):
    """What a record must be equal to."""
    more = {"second_look": but_for_rounding(record["second_look"])} if "second_look" in record else {}
    return record | {"log_p": pytest.approx(record["log_p"], abs=1e-4)} | more


SAMPLING = Sampling(temperature=1.2, top_k=40, top_p=0.95, seed=7)
SECOND_LOOK = {"second look": (infer.second_look, ("solver", "decomposer"))}


@pytest.mark.parametrize("name, sampling", [
    *((name, None) for name in PROCEDURES | SECOND_LOOK), ("socratic", SAMPLING), ("stepwise", SAMPLING),
    ("second look", SAMPLING)])
def test_dialogues_are_those_of_a_plain_loop(name, sampling, trained, monkeypatch):
    """At any number of rows, in any order, if a problem is too long or not all prompts fit in a forward."""
    monkeypatch.setattr(infer, "MAX_LINE", 25)
    monkeypatch.setattr(infer, "PREFILL_TOKENS", 100)
    procedure, roles = (PROCEDURES | SECOND_LOOK)[name]
    problems, samples = PROBLEMS[:8] if sampling else PROBLEMS, 3 if sampling else 1
    problems = [*problems, PROBLEMS[0] | {"problem": "Ann has 1 cat. " * 20}]
    for calculator in (True, False):
        students = {role: Student(*trained[role], rows=1) for role in roles}
        plain = {(problem["problem"], k): plain_loop(problem, procedure, students, calculator, sampling, k)
                 for problem in problems for k in range(samples)}
        for rows in (1, 3, 64):
            problems = random.Random(rows).sample(problems, len(problems))
            students = {role: Student(*trained[role], rows) for role in roles}
            found = list(solve(problems, procedure, students, calculator, sampling=sampling, samples=samples))
            assert len(found) == len(plain)
            for index, record in found:
                expected = plain[problems[index]["problem"], record.get("sample", 0)][0]
                assert record == but_for_rounding(expected)
            counted = sum(student.tokens_written for student in students.values())
            assert counted == sum(n_written for _, n_written in plain.values())
        records = [record for record, _ in plain.values()]  # as varied as they should be
        assert any(record["answer"] for record in records)
        if name != "answer":
            assert len({record["unfinished"] for record in records}) > 2
            assert any(re.search(r"=\d+>>", json.dumps(record)) for record in records)
        assert not sampling or len(set(map(json.dumps, records))) > 20


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

class Script(Student):
    """A student that continues its row's text, byte by byte, by the first of its scripts that begins like it.

    It is also its cache: `written` holds the ids in each row.
    """

    def __init__(self, *scripts, rows=1, **about):
        super().__init__(GPT(GPTConfig(BYTES.vocab_size, 400, 1, 1, 2)), BYTES, rows, about)
        self.scripts = [BYTES.encode(script) + [BYTES.end] for script in scripts]
        self.cache, self.model.forward, self.written = self, self.forward, {}

    def place(self, rows, starts, counts):
        self.placed = list(zip(rows, starts, counts))

    def copy_prefix(self, source, target, n):
        self.written[target] = self.written[source][:n]

    def forward(self, ids, out_positions, cache):
        logits, first = torch.zeros(len(out_positions), BYTES.vocab_size), 0
        for k, (row, start, n) in enumerate(self.placed):
            new, first = ids[0, first:first + n].tolist(), first + n
            sequence = self.written[row] = self.written.get(row, [])[:start] + new
            assert len(sequence) == start + n, "a row skips a position"
            following = [script for script in self.scripts if script[:len(sequence)] == sequence]
            logits[k, following[0][len(sequence)] if following else ord("?")] = 100
        return logits


ASK = " Ann has 3.\n How many with 4?\n How many with 5?\n"
WRONG = " Ann has 3.\n How many with 4?\n <<3+4=9>> 9.\n How many with 5?\n <<9+5=15>> 15.\n#### 15"
RIGHT = " Ann has 3.\n How many with 4?\n <<3+4=7>> 7.\n How many with 5?\n <<7+5=12>> 12.\n#### 12"
ANN = {"problem": "Ann has 3.", "answer": "12", "steps": [
    {"question": "How many with 4?", "solution": "<<3+4=7>> 7."},
    {"question": "How many with 5?", "solution": "<<7+5=12>> 12."}]}


def scripted(rows=1):
    """A decomposer, and a solver that cannot do arithmetic but goes on correctly after a correct result."""
    return {"solver": Script(WRONG, RIGHT, rows=rows, pretrained=True), "decomposer": Script(ASK, rows=rows)}


# ---- the procedures ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", PROCEDURES)
@pytest.mark.parametrize("guidance, told, letters", [
    (None, None, False), (None, None, True), ("steps", " 2\n", False),
    ("equations", " 3+4=7, 7+5=12\n", False)])
def test_each_student_reads_and_writes_the_sequence_of_its_role(name, guidance, told, letters):
    """A scripted student errs as soon as it reads anything but what data.segments lays out for training."""
    procedure, roles = PROCEDURES[name]
    students = {}
    for role in roles:
        parts = segments(ANN, role, guidance, letters=letters)
        script = "".join(text or "" for text, _ in parts)
        students[role] = Script(script, guidance=guidance, letters=letters)
        assert ("<<α+4=β>> β" in script) == (letters and "s" in ROLES[role].step)
        assert not guidance or parts.pop(1) == (told, False)
        assert parts == segments(ANN, role, letters=letters)
    (_, record), = solve([ANN], procedure, students)
    fields = {"cot": ["solution"], "answer": []}.get(name, ["question", "solution"])
    steps = [{field: step[field] for field in fields} for step in ANN["steps"]] if fields else []
    assert record == {"steps": steps, "answer": "12", "unfinished": None, "log_p": pytest.approx(0, abs=1e-6)}
    for one in students.values():
        assert one.written[0] + [BYTES.end] == one.scripts[0]


def converse(procedure, lines):
    """What a procedure requests of students that write these lines, "." for <|endoftext|>, and its record."""
    record, requested = infer.new_record(), []
    requests, reply = procedure(ANN, record), None
    with contextlib.suppress(StopIteration):
        for line in lines:
            request = requests.send(reply)
            requested.append((request.anew, *request.append))
            reply = (line[:-1], "end", -0.5) if line.endswith(".") else (line, "newline", -0.5)
        requests.send(reply)
    return record, requested


@pytest.mark.parametrize("name, lines, why", [
    ("socratic", ["."], "the decomposer wrote no question"),
    ("socratic", [f"q{i}" for i in range(17)], "the decomposer went on after 16 steps"),
    ("socratic", ["q1", "q2."], "the decomposer did not end its question properly"),
    ("socratic", ["q1", ".", "."], "the solver wrote no solution"),
    ("socratic", ["q1", ".", "s", "a"], "the solver did not end its answer properly"),
    ("stepwise", ["q", "s"] * 16 + ["q"], "the stepwise student went on after 16 steps"),
    ("unified", ["q", "#### 5."], "the unified student did not end its solution properly"),
    ("cot", [f"s{i}" for i in range(17)], "the cot student went on after 16 steps"),
    ("cot", ["s", "####."], "the cot student wrote no answer"),
    ("answer", ["."], "the answer student wrote no answer")])
def test_a_dialogue_that_goes_astray_ends_and_says_why(name, lines, why):
    with pytest.raises(Unfinished, match=f"^{why}$"):
        converse(PROCEDURES[name][0], lines)


@pytest.mark.parametrize("whole", ["5", ""])
def test_a_second_look_is_a_dialogue_of_its_own(whole):
    """About the last question alone, also where the first has come to no answer; of one there is none."""
    record, requested = converse(infer.second_look, ["Q1?", "Q2?", ".", "s1", "s2", whole + ".", "s3", "7."])
    assert requested[3:] == [(True, " Q1?\n"), (False, " Q2?\n"), (False, "####"),
                             (True, " Q2?\n"), (False, "####")]
    first = {"steps": [{"question": "Q1?", "solution": "s1"}, {"question": "Q2?", "solution": "s2"}],
             "answer": whole or None, "log_p": -1.5,
             "unfinished": None if whole else "the solver wrote no answer"}
    assert record == first | {"second_look": {"steps": [{"question": "Q2?", "solution": "s3"}], "answer": "7",
                                              "unfinished": None, "log_p": -1.0, "asked": ["Q1?", "Q2?"]}}
    record, _ = converse(infer.second_look, ["Q?", ".", "s", "5."])
    assert record["answer"] == "5" and len(record["steps"]) == 1 and "second_look" not in record


def test_a_line_that_repeats_itself_is_cut():
    students = {"answer": Script(" Ann has 3.\n#### " + "how many now, " * 20)}
    (_, record), = solve([ANN], infer.answer, students)
    assert record["unfinished"] == "the answer student repeated itself"
    assert students["answer"].tokens_written == 48  # three times 14 letters, then the next multiple of 8
    for text in "1*2*2*2*2*2*2*2*2*2*2*2*2=", "10+10+10+10+10+10=", "1,000,000,000,000":
        assert not infer.repeats_itself(list(text))


# ---- metrics and evaluation --------------------------------------------------------------------------------

def test_wilson_and_mcnemar_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle here: pip install scipy")
    for correct, n in ((0, 10), (3, 10), (10, 10), (953, 1000), (1, 1319)):
        interval = stats.binomtest(correct, n).proportion_ci(method="wilson")
        assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-6)
    for a, b in ((0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 71), (0, 12)):
        assert mcnemar(a, b) == pytest.approx(stats.binomtest(a, a + b).pvalue if a + b else 1.0, rel=1e-9)


def dialogue(answer, log_p=0.0, equation="5+8", **more):
    steps = [{"question": "How many?", "solution": f"<<{equation}={answer}>>{answer}"}]
    return {"steps": steps, "answer": answer, "unfinished": None, "log_p": log_p, **more}


@pytest.mark.parametrize("dialogues, winner", [
    ([dialogue("7"), dialogue("8"), dialogue("8.0"), dialogue("$8")], 1),  # answers are numbers
    ([dialogue("7", -1.0), dialogue("8", -1.8), dialogue("8", -1.7)], 0),  # e^-1 > e^-1.8 + e^-1.7
    ([dialogue("7", -1.0), dialogue("8", -1.7), dialogue("8", -1.6)], 2),  # e^-1 < e^-1.7 + e^-1.6
    ([dialogue("7", -1.0, "5+5"), dialogue("8", -2.4)], 1),  # does not use the 8, which costs it 1.5
    ([dialogue("7", -1.0, "5+5"), dialogue("8", -2.6)], 0),
    ([dialogue("-7", -1.0), dialogue("8", -9.0), dialogue("2.5", -1.0)], 1),  # doubtful ones have no vote
    ([dialogue("-7", -1.0), dialogue("2.5", -0.9)], 1),  # but if all are
    ([dialogue(None, -1.0), dialogue("8", -800.0), dialogue("7", -801.0)], 1), ([dialogue(None)] * 2, 0)])
def test_answers_win_by_the_probability_of_their_dialogues(dialogues, winner):
    problem = {"problem": "Tom has 5 apples, Ann has 8."}
    for k in range(len(dialogues)):  # whichever are second looks, in whatever order
        records = [one | {"sample": n} for n, one in enumerate(dialogues)]
        if 0 < k:
            records[k - 1]["second_look"] = dialogues[k] | {"asked": []}
            del records[k]
        found = vote(problem, random.Random(k).sample(records, len(records)))
        assert {name: found[name] for name in dialogues[winner]} == dialogues[winner]
        answers = [one["answer"] for one in dialogues]
        assert found.get("votes") == (answers if any(answers) else None)


@pytest.mark.parametrize("problem, result, doubtful", [
    ("Tom has 5 apples.", "3", False), ("Tom has $5.", "-3", True), ("Tom has 5 apples.", "2.5", True),
    ("The price is 5.", "2.5", False), ("A rope of 2.5 meters.", "1.25", False), ("1/2 of it", "2.5", False)])
def test_results_below_zero_or_with_decimals_are_doubtful(problem, result, doubtful):
    assert infer.is_doubtful({"problem": problem}, dialogue(result)) == doubtful


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command with the scripted students, problems in p.jsonl, a text (bytes) on stdin.

    Returns the lines that it prints or, if it fails, its exit status and what it says on stderr.
    """
    monkeypatch.chdir(tmp_path)
    open_students(monkeypatch, scripted)
    for role in "solver", "decomposer", "cot":
        Path("runs", role).mkdir(parents=True)
        Path("runs", role, "model.safetensors").write_text(role)

    def run(*argv, problems=None, typed=b""):
        if problems:
            write_problems("p.jsonl", problems)
            argv = "--eval", "p.jsonl", *argv
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        try:
            run_script(lambda: main([str(arg) for arg in argv]))
        except SystemExit as e:
            return e.code, capsys.readouterr().err
        return capsys.readouterr().out.splitlines()
    return run


def open_students(monkeypatch, make_students):
    """Let a folder that exists hold one of make_students(rows), {role: Student}."""
    def load(folder, role, rows, *more):
        return make_students(rows)[role] if folder.exists() else load_student(folder, role, rows, *more)
    monkeypatch.setattr(infer, "load_student", load)


def rows_of(path):
    """The results in a file of --out, in the order of the problems."""
    return sorted([json.loads(line) for line in Path(path).read_text().splitlines()][1:],
                  key=lambda result: result["row"])


def test_evaluation_counts_and_keeps_every_dialogue(run):
    unknown = {"problem": "Bob?", "answer": "1", "steps": ANN["steps"][:1], "id": "bob", "source": "b"}
    unscored = [{"problem": "Ann has 3."}, {"problem": "Ann has 3.", "answer": None, "id": 7}]
    lines = run("--out", "o", problems=[ANN, unknown, ANN | {"answer": "15"}, *unscored])
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
    assert run(problems=unscored)[1:] == ["not scored, without a known answer: 2 of 2"]
    questions = [{"question": step["question"]} for step in ANN["steps"]]
    assert "100.0 % (1/1)" in run("--procedure", "given", problems=[ANN | {"steps": questions}])[-1]


def test_samples_vote_in_an_evaluation(run):
    no_utf8 = {"problem": "Ann has 3 \ud800 cats."}
    for _ in range(2):
        lines = run("--out", "o", "--votes", 3, "--temperature", 0.01,
                    problems=[ANN, ANN | {"answer": "13"}, no_utf8])
        assert "accuracy 50.0 % (1/2)" in lines[-1]
        assert not any("votes" in row for row in rows_of("o"))  # all are certain, or have no answer
        Path("o").write_bytes(b"".join(Path("o").read_bytes().splitlines(True)[:-1]))  # the last is lost


def test_report_shows_every_text_as_text(run):
    hostile = "</summary><script>alert(1)</script><img src=x onerror=alert(1)> & {0} %s"
    steps = [{"question": hostile, "solution": hostile}]
    run("--report", "r.html", problems=[ANN, ANN | {"answer": "13"}, {"problem": "Ann has 3."}, {
        "problem": hostile, "answer": hostile, "steps": steps, "source": hostile}])
    page, reader, tags, texts = Path("r.html").read_text(), html.parser.HTMLParser(), set(), []
    reader.handle_starttag, reader.handle_data = lambda tag, _: tags.add(tag), texts.append
    reader.feed(page)
    text = "".join(texts)
    assert not tags & {"script", "img", "link", "iframe"} and "http" not in page
    assert text.count(hostile) == 5  # problem, question, solution, answer, source
    assert text.count("How many with 4? <<3+4=7>> 7.") == 5  # students' and two teachers'
    assert re.findall("<details class=(.*?)>", page) == ["correct", "wrong", "unscored", "wrong"]


# ---- results files -----------------------------------------------------------------------------------------

@pytest.fixture
def folder(trained, tmp_path):
    """The folder of a solver."""
    for part in trained["solver"]:
        part.save_pretrained(tmp_path)
    (tmp_path / "student.json").write_text('{"role": "solver", "pretrained": true}')
    return tmp_path


def start(folder, *argv, **pipes):
    """Start infer.py, in a process of its own, with the folder's solver."""
    command = [sys.executable, "infer.py", "--procedure", "given", "--solver", folder, "--device", "cpu"]
    return subprocess.Popen([*command, *argv], cwd=ROOT, **pipes)


def test_a_killed_evaluation_goes_on_where_it_stopped(folder, capsys):
    """Killed (SIGKILL), with its last line cut off: in the end every problem stands there once."""
    write_problems(folder / "eval.jsonl", PROBLEMS * 6)
    flags, out = ["--eval", str(folder / "eval.jsonl"), "--rows", "4"], folder / "killed.jsonl"

    def evaluated(path):
        main(["--procedure", "given", "--solver", str(folder), "--device", "cpu", *flags, "--out", str(path)])
        return capsys.readouterr().out.splitlines()[-1], rows_of(path)

    process = start(folder, *flags, "--out", out, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 20):
        time.sleep(0.002)
    process.kill()
    process.wait()
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


def test_another_runs_results_and_foreign_files_are_refused(run):
    run("--out", "o", problems=[ANN, ANN])
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
        assert run("--eval", "p.jsonl", "--out", "o", *flags) == (status, f"error: {message}\n")
        assert Path("o").read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(run):
    said = "error: --out /dev/full: No space left on device\n"
    assert run("--out", "/dev/full", problems=[ANN]) == (1, said)


def test_two_results_files_are_compared(run):
    for name, first, correct in (("a", 1, [True] * 9 + [False] * 3 + [None]),
                                 ("b", 1, [True] * 2 + [False] * 8 + [True] * 2 + [None]),
                                 ("c", 2, [True] * 12)):
        rows = [{"row": k, "problem": f"p{k}", "correct": each} for k, each in enumerate(correct, first)]
        write_problems(name, [{"settings": {}}, *rows])
    assert run("--compare", "a", "b") == [
        "a: 75.0 % (9/12)", "b: 33.3 % (4/12)",
        "both correct: 2, only the first: 7, only the second: 2, neither: 1",
        "McNemar's exact test: p = 0.18"]
    assert run("--compare", "a", "c") == (1, "error: --compare: a and c are not of the same problems\n")


# ---- the prompt and the flags ------------------------------------------------------------------------------

TRANSCRIPT = ["Question 1: How many with 4?", "Solution 1: <<3+4=7>> 7.",
              "Question 2: How many with 5?", "Solution 2: <<7+5=12>> 12.", "Answer: 12"]


def test_the_mark_of_cot_is_no_solution_and_no_text_steers_the_terminal(run, monkeypatch):
    script = " Ann has 3.\n 3, 4.\n \x1b7\n#### \x9b7"
    open_students(monkeypatch, lambda rows: {"cot": Script(script)})
    assert run("--procedure", "cot", "--problem", "Ann has 3.") == [
        "Solution 1: 3, 4.", "Solution 2: \N{REPLACEMENT CHARACTER}7", "Answer: \N{REPLACEMENT CHARACTER}7"]


def test_an_answer_that_others_voted_against_is_unsure():
    line = lambda answer, *votes: infer.answer_line({"answer": answer, "votes": votes, "unfinished": "w"})
    assert line("12", "12", "12.0", None, "7") == "Answer: 12 (unsure: 2 of 4 votes)"
    assert line("12", "12", "$12") == line("12") == "Answer: 12" and line(None, "7") == "No answer: w"


def test_the_prompt_reads_a_problem_a_line_and_leaves_at_the_end(run):
    too_long = "No answer: the decomposer can read no more than 400 tokens, the text is too long"
    found = run(typed=b"Ann has 3.\n\n  \n" + b"9" * 500 + b"\nAnn has 3.\n")
    assert found == [*TRANSCRIPT, too_long, *TRANSCRIPT]
    assert run(typed=b"\xff\xfe?\n")[-1] == "No answer: the decomposer repeated itself"
    own_questions = b"Ann has 3.\nHow many with 4?\nHow many with 5?\n\n"
    assert run("--procedure", "given", typed=own_questions) == TRANSCRIPT


def test_what_is_no_problem_gets_one_line(run, monkeypatch):
    no_problem, *others = run(typed=b"Hello\nAnn has two.\nDo cats fly?\n")
    assert no_problem == infer.NO_PROBLEM and infer.NO_PROBLEM not in others and len(others) == 2
    assert all(map(infer.PROBLEM_SIGN.search, ("the 2nd of May", "x2", "fifty cats", "a dozen", "why?")))
    assert run("--procedure", "given", typed=b"Hello\n") == [infer.NO_PROBLEM]
    for text in "Hello", "", " ":
        assert run("--problem", text) == (1, "")
    asks_nothing = {"solver": Script(RIGHT), "decomposer": Script(" How are you?\n")}
    open_students(monkeypatch, lambda rows: asks_nothing)
    assert run(typed=b"How are you?\n") == [
        "No answer: the decomposer wrote no question; is this a word problem?"]


def test_a_guided_student_wants_its_guide(run, monkeypatch):
    guided = ASK.replace("3.\n", "3.\n 2\n")
    open_students(monkeypatch, lambda rows: scripted(rows) | {
        "decomposer": Script(guided, rows=rows, guidance="steps")})
    refusal = (2, "error: the decomposer was trained with --guidance steps: tell it by --guide TEXT, "
               "or in a file by 'steps' or 'guide' of each problem\n")
    assert run("--problem", "Ann has 3.") == refusal
    assert run("--problem", "Ann has 3.", "--guide", "2") == TRANSCRIPT
    lines = run(problems=[ANN, {"problem": "Ann has 3.", "guide": 2}, ANN | {"guide": 9}])
    assert "guided by the steps of the file's own solutions" in lines and "50.0 % (1/2)" in lines[-1]
    assert run(problems=[ANN, {"problem": "Ann has 3."}]) == refusal


def test_a_student_that_did_not_learn_to_calculate_has_the_calculator(run, monkeypatch):
    open_students(monkeypatch, lambda rows: scripted(rows) | {
        "solver": Script(WRONG, RIGHT, rows=rows, calculates=False, pretrained=True)})
    assert run("--problem", "Ann has 3.", "--no-calculator") == (
        2, "error: the solver was not trained to calculate: train.py --no-calculator does\n")
    assert run("--problem", "Ann has 3.") == TRANSCRIPT


def test_students_from_scratch_vote_and_take_second_looks(run, monkeypatch):
    alone = " Ann has 3.\n How many with 5?\n <<3+9=12>> 12.\n#### 12"
    students = scripted(infer.VOTES) | {
        "solver": Script(RIGHT.replace("3+4=7>> 7", "1-4=-3>> -3"), alone, rows=infer.VOTES,
                         merged_steps=0.5)}
    open_students(monkeypatch, lambda rows: students)
    of_second_look = [TRANSCRIPT[2].replace("2", "1"), "Solution 1: <<3+9=12>> 12.", "Answer: 12"]
    for votes in [], ["--votes", 1]:  # the first look has -3, which is doubtful, the second is certain
        assert run("--problem", "Ann has 3.", *votes) == of_second_look
    n_tokens = students["solver"].tokens_written
    assert run("--problem", "Ann has 3.", "--no-second-look")[-1] == TRANSCRIPT[-1]  # all have -3
    assert students["solver"].tokens_written > n_tokens * infer.VOTES / 3


@pytest.mark.parametrize("where", ["builtins.input", "infer.choose"])
def test_ctrl_c_leaves_the_prompt_quietly(run, monkeypatch, where):
    monkeypatch.setattr(where, Mock(side_effect=KeyboardInterrupt))
    assert run(typed=b"Ann has 3.\n") == []


def test_prompt_in_a_terminal(folder):
    """Through a pseudo-terminal: it greets, labels what it wants, and leaves at Ctrl-D with a new line."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    ours, theirs = pty.openpty()
    process = start(folder, stdin=theirs, stdout=theirs, stderr=theirs)
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
    ("--procedure answer", 1,
     "runs/answer: no student here yet; make one with: python train.py --role answer\n"),
    ("--solver s", 1, "s: no student here yet; make one with: python train.py --role solver --out s\n"),
    ("--procedure cot --solver x", 2, "--procedure cot has no use for --solver\n"),
    ("--procedure given --problem x", 2, "--procedure given needs sub-questions: from --eval "),
    ("--procedure cot --no-second-look", 2, "--procedure cot has no second look"),
    ("--procedure given --eval bare.jsonl", 1, "bare.jsonl:1: field 'steps' must be a list with "),
    ("--eval none.jsonl", 1, "none.jsonl: No such file or directory\n"),
    ("--eval bad.jsonl", 1, "bad.jsonl:2: field 'problem' is missing\n"),
    ("--eval empty.jsonl", 1, "empty.jsonl: holds no problem\n"),
    ("--eval good.jsonl --out no/such/folder.jsonl", 1, "no/such/folder.jsonl: No such file or directory\n"),
    ("--problem x --eval good.jsonl", 2, "argument --eval: not allowed with argument --problem"),
    ("--report x", 2, "--report goes with --eval FILE\n"),
    ("--votes 3 --temperature 0 --eval good.jsonl", 2, "--votes, --top-k and --top-p need a --temperature "),
    ("--guide 3 --eval good.jsonl", 2, "--guide does not go with --eval, which tells the steps "),
    ("--votes 0", 2, "argument --votes: 0 is no whole number from 1"),
    ("--compare good.jsonl good.jsonl", 1, "good.jsonl: no results file of --eval FILE --out FILE\n"),
    ("--device abacus", 2, "--device abacus: ")])
def test_bad_usage_is_one_line_before_anything_is_solved(argv, status, message, run, monkeypatch):
    write_problems("good.jsonl", [ANN])
    write_problems("bad.jsonl", [ANN, {"answer": "x", "steps": []}])
    write_problems("bare.jsonl", [{"problem": "Ann has 3."}])
    Path("empty.jsonl").write_text("\n")
    monkeypatch.setattr(infer, "solve", None)
    code, said = run(*argv.split())
    assert code == status and said.startswith("error: " + message) and said.count("\n") == 1


# ---- students' folders -------------------------------------------------------------------------------------

def test_a_student_opens_as_it_was_saved_and_a_folder_that_does_not_fit_is_one_line(folder, trained):
    model, tokenizer = trained["solver"]
    (folder / "student.json").write_text('{"role": "solver", "guidance": "steps", "calculates": false}')
    loaded = load_student(folder, "solver", rows=2)
    assert (loaded.tokenizer.ranks, loaded.guidance) == (tokenizer.ranks, "steps")
    assert loaded.about == {"role": "solver", "guidance": "steps", "calculates": False}
    for p, q in zip(loaded.model.parameters(), model.parameters()):
        torch.testing.assert_close(p.double(), q, rtol=1e-6, atol=1e-7)

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
    for content in '{"role"', "[]", "{}":
        (folder / "student.json").write_text(content)
        assert "student.json: not what train.py writes" in refusal()


def test_output_closed_early_ends_quietly(folder):
    write_problems(folder / "eval.jsonl", PROBLEMS)
    process = start(folder, "--eval", folder / "eval.jsonl", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
