"""ℓ1-sparse unlearning: fine-tuning on the retain set with an ℓ1 penalty on all weights."""

from collections.abc import Iterator

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task


def l1_sparse(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 0.01,
    alpha: NonNegativeFloat = 1e-4,
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    r"""Minimise ``loss(retain) + alpha * (1 - e / E) * sum |weight|`` in epoch e of E, counted from 0.

    In a run of one epoch, or of a number of ``steps``, e and E count optimiser steps instead: the penalty always
    declines within the run. The sum is taken over all weights, those of BatchNorm included. Despite the name nothing
    is pruned.

    Parameters
    ----------
    task : Task
        A trained model with its retain set.
    mask : Mask, optional
        Weights that may change; all by default.
    alpha : float
        Penalty at the start, in the unit of the loss per unit of weight.
    epochs, steps, lr, bn_stats, seed
        As in `rl`.

    References
    ----------
    Jia et al., Model sparsity can simplify machine unlearning, NeurIPS 2023.
    """
    rng = generator(seed, "l1_sparse")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="retain", epochs=epochs, steps=steps):
            assert step.retain is not None
            size = sum(
                (w.abs().sum() for w in model.parameters()), start=next(model.parameters()).new_zeros(())
            )
            yield task.loss(model, step.retain, rng) + alpha * (1 - step.progress) * size, step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats)


METHOD = Method(
    l1_sparse,
    "ℓ1-sparse",
    search={"lr": between(1e-3, 1e-1), "alpha": between(1e-6, 1e-4)},
    source="Jia et al., NeurIPS 2023",
)
