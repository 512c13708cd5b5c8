"""The classification experiment: methods against Retrain on one data set (the paper's Table 1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from pydantic import field_validator

from salun_core.errors import UserError
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.params import ClassifierParams, check_splits
from salun_core.experiments.runs.cells import Cell
from salun_core.experiments.runs.grid import Chosen, Grid
from salun_core.experiments.runs.params import parameter
from salun_core.experiments.runs.table import Run
from salun_core.experiments.runs.tuning import FREE
from salun_core.methods import fitting, methods_for

PAPER = ("original", "retrain", "ft", "rl", "ga", "iu", "be", "bs", "l1_sparse", "salun", "salun_soft")
"""The methods of the paper's Table 1, the original model and SalUn-soft."""


class ClassificationParams(ClassifierParams):
    """Parameters of the classification experiment."""

    experiment: ClassVar[str] = "classification"
    without_retrain: ClassVar[bool] = True

    methods: tuple[str, ...] = parameter(PAPER, "keys of METHODS; Retrain always runs")

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            fitting(name, "classification")
        if not value:
            raise UserError("methods is empty: choose from " + ", ".join(methods_for("classification")))
        return value


@dataclass(frozen=True)
class Results:
    """Results of an experiment.

    Parameters
    ----------
    cells : DataFrame
        One row per reported cell.
    tuning : DataFrame
        One row per candidate and tuning seed, see ``runs.tuning``; empty without tuning.
    lab : ClassifierLab
        For a closer look: tasks, masks, stored outputs.
    params : Params
        The parameters, complete.
    """

    cells: pd.DataFrame
    tuning: pd.DataFrame
    lab: ClassifierLab
    params: Any


def grid(params: ClassificationParams, lab: ClassifierLab) -> Grid:
    """The cells of the experiment.

    For each scenario: settings of every method are chosen on the tuning seeds, then Retrain, its
    replicas (for the noise floor) and every method run on each seed.
    """
    scenarios, seeds = params.scenarios(), params.repetition.seeds
    check_splits(lab, scenarios, seeds)
    compared = ("retrain",) if params.training.retrains else ()
    names = (*compared, *(m for m in params.methods if m != "retrain"))
    ends = tuple(m for m in names if m in FREE)
    variants = [params.variant(name) for name in names]

    def studies(chosen: Chosen) -> dict[str, list[Cell]]:
        return {
            "": [
                cell
                for scenario in scenarios
                for seed in seeds
                for cell in params.cells(
                    seed, scenario, {v: chosen[scenario, v] for v in variants}, ends=ends, study="methods"
                )
            ]
        }

    return Grid(lab, params, studies, params.tuning, variants, scenarios, retrain=params.training.retrains)


def run(params: ClassificationParams, *, lab: ClassifierLab | None = None) -> Results:
    """Run or resume the experiment, in the lab given or in the one the parameters describe.

    Raises
    ------
    UserError
        For anything the user can put right.
    """
    lab = lab or params.lab()
    tuning, tables = grid(params, lab).execute(Run(lab, params))
    return Results(tables[""], tuning, lab, params)
