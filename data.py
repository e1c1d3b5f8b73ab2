r"""From a JSONL row to tensors, and everything about answers. Start reading the project here.

A teacher's annotation of one problem is one JSON object, one a line in a file (here on four lines):

    {"id": "a-1", "problem": "Ann has 3 cats. Bob has 2 more. How many do they have together?",
     "steps": [{"question": "How many does Bob have?", "solution": "Bob has <<3+2=5>>5 cats."},
               {"question": "How many do they have together?", "solution": "They have <<3+5=8>>8 cats."}],
     "answer": "8"}

A role decides which of these texts a student reads and which it learns to write. The row becomes one sequence
of tokens, laid out in segments. For a solver from scratch, which reads and writes letters for numbers:

    segment                                                               under the loss
     Ann has α cats. Bob has β more. How many do they have together?\n    no, it is read
     How many does Bob have?\n                                            no
     Bob has <<α+β=                                                       yes, it is to be written
    γ>>                                                                   no, the calculator writes it
    γ cats.\n                                                             yes
     How many do they have together?\n                                    no
     They have <<α+γ=                                                     yes
    δ>>                                                                   no
    δ cats.\n                                                             yes
    ####                                                                  no
     δ<|endoftext|>                                                       yes

A student from scratch also has to learn to read: for it, what is not under the loss has a small weight in it
that falls to 0 in the course of a training (`falling_prompt_weight` in train.py). A pretrained GPT-2 can
read, numbers too: its sequence has "Ann has 3 cats." and "Bob has <<3+2=".
"""
import argparse
import ast
import codecs
import contextlib
import hashlib
import heapq
import json
import math
import operator
import os
import random
import re
import shutil
import sys
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken
import torch


# ---- the method: one table ---------------------------------------------------------------------------------

class Role(NamedTuple):
    """How a problem is laid out for a role. Each kind of segment is a letter:

    P problem, q sub-question, s solution, # the mark before the answer, a answer, . the token <|endoftext|>.
    """
    step: str   # what each step adds to the sequence, after P
    close: str  # what stands at the end
    loss: str   # the segments under the loss


# "#" is under the loss where the student itself must decide that the answer is due. A solver is told: it is
# given the mark when no sub-question is left.
ROLES = {
    "answer": Role("", "#a.", "a."),
    "cot": Role("s", "#a.", "s#a."),
    "unified": Role("qs", "#a.", "qs#a."),
    "decomposer": Role("q", ".", "q."),
    "stepwise": Role("qs", ".", "q."),
    "solver": Role("qs", "#a.", "sa."),
}
MARK = "####"  # GSM8K's mark before the final answer
GUIDANCE = ("steps", "equations")  # what the paper's guided decomposer may be told beside the problem


# ---- rows in and out ---------------------------------------------------------------------------------------

def read_rows(path):
    """Read a file of JSON objects, one a line (JSONL) or all in one array. Empty lines are skipped.

    Yields (where, row): "path:line" or "path, row n", and the object as a dict. Raises UserError, or OSError
    for a file that cannot be read.
    """
    yield from parse_rows(Path(path).read_bytes(), path)


NOT_JSON = {  # what a file of another kind begins with
    b"\x1f\x8b": "compressed by gzip; unpack it first, with gunzip",
    b"PAR1": "a Parquet file; export its rows as JSON lines first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch that with: git lfs pull",
    codecs.BOM_UTF16_LE: "UTF-16 text; save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; save it as UTF-8",
}


def parse_rows(content, path):
    """As `read_rows`, from the file's bytes."""
    for beginning, what in NOT_JSON.items():
        if content.startswith(beginning):
            raise UserError(f"{path}: {what}")
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"["):
        rows = ((f"{path}, row {n}", row) for n, row in enumerate(_parse_json(content, path), 1))
    else:
        lines = enumerate(content.splitlines(), 1)  # bytes end lines at \n, \r and \r\n alone
        rows = ((f"{path}:{n}", _parse_json(line, f"{path}:{n}")) for n, line in lines if line.strip())
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: a JSON object is expected, found {type(row).__name__}")
        yield where, row


def _parse_json(text, where):
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 at byte {e.start} of it")
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON: {e}")


def check_problem(row, where, steps=True, answer=True):
    """Raise UserError that names the field unless `row` is a problem as `read_problems` returns it."""
    _check_text(row, "problem", where)
    if answer or row.get("answer") is not None:
        _check_text(row, "answer", where)
    if not steps and not row.get("steps"):
        return
    if not isinstance(row.get("steps"), list) or not row["steps"]:
        raise UserError(f"{where}: field 'steps' must be a list with at least one step")
    for k, step in enumerate(row["steps"]):
        if not isinstance(step, dict):
            raise UserError(f"{where}: field 'steps[{k}]' must be an object with 'question' and 'solution'")
        _check_text(step, "question", where, f"steps[{k}].")
        if answer or step.get("solution") is not None:
            _check_text(step, "solution", where, f"steps[{k}].")


def _check_text(row, field, where, prefix=""):
    if field not in row:
        raise UserError(f"{where}: field '{prefix}{field}' is missing")
    if not isinstance(row[field], str):
        found = type(row[field]).__name__
        raise UserError(f"{where}: field '{prefix}{field}' must be a string, found {found}")
    if not row[field].strip():
        raise UserError(f"{where}: field '{prefix}{field}' is empty")


