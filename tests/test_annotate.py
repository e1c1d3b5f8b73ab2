"""annotate.py: converters, the LLM teacher beside a server that fails (mock_teacher.py), self, check."""
import gzip
import http.client
import json
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import annotate
import data
import mock_teacher
from mock_teacher import problem

ROOT = Path(annotate.__file__).parent
KEY = "sk-abc.DEF_123-not-for-others"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No key, no proxy for the local server, short pauses."""
    for name in "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(annotate, "FIRST_PAUSE", 0.02)


def call(*argv):
    args = annotate.parse_args([str(a) for a in argv])
    args.run(args)


def script(*argv):
    """Begin annotate.py in a process of its own, with short pauses."""
    code = "import annotate, data; annotate.FIRST_PAUSE = 0.02; data.run_script(annotate.main)"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, argv)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rows_of(path):
    return [row for _, row in data.read_rows(path)]


# ---- converters --------------------------------------------------------------------------------------------

def step(question, solution):
    return {"question": question, "solution": solution}


def gsm8k_file(path, rows):
    path.write_bytes(data.to_jsonl([{"question": question, "answer": answer} for question, answer in rows]))
    return path


GOOD = [(f"Problem {n}, caf\u00e9?",
         f"How many? ** 2*{n}=<<2*{n}={2 * n}>>{2 * n}\nAnd then? ** {2 * n},000\n#### {2 * n},000")
        for n in range(1, 201)]
BAD = [("No lines?", "#### 4", "no steps"), ("No mark?", "How many? ** 4\nfour", "no last line"),
       ("No number?", "Why? ** 4\n#### four", "is no number"),
       ("Half a line?", "How many? ** 4\nand so on\n#### 4", "a line that is not"),
       ("Empty?", "How many? ** \n#### 4", "a line that is not"),
       (GOOD[0][0].replace(" ", "  "), GOOD[0][1], "earlier row"),
       (" ", "#### 4", "field 'question' is missing")]


def test_gsm8k_rows_are_all_accounted_for_and_stay_in_their_splits(tmp_path, capsys):
    rows = [*GOOD[:10], *(row[:2] for row in BAD), *GOOD[10:]]
    path, out = gsm8k_file(tmp_path / "socratic.jsonl", rows), tmp_path / "out"
    call("gsm8k", path, "--out", out, "--split", "80/10/10")
    printed = capsys.readouterr().out
    assert "207 rows read, 200 written, 7 left out" in printed
    assert "\nnext: python train.py --role solver --train " in printed
    for k, (_, _, reason) in enumerate(BAD, 11):
        assert re.search(f"left out: {path}:{k} \\(gsm8k-{k}\\): .*{reason}", printed), printed
    splits = [data.read_problems(out / f"{split}.jsonl") for split in annotate.SPLITS]
    assert sum(map(len, splits)) == 200 and 140 < len(splits[0]) < 180 and min(map(len, splits)) > 8
    rows = {row["problem"]: row for row in splits[0] + splits[1] + splits[2]}
    for n, (question, _) in enumerate(GOOD, 1):
        steps = [step("How many?", f"2*{n}=<<2*{n}={2 * n}>>{2 * n}"), step("And then?", f"{2 * n},000")]
        assert rows[question] == {"id": f"gsm8k-{n if n <= 10 else n + 7}", "problem": question,
                                  "steps": steps, "answer": f"{2 * n}000", "source": "gsm8k"}
    path = gsm8k_file(tmp_path / "other.jsonl", GOOD[::-1][60:])  # in another order, and before it grew
    call("gsm8k", path, "--out", tmp_path, "--split", "80/10/10")
    for split, before in zip(annotate.SPLITS, splits):
        again = {row["problem"] for row in data.read_problems(tmp_path / f"{split}.jsonl")}
        assert again and again <= {row["problem"] for row in before}


@pytest.mark.parametrize("lines", [  # only \n, \r and \r\n end a line; a power is no separator
    ["2+2=<<2+2=4>>4", "So 4."], ["One line\u2028of 4."], ["2**3 = 8", "2 ** 3 = 8"],
    ["It is\x85 4."], ["It is \x0b 4.", "It is \x0c\x1c 4."], ["x ** 2 = 4"]])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r"])
def test_gsm8k_lines_without_sub_questions_become_plain_steps(lines, end):
    row = annotate.from_gsm8k({"question": "A?", "answer": end.join([*lines, "#### 4", ""])})
    assert row["questions"] == "plain" and row["answer"] == "4"
    assert row["steps"] == [step(f"What is step {k}?", line) for k, line in enumerate(lines, 1)]


@pytest.mark.parametrize("line, question, solution", [
    ("How many? ** 2**3 = 8", "How many?", "2**3 = 8"),
    ("What is 2 ** 3? ** It is 8", "What is 2 ** 3?", "It is 8"),
    ("Write an equation ** Let x be 8", "Write an equation", "Let x be 8"),
    ("How many?** 8", "How many?", "8")])
def test_gsm8k_sub_questions_and_solutions_may_hold_powers(line, question, solution):
    row = annotate.from_gsm8k({"question": "A?", "answer": f"{line}\nSimplify ** 8\n#### 8"})
    assert row["steps"] == [step(question, solution), step("Simplify", "8")]


@pytest.mark.parametrize("written, answer", [
    ("70,000", "70000"), ("\u22125", "-5"), ("-3.50", "-3.50"), ("1/2", "1/2"), ("+7", "+7")])
def test_gsm8k_answers_are_numbers_as_people_write_them(written, answer):
    assert annotate.from_gsm8k({"question": "A?", "answer": f"So.\n#### {written}"})["answer"] == answer


def test_what_a_dataset_without_sub_questions_is_good_for_comes_next(tmp_path, capsys):
    path = gsm8k_file(tmp_path / "main.jsonl", [(question, "So 4.\n#### 4") for question, _ in GOOD])
    call("gsm8k", path, "--out", tmp_path / "main")
    out = capsys.readouterr().out
    assert "200 have no sub-questions but" in out and "\nnext: python train.py --role cot --train " in out
    call("gsm8k", path, "--out", tmp_path, "--split", "0/0/100")
    assert [row["problem"] for row in rows_of(tmp_path / "test.jsonl")] == [question for question, _ in GOOD]
    assert capsys.readouterr().out.endswith(f"next: python infer.py --eval {tmp_path / 'test.jsonl'}\n")


def test_svamp_equations_become_steps(tmp_path, capsys):
    fields = "ID", "Body", "Question", "Equation", "Answer"
    rows = [("1", "Ann had 9 pens. She lost 2.", "How many are left?", "( 9.0 - 2.0 )", 7.0),
            ("2", "Bo has 3. If he gets 4 twice", "How many has he?", "( ( 4.0 * 2.0 ) + 3.0 )", 11.0),
            ("3", "A rope is 5 m. It is cut in 2.", "How long is a half?", "( 5.0 / 2.0 )", 2.5),
            ("4", "Cy has 8 cats.", "How many cats?", "8.0", 8.0),
            ("5", "Di has 3.", "How many?", "( 3.0 - 8.0 )", 5.0),
            ("6", "E.", "How many?", "( 3.0 / 0.0 )", 5.0)]
    (tmp_path / "SVAMP.json").write_text(json.dumps([dict(zip(fields, row)) for row in rows]))
    call("svamp", tmp_path / "SVAMP.json", "--out", tmp_path, "--split", "100/0/0")
    out = capsys.readouterr().out
    assert "row 5 (5): its equation ( 3.0 - 8.0 ) is not its answer 5" in out
    assert "row 6 (6): its equation ( 3.0 / 0.0 ) does not compute" in out
    one, two, three, four = data.read_problems(tmp_path / "train.jsonl")
    assert one == {"id": "svamp-1", "problem": "Ann had 9 pens. She lost 2. How many are left?",
                   "answer": "7", "source": "svamp",
                   "steps": [step("How many are left?", "9 - 2 = <<9-2=7>>7")]}
    assert two["problem"] == "Bo has 3. If he gets 4 twice, how many has he?" and two["answer"] == "11"
    assert two["steps"] == [step("What is 4 * 2?", "4 * 2 = <<4*2=8>>8"),
                            step("How many has he?", "8 + 3 = <<8+3=11>>11")]
    assert three["answer"] == "2.5" and four["steps"] == [step("How many cats?", "8")]


@pytest.mark.parametrize("question, numbers, equation, answer, problem, steps", [
    ("Ann has number0 balloons . Sam 's dog did n't eat number1 of Ann \u2019 s . How many has she ?",
     "9.0 2.0", "- number0 number1", "7.0",
     "Ann has 9 balloons. Sam's dog didn't eat 2 of Ann's. How many has she?", ["How many has she?: 9-2=7"]),
    ("Mrs. Hilt pays $ number0 , number1 % of number2 . If she walks to Mrs. Mill , what is left ?",
     "1.5 5.0 80.0", "- * number1 + number2 1.0 number0", "403.5",
     "Mrs. Hilt pays $1.5, 5% of 80. If she walks to Mrs. Mill, what is left?",
     ["What is 80 + 1?: 80+1=81", "What is 5 * 81?: 5*81=405",
      "If she walks to Mrs. Mill, what is left?: 405-1.5=403.5"]),
    ("Tom won number0 , playing ' whack a mole ' ( twice ) . What is one half - dollar of the girls ' ?",
     "6.0", "number0", "6",
     "Tom won 6, playing 'whack a mole' (twice). What is one half-dollar of the girls'?",
     ["What is one half-dollar of the girls'?: 6"])])
def test_the_tables_that_svamps_repository_trains_on_are_read(
        tmp_path, question, numbers, equation, answer, problem, steps):
    row = f'"{question}",{numbers},{equation},{answer}'
    table = f"Question,Numbers,Equation,Answer\n{row}\nBad ?,1.0,+ number0,1\n"
    (tmp_path / "train.csv").write_text(table, encoding="utf-8-sig")
    call("svamp", tmp_path / "train.csv", "--out", tmp_path, "--split", "100/0/0")
    row, = data.read_problems(tmp_path / "train.jsonl")
    assert row["id"] == "svamp-1" and row["problem"] == problem and data.same_answer(row["answer"], answer)
    for one, wanted in zip(row["steps"], steps, strict=True):
        equations = re.findall("<<(.*)>>", one["solution"]) or [one["solution"]]
        assert f"{one['question']}: {equations[0]}" == wanted


STRATEGY = {"qid": "ab", "question": "Could Ann's four sons ride in a Zip at once?", "answer": False,
            "decomposition": ["How many seats has a Zip?", "How many sons has Ann?", "Is #1 at least #2?"],
            "facts": ["Ann has four sons.", "A Zip has 2 seats"]}


def test_strategyqa_facts_answer_the_sub_questions_and_references_are_put_into_words(tmp_path, capsys):
    changes = [({"facts": []}, "field 'facts'"), ({"decomposition": None}, "field 'decomposition'"),
               ({"answer": "no"}, "field 'answer'"),
               ({"decomposition": ["Is #2 so?", "Is it?"]},
                "a sub-question refers to one that does not come")]
    rows = [STRATEGY, *(STRATEGY | {"question": f"Q{k}?"} | change for k, (change, _) in enumerate(changes))]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    call("strategyqa", tmp_path / "train.json", "--out", tmp_path, "--split", "100/0/0")
    row, = data.read_problems(tmp_path / "train.jsonl")
    last = 'Is the answer to "How many seats has a Zip?" at least the answer to "How many sons has Ann?"?'
    assert row == {"id": "strategyqa-ab", "problem": STRATEGY["question"], "answer": "no",
                   "source": "strategyqa",
                   "steps": [step("How many seats has a Zip?", "A Zip has 2 seats."),
                             step("How many sons has Ann?", "Ann has four sons."),
                             step(last, "So the answer is no.")]}
    out = capsys.readouterr().out
    assert all(f"row {k} (ab): {reason}" in out for k, (_, reason) in enumerate(changes, 2))


@pytest.mark.parametrize("command, content, message", [
    ("gsm8k", b'{"question": "A?", "answer": "So.\\n#### 4"}\n{"question": "a"', "f:2: not JSON"),
    ("gsm8k", b'[{"Body": "a"}]',
     "1 rows read, none can be used; 1 left out: field 'question' .* question, answer"),
    ("svamp", b'{"question": "a"}', "field 'Question' .*fields Body, Question, Equation, Answer"),
    ("strategyqa", b'{"question": "a"}',
     "field 'decomposition' .*fields question, answer, decomposition, facts"),
    ("gsm8k", b"", "0 rows read"), ("gsm8k", gzip.compress(b"{}"), "compressed by gzip; unpack it"),
    ("gsm8k", b'{"question": "A?", "answer": "So.\\n#### 4"}', "none falls into valid.jsonl")])
def test_another_file_than_the_command_needs_is_one_line_that_tells(tmp_path, command, content, message):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(data.UserError, match=message) as e:
        call(command, tmp_path / "f", "--out", tmp_path / "out")
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


# ---- the LLM teacher: what it replies ----------------------------------------------------------------------

@pytest.mark.parametrize("question, solution, answer", [
    ("Question {}:", "Solution {}:", "Answer:"), ("Q{}:", "A{}:", "Answer:"),
    ("Sub question {}:", "Solution {}:", "####"), ("Question ({}):", "Solution ({}):", "Answer:"),
    ("Question\u202f{}:", "Solution\u202f{}:", "Answer\u202f:"),
    ("**Question {}.**", "**Solution {}.**", "**Answer.**"),
    (" - Question:", " - Solution:", "Answer:\n####"),
    ("Question [{}]:", "Solution [{}]:", "The final answer is:"), ("Q:", "A:", "A:"),
    ("Question {} \u2013", "Solution {} -", "Answer:"), ("Question:", "Answer:", "Final answer:"),
    ("Question {}:", "Answer {}:", "Answer:"), ("Step {}: Question:", "Solution:", "Answer:"),
    ("Question {}\uff1a", "Solution {}\uff1a", "Answer\uff1a"),
    ("{}. Question {}:", "Solution #{}:", "### Answer:"),
    ("### Sub-question {}\n", "### Solution\n", "**Final Answer**:"),
    ("> **Question {}:**", "> Solution {})", "> Answer:")])
@pytest.mark.parametrize("end", ["\n", "\r\n\r\n"])
def test_a_dialogue_is_read_however_its_parts_are_labelled(question, solution, answer, end):
    lines = [f"{label.format(k, k)} {text}" for k, texts in enumerate(("ab", "cd"), 1)
             for label, text in zip((question, solution), texts)]
    steps, said = annotate.read_dialogue(end.join([*lines, f"{answer} 4"]))
    assert steps == [step("a", "b"), step("c", "d")] and said == "4"


@pytest.mark.parametrize("before, answer, after", [
    ("Sure!\n\n", "4", ""), ("<think>\nQuestion 1: x?\nSolution 1: y\nAnswer: 5\n</think>\n", "4", ""),
    ("", "\\(\\boxed{4}\\)", "\nQuestion 2: e?"), ("```\n", "`4`", "\n```"),
    ("[THINK]hm[/THINK]", "4<|im_end|>", ""), ("\ufeff", "$\\boxed{\\text{4}}$", "\n\nLet me know!"),
    ("<|channel|>analysis ... <|channel|>final<|message|>", "**4**", "")])
def test_a_dialogue_is_read_however_a_chat_model_adorns_it(before, answer, after):
    reply = f"{before}Question 1: a?\nSolution 1: **b**\nAnswer: {answer}{after}"
    assert annotate.read_dialogue(reply) == ([step("a?", "b")], "4")


@pytest.mark.parametrize("read, replies", [
    (annotate.read_dialogue, ["", "42", "Answer: 4", "Question 1: a?\nAnswer: 4",
                              "Question 1: a?\nSolution 1:\nAnswer: 4",
                              "Solution 1: a\nQuestion 1: b\nAnswer: 4"]),
    (annotate.read_chain, ["One.", "Answer: 4", "Question 1: a?\nAnswer: 4"])])
def test_replies_that_are_no_annotation_are_unfit(read, replies):
    for reply in replies:
        with pytest.raises(annotate.Unfit):
            read(reply)


def test_chains_and_questions_are_read_however_they_are_numbered():
    steps = [{"solution": text} for text in ("One.", "Two.", "Three.")]
    assert annotate.read_chain("1. One.\n- Two.\nStep 3: Three.\n\nAnswer: 4") == (steps, "4")
    reply = "Question 1: a\nb?\n\nLet me know if you need more!"
    assert annotate.read_questions(reply, [{"solution": "c"}]) == [step("a b?", "c")]


def test_thoughts_and_chatter_are_no_steps_and_signs_are_the_calculators():
    reply = ("<think>\n3 by 4, so 13?\n</think>\n\nSure! Here are the steps:\n**Step 1:** It is 3 \u00d7 4 = "
             "**12**.\n$24 \\div 2 = 12$\n\\(\\frac{24}{2} = 12\\), not 2**3\n\nAnswer: \u20ac12")
    steps, answer = annotate.read_chain(reply)
    assert annotate.verify(steps, answer, {"answer": "12"}) == [
        {"solution": "It is 3 * 4 = <<3*4=12>>12."}, {"solution": "24 / 2 = <<24/2=12>>12"},
        {"solution": "24/2 = <<24/2=12>>12, not 2**3"}]


def verified(solution, said, answer):
    """The solution of a reply, as it is kept. Raises Unfit."""
    steps, said = annotate.read_dialogue(f"Q1: q?\nA1: {solution}\nAnswer: {said}")
    return annotate.verify(steps, said, {"answer": answer})[0]["solution"]


@pytest.mark.parametrize("said, answer", [
    ("m+n = 256+37 = 293", "293"), ("12 apples (3 boxes of 4)", "12"), ("So the answer is no.", "no"),
    ("No - it sinks", "no"), (r"\boxed{\frac{1}{2}}", "0.5"), (r"\boxed{\$9{,}500}", "9500"),
    ("12\u202f000", "12000"),
    (r"$\boxed{\$9{,}500}$", "9500"), (r"\(1\dfrac{1}{2}\) hours", "1.5"), (r"\boxed{\text{Yes}}", "yes"),
    (r"$\frac{3+5}{2} = 4$", "4"), (r"12\%", "12"), ("**Yes**, it could.", "yes"), (r"\$12\,000", "12000")])
def test_an_answer_is_read_however_a_chat_model_writes_it(said, answer):
    assert verified(f"It is {answer}.", said, answer) == f"It is {answer}."
    with pytest.raises(annotate.Unfit, match="the answer is"):
        verified("It is 7.", said, "7")


@pytest.mark.parametrize("solution, kept", [
    ("10/4 = 2 remainder 2", "10/4 = 2 remainder 2"), ("2 ** 3 = 8", "2 ** 3 = 8"),
    (r"\frac{10}{2} = 5", "10/2 = <<10/2=5>>5"), ("5 - 7 = \u22122", "5 - 7 = <<5-7=-2>>-2"),
    ("12\u202f000/2 = 6\u202f000", "12000/2 = <<12000/2=6000>>6000"), ("10/2 = 6", None),
    ("<<3*4=13>>13", None)])
def test_only_what_is_certainly_a_wrong_equation_rejects_a_solution(solution, kept):
    if kept:
        assert verified(f"{solution} and 5", "5", "5") == f"{kept} and 5"
    else:
        with pytest.raises(annotate.Unfit, match="does not compute"):
            verified(f"{solution} and 5", "5", "5")


def test_our_prompts_hold_examples_that_pass_their_own_check():
    for stage in annotate.INSTRUCTIONS:
        prompt = annotate.fill_prompt(annotate.default_prompt(stage), "{x} %s \\1", [{"solution": "{y}"}])
        assert prompt.count("{x} %s \\1") == 1 and prompt.count("Solution 1: {y}") == (stage == "questions")
        for (text, answer, pairs), block in zip(annotate.EXAMPLES, prompt.split("\n\n")[1:]):
            reply, steps = block.removeprefix(f"Problem: {text}\n"), [step(q, s) for q, s in pairs]
            if stage == "questions":
                assert annotate.read_questions(reply[reply.index("Question 1"):], steps) == steps
            else:
                kept = annotate.read_stage(stage, reply, [], {"answer": answer})
                assert kept == (steps if stage == "socratic" else [{"solution": s} for _, s in pairs])


# ---- the LLM teacher: one reply ----------------------------------------------------------------------------

def endpoint(*flags):
    argv = ["teacher", "f", "--url", "http://h", "--model", "m", *flags]
    return annotate.Endpoint(annotate.parse_args(argv))


def chat(content, finish="stop", **message):
    return json.dumps({"choices": [{"message": {"content": content} | message, "finish_reason": finish}]})


def ask(replies, *flags):
    """The row of a problem whose teacher makes these replies, and how many of them were not asked for."""
    left, server = list(replies), endpoint(*flags)
    server.ask = lambda prompt, temperature: server.read(left.pop(0).encode(), 8)
    prompts = annotate.read_prompts(server.args)
    row = annotate.annotate_problem({"id": "1", "problem": "P", "answer": "4"}, server, prompts, server.args)
    return row, len(left)


DIALOGUE = "Q1: a?\nA1: 2+2 = 4\nAnswer: 4"
STEPS = [step("a?", "2+2 = <<2+2=4>>4")]
THOUGHTS = "no reply but thoughts, and of these: "


@pytest.mark.parametrize("reply, rejected", [
    (chat(DIALOGUE), None), (chat(DIALOGUE, None), None), (chat(DIALOGUE, "eos"), None),
    (chat([{"type": "thinking", "thinking": "x"}, {"type": "text", "text": DIALOGUE}]), None),
    (chat(None, reasoning_content=DIALOGUE), None), (chat("", reasoning=DIALOGUE), None),
    (chat(None, reasoning_content="Let me think."), THOUGHTS + "the reply is not question"),
    (chat("", reasoning_content=DIALOGUE.replace("Answer: 4", "Answer: 5")), THOUGHTS + "the answer is 5"),
    (chat(DIALOGUE.replace("Answer", "Q2:  A?\nA2: 4\nAnswer")), "it asks 2 times: a?"),
    (chat(""), "the reply is empty"), (chat(None), "the reply is empty"),
    (chat(DIALOGUE, "length"), "the reply was cut off after"),
    (chat(None, "content_filter"), "the model refused (content_filter)"),
    (chat(None, refusal="I won't."), "the model refused (refusal)"),
    (chat("I ca", "SAFETY"), "the model refused (safety)")])
def test_what_a_model_says_decides_about_its_problem(reply, rejected):
    row, _ = ask([reply] * 2, "--tries", "2")
    if rejected:
        assert row["rejected"].startswith(rejected) and "reply" in row and row["teacher"]["try"] == 2
    else:
        assert row["steps"] == STEPS and row["teacher"]["try"] == 1


def test_a_chain_that_is_fit_is_not_asked_for_again():
    chain, two = chat("2+2 = 4\nAnswer: 4"), chat("2+2 = 4\n4 + 0 = 4\nAnswer: 4")
    wrong, again, right = map(chat, ("Question 1: a?\nQuestion 2: b?", "Q1: a?\nQ2: A?", "Question 1: a?"))
    row, left = ask([chain, wrong, right], "--style", "cot", "--tries", "3")
    assert row["steps"] == STEPS and left == 0
    row, left = ask([chain, wrong, wrong, wrong], "--style", "cot", "--tries", "3")
    assert row["rejected"] == "the reply is not 1 questions" and left == 0
    row, left = ask([two, again, again, again], "--style", "cot", "--tries", "3")
    assert row["rejected"].startswith("it asks 2 times: a?") and left == 0


@pytest.mark.parametrize("body, failure", [
    ('{"error": {"code": 429, "message": "slow"}}', "HTTP 429: slow"),
    ('{"error": "busy"}', "HTTP 500: busy"),
    (chat(DIALOGUE, "error"), "broke the reply off (finish_reason error)"),
    ('{"choices": [{"finish_reason": "error", "error": {"code": "502", "message": "up"}}]}', "HTTP 502"),
    (chat("Q1", "abort"), "broke the reply off"),
    (chat("", "insufficient_system_resource"), "broke the reply off"),
    (chat(None, None), "broke the reply off"), ("", "no chat completion but ''"),
    ("null", "no chat completion"),
    ('{"choices": null}', "no chat completion"), (chat(7), "no chat completion"),
    ("[" * 99999, "no chat completion")])
def test_what_a_server_says_decides_nothing_about_a_problem(body, failure):
    with pytest.raises(annotate.Failure, match=re.escape(failure)) as e:
        endpoint().read(body.encode(), 8)
    assert e.value.may_pass and e.value.limit == annotate.OUTAGE


@pytest.mark.parametrize("body", [
    chat("a\nb"), chat("a\nb").replace("\\n", "\n"), chat("a\nb") + "\n\ndata: [DONE]\n",
    f"data: {chat('a|b')}\n\ndata: [DONE]".replace("|", "\\n"), "\ufeff" + chat("a\nb"),
    " \n" * 99 + chat("a\nb") + "\r\n"])
def test_a_body_is_read_however_a_server_writes_it(body):
    reply = endpoint().read(body.encode(), 400)
    assert reply[:3] == ("a\nb", "", "stop") and reply.tokens == [100, 0]


def test_retry_after_comes_in_seconds_and_as_a_date():
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    assert annotate.seconds_to_wait("120") == 120 and 85 < annotate.seconds_to_wait(soon) <= 90
    unknown = None, "soon", "-5", "", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 5000
    assert [annotate.seconds_to_wait(text) for text in unknown] == [0] * 7


# ---- the LLM teacher: its server ---------------------------------------------------------------------------

@pytest.fixture
def server():
    """Starts mock_teacher.py with flags; returns its URL. All are stopped in the end."""
    running = []

    def start(*flags):
        running.append(subprocess.Popen([sys.executable, mock_teacher.__file__, *map(str, flags)],
                                        stdout=subprocess.PIPE, text=True))
        return f"http://127.0.0.1:{int(running[-1].stdout.readline())}"
    yield start
    for process in running:
        process.kill()
        process.communicate()


def log_of(url, path="/log"):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", path.replace(" ", "%20"))
    return json.loads(connection.getresponse().read())


def problems_file(path, n):
    path.write_bytes(data.to_jsonl(map(problem, range(n))))
    return path


def written(folder, *names):
    """The rows of DIR's files: train, valid, test and rejected."""
    return [row for name in names or (*annotate.SPLITS, "rejected") if (folder / f"{name}.jsonl").exists()
            for row in rows_of(folder / f"{name}.jsonl")]


