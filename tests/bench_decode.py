"""Decoding against transformers' `generate`, in turn in one process; printed are ratios of best times.

    python tests/bench_decode.py                          GPT-2 small's shape: tokens/s at batch 1 and 16
    python tests/bench_decode.py --problems 200 --data my/test.jsonl     and a whole Socratic evaluation

1. Greedy decoding of random weights from a prompt of --prompt tokens, --tokens each. Beside it the bound that
   memory sets: each step reads all weights once, at most at the best rate of several kernels (`memory_rate`).
2. The Socratic evaluation of --problems problems of --data (without it, of the template teacher's), random
   weights forced along the teacher's texts, so that both sides read and write the same tokens. On the side of
   transformers it is the loop that a user would write: for each sub-question in turn one call of `generate`
   for --batch problems, sorted by length and padded on the left, which reads all the texts so far again.
"""
import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import infer  # noqa: E402
from data import MARK, Tokenizer, read_problems, to_line  # noqa: E402
from model import GPT, GPTConfig, init_weights, prepack_matrices  # noqa: E402


clock = time.perf_counter  # or time.process_time: --cpu-time


def seconds(work):
    """How long work() takes."""
    start = clock()
    work()
    return clock() - start


def best_of(rounds, *works):
    """The shortest time of each of `works`, run in turn `rounds` times after one run to warm up."""
    for work in works:
        work()
    return [min(times) for times in zip(*([seconds(work) for work in works] for _ in range(rounds)))]


def memory_rate(n):
    """Bytes/s at which this machine reads n float32 numbers: the best of kernels that do little else.

    Which is the fastest depends on the machine: on one a sum reads 51 GB/s where a product of a vector and a
    matrix reads 24, on another it is the other way round.
    """
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


# ---- greedy decoding ---------------------------------------------------------------------------------------

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


# ---- a Socratic evaluation ---------------------------------------------------------------------------------

def load_problems(args):
    """--problems problems of --data, or of the template teacher."""
    if args.data:
        return read_problems(args.data)[:args.problems]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ROOT / "annotate.py", "templates", "--train", "1", "--valid", "1",
                        "--test", str(args.problems), "--out", folder], check=True, stdout=subprocess.DEVNULL)
        return read_problems(Path(folder, "test.jsonl"))


def evaluation(args):
    """The Socratic evaluation of problems on both sides; prints the seconds and their ratio."""
    problems = load_problems(args)
    texts = (text for p in problems for step in p["steps"] for text in (p["problem"], *step.values()))
    tokenizer = Tokenizer.train(texts, args.vocab_size)
    ours, theirs = models(args, tokenizer.vocab_size)
    encode, end = tokenizer.encode, tokenizer.end

    def length(problem):
        texts = [problem["problem"], *(text for step in problem["steps"] for text in step.values())]
        return len(encode("".join(map(to_line, texts))))

    fitting = [problem for problem in problems if length(problem) < args.block_size - 20]
    left_out = len(problems) - len(fitting)
    problems = sorted(fitting, key=lambda problem: -len(problem["problem"]))  # as infer.evaluate_file does
    # what each student writes, line by line
    asked = [[encode(to_line(step["question"])) for step in p["steps"]] + [[end]] for p in problems]
    solved = [[encode(to_line(step["solution"])) for step in p["steps"]] + [encode(" " + p["answer"]) + [end]]
              for p in problems]
    counts = {"theirs": 0}

    def continuous_batching():
        students = {role: infer.Student(ours, tokenizer, args.rows) for role in ("solver", "decomposer")}
        scripts = [{"decomposer": iter(sum(questions, [])), "solver": iter(sum(solutions, []))}
                   for questions, solutions in zip(asked, solved)]
        take = infer.Dialogue.take

        def forced(dialogue, token):
            """As `Dialogue.take`, but each student writes the tokens of its script."""
            take(dialogue, next(scripts[dialogue.index][dialogue.request.role]))

        infer.Dialogue.take = forced
        try:
            records = dict(infer.solve(problems, infer.socratic, students, calculator=False))
        finally:
            infer.Dialogue.take = take
        for index, problem in enumerate(problems):
            assert records[index]["answer"] == problem["answer"].strip(), "a dialogue is not the teacher's"
        counts["ours"] = sum(student.tokens_written for student in students.values())

    def generate_line(prefixes, lines):
        """One call of `generate` for a batch: prefixes (token ids) are read, the lines written."""
        n, T = max(map(len, lines)), max(map(len, prefixes))
        ids = torch.tensor([[end] * (T - len(prefix)) + prefix for prefix in prefixes])
        mask = torch.tensor([[0] * (T - len(prefix)) + [1] * len(prefix) for prefix in prefixes])
        theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=n, min_new_tokens=n)
        counts["theirs"] += sum(map(len, lines))

    def prefix(k, prompt, questions, solutions):
        """What is read before line k: of a decomposer's where solutions is None, else of a solver's."""
        ids = list(prompt)
        for i in range(k):
            ids += questions[i] + (solutions[i] if solutions else [])
        if solutions:
            ids += questions[k] if k < len(solutions) - 1 else encode(MARK)
        return ids

    def generate_all():
        prompts = [encode(to_line(problem["problem"])) for problem in problems]
        for lines, is_solver in (asked, False), (solved, True):
            for k in range(max(map(len, lines))):
                jobs = [(prefix(k, prompts[p], asked[p], solved[p] if is_solver else None), lines[p][k])
                        for p in range(len(problems)) if k < len(lines[p])]
                jobs.sort(key=lambda job: len(job[0]))
                for i in range(0, len(jobs), args.batch):
                    generate_line(*zip(*jobs[i:i + args.batch]))

    t_ours, t_theirs = seconds(continuous_batching), seconds(generate_all)
    n = sum(len(tokens) for side in (asked, solved) for lines in side for tokens in lines)
    assert counts["ours"] == counts["theirs"] == n, "the two sides did not write the same"
    print(f"Socratic evaluation of {len(problems)} problems ({left_out} longer than the block), {n:,} tokens "
          f"written: ours {t_ours:.1f} s with {args.rows} rows, transformers {t_theirs:.1f} s in batches of "
          f"{args.batch}, ratio {t_theirs / t_ours:.1f}")


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
    p.add_argument("--problems", type=int, default=0, help="of the Socratic evaluation (%(default)s: none)")
    p.add_argument("--data", type=Path, metavar="FILE", help="annotated problems (the template teacher's)")
    p.add_argument("--vocab-size", type=int, default=1024, help="trained for the evaluation (%(default)s)")
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--batch", type=int, default=64, help="of transformers' loop (%(default)s)")
    p.add_argument("--cpu-time", action="store_true", help="count the processor's seconds, not the clock's: "
                   "on a machine that others use too, with OMP_NUM_THREADS=1")
    args = p.parse_args()
    global clock
    clock = time.process_time if args.cpu_time else clock
    transformers.logging.set_verbosity_error()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
          f"{transformers.__version__}; {args.n_layer} layers of {args.n_embd}; "
          f"{'CPU time' if args.cpu_time else 'wall clock'}")
    with torch.inference_mode():
        for batch in args.batches:
            decode(args, batch)
        if args.problems:
            evaluation(args)


if __name__ == "__main__":
    main()
