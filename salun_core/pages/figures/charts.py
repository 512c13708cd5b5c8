"""Figures of results: one style, one colour per method, and a text that says what is to be seen."""

import base64
import html
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from salun_core.data.images import ImageData
from salun_core.files import write_whole
from salun_core.methods import name_of
from salun_core.metrics.gaps import AVERAGE, METRICS, by_method, gaps, noise_floor, summary
from salun_core.pages.tables import PAPER_NAMES, methods_table, read_published
from salun_core.pages.tooltips import Spot, behind, behind_mean, overlay, unit_of

# Okabe and Ito's colours, told apart by most colour-blind readers, and a marker of its own for each method.
LOOK: dict[str, tuple[str, str]] = {
    "retrain": ("#000000", "*"),
    "original": ("#8C8C8C", "X"),
    "ft": ("#0072B2", "o"),
    "rl": ("#E69F00", "s"),
    "ga": ("#56B4E9", "v"),
    "iu": ("#CC79A7", "^"),
    "be": ("#882255", "<"),
    "bs": ("#44AA99", ">"),
    "l1_sparse": ("#999933", "P"),
    "salun": ("#D55E00", "D"),
    "salun_soft": ("#009E73", "d"),
    "esd": ("#332288", "h"),
    "fmn": ("#117733", "p"),
    "ca": ("#AA4499", "H"),
    "uce": ("#A6761D", "8"),
}
MASK_LOOK = {
    "none": ("#56B4E9", "o"),
    "salient": ("#D55E00", "D"),
    "random": ("#000000", "s"),
    "random_per_layer": ("#8C8C8C", "P"),
    "least_salient": ("#009E73", "v"),
}
MASK_LABELS = {
    "none": "no mask",
    "salient": "salient mask",
    "random": "random mask",
    "random_per_layer": "random mask by layer",
    "least_salient": "least salient mask",
}
WIDTH = 6.5  # inches: legible when a phone shrinks it to 390 pixels


@dataclass(frozen=True)
class Chart:
    """A figure with its caption and a text alternative that states the finding.

    A notebook shows it as an image that scales with the page; ``figure`` is matplotlib's. Where a reader
    points at one of the ``spots``, its text is shown.
    """

    figure: Figure
    alt: str
    caption: str = ""
    photo: bool = False
    spots: tuple[Spot, ...] = ()

    def svg(self) -> bytes:
        """The figure as SVG; the same figure gives the same bytes."""
        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "salun", "svg.fonttype": "path"}):
            self.figure.savefig(
                buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
            )
        return buffer.getvalue()

    def png(self) -> bytes:
        """The figure as PNG, twice the size of the page."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        return buffer.getvalue()

    def save(self, path: Path | str) -> Path:
        """Write the figure as SVG, or as PNG where ``path`` ends so."""
        return write_whole(path, self.png() if str(path).endswith(".png") else self.svg())

    def __repr__(self) -> str:
        return self.alt

    def image(self) -> str:
        """The figure as an image element that holds its own data."""
        kind, content = ("png", self.png()) if self.photo else ("svg+xml", self.svg())
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        return (
            f'<img class="{"photo" if self.photo else "chart"}" '
            f'alt="{html.escape(self.alt, quote=True)}" src="{source}">'
        )

    def _repr_html_(self) -> str:
        caption = (
            f"<figcaption>{html.escape(self.caption[:1].upper() + self.caption[1:])}</figcaption>"
            if self.caption
            else ""
        )
        image = self.image()
        if self.spots:
            image = f'<div class="spots" style="position:relative;width:fit-content">{image}{overlay(self.figure, self.spots)}</div>'
        return f'<figure class="result" tabindex="0">{image}{caption}</figure>'


@contextmanager
def style() -> Iterator[None]:
    """The style of every figure in the book."""
    with (
        sns.axes_style("ticks"),
        mpl.rc_context(
            {
                "font.size": 10.5,
                "axes.titlesize": 11,
                "axes.labelsize": 10.5,
                "xtick.labelsize": 10,
                "ytick.labelsize": 10,
                "legend.fontsize": 9.5,
                "legend.frameon": False,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "figure.constrained_layout.use": True,
                "lines.markersize": 7,
            }
        ),
    ):
        yield


def panels(rows: int = 1, columns: int = 1, *, height: float = 3.4, **more: Any) -> tuple[Figure, Any]:
    """An empty figure of the book's width."""
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), **more)
    plt.close(fig)  # shown by the notebook once, as a Chart
    return fig, axes


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


