"""Sentences on classifiers that forget, made from findings."""

import math

import pandas as pd

from salun_core.metrics.gaps import gaps
from salun_core.pages.findings import classification as findings
from salun_core.pages.findings.classification import (
    Agreement,
    ClassByClass,
    Costs,
    Floor,
    Pair,
    Ranking,
    TradeOff,
)
from salun_core.pages.markup import Bold, Paragraph, Text
from salun_core.pages.words import capital, counted, listed, percent


def sentences(cells: pd.DataFrame) -> Text:
    """What a comparison of methods shows, scenario by scenario."""
    if not (cells["method"] == "retrain").any():
        return Text(findings.NO_RETRAIN)
    said: list[Paragraph] = []
    for scenario in dict.fromkeys(cells["scenario"]):
        found = findings.ranking(cells, scenario)
        if not found.gaps:
            continue
        said.append((Bold(f"{capital(scenario)}."), f" {ranking(found)} {distances(found)}".rstrip()))
        if others := beside_nothing(found):
            said.append(others)
        rows = findings.named(gaps(cells[cells["scenario"] == scenario]))
        if mask := findings.pair(rows, "RL", "SalUn"):
            said.append(pair(mask, found.floor))
        if found.diverged:
            said.append(diverged(found))
    return Text(*said)


def ranking(found: Ranking) -> str:
    """Which methods may be the nearest to Retrain."""
    names = list(found.gaps)
    first = names[0]
    if len(found.nearest) == 1 and found.within_noise:
        return (
            f"{first} has the smallest average gap over {found.seeds} seeds, {found.gaps[first]:.2f} points; the next is "
            f"{names[1]} with {found.gaps[names[1]]:.2f}, but two retrained models differ by more than that."
        )
    if len(found.nearest) == 1:
        return (
            f"{first} is the nearest to Retrain, with an average gap of {found.gaps[first]:.2f} points; over "
            f"{found.seeds} seeds every other method is clearly farther."
        )
    if found.nearest:
        gaps_of = [found.gaps[name] for name in found.nearest]
        return (
            f"The {found.seeds} seeds do not show which method is nearest to Retrain: {listed(found.nearest)} "
            f"have average gaps of {min(gaps_of):.2f} to {max(gaps_of):.2f} points and cannot be told apart."
        )
    return (
        f"On this one seed {first} has the smallest average gap, {found.gaps[first]:.2f} points; one seed cannot show "
        "whether another method is as near."
    )


def distances(found: Ranking) -> str:
    """How the gaps compare with the noise of retraining; empty where it was not measured."""
    if found.floor is None:
        return ""
    inside = listed(found.inside) if found.inside else "no method"
    return (
        f"Two models retrained on one split lie {found.floor.mean:.2f} points apart on average and at most "
        f"{found.floor.largest:.2f} (n = {counted(found.floor.pairs, 'pair')}); "
        f"within the larger of these: {inside}."
    )


def beside_nothing(found: Ranking) -> str:
    """Which methods are no nearer than the original model; empty where it was not run."""
    if math.isnan(found.nothing):
        return ""
    worse = found.no_nearer
    return f"Doing nothing has an average gap of {found.nothing:.2f} points; " + (
        f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} no nearer."
        if worse
        else "every method is nearer."
    )


def pair(found: Pair, noise: Floor | None = None) -> str:
    """Whether two variants differ, at which settings they were compared, and whether by more than retrained models do."""
    how = "at equal settings" if found.same_settings else "each at its own settings"
    text = (
        f"{found.first} and {found.second}, {how}, have average gaps of {found.gaps[0]:.2f} and "
        f"{found.gaps[1]:.2f} points"
    )
    if math.isnan(found.low):
        return f"{text} (one seed, so no interval)."
    sign = (
        f"{found.second} is nearer"
        if found.low > 0
        else f"{found.first} is nearer"
        if found.high < 0
        else "the sign is undetermined"
    )
    decided = found.low * found.high > 0
    if noise is not None and found.same_settings and decided and abs(found.mean) < noise.mean:
        sign += ", but two retrained models differ by more than that"
    return (
        f"{text}: a difference of {found.mean:+.2f}, with a 95% interval over {found.seeds} seeds from {found.low:+.2f} to "
        f"{found.high:+.2f}; {sign}."
    )


