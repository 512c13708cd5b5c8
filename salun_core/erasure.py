"""Figures of how far a concept is erased: by every way to ask for it, against what is left of the others."""

from collections.abc import Sequence

import pandas as pd

from salun_core.plots import Chart, look, panels, style
from salun_core.spots import Spot, behind
from salun_core.tables import name_of


def kinds_of(cells: pd.DataFrame) -> list[str]:
    """Kinds of prompts in a table of the text-to-image experiment, in its order."""
    return [name.removeprefix("UA ") for name in cells.columns if str(name).startswith("UA ")]


def erasure_against_utility(cells: pd.DataFrame, *, kinds: Sequence[str] = ()) -> Chart:
    """A panel for each kind of prompt: UA against the accuracy of the other classes, every method a mark.

    Parameters
    ----------
    cells : DataFrame
        Rows of the text-to-image experiment.
    kinds : sequence of str
        Kinds of prompts; all by default.
    """
    part = cells[cells["status"] == "done"]
    kinds = list(kinds) or kinds_of(part)
    names = list(dict.fromkeys(zip(part["method"], part["mask"], strict=True)))
    spots = []
    with style():
        across = min(2, len(kinds))
        down = -(-len(kinds) // across)
        fig, axes = panels(down, across, height=2.6 * down + 1.0, squeeze=False, sharex=True, sharey=True)
        for axis, kind in zip(axes.flat, kinds, strict=False):
            for method, mask in names:
                mine = part[(part["method"] == method) & (part["mask"] == mask)]
                colour, marker = look(method)
                x = 100 * mine[f"OA {kind}"].astype(float).mean()
                y = 100 * mine[f"UA {kind}"].astype(float).mean()
                found = f"UA {y:.1f}%, other classes {x:.1f}% over {len(mine)} {'run' if len(mine) == 1 else 'runs'}"
                spots.append(Spot(axis, behind(mine.iloc[0], found), float(x), float(y)))
                axis.plot(
                    x,
                    y,
                    marker,
                    color=colour,
                    mfc=colour if mask in ("none", "salient") else "white",
                    ms=8,
                    alpha=0.85,
                    ls="",
                    label=name_of(method, mask),
                )
            axis.set_title(f"{kind} prompts", fontsize=10)
            axis.grid(lw=0.4, color="0.9")
            axis.set_axisbelow(True)
        for axis in axes.flat[len(kinds) :]:
            axis.axis("off")
        for axis in axes[-1]:
            axis.set_xlabel("other classes recognised (%)")
        for axis in axes[:, 0]:
            axis.set_ylabel("UA (%)")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8.5, frameon=False)
    kept = {kind: unerased(part, kind) for kind in kinds}
    finding = "Forgotten in less than half of the images: " + "; ".join(
        f"{kind} prompts: {', '.join(found) if found else 'no method'}" for kind, found in kept.items()
    )
    first, runs = part.iloc[0], len(part[["seed", "scenario"]].drop_duplicates())
    return Chart(
        fig,
        f"{finding}.",
        f"Up and to the right is better. {finding}. Class {', '.join(map(str, part['forgotten'].unique()))} of "
        f"{first['dataset']}, mean over {runs} {'run' if runs == 1 else 'runs'}, n = {first['n_class']} images of each class "
        "and kind of prompt.",
        spots=tuple(spots),
    )


def unerased(cells: pd.DataFrame, kind: str) -> list[str]:
    """Names of the methods under which at least half of the images for a kind of prompt show what was forgotten."""
    means = cells.groupby(["method", "mask"], sort=False)[f"UA {kind}"].mean().astype(float)
    return [name_of(*map(str, key)) for key, value in means.items() if value < 0.5 and key[0] != "original"]
