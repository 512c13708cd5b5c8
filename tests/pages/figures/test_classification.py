"""Figures of classifiers: complete, repeatable, and possible with whatever was run."""

import io
import re

import matplotlib as mpl
import pytest
import result_frames

from salun_core.methods import METHODS
from salun_core.pages.figures import chart as charts
from salun_core.pages.figures import classification as figures
from salun_core.pages.figures import masks as mask_figures
from salun_core.pages.figures import stability as stability_figures

pytestmark = pytest.mark.long

CELLS = result_frames.classification()
SCENARIO = CELLS["scenario"].iloc[0]
SALIENCY = result_frames.saliency()
STABILITY = result_frames.stability()

FIGURES = {
    "gap_to_retrain": figures.gap_to_retrain,
    "trade_off": figures.trade_off,
    "break_even": figures.break_even,
    "published_beside": lambda cells, scenario: figures.published_beside(
        cells, scenario, "random data forgetting 10%"
    ),
}
OTHERS = {
    "masks_compared": lambda: mask_figures.masks_compared(
        SALIENCY[SALIENCY["study"] == "masks"], "random 10%"
    ),
    "over_density": lambda: mask_figures.over_density(
        SALIENCY[SALIENCY["study"] == "density"], SALIENCY[SALIENCY["method"] == "retrain"]
    ),
    "mask_agreement": lambda: mask_figures.mask_agreement(result_frames.agreement()),
    "over_shares": lambda: stability_figures.over_shares(STABILITY[STABILITY["study"] == "shares"]),
    "ua_over_settings": lambda: stability_figures.ua_over_settings(
        STABILITY[STABILITY["study"] == "settings"]
    ),
    "class_by_class": lambda: figures.class_by_class(CELLS.assign(forgotten=CELLS["scenario"])),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("scenario", CELLS["scenario"].unique())
def test_a_figure_has_a_finding_in_data_and_in_words(name, seeds, scenario):
    chart = FIGURES[name](CELLS[CELLS["seed"] < seeds], scenario)
    assert chart.finding is not None
    assert chart.alt in chart.caption
    assert "nan" not in chart.alt + chart.caption
    assert chart.svg().startswith(b"<?xml")


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_figures_have_one_too(name):
    chart = OTHERS[name]()
    assert chart.finding is not None
    assert chart.alt in chart.caption
    assert "nan" not in chart.alt + chart.caption
    assert chart.svg().startswith(b"<?xml")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_does_without_methods_that_were_not_run(name):
    few = CELLS[CELLS["method"].isin(["retrain", "salun"])]
    assert "nan" not in FIGURES[name](few, SCENARIO).alt


def test_a_figure_is_the_same_every_time():
    assert figures.trade_off(CELLS, SCENARIO).svg() == figures.trade_off(CELLS, SCENARIO).svg()


def test_a_figure_is_stored_without_what_nobody_sees():
    chart = figures.trade_off(CELLS, SCENARIO)
    whole = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "salun"}):
        chart.figure.savefig(whole, format="svg", bbox_inches="tight", transparent=True)
    svg = chart.svg().decode()
    assert "<!--" not in svg and "<metadata>" not in svg
    assert not re.search(r"[1-9]\d*\.\d{3}", svg)
    assert len(chart.image().encode()) < len(whole.getvalue())  # in base64 it would be a third longer
    before, after = (numbers_drawn(text) for text in (whole.getvalue().decode(), svg))
    assert after == pytest.approx(before, abs=0.006)  # letters and their scale among them


def numbers_drawn(svg):
    """All numbers of paths, places and transformations."""
    values = re.findall(r'\s(?:d|x|y|transform)="([^"]*)"', svg)
    return [float(number) for value in values for number in re.findall(r"-?\d+(?:\.\d+)?", value)]


def test_the_cost_of_tuning_is_drawn_where_it_is_known():
    def labels(chart):
        return [text.get_text() for text in chart.figure.axes[0].get_legend().get_texts()]

    assert "seconds with tuning" not in labels(figures.break_even(CELLS, SCENARIO))
    tuned = figures.break_even(CELLS, SCENARIO, result_frames.tuning())
    assert "seconds with tuning" in labels(tuned)


def test_an_interval_is_over_training_seeds():
    rows = CELLS[(CELLS["method"] == "ft") & (CELLS["scenario"] == SCENARIO)]
    nested = result_frames.pd.concat([rows, rows])

    def ends(frame):
        _, axis = charts.panels(height=2)
        charts.interval(axis, frame, "TA", 0, charts.look("ft"))
        line = next(
            line for line in axis.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
        )
        return list(line.get_xdata())

    assert ends(nested) == pytest.approx(ends(rows))


def test_every_method_has_a_look_of_its_own_also_one_that_was_just_added(monkeypatch):
    assert set(charts.LOOK) <= set(METHODS)
    for name in ("new", "newer"):
        monkeypatch.setitem(METHODS, name, METHODS["ft"])
    colours, markers = zip(*map(charts.look, METHODS), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(METHODS)
    charts.panels(height=2)[1].plot([0], [0], marker=markers[-1], color=colours[-1])  # matplotlib knows both
