"""What results show when the share to forget or the settings of a method change, as data."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from salun_core.metrics.gaps import gaps
from salun_core.pages.findings.classification import Floor, by_seed, floor, named


@dataclass(frozen=True)
class OverShares:
    """Gaps in UA, in points, over the shares to forget.

    Parameters
    ----------
    worst : mapping of str to float
        The largest mean gap over the shares, by method, smallest first.
    floor : Floor or None
        Noise of retraining in UA.
    seeds : int
        Training seeds.
    """

    worst: Mapping[str, float]
    floor: Floor | None
    seeds: int

    @property
    def inside(self) -> tuple[str, ...]:
        """Methods that stay within the largest gap of two retrained models at every share."""
        return tuple(name for name, value in self.worst.items() if self.floor and value <= self.floor.largest)


def over_shares(cells: pd.DataFrame) -> OverShares:
    """How far each method drifts in UA when the share to forget changes."""
    rows = named(gaps(cells))
    rows = rows[~rows["method"].isin(["retrain", "original"])]
    means = pd.DataFrame(
        {scenario: by_seed(part, "gap UA").mean() for scenario, part in rows.groupby("scenario", sort=False)}
    )
    worst = means.max(axis=1).sort_values()
    return OverShares(
        {str(name): float(value) for name, value in worst.items()},
        floor(cells, "gap UA"),
        int(cells["seed"].nunique()),
    )


@dataclass(frozen=True)
class OverSettings:
    """UA, in percent, over the settings of each method.

    Parameters
    ----------
    ranges : mapping of str to float
        Largest minus smallest UA, by method, widest first.
    near : mapping of str to tuple of int
        Settings that bring UA within the noise of retraining, and all settings: one without a UA is not near.
    diverged : int
        Settings without a UA.
    retrain : float
        UA of Retrain.
    """

    ranges: Mapping[str, float]
    near: Mapping[str, tuple[int, int]]
    diverged: int
    retrain: float


def over_settings(spread: pd.DataFrame, noise: Floor | None = None) -> OverSettings:
    """How much UA depends on the settings.

    Parameters
    ----------
    spread : DataFrame
        One row for each setting, and Retrain's.
    noise : Floor, optional
        Noise of retraining in UA; without it no setting counts as near.
    """
    rows = named(spread)
    ua = 100 * rows["UA"].astype(float)
    target = float(ua[rows["method"] == "retrain"].mean())
    others = ua[rows["method"] != "retrain"].groupby(rows["name"], sort=False)
    ranges = (others.max() - others.min()).dropna().sort_values(ascending=False)
    bound = noise.largest if noise else -1.0
    return OverSettings(
        {str(name): float(value) for name, value in ranges.items()},
        {str(name): (int(((mine - target).abs() <= bound).sum()), len(mine)) for name, mine in others},
        int(spread["UA"].isna().sum()),
        target,
    )


@dataclass(frozen=True)
class Surface:
    """The smallest distance on SalUn's response surface, in points, where it lies, and the smallest at each keep."""

    distance: float
    lr: float
    epochs: int
    keep: float
    by_keep: Mapping[float, float]


def surface(rows: pd.DataFrame) -> Surface:
    """What the response surface shows; ``rows`` have ``distance``, ``keep`` and ``settings``."""
    known = rows[np.isfinite(rows["distance"].astype(float))]
    best = known.loc[known["distance"].astype(float).idxmin()]
    return Surface(
        100 * float(best["distance"]),
        float(best["settings"]["lr"]),
        int(best["settings"]["epochs"]),
        float(best["keep"]),
        {float(k): 100 * float(v) for k, v in known.groupby("keep")["distance"].min().items()},
    )
