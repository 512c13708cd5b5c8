"""The campaign ends at the first difference, and its record is what it tried."""

import json
import random
import shutil
from collections import Counter

import pytest

from campaign import __main__ as command
from campaign.parts import DAMAGES, Difference, Effort, Part, inputs
from campaign.small import Small
from salun_core.pages.campaign import tried as tried_table

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
    assert list(record) == ["inputs", "kills"]
    assert {name: of["counts"] for name, of in record.items()} == {
        "inputs": {"tried": 4},
        "kills": {"tried": 5},
    }
    assert all(of["short"] and of["revision"] and of["date"] for of in record.values())


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Parts that only say that they ran, a record of their own, and the parts that ran."""
    monkeypatch.setattr(command, "project_root", lambda: tmp_path)
    ran = []

    def part(name):
        ran.append(name)
        if ran.count(name) == 1 and name == "kills":
            raise KeyboardInterrupt
        return Part(name, Counter({"tried": 1}))

    for name in command.PARTS:
        monkeypatch.setitem(command.PARTS, name, lambda _, name=name: part(name))
    return ran


def test_a_short_part_does_not_replace_a_full_one(tried, tmp_path, capsys):
    assert command.main(["inputs", "--record"]) == 0
    before = (tmp_path / command.RECORD).read_bytes()
    assert command.main(["damage", "inputs", "--short", "--record"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and tried == ["inputs"]  # before anything is tried
    assert command.main(["inputs", "--short"]) == 0
    assert (tmp_path / command.RECORD).read_bytes() == before
    assert command.main(["damage", "--short", "--record"]) == command.main(["damage", "--record"]) == 0
    assert not json.loads((tmp_path / command.RECORD).read_text())["damage"]["short"]


def test_an_interrupted_campaign_goes_on_with_what_is_left(tried, monkeypatch, tmp_path, capsys):
    names = list(command.PARTS)
    assert command.main(["--record"]) == 130
    done = names[: names.index("kills")]
    assert list(json.loads((tmp_path / command.RECORD).read_text())) == done
    tried[:] = ["kills"]  # it is not interrupted again
    capsys.readouterr()
    assert command.main(["--record", "--resume"]) == 0
    assert tried[1:] == names[names.index("kills") :]
    said = capsys.readouterr().out
    record = json.loads((tmp_path / command.RECORD).read_text())
    assert all(f"{name}: recorded on" in said and record[name]["revision"] in said for name in done)
    assert list(record) == names
    monkeypatch.setattr(command, "code", lambda: "other code")
    assert command.main(["inputs", "--record", "--resume"]) == 0
    assert tried[-1] == "inputs"


def test_code_that_changes_meanwhile_is_not_what_was_tried(tried, monkeypatch, tmp_path):
    digests = iter(["one", "another"])
    monkeypatch.setattr(command, "code", lambda: next(digests))
    assert command.main(["inputs", "--record"]) == 2
    assert not (tmp_path / command.RECORD).exists()
    assert command.main(["inputs", "--resume"]) == 2


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({}, "The last full campaign, at revision a:"),
        ({"revision": "b"}, "2 of 2 in full and at 2 revisions of the code"),
        ({"short": True}, "Each part as it was last tried, 1 of 2 in full and of one revision"),
    ],
)
def test_the_page_says_full_campaign_only_of_one(change, title, monkeypatch, tmp_path):
    part = {"counts": {"x": 1}, "seconds": 90, "date": "2026-01-01", "revision": "a", "short": False}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/campaign.json").write_text(json.dumps({"inputs": part, "kills": part | change}))
    monkeypatch.setattr("salun_core.pages.campaign.project_root", lambda: tmp_path)
    table = tried_table()
    assert title in table.caption
    assert table.frame["Form"].tolist() == ["full", "short" if change.get("short") else "full"]


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
