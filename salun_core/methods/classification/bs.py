"""Boundary shrink: give forget images the label just across the nearest decision boundary."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.data.batches import Batch
from salun_core.errors import UserError
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats
from salun_core.models.classification.scores import class_scores
from salun_core.networks import evaluating
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task


def bs(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 1e-6,
    bound: PositiveFloat = 0.1,
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    """Train forget images towards the class that the original model sees after one adversarial step.

    Parameters
    ----------
    task : ClassificationTask
        A trained classifier with its forget set.
    mask : Mask, optional
        Weights that may change; all by default.
    bound : float
        Size of the step by the sign of the gradient, on pixels in [0, 1]; the result is rounded to 1/255.
    epochs, steps, lr, bn_stats, seed
        As in `rl`.

    References
    ----------
    Chen et al., Boundary Unlearning, CVPR 2023.
    """
    rng = generator(seed, "bs")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="forget", epochs=epochs, steps=steps):
            assert step.forget is not None
            images, _ = step.forget
            yield task.loss(model, (images, label_across(task, step.forget, bound=bound))), step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats)


def label_across(task: Task, batch: Batch, *, bound: float) -> Tensor:
    """Class (N,) that the original model sees one adversarial step away; it can be the true one."""
    images, labels = batch
    low, high = (float(value) for value in images.aminmax())
    if low < 0 or high > 1:
        raise UserError(
            f"BS steps from pixel to pixel in [0, 1], but images go from {low:.2g} to {high:.2g}: "
            "leave normalisation to the model's first layer"
        )
    # In evaluation mode: the original model only labels, it does not learn here.
    with evaluating(task.model) as frozen:
        images = images.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(class_scores(frozen, images), labels), images)
        moved = (images.detach() + bound * slope.sign()).clamp(0, 1).mul(255).round().div(255)
        with torch.no_grad():
            return class_scores(frozen, moved).argmax(dim=1)


METHOD = Method(
    bs, "BS", tasks=("classification",), search={"lr": between(1e-6, 1e-4)}, source="Chen et al., CVPR 2023"
)
