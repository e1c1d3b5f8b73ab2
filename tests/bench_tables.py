"""The paper's tables, run: students that answer at once, think step by step (CoT), or ask and answer (Socratic CoT).

    python tests/bench_tables.py                                        every table, 11 minutes a procedure, seed 0
    python tests/bench_tables.py procedures --level 3 --seeds 0 1 2     one of them, harder problems, three seeds
    python tests/bench_tables.py procedures --rows socratic --minutes 60
    python tests/bench_tables.py procedures sizes --data annotations/gsm8k --init gpt2 gpt2-medium gpt2-large --minutes 600

Every procedure's students get the same minutes of training in all, on a machine that does nothing else; a pair divides them, its
decomposer starts from its solver. Settings are train.py's, which were chosen for the solver. With --data the problems are the
user's own (train, valid and test.jsonl in one folder), with --init the students start from those weights, both of a pair. Flags of
train.py stand behind --, and hold for every student but a decomposer that starts from its solver. All tables take some six hours a seed.

Each student is trained and each evaluation made once, in --out, and logged: a row for each run with its command, figures, commit,
machine, date. What the log has is not run again, so the same command goes on after a break, and prints tables alone when nothing is
missing; after a change of the code take another --out. With --no-run nothing is run: so the tables in README.md are printed from
their log, tests/tables.jsonl. Two of these commands may share --out if they have no students in common, such as those of two seeds.
"""
import argparse
import datetime
import hashlib
import json
import platform
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from html import escape
from pathlib import Path
from typing import Callable, NamedTuple

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import infer  # noqa: E402
from data import Parser, UserError, jsonl, read_problems, read_rows, run  # noqa: E402
from model import GPT  # noqa: E402

SECOND = 1.5 / 11  # of a pair's minutes go to the student that starts from the other
SIZES = ((2, 32), (2, 64), (4, 96), (6, 128))  # layers, width


class Row(NamedTuple):
    """A row of a table."""
    label: str
    procedure: str
    students: Callable  # () -> {flag of infer.py: folder}, trains what is missing
    test: Path
    against: str = "cot"  # the row that it is compared with by McNemar's exact test; "": none
    flags: tuple = ()  # of infer.py


class NotRun(UserError):
    """--no-run, but the log lacks something."""


