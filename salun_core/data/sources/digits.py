"""Handwritten digits that come with scikit-learn: real images, no download."""

from pathlib import Path

import numpy as np
import torch

from salun_core.data.images import ImageData, resized

TEST_SHARE = 0.5


def load(data_dir: Path | None = None, *, size: int | None = None, download: bool = True) -> ImageData:
    """1,797 grey 8x8 digits by 43 writers, half of them for training (stratified, always the same).

    Parameters
    ----------
    data_dir, download
        Not needed: the images are part of scikit-learn.
    size : int, optional
        Resize to ``size`` x ``size``.

    References
    ----------
    Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI repository 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=TEST_SHARE, stratify=digits.target, random_state=0
    )
    order = np.concatenate([np.sort(train), np.sort(test)])
    images = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)[:, None]  # 0..16 to 0..255
    data = ImageData(
        name="digits",
        images=torch.from_numpy(images),
        labels=torch.from_numpy(digits.target[order]).long(),
        n_train=len(train),
        classes=tuple(str(d) for d in range(10)),
        flip=False,
        pad=0,
        note="handwritten digits of scikit-learn (UCI), 8x8 pixels",
    )
    return resized(data, size)
