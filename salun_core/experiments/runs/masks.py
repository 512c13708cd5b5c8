"""The mask that a cell asks for."""

from collections.abc import Iterable

from torch import nn

from salun_core.data.batches import Batch
from salun_core.experiments.runs.cells import MaskSpec
from salun_core.rng import generator
from salun_core.saliency import Mask, Scores, least_salient_mask, random_mask, saliency_scores, top_mask
from salun_core.tasks.base import Task


def scores_of(task: Task, spec: MaskSpec, *, seed: int) -> Scores:
    """Saliency scores of the task's model on its forget set; ``seed`` draws the augmentation where there is one."""
    forget: Iterable[Batch] = task.forget
    if spec.augmented:
        forget = list(task.forget.shuffled(generator(seed, "mask augmentation", spec.draw)))
    return saliency_scores(task.model, forget, task.loss, score=spec.score)


def mask_of(model: nn.Module, spec: MaskSpec, scores: Scores | None, *, seed: int) -> Mask:
    """The mask of a kind; ``scores`` may be None for a random one, which needs only the shapes."""
    rng = generator(seed, "random mask", spec.draw)
    if spec.kind == "random" or scores is None:
        return random_mask(dict(model.named_parameters()), keep=spec.keep, rng=rng)
    if spec.kind == "salient":
        return top_mask(scores, keep=spec.keep)
    if spec.kind == "least_salient":
        return least_salient_mask(scores, keep=spec.keep)
    return random_mask(scores, keep=spec.keep, rng=rng, per_layer=top_mask(scores, keep=spec.keep))