def read_problems(path, steps=True, answer=True):
    """Read a file of problems strictly.

    steps, answer: whether each row must have them. A problem to be solved and not scored needs neither, nor
    solutions of its sub-questions. Returns a list of dicts as in the example at the top; other keys are kept.
    Raises UserError that names file, line and field, or OSError.
    """
    problems = []
    for where, row in read_rows(path):
        check_problem(row, where, steps, answer)
        problems.append(row)
    if not problems:
        raise UserError(f"{path}: holds no problem")
    return problems


def to_jsonl(rows):
    """Rows (dicts) as the bytes of a JSONL file. Lone surrogates, which UTF-8 cannot encode, are escaped."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace")


def write_problems(path, problems):
    """Write problems (dicts) to a JSONL file."""
    Path(path).write_bytes(to_jsonl(problems))


def read_run_file(path, error, status=1):
    """Read what a run has appended to its file: {"settings": {...}} in the first line, then a row a line.

    Returns (settings, rows, size in bytes), all without a last line that was cut off when the run was killed;
    settings is None if it has none yet. Raises UserError(error, status) for a file of another kind.
    """
    content, beginning = Path(path).read_bytes(), b'{"settings": {'
    if not content.startswith(beginning) and not beginning.startswith(content):
        raise UserError(f"{path}: {error}", status)
    size = content.rfind(b"\n") + 1
    first, *rows = [row for _, row in parse_rows(content[:size], path)] or [{"settings": None}]
    return first["settings"], rows, size


def checksum(problems):
    """A checksum of problems with all that they hold: what is resumed must go on with the same."""
    return hashlib.sha256(json.dumps(problems, sort_keys=True).encode()).hexdigest()[:16]


# ---- from a problem to a sequence of tokens ----------------------------------------------------------------

def one_line(text):
    """A text with single spaces in place of all its white space."""
    return " ".join(text.split())


def to_line(text):
    """A problem, a sub-question or a solution as it stands in a sequence: " text\\n", on one line.

    The space comes first because GPT-2's tokens carry the space before them: a name is then the same token at
    the start of a line and inside it, and a student can copy it as it stands.
    """
    return f" {one_line(text)}\n"


def guidance_text(problem, guidance):
    """The paper's guidance: what a decomposer is told beside the problem.

    guidance "steps": how many sub-questions to ask, "2"; "equations": which, "3+2=5, 3+5=8". They are taken
    from the problem's own solutions unless it has a text of its own under "guide".
    """
    if "guide" in problem:
        return str(problem["guide"])
    if guidance == "steps":
        return str(len(problem["steps"]))
    solutions = " ".join(step.get("solution", "") for step in problem["steps"])
    return ", ".join(re.findall("<<(.*?)>>", solutions))


def problem_prompt(problem, guidance=None, with_letters=False):
    """The texts that a sequence begins with, the problem's line and with `guidance` that of the guidance; and
    the Letters that stand in them for numbers, or None.
    """
    texts = [to_line(problem["problem"])] + ([to_line(guidance_text(problem, guidance))] if guidance else [])
    if not with_letters:
        return texts, None
    letters = Letters(texts[0])
    return [letters.problem, *map(letters.hide, texts[1:])], letters


def segments(problem, role, guidance=None, calculator=True, letters=False):
    """Lay a problem out for a role: a list of (text, in_loss) in order. The text None is the token
    <|endoftext|>. letters: numbers are letters (see `Letters`).

    Lines end in a newline and answers in <|endoftext|>: so a student learns when to stop. What the calculator
    writes, "5>>" behind "<<3+2=", is not under the loss but like a text that is read (see loss_weights). It
    cannot be guessed: at the end of a training it would be most of a solver's loss, and hide the gradient of
    the equation. calculator=False: a student learns to write that too.
    """
    layout, (prompt, its_letters) = ROLES[role], problem_prompt(problem, guidance, letters)
    hide = its_letters.hide if letters else str  # str(text) is the text itself
    parts = [(text, False) for text in prompt]
    for step in problem["steps"]:
        for kind in layout.step:
            text = hide(to_line(step["question" if kind == "q" else "solution"]))
            pieces = split_at_results(text) if kind == "s" and calculator else [(text, True)]
            parts += [(text, kind in layout.loss and is_written) for text, is_written in pieces]
    text_of = {"#": MARK, "a": hide(f" {one_line(problem['answer'])}"), ".": None}
    return parts + [(text_of[kind], kind in layout.loss) for kind in layout.close]


ANNOTATION = re.compile(r"<<([^<>]*?)=([^<>=]*)>>")  # GSM8K's calculator annotation, <<3*4=12>>


def split_at_results(solution):
    """What a student writes and what the calculator adds: a list of (text, whether the student writes it),
    [("Bob has <<3+2=", True), ("5>>", False), ("5 cats.", True)].
    """
    pieces, end = [], 0
    for match in ANNOTATION.finditer(solution):
        pieces += [(solution[end:match.start(2)], True), (solution[match.start(2):match.end()], False)]
        end = match.end()
    return pieces + [(solution[end:], True)]


def merge_steps(problems, share, seed):
    """Training problems for a solver, of which some have fewer sub-questions than steps.

    Of `share` of the problems with several steps the first few become one, which has the last one's question:

        How many does Sara have?      <<3*12=36>>36     ->    How many does she have left?
        How many does she have left?  <<36-10=26>>26          <<3*12=36>>36 <<36-10=26>>26

    A decomposer asks too little at times. A solver that has seen such problems then takes the steps between,
    and at a second look (infer.py) all steps for the last question alone.
    """
    rng, merged = random.Random(seed), []
    for problem in problems:
        steps = problem["steps"]
        if len(steps) > 1 and rng.random() < share:
            n = rng.randint(2, len(steps))
            solution = " ".join(step["solution"] for step in steps[:n])
            steps = [{"question": steps[n - 1]["question"], "solution": solution}, *steps[n:]]
        merged.append(problem | {"steps": steps})
    return merged


def encode_problems(problems, role, tokenizer, **options):
    """The sequences of problems for a role: a list of (ids, loss_mask), numpy arrays of int32 and bool.
    options: of `segments`.

    Segments are encoded one by one, as they are when a student reads them: the same token boundaries.
    """
    laid_out = [segments(problem, role, **options) for problem in problems]
    texts = list(dict.fromkeys(text for parts in laid_out for text, _ in parts if text is not None))
    ids_of = dict(zip(texts, tokenizer.encode_batch(texts))) | {None: [tokenizer.end]}
    sequences = []
    for parts in laid_out:
        ids = [ids_of[text] for text, _ in parts]
        loss_mask = np.repeat([in_loss for _, in_loss in parts], [len(part) for part in ids])
        sequences.append((np.concatenate(ids).astype(np.int32), loss_mask))
    return sequences


def fits(sequence, block_size):
    """Whether a sequence fits into the block: every token but the last is read."""
    return len(sequence[0]) <= block_size + 1


# ---- batches -----------------------------------------------------------------------------------------------

WINDOW = 4096  # sequences sorted by length at a time: enough for little padding, few against an epoch


def plan_batches(lengths, batch_tokens, rng):
    """One epoch's batches: a list of lists of sequence indices, each index once.

    A batch holds at most `batch_tokens` tokens, padding included, but at least one sequence. Sequences of
    about equal length meet: a random order is cut into windows, each is sorted by length and cut into
    batches, and the batches are shuffled. rng: a numpy Generator.
    """
    lengths = np.asarray(lengths)
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), WINDOW):
        window = order[start:start + WINDOW]
        batch = []
        for i in window[np.argsort(lengths[window], kind="stable")]:
            if batch and lengths[i] * (len(batch) + 1) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(int(i))
        batches.append(batch)
    return [batches[i] for i in rng.permutation(len(batches))]


PROMPT_STRIDE = 4  # one in so many of the tokens that are only read has a loss weight in a step


def loss_weights(loss_mask, prompt_loss_weight, step):
    """The weight of each token's loss, (n,) float32: 1 where the loss mask is true.

    A token that is only read has the weight prompt_loss_weight on average: in each optimizer step every
    fourth of them has four times that weight, the others have none. The head, a third of a small model's
    work, then computes the logits of a quarter of them.
    """
    in_turn = np.arange(len(loss_mask)) % PROMPT_STRIDE == step % PROMPT_STRIDE
    read = np.where(in_turn, PROMPT_STRIDE * prompt_loss_weight, 0.0)
    return np.where(loss_mask, 1.0, read).astype(np.float32)


def make_batch(sequences, prompt_loss_weight=0.0, step=0, device="cpu"):
    """Pad sequences of (ids, loss_mask) on the right into tensors for next-token prediction.

    Returns
      ids (B, T) int64;
      loss_positions (N,) int64: where in the flattened (B * T) batch the next token has a weight;
      targets (N,) int64: those next tokens;
      weights (N,) float32: those of `loss_weights`. Weight 0 is left out.
    """
    T = max(len(ids) for ids, _ in sequences) - 1
    B = len(sequences)
    ids, targets = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    weights = np.zeros((B, T), np.float32)
    for b, (sequence, loss_mask) in enumerate(sequences):
        n = len(sequence) - 1
        ids[b, :n], targets[b, :n] = sequence[:-1], sequence[1:]
        weights[b, :n] = loss_weights(loss_mask[1:], prompt_loss_weight, step)
    loss_positions = np.flatnonzero(weights)
    arrays = ids, loss_positions, targets.reshape(-1)[loss_positions], weights.reshape(-1)[loss_positions]
    tensors = [torch.from_numpy(array) for array in arrays]
    if torch.device(device).type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]  # copied while the CPU goes on
    return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)


# ---- answers: numbers as people write them -----------------------------------------------------------------

# "1,234.50" or ".5": a comma groups three digits, or it is no part of a number
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FRACTION = r"\d+/\d+"
_SIGN = r"(?:[-+]?[$€£]?|[$€£][-+])"
_NUMBER = (rf"(?P<sign>{_SIGN})"
           rf"(?:(?P<whole>\d+)\s+(?P<mixed>{_FRACTION})|(?P<fraction>{_FRACTION})|(?P<plain>{_UNSIGNED}))")
_WHOLE_TEXT = re.compile(rf"{_NUMBER}\.?\s?%?", re.ASCII)
# in a text a sign belongs to a number only if no operand stands before it: "-5 degrees", but not "10-5"
_IN_TEXT = re.compile(rf"(?<![\w.])(?:(?<![)\]%])|(?=[^-+])){_NUMBER}(?!/?\d)", re.ASCII)
_VULGAR = "\u00bc-\u00be\u2150-\u215e"  # fractions of one character
_LONGEST_NUMBER = 1000  # characters: Python refuses to convert digits without end


def _plain_text(text, fraction="{}"):
    """Spell signs, digit groups and fractions in ASCII: "-5", "12000", "1 1/2". fraction: "({})" puts those
    of one character and of LaTeX in brackets."""
    text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")
    text = text.translate({0x2212: "-", 0x2013: "-"})  # the minus sign and the en dash
    text = re.sub(r"(?<=\d)(?:[\u00a0\u2009\u202f]|\\,)(?=\d{3}(?!\d))", "", text)
    text = re.sub(rf"(?<=\d)(?=\\[dt]?frac|[{_VULGAR}])", " ", text)
    text = re.sub(r"\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}", fraction.format(r"\1/\2"), text)
    # U+00BD is compatible with 1, U+2044 (fraction slash), 2
    return re.sub(f"[{_VULGAR}]", lambda match: fraction.format(
        unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/")), text)


def _value(match):
    """The Fraction of a match of _NUMBER; None for one that divides by zero or has too many digits."""
    if len(match[0]) > _LONGEST_NUMBER:
        return None
    try:
        if match["plain"]:
            value = Fraction(match["plain"].replace(",", ""))
        else:
            value = Fraction(match["mixed"] or match["fraction"]) + int(match["whole"] or 0)
    except ZeroDivisionError:
        return None
    return -value if "-" in match["sign"] else value


def parse_number(text):
    """The Fraction that a text is, if it is one number as people write it; None if it is not.

    It reads "70,000", "70000.0", "$70,000", "-5", "+7", "1/2", "1 1/2", "50%" (as 50: the sign is a unit),
    the minus sign U+2212, digit groups with narrow or no-break spaces, vulgar fractions and LaTeX's
    \\frac{1}{2}.
    """
    match = _WHOLE_TEXT.fullmatch(_plain_text(text).strip())
    return match and _value(match)


def numbers_in(text):
    """The numbers (Fractions) in a text, in order. A minus sign counts where it is no subtraction."""
    values = (_value(match) for match in _IN_TEXT.finditer(_plain_text(text)))
    return [value for value in values if value is not None]


YES_NO = {"true": "yes", "false": "no"}


def same_answer(a, b):
    """Whether two answers (str) are equal: as numbers if both are, else as words ("Yes." and "true" are)."""
    numbers = parse_number(a), parse_number(b)
    if None not in numbers:
        return numbers[0] == numbers[1]
    a, b = (text.strip().rstrip(".").casefold() for text in (a, b))
    return YES_NO.get(a, a) == YES_NO.get(b, b)


# ---- answers: the calculator -------------------------------------------------------------------------------

LONGEST_EXPRESSION = 100  # characters
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(expression):
    """The value (str) of an expression of + - * / // ( ), decimals, percent and thousands commas.

    calculate("3*(4+1.5)") is "16.5". Exact up to four decimal places ("0.125"), otherwise rounded to two
    ("33.33"), as in GSM8K. None if the text is no expression, divides by zero or has over 100 characters.
    """
    text = re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""),
                  one_line(_plain_text(expression, "({})").replace("$", "")))
    if len(text) > LONGEST_EXPRESSION or not re.fullmatch(r"[-+*/().%\d\s]+", text, re.ASCII):
        return None
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)  # Python has no 05 and no 5%
    text = re.sub(r"(\d+\.?\d*|\.\d+)%", r"(\1/100)", text)
    try:
        return _format(_evaluate(ast.parse(text, mode="eval").body, text))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _evaluate(node, text):
    """The Fraction of a node of Python's syntax tree of `text`; ValueError if it is no arithmetic."""
    if isinstance(node, ast.Constant):
        return Fraction(text[node.col_offset:node.end_col_offset])
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.operand, text))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return Fraction(_OPERATORS[type(node.op)](_evaluate(node.left, text), _evaluate(node.right, text)))
    raise ValueError("no arithmetic")


