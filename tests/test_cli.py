import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from salun_core.__main__ import main
from salun_core.code_digest import HERE
from salun_core.errors import UserError
from salun_core.files import write_whole

SMALL = ["-p", "seeds", "[0]", "-p", "methods", "rl,salun", "-p", "scenario", "random", "-p", "epochs", "2"]
SMALL += ["-p", "tuning_budget", "2", "-p", "noise_floor", "0", "-p", "width", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert main(["run", "classification", "--out", str(out), *SMALL]) == 0
    return out


def test_results_are_the_same_in_every_form(folder, capsys):
    def printed(form):
        assert main(["results", "classification", "--out", str(folder), "--format", form]) == 0
        return capsys.readouterr().out

    rows = json.loads(printed("json"))
    assert {r["method"] for r in rows if r["reported"]} == {"retrain", "rl", "salun"}
    assert {r["study"] for r in rows if not r["reported"]} == {"tuning"}
    assert all(r["UA"] is None for r in rows if not r["reported"])  # no test image decides a choice
    table = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [r["UA"] and float(r["UA"]) for r in table] == [r["UA"] or "" for r in rows]
    assert printed("table").count("\n") == len(rows) + 1


def test_results_for_a_paper_and_for_other_programs(folder, capsys, tmp_path):
    words = ["results", "classification", "--out", str(folder), "--format"]
    assert main([*words, "latex"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(r"\toprule") == 1 and "RL" in shown
    assert re.search(
        r"\\textbf\{(RL|SalUn)\} & \\textbf\{[\d.]+ \([\d.]+\)\}", shown
    )  # value, gap, the best bold
    assert (
        len([line for line in shown.splitlines() if line.endswith(r"\\")]) == 4
    )  # a heading and three methods
    assert main([*words, "parquet", "--to", str(tmp_path / "rows.parquet")]) == 0
    assert main([*words, "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    stored = pd.read_parquet(tmp_path / "rows.parquet")
    assert stored["cell"].tolist() == [row["cell"] for row in rows]
    assert json.loads(stored["settings"].iloc[-1]) == json.loads(rows[-1]["settings"])
    assert main([*words, "parquet"]) == 2
    assert "--to" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "csv", "json", "latex"])
def test_names_are_shown_and_not_obeyed_by_a_terminal_and_kept_in_files(
    form, folder, capsys, tmp_path, monkeypatch
):
    from salun_core.experiments.runs import table

    read, name = table.read_table, "cat\x1b]0;x\x07\u202egod"
    monkeypatch.setattr(
        table, "read_table", lambda *a, **m: read(*a, **m).assign(scenario=name, dataset=name)
    )
    words = ["results", "classification", "--out", str(folder), "--format", form]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert not re.search("[\x1b\x07\u202e]", out)
    if form in ("csv", "json"):
        assert main([*words, "--to", str(tmp_path / "file")]) == 0
        text = (tmp_path / "file").read_text("utf8")
        assert name in text if form == "csv" else json.loads(text)[0]["scenario"] == name


def test_characters_that_a_terminal_does_not_know_are_written_out():
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, "-m", "salun_core", "list"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\\u2113" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list"], "what is finished is kept"),
        (["shard", "x"], "finished cells are kept"),
        (["merge", "a", "--into", "b"], "what is merged is kept"),
        (["export", "cell-0", "x"], "writes all anew"),
        (["fetch"], "what is fetched is kept"),
        (["plan", "classification", "--write", "x"], "what is finished is kept"),
    ],
)
def test_an_interrupted_command_says_what_is_true(words, said, capsys, monkeypatch):
    def pressed(_):
        raise KeyboardInterrupt

    for name in ("_list", "_shard", "_merge", "_export", "_fetch", "_plan"):
        monkeypatch.setattr(f"salun_core.__main__.{name}", pressed)
    assert main(words) == 130
    err = capsys.readouterr().err
    assert said in err and "nothing was written" not in err


def test_a_parameter_without_a_value_is_refused_without_advice_that_it_would_not_take(capsys):
    assert main(["run", "classification", "-p", "width", "null"]) == 2
    said = capsys.readouterr().err
    assert "width is given without a value: give one, or the word none for no value, or leave it out" in said
    assert main(["run", "classification", "-p", "keep", "null"]) == 2
    assert "keep is given without a value: give one, or leave it out" in capsys.readouterr().err


