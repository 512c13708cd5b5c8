"""Sentences on frontiers of forgetting and keeping, made from findings."""

import math

import pandas as pd

from salun_core.pages.findings import frontier as findings
from salun_core.pages.findings.frontier import Along, Frontiers
from salun_core.pages.markup import Text
from salun_core.pages.text.masks import named
from salun_core.pages.words import counted, listed


def sentences(cells: pd.DataFrame) -> Text:
    """Who comes how near to the goal, over all strengths."""
    found = findings.frontiers(cells)
    return Text(said(found) + speed(found))


def said(found: Frontiers) -> str:
    """The share of the goal's rectangle that each method leaves out, and whether more than another Retrain does."""
    least, most = found.methods[0], found.methods[-1]
    first = [one.name for one in found.methods if share(one) == share(least)]
    who = f"{listed(first)} {'leaves' if len(first) == 1 else 'leave'}"
    floor = (
        ""
        if math.isnan(found.floor)
        else f" A second Retrain leaves out {100 * found.floor:.1f}% of it, which is the noise of retraining."
    )
    within = [
        one.name for one in found.methods if not math.isnan(found.floor) and one.interval[0] <= found.floor
    ]
    alike = f" By their intervals, not distinguishable from that: {listed(within)}." if within else ""
    return (
        f"Of what {found.aim} reaches, {who} out the least over all strengths ({share(least)}) and {most.name} "
        f"the most ({share(most)}).{floor}{alike}"
    )


def speed(found: Frontiers) -> str:
    """How far each mask gets in the same few steps, where they differ most; empty without other masks."""
    masks = {
        one.mask: one.points["UA"]
        for one in found.methods
        if one.method in ("salun", "rl") and one.mask not in ("none", "lora")
    }
    if "salient" not in masks or len(masks) < 2:
        return ""
    table = pd.DataFrame(masks)
    at = (table.max(axis=1) - table.min(axis=1)).idxmax()
    reached = listed([f"{100 * table.loc[at, mask]:.1f}% under {named(mask)}" for mask in table])
    return f" At equal settings and {at:g} times the default steps, UA is {reached}."


def share(one: Along) -> str:
    """A share left out with its interval, in percent."""
    low, high = one.interval
    mean = f"{100 * one.mean:.1f}%"
    return mean if math.isnan(low) else f"{mean}, 95% interval {100 * low:.1f} to {100 * high:.1f}"


def caption(found: Frontiers) -> str:
    """How the figure is to be read."""
    star = (
        "Retrain"
        if found.retrained
        else "the ideal: the class never drawn, the others as Original draws them"
    )
    return (
        f"{said(found)}{speed(found)} {'Class' if len(found.forgotten) == 1 else 'Classes'} {listed(found.forgotten)} forgotten, {counted(found.seeds, found.of_what)}, "
        f"{counted(found.runs, 'run')}, {found.samples}. Each line is one method at different "
        f"numbers of steps; points are means over runs, and the star and the dashed line show {star}. In the middle panel, up and to the right is better; in the "
        "right-hand panel, down and to the right. Values outside a panel are in the table."
    )
