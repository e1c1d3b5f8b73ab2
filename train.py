"""Train one student: python train.py --role solver, python train.py --role decomposer.

One screen of set-up (main), then the loop (train), read from top to bottom. The student's folder is a Hugging Face GPT-2
folder: config.json, model.safetensors, vocab.json, merges.txt; beside them student.json (its role) and log.jsonl.
"""
import contextlib
import json
import math
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import GUIDANCE, ROLES, Parser, Tokenizer, UserError, encode, encode_problems, make_batch, plan_batches, read_problems, \
    recitations, run, segments, written_aside
from model import GPT, PUBLISHED, GPTConfig, published


def parse_args(argv=None):
    """The flags of train.py. Raises UserError for a combination that makes no sense."""
    p = Parser(description="Train one student on Socratic annotations.")
    p.add_argument("--role", choices=ROLES, required=True, help="what the student learns to write")
    p.add_argument("--train", type=Path, default="annotations/train.jsonl", metavar="FILE")
    p.add_argument("--valid", type=Path, default="annotations/valid.jsonl", metavar="FILE")
    p.add_argument("--out", type=Path, metavar="DIR", help="the student's folder (runs/ROLE)")
    p.add_argument("--force", action="store_true", help="replace the student that is in --out")
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
    p.add_argument("--batch-tokens", type=int, help="tokens of a step, padding included (1024; 8192 on a GPU)")
    p.add_argument("--optimizer", choices=["muon", "adamw"], help="muon from scratch, adamw from a GPT-2 folder")
    p.add_argument("--lr", type=float, help="peak learning rate (0.003; 0.001 from a student, 5e-5 from a GPT-2 folder)")
    p.add_argument("--warmup", type=int, default=100, help="optimizer steps")
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--text-weight", type=float, help="weight of the loss on what is not learned (0.3 from scratch, else 0)")
    p.add_argument("--recite", type=float, metavar="SHARE", help="of the training, in which a student first learns to copy "
                   "and to find numbers by their names (0.08 from scratch, else 0)")
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

