"""Gradient ascent: climb the loss on the forget set."""

from collections.abc import Iterator

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task


def ga(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 5,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 1e-4,
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    """Descend on the negative loss of the forget set; the retain set is not used.

    Parameters
    ----------
    task : Task
        A trained model with its forget set.
    mask : Mask, optional
        Weights that may change; all by default.
    epochs, steps, lr, bn_stats, seed
        As in `rl`. With ``bn_stats="update"`` the running statistics become those of the forget set.

    References
    ----------
    Thudi et al., EuroS&P 2022.
    """
    rng = generator(seed, "ga")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="forget", epochs=epochs, steps=steps):
            assert step.forget is not None
            yield -task.loss(model, step.forget, rng), step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats)


METHOD = Method(ga, "GA", search={"lr": between(1e-6, 1e-3)}, source="Thudi et al., EuroS&P 2022")
