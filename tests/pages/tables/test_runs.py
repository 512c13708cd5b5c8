"""What is said of tuning and parameters."""

import pandas as pd
import pytest
import result_frames

from salun_core.experiments.runs.tuning import judged
from salun_core.pages.tables import runs

TUNING = result_frames.tuning()


def by_method(tuning):
    return runs.tuning_table(tuning).frame.set_index("Method")


def test_a_choice_inside_what_was_tried_is_without_remark():
    frame = by_method(TUNING)
    assert frame.loc["FT", ["Tried", "Searched", "Chosen", "Remark"]].tolist() == [
        3,
        "lr 0.1 to 0.3",
        "lr 0.2",
        "",
    ]
    assert float(frame.loc["FT", "Distance"]) == pytest.approx(10)
    assert float(frame.loc["FT", "Worst"]) == pytest.approx(30)


def test_a_choice_at_an_end_is_named_and_bold():
    frame = by_method(TUNING)
    assert "lr at the edge of the range tried" in frame.loc["GA", "Remark"]
    assert runs.tuning_table(TUNING).bold == (1,)


def test_doing_no_more_than_nothing_is_not_tuned():
    assert by_method(TUNING).loc["GA", "Remark"].startswith("not tuned")
    fine = TUNING[TUNING["method"] == "ft"]
    assert "Remark" not in runs.tuning_table(fine).frame


def test_what_is_flagged_is_what_tuning_itself_says():
    cells = result_frames.tuning_cells()
    cells.loc[cells["method"] == "original", [c for c in cells if c.startswith("select_")]] = 0.05
    worse = judged(result_frames.with_distance(cells)).query("method == 'ft'")
    assert by_method(worse).loc["FT", "Remark"].startswith("not tuned")


def test_intervals_say_that_they_lack_the_variance_of_tuning():
    assert "do not reflect" in runs.tuning_table(TUNING).caption
    assert "seeds 1000, 1001" in runs.tuning_table(TUNING).caption


def test_without_tuning_the_table_says_so():
    assert str(runs.tuning_table(pd.DataFrame())).startswith("Tuning is off")


def test_parameters_are_printed_without_marks():
    frame = runs.settings_table({"a": None, "b": [1, 2], "c": {"low": 0.1, "high": 1, "choices": []}}).frame
    assert frame["Value"].tolist() == ["–", "1, 2", "0.1 to 1"]
    assert not runs.settings_table({"a": 1}).numbered
