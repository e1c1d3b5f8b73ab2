"""Solve problems with trained students: one, those typed at a prompt, or a file of them in batches.

    students = {role: load_student(Path("runs", role), role, rows=1) for role in ("solver", "decomposer")}
    problem = {"problem": "Tom has 5 apples. He buys 3 more apples. How many apples does Tom have?"}
    for _, record in solve([problem], socratic, students):
        print(*(f"{step['question']} {step['solution']}" for step in record["steps"]), sep="\\n")
        print("Answer:", record["answer"])

A procedure, such as `socratic`, says for one problem which student writes what; it reads like the paper's
figure. `solve` runs it for many problems at once, by continuous batching: each problem has a row in every
student's KV cache, a forward gives one more token to all rows that wait for the same student, and a row
whose problem is solved takes the next problem at once. What is written in a row depends on no other row.
"""
import contextlib
import hashlib
import json
import math
import random
import re
import sys
import time
from collections import Counter, defaultdict
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import (MARK, Parser, Tokenizer, UserError, calculator_result, get_device, number, parse_rows,
                  problem_prompt, read_problems, run_script, same_answer, to_jsonl, to_line, whole_number)
from model import GPT, KVCache, prepack_matrices


# ---- the procedures ----------------------------------------------------------------------------------------

# A procedure is a generator for one problem. Each student has read the problem before it writes anything. The
# procedure yields a Request for the next line, is sent that line, and fills in the record: steps and answer.

MAX_STEPS = 16
MAX_REPEATS = 5  # of one question: GSM8K's own teachers repeat one in 18 % of the problems, up to five times


class Request(NamedTuple):
    """Ask a student for a line: append texts to its sequence, then let it write to a newline or the end.

    The procedure is sent (text, stop): what was written, stripped; and "newline", "end" (<|endoftext|>) or,
    in words, why the line was broken off.
    """
    role: str
    kind: str  # "question", "solution" or "answer": what is expected
    append: tuple = ()


class Unfinished(Exception):
    """A dialogue that reaches no answer: which student did what."""

    def __init__(self, role, what):
        super().__init__(f"the {role}{'' if role in ('decomposer', 'solver') else ' student'} {what}")


def socratic(problem, record):
    """The paper's procedure: the decomposer asks all sub-questions, then the solver answers them in turn."""
    yield from decompose(problem, record)
    yield from answer_questions(record)


def decompose(problem, record):
    """The decomposer asks all sub-questions."""
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
        step["solution"] = yield from write("solver", "solution", to_line(step["question"]))
        seen = [to_line(step["solution"])]
    record["answer"] = yield from write("solver", "answer", MARK)


def unified(problem, record):
    """One student writes sub-questions and solutions in turn, then the answer."""
    yield from write_steps("unified", ("question", "solution"), record)


def cot(problem, record):
    """One student writes the solutions, then the answer: a chain of thought."""
    yield from write_steps("cot", ("solution",), record)


def answer(problem, record):
    """One student says the answer at once."""
    record["answer"] = yield from write("answer", "answer", MARK)


# name: the procedure, and the students that it needs, by role
PROCEDURES = {
    "socratic": (socratic, ("solver", "decomposer")),
    "stepwise": (stepwise, ("solver", "stepwise")),
    "given": (given, ("solver",)),
    "unified": (unified, ("unified",)),
    "cot": (cot, ("cot",)),
    "answer": (answer, ("answer",)),
}


def next_question(role, record, *append):
    """Let a decomposer ask on. Returns the new step of the record, or None if no question is left."""
    text, stop = yield Request(role, "question", append)
    if stop == "end" and not text and record["steps"]:
        return None
    return add_step(role, record, question=complete(role, "question", text, stop))


def answer_questions(record):
    """The solver answers each sub-question after reading all earlier steps, then says the answer."""
    for step in record["steps"]:
        step["solution"] = yield from write("solver", "solution", to_line(step["question"]))
    record["answer"] = yield from write("solver", "answer", MARK)


def write_steps(role, kinds, record):
    """One student writes step after step and, when it finds the answer due, the mark and the answer."""
    while True:
        step = {}
        for kind in kinds:
            text, stop = yield Request(role, kind)
            if not step and text.startswith(MARK):
                record["answer"] = complete(role, "answer", text.removeprefix(MARK).strip(), stop)
                return
            step[kind] = complete(role, kind, text, stop)
        add_step(role, record, **step)


def write(role, kind, *append):
    """Append texts to a student's sequence and let it write a solution or the answer. Returns that text."""
    text, stop = yield Request(role, kind, append)
    return complete(role, kind, text, stop)


def complete(role, kind, text, stop):
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
    questions = [earlier.get("question") for earlier in record["steps"]]
    if "question" in step and questions.count(step["question"]) == MAX_REPEATS:
        raise Unfinished(role, "asked the same again and again")
    record["steps"].append(step)
    return step


# ---- sampling ----------------------------------------------------------------------------------------------

