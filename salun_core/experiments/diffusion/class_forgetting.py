"""The diffusion experiment: a class is forgotten by a class-conditional model (Figures 3 and 4 of the paper)."""

from dataclasses import dataclass

import pandas as pd

from salun_core.experiments.diffusion.lab import DiffusionLab
from salun_core.experiments.diffusion.params import DiffusionParams
from salun_core.experiments.runs.cells import Cell, retrain_replicas
from salun_core.experiments.runs.grid import Grid
from salun_core.experiments.runs.table import Run

__all__ = ["DiffusionParams", "DiffusionResults", "run"]


@dataclass(frozen=True)
class DiffusionResults:
    """Results of the experiment.

    Parameters
    ----------
    cells : DataFrame
        Retrain and every method with its own mask, one row per scenario and seed.
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


def grid(params: DiffusionParams, lab: DiffusionLab) -> Grid:
    """The cells of the experiment."""
    scenarios = params.scenarios(lab.data)
    # The model before forgetting, then the one that never saw the class, as in the paper's figures.
    training = params.training
    ends = tuple(
        m for m in ("original", "retrain") if (training.retrains if m == "retrain" else m in params.methods)
    )
    methods = (*ends, *(m for m in params.methods if m not in ("original", "retrain")))
    cells: list[Cell] = []
    for scenario in scenarios:
        for seed in params.seeds:
            cells += params.cells_of(scenario, seed, methods)
            if training.retrains_itself:
                cells += retrain_replicas(seed, scenario, params.noise_floor, study="methods")
    return Grid(lab, params, lambda _: {"": cells}, retrain=training.retrains, long=True)


def run(params: DiffusionParams, *, lab: DiffusionLab | None = None) -> DiffusionResults:
    """Run or resume the experiment, in the lab given or in the one the parameters describe.

    Raises
    ------
    UserError
        For anything the user can put right, before anything is trained.
    """
    lab = lab or params.lab()
    _, tables = grid(params, lab).execute(Run(lab, params))
    frame = tables[""]
    by_study = {
        study: frame[frame["study"] == study].reset_index(drop=True) for study in ("methods", "masks")
    }
    return DiffusionResults(by_study["methods"], by_study["masks"], lab, params)
