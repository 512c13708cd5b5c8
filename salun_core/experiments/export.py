"""A cell as files to share: weights or what changed in them, the mask, the metrics, and a model card."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import nn

from salun_core.data.images import ImageData
from salun_core.errors import UserError
from salun_core.escaping import markdown_text
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.diffusion.lab import DiffusionLab
from salun_core.experiments.generation.lab import NotKept
from salun_core.experiments.runs.cells import Cell
from salun_core.experiments.runs.store import Result, read_result
from salun_core.experiments.runs.table import read_list, read_table, records
from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.experiments.text_to_image.unlearned_elsewhere import METHOD as ELSEWHERE
from salun_core.files import listed, read_json, write_whole
from salun_core.methods import METHODS, name_of
from salun_core.metrics import KINDS
from salun_core.metrics.classification.outputs import evaluate
from salun_core.metrics.gaps import AVERAGE, METRICS, gaps
from salun_core.models.classification.checkpoints import Checkpoint
from salun_core.models.classification.normalised import Normalised
from salun_core.models.diffusion.unet import save_diffusion
from salun_core.models.text_to_image.deltas import delta_bytes, weights_digest
from salun_core.models.text_to_image.pipelines import save_pipeline
from salun_core.networks import weight_bytes, without_bars
from salun_core.paths import expanded
from salun_core.saliency import Mask, density, save_mask

WEIGHTS, CHANGED, MASK = "model.safetensors", "changed.safetensors", "mask.safetensors"
AGAIN = "computed again for this export"
PREPROCESSOR = "preprocessor_config.json"
COUNTED = (
    "UA",
    "RA",
    "TA",
)  # do not depend on a draw, so that a model computed again can be compared by them

TASKS = {
    "classification": ("image-classification", "pytorch"),
    "diffusion": ("unconditional-image-generation", "diffusers"),
    "text_to_image": ("text-to-image", "diffusers"),
}
"""The Hub's name of each kind of task, and the library that reads its weights."""

LIMITS = """\
* Approximate unlearning: nothing here proves that what was to be forgotten is gone. It is judged by the numbers above, and
  an attack that they do not contain may still find it.
* One model, of one split and one seed. The spread over seeds is in the tables that it comes from, not here.
* {kind}
* Made to study unlearning methods at the size that is stated, not to be put to use."""

OF_KIND = {
    "classification": "The gap to a model retrained without the forget set is the measure; a high UA alone means little.",
    "diffusion": "Images were judged by a classifier that is itself wrong at times, and by a distance over a limited sample.",
    "text_to_image": "Other words, searched prompts and further training can bring a concept back; see the experiment on "
    "unsafe content. The licence of the pipeline that was unlearned applies.",
}


@dataclass(frozen=True)
class Found:
    """A stored cell and what is needed to obtain its model."""

    cell: Cell
    result: Result
    row: dict[str, Any]
    lab: Any
    experiment: str

    @property
    def kind(self) -> str:
        """Of its task."""
        return str(self.result.content["about"]["kind"])

    @property
    def transformer(self) -> Checkpoint | None:
        """The model of transformers that the run began with; None for any other network."""
        brought = self.lab.problem.pretrained if isinstance(self.lab, ClassifierLab) else None
        return brought if brought is not None and brought.transformer is not None else None


