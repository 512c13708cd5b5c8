"""What probes of unlearned pipelines show, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from salun_core.experiments.generation.lab import result_of, scenario_of
from salun_core.experiments.runs.store import read_result
from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.experiments.text_to_image.probes import ADVERSARIAL, UNNAMED
from salun_core.experiments.text_to_image.unsafe import UnsafeResults
from salun_core.methods import name_of
from salun_core.metrics.generation.erasure import recovery
from salun_core.models.text_to_image.pipelines import encode_prompts
from salun_core.pages.published import read_published

FIGURE5 = "figure5_i2p_nudity_counts.csv"


def forgotten_class(results: UnsafeResults) -> int:
    """Number of the first class that the first cell forgot."""
    return scenario_of(results.lab, results.cells.iloc[0]).numbers[0]


def shown_by_probe(probes: pd.DataFrame) -> pd.DataFrame:
    """Share of images that show the concept, by model (rows) and probe (columns), means over runs."""
    names = [name_of(m, k) for m, k in zip(probes["method"], probes["mask"], strict=True)]
    return probes.assign(name=names).pivot_table(index="name", columns="probe", values="shown", sort=False)


@dataclass(frozen=True)
class Attack:
    """What the search for an embedding brings back.

    Parameters
    ----------
    found : tuple of str
        Methods under which it brings the concept back in at least half of the images.
    only_by_search : tuple of str
        Those of them under which no prompt without the concept's name did so.
    steps : int
        Steps of the search.
    radius : float
        By how much of its length a token may move.
    prompts : tuple of str
        The prompt of the forgotten concept, and the one that took its place.
    between : float
        How far the token that moves most lies between those two prompts, in the same unit.
    """

    found: tuple[str, ...]
    only_by_search: tuple[str, ...]
    steps: int
    radius: float
    prompts: tuple[str, str]
    between: float


def attack(results: UnsafeResults) -> Attack:
    """What the search brings back, and how far it may go."""
    own = shown_by_probe(results.probes).drop(index=name_of("original"), errors="ignore")
    back = own.index[own[ADVERSARIAL] >= 0.5]
    lab, forgotten = results.lab, forgotten_class(results)
    prompts = (lab.prompts.training[forgotten], lab.prompts.training[lab.replaced(forgotten)])
    first, other = encode_prompts(lab.pipe, prompts).embeddings[1:].float()
    return Attack(
        tuple(back),
        tuple(name for name in back if own.loc[name, UNNAMED] < 0.5),
        results.params.attack_steps,
        results.params.attack_radius,
        prompts,
        float(((other - first).norm(dim=1) / first.norm(dim=1)).max()),
    )


@dataclass(frozen=True)
class Unnamed:
    """What prompts without the name bring up, beside false alarms of the detector; shares in [0, 1].

    Parameters
    ----------
    shown : mapping of str to float
        Share of images in which the concept is detected, by model.
    threshold : float
        Score from which it counts as detected.
    false_alarms : tuple of float
        Share of images without the concept in which it is detected all the same, with its 95% interval.
    at : float
        The threshold of those.
    n : int
        Images without the concept.
    within : tuple of str
        Methods that show it no more often than false alarms may.
    """

    shown: Mapping[str, float]
    threshold: float
    false_alarms: tuple[float, float, float]
    at: float
    n: int
    within: tuple[str, ...]


def unnamed(results: UnsafeResults, real: pd.DataFrame) -> Unnamed:
    """Counts for prompts without the name; ``real`` comes from `metrics.detection.false_positives`."""
    level = results.params.threshold
    near = real[real["category"] == "concept"]
    false = near.iloc[(near["threshold"] - level).abs().argmin()]
    shown = shown_by_probe(results.probes)[UNNAMED]
    own = shown.drop(name_of("original"), errors="ignore")
    return Unnamed(
        {str(name): float(value) for name, value in shown.items()},
        level,
        (float(false["value"]), float(false["low"]), float(false["high"])),
        float(false["threshold"]),
        int(real["n"].max()),
        tuple(own.index[own <= false["high"]]),
    )


@dataclass(frozen=True)
class PublishedCounts:
    """Detections that the paper's first author gave for SalUn in Figure 5, one for each part of the body."""

    counts: tuple[int, ...]
    dataset: str
    setting: str
    source: str


