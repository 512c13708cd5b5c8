"""Tests and intervals for paired values: one comparison, the best of several rivals, and a family of claims.

Values are paired by unit. A unit is what was drawn independently: a training seed with its split and its
original model. Several unlearning runs on one training seed are averaged first, see `by_unit`.

Arrays of differences have the units in their last axis but one and the rivals in their last axis,
(..., n, k), so that simulations run without loops.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]


def by_unit(rows: pd.DataFrame, column: str, *, unit: str | Sequence[str] = "seed") -> pd.Series:
    """A column averaged within each unit, indexed by unit; runs without a value are left out."""
    return (
        rows[column]
        .astype(float)
        .groupby([rows[name] for name in ([unit] if isinstance(unit, str) else unit)])
        .mean()
        .dropna()
    )


def differences(mine: pd.Series, rivals: Sequence[pd.Series]) -> Array:
    """Rivals minus ``mine`` over the units that all of them have: (n, k)."""
    table = pd.concat([mine, *rivals], axis=1, join="inner").dropna().to_numpy(float)
    return table[:, 1:] - table[:, :1]


def standard_error(values: Array, resolution: float) -> Array:
    """Standard error of the mean over units, (..., n, k) to (..., k).

    Parameters
    ----------
    resolution : float
        The standard deviation over units is taken to be at least this: where every unit gives the same number,
        as at a ceiling, the number is still known only to one image or sample.
    """
    n = values.shape[-2]
    return np.maximum(values.std(axis=-2, ddof=1), resolution) / math.sqrt(n)


def p_above(values: ArrayLike, bound: float = 0.0, *, resolution: float = 0.0) -> Array:
    """P value against "the smallest of the k true means is at most ``bound``": (..., n, k) to (...).

    Each of the k means must be above the bound, and each is tested at the full level: an
    intersection-union test, which needs no correction for their number (Berger, Technometrics 24 (1982) 295).
    """
    found = np.asarray(values, float)
    return _one_sided(found - bound, resolution).max(axis=-1)


def p_below(values: ArrayLike, bound: float = 0.0, *, resolution: float = 0.0) -> Array:
    """P value against "the smallest of the k true means is at least ``bound``": (..., n, k) to (...).

    One of the k means below the bound is enough, so the smallest p value is multiplied by k (Bonferroni).
    """
    found = np.asarray(values, float)
    smallest = _one_sided(bound - found, resolution).min(axis=-1)
    return np.minimum(1.0, smallest * found.shape[-1])


def _one_sided(values: Array, resolution: float) -> Array:
    """P value of a one-sided t test that the mean over units is above 0: (..., n, k) to (..., k)."""
    n = values.shape[-2]
    if n < 2:
        return np.ones(values.shape[:-2] + values.shape[-1:])
    mean, error = values.mean(axis=-2), standard_error(values, resolution)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.asarray(student.sf(mean / error, n - 1), float)
    return np.where(error > 0, p, np.where(mean > 0, 0.0, 1.0))


def interval(values: ArrayLike, *, level: float = 0.95, resolution: float = 0.0) -> tuple[float, float]:
    """Interval for the smallest of the k true means, from paired t intervals: (n, k) to two numbers.

    With one rival it is the t interval of the mean. With several it covers the difference to the *best* of
    them, whichever that is (multiple comparisons with the best, as in Hsu, Annals of Statistics 9 (1981) 1026,
    with a t interval for each pair in place of one common variance): the lower end needs no correction,
    the upper end has Bonferroni's.
    """
    found = np.asarray(values, float)
    n, k = found.shape
    if n < 2:
        return math.nan, math.nan
    mean, error = found.mean(axis=0), standard_error(found, resolution)
    half = (1 - level) / 2
    low = mean - float(student.ppf(1 - half, n - 1)) * error
    high = mean + float(student.ppf(1 - half / k, n - 1)) * error
    return float(low.min()), float(high.min())


def may_be_best(table: pd.DataFrame, *, level: float = 0.95, resolution: float = 0.0) -> list[str]:
    """Columns that may have the smallest true mean, in the order of their means.

    Parameters
    ----------
    table : DataFrame
        Values by unit (rows) and method (columns). A method is left out of the answer if another one is
        clearly smaller. The answer contains the method with the smallest true mean with probability ``level``,
        because all comparisons with it are counted together (Bonferroni).

    Returns
    -------
    list
        Every method if there are fewer than two units without a gap.
    """
    known = table.dropna()
    order = known.mean().sort_values().index if len(known) else table.columns
    if len(known) < 2 or len(order) < 2:
        return [str(name) for name in order]
    rivals = len(order) - 1
    kept = []
    for name in order:
        others = known.drop(columns=name).to_numpy(float) - known[[name]].to_numpy(float)
        smallest = _one_sided(-others, resolution).min()  # that some other one is smaller
        if smallest * rivals > 1 - level:
            kept.append(str(name))
    return kept


def holm(p: ArrayLike) -> Array:
    """P values adjusted for the size of their family, along the last axis (Holm, Scandinavian J. Stat. 6 (1979) 65)."""
    found = np.asarray(p, float)
    m = found.shape[-1]
    order = found.argsort(axis=-1)
    steps = np.take_along_axis(found, order, axis=-1) * np.arange(m, 0, -1)
    adjusted = np.empty_like(found)
    np.put_along_axis(adjusted, order, np.minimum(1.0, np.maximum.accumulate(steps, axis=-1)), axis=-1)
    return adjusted


@dataclass(frozen=True)
class PairedDifferences:
    """Evidence on the difference to a rival, or to the best of several, over units.

    Parameters
    ----------
    apart : array
        Differences (n, k), positive in favour of the claim.
    resolution : float
        See `standard_error`.
    """

    apart: Array
    resolution: float = 0.0

    @property
    def n(self) -> int:
        """Units."""
        return len(self.apart)

    @property
    def rivals(self) -> int:
        """Rivals that enter at once."""
        return self.apart.shape[1]

    @property
    def mean(self) -> float:
        """The smallest of the mean differences: that to the best rival."""
        return float(self.apart.mean(axis=0).min())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """See the function of the same name."""
        return interval(self.apart, level=level, resolution=self.resolution)

    def p_above(self, bound: float = 0.0) -> float:
        """See the function of the same name."""
        return float(p_above(self.apart, bound, resolution=self.resolution))

    def p_below(self, bound: float = 0.0) -> float:
        """See the function of the same name."""
        return float(p_below(self.apart, bound, resolution=self.resolution))


@dataclass(frozen=True)
class Resampled:
    """Evidence on one number whose distribution comes from a bootstrap.

    Parameters
    ----------
    mean : float
        The number as measured.
    draws : array
        The number in each resampling.
    n : int
        Units that were resampled.
    """

    mean: float
    draws: Array
    n: int

    @property
    def rivals(self) -> int:
        """One."""
        return 1

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Percentiles of the draws."""
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def p_above(self, bound: float = 0.0) -> float:
        """Share of draws at or below the bound; never 0, as the draws are few."""
        return float((1 + (self.draws <= bound).sum()) / (1 + len(self.draws)))

    def p_below(self, bound: float = 0.0) -> float:
        """Share of draws at or above the bound."""
        return float((1 + (self.draws >= bound).sum()) / (1 + len(self.draws)))


Evidence = PairedDifferences | Resampled


def difference_of_spreads(
    first: ArrayLike, second: ArrayLike, *, draws: int = 4000, seed: int = 0
) -> Resampled:
    """Standard deviation of ``first`` minus that of ``second``, over the settings that both were run with.

    Parameters
    ----------
    first, second : array
        Values by setting, (settings,) or (seeds, settings), NaN where a run diverged. A setting is drawn for both
        together, because both respond to it; seeds, where there are several, are drawn as well.
    draws : int
        Resamplings.
    """
    a, b = (np.atleast_2d(np.asarray(values, float)) for values in (first, second))
    known = ~(np.isnan(a) | np.isnan(b)).any(axis=0)
    a, b = a[:, known], b[:, known]
    seeds, settings = a.shape
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(seeds, size=(seeds, 1))
        columns = rng.integers(settings, size=(1, settings))
        found[i] = _spread(a[rows, columns]) - _spread(b[rows, columns])
    return Resampled(_spread(a) - _spread(b), found, settings)


def _spread(values: Array) -> float:
    """Standard deviation over settings, mean over seeds."""
    return float(values.std(axis=1, ddof=1).mean())
