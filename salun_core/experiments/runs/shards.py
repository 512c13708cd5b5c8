"""Shards: the parts of an experiment that are scheduled one by one, on the processors of one machine or on many.

A shard computes cells and lists none: tables are made from all cells at the end (`gather`). Cells stay what is
resumed: a shard that is started again finds those that it has finished.

Stages follow each other. ``originals``: the trained model of a seed, and for a seed of the tuning its references.
``tuning``: the candidates of one method for one scenario, bounds widened where that is needed. ``cells``: all that is
reported of one scenario and seed; of one method on them where cells take long.
"""

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from salun_core.data.on_disk import in_memory, is_mapped
from salun_core.errors import UserError
from salun_core.experiments.runs.cells import Cell, Scenario, Variant
from salun_core.experiments.runs.grid import Grid
from salun_core.experiments.runs.store import FileName, Result, Store, digest, read_result, read_results
from salun_core.experiments.runs.table import Run
from salun_core.experiments.runs.tuning import FREE, tune, tuning_cells, tuning_references
from salun_core.files import read_json, write_whole

EVERY = 2.0  # seconds between two states of a shard on disk
GPUS = "SALUN_GPUS"  # accelerators of this machine, shared by the shards that run here
SPARE = 1.25  # memory asked for, in units of the largest that was measured
PROCESS = 3_000  # MB of a process that has loaded PyTorch and trains a small network
LONGEST = 240  # minutes asked for where nothing was measured


@dataclass(frozen=True)
class Shard:
    """One part of a grid.

    Parameters
    ----------
    name : str
        Stage and part, such as "cells/random-10-seed-0".
    needs : tuple of str
        Shards that must be done before.
    cells : tuple of Cell
        What it computes, with settings that are still to be chosen left as they are given.
    shared : tuple of (int, Scenario)
        Seeds and scenarios whose trained model it makes.
    variant : (Scenario, Variant), optional
        What it chooses settings of.
    """

    name: str
    needs: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    shared: tuple[tuple[int, Scenario], ...] = ()
    variant: tuple[Scenario, Variant] | None = None

    @property
    def size(self) -> int:
        """Results that it makes, at least."""
        return len(self.cells) + len(self.shared)


def shards(grid: Grid) -> dict[str, Shard]:
    """All shards of a grid by name, in an order in which they can run."""
    reported = [cell for cells in grid.studies(grid.fixed).values() for cell in cells]
    references = tuning_references(grid.tuning, grid.scenarios) if grid.tuned and grid.tuning else []
    found: dict[str, Shard] = {}
    originals: dict[int, str] = {}
    for seed in dict.fromkeys(cell.seed for cell in (*references, *reported)):
        mine = tuple(cell for cell in references if cell.seed == seed)
        places = dict.fromkeys((seed, c.scenario) for c in (*mine, *reported) if c.seed == seed)
        originals[seed] = f"originals/seed-{seed}"
        found[originals[seed]] = Shard(originals[seed], cells=mine, shared=tuple(places))
    before = tuple(dict.fromkeys(originals[cell.seed] for cell in references))
    tuned = []
    for scenario, variant in grid.tuned:
        assert grid.tuning is not None
        name = f"tuning/{_plain(scenario.label)}-{_plain(variant.method)}-{variant.mask.kind}"
        cells = tuning_cells(grid.tuning, scenario, variant, grid.tuning.points(variant.method))
        found[name] = Shard(name, before, tuple(cells), variant=(scenario, variant))
        tuned.append(name)
    for name in dict.fromkeys(_reported_in(grid, cell) for cell in reported):
        mine = tuple(cell for cell in reported if _reported_in(grid, cell) == name)
        found[name] = Shard(name, (originals[mine[0].seed], *tuned), mine)
    return found


def _reported_in(grid: Grid, cell: Cell) -> str:
    """Name of the shard that computes a reported cell."""
    name = f"cells/{_plain(cell.scenario.label)}-seed-{cell.seed}"
    return f"{name}-{_plain(cell.method)}-{cell.mask.kind}" if grid.long else name


def _plain(label: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^\w.]+", "-", label).strip("-")


# --- running one --------------------------------------------------------------------------------------


