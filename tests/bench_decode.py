"""Decoding against transformers' `generate`, paired in one process; ratios are printed, each of the best of several rounds.

    python tests/bench_decode.py                          GPT-2 small's shape: tokens/s at batch 1 and 16
    python tests/bench_decode.py --problems 200 --data my/test.jsonl     and a whole Socratic evaluation

1. Greedy decoding of random weights from a prompt of --prompt tokens, --tokens each. Beside it the share of the bound that
   memory sets: the rate at which this machine, as measured here, streams the weights, all of which each step reads once.
2. The Socratic evaluation of --problems problems of --data (without it, of the template teacher's), random weights forced
   along the teacher's texts, so that both sides read and write the same tokens. On transformers' side it is the loop that a
   user would write: for each sub-question in turn one call of `generate` for --batch problems, sorted by length and padded
   on the left, which reads problem, questions and solutions so far anew.
"""
import argparse
import random
import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import annotate  # noqa: E402
import infer  # noqa: E402
from data import Tokenizer, line, read_problems  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402


clock = time.perf_counter  # or time.process_time: --cpu-time


def seconds(run):
    """How long run() takes."""
    start = clock()
    run()
    return clock() - start


def best_of(rounds, *runs):
    """The shortest time of each of `runs`, tried in turn `rounds` times, after once for warming up."""
    for run in runs:
        run()
    return [min(times) for times in zip(*([seconds(run) for run in runs] for _ in range(rounds)))]


def models(args, vocab_size):
    """Our model, packed as infer.py packs it, and transformers' with the same random weights."""
    config = GPTConfig(vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd)
    ours = GPT(config).initialise()
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocab_size, n_positions=args.block_size, n_embd=args.n_embd, n_layer=args.n_layer, n_head=args.n_head,
        bos_token_id=vocab_size - 1, eos_token_id=vocab_size - 1)).eval()
    theirs.transformer.load_state_dict(ours.state_dict())
    theirs.generation_config.pad_token_id = vocab_size - 1
    return infer.packed(ours.eval()), theirs