def diverged(found: Ranking) -> str:
    """Which runs diverged; their seeds are in no mean."""
    runs = ", ".join(f"{name} in {counted(count, 'run')}" for name, count in found.diverged.items())
    return f"Diverged, and therefore excluded from all means: {runs}."


def trade_off(found: TradeOff) -> str:
    """Which methods lie where retrained models lie."""
    least, distance = next(iter(found.distances.items()))
    said = (
        f"The mean of all retrained models is UA {found.retrain[0]:.1f}% and TA {found.retrain[1]:.1f}%, and a single one lies up "
        f"to {found.scatter:.1f} points away from it"
    )
    if found.inside:
        return f"{said}. Within that distance lies the mean of {listed(found.inside)}."
    return f"{said}. The mean of every method lies farther away, that of {least} by {distance:.1f} points."


def agreement(found: Agreement) -> str:
    """Whether our order of methods is the paper's."""
    if math.isnan(found.correlation):
        return f"The paper and this run share {counted(len(found.methods), 'method')}, too few to compare their order."
    return (
        f"Over {len(found.methods)} methods, the rank correlation of our order with the paper's is "
        f"{found.correlation:.2f}, where 1 is the same order and 0 an unrelated one."
    )


def costs(found: Costs) -> str:
    """What the dearest and the cheapest method cost, and after how many requests tuning has paid."""
    dear, cheap = found.methods[0], found.methods[-1]
    text = (
        f"Unlearning takes between {percent(cheap.seconds)} ({cheap.name}) and {percent(dear.seconds)} ({dear.name}) of "
        f"the {found.retrain:.1f} s of retraining"
    )
    tuned = [each for each in found.methods if not math.isnan(each.tuning)]
    if not tuned:
        return f"{text}; nothing was tuned, or its cost is not known."
    counts = {each.name: each.break_even for each in tuned}
    finite = {name: math.ceil(count) for name, count in counts.items() if math.isfinite(count)}
    if not finite:
        return f"{text}; tuning is never repaid."
    few, many = min(finite, key=lambda n: finite[n]), max(finite, key=lambda n: finite[n])
    never = [name for name in counts if name not in finite]
    rest = f", and never for {listed(never)}" if never else ""
    return (
        f"{text}; with tuning included, unlearning becomes cheaper than retraining after {finite[few]} ({few}) to {finite[many]} "
        f"({many}) requests{rest}."
    )


def class_by_class(found: ClassByClass) -> str:
    """Which methods may be the best over the classes, and which class is hard."""
    n = len(found.classes)
    first = next(iter(found.means))
    if len(found.nearest) == 1:
        text = (
            f"Over {n} classes {first} is the nearest to Retrain, {found.means[first]:.2f} points on average and "
            f"{found.worst[first]:.2f} at worst"
        )
    elif found.nearest:
        text = (
            f"{n} classes do not show which method is nearest to Retrain on average: {listed(found.nearest)} cannot be "
            f"told apart ({min(found.means[m] for m in found.nearest):.2f} to "
            f"{max(found.means[m] for m in found.nearest):.2f} points)"
        )
    else:
        text = f"For the one class forgotten, {first} has the smallest gap, {found.means[first]:.2f} points"
    return f"{text}. The hardest class is {found.hardest}, where the smallest gap is {found.hardest_gap:.2f} points."


def class_sentences(cells: pd.DataFrame) -> Text:
    """What forgetting class by class shows."""
    found = findings.class_by_class(cells)
    said = class_by_class(found)
    if found.mask_wins >= 0:
        said += (
            f" SalUn has a smaller gap than random labelling without a mask for {found.mask_wins} of "
            f"{len(found.classes)} classes, each at its own settings."
        )
    return Text(said)
