"""Tables of classifiers agree with the rows behind them."""

import re

import numpy as np
import pytest
import result_frames

from salun_core.errors import UserError
from salun_core.methods import name_of
from salun_core.metrics.gaps import AVERAGE, METRICS, gaps
from salun_core.pages.tables import classification as tables

pytestmark = pytest.mark.long

CELLS = result_frames.classification()
SCENARIO = CELLS["scenario"].iloc[0]
MASKED = result_frames.saliency()
COMPARED = MASKED[MASKED["study"] == "masks"]


def by_method(cells, scenario=SCENARIO):
    return tables.main_table(cells, scenario).frame.set_index("Method")


@pytest.mark.parametrize("scenario", CELLS["scenario"].unique())
def test_the_best_row_has_the_smallest_average_gap(scenario):
    table = tables.main_table(CELLS, scenario)
    mean = (
        gaps(CELLS[CELLS["scenario"] == scenario])
        .query("replica == 0")
        .groupby("method")[AVERAGE]
        .mean()
        .drop(["retrain", "original"])
    )
    assert table.frame.loc[list(table.bold), "Method"].tolist() == [name_of(mean.idxmin())]


def test_the_caption_says_which_rows_are_not_compared():
    said = "smallest average gap bold, {} not compared"
    assert said.format("Original and Retrain") in tables.main_table(CELLS, SCENARIO).caption
    assert said.format("Retrain") in tables.main_table(CELLS[CELLS["method"] != "original"], SCENARIO).caption
    lost = CELLS.assign(UA=CELLS["UA"].where(CELLS["method"].isin(["original", "retrain"])))
    assert "bold" not in tables.main_table(lost, SCENARIO).caption  # as no row is


def test_data_and_network_are_spelled_as_readers_know_them():
    cells = CELLS.assign(dataset="cifar10", arch="resnet9")
    assert tables.main_table(cells, SCENARIO).caption.startswith(f"CIFAR-10, ResNet-9, {SCENARIO}: ")
    cells = CELLS.assign(dataset="my_photos", arch="package:net")
    assert tables.main_table(cells, SCENARIO).caption.startswith(f"my_photos, package:net, {SCENARIO}: ")


def test_a_cell_of_the_table_is_mean_std_and_gap():
    mine = CELLS.query("scenario == @SCENARIO and method == 'rl'")["UA"]
    text = by_method(CELLS).loc["RL", "UA"]
    assert text.startswith(f"{100 * mine.mean():.2f} ± {100 * mine.std():.2f}")
    assert re.search(r"\(\d+\.\d\d\)$", text)
    assert "(" not in by_method(CELLS).loc["Retrain", "UA"]


def test_the_gap_is_to_the_mean_of_all_replicas():
    moved = CELLS.copy()
    second = (moved["method"] == "retrain") & (moved["replica"] == 1)
    moved.loc[second, "UA"] += 0.02
    before, after = (tables.methods_table(cells, SCENARIO).set_index("method") for cells in (CELLS, moved))
    # All methods but these lie below Retrain, so half of the shift comes on top of their gap.
    assert after.loc["ft", "UA gap"] == pytest.approx(before.loc["ft", "UA gap"] + 1.0)


def test_runs_of_one_training_seed_count_once():
    twice = CELLS.loc[np.repeat(CELLS.index, 1 + (CELLS["method"] != "retrain"))].reset_index(drop=True)
    one, both = (tables.methods_table(cells, SCENARIO).set_index("method") for cells in (CELLS, twice))
    assert both.loc["salun", "seeds"] == CELLS["seed"].nunique()
    assert both.loc["salun", f"{AVERAGE} std"] == pytest.approx(one.loc["salun", f"{AVERAGE} std"])


def test_seeds_that_diverged_are_counted():
    lost = CELLS.copy()
    one = (lost["method"] == "iu") & (lost["seed"] == 2) & (lost["scenario"] == SCENARIO)
    every = (lost["method"] == "be") & (lost["scenario"] == SCENARIO)
    lost.loc[one | every, list(METRICS)] = None
    frame = by_method(lost)
    assert frame.loc["IU", "Diverged"] == "1 of 4"
    assert frame.loc["BE", "Diverged"] == "4 of 4"
    assert frame.loc["BE", "UA"] == "diverged"
    assert frame.loc["FT", "Diverged"] == "0 of 4"
    assert "Diverged" not in by_method(CELLS)


def test_every_number_of_the_main_table_names_its_runs():
    table = tables.main_table(CELLS, SCENARIO)
    assert len(table.origins) == len(table.frame) * (len(METRICS) + 2)
    mine = CELLS.query("scenario == @SCENARIO and method == 'ga'")
    index = table.frame.index[table.frame["Method"] == "GA"][0]
    assert all(cell in table.origins[index, "UA"] for cell in mine["cell"])


def test_a_scenario_that_was_not_run_is_one_sentence():
    with pytest.raises(UserError, match="'random 7%'"):
        tables.main_table(CELLS, "random 7%")


def test_masks_side_by_side():
    frame = tables.masks_table(COMPARED).frame.set_index("Method")
    rl = gaps(COMPARED).query("method == 'rl' and mask == 'random'")[AVERAGE]
    assert frame.loc["RL", "random"].startswith(f"{100 * rl.mean():.2f}")


def test_a_release_whose_mask_overflows_is_shown_as_diverged():
    frame = tables.protocols_table(MASKED[MASKED["study"] == "releases"], COMPARED).frame.set_index("Name")
    assert frame.loc["released 2023-12-01", "UA"] == "diverged"
    assert frame.loc["paper", "UA"].startswith("6.00")


def test_costs_are_beside_those_of_retrain():
    frame = tables.cost_table(CELLS, SCENARIO, result_frames.tuning()).frame.set_index("Method")
    assert frame.loc["FT", ["RTE (s)", "of Retrain", "Images seen"]].tolist() == ["10.00", "10%", "20%"]
    assert (frame.loc["FT", "Tuning"], frame.loc["FT", "Break-even"]) == ("260%", "2.9")
    assert frame.loc["RL", "Break-even"] == "–"  # not tuned
    assert "FLOPs" not in frame
    counted = CELLS.assign(flops=[4e12 if method == "retrain" else 1e12 for method in CELLS["method"]])
    table = tables.cost_table(counted, SCENARIO)
    assert set(table.frame["FLOPs"]) == {"25%"}
    assert "4e+12 floating-point operations" in table.caption
    assert not {"Tuning", "Break-even"} & set(table.frame)


def test_a_seed_that_diverged_is_said_where_columns_are_settings():
    part = result_frames.stability().query("study == 'shares'").copy()
    one = (part["method"] == "iu") & (part["seed"] == 0) & (part["scenario"] == "random 50%")
    part.loc[one, "UA"] = None
    assert (
        tables.shares_table(part).frame.set_index("Method").loc["IU", "random 50%"].endswith("(1 diverged)")
    )
