"""Frontiers of forgetting and keeping."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from salun_core.pages.figures.chart import LOOK, MASK_LOOK, Chart, look, panels, style
from salun_core.pages.findings import frontier as findings
from salun_core.pages.findings.frontier import Along
from salun_core.pages.text import frontier as text
from salun_core.pages.tooltips import Tooltip
from salun_core.pages.words import capital

FARTHEST = 3  # times the goal's loss of other classes and its distance, at least, that the panels show


def frontiers(cells: pd.DataFrame) -> Chart:
    """Each method's way from Original to too much forgetting, beside Retrain or, without it, the ideal.

    Parameters
    ----------
    cells : DataFrame
        Rows of a generation experiment that was run with ``strengths``.
    """
    found = findings.frontiers(cells)
    goal = found.goal
    tooltips: list[Tooltip] = []
    with style():
        fig, axes = panels(1, 3, height=3.9)
        for one in found.methods:
            share = 100 * one.points["UA"]
            strengths = pd.Series(one.points.index, index=one.points.index, dtype=float)
            tooltips += _way(axes[0], one, strengths, share, "UA")
            tooltips += _way(axes[1], one, share, 100 * one.points["OA"], "other classes")
            tooltips += _way(axes[2], one, share, one.points["FD"], "Fréchet distance")
        colour, marker = LOOK["retrain"]
        axes[0].axhline(100 * goal["UA"], color=colour, ls="--", lw=1)
        for axis, value, what in (
            (axes[1], 100 * goal["OA"], "other classes"),
            (axes[2], goal["FD"], "Fréchet distance"),
        ):
            x = float(100 * goal["UA"])
            axis.plot(
                x,
                value,
                marker,
                color=colour,
                ms=13,
                mec="white",
                zorder=4,
                clip_on=False,
                label=capital(found.aim),
            )
            tooltips.append(
                Tooltip(axis, f"{capital(found.aim)}: UA {x:.1f}%, {what} {value:.2f}", x, float(value))
            )
            axis.set(xlabel="UA (%)", xlim=(-4, 104))
        axes[0].set(xscale="log", xlabel="times its steps", ylim=(-4, 104))
        marks = _apart(found.strengths)
        axes[0].set_xticks(marks, [f"{strength:g}" for strength in marks])
        axes[0].minorticks_off()
        axes[1].set_ylim(100 - max(15.0, FARTHEST * 100 * (1 - goal["OA"])), 100.7)
        axes[2].set_ylim(0, FARTHEST * goal["FD"])
        for axis, title in zip(axes, ("UA (%)", "other classes (%)", "Fréchet distance"), strict=True):
            axis.set_title(title, fontsize=10)
            axis.grid(lw=0.4, color="0.9")
            axis.set_axisbelow(True)
        fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    shown = [tip for tip in tooltips if tip.axis.get_ylim()[0] <= (tip.y or 0.0) <= tip.axis.get_ylim()[1]]
    said = text.said(found)
    return Chart(fig, said, text.caption(found), found, tooltips=tuple(shown))


def _apart(strengths: Sequence[float]) -> list[float]:
    """Those whose labels do not meet on a logarithmic axis."""
    found: list[float] = []
    for strength in strengths:
        if not found or strength >= 2.4 * found[-1]:
            found.append(strength)
    return found


def _way(axis: Axes, one: Along, x: pd.Series, y: pd.Series, what: str) -> list[Tooltip]:
    own = one.mask in ("none", "salient")
    colour, marker = look(one.method) if own else MASK_LOOK[one.mask]
    axis.plot(
        x,
        y,
        "-" if own else "--",
        marker=marker,
        color=colour,
        mfc=colour if own else "white",
        ms=5,
        lw=1,
        label=one.name,
    )
    return [
        Tooltip(
            axis, f"{one.name}, {s:g} × its steps: UA {100 * u:.1f}%, {what} {v:.2f}", float(at), float(v)
        )
        for s, u, at, v in zip(one.points.index, one.points["UA"], x, y, strict=True)
    ]
