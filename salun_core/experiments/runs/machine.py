"""Parameters that every experiment has: the machine it runs on and the folder it writes to."""

from pathlib import Path
from typing import Self

import torch
from pydantic import model_validator

from salun_core.errors import UserError
from salun_core.experiments.runs.params import Group, parameter, redeclared
from salun_core.experiments.runs.store import Store
from salun_core.paths import output_folder

MOST_THREADS = 512
MANY = 5000  # cells from which a grid must be asked for twice


class Machine(Group):
    """Where an experiment computes and where its results go."""

    device: str = parameter(
        "auto", "auto, cpu or cuda", no_effect="a cell of either device is the same cell; provenance names it"
    )
    threads: int = parameter(
        0,
        "processor threads; 0: as torch chooses",
        ge=0,
        le=MOST_THREADS,
        no_effect="changes rounding only; see provenance",
    )
    deterministic: bool = parameter(
        False,
        "compute with one thread, for equal bits on equal machines",
        no_effect="results of one key; those computed without it are not taken, and replaced",
    )
    recorded: bool = parameter(
        False, "accept finished cells of other code versions", no_effect="says which cells are accepted"
    )
    many_cells: bool = parameter(
        False,
        f"run a grid of more than {MANY:,} cells",
        no_effect="whether it may start, not what it computes",
    )
    out_dir: Path | None = parameter(
        None, "where results go; data/runs of the project by default", no_effect="a place"
    )

    @model_validator(mode="after")
    def _one_thread(self) -> Self:
        if self.deterministic and self.threads > 1:
            raise UserError(
                f"deterministic computes with one thread, and threads is {self.threads}: give one of the two"
            )
        return self

    def ready(self) -> torch.device:
        """The device, with the number of threads set.

        Raises
        ------
        UserError
            If this machine has no such device.
        """
        device = find_device(self.device)
        use_threads(1 if self.deterministic else self.threads)
        return device

    @property
    def folder(self) -> Path:
        """Where results go."""
        return output_folder(self.out_dir)

    def store(self) -> Store:
        """The store of cells."""
        return Store(self.folder / "cells", trusted=self.recorded, deterministic=self.deterministic)


class OneThread(Group):
    """Where a chapter computes, and where its results go: on networks so small, more threads would only wait for each other."""

    threads: int = redeclared(Machine, "threads", 1)
    out_dir: Path | None = redeclared(Machine, "out_dir", None)


def use_threads(count: int) -> None:
    """Set the number of processor threads that torch uses; 0 leaves it as it is.

    Raises
    ------
    UserError
        If the number is out of range: torch crashes with far more threads than the machine has.
    """
    if not 0 <= count <= MOST_THREADS:
        raise UserError(f"threads must lie in [0, {MOST_THREADS}], got {count}: 0 leaves the choice to torch")
    if count:
        torch.set_num_threads(count)


def find_device(name: str) -> torch.device:
    """The device asked for; "auto" is a CUDA accelerator if there is one.

    Raises
    ------
    UserError
        If the name is unknown or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: choose auto, cpu or cuda")
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise UserError(f"device {name!r} was asked for, but torch sees no such accelerator: choose cpu")
    return device
