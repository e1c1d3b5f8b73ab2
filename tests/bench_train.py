"""Training speed: problems a second of train.py's step beside three others, in turn in one process.

    python tests/bench_train.py --shapes 96x4 768x12 --rounds 5
    python tests/bench_train.py --ranks

ours: one sequence per problem, batches of about equal length, head and loss at the loss positions. Beside it
  transformers: what one would write for this method with GPT2LMHeadModel: one sequence per sub-question, random padded
    batches;
  plain: our model on our sequences, but in random padded batches and with the head at every position;
  dense: a GPT of torch.nn's modules on rows of as many tokens without padding, loss on all of them, as nanoGPT's step.
All take AdamW, clipping and float32. A round takes every side once through the same problems; printed are the medians
over rounds of the ratio within a round, and each side's peak memory above what the process held before its first step,
measured in a process of its own.

--ranks: the real script, one process of two threads and two ranks of one thread each (torchrun), in turn: steps a
second of both, and their ratio.
"""
import argparse
import contextlib
import os
import re
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
import train
from data import (Tokenizer, encode_problems, fits, make_batch, plan_batches, read_problems, segments, train_tokenizer,
                  write_problems)
from model import GPT, GPTConfig, init_weights

SIDES = ("ours", "transformers", "plain", "dense")


class Dense(nn.Module):
    """A GPT as torch.nn makes it short to write: (B, T) ids to (B, T, vocab_size) logits."""

    def __init__(self, c):
        super().__init__()
        self.n_head = c.n_head
        self.wte, self.wpe = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.block_size, c.n_embd)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "ln_1": nn.LayerNorm(c.n_embd), "attn": nn.Linear(c.n_embd, 3 * c.n_embd), "out": nn.Linear(c.n_embd, c.n_embd),
            "ln_2": nn.LayerNorm(c.n_embd), "up": nn.Linear(c.n_embd, 4 * c.n_embd), "down": nn.Linear(4 * c.n_embd, c.n_embd)})
            for _ in range(c.n_layer))
        self.ln_f, self.head = nn.LayerNorm(c.n_embd), nn.Linear(c.n_embd, c.vocab_size, bias=False)
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


def sub_questions(problem, tokenizer):
    """The solver's examples of a problem, each read alone: one per sub-question and one for the answer, (ids, loss_mask)."""
    ids, examples = [], []
    for text, in_loss in segments(problem, "solver", calculator=False):
        new = [tokenizer.end] if text is None else tokenizer.encode(text)
        if in_loss and text is not None:
            examples.append((np.array(ids + new), np.arange(len(ids) + len(new)) >= len(ids)))
        ids += new
    answer, loss_mask = examples.pop()  # which ends in <|endoftext|>
    return examples + [(np.append(answer, tokenizer.end), np.append(loss_mask, True))]


def random_batches(sequences, n, rng):
    """`n` batches of all sequences in random order."""
    return [[sequences[i] for i in part] for part in np.array_split(rng.permutation(len(sequences)), n)]


