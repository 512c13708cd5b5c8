"""Networks for CIFAR-10 on a processor: accuracy on training and test images, and images a second.

``python -m benchmarks.network_choice DATA_DIR NAME [--epochs …]`` trains one candidate on a part of the training
images, in an image folder, and prints a row of ``benchmarks/network_choice.csv``. The rows there are those that the
preset ``cifar10-cpu`` was chosen by: JPEG copies of CIFAR-10, one thread of an AMD EPYC processor that computes in
bfloat16, November 2026; other work ran beside them, so seconds are of processor time.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.data import load_dataset
from salun_core.data.augment import crop_and_flip
from salun_core.data.batches import Batch, Batches
from salun_core.errors import one_of
from salun_core.experiments.rehearsal.networks import Flops
from salun_core.models.classification.normalised import Normalised
from salun_core.models.classification.resnet import ResNet18
from salun_core.models.classification.resnet9 import ResNet9, convolution
from salun_core.models.classification.vgg6 import VGG6
from salun_core.rng import generator, isolated
from salun_core.tasks.classification_training import Recipe, train_network

CLASSES = 10


class Added(nn.Module):
    """What goes in, and some layers' result added to it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        return x + self.inner(x)


class Largest(nn.Module):
    """The largest value of every map."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return x.amax(dim=(2, 3))


def folded_resnet(width: int, *, block: int, shortcuts: Sequence[int], factors: Sequence[int]) -> nn.Module:
    """Stages with shortcuts on folded pixels, halved by pooling between them."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(block), convolution(3 * block**2, factors[0] * width)]
    channels = factors[0] * width
    for stage, (factor, count) in enumerate(zip(factors, shortcuts, strict=True)):
        if stage:
            layers += [nn.MaxPool2d(2), convolution(channels, factor * width)]
            channels = factor * width
        layers += [
            Added(convolution(channels, channels), convolution(channels, channels)) for _ in range(count)
        ]
    return nn.Sequential(*layers, Largest(), nn.Linear(channels, CLASSES))


def convmixer(width: int, depth: int, *, kernel: int = 5, patch: int = 2) -> nn.Module:
    """ConvMixer (Trockman and Kolter, 2022): depthwise and pointwise convolutions on patches."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, patch, patch), nn.GELU(), nn.BatchNorm2d(width)]
    for _ in range(depth):
        deep = nn.Conv2d(width, width, kernel, groups=width, padding=kernel // 2)
        layers += [Added(deep, nn.GELU(), nn.BatchNorm2d(width)), nn.Conv2d(width, width, 1), nn.GELU()]
        layers.append(nn.BatchNorm2d(width))
    return nn.Sequential(*layers, Largest(), nn.Linear(width, CLASSES))


CANDIDATES: dict[str, Callable[[], nn.Module]] = {
    "resnet18-8": partial(ResNet18, CLASSES, 3, 8),
    "resnet18-16": partial(ResNet18, CLASSES, 3, 16),
    "resnet18-32": partial(ResNet18, CLASSES, 3, 32),
    "resnet9-16": partial(ResNet9, CLASSES, 3, 16),
    "resnet9-32": partial(ResNet9, CLASSES, 3, 32),
    "vgg6-32": partial(VGG6, CLASSES, 3, 32),
    "vgg6-48": partial(VGG6, CLASSES, 3, 48),
    "vgg6-64": partial(VGG6, CLASSES, 3, 64),
    "resnet-folded-32": partial(folded_resnet, 32, block=2, shortcuts=(1, 1, 1), factors=(1, 2, 4)),
    "resnet-folded-48": partial(folded_resnet, 48, block=2, shortcuts=(0, 1, 1), factors=(1, 2, 4)),
    "resnet-folded-4-96": partial(folded_resnet, 96, block=4, shortcuts=(1, 1), factors=(1, 2)),
    "convmixer-128-6": partial(convmixer, 128, 6),
}
"""Networks that were tried, with their widths."""


def main(words: Sequence[str] | None = None) -> int:
    """Train a candidate and print its row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network_choice", description=__doc__)
    parser.add_argument("data_dir", help="folder with train/<class>/* and test/<class>/*")
    parser.add_argument("name", help=", ".join(CANDIDATES))
    parser.add_argument("--images", type=int, default=20_000, help="training images; a tenth is set aside")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--crop", type=int, default=0, help="pixels of the random shift")
    parser.add_argument("--fp32", action="store_true", help="single precision in place of bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    one_of(given.name, CANDIDATES, "network")
    torch.set_num_threads(1)
    writer = csv.DictWriter(sys.stdout, row := measured(given), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return 0


def measured(given: argparse.Namespace) -> dict[str, object]:
    """Train, and measure on the images trained on and on all test images."""
    data = load_dataset("imagefolder", given.data_dir)
    order = torch.randperm(data.n_train, generator=generator(0, "sub"))[: given.images]
    rows = order[given.images // 10 :]
    augment = partial(crop_and_flip, pad=given.crop, flip=True)

    def batches(ids: Tensor) -> Batches:
        return Batches(data.images[ids], data.labels[ids], ids, size=given.batch_size, augment=augment)

    with isolated(given.seed, "init"):
        net = CANDIDATES[given.name]()
    with torch.no_grad(), Flops() as meter:
        net.eval()(torch.zeros(1, *data.images.shape[1:]))
    model = Normalised(net, [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]).to(memory_format=torch.channels_last)

    def logits(network: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not given.fp32):
            return network(images).float()

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(logits(network, batch[0]), batch[1])

    recipe = Recipe(given.epochs, given.lr, schedule="one_cycle", nesterov=True, batch_size=given.batch_size)
    start = time.process_time()
    train_network(model, batches(rows), loss, recipe=recipe, seed=given.seed)
    seconds = time.process_time() - start

    def accuracy(ids: Tensor) -> float:
        with torch.no_grad():
            right = [(logits(model, x).argmax(1) == y).sum() for x, y in batches(ids).resized(500)]
        return 100 * int(torch.stack(right).sum()) / len(ids)

    return {
        "network": given.name,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "MFLOP": round(meter.total / 1e6, 1),
        "images": given.images,
        "epochs": given.epochs,
        "batch_size": given.batch_size,
        "lr": given.lr,
        "crop": given.crop,
        "precision": "fp32" if given.fp32 else "bf16",
        "seed": given.seed,
        "cpu_seconds": round(seconds),
        "images_per_second": round(len(rows) * given.epochs / seconds),
        "RA": f"{accuracy(rows):.2f}",
        "TA": f"{accuracy(torch.arange(data.n_train, len(data.labels))):.2f}",
    }


if __name__ == "__main__":
    sys.exit(main())
