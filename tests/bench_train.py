"""Training speed: problems a second of train.py's step beside three others, in turn in one process.

    python tests/bench_train.py --data annotations/valid.jsonl
    python tests/bench_train.py --ranks

ours: one sequence per problem, batches of about equal length, head and loss at the loss positions. Beside it
  transformers: what one would write for this method with GPT2LMHeadModel: one sequence per sub-question,
    random padded batches;
  plain: our model on our sequences, but in random padded batches and with the head at every position;
  dense: a GPT of torch.nn's modules on rows of as many tokens without padding, loss on all of them, as
    nanoGPT's step.
All have a student's shape, take AdamW, clipping and float32. A round takes every side once through the same
problems; printed are the medians over rounds of the ratio within a round, and each side's peak memory above
what the process held before its first step, measured in a process of its own.

--ranks: the real script, one process of two threads and two ranks of one thread each (torchrun), in turn:
steps a second of both, and their ratio.
"""
import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train  # noqa: E402
from data import (encode_problems, fits, make_batch, plan_batches, read_problems, run_script,  # noqa: E402
                  train_tokenizer)
from model import GPT, GPTConfig, init_weights  # noqa: E402

SIDES = "ours", "transformers", "plain", "dense"
N_PROBLEMS, BATCH_TOKENS = 64, 1024  # of a round, of a step


class Dense(nn.Module):
    """A GPT as torch.nn makes it short to write: (B, T) ids to (B, T, vocab_size) logits."""

    def __init__(self, c):
        super().__init__()
        n = c.n_embd
        self.n_head = c.n_head
        self.wte, self.wpe = nn.Embedding(c.vocab_size, n), nn.Embedding(c.block_size, n)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "ln_1": nn.LayerNorm(n), "attn": nn.Linear(n, 3 * n), "out": nn.Linear(n, n),
            "ln_2": nn.LayerNorm(n), "up": nn.Linear(n, 4 * n), "down": nn.Linear(4 * n, n)})
            for _ in range(c.n_layer))
        self.ln_f, self.head = nn.LayerNorm(n), nn.Linear(n, c.vocab_size, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        B, T = ids.shape
        x = self.wte(ids) + self.wpe(torch.arange(T))
        for b in self.blocks:
            q, k, v = b["attn"](b["ln_1"](x)).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + b["out"](y.transpose(1, 2).reshape(B, T, -1))
            x = x + b["down"](F.gelu(b["up"](b["ln_2"](x)), approximate="tanh"))
        return self.head(self.ln_f(x))


# ---- the sides ---------------------------------------------------------------------------------------------

def padded(batch):
    """Sequences as transformers takes them: ids, labels (-100: no loss) and attention mask, (B, T) each."""
    pad = lambda rows, value: nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), True, value).long()
    ids = [ids for ids, _ in batch]
    labels = [np.where(loss_mask, ids, -100) for ids, loss_mask in batch]
    return pad(ids, 0), pad(labels, -100), pad([np.ones(len(row)) for row in ids], 0)


def sub_questions(ids, loss_mask):
    """The examples of a solver's sequence, each read alone: one per sub-question and one for the answer."""
    edges = np.flatnonzero(np.diff(loss_mask, prepend=False, append=False))  # of what is under the loss
    return [(ids[:end], np.arange(end) >= begin) for begin, end in edges.reshape(-1, 2)]


def random_batches(sequences, n, rng):
    """`n` batches of all sequences in random order."""
    return [[sequences[i] for i in part] for part in np.array_split(rng.permutation(len(sequences)), n)]


