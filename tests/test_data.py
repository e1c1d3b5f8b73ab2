"""data.py: the schema is strict, tokens are BPE's, the mask is the roles table's, batches lose nothing."""
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
import torch.nn.functional as F

import data
from data import END, ROLES, Tokenizer, UserError, encode, encode_problems, make_batch, plan_batches, read_problems, \
    recitations, segments
from model import GPT, GPTConfig

PROBLEM = {"problem": "Ana has 12 pens.\nBo has 3  more than Ana. How many do they have?", "answer": "27", "steps": [
    {"question": "How many pens does Bo have?", "solution": "Bo has <<12+3=15>>15 pens."},
    {"question": "How many do they have?", "solution": "They have <<12+15=27>>27 pens."}]}
TEXTS = [PROBLEM["problem"], *(text for step in PROBLEM["steps"] for text in step.values())] * 3
ROOT = Path(data.__file__).parent
STRINGS = ["", " ", "Bo's 007 pens", "a\n\n b\t \n", "naïve 東京 🙂‍↔️ ½ ٣", "x" * 300, "ababababab aaaaaaa", "<|endoftext|>", "\x00\x7f\u2028",
           "<<10+20=30>>30", "1,000,000 - 3.50 = $7%"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.learn(TEXTS, 330)


def random_strings(n, alphabet, rng=random.Random(0)):
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(n)]


def test_any_text_comes_back_from_its_ids(tokenizer):
    everything = "".join(map(chr, [*range(0, 0xD800, 7), *range(0xE000, 0x110000, 131)]))
    for text in STRINGS + random_strings(300, everything):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_and_newlines_are_single_tokens(tokenizer):
    assert tokenizer.vocab_size > 280
    for token in tokenizer.ranks:
        assert b"\n" not in token[1:] and not set(token[1:]) & set(b"0123456789") or token[:1] == b" " and len(token) == 2
    assert len(tokenizer.encode("40213")) == 5
    assert tokenizer.encode("\n") == [tokenizer.ranks[b"\n"]]


def brute_force_ids(text, tokenizer, merges):
    """BPE as Sennrich et al. write it: the earliest learned pair is merged wherever it stands, again and again."""
    regex = pytest.importorskip("regex")
    ids = []
    for word in regex.findall(data.PATTERN, text):
        parts = [bytes([b]) for b in word.encode()]
        while pairs := [pair for pair in zip(parts, parts[1:]) if pair in merges]:
            first, second = min(pairs, key=merges.index)
            out = []
            while parts:
                if parts[:2] == [first, second]:
                    out.append(first + second)
                    parts = parts[2:]
                else:
                    out.append(parts.pop(0))
            parts = out
        ids += [tokenizer.ranks[part] for part in parts]
    return ids


