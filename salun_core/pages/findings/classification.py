"""What results of classifiers show, as data: who comes near Retrain, what it costs, how runs differ."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import pandas as pd

from salun_core.methods import name_of
from salun_core.metrics.gaps import AVERAGE, gaps, noise_floor, summary
from salun_core.metrics.statistics import by_unit, may_be_best
from salun_core.pages.markup import Text

REFERENCES = ("original", "retrain")  # what methods are compared with

NO_RETRAIN = (
    "No model was retrained for this run, so there is nothing to measure gaps against: set the parameter retrained to a "
    "model, or to train, which trains one here."
)
NO_COST = "The retrained model of this run was supplied, so its cost is not known."


def beside_retrain(show: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of ``(cells, …)`` say so where no model was retrained."""

    @wraps(show)
    def shown(cells: pd.DataFrame, *given: Any, **more: Any) -> Any:
        return show(cells, *given, **more) if (cells["method"] == "retrain").any() else Text(NO_RETRAIN)

    return shown


def beside_its_cost(show: Callable[..., Any]) -> Callable[..., Any]:
    """The same for what compares costs, also where the retrained model was given and its cost is not known."""

    @wraps(show)
    def shown(cells: pd.DataFrame, *given: Any, **more: Any) -> Any:
        known = cells.loc[cells["method"] == "retrain", "seconds"].notna().any()
        return show(cells, *given, **more) if known else Text(NO_COST)

    return beside_retrain(shown)


@dataclass(frozen=True)
class Floor:
    """The noise of retraining: average gaps, in points, between models retrained on one split."""

    mean: float
    largest: float
    pairs: int


@dataclass(frozen=True)
class Ranking:
    """How near the methods come to Retrain in one scenario; gaps in points.

    Parameters
    ----------
    scenario : str
        What was forgotten.
    gaps : mapping of str to float
        Mean average gap by the name of the method, smallest first; methods without any value are left out.
    seeds : int
        Training seeds behind each.
    nearest : tuple of str
        Methods that may be the nearest: the seeds do not tell them apart. Empty with a single seed.
    floor : Floor or None
        None where no split was retrained twice.
    inside : tuple of str
        Methods within the largest gap of the floor.
    nothing : float
        Average gap of the original model; NaN where it was not run.
    no_nearer : tuple of str
        Methods that are no nearer than doing nothing.
    diverged : mapping of str to int
        Runs that diverged, by method.
    """

    scenario: str
    gaps: Mapping[str, float]
    seeds: int
    nearest: tuple[str, ...]
    floor: Floor | None
    inside: tuple[str, ...]
    nothing: float
    no_nearer: tuple[str, ...]
    diverged: Mapping[str, int]

    @property
    def within_noise(self) -> bool:
        """Whether the two smallest gaps differ by less than two retrained models of one split."""
        values = list(self.gaps.values())
        return self.floor is not None and len(values) > 1 and values[1] - values[0] < self.floor.mean


def floor(cells: pd.DataFrame, column: str = AVERAGE) -> Floor | None:
    """The noise of retraining in a column of gaps; None where no split was retrained twice."""
    found = 100 * noise_floor(cells)[column].dropna()
    return Floor(float(found.mean()), float(found.max()), len(found)) if len(found) else None


def named(cells: pd.DataFrame) -> pd.DataFrame:
    """Rows without replicas of Retrain, with a column ``name`` of method and mask."""
    main = cells[cells["replica"] == 0]
    return main.assign(name=[name_of(m, k) for m, k in zip(main["method"], main["mask"], strict=True)])


def by_seed(rows: pd.DataFrame, column: str = AVERAGE, *, unit: str = "seed") -> pd.DataFrame:
    """Values of `named` rows in points, averaged within each unit: units (rows) and methods (columns)."""
    table = {name: by_unit(mine, column, unit=unit) for name, mine in rows.groupby("name", sort=False)}
    return 100 * pd.DataFrame(table)


