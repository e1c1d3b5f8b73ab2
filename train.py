"""Train one student: python train.py --role solver, and python train.py --role decomposer.

Read `training_loop`, in the middle, first; what it calls stands before it (optimizers, loss, ranks) and
behind it (data, log, checkpoints). `main`, at the end, is a run's table of contents. What a run leaves:

    runs/solver/         the best student so far, a Hugging Face GPT-2 folder (config.json, ...)
        student.json     its role, and how far it was trained
        log.jsonl        losses over the steps, drawn in curve.svg
        last/            the latest student, and in trainer.pt what --resume needs
"""
import contextlib
import json
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import infer
from data import (GUIDANCE, ROLES, Parser, Tokenizer, UserError, atomic_write, checksum, encode_problems,
                  fits, get_device, loss_weights, make_batch, merge_steps, number, plan_batches,
                  read_problems, run_script, same_answer, train_tokenizer, whole_number)
from model import GPT, PUBLISHED, GPTConfig, download_published, init_weights


# ---- flags -------------------------------------------------------------------------------------------------

# Defaults, by how a student starts. From scratch it has to learn to read, from the problems themselves, at a
# high rate. What was pretrained is fine-tuned as in the paper.
FROM_SCRATCH = {"optimizer": "muon", "lr": 5e-3, "weight_decay": 0.3, "prompt_loss_weight": 0.1,
                "merged_steps": 0.6, "numbers": "letters"}
FROM_A_STUDENT = FROM_SCRATCH | {"lr": 2e-3}
FINE_TUNING = {"optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.1, "prompt_loss_weight": 0.0,
               "merged_steps": 0.0, "numbers": "digits"}
NEW_MODEL = {"tokenizer": "learned", "block_size": 512, "n_layer": 3, "n_embd": 96, "dropout": 0.0}


def build_parser():
    """The flags of train.py. Where the help names a value in brackets, it is the default."""
    p = Parser(description="Train one student on Socratic annotations.")
    add = p.add_argument
    add("--role", choices=ROLES, required=True, help="what the student learns to write")
    add("--train", type=Path, default="annotations/train.jsonl", metavar="FILE", help="(%(default)s)")
    add("--valid", type=Path, default="annotations/valid.jsonl", metavar="FILE", help="(%(default)s)")
    add("--out", type=Path, metavar="DIR", help="the student's folder (runs/ROLE)")
    add("--force", action="store_true", help="replace the student that is in --out")
    add("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    add("--init", type=Path, metavar="DIR",
        help=f"start from this student or GPT-2 folder, or from published weights: {', '.join(PUBLISHED)}")
    add("--guidance", choices=GUIDANCE,
        help="tell a student that asks how many steps, or which equations, the solution has")

    add("--tokenizer", choices=["learned", "gpt2"], help="of a student from scratch (learned)")
    add("--vocab-size", type=whole_number(257), help="of a learned vocabulary, tokens (2048)")
    add("--block-size", type=whole_number(1), help="longest sequence, tokens (512; with --init its own)")
    add("--n-layer", type=whole_number(1), help="(3)")
    add("--n-head", type=whole_number(1), help="(one for every 32 of --n-embd)")
    add("--n-embd", type=whole_number(1), help="(96)")
    add("--dropout", type=number(0, 0.99), help="(0; with --init its own)")

    length = p.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=number(0, above=True), help="of training, after the set-up (10)")
    length.add_argument("--steps", type=whole_number(1), help="so many optimizer steps instead")
    length.add_argument("--epochs", type=number(0, above=True), help="or so many passes over the problems")
    add("--patience", type=whole_number(1), metavar="N",
        help="stop when N evaluations, of ten in all, brought no improvement")
    add("--save-minutes", type=number(0, above=True), default=5.0, help="between checkpoints (%(default)s)")
    add("--batch-tokens", type=whole_number(1), help="of a step, padding included (2048; 8192 with CUDA)")
    add("--grad-accum", type=whole_number(1), default=1, metavar="N", help="micro-batches of a step (1)")
    add("--optimizer", choices=["muon", "adamw"], help="(muon; to fine-tune adamw)")
    add("--lr", type=number(0, above=True),
        help="peak learning rate (0.005; from a student of ours 0.002; to fine-tune 5e-5)")
    add("--warmup", type=whole_number(0), default=100, help="optimizer steps (%(default)s)")
    add("--weight-decay", type=number(0), help="(0.3; to fine-tune 0.1)")
    add("--prompt-loss-weight", type=number(0),
        help="weight of the loss on what the student only reads, falling to 0 (from 0.1; to fine-tune 0)")
    add("--merged-steps", type=number(0, 1), metavar="SHARE",
        help="of a solver's problems, in which it takes steps that nobody asks for (0.6; to fine-tune 0)")
    add("--numbers", choices=["letters", "digits"],
        help="as a student reads and writes them (letters; digits to fine-tune, and for students that "
             "calculate or are guided; with --init a student of ours as it does)")
    add("--no-calculator", action="store_true",
        help="let the student learn to calculate, for infer.py --no-calculator")
    add("--seed", type=whole_number(0), default=0, help="(%(default)s)")
    add("--compile", action="store_true", help="let torch.compile fuse the model's kernels")
    add("--checkpoint-activations", action="store_true", help="compute activations twice, in less memory")
    add("--device", help="(cuda or mps if there is one, else cpu)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="(float32; with CUDA its best)")
    return p


def resolve_args(args):
    """Fill in what the flags leave open. Raises UserError (status 2) for flags that exclude each other.

    `args` also holds what is no flag: rank and world (init_distributed), max_steps (main).
    """
    args.out = args.out or Path("runs", args.role)
    args.device = get_device(args.device)
    on_gpu = args.device.type == "cuda"
    bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    defaults = {"batch_tokens": 8192 if on_gpu else 2048,
                "dtype": "bfloat16" if bfloat16 else "float16" if on_gpu else "float32"}
    if args.force and args.resume:
        raise UserError("--force and --resume exclude each other", 2)
    if args.guidance and args.role not in ("decomposer", "stepwise", "unified"):
        raise UserError(f"--guidance is for students that ask sub-questions, --role {args.role} asks none", 2)
    if args.vocab_size and args.tokenizer == "gpt2":
        raise UserError("--vocab-size is that of a learned vocabulary, not of --tokenizer gpt2", 2)
    if args.init:
        if not args.init.is_dir() and str(args.init) not in PUBLISHED:
            raise UserError(f"--init {args.init}: no such folder, nor one of {', '.join(PUBLISHED)}", 2)
        for flag in ("n_layer", "n_head", "n_embd", "tokenizer", "vocab_size"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag.replace('_', '-')} is decided by --init {args.init}", 2)
        defaults |= FINE_TUNING if is_pretrained(args.init) else FROM_A_STUDENT
        defaults["numbers"] = "letters" if student_json(args.init).get("letters") else "digits"
    else:
        defaults |= FROM_SCRATCH | NEW_MODEL
        defaults["n_head"] = max(1, (args.n_embd or NEW_MODEL["n_embd"]) // 32)
    if args.no_calculator or args.role == "answer" or args.guidance:  # these need the numbers themselves
        defaults["numbers"] = "digits"
        if args.numbers == "letters":
            raise UserError("--numbers letters goes with none of --no-calculator, --guidance, "
                            "--role answer", 2)
    for flag, value in defaults.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    if not args.init and args.n_embd % args.n_head:
        raise UserError(f"--n-embd {args.n_embd} is no multiple of --n-head {args.n_head}", 2)
    if not (args.minutes or args.steps or args.epochs):
        args.minutes = 10.0


def student_json(init):
    """What student.json says of the student to start from, --init; {} for a GPT-2 from elsewhere."""
    with contextlib.suppress(OSError):
        return infer.read_student_json(init)
    return {}


def is_pretrained(init):
    """Whether --init is a GPT-2 from elsewhere (it has no student.json) or a student fine-tuned from one."""
    student = student_json(init)
    return not student or bool(student.get("pretrained"))


# ---- the optimizers ----------------------------------------------------------------------------------------

# Each row (a, b, c) brings the singular values s of a matrix nearer to 1: s -> a s + b s^3 + c s^5
# (Amsel et al. 2025, "The Polar Express")
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673))


