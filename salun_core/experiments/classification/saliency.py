"""The saliency experiment, which asks whether it matters which weights the mask keeps."""

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import pandas as pd
from pydantic import field_validator

from salun_core.errors import UserError, one_of
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.mask_agreement import mask_agreement
from salun_core.experiments.classification.method_comparison import Results
from salun_core.experiments.classification.params import ClassifierParams, check_splits, tunable
from salun_core.experiments.runs.cells import (
    MASKS,
    Cell,
    MaskSpec,
    Variant,
)
from salun_core.experiments.runs.grid import Chosen, Grid
from salun_core.experiments.runs.params import parameter
from salun_core.experiments.runs.table import Run

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

    methods: tuple[str, ...] = parameter(
        ("rl", "ft", "ga", "iu", "l1_sparse"),
        "methods run under each mask; rl with the salient mask is SalUn",
    )
    masks: tuple[str, ...] = parameter(("none", "salient", "random", "least_salient"), ", ".join(MASKS))
    densities: tuple[float, ...] = parameter(
        (0.1, 0.3, 0.5, 0.7, 0.9), "shares of weights kept, for the curves"
    )
    protocols: tuple[str, ...] = parameter(
        tuple(PROTOCOLS), "what releases of the official code did to the mask: " + ", ".join(PROTOCOLS)
    )

    @field_validator("forgetting")
    @classmethod
    def _one_scenario(cls, value: Any) -> Any:
        if len(value.scenario) > 1:
            raise UserError(
                f"saliency takes one scenario, got {', '.join(value.scenario)}: run it once for each"
            )
        return value

    @field_validator("methods", "masks", "protocols")
    @classmethod
    def _known_names(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        if info.field_name == "methods":
            return tunable(value)
        for name in value:
            one_of(name, {"masks": MASKS, "protocols": PROTOCOLS}[info.field_name], info.field_name[:-1])
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


DENSITIES, RELEASES = "over densities", "releases"


def grid(params: MaskParams, lab: ClassifierLab) -> Grid:
    """The cells of the experiment: the same tuning budget for each method under each mask."""
    scenario, seeds, forgetting = params.scenarios()[0], params.repetition.seeds, params.forgetting
    check_splits(lab, [scenario], seeds)
    specs = {
        kind: MaskSpec() if kind == "none" else MaskSpec(kind, forgetting.keep, forgetting.score)
        for kind in params.masks
    }
    variants = [Variant(m, spec) for m, spec in product(params.methods, specs.values())]

    def studies(chosen: Chosen) -> dict[str, list[Cell]]:
        settings = {v: chosen[scenario, v] for v in variants}
        # One setting for all densities and protocols, the one chosen for SalUn: only the mask changes.
        salun = settings.get(Variant("rl", specs["salient"]), {}) if "salient" in specs else {}
        compared = [
            cell
            for seed in seeds
            for cell in params.cells(seed, scenario, settings, ends=("retrain", "original"), study="masks")
        ]
        swept = [
            Cell(
                seed,
                scenario,
                "rl",
                MaskSpec(kind, keep, forgetting.score),
                salun,
                u,
                tags={"study": "densities"},
            )
            for seed in seeds
            for kind, keep in product(("salient", "random", "least_salient"), params.densities)
            for u in params.repetition.unlearning_seeds
        ]
        past = [
            Cell(
                seed,
                scenario,
                "rl",
                MaskSpec(keep=forgetting.keep, **PROTOCOLS[name][0]),
                {**salun, **PROTOCOLS[name][1]},
                u,
                tags={"study": "releases", "protocol": name},
            )
            for seed in seeds
            for name in params.protocols
            for u in params.repetition.unlearning_seeds
        ]
        return {"": compared, DENSITIES: swept} | ({RELEASES: past} if past else {})

    return Grid(lab, params, studies, params.tuning, variants, [scenario])


def run(params: MaskParams, *, lab: ClassifierLab | None = None) -> MaskResults:
    """Run or resume the experiment."""
    lab = lab or params.lab()
    tuning, tables = grid(params, lab).execute(Run(lab, params))
    compared = tables[""]
    agreement = mask_agreement(
        lab, params.repetition.seeds, params.scenarios()[0], keep=params.forgetting.keep
    )
    return MaskResults(
        compared,
        tuning,
        lab,
        params,
        tables[DENSITIES],
        tables.get(RELEASES, compared.iloc[:0]),
        agreement,
    )