def salient_by_layer(layers: pd.DataFrame, *, keep: float, note: str = "") -> Chart:
    """Share of salient weights in each tensor, in model order.

    Parameters
    ----------
    layers : DataFrame
        Columns ``layer, weights, kept, share``, see ``saliency.layer_table``.
    keep : float
        Share over all layers, drawn as a line.
    """
    kinds = [kind_of(name) for name in layers["layer"]]
    colours = {"convolution": "#0072B2", "normalisation": "#E69F00", "linear": "#009E73", "bias": "#CC79A7"}
    with style():
        fig, axis = panels(height=3.0)
        axis.bar(range(len(layers)), 100 * layers["share"], color=[colours[k] for k in kinds], width=0.85)
        axis.axhline(100 * keep, color="black", lw=1, ls="--")
        axis.text(len(layers) - 0.4, 100 * keep, f" {100 * keep:g}%", va="center", fontsize=9)
        axis.set(
            xlabel="weight tensor, from input to output",
            ylabel="salient share (%)",
            ylim=(0, 100),
            xlim=(-1, len(layers)),
        )
        handles = [Rectangle((0, 0), 1, 1, color=colours[k]) for k in colours if k in kinds]
        axis.legend(
            handles, [k for k in colours if k in kinds], ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1)
        )
    most, least = layers.loc[layers["share"].idxmax()], layers.loc[layers["share"].idxmin()]
    finding = (
        f"The share of salient weights runs from {100 * least['share']:.0f}% in {least['layer']} "
        f"to {100 * most['share']:.0f}% in {most['layer']}; {100 * keep:g}% over all layers."
    )
    return Chart(
        fig,
        finding,
        f"{finding} n = {layers['weights'].sum():,} weights in {len(layers)} tensors. {note}".strip(),
    )


def kind_of(name: str) -> str:
    """What a weight tensor is, by its name: "convolution", "normalisation", "linear" or "bias"."""
    last = name.rsplit(".", 2)[-2:]
    owner = last[0] if len(last) == 2 else ""
    if "bn" in owner or "norm" in owner or ("shortcut" in name and name.endswith(("1.weight", "1.bias"))):
        return "normalisation"
    if name.endswith("bias"):
        return "bias"
    return "linear" if owner in ("fc", "head", "classifier") else "convolution"


def gap_to_retrain(cells: pd.DataFrame, scenario: str) -> Chart:
    """Gap of every method for each metric and on average, with the noise floor behind."""
    part = gaps(cells[cells["scenario"] == scenario])
    part = part[part["method"] != "retrain"]
    floor = noise_floor(cells[cells["scenario"] == scenario])
    columns = [AVERAGE, *(f"gap {m}" for m in METRICS)]
    table = methods_table(cells, scenario)
    table = table[table["method"] != "retrain"].sort_values(AVERAGE, ascending=False)
    order = list(zip(table["method"], table["mask"], strict=True))
    spots = []
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
                interval(axis, 100 * mine[column].astype(float), y, look(method))
                spots += spots_of(axis, mine, column, y=y)
            axis.set_title("Avg. Gap" if column == AVERAGE else column.removeprefix("gap "))
            axis.set_xlim(left=0)
            axis.grid(axis="x", color="0.92")
            axis.set_axisbelow(True)
        axes[0].set_yticks(range(len(order)), [name_of(*pair) for pair in order])
        fig.supxlabel("gap to Retrain (percentage points)", fontsize=10.5)
    best = table.iloc[-1]
    seeds = int(table["seeds"].max())
    finding = f"{best['Method']} comes nearest to Retrain with an average gap of {best[AVERAGE]:.2f} points"
    behind = ""
    if len(floor):
        inside = int((table[AVERAGE] <= 100 * floor[AVERAGE].max()).sum())
        finding += f"; {inside} of {len(table)} methods lie within the noise floor"
        behind = f" Grey: gaps between {len(floor)} pairs of retrained models of one split, and their mean."
    caption = (
        f"{scenario}. {finding}. Mean and 95% t interval, n = {seeds} seeds; small dots are seeds.{behind}"
    )
    return Chart(fig, f"{finding}.", caption, spots=tuple(spots))


