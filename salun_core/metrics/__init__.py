"""Metrics of an unlearned classifier. A new one is a function of the evaluation and a line in ``METRICS``."""

from collections.abc import Callable
from functools import partial

from salun_core.metrics import accuracy
from salun_core.metrics.evaluation import Evaluation, evaluate
from salun_core.metrics.mia import mia
from salun_core.metrics.share import Share

METRICS: dict[str, Callable[[Evaluation], Share]] = {
    "UA": accuracy.unlearning_accuracy,
    "RA": accuracy.retain_accuracy,
    "TA": accuracy.test_accuracy,
    "MIA": mia,
    "TFA": accuracy.test_forgetting,
    "MIA_correctness": partial(mia, feature="correctness"),
    "MIA_entropy": partial(mia, feature="entropy"),
    "MIA_m_entropy": partial(mia, feature="m_entropy"),
    "MIA_prob": partial(mia, feature="prob"),
}

SELECTION: dict[str, Callable[[Evaluation], Share]] = {
    "UA": accuracy.unlearning_accuracy,
    "RA": accuracy.retain_accuracy,
    "VA": accuracy.validation_accuracy,
    "MIA": partial(mia, held_out="validation"),
}
"""What settings are chosen by: no test image takes part."""


def selection_metrics(evaluation: Evaluation) -> dict[str, Share]:
    """The metrics that settings are chosen by."""
    return {name: metric(evaluation) for name, metric in SELECTION.items()}


__all__ = ["METRICS", "SELECTION", "Evaluation", "evaluate", "selection_metrics"]