def orthogonalise(x, steps):
    """Move the singular values of the matrices x (n, r, c), r <= c, toward 1."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan 2024): every direction of a matrix learns equally fast.

    All matrices of one shape are one batched product, and q, k and v are matrices of their own.
    (torch.optim.Muon, in torch since 2.9, goes matrix by matrix and computes in bfloat16, which a CPU does
    slowly.) Learning rates are AdamW's: the update is scaled to a root mean square of 0.2 per element (Liu et
    al. 2025), and weights decay likewise.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, steps=4):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps))

    @torch.no_grad()
    def step(self):
        """One update. Every parameter is a matrix (r, c) with a gradient."""
        for group in self.param_groups:
            params = group["params"]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            gradients = [p.grad for p in params]
            momenta = [self.state[p]["momentum"] for p in params]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look ahead
            by_shape = {}  # shape: the weights and their updates
            for p, update in zip(params, updates):
                for w, u in zip(wide_parts(p), wide_parts(update)):
                    weights, parts = by_shape.setdefault(u.shape, ([], []))
                    weights.append(w)
                    parts.append(u)
            for shape, (weights, parts) in by_shape.items():
                u = orthogonalise(torch.stack(parts), group["steps"])
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, u.unbind(), alpha=-0.2 * math.sqrt(max(shape)) * group["lr"])


def wide_parts(matrix):
    """The parts of a GPT-2 matrix that act alone, none of them tall: q, k and v of c_attn, else the whole."""
    r, c = matrix.shape
    parts = matrix.split(r, dim=1) if c == 3 * r else [matrix]
    return [part.mT if part.shape[0] > part.shape[1] else part for part in parts]


EMBEDDING_EPS = 1e-4  # of AdamW: smaller than the gradients of words in use, larger than those of others


def make_optimizers(model, args):
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW for all; vectors do not decay.

    Beside Muon, where students start from scratch, embeddings do not decay and have a larger epsilon. The
    softmax pushes the embeddings of all tokens that do not occur the same tiny way. AdamW would turn that
    into full steps, and within some thousand of them these embeddings had become nearly identical: no word of
    such tokens could be copied.
    """
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("h.")]
    embeddings = [model.wte.weight, model.wpe.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adamw = partial(torch.optim.AdamW, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if args.optimizer == "adamw":
        decayed = {"params": embeddings + matrices, "weight_decay": args.weight_decay}
        return [adamw([decayed, {"params": vectors}])]
    return [Muon(matrices, lr=args.lr, weight_decay=args.weight_decay),
            adamw([{"params": embeddings, "eps": EMBEDDING_EPS}, {"params": vectors}])]


def schedule(step, fraction_done, warmup):
    """The learning rate's share of its peak: linear warm-up over `warmup` steps, cosine to 0 in the end."""
    return min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * fraction_done))


