"""The stability experiment: how far each method drifts from Retrain when the task or its settings change.

The paper's instability figure: the gap in UA over the share to forget, and the spread of UA over a
method's settings.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import pandas as pd
from pydantic import PositiveFloat, PositiveInt, field_validator

from salun_core.errors import UserError
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import Results
from salun_core.experiments.classification.params import ClassifierParams, check_splits, tunable
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario, Variant
from salun_core.experiments.runs.grid import Chosen, Grid
from salun_core.experiments.runs.params import REPEATED, parameter
from salun_core.experiments.runs.table import Run
from salun_core.experiments.runs.tuning import with_distance


class StabilityParams(ClassifierParams):
    """Parameters of the stability experiment."""

    experiment: ClassVar[str] = "stability"
    fixed: ClassVar[tuple[str, ...]] = ("scenario", "forget_class", "forget_indices")
    needless: ClassVar[tuple[str, ...]] = ("search", "tuning_seed")  # the spread is shown without tuning too

    methods: tuple[str, ...] = parameter(
        ("ft", "rl", "ga", "iu", "l1_sparse", "salun"), "keys of METHODS; Retrain always runs"
    )
    fractions: tuple[float, ...] = parameter((0.1, 0.5), "shares to forget, between 0 and 1")
    spread_candidates: int = parameter(6, "settings of each method whose spread is shown", ge=2, le=REPEATED)
    surface_lrs: tuple[PositiveFloat, ...] = parameter(
        (), "learning rates of the surface of SalUn's settings"
    )
    surface_epochs: tuple[PositiveInt, ...] = parameter((), "epochs of that surface")
    surface_keeps: tuple[float, ...] = parameter((), "shares of weights of that surface, in (0, 1]")

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tunable(value)

    @field_validator("forgetting")
    @classmethod
    def _random_only(cls, value: object) -> object:
        scenario = getattr(value, "scenario", ())
        if scenario != ("random",):
            raise UserError(f"stability forgets random shares, not {', '.join(scenario)}: leave scenario out")
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


SHARES, SPREAD, SURFACE = "over shares", "over settings", "surface"
ENDS = ("retrain", "original")


def grid(params: StabilityParams, lab: ClassifierLab) -> Grid:
    """The cells of the experiment.

    Settings are chosen once, at ``forget_fraction`` on the tuning seeds, and kept for every share: what
    is asked is how a method fares when the task changes and its settings do not.
    """
    seeds, forgetting, tuning_of = params.repetition.seeds, params.forgetting, params.tuning
    base = Scenario("random", fraction=forgetting.forget_fraction)
    shares = [Scenario("random", fraction=f) for f in params.fractions]
    check_splits(lab, [base, *shares], seeds)
    variants = [params.variant(name) for name in params.methods]

    def studies(chosen: Chosen) -> dict[str, list[Cell]]:
        settings = {v: chosen[base, v] for v in variants}
        cells = {
            SHARES: [
                cell
                for seed, scenario in product(seeds, shares)
                for cell in params.cells(seed, scenario, settings, ends=ENDS, study="shares")
            ]
        }
        spread_variants = [*variants]
        if "iu" in params.methods:
            spread_variants.append(Variant("iu", MaskSpec("salient", forgetting.keep, forgetting.score)))
        cells[SPREAD] = [Cell(seeds[0], base, "retrain", tags={"study": "settings"})]
        cells[SPREAD] += [
            Cell(seeds[0], base, v.method, v.mask, point, tags={"study": "settings", "candidate": i})
            for v in spread_variants
            for i, point in enumerate(tuning_of.points(v.method, params.spread_candidates))
        ]
        if params.surface_keeps and params.surface_epochs and params.surface_lrs:
            own, seed = tuning_of.settings.get("salun", {}), tuning_of.tuning_seed[0]
            tags = {"study": "surface"}
            cells[SURFACE] = [Cell(seed, base, m, reported=False, tags=tags) for m in ENDS]
            cells[SURFACE] += [
                Cell(
                    seed,
                    base,
                    "salun",
                    MaskSpec("salient", keep, forgetting.score),
                    {**own, "lr": lr, "epochs": epochs},
                    reported=False,
                    tags=tags,
                )
                for keep, epochs, lr in product(
                    params.surface_keeps, params.surface_epochs, params.surface_lrs
                )
            ]
        return cells

    return Grid(lab, params, studies, tuning_of, variants, [base])


def run(params: StabilityParams, *, lab: ClassifierLab | None = None) -> StabilityResults:
    """Run or resume the experiment."""
    lab = lab or params.lab()
    tuning, tables = grid(params, lab).execute(Run(lab, params))
    surface = pd.DataFrame()
    if SURFACE in tables:
        surface = with_distance(tables[SURFACE]).iloc[len(ENDS) :]
    return StabilityResults(tables[SHARES], tuning, lab, params, tables[SPREAD], surface)
