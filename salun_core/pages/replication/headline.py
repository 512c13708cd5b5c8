"""The first page: three findings with their numbers and one figure, from the ledger and its results."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.lines import Line2D

from salun_core.metrics.gaps import AVERAGE, gaps, noise_floor, summary
from salun_core.metrics.statistics import by_unit
from salun_core.pages.figures.chart import MASK_LABELS, MASK_LOOK, Chart, panels, style
from salun_core.pages.markup import Bold, Bullets, Link, Part, Text
from salun_core.pages.published import published_folder, read_published
from salun_core.pages.replication.claims import Entry, measured, quick_ledger
from salun_core.pages.replication.verdicts import NOT_RUN
from salun_core.pages.results import Run, all_runs

QUESTIONS = {
    "salient beats random": "Does it matter that the weights are the salient ones?",
    "nearest at 10 %": "Is SalUn nearest to retraining?",
    "run time": "Is it cheaper than retraining?",
}
"""Claims on the first page, each with its question."""
MASKS = ("salient", "random", "least_salient", "none")
PAPER = {"salient": "salun", "none": "rl"}  # rows of the paper's Table 1


def strongest(entries: Sequence[Entry], claim: str) -> Entry | None:
    """The entry of a claim that the first page tells: of a recorded run if there is one, and of the most values.

    None where no run measures the claim.
    """
    mine = [entry for entry in entries if entry.claim.name == claim and entry.found is not None]
    return max(mine, key=lambda e: (e.run != "quick", e.found.evidence.n if e.found else 0), default=None)


def headline_findings(out_dir: Path | None = None) -> list[tuple[str, Entry | None]]:
    """The questions of the first page, each with the entry of the ledger that answers it."""
    entries = quick_ledger(out_dir)
    return [(question, strongest(entries, claim)) for claim, question in QUESTIONS.items()]


def findings(out_dir: Path | None = None) -> Text:
    """Three findings as sentences: question, verdict, and the measured effect with its interval."""
    said: list[tuple[Part, ...]] = []
    for question, entry in headline_findings(out_dir):
        if entry is None:
            said.append((Bold(question), f" {NOT_RUN[:1].upper()}{NOT_RUN[1:]}."))
            continue
        word = entry.verdict.word
        said.append((Bold(f"{question} {word[:1].upper()}{word[1:]}."), f" {effect_of(entry)}"))
    return Text(Bullets(said))


def effect_of(entry: Entry) -> str:
    """What was measured, with its interval, number of values and margin, and where."""
    claim, found = entry.claim, entry.found
    assert found is not None
    low, high = found.evidence.interval()
    interval = "" if math.isnan(low) else f" ({claim.shown(low)} to {claim.shown(high)})"
    margin = f"×{claim.margin:g}" if claim.unit == "factor" else f"{claim.margin:g} points"
    reason = f" It cannot be judged: {entry.verdict.reason}." if entry.verdict.reason else ""
    where = f"run {entry.run}, {found.scenario}".removesuffix(", ")
    words = found.what[:1].upper() + found.what[1:]
    return f"{words}: {claim.shown(found.evidence.mean)}{interval}, n = {found.evidence.n}, margin {margin}; {where}.{reason}"


def guide(out_dir: Path | None = None) -> Text:
    """Every claim that a run measures, in one line, linked to its chapter."""
    entries = quick_ledger(out_dir)
    said: list[tuple[Part, ...]] = []
    for claim in dict.fromkeys(entry.claim.name for entry in entries):
        entry = strongest(entries, claim)
        if entry is not None:
            link = Link(claim, f"../notebooks/{entry.claim.chapter}.ipynb")
            said.append((link, ": ", *measured(entry)))
    return Text(Bullets(said))


def masks_of(run: Run) -> pd.DataFrame:
    """Rows of random labelling under each mask, and of Retrain, of one run; empty where it has none."""
    rows = run.rows("saliency", "masks")
    return rows if rows.empty else rows[rows["method"].isin(["rl", "retrain"])]


def figure(out_dir: Path | None = None) -> Chart:
    """Average gap of random labelling under each mask against the noise of retraining, the paper's values hollow.

    Raises
    ------
    LookupError
        If no run has compared masks.
    """
    every = {run.name: rows for run in all_runs(out_dir) if len(rows := masks_of(run))}
    if not every:
        raise LookupError("no run has compared masks: execute the saliency notebook")
    name = max(every, key=lambda n: (n != "quick", every[n]["seed"].nunique()))
    rows = every[name]
    apart = gaps(rows[rows["replica"] == 0])
    floor = noise_floor(rows)[AVERAGE].astype(float)
    values = {
        mask: 100 * by_unit(apart[(apart["method"] == "rl") & (apart["mask"] == mask)], AVERAGE)
        for mask in MASKS
        if len(apart[(apart["method"] == "rl") & (apart["mask"] == mask)])
    }
    table1 = read_published(published_folder() / "table1_cifar10_resnet18_random.csv")
    table1 = table1[(table1["setting"] == "random data forgetting 10%") & (table1["metric"] == AVERAGE)]
    paper = dict(zip(table1["method"], table1["value"].astype(float), strict=True))
    with style():
        fig, axis = panels(height=0.42 * len(values) + 1.1)
        if len(floor):
            axis.axvspan(0, 100 * floor.max(), color="0.88", lw=0)
            axis.axvline(100 * floor.mean(), color="0.6", lw=1)
        for y, (mask, mine) in enumerate(values.items()):
            colour, marker = MASK_LOOK[mask]
            found = summary(mine)
            axis.plot(mine, [y] * len(mine), ".", color=colour, alpha=0.45, ms=5, mew=0)
            if not math.isnan(found["low"]):
                axis.plot([max(0, found["low"]), found["high"]], [y, y], color=colour, lw=1.8)
            axis.plot(found["mean"], y, marker, color=colour, mec="white", ms=8, zorder=3)
            if mask in PAPER:
                axis.plot(paper[PAPER[mask]], y, marker, mfc="none", mec=colour, ms=8, mew=1.4)
        axis.set_yticks(range(len(values)), [MASK_LABELS[mask] for mask in values])
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_xlabel("average gap to Retrain (points)")
        hollow = Line2D(
            [], [], ls="", marker="o", mfc="none", mec="black", label="the paper's Table 1, CIFAR-10"
        )
        axis.legend(handles=[hollow], loc="lower right")
    means = ", ".join(f"{MASK_LABELS[mask]} {mine.mean():.2f}" for mask, mine in values.items())
    first = rows.iloc[0]
    finding = f"Average gap to Retrain of random labelling, in points: {means}"
    noise = (
        f"; two retrained models lie {100 * floor.mean():.2f} apart (grey: up to the largest such gap)"
        if len(floor)
        else ""
    )
    n = min(len(mine) for mine in values.values())
    caption = (
        f"{finding}{noise}. {first['dataset']}, {first['arch']}, {first['scenario']}, run {name}: means with 95% t intervals over {n} "
        "training seeds. Hollow: the paper's SalUn and RL, on other data, with settings of its own."
    )
    return Chart(fig, f"{finding}.", caption)
