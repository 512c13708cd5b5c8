"""Experiments before they are run: what is tuned, and the cells that follow from the settings chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from salun_core.experiments.runs.cells import MASKS, Cell, Scenario, Variant
from salun_core.experiments.runs.store import Result
from salun_core.experiments.runs.table import Run, check_ran
from salun_core.experiments.runs.tuning import FREE, Tuning, tune
from salun_core.saliency import check_keep

SHARED = MASKS[1:]  # kinds that mark a share of the weights

if TYPE_CHECKING:
    from salun_core.experiments.runs.lab import Lab
    from salun_core.experiments.runs.params import Params

Chosen = Mapping[tuple[Scenario, Variant], Mapping[str, Any]]
"""Settings of each variant, for each scenario that they are chosen for."""


@dataclass(frozen=True)
class Grid:
    """All cells of an experiment: in one go (`execute`), or in shards (`runs.shards`).

    Parameters
    ----------
    lab : Lab
        Runs cells.
    params : Params
        The parameters, complete.
    studies : callable
        ``studies(chosen)`` gives the cells of each table by its title, in order.
    tuning : Tuning, optional
        How settings are chosen; None where nothing is.
    variants, scenarios : sequence
        What settings are chosen for.
    retrain : bool
        Whether the first table must hold Retrain, the reference of every gap.
    long : bool
        Whether a cell takes so long that each method is a shard of its own.
    further : callable, optional
        ``further(cell, result)``, done after a reported cell and stored as well: probes of its model, say.
    """

    lab: "Lab"
    params: "Params"
    studies: Callable[[Chosen], dict[str, list[Cell]]]
    tuning: Tuning | None = None
    variants: Sequence[Variant] = ()
    scenarios: Sequence[Scenario] = ()
    retrain: bool = True
    long: bool = False
    further: Callable[[Cell, Result], Any] | None = None

    @property
    def fixed(self) -> dict[tuple[Scenario, Variant], Mapping[str, Any]]:
        """Settings before any are chosen."""
        if self.tuning is None:
            return {}
        return {(s, v): self.tuning.settings.get(v.method, {}) for s in self.scenarios for v in self.variants}

    @property
    def tuned(self) -> list[tuple[Scenario, Variant]]:
        """What settings are searched for."""
        if self.tuning is None or not self.tuning.tune:
            return []
        return [(s, v) for s in self.scenarios for v in self.variants if v.method not in FREE]

    def check(self) -> None:
        """Refuse masks that mark no weight: what a cell would refuse after everything before it was computed.

        Raises
        ------
        UserError
            With the share, and the least that there can be.
        """
        cells = [cell for listed in self.studies(self.fixed).values() for cell in listed]
        masks = {cell.mask for cell in cells} | {variant.mask for _, variant in self.tuned}
        shares = {mask.keep for mask in masks if mask.kind in SHARED}
        if shares:
            weights = self.lab.weights_here
            for keep in sorted(shares):
                check_keep(keep, weights)

    def execute(self, run: Run) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
        """Run or find every cell, and write the list of them: rows of the tuning, and tables by title.

        Raises
        ------
        UserError
            If a mask marks no weight, Retrain diverged, or settings cannot be chosen.
        """
        self.check()
        tuning, chosen = pd.DataFrame(), dict(self.fixed)
        if self.tuning is not None:
            tuning, found = tune(run, self.tuning, self.variants, self.scenarios)
            chosen |= found
        tables: dict[str, pd.DataFrame] = {}
        for title, cells in self.studies(chosen).items():
            tables[title] = run.execute(cells, title)
            if self.retrain and len(tables) == 1:
                check_ran(tables[title])
        run.write()
        return tuning, tables
