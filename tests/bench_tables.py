"""Tables of what students learn: they are trained here, and evaluated on any test files.

    python tests/bench_tables.py procedures
    python tests/bench_tables.py procedures --seeds 0 1 2 --eval templates= SVAMP=svamp.jsonl --rows cot soc
    python tests/bench_tables.py settings --setting default= wide="--n-embd 128" --minutes 5
    python tests/bench_tables.py self_teacher --answers mawps.jsonl --eval templates= MAWPS=mawps_test.jsonl

A row is a procedure of infer.py and its students, a column a test file. Every student is trained from scratch
for all of --minutes on one core (OMP_NUM_THREADS=1), one after the other; so both students of a pair get as
much as one that works alone. Flags of train.py stand behind --.

Each student is trained once and evaluated once: what is in --out is printed, not made again, and a command
that was stopped goes on when it is given again. tables.jsonl tells of all that is there by which command it
was made, when, on which machine and commit. After a change of the code take another --out. Two commands at a
time need an --out each; what they have made may then be copied into one, and their tables.jsonl joined.
"""
import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import infer  # noqa: E402
from data import Parser, UserError, number, read_rows, run_script, to_jsonl, whole_number  # noqa: E402
from model import GPT  # noqa: E402


# ---- jobs: commands and what they make ---------------------------------------------------------------------

class Bench:
    """Commands that make a file or folder in --out, each run once, when something needs it."""

    def __init__(self, out):
        self.out, self.jobs, self.log = out, {}, out / "tables.jsonl"

    def job(self, kind, *words):
        """Name a job, and the path that it makes. Nothing runs yet, and the same words give the same name,
        unless a file among them has changed.

            solver = bench.job("solver", "train.py", "--role", "solver", ...)  # "@OUT/solver-3a91f04c2b"
            bench.job("result", "infer.py", "--solver", solver, ...)           # needs the one before
        """
        words = tuple(map(str, words))
        files = [Path(word).read_bytes() for word in words[1:] if Path(word).is_file()]
        digest = hashlib.sha256(b"\0".join([json.dumps(words).encode(), *files])).hexdigest()[:10]
        suffix = ".jsonl" if kind in ("self", "beside", "result") else ""  # else it is a folder
        self.jobs[f"{kind}-{digest}{suffix}"] = words
        return f"@OUT/{kind}-{digest}{suffix}"

    def make(self, path):
        """What a job makes, and what it needs before. partial-NAME, of a stopped command, goes on."""
        name = path.split("/")[1]
        words, made, partial = self.jobs[name], self.out / name, self.out / f"partial-{name}"
        if made.exists():
            return made
        for word in words:
            if word.startswith("@OUT/"):
                self.make(word)
        if words[0] == "train.py" and not (partial / "last" / "trainer.pt").exists():
            shutil.rmtree(partial, ignore_errors=True)  # nothing to resume from
        self.out.mkdir(parents=True, exist_ok=True)
        flags = {"train.py": ["--resume"], "annotate.py": ["--force"]}.get(words[0], [])
        call([word.replace("@OUT", str(self.out)) for word in [*words, "--out", str(partial), *flags]])
        row = {"name": name, "command": shlex.join([*words, "--out", f"@OUT/{name}"]), **provenance()}
        with open(self.log, "ab") as log:
            log.write(to_jsonl([row]))
        return partial.rename(made)


def call(words):
    """Run a command: a script of this project, or cat FILE ... --out FILE."""
    print(shlex.join(words), file=sys.stderr, flush=True)
    if words[0] == "cat":
        *files, _, out = words[1:]
        Path(out).write_bytes(b"".join(Path(file).read_bytes().rstrip() + b"\n" for file in files))
        return
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if words[0] == "train.py" else {})
    status = subprocess.call([sys.executable, ROOT / words[0], *words[1:]], stdout=sys.stderr, env=env)
    if status:
        raise UserError(f"{words[0]} ended with status {status}; what it said stands above")


def provenance():
    """What the log says of where and when a job ran: a dict."""
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    return {"date": datetime.date.today().isoformat(), "torch": torch.__version__,
            "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
            "machine": gpu or (model[1] if model else platform.processor())}


# ---- students and problems of one seed ---------------------------------------------------------------------

