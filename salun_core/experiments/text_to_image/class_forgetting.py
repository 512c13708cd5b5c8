"""The text-to-image experiment: a class is forgotten by a Stable Diffusion pipeline (Table 2 of the paper)."""

from dataclasses import dataclass

import pandas as pd

from salun_core.experiments.runs.grid import Grid
from salun_core.experiments.runs.table import Run
from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.experiments.text_to_image.params import TextToImageParams
from salun_core.experiments.text_to_image.unlearned_elsewhere import given_cells

__all__ = ["TextToImageParams", "TextToImageResults", "run"]


@dataclass(frozen=True)
class TextToImageResults:
    """Results of the experiment.

    Parameters
    ----------
    cells : DataFrame
        The original and every method with its own mask, one row per scenario and seed, and after them the
        networks of ``unlearned``.
    masks : DataFrame
        SalUn's settings under each kind of mask and with adapters.
    lab : TextLab
        For a closer look: models, samples.
    params : TextToImageParams
        The parameters, complete.
    """

    cells: pd.DataFrame
    masks: pd.DataFrame
    lab: TextLab
    params: TextToImageParams


def grid(params: TextToImageParams, lab: TextLab) -> Grid:
    """The cells of the experiment."""
    scenarios = params.scenarios(lab.data)
    methods = ("original", *(m for m in params.methods if m != "original"))
    cells = [
        cell
        for scenario in scenarios
        for seed in params.seeds
        for cell in params.cells_of(scenario, seed, methods)
    ]
    if params.unlearned:
        cells += given_cells(params.unlearned, lab.pipe, scenarios[0], params.seeds[0])
    return Grid(lab, params, lambda _: {"": cells}, retrain=False, long=True)


def run(params: TextToImageParams, *, lab: TextLab | None = None) -> TextToImageResults:
    """Run or resume the experiment, in the lab given or in the one the parameters describe.

    Raises
    ------
    UserError
        For anything the user can put right, before anything is computed.
    """
    lab = lab or params.lab()
    _, tables = grid(params, lab).execute(Run(lab, params))
    frame = tables[""]
    by_study = {
        study: frame[frame["study"] == study].reset_index(drop=True) for study in ("methods", "masks")
    }
    return TextToImageResults(by_study["methods"], by_study["masks"], lab, params)
