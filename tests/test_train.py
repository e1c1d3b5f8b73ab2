"""train.py: the loss and the optimizer against separate computations, the scripts from end to end, what a user can do wrong."""
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import annotate
import infer
import train
from data import Tokenizer, UserError, encode_problems, make_batch, read_problems, run, segments, write_problems
from model import GPT, GPTConfig

ROOT = Path(train.__file__).parent
TINY = ["--n-layer", "2", "--n-embd", "32", "--n-head", "2", "--block-size", "256"]


@pytest.fixture(scope="module")
def problems():
    """Eight problems of the template teacher."""
    rng = annotate.Random(5)
    return [annotate.write_problem(annotate.draw_story(rng, 1, 2 + i % 4)) for i in range(8)]


@pytest.fixture
def here(tmp_path, monkeypatch, problems):
    """An empty folder to work in, but for annotations/."""
    monkeypatch.chdir(tmp_path)
    Path("annotations").mkdir()
    for split in "train", "valid":
        write_problems(f"annotations/{split}.jsonl", problems)
    return tmp_path


# ---- the loss ----------------------------------------------------------------------------------------------------------

def test_loss_is_that_of_a_float64_computation_a_token_at_a_time(problems):
    tokenizer = Tokenizer.learn([problem["problem"] for problem in problems], 300)
    model = GPT(GPTConfig(tokenizer.vocab_size, 700, 2, 2, 32)).initialise(0)
    sequences = encode_problems(problems, "solver", tokenizer)
    loss, weight = train.weighted_loss(model, make_batch(sequences, 0.3), train.contextlib.nullcontext)
    model.double()
    expected, learned_loss, weights, n_learned = 0.0, 0.0, 0.0, 0
    for ids, learned in sequences:  # each alone, unpadded, its log-probabilities by numpy
        logits = model(torch.tensor(ids[None, :].astype(np.int64))).detach().numpy()[0]
        for position, (token, counts) in enumerate(zip(ids[1:], learned[1:])):
            row = logits[position]
            nats = math.log(np.exp(row - row.max()).sum()) + row.max() - row[token]
            expected += nats * (1 if counts else 0.3)
            weights += 1 if counts else 0.3
            learned_loss += nats * counts
            n_learned += counts
    assert weight.item() == pytest.approx(weights, rel=1e-6) and loss.item() == pytest.approx(expected, rel=1e-5)
    batches = [make_batch(sequences[:3]), make_batch(sequences[3:])]  # of unequal numbers of tokens
    assert train.validate(model, batches, train.contextlib.nullcontext) == pytest.approx(learned_loss / n_learned, rel=1e-6)


# ---- the optimizer -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (32, 128), (128, 32)])
def test_muon_is_momentum_with_its_singular_values_set_to_one(shape):
    """Against an SVD, matrix by matrix: more of the iteration's steps come nearer to it."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(3, *shape))
    off = []
    for steps in (4, 5):
        p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
        muon = train.Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5, steps=steps)
        weight, m = start.copy(), np.zeros(shape)
        for gradient in gradients:
            p.grad = torch.tensor(gradient, dtype=torch.float32)
            muon.step()
            m = 0.9 * m + 0.1 * gradient
            update = 0.1 * gradient + 0.9 * m  # Nesterov's look ahead
            parts = np.split(update, 3, axis=1) if shape[1] == 3 * shape[0] else [update]
            orthogonal = []
            for part in parts:
                u, _, v = np.linalg.svd(part, full_matrices=False)
                orthogonal.append(0.2 * math.sqrt(max(part.shape)) * (u @ v))
            weight = weight * (1 - 0.1 * 0.5) - 0.1 * np.concatenate(orthogonal, axis=1)
        moved = np.linalg.norm(weight - start)
        off.append(np.linalg.norm(p.detach().numpy() - weight) / moved)
    assert off[0] < 0.25 and off[1] < 0.1


def test_matrices_decay_and_vectors_do_not():
    model = GPT(GPTConfig(300, 16, 1, 2, 16)).initialise(0)
    for name in "muon", "adamw":
        optimizers = train.make_optimizers(model, SimpleNamespace(optimizer=name, lr=1e-3, weight_decay=0.1))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        assert sorted(map(id, model.parameters())) == sorted(id(p) for group in groups for p in group["params"])
        for group in groups:
            assert all((p.dim() == 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_rate_warms_up_and_falls_to_nothing():
    shares = [train.schedule(step, step / 1000, warmup=100) for step in range(1001)]
    assert shares[0] == 0.01 and max(shares) == pytest.approx(1, abs=0.03) and shares.index(max(shares)) == 99
    assert all(a < b for a, b in zip(shares[:99], shares[1:100])) and all(a > b for a, b in zip(shares[99:], shares[100:]))
    assert shares[500] == pytest.approx(0.5) and shares[1000] == pytest.approx(0, abs=1e-12)


# ---- from end to end, through the scripts ------------------------------------------------------------------------------

def script(name, *argv, cwd, **popen):
    """Start a script in a process of its own."""
    return subprocess.Popen([sys.executable, ROOT / name, *map(str, argv)], cwd=cwd, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **popen)


def done(process, status=0):
    """Wait for a script; returns its lines on stdout."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, err
    return out.splitlines()


