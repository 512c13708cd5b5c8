"""Where paper, released code and ports differ, and what each difference changes where we can measure it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from salun_core.experiments.runs.plain_values import read_yaml
from salun_core.metrics.gaps import AVERAGE, gaps, summary
from salun_core.metrics.statistics import by_unit
from salun_core.pages.published import published_folder
from salun_core.pages.results import Run, all_runs, recorded_agreement
from salun_core.pages.tables.table import Table
from salun_core.paths import recorded_folder

PAPER = "paper"  # the protocol that follows the paper's formulas
RANDOM_OVERLAP = "0.33"  # of two independent random masks of half of the weights


def read_errata() -> list[dict[str, Any]]:
    """Every difference: ``when, where, what, source``, and ``protocol`` or ``score`` where it is measured."""
    return list(read_yaml(published_folder() / "errata.yaml")["differences"])


@dataclass(frozen=True)
class Change:
    """Change of the average gap against the paper's protocol, in points, over training seeds.

    Parameters
    ----------
    mean, std : float
        NaN where every run diverged, or there is one seed.
    n : int
        Seeds with a value.
    lost : int
        Runs that diverged.
    """

    mean: float
    std: float
    n: int
    lost: int

    def __str__(self) -> str:
        if not self.n:
            return f"diverged\n(n = {self.lost})"
        spread = f" ± {self.std:.2f}" if self.n > 1 else ""
        lost = f", {self.lost} diverged" if self.lost else ""
        return f"{self.mean:+.2f}{spread}\n(n = {self.n}{lost})"


def protocol_changes(run: Run) -> dict[str, Change]:
    """What each protocol changes, by its name; empty where the experiment was not run."""
    rows = run.rows("saliency")
    if rows.empty or "protocol" not in rows:
        return {}
    named = rows["protocol"].notna()
    retrained = (rows["study"] == "masks") & (rows["method"] == "retrain")
    part = gaps(pd.concat([rows[retrained], rows[named]], ignore_index=True))
    part = part[part["protocol"].notna()]
    values = {str(name): by_unit(mine, AVERAGE) for name, mine in part.groupby("protocol", sort=False)}
    if PAPER not in values:
        return {}
    found = {}
    for name, mine in values.items():
        apart = summary(100 * (mine - values[PAPER]).dropna())
        lost = int(part.loc[part["protocol"] == name, AVERAGE].isna().sum())
        found[name] = Change(apart["mean"], apart["std"], int(apart["n"]), lost)
    return found


def score_overlaps(agreement: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """Overlap of the mask of each score with the paper's and the seeds behind it, by score."""
    if agreement.empty:
        return {}
    mine = agreement[agreement["what"] == "score"]
    means = mine.groupby("detail")["iou"].agg(["mean", "count"])
    return {str(name): (float(row["mean"]), int(row["count"])) for name, row in means.iterrows()}


def errata_table(out_dir: Path | None = None) -> Table:
    """Every difference with its date, its place and its effects in the quick run and in every recorded one."""
    runs = [(run.name, protocol_changes(run)) for run in all_runs(out_dir)]
    agreement = {
        run.name: score_overlaps(recorded_agreement(recorded_folder() / run.name))
        for run in all_runs(out_dir)
        if run.name != "quick"
    }
    return table_of(read_errata(), dict(runs), agreement)


def table_of(
    errata: list[dict[str, Any]],
    changes: Mapping[str, Mapping[str, Change]],
    overlaps: Mapping[str, Mapping[str, tuple[float, int]]],
) -> Table:
    """The table of differences.

    Parameters
    ----------
    errata : list of dict
        See `read_errata`.
    changes : mapping
        By run: `protocol_changes`.
    overlaps : mapping
        By run: `score_overlaps`.
    """
    lines = []
    for entry in errata:
        line = {
            "When": entry["when"].replace(" to ", "\nto "),
            "Where": entry["where"],
            "What": entry["what"],
        }
        for run, found in changes.items():
            if found:
                line[f"Gap,\n{run}"] = str(found.get(entry.get("protocol", ""), ""))
        for run, seen in overlaps.items():
            if seen:
                iou, n = seen.get(entry.get("score", ""), (None, 0))
                line[f"Overlap,\n{run}"] = "" if iou is None else f"{iou:.2f}\n(n = {n})"
        lines.append(line | {"Source": entry["source"]})
    measured = [run for run, found in changes.items() if found]
    caption = (
        "Differences between paper, released code and ports: change of the average gap of random labelling against the "
        "paper's protocol in points (mean ± standard deviation over n seeds), and intersection over union of the mask "
        f"with the paper's (two random halves reach {RANDOM_OVERLAP}), in {', '.join(measured) or 'no run so far'}; an empty "
        "field was not measured"
    )
    if any(change.lost for found in changes.values() for change in found.values()):
        caption += "; diverged: the scores of that release overflow, because it ascends the loss while they are being accumulated"
    return Table(pd.DataFrame(lines), caption, roomy="What")
