"""data.py: strict reading, the roles' loss mask, batches, numbers, the calculator, the tokenizer."""
import json
import os
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
import torch.nn.functional as F

import data
from data import (END, ROLES, Tokenizer, UserError, copy_examples, encode_problems, make_batch, plan_batches,
                  read_problems, segments)
from model import GPT, GPTConfig, init_weights

PROBLEM = {"problem": "Ana has 12 pens.\nBo has 3  more than Ana. How many do they have?", "steps": [
    {"question": "How many pens does Bo have?", "solution": "Bo has <<12+3=15>>15 pens."},
    {"question": "How many do they have?", "solution": "They have <<12+15=27>>27 pens."}], "answer": "27"}
TEXTS = [PROBLEM["problem"], *(text for step in PROBLEM["steps"] for text in step.values())] * 3
ROOT = Path(data.__file__).parent
STRINGS = ["", " ", "Bo's 007 pens", "a\n\n b\t \n", "naïve 東京 🙂‍↔️ ½ ٣", "x" * 300, "ababababab aaaaaaa",
           "<|endoftext|>", "\x00\x7f\u2028", "<<10+20=30>>30", "1,000,000 - 3.50 = $7%"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 330)


# ---- rows --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row, error", [
    (b"{", "not JSON"), (b'["a"]', "object is expected"), (b'{"problem": "\xff"}', "not UTF-8"),
    ({"answer": "1"}, "'problem' is missing"), ({"problem": "a", "answer": "1"}, "'steps'"),
    ({"problem": "a", "steps": PROBLEM["steps"]}, "'answer' is missing"),
    (PROBLEM | {"answer": 27}, "'answer' must be a string, found int"),
    (PROBLEM | {"problem": " "}, "'problem' is empty"),
    (PROBLEM | {"steps": []}, "'steps' must be a list with"), (PROBLEM | {"steps": ["a"]}, r"steps\[0\]"),
    (PROBLEM | {"steps": [{"question": "a"}]}, r"'steps\[0\].solution'"),
])
def test_what_is_wrong_in_a_file_is_named_by_file_line_and_field(row, error, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = row if isinstance(row, bytes) else json.dumps(row).encode()
    path.write_bytes(json.dumps(PROBLEM).encode() + b"\n\n" + row + b"\n")
    with pytest.raises(UserError, match=error) as raised:
        read_problems(path)
    assert str(raised.value).startswith(f"{path}:3: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("content, error", [
    (b"\x1f\x8b\x08", "gzip"), ("{}".encode("utf-16"), "UTF-16"), (b"PAR1\x15\x04", "a Parquet file"),
    (b"\n", "no problem"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS pointer"),
])
def test_a_file_of_another_kind_is_named_for_what_it_is(content, error, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=error) as raised:
        read_problems(tmp_path / "x.jsonl")
    assert str(raised.value).startswith(str(tmp_path / "x.jsonl")) and "\n" not in str(raised.value)


def test_a_problem_read_is_a_problem_written(tmp_path):
    problem = PROBLEM | {"id": "x-1", "note": {"kept": True}, "problem": "\u2028東京 Ana"}
    data.write_problems(tmp_path / "rows.jsonl", [problem] * 3)
    assert read_problems(tmp_path / "rows.jsonl") == [problem] * 3
    (tmp_path / "array.json").write_text("\ufeff" + json.dumps([problem] * 3), encoding="utf-8")
    assert read_problems(tmp_path / "array.json") == [problem] * 3


def test_problems_to_be_solved_and_not_scored_need_neither_steps_nor_answers(tmp_path):
    rows = [{"problem": "a 1"}, {"problem": "b 2", "steps": [{"question": "b?"}]}]
    data.write_problems(tmp_path / "rows.jsonl", rows)
    assert read_problems(tmp_path / "rows.jsonl", steps=False, answer=False) == rows
    with pytest.raises(UserError, match="rows.jsonl:1: field 'steps'"):
        read_problems(tmp_path / "rows.jsonl", answer=False)


def test_files_are_replaced_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), data.atomic_write(tmp_path) as folder:
        (folder / "a").write_text("new")
        1 / 0
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]
    with data.atomic_write(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# ---- sequences and batches ---------------------------------------------------------------------------------

@pytest.mark.parametrize("role, text, in_loss", [
    ("answer", "P#a.", "a."), ("cot", "Pst#a.", "st#a."), ("unified", "Pqsrt#a.", "qsrt#a."),
    ("decomposer", "Pqr.", "qr."), ("stepwise", "Pqsrt.", "qr."), ("solver", "Pqsrt#a.", "sta."),
])
def test_the_loss_mask_is_what_the_roles_table_says(role, text, in_loss, tokenizer):
    assert set(ROLES) == {"answer", "cot", "unified", "decomposer", "stepwise", "solver"}
    names = {"P": " Ana has 12 pens. Bo has 3 more than Ana. How many do they have?\n",
             "q": " How many pens does Bo have?\n", "s": " Bo has <<12+3=15>>15 pens.\n",
             "r": " How many do they have?\n", "t": " They have <<12+15=27>>27 pens.\n",
             "#": "####", "a": " 27", ".": END}
    for calculator in (True, False):
        (ids, mask), = encode_problems([PROBLEM], role, tokenizer, calculator=calculator)
        spell = lambda chosen: tokenizer._tiktoken.decode(ids[chosen].tolist())
        assert spell(slice(None)) == "".join(names[c] for c in text)
        written = "".join(names[c] for c in in_loss)
        if calculator:  # what it writes is no student's to learn
            written = written.replace("=15>>", "=").replace("=27>>", "=")
        assert spell(mask) == written


def test_one_sequence_a_problem_has_the_loss_of_one_sequence_a_sub_question(tokenizer):
    model = init_weights(GPT(GPTConfig(tokenizer.vocab_size, 200, 2, 2, 16)), 0).double()

    def summed(sequence):
        ids, loss_positions, targets, weights = make_batch([sequence])
        return F.cross_entropy(model(ids, loss_positions), targets, reduction="sum")

    before, parts = [], 0
    for text, in_loss in segments(PROBLEM, "solver"):
        own = [tokenizer.end] if text is None else tokenizer.encode(text)
        if in_loss:
            mask = [False] * len(before) + [True] * len(own)
            parts = parts + summed((np.array(before + own), np.array(mask)))
        before += own
    whole = summed(encode_problems([PROBLEM], "solver", tokenizer)[0])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


def test_a_batch_weighs_the_next_token_of_each_position():
    sequences = [(np.array([5, 6, 7]), np.array([False, True, False])),
                 (np.array([1, 2, 3, 4]), np.array([False, False, True, True]))]
    ids, loss_positions, targets, weights = make_batch(sequences, prompt_loss_weight=0.25)
    assert ids.tolist() == [[5, 6, 0], [1, 2, 3]]
    assert loss_positions.tolist() == [0, 1, 3, 4, 5] and targets.tolist() == [6, 7, 2, 3, 4]
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


def test_copy_examples_say_sentences_of_the_problems_and_learn_them_when_they_come_again(tokenizer):
    names = "ABCDEFGHIJ"
    problems = [{"problem": f"{name} has {k + 1} pens. How many?"} for k, name in enumerate(names)]
    known = {f" {name} has {k + 1}." for k, name in enumerate(names)}
    examples = copy_examples(problems, tokenizer, 50, seed=3)
    assert len(examples) == 50 and examples == copy_examples(problems, tokenizer, 50, seed=3)
    assert examples != copy_examples(problems, tokenizer, 50, seed=4)
    n_statements = n_reworded = 0
    for example in examples:
        n = len(example) // 8  # a name and a number each, four times
        statements = [name + number for (name, _), (number, _) in zip(example[::2], example[1::2])]
        rounds = [statements[k * n:(k + 1) * n] for k in range(4)]
        assert 4 <= n <= 8 and len(set(rounds[0])) == n and rounds[0] == rounds[1]
        assert all(sorted(order) == sorted(rounds[0]) for order in rounds)
        assert [in_loss for _, in_loss in example] == [False] * 2 * n + [True] * 6 * n
        reworded = set(rounds[0]) - known
        assert all(re.fullmatch(r" ([A-J] [a-zA-Z]+|[a-zA-Z]+ has) \d+\.", text) for text in reworded)
        n_statements, n_reworded = n_statements + n, n_reworded + len(reworded)
    assert 0.3 < n_reworded / n_statements < 0.7
    many = copy_examples(problems, tokenizer, 1000, seed=3)
    seen = set(tokenizer.encode("".join(text for example in many for text, _ in example)))
    assert all(i in seen for i in range(256, tokenizer.end) if tokenizer.decode([i]).strip().isalpha())
    assert copy_examples(problems[:7], tokenizer, 50, seed=3) == []  # too few
    assert copy_examples([{"problem": "So it is."}] * 9, tokenizer, 50, seed=3) == []  # no number


# ---- answers -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, value", [
    ("70,000", 70000), ("70000.0", 70000), ("$70,000", 70000), ("$70000.", 70000), ("12,34", None),
    ("1,2", None), ("1,2345", None), ("1234,567", None), ("1,234,567.50", Fraction(2469135, 2)),
    ("1/2", Fraction(1, 2)), ("1 1/2", Fraction(3, 2)), ("-1 1/2", Fraction(-3, 2)), ("½", Fraction(1, 2)),
    ("1½", Fraction(3, 2)), ("+7", 7), ("\u22125", -5), ("-$5", -5), ("$-5", -5), ("\\$9{,}500", 9500),
    ("12\u202f000", 12000), ("12\u00a0000", 12000), ("12\\,000", 12000), ("\\frac{1}{2}", Fraction(1, 2)),
    ("2\\tfrac{1}{4}", Fraction(9, 4)), ("50%", 50), (".5", Fraction(1, 2)), ("1/0", None),
    ("5 apples", None), ("--5", None), ("", None), ("9" * 5000, None), ("٣", None),
    ("€3.20", Fraction(16, 5)), ("1 2", None), ("1.2.3", None), ("0x10", None),
])
def test_a_number_is_read_as_people_write_it(text, value):
    assert data.parse_number(text) == value


