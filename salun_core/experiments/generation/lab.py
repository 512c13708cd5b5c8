"""What labs of generative models share: stages of a cell, an independent judge, and real images to compare with."""

import io
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from salun_core.code_digest import code_digest
from salun_core.data.augment import augmentation
from salun_core.data.batches import Batch, Batches
from salun_core.data.images import ImageData
from salun_core.errors import Diverged, UserError
from salun_core.experiments.generation.judging import judged, real_images, reference_of
from salun_core.experiments.generation.params import Judging, Sampling
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.lab import Lab
from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.runs.provenance import fresh_clock
from salun_core.experiments.runs.store import Key, Result, Store, is_whole, read_result
from salun_core.files import sha256
from salun_core.metrics.generation.frechet import (
    INCEPTION,
    JUDGE,
    NAMES,
    Features,
    classifier_features,
    inception_features,
)
from salun_core.metrics.generation.outputs import GeneratedOutputs, Reference
from salun_core.metrics.generation.recognition import Recognition, recognise
from salun_core.metrics.share import wilson
from salun_core.models import build_model, modules_of
from salun_core.models.text_to_image.deltas import weights_digest
from salun_core.networks import weight_bytes
from salun_core.tasks.classification_training import train_network

KEEPING = {"models": "weights", "samples": "samples"}
"""What is not kept where a parameter ``keep_…`` is false."""
STREAMS = 1_000_000  # noise streams of one class, so that a larger sample contains the smaller
JUDGE_SEED = 0
JUDGING = "salun_core.experiments.generation.judging"
LABS = ("salun_core.experiments.runs.lab", "salun_core.experiments.generation.lab")
OUTPUTS, SAMPLES, MODEL = ".outputs.safetensors", ".samples.safetensors", ".model.safetensors"


class NotKept(UserError):
    """What a run does not keep, or was told not to keep."""