def teach(path, url, out, *flags):
    call("teacher", path, "--url", url, "--model", "mock", "--out", out, *flags)


def check_rows(rows, n):
    """Each of n problems is there once, annotated as it should be or rejected for what the model said."""
    assert sorted(row["problem"] for row in rows) == sorted(problem(i)["problem"] for i in range(n))
    for row in rows:
        a, b = map(int, re.findall(r"\d+", row["problem"])[:2])
        if "rejected" in row:
            assert re.match("the answer is|<<|the reply|the model refused|it asks", row["rejected"])
            assert "reply" in row
        else:
            assert int(row["answer"]) == 2 * a + b and row["steps"][0]["question"] == "How many has Bo?"
            equations = [re.findall(r"<<(.*?)>>", step["solution"]) for step in row["steps"]]
            assert equations == [[f"{a}+{b}={a + b}"], [f"{a}+{a + b}={2 * a + b}"]]


@pytest.mark.parametrize("style", ["socratic", "cot"])
def test_a_server_fails_in_every_way_and_no_problem_is_lost(tmp_path, server, capfd, monkeypatch, style):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = server("--faults", 0.5, "--stall", 20, "--seed", 3)
    path = problems_file(tmp_path / "problems.jsonl", 250)
    teach(path, url, tmp_path / "out", "--style", style, "--parallel", 24, "--timeout", 0.7)
    log, rows, printed = log_of(url), written(tmp_path / "out"), capfd.readouterr()
    assert set(log["faults"]) >= set(mock_teacher.FAULTS) and log["keys"] == [KEY]
    assert log["targets"] == ["/v1/chat/completions"] and log["streams"] == ["False"]
    check_rows(rows, 250)
    annotated = [row for row in rows if "steps" in row]
    assert len(annotated) > 150 and f"{len(annotated)} problems annotated" in printed.out
    for row in rows:
        about = row["teacher"]
        assert about["model"] == "mock" and about["style"] == style and about["served"] == "mock-1"
        assert 1 <= about["try"] <= 4 and about["temperature"] in (0, 0.33, 0.67, 1)
        assert re.fullmatch(r"[0-9a-f]{12}", about["prompt"]) and datetime.fromisoformat(about["date"]).tzinfo
    assert KEY not in printed.out + printed.err
    assert not any(KEY in p.read_text() for p in (tmp_path / "out").iterdir())
    assert log["connections"] < log["requests"] / 2  # kept alive


