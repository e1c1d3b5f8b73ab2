"""Train one student: python train.py --role solver, python train.py --role decomposer.

One screen of set-up (main, at the end), then the loop (train), read from top to bottom. The student's folder is a Hugging
Face GPT-2 folder: config.json, model.safetensors, vocab.json, merges.txt; beside them student.json (its role), log.jsonl and
curve.svg. Its folder last/ holds the student as it was last kept, and in trainer.pt what --resume goes on from.
"""
import contextlib
import hashlib
import json
import math
import os
import pickle
import shlex
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from data import GUIDANCE, ROLES, Parser, Tokenizer, UserError, encode, encode_problems, find_device, fits, learn_tokenizer, make_batch, \
    plan_batches, read_problems, recitations, run, written_aside
from model import GPT, PUBLISHED, GPTConfig, published


def parse_args(argv=None):
    """The flags of train.py. Raises UserError for a combination that makes no sense."""
    p = Parser(description="Train one student on Socratic annotations.")
    p.add_argument("--role", choices=ROLES, required=True, help="what the student learns to write")
    p.add_argument("--train", type=Path, default="annotations/train.jsonl", metavar="FILE")
    p.add_argument("--valid", type=Path, default="annotations/valid.jsonl", metavar="FILE")
    p.add_argument("--out", type=Path, metavar="DIR", help="the student's folder (runs/ROLE)")
    p.add_argument("--force", action="store_true", help="replace the student that is in --out")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out where it was last kept, if it was")
    p.add_argument("--init", type=Path, metavar="DIR", help="start from this student, this GPT-2 folder, or published weights, "
                   f"downloaded once: {', '.join(PUBLISHED)}")
    p.add_argument("--cache", type=Path, metavar="DIR", help="folder of published weights (HF_HOME/hub, as transformers has it)")
    p.add_argument("--guidance", choices=GUIDANCE, help="tell a student that asks sub-questions how many steps, or which equations, "
                   "the problem's solutions have, in a line behind the problem")
    p.add_argument("--tokenizer", choices=["learned", "gpt2"], help="vocabulary of a student from scratch (learned)")
    p.add_argument("--vocab-size", type=int, help="of a learned vocabulary, tokens (1024)")
    p.add_argument("--block-size", type=int, help="longest sequence, tokens (512; with --init what that has, or less)")
    p.add_argument("--n-layer", type=int, help="(4)")
    p.add_argument("--n-head", type=int, help="(one for every 32 of --n-embd)")
    p.add_argument("--n-embd", type=int, help="(96)")
    p.add_argument("--dropout", type=float, help="(0; with --init what that has)")
    p.add_argument("--minutes", type=float, default=10.0, help="of training, after the set-up (%(default)s)")
    p.add_argument("--steps", type=int, help="stop after so many optimizer steps instead of --minutes")
    p.add_argument("--epochs", type=float, help="stop after so many passes over the problems instead")
    p.add_argument("--patience", type=int, metavar="N", help="stop when N validations brought nothing better; there are ten")
    p.add_argument("--save-minutes", type=float, default=5.0, help="keep what --resume needs so often (%(default)s)")
    p.add_argument("--batch-tokens", type=int, help="tokens of a step, padding included (1024; 8192 on a GPU)")
    p.add_argument("--accumulate", type=int, default=1, metavar="N", help="go through a step's batch in N parts, in less memory")
    p.add_argument("--optimizer", choices=["muon", "adamw"], help="muon from scratch, adamw from a GPT-2 folder")
    p.add_argument("--lr", type=float, help="peak learning rate (0.003; 0.001 from a student, 5e-5 from a GPT-2 folder)")
    p.add_argument("--warmup", type=int, default=100, help="optimizer steps")
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--text-weight", type=float, help="weight of the loss on what is not learned (0.3; 0 with published weights)")
    p.add_argument("--recite", type=float, metavar="SHARE", help="so many exercises in copying, and in finding numbers by their "
                   "names, to a problem (0.08; 0 with published weights)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--compile", action="store_true", help="let torch.compile fuse the model's kernels")
    p.add_argument("--checkpoint-activations", action="store_true", help="compute activations twice, in less memory")
    p.add_argument("--device", help="(cuda or mps if there is one, else cpu)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="(float32 on a CPU, else the GPU's best)")
    return p.parse_args(argv)


# ---- the optimizer -----------------------------------------------------------------------------------------------------

# Each row brings the singular values of a matrix nearer to 1: s -> a s + b s^3 + c s^5 (Amsel et al. 2025, "The Polar Express")
POLAR = ((8.28721201814563, -23.595886519098837, 17.300387312530933),
         (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
         (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
         (3.3184196573706015, -2.488488024314874, 0.51004894012372),
         (2.300652019954817, -1.6689039845747493, 0.4188073119525673))


def orthogonalise(x, steps):
    """Move the singular values of the matrices x (n, r, c), r <= c, toward 1."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR[:steps]:
        gram = x @ x.mT  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan 2024): every direction of a matrix learns equally fast.

    All matrices of one shape are one batched product, q, k and v apart (`square`); torch.optim.Muon, in torch since 2.9, goes
    matrix by matrix and computes in bfloat16, which a CPU does slowly. Rates are AdamW's: the update is scaled to a root
    mean square of 0.2 per element (Liu et al. 2025), and decays weights likewise.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, steps=4):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps))

    @torch.no_grad()
    def step(self):
        """One update; every parameter is (r, c) with a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            gradients = [p.grad for p in group["params"]]
            momenta = [self.state[p]["momentum"] for p in group["params"]]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            parts = {}  # shape -> the square or wide matrices that are updated together
            for p, u in zip(group["params"], torch._foreach_lerp(gradients, momenta, group["momentum"])):
                for weight, update in zip(square(p), square(u)):
                    parts.setdefault(update.shape, []).append((weight, update))
            for shape, pairs in parts.items():
                u = orthogonalise(torch.stack([update for _, update in pairs]), group["steps"])
                weights = [weight for weight, _ in pairs]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, u.unbind(), alpha=-0.2 * math.sqrt(max(shape)) * group["lr"])


def square(matrix):
    """The parts of a GPT-2 matrix that act alone, each with no more rows than columns: q, k, v of c_attn, else the whole."""
    r, c = matrix.shape
    parts = matrix.split(r, dim=1) if c == 3 * r else [matrix]
    return [part.mT if part.shape[0] > part.shape[1] else part for part in parts]


RARE = 1e-4  # a gradient, per element: less than that of the embeddings of words in use, more than that of the others


def make_optimizers(model, args):
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW for all; decay on matrices alone.

    Beside Muon, where students start from scratch, embeddings do not decay, and their epsilon is so large that AdamW does
    not make full steps of the tiny gradients with which the softmax pushes tokens down that do not occur. They are all
    pushed the same way, and within some thousand steps were the same vector, so that nobody could copy a word of them.
    """
    inside = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("h.")]
    tables = [model.wte.weight, model.wpe.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adamw = partial(torch.optim.AdamW, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if args.optimizer == "adamw":
        return [adamw([{"params": tables + inside, "weight_decay": args.weight_decay}, {"params": vectors}])]
    return [Muon(inside, lr=args.lr, weight_decay=args.weight_decay), adamw([{"params": tables, "eps": RARE}, {"params": vectors}])]


# ---- several processes: torchrun --nproc_per_node=N train.py ... -------------------------------------------------------

def join_ranks(args):
    """Join the processes that torchrun started: sets args.rank and args.world (0 and 1 alone), and each one's own GPU.

    Gloo carries what lives on the CPU, NCCL what lives on a GPU. A rank that waits ten minutes for another fails.
    """
    args.rank, args.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.world == 1:
        return
    if args.device in (None, "cuda") and torch.cuda.is_available():
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if str(args.device).startswith("cuda:") else "gloo", timeout=timedelta(minutes=10))
    except (RuntimeError, ValueError) as e:
        at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"the ranks do not meet at {at} (torchrun --master-port chooses another): {str(e).splitlines()[0]}")


def agree(numbers, world, op="MAX"):
    """Combine a list of floats over all ranks, element by element, by "MAX" or "SUM"; returns the same list in every rank."""
    if world == 1:
        return numbers
    numbers = torch.tensor(numbers, dtype=torch.float64)  # on the CPU, by gloo: no GPU is waited for
    dist.all_reduce(numbers, getattr(dist.ReduceOp, op))
    return numbers.tolist()


def add_gradients(model, world):
    """Add up the gradients of all ranks, in every rank; one that had no part of the batch adds zeros."""
    if world > 1:
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for work in [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]:
            work.wait()


# ---- the loop ----------------------------------------------------------------------------------------------------------

def schedule(step, done, warmup):
    """The learning rate's share of its peak: warm-up over the first `warmup` steps, cosine to 0 as `done` goes to 1."""
    return min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * done))


def weighted_loss(model, batch, autocast):
    """Sum of weight * cross entropy (nats) over a batch of `make_batch`, and the sum of the weights; two scalars."""
    ids, at, targets, weights = batch
    with autocast():
        logits = model(ids, at)  # (N, vocab_size)
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum(), weights.sum()


@torch.no_grad()
def validate(model, batches, autocast, world=1):
    """Mean cross entropy (nats) of the learned tokens of `batches`, a list of `make_batch`'s batches, and of other ranks'."""
    model.eval()
    sums = [torch.stack(weighted_loss(model, batch, autocast)) for batch in batches]
    model.train()
    loss, weight = agree(torch.stack(sums).sum(0).tolist() if sums else [0.0, 0.0], world, "SUM")
    return loss / weight


def train(model, sequences, rows, valid_batches, solve, save, args, state=None):
    """Train `model` in place until --minutes, --epochs or --steps are over, --patience is, or a signal asks to stop.

    sequences: list of (ids, learned) of data.encode. rows: each one's problem in --train, counted from 1; 0 for an
    exercise. valid_batches: this rank's, of data.make_batch. solve(n) solves n
    problems of --valid, and returns {"solved": how many, "of": n}. save(folder, figures, state) keeps the student; state, a
    dict, is what a later call needs to go on to the same bytes. Returns the run's figures: a dict of steps, epochs, tokens
    (padding included), padding and learned tokens seen, seconds, valid_loss at the end, best valid_loss, stopped (the
    signal's number, or 0) and its place in the data.
    """
    figures = dict(steps=0, epochs=0, tokens=0, padding=0, learned=0, seconds=0.0, valid_loss=math.inf, best=math.inf, stale=0,
                   tenths=0, validating=0.0, tried=0, solving=0.0, stopped=0, used=0)
    autocast = contextlib.nullcontext if args.dtype == "float32" else partial(
        torch.autocast, args.device.type, dtype=getattr(torch, args.dtype))
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == "float16")
    optimizers = make_optimizers(model, args)
    if state:
        figures |= state["figures"]
        scaler.load_state_dict(state["scaler"])
        for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
    forward = torch.compile(model, dynamic=True) if args.compile else model
    limit = args.steps or 60 * args.minutes  # optimizer steps, or seconds
    share_done = lambda: min((figures["steps"] if args.steps else figures["seconds"]) / limit, 1.0)
    figures["tenths"] = min(figures["tenths"], int(10 * share_done()))  # of a --resume with another limit
    peak = product_rate(args.device, args.dtype)
    plan = None  # the batches of this epoch
    unread, since = [], Counter()  # of the steps since the log's last row: losses that are still on the device; figures
    start = time.perf_counter() - figures["seconds"]
    reported = saved = figures["seconds"]
    away = 0.0  # seconds since then that were no training
    known = ""  # how many problems it solved lately, in words
    kept = figures["steps"]  # the step of the student in last/
    keep = lambda figures: save(args.out / "last", figures, {
        "figures": dict(figures), "model": model.state_dict(), "scaler": scaler.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers]})
    bar = tqdm(total=round(limit), desc=args.role, disable=True if args.rank else None, dynamic_ncols=True,
               bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}<{remaining}{postfix}")

    with bar, signals_noted() as signals, open_log(args, figures["steps"]) as log:
        while True:
            clock = 0.0 if args.rank else time.perf_counter() - start  # all ranks go by that of the first
            figures["seconds"], stopped = agree([clock, signals[0] if signals else 0], args.world)
            figures["stopped"] = int(stopped)
            done = share_done()
            over = done == 1 or stopped or args.patience and figures["stale"] >= args.patience
            # where the time is limited, validations may take a tenth of it
            due = int(10 * done) > figures["tenths"] and (args.steps or figures["validating"] <= 0.1 * figures["seconds"])
            to_validate = due or over and stopped != signal.SIGTERM  # which leaves no time
            to_save = over or figures["seconds"] - saved >= 60 * args.save_minutes

            seconds = figures["seconds"] - reported
            if since and (to_validate or to_save or figures["steps"] % 50 == 0 or seconds > 10):
                losses = torch.stack([loss for loss, *_ in unread]).tolist() if unread else []  # the device is waited for here alone
                for loss, (_, step, part) in zip(losses, unread):
                    if not math.isfinite(loss):
                        where = ", ".join(str(rows[i]) for i in part if rows[i]) or "none, but exercises"
                        raise UserError(f"the loss or its gradient is not a number at step {step}, {args.train}, problems {where}: try a lower --lr"
                                        + (f"; {args.out / 'last'} holds step {kept}" if kept else "")
                                        + (f"; {args.out} holds the best so far" if figures["best"] < math.inf else ""))
                loss = agree([sum(losses)], args.world, "SUM")[0] / since["weight"]
                speed, mfu = since["learned"] / (seconds - away), since["flops"] / (seconds - away) / peak
                log.write(json.dumps({key: figures[key] for key in ("steps", "seconds", "tokens", "padding")} |
                                     {"loss": loss, "lr": rate, "learned_per_second": round(speed), "mfu": round(mfu, 4)}) + "\n")
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} learned tokens/s, MFU {100 * mfu:.0f} %{known}", refresh=False)
                bar.update(min(round(done * limit), bar.total) - bar.n)
                unread, since, reported, away = [], Counter(), figures["seconds"], 0.0

            if stopped:  # at once, since a second Ctrl-C breaks in; and a validation that it brings forward shall change no resumed run
                keep(figures)
            if to_validate:
                before = time.perf_counter()
                loss = figures["valid_loss"] = validate(model, valid_batches, autocast, args.world)
                figures["validating"] += agree([time.perf_counter() - before], args.world)[0]
                figures["tenths"] = int(10 * done)
                row = {key: figures[key] for key in ("steps", "seconds", "valid_loss")}
                if args.rank == 0 and (n := affordable(figures)):
                    before = time.perf_counter()
                    with autocast():
                        row |= solve(n)
                    known = f", solved {row['solved']} of {row['of']}" if "solved" in row else ""
                    figures["tried"] += n
                    figures["solving"] += time.perf_counter() - before
                log.write(json.dumps(row) + "\n")
                draw_curve(args)
                figures["stale"] += 1
                if loss < figures["best"]:
                    figures["best"], figures["stale"] = loss, 0
                    save(args.out, figures)
            if to_save and not stopped:
                keep(figures)
                kept, saved = figures["steps"], figures["seconds"]
            away += time.perf_counter() - start - figures["seconds"]
            if over:
                return figures

            if plan is None:  # drawn from the epoch's number alone, so that --resume finds it again
                figures["epochs"] += not figures["used"]
                rng = np.random.default_rng((args.seed, figures["epochs"]))
                plan = plan_batches([len(ids) for ids, _ in sequences], args.batch_tokens, rng)
            chosen = plan[figures["used"]]
            figures["used"] += 1
            if figures["used"] == len(plan):
                figures["used"], plan = 0, None

            figures["steps"] += 1
            tokens, learned = (sum(int(x) for x in numbers) for numbers in zip(
                *((len(ids) - 1, learned[1:].sum()) for ids, learned in (sequences[i] for i in chosen))))
            weight = learned + args.text_weight * (tokens - learned)  # of the whole step: so its parts weigh what they hold
            parts = np.array_split(chosen, args.accumulate * args.world)
            if model.config.dropout:
                torch.manual_seed((args.seed * 10 ** 9 + figures["steps"]) * args.world + args.rank)
            for part in parts[args.rank::args.world]:
                if len(part):  # there may be fewer sequences than parts
                    batch = make_batch([sequences[i] for i in part], args.text_weight, args.device)
                    loss, _ = weighted_loss(forward, batch, autocast)
                    scaler.scale(loss / weight).backward()
                    unread.append((loss.detach(), figures["steps"], part))
                    since["flops"] += step_flops(model.config, batch)
            add_gradients(model, args.world)
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            sound = True
            if scaler.is_enabled():
                sound = bool(norm.isfinite())  # one optimizer's overflow has spoiled the other's gradients
            else:
                unread.append((0 * norm, figures["steps"], chosen))  # a gradient that is not finite spoils the weights from here on
            rate = args.lr * schedule(figures["steps"] - 1, done, args.warmup)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                if sound:
                    scaler.step(optimizer)  # with a float16 scaler it waits for the device: were the gradients finite?
                optimizer.zero_grad()
            scaler.update()

            padded = sum(len(part) * (max(len(sequences[i][0]) for i in part) - 1) for part in parts if len(part))
            for key, n in ("tokens", padded), ("padding", padded - tokens), ("learned", learned):
                figures[key] += n
            since += Counter(weight=weight, learned=learned)