def schedule(step, done, warmup):
    """The learning rate's share of its peak: warm-up over the first `warmup` steps, cosine to 0 as `done` goes to 1."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done))


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


def train(model, sequences, exercises, valid_batches, save, args):
    """Train `model` in place until --minutes or --steps are over, or Ctrl-C.

    sequences, exercises: lists of (ids, learned) of data.encode; the exercises are for the first share of --recite.
    valid_batches: list of data.make_batch's batches.
    save(figures) is called whenever the validation loss is the lowest so far. Returns the run's figures: a dict of
    steps, epochs, tokens and learned tokens seen, seconds, valid_loss at the end, best valid_loss, stopped (by Ctrl-C).
    """
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    autocast = contextlib.nullcontext if args.dtype == "float32" else partial(
        torch.autocast, args.device.type, dtype=getattr(torch, args.dtype))
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == "float16")
    optimizers = make_optimizers(model, args)
    limit = args.steps or 60 * args.minutes  # optimizer steps, or seconds
    figures = dict(steps=0, epochs=0, tokens=0, learned=0, seconds=0.0, valid_loss=math.inf, best=math.inf, stopped=False)
    since = torch.zeros(2, device=args.device)  # weighted loss and weight since the last line of the log
    queue, reciting, next_validation, start = [], False, 0.1, time.perf_counter()

    def check(log):
        loss = figures["valid_loss"] = validate(model, valid_batches, autocast)
        log.write(json.dumps({key: figures[key] for key in ("steps", "seconds", "valid_loss")}) + "\n")
        log.flush()
        if loss < figures["best"]:
            figures["best"] = loss
            save(figures)

    bar = tqdm(total=round(limit), desc=args.role, disable=None, dynamic_ncols=True,
               bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}<{remaining}{postfix}")
    with open(args.out / "log.jsonl", "w") as log:
        try:
            while (done := (figures["steps"] if args.steps else time.perf_counter() - start) / limit) < 1:
                if done >= next_validation:
                    next_validation += 0.1
                    check(log)
                if not queue or reciting and done >= args.recite:
                    reciting = done < args.recite
                    source = exercises if reciting else sequences
                    queue = plan_batches([len(ids) for ids, _ in source], args.batch_tokens, rng)
                    figures["epochs"] += not reciting
                chosen = [source[i] for i in queue.pop()]
                batch = make_batch(chosen, 0.0 if reciting else args.text_weight, args.device)

                loss, weight = weighted_loss(model, batch, autocast)
                scaler.scale(loss / weight).backward()
                for optimizer in optimizers:
                    scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = args.lr * schedule(figures["steps"], done, args.warmup)
                    scaler.step(optimizer)
                    optimizer.zero_grad()
                scaler.update()

                figures["steps"] += 1
                figures["tokens"] += batch[0].numel()
                figures["learned"] += sum(int(learned.sum()) for _, learned in chosen)
                figures["seconds"] = time.perf_counter() - start
                since += torch.stack([loss.detach(), weight])
                if figures["steps"] % 50 == 0:
                    loss, weight = since.tolist()
                    since.zero_()
                    if not math.isfinite(loss):
                        raise UserError(f"the loss is not a number at step {figures['steps']}: try a lower --lr")
                    log.write(json.dumps({key: figures[key] for key in ("steps", "seconds", "tokens")} |
                                         {"loss": loss / weight, "lr": group["lr"]}) + "\n")
                    bar.set_postfix_str(f"loss {loss / weight:.3f}, {figures['learned'] / figures['seconds']:,.0f} "
                                        "learned tokens/s", refresh=False)
                    bar.update(min(round(done * limit), bar.total) - bar.n)
        except KeyboardInterrupt:
            figures["stopped"] = True
        bar.close()
        check(log)
    return figures


# ---- set-up ------------------------------------------------------------------------------------------------------------

def settle(args):
    """Fill in what the flags leave open; raises UserError (status 2) for what cannot be."""
    try:
        args.device = torch.device(args.device)
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {args.device}: {str(e).splitlines()[0]}", 2)
    for flag in ("minutes", "steps", "batch_tokens", "lr", "block_size", "n_layer", "n_head", "n_embd"):
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
    on_gpu = args.device.type == "cuda"
    if args.dtype is None:
        args.dtype = ("bfloat16" if torch.cuda.is_bf16_supported() else "float16") if on_gpu else "float32"
    args.out = args.out or Path("runs", args.role)
    args.batch_tokens = args.batch_tokens or (8192 if on_gpu else 1024)
    # a published GPT-2 has been pretrained: gentle steps, and the learned segments alone, as in the paper
    published = args.init is not None and not (args.init / "student.json").exists()
    args.optimizer = args.optimizer or ("adamw" if published else "muon")
    args.lr = args.lr or (5e-5 if published else 1e-3 if args.init else 3e-3)
    if args.text_weight is None:
        args.text_weight = 0.0 if published else 0.3
    if args.recite is None:
        args.recite = 0.0 if args.init else 0.08
    if not 0 <= args.recite < 1:
        raise UserError("--recite must be a share, 0 or more and less than 1", 2)
    return args


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
        texts = (text for problem in problems[:20000] for text, _ in segments(problem, "solver") if text)
        tokenizer = Tokenizer.learn(texts, args.vocab_size or 1024)
    config = GPTConfig(tokenizer.vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd, args.dropout)
    return GPT(config).initialise(args.seed), tokenizer


def those_fitting(sequences, block_size):
    """The sequences that fit into the block: every token but the last is read."""
    return [sequence for sequence in sequences if len(sequence[0]) <= block_size + 1]


def encode_fitting(problems, path, role, tokenizer, block_size, guidance=None):
    """Encode problems for a role; those longer than the block are left out, and counted on stderr."""
    sequences = encode_problems(problems, role, tokenizer, guidance)
    fitting = those_fitting(sequences, block_size)
    if len(fitting) < len(sequences):
        tqdm.write(f"{path}: {len(sequences) - len(fitting):,} of {len(sequences):,} problems are longer than the block of "
                   f"{block_size} tokens and left out", file=sys.stderr)
    if not fitting:
        raise UserError(f"{path}: no problem fits into the block of {block_size} tokens (--block-size)")
    return fitting


def next_command(args):
    """What to type when the student is ready: train its partner, or solve problems."""
    role, default = args.role, Path("runs", args.role)
    partner = {"solver": "decomposer", "decomposer": "solver", "stepwise": "solver"}.get(role)
    if partner and not Path("runs", partner, "student.json").exists():
        words = ["train.py", "--role", partner, "--init", args.out]
        words += [word for flag in ("train", "valid") if (path := getattr(args, flag)) != Path("annotations", f"{flag}.jsonl")
                  for word in (f"--{flag}", path)]
        words += ["--minutes", 1] if role == "solver" else []
    else:
        words = ["infer.py"] if role in ("solver", "decomposer") else ["infer.py", "--procedure", role]
        flag = {"solver": "--solver", "decomposer": "--decomposer", "stepwise": "--decomposer"}.get(role, "--student")
        words += [flag, args.out] if args.out != default else []
    return shlex.join(["python", *map(str, words)])


def main(argv=None):
    """Parse, open, train, say what came out and what to type next."""
    args = settle(parse_args(argv))
    if not args.train.exists():
        raise UserError(f"{args.train}: no annotations here yet; make them with: python annotate.py")
    if (args.out / "student.json").exists() and not args.force:
        raise UserError(f"{args.out}: holds a student already; --force replaces it, --out DIR leaves it", 2)
    torch.set_flush_denormal(True)  # a small model's gradients meet numbers that a CPU multiplies a hundred times slower

    problems, valid = read_problems(args.train), read_problems(args.valid)
    model, tokenizer = open_student(args, problems)
    model.to(args.device)
    block_size = model.config.block_size
    sequences = encode_fitting(problems, args.train, args.role, tokenizer, block_size, args.guidance)
    valid = encode_fitting(valid, args.valid, args.role, tokenizer, block_size, args.guidance)
    exercises = encode(recitations(problems, 10000, args.seed), tokenizer) if args.recite else []
    exercises = those_fitting(exercises, block_size)
    if not exercises:
        args.recite = 0.0  # no solution closes with a number, or the block is too short
    valid_batches = [make_batch([valid[i] for i in batch], 0.0, args.device)
                     for batch in plan_batches([len(ids) for ids, _ in valid], 8192, np.random.default_rng(0))]
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{args.role}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(sequences):,} problems, "
          f"vocabulary {tokenizer.vocab_size:,}, {args.optimizer}, {args.device.type} {args.dtype}", file=sys.stderr)

    def save(folder, figures):
        with written_aside(folder) as aside:
            model.save(aside)
            tokenizer.save(aside)
            about = {"role": args.role, "guidance": args.guidance, "init": str(args.init) if args.init else None, **figures}
            (aside / "student.json").write_text(json.dumps(about) + "\n")

    save(args.out / "last", {"steps": 0})  # a disk that is full shows now, not after the training
    figures = train(model, sequences, exercises, valid_batches, partial(save, args.out), args)
    save(args.out / "last", figures)
    print(f"{args.role}: {figures['steps']:,} steps, {figures['tokens'] / 1e6:.1f} M tokens ({figures['epochs']} epochs) in "
          f"{figures['seconds'] / 60:.1f} min; validation loss {figures['valid_loss']:.4f}, best {figures['best']:.4f}\n"
          f"{'stopped early, but usable' if figures['stopped'] else 'kept'} in {args.out}\nnext: {next_command(args)}")
    if figures["stopped"]:
        sys.exit(130)


if __name__ == "__main__":
    run(main)