@pytest.mark.parametrize("a, b, same", [
    ("1,2", "12", False), ("12,34", "1234", False), ("1/2", "0.5", True), ("1 1/2", "1.5", True),
    ("+7", "7", True), ("\u22125", "-5", True), ("-5", "5", False), ("Yes.", "true", True),
    ("no", "False", True), ("yes", "no", False), ("Paris", "paris.", True), ("12", "12.0", True),
    ("1,2", "1,2", True), ("0.1", "1/10", True), ("$5", "5%", True),
])
def test_answers_are_compared_as_numbers_where_both_are(a, b, same):
    assert data.same_answer(a, b) == data.same_answer(b, a) == same


def test_numbers_in_a_text_have_their_signs():
    assert data.numbers_in("from 10-5 to -3, 1,234.5 and -$7; 1/2, 3 1/3; a5 (-2) 8 - 4 = \u22124") == [
        10, 5, -3, Fraction(2469, 2), -7, Fraction(1, 2), Fraction(10, 3), -2, 8, 4, -4]


@pytest.mark.parametrize("solution, answer, states", [
    ("It is -5 degrees.", "5", False), ("It is -5 degrees.", "-5", True),
    ("10-5 = <<10-5=5>>5 left.", "5", True), ("<<3*4=12>> He buys 12 apples.", "12", True),
    ("He buys 120 apples.", "12", False), ("That is $1,200.", "1200", True),
    ("They eat 3/4 of it.", "0.75", True), ("So the answer is no.", "no", True),
    ("Nobody knows.", "no", False), ("It is 1.5 m.", "5", False), ("It costs 5.", "5", True),
    ("Use <<2+3=5>>the sum.", "5", True),
])
def test_a_solution_states_an_answer_as_one_of_its_numbers_or_in_its_words(solution, answer, states):
    assert data.states_answer(solution, answer) == states


