"""Solve problems with trained students: python infer.py (a prompt), --problem "..." (one), --eval FILE (all, in batches).

Read it in this order: the calculator; the procedures, each of which solves ONE problem and reads like the paper's figure;
the engine, which runs many of them at once; the students' folders; evaluation; the prompt.
"""
import json
import math
import re
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import MARK, Parser, Tokenizer, UserError, line, read_problems, run
from model import GPT, KVCache


# ---- the calculator ----------------------------------------------------------------------------------------------------

LONGEST = 100  # characters of an expression
TOKEN = re.compile(r"\s*(?:(\d[\d,]*\.?\d*|\.\d+)(%?)|(//|[-+*/()]))", re.ASCII)


def calculate(expression):
    """The value of an expression of + - * / // ( ), decimals, percent and thousands commas, written as GSM8K writes it.

    Computed in exact fractions; whole numbers and decimals of up to four places are written out ("351", "0.125"), others
    rounded to two ("33.33"). None if the text is no such expression, divides by zero or is longer than 100 characters.
    """
    expression = expression.replace("$", "").strip()
    if len(expression) > LONGEST:
        return None
    tokens, at = [], 0  # numbers as Fraction, signs as str
    while at < len(expression):
        match = TOKEN.match(expression, at)
        if not match:
            return None
        number, percent, sign = match.groups()
        tokens.append(sign or Fraction(number.replace(",", "")) / (100 if percent else 1))
        at = match.end()
    tokens.append(None)
    try:
        value = _sum(tokens)
    except (ZeroDivisionError, ValueError):
        return None
    return _written(value) if tokens == [None] else None


def _sum(tokens):
    """product (+|- product)*: taken from the front of `tokens`; returns its value."""
    value = _product(tokens)
    while tokens[0] in ("+", "-"):
        value = value + _product(tokens) if tokens.pop(0) == "+" else value - _product(tokens)
    return value