def side(name, problems):
    """A function that takes a side once through the problems. ImportError: its library is not installed."""
    tokenizer, rng = train_tokenizer(problems), np.random.default_rng(0)
    config = GPTConfig(tokenizer.vocab_size, 1024, n_layer=4, n_head=3, n_embd=96)
    sequences = encode_problems(problems, "solver", tokenizer, calculator=False)
    sequences = [sequence for sequence in sequences if fits(sequence, config.block_size)]
    plan = plan_batches([len(ids) for ids, _ in sequences], BATCH_TOKENS, rng)
    model, optimizer = init_weights(GPT(config), 0), None
    if name == "ours":
        batches = [[sequences[i] for i in batch] for batch in plan]
        flags = SimpleNamespace(optimizer="adamw", lr=1e-4, weight_decay=0.1)
        optimizer, = train.make_optimizers(model, flags)

        def loss_of(batch):
            loss, weight = train.weighted_loss(model, make_batch(batch), contextlib.nullcontext)
            return loss / weight
    elif name == "plain":
        batches = random_batches(sequences, len(plan), rng)

        def loss_of(batch):
            ids, labels, _ = padded(batch)
            return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
    elif name == "dense":
        model = Dense(config)
        stream = torch.tensor(np.concatenate([ids for ids, _ in sequences])).long()
        T = len(stream) // len(sequences)
        batches = stream[:T * len(sequences)].view(-1, T).tensor_split(len(plan))

        def loss_of(ids):
            return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    else:
        from transformers import GPT2Config, GPT2LMHeadModel
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd,
            n_layer=config.n_layer, n_head=config.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            bos_token_id=0, eos_token_id=0)).train()
        examples = [example for sequence in sequences for example in sub_questions(*sequence)]
        n_tokens = sum(len(ids) for ids, _ in examples)
        batches = random_batches(examples, -(-n_tokens // BATCH_TOKENS), rng)

        def loss_of(batch):
            ids, labels, mask = padded(batch)
            return model(input_ids=ids, attention_mask=mask, labels=labels).loss
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4)

    def once():
        for batch in batches:
            loss_of(batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return once


def compare_sides(problems, args):
    """Print the speed of each side, how many times as fast ours is, and the peak memory."""
    seconds, made = {}, {}
    for name in SIDES:
        try:
            made[name], seconds[name] = side(name, problems), []
        except ImportError as e:
            print(f"{name} is left out: {e}")
    for _ in range(args.rounds + 1):  # the first is not counted
        for name, once in made.items():
            start = time.perf_counter()
            once()
            seconds[name].append(time.perf_counter() - start)
    print(f"{len(problems)} problems, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in made:
        took = np.array(seconds[name][1:])
        command = [sys.executable, __file__, "--data", args.data, "--memory-of", name]
        peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"  {name:12} {len(problems) / np.median(took):8.1f} problems/s, ours is "
              f"{np.median(took / np.array(seconds['ours'][1:])):.2f} times as fast; peak "
              f"{peak / 1024:,.0f} MiB", flush=True)


def print_memory(name, problems):
    """Print the peak memory of a side beyond what this process holds before its first step, KiB (Linux)."""
    field = lambda key: int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0])
    once = side(name, problems)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = field("VmRSS")
    once()
    print(field("VmHWM") - before)


# ---- ranks -------------------------------------------------------------------------------------------------

def compare_ranks(args):
    """Print the steps a second of one process with two threads and of two ranks with one thread each."""
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2".split()
    ways = {"one process, two threads": ([], "2"), "two ranks, one thread each": (torchrun, "1")}
    speeds, flags = {name: [] for name in ways}, "--role solver --steps 200 --force".split()
    with tempfile.TemporaryDirectory() as folder:
        files = "--train", args.data, "--valid", args.data, "--out", folder
        for _ in range(args.rounds):
            for name, (launcher, threads) in ways.items():
                subprocess.run([sys.executable, *launcher, ROOT / "train.py", *flags, *files], check=True,
                               env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True)
                rows = [row for row in train.read_log(Path(folder, "log.jsonl")) if "loss" in row]
                speeds[name].append(np.median([
                    (after["step"] - before["step"]) / (after["seconds"] - before["seconds"])
                    for before, after in zip(rows, rows[1:])]))
    for name, values in speeds.items():
        print(f"  {name}: {np.median(values):.1f} steps a second")
    one, two = map(np.array, speeds.values())
    print(f"  two ranks reach {np.median(two / one):.2f} of one process ({min(two / one):.2f}-"
          f"{max(two / one):.2f} in {args.rounds} rounds)")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", default="annotations/valid.jsonl", metavar="FILE", help="(%(default)s)")
    p.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    p.add_argument("--ranks", action="store_true", help="compare two ranks with one process instead")
    p.add_argument("--memory-of", help=argparse.SUPPRESS)  # one side, in a process of its own
    args = p.parse_args()
    problems = read_problems(args.data)[:N_PROBLEMS]
    if args.ranks:
        compare_ranks(args)
    elif args.memory_of:
        print_memory(args.memory_of, problems)
    else:
        compare_sides(problems, args)


if __name__ == "__main__":
    run_script(main)
