"""Wherever a part of a data set is taken, numbering its images otherwise changes no more than another draw would.

The metrics have a test of their own, in tests/metrics/classification/test_renumbering.py, and agreement of masks in
tests/experiments/classification/test_mask_agreement.py.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from salun_core.data import ImageData, from_datasets
from salun_core.data.batches import Batches
from salun_core.data.images import fewer
from salun_core.data.splits import split_data
from salun_core.experiments.classification.compatibility import _some
from salun_core.experiments.generation.judging import real_images
from salun_core.experiments.runs.cells import MaskSpec
from salun_core.experiments.runs.lab import scores_of
from salun_core.experiments.text_to_image.probes import Prober, Probing
from salun_core.methods.classification.iu import iu
from salun_core.metrics.generation import frechet
from salun_core.tasks.classification import ClassificationTask

CLASSES, TRAIN, TEST = 5, 1500, 500
NUMBERINGS = ["sorted by class", "reversed", "sorted by class, reversed"]


def numbered(how, seed=0):
    """A data set whose pixels name their class; training images first."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (TRAIN + TEST,), generator=torch.Generator().manual_seed(0))
    parts = []
    for rows in (torch.arange(TRAIN), torch.arange(TRAIN, TRAIN + TEST)):
        order = rows[torch.randperm(len(rows), generator=rng)]
        if "sorted" in how:
            order = order[labels[order].argsort(stable=True)]
        parts.append(order.flip(0) if "reversed" in how else order)
    labels = labels[torch.cat(parts)]
    images = (10 * labels.byte())[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    return ImageData("numbered", images, labels, TRAIN, tuple("abcde"))


def of_images(images):
    """The classes that images name."""
    return images[:, 0, 0, 0].long() // 10


def batches(data, ids):
    return Batches(data.images[ids], data.labels[ids], ids, size=50)


def task_of(data):
    split = split_data(data, scenario="random", seed=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    return ClassificationTask(network, {role: batches(data, ids) for role, ids in split.items()})


def of_split(role):
    return lambda data: data.labels[split_data(data, scenario="random", seed=0)[role]]


def of_given(data):
    """The test part of a data set that came without one."""
    items = list(zip(data.images[:TRAIN], data.labels[:TRAIN].tolist(), strict=True))
    found = from_datasets(items, None, name="given")
    return found.labels[found.n_train :]


def of_influence(data):
    """The retain images of IU's recursion."""
    seen = []

    class Watched(Batches):
        def subset(self, rows):
            seen.append(self.labels[rows])
            return super().subset(rows)

    task = task_of(data)
    retain = Watched(**vars(task.retain))
    iu(replace(task, parts=task.parts | {"retain": retain}), samples=200, alpha=0.1)
    return torch.cat(seen)


def of_first_batch(data):
    """The images behind a score that looks at the first batch only."""
    seen = []
    task = task_of(data)

    class Watched(ClassificationTask):
        def loss(self, model, batch):
            seen.append(batch[1])
            return super().loss(model, batch)

    scores_of(Watched(**vars(task)), MaskSpec("salient", 0.5, "first_batch"), seed=0)
    return torch.cat(seen)


def of_probes(data):
    """The forget images from which a network is to learn the concept again."""
    forget = batches(data, torch.arange(TRAIN))
    prompts = SimpleNamespace(numbers=lambda _: torch.arange(CLASSES))
    task = SimpleNamespace(parts={"forget": forget}, prompts=prompts)
    lab = SimpleNamespace(task=lambda *_: task, prompts=SimpleNamespace(training=[""]))
    cell = SimpleNamespace(seed=0, scenario=None)
    return Prober(lab, Probing(relearn_images=100)).examples(cell, 0).labels


PARTS = {
    "a part of the training images": lambda data: fewer(data, 300).labels[:300],
    "validation": of_split("validation"),
    "forget": of_split("forget"),
    "test part of one set": of_given,
    "compatibility": lambda data: _some(data, 200, 1e-9).labels,
    "images to relearn from": of_probes,
    "IU": of_influence,
    "first batch": of_first_batch,
    "real images": lambda data: of_images(real_images(data, [0], train=True, most=200)),
    "held-out images": lambda data: of_images(frechet.drawn(data.images[TRAIN:], 200)),
}


@pytest.mark.parametrize("how", NUMBERINGS)
@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_the_classes_of_a_random_draw(name, how):
    found = torch.bincount(PARTS[name](numbered(how)), minlength=CLASSES).double()
    draws = [torch.bincount(PARTS[name](numbered("shuffled", s)), minlength=CLASSES) for s in range(3)]
    expected = torch.stack(draws).double().mean(dim=0)
    # A random draw without classes in mind has a binomial spread; 4 standard deviations of it.
    assert found.sum() == draws[0].sum()
    assert ((found - expected).abs() <= 4 * expected.sqrt() + 1).all()