class Bench:
    """What --out holds, each file and folder made when it is needed, and the log, which has a row of figures for each.

    data(), student() and the like only name a path, and note how it would be made. An evaluation that the log lacks is run, and
    before it what its command names of --out, its students and problems, and before those what theirs name.
    """

    def __init__(self, args):
        self.out, self.args, self.seed = args.out.resolve(), args, args.seeds[0]
        self.log = args.log or self.out / "runs.jsonl"
        if args.log and not args.log.parent.is_dir():
            raise UserError(f"--log {args.log}: there is no such folder", 2)
        self.read_log()
        self.recipes = {}  # {name of what may have to be made: function that makes it}
        self.given = infer.checksum([read_problems(args.data / f"{split}.jsonl") for split in ("train", "valid", "test")]) if args.data else ""

    def read_log(self):
        """Read the log into {name: row}. Where a student was trained anew its row stands twice: what came of the first is void."""
        self.runs = {}
        for _, row in read_rows(self.log) if self.log.exists() else ():
            void = [row["name"]] if row["name"] in self.runs and not row["name"].startswith("data-") else []
            for name in void:  # grows
                void += [other for other, run in self.runs.items() if name in run["command"] and other not in void]
            for name in void:
                del self.runs[name]
            self.runs[row["name"]] = row

    def relative(self, words):
        """A command's words as texts, without this machine's folders: what --out holds by its name there, --data as it was given."""
        texts = []
        for word in words:
            for folder, short in ((self.out, Path()), (self.args.data and self.args.data.resolve(), self.args.data)):
                if folder and isinstance(word, Path) and word.is_relative_to(folder):
                    word = short / word.relative_to(folder)
            texts.append(str(word))
        return texts

    def once(self, kind, flags, make):
        """The path of a file or folder of --out, which make(path) makes, once, and returns (command, figures) for the log.

        flags: the words that make it what it is; it is named by them.
        """
        words = [*self.relative(flags), *([self.given] if self.given else [])]
        name = f"{kind}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:10]}"
        if name not in self.runs or not (self.out / name).exists():
            self.recipes[name] = make
        return self.out / name

    def make(self, path):
        """Make what `once` named, if it is not there."""
        if recipe := self.recipes.pop(path.name, None):
            command, figures = recipe(path)
            row = {"name": path.name, "command": " ".join(self.relative(command)), "date": datetime.date.today().isoformat(),
                   "commit": commit(), "machine": machine(), "torch": torch.__version__, **figures}
            with open(self.log, "ab") as f:
                f.write(jsonl([row]))
            self.read_log()

    def script(self, script, *words):
        """Run a script, after what its words need of --out; returns the command and the lines that it printed."""
        command = (script, *words)
        if self.args.no_run:
            raise NotRun(f"not in {self.log}: {' '.join(self.relative(command))}")
        for word in words:
            if isinstance(word, Path) and word.is_relative_to(self.out):
                self.make(self.out / word.relative_to(self.out).parts[0])
        self.out.mkdir(parents=True, exist_ok=True)
        print(*command, file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, ROOT / script, *map(str, words)], cwd=self.out, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"{script} came to status {done.returncode}; what it said stands above")
        return command, [line for line in done.stdout.replace(f"{self.out}/", "").splitlines() if not line.startswith(("kept in ", "next: "))]

    def data(self, *flags):
        """A folder of problems by the template teacher with these flags."""
        flags = ("--level", self.args.level, *flags)
        return self.once("data", flags, lambda folder: (self.script("annotate.py", *flags, "--force", "--out", folder)[0], {}))

    def train_data(self, *flags):
        """The folder of problems to train on."""
        return self.args.data.resolve() if self.args.data else self.data("--seed", self.seed, *flags)

    def test(self, *flags, seed=9):
        """The file of problems to test on."""
        if self.args.data:
            return self.args.data.resolve() / "test.jsonl"
        return self.data("--seed", seed, "--train", 1, "--valid", 1, *flags) / "test.jsonl"

    def student(self, role, minutes, data, *flags):
        """A student's folder."""
        flags = ("--role", role, "--minutes", f"{minutes:g}", "--seed", self.seed, "--train", data / "train.jsonl",
                 "--valid", data / "valid.jsonl", *flags)

        def make(folder):
            begun = (folder / "student.json").exists() and not (folder / "last" / "trainer.pt").exists()  # what --resume cannot go on with
            command, printed = self.script("train.py", *flags, "--out", folder, "--force" if begun else "--resume")
            about = json.loads((folder / "student.json").read_text(encoding="utf-8"))
            return command, {"parameters": sum(p.numel() for p in GPT.open(folder).parameters()), "printed": printed,
                             **{key: about[key] for key in ("steps", "tokens", "seconds", "best", "validating") if key in about}}

        return self.once(role, flags, make)

    def first(self, role, share=1.0, data=None, flags=()):
        """A student that starts from scratch, or from --init."""
        if self.args.init and "--init" not in flags:
            flags = ("--init", self.args.init[0], *flags)
        return self.student(role, share * self.args.minutes, data or self.train_data(), *self.args.flags, *flags)

    def single(self, role, data=None, flags=()):
        """A student that needs no other, as of Row.students; with `data` it is trained on that, with `flags` of train.py."""
        return {"student": self.first(role, 1.0, data, flags)}

    def pair(self, data=None, flags=(), role="decomposer", guidance=()):
        """A solver and a decomposer, which starts from it; from --init both, in half of the minutes each."""
        if self.args.init:
            return {"solver": self.first("solver", 0.5, data, flags), "decomposer": self.first(role, 0.5, data, (*flags, *guidance))}
        solver = self.first("solver", 1 - SECOND, data, flags)
        second = self.student(role, SECOND * self.args.minutes, data or self.train_data(), "--init", solver, *guidance)
        return {"solver": solver, "decomposer": second}

    def evaluate(self, row, calculator=True):
        """The log's row of an evaluation: "printed", lines, and "right", {number of steps: a text of 1 and 0 for each such problem}."""
        students = [word for flag, folder in row.students().items() for word in (f"--{flag}", folder)]
        flags = ("--procedure", row.procedure, "--eval", row.test, *students, *row.flags, *(() if calculator else ("--no-calculator",)))

        def make(file):
            command, printed = self.script("infer.py", *flags, "--out", file)
            dialogues, right = infer.read_results(file), defaultdict(str)
            for number, problem in enumerate(read_problems(row.test), 1):
                right[len(problem["steps"])] += "01"[dialogues[number, problem["problem"]]["right"]]
            return command, {"right": {str(n): right[n] for n in sorted(right)}, "printed": printed}

        file = self.once("results", flags, make)
        if file.name not in self.runs:
            self.make(file)
        return self.runs[file.name]


