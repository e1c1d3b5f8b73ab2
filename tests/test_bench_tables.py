"""bench_tables.py: what is run for a table, and what is made of it; the scripts themselves are not run."""
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bench_tables
from data import UserError, jsonl

PROBLEMS = [{"id": str(i), "problem": f"P {i}", "answer": "1", "steps": [{"question": "q", "solution": "s"}] * (2 + i % 2)} for i in range(8)]
RIGHT = {"socratic": {0, 1, 2, 3, 4}, "cot": {4, 5}}  # rows that a procedure solves with the calculator; without, none is


@pytest.fixture
def commands(monkeypatch):
    """The commands that are given, each a list of words; stand-ins answer them."""
    given = []

    def run(command, **how):
        if command[0] == "git":
            return SimpleNamespace(stdout="0123abc\n", returncode=0)
        script, *words = command[1:]
        flags = dict(zip(words, words[1:]))
        out, printed = Path(flags["--out"]), ""
        given.append([Path(script).name, *words])
        if Path(script).name == "infer.py":
            right = RIGHT.get(flags["--procedure"], set()) if "--no-calculator" not in words else set()
            rows = [{"row": i, "problem": p["problem"], "right": i - 1 in right} for i, p in enumerate(PROBLEMS, 1)]
            out.write_bytes(jsonl([{"run": {}}, *rows]))
            printed = "questions exactly the teacher's: 62.5 % (5/8), in any order: ...\nas many questions ...; BLEU 71.2\naccuracy ...\n"
        elif words[0] == "self":
            out.parent.mkdir(exist_ok=True)
            out.write_bytes(jsonl(PROBLEMS))
        else:
            out.mkdir(exist_ok=True)
            for split in "train", "valid", "test":
                (out / f"{split}.jsonl").write_bytes(jsonl(PROBLEMS))
            (out / "student.json").write_text(json.dumps({"tokens": 2_500_000}))
        return SimpleNamespace(stdout=printed, returncode=0)

    monkeypatch.setattr(bench_tables.subprocess, "run", run)
    monkeypatch.setattr(bench_tables.GPT, "open", lambda folder: SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 1000)]))
    return given


def minutes(commands, out):
    """The minutes of the student in this folder."""
    return next(float(words[words.index("--minutes") + 1]) for words in commands if words[0] == "train.py" and words[-2] == str(out))


def test_procedures_get_the_same_minutes_and_nothing_is_run_twice(commands, tmp_path, capsys):
    bench_tables.main(["procedures", "--minutes", "22", "--seeds", "3", "4", "--out", str(tmp_path)])
    for words in commands:
        if words[0] == "infer.py" and "given" not in words:
            students = [words[words.index(flag) + 1] for flag in ("--student", "--solver", "--decomposer") if flag in words]
            assert sum(minutes(commands, student) for student in students) == pytest.approx(22)
    once = [tuple(words) for words in commands]
    assert len(once) == len(set(once)) == len((tmp_path / "runs.jsonl").read_text().splitlines())
    first = capsys.readouterr().out
    bench_tables.main(["procedures", "--minutes", "22", "--seeds", "3", "4", "--out", str(tmp_path)])
    assert len(commands) == len(once) and capsys.readouterr().out == first


def test_a_row_says_what_its_runs_came_to(commands, tmp_path, capsys):
    bench_tables.main(["procedures", "--rows", "cot", "socratic", "--out", str(tmp_path / "o"), "--picture", str(tmp_path / "p.svg")])
    cot, socratic = [re.split(r" *\| *", row)[1:-1] for row in capsys.readouterr().out.splitlines() if row.startswith(("| cot", "| soc"))]
    assert cot[:4] == ["cot", "1,000", "2.5", "25.0 (7.1-59.1)"]  # Wilson's interval of 2 of 8
    # right of steps 2 (even rows) and 3: 0, 2, 4 and 1, 3 of four each; alone 4 (0 to 3) against 1 (5): p = 2 * 6 / 32
    assert socratic[:3] == ["socratic", "2,000", "5.0"] and socratic[4].startswith("0.0")
    assert socratic[5:] == ["2: 75 3: 50", "62.5, 71.2", "0.38 against cot"]
    assert (tmp_path / "p.svg").read_text().count("<polyline") == 2


