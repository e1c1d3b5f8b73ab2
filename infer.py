r"""Solve problems with trained students: one, those typed at a prompt, or a file of them in batches.

    students = {role: load_student(Path("runs", role), role, rows=1) for role in ("solver", "decomposer")}
    problem = {"problem": "Tom has 5 apples. He buys 3 more apples. How many apples does Tom have?"}
    for _, record in solve([problem], socratic, students):
        print(*(f"{step['question']} {step['solution']}" for step in record["steps"]), sep="\n")
        print("Answer:", record["answer"])

A procedure, such as `socratic`, says for one problem which student writes what; it reads like the paper's
figure. `solve` runs it for many problems at once, by continuous batching: each problem has a row in every
student's KV cache, a forward gives one more token to all rows that wait for the same student, and a row
whose problem is solved takes the next problem at once. But for rounding, no row depends on the others.
"""
import hashlib
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import (ANNOTATION, LETTERS, MARK, NUMERAL, ROLES, Letters, Parser, Tokenizer, UserError,
                  calculator_result, checksum, get_device, in_digits, number, one_line, parse_number,
                  problem_prompt, read_problems, read_run_file, run_script, same_answer, to_jsonl, to_line,
                  whole_number)
from model import GPT, KVCache, prepack_matrices


# ---- the procedures ----------------------------------------------------------------------------------------

# A procedure is a generator for one problem, which its students have read. It yields a Request for the next
# line, is sent that line, and fills in the record: steps, answer, and log_p, the log probability (nats) of
# what the solver wrote, or the one student that writes all.

MAX_STEPS = 16


class Request(NamedTuple):
    """Ask a student for a line: append texts to its sequence, then let it write to a newline or the end.

    The procedure is sent (text, stop, log_p): what was written; "newline", "end" (<|endoftext|>) or, in
    words, why the line was broken off; and its log probability.
    """
    role: str
    kind: str  # "question", "solution" or "answer"
    append: tuple = ()
    anew: bool = False  # forget first what stands behind the problem in the student's sequence


class Unfinished(Exception):
    """A dialogue that reaches no answer. Says which student failed, and how."""

    def __init__(self, role, what):
        super().__init__(f"the {role}{'' if role in ('decomposer', 'solver') else ' student'} {what}")


def socratic(problem, record):
    """The paper's: the decomposer asks all sub-questions, then the solver answers them in turn."""
    yield from decompose(problem, record)
    yield from answer_questions(record)


def second_look(problem, record):
    """`socratic`, and a second look: the solver answers the last question once more, alone.

    A solver that has learned to take several steps for one question (`merge_steps` in data.py) finds what the
    decomposer forgot to ask, or asked in vain. This is not in the paper. The second dialogue is a record of
    its own, record["second_look"], and its "asked" are all of the decomposer's questions. `vote` chooses.
    """
    yield from decompose(problem, record)
    looks, asked = [record], [step["question"] for step in record["steps"]]
    if len(asked) > 1:
        record["second_look"] = new_record() | {"steps": [{"question": asked[-1]}], "asked": asked}
        looks.append(record["second_look"])
    for look in looks:
        try:
            yield from answer_questions(look)
        except Unfinished as e:
            look["unfinished"] = str(e)


def decompose(problem, record):
    """The decomposer's part."""
    while (yield from next_question("decomposer", record)):
        pass


def given(problem, record):
    """The file's own sub-questions: the solver alone is measured."""
    record["steps"] = [{"question": step["question"]} for step in problem["steps"]]
    yield from answer_questions(record)


def stepwise(problem, record):
    """The decomposer asks each sub-question after it has seen the solution of the one before."""
    seen = ()
    while step := (yield from next_question("stepwise", record, *seen)):
        step["solution"] = yield from write(record, "solver", "solution", to_line(step["question"]))
        seen = (to_line(step["solution"]),)
    record["answer"] = yield from write(record, "solver", "answer", MARK)


def unified(problem, record):
    """One student writes sub-questions and solutions in turn, then the answer."""
    yield from write_steps("unified", ("question", "solution"), record)


def cot(problem, record):
    """One student writes the solutions, then the answer: a chain of thought."""
    yield from write_steps("cot", ("solution",), record)


def answer(problem, record):
    """One student says the answer at once."""
    record["answer"] = yield from write(record, "answer", "answer", MARK)


# name: the procedure, and the students that it needs, by role
PROCEDURES = {
    "socratic": (socratic, ("solver", "decomposer")),
    "stepwise": (stepwise, ("solver", "stepwise")),
    "given": (given, ("solver",)),
    "unified": (unified, ("unified",)),
    "cot": (cot, ("cot",)),
    "answer": (answer, ("answer",)),
}


def new_record():
    """The record of a dialogue that is about to begin."""
    return {"steps": [], "answer": None, "unfinished": None, "log_p": 0.0}


def next_question(role, record, *append):
    """Let a decomposer ask on. Returns the new step of the record, or None if no question is left."""
    text, stop, _ = yield Request(role, "question", append)
    if stop == "end" and not text and record["steps"]:
        return None
    return add_step(role, record, question=checked(role, "question", text, stop))


def answer_questions(record):
    """The solver answers each sub-question after reading all earlier steps, then says the answer."""
    for k, step in enumerate(record["steps"]):
        question = to_line(step["question"])
        step["solution"] = yield from write(record, "solver", "solution", question, anew=k == 0)
    record["answer"] = yield from write(record, "solver", "answer", MARK)


