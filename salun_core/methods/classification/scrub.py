"""SCRUB: move away from the original model on the forget set, stay close to it on the retain set."""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.methods.engine import Method, Round, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats
from salun_core.models.classification.scores import class_scores
from salun_core.networks import evaluating
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.classification import ClassificationTask


def scrub(
    task: ClassificationTask,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    forget_epochs: PositiveInt = 3,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 5e-4,
    alpha: NonNegativeFloat = 0.5,
    gamma: NonNegativeFloat = 1.0,
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    r"""Maximise the divergence from the original model on the forget set, and minimise it on the retain set.

    With :math:`d(x) = D_{\mathrm{KL}}(p_{\theta_o}(x) \,\|\, p_\theta(x))`, where :math:`p` is the softmax of the
    class scores, the objective is

    .. math:: \min_\theta\; \mathbb{E}_{D_r}[\alpha\, d(x) + \gamma\, \ell(\theta; x, y)] - \mathbb{E}_{D_f}[d(x)] .

    The two parts take turns: an epoch climbs over the forget set and then descends over the retain set, and after
    ``forget_epochs`` of them only the retain set is used, which mends what climbing broke. This is SCRUB without
    rewinding (SCRUB+R), which picks an earlier epoch by its error on the forget set.

    Parameters
    ----------
    task : ClassificationTask
        A trained classifier with its forget and retain set. Its model is the teacher, in evaluation mode.
    mask : Mask, optional
        Weights that may change; all by default.
    epochs, forget_epochs : int
        Passes over the retain set, and how many of them begin with one over the forget set.
    steps : int, optional
        End after this many optimiser steps instead, with more passes over the retain set as needed.
    alpha, gamma : float
        Weights of the divergence and of the training loss on the retain set.
    lr, bn_stats, seed
        As in `rl`.

    References
    ----------
    Kurmanji et al., Towards unbounded machine unlearning, NeurIPS 2023, arXiv:2302.09880.
    """
    rng = generator(seed, "scrub")

    def turns() -> Iterator[Round]:
        both = min(epochs, forget_epochs)
        yield from rounds(task, rng, order="forget_then_retain", epochs=both)
        if steps is not None or epochs > both:
            yield from rounds(task, rng, order="retain", epochs=max(1, epochs - both), steps=steps)

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in itertools.islice(turns(), steps):
            if step.forget is not None:
                yield -divergence(task, task.logits(model, step.forget[0]), step.forget[0]), step.samples
            if step.retain is not None:
                images, labels = step.retain
                scores = task.logits(model, images)
                right = F.cross_entropy(scores, labels.to(scores.device))
                yield alpha * divergence(task, scores, images) + gamma * right, step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats)


def divergence(task: ClassificationTask, scores: Tensor, images: Tensor) -> Tensor:
    """Kullback-Leibler divergence of scores (N, K) from what the original model says of the images, nats per image."""
    with torch.no_grad(), evaluating(task.model) as teacher:
        expected = class_scores(teacher, images).to(scores.dtype).log_softmax(dim=1)
    return F.kl_div(scores.log_softmax(dim=1), expected, log_target=True, reduction="batchmean")


METHOD = Method(
    scrub,
    "SCRUB",
    tasks=("classification",),
    search={"lr": between(1e-4, 1e-2)},
    source="Kurmanji et al., NeurIPS 2023",
)
