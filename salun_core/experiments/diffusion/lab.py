"""Runs cells of class-conditional diffusion: trains models, unlearns, samples; `generation_lab` does the rest."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from salun_core.data.augment import crop_and_flip
from salun_core.data.batches import Batches
from salun_core.data.images import ImageData
from salun_core.data.splits import split_data
from salun_core.errors import UserError
from salun_core.experiments.generation.lab import (
    STREAMS,
    GenerationLab,
    Judge,
    Sampling,
    listed,
    packed,
)
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.code_digest import code_digest
from salun_core.experiments.runs.lab import thinned
from salun_core.experiments.runs.provenance import peak_memory
from salun_core.experiments.runs.store import Key, Result, Store, digest
from salun_core.files import sha256
from salun_core.methods import METHODS
from salun_core.models import module_of
from salun_core.models.diffusion.sampling import sample
from salun_core.models.diffusion.unet import build_unet, like, load_diffusion, noise_schedule
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import DiffusionRecipe, seconds_behind

CODE = (
    "salun_core.data.augment",
    "salun_core.data.splits",
    "salun_core.metrics.generation.frechet",
    "salun_core.metrics.generation.recognition",
    "salun_core.models.diffusion.sampling",
    "salun_core.models.diffusion.unet",
    "salun_core.saliency",
    "salun_core.tasks.diffusion",
)
"""Modules on which every cell depends, besides that of its method."""

LONG = 5000  # training steps from which a training is a long one


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


@dataclass
class DiffusionLab(GenerationLab):
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
        Weights of Inception, for a FID; None for a distance in the features of the judge.
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
    _checkpoints: set[Path] = field(default_factory=set)
    _earlier: float = 0.0  # seconds of the training in hand that interrupted runs have spent

    def __post_init__(self) -> None:
        # Refused now: a folder without a model for these images, images that the network cannot take.
        self.build(0)
        longest = self.schedule.config.num_train_timesteps
        if self.sampling.steps > longest:
            raise UserError(
                f"sample_steps {self.sampling.steps} is more than the model's {longest} steps of diffusion"
            )

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised denoising network, of the same kind as the one in ``pretrained`` where there is one."""
        if self.pretrained is not None:
            return like(self._brought()[0], seed=seed).to(self.device)
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
        with self.store.alone(key):
            return self._original(seed, key)

    def _original(self, seed: int, key: Key) -> nn.Module:
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
            "seconds": self.spent_before() + self._since(start),
            "samples": len(losses) * batches.n,
            "losses": thinned(losses),
            "weights": sum(w.numel() for w in net.parameters()),
            "peak_memory": peak_memory(self.device),
        }
        self.store.put(key, values, self.provenance(), {".model.safetensors": packed(net)})
        self._stored()
        return net

    def spent_before(self) -> float:
        """Seconds that interrupted runs have spent on the training that was just finished."""
        spent, self._earlier = self._earlier, 0.0
        return spent

    @property
    def long(self) -> bool:
        """Whether training takes so long that a bar is shown and checkpoints are kept."""
        return self.recipe.steps >= LONG or self.deadline is not None

    def _computed(self, cell: Cell, key: Key) -> Result:
        # What is left of a training that was stopped is for that training alone.
        self._earlier, self._checkpoints = 0.0, set()
        result = super()._computed(cell, key)
        self._stored()
        return result

    def _stored(self) -> None:
        """Delete the checkpoints of trainings whose results are stored now."""
        while self._checkpoints:
            self._checkpoints.pop().unlink(missing_ok=True)

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
            progress=self.long,
        )
        return images, labels

    @property
    def about(self) -> dict[str, Any]:
        """What network it is, for the results table."""
        return {"arch": "unet", "width": self.unet.widths[0]}

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        what = {"original": dict(self._original_key(cell.seed).what), **cell.what}
        what |= {"forgetting": asdict(self.forgetting), "sampling": asdict(self.sampling)}
        what |= {"judge": dict(self._judge_key.what)}
        what["features"] = sha256(self.inception) if self.inception is not None else "judge"
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

    def _code(self, *modules: str) -> str:
        return code_digest(*CODE, *modules)

    def _made(self, model: nn.Module, parts: Mapping[str, Batches], key: Key) -> DiffusionTask:
        how = self.forgetting

        def checkpoint(seed: int, batches: Batches) -> Path:
            what = {"of": dict(key.what), "seed": seed, "ids": batches.ids.tolist()}
            path = self.store.folder / f"training-{digest(what)[:20]}.pt"
            self._checkpoints.add(path)
            self._earlier = seconds_behind(path)
            return path

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
            checkpoint=checkpoint if self.long else None,
            deadline=self.deadline,
            progress=self.long,
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
