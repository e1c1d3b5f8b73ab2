"""Solve problems with trained students: python infer.py (a prompt), --problem "..." (one), --eval FILE (all, in batches).

Read it in this order: the calculator; the procedures, each of which solves ONE problem and reads like the paper's figure;
the engine, which runs many of them at once; the students' folders; evaluation, its results file and its report; the prompt.
"""
import hashlib
import json
import math
import random
import re
import sys
import time
from collections import Counter, defaultdict
from fractions import Fraction
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import MARK, Parser, Tokenizer, UserError, find_device, jsonl, line, parse_rows, problem_prompt, read_problems, read_rows, run
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
    yield from decompose(problem, dialogue)
    yield from answer_each(dialogue)


def decompose(problem, dialogue):
    """The decomposer asks all sub-questions."""
    while (yield from ask("decomposer", dialogue)):
        pass


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
# calculator's result with it, a question, the whole problem. The slots that wait for a student share a forward, which reads
# that for each, much or little, and gives each one token more. What a slot's text is depends on no other slot.

MAX_LINE = 200         # tokens that a student may write in one go
PREFILL_TOKENS = 4096  # that a forward reads at most (but one slot's, if they are more): what its memory grows with


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
        self.forwards, self.taken, self.tokens, self.written = 0, 0, 0, 0

    def begin(self, slot, problem):
        """Start a slot's sequence with a problem; if the row holds that very prompt, only its last token is read again."""
        prompt = [token for part in problem_prompt(problem, self.guidance) for token in self.tokenizer.encode(part)]
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
        """Read what is pending in these slots, in one forward; the first has its turn for certain.

        Left for later are those that PREFILL_TOKENS leave no room for, and those whose prompt another is just reading: they
        will copy it.
        Returns the slots that had their turn, and the logits behind their last token (number of slots, vocab_size).
        """
        group, n, prompts = [], 0, []
        for slot in slots:
            if not self.length[slot]:
                self.fork(slot)
            if not self.length[slot] and self.prompt[slot] in prompts or group and n + len(self.pending[slot]) > PREFILL_TOKENS:
                continue
            group.append(slot)
            n += len(self.pending[slot])
            prompts += [] if self.length[slot] else [self.prompt[slot]]
        group.sort()  # neighbours in the cache stand together
        counts = [len(self.pending[slot]) for slot in group]
        self.cache.place(group, [self.length[slot] for slot in group], counts)
        ids, ends = [token for slot in group for token in self.pending[slot]], list(accumulate(counts))
        logits = self.model(torch.tensor([ids], device=self.device), torch.tensor(ends, device=self.device) - 1, self.cache)
        self.forwards += 1
        self.tokens += n
        self.written += len(group)
        for slot in group:
            self.length[slot] += len(self.pending[slot])
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
    """Which forward is next, (student, slots): of the student for whom the slots that wait have waited longest, all taken
    together, so that a forward has many rows. Who has waited longest stands first. live: {slot: Dialogue}."""
    groups = defaultdict(list)
    for slot, dialogue in live.items():
        groups[dialogue.want.role].append(slot)
    slots = max(groups.values(), key=lambda slots: sum(turn - live[slot].since for slot in slots))
    return live[slots[0]].student, sorted(slots, key=lambda slot: live[slot].since)


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
            draw = random.Random(f"{sampling.seed} {k} {problem['problem']}".encode("utf-8", "replace")).random if sampling else None
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
            student.taken += len(live)
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
        model = GPT.open(folder)
    except ValueError as e:
        raise UserError(e)
    tokenizer = Tokenizer.open(folder, model.config.vocab_size)
    try:
        return Student(packed(model.to(device, dtype)), tokenizer, slots, guidance)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise UserError(f"{folder}: no memory for {slots} problems at once; --slots takes fewer")


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
YES_NO = {"true": "yes", "false": "no"}


def same_answer(a, b):
    """Whether two answers agree: as numbers where both are ("70,000" = "70000.0" = "$70000"), else as words ("Yes." = "true")."""
    a, b = (text.strip().rstrip(".").casefold() for text in (a, b))
    numbers = [NUMBER.fullmatch(text.replace(",", "").replace("$", "").removesuffix("%")) for text in (a, b)]
    return Fraction(numbers[0][0]) == Fraction(numbers[1][0]) if all(numbers) else YES_NO.get(a, a) == YES_NO.get(b, b)


