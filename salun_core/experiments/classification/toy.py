"""Forgetting in two dimensions: a network small enough that its whole decision can be drawn."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import field_validator
from torch import Tensor, nn

from salun_core.data.batches import Batches
from salun_core.experiments.classification.trajectories import follow
from salun_core.experiments.runs.params import Params, parameter
from salun_core.methods import METHODS
from salun_core.metrics import METRICS, evaluate
from salun_core.metrics.classification.outputs import Evaluation
from salun_core.rng import derive, generator, isolated
from salun_core.saliency import check_keep, random_mask, saliency_scores, top_mask
from salun_core.tasks.classification import ClassificationTask
from salun_core.tasks.classification_training import Recipe

CLASSES = 3
REACH = 1.25  # the plane is drawn from -REACH to REACH in both directions
RECIPE = Recipe(epochs=150, lr=0.1, batch_size=64, weight_decay=1e-4)


class ToyParams(Params):
    """Parameters of the two-dimensional example."""

    experiment: ClassVar[str] = "toy"

    keep: float = parameter(0.2, "share of weights that may change, (0, 1]")
    steps: int = parameter(40, "steps of unlearning that are shown", ge=1)
    lr: float = parameter(0.005, "their learning rate", gt=0)
    retrained: int = parameter(5, "models trained again without the forget points", ge=1)
    seed: int = parameter(0, "of points, weights and draws", ge=0, any_whole=True)

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float) -> float:
        check_keep(value)
        return value


@dataclass(frozen=True)
class Snapshot:
    """A model on the plane.

    Parameters
    ----------
    logits : Tensor
        At the points of `grid`, float32 (G, G, K): rows from bottom to top.
    evaluation : Evaluation
        Its logits for the points of the data.
    """

    logits: Tensor
    evaluation: Evaluation

    def metrics(self) -> dict[str, float]:
        """UA, RA and TA, in [0, 1]."""
        return {name: float(METRICS[name](self.evaluation)) for name in ("UA", "RA", "TA")}


@dataclass(frozen=True)
class Toy:
    """What the example shows.

    Parameters
    ----------
    points : dict of str to Batches
        Points by role.
    task : ClassificationTask
        The trained network on these points.
    retrained : list of Snapshot
        Models trained again without the forget points.
    paths : dict of str to list of Snapshot
        By mask ("none", "salient", "random"): the model before unlearning, and after each step.
    silent : float
        Share of weights whose gradient on the forget points is exactly 0, in [0, 1].
    """

    points: dict[str, Batches]
    task: ClassificationTask
    retrained: list[Snapshot]
    paths: dict[str, list[Snapshot]]
    silent: float


def spirals(n: int, rng: torch.Generator, *, noise: float = 0.045) -> tuple[Tensor, Tensor, Tensor]:
    """Points on three spiral arms.

    Returns
    -------
    points, labels, along
        (n, 2) float32, int64 (n,), and the position on the arm in [0, 1], (n,).
    """
    labels = torch.arange(n) % CLASSES
    along = torch.rand(n, generator=rng)
    radius = 0.15 + 0.9 * along
    angle = 2.2 * along + labels * 2 * math.pi / CLASSES
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return points + noise * torch.randn(n, 2, generator=rng), labels, along


def network(seed: int, *, hidden: int = 24) -> nn.Module:
    """Two inputs, two hidden layers, three classes: 747 weights."""
    with isolated(seed, "toy network"):
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, CLASSES),
        )


def make_points(seed: int) -> dict[str, Batches]:
    """150 points by role, and 300 to test on; the end of one arm, a fifth of its class, is to be forgotten."""
    rng = generator(seed, "toy points")
    points, labels, along = spirals(150, rng)
    held_out, held_out_labels, _ = spirals(300, rng)
    leaves = (labels == 0) & (along > 0.8)
    ids = torch.arange(450)
    return {
        role: Batches(where[:, :, None, None], what, rows, size=32)
        for role, rows, where, what in (
            ("forget", ids[:150][leaves], points[leaves], labels[leaves]),
            ("retain", ids[:150][~leaves], points[~leaves], labels[~leaves]),
            ("test", ids[150:], held_out, held_out_labels),
        )
    }


def make_task(points: dict[str, Batches], seed: int) -> ClassificationTask:
    """The task of a network trained on the forget and retain points together."""
    both = [points[role] for role in ("forget", "retain")]
    everything = Batches(
        torch.cat([part.images for part in both]),
        torch.cat([part.labels for part in both]),
        torch.cat([part.ids for part in both]),
    )
    start = ClassificationTask(network(seed), points, network, RECIPE)
    original, _ = start.train(everything, seed=derive(seed, "original"))
    return replace(start, model=original)


def grid(side: int = 41) -> Tensor:
    """Points that cover the plane, (side, side, 2): rows from bottom to top."""
    line = torch.linspace(-REACH, REACH, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1)


def snapshot(model: nn.Module, points: dict[str, Batches]) -> Snapshot:
    """The logits of a model on the plane and on the data."""
    places = grid()
    with torch.no_grad():
        logits = model(places.reshape(-1, 2, 1, 1)).view(*places.shape[:2], CLASSES)
    return Snapshot(logits, evaluate(model, points))


def run(params: ToyParams) -> Toy:
    """Train, retrain, and follow random labelling under each mask, step by step."""
    points = make_points(params.seed)
    task = make_task(points, params.seed)
    scores = saliency_scores(task.model, task.forget, task.loss)
    drawn = random_mask(scores, keep=params.keep, rng=generator(params.seed, "toy random mask"))
    masks = {"none": None, "salient": top_mask(scores, keep=params.keep), "random": drawn}
    settings = {"lr": params.lr, "order": "interleaved", "seed": params.seed}
    paths = {
        kind: follow(
            "rl", task, range(params.steps + 1), lambda model: snapshot(model, points), mask=mask, **settings
        )
        for kind, mask in masks.items()
    }
    retrained = [
        snapshot(METHODS["retrain"](task, replica=replica, seed=params.seed).model, points)
        for replica in range(params.retrained)
    ]
    flat = torch.cat([values.flatten() for values in scores.values()])
    silent = (flat == 0).double().mean().item()
    return Toy(points, task, retrained, paths, silent)
