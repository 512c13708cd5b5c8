"""Residual networks for small images."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 16
"""Channels below which strided 1x1 convolutions are computed in two steps, see `Pointwise`."""


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with a stride and no bias.

    On a processor, torch 2.15 writes past its buffers in the backward pass of such a convolution whose images lie
    channels last and have fewer channels than a vector register has numbers, eight or, with AVX-512, sixteen; whether
    the process dies depends on the size of the maps. There the places are picked before the channels are mixed, which
    gives the same sums.

    Parameters
    ----------
    entering, leaving : int
        Channels.
    stride : int
        Every which place is kept.
    """

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__(entering, leaving, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, leaving, H / stride, W / stride)."""
        if self.in_channels >= NARROW:
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.shortcut = nn.Sequential()
        if stride != 1 or entering != leaving:
            self.shortcut = nn.Sequential(Pointwise(entering, leaving, stride), nn.BatchNorm2d(leaving))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, leaving, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 first convolution and no pooling before the blocks.

    Parameters
    ----------
    classes : int
        K, number of logits.
    channels : int
        Channels of the images.
    width : int
        Channels of the first stage, doubled in each of the three that follow.

    References
    ----------
    He et al., Deep residual learning for image recognition, CVPR 2016.
    """

    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)

    def __init__(self, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        entering = width
        for stage, blocks in enumerate(self.blocks):
            leaving = width * 2**stage
            first = Block(entering, leaving, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(Block(leaving, leaving, 1) for _ in range(blocks - 1))))
            entering = leaving
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(entering, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.stages(x).mean(dim=(2, 3)))