def test_the_log_alone_prints_the_tables_and_what_it_lacks_is_made(commands, tmp_path, capsys):
    log = str(tmp_path / "log.jsonl")
    bench_tables.main(["procedures", "--rows", "cot", "socratic", "--out", str(tmp_path / "a"), "--log", log])
    first, n = capsys.readouterr().out, len(commands)
    assert str(tmp_path) not in Path(log).read_text()
    there = ["--out", str(tmp_path / "b"), "--log", log]
    bench_tables.main(["procedures", "--rows", "cot", "socratic", "--no-run", *there])
    assert capsys.readouterr().out == first and len(commands) == n and not (tmp_path / "b").exists()
    bench_tables.main(["votes", "--rows", "cot", "--no-run", *there])
    printed = capsys.readouterr()
    assert "| cot, 1 vote |" in printed.out and "| cot, 5 votes |" not in printed.out
    assert re.search("cot, 5 votes: not in .*log.jsonl: infer.py --procedure cot --eval data-.*/test.jsonl --student cot-.* --votes 5 ", printed.err)
    assert len(commands) == n and not (tmp_path / "b").exists()
    # another evaluation of a student that is there no more: its data, itself, the test problems
    bench_tables.main(["votes", "--rows", "cot, 5", *there])
    assert [words[0] for words in commands[n:]] == ["annotate.py", "annotate.py", "train.py", "infer.py"]
    # what the log says of that student as it was first trained counts no more
    capsys.readouterr()
    bench_tables.main(["procedures", "--rows", "cot", "socratic", "--no-run", *there])
    printed = capsys.readouterr()
    assert "| socratic |" in printed.out and "| cot |" not in printed.out and "cot: not in" in printed.err


def test_the_log_names_data_as_it_was_given(commands, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for split in "train", "valid", "test":
        Path("mine", f"{split}.jsonl").write_bytes(jsonl(PROBLEMS))
    bench_tables.main(["procedures", "--rows", "cot", "--data", "mine", "--out", "o"])
    log = Path("o/runs.jsonl").read_text()
    assert "--train mine/train.jsonl --valid mine/valid.jsonl --out cot-" in log and str(tmp_path) not in log
    assert str(tmp_path / "mine" / "train.jsonl") in commands[0]  # the scripts themselves are run in --out
    assert "| always 1 | | | 100.0 |" in capsys.readouterr().out
    n = len(commands)
    Path("mine/test.jsonl").write_bytes(jsonl(PROBLEMS[:6]))  # other data of the same name
    bench_tables.main(["procedures", "--rows", "cot", "--data", "mine", "--out", "o"])
    assert len(commands) == 2 * n


def test_a_training_that_was_killed_before_it_kept_anything_begins_anew(commands, tmp_path):
    bench_tables.main(["procedures", "--rows", "cot", "--out", str(tmp_path)])
    assert commands[2][0] == "train.py" and commands[2][-1] == "--resume"
    (tmp_path / "runs.jsonl").unlink()  # the student's folder, with student.json, is there, and no last/
    bench_tables.main(["procedures", "--rows", "cot", "--out", str(tmp_path)])
    assert commands[-3][0] == "train.py" and commands[-3][-1] == "--force"


@pytest.mark.parametrize("words, message", [
    (["nonsense"], "invalid choice: 'nonsense'"), (["--data", "nowhere"], "nowhere/train.jsonl"), (["--seeds", "1", "1"], "each once"),
    (["procedures", "--rows", "quick"], "--rows quick: no row begins so; there are cot, answer, unified"),
    (["--log", "nowhere/log.jsonl"], "--log nowhere/log.jsonl: there is no such folder"), (["lengths", "--data", "x"], "need the templates"),
    (["procedures", "--", "--minutes", "5"], "-- --minutes: these tables set it"), (["sizes", "--", "--n-embd=8"], "-- --n-embd: these"),
    (["optimizers", "--", "--lr", "1"], "-- --lr: these"), (["--init", "a/gpt2", "b/gpt2"], "two folders of one name"),
    (["votes", "--side-by-side", "--picture", "p.svg"], "--picture: not with"),
])
def test_a_users_mistake_is_one_line_and_runs_nothing(words, message, commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, OSError), match=message) as e:
        bench_tables.main(words)
    assert "\n" not in str(e.value) and not commands and not list(tmp_path.iterdir())


