"""From a JSONL row to tensors: the schema, the tokenizer, the roles table, sequences with their learned mask, batches.

Nothing here knows of models or training; nothing elsewhere knows how text is laid out.
"""
import argparse
import codecs
import contextlib
import heapq
import json
import os
import random
import re
import shutil
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken
import torch


# ---- errors a user can cause -------------------------------------------------------------------------------------------

class UserError(Exception):
    """Something the user can mend: one line that names the file, line, flag or field. Exit status 1, or 2 for bad usage."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


class Parser(argparse.ArgumentParser):
    """argparse, but bad usage is a UserError: one line, status 2."""

    def error(self, message):
        raise UserError(f"{message} (see: {self.prog} --help)", 2)


def run(main):
    """Run a script's main(): a user's error ends in one line and its exit status, a bug keeps its traceback."""
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show, such as half a surrogate pair
        main()
        sys.stdout.flush()
    except UserError as e:
        sys.exit(fail(e, e.status))
    except BrokenPipeError:  # the reader of our output has left: python infer.py ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as e:
        sys.exit(fail(f"{e.filename}: {e.strerror}" if e.filename else e, 1))
    except KeyboardInterrupt:
        sys.exit(fail("stopped", 130))


def fail(message, status):
    """Print one line on stderr; return the exit status."""
    print(f"error: {message}", file=sys.stderr)
    return status


def find_device(name=None):
    """The torch.device of that name; None: a GPU if there is one. Raises UserError (status 2) if it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {name}: {str(e).splitlines()[0]}", 2)


@contextlib.contextmanager
def written_aside(folder):
    """A temporary folder whose files move into `folder` when the block ends well: each is the old one or the new, whole.

    The files reach the disk (fsync) before the first is renamed. If the block fails, `folder` stays as it was. Raises
    UserError that names it where nothing can be written, for example on a full disk.
    """
    folder = Path(folder)
    aside = folder / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        files = sorted(aside.iterdir())
        for path in files:
            with open(path, "rb+") as f:
                os.fsync(f.fileno())
        for path in files:
            os.replace(path, folder / path.name)
        if os.name == "posix":  # the new names reach the disk too
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    except OSError as e:
        raise UserError(f"{folder}: {e.strerror or e}")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# ---- the schema: one problem a line ------------------------------------------------------------------------------------

def read_rows(path):
    """Read a file of JSON objects, one a line (JSONL) or all in one array: yields (where, row), where "path:line" or "path,
    row n" and the object as a dict; empty lines are skipped.

    Raises UserError that names file and line.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}")
    yield from parse_rows(content, path)


def parse_rows(content, path):
    """As `read_rows`, from the file's bytes."""
    if content.startswith(b"\x1f\x8b"):
        raise UserError(f"{path}: compressed by gzip; unpack it first, with gunzip")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: UTF-16 text; save it as UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    if re.match(rb"\s*\[", content):
        for number, row in enumerate(parse_json(content, path), 1):
            yield check_object(row, f"{path}, row {number}")
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield check_object(parse_json(line, f"{path}:{number}"), f"{path}:{number}")


def parse_json(text, where):
    """The JSON value in UTF-8 bytes. Raises UserError."""
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 at byte {e.start} of it")
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON: {e}")


def check_object(row, where):
    """(where, row); raises UserError unless `row` is a dict."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object is expected, found {type(row).__name__}")
    return where, row


def check_text(row, field, where, prefix=""):
    """Raise UserError unless `row` has a string in `field` that is not blank."""
    if field not in row:
        raise UserError(f"{where}: field '{prefix}{field}' is missing")
    if not isinstance(row[field], str):
        raise UserError(f"{where}: field '{prefix}{field}' must be a string, found {type(row[field]).__name__}")
    if not row[field].strip():
        raise UserError(f"{where}: field '{prefix}{field}' is empty")


def check_problem(row, where, steps=True):
    """Raise UserError that names the field unless `row` is a problem: see `read_problems`."""
    check_text(row, "problem", where)
    check_text(row, "answer", where)
    if not steps:
        return
    if not isinstance(row.get("steps"), list) or not row["steps"]:
        raise UserError(f"{where}: field 'steps' must be a list with at least one step")
    for k, step in enumerate(row["steps"]):
        if not isinstance(step, dict):
            raise UserError(f"{where}: field 'steps[{k}]' must be an object with 'question' and 'solution'")
        check_text(step, "question", where, f"steps[{k}].")
        check_text(step, "solution", where, f"steps[{k}].")


def read_problems(path, steps=True):
    """Read a file of problems strictly. steps: whether each must have its steps.

    Returns a list of dicts {"problem": str, "steps": [{"question": str, "solution": str}, ...], "answer": str, ...};
    other keys are kept and ignored. Raises UserError that names file, line and field.
    """
    problems = []
    for where, row in read_rows(path):
        check_problem(row, where, steps)
        problems.append(row)
    if not problems:
        raise UserError(f"{path}: holds no problem")
    return problems


def jsonl(rows):
    """Rows (dicts) as the bytes of a JSONL file: UTF-8, one a line. Half a surrogate pair, which is no UTF-8, is escaped."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def write_problems(path, problems):
    """Write problems (dicts) to a JSONL file."""
    Path(path).write_bytes(jsonl(problems))


