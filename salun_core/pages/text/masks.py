"""Sentences on the saliency mask, made from findings."""

import pandas as pd

from salun_core.pages.findings import masks as findings
from salun_core.pages.findings.masks import (
    AfterEpochs,
    AgainstControl,
    LayerShares,
    MarkedShares,
    MaskAgreement,
    MaskComparison,
    OverDensity,
    ScoreSpan,
)
from salun_core.pages.markup import Text
from salun_core.pages.words import MASK_LABELS, counted, listed


def sentences(cells: pd.DataFrame) -> Text:
    """Whether the salient mask is nearer to Retrain than the other masks, by method."""
    found = findings.masks_compared(cells)
    brackets = f"In brackets: reduction of the average gap in points, over {counted(found.seeds, 'seed')}."
    return Text(*(against(control) for control in found.controls), f"{brackets} {rule(found)}")


def against(found: AgainstControl) -> str:
    """The salient mask against one control."""
    parts = [
        f"{words} for {', '.join(f'{name} ({found.methods[name].mean:+.2f})' for name in names)}"
        for words, names in (
            ("clearly nearer to Retrain", found.nearer),
            ("clearly farther", found.farther),
            ("not clearly different", found.unclear),
        )
        if names
    ]
    return f"Against {named(found.control)}, the salient mask is {'; '.join(parts)}."


def rule(found: MaskComparison) -> str:
    """What was compared, at which settings, and what counts as clear."""
    how = (
        "Every method has the same settings under all masks."
        if found.same_settings
        else "Every method was tuned separately under every mask, so settings differ between the masks."
    )
    noise = (
        f" Two models retrained on one split lie {found.floor.mean:.2f} points apart on average."
        if found.floor
        else ""
    )
    return f"A difference is clear if its 95% t interval excludes 0. {how}{noise}"


def summary(found: MaskComparison) -> str:
    """Than which controls the salient mask is clearly nearer, clearly farther, or neither, and for how many methods."""

    def those(relation: str) -> list[str]:
        several = [(control, len(getattr(control, relation))) for control in found.controls]
        return [
            named(control.control)
            + (f" for {count} of {len(control.methods)} methods" if len(control.methods) > 1 else "")
            for control, count in several
            if count
        ]

    parts = [
        f"{words} {listed(names)}"
        for words, relation in (
            ("clearly nearer to Retrain than", "nearer"),
            ("clearly farther from Retrain than", "farther"),
            ("not clearly different from", "unclear"),
        )
        if (names := those(relation))
    ]
    return f"The salient mask is {'; '.join(parts)}."


def named(kind: str) -> str:
    """A kind of mask in a sentence."""
    label = MASK_LABELS[kind]
    return f"the {label}" if "mask" in label and kind != "none" else label


def layer_shares(found: LayerShares) -> str:
    """Where the salient weights lie."""
    return (
        f"The share of salient weights runs from {found.least[1]:.0f}% in {found.least[0]} to {found.most[1]:.0f}% in "
        f"{found.most[0]}; {found.keep:g}% over all layers."
    )


def agreement(found: MaskAgreement) -> str:
    """Which masks agree least and most."""
    overlaps = list(found.overlaps.items())
    (least, low), (most, high) = overlaps[0], overlaps[-1]
    return (
        f"Masks agree least for {least} (IoU {low:.2f}) and most for {most} ({high:.2f}); two random masks reach "
        f"{found.expected:.2f}."
    )


def over_density(found: OverDensity | None) -> str:
    """Whether the ranking shows at some density."""
    if found is None:
        return "Only one kind of mask was run, so there is nothing to compare."
    return (
        f"UA under salient and random masks of equal density differs by at most {found.apart:.1f} points, at "
        f"{found.keep:g}% of the weights."
    )


def score_span(found: ScoreSpan) -> str:
    """How far scores spread, and how many weights have none."""
    return (
        f"The scores span {found.powers:.0f} orders of magnitude; {100 * found.zero:.0f}% of the weights have a score of "
        "exactly 0."
    )


def threshold(found: ScoreSpan) -> str:
    """Where the mask draws its line."""
    if found.threshold > 0:
        return f"The threshold that keeps {100 * found.keep:g}% is {found.threshold:.2g}."
    return (
        f"As fewer than {100 * found.keep:g}% have a score above 0, the mask marks all of them and fills up the number with "
        "others."
    )


def marked_shares(found: MarkedShares) -> str:
    """How much of each layer is marked."""
    shares = ", ".join(f"{share:.0f}% in {name}" for name, share in found.layers.items())
    return f"Of all weights {found.all:.0f}% are salient: {shares}."


def after_epochs(found: AfterEpochs) -> str:
    """Where forgetting ends with the mask and without it."""
    return (
        f"After {counted(found.epochs, 'epoch')} UA is {found.UA['salient']:.0f}% with the mask and "
        f"{found.UA['none']:.0f}% without it, TA {found.TA['salient']:.1f}% and {found.TA['none']:.1f}%."
    )
