"""Small problems for tests: real handwritten digits, networks that train in a second."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from salun_core.data.batches import Batches
from salun_core.tasks.classification import ClassificationTask
from salun_core.tasks.classification_training import Recipe

RECIPE = Recipe(epochs=6, lr=0.05, schedule="one_cycle", batch_size=64)


def small_network(seed: int) -> nn.Module:
    """Convolution, BatchNorm, two linear layers: 10,000 weights of every kind."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def digit_batches(ids: Tensor, *, size: int = 64) -> Batches:
    images, labels = _digits()
    return Batches(images[ids], labels[ids], ids, size=size)


@cache
def trained_task() -> ClassificationTask:
    """120 digits to forget, 880 to keep, 400 to test on. Shared: tests must not change it."""
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    ids = {"forget": order[:120], "retain": order[120:1000], "test": order[1000:1400]}
    parts = {role: digit_batches(rows) for role, rows in ids.items()}
    blank = ClassificationTask(small_network(0), parts, small_network, RECIPE)
    model, _ = blank.train(digit_batches(order[:1000]), seed=0)
    model.zero_grad()  # training leaves gradients, and tests look for those that are left by what they try
    return ClassificationTask(model, parts, small_network, RECIPE)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    images = torch.from_numpy(digits.images * 255 / 16).round().byte()[:, None]  # (1797, 1, 8, 8)
    return images, torch.from_numpy(digits.target).long()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Equal weights and buffers, to the last bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def accuracy(model: nn.Module, batches: Batches) -> float:
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / batches.n
