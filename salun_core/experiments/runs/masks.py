"""The mask that a cell asks for."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from salun_core.data.batches import Batch, Batches, Loader
from salun_core.data.draws import lots
from salun_core.experiments.runs.cells import MaskSpec
from salun_core.rng import generator
from salun_core.saliency import Mask, Scores, least_salient_mask, random_mask, saliency_scores, top_mask
from salun_core.tasks.base import Task


@dataclass(frozen=True)
class AugmentedEpoch:
    """The images of one epoch of training, drawn anew and the same whenever they are read."""

    batches: Loader
    seed: int
    draw: int

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.shuffled(generator(self.seed, "mask augmentation", self.draw))


def scores_of(task: Task, spec: MaskSpec, *, seed: int) -> Scores:
    """Saliency scores of the task's model on its forget set.

    ``seed`` draws the augmentation, where there is one, and otherwise the order of the images: only the paper's score
    does not depend on which of them come first or share a batch.
    """
    forget: Loader | AugmentedEpoch = task.forget
    if spec.augmented:
        forget = AugmentedEpoch(task.forget, seed, spec.draw)
    elif spec.score != "abs_sum" and isinstance(forget, Batches):
        forget = forget.subset(lots(forget.ids, "order of scores", seed).argsort())
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
