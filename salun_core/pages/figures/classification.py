"""Figures of classifiers that forget: gaps to Retrain, accuracy given up, cost, class by class."""

import math
from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.colors import PowerNorm
from matplotlib.ticker import LogLocator, NullFormatter

from salun_core.data.images import ImageData
from salun_core.methods import name_of
from salun_core.metrics.gaps import AVERAGE, METRICS, gaps, noise_floor
from salun_core.pages.figures.chart import Chart, interval, look, panels, style, tooltips_of
from salun_core.pages.findings import classification as findings
from salun_core.pages.findings.classification import Agreement
from salun_core.pages.published import read_published
from salun_core.pages.tables.classification import methods_table
from salun_core.pages.tables.published import TABLE1
from salun_core.pages.text import classification as words
from salun_core.pages.words import counted, data_and_network, diverged


def samples(data: ImageData, *, each: int = 8) -> Chart:
    """The first images of each class (of the first ten), a row a class."""
    classes = data.classes[:10]
    with style():
        fig, axes = panels(len(classes), each, height=0.62 * len(classes), squeeze=False)
        for k, row in enumerate(axes):
            found = (data.labels[: data.n_train] == k).nonzero().view(-1)[:each]
            for axis in row:
                axis.axis("off")
            for axis, i in zip(row, found, strict=False):
                image = data.images[i].permute(1, 2, 0).numpy()
                grey = {"cmap": "gray_r", "vmin": 0, "vmax": 255} if image.shape[2] == 1 else {}
                axis.imshow(image.squeeze(), interpolation="nearest", **grey)
            row[0].set_title(str(classes[k]), loc="left", fontsize=9, pad=1)
    text = f"{data.name}: the first {each} training images of {len(classes)} classes."
    return Chart(
        fig,
        text,
        f"{text} In all {data.n_train:,} training and {len(data.labels) - data.n_train:,} test images.",
        photo=True,
    )


@findings.beside_retrain
def gap_to_retrain(cells: pd.DataFrame, scenario: str) -> Chart:
    """Gap of every method for each metric and on average, with the noise floor behind."""
    part = gaps(cells[cells["scenario"] == scenario])
    part = part[part["method"] != "retrain"]
    floor = noise_floor(cells[cells["scenario"] == scenario])
    columns = [AVERAGE, *(f"gap {m}" for m in METRICS)]
    table = methods_table(cells, scenario)
    table = table[table["method"] != "retrain"].sort_values(AVERAGE, ascending=False)
    order = list(zip(table["method"], table["mask"], strict=True))
    tooltips = []
    with style():
        fig, axes = panels(
            1, 5, height=0.32 * len(order) + 1.1, sharey=True, gridspec_kw={"width_ratios": [1.6, 1, 1, 1, 1]}
        )
        for axis, column in zip(axes, columns, strict=True):
            measured = floor[column].dropna()
            if len(measured):
                axis.axvspan(0, 100 * measured.max(), color="0.88", lw=0)
                axis.axvline(100 * measured.mean(), color="0.6", lw=1)
            for y, (method, mask) in enumerate(order):
                mine = part[(part["method"] == method) & (part["mask"] == mask)]
                interval(axis, mine, column, y, look(method))
                tooltips += tooltips_of(axis, mine, column, y=y)
            axis.set_title("Avg. Gap" if column == AVERAGE else column.removeprefix("gap "))
            axis.set_xlim(left=0)
            axis.grid(axis="x", color="0.92")
            axis.set_axisbelow(True)
        axes[0].set_yticks(range(len(order)), [name_of(*pair) for pair in order])
        fig.supxlabel("gap to Retrain (percentage points)", fontsize=10.5)
    found = findings.ranking(cells, scenario)
    said = words.ranking(found)
    grey = (
        f" Grey: gaps between {counted(found.floor.pairs, 'pair')} of models retrained on one split, and their mean."
        if found.floor
        else ""
    )
    return Chart(
        fig,
        said,
        f"{scenario}. {said} Mean and 95% t interval over n = {found.seeds} training seeds; small dots are runs.{grey}"
        f"{diverged(part)}",
        found,
        tooltips=tuple(tooltips),
    )


@findings.beside_retrain
def trade_off(cells: pd.DataFrame, scenario: str) -> Chart:
    """Unlearning against test accuracy, a point a seed, with Retrain as cross-hair."""
    part = cells[(cells["scenario"] == scenario) & (cells["replica"] == 0)].dropna(subset=["UA", "TA"])
    target = part[part["method"] == "retrain"]
    with style():
        fig, axis = panels(height=4.2)
        axis.axvline(100 * target["UA"].mean(), color="black", lw=0.8, ls="--")
        axis.axhline(100 * target["TA"].mean(), color="black", lw=0.8, ls="--")
        for (method, mask), mine in part.groupby(["method", "mask"], sort=False):
            colour, marker = look(str(method))
            axis.plot(100 * mine["UA"], 100 * mine["TA"], marker, color=colour, alpha=0.35, ms=5, mew=0)
            axis.plot(
                100 * mine["UA"].mean(),
                100 * mine["TA"].mean(),
                marker,
                color=colour,
                mec="white",
                ms=9,
                label=name_of(str(method), str(mask)),
            )
        axis.set(xlabel="UA: forget images misclassified (%)", ylabel="TA: test accuracy (%)")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    found = findings.trade_off(cells, scenario)
    said = words.trade_off(found)
    return Chart(
        fig,
        said,
        f"{scenario}. {said} Small points are single runs (n = {found.seeds} training seeds), large ones means."
        f"{diverged(cells[cells['scenario'] == scenario])}",
        found,
    )


