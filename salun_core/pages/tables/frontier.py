"""Table of frontiers of forgetting and keeping."""

import math

import pandas as pd

from salun_core.pages.findings import frontier as findings
from salun_core.pages.findings.frontier import Along, neighbour
from salun_core.pages.tables.table import Table, number
from salun_core.pages.words import capital, counted, listed


def frontier_table(cells: pd.DataFrame) -> Table:
    """Method × (share of the goal's rectangle left out, and the strength nearest to the goal)."""
    found = findings.frontiers(cells)
    lines = [_line(one) for one in found.methods]
    goal = found.goal
    lines.append(
        {
            "Method": capital(found.aim),
            "Left out (%)": number(100 * found.floor, 1),
            "at × steps": "–",
            **_point(goal),
        }
    )
    pairs = [f"{name} ({neighbour(name)})" for name in found.forgotten if neighbour(name)]
    named = f" Neighbour: the class that looks like the forgotten one, {listed(pairs)}." if pairs else ""
    last = (
        "The row of Retrain shows what a second Retrain leaves out."
        if found.retrained
        else "There is no Retrain here; the ideal never draws the class, and draws the others as Original does."
    )
    caption = (
        f"Frontier: share of the rectangle below {found.aim}'s UA and accuracy of the other classes that a method "
        f"does not cover at any strength, with its 95% t interval over {counted(found.seeds, found.of_what)} "
        f"({counted(found.runs, 'run')}, {found.samples}); then the strength nearest to {found.aim}. {last}{named}"
    )
    frame = pd.DataFrame(lines)
    return Table(frame if pairs else frame.drop(columns="Neighbour"), caption)


def _line(one: Along) -> dict[str, str]:
    low, high = one.interval
    span = "" if math.isnan(low) else f"\n({100 * low:.1f}–{100 * high:.1f})"
    return {
        "Method": one.name,
        "Left out (%)": f"{100 * one.mean:.1f}{span}",
        "at × steps": f"{one.nearest.name:g}",
        **_point(one.nearest),
    }


def _point(point: pd.Series) -> dict[str, str]:
    return {
        "UA": number(100 * point["UA"], 1),
        "Others": number(100 * point["OA"], 1),
        "Neighbour": number(100 * point["neighbour"], 1),
        "FD": number(point["FD"]),
    }