@dataclass
class State:
    """How far a shard is, kept in a file that can be read at any time.

    Parameters
    ----------
    path : Path
        The file.
    digest : str
        Of what the shard is to compute, see `identities`.
    total : int
        Results to make.
    """

    path: Path
    digest: str
    total: int
    done: int = 0
    cells: list[str] = field(default_factory=list)  # their names in the store
    failed: list[dict[str, str]] = field(default_factory=list)
    ended: bool = False
    _written: float = field(default=-EVERY, repr=False)

    def attempt(self, what: str, work: Callable[[], Any]) -> bool:
        """Do ``work``; whether it succeeded is the value, and is noted."""
        try:
            work()
        except Exception as error:  # whatever it is, the other cells can still be computed
            self.fail(what, error)
            return False
        self.done += 1
        self.write()
        return True

    def fail(self, what: str, error: Exception) -> None:
        """Note that something could not be made, and the first line of why."""
        first = next(iter(str(error).strip().splitlines()), "")
        why = first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
        self.failed.append({"what": what, "why": why.removesuffix(": ")})
        self.write(now=True)

    def write(self, *, now: bool = False) -> None:
        """Write the file, unless that was done a moment ago."""
        if now or time.monotonic() - self._written >= EVERY:
            self._written = time.monotonic()
            record = {name: value for name, value in vars(self).items() if name not in ("path", "_written")}
            write_whole(self.path, json.dumps(record, indent=1, ensure_ascii=False).encode())


class NotAll(UserError):
    """Some cells failed, and what follows needs all of them."""


class PartOfRun(Run):
    """Runs cells for a shard: one that fails is noted, and the others go on. Nothing is listed in results.

    Parameters
    ----------
    lab, params
        See `Run`.
    state : State
        Where it is noted.
    """

    def __init__(self, lab: Any, params: Any, state: State) -> None:
        super().__init__(lab, params)
        self.state = state

    def compute(self, cells: Sequence[Cell]) -> None:
        """Run or find cells.

        Raises
        ------
        NotAll
            If one of them failed.
        """
        state, failures = self.state, len(self.state.failed)
        named = [(cell, self.lab.key(cell).name) for cell in cells]
        named = [(cell, name) for cell, name in named if name not in state.cells]
        state.total = max(state.total, state.done + len(state.failed) + len({name for _, name in named}))
        for place, cell in self.lab.free_first(cell for cell, _ in named):
            name = named[place][1]
            if name not in state.cells and state.attempt(cell.label, partial(self.lab.run, cell)):
                state.cells.append(name)
        if len(state.failed) > failures:
            raise NotAll(state.failed[failures]["why"])

    def execute(self, cells: Iterable[Cell], title: str = "") -> pd.DataFrame:
        """Run or find cells and return their table; the references of a tuning must be there."""
        cells = list(cells)
        self.compute([cell for cell in cells if cell.method not in FREE])
        return super().execute(cells, title)

    def write(self) -> Path:
        """Refuse: lists of results are made from all cells."""
        raise AssertionError("a shard lists no results")


class Finder:
    """A lab that finds results and computes none, but those of some methods.

    Parameters
    ----------
    lab : Lab
        The lab.
    but : sequence of str
        Methods whose cells are computed.
    """

    def __init__(self, lab: Any, *, but: Sequence[str] = ()) -> None:
        self.lab, self.but = lab, but

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lab, name)

    def run(self, cell: Cell) -> Result:
        """The stored result of a cell.

        Raises
        ------
        UserError
            If there is none.
        """
        if cell.method in self.but:
            return self.lab.run(cell)
        found: Result | None = self.lab.store.get(self.lab.key(cell))
        if found is None:
            raise UserError(
                f"{cell.label} has not been computed: start the run again, it computes what is missing"
            )
        return found


def run_shard(grid: Grid, shard: Shard, path: Path) -> State:
    """Compute a shard; the state that comes back names what failed.

    Parameters
    ----------
    grid : Grid
        The whole.
    shard : Shard
        The part.
    path : Path
        Where its state is kept.
    """
    grid.check()
    state = State(path, identities(grid)[shard.name], shard.size)
    state.write(now=True)
    for seed, scenario in shard.shared:
        what = f"trained model of seed {seed}, {scenario.label}"
        state.attempt(what, partial(grid.lab.prepare, seed, scenario))
    with contextlib.suppress(NotAll):
        if shard.name.startswith("cells/"):
            _reported(grid, shard, state)
        else:
            PartOfRun(grid.lab, grid.params, state).compute(shard.cells)
            if shard.variant is not None:
                _widened(grid, *shard.variant, state)
    state.ended = True
    state.write(now=True)
    return state