def _format(value):
    """A Fraction in decimals: exact where four places suffice, else rounded to two."""
    places = 4 if (value * 10 ** 4).denominator == 1 else 2
    whole, decimals = divmod(abs(round(value * 10 ** places)), 10 ** places)
    decimals = f"{decimals:0{places}d}".rstrip("0")
    sign = "-" if value < 0 and (whole or decimals) else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def calculator_result(line, letters=None):
    """What the calculator adds to a line (bytes) that a student has just written up to "<<3*4=": the str
    "12>>". For a student that writes `letters`, "<<α*β=", it is the letter of the result, "γ>>".

    None where no annotation is open or its expression has no value.
    """
    _, opened, expression = line.rpartition(b"<<")
    if not opened or not expression.endswith(b"="):
        return None
    expression = expression[:-1].decode("utf-8", "replace")
    result = letters.calculate(expression) if letters else calculate(expression)
    return result and f"{result}>>"


# ---- answers: letters in place of numbers ------------------------------------------------------------------

LETTERS = "αβγδεζηθικλμνξοπρτυφχψω"

_SMALL = ("one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
          "seventeen eighteen nineteen").split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {word: k for k, word in enumerate(_SMALL, 1)}
_NUMBER_WORDS |= {word: 10 * k for k, word in enumerate(_TENS, 2)}

