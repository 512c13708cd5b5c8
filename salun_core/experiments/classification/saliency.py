"""The saliency experiment, which asks whether it matters which weights the mask keeps."""

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field, field_validator

from salun_core.errors import UserError, one_of
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.mask_agreement import mask_agreement
from salun_core.experiments.classification.method_comparison import ClassifierParams, Results, finished
from salun_core.experiments.runs.cells import (
    MASKS,
    Cell,
    MaskSpec,
    progress_bar,
    retrain_replicas,
    run_cells,
)
from salun_core.experiments.runs.tuning import FREE, Variant, tune
from salun_core.methods import METHODS

PROTOCOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # What each revision of the released code did to mask and update: mask settings, method settings.
    "paper": ({"kind": "salient"}, {}),
    "released 2023-10": (
        {"kind": "least_salient", "score": "first_release", "augmented": True},
        {"decay_unmarked": True},
    ),
    "released 2023-12-01": (
        {"kind": "least_salient", "score": "drifting", "augmented": True},
        {"decay_unmarked": True},
    ),
    "released 2023-12-17": (
        {"kind": "salient", "score": "batch_means", "augmented": True},
        {"decay_unmarked": True},
    ),
    "released 2026-02": ({"kind": "salient", "score": "batch_means", "augmented": True}, {}),
}


class MaskParams(ClassifierParams):
    """Parameters of the saliency experiment."""

    experiment: ClassVar[str] = "saliency"

    methods: tuple[str, ...] = ("rl", "ft", "ga", "iu", "l1_sparse")
    masks: tuple[str, ...] = ("none", "salient", "random", "least_salient")
    densities: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    noise_floor: int = Field(1, ge=0)

    @field_validator("methods", "masks", "protocols")
    @classmethod
    def _known_names(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        known = {"methods": [m for m in METHODS if m not in FREE], "masks": MASKS, "protocols": PROTOCOLS}
        for name in value:
            one_of(name, known[info.field_name], info.field_name.removesuffix("s"))
        return value

    @field_validator("densities")
    @classmethod
    def _densities(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [k for k in value if not 0 < k <= 1]:
            raise UserError(f"densities must lie in (0, 1], got {wrong[0]:g}")
        return value


@dataclass(frozen=True)
class MaskResults(Results):
    """Results with three more tables.

    Parameters
    ----------
    density : DataFrame
        SalUn's setting under salient, random and least-salient masks over the share kept.
    protocols : DataFrame
        The released code over time.
    agreement : DataFrame
        Overlap of masks, see `mask_agreement`.
    """

    density: pd.DataFrame
    protocols: pd.DataFrame
    agreement: pd.DataFrame


def run(params: MaskParams, *, lab: ClassifierLab | None = None) -> MaskResults:
    """Run or resume the experiment: the same tuning budget for each method under each mask."""
    lab = lab or params.lab()
    (scenario,) = params.checked_scenarios(lab)[:1]
    budget = params.budget()
    specs = {
        kind: MaskSpec() if kind == "none" else MaskSpec(kind, params.keep, params.score)
        for kind in params.masks
    }
    variants = [Variant(m, spec) for m, spec in product(params.methods, specs.values())]
    densities = [
        MaskSpec(kind, keep, params.score)
        for kind, keep in product(("salient", "random", "least_salient"), params.densities)
    ]
    named = {name: PROTOCOLS[name] for name in params.protocols}
    an_seed = len(variants) + 1 + params.noise_floor + len(densities) + len(named)
    total = budget.count(variants, scenario) + len(params.seeds) * an_seed
    cells, density, protocols = [], [], []
    with progress_bar(total, lab.experiment) as progress:
        tuning, chosen = tune(lab, budget, variants, scenario, progress=progress)
        salun = chosen.get(Variant("rl", specs["salient"]), {}) if "salient" in specs else {}
        for seed in params.seeds:
            retrain = Cell(seed, scenario, "retrain")
            wanted = [retrain, *(Cell(seed, scenario, v.method, v.mask, chosen[v]) for v in variants)]
            wanted += retrain_replicas(seed, scenario, params.noise_floor)
            cells.append(run_cells(lab, wanted, progress=progress).assign(part="masks"))
            # One setting for all densities and protocols, the one chosen for SalUn: only the mask changes.
            swept = [Cell(seed, scenario, "rl", spec, salun) for spec in densities]
            density.append(run_cells(lab, swept, progress=progress).assign(part="density"))
            past = [
                Cell(
                    seed,
                    scenario,
                    "rl",
                    MaskSpec(keep=params.keep, **mask),
                    {**salun, **more},
                    tags={"protocol": name},
                )
                for name, (mask, more) in named.items()
            ]
            protocols.append(run_cells(lab, past, progress=progress).assign(part="protocols"))
    done = finished(lab, params, [*cells, *density, *protocols], [tuning])
    return MaskResults(
        pd.concat(cells, ignore_index=True),
        tuning,
        lab,
        params,
        pd.concat(density, ignore_index=True),
        pd.concat(protocols, ignore_index=True) if named else done.cells.iloc[:0],
        mask_agreement(lab, params.seeds, scenario, keep=params.keep),
    )
