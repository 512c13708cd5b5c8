"""Metrics: plain functions of what an unlearned model did on stored samples. A new one is a function and a line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from salun_core.data.captions import KINDS as PROMPTS
from salun_core.metrics.classification import accuracy
from salun_core.metrics.classification.mia import FEATURES, mia
from salun_core.metrics.classification.outputs import Evaluation, evaluate
from salun_core.metrics.classification.population import Audit, rmia, ulira, ulira_at_few_false_alarms
from salun_core.metrics.generation import canvas
from salun_core.metrics.generation import outputs as generated
from salun_core.metrics.share import Share
from salun_core.plugins import Table, called

METRICS: Table[Callable[[Evaluation], Share]] = Table(
    {
        "UA": accuracy.unlearning_accuracy,
        "RA": accuracy.retain_accuracy,
        "TA": accuracy.test_accuracy,
        "MIA": mia,
        "TFA": accuracy.test_forgetting,
    },
    what="metric",
    group="salun_core.metrics",
    adapt=partial(called, what="metric"),
)
"""Of a classifier, for every reported cell."""

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

POPULATION_METRICS: dict[str, Callable[[Sequence[Evaluation], Sequence[Evaluation]], Audit]] = {
    "U-LiRA": ulira,
    "U-LiRA TPR": ulira_at_few_false_alarms,
    "RMIA": rmia,
}
"""Of several unlearned and several retrained classifiers of one split."""

GENERATION: dict[str, Callable[[generated.GeneratedOutputs], Any]] = {
    "UA": generated.unlearning_accuracy,
    "OA": generated.other_accuracy,
    "strays": generated.strays,
    "FD": generated.distance,
    "FD floor": generated.distance_floor,
    "distance": generated.distance_name,
    "n_distance": generated.distance_count,
    "confusion": generated.confusion,
}
"""Of a class-conditional generator."""

TEXT_TO_IMAGE: dict[str, Callable[[generated.GeneratedOutputs], Any]] = {
    **GENERATION,
    "CLIP": partial(generated.mean_of, name="clip_score"),
    "CLIP accuracy": partial(generated.mean_of, name="clip_right"),
    "styles UA": partial(canvas.crossed_share, name="unlearned"),
    "IRA": partial(canvas.crossed_share, name="in_domain"),
    "CRA": partial(canvas.crossed_share, name="cross_domain"),
    "caption CLIP": partial(generated.mean_of, name="caption_clip"),
    "caption CLIP error": partial(generated.mean_of, name="caption_clip_error"),
    "caption FD": partial(generated.mean_of, name="caption_distance"),
    "n captions": partial(generated.mean_of, name="caption_n"),
    **{f"UA {kind}": partial(generated.unlearning_accuracy, kind=kind) for kind in PROMPTS},
    **{f"OA {kind}": partial(generated.other_accuracy, kind=kind) for kind in PROMPTS},
    **{f"confusion {kind}": partial(generated.confusion, kind=kind) for kind in PROMPTS},
}
"""Of a text-to-image pipeline; those of one kind of prompt are empty where it was not asked for."""


@dataclass(frozen=True)
class Kind:
    """What is measured of one kind of task.

    Parameters
    ----------
    load : callable
        Reads stored outputs.
    metrics, selection : mapping
        Functions of the outputs, by column: for reported cells, and for the choice of settings.
    """

    load: Callable[[Path], Any]
    metrics: Mapping[str, Callable[[Any], Any]]
    selection: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "classification": Kind(Evaluation.load, METRICS, SELECTION),
    "diffusion": Kind(generated.GeneratedOutputs.load, GENERATION),
    "text_to_image": Kind(generated.GeneratedOutputs.load, TEXT_TO_IMAGE),
}
"""By the kind of a task."""

__all__ = [
    "ATTACKS",
    "GENERATION",
    "KINDS",
    "METRICS",
    "POPULATION_METRICS",
    "SELECTION",
    "TEXT_TO_IMAGE",
    "Audit",
    "Evaluation",
    "Kind",
    "evaluate",
]
