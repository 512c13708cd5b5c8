"""SalUn: random labelling restricted to the salient weights."""

from typing import Any

from salun_core.methods.any_task import rl
from salun_core.methods.engine import Method, Unlearned
from salun_core.methods.search import between
from salun_core.methods.settings import Share
from salun_core.saliency import Mask, saliency_mask
from salun_core.tasks.base import Task


def salun(
    task: Task, *, mask: Mask | None = None, keep: Share = 0.5, seed: int = 0, **settings: Any
) -> Unlearned:
    """Run `rl` with a saliency mask, and nothing else.

    Parameters
    ----------
    task : Task
        A trained model with its forget and retain set.
    mask : Mask, optional
        By default the saliency mask of the task's own loss on the forget set.
    keep : float
        Share of weights in that mask, (0, 1]; unused when ``mask`` is given.
    seed, **settings
        Those of `rl`.

    References
    ----------
    Fan et al., SalUn, ICLR 2024, arXiv:2310.12508.
    """
    if mask is None:
        mask = saliency_mask(task.model, task.forget, task.loss, keep=keep)
    return rl.rl(task, mask=mask, seed=seed, **settings)


METHOD = Method(
    salun,
    "SalUn",
    mask="salient",
    search={"lr": between(5e-4, 5e-2)},
    source="Fan et al., ICLR 2024",
    like=rl.METHOD,
)
