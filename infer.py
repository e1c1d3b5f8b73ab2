"""Solve problems with trained students: python infer.py (a prompt), --problem "..." (one), --eval FILE (all, in batches).

Read it in this order: the calculator; the procedures, each of which solves ONE problem and reads like the paper's figure;
the engine, which runs many of them at once; the students' folders; evaluation; the prompt.
"""
import json
import math
import random
import re
import sys
import time
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import MARK, Parser, Tokenizer, UserError, guide, line, read_problems, run
from model import GPT, KVCache, Linear


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

# Each problem has a slot, and in the KV cache of each student the row of that number. At any moment a slot's procedure waits
# for one of the students, who has some tokens of the slot's sequence yet to read: the one that it has just written, a
# calculator's result with it, a question, the whole problem. Those of a student's slots with about equally much to read share
# a forward, which reads all of that and gives each one token more. What a slot's text is depends on no other slot.

MAX_LINE = 200         # tokens that a student may write in one go
PREFILL_TOKENS = 4096  # tokens of one forward that reads prompts, padding included


class Student:
    """A model, its tokenizer, and a KV cache with a row for each slot.

    A slot's sequence begins with `prompt[slot]`. The cache holds its first `length[slot]` tokens; those of `pending[slot]`
    are to be read next. `guidance` is what it was trained to be told with a problem (see data.guide).
    """

    def __init__(self, model, tokenizer, slots, guidance=None):
        self.model, self.tokenizer, self.guidance = model.eval(), tokenizer, guidance
        self.device = model.wte.weight.device
        self.cache = KVCache(model.config, slots, self.device, model.wte.weight.dtype)
        self.pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.end)]  # the bytes of each token
        self.prompt, self.length, self.pending = [[] for _ in range(slots)], [0] * slots, [[] for _ in range(slots)]
        self.forwards, self.written, self.read_tokens, self.all_tokens = 0, 0, 0, 0  # all_tokens: with padding and idle rows

    def begin(self, slot, problem):
        """Start a slot's sequence with a problem; if the row holds that very prompt, only its last token is read again."""
        prompt = self.tokenizer.encode(line(problem["problem"]))
        if self.guidance:
            prompt += self.tokenizer.encode(line(guide(problem, self.guidance)))
        kept = len(prompt) - 1 if prompt == self.prompt[slot] and self.length[slot] >= len(prompt) else 0
        self.prompt[slot], self.length[slot], self.pending[slot] = prompt, kept, prompt[kept:]

    def feed(self, slot, segment):
        """Append a segment (text) to a slot's sequence."""
        self.pending[slot] += self.tokenizer.encode(segment)

    def overflow(self, slot):
        """Why the pending tokens do not fit into the block, in words; None if they do."""
        block_size = self.model.config.block_size
        if len(self.prompt[slot]) > block_size:
            return f"cannot read the problem: {len(self.prompt[slot])} tokens, its block has {block_size}"
        if self.length[slot] + len(self.pending[slot]) > block_size:
            return f"filled its block of {block_size} tokens"
        return None

    def fork(self, slot):
        """Copy the prompt from a row that has read the same one, if there is one, instead of reading it once more."""
        prompt = self.prompt[slot]
        for other, length in enumerate(self.length):
            if length >= len(prompt) and self.prompt[other] == prompt:
                self.length[slot] = len(prompt) - 1  # the last token is read, for the logits behind it
                self.cache.fork(other, slot, len(prompt) - 1)
                del self.pending[slot][:len(prompt) - 1]
                return

    @torch.inference_mode()
    def read(self, slots):
        """Read what is pending in some of these slots, in one forward.

        Left for later are those beyond PREFILL_TOKENS, and those whose prompt another is just reading: they will copy it.
        Returns the slots that had their turn, and the logits behind their last token (number of slots, vocab_size).
        """
        group, T, prompts = [], 0, []
        for slot in sorted(slots, key=lambda slot: len(self.pending[slot])):
            if not self.length[slot]:
                self.fork(slot)
            if not self.length[slot] and self.prompt[slot] in prompts:
                continue
            if group and max(T, len(self.pending[slot])) * (len(group) + 1) > PREFILL_TOKENS:
                break
            group.append(slot)
            T = max(T, len(self.pending[slot]))
            prompts += [] if self.length[slot] else [self.prompt[slot]]
        # The rows from the first to the last of the group take part if most of them are in it: a view of the cache is
        # cheaper than a copy. What an idle row leaves behind lies beyond its end, where its next tokens overwrite it.
        group.sort()
        rows = range(group[0], group[-1] + 1)
        view = len(rows) <= 2 * len(group)
        rows = rows if view else group
        feed = {slot: self.pending[slot] for slot in group}
        ids = [feed.get(row, []) + [0] * (T - len(feed.get(row, []))) for row in rows]  # (B, T)
        last = [i * T + len(feed[row]) - 1 for i, row in enumerate(rows) if row in feed]  # (len(group),)
        start = [self.length[row] for row in rows]  # (B,)
        upto = max(self.length[slot] + len(feed[slot]) for slot in group)
        ids, last, start, some = (torch.tensor(x, device=self.device, dtype=torch.long) for x in (ids, last, start, group))
        self.cache.place(start, T, upto, slice(rows.start, rows.stop) if view else some)
        logits = self.model(ids, last, self.cache)
        self.forwards += 1
        self.written += len(group)
        self.read_tokens += sum(map(len, feed.values()))
        self.all_tokens += ids.numel()
        for slot in group:
            self.length[slot] += len(feed[slot])
            self.pending[slot] = []
        return group, logits


