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
from salun_core.pages.tables.table import Table, compact, number, short

NO_GAIN = 0.9  # of Original's distance to Retrain: a setting that stays above it does next to nothing


def settings_table(params: Mapping[str, Any]) -> Table:
    """The parameters of a run."""
    rows = [(name, compact(value)) for name, value in params.items()]
    frame = pd.DataFrame(rows, columns=["Parameter", "Value"])
    return Table(frame, "Parameters of this run", numbered=False)


def tuning_table(tuning: pd.DataFrame) -> Table:
    """The chosen settings of each method, with the bounds tried, the distance reached, and what is wrong with them.

    Parameters
    ----------
    tuning : DataFrame
        One row for each candidate and tuning seed: ``scenario, method, mask, seed, settings, distance, chosen``. A
        row of method "original" says how far doing nothing is from Retrain.
    """
    if tuning.empty:
        return Table(
            pd.DataFrame({"Method": []}), "Tuning is off: every method has the settings it was given."
        )
    rows = []
    candidates = tuning[~tuning["method"].isin(["original", "retrain"])]
    for (scenario, method, mask), part in candidates.groupby(["scenario", "method", "mask"], sort=False):
        found = tuned(part, untouched(tuning, scenario))
        rows.append(
            {
                "Scenario": scenario,
                "Method": name_of(method, mask),
                "Tried": found["tried"],
                "Searched": "; ".join(
                    f"{n} {short(min(v))} to {short(max(v))}" for n, v in found["searched"].items()
                )
                or "nothing",
                "Chosen": "; ".join(f"{n} {short(found['settings'][n])}" for n in found["searched"])
                or "default",
                "Distance": f"{100 * found['distance']:.2f}",
                "Original": number(100 * found["untouched"]),
                "Worst": f"{100 * found['worst']:.2f}",
                "Remark": "; ".join(
                    [*(["not tuned: no nearer than doing nothing"] if found["does nothing"] else [])]
                    + [f"{name} at the end of what was tried" for name in found["at an end"]]
                ),
            }
        )
    frame = pd.DataFrame(rows)
    shown = frame.drop(columns=[c for c in ("Original", "Remark") if frame[c].isin(["–", ""]).all()])
    seeds = sorted(tuning["seed"].unique())
    return Table(
        shown,
        f"Settings chosen on {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}, which "
        f"{'is' if len(seeds) == 1 else 'are'} not reported: mean gap to Retrain over UA, RA, validation accuracy and "
        "MIA, in points. Intervals over the reported seeds hold for these settings; how much the choice itself would "
        "vary with other tuning seeds is not in them.",
        tuple(i for i, text in enumerate(frame["Remark"]) if text),
    )


def tuned(candidates: pd.DataFrame, original: float = math.nan) -> dict[str, Any]:
    """What tuning found for one method: settings, distances, and whether they can be relied on.

    Parameters
    ----------
    candidates : DataFrame
        Its candidates, see `tuning_table`; those with equal settings on several seeds are averaged.
    original : float
        Distance of doing nothing.

    Returns
    -------
    dict
        ``settings``, ``tried`` candidates, ``searched`` values by setting, ``distance`` of the chosen one, ``worst``
        finite distance, ``untouched`` (Original's), names of settings chosen ``at an end`` of what was tried, and
        whether the choice ``does nothing``.
    """
    keys = [json.dumps(settings, sort_keys=True) for settings in candidates["settings"]]
    distance = candidates["distance"].astype(float).groupby(keys, sort=False).mean()
    chosen = json.dumps(candidates[candidates["chosen"]].iloc[0]["settings"], sort_keys=True)
    settings = json.loads(chosen)
    searched = varied(candidates["settings"])
    at_end = [
        name
        for name, values in searched.items()
        if not isinstance(settings[name], str) and settings[name] in (min(values), max(values))
    ]
    return {
        "settings": settings,
        "tried": len(distance),
        "searched": searched,
        "distance": float(distance[chosen]),
        "worst": float(distance.replace(math.inf, math.nan).max()),
        "untouched": original,
        "at an end": at_end,
        "does nothing": bool(distance[chosen] > NO_GAIN * original),
    }


def untouched(tuning: pd.DataFrame, scenario: str) -> float:
    """Distance of Original to Retrain on the tuning seeds; NaN where it was not measured."""
    rows = tuning[(tuning["method"] == "original") & (tuning["scenario"] == scenario)]
    return float(rows["distance"].astype(float).mean()) if len(rows) else math.nan


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
