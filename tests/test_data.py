"""data.py: strict reading, the roles' loss mask, batches, numbers, the calculator, the tokenizer."""
import contextlib
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
from data import (END, ROLES, Letters, Tokenizer, UserError, calculator_result, encode_problems,
                  make_batch, merge_steps, plan_batches, read_problems, segments)
from model import GPT, GPTConfig, init_weights

PROBLEM = {"problem": "Ana has 12 pens.\nBo has 3  more than Ana. How many do they have?", "steps": [
    {"question": "How many pens does Bo have?", "solution": "Bo has <<12+3=15>>15 pens."},
    {"question": "How many do they have?", "solution": "They have <<12+15=27>>27 pens."}], "answer": "27"}
TEXTS = [PROBLEM["problem"], *(text for step in PROBLEM["steps"] for text in step.values())] * 3
ROOT = Path(data.__file__).parent


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 330)


def refusal(beginning, read, *args):
    """What read(*args) says: a UserError of one line that begins like this."""
    with pytest.raises(UserError) as error:
        read(*args)
    assert str(error.value).startswith(str(beginning)) and "\n" not in str(error.value)
    return str(error.value)


# ---- rows --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row, error", [
    (b"{", "not JSON"), (b'["a"]', "object is expected"), (b'{"problem": "\xff"}', "not UTF-8"),
    ({"answer": "1"}, "'problem' is missing"), ({"problem": "a", "answer": "1"}, "'steps'"),
    ({"problem": "a", "steps": PROBLEM["steps"]}, "'answer' is missing"),
    (PROBLEM | {"answer": 27}, "'answer' must be a string, found int"),
    (PROBLEM | {"problem": " "}, "'problem' is empty"),
    (PROBLEM | {"steps": []}, "'steps' must be a list with"), (PROBLEM | {"steps": ["a"]}, "steps[0]"),
    (PROBLEM | {"steps": [{"question": "a"}]}, "'steps[0].solution'"),
])
def test_what_is_wrong_in_a_file_is_named_by_file_line_and_field(row, error, tmp_path):
    path, row = tmp_path / "x.jsonl", row if isinstance(row, bytes) else json.dumps(row).encode()
    path.write_bytes(json.dumps(PROBLEM).encode() + b"\n\n" + row + b"\n")
    assert error in refusal(f"{path}:3: ", read_problems, path)


