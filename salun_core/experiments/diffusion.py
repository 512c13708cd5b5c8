"""The diffusion experiment: a class is forgotten by a class-conditional model (Figures 3 and 4 of the paper)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator

from salun_core.data import DATASETS, load_dataset
from salun_core.data.images import ImageData
from salun_core.data.splits import class_number
from salun_core.errors import UserError, one_of
from salun_core.experiments.cells import MASKS, Cell, MaskSpec, Scenario, check_ran, progress_bar, run_cells
from salun_core.experiments.classification import default_mask, find_device, numeric, retrain_replicas
from salun_core.experiments.diffusion_lab import DiffusionLab, Forgetting, Unet
from salun_core.experiments.generation_lab import Judge, Sampling
from salun_core.experiments.params import Params
from salun_core.experiments.store import Store
from salun_core.experiments.summary import write_table
from salun_core.experiments.tuning import Variant
from salun_core.methods import METHODS, methods_for
from salun_core.metrics.frechet import inception_file
from salun_core.models import check_arch, takes_width
from salun_core.models.unet import SCHEDULES
from salun_core.paths import output_folder
from salun_core.saliency import SCORES, check_keep
from salun_core.tasks.diffusion import RELABEL
from salun_core.tasks.diffusion_training import DECLINES, DiffusionRecipe
from salun_core.tasks.noise_prediction import TARGETS
from salun_core.tasks.training import RECIPES


class DiffusionParams(Params):
    """Parameters of the diffusion experiment."""

    experiment: ClassVar[str] = "diffusion"

    preset: str = "quick"
    dataset: str = "digits"
    data_dir: Path | None = None
    image_size: int | None = Field(None, ge=4, le=256)
    forget_class: tuple[int | str, ...] = (0,)
    methods: tuple[str, ...] = ("original", "ga", "rl", "ft", "l1_sparse", "esd", "salun", "salun_soft")
    masks: tuple[str, ...] = ("none", "salient", "random", "least_salient")
    keep: float = 0.5
    score: str = "abs_sum"
    mask_guidance: float = Field(0.0, ge=0)
    mask_draws: int = Field(1, ge=1)
    # The network and its training from scratch.
    widths: tuple[int, ...] = (128, 256, 256, 256)
    layers: int = Field(2, ge=1)
    attention: tuple[int, ...] = (16,)
    head: int | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    schedule: str = "linear"
    diffusion_steps: int = Field(1000, ge=2)
    steps: int = Field(800_000, ge=1)
    lr: float = 2e-4
    decline: str = "constant"
    warmup: int = 0
    ema: float = 0.0
    clip: float = 1.0
    drop: float = 0.1
    antithetic: bool = True
    pretrained: Path | None = None
    minutes: float | None = Field(None, gt=0)
    # Forgetting.
    batch_size: int = Field(128, ge=2)
    forget_steps: int = Field(1000, ge=1)
    forget_lr: float = 1e-4
    alpha: float = Field(3.072, ge=0)
    relabel: str = "next"
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
    inception_weights: Path | None = None
    judge: str = "resnet34"
    judge_width: int | None = Field(None, ge=1)
    judge_recipe: str = "digits"
    judge_epochs: int | None = Field(None, ge=1)
    seeds: tuple[int, ...] = (0,)
    noise_floor: int = Field(0, ge=0)
    device: str = "auto"
    threads: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    recorded: bool = False
    out_dir: Path | None = None

    names: ClassVar[dict[str, tuple[Any, str]]] = {
        "dataset": (DATASETS, "data set"),
        "score": (SCORES, "saliency score"),
        "schedule": (SCHEDULES, "noise schedule"),
        "decline": (DECLINES, "decline of the learning rate"),
        "relabel": (RELABEL, "choice of wrong classes"),
        "target": (TARGETS, "target of the forgetting loss"),
        "judge_recipe": (RECIPES, "recipe"),
    }

    @field_validator("forget_class", "methods", "masks", "widths", "attention", "seeds", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
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
        known = {"methods": methods_for("diffusion"), "masks": MASKS}[info.field_name]
        for name in value:
            one_of(name, known, info.field_name.removesuffix("s"))
        return value

    @field_validator("forget_class", "widths", "seeds")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...], info: Any) -> tuple[Any, ...]:
        if not value:
            raise UserError(f"{info.field_name} is empty: give at least one")
        if info.field_name != "widths" and len(set(value)) < len(value):
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
        check_arch(value)
        return value

    @field_validator("settings")
    @classmethod
    def _settings(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for method, settings in value.items():
            known = METHODS[one_of(method, methods_for("diffusion"), "method in settings")].defaults
            for name in settings:
                one_of(name, known, f"setting of {method}")
        return {m: {k: numeric(v) for k, v in settings.items()} for m, settings in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "DiffusionParams":
        self.training()  # refuses impossible values
        if self.sample_steps > self.diffusion_steps:
            raise UserError(
                f"sample_steps {self.sample_steps} is more than diffusion_steps {self.diffusion_steps}"
            )
        if self.dataset == "imagefolder" and self.data_dir is None:
            raise UserError(
                "dataset imagefolder needs data_dir: a folder with train/<class>/ and test/<class>/"
            )
        inception_file(self.inception_weights)
        return self

    def training(self) -> DiffusionRecipe:
        """How models are trained from scratch."""
        own = {f.name: getattr(self, f.name) for f in fields(DiffusionRecipe)}
        return DiffusionRecipe(**own)

    def settings_of(self, method: str) -> dict[str, Any]:
        """The settings a method runs with."""
        known = METHODS[method].defaults
        common: dict[str, Any] = {"steps": self.forget_steps, "lr": self.forget_lr}
        if "order" in known:  # a forget and a retain batch in each step, and the weight between them
            common |= {"order": "joint", "alpha": self.alpha}
        return {k: v for k, v in common.items() if k in known} | self.settings.get(method, {})

    def lab(self, *, data: ImageData | None = None) -> DiffusionLab:
        """Load the data and open the store.

        Parameters
        ----------
        data : ImageData, optional
            Use these images instead of ``dataset``.
        """
        device = find_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
        store = Store(output_folder(self.out_dir) / "cells", trusted=self.recorded)
        if data is None:
            data = load_dataset(self.dataset, self.data_dir, size=self.image_size)
        recipe = RECIPES[self.judge_recipe]
        if self.judge_epochs is not None:
            recipe = replace(recipe, epochs=self.judge_epochs)
        unet = Unet(**{f.name: getattr(self, f.name) for f in fields(Unet)})
        forgetting = Forgetting(**{f.name: getattr(self, f.name) for f in fields(Forgetting)})
        return DiffusionLab(
            data,
            store,
            unet,
            self.training(),
            Judge(self.judge, self.judge_width if takes_width(self.judge) else None, recipe),
            forgetting,
            Sampling(
                self.samples, self.guidance, self.sample_steps, self.eta, self.sample_batch, self.reference
            ),
            pretrained=self.pretrained,
            inception=self.inception_weights,
            bf16=self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda"),
            compile=self.compile,
            deadline=time.monotonic() + 60 * self.minutes if self.minutes is not None else None,
            device=device,
            experiment=self.experiment,
            source=self.preset,
        )


@dataclass(frozen=True)
class DiffusionResults:
    """What the experiment leaves in hand.

    Parameters
    ----------
    cells : DataFrame
        Retrain and every method with its own mask, one row per forgotten class and seed.
    masks : DataFrame
        SalUn's settings under each kind of mask, at equal density.
    lab : DiffusionLab
        For a closer look: models, samples, trajectories.
    params : DiffusionParams
        The parameters, complete.
    """

    cells: pd.DataFrame
    masks: pd.DataFrame
    lab: DiffusionLab
    params: DiffusionParams


def run(params: DiffusionParams, *, lab: DiffusionLab | None = None) -> DiffusionResults:
    """Run or resume the experiment, in the lab given or in the one the parameters describe.

    Raises
    ------
    UserError
        For anything the user can put right, before anything is trained.
    """
    lab = lab or params.lab()
    lab.build(0)  # refuses images that the network cannot take
    scenarios = [Scenario("class", target=class_number(lab.data, c)) for c in params.forget_class]
    names = ["retrain", *(m for m in params.methods if m != "retrain")]
    variants = [Variant(m, default_mask(m, params.keep, params.score)) for m in names]
    masked = [mask_variant(kind, params) for kind in params.masks]
    each = len(variants) + params.noise_floor + len(masked)
    cells, masks = [], []
    with progress_bar(len(scenarios) * len(params.seeds) * each, lab.experiment) as progress:
        for scenario in scenarios:
            for seed in params.seeds:
                wanted = [
                    Cell(seed, scenario, v.method, v.mask, params.settings_of(v.method)) for v in variants
                ]
                wanted += retrain_replicas(seed, scenario, params.noise_floor)
                cells.append(run_cells(lab, wanted, progress=progress).assign(part="methods"))
                settings: Mapping[str, Any] = params.settings_of("salun")
                wanted = [Cell(seed, scenario, v.method, v.mask, settings) for v in masked]
                masks.append(run_cells(lab, wanted, progress=progress).assign(part="masks"))
    frame = pd.concat(cells, ignore_index=True)
    check_ran(frame)
    every = pd.concat([*cells, *masks], ignore_index=True)
    write_table(every, output_folder(params.out_dir), params.experiment, params.shown())
    return DiffusionResults(frame, pd.concat(masks, ignore_index=True), lab, params)


def mask_variant(kind: str, params: DiffusionParams) -> Variant:
    """Random labelling under a kind of mask; under the salient one it is SalUn."""
    if kind == "none":
        return Variant("rl")
    return Variant("salun" if kind == "salient" else "rl", MaskSpec(kind, params.keep, params.score))
