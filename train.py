"""Train one student: python train.py --role solver, python train.py --role decomposer.

One screen of set-up (main), then the loop (train), read from top to bottom. The student's folder is a Hugging Face GPT-2
folder: config.json, model.safetensors, vocab.json, merges.txt; beside them student.json (its role) and log.jsonl.
"""
import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import ROLES, Tokenizer, UserError, encode_problems, make_batch, plan_batches, read_problems, run, segments, \
    written_aside
from model import GPT, GPTConfig


def parse_args(argv=None):
    """The flags of train.py. Raises UserError for a combination that makes no sense."""
    p = argparse.ArgumentParser(description="Train one student on Socratic annotations.")
    p.add_argument("--role", choices=ROLES, required=True, help="what the student learns to write")
    p.add_argument("--train", type=Path, default="annotations/train.jsonl", metavar="FILE")
    p.add_argument("--valid", type=Path, default="annotations/valid.jsonl", metavar="FILE")
    p.add_argument("--out", type=Path, metavar="DIR", help="the student's folder (runs/ROLE)")
    p.add_argument("--force", action="store_true", help="replace the student that is in --out")
    p.add_argument("--init", type=Path, metavar="DIR", help="start from this student, or this GPT-2 folder")
    p.add_argument("--tokenizer", choices=["learned", "gpt2"], help="vocabulary of a student from scratch (learned)")
    p.add_argument("--vocab-size", type=int, default=1024, help="of a learned vocabulary, tokens")
    p.add_argument("--block-size", type=int, default=512, help="longest sequence of a student from scratch, tokens")
    p.add_argument("--n-layer", type=int, default=4)
    p.add_argument("--n-head", type=int, default=4)
    p.add_argument("--n-embd", type=int, default=128)
    p.add_argument("--dropout", type=float, default=0.0)
    p.add_argument("--minutes", type=float, default=8.0, help="of training, after the set-up")
    p.add_argument("--steps", type=int, help="stop after so many optimizer steps instead of --minutes")
    p.add_argument("--batch-tokens", type=int, help="tokens of a step, padding included (512; 8192 on a GPU)")
    p.add_argument("--optimizer", choices=["muon", "adamw"], help="muon from scratch, adamw from a GPT-2 folder")
    p.add_argument("--lr", type=float, help="peak learning rate (0.002; 5e-5 from a GPT-2 folder)")
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--text-weight", type=float, help="weight of the loss on what is not learned (0.3 from scratch, else 0)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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

    All matrices of one shape are one batched product. Rates are AdamW's: the update is scaled to a root mean square of
    0.2 per element (Liu et al. 2025), and decays weights likewise.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, steps=4):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps))

    @torch.no_grad()
    def step(self):
        """One update; every parameter is (r, c) with a gradient."""
        for group in self.param_groups:
            parts = {}  # shape -> the square or wide matrices that are updated together
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                m = self.state[p]["momentum"]
                m.lerp_(p.grad, 1 - group["momentum"])
                u = p.grad.lerp(m, group["momentum"])
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


def make_optimizers(model, args):
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW for all; decay on matrices alone."""
    inside = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("h.")]
    tables = [model.wte.weight, model.wpe.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    decayed = tables if args.optimizer == "muon" else tables + inside
    adamw = torch.optim.AdamW([{"params": decayed, "weight_decay": args.weight_decay},
                               {"params": vectors, "weight_decay": 0.0}],
                              lr=args.lr, betas=(0.9, 0.95), fused=True)
    if args.optimizer == "adamw":
        return [adamw]
    return [Muon(inside, lr=args.lr, weight_decay=args.weight_decay), adamw]


# ---- the loop ----------------------------------------------------------------------------------------------------------

def learning_rate(step, progress, args):
    """The rate's share of its peak at optimizer step `step` (from 0) and `progress` (0 to 1) of the run: warm-up, cosine to 0."""
    return min(1.0, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * progress))


def weighted_loss(model, batch, autocast):
    """Sum of weight * cross entropy (nats) over a batch of `make_batch`, and the sum of the weights; two scalars."""
    ids, at, targets, weights = batch
    with autocast():
        logits = model(ids, at)  # (N, vocab_size)
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum(), weights.sum()


@torch.no_grad()
def validate(model, batches, autocast):
    """Mean cross entropy (nats) of the learned tokens of `batches`, a list of `make_batch`'s batches."""
    model.eval()
    sums = [torch.stack(weighted_loss(model, batch, autocast)) for batch in batches]
    model.train()
    loss, weight = torch.stack(sums).sum(0).tolist()
    return loss / weight


