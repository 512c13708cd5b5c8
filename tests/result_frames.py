"""Result tables as the experiments make them, with numbers that are made up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from salun_core.experiments.classification.method_comparison import PAPER
from salun_core.experiments.runs.tuning import FREE, judged, with_distance
from salun_core.methods import METHODS

# Mean distance of each method to Retrain in UA, RA, TA and MIA.
AWAY: Mapping[str, tuple[float, float, float, float]] = {
    "original": (-0.06, 0.0, 0.005, -0.12),
    "ft": (-0.05, 0.0, 0.0, -0.10),
    "rl": (-0.01, -0.005, -0.01, 0.10),
    "ga": (-0.05, -0.01, -0.01, -0.11),
    "iu": (0.02, -0.03, -0.03, 0.03),
    "be": (-0.055, 0.0, -0.005, -0.11),
    "bs": (-0.055, 0.0, -0.005, -0.115),
    "l1_sparse": (0.01, -0.02, -0.02, 0.02),
    "salun": (-0.01, 0.0, -0.002, 0.01),
    "salun_soft": (-0.015, 0.0, -0.003, -0.02),
}
RETRAINED = (0.06, 1.0, 0.94, 0.13)
NOISE = 0.003


def row(method: str, mask: str, seed: int, values: Sequence[float], **more: Any) -> dict[str, Any]:
    """One reported cell of an experiment on classifiers."""
    name = (
        f"{method}-{mask}-{seed}-{more.get('replica', 0)}-{more.get('scenario', '')}-{more.get('study', '')}"
    )
    return {
        "experiment": "classification",
        "source": "quick",
        "dataset": "digits",
        "arch": "resnet18",
        "width": 8,
        "scenario": "random 10%",
        "method": method,
        "mask": mask,
        "keep": 1.0 if mask == "none" else 0.5,
        "score": "abs_sum",
        "seed": seed,
        "status": "done",
        "seconds": 100.0 if method == "retrain" else 10.0,
        "mask_seconds": 0.0 if mask == "none" else 2.0,
        "samples_seen": 9000 if method == "retrain" else 1800,
        **dict(zip(("UA", "RA", "TA", "MIA"), values, strict=True)),
        "n_forget": 450,
        "settings": {"lr": 0.01, "epochs": 2},
        "replica": 0,
        "reported": True,
        "device": "a processor",
        "threads": 1,
        "code": "0123456789ab",
        "finished": "2026-11-24T10:00:00+00:00",
        "cell": f"cell-{name}".replace(" ", "_"),
        **more,
    }


def classification(
    *,
    seeds: int = 4,
    scenarios: Sequence[str] = ("random 10%", "class airplane"),
    methods: Sequence[str] = PAPER,
    replicas: int = 2,
    away: Mapping[str, Sequence[float]] = AWAY,
    **more: Any,
) -> pd.DataFrame:
    """A comparison of methods; replica 0 of Retrain comes first for each seed."""
    rng = np.random.default_rng(0)
    rows = []
    for scenario in scenarios:
        for seed in range(seeds):
            level = np.array(RETRAINED) + 0.01 * rng.standard_normal(4)
            for replica in range(replicas):
                values = level + NOISE * rng.standard_normal(4)
                rows.append(row("retrain", "none", seed, values, replica=replica, scenario=scenario, **more))
            for method in methods:
                if method == "retrain":
                    continue
                values = level + np.array(away[method]) + NOISE * rng.standard_normal(4)
                rows.append(row(method, METHODS[method].mask, seed, values, scenario=scenario, **more))
    frame = pd.DataFrame(rows)
    metrics = ["UA", "RA", "TA", "MIA"]
    frame[metrics] = frame[metrics].clip(0, 1)
    return frame


def masks(
    *, seeds: int = 4, methods: Sequence[str] = ("rl", "ft"), gain: float = 0.03, **more: Any
) -> pd.DataFrame:
    """Methods under each kind of mask: under the salient one UA is nearer to Retrain by ``gain``."""
    rng = np.random.default_rng(1)
    rows = []
    for seed in range(seeds):
        level = np.array(RETRAINED)
        for replica in range(2):
            values = level + NOISE * rng.standard_normal(4)
            rows.append(row("retrain", "none", seed, values, replica=replica, study="masks", **more))
        rows.append(row("original", "none", seed, level + AWAY["original"], study="masks", **more))
        for method in methods:
            for mask in ("none", "salient", "random", "least_salient"):
                shift = np.array([0.02 if mask == "salient" else 0.02 + gain, 0, 0, 0])
                values = level + shift + 0.3 * NOISE * rng.standard_normal(4)
                rows.append(row(method, mask, seed, values, study="masks", **more))
    return pd.DataFrame(rows)


def tuning_cells(*, seeds: Sequence[int] = (1000, 1001), scenario: str = "random 10%") -> pd.DataFrame:
    """Cells of the tuning of two methods: the best learning rate of FT is inside, and GA's is worse than nothing."""
    gaps = {
        "retrain": {0.0: 0.0},
        "original": {0.0: 0.4},
        "ft": {0.1: 0.3, 0.2: 0.1, 0.3: 0.2},
        "ga": {0.1: 0.42, 0.2: 0.5, 0.3: 0.6},
    }
    rows = []
    for seed in seeds:
        for method, found in gaps.items():
            for lr, gap in found.items():
                measured = {f"select_{name}": gap for name in ("UA", "RA", "VA", "MIA")}
                more = {"settings": {"lr": lr, "epochs": 2}, "study": "tuning", "reported": False}
                rows.append(row(method, "none", seed, [None] * 4, scenario=scenario, **more, **measured))
    return pd.DataFrame(rows)