def test_null_in_a_file_that_could_mean_none_or_the_presets_is_refused_with_the_name_of_the_file(
    capsys, tmp_path
):
    (tmp_path / "mine.yaml").write_text("preset: quick\nclip:\n")
    assert main(["run", "text_to_image", "-f", str(tmp_path / "mine.yaml")]) == 2
    said = capsys.readouterr().err
    remedy = "give one, or the word none for no value"
    assert f"{tmp_path / 'mine.yaml'}: parameter clip is given without a value: {remedy}" in said


def test_null_in_a_file_is_otherwise_the_default_as_in_the_cells_of_notebooks(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: quick\nwidth: null\nseeds: null\n")
    assert main(["plan", "classification", "-f", str(tmp_path / "mine.yaml")]) == 0
    with_null = capsys.readouterr().out
    assert main(["plan", "classification", "-p", "preset", "quick"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == with_null.splitlines()[:3]


def test_a_preset_can_follow_the_experiment(capsys, tmp_path):
    def planned(*words):
        assert main(["plan", *words]) == 0
        return capsys.readouterr().out.splitlines()[:2]

    (tmp_path / "mine.yaml").write_text("preset: quick\n")
    clean = planned("classification", "-p", "preset", "fast")
    assert clean != planned("classification")
    assert planned("classification", "fast") == clean
    assert planned("classification", "fast", "-p", "preset", "fast") == clean
    assert planned("classification", "fast", "-f", str(tmp_path / "mine.yaml")) == clean
    assert main(["plan", "classification", "fast", "-p", "preset", "quick"]) == 2
    assert "two presets are given, 'fast' and 'quick': leave one of them out" in capsys.readouterr().err


def test_a_second_run_computes_nothing(folder, capsys):
    files = {p: p.stat().st_mtime_ns for p in (folder / "cells").rglob("*.json")}
    assert main(["run", "classification", "--out", str(folder), *SMALL]) == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "cells").rglob("*.json")} == files


def test_a_damaged_cell_is_computed_again_with_the_same_numbers(folder, capsys):
    def numbers():
        main(["results", "classification", "--out", str(folder), "--format", "json"])
        rows = json.loads(capsys.readouterr().out)
        return [(r["cell"], r["UA"], r["RA"], r["TA"], r["MIA"]) for r in rows]

    before = numbers()
    victim = next((folder / "cells").rglob("cell-*.json"))
    victim.write_bytes(victim.read_bytes()[:100])
    assert main(["run", "classification", "--out", str(folder), *SMALL]) == 0
    capsys.readouterr()
    assert numbers() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "clasification"], "did you mean 'classification'"),
        (["run", "classification", "-p", "kepe", "1"], "did you mean 'keep'"),
        (["run", "classification", "-p", "forget_fraction", "1.5"], "forget_fraction"),
        (["run", "classification", "-f", "missing.yaml"], "missing.yaml"),
        (["run", "classification", "--out", "/proc/nowhere"], "choose"),
        (["results", "classification", "--out", "nowhere"], "run classification"),
        (["run", "classification", "-p", "keep", "[" * 3000], "keep"),
        (["run", "classification", "-p", "threads", "1000000"], "threads"),
        (["train-tiny-sd", "--threads", "-1"], "threads"),
        (
            ["run", "classification", "-p", "seeds", str([*range(900)])],
            "cells, more than 5,000: add --yes or set many_cells",
        ),
        (["run", "classification", "-p", "noise_floor", "1000000000"], "to 1000, got 1000000000"),
        (["run", "classification", "-p", "tuning_budget", "1000000"], "to 1000, got 1000000"),
        (["run", "diffusion", "-p", "layers", "1000000000"], "to 100, got 1000000000"),
        (["rehearse", "--workers", "0"], "workers"),
        (["plan", "classification", "--tflops", "inf"], "tflops must be positive and finite, got inf"),
        (["plan", "classification", "--write", "../up"], "--write '../up' is not a valid name"),
        (["plan", "classification", "--write", ""], "--write '' is not a valid name"),
        (["plan", "classification", "--shards", "--gpus", "-1"], "--gpus must be 0 or more"),
        (["plan", "classification", "--gpus", "-1"], "--gpus must be 0 or more"),
        (["plan", "classification", "--gpus", "2"], "--gpus 2 is of a shard"),
        (["record", "classification", "quick", "-p", "out_dir", "x"], "record chooses out_dir itself"),
        (
            ["run", "classification", "-p", "methods", "os:getcwd"],
            "method 'os:getcwd' cannot be called with a task",
        ),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "plan",
    [
        "[]",
        '{"experiment": {"a": 1}, "given": {}}',
        '{"experiment": "classification", "given": []}',
        '{"experiment": "classification", "given": null}',
        '{"experiment": "classification", "given": {"keep": NaN}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_plan_that_is_none_is_refused(plan, capsys, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(plan)
    for words in ([], ["cells/random-10-seed-0"]):
        assert main(["shard", str(file), *words]) == 2
        assert f"{file} is not there or no plan" in capsys.readouterr().err


def test_an_empty_folder_name_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "classification", "--out", ""])
    assert ended.value.code == 2
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ZeroDivisionError("by zero"), 70, "this should not happen: ZeroDivisionError: by zero"),
        (RuntimeError("two\nlines \ud800"), 70, "two lines"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory"),
        (PermissionError(13, "Permission denied", "/a/file"), 2, "/a/file: Permission denied"),
        (ModuleNotFoundError("No module", name="nudenet"), 2, "pip install"),
        (KeyboardInterrupt(), 130, "finished cells are kept"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_no_error_shows_a_traceback(error, status, message, capfd, monkeypatch, tmp_path):
    def failing(_):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("salun_core.__main__._run", failing)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["run", "classification"]) == status
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == (1 if message else 0)
    logs = list(tmp_path.rglob("error-*.log"))
    assert len(logs) == (status == 70)
    for log in logs:
        assert str(log) in err
        assert type(error).__name__ in log.read_text()
        assert "Traceback" in log.read_text()


def test_results_go_through_links_and_into_pipes(folder, tmp_path):
    words = ["results", "classification", "--out", str(folder), "--format", "csv", "--to"]
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    link.symlink_to(target)
    assert main([*words, str(link)]) == 0
    assert link.is_symlink() and target.read_text().startswith("experiment,")
    os.mkfifo(pipe := tmp_path / "pipe")
    read = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert main([*words, str(pipe)]) == 0
    assert read.communicate()[0] == target.read_bytes()
    assert pipe.is_fifo()


def test_no_device_is_replaced_by_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_char_device", lambda _: True)
    with pytest.raises(UserError, match="it is a device"):
        write_whole(tmp_path / "device", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "", "--into", "x"],
        ["merge", "x", "--into", ""],
        ["plan", "classification", "-f", ""],
        ["results", "classification", "--to", ""],
        ["export", "cell-1", ""],
        ["add", ""],
    ],
)
def test_no_path_is_an_empty_text(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "is empty: give one" in capsys.readouterr().err


def test_an_error_is_told_where_torch_itself_cannot_be_imported(capsys, monkeypatch, tmp_path):
    def failing(_):
        raise ImportError("libtorch.so: cannot open shared object file")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("salun_core.__main__._run", failing)
    monkeypatch.setitem(sys.modules, "salun_core.experiments.runs.provenance", None)
    assert main(["run", "classification"]) == 70
    assert "ImportError: libtorch.so" in capsys.readouterr().err
    (log,) = tmp_path.rglob("error-*.log")
    assert "environment: unknown" in log.read_text()


@pytest.fixture
def attentive():
    """Ctrl+C reaches this process and its children, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("attentive")
def test_an_interrupt_that_a_library_turns_into_an_error_is_still_one(monkeypatch, capsys):
    def failing(_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RecursionError from None

    monkeypatch.setattr("salun_core.__main__._run", failing)
    before = signal.getsignal(signal.SIGINT)
    assert main(["run", "classification"]) == 130
    assert (
        capsys.readouterr().err
        == "salun_core: interrupted; finished cells are kept, the same command goes on\n"
    )
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("attentive")
def test_an_interrupt_while_modules_are_read_shows_no_traceback(tmp_path):
    (tmp_path / "yaml.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{HERE}"}
    done = subprocess.run(
        [sys.executable, "-m", "salun_core", "list"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "salun_core: interrupted; what is finished is kept\n")


def test_the_log_of_an_error_goes_elsewhere_where_the_project_cannot_be_written(
    capsys, monkeypatch, tmp_path
):
    (tmp_path / "data").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("salun_core.__main__._list", lambda _: 1 / 0)
    assert main(["list"]) == 70
    assert "elsewhere/error-" in capsys.readouterr().err


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("classification", "salun_soft", "digits", "resnet18", "MIA"))
