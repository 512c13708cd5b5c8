"""What labs of generative models share: runs of cells, an independent judge, and distances to real images."""

import io
import time
from collections.abc import Callable
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

from salun_core.data.augment import augmentation
from salun_core.data.batches import Batch, Batches
from salun_core.data.images import ImageData
from salun_core.errors import Diverged, UserError
from salun_core.experiments.runs.cells import Cell, Scenario, cell_row
from salun_core.experiments.runs.code_digest import code_digest
from salun_core.experiments.runs.lab import MaskingLab, check_finite, thinned
from salun_core.experiments.runs.provenance import fresh_clock, peak_memory
from salun_core.experiments.runs.store import Key, Result, Store, read_result
from salun_core.methods import METHODS
from salun_core.metrics.generation.frechet import (
    INCEPTION,
    JUDGE,
    NAMES,
    Features,
    classifier_features,
    frechet,
    inception_features,
)
from salun_core.metrics.generation.recognition import Recognition, recognise
from salun_core.metrics.share import wilson
from salun_core.models import build_model, module_of
from salun_core.rng import generator
from salun_core.saliency import density, layer_table
from salun_core.tasks.base import Task
from salun_core.tasks.classification_training import Recipe, train_network

STREAMS = 1_000_000  # noise streams of one class, so that a larger sample contains the smaller
JUDGE_SEED = 0


@dataclass(frozen=True)
class Sampling:
    """How models are measured: ``samples`` images of each class, see ``models.sampling.sample``."""

    samples: int = 100
    guidance: float = 2.0
    steps: int = 50
    eta: float = 0.0
    batch_size: int = 500
    reference: int = 5000  # real images that a Fréchet distance is measured to, at most
    sampler: str = "ddim"


@dataclass(frozen=True)
class Judge:
    """The independent classifier: see ``models.build_model`` and ``tasks.training``."""

    arch: str
    width: int | None
    recipe: Recipe