def test_the_largest_factor_is_of_single_students_that_make_something_of_their_size():
    def result(procedure, parameters, right):
        row = bench_tables.Row(f"{procedure}, {parameters}", procedure, None, None)
        return bench_tables.Result(row, parameters, 1.0, [right * "1" + (10 - right) * "0"], [], {}, [], [], [], set())

    results = [result("cot", 10, 4), result("socratic", 20, 6), result("cot", 40, 5), result("socratic", 80, 9), result("cot", 160, 4)]
    # the cot of 160 is no better than that of 10: to be as right as that is no feat
    assert bench_tables.largest_factor(results).endswith("as right: 2.0 (socratic, 20, 60.0 %, and cot, 40, 50.0 %)")
    assert bench_tables.largest_factor(results[:1] + [result("socratic", 20, 3)]).endswith("0.0 (none is)")


@pytest.mark.parametrize("n", (2, 3, 4, 10))
def test_the_interval_of_several_seeds_holds_one_more_in_19_of_20_cases(n):
    random = np.random.default_rng(n)
    held = []
    for seeds in random.normal(500, 30, (2000, n + 1)).round().astype(int).clip(0, 1000).tolist():
        low, high = re.fullmatch(r"[\d.]+ \(([\d.]+)-([\d.]+): .*\)", bench_tables.percent([k * "1" + (1000 - k) * "0" for k in seeds[:n]])).groups()
        held.append(float(low) <= seeds[n] / 10 <= float(high))
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)  # three standard deviations of a share of 2,000


def test_by_how_many_points_a_row_is_ahead_holds_the_true_difference_in_19_of_20_cases():
    random = np.random.default_rng(0)
    row = bench_tables.Row("socratic", "socratic", None, None)
    held = []
    for ahead in random.normal(0.04, 0.1, (2000, 3)).tolist():
        said = bench_tables.compared(bench_tables.Result(row, 0, 0, [], [], {}, [], ahead, [0.5, 0.25, 1e-9], set()))
        mean, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\); 0\.5, 0\.25, 1e-09 against cot", said).groups())
        assert mean == pytest.approx(100 * np.mean(ahead), abs=0.051)
        held.append(low <= 4 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_side_by_side_pairs_what_differs_in_the_procedure_alone(commands, tmp_path, capsys):
    bench_tables.main(["amounts", "votes", "guidance", "procedures", "--side-by-side", "--out", str(tmp_path / "o")])
    lines = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
    cot, socratic = "25.0 (7.1-59.1)", "62.5 (30.6-86.3)"
    assert ["1,000 problems", cot, socratic, "0.38"] in lines
    assert ["5 votes", cot, socratic, "1 against cot, 1 vote; 1 against socratic, 1 vote"] in lines
    assert ["equations", "", socratic, "1 against nothing"] in lines
    assert ["", cot, socratic, "0.38"] in lines and not any(words[0] == "train.py" and "unified" in words for words in commands)


@pytest.mark.parametrize("table", bench_tables.TABLES)
def test_every_table_can_be_made(table, commands, tmp_path, capsys):
    bench_tables.main([table, "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("\n| ") >= 4


@pytest.mark.parametrize("words", [
    ["procedures", "--seeds", "0", "1", "2"], ["self_teacher", "--seeds", "0", "1", "2"], ["sizes", "longer", "generalisation", "amounts", "votes", "guidance", "--side-by-side"]])
def test_the_tables_of_readme_are_those_of_the_log(words, tmp_path, capsys):
    bench_tables.main([*words, "--minutes", "6", "--no-run", "--log", str(bench_tables.ROOT / "tests" / "tables.jsonl"), "--out", str(tmp_path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    readme = (bench_tables.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 6 and [line for line in readme if line in rows] == rows
