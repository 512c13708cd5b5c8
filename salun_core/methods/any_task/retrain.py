"""Retrain: the gold standard that every other method is measured against."""

from pydantic import NonNegativeInt

from salun_core.errors import UserError
from salun_core.methods.engine import Method, Unlearned
from salun_core.rng import derive
from salun_core.saliency import Mask
from salun_core.tasks import FROM_SCRATCH
from salun_core.tasks.base import Task


def retrain(task: Task, *, mask: Mask | None = None, replica: NonNegativeInt = 0, seed: int = 0) -> Unlearned:
    """Train a new model on the retain set alone, as the original was trained on all data.

    Parameters
    ----------
    task : Task
        Gives the retain set and the recipe.
    mask : None
        Retraining starts from scratch, so there is nothing a mask could hold.
    replica : int
        Different replicas differ in initialisation and order only: they measure the noise floor.
    seed : int
        Initialisation, order, augmentation.
    """
    if mask is not None:
        raise UserError("Retrain starts from random weights: a saliency mask cannot be applied to it")
    model, losses = task.train(task.retain, seed=derive(seed, "retrain", replica))
    return Unlearned(model, losses, samples=len(losses) * task.retain.n)


METHOD = Method(
    retrain,
    "Retrain",
    tasks=FROM_SCRATCH,
    source="training from scratch on the retain set",
)