def spots_of(axis: Axes, rows: pd.DataFrame, column: str, *, y: float, scale: float = 100) -> list[Spot]:
    """Spots on a row of a dot plot: each of its results, and above them their mean."""
    values = scale * rows[column].astype(float)
    unit = unit_of(column, scale=scale)
    found = [
        Spot(axis, behind(row, f"{column} {value:.2f}{unit}"), float(value), y)
        for (_, row), value in zip(rows.iterrows(), values, strict=True)
    ]
    return [*found, Spot(axis, behind_mean(rows, column, scale=scale), float(values.mean()), y)]


def interval(axis: Axes, values: pd.Series, y: float, colour_marker: tuple[str, str]) -> None:
    """Mean, t interval and single values of one row of a dot plot."""
    colour, marker = colour_marker
    values = values.dropna()
    if values.empty:
        axis.text(0.02, y, "diverged", fontsize=8, va="center")
        return
    s = summary(values)
    axis.plot(values, [y] * len(values), ".", color=colour, alpha=0.45, ms=5, mew=0, clip_on=False)
    if not math.isnan(s["low"]):
        axis.plot([max(0, s["low"]), min(100, s["high"])], [y, y], color=colour, lw=1.6)
    axis.plot(s["mean"], y, marker, color=colour, mec="white", mew=0.6, clip_on=False, zorder=3)


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method."""
    return LOOK.get(method, ("#555555", "o"))


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
        axis.set(xlabel="UA: forget images answered wrongly (%)", ylabel="TA: test accuracy (%)")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    means = part.groupby(["method", "mask"])[["UA", "TA"]].mean()
    away = ((means - target[["UA", "TA"]].mean()) ** 2).sum(axis=1).drop("retrain", level=0)
    nearest = name_of(*away.idxmin())
    finding = f"{nearest} lies nearest to Retrain's mean of UA {100 * target['UA'].mean():.1f}% and TA {100 * target['TA'].mean():.1f}%"
    return Chart(
        fig,
        f"{finding}.",
        f"{scenario}. {finding}. Small points are single seeds (n = {len(target)}), large ones means.",
    )


def published_beside(cells: pd.DataFrame, scenario: str, path: Path | str, setting: str) -> Chart:
    """Average gaps of ours beside those of the paper's Table 1."""
    ours = methods_table(cells, scenario).set_index("method")[AVERAGE]
    rows = read_published(path)
    rows = rows[(rows["setting"] == setting) & (rows["metric"] == AVERAGE) & (rows["verified"] == "yes")]
    paper = {
        PAPER_NAMES[m]: v for m, v in zip(rows["method"], rows["value"], strict=True) if m in PAPER_NAMES
    }
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
    rank = pd.Series({m: paper[m] for m in order}).rank().corr(pd.Series({m: ours[m] for m in order}).rank())
    first = cells[cells["scenario"] == scenario].iloc[0]
    finding = f"The order of the methods agrees with the paper's with a rank correlation of {rank:.2f} over {len(order)} methods"
    caption = f"{finding}. Open: the paper's Table 1 (CIFAR-10, ResNet-18, {setting}, 10 trials). Filled: {first['dataset']}, {first['arch']}, {scenario}, n = {cells['seed'].nunique()} seeds."
    return Chart(fig, f"{finding}.", caption)


def over_shares(cells: pd.DataFrame) -> Chart:
    """|UA - UA(Retrain)| over the share to forget, with intervals over seeds (the paper's Figure 2a)."""
    part = gaps(cells)
    part = part[part["method"] != "retrain"].assign(
        share=part["scenario"].str.extract(r"([\d.]+)%")[0].astype(float)
    )
    table = by_method(part, "gap UA", group=("method", "mask", "share"))
    floor = noise_floor(cells)
    spots = []
    with style():
        fig, axis = panels(height=3.8)
        if len(floor):
            axis.axhspan(0, 100 * floor["gap UA"].max(), color="0.88", lw=0)
        for i, ((method, mask), mine) in enumerate(table.groupby(["method", "mask"], sort=False)):
            mine = mine.sort_values("share")
            x = mine["share"] * (1 + 0.02 * (i - 2.5))
            half = 100 * (mine["high"] - mine["mean"])
            colour, marker = look(str(method))
            axis.errorbar(
                x,
                100 * mine["mean"],
                yerr=half,
                color=colour,
                marker=marker,
                lw=1.4,
                capsize=2,
                label=name_of(str(method), str(mask)),
            )
            for place, (_, row) in zip(x, mine.iterrows(), strict=True):
                runs = part[
                    (part["method"] == method)
                    & (part["mask"] == mask)
                    & (part["share"] == row["share"])
                    & (part["replica"] == 0)
                ]
                spots.append(Spot(axis, behind_mean(runs, "gap UA"), float(place), 100 * row["mean"]))
        axis.set(
            xscale="log",
            xlabel="share of the training images to forget (%)",
            ylabel="|UA − UA(Retrain)| (points)",
        )
        axis.set_ylim(bottom=0)
        axis.set_xticks(sorted(part["share"].unique()), [f"{s:g}" for s in sorted(part["share"].unique())])
        axis.minorticks_off()
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    mean = table.groupby(["method", "mask"], sort=False)["mean"].max()
    calm, wild = mean.idxmin(), mean.idxmax()
    finding = f"Over the shares, the largest gap is {100 * mean.max():.1f} points, of {name_of(*wild)}; that of {name_of(*calm)} stays within {100 * mean.min():.1f}"
    return Chart(
        fig,
        f"{finding}.",
        f"{finding}. Mean and 95% t interval, n = {cells['seed'].nunique()} seeds; settings chosen once, for the tuning share. Grey: retrained models among themselves.",
        spots=tuple(spots),
    )


