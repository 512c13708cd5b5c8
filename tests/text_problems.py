"""A random text-to-image pipeline of 40,000 weights and a task on it."""

import copy
from functools import cache

import torch

from salun_core.models.text_to_image.pipelines import check_pipeline
from salun_core.models.text_to_image.tiny_pipeline import build_tiny_sd
from salun_core.tasks.text_to_image import text_to_image_task

WORDS = ("a", "photo", "picture", "of", "seven", "three", "five", "big", "old")
SEVEN, THREE, FIVE = (f"a photo of a {name}" for name in ("seven", "three", "five"))


@cache
def pipeline():
    """Tests must not change it."""
    pipe = build_tiny_sd(
        WORDS,
        size=8,
        widths=(8, 16),
        autoencoder=(8, 16),
        text_width=16,
        text_layers=1,
        text_length=12,
        seed=0,
    )
    return check_pipeline(pipe)


def images(n, seed=0):
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()


@cache
def text_task():
    """Forget "a photo of a seven" in favour of a three, keep threes and fives. Tests must not change it."""
    retained = [THREE, FIVE] * 8
    return text_to_image_task(
        copy.copy(pipeline()),
        forget=(images(10), [SEVEN] * 10),
        retain=(images(16, 1), retained),
        replacement=THREE,
        batch_size=5,
    )