@findings.beside_retrain
def published_beside(cells: pd.DataFrame, scenario: str, setting: str) -> Chart:
    """Average gaps of ours beside those of the paper's Table 1, for every method that both have."""
    ours = methods_table(cells, scenario).set_index("method")[AVERAGE].dropna()
    rows = read_published(TABLE1)
    rows = rows[(rows["setting"] == setting) & (rows["metric"] == AVERAGE) & (rows["verified"] == "yes")]
    paper = dict(zip(rows["method"], rows["value"], strict=True))
    order = sorted((m for m in paper if m != "retrain" and m in ours.index), key=lambda m: -paper[m])
    with style():
        fig, axis = panels(height=0.34 * len(order) + 1)
        for y, m in enumerate(order):
            axis.plot([paper[m], ours[m]], [y, y], color="0.8", lw=1.5, zorder=0)
            axis.plot(
                paper[m], y, "o", mfc="white", mec=look(m)[0], mew=1.8, label="published" if not y else None
            )
            axis.plot(ours[m], y, look(m)[1], color=look(m)[0], label="this run" if not y else None)
        axis.set_yticks(range(len(order)), [name_of(m) for m in order])
        axis.set(xlabel="Avg. Gap to Retrain (percentage points)", xlim=(0, None))
        axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    found = Agreement(rank_correlation([paper[m] for m in order], [ours[m] for m in order]), tuple(order))
    said = words.agreement(found)
    first = cells[cells["scenario"] == scenario].iloc[0]
    return Chart(
        fig,
        said,
        f"{said} Open: the paper's Table 1 (CIFAR-10, ResNet-18, {setting}, 10 trials). Filled: {data_and_network(first)}, "
        f"{scenario}, n = {cells['seed'].nunique()} seeds.",
        found,
    )


@findings.beside_its_cost
def break_even(cells: pd.DataFrame, scenario: str, tuning: pd.DataFrame | None = None) -> Chart:
    """Cost of unlearning against that of retraining: seconds, images seen, and seconds with all of the tuning.

    Parameters
    ----------
    tuning : DataFrame, optional
        The settings that were tried.
    """
    found = findings.costs(cells, scenario, tuning)
    names = [cost.name for cost in found.methods]
    part = findings.named(cells[cells["scenario"] == scenario])
    methods = dict(zip(part["name"], part["method"], strict=True))
    with style():
        fig, axis = panels(height=0.34 * len(names) + 1.1)
        for y, cost in enumerate(found.methods):
            colour, marker = look(methods[cost.name])
            every = [cost.seconds, cost.samples, cost.seconds + cost.tuning]
            known = [value for value in every if math.isfinite(value)]
            axis.plot([min(known), max(known)], [y, y], color="0.85", zorder=0)
            axis.plot(cost.seconds, y, marker, color=colour, label="seconds" if not y else None)
            axis.plot(
                cost.samples, y, "o", mfc="white", mec=colour, mew=1.6, label="images seen" if not y else None
            )
            tuned = "seconds with tuning" if any(math.isfinite(c.tuning) for c in found.methods) else None
            axis.plot(every[2], y, "|", color=colour, ms=12, mew=2, label=tuned if not y else None)
        axis.axvline(1, color="black", ls="--", lw=1)
        axis.set_yticks(range(len(names)), names)
        axis.set(xscale="log", xlabel="cost in percent of retraining with the same code (100 = break even)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    said = words.costs(found)
    return Chart(
        fig,
        said,
        f"{scenario}. {said} Filled: seconds, mask included; open: images processed forward and backward; bar: seconds including "
        f"all settings that were tried and the retrained model used for comparison. Means over n = {found.seeds} "
        "seeds.",
        found,
    )


def class_by_class(cells: pd.DataFrame) -> Chart:
    """Average gap of each method for each forgotten class."""
    part = gaps(cells[cells["replica"] == 0])
    part = part[part["method"] != "retrain"]
    table = part.assign(
        points=100 * part[AVERAGE].astype(float), name=part["method"].map(name_of)
    ).pivot_table(index="name", columns="forgotten", values="points", sort=False)
    with style():
        fig, axis = panels(height=0.42 * len(table) + 1.3)
        sns.heatmap(
            table,
            ax=axis,
            annot=True,
            fmt=".1f",
            cmap="cividis_r",
            norm=PowerNorm(0.5, vmin=0, vmax=table.max().max()),
            cbar=False,
            annot_kws={"size": 9},
        )
        axis.set(xlabel="forgotten class", ylabel="")
        axis.tick_params(axis="x", rotation=45 if table.columns.astype(str).str.len().max() > 3 else 0)
    found = findings.class_by_class(cells)
    said = words.class_by_class(found)
    return Chart(
        fig,
        said,
        f"{said} Average gap in points, mean of n = {found.seeds} seeds; settings chosen on one class and kept for all."
        f"{diverged(cells)}",
        found,
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, NaN for fewer than three values."""
    if len(first) < 3:
        return math.nan
    return float(pd.Series(first).rank().corr(pd.Series(second).rank()))