def ua_over_settings(spread: pd.DataFrame) -> Chart:
    """Distribution of UA over a method's settings, with Retrain's as a line (the paper's Figure 2b)."""
    target = 100 * spread.loc[spread["method"] == "retrain", "UA"].astype(float).mean()
    rows = spread[spread["method"] != "retrain"].dropna(subset=["UA"])
    groups = list(rows.groupby(["method", "mask"], sort=False))
    spots = []
    with style():
        fig, axis = panels(height=0.42 * len(groups) + 1.1)
        axis.axvline(target, color="black", ls="--", lw=1)
        for y, ((method, _), mine) in enumerate(groups):
            colour, marker = look(str(method))
            ua = 100 * mine["UA"].astype(float)
            axis.boxplot(
                ua,
                positions=[y],
                orientation="horizontal",
                widths=0.5,
                showfliers=False,
                whis=(0, 100),
                medianprops={"color": colour},
                boxprops={"color": colour},
                whiskerprops={"color": colour},
                capprops={"color": colour},
            )
            places = y + np.linspace(-0.14, 0.14, len(ua))
            axis.plot(ua, places, marker, color=colour, alpha=0.6, ms=4, mew=0)
            spots += [
                Spot(axis, behind(row, f"UA {value:.2f}%"), float(value), float(place))
                for (_, row), value, place in zip(mine.iterrows(), ua, places, strict=True)
            ]
        axis.set_yticks(range(len(groups)), [name_of(str(m), str(k)) for (m, k), _ in groups])
        axis.set(xlabel="UA (%)", xlim=(-2, 102))
        axis.text(target, len(groups) - 0.35, f"Retrain {target:.1f}", ha="left", fontsize=9)
    spans = {name_of(str(m), str(k)): float(np.ptp(100 * g["UA"].astype(float))) for (m, k), g in groups}
    wild = max(spans, key=lambda name: spans[name])
    finding = f"Over its settings the UA of {wild} varies most, by {spans[wild]:.0f} points"
    if "IU" in spans and "IU + salient mask" in spans:
        finding += f"; IU varies by {spans['IU']:.0f} points without a mask and by {spans['IU + salient mask']:.0f} with one"
    lost = int(spread["UA"].isna().sum())
    more = f" {lost} settings diverged and are not shown." if lost else ""
    return Chart(
        fig,
        f"{finding}.",
        f"{finding}. One point a setting (n = {len(rows)}), seed {spread['seed'].iloc[0]}; box: quartiles, whiskers: range; dashed: Retrain.{more}",
        spots=tuple(spots),
    )


