"""Gaps to Retrain, their spread over seeds, and the noise floor they are read against."""

import math
from collections.abc import Sequence

import pandas as pd
from scipy.stats import t as student

from salun_core.errors import one_of

METRICS = ("UA", "RA", "TA", "MIA")
AVERAGE = "Avg. Gap"
GROUP = ["scenario", "method", "mask", "keep"]
SPLIT = ["dataset", "arch", "width", "scenario", "seed"]
REFERENCES = ("mean", "first")


def gaps(cells: pd.DataFrame, *, metrics: Sequence[str] = METRICS, reference: str = "mean") -> pd.DataFrame:
    """Distance of every cell to the models retrained on the same split.

    Parameters
    ----------
    cells : DataFrame
        Results, with at least one Retrain for each data set, model, scenario and seed.
    metrics : sequence of str
        Columns in [0, 1].
    reference : str
        One of ``REFERENCES``. "mean": the mean over all replicas of Retrain in ``cells`` for that split; a
        replica itself is compared with the mean of the *others*, so that its gap is what a perfect method
        would show. "first": replica 0 alone. A split with one replica has the same gaps under both.

    Returns
    -------
    DataFrame
        ``cells`` with a column "gap UA", … for each metric and their mean, "Avg. Gap", all in [0, 1]. NaN
        where the cell, or any replica it is compared with, diverged.

    Raises
    ------
    UserError
        If there is no such reference.
    """
    one_of(reference, REFERENCES, "reference of the gaps")
    both = cells.reset_index(drop=True)
    split = both.groupby(SPLIT, sort=False, dropna=False).ngroup()  # an unset width matches an unset width
    retrained = both["method"] == "retrain"
    # A Retrain can stand in a table several times, once in each part of an experiment.
    once = retrained & ~both.assign(split=split)[["split", "method", "replica"]].duplicated()
    if reference == "first":
        once &= both["replica"] == 0
    count = split.map(once.groupby(split).sum())
    # The row of a replica is left out of its own reference, unless it is the only one.
    own = retrained & (reference == "mean") & (count > 1)
    for name in metrics:
        value = both[name].astype(float)
        total = split.map(value[once].groupby(split[once]).agg(lambda found: found.sum(skipna=False)))
        both[f"gap {name}"] = (value - (total - value.where(own, 0)) / (count - own)).abs()
    both[AVERAGE] = both[[f"gap {name}" for name in metrics]].mean(axis=1, skipna=False)
    return both


def summary(values: pd.Series, *, level: float = 0.95) -> dict[str, float]:
    """Mean, standard deviation (n - 1), t interval and count of one number per seed.

    Returns
    -------
    dict
        ``mean, std, low, high, n, lost``: ``n`` seeds have a value and ``lost`` have none because they
        diverged or were not measured. The mean is over the ``n`` only, so a table that prints it must say
        ``lost`` too. ``std`` and the interval are NaN for a single seed.
    """
    present = values.dropna().astype(float)
    n = len(present)
    mean = float(present.mean()) if n else math.nan
    std = float(present.std(ddof=1)) if n > 1 else math.nan
    half = float(student.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
    return {
        "mean": mean,
        "std": std,
        "low": mean - half,
        "high": mean + half,
        "n": n,
        "lost": len(values) - n,
    }


def by_method(
    cells: pd.DataFrame, column: str, *, group: Sequence[str] = ("scenario", "method", "mask", "keep")
) -> pd.DataFrame:
    """`summary` of a column over the training seeds of each method; replicas of Retrain are left out.

    Runs of one training seed share their split and their original model. They are averaged first, so that
    ``n`` counts independent values; ``lost`` counts the runs without a value.
    """
    main = cells[cells["replica"] == 0]
    rows = []
    for key, part in main.groupby(list(group), sort=False):
        values = part[column].astype(float)
        rows.append(
            dict(zip(group, key, strict=True))
            | summary(values.groupby(part["seed"], sort=False).mean())
            | {"lost": int(values.isna().sum())}
        )
    return pd.DataFrame(rows)


def noise_floor(cells: pd.DataFrame, *, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """How far two retrained models of one split lie apart: what a perfect method would show as its gap.

    Parameters
    ----------
    cells : DataFrame
        Results with replicas of Retrain, which differ in initialisation and order only.

    Returns
    -------
    DataFrame
        One row per pair of replicas: ``scenario, seed, a, b``, the gap of each metric and "Avg. Gap", in
        [0, 1]. Empty where no split has two.
    """
    rows = []
    retrained = cells[cells["method"] == "retrain"]
    for (scenario, seed), part in retrained.groupby(["scenario", "seed"], sort=False):
        models = part.drop_duplicates("replica").sort_values("replica")
        for i in range(len(models)):
            for j in range(i + 1, len(models)):
                a, b = models.iloc[i], models.iloc[j]
                apart = {f"gap {name}": abs(float(a[name]) - float(b[name])) for name in metrics}
                mean = sum(apart.values()) / len(apart)
                rows.append(
                    {"scenario": scenario, "seed": seed, "a": a["replica"], "b": b["replica"]}
                    | apart
                    | {AVERAGE: mean}
                )
    names = ["scenario", "seed", "a", "b", *(f"gap {name}" for name in metrics), AVERAGE]
    return pd.DataFrame(rows, columns=names)


def floor_of(floor: pd.DataFrame, scenario: str, column: str = AVERAGE) -> float:
    """Mean gap between two retrained models of a scenario; NaN where it was not measured."""
    return float(floor.loc[floor["scenario"] == scenario, column].mean())
