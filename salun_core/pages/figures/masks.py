"""Figures of the saliency mask: where it lies, how far it agrees with itself, what it contributes."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.patches import Rectangle

from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.runs.cells import MaskSpec
from salun_core.methods import name_of
from salun_core.metrics.gaps import AVERAGE, METRICS, by_method, gaps, noise_floor
from salun_core.pages.figures.chart import MASK_LOOK, Chart, panels, style
from salun_core.pages.findings import masks as findings
from salun_core.pages.text import masks as words
from salun_core.pages.words import MASK_LABELS, diverged
from salun_core.saliency import layer_table


def salient_layers(lab: ClassifierLab, params: Any) -> pd.DataFrame:
    """Salient share by layer in the first scenario of the first seed."""
    mask, _ = lab.mask(params.seeds[0], params.scenarios()[0], MaskSpec("salient", params.keep, params.score))
    assert mask is not None
    return layer_table(mask)


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
        groups = groups_of(list(layers["layer"]))
        for first, *_ in groups[1:]:
            axis.axvline(first - 0.5, color="0.85", lw=0.6, zorder=0)
        axis.set_xticks([(first + last) / 2 for first, last, _ in groups], [name for *_, name in groups])
        axis.tick_params("x", rotation=90 if len(groups) > 4 else 0, length=0, labelsize=8.5)
        axis.set(
            xlabel="weight tensors by part of the network, in the order of its code",
            ylabel="salient share (%)",
            ylim=(0, 100),
            xlim=(-1, len(layers)),
        )
        handles = [Rectangle((0, 0), 1, 1, color=colours[k]) for k in colours if k in kinds]
        axis.legend(
            handles, [k for k in colours if k in kinds], ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1)
        )
    found = findings.layer_shares(layers, keep)
    said = words.layer_shares(found)
    return Chart(
        fig, said, f"{said} n = {found.weights:,} weights in {found.layers} tensors. {note}".strip(), found
    )


def groups_of(names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Runs of weight tensors that belong to one part of a network: the first, the last, and the name of the part.

    A part is the first word of a name behind what all names share, with its number where it has one, as in
    ``stages.1`` or ``down_blocks.0``.
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while min(map(len, parts)) > shared + 1 and len({part[shared] for part in parts}) == 1:
        shared += 1
    found: list[tuple[int, int, str]] = []
    for i, part in enumerate(parts):
        own = part[shared:]
        name = ".".join(own[: 2 if len(own) > 1 and own[1].isdigit() else 1])
        if found and found[-1][2] == name:
            found[-1] = (found[-1][0], i, name)
        else:
            found.append((i, i, name))
    return found


def kind_of(name: str) -> str:
    """What a weight tensor is, by its name: "convolution", "normalisation", "linear" or "bias"."""
    last = name.rsplit(".", 2)[-2:]
    owner = last[0] if len(last) == 2 else ""
    if "bn" in owner or "norm" in owner or ("shortcut" in name and name.endswith(("1.weight", "1.bias"))):
        return "normalisation"
    if name.endswith("bias"):
        return "bias"
    return "linear" if owner in ("fc", "head", "classifier") else "convolution"


def mask_agreement(agreement: pd.DataFrame) -> Chart:
    """Overlap of pairs of masks, against that of two random masks."""
    rows = findings.labelled(agreement)
    found = findings.mask_agreement(agreement)
    order, expected = list(found.overlaps), found.expected
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
    said = words.agreement(found)
    return Chart(fig, said, f"{said} Points are seeds (n = {found.seeds}).", found)


def masks_compared(cells: pd.DataFrame, scenario: str) -> Chart:
    """Average gap of each method under each kind of mask, tuned alike."""
    part = gaps(cells[cells["scenario"] == scenario])
    part = part[~part["method"].isin(["retrain", "original"])]
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
        means = part.groupby(["method", "mask"])[AVERAGE].mean()
        if means.max() > 10 * means.min():  # one method far off would press all others together
            axis.set_yscale("symlog", linthresh=1)
        axis.set(ylabel="Avg. Gap (points)")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    found = findings.masks_compared(cells[cells["scenario"] == scenario])
    said = words.summary(found)
    return Chart(
        fig,
        said,
        f"{scenario}. {said} The density is the same for all; points are seeds (n = {found.seeds}), markers are means; grey: gaps between "
        f"models retrained on one split. RL with the salient mask is SalUn. {words.rule(found)}{diverged(part)}",
        found,
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
            axis.set_xlabel("weights that may change (%)")
        for axis in axes[:, 0]:
            axis.set_ylabel("%")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, ncols=3, loc="outside upper center")
    found = findings.over_density(density)
    said = words.over_density(found)
    return Chart(
        fig,
        said,
        f"{said} Random labelling with SalUn's setting, only the mask changes; mean and 95% t interval, "
        f"n = {density['seed'].nunique()} seeds; dashed: Retrain.{diverged(density)}",
        found,
    )