# ---- what the loop leans on --------------------------------------------------------------------------------------------

@contextlib.contextmanager
def signals_noted():
    """SIGINT (Ctrl-C) and SIGTERM do not break into the block: the list that it gets holds their numbers. A second one does."""
    noted, before = [], {}

    def note(number, frame):
        noted.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_log(args, steps):
    """log.jsonl, open to append rows to; what it holds beyond `steps`, from before a run was cut off, is dropped."""
    if args.rank:
        return open(os.devnull, "w")
    rows = [row for row in read_log(args.out / "log.jsonl") if row["steps"] <= steps] if steps else []
    with written_aside(args.out) as aside:
        (aside / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open(args.out / "log.jsonl", "a", buffering=1, encoding="utf-8")


def read_log(path):
    """The rows of a log.jsonl, a list of dicts, as far as they are whole."""
    rows = []
    with contextlib.suppress(ValueError, FileNotFoundError), open(path, encoding="utf-8") as log:
        for row in log:
            rows.append(json.loads(row))
    return rows


def draw_curve(args):
    """Draw the losses of log.jsonl over the steps, both axes logarithmic, as curve.svg."""
    if args.rank:
        return
    rows, curves = read_log(args.out / "log.jsonl"), []
    for key, colour in ("loss", "#999"), ("valid_loss", "#06c"):
        points = [(math.log10(max(row["steps"], 1)), math.log10(max(row[key], 1e-6))) for row in rows if key in row]
        curves.append((key, colour, points[::-(len(points) // -500) or 1]))
    xs, ys = zip(*(point for _, _, points in curves for point in points))
    left, right, low, high = min(xs), max(xs) + 1e-9, min(ys) - 0.02, max(ys) + 0.02
    ticks = [(math.log10(digit) + power, f"{digit * 10.0 ** power:g}") for power in range(-6, 8) for digit in (1, 2, 5)]
    x, y = (lambda v: 60 + 560 * (v - left) / (right - left)), (lambda v: 340 - 310 * (v - low) / (high - low))
    marks = [f'<text x="{x(v):.1f}" y="358" text-anchor="middle">{text}</text>' for v, text in ticks if left <= v <= right]
    marks += [f'<path d="M60 {y(v):.1f}h560" stroke="#ddd"/><text x="54" y="{y(v) + 4:.1f}" text-anchor="end">{text}</text>'
              for v, text in ticks if low <= v <= high]
    for i, (key, colour, points) in enumerate(curves):
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        name = {"loss": "training loss, text included", "valid_loss": "validation loss, learned tokens"}[key]
        marks += [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
                  f'<text x="{70 + 220 * i}" y="20" fill="{colour}">{name} (nats)</text>']
    marks.append('<text x="620" y="374" text-anchor="end">optimizer steps</text>')
    with written_aside(args.out) as aside:
        (aside / "curve.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" font-family="sans-serif" '
                                         'font-size="12">\n' + "\n".join(marks) + "\n</svg>\n", encoding="utf-8")


def affordable(figures):
    """How many problems to solve now, if that is to take 1 % of the training: 0, or 4 at first, later up to 100."""
    if not figures["tried"]:
        return 4 if figures["seconds"] > 10 else 0
    n = int((0.01 * figures["seconds"] - figures["solving"]) / (figures["solving"] / figures["tried"]))
    return min(n, 100) if n >= 4 else 0


def solved(model, tokenizer, problems, role, guidance=None):
    """Decode `problems`: {"solved": how many come out right, "of": all}; a decomposer's must be all the teacher's questions.

    A solver is given the teacher's sub-questions. A stepwise decomposer cannot be decoded alone: {}.
    """
    import infer  # here alone: whoever reads or runs the loop needs no decoding

    procedures = {"solver": infer.given, "decomposer": infer.decompose, "unified": infer.unified, "cot": infer.cot,
                  "answer": infer.answer}
    if role not in procedures:
        return {}
    c, right = model.config, 0
    slots = min(len(problems), max(1, 2 ** 26 // (2 * c.n_layer * c.n_embd * c.block_size)))  # a cache of 256 MiB at most
    for i, record in infer.solve(problems, procedures[role], {role: infer.Student(model, tokenizer, slots, guidance)}):
        asked, teachers = ([" ".join(step["question"].split()) for step in one["steps"]] if role == "decomposer" else []
                           for one in (record, problems[i]))
        right += asked == teachers if role == "decomposer" else \
            record["answer"] is not None and infer.same_answer(record["answer"], problems[i]["answer"])
    model.train()
    return {"solved": right, "of": len(problems)}


def step_flops(config, batch):
    """Floating-point operations of a forward and backward over a batch, padding included; attention by its causal half."""
    (B, T), n = batch[0].shape, len(batch[1])
    inside = config.n_layer * 12 * config.n_embd ** 2
    return 6 * (inside * B * T + config.vocab_size * config.n_embd * n + config.n_layer * config.n_embd * B * T * T)


def product_rate(device, dtype):
    """FLOP/s of a large matrix product on this device, the best of five: what MFU is a share of."""
    n = 8192 if device.type == "cuda" else 1024
    a, seconds = torch.ones(n, n, device=device, dtype=getattr(torch, dtype)), []
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * n ** 3 / min(seconds)


# ---- set-up ------------------------------------------------------------------------------------------------------------

def settle(args):
    """Fill in what the flags leave open; raises UserError (status 2) for what cannot be."""
    args.device = find_device(args.device)
    if args.steps and args.epochs or args.force and args.resume:
        raise UserError("--steps and --epochs, and likewise --force and --resume, exclude each other", 2)
    for flag in ("minutes", "steps", "epochs", "patience", "save_minutes", "accumulate", "batch_tokens", "lr", "block_size",
                 "n_layer", "n_head", "n_embd"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{flag.replace('_', '-')} must be more than 0", 2)
    if args.guidance and args.role not in ("decomposer", "stepwise", "unified"):
        raise UserError(f"--guidance is for students that ask sub-questions, --role {args.role} asks none", 2)
    if args.init:
        if not args.init.is_dir() and str(args.init) not in PUBLISHED:
            raise UserError(f"--init {args.init}: no such folder, nor one of {', '.join(PUBLISHED)}", 2)
        for flag in ("n_layer", "n_head", "n_embd", "tokenizer", "vocab_size"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag.replace('_', '-')} cannot be chosen with --init {args.init}, which brings its own", 2)
    else:
        for flag, default in dict(block_size=512, n_layer=4, n_embd=96, dropout=0.0).items():
            setattr(args, flag, default if getattr(args, flag) is None else getattr(args, flag))
        args.n_head = args.n_head or max(1, args.n_embd // 32)
        if args.n_embd % args.n_head:
            raise UserError(f"--n-embd {args.n_embd} is no multiple of --n-head {args.n_head}", 2)
    if args.cache and (not args.init or args.init.is_dir()):
        raise UserError(f"--cache goes with --init {', '.join(PUBLISHED)}", 2)
    if args.dropout is not None and not 0 <= args.dropout < 1:
        raise UserError("--dropout must be a share, 0 or more and less than 1", 2)
    for flag in ("warmup", "weight_decay", "text_weight", "seed"):
        if getattr(args, flag) is not None and not 0 <= getattr(args, flag) < math.inf:
            raise UserError(f"--{flag.replace('_', '-')} must be 0 or more", 2)
    if args.vocab_size is not None and (args.vocab_size < 257 or args.tokenizer == "gpt2"):
        raise UserError("--vocab-size is that of a learned vocabulary, 257 or more: 256 bytes and the end of a text", 2)
    on_gpu = args.device.type == "cuda"
    if on_gpu and args.device.index is not None:
        torch.cuda.set_device(args.device)
    if args.dtype is None:
        has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        args.dtype = "bfloat16" if has_bfloat16 else "float16" if on_gpu else "float32"
    args.out = args.out or Path("runs", args.role)
    args.batch_tokens = args.batch_tokens or (8192 if on_gpu else 1024)
    # what was pretrained gets gentle steps, and learns its segments alone, as in the paper
    gently = pretrained(args)
    args.optimizer = args.optimizer or ("adamw" if gently else "muon")
    args.lr = args.lr or (5e-5 if gently else 1e-3 if args.init else 3e-3)
    if args.text_weight is None:
        args.text_weight = 0.0 if gently else 0.3
    if args.recite is None:
        args.recite = 0.0 if gently else 0.08
    if not 0 <= args.recite < 1:
        raise UserError("--recite must be a share, 0 or more and less than 1", 2)
    return args


def pretrained(args):
    """Whether --init is a GPT-2 from elsewhere, published weights or a folder without student.json, or a student that began as one."""
    if not args.init:
        return False
    try:
        return bool(json.loads((args.init / "student.json").read_text(encoding="utf-8")).get("pretrained"))
    except OSError:
        return True
    except (ValueError, AttributeError):
        raise UserError(f"{args.init / 'student.json'}: not what train.py writes")


def open_student(args, problems):
    """The model to start from and its tokenizer: --init's, or new ones."""
    if args.init:
        try:
            folder = args.init if args.init.is_dir() else published(str(args.init), args.cache)
            model = GPT.open(folder)
        except ValueError as e:
            raise UserError(e)
        tokenizer = Tokenizer.open(folder, model.config.vocab_size)
        if args.block_size:
            try:
                model.crop(args.block_size)
            except ValueError as e:
                raise UserError(f"--init {args.init} --block-size {args.block_size}: {e}", 2)
        if args.dropout is not None:
            model.config.dropout = args.dropout
        return model.train(), tokenizer
    if args.tokenizer == "gpt2":
        tokenizer = Tokenizer.gpt2()
    else:
        tokenizer = learn_tokenizer(problems, args.vocab_size or 1024)
    config = GPTConfig(tokenizer.vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd, args.dropout)
    return GPT(config).initialise(args.seed), tokenizer


def encode_fitting(problems, path, role, tokenizer, block_size, guidance=None):
    """Encode problems for a role; those longer than the block are left out, and counted on stderr.

    Returns the sequences and the number, from 1, of each one's problem.
    """
    sequences = encode_problems(problems, role, tokenizer, guidance)
    rows = [row for row, sequence in enumerate(sequences, 1) if fits(sequence, block_size)]
    fitting = [sequences[row - 1] for row in rows]
    if len(fitting) < len(sequences):
        tqdm.write(f"{path}: {len(sequences) - len(fitting):,} of {len(sequences):,} problems are longer than the block of "
                   f"{block_size} tokens and left out", file=sys.stderr)
    if not fitting:
        raise UserError(f"{path}: no problem fits into the block of {block_size} tokens (--block-size)")
    return fitting, rows


# flags that may change from a run to its --resume: the first change nothing, the second its bytes but not its soundness
FREE = ("out", "force", "resume", "save_minutes", "cache", "rank")
NAMED = ("minutes", "steps", "epochs", "patience", "accumulate", "world", "device", "compile", "checkpoint_activations",
         "threads", "torch")


def settings(args):
    """What makes a run what it is, to be compared at --resume: {flag: value}, the files by what they hold."""
    files = {flag: hashlib.sha256(getattr(args, flag).read_bytes()).hexdigest() for flag in ("train", "valid")}
    flags = {flag: value if isinstance(value, (int, float, str, type(None))) else str(value)
             for flag, value in vars(args).items() if flag not in FREE}
    return flags | files | {"device": args.device.type, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


def open_state(args):
    """What a run of the same settings left in last/trainer.pt, a dict; None if it has not come so far.

    Raises UserError for a broken file, and (status 2) where the settings are others; what only moves the bytes is named.
    """
    path = args.out / "last" / "trainer.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        had = state["settings"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as e:
        raise UserError(f"{path}: broken, cannot go on with it ({type(e).__name__})")
    for flag, value in settings(args).items():
        if flag not in had or had[flag] == value:
            continue
        here, there = ("other data", "") if flag in ("train", "valid") else (value, f", the run had {had[flag]}")
        if flag not in NAMED:
            raise UserError(f"{path}: cannot go on: --{flag.replace('_', '-')} is {here}{there}", 2)
        if args.rank == 0:
            tqdm.write(f"{path}: {flag.replace('_', '-')} is {here}{there}: the bytes will be others than without a break",
                       file=sys.stderr)
    return state


def next_command(args):
    """What to type when the student is ready: train its partner, or solve problems."""
    role, default = args.role, Path("runs", args.role)
    partner = {"solver": "decomposer", "decomposer": "solver", "stepwise": "solver"}.get(role)
    if partner and not Path("runs", partner, "student.json").exists():
        words = ["train.py", "--role", partner, "--init", args.init if pretrained(args) else args.out]
        words += [word for flag in ("train", "valid") if (path := getattr(args, flag)) != Path("annotations", f"{flag}.jsonl")
                  for word in (f"--{flag}", path)]
        words += ["--minutes", 1.5] if role == "solver" and not args.init else []
    else:
        words = ["infer.py"] if role in ("solver", "decomposer") else ["infer.py", "--procedure", role]
        flag = {"solver": "--solver", "decomposer": "--decomposer", "stepwise": "--decomposer"}.get(role, "--student")
        words += [flag, args.out] if args.out != default else []
    return shlex.join(["python", *map(str, words)])


def main(argv=None):
    """Parse, open, train, say what came out and what to type next."""
    args = parse_args(argv)
    join_ranks(args)
    settle(args)
    if not args.train.exists():
        raise UserError(f"{args.train}: no annotations here yet; make them with: python annotate.py")
    problems, valid = read_problems(args.train), read_problems(args.valid)
    state = open_state(args) if args.resume else None
    if not args.force and not state:
        if (args.out / "student.json").exists():
            raise UserError(f"{args.out}: holds a student already; --force replaces it, --out DIR leaves it", 2)
        if (args.out / "last" / "trainer.pt").exists():
            raise UserError(f"{args.out}: holds a run that was broken off; --resume goes on with it, --force replaces it", 2)
    if args.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    torch.set_flush_denormal(True)  # a small model's gradients meet numbers that a CPU multiplies a hundred times slower
    about = {"settings": settings(args)}  # before anything below changes a flag
    if problems == valid and args.rank == 0:
        tqdm.write(f"{args.valid}: the same problems as in {args.train}: the validation loss will say nothing", file=sys.stderr)

    if state:
        model, tokenizer = GPT(GPTConfig(**state["config"])), Tokenizer.open(args.out / "last")
        model.load_state_dict(state["model"])
    else:
        if args.rank:
            agree([0.0], args.world)  # waits for the first rank: what it downloads, the others find
        model, tokenizer = open_student(args, problems)
        if args.rank == 0:
            agree([0.0], args.world)
    model.to(args.device)
    model.checkpoint_activations = args.checkpoint_activations
    about["config"] = asdict(model.config)
    block_size = model.config.block_size
    sequences, rows = encode_fitting(problems, args.train, args.role, tokenizer, block_size, args.guidance)
    valid_sequences, valid_rows = encode_fitting(valid, args.valid, args.role, tokenizer, block_size, args.guidance)
    exercises = encode(recitations(problems, tokenizer, round(args.recite * len(problems)), args.seed), tokenizer)
    exercises = [exercise for exercise in exercises if fits(exercise, block_size)]
    sequences, rows = sequences + exercises, rows + [0] * len(exercises)
    if args.epochs:
        batches = plan_batches([len(ids) for ids, _ in sequences], args.batch_tokens, np.random.default_rng((args.seed, 1)))
        args.steps = max(1, round(args.epochs * len(batches)))
    valid_batches = [make_batch([valid_sequences[i] for i in batch], 0.0, args.device) for batch in plan_batches(
        [len(ids) for ids, _ in valid_sequences], min(args.batch_tokens, 8192), np.random.default_rng(0))[args.rank::args.world]]
    solve = lambda n: solved(model, tokenizer, [valid[row - 1] for row in valid_rows[:n]], args.role, args.guidance)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.rank == 0:
        print(f"{args.role}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(rows) - len(exercises):,} problems, "
              f"vocabulary {tokenizer.vocab_size:,}, {args.optimizer}, {args.device.type} {args.dtype}"
              + f", {args.world} ranks" * (args.world > 1) + (f", from step {state['figures']['steps']:,}" if state else ""),
              file=sys.stderr)

    began_elsewhere = pretrained(args)

    def save(folder, figures, state=None):
        """Keep the student in `folder`, and the state that --resume needs."""
        if args.rank:
            return
        with written_aside(folder) as aside:
            model.save(aside)
            tokenizer.save(aside)
            figures = {key: value for key, value in figures.items() if value != math.inf}  # for which JSON has no word
            student = {"role": args.role, "guidance": args.guidance, "init": str(args.init) if args.init else None,
                       "pretrained": began_elsewhere, **figures}
            (aside / "student.json").write_text(json.dumps(student) + "\n")
            if state:
                with open(aside / "trainer.pt", "wb") as f:
                    torch.save(about | state, f)

    if not state:
        save(args.out / "last", {"steps": 0})  # a disk that is full shows now, not after the training
        (args.out / "last" / "trainer.pt").unlink(missing_ok=True)  # of the student that is being replaced
    try:
        figures = train(model, sequences, rows, valid_batches, solve, save, args, state)
    except (RuntimeError, MemoryError) as e:
        if isinstance(e, MemoryError) or "out of memory" in str(e) or "can't allocate memory" in str(e):
            raise UserError(f"out of memory: lower --batch-tokens ({args.batch_tokens}), or go through it in more parts "
                            f"(--accumulate {2 * args.accumulate}), or --checkpoint-activations")
        if args.world > 1 and ("onnection" in str(e) or "imed out" in str(e)):
            raise UserError(f"rank {args.rank}: another rank has died: {str(e).splitlines()[0]}")
        raise
    if args.rank == 0:
        validated = figures["best"] < math.inf
        print(f"{args.role}: {figures['steps']:,} steps, {figures['tokens'] / 1e6:.1f} M tokens (epoch {figures['epochs']}, "
              f"{100 * figures['padding'] / max(figures['tokens'], 1):.1f} % padding) in {figures['seconds'] / 60:.1f} min"
              + f"; validation loss {figures['valid_loss']:.4f}, best {figures['best']:.4f}" * validated)
        if validated:
            print(f"{'stopped early, but usable' if figures['stopped'] else 'kept'} in {args.out}\nnext: {next_command(args)}")
        else:
            print(f"stopped before the first validation; kept in {args.out / 'last'}\nnext: the same command with --resume")
    if args.world > 1:
        dist.destroy_process_group()
    if figures["stopped"]:
        sys.exit(128 + figures["stopped"])


if __name__ == "__main__":
    run(main)