# a number in digits or in words, also "sixty-five"; no ordinal or fraction, "2nd" or "two-thirds", and not
# the word "one", which often is no number: "one of them"
_WORDS_OF_NUMBERS = rf"(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL[:9])}))?|{'|'.join(_SMALL[1:])}"
_ORDINALS = "first|second|thirds?|half|halves|(?:four|fif|six|seven|eigh|nin|ten)ths?"
_DIGITS = re.compile(rf"(?<!\w)(?<!\d\.)(?:{_UNSIGNED})(?!\d|(?:st|nd|rd|th)\b)", re.ASCII | re.I)
NUMERAL = re.compile(rf"{_DIGITS.pattern}"
                     rf"|\b(?:{_WORDS_OF_NUMBERS})\b(?!-(?:{_ORDINALS})\b)", re.ASCII | re.I)


def in_digits(text):
    """A text with its numbers in plain digits: "thirty-five of 1,234.50" becomes "35 of 1234.5"."""
    def digits(match):
        number = match[0].lower().replace(",", "")
        if not number[-1].isdigit():
            return str(sum(_NUMBER_WORDS[word] for word in re.split("[- ]", number)))
        whole, _, decimals = number.partition(".")
        return ".".join(part for part in (whole.lstrip("0") or "0", decimals.rstrip("0")) if part)

    return NUMERAL.sub(digits, text)


