"""train.py: a step and Muon against separate computations; runs split, stopped and resumed; bad usage."""
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

import infer
import train
from data import (Tokenizer, UserError, encode_problems, read_problems, run_script, to_jsonl, train_tokenizer,
                  write_problems)
from model import GPT, GPTConfig, init_weights, read_safetensors

ROOT = Path(train.__file__).parent
TINY = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 256".split()
not_on_windows = pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")


@pytest.fixture(scope="module")
def problems():
    """Eight problems of one to four steps, each about names and numbers of its own."""
    names, rows = ["Ann", "Ben", "Carl", "Dana", "Emma", "Finn", "Gina", "Hugo"], []
    for i, name in enumerate(names):
        total, text, steps = 5 + 3 * i, f"{name} has {5 + 3 * i} pens.", []
        for k in range(1 + i % 4):
            other, more = names[(i + k + 1) % 8], 2 + (i * 5 + k * 3) % 9
            text += f" {other} has {more} more."
            steps.append({"question": f"How many pens does {other} have?",
                          "solution": f"<<{total}+{more}={total + more}>> {other} has {total + more} pens."})
            total += more
        problem = f"{text} How many pens does {other} have?"
        rows.append({"id": f"p-{i}", "problem": problem, "steps": steps, "answer": str(total)})
    return rows


@pytest.fixture
def here(tmp_path, monkeypatch, problems):
    """An empty folder to work in, but for annotations/."""
    monkeypatch.chdir(tmp_path)
    Path("annotations").mkdir()
    write_problems("annotations/train.jsonl", problems)
    write_problems("annotations/valid.jsonl", problems[::-1])
    return tmp_path


def run(flags, *more):
    """Run the script in this process: run("--role cot --steps 2", *TINY)."""
    train.main([*flags.split(), *map(str, more)])


def fails(capsys, flags, *more):
    """Run it in vain; returns its exit status and what it said on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: run(flags, *more))
    return caught.value.code, capsys.readouterr().err


def launch(name, flags, *more, **popen):
    """Start a script, or "-m module", in a process of its own."""
    script = [ROOT / name] if name.endswith(".py") else name.split()
    return subprocess.Popen([sys.executable, *script, *flags.split(), *more], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)


def finish(process, status=0):
    """Wait for a script; returns its lines on stdout, or if it is to fail those on stderr."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, err
    return (err if status == 1 else out).splitlines()


def wait_until_saved(folder, process, since=0.0):
    """Wait until a script that runs has saved a student there."""
    file = Path(folder, "student.json")
    while process.poll() is None and not (file.exists() and file.stat().st_mtime > since):
        time.sleep(0.01)


def about(folder):
    """What a student's folder says of its training."""
    return json.loads(Path(folder, "student.json").read_text())


def evaluations(folder):
    """The entries of a run's log that are about an evaluation."""
    return [row for row in train.read_log(Path(folder, "log.jsonl")) if "valid_loss" in row]


def weights(folder):
    """All weights of a student, {name: float64 tensor}."""
    return {name: tensor.double() for name, tensor in read_safetensors(Path(folder, "model.safetensors"))}


def save_gpt2(folder, problems):
    """A GPT-2 folder from elsewhere, with a vocabulary for the problems."""
    tokenizer = train_tokenizer(problems)
    tokenizer.save_pretrained(folder)
    init_weights(GPT(GPTConfig(tokenizer.vocab_size, 256, 2, 2, 32)), 0).save_pretrained(folder)


def cross_entropy(folder, problems, role, prompt_weight=0.0):
    """The weighted mean of a student, in float64, each sequence alone, unpadded; and the model.

    prompt_weight: at the first step, when of the tokens that are only read the second, sixth, ... have loss.
    """
    model, total, weight = GPT.from_pretrained(folder).double(), 0.0, 0.0
    letters = train.student_json(Path(folder)).get("letters", False)
    for ids, mask in encode_problems(problems, role, Tokenizer.from_pretrained(folder), letters=letters):
        weights = [1.0 if written else 4 * prompt_weight * (k % 4 == 1) for k, written in enumerate(mask[1:])]
        ids, weights = torch.tensor(ids).long(), torch.tensor(weights, dtype=torch.float64)
        nats = -torch.log_softmax(model(ids[None, :-1])[0], -1)[range(len(weights)), ids[1:]]
        total, weight = total + (nats * weights).sum(), weight + weights.sum()
    return total / weight, model


