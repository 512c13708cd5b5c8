"""Stored samples of generative models, as the figures of a page need them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.experiments.generation.lab import GenerationLab, grid_samples, result_of
from salun_core.experiments.runs.store import read_result
from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.experiments.text_to_image.unsafe import UnsafeResults
from salun_core.methods import name_of
from salun_core.metrics.generation.detection import Redacted
from salun_core.models.diffusion.unet import load_diffusion, save_diffusion
from salun_core.models.text_to_image.pipelines import save_pipeline
from salun_core.pages.markup import Code, Text
from salun_core.pages.tooltips import origin_of

MiB = 2**20


def row_of(cells: pd.DataFrame, **wanted: str) -> pd.Series:
    """The first finished row with these values, such as ``method="original"``.

    Raises
    ------
    UserError
        If the run has none.
    """
    done = cells[cells["status"] == "done"]
    for name, value in wanted.items():
        done = done[done[name] == value]
    if done.empty:
        said = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise UserError(f"this run has no finished cell of {said}: add it to the parameters")
    return done.iloc[0]


def samples_by_name(
    lab: GenerationLab, cells: pd.DataFrame, names: Sequence[str] = ()
) -> dict[str, tuple[Tensor, Tensor]]:
    """Stored samples of the first seed and forgotten class, by the name of method and mask.

    Of a run that kept none, the first of each class.

    Parameters
    ----------
    names : sequence of str
        The names wanted, in order; all by default.
    """
    rows = _first(cells)
    if lab.keep_samples:
        found = {name: lab.samples(result_of(lab, row)) for name, row in rows.items()}
    else:
        found = recorded_samples(lab.store.folder, cells)
    return {name: found[name] for name in names if name in found} if names else found


def recorded_samples(folder: Path, cells: pd.DataFrame) -> dict[str, tuple[Tensor, Tensor]]:
    """The first samples of each recorded model, from the pictures that are committed with its cell.

    Raises
    ------
    UserError
        If a picture is missing or damaged.
    """
    found = {}
    for name, row in _first(cells).items():
        path = folder / f"{row['cell']}.grid.png"
        try:
            found[name] = grid_samples(path.read_bytes(), classes=len(row["classes"]))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; restore it from git") from error
    return found


def confusions_by_name(
    lab: GenerationLab, cells: pd.DataFrame, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Classes asked for against classes recognised, of the same rows as `samples_by_name`."""
    rows = _first(cells)
    return {
        name: lab.recognition(result_of(lab, rows[name])).counts for name in names or rows if name in rows
    }


def origins_by_name(cells: pd.DataFrame) -> dict[str, str]:
    """Where the samples of `samples_by_name` come from, in lines."""
    return {
        name: origin_of(row, f"UA {100 * row['UA']:.1f}%, other classes {100 * row['OA']:.1f}%")
        for name, row in _first(cells).items()
    }


def _first(cells: pd.DataFrame) -> dict[str, pd.Series]:
    done = cells[(cells["replica"] == 0) & (cells["status"] == "done")]
    first = done[(done["seed"] == done["seed"].iloc[0]) & (done["scenario"] == done["scenario"].iloc[0])]
    return {name_of(row["method"], row["mask"]): row for _, row in first.iterrows()}


def saved_model(model: nn.Module, schedule: Any, folder: Path) -> Text:
    """Save a diffusion model as a diffusers folder, read it again, and say how large it is."""
    save_diffusion(model, schedule, folder)
    again, _ = load_diffusion(folder)
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    equal = "equal" if all(torch.equal(a.cpu(), b) for a, b in pairs) else "not equal"
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return Text(f"{folder.name}: {size / MiB:.1f} MiB of weights; read again they are {equal}.")


def saved_pipeline(lab: TextLab, row: pd.Series, folder: Path | None = None) -> Text:
    """Write the unlearned pipeline of a row of the table as a diffusers folder, and say what it weighs.

    Parameters
    ----------
    lab : TextLab
        Where the row was computed.
    row : Series
        A row of its results.
    folder : path, optional
        Beside the store by default.
    """
    if not lab.keep_models:
        return Text(
            ("This run kept no weights (", Code("keep_models: false"), "), so there is no pipeline to write.")
        )
    result = result_of(lab, row)
    folder = save_pipeline(lab.pipe, lab.model(result), folder or lab.store.folder.parent / "unlearned")
    whole = sum(file.stat().st_size for file in (folder / "unet").glob("*.safetensors"))
    changed = lab.weights_file(result).stat().st_size
    return Text(
        f"The denoising network takes {whole / 2**20:.1f} MiB, what {name_of(row['method'], row['mask'])} changed of it "
        f"{changed / 2**20:.1f} MiB, {100 * changed / whole:.0f}%."
    )


def covered_by_name(results: UnsafeResults) -> dict[str, Redacted]:
    """Redacted images of the first seed and class, by the name of the model; others are not stored."""
    first = results.probes.iloc[0]
    mine = results.probes[
        (results.probes["seed"] == first["seed"]) & (results.probes["forgotten"] == first["forgotten"])
    ]
    found = {}
    for _, row in mine.drop_duplicates("probe_cell").iterrows():
        stored = read_result(results.lab.store.folder / f"{row['probe_cell']}.json")
        assert stored is not None
        found[name_of(row["method"], row["mask"])] = results.prober.covered(stored)
    return found