class Letters:
    """Letters for the numbers of a problem in the order of its text, and then for the results in turn.

        Tom has 5 apples. He buys three more.       Tom has α apples. He buys β more.
        How many apples does he have now?           How many apples does he have now?
        <<5+3=8>>8                                  <<α+β=γ>>γ

    A student from scratch reads and writes these. It has to learn which number is needed, not how digits make
    a number: that the calculator knows. (Number mapping: Wang, Liu and Shi 2017, "Deep Neural Solver for Math
    Word Problems".) What letters cannot say is that a difference is below 0: see `show`.
    """

    def __init__(self, problem):
        """problem: its text, in which each number gets a letter."""
        self.numbers = {}  # {letter: its number, as the calculator writes it}
        self.used = set()  # letters that an equation has
        text = _DIGITS.sub(lambda match: self.add(match[0]), self._prepare(problem))
        self.problem = self._set_apart(text)   # the text with letters
        self.n_mentioned = len(self.numbers)   # how many letters it has

    def hide(self, text):
        """A sub-question, solution or answer with letters for the numbers that have one. The result of a
        calculator annotation gets the next one."""
        text, parts, end = self._prepare(text), [], 0
        for match in ANNOTATION.finditer(text):
            before, (expression, result) = text[end:match.start()], match.groups()
            parts += [self._hide_known(before), "<<", self._hide_known(expression, operands=True), "=",
                      self.add(result.strip(" $")), ">>"]
            end = match.end()
        return self._set_apart("".join([*parts, self._hide_known(text[end:])]))

    @staticmethod
    def _prepare(text):
        """Numbers in digits; Greek letters that the text itself has as capitals."""
        return in_digits(re.sub(f"[{LETTERS}]", lambda match: match[0].upper(), text))

    @staticmethod
    def _set_apart(text):
        return re.sub(f"([{LETTERS}])(?=[a-zA-Z])", r"\1 ", text)  # "5kg": "α kg"

    def show(self, text):
        """A text with numbers for its letters. Which of two numbers is larger, letters do not say: it comes
        first in "<<α-β=", and in "<<α/β=" if then the quotient is whole."""
        text = re.sub(rf"(?<=<<)([{LETTERS}])([-/])([{LETTERS}])(?==)", self._larger_first, text)
        return re.sub(f"[{LETTERS}]", lambda match: self.numbers.get(match[0], match[0]), text)

    def _larger_first(self, match):
        left, sign, right = match.groups()
        small, large = (parse_number(self.numbers.get(letter, "")) for letter in (left, right))
        if None in (small, large) or small >= large or sign == "/" and (not small or large % small):
            return match[0]
        return right + sign + left

    def add(self, number):
        """The next letter, which from now on stands for this number (a text); or, if none is left, that."""
        if len(self.numbers) == len(LETTERS):
            return number
        letter = LETTERS[len(self.numbers)]
        self.numbers[letter] = number
        return letter

    def calculate(self, expression):
        """As `calculate`, from letters to the letter of the result: "α*β" is "γ"."""
        numbers = self.show(f"<<{expression}=")[2:-1]
        self.used |= set(expression) & self.numbers.keys()
        result = calculate(numbers)
        return result and self.add(result)

    def forget_results(self):
        """Go back to the numbers of the problem."""
        self.numbers = dict(list(self.numbers.items())[:self.n_mentioned])
        self.used.clear()

    def _hide_known(self, text, operands=False):
        """A text with letters for the numbers that have one. Of several that are equal it is one that no
        equation has yet, a result before others. operands: it is an equation's, which has them from now on.
        """
        def letter_of(match):
            known = [letter for letter, number in self.numbers.items() if number == match[0]]
            if not known:
                return match[0]
            known = [letter for letter in known if letter not in self.used] or known
            letter = known[-1] if LETTERS.index(known[-1]) >= self.n_mentioned else known[0]
            if operands:
                self.used.add(letter)
            return letter

        return _DIGITS.sub(letter_of, text)


# ---- answers: checks of a teacher's solutions, for annotate.py ---------------------------------------------

