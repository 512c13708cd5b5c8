"""Choosing settings: the same budget for every variant, on a seed and a split that are not reported."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm import tqdm

from salun_core.errors import UserError
from salun_core.experiments.runs.cells import NO_MASK, Cell, Lab, MaskSpec, Scenario, check_ran, run_cells
from salun_core.methods import METHODS
from salun_core.methods.search import Range, candidates

CRITERION = ("UA", "RA", "VA", "MIA")
FREE = ("original", "retrain")  # methods without anything to tune or to mask


@dataclass(frozen=True)
class Variant:
    """A method under a mask."""

    method: str
    mask: MaskSpec = NO_MASK


@dataclass(frozen=True)
class Budget:
    """How settings are chosen.

    Parameters
    ----------
    seed : int
        A seed that is not reported.
    candidates : int
        Settings tried for each variant, the same number for all.
    search : mapping
        Bounds by method and setting that replace the method's own.
    fixed : mapping
        Settings by method that are given and not searched.
    enabled : bool
        False: run with ``fixed`` and the methods' defaults.
    """

    seed: int
    candidates: int
    search: Mapping[str, Mapping[str, Range]]
    fixed: Mapping[str, Mapping[str, Any]]
    enabled: bool = True

    def cells(self, variant: Variant, scenario: Scenario, *, seed: int | None = None) -> list[Cell]:
        """The candidates of one variant, on the tuning seed unless told otherwise."""
        fixed = self.fixed.get(variant.method, {})
        bounds = {**METHODS[variant.method].search, **self.search.get(variant.method, {})}
        space = {name: each for name, each in bounds.items() if name not in fixed}
        seed = self.seed if seed is None else seed
        return [
            Cell(seed, scenario, variant.method, variant.mask, {**fixed, **point}, False, {"candidate": i})
            for i, point in enumerate(candidates(space, self.candidates))
        ]

    def count(self, variants: Sequence[Variant], scenario: Scenario) -> int:
        """Number of cells that `tune` will run."""
        tunable = [v for v in variants if v.method not in FREE]
        return sum(len(self.cells(v, scenario)) for v in tunable) + bool(tunable) if self.enabled else 0


def tune(
    lab: Lab, budget: Budget, variants: Sequence[Variant], scenario: Scenario, *, progress: "tqdm[Any]"
) -> tuple[pd.DataFrame, dict[Variant, Mapping[str, Any]]]:
    """Run the candidates of every variant and choose the nearest to Retrain for each.

    Returns
    -------
    rows, chosen
        One row per candidate with ``distance`` and ``chosen`` (empty when tuning is off), and the
        settings of each variant.
    """
    chosen: dict[Variant, Mapping[str, Any]] = {v: budget.fixed.get(v.method, {}) for v in variants}
    tunable = [v for v in variants if v.method not in FREE]
    if not (budget.enabled and tunable):
        return pd.DataFrame(), chosen
    reference = run_cells(lab, [Cell(budget.seed, scenario, "retrain", reported=False)], progress=progress)
    check_ran(reference)
    tables = []
    for variant in tunable:
        rows = run_cells(lab, budget.cells(variant, scenario), progress=progress)
        rows = choose(with_distance(rows, reference.iloc[0]))
        chosen[variant] = rows.loc[rows["chosen"], "settings"].iloc[0]
        tables.append(rows)
    return pd.concat(tables, ignore_index=True), chosen


def with_distance(rows: pd.DataFrame, retrain: pd.Series) -> pd.DataFrame:
    """Add ``distance``: the mean gap to Retrain over UA, RA, validation accuracy and MIA.

    The attack counts validation images as non-members here, so that no test image takes part in the
    choice. Cells that diverged are infinitely far.
    """
    if "select_UA" not in rows:  # every candidate diverged
        return rows.assign(distance=math.inf)
    gaps = [(rows[f"select_{name}"].astype(float) - retrain[f"select_{name}"]).abs() for name in CRITERION]
    return rows.assign(distance=(sum(gaps[1:], start=gaps[0]) / len(gaps)).fillna(math.inf))


def choose(rows: pd.DataFrame) -> pd.DataFrame:
    """Mark the candidate with the smallest ``distance``, the first of equals, in a column ``chosen``.

    Raises
    ------
    UserError
        If every candidate diverged.
    """
    nearest = rows["distance"].astype(float)
    if math.isinf(nearest.min()):
        method = rows.iloc[0]["method"]
        raise UserError(f"every candidate setting of {method} diverged: lower its bounds in 'search'")
    return rows.assign(chosen=rows.index == nearest.idxmin())
