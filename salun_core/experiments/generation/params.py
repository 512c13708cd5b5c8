"""Parameters that experiments with generative models share."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator, model_validator

from salun_core.data import DATASETS
from salun_core.errors import UserError, one_of
from salun_core.experiments.generation.lab import Judge, Sampling
from salun_core.experiments.runs.cells import MASKS, MaskSpec
from salun_core.experiments.runs.params import Params, find_device, numeric
from salun_core.experiments.runs.store import Store
from salun_core.experiments.runs.tuning import Variant
from salun_core.methods import METHODS, methods_for
from salun_core.metrics.generation.frechet import FEATURES, INCEPTION, JUDGE, inception_file
from salun_core.models import check_arch, takes_width
from salun_core.paths import output_folder
from salun_core.saliency import SCORES, check_keep
from salun_core.tasks.classification_training import RECIPES
from salun_core.tasks.noise_prediction import TARGETS


class GenerationParams(Params):
    """Data, masks, forgetting, sampling and judging; one that derives from it says which network."""

    kind: ClassVar[str]  # of the task
    known_masks: ClassVar[tuple[str, ...]] = MASKS
    known_judges: ClassVar[tuple[str, ...]] = ()  # besides networks that are trained here

    preset: str = "quick"
    dataset: str = "digits"
    data_dir: Path | None = None
    forget_class: tuple[int | str, ...] = (0,)
    methods: tuple[str, ...] = ("original", "salun")
    masks: tuple[str, ...] = ("none", "salient", "random", "least_salient")
    keep: float = 0.5
    score: str = "abs_sum"
    mask_guidance: float = Field(0.0, ge=0)
    mask_draws: int = Field(1, ge=1)
    antithetic: bool = True
    # Forgetting.
    batch_size: int = Field(128, ge=2)
    forget_steps: int = Field(1000, ge=1)
    forget_lr: float = 1e-4
    alpha: float = Field(1.0, ge=0)
    target: str = "original"
    relabel_drop: float = Field(0.0, ge=0, lt=1)
    settings: dict[str, dict[str, Any]] = {}
    # Measuring.
    samples: int = Field(100, ge=2)
    guidance: float = Field(2.0, ge=0)
    sample_steps: int = Field(50, ge=1)
    eta: float = Field(0.0, ge=0, le=1)
    sample_batch: int = Field(500, ge=1)
    reference: int = Field(5000, ge=20)
    features: str = JUDGE
    inception_weights: Path | None = None
    judge: str = "resnet34"
    judge_width: int | None = Field(None, ge=1)
    judge_recipe: str = "digits"
    judge_epochs: int | None = Field(None, ge=1)
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    threads: int = Field(0, ge=0)
    recorded: bool = False
    out_dir: Path | None = None

    names: ClassVar[dict[str, tuple[Any, str]]] = {
        "dataset": (DATASETS, "data set"),
        "score": (SCORES, "saliency score"),
        "target": (TARGETS, "target of the forgetting loss"),
        "features": (FEATURES, "features of the Fréchet distance"),
        "judge_recipe": (RECIPES, "recipe"),
    }

    @field_validator("*", mode="before")
    @classmethod
    def _list(cls, value: Any, info: Any) -> Any:
        if not str(cls.model_fields[info.field_name].annotation).startswith("tuple["):
            return value
        if isinstance(value, str):
            return [part.strip(" '\"") for part in value.strip("[]() ").split(",") if part.strip(" '\"")]
        return [value] if isinstance(value, int) else value

    @field_validator(*names)
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        return one_of(value, *cls.names[info.field_name])

    @field_validator("methods", "masks")
    @classmethod
    def _known_names(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        known = {"methods": methods_for(cls.kind), "masks": cls.known_masks}[info.field_name]
        for name in value:
            one_of(name, known, info.field_name.removesuffix("s"))
        return value

    @field_validator("forget_class", "seeds")
    @classmethod
    def _once_each(cls, value: tuple[Any, ...], info: Any) -> tuple[Any, ...]:
        if not value:
            raise UserError(f"{info.field_name} is empty: give at least one")
        if len(set(value)) < len(value):
            raise UserError(f"{info.field_name} {list(value)} repeats one: each counts once")
        return value

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float) -> float:
        check_keep(value)
        return value

    @field_validator("judge")
    @classmethod
    def _judge(cls, value: str) -> str:
        if value not in cls.known_judges:
            check_arch(value)
        return value

    @field_validator("settings")
    @classmethod
    def _settings(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for method, settings in value.items():
            known = METHODS[one_of(method, methods_for(cls.kind), "method in settings")].defaults
            for name in settings:
                one_of(name, known, f"setting of {method}")
        return {m: {k: numeric(v) for k, v in settings.items()} for m, settings in value.items()}

    @model_validator(mode="after")
    def _files(self) -> "GenerationParams":
        if self.dataset == "imagefolder" and self.data_dir is None:
            raise UserError(
                "dataset imagefolder needs data_dir: a folder with train/<class>/ and test/<class>/"
            )
        if self.inception_weights is not None and self.features != INCEPTION:
            raise UserError(
                f"inception_weights {self.inception_weights} is given but features is {self.features!r}: set "
                "features to inception, or leave inception_weights out"
            )
        return self

    def settings_of(self, method: str) -> dict[str, Any]:
        """The settings a method runs with."""
        known = METHODS[method].defaults
        common: dict[str, Any] = {"steps": self.forget_steps, "lr": self.forget_lr}
        if "order" in known:  # a forget and a retain batch in each step, and the weight between them
            common |= {"order": "joint", "alpha": self.alpha}
        return {k: v for k, v in common.items() if k in known} | self.settings.get(method, {})

    def mask_variant(self, kind: str) -> Variant:
        """Random labelling under a kind of mask; under the salient one it is SalUn."""
        if kind == "none":
            return Variant("rl")
        return Variant("salun" if kind == "salient" else "rl", MaskSpec(kind, self.keep, self.score))

    def shared_parts(self) -> dict[str, Any]:
        """What labs of every kind are made with: store, judge, sampling, device."""
        device = find_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
        recipe = RECIPES[self.judge_recipe]
        if self.judge_epochs is not None:
            recipe = replace(recipe, epochs=self.judge_epochs)
        trained = self.judge not in self.known_judges
        width = self.judge_width if trained and takes_width(self.judge) else None
        return {
            "store": Store(output_folder(self.out_dir) / "cells", trusted=self.recorded),
            "judge": Judge(self.judge, width, recipe),
            "sampling": Sampling(
                self.samples, self.guidance, self.sample_steps, self.eta, self.sample_batch, self.reference
            ),
            "inception": inception_file(self.inception_weights) if self.features == INCEPTION else None,
            "device": device,
            "experiment": self.experiment,
            "source": self.preset,
        }