def solve_by_vote(problems, procedure, students, calculator=True, watch=None, sampling=None, samples=1):
    """As `solve`, but of several samples one record for each problem: that of `vote`."""
    ballots = defaultdict(list)
    for index, record in solve(problems, procedure, students, calculator, watch, sampling, samples):
        ballots[index].append(record)
        if len(ballots[index]) == samples:
            yield index, vote(ballots.pop(index)) if samples > 1 else record


def vote(records):
    """The record whose answer most of a problem's samples agree on, the earliest sample of those, with all answers as
    "votes", a list of str or None. Who came to no answer does not vote; between equals the earlier sample decides."""
    records = sorted(records, key=lambda record: record["sample"])
    answers = [record["answer"] for record in records]
    votes = [a is not None and sum(b is not None and same_answer(a, b) for b in answers) for a in answers]
    return records[votes.index(max(votes))] | {"votes": answers}


def wilson(right, n, z=1.959964):
    """The Wilson 95 % interval of a share right / n, two shares (Wilson 1927)."""
    p, centre, scale = right / n, right / n + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(only_a, only_b):
    """The exact two-sided p-value of McNemar's test: of the problems that one of two runs alone solved, each is as likely to
    be the one's as the other's (McNemar 1947)."""
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2 ** n)


def bleu(hypotheses, references):
    """BLEU-4 (Papineni et al. 2002) of a list of texts against one reference each, from 0 to 100, as sacrebleu computes it by
    default: mteval-v13a's words; where no n-gram of a length matches, half a match is counted, a quarter the second time, ..."""
    matches, totals, lengths = [0] * 4, [0] * 4, [0, 0]
    for pair in zip(hypotheses, references):
        hypothesis, reference = words = [bleu_words(text) for text in pair]
        lengths = [length + len(side) for length, side in zip(lengths, words)]
        for n in range(1, 5):
            ours, theirs = (Counter(zip(*(side[i:] for i in range(n)))) for side in words)
            matches[n - 1] += (ours & theirs).total()
            totals[n - 1] += ours.total()
    if not matches[0] or not all(totals):
        return 0.0
    unmatched = 0
    log_precision = 0.0
    for match, total in zip(matches, totals):
        unmatched += not match
        log_precision += math.log((match or 0.5 ** unmatched) / total) / 4
    return 100 * math.exp(min(0.0, 1 - lengths[1] / lengths[0]) + log_precision)


def bleu_words(text):
    """A text's words as mteval-v13a splits them: signs stand alone, but for full stops and commas within a number."""
    text = " " + text.replace("<skipped>", "").replace("-\n", "") + " "
    for escaped, sign in ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"):
        text = text.replace(escaped, sign)
    text = re.sub(r"([!-&(-+:-@\[-`{-~/])", r" \1 ", text.replace("\n", " "))
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", re.sub(r"([^0-9])([.,])", r"\1 \2 ", text))
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def share(part, n):
    """A share in words: 95.3 % (953/1000)."""
    return f"{100 * part / n:.1f} % ({part}/{n})"


def shares(problems, rows, of):
    """The right answers among the problems of each kind: {of(problem): (right, number)}, in order."""
    counts = defaultdict(lambda: [0, 0])
    for problem, row in zip(problems, rows):
        counts[of(problem)][0] += row["right"]
        counts[of(problem)][1] += 1
    return {kind: tuple(counts[kind]) for kind in sorted(counts)}


def figures(problems, rows, asks):
    """What an evaluation comes to, a list of lines. rows: the dialogues of `problems`; asks: whether students asked themselves."""
    lines = [f"{n} step{'s' * (n > 1)}: {share(*part)}" for n, part in shares(problems, rows, lambda p: len(p["steps"])).items()]
    sources = shares(problems, rows, lambda p: printable(str(p.get("source", "no source"))))
    lines += [f"{source}: {share(*part)}" for source, part in sources.items() if len(sources) > 1]
    if asks:
        asked, teachers = ([[" ".join(step["question"].split()) for step in one["steps"]] for one in side] for side in (rows, problems))
        n, pairs = len(rows), list(zip(asked, teachers))
        lines += [f"questions exactly the teacher's: {share(sum(a == b for a, b in pairs), n)}, in any order: "
                  f"{share(sum(sorted(a) == sorted(b) for a, b in pairs), n)}",
                  f"as many questions as the teacher's: {share(sum(len(a) == len(b) for a, b in pairs), n)}; "
                  f"BLEU {bleu(map(' '.join, asked), map(' '.join, teachers)):.1f}"]
    for why, count in Counter(row["unfinished"] for row in rows if row["unfinished"]).most_common():
        lines.append(f"unfinished: {count} ({why})")
    right = sum(row["right"] for row in rows)
    low, high = wilson(right, len(rows))
    return [*lines, f"accuracy {share(right, len(rows))}, 95 % interval {100 * low:.1f}-{100 * high:.1f}"]


