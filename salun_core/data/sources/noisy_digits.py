"""scikit-learn's digits under fixed noise: as hard, for a small network, as CIFAR-10 is for ResNet-18."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from salun_core.data.images import ImageData, resized
from salun_core.data.sources import digits
from salun_core.rng import generator

TEST_IMAGES = 500
NOISE_STD = 60  # grey levels of 255
NOISE_SEED = 0


def load(data_dir: Path | None = None, *, size: int | None = None, download: bool = True) -> ImageData:
    """1,797 grey 8x8 digits with Gaussian noise, 1,297 of them for training (stratified, always the same).

    The noise is drawn once and belongs to the image: standard deviation 60 on the scale of 0 to 255,
    clipped to that scale. A network can learn the training images by heart, noise and all, and then errs
    on one test image in twenty, which the clean digits are too easy for. Every image has a random stream
    of its own, which depends on its clean pixels and on nothing else.

    Parameters
    ----------
    data_dir
        Must be None: the images are part of scikit-learn.
    size : int, optional
        Resize to ``size`` x ``size``, noise included.
    download
        Not used: there is nothing to fetch.

    Raises
    ------
    UserError
        If a folder is given.

    References
    ----------
    Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI repository 1998 (its test part).
    """
    digits.refuse_folder("noisy_digits", data_dir)
    clean = digits.read(test=TEST_IMAGES)
    data = replace(
        clean,
        name="noisy_digits",
        images=torch.stack([with_noise(image) for image in clean.images]),
        note=f"{clean.note}, with Gaussian noise of standard deviation {NOISE_STD} (seed {NOISE_SEED})",
    )
    return resized(data, size)


def with_noise(image: Tensor) -> Tensor:
    """A uint8 image (C, H, W) with the noise that belongs to its pixels, uint8."""
    rng = generator(NOISE_SEED, "noise", image.numpy().tobytes().hex())
    noise = torch.randn(image.shape, generator=rng, dtype=torch.float64)
    return (image + NOISE_STD * noise).round_().clamp_(0, 255).byte()