def test_both_students_overfit_eight_problems_and_solve_all(here):
    shape = ["--n-layer", 2, "--n-embd", 64, "--n-head", 2, "--lr", "4e-3", "--warmup", 20]
    lines = done(script("train.py", "--role", "solver", "--steps", 250, *shape, cwd=here))
    assert lines[-1] == "next: python train.py --role decomposer --init runs/solver --minutes 1"
    lines = done(script("train.py", "--role", "decomposer", "--init", "runs/solver", "--steps", 150, "--warmup", 20, cwd=here))
    assert lines[-1] == "next: python infer.py"
    lines = done(script("infer.py", "--eval", "annotations/train.jsonl", "--out", "dialogues.jsonl", cwd=here))
    assert "questions exactly the teacher's: 100.0 % (8/8), in any order: 100.0 % (8/8)" in lines
    assert lines[-1] == "accuracy 100.0 % (8/8), 95 % interval 67.6-100.0"
    for dialogue in map(json.loads, Path("dialogues.jsonl").read_text().splitlines()[1:]):  # the first says of which run
        teacher = next(p for p in read_problems("annotations/train.jsonl") if p["problem"] == dialogue["problem"])
        assert dialogue["answer"] == teacher["answer"]
        assert [step["question"] for step in dialogue["steps"]] == [step["question"] for step in teacher["steps"]]


def test_same_seed_same_bytes_and_another_seed_others(here):
    for out, seed in ("a", 3), ("b", 3), ("c", 4):
        done(script("train.py", "--role", "unified", "--steps", 12, "--seed", seed, "--out", out, *TINY, cwd=here))
    a, b, c = (Path(out, "last", "model.safetensors").read_bytes() for out in "abc")
    assert a == b and a != c
    assert Path("a", "vocab.json").read_bytes() == Path("c", "vocab.json").read_bytes()