class Sampling(NamedTuple):
    """How tokens are sampled.

    Each dialogue has its own random numbers, which follow from `seed`, the problem's text and the number of
    the sample. So its text depends neither on the rows nor on the other problems, but for rounding.
    """
    temperature: float = 1.0
    top_k: int = 0      # sample from the k most likely tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens, most likely first, whose probabilities sum to this
    seed: int = 0


def choose(logits, sampling=None, uniform=None):
    """The next token of each row, (B,) int64, from logits (B, vocab_size): the most likely, or a sampled one.

    uniform: to sample by, a list of B random numbers from [0, 1). If tokens 7, 2 and 9 have the probabilities
    0.5, 0.3 and 0.2, a number below 0.5 gives token 7, one from there to 0.8 token 2, any other token 9.
    """
    if sampling is None:
        return logits.argmax(dim=-1)
    p = (logits.float() / sampling.temperature).softmax(dim=-1)
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
# these have pending; `choose` picks a token for each; `Dialogue.take` hands it to `Row.write_line`, where
# it joins the row's text and its pending tokens.

MAX_LINE = 200         # tokens that a student may write on a line
MAX_REPEATED = 32      # tokens at a line's end that say one phrase three times or more; GSM8K has at most 24
PREFILL_TOKENS = 4096  # that a forward reads (more, if one row alone has more): its memory grows with them


class Student:
    """A model, its tokenizer and a KV cache of `rows` rows.

    guidance: None, or which of data.GUIDANCE it was trained to be told with a problem.
    """

    def __init__(self, model, tokenizer, rows, guidance=None):
        self.model, self.tokenizer, self.guidance = model.eval(), tokenizer, guidance
        self.device = model.wte.weight.device
        self.cache = KVCache(model.config, rows, self.device, model.wte.weight.dtype)
        self.rows = [Row(self, k) for k in range(rows)]
        self.token_bytes = [tokenizer.decode_bytes([token]) for token in range(tokenizer.end)]
        self.forwards = self.tokens_read = self.tokens_written = 0

    @torch.inference_mode()
    def read(self, rows):
        """Read what is pending in these rows, in one forward. Returns the logits after each row's last token,
        (len(rows), vocab_size)."""
        counts = [len(row.pending) for row in rows]
        self.cache.place([row.number for row in rows], [row.length for row in rows], counts)
        ids = torch.tensor([[token for row in rows for token in row.pending]], device=self.device)  # (1, N)
        last = torch.tensor(list(accumulate(counts)), device=self.device) - 1  # (len(rows),)
        logits = self.model(ids, last, self.cache)
        for row in rows:
            row.mark_read()
        self.forwards += 1
        self.tokens_read += ids.numel()
        self.tokens_written += len(rows)
        return logits


class Row:
    """A row of a student's KV cache: one problem's sequence, as this student reads and writes it.

    The cache holds its first `length` tokens. The row's next forward reads those of `pending`: what the
    student has just written, a result of the calculator, a sub-question or, at first, the whole `prompt`.
    """

    def __init__(self, student, number):
        self.student, self.number = student, number
        self.prompt, self.length, self.pending = [], 0, []

    def begin(self, problem):
        """Start with a problem. If the row holds its very prompt, the last token alone is read again."""
        encode = self.student.tokenizer.encode
        prompt = [token for text in problem_prompt(problem, self.student.guidance) for token in encode(text)]
        is_held = prompt == self.prompt and self.length >= len(prompt)
        self.prompt, self.length = prompt, len(prompt) - 1 if is_held else 0
        self.pending = prompt[self.length:]

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
        self.pending += self.student.tokenizer.encode(text)

    def mark_read(self):
        """The cache holds the pending tokens now."""
        self.length += len(self.pending)
        self.pending = []

    def write_line(self, kind, calculator, watch):
        """Let the student write a line. A generator: yields this row to get a token, and is sent the token.

        Returns (text, stop), as a procedure is sent them for a Request. calculator, watch: see `solve`.
        """
        end, token_bytes = self.student.tokenizer.end, self.student.token_bytes
        text, tokens, stop = b"", [], self.limit([])
        while stop is None:
            token = yield self
            if token == end:
                stop = "end"
            else:
                tokens.append(token)
                self.pending.append(token)
                piece, newline, _ = token_bytes[token].partition(b"\n")
                text += piece
                if newline:
                    stop = "newline"
                else:
                    if calculator and piece.endswith(b"=") and (result := calculator_result(text)):
                        self.append(result)
                        text += result.encode()
                    stop = self.limit(tokens)
            if watch:
                watch(kind, text, stop)
        return text.decode("utf-8", "replace").strip(), stop

    def limit(self, tokens):
        """Why a line of these tokens must be broken off, in words; None if it may go on."""
        if len(tokens) == MAX_LINE:
            return f"wrote more than {MAX_LINE} tokens on a line"
        if len(tokens) % 8 == 0 and repeats_itself(tokens):  # not each time: it takes long
            return "repeated itself"
        block_size = self.student.model.config.block_size
        if self.length + len(self.pending) <= block_size:
            return None
        if len(self.prompt) > block_size:
            return f"cannot read the problem: {len(self.prompt)} tokens, its block has {block_size}"
        return f"filled its block of {block_size} tokens"