def optimizer_step(model, optimizers, scaler, lr):
    """Clip the gradients to norm 1, update the weights, clear the gradients. Returns the norm, a scalar."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    # float16 overflows now and then, and the scaler then skips a step: of all optimizers, since they share
    # the norm
    overflow = scaler.is_enabled() and not norm.isfinite()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        if not overflow:
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return norm


# ---- loss and evaluation -----------------------------------------------------------------------------------

def falling_prompt_weight(first, fraction_done):
    """The weight of the loss on what a student only reads, the prompt and all else that is not under the loss
    mask: from `first` down to 0.

    At first these texts teach it to read. But most of their loss is of words that nobody can guess, 76 nats a
    problem where the equations have 2, and in the end it would hide what the student is to write.
    """
    return first * (1 - fraction_done) ** 2


def weighted_loss(model, batch, autocast):
    """Sum of weight * cross entropy (nats) over a batch of `make_batch`, and the sum of the weights."""
    ids, loss_positions, targets, weights = batch
    with autocast():
        logits = model(ids, loss_positions)  # (N, vocab_size)
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum(), weights.sum()


@torch.no_grad()
def evaluate(model, batches, autocast, world=1):
    """Mean cross entropy (nats) of the tokens under the loss mask, over the batches of all ranks."""
    model.eval()
    sums = [torch.stack(weighted_loss(model, batch, autocast)) for batch in batches]
    model.train()
    loss, weight = all_reduce(torch.stack(sums).sum(0).tolist() if sums else [0.0, 0.0], world)
    return loss / weight


def count_solved(model, tokenizer, problems, args):
    """Decode problems, as infer.py does: {"solved": how many are correct, "of": all}, or {} for a stepwise
    decomposer.

    A solver is given the teacher's sub-questions. A decomposer's must all be the teacher's.
    """
    procedure = {"solver": infer.given, "decomposer": infer.decompose, "unified": infer.unified,
                 "cot": infer.cot, "answer": infer.answer}.get(args.role)
    if not procedure:
        return {}  # it cannot go on without a solver
    c = model.config  # a cache of 256 MiB at most, beside the optimizer's state
    n_rows = max(1, min(len(problems), 2 ** 26 // (2 * c.n_layer * c.n_embd * c.block_size)))
    about = {"guidance": args.guidance, "letters": args.numbers == "letters"}
    students, solved = {args.role: infer.Student(model, tokenizer, n_rows, about)}, 0
    for i, record in infer.solve(problems, procedure, students, calculator=not args.no_calculator):
        if args.role == "decomposer":
            is_done = not record["unfinished"]
            solved += is_done and infer.questions(record) == infer.questions(problems[i])
        else:
            solved += record["answer"] is not None and same_answer(record["answer"], problems[i]["answer"])
    model.train()
    return {"solved": solved, "of": len(problems)}


# ---- several processes: torchrun --nproc_per_node=N train.py ... -------------------------------------------

def init_distributed(args):
    """Join the processes that torchrun started: sets args.rank, args.world (0, 1 if alone), its GPU.

    Gloo carries what lives on the CPU, NCCL what lives on a GPU.
    """
    args.rank, args.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.world == 1:
        return
    backend = "gloo"
    if args.device in (None, "cuda") and torch.cuda.is_available():
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(args.device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    except (RuntimeError, ValueError) as e:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"the ranks do not meet at {address} (torchrun --master-port chooses another): "
                        f"{str(e).splitlines()[0]}")


def all_reduce(numbers, world):
    """Add up a list of floats over all ranks, element by element; returns the sums in every rank."""
    if world == 1:
        return numbers
    numbers = torch.tensor(numbers, dtype=torch.float64)  # on the CPU, by gloo: no GPU is waited for
    dist.all_reduce(numbers)
    return numbers.tolist()


def all_reduce_gradients(model, world):
    """Add up the gradients over all ranks in one exchange. A rank that had no micro-batch adds zeros."""
    if world == 1:
        return
    params = list(model.parameters())
    for p in params:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in params])
    dist.all_reduce(flat)
    for p, part in zip(params, flat.split([p.numel() for p in params])):
        p.grad = part.view_as(p)


@contextlib.contextmanager
def first_rank_first(args):
    """The first rank goes through the block before the others begin it."""
    if args.rank:
        dist.barrier()
    yield
    if args.world > 1 and args.rank == 0:
        dist.barrier()


class DelayedMax:
    """The largest of all ranks' numbers, one call late: exchanged while a step computes, so nobody waits."""

    def __init__(self, world):
        self.world, self.exchange = world, None

    def __call__(self, numbers):
        """numbers: a list of floats; returns such a list, the same in every rank."""
        if self.world == 1:
            return numbers
        earlier, mine = self.exchange, torch.tensor(numbers, dtype=torch.float64)
        self.exchange = mine, dist.all_reduce(mine, dist.ReduceOp.MAX, async_op=True)
        largest, exchange = earlier or self.exchange
        exchange.wait()
        return largest.tolist()