@pytest.mark.parametrize("said, answer, same", [
    ("m+n = 256+37 = 293", "293", True), ("m+n = 256+37 = 293", "256", False),
    ("12 apples (3 boxes of 4)", "12", True), ("12 apples (3 boxes of 4)", "3", False),
    ("So the answer is no.", "no", True), ("No - it sinks", "no", True), ("No - it sinks", "yes", False),
    ("Yes, it could", "yes", True), ("The answer is 5.", "5", True), ("$9,500.", "9500", True),
    ("about 12 or 13", "12", False), ("12 [each]", "12", True), ("x = 3 1/2 hours", "3.5", True),
    ("5 hours, since 10/2 = 5", "5", True), ("no", "yes", False), ("-5 degrees", "5", False),
    ("true", "yes", True),
])
def test_a_reply_gives_its_answer_behind_the_last_equals_sign_and_before_brackets(said, answer, same):
    assert data.matches_answer(said, answer) == same


def test_the_calculator_computes_what_python_does_in_fractions():
    draw = random.Random(0)
    for _ in range(3000):
        parts = [str(draw.randint(0, 99))]
        for _ in range(draw.randint(1, 5)):
            parts.append(draw.choice("+-*/"))
            parts.append(draw.choice([str(draw.randint(0, 99)), f"({draw.randint(1, 9)}-4)"]))
        expression = "".join(parts)
        try:
            value = eval(re.sub(r"\d+", r"Fraction(\g<0>)", expression))
        except ZeroDivisionError:
            value = None
        result = data.calculate(expression)
        assert (result is None) == (value is None)
        if value is not None:
            exact = (value * 10 ** 4).denominator == 1
            assert Fraction(result) == value if exact else abs(Fraction(result) - value) <= Fraction(1, 200)


