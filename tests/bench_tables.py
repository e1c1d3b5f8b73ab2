"""Tables of what students learn: they are trained here, and evaluated on any test files.

    python tests/bench_tables.py procedures                                      11 minutes a row, seed 0
    python tests/bench_tables.py procedures --seeds 0 1 2 --eval templates= SVAMP=svamp.jsonl --by-steps
    python tests/bench_tables.py settings --setting default= wide="--n-embd 128" --minutes 5
    python tests/bench_tables.py self_teacher --answers mawps.jsonl --eval templates= MAWPS=mawps_test.jsonl
    python tests/bench_tables.py procedures --seeds 0 1 2 --no-run --log tests/tables.jsonl

A row is a procedure of infer.py and its students, a column a test file. All rows train for equal minutes; a
pair divides them, and its decomposer starts from its solver. To add a row, `yield` it in the section "the
tables". Flags of train.py stand behind --; a decomposer that starts from its solver does not get them.

Each student is trained once and evaluated once. --log has a row for each such job: its command, commit,
machine, date, and which problems were correct. A command that was stopped goes on when it is given again, and
what is in the log is printed, not run. After a change of the code take another --log and --out. Two commands
at a time may share --log, each with an --out of its own.
"""
import argparse
import datetime
import hashlib
import json
import math
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import infer  # noqa: E402
from data import Parser, UserError, number, read_rows, run_script, to_jsonl, whole_number  # noqa: E402
from model import GPT  # noqa: E402


# ---- jobs: commands, and the log of what they made ---------------------------------------------------------

class Bench:
    """Commands that make a file or folder in --out, each run once, when something needs it, and logged."""

    def __init__(self, args):
        self.out, self.no_run, self.jobs = args.out, args.no_run, {}
        self.log = args.log or self.out / "tables.jsonl"
        if args.log and not args.log.parent.is_dir():
            raise UserError(f"--log {args.log}: no such folder", 2)
        self.read_log()

    def read_log(self):
        """Read the log into `rows`, {job: row}. A student whose folder was gone was trained anew and has two
        rows: what came of the first one is void."""
        self.rows = {}
        for _, row in read_rows(self.log) if self.log.exists() else ():
            again = row["name"] in self.rows and row["command"].startswith("train.py")
            void = [row["name"]] if again else []
            for name in void:  # grows by what was made from each
                self.rows.pop(name, None)
                void += [other for other in self.rows if name in self.rows[other]["command"]]
            self.rows[row["name"]] = row

    def job(self, kind, *words):
        """Name a job, and the path that it makes. Nothing runs yet, and the same words give the same name.

            solver = bench.job("solver", "train.py", "--role", "solver", ...)   # "$OUT/solver-3a91f04c2b"
            bench.job("decomposer", "train.py", "--init", solver, ...)          # needs the one before
        """
        words = tuple(map(str, words))
        suffix = ".jsonl" if kind in ("self", "beside", "result") else ""  # else it is a folder
        name = f"{kind}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:10]}{suffix}"
        self.jobs[name] = words
        return f"$OUT/{name}"

    def result(self, path):
        """The log's row of the job that makes `path`; it is run if it is missing, but None with --no-run."""
        name = Path(path).name
        if name not in self.rows and self.no_run:
            print(f"not in {self.log}: {shell(self.jobs[name])}", file=sys.stderr)
            return None
        if name not in self.rows:
            self.run(name)
        for file, sha256 in self.rows[name]["files"].items():
            if Path(file).is_file() and checksum(file) != sha256:
                raise UserError(f"{file} has changed since {self.log}: {name}; take another --log and --out")
        return self.rows[name]

    def run(self, name):
        """Run a job, before it those that it needs, and log it. partial-NAME, of a killed run, goes on."""
        words, made, partial = self.jobs[name], self.out / name, self.out / f"partial-{name}"
        remove(made)  # it is not in the log, so it came of students that are void
        for need in [word.split("/")[1] for word in words if word.startswith("$OUT/")]:
            if need not in self.rows or not (self.out / need).exists():
                self.run(need)
                remove(partial)  # it began with another one
        if words[0] == "train.py" and not (partial / "last" / "trainer.pt").exists():
            remove(partial)  # nothing to resume from
        self.out.mkdir(parents=True, exist_ok=True)
        flags = {"train.py": ["--resume"], "annotate.py": ["--force"]}.get(words[0], [])
        call([word.replace("$OUT", str(self.out)) for word in [*words, "--out", str(partial), *flags]])
        row = {"name": name, "command": shell([*words, "--out", f"$OUT/{name}"]),
               "files": {word: checksum(word) for word in words[1:] if Path(word).is_file()},
               **provenance(), **self.metrics(words, partial)}
        partial.rename(made)
        with open(self.log, "ab") as log:
            log.write(to_jsonl([row]))
        self.read_log()

    def metrics(self, words, path):
        """What the log says of what a job made at `path`: a dict."""
        if words[0] == "train.py":
            student = json.loads((path / "last" / "student.json").read_text(encoding="utf-8"))
            return {"parameters": sum(p.numel() for p in GPT.from_pretrained(path).parameters()),
                    **{key: student[key] for key in ("step", "tokens", "seconds", "best_valid_loss")}}
        if words[:2] == ("annotate.py", "self"):
            return {"annotated": len({row["problem"] for _, row in read_rows(path)})}
        if words[0] != "infer.py":
            return {}
        # {number of steps, 0 if not known: "1101", of such problems in the file's order}
        test = words[words.index("--eval") + 1].replace("$OUT", str(self.out))
        n_steps = [str(len(problem.get("steps") or ())) for _, problem in read_rows(test)]
        correct = {n: "" for n in sorted(set(n_steps))}
        for result in sorted(infer.read_results(path)[1], key=lambda result: result["row"]):
            if result["correct"] is not None:
                correct[n_steps[result["row"] - 1]] += "01"[result["correct"]]
        return {"correct": correct}