def _widened(grid: Grid, scenario: Scenario, variant: Variant, state: State) -> None:
    """Go on to the settings beyond the first bounds, where the best one is the last one tried."""
    assert grid.tuning is not None
    run = PartOfRun(Finder(grid.lab, but=(variant.method,)), grid.params, state)
    try:
        tune(run, grid.tuning, [variant], [scenario])
    except NotAll:
        raise
    except Exception as error:
        state.fail(f"{scenario.label}, choice of settings of {variant.method}", error)


def _reported(grid: Grid, shard: Shard, state: State) -> None:
    """Cells of one scenario and seed with the settings that were chosen, without methods of which none could be."""
    chosen, unknown = dict(grid.fixed), dict[str, Exception]()
    finder: Any = Finder(grid.lab)
    found = Run(finder, grid.params)
    for scenario, variant in grid.tuned:
        assert grid.tuning is not None
        try:
            chosen |= tune(found, grid.tuning, [variant], [scenario])[1]
        except UserError as error:
            unknown[variant.method] = error
    every = [cell for cells in grid.studies(chosen).values() for cell in cells]
    cells = [cell for cell in every if _reported_in(grid, cell) == shard.name]
    for cell in cells:
        if cell.method in unknown:
            state.fail(cell.label, unknown[cell.method])
    cells = [cell for cell in cells if cell.method not in unknown]
    run = PartOfRun(grid.lab, grid.params, state)
    with contextlib.suppress(NotAll):
        run.compute(cells)
    there = [cell for cell in cells if grid.lab.key(cell).name in state.cells]
    # Metrics are computed here, side by side, and found when the table is made.
    run.table.rows(run.entry(cell, grid.lab.key(cell).name) for cell in there)
    for cell in there:
        result = grid.lab.store.get(grid.lab.key(cell))
        if grid.further is not None and result is not None and result.content["status"] == "done":
            state.total += 1
            state.attempt(f"{cell.label}, what follows", partial(grid.further, cell, result))


def gather(grid: Grid) -> None:
    """List all cells of an experiment in its results, from what shards have stored; nothing is computed.

    Raises
    ------
    UserError
        If a cell is missing.
    """
    finder: Any = Finder(grid.lab)
    grid.execute(Run(finder, grid.params))


# --- planning -----------------------------------------------------------------------------------------


def identities(grid: Grid) -> dict[str, str]:
    """Digest of all that determines a shard's results, by name: its cells, their code, and the shards before it."""
    found: dict[str, str] = {}
    for name, shard in shards(grid).items():
        shared = [Cell(seed, scenario, "original") for seed, scenario in shard.shared]
        keys = [grid.lab.key(cell) for cell in (*shared, *shard.cells)]
        found[name] = digest([[f"{k.name} {k.code}" for k in keys], [found[need] for need in shard.needs]])
    return found


def plan(grid: Grid, folder: Path, *, gpus: int) -> dict[str, Any]:
    """What there is to schedule; marks of shards that are not finished any more are deleted.

    Parameters
    ----------
    grid : Grid
        The whole.
    folder : Path
        Where states and marks lie.
    gpus : int
        Accelerators that a shard takes.

    Returns
    -------
    dict
        By name of the shard: ``needs``, ``cells`` (results to make), ``finished``, and what to ask a cluster for:
        ``gpu``, ``mem_mb``, ``runtime`` (minutes) and whether that was ``measured``.
    """
    grid.check()
    known, expected = _Known(grid), identities(grid)
    found = {}
    for name, shard in shards(grid).items():
        mark, state = folder / f"{name}.done", read_state(folder / f"{name}.json")
        if not (mark.is_file() and _stands(state, expected[name], grid.lab.store)):
            mark.unlink(missing_ok=True)
        found[name] = {
            "needs": list(shard.needs),
            "cells": shard.size,
            "finished": mark.is_file(),
            **known.needed(shard, gpus),
        }
    # The tasks of an array job ask for the same, so the shards of a stage do.
    for stage in {name.split("/")[0] for name in found}:
        same = [asked for name, asked in found.items() if name.startswith(f"{stage}/")]
        most = {what: max(asked[what] for asked in same) for what in ("mem_mb", "runtime")}
        for asked in same:
            asked |= most
    return found