@pytest.mark.parametrize("expression, result", [
    ("3*(4+1.5)", "16.5"), ("1,200*2", "2400"), ("3,5*2", None), ("12,34+1", None), ("5%*20", "1"),
    ("$7.50/2", "3.75"), ("100/3", "33.33"), ("1/8", "0.125"), ("20/5%", "400"),
    ("12345678901234567.5*2", "24691357802469135"), ("05*2", "10"), ("7//2", "3"), ("-3+-(2)", "-5"),
    ("1/0", None), ("2**3", None), ("", None), ("1+", None), ("(1", None), ("a+1", None), ("1 2", None),
    ("9" * 101, None), ("\u22125+2", "-3"), ("0-0.001", "-0.001"),
])
def test_the_calculator_takes_gsm8ks_expressions_and_nothing_else(expression, result):
    assert data.calculate(expression) == result


def test_the_calculator_has_its_turn_behind_an_open_annotation_alone():
    assert data.calculator_result(b"Bo has <<12+3=") == "15>>"
    for line in b"12+3=", b"<<12+3", b"<<12+3=15>>15 =", b"<<x+3=", "<<½é=".encode()[:-2]:
        assert data.calculator_result(line) is None


@pytest.mark.parametrize("solution, problems", [
    ("He has <<3+4=7>>7.", 0), ("He has <<3+4=8>>8.", 1), ("He has <<3+4=7>>8.", 1), ("He has <<3+4=7.", 1),
    ("<<10/3=3.33>>3.33", 0), ("<<10/3=3.3>>", 0), ("<<10/3=3.5>>", 1), ("<<a=3>>", 1), ("None here.", 0),
    ("<<1000*2=2000>>2,000 of them", 0), ("<<5-10=-5>>-5 degrees", 0),
])
def test_invalid_annotations_are_found(solution, problems):
    assert len(list(data.invalid_annotations(solution))) == problems


@pytest.mark.parametrize("solution, annotated", [
    ("3 x 4 = $12 in all.", "3 x 4 = $<<3*4=12>>12 in all."), ("10 ÷ 4 = 2.5", "10 ÷ 4 = <<10/4=2.5>>2.5"),
    ("He has <<3+4=7>>7 and 7 - 2 = 5.", "He has <<3+4=7>>7 and 7 - 2 = <<7-2=5>>5."),
    ("1,200 + 300 = 1,500.", "1,200 + 300 = <<1200+300=1500>>1,500."), ("5-10 = -5", "5-10 = <<5-10=-5>>-5"),
    ("3*4 = 12 and 2*3 = 6", "3*4 = <<3*4=12>>12 and 2*3 = <<2*3=6>>6"),
    ("20-8 = 12 left", "20-8 = <<20-8=12>>12 left"), ("10/3 = 3.33 hours", "10/3 = <<10/3=3.33>>3.33 hours"),
])
def test_a_plain_equation_gets_its_annotation(solution, annotated):
    assert data.annotate_equations(solution) == annotated