# ---- the tokenizer: GPT-2's byte-level BPE, run by tiktoken ------------------------------------------------------------

# GPT-2's pre-tokenisation (Radford et al. 2019): contractions, words, numbers and signs, each with the space before it
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END = "<|endoftext|>"

# A long run of white space that is one piece to PATTERN: tiktoken's regular expressions give up on some 500,000 characters
_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_SPACE = re.compile(f"(?<![{_SPACES}])([{_SPACES}]{{10000,}})(?![^{_SPACES}])")

# the same for Python's `re`, near enough to learn from: what it splits elsewhere is never merged when a text is encoded
_WORDS = re.compile(r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+""")

# GPT-2's files write a byte as a printable character: itself where it is one, else the next of 256, 257, ...
_printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_BYTES = _printable + [b for b in range(256) if b not in _printable]  # also the order of GPT-2's first 256 ids
_CHAR = {b: chr(b) if b in _printable else chr(256 + i - len(_printable)) for i, b in enumerate(_BYTES)}
_BYTE = {c: b for b, c in _CHAR.items()}


class Tokenizer:
    """Text to token ids and back. `end` is the id of <|endoftext|>."""

    def __init__(self, ranks):
        """ranks: {token as bytes: id}, ids 0 .. n-1 in the order in which BPE learned them; <|endoftext|> becomes n."""
        self.ranks = ranks
        self.end = len(ranks)
        self.vocab_size = self.end + 1
        self._tiktoken = tiktoken.Encoding("gpt2-like", pat_str=PATTERN, mergeable_ranks=ranks,
                                           special_tokens={END: self.end})

    def encode(self, text):
        """Token ids of `text`, a list of int. <|endoftext|> in a text is text like any other.

        A lone surrogate, which no UTF-8 can spell, is read as U+FFFD.
        """
        if len(text) < 10000:
            return self._tiktoken.encode_ordinary(text)
        first, *rest = _LONG_SPACE.split(text)
        ids = self._tiktoken.encode_ordinary(first)
        for spaces, text in zip(rest[::2], rest[1::2]):
            ids += self._tiktoken._encode_single_piece(spaces) + self._tiktoken.encode_ordinary(text)
        return ids

    def encode_all(self, texts):
        """Token ids of many texts, a list of lists, by all cores."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids):
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._tiktoken.decode(ids)

    def decode_bytes(self, ids):
        """Bytes of token ids."""
        return self._tiktoken.decode_bytes(ids)

    def save(self, folder):
        """Write vocab.json, merges.txt and tokenizer_config.json, which transformers' AutoTokenizer reads to the same ids."""
        words = {"".join(_CHAR[b] for b in token): i for token, i in self.ranks.items()}
        merges = []
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            if len(token) > 1:  # the two parts it was merged from: what BPE makes of it with the tokens before it
                merges.append(" ".join("".join(_CHAR[b] for b in part) for part in _merge(token, self.ranks, rank)))
        Path(folder, "vocab.json").write_text(json.dumps({**words, END: self.end}, ensure_ascii=False), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        about = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END, "unk_token": END,
                 "add_prefix_space": False, "clean_up_tokenization_spaces": False}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def open(cls, folder, vocab_size=None):
        """Read vocab.json and merges.txt of a folder, or the tokenizer.json that transformers writes in their stead.

        vocab_size: that of the folder's model, if it has one. Raises UserError that names file and field or line.
        """
        path, words, merges = _read_vocabulary(Path(folder))
        try:
            end = words.pop(END, None)
            ranks = {bytes(_BYTE[c] for c in word): i for word, i in words.items()}
            in_order = sorted(ranks.values()) == list(range(len(ranks))) and end == len(ranks)
        except (KeyError, TypeError) as e:
            raise UserError(f"{path}: not a GPT-2 vocabulary ({type(e).__name__}: {e})")
        if not in_order or any(bytes([b]) not in ranks for b in range(256)):
            raise UserError(f"{path}: ids are not 0 .. n with {END} last, or a byte is missing")
        for i, (where, pair) in enumerate(merges, 256):
            if len(pair) != 2 or not all(words.get(part, i) < i for part in pair) or words.get("".join(pair)) != i:
                raise UserError(f"{where}: {' '.join(pair)!r} is not two tokens that make token {i} of {path.name}")
        if len(ranks) != 256 + len(merges):
            raise UserError(f"{path}: {len(ranks)} tokens, 256 bytes and {len(merges)} merges make {256 + len(merges)}")
        if vocab_size not in (None, end + 1):
            raise UserError(f"{path}: {end + 1} tokens, the model's config.json says {vocab_size}")
        return cls(ranks)

    @classmethod
    def gpt2(cls):
        """GPT-2's own 50,257 tokens, from tiktoken (downloaded once, or found through TIKTOKEN_CACHE_DIR)."""
        try:
            return cls(tiktoken.get_encoding("gpt2")._mergeable_ranks)
        except Exception as e:  # requests' errors, which are no dependency of ours
            raise UserError(f"GPT-2's vocabulary could not be downloaded ({type(e).__name__}): set TIKTOKEN_CACHE_DIR to "
                            "tiktoken's cache, or --init to a folder with vocab.json and merges.txt")

    @classmethod
    def learn(cls, texts, vocab_size):
        """Learn a byte-level BPE vocabulary (Sennrich et al. 2016) of at most `vocab_size` tokens from an iterable of str.

        The most frequent pair of neighbouring tokens within a word becomes a token, again and again; ties go to the pair
        that is first in byte order, so that the same texts give the same vocabulary. A newline is always a token of its
        own, and so is a digit, but for the space before it. A token that can overlap itself (begins as it ends, "tot") is
        not made: tiktoken and transformers would break such ties differently.
        """
        counts = Counter(word for text in texts for word in _WORDS.findall(text))
        words = [([bytes([b]) for b in word.encode("utf-8", "replace")], n) for word, n in sorted(counts.items())]
        ranks = {bytes([b]): i for i, b in enumerate(_BYTES)}
        pairs, where = Counter(), defaultdict(set)  # how often each pair of neighbours occurs, and in which words
        for k, (parts, n) in enumerate(words):
            for pair in zip(parts, parts[1:]):
                pairs[pair] += n
                where[pair].add(k)
        heap = [(-n, pair) for pair, n in pairs.items()]
        heapq.heapify(heap)
        while heap and len(ranks) < vocab_size - 1:
            n, pair = heapq.heappop(heap)
            if -n != pairs[pair] or n == 0:
                continue  # an old count: the pair's present one is in the heap too
            token = pair[0] + pair[1]
            if token in ranks or re.search(rb"\n|[^ ][0-9]|[0-9].", token) or -n < 2 or _overlaps_itself(token):
                continue
            ranks[token] = len(ranks)
            changed = set()
            for k in where.pop(pair):
                parts, count = words[k]
                for old in zip(parts, parts[1:]):
                    pairs[old] -= count
                    changed.add(old)
                parts[:] = _join(parts, pair)
                for new in zip(parts, parts[1:]):
                    pairs[new] += count
                    where[new].add(k)
                    changed.add(new)
            for pair in changed:
                heapq.heappush(heap, (-pairs[pair], pair))
        return cls(ranks)


def _read_vocabulary(folder):
    """A folder's vocabulary: its path, {word: id}, and its merges, a list of (where it stands, [first, second])."""
    path, merges_path = folder / "vocab.json", folder / "merges.txt"
    if not path.exists() and (folder / "tokenizer.json").exists():
        path, merges_path = folder / "tokenizer.json", None
    try:
        found = json.loads(_read_text(path))
        if merges_path:
            words = dict(found)
        else:
            model, pieces = found["model"], found["pre_tokenizer"]
            if (model["type"], pieces["type"], pieces["add_prefix_space"], found["normalizer"]) != ("BPE", "ByteLevel", False, None):
                raise ValueError("not byte-level BPE")
            words = model["vocab"] | {token["content"]: token["id"] for token in found["added_tokens"]}
            pairs = [pair.split(" ") if isinstance(pair, str) else [str(part) for part in pair] for pair in model["merges"]]
            merges = [(f"{path}: field 'model.merges[{i}]'", pair) for i, pair in enumerate(pairs)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: not a GPT-2 vocabulary ({type(e).__name__}: {e})")
    if merges_path:
        lines = _read_text(merges_path).removesuffix("\n").split("\n")
        merges = [(f"{merges_path}:{i}", text.split(" ")) for i, text in enumerate(lines, 1)
                  if i > 1 or not text.startswith("#version")]
    return path, words, merges


def _read_text(path):
    """A file's text. Raises UserError that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 at byte {e.start}")


def _merge(token, ranks, below):
    """Split `token` (bytes) by BPE with the tokens of rank < `below` alone; returns the list of parts."""
    parts = [bytes([b]) for b in token]
    while True:
        rank, i = min(((ranks.get(a + b, below), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))), default=(below, 0))
        if rank >= below:
            return parts
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def _join(parts, pair):
    """Replace each occurrence of the neighbours `pair` in a list by their concatenation, from the left."""
    out, joined = [], False  # joined: the last of `out` has just been joined, and takes no part in another pair
    for part in parts:
        joined = bool(out) and not joined and (out[-1], part) == pair
        if joined:
            out[-1] += part
        else:
            out.append(part)
    return out


def _overlaps_itself(token):
    return len(token) > 2 and any(token[:k] == token[-k:] for k in range(1, len(token)))


# ---- the roles: which segments of a problem stand in the sequence, and which are learned -------------------------------

# P problem, q sub-question, s solution, # the mark before the answer, a answer, . end of the sub-questions.
# "#" is learned where the student itself must know that the answer is due; a solver is told, when no question is left.
class Role(NamedTuple):
    """How a problem is laid out for a role: kinds of segments, a letter each."""
    step: str     # what each step adds to the sequence, after P
    close: str    # what stands at the end
    learned: str  # the segments under the loss


ROLES = {
    "answer": Role("", "#a", "a"),
    "cot": Role("s", "#a", "s#a"),
    "unified": Role("qs", "#a", "qs#a"),
    "decomposer": Role("q", ".", "q."),
    "stepwise": Role("qs", ".", "q."),
    "solver": Role("qs", "#a", "sa"),
}
MARK = "####"  # GSM8K's mark before the final answer


def line(text):
    """A problem, a sub-question or a solution as it stands in a sequence: on one line, with the line's end.

    It begins with a space, since GPT-2's tokens carry the space before them: so a name is the same token at the start of
    a line and inside it, and a student can copy it as it stands.
    """
    return f" {' '.join(text.split())}\n"


GUIDANCE = "steps", "equations"


def guide(problem, guidance):
    """The paper's guidance, told to a student that asks sub-questions before it asks any: how many steps ("3") or which
    equations ("48/2=24, 24+17=41") to expect. That of the problem's own steps, unless it brings one as "guide"."""
    if "guide" in problem:
        return str(problem["guide"])
    if guidance == "steps":
        return str(len(problem["steps"]))
    return ", ".join(equation for step in problem["steps"] for equation in re.findall("<<(.*?)>>", step["solution"]))


def problem_prompt(problem, guidance=None):
    """What a problem's sequence begins with, a list of texts: its line and, with `guidance` (one of GUIDANCE), that of `guide`."""
    return [line(problem["problem"])] + ([line(guide(problem, guidance))] if guidance else [])


def segments(problem, role, guidance=None):
    """Lay a problem out for a role: a list of (text, learned) in order; text None is the token <|endoftext|>.

    An answer ends in <|endoftext|>, every other segment in a newline, so that whoever writes knows when to stop.
    """
    step, close, learned = ROLES[role]
    text = {"#": MARK, "a": f" {' '.join(problem['answer'].split())}", ".": None}
    laid_out = [(part, False) for part in problem_prompt(problem, guidance)]
    for one in problem["steps"]:
        text |= {"q": line(one["question"]), "s": line(one["solution"])}
        laid_out += [(text[kind], kind in learned) for kind in step]
    laid_out += [(text[kind], kind in learned) for kind in close]
    return laid_out + [(None, True)] if close.endswith("a") else laid_out


def learn_tokenizer(problems, vocab_size=1024):
    """The vocabulary of students from scratch: learned from the first 20,000 of their training problems, in seconds."""
    return Tokenizer.learn((text for problem in problems[:20000] for text, _ in segments(problem, "solver") if text), vocab_size)


def recitations(problems, tokenizer, count, seed):
    """Exercises in copying, and in finding a number by its name, that a student without pretraining meets among the problems.

    Each is made of the problems' own solutions and laid out as `segments` does: the closing statements of 4 to 8 of them,
    as far as their first number ("Carl has 131."), then, learned, the same once more as it was and twice in other orders. A
    problem asks once in a while for a number that stands far back; here one stands in every eight tokens. Names are drawn evenly,
    so that rare ones (made-up ones) are the most: they have several tokens, and can only be copied. In every other name a word
    gives way to one to three of the vocabulary's tokens, drawn evenly: else those that BPE made on the way to longer ones,
    " Ann" before " Anna", would be learned nowhere. Returns `count` lists of (text, learned), the same for the same seed;
    none if fewer than 8 names have a number.
    """
    if not count:
        return []
    numbers = defaultdict(list)  # what a statement is found by, " Carl has": its numbers, [" 131.", ...]
    for problem in problems:
        for step in problem["steps"]:
            closing = re.split(r"(?<=[.!?]) ", re.sub("<<.*?>>", "", line(step["solution"])).strip())[-1].strip()
            if (number := re.search(r" ?\d[\d.,]*", closing)) and number.start():
                numbers[" " + closing[:number.start()]].append(number[0].rstrip(".,") + ".")
    rng, names, exercises = random.Random(seed), list(numbers), []
    pieces = [piece for i in range(tokenizer.end) if (piece := tokenizer.decode([i]).strip()).isalpha()]

    def reworded(name):
        words = name.split()
        words[rng.randrange(len(words))] = "".join(rng.choices(pieces, k=rng.randint(1, 3)))
        return f" {' '.join(words)}"

    while len(exercises) < count and len(names) >= 8:
        told = {name if rng.random() < 0.5 else reworded(name): rng.choice(numbers[name])
                for name in rng.sample(names, rng.randint(4, 8))}
        rounds = [list(told), list(told), *(rng.sample(list(told), len(told)) for _ in range(2))]
        exercises.append([(text, k > 0) for k, one in enumerate(rounds) for name in one for text in (name, told[name])])
    return exercises


def encode_problems(problems, role, tokenizer, guidance=None):
    """Sequences for a role, as of `encode`."""
    return encode([segments(problem, role, guidance) for problem in problems], tokenizer)


def encode(laid_out, tokenizer):
    """Sequences of `segments` or `recitations`: a list of (ids, learned), numpy arrays of int32 and bool of one length each.

    Segments are encoded one by one, so that training and decoding see the same token boundaries.
    """
    texts = list(dict.fromkeys(text for one in laid_out for text, _ in one if text is not None))
    ids = dict(zip(texts, tokenizer.encode_all(texts))) | {None: [tokenizer.end]}
    sequences = []
    for one in laid_out:
        parts = [ids[text] for text, _ in one]
        learned = np.repeat([mask for _, mask in one], [len(part) for part in parts])
        sequences.append((np.concatenate(parts).astype(np.int32), learned))
    return sequences


def fits(sequence, block_size):
    """Whether a sequence of `encode` fits into the block: every token but the last is read."""
    return len(sequence[0]) <= block_size + 1


# ---- batches -----------------------------------------------------------------------------------------------------------

WINDOW = 4096  # sequences sorted by length at a time: long enough for little padding, short against an epoch


def plan_batches(lengths, batch_tokens, rng):
    """One epoch's batches: a list of lists of sequence indices, each index once.

    A batch holds at most `batch_tokens` tokens, padding included (one sequence at least). Sequences of like length meet:
    a random order is cut into windows, each sorted by length and cut into batches; the batches are shuffled. `rng` is a
    numpy Generator.
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


def make_batch(sequences, text_weight=0.0, device="cpu"):
    """Pad sequences on the right into tensors for next-token learning.

    sequences: list of (ids, learned). Returns ids (B, T) int64; `at` (N,) int64, the positions of the flattened (B * T)
    batch whose next token is under the loss; targets (N,) int64, those tokens; weights (N,) float32: 1 where the token is
    learned, text_weight elsewhere (positions of weight 0 are left out).
    """
    T = max(len(ids) for ids, _ in sequences) - 1
    B = len(sequences)
    ids, targets = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    weights = np.zeros((B, T), np.float32)
    for row, (sequence, learned) in enumerate(sequences):
        n = len(sequence) - 1
        ids[row, :n], targets[row, :n] = sequence[:-1], sequence[1:]
        weights[row, :n] = np.where(learned[1:], 1.0, text_weight)
    at = np.flatnonzero(weights)
    batch = ids, at, targets.reshape(-1)[at], weights.reshape(-1)[at]
    tensors = [torch.from_numpy(x) for x in batch]
    if torch.device(device).type == "cuda":
        tensors = [x.pin_memory() for x in tensors]  # copied by the GPU itself, while the CPU goes on
    return tuple(x.to(device, non_blocking=True) for x in tensors)