def repeats_itself(tokens):
    """Whether a list of tokens ends in one phrase, three times or more, of MAX_REPEATED tokens in all."""
    for n in range(1, len(tokens) // 3 + 1):  # tokens of the phrase
        size = max(3 * n, MAX_REPEATED)
        if size <= len(tokens) and tokens[-1] == tokens[-1 - n] and tokens[-size:-n] == tokens[n - size:]:
            return True
    return False


def converse(problem, record, procedure, rows, calculator, watch):
    """Solve one problem: let the procedure's Requests be written, each in the row of its student.

    A generator: yields the Row that needs a token, and is sent the token; yields None at the end.
    rows: {role: Row}. record, calculator, watch: see `solve`.
    """
    for row in rows.values():
        row.begin(problem)
    requests, line = procedure(problem, record), None
    try:
        while True:
            request = requests.send(line)
            row = rows[request.role]
            for text in request.append:
                row.append(text)
            line = yield from row.write_line(request.kind, calculator, watch)
    except StopIteration:  # of the procedure: it is done
        pass
    except Unfinished as e:
        record["unfinished"] = str(e)
    yield None


class Dialogue:
    """A problem that is being solved, in the rows of one number, one in each student's cache.

    row: the Row that needs a token, since the forward of the number `since`; None when the dialogue is over.
    """

    def __init__(self, number, index, record, conversation, seed, forward):
        self.number, self.index, self.record = number, index, record
        self.conversation, self.rng = conversation, random.Random(seed)  # rng: what to sample by
        self.row, self.since = next(conversation), forward

    def take(self, token, forward):
        """Take the token that `row` needed."""
        self.row, self.since = self.conversation.send(token), forward


def next_group(dialogues, forward):
    """The dialogues whose rows the forward of this number reads, sorted by row.

    All are of one student: the one whose rows have waited longest, added up, so that a forward has many
    rows. If 60 rows need the solver and 4 the decomposer, the solver is read 15 times before these 4 have
    waited as long. Of its rows the one that has waited longest is read for certain. Others are left for
    later if PREFILL_TOKENS have no room for them, or if another is about to read the same prompt: they will
    copy it.
    """
    waiting = defaultdict(list)
    for dialogue in dialogues:
        waiting[dialogue.row.student].append(dialogue)
    candidates = max(waiting.values(), key=lambda group: sum(forward - dialogue.since for dialogue in group))
    group, n_tokens, new_prompts = [], 0, []
    for dialogue in sorted(candidates, key=lambda dialogue: dialogue.since):
        row = dialogue.row
        if row.length == 0:
            row.copy_prompt()
        has_room = not group or n_tokens + len(row.pending) <= PREFILL_TOKENS
        if not has_room or row.length == 0 and row.prompt in new_prompts:
            continue
        if row.length == 0:
            new_prompts.append(row.prompt)
        group.append(dialogue)
        n_tokens += len(row.pending)
    return sorted(group, key=lambda dialogue: dialogue.number)  # neighbours in the cache stand together


def solve(problems, procedure, students, calculator=True, watch=None, sampling=None, samples=1):
    """Run `procedure` for every problem, as many at a time as the students have rows.

    problems: an iterable of dicts; one is taken when a row is free. students: {role: Student}, with equally
    many rows. calculator: whether it completes what is written up to "<<3*4=". sampling: a Sampling, or None
    for the most likely tokens. samples: dialogues of each problem, which read the problem once. watch(kind,
    text, stop), if given, sees each line after every token: text in bytes, stop None or why it ends.

    Yields (index of the problem, record) as each dialogue ends. The record has "steps", a list of
    {"question", "solution"}, "answer", str or None, "unfinished", None or why there is no answer, and of
    several samples their number, "sample", from 0.
    """
    jobs = ((index, problem, k) for index, problem in enumerate(problems) for k in range(samples))
    free = list(range(min(len(student.rows) for student in students.values())))  # numbers of rows
    dialogues, forward = {}, 0  # {number of its rows: Dialogue}; the number of the latest forward
    while True:
        while free and (job := next(jobs, None)):
            index, problem, k = job
            record = {"steps": [], "answer": None, "unfinished": None}
            if samples > 1:
                record["sample"] = k
            rows = {role: student.rows[free[0]] for role, student in students.items()}
            conversation = converse(problem, record, procedure, rows, calculator, watch)
            seed = f"{sampling and sampling.seed} {k} {problem['problem']}".encode("utf-8", "replace")
            dialogue = Dialogue(free[0], index, record, conversation, seed, forward)
            if dialogue.row:
                dialogues[free.pop(0)] = dialogue
            else:
                yield index, record
        if not dialogues:
            return
        forward += 1
        group = next_group(dialogues.values(), forward)
        logits = group[0].row.student.read([dialogue.row for dialogue in group])
        tokens = choose(logits, sampling, sampling and [dialogue.rng.random() for dialogue in group])
        for dialogue, token in zip(group, tokens.tolist()):
            dialogue.take(token, forward)
            if not dialogue.row:
                free.append(dialogue.number)
                del dialogues[dialogue.number]
                yield dialogue.index, dialogue.record


# ---- loading students --------------------------------------------------------------------------------------

def load_student(folder, role, rows, device="cpu", dtype=torch.float32):
    """The Student of a role from its folder (a Path). Raises UserError, one line, if there is none."""
    path = folder / "student.json"
    if not path.exists():
        out = "" if folder == Path("runs", role) else f" --out {folder}"
        raise UserError(f"{folder}: no student here yet; make one with: python train.py --role {role}{out}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        trained_role, guidance = fields["role"], fields.get("guidance")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: field 'role' is missing or broken")
    if trained_role != role:
        raise UserError(f"{folder}: a student of the role '{trained_role}', expected is the role '{role}'")
    try:
        model = GPT.from_pretrained(folder)
    except ValueError as e:
        raise UserError(e)
    tokenizer = Tokenizer.from_pretrained(folder, model.config.vocab_size)
    try:
        return Student(prepack_matrices(model.to(device, dtype)), tokenizer, rows, guidance)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise UserError(f"{folder}: no memory for {rows} problems at once; --rows takes fewer")


# ---- metrics -----------------------------------------------------------------------------------------------

def vote(records):
    """The record whose answer most samples of a problem have, between equals the earliest sample's.

    It gets "votes", all answers: a list of str or None. A sample without an answer does not vote.
    """
    records = sorted(records, key=lambda record: record["sample"])
    answers = [record["answer"] for record in records]
    votes = [0 if a is None else sum(b is not None and same_answer(a, b) for b in answers) for a in answers]
    return records[votes.index(max(votes))] | {"votes": answers}


def solve_by_vote(problems, procedure, students, samples=1, **options):
    """As `solve`, with its parameters, but of several samples one record for each problem: that of `vote`."""
    records = defaultdict(list)
    for index, record in solve(problems, procedure, students, samples=samples, **options):
        records[index].append(record)
        if len(records[index]) == samples:
            yield index, vote(records.pop(index)) if samples > 1 else record


def wilson(correct, n, z=1.959964):
    """The Wilson 95 % interval of the share correct / n: two shares (Wilson 1927)."""
    p, scale = correct / n, 1 + z * z / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(only_a, only_b):
    """The exact two-sided p-value of McNemar's test (McNemar 1947).

    only_a, only_b: how many problems one of two runs solved alone. If both are equally good, each of these
    problems is as likely to be the one's as the other's.
    """
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2 ** n)


