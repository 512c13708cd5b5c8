"""What a method may ask of a task, whatever the task is."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from salun_core.data.batches import Batch, Loader
from salun_core.errors import UserError


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


def settings_of_task(task: Task) -> set[str]:
    """What the function that makes such a task takes by name, so that a method need not."""
    named = {"forget", "retain"}
    if is_dataclass(task):
        named |= {f.name for f in fields(task) if f.init and f.default is not MISSING}
    return named - {"kind", "classes"}


def check_training(build: Any, recipe: Any, kind: type) -> None:
    """Refuse what a task is given for training from scratch, where it is neither None nor what is needed.

    Raises
    ------
    UserError
        If ``build`` cannot be called with a seed, or ``recipe`` does not have type ``kind``.
    """
    if build is not None and not callable(build):
        raise UserError(
            f"build is a {type(build).__name__}: give a function of a seed that returns a network"
        )
    try:
        if build is not None:
            inspect.signature(build).bind(0)
    except ValueError:  # what is written in C may have no signature
        pass
    except TypeError as error:
        raise UserError(
            f"build cannot be called with a seed ({error}): give a function of a seed that returns a network"
        ) from error
    if recipe is not None and not isinstance(recipe, kind):
        raise UserError(f"recipe is a {type(recipe).__name__}: give a {kind.__name__}")


def fresh(build: Callable[[int], Any], seed: int) -> nn.Module:
    """What ``build(seed)`` returns, which must be a network.

    Raises
    ------
    UserError
        If it is none.
    """
    net = build(seed)
    if not isinstance(net, nn.Module):
        raise UserError(f"build returned a {type(net).__name__}: return a torch.nn.Module")
    return net
