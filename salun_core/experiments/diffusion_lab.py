"""Runs diffusion cells: trains models and their judge, unlearns, samples, measures, stores."""

import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from salun_core.data.augment import augmentation, crop_and_flip
from salun_core.data.batches import Batch, Batches
from salun_core.data.images import ImageData
from salun_core.data.splits import split_data
from salun_core.errors import Diverged, UserError
from salun_core.experiments.cells import Cell, Scenario
from salun_core.experiments.classifier_lab import check_finite, thinned
from salun_core.experiments.code import code_digest
from salun_core.experiments.masking import MaskingLab
from salun_core.experiments.provenance import peak_memory
from salun_core.experiments.store import Key, Result, Store, digest
from salun_core.files import sha256
from salun_core.methods import METHODS
from salun_core.metrics.frechet import (
    CLASSIFIER,
    INCEPTION,
    Features,
    classifier_features,
    frechet,
    inception_features,
    inception_file,
)
from salun_core.metrics.generation import Recognition, recognise
from salun_core.metrics.share import wilson
from salun_core.models import build_model, module_of
from salun_core.models.sampling import sample
from salun_core.models.unet import build_unet, load_diffusion, noise_schedule
from salun_core.rng import generator
from salun_core.saliency import density, layer_table
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import DiffusionRecipe
from salun_core.tasks.training import Recipe, train_network

CODE = (
    "salun_core.data.augment",
    "salun_core.data.splits",
    "salun_core.metrics.frechet",
    "salun_core.metrics.generation",
    "salun_core.models.sampling",
    "salun_core.models.unet",
    "salun_core.saliency",
    "salun_core.tasks.diffusion",
)
"""Modules on which every cell depends, besides that of its method."""

STREAMS = 1_000_000  # noise streams of one class, so that a larger sample contains the smaller
JUDGE_SEED = 0
LONG = 5000  # training steps from which a bar is shown and checkpoints are kept


@dataclass(frozen=True)
class Unet:
    """The denoising network and its noise: see ``models.unet.build_unet`` and ``noise_schedule``."""

    widths: tuple[int, ...]
    layers: int = 2
    attention: tuple[int, ...] = ()
    head: int | None = None
    dropout: float = 0.0
    schedule: str = "linear"
    diffusion_steps: int = 1000


@dataclass(frozen=True)
class Forgetting:
    """The losses of forgetting: see ``DiffusionTask``; ``batch_size`` images of each set in a step."""

    batch_size: int = 128
    relabel: str = "next"
    target: str = "original"
    relabel_drop: float = 0.0
    mask_guidance: float = 0.0
    mask_draws: int = 1
    antithetic: bool = False


@dataclass(frozen=True)
class Sampling:
    """How models are measured: ``samples`` images of each class, see ``models.sampling.sample``."""

    samples: int = 100
    guidance: float = 2.0
    steps: int = 50
    eta: float = 0.0
    batch_size: int = 500
    reference: int = 5000  # real images that a Fréchet distance is measured to, at most


@dataclass(frozen=True)
class Judge:
    """The independent classifier: see ``models.build_model`` and ``tasks.training``."""

    arch: str
    width: int | None
    recipe: Recipe