def _product(tokens):
    """factor (*|/|// factor)*"""
    value = _factor(tokens)
    while tokens[0] in ("*", "/", "//"):
        sign, factor = tokens.pop(0), _factor(tokens)
        value = value * factor if sign == "*" else value / factor if sign == "/" else Fraction(value // factor)
    return value


def _factor(tokens):
    """number | + factor | - factor | ( sum ); raises ValueError for anything else."""
    token = tokens.pop(0)
    if isinstance(token, Fraction):
        return token
    if token in ("+", "-"):
        return _factor(tokens) if token == "+" else -_factor(tokens)
    if token == "(":
        value = _sum(tokens)
        if tokens.pop(0) == ")":
            return value
    raise ValueError("no expression")


def _written(value):
    """A Fraction in decimals: exact where four places suffice, else rounded to two."""
    places = 4 if (value * 10 ** 4).denominator == 1 else 2
    whole, decimals = divmod(abs(round(value * 10 ** places)), 10 ** places)
    decimals = f"{decimals:0{places}d}".rstrip("0")
    sign = "-" if value < 0 and (whole or decimals) else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def calculator_result(text):
    """What the calculator adds to a line (bytes) that ends in "<<...=": the result and ">>"; None where it has no turn."""
    _, opened, expression = text.rpartition(b"<<")
    if not opened or not expression.endswith(b"="):
        return None
    result = calculate(expression[:-1].decode("utf-8", "replace"))
    return result and result + ">>"


# ---- the procedures ----------------------------------------------------------------------------------------------------

# A procedure is a generator for one problem. Every student has read the problem when it is first spoken to. The procedure
# yields what is to be written next, is sent what was written, and fills in the dialogue: its steps and the answer.

MAX_STEPS = 16
MAX_REPEATS = 5  # of one question: GSM8K's own teachers repeat one in 18 % of the problems, up to five times


class Write(NamedTuple):
    """A procedure's wish: feed these segments to a student, then let it write until a line's end or <|endoftext|>.

    The procedure is sent (text, stop): what was written, stripped; and "newline", "end", or in words why it broke off.
    """
    role: str
    kind: str  # "question", "solution" or "answer": what is expected
    feed: tuple = ()


class Unfinished(Exception):
    """A dialogue that comes to no answer: which student did what."""

    def __init__(self, role, what):
        super().__init__(f"the {role}{'' if role in ('decomposer', 'solver') else ' student'} {what}")


def socratic(problem, dialogue):
    """The paper's procedure: the decomposer asks all sub-questions, then the solver answers them one by one."""
    while (yield from ask("decomposer", dialogue)):
        pass
    yield from answer_each(dialogue)


def given(problem, dialogue):
    """The file's own sub-questions: the solver alone is measured."""
    dialogue["steps"] = [{"question": step["question"]} for step in problem["steps"]]
    yield from answer_each(dialogue)


def stepwise(problem, dialogue):
    """The decomposer asks each sub-question after it has seen the solution of the one before."""
    seen = ()
    while step := (yield from ask("stepwise", dialogue, *seen)):
        step["solution"] = yield from write("solver", "solution", line(step["question"]))
        seen = [line(step["solution"])]
    dialogue["answer"] = yield from write("solver", "answer", MARK)


def unified(problem, dialogue):
    """One student writes sub-questions and solutions in turn, then the answer."""
    yield from think_aloud("unified", ("question", "solution"), dialogue)


def cot(problem, dialogue):
    """One student writes the solutions, then the answer: a chain of thought."""
    yield from think_aloud("cot", ("solution",), dialogue)


def answer(problem, dialogue):
    """One student says the answer at once."""
    dialogue["answer"] = yield from write("answer", "answer", MARK)


# name: the procedure, and the students that it needs, by role
PROCEDURES = {"socratic": (socratic, ("solver", "decomposer")), "stepwise": (stepwise, ("solver", "stepwise")),
              "given": (given, ("solver",)), "unified": (unified, ("unified",)), "cot": (cot, ("cot",)),
              "answer": (answer, ("answer",))}


def ask(role, dialogue, *feed):
    """Let a decomposer ask its next sub-question; returns the new step of the dialogue, None if no question is left."""
    text, stop = yield Write(role, "question", feed)
    if stop == "end" and not text and dialogue["steps"]:
        return None
    return add_step(role, dialogue, question=whole(role, "question", text, stop))


def answer_each(dialogue):
    """The solver answers each sub-question with all earlier steps before its eyes, then says the answer."""
    for step in dialogue["steps"]:
        step["solution"] = yield from write("solver", "solution", line(step["question"]))
    dialogue["answer"] = yield from write("solver", "answer", MARK)


def think_aloud(role, kinds, dialogue):
    """One student writes step after step and, when it thinks it is time, the mark and the answer."""
    while True:
        step = {}
        for kind in kinds:
            text, stop = yield Write(role, kind)
            if not step and text.startswith(MARK):
                dialogue["answer"] = whole(role, "answer", text.removeprefix(MARK).strip(), stop)
                return
            step[kind] = whole(role, kind, text, stop)
        add_step(role, dialogue, **step)


def write(role, kind, *feed):
    """Feed segments to a student and let it write a solution or the answer; returns that."""
    text, stop = yield Write(role, kind, feed)
    return whole(role, kind, text, stop)


def whole(role, kind, text, stop):
    """The text that a student wrote, if it came to its proper end; raises Unfinished if not."""
    if stop not in ("newline", "end"):
        raise Unfinished(role, stop)
    if not text:
        raise Unfinished(role, f"wrote no {kind}")
    if stop != ("end" if kind == "answer" else "newline"):
        raise Unfinished(role, f"did not end its {kind} properly")
    return text


def add_step(role, dialogue, **step):
    """Append a step to the dialogue and return it; raises Unfinished for a student that runs on or repeats itself."""
    if len(dialogue["steps"]) == MAX_STEPS:
        raise Unfinished(role, f"went on after {MAX_STEPS} steps")
    if "question" in step and [earlier["question"] for earlier in dialogue["steps"]].count(step["question"]) == MAX_REPEATS:
        raise Unfinished(role, "asked the same again and again")
    dialogue["steps"].append(step)
    return step


# ---- the engine --------------------------------------------------------------------------------------------------------

MAX_LINE = 200         # tokens that a student may write in one go
PREFILL_TOKENS = 4096  # tokens of one forward that reads prompts, padding included


class Student:
    """A model, its tokenizer, and a KV cache with a row for each slot.

    The cache holds the first `length[slot]` tokens of a slot's sequence; those of `pending[slot]` are to be read next.
    `written` counts the tokens that the student has written in all.
    """

    def __init__(self, model, tokenizer, slots):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.device = model.wte.weight.device
        self.cache = KVCache(model.config, slots, self.device, model.wte.weight.dtype)
        self.pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.end)]  # the bytes of each token
        self.length, self.pending = [0] * slots, [[] for _ in range(slots)]
        self.written = 0

    def clear(self, slot):
        """Make a slot ready for another problem."""
        self.length[slot], self.pending[slot] = 0, []

    def feed(self, slot, segment):
        """Append a segment (text) to a slot's sequence."""
        self.pending[slot] += self.tokenizer.encode(segment)

    def overflow(self, slot):
        """Why the pending tokens do not fit into the block, in words; None if they do."""
        block_size, length, pending = self.model.config.block_size, self.length[slot], len(self.pending[slot])
        if length + pending <= block_size:
            return None
        return f"filled its block of {block_size} tokens" if length else \
            f"cannot read the problem: {pending} tokens, its block has {block_size}"

    def step(self, slots):
        """Read the pending tokens of these slots and write one token more in each; returns {slot: token id}."""
        by_length = sorted(slots, key=lambda slot: len(self.pending[slot]))
        chosen = {}
        while by_length:  # one forward for rows that read about equally much: mostly one token, or a prompt or a question
            longest = len(self.pending[by_length[-1]])
            group = [by_length.pop()]
            while by_length and 2 * len(self.pending[by_length[-1]]) > longest and longest * len(group) < PREFILL_TOKENS:
                group.append(by_length.pop())
            chosen |= zip(group, self._forward(group, longest))
        self.written += len(chosen)
        return chosen

    @torch.inference_mode()
    def _forward(self, group, T):
        """Read the pending tokens, at most T a row, of the slots in `group`; returns their next tokens, a list of int."""
        # Where most rows take part, let all: a view of the whole cache is cheaper than a copy of a part. What an idle row
        # leaves behind lies beyond its end, where its next tokens overwrite it.
        slots = len(self.length)
        rows = range(slots) if 2 * len(group) > slots else group
        feed = {slot: self.pending[slot] for slot in group}
        ids = [feed.get(row, []) + [0] * (T - len(feed.get(row, []))) for row in rows]  # (B, T)
        last = [i * T + max(len(feed.get(row, [])), 1) - 1 for i, row in enumerate(rows)]  # (B,)
        start = [self.length[row] for row in rows]  # (B,)
        ids, last, start, some = (torch.tensor(numbers, device=self.device) for numbers in (ids, last, start, group))
        upto = max(self.length[slot] + len(feed[slot]) for slot in group)
        self.cache.place(start, T, upto, some if rows is group else None)
        chosen = choose(self.model(ids, last, self.cache)).tolist()
        for slot in group:
            self.length[slot] += len(feed[slot])
            self.pending[slot] = []
        return chosen if rows is group else [chosen[slot] for slot in group]


