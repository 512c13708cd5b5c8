"""What generative models show when every method is run at several strengths, as data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from salun_core.experiments.runs.tuning import FREE
from salun_core.methods import name_of
from salun_core.metrics.gaps import summary
from salun_core.metrics.generation.frontier import area_left_out
from salun_core.metrics.statistics import by_unit
from salun_core.pages.words import sample_size

STUDY = "frontier"
RUN = ["scenario", "seed"]
ALIKE = (("3", "8"), ("4", "9"), ("1", "7"), ("cat", "dog"), ("automobile", "truck"), ("deer", "horse"))
"""Classes that look like each other: forgetting the one is most likely to harm the other."""


def neighbour(forgotten: str) -> str | None:
    """The class that looks most like this one, where it is known."""
    both = {**dict(ALIKE), **{b: a for a, b in ALIKE}}
    return both.get(forgotten)


@dataclass(frozen=True)
class Along:
    """One method at all its strengths.

    Parameters
    ----------
    name, method, mask : str
        The method, as readers know it and by its keys.
    points : DataFrame
        A row for each strength: means over runs of ``UA, OA, FD, neighbour`` (shares in [0, 1], a squared distance).
    left_out : Series
        By training seed: the mean share of Retrain's rectangle that it leaves out, see `area_left_out`.
    nearest : Series
        Of ``points`` the one with the smallest distance to Retrain in UA and other classes.
    """

    name: str
    method: str
    mask: str
    points: pd.DataFrame
    left_out: pd.Series
    nearest: pd.Series

    @property
    def mean(self) -> float:
        """The share left out, over training seeds."""
        return float(self.left_out.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% t interval over training seeds; NaN for one."""
        found = summary(self.left_out)
        low, high = found["low"], found["high"]
        return (low, high) if math.isnan(low) else (max(low, 0.0), min(high, 1.0))


@dataclass(frozen=True)
class Frontiers:
    """All methods, the one that leaves out least first, beside what they should reach.

    Parameters
    ----------
    methods : tuple of Along
        The methods.
    goal : Series
        What they should reach, means of ``UA, OA, FD, neighbour``: those of Retrain, its replicas included, and without
        Retrain a UA of 1 and the others as Original draws them.
    retrained : bool
        Whether that is Retrain.
    nothing : Series
        By training seed: the share that Original leaves out; empty where it was not run.
    noise : Series
        By training seed: the share that one more Retrain leaves out of the others' rectangle; empty where there is one.
    runs, seeds : int
        Runs (class and training seed), training seeds.
    samples : str
        How many samples each point is measured by.
    forgotten : tuple of str
        The classes.
    """

    methods: tuple[Along, ...]
    goal: pd.Series
    retrained: bool
    nothing: pd.Series
    noise: pd.Series
    runs: int
    seeds: int
    samples: str
    forgotten: tuple[str, ...]

    @property
    def aim(self) -> str:
        """What the goal is called within a sentence."""
        return "Retrain" if self.retrained else "the ideal"

    @property
    def of_what(self) -> str:
        """What the seeds are of: with Retrain every seed trains a model of its own."""
        return f"{'training' if self.retrained else 'unlearning'} seed"

    @property
    def floor(self) -> float:
        """The noise of retraining, over training seeds; NaN where there is one Retrain only."""
        return float(self.noise.mean())

    @property
    def strengths(self) -> list[float]:
        """All strengths, ascending."""
        return sorted({float(strength) for one in self.methods for strength in one.points.index})

    def method(self, name: str, mask: str) -> Along | None:
        """A method by its keys; None where it was not run."""
        return next((one for one in self.methods if (one.method, one.mask) == (name, mask)), None)


COLUMNS = ["UA", "OA", "FD", "neighbour"]


def has_frontier(cells: pd.DataFrame) -> bool:
    """Whether methods were run at several strengths, with Retrain or Original beside them."""
    if cells.empty or "study" not in cells or "strength" not in cells:
        return False
    return bool((cells["study"] == STUDY).any() and cells["method"].isin(FREE).any())


def frontiers(cells: pd.DataFrame) -> Frontiers:
    """Every method's frontier of UA against the other classes.

    Parameters
    ----------
    cells : DataFrame
        Rows of a generation experiment that was run with ``strengths``.
    """
    done = cells[cells["status"] == "done"].copy()
    done[["UA", "OA", "FD"]] = done[["UA", "OA", "FD"]].astype(float)
    done["neighbour"] = [_neighbour_accuracy(row) for _, row in done.iterrows()]
    ends = done[done["method"].isin(FREE) & (done["study"] != "masks")].drop_duplicates("cell")
    retrained, original = (ends[ends["method"] == name] for name in ("retrain", "original"))
    aims = original.assign(UA=1.0) if retrained.empty else retrained
    goals = aims.groupby(RUN)[["UA", "OA"]].mean()
    start = original.groupby(RUN)[["UA", "OA"]].mean()
    rows = done[(done["study"] == STUDY) & ~done["method"].isin(FREE)]
    found = []
    for (method, mask), mine in rows.groupby(["method", "mask"], sort=False):
        points = mine.groupby("strength")[COLUMNS].mean()
        left = []
        for (scenario, seed, _), run in mine.groupby([*RUN, "unlearning_seed"]):
            reached = run[["UA", "OA"]].to_numpy().tolist()
            if (scenario, seed) in start.index:  # strength 0
                reached.append(start.loc[(scenario, seed)].tolist())
            left.append({"seed": seed, "left": area_left_out(reached, goals.loc[(scenario, seed)])})
        found.append(
            Along(
                name_of(str(method), str(mask)),
                str(method),
                str(mask),
                points,
                by_unit(pd.DataFrame(left), "left"),
                _nearest(points, aims),
            )
        )
    return Frontiers(
        tuple(sorted(found, key=lambda one: one.mean)),
        aims[COLUMNS].mean(),
        not retrained.empty,
        by_unit(
            pd.DataFrame(
                [
                    {"seed": seed, "left": area_left_out([point.tolist()], goals.loc[(scenario, seed)])}
                    for (scenario, seed), point in start.iterrows()
                ],
                columns=["seed", "left"],
            ),
            "left",
        ),
        _noise(retrained),
        len(goals),
        int(rows["seed"].nunique()),
        sample_size(rows),
        tuple(map(str, dict.fromkeys(rows["forgotten"]))),
    )


def _neighbour_accuracy(row: pd.Series) -> float:
    """How often samples of the class that looks like the forgotten one are recognised; NaN where none is known."""
    classes: Sequence[str] = list(row["classes"])
    name = neighbour(str(row["forgotten"]))
    if name not in classes:
        return math.nan
    counts = row["confusion"][classes.index(name)]
    return float(counts[classes.index(name)]) / max(1, sum(counts))


def _nearest(points: pd.DataFrame, aims: pd.DataFrame) -> pd.Series:
    apart = (points[["UA", "OA"]] - aims[["UA", "OA"]].mean()).abs().sum(axis=1)
    return points.loc[apart.idxmin()]


def _noise(retrained: pd.DataFrame) -> pd.Series:
    """By training seed: what a Retrain leaves out of the rectangle of the others, on average."""
    left = [
        {
            "seed": seed,
            "left": area_left_out(
                [run.loc[i, ["UA", "OA"]].tolist()], run.drop(index=i)[["UA", "OA"]].mean()
            ),
        }
        for (_, seed), run in retrained.groupby(RUN)
        if len(run) > 1
        for i in run.index
    ]
    return by_unit(pd.DataFrame(left, columns=["seed", "left"]), "left")