# ---- the loop ----------------------------------------------------------------------------------------------

@dataclass
class Progress:
    """How far a run has come: all that a checkpoint holds beside weights, optimizers and settings."""
    step: int = 0         # optimizer steps made
    seconds: float = 0.0  # of training, those before a --resume included
    epoch: int = 0        # passes over the data begun
    next_batch: int = 0   # its place in the epoch
    tokens: int = 0       # read, padding included
    padding: int = 0
    loss_tokens: int = 0  # under the loss mask
    flops: float = 0.0    # see count_flops
    eval_index: int = 0   # tenths of the run that were evaluated
    eval_seconds: float = 0.0
    valid_loss: float = math.inf
    best_valid_loss: float = math.inf
    evals_without_improvement: int = 0
    stop_signal: int = 0  # number of the signal that ended the run early

    def fraction_done(self, args):
        """How much of the run is over, from 0 to 1, by steps or by time."""
        return self.step / args.max_steps if args.max_steps else self.seconds / (60 * args.minutes)

    def evaluation_due(self, fraction_done, args):
        """Whether another tenth of the run is over. Of a limited time, evaluations may take a tenth."""
        affordable = args.max_steps or self.eval_seconds <= 0.1 * self.seconds
        return int(10 * fraction_done) > self.eval_index and affordable


def training_loop(model, data: "Data", args, progress: Progress, checkpoints: "Checkpoints"):
    """Train `model` in place until its steps or minutes are over, its patience is, or a signal asks to stop.

    Raises UserError at a loss that is not a number.
    """
    autocast = contextlib.nullcontext if args.dtype == "float32" else partial(
        torch.autocast, args.device.type, dtype=getattr(torch, args.dtype))
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == "float16")
    optimizers = make_optimizers(model, args)
    checkpoints.restore(optimizers, scaler)
    maybe_compiled = torch.compile(model, dynamic=True) if args.compile else model
    max_over_ranks = DelayedMax(args.world)
    saved_at = progress.seconds
    start = time.perf_counter() - saved_at
    # where a run of 10 minutes is resumed with --minutes 20, half of the new run's tenths are to be evaluated
    progress.eval_index = min(progress.eval_index, int(10 * progress.fraction_done(args)))

    with TrainingLog(args, data.rows, progress) as log, catch_signals() as signals:
        while True:
            # how far are we? every rank comes to the same answer
            clock = 0.0 if args.rank else time.perf_counter() - start
            progress.seconds, stop_signal = max_over_ranks([clock, signals[0] if signals else 0])
            progress.stop_signal = int(stop_signal)
            fraction_done = progress.fraction_done(args)
            out_of_patience = args.patience and progress.evals_without_improvement >= args.patience
            finished = fraction_done >= 1 or progress.stop_signal or out_of_patience
            evaluation_due = progress.evaluation_due(fraction_done, args) or finished
            if progress.stop_signal == signal.SIGTERM:
                evaluation_due = False  # there is no time left
            checkpoint_due = finished or progress.seconds - saved_at >= 60 * args.save_minutes

            if evaluation_due or checkpoint_due or log.due(progress):
                log.write_losses(progress, fraction_done)
            if progress.stop_signal:  # before the evaluation: a second Ctrl-C breaks that off
                checkpoints.save(args.out / "last", progress, optimizers, scaler)
            if evaluation_due:
                began = time.perf_counter()
                progress.valid_loss = evaluate(model, data.valid_batches, autocast, args.world)
                if args.rank == 0:
                    with autocast():
                        solved = count_solved(model, data.tokenizer, data.to_solve, args)
                    log.write_evaluation(progress, solved)
                progress.eval_seconds += all_reduce([time.perf_counter() - began], args.world)[0] / args.world
                progress.eval_index = int(10 * fraction_done)
                progress.evals_without_improvement += 1
                if progress.valid_loss < progress.best_valid_loss:
                    progress.best_valid_loss, progress.evals_without_improvement = progress.valid_loss, 0
                    checkpoints.save(args.out, progress)
            if checkpoint_due and not progress.stop_signal:
                checkpoints.save(args.out / "last", progress, optimizers, scaler)
                saved_at = progress.seconds
            if finished:
                return

            # one optimizer step
            lr = args.lr * schedule(progress.step, fraction_done, args.warmup)
            prompt_weight = falling_prompt_weight(args.prompt_loss_weight, fraction_done)
            indices = data.draw_batch(progress)
            data.count_tokens(indices, progress)
            progress.step += 1
            step_weight = data.sum_of_weights(indices, prompt_weight, progress.step)  # over all ranks
            if model.config.dropout:  # a seed for each step and rank, so that --resume repeats it
                torch.manual_seed(((args.seed * 10 ** 9 + progress.step) * args.world + args.rank) % 2 ** 63)
            loss_sum = torch.zeros((), device=args.device)
            for micro_batch in data.micro_batches(indices, prompt_weight, progress.step):
                loss, _ = weighted_loss(maybe_compiled, micro_batch, autocast)
                scaler.scale(loss / step_weight).backward()
                loss_sum += loss.detach()
                progress.flops += args.world * count_flops(model.config, micro_batch)
            all_reduce_gradients(model, args.world)
            norm = optimizer_step(model, optimizers, scaler, lr)
            must_be_finite = loss_sum if scaler.is_enabled() else norm  # float16's norm may overflow
            log.add(progress.step, indices, loss_sum, must_be_finite, step_weight, lr)


