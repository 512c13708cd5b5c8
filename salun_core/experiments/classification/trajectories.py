"""Methods followed on their way from the original model towards the models that retraining gives."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import field_validator
from torch import nn

from salun_core.data.images import ImageData
from salun_core.data.splits import Split
from salun_core.errors import UserError
from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.runs.cells import Scenario
from salun_core.experiments.runs.machine import OneThread
from salun_core.experiments.runs.params import LONG, Params, parameter
from salun_core.methods import METHODS
from salun_core.metrics import evaluate
from salun_core.metrics.classification.outputs import Evaluation
from salun_core.saliency import check_keep, saliency_mask
from salun_core.tasks.classification import ClassificationTask

FOLLOWED = ("ft", "ga", "rl", "salun", "l1_sparse")
"""Methods that descend on a loss, step by step."""
SETTINGS: dict[str, dict[str, Any]] = {
    "ft": {"lr": 0.1},
    "ga": {"lr": 0.003},
    "rl": {"lr": 0.004},
    "salun": {"lr": 0.004},
    "l1_sparse": {"lr": 0.1, "alpha": 1e-5},
}
"""What methods are followed with; chosen by eye, so that their paths can be seen."""


class TrajectoryParams(Params):
    """Parameters of the chapters that follow methods on handwritten digits."""

    experiment: ClassVar[str] = "trajectories"

    forget_fraction: float = parameter(
        0.1, "share of the training images to forget, between 0 and 1", gt=0, lt=1
    )
    methods: tuple[str, ...] = parameter(
        ("ft", "ga", "rl", "salun"), f"methods to follow, from {', '.join(FOLLOWED)}"
    )
    keep: float = parameter(0.5, "share of the weights in SalUn's mask, (0, 1]")
    steps: int = parameter(64, "optimiser steps of every method", ge=1)
    looks: int = parameter(16, "how often the model is measured on its way", ge=1)
    settings: dict[str, dict[str, Any]] = parameter({}, "settings by method, instead of SETTINGS")
    retrained: int = parameter(5, "models trained again without the forget set", ge=2)
    width: int = parameter(8, "channels of the first stage of the network", ge=1)
    epochs: int | None = parameter(
        None, "of training from scratch; those of the recipe by default", ge=1, le=LONG
    )
    seed: int = parameter(0, "of split, training and unlearning", ge=0, any_whole=True)
    machine: OneThread = OneThread()

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"methods": (FOLLOWED, "method to follow")}

    @field_validator("methods")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise UserError("methods is empty: choose from " + ", ".join(FOLLOWED))
        return value

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float) -> float:
        check_keep(value)
        return value

    @property
    def at(self) -> list[int]:
        """The steps after which a model is measured; the first time is before any step."""
        return sorted({round(step) for step in np.linspace(0, self.steps, self.looks + 1)})


@dataclass(frozen=True)
class Trajectories:
    """What was seen on the way.

    Parameters
    ----------
    data : ImageData
        All images.
    split : dict of str to Tensor
        Sample ids by role.
    task : ClassificationTask
        The original model, and images by role.
    retrained : list of Evaluation
        Outputs of models trained without the forget set, which differ in initialisation and order.
    steps : list of int
        When each model was looked at.
    paths : dict of str to list of Evaluation
        Outputs of each method at these steps.
    """

    data: ImageData
    split: Split
    task: ClassificationTask
    retrained: list[Evaluation]
    steps: list[int]
    paths: dict[str, list[Evaluation]]


@dataclass(frozen=True)
class Watched(ClassificationTask):
    """A task that shows the model to ``look`` before each batch, and tells ``stepped`` of each step of its optimiser."""

    look: Callable[[nn.Module], None] = lambda model: None
    stepped: Callable[[], None] = lambda: None

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The task's own optimiser."""
        made = super().optimizer(model, lr)
        made.register_step_post_hook(lambda *_: self.stepped())
        # Before the next batch and not right after a step: by then the weights outside the mask are back in place. And
        # not behind that batch, which moves the running statistics of BatchNorm.
        model.register_forward_pre_hook(lambda *_: self.look(model))
        return made


def follow(
    method: str,
    task: ClassificationTask,
    at: Collection[int],
    look: Callable[[nn.Module], Any],
    **settings: Any,
) -> list[Any]:
    """Run a method once and look at its model after some of its steps.

    Parameters
    ----------
    method : str
        One that descends on a loss, see ``FOLLOWED``.
    task : ClassificationTask
        What to unlearn.
    at : collection of int
        Steps, from 0, the original model, to the length of the run, which is at least 1.
    look : callable
        What to keep of a model; it leaves the model as it was.
    **settings
        Of the method, without ``steps``.
    """
    seen: list[Any] = []
    to_come = set(at) - {max(at)}  # the last one is what the method returns
    done = 0

    def watch(model: nn.Module) -> None:
        if done in to_come:
            to_come.remove(done)  # first, for to look at a model is to give it batches
            seen.append(look(model))

    def count() -> None:
        nonlocal done
        done += 1

    own = {field.name: getattr(task, field.name) for field in fields(task)}
    unlearned = METHODS[method](Watched(**own, look=watch, stepped=count), steps=max(at), **settings)
    return [*seen, look(unlearned.model)]


def run(params: TrajectoryParams) -> Trajectories:
    """Follow every method on one split of the digits, and retrain on it several times."""
    given: Mapping[str, Any] = {
        "preset": "quick",
        "dataset": "noisy_digits",  # where a network errs on unseen images, as Retrain is asked to
        "arch": "resnet6",
        "scenario": ["random"],
        "forget_fraction": params.forget_fraction,
        "width": params.width,
        "epochs": params.epochs,
        "threads": params.threads,
        "out_dir": params.out_dir,
    }
    lab = ClassificationParams.load(given).lab()
    scenario = Scenario("random", fraction=params.forget_fraction)
    task = lab.task(params.seed, scenario)
    mask = saliency_mask(task.model, task.forget, task.loss, keep=params.keep)
    paths = {
        name: follow(
            name,
            task,
            params.at,
            lambda model: evaluate(model, task.parts),
            mask=mask if METHODS[name].mask == "salient" else None,
            seed=params.seed,
            **{**SETTINGS[name], **params.settings.get(name, {})},
        )
        for name in params.methods
    }
    retrained = [
        evaluate(METHODS["retrain"](task, replica=replica, seed=params.seed).model, task.parts)
        for replica in range(params.retrained)
    ]
    return Trajectories(lab.data, lab.split(params.seed, scenario), task, retrained, params.at, paths)
