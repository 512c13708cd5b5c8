"""The membership attack with every feature, against scikit-learn's machine called directly."""

import numpy as np
import torch
from sklearn.svm import SVC

from benchmarks.measure import Row, in_turn
from salun_core.data.splits import ROLES
from salun_core.metrics import Evaluation
from salun_core.metrics.classification.mia import FEATURES, mia


def artefact(count: int) -> Evaluation:
    """Logits of ``count`` retain, forget and test images each; members are answered more surely."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (3 * count,), generator=rng)
    roles = torch.tensor([ROLES.index(role) for role in ("retain", "forget", "test")]).repeat_interleave(
        count
    )
    logits = torch.randn(3 * count, 10, generator=rng)
    logits[torch.arange(3 * count), labels] += torch.tensor([4.0, 3.0, 2.0]).repeat_interleave(count)
    return Evaluation(logits, labels, torch.arange(3 * count), roles.to(torch.uint8))


def run(*, small: bool) -> list[Row]:
    """Seconds for each feature, and whether both say the same of every forget image."""
    count = 200 if small else 4000
    evaluation = artefact(count)
    rows = []
    for name, feature in FEATURES.items():
        members, outsiders, suspects = (
            feature(*evaluation.part(role)).numpy() for role in ("retain", "test", "forget")
        )

        def direct(m: np.ndarray = members, o: np.ndarray = outsiders, s: np.ndarray = suspects) -> float:
            answers = np.r_[np.ones(len(m)), np.zeros(len(o))]
            machine = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate([m, o]), answers)
            return float((machine.predict(s) == 0).mean())

        def ours(feature: str = name) -> float:
            return float(mia(evaluation, feature=feature))

        note = "same share" if abs(ours() - direct()) < 1e-12 else f"{ours():.4f} against {direct():.4f}"
        rows.append(Row(f"{name}, 2 x {count:,} images", *in_turn(ours, direct, repeats=1), note=note))
    return rows
