"""Opening a GPT-2 folder: seconds and peak memory, ours beside transformers'.

    python tests/bench_open.py

Each side opens a folder of random weights in a process of its own and computes the logits of one token:
ours mapped, as infer.py does; ours, as train.py does; transformers. The sides take turns, and the least of
--runs counts for each figure: seconds on the clock, of the CPU, and the peak memory beyond what the process
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
SIDES = ("ours, mapped", "ours", "transformers")


def memory(field):
    """Bytes of this process's memory: VmRSS now, VmHWM its peak."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])


def open_folder(side, folder):
    """Open `folder` in this process and compute the logits of a token; prints the figures as JSON."""
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
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - start_cpu,
                      "bytes": memory("VmHWM") - before}))


def write_folders(size, folder):
    """Folders of random weights, {kind: path}, one unaligned like the published; their float32 bytes."""
    n_layer, n_head, n_embd = SIZES[size]
    model = init_weights(GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)))
    n_bytes = sum(p.nbytes for p in model.parameters())
    folders = {kind: Path(folder, size, kind) for kind in ("float32", "float32 unaligned", "float16")}
    for kind, path in folders.items():
        path.mkdir(parents=True)
        (model.half() if kind == "float16" else model).save_pretrained(path)
    path = folders["float32 unaligned"] / "model.safetensors"
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    with open(path, "wb") as f:  # a header that is one byte longer
        f.writelines([(n + 1).to_bytes(8, "little"), raw[8:8 + n], b" ", raw[8 + n:]])
    return folders, n_bytes


def measure(path, names, runs, n_bytes):
    """Let the sides open the folder `path` in turn; prints their rows, which begin with `names`."""
    with open(path / "model.safetensors", "rb") as f:  # from the disk, if need be, before the clock runs
        while f.read(2 ** 24):
            pass
    best = {side: {} for side in SIDES}
    for _ in range(runs):
        for side in SIDES:
            out = subprocess.run([sys.executable, __file__, "--open", side, path], check=True, text=True,
                                 capture_output=True).stdout.splitlines()[-1]
            for figure, value in json.loads(out).items():
                best[side][figure] = min(value, best[side].get(figure, value))
    for side, figures in best.items():
        ratio = figures["seconds"] / best["transformers"]["seconds"]
        numbers = (figures["seconds"], figures["cpu"], ratio, figures["bytes"] / n_bytes)
        print(f"| {' | '.join([*names, side, *(f'{number:.2f}' for number in numbers)])} |", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--open", nargs=2, help=argparse.SUPPRESS)  # a side and a folder, to be measured
    args = p.parse_args()
    if args.open:
        return open_folder(*args.open)
    print("| weights | file | opened by | seconds | of CPU | to transformers' | peak / weights |")
    print("|---" * 7 + "|")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            folders, n_bytes = write_folders(size, folder)
            for kind, path in folders.items():
                measure(path, [size, kind], args.runs, n_bytes)


if __name__ == "__main__":
    main()