@contextlib.contextmanager
def catch_signals():
    """Ctrl-C (SIGINT) and SIGTERM come into the block's list and do not interrupt it; a second one does."""
    caught, before = [], {}

    def catch(signum, frame):
        caught.append(signum)
        signal.signal(signum, before[signum])

    for signum in (signal.SIGINT, signal.SIGTERM):
        before[signum] = signal.signal(signum, catch)
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ---- the data of a run -------------------------------------------------------------------------------------

SOLVED_PROBLEMS = 20  # that an evaluation decodes


class Data:
    """The sequences of a run: the batches of each step, and what an evaluation reads and solves."""

    def __init__(self, problems, valid_problems, tokenizer, block_size, args):
        self.args, self.tokenizer = args, tokenizer
        if args.role == "solver":
            problems = merge_steps(problems, args.merged_steps, args.seed)
        # rows: of each sequence, which row of --train it is, from 1
        self.sequences, self.rows = encode_fitting(problems, args.train, tokenizer, block_size, args)
        self.lengths = [len(ids) for ids, _ in self.sequences]
        self.n_loss_tokens = [int(loss_mask[1:].sum()) for _, loss_mask in self.sequences]
        self.plan, self.planned_epoch = [], 0

        valid, rows = encode_fitting(valid_problems, args.valid, tokenizer, block_size, args)
        rng = np.random.default_rng(0)
        plan = plan_batches([len(ids) for ids, _ in valid], min(args.batch_tokens, 8192), rng)
        self.valid_batches = [make_batch([valid[i] for i in batch], device=args.device)
                              for batch in plan[args.rank::args.world]]
        self.to_solve = [valid_problems[row - 1] for row in rows[:SOLVED_PROBLEMS]]

    def plan_epoch(self, epoch):
        """The batches of an epoch, from its number alone, so that --resume finds them again."""
        rng = np.random.default_rng((self.args.seed, epoch))
        return plan_batches(self.lengths, self.args.batch_tokens, rng)

    def draw_batch(self, progress):
        """The sequences of the next step, a list of indices."""
        if progress.next_batch == 0:
            progress.epoch += 1
        if self.planned_epoch != progress.epoch:
            self.plan, self.planned_epoch = self.plan_epoch(progress.epoch), progress.epoch
        indices = self.plan[progress.next_batch]
        progress.next_batch = (progress.next_batch + 1) % len(self.plan)
        return indices

    def split(self, indices):
        """A step's sequences for the micro-batches of all ranks; some are empty if there are too few."""
        return np.array_split(indices, self.args.grad_accum * self.args.world)

    def micro_batches(self, indices, prompt_weight, step):
        """Yield this rank's micro-batches of a step, as tensors."""
        for part in self.split(indices)[self.args.rank::self.args.world]:
            if len(part):
                sequences = [self.sequences[i] for i in part]
                yield make_batch(sequences, prompt_weight, step, self.args.device)

    def sum_of_weights(self, indices, prompt_weight, step):
        """The sum of a step's loss weights, over all micro-batches and ranks."""
        masks = [self.sequences[i][1] for i in indices]
        return float(sum(loss_weights(mask[1:], prompt_weight, step).sum() for mask in masks))

    def count_tokens(self, indices, progress):
        """Count a step's tokens, of all ranks, in `progress`."""
        padded = sum(len(part) * (max(self.lengths[i] for i in part) - 1)
                     for part in self.split(indices) if len(part))
        progress.tokens += padded
        progress.padding += padded - sum(self.lengths[i] - 1 for i in indices)
        progress.loss_tokens += sum(self.n_loss_tokens[i] for i in indices)


def encode_fitting(problems, path, tokenizer, block_size, args):
    """The sequences of the problems that fit into the block, and which rows of the file those are, from 1."""
    sequences = encode_problems(problems, args.role, tokenizer, guidance=args.guidance,
                                calculator=not args.no_calculator, letters=args.numbers == "letters")
    rows = [row for row, sequence in enumerate(sequences, 1) if fits(sequence, block_size)]
    if not rows:
        raise UserError(f"{path}: no problem fits into the block of {block_size} tokens (--block-size)")
    if len(rows) < len(sequences):
        left_out = len(sequences) - len(rows)
        tell(args, f"{path}: left out, since longer than the block of {block_size} tokens: {left_out:,} of "
                   f"{len(sequences):,} problems")
    return [sequences[row - 1] for row in rows], rows


