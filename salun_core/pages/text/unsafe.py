"""Sentences on unsafe content, made from findings."""

from collections.abc import Mapping

import pandas as pd

from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.experiments.text_to_image.unsafe import UnsafeResults
from salun_core.pages.findings import unsafe as findings
from salun_core.pages.findings.unsafe import (
    Attack,
    DetectedShares,
    DetectionsLeft,
    Front,
    Recoveries,
    Seconds,
    Unnamed,
)
from salun_core.pages.markup import Text
from salun_core.pages.words import capital, counted, listed


def attack_sentences(results: UnsafeResults) -> Text:
    """What the search brings back, and how far it may go."""
    found = findings.attack(results)
    return Text(attack(found), reach(found))


def attack(found: Attack) -> str:
    """Under which methods the concept comes back."""
    return (
        f"Within {counted(found.steps, 'step')} the search finds an embedding that brings the concept back in at least half "
        f"of the images for {listed(found.found, 'no method')}; for {listed(found.only_by_search, 'none of them')}, no "
        "prompt without its name did so."
    )


def reach(found: Attack) -> str:
    """Whether the search could leave the neighbourhood of the forgotten prompt."""
    far = (
        "The search could thus reach another prompt of the same kind, so what it finds need not lie near the forgotten one."
        if found.between <= found.radius
        else "The search thus stays nearer to the forgotten prompt than another prompt of the same kind is."
    )
    first, other = found.prompts
    return (
        f"A token may move by {found.radius:g} of its length; from {first!r} to {other!r} the token that moves most moves by "
        f"{found.between:.2f}. {far}"
    )


def unnamed_sentences(results: UnsafeResults, real: pd.DataFrame) -> Text:
    """What prompts that do not name the concept bring up, beside what the detector finds where there is nothing."""
    found = findings.unnamed(results, real)
    return Text(shown(found), false_alarms(found))


def shown(found: Unnamed) -> str:
    """How often the concept is detected."""
    said = ", ".join(f"{name} {100 * value:.1f}%" for name, value in found.shown.items())
    return f"The concept is detected (score at least {found.threshold:g}) in: {said}."


def false_alarms(found: Unnamed) -> str:
    """What the detector finds where there is nothing, and which methods show no more."""
    value, low, high = (100 * share for share in found.false_alarms)
    return (
        f"In {found.n} held-out images of the data set that do not show it, the detector finds it in {value:.1f}% "
        f"({low:.1f} to {high:.1f}%) at threshold {found.at:.2f}. Not above this false-positive rate: "
        f"{listed(found.within, 'no method')}."
    )


def published_counts() -> Text:
    """The counts that the paper's first author gave for SalUn in Figure 5."""
    found = findings.published_counts()
    return Text(
        f"Published for SalUn on {found.dataset}, {found.setting}: {', '.join(map(str, found.counts))} detections in the "
        f"{len(found.counts)} body parts of the figure, {sum(found.counts)} in all ({found.source}). The source does not name the "
        "parts, so counts by part cannot be compared; their sum can, given the same version of the detector, the same "
        "threshold and the same number of images for each prompt."
    )


def seconds_sentence(lab: TextLab, probes: pd.DataFrame, cells: pd.DataFrame) -> Text:
    """What unlearning and probing cost."""
    return Text(seconds(findings.seconds(lab, probes, cells)))


def seconds(found: Seconds) -> str:
    """Times of unlearning and probing."""
    return f"Unlearning took {found.unlearning:.0f} s for {counted(found.models, 'model')}, the probes {found.probing:.0f} s."


def detections(found: DetectionsLeft) -> str:
    """How many detections are left."""
    where = f"of {', '.join(found.categories)}" if found.categories else "in all categories"
    return f"Detections {where}: {', '.join(f'{name} {count:,}' for name, count in found.counts.items())}."


def detected_shares(found: DetectedShares) -> str:
    """How often something is found at the middle threshold."""
    said = ", ".join(f"{100 * share:.0f}% of the images of {name}" for name, share in found.shares.items())
    return f"At threshold {found.threshold:.2f}, something is detected in {said}."


def recoveries(found: Recoveries) -> str:
    """Under which methods the concept comes back, and when."""
    own = {name: step for name, step in found.steps.items() if name != "Original"}
    back = [
        f"{'from the start' if step == 0 else f'after {step} steps'} for {name}"
        for name, step in own.items()
        if step is not None
    ]
    stay = [name for name, step in own.items() if step is None]
    said = f"The concept is back in half of the images {', '.join(back) or 'for no method'}"
    return f"{said}; within these steps it does not come back for {listed(stay)}." if stay else f"{said}."


def fronts(found: Mapping[str, Front]) -> str:
    """Which methods no other beats in both, by kind of attack."""
    said = []
    for title, front in found.items():
        best = "; ".join(
            f"{name} ({erased:.0f}% erased, {utility:.0f}% utility)"
            for name, (erased, utility) in front.undominated.items()
        )
        said.append(f"{capital(title)}: no method is better in both than {best}.")
    return " ".join(said)


def weakest(found: Mapping[str, Front]) -> str:
    """Where the concept appears most, by kind of attack."""
    said = "; ".join(
        f"{title}: {front.weakest[0]} for {front.weakest[1]} of {front.weakest[2]} methods"
        for title, front in found.items()
    )
    return f"Where the concept appears most: {said}."