@pytest.mark.parametrize("solution", [
    "10/4 = 2 remainder 2", "10/3 = 3 1/3 hours", "10/4 = 2 R2", "10/4 = 2, r 2",
    "10/4 = 2 with 2 left over", "10/3 = 3.33...", "3 1/2 * 2 = 7", "7/2 = 3 and a half", "7/2 = 3½ cups",
    "3:30 - 1 = 2", "3/4 = 75%", "2^3*4 = 32", "10/3 ≈ 3.3", "2*3 = 6 = 5+1",
])
def test_what_is_not_certainly_an_equation_stays_as_it_is(solution):
    assert data.annotate_equations(solution) in (solution, "2*3 = <<2*3=6>>6 = 5+1")


@pytest.mark.parametrize("solution", ["3*4 = 13", "10 + 5 = $16.", "2*3 = 7 apples", "100/4 = 20"])
def test_a_wrong_equation_is_an_error(solution):
    with pytest.raises(ValueError, match="does not compute"):
        data.annotate_equations(solution)


def test_the_calculator_equals_gsm8ks_annotations():
    path = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
    if not path.exists():
        pytest.skip("GSM8K's training file is not here")
    answers = [row["answer"] for _, row in data.read_rows(path)]
    pairs = [pair for answer in answers for pair in re.findall("<<([^<>]*?)=([^<>=]*)>>", answer)]
    assert len(pairs) == 23716 and all(data.same_answer(data.calculate(a), b) for a, b in pairs)


# ---- the tokenizer -----------------------------------------------------------------------------------------

def random_strings(n, alphabet, rng=random.Random(0)):
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(n)]


def test_any_text_comes_back_from_its_ids(tokenizer):
    everything = "".join(map(chr, [*range(0, 0xD800, 7), *range(0xE000, 0x110000, 131)]))
    for text in STRINGS + random_strings(300, everything):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")  # half a surrogate pair


def test_digits_and_newlines_are_single_tokens(tokenizer):
    assert tokenizer.vocab_size > 280
    for token in tokenizer.ranks:
        digits = set(token[1:]) & set(b"0123456789")
        assert b"\n" not in token[1:] and not digits or token[:1] == b" " and len(token) == 2
    assert len(tokenizer.encode("40213")) == 5
    assert tokenizer.encode("\n") == [tokenizer.ranks[b"\n"]]


def strings_of_every_kind():
    """2,000 strings, the same each time; those of one character in long runs."""
    rng = random.Random(7)
    planes = [chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(3000)]
    alphabets = [
        " aeopnshvw'", "0123456789.,+-*/=<>() ", "\t\n\r \x0b\x0c\x85\xa0\u2003\u2028\u3000a", planes,
        [*map(chr, range(128))], "東京都に猫がいます。我有三只貓，한국어도",
        ["🙂", "\u200d", "\ufe0f", "👩", "💻", "🇩", "🇪", "1\ufe0f\u20e3", "e\u0301", " "],
        ["def ", "return", "    ", "\n", "{", "}", "==", "!=", "->", "self.", "x_1", "0x1F", "/*", "\"", "'"],
        ["'s", "'ll", "'VE", "don't", "I'm", " ", "’s", "Ann", "cats", "$", "½", "٣", "ǅ", "ß", "İ"]]
    strings = STRINGS + TEXTS
    for alphabet in alphabets:
        strings += random_strings(200, alphabet, rng)
    runs = (*"a ^1\n\t'東", "🙂", "ab", " a", "\u200d")
    strings += [c * n + end for c in runs for n in (2, 50, 999) for end in ("", " ", "y")]
    return [text for text in strings if END not in text]  # which transformers reads as the special token


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


def test_ids_are_those_of_tiktoken_and_of_transformers_on_2000_strings(a_tokenizer, tmp_path, transformers):
    a_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    strings = strings_of_every_kind()
    ids = a_tokenizer.encode_batch(strings)
    assert len(strings) > 1800
    for text, ours, other in zip(strings, ids, theirs(strings)["input_ids"]):
        assert ours == other == a_tokenizer.encode(text), ascii(text)
        assert a_tokenizer.decode(ours) == theirs.decode(ours) == text, ascii(text)
    if a_tokenizer.end == 50256:
        assert ids == tiktoken.get_encoding("gpt2").encode_ordinary_batch(strings)
    assert theirs.convert_tokens_to_ids(END) == theirs.eos_token_id == theirs.bos_token_id == a_tokenizer.end


