"""Tables of how results came about: parameters, tuning, provenance, and whether data and model fit."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from salun_core.experiments.classification.compatibility import CompatibilityReport
from salun_core.experiments.runs.store import read_results
from salun_core.methods import name_of
from salun_core.pages.markup import Text
from salun_core.pages.tables.table import Table, compact, short


def settings_table(params: Mapping[str, Any]) -> Table:
    """The parameters of a run."""
    rows = [(name, compact(value)) for name, value in params.items()]
    frame = pd.DataFrame(rows, columns=["Parameter", "Value"])
    return Table(frame, "Parameters of this run", numbered=False)


def tuning_table(tuning: pd.DataFrame) -> Table | Text:
    """The chosen settings of each method, with the bounds tried, the distance reached, and what is wrong with them.

    Where nothing was tuned, a sentence that says so.

    Parameters
    ----------
    tuning : DataFrame
        One row for each candidate and tuning seed, as `tune` gives them: ``scenario, method, mask, seed, settings,
        distance, chosen, at_edge, tuned``.
    """
    if tuning.empty:
        return Text("Tuning is off: every method uses the settings it was given.")
    rows = []
    for (scenario, method, mask), part in tuning.groupby(["scenario", "method", "mask"], sort=False):
        best, tried = part[part["chosen"]].iloc[0], varied(part["settings"])
        remarks = [] if best["tuned"] else ["not tuned: no nearer than doing nothing"]
        if best["at_edge"]:
            remarks.append(f"{best['at_edge']} at the edge of the range tried")
        rows.append(
            {
                "Scenario": scenario,
                "Method": name_of(method, mask),
                "Tried": part["settings"].map(str).nunique(),
                "Searched": "; ".join(f"{n} {short(min(v))} to {short(max(v))}" for n, v in tried.items())
                or "nothing",
                "Chosen": "; ".join(f"{n} {short(best['settings'][n])}" for n in tried) or "default",
                "Distance": f"{100 * best['distance']:.2f}",
                "Worst": f"{100 * part['distance'].replace(math.inf, math.nan).max():.2f}",
                "Remark": "; ".join(remarks),
            }
        )
    frame = pd.DataFrame(rows)
    marked = tuple(i for i, text in enumerate(frame["Remark"]) if text)
    seeds = sorted(tuning["seed"].unique())
    return Table(
        frame if marked else frame.drop(columns="Remark"),
        f"Settings chosen on {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}, which "
        f"{'is' if len(seeds) == 1 else 'are'} not reported: mean gap to Retrain over UA, RA, validation accuracy and "
        "MIA, in points. Intervals over the reported seeds are conditional on these settings; they do not reflect how much "
        "the choice itself would vary with other tuning seeds.",
        marked,
    )


def varied(settings: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that take more than one value, with their values."""
    every: dict[str, list[Any]] = {}
    for one in settings:
        for name, value in one.items():
            every.setdefault(name, []).append(value)
    return {name: values for name, values in every.items() if len({json.dumps(v) for v in values}) > 1}


def provenance_table(cells: pd.DataFrame, folder: Path) -> Table:
    """Where and with what cells were computed that lie in ``folder``."""
    stored = {r.key.name: r for r in read_results(folder)}
    found = [stored[name].provenance for name in cells["cell"] if name in stored]
    rows = [
        ("cells", str(len(found))),
        ("computed", " to ".join(sorted({p["finished"][:10] for p in found}))),
        ("code revision", ", ".join(sorted({p["revision"] for p in found}))),
        ("device", "; ".join(sorted({f"{p['device']}, {p['threads']} thread(s)" for p in found}))),
        ("python", ", ".join(sorted({p["python"] for p in found}))),
        *(
            (name, ", ".join(sorted({p["libraries"][name] for p in found})))
            for name in ("torch", "scikit-learn")
        ),
        ("data", "; ".join(sorted({p["data_note"] for p in found}))),
        ("seconds in all", f"{cells['seconds'].fillna(0).sum():.0f}"),
    ]
    frame = pd.DataFrame(rows, columns=["Parameter", "Value"])
    return Table(frame, "Provenance of the reported cells", numbered=False)


def compatibility_table(report: CompatibilityReport) -> Table:
    """What `check_compatibility` found, one row a check; what does not fit is bold."""
    rows = [{"Verdict": c.mark, "Name": c.what, "Remark": c.said} for c in report.checks]
    wrong = tuple(row for row, check in enumerate(report.checks) if check.ok is False)
    return Table(pd.DataFrame(rows), report.end, wrong)