def work(students, seconds, n):
    """What it took, a list of lines: `n` dialogues in `seconds`, and the forwards of each student."""
    written = sum(student.written for student in students.values())
    lines = [f"{seconds:.1f} s, {n / seconds:.1f} problems/s, {written / seconds:,.0f} tokens/s written"]
    for role, student in students.items():
        slots, cache = len(student.length), student.cache.k.nbytes + student.cache.v.nbytes
        forwards = max(1, student.forwards)
        lines.append(f"{role}: {student.forwards:,} forwards, {student.taken / forwards:.1f} of {slots} slots taken, "
                     f"{student.tokens / forwards:.1f} tokens read and {student.written / forwards:.1f} written in a forward; "
                     f"cache of at most {cache / slots / 2 ** 20:.1f} MiB a slot")
    return lines


def evaluate(problems, procedure, students, calculator, out=None, sampling=None, samples=1, done=(), report_to=None):
    """Solve all problems, append every dialogue to the file `out` (binary, unbuffered) as it ends, print the figures.

    done: {index: row}, the problems that `out` holds already. With several samples a problem's dialogue is the one that
    most agree with. report_to: the file of an HTML report.
    """
    rows = dict(done)
    # the longest first: rows beside each other are about equally long then, and no long one is left alone at the end
    todo = sorted((index for index in range(len(problems)) if index not in rows), key=lambda index: -len(problems[index]["problem"]))
    right, start = sum(row["right"] for row in rows.values()), time.perf_counter()
    with tqdm(total=len(problems), initial=len(rows), unit=" problems", disable=None, dynamic_ncols=True) as bar:
        for k, record in solve_by_vote([problems[index] for index in todo], procedure, students, calculator, None, sampling, samples):
            index, problem = todo[k], problems[todo[k]]
            record["right"] = record["answer"] is not None and same_answer(record["answer"], problem["answer"])
            rows[index] = {"row": index + 1, "id": problem.get("id", index + 1), "problem": problem["problem"], **record,
                           "teacher": problem["answer"]}
            if out:
                append(out, rows[index])
            right += record["right"]
            bar.set_postfix_str(f"accuracy {100 * right / len(rows):.1f} %", refresh=False)
            bar.update()
    took = work(students, time.perf_counter() - start, len(todo)) if todo else []
    rows = [rows[index] for index in range(len(problems))]
    told = [f"guided by the {student.guidance} of the file's own solutions" for student in students.values() if student.guidance]
    lines = told + figures(problems, rows, procedure in (socratic, stepwise, unified))
    print(*took, *lines, sep="\n")
    if report_to:
        report_to.write_text(report(problems, rows, took + lines), encoding="utf-8", errors="backslashreplace")


def append(out, row):
    """Append a dict to a file as a line of JSON. Raises UserError that names the file, for example on a full disk."""
    data = jsonl([row])
    try:
        while data:
            data = data[out.write(data):]
    except OSError as e:
        raise UserError(f"{out.name}: {e.strerror}")


RUN = b'{"run": '  # how a results file begins


def open_results(path, run):
    """Open a results file to append to it, and read what it holds: returns (file, {index: row}).

    Its first line says of which `run` (a dict) it is. A last line that was cut off is removed. Raises UserError, and leaves
    the file as it was, if it is of another run.
    """
    out = open(path, "ab+", buffering=0)
    if not path.is_file():  # /dev/stdout
        return out, {}
    out.seek(0)
    found = out.read()
    whole = found[:found.rfind(b"\n") + 1]
    if not found.startswith(RUN) and not RUN.startswith(found):
        raise UserError(f"--out {path}: this file holds something else; name another file, or remove it", 2)
    if whole:
        other, rows = results(parse_rows(whole, path), path)
        if differ := [key.replace("_", " ") for key in run if other.get(key) != run[key]]:
            raise UserError(f"--out {path}: holds another run's results (not the same {', '.join(differ)}); name another file, "
                            "or remove it", 2)
    out.truncate(len(whole))
    if not whole:
        append(out, {"run": run})
        return out, {}
    return out, {row["row"] - 1: row for row in rows}


