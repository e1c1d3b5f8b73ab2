"""Opening a GPT-2 folder: peak memory and seconds, ours beside transformers'.

    python tests/bench_open.py

Random weights of GPT-2 small's and large's shape are written once for each kind of file. Each side opens the folder in a
process of its own, in turn with the other, and reads one token. Times are from the call to the first logits, on the clock
and of the CPU, which other work on the machine disturbs less, with as many threads as each side takes by itself; memory is the process's peak above what it held
after the imports, as Linux tells it. The least of --runs counts, for each figure.
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
from model import GPT, GPTConfig

SIZES = {"124M": (12, 12, 768), "774M": (36, 20, 1280)}  # n_layer, n_head, n_embd


def memory(field):
    """Bytes of this process's memory: VmRSS now, VmHWM its peak."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])


def opened(side, folder):
    """Open `folder` in this process and read one token; prints seconds and bytes as JSON."""
    ids = torch.tensor([[17]])
    GPT(GPTConfig(50, 8, 1, 1, 8)).initialise()(ids)  # what the first forward of a process takes is not the folder's
    if side == "ours":
        open_folder = lambda: GPT.open(folder)
    else:
        from transformers import AutoModelForCausalLM
        from transformers.models.gpt2 import modeling_gpt2  # noqa: F401, imported now and not when the clock runs
        open_folder = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before, start, start_cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    with torch.inference_mode():
        open_folder()(ids)
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - start_cpu, "bytes": memory("VmHWM") - before}))


def write_folders(size, folder):
    """Folders of a size's random weights, {kind: path}: as we write them, unaligned as the published files are, float16."""
    n_layer, n_head, n_embd = SIZES[size]
    model = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.05, 0.05)
    folders = {kind: Path(folder, size, kind) for kind in ("float32", "float32 unaligned", "float16")}
    for kind, path in folders.items():
        path.mkdir(parents=True)
        model.half().save(path) if kind == "float16" else model.save(path)
    path = folders["float32 unaligned"] / "model.safetensors"
    with open(path, "rb") as f, open(path.with_suffix(".odd"), "wb") as odd:
        n = int.from_bytes(f.read(8), "little")
        odd.write((n + 1).to_bytes(8, "little") + f.read(n) + b" ")
        while chunk := f.read(2 ** 24):
            odd.write(chunk)
    path.with_suffix(".odd").replace(path)
    return folders


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.open:
        return opened(*args.open)
    print("| weights | file | seconds: ours | transformers | ratio | of CPU: ours | transformers | ratio | peak / weights: ours "
          "| transformers | ratio |\n|" + "---|" * 11)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for kind, path in write_folders(size, folder).items():
                n_layer, _, n_embd = SIZES[size]
                weights = 4 * (12 * n_layer * n_embd ** 2 + 13 * n_layer * n_embd + (50257 + 1024 + 2) * n_embd)  # bytes as float32
                with open(path / "model.safetensors", "rb") as f:  # from the disk, if need be, before the clock runs
                    while f.read(2 ** 24):
                        pass
                best = {}
                for _ in range(args.runs):
                    for side in "ours", "transformers":
                        told = subprocess.run([sys.executable, __file__, "--open", side, path], check=True, text=True,
                                              stdout=subprocess.PIPE).stdout.splitlines()[-1]
                        for figure, value in json.loads(told).items():
                            best[side, figure] = min(value, best.get((side, figure), value))
                row = [size, kind]
                for figure, unit in ("seconds", 1), ("cpu", 1), ("bytes", weights):
                    ours, theirs = (best[side, figure] / unit for side in ("ours", "transformers"))
                    row += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
