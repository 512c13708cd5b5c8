"""The stability experiment: how far each method drifts from Retrain when the task or its settings change.

The paper's instability figure: the gap in UA over the share to forget, and the spread of UA over a
method's settings.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import pandas as pd
from pydantic import Field, field_validator

from salun_core.errors import UserError, one_of
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import (
    ClassifierParams,
    Results,
    finished,
)
from salun_core.experiments.runs.cells import (
    Cell,
    MaskSpec,
    Scenario,
    default_mask,
    progress_bar,
    retrain_replicas,
    run_cells,
)
from salun_core.experiments.runs.tuning import FREE, Variant, tune, with_distance
from salun_core.methods import METHODS


class StabilityParams(ClassifierParams):
    """Parameters of the stability experiment."""

    experiment: ClassVar[str] = "stability"
    fixed: ClassVar[tuple[str, ...]] = ("scenario", "forget_class", "forget_indices")

    methods: tuple[str, ...] = ("ft", "rl", "ga", "iu", "l1_sparse", "salun")
    fractions: tuple[float, ...] = (0.1, 0.5)
    spread_candidates: int = Field(6, ge=2)
    surface_lrs: tuple[float, ...] = ()
    surface_epochs: tuple[int, ...] = ()
    surface_keeps: tuple[float, ...] = ()
    noise_floor: int = Field(1, ge=0)

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            one_of(name, [m for m in METHODS if m not in FREE], "method")
        return value

    @field_validator("scenario")
    @classmethod
    def _random_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value != ("random",):
            raise UserError(f"stability forgets random shares, not {', '.join(value)}: leave scenario out")
        return value

    @field_validator("fractions")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [f for f in value if not 0 < f < 1]:
            raise UserError(
                f"fractions must lie between 0 and 1 (both excluded), got {wrong[0]:g}: 0.1 is 10%"
            )
        return value

    @field_validator("surface_keeps")
    @classmethod
    def _keeps(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [k for k in value if not 0 < k <= 1]:
            raise UserError(f"surface_keeps must lie in (0, 1], got {wrong[0]:g}")
        return value


@dataclass(frozen=True)
class StabilityResults(Results):
    """``cells`` by forget share; ``spread`` over settings; ``surface`` of SalUn over lr, epochs and keep."""

    spread: pd.DataFrame
    surface: pd.DataFrame


def run(params: StabilityParams, *, lab: ClassifierLab | None = None) -> StabilityResults:
    """Run or resume the experiment.

    Settings are chosen once, at ``forget_fraction`` on the tuning seed, and kept for every share: what
    is asked is how a method fares when the task changes and its settings do not.
    """
    lab = lab or params.lab()
    base = Scenario("random", fraction=params.forget_fraction)
    shares = [Scenario("random", fraction=f) for f in params.fractions]
    for scenario, seed in product([base, *shares], params.seeds):
        lab.split(seed, scenario)
    budget = params.budget()
    variants = [Variant(m, default_mask(m, params.keep, params.score)) for m in params.methods]
    spread_variants = [*variants]
    if "iu" in params.methods:
        spread_variants.append(Variant("iu", MaskSpec("salient", params.keep, params.score)))
    first = params.seeds[0]
    spread_cells = [
        replace(cell, reported=True, tags={**cell.tags, "part": "spread"})
        for variant in spread_variants
        for cell in replace(budget, candidates=params.spread_candidates).cells(variant, base, seed=first)
    ]
    surface_cells = [
        Cell(
            params.tuning_seed,
            base,
            "salun",
            MaskSpec("salient", keep, params.score),
            {**params.settings.get("salun", {}), "lr": lr, "epochs": epochs},
            reported=False,
            tags={"part": "surface"},
        )
        for keep, epochs, lr in product(params.surface_keeps, params.surface_epochs, params.surface_lrs)
    ]
    each = len(variants) + 1 + params.noise_floor
    total = budget.count(variants, base) + len(params.seeds) * len(shares) * each + len(spread_cells)
    total += 1 + 2 * bool(surface_cells) + len(surface_cells)
    with progress_bar(total, lab.experiment) as progress:
        tuning, chosen = tune(lab, budget, variants, base, progress=progress)
        cells = []
        for seed, scenario in product(params.seeds, shares):
            wanted = [Cell(seed, scenario, "retrain")]
            wanted += [Cell(seed, scenario, v.method, v.mask, chosen[v]) for v in variants]
            wanted += retrain_replicas(seed, scenario, params.noise_floor)
            cells.append(run_cells(lab, wanted, progress=progress).assign(part="shares"))
        reference = Cell(first, base, "retrain", tags={"part": "spread"})
        spread = run_cells(lab, [reference, *spread_cells], progress=progress)
        surface = pd.DataFrame()
        if surface_cells:
            ends = [
                Cell(params.tuning_seed, base, m, reported=False, tags={"part": "surface"})
                for m in ("retrain", "original")
            ]
            surface = run_cells(lab, [*ends, *surface_cells], progress=progress)
            surface = with_distance(surface, surface.iloc[0]).iloc[len(ends) :]
    done = finished(lab, params, [*cells, spread], [tuning, surface])
    shares_only = done.cells[done.cells["part"] == "shares"].reset_index(drop=True)
    return StabilityResults(shares_only, tuning, lab, params, spread, surface)
