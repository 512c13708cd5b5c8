"""The first page: three findings with their numbers and one figure, from the ledger and its results."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from salun_core.metrics.gaps import AVERAGE, gaps, noise_floor, summary
from salun_core.metrics.statistics import by_unit
from salun_core.pages.figures.chart import MASK_LOOK, NARROW, Card, Chart, panels, style
from salun_core.pages.markup import Bold, Bullets, Link, Part, Text
from salun_core.pages.published import published_folder, read_published
from salun_core.pages.replication.claims import Entry, ledger, measured, quick_ledger
from salun_core.pages.replication.verdicts import NOT_RUN
from salun_core.pages.results import Run, all_runs
from salun_core.pages.words import MASK_LABELS, data_and_network

QUESTIONS = {
    "salient beats random": "Is it better to change the salient weights than random ones?",
    "nearest at 10%": "Is SalUn nearest to retraining?",
    "run time": "Is it cheaper than retraining?",
}
"""Claims on the first page, each with its question."""
MARKS = ("<!-- findings: written by `make notebooks` -->", "<!-- end of findings -->")
"""Between them the README says what was found."""
MAIN = "random 10%"  # the scenario of the paper's Table 1
MASKS = ("salient", "random", "least_salient", "none")
PAPER = {"salient": "salun", "none": "rl"}  # rows of the paper's Table 1


def strongest(entries: Sequence[Entry], claim: str) -> Entry | None:
    """The entry of a claim that the first page tells.

    Of a recorded run if there is one, of the most values, and of these in the scenario of the paper's main table and
    against the most rivals. None where no run measures the claim.
    """
    mine = [(e, e.found) for e in entries if e.claim.name == claim and e.found is not None]
    rank = [
        (e.run != "quick", found.evidence.n, found.scenario == MAIN, found.evidence.rivals)
        for e, found in mine
    ]
    return mine[rank.index(max(rank))][0] if mine else None


def headline_findings(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """The questions of the first page, each with the verdict and what was measured; the latter is empty if nothing was."""
    found = []
    for claim, question in QUESTIONS.items():
        entry = strongest(entries, claim)
        word = NOT_RUN if entry is None else entry.verdict.word
        said = "" if entry is None else " ".join([effect_of(entry), *otherwise(entry, entries)])
        found.append((question, word[:1].upper() + word[1:], said))
    return found


def findings(out_dir: Path | None = None) -> Text:
    """Three findings as sentences: question, verdict, and the measured effect with its interval."""
    said: list[tuple[Part, ...]] = [
        (Bold(f"{question} {word}."), f" {effect}") if effect else (Bold(question), f" {word}.")
        for question, word, effect in headline_findings(quick_ledger(out_dir))
    ]
    return Text(Bullets(said))


def readme(text: str, runs: Sequence[Run] | None = None) -> str:
    """The README with the findings of the recorded runs between its marks; quick runs differ from machine to machine.

    Parameters
    ----------
    text : str
        As it stands.
    runs : sequence of Run, optional
        All recorded runs by default.
    """
    if runs is None:
        runs = [run for run in all_runs() if run.name != "quick"]
    lines = [
        f"- **{question} {word}.** {effect}"
        for question, word, effect in headline_findings(ledger(runs))
        if effect
    ]
    if not lines:
        lines = [
            "Nothing is recorded at present. `make book` measures it on small images, and the first page says what came out."
        ]
    start, end = MARKS
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return "\n".join([before + start, *lines, end + after])


def effect_of(entry: Entry) -> str:
    """What was measured, with its interval and number of values, and where."""
    found = entry.found
    assert found is not None
    reason = f" It cannot be judged: {entry.verdict.reason}." if entry.verdict.reason else ""
    where = f"run {entry.run}, {found.scenario}".removesuffix(", ")
    words = found.what[:1].upper() + found.what[1:]
    return f"{words}: {size_of(entry)}, n = {found.evidence.n}; {where}.{reason}"


def size_of(entry: Entry, *, unit: bool = True) -> str:
    """The mean with its unit and interval."""
    claim, found = entry.claim, entry.found
    assert found is not None
    low, high = found.evidence.interval()
    interval = "" if math.isnan(low) else f" ({claim.shown(low)} to {claim.shown(high)})"
    points = " points" if unit and claim.unit == "points" else ""
    return f"{claim.shown(found.evidence.mean)}{points}{interval}"


def otherwise(entry: Entry, entries: Sequence[Entry]) -> list[str]:
    """The same at other settings, where the run has that too: a verdict may turn on them."""
    assert entry.found is not None
    alike = [
        (other, other.found.how)
        for other in entries
        if other.found is not None
        and other.found.how != entry.found.how
        and (other.claim.name, other.run, other.found.scenario)
        == (entry.claim.name, entry.run, entry.found.scenario)
    ]
    return [
        f"{how[:1].upper()}{how[1:]} {other.verdict.word}: {size_of(other, unit=False)}."
        for other, how in alike
    ]


def guide(out_dir: Path | None = None) -> Text:
    """Every claim that a run measures, in one line, linked to the page that shows the run."""
    entries = quick_ledger(out_dir)
    said: list[tuple[Part, ...]] = []
    for claim in dict.fromkeys(entry.claim.name for entry in entries):
        entry = strongest(entries, claim)
        if entry is not None:
            link = Link(claim, f"../notebooks/{entry.page}.ipynb")
            said.append((link, ": ", *measured(entry), *(f" {each}" for each in otherwise(entry, entries))))
    return Text(Bullets(said))


def masks_of(run: Run) -> pd.DataFrame:
    """Rows of random labelling under each mask, and of Retrain, of one run; empty where it has none."""
    rows = run.rows("saliency", "masks")
    return rows if rows.empty else rows[rows["method"].isin(["rl", "retrain"])]


@dataclass(frozen=True)
class Comparison:
    """Random labelling under each mask in one run.

    Parameters
    ----------
    run : str
        The recorded run with most seeds, or the quick one.
    first : Series
        A row of it, for data and network.
    apart : dict of str to Series
        Average gap to Retrain in points, by training seed, for each mask.
    floor : Series
        The same between retrained models of one split.
    """

    run: str
    first: pd.Series
    apart: dict[str, pd.Series]
    floor: pd.Series


def comparison(out_dir: Path | None = None) -> Comparison:
    """What the first page shows.

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
    apart = gaps(rows)  # to the mean of all retrained models, as in the verdicts
    labelled = apart[apart["method"] == "rl"]
    values = {
        mask: 100 * by_unit(mine, AVERAGE)
        for mask in MASKS
        if len(mine := labelled[labelled["mask"] == mask])
    }
    return Comparison(name, rows.iloc[0], values, 100 * noise_floor(rows)[AVERAGE].astype(float))