def bleu(texts, references):
    """sacrebleu's BLEU (0 to 100) of texts against a reference each; None where it is not installed."""
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        return None
    return corpus_bleu(texts, [references], force=True).score


def share(hits):
    """How many of a list of bool are true, in words: "95.3 % (953/1000)"."""
    return f"{100 * sum(hits) / len(hits):.1f} % ({sum(hits)}/{len(hits)})"


def teacher_steps(problem):
    """The teacher's steps of a problem; [] where it has none, or sub-questions without solutions."""
    steps = problem.get("steps") or []
    return steps if all(isinstance(step.get("solution"), str) for step in steps) else []


def question_metrics(problems, results):
    """How the students' sub-questions match the teacher's: a list of lines, [] if no teacher's are known."""
    def questions(steps):
        return [" ".join(step["question"].split()) for step in steps]

    pairs = [(questions(result["steps"]), questions(teacher_steps(problem)))
             for problem, result in zip(problems, results) if teacher_steps(problem)]
    if not pairs:
        return []
    exact, any_order, as_many = (share([key(asked) == key(teachers) for asked, teachers in pairs])
                                 for key in (list, sorted, len))
    lines = [f"questions exactly the teacher's: {exact}, in any order: {any_order}",
             f"as many questions as the teacher's: {as_many}"]
    score = bleu([" ".join(asked) for asked, _ in pairs], [" ".join(teachers) for _, teachers in pairs])
    return lines if score is None else [*lines, f"questions' BLEU against the teacher's: {score:.1f}"]


def metrics(problems, results, students_ask):
    """What an evaluation shows, a list of lines; the accuracy comes last.

    results: one for each problem (see `evaluate`). students_ask: whether the sub-questions are their own.
    """
    by_steps, by_source, scored = defaultdict(list), defaultdict(list), []
    for problem, result in zip(problems, results):
        if result["correct"] is not None:
            scored.append(result["correct"])
            by_steps[len(teacher_steps(problem))].append(result["correct"])
            by_source[printable(str(problem.get("source", "no source")))].append(result["correct"])
    lines = [f"{n} step{'s' * (n > 1)}: {share(hits)}" for n, hits in sorted(by_steps.items()) if n]
    if len(by_source) > 1:
        lines += [f"{source}: {share(hits)}" for source, hits in sorted(by_source.items())]
    if students_ask:
        lines += question_metrics(problems, results)
    reasons = Counter(result["unfinished"] for result in results if result["unfinished"])
    lines += [f"unfinished: {count} ({reason})" for reason, count in reasons.most_common()]
    if len(scored) < len(results):
        lines.append(f"not scored, without a known answer: {len(results) - len(scored)} of {len(results)}")
    if scored:
        low, high = wilson(sum(scored), len(scored))
        lines.append(f"accuracy {share(scored)}, 95 % interval {100 * low:.1f}-{100 * high:.1f}")
    return lines


