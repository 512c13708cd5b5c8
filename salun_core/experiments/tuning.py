"""Choosing settings: the same budget for every method, on a seed and a split that are not reported."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from salun_core.errors import UserError
from salun_core.experiments.cells import Cell, MaskSpec, Scenario
from salun_core.methods import METHODS
from salun_core.methods.search import Range, candidates

CRITERION = ("UA", "RA", "VA", "MIA")


def search_space(method: str, overrides: Mapping[str, Mapping[str, Range]]) -> dict[str, Range]:
    """Bounds of a method: its own, replaced setting by setting by ``overrides``."""
    return {**METHODS[method].search, **overrides.get(method, {})}


def tuning_cells(
    method: str,
    scenario: Scenario,
    mask: MaskSpec,
    *,
    seed: int,
    budget: int,
    search: Mapping[str, Range],
    fixed: Mapping[str, Any],
) -> list[Cell]:
    """The candidates of one method: at most ``budget`` cells, not reported.

    ``fixed`` settings are not searched.
    """
    space = {name: bounds for name, bounds in search.items() if name not in fixed}
    points = candidates(space, budget)
    return [
        Cell(seed, scenario, method, mask, {**fixed, **point}, reported=False, tags={"candidate": i})
        for i, point in enumerate(points)
    ]


def with_distance(rows: pd.DataFrame, retrain: pd.Series) -> pd.DataFrame:
    """Add ``distance``: the mean gap to Retrain over UA, RA, validation accuracy and MIA.

    The attack counts validation images as non-members here, so that no test image takes part in the
    choice. Cells that diverged are infinitely far.
    """
    gaps = [(rows[f"select_{name}"].astype(float) - retrain[f"select_{name}"]).abs() for name in CRITERION]
    distance = sum(gaps[1:], start=gaps[0]) / len(gaps)
    return rows.assign(distance=distance.fillna(math.inf))


def choose(rows: pd.DataFrame) -> pd.DataFrame:
    """Mark the nearest candidate of each scenario, method and mask in a column ``chosen``.

    Raises
    ------
    UserError
        If every candidate of a method diverged.
    """
    groups = ["scenario", "method", "mask", "keep"]
    best = rows.groupby(groups)["distance"].transform("min")
    lost = rows[best == math.inf]
    if len(lost):
        method = lost.iloc[0]["method"]
        raise UserError(f"every candidate setting of {method} diverged: lower its bounds in 'search'")
    first = rows[rows["distance"] == best].groupby(groups)["candidate"].transform("min")
    chosen = (rows["distance"] == best) & (rows["candidate"] == first.reindex(rows.index))
    return rows.assign(chosen=chosen)