def commit():
    """This code's commit, or "" where git does not know it."""
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True).stdout.strip()
    except OSError:
        return ""


def machine():
    """What computes, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    models = [line.split(": ")[1] for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    return f"{(models or [platform.processor()])[0]}, {torch.get_num_threads()} threads"


# ---- the tables: each yields its rows for one seed of students and training problems ------------------------------------

def procedures(b):
    """Procedures at equal minutes"""
    test = b.test()
    for role in "cot", "answer", "unified":
        yield Row(role, role, lambda: b.single(role), test)
    if not b.args.init:  # a student from scratch learns the problem's text and recites solutions too: is that what answers take?
        yield Row("answer, learning nothing else", "answer", lambda: b.single("answer", flags=("--text-weight", 0, "--recite", 0)), test)
        if not any(flag.startswith("--n-") for flag in b.args.flags):
            yield Row("larger cot, of the pair's size", "cot", lambda: b.single("cot", flags=("--n-embd", 144)), test)
    yield Row("socratic", "socratic", b.pair, test)
    yield Row("stepwise", "stepwise", lambda: b.pair(role="stepwise"), test)
    yield Row("given the teacher's sub-questions, the pair's solver alone", "given", lambda: {"solver": b.pair()["solver"]}, test, "")


def lengths(b):
    """Procedures on problems of 2 to 8 steps; training has 2 to 5, at level 3 to 6"""
    test = b.test("--steps", "2-8")
    for procedure, students in (("cot", lambda: b.single("cot")), ("unified", lambda: b.single("unified")), ("socratic", b.pair),
                                ("stepwise", lambda: b.pair(role="stepwise"))):
        yield Row(procedure, procedure, students, test)
    yield Row("given the teacher's sub-questions", "given", lambda: {"solver": b.pair()["solver"]}, test, "")


def guidance(b):
    """Guidance: what the decomposer is told, at the test from the file's own solutions: an upper bound"""
    test = b.test()
    yield Row("nothing", "socratic", b.pair, test)
    for told in "steps", "equations":
        yield Row(told, "socratic", lambda: b.pair(guidance=("--guidance", told)), test, "nothing")


def sizes(b, test=None):
    """Sizes at equal minutes"""
    test = test or b.test()
    flags = {f"{n} x {width}": ("--n-layer", n, "--n-embd", width) if (n, width) != (4, 96) else () for n, width in SIZES}
    if b.args.init:
        flags = {Path(init).name: ("--init", init) for init in b.args.init}
    for size, its in flags.items():
        yield Row(f"cot, {size}", "cot", lambda: b.single("cot", flags=its), test, f"cot, {size}")
        yield Row(f"socratic, {size}", "socratic", lambda: b.pair(flags=its), test, f"cot, {size}")


def longer(b):
    """Sizes at equal minutes, on problems of 6 to 8 steps; training has 2 to 5, at level 3 to 6"""
    yield from sizes(b, b.test("--steps", "6-8"))


def both(b, what, test, data=None):
    """A row of cot and a pair's, trained on the same."""
    yield Row(f"cot, {what}", "cot", lambda: b.single("cot", data), test, f"cot, {what}")
    yield Row(f"socratic, {what}", "socratic", lambda: b.pair(data), test, f"cot, {what}")


def generalisation(b):
    """Problems unlike those of the training (the longer ones reach positions that no training problem had)"""
    yield from both(b, "5 to 8 steps after 2 to 4", b.test("--steps", "5-8"), b.train_data("--steps", "2-4"))
    yield from both(b, "unseen wordings", b.test("--wordings", "test"), b.train_data("--wordings", "test"))
    yield from both(b, "unseen names and objects", b.test("--made-up-test", 1, seed=10))