def sides(names, problems, tokenizer, config, batch_tokens):
    """{side: a function that takes it once through the problems}; transformers only where it is installed."""
    rng = np.random.default_rng(0)
    sequences = encode_problems(problems, "solver", tokenizer, calculator=False)
    sequences = [sequence for sequence in sequences if fits(sequence, config.block_size)]
    planned = [[sequences[i] for i in batch] for batch in plan_batches([len(ids) for ids, _ in sequences], batch_tokens, rng)]
    shuffled = random_batches(sequences, len(planned), rng)

    def stepper(model, loss_of, batches, ours=False):
        flags = SimpleNamespace(optimizer="adamw", lr=1e-4, weight_decay=0.1)
        optimizer = train.make_optimizers(model, flags)[0] if ours else torch.optim.AdamW(model.parameters(), lr=1e-4)

        def once():
            for batch in batches:
                loss_of(model, batch).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return once

    def ours(model, batch):
        loss, weight = train.weighted_loss(model, make_batch(batch), contextlib.nullcontext)
        return loss / weight

    def padded(batch):
        T = max(len(ids) for ids, _ in batch)
        ids, labels, mask = (torch.zeros(len(batch), T, dtype=torch.int64) for _ in range(3))
        for row, (sequence, loss_mask) in enumerate(batch):
            n = len(sequence)
            ids[row, :n], mask[row, :n] = torch.tensor(sequence), 1
            labels[row, :n] = torch.tensor(np.where(loss_mask, sequence, -100))
            labels[row, n:] = -100
        return ids, labels, mask

    def plain(model, batch):
        ids, labels, _ = padded(batch)
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def dense(model, batch):
        ids = torch.stack([torch.tensor(ids) for ids, _ in batch]).long()
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def transformers(model, batch):
        ids, labels, mask = padded(batch)
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    made = {}
    for name in names:
        if name == "transformers":
            try:
                from transformers import GPT2Config, GPT2LMHeadModel
            except ImportError:
                print("transformers is not installed: left out")
                continue
            c = GPT2Config(vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd,
                           n_layer=config.n_layer, n_head=config.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                           bos_token_id=0, eos_token_id=0)
            examples = [one for problem in problems for one in sub_questions(problem, tokenizer)
                        if len(one[0]) <= config.block_size]
            per_batch = max(1, batch_tokens // int(np.mean([len(ids) for ids, _ in examples])))
            batches = random_batches(examples, -(-len(examples) // per_batch), rng)
            made[name] = stepper(GPT2LMHeadModel(c).train(), transformers, batches)
        elif name == "dense":
            stream = np.concatenate([ids for ids, _ in sequences])  # as many tokens, in full rows of the sequences' mean length
            T = len(stream) // len(sequences)
            rows = [(row, None) for row in stream[:T * len(sequences)].reshape(-1, T)]
            made[name] = stepper(Dense(config), dense, random_batches(rows, len(planned), rng))
        else:
            model = init_weights(GPT(config), 0)
            loss_of, batches = (ours, planned) if name == "ours" else (plain, shuffled)
            made[name] = stepper(model, loss_of, batches, ours=name == "ours")
    return made


def memory(field):
    """A field of Linux's /proc/self/status, KiB."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def template_problems(n):
    """Problems of the template teacher, as annotate.py writes them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "annotate.py", "--train", n, "--valid", 1, "--test", 1, "--out", folder]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        return read_problems(Path(folder, "train.jsonl"))


def compare_ranks(problems, rounds, steps=200):
    """Print the steps a second of one process with two threads and of two ranks with one thread each."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    sides = {"one process, two threads": ([], "2"), "two ranks, one thread each": (torchrun, "1")}
    speeds = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for name in "train", "valid":
            write_problems(Path(folder, f"{name}.jsonl"), problems)
        for _ in range(rounds):
            for name, (launcher, threads) in sides.items():
                subprocess.run([sys.executable, *launcher, str(ROOT / "train.py"), "--role", "solver", "--steps", str(steps),
                                "--train", "train.jsonl", "--valid", "valid.jsonl", "--out", "student", "--force"],
                               cwd=folder, env=os.environ | {"OMP_NUM_THREADS": threads}, check=True, capture_output=True)
                rows = [row for row in train.read_log(Path(folder, "student", "log.jsonl")) if "loss" in row]
                steps_between = [(after["step"] - before["step"]) / (after["seconds"] - before["seconds"])
                                 for before, after in zip(rows, rows[1:])]
                speeds[name].append(np.median(steps_between))
    one, two = speeds.values()
    for name, values in speeds.items():
        print(f"  {name}: {np.median(values):.1f} steps a second")
    ratios = np.array(two) / np.array(one)
    print(f"  two ranks reach {np.median(ratios):.2f} of one process ({ratios.min():.2f}-{ratios.max():.2f} in {rounds} rounds)")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--shapes", nargs="+", default=["96x4"], metavar="WIDTHxLAYERS", help="768x12 is GPT-2's of 124M")
    p.add_argument("--data", type=Path, help="a JSONL file of problems (the template teacher's)")
    p.add_argument("--problems", type=int, default=64, help="of the data that a round goes through")
    p.add_argument("--vocab", choices=["learned", "gpt2"], default="learned")
    p.add_argument("--batch-tokens", type=int, default=1024)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--ranks", action="store_true", help="compare two ranks with one process instead")
    p.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    p.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)  # one side in a process of its own
    args = p.parse_args()
    if args.ranks:
        compare_ranks(read_problems(args.data) if args.data else template_problems(2000), args.rounds)
        return
    problems = read_problems(args.data)[:args.problems] if args.data else template_problems(args.problems)
    tokenizer = Tokenizer.gpt2() if args.vocab == "gpt2" else train_tokenizer(problems)
    for shape in args.shapes:
        width, layers = map(int, shape.split("x"))
        n_head = max(1, width // (64 if width >= 768 else 32))
        config = GPTConfig(tokenizer.vocab_size, 1024, layers, n_head, width)
        names = [args.memory_of] if args.memory_of else args.sides
        made = sides(names, problems, tokenizer, config, args.batch_tokens)
        if args.memory_of:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
            before = memory("VmRSS")
            made[args.memory_of]()
            print(memory("VmHWM") - before)
            continue
        seconds = {name: [] for name in made}
        for _ in range(args.rounds + 1):  # the first is not counted
            for name, once in made.items():
                start = time.perf_counter()
                once()
                seconds[name].append(time.perf_counter() - start)
        print(f"{shape}: {sum(p.numel() for p in GPT(config).parameters()) / 1e6:.1f} M parameters, {len(problems)} "
              f"problems, {torch.get_num_threads()} threads, torch {torch.__version__}")
        for name in made:
            took = np.array(seconds[name][1:])
            argv = sys.argv[1:] + ["--shapes", shape, "--memory-of", name]
            child = subprocess.run([sys.executable, __file__, *argv], check=True, capture_output=True, text=True)
            print(f"  {name:12} {len(problems) / np.median(took):8.1f} problems/s, ours is "
                  f"{np.median(took / np.array(seconds['ours'][1:])):.2f} times as fast; peak "
                  f"{int(child.stdout.split()[-1]) / 1024:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