class Plan:
    """The jobs of one seed of training problems and students. Nothing is run here."""

    def __init__(self, bench, args, seed):
        self.bench, self.args, self.seed = bench, args, seed
        self.folder = args.data or bench.job("templates", "annotate.py", "templates", "--seed", seed)

    def student(self, role, *flags, minutes=None, train_file=None):
        """The folder of a student; flags: further ones of train.py; train_file: another than the seed's."""
        return self.bench.job(
            role, "train.py", "--role", role, "--minutes", f"{minutes or self.args.minutes:g}",
            "--seed", self.seed, "--train", train_file or f"{self.folder}/train.jsonl",
            "--valid", f"{self.folder}/valid.jsonl", *self.args.flags, *flags)

    def pair(self, *flags, **changes):
        """A solver and a decomposer, as {flag of infer.py: folder}."""
        return {role: self.student(role, *flags, **changes) for role in ("solver", "decomposer")}

    def beside(self, file):
        """The file of the seed's training problems and those of another file."""
        return self.bench.job("beside", "cat", f"{self.folder}/train.jsonl", file)


# ---- the tables: each yields its rows for a Plan -----------------------------------------------------------

class Row(NamedTuple):
    """A row of a table."""
    label: str
    procedure: str
    students: dict  # {flag of infer.py: folder}
    needs_steps: bool = False  # whether a test file must have the teacher's steps
    annotated: str = None  # the file of further annotations that its students read, by annotate.py self


SIZES = (2, 32), (2, 64), (4, 96), (6, 128)  # layers, width
LARGER = "--n-embd", 144  # about the parameters of a pair of 4 x 96


def procedures(plan):
    """Procedures"""
    for role in "answer", "cot", "unified":
        yield Row(role, role, {"student": plan.student(role)})
    if "--init" not in plan.args.flags:
        yield Row("larger cot, of the pair's size", "cot", {"student": plan.student("cot", *LARGER)})
    yield Row("socratic", "socratic", plan.pair())
    solver = {"solver": plan.student("solver")}
    yield Row("stepwise", "stepwise", solver | {"decomposer": plan.student("stepwise")})
    yield Row("given the teacher's sub-questions", "given", solver, needs_steps=True)


def sizes(plan):
    """Sizes"""
    for n_layer, n_embd in SIZES:
        flags = "--n-layer", n_layer, "--n-embd", n_embd
        yield Row(f"cot, {n_layer} x {n_embd}", "cot", {"student": plan.student("cot", *flags)})
        yield Row(f"socratic, {n_layer} x {n_embd}", "socratic", plan.pair(*flags))


def minutes(plan):
    """The pair after more or fewer minutes"""
    for factor in 1 / 8, 1 / 4, 1 / 2, 1, 2:
        each = factor * plan.args.minutes
        yield Row(f"{each:g} minutes", "socratic", plan.pair(minutes=each))


def settings(plan):
    """The pair with other flags of train.py"""
    for label, flags in plan.args.setting:
        yield Row(label, "socratic", plan.pair(*shlex.split(flags)))


def self_teacher(plan):
    """The pair as its own teacher, of problems with known answers (--answers)"""
    answers, annotated, data = plan.args.answers, None, {}
    for n in range(plan.args.rounds + 1):
        pair = plan.pair(**data)
        yield Row(f"round {n}", "socratic", pair, annotated=annotated)
        words = "annotate.py", "self", answers, *student_flags(pair), "--seed", plan.seed
        annotated = plan.bench.job("self", *words)
        data = {"train_file": plan.beside(annotated)}
    if has_steps(answers):
        yield Row("the file's own steps", "socratic", plan.pair(train_file=plan.beside(answers)))


TABLES = {table.__name__: table for table in (procedures, sizes, minutes, settings, self_teacher)}


def student_flags(students):
    """The words of {flag: folder}."""
    return [word for flag, folder in students.items() for word in (f"--{flag}", folder)]


def has_steps(file):
    """Whether all problems of a file have steps; yes if it is still to be made."""
    return not Path(file).is_file() or all(row.get("steps") for _, row in read_rows(file))


# ---- run and print -----------------------------------------------------------------------------------------

T_QUANTILE = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262  # 97.5 %, of 2 to 10 values