# an equation in running text, "3 x 4 = $12", but not the end of a longer expression ("2^3*4", "1 1/2*4")
_EQUATION = re.compile(
    rf"(?<![\w.,:)^%*/+=-])(?<![*/+=\d-] )(\$?(?:{_UNSIGNED})(?:\s*[-+*/x×÷]\s*\$?(?:{_UNSIGNED}))+)"
    rf"\s*=\s*(\$?)(-?\$?{_UNSIGNED})(?!,?\d|\.\d)", re.ASCII)
# its result is not the whole value where this follows: "= 3 1/2", "= 2 remainder 2", "= 3.33...", "= 75%"
_GOES_ON = re.compile(
    r"\s*[-+*/x×÷%^≈¼-¾⅐-⅞]|\.\.|…|\s*\d|\s*and (?:an? (?:half|third|quarter)|\d+/\d)"
    r"|,?\s*r(?:em(?:ainder)?)?\.?\s*(?:of )?\d"
    r"|,?\s*(?:with|and) (?:a remainder|\d+ (?:left|remaining|over))", re.I)


def equation_holds(expression, result):
    """Whether the calculator's value of `expression` is `result` (both str), which may be rounded to two
    places or more, or to as many as it has."""
    value = calculate(expression)
    if value is None or same_answer(value, result):
        return value is not None
    places = re.search(r"\.(\d+)\s*$", result)
    number = parse_number(result)
    if number is None or not places:
        return False
    return abs(Fraction(value) - number) <= Fraction(1, 10 ** min(2, len(places[1])))


def invalid_annotations(solution):
    """Yield what is wrong with each calculator annotation of a solution, in words."""
    found = ANNOTATION.findall(solution)
    if not len(found) == solution.count("<<") == solution.count(">>"):
        yield "a broken annotation <<...=...>>"
    for result, said in re.findall(rf"=([^<>=]*)>>\$?({_UNSIGNED})(?![\d,]*\d|/\d)", solution, re.ASCII):
        if not equation_holds(result, said):
            yield f"<<...={result}>> stands before {said}"
    for expression, result in found:
        if not equation_holds(expression, result):
            yield (f"<<{expression}={result}>> does not compute: "
                   f"the calculator says {calculate(expression) or 'nothing'}")


def annotate_equations(solution):
    """The solution with a calculator annotation in each plain equation: "3 x 4 = $12" becomes "3 x 4 =
    $<<3*4=12>>12".

    Students learn to call the calculator from annotations alone, and not every teacher writes them. Those
    that are there stay. What is not certainly an equation, such as "10/4 = 2 remainder 2", stays without one.
    Raises ValueError for an equation that does not compute.
    """
    def annotate(match):
        if _GOES_ON.match(match.string, match.end()):
            return match[0]
        expression, _, result = match.groups()
        terms = re.sub("[x×]", "*", re.sub(r"[\s,$]", "", expression)).replace("÷", "/")
        value = re.sub("[,$]", "", result)
        if not equation_holds(terms, value):
            raise ValueError(f"{match[0]} does not compute")
        return f"{match[0].removesuffix(result)}<<{terms}={value}>>{result}"

    parts = re.split(r"(<<[^<>]*>>)", solution)
    return "".join(part if part.startswith("<<") else _EQUATION.sub(annotate, part) for part in parts)


def states_answer(solution, answer):
    """Whether a solution says the answer: a number as one of its numbers, else in these very words."""
    said = ANNOTATION.sub(r" \2 ", solution)
    number = parse_number(answer)
    if number is not None:
        return number in numbers_in(said)
    word = answer.strip().rstrip(".")
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said, re.I) is not None


def matches_answer(said, answer):
    """Whether what a teacher's reply gives as its final answer is the known one.

    Its number stands behind the last "=", before any bracket, and is the only one there: "m+n = 2+3 = 5",
    "12 apples (3 boxes of 4)". Its yes or no is the first word or follows "answer is": "No - it sinks".
    """
    if same_answer(said, answer):
        return True
    core = re.split(r"[(\[]", said.rpartition("=")[2].strip())[0]
    core = re.sub(r"^.*\banswer is:?\s*", "", core, flags=re.I | re.S).strip()
    number = parse_number(answer)
    if number is not None:
        first_clause = re.split(r"[,.;:!](?!\d)", core)[0]
        return any(numbers_in(text) == [number] for text in (first_clause, core))
    first_words = re.split(r"\s*[,.;:!–—]|\s-", core)[0]
    return same_answer(first_words, answer) or same_answer(core, answer)


# ---- the tokenizer: GPT-2's byte-level BPE, run by tiktoken ------------------------------------------------

# GPT-2's pre-tokenisation (Radford et al. 2019): contractions, words, numbers and signs, each with the space
# before it
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END = "<|endoftext|>"