def speed(students, n, seconds):
    """What it took to solve n problems, a list of lines: in all, and for each student."""
    written = sum(student.tokens_written for student in students.values())
    lines = [f"{seconds:.1f} s, {n / seconds:.1f} problems/s, {written / seconds:,.0f} tokens/s written"]
    for role, student in students.items():
        rows, forwards = len(student.rows), max(1, student.forwards)
        read, wrote = student.tokens_read / forwards, student.tokens_written / forwards
        cache = (student.cache.k.nbytes + student.cache.v.nbytes) / rows / 2 ** 20
        lines.append(f"{role}: {student.forwards:,} forwards, {read:.1f} tokens read and {wrote:.1f} written "
                     f"in each; {rows} rows, a cache of at most {cache:.1f} MiB for each")
    return lines


# ---- evaluation and its results file -----------------------------------------------------------------------

def evaluate(problems, procedure, students, options, out=None, done=()):
    """Solve problems, and append each result to the file `out` (binary, unbuffered) as it is there.

    options: `calculator`, `sampling` and `samples` of `solve`. done: {index: result} of problems solved
    earlier. Returns a result for each problem, a dict: "row", the number of the problem in the file, from
    1, its "id" and text, what its record has, whether it is "correct", and the known answer of the
    "teacher"; None for both where no answer is known.
    """
    results = dict(done)
    # the longest first: rows beside each other are equally long, and no long one is left alone at the end
    todo = sorted((index for index in range(len(problems)) if index not in results),
                  key=lambda index: -len(problems[index]["problem"]))
    scored = [result["correct"] for result in results.values() if result["correct"] is not None]
    n_correct, n_scored = sum(scored), len(scored)
    with tqdm(total=len(problems), initial=len(done), unit=" problems", disable=None) as bar:
        for k, record in solve_by_vote([problems[index] for index in todo], procedure, students, **options):
            index, problem = todo[k], problems[todo[k]]
            said, teacher, correct = record["answer"], problem.get("answer"), None
            if teacher is not None:
                correct = said is not None and same_answer(said, teacher)
                n_correct, n_scored = n_correct + correct, n_scored + 1
                bar.set_postfix_str(f"accuracy {100 * n_correct / n_scored:.1f} %", refresh=False)
            about = {"row": index + 1, "id": problem.get("id", index + 1), "problem": problem["problem"]}
            results[index] = about | record | {"correct": correct, "teacher": teacher}
            if out:
                append_line(out, results[index])
            bar.update()
    return [results[index] for index in range(len(problems))]


def append_line(out, row):
    """Append a dict to a file as a line of JSON. Raises UserError, for example on a full disk."""
    data = to_jsonl([row])
    try:
        while data:
            data = data[out.write(data):]
    except OSError as e:
        raise UserError(f"{out.name}: {e.strerror}")


SETTINGS = b'{"settings": {'  # how a results file begins


def read_results(path):
    """Read a results file: its first line is {"settings": {...}}, each further one a result of `evaluate`.

    Returns (settings, results, size). A last line that was cut off when its run was killed is left out:
    `size` is that of the whole lines, in bytes; without any the settings are None. Raises UserError, one
    line, if it is no results file.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}")
    if not content.startswith(SETTINGS) and not SETTINGS.startswith(content):
        raise UserError(f"{path}: no results file of --eval FILE --out FILE")
    size = content.rfind(b"\n") + 1
    rows = list(parse_rows(content[:size], path))
    for where, result in rows[1:]:
        if not (isinstance(result.get("row"), int) and isinstance(result.get("problem"), str)
                and result.get("correct", "") in (True, False, None)):
            raise UserError(f"{where}: not a line of --eval FILE --out FILE")
    return rows[0][1]["settings"] if rows else None, [result for _, result in rows[1:]], size


def open_results(path, settings):
    """Open a results file to append to it. Returns (file, {index: result} of what it holds already).

    A last line that was cut off is removed. Raises UserError, and leaves the file as it was, if it is no
    results file or was written with other settings (a dict).
    """
    out = open(path, "ab+", buffering=0)
    if not path.is_file():  # /dev/stdout
        return out, {}
    found, results, size = read_results(path)
    differences = [key for key in settings if found and found.get(key) != settings[key]]
    if differences:
        raise UserError(f"--out {path}: holds another run's results (not the same {', '.join(differences)}); "
                        "name another file, or remove it", 2)
    out.truncate(size)
    if not found:
        append_line(out, {"settings": settings})
    return out, {result["row"] - 1: result for result in results}


def checksum(problems):
    """A checksum of problems, their steps and answers."""
    return hashlib.sha256(json.dumps(problems, sort_keys=True).encode()).hexdigest()[:16]


def student_checksum(folder):
    """A checksum of a student's weights, shape and vocabulary; not of how it was trained."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*") if path.suffix in (".json", ".safetensors")):
        if path.name != "student.json":
            with open(path, "rb") as f:
                while chunk := f.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()[:16]