def test_gpt2s_own_files_open_and_are_written_again_as_they_were(a_tokenizer, tmp_path):
    a_tokenizer.save_pretrained(tmp_path)
    if a_tokenizer.end == 50256:  # the files that OpenAI published, as tiktoken caches them
        originals = [path.read_text() for path in Path(os.environ["TIKTOKEN_CACHE_DIR"]).iterdir()]
        assert (tmp_path / "merges.txt").read_text() in originals
        vocab = json.loads((tmp_path / "vocab.json").read_text())
        assert any(text[0] == "{" and json.loads(text) == vocab for text in originals)
    assert Tokenizer.from_pretrained(tmp_path, a_tokenizer.vocab_size).ranks == a_tokenizer.ranks
    without_version = (tmp_path / "merges.txt").read_text().partition("\n")[2].removesuffix("\n")
    (tmp_path / "merges.txt").write_text(without_version)
    assert Tokenizer.from_pretrained(tmp_path).ranks == a_tokenizer.ranks


@pytest.mark.parametrize("file, change, error", [
    ("merges.txt", lambda text: text.replace("\n", "\nx y\n", 1), "vocab.json: not the vocabulary of its"),
    ("merges.txt", lambda text: text[:text.index("\n", 40) + 1], "vocab.json: not the vocabulary of its"),
    ("merges.txt", None, "merges.txt: No such file"), ("vocab.json", None, "vocab.json: No such file"),
    ("vocab.json", lambda text: text[:-1], "not a GPT-2 vocabulary"),
    ("vocab.json", lambda text: "[1]", "not a GPT-2"),
    ("vocab.json", lambda text: text.replace('"!": 0', '"!": 1'), "not the vocabulary of its merges"),
    ("vocab.json", lambda text: text.replace(END, "end"), "not the vocabulary of its merges"),
])
def test_a_broken_vocabulary_is_refused_in_one_line(file, change, error, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(change(path.read_text())) if change else path.unlink()
    with pytest.raises(UserError, match=error) as raised:
        Tokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_tokenizer_json_of_transformers_opens_to_the_same_ids(tokenizer, tmp_path, transformers):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    for name in "vocab.json", "merges.txt":
        (tmp_path / "theirs" / name).unlink(missing_ok=True)
    assert Tokenizer.from_pretrained(tmp_path / "theirs").ranks == tokenizer.ranks
    path = tmp_path / "theirs" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    with pytest.raises(UserError, match="tokenizer.json: not a GPT-2 vocabulary .*not byte-level BPE"):
        Tokenizer.from_pretrained(tmp_path / "theirs")


def test_a_damaged_or_missing_file_of_tiktokens_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: 1 / 0)  # what tiktoken does without a network
    name = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    with pytest.raises(UserError, match=f"{name} is missing; it is GPT-2's vocab.bpe"):
        Tokenizer.gpt2()
    (tmp_path / name).write_text("damaged")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        Tokenizer.gpt2()


def brute_force_ranks(texts, vocab_size):
    """Learn a vocabulary by counting all pairs anew for each token."""
    words = [[bytes([b]) for b in word.encode()] for text in texts for word in data._WORDS.findall(text)]
    ranks = {bytes([b]): i for i, b in enumerate(data._BYTES)}

    def allowed(token):
        overlaps = len(token) > 2 and any(token[:k] == token[-k:] for k in range(1, len(token)))
        return token not in ranks and not overlaps and not re.search(rb"\n|[^ ][0-9]|[0-9].", token)

    while len(ranks) < vocab_size - 1:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        made = {pair: b"".join(pair) for pair, n in pairs.items() if n > 1 and allowed(b"".join(pair))}
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
def test_learning_a_vocabulary_is_that_of_a_brute_force_count(letters):
    draw = random.Random(letters)
    for n in (3, 30, 300):
        texts = ["".join(draw.choices(letters, k=draw.randrange(20))) for _ in range(n)]
        assert Tokenizer.train(texts, 300).ranks == brute_force_ranks(texts, 300)