def draw(axis: Axes, found: Comparison) -> None:
    """Draw a comparison, with the paper's values hollow."""
    table1 = read_published(published_folder() / "table1_cifar10_resnet18_random.csv")
    table1 = table1[(table1["setting"] == "random data forgetting 10%") & (table1["metric"] == AVERAGE)]
    paper = dict(zip(table1["method"], table1["value"].astype(float), strict=True))
    if len(found.floor):
        axis.axvspan(0, found.floor.max(), color="0.88", lw=0)
        axis.axvline(found.floor.mean(), color="0.6", lw=1)
    for y, (mask, mine) in enumerate(found.apart.items()):
        colour, marker = MASK_LOOK[mask]
        of_all = summary(mine)
        axis.plot(mine, [y] * len(mine), ".", color=colour, alpha=0.45, ms=5, mew=0)
        if not math.isnan(of_all["low"]):
            axis.plot([max(0, of_all["low"]), of_all["high"]], [y, y], color=colour, lw=1.8)
        axis.plot(of_all["mean"], y, marker, color=colour, mec="white", ms=8, zorder=3)
        if mask in PAPER:
            axis.plot(paper[PAPER[mask]], y, marker, mfc="none", mec=colour, ms=8, mew=1.4)
    axis.set_yticks(range(len(found.apart)), [MASK_LABELS[mask] for mask in found.apart])
    axis.set_ylim(len(found.apart) - 0.5, -0.5)  # the first on top
    axis.set_xlim(left=0)
    axis.set_xlabel("average gap to Retrain (points)")
    marks: list[Artist] = [
        Line2D([], [], ls="", marker="o", mfc="none", mec="black", label="the paper's Table 1, CIFAR-10")
    ]
    if len(found.floor):
        marks.append(Patch(color="0.88", label="two retrained models"))
    axis.legend(
        handles=marks,
        ncols=2,
        columnspacing=1,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
    )


def figure(out_dir: Path | None = None) -> Chart:
    """Average gap of random labelling under each mask against the noise of retraining, the paper's values hollow.

    Raises
    ------
    LookupError
        If no run has compared masks.
    """
    found = comparison(out_dir)
    with style():
        fig, axis = panels(width=NARROW, height=0.24 * len(found.apart) + 0.78)
        draw(axis, found)
    means = ", ".join(f"{MASK_LABELS[mask]} {mine.mean():.2f}" for mask, mine in found.apart.items())
    first = found.first
    finding = f"Average gap to Retrain of random labelling, in points: {means}"
    noise = (
        f"; two retrained models lie {found.floor.mean():.2f} apart on average (grey: up to the largest such gap)"
        if len(found.floor)
        else ""
    )
    n = min(len(mine) for mine in found.apart.values())
    caption = (
        f"{finding}{noise}. {data_and_network(first)}, {first['scenario']}, run {found.run}: means with 95% t intervals over "
        f"{n} training seeds. Hollow: SalUn and RL in the paper, on different data with different settings."
    )
    return Chart(fig, f"{finding}.", caption)


def card(out_dir: Path | None = None) -> Card:
    """The question of the book, its first finding and its figure, for links to it elsewhere.

    Raises
    ------
    LookupError
        If no run has compared masks.
    """
    found = comparison(out_dir)
    answer = str(findings(out_dir)).splitlines()[0].removeprefix("- ").replace("? ", "?\n", 1)
    with style():
        fig = Figure(figsize=(12, 6.3))
        fig.set_layout_engine("none")
        fig.text(0.05, 0.87, "Does SalUn's mask matter?", fontsize=36, weight="bold")
        lines = (part for line in answer.split("\n") for part in textwrap.wrap(line, 88))
        fig.text(0.05, 0.83, "\n".join(lines), fontsize=16, va="top", linespacing=1.35)
        axis = fig.add_axes((0.19, 0.12, 0.76, 0.38))
        draw(axis, found)
        axis.tick_params(labelsize=14)
        axis.xaxis.label.set_fontsize(14)
        fig.text(0.95, 0.03, "SalUn, reproducible", fontsize=14, ha="right", color="0.35")
    return Card(fig, answer.replace("\n", " "))