def test_through_outages_and_kills_none_is_lost_and_none_is_paid_for_twice(tmp_path, server):
    """PROBLEMS=2000 pytest -s -k outages: the same at length, with its figures."""
    n, parallel, kills = int(os.environ.get("PROBLEMS", 240)), 8, 3
    url, path, out = server("--faults", 0.3, "--latency", 0.01), tmp_path / "f", tmp_path / "out"
    argv = ("teacher", problems_file(path, n), "--url", url, "--model", "mock", "--out", out,
            "--parallel", parallel, "--timeout", 1, "--retries", 5, "--tries", 1)

    def wait_until_asked(count):
        while len(log_of(url)["asked"]) < count:
            time.sleep(0.02)

    def begin_outage(name, count):
        wait_until_asked(count)
        log_of(url, f"/outage/{name}")

    for k, outage in enumerate(("500", "error in 200", "finish error")):
        threading.Thread(target=begin_outage, args=(outage, n * (2 * k + 1) // 8)).start()
        with pytest.raises(data.UserError, match="; what is written stays, the same command goes on"):
            call(*argv)
        log_of(url, "/outage/")
        process = script(*argv)
        wait_until_asked(n * (2 * k + 2) // 8)
        process.kill()
        process.communicate()
        with open(out / "log.jsonl", "ab") as f:
            f.write(b'{"id": "p-1", "probl')  # as a kill in the middle of a write
    for _ in range(3):  # a problem that met failures alone is asked by the next run
        call(*argv)
    said, rows = log_of(url)["said"], written(out)
    check_rows(rows, n)
    assert len(said) == n and sum("rejected" in row for row in rows) > n / 50
    assert sum(said.values()) - n <= kills * parallel  # with --tries 1 the model has its say once about each


@pytest.mark.parametrize("fault, message", [
    ("401", r"HTTP 401: Incorrect API key: \*\*\* \(the environment variable OPENAI_API_KEY was sent"),
    ("404", "HTTP 404: no such model; check --url and --model mock"),
    ("quota", "HTTP 429: .*billing page"), ("402", "HTTP 402: .*billing page"),
    ("quota in 200", "billing page"),
    ("credit", "HTTP 400: .*billing page"), ("max_tokens", r"""--extra '\{"max_tokens": null\}'"""),
    ("temperature", r"""--extra '\{"temperature": null\}'"""),
    ("extra field", r"""--extra '\{"stream": null\}'"""),
    ("moved", "redirected to .*/v2/chat/completions, but as a GET"),
    ("long pause", "asks for a pause of [0-9,]+ s"),
    ("500", r"HTTP 500: out of memory \(after 3 requests"), ("HTML", "no chat completion but '<html>"),
    ("stall", "no whole reply in 0.5 s"), ("drip", "no whole reply in 0.5 s"),
    ("reset", "RemoteDisconnected|reset"),
    ("half", "IncompleteRead")])
def test_a_server_that_cannot_work_is_one_line(tmp_path, server, monkeypatch, fault, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = server("--faults", 1, "--only", fault)
    with pytest.raises(data.UserError, match=message) as e:
        teach(problems_file(tmp_path / "f.jsonl", 9), url, tmp_path / "out", "--retries", 2, "--timeout", 0.5)
    assert "\n" not in str(e.value) and e.value.status == 1 and KEY not in str(e.value)
    assert not ("billing" in message and "--url" in str(e.value)) and written(tmp_path / "out") == []
    if fault not in ("500", "HTML", "stall", "drip", "reset", "half"):
        assert log_of(url)["requests"] <= 8  # at once: one for each thread


class SpeaksNoTLS(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_servers_that_are_not_there_are_one_line(tmp_path):
    path = problems_file(tmp_path / "f.jsonl", 3)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SpeaksNoTLS) as plain, socket.socket() as free:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        free.bind(("127.0.0.1", 0))
        for where, message in ((f"http://127.0.0.1:{free.getsockname()[1]}/v1", "refused"),
                               ("http://no-such-host.invalid/v1", "gaierror"),
                               (f"https://127.0.0.1:{plain.server_address[1]}/v1", "SSLError")):
            with pytest.raises(data.UserError, match=f"{message}.*the server running, and --url right") as e:
                teach(path, where, tmp_path / "out")
            assert "\n" not in str(e.value)
        plain.shutdown()


def test_a_refused_problem_is_set_aside_and_asked_again_by_the_next_run(tmp_path, server, capsys):
    first, path, out = problem(0)["problem"], problems_file(tmp_path / "f.jsonl", 12), tmp_path / "out"
    teach(path, server("--refuse", re.escape(first)), out, "--parallel", 1)
    assert len(written(out)) == 11 and not written(out, "rejected")
    printed = capsys.readouterr().out
    assert "failed: 1 (HTTP 400: maximum context length exceeded; " in printed and "1 set aside" in printed
    url = server()
    teach(path, url, out)
    check_rows(written(out), 12)
    assert log_of(url)["asked"] == {first: 1}
    # a server that refuses everything stops the run; what it refused comes last in the next
    path, url = problems_file(tmp_path / "f.jsonl", 60), server("--refuse", ".")
    with pytest.raises(data.UserError, match="maximum context length exceeded; check --url and --model"):
        teach(path, url, out, "--parallel", 1)
    refused, url = set(log_of(url)["asked"]), server("--refuse", "case [12].")
    teach(path, url, out, "--parallel", 1)
    assert len(refused) == annotate.REFUSALS
    assert set(list(log_of(url)["asked"])[-annotate.REFUSALS + 1:]) <= refused


def test_proxies_of_the_environment_are_used_and_no_password_but_the_key(tmp_path, server, monkeypatch):
    (tmp_path / ".netrc").write_text("machine teacher.invalid login me password secret")
    for name, value in (("HTTP_PROXY", url := server()), ("HOME", str(tmp_path)),
                        ("NETRC", str(tmp_path / ".netrc")), ("OPENAI_API_KEY", KEY)):
        monkeypatch.setenv(name, value)
    teach(problems_file(tmp_path / "f.jsonl", 2), "http://teacher.invalid/v1", tmp_path / "out")
    log = log_of(url)
    assert log["targets"] == ["http://teacher.invalid/v1/chat/completions"] and log["keys"] == [KEY]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(data.UserError, match="the proxy of the environment: ConnectionRefusedError"):
        teach(tmp_path / "f.jsonl", "http://teacher.invalid/v1", tmp_path / "other")


@pytest.mark.parametrize("flags, message, status", [
    (["--url", "localhost:8000"], "expected as in http://localhost:8000/v1", 2),
    (["--url", "http://h:99999/v1"], "expected as in", 2), (["--url", "http://u:p@h/v1"], "without user", 2),
    (["--url", "http://h/v1/completions"],
     "/completions is no endpoint of chat completions; give --url http://h/v1", 2),
    (["--url", "http://h:1/api/generate"], "/api/generate is no endpoint of .*; give --url http://h:1/v1", 2),
    (["--prompt", "plain"], "--prompt plain: the placeholder {problem} is missing", 1),
    (["--prompt", "x", "--prompt", "y"], "--prompt y: --style socratic takes 1", 2),
    (["--style", "cot", "--prompt", "whole", "--prompt", "whole"], "placeholder {solutions} is missing", 1),
    (["--extra", "[1]"], "no JSON object", 2), (["--split", "50/40/20"], "sum to 100", 2),
    (["--temperature", "nan"], "nan is no number", 2), (["--timeout", "0"], "0 is no number", 2),
    (["--style", "riddle"], "invalid choice: 'riddle'", 2)])
def test_bad_flags_of_the_teacher_are_one_line(tmp_path, monkeypatch, flags, message, status):
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("Solve it.")
    Path("whole").write_text("Solve {problem}")
    with pytest.raises(data.UserError, match=message) as e:
        teach(problems_file(tmp_path / "f.jsonl", 3), "http://localhost:1", tmp_path / "out", *flags)
    assert e.value.status == status and "\n" not in str(e.value)


def test_a_key_that_no_header_can_carry_is_not_shown_and_a_word_stays(tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u20ac-secret")
    with pytest.raises(data.UserError, match="OPENAI_API_KEY: the key holds characters") as e:
        teach(problems_file(tmp_path / "f.jsonl", 1), "http://localhost:1", tmp_path / "out")
    assert "secret" not in str(e.value)
    monkeypatch.setenv("OPENAI_API_KEY", "pens")
    teach(tmp_path / "f.jsonl", server(), tmp_path / "out")
    assert "pens" in written(tmp_path / "out")[0]["steps"][0]["solution"]


# ---- the LLM teacher: a run --------------------------------------------------------------------------------

@pytest.mark.parametrize("fault, how", [
    ("stall", signal.SIGINT), ("pause", signal.SIGINT), ("stall", signal.SIGTERM)])
def test_a_stop_ends_at_once_and_keeps_what_is_written(tmp_path, server, fault, how):
    url, out = server("--latency", 0.01, "--stall", 600), tmp_path / "out"
    path = problems_file(tmp_path / "f.jsonl", 2000)
    process = script("teacher", path, "--url", url, "--model", "mock", "--out", out)
    while len(log_of(url)["asked"]) < 40:
        assert process.poll() is None
        time.sleep(0.02)
    log_of(url, f"/outage/{fault}")  # from now on every request waits for minutes
    while log_of(url)["faults"].get(fault, 0) < 8:
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -how) and "Traceback" not in err
    rows, log = rows_of(out / "log.jsonl")[1:], log_of(url)
    assert len(rows) == sum(log["good"].values()) >= 32
    if how == signal.SIGINT:
        assert err.endswith("error: stopped\n") and len(written(out)) == len(rows)


def test_another_runs_log_and_files_of_something_else_are_left_as_they_are(tmp_path, server):
    url, path, out = server(), problems_file(tmp_path / "f.jsonl", 4), tmp_path / "out"
    teach(path, url, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for changed in (["--style", "cot"], ["--model", "other"], ["--extra", '{"seed": 1}'],
                    ["--prompt", tmp_path / "prompt"]):
        (tmp_path / "prompt").write_text("Solve {problem}")
        with pytest.raises(data.UserError, match=r"log.jsonl: of another run .*use another --out$") as e:
            teach(path, url, out, *changed)
        assert e.value.status == 2 and {p.name: p.read_bytes() for p in out.iterdir()} == before
    for name, content in (("train", b'{"id": "a"}\n'), ("log", b'{"id": "a", "problem": "P"}'),
                          ("log", b'{"step": 1}\n'), ("log", b"notes"), ("log", b"\n")):
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_bytes(content)
        with pytest.raises(data.UserError, match="mine.*use another") as e:
            teach(path, url, folder)
        assert e.value.status == 2 and (folder / f"{name}.jsonl").read_bytes() == content
        (folder / f"{name}.jsonl").unlink()
    assert log_of(url)["requests"] == 4


def test_a_run_that_brought_nothing_does_not_bind_the_next(tmp_path, server):
    path, out = problems_file(tmp_path / "f.jsonl", 4), tmp_path / "out"
    for flags in ("--faults", 1, "--only", "404"), ("--refuse", "."):
        with pytest.raises(data.UserError):
            teach(path, server(*flags), out)
    call("teacher", path, "--url", server(), "--model", "other", "--out", out)
    check_rows(written(out), 4)


def test_the_splits_follow_the_log(tmp_path, server):
    url, path, out = server(), problems_file(tmp_path / "f.jsonl", 60), tmp_path / "out"
    teach(path, url, out, "--split", "40/30/30")
    assert all(len(written(out, split)) > 5 for split in annotate.SPLITS)
    teach(path, url, out, "--split", "0/100/0")
    check_rows(written(out, "valid"), 60)
    assert sorted(p.name for p in out.iterdir()) == ["log.jsonl", "valid.jsonl"]
    (out / "log.jsonl").write_bytes((out / "log.jsonl").read_bytes()[:20])  # a kill cut its first line short
    assert log_of(url)["requests"] == 60
    teach(path, url, out)
    check_rows(written(out), 60)


def test_a_budget_stops_the_run_cleanly_and_a_larger_one_goes_on(tmp_path, server, capsys):
    url, path = server("--latency", 0.02), problems_file(tmp_path / "problems.jsonl", 40)
    teach(path, url, tmp_path / "out", "--budget-tokens", 3000, "--parallel", 2)
    spent = [sum(row["teacher"]["tokens"]) for row in written(tmp_path / "out")]
    assert 3000 <= sum(spent) <= 3000 + 2 * max(spent)
    assert "stopped at --budget-tokens 3,000" in capsys.readouterr().out
    teach(path, url, tmp_path / "out", "--budget-tokens", 10**6)
    assert len(written(tmp_path / "out")) == 40 and log_of(url)["requests"] == 40
    assert log_of(url)["most_in_flight"] == 8


def test_questions_are_asked_for_the_solutions_of_a_file(tmp_path, server):
    steps = [step("What is step 1?", "Bo has 7."), step("What is step 2?", "12.")]
    (tmp_path / "f.jsonl").write_bytes(data.to_jsonl([problem(2) | {"questions": "plain", "steps": steps}]))
    teach(tmp_path / "f.jsonl", server(), tmp_path / "out", "--style", "questions")
    new, = written(tmp_path / "out")
    assert new["steps"] == [step("How many has Bo?", "Bo has 7."),
                            step("How many have they together?", "12.")]
    assert "questions" not in new


def test_each_request_of_a_problem_can_have_a_prompt_of_the_users(tmp_path, server, monkeypatch):
    (tmp_path / "think").write_text("Think. Problem: {problem}")
    (tmp_path / "ask").write_text("Ask. Problem: {problem}\n{solutions}")
    sent, body = [], annotate.Endpoint.body
    monkeypatch.setattr(annotate.Endpoint, "body", lambda *args: sent.append(args[1]) or body(*args))
    teach(problems_file(tmp_path / "f.jsonl", 1), server(), tmp_path / "out", "--style", "cot",
          "--prompt", tmp_path / "think", "--prompt", tmp_path / "ask", "--extra", '{"temperature": 0.6}')
    text, (row,) = problem(0)["problem"], written(tmp_path / "out")
    solutions = "\n".join(f"Solution {k}: {step['solution']}" for k, step in enumerate(row["steps"], 1))
    assert sent == [f"Think. Problem: {text}", f"Ask. Problem: {text}\n{solutions}"]
    assert row["teacher"]["temperature"] == 0.6


def test_a_dry_run_shows_the_request_without_sending_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "prompt").write_text("Think {x}: {problem}!")
    path = problems_file(tmp_path / "f.jsonl", 3)
    teach(path, "http://localhost:1/v1/", tmp_path / "out", "--dry-run", "--prompt", tmp_path / "prompt",
          "--extra", '{"max_tokens": null, "top_p": 0.9}', "--temperature", 0.2)
    out = capsys.readouterr().out
    assert out.startswith("POST http://localhost:1/v1/chat/completions\n") and KEY not in out
    messages = [{"role": "user", "content": f"Think {{x}}: {problem(0)['problem']}!"}]
    assert json.loads(out.partition("\n")[2]) == {"model": "mock", "temperature": 0.2, "top_p": 0.9,
                                                  "stream": False, "messages": messages}
    assert not (tmp_path / "out").exists()


# ---- the students as their own teacher ---------------------------------------------------------------------

def play_students(monkeypatch, solve):
    """Let `solve` stand for infer.py's; returns the student that is opened for it."""
    student = SimpleNamespace(guidance=None)
    monkeypatch.setattr(annotate, "solve", solve)
    monkeypatch.setattr(annotate, "load_student", lambda folder, role, rows, device: student)
    return student


def test_distinct_correct_samples_become_annotations(tmp_path, monkeypatch):
    calls = []

    def solve(problems, procedure, students, sampling):
        """A student that is correct in one sample of two, in one of two ways; else wrong or unfinished."""
        calls.append(sampling)
        rng = random.Random(sampling.seed)
        for index, problem in enumerate(problems):
            answer, way, correct = problem["answer"], rng.choice("AB"), rng.random() < 0.5
            record = {"steps": [step(f"{way}?", f"So <<{answer}+0={answer}>>{answer}.")], "answer": answer}
            wrong = rng.choice([{"answer": None}, {"answer": "-1"},
                                {"steps": [step("A?", f"<<1+1=3>>{answer}")]}])
            yield index, record if correct else record | wrong

    student, out = play_students(monkeypatch, solve), tmp_path / "new.jsonl"
    problems = [problem(i) | {"steps": [step("A?", f"as {i}")], "questions": "plain"} for i in range(30)]
    (tmp_path / "f.jsonl").write_bytes(data.to_jsonl(problems))
    argv = ("self", tmp_path / "f.jsonl", "--samples", 6, "--temperature", 0.5, "--seed", 2, "--out")
    call(*argv, out)
    assert calls == [(0.5, 0, 1.0, 12 + k) for k in range(6)]
    rows = data.read_problems(out)
    per_problem = Counter(row["problem"] for row in rows)
    assert 20 < len(per_problem) <= 30 and set(per_problem.values()) == {1, 2}
    for identity in (lambda row: row["id"]), (lambda row: json.dumps([row["problem"], row["steps"]])):
        assert len(set(map(identity, rows))) == len(rows)
    for row in rows:
        assert row["steps"][0]["solution"] == "So <<{0}+0={0}>>{0}.".format(row["answer"])
        assert row["teacher"]["temperature"] == 0.5 and "questions" not in row  # they are plain no more
    before = out.read_bytes()
    with pytest.raises(data.UserError, match="is there already: --force replaces it"):
        call(*argv, out)  # at once, not after hours of sampling
    student.guidance = "steps"
    with pytest.raises(data.UserError, match="trained with --guidance steps"):
        call(*argv, tmp_path / "other.jsonl")
    assert len(calls) == 6 and out.read_bytes() == before


def test_a_problem_with_enough_new_annotations_is_not_sampled_again(tmp_path, monkeypatch, capsys):
    asked, there, out = [], [], tmp_path / "new.jsonl"  # of each round: whom, and how many are in the file

    def solve(problems, procedure, students, sampling):
        """A student that finds something new for every second of the problems, the last first."""
        there.append(len(data.read_problems(out)) if out.exists() else 0)
        asked.append("".join(problem["id"] for problem in problems))
        for index in reversed(range(len(problems))):
            answer = problems[index]["answer"]
            steps = [step(f"{len(asked)}?", f"It is {answer}.")]
            yield index, {"steps": steps, "answer": answer if index % 2 else "-1"}

    play_students(monkeypatch, solve)
    problems = [problem(i) | {"id": str(i)} for i in range(8)]
    (tmp_path / "f.jsonl").write_bytes(data.to_jsonl(problems))
    call("self", tmp_path / "f.jsonl", "--samples", 5, "--keep", 1, "--out", out)
    # of 8 the odd are found, of 0 2 4 6 then 2 6, of 0 4 then 4; 0 is sampled to the end
    assert asked == ["01234567", "0246", "04", "0", "0"] and there == [0, 4, 6, 7, 7]
    assert [row["problem"] for row in data.read_problems(out)] == [row["problem"] for row in problems[1:]]
    assert "7 of 16 samples correct; new annotations for 7 of 8 problems" in capsys.readouterr().out


# ---- check -------------------------------------------------------------------------------------------------

def good_row(i, name="Ann", thing="pens"):
    text = f"{name} has {i} {thing}. She buys 2 more. How many {thing} has she now?"
    steps = [step("How many?", f"She has {i}+2=<<{i}+2={i + 2}>>{i + 2} {thing}.")]
    return {"id": f"x-{i}", "problem": text, "answer": str(i + 2), "steps": steps}


def checked(tmp_path, capsys, files, *flags):
    """Run check on {name: rows or bytes}; returns (exit status, {file: its line}, what was printed)."""
    for name, rows in files.items():
        (tmp_path / name).write_bytes(rows if isinstance(rows, bytes) else data.to_jsonl(rows))
    status = 0
    try:
        call("check", *(tmp_path / name for name in files), *flags)
    except SystemExit as e:
        status = e.code
    out = capsys.readouterr().out
    return status, dict(re.findall(rf"^{tmp_path}/(\w): (\d.*)$", out, re.M)), out.replace(f"{tmp_path}/", "")


def test_check_finds_nothing_in_good_files(tmp_path, capsys):
    files = {"a": [good_row(i) for i in range(50)], "b": [good_row(i, "Bo") for i in range(9)]}
    status, lines, out = checked(tmp_path, capsys, files)
    assert status == 0 and lines["a"].startswith("50 problems, 50 steps, 50 calculator annotations, longest ")
    assert lines["a"].endswith(" tokens; wrong: nothing") and len(out.splitlines()) == 2
    call("--train", 300, "--valid", 20, "--test", 20, "--out", tmp_path / "t")
    call("check", *(tmp_path / "t" / f"{split}.jsonl" for split in annotate.SPLITS))


def test_check_names_each_fault_and_counts_it(tmp_path, capsys):
    a = [good_row(i) for i in range(20)]
    a[3]["steps"][0]["solution"] = "She has 3+2=<<3+2=6>>6, no: 5."
    a[5] |= {"answer": "99"}
    a[7] = good_row(2) | {"problem": good_row(2)["problem"].replace(" ", "  ")}
    a[9] = {"problem": "P"}
    a[11]["problem"] += " Really?" * 60
    files = {"a": a, "b": [good_row(1), good_row(3, thing="cats")]}
    status, lines, out = checked(tmp_path, capsys, files, "--block-size", 150)
    assert status == 1 and lines["b"].endswith("wrong: 1 problems of an earlier file")
    assert lines["a"].startswith("19 problems, 19 steps, 19 calculator annotations, ")
    counts = [f"1 {fault}" for kind, fault in annotate.FAULTS.items() if kind != "leak"]
    assert sorted(lines["a"].partition("wrong: ")[2].split(", ")) == sorted(counts)
    for line in ("a:10: field 'answer' is missing", "a:4: <<3+2=6>> does not compute: the calculator says 5",
                 "a:6: the last solution does not say the answer 99", "a:8: the same problem as a:3",
                 "b:1: the same problem as a:2", "tokens, the block has 150"):
        assert line in out, (line, out)


def test_check_counts_a_file_that_cannot_be_read_and_goes_on(tmp_path, capsys):
    status, lines, out = checked(tmp_path, capsys, {"a": b'{"problem": "x', "b": [good_row(1)], "c": b""})
    assert status == 1 and lines["a"].endswith("1 rows that are no annotated problem")
    assert lines["b"].endswith("nothing") and "a:1: not JSON" in out
    assert "c: holds no annotated problem" in out
    broken = data.to_jsonl([good_row(1)]) + b'{"problem": "x\n' + data.to_jsonl([good_row(2)])
    _, lines, out = checked(tmp_path, capsys, {"a": broken})
    assert lines["a"].startswith("1 problems") and "the file is not read any further" in out
    bad = [good_row(i, thing="cats") | {"answer": "no"} for i in range(30)]
    _, _, out = checked(tmp_path, capsys, {"d": bad})
    assert "... and 20 more last solutions that do not say the answer (--all)" in out
    assert checked(tmp_path, capsys, {"d": bad}, "--all")[2].count("does not say the answer no") == 30


# ---- bad usage ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, message", [
    (["--level", 9], "--level: invalid choice: 9"), (["--steps", "5-2"], "--steps: 5-2"),
    (["--steps", "many"], "--steps: many"),
    (["--train", 0], "--train: 0"), (["--made-up", 1.5], "--made-up: 1.5"), (["--seed", "x"], "--seed"),
    (["--nonsense"], "--nonsense"),
    (["svampp"], "invalid choice: 'svampp'"), (["gsm8k"], "required: FILE"), (["check"], "required: FILE"),
    (["teacher", "x"], "required: --url, --model"), (["self", "x", "--out", "y"], "expected a file"),
    (["gsm8k", "x.jsonl", "--split", "90/10"], "is not three numbers")])
def test_bad_usage_is_one_line_and_status_2(argv, message):
    with pytest.raises(data.UserError) as e:
        call(*argv)
    assert e.value.status == 2 and message in str(e.value) and "\n" not in str(e.value)


def test_files_that_differ_and_an_unusable_out_are_left_as_they_are(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in tmp_path / "file", tmp_path / "file" / "below":
        with pytest.raises(data.UserError, match="--out .*file"):
            call("--out", out)
    path, out = gsm8k_file(tmp_path / "f", GOOD), tmp_path / "out"
    call("gsm8k", path, "--out", out)
    call("gsm8k", path, "--out", out)
    before = (out / "train.jsonl").read_bytes()
    with pytest.raises(data.UserError, match=r"train.jsonl is there already .*--force") as e:
        call("gsm8k", gsm8k_file(tmp_path / "f", GOOD[1:]), "--out", out)
    assert e.value.status == 2 and (out / "train.jsonl").read_bytes() == before
    assert (tmp_path / "file").read_text() == "mine"
    call("gsm8k", path, "--out", out, "--force")
    assert (out / "train.jsonl").read_bytes() != before


def test_errors_leave_the_script_as_one_line_without_a_traceback(tmp_path):
    process = script("gsm8k", tmp_path / "missing.jsonl")
    assert process.communicate() == ("", f"error: {tmp_path}/missing.jsonl: No such file or directory\n")
    assert process.returncode == 1
