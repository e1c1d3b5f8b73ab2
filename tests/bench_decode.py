"""Greedy decoding beside transformers' `generate`, in turn in one process; printed are ratios of best times.

    python tests/bench_decode.py          GPT-2 small's shape: tokens/s at batch 1 and 16

Random weights, a prompt of --prompt tokens, --tokens written each; beside them the bound that memory sets: a
step reads all weights once, at most at the best rate of several kernels (`memory_rate`).
"""
import argparse
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import infer  # noqa: E402
from model import GPT, GPTConfig, init_weights, prepack_matrices  # noqa: E402


def seconds(work):
    """How long work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best_of(rounds, *works):
    """The shortest time of each of `works`, run in turn `rounds` times after one run to warm up."""
    for work in works:
        work()
    return [min(times) for times in zip(*([seconds(work) for work in works] for _ in range(rounds)))]


def memory_rate(n):
    """Bytes/s at which this machine reads n float32 numbers: the best of kernels, for machines differ."""
    numbers = torch.randn(n // 4096, 4096)
    flat, vector = numbers.view(-1), torch.randn(len(numbers))
    kernels = flat.sum, lambda: flat @ flat, lambda: vector @ numbers, numbers.norm, flat.max
    return 4 * flat.numel() / min(best_of(5, *kernels))


def models(args, vocab_size):
    """Our model, prepacked as infer.py does, and transformers' with the same random weights."""
    config = GPTConfig(vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd)
    ours = init_weights(GPT(config)).eval()
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocab_size, n_positions=args.block_size, n_embd=args.n_embd, n_layer=args.n_layer,
        n_head=args.n_head, bos_token_id=vocab_size - 1, eos_token_id=vocab_size - 1)).eval()
    theirs.transformer.load_state_dict(ours.state_dict())
    theirs.generation_config.pad_token_id = vocab_size - 1
    return prepack_matrices(ours), theirs


def decode(args, batch):
    """Greedy decoding of `batch` rows on both sides: prints tokens/s, their ratio, the share of the bound."""
    vocab_size = 50257
    model, theirs = models(args, vocab_size)
    rng = random.Random(0)
    prompts = [[rng.randrange(vocab_size - 1) for _ in range(args.prompt)] for _ in range(batch)]
    ids = torch.tensor(prompts)
    written = {}

    def ours():
        """The forwards of `solve`, without the text that a procedure would make of them."""
        no_text = SimpleNamespace(end=0, encode=lambda tokens: tokens)
        student = infer.Student(model, no_text, batch)
        for row, prompt in zip(student.rows, prompts):
            row.append(prompt)
        written["ours"] = [[] for _ in range(batch)]
        for _ in range(args.tokens):
            tokens = infer.choose(student.read(student.rows)).tolist()
            for row, line, token in zip(student.rows, written["ours"], tokens):
                row.append([token])
                line.append(token)

    def generate():
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                              max_new_tokens=args.tokens, min_new_tokens=args.tokens)
        written["theirs"] = out[:, args.prompt:].tolist()

    t_ours, t_theirs = best_of(args.rounds, ours, generate)
    n, n_weights = batch * args.tokens, sum(p.numel() for p in theirs.parameters())
    n_weights -= theirs.transformer.wpe.weight.numel()  # of which a step reads a row or few
    rate = memory_rate(n_weights)
    bound = batch * rate / (4 * n_weights)
    same = sum(a == b for rows in zip(*written.values()) for a, b in zip(*rows)) / n
    print(f"batch {batch}: ours {n / t_ours:.1f} tokens/s, transformers {n / t_theirs:.1f}, "
          f"ratio {t_theirs / t_ours:.2f}; {100 * same:.0f} % of the tokens are the same")
    print(f"  weights can be read at {rate / 1e9:.1f} GB/s, so at most {bound:.1f} tokens/s: "
          f"ours are {100 * n / t_ours / bound:.0f} % of that", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--n-layer", type=int, default=12)
    p.add_argument("--n-head", type=int, default=12)
    p.add_argument("--n-embd", type=int, default=768)
    p.add_argument("--block-size", type=int, default=1024)
    p.add_argument("--batches", type=int, nargs="*", default=[1, 16], help="rows at once (%(default)s)")
    p.add_argument("--prompt", type=int, default=8, help="tokens (%(default)s)")
    p.add_argument("--tokens", type=int, default=48, help="written in each row (%(default)s)")
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    transformers.logging.set_verbosity_error()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
          f"{transformers.__version__}; {args.n_layer} layers of {args.n_embd}")
    with torch.inference_mode():
        for batch in args.batches:
            decode(args, batch)


if __name__ == "__main__":
    main()
