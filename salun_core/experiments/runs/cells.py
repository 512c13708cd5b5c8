"""Cells: the points of an experiment's grid, and the table of their results."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import pandas as pd
from tqdm import tqdm

from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.store import Result
from salun_core.methods import METHODS
from salun_core.saliency import SCORES, check_keep

MASKS = ("none", "salient", "random", "random_per_layer", "least_salient")
CHANGES = (*MASKS, "lora")  # what may change: weights under a mask, or adapters in its place


@dataclass(frozen=True)
class MaskSpec:
    """Which mask a cell uses.

    A kind from ``CHANGES``, the share of weights kept, a key of ``saliency.SCORES``, whether the forget set
    is augmented while scoring (as in the released code), and the draw of a random mask or augmentation.
    """

    kind: str = "none"
    keep: float = 1.0
    score: str = "abs_sum"
    augmented: bool = False
    draw: int = 0

    def __post_init__(self) -> None:
        one_of(self.kind, CHANGES, "kind of mask")
        one_of(self.score, SCORES, "saliency score")
        check_keep(self.keep)


NO_MASK = MaskSpec()


@dataclass(frozen=True)
class Scenario:
    """What is to be forgotten: a random share, a class, or listed sample ids."""

    kind: Literal["random", "class", "indices"]
    fraction: float | None = None
    target: int | str | None = None
    ids: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Name for tables: "random 10%", "class 3", "120 listed images"."""
        if self.kind == "random":
            assert self.fraction is not None
            return f"random {100 * self.fraction:g}%"
        return f"class {self.target}" if self.kind == "class" else f"{len(self.ids or ())} listed images"


@dataclass(frozen=True)
class Cell:
    """One run: a method on one seed of one scenario.

    ``settings`` overrides the method's defaults. ``reported`` and ``tags`` say what the cell is for and
    do not change its result.
    """

    seed: int
    scenario: Scenario
    method: str
    mask: MaskSpec = NO_MASK
    settings: Mapping[str, Any] = field(default_factory=dict)
    reported: bool = True
    tags: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        method = METHODS[one_of(self.method, METHODS, "method")]
        for name in self.settings:
            one_of(name, method.defaults, f"setting of {self.method}")

    @property
    def all_settings(self) -> dict[str, Any]:
        """The method's defaults with this cell's settings on top."""
        return {**METHODS[self.method].defaults, **self.settings}

    @property
    def what(self) -> dict[str, Any]:
        """What of this cell determines its result, as JSON values."""
        return {
            "seed": self.seed,
            "scenario": {k: v for k, v in asdict(self.scenario).items() if v is not None},
            "method": self.method,
            "settings": self.all_settings,
            "mask": asdict(self.mask) if self.mask.kind != "none" else {"kind": "none"},
        }


class Lab(Protocol):
    """Runs cells of one setting."""

    def run(self, cell: Cell) -> Result:
        """The cell's result, from the store or computed now."""
        ...

    def row(self, cell: Cell, result: Result) -> dict[str, Any]:
        """One row of the results table."""
        ...


def cell_row(cell: Cell, result: Result, lab: Any, **found: Any) -> dict[str, Any]:
    """One row of the results table: what was run, what was ``found``, what it cost, and where it comes from.

    Parameters
    ----------
    lab : Lab
        With ``experiment``, ``source`` and ``data``, for the first columns.
    """
    values, origin = result.content, result.provenance
    return {
        "experiment": lab.experiment,
        "source": lab.source,
        "dataset": lab.data.name,
        "scenario": cell.scenario.label,
        "method": cell.method,
        "mask": cell.mask.kind,
        "keep": cell.mask.keep if cell.mask.kind != "none" else 1.0,
        "score": cell.mask.score,
        "seed": cell.seed,
        "status": values["status"],
        "seconds": values.get("seconds"),
        "mask_seconds": values["mask_seconds"],
        "samples_seen": values.get("samples"),
        **found,
        "settings": cell.all_settings,
        "replica": cell.settings.get("replica", 0),
        "reported": cell.reported,
        **cell.tags,
        "device": origin["device"],
        "threads": origin["threads"],
        "code": origin["revision"],
        "finished": origin["finished"],
        "cell": result.key.name,
    }


def run_cells(lab: Lab, cells: Iterable[Cell], *, progress: "tqdm[Any] | None" = None) -> pd.DataFrame:
    """Run cells in order and return their table, one row each."""
    rows = []
    for cell in cells:
        if progress is not None:
            mask = (
                "" if cell.mask.kind in ("none", METHODS[cell.method].mask) else f" + {cell.mask.kind} mask"
            )
            use = "" if cell.reported else " (tuning)"
            progress.set_postfix_str(f"{cell.scenario.label}, seed {cell.seed}, {cell.method}{mask}{use}")
        result = lab.run(cell)
        if progress is not None:
            progress.update()
        rows.append(lab.row(cell, result))
    return pd.DataFrame(rows)


def progress_bar(total: int, title: str) -> "tqdm[Any]":
    """A bar on stderr with the cell in hand and the time left; plain text, for terminals and logs."""
    return tqdm(total=total, desc=title, unit="cell", dynamic_ncols=True, mininterval=0.5, smoothing=0.1)


def check_ran(results: pd.DataFrame) -> None:
    """Refuse a table in which Retrain, the reference of every gap, is missing or diverged."""
    retrained = results[results["method"] == "retrain"]
    if retrained.empty or (retrained["status"] != "done").any():
        raise UserError("Retrain did not finish, and every gap is measured against it: change the recipe")


def default_mask(method: str, keep: float, score: str) -> MaskSpec:
    """The mask a method is run with unless an experiment says otherwise."""
    kind = METHODS[method].mask
    return NO_MASK if kind == "none" else MaskSpec(kind, keep, score)


def retrain_replicas(seed: int, scenario: Scenario, count: int) -> list[Cell]:
    """Further retrained models of one split, which differ in initialisation and order only."""
    return [Cell(seed, scenario, "retrain", settings={"replica": i + 1}) for i in range(count)]