def response_surface(surface: pd.DataFrame) -> Chart:
    """SalUn's distance to Retrain over learning rate (columns) and epochs (rows), a panel for each density.

    Parameters
    ----------
    surface : DataFrame
        Candidates with ``distance`` (see ``experiments.tuning.with_distance``) and ``settings``.
    """
    rows = surface.assign(
        lr=[s["lr"] for s in surface["settings"]],
        epochs=[s["epochs"] for s in surface["settings"]],
        points=100 * surface["distance"].replace(math.inf, math.nan),
    )
    keeps = sorted(rows["keep"].unique())
    with style():
        fig, axes = panels(1, len(keeps), height=2.6, sharey=True, squeeze=False)
        for axis, keep in zip(axes[0], keeps, strict=True):
            grid = (
                rows[rows["keep"] == keep]
                .pivot_table(index="epochs", columns="lr", values="points")
                .sort_index(ascending=False)
            )
            sns.heatmap(
                grid,
                ax=axis,
                annot=True,
                fmt=".1f",
                cmap="cividis_r",
                cbar=False,
                vmin=0,
                vmax=rows["points"].max(),
                annot_kws={"size": 9},
            )
            axis.set(
                title=f"keep {keep:g}", xlabel="learning rate", ylabel="epochs" if keep == keeps[0] else ""
            )
            axis.set_xticklabels([f"{v:.2g}" for v in grid.columns], rotation=45)
    best = rows.loc[rows["points"].idxmin()]
    finding = f"SalUn is nearest to Retrain, {best['points']:.1f} points, at learning rate {best['lr']:.2g}, {best['epochs']} epochs, keep {best['keep']:g}"
    return Chart(
        fig,
        f"{finding}.",
        f"{finding}. Mean gap over UA, RA, validation accuracy and MIA on the tuning seed (n = 1 model a field).",
    )


