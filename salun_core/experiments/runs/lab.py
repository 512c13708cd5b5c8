"""What labs of every kind of task share: cells from the store or computed now, masks, clocks, provenance."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salun_core.data.batches import Batch, Batches, Loader
from salun_core.data.draws import lots
from salun_core.data.images import ImageData
from salun_core.errors import Diverged, UserError
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.runs.provenance import peak_memory, provenance
from salun_core.experiments.runs.store import Key, Result, Store
from salun_core.methods import METHODS
from salun_core.rng import generator
from salun_core.saliency import (
    SCORES,
    Mask,
    Scores,
    density,
    layer_table,
    least_salient_mask,
    mask_digest,
    random_mask,
    saliency_scores,
    save_mask,
    stored_mask_digest,
    top_mask,
)
from salun_core.tasks.base import Task


class Lab:
    """Base of the labs; one that derives from it says what the task of a cell is and what its outputs are."""

    data: ImageData
    store: Store
    device: torch.device
    _scores: tuple[tuple[Any, ...], Scores, float] | None = None

    @property
    def folder(self) -> Path:
        """The results folder."""
        return self.store.folder.parent

    def build(self, seed: int) -> nn.Module:
        """A network of this lab's kind."""
        raise NotImplementedError

    @property
    def weights_here(self) -> int:
        """Weights of the network, of which a mask marks a share."""
        return sum(weight.numel() for weight in self.build(0).parameters())

    def task(self, seed: int, scenario: Scenario) -> Task:
        """The unlearning problem of one seed and scenario, with its trained model."""
        raise NotImplementedError

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        raise NotImplementedError

    def prepare(self, seed: int, scenario: Scenario) -> None:
        """Make what the cells of a seed and scenario share, where it is not stored: the trained model."""
        self.task(seed, scenario)

    def run(self, cell: Cell) -> Result:
        """The cell's result, from the store or computed now."""
        key = self.key(cell)
        found = self.stored(key)
        if found is None:
            with self.store.alone(key):
                found = self.stored(key)
                if found is None:
                    if (
                        self.store.get(key) is not None
                    ):  # whole, and of another extent: it would stay otherwise
                        self.store.path(key).unlink(missing_ok=True)
                    found = self.computed(cell, key)
        return found

    def free_first(self, cells: Iterable[Cell]) -> Iterator[tuple[int, Cell]]:
        """Cells with their places, in order, but last those that another process is computing when their turn comes."""
        taken = []
        for place, cell in enumerate(cells):
            key = self.key(cell)
            if self.store.is_taken(key) and self.stored(key) is None:
                taken.append((place, cell))
            else:
                yield place, cell
        yield from taken

    def stored(self, key: Key) -> Result | None:
        """The result in the store; None if there is none, or if it keeps other outputs than this lab would."""
        found = self.store.get(key)
        return found if found is not None and (self.store.trusted or self.keeps(found)) else None

    def keeps(self, result: Result) -> bool:
        """Whether a stored result keeps what this lab would keep of it."""
        return True

    def computed(self, cell: Cell, key: Key) -> Result:
        """Run the cell and store it."""
        raise NotImplementedError

    def mask(self, seed: int, scenario: Scenario, spec: MaskSpec) -> tuple[Any, float]:
        """The mask of a cell and the seconds it costs (the scores are shared, their cost is not)."""
        if spec.kind == "none":
            return None, 0.0
        task = self.task(seed, scenario)
        scores, seconds = (None, 0.0) if spec.kind == "random" else self.scores(seed, scenario, spec)
        start = time.perf_counter()
        mask = mask_of(task.model, spec, scores, seed=seed)
        return mask, seconds + self.since(start)

    def scores(self, seed: int, scenario: Scenario, spec: MaskSpec) -> tuple[Scores, float]:
        """Saliency scores of the original model on the forget set, and the seconds they took."""
        draw = spec.draw if spec.augmented else None
        wanted = (seed, scenario, spec.score, draw)
        if self._scores is None or self._scores[0] != wanted:
            task = self.task(seed, scenario)
            start = time.perf_counter()
            with SCORES.blaming(spec.score):
                scores = scores_of(task, spec, seed=seed)
            self._scores = (wanted, scores, self.since(start))
        return self._scores[1], self._scores[2]

    @property
    def keeps_masks(self) -> bool:
        """Whether the masks of cells are stored; a run that is to be committed keeps outputs only."""
        return not self.store.trusted

    def keep(self, mask: Mask) -> Path:
        """The file of a mask, which all cells that use it share; see `saliency.load_mask`."""
        wanted = mask_digest(mask)
        path = self.store.folder / f"mask-{wanted[:20]}.safetensors"
        try:
            if stored_mask_digest(path) == wanted:
                return path
        except UserError:  # there is none yet, or a damaged one
            pass
        return save_mask(mask, path)

    def since(self, start: float) -> float:
        """Seconds since a reading of ``time.perf_counter()``, with the accelerator's work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def provenance(self) -> dict[str, Any]:
        """Where and with what this lab computes."""
        return provenance(self.device) | {"data": self.data.name, "data_note": self.data.note}

    def unlearned(self, cell: Cell, values: dict[str, Any]) -> tuple[Any, Any]:
        """The cell's model and mask; what they cost goes into ``values``.

        Raises
        ------
        Diverged
            If the method, or the model it leaves, is no longer finite.
        """
        mask, mask_seconds = self.mask(cell.seed, cell.scenario, cell.mask)
        values["mask_seconds"] = mask_seconds
        task = self.task(cell.seed, cell.scenario)
        start = time.perf_counter()
        method = METHODS[cell.method]
        with METHODS.blaming(cell.method):
            unlearned = method(task, mask=mask, seed=cell.method_seed, **cell.settings)
        values |= {"seconds": mask_seconds + self.since(start), "samples": unlearned.samples}
        values |= {"losses": thinned(unlearned.losses), "peak_memory": peak_memory(self.device)}
        check_finite(unlearned.model)
        if isinstance(mask, dict):
            values |= shape_of(mask)
            if self.keeps_masks:
                values["mask_file"] = self.keep(mask).name
        return unlearned.model, mask


def shape_of(mask: Mask) -> dict[str, Any]:
    """What a mask marks, as JSON values: ``density``, and weights and kept weights by layer."""
    layers = layer_table(mask)[["layer", "weights", "kept"]].to_dict("list")
    return {"density": density(mask), "layers": layers}


def check_finite(model: nn.Module) -> None:
    """Refuse weights or statistics that are not finite.

    Raises
    ------
    Diverged
        With the name of the first such tensor.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Diverged(f"{name} is not finite after unlearning: lower the learning rate")


