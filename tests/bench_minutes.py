"""Accuracy against training minutes: the scripts from end to end, once for each line of the README's table.

    python tests/bench_minutes.py --level 1 --minutes 11 --procedures socratic cot answer

Every procedure gets the same minutes of training in all; socratic divides them between its students, the second of which
starts from the first. Each is evaluated on 1,000 problems of a seed that nobody trained on, with and without calculator.
Prints the lines of a Markdown table and appends the figures to DIR/figures.jsonl.
"""
import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STUDENTS = {"socratic": ("solver", "decomposer"), "stepwise": ("solver", "stepwise")}
SECOND = 1.5 / 11  # of the minutes go to the student that starts from the other


def script(name, *argv, folder):
    """Run one of the scripts in `folder`; returns what it printed, a list of lines. Raises CalledProcessError."""
    command = [sys.executable, ROOT / name, *map(str, argv)]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def train(procedure, minutes, seed, folder, flags):
    """Train the students of a procedure in `folder`, for so many minutes together; `flags` are the first one's, from scratch."""
    first, *second = STUDENTS.get(procedure, (procedure,))
    script("train.py", "--role", first, "--minutes", minutes * (1 - SECOND if second else 1), "--seed", seed, *flags, folder=folder)
    for role in second:
        script("train.py", "--role", role, "--init", f"runs/{first}", "--minutes", minutes * SECOND, "--seed", seed, folder=folder)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--level", type=int, default=1)
    p.add_argument("--minutes", type=float, nargs="+", default=[11])
    p.add_argument("--procedures", nargs="+", default=["socratic"])
    p.add_argument("--seed", type=int, default=0, help="of the training problems and the students; the test problems have seed 9")
    p.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR")
    p.add_argument("flags", nargs="*", help="behind --: flags of train.py for each student from scratch, such as --n-layer 6")
    args = p.parse_args()
    for minutes in args.minutes:
        for procedure in args.procedures:
            folder = args.out / f"level{args.level}-{minutes:g}-{procedure}-seed{args.seed}"
            folder.mkdir(parents=True)
            script("annotate.py", "--level", args.level, "--seed", args.seed, folder=folder)
            script("annotate.py", "--level", args.level, "--seed", 9, "--train", 1, "--valid", 1, "--out", "unseen", folder=folder)
            train(procedure, minutes, args.seed, folder, args.flags)
            figures = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), "level": args.level,
                       "threads": os.environ.get("OMP_NUM_THREADS", os.cpu_count()), "minutes": minutes,
                       "procedure": procedure, "seed": args.seed, "flags": args.flags}
            for name, flags in ("calculator", ()), ("no_calculator", ("--no-calculator",)):
                lines = script("infer.py", "--eval", "unseen/test.jsonl", "--procedure", procedure, *flags, folder=folder)
                figures[name] = float(re.match(r"accuracy ([\d.]+) %", lines[-1])[1])
                figures[name + "_lines"] = lines
            with open(args.out / "figures.jsonl", "a") as f:
                f.write(json.dumps(figures) + "\n")
            print("| {level} | {minutes:g} | {procedure} | {calculator} | {no_calculator} |".format(**figures), flush=True)


if __name__ == "__main__":
    main()