def write_steps(role, kinds, record):
    """One student writes step after step and, when it finds the answer due, the mark and the answer."""
    while True:
        step = {}
        for kind in kinds:
            text, stop, log_p = yield Request(role, kind)
            record["log_p"] += log_p
            if not step and text.startswith(MARK):
                record["answer"] = checked(role, "answer", text.removeprefix(MARK).strip(), stop)
                return
            step[kind] = checked(role, kind, text, stop)
        add_step(role, record, **step)


def write(record, role, kind, *append, anew=False):
    """Append texts to a student's sequence and let it write a solution or the answer. Returns that text."""
    text, stop, log_p = yield Request(role, kind, append, anew)
    record["log_p"] += log_p
    return checked(role, kind, text, stop)


def checked(role, kind, text, stop):
    """The text of a line that ended as its kind should. Raises Unfinished for any other."""
    if stop not in ("newline", "end"):
        raise Unfinished(role, stop)
    if not text:
        raise Unfinished(role, f"wrote no {kind}")
    if stop != ("end" if kind == "answer" else "newline"):
        raise Unfinished(role, f"did not end its {kind} properly")
    return text


def add_step(role, record, **step):
    """Append a step to the record and return it. Raises Unfinished for a student that comes to no end."""
    if len(record["steps"]) == MAX_STEPS:
        raise Unfinished(role, f"went on after {MAX_STEPS} steps")
    record["steps"].append(step)
    return step


# ---- sampling ----------------------------------------------------------------------------------------------

class Sampling(NamedTuple):
    """How tokens are sampled. A dialogue's random numbers follow from the seed, the problem's text and the
    number of the sample: what is written depends neither on the rows nor on other problems.
    """
    temperature: float = 1.0
    top_k: int = 0      # sample from the k most likely tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens, most likely first, whose probabilities sum to this
    seed: int = 0


def choose(logits, sampling=None, uniform=None):
    """The next token of each row, (B,) int64, from logits (B, vocab_size): the most likely, or a sampled one.

    uniform: B random numbers from [0, 1). If tokens 7, 2 and 9 have the probabilities 0.5, 0.3 and 0.2, a
    number below 0.5 gives token 7, one from there to 0.8 token 2, any other token 9.
    """
    if sampling is None:
        return logits.argmax(dim=-1)
    p = (logits.float() / max(sampling.temperature, 1e-4)).softmax(dim=-1)  # smaller ones overflow
    p, tokens = p.sort(dim=-1, descending=True, stable=True)  # (B, vocab_size) each
    if sampling.top_k:
        p[:, sampling.top_k:] = 0
        p /= p.sum(dim=-1, keepdim=True)
    p[p.cumsum(dim=-1) - p >= sampling.top_p] = 0
    cumulative = p.cumsum(dim=-1)
    u = torch.tensor(uniform, device=p.device, dtype=p.dtype)[:, None] * cumulative[:, -1:]  # (B, 1)
    last = (p > 0).sum(dim=-1, keepdim=True) - 1  # rounding must not lead beyond the tokens allowed
    rank = torch.searchsorted(cumulative, u, right=True).minimum(last)  # (B, 1)
    return tokens.gather(1, rank)[:, 0]


# ---- continuous batching -----------------------------------------------------------------------------------

# The way of a token: `solve` asks `next_group` which rows are next; `Student.read` runs the model over what
# these have pending; `choose` picks a token for each; `Dialogue.append_token` appends it to the line and to
# the row's pending tokens, and at the line's end lets the procedure go on.

MAX_LINE = 200         # tokens that a student may write on a line
MAX_REPEATED = 32      # tokens at a line's end that say one phrase three times or more; GSM8K has at most 24
PREFILL_TOKENS = 4096  # that a forward reads (more, if one row alone has more): its memory grows with them


class Student:
    """A model, its tokenizer, and a KV cache for so many rows.

    about: what student.json says of how it was trained, of that "guidance", "letters" (whether it reads and
    writes letters for numbers), "calculates" (whether it learned to do without the calculator),
    "merged_steps" and "pretrained".
    """

    def __init__(self, model, tokenizer, rows, about=None):
        self.model, self.tokenizer, self.about = model.eval(), tokenizer, about or {}
        self.guidance = self.about.get("guidance")
        self.device = model.wte.weight.device
        self.cache = KVCache(model.config, rows, self.device, model.wte.weight.dtype)
        self.rows = [Row(self, k) for k in range(rows)]
        self.token_bytes = [tokenizer.decode_bytes([token]) for token in range(tokenizer.end)]
        self.tokens_written = 0

    @torch.inference_mode()
    def read(self, rows):
        """One forward over what these rows have pending. Returns logits, (len(rows), vocab_size)."""
        counts = [len(row.pending) for row in rows]
        self.cache.place([row.number for row in rows], [row.length for row in rows], counts)
        ids = torch.tensor([[token for row in rows for token in row.pending]], device=self.device)  # (1, N)
        last = torch.tensor(list(accumulate(counts)), device=self.device) - 1  # each row's last token
        logits = self.model(ids, last, self.cache)
        for row in rows:  # the cache holds the pending tokens now
            row.length, row.pending = row.length + len(row.pending), []
        self.tokens_written += len(rows)
        return logits