def train(model, sequences, valid_batches, save, args):
    """Train `model` in place until --minutes or --steps are over, or Ctrl-C.

    sequences: list of (ids, learned) of data.encode_problems. save(name, info) keeps the student as "best" (the lowest
    validation loss so far) or "last". Returns a dict of the run's figures.
    """
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    autocast = {"float32": contextlib.nullcontext}.get(
        args.dtype, lambda: torch.autocast(args.device.type, dtype=getattr(torch, args.dtype)))
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == "float16")
    optimizers = make_optimizers(model, args)
    lengths = [len(ids) for ids, _ in sequences]
    limit, unit = (args.steps, "step") if args.steps else (60 * args.minutes, "s")
    every = limit / 10  # between validations

    start = time.perf_counter()
    step, epoch, queue = 0, 0, []
    best, next_validation = math.inf, every
    running = torch.zeros(2, device=args.device)  # weighted loss and weight since the last report
    seen = learned = 0  # tokens that went through the model and tokens under the loss at weight 1
    stopped = False
    bar = tqdm(total=round(limit), unit=unit, desc=args.role, disable=None, dynamic_ncols=True, bar_format=
               "{desc} {percentage:3.0f} %|{bar}| {elapsed}<{remaining}{postfix}")
    log = open(args.out / "log.jsonl", "a")
    try:
        while True:
            done = step if args.steps else time.perf_counter() - start
            if done >= limit:
                break
            if not queue:
                queue = plan_batches(lengths, args.batch_tokens, rng)
                epoch += 1
            batch = make_batch([sequences[i] for i in queue.pop()], args.text_weight, args.device)

            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * learning_rate(step, done / limit, args)
                optimizer.zero_grad()
            loss, weight = weighted_loss(model, batch, autocast)
            scaler.scale(loss / weight).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()

            step += 1
            seen += batch[0].numel()
            running += torch.stack([loss.detach(), weight])
            if step % 50 == 0:
                total, weight = running.tolist()
                running.zero_()
                seconds = time.perf_counter() - start
                if not math.isfinite(total):
                    raise UserError(f"the loss is no longer a number at step {step}: try a lower --lr")
                entry = {"step": step, "seconds": round(seconds, 2), "loss": round(total / weight, 4),
                         "lr": optimizers[0].param_groups[0]["lr"], "tokens": seen}
                log.write(json.dumps(entry) + "\n")
                bar.set_postfix_str(f"loss {total / weight:.3f}, {seen / seconds:,.0f} tokens/s", refresh=False)
                bar.update(min(step if args.steps else round(seconds), bar.total) - bar.n)
            if (step if args.steps else time.perf_counter() - start) >= next_validation:
                next_validation += every
                valid_loss = validate(model, valid_batches, autocast)
                log.write(json.dumps({"step": step, "seconds": round(time.perf_counter() - start, 2),
                                      "valid_loss": round(valid_loss, 5)}) + "\n")
                log.flush()
                if valid_loss < best:
                    best = valid_loss
                    save("best", {"step": step, "valid_loss": best})
    except KeyboardInterrupt:
        stopped = True
    bar.close()
    log.close()
    valid_loss = validate(model, valid_batches, autocast)
    if valid_loss < best:
        best = valid_loss
        save("best", {"step": step, "valid_loss": best})
    return {"steps": step, "epochs": epoch, "tokens": seen, "seconds": time.perf_counter() - start,
            "valid_loss": valid_loss, "best": best, "stopped": stopped}


# ---- set-up ------------------------------------------------------------------------------------------------------------

def settle(args):
    """Fill in what the flags leave open; raises UserError (status 2) for what cannot be."""
    try:
        args.device = torch.device(args.device)
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {args.device}: {str(e).splitlines()[0]}", 2)
    on_gpu = args.device.type == "cuda"
    if args.dtype is None:
        args.dtype = ("bfloat16" if torch.cuda.is_bf16_supported() else "float16") if on_gpu else "float32"
    args.out = args.out or Path("runs", args.role)
    args.batch_tokens = args.batch_tokens or (8192 if on_gpu else 512)
    published = args.init is not None and not (args.init / "student.json").exists()
    args.optimizer = args.optimizer or ("adamw" if published else "muon")
    args.lr = args.lr or (5e-5 if published else 2e-3)
    args.warmup = 100
    if args.text_weight is None:
        args.text_weight = 0.0 if published else 0.3
    return args


def open_data(path, role, tokenizer, block_size):
    """Read and encode a file for a role; what is longer than the block is left out and counted on stderr."""
    sequences = encode_problems(read_problems(path), role, tokenizer)
    fitting = [s for s in sequences if len(s[0]) <= block_size + 1]
    if len(fitting) < len(sequences):
        print(f"{path}: {len(sequences) - len(fitting)} of {len(sequences)} problems are longer than the block of "
              f"{block_size} tokens and left out", file=sys.stderr)
    if not fitting:
        raise UserError(f"{path}: no problem fits into {block_size} tokens: give a larger --block-size")
    return fitting


def main(argv=None):
    """Parse, open, train, say what came out and what to type next."""
    args = settle(parse_args(argv))
    if not args.train.exists():
        raise UserError(f"{args.train}: no annotations here yet; make them with: python annotate.py")
    if (args.out / "student.json").exists() and not args.force:
        raise UserError(f"{args.out}: holds a student already: --force replaces it, --out DIR keeps it", 2)

    problems = read_problems(args.train)
    if args.init:
        try:
            model = GPT.open(args.init)
        except ValueError as e:
            raise UserError(e)
        tokenizer = Tokenizer.open(args.init)
    else:
        tokenizer = Tokenizer.gpt2() if args.tokenizer == "gpt2" else Tokenizer.learn(
            (text for problem in problems[:20000] for text, _ in segments(problem, "solver") if text), args.vocab_size)
        model = GPT(GPTConfig(tokenizer.vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd, args.dropout))
        model.initialise(args.seed)
    model.to(args.device)
    sequences = open_data(args.train, args.role, tokenizer, model.config.block_size)
    valid = open_data(args.valid, args.role, tokenizer, model.config.block_size)
    valid_batches = [make_batch([valid[i] for i in batch], 0.0, args.device)
                     for batch in plan_batches([len(ids) for ids, _ in valid], 8192, np.random.default_rng(0))]

    args.out.mkdir(parents=True, exist_ok=True)

    def save(name, info):
        with written_aside(args.out) as folder:
            model.save(folder)
            tokenizer.save(folder)
            (folder / "student.json").write_text(json.dumps({"role": args.role, **info}))

    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.role}: {parameters:,} parameters, {len(sequences):,} problems, {args.device.type} {args.dtype}, "
          f"vocabulary {tokenizer.vocab_size:,}", file=sys.stderr)
    result = train(model, sequences, valid_batches, save, args)
    print(result)


if __name__ == "__main__":
    run(main)
