"""What labs of every kind of task share: masks, clocks, provenance."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from salun_core.data.batches import Batch
from salun_core.data.images import ImageData
from salun_core.errors import Diverged
from salun_core.experiments.runs.cells import MaskSpec, Scenario
from salun_core.experiments.runs.provenance import provenance
from salun_core.rng import generator
from salun_core.saliency import Mask, Scores, least_salient_mask, random_mask, saliency_scores, top_mask
from salun_core.tasks.base import Task


class MaskingLab:
    """Base of the labs; one that derives from it says what the task of a seed and scenario is."""

    data: ImageData
    device: torch.device
    mask_dtype: torch.dtype | None = torch.float64  # precision of the gradients, see `saliency_scores`
    _scores: tuple[tuple[Any, ...], Scores, float] | None = None

    def task(self, seed: int, scenario: Scenario) -> Task:
        """The unlearning problem of one seed and scenario, with its trained model."""
        raise NotImplementedError

    def mask(self, seed: int, scenario: Scenario, spec: MaskSpec) -> tuple[Mask | None, float]:
        """The mask of a cell and the seconds it costs (the scores are shared, their cost is not)."""
        if spec.kind == "none":
            return None, 0.0
        task = self.task(seed, scenario)
        seconds = 0.0
        scores: Scores = dict(task.model.named_parameters())  # a random mask needs only the shapes
        if spec.kind != "random":
            scores, seconds = self.scores(seed, scenario, spec)
        start = time.perf_counter()
        rng = generator(seed, "random mask", spec.draw)
        if spec.kind == "salient":
            mask = top_mask(scores, keep=spec.keep)
        elif spec.kind == "least_salient":
            mask = least_salient_mask(scores, keep=spec.keep)
        elif spec.kind == "random":
            mask = random_mask(scores, keep=spec.keep, rng=rng)
        else:
            mask = random_mask(scores, keep=spec.keep, rng=rng, per_layer=top_mask(scores, keep=spec.keep))
        return mask, seconds + self._since(start)

    def scores(self, seed: int, scenario: Scenario, spec: MaskSpec) -> tuple[Scores, float]:
        """Saliency scores of the original model on the forget set, and the seconds they took."""
        draw = spec.draw if spec.augmented else None
        wanted = (seed, scenario, spec.score, draw)
        if self._scores is None or self._scores[0] != wanted:
            task = self.task(seed, scenario)
            forget: Iterable[Batch] = task.forget
            if spec.augmented:
                forget = task.forget.shuffled(generator(seed, "mask augmentation", spec.draw))
            start = time.perf_counter()
            scores = saliency_scores(task.model, forget, task.loss, score=spec.score, dtype=self.mask_dtype)
            self._scores = (wanted, scores, self._since(start))
        return self._scores[1], self._scores[2]

    def _since(self, start: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def provenance(self) -> dict[str, Any]:
        """Where and with what this lab computes."""
        return provenance(self.device) | {"data": self.data.name, "data_note": self.data.note}


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