def amounts(b):
    """Annotations at equal minutes"""
    for n in 1_000, 5_000, 50_000:
        yield from both(b, f"{n:,} problems", b.test(), b.train_data(*(("--train", n) if n != 50_000 else ())))


def votes(b):
    """Votes: the answer that most of K dialogues have"""
    for k in 1, 5, 20:
        for procedure, students in ("cot", lambda: b.single("cot")), ("socratic", b.pair):
            yield Row(f"{procedure}, {k} vote{'s' * (k > 1)}", procedure, students, b.test(), f"{procedure}, 1 vote",
                      ("--votes", k) if k > 1 else ())


def self_teacher(b):
    """Students as their own teacher: 2,000 annotations, and what the pair samples for 8,000 problems of which the answers are known"""
    def annotations(n):
        if not n:
            return b.train_data("--train", 2_000)
        pair, before = b.pair(annotations(n - 1)), annotations(0)
        more = b.data("--seed", b.seed + 100, "--train", 8_000)
        flags = ("--solver", pair["solver"], "--decomposer", pair["decomposer"], "--samples", 4, "--keep", 1, "--seed", b.seed)

        def make(folder):
            b.make(more)
            b.make(before)
            folder.mkdir(exist_ok=True)
            bare = [{key: row[key] for key in ("id", "problem", "answer")} for row in read_problems(more / "train.jsonl")]
            (folder / "answers.jsonl").write_bytes(jsonl(bare))
            command, printed = b.script("annotate.py", "self", folder / "answers.jsonl", *flags, "--force", "--out", folder / "new.jsonl")
            (folder / "train.jsonl").write_bytes((before / "train.jsonl").read_bytes() + (folder / "new.jsonl").read_bytes())
            (folder / "valid.jsonl").write_bytes((before / "valid.jsonl").read_bytes())
            return command, {"printed": printed}

        return b.once("self", (more, *flags), make)

    for n in range(3):
        yield Row(f"socratic, {n} round{'s' * (n != 1)}", "socratic", lambda: b.pair(annotations(n)), b.test(), "socratic, 0 rounds")
    yield Row("socratic, 10,000 annotations of the teacher", "socratic", lambda: b.pair(b.train_data("--train", 10_000)), b.test(), "socratic, 0 rounds")
    # students that start from those of 0 rounds: two such pairs differ less by chance than two from scratch
    for n in range(2):
        yield Row(f"trained on, {n} round{'s' * (n != 1)}", "socratic",
                  lambda: b.pair(annotations(n), ("--init", b.pair(annotations(0))["solver"])), b.test(), "trained on, 0 rounds")


def optimizers(b):
    """Optimizers at equal minutes, each at two learning rates"""
    for name in "muon", "adamw":
        for rate in (5e-5, 5e-4) if b.args.init else (3e-3, 1e-3):
            flags = ("--optimizer", name, "--lr", f"{rate:g}")
            if not b.args.init and (name, rate) == ("muon", 3e-3):
                flags = ()  # the other tables' cot
            yield Row(f"{name} {rate:g}", "cot", lambda: b.single("cot", flags=flags), b.test(), "")


TABLES = {table.__name__: table for table in (procedures, lengths, guidance, sizes, longer, generalisation, amounts, votes, self_teacher, optimizers)}
TEMPLATES = "lengths", "longer", "generalisation", "amounts", "self_teacher"  # the tables that --data cannot have


# ---- print -------------------------------------------------------------------------------------------------------------

T = 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262  # Student's t at 97.5 % for 1, 2, ... degrees of freedom


def percent(right):
    """The accuracy of some seeds, of each a text of 1 and 0, in per cent, and an interval at 95 %: of one seed Wilson's, which is
    about problems; of several, up to ten, that in which one more seed's is expected, mean +- t s sqrt(1 + 1 / seeds), and each."""
    if not right:
        return ""
    shares, seeds = [accuracy(its) for its in right], len(right)
    mean = statistics.mean(shares)
    if seeds == 1:
        (low, high), each = infer.wilson(right[0].count("1"), len(right[0])), ""
    else:
        half = T[seeds - 2] * statistics.stdev(shares) * (1 + 1 / seeds) ** 0.5
        low, high = max(0, mean - half), min(1, mean + half)
        each = f": {', '.join(f'{100 * one:.1f}' for one in shares)}"
    return f"{100 * mean:.1f} ({100 * low:.1f}-{100 * high:.1f}{each})"


