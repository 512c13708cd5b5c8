"""Parameters that experiments with generative models share."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import field_validator, model_validator

from salun_core.data.images import ImageData
from salun_core.data.splits import class_numbers
from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.cells import MASKS, Cell, MaskSpec, Scenario, Variant, default_mask
from salun_core.experiments.runs.data_choice import DataChoice
from salun_core.experiments.runs.machine import Machine
from salun_core.experiments.runs.params import LONG, Group, PresetParams, parameter
from salun_core.experiments.runs.repetition import Repetition
from salun_core.experiments.runs.tuning import FREE, checked_settings
from salun_core.methods import METHODS, fitting
from salun_core.methods.engine import check_settings
from salun_core.metrics.generation.frechet import FEATURES, INCEPTION, JUDGE, inception_file
from salun_core.models import check_arch, takes_width
from salun_core.saliency import SCORES, check_keep
from salun_core.tasks import RECIPES
from salun_core.tasks.classification_training import Recipe
from salun_core.tasks.noise_prediction import TARGETS


class Masking(Group):
    """Which weights may change."""

    keep: float = parameter(0.5, "share of weights a mask lets change, in (0, 1]")
    score: str = parameter("abs_sum", "definition of the saliency score, a key of SCORES")

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"score": (SCORES, "saliency score")}

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float) -> float:
        check_keep(value)
        return value


class Forgetting(Group):
    """The losses of forgetting and of the mask, as a task takes them."""

    batch_size: int = parameter(128, "images of each set in a step", ge=2)
    target: str = parameter(
        "original", "aim of the forgetting loss: prediction of the original or of the current weights"
    )
    relabel_drop: float = parameter(
        0.0, "share of forget images whose class is dropped in the forgetting loss", ge=0, lt=1
    )
    mask_guidance: float = parameter(
        0.0, "guidance in the loss behind the mask; the released code has 2", ge=0
    )
    mask_draws: int = parameter(1, "time steps and noises for each image in that loss", ge=1)
    antithetic: bool = parameter(True, "draw time steps in pairs t, T - 1 - t")

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"target": (TARGETS, "target of the forgetting loss")}

    def losses(self) -> dict[str, Any]:
        """What a task of noise prediction is told of its losses, by the names that the two share."""
        return {name: getattr(self, name) for name in Forgetting.model_fields if name != "batch_size"}


STRONGEST = 1000.0  # times the steps of a method


class Steps(Group):
    """How long and how fast methods forget, unless ``settings`` says otherwise."""

    forget_steps: int = parameter(1000, "optimiser steps of unlearning", ge=1)
    forget_lr: float = parameter(1e-4, "its learning rate", gt=0)
    alpha: float = parameter(
        1.0, "weight of the retain loss, both losses being means (see the method page)", ge=0
    )
    settings: dict[str, dict[str, Any]] = parameter(
        {}, 'settings by method that replace these, such as {"ga": {"steps": 50}}'
    )
    strengths: tuple[float, ...] = parameter(
        (),
        "multiples of each method's steps at which it runs as well, for the frontier of UA and other classes",
    )

    @field_validator("settings")
    @classmethod
    def _settings(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return checked_settings(value)

    @field_validator("strengths")
    @classmethod
    def _strengths(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for strength in value:
            if not 0 < strength <= STRONGEST:
                raise UserError(f"strengths must be above 0 and at most {STRONGEST:g}, got {strength:g}")
        return value

    def of(self, method: str) -> dict[str, Any]:
        """The settings a method runs with."""
        known = METHODS[method].defaults
        common: dict[str, Any] = {"steps": self.forget_steps, "lr": self.forget_lr}
        if "order" in known:  # a forget and a retain batch in each step, and the weight between them
            common |= {"order": "joint", "alpha": self.alpha}
        return {k: v for k, v in common.items() if k in known} | self.settings.get(method, {})

    def at_strengths(self, settings: dict[str, Any]) -> dict[float, dict[str, Any]]:
        """Settings with fewer and with more steps, by strength; 1 among them. Only 1 for a method without steps."""
        strengths = sorted({1.0, *self.strengths}) if "steps" in settings else [1.0]
        return {
            s: settings | {"steps": max(1, round(s * settings["steps"]))} if s != 1 else settings
            for s in strengths
        }


class Sampling(Group):
    """How images are drawn from a model to measure it."""

    samples: int = parameter(100, "images drawn of each class, by which a model is measured", ge=2)
    guidance: float = parameter(2.0, "of sampling; 0 for none", ge=0)
    sample_steps: int = parameter(50, "denoising steps (DDIM)", ge=1)
    eta: float = parameter(
        0.0, "0: deterministic; 1 with all steps: ancestral sampling, as in the paper", ge=0, le=1
    )
    sample_batch: int = parameter(
        500, "images denoised together", ge=1, no_effect="each image has noise of its own"
    )

    @property
    def others(self) -> int:
        """Images drawn of each class that is not forgotten."""
        return self.samples


class Judging(Group):
    """The independent classifier, and the real images that generated ones are compared with."""

    reference: int = parameter(5000, "real images that the Fréchet distance compares with, at most", ge=20)
    features: str = parameter(
        JUDGE,
        "of the Fréchet distance: inception, which makes it a FID, or judge",
        no_effect="the digest of their weights is part of the key in its place",
    )
    inception_weights: Path | None = parameter(
        None,
        "weights of pytorch-fid; those in torch's cache by default",
        no_effect="the digest of the file is part of the key in its place",
    )
    judge: str = parameter("resnet34", "network of the independent classifier")
    judge_width: int | None = parameter(
        None, "channels of its first stage", needs="judge is not imagenet", ge=1
    )
    judge_recipe: str = parameter(
        "digits", "its training: " + ", ".join(RECIPES), needs="judge is not imagenet"
    )
    judge_epochs: int | None = parameter(
        None, "instead of the recipe's", needs="judge is not imagenet", ge=1, le=LONG
    )

    choices: ClassVar[dict[str, tuple[Any, str]]] = {
        "features": (FEATURES, "features of the Fréchet distance"),
        "judge_recipe": (RECIPES, "recipe"),
    }
    ready_made: ClassVar[tuple[str, ...]] = ()  # judges besides networks that are trained here

    @field_validator("judge")
    @classmethod
    def _judge(cls, value: str) -> str:
        if value not in cls.ready_made:
            check_arch(value)
        return value

    @model_validator(mode="after")
    def _files(self) -> Self:
        if self.inception_weights is not None and self.features != INCEPTION:
            raise UserError(
                f"inception_weights {self.inception_weights} is given but features is {self.features!r}: set "
                "features to inception, or leave inception_weights out"
            )
        return self

    @property
    def downloads(self) -> tuple[str, ...]:
        """Keys of ``DOWNLOADS`` that judging reads from where `fetch` puts them."""
        return ("inception",) if self.features == INCEPTION and self.inception_weights is None else ()

    @property
    def inception(self) -> Path | None:
        """Weights of Inception; None for a distance in the features of the judge.

        Raises
        ------
        UserError
            If they are needed and not here.
        """
        return inception_file(self.inception_weights) if self.features == INCEPTION else None

    @property
    def width(self) -> int | None:
        """Channels of the judge's first stage; None where it has no such setting."""
        return self.judge_width if self.judge not in self.ready_made and takes_width(self.judge) else None

    @property
    def recipe(self) -> Recipe:
        """How the judge is trained."""
        recipe = RECIPES[self.judge_recipe]
        return recipe if self.judge_epochs is None else replace(recipe, epochs=self.judge_epochs)