# the same for Python's `re`, near enough to learn from: what it splits elsewhere is never merged when a text
# is encoded
_WORDS = re.compile(r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+""")

# tokens that are never made: a newline with anything, and digits, but for a space before the first
_UNWANTED = re.compile(rb"\n|[^ ][0-9]|[0-9].")

# GPT-2's files write a byte as a printable character: itself where it is one, else the next of 256, 257, ...
_printable = [ord(char) for char in map(chr, range(256)) if char.isprintable() and char != " "]
_BYTES = _printable + [b for b in range(256) if b not in _printable]  # the order of GPT-2's first 256 ids
_CHAR = {b: chr(b) if b in _printable else chr(256 + i - len(_printable)) for i, b in enumerate(_BYTES)}
_BYTE = {char: b for b, char in _CHAR.items()}

# the two files that tiktoken keeps of GPT-2, with the names that its cache gives them and their SHA-256
_GPT2_FILES = {
    "vocab.bpe": ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
                  "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "encoder.json": ("6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
                     "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
}


class Tokenizer:
    """Text to token ids and back. `end` is the id of <|endoftext|>, the last of `vocab_size`."""

    def __init__(self, ranks):
        """ranks: {token as bytes: id}, ids 0 .. n-1 in the order in which BPE learned them."""
        self.ranks = ranks
        self.end = len(ranks)
        self.vocab_size = self.end + 1
        self._tiktoken = tiktoken.Encoding("gpt2-like", pat_str=PATTERN, mergeable_ranks=ranks,
                                           special_tokens={END: self.end})

    def encode(self, text):
        """Token ids of `text`, a list of int. <|endoftext|> in a text is text like any other."""
        return self._tiktoken.encode_ordinary(text)

    def encode_batch(self, texts):
        """Token ids of many texts, a list of lists, by all cores."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids):
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._tiktoken.decode(ids)

    def decode_bytes(self, ids):
        """Bytes of token ids."""
        return self._tiktoken.decode_bytes(ids)

    def save_pretrained(self, folder):
        """Write vocab.json, merges.txt and tokenizer_config.json; transformers reads them to the same ids."""
        vocabulary = {"".join(_CHAR[b] for b in token): i for token, i in self.ranks.items()}
        merges = []
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            if len(token) > 1:  # it was merged from what BPE makes of it with the tokens before it
                parts = _split_by_bpe(token, self.ranks, rank)
                merges.append(" ".join("".join(_CHAR[b] for b in part) for part in parts))
        config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END, "unk_token": END,
                  "add_prefix_space": False, "clean_up_tokenization_spaces": False}
        for name, text in (("vocab.json", json.dumps(vocabulary | {END: self.end}, ensure_ascii=False)),
                           ("merges.txt", "\n".join(["#version: 0.2", *merges, ""])),
                           ("tokenizer_config.json", json.dumps(config, indent=2) + "\n")):
            Path(folder, name).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder, vocab_size=None):
        """Read vocab.json and merges.txt of a folder, or the tokenizer.json that transformers writes instead.

        vocab_size: that of the folder's model, if it has one. Raises UserError that names the file.
        """
        path, vocabulary, merges = _read_vocabulary(Path(folder))
        tokens = [*(_CHAR[b] for b in _BYTES), *("".join(pair) for pair in merges), END]
        if vocabulary != {token: i for i, token in enumerate(tokens)}:
            raise UserError(f"{path}: not the vocabulary of its merges: 256 bytes, {len(merges)} merges in "
                            f"order, then {END}")
        if vocab_size not in (None, len(tokens)):
            raise UserError(f"{path}: {len(tokens)} tokens, the model's config.json says {vocab_size}")
        return cls({bytes(_BYTE[char] for char in token): i for i, token in enumerate(tokens[:-1])})

    @classmethod
    def gpt2(cls):
        """GPT-2's own 50,257 tokens, from tiktoken (downloaded once, or found through TIKTOKEN_CACHE_DIR)."""
        if cache := os.environ.get("TIKTOKEN_CACHE_DIR"):
            reason = _check_tiktoken_cache(Path(cache))
        else:
            reason = ("set TIKTOKEN_CACHE_DIR to tiktoken's cache, "
                       "or --init to a folder with vocab.json and merges.txt")
        try:
            return cls(tiktoken.get_encoding("gpt2")._mergeable_ranks)
        except Exception as e:  # whatever the download fails with
            raise UserError(f"GPT-2's vocabulary could not be downloaded ({type(e).__name__}): {reason}")

    @classmethod
    def train(cls, texts, vocab_size):
        """Learn a byte-level BPE vocabulary (Sennrich et al. 2016) of at most `vocab_size` tokens from texts.

        The most frequent pair of neighbouring tokens within a word becomes a token, again and again. Ties go
        to the pair that is first in byte order, so the same texts give the same vocabulary. A newline is
        always a token of its own, and so is a digit, but for the space before it. A longer token that
        can overlap itself (begins as it ends, "tot") is not made: tiktoken and transformers split "totot"
        differently.
        """
        counts = Counter(word for text in texts for word in _WORDS.findall(text))
        words = [([bytes([b]) for b in word.encode("utf-8", "replace")], n)
                 for word, n in sorted(counts.items())]
        ranks = {bytes([b]): i for i, b in enumerate(_BYTES)}
        pair_counts, words_with = Counter(), defaultdict(set)  # of each pair of neighbours
        for k, (parts, n) in enumerate(words):
            for pair in zip(parts, parts[1:]):
                pair_counts[pair] += n
                words_with[pair].add(k)
        heap = [(-n, pair) for pair, n in pair_counts.items()]
        heapq.heapify(heap)
        while heap and len(ranks) < vocab_size - 1:
            n, pair = heapq.heappop(heap)
            if -n != pair_counts[pair]:
                continue  # an old count: the pair's present one is in the heap too
            token = pair[0] + pair[1]
            if token in ranks or -n < 2 or _UNWANTED.search(token) or _overlaps_itself(token):
                continue
            ranks[token] = len(ranks)
            changed = set()
            for k in words_with.pop(pair):
                parts, n_words = words[k]
                for old in zip(parts, parts[1:]):
                    pair_counts[old] -= n_words
                    changed.add(old)
                parts[:] = _join_pair(parts, pair)
                for new in zip(parts, parts[1:]):
                    pair_counts[new] += n_words
                    words_with[new].add(k)
                    changed.add(new)
            for pair in changed:
                heapq.heappush(heap, (-pair_counts[pair], pair))
        return cls(ranks)