@pytest.mark.parametrize("content, error", [
    (b"\x1f\x8b\x08", "gzip"), ("{}".encode("utf-16"), "UTF-16"), (b"PAR1\x15\x04", "a Parquet file"),
    (b"\n", "no problem"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS pointer"),
])
def test_a_file_of_another_kind_is_named_for_what_it_is(content, error, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(content)
    assert error in refusal(tmp_path / "x.jsonl", read_problems, tmp_path / "x.jsonl")


def test_a_problem_read_is_a_problem_written(tmp_path):
    problem = PROBLEM | {"id": "x-1", "note": {"kept": True}, "problem": "\u2028東京 Ana"}
    data.write_problems(tmp_path / "rows.jsonl", [problem] * 3)
    (tmp_path / "array.json").write_text("\ufeff" + json.dumps([problem] * 3), encoding="utf-8")
    for file in "rows.jsonl", "array.json":
        assert read_problems(tmp_path / file) == [problem] * 3


def test_files_are_replaced_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    for divisor, expected in (0, {"a": "old"}), (1, {"a": "new", "b": "new"}):
        with contextlib.suppress(ZeroDivisionError), data.atomic_write(tmp_path) as folder:
            for name in "ab":
                (folder / name).write_text("new")
            1 / divisor
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == expected


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
        assert tokenizer.decode(ids.tolist()) == "".join(names[c] for c in text)
        written = "".join(names[c] for c in in_loss)
        if calculator:  # what it writes is no student's to learn
            written = written.replace("=15>>", "=").replace("=27>>", "=")
        assert tokenizer.decode(ids[mask].tolist()) == written


def test_letters_stand_for_the_numbers_of_a_problem_and_of_its_solutions():
    letters = {"12": "α", "3": "β", "15": "γ", "27": "δ"}
    for role in "cot", "unified", "stepwise", "solver":
        plain, hidden = (segments(PROBLEM, role, letters=hide) for hide in (False, True))
        assert hidden == [(text and re.sub(r"\d+", lambda match: letters[match[0]], text), in_loss)
                          for text, in_loss in plain]
    # who has not read the solutions knows the problem's numbers alone
    assert segments(PROBLEM, "answer", letters=True)[-2] == (" 27", True)


@pytest.mark.parametrize("problem, lines, hidden", [
    # as people write numbers; ordinals and "one" are none
    ("Twenty-five kids and Two of one dozen paid $1,234.50 for 3kg, half of .5, on the 2nd and 10th.", [],
     ["α kids and β of one dozen paid $γ for δ kg, half of ε, on the 2nd and 10th."]),
    ("Two-thirds of 007 and twenty five, No.5, 0.00125, the twenty-first.", ["7, 25, 5 and 0.00125kg."],
     ["Two-thirds of α and β, No.γ, δ, the twenty-first.", "α, β, γ and δ kg."]),
    # letters of the problem's own; results with a unit
    ("Angles α and β have 30 and 60 degrees.", ["<<30+60=$90>>90"], ["Angles Α and Β have α and β degrees.",
                                                                    "<<α+β=γ>>γ"]),
    # a number that nobody told stays; a result has the next letter, of equal numbers too
    ("He has 5 and 5.", ["<<5+5=10>>10", "<<10*2=20.00>>20, not 7", "In 5 weeks?"],
     ["He has α and β.", "<<α+β=γ>>γ", "<<γ*2=δ>>δ, not 7", "In α weeks?"]),
    # of equal numbers the one that no equation has; a result before what the problem tells
    ("4, 2 and 2.", ["<<4/2=2>>2", "<<2*2=4>>4", "4"], ["α, β and γ.", "<<α/β=δ>>δ", "<<δ*γ=ε>>ε", "ε"]),
    # fractions are two numbers, so that an equation can be written of them
    ("1/2 of 36?", ["36*1/2=<<36*1/2=18>>18", "18"], ["α/β of γ?", "γ*α/β=<<γ*α/β=δ>>δ", "δ"]),
])
def test_letters_for_numbers_as_people_write_them(problem, lines, hidden):
    letters = Letters(problem)
    assert [letters.problem, *map(letters.hide, lines)] == hidden
    for line, text in zip(lines, hidden[1:]):
        plain = line.replace(".00>>", ">>").replace("=$", "=").replace("00125kg", "00125 kg")
        assert letters.show(text) == plain
    letters.forget_results()
    assert len(letters.numbers) == letters.n_mentioned and letters.hide("9") == "9"


def test_the_calculator_computes_with_letters_the_larger_number_first():
    """In a difference, and in a quotient that is then a whole number."""
    letters = Letters("He has 12 pens in 3 boxes.")
    assert calculator_result("<<α*β=".encode(), letters) == "γ>>" and letters.show("<<γ/2>>") == "<<36/2>>"
    assert calculator_result("<<(γ-α)/2=".encode(), letters) == "δ>>" and letters.show("δ") == "12"
    assert calculator_result("<<α+ω=".encode(), letters) is None  # ω stands for nothing
    letters = Letters("He has 3, 12 and 7.")
    for written, shown in (("<<α-β=", "<<12-3="), ("<<β-α=", "<<12-3="), ("<<α/β=", "<<12/3="),
                           ("<<γ/β=", "<<7/12="), ("<<α-β-γ=", "<<3-12-7="), ("α-β", "3-12")):
        assert letters.show(written) == shown
    assert calculator_result("<<α-β=".encode(), letters) == "δ>>" and letters.show("δ") == "9"
    assert letters.show("<<α-β=δ>>δ") == "<<12-3=9>>9"


def test_one_sequence_a_problem_has_the_loss_of_one_sequence_a_sub_question(tokenizer):
    model = init_weights(GPT(GPTConfig(tokenizer.vocab_size, 200, 2, 2, 16)), 0).double()

    def summed(ids, mask):
        ids, loss_positions, targets, _ = make_batch([(np.array(ids), np.array(mask))])
        return F.cross_entropy(model(ids, loss_positions), targets, reduction="sum")

    before, parts = [], 0
    for text, in_loss in segments(PROBLEM, "solver"):
        own = [tokenizer.end] if text is None else tokenizer.encode(text)
        if in_loss:
            parts += summed(before + own, [False] * len(before) + [True] * len(own))
        before += own
    whole = summed(*encode_problems([PROBLEM], "solver", tokenizer)[0])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


def test_merged_steps_keep_all_solutions_and_the_last_questions():
    problems = [{"steps": [{"question": f"{n}: {k}?", "solution": f"<<{k}+{n}={k + n}>>"} for k in range(n)]}
                for n in (1, 2, 3, 4) for _ in range(50)]
    merged = merge_steps(problems, 0.5, seed=3)
    assert merged == merge_steps(problems, 0.5, seed=3) and merge_steps(problems, 0.0, seed=3) == problems
    for before, after in zip(problems, merged, strict=True):
        solutions, questions = ([step[key] for step in before["steps"]] for key in ("solution", "question"))
        n = len(questions) - len(after["steps"])  # questions that are gone
        assert [step["question"] for step in after["steps"]] == questions[n:]
        merged_one = " ".join(solutions[:n + 1])
        assert [step["solution"] for step in after["steps"]] == [merged_one, *solutions[n + 1:]]
    assert 50 < sum(before != after for before, after in zip(problems, merged)) < 100  # of 150 with several


def test_a_batch_weighs_the_next_token_of_each_position():
    sequences = [(np.array([5, 6, 7]), np.array([False, True, False])),
                 (np.array([1, 2, 3, 4]), np.array([False, False, True, True]))]
    ids, loss_positions, targets, weights = make_batch(sequences)
    assert ids.tolist() == [[5, 6, 0], [1, 2, 3]]
    assert (loss_positions.tolist(), targets.tolist(), weights.tolist()) == ([0, 4, 5], [6, 3, 4], [1, 1, 1])
    # what is only read has a weight in one step of four, four times as much; the padding never
    over_steps, next_tokens = Counter(), {}
    for step in range(8):
        _, loss_positions, targets, weights = make_batch(sequences, prompt_loss_weight=0.25, step=step)
        next_tokens |= dict(zip(loss_positions.tolist(), targets.tolist()))
        over_steps.update(dict(zip(loss_positions.tolist(), (weights / 8).tolist())))
    assert next_tokens == {0: 6, 1: 7, 3: 2, 4: 3, 5: 4}
    assert over_steps == {0: 1.0, 1: 0.25, 3: 0.25, 4: 1.0, 5: 1.0}


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


# ---- answers -----------------------------------------------------------------------------------------------

def count_invalid(solution):
    return len(list(data.invalid_annotations(solution)))


@pytest.mark.parametrize("function, expected", [  # {what a function gets, or a tuple of it: what it returns}
    (data.parse_number, {
        "70,000": 70000, "70000.0": 70000, "$70,000": 70000, "$70000.": 70000, "1,234,567.50": 1234567.5,
        "1/2": 0.5, "1 1/2": 1.5, "-1 1/2": -1.5, "½": 0.5, "1½": 1.5, "-½": -0.5, "+7": 7, "\u22125": -5,
        "$-5": -5, "-$5": -5, "\\$9{,}500": 9500, "12\u202f000": 12000, "12\u00a0000": 12000, "50%": 50,
        "12\\,000": 12000, "\\frac{1}{2}": 0.5, "2\\tfrac{1}{4}": 2.25, ".5": 0.5, "€3.20": Fraction(16, 5)}),
    (data.parse_number, dict.fromkeys([
        "12,34", "1,2", "1,2345", "1234,567", "1/0", "5 apples", "--5", "", "٣", "9" * 5000, "1 2", "1.2.3",
        "0x10"])),
    (data.numbers_in, {"from 10-5 to -3, 1,234.5 and -$7; 1/2, 3 1/3; a5 (-2) 8 - 4 = \u22124": [
        10, 5, -3, 1234.5, -7, 0.5, Fraction(10, 3), -2, 8, 4, -4]}),
    (data.same_answer, {
        ("1,2", "12"): False, ("12,34", "1234"): False, ("1/2", "0.5"): True, ("1 1/2", "1.5"): True,
        ("+7", "7"): True, ("-5", "\u22125"): True, ("-5", "5"): False, ("Yes.", "true"): True,
        ("no", "False"): True, ("yes", "no"): False, ("paris.", "Paris"): True, ("12", "12.0"): True,
        ("1,2", "1,2"): True, ("0.1", "1/10"): True, ("$5", "5%"): True}),
    (data.states_answer, {  # as one of its numbers, or in its words
        ("It is -5 degrees.", "5"): False, ("It is -5 degrees.", "-5"): True,
        ("10-5 = <<10-5=5>>5 left.", "5"): True, ("<<3*4=12>> He buys 12 apples.", "12"): True,
        ("He buys 120 apples.", "12"): False, ("That is $1,200.", "1200"): True,
        ("They eat 3/4 of it.", "0.75"): True, ("So the answer is no.", "no"): True,
        ("Nobody knows.", "no"): False, ("It is 1.5 m.", "5"): False, ("Use <<2+3=5>>the sum.", "5"): True}),
    (data.matches_answer, {  # behind the last equals sign, before brackets
        ("m+n = 256+37 = 293", "293"): True, ("m+n = 256+37 = 293", "256"): False,
        ("12 apples (3 boxes of 4)", "12"): True, ("12 apples (3 boxes of 4)", "3"): False,
        ("No - it sinks", "no"): True, ("No - it sinks", "yes"): False, ("Yes, it could", "yes"): True,
        ("The answer is 5.", "5"): True, ("about 12 or 13", "12"): False, ("-5 degrees", "5"): False,
        ("x = 3 1/2 hours", "3.5"): True, ("5 hours, since 10/2 = 5", "5"): True, ("12 [each]", "12"): True,
        ("$9,500.", "9500"): True, ("So the answer is no.", "no"): True, ("true", "yes"): True}),
    (data.calculate, {  # GSM8K's expressions, and nothing else
        "3*(4+1.5)": "16.5", "1,200*2": "2400", "5%*20": "1", "$7.50/2": "3.75", "100/3": "33.33",
        "1/8": "0.125", "20/5%": "400", "12345678901234567.5*2": "24691357802469135", "05*2": "10",
        "7//2": "3", "-3+-(2)": "-5", "\u22125+2": "-3", "0-0.001": "-0.001", "6/½": "12", "9/6/2": "0.75"}),
    (data.calculate, dict.fromkeys(["3,5*2", "1/0", "2**3", "", "1+", "(1", "a+1", "1 2", "9" * 101])),
    (data.calculator_result, {b"Bo has <<12+3=": "15>>"} | dict.fromkeys(  # behind an open annotation alone
        [b"12+3=", b"<<12+3", b"<<12+3=15>>15 =", b"<<x+3=", "<<½é=".encode()[:-2]])),
    (count_invalid, dict.fromkeys(["He has <<3+4=7>>7.", "<<10/3=3.33>>3.33", "<<10/3=3.3>>", "None here.",
                                   "<<1000*2=2000>>2,000 of them", "<<5-10=-5>>-5 degrees"], 0)),
    (count_invalid, dict.fromkeys(["He has <<3+4=8>>8.", "He has <<3+4=7>>8.", "He has <<3+4=7.",
                                   "<<10/3=3.5>>", "<<a=3>>"], 1)),
    (data.annotate_equations, {text: text for text in (  # what is not certainly an equation stays as it is
        "10/4 = 2 remainder 2", "10/3 = 3 1/3 hours", "10/4 = 2 R2", "10/4 = 2, r 2", "10/3 = 3.33...",
        "10/4 = 2 with 2 left over", "3 1/2 * 2 = 7", "7/2 = 3 and a half", "7/2 = 3½ cups", "3:30 - 1 = 2",
        "3/4 = 75%", "2^3*4 = 32", "10/3 ≈ 3.3")}),
    (data.annotate_equations, {
        "3 x 4 = $12 in all.": "3 x 4 = $<<3*4=12>>12 in all.", "10 ÷ 4 = 2.5": "10 ÷ 4 = <<10/4=2.5>>2.5",
        "He has <<3+4=7>>7 and 7 - 2 = 5.": "He has <<3+4=7>>7 and 7 - 2 = <<7-2=5>>5.",
        "1,200 + 300 = 1,500.": "1,200 + 300 = <<1200+300=1500>>1,500.",
        "3*4 = 12 and 2*3 = 6": "3*4 = <<3*4=12>>12 and 2*3 = <<2*3=6>>6",
        "10/3 = 3.33 hours": "10/3 = <<10/3=3.33>>3.33 hours", "5-10 = -5": "5-10 = <<5-10=-5>>-5",
        "2*3 = 6 = 5+1": "2*3 = <<2*3=6>>6 = 5+1"})])
def test_numbers_answers_and_equations_are_read_as_people_write_them(function, expected):
    assert {args: function(*args if isinstance(args, tuple) else [args]) for args in expected} == expected


@pytest.mark.parametrize("wrong", ["3*4 = 13", "10 + 5 = $16.", "2*3 = 7 apples", "100/4 = 20"])
def test_a_plain_equation_that_does_not_compute_gets_no_annotation(wrong):
    with pytest.raises(ValueError, match="does not compute"):
        data.annotate_equations(wrong)


def test_the_calculator_computes_what_python_does_in_fractions():
    draw = random.Random(0)
    for _ in range(3000):
        expression = str(draw.randint(0, 99))
        for _ in range(draw.randint(1, 5)):
            expression += draw.choice("+-*/")
            expression += draw.choice([str(draw.randint(0, 99)), f"({draw.randint(1, 9)}-4)"])
        try:
            value = eval(re.sub(r"\d+", r"Fraction(\g<0>)", expression))
        except ZeroDivisionError:
            assert data.calculate(expression) is None
            continue
        tolerance = 0 if (value * 10 ** 4).denominator == 1 else Fraction(1, 200)
        assert abs(Fraction(data.calculate(expression)) - value) <= tolerance


def test_the_calculator_equals_gsm8ks_annotations():
    path = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
    if not path.exists():
        pytest.skip("GSM8K's training file is not here")
    answers = [row["answer"] for _, row in data.read_rows(path)]
    pairs = [pair for answer in answers for pair in re.findall("<<([^<>]*?)=([^<>=]*)>>", answer)]
    assert len(pairs) == 23716 and all(data.same_answer(data.calculate(a), b) for a, b in pairs)


# ---- the tokenizer -----------------------------------------------------------------------------------------

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
    runs = (*"a ^1\n\t'東", "🙂", "ab", " a", "\u200d")
    return ["", "Bo's 007 pens", "naïve 東京 🙂‍↔️ ½ ٣", "<<10+20=30>>30", "1,000,000 - 3.50 = $7%", *TEXTS,
            *(c * n + end for c in runs for n in (2, 50, 999) for end in ("", " ", "y")),
            *("".join(rng.choices(alphabet, k=rng.randint(1, 40)))
              for alphabet in alphabets for _ in range(200))]


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


def test_any_text_comes_back_from_its_ids(a_tokenizer):
    strings = [END, *strings_of_every_kind()]
    ids = a_tokenizer.encode_batch(strings)
    assert len(strings) > 1900 and [a_tokenizer.decode(each) for each in ids] == strings
    assert all(a_tokenizer.end not in each for each in ids)
    assert a_tokenizer.encode("a\ud800b") == a_tokenizer.encode("a\ufffdb")  # half a surrogate pair
    if a_tokenizer.end == 50256:
        assert ids == tiktoken.get_encoding("gpt2").encode_ordinary_batch(strings)


def test_a_vocabulary_goes_to_transformers_with_the_same_ids_and_comes_back(
        a_tokenizer, tmp_path, transformers):
    a_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs, strings = transformers.AutoTokenizer.from_pretrained(tmp_path), strings_of_every_kind()
    for text, ids in zip(strings, theirs(strings)["input_ids"], strict=True):
        assert a_tokenizer.encode(text) == ids and theirs.decode(ids) == text, ascii(text)
    assert theirs.convert_tokens_to_ids(END) == theirs.eos_token_id == theirs.bos_token_id == a_tokenizer.end

    path = tmp_path / "back" / "tokenizer.json"
    theirs.save_pretrained(path.parent)
    for name in "vocab.json", "merges.txt":
        (path.parent / name).unlink(missing_ok=True)
    assert Tokenizer.from_pretrained(path.parent).ranks == a_tokenizer.ranks
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    told = refusal(f"{path}: not a GPT-2 vocabulary ", Tokenizer.from_pretrained, path.parent)
    assert "not byte-level BPE" in told


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
    assert error in refusal(tmp_path, Tokenizer.from_pretrained, tmp_path)


def test_a_damaged_or_missing_file_of_tiktokens_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: 1 / 0)  # what tiktoken does without a network
    path = tmp_path / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    failure = "GPT-2's vocabulary could not be downloaded"
    assert f"{path} is missing; it is GPT-2's vocab.bpe" in refusal(failure, Tokenizer.gpt2)
    path.write_text("damaged")
    assert f"{path} is damaged" in refusal(failure, Tokenizer.gpt2)


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
    """Newlines and digits, but for a space before them, are tokens of their own."""
    draw = random.Random(letters)
    for n in (3, 30, 300):
        texts = ["".join(draw.choices(letters, k=draw.randrange(20))) for _ in range(n)]
        assert Tokenizer.train(texts, 300).ranks == brute_force_ranks(texts, 300)