def ranking(cells: pd.DataFrame, scenario: str) -> Ranking:
    """Who comes near Retrain in a scenario."""
    part = cells[cells["scenario"] == scenario]
    rows = named(gaps(part))
    own = rows[~rows["method"].isin(REFERENCES)]
    table = by_seed(own)
    means = table.mean().dropna().sort_values()
    noise = floor(part)
    nothing = 100 * rows.loc[rows["method"] == "original", AVERAGE].astype(float).mean()
    lost = own[AVERAGE].isna().groupby(own["name"], sort=False).sum()
    return Ranking(
        scenario,
        {str(name): float(value) for name, value in means.items()},
        len(table),
        tuple(may_be_best(table[means.index])) if len(table.dropna()) > 1 else (),
        noise,
        tuple(means.index[means <= noise.largest]) if noise else (),
        float(nothing),
        tuple(means.index[means >= nothing]),
        {str(name): int(count) for name, count in lost.items() if count},
    )


@dataclass(frozen=True)
class Pair:
    """Average gaps of two variants over the seeds that both have, in points.

    Parameters
    ----------
    first, second : str
        Their names.
    gaps : tuple of float
        Their mean average gaps.
    mean, low, high : float
        The first minus the second, with a 95% t interval; NaN where there is one seed.
    seeds : int
        Training seeds.
    same_settings : bool
        Whether both ran with equal settings, so that they differ in nothing else.
    """

    first: str
    second: str
    gaps: tuple[float, float]
    mean: float
    low: float
    high: float
    seeds: int
    same_settings: bool


def pair(rows: pd.DataFrame, first: str, second: str) -> Pair | None:
    """Compare two names among `named` rows with gaps; None where they share no seed."""
    both = by_seed(rows[rows["name"].isin([first, second])])
    if not {first, second} <= set(both):
        return None
    both = both[[first, second]].dropna()
    if both.empty:
        return None
    apart = summary(both[first] - both[second])
    means = both.mean()
    return Pair(
        first,
        second,
        (float(means[first]), float(means[second])),
        apart["mean"],
        apart["low"],
        apart["high"],
        int(apart["n"]),
        same_settings(rows[rows["name"] == first], rows[rows["name"] == second]),
    )