class GenerationLab(MaskingLab):
    """Base of the labs that unlearn generative models; one that derives from it draws the samples.

    Its fields ``data, store, judge, sampling, inception, device, experiment, source`` are those of the labs.
    """

    data: ImageData
    store: Store
    judge: Judge
    sampling: Sampling
    inception: Path | None
    device: torch.device
    experiment: str
    source: str
    covering: Callable[[Tensor], Tensor] | None = None  # applied before a picture of samples is written

    @property
    def classes(self) -> int:
        """K."""
        return len(self.data.classes)

    @property
    def judged(self) -> int:
        """Classes that the judge tells apart: K, or more."""
        return self.classes

    def run(self, cell: Cell) -> Result:
        """The cell's result, from the store or computed now."""
        key = self.key(cell)
        found = self.store.get(key)
        if found is None:
            with self.store.alone(key):
                found = self.store.get(key) or self._computed(cell, key)
        return found

    def finished(self, model: nn.Module) -> nn.Module:
        """An unlearned model as it is measured and stored."""
        return model

    def weights(self, model: nn.Module, task: Task) -> bytes | None:
        """An unlearned model as the content of a safetensors file; None where none is to be kept."""
        return packed(model)

    def drawn(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The samples a model is measured by, uint8 (n, C, H, W), and the class each was asked for (n,).

        Image i of a class has the same noise for every model.
        """
        raise NotImplementedError

    def spent_before(self) -> float:
        """Seconds that interrupted runs have spent on the training that was just finished."""
        return 0.0

    def build(self, seed: int) -> nn.Module:
        """A denoising network of this lab's kind."""
        raise NotImplementedError

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        raise NotImplementedError

    @property
    def about(self) -> dict[str, Any]:
        """What network it is, for the results table."""
        raise NotImplementedError

    def _computed(self, cell: Cell, key: Key) -> Result:
        task: Any = self.task(cell.seed, cell.scenario)
        values: dict[str, Any] = {"mask_seconds": None}
        try:
            mask, mask_seconds = self.mask(cell.seed, cell.scenario, cell.mask)
            values["mask_seconds"] = mask_seconds
            start = fresh_clock(self.device)
            unlearned = METHODS[cell.method](task, mask=mask, seed=cell.seed, **cell.settings)
            seconds = mask_seconds + self.spent_before() + self._since(start)
            values |= {"seconds": seconds, "samples": unlearned.samples}
            values["peak_memory"] = peak_memory(self.device)
            model = self.finished(unlearned.model)
            check_finite(model)
        except Diverged as error:
            values |= {"status": "diverged", "why": str(error)}
            return self.store.put(key, values, self.provenance())
        start = time.perf_counter()
        images, labels = self.drawn(model)
        values["sampling_seconds"] = self._since(start)
        values |= {
            "status": "done",
            **self.measured(images, labels, self.forgotten(cell.scenario)),
            "losses": thinned(unlearned.losses),
            "counts": {role: batches.n for role, batches in task.parts.items()},
        }
        if isinstance(mask, dict):
            values["density"] = density(mask)
            values["layers"] = layer_table(mask)[["layer", "weights", "kept"]].to_dict("list")
        files = {
            ".samples.safetensors": save({"images": images, "labels": labels}),
            ".grid.png": grid_png(images if self.covering is None else self.covering(images), labels),
        }
        if (weights := self.weights(model, task)) is not None:
            files[".model.safetensors"] = weights
        return self.store.put(key, values, self.provenance(), files)

    def measured(self, images: Tensor, labels: Tensor, forgotten: int) -> dict[str, Any]:
        """What the judge and the Fréchet distance say of samples, as JSON values."""
        seen = recognise(self.classifier, images, labels, classes=self.judged)
        kept = labels != forgotten
        features, name = self.features
        distance = frechet(
            images[kept],
            self.real(forgotten, train=True),
            self.real(forgotten, train=False),
            features,
            name=name,
        )
        return {
            "metrics": {
                "UA": float(seen.unlearning_accuracy(forgotten)),
                "OA": float(seen.other_accuracy(forgotten)),
                "strays": float(seen.strays(forgotten)),
                "FD": distance.value,
                "FD floor": distance.floor,
            },
            "distance": {"name": name, "n": distance.n, "n_reference": distance.n_reference},
            "confusion": seen.counts.tolist(),
        }

    def samples(self, result: Result) -> tuple[Tensor, Tensor]:
        """The stored samples behind a result, and their classes."""
        path = self.store.path(result.key, ".samples.safetensors")
        try:
            found = load(path.read_bytes())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; run the cell again") from error
        return found["images"], found["labels"]

    def model(self, result: Result) -> nn.Module:
        """The unlearned model behind a result."""
        net = self.build(0)
        path = self.store.path(result.key, ".model.safetensors")
        if not path.is_file():
            raise UserError(
                f"{path} is not here: weights are not kept with recorded runs, run the cell again"
            )
        net.load_state_dict(load_file(path))
        return net.eval()

    def recognition(self, result: Result) -> Recognition:
        """Classes asked for against classes recognised."""
        return Recognition(torch.tensor(result.content["confusion"]))

    def forgotten(self, scenario: Scenario) -> int:
        """Number of the forgotten class."""
        assert isinstance(scenario.target, int)
        return scenario.target

    @cached_property
    def classifier(self) -> nn.Module:
        """The judge: trained on all real training images, whatever is forgotten."""
        judge, key = self.judge, self._judge_key
        mean, std = self.data.moments
        net = build_model(
            judge.arch,
            classes=self.classes,
            channels=self.data.images.shape[1],
            size=self.data.images.shape[-1],
            seed=JUDGE_SEED,
            width=judge.width,
            mean=mean,
            std=std,
        )
        net = net.to(self.device).to(memory_format=torch.channels_last)
        found = self.store.get(key)
        if found and self.store.has_files(found):
            net.load_state_dict(load_file(self.store.path(key, ".model.safetensors")))
            return net.eval()

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        batches = replace(self._batches(torch.arange(self.data.n_train)), augment=augmentation(self.data))
        start = time.perf_counter()
        net, _ = train_network(net, batches, loss, recipe=judge.recipe, seed=JUDGE_SEED)
        images, labels = self.data.images[self.data.n_train :], self.data.labels[self.data.n_train :]
        seen = recognise(net, images, labels, classes=self.classes)
        values = {
            "seconds": self._since(start),
            "accuracy": float(wilson(int(seen.counts.diagonal().sum()), n=len(labels))),
            "n": len(labels),
            "confusion": seen.counts.tolist(),
        }
        self.store.put(key, values, self.provenance(), {".model.safetensors": packed(net)})
        return net

    @cached_property
    def judge_accuracy(self) -> float:
        """Share of real test images that the judge recognises."""
        assert self.classifier is not None
        found = self.store.get(self._judge_key)
        assert found is not None
        return float(found.content["accuracy"])

    @cached_property
    def features(self) -> tuple[Features, str]:
        """What the Fréchet distance is measured in, and its name."""
        if self.inception is None:
            return classifier_features(self.classifier), NAMES[JUDGE]
        return inception_features(self.inception, device=self.device), NAMES[INCEPTION]

    def real(self, forgotten: int, *, train: bool) -> Tensor:
        """Real images of the other classes, a balanced draw of at most ``sampling.reference``."""
        ids = (
            torch.arange(self.data.n_train)
            if train
            else torch.arange(self.data.n_train, len(self.data.labels))
        )
        groups = [ids[self.data.labels[ids] == c] for c in range(self.classes) if c != forgotten]
        most = max(1, self.sampling.reference // len(groups))
        rng = generator(0, "real images", train)
        drawn = [group[torch.randperm(len(group), generator=rng)[:most]] for group in groups]
        return self.data.images[torch.cat(drawn)]

    def row(self, cell: Cell, result: Result) -> dict[str, Any]:
        """One row of the results table: what was run, what came out, what it cost."""
        values = result.content
        distance = values.get("distance", {})
        return cell_row(
            cell,
            result,
            self,
            **self.about,
            forgotten=self.data.classes[self.forgotten(cell.scenario)],
            sampling_seconds=values.get("sampling_seconds"),
            peak_memory=values.get("peak_memory"),
            **{
                name: values.get("metrics", {}).get(name) for name in ("UA", "OA", "strays", "FD", "FD floor")
            },
            distance=distance.get("name"),
            n_distance=distance.get("n"),
            n_class=self.sampling.samples,
            judge=self.judge_accuracy,
            confusion=values.get("confusion"),
            classes=list(self.data.classes),
            **{f"n_{role}": values.get("counts", {}).get(role) for role in ("forget", "retain")},
        )

    def _batches(self, ids: Tensor) -> Batches:
        return Batches(self.data.images[ids].to(self.device), self.data.labels[ids].to(self.device), ids)

    @cached_property
    def _judge_key(self) -> Key:
        recipe = listed(asdict(self.judge.recipe))
        what = {**self._images, "arch": self.judge.arch, "width": self.judge.width, "recipe": recipe}
        modules = (
            "salun_core.data.augment",
            "salun_core.tasks.classification_training",
            module_of(self.judge.arch),
        )
        return Key("judge", what | {"augmentation": [self.data.flip, self.data.pad]}, code_digest(*modules))

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


def packed(model: nn.Module) -> bytes:
    """Weights as a safetensors file."""
    return save({name: value.contiguous().cpu() for name, value in model.state_dict().items()})


def grid_png(images: Tensor, labels: Tensor, *, rows: int = 6) -> bytes:
    """The first samples of each class as a PNG: a column for each class, a row for each noise."""
    from PIL import Image

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
