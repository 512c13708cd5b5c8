"""Training from scratch: the recipes behind original and retrained models."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salun_core.data.batches import Batch, Loader
from salun_core.errors import UserError
from salun_core.rng import generator, isolated
from salun_core.tasks.trace import Trace


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from scratch.

    ``schedule`` is "cosine" (to 0), "steps" (times 0.1 at each share of the run in ``milestones``) or
    "one_cycle" (linear up over the first fifth, linear down to 0). All leave the labels as they are: no
    smoothing and no mixing, which would change the confidences that the membership attack reads.
    """

    epochs: int
    lr: float
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False

    def lr_at(self, progress: float) -> float:
        """Learning rate at ``progress`` in [0, 1) of the run."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * progress)) / 2
        if self.schedule == "steps":
            return self.lr * 0.1 ** sum(progress >= m for m in self.milestones)
        if self.schedule == "one_cycle":
            return self.lr * min(progress / 0.2, (1 - progress) / 0.8)
        raise UserError(f"unknown schedule {self.schedule!r}: choose cosine, steps or one_cycle")


Loss = Callable[[nn.Module, Batch], Tensor]


def sgd(
    model: nn.Module, lr: float, *, momentum: float = 0.9, weight_decay: float = 5e-4, nesterov: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of the paper's classification experiments."""
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def train_network(
    model: nn.Module, batches: Loader, loss: Loss, *, recipe: Recipe, seed: int
) -> tuple[nn.Module, list[float]]:
    """Train ``model`` in place on ``batches``.

    Parameters
    ----------
    model : nn.Module
        Freshly initialised, on the device of the images.
    batches : Batches or Stream
        The training set; its ``size`` is replaced by the recipe's.
    loss : callable
        ``loss(model, batch)``, a mean over the batch.
    recipe : Recipe
        Schedule and optimiser settings.
    seed : int
        Order of the images, augmentation and dropout.

    Returns
    -------
    model, losses
        The same model, and the mean loss of each epoch in the unit of ``loss``.

    Raises
    ------
    UserError
        If the loss stops being finite.
    """
    rng = generator(seed, "train")
    optimizer = sgd(
        model,
        recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    epochs = []
    model.train()
    with isolated(seed, "train"):
        for epoch in range(recipe.epochs):
            steps = batches.resized(recipe.batch_size)
            values = Trace()
            for step, batch in enumerate(steps.shuffled(rng)):
                # +1: the one-cycle schedule starts at 0, where a step would be wasted.
                done = (epoch * len(steps) + step + 1) / (recipe.epochs * len(steps) + 1)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr_at(done)
                value = loss(model, batch)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                values.add(value)
            epochs.append(values.values().mean().item())
            if not math.isfinite(epochs[-1]):
                raise UserError(
                    f"training diverged in epoch {epoch + 1}: lower the learning rate {recipe.lr}"
                )
    return model.eval(), epochs
