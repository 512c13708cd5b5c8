"""The manifest of recorded runs is true, and stays true when a run is recorded."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from salun_core.__main__ import main
from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.runs.manifest import NAME, differences, kept_files, kept_true, write
from salun_core.paths import project_root, recorded_folder

COMMITTED = project_root(Path(__file__).parent) / "data" / "recorded"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A project with one recorded run of three files, of which git keeps two."""
    (tmp_path / "_config.yml").touch()
    (tmp_path / "salun_core").mkdir()
    cells = tmp_path / "data/recorded/small/cells"
    for name in ("cell-1.json", "cell-1.outputs.safetensors", "cell-1.model.safetensors", ".locks/cell-1"):
        (cells / name).parent.mkdir(parents=True, exist_ok=True)
        (cells / name).write_text(name)
    (cells.parent / "measured").mkdir()
    (cells.parent / "measured/UA.json").touch()
    monkeypatch.chdir(tmp_path)
    write()
    return tmp_path / "data/recorded"


def test_the_committed_runs_are_what_their_manifest_says():
    found = differences(COMMITTED)
    assert not found, f"{found}: if this is meant, run python -m salun_core manifest"


def test_the_manifest_lists_what_git_keeps():
    root = COMMITTED.parents[1]
    if not (root / ".git").exists():
        pytest.skip("no repository")
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "data/recorded"]
    known = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    inside = (Path(name).relative_to("data/recorded") for name in known.split("\0") if name)
    kept = {path.as_posix() for path in inside if len(path.parts) > 1 and (COMMITTED / path).is_file()}
    assert kept == set(kept_files(COMMITTED))


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_a_standard_tool_reads_it(recorded):
    words = ["sha256sum", "--check", "--strict", "--quiet", NAME]
    assert subprocess.run(words, cwd=recorded, capture_output=True, check=False).returncode == 0
    (recorded / "small/cells/cell-1.json").write_text("another number")
    assert subprocess.run(words, cwd=recorded, capture_output=True, check=False).returncode == 1


def test_every_kind_of_difference_is_named(recorded, capsys):
    assert main(["manifest", "--check"]) == 0
    cells = recorded / "small/cells"
    (cells / "cell-1.model.safetensors").unlink()  # weights are not kept
    assert not differences()
    (cells / "cell-1.json").write_text("another number")
    (cells / "cell-1.outputs.safetensors").unlink()
    (cells / "cell-2.json").touch()
    capsys.readouterr()
    assert main(["manifest", "--check"]) == 1
    assert capsys.readouterr().out.count("\n") == 1
    found = differences()
    assert found.changed == ("small/cells/cell-1.json",)
    assert found.missing == ("small/cells/cell-1.outputs.safetensors",)
    assert found.unlisted == ("small/cells/cell-2.json",)
    assert main(["manifest"]) == 0 and not differences()


@pytest.mark.parametrize("content", [None, b"no digest", b"\xff\xfe"])
def test_a_manifest_that_is_none_is_one_sentence(recorded, content, capsys):
    (recorded / NAME).unlink()
    if content is not None:
        (recorded / NAME).write_bytes(content)
    assert main(["manifest", "--check"]) == 2
    assert "restore it from git" in capsys.readouterr().err
    assert main(["manifest"]) == 0 and not differences()


def test_recording_keeps_it_true_also_when_it_is_interrupted(recorded, tmp_path):
    def interrupted():
        with kept_true(recorded / "small"):
            (recorded / "small/cells/cell-2.json").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "small/cells/cell-2.json" in (recorded / NAME).read_text() and not differences()
    before = (recorded / NAME).stat().st_mtime_ns
    with kept_true(tmp_path / "data/runs"):
        (tmp_path / "data/runs").mkdir()
    assert (recorded / NAME).stat().st_mtime_ns == before


@pytest.mark.parametrize("command", ["record", "merge"])
def test_commands_that_write_there_keep_it_true(command, recorded, monkeypatch, tmp_path):
    def run(*_, **__):
        (recorded / "quick/cells").mkdir(parents=True)
        (recorded / "quick/cells/cell-9.json").touch()
        raise UserError("it stops half way")

    if command == "record":
        experiment = replace(EXPERIMENTS["classification"], run=run)
        monkeypatch.setitem(EXPERIMENTS, "classification", experiment)
        words = ["record", "classification", "quick"]
    else:
        monkeypatch.setattr("salun_core.experiments.runs.merge.merge", run)
        words = ["merge", str(tmp_path), "--into", str(recorded / "quick")]
    assert main(words) == 2
    assert (recorded_folder() / "quick/cells/cell-9.json").is_file() and not differences()
