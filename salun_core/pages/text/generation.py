"""Sentences on generative models, made from findings."""

import math

import pandas as pd

from salun_core.pages.findings import generation as findings
from salun_core.pages.findings.generation import Forgetting, Instead, MaskChanges
from salun_core.pages.markup import Text
from salun_core.pages.text.masks import named
from salun_core.pages.words import counted, listed


def sentences(cells: pd.DataFrame) -> Text:
    """Who forgets, who forgets too much, and what it costs beside retraining."""
    found = findings.forgetting(cells)
    said = [before(found), too_little_or_much(found), like_retrain(found)]
    distance = cells.loc[cells["status"] == "done", "distance"].iloc[0]
    said.append(
        f"Two sets of real images lie {found.floor:.2f} apart ({distance}). Samples of the other classes lie within that "
        f"distance for: {listed(found.within_floor)}."
    )
    return Text(*filter(None, said))


def before(found: Forgetting) -> str:
    """What the judge recognises before anything is forgotten; empty where the original was not run."""
    if math.isnan(found.before[0]):
        return ""
    return (
        f"The judge recognises {100 * found.before[0]:.1f}% of the original model's samples of the class to be forgotten "
        f"and {100 * found.before[1]:.1f}% of the others."
    )


def too_little_or_much(found: Forgetting) -> str:
    """Who forgets too little and too much."""
    return (
        f"Under-forgetting (UA below one half): {listed(found.too_little)}. Over-forgetting (the other classes recognised "
        f"less than 90% as often as before): {listed(found.too_much)}."
    )


def like_retrain(found: Forgetting) -> str:
    """Who cannot be told from Retrain; empty where it was not run."""
    if not found.distances:
        return ""
    said = f"By their 95% intervals, not distinguishable from Retrain with these samples: {listed(found.like_retrain)}."
    if not found.like_retrain:
        least = next(iter(found.distances))
        said += f" The smallest difference in UA and other classes together is {found.distances[least]:.1f} points ({least})."
    times = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in found.seconds.items() if name in found.like_retrain
    )
    if math.isnan(found.seconds["Retrain"]):  # it was not trained here
        return said
    return f"{said} Retrain takes {found.seconds['Retrain']:.0f} s{f'; {times}' if times else ''}."


def both(found: Forgetting) -> str:
    """Who reaches both: the class forgotten, the others kept."""
    of = "them" if math.isnan(found.before[0]) else "what the original has"
    return (
        f"At least 95% in UA, and at least 95% of {of} in the other classes: {listed(found.both, 'no method')} "
        f"(of {found.unlearned})."
    )


def mask_sentences(masks: pd.DataFrame) -> Text:
    """Whether it matters which weights the mask keeps."""
    found = findings.mask_changes(masks)
    if found is None:
        return Text("This run has nothing to compare the salient mask with.")
    return Text(mask_changes(found))


def mask_changes(found: MaskChanges) -> str:
    """What the salient mask changes against each other kind."""
    said = "; ".join(
        f"against {named(kind)} {change.UA:+.1f} points of UA, {change.OA:+.1f} of other classes, "
        f"{change.FD:+.2f} of Fréchet distance"
        for kind, change in found.against.items()
    )
    alike = [named(kind) for kind, change in found.against.items() if change.alike]
    return (
        f"Change under the salient mask, {said} (n = {counted(found.runs, 'run')}). One sample more or less is "
        f"{100 / found.n_class:.1f} points of UA. In UA and in the other classes, by the 95% intervals of the samples, "
        f"it cannot be distinguished from: {listed(alike)}."
    )


def instead(found: Instead) -> str:
    """What appears in place of the forgotten class."""
    seen = ", ".join(f"{name} {cls} ({percent:.0f}%)" for name, (cls, percent) in found.seen.items())
    return f"When {found.forgotten} is requested, most often recognised: {seen}."
