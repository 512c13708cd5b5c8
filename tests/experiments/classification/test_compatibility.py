"""Defects built into data sets and models are found, and named."""

import copy
import re
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import small_network, trained_task
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from salun_core.__main__ import main
from salun_core.data import ImageData
from salun_core.experiments.classification import compatibility
from salun_core.experiments.classification.compatibility import check_compatibility
from salun_core.pages.tables.runs import compatibility_table


def digits(first, last):
    found = load_digits()
    images = torch.from_numpy(found.images[first:last] / 16).float()[:, None]
    return TensorDataset(images, torch.from_numpy(found.target[first:last]).long())


TRAIN, TEST = digits(0, 900), digits(900, 1200)


class Changed(TensorDataset):
    """The training digits, each passed through ``change`` when read."""

    def __init__(self, change):
        super().__init__(*TRAIN.tensors)
        self.change = change

    def __getitem__(self, row):
        return self.change(*super().__getitem__(row))


class Around(nn.Module):
    """A small network with ``defect`` behind it."""

    def __init__(self, defect, net=None):
        super().__init__()
        self.net = net or small_network(0)
        self.defect = defect

    def forward(self, images):
        return self.defect(self.net(images))


def wrong(report):
    return " ".join(str(check) for check in report.checks if check.ok is False)


def test_repeated_images_are_counted_without_holding_all():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (4_000, 1, 64, 64), dtype=np.uint8))
    images[1], images[-1] = images[0], images[2]
    data = ImageData("many", images, torch.arange(4_000) % 2, 3_000, ("a", "b"))
    tracemalloc.start()
    found = [str(check) for check in compatibility._repeated(data)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "1 of 3,000 repeat" in found[0] and "1 of 1,000 test images" in found[1]
    assert peak < images.numel() / 8


def test_a_fitting_pair_passes_and_stays_as_it_was():
    model = trained_task().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = check_compatibility((TRAIN, TEST), model)
    assert report.ok, str(report)
    assert all(check.ok for check in report.checks)
    assert "raises UA" in report.checks[-1].what
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image, label: (image + torch.rand(()) * (1 - image), label), "differs when read again"),
        (lambda image, label: (image * 2 - 1, label), "leave out normalisation"),
        (lambda image, label: (image, label + 1), "none for 0"),
        (lambda image, label: (image, -1), "whole number from 0"),
        (lambda image, label: image, "not \\(image, label\\)|has shape|whole number"),
    ],
)
def test_data_sets_with_a_defect(change, said):
    report = check_compatibility((Changed(change), TEST), small_network(0))
    assert not report.ok
    assert re.search(said, wrong(report)), str(report)


def test_a_test_set_of_training_images():
    assert "also training images" in wrong(check_compatibility((TRAIN, TRAIN), small_network(0)))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: Around(lambda x: x.softmax(1)), "leave the softmax out"),
        (lambda: Around(lambda x: F.dropout(x, 0.5)), "random is on in evaluation mode"),
        (lambda: Around(lambda x: x - x.mean(0)), "looks at other images of the batch"),
        (lambda: Around(lambda x: x[:, :7]), "must give logits"),
        (lambda: Around(lambda x: x, nn.Sequential(nn.Flatten(), nn.Linear(100, 10))), "does not take"),
        (lambda: small_network(0).requires_grad_(False), "requires_grad"),
    ],
)
def test_models_with_a_defect(model, said):
    report = check_compatibility((TRAIN, TEST), model())
    assert not report.ok
    assert said in wrong(report), str(report)


class Counting(nn.Module):
    """Moves a buffer with every image, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.net = small_network(0)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        self.seen += len(images)
        return self.net(images)


def test_a_model_that_changes_when_it_is_only_looked_at():
    assert "update them only if self.training" in wrong(check_compatibility((TRAIN, TEST), Counting()))


def test_pixels_divided_twice():
    report = check_compatibility((Changed(lambda image, label: (image / 255, label)), TEST), small_network(0))
    assert "divided by 255 twice" in wrong(report)


def test_images_that_are_given_twice():
    images, labels = TRAIN.tensors
    twice = TensorDataset(torch.cat([images, images[:300]]), torch.cat([labels, labels[:300]]))
    assert "300 of 1,200 repeat an earlier one" in wrong(check_compatibility((twice, TEST), small_network(0)))


def test_more_labels_than_class_names():
    train = Changed(lambda image, label: (image, label))
    train.classes = ["a", "b", "c"]
    assert "labels go from 0 to 9" in wrong(check_compatibility((train, TEST), small_network(0)))


def test_a_trained_model_that_expects_other_pixels_is_told():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(trained_task().model)

        def forward(self, images):
            return self.net(1 - images)

    report = check_compatibility((TRAIN, TEST), Other())
    known = next(check for check in report.checks if "recognises" in check.what)
    assert known.ok is None
    assert "normalisation belongs into its forward" in known.said


@pytest.mark.parametrize("layers", [0, 1])
def test_batch_norm_is_told(layers):
    norm = [nn.BatchNorm2d(1)] * layers
    report = check_compatibility((TRAIN, TEST), nn.Sequential(*norm, nn.Flatten(), nn.Linear(64, 10)))
    said = next(check.said for check in report.checks if check.what == "BatchNorm")
    assert said.startswith(f"{layers} layers" if layers else "none")


def test_an_unused_weight_is_named():
    model = Around(lambda x: x)
    model.spare = nn.Linear(2, 2)
    assert "spare.weight" in wrong(check_compatibility((TRAIN, TEST), model))


def test_a_model_that_cannot_learn_leaves_the_direction_open():
    report = check_compatibility((TRAIN, TEST), Around(lambda x: x * 1e-9))
    last = report.checks[-1]
    assert last.ok is None
    assert "trained model" in last.said


def test_the_command_tells_by_its_status(capsys):
    assert main(["check", "--dataset", "digits", "--arch", "resnet18", "--width", "4"]) == 0
    assert "Everything fits" in capsys.readouterr().out
    assert main(["check", "--dataset", f"{__name__}:leaking", "--arch", "resnet18", "--width", "4"]) == 1
    assert "also training images" in capsys.readouterr().out
    assert main(["check", "--dataset", "digit", "--arch", "resnet18"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image-size", "100000000"], "image_size: .* 1024, got 100000000"),
        (["--width", "-3"], "width: .* greater than or equal to 1, got -3"),
        (["--keep", "nan"], "keep"),
    ],
)
def test_the_command_refuses_what_a_run_would_refuse(words, said, capsys):
    assert main(["check", "--dataset", "digits", "--arch", "resnet18", *words]) == 2
    assert re.fullmatch(f"salun_core: .*{said}.*\n", capsys.readouterr().err)


def leaking():
    return TRAIN, TRAIN


def test_what_is_wrong_stands_out_in_a_notebook():
    page = compatibility_table(check_compatibility((TRAIN, TRAIN), small_network(0)))._repr_html_()
    marked = [row for row in page.split("</tr>") if 'class="best"' in row]
    assert len(marked) == 1
    assert "also training images" in marked[0]
