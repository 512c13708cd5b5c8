"""Normalisation inside the network, so that a stored model is complete."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself.

    Parameters
    ----------
    net : nn.Module
        Takes normalised images (N, C, H, W), gives logits (N, K).
    mean, std : sequence of float
        One value per channel; they become buffers, not weights.
    repeat : int
        How often the channels are repeated: 3 gives a network for colour images grey ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Sequence[float], std: Sequence[float], *, repeat: int = 1
    ) -> None:
        super().__init__()
        self.net = net
        self.repeat = repeat
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        normal = (images - self.mean) / self.std
        return self.net(normal if self.repeat == 1 else normal.repeat(1, self.repeat, 1, 1))
