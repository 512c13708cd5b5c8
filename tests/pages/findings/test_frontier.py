"""Frontiers of generative models from rows with known answers."""

import math

import pandas as pd
import pytest

from salun_core.pages.figures import frontier as figures
from salun_core.pages.findings.frontier import frontiers, has_frontier, neighbour
from salun_core.pages.tables.frontier import frontier_table
from salun_core.pages.text import frontier as text
from tests.generated_frames import strengths as made

pytestmark = pytest.mark.long


def test_methods_are_ordered_by_what_they_leave_out_of_the_mean_of_all_retrains() -> None:
    found = frontiers(made())
    assert [one.method for one in found.methods] == ["salun", "rl", "ga"]
    salun, rl, ga = found.methods
    assert rl.mean == pytest.approx(0.25)
    assert salun.mean == pytest.approx(0.0)  # the mean Retrain keeps 0.95
    # GA: half of the rectangle at 0.8 of 0.95
    assert ga.mean == pytest.approx(1 - 0.5 * 0.8 / 0.95)
    assert ga.interval == pytest.approx((ga.mean, ga.mean))
    assert found.floor == pytest.approx(0.05)  # 0.9 beside 1.0 leaves out a tenth, 1.0 beside 0.9 nothing
    assert (found.seeds, found.runs, found.forgotten) == (2, 2, ("3",))


def test_the_nearest_strength_and_the_neighbour_are_named() -> None:
    found = frontiers(made())
    assert [one.nearest.name for one in found.methods] == [1.0, 1.0, 0.1]
    table = frontier_table(made())
    assert "3 (8)" in table.caption
    assert table.frame.set_index("Method").loc["GA", "Neighbour"] == "80.0"
    assert (neighbour("7"), neighbour("9"), neighbour("frog")) == ("1", "4", None)


def test_doing_nothing_leaves_out_everything() -> None:
    found = frontiers(made())
    assert found.nothing.tolist() == [1.0, 1.0]
    assert found.noise.tolist() == pytest.approx([0.05, 0.05])
    assert found.method("ga", "none") is found.methods[2]
    assert found.method("ga", "random") is None


def test_without_a_replica_there_is_no_floor() -> None:
    assert math.isnan(frontiers(made(replicas=False)).floor)
    assert frontier_table(made(replicas=False)).frame["Left out (%)"].iloc[-1] == "–"


def test_rows_without_strengths_have_no_frontier() -> None:
    cells = made()
    assert has_frontier(cells)
    assert not has_frontier(cells[cells["study"] != "frontier"])
    assert not has_frontier(cells[~cells["method"].isin(["retrain", "original"])])
    assert not has_frontier(pd.DataFrame())


def test_without_retrain_the_goal_is_forgetting_everything_and_drawing_the_others_as_before() -> None:
    cells = made()
    cells = cells[cells["method"] != "retrain"]
    found = frontiers(cells)
    assert not found.retrained
    original = cells[cells["method"] == "original"]
    assert found.goal["UA"] == 1 and found.goal["OA"] == pytest.approx(original["OA"].mean())
    rl = found.method("rl", "random")
    assert rl is not None and rl.mean > 0 and math.isnan(found.floor)
    table = frontier_table(cells)
    assert table.frame["Method"].iloc[-1] == "The ideal"
    assert "2 unlearning seeds" in table.caption and "the ideal's UA" in table.caption
    chart = figures.frontiers(cells)
    assert (
        "Of what the ideal reaches" in chart.alt
        and "Retrain" not in chart.alt + chart.caption + table.caption.replace("no Retrain", "")
    )


def test_masks_at_equal_settings_are_compared_where_they_differ_most() -> None:
    cells = made()
    slow = (cells["mask"] == "random") & (cells["strength"] == 0.1)
    cells.loc[slow, "UA"] = 0.1
    assert (
        "0.1 times the default steps, UA is 50.0% under the salient mask and 10.0% under the random mask"
        in text.speed(frontiers(cells))
    )
    assert text.speed(frontiers(cells[cells["mask"] != "random"])) == ""


def test_the_figure_says_who_leaves_out_least_and_has_a_tooltip_for_every_point() -> None:
    chart = figures.frontiers(made())
    assert "SalUn leaves out the least" in chart.alt
    # Of GA two points lie outside the panel of other classes, of the random mask one; Retrain is in two panels.
    assert len(chart.tooltips) == 3 * 6 - 3 + 2


def test_methods_that_leave_out_the_same_are_named_together_and_adapters_are_no_mask() -> None:
    cells = made()
    salun = cells[(cells["mask"] == "salient") & (cells["study"] == "frontier")]
    cells = pd.concat([cells, salun.assign(method="rl", mask="lora")], ignore_index=True)
    chart = figures.frontiers(cells)
    assert "SalUn and RL with adapters leave out the least" in chart.alt
    assert "adapters" not in text.speed(frontiers(cells))
    assert all(0 <= one.interval[0] <= one.interval[1] <= 1 for one in frontiers(cells).methods)