def tell(args, text):
    """Print a line on stderr, once for all ranks."""
    if args.rank == 0:
        tqdm.write(text, file=sys.stderr)


# ---- the log -----------------------------------------------------------------------------------------------

class TrainingLog:
    """log.jsonl, its curve, and the progress bar. Losses wait on the device until an entry is written."""

    def __init__(self, args, rows, progress):
        """rows: as in `Data`."""
        self.args, self.rows, self.path = args, rows, args.out / "log.jsonl"
        earlier = read_log(self.path) if progress.step else []
        self.file = open(os.devnull if args.rank else self.path, "w", buffering=1, encoding="utf-8")
        self.write(*(entry for entry in earlier if entry["step"] <= progress.step))  # up to the checkpoint
        self.bar = tqdm(total=100, desc=args.role, disable=True if args.rank else None, dynamic_ncols=True,
                        bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}<{remaining}{postfix}")
        self.solved = ""   # of the last evaluation, in words
        self.unwritten = []  # of each step since the last entry: number, sequences, what must be finite
        self.weight, self.lr, self.seconds, self.flops = 0, 0.0, progress.seconds, progress.flops

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()
        self.file.close()

    def write(self, *entries):
        """Append entries (dicts) to the file."""
        self.file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def add(self, step, indices, loss, must_be_finite, weight, lr):
        """Note a step. loss, must_be_finite: scalar tensors; weight: what divides the loss."""
        self.unwritten.append((step, indices, torch.stack([loss, must_be_finite])))
        self.weight += weight
        self.lr = lr

    def due(self, progress):
        """Whether an entry is due: every 50 steps or 10 seconds."""
        return progress.step % 50 == 0 or progress.seconds - self.seconds > 10

    def write_losses(self, progress, fraction_done):
        """Write an entry about the steps since the last one. Raises UserError if a loss is not a number."""
        if not self.unwritten:
            return
        pairs = torch.stack([pair for *_, pair in self.unwritten]).tolist()  # waits for the device
        losses = [loss for loss, _ in pairs]
        for (step, indices, _), pair in zip(self.unwritten, pairs):
            if not math.isfinite(sum(pair)):
                where = f"{self.args.train} rows {', '.join(str(self.rows[i]) for i in indices)}"
                raise UserError(f"the loss or its gradient is not a number at step {step}, {where}: try a "
                                f"lower --lr; {self.args.out} keeps what it had")
        loss = all_reduce([sum(losses)], self.args.world)[0] / self.weight
        rate = (progress.flops - self.flops) / max(progress.seconds - self.seconds, 1e-9)
        counted = "step", "seconds", "tokens", "padding", "loss_tokens", "flops"
        self.write({key: getattr(progress, key) for key in counted} | {"loss": loss, "lr": self.lr})
        self.bar.set_postfix_str(f"loss {loss:.3f}, {rate / 1e12:.3g} TFLOP/s{self.solved}", refresh=False)
        self.bar.update(min(round(100 * fraction_done), 100) - self.bar.n)
        self.unwritten, self.weight, self.seconds, self.flops = [], 0, progress.seconds, progress.flops

    def write_evaluation(self, progress, solved):
        """Write an entry about an evaluation, and draw the curve anew. solved: of `count_solved`."""
        self.solved = f", solved {solved['solved']} of {solved['of']}" if solved else ""
        self.write({key: getattr(progress, key) for key in ("step", "seconds", "valid_loss")} | solved)
        with atomic_write(self.args.out) as folder:
            (folder / "curve.svg").write_text(draw_curve(read_log(self.path)), encoding="utf-8")


def read_log(path):
    """The entries of a log.jsonl, a list of dicts, as far as they are whole."""
    entries = []
    with contextlib.suppress(ValueError, FileNotFoundError), open(path, encoding="utf-8") as log:
        for line in log:
            entries.append(json.loads(line))
    return entries


def draw_curve(entries):
    """The losses of a log over the steps as an SVG picture (text), both axes logarithmic."""
    curves = {key: [(math.log10(entry["step"] + 1), math.log10(max(entry[key], 1e-6)))
                    for entry in entries if key in entry] for key in ("loss", "valid_loss")}
    xs, ys = zip(*(point for curve in curves.values() for point in curve))
    left, low, width, height = min(xs), min(ys), max(xs) - min(xs) + 1e-9, max(ys) - min(ys) + 1e-9
    x = lambda value: 60 + 560 * (value - left) / width
    y = lambda value: 330 - 290 * (value - low) / height
    marks = ['<text x="60" y="365">optimizer steps, from the first entry to the last</text>']
    for value in (digit * 10.0 ** power for power in range(-6, 4) for digit in (1, 2, 5)):
        if low <= math.log10(value) <= low + height:
            at = f"{y(math.log10(value)):.1f}"
            marks.append(f'<path d="M60 {at}h560" stroke="#ddd"/><text x="10" y="{at}">{value:g}</text>')
    for (key, points), colour, place in zip(curves.items(), ("#999", "#06c"), (60, 320)):
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        marks += [f'<polyline points="{line}" fill="none" stroke="{colour}"/>',
                  f'<text x="{place}" y="20" fill="{colour}">{key} (nats)</text>']
    return "\n".join(['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" font-size="12">', *marks,
                      "</svg>", ""])


