"""Opening a GPT-2 folder: seconds and peak memory, ours beside transformers'.

    python tests/bench_open.py

Each side opens a folder of random weights in a process of its own and computes the logits of one token:
ours mapped, as infer.py does; ours, as train.py does; transformers. The sides take turns, and the least of
three counts for each figure: seconds on the clock, of the CPU, and the peak memory beyond what the process
held after its imports, in multiples of the float32 weights.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from model import GPT, GPTConfig, init_weights  # noqa: E402

SIZES = {"124M": (12, 12, 768), "774M": (36, 20, 1280)}  # n_layer, n_head, n_embd
SIDES = "ours, mapped", "ours", "transformers"


def memory(field):
    """Bytes of this process's memory: VmRSS now, VmHWM its peak."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])


def open_folder(side, folder):
    """Open `folder` in this process and compute the logits of a token; prints seconds, of CPU, and bytes."""
    ids = torch.tensor([[17]])
    init_weights(GPT(GPTConfig(50, 8, 1, 1, 8)))(ids)  # the first forward of a process is slow
    if side == "transformers":
        from transformers import AutoModelForCausalLM
        from transformers.models.gpt2 import modeling_gpt2  # noqa: F401, imported before the clock runs
    before, start, start_cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    with torch.inference_mode():
        if side == "transformers":
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            model = GPT.from_pretrained(folder, mapped=side == "ours, mapped")
        model(ids)
    took = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps([*took, memory("VmHWM") - before]))


def write_folder(model, kind, folder):
    """Write a folder of a kind: float32; float32 unaligned, as the published are; float16."""
    (model.half() if kind == "float16" else model.float()).save_pretrained(folder)
    if kind == "float32 unaligned":
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")  # of the header, which becomes one byte longer
        path.write_bytes((n + 1).to_bytes(8, "little") + raw[8:8 + n] + b" " + raw[8 + n:])


def measure(folder, names, n_bytes):
    """Let the sides open a folder in turn; prints their rows, which begin with `names`."""
    figures = {side: [] for side in SIDES}
    for _ in range(3):
        for side in SIDES:
            out = subprocess.run([sys.executable, __file__, "--open", side, folder], check=True,
                                 capture_output=True).stdout
            figures[side].append(json.loads(out.splitlines()[-1]))
    best = {side: [min(values) for values in zip(*rows)] for side, rows in figures.items()}
    for side, (seconds, cpu, peak) in best.items():
        numbers = seconds, cpu, seconds / best["transformers"][0], peak / n_bytes
        print(f"| {' | '.join([*names, side, *(f'{number:.2f}' for number in numbers)])} |", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    p.add_argument("--open", nargs=2, help=argparse.SUPPRESS)  # a side and a folder, to be measured
    args = p.parse_args()
    if args.open:
        return open_folder(*args.open)
    print("| weights | file | opened by | seconds | of CPU | to transformers' | peak / weights |")
    print("|---" * 7 + "|")
    for size in args.sizes:
        n_layer, n_head, n_embd = SIZES[size]
        model = init_weights(GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)))
        n_bytes = sum(p.nbytes for p in model.parameters())
        for kind in "float32", "float32 unaligned", "float16":
            with tempfile.TemporaryDirectory() as folder:
                write_folder(model, kind, Path(folder))
                measure(folder, [size, kind], n_bytes)


if __name__ == "__main__":
    main()
