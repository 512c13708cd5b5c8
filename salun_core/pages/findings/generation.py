"""What results of generative models show, as data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from salun_core.methods import name_of
from salun_core.metrics.share import Share, wilson

HALF = 0.5  # UA below it: the class is still drawn in most samples
DAMAGED = 0.9  # of what the original draws of the other classes
REACHED = 0.95  # of what would be perfect


def finished(cells: pd.DataFrame) -> pd.DataFrame:
    """Finished rows without replicas of Retrain, with a column ``name`` of method and mask."""
    rows = cells[(cells["replica"] == 0) & (cells["status"] == "done")]
    return rows.assign(name=[name_of(m, k) for m, k in zip(rows["method"], rows["mask"], strict=True)])


def share_of(rows: pd.DataFrame, column: str) -> Share:
    """UA or OA over the samples of all ``rows``."""
    found = total = 0
    for _, row in rows.iterrows():
        counts = pd.DataFrame(row["confusion"]).to_numpy()
        n = int(counts.sum(axis=1).max())
        n = int(counts.sum()) - n if column == "OA" else n
        found += round(float(row[column]) * n)
        total += n
    return wilson(found, n=total)


def alike(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether the intervals of two models overlap in UA and in OA."""
    pairs = ((share_of(a, column), share_of(b, column)) for column in ("UA", "OA"))
    return all(x.low <= y.high and y.low <= x.high for x, y in pairs)


@dataclass(frozen=True)
class Forgetting:
    """Who forgets, who forgets too much, and who is like Retrain; shares in [0, 1].

    Parameters
    ----------
    before : tuple of float
        Shares of the original's samples that are recognised: of the class to be forgotten, of the others; NaN
        where it was not run.
    too_little : tuple of str
        Methods with UA below one half.
    too_much : tuple of str
        Methods after which the other classes are recognised less than 90% as often as before.
    both : tuple of str
        Methods with at least 95% in UA and of what the original has in the other classes.
    like_retrain : tuple of str
        Methods whose samples do not suffice to tell them from Retrain; empty where it was not run.
    distances : mapping of str to float
        Mean distance to Retrain in UA and other classes, in points, smallest first.
    seconds : mapping of str to float
        Mean time of unlearning, and of Retrain.
    within_floor : tuple of str
        Methods whose samples of other classes lie no farther from real images than real images do.
    floor : float
        That distance.
    unlearned : int
        Methods compared.
    """

    before: tuple[float, float]
    too_little: tuple[str, ...]
    too_much: tuple[str, ...]
    both: tuple[str, ...]
    like_retrain: tuple[str, ...]
    distances: Mapping[str, float]
    seconds: Mapping[str, float]
    within_floor: tuple[str, ...]
    floor: float
    unlearned: int


def forgetting(cells: pd.DataFrame) -> Forgetting:
    """What the models have forgotten."""
    part = finished(cells)
    columns = ["UA", "OA", "FD", "seconds"]
    means = part[columns].astype(float).groupby(part["name"], sort=False).mean()
    own = part.loc[~part["method"].isin(["original", "retrain"]), "name"].unique()
    unlearned = means.loc[own]
    before = means.loc["Original"] if "Original" in means.index else None
    known = 1.0 if before is None else float(before["OA"])
    distance, like = pd.Series(dtype=float), []
    if "Retrain" in means.index:
        apart = (unlearned[["UA", "OA"]] - means.loc["Retrain", ["UA", "OA"]]).abs()
        distance = 100 * apart.mean(axis=1).sort_values()
        rows = dict(list(part.groupby("name")))
        like = [name for name in own if alike(rows[name], rows["Retrain"])]
    floor = float(part["FD floor"].astype(float).mean())
    reached = (unlearned["UA"] >= REACHED) & (unlearned["OA"] >= REACHED * known)
    return Forgetting(
        (math.nan, math.nan) if before is None else (1 - float(before["UA"]), known),
        tuple(unlearned.index[unlearned["UA"] < HALF]),
        tuple(unlearned.index[unlearned["OA"] < DAMAGED * known]),
        tuple(unlearned.index[reached]),
        tuple(like),
        {str(name): float(value) for name, value in distance.items()},
        {str(name): float(value) for name, value in means["seconds"].items()},
        tuple(unlearned.index[unlearned["FD"] <= floor]),
        floor,
        len(unlearned),
    )


@dataclass(frozen=True)
class MaskChange:
    """What the salient mask changes against one other kind, at equal settings.

    Parameters
    ----------
    UA, OA, FD : float
        Salient minus other: points of UA and of other classes recognised, and Fréchet distance.
    alike : bool
        Whether the samples do not suffice to tell the two apart in UA and in the other classes.
    """

    UA: float
    OA: float
    FD: float
    alike: bool


@dataclass(frozen=True)
class MaskChanges:
    """`MaskChange` by the other kind of mask, the runs behind each, and the samples of a class."""

    against: Mapping[str, MaskChange]
    runs: int
    n_class: int


def mask_changes(masks: pd.DataFrame) -> MaskChanges | None:
    """Whether it matters which weights the mask keeps; None where there is nothing to compare."""
    part = masks[masks["status"] == "done"] if len(masks) else masks
    if part.empty or "salient" not in set(part["mask"]) or part["mask"].nunique() < 2:
        return None
    means = part[["UA", "OA", "FD"]].astype(float).groupby(part["mask"], sort=False).mean()
    rows = dict(list(part.groupby("mask", sort=False)))
    mine = means.loc["salient"]
    found = {
        str(kind): MaskChange(
            100 * float(mine["UA"] - other["UA"]),
            100 * float(mine["OA"] - other["OA"]),
            float(mine["FD"] - other["FD"]),
            alike(rows[kind], rows["salient"]),
        )
        for kind, other in means.drop(index="salient").iterrows()
    }
    runs = len(part[["seed", "scenario"]].drop_duplicates())
    return MaskChanges(found, runs, int(part.iloc[0]["n_class"]))


@dataclass(frozen=True)
class Instead:
    """What the judge sees most often where the forgotten class was asked for.

    Parameters
    ----------
    forgotten : str
        The class asked for.
    seen : mapping of str to (str, float)
        By model: the class recognised most often, and in what percentage of the samples.
    n : int
        Samples of a class.
    """

    forgotten: str
    seen: Mapping[str, tuple[str, float]]
    n: int


def instead(counts: Mapping[str, Tensor], classes: Sequence[str], forgotten: int) -> Instead:
    """What appears in place of the forgotten class; ``counts`` are classes asked for against classes recognised."""
    seen = {}
    for name, table in counts.items():
        row = table[forgotten]
        seen[name] = (str(classes[int(row.argmax())]), 100 * int(row.max()) / max(1, int(row.sum())))
    n = int(next(iter(counts.values())).sum(1).max())
    return Instead(str(classes[forgotten]), seen, n)