def same_settings(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether two groups of runs have the same settings in every scenario."""
    keys = [
        {(row["scenario"], json.dumps(row["settings"], sort_keys=True)) for _, row in rows.iterrows()}
        for rows in (first, second)
    ]
    return keys[0] == keys[1]


@dataclass(frozen=True)
class TradeOff:
    """Means in the plane of UA and TA, in percent.

    Parameters
    ----------
    retrain : tuple of float
        UA and TA of Retrain.
    scatter : float
        The largest distance of one retrained model to that point.
    distances : mapping of str to float
        Distance of each method's mean to it, smallest first.
    seeds : int
        Training seeds.
    """

    retrain: tuple[float, float]
    scatter: float
    distances: Mapping[str, float]
    seeds: int

    @property
    def inside(self) -> tuple[str, ...]:
        """Methods whose mean lies no farther than a retrained model may."""
        return tuple(name for name, value in self.distances.items() if value <= self.scatter)


def trade_off(cells: pd.DataFrame, scenario: str) -> TradeOff:
    """Where the methods lie between forgetting and test accuracy."""
    part = cells[(cells["scenario"] == scenario)].dropna(subset=["UA", "TA"])
    points = 100 * part[["UA", "TA"]].astype(float)
    retrained = points[part["method"] == "retrain"]
    target = retrained.mean()
    away = ((retrained - target) ** 2).sum(axis=1) ** 0.5
    rows = named(part)
    means = points.loc[rows.index].groupby(rows["name"], sort=False).mean()
    distance = (((means - target) ** 2).sum(axis=1) ** 0.5).drop("Retrain").sort_values()
    return TradeOff(
        (float(target["UA"]), float(target["TA"])),
        float(away.max()),
        {str(name): float(value) for name, value in distance.items()},
        int(part["seed"].nunique()),
    )


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of average gaps of ours and of a publication, over the methods that both have."""

    correlation: float
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What a method costs, relative to retraining with the same code.

    Parameters
    ----------
    name : str
        The method.
    seconds, samples, flops : float
        Of unlearning, mask included, over those of Retrain; NaN where they were not counted.
    tuning : float
        Of all tuning, its Retrain included, over Retrain's seconds; NaN where nothing was tuned.
    """

    name: str
    seconds: float
    samples: float
    flops: float = math.nan
    tuning: float = math.nan

    @property
    def break_even(self) -> float:
        """Requests to forget from which tuning has paid; infinite where unlearning is no faster than retraining."""
        if math.isnan(self.tuning):
            return math.nan
        return self.tuning / (1 - self.seconds) if self.seconds < 1 else math.inf


@dataclass(frozen=True)
class Costs:
    """Costs of all methods in one scenario, dearest first, and Retrain's own.

    Parameters
    ----------
    scenario : str
        What was forgotten.
    methods : tuple of Cost
        The methods.
    retrain, samples, flops : float
        Seconds, images seen and floating-point operations of Retrain; NaN where they were not counted.
    seeds : int
        Training seeds behind the means.
    """

    scenario: str
    methods: tuple[Cost, ...]
    retrain: float
    samples: float
    flops: float
    seeds: int


def costs(cells: pd.DataFrame, scenario: str, tuning: pd.DataFrame | None = None) -> Costs:
    """What the methods cost beside retraining.

    Parameters
    ----------
    tuning : DataFrame, optional
        The settings that were tried, with ``seconds``. Choosing among them takes a model retrained on the tuning
        seed; it is counted at the mean time of Retrain.
    """
    rows = named(cells[(cells["scenario"] == scenario) & (cells["method"] != "original")])
    columns = ["seconds", "samples_seen", "flops"]
    mean = rows.reindex(columns=columns).astype(float).groupby(rows["name"], sort=False).mean()
    retrain = mean.loc["Retrain"]
    spent: Mapping[str, float] = {}
    if tuning is not None and len(tuning):
        tried = tuning[(tuning["scenario"] == scenario) & ~tuning["method"].isin(REFERENCES)]
        tried = tried.assign(
            name=[name_of(m, k) for m, k in zip(tried["method"], tried["mask"], strict=True)]
        )
        reference = retrain["seconds"] * tried["seed"].nunique()
        spent = (tried.groupby("name")["seconds"].sum() + reference).to_dict()
    found = [
        Cost(
            str(name),
            float(row["seconds"] / retrain["seconds"]),
            float(row["samples_seen"] / retrain["samples_seen"]),
            float(row["flops"] / retrain["flops"]),
            float(spent.get(str(name), math.nan) / retrain["seconds"]),
        )
        for name, row in mean.drop("Retrain").sort_values("seconds", ascending=False).iterrows()
    ]
    seconds, samples, flops = (float(retrain[name]) for name in columns)
    return Costs(scenario, tuple(found), seconds, samples, flops, int(rows["seed"].nunique()))


@dataclass(frozen=True)
class ClassByClass:
    """Average gaps over forgotten classes, in points.

    Parameters
    ----------
    classes : tuple of str
        The forgotten classes.
    means, worst : mapping of str to float
        Mean and largest gap over the classes, by method, smallest mean first.
    nearest : tuple of str
        Methods that may have the smallest gap on average: the classes do not tell them apart.
    hardest : str
        The class whose smallest gap is the largest, and that gap.
    hardest_gap : float
        That gap.
    mask_wins : int
        Classes in which SalUn's gap is smaller than that of random labelling; -1 where one of them was not run.
    seeds : int
        Training seeds.
    """

    classes: tuple[str, ...]
    means: Mapping[str, float]
    worst: Mapping[str, float]
    nearest: tuple[str, ...]
    hardest: str
    hardest_gap: float
    mask_wins: int
    seeds: int


def class_by_class(cells: pd.DataFrame) -> ClassByClass:
    """How the methods fare from class to class."""
    rows = named(gaps(cells))
    table = by_seed(rows[~rows["method"].isin(REFERENCES)], unit="forgotten")
    means = table.mean().sort_values()
    least = table.min(axis=1)
    wins = int((table["SalUn"] < table["RL"]).sum()) if {"SalUn", "RL"} <= set(table) else -1
    return ClassByClass(
        tuple(map(str, table.index)),
        {str(name): float(value) for name, value in means.items()},
        {str(name): float(value) for name, value in table.max()[means.index].items()},
        tuple(may_be_best(table[means.index])) if len(table) > 1 else (),
        str(least.idxmax()),
        float(least.max()),
        wins,
        int(rows["seed"].nunique()),
    )