def count_flops(config, batch):
    """Floating-point operations of a batch's forward and backward; of attention the causal half.

    A second's share of what the device can do is the model FLOPs utilisation (MFU).
    """
    (B, T), N = batch[0].shape, len(batch[1])
    matrices = config.n_layer * 12 * config.n_embd ** 2 * B * T
    head, attention = config.vocab_size * config.n_embd * N, config.n_layer * config.n_embd * B * T * T
    return 6 * (matrices + head + attention)


# ---- checkpoints -------------------------------------------------------------------------------------------

LENGTH = "minutes", "steps", "epochs"
MAY_CHANGE = *LENGTH, "patience", "save_minutes", "grad_accum", "compile", "checkpoint_activations"
NO_SETTINGS = "out", "force", "resume", "device", "rank", "world", "max_steps"


def parse_args(argv=None):
    """The flags of a run, and the checkpoint that it continues from, a dict or None.

    With --resume a flag that is not given is what the run had. Raises UserError for a broken checkpoint, and
    (status 2) for a flag that is given, differs, and is none of MAY_CHANGE.
    """
    parser = build_parser()
    args = parser.parse_args(argv)  # once to find the checkpoint, then with its settings as defaults
    path = (args.out or Path("runs", args.role)) / "last" / "trainer.pt"
    if not args.resume or not path.exists():
        return args, None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        settings = checkpoint["settings"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as e:
        raise UserError(f"{path}: broken, cannot continue from it ({type(e).__name__})")
    if any(getattr(args, flag) for flag in LENGTH):
        settings = {flag: value for flag, value in settings.items() if flag not in LENGTH}
    parser.set_defaults(**settings)
    args = parser.parse_args(argv)
    for flag, value in settings.items():
        if flag not in MAY_CHANGE and str(getattr(args, flag)) != str(value):
            raise UserError(f"{path}: cannot continue: --{flag.replace('_', '-')} is {getattr(args, flag)}, "
                            f"the run has {value}", 2)
    return args, checkpoint


class Checkpoints:
    """What a run saves: the best student in --out, the latest in last/ with what --resume needs."""

    def __init__(self, model, tokenizer, args, loaded, problems):
        """loaded: the checkpoint that a resumed run starts from, or None; problems: those of --train and
        --valid. Raises UserError if these are not the checkpoint's."""
        self.model, self.tokenizer, self.args, self.loaded = model, tokenizer, args, loaded
        self.about = {"role": args.role, "guidance": args.guidance, "init": args.init and str(args.init),
                      "letters": args.numbers == "letters",
                      "calculates": args.no_calculator,  # it learned what the calculator does for others
                      "merged_steps": args.merged_steps if args.role == "solver" else 0.0,
                      "pretrained": bool(args.init) and is_pretrained(args.init)}
        self.settings = {flag: str(value) if isinstance(value, Path) else value
                         for flag, value in vars(args).items() if flag not in NO_SETTINGS}
        self.checksum = checksum(problems)
        if loaded and loaded["checksum"] != self.checksum:
            raise UserError(f"{args.out}: cannot continue: {args.train} or {args.valid} has changed", 2)

    def restore(self, optimizers, scaler):
        """Give a resumed run's optimizers their state again."""
        if self.loaded:
            scaler.load_state_dict(self.loaded["scaler"])
            for optimizer, state in zip(optimizers, self.loaded["optimizers"], strict=True):
                optimizer.load_state_dict(state)

    def save(self, folder, progress, optimizers=None, scaler=None):
        """Save the student; with its optimizers also what --resume needs to come to the same bytes."""
        if self.args.rank:
            return
        metrics = {key: value for key, value in asdict(progress).items() if value != math.inf}  # not JSON
        with atomic_write(folder) as temporary:
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            (temporary / "student.json").write_text(json.dumps(self.about | metrics) + "\n", encoding="utf-8")
            if optimizers:
                state = {"settings": self.settings, "checksum": self.checksum, "progress": asdict(progress),
                         "model": self.model.state_dict(),
                         "optimizers": [each.state_dict() for each in optimizers],
                         "scaler": scaler.state_dict()}
                try:
                    torch.save(state, temporary / "trainer.pt")
                except RuntimeError:  # as torch says it
                    raise UserError(f"{folder}: trainer.pt could not be written; is the disk full?")


# ---- the command -------------------------------------------------------------------------------------------

def open_model(args, problems, checkpoint):
    """The model to start from, on its device, and its tokenizer: those of last/, of --init, or new ones."""
    if checkpoint or args.init:
        try:
            folder = args.out / "last" if checkpoint else args.init
            folder = folder if folder.is_dir() else download_published(str(folder))
            model = GPT.from_pretrained(folder)
            model.crop_block_size(args.block_size or model.config.block_size)
        except ValueError as e:
            raise UserError(e)
        tokenizer = Tokenizer.from_pretrained(folder, model.config.vocab_size)
        if args.dropout is not None:
            model.config.dropout = args.dropout
    else:
        learned = args.tokenizer != "gpt2"
        letters = args.numbers == "letters"
        tokenizer = train_tokenizer(problems, args.vocab_size, letters) if learned else Tokenizer.gpt2()
        config = GPTConfig(tokenizer.vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd,
                           args.dropout, gelu="none")
        model = init_weights(GPT(config), args.seed)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])  # a kill may have left newer weights beside trainer.pt
    model.checkpoint_activations = args.checkpoint_activations
    return model.train().to(args.device), tokenizer


