"""Results of runs, and what is said where nothing was recorded."""

import pandas as pd
import pytest
import result_frames

from salun_core.pages import results


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Recorded runs in a folder of the test; ``read_table`` gives made-up rows."""
    monkeypatch.setattr(results, "recorded_folder", lambda: tmp_path)
    return tmp_path


def test_parts_of_an_experiment_have_one_name():
    rows = pd.DataFrame({"study": ["masks", "density"], "UA": [1, 2]})
    assert results.of_study(rows, "density")["UA"].tolist() == [2]
    assert len(results.of_study(rows.drop(columns="study"), "density")) == 2


def test_what_was_not_recorded_is_said_with_the_command(recorded):
    found = results.recorded("cifar10-cpu", "saliency")
    assert not found
    assert found.scenarios == []
    assert "Nothing is recorded" in str(found.absent)
    assert "python -m salun_core record saliency cifar10-cpu" in str(found.absent)
    assert results.recorded_runs() == []


def test_recorded_rows_come_apart_into_reported_and_tried(recorded, monkeypatch):
    cells = pd.concat(
        [result_frames.classification(study="methods"), result_frames.tuning_cells()], ignore_index=True
    )
    (recorded / "mine" / "results").mkdir(parents=True)
    (recorded / "mine" / "results" / "classification.json").write_text(
        '{"params": {"seeds": [0]}, "rows": []}'
    )
    monkeypatch.setattr(results, "read_table", lambda folder, experiment: cells)
    found = results.recorded("mine", "classification")
    assert len(found.rows) == cells["reported"].sum()
    assert set(found.tuning["method"]) == {"ft", "ga"}
    assert found.tuning.loc[found.tuning["chosen"], "seed"].tolist() == [1000, 1000, 1001, 1001]
    assert found.settings == {"seeds": [0]}
    assert found.scenarios == ["random 10%", "class airplane"]
    assert "gap" in found.rows
    assert [folder.name for folder in results.recorded_runs()] == ["mine"]
    (run,) = [run for run in results.all_runs(recorded / "none") if run.name == "mine"]
    assert len(run.rows("classification")) == len(found.rows)
    assert run.rows("saliency").empty
