"""Parameters of the diffusion experiment."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import field_validator, model_validator

from salun_core.data.images import ImageData
from salun_core.errors import UserError
from salun_core.experiments.diffusion.lab import DiffusionLab
from salun_core.experiments.diffusion.problem import Problem
from salun_core.experiments.generation.params import Forgetting, GenerationParams, Sampling, Steps
from salun_core.experiments.runs.params import Group, parameter
from salun_core.experiments.runs.repetition import RetrainRepetition
from salun_core.experiments.runs.trained import DIGEST, HERE, Trained
from salun_core.models.diffusion.unet import SCHEDULES
from salun_core.tasks.diffusion import RELABEL
from salun_core.tasks.diffusion_training import DECLINES, DiffusionRecipe

MOST_LAYERS = 100  # of each resolution


class Unet(Group):
    """The denoising network and its noise: see ``models.diffusion.unet``."""

    widths: tuple[int, ...] = parameter(
        (128, 256, 256, 256), "channels of the network at each resolution", repeats=True
    )
    layers: int = parameter(2, "residual blocks at each resolution", ge=1, le=MOST_LAYERS)
    attention: tuple[int, ...] = parameter((16,), "resolutions with self-attention")
    head: int | None = parameter(None, "channels of an attention head", ge=1)
    dropout: float = parameter(0.0, "inside the residual blocks", ge=0, lt=1)
    schedule: str = parameter("linear", "of the noise: " + ", ".join(SCHEDULES))
    diffusion_steps: int = parameter(1000, "T", ge=2)

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"schedule": (SCHEDULES, "noise schedule")}

    @field_validator("widths")
    @classmethod
    def _widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise UserError("widths is empty: give at least one")
        return value

    def check_head(self, size: int) -> None:
        """Refuse attention heads of more channels than there are where the network attends to images of ``size`` pixels."""
        attends = [width for level, width in enumerate(self.widths) if size // 2**level in self.attention]
        most = min([*attends, self.widths[-1]])  # the middle of the network attends always
        if self.head is not None and self.head > most:
            raise UserError(
                f"head {self.head} is more than the {most} channels it is a part of: give at most {most}"
            )


class DiffusionTraining(Trained):
    """Training from scratch."""

    steps: int = parameter(800_000, "optimiser steps of training from scratch", needs=HERE, ge=1)
    lr: float = parameter(2e-4, "its learning rate (Adam)", needs=HERE, gt=0)
    decline: str = parameter("constant", "of the learning rate: " + ", ".join(DECLINES), needs=HERE)
    warmup: int = parameter(0, "steps of linear increase", needs=HERE, ge=0)
    ema: float = parameter(
        0.0, "decay of the running average of the weights; 0 for the last weights", needs=HERE
    )
    clip: float = parameter(1.0, "largest norm of a gradient")
    drop: float = parameter(0.1, "share of images trained without their class")
    pretrained: str | None = parameter(
        None, "a diffusers folder in place of the original model", no_effect=DIGEST
    )
    retrained: str | None = parameter(
        None, 'with pretrained, Retrain: such a folder, or "train"; None: there is none', no_effect=DIGEST
    )
    minutes: float | None = parameter(
        None,
        "stop a long training after this many minutes; the same command continues it",
        needs=HERE,
        gt=0,
        no_effect="a training that is continued ends with the same weights",
    )

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"decline": (DECLINES, "decline of the learning rate")}

    def recipe(self, batch_size: int) -> DiffusionRecipe:
        """How models are trained from scratch, with batches of this size."""
        own = [f.name for f in fields(DiffusionRecipe) if f.name in type(self).model_fields]
        return DiffusionRecipe(**{name: getattr(self, name) for name in own}, batch_size=batch_size)


class DiffusionSampling(Sampling):
    """How images are drawn from a class-conditional model."""

    samples_other: int | None = parameter(
        None, "images drawn of each class that is not forgotten; as many as samples by default", ge=2
    )

    @model_validator(mode="after")
    def _fewer(self) -> Self:
        if self.others > self.samples:
            raise UserError(
                f"samples_other {self.samples_other} is more than samples {self.samples}: give at most as many"
            )
        return self

    @property
    def others(self) -> int:
        """Images drawn of each class that is not forgotten."""
        return self.samples if self.samples_other is None else self.samples_other


class DiffusionForgetting(Forgetting):
    """The losses of forgetting: see ``DiffusionTask``."""

    relabel: str = parameter("next", "wrong class: " + " or ".join(RELABEL))

    choices: ClassVar[dict[str, tuple[Any, str]]] = {
        **Forgetting.choices,
        "relabel": (RELABEL, "choice of wrong classes"),
    }


class DiffusionSteps(Steps):
    """Steps with the released code's weight of the retain loss, on equal reductions."""

    alpha: float = parameter(3.072, "weight of the retain loss, both losses being means", ge=0)


class DiffusionParams(GenerationParams):
    """Parameters of the diffusion experiment."""

    experiment: ClassVar[str] = "diffusion"
    kind: ClassVar[str] = "diffusion"

    methods: tuple[str, ...] = parameter(
        ("original", "ga", "rl", "ft", "l1_sparse", "esd", "salun", "salun_soft"),
        "methods beside Retrain, which always runs where it is trained or given",
    )
    forgetting: DiffusionForgetting = DiffusionForgetting()
    steps_of: DiffusionSteps = DiffusionSteps()
    sampling: DiffusionSampling = DiffusionSampling()
    unet: Unet = Unet()
    training: DiffusionTraining = DiffusionTraining()
    repetition: RetrainRepetition = RetrainRepetition()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        training = self.training
        training.recipe(self.forgetting.batch_size)  # refuses impossible values
        if "retrained" in training.brought and self.models * len(self.seeds) > 1:
            raise UserError(
                f"retrained {training.retrained} was trained without one class: give one forget_class, or together: true "
                f"where it is several, and one number in seeds; got {list(self.forget_class)} and {list(self.seeds)}"
            )
        if self.sampling.sample_steps > self.unet.diffusion_steps:
            raise UserError(
                f"sample_steps {self.sampling.sample_steps} is more than diffusion_steps {self.unet.diffusion_steps}"
            )
        return self

    def lab(self, *, data: ImageData | None = None) -> DiffusionLab:
        """Load the data and open the store.

        Parameters
        ----------
        data : ImageData, optional
            Use these images instead of ``dataset``.
        """
        device, training = self.machine.ready(), self.training
        store = self.machine.store()
        brought: dict[str, Any] = {name: Path(folder) for name, folder in training.brought.items()}
        problem = Problem(
            self.data.load() if data is None else data,
            self.unet,
            training.recipe(self.forgetting.batch_size),
            self.forgetting,
            bf16=training.bf16(device),
            compile=training.compile,
            device=device,
            **brought,
        )
        if not brought:
            self.unet.check_head(problem.data.images.shape[-1])
        deadline = time.monotonic() + 60 * training.minutes if training.minutes is not None else None
        return DiffusionLab(
            problem.data, store, self.judging, self.sampling, device, problem=problem, deadline=deadline
        )
