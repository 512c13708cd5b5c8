"""The tables of runs as pages read them: reported rows, what was tried in tuning, and what was recorded."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from salun_core.experiments.runs.params import Params, parameter
from salun_core.experiments.runs.store import read_results
from salun_core.experiments.runs.table import read_table
from salun_core.experiments.runs.tuning import FREE, judged, with_distance
from salun_core.metrics.gaps import AVERAGE, METRICS, SPLIT, gaps
from salun_core.pages.markup import Code, Text
from salun_core.paths import output_folder, recorded_folder


def has_results(folder: Path, experiment: str) -> bool:
    """Whether an experiment was run into a folder."""
    return (folder / "results" / f"{experiment}.json").is_file()


def results_of(folder: Path, experiment: str, *, study: str | None = None) -> pd.DataFrame:
    """Reported rows of one experiment in a folder, with their average gap; empty where it was not run.

    Parameters
    ----------
    study : str, optional
        Only the rows of this part of the experiment, such as "masks" or "density" of "saliency".
    """
    if not has_results(folder, experiment):
        return pd.DataFrame()
    rows = read_table(folder, experiment)
    rows = rows[rows["reported"].astype(bool)].reset_index(drop=True)
    if set(METRICS) <= set(rows):
        for name in SPLIT:
            if name not in rows:
                rows[name] = None
        rows["gap"] = gaps(rows)[AVERAGE].to_numpy()
    return rows if study is None else of_study(rows, study)


def of_study(rows: pd.DataFrame, study: str) -> pd.DataFrame:
    """The rows of one part of an experiment; all of them where the experiment has no parts."""
    return rows[rows["study"] == study].reset_index(drop=True) if "study" in rows else rows


@dataclass(frozen=True)
class Run:
    """Results of one run of the experiments: what this machine computed last, or what was recorded under a name.

    Parameters
    ----------
    name : str
        "quick", or the name of the recorded run.
    read : callable
        Gives the reported rows of an experiment by its name; empty where it was not run.
    """

    name: str
    read: Callable[[str], pd.DataFrame]

    def rows(self, experiment: str, study: str | None = None) -> pd.DataFrame:
        """Reported rows of an experiment, or of one part of it."""
        rows = self.read(experiment)
        return rows if study is None or rows.empty else of_study(rows, study)


def all_runs(out_dir: Path | None = None) -> list[Run]:
    """The quick run and all recorded runs; ``out_dir`` is where quick results are, ``data/runs`` by default."""
    folders = [("quick", output_folder(out_dir)), *((folder.name, folder) for folder in recorded_runs())]
    # Many claims read the same tables.
    return [Run(name, cache(partial(results_of, folder))) for name, folder in folders]


# --- recorded runs ------------------------------------------------------------------------------------


def recorded_runs() -> list[Path]:
    """The folders of all recorded runs."""
    folder = recorded_folder()
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


class RecordedParams(Params):
    """Parameters of the chapter that shows a recorded run."""

    experiment: ClassVar[str] = "recorded"

    run_name: str = parameter("cifar10-cpu", "folder in data/recorded of the run whose methods are shown")
    masks_run: str = parameter("cifar10-cpu", "folder of the run whose masks and densities are compared")
    settings_run: str = parameter("cifar10-cpu", "folder of the run over shares and settings")
    half_run: str = parameter("cifar10-cpu-50", "folder of the run that forgets half of the images")
    class_run: str = parameter("cifar10-cpu-class", "folder of the run that forgets one class")
    diffusion_run: str = parameter("digits-frontier", "folder of the run that forgets a class of a DDPM")


class ReadingParams(Params):
    """Parameters of the chapters that read results of all runs and compute none."""

    experiment: ClassVar[str] = "reading"

    out_dir: Path | None = parameter(None, "where quick results are; data/runs of the project by default")


@dataclass(frozen=True)
class Recorded:
    """One experiment of a recorded run, which may not have been recorded yet.

    Parameters
    ----------
    run : str
        Name of the run: the preset that was recorded.
    experiment : str
        Name of the experiment.
    rows : DataFrame
        Its reported rows; empty where it was not recorded.
    tuning : DataFrame
        The settings that were tried, as `tune` gives them.
    settings : dict
        Its parameters.
    """

    run: str
    experiment: str
    rows: pd.DataFrame
    tuning: pd.DataFrame
    settings: dict[str, Any]

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    @property
    def cells(self) -> Path:
        """Where its cells lie."""
        return recorded_folder() / self.run / "cells"

    @property
    def scenarios(self) -> list[str]:
        """Its scenarios, in order."""
        return list(dict.fromkeys(self.rows["scenario"])) if self else []

    @property
    def absent(self) -> Text:
        """That it was not recorded, and the command that records it."""
        command = f"python -m salun_core record {self.experiment} {self.run}"
        return Text(("Nothing is recorded here yet. To record it: ", Code(command), "."))

    def study(self, name: str) -> pd.DataFrame:
        """Rows of one part of the experiment."""
        return of_study(self.rows, name)


def recorded(run: str, experiment: str) -> Recorded:
    """Read one experiment of a recorded run."""
    folder = recorded_folder() / run
    rows = results_of(folder, experiment)
    if rows.empty:
        return Recorded(run, experiment, rows, pd.DataFrame(), {})
    record = json.loads((folder / "results" / f"{experiment}.json").read_text("utf8"))
    every = read_table(folder, experiment)
    tried = every[~every["reported"].astype(bool)]
    tried = tried[tried["study"] == "tuning"] if "study" in tried else tried.iloc[:0]
    if len(tried):
        tried = judged(with_distance(tried.reset_index(drop=True)))
        tried = tried[~tried["method"].isin(FREE)].reset_index(drop=True)
    return Recorded(run, experiment, rows, tried, dict(record["params"]))


def recorded_agreement(folder: Path) -> pd.DataFrame:
    """Overlap of pairs of masks in a recorded run, from `mask_agreement`."""
    found = [result for result in read_results(folder / "cells") if result.key.kind == "agreement"]
    return pd.DataFrame([pair for result in found for pair in result.content["pairs"]])
