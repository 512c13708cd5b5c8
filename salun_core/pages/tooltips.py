"""Where a mark of a figure or a number of a table comes from: shown where a reader points, or moves to by keyboard."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from salun_core.methods import name_of
from salun_core.pages.markup import html_template

PADDING = 0.1  # inches that matplotlib leaves around a figure that is saved with its tight box


PLACES = html_template(
    """{% for place in places %}<span class="origin" role="img" tabindex="-1" title="{{ place.text }}" \
style="position:absolute;{{ place.style }}"></span>{% endfor %}"""
)


@dataclass(frozen=True)
class Tooltip:
    """A place in a figure, and the text that is shown where a reader points at it.

    Parameters
    ----------
    axis : Axes
        Where it is.
    text : str
        What is shown; lines are kept.
    x, y : float, optional
        The place in data coordinates. Without them it covers the whole axis.
    """

    axis: Axes
    text: str
    x: float | None = None
    y: float | None = None


def overlay(figure: Figure, tooltips: Sequence[Tooltip]) -> str:
    """HTML of tooltips over an image of the figure, placed in percent so that they scale with it.

    Without any script a browser shows the texts as titles; the book's script shows them at once, on
    touch, and by keyboard, and then names the place by the same text. A page holds each text once.
    """
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(PADDING)
    places = []
    for tip in tooltips:
        if tip.x is None or tip.y is None:
            corners = tip.axis.get_window_extent()
            place = [(corners.x0, corners.y1), (corners.x1, corners.y0)]
        else:
            if not (math.isfinite(tip.x) and math.isfinite(tip.y)):
                continue
            place = [tuple(tip.axis.transData.transform((tip.x, tip.y)))]
        shares = [
            ((x / figure.dpi - box.x0) / box.width, (box.y1 - y / figure.dpi) / box.height) for x, y in place
        ]
        (left, top), (right, bottom) = shares[0], shares[-1]
        where = f"left:{100 * left:.2f}%;top:{100 * top:.2f}%"
        size = (
            ";padding:7px;margin:-7px"  # a square around the point
            if len(place) == 1
            else f";width:{100 * (right - left):.2f}%;height:{100 * (bottom - top):.2f}%"
        )
        places.append({"text": tip.text, "style": where + size})
    return PLACES.render(places=places)


def origin_of(row: Mapping[str, Any] | pd.Series, *values: str) -> str:
    """Where one result comes from, in lines: what ran, the values to show, settings, cost, code, stored cell.

    Parameters
    ----------
    row : mapping
        A row of a results table; what it lacks is left out.
    values : str
        Lines below the first, such as "UA 5.1%".
    """
    have = {
        name: value
        for name, value in dict(row).items()
        if not (value is None or (isinstance(value, float) and math.isnan(value)))
    }
    mask = str(have.get("mask", "none"))
    first = [name_of(str(have.get("method", "")))]
    if mask != "none":
        first.append("adapters" if mask == "lora" else f"{mask.replace('_', ' ')} mask")
        first += [f"keep {have['keep']:g}"] if "keep" in have else []
    first += [str(have["scenario"])] if "scenario" in have else []
    first += [f"seed {have['seed']:.0f}"] if "seed" in have else []
    first += [f"replica {have['replica']:.0f}"] if have.get("replica") else []
    lines = [", ".join(first), *values]
    settings = {
        k: v for k, v in (have.get("settings") or {}).items() if k in ("lr", "epochs", "steps", "alpha")
    }
    chosen = [f"{name} {value:.3g}" for name, value in settings.items() if isinstance(value, int | float)]
    if chosen:
        lines.append(", ".join(chosen))
    cost = [f"{have['seconds']:.{0 if have['seconds'] >= 100 else 1}f} s"] if "seconds" in have else []
    if "device" in have:
        threads = (
            f", {have['threads']:.0f} {'thread' if have['threads'] == 1 else 'threads'}"
            if "threads" in have
            else ""
        )
        cost.append(f"{have['device']}{threads}")
    if cost:
        lines.append(" on ".join(cost))
    if "code" in have:
        lines.append(f"code {have['code']}, {str(have.get('finished', ''))[:10]}")
    if "cell" in have:
        lines.append(str(have["cell"]))
    return "\n".join(lines)


def unit_of(column: str, *, scale: float = 100) -> str:
    """The unit of a column's numbers: points for gaps, percent for shares, nothing without ``scale``."""
    return "" if scale != 100 else " points" if "gap" in column.lower() else "%"


def origins_of_mean(rows: pd.DataFrame, column: str, *, scale: float = 100, unit: str | None = None) -> str:
    """The results that a mean is over: a line for each, with its stored cell."""
    unit = unit_of(column, scale=scale) if unit is None else unit
    first = rows.iloc[0]
    method = name_of(str(first["method"]), str(first.get("mask", "none")))
    values = scale * rows[column].astype(float)
    lost = len(values) - values.count()
    mean = f"{values.mean():.2f}{unit}, mean of {values.count()}" if values.count() else "diverged"
    mean += f", {lost} diverged" if lost and values.count() else ""
    places = [str(name) for name in rows["scenario"].unique()]
    lines = [f"{', '.join([method, *places[:2]])}: {column} {mean}"]
    for (_, row), value in zip(rows.iterrows(), values, strict=True):
        shown = "diverged" if math.isnan(value) else f"{value:.2f}{unit}"
        where = f"{row['scenario']}, " if len(places) > 1 else ""
        origin = f", {row['cell']}" if "cell" in rows else ""
        lines.append(f"{where}seed {row['seed']:.0f}: {shown}{origin}")
    if "code" in rows:
        lines.append(f"code {', '.join(dict.fromkeys(map(str, rows['code'])))}")
    return "\n".join(lines)
