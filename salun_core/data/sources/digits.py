"""Handwritten digits that come with scikit-learn: real images, no download."""

from pathlib import Path

import numpy as np
import torch

from salun_core.data.images import ImageData, resized
from salun_core.errors import UserError


def load(data_dir: Path | None = None, *, size: int | None = None, download: bool = True) -> ImageData:
    """1,797 grey 8x8 digits by 13 writers, half of them for training (stratified, always the same).

    Parameters
    ----------
    data_dir
        Must be None: the images are part of scikit-learn.
    size : int, optional
        Resize to ``size`` x ``size``.
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
    refuse_folder("digits", data_dir)
    return resized(read(test=0.5), size)


def refuse_folder(name: str, data_dir: Path | None) -> None:
    """Refuse a ``data_dir`` that would be ignored."""
    if data_dir is not None:
        raise UserError(
            f"dataset {name} comes with scikit-learn: leave out data_dir, or choose dataset imagefolder"
        )


def read(*, test: int | float) -> ImageData:
    """The digits at 8x8 pixels with ``test`` of them (a share or a number) as the test part, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, held_out = train_test_split(
        np.arange(len(digits.target)), test_size=test, stratify=digits.target, random_state=0
    )
    order = np.concatenate([np.sort(train), np.sort(held_out)])
    images = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)[:, None]  # 0..16 to 0..255
    return ImageData(
        name="digits",
        images=torch.from_numpy(images),
        labels=torch.from_numpy(digits.target[order]).long(),
        n_train=len(train),
        classes=tuple(str(d) for d in range(10)),
        flip=False,
        pad=0,
        note="handwritten digits of scikit-learn (UCI), 8x8 pixels",
    )