def choose(logits):
    """The next token of each row, (B,) int64, from logits (B, vocab_size): the most likely one."""
    return logits.argmax(dim=-1)


class Dialogue:
    """A problem in its slot: what the procedure wants written (`want`, None at its end), and the line as it stands.

    `record` is what comes out of it: {"steps": [{"question", "solution"}, ...], "answer": str or None, "unfinished": None
    or why there is no answer}.
    """

    def __init__(self, slot, index, problem, procedure, students):
        self.slot, self.index, self.students = slot, index, students
        self.record = {"steps": [], "answer": None, "unfinished": None}
        self.procedure = procedure(problem, self.record)
        for student in students.values():
            student.clear(slot)
            student.feed(slot, line(problem["problem"]))
        self.go_on(None)

    def go_on(self, reply):
        """Hand the procedure (text, stop), None at the start, and feed what it wants read to the student who writes next."""
        self.want, self.text, self.tokens = None, b"", 0
        try:
            self.want = self.procedure.send(reply)
        except StopIteration:
            return
        except Unfinished as e:
            self.record["unfinished"] = str(e)
            return
        for segment in self.want.feed:
            self.students[self.want.role].feed(self.slot, segment)

    def take(self, token, calculator):
        """Add a token to the line, and the calculator's result where it is due; returns why the line ends here, or None."""
        student = self.students[self.want.role]
        if token == student.tokenizer.end:
            return "end"
        student.pending[self.slot].append(token)
        self.tokens += 1
        piece, newline, _ = student.pieces[token].partition(b"\n")
        self.text += piece
        if newline:
            return "newline"
        if calculator and piece.endswith(b"=") and (result := calculator_result(self.text)):
            student.feed(self.slot, result)
            self.text += result.encode()
        return f"wrote more than {MAX_LINE} tokens on a line" if self.tokens == MAX_LINE else None