def break_even(cells: pd.DataFrame, scenario: str) -> Chart:
    """Cost of unlearning, mask included, against the cost of retraining: seconds and images seen."""
    part = cells[(cells["scenario"] == scenario) & (cells["replica"] == 0) & (cells["method"] != "original")]
    cost = part.groupby(["method", "mask"], sort=False)[["seconds", "samples_seen"]].mean()
    retrain = cost.xs("retrain", level="method").iloc[0]
    cost = (cost / retrain).drop("retrain", level="method").sort_values("seconds", ascending=False)
    with style():
        fig, axis = panels(height=0.34 * len(cost) + 1.1)
        for y, ((method, _), row) in enumerate(cost.iterrows()):
            colour, marker = look(str(method))
            axis.plot([row["seconds"], row["samples_seen"]], [y, y], color="0.85", zorder=0)
            axis.plot(row["seconds"], y, marker, color=colour, label="seconds" if not y else None)
            axis.plot(
                row["samples_seen"],
                y,
                "o",
                mfc="white",
                mec=colour,
                mew=1.6,
                label="images seen" if not y else None,
            )
        axis.axvline(1, color="black", ls="--", lw=1)
        axis.set_yticks(range(len(cost)), [name_of(*pair) for pair in cost.index])
        axis.set(xscale="log", xlabel="cost in percent of retraining with the same code (100 = break even)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    dear = cost["seconds"].idxmax()
    finding = f"The costliest method, {name_of(*dear)}, takes {100 * cost['seconds'].max():.0f}% of the seconds of retraining"
    return Chart(
        fig,
        f"{finding}.",
        f"{scenario}. {finding} ({retrain['seconds']:.1f} s). Filled: seconds, mask included; open: images that went forward and backward. Means over n = {part['seed'].nunique()} seeds; tuning is not counted.",
    )


def mask_agreement(agreement: pd.DataFrame) -> Chart:
    """Overlap of pairs of masks, against that of two random masks."""
    rows = agreement.assign(pair=agreement["what"] + ": " + agreement["detail"])
    rows.loc[rows["what"] == "training seed", "pair"] = "training seed: two seeds"
    order = rows.groupby("pair")["iou"].mean().sort_values().index
    expected = float(agreement["expected"].iloc[0])
    with style():
        fig, axis = panels(height=0.3 * len(order) + 1)
        axis.axvline(expected, color="black", ls="--", lw=1)
        for y, pair in enumerate(order):
            values = rows.loc[rows["pair"] == pair, "iou"]
            axis.plot(values, [y] * len(values), ".", color="#0072B2", alpha=0.5)
            axis.plot(values.mean(), y, "D", color="#0072B2", mec="white", ms=6)
        axis.set_yticks(range(len(order)), order)
        axis.set(xlabel="intersection over union of two masks", xlim=(0, 1.02))
        axis.grid(axis="x", color="0.92")
        axis.set_axisbelow(True)
        axis.text(expected, len(order) - 0.4, " two random masks", fontsize=9)
    mean = rows.groupby("pair")["iou"].mean()
    finding = f"Masks agree least for {mean.idxmin()} (IoU {mean.min():.2f}) and most for {mean.idxmax()} ({mean.max():.2f}); two random masks reach {expected:.2f}"
    return Chart(fig, f"{finding}.", f"{finding}. Points are seeds (n = {agreement['seed'].nunique()}).")


def masks_compared(cells: pd.DataFrame, scenario: str) -> Chart:
    """Average gap of each method under each kind of mask, tuned alike."""
    part = gaps(cells[(cells["scenario"] == scenario) & (cells["replica"] == 0)])
    part = part[part["method"] != "retrain"]
    floor = noise_floor(cells[cells["scenario"] == scenario])
    methods, kinds = list(dict.fromkeys(part["method"])), list(dict.fromkeys(part["mask"]))
    with style():
        fig, axis = panels(height=3.6)
        if len(floor):
            axis.axhspan(0, 100 * floor[AVERAGE].max(), color="0.88", lw=0)
        for k, kind in enumerate(kinds):
            colour, marker = MASK_LOOK[kind]
            for x, method in enumerate(methods):
                values = 100 * part.loc[(part["method"] == method) & (part["mask"] == kind), AVERAGE].astype(
                    float
                )
                place = x + 0.16 * (k - (len(kinds) - 1) / 2)
                axis.plot([place] * len(values), values, ".", color=colour, alpha=0.45)
                axis.plot(
                    place,
                    values.mean(),
                    marker,
                    color=colour,
                    mec="white",
                    label=MASK_LABELS[kind] if not x else None,
                )
        axis.set_xticks(range(len(methods)), [name_of(m) for m in methods])
        axis.set_yscale("symlog", linthresh=1)
        axis.set(ylabel="Avg. Gap (points)")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    means = part.pivot_table(index="method", columns="mask", values=AVERAGE)
    wins = int((means.idxmin(axis=1) == "salient").sum())
    finding = f"The salient mask has the smallest average gap for {wins} of {len(means)} methods"
    return Chart(
        fig,
        f"{finding}.",
        f"{scenario}. {finding}. The same density and tuning budget for all; points are seeds (n = {part['seed'].nunique()}), markers means; grey: retrained models among themselves. RL with the salient mask is SalUn.",
    )


def over_density(density: pd.DataFrame, retrain: pd.DataFrame) -> Chart:
    """UA, RA, TA and MIA over the share of weights kept, for each kind of mask."""
    with style():
        fig, axes = panels(2, 2, height=5.0, sharex=True)
        for axis, metric in zip(axes.flat, METRICS, strict=True):
            axis.axhline(100 * retrain[metric].astype(float).mean(), color="black", ls="--", lw=1)
            for kind, mine in density.groupby("mask", sort=False):
                colour, marker = MASK_LOOK[str(kind)]
                table = by_method(mine, metric, group=("keep",)).sort_values("keep")
                middle = 100 * table["mean"]
                axis.errorbar(
                    100 * table["keep"],
                    middle,
                    yerr=[
                        middle - 100 * table["low"].clip(lower=0),
                        100 * table["high"].clip(upper=1) - middle,
                    ],
                    color=colour,
                    marker=marker,
                    ms=5,
                    lw=1.3,
                    capsize=2,
                    label=MASK_LABELS[str(kind)],
                )
            axis.set_title(metric)
        for axis in axes[1]:
            axis.set_xlabel("weights kept (%)")
        for axis in axes[:, 0]:
            axis.set_ylabel("%")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, ncols=3, loc="outside upper center")
    means = density.assign(UA=density["UA"].astype(float)).pivot_table(
        index="keep", columns="mask", values="UA"
    )
    apart = (
        (means["salient"] - means["random"]).abs()
        if {"salient", "random"} <= set(means)
        else pd.Series([math.nan])
    )
    finding = f"UA under salient and random masks differs by at most {100 * apart.max():.1f} points over the densities"
    return Chart(
        fig,
        f"{finding}.",
        f"{finding}. Random labelling with SalUn's setting, only the mask changes; mean and 95% t interval, n = {density['seed'].nunique()} seeds; dashed: Retrain.",
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
    own = table.drop(index="Original", errors="ignore")
    means = own.mean(axis=1)
    finding = (
        f"Over the classes {means.idxmin()} stays nearest to Retrain, {means.min():.1f} points on average "
        f"and at worst {own.loc[means.idxmin()].max():.1f}"
    )
    return Chart(
        fig,
        f"{finding}.",
        f"{finding}. Average gap in points, mean of n = {part['seed'].nunique()} seeds; settings chosen on one class and kept for all.",
    )