def tuning(*, seeds: Sequence[int] = (1000, 1001), scenario: str = "random 10%") -> pd.DataFrame:
    """What `tune` makes of them."""
    rows = judged(with_distance(tuning_cells(seeds=seeds, scenario=scenario)))
    return rows[~rows["method"].isin(FREE)].reset_index(drop=True)


def saliency(*, seeds: int = 4) -> pd.DataFrame:
    """All parts of the experiment on masks; the mask of one release diverges."""
    rows = [masks(seeds=seeds, experiment="saliency")]
    parts = []
    for seed in range(seeds):
        for mask in ("salient", "random", "least_salient"):
            for keep in (0.05, 0.5):
                values = np.array(RETRAINED) + 0.05 * (keep < 0.1) * (mask == "salient")
                parts.append(row("rl", mask, seed, values.clip(0, 1), keep=keep, study="density"))
        for name, shift in (
            ("paper", 0.0),
            ("released 2023-10", 0.04 + 0.01 * seed),
            ("released 2023-12-01", None),
        ):
            values = [None] * 4 if shift is None else np.array(RETRAINED) + np.array([shift, 0, 0, 0])
            status = "diverged" if shift is None else "done"
            parts.append(row("rl", "salient", seed, values, study="releases", protocol=name, status=status))
    return pd.concat([*rows, pd.DataFrame(parts).assign(experiment="saliency")], ignore_index=True)


def stability(*, seeds: int = 4, shares: Sequence[int] = (10, 50)) -> pd.DataFrame:
    """Shares to forget with settings kept, and the spread of UA over settings of IU."""
    methods = ("original", "ft", "iu", "salun")
    frame = classification(
        seeds=seeds, scenarios=[f"random {share}%" for share in shares], methods=methods, study="shares"
    )
    rng = np.random.default_rng(3)
    spread = [row("retrain", "none", 0, RETRAINED, study="settings")]
    for i in range(8):
        ua = float(np.clip(0.06 + 0.25 * rng.standard_normal(), 0, 1))
        for mask, scale in (("none", 1.0), ("salient", 0.2)):
            values = (0.06 + scale * (ua - 0.06), *RETRAINED[1:])
            spread.append(row("iu", mask, 0, values, study="settings", settings={"alpha": i}))
    return pd.concat([frame, pd.DataFrame(spread)], ignore_index=True).assign(experiment="stability")


def agreement(*, seeds: int = 3) -> pd.DataFrame:
    """Overlaps of pairs of masks."""
    pairs = {
        ("score", "batch_means"): 0.8,
        ("precision", "double and single"): 1.0,
        ("control", "random mask"): 0.33,
    }
    return pd.DataFrame(
        [
            {"what": what, "detail": detail, "seed": seed, "iou": iou, "expected": 1 / 3}
            for seed in range(seeds)
            for (what, detail), iou in pairs.items()
        ]
    )
