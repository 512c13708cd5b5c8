"""Every preset that has not been recorded, scaled down and run on the processor, before it is run in full elsewhere."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd

from salun_core.errors import UserError, one_of
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.generation.params import GenerationParams
from salun_core.experiments.rehearsal import stand_ins
from salun_core.experiments.rehearsal.plan import Needs, assumed, needs
from salun_core.experiments.rehearsal.smaller import smaller
from salun_core.experiments.rehearsal.stand_ins import SHAPES
from salun_core.experiments.runs.params import preset_names
from salun_core.experiments.runs.table import read_table
from salun_core.paths import recorded_folder

BOOK = "quick"  # the preset that the book runs

FURTHER: tuple[tuple[str, str, dict[str, Any]], ...] = tuple(
    ("classification", "paper", given)
    for given in (
        {"dataset": "cifar100"},
        {"dataset": "svhn"},
        {"dataset": "tiny_imagenet"},
        {"arch": "vgg16"},
        {"arch": "swin_t", "width": 96},
    )
)
"""The paper's other data sets and networks."""


@dataclass(frozen=True)
class Act:
    """One preset to rehearse, with what is given on top of it."""

    experiment: str
    preset: str
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name in the table: "classification paper, dataset cifar100"."""
        more = "".join(f", {name} {value}" for name, value in self.given.items() if name != "width")
        return f"{self.experiment} {self.preset}{more}"

    @property
    def draws(self) -> bool:
        """Whether generative models are measured by what they draw."""
        return issubclass(EXPERIMENTS[self.experiment].params, GenerationParams)


@dataclass(frozen=True)
class Outcome:
    """What a rehearsal took, and what the preset is planned to need."""

    act: Act
    cells: int
    seconds: float
    full: Needs


def unrecorded() -> list[Act]:
    """Presets that are neither run by the book nor recorded, and the paper's other data sets and networks."""
    recorded = recorded_folder()
    found = [
        Act(experiment, preset)
        for experiment in EXPERIMENTS
        for preset in preset_names(experiment)
        if preset != BOOK and not (recorded / preset / "results" / f"{experiment}.json").is_file()
    ]
    return found + [Act(*further) for further in FURTHER]


def chosen(words: Sequence[str]) -> list[Act]:
    """The presets that words name, an experiment or a preset each; all of them without words.

    Raises
    ------
    UserError
        If a word names neither.
    """
    every = unrecorded()
    known = {act.experiment for act in every} | {act.preset for act in every}
    for word in words:
        one_of(word, sorted(known), "experiment or preset")
    return [act for act in every if set(words) <= {act.experiment, act.preset}]


def rehearse(acts: Sequence[Act], *, workers: int = 1) -> Iterator[Outcome]:
    """Run each in a folder of its own, which is deleted afterwards; ``workers`` at a time, with one thread each."""
    if workers == 1:
        yield from map(_in_a_folder, acts)
        return
    # Generators and large data sets take longest, and are started first, so that none runs alone at the end.
    acts = sorted(acts, key=lambda act: (not act.draws, not act.given))
    # In the processes to come: their bars would write over each other, and each library would start a thread a core.
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # A process for each, as in the run that is rehearsed: nothing is left over from another preset.
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, max_tasks_per_child=1) as pool:
        yield from pool.map(_in_a_folder, acts)


def _begin_worker() -> None:
    """End as soon as the process that started this one is gone, killed for instance."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def _in_a_folder(act: Act) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        try:
            return rehearsed(act, Path(folder))
        except UserError as error:
            raise UserError(f"{act.label}: {error}") from error


def rehearsed(act: Act, folder: Path) -> Outcome:
    """Run one preset in small and estimate what it needs in full."""
    start = time.perf_counter()
    experiment = EXPERIMENTS[act.experiment]
    files = _files(experiment.params.read_preset(act.preset), folder)
    full = experiment.params.load({**act.given, **files.given, "preset": act.preset})
    small = experiment.params.load(
        {
            **act.given,
            **files.given,
            **smaller(full),
            **files.small,
            "preset": act.preset,
            "out_dir": folder / "out",
        }
    )
    most = stand_ins.FEW if act.draws else None
    data = stand_ins.images_like(small.data.dataset, most=most) if small.data.dataset in SHAPES else None
    experiment.run(small, lab=small.lab(data=data))
    rows = read_table(folder / "out", act.experiment)
    failed = rows[~rows["status"].isin(("done", "diverged"))]
    if len(failed):
        raise UserError(f"{failed['cell'].iloc[0]} ended as {failed['status'].iloc[0]}")
    # Images that stand in for a folder are as many as those of the data set in its place.
    planned = needs(full, assumed(full.shown()))
    return Outcome(act, len(rows), time.perf_counter() - start, planned)


@dataclass(frozen=True)
class _Files:
    """Files that a preset needs: to be checked at all (``given``), and to be run in small (``small``)."""

    given: dict[str, Any]
    small: dict[str, Any]


def _files(preset: Mapping[str, Any], folder: Path) -> _Files:
    given: dict[str, Any] = {}
    small: dict[str, Any] = {}
    if preset.get("prompts_file"):
        given["prompts_file"] = stand_ins.prompts_file(folder / "prompts.csv")
        given["prompts_rows"] = stand_ins.PROMPTS
    if "pipeline" in preset:
        small["class_names"] = preset["class_names"][: stand_ins.FEW]
        words = {word for name in small["class_names"] for word in name.lower().split()}
        small["pipeline"] = str(
            stand_ins.pipeline_folder(folder / "pipeline", words | {"a", "of", "photo", "image"})
        )
        small["clip"] = str(stand_ins.clip_folder(folder / "clip", folder / "pipeline"))
    if preset.get("dataset") == "imagefolder":
        made = stand_ins.imagenette_folder if "pipeline" in preset else _cifar_folder
        given["data_dir"] = made(folder / "images")
    if preset.get("features") == "inception":
        given["inception_weights"] = stand_ins.inception_weights(folder / "inception.pth")
    if preset.get("judge") == "imagenet":
        given["judge_weights"] = stand_ins.resnet50_weights(folder / "resnet50.pth")
    return _Files(given, small)


def _cifar_folder(folder: Path) -> Path:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return stand_ins.image_folder(folder, classes=tuple(names), size=32)


def shown(outcomes: Sequence[Outcome], *, tflops: float) -> pd.DataFrame:
    """A row for each rehearsal."""
    return pd.DataFrame(
        {
            "preset": o.act.label,
            "rehearsed": f"{o.cells} cells, {o.seconds:.0f} s",
            "in full": f"{o.full.cells:,} cells",
            "PFLOP": f"{o.full.flops / 1e15:,.0f}",
            f"hours at {tflops:g} TFLOP/s": f"{o.full.hours(tflops):,.1f}",
            "memory, GB": f"{o.full.device / 1e9:.1f}",
            "disk, GB": f"{sum(o.full.disk.values()) / 1e9:.1f}",
        }
        for o in outcomes
    )


__all__ = ["Act", "Outcome", "chosen", "rehearse", "shown", "unrecorded"]