def results(found, path):
    """The run (a dict) and the rows (a list of dicts) of a results file, of whose lines `found` yields (where, row). Raises
    UserError, one line that names the first that is no row of it."""
    found = list(found)
    if not found or not isinstance(found[0][1].get("run"), dict):
        raise UserError(f"{path}: no results file of --eval FILE --out FILE")
    for where, row in found[1:]:
        if not all(isinstance(row.get(field), kind) for field, kind in (("row", int), ("problem", str), ("right", bool))):
            raise UserError(f"{where}: not a line of --eval FILE --out FILE")
    return found[0][1]["run"], [row for _, row in found[1:]]


def read_results(path):
    """The rows of a results file, {(row number, problem): row}. Raises UserError, one line."""
    return {(row["row"], row["problem"]): row for row in results(read_rows(path), path)[1]}


def compare(path_a, path_b):
    """Print how two results files on the same problems differ, with McNemar's exact test."""
    a, b = read_results(path_a), read_results(path_b)
    if a.keys() != b.keys() or not a:
        raise UserError(f"--compare: {path_a} and {path_b} are not of the same problems ({len(a)} and {len(b)}, {len(a.keys() & b)} in both)")
    for path, rows in (path_a, a), (path_b, b):
        print(f"{path}: {share(sum(row['right'] for row in rows.values()), len(rows))}")
    both = Counter((a[key]["right"], b[key]["right"]) for key in a)
    only_a, only_b = both[True, False], both[False, True]
    print(f"both right: {both[True, True]}, only the first: {only_a}, only the second: {only_b}, neither: {both[False, False]}")
    print(f"McNemar's exact test: p = {mcnemar(only_a, only_b):.3g}")