def compare(path_a, path_b):
    """Print how two results files of the same problems differ, with McNemar's exact test."""
    a, b = ({(result["row"], result["problem"]): result["correct"] for result in read_results(path)[1]
             if result["correct"] is not None} for path in (path_a, path_b))
    if a.keys() != b.keys() or not a:
        raise UserError(f"--compare: {path_a} and {path_b} are not of the same problems "
                        f"({len(a)} and {len(b)}, {len(a.keys() & b)} in both)")
    print(f"{path_a}: {share(list(a.values()))}")
    print(f"{path_b}: {share(list(b.values()))}")
    pairs = Counter((a[key], b[key]) for key in a)
    only_a, only_b = pairs[True, False], pairs[False, True]
    print(f"both correct: {pairs[True, True]}, only the first: {only_a}, only the second: {only_b}, "
          f"neither: {pairs[False, False]}")
    print(f"McNemar's exact test: p = {mcnemar(only_a, only_b):.3g}")


# ---- the report --------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Report</title>
<style>
body { font: 16px/1.45 system-ui, sans-serif; max-width: 70rem; margin: auto; padding: 1rem }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .7rem }
details { border-left: .3rem solid #999; margin: .5rem 0; padding-left: .7rem; overflow-wrap: anywhere }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem } .first { background: #fdd }
.correct { border-color: #2a7 } .wrong { border-color: #c33 }
#correct:checked ~ details:not(.correct), #wrong:checked ~ details:not(.wrong) { display: none }
</style>
<p>Each dialogue beside the teacher's. In a wrong one the first step with another result is marked.</p>
<input type="radio" name="shown" id="all" checked><label for="all">all</label>
<input type="radio" name="shown" id="correct"><label for="correct">correct</label>
<input type="radio" name="shown" id="wrong"><label for="wrong">wrong</label>
"""


def report(problems, results, lines):
    """An HTML page that needs no other file: the metrics (lines), then each dialogue beside the teacher's."""
    dialogues = [report_dialogue(problem, result) for problem, result in zip(problems, results)]
    figures = escape("\n".join(lines))
    return "\n".join([PAGE, f"<h1>{escape(lines[-1])}</h1><pre>{figures}</pre>", *dialogues, "</html>", ""])


def report_dialogue(problem, result):
    """A dialogue of the report as HTML, unfolded by a click on its problem. All texts are escaped."""
    def side(name, steps, end, marked):
        items = [f"<li{' class=first' if k == marked else ''}>"
                 + escape(" ".join(step[field] for field in ("question", "solution") if field in step))
                 for k, step in enumerate(steps)]
        return f"<div><h4>{name}</h4><ol>{''.join(items)}</ol><p>{escape(end)}</div>"

    teachers = teacher_steps(problem)
    teacher_results = [step_result(step) for step in teachers]
    marked = None
    if result["correct"] is False and teachers:
        marked = next((k for k, step in enumerate(result["steps"])
                       if not any(same_answer(step_result(step), other) for other in teacher_results)), None)
    end = answer_line(result)
    if "votes" in result:
        end += f" (votes: {', '.join(answer or 'none' for answer in result['votes'])})"
    kind = {True: "correct", False: "wrong", None: "unscored"}[result["correct"]]
    return (f"<details class={kind}><summary>{result['row']}. {escape(result['problem'])}</summary>"
            f"<div class=sides>{side('Students', result['steps'], end, marked)}"
            f"{side('Teacher', teachers, 'Answer: ' + (result['teacher'] or 'not known'), None)}</div>"
            "</details>")


def step_result(step):
    """The result of a step's last calculator annotation, else its last number, else "": a str."""
    solution = step.get("solution", "")
    found = re.findall(r"=([^=<>]+)>>", solution) or re.findall(r"-?\d[\d,]*\.?\d*", solution)
    return found[-1] if found else ""


# ---- the prompt --------------------------------------------------------------------------------------------

NO_PROBLEM = ("No answer: this has neither a number nor a question. Type a word problem, such as: "
              "Tom has 5 apples. He buys 3 more apples. How many apples does Tom have?")
PROBLEM_SIGN = re.compile(r"\d|\?|\b(two|three|four|five|six|seven|eight|nine|ten|dozen|half)\b", re.I)


def printable(text):
    """A text without what would steer a terminal or is no character."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def show(problem, procedure, students, options):
    """Solve one problem (a dict) and print the dialogue as it is written, or how its samples voted.

    options: as for `evaluate`. Returns whether there is an answer. A text such as "Hello", which has
    neither a number nor a question mark, gets one line.
    """
    if not PROBLEM_SIGN.search(problem["problem"]):
        print(NO_PROBLEM)
        return False
    one_sample = options["samples"] == 1
    watch = line_printer() if one_sample else None
    (_, record), = solve_by_vote([problem], procedure, students, watch=watch, **options)
    if not one_sample:
        for k, step in enumerate(record["steps"], 1):
            for kind, text in step.items():
                print(f"{kind.capitalize()} {k}: {printable(text)}")
        votes = Counter(printable(answer or "none") for answer in record["votes"])
        print("Votes: " + ", ".join(f"{answer} ({n})" for answer, n in votes.most_common()))
    print(printable(answer_line(record)), flush=True)
    return record["answer"] is not None


def answer_line(record):
    """How a dialogue ended, in words."""
    return f"No answer: {record['unfinished']}" if record["answer"] is None else f"Answer: {record['answer']}"


def line_printer():
    """A `watch` for `solve` that prints questions and solutions as they are written: "Question 1: How ..."""
    lines, shown = Counter(), 0  # lines of each kind so far; characters of this one that are printed

    def watch(kind, text, stop):
        nonlocal shown
        text = printable(text.decode("utf-8", "ignore").lstrip())  # the last character may not be whole yet
        if kind == "answer" or text[:len(MARK)] == MARK[:len(text)]:
            return  # nothing yet, or the answer, which `show` prints
        if not shown:
            lines[kind] += 1
            print(f"{kind.capitalize()} {lines[kind]}: ", end="")
        print(text[shown:], end="\n" if stop else "", flush=True)
        shown = 0 if stop else len(text)

    return watch


def prompt(procedure, students, options, guide):
    """Solve the problems that are typed, or come through a pipe, one a line, up to its end or Ctrl-C.

    After /questions, or always with the procedure `given`, sub-questions are typed too, up to an empty line.
    """
    is_typed, problem = sys.stdin.isatty(), None
    sys.stdin.reconfigure(errors="replace")

    def ask(label):
        return input(label if is_typed else "").strip()

    def ask_steps():
        steps = []
        while question := ask("Question: "):
            steps.append({"question": question})
        return steps

    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - arrow keys and history, where Python has it
        print("Type a problem on one line and press Enter; Ctrl-D leaves."
              + " /questions: the last one again, with sub-questions of yours." * ("solver" in students))
    try:
        while True:
            text = ask("\nProblem: ")
            if text == "/questions" and not (problem and "solver" in students):
                print("/questions: " + ("type a problem first" if "solver" in students else "no solver here"))
            elif text:
                if text != "/questions":
                    problem = {"problem": text} | ({"guide": guide} if guide else {})
                if text == "/questions" or procedure is given and PROBLEM_SIGN.search(text):
                    show(problem | {"steps": ask_steps()}, given, students, options)
                else:
                    show(problem, procedure, students, options)
    except (EOFError, KeyboardInterrupt):
        if is_typed:
            print()


# ---- flags and main ----------------------------------------------------------------------------------------

def parse_args(argv=None):
    """The flags of infer.py, and made of them `calculator` and `sampling`. Raises UserError (status 2)."""
    p = Parser(description="Solve problems with trained students; without a flag, at a prompt.")
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--problem", metavar="TEXT", help="solve this one and leave")
    mode.add_argument("--eval", type=Path, metavar="FILE", help="solve the problems of a JSONL file and "
                      "print the metrics; those without an answer are solved and not scored")
    mode.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"),
                      help="compare two files of --out by McNemar's exact test")
    p.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first N problems of --eval")
    p.add_argument("--out", type=Path, metavar="FILE", help="append each result of --eval, as JSONL, as it "
                   "is there; goes on where an earlier run of the same command stopped")
    p.add_argument("--report", type=Path, metavar="FILE", help="write --eval's results as one HTML page")
    p.add_argument("--procedure", choices=PROCEDURES, default="socratic", help="how to solve (%(default)s)")
    p.add_argument("--decomposer", type=Path, metavar="DIR", help="(runs/decomposer or runs/stepwise)")
    p.add_argument("--solver", type=Path, metavar="DIR", help="(runs/solver)")
    p.add_argument("--student", type=Path, metavar="DIR", help="of unified, cot or answer (runs/PROCEDURE)")
    p.add_argument("--no-calculator", action="store_true", help="let the students do the arithmetic")
    p.add_argument("--guide", metavar="TEXT", help="what a decomposer trained with --guidance is told with a "
                   "problem: a number of steps, or equations; with --eval it is told those of the file")
    p.add_argument("--temperature", type=number(0), metavar="T",
                   help="sample tokens (0: take the most likely; 0.7 with --votes)")
    p.add_argument("--top-k", type=whole_number(0), default=0, metavar="K",
                   help="sample from the K most likely tokens (all)")
    p.add_argument("--top-p", type=number(0, 1, above=True), default=1.0, metavar="P",
                   help="sample from the most likely tokens whose probabilities sum to P (1)")
    p.add_argument("--votes", type=whole_number(1), default=1, metavar="K",
                   help="sample K dialogues, take the answer that most have (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of sampling (%(default)s)")
    p.add_argument("--rows", type=whole_number(1), default=64, metavar="N",
                   help="dialogues of --eval that are decoded at once (%(default)s)")
    p.add_argument("--device", help="(cuda or mps if there is one, else cpu)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    args = p.parse_args(argv)
    if args.temperature is None:
        args.temperature = 0.7 if args.votes > 1 else 0.0
    check_args(args)
    args.device = get_device(args.device)
    args.calculator = not args.no_calculator
    args.sampling = None
    if args.temperature:
        args.sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    return args


def check_args(args):
    """Raise UserError (status 2) for flags that do not go together."""
    for flag in ("limit", "out", "report"):
        if getattr(args, flag) is not None and not args.eval:
            raise UserError(f"--{flag} goes with --eval FILE", 2)
    if args.procedure == "given" and args.problem is not None:
        raise UserError("--procedure given needs sub-questions: from --eval FILE or at the prompt", 2)
    if args.guide and args.eval:
        raise UserError("--guide does not go with --eval, which tells the steps or equations of the file", 2)
    if not args.temperature and (args.votes > 1 or args.top_k or args.top_p < 1):
        raise UserError("--votes, --top-k and --top-p need a --temperature of more than 0", 2)
    if args.report and not args.report.parent.is_dir():
        raise UserError(f"--report {args.report}: no such folder", 2)
    for flag in ("solver", "decomposer", "student"):
        if getattr(args, flag) and flag not in student_flags(args.procedure).values():
            raise UserError(f"--procedure {args.procedure} has no use for --{flag}", 2)


def student_flags(procedure):
    """The flag that names each student of a procedure, {role: flag}."""
    flags = {"solver": "solver", "decomposer": "decomposer", "stepwise": "decomposer"}
    return {role: flags.get(role, "student") for role in PROCEDURES[procedure][1]}


def check_guidance(args, students, problems):
    """Raise UserError unless each student that was trained with guidance can be told it for every problem."""
    for role, student in students.items():
        trained = f"the {role} was trained with --guidance {student.guidance}"
        if student.guidance and not args.eval and not args.guide:
            raise UserError(f"{trained}: tell it what to expect by --guide TEXT", 2)
        for k, problem in enumerate(problems, 1):
            if student.guidance and "guide" not in problem and not teacher_steps(problem):
                raise UserError(f"{args.eval}: problem {k} has neither 'steps' nor 'guide', and {trained}")


def main(argv=None):
    """Parse, load the students; then solve a file, one problem, or what is typed."""
    args = parse_args(argv)
    if args.compare:
        return compare(*args.compare)
    procedure, _ = PROCEDURES[args.procedure]
    problems = []
    if args.eval:
        problems = read_problems(args.eval, steps=procedure is given, answer=False)[:args.limit]
    rows = min(args.rows, max(1, len(problems)) * args.votes)
    flags = student_flags(args.procedure)
    folders = {role: getattr(args, flag) or Path("runs", role) for role, flag in flags.items()}
    students = {role: load_student(folder, role, rows, args.device, getattr(torch, args.dtype))
                for role, folder in folders.items()}
    check_guidance(args, students, problems)
    options = {"calculator": args.calculator, "sampling": args.sampling, "samples": args.votes}
    if args.eval:
        evaluate_file(args, problems, procedure, students, options, folders)
    elif args.problem is not None:
        problem = {"problem": args.problem} | ({"guide": args.guide} if args.guide else {})
        if not show(problem, procedure, students, options):
            sys.exit(1)
    else:
        prompt(procedure, students, options, args.guide)


def evaluate_file(args, problems, procedure, students, options, folders):
    """--eval: solve the problems, print the metrics, write --out and --report."""
    out, done = None, {}
    if args.out:  # with other settings than these its results are another run's
        out, done = open_results(args.out, {
            "procedure": args.procedure, "problems": checksum(problems), "calculator": args.calculator,
            "sampling": args.sampling and list(args.sampling), "votes": args.votes, "dtype": args.dtype,
            "students": [student_checksum(folder) for folder in folders.values()],
            "guidance": [student.guidance for student in students.values()]})
    start = time.perf_counter()
    results = evaluate(problems, procedure, students, options, out, done)
    lines = []
    if len(done) < len(problems):
        lines += speed(students, len(problems) - len(done), time.perf_counter() - start)
    lines += [f"guided by the {student.guidance} of the file's own solutions"
              for student in students.values() if student.guidance]
    lines += metrics(problems, results, students_ask=procedure in (socratic, stepwise, unified))
    print(*lines, sep="\n")
    if args.report:
        args.report.write_text(report(problems, results, lines), encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    run_script(main)