def export(
    name: str,
    folder: Path,
    *,
    out_dir: Path,
    changed_only: bool = False,
    data_dir: Path | None = None,
    data: ImageData | None = None,
) -> list[Path]:
    """Write a cell's model as files that others can use.

    A classifier's weights are not stored with a run: its cell is computed again, and what comes out is compared with
    what is stored. Generators' weights are read from the run, or computed again where they were not kept. What was a
    model of transformers before is one again.

    Parameters
    ----------
    name : str
        Of the cell, as in the column ``cell`` of a results table; its first letters are enough.
    folder : Path
        Written to: ``README.md`` (a model card), ``metrics.json``, ``provenance.json``, ``mask.safetensors`` if there
        is a mask, and the weights.
    out_dir : Path
        Output folder of the run.
    changed_only : bool
        Write only what changed against the original model, see `models.text_to_image.deltas.load_delta`.
    data_dir : Path, optional
        Where the data lie, if not where they are looked for by default; a run does not write it down.
    data : ImageData, optional
        The images, for a run that was given its own from Python.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UserError
        If there is no such cell, it diverged, what it was computed from is not here any more, or the folder holds
        another cell's files.
    """
    found = _found(name, out_dir, data_dir, data)
    _check_folder(folder, found)
    model, mask, note = _model(found)
    check = _verified(found, model, note)
    model = _by_its_own_names(found, model)
    digest = weights_digest(model)
    if changed_only:
        original = _by_its_own_names(found, found.lab.task(found.cell.seed, found.cell.scenario).model)
        content = delta_bytes(model, original, note={"cell": found.result.key.name}, result=digest)
        written = [write_whole(folder / CHANGED, content)]
    else:
        written = WRITERS[found.kind](found, model, folder)
    if isinstance(mask, dict):
        if found.transformer is not None:
            mask = {name.removeprefix("net."): marked for name, marked in mask.items()}
        about = {
            "cell": found.result.key.name,
            "keep": str(found.cell.mask.keep),
            "score": found.cell.mask.score,
        }
        written.append(save_mask(mask, folder / MASK, note=about))
    (row,) = records(pd.DataFrame([_metrics(found)]))
    record = {
        "key": found.result.key.what,
        "code": found.result.key.code,
        "computed": found.result.provenance,
    }
    record |= {
        "exported": found.lab.provenance(),
        "note": note,
        "check": check,
        "weights": digest,
    }
    for file, content_of in (("metrics.json", row), ("provenance.json", record)):
        text = json.dumps(content_of, indent=1, ensure_ascii=False, allow_nan=False)
        written.append(write_whole(folder / file, text.encode()))
    card = model_card(found, row, record, mask if isinstance(mask, dict) else None, changed_only=changed_only)
    written.append(write_whole(folder / "README.md", card.encode()))
    for path in written:
        path.chmod(0o644)  # safetensors lets nobody but the owner read what it writes
    return list(dict.fromkeys(written))


def model_card(
    found: Found, row: Mapping[str, Any], record: Mapping[str, Any], mask: Mask | None, *, changed_only: bool
) -> str:
    """The card in the Hub's format: YAML for machines, then what a reader should know."""
    about, cell, kind = found.result.content["about"], found.cell, found.kind
    task, library = TASKS[kind]
    if found.transformer is not None:
        library = "transformers"
    label = name_of(cell.method, cell.mask.kind)
    title = f"{label}: {row['scenario']} of {about['dataset']} forgotten"
    measured = {n: v for n, v in row.items() if n in KINDS[kind].metrics and isinstance(v, int | float)}
    results = {
        "task": {"type": task},
        "dataset": {"type": about["dataset"], "name": about["dataset"]},
        "metrics": [{"type": n, "name": n, "value": value} for n, value in measured.items()],
    }
    head = {
        "library_name": library,
        "pipeline_tag": task,
        "tags": list(dict.fromkeys(["machine-unlearning", "salun", cell.method])),
        "model-index": [{"name": title, "results": [results]}],
    }
    origin = record["computed"]
    settings = ", ".join(f"{n} = {v}" for n, v in cell.all_settings.items()) or "none"
    masked = "none"
    if mask is not None:
        masked = f"{cell.mask.kind.replace('_', ' ')}, {100 * density(mask):.1f}% of the weights may change (`{MASK}`)"
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {markdown_text(title)}",
        "",
        f"The network `{about['arch']}` ({task.replace('-', ' ')}) after machine unlearning, made with salun_core "
        f"{origin['salun_core']}, an executable companion to [SalUn](https://arxiv.org/abs/2310.12508).",
        "",
        "## What was done",
        "",
        f"* method: {markdown_text(label)} (`{cell.method}`), {markdown_text(METHODS[cell.method].source or 'source not stated')}",
        f"* forgotten: {markdown_text(row['scenario'])}",
        f"* mask: {masked}",
        f"* settings: {markdown_text(settings)}",
        f"* seeds: split and training {cell.seed}, unlearning {cell.unlearning_seed}",
        "",
        "## To load it",
        "",
        "```python",
        _loading(found, changed_only),
        "```",
        "",
        "## Results",
        "",
        "| metric | value | gap to Retrain |",
        "| --- | --- | --- |",
        *(f"| {n} | {v:.4f} | {_number(row.get(f'gap {n}'))} |" for n, v in measured.items()),
        "",
        "Shares lie in [0, 1]. " + str(record["check"]),
        "",
        "## Limits",
        "",
        LIMITS.format(kind=OF_KIND[kind]),
        "",
        "## Provenance",
        "",
        f"* cell `{found.result.key.name}` of the experiment `{found.experiment}`; its whole key is in `provenance.json`",
        f"* code `{origin['revision']}`, computed {origin['finished']} on {origin['device']}, "
        + ", ".join(f"{n} {v}" for n, v in origin["libraries"].items()),
        f"* data: {markdown_text(about['dataset'])}; {markdown_text(origin.get('data_note') or 'no note')}",
        f"* {record['note']}",
        f"* SHA-256 of the weights: `{record['weights']}`",
        "",
    ]
    return "\n".join(lines)