class GenerationParams(PresetParams):
    """Parameters of an experiment that forgets classes; one that derives from it says which network."""

    kind: ClassVar[str]  # of the task
    known_masks: ClassVar[tuple[str, ...]] = MASKS

    data: DataChoice = DataChoice()
    forget_class: tuple[int | str, ...] = parameter(
        (0,), "classes to forget, one after the other, by number or name"
    )
    together: bool = parameter(
        False, "forget these classes at once, with one unlearned model for all of them"
    )
    methods: tuple[str, ...] = parameter(("original", "salun"), "methods beside Retrain, which always runs")
    masks: tuple[str, ...] = parameter(
        ("none", "salient", "random", "least_salient"), "for random labelling: " + ", ".join(MASKS)
    )
    masking: Masking = Masking()
    steps_of: Steps = Steps()
    sampling: Sampling = Sampling()
    judging: Judging = Judging()
    repetition: Repetition = Repetition()
    machine: Machine = Machine()

    @field_validator("methods", "masks")
    @classmethod
    def _known_names(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        for name in value:
            if info.field_name == "methods":
                fitting(name, cls.kind)
            else:
                one_of(name, cls.known_masks, "mask")
        return value

    @field_validator("forget_class")
    @classmethod
    def _some(cls, value: tuple[Any, ...], info: Any) -> tuple[Any, ...]:
        if not value:
            raise UserError(f"{info.field_name} is empty: give at least one")
        return value

    @model_validator(mode="after")
    def _methods_of_settings(self) -> Self:
        for method in self.steps_of.settings:
            fitting(method, self.kind, "method in settings")
        for method in (*self.methods, *(("salun",) if self.masks else ())):
            for settings in self.steps_of.at_strengths(self.steps_of.of(method)).values():
                check_settings(METHODS[method], settings)
        return self

    @property
    def models(self) -> int:
        """Unlearned models of one method and seed: one for each class, or one for all."""
        return 1 if self.together else len(self.forget_class)

    @property
    def downloads(self) -> tuple[str, ...]:
        """Those of the judge."""
        return self.judging.downloads

    def names(self, data: ImageData) -> tuple[str, ...]:
        """What the classes are called, if not as the data call them."""
        return data.classes

    def forgotten(self, data: ImageData) -> list[int]:
        """Numbers of the classes to forget, which may be given by either name."""
        return class_numbers(data, self.forget_class, also=self.names(data))

    def scenarios(self, data: ImageData) -> list[Scenario]:
        """What is forgotten: each class by itself, or all of them together."""
        numbers = self.forgotten(data)
        if self.together and len(numbers) > 1:
            return [Scenario("class", target=tuple(numbers))]
        return [Scenario("class", target=number) for number in numbers]

    def settings_under(self, mask: str) -> dict[str, Any]:
        """SalUn's settings under a kind of mask."""
        return self.steps_of.of("salun")

    def mask_variant(self, kind: str) -> Variant:
        """Random labelling under a kind of mask; under the salient one it is SalUn."""
        if kind == "none":
            return Variant("rl")
        masking = self.masking
        return Variant("salun" if kind == "salient" else "rl", MaskSpec(kind, masking.keep, masking.score))

    def cells_of(self, scenario: Scenario, seed: int, methods: tuple[str, ...]) -> list[Cell]:
        """Cells of one trained model, by the tag ``study``.

        Methods with their own masks, SalUn's settings under each kind of mask, and, where strengths are asked for,
        all of these with fewer and with more steps.
        """
        masking = self.masking
        found: list[Cell] = []

        def add(variant: Variant, settings: dict[str, Any], study: str, **tags: Any) -> None:
            again = self.repetition.unlearning_seeds[: 1 if variant.method in FREE else None]
            tags = {"study": study, **tags}
            found.extend(
                Cell(seed, scenario, variant.method, variant.mask, settings, u, tags=tags) for u in again
            )

        own = {Variant(m, default_mask(m, masking.keep, masking.score)): self.steps_of.of(m) for m in methods}
        masked = {self.mask_variant(kind): self.settings_under(kind) for kind in self.masks}
        for study, variants in (("methods", own), ("masks", masked)):
            for variant, settings in variants.items():
                add(variant, settings, study)
        if self.steps_of.strengths:
            compared = {v: s for v, s in masked.items() if v.mask.kind != "none"} | own
            for variant, settings in compared.items():
                if variant.method not in FREE:
                    for strength, at in self.steps_of.at_strengths(settings).items():
                        add(variant, at, "frontier", strength=strength)
        return found