def test_best_and_last_are_kept_with_a_log(here):
    done(script("train.py", "--role", "cot", "--steps", 100, *TINY, cwd=here))
    folder = Path("runs/cot")
    about, last = (json.loads((path / "student.json").read_text()) for path in (folder, folder / "last"))
    assert about["role"] == last["role"] == "cot" and last["steps"] == 100
    rows = [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]
    validations = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert len(validations) == 10 and validations[-1] < validations[0]
    assert about["valid_loss"] == min(validations) == last["best"] and last["valid_loss"] == validations[-1]
    tokenizer = Tokenizer.open(folder)
    batch = make_batch(encode_problems(read_problems("annotations/valid.jsonl"), "cot", tokenizer))
    for path, loss in (folder, min(validations)), (folder / "last", validations[-1]):
        assert train.validate(GPT.open(path), [batch], train.contextlib.nullcontext) == pytest.approx(loss, rel=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_leaves_a_usable_student(here):
    process = script("train.py", "--role", "solver", "--minutes", 30, *TINY, cwd=here)
    process.stderr.readline()  # the line that says what is being trained
    deadline = time.monotonic() + 60
    while not Path("runs/solver/log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    lines = done(process, status=130)
    assert "stopped early, but usable in runs/solver" in lines
    assert infer.open_student(Path("runs/solver"), "solver", slots=1).model.config.n_embd == 32
    assert json.loads(Path("runs/solver/last/student.json").read_text())["stopped"]


def test_bfloat16_learns_too_and_is_kept_in_float32(here):
    done(script("train.py", "--role", "solver", "--steps", 150, "--warmup", 20, "--dtype", "bfloat16", *TINY, cwd=here))
    losses = [row["valid_loss"] for row in map(json.loads, Path("runs/solver/log.jsonl").open()) if "valid_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert GPT.open("runs/solver").wte.weight.dtype == torch.float32


# ---- what a user can do wrong ------------------------------------------------------------------------------------------

def fails(capsys, *argv):
    """Run the command in vain; returns its exit status and what it said on stderr."""
    with pytest.raises(SystemExit) as caught:
        run(lambda: train.main([str(arg) for arg in argv]))
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize("argv, status, message", [
    (["--train", "none.jsonl"], 1, "error: none.jsonl: no annotations here yet; make them with: python annotate.py\n"),
    (["--valid", "none.jsonl"], 1, "error: none.jsonl: No such file or directory\n"),
    (["--train", "bad.jsonl"], 1, "error: bad.jsonl:2: field 'answer' is missing\n"),
    (["--out", "bad.jsonl"], 1, "error: bad.jsonl: File exists\n"),
    (["--out", "student"], 2, "error: student: holds a student already; --force replaces it, --out DIR leaves it\n"),
    (["--init", "student", "--n-embd", "64"], 2, "error: --n-embd cannot be chosen with --init student, which brings its own\n"),
    (["--init", "nowhere"], 2, "error: --init nowhere: no such folder, nor one of gpt2, gpt2-medium, gpt2-large, gpt2-xl\n"),
    (["--block-size", "20"], 1, "error: annotations/train.jsonl: no problem fits into the block of 20 tokens (--block-size)\n"),
    (["--minutes", "0"], 2, "error: --minutes must be more than 0\n"),
    (["--lr", "nan"], 2, "error: --lr must be more than 0\n"),
    (["--n-embd", "100"], 2, "error: --n-embd 100 is no multiple of --n-head 3\n"),
    (["--recite", "1"], 2, "error: --recite must be a share, 0 or more and less than 1\n"),
    (["--device", "abacus"], 2, "error: --device abacus: ")])
def test_bad_usage_is_one_line_and_nothing_is_lost(argv, status, message, here, capsys):
    Path("bad.jsonl").write_text(Path("annotations/train.jsonl").read_text().splitlines()[0] + '\n{"problem": "x", "steps": []}\n')
    Path("student").mkdir()
    Path("student", "student.json").write_text('{"role": "solver"}')
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    code, said = fails(capsys, "--role", "solver", *argv)
    said = said.splitlines(keepends=True)
    assert code == status and said[-1].startswith(message)
    assert len(said) == 1 or "left out" in said[0] and len(said) <= 3  # problems longer than the block are counted first
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_unknown_role_is_bad_usage(capsys):
    code, said = fails(capsys, "--role", "juggler")
    assert code == 2 and "juggler" in said and "decomposer" in said and said.count("\n") == 1


def test_problems_longer_than_the_block_are_counted(here, capsys):
    problems = read_problems("annotations/train.jsonl")
    tokenizer = Tokenizer.learn((text for problem in problems for text, _ in segments(problem, "solver") if text), 1024)
    lengths = sorted(len(ids) for ids, _ in encode_problems(problems, "answer", tokenizer))
    block_size = lengths[4] - 1  # every token but the last is read
    train.main(["--role", "answer", "--steps", "1", "--block-size", str(block_size), "--n-embd", "8"])
    n = sum(length > lengths[4] for length in lengths)
    assert f"annotations/train.jsonl: {n} of 8 problems are longer than the block of {block_size} tokens and left out" in capsys.readouterr().err


def test_the_next_command_names_what_is_not_where_it_is_looked_for(here, capsys):
    short = ["--steps", "1", *TINY]
    Path("annotations/train.jsonl").rename("my file.jsonl")
    train.main(["--role", "solver", "--train", "my file.jsonl", "--out", "s", *short])
    assert capsys.readouterr().out.endswith(
        "next: python train.py --role decomposer --init s --train 'my file.jsonl' --minutes 1\n")
    train.main(["--role", "decomposer", "--train", "my file.jsonl", *short])
    assert capsys.readouterr().out.endswith("next: python train.py --role solver --init runs/decomposer --train 'my file.jsonl'\n")
    train.main(["--role", "solver", "--train", "my file.jsonl", "--out", "t", *short])
    assert capsys.readouterr().out.endswith("next: python infer.py --solver t\n")
    train.main(["--role", "cot", "--train", "my file.jsonl", *short])
    assert capsys.readouterr().out.endswith("next: python infer.py --procedure cot\n")


def test_a_rate_that_is_too_high_ends_in_one_line(here, capsys):
    code, said = fails(capsys, "--role", "solver", "--steps", 200, "--lr", "1e6", *TINY)
    assert code == 1 and re.search(r"error: the loss is not a number at step \d+: try a lower --lr\n$", said)
