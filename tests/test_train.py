"""train.py: the loss and the optimizer against separate computations, the scripts from end to end, what a user can do wrong."""
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import annotate
import infer
import train
from data import Tokenizer, UserError, encode_problems, jsonl, make_batch, read_problems, run, segments, write_problems
from model import GPT, GPTConfig, read_safetensors

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
    write_problems("annotations/train.jsonl", problems)
    write_problems("annotations/valid.jsonl", problems[::-1])  # in the same order they would be the same file, and warned of
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


def test_matrices_decay_and_vectors_do_not_nor_embeddings_beside_muon():
    model = GPT(GPTConfig(300, 16, 1, 2, 16)).initialise(0)
    for name in "muon", "adamw":
        optimizers = train.make_optimizers(model, SimpleNamespace(optimizer=name, lr=1e-3, weight_decay=0.1))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        assert sorted(map(id, model.parameters())) == sorted(id(p) for group in groups for p in group["params"])
        for group in groups:
            tables = any(p is table.weight for p in group["params"] for table in (model.wte, model.wpe))
            decays = group["params"][0].dim() == 2 and not (name == "muon" and tables)
            assert group["weight_decay"] == 0.1 * decays and len({p.dim() for p in group["params"]}) == 1


def test_tokens_that_never_occur_stay_apart():
    """A student from scratch can copy a word that it never saw only as long as it can tell its tokens from others."""
    model = GPT(GPTConfig(300, 32, 2, 2, 32)).initialise(0)
    draw, start = torch.Generator().manual_seed(0), model.wte.weight[100:].detach().clone()
    optimizers = train.make_optimizers(model, SimpleNamespace(optimizer="muon", lr=3e-3, weight_decay=0.1))
    for _ in range(300):
        half = torch.randint(100, (8, 16), generator=draw)
        ids = torch.cat([half, half], 1)  # each token again, 16 later
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    unseen = torch.nn.functional.normalize(model.wte.weight[100:].detach())
    # AdamW's usual epsilon, with decay, comes to 0.92 and 0.32 here, and to 0.97 between the bytes that the README's student never sees
    assert (unseen @ unseen.T).mean() < 0.8 and torch.cosine_similarity(unseen, start).mean() > 0.5


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
    assert lines[-1] == "next: python train.py --role decomposer --init runs/solver --minutes 1.5"
    lines = done(script("train.py", "--role", "decomposer", "--init", "runs/solver", "--steps", 150, "--warmup", 20, cwd=here))
    assert lines[-1] == "next: python infer.py"
    lines = done(script("infer.py", "--eval", "annotations/train.jsonl", "--out", "dialogues.jsonl", cwd=here))
    assert "questions exactly the teacher's: 100.0 % (8/8), in any order: 100.0 % (8/8)" in lines
    assert lines[-1] == "accuracy 100.0 % (8/8), 95 % interval 67.6-100.0"
    for role in "solver", "decomposer":
        model, tokenizer = GPT.open(f"runs/{role}"), Tokenizer.open(f"runs/{role}")
        taught = read_problems("annotations/train.jsonl")
        assert train.solved(model, tokenizer, taught, role) == {"solved": 8, "of": 8} and model.training
        asked_else = [problem | {"steps": problem["steps"][1:], "answer": "no number"} for problem in taught]
        assert train.solved(model, tokenizer, asked_else, role) == {"solved": 0, "of": 8}
    for dialogue in map(json.loads, Path("dialogues.jsonl").read_text().splitlines()[1:]):  # the first says of which run
        teacher = next(p for p in read_problems("annotations/train.jsonl") if p["problem"] == dialogue["problem"])
        assert dialogue["answer"] == teacher["answer"]
        assert [step["question"] for step in dialogue["steps"]] == [step["question"] for step in teacher["steps"]]
    bare = [{key: problem[key] for key in ("problem", "answer")} for problem in taught]
    Path("bare.jsonl").write_bytes(jsonl(bare))
    done(script("annotate.py", "self", "bare.jsonl", "--samples", 2, "--temperature", 0.01, "--limit", 5, "--out", "self.jsonl", cwd=here))
    assert [row["steps"] for row in read_problems("self.jsonl")] == [problem["steps"] for problem in taught[:5]]
    process = script("annotate.py", "self", "annotations/train.jsonl", "--samples", 2, "--temperature", 0.01, "--out", "none.jsonl", cwd=here)
    assert "none of 16 samples is right and new" in process.communicate(timeout=240)[1] and process.returncode == 1


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
    drawn = ElementTree.parse(folder / "curve.svg")
    lines = [len(line.get("points").split()) for line in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
    assert lines == [len([row for row in rows if "loss" in row]), 10]
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
    process.send_signal(signal.SIGINT)
    lines = done(process, status=130)
    assert "stopped early, but usable in runs/solver" in lines
    assert infer.open_student(Path("runs/solver"), "solver", slots=1).model.config.n_embd == 32
    assert json.loads(Path("runs/solver/last/student.json").read_text())["stopped"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_too_and_is_kept_in_float32(dtype, here):
    done(script("train.py", "--role", "solver", "--steps", 150, "--warmup", 20, "--dtype", dtype, *TINY, cwd=here))
    losses = [row["valid_loss"] for row in map(json.loads, Path("runs/solver/log.jsonl").open()) if "valid_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert GPT.open("runs/solver").wte.weight.dtype == torch.float32


# ---- one step, however it is taken; a run, however it is broken off ----------------------------------------------------

def weights(folder):
    """All weights of a student, {name: float64 tensor}."""
    return {name: tensor.double() for name, tensor in read_safetensors(Path(folder, "model.safetensors"))}


def test_a_step_is_that_of_a_float64_computation(here, problems):
    """AdamW's first step after clipping, from the gradient of all sequences one by one: against float64 autograd."""
    Tokenizer.learn((text for one in problems for text, _ in segments(one, "cot") if text), 1024).save(here)
    start = GPT(GPTConfig(Tokenizer.open(here).vocab_size, 256, 2, 2, 32)).initialise(0)
    start.save(here)
    train.main(["--role", "cot", "--init", str(here), "--steps", "1", "--warmup", "1", "--lr", "0.01", "--weight-decay", "0.2",
                "--text-weight", "0.3", "--batch-tokens", "100000", "--accumulate", "3"])
    model, total, weight = GPT.open(here).double(), 0.0, 0.0
    for ids, learned in encode_problems(problems, "cot", Tokenizer.open(here)):
        w = torch.tensor(np.where(learned[1:], 1.0, 0.3))
        nats = -torch.log_softmax(model(torch.tensor(ids[None, :-1].astype(np.int64)))[0], -1)
        total, weight = total + (nats[range(len(w)), ids[1:].astype(np.int64)] * w).sum(), weight + w.sum()
    (total / weight).backward()
    norm = math.sqrt(sum(float((p.grad ** 2).sum()) for p in model.parameters()))
    kept = weights("runs/cot/last")
    for name, p in model.named_parameters():
        g = p.grad * min(1.0, 1 / norm)
        expected = p.detach() * (1 - 0.01 * 0.2 * (p.dim() == 2)) - 0.01 * g / (g.abs() + 1e-8)
        clear = g.abs() > 1e-5  # below, the sign of a gradient is that of its rounding
        assert torch.allclose(kept["transformer." + name][clear], expected[clear], rtol=1e-5, atol=2e-5), name


def test_a_student_that_began_as_a_gpt2_from_elsewhere_is_trained_gently_by_the_next_one_too(here, problems):
    Tokenizer.learn((text for one in problems for text, _ in segments(one, "solver") if text), 1024).save(here)
    GPT(GPTConfig(Tokenizer.open(here).vocab_size, 256, 2, 2, 32)).initialise(0).save(here)
    train.main(["--role", "solver", "--init", str(here), "--steps", "1", "--out", "fine"])
    train.main(["--role", "solver", "--steps", "1", "--out", "ours", *TINY])
    for init, how in (here, ("adamw", 5e-5, 0, 0)), ("fine", ("adamw", 5e-5, 0, 0)), ("ours", ("muon", 1e-3, 0.3, 0.08)), (None, ("muon", 3e-3, 0.3, 0.08)):
        args = train.parse_args(["--role", "decomposer", *(["--init", str(init)] if init else [])])
        train.settle(args)
        assert (args.optimizer, args.lr, args.text_weight, args.recite) == how
    Path("ours/student.json").write_text("[]")
    with pytest.raises(UserError, match="ours/student.json: not what train.py writes"):
        train.settle(train.parse_args(["--role", "decomposer", "--init", "ours"]))


def ranks(n, *argv, cwd):
    """Start train.py in n processes."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n),
                             ROOT / "train.py", *map(str, argv)], cwd=cwd, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_parts_and_ranks_change_nothing_but_rounding(here):
    """20 steps over batches of unequal parts, more parts than sequences among them."""
    flags = ["--role", "solver", "--steps", 20, "--warmup", 5, "--batch-tokens", 600, *TINY]
    two = ranks(2, *flags, "--out", "two", cwd=here)
    for parts in 1, 2, 8:
        train.main([*map(str, flags), "--accumulate", str(parts), "--out", str(parts)])
    done(two)
    start = GPT(GPTConfig(Tokenizer.open("1").vocab_size, 256, 2, 2, 32)).initialise(0)
    start.save(".")
    before, whole = weights("."), weights("1/last")
    norm = lambda a, b: math.sqrt(sum(float(((a[name] - b[name]) ** 2).sum()) for name in a))
    for other in "2", "8", "two":
        assert norm(weights(Path(other, "last")), whole) < 1e-3 * norm(before, whole), other


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
def test_no_rank_waits_for_one_that_died_and_the_other_can_go_on_alone(here, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    flags = ["--role", "cot", "--save-minutes", "0.005", *TINY]
    first, second = (subprocess.Popen([sys.executable, ROOT / "train.py", *flags, "--steps", "1000000"], env=os.environ | where | {"RANK": rank},
                                      cwd=here, stderr=subprocess.PIPE, text=True) for rank in "01")
    about = Path("runs/cot/last/student.json")
    while first.poll() is None and not (about.exists() and json.loads(about.read_text())["steps"]):
        time.sleep(0.01)
    second.kill()
    said = first.communicate(timeout=120)[1]
    second.communicate()
    assert first.returncode == 1 and said.splitlines()[-1].startswith("error: rank 0: another rank has died: ")
    steps = json.loads(about.read_text())["steps"]
    train.main([*flags, "--steps", str(steps + 1), "--resume"])
    assert "world is 1, the run had 2: the bytes will be others" in capsys.readouterr().err
    assert json.loads(about.read_text())["steps"] == steps + 1


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
def test_a_run_broken_off_comes_to_the_same_bytes(here):
    """By SIGTERM, which keeps at once, and by SIGKILL; with dropout, across epochs."""
    flags = ["--role", "cot", "--steps", 600, "--dropout", "0.1", "--batch-tokens", 512, "--save-minutes", 0.005, *TINY]
    done(script("train.py", *flags, "--out", "whole", cwd=here))
    for number in signal.SIGTERM, signal.SIGKILL:
        process = script("train.py", *flags, "--out", "broken", "--resume", cwd=here)
        about, before = Path("broken/last/student.json"), time.time()
        while process.poll() is None and not (about.exists() and about.stat().st_mtime > before
                                              and json.loads(about.read_text())["steps"]):
            time.sleep(0.01)  # until it has kept something
        process.send_signal(number)
        lines = done(process, status=143 if number == signal.SIGTERM else -9)
        if number == signal.SIGTERM and not Path("broken/student.json").exists():  # there was no validation yet
            assert lines[-2:] == ["stopped before the first validation; kept in broken/last", "next: the same command with --resume"]
        assert 0 < json.loads(about.read_text())["steps"] < 600
    done(script("train.py", *flags, "--out", "broken", "--resume", cwd=here))
    for name in "model.safetensors", "last/model.safetensors":
        assert Path("broken", name).read_bytes() == Path("whole", name).read_bytes()
    whole, broken = (torch.load(Path(out, "last/trainer.pt"), weights_only=True) for out in ("whole", "broken"))
    for a, b in zip(whole["optimizers"], broken["optimizers"]):
        assert all(torch.equal(a["state"][p][key], b["state"][p][key]) for p in a["state"] for key in a["state"][p])
    steps = [json.loads(row)["steps"] for row in Path("broken/log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 600


@pytest.mark.skipif(os.name == "nt", reason="no resource limits")
def test_a_full_disk_leaves_what_was_kept(here):
    import resource
    flags = ["--role", "cot", "--steps", 5, *TINY]
    train.main([*map(str, flags)])
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file() and path.suffix not in (".jsonl", ".svg")}
    limit = Path("runs/cot/last/trainer.pt").stat().st_size // 2
    process = script("train.py", *flags[:3], 10, *TINY, "--resume", cwd=here,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 1 and err.endswith("\nerror: runs/cot/last: File too large\n"), err
    kept = {path: path.read_bytes() for path in before if path.parent.name == "last"}
    assert kept and all(before[path] == content for path, content in kept.items())
    assert not list(Path("runs").rglob(".writing"))


def test_resume_refuses_another_run_and_names_what_moves_its_bytes(here, capsys):
    flags = ["--role", "cot", "--steps", "3", *TINY]
    train.main(flags)
    capsys.readouterr()
    write_problems("other.jsonl", read_problems("annotations/train.jsonl")[1:])
    for more, message in (["--role", "solver", "--out", "runs/cot"], "--role is solver, the run had cot"), \
            (["--train", "other.jsonl"], "--train is other data"), (["--lr", "1"], "--lr is 1.0, the run had 0.003"), \
            (["--n-embd", "64"], "--n-embd is 64, the run had 32"):
        code, said = fails(capsys, *flags, *more, "--resume")
        assert (code, said) == (2, f"error: runs/cot/last/trainer.pt: cannot go on: {message}\n")
    train.main([*flags, "--steps", "6", "--accumulate", "2", "--resume"])
    said = capsys.readouterr().err
    assert "steps is 6, the run had 3: the bytes will be others" in said and "accumulate is 2, the run had 1" in said
    assert "from step 3" in said and json.loads(Path("runs/cot/last/student.json").read_text())["steps"] == 6
    Path("runs/cot/last/trainer.pt").write_bytes(b"no pickle")
    code, said = fails(capsys, *flags, "--resume")
    assert code == 1 and said.startswith("error: runs/cot/last/trainer.pt: broken, cannot go on with it") and said.count("\n") == 1


def test_a_run_is_not_lost_for_want_of_a_flag(here, capsys):
    """A run that was broken off before the first validation, begun once more without --resume."""
    train.main(["--role", "cot", "--steps", "2", *TINY])
    Path("runs/cot/student.json").unlink()
    before = Path("runs/cot/last/trainer.pt").read_bytes()
    capsys.readouterr()
    assert fails(capsys, "--role", "cot", "--steps", 2, *TINY) == (
        2, "error: runs/cot: holds a run that was broken off; --resume goes on with it, --force replaces it\n")
    assert Path("runs/cot/last/trainer.pt").read_bytes() == before


def test_a_longer_resumed_run_validates_to_its_end(here):
    for steps in "20", "60":
        train.main(["--role", "cot", "--steps", steps, "--resume", *TINY])
    validated = [row["steps"] for row in map(json.loads, Path("runs/cot/log.jsonl").open()) if "valid_loss" in row]
    assert validated == [*range(2, 21, 2), *range(24, 61, 6)]


def test_validations_take_a_tenth_of_a_limited_time(here, monkeypatch):
    validate, begun = train.validate, []

    def slow(*args):
        begun.append(time.monotonic())
        time.sleep(0.3)
        return validate(*args)

    monkeypatch.setattr(train, "validate", slow)
    train.main(["--role", "cot", "--minutes", "0.05", *TINY])
    assert len(begun) == 2  # after a tenth, and at the end


def test_epochs_and_patience_end_a_run(here, capsys):
    train.main(["--role", "cot", "--epochs", "3", "--recite", "0", "--batch-tokens", "1024", *TINY])
    about = json.loads(Path("runs/cot/last/student.json").read_text())
    assert about["epochs"] == 3 and about["used"] == 0
    train.main(["--role", "cot", "--steps", "50", "--lr", "1e-30", "--weight-decay", "0", "--patience", "2", "--out", "p", *TINY])
    assert json.loads(Path("p/last/student.json").read_text())["steps"] < 25


def test_solving_takes_one_per_cent_of_the_training():
    affordable = lambda **figures: train.affordable(dict(tried=0, solving=0.0) | figures)
    assert affordable(seconds=5) == 0 and affordable(seconds=20) == 4
    assert affordable(seconds=100, tried=4, solving=0.2) == 16  # 1 s, less 0.2, at 0.05 s each
    assert affordable(seconds=100, tried=4, solving=0.9) == 0 and affordable(seconds=9e9, tried=4, solving=1) == 100


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
    (["--accumulate", "0"], 2, "error: --accumulate must be more than 0\n"),
    (["--epochs", "2", "--steps", "5"], 2, "error: --steps and --epochs, and likewise --force and --resume, exclude each other\n"),
    (["--out", "student", "--resume"], 2, "error: student: holds a student already; --force replaces it, --out DIR leaves it\n"),
    (["--seed", "-1"], 2, "error: --seed must be 0 or more\n"),
    (["--warmup", "-1"], 2, "error: --warmup must be 0 or more\n"),
    (["--text-weight", "nan"], 2, "error: --text-weight must be 0 or more\n"),
    (["--vocab-size", "100"], 2, "error: --vocab-size is that of a learned vocabulary, 257 or more: 256 bytes and the end of a text\n"),
    (["--tokenizer", "gpt2", "--vocab-size", "300"], 2, "error: --vocab-size is that of a learned vocabulary, "),
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
        "next: python train.py --role decomposer --init s --train 'my file.jsonl' --minutes 1.5\n")
    train.main(["--role", "decomposer", "--train", "my file.jsonl", *short])
    assert capsys.readouterr().out.endswith("next: python train.py --role solver --init runs/decomposer --train 'my file.jsonl'\n")
    train.main(["--role", "solver", "--train", "my file.jsonl", "--out", "t", *short])
    assert capsys.readouterr().out.endswith("next: python infer.py --solver t\n")
    train.main(["--role", "cot", "--train", "my file.jsonl", *short])
    assert capsys.readouterr().out.endswith("next: python infer.py --procedure cot\n")


def test_a_rate_that_is_too_high_ends_in_one_line(here, capsys):
    code, said = fails(capsys, "--role", "solver", "--steps", 200, "--lr", "1e6", "--recite", 0, "--save-minutes", 1e-9, *TINY)
    found = re.search(r"error: the loss or its gradient is not a number at step (\d+), annotations/train.jsonl, problems [\d, ]+: try a lower --lr; "
                      r"runs/solver/last holds step (\d+)\n$", said)
    assert code == 1 and int(found[2]) == int(found[1]) - 1
    assert all(tensor.isfinite().all() for tensor in weights("runs/solver/last").values())


def test_out_of_memory_says_which_flag_to_lower(here, capsys, monkeypatch):
    monkeypatch.setattr(train, "weighted_loss", lambda *_: torch.empty(2 ** 60))
    code, said = fails(capsys, "--role", "cot", "--steps", 2, *TINY)
    assert code == 1 and said.splitlines()[-1].startswith("error: out of memory: lower --batch-tokens (1024), or")


def test_validating_on_the_training_problems_is_warned_of(here, capsys):
    train.main(["--role", "cot", "--steps", "1", "--valid", "annotations/train.jsonl", *TINY])
    assert "annotations/train.jsonl: the same problems as in annotations/train.jsonl" in capsys.readouterr().err


def test_ranks_that_do_not_meet_are_one_line(here, capsys, monkeypatch):
    with __import__("socket").socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for key, value in dict(RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=taken.getsockname()[1]).items():
            monkeypatch.setenv(key, str(value))
        code, said = fails(capsys, "--role", "cot", "--steps", 1)
    assert code == 1 and "error: the ranks do not meet at 127.0.0.1:" in said.splitlines()[-1]
