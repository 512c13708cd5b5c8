"""Parameters that experiments on image classifiers share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import field_validator, model_validator

from salun_core.data.images import ImageData
from salun_core.data.splits import read_ids
from salun_core.errors import UserError
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.problem import Problem
from salun_core.experiments.runs.cells import Cell, Scenario, Variant, default_mask, retrain_replicas
from salun_core.experiments.runs.data_choice import DataChoice
from salun_core.experiments.runs.machine import Machine
from salun_core.experiments.runs.params import LONG, Group, PresetParams, parameter, redeclared
from salun_core.experiments.runs.repetition import RetrainRepetition
from salun_core.experiments.runs.trained import HERE, TRAIN, Trained
from salun_core.experiments.runs.tuning import FREE, Tuning
from salun_core.methods import fitting
from salun_core.models import MODELS, check_arch, takes_width
from salun_core.models.classification.checkpoints import Checkpoint
from salun_core.saliency import SCORES
from salun_core.tasks import RECIPES
from salun_core.tasks.classification import RELABEL
from salun_core.tasks.classification_training import Recipe


class Training(Trained):
    """The network and its training from scratch."""

    arch: str = parameter("resnet18", ", ".join(MODELS) + ", torchvision:NAME, module:NAME")
    width: int | None = parameter(None, "channels of the first stage of the network", ge=1)
    recipe: str = parameter("digits", "training from scratch: " + ", ".join(RECIPES), needs=HERE)
    epochs: int | None = parameter(None, "instead of the recipe's", needs=HERE, ge=1, le=LONG)

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"recipe": (RECIPES, "recipe")}

    @field_validator("arch")
    @classmethod
    def _arch(cls, value: str) -> str:
        check_arch(value)
        return value

    @property
    def own_width(self) -> int | None:
        """Channels of the first stage; None where the network has no such setting."""
        return self.width if takes_width(self.arch) else None

    @property
    def complete_recipe(self) -> Recipe:
        """The recipe with the number of epochs asked for."""
        recipe = RECIPES[self.recipe]
        return recipe if self.epochs is None else replace(recipe, epochs=self.epochs)


class Forgetting(Group):
    """What is forgotten, and what of the network may change."""

    scenario: tuple[Literal["random", "class", "indices"], ...] = parameter(
        ("random",), "random, class, indices; one or several"
    )
    forget_fraction: float = parameter(0.1, "random: share of the training images, between 0 and 1")
    forget_class: int | str | None = parameter(None, "class: number or name")
    forget_indices: Path | None = parameter(None, "indices: a file with one sample id a line")
    batch_size: int = parameter(256, "images in a batch of the forgetting methods", ge=2)
    keep: float = parameter(0.5, "share of the weights that SalUn may change, (0, 1]")
    score: str = parameter("abs_sum", "definition of saliency, a key of SCORES")
    relabel: str = parameter(
        "wrong", "random labels over the wrong classes (wrong, as in the paper) or over all"
    )

    choices: ClassVar[dict[str, tuple[Any, str]]] = {
        "score": (SCORES, "saliency score"),
        "relabel": (RELABEL, "choice of random labels"),
    }

    @field_validator("forget_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 < value < 1:
            raise UserError(
                f"forget_fraction must lie between 0 and 1 (both excluded), got {value:g}: 0.1 is 10%"
            )
        return value

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise UserError(
                f"keep must lie in (0, 1], got {value:g}: it is the share of weights that may change"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.scenario:
            raise UserError("scenario is empty: choose random, class or indices")
        if "class" in self.scenario and self.forget_class is None:
            raise UserError("scenario 'class' needs forget_class: give a class number or name")
        if "indices" in self.scenario and self.forget_indices is None:
            raise UserError("scenario 'indices' needs forget_indices: give a file with one sample id a line")
        return self

    def scenarios(self) -> list[Scenario]:
        """The scenarios asked for."""
        made: dict[str, Callable[[], Scenario]] = {
            "random": lambda: Scenario("random", fraction=self.forget_fraction),
            "class": lambda: Scenario("class", target=self.forget_class),
            "indices": lambda: Scenario("indices", ids=tuple(read_ids(Path(str(self.forget_indices))))),
        }
        return [made[kind]() for kind in self.scenario]


class ClassifierRepetition(RetrainRepetition):
    """Several seeds, and one more Retrain for each, unless the user says otherwise."""

    seeds: tuple[int, ...] = redeclared(RetrainRepetition, "seeds", (0, 1, 2))
    noise_floor: int = redeclared(RetrainRepetition, "noise_floor", 1)


class ClassifierParams(PresetParams):
    """What every experiment on image classifiers needs to know."""

    without_retrain: ClassVar[bool] = False
    """Whether the experiment has something to show without a retrained model, or with one that is given."""

    data: DataChoice = DataChoice()
    training: Training = Training()
    forgetting: Forgetting = Forgetting()
    tuning: Tuning = Tuning()
    repetition: ClassifierRepetition = ClassifierRepetition()
    kept_outputs: int = parameter(
        0,
        "images of each role whose outputs are kept, in half precision; 0 for all",
        ge=0,
        no_effect="a cell of which more or less is kept is computed again",
    )
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _methods_of_settings(self) -> Self:
        for part in ("settings", "search"):
            for method in getattr(self.tuning, part):
                fitting(method, "classification", f"method in {part}")
        return self

    @model_validator(mode="after")
    def _seeds_apart(self) -> Self:
        both = set(self.tuning.tuning_seed) & set(self.repetition.seeds)
        if self.tuning.tune and both:
            raise UserError(
                f"tuning_seed {min(both)} is also in seeds: "
                "settings must be chosen on a seed that is not reported"
            )
        return self

    @model_validator(mode="after")
    def _of_checkpoints(self) -> Self:
        training, repetition = self.training, self.repetition
        if training.pretrained is None:
            return self
        if self.tuning.tune:
            raise UserError(
                "pretrained needs tune: false: that model has seen every training image, so none is left to choose "
                "settings by; give them in settings"
            )
        if not (training.retrains_itself or self.without_retrain):
            raise UserError(f"{self.experiment} compares with retrained models: give retrained: {TRAIN}")
        if "retrained" in training.brought and len(repetition.seeds) * len(self.forgetting.scenario) > 1:
            raise UserError(
                f"retrained {training.retrained} was trained without one forget set: give one scenario and one "
                f"number in seeds, got {list(self.forgetting.scenario)} and {list(repetition.seeds)}"
            )
        return self

    @classmethod
    def check_given(cls, given: dict[str, Any], checked: Any) -> None:
        """Refuse values that the chosen scenario would ignore."""
        for name, scenario in (
            ("forget_fraction", "random"),
            ("forget_class", "class"),
            ("forget_indices", "indices"),
        ):
            if name in given and scenario not in checked.forgetting.scenario:
                raise UserError(
                    f"{name} is given, but scenario is {', '.join(checked.forgetting.scenario)}: "
                    f"add {scenario} to it or leave {name} out"
                )
        source = checked.training.pretrained
        for name in ("arch", "width"):
            if name in given and source is not None and (own := Checkpoint(source).arch) is not None:
                raise UserError(
                    f"{name} has no effect here, as pretrained {source} says itself what network it is ({own}): "
                    f"leave {name} out"
                )
        if "width" in given and not takes_width(checked.training.arch):
            raise UserError(
                f"width is given, but {checked.training.arch} has one width only: leave width out"
            )
        if (
            "search" in given or "settings" not in given
        ):  # settings given alone stand above the preset's bounds
            checked.tuning.refuse_fixed()

    def scenarios(self) -> list[Scenario]:
        """The scenarios asked for."""
        return self.forgetting.scenarios()

    def variant(self, method: str) -> Variant:
        """A method with its default mask."""
        return Variant(method, default_mask(method, self.forgetting.keep, self.forgetting.score))

    def cells(
        self,
        seed: int,
        scenario: Scenario,
        settings: dict[Variant, Any],
        *,
        ends: tuple[str, ...],
        **tags: Any,
    ) -> list[Cell]:
        """One trained model of a scenario: ``ends`` and replicas of Retrain, and every variant with its settings."""
        found = [
            Cell(seed, scenario, end, settings=settings.get(Variant(end), {}), tags=tags) for end in ends
        ]
        for variant, chosen in settings.items():
            if variant.method not in FREE:
                found += [
                    Cell(seed, scenario, variant.method, variant.mask, chosen, u, tags=tags)
                    for u in self.repetition.unlearning_seeds
                ]
        if not self.training.retrains_itself:
            return found  # replicas would have to be trained
        return found + retrain_replicas(seed, scenario, self.repetition.noise_floor, **tags)

    def lab(self, *, data: ImageData | None = None) -> ClassifierLab:
        """Load the data and open the store.

        Parameters
        ----------
        data : ImageData, optional
            Use these images instead of ``dataset`` (from ``salun_core.data.from_datasets``, say).
        """
        device, training = self.machine.ready(), self.training
        store = self.machine.store()
        given: dict[str, Any] = {name: checkpoint(model) for name, model in training.brought.items()}
        problem = Problem(
            self.data.load() if data is None else data,
            training.arch,
            training.own_width,
            training.complete_recipe,
            batch_size=self.forgetting.batch_size,
            relabel=self.forgetting.relabel,
            bf16=training.bf16(device),
            compile=training.compile,
            device=device,
        )
        if given:  # a checkpoint has seen every training image: none is set aside
            problem = replace(problem, validation=0.0, **given)
            problem.check_checkpoints()
        return ClassifierLab(problem, store, compact=self.kept_outputs)


def checkpoint(source: str) -> Checkpoint:
    """A model that others have trained.

    Raises
    ------
    UserError
        If there is none, see `described`, or if its weights are of a kind that the digest of a folder leaves out.
    """
    found = described(source)
    if found.transformer is not None and not any(found.path.glob("*.safetensors")):
        raise UserError(
            f"{source} holds no safetensors: read the model with transformers and write it with save_pretrained"
        )
    return found


def described(source: str) -> Checkpoint:
    """A model that others have trained, whose weights are not looked for.

    Raises
    ------
    UserError
        If there is none, or its folder describes no image classifier.
    """
    found = Checkpoint(source)
    try:
        if found.transformer is not None:
            with torch.device("meta"):  # for its shape alone
                found.build(0)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds
        why = " ".join(str(error).split())[:120]
        raise UserError(
            f"the configuration in {source} describes no image classifier ({type(error).__name__}: {why}): copy the "
            "folder again, or give a file of weights"
        ) from error
    return found


def check_splits(lab: ClassifierLab, scenarios: list[Scenario], seeds: tuple[int, ...]) -> None:
    """Try every split: an impossible one is refused before any training."""
    for scenario in scenarios:
        for seed in seeds:
            lab.split(seed, scenario)


def tunable(names: tuple[str, ...]) -> tuple[str, ...]:
    """Methods that have something to tune; others are refused."""
    for name in names:
        fitting(name, "classification", without=FREE)
    return names
