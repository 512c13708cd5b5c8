"""Sentences on what happens when the share to forget or the settings change, made from findings."""

import pandas as pd

from salun_core.pages.findings import stability as findings
from salun_core.pages.findings.stability import OverSettings, OverShares, Surface
from salun_core.pages.markup import Text
from salun_core.pages.words import counted, listed


def sentences(cells: pd.DataFrame, spread: pd.DataFrame, surface: pd.DataFrame | None = None) -> Text:
    """What the parts of the experiment show; the surface of settings is of the tuning seed, and not of every run."""
    shares = findings.over_shares(cells)
    said = [over_shares(shares), near(findings.over_settings(spread, shares.floor), shares)]
    if surface is not None and len(surface):
        said.append(by_keep(findings.surface(surface)))
    return Text(*said)


def over_shares(found: OverShares) -> str:
    """How far the methods drift over the shares."""
    worst = ", ".join(f"{name} {value:.1f}" for name, value in found.worst.items())
    text = f"The largest mean gap in UA over the shares is, in points: {worst}."
    if found.floor is None:
        return text
    return (
        f"{text} Two retrained models differ by up to {found.floor.largest:.1f}; within that at every share: "
        f"{listed(found.inside, 'no method')}."
    )


def near(found: OverSettings, shares: OverShares) -> str:
    """How many settings of each method bring UA near Retrain's."""
    if shares.floor is None:
        return (
            "No split was retrained twice, so there is no noise floor by which a setting could count as near."
        )
    said = ", ".join(f"{name} {close} of {n}" for name, (close, n) in found.near.items())
    return f"Settings that bring UA within {shares.floor.largest:.1f} points of Retrain's: {said}."


def over_settings(found: OverSettings) -> str:
    """Whose UA depends most on its settings."""
    wild, widest = next(iter(found.ranges.items()))
    text = f"The UA of {wild} varies most over its settings, by {widest:.0f} points"
    masked = "IU + salient mask"
    if {"IU", masked} <= set(found.ranges):
        text += f"; IU varies by {found.ranges['IU']:.0f} points without a mask and by {found.ranges[masked]:.0f} with one"
    return f"{text}."


def surface(found: Surface) -> str:
    """Where SalUn has its smallest distance."""
    return (
        f"SalUn's smallest distance to Retrain is {found.distance:.1f} points, at learning rate {found.lr:.2g}, "
        f"{counted(found.epochs, 'epoch')}, keep {found.keep:g}."
    )


def by_keep(found: Surface) -> str:
    """The smallest distance at each density."""
    said = ", ".join(f"{value:.1f} points at keep {keep:g}" for keep, value in found.by_keep.items())
    return f"The smallest distance on the surface is {said}."
