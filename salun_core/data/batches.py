"""Batches of images that already lie in memory: plain order for measuring, shuffled for training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""``(images, condition)``: floats in [0, 1] (N, C, H, W), and a class label or prompt index each (N,)."""

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Batches:
    """Part of a data set, cut into batches.

    Iterating gives every image once, in order and without augmentation: what masks and metrics need.
    ``shuffled`` gives one training epoch.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W), uint8 (scaled to [0, 1] when a batch is cut) or float (handed on as it is).
    labels : Tensor
        (N,) int64.
    ids : Tensor
        (N,) int64 sample ids.
    size : int
        Images in a batch, at most.
    augment : callable, optional
        ``augment(images, rng)``, used by ``shuffled`` only.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    size: int = 256
    augment: Augment | None = None

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.n, self.size):
            yield self._scaled(self.images[start : start + self.size]), self.labels[start : start + self.size]

    def shuffled(self, rng: torch.Generator) -> Iterator[Batch]:
        """One epoch in an order drawn from ``rng``, augmented by draws from ``rng`` (a CPU generator)."""
        if not self.n:
            return
        order = torch.randperm(self.n, generator=rng).to(self.images.device)
        # Batches of nearly equal size: a short last one would distort BatchNorm, one image would stop it.
        for rows in order.tensor_split(len(self)):
            images = self._scaled(self.images[rows])
            if self.augment is not None:
                images = self.augment(images, rng)
            yield images, self.labels[rows]

    def resized(self, size: int) -> "Batches":
        """The same images in batches of ``size``."""
        return replace(self, size=size)

    def subset(self, rows: Tensor) -> "Batches":
        """The images at positions ``rows``, with the same settings."""
        rows = rows.to(self.images.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows])

    def _scaled(self, images: Tensor) -> Tensor:
        # Reordered first: a byte is moved where a float would be four.
        images = images.contiguous(memory_format=torch.channels_last)
        return images.float().div_(255) if images.dtype == torch.uint8 else images