class Sampling(NamedTuple):
    """How tokens are drawn. Each dialogue draws by random numbers of its own, which follow from `seed`, the problem's text
    and the sample's number alone: so its text depends neither on the slots nor on the problems beside it, but for rounding."""
    temperature: float = 1.0
    top_k: int = 0      # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # draw from the fewest tokens, the most likely first, that have this probability together
    seed: int = 0


def choose(logits, sampling=None, at=None):
    """The next token of each row, (B,) int64, from logits (B, vocab_size): the most likely one.

    With `sampling` the one that is found at the height at[i], a list of B numbers from 0 to 1, when the probabilities of
    the tokens that may be drawn are stacked upon each other, the most likely one first.
    """
    if sampling is None:
        return logits.argmax(dim=-1)
    p, tokens = (logits.float() / sampling.temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        p[:, sampling.top_k:] = 0
        p /= p.sum(dim=-1, keepdim=True)
    p[p.cumsum(dim=-1) - p >= sampling.top_p] = 0
    height = p.cumsum(dim=-1)
    at = torch.tensor(at, device=p.device, dtype=p.dtype)[:, None] * height[:, -1:]
    drawn = torch.searchsorted(height, at, right=True).minimum((p > 0).sum(dim=-1, keepdim=True) - 1)  # (B, 1)
    return tokens.gather(1, drawn)[:, 0]


class Dialogue:
    """A problem in its slot: what the procedure wants written (`want`, None at its end), and the line as it stands (`text`,
    bytes; `stop`: None or why it ends here).

    `record` is what comes out of it: {"steps": [{"question", "solution"}, ...], "answer": str or None, "unfinished": None
    or why there is no answer}.
    """

    def __init__(self, slot, index, problem, procedure, students, draw):
        self.slot, self.index, self.students, self.draw = slot, index, students, draw
        self.record = {"steps": [], "answer": None, "unfinished": None}
        self.procedure = procedure(problem, self.record)
        for student in students.values():
            student.begin(slot, problem)
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
        self.student = self.students[self.want.role]
        for segment in self.want.feed:
            self.student.feed(self.slot, segment)
        self.stop = self.student.overflow(self.slot)

    def take(self, token, calculator):
        """Add a token to the line, and the calculator's result where it is due; find out whether the line ends here."""
        if token == self.student.tokenizer.end:
            self.stop = "end"
            return
        self.student.pending[self.slot].append(token)
        self.tokens += 1
        piece, newline, _ = self.student.pieces[token].partition(b"\n")
        self.text += piece
        if newline:
            self.stop = "newline"
            return
        if calculator and piece.endswith(b"=") and (result := calculator_result(self.text)):
            self.student.feed(self.slot, result)
            self.text += result.encode()
        self.stop = f"wrote more than {MAX_LINE} tokens on a line" if self.tokens == MAX_LINE else self.student.overflow(self.slot)


def next_group(live, turn):
    """Which forward is next, (student, slots): of the groups that wait for the same student with about equally much to read
    (up to twice as much), the one whose members have waited longest, all taken together.

    So a forward has many rows, few of them padded, and nobody waits forever. live: {slot: Dialogue}.
    """
    groups = defaultdict(list)
    for slot, dialogue in live.items():
        groups[dialogue.want.role, (len(dialogue.student.pending[slot]) - 1).bit_length()].append(slot)
    slots = max(groups.values(), key=lambda slots: sum(turn - live[slot].since for slot in slots))
    return live[slots[0]].student, slots


def solve(problems, procedure, students, calculator=True, watch=None, sampling=None, samples=1):
    """Run `procedure` for every problem, as many at a time as there are slots.

    problems: an iterable of dicts, taken from as slots become free. students: {role: Student}, all with the same number of
    slots. sampling: a Sampling, or None for the most likely tokens; `samples` dialogues of each problem, which read the
    problem once. Yields (index of the problem, record of its Dialogue) as each ends; of several samples each record has its
    number, "sample", from 0. watch(kind, text, stop), if given, sees the line as it stands after every token: text in
    bytes, stop None or why the line ends here.
    """
    waiting = ((index, problem, k) for index, problem in enumerate(problems) for k in range(samples))
    live, turn = {}, 0  # {slot: Dialogue}; forwards so far

    def begin(slot):
        for index, problem, k in waiting:
            draw = random.Random(f"{sampling.seed} {k} {problem['problem']}").random if sampling else None
            dialogue = Dialogue(slot, index, problem, procedure, students, draw)
            dialogue.record |= {"sample": k} if samples > 1 else {}
            return [dialogue]
        return []

    touched = [dialogue for slot in range(len(next(iter(students.values())).length)) for dialogue in begin(slot)]
    while touched:  # the dialogues that have just begun or written a token
        for dialogue in touched:
            while dialogue.want and dialogue.stop:
                if watch:
                    watch(dialogue.want.kind, dialogue.text, dialogue.stop)
                dialogue.go_on((dialogue.text.decode("utf-8", "replace").strip(), dialogue.stop))
            if dialogue.want:
                dialogue.since = turn
                live[dialogue.slot] = dialogue
            else:
                live.pop(dialogue.slot, None)
                yield dialogue.index, dialogue.record
                touched += begin(dialogue.slot)
        touched = []
        if live:
            turn += 1
            student, slots = next_group(live, turn)
            slots, logits = student.read(slots)
            touched = [live[slot] for slot in slots]
            tokens = choose(logits, sampling, sampling and [dialogue.draw() for dialogue in touched])
            for dialogue, token in zip(touched, tokens.tolist()):
                dialogue.take(token, calculator)
                if watch and not dialogue.stop:
                    watch(dialogue.want.kind, dialogue.text, None)


# ---- the students' folders ---------------------------------------------------------------------------------------------

def open_student(folder, role, slots, device="cpu", dtype=torch.float32):
    """Open the student of a role. Raises UserError, one line, if there is none or if it learned something else."""
    about = folder / "student.json"
    if not about.exists():
        where = "" if folder == Path("runs", role) else f" --out {folder}"
        raise UserError(f"{folder}: no student here yet; make one with: python train.py --role {role}{where}")
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
        learned, guidance = found["role"], found.get("guidance")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{about}: field 'role' is missing or broken")
    if learned != role:
        raise UserError(f"{folder}: this student learned the role '{learned}', here it takes one of the role '{role}'")
    try:
        model, tokenizer = GPT.open(folder), Tokenizer.open(folder)
    except ValueError as e:
        raise UserError(e)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{folder}: vocab.json has {tokenizer.vocab_size} tokens, config.json says {model.config.vocab_size}")
    return Student(packed(model.to(device, dtype)), tokenizer, slots, guidance)


LARGE = 1 << 18  # elements of a matrix


def packed(model):
    """Lay the large matrices of a float32 model out for the CPU, as oneDNN reads them fastest; returns the model, no longer
    to be trained. F.linear lays a matrix out anew each time, which for some rows takes longer than the product itself.
    Small ones stay: they are in the processor's cache anyway, and oneDNN prepares itself for each new number of rows."""
    weight = model.wte.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return model

    def product(weight, bias=None):
        """x -> x @ weight.T + bias, of a weight (n_out, n_in)."""
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        return lambda x: torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")

    for module in model.modules():
        if isinstance(module, Linear) and module.weight.numel() >= LARGE:
            module.forward, module.weight = product(module.weight.t(), module.bias), None
    if weight.numel() >= LARGE:
        model.head = product(weight)
    return model


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