def read_state(path: Path) -> dict[str, Any]:
    """The state of a shard; empty where it has not begun, or its file is damaged."""
    found = read_json(path)
    try:
        _Kept.model_validate(found)
    except ValidationError:
        return {}
    return dict(found)


def read_plan(path: Path) -> tuple[str, dict[str, Any]]:
    """Experiment and parameters of a plan.

    Raises
    ------
    UserError
        If there is no such file, or it is no plan.
    """
    try:
        plan = _Plan.model_validate(read_json(path))
    except ValidationError:
        raise UserError(f"{path} is not there or no plan: write one with `plan --write NAME`") from None
    return plan.experiment, plan.given


class _Plan(BaseModel):
    """What a shard needs of ``plan.json``."""

    model_config = ConfigDict(strict=True)

    experiment: str
    given: dict[str, Any]


class _Kept(BaseModel):
    """What a plan needs of a shard's state."""

    model_config = ConfigDict(strict=True)

    digest: str
    ended: bool
    cells: list[FileName]
    failed: list[dict[str, str]]


def _stands(state: Mapping[str, Any], expected: str, store: Store) -> bool:
    """Whether a finished shard still is what is asked for, and all that it made is there and whole."""
    if not state or state["digest"] != expected or not state["ended"] or state["failed"]:
        return False
    found = [read_result(store.folder / f"{name}.json") for name in state["cells"]]
    return all(result is not None and store.has_files(result, kept=store.trusted) for result in found)


class _Known:
    """What finished cells of the same folder have cost."""

    def __init__(self, grid: Grid) -> None:
        images = grid.lab.data.images
        self.bytes = min(images.numel(), in_memory()) if is_mapped(images) else images.numel()
        self.seconds: dict[str, float] = {}
        self.memory = 0
        for result in read_results(grid.lab.store.folder):
            method = result.key.what.get("method", result.key.kind)
            cost = float(result.content.get("seconds") or 0)
            self.seconds[method] = max(cost, self.seconds.get(method, 0))
            self.memory = max(self.memory, int(result.content.get("peak_memory") or 0))

    def needed(self, shard: Shard, gpus: int) -> dict[str, Any]:
        """What to ask a cluster for."""
        names = [cell.method for cell in shard.cells if cell.method != "original"]
        measured = all(name in self.seconds for name in (*names, "original"))
        seconds = sum(self.seconds.get(name, 0) for name in names)
        seconds += self.seconds.get("original", 0) * bool(shard.shared)
        memory = PROCESS + 3 * self.bytes // 10**6  # all images, those of a task, and a copy in between
        return {
            "gpu": gpus,
            "mem_mb": max(memory, round(SPARE * self.memory / 1e6) if not gpus else 0),
            "runtime": 10 + round(2 * seconds / 60) if measured else LONGEST,
            "measured": measured,
        }


# --- accelerators -------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_gpu(wait: float = 1.0) -> Iterator[str | None]:
    """One of the accelerators in ``SALUN_GPUS`` for this process alone, by ``CUDA_VISIBLE_DEVICES``.

    Snakemake starts no more shards than there are accelerators; this says which one is whose. Without that
    variable, and inside a job of Slurm, which gives out accelerators itself, everything stays as it is.

    Parameters
    ----------
    wait : float
        Seconds between two looks where all are taken.
    """
    names = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    if not names or "SLURM_JOB_ID" in os.environ:
        yield None
        return
    folder = Path(tempfile.gettempdir(), f"salun-gpus-{os.getuid() if hasattr(os, 'getuid') else 'all'}")
    folder.mkdir(exist_ok=True)
    while True:
        for name in names:
            lock = FileLock(folder / f"{_plain(name)}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                os.environ["CUDA_VISIBLE_DEVICES"] = name
                yield name
            finally:
                lock.release()
            return
        time.sleep(wait)