@dataclass
class GenerationLab(Lab):
    """Base of the labs that unlearn generative models; one that derives from it draws the samples.

    A cell has three stages, each stored when it is done: the unlearned model, its samples, and what the
    judge says of them. What fails later loses nothing of what was computed before.

    Parameters
    ----------
    data : ImageData
        Real images, on the CPU.
    store : Store
        Where results lie.
    judging, sampling
        By whom models are measured, and how.
    device : torch.device
        Where networks and images lie.
    """

    data: ImageData
    store: Store
    judging: Judging
    sampling: Sampling
    device: torch.device

    kind = ""  # of the task
    keep_models = True  # after their samples have been judged
    keep_samples = True  # after they have been judged; the grid of the first ones always stays

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of prompts, in the order in which images are drawn for them."""
        return ("direct",)

    @property
    def classes(self) -> int:
        """K."""
        return len(self.data.classes)

    @property
    def judged(self) -> int:
        """Classes that the judge tells apart: K, or more."""
        return self.classes

    def drawn(self, model: nn.Module, forgotten: Sequence[int], pieces: Pieces) -> tuple[Tensor, Tensor]:
        """The samples a model is measured by, uint8 (n, C, H, W), and the class each was asked for (n,).

        Image i of a class has the same noise for every model. ``pieces`` keeps batches until all are drawn.
        """
        raise NotImplementedError

    def unlearned_key(self, cell: Cell) -> Key:
        """Identity of the cell's model."""
        raise NotImplementedError

    def samples_key(self, cell: Cell) -> Key:
        """Identity of its samples."""
        raise NotImplementedError

    def finished(self, model: nn.Module) -> nn.Module:
        """An unlearned model as it is measured and stored."""
        return model

    def weights(self, model: nn.Module, digest: str) -> bytes:
        """An unlearned model, whose digest is known, as the content of a safetensors file."""
        return weight_bytes(model)

    def model(self, result: Result) -> nn.Module:
        """The unlearned model behind a result."""
        net = self.build(0)
        net.load_state_dict(load_file(self.weights_file(result)))
        return net.eval()

    def shown(self, images: Tensor) -> Tensor:
        """Samples as they may be shown in a picture."""
        return images

    def further(self, images: Tensor, labels: Tensor, forgotten: Sequence[int]) -> dict[str, Tensor]:
        """Further values of each image of the other classes."""
        return {}

    def beside(self, cell: Cell, model: Result) -> dict[str, Tensor]:
        """Values of what else a model draws, besides the samples of the classes."""
        return {}

    def spent_before(self) -> float:
        """Seconds that interrupted runs have spent on the training that was just finished."""
        return 0.0

    @property
    def about(self) -> dict[str, Any]:
        """What network it is, for the results table."""
        raise NotImplementedError

    def prepare(self, seed: int, scenario: Scenario) -> None:
        """Make what the cells of a seed and scenario share: the trained model, the judge, moments of real images."""
        super().prepare(seed, scenario)
        assert self.judge_accuracy is not None
        self._reference(scenario.numbers)

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        samples = self.samples_key(cell)
        features = self.judging.inception
        what: dict[str, Any] = {"samples": dict(samples.what), "judge": dict(self.judge_key.what)}
        what |= {"judging": {"reference": self.judging.reference}, "classes": list(self.data.classes)}
        what["features"] = sha256(features) if features is not None else "judge"
        code = f"{samples.code} {self.judge_key.code} {code_digest(JUDGING, alone=LABS)}"
        return Key("cell", {**cell.what, **what}, code)

    def computed(self, cell: Cell, key: Key) -> Result:
        """Run the stages of the cell that are not stored yet."""
        forgotten = cell.scenario.numbers
        model = self._unlearned(cell)
        values: dict[str, Any] = {
            "about": self.about
            | {
                "kind": self.kind,
                "dataset": self.data.name,
                "forgotten": ", ".join(self.data.classes[number] for number in forgotten),
                "classes": list(self.data.classes),
                "n_class": self.sampling.samples,
                "n_other": self.sampling.others,
                "judge": self.judge_accuracy,
            },
            "unlearned": model.key.name,
            **model.content,
        }
        if model.content["status"] == "diverged":
            return self.store.put(key, values, self.provenance())
        samples = self._samples(cell, model)
        images, labels = self._read_samples(samples.key.name, key.name)
        reference = self._reference(forgotten)
        features, _ = self.features
        found = judged(
            self.classifier,
            images,
            labels,
            kinds=self.kinds,
            classes=self.judged,
            forgotten=forgotten,
            features=features,
            reference=reference[0],
        )
        extra = self.further(images, labels, forgotten) | self.beside(cell, model)
        found = replace(found, extra=extra)
        values |= {"samples_cell": samples.key.name, "sampling_seconds": samples.content["seconds"]}
        files = {OUTPUTS: found.to_bytes(reference[1])}
        files[".grid.png"] = grid_png(self.shown(images), labels)
        result = self.store.put(key, values, self.provenance(), files)
        if not self.keep_models:
            self.store.path(model.key, MODEL).unlink(missing_ok=True)
        if not self.keep_samples:
            self.store.path(samples.key, SAMPLES).unlink(missing_ok=True)
        return result

    def _unlearned(self, cell: Cell) -> Result:
        key = self.unlearned_key(cell)
        found = self.store.get(key)
        if found is not None and (self.store.has_files(found) or found.content["status"] == "diverged"):
            return found
        task: Any = self.task(cell.seed, cell.scenario)
        values: dict[str, Any] = {"status": "done", "mask_seconds": None}
        values["counts"] = {role: batches.n for role, batches in task.parts.items()}
        fresh_clock(self.device)
        try:
            model, _ = self.unlearned(cell, values)
        except Diverged as error:
            return self.store.put(key, values | {"status": "diverged", "why": str(error)}, self.provenance())
        if "seconds" in values:  # unknown of a network that was unlearned elsewhere
            values["seconds"] += self.spent_before()
        model = self.finished(model)
        digest = values["weights_digest"] = weights_digest(model)
        result = self.store.put(key, values, self.provenance(), {MODEL: self.weights(model, digest)})
        self.unlearned_stored()
        return result

    def unlearned_stored(self) -> None:
        """Called when an unlearned model has been stored."""

    def _samples(self, cell: Cell, model: Result) -> Result:
        key = self.samples_key(cell)
        found = self.store.get(key)
        if found is not None and self.store.has_files(found):
            return found
        start = time.perf_counter()
        net = self._model(model.key.name).to(self.device)
        with self.pieces(key) as pieces:
            images, labels = self.drawn(net, cell.scenario.numbers, pieces)
            values = {"seconds": pieces.before + self.since(start)}
            content = save({"images": images.contiguous(), "labels": labels})
            return self.store.put(key, values, self.provenance(), {SAMPLES: content})

    def pieces(self, key: Key) -> AbstractContextManager[Pieces]:
        """Where a drawing keeps its batches until it is stored."""
        return self.store.pieces(key, batch=self.sampling.sample_batch)

    def _reference(self, forgotten: Sequence[int]) -> tuple[Reference, str]:
        """Moments of real images, computed once for all cells of a class, and the file they are in."""
        features, name = self.features
        weights = self.judging.inception
        what: dict[str, Any] = {**self._images, "forgotten": list(forgotten), "samples": self.sampling.others}
        what |= {"judge": dict(self.judge_key.what), "reference": self.judging.reference}
        what["features"] = sha256(weights) if weights is not None else "judge"
        key = Key("reference", what, f"{self.judge_key.code} {code_digest(JUDGING, alone=LABS)}")
        file = f"{key.name}{OUTPUTS}"
        found = self.store.get(key)
        if found is None:
            made = reference_of(
                self.data,
                forgotten,
                features,
                name=name,
                most=self.judging.reference,
                generated=(self.classes - len(forgotten)) * self.sampling.others,
            )
            self.store.put(key, {"name": name}, self.provenance(), {OUTPUTS: made.to_bytes()})
        return Reference.load(self.store.folder / file), file

    def outputs(self, result: Result) -> GeneratedOutputs:
        """The stored outputs behind a result."""
        assert result.outputs is not None
        return GeneratedOutputs.load(self.store.file(result, result.outputs))

    def samples(self, result: Result) -> tuple[Tensor, Tensor]:
        """The stored samples behind a result, and their classes."""
        return self._read_samples(result.content["samples_cell"], result.key.name)

    def _read_samples(self, name: str, cell: str) -> tuple[Tensor, Tensor]:
        found = load_file(self._kept(name, SAMPLES, "samples", cell))
        return found["images"], found["labels"]

    def weights_file(self, result: Result) -> Path:
        """Where the weights behind a result lie.

        Raises
        ------
        NotKept
            If they were not kept.
        UserError
            If they are damaged, or another model's.
        """
        return self._kept(result.content["unlearned"], MODEL, "models", result.key.name)

    def _kept(self, name: str, suffix: str, what: str, cell: str) -> Path:
        """A file of an earlier stage of a cell, the one that this stage was stored with."""
        path = self.store.folder / f"{name}{suffix}"
        if not path.is_file():
            raise NotKept(
                f"{path} is not here: recorded runs and runs with keep_{what}: false keep no {KEEPING[what]}; run the "
                f"cell again, with keep_{what}: true and another out_dir"
            )
        stage = self.stage(name)
        if stage is None or not is_whole(path, stage.files.get(path.name, "")):
            raise UserError(
                f"{path} is damaged, or is not what {name} was stored with: delete it and {cell}.json, and run the "
                "experiment again (other cells are kept)"
            )
        return path

    def stage(self, name: str) -> Result | None:
        """The stored result of an earlier stage of a cell; None if it is missing or damaged."""
        found = read_result(self.store.folder / f"{name}.json")
        return found if found is not None and found.key.name == name else None

    def _model(self, name: str) -> nn.Module:
        made = Result(Key("unlearned", {}), {"unlearned": name}, {})
        return self.model(made)

    def recognition(self, result: Result, kind: str = "") -> Recognition:
        """Classes asked for against classes recognised, by one kind of prompt."""
        return self.outputs(result).recognition(kind)

    @cached_property
    def classifier(self) -> nn.Module:
        """The judge: trained on all real training images, whatever is forgotten."""
        key = self.judge_key
        with self.store.alone(key):
            found = self.store.get(key)
            if found is None or not self.store.has_files(found):
                found = self._trained_judge(key)
        # What is stored, also when it was trained just now: another machine may have been first.
        net = self._new_judge()
        net.load_state_dict(load(self.store.read(found, f"{key.name}{MODEL}")))
        return net.eval()

    def _new_judge(self) -> nn.Module:
        judging = self.judging
        mean, std = self.data.moments
        net = build_model(
            judging.judge,
            classes=self.classes,
            channels=self.data.images.shape[1],
            size=self.data.images.shape[-1],
            seed=JUDGE_SEED,
            width=judging.width,
            mean=mean,
            std=std,
        )
        return net.to(self.device).to(memory_format=torch.channels_last)

    def _trained_judge(self, key: Key) -> Result:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        batches = replace(self._judge_batches(), augment=augmentation(self.data))
        start = time.perf_counter()
        net, _ = train_network(self._new_judge(), batches, loss, recipe=self.judging.recipe, seed=JUDGE_SEED)
        images, labels = self.data.images[self.data.n_train :], self.data.labels[self.data.n_train :]
        seen = recognise(net, images, labels, classes=self.classes)
        values = {
            "seconds": self.since(start),
            "accuracy": float(wilson(int(seen.counts.diagonal().sum()), n=len(labels))),
            "n": len(labels),
            "confusion": seen.counts.tolist(),
        }
        return self.store.put(key, values, self.provenance(), {MODEL: weight_bytes(net)})

    @cached_property
    def judge_accuracy(self) -> float:
        """Share of real test images that the judge recognises."""
        found = self.store.get(self.judge_key)
        if found is None:
            assert self.classifier is not None
            found = self.store.get(self.judge_key)
        assert found is not None
        return float(found.content["accuracy"])

    @cached_property
    def features(self) -> tuple[Features, str]:
        """What the Fréchet distance is measured in, and its name."""
        weights = self.judging.inception
        if weights is None:
            return classifier_features(self.classifier), NAMES[JUDGE]
        return inception_features(weights, device=self.device), NAMES[INCEPTION]

    def real(self, forgotten: Sequence[int], *, train: bool) -> Tensor:
        """Real images of the other classes, a balanced draw."""
        return real_images(self.data, forgotten, train=train, most=self.judging.reference)

    def _judge_batches(self) -> Batches:
        return self.data.batches(torch.arange(self.data.n_train), device=self.device)

    @cached_property
    def judge_key(self) -> Key:
        """Identity of the judge."""
        judging = self.judging
        recipe = listed(asdict(judging.recipe))
        what = {**self._images, "arch": judging.judge, "width": judging.width, "recipe": recipe}
        modules = ("salun_core.data.augment", "salun_core.models.build", train_network.__module__)
        code = code_digest(*modules, *modules_of(judging.judge), alone=LABS)
        return Key("judge", what | {"augmentation": [self.data.flip, self.data.pad]}, code)

    @property
    def _images(self) -> dict[str, Any]:
        return {"data": self.data.digest, "size": list(self.data.images.shape[1:]), "flip": self.data.flip}


