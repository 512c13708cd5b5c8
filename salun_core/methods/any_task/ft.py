"""Fine-tuning: train on, without the forget set, and let forgetting happen by itself."""

from collections.abc import Iterator

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task


def ft(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 0.01,
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    """Continue training on the retain set alone.

    Parameters
    ----------
    task : Task
        A trained model with its retain set.
    mask : Mask, optional
        Weights that may change; all by default.
    epochs, steps, lr, bn_stats, seed
        As in `rl`.
    """
    rng = generator(seed, "ft")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="retain", epochs=epochs, steps=steps):
            assert step.retain is not None
            yield task.loss(model, step.retain, rng), step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats)


METHOD = Method(ft, "FT", search={"lr": between(1e-3, 1e-1)}, source="Warnecke et al., NDSS 2023")