def asked(lines):
    """What infer.py said of sub-questions: the share that is exactly the teacher's (per cent) and BLEU, or ()."""
    exact = [float(line.split(": ")[1].split()[0]) for line in lines if line.startswith("questions exactly")]
    return (*exact, *(float(line.rsplit(" ", 1)[1]) for line in lines if "BLEU" in line))


class Result(NamedTuple):
    """What a row's runs came to, of all seeds."""
    row: Row
    parameters: int
    tokens: float  # millions that its students were trained on, mean of the seeds
    right: list  # of each seed a text of 1 and 0
    without: list  # the same without calculator
    steps: dict  # {number of steps: accuracy}
    asked: list  # of each seed what `asked` found
    ahead: list  # of each seed the difference to the row that it is compared with, of accuracies
    p: list  # of each seed, McNemar's
    where: set  # machines and commits of its evaluations


def fill(b, table, procedures=None):
    """The Results of a table, as they are complete, and what is missing is made: of the rows that --rows wants, and of some procedures."""
    of = {}  # each label's Result
    rows = {row.label: row.procedure for row in rows_of(b, table, b.args.seeds[0])}
    for label, procedure in rows.items():
        wanted = any(label == word or word not in rows and label.startswith(word) for word in b.args.rows or [""])
        if not wanted or procedures and procedure not in procedures:
            continue
        found, without, tokens, ahead, p = [], [], [], [], []
        for seed in b.args.seeds:
            row = next(row for row in rows_of(b, table, seed) if row.label == label)
            try:
                found.append(b.evaluate(row))
                if table is TABLES["procedures"]:
                    without.append(all_of(b.evaluate(row, calculator=False)))
            except NotRun as e:
                print(f"{label}: {e}", file=sys.stderr)
                found = []
                break
            trained = [b.runs[folder.name] for folder in row.students().values()]
            tokens.append(sum(run["tokens"] for run in trained) / 1e6)
            if row.against != label and row.against in of:
                its, other = all_of(found[-1]), of[row.against].right[len(p)]
                pairs = Counter(zip(its, other))
                p.append(infer.mcnemar(pairs["1", "0"], pairs["0", "1"]))
                ahead.append(accuracy(its) - accuracy(other))
        if not found:
            continue
        of[label] = Result(row, sum(run["parameters"] for run in trained), statistics.mean(tokens),
                           [all_of(run) for run in found], without,
                           {int(n): statistics.mean(accuracy(run["right"][n]) for run in found) for n in found[0]["right"]},
                           [asked(run["printed"]) for run in found], ahead, p, {(run["machine"], run["commit"]) for run in found})
        yield of[label]


def comparison(b):
    """The name of the column that has what `compared` says."""
    return "p" if len(b.args.seeds) == 1 else "points ahead; p"


def compared(result, plain=None):
    """McNemar's p of each seed, which is about problems; of several seeds before it by how many points the row is ahead, their mean
    and its interval at 95 %, +- t s / sqrt(seeds), which is about seeds; and against which row, unless that is the `plain` one."""
    ahead, mean = [100 * one for one in result.ahead], ""
    if len(ahead) > 1:
        half = T[len(ahead) - 2] * statistics.stdev(ahead) / len(ahead) ** 0.5
        mean = f"{statistics.mean(ahead):+.1f} ({statistics.mean(ahead) - half:+.1f} to {statistics.mean(ahead) + half:+.1f}); "
    against = f" against {result.row.against}" if result.p and result.row.against != plain else ""
    return f"{mean}{', '.join(f'{p:.2g}' for p in result.p)}{against}"


def conditions(b):
    """What all tables of a command have in common, and what their intervals are of, in words."""
    interval = "intervals of one seed's problems" if len(b.args.seeds) == 1 else "intervals of one more seed"
    return (f"({b.args.minutes:g} minutes, {b.args.data or f'level {b.args.level}'}, "
            f"seed{'s' * (len(b.args.seeds) > 1)} {' '.join(map(str, b.args.seeds))}; {interval})")


