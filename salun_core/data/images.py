"""A labelled image data set that lives in memory."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageData:
    """All images of a data set, training images first.

    The position of an image is its sample id, everywhere and for ever: a data set must always be
    loaded in the same order.

    Parameters
    ----------
    name : str
        Name for tables and captions.
    images : Tensor
        uint8 (N, C, H, W).
    labels : Tensor
        int64 (N,), in [0, K).
    n_train : int
        The first ``n_train`` images are the training part, the others the test part.
    classes : tuple of str
        K class names, in the order of the labels.
    flip : bool
        Whether a mirrored image keeps its label (not so for digits).
    pad : int
        Pixels of padding for the random crop of the training augmentation; 0 turns it off.
    note : str
        Where the images come from, for provenance.
    """

    name: str
    images: Tensor
    labels: Tensor
    n_train: int
    classes: tuple[str, ...]
    flip: bool = False
    pad: int = 0
    note: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of images, labels and the train/test boundary, as 64 hexadecimal digits."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.n_train)).encode())
        sha.update(self.images.contiguous().numpy())
        sha.update(self.labels.contiguous().numpy())
        return sha.hexdigest()

    @cached_property
    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the training images, on the scale [0, 1]."""
        train = self.images[: self.n_train]
        # Exact, from a histogram per channel: no float copy of the data set.
        counts = torch.stack([torch.bincount(c.flatten().int(), minlength=256) for c in train.unbind(1)])
        level = torch.arange(256, dtype=torch.float64) / 255
        share = counts.double() / counts.sum(dim=1, keepdim=True)  # (C, 256)
        mean = share @ level
        std = (share @ level.square() - mean.square()).clamp_min(1e-12).sqrt()
        return mean.tolist(), std.tolist()