def _found(name: str, out_dir: Path, data_dir: Path | None, data: ImageData | None) -> Found:
    stored = listed(out_dir / "cells", "cell-*.json")
    named = [path for path in stored if name.startswith("cell-") and path.name.startswith(name)]
    if len(named) != 1:
        raise UserError(
            f"{len(named) or 'no'} cells in {out_dir / 'cells'} begin with {name!r}: give a name from the column "
            "cell of `python -m salun_core results EXPERIMENT --format csv`"
        )
    result = read_result(named[0])
    if result is None:
        raise UserError(f"{named[0]} is damaged: run the experiment again")
    if result.content["status"] != "done":
        raise UserError(f"{result.key.name} diverged: there is no model to export")
    if result.key.what["method"] == ELSEWHERE:
        raise UserError(
            f"{result.key.name} is a network that others have unlearned (`unlearned`): take the files that it was read from"
        )
    for path in listed(out_dir / "results", "*.json"):
        record = read_list(path) if path.stem in EXPERIMENTS else None  # others are copies that a user made
        if record and any(entry["cell"] == result.key.name for entry in record["rows"]):
            break
    else:
        raise UserError(f"no run in {out_dir / 'results'} lists {result.key.name}: run its experiment again")
    experiment = path.stem
    given = {**record["params"], "out_dir": out_dir} | ({"data_dir": data_dir} if data_dir else {})
    params: Any = EXPERIMENTS[experiment].params.restored(given)
    lab = params.lab(data=data)
    cell = Cell.from_what(result.key.what)
    if (key := lab.key(cell)).name != result.key.name:
        what = sorted(n for n in key.what if key.what[n] != result.key.what.get(n))
        raise UserError(
            f"{result.key.name} was computed from other things than those here ({', '.join(what)} differ): give "
            "--data-dir and the files of that run"
        )
    rows = read_table(out_dir, experiment)
    if set(METRICS) <= set(rows):
        rows = gaps(rows[rows["reported"]])
    mine = rows[rows["cell"] == result.key.name]
    if mine.empty:
        raise UserError(f"{result.key.name} was only used to choose settings: export a reported cell")
    return Found(cell, result, mine.iloc[0].to_dict(), lab, experiment)


def _check_folder(folder: Path, found: Found) -> None:
    """Refuse a folder with the export of another cell, whose mask or weights would be taken for this one's."""
    before = read_json(folder / "provenance.json")
    if before is not None and not (isinstance(before, dict) and before.get("key") == found.result.key.what):
        raise UserError(
            f"{folder} holds the export of another cell than {found.result.key.name}: name another folder, or delete it"
        )


def _model(found: Found) -> tuple[nn.Module, Any, str]:
    """Model, mask, and where the model comes from."""
    lab, cell = found.lab, found.cell
    if not isinstance(lab, ClassifierLab):
        try:
            model = lab.model(found.result)
        except UserError as error:
            why = (
                "the run kept no weights" if isinstance(error, NotKept) else "the weights it kept are damaged"
            )
            model, mask = lab.unlearned(cell, {})
            return lab.finished(model), mask, f"{AGAIN}: {why}"
        return model, lab.mask(cell.seed, cell.scenario, cell.mask)[0], "read from the run"
    model, mask = lab.unlearned(cell, {})
    return model, mask, f"{AGAIN}: runs of classifiers keep outputs, not weights"


def _verified(found: Found, model: nn.Module, note: str) -> str:
    """Whether a model computed again is the one whose outputs are stored."""
    if not isinstance(found.lab, ClassifierLab):
        if not note.startswith(AGAIN):
            return "They were measured on this model's samples when the cell was computed."
        measured = found.result.content.get("weights_digest")
        if measured == weights_digest(model):
            return "These weights are those that were measured when the cell was computed, to the last bit."
        known = "are not, bit by bit, those" if measured else "may differ in their last digits from those"
        return f"These weights were computed again and {known} that were measured."
    task = found.lab.task(found.cell.seed, found.cell.scenario)
    again = evaluate(model, task.parts)
    metrics = KINDS["classification"].metrics
    values = {name: float(metrics[name](again)) for name in COUNTED}
    if all(values[n] == found.row[n] for n in COUNTED):
        return "UA, RA and TA of these weights are those of the stored cell, to the last digit."
    said = ", ".join(f"{n} {value:.4f}" for n, value in values.items())
    return f"These weights were computed on another machine or by other code and have {said}."


