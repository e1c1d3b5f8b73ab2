"""bench_tables.py: what is run for a table, and what is printed. Stand-ins answer, but for the last test."""
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bench_tables
from data import read_rows, to_jsonl, write_problems

STEP = {"question": "How many?", "solution": "<<1+1=2>>"}
PROBLEMS = [{"problem": f"P {i}", "answer": "2", "steps": [STEP] * (1 + i % 2)} for i in range(8)]
CORRECT = {"socratic": 5, "cot": 2}  # how many each solves


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that are run, each (script, words, flags); stand-ins write what the scripts would."""
    run = []

    def stand_in(command, stdout, env):
        script, words = Path(command[1]).name, command[2:]
        flags = dict(zip(words, words[1:])) | {"threads": env.get("OMP_NUM_THREADS")}
        out = Path(flags["--out"])
        run.append((script, words, flags))
        if script == "infer.py":
            correct = CORRECT.get(flags["--procedure"], 0)
            rows = [{"row": i + 1, "problem": f"P {i}", "correct": i < correct} for i in range(8)]
            out.write_bytes(to_jsonl([{"settings": {}}, *rows, {"row": 9, "correct": None}]))
        elif words[0] == "self":
            write_problems(out, PROBLEMS[:3] * 2)
        elif script == "train.py":
            (out / "last").mkdir(parents=True)
            (out / "last" / "student.json").write_text('{"tokens": 2500000}')
        else:
            out.mkdir()
            for split in "train", "valid", "test":
                write_problems(out / f"{split}.jsonl", PROBLEMS)
        return 0

    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 1500)])
    monkeypatch.setattr(bench_tables.GPT, "from_pretrained", lambda folder: model)
    monkeypatch.setattr(bench_tables.subprocess, "call", stand_in)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.chdir(tmp_path)
    write_problems("svamp.jsonl", PROBLEMS)
    write_problems("bare.jsonl", [{"problem": row["problem"], "answer": "2"} for row in PROBLEMS])
    return run


def table(capsys, words, *more):
    """The cells of a printed table, {label: {heading: cell}}."""
    bench_tables.main([*words.split(), *more])
    lines = re.findall(r"^\| ?(.*?) ?\|$", capsys.readouterr().out, re.M)
    lines = [re.split(r" *\| *", line) for line in lines]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}


def test_a_row_says_what_its_students_solve(commands, capsys):
    words = "procedures --rows cot soc given --eval S=svamp.jsonl bare=bare.jsonl"
    cells = table(capsys, words)
    # Wilson's interval of 2 of 8
    assert cells["cot"] == {"": "cot", "k parameters": "1.5", "M tokens": "2.5", "S, %": "25.0",
                            "S, 95 %": "7.1-59.1", "bare, %": "25.0", "bare, 95 %": "7.1-59.1"}
    assert cells["socratic"]["k parameters"] == "3.0" and cells["socratic"]["bare, %"] == "62.5"
    given = cells["given the teacher's sub-questions"]
    assert given["S, %"] == "0.0" and given["bare, %"] == ""  # that file has no sub-questions


def test_what_has_been_made_is_printed_and_not_made_again(commands, capsys, tmp_path):
    words = "procedures --rows cot soc --seeds 0 1 --minutes 22 --eval S=svamp.jsonl"
    first = table(capsys, words)
    n, log = len(commands), Path("runs/tables/tables.jsonl").read_text()
    assert len({str(words) for _, words, _ in commands}) == n == len(log.splitlines())
    assert str(tmp_path) not in log
    trained = [flags for script, _, flags in commands if script == "train.py"]  # each from scratch, on a core
    assert sorted(flags["--role"] for flags in trained) == ["cot"] * 2 + ["decomposer"] * 2 + ["solver"] * 2
    assert all((flags["--minutes"], flags["threads"]) == ("22", "1") for flags in trained)
    assert not any("--init" in flags for flags in trained)
    Path("runs").rename("elsewhere")
    assert table(capsys, words, "--out", "elsewhere/tables") == first and len(commands) == n
    write_problems("svamp.jsonl", PROBLEMS[:6])  # is another test
    table(capsys, words, "--out", "elsewhere/tables")
    assert [script for script, *_ in commands[n:]] == ["infer.py"] * 4


@pytest.mark.parametrize("name", bench_tables.TABLES)
def test_every_table_can_be_made(name, commands, capsys):
    cells = table(capsys, f"{name} --answers svamp.jsonl --setting same=", "wide=--n-embd 64")
    assert len(cells) >= 2 and all(0 <= float(its["templates, %"]) <= 100 for its in cells.values())


@pytest.mark.parametrize("n", range(2, 11))
def test_the_intervals_over_seeds_are_students(n):
    stats = pytest.importorskip("scipy.stats")
    counts = np.random.default_rng(n).integers(480, 520, n)
    cells = bench_tables.accuracy_cells("S", [[i < k for i in range(1000)] for k in counts])
    expected = stats.t.interval(0.95, n - 1, np.mean(counts / 10), stats.sem(counts / 10))
    assert [float(end) for end in cells["S, 95 %"].split("-")] == pytest.approx(list(expected), abs=0.06)


def test_the_scripts_themselves_fill_a_table(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for split in "train", "valid", "test":
        write_problems(f"mine/{split}.jsonl", PROBLEMS)
    words = ("procedures --rows cot --data mine --eval own=mine/test.jsonl --minutes 0.02 -- --n-embd 32 "
             "--n-layer 1").split()
    bench_tables.main(words)
    first = capfd.readouterr().out
    assert re.search(r"\n\| cot \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+-[\d.]+ \|\n", first)
    bench_tables.main(words)
    assert capfd.readouterr().out == first
    assert ["train.py" in row["command"] for _, row in read_rows("runs/tables/tables.jsonl")] == [True, False]
