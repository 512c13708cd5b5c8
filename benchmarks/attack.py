"""The membership attack on one feature, against scikit-learn's machine called directly."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from sklearn.svm import SVC

from benchmarks.measure import Row, in_turn
from salun_core.metrics.classification.mia import FEATURES, PENALTY, attack

Sides = tuple[np.ndarray, np.ndarray, np.ndarray]
TIGHT = 1e-6  # tolerance at which scikit-learn's decisions near the boundary are those of the optimum


def answers(
    count: int, lift: tuple[float, float, float], spread: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and labels of ``count`` members, outsiders and suspects, as surely right as ``lift`` says."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for by in lift:
        labels = torch.randint(0, 10, (count,), generator=rng)
        logits = torch.randn(count, 10, generator=rng)
        logits[torch.arange(count), labels] += by + spread * torch.randn(count, generator=rng)
        made.append((logits, labels))
    return made


def problems(count: int) -> Iterator[tuple[str, Sides]]:
    """Each feature of a model in training, and the confidence of one that is sure of most images."""
    training = answers(count, (4.0, 2.0, 3.0), 0.0)
    trained = answers(count, (20.0, 12.0, 13.0), 6.0)
    for name, of in FEATURES.items():
        if name != "prob":  # as many features as classes: scikit-learn's machine is the only way
            members, outsiders, suspects = (of(*part).numpy() for part in training)
            yield name, (members, outsiders, suspects)
    members, outsiders, suspects = (FEATURES["confidence"](*part).numpy() for part in trained)
    yield "confidence, mostly near 1", (members, outsiders, suspects)


def fitted(sides: Sides, *, tolerance: float = 1e-3) -> np.ndarray:
    """scikit-learn's answer to `attack`."""
    members, outsiders, suspects = sides
    truth = np.r_[np.ones(len(members)), np.zeros(len(outsiders))]
    machine = SVC(C=PENALTY, gamma="auto", kernel="rbf", tol=tolerance)
    return machine.fit(np.concatenate([members, outsiders]), truth).predict(suspects) == 1


def compared(sides: Sides) -> str:
    """For how many suspects the two say otherwise; where any, also at a tolerance of ``TIGHT``."""
    ours, n = attack(*sides), len(sides[2])
    apart = int((ours != fitted(sides)).sum())
    if not apart:
        return f"the same for all {n:,} suspects"
    tight = int((ours != fitted(sides, tolerance=TIGHT)).sum())
    return f"another answer for {apart:,} of {n:,} suspects; {tight:,} at a tolerance of {TIGHT:g}"


def run(*, small: bool) -> list[Row]:
    """Seconds to learn from as many members as outsiders and to judge as many suspects."""
    count = 200 if small else 10_000
    rows = []
    for name, sides in problems(count):
        ours, plain = in_turn(partial(attack, *sides), partial(fitted, sides), repeats=1)
        rows.append(Row(f"{name}, {count:,} + {count:,} images", ours, plain, note=compared(sides)))
    return rows
