"""What is said of tuning, provenance and parameters."""

import pandas as pd
import pytest
import result_frames

from salun_core.pages.tables import runs

TUNING = result_frames.tuning()


def found(tuning, method):
    rows = tuning[tuning["method"] == method]
    return runs.tuned(rows, runs.untouched(tuning, "random 10%"))


def test_a_choice_inside_what_was_tried_is_without_remark():
    assert found(TUNING, "ft")["at an end"] == []
    assert found(TUNING, "ft")["settings"]["lr"] == 0.2
    assert found(TUNING, "ft")["tried"] == 3
    assert not found(TUNING, "ft")["does nothing"]


def test_a_choice_at_an_end_is_named():
    turned = TUNING.assign(chosen=TUNING["settings"].map(lambda s: s["lr"] == 0.3))
    assert found(turned, "ft")["at an end"] == ["lr"]


def test_doing_next_to_nothing_is_not_tuned():
    assert found(TUNING, "ga")["does nothing"]
    frame = runs.tuning_table(TUNING).frame.set_index("Method")
    assert frame.loc["GA", "Remark"].startswith("not tuned")
    assert frame.loc["FT", "Remark"] == ""
    assert runs.tuning_table(TUNING).bold == (1,)
    without = TUNING[TUNING["method"] != "original"]  # nothing to compare with
    assert not found(without, "ga")["does nothing"]


def test_tuning_seeds_are_averaged():
    two = result_frames.tuning(seeds=(1000, 1001))
    two.loc[(two["seed"] == 1001) & (two["method"] == "ft"), "distance"] += 0.1
    assert found(two, "ft")["distance"] == pytest.approx(0.15)
    assert found(two, "ft")["tried"] == 3
    assert "seeds 1000, 1001" in runs.tuning_table(two).caption


def test_intervals_say_that_they_lack_the_variance_of_tuning():
    assert "not in them" in runs.tuning_table(TUNING).caption


def test_without_tuning_the_table_says_so():
    assert runs.tuning_table(pd.DataFrame()).frame.empty


def test_parameters_are_printed_without_marks():
    frame = runs.settings_table({"a": None, "b": [1, 2], "c": {"low": 0.1, "high": 1, "choices": []}}).frame
    assert frame["Value"].tolist() == ["–", "1, 2", "0.1 to 1"]
    assert not runs.settings_table({"a": 1}).numbered