def solve(problems, procedure, students, calculator=True, watch=None):
    """Run `procedure` for every problem, as many at a time as there are slots.

    students: {role: Student}, all with the same number of slots. Yields (index of the problem, record of its Dialogue) as
    each ends. watch(kind, text, stop), if given, sees the line as it stands after every token: text in bytes, stop None
    or why the line ends here.
    """
    waiting = enumerate(problems)
    free = list(range(len(next(iter(students.values())).length)))
    live = []
    while True:
        while free and (taken := next(waiting, None)):
            live.append(Dialogue(free.pop(), *taken, procedure, students))
        if not live:
            return
        for role, student in students.items():
            writing = {dialogue.slot: dialogue for dialogue in live if dialogue.want.role == role}
            stops = {slot: why for slot in writing if (why := student.overflow(slot))}
            for slot, token in student.step(writing.keys() - stops).items():
                stops[slot] = writing[slot].take(token, calculator)
            for slot, stop in stops.items():
                dialogue = writing[slot]
                if watch:
                    watch(dialogue.want.kind, dialogue.text, stop)
                if stop:
                    dialogue.go_on((dialogue.text.decode("utf-8", "replace").strip(), stop))
                    if dialogue.want is None:
                        live.remove(dialogue)
                        free.append(slot)
                        yield dialogue.index, dialogue.record


# ---- the students' folders ---------------------------------------------------------------------------------------------

