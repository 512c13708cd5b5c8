"""The ledger of the paper's claims: what the paper says, what we measured, and a verdict by a rule fixed before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.plain_values import read_yaml
from salun_core.pages.markup import Bold, Bullets, Code, Link, Part, Text
from salun_core.pages.published import published_folder
from salun_core.pages.replication.measurements import MEASUREMENTS
from salun_core.pages.replication.paper import REPORTS, Reported
from salun_core.pages.replication.verdicts import (
    NOT_RUN,
    WORDS,
    Measurement,
    Verdict,
    judge,
)
from salun_core.pages.results import Run, all_runs
from salun_core.pages.tables.table import Table, short
from salun_core.pages.words import counted, listed

Named = dict[str, dict[str, Any]]  # a function by its name, with its arguments


class Needs(BaseModel):
    """What a test on the paper's own ground takes: a command, or things, in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = ""
    words: str = ""


class Claim(BaseModel):
    """A claim of the paper, as ``data/published/claims.yaml`` has it; the fields are explained there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    said: str
    place: str
    published: Named = {}
    reruns: Named = {}
    measure: Named = Field(min_length=1)
    unit: Literal["points", "factor"]
    margin: float = Field(gt=0)
    why: str
    chapter: str
    needs: Needs = Needs()

    def reported(self) -> list[Reported]:
        """The paper's own numbers."""
        return [REPORTS[one_of(name, REPORTS, "report")](**given) for name, given in self.published.items()]

    def rerun(self) -> list[Reported]:
        """What others measured."""
        return [REPORTS[one_of(name, REPORTS, "report")](**given) for name, given in self.reruns.items()]

    def measurements(self, run: Run) -> list[Measurement]:
        """The claim as measured in a run, with its margin; a factor is measured in halvings."""
        margin = math.log2(self.margin) if self.unit == "factor" else self.margin
        found: list[Measurement] = []
        for name, given in self.measure.items():
            found += MEASUREMENTS[one_of(name, MEASUREMENTS, "measurement")](run, **given)
        return [replace(each, margin=margin) for each in found]

    def shown(self, value: float) -> str:
        """A value of this claim's evidence as text."""
        return f"×{short(2**value)}" if self.unit == "factor" else f"{value:+.2f}"


def read_claims() -> list[Claim]:
    """All claims, in the order of the file.

    Raises
    ------
    UserError
        If the file does not fit what it says of itself.
    """
    path = published_folder() / "claims.yaml"
    try:
        return [Claim.model_validate(entry) for entry in read_yaml(path)["claims"]]
    except (KeyError, ValidationError) as error:
        raise UserError(f"{path} is not a list of claims: {error}; restore it from git") from error


SHOWN_IN = {"digits-frontier": "ddpm", "tiny-sd-frontier": "sd_class"}
"""Where the figures of recorded runs are, if not in the chapter of recorded results."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: a claim, and how one run judges it.

    Parameters
    ----------
    claim : Claim
        The claim.
    run : str
        Name of the run; empty where no run measures the claim.
    found : Measurement or None
        What was measured.
    verdict : Verdict
        What the rule says of it.
    at_half, at_double : str
        The verdict's word at half and at double of the margin.
    """

    claim: Claim
    run: str
    found: Measurement | None
    verdict: Verdict
    at_half: str = ""
    at_double: str = ""

    @property
    def page(self) -> str:
        """The page that shows the run."""
        return self.claim.chapter if self.run == "quick" else SHOWN_IN.get(self.run, "recorded")

    @property
    def where(self) -> str:
        """Run, scenario, and the settings that were compared, as far as there is a choice."""
        found = self.found
        return "none" if found is None else ", ".join(filter(None, (self.run, found.scenario, found.how)))


def ledger(runs: Sequence[Run] | None = None, claims: Sequence[Claim] | None = None) -> list[Entry]:
    """Every claim with every run that measures it; the claims of one run are judged together.

    Parameters
    ----------
    runs : sequence of Run, optional
        The quick run and all recorded ones by default.
    claims : sequence of Claim, optional
        Those of ``data/published/claims.yaml`` by default.
    """
    claims = read_claims() if claims is None else claims
    entries: list[Entry] = []
    for run in all_runs() if runs is None else runs:
        measured = [(claim, found) for claim in claims for found in claim.measurements(run)]
        family = [found for _, found in measured]
        verdicts, half, double = (judge(family, times=times) for times in (1.0, 0.5, 2.0))
        entries += [
            Entry(claim, run.name, found, verdict, low.word, high.word)
            for (claim, found), verdict, low, high in zip(measured, verdicts, half, double, strict=True)
        ]
    known = {entry.claim.name for entry in entries}
    entries += [Entry(claim, "", None, Verdict(NOT_RUN)) for claim in claims if claim.name not in known]
    order = [claim.name for claim in claims]
    return sorted(entries, key=lambda entry: order.index(entry.claim.name))


def quick_ledger(out_dir: Path | None = None) -> list[Entry]:
    """The ledger of the quick run in a folder and of all recorded runs."""
    return ledger(all_runs(out_dir))


def frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """The ledger as data: one row for each entry, NaN where nothing was measured."""
    rows = []
    for entry in entries:
        row: dict[str, Any] = {"claim": entry.claim.name, "run": entry.run, "verdict": entry.verdict.word}
        if entry.found is not None:
            low, high = entry.found.evidence.interval()
            row |= {
                "scenario": entry.found.scenario,
                "settings": entry.found.how,
                "effect": entry.found.evidence.mean,
                "low": low,
                "high": high,
                "n": entry.found.evidence.n,
                "margin": entry.found.margin,
                "p_difference": entry.verdict.p_difference,
                "p_equivalence": entry.verdict.p_equivalence,
                "reason": entry.verdict.reason,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def ledger_table(entries: Sequence[Entry]) -> Table:
    """The ledger as the book shows it, each claim linked to its chapter and each run to where it is shown."""
    lines: list[dict[str, str]] = []
    links = {}
    for index, entry in enumerate(entries):
        claim, found = entry.claim, entry.found
        place = f"{claim.place}: {'; '.join(each.words for each in claim.reported())}".removesuffix(": ")
        line = {
            "Verdict": entry.verdict.word + (f"\n({entry.verdict.reason})" if entry.verdict.reason else ""),
            "Claim": claim.name.replace(" ", "\n", 1) if len(claim.name) > 16 else claim.name,
            "Paper": place,
            "Run": entry.where,
            "Effect": "",
            "n": "",
            "Margin": "",
            "p": "",
        }
        links[index, "Claim"] = f"{claim.chapter}.html"
        if found is not None:
            low, high = found.evidence.interval()
            interval = "" if math.isnan(low) else f"\n{claim.shown(low)} to {claim.shown(high)}"
            line |= {
                "Effect": f"{claim.shown(found.evidence.mean)}{interval}",
                "n": str(found.evidence.n),
                "Margin": f"×{claim.margin:g}" if claim.unit == "factor" else f"{claim.margin:g}",
                "p": p_value(entry.verdict.p_difference),
            }
            links[index, "Run"] = f"{entry.page}.html"
        lines.append(line)
    caption = (
        "Claims of the paper with their location and the paper's numbers, and our verdicts. Effect: in points with its 95% interval "
        "over training seeds (for stability over settings, over settings), positive if it supports the claim; × means how "
        "many times faster. Margin: smaller effects count as none. p: P value for no effect, adjusted for all claims of a "
        "run, so an interval that excludes 0 may not suffice. Settings were chosen once; intervals do not reflect "
        "how that choice would vary with other tuning seeds"
    )
    return Table(pd.DataFrame(lines), caption, links=links, roomy="Paper")


def p_value(p: float) -> str:
    """A p value in a table."""
    return "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def claim_texts(entries: Sequence[Entry]) -> Text:
    """Each claim in words: what the paper says and where, what others and we measured, and where to read on."""
    blocks: list[Any] = []
    for claim in dict.fromkeys(entry.claim.name for entry in entries):
        mine = [entry for entry in entries if entry.claim.name == claim]
        first = mine[0].claim
        head: list[Part] = [Bold(f"{first.name}."), f" {first.said} ({first.place}.)"]
        if reported := first.reported():
            head.append(f" The paper's numbers: {'; '.join(each.words for each in reported)}.")
        head += [" Chapter: ", Link(first.chapter, f"{first.chapter}.html"), "."]
        items: list[Any] = [(f"Others: {each.words}.",) for each in first.rerun()]
        items += [measured(entry) for entry in mine if entry.found is not None]
        if first.needs.words and any(entry.found for entry in mine):
            items.append(
                (f"With the paper's own models and data: not run; this requires {first.needs.words}.",)
            )
        if not any(entry.found for entry in mine):
            items.append((Bold(NOT_RUN), ": none of our runs measures it.", *needs(first.needs)))
        items.append((f"Margin: {first.margin:g} ({first.unit}), {first.why}.",))
        blocks += [head, Bullets(items)]
    return Text(*blocks)


def measured(entry: Entry) -> tuple[Part, ...]:
    """One entry of the ledger in words."""
    found, claim = entry.found, entry.claim
    assert found is not None
    where = f"{entry.run}, {found.scenario}".rstrip(", ")
    low, high = found.evidence.interval()
    interval = "" if math.isnan(low) else f" ({claim.shown(low)} to {claim.shown(high)})"
    margins = (
        f" (at half the margin: {entry.at_half}; at double: {entry.at_double})"
        if len({entry.verdict.word, entry.at_half, entry.at_double}) > 1
        else ""
    )
    reason = f", {entry.verdict.reason}" if entry.verdict.reason else ""
    return (
        f"{where}: {found.what}: {claim.shown(found.evidence.mean)}{interval}, n = {found.evidence.n}; ",
        Bold(entry.verdict.word),
        f"{reason}{margins}.",
    )


def needs(found: Needs) -> tuple[Part, ...]:
    """What would have to be run or fetched."""
    if found.command:
        return (" Run ", Code(found.command), ".")
    return (f" It requires {found.words}.",) if found.words else ()


@dataclass(frozen=True)
class Count:
    """How many claims there are, how many were measured, and how many entries have each verdict."""

    claims: int
    measured: int
    entries: int
    words: dict[str, int]


def count(entries: Sequence[Entry]) -> Count:
    """Count verdicts."""
    tested = [entry for entry in entries if entry.found is not None]
    words = {word: sum(entry.verdict.word == word for entry in tested) for word in WORDS}
    claims = {entry.claim.name for entry in entries}
    return Count(len(claims), len({entry.claim.name for entry in tested}), len(tested), words)


def counted_verdicts(entries: Sequence[Entry]) -> Text:
    """How many claims stand, by verdict, in one sentence."""
    found = count(entries)
    said = listed([f"{word} {n}" for word, n in found.words.items()])
    unmeasured = found.claims - found.measured
    rest = f" {counted(unmeasured, 'claim')} not measured in any run of ours." if unmeasured else ""
    return Text(
        f"{counted(found.claims, 'claim')}, {found.measured} of them measured, {counted(found.entries, 'time')} in all: "
        f"{said}.{rest}"
    )