def claim_out_folder(args):
    """Raise UserError (status 2) if --out holds a student or a run that nobody said to replace."""
    has_run = (args.out / "last" / "trainer.pt").exists()
    if not args.force and (args.out / "student.json").exists():
        resume = "--resume continues its run, " if has_run else ""
        raise UserError(f"{args.out}: holds a student already; {resume}--force replaces it, --out DIR leaves "
                        "it", 2)
    if not args.force and has_run:
        raise UserError(f"{args.out}: holds an unfinished run; --resume continues it, --force replaces it", 2)
    args.out.mkdir(parents=True, exist_ok=True)


def next_command(args):
    """What to type when the student is ready: train the other one of a pair, or solve problems."""
    is_default = args.out == Path("runs", args.role)
    partner = {"solver": "decomposer", "decomposer": "solver", "stepwise": "solver"}.get(args.role)
    words = ["infer.py"] if args.role in ("solver", "decomposer") else ["infer.py", "--procedure", args.role]
    if is_default and partner and not Path("runs", partner).exists():
        words = ["train.py", "--role", partner]
        words += ["--init", str(args.init)] if args.init and is_pretrained(args.init) else []
        if args.train != Path("annotations/train.jsonl"):
            words += ["--train", str(args.train), "--valid", str(args.valid)]
        return shlex.join(["python", *words])
    if not is_default:
        words += [f"--{infer.student_flag(args.role)}", str(args.out)]
        words += [f"--{partner}", "ITS_FOLDER"] if partner else []
    words += ["--guide", {"steps": "2", "equations": "3+2=5, 3+5=8"}[args.guidance]] if args.guidance else []
    return shlex.join(["python", *words])


def report(args, progress):
    """Say what came out, where it is, and what to type next."""
    minutes, tokens = progress.seconds / 60, progress.tokens / 1e6
    print(f"{args.role}: {progress.step:,} steps, {tokens:.1f} M tokens, {minutes:.1f} minutes")
    if progress.best_valid_loss < math.inf:
        print(f"validation loss {progress.valid_loss:.4f}, best {progress.best_valid_loss:.4f}")
        print(f"{'stopped early, but usable:' if progress.stop_signal else 'saved in'} {args.out}")
        print(f"next: {next_command(args)}")
    else:
        print(f"stopped before the first evaluation; the checkpoint is in {args.out / 'last'}")
        print("next: the same command with --resume")


def main(argv=None):
    """Parse, load, train, report."""
    args, checkpoint = parse_args(argv)
    init_distributed(args)
    resolve_args(args)
    if not args.train.exists():
        raise UserError(f"{args.train}: no annotations here yet; make them with: python annotate.py")
    problems, valid_problems = read_problems(args.train), read_problems(args.valid)
    if args.rank == 0 and not checkpoint:
        claim_out_folder(args)
    with first_rank_first(args):  # what that downloads, the others find
        model, tokenizer = open_model(args, problems, checkpoint)

    torch.set_float32_matmul_precision("high")  # on a GPU: TF32
    torch.set_flush_denormal(True)  # tiny gradients slow a CPU down a hundred times
    checkpoints = Checkpoints(model, tokenizer, args, checkpoint, [problems, valid_problems])
    data = Data(problems, valid_problems, tokenizer, model.config.block_size, args)
    args.max_steps = max(1, round(args.epochs * len(data.plan_epoch(1)))) if args.epochs else args.steps
    progress = Progress(**checkpoint["progress"]) if checkpoint else Progress()
    n_params = sum(p.numel() for p in model.parameters())
    tell(args, f"{args.role}: {n_params:,} parameters, {len(problems):,} problems, vocabulary "
               f"{tokenizer.vocab_size:,}, {args.optimizer}, {args.device.type} {args.dtype}, "
               f"{args.world} rank{'s' * (args.world > 1)}, from step {progress.step:,}")
    if args.force and args.rank == 0:
        shutil.rmtree(args.out / "last", ignore_errors=True)
    try:
        training_loop(model, data, args, progress, checkpoints)
    except (RuntimeError, MemoryError) as e:
        if isinstance(e, MemoryError) or re.search("out of memory|can't allocate memory", str(e)):
            raise UserError(f"out of memory: lower --batch-tokens ({args.batch_tokens}), raise --grad-accum "
                            f"({args.grad_accum}), or add --checkpoint-activations")
        if args.world > 1 and re.search("connection|timed out", str(e), re.I):
            raise UserError(f"rank {args.rank}: another rank has died: {str(e).splitlines()[0]}")
        raise
    if args.rank == 0:
        report(args, progress)
    if args.world > 1:
        dist.destroy_process_group()
    if progress.stop_signal:
        sys.exit(128 + progress.stop_signal)


if __name__ == "__main__":
    run_script(main)