class Row:
    """A row of a student's KV cache: one problem's sequence, as this student reads and writes it.

    The cache holds its first `length` tokens. The next forward reads the `pending` ones: what the student has
    just written, the calculator's result, a sub-question or, at first, the whole `prompt`. letters: those of
    the problem's numbers, if the student has learned them, else None.
    """

    def __init__(self, student, number):
        self.student, self.number, self.letters = student, number, None
        self.prompt, self.length, self.pending = [], 0, []

    def begin(self, problem):
        """Start with a problem. If the row holds its very prompt, that is not read once more."""
        student = self.student
        prompt, self.letters = problem_prompt(problem, student.guidance, student.about.get("letters"))
        self.pending = [token for text in prompt for token in student.tokenizer.encode(text)]
        if self.pending != self.prompt:
            self.prompt, self.length = self.pending, 0
        self.forget_the_rest()

    def forget_the_rest(self):
        """Go back to the end of the prompt. Its last token is read again, for the logits after it."""
        if self.letters:
            self.letters.forget_results()
        self.length = min(self.length, len(self.prompt) - 1)
        self.pending = self.prompt[self.length:]

    def copy_prompt(self):
        """Copy the prompt, all but its last token, from a row that has read the same one, if there is one."""
        n = len(self.prompt) - 1  # the last token is read, for the logits after it
        for other in self.student.rows:
            if other.length > n and other.prompt == self.prompt:
                self.student.cache.copy_prefix(other.number, self.number, n)
                self.length, self.pending = n, self.pending[n:]
                return

    def append(self, text):
        """Append a text to the sequence."""
        self.pending += self.student.tokenizer.encode(self.letters.hide(text) if self.letters else text)


class Dialogue:
    """A problem that is being solved, in one row of each student's cache, all of the same number.

    request: the procedure's, None at the end. row: where the line that it requests is written. waiting_since:
    the number of the forward after which it began to wait. rng: what to sample by.
    """

    def __init__(self, index, problem, procedure, rows, seed, calculator, n_forwards):
        """rows: {role: Row}; index and calculator: as in `solve`."""
        self.index, self.rows, self.calculator = index, rows, calculator
        self.record, self.rng, self.waiting_since = new_record(), random.Random(seed), n_forwards
        self.request = self.row = None
        self.text, self.tokens, self.log_p = b"", [], 0.0  # of the line
        for row in rows.values():
            row.begin(problem)
        self.procedure = procedure(problem, self.record)
        self.advance(None)

    def advance(self, line):
        """Send the procedure its line, (text, stop, log_p) of a Request, and begin the one that it requests
        next."""
        self.request = None
        try:
            self.request = self.procedure.send(line)
        except StopIteration:
            return
        except Unfinished as e:
            self.record["unfinished"] = str(e)
            return
        self.row = self.rows[self.request.role]
        self.text, self.tokens, self.log_p = b"", [], 0.0
        if self.request.anew:
            self.row.forget_the_rest()
        for text in self.request.append:
            self.row.append(text)
        if stop := self.limit():  # what it is to read may be too long already
            self.end_line(stop)

    def append_token(self, token, log_p, n_forwards):
        """Take the next token of the line and its log probability, from the forward of this number."""
        student = self.row.student
        self.waiting_since, self.log_p = n_forwards, self.log_p + log_p
        if token == student.tokenizer.end:
            return self.end_line("end")
        self.tokens.append(token)
        self.row.pending.append(token)
        piece, newline, _ = student.token_bytes[token].partition(b"\n")
        self.text += piece
        if newline:
            return self.end_line("newline")
        if self.calculator and piece.endswith(b"="):
            if result := calculator_result(self.text, self.row.letters):
                self.row.pending += student.tokenizer.encode(result)
                self.text += result.encode()
        if stop := self.limit():
            self.end_line(stop)

    def end_line(self, stop):
        """End the line, and go on."""
        text = self.text.decode("utf-8", "replace").strip()
        if self.row.letters:
            text = self.row.letters.show(text)
            if set(text) & set(LETTERS):
                stop = "took a number that the problem does not have"
        self.advance((text, stop, self.log_p))

    def limit(self):
        """Why the line must be broken off, in words; None if it may go on."""
        block_size = self.row.student.model.config.block_size
        if self.row.length + len(self.row.pending) > block_size:
            return f"can read no more than {block_size} tokens, the text is too long"
        if len(self.tokens) == MAX_LINE:
            return f"wrote {MAX_LINE} tokens on a line and no end of it"
        if len(self.tokens) % 8 == 0 and repeats_itself(self.tokens):  # not each time: it takes long
            return "repeated itself"
        return None


