# ruff: noqa: E402
"""Tables and figures of stored results: what they say agrees with the numbers behind them."""

import pytest

pytest.skip("being rewritten for metrics computed at table time", allow_module_level=True)


import re

import matplotlib as mpl
import pandas as pd
import pytest

from salun_core.methods import METHODS, name_of
from salun_core.metrics.gaps import AVERAGE, gaps
from salun_core.pages import tables
from salun_core.pages.figures import charts
from salun_core.pages.text import classification as report
from salun_core.pages.text.classification import RecordedParams

FOLDER = RecordedParams.load({}).folder()
CELLS, TUNING = report.recorded_cells(FOLDER)
SCENARIOS = list(dict.fromkeys(CELLS["scenario"]))
MASKED, _ = report.recorded_cells(FOLDER, "saliency")
COMPARED = MASKED[MASKED["study"] == "masks"]
TABLE1 = report.published_folder() / "table1_cifar10_resnet18_random.csv"

FIGURES = {
    "gap_to_retrain": lambda cells, scenario: charts.gap_to_retrain(cells, scenario),
    "trade_off": lambda cells, scenario: charts.trade_off(cells, scenario),
    "break_even": lambda cells, scenario: charts.break_even(cells, scenario),
    "published_beside": lambda cells, scenario: charts.published_beside(
        cells, scenario, TABLE1, "random data forgetting 10%"
    ),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_best_row_has_the_smallest_average_gap(scenario):
    table = tables.main_table(CELLS, scenario)
    mean = gaps(CELLS.query("scenario == @scenario and replica == 0")).groupby("method")[AVERAGE].mean()
    best = mean.drop(["retrain", "original"]).idxmin()
    assert table.frame.loc[list(table.bold), "Method"].tolist() == [name_of(best)]


def test_a_cell_of_the_table_is_mean_std_and_gap():
    mine = CELLS.query("scenario == @SCENARIOS[0] and method == 'rl' and replica == 0")["UA"].astype(float)
    table = tables.main_table(CELLS, SCENARIOS[0]).frame.set_index("Method")
    text = table.loc["RL", "UA"]
    assert text.startswith(f"{100 * mine.mean():.2f} ± {100 * mine.std():.2f}")
    assert re.search(r"\(\d+\.\d\d\)$", text)
    assert "(" not in table.loc["Retrain", "UA"]


def test_the_caption_has_n_and_what_varies():
    said = tables.main_table(CELLS, SCENARIOS[0]).caption
    assert f"{CELLS['seed'].nunique()} seeds" in said
    assert f"{CELLS.iloc[0]['n_forget']:.0f} forget images" in said


def test_a_table_in_html_keeps_markup_out():
    html = tables.Table(pd.DataFrame({"Method": ["<b>x</b>"], "UA": ["1\n(2)"]}), "a < b")._repr_html_()
    assert "<b>x" not in html
    assert "&lt;b&gt;" in html
    assert "1<br>(2)" in html
    assert "A &lt; b" in html


def test_published_numbers_are_as_printed_in_the_paper():
    table = tables.published_table(TABLE1).frame.set_index("Method")
    assert table.loc["Retrain", "UA"].startswith("5.24")
    assert table.loc["SalUn", AVERAGE] == table[AVERAGE].drop("Retrain").min()


def test_the_choice_at_an_end_of_what_was_tried_is_marked():
    rows = pd.DataFrame(
        {
            "scenario": "s",
            "method": "ft",
            "mask": "none",
            "seed": 9,
            "settings": [{"lr": lr} for lr in (0.1, 0.2, 0.3)],
            "distance": [0.3, 0.1, 0.2],
            "chosen": [False, True, False],
        }
    )
    assert tables.tuning_table(rows).frame["Chosen"].tolist() == ["lr 0.2"]
    rows["chosen"] = [True, False, False]
    table = tables.tuning_table(rows)
    assert table.frame["Chosen"].tolist() == ["lr 0.1*"]
    assert "largest or smallest" in table.caption


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_figure_says_what_it_shows_and_how_much_stands_behind_it(name, seeds, scenario):
    few = CELLS[CELLS["seed"] < seeds]
    chart = FIGURES[name](few, scenario)
    assert re.search(r"\d", chart.alt), chart.alt
    assert f"n = {seeds}" in chart.caption or "pairs" in chart.caption, chart.caption
    assert "nan" not in chart.alt + chart.caption
    assert chart.svg().startswith(b"<?xml")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_does_without_methods_that_were_not_run(name):
    few = CELLS[CELLS["method"].isin(["retrain", "salun"])]
    assert FIGURES[name](few, SCENARIOS[0]).svg()


def test_a_method_has_one_colour_everywhere():
    looks = [charts.look(name) for name in METHODS]
    assert len(set(looks)) == len(looks)
    assert charts.look("salun") == charts.look("salun")


def test_a_figure_is_the_same_every_time():
    assert charts.trade_off(CELLS, SCENARIOS[0]).svg() == charts.trade_off(CELLS, SCENARIOS[0]).svg()


def test_masks_side_by_side():
    chart = charts.masks_compared(COMPARED, "random 10%")
    assert f"n = {COMPARED['seed'].nunique()}" in chart.caption
    frame = report.masks_table(COMPARED).frame.set_index("Method")
    rl = gaps(COMPARED.query("replica == 0")).query("method == 'rl' and mask == 'random'")[AVERAGE]
    assert frame.loc["RL", "random"].startswith(f"{100 * rl.mean():.2f}")


def test_a_release_whose_mask_overflows_is_shown_as_diverged():
    frame = report.protocols_table(MASKED[MASKED["study"] == "releases"], COMPARED).frame
    assert frame.query("Name == 'released 2023-12-01'")["UA"].tolist() == ["diverged"]


def test_sentences_follow_from_the_cells():
    """Turn the table round, and the sentence names another method."""
    before = report.sentences(CELLS)
    turned = CELLS.copy()
    first = turned.query("scenario == @SCENARIOS[0] and method == 'retrain' and replica == 0")
    for seed, row in first.set_index("seed").iterrows():
        rows = (turned["scenario"] == SCENARIOS[0]) & (turned["method"] == "bs") & (turned["seed"] == seed)
        for name in ("UA", "RA", "TA", "MIA"):
            turned.loc[rows, name] = row[name]
    after = report.sentences(turned)
    assert "Nearest to Retrain is BS, with an average gap of 0.00" in after
    assert before != after
