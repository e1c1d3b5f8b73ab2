"""bench_tables.py: what is run for a table, and what is printed. Stand-ins answer, but for the last test."""
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bench_tables
from data import UserError, read_rows, to_jsonl, write_problems

STEP = {"question": "How many?", "solution": "<<1+1=2>>"}
PROBLEMS = [{"problem": f"P {i}", "answer": "2", "steps": [STEP] * (1 + i % 2)} for i in range(8)]
CORRECT = {"socratic": {0, 1, 2, 3, 4}, "cot": {4, 5}}  # what each solves; 0, 2, 4, 6 have one step


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that are run, each a list of words; stand-ins write what the scripts would."""
    run = []

    def stand_in(command, stdout):
        script, *words = Path(command[1]).name, *command[2:]
        flags = dict(zip(words, words[1:]))
        out = Path(flags["--out"])
        run.append([script, *words])
        if script == "infer.py":
            correct = CORRECT.get(flags["--procedure"], ())
            rows = [{"row": i + 1, "problem": f"P {i}", "correct": i in correct} for i in range(8)]
            out.write_bytes(to_jsonl([{"settings": {}}, *reversed(rows)]))
        elif words[0] == "self":
            write_problems(out, PROBLEMS[:3] * 2)
        elif script == "train.py":
            (out / "last").mkdir(parents=True)
            metrics = {"step": 9, "tokens": 2_500_000, "seconds": 60.0, "best_valid_loss": 1.0}
            (out / "last" / "student.json").write_text(json.dumps(metrics))
        else:
            out.mkdir()
            for split in "train", "valid", "test":
                write_problems(out / f"{split}.jsonl", PROBLEMS)
        return 0

    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 1500)])
    monkeypatch.setattr(bench_tables.GPT, "from_pretrained", lambda folder: model)
    monkeypatch.setattr(bench_tables.subprocess, "call", stand_in)
    monkeypatch.chdir(tmp_path)
    write_problems("svamp.jsonl", PROBLEMS)
    write_problems("bare.jsonl", [{"problem": row["problem"], "answer": "2"} for row in PROBLEMS])
    return run


def table(capsys, *words):
    """The cells of a printed table, {label: {heading: cell}}, and what was said on stderr."""
    capsys.readouterr()
    bench_tables.main(list(words))
    printed = capsys.readouterr()
    lines = [re.split(r" *\| *", line)[1:-1] for line in printed.out.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}, printed.err


def test_all_procedures_get_the_same_minutes(commands):
    bench_tables.main(["procedures", "--minutes", "22"])
    minutes = {}  # of each student's folder, which loses "partial-" when it is complete
    for script, *words in commands:
        flags = dict(zip(words, words[1:]))
        if script == "train.py":
            minutes[flags["--out"].replace("partial-", "")] = float(flags["--minutes"])
        elif script == "infer.py" and flags["--procedure"] != "given":
            students = [flags[flag] for flag in ("--student", "--solver", "--decomposer") if flag in flags]
            assert sum(minutes[student] for student in students) == pytest.approx(22)
    assert len(minutes) == 7


def test_a_row_says_what_its_students_solve(commands, capsys):
    words = "procedures", "--rows", "cot", "soc", "given", "--eval", "S=svamp.jsonl", "bare=bare.jsonl"
    cells, _ = table(capsys, *words, "--against", "cot")
    # Wilson's interval of 2 of 8
    expected = {"k parameters": "1.5", "M tokens": "2.5", "S, %": "25.0", "S, 95 %": "7.1-59.1"}
    assert expected.items() <= cells["cot"].items()
    # alone socratic solves 4 problems (0 to 3), cot 1 (5): McNemar's p is 2 * 6 / 32
    expected = {"k parameters": "3.0", "bare, %": "62.5", "bare, ahead": "+37.5", "bare, p": "0.38"}
    assert expected.items() <= cells["socratic"].items()
    given = cells["given the teacher's sub-questions"]
    assert given["S, %"] == "0.0" and given["bare, %"] == ""  # that file has no sub-questions
    cells, _ = table(capsys, *words, "--by-steps")
    assert (cells["socratic"]["S, 1 steps, %"], cells["socratic"]["S, 2 steps, %"]) == ("75.0", "50.0")


def test_what_is_in_the_log_is_printed_and_not_run(commands, capsys, tmp_path):
    words = ["procedures", "--rows", "cot", "soc", "--log", "log.jsonl", "--seeds", "0", "1"]
    first, _ = table(capsys, *words)
    n, log = len(commands), Path("log.jsonl").read_text()
    assert len({tuple(command) for command in commands}) == n == len(log.splitlines())
    assert str(tmp_path) not in log
    assert table(capsys, *words)[0] == table(capsys, *words, "--no-run", "--out", "elsewhere")[0] == first
    cells, said = table(capsys, "votes", "--rows", "cot", "--log", "log.jsonl", "--no-run")
    assert list(cells) == ["cot, greedy"] and len(commands) == n
    assert re.search(r"not in log.jsonl: infer.py .*--student .OUT/cot-\w+ --votes 9 --temperature 0.4", said)


@pytest.mark.parametrize("has_checkpoint", (True, False))
def test_a_stopped_training_goes_on_from_its_checkpoint(has_checkpoint, commands, monkeypatch):
    stand_in, found = bench_tables.subprocess.call, []

    def stopped(command, stdout):
        if command[1].name != "train.py":
            return stand_in(command, stdout)
        out = Path(command[command.index("--out") + 1])
        found.append(out.exists())
        (out / "last").mkdir(parents=True, exist_ok=True)
        (out / "last" / ("trainer.pt" if has_checkpoint else "other")).touch()
        return 130

    monkeypatch.setattr(bench_tables.subprocess, "call", stopped)
    for _ in range(2):
        with pytest.raises(UserError, match="train.py ended with status 130"):
            bench_tables.main(["procedures", "--rows", "cot"])
    assert found == [False, has_checkpoint]


def test_a_test_file_that_has_changed_is_told(commands):
    words = ["procedures", "--rows", "cot", "--eval", "S=svamp.jsonl"]
    bench_tables.main(words)
    write_problems("svamp.jsonl", PROBLEMS[:6])
    bench_tables.checksum.cache_clear()
    with pytest.raises(UserError, match="svamp.jsonl has changed since"):
        bench_tables.main(words)


def test_the_self_teacher_trains_on_what_the_round_before_found(commands, capsys):
    cells, _ = table(capsys, "self_teacher", "--answers", "svamp.jsonl", "--rounds", "2", "--times", "4")
    assert list(cells) == ["round 0", "round 1", "round 2", "the file's own steps"]
    assert [its.get("problems annotated", "") for its in cells.values()] == ["", "3", "3", ""]
    files = [path.read_text().splitlines() for path in Path("runs/tables").glob("beside-*")]
    assert sorted(len(lines) for lines in files) == [8 + 4 * 6, 8 + 4 * 6, 8 + 4 * 8]
    solvers = [words[words.index("--solver") + 1] for words in commands if "self" in words]
    assert len(set(solvers)) == 2


@pytest.mark.parametrize("name", bench_tables.TABLES)
def test_every_table_can_be_made(name, commands, capsys):
    cells, _ = table(capsys, name, "--answers", "svamp.jsonl", "--setting", "wide=--n-embd 64", "same=")
    assert len(cells) >= 2 and all(0 <= float(its["templates, %"]) <= 100 for its in cells.values())


@pytest.mark.parametrize("words, message", [
    (["nonsense"], "invalid choice: 'nonsense'"), (["votes", "--seeds", "1", "1"], "each once"),
    (["votes", "--rows", "quick"], "quick: no row's label begins so; there are: cot, greedy"),
    (["votes", "--eval", "svamp.jsonl"], "svamp.jsonl is not NAME="),
    (["self_teacher"], "self_teacher needs --answers FILE"),
    (["votes", "--log", "nowhere/log.jsonl"], "--log nowhere/log.jsonl: no such folder"),
])
def test_a_users_mistake_is_one_line_and_runs_nothing(words, message, commands):
    with pytest.raises(UserError, match=message) as e:
        bench_tables.main(words)
    assert "\n" not in str(e.value) and not commands


@pytest.mark.parametrize("n", (2, 3, 10))
def test_the_intervals_over_seeds_are_students(n):
    stats = pytest.importorskip("scipy.stats")
    counts = np.random.default_rng(n).integers(480, 520, (2, n))
    a, b = ([k * "1" + (1000 - k) * "0" for k in its] for its in counts)
    accuracy = bench_tables.accuracy_cells("S", a)["S, 95 %"].split("-")
    ahead = bench_tables.comparison_cells("S", a, b)["S, 95 % of ahead"].split(" to ")
    for printed, values in (accuracy, counts[0] / 10), (ahead, (counts[0] - counts[1]) / 10):
        expected = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
        assert [float(end) for end in printed] == pytest.approx(list(expected), abs=0.06)


def test_the_scripts_themselves_fill_a_table(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for split in "train", "valid", "test":
        write_problems(f"mine/{split}.jsonl", PROBLEMS)
    words = ["procedures", "--rows", "cot", "--data", "mine", "--eval", "own=mine/test.jsonl",
             "--minutes", "0.02", "--", "--n-embd", "32", "--n-layer", "1"]
    bench_tables.main(words)
    first = capfd.readouterr().out
    assert re.search(r"\n\| cot \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+-[\d.]+ \|\n", first)
    trained, evaluated = [row for _, row in read_rows("runs/tables/tables.jsonl")]
    assert trained["parameters"] > 10_000 and len(trained["files"]) == 2
    assert {n: len(text) for n, text in evaluated["correct"].items()} == {"1": 4, "2": 4}
    bench_tables.main(words)
    assert capfd.readouterr().out == first and len(list(read_rows("runs/tables/tables.jsonl"))) == 2