def shell(words):
    """A command as one types it, after OUT=runs/tables."""
    return " ".join(word if word.startswith("$OUT/") else shlex.quote(word) for word in words)


def call(words):
    """Run a command: a script of this project, or cat FILE ... --out FILE."""
    print(shlex.join(words), file=sys.stderr, flush=True)
    if words[0] == "cat":
        *files, _, out = words[1:]
        Path(out).write_bytes(b"".join(Path(file).read_bytes().rstrip() + b"\n" for file in files))
        return
    status = subprocess.call([sys.executable, ROOT / words[0], *words[1:]], stdout=sys.stderr)
    if status:
        raise UserError(f"{words[0]} ended with status {status}; what it said stands above")


@cache
def checksum(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def remove(path):
    """Remove a file or folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def provenance():
    """What the log says of where and when a job ran: a dict."""
    status, commit = subprocess.getstatusoutput(f"git -C {shlex.quote(str(ROOT))} describe --always --dirty")
    cpu = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    machine = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    return {"date": datetime.date.today().isoformat(), "commit": "" if status else commit, "machine": machine,
            "torch": torch.__version__}


# ---- students and problems of one seed ---------------------------------------------------------------------

DECOMPOSER_SHARE = 1.5 / 11  # of a pair's minutes
TEST_SEED = 9  # of the templates' test problems


def templates(bench, args, seed, *flags):
    """The template teacher's folder."""
    return bench.job("templates", "annotate.py", "templates", *args.templates, "--seed", seed, *flags)


class Plan:
    """The jobs of one seed of training problems and students. Nothing is run here."""

    def __init__(self, bench, args, seed):
        self.bench, self.args, self.seed = bench, args, seed
        folder = args.data or templates(bench, args, seed)
        self.train_file, self.valid_file = f"{folder}/train.jsonl", f"{folder}/valid.jsonl"

    def student(self, role, minutes, *flags, train_file=None):
        """The folder of a student; flags: further ones of train.py; train_file: another than the seed's."""
        return self.bench.job(
            role, "train.py", "--role", role, "--minutes", f"{minutes:g}", "--seed", self.seed,
            "--train", train_file or self.train_file, "--valid", self.valid_file, *flags)

    def single(self, role, *flags):
        """A student that works alone, as {flag of infer.py: folder}."""
        start = ("--init", self.args.init) if self.args.init else ()
        return {"student": self.student(role, self.args.minutes, *start, *self.args.flags, *flags)}

    def pair(self, *flags, role="decomposer", guidance=(), minutes=None, share=DECOMPOSER_SHARE, **data):
        """A solver, and a decomposer that starts from it and gets a share of the minutes.

        With --init both start from that, and get half of the minutes each.
        """
        minutes, flags = minutes or self.args.minutes, (*self.args.flags, *flags)
        if self.args.init:
            share, flags = 0.5, ("--init", self.args.init, *flags)
        solver = self.student("solver", (1 - share) * minutes, *flags, **data)
        start = flags if self.args.init else ("--init", solver)
        decomposer = self.student(role, share * minutes, *start, *guidance, **data)
        return {"solver": solver, "decomposer": decomposer}

    def beside(self, file):
        """The file of the seed's training problems and --times copies of another file."""
        return self.bench.job("beside", "cat", self.train_file, *[file] * self.args.times)


# ---- the tables: each yields its rows for a Plan -----------------------------------------------------------

class Row(NamedTuple):
    """A row of a table."""
    label: str
    procedure: str
    students: dict  # {flag of infer.py: folder}
    flags: tuple = ()  # further ones of infer.py
    needs_steps: bool = False  # whether a test file must have the teacher's steps
    annotated: str = None  # the file of further annotations that its students read, by annotate.py self


SIZES = (2, 32), (2, 64), (4, 96), (6, 128)  # layers, width
LARGER = "--n-embd", 144  # about the parameters of a pair of 4 x 96


def procedures(plan):
    """Procedures at equal minutes"""
    for role in "answer", "cot", "unified":
        yield Row(role, role, plan.single(role))
    if not plan.args.init:
        yield Row("larger cot, of the pair's size", "cot", plan.single("cot", *LARGER))
    yield Row("socratic", "socratic", plan.pair())
    yield Row("stepwise", "stepwise", plan.pair(role="stepwise"))
    solver = plan.pair()["solver"]
    yield Row("given the teacher's sub-questions", "given", {"solver": solver}, needs_steps=True)


def sizes(plan):
    """Sizes at equal minutes"""
    for n_layer, n_embd in SIZES:
        flags = "--n-layer", n_layer, "--n-embd", n_embd
        yield Row(f"cot, {n_layer} x {n_embd}", "cot", plan.single("cot", *flags))
        yield Row(f"socratic, {n_layer} x {n_embd}", "socratic", plan.pair(*flags))


def minutes(plan):
    """The pair after more or fewer minutes"""
    for factor in 1 / 8, 1 / 4, 1 / 2, 1, 2:
        total = factor * plan.args.minutes
        yield Row(f"{total:g} minutes", "socratic", plan.pair(minutes=total))


def shares(plan):
    """The decomposer's share of a pair's minutes"""
    for share in 0.05, DECOMPOSER_SHARE, 0.3, 0.5:
        yield Row(f"{100 * share:.0f} %", "socratic", plan.pair(share=share))


def settings(plan):
    """The pair with other flags of train.py"""
    for label, flags in plan.args.setting:
        yield Row(label, "socratic", plan.pair(*shlex.split(flags)))


def optimizers(plan):
    """Optimizers at equal minutes, cot"""
    for name in "muon", "adamw":
        for lr in ("5e-5", "5e-4") if plan.args.init else ("3e-3", "1e-3"):
            yield Row(f"{name} {lr}", "cot", plan.single("cot", "--optimizer", name, "--lr", lr))


def guidance(plan):
    """What the decomposer is told of a solution: in the test of the file's own, so an upper bound"""
    yield Row("nothing", "socratic", plan.pair())
    for told in "steps", "equations":
        yield Row(told, "socratic", plan.pair(guidance=("--guidance", told)), needs_steps=True)


def votes(plan):
    """The answer that most of the sampled dialogues have"""
    for procedure, students in ("cot", plan.single("cot")), ("socratic", plan.pair()):
        yield Row(f"{procedure}, greedy", procedure, students)
        for temperature in "0.4", "0.7":
            flags = "--votes", "9", "--temperature", temperature
            yield Row(f"{procedure}, 9 votes at {temperature}", procedure, students, flags)


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


TABLES = {table.__name__: table for table in
          (procedures, sizes, minutes, shares, settings, optimizers, guidance, votes, self_teacher)}


def student_flags(students):
    """The words of {flag: folder}."""
    return [word for flag, folder in students.items() for word in (f"--{flag}", folder)]


def has_steps(file):
    """Whether all problems of a file have steps; yes if it is not there, so that the log alone prints."""
    return not Path(file).is_file() or all(row.get("steps") for _, row in read_rows(file))


# ---- run and print -----------------------------------------------------------------------------------------

T_QUANTILE = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262  # 97.5 %, of 2 to 10 values


def t_interval(values):
    """Student's 95 % interval of the mean of two to ten numbers: (low, high)."""
    half = T_QUANTILE[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def accuracies(texts):
    """The per cent of 1 in each text, such as "1101"."""
    return [100 * text.count("1") / len(text) for text in texts]


def accuracy_cells(heading, texts):
    """{heading: cell} of the accuracy and its 95 % interval: of one seed Wilson's, over problems.

    texts: for each seed which problems were correct, such as "1101".
    """
    if len(texts) == 1:
        low, high = (100 * end for end in infer.wilson(texts[0].count("1"), len(texts[0])))
    else:
        low, high = t_interval(accuracies(texts))
    return {f"{heading}, %": f"{statistics.mean(accuracies(texts)):.1f}",
            f"{heading}, 95 %": f"{max(low, 0):.1f}-{min(high, 100):.1f}"}


def comparison_cells(heading, texts, others):
    """{heading: cell} of the points ahead of other texts, with an interval over seeds, or McNemar's p."""
    ahead = [a - b for a, b in zip(accuracies(texts), accuracies(others))]
    cells = {f"{heading}, ahead": f"{statistics.mean(ahead):+.1f}"}
    if len(texts) > 1:
        return cells | {f"{heading}, 95 % of ahead": "{:+.1f} to {:+.1f}".format(*t_interval(ahead))}
    pairs = Counter(zip(texts[0], others[0]))
    return cells | {f"{heading}, p": f"{infer.mcnemar(pairs['1', '0'], pairs['0', '1']):.2g}"}


def evaluate(bench, args, rows):
    """Run what is missing of a row, of which `rows` has a Row for each seed; with --no-run leave that out.

    Returns {heading: for each seed which problems were correct}, and the log's rows.
    """
    texts, logged = {}, []
    for name, file in args.eval.items():
        if rows[0].needs_steps and not has_steps(file):
            continue
        jobs = [bench.job("result", "infer.py", "--procedure", row.procedure, "--eval", file,
                          *student_flags(row.students), *row.flags) for row in rows]
        results = [bench.result(job) for job in jobs]
        if all(results):
            logged += results
            correct = [result["correct"] for result in results]
            if args.by_steps:
                texts |= {f"{name}, {n} steps": [its[n] for its in correct] for n in correct[0]}
            else:
                texts[name] = ["".join(its.values()) for its in correct]
    return texts, logged


def student_cells(bench, rows):
    """{heading: cell} about the students of a row, means over the seeds."""
    students = [bench.result(folder) for row in rows for folder in row.students.values()]
    cells = {"": rows[0].label}
    for key, heading, unit in ("parameters", "k parameters", 1e3), ("tokens", "M tokens", 1e6):
        cells[heading] = f"{sum(student[key] for student in students) / len(rows) / unit:,.1f}"
    if rows[0].annotated:
        annotated = [bench.result(row.annotated)["annotated"] for row in rows]
        cells["problems annotated"] = f"{statistics.mean(annotated):,.0f}"
    return cells


def show(bench, args, table):
    """Run what is missing of a table and print it in Markdown."""
    rows_of = {rows[0].label: rows for rows in zip(*(table(Plan(bench, args, seed)) for seed in args.seeds))
               if rows[0].label.startswith(tuple(args.rows))}
    if not args.no_run:
        for rows in rows_of.values():
            evaluate(bench, args, rows)  # may train a student anew, which voids rows that were complete
    lines, texts_of, where = {}, {}, set()  # of each label: {heading: cell}, {heading: texts}
    for label, rows in rows_of.items():
        texts_of[label], logged = evaluate(bench, args, rows)
        if logged:
            lines[label] = student_cells(bench, rows)
            where |= {f"({row['machine']}, commit {row['commit']}, {row['date']})" for row in logged}
    against = texts_of.get(args.against, {})
    for label, cells in lines.items():
        for heading, texts in texts_of[label].items():
            cells |= accuracy_cells(heading, texts)
            if heading in against:
                cells |= comparison_cells(heading, texts, against[heading])
    headings = list(dict.fromkeys(heading for cells in lines.values() for heading in cells))
    print(f"\n**{table.__doc__}** ({args.minutes:g} minutes, seeds {' '.join(map(str, args.seeds))})\n\n"
          f"    {args.command}\n")
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for cells in lines.values():
        print(f"| {' | '.join(cells.get(heading, '') for heading in headings)} |")
    print("", *sorted(where), sep="\n")


def name_and_value(text):
    """An argparse type: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=...")
    return name, value


def parse_args(argv):
    """The flags; `flags` becomes those behind --, and `command` the whole command."""
    p = Parser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("tables", nargs="+", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    add("--rows", nargs="+", default=[""], metavar="LABEL", help="only rows whose label begins so")
    add("--eval", type=name_and_value, nargs="+", action="extend", metavar="NAME=FILE",
        help="test files; templates= is the template teacher's own, and the default")
    add("--by-steps", action="store_true", help="a column for each number of steps")
    add("--against", metavar="LABEL", help="compare the rows with this one")
    add("--minutes", type=number(0, above=True), default=11.0, help="of training, for a row (%(default)s)")
    add("--seeds", type=whole_number(0), nargs="+", default=[0], help="of training problems and students")
    add("--templates", type=shlex.split, default=[], metavar="FLAGS", help="of annotate.py templates")
    add("--data", type=Path, metavar="DIR", help="train on its train.jsonl, valid.jsonl, not on templates")
    add("--init", metavar="DIR", help="weights that the students start from")
    add("--setting", type=name_and_value, nargs="+", default=[], metavar="LABEL=FLAGS", help="`settings`")
    add("--answers", metavar="FILE", help="problems of `self_teacher`")
    add("--rounds", type=whole_number(0), default=2, help="of `self_teacher` (%(default)s)")
    add("--times", type=whole_number(1), default=1, help="copies of each annotation of `self_teacher`")
    add("--out", type=Path, default=Path("runs/tables"), metavar="DIR", help="(%(default)s)")
    add("--log", type=Path, metavar="FILE", help="(DIR/tables.jsonl)")
    add("--no-run", action="store_true", help="print what the log has")
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
    bench = Bench(args)
    own_test = f"{templates(bench, args, TEST_SEED, '--train', 1, '--valid', 1)}/test.jsonl"
    args.eval = {name: file or own_test for name, file in args.eval or [("templates", "")]}
    plan = Plan(bench, args, args.seeds[0])
    labels = [row.label for name in args.tables for row in TABLES[name](plan)]
    for word in (*args.rows, args.against or ""):
        if not any(label.startswith(word) for label in labels):
            raise UserError(f"{word}: no row's label begins so; there are: {'; '.join(labels)}", 2)
    for name in args.tables:
        show(bench, args, TABLES[name])


if __name__ == "__main__":
    run_script(main)