def train_tokenizer(problems, vocab_size=None, letters=False):
    """The vocabulary of students from scratch, of 2,048 tokens or `vocab_size`: learned from the first 20,000
    training problems. letters: as in `segments`."""
    texts = (text for problem in problems[:20000]
             for text, _ in segments(problem, "solver", letters=letters) if text)
    return Tokenizer.train(texts, vocab_size or 2048)


def _check_tiktoken_cache(cache):
    """What keeps tiktoken from using its cache, in words; to be asked before it deletes a damaged file."""
    for name, (cached_name, sha256) in _GPT2_FILES.items():
        path = cache / cached_name
        if not path.is_file():
            return f"{path} is missing; it is GPT-2's {name} under the name that tiktoken's cache gives it"
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return f"{path} is damaged: it is not GPT-2's {name} (its SHA-256 differs)"
    return f"TIKTOKEN_CACHE_DIR={cache} holds both files undamaged"


def _read_vocabulary(folder):
    """A folder's vocabulary: its path, {token: id}, and its merges, a list of pairs of tokens."""
    path = folder / "vocab.json"
    if not path.exists() and (folder / "tokenizer.json").exists():
        path = folder / "tokenizer.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "vocab.json":
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            lines = lines[1:] if lines[0].startswith("#version") else lines
            return path, dict(found), [line.split(" ") for line in lines if line]
        model, splitter = found["model"], found["pre_tokenizer"]
        kind = model["type"], splitter["type"], splitter["add_prefix_space"], found["normalizer"]
        if kind != ("BPE", "ByteLevel", False, None):
            raise ValueError("not byte-level BPE")
        vocabulary = model["vocab"] | {token["content"]: token["id"] for token in found["added_tokens"]}
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return path, vocabulary, merges
    except OSError as e:
        raise UserError(f"{e.filename}: {e.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: not a GPT-2 vocabulary ({type(e).__name__}: {e})")


def _split_by_bpe(token, ranks, below):
    """Split `token` (bytes) by BPE with the tokens of rank < `below` alone; returns the list of parts."""
    parts = [bytes([b]) for b in token]
    while True:
        pairs = enumerate(zip(parts, parts[1:]))
        rank, i = min(((ranks.get(a + b, below), i) for i, (a, b) in pairs), default=(below, 0))
        if rank >= below:
            return parts
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def _join_pair(parts, pair):
    """Replace each occurrence of the neighbours `pair` in a list by their concatenation, from the left."""
    joined, i = [], 0
    while i < len(parts):
        if tuple(parts[i:i + 2]) == pair:
            joined.append(pair[0] + pair[1])
            i += 2
        else:
            joined.append(parts[i])
            i += 1
    return joined


def _overlaps_itself(token):
    return len(token) > 2 and any(token[:k] == token[-k:] for k in range(1, len(token)))


# ---- helpers of the scripts: errors, flags, devices, files -------------------------------------------------

class UserError(Exception):
    """Something the user can fix, in one line. status: of the exit, 1, or 2 for bad usage."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


class Parser(argparse.ArgumentParser):
    """argparse, but bad usage is a UserError: one line, status 2."""

    def error(self, message):
        raise UserError(f"{message} (see: {self.prog} --help)", 2)


def whole_number(low):
    """An argparse type: a whole number from `low`."""
    def parse(text):
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {low}")
        return int(text)
    return parse


def number(low, high=math.inf, above=False):
    """An argparse type: a finite number from `low` to `high`; above: more than `low`."""
    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high) or above and value == low:
            upto = "" if high == math.inf else f" to {high:g}"
            least = f"{'above' if above else 'from'} {low:g}"
            raise argparse.ArgumentTypeError(f"{text} is no number {least}{upto}")
        return value
    return parse


def run_script(main):
    """Run a script's main(): a user's error ends in one line and its status, a bug keeps its traceback."""
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # show what the terminal has no characters for
        main()
        sys.stdout.flush()
    except UserError as e:
        _exit_with(e, e.status)
    except BrokenPipeError:  # the reader of our output has left: python infer.py ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as e:
        _exit_with(f"{e.filename}: {e.strerror}" if e.filename else e, 1)
    except KeyboardInterrupt:
        _exit_with("stopped", 130)


def _exit_with(message, status):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def get_device(name=None):
    """The torch.device of that name, by default a GPU if there is one. Raises UserError (status 2)."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {name}: {str(e).splitlines()[0]}", 2)


@contextlib.contextmanager
def atomic_write(folder):
    """A temporary folder whose files replace those of `folder`, one by one, when the block ends well.

    If the block fails, `folder` stays as it was. Raises UserError that names it, for example on a full disk.
    """
    folder = Path(folder)
    temporary = folder / ".writing"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        paths = sorted(temporary.iterdir())
        for path in paths:
            with open(path, "rb+") as f:
                os.fsync(f.fileno())  # on the disk before the first is renamed
        for path in paths:
            os.replace(path, folder / path.name)
    except OSError as e:
        raise UserError(f"{folder}: {e.strerror or e}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
