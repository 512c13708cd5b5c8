"""Frontiers of forgetting and keeping."""

import pandas as pd
from matplotlib.axes import Axes

from salun_core.pages.figures.chart import LOOK, Chart, look, panels, style
from salun_core.pages.findings import frontier as findings
from salun_core.pages.findings.frontier import Along
from salun_core.pages.text import frontier as text
from salun_core.pages.tooltips import Tooltip

PANELS = {"OA": ("other classes recognised (%)", 100), "FD": ("Fréchet distance", 1)}


def frontiers(cells: pd.DataFrame) -> Chart:
    """Each method's way from Original to too much forgetting, beside Retrain.

    Parameters
    ----------
    cells : DataFrame
        Rows of a generation experiment that was run with ``strengths``.
    """
    found = findings.frontiers(cells)
    tooltips: list[Tooltip] = []
    with style():
        fig, axes = panels(1, 2, height=4.2)
        for axis, (column, (title, scale)) in zip(axes, PANELS.items(), strict=True):
            for one in found.methods:
                tooltips += _way(axis, one, column, scale)
            colour, marker = LOOK["retrain"]
            x, y = 100 * found.goal["UA"], scale * found.goal[column]
            axis.plot(
                x, y, marker, color=colour, ms=13, mec="white", zorder=4, clip_on=False, label="Retrain"
            )
            tooltips.append(Tooltip(axis, f"Retrain: UA {x:.1f}%, {title} {y:.2f}", float(x), float(y)))
            axis.set(xlabel="UA (%)", xlim=(-3, 103))
            axis.set_title(title, fontsize=10)
            axis.grid(lw=0.4, color="0.9")
            axis.set_axisbelow(True)
        axes[0].set_ylim(top=101)
        axes[1].set_ylim(bottom=0)
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3)
    said = text.said(found)
    return Chart(fig, said, text.caption(found), found, tooltips=tuple(tooltips))


def _way(axis: Axes, one: Along, column: str, scale: float) -> list[Tooltip]:
    colour, marker = look(one.method)
    filled = colour if one.mask in ("none", "salient") else "white"
    line = "-" if one.mask in ("none", "salient") else "--"
    x, y = 100 * one.points["UA"], scale * one.points[column]
    axis.plot(x, y, line, marker=marker, color=colour, mfc=filled, ms=5, lw=1, alpha=0.9, label=one.name)
    title = PANELS[column][0]
    return [
        Tooltip(axis, f"{one.name}, {s:g} × its steps: UA {u:.1f}%, {title} {v:.2f}", float(u), float(v))
        for s, u, v in zip(one.points.index, x, y, strict=True)
    ]
