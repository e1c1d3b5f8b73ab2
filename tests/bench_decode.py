"""Decoding against transformers' `generate`, in turn in one process; printed are ratios of best times.

    python tests/bench_decode.py                                     GPT-2 small's shape, 1 and 16 rows
    python tests/bench_decode.py --batches --data my/test.jsonl      a whole Socratic evaluation

1. Greedy decoding of random weights from a prompt of 8 tokens, 48 tokens each. Beside it the bound that
   memory sets: each step reads all weights once, at most at the best rate of several kernels (`memory_rate`).
2. The Socratic evaluation of the problems of --data, random weights forced along the teacher's texts, so that
   both sides read and write the same tokens. On the side of transformers it is the loop that a user would
   write: for each line in turn one call of `generate` for 64 problems, sorted by length and padded on the
   left, which reads all the texts so far again.
"""
import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import infer  # noqa: E402
from data import read_problems, segments, train_tokenizer  # noqa: E402
from model import GPT, GPTConfig, init_weights, prepack_matrices  # noqa: E402

PROMPT, TOKENS, ROWS = 8, 48, 64  # of a prompt, to be written, at a time in the evaluation


def seconds(work):
    """How long work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best_of(rounds, *works):
    """The shortest time of each of `works`, run in turn `rounds` times after one run to warm up."""
    times = [[seconds(work) for work in works] for _ in range(rounds + 1)]
    return [min(its) for its in zip(*times[1:])]


def memory_rate(n):
    """Bytes/s at which this machine reads n float32 numbers: the best of kernels that do little else, since
    which is the fastest depends on the machine."""
    numbers = torch.randn(n // 4096, 4096)
    flat, vector = numbers.view(-1), torch.randn(len(numbers))
    kernels = flat.sum, lambda: flat @ flat, lambda: vector @ numbers, numbers.norm, flat.max
    return 4 * flat.numel() / min(best_of(5, *kernels))


def models(vocab_size):
    """Our model, prepacked as infer.py does, and transformers' with the same random weights."""
    ours = init_weights(GPT(GPTConfig(vocab_size))).eval()
    end = vocab_size - 1
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocab_size, bos_token_id=end, eos_token_id=end)).eval()
    theirs.transformer.load_state_dict(ours.state_dict())
    theirs.generation_config.pad_token_id = end
    return prepack_matrices(ours), theirs


def generate(model, ids, mask, n):
    """Write n tokens in each row, as transformers does it: (B, n)."""
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=n, min_new_tokens=n)
    return out[:, ids.shape[1]:]


# ---- greedy decoding ---------------------------------------------------------------------------------------

def decode(batch, rounds):
    """Greedy decoding of `batch` rows on both sides: prints tokens/s, their ratio, the share of the bound."""
    model, theirs = models(50257)
    ids = torch.randint(50256, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    written = {}

    def ours():
        """The forwards of `solve`, without the text that a procedure would make of them."""
        no_text = SimpleNamespace(end=0, encode=lambda tokens: tokens)
        student, columns = infer.Student(model, no_text, batch), []
        for row, prompt in zip(student.rows, ids.tolist()):
            row.append(prompt)
        for _ in range(TOKENS):
            columns.append(infer.choose(student.read(student.rows)))
            for row, token in zip(student.rows, columns[-1].tolist()):
                row.append([token])
        written["ours"] = torch.stack(columns, 1)

    def transformers_generate():
        written["theirs"] = generate(theirs, ids, torch.ones_like(ids), TOKENS)

    t_ours, t_theirs = best_of(rounds, ours, transformers_generate)
    n, n_weights = batch * TOKENS, sum(p.numel() for p in theirs.parameters())
    n_weights -= theirs.transformer.wpe.weight.numel()  # of which a step reads a row or few
    rate = memory_rate(n_weights)
    bound = batch * rate / (4 * n_weights)
    same = (written["ours"] == written["theirs"]).float().mean()
    print(f"batch {batch}: ours {n / t_ours:.1f} tokens/s, transformers {n / t_theirs:.1f}, "
          f"ratio {t_theirs / t_ours:.2f}; {100 * same:.0f} % of the tokens are the same")
    print(f"  weights can be read at {rate / 1e9:.1f} GB/s, so at most {bound:.1f} tokens/s: "
          f"ours are {100 * n / t_ours / bound:.0f} % of that", flush=True)


# ---- a Socratic evaluation ---------------------------------------------------------------------------------

def lines_of(problem, role, tokenizer):
    """The lines that a student writes: of each the ids that it has read before, and the line's own."""
    ids, lines = [], []
    for text, in_loss in segments(problem, role, calculator=False):
        new = [tokenizer.end] if text is None else tokenizer.encode(text)
        if text is None and role == "solver":  # stands on the line of the answer
            lines[-1][1].extend(new)
        elif in_loss:
            lines.append((list(ids), new))
        ids += new
    return lines


def evaluation(problems):
    """The Socratic evaluation of problems on both sides; prints the seconds and their ratio."""
    tokenizer = train_tokenizer(problems)
    ours, theirs = models(tokenizer.vocab_size)
    problems = sorted(problems, key=lambda problem: -len(problem["problem"]))  # as infer.evaluate_file does
    lines = {role: [lines_of(problem, role, tokenizer) for problem in problems]
             for role in ("decomposer", "solver")}
    n_tokens = sum(len(line) for its in lines.values() for each in its for _, line in each)

    def continuous_batching():
        students = {role: infer.Student(ours, tokenizer, ROWS) for role in lines}
        scripts = {role: [iter([token for _, line in each for token in line]) for each in its]
                   for role, its in lines.items()}
        append_token = infer.Dialogue.append_token
        # as `Dialogue.append_token`, but each student writes the tokens of its script
        infer.Dialogue.append_token = lambda dialogue, _, *more: append_token(
            dialogue, next(scripts[dialogue.request.role][dialogue.index]), *more)
        records = dict(infer.solve(problems, infer.socratic, students, calculator=False))
        infer.Dialogue.append_token = append_token
        for index, problem in enumerate(problems):
            assert records[index]["answer"] == problem["answer"].strip(), "a dialogue is not the teacher's"
        assert sum(student.tokens_written for student in students.values()) == n_tokens

    def generate_line_after_line():
        for its in lines.values():
            for k in range(max(map(len, its))):
                jobs = sorted((each[k] for each in its if k < len(each)), key=lambda job: len(job[0]))
                for i in range(0, len(jobs), ROWS):
                    read, written = zip(*jobs[i:i + ROWS])
                    T = max(map(len, read))
                    ids = torch.tensor([[tokenizer.end] * (T - len(one)) + one for one in read])
                    mask = torch.tensor([[0] * (T - len(one)) + [1] * len(one) for one in read])
                    generate(theirs, ids, mask, max(map(len, written)))

    t_ours, t_theirs = seconds(continuous_batching), seconds(generate_line_after_line)
    print(f"Socratic evaluation of {len(problems)} problems, {ROWS} at once, {n_tokens:,} tokens written: "
          f"ours {t_ours:.1f} s, transformers {t_theirs:.1f} s, ratio {t_theirs / t_ours:.1f}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batches", type=int, nargs="*", default=[1, 16], help="rows at once (%(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="of greedy decoding (%(default)s)")
    p.add_argument("--data", metavar="FILE", help="annotated problems, for the Socratic evaluation")
    args = p.parse_args()
    transformers.logging.set_verbosity_error()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")
    with torch.inference_mode():
        for batch in args.batches:
            decode(batch, args.rounds)
        if args.data:
            evaluation(read_problems(args.data))


if __name__ == "__main__":
    main()