def show(b, table):
    """Print a table, a row as soon as it is complete; returns what a picture can have: {label: {number of steps: accuracy}}."""
    print(f"\n**{table.__doc__}** {conditions(b)}\n\n| | parameters | M tokens | with calculator, % | without | by steps | questions exact, BLEU | "
          f"{comparison(b)} |\n"
          "|---|---|---|---|---|---|---|---|")
    if b.args.data:
        answers = Counter(problem["answer"] for problem in read_problems(b.test()))
        answer, n = answers.most_common(1)[0]
        print(f"| always {answer} | | | {100 * n / answers.total():.1f} | | | | |")
    of = {}
    for result in fill(b, table):
        row = result.row
        of[row.label] = result
        print(f"| {row.label} | {result.parameters:,} | {result.tokens:.1f} | {percent(result.right)} | {percent(result.without)} | "
              f"{' '.join(f'{n}: {100 * part:.0f}' for n, part in result.steps.items())} | "
              f"{', '.join(f'{statistics.mean(column):.1f}' for column in zip(*result.asked))} | "
              f"{compared(result)} |", flush=True)
    print()
    for machine, commit in sorted(set().union(*(result.where for result in of.values()))):
        print(f"({machine}, commit {commit})")
    if table in (TABLES["sizes"], TABLES["longer"]):
        print(largest_factor(list(of.values())))
    return {label: result.steps for label, result in of.items()}


def largest_factor(results):
    """Say by which factor a pair is at most smaller than a single student that is no better. Only such single students count as
    make something of their size: no smaller one is as right."""
    right = {result.row.label: accuracy("".join(result.right)) for result in results}
    cots, pairs = ([(result.parameters, result.row.label) for result in results if result.row.procedure == procedure]
                   for procedure in ("cot", "socratic"))
    cots = [(size, cot) for size, cot in cots if not any(other < size and right[label] >= right[cot] for other, label in cots)]
    beaten = [(size / its, f"{pair}, {100 * right[pair]:.1f} %, and {cot}, {100 * right[cot]:.1f} %")
              for size, cot in cots for its, pair in pairs if right[pair] >= right[cot]]
    factor, which = max(beaten, default=(0, "none is"))
    return f"The largest factor by which a pair is smaller than a single student and as right: {factor:.1f} ({which})"


def show_side_by_side(b, tables):
    """Print cot and socratic beside each other, a line for both rows of a table that differ in nothing else."""
    print(f"{conditions(b)}\n\n| | cot, % | socratic, % | {comparison(b)} |\n|---|---|---|---|")
    for table in tables:
        print(f"| **{table.__doc__}** | | | |")
        lines = defaultdict(dict)  # {what they have in common: {procedure: Result}}
        for result in fill(b, table, ("cot", "socratic")):
            label, procedure = result.row.label, result.row.procedure
            lines["" if label == procedure else label.removeprefix(f"{procedure}, ")][procedure] = result
        for what, its in lines.items():
            cells = [percent(its[procedure].right) if procedure in its else "" for procedure in ("cot", "socratic")]
            beside = its["cot"].row.label if "cot" in its else None
            p = "; ".join(compared(result, beside) for result in its.values() if result.p)
            print(f"| {what} | {' | '.join(cells)} | {p} |")


def all_of(run):
    """An evaluation's problems, those with the fewest steps first, as a text of 1 and 0."""
    return "".join(run["right"].values())


def accuracy(right):
    """The share of 1 in a text of 1 and 0."""
    return right.count("1") / len(right)


def rows_of(b, table, seed):
    """The rows of a table for one seed."""
    b.seed = seed
    return table(b)


