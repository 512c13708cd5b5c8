"""The diffusion experiment: a class is forgotten by a class-conditional model (Figures 3 and 4 of the paper)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import Field, field_validator, model_validator

from salun_core.data import load_dataset
from salun_core.data.images import ImageData
from salun_core.data.splits import class_number
from salun_core.errors import UserError, one_of
from salun_core.experiments.diffusion.lab import DiffusionLab, Forgetting, Unet
from salun_core.experiments.generation.params import GenerationParams
from salun_core.experiments.runs.cells import (
    Cell,
    Scenario,
    check_ran,
    default_mask,
    progress_bar,
    retrain_replicas,
    run_cells,
)
from salun_core.experiments.runs.results_file import write_table
from salun_core.experiments.runs.tuning import Variant
from salun_core.models.diffusion.unet import SCHEDULES
from salun_core.paths import output_folder
from salun_core.tasks.diffusion import RELABEL
from salun_core.tasks.diffusion_training import DECLINES, DiffusionRecipe


class DiffusionParams(GenerationParams):
    """Parameters of the diffusion experiment."""

    experiment: ClassVar[str] = "diffusion"
    kind: ClassVar[str] = "diffusion"

    image_size: int | None = Field(None, ge=4, le=256)
    methods: tuple[str, ...] = ("original", "ga", "rl", "ft", "l1_sparse", "esd", "salun", "salun_soft")
    alpha: float = Field(3.072, ge=0)
    relabel: str = "next"
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
    pretrained: Path | None = None
    minutes: float | None = Field(None, gt=0)
    noise_floor: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False

    names: ClassVar[dict[str, tuple[Any, str]]] = {
        **GenerationParams.names,
        "schedule": (SCHEDULES, "noise schedule"),
        "decline": (DECLINES, "decline of the learning rate"),
        "relabel": (RELABEL, "choice of wrong classes"),
    }

    @field_validator("schedule", "decline", "relabel")
    @classmethod
    def _known_too(cls, value: str, info: Any) -> str:
        return one_of(value, *cls.names[info.field_name])

    @field_validator("widths")
    @classmethod
    def _widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise UserError("widths is empty: give at least one")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "DiffusionParams":
        self.training()  # refuses impossible values
        if self.sample_steps > self.diffusion_steps:
            raise UserError(
                f"sample_steps {self.sample_steps} is more than diffusion_steps {self.diffusion_steps}"
            )
        return self

    def training(self) -> DiffusionRecipe:
        """How models are trained from scratch."""
        own = {f.name: getattr(self, f.name) for f in fields(DiffusionRecipe)}
        return DiffusionRecipe(**own)

    def lab(self, *, data: ImageData | None = None) -> DiffusionLab:
        """Load the data and open the store.

        Parameters
        ----------
        data : ImageData, optional
            Use these images instead of ``dataset``.
        """
        parts = self.shared_parts()
        if data is None:
            data = load_dataset(self.dataset, self.data_dir, size=self.image_size)
        on_gpu = parts["device"].type == "cuda"
        return DiffusionLab(
            data,
            unet=Unet(**{f.name: getattr(self, f.name) for f in fields(Unet)}),
            recipe=self.training(),
            forgetting=Forgetting(**{f.name: getattr(self, f.name) for f in fields(Forgetting)}),
            pretrained=self.pretrained,
            bf16=self.precision == "bf16" or (self.precision == "auto" and on_gpu),
            compile=self.compile,
            deadline=time.monotonic() + 60 * self.minutes if self.minutes is not None else None,
            **parts,
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
    scenarios = [Scenario("class", target=class_number(lab.data, c)) for c in params.forget_class]
    # The model before forgetting, then the one that never saw the class, as in the paper's figures.
    ends = ("original", "retrain")
    names = [m for m in ends if m == "retrain" or m in params.methods]
    names += [m for m in params.methods if m not in ends]
    variants = [Variant(m, default_mask(m, params.keep, params.score)) for m in names]
    masked = [params.mask_variant(kind) for kind in params.masks]
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