def accuracy_cells(heading, runs):
    """{heading: cell} of the accuracy and its 95 % interval: of one seed Wilson's, over problems; of several
    Student's, over seeds. runs: for each seed a list of bools, which problems were correct.
    """
    values = [100 * sum(correct) / len(correct) for correct in runs]
    mean = statistics.mean(values)
    if len(runs) == 1:
        low, high = (100 * end for end in infer.wilson(sum(runs[0]), len(runs[0])))
    else:
        half = T_QUANTILE[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
        low, high = mean - half, mean + half
    return {f"{heading}, %": f"{mean:.1f}", f"{heading}, 95 %": f"{max(low, 0):.1f}-{min(high, 100):.1f}"}


def student_cells(bench, rows):
    """{heading: cell} about the students of a row, of which `rows` has a Row for each seed: their means."""
    folders = [bench.make(folder) for row in rows for folder in row.students.values()]
    n_parameters = sum(p.numel() for folder in folders for p in GPT.from_pretrained(folder).parameters())
    n_tokens = sum(json.loads((folder / "last" / "student.json").read_text())["tokens"] for folder in folders)
    cells = {"": rows[0].label, "k parameters": f"{n_parameters / len(rows) / 1e3:,.1f}",
             "M tokens": f"{n_tokens / len(rows) / 1e6:,.1f}"}
    if rows[0].annotated:
        annotated = [{row["problem"] for _, row in read_rows(bench.make(each.annotated))} for each in rows]
        cells["problems annotated"] = f"{statistics.mean(map(len, annotated)):,.0f}"
    return cells


def show(bench, args, table):
    """Run what is missing of a table and print it in Markdown."""
    lines, shown = [], set()
    for rows in zip(*(table(Plan(bench, args, seed)) for seed in args.seeds)):
        files = {name: file for name, file in args.eval.items() if has_steps(file) or not rows[0].needs_steps}
        if not files or not rows[0].label.startswith(tuple(args.rows)):
            continue
        lines.append(student_cells(bench, rows))
        for name, file in files.items():
            jobs = [bench.job("result", "infer.py", "--procedure", row.procedure, "--eval", file,
                              *student_flags(row.students)) for row in rows]
            results = [infer.read_results(bench.make(job))[1] for job in jobs]
            correct = [[row["correct"] for row in its if row["correct"] is not None] for its in results]
            lines[-1] |= accuracy_cells(name, correct)
            shown |= {Path(job).name for job in jobs}
    if not lines:
        print(f"{table.__name__}: no such row, or no test file has the steps that it needs", file=sys.stderr)
        return
    headings = list(dict.fromkeys(heading for cells in lines for heading in cells))
    print(f"\n**{table.__doc__}** ({args.minutes:g} minutes for each student on one core, seeds "
          f"{' '.join(map(str, args.seeds))})\n\n    {args.command}\n")
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for cells in lines:
        print(f"| {' | '.join(cells.get(heading, '') for heading in headings)} |")
    print("", *sorted({f"({row['machine']}, commit {row['commit']}, {row['date']})"
                       for _, row in read_rows(bench.log) if row["name"] in shown}), sep="\n")


def name_and_value(text):
    """An argparse type: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=...")
    return name, value


def parse_args(argv):
    """The flags; `flags` becomes those behind --, and `command` the whole command."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("tables", nargs="+", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    add("--rows", nargs="+", default=[""], metavar="LABEL", help="only rows whose label begins so")
    add("--eval", type=name_and_value, nargs="+", default=[("templates", "")], metavar="NAME=FILE",
        help="test files; templates= is the template teacher's own, and the default")
    add("--minutes", type=number(0, above=True), default=10.5,
        help="of training, of each student, from scratch on one core (%(default)s)")
    add("--seeds", type=whole_number(0), nargs="+", default=[0], help="of training problems and students")
    add("--data", type=Path, metavar="DIR", help="train on its train.jsonl, valid.jsonl, not on templates")
    add("--setting", type=name_and_value, nargs="+", default=[], metavar="LABEL=FLAGS", help="`settings`")
    add("--answers", metavar="FILE", help="problems of `self_teacher`")
    add("--rounds", type=whole_number(0), default=2, help="of `self_teacher` (%(default)s)")
    add("--out", type=Path, default=Path("runs/tables"), metavar="DIR", help="(%(default)s)")
    split = argv.index("--") if "--" in argv else len(argv)
    args = p.parse_args(argv[:split])
    args.flags, args.command = argv[split + 1:], shlex.join(["python", "tests/bench_tables.py", *argv])
    if len(args.seeds) > len(T_QUANTILE) + 1 or len(set(args.seeds)) < len(args.seeds):
        p.error(f"--seeds: at most {len(T_QUANTILE) + 1}, each once")
    if "self_teacher" in args.tables and not args.answers:
        p.error("self_teacher needs --answers FILE")
    return args


def main(argv=None):
    """Parse; run and print each table."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    bench = Bench(args.out)
    own = bench.job("templates", "annotate.py", "templates", "--seed", 9, "--train", 1, "--valid", 1)
    args.eval = {name: file or f"{own}/test.jsonl" for name, file in args.eval}
    labels = [row.label for name in args.tables for row in TABLES[name](Plan(bench, args, args.seeds[0]))]
    for word in args.rows:
        if not any(label.startswith(word) for label in labels):
            raise UserError(f"{word}: no row's label begins so; there are: {'; '.join(labels)}", 2)
    for name in args.tables:
        show(bench, args, TABLES[name])


if __name__ == "__main__":
    run_script(main)