def draw(lines, path):
    """Draw accuracy by number of steps as an SVG file; lines: {label: {number of steps: accuracy}}."""
    steps = sorted({n for line in lines.values() for n in line})
    x, y = (lambda n: 50 + 380 * (n - steps[0]) / max(steps[-1] - steps[0], 1)), (lambda share: 330 - 300 * share)
    marks = [f'<text x="{x(n):.0f}" y="350" text-anchor="middle">{n}</text>' for n in steps]
    marks += [f'<path d="M50 {y(share):.0f}h380" stroke="#ddd"/><text x="44" y="{y(share) + 4:.0f}" text-anchor="end">{100 * share:.0f} %</text>'
              for share in (0, 0.25, 0.5, 0.75, 1)]
    for k, (label, line) in enumerate(lines.items()):
        colour = f"hsl({360 * k // len(lines)} 70% 40%)"
        points = " ".join(f"{x(n):.1f},{y(share):.1f}" for n, share in line.items())
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
                     f'<text x="450" y="{40 + 20 * k}" fill="{colour}">{escape(label)}</text>')
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 380" font-family="sans-serif" font-size="12" style="background:#fff">\n'
                    + "\n".join(marks) + '\n<text x="240" y="370" text-anchor="middle">sub-questions of the problem</text>\n</svg>\n',
                    encoding="utf-8")


def main(argv=None):
    p = Parser(description=__doc__.splitlines()[0])
    p.add_argument("tables", nargs="*", choices=[*TABLES, "all"], default="all", help="which (all)")
    p.add_argument("--rows", nargs="+", metavar="WORD", help="only the rows of these names, or that begin so")
    p.add_argument("--minutes", type=float, default=11, help="of training of a procedure's students in all (%(default)s)")
    p.add_argument("--level", type=int, default=1, help="of the template problems")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training problems and students; the test problems have seed 9")
    p.add_argument("--data", type=Path, metavar="DIR", help="its train.jsonl, valid.jsonl and test.jsonl instead of templates")
    p.add_argument("--init", nargs="+", metavar="DIR", help="weights to start from; `sizes` takes all, the other tables the first")
    p.add_argument("--out", type=Path, default=Path("runs/tables"), metavar="DIR")
    p.add_argument("--log", type=Path, metavar="FILE", help="of figures, a row for each run (DIR/runs.jsonl)")
    p.add_argument("--no-run", action="store_true", help="print what the log has; which rows are left out is told on stderr")
    p.add_argument("--side-by-side", action="store_true", help="print cot and socratic alone, beside each other")
    p.add_argument("--picture", type=Path, metavar="FILE", help="draw the last table by number of steps, as SVG")
    argv = sys.argv[1:] if argv is None else argv
    behind = argv.index("--") if "--" in argv else len(argv)
    args = p.parse_args(argv[:behind])
    args.flags = argv[behind + 1:]
    if len(args.seeds) > len(T) + 1 or len(set(args.seeds)) < len(args.seeds):
        p.error(f"--seeds: at most {len(T) + 1}, each once")
    args.init = args.init and [str(Path(init).resolve()) if Path(init).is_dir() else init for init in args.init]
    if args.init and len({Path(init).name for init in args.init}) < len(args.init):
        p.error("--init: two folders of one name")
    names = [name for name in TABLES if not args.data or name not in TEMPLATES] if "all" in args.tables else args.tables
    if args.data and (wrong := set(names) & set(TEMPLATES)):
        p.error(f"{', '.join(sorted(wrong))}: these tables need the templates, not --data")
    own = {"--role", "--train", "--valid", "--out", "--seed", "--minutes", "--steps", "--epochs", "--patience", "--resume", "--force", "--init"}
    own |= {"--n-layer", "--n-embd"} if {"sizes", "longer"} & set(names) else set()
    own |= {"--optimizer", "--lr"} if "optimizers" in names else set()
    if wrong := own & {flag.split("=")[0] for flag in args.flags}:
        p.error(f"-- {' '.join(sorted(wrong))}: these tables set it themselves")
    if args.picture and args.side_by_side:
        p.error("--picture: not with --side-by-side")
    b = Bench(args)
    if args.rows:
        labels = [row.label for name in names for row in rows_of(b, TABLES[name], args.seeds[0])]
        if unknown := [word for word in args.rows if not any(label.startswith(word) for label in labels)]:
            p.error(f"--rows {unknown[0]}: no row begins so; there are {', '.join(labels)}")
    if args.side_by_side:
        return show_side_by_side(b, [TABLES[name] for name in names])
    for name in names:
        lines = show(b, TABLES[name])
    if args.picture and lines:
        draw(lines, args.picture)


if __name__ == "__main__":
    run(main)