def thinned(losses: list[float], most: int = 60) -> list[float]:
    """At most ``most`` evenly spaced entries, the last included."""
    if len(losses) <= most:
        return losses
    return [losses[round(i * (len(losses) - 1) / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class AugmentedEpoch:
    """The images of one epoch of training, drawn anew and the same whenever they are read."""

    batches: Loader
    seed: int
    draw: int

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.shuffled(generator(self.seed, "mask augmentation", self.draw))


def scores_of(task: Task, spec: MaskSpec, *, seed: int) -> Scores:
    """Saliency scores of the task's model on its forget set.

    ``seed`` draws the augmentation, where there is one, and otherwise the order of the images: only the paper's score
    does not depend on which of them come first or share a batch.
    """
    forget: Loader | AugmentedEpoch = task.forget
    if spec.augmented:
        forget = AugmentedEpoch(task.forget, seed, spec.draw)
    elif spec.score != "abs_sum" and isinstance(forget, Batches):
        forget = forget.subset(lots(forget.ids, "order of scores", seed).argsort())
    return saliency_scores(task.model, forget, task.loss, score=spec.score)


def mask_of(model: nn.Module, spec: MaskSpec, scores: Scores | None, *, seed: int) -> Mask:
    """The mask of a kind; ``scores`` may be None for a random one, which needs only the shapes."""
    rng = generator(seed, "random mask", spec.draw)
    if spec.kind == "random" or scores is None:
        return random_mask(dict(model.named_parameters()), keep=spec.keep, rng=rng)
    if spec.kind == "salient":
        return top_mask(scores, keep=spec.keep)
    if spec.kind == "least_salient":
        return least_salient_mask(scores, keep=spec.keep)
    return random_mask(scores, keep=spec.keep, rng=rng, per_layer=top_mask(scores, keep=spec.keep))
