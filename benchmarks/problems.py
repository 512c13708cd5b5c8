"""Made-up problems of the size of real ones."""

from functools import partial

import torch

from salun_core.data.augment import crop_and_flip
from salun_core.data.batches import Batches
from salun_core.models import build_model
from salun_core.tasks.classification import ClassificationTask
from salun_core.tasks.classification_training import Recipe

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def noise_images(count: int, *, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour images of 32 pixels, uint8 (n, 3, 32, 32), and labels (n,)."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=rng, dtype=torch.uint8)
    return images, torch.randint(0, classes, (count,), generator=rng)


def problem(*, width: int, images: int, batch: int) -> ClassificationTask:
    """A tenth of ``images`` to forget, the rest to keep; an untrained ResNet-18."""
    pixels, labels = (part.to(DEVICE) for part in noise_images(images))
    ids = torch.arange(images)
    augment = partial(crop_and_flip, pad=4, flip=True)

    def part(rows: slice) -> Batches:
        return Batches(pixels[rows], labels[rows], ids[rows], size=batch, augment=augment)

    cut = max(images // 10, 2)

    def build(seed: int) -> torch.nn.Module:
        net = build_model(
            "resnet18",
            classes=10,
            channels=3,
            size=32,
            seed=seed,
            width=width,
            mean=[0.5] * 3,
            std=[0.25] * 3,
        )
        return net.to(DEVICE).to(memory_format=torch.channels_last)

    parts = {"forget": part(slice(0, cut)), "retain": part(slice(cut, images))}
    recipe = Recipe(epochs=1, lr=0.1)
    return ClassificationTask(build(0), parts, build, recipe, bf16=DEVICE.type == "cuda")
