"""What a method may ask of a task, whatever the task is."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from salun_core.data.batches import Batch, Loader


@runtime_checkable
class Task(Protocol):
    """A trained model, its data, and its losses.

    ``loss`` and ``relabel_loss`` are means over the images of a batch; random draws (labels, noise,
    time steps) come from ``rng``, a CPU generator, so that a run repeats on any device.
    """

    @property
    def kind(self) -> str:
        """One of "classification", "diffusion", "text_to_image"."""
        ...

    @property
    def model(self) -> nn.Module:
        """The trained model; methods copy it and never change it."""
        ...

    @property
    def forget(self) -> Loader:
        """The data to forget."""
        ...

    @property
    def retain(self) -> Loader:
        """The data to keep."""
        ...

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """The loss the model was trained with."""
        ...

    def relabel_loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """The loss towards a wrong answer."""
        ...

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """A fresh optimiser of the kind this task's models are trained with."""
        ...

    def train(self, batches: Loader, *, seed: int) -> tuple[nn.Module, list[float]]:
        """Train a new model from scratch on ``batches``; returns it with the loss of each step."""
        ...