def repeats_itself(tokens):
    """Whether a list of tokens ends in one phrase, three times or more, of MAX_REPEATED tokens in all."""
    for n in range(1, len(tokens) // 3 + 1):  # tokens of the phrase
        size = max(3 * n, MAX_REPEATED)
        if size <= len(tokens) and tokens[-1] == tokens[-1 - n] and tokens[-size:-n] == tokens[n - size:]:
            return True
    return False


def next_group(dialogues, n_forwards):
    """The dialogues whose rows the forward of this number reads, sorted by row; a prompt that another row
    holds is copied from it.

    All are of one student: the one whose rows have waited longest, added up. If 60 rows need the solver and 4
    the decomposer, the solver is read 15 times before these 4 have waited as long. The row that has waited
    longest is read for certain; others are left for later if PREFILL_TOKENS have no room, or if another is
    about to read the same prompt: they will copy it.
    """
    waiting = defaultdict(list)
    for dialogue in dialogues:
        waiting[dialogue.row.student].append(dialogue)
    candidates = max(waiting.values(), key=lambda group: sum(
        n_forwards - dialogue.waiting_since for dialogue in group))
    group, n_tokens, new_prompts = [], 0, []
    for dialogue in sorted(candidates, key=lambda dialogue: dialogue.waiting_since):
        row = dialogue.row
        if row.length == 0:
            row.copy_prompt()
        is_new, has_room = row.length == 0, not group or n_tokens + len(row.pending) <= PREFILL_TOKENS
        if not has_room or is_new and row.prompt in new_prompts:
            continue
        group.append(dialogue)
        n_tokens += len(row.pending)
        if is_new:
            new_prompts.append(row.prompt)
    return sorted(group, key=lambda dialogue: dialogue.row.number)  # neighbours in the cache stand together


def solve(problems, procedure, students, calculator=True, sampling=None, samples=1):
    """Run `procedure` for every problem, as many at a time as the students have rows.

    problems: an iterable of dicts; one is taken when a row is free. students: {role: Student}, with equally
    many rows. calculator: whether it completes "<<3*4=". sampling: a Sampling, or None for the most likely
    tokens. samples: dialogues of each problem.

    Yields (index of the problem, record) as each dialogue ends. The record has "steps", a list of
    {"question", "solution"}, "answer", str or None, "unfinished", None or why there is no answer, "log_p"
    and, with several samples, the number, "sample", from 0.
    """
    jobs = ((index, problem, k) for index, problem in enumerate(problems) for k in range(samples))
    free = list(range(min(len(student.rows) for student in students.values())))  # numbers of rows
    dialogues, n_forwards = {}, 0  # {number of its rows: Dialogue}; how many forwards so far
    while True:
        while free and (job := next(jobs, None)):
            index, problem, k = job
            rows = {role: student.rows[free[0]] for role, student in students.items()}
            seed = f"{sampling and sampling.seed} {k} {problem['problem']}".encode("utf-8", "replace")
            dialogue = Dialogue(index, problem, procedure, rows, seed, calculator, n_forwards)
            if samples > 1:
                dialogue.record["sample"] = k
            if dialogue.request:
                dialogues[free.pop(0)] = dialogue
            else:
                yield index, dialogue.record
        if not dialogues:
            return
        n_forwards += 1
        group = next_group(dialogues.values(), n_forwards)
        logits = group[0].row.student.read([dialogue.row for dialogue in group])
        tokens = choose(logits, sampling, sampling and [dialogue.rng.random() for dialogue in group])
        log_p = -F.cross_entropy(logits.float(), tokens, reduction="none")
        for dialogue, token, token_log_p in zip(group, tokens.tolist(), log_p.tolist()):
            dialogue.append_token(token, token_log_p, n_forwards)
            if not dialogue.request:
                free.append(dialogue.row.number)
                del dialogues[dialogue.row.number]
                yield dialogue.index, dialogue.record


# ---- loading students --------------------------------------------------------------------------------------

def read_student_json(folder):
    """What student.json says of the student in a folder (a Path), a dict with its "role" at least. Raises
    UserError, or OSError for a file that cannot be read."""
    path = folder / "student.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "role" not in fields:
        raise UserError(f"{path}: not what train.py writes")
    return fields


def load_student(folder, role, rows, device="cpu", dtype=torch.float32):
    """The Student of a role from its folder (a Path). Raises UserError, one line, if there is none."""
    if not (folder / "student.json").exists():
        out = "" if folder == Path("runs", role) else f" --out {folder}"
        raise UserError(f"{folder}: no student here yet; make one with: python train.py --role {role}{out}")
    fields = read_student_json(folder)
    if fields["role"] != role:
        raise UserError(f"{folder}: a student of the role '{fields['role']}', expected is the role '{role}'")
    try:
        model = GPT.from_pretrained(folder, mapped=True)
    except ValueError as e:
        raise UserError(e)
    tokenizer = Tokenizer.from_pretrained(folder, model.config.vocab_size)
    model = prepack_matrices(model.to(device, dtype))
    return Student(model, tokenizer, rows, fields)


# ---- votes -------------------------------------------------------------------------------------------------

VOTES = 9            # dialogues of a problem, where students from scratch solve it
UNUSED_NUMBER = 1.5  # nats


def vote(problem, records):
    """Choose among a problem's dialogues and their second looks.

    Each votes for its answer with its probability, divided by e^1.5 for each number of the problem that it
    does not use: in problems that are so short most numbers are needed. Doubtful ones vote only if all are
    doubtful. Of the dialogues with the answer that wins, the one with the largest vote is returned; if there
    was a choice, with "votes", the answers of all: a list of str or None.

    So answers add up as in self-consistency (Wang et al. 2023), where all votes are equal.
    """
    dialogues = []
    for record in sorted(records, key=lambda record: record.get("sample", -1)):
        dialogues.append({name: value for name, value in record.items() if name != "second_look"})
        dialogues += [record["second_look"]] if "second_look" in record else []
    answered = [one for one in dialogues if one["answer"] is not None]
    if len(dialogues) == 1 or not answered:
        return dialogues[0]

    candidates = [one for one in answered if not is_doubtful(problem, one)] or answered
    scores = [one["log_p"] - UNUSED_NUMBER * unused_numbers(problem, one) for one in candidates]
    top, groups = max(scores), []  # groups: of the dialogues with the same answer, lists of (score, dialogue)
    for score, one in zip(scores, candidates):
        group = next((group for group in groups if same_answer(one["answer"], group[0][1]["answer"])), None)
        if group:
            group.append((score, one))
        else:
            groups.append([(score, one)])
    winner = max(groups, key=lambda group: sum(math.exp(score - top) for score, _ in group))
    best = max(winner, key=lambda scored: scored[0])[1]
    return best | {"votes": [one["answer"] for one in dialogues]}


DECIMALS_OR_MONEY = re.compile(
    r"\d[./]\d|[$€£]|\b(dollar|cents?\b|money|price|cost|pay|paid|spen[dt]|earn)", re.I)


def calculations(record):
    """The calculator annotations in a dialogue's solutions: a list of (expression, result), two str."""
    return ANNOTATION.findall(" ".join(step.get("solution", "") for step in record["steps"]))


def is_doubtful(problem, record):
    """Whether a calculator's result in a dialogue is probably wrong: below 0, or no whole number in a problem
    without decimals and money.
    """
    results = [parse_number(result) for _, result in calculations(record)]
    is_whole = not DECIMALS_OR_MONEY.search(problem["problem"])
    return any(result < 0 or is_whole and result.denominator > 1 for result in results if result is not None)


def unused_numbers(problem, record):
    """How many different numbers of a problem's text, in digits or in words, stand in no equation of a
    dialogue."""
    letters = Letters(problem["problem"])
    mentioned = {*letters.numbers.values()}
    for step in record["steps"]:
        letters.hide(step.get("solution", ""))  # notes which letters its equations have
    return len(mentioned - {letters.numbers[letter] for letter in letters.used})


def is_plausible(problem, record):
    """Whether a dialogue has an answer and is not doubtful."""
    return record["answer"] is not None and not is_doubtful(problem, record)


def is_certain(problem, record):
    """Whether one dialogue decides: it is plausible and has a probability above 1/2, so no other solution of
    these questions can be as likely.
    """
    return record["log_p"] > math.log(0.5) and is_plausible(problem, record)


def solve_by_vote(problems, procedure, students, votes=1, sampling=None, **options):
    """As `solve`, with its parameters, but `vote` chooses among several dialogues of each problem.

    problems: a list. votes: how many dialogues; one alone is as `sampling` says. The first of several takes
    the most likely tokens; unless it is certain, the others are sampled; and if all are doubtful, as many
    more at twice the temperature.
    """
    rounds = [(sampling, 1, lambda problem, best: True)]  # how sampled, how many, whether the best is enough
    if votes > 1:
        hotter = sampling._replace(temperature=2 * sampling.temperature)
        rounds = [(None, 1, is_certain), (sampling, votes - 1, is_plausible),
                  (hotter, votes - 1, lambda problem, best: True)]
    records, todo, n_records = [[] for _ in problems], list(range(len(problems))), 0  # todo: indices
    for round_sampling, samples, is_enough in rounds:
        asked, todo, n_records = todo, [], n_records + samples
        again = [problems[index] for index in asked]
        for k, record in solve(again, procedure, students, sampling=round_sampling, samples=samples,
                               **options):
            index = asked[k]
            records[index].append(record)
            if len(records[index]) == n_records:
                best = vote(problems[index], records[index])
                if is_enough(problems[index], best):
                    yield index, best
                else:
                    todo.append(index)


# ---- metrics -----------------------------------------------------------------------------------------------

def printable(text):
    """A text without what would steer a terminal or is no character."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def answer_line(record):
    """How a dialogue ended, in words; where others voted otherwise, with how many votes for its answer."""
    answer, votes = record["answer"], record.get("votes", [])
    if answer is None:
        return f"No answer: {record['unfinished']}"
    n_for = sum(vote is not None and same_answer(vote, answer) for vote in votes)
    return f"Answer: {answer}" + (f" (unsure: {n_for} of {len(votes)} votes)" if n_for < len(votes) else "")


def wilson(correct, n, z=1.959964):
    """The Wilson 95 % interval of the share correct / n: two shares (Wilson 1927)."""
    p, scale = correct / n, 1 + z * z / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(only_a, only_b):
    """The exact two-sided p-value of McNemar's test (1947) for the numbers of problems that only one of two
    runs solved: if both are equally good, each of these is as likely to be the one's as the other's.
    """
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2 ** n)


def percentage(hits):
    """How many of these bools are true, in words: "95.3 % (953/1000)"."""
    return f"{100 * sum(hits) / len(hits):.1f} % ({sum(hits)}/{len(hits)})"


def questions(record):
    """The sub-questions of a problem, or those that a record's decomposer asked, as they are compared: a list
    of texts of one line each, their numbers in digits."""
    asked = record.get("asked") or [step["question"] for step in record["steps"]]
    return [in_digits(one_line(question)) for question in asked]


def question_metrics(problems, results):
    """How the students' sub-questions match the teacher's: lines, none if no teacher's are known."""
    pairs = [(questions(result), questions(problem))
             for problem, result in zip(problems, results) if problem.get("steps")]
    if not pairs:
        return []
    exact = percentage([asked == teachers for asked, teachers in pairs])
    any_order = percentage([sorted(asked) == sorted(teachers) for asked, teachers in pairs])
    lines = [f"questions exactly the teacher's: {exact}, in any order: {any_order}"]
    with suppress(ImportError):  # where sacrebleu is installed
        from sacrebleu import corpus_bleu
        asked, teachers = ([" ".join(each) for each in side] for side in zip(*pairs))
        score = corpus_bleu(asked, [teachers], force=True).score
        lines.append(f"questions' BLEU against the teacher's: {score:.1f}")
    return lines


def metrics(problems, results, students_ask):
    """What an evaluation shows: a list of lines, the accuracy last. students_ask: whether the students wrote
    the sub-questions."""
    by_steps, by_source, scored = defaultdict(list), defaultdict(list), []
    for problem, result in zip(problems, results):
        if result["correct"] is not None:
            scored.append(result["correct"])
            by_steps[len(problem.get("steps") or ())].append(result["correct"])
            by_source[printable(str(problem.get("source", "no source")))].append(result["correct"])
    lines = [f"{n} step{'s' * (n > 1)}: {percentage(hits)}" for n, hits in sorted(by_steps.items()) if n]
    if len(by_source) > 1:
        lines += [f"{source}: {percentage(hits)}" for source, hits in sorted(by_source.items())]
    if students_ask:
        lines += question_metrics(problems, results)
    reasons = Counter(result["unfinished"] for result in results if result["unfinished"])
    lines += [f"unfinished: {count} ({reason})" for reason, count in reasons.most_common()]
    if len(scored) < len(results):
        lines.append(f"not scored, without a known answer: {len(results) - len(scored)} of {len(results)}")
    if scored:
        low, high = wilson(sum(scored), len(scored))
        lines.append(f"accuracy {percentage(scored)}, 95 % interval {100 * low:.1f}-{100 * high:.1f}")
    return lines


# ---- evaluation and its results file -----------------------------------------------------------------------

def evaluate_file(args, problems, procedure, students, options):
    """Solve the problems of --eval, print the metrics, write --out and --report. options: those of
    `solve_by_vote`.

    Each problem has a result, a dict: "row", its number in the file from 1, "id", "problem", what its record
    has, "correct" (a bool) and "teacher" (the known answer); the last two are None where no answer is known.
    """
    if args.report:
        args.report.touch()  # fails now, not after the evaluation
    # {index of the problem: its result}
    results = resume(args, problems, procedure, options) if args.out else {}
    # the longest first: rows beside each other are equally long, and no long one is left alone at the end
    todo = [index for index in range(len(problems)) if index not in results]
    todo.sort(key=lambda index: -len(problems[index]["problem"]))
    scored = [result["correct"] for result in results.values() if result["correct"] is not None]
    start = time.perf_counter()
    with tqdm(total=len(problems), initial=len(results), unit=" problems", disable=None) as bar:
        for k, record in solve_by_vote([problems[index] for index in todo], procedure, students, **options):
            index, problem, correct = todo[k], problems[todo[k]], None
            if problem.get("answer") is not None:
                correct = record["answer"] is not None and same_answer(record["answer"], problem["answer"])
                scored.append(correct)
                bar.set_postfix_str(f"accuracy {100 * sum(scored) / len(scored):.1f} %", refresh=False)
            del record["log_p"]  # its last digits depend on the rows beside it
            about = {"row": index + 1, "id": problem.get("id", index + 1), "problem": problem["problem"]}
            results[index] = about | record | {"correct": correct, "teacher": problem.get("answer")}
            if args.out:
                try:
                    with open(args.out, "ab") as f:
                        f.write(to_jsonl([results[index]]))
                except OSError as e:  # of a full disk, which names no file
                    raise UserError(f"--out {args.out}: {e.strerror}")
            bar.update()
    seconds, results = time.perf_counter() - start, [results[index] for index in range(len(problems))]
    written = sum(student.tokens_written for student in students.values())
    lines = [f"{seconds:.1f} s, {len(todo) / seconds:.1f} problems/s, "
             f"{written / seconds:,.0f} tokens/s written"] if todo else []
    lines += [f"guided by the {student.guidance} of the file's own solutions"
              for student in students.values() if student.guidance]
    lines += metrics(problems, results, students_ask=procedure in (socratic, second_look, stepwise, unified))
    print(*lines, sep="\n")
    if args.report:
        page = html_report(problems, results, lines)
        args.report.write_text(page, encoding="utf-8", errors="backslashreplace")


def read_results(path):
    """`read_run_file` of a results file: each row is a result of `evaluate_file`."""
    error = "no results file of --eval FILE --out FILE"
    settings, results, size = read_run_file(path, error)
    if not all("correct" in result for result in results):
        raise UserError(f"{path}: {error}")
    return settings, results, size


def resume(args, problems, procedure, options):
    """The results that the file of --out holds, {index: result}; it is cut to whole lines, or begun. Raises
    UserError, and leaves it as it was, if it is another run's, with other settings, or foreign.
    """
    path = args.out
    files = [folder / name for folder in args.folders.values()
             for name in ("model.safetensors", "pytorch_model.bin")]
    weights = [np.memmap(path, mode="r") for path in files if path.exists()]
    settings = {
        "procedure": procedure.__name__, "problems": checksum(problems),
        "calculator": options["calculator"],
        "sampling": options["sampling"] and list(options["sampling"]), "votes": options["votes"],
        "dtype": args.dtype, "students": [hashlib.sha256(each).hexdigest()[:16] for each in weights]}
    path.touch()
    if not path.is_file():  # /dev/stdout
        return {}
    found, results, size = read_results(path)
    differences = [key for key in settings if found and found.get(key) != settings[key]]
    if differences:
        raise UserError(f"--out {path}: holds another run's results (not the same {', '.join(differences)}); "
                        "name another file, or remove it", 2)
    os.truncate(path, size)
    if not found:
        path.write_bytes(to_jsonl([{"settings": settings}]))
    return {result["row"] - 1: result for result in results}


def compare_results(path_a, path_b):
    """Print how two results files of the same problems differ, with McNemar's exact test."""
    a, b = ({(result["row"], result["problem"]): result["correct"] for result in read_results(path)[1]
             if result["correct"] is not None} for path in (path_a, path_b))
    if a.keys() != b.keys() or not a:
        raise UserError(f"--compare: {path_a} and {path_b} are not of the same problems")
    pairs = Counter((a[key], b[key]) for key in a)
    only_a, only_b = pairs[True, False], pairs[False, True]
    print(f"{path_a}: {percentage(a.values())}\n{path_b}: {percentage(b.values())}")
    print(f"both correct: {pairs[True, True]}, only the first: {only_a}, only the second: {only_b}, "
          f"neither: {pairs[False, False]}\nMcNemar's exact test: p = {mcnemar(only_a, only_b):.3g}")


# ---- the report --------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<meta charset="utf-8"><title>Report</title>
<style>
pre { white-space: pre-wrap } details > div { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
details { border-left: .3rem solid gray; padding-left: .5rem } .correct { border-color: green }
.wrong { border-color: red } #wrong:checked ~ details:not(.wrong) { display: none }
</style>
<input type="radio" name="shown" id="all" checked><label for="all">all</label>
<input type="radio" name="shown" id="wrong"><label for="wrong">wrong</label>
"""


def html_report(problems, results, lines):
    """An HTML page: the metrics (lines), then each dialogue beside the teacher's."""
    def transcript(name, steps, last):
        texts = [f"{step.get('question', '')} {step.get('solution', '')}" for step in steps]
        return "<pre>" + escape("\n".join([name, *texts, last])) + "</pre>"

    parts = [PAGE + f"<h1>{escape(lines[-1])}</h1>", f"<pre>{escape(chr(10).join(lines))}</pre>"]
    for problem, result in zip(problems, results):
        kind = {True: "correct", False: "wrong", None: "unscored"}[result["correct"]]
        students = transcript("Students", result["steps"], answer_line(result))
        teacher = transcript("Teacher", problem.get("steps") or (), f"Answer: {result['teacher'] or '?'}")
        parts.append(f"<details class={kind}><summary>{result['row']}. {escape(result['problem'])}</summary>"
                     f"<div>{students}{teacher}</div></details>")
    return "\n".join(parts) + "\n"


# ---- the prompt --------------------------------------------------------------------------------------------

NO_PROBLEM = ("No answer: this has neither a number nor a question. Type a word problem, such as: "
              "Tom has 5 apples. He buys 3 more apples. How many apples does Tom have?")
PROBLEM_SIGN = re.compile(rf"\d|\?|{NUMERAL.pattern}|\b(one|dozen|half)\b", re.I)


def show(problem, procedure, students, options):
    """Solve one problem (a dict) and print the dialogue. Returns whether there is an answer. A text such as
    "Hello", which has neither a number nor a question mark, gets one line.
    """
    if not PROBLEM_SIGN.search(problem["problem"]):
        print(NO_PROBLEM)
        return False
    (_, record), = solve_by_vote([problem], procedure, students, **options)
    for k, step in enumerate(record["steps"], 1):
        print(*(f"{kind.capitalize()} {k}: {printable(text)}" for kind, text in step.items()), sep="\n")
    hint = "; is this a word problem?" if str(record["unfinished"]).endswith("no question") else ""
    print(printable(answer_line(record)) + hint, flush=True)
    return record["answer"] is not None


def solve_typed(procedure, students, options, guide):
    """Solve the problems that are typed, or come through a pipe, one a line, up to its end. With the
    procedure `given` their sub-questions follow, one a line, up to an empty one.

    Ctrl-C breaks off the solution of a typed problem; between problems, and in a pipe, it ends all.
    """
    is_typed = sys.stdin.isatty()
    sys.stdin.reconfigure(errors="replace")

    def ask(label):
        return input(label if is_typed else "").strip()

    if is_typed:
        with suppress(ImportError):
            import readline  # noqa: F401 - arrow keys and history, where Python has it
        print("Type a problem on one line and press Enter; Ctrl-C stops a solution, Ctrl-D leaves.")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            problem = {"problem": ask("\nProblem: "), **guide}
            if procedure is given and PROBLEM_SIGN.search(problem["problem"]):
                problem["steps"] = []
                with suppress(EOFError):  # the end of a pipe ends them too
                    while question := ask("Question: "):
                        problem["steps"].append({"question": question})
            if problem["problem"]:
                with suppress(KeyboardInterrupt if is_typed else ()):
                    show(problem, procedure, students, options)
    if is_typed:
        print()


# ---- flags and main ----------------------------------------------------------------------------------------

def student_flag(role):
    """The flag of infer.py that says where the student of a role is."""
    return {"solver": "solver", "decomposer": "decomposer", "stepwise": "decomposer"}.get(role, "student")


def parse_args(argv=None):
    """The flags of infer.py, and `folders`, {role: folder} of the students. Raises UserError (status 2)."""
    p = Parser(description="Solve problems with trained students; without a flag, at a prompt.")
    one_of, add = p.add_mutually_exclusive_group().add_argument, p.add_argument
    one_of("--problem", metavar="TEXT", help="solve this one and leave")
    one_of("--eval", type=Path, metavar="FILE", help="solve a JSONL file, score the problems with answers")
    one_of("--compare", type=Path, nargs=2, help="two files of --out, by McNemar's exact test")
    add("--procedure", choices=PROCEDURES, default="socratic", help="how to solve (%(default)s)")
    add("--solver", type=Path, metavar="DIR", help="(runs/solver)")
    add("--decomposer", type=Path, metavar="DIR", help="(runs/decomposer or runs/stepwise)")
    add("--student", type=Path, metavar="DIR", help="of unified, cot or answer (runs/PROCEDURE)")
    add("--no-calculator", action="store_true", help="let the students do the arithmetic")
    add("--guide", help="for a decomposer trained with --guidance: a number of steps, or equations")
    add("--limit", type=whole_number(1), help="only so many problems of --eval")
    add("--out", type=Path, help="append each result of --eval; the same command goes on where it stopped")
    add("--report", type=Path, help="write the dialogues of --eval as one HTML page")
    add("--votes", type=whole_number(1), metavar="N",
        help=f"let N dialogues vote on the answer, where one is not certain ({VOTES}; 1 if a student is a "
             "fine-tuned GPT-2, or with --temperature)")
    add("--no-second-look", action="store_true",
        help="socratic as in the paper alone: the solver does not try the last question by itself as well")
    add("--temperature", type=number(0), help="of sampling (0.7; without votes 0: the most likely tokens)")
    add("--top-k", type=whole_number(0), default=0, help="sample from so many most likely tokens (all)")
    add("--top-p", type=number(0, 1, above=True), default=1.0, help="of the most likely that sum to this")
    add("--seed", type=int, default=0, help="of sampling (%(default)s)")
    add("--rows", type=whole_number(1), default=64, help="dialogues decoded at once (%(default)s)")
    add("--device", help="(cuda or mps if there is one, else cpu)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    args = p.parse_args(argv)
    for flag in ("limit", "out", "report"):
        if getattr(args, flag) and not args.eval:
            raise UserError(f"--{flag} goes with --eval FILE", 2)
    if args.no_second_look and args.procedure != "socratic":
        raise UserError(f"--procedure {args.procedure} has no second look", 2)
    if args.procedure == "given" and args.problem is not None:
        raise UserError("--procedure given needs sub-questions: from --eval FILE or at the prompt", 2)
    if args.guide and args.eval:
        raise UserError("--guide does not go with --eval, which tells the steps or equations of the file", 2)
    if args.temperature == 0 and ((args.votes or 1) > 1 or args.top_k or args.top_p < 1):
        raise UserError("--votes, --top-k and --top-p need a --temperature of more than 0", 2)
    flags = {role: student_flag(role) for role in PROCEDURES[args.procedure][1]}
    for flag in ("solver", "decomposer", "student"):
        if getattr(args, flag) and flag not in flags.values():
            raise UserError(f"--procedure {args.procedure} has no use for --{flag}", 2)
    args.folders = {role: getattr(args, flag) or Path("runs", role) for role, flag in flags.items()}
    return args


def check_students(args, students, problems):
    """Raise UserError (status 2) where the flags, or the file of --eval, do not fit these students."""
    told = args.guide or all("guide" in problem or problem.get("steps") for problem in problems or [{}])
    for role, student in students.items():
        if student.guidance and not told:
            raise UserError(f"the {role} was trained with --guidance {student.guidance}: tell it by --guide "
                            "TEXT, or in a file by 'steps' or 'guide' of each problem", 2)
        if args.no_calculator and "s" in ROLES[role].loss and not student.about.get("calculates", True):
            raise UserError(f"the {role} was not trained to calculate: train.py --no-calculator does", 2)
    if args.guide and not any(student.guidance for student in students.values()):
        raise UserError("--guide is for students that were trained with --guidance", 2)


def decoding_options(args, students):
    """The options of `solve_by_vote`: what the flags say; what they leave open, as it suits the students."""
    votes, temperature = args.votes, args.temperature
    if votes is None:
        fine_tuned = any(student.about.get("pretrained") for student in students.values())
        votes = 1 if fine_tuned or temperature is not None else VOTES
    if temperature is None:
        temperature = 0.7 if votes > 1 or args.top_k or args.top_p < 1 else 0.0
    sampling = Sampling(temperature, args.top_k, args.top_p, args.seed) if temperature else None
    return {"calculator": not args.no_calculator, "votes": votes, "sampling": sampling}


def main(argv=None):
    """Parse, load the students; then solve a file, one problem, or what is typed."""
    args = parse_args(argv)
    if args.compare:
        return compare_results(*args.compare)
    procedure, problems = PROCEDURES[args.procedure][0], []
    if args.eval:
        problems = read_problems(args.eval, steps=procedure is given, answer=False)[:args.limit]
    rows = min(args.rows, max(1, len(problems)) * (args.votes or VOTES))
    device, dtype = get_device(args.device), getattr(torch, args.dtype)
    students = {role: load_student(folder, role, rows, device, dtype)
                for role, folder in args.folders.items()}
    check_students(args, students, problems)
    if procedure is socratic and students["solver"].about.get("merged_steps") and not args.no_second_look:
        procedure = second_look
    options = decoding_options(args, students)
    guide = {"guide": args.guide} if args.guide else {}
    if args.eval:
        evaluate_file(args, problems, procedure, students, options)
    elif args.problem is None:
        solve_typed(procedure, students, options, guide)
    elif not show({"problem": args.problem, **guide}, procedure, students, options):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
