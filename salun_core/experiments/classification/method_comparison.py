"""The classification experiment: methods against Retrain on one data set (the paper's Table 1)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator

from salun_core.data import DATASETS, load_dataset
from salun_core.data.images import ImageData
from salun_core.data.splits import read_ids
from salun_core.errors import UserError, one_of
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.runs.cells import (
    Cell,
    Scenario,
    check_ran,
    default_mask,
    progress_bar,
    retrain_replicas,
    run_cells,
)
from salun_core.experiments.runs.params import Params, find_device, numeric
from salun_core.experiments.runs.results_file import write_table
from salun_core.experiments.runs.store import Store
from salun_core.experiments.runs.tuning import Budget, Variant, tune
from salun_core.methods import METHODS, methods_for
from salun_core.methods.search import Range
from salun_core.models import check_arch, takes_width
from salun_core.paths import output_folder
from salun_core.saliency import SCORES
from salun_core.tasks.classification import RELABEL
from salun_core.tasks.classification_training import RECIPES


class ClassifierParams(Params):
    """What every experiment on image classifiers needs to know."""

    preset: str = "quick"
    dataset: str = "digits"
    data_dir: Path | None = None
    image_size: int | None = Field(None, ge=4, le=1024)
    arch: str = "resnet18"
    width: int | None = Field(None, ge=1)
    recipe: str = "digits"
    epochs: int | None = Field(None, ge=1)
    batch_size: int = Field(256, ge=2)
    scenario: tuple[Literal["random", "class", "indices"], ...] = ("random",)
    forget_fraction: float = 0.1
    forget_class: int | str | None = None
    forget_indices: Path | None = None
    keep: float = 0.5
    score: str = "abs_sum"
    relabel: str = "wrong"
    settings: dict[str, dict[str, Any]] = {}
    tune: bool = True
    tuning_seed: int = 1000
    tuning_budget: int = Field(6, ge=1)
    search: dict[str, dict[str, Range]] = {}
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "auto"
    threads: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    recorded: bool = False
    out_dir: Path | None = None

    names: ClassVar[dict[str, tuple[Any, str]]] = {
        "dataset": (DATASETS, "data set"),
        "recipe": (RECIPES, "recipe"),
        "score": (SCORES, "saliency score"),
        "relabel": (RELABEL, "choice of random labels"),
    }

    @field_validator("scenario", "seeds", "methods", mode="before", check_fields=False)
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.strip("[]() ").split(",") if part.strip(" '\"")]
        return [value] if isinstance(value, int) else value

    @field_validator("dataset", "recipe", "score", "relabel")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        return one_of(value, *cls.names[info.field_name])

    @field_validator("arch")
    @classmethod
    def _arch(cls, value: str) -> str:
        check_arch(value)
        return value

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

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise UserError("seeds is empty: give at least one number, for instance seeds: [0, 1, 2]")
        if len(set(value)) < len(value):
            raise UserError(f"seeds {list(value)} repeats a number: every seed counts once")
        return value

    @field_validator("settings", "search")
    @classmethod
    def _methods_and_settings(cls, value: dict[str, dict[str, Any]], info: Any) -> dict[str, dict[str, Any]]:
        for method, settings in value.items():
            known = METHODS[one_of(method, METHODS, f"method in {info.field_name}")].defaults
            for name in settings:
                one_of(name, known, f"setting of {method}")
        if info.field_name == "search":
            return value
        return {m: {k: numeric(v) for k, v in settings.items()} for m, settings in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "ClassifierParams":
        if not self.scenario:
            raise UserError("scenario is empty: choose random, class or indices")
        if "class" in self.scenario and self.forget_class is None:
            raise UserError("scenario 'class' needs forget_class: give a class number or name")
        if "indices" in self.scenario and self.forget_indices is None:
            raise UserError("scenario 'indices' needs forget_indices: give a file with one sample id a line")
        if self.tune and self.tuning_seed in self.seeds:
            raise UserError(
                f"tuning_seed {self.tuning_seed} is also in seeds: "
                "settings must be chosen on a seed that is not reported"
            )
        if self.dataset == "imagefolder" and self.data_dir is None:
            raise UserError(
                "dataset imagefolder needs data_dir: a folder with train/<class>/ and test/<class>/"
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
            if name in given and scenario not in checked.scenario:
                raise UserError(
                    f"{name} is given, but scenario is {', '.join(checked.scenario)}: "
                    f"add {scenario} to it or leave {name} out"
                )
        if "width" in given and not takes_width(checked.arch):
            raise UserError(f"width is given, but {checked.arch} has one width only: leave width out")

    def scenarios(self) -> list[Scenario]:
        """The scenarios asked for."""
        return [self._scenario(kind) for kind in self.scenario]

    def _scenario(self, kind: Literal["random", "class", "indices"]) -> Scenario:
        if kind == "random":
            return Scenario(kind, fraction=self.forget_fraction)
        if kind == "class":
            return Scenario(kind, target=self.forget_class)
        assert self.forget_indices is not None
        return Scenario(kind, ids=tuple(read_ids(self.forget_indices)))

    def checked_scenarios(self, lab: ClassifierLab) -> list[Scenario]:
        """The scenarios, each tried on every seed: an impossible split is refused before any training."""
        scenarios = self.scenarios()
        for scenario in scenarios:
            for seed in self.seeds:
                lab.split(seed, scenario)
        return scenarios

    def budget(self) -> Budget:
        """How settings are chosen."""
        return Budget(self.tuning_seed, self.tuning_budget, self.search, self.settings, self.tune)

    def lab(self, *, data: ImageData | None = None) -> ClassifierLab:
        """Load the data and open the store.

        Parameters
        ----------
        data : ImageData, optional
            Use these images instead of ``dataset`` (from ``salun_core.data.from_datasets``, say).
        """
        device = find_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
        store = Store(output_folder(self.out_dir) / "cells", trusted=self.recorded)
        if data is None:
            data = load_dataset(self.dataset, self.data_dir, size=self.image_size)
        recipe = RECIPES[self.recipe]
        if self.epochs is not None:
            recipe = replace(recipe, epochs=self.epochs)
        return ClassifierLab(
            data,
            store,
            self.arch,
            self.width if takes_width(self.arch) else None,
            recipe,
            batch_size=self.batch_size,
            relabel=self.relabel,
            bf16=self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda"),
            compile=self.compile,
            device=device,
            experiment=self.experiment,
            source=self.preset,
        )


class ClassificationParams(ClassifierParams):
    """Parameters of the classification experiment."""

    experiment: ClassVar[str] = "classification"

    methods: tuple[str, ...] = methods_for("classification")
    noise_floor: int = Field(2, ge=0)

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = methods_for("classification")
        for name in value:
            one_of(name, known, "method")
        if not value:
            raise UserError("methods is empty: choose from " + ", ".join(known))
        return value


@dataclass(frozen=True)
class Results:
    """What an experiment leaves in hand.

    Parameters
    ----------
    cells : DataFrame
        One row per reported cell.
    tuning : DataFrame
        One row per candidate, with ``distance`` and ``chosen``; empty without tuning.
    lab : ClassifierLab
        For a closer look: tasks, masks, stored logits.
    params : Params
        The parameters, complete.
    """

    cells: pd.DataFrame
    tuning: pd.DataFrame
    lab: ClassifierLab
    params: Any


def run(params: ClassificationParams, *, lab: ClassifierLab | None = None) -> Results:
    """Run or resume the experiment, in the lab given or in the one the parameters describe.

    For each scenario: settings of every method are chosen on the tuning seed, then Retrain, its
    replicas (for the noise floor) and every method run on each seed.

    Raises
    ------
    UserError
        For anything the user can put right.
    """
    lab = lab or params.lab()
    scenarios = params.checked_scenarios(lab)
    names = ["retrain", *(m for m in params.methods if m != "retrain")]
    variants = [Variant(m, default_mask(m, params.keep, params.score)) for m in names]
    budget = params.budget()
    total = sum(budget.count(variants, scenario) for scenario in scenarios)
    total += len(scenarios) * len(params.seeds) * (len(names) + params.noise_floor)
    cells, tunings = [], []
    with progress_bar(total, lab.experiment) as progress:
        for scenario in scenarios:
            rows, chosen = tune(lab, budget, variants, scenario, progress=progress)
            tunings.append(rows)
            for seed in params.seeds:
                wanted = [Cell(seed, scenario, v.method, v.mask, chosen[v]) for v in variants]
                wanted += retrain_replicas(seed, scenario, params.noise_floor)
                cells.append(run_cells(lab, wanted, progress=progress))
    return finished(lab, params, cells, tunings)


def finished(
    lab: ClassifierLab, params: ClassifierParams, cells: list[pd.DataFrame], tunings: list[pd.DataFrame]
) -> Results:
    """Put the parts of a run together and write its table."""
    frame = pd.concat(cells, ignore_index=True)
    check_ran(frame)
    tuning = pd.concat(tunings, ignore_index=True)
    every = pd.concat([frame, tuning], ignore_index=True)
    write_table(every, output_folder(params.out_dir), params.experiment, params.shown())
    return Results(frame, tuning, lab, params)
