"""Choosing settings: the same budget for every variant, on seeds and splits that are not reported."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import pandas as pd
from pydantic import field_validator, model_validator

from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.cells import Cell, Scenario, Variant
from salun_core.experiments.runs.params import REPEATED, Group, parameter
from salun_core.experiments.runs.plain_values import numeric
from salun_core.experiments.runs.table import Run, check_ran
from salun_core.methods import METHODS
from salun_core.methods.engine import check_search, check_settings
from salun_core.methods.search import Range, candidates

CRITERION = ("UA", "RA", "VA", "MIA")
FREE = ("original", "retrain")  # methods without anything to tune or to mask
STUDY = {"study": "tuning"}
WIDENED = 3  # times that the bounds of a setting may be widened
STEPS = 4  # steps that cross the first bounds; widened bounds go on with steps of this size


def checked_settings(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings by method, with numbers that YAML left as text read.

    Raises
    ------
    UserError
        If there is no such method, or it cannot use a setting, see `methods.engine.check_settings`.
    """
    read = {m: {k: numeric(v) for k, v in settings.items()} for m, settings in value.items()}
    for method, settings in read.items():
        check_settings(METHODS[one_of(method, METHODS, "method in settings")], settings)
    return read


class Tuning(Group):
    """How settings are chosen."""

    settings: dict[str, dict[str, Any]] = parameter(
        {}, "fixed settings by method, for instance {rl: {epochs: 10}}"
    )
    tune: bool = parameter(True, "choose the other settings on the tuning seeds")
    tuning_seed: tuple[int, ...] = parameter(
        (1000, 1001), "seeds that settings are chosen on; not reported", needs="tune", any_whole=True
    )
    tuning_budget: int = parameter(8, "settings tried for each method", needs="tune", ge=1, le=REPEATED)
    search: dict[str, dict[str, Range]] = parameter({}, "bounds of the settings by method", needs="tune")

    choices: ClassVar[dict[str, tuple[Any, str]]] = {}

    @field_validator("settings")
    @classmethod
    def _settings(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return checked_settings(value)

    @field_validator("search")
    @classmethod
    def _search(cls, value: dict[str, dict[str, Range]]) -> dict[str, dict[str, Range]]:
        for method, search in value.items():
            check_search(METHODS[one_of(method, METHODS, "method in search")], search)
        return value

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.tune and not self.tuning_seed:
            raise UserError("tuning_seed is empty: give a seed that settings are chosen on, or tune: false")
        return self

    def refuse_fixed(self) -> None:
        """Refuse bounds of a setting that is fixed: it is not searched."""
        for method, search in self.search.items():
            for name in search:
                if name in self.settings.get(method, {}):
                    raise UserError(
                        f"{name} of {method} is fixed in settings ({self.settings[method][name]}) and has bounds in search: "
                        "leave it out of one of the two"
                    )

    def bounds(self, method: str) -> dict[str, Range]:
        """Bounds of the settings that are searched for a method."""
        fixed = self.settings.get(method, {})
        every = {**METHODS[method].search, **self.search.get(method, {})}
        return {name: bounds for name, bounds in every.items() if name not in fixed}

    def points(self, method: str, count: int | None = None) -> list[dict[str, Any]]:
        """The settings tried for a method, those that are fixed included."""
        fixed = self.settings.get(method, {})
        return [{**fixed, **p} for p in candidates(self.bounds(method), count or self.tuning_budget)]


def tune(
    run: Run, tuning: Tuning, variants: Sequence[Variant], scenarios: Sequence[Scenario]
) -> tuple[pd.DataFrame, dict[tuple[Scenario, Variant], Mapping[str, Any]]]:
    """Try the candidates of every variant and choose the nearest to Retrain, for each scenario by itself.

    Where the best value of a setting is the smallest or the largest tried, its bounds are widened.

    Returns
    -------
    rows, chosen
        One row for each candidate and tuning seed, as `with_distance` and `judged` give them (empty when
        tuning is off), and the settings of each variant.

    Raises
    ------
    UserError
        If every candidate of a variant diverged, or, in a recorded run, the best is still at an edge.
    """
    chosen: dict[tuple[Scenario, Variant], Mapping[str, Any]] = {
        (scenario, v): tuning.settings.get(v.method, {}) for scenario in scenarios for v in variants
    }
    tunable = [v for v in variants if v.method not in FREE]
    if not (tuning.tune and tunable):
        return pd.DataFrame(), chosen
    plan = tuning_references(tuning, scenarios)
    tried = {(scenario, v): tuning.points(v.method) for scenario in scenarios for v in tunable}
    plan += [cell for key, points in tried.items() for cell in tuning_cells(tuning, *key, points)]
    rows = run.execute(plan, "tuning")
    check_ran(rows)
    for _ in range(WIDENED):
        rows = judged(with_distance(rows))
        more = []
        for (scenario, v), points in tried.items():
            beyond = _beyond(tuning.bounds(v.method), points, _best(rows, scenario, v))
            beyond = [point for point in beyond if point not in points]
            points += beyond
            more += tuning_cells(tuning, scenario, v, beyond)
        if not more:
            break
        rows = pd.concat([rows, run.execute(more, "tuning, wider bounds")], ignore_index=True)
    rows = judged(with_distance(rows))
    for scenario, v in tried:
        best = _best(rows, scenario, v)
        if run.params.recorded and best["at_edge"]:
            raise UserError(
                f"the best {best['at_edge']} of {v.method} for {scenario.label} is the last one tried: "
                "widen its bounds in 'search' before recording"
            )
        chosen[scenario, v] = best["settings"]
    run.mark(rows.loc[rows["chosen"], "cell"], chosen=True)
    return rows[~rows["method"].isin(FREE)].reset_index(drop=True), chosen


def with_distance(rows: pd.DataFrame) -> pd.DataFrame:
    """Add ``distance``: the mean gap to Retrain over UA, RA, validation accuracy and MIA, and over tuning seeds.

    The attack counts validation images as non-members here, so that no test image takes part in the
    choice. Settings that diverged on a seed are infinitely far.

    Parameters
    ----------
    rows : DataFrame
        Cells of the tuning, Retrain among them.
    """
    columns = [f"select_{name}" for name in CRITERION]
    rows = rows.drop(columns=["distance"], errors="ignore")
    missing = [name for name in columns if name not in rows]
    rows = rows.assign(**dict.fromkeys(missing, math.nan))
    place = ["scenario", "seed"]
    retrain = rows[rows["method"] == "retrain"].drop_duplicates(place).set_index(place)[columns].astype(float)
    theirs = retrain.reindex(pd.MultiIndex.from_frame(rows[place])).to_numpy()
    apart = (rows[columns].astype(float) - theirs).abs().mean(axis=1, skipna=False).fillna(math.inf)
    mean = apart.groupby([rows[name] for name in VARIANT] + [_text(rows)], sort=False).transform("mean")
    return rows.assign(distance=mean)


VARIANT = ["scenario", "method", "mask", "keep", "score"]


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Mark the nearest settings of each variant in ``chosen``, the first of equals.

    Further columns say what a reader should know of them: ``at_edge`` names the settings whose best value is
    the smallest or the largest tried, ``tuned`` is False where doing nothing is as near to Retrain.

    Raises
    ------
    UserError
        If every candidate of a variant diverged.
    """
    text = _text(rows)
    rows = rows.assign(chosen=False, at_edge="", tuned=True)
    nothing = rows[rows["method"] == "original"].groupby("scenario")["distance"].first()
    for key, mine in rows[~rows["method"].isin(FREE)].groupby(VARIANT, sort=False):
        nearest = mine["distance"].astype(float)
        if math.isinf(nearest.min()):
            raise UserError(f"every candidate setting of {key[1]} diverged: lower its bounds in 'search'")
        best = nearest.idxmin()
        same = mine.index[text[mine.index] == text[best]]
        rows.loc[same, "chosen"] = True
        rows.loc[mine.index, "at_edge"] = ", ".join(_edges(mine["settings"], mine.loc[best, "settings"]))
        rows.loc[mine.index, "tuned"] = bool(nearest[best] < nothing.get(key[0], math.inf))
    return rows


def tuning_references(tuning: Tuning, scenarios: Sequence[Scenario]) -> list[Cell]:
    """Retrain and the original model on the tuning seeds: what candidates are compared with."""
    return [
        Cell(seed, scenario, end, reported=False, tags=STUDY)
        for scenario in scenarios
        for seed in tuning.tuning_seed
        for end in ("retrain", "original")
    ]


def tuning_cells(
    tuning: Tuning, scenario: Scenario, variant: Variant, points: Sequence[Mapping[str, Any]]
) -> list[Cell]:
    """Settings of a variant, each on every tuning seed."""
    return [
        Cell(seed, scenario, variant.method, variant.mask, point, reported=False, tags=STUDY)
        for seed in tuning.tuning_seed
        for point in points
    ]


def _best(rows: pd.DataFrame, scenario: Scenario, variant: Variant) -> pd.Series:
    mine = rows[rows["chosen"] & (rows["scenario"] == scenario.label) & (rows["method"] == variant.method)]
    mine = mine[mine["mask"] == variant.mask.kind]
    if variant.mask.kind != "none":
        mine = mine[(mine["keep"] == variant.mask.keep) & (mine["score"] == variant.mask.score)]
    return mine.iloc[0]


def _edges(tried: "pd.Series[Any]", best: Mapping[str, Any]) -> list[str]:
    """Settings whose best value is an end of what was tried, where more than one number was."""
    found = []
    for name, value in best.items():
        values = {each[name] for each in tried if isinstance(each.get(name), int | float)}
        if len(values) > 1 and not isinstance(value, bool) and value in (min(values), max(values)):
            found.append(name)
    return found


def _beyond(
    bounds: Mapping[str, Range], points: Sequence[Mapping[str, Any]], best: pd.Series
) -> list[dict[str, Any]]:
    """Two more settings beyond each edge that the best one lies at, all else as in the best."""
    settings = best["settings"]
    found = []
    for name in str(best["at_edge"]).split(", ") if best["at_edge"] else []:
        space = bounds.get(name)
        if space is None or space.low is None or space.high is None or not space.log:
            continue  # a choice, or a share with natural ends
        ratio = max((space.high / space.low) ** (1 / STEPS), 1.5)
        down = settings[name] == min(p[name] for p in points if name in p)
        for power in (1, 2):
            value = settings[name] * ratio ** (-power if down else power)
            value = max(1, round(value)) if space.integer else float(f"{value:.3g}")
            found.append({**{k: v for k, v in settings.items() if k in points[0]}, name: value})
    return found


def _text(rows: pd.DataFrame) -> "pd.Series[str]":
    """Settings as text, to group by."""
    return pd.Series([json.dumps(s, sort_keys=True) for s in rows["settings"]], rows.index, name="text")
