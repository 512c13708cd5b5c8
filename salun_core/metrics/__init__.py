"""Metrics of an unlearned classifier. A new one is a function of the evaluation and a line in ``METRICS``."""

from collections.abc import Callable
from functools import partial

from salun_core.metrics.classification import accuracy
from salun_core.metrics.classification.mia import FEATURES, mia
from salun_core.metrics.classification.outputs import Evaluation, evaluate
from salun_core.metrics.share import Share

METRICS: dict[str, Callable[[Evaluation], Share]] = {
    "UA": accuracy.unlearning_accuracy,
    "RA": accuracy.retain_accuracy,
    "TA": accuracy.test_accuracy,
    "MIA": mia,
    "TFA": accuracy.test_forgetting,
}
"""Measured for every reported cell."""

ATTACKS: dict[str, Callable[[Evaluation], Share]] = {
    f"MIA {feature}": partial(mia, feature=feature) for feature in FEATURES
}
"""The attack with each of its features: computed from stored logits when asked for."""

SELECTION: dict[str, Callable[[Evaluation], Share]] = {
    "UA": accuracy.unlearning_accuracy,
    "RA": accuracy.retain_accuracy,
    "VA": accuracy.validation_accuracy,
    "MIA": partial(mia, held_out="validation"),
}
"""What settings are chosen by: no test image takes part."""

__all__ = ["ATTACKS", "METRICS", "SELECTION", "Evaluation", "evaluate"]
