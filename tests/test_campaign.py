"""The campaign ends at the first difference, and its record is what it tried."""

import json
import random
import shutil
from collections import Counter

import pytest

from campaign import __main__ as command
from campaign.parts import DAMAGES, Difference, Effort, Part, inputs
from campaign.small import Small

pytestmark = pytest.mark.long


def test_a_difference_ends_it(monkeypatch, capsys):
    def failing(_):
        raise Difference("the table differs")

    monkeypatch.setitem(command.PARTS, "inputs", failing)
    assert command.main(["inputs", "--seed", "7"]) == 1
    assert "inputs, seed 7: the table differs" in capsys.readouterr().err
    assert command.main(["input"]) == 2


def test_the_record_holds_the_counts_of_the_parts_that_were_run(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "project_root", lambda: tmp_path)
    for name, count in (("inputs", 3), ("kills", 5), ("inputs", 4)):
        part = lambda _, name=name, count=count: Part(name, Counter({"tried": count}))  # noqa: E731
        monkeypatch.setitem(command.PARTS, name, part)
        assert command.main([name, "--short", "--record"]) == 0
    record = json.loads((tmp_path / command.RECORD).read_text())
    assert {name: of["counts"] for name, of in record.items()} == {
        "inputs": {"tried": 4},
        "kills": {"tried": 5},
    }
    assert all(of["short"] and of["revision"] and of["date"] for of in record.values())


def test_an_input_that_ends_in_a_traceback_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr("salun_core.experiments.runs.params.check_plain", lambda *_: {}["nothing"])
    with pytest.raises(Difference, match="KeyError"):
        inputs(Effort(True, tmp_path, random.Random(0)))


def test_damage_is_damage():
    rng, text = random.Random(0), b'{"seconds": 0.5, "UA": 0, "name": "x"}'
    assert all(change(text, rng) != text for name, change in DAMAGES.items() if name != "cut short")


@pytest.mark.slow
def test_a_store_that_takes_damaged_files_is_found(monkeypatch, tmp_path):
    """Without its digests the store would hand out edited numbers."""
    effort = Effort(True, tmp_path, random.Random(1))
    effort.reference("classification")
    monkeypatch.setattr("salun_core.experiments.runs.table._check", lambda entry, outputs, path: entry[1])
    run = Small("classification", tmp_path / "edited")
    shutil.copytree(tmp_path / "classification-alone", run.out)
    before = run.rows()
    for file in (run.out / "measured").glob("UA-*.json"):
        file.write_text(file.read_text().replace("0.", "0.9"))
    assert run.rows() != before
