"""Frontiers of generative models from rows with known answers."""

import math

import pandas as pd
import pytest

from salun_core.pages.figures import frontier as figures
from salun_core.pages.findings.frontier import frontiers, has_frontier, neighbour
from salun_core.pages.tables.frontier import frontier_table
from tests.generated_frames import row

CLASSES = ["8", "3", "4"]


def made(*, replicas: bool = True) -> pd.DataFrame:
    """Two seeds: SalUn at full strength does what Retrain does, GA trades one for the other."""
    rows = []
    for seed in (0, 1):
        shared = {
            "seed": seed,
            "unlearning_seed": 0,
            "forgotten": "3",
            "classes": CLASSES,
            "strength": math.nan,
        }
        names = iter(range(100))

        def add(method: str, mask: str = "none", **values: float | str) -> None:
            mine = {**shared, **values, "cell": f"{method}-{shared['seed']}-{next(names)}"}  # noqa: B023
            rows.append(row(method, mask, **mine))

        add("original", ua=0.0, oa=1.0, study="methods")
        add("retrain", ua=1.0, oa=1.0, study="methods")
        if replicas:
            add("retrain", ua=1.0, oa=0.9, study="methods", replica=1)
        for strength, salun, ga in ((0.1, (0.5, 1.0), (0.5, 0.8)), (1.0, (1.0, 0.95), (1.0, 0.0))):
            add("salun", "salient", ua=salun[0], oa=salun[1], study="frontier", strength=strength)
            add("ga", ua=ga[0], oa=ga[1], study="frontier", strength=strength)
        add("salun", "salient", ua=0.0, oa=0.0, study="methods")  # not a part of the frontier
    return pd.DataFrame(rows)


def test_methods_are_ordered_by_what_they_leave_out_of_the_mean_of_all_retrains() -> None:
    found = frontiers(made())
    assert [one.method for one in found.methods] == ["salun", "ga"]
    salun, ga = found.methods
    assert salun.mean == pytest.approx(0.0)  # the mean Retrain keeps 0.95
    # GA: half of the rectangle at 0.8 of 0.95
    assert ga.mean == pytest.approx(1 - 0.5 * 0.8 / 0.95)
    assert ga.interval == pytest.approx((ga.mean, ga.mean))
    assert found.floor == pytest.approx(0.05)  # 0.9 beside 1.0 leaves out a tenth, 1.0 beside 0.9 nothing
    assert (found.seeds, found.runs, found.forgotten) == (2, 2, ("3",))


def test_the_nearest_strength_and_the_neighbour_are_named() -> None:
    found = frontiers(made())
    assert [one.nearest.name for one in found.methods] == [1.0, 0.1]
    table = frontier_table(made())
    assert "3 (8)" in table.caption
    assert table.frame.set_index("Method").loc["GA", "Neighbour"] == "80.0"
    assert (neighbour("7"), neighbour("9"), neighbour("frog")) == ("1", "4", None)


def test_without_a_replica_there_is_no_floor() -> None:
    assert math.isnan(frontiers(made(replicas=False)).floor)
    assert frontier_table(made(replicas=False)).frame["Left out (%)"].iloc[-1] == "–"


def test_rows_without_strengths_have_no_frontier() -> None:
    cells = made()
    assert has_frontier(cells)
    assert not has_frontier(cells[cells["study"] != "frontier"])
    assert not has_frontier(cells[cells["method"] != "retrain"])
    assert not has_frontier(pd.DataFrame())


def test_the_figure_says_who_leaves_out_least_and_has_a_tooltip_for_every_point() -> None:
    chart = figures.frontiers(made())
    assert "SalUn leaves out least" in chart.alt
    assert len(chart.tooltips) == 2 * (2 * 2 + 1)
