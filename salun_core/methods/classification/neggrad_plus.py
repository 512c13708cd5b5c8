"""NegGrad+: descend on the retain set and climb on the forget set in the same step."""

from collections.abc import Iterator

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats, Share
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task


def neggrad_plus(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 5,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 0.01,
    beta: Share = 0.95,
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    """Minimise ``beta * loss(retain) - (1 - beta) * loss(forget)``, both means over images.

    Parameters
    ----------
    task : ClassificationTask
        A trained classifier with its forget and retain set.
    mask : Mask, optional
        Weights that may change; all by default.
    beta : float
        Share of the retain term, in (0, 1]. At 1 this is FT on batches that a pass over the forget set counts.
    epochs, steps, lr, bn_stats, seed
        As in `rl`; a step takes a batch of each set, and an epoch is a pass over the forget set. In the
        released code it is a pass over the retain set.

    References
    ----------
    Kurmanji et al., Towards unbounded machine unlearning, NeurIPS 2023, arXiv:2302.09880.
    """
    rng = generator(seed, "neggrad_plus")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="joint", epochs=epochs, steps=steps):
            assert step.forget is not None and step.retain is not None
            keep, drop = task.loss(model, step.retain, rng), task.loss(model, step.forget, rng)
            yield beta * keep - (1 - beta) * drop, step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats)


METHOD = Method(
    neggrad_plus,
    "NegGrad+",
    tasks=("classification",),
    search={"lr": between(1e-4, 1e-1), "beta": between(0.8, 1.0)},
    source="Kurmanji et al., NeurIPS 2023",
)