def test_ids_are_those_of_a_brute_force_merge(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    merges = [tuple(bytes(data._BYTE[c] for c in part) for part in line.split(" "))
              for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    words = [word for text in TEXTS for word in text.split()]
    for text in STRINGS + TEXTS + random_strings(200, " aeopnshvw'") + random_strings(200, words):
        assert tokenizer.encode(text) == brute_force_ids(text, tokenizer, merges), text


def trying_strings():
    """2,400 strings of every kind that a tokenizer meets, the same each time; those of one character come in long runs."""
    rng = random.Random(7)
    alphabets = [" aeopnshvw'", "0123456789.,+-*/=<>() ", "\t\n\r \x0b\x0c\x85\xa0\u2003\u2028\u3000a", [*map(chr, range(128))],
                 [chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(3000)],
                 "東京都に猫がいます。我有三只貓，한국어도", ["🙂", "\u200d", "\ufe0f", "👩", "💻", "🇩", "🇪", "1\ufe0f\u20e3", "e\u0301", " "],
                 ["def ", "return", "    ", "\n", "{", "}", "==", "!=", "->", "self.", "x_1", "0x1F", "/*", "*/", "\"", "'", "#", ";", "\t"],
                 ["'s", "'ll", "'VE", "don't", "I'm", " ", "’s", "Ann", "cats", "$", "½", "٣", "ǅ", "ß", "İ"]]
    strings = STRINGS + TEXTS + [text for alphabet in alphabets for text in random_strings(250, alphabet, rng)]
    strings += [before + c * n + after for c in (*"a ^1\n\t'東", "🙂", "ab", " a", "\u200d") for n in (2, 50, 999, 4000) for before in ("", "x")
                for after in ("", " ", "y")]
    return [text for text in strings if END not in text]  # transformers reads the name of a special token as that token


@pytest.fixture(params=["learned", "gpt2"])
def a_tokenizer(request, tokenizer, monkeypatch):
    """A learned vocabulary, and GPT-2's where tiktoken's cache of it is."""
    if request.param == "learned":
        return tokenizer
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or ROOT.parent / "shared" / "tiktoken_cache"
    if not Path(cache).is_dir():
        pytest.skip("GPT-2's vocabulary is not here: set TIKTOKEN_CACHE_DIR to tiktoken's cache of it")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return Tokenizer.gpt2()


def test_ids_are_those_of_tiktoken_and_of_transformers_on_2000_strings(a_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here: pip install transformers")
    a_tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    strings = trying_strings()
    ids = a_tokenizer.encode_all(strings)
    assert len(strings) > 2000
    for text, ours, other in zip(strings, ids, theirs(strings)["input_ids"]):
        assert ours == other == a_tokenizer.encode(text), ascii(text)
        assert a_tokenizer.decode(ours) == theirs.decode(ours) == text, ascii(text)
    if a_tokenizer.end == 50256:
        assert ids == tiktoken.get_encoding("gpt2").encode_ordinary_batch(strings)
    assert theirs.convert_tokens_to_ids(END) == theirs.eos_token_id == theirs.bos_token_id == a_tokenizer.end


@pytest.mark.parametrize("text, same", [("a\ud800b", "a\ufffdb"), ("\udfff" * 3, "\ufffd" * 3), ("\ud83d\ude42", "🙂"), ("\ude42\ud83d", "\ufffd\ufffd"),
                                        ("\ud800" * 20000 + " x", "\ufffd" * 20000 + " x")])
def test_a_lone_surrogate_is_read_as_the_replacement_character(text, same, tokenizer):
    assert tokenizer.encode(text) == tokenizer.encode_all([text])[0] == tokenizer.encode(same)
    assert tokenizer.decode(tokenizer.encode(text)) == same


@pytest.mark.parametrize("space", " \n\t\xa0\u3000\x85\x1c\u200b")
@pytest.mark.parametrize("before, after", [("", ""), ("a", "b"), (" a ", " b"), ("a", "\x1c b")])
def test_a_very_long_run_of_white_space_is_split_as_a_shorter_one(space, before, after, tokenizer):
    longer, run = (tokenizer._tiktoken.encode_ordinary(before + space * n + after) for n in (24000, 12000))  # which tiktoken still takes
    assert tokenizer.encode(before + space * 24000 + after) == longer and tokenizer.encode(before + space * 12000 + after) == run
    twice = (before + space * 12000 + after) * 2
    assert tokenizer.encode(twice) == tokenizer._tiktoken.encode_ordinary(twice)
    if space in " \n":  # a million, which it does not take, has as many tokens more
        million = before + space * 10 ** 6 + after
        assert tokenizer.decode(tokenizer.encode(million)) == million
        assert len(tokenizer.encode(million)) - len(run) == (10 ** 6 - 12000) * (len(longer) - len(run)) / 12000


def test_a_saved_vocabulary_opens_to_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.open(tmp_path)
    assert again.ranks == tokenizer.ranks and again.end == tokenizer.end


def test_gpt2s_own_files_open_and_are_written_again_as_they_were(a_tokenizer, tmp_path):
    a_tokenizer.save(tmp_path)
    if a_tokenizer.end == 50256:  # the files that OpenAI published, as tiktoken caches them
        originals = [path.read_text() for path in Path(os.environ["TIKTOKEN_CACHE_DIR"]).iterdir()]
        assert (tmp_path / "merges.txt").read_text() in originals
        assert any(text[0] == "{" and json.loads(text) == json.loads((tmp_path / "vocab.json").read_text()) for text in originals)
    assert Tokenizer.open(tmp_path, a_tokenizer.vocab_size).ranks == a_tokenizer.ranks
    (tmp_path / "merges.txt").write_text((tmp_path / "merges.txt").read_text().partition("\n")[2].removesuffix("\n"))  # no version, no last line's end
    assert Tokenizer.open(tmp_path).ranks == a_tokenizer.ranks


def swap(text, i, k):
    lines = text.split("\n")
    lines[i], lines[k] = lines[k], lines[i]
    return "\n".join(lines)


@pytest.mark.parametrize("file, change, told", [
    ("merges.txt", lambda text: text.replace("\n", "\nxy\n", 3).replace("\nxy\n", "\n", 2), r"merges.txt:4: 'xy' is not two tokens that make token 258"),
    ("merges.txt", lambda text: swap(text, 5, 9), "merges.txt:6: "),
    ("merges.txt", lambda text: text.replace("\n", "\n\n", 1), "merges.txt:2: ''"),
    ("merges.txt", lambda text: text[:text.index("\n", 40) + 1], r"vocab.json: \d+ tokens, 256 bytes and \d+ merges make"),
    ("merges.txt", lambda text: b"\xff", "merges.txt: not UTF-8 at byte 0"), ("merges.txt", None, "merges.txt: No such file"),
    ("vocab.json", None, "vocab.json: No such file"), ("vocab.json", lambda text: text[:-1], "vocab.json: not a GPT-2 vocabulary"),
    ("vocab.json", lambda text: "[1]", "not a GPT-2 vocabulary"), ("vocab.json", lambda text: '{"a": "b"}', "vocab.json: "),
    ("vocab.json", lambda text: text.replace('"!": 0', '"!": 1'), "ids are not 0"), ("vocab.json", lambda text: text.replace('"!"', '"\u6771"'), "KeyError"),
    ("vocab.json", lambda text: text.replace(END, "end"), "ids are not 0"),
])
def test_a_broken_vocabulary_is_refused_by_file_and_line(file, change, told, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / file
    content = change and change(path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode()) if change else path.unlink()
    with pytest.raises(UserError, match=told) as error:
        Tokenizer.open(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change, told", [
    (lambda found: found | {"normalizer": {"type": "NFC"}}, "not byte-level BPE"), (lambda found: found | {"model": []}, "not a GPT-2 vocabulary"),
    (lambda found: found | {"added_tokens": found["added_tokens"] + [{"content": "<pad>", "id": found["added_tokens"][0]["id"] + 1}]}, "KeyError|ids are not 0"),
    (lambda found: found["model"]["merges"].__setitem__(3, ["x", "y"]) or found, r"field 'model.merges\[3\]': 'x y' is not two tokens"), (lambda found: found, None),
])
def test_the_tokenizer_json_of_transformers_is_read_as_strictly(change, told, tokenizer, tmp_path):
    words = {"".join(data._CHAR[b] for b in token): i for token, i in tokenizer.ranks.items()} | {END: tokenizer.end}
    tokenizer.save(tmp_path)
    merges = [line.split(" ") for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    (tmp_path / "vocab.json").unlink()
    found = {"added_tokens": [{"id": tokenizer.end, "content": END}], "normalizer": None, "model": {"type": "BPE", "vocab": words, "merges": merges},
             "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(change(found)))
    if not told:
        assert Tokenizer.open(tmp_path).ranks == tokenizer.ranks
        return
    with pytest.raises(UserError, match=told) as error:
        Tokenizer.open(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value) and "\n" not in str(error.value)


def brute_force_ranks(texts, vocab_size):
    """Learn a vocabulary by counting all pairs anew for each token."""
    words = [[bytes([b]) for b in word.encode()] for text in texts for word in data._WORDS.findall(text)]
    ranks = {bytes([b]): i for i, b in enumerate(data._BYTES)}
    while len(ranks) < vocab_size - 1:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        made = {pair: b"".join(pair) for pair, n in pairs.items() if n > 1}
        made = {pair: token for pair, token in made.items() if token not in ranks and not re.search(rb"\n|[^ ][0-9]|[0-9].", token)
                and (len(token) == 2 or not any(token[:k] == token[-k:] for k in range(1, len(token))))}
        if not made:
            break
        pair = min(made, key=lambda pair: (-pairs[pair], pair))
        ranks[made[pair]] = len(ranks)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == pair:
                    word[i:i + 2] = [made[pair]]
                i += 1
    return ranks


@pytest.mark.parametrize("letters", ["ab ", "abc 1", "aab\n ", "einrs t", "é東a "])
def test_learning_is_that_of_a_brute_force_count(letters):
    draw = random.Random(letters)
    for n in (3, 30, 300):
        texts = ["".join(draw.choices(letters, k=draw.randrange(20))) for _ in range(n)]
        assert Tokenizer.learn(texts, 300).ranks == brute_force_ranks(texts, 300)


def test_learning_takes_the_most_frequent_pair_first():
    learned = Tokenizer.learn(["ab ab ab cd cd"], 256 + 1 + 3)
    assert sorted(learned.ranks, key=learned.ranks.get)[256:258] == [b"ab", b" ab"]  # " a" and "ab" tie? ab: 3, " a": 2


@pytest.mark.parametrize("role, text, learned", [
    ("answer", "P#a.", "a."), ("cot", "Pst#a.", "st#a."), ("unified", "Pqsrt#a.", "qsrt#a."),
    ("decomposer", "Pqr.", "qr."), ("stepwise", "Pqsrt.", "qr."), ("solver", "Pqsrt#a.", "sta."),
])
def test_the_mask_learns_what_the_roles_table_says(role, text, learned, tokenizer):
    assert set(ROLES) == {"answer", "cot", "unified", "decomposer", "stepwise", "solver"}
    names = {"P": " Ana has 12 pens. Bo has 3 more than Ana. How many do they have?\n", "#": "####", "a": " 27", ".": END,
             "q": " How many pens does Bo have?\n", "s": " Bo has <<12+3=15>>15 pens.\n",
             "r": " How many do they have?\n", "t": " They have <<12+15=27>>27 pens.\n"}
    (ids, mask), = encode_problems([PROBLEM], role, tokenizer)
    spell = lambda chosen: tokenizer._tiktoken.decode(ids[chosen].tolist())
    assert spell(slice(None)) == "".join(names[c] for c in text)
    assert spell(mask) == "".join(names[c] for c in learned)


def test_recitations_tell_statements_of_the_solutions_and_learn_them_when_they_come_again(tokenizer):
    solutions = [f"Before it was 7. <<{k}+1={k + 1}>> {name} has {k + 1} pens." for k, name in enumerate("ABCDEFGHIJ")]
    problems = [{"problem": "P", "answer": "1", "steps": [{"question": "q", "solution": s}]} for s in solutions]
    exercises = recitations(problems, tokenizer, 50, seed=3)
    assert exercises == recitations(problems, tokenizer, 50, seed=3) != recitations(problems, tokenizer, 50, seed=4)
    assert len(exercises) == 50
    told, reworded = {f" {name} has {k + 1}." for k, name in enumerate("ABCDEFGHIJ")}, []
    for exercise in exercises:
        text, n = "".join(t for t, _ in exercise), len(exercise) // 8  # a name and a number each, four times
        statements = [text_of_name + number for (text_of_name, _), (number, _) in zip(exercise[::2], exercise[1::2])]
        rounds = [statements[k * n:(k + 1) * n] for k in range(4)]
        assert 4 <= n <= 8 and len(set(rounds[0])) == n
        reworded += (others := set(rounds[0]) - told)
        assert all(re.fullmatch(r" ([A-J] [a-zA-Z]+|[a-zA-Z]+ has) \d+\.", other) for other in others)  # one word of it
        assert all(sorted(one) == sorted(rounds[0]) for one in rounds) and text == "".join(statements)
        assert [learned for _, learned in exercise] == [False] * 2 * n + [True] * 6 * n and rounds[0] == rounds[1]
    ids, learned = encode(exercises[:1], tokenizer)[0]
    assert tokenizer.decode(ids.tolist()) == "".join(t for t, _ in exercises[0])
    assert 0.3 < len(reworded) / sum(len(exercise) / 8 for exercise in exercises) < 0.7
    seen = set(tokenizer.encode("".join(text for text, _ in sum(recitations(problems, tokenizer, 1000, seed=3), []))))
    assert all(i in seen for i in range(256, tokenizer.end) if tokenizer.decode([i]).strip().isalpha())  # none left out
    assert recitations(problems[:7], tokenizer, 50, seed=3) == []  # too few
    assert recitations([{"steps": [{"question": "q", "solution": "So it is."}] * 9}], tokenizer, 50, seed=3) == []  # no number


def test_one_sequence_a_problem_learns_what_one_sequence_a_sub_question_does(tokenizer):
    model = GPT(GPTConfig(tokenizer.vocab_size, 200, 2, 2, 16)).initialise(0).double()

    def summed(sequence):
        ids, at, targets, weights = make_batch([sequence])
        return F.cross_entropy(model(ids, at), targets, reduction="sum")

    whole = summed(encode_problems([PROBLEM], "solver", tokenizer)[0])
    laid_out = segments(PROBLEM, "solver")
    parts = 0
    for k, (text, learned) in enumerate(laid_out):
        if learned:
            before = [i for t, _ in laid_out[:k] for i in ([tokenizer.end] if t is None else tokenizer.encode(t))]
            own = [tokenizer.end] if text is None else tokenizer.encode(text)
            parts = parts + summed((np.array(before + own), np.array([False] * len(before) + [True] * len(own))))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


def test_a_batch_weighs_the_next_token_of_each_position():
    sequences = [(np.array([5, 6, 7]), np.array([False, True, False])), (np.array([1, 2, 3, 4]), np.array([False, False, True, True]))]
    ids, at, targets, weights = make_batch(sequences, text_weight=0.25)
    assert ids.tolist() == [[5, 6, 0], [1, 2, 3]]
    assert at.tolist() == [0, 1, 3, 4, 5] and targets.tolist() == [6, 7, 2, 3, 4]
    assert weights.tolist() == [1.0, 0.25, 0.25, 1.0, 1.0]
    assert make_batch(sequences)[1].tolist() == [0, 4, 5]


@pytest.mark.parametrize("budget", [1, 64, 512])
def test_every_sequence_is_in_one_batch_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(3, 200, 10000)
    batches = plan_batches(lengths, budget, np.random.default_rng(1))
    assert sorted(i for batch in batches for i in batch) == list(range(10000))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget
    if budget == 512:
        assert lengths.sum() > 0.95 * sum(lengths[batch].max() * len(batch) for batch in batches)
    assert batches == plan_batches(lengths, budget, np.random.default_rng(1))


def without(field):
    return {key: value for key, value in PROBLEM.items() if key != field}


@pytest.mark.parametrize("row, told", [
    (b"{", "not JSON"), (b'["a"]', "object is expected"), (b'{"problem": "\xff"}', "not UTF-8"),
    (without("problem"), "'problem' is missing"), (without("steps"), "'steps'"), (without("answer"), "'answer' is missing"),
    (PROBLEM | {"answer": 27}, "'answer' must be a string, found int"), (PROBLEM | {"problem": " "}, "'problem' is empty"),
    (PROBLEM | {"steps": []}, "'steps' must be a list with at least one"), (PROBLEM | {"steps": ["a"]}, r"steps\[0\]"),
    (PROBLEM | {"steps": [{"question": "a"}]}, r"'steps\[0\].solution' is missing"),
])
def test_what_is_wrong_in_a_file_is_named_by_file_line_and_field(row, told, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = row if isinstance(row, bytes) else json.dumps(row).encode()
    path.write_bytes(json.dumps(PROBLEM).encode() + b"\n\n" + row + b"\n")
    with pytest.raises(UserError, match=told) as error:
        read_problems(path)
    assert str(error.value).startswith(f"{path}:3: ") and "\n" not in str(error.value)


def test_a_problem_read_is_a_problem_written(tmp_path):
    problem = PROBLEM | {"id": "x-1", "note": {"kept": True}, "problem": "\u2028東京 Ana"}
    data.write_problems(tmp_path / "rows.jsonl", [problem] * 3)
    assert read_problems(tmp_path / "rows.jsonl") == [problem] * 3


def test_files_are_written_aside_and_move_in_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), data.written_aside(tmp_path) as folder:
        (folder / "a").write_text("new")
        1 / 0
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
    with data.written_aside(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
