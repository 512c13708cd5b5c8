"""Runs cells of class-conditional diffusion: trains models, unlearns, samples; `generation.lab` does the rest."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from salun_core.code_digest import code_digest
from salun_core.data.batches import Batches
from salun_core.errors import UserError
from salun_core.experiments.diffusion.problem import Problem
from salun_core.experiments.generation.lab import LABS as GENERATION
from salun_core.experiments.generation.lab import MODEL, GenerationLab, listed
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.lab import thinned
from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.runs.provenance import peak_memory
from salun_core.experiments.runs.store import Key, Result, digest
from salun_core.files import sha256
from salun_core.networks import weight_bytes
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import seconds_behind

CODE = ("salun_core.experiments.diffusion.problem",)
"""Where a model is computed; with all that these import and its method, the code behind it."""

LABS = (*GENERATION, "salun_core.experiments.diffusion.lab")
"""What puts these together; it counts without what it imports."""

LONG = 5000  # training steps from which a training is a long one


@dataclass
class DiffusionLab(GenerationLab):
    """One data set and one kind of denoising network; every seed and forgotten class on them.

    Parameters
    ----------
    problem : Problem
        What determines the models.
    deadline : float, optional
        Reading of ``time.monotonic()`` after which a long training stops, to be continued.
    """

    problem: Problem = field(kw_only=True)
    deadline: float | None = None
    _task: tuple[tuple[int, Scenario], DiffusionTask] | None = field(default=None, repr=False)
    _checkpoints: set[Path] = field(default_factory=set, repr=False)
    _earlier: float = 0.0  # seconds of the current training that interrupted runs have spent

    kind = "diffusion"

    def __post_init__(self) -> None:
        # Refused now: a folder without a model for these images, images that the network cannot take.
        self.build(0)
        if self.problem.retrained is not None:
            self._check_retrained(self.problem.retrained)
        longest = self.schedule.config.num_train_timesteps
        if self.sampling.sample_steps > longest:
            raise UserError(
                f"sample_steps {self.sampling.sample_steps} is more than the model's {longest} steps of diffusion"
            )

    @property
    def schedule(self) -> Any:
        """How images turn into noise."""
        return self.problem.schedule

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised denoising network."""
        return self.problem.build(seed)

    def original(self, seed: int) -> nn.Module:
        """The model trained on all training images, from the store, a folder, or trained now."""
        if self.problem.pretrained is not None:
            return self.problem.brought[0].to(self.device)
        key = self.original_key(seed)
        with self.store.alone(key):
            found = self.store.get(key)
            if found is None or not self.store.has_files(found):
                found = self._trained(seed, key)
        # What is stored, also when it was trained just now: another machine may have been first.
        net = self.build(seed)
        net.load_state_dict(load(self.store.read(found, f"{key.name}{MODEL}")))
        return net.eval()

    def _trained(self, seed: int, key: Key) -> Result:
        batches = self.problem.every_image()
        task = self._made(self.build(seed), {"forget": batches, "retain": batches}, key)
        start = time.perf_counter()
        net, losses = task.train(batches, seed=seed)
        values = {
            "seconds": self.spent_before() + self.since(start),
            "samples": len(losses) * batches.n,
            "losses": thinned(losses),
            "weights": sum(w.numel() for w in net.parameters()),
            "peak_memory": peak_memory(self.device),
        }
        stored = self.store.put(key, values, self.provenance(), {MODEL: weight_bytes(net)})
        self.unlearned_stored()
        return stored

    def spent_before(self) -> float:
        """Seconds that interrupted runs have spent on the training that was just finished."""
        spent, self._earlier = self._earlier, 0.0
        return spent

    @property
    def long(self) -> bool:
        """Whether training takes so long that a bar is shown and checkpoints are kept."""
        return self.problem.recipe.steps >= LONG or self.deadline is not None

    def unlearned(self, cell: Cell, values: dict[str, Any]) -> tuple[Any, Any]:
        """The cell's model and mask; what they cost goes into ``values``."""
        if cell.method == "retrain" and self.problem.retrained is not None:
            return self.problem.read(self.problem.retrained)[0].to(self.device), None
        self.task(cell.seed, cell.scenario)
        # What is left of a training that was stopped is for that training alone.
        self._earlier, self._checkpoints = 0.0, set()
        return super().unlearned(cell, values)

    def _check_retrained(self, folder: Path) -> None:
        """Refuse a Retrain that the store could not build again: of another architecture, or with another schedule."""
        (net, schedule), own = self.problem.read(folder), self.build(0)
        shapes, wanted = ({n: w.shape for n, w in part.state_dict().items()} for part in (net, own))
        if shapes != wanted:
            raise UserError(
                f"the networks in {folder} and {self.problem.pretrained} differ: give a Retrain of the same kind"
            )
        if not torch.equal(schedule.alphas_cumprod, self.schedule.alphas_cumprod):
            raise UserError(
                f"the noise schedules in {folder} and {self.problem.pretrained} differ: give a Retrain of the same kind"
            )

    def unlearned_stored(self) -> None:
        """Delete the checkpoints of trainings whose results are stored now."""
        while self._checkpoints:
            self._checkpoints.pop().unlink(missing_ok=True)

    def task(self, seed: int, scenario: Scenario) -> DiffusionTask:
        """The unlearning problem of one seed and forgotten class, with its trained model."""
        if self._task is None or self._task[0] != (seed, scenario):
            self._task = None  # free the old images before the new ones are copied
            parts = self.problem.parts(seed, scenario)
            made = self._made(self.original(seed), parts, self.original_key(seed))
            self._task = ((seed, scenario), made)
        return self._task[1]

    def drawn(self, model: nn.Module, forgotten: Sequence[int], pieces: Pieces) -> tuple[Tensor, Tensor]:
        """The samples a model is measured by, and their classes."""
        counts = [self.sampling.others] * self.classes
        for number in forgotten:
            counts[number] = self.sampling.samples
        return self.problem.drawn(
            model, self.sampling, counts, progress=self.long, kept=pieces.images("samples")
        )

    @property
    def about(self) -> dict[str, Any]:
        """What network it is, for the results table."""
        return {"arch": "unet", "width": self.problem.width}

    def unlearned_key(self, cell: Cell) -> Key:
        """Identity of the cell's model."""
        what = {"original": dict(self.original_key(cell.seed).what), **cell.what}
        what["forgetting"] = self.problem.forgetting.identity()
        if cell.method == "retrain" and self.problem.retrained is not None:
            what["retrained"] = digests(self.problem.retrained)
        return Key("unlearned", what, self._code(*cell.modules))

    def samples_key(self, cell: Cell) -> Key:
        """Identity of its samples."""
        model = self.unlearned_key(cell)
        what = {"model": dict(model.what), "sampling": self.sampling.identity(), "bf16": self.problem.bf16}
        return Key("samples", what, model.code)

    def original_key(self, seed: int) -> Key:
        """Identity of an original model."""
        problem = self.problem
        what: dict[str, Any] = {
            **self._images,
            "unet": problem.unet.identity(),
            "recipe": listed(asdict(problem.recipe)),
            "antithetic": problem.forgetting.antithetic,
            "bf16": problem.bf16,
            "compile": problem.compile,
            "seed": seed,
        }
        if problem.pretrained is not None:
            what["pretrained"] = digests(problem.pretrained)
        return Key("original", what, self._code())

    def _code(self, *modules: str) -> str:
        return code_digest(*CODE, *modules, alone=LABS)

    def _made(self, model: nn.Module, parts: dict[str, Batches], key: Key) -> DiffusionTask:
        def checkpoint(seed: int, batches: Batches) -> Path:
            what = {"of": dict(key.what), "seed": seed, "ids": batches.ids.tolist()}
            if self.store.deterministic:  # no part of the training may have been computed otherwise
                what["deterministic"] = True
            path = self.store.folder / f"training-{digest(what)[:20]}.pt"
            self._checkpoints.add(path)
            self._earlier = seconds_behind(path)
            return path

        return self.problem.task(
            model,
            parts,
            checkpoint=checkpoint if self.long else None,
            deadline=self.deadline,
            progress=self.long,
        )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its path inside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