def checksum(problems):
    """A checksum of problems, their steps and answers."""
    return hashlib.sha256(json.dumps(problems, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(folder):
    """A checksum of a student's files: weights, shape, vocabulary; not of how it came to be."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*") if path.suffix in (".json", ".safetensors") and path.name != "student.json"):
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


# ---- the report --------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Report</title>
<style>
body {{ font: 16px/1.45 system-ui, sans-serif; max-width: 70rem; margin: auto; padding: 1rem; color: #222; background: #fff }}
pre {{ white-space: pre-wrap; background: #f4f4f4; padding: .7rem }}
.bar {{ display: flex; align-items: center; gap: .6rem; margin: .2rem 0 }} .bar b {{ flex: 0 0 5rem; font-weight: normal }}
.bar i {{ height: 1rem; background: #2a7 }} .bar span {{ flex: 1; display: flex; background: #ddd }}
details {{ border-left: .3rem solid #2a7; margin: .5rem 0; padding: .2rem .7rem }} details.wrong {{ border-color: #c33 }}
summary {{ cursor: pointer; overflow-wrap: anywhere }} ol {{ padding-left: 1.4rem }} li {{ margin-bottom: .4rem }}
.sides {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; overflow-wrap: anywhere }} .first {{ background: #fdd }}
@media (max-width: 40rem) {{ .sides {{ grid-template-columns: 1fr; gap: 0 }} }}
#right:checked ~ .wrong, #wrong:checked ~ .right {{ display: none }}
</style>
<h1>{title}</h1>
<pre>{figures}</pre>
<h2>Right, by number of steps</h2>
{bars}
<h2>Dialogues</h2>
<p>Each beside the teacher's. In a wrong one the first step is marked whose result none of the teacher's steps has, or
else the first of the teacher's whose result is missing.</p>
<input type="radio" name="shown" id="all" checked><label for="all">all</label>
<input type="radio" name="shown" id="right"><label for="right">right</label>
<input type="radio" name="shown" id="wrong"><label for="wrong">wrong</label>
{dialogues}
</html>
"""


def result(step):
    """What a step comes to: the result of its last annotation, else its last number, else ""."""
    numbers = re.findall(r"=([^=<>]+)>>", step.get("solution", "")) or re.findall(r"-?\d[\d,]*\.?\d*", step.get("solution", ""))
    return numbers[-1] if numbers else ""


def first_missing(steps, others):
    """The index of the first of `steps` whose result none of `others` has, None if there is none."""
    return next((k for k, step in enumerate(steps) if not any(same_answer(result(step), result(other)) for other in others)), None)


def report(problems, rows, lines):
    """An HTML page that needs no other file: figures, bars, each dialogue beside the teacher's. Texts are shown as they are."""
    def side(name, steps, end, mark):
        text = "".join(f"<li{' class=first' * (k == mark)}>{' '.join(escape(step[part]) for part in ('question', 'solution') if part in step)}"
                       for k, step in enumerate(steps))
        return f"<div><h4>{name}</h4><ol>{text}</ol><p>{escape(end)}</div>"

    def dialogue(problem, row):
        mark = None if row["right"] else first_missing(row["steps"], problem["steps"])
        missing = None if row["right"] or mark is not None else first_missing(problem["steps"], row["steps"])
        end = f"No answer: {row['unfinished']}" if row["answer"] is None else f"Answer: {row['answer']}"
        if "votes" in row:
            end += f" (votes: {', '.join(answer or 'none' for answer in row['votes'])})"
        return (f"<details class={'right' if row['right'] else 'wrong'}><summary>{row['row']}. {escape(row['problem'])}</summary><div class=sides>"
                f"{side('Students', row['steps'], end, mark)}{side('Teacher', problem['steps'], 'Answer: ' + problem['answer'], missing)}</div></details>")

    bars = "\n".join(f"<div class=bar><b>{n} step{'s' * (n > 1)}</b><span><i style='width: {100 * right / of:.1f}%'></i></span>{share(right, of)}</div>"
                     for n, (right, of) in shares(problems, rows, lambda p: len(p["steps"])).items())
    return PAGE.format(title=escape(lines[-1]), figures=escape("\n".join(lines)), bars=bars,
                       dialogues="\n".join(map(dialogue, problems, rows)))


# ---- one problem, as it is written -------------------------------------------------------------------------------------

def show(problem, procedure, students, calculator, sampling=None, samples=1):
    """Solve one problem (a dict) and print the dialogue as it is written, or how its samples voted; returns whether it came
    to an answer."""
    lines, shown = Counter(), 0  # lines of each kind so far; characters of the present one that are on the screen
    underlined = "\033[4m{}\033[24m" if calculator and sys.stdout.isatty() else "{}"  # on a terminal, what the calculator wrote

    def watch(kind, text, stop):
        nonlocal shown
        text = printable(text.decode("utf-8", "ignore").lstrip())  # the last character may not be whole yet
        if kind == "answer" or text[:len(MARK)] == MARK[:len(text)]:
            return  # nothing yet, or the answer, which is printed at the end
        if not shown:
            lines[kind] += 1
            print(f"{kind.capitalize()} {lines[kind]}: ", end="")
        written, equals, result = text[shown:].partition("=")  # a student's token ends at the "=" that has a result behind it
        print(written + equals + (underlined.format(result) if result else ""), end="\n" if stop else "", flush=True)
        shown = 0 if stop else len(text)

    (_, record), = solve_by_vote([problem], procedure, students, calculator, watch if samples == 1 else None, sampling, samples)
    if samples > 1:
        for k, step in enumerate(record["steps"], 1):
            for kind, text in step.items():
                print(f"{kind.capitalize()} {k}: {printable(text)}")
        print("Votes: " + ", ".join(f"{printable(a or 'none')} ({n})" for a, n in Counter(record["votes"]).most_common()))
    if record["answer"] is None:
        print(f"No answer: {record['unfinished']}", flush=True)
    else:
        print(f"Answer: {printable(record['answer'])}", flush=True)
    return record["answer"] is not None


def printable(text):
    """A text without what would steer a terminal or is no character."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def prompt(procedure, students, calculator, sampling, samples, guide):
    """Solve the problems that are typed, or come through a pipe, one a line. After /questions, or always with the
    procedure `given`, the sub-questions of a problem are typed too, up to an empty line."""
    typed, own, problem = sys.stdin.isatty(), False, ""
    sys.stdin.reconfigure(errors="replace")

    def ask(what):
        return input(what if typed else "").strip()

    if typed:
        with_history()
        print("Type a problem on one line and press Enter; Ctrl-D leaves."
              + " /questions: the last one again, with sub-questions of yours." * ("solver" in students))
    while True:
        try:
            text = ask("\nProblem: ")
            own = text == "/questions"
            if own and (not problem or "solver" not in students):
                print("/questions: type a problem first" if "solver" in students else "/questions: this procedure has no solver")
                continue
            problem = problem if own else text
            if not problem:
                continue
            row = {"problem": problem} | ({"guide": guide} if guide else {})
            if own or procedure is given:
                row["steps"] = []
                while question := ask(f"Question {len(row['steps']) + 1}: "):
                    row["steps"].append({"question": question})
            show(row, given if "steps" in row else procedure, students, calculator, sampling, samples)
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


def answer_json(procedure, students, calculator, sampling, samples, guide):
    """Solve the problems that come on stdin, a JSON object a line with "problem" and what else the procedure needs; write
    each dialogue as a line of JSON as it ends, with the number of its "line". A line that is no problem is answered "error"."""
    for lines in arriving():
        problems = [problem for number, text in lines if (problem := json_problem(number, text, procedure, students, guide))]
        for index, record in solve_by_vote(problems, procedure, students, calculator, None, sampling, samples):
            print(json.dumps(problems[index] | record), flush=True)


def arriving():
    """The lines of stdin that are not empty, as lists of (number, bytes): each time all that have come, waiting for one."""
    rest, number, data = b"", 0, b"-"
    while data:
        data = sys.stdin.buffer.read1(1 << 20)
        *lines, rest = (rest + (data or b"\n")).split(b"\n")
        yield [(number + k, text) for k, text in enumerate(lines, 1) if text.strip()]
        number += len(lines)


def json_problem(number, text, procedure, students, guide):
    """A line of --json (bytes) as a problem, {"line", "id", "problem", "steps", "guide"}; if it is none, says so on stdout and returns None."""
    row = {}
    try:
        row = json.loads(text)
        kept = {key: row[key] for key in ("id", "problem", "steps", "guide") if key in row}
        if not isinstance(row["problem"], str) or not row["problem"].strip():
            raise ValueError("field 'problem' must be a text")
        if procedure is given and not all(isinstance(step["question"], str) for step in row["steps"]):
            raise ValueError("field 'steps' must hold a 'question' each")
        if guide:
            kept["guide"] = guide
        for student in students.values():
            if student.guidance and "guide" not in kept:
                raise ValueError(f"field 'guide' is missing: a student was trained with guidance by {student.guidance}")
        return {"line": number} | kept
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        why = f"field {e} is missing" if isinstance(e, KeyError) else str(e)
        print(json.dumps({"line": number, "error": why}), flush=True)
        return None


# ---- the command -------------------------------------------------------------------------------------------------------

def parse_args(argv=None):
    """The flags of infer.py. Raises UserError (status 2) for flags that make no sense together."""
    p = Parser(description="Solve problems with trained students; without a flag, at a prompt.")
    p.add_argument("--problem", metavar="TEXT", help="solve this one and leave")
    p.add_argument("--eval", type=Path, metavar="FILE", help="solve all problems of a JSONL file and print the accuracy")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N problems of --eval")
    p.add_argument("--out", type=Path, metavar="FILE", help="append every dialogue of --eval to it, as JSONL, as it ends; "
                   "goes on where an earlier run of the same command stopped")
    p.add_argument("--report", type=Path, metavar="FILE", help="write --eval's figures and dialogues there, as one HTML page")
    p.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two files of --out by McNemar's exact test")
    p.add_argument("--json", action="store_true", help="solve problems from stdin, JSON objects a line, to stdout likewise")
    p.add_argument("--procedure", choices=PROCEDURES, default="socratic", help="how a problem is solved (%(default)s)")
    p.add_argument("--decomposer", type=Path, metavar="DIR", help="(runs/decomposer; runs/stepwise for stepwise)")
    p.add_argument("--solver", type=Path, metavar="DIR", help="(runs/solver)")
    p.add_argument("--student", type=Path, metavar="DIR", help="the student of unified, cot or answer (runs/PROCEDURE)")
    p.add_argument("--no-calculator", action="store_true", help="let the students do the arithmetic")
    p.add_argument("--guide", metavar="TEXT", help="what a decomposer trained with --guidance is told with a problem: a number of "
                   "steps, or equations; with --eval it is told those of the file's own solutions")
    p.add_argument("--temperature", type=float, metavar="T", help="draw tokens (0, the most likely; 0.7 with --votes)")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K most likely tokens (all)")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of probability P in all (1)")
    p.add_argument("--votes", type=int, default=1, metavar="K", help="draw K dialogues, take the answer that most have (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    p.add_argument("--slots", type=int, default=64, help="dialogues of --eval or --json that go on at once (%(default)s)")
    p.add_argument("--device", help="(cuda or mps if there is one, else cpu)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    args = p.parse_args(argv)
    if min(args.slots, args.votes) < 1 or args.limit is not None and args.limit < 1:
        raise UserError("--slots, --votes and --limit must be at least 1", 2)
    modes = [flag for flag in ("problem", "eval", "compare", "json") if getattr(args, flag) not in (None, False)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} does not go with --{modes[1]}", 2)
    if args.problem is not None and not args.problem.strip():
        raise UserError("--problem takes a problem's text", 2)
    for flag in ("limit", "out", "report"):
        if getattr(args, flag) is not None and not args.eval:
            raise UserError(f"--{flag} goes with --eval FILE", 2)
    if args.procedure == "given" and args.problem is not None:
        raise UserError("--procedure given takes sub-questions from --eval FILE, --json or the prompt, not from --problem", 2)
    if args.guide and args.eval:
        raise UserError("--guide does not go with --eval, which tells the steps or equations of the file", 2)
    if args.temperature is None:
        args.temperature = 0.7 if args.votes > 1 else 0.0
    if not (0 <= args.temperature < math.inf and args.top_k >= 0 and 0 < args.top_p <= 1):
        raise UserError("--temperature and --top-k must be 0 or more, --top-p more than 0 and at most 1", 2)
    if not args.temperature and (args.votes > 1 or args.top_k or args.top_p < 1):
        raise UserError("--votes, --top-k and --top-p need a --temperature of more than 0", 2)
    if args.report and not args.report.parent.is_dir():
        raise UserError(f"--report {args.report}: no such folder", 2)
    args.device = find_device(args.device)
    return args


def folders(args, roles):
    """Where the students are, {role: folder}. Raises UserError, status 2, for a flag that names another."""
    flags = {role: {"solver": "solver", "decomposer": "decomposer", "stepwise": "decomposer"}.get(role, "student")
             for role in roles}
    for flag in ("solver", "decomposer", "student"):
        if getattr(args, flag) and flag not in flags.values():
            raise UserError(f"--procedure {args.procedure} has no use for --{flag}", 2)
    return {role: getattr(args, flag) or Path("runs", role) for role, flag in flags.items()}


def open_students(args, roles, slots):
    """The students that a procedure needs, {role: Student}."""
    return {role: open_student(folder, role, slots, args.device, getattr(torch, args.dtype))
            for role, folder in folders(args, roles).items()}


def main(argv=None):
    """Parse, open the students; then solve a file, one problem, or what comes at the prompt."""
    args = parse_args(argv)
    if args.compare:
        return compare(*args.compare)
    procedure, roles = PROCEDURES[args.procedure]
    problems = read_problems(args.eval)[:args.limit] if args.eval else []
    dialogues = len(problems) * args.votes if args.eval else args.slots if args.json else args.votes
    students = open_students(args, roles, slots=min(args.slots, dialogues))
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed) if args.temperature else None
    how = not args.no_calculator, sampling, args.votes
    if args.eval:
        run = {"procedure": args.procedure, "problems": checksum(problems), "calculator": how[0], "sampling": sampling and list(sampling),
               "votes": args.votes, "dtype": args.dtype, "students": [fingerprint(folder) for folder in folders(args, roles).values()],
               "guidance": [student.guidance for student in students.values()]}
        out, done = open_results(args.out, run) if args.out else (None, {})
        evaluate(problems, procedure, students, how[0], out, sampling, args.votes, done, args.report)
        return
    for role, student in students.items():
        if student.guidance and not args.guide and not args.json:
            raise UserError(f"the {role} was trained with --guidance {student.guidance}: tell it what to expect by --guide TEXT", 2)
    if args.json:
        answer_json(procedure, students, *how, args.guide)
    elif args.problem:
        if not show({"problem": args.problem} | ({"guide": args.guide} if args.guide else {}), procedure, students, *how):
            sys.exit(1)
    else:
        prompt(procedure, students, *how, args.guide)


if __name__ == "__main__":
    run(main)
