"""Tooltips: their place agrees with the drawn mark, their text with the stored result."""

import io
import math
import re

import matplotlib as mpl
import numpy as np
import pytest
import result_frames
from bs4 import BeautifulSoup
from PIL import Image

from salun_core.pages.figures import chart as charts
from salun_core.pages.figures import classification as figures
from salun_core.pages.figures import sample_grids
from salun_core.pages.figures import text_to_image as figures_text
from salun_core.pages.tooltips import Tooltip, origin_of, origins_of_mean, overlay

pytestmark = pytest.mark.long

CELLS = result_frames.classification()
SCENARIO = CELLS["scenario"].iloc[0]


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


def tooltips_in(text):
    return BeautifulSoup(text, "html.parser").select(".origin")


def percent(tip, name):
    return float(re.search(rf"{name}:([-\d.]+)%", tip["style"])[1]) / 100


@pytest.mark.parametrize("log", [False, True])
def test_a_tooltip_lies_on_its_mark(log):
    with charts.style():
        fig, axes = charts.panels(1, 2, height=2.7)
        axis = axes[1]
        axis.plot([1, 40, 100], [5, 7, 9], color="black")
        axis.plot(40, 7, "s", color="red", ms=8, mew=0)
        axis.set(xlabel="a name", ylabel="another\nof two lines", xscale="log" if log else "linear")
        fig.legend(["a"], loc="outside upper center")
    chart = charts.Chart(fig, "text", tooltips=(Tooltip(axis, "here", 40, 7),))
    drawn = np.asarray(Image.open(io.BytesIO(chart.png())).convert("RGB")).astype(int)
    red = (drawn[..., 0] > 200) & (drawn[..., 1:].max(axis=-1) < 60)
    y, x = (places.mean() + 0.5 for places in red.nonzero())
    (tip,) = tooltips_in(chart._repr_html_())
    assert percent(tip, "left") == pytest.approx(x / drawn.shape[1], abs=0.004)
    assert percent(tip, "top") == pytest.approx(y / drawn.shape[0], abs=0.008)


def test_a_tooltip_without_a_place_covers_its_picture():
    fig, axes = charts.panels(1, 2, height=2)
    left, right = tooltips_in(overlay(fig, [Tooltip(axis, "") for axis in axes]))
    assert percent(left, "left") + percent(left, "width") < percent(right, "left")
    assert percent(left, "width") == pytest.approx(percent(right, "width"), abs=0.01)
    assert 0 < percent(left, "top") < percent(left, "top") + percent(left, "height") < 1


def test_what_was_not_drawn_has_no_tooltip():
    fig, axis = charts.panels(height=2)
    assert overlay(fig, [Tooltip(axis, "diverged", math.nan, 1)]) == ""


def test_texts_are_texts():
    fig, axis = charts.panels(height=2)
    (tip,) = tooltips_in(overlay(fig, [Tooltip(axis, "a < b\n\"c\" & 'd'", 0.5, 0.5)]))
    assert tip["title"] == "a < b\n\"c\" & 'd'"


def test_a_page_holds_the_text_of_a_mark_once():
    fig, axis = charts.panels(height=2)
    assert overlay(fig, [Tooltip(axis, "cell-0123", 0.5, 0.5)]).count("cell-0123") == 1


def test_a_result_names_its_run_code_and_cell():
    row = CELLS[CELLS["method"] == "salun"].iloc[0]
    lines = origin_of(row, "UA 1.00%").split("\n")
    assert lines[:2] == [
        f"SalUn, salient mask, keep {row['keep']:g}, {SCENARIO}, seed {row['seed']}",
        "UA 1.00%",
    ]
    assert f"lr {row['settings']['lr']:.3g}" in lines[2]
    assert str(row["device"]) in lines[3]
    assert row["code"] in lines[4]
    assert lines[-1] == row["cell"]


def test_what_a_row_lacks_is_left_out():
    assert origin_of({"method": "ga", "seconds": math.nan, "settings": None}) == "GA"


def test_a_mean_names_every_result_behind_it():
    rows = CELLS[(CELLS["method"] == "ga") & (CELLS["scenario"] == SCENARIO)].copy()
    text = origins_of_mean(rows, "UA")
    assert f"{100 * rows['UA'].astype(float).mean():.2f}%, mean of {len(rows)}" in text
    assert all(cell in text for cell in rows["cell"])
    assert "gap UA 1.00 points, mean of" in origins_of_mean(rows.assign(**{"gap UA": 0.01}), "gap UA")
    rows.loc[rows.index[0], "UA"] = math.nan
    assert f"mean of {len(rows) - 1}, 1 diverged" in origins_of_mean(rows, "UA")
    rows["UA"] = math.nan
    assert origins_of_mean(rows, "UA").startswith(f"GA, {SCENARIO}: UA diverged")


def test_a_mean_under_a_foreign_mask_names_the_mask():
    rows = CELLS[(CELLS["method"] == "rl") & (CELLS["scenario"] == SCENARIO)].assign(mask="random")
    assert origins_of_mean(rows, "UA").startswith(f"RL + random mask, {SCENARIO}: UA ")


def test_figures_that_are_looked_at_first_name_every_result():
    chart = figures.gap_to_retrain(CELLS, SCENARIO)
    texts = {tip.text.rsplit("\n", 1)[-1] for tip in chart.tooltips}
    mine = CELLS[(CELLS["scenario"] == SCENARIO) & (CELLS["replica"] == 0) & (CELLS["method"] != "retrain")]
    assert set(mine["cell"]) <= texts


def test_pictures_of_a_grid_say_which_model_drew_them():
    import torch

    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 0, 1, 1])
    rows = {"Original": (images, labels), "SalUn": (images, labels)}
    chart = sample_grids.method_grid(rows, ["a", "b"], forgotten=1, origins={"SalUn": "cell-1"})
    assert [tip.text for tip in chart.tooltips] == [
        f"SalUn, asked for {name}, noise {k}\ncell-1" for name in "ab" for k in range(2)
    ]
    assert len(tooltips_in(chart._repr_html_())) == 4


def test_erasure_by_prompt_shows_both_and_the_cell():
    cells = CELLS[CELLS["method"].isin(["ga", "salun"]) & (CELLS["scenario"] == SCENARIO)].assign(
        **{"UA direct": 0.25, "OA direct": 0.75, "forgotten": "seven", "n_class": 10}
    )
    chart = figures_text.erasure_by_prompt(cells)
    assert {tip.text.split("\n")[1] for tip in chart.tooltips} == {
        f"UA 25.0%, other classes 75.0% over {cells['seed'].nunique()} runs"
    }