@dataclass
class DiffusionLab(MaskingLab):
    """One data set and one kind of denoising network; every seed and forgotten class on them.

    Parameters
    ----------
    data : ImageData
        All images, on the CPU. Class i of the data is class i of the network.
    store : Store
        Where results lie.
    unet, recipe, forgetting, sampling, judge
        What is trained, how, how it forgets, how it is measured, and by whom.
    pretrained : path, optional
        A diffusers folder that takes the place of the original model.
    inception : path, optional
        Weights of Inception, for a FID; looked for in torch's cache otherwise.
    bf16, compile
        See ``DiffusionTask``.
    deadline : float, optional
        Reading of ``time.monotonic()`` after which a long training stops, to be continued.
    device : torch.device
        Where networks and images lie.
    experiment, source : str
        Names for the results table.
    """

    data: ImageData
    store: Store
    unet: Unet
    recipe: DiffusionRecipe
    judge: Judge
    forgetting: Forgetting = field(default_factory=Forgetting)
    sampling: Sampling = field(default_factory=Sampling)
    pretrained: Path | None = None
    inception: Path | None = None
    bf16: bool = False
    compile: bool = False
    deadline: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    experiment: str = "diffusion"
    source: str = "quick"
    _task: tuple[tuple[int, Scenario], DiffusionTask] | None = None

    @property
    def classes(self) -> int:
        """K."""
        return len(self.data.classes)

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised denoising network."""
        net = self.unet
        return build_unet(
            classes=self.classes,
            channels=self.data.images.shape[1],
            size=self.data.images.shape[-1],
            widths=net.widths,
            layers=net.layers,
            attention=net.attention,
            head=net.head,
            dropout=net.dropout,
            seed=seed,
        ).to(self.device)

    @cached_property
    def schedule(self) -> Any:
        """How images turn into noise."""
        if self.pretrained is not None:
            return self._brought()[1]
        return noise_schedule(self.unet.schedule, steps=self.unet.diffusion_steps)

    def original(self, seed: int) -> nn.Module:
        """The model trained on all training images, from the store, a folder, or trained now."""
        if self.pretrained is not None:
            return self._brought()[0].to(self.device)
        key = self._original_key(seed)
        found = self.store.get(key)
        if found and self.store.has_files(found):
            net = self.build(seed)
            net.load_state_dict(load_file(self.store.path(key, ".model.safetensors")))
            return net.eval()
        batches = self._batches(torch.arange(self.data.n_train))
        task = self._made(self.build(seed), {"forget": batches, "retain": batches}, key)
        start = time.perf_counter()
        net, losses = task.train(batches, seed=seed)
        values = {
            "seconds": self._since(start),
            "samples": len(losses) * batches.n,
            "losses": thinned(losses),
            "weights": sum(w.numel() for w in net.parameters()),
            "peak_memory": peak_memory(self.device),
        }
        self.store.put(key, values, self.provenance(), {".model.safetensors": packed(net)})
        return net

    def task(self, seed: int, scenario: Scenario) -> DiffusionTask:
        """The unlearning problem of one seed and forgotten class, with its trained model."""
        if self._task is None or self._task[0] != (seed, scenario):
            self._task = None  # free the old images before the new ones are copied
            split = split_data(
                self.data, scenario="class", seed=seed, forget_class=scenario.target, validation=0
            )
            parts = {role: self._batches(split[role]) for role in ("forget", "retain")}
            self._task = ((seed, scenario), self._made(self.original(seed), parts, self._original_key(seed)))
        return self._task[1]

    def run(self, cell: Cell) -> Result:
        """The cell's result, from the store or computed now."""
        key = self.key(cell)
        return self.store.get(key) or self._computed(cell, key)

    def _computed(self, cell: Cell, key: Key) -> Result:
        task = self.task(cell.seed, cell.scenario)
        values: dict[str, Any] = {"mask_seconds": None}
        try:
            mask, mask_seconds = self.mask(cell.seed, cell.scenario, cell.mask)
            values["mask_seconds"] = mask_seconds
            start = time.perf_counter()
            unlearned = METHODS[cell.method](task, mask=mask, seed=cell.seed, **cell.settings)
            values |= {"seconds": mask_seconds + self._since(start), "samples": unlearned.samples}
            check_finite(unlearned.model)
        except Diverged as error:
            values |= {"status": "diverged", "why": str(error)}
            return self.store.put(key, values, self.provenance())
        start = time.perf_counter()
        images, labels = self.drawn(unlearned.model)
        values |= {
            "status": "done",
            **self.measured(images, labels, self.forgotten(cell.scenario)),
            "sampling_seconds": self._since(start),
            "losses": thinned(unlearned.losses),
            "counts": {role: batches.n for role, batches in task.parts.items()},
            "peak_memory": peak_memory(self.device),
        }
        if mask is not None:
            values["density"] = density(mask)
            values["layers"] = layer_table(mask)[["layer", "weights", "kept"]].to_dict("list")
        files = {
            ".samples.safetensors": save({"images": images, "labels": labels}),
            ".grid.png": grid_png(images, labels),
            ".model.safetensors": packed(unlearned.model),
        }
        return self.store.put(key, values, self.provenance(), files)

    def drawn(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The samples a model is measured by, uint8 (K n, C, H, W), and their classes (K n,).

        Image i of class c has the same noise for every model.
        """
        count = self.sampling.samples
        labels = torch.arange(self.classes).repeat_interleave(count)
        images = sample(
            model,
            self.schedule,
            labels,
            seed=0,
            streams=(labels * STREAMS + torch.arange(count).repeat(self.classes)).tolist(),
            guidance=self.sampling.guidance,
            steps=self.sampling.steps,
            eta=self.sampling.eta,
            batch_size=self.sampling.batch_size,
            bf16=self.bf16,
        )
        return images, labels

    def measured(self, images: Tensor, labels: Tensor, forgotten: int) -> dict[str, Any]:
        """What the judge and the Fréchet distance say of samples, as JSON values."""
        seen = recognise(self.classifier, images, labels, classes=self.classes)
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
        weights = inception_file(self.inception)
        if weights is None:
            return classifier_features(self.classifier), CLASSIFIER
        return inception_features(weights, device=self.device), INCEPTION

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
        return {
            "experiment": self.experiment,
            "source": self.source,
            "dataset": self.data.name,
            "arch": "unet",
            "width": self.unet.widths[0],
            "scenario": cell.scenario.label,
            "forgotten": self.data.classes[self.forgotten(cell.scenario)],
            "method": cell.method,
            "mask": cell.mask.kind,
            "keep": cell.mask.keep if cell.mask.kind != "none" else 1.0,
            "score": cell.mask.score,
            "seed": cell.seed,
            "status": values["status"],
            "seconds": values.get("seconds"),
            "mask_seconds": values["mask_seconds"],
            "sampling_seconds": values.get("sampling_seconds"),
            "samples_seen": values.get("samples"),
            **{
                name: values.get("metrics", {}).get(name) for name in ("UA", "OA", "strays", "FD", "FD floor")
            },
            "distance": distance.get("name"),
            "n_distance": distance.get("n"),
            "n_class": self.sampling.samples,
            "judge": self.judge_accuracy,
            "confusion": values.get("confusion"),
            **{f"n_{role}": values.get("counts", {}).get(role) for role in ("forget", "retain")},
            "settings": cell.all_settings,
            "replica": cell.settings.get("replica", 0),
            "reported": cell.reported,
            **cell.tags,
            "device": result.provenance["device"],
            "threads": result.provenance["threads"],
            "code": result.provenance["revision"],
            "finished": result.provenance["finished"],
            "cell": result.key.name,
        }

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        what = {"original": dict(self._original_key(cell.seed).what), **cell.what}
        what |= {"forgetting": asdict(self.forgetting), "sampling": asdict(self.sampling)}
        what |= {"judge": dict(self._judge_key.what)}
        weights = inception_file(self.inception)
        what["features"] = sha256(weights) if weights is not None else "judge"
        return Key("cell", what, self._code(METHODS[cell.method].module, module_of(self.judge.arch)))

    def _original_key(self, seed: int) -> Key:
        what: dict[str, Any] = {
            **self._images,
            "unet": listed(asdict(self.unet)),
            "recipe": asdict(self.recipe),
            "antithetic": self.forgetting.antithetic,
            "bf16": self.bf16,
            "compile": self.compile,
            "seed": seed,
        }
        if self.pretrained is not None:
            what["pretrained"] = {p.name: sha256(p) for p in sorted((self.pretrained / "unet").iterdir())}
        return Key("original", what, self._code())

    @cached_property
    def _judge_key(self) -> Key:
        recipe = listed(asdict(self.judge.recipe))
        what = {**self._images, "arch": self.judge.arch, "width": self.judge.width, "recipe": recipe}
        modules = ("salun_core.data.augment", "salun_core.tasks.training", module_of(self.judge.arch))
        return Key("judge", what | {"augmentation": [self.data.flip, self.data.pad]}, code_digest(*modules))

    @property
    def _images(self) -> dict[str, Any]:
        return {"data": self.data.digest, "size": list(self.data.images.shape[1:]), "flip": self.data.flip}

    def _code(self, *modules: str) -> str:
        return code_digest(*CODE, *modules)

    def _made(self, model: nn.Module, parts: Mapping[str, Batches], key: Key) -> DiffusionTask:
        how = self.forgetting

        def checkpoint(seed: int, batches: Batches) -> Path:
            what = {"of": dict(key.what), "seed": seed, "ids": batches.ids.tolist()}
            return self.store.folder / f"training-{digest(what)[:20]}.pt"

        long = self.recipe.steps >= LONG
        return DiffusionTask(
            model,
            parts,
            self.build,
            self.recipe,
            self.schedule,
            relabel=how.relabel,
            target=how.target,
            relabel_drop=how.relabel_drop,
            mask_guidance=how.mask_guidance,
            mask_draws=how.mask_draws,
            antithetic=how.antithetic,
            bf16=self.bf16,
            compile=self.compile,
            checkpoint=checkpoint if long else None,
            deadline=self.deadline,
            progress=long,
        )

    def _brought(self) -> tuple[nn.Module, Any]:
        assert self.pretrained is not None
        _, channels, _, size = self.data.images.shape
        return load_diffusion(self.pretrained, classes=self.classes, channels=channels, size=size)

    def _batches(self, ids: Tensor) -> Batches:
        images, labels = self.data.images[ids].to(self.device), self.data.labels[ids].to(self.device)
        # A shifted image with black borders would teach the model to draw borders: mirror images only.
        mirrored = partial(crop_and_flip, pad=0, flip=True) if self.data.flip else None
        return Batches(images, labels, ids, size=self.forgetting.batch_size, augment=mirrored)


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


def listed(values: dict[str, Any]) -> dict[str, Any]:
    """The same values with tuples as lists, as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