def result_of(lab: GenerationLab, row: pd.Series) -> Result:
    """The stored result behind a row of the table.

    Raises
    ------
    UserError
        If it is gone or damaged.
    """
    found = read_result(lab.store.folder / f"{row['cell']}.json")
    if found is None:
        raise UserError(f"{row['cell']} is not in {lab.store.folder}: run the experiment again")
    return found


def scenario_of(lab: GenerationLab, row: pd.Series) -> Scenario:
    """What the model behind a row of the table has forgotten."""
    return Scenario.from_what(result_of(lab, row).key.what["scenario"])


def grid_png(images: Tensor, labels: Tensor, *, rows: int = 6) -> bytes:
    """The first samples of each class as a PNG: a column for each class, a row for each noise that all of them have."""
    from PIL import Image

    rows = min(rows, *labels.unique(return_counts=True)[1].tolist())
    columns = [images[labels == c][:rows] for c in labels.unique().tolist()]
    framed = [F.pad(column, (1, 1, 1, 1), value=255) for column in columns]
    sheet = torch.cat([torch.cat(list(column), dim=1) for column in framed], dim=2)  # (C, rows H, K W)
    pixels = sheet.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def grid_samples(png: bytes, *, classes: int) -> tuple[Tensor, Tensor]:
    """The samples in what `grid_png` made: uint8 (n, C, H, W), and the class of each (n,).

    Raises
    ------
    UserError
        If it is no such picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        sheet = torch.from_numpy(np.array(Image.open(io.BytesIO(png))))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError("a grid of samples is damaged: restore it from git") from error
    sheet = sheet[:, :, None] if sheet.ndim == 2 else sheet
    side = sheet.shape[1] // classes
    if not side or sheet.shape[1] % side or sheet.shape[0] % side:
        raise UserError(
            f"a grid of {tuple(sheet.shape[:2])} pixels does not hold samples of {classes} classes"
        )
    tiles = sheet.unfold(0, side, side).unfold(1, side, side)[..., 1:-1, 1:-1]  # (rows, K, C, H, W)
    labels = torch.arange(classes).repeat(tiles.shape[0])
    order = labels.argsort(stable=True)
    return tiles.flatten(0, 1)[order], labels[order]


def listed(values: dict[str, Any]) -> dict[str, Any]:
    """The same values with tuples as lists, as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
