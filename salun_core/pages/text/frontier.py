"""Sentences on frontiers of forgetting and keeping, made from findings."""

import math

import pandas as pd

from salun_core.pages.findings import frontier as findings
from salun_core.pages.findings.frontier import Along, Frontiers
from salun_core.pages.markup import Text
from salun_core.pages.words import counted, listed


def sentences(cells: pd.DataFrame) -> Text:
    """Who comes how near to what Retrain reaches, over all strengths."""
    return Text(said(findings.frontiers(cells)))


def said(found: Frontiers) -> str:
    """The share of Retrain's rectangle that each method leaves out, and whether more than another Retrain does."""
    least, most = found.methods[0], found.methods[-1]
    floor = (
        ""
        if math.isnan(found.floor)
        else f" Another Retrain leaves out {100 * found.floor:.1f}% of it, which is the noise of retraining."
    )
    within = [
        one.name for one in found.methods if not math.isnan(found.floor) and one.interval[0] <= found.floor
    ]
    alike = f" Not told from that by its interval: {listed(within)}." if within else ""
    return (
        f"Of what Retrain reaches, {least.name} leaves out least over its strengths ({share(least)}) and {most.name} "
        f"most ({share(most)}).{floor}{alike}"
    )


def share(one: Along) -> str:
    """A share left out with its interval, in percent."""
    low, high = one.interval
    mean = f"{100 * one.mean:.1f}%"
    return mean if math.isnan(low) else f"{mean}, 95% interval {100 * low:.1f} to {100 * high:.1f}"


def caption(found: Frontiers) -> str:
    """How the figure is to be read."""
    return (
        f"{said(found)} Class {listed(found.forgotten)} forgotten, {counted(found.seeds, 'training seed')}, "
        f"{counted(found.runs, 'run')}, {found.samples}. Each line is one method at fewer and more "
        "steps; points are means over runs, the star is Retrain. To be read: up and to the right is better on the left, "
        "down and to the right on the right."
    )