def decode(args, batch):
    """Greedy decoding of `batch` rows, both sides; prints tokens/s, their ratio and the share of the memory's bound."""
    vocab_size = 50257
    ours, theirs = models(args, vocab_size)
    student = infer.Student.__new__(infer.Student)
    draw = random.Random(0)
    prompts = [[draw.randrange(vocab_size - 1) for _ in range(args.prompt)] for _ in range(batch)]
    ids = torch.tensor(prompts)
    written = {}

    def engine():
        """The engine's own forwards, without the text that a procedure would make of them."""
        student.__dict__.update(model=ours, device=ids.device, cache=infer.KVCache(ours.config, batch), forwards=0, written=0,
                                tokens=0, prompt=[list(p) for p in prompts], length=[0] * batch,
                                pending=[list(p) for p in prompts])
        written["ours"] = [[] for _ in range(batch)]
        while len(written["ours"][0]) < args.tokens:
            slots, logits = student.read(list(range(batch)))
            for slot, token in zip(slots, infer.choose(logits).tolist()):
                student.pending[slot] = [token]
                written["ours"][slot].append(token)

    def generate():
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=args.tokens, min_new_tokens=args.tokens)
        written["theirs"] = out[:, args.prompt:].tolist()

    weights = torch.randn(sum(p.numel() for p in theirs.parameters()) - theirs.transformer.wpe.weight.numel())
    vector = torch.randn(weights.numel() // 4096)
    matrix = weights[:vector.numel() * 4096].view(-1, 4096)
    t_ours, t_theirs, t_stream = best_of(args.rounds, engine, generate, lambda: [vector @ matrix for _ in range(4)])
    same = sum(a == b for rows in zip(*written.values()) for a, b in zip(*rows)) / (batch * args.tokens)
    n, rate = batch * args.tokens, 4 * weights.numel() * 4 / t_stream
    print(f"batch {batch}: ours {n / t_ours:.1f} tokens/s, transformers {n / t_theirs:.1f}, ratio {t_theirs / t_ours:.2f}; weights "
          f"stream at {rate / 1e9:.1f} GB/s, so at most {batch * rate / (4 * weights.numel()):.1f} tokens/s, of which ours are "
          f"{100 * n / t_ours * 4 * weights.numel() / rate / batch:.0f} %; {100 * same:.0f} % of the tokens are the same", flush=True)


def evaluation(args):
    """The Socratic evaluation of --problems problems, both sides; prints problems/s and their ratio."""
    if args.data:
        problems = read_problems(args.data)[:args.problems]
    else:
        draw = random.Random(0)
        problems = [annotate.write_problem(annotate.draw_story(draw, 1, 2 + k % 4)) for k in range(args.problems)]
    tokenizer = Tokenizer.learn((text for p in problems for s in p["steps"] for text in (p["problem"], *s.values())), args.vocab_size)
    ours, theirs = models(args, tokenizer.vocab_size)
    encode, end = tokenizer.encode, tokenizer.end
    fits = [p for p in problems if len(encode(line(p["problem"]) + "".join(line(t) for s in p["steps"] for t in s.values()))) < args.block_size - 20]
    problems, left_out = sorted(fits, key=lambda p: -len(p["problem"])), len(problems) - len(fits)  # as infer.evaluate does
    # what each student writes, line by line
    asked = [[encode(line(step["question"])) for step in p["steps"]] + [[end]] for p in problems]
    solved = [[encode(line(step["solution"])) for step in p["steps"]] + [encode(" " + p["answer"]) + [end]] for p in problems]
    n_written = sum(len(tokens) for side in (asked, solved) for lines in side for tokens in lines)
    counted = {}

    def engine():
        students = {role: infer.Student(ours, tokenizer, args.slots) for role in ("solver", "decomposer")}
        take = infer.Dialogue.take

        def forced(self, token, calculator):
            if not hasattr(self, "script"):
                self.script = {"decomposer": iter(sum(asked[self.index], [])), "solver": iter(sum(solved[self.index], []))}
            take(self, next(self.script[self.want.role]), calculator)

        infer.Dialogue.take = forced
        try:
            records = dict(infer.solve(problems, infer.socratic, students, calculator=False))
        finally:
            infer.Dialogue.take = take
        assert all(records[k]["answer"] == p["answer"].strip() for k, p in enumerate(problems)), "a dialogue is not the teacher's"
        counted["ours"] = sum(student.written for student in students.values())
        counted["work"] = infer.work(students, 1, 1)[1:]

    def generate_line(prefixes, lines):
        """One call of `generate` for a batch: prefixes (token ids) are read, the lines written."""
        n, T = max(map(len, lines)), max(map(len, prefixes))
        ids = torch.tensor([[end] * (T - len(p)) + p for p in prefixes])
        mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prefixes])
        theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=n, min_new_tokens=n)
        counted["theirs"] += sum(map(len, lines))

    def loop():
        counted["theirs"] = 0
        prompts = [encode(line(p["problem"])) for p in problems]
        for lines, ask in (asked, True), (solved, False):
            for k in range(max(map(len, lines))):
                jobs = []
                for prompt, questions, ours_, theirs_ in zip(prompts, asked, lines, solved):
                    if k >= len(ours_):
                        continue
                    read = list(prompt)
                    for i in range(k):
                        read += questions[i] if ask else questions[i] + theirs_[i]
                    read += [] if ask else questions[k] if k < len(ours_) - 1 else encode("####")
                    jobs.append((read, ours_[k]))
                jobs.sort(key=lambda job: len(job[0]))
                for i in range(0, len(jobs), args.batch):
                    generate_line(*zip(*jobs[i:i + args.batch]))

    t_ours, t_theirs = (seconds(run) for run in (engine, loop))
    assert counted["ours"] == counted["theirs"] == n_written, "the two sides did not write the same"
    print(f"Socratic evaluation of {len(problems)} problems ({left_out} longer than the block), {n_written:,} tokens written: ours "
          f"{t_ours:.1f} s with {args.slots} slots, transformers {t_theirs:.1f} s in batches of {args.batch}, ratio {t_theirs / t_ours:.1f}")
    print("  " + "\n  ".join(counted["work"]))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--n-layer", type=int, default=12)
    p.add_argument("--n-head", type=int, default=12)
    p.add_argument("--n-embd", type=int, default=768)
    p.add_argument("--block-size", type=int, default=1024)
    p.add_argument("--batches", type=int, nargs="*", default=[1, 16], help="rows decoded at once (%(default)s)")
    p.add_argument("--prompt", type=int, default=8, help="tokens (%(default)s)")
    p.add_argument("--tokens", type=int, default=48, help="written in each row (%(default)s)")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--problems", type=int, default=0, help="of the Socratic evaluation (%(default)s: none)")
    p.add_argument("--data", type=Path, metavar="FILE", help="JSONL of annotated problems (the template teacher's)")
    p.add_argument("--vocab-size", type=int, default=1024, help="learned for the evaluation (%(default)s)")
    p.add_argument("--slots", type=int, default=64)
    p.add_argument("--batch", type=int, default=64, help="of transformers' loop (%(default)s)")
    p.add_argument("--cpu-time", action="store_true", help="count the processor's seconds, not the clock's: on a machine that "
                   "others use too, with OMP_NUM_THREADS=1")
    args = p.parse_args()
    global clock
    clock = time.process_time if args.cpu_time else clock
    transformers.logging.set_verbosity_error()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}; "
          f"{args.n_layer} layers of {args.n_embd}; {'CPU time' if args.cpu_time else 'wall clock'}")
    with torch.inference_mode():
        for batch in args.batches:
            decode(args, batch)
        if args.problems:
            evaluation(args)


if __name__ == "__main__":
    main()
