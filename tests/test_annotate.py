"""annotate.py: converters, the LLM teacher beside a server that fails (mock_teacher.py), self, check."""
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import annotate
import data
from mock_teacher import UNFIT, Mock, problem

KEY = "sk-abc.DEF_123-not-for-others"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """An empty folder to work in; a key; no proxy for the local server; short pauses."""
    monkeypatch.chdir(tmp_path)
    for name in "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(annotate, "FIRST_PAUSE", 0.02)


def call(*argv):
    args = annotate.parse_args([str(a) for a in argv])
    args.run(args)


def script(*argv):
    """Begin annotate.py in a process of its own, with short pauses."""
    code = "import annotate, data; annotate.FIRST_PAUSE = 0.02; data.run_script(annotate.main)"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, argv)], text=True,
                            env=os.environ | {"PYTHONPATH": str(Path(annotate.__file__).parent)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextlib.contextmanager
def raises(message, status=1):
    """The block must end in an error of one line, with this in it (a regular expression)."""
    with pytest.raises(data.UserError, match=message) as e:
        yield e
    assert e.value.status == status and "\n" not in str(e.value)


def rows_of(path):
    return [row for _, row in data.read_rows(path)]


def step(question, solution):
    return {"question": question, "solution": solution}


# ---- converters --------------------------------------------------------------------------------------------

def gsm8k_file(rows):
    data.write_problems("f", ({"question": question, "answer": answer} for question, answer in rows))


def converted(command, name, content):
    """The rows that a file of this content is converted to."""
    Path(name).write_text(content, encoding="utf-8-sig")
    call(command, name, "--out", ".", "--split", "100/0/0")
    return data.read_problems("train.jsonl")


GOOD = [(f"Problem {n}, caf\u00e9?",
         f"How many? ** 2*{n}=<<2*{n}={2 * n}>>{2 * n}\nAnd then? ** {2 * n},000\n#### {2 * n},000")
        for n in range(1, 201)]
BAD = [("No lines?", "#### 4", "no steps"), ("No mark?", "How many? ** 4\nfour", "no last line"),
       ("No number?", "Why? ** 4\n#### four", "is no number"),
       ("Half a line?", "How many? ** 4\nand so on\n#### 4", "a line that is not"),
       ("Empty?", "How many? ** \n#### 4", "a line that is not"),
       (GOOD[0][0].replace(" ", "  "), GOOD[0][1], "earlier row"),
       (" ", "#### 4", "field 'question' is missing")]


def test_gsm8k_rows_are_all_accounted_for_and_stay_in_their_splits(capsys):
    gsm8k_file([*GOOD[:10], *(row[:2] for row in BAD), *GOOD[10:]])
    call("gsm8k", "f", "--out", "out", "--split", "80.1/10.2/9.7")  # which do not sum to 100 as floats
    printed = capsys.readouterr().out
    assert "207 rows read, 200 written, 7 left out" in printed
    assert "\nnext: python train.py --role solver --train " in printed
    for k, (_, _, reason) in enumerate(BAD, 11):
        assert re.search(f"left out: f:{k} \\(gsm8k-{k}\\): .*{reason}", printed), printed
    splits = [data.read_problems(f"out/{split}.jsonl") for split in annotate.SPLITS]
    assert sum(map(len, splits)) == 200 and 140 < len(splits[0]) < 180 and min(map(len, splits)) > 8
    rows = {row["problem"]: row for row in splits[0] + splits[1] + splits[2]}
    for n, (question, _) in enumerate(GOOD, 1):
        steps = [step("How many?", f"2*{n}=<<2*{n}={2 * n}>>{2 * n}"), step("And then?", f"{2 * n},000")]
        assert rows[question] == {"id": f"gsm8k-{n if n <= 10 else n + 7}", "problem": question,
                                  "steps": steps, "answer": f"{2 * n}000", "source": "gsm8k"}
    gsm8k_file(GOOD[::-1][60:])  # in another order, and before it grew
    call("gsm8k", "f", "--out", ".", "--split", "80.1/10.2/9.7")
    for split, before in zip(annotate.SPLITS, splits):
        again = {row["problem"] for row in data.read_problems(f"{split}.jsonl")}
        assert again and again <= {row["problem"] for row in before}


@pytest.mark.parametrize("separator, questions, solutions", [
    (" ** ", ["How many?", "Simplify"], ["2**3 = 8", "8"]), ("** ", ["What is 2 ** 3?"], ["It is 8"]),
    *(("", [""] * len(lines), lines) for lines in (  # without sub-questions; a power is no separator
        ["2+2=<<2+2=4>>4", "2 ** 3 = 8"], ["One\u2028line\x85 of \x0c\x1c 4."]))])
@pytest.mark.parametrize("end, written, answer", [  # only \n, \r and \r\n end a line
    ("\n", "70,000", "70000"), ("\r\n", "\u22125", "-5"), ("\n\n", "-3.50", "-3.50"), ("\r", "1/2", "1/2")])
def test_gsm8k_lines_become_steps(separator, questions, solutions, end, written, answer):
    lines = [question + separator + solution for question, solution in zip(questions, solutions)]
    row = annotate.from_gsm8k({"question": "A?", "answer": end.join([*lines, f"#### {written}", ""])})
    assert row.get("questions") == (None if separator else "plain") and row["answer"] == answer
    assert row["steps"] == [step(question or f"What is step {k}?", solution)
                            for k, (question, solution) in enumerate(zip(questions, solutions), 1)]


def test_what_a_dataset_without_sub_questions_is_good_for_comes_next(capsys):
    gsm8k_file((question, "So 4.\n#### 4") for question, _ in GOOD)
    call("gsm8k", "f", "--out", "main")
    out = capsys.readouterr().out
    assert "200 have no sub-questions but" in out and "\nnext: python train.py --role cot --train " in out
    call("gsm8k", "f", "--out", "out", "--split", "0/0/100")
    assert [row["problem"] for row in rows_of("out/test.jsonl")] == [question for question, _ in GOOD]
    assert capsys.readouterr().out.endswith("next: python infer.py --eval out/test.jsonl\n")


def test_svamp_equations_become_steps(capsys):
    fields = "ID", "Body", "Question", "Equation", "Answer"
    rows = [("1", "A rope is 5 m. It is cut in 2.", "How long is a half?", "( 5.0 / 2.0 )", 2.5),
            ("2", "Bo has 3. If he gets 4 twice", "How many has he?", "( ( 4.0 * 2.0 ) + 3.0 )", 11.0),
            ("3", "Di has 3.", "How many?", "( 3.0 - 8.0 )", 5.0),
            ("4", "E.", "How many?", "( 3.0 / 0.0 )", 5.0)]
    assert converted("svamp", "f", json.dumps([dict(zip(fields, row)) for row in rows])) == [
        {"id": "svamp-1", "problem": "A rope is 5 m. It is cut in 2. How long is a half?", "answer": "2.5",
         "steps": [step("How long is a half?", "<<5/2=2.5>>2.5")], "source": "svamp"},
        {"id": "svamp-2", "problem": "Bo has 3. If he gets 4 twice, how many has he?", "answer": "11",
         "steps": [step("What is 4 * 2?", "<<4*2=8>>8"),
                   step("How many has he?", "<<8+3=11>>11")], "source": "svamp"}]
    out = capsys.readouterr().out
    assert "row 3 (3): its equation ( 3.0 - 8.0 ) is not its answer 5" in out
    assert "row 4 (4): its equation ( 3.0 / 0.0 ) does not compute" in out


@pytest.mark.parametrize("row, problem, answer, steps", [
    ('"Mrs. Hilt \'s dog did n\'t eat $ number0 , number1 % of number2 . If Bo \u2019 s go , what is it ?",'
     "1.5 5.0 80.0,- * number1 + number2 1.0 number0,403.5",
     "Mrs. Hilt's dog didn't eat $1.5, 5% of 80. If Bo's go, what is it?", "403.5",
     [step("What is 80 + 1?", "<<80+1=81>>81"), step("What is 5 * 81?", "<<5*81=405>>405"),
      step("If Bo's go, what is it?", "<<405-1.5=403.5>>403.5")]),
    ('"Tom won number0 , playing \' whack a mole \' ( twice ) . What is one half - dollar of the girls \' ?",'
     "6.0,number0,6",
     "Tom won 6, playing 'whack a mole' (twice). What is one half-dollar of the girls'?", "6",
     [step("What is one half-dollar of the girls'?", "6")])])
def test_the_tables_that_svamps_repository_trains_on_are_read(row, problem, answer, steps):
    table = f"Question,Numbers,Equation,Answer\n{row}\nBad ?,1.0,+ number0,1\n"
    assert converted("svamp", "train.csv", table) == [
        {"id": "svamp-1", "problem": problem, "answer": answer, "steps": steps, "source": "train"}]


STRATEGY = {"qid": "ab", "question": "Could Ann's four sons ride in a Zip at once?", "answer": False,
            "decomposition": ["How many seats has a Zip?", "How many sons has Ann?", "Is #1 at least #2?"],
            "facts": ["Ann has four sons.", "A Zip has 2 seats"]}


def test_strategyqa_facts_answer_the_sub_questions_and_references_are_put_into_words(capsys):
    changes = [({"facts": []}, "field 'facts'"), ({"decomposition": None}, "field 'decomposition'"),
               ({"answer": "no"}, "field 'answer'"),
               ({"decomposition": ["Is #2 so?", "Is it?"]},
                "a sub-question refers to one that does not come")]
    rows = [STRATEGY, *(STRATEGY | {"question": f"Q{k}?"} | change for k, (change, _) in enumerate(changes))]
    row, = converted("strategyqa", "f", json.dumps(rows))
    last = 'Is the answer to "How many seats has a Zip?" at least the answer to "How many sons has Ann?"?'
    assert row == {"id": "strategyqa-ab", "problem": STRATEGY["question"], "answer": "no",
                   "source": "strategyqa",
                   "steps": [step("How many seats has a Zip?", "A Zip has 2 seats."),
                             step("How many sons has Ann?", "Ann has four sons."),
                             step(last, "So the answer is no.")]}
    out = capsys.readouterr().out
    assert all(f"row {k} (ab): {reason}" in out for k, (_, reason) in enumerate(changes, 2))


@pytest.mark.parametrize("command, content, message, status", [
    ("gsm8k", b'{"question": "A?", "answer": "So.\\n#### 4"}\n{"question": "a"', "f:2: not JSON", 1),
    ("gsm8k", b'[{"Body": "a"}]',
     "1 rows read, none can be used; 1 left out: field 'question' .* question, answer", 1),
    ("svamp", b'{"question": "a"}', "field 'Question' .*fields Body, Question, Equation, Answer", 1),
    ("strategyqa", b'{"question": "a"}',
     "field 'decomposition' .*fields question, answer, decomposition, facts", 1),
    ("gsm8k", b"", "0 rows read", 1),
    ("gsm8k", b'{"question": "A?", "answer": "So.\\n#### 4"}', "none falls into valid.jsonl", 2)])
def test_another_file_than_the_command_needs_is_one_line_that_tells(command, content, message, status):
    Path("f").write_bytes(content)
    with raises(message, status):
        call(command, "f", "--out", "out")
    assert not Path("out").exists()


# ---- the LLM teacher: what it replies ----------------------------------------------------------------------

@pytest.mark.parametrize("question, solution, answer", [
    ("Question {}:", "Solution {}:", "Answer:"), ("Q{}:", "A{}:", "Answer:"), ("Q:", "A:", "A:"),
    ("Sub question ({}):", "Solution ({}):", "####"), ("Step {}: Question:", "Solution:", "Answer:\n####"),
    ("**Question {}.**", "**Solution {}.**", "**Answer.**"), ("Question {}:", "Answer {}:", "Final answer:"),
    ("Question [{}]:", "Solution [{}]:", "The final answer is:"), (" - Question:", " - Answer:", "Answer:"),
    ("Question {} \u2013", "Solution {} -", "Answer:"),
    ("{}. Question {}\uff1a", "Solution #{}\uff1a", "### Answer\uff1a"),
    ("### Sub-question\u202f{}\n", "### Solution\n", "**Final Answer**:"),
    ("> **Question {}:**", "> Solution {})", "> Answer:")])
@pytest.mark.parametrize("before, answer_4, after", [  # what a chat model adds
    ("", "4", ""), ("Sure!\n\n", "\\(\\boxed{4}\\)", "\nQuestion 3: e?"), ("```\n", "`4`", "\n```"),
    ("<think>\nQuestion 1: x?\nSolution 1: y\nAnswer: 5\n</think>\n", "**4**", "\n\nLet me know!"),
    ("\ufeff[THINK]hm[/THINK]", "4<|im_end|>", ""),
    ("<|channel|>analysis ... <|channel|>final<|message|>", "$\\boxed{\\text{4}}$", "")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_dialogue_is_read_however_a_model_labels_and_adorns_it(
        question, solution, answer, before, answer_4, after, end):
    lines = [f"{label.format(k, k)} {text}" for k, texts in enumerate((("a\nb?", "**c**"), ("d?", "e")), 1)
             for label, text in zip((question, solution), texts)]
    reply = before + "\n".join([*lines, f"{answer} {answer_4}"]) + after
    steps, said = annotate.read_dialogue(reply.replace("\n", end))
    assert steps == [step("a b?", "c"), step("d?", "e")] and said == "4"


def test_numbers_thoughts_and_chatter_are_no_steps_and_signs_are_the_calculators():
    reply = ("<think>\n3 by 4, so 13?\n</think>\n\nSure! Here are the steps:\n**Step 1:** It is 3 \u00d7 4 = "
             "**12**.\n2. $24 \\div 2 = 12$\n- \\(\\frac{24}{2} = 12\\), not 2**3 or 2 ** 3\n"
             "5 - 7 = \u22122\nStep 5: 12\u202f000/2 = 6\u202f000\nSo 12.\n\nAnswer: \u20ac12")
    steps, answer = annotate.read_chain(reply)
    assert [step["solution"] for step in annotate.verify(steps, answer, {"answer": "12"})] == [
        "It is 3 * 4 = <<3*4=12>>12.", "24 / 2 = <<24/2=12>>12",
        "24/2 = <<24/2=12>>12, not 2**3 or 2 ** 3", "5 - 7 = <<5-7=-2>>-2",
        "12000/2 = <<12000/2=6000>>6000", "So 12."]


@pytest.mark.parametrize("said, answer", [
    ("m+n = 256+37 = 293", "293"), (r"\boxed{\frac{1}{2}}", "0.5"), (r"\boxed{\$9{,}500}", "9500"),
    ("12\u202f000", "12000"), (r"$\boxed{\$9{,}500}$", "9500"), (r"\(1\dfrac{1}{2}\) hours", "1.5"),
    (r"\boxed{\text{Yes}}", "yes"), (r"$\frac{3+5}{2} = 4$", "4"), (r"12\%", "12"),
    ("**Yes**, it could.", "yes"), (r"\$12\,000", "12000")])
def test_an_answer_is_read_however_a_chat_model_writes_it(said, answer):
    steps, said = annotate.read_dialogue(f"Q1: q?\nA1: It is {answer} or 7.\nAnswer: {said}")
    assert annotate.verify(steps, said, {"answer": answer})
    with pytest.raises(annotate.Unfit, match="the answer is"):
        annotate.verify(steps, said, {"answer": "7"})


def test_our_prompts_hold_examples_that_pass_their_own_check():
    for text, answer, pairs in annotate.EXAMPLES:
        steps, chain = [step(*pair) for pair in pairs], [{"solution": solution} for _, solution in pairs]
        for stage, kept in ("socratic", steps), ("cot", chain), ("questions", steps):
            reply = annotate.default_prompt(stage).partition(f"Problem: {text}\n")[2].partition("\n\n")[0]
            if stage == "questions":  # they come below the solutions
                reply = reply[reply.index("Question 1"):]
            assert annotate.read_stage(stage, reply, steps, {"answer": answer}) == kept


# ---- the LLM teacher: one problem --------------------------------------------------------------------------

@pytest.fixture
def server():
    """Starts a Mock with these arguments. All are closed in the end."""
    with contextlib.ExitStack() as running:
        yield lambda *args, **kwargs: running.enter_context(contextlib.closing(Mock(*args, **kwargs)))


def teach(server, problems, *flags):
    """Have problems (rows, or the first so many of the mock's) annotated by a Mock, or at a URL."""
    rows = map(problem, range(problems)) if isinstance(problems, int) else problems
    data.write_problems("f.jsonl", rows)
    call("teacher", "f.jsonl", "--url", getattr(server, "url", server), "--model", "mock", "--out", "out",
         *flags)


def written(*names):
    """The rows of the files that a run has made in the folder out."""
    paths = [Path(f"out/{name}.jsonl") for name in names or (*annotate.SPLITS, "rejected")]
    return [row for path in paths if path.exists() for row in rows_of(path)]


def chat(content, finish="stop", **message):
    return json.dumps({"choices": [{"message": {"content": content} | message, "finish_reason": finish}]})


def row_made_of(server, bodies, *flags):
    """The row of a problem about which a server is asked as often as there are bodies, its replies."""
    left = iter(bodies)
    mock = server(lambda text: (200, next(left)))
    with contextlib.suppress(data.UserError):  # no problem was annotated
        teach(mock, [{"id": "1", "problem": "P", "answer": "4"}], *flags)
    row, = written()
    assert len(mock.requests) == len(bodies)
    return row


DIALOGUE = "Q1: a?\nA1: 2+2 = 4\nAnswer: 4"
STEPS = [step("a?", "2+2 = <<2+2=4>>4")]
THOUGHTS = "no reply but thoughts, and of these: "


@pytest.mark.parametrize("body", [
    chat(DIALOGUE), chat(DIALOGUE, None), chat(DIALOGUE, "eos"),
    chat([{"type": "thinking", "thinking": "x"}, {"type": "text", "text": DIALOGUE}]),
    chat(None, reasoning_content=DIALOGUE), chat("", reasoning=DIALOGUE),
    chat(DIALOGUE).replace("\\n", "\n"), chat(DIALOGUE) + "\n\ndata: [DONE]\n",
    f"data: {chat(DIALOGUE)}\n\ndata: [DONE]", "\ufeff" + chat(DIALOGUE), " \n" * 99 + chat(DIALOGUE)])
def test_a_reply_is_read_however_a_server_writes_it(server, body):
    row = row_made_of(server, [body])
    assert row["steps"] == STEPS
    sent, received = row["teacher"]["tokens"]  # estimated, since the reply does not tell
    assert sent > len(annotate.default_prompt("socratic")) // 4 and received == len(DIALOGUE) // 4


@pytest.mark.parametrize("reply, rejected", [
    (chat(None, reasoning_content="Let me think."), THOUGHTS + "the reply is not question"),
    (chat("", reasoning_content=DIALOGUE.replace("Answer: 4", "Answer: 5")), THOUGHTS + "the answer is 5"),
    (chat("Q1: a?\nA1: 2+2 = 5\nAnswer: 5"), "2+2 = 5 does not compute"),
    (chat("Q1: a?\nA1: <<2+2=5>>5\nAnswer: 4"), "<<2+2=5>> does not compute"),
    (chat("Q1: a?\nA1: 2+3 = 5\nAnswer: 4"), "the last solution does not say the answer"),
    (chat(DIALOGUE.replace("Answer", "Q2:  A?\nA2: 4\nAnswer")), "it asks 2 times: a?"),
    *((chat(text), "the reply is not question, solution, ..., answer") for text in (
        "42", "Question 1: a?\nAnswer: 4", "Solution 1: a\nQuestion 1: b\nAnswer: 4")),
    (chat("Question 1: a?\nSolution 1:\nAnswer: 4"), "the reply has an empty part"),
    (chat(None), "the reply is empty"), (chat(DIALOGUE, "length"), "the reply was cut off after"),
    (chat(None, refusal="I won't."), "the model refused (refusal)"),
    (chat("I ca", "SAFETY"), "the model refused (safety)")])
def test_what_a_model_says_decides_about_its_problem(server, reply, rejected):
    row = row_made_of(server, [reply] * 2, "--tries", 2)
    assert row["rejected"].startswith(rejected) and "reply" in row
    assert row["teacher"]["try"] == 2 and row["teacher"]["temperature"] == 1  # as the last try


CHAIN, TWO_LINES = "2+2 = 4\nAnswer: 4", "2+2 = 4\n4 + 0 = 4\nAnswer: 4"


@pytest.mark.parametrize("replies, rejected", [
    ([CHAIN, "Question 1: a?\nQuestion 2: b?", "Question 1: a?\n\nLet me know if you need more!"], None),
    ([CHAIN, *["Question 1: a?\nQuestion 2: b?"] * 3], "the reply is not 1 questions"),
    ([TWO_LINES, *["Q1: a?\nQ2: A?"] * 3], "it asks 2 times: a?"),
    (["One.", "Answer: 4", "Question 1: a?\nAnswer: 4"], "the reply is not lines and 'Answer: ...'")])
def test_a_chain_that_is_fit_is_not_asked_for_again(server, replies, rejected):
    row = row_made_of(server, [chat(text) for text in replies], "--style", "cot", "--tries", 3)
    assert row.get("rejected") == rejected and (rejected or row["steps"] == STEPS)


# ---- the LLM teacher: its server ---------------------------------------------------------------------------

def error(message, **more):
    return json.dumps({"error": {"message": message} | more})


MAY_PASS = [  # failures of a server that are tried again, and what is said if they stay
    *(((429, error("slow down"), f"Retry-After: {wait}"), "HTTP 429: slow down") for wait in (
        "1", "soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT")),
    ((500, error("out of memory")), "HTTP 500: out of memory"),
    ((503, error("bad key KEY")), r"HTTP 503: bad key \*\*\*"),
    ((200, error("busy", code=429)), "HTTP 429: busy"), ((200, '{"error": "busy"}'), "HTTP 500: busy"),
    ((200, '{"choices": [{"finish_reason": "error", "error": {"code": "502"}}]}'), "HTTP 502: "),
    *(((200, chat(*said)), "the server broke the reply off") for said in (
        (DIALOGUE, "error"), ("Q1", "abort"), ("", "insufficient_system_resource"), (None, None))),
    *(((200, body), "no chat completion but ") for body in (
        "", "<html></html>", "null", '{"choices": []}', chat(7), chat(DIALOGUE)[:-9], "[" * 99999)),
    ("stall", "no whole reply in 0.5 s"), ("drip", "no whole reply in 0.5 s"),
    ("no response", "RemoteDisconnected|reset"),
    ("half", "IncompleteRead")]
STAY = [  # failures that concern every problem
    ((401, error("Incorrect API key: KEY")),
     r"HTTP 401: Incorrect API key: \*\*\* \(the environment variable OPENAI_API_KEY was sent"),
    ((404, error("no such model")), "HTTP 404: no such model; check --url and --model mock"),
    ((429, error("check your plan", code="insufficient_quota")), "HTTP 429: .*billing page"),
    ((402, error("Payment Required")), "HTTP 402: .*billing page"),
    ((400, error("Your credit balance is too low")), "HTTP 400: .*billing page"),
    ((400, error("'temperature' does not support 0.0")), "--extra '{\"temperature\": null}'"),
    ((422, '{"detail": [{"type": "extra_forbidden", "loc": ["body", "stream"]}]}'),
     "--extra '{\"stream\": null}'"),
    ((301, "", "Location: /v2/chat/completions"), "redirected to .*/v2/chat/completions, but as a GET"),
    ((429, error("come back"), "Retry-After: 7200"), "come back; it asks for a pause of 7,200 s"),
    ((429, error("come back"), "Retry-After: Thu, 31 Dec 2099 23:59:59 GMT"), "asks for a pause of ")]


@pytest.mark.parametrize("fault, message, may_pass", [
    *((*row, True) for row in MAY_PASS), *((*row, False) for row in STAY)])
def test_a_server_that_cannot_work_is_one_line(server, fault, message, may_pass):
    mock = server(fault)
    with raises(message) as e:
        teach(mock, 9, "--retries", 2, "--timeout", 0.5 if "0.5 s" in message else 60)
    assert KEY not in str(e.value) and not ("billing" in message and "--url" in str(e.value))
    assert ("(after 3 requests)" in str(e.value)) == may_pass and written() == []
    assert may_pass or len(mock.requests) <= 8  # at once: one for each thread


def speak_no_tls(listener):
    connection, _ = listener.accept()
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_servers_that_are_not_there_are_one_line():
    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=speak_no_tls, args=[plain], daemon=True).start()
        for url, message in (("http://127.0.0.1:9", "refused"), ("http://no-such-host.invalid", "gaierror"),
                             (f"https://127.0.0.1:{plain.getsockname()[1]}", "SSLError")):
            with raises(f"{message}.*the server running, and --url right"):
                teach(url, 3, "--parallel", 1)


FAULTS = [*(fault for fault, _ in MAY_PASS), *UNFIT, "gzip"]


def some_fail():
    """A fault for a third of the requests, each of FAULTS in turn, in a random order."""
    faults = [*FAULTS, *[None] * 2 * len(FAULTS)]
    in_turn = itertools.cycle(random.Random(0).sample(faults, len(faults)))
    return lambda text: next(in_turn)


def check_rows(rows, n):
    """Each of n problems is there once, annotated as it should be or rejected for what the model said."""
    assert sorted(row["problem"] for row in rows) == sorted(problem(i)["problem"] for i in range(n))
    for row in rows:
        a, b = map(int, re.findall(r"\d+", row["problem"])[:2])
        if "rejected" in row:
            assert re.match(f"the answer is {2 * a + b + 1}|<<|the reply", row["rejected"]) and "reply" in row
        else:
            assert int(row["answer"]) == 2 * a + b and row["steps"][0]["question"] == "How many has Bo?"
            equations = [re.findall(r"<<(.*?)>>", step["solution"]) for step in row["steps"]]
            assert equations == [[f"{a}+{b}={a + b}"], [f"{a}+{a + b}={2 * a + b}"]]


@pytest.mark.parametrize("style", ["socratic", "cot"])
def test_a_server_fails_in_every_way_and_no_problem_is_lost(server, capfd, style):
    mock = server(some_fail())
    teach(mock, 250, "--style", style, "--parallel", 16, "--timeout", 3)
    rows, printed, requests = written(), capfd.readouterr(), mock.requests
    assert {request.fault for request in requests} == {None, *FAULTS}
    assert {(request.key, request.target, request.body["stream"]) for request in requests} == {
        (f"Bearer {KEY}", "/v1/chat/completions", False)}
    check_rows(rows, 250)
    annotated = [row for row in rows if "steps" in row]
    assert len(annotated) > 150 and f"{len(annotated)} problems annotated" in printed.out
    for row in rows:
        about = row["teacher"]
        assert about["model"] == "mock" and about["style"] == style and about["served"] == "mock-1"
        assert 1 <= about["try"] <= 4 and about["temperature"] in (0, 0.33, 0.67, 1)
        assert re.fullmatch(r"[0-9a-f]{12}", about["prompt"]) and datetime.fromisoformat(about["date"]).tzinfo
    assert KEY not in printed.out + printed.err
    assert not any(KEY in path.read_text() for path in Path("out").iterdir())
    assert len({request.connection for request in requests}) < len(requests) / 2  # kept alive


def wait_until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError


def test_through_outages_and_kills_none_is_lost_and_none_is_paid_for_twice(server):
    """PROBLEMS=2000 pytest -k outages: the same at length."""
    n, parallel, kills = int(os.environ.get("PROBLEMS", 240)), 8, 0
    mock, usual = server(latency=0.01), some_fail()
    flags = "--parallel", parallel, "--timeout", 2, "--retries", 5, "--tries", 1

    def asked(share):
        return len({request.problem for request in mock.requests}) >= share * n

    for outage in (500, '{"error": "down"}'), (200, '{"error": {"code": 500}}'), (200, chat("Q1", "error")):
        mock.fault = lambda text: outage if asked((2 * kills + 1) / 8) else usual(text)
        with raises("; what is written stays, the same command goes on"):
            teach(mock, n, *flags)
        mock.fault = usual
        process = script("teacher", "f.jsonl", "--url", mock.url, "--model", "mock", "--out", "out", *flags)
        wait_until(lambda: asked((2 * kills + 2) / 8))
        process.kill()
        process.communicate()
        kills += 1
        with open("out/log.jsonl", "ab") as f:
            f.write(b'{"id": "p-1", "probl')  # as a kill in the middle of a write
    for _ in range(3):  # a problem that met failures alone is asked by the next run
        teach(mock, n, *flags)
    rows, replies = written(), [r for r in mock.requests if r.fault in (None, *UNFIT, "gzip")]
    check_rows(rows, n)
    assert sum("rejected" in row for row in rows) > n / 50
    assert len(replies) - n <= kills * parallel  # with --tries 1 the model has its say once about each


def test_refused_problems_are_set_aside_and_asked_again_by_the_next_run(server, capsys):
    mock = server()

    def asked_if_refused(pattern):
        """The problems that a run asks about, one at a time, at a server that refuses some."""
        refusal = 400, error("maximum context length exceeded")
        mock.fault = lambda text: refusal if re.search(pattern, text) else None
        mock.requests.clear()
        teach(mock, 60, "--parallel", 1)
        return [request.problem for request in mock.requests]

    with raises("maximum context length exceeded; check --url and --model"):
        asked_if_refused(".")
    assert len(mock.requests) == annotate.REFUSALS  # of all problems: this stops the run
    last = asked_if_refused(r"in case \d*[57]\?")[1 - annotate.REFUSALS:]  # what has been refused comes last
    assert last == [problem(i)["problem"] for i in range(annotate.REFUSALS - 1)]
    assert "failed: 12 (HTTP 400: maximum context length exceeded; " in capsys.readouterr().out
    assert len(written()) == 48 and not written("rejected")
    assert len(asked_if_refused("none")) == 12
    check_rows(written(), 60)


def test_the_key_goes_to_the_server_alone_and_is_never_shown(server, monkeypatch):
    """Through the environment's proxy too; no other password is sent, and no echo of the key is seen."""
    mock, netrc = server(), Path("netrc").absolute()
    netrc.write_text("machine teacher.invalid login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", mock.url)
    teach("http://teacher.invalid/v1", 2)
    assert {(request.target, request.key) for request in mock.requests} == {
        ("http://teacher.invalid/v1/chat/completions", f"Bearer {KEY}")}
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with raises("the proxy of the environment: ConnectionRefusedError"):
        teach("http://teacher.invalid/v1", 2, "--out", "other")
    monkeypatch.setenv("OPENAI_API_KEY", "sk/with/slashes")
    for said, slash, shown in (("wrong key ", "\\/", r"wrong key \*\*\* \("),  # JSON can escape a slash
                               ("wrong key ", "\\u002F", r"wrong key \*\*\* \("), ("x" * 195, "/", r"x+\*")):
        with raises(f"HTTP 401: {shown}") as e:  # cut after the key has been struck out, not within it
            teach(server((401, error(f"{said}sk/with/slashes").replace("/", slash))), 1, "--out", "other")
        assert "sk/w" not in str(e.value)
    monkeypatch.setenv("OPENAI_API_KEY", "pens")  # a word stays
    teach(server(), 1, "--out", "other")
    assert "pens" in rows_of("other/train.jsonl")[0]["steps"][0]["solution"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u20ac-secret")
    with raises("OPENAI_API_KEY: the key holds characters that no HTTP header can carry$"):
        teach("http://localhost:1", 1)


# ---- the LLM teacher: a run --------------------------------------------------------------------------------

@pytest.mark.parametrize("fault, how", [
    ("stall", signal.SIGINT), ((429, "wait", "Retry-After: 500"), signal.SIGINT), ("stall", signal.SIGTERM)])
def test_a_stop_ends_at_once_and_keeps_what_is_written(server, fault, how):
    mock = server(latency=0.01)
    data.write_problems("f.jsonl", map(problem, range(2000)))
    process = script("teacher", "f.jsonl", "--url", mock.url, "--model", "mock", "--out", "out")
    wait_until(lambda: len(mock.requests) >= 40)
    mock.fault = fault  # from now on every request waits for minutes
    wait_until(lambda: sum(request.fault == fault for request in mock.requests) >= 8)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -how) and "Traceback" not in err
    rows, good = rows_of("out/log.jsonl")[1:], [request for request in mock.requests if not request.fault]
    assert len(rows) == len(good) >= 32 and len(mock.requests) == len(good) + 8
    if how == signal.SIGINT:
        assert err.endswith("error: stopped\n") and len(written()) == len(rows)


def test_a_run_that_brought_nothing_does_not_bind_the_next(server):
    for status, message in (404, "HTTP 404: none"), (400, "no problem was annotated"):
        with raises(message):
            teach(server((status, "none")), 4)
    teach(server(), 4, "--model", "other")
    check_rows(written(), 4)


def test_the_splits_follow_the_log(server):
    mock, log = server(), Path("out/log.jsonl")
    teach(mock, 60, "--split", "40/30/30")
    assert all(len(written(split)) > 5 for split in annotate.SPLITS)
    teach(mock, 60, "--split", "0/100/0")
    check_rows(written("valid"), 60)
    assert sorted(path.name for path in Path("out").iterdir()) == ["log.jsonl", "valid.jsonl"]
    assert len(mock.requests) == 60
    log.write_bytes(log.read_bytes()[:20])  # a kill cut its first line short
    teach(mock, 60)
    check_rows(written(), 60)


def test_another_runs_log_and_files_of_something_else_are_left_as_they_are(server):
    mock = server()
    teach(mock, 4)
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    for changed in ["--style", "cot"], ["--model", "other"], ["--extra", '{"seed": 1}']:
        with raises(r"log.jsonl: of another run .*use another --out$", 2):
            teach(mock, 4, *changed)
        assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    Path("mine").mkdir()
    for name, content in ("train", b'{"id": "a"}\n'), ("log", b'{"step": 1}\n'), ("log", b"notes"):
        path = Path(f"mine/{name}.jsonl")
        path.write_bytes(content)
        with raises("mine.*use another", 2):
            teach(mock, 4, "--out", "mine")
        assert path.read_bytes() == content
        path.unlink()
    assert len(mock.requests) == 4


def test_a_budget_stops_the_run_cleanly_and_a_larger_one_goes_on(server, capsys):
    mock = server(latency=0.02)
    teach(mock, 40, "--budget-tokens", 3000, "--parallel", 2)
    spent = [sum(row["teacher"]["tokens"]) for row in written()]
    assert spent[0] == len(mock.requests[0].prompt.split()) + 40  # as the mock counts them
    assert 3000 <= sum(spent) <= 3000 + 2 * max(spent)
    assert "stopped at --budget-tokens 3,000" in capsys.readouterr().out
    teach(mock, 40, "--budget-tokens", 10**6)
    assert len(written()) == len(mock.requests) == 40


def test_questions_are_asked_for_the_solutions_of_a_file(server):
    steps = [step("What is step 1?", "Bo has 7."), step("What is step 2?", "12.")]
    teach(server(), [problem(2) | {"questions": "plain", "steps": steps}], "--style", "questions")
    new, = written()
    assert new["steps"] == [step("How many has Bo?", "Bo has 7."),
                            step("How many have they together?", "12.")]
    assert "questions" not in new


def test_each_request_of_a_problem_can_have_a_prompt_of_the_users(server):
    Path("think").write_text("Think. Problem: {problem}")
    Path("ask").write_text("Ask. Problem: {problem}\n{solutions}")
    mock = server()
    flags = "--style", "cot", "--prompt", "think", "--prompt", "ask", "--extra", '{"temperature": 0.6}'
    teach(mock, 1, *flags)
    text, (row,) = problem(0)["problem"], written()
    solutions = "\n".join(f"Solution {k}: {step['solution']}" for k, step in enumerate(row["steps"], 1))
    assert [request.prompt for request in mock.requests] == [
        f"Think. Problem: {text}", f"Ask. Problem: {text}\n{solutions}"]
    assert row["teacher"]["temperature"] == mock.requests[0].body["temperature"] == 0.6
    with raises("--prompt think: the placeholder {solutions} is missing"):
        teach(mock, 1, "--style", "questions", "--prompt", "think")
    Path("think").write_text("Think.")
    with raises("--prompt think: the placeholder {problem} is missing"):
        teach(mock, 1, "--prompt", "think")


def test_a_dry_run_shows_the_request_without_sending_it(capsys):
    Path("prompt").write_text("Think {x}: {problem}!")
    teach("http://localhost:1/v1/", [{"problem": "{solutions} %s \\1?", "answer": "4"}], "--dry-run",
          "--prompt", "prompt", "--extra", '{"max_tokens": null, "top_p": 0.9}', "--temperature", 0.2)
    url, _, body = capsys.readouterr().out.partition("\n")
    assert url == "POST http://localhost:1/v1/chat/completions" and KEY not in body
    messages = [{"role": "user", "content": "Think {x}: {solutions} %s \\1?!"}]
    assert json.loads(body) == {"model": "mock", "temperature": 0.2, "top_p": 0.9, "stream": False,
                                "messages": messages}


# ---- the students as their own teacher ---------------------------------------------------------------------

def test_distinct_correct_samples_become_annotations_until_there_are_enough(monkeypatch, capsys):
    samples = {"p-0": ["A?", "wrong answer", "no answer", "wrong equation", "A?", "Old?", "B?"],
               "p-1": ["A?", "wrong answer", "B?"], "p-2": ["wrong answer"] * 7}
    rounds, student = [], SimpleNamespace(guidance=None)

    def steps(row, question):
        return [step(question, "So <<{0}+0={0}>>{0}.".format(row["answer"]))]

    def solve(problems, procedure, students, sampling):
        rounds.append((sampling, [row["id"] for row in problems]))
        for index, row in reversed(list(enumerate(problems))):
            sample = samples[row["id"]][len(rounds) - 1]
            faults = {"wrong answer": {"answer": "-1"}, "no answer": {"answer": None},
                      "wrong equation": {"steps": [step("C?", f"<<1+1=3>>{row['answer']}")]}}
            yield index, {"steps": steps(row, sample), "answer": row["answer"]} | faults.get(sample, {})

    monkeypatch.setattr(annotate, "solve", solve)
    monkeypatch.setattr(annotate, "load_student", lambda *_: student)
    problems = [problem(i) for i in range(3)]
    data.write_problems("f", [row | {"steps": steps(row, "Old?"), "questions": "plain"} for row in problems])
    argv = "self", "f", "--samples", 7, "--keep", 2, "--temperature", 0.5, "--seed", 2, "--out", "new.jsonl"
    call(*argv)
    assert rounds == [((0.5, 0, 1.0, 14 + k), ["p-0", "p-1", "p-2"] if k < 3 else ["p-0", "p-2"])
                      for k in range(7)]
    teacher = {"temperature": 0.5, "decomposer": "runs/decomposer", "solver": "runs/solver"}
    assert rows_of("new.jsonl") == [
        problems[i] | {"id": name, "steps": steps(problems[i], question), "teacher": teacher | {"sample": k}}
        for i, name, question, k in ((0, "p-0-self-1", "A?", 1), (0, "p-0-self-2", "B?", 7),
                                     (1, "p-1-self-1", "A?", 1), (1, "p-1-self-2", "B?", 3))]
    assert "6 of 17 samples correct; new annotations for 2 of 3 problems" in capsys.readouterr().out
    with raises("is there already: --force replaces it", 2):
        call(*argv)  # at once, not after hours of sampling
    student.guidance = "steps"
    with raises("trained with --guidance steps", 2):
        call(*argv, "--out", "other.jsonl")
    assert len(rounds) == 7


# ---- check -------------------------------------------------------------------------------------------------

def good_row(i, name="Ann", thing="pens"):
    text = f"{name} has {i} {thing}. She buys 2 more. How many {thing} has she now?"
    steps = [step("How many?", f"She has {i}+2=<<{i}+2={i + 2}>>{i + 2} {thing}.")]
    return {"id": f"x-{i}", "problem": text, "answer": str(i + 2), "steps": steps}


def faults_of(capsys, files, *flags):
    """What check prints of {name: rows or bytes}, in which there are faults."""
    for name, rows in files.items():
        Path(name).write_bytes(rows if isinstance(rows, bytes) else data.to_jsonl(rows))
    with pytest.raises(SystemExit) as e:
        call("check", *files, *flags)
    assert e.value.code == 1
    return capsys.readouterr().out


def test_check_finds_nothing_in_good_files(capsys):
    data.write_problems("good", [good_row(i) for i in range(50)])
    call("--train", 300, "--valid", 20, "--test", 20, "--out", "t")
    call("check", "good", *(f"t/{split}.jsonl" for split in annotate.SPLITS))
    out = capsys.readouterr().out
    assert "good: 50 problems, 50 steps, 50 calculator annotations; wrong: nothing\n" in out


def test_check_names_each_fault_and_counts_it(capsys):
    a = [good_row(i) for i in range(20)]
    a[3]["steps"][0]["solution"] = "She has 3+2=<<3+2=6>>6, no: 5."
    a[5] |= {"answer": "99"}
    a[7] = good_row(2) | {"problem": good_row(2)["problem"].replace(" ", "  ")}
    a[9] = {"problem": "P"}
    files = {"a": a, "b": [good_row(1), good_row(3, thing="cats")]}
    out = faults_of(capsys, files)
    for line in ("a:10: field 'answer' is missing", "a:4: <<3+2=6>> does not compute: the calculator says 5",
                 "a:6: the last solution does not say the answer 99", "a:8: the same problem as a:3",
                 "b:1: the same problem as a:2",
                 "\na: 19 problems, 19 steps, 19 calculator annotations; "):
        assert line in out, (line, out)
    counts = [f"1 {fault}" for kind, fault in annotate.FAULTS.items() if kind != "leak"]
    assert sorted(re.search("^a: .*wrong: (.*)", out, re.M)[1].split(", ")) == sorted(counts)
    assert out.endswith("; wrong: 1 problems of an earlier file\n")


def test_check_counts_a_file_that_cannot_be_read_and_goes_on(capsys):
    broken = data.to_jsonl([good_row(1)]) + b'{"problem": "x\n' + data.to_jsonl([good_row(2)])
    out = faults_of(capsys, {"a": broken, "b": [good_row(3)], "c": b""})
    assert re.search("^a:2: not JSON.*; the file is not read any further$", out, re.M)
    assert re.search("^a: 1 problems, .*wrong: 1 rows that are no annotated problem$", out, re.M)
    assert re.search("^b: .*wrong: nothing$", out, re.M) and "c: holds no annotated problem\n" in out
    bad = {"d": [good_row(i, thing="cats") | {"answer": "no"} for i in range(30)]}
    assert "... and 20 more last solutions that do not say the answer (--all)" in faults_of(capsys, bad)
    assert faults_of(capsys, bad, "--all").count("does not say the answer no") == 30


# ---- bad usage ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, message", [
    ("--level 9", "--level: invalid choice: 9"), ("--steps 5-2", "--steps: 5-2"), ("--train 0", "--train: 0"),
    ("--made-up 1.5", "--made-up: 1.5"), ("--nonsense", "--nonsense"), ("svampp", "invalid choice: 'svampp'"),
    ("gsm8k", "required: FILE"), ("teacher x", "required: --url, --model"),
    ("self x --out y", "expected a file"), ("gsm8k x.jsonl --split 90/10", "is not three numbers"),
    *((f"teacher f.jsonl --model m --url http://h {flags}", message) for flags, message in (
        ("--url localhost:8000", "expected as in http://localhost:8000/v1"),
        ("--url http://h:99999/v1", "expected as in"), ("--url http://u:p@h/v1", "without user"),
        ("--url http://h/v1/completions",
         "/completions is no endpoint of chat completions; give --url http://h/v1"),
        ("--url http://h:1/api/generate",
         "/api/generate is no endpoint of chat completions; give --url http://h:1/v1"),
        ("--prompt x --prompt y", "--prompt y: --style socratic takes 1"), ("--extra [1]", "no JSON object"),
        ("--split 50/40/20", "sum to 100"), ("--temperature nan", "nan is no number"),
        ("--timeout 0", "0 is no number"), ("--style riddle", "invalid choice: 'riddle'")))])
def test_bad_usage_is_one_line_and_status_2(argv, message):
    with raises(re.escape(message), 2):
        call(*argv.split())


def test_files_that_differ_and_an_unusable_out_are_left_as_they_are():
    Path("file").write_text("mine")
    for out in "file", "file/below":
        with raises("--out .*file"):
            call("--out", out)
    assert Path("file").read_text() == "mine"
    gsm8k_file(GOOD)
    for out in "f", "f/below":
        with raises(f"--out {out}: "):
            call("--out", out)
    for _ in range(2):
        call("gsm8k", "f", "--out", "out")
    before = Path("out/train.jsonl").read_bytes()
    gsm8k_file(GOOD[1:])
    with raises(r"train.jsonl is there already .*--force", 2):
        call("gsm8k", "f", "--out", "out")
    assert Path("out/train.jsonl").read_bytes() == before
    call("gsm8k", "f", "--out", "out", "--force")
    assert Path("out/train.jsonl").read_bytes() != before
