"""Result tables of experiments on generative models, with numbers that are made up."""

import math
from typing import Any

import pandas as pd
import torch

K = 3


def row(
    method: str,
    mask: str = "none",
    *,
    ua: float,
    oa: float,
    fd: float = 2.0,
    seed: int = 0,
    seconds: float = 1.0,
    **more: Any,
) -> dict[str, Any]:
    """A cell with ten samples a class; class 1 is forgotten."""
    confusion = torch.zeros(K, K, dtype=torch.int64)
    confusion[1] = torch.tensor([round(10 * ua), 10 - round(10 * ua), 0])
    for c in (0, 2):
        confusion[c, c] = round(10 * oa)
        confusion[c, 2 - c] += 10 - round(10 * oa)
    return {
        "dataset": "digits",
        "scenario": "class 1",
        "forgotten": "one",
        "method": method,
        "mask": mask,
        "seed": seed,
        "replica": 0,
        "status": "done",
        "UA": ua,
        "OA": oa,
        "strays": 0.0,
        "FD": fd,
        "FD floor": 1.0,
        "distance": "Fréchet distance (test features)",
        "n_distance": 20,
        "n_class": 10,
        "judge": 0.97,
        "confusion": confusion.tolist(),
        "seconds": seconds,
        "mask_seconds": 0.5,
        "peak_memory": 100 * 2**20,
        "cell": method,
        **more,
    }


def cells() -> pd.DataFrame:
    """One run: GA damages the other classes, FT forgets little, SalUn does what Retrain does."""
    return pd.DataFrame(
        [
            row("retrain", ua=1.0, oa=0.9, seconds=50),
            row("original", ua=0.0, oa=1.0),
            row("ga", ua=1.0, oa=0.2, fd=30.0),
            row("ft", ua=0.1, oa=1.0, fd=0.9),
            row("salun", "salient", ua=1.0, oa=1.0, seconds=2),
        ]
    )


def strengths(*, replicas: bool = True) -> pd.DataFrame:
    """Two seeds: SalUn at full strength does what Retrain does, a random mask half of it, GA trades one for the other."""
    rows = []
    for seed in (0, 1):
        shared = {
            "seed": seed,
            "unlearning_seed": 0,
            "forgotten": "3",
            "classes": ["8", "3", "4"],
            "strength": math.nan,
        }
        names = iter(range(100))

        def add(method: str, mask: str = "none", **values: float | str) -> None:
            mine = {**shared, **values, "cell": f"{method}-{shared['seed']}-{next(names)}"}  # noqa: B023
            rows.append(row(method, mask, **mine))

        add("original", ua=0.0, oa=1.0, study="methods")
        add("retrain", ua=1.0, oa=1.0, study="methods")
        if replicas:
            add("retrain", ua=1.0, oa=0.9, study="methods", replica=1)
        for strength, salun, rl, ga in (
            (0.1, (0.5, 1.0), (0.5, 1.0), (0.5, 0.8)),
            (1.0, (1.0, 0.95), (1.0, 0.475), (1.0, 0.0)),
        ):
            add("salun", "salient", ua=salun[0], oa=salun[1], study="frontier", strength=strength)
            add("rl", "random", ua=rl[0], oa=rl[1], study="frontier", strength=strength)
            add("ga", ua=ga[0], oa=ga[1], study="frontier", strength=strength)
        add("salun", "salient", ua=0.0, oa=0.0, study="methods")  # not a part of the frontier
    return pd.DataFrame(rows)