def published_counts() -> PublishedCounts:
    """The paper's counts."""
    rows = read_published(FIGURE5)
    first = rows.iloc[0]
    values = tuple(rows["value"].astype(int).tolist())
    return PublishedCounts(values, str(first["dataset"]), str(first["setting"]), str(first["source"]))


@dataclass(frozen=True)
class Seconds:
    """Seconds of unlearning and of probing, and how many models were unlearned."""

    unlearning: float
    models: int
    probing: float


def seconds(lab: TextLab, probes: pd.DataFrame, cells: pd.DataFrame) -> Seconds:
    """What unlearning and probing cost."""
    stored = [read_result(lab.store.folder / f"{name}.json") for name in probes["probe_cell"].unique()]
    probing = [sum(found.content["seconds"].values()) for found in stored if found is not None]
    unlearning = [
        result_of(lab, row).content.get("seconds", 0.0)
        for _, row in cells[cells["status"] == "done"].iterrows()
    ]
    return Seconds(sum(unlearning), len(unlearning), sum(probing))


@dataclass(frozen=True)
class DetectionsLeft:
    """Detections in the categories that should be gone, by model.

    Parameters
    ----------
    counts : mapping of str to int
        Detections.
    categories : tuple of str
        The categories added up; empty for all of them.
    threshold : float
        Score from which a detection counts.
    n : int
        Images of each model.
    """

    counts: Mapping[str, int]
    categories: tuple[str, ...]
    threshold: float
    n: int


def detections(counts: pd.DataFrame, categories: Sequence[str] = ()) -> DetectionsLeft:
    """Add up detections at one threshold; ``counts`` has ``method, mask, category, count, threshold, n``."""
    part = counts[counts["category"].isin(list(categories))] if len(categories) else counts
    total = part.groupby(["method", "mask"], sort=False)["count"].sum()
    return DetectionsLeft(
        {name_of(*map(str, key)): int(value) for key, value in total.items()},
        tuple(categories),
        float(counts["threshold"].iloc[0]),
        int(counts["n"].max()),
    )


@dataclass(frozen=True)
class DetectedShares:
    """Share of images with a detection at one threshold, by model, in [0, 1]."""

    shares: Mapping[str, float]
    threshold: float


def detected_shares(counts: pd.DataFrame) -> DetectedShares:
    """Shares at the middle one of the thresholds."""
    levels = sorted(counts["threshold"].unique())
    middle = float(levels[len(levels) // 2])
    at = counts[counts["threshold"] == middle]
    shares = zip(at["method"], at["mask"], at["images"] / at["n"], strict=True)
    return DetectedShares({name_of(method, mask): float(share) for method, mask, share in shares}, middle)


@dataclass(frozen=True)
class Recoveries:
    """Steps of relearning after which half of the images show the concept again, by model; None where it stays away."""

    steps: Mapping[str, int | None]


def recoveries(curves: pd.DataFrame) -> Recoveries:
    """When the concept comes back; ``curves`` has ``method, mask, step, shown``."""
    back = {}
    for key, mine in curves.groupby(["method", "mask"], sort=False):
        mean = mine.groupby("step")["shown"].mean()
        back[name_of(*map(str, key))] = recovery(list(zip(mean.index.tolist(), mean.tolist(), strict=True)))
    return Recoveries(back)


@dataclass(frozen=True)
class Front:
    """Erasure against utility under one kind of attack; numbers in percent.

    Parameters
    ----------
    undominated : mapping of str to (float, float)
        Erased share and utility of the methods that no other beats in both.
    weakest : tuple of (str, int, int)
        The probe under which the concept appears most for most methods, for how many, and of how many.
    """

    undominated: Mapping[str, tuple[float, float]]
    weakest: tuple[str, int, int]


def fronts(summaries: Mapping[str, pd.DataFrame]) -> dict[str, Front]:
    """Which methods are beaten by none, by kind of attack; values are `metrics.erasure.erasure_summary`."""
    found = {}
    for title, summary in summaries.items():
        own = summary[summary["method"] != "original"]
        best = own[~own["dominated"]]
        most = own["weakest"].value_counts()
        found[title] = Front(
            {
                name_of(r["method"], r["mask"]): (100 * float(r["erased"]), 100 * float(r["utility"]))
                for _, r in best.iterrows()
            },
            (str(most.index[0]), int(most.iloc[0]), int(most.sum())),
        )
    return found
