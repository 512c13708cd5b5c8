"""Figures of single weights: their scores, the threshold, the mask."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from torch import Tensor

from salun_core.pages.figures.chart import MASK_LOOK, Chart, panels, style
from salun_core.pages.findings import masks as findings
from salun_core.pages.findings.masks import MarkedShares, ScoreSpan
from salun_core.pages.text import masks as words
from salun_core.pages.words import MASK_LABELS
from salun_core.saliency import Mask, Scores, density, kth_largest


def score_histogram(scores: Scores, *, keep: float) -> Chart:
    """Distribution of the scores of all weights, with the threshold that keeps the share ``keep``."""
    flat = np.concatenate([values.cpu().numpy().reshape(-1) for values in scores.values()])
    gamma = kth_largest(scores, max(1, round(keep * len(flat))))
    shown = np.log10(flat[flat > 0])
    with style():
        fig, axis = panels(height=2.8)
        bins = np.linspace(shown.min(), shown.max(), 60)
        counts, _ = np.histogram(shown, bins)
        middle = (bins[1:] + bins[:-1]) / 2
        kept = middle >= (np.log10(gamma) if gamma > 0 else -np.inf)
        for part, colour, label in ((kept, MASK_LOOK["salient"][0], "salient"), (~kept, "0.75", "held")):
            if part.any():
                axis.bar(middle[part], counts[part], width=bins[1] - bins[0], color=colour, label=label)
        if gamma > 0:
            axis.axvline(np.log10(gamma), color="black", lw=1, ls="--")
        axis.set(xlabel="log₁₀ of |gradient on the forget set|", ylabel="weights")
        axis.legend()
    found = ScoreSpan(
        float(shown.max() - shown.min()), float((flat == 0).mean()), keep, float(gamma), len(flat)
    )
    said = words.score_span(found)
    return Chart(
        fig,
        said,
        f"{said} {words.threshold(found)} n = {found.weights:,} weights; only those with a nonzero score are drawn.",
        found,
    )


def weight_maps(weights: Mapping[str, Tensor], scores: Scores, mask: Mask, names: Sequence[str]) -> Chart:
    """Some layers as pictures: the size of each weight, its score, and whether it may change.

    Parameters
    ----------
    weights, scores, mask : mapping of str to Tensor
        By the name of the weight; convolutions are laid out with a row for each output channel.
    names : sequence of str
        The layers shown.
    """
    with style():
        fig, axes = panels(3, len(names), height=4.6, squeeze=False)
        for x, name in enumerate(names):
            flat = weights[name].detach().flatten(1).abs().numpy()
            score = scores[name].flatten(1).numpy()
            marked = mask[name].flatten(1).numpy()
            positive = score[score > 0]
            low = float(np.quantile(positive, 0.02)) if positive.size else 1e-12
            norm = LogNorm(low, max(float(score.max()), low * 10))
            axes[0, x].imshow(flat, aspect="auto", cmap="Greys", interpolation="nearest")
            axes[1, x].imshow(
                score.clip(min=low), aspect="auto", cmap="cividis", norm=norm, interpolation="nearest"
            )
            axes[2, x].imshow(
                marked, aspect="auto", cmap="Oranges", vmin=0, vmax=1.2, interpolation="nearest"
            )
            axes[0, x].set_title(
                f"{name.removeprefix('net.')}\n{100 * marked.mean():.0f}% salient", fontsize=9
            )
            for axis in axes[:, x]:
                axis.set(xticks=[], yticks=[])
        for axis, text in zip(axes[:, 0], ("|weight|", "score (log)", "salient"), strict=True):
            axis.set_ylabel(text, fontsize=9.5)
    found = MarkedShares(
        100 * density(mask),
        {name.removeprefix("net."): 100 * float(mask[name].float().mean()) for name in names},
    )
    said = words.marked_shares(found)
    return Chart(
        fig,
        said,
        f"{said} Each row of pixels is an output channel, each column an input weight; large weights and salient weights are not "
        f"the same. n = {sum(weights[name].numel() for name in names):,} weights shown.",
        found,
    )


def epochs_curve(curve: pd.DataFrame) -> Chart:
    """UA, RA and TA over the epochs of forgetting, with the mask and without it."""
    with style():
        fig, axes = panels(1, 3, height=2.7, sharex=True)
        for axis, name in zip(axes, ("UA", "RA", "TA"), strict=True):
            for kind, mine in curve.groupby("mask", sort=False):
                colour, marker = MASK_LOOK[str(kind)]
                axis.plot(
                    mine["epochs"],
                    100 * mine[name],
                    color=colour,
                    marker=marker,
                    ms=5,
                    label=MASK_LABELS[str(kind)],
                )
            axis.set_title(f"{name} (%)", fontsize=10)
            axis.set_xlabel("epochs")
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, ncols=2, loc="outside upper center")
    found = findings.after_epochs(curve)
    said = words.after_epochs(found)
    return Chart(fig, said, f"{said} One network, one seed (n = 1).", found)