def open_student(folder, role, slots, device="cpu", dtype=torch.float32):
    """Open the student of a role. Raises UserError, one line, if there is none or if it learned something else."""
    about = folder / "student.json"
    if not about.exists():
        where = "" if folder == Path("runs", role) else f" --out {folder}"
        raise UserError(f"{folder}: no student here yet; make one with: python train.py --role {role}{where}")
    try:
        learned = json.loads(about.read_text(encoding="utf-8"))["role"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{about}: field 'role' is missing or broken")
    if learned != role:
        raise UserError(f"{folder}: this student learned the role '{learned}', here it takes one of the role '{role}'")
    try:
        model = GPT.open(folder)
    except ValueError as e:
        raise UserError(e)
    tokenizer = Tokenizer.open(folder, model.config.vocab_size)
    return Student(model.to(device, dtype), tokenizer, slots)


# ---- evaluation --------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"-?(\d{1,1000}\.?\d{0,1000}|\.\d{1,1000})", re.ASCII)


def same_answer(a, b):
    """Whether two answers agree: as numbers where both are ("70,000" = "70000.0" = "$70000"), else as words."""
    a, b = (text.strip().rstrip(".").casefold() for text in (a, b))
    numbers = [NUMBER.fullmatch(text.replace(",", "").replace("$", "").removesuffix("%")) for text in (a, b)]
    return Fraction(numbers[0][0]) == Fraction(numbers[1][0]) if all(numbers) else a == b


def wilson(right, n, z=1.959964):
    """The Wilson 95 % interval of a share right / n, two shares (Wilson 1927)."""
    p, centre, scale = right / n, right / n + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def evaluate(problems, procedure, students, calculator, out=None):
    """Solve all problems, append every dialogue to the file `out` (binary, unbuffered) as it ends, print the figures."""
    start, right, records = time.perf_counter(), 0, [None] * len(problems)
    with tqdm(total=len(problems), unit=" problems", disable=None, dynamic_ncols=True) as bar:
        for done, (index, record) in enumerate(solve(problems, procedure, students, calculator), 1):
            problem, records[index] = problems[index], record
            record["right"] = record["answer"] is not None and same_answer(record["answer"], problem["answer"])
            if out:
                row = {"id": problem.get("id", index + 1), "problem": problem["problem"], **record, "teacher": problem["answer"]}
                append(out, row)
            right += record["right"]
            bar.set_postfix_str(f"accuracy {100 * right / done:.1f} %", refresh=False)
            bar.update()
    seconds = time.perf_counter() - start

    for n in sorted({len(problem["steps"]) for problem in problems}):
        of_n = [record["right"] for problem, record in zip(problems, records) if len(problem["steps"]) == n]
        print(f"{n} step{'s' * (n > 1)}: {share(sum(of_n), len(of_n))}")
    if procedure in (socratic, stepwise, unified):
        asked, teachers = ([[" ".join(step["question"].split()) for step in one["steps"]] for one in side]
                           for side in (records, problems))
        exact = sum(a == b for a, b in zip(asked, teachers))
        in_any_order = sum(sorted(a) == sorted(b) for a, b in zip(asked, teachers))
        print(f"questions exactly the teacher's: {share(exact, len(problems))}, in any order: {share(in_any_order, len(problems))}")
    for why, count in Counter(record["unfinished"] for record in records if record["unfinished"]).most_common():
        print(f"unfinished: {count} ({why})")
    written = sum(student.written for student in students.values())
    print(f"{seconds:.1f} s, {len(problems) / seconds:.1f} problems/s, {written / seconds:,.0f} tokens/s written")
    low, high = wilson(right, len(problems))
    print(f"accuracy {share(right, len(problems))}, 95 % interval {100 * low:.1f}-{100 * high:.1f}")


def append(out, row):
    """Append a dict to a file as a line of JSON. Raises UserError that names the file, for example on a full disk."""
    try:
        out.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
    except OSError as e:
        raise UserError(f"{out.name}: {e.strerror}")


def share(part, n):
    """A share in words: 95.3 % (953/1000)."""
    return f"{100 * part / n:.1f} % ({part}/{n})"


# ---- one problem, as it is written -------------------------------------------------------------------------------------

def show(problem, procedure, students, calculator):
    """Solve one problem (text) and print the dialogue as it is written; returns whether it came to an answer."""
    lines, shown = Counter(), 0  # lines of each kind so far; characters of the present one that are on the screen

    def watch(kind, text, stop):
        nonlocal shown
        text = text.decode("utf-8", "ignore").lstrip()  # the last character may not be whole yet
        text = re.sub(r"[\x00-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)  # nothing that would steer a terminal
        if kind == "answer" or text[:len(MARK)] == MARK[:len(text)]:
            return  # nothing yet, or the answer, which is printed at the end
        if not shown:
            lines[kind] += 1
            print(f"{kind.capitalize()} {lines[kind]}: ", end="")
        print(text[shown:], end="\n" if stop else "", flush=True)
        shown = 0 if stop else len(text)

    (_, record), = solve([{"problem": problem}], procedure, students, calculator, watch)
    if record["answer"] is None:
        print(f"No answer: {record['unfinished']}", flush=True)
    else:
        print(f"Answer: {record['answer']}", flush=True)
    return record["answer"] is not None


def prompt(procedure, students, calculator):
    """Solve the problems that are typed, or come through a pipe, one a line."""
    typed = sys.stdin.isatty()
    sys.stdin.reconfigure(errors="replace")
    if typed:
        with_history()
        print("Type a problem on one line and press Enter; Ctrl-D leaves.")
    while True:
        try:
            problem = input("\nProblem: " if typed else "")
            if problem.strip():
                show(problem, procedure, students, calculator)
        except (EOFError, KeyboardInterrupt):
            if typed:
                print()
            return


def with_history():
    """Arrow keys and history at the prompt, where Python has readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        pass


# ---- the command -------------------------------------------------------------------------------------------------------

def parse_args(argv=None):
    """The flags of infer.py. Raises UserError (status 2) for flags that make no sense together."""
    p = Parser(description="Solve problems with trained students; without a flag, at a prompt.")
    p.add_argument("--problem", metavar="TEXT", help="solve this one and leave")
    p.add_argument("--eval", type=Path, metavar="FILE", help="solve all problems of a JSONL file and print the accuracy")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N problems of --eval")
    p.add_argument("--out", type=Path, metavar="FILE", help="write every dialogue of --eval there, as JSONL")
    p.add_argument("--procedure", choices=PROCEDURES, default="socratic", help="how a problem is solved (%(default)s)")
    p.add_argument("--decomposer", type=Path, metavar="DIR", help="(runs/decomposer; runs/stepwise for stepwise)")
    p.add_argument("--solver", type=Path, metavar="DIR", help="(runs/solver)")
    p.add_argument("--student", type=Path, metavar="DIR", help="the student of unified, cot or answer (runs/PROCEDURE)")
    p.add_argument("--no-calculator", action="store_true", help="let the students do the arithmetic")
    p.add_argument("--slots", type=int, default=64, help="problems of --eval that are solved at once (%(default)s)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    args = p.parse_args(argv)
    if args.slots < 1 or args.limit is not None and args.limit < 1:
        raise UserError("--slots and --limit must be at least 1", 2)
    if args.problem is not None and (args.eval or not args.problem.strip()):
        raise UserError("--problem takes a problem's text, and does not go with --eval", 2)
    for flag in ("limit", "out"):
        if getattr(args, flag) is not None and not args.eval:
            raise UserError(f"--{flag} goes with --eval FILE", 2)
    if args.procedure == "given" and not args.eval:
        raise UserError("--procedure given takes the sub-questions from a file: it goes with --eval FILE", 2)
    if args.out and args.out.is_file():
        raise UserError(f"--out {args.out}: this file exists; name another, or remove it", 2)
    try:
        args.device = torch.device(args.device)
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {args.device}: {str(e).splitlines()[0]}", 2)
    return args


def open_students(args, roles, slots):
    """The students that a procedure needs, {role: Student}. Raises UserError, status 2, for a flag that names another."""
    flags = {role: {"solver": "solver", "decomposer": "decomposer", "stepwise": "decomposer"}.get(role, "student")
             for role in roles}
    for flag in ("solver", "decomposer", "student"):
        if getattr(args, flag) and flag not in flags.values():
            raise UserError(f"--procedure {args.procedure} has no use for --{flag}", 2)
    return {role: open_student(getattr(args, flag) or Path("runs", role), role, slots, args.device, getattr(torch, args.dtype))
            for role, flag in flags.items()}


def main(argv=None):
    """Parse, open the students; then solve a file, one problem, or what comes at the prompt."""
    args = parse_args(argv)
    procedure, roles = PROCEDURES[args.procedure]
    problems = read_problems(args.eval)[:args.limit] if args.eval else []
    students = open_students(args, roles, slots=max(1, min(args.slots, len(problems))))
    calculator = not args.no_calculator
    if args.eval:
        out = open(args.out, "wb", buffering=0) if args.out else None
        evaluate(problems, procedure, students, calculator, out)
    elif args.problem:
        if not show(args.problem, procedure, students, calculator):
            sys.exit(1)
    else:
        prompt(procedure, students, calculator)


if __name__ == "__main__":
    run(main)
