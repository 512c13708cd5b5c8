"""Training augmentation of whole batches: random crops and mirror images, as tensor code."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_core.data.batches import Augment
from salun_core.data.images import ImageData


def crop_and_flip(images: Tensor, rng: torch.Generator, *, pad: int, flip: bool) -> Tensor:
    """Cut a random window of the old size from each zero-padded image, and mirror half of them.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W), any dtype, on any device.
    rng : torch.Generator
        A CPU generator, so that one seed gives the same windows on every device.
    pad : int
        Zeros added on each side, hence the largest shift; 0 for none.
    flip : bool
        Mirror each image left to right with probability one half.

    Returns
    -------
    Tensor
        (N, C, H, W) of the same dtype, channels last in memory.
    """
    n, _, height, width = images.shape
    down, right = torch.randint(0, 2 * pad + 1, (2, n), generator=rng).to(images.device)  # (N,) each
    columns = torch.arange(width, device=images.device).expand(n, width)
    if flip:
        mirrored = torch.rand(n, generator=rng).to(images.device) < 0.5
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    rows = torch.arange(height, device=images.device) + down[:, None]  # (N, H)
    columns = columns + right[:, None]  # (N, W)
    each = torch.arange(n, device=images.device)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)  # (N, H + 2 pad, W + 2 pad, C)
    picked = padded[each[:, None, None], rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return picked.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def augmentation(data: ImageData) -> Augment | None:
    """The training augmentation of a data set, or None where it has none."""
    return partial(crop_and_flip, pad=data.pad, flip=data.flip) if data.pad or data.flip else None