def _metrics(found: Found) -> dict[str, Any]:
    names = [*KINDS[found.kind].metrics, *(n for n in found.row if str(n).startswith("gap ")), AVERAGE]
    wanted = ["scenario", "method", "mask", "keep", "seed", "unlearning_seed", "cell", *names]
    wanted += [n for n in found.row if str(n).startswith("n_")]
    return {name: found.row[name] for name in wanted if name in found.row}


def _by_its_own_names(found: Found, model: nn.Module) -> nn.Module:
    """The network inside the layer that normalises, where transformers reads it and knows the normalisation."""
    return model.net if found.transformer is not None and isinstance(model, Normalised) else model


def _classifier(found: Found, model: nn.Module, folder: Path) -> list[Path]:
    lab: ClassifierLab = found.lab
    if found.transformer is not None:
        return _transformer(found.transformer, model, folder)
    mean, std = lab.data.moments
    config = {
        "arch": lab.problem.arch,
        "width": lab.problem.width,
        "classes": list(lab.data.classes),
        "channels": lab.data.images.shape[1],
        "size": lab.data.images.shape[-1],
        "mean": list(mean),
        "std": list(std),
    }
    return [
        write_whole(folder / WEIGHTS, weight_bytes(model, note={"format": "pt"})),
        write_whole(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False).encode()),
    ]


def _transformer(brought: Checkpoint, model: Any, folder: Path) -> list[Path]:
    from transformers.utils import logging

    with without_bars(logging):
        model.save_pretrained(folder)
    said = brought.path / PREPROCESSOR
    more = [write_whole(folder / PREPROCESSOR, said.read_bytes())] if said.is_file() else []
    return [folder / WEIGHTS, folder / "config.json", *more]


def _diffusion(found: Found, model: nn.Module, folder: Path) -> list[Path]:
    lab: DiffusionLab = found.lab
    save_diffusion(model, lab.schedule, folder)
    return sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))


def _pipeline(found: Found, model: nn.Module, folder: Path) -> list[Path]:
    lab: TextLab = found.lab
    save_pipeline(lab.pipe, model.to(torch.device("cpu")), folder)
    return sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))


WRITERS: dict[str, Callable[[Found, nn.Module, Path], list[Path]]] = {
    "classification": _classifier,
    "diffusion": _diffusion,
    "text_to_image": _pipeline,
}
"""How the weights of each kind of task are written."""


def _loading(found: Found, changed_only: bool) -> str:
    if found.transformer is not None:
        return _loading_transformer(found.transformer, changed_only)
    if changed_only:
        return (
            "from salun_core.models.text_to_image.deltas import load_delta\n\n"
            f'model = load_delta("{CHANGED}", original)  # the network that it was unlearned from'
        )
    if found.kind == "classification":
        return (
            "import json\n\n"
            "from safetensors.torch import load_file\n\n"
            "from salun_core.models import build_model\n\n"
            'config = json.load(open("config.json"))\n'
            'config["classes"] = len(config["classes"])\n'
            "model = build_model(**config, seed=0)\n"
            f'model.load_state_dict(load_file("{WEIGHTS}"))\n'
            "model.eval()  # images in [0, 1] (N, C, H, W) to logits (N, K)"
        )
    if found.kind == "diffusion":
        return (
            "from salun_core.models.diffusion.unet import load_diffusion\n\n"
            'unet, scheduler = load_diffusion(".")  # conditioned on a class, the last one is "none"'
        )
    return 'from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained(".")'


def _loading_transformer(brought: Checkpoint, changed_only: bool) -> str:
    said = (brought.path / PREPROCESSOR).is_file()
    takes = f"pixel_values as {PREPROCESSOR} says" if said else "pixel_values in [0, 1], not normalised"
    read = "AutoModelForImageClassification.from_pretrained"
    if not changed_only:
        return (
            "from transformers import AutoModelForImageClassification\n\n"
            f'model = {read}(".").eval()  # takes {takes}'
        )
    where = brought.source if not expanded(brought.source).exists() else "FOLDER"
    return (
        "from transformers import AutoModelForImageClassification\n\n"
        "from salun_core.models.text_to_image.deltas import load_delta\n\n"
        f'original = {read}("{where}")  # the network that it was unlearned from\n'
        f'model = load_delta("{CHANGED}", original).eval()  # takes {takes}'
    )


def _number(value: Any) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"