# ---- a step ------------------------------------------------------------------------------------------------

def test_a_step_is_that_of_a_float64_computation(here, problems):
    """AdamW's first step after clipping, from the gradient of all sequences one by one."""
    save_gpt2(here, problems)
    run("--role cot --steps 1 --warmup 1 --lr 0.01 --weight-decay 0.2 --prompt-loss-weight 0.3",
        "--batch-tokens", 100_000, "--grad-accum", 3, "--init", here)
    loss, model = cross_entropy(here, problems, "cot", prompt_weight=0.3)
    assert train.read_log("runs/cot/log.jsonl")[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    norm = math.sqrt(sum(float((p.grad ** 2).sum()) for p in model.parameters()))
    saved = weights("runs/cot/last")
    for name, p in model.named_parameters():
        g = p.grad * min(1.0, 1 / norm)
        expected = p.detach() * (1 - 0.01 * 0.2 * (p.dim() == 2)) - 0.01 * g / (g.abs() + 1e-8)
        clear = g.abs() > 1e-5  # below, the sign of a gradient is that of its rounding
        found = saved["transformer." + name]
        assert torch.allclose(found[clear], expected[clear], rtol=1e-5, atol=2e-5), name


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (32, 128), (128, 32)])
def test_muon_is_momentum_with_its_singular_values_set_to_one(shape):
    """Against an SVD, matrix by matrix: more of the iteration's steps come nearer to it."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(3, *shape))
    distances = []
    for steps in (4, 5):
        p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
        muon = train.Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5, steps=steps)
        weight, m = start.copy(), np.zeros(shape)
        for gradient in gradients:
            p.grad = torch.tensor(gradient, dtype=torch.float32)
            muon.step()
            m = 0.9 * m + 0.1 * gradient
            update = 0.1 * gradient + 0.9 * m  # Nesterov's look ahead
            orthogonal = []
            for part in np.split(update, 3 if shape[1] == 3 * shape[0] else 1, axis=1):
                u, _, v = np.linalg.svd(part, full_matrices=False)
                orthogonal.append(0.2 * math.sqrt(max(part.shape)) * (u @ v))
            weight = weight * (1 - 0.1 * 0.5) - 0.1 * np.concatenate(orthogonal, axis=1)
        distances.append(np.linalg.norm(p.detach().numpy() - weight) / np.linalg.norm(weight - start))
    assert distances[0] < 0.25 and distances[1] < 0.1


def test_tokens_that_never_occur_stay_apart():
    """A student from scratch can copy a word that it never saw only if it can tell its tokens from others."""
    model = init_weights(GPT(GPTConfig(300, 32, 2, 2, 32)), 0)
    draw, start = torch.Generator().manual_seed(0), model.wte.weight[100:].detach().clone()
    optimizers = train.make_optimizers(model, SimpleNamespace(optimizer="muon", lr=3e-3, weight_decay=0.1))
    for _ in range(300):
        half = torch.randint(100, (8, 16), generator=draw)
        ids = torch.cat([half, half], 1)  # each token again, 16 later
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        train.optimizer_step(model, optimizers, torch.amp.GradScaler("cpu", enabled=False), 3e-3)
    unseen = torch.nn.functional.normalize(model.wte.weight[100:].detach())
    # AdamW's usual epsilon, with decay, gives 0.92 and 0.32 here
    assert (unseen @ unseen.T).mean() < 0.8 and torch.cosine_similarity(unseen, start).mean() > 0.5


def test_the_learning_rate_and_the_loss_on_what_is_only_read_fall_to_nothing():
    for rate in (lambda done: train.schedule(10 ** 6, done, warmup=100),
                 lambda done: train.falling_prompt_weight(1, done)):
        values = [rate(k / 100) for k in range(101)]
        assert values == sorted(values, reverse=True) and (values[0], values[-1]) == pytest.approx((1, 0))


# ---- from end to end ---------------------------------------------------------------------------------------

def test_both_students_overfit_eight_problems_and_solve_all(here, problems):
    first, second = "--role solver --n-layer 2 --n-embd 64 --n-head 2", "--role decomposer --init runs/solver"
    lines = finish(launch("train.py", f"{first} --merged-steps 0 --steps 250 --warmup 20 --lr 4e-3"))
    assert lines[-1] == "next: python train.py --role decomposer"
    lines = finish(launch("train.py", f"{second} --steps 150 --warmup 20"))
    assert lines[-1] == "next: python infer.py"
    for role in "solver", "decomposer":
        solved = [(row["solved"], row["of"]) for row in evaluations(f"runs/{role}")]
        assert solved[0] < solved[-1] == (8, 8)
    lines = finish(launch("infer.py", "--eval annotations/train.jsonl"))
    assert any("100.0 % (8/8)" in line and "questions" in line for line in lines)
    assert lines[-1] == "accuracy 100.0 % (8/8), 95 % interval 67.6-100.0"

    bare = [{key: problem[key] for key in ("problem", "answer")} for problem in problems]
    Path("bare.jsonl").write_bytes(to_jsonl(bare))
    cold = "--samples 2 --temperature 0.01 --out self.jsonl"
    finish(launch("annotate.py", f"self bare.jsonl --limit 5 {cold}"))
    assert [row["steps"] for row in read_problems("self.jsonl")] == [row["steps"] for row in problems[:5]]
    lines = finish(launch("annotate.py", f"self annotations/train.jsonl --force {cold}"), status=1)
    assert "none of 16 samples" in lines[-1]  # is new


def test_same_seed_same_bytes_and_another_seed_others(here):
    for out, seed in ("a", 3), ("b", 3), ("c", 4):
        run("--role unified --steps 12 --seed", seed, "--out", out, *TINY)
    a, b, c = (Path(out, "last", "model.safetensors").read_bytes() for out in "abc")
    assert a == b and a != c
    assert Path("a", "vocab.json").read_bytes() == Path("c", "vocab.json").read_bytes()


def test_best_and_last_are_saved_with_a_log(here, problems):
    run("--role cot --steps 100 --batch-tokens 300", *TINY)  # several batches, in the validation too
    best, last = about("runs/cot"), about("runs/cot/last")
    losses = [row["valid_loss"] for row in evaluations("runs/cot")]
    assert best["role"] == last["role"] == "cot" and last["step"] == 100
    assert len(losses) == 10 and losses[-1] < losses[0]
    assert best["valid_loss"] == min(losses) == last["best_valid_loss"] and last["valid_loss"] == losses[-1]
    for folder, loss in ("runs/cot", min(losses)), ("runs/cot/last", losses[-1]):
        assert loss == pytest.approx(cross_entropy(folder, problems, "cot")[0].item(), rel=1e-4)
    lines = ElementTree.parse("runs/cot/curve.svg").iter("{http://www.w3.org/2000/svg}polyline")
    n_losses = sum("loss" in row for row in train.read_log("runs/cot/log.jsonl"))
    assert [len(line.get("points").split()) for line in lines] == [n_losses, 10]


@not_on_windows
def test_ctrl_c_leaves_a_usable_student(here):
    process = launch("train.py", "--role solver --minutes 30 --save-minutes 0.005", *TINY)
    wait_until_saved("runs/solver/last", process)
    process.send_signal(signal.SIGINT)
    assert "stopped early, but usable: runs/solver" in finish(process, status=130)
    assert infer.load_student(Path("runs/solver"), "solver", rows=1).model.config.n_embd == 32
    assert about("runs/solver/last")["stop_signal"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_too_and_is_saved_in_float32(dtype, here):
    run("--role solver --steps 150 --warmup 20 --dtype", dtype, *TINY)
    first, *_, last = evaluations("runs/solver")
    assert last["valid_loss"] < 0.8 * first["valid_loss"]
    assert GPT.from_pretrained("runs/solver").wte.weight.dtype == torch.float32


def test_published_weights_and_what_began_so_are_fine_tuned(here, problems):
    Path("published").mkdir()
    save_gpt2("published", problems)
    run("--role solver --init published --steps 1 --out fine")
    run("--role solver --steps 1 --out ours", *TINY)
    for init, expected in (("--init published", train.FINE_TUNING), ("--init fine", train.FINE_TUNING),
                           ("--init ours", train.FROM_A_STUDENT), ("", train.FROM_SCRATCH)):
        args, _ = train.parse_args(["--role", "decomposer", *init.split()])
        train.resolve_args(args)
        assert {flag: getattr(args, flag) for flag in expected} == expected
    Path("ours/student.json").write_text("[]")
    with pytest.raises(UserError, match="ours/student.json: not what train.py writes"):
        run("--role decomposer --init ours")


def test_a_guided_decomposer_reads_the_guidance_of_each_problem_and_says_so(here, problems):
    run("--role decomposer --guidance steps --steps 1 --batch-tokens 10000", *TINY)
    student = infer.load_student(Path("runs/decomposer"), "decomposer", rows=1)
    sequences = encode_problems(problems, "decomposer", student.tokenizer, guidance="steps")
    row = train.read_log("runs/decomposer/log.jsonl")[0]
    assert row["tokens"] - row["padding"] == sum(len(ids) - 1 for ids, _ in sequences)
    assert student.guidance == "steps"


def test_the_next_command_names_what_is_not_in_its_usual_place(here, capsys):
    Path("annotations/train.jsonl").rename("my file.jsonl")
    for flags, expected in (
            (["--role", "solver", *TINY],
             "train.py --role decomposer --train 'my file.jsonl' --valid annotations/valid.jsonl"),
            (["--role", "decomposer", *TINY], "infer.py"),
            (["--role", "solver", "--out", "s", *TINY], "infer.py --solver s --decomposer ITS_FOLDER"),
            (["--role", "cot", *TINY], "infer.py --procedure cot")):
        run("--steps 1 --train", "my file.jsonl", *flags)
        assert capsys.readouterr().out.endswith(f"\nnext: python {expected}\n")


# ---- a run, however it is split, stopped and resumed -------------------------------------------------------

def test_micro_batches_and_ranks_change_nothing_but_rounding(here, problems):
    """20 steps over micro-batches of unequal size, also more of them than sequences; one thread each."""
    flags, one_thread = "--role solver --steps 20 --warmup 5 --batch-tokens 600", {"OMP_NUM_THREADS": "1"}
    runs = [launch("train.py", f"{flags} --grad-accum {n} --out {n}", *TINY, env=os.environ | one_thread)
            for n in (1, 2, 8)]
    runs.append(launch("-m torch.distributed.run", "--standalone --nproc_per_node 2", str(ROOT / "train.py"),
                       *f"{flags} --out two".split(), *TINY, env=os.environ | one_thread))
    for process in runs:
        finish(process)
    vocab_size = Tokenizer.from_pretrained("1").vocab_size
    init_weights(GPT(GPTConfig(vocab_size, 256, 2, 2, 32)), 0).save_pretrained(".")
    before, whole = weights("."), weights("1/last")
    distance = lambda a, b: math.sqrt(sum(float(((a[name] - b[name]) ** 2).sum()) for name in a))
    for other in "2", "8", "two":
        assert distance(weights(Path(other, "last")), whole) < 1e-3 * distance(before, whole), other


@not_on_windows
def test_no_rank_waits_for_one_that_died_and_the_other_can_continue_alone(here):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                        "OMP_NUM_THREADS": "1"}
    first, second = (launch("train.py", "--role cot --save-minutes 0.005 --steps 1000000", *TINY,
                            env=env | {"RANK": rank}) for rank in "01")
    wait_until_saved("runs/cot/last", first)
    second.kill()
    assert finish(first, status=1)[-1].startswith("error: rank 0: another rank has died: ")
    second.communicate()
    step = about("runs/cot/last")["step"]
    run("--role cot --resume --steps", step + 1)
    assert about("runs/cot/last")["step"] == step + 1


@not_on_windows
def test_a_run_broken_off_comes_to_the_same_bytes(here):
    """By SIGTERM and by SIGKILL; with dropout, across epochs; resumed without its flags."""
    flags = "--role cot --steps 600 --dropout 0.1 --batch-tokens 512 --save-minutes 0.005"
    finish(launch("train.py", flags, *TINY, "--out", "whole"))
    resume = "--role cot --out broken --resume"
    for number, status, more in (signal.SIGTERM, 143, [*flags.split(), *TINY]), (signal.SIGKILL, -9, []):
        process, before = launch("train.py", resume, *more), time.time()
        wait_until_saved("broken/last", process, since=before)
        process.send_signal(number)
        lines = finish(process, status)
        if number == signal.SIGTERM and not Path("broken/student.json").exists():  # not evaluated yet
            assert lines[-2:] == ["stopped before the first evaluation; the checkpoint is in broken/last",
                                  "next: the same command with --resume"]
        assert 0 < about("broken/last")["step"] < 600
    finish(launch("train.py", resume))
    for name in "model.safetensors", "last/model.safetensors":
        assert Path("broken", name).read_bytes() == Path("whole", name).read_bytes()
    steps = [row["step"] for row in train.read_log("broken/log.jsonl")]
    assert steps == sorted(steps) and steps[-1] == 600


@not_on_windows
def test_a_full_disk_leaves_what_was_saved(here):
    import resource
    run("--role cot --steps 5", *TINY)
    last = Path("runs/cot/last")
    before = {path: path.read_bytes() for path in last.iterdir()}
    limit = len(before[last / "trainer.pt"]) * 9 // 10
    process = launch("train.py", "--role cot --steps 10 --resume",
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert finish(process, status=1)[-1].startswith("error: runs/cot/last: ")
    assert {path: path.read_bytes() for path in last.iterdir()} == before
    assert not list(Path("runs").rglob(".writing"))


def test_resume_takes_the_runs_own_flags_and_refuses_others(here, capsys, problems):
    run("--role cot --steps 3", *TINY)
    write_problems("other.jsonl", problems[1:])
    for flags, message in (
            ("--role cot --lr 1", "--lr is 1.0, the run has 0.005"),
            ("--role cot --n-embd 64", "--n-embd is 64, the run has 32"),
            ("--role cot --train other.jsonl", "--train is other.jsonl, the run has annotations/train.jsonl"),
            ("--role solver --out runs/cot", "--role is solver, the run has cot")):
        assert fails(capsys, f"{flags} --resume") == (
            2, f"error: runs/cot/last/trainer.pt: cannot continue: {message}\n")
    run("--role cot --steps 6 --grad-accum 2 --resume")
    assert "from step 3" in capsys.readouterr().err and about("runs/cot/last")["step"] == 6
    write_problems("annotations/train.jsonl", problems[:1])
    code, err = fails(capsys, "--role cot --steps 9 --resume")
    assert code == 2 and "has changed" in err
    Path("runs/cot/last/trainer.pt").write_bytes(b"no pickle")
    code, err = fails(capsys, "--role cot --steps 9 --resume")
    assert code == 1 and err.startswith("error: runs/cot/last/trainer.pt: broken, cannot continue")
    assert err.count("\n") == 1


def test_a_longer_resumed_run_is_evaluated_to_its_end(here):
    run("--role cot --steps 20", *TINY)
    run("--role cot --steps 60 --resume")
    assert [row["step"] for row in evaluations("runs/cot")] == [*range(2, 21, 2), *range(24, 61, 6)]


def test_evaluations_take_a_tenth_of_a_limited_time(here, monkeypatch):
    evaluate = train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *args: time.sleep(0.3) or evaluate(*args))
    run("--role cot --minutes 0.05", *TINY)
    assert len(evaluations("runs/cot")) == 2  # after a tenth, and at the end


def test_epochs_and_patience_end_a_run(here):
    run("--role cot --epochs 3 --batch-tokens 300", *TINY)
    last = about("runs/cot/last")
    assert last["epoch"] == 3 and last["next_batch"] == 0 and last["step"] > 3
    run("--role cot --steps 50 --lr 1e-30 --weight-decay 0 --patience 2 --out p", *TINY)
    assert about("p/last")["step"] < 25


# ---- what a user can do wrong ------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, status, message", [
    ("--train none.jsonl", 1, "none.jsonl: no annotations here yet; make them with: python annotate.py\n"),
    ("--valid none.jsonl", 1, "none.jsonl: No such file or directory\n"),
    ("--train bad.jsonl", 1, "bad.jsonl:2: field 'answer' is missing\n"),
    ("--out bad.jsonl", 1, "bad.jsonl: File exists\n"),
    ("--out student", 2, "student: holds a student already; --force replaces it, --out DIR leaves it\n"),
    ("--out student --resume", 2, "student: holds a student already; "),
    ("--out run --steps 1", 2, "run: holds an unfinished run; --resume continues it, --force replaces it\n"),
    ("--init student --n-embd 64", 2, "--n-embd is decided by --init student\n"),
    ("--init nowhere", 2,
     "--init nowhere: no such folder, nor one of gpt2, gpt2-medium, gpt2-large, gpt2-xl\n"),
    ("--block-size 20", 1,
     "annotations/train.jsonl: no problem fits into the block of 20 tokens (--block-size)\n"),
    ("--minutes 0", 2, "argument --minutes: 0 is no number above 0"),
    ("--n-embd 100", 2, "--n-embd 100 is no multiple of --n-head 3\n"),
    ("--epochs 2 --steps 5", 2, "argument --steps: not allowed with argument --epochs"),
    ("--force --resume", 2, "--force and --resume exclude each other\n"),
    ("--no-calculator --numbers letters", 2, "--numbers letters goes with none of --no-calculator,"),
    ("--seed -1", 2, "argument --seed: -1 is no whole number from 0"),
    ("--tokenizer gpt2 --vocab-size 300", 2, "--vocab-size is that of a learned vocabulary, "),
    ("--guidance steps", 2, "--guidance is for students that ask sub-questions, --role solver asks none\n"),
    ("--role juggler", 2, "argument --role: invalid choice: 'juggler'"),
    ("--device abacus", 2, "--device abacus: "),
])
def test_bad_usage_is_one_line_and_nothing_is_lost(flags, status, message, here, capsys):
    first = Path("annotations/train.jsonl").read_text().splitlines()[0]
    Path("bad.jsonl").write_text(first + '\n{"problem": "x", "steps": []}\n')
    Path("student").mkdir()
    Path("student", "student.json").write_text('{"role": "solver"}')
    Path("run", "last").mkdir(parents=True)
    Path("run", "last", "trainer.pt").touch()  # and no student yet
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    code, err = fails(capsys, "--role solver", *flags.split())
    assert code == status and err.startswith("error: " + message) and err.count("\n") == 1
    assert all(path.read_bytes() == content for path, content in before.items())


def test_problems_longer_than_the_block_are_counted(here, capsys, problems):
    lengths = sorted(len(ids) for ids, _ in encode_problems(problems, "answer", train_tokenizer(problems)))
    block_size = lengths[4] - 1  # every token but the last is read
    run("--role answer --steps 1 --n-embd 8 --block-size", block_size)
    n = sum(length > lengths[4] for length in lengths)
    message = f"left out, since longer than the block of {block_size} tokens: {n} of 8 problems"
    assert f"annotations/train.jsonl: {message}" in capsys.readouterr().err


def test_a_learning_rate_that_is_too_high_ends_in_one_line(here, capsys):
    flags = "--role solver --steps 200 --lr 1e6 --save-minutes 1e-9"
    code, err = fails(capsys, flags, *TINY)
    found = re.search(
        r"error: the loss or its gradient is not a number at step (\d+), annotations/train.jsonl rows "
        r"[\d, ]+: try a lower --lr; runs/solver keeps what it had\n$", err)
    assert code == 1 and about("runs/solver/last")["step"] == int(found[1]) - 1
    assert all(tensor.isfinite().all() for tensor in weights("runs/solver/last").values())


def test_out_of_memory_says_which_flag_to_lower(here, capsys, monkeypatch):
    monkeypatch.setattr(train, "weighted_loss", lambda *_: torch.empty(2 ** 60))
    code, err = fails(capsys, "--role cot --steps 2", *TINY)
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("error: out of memory: lower --batch-tokens (2048), ")


def test_ranks_that_do_not_meet_are_one_line(here, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for key, value in env.items():
            monkeypatch.setenv(key, str(value))
        code, err = fails(capsys, "--role cot --steps 1")
    assert code == 1 and "error: the ranks do not meet at 127.0.0.1:" in err.splitlines()[-1]
