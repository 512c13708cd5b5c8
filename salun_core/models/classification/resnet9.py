"""ResNet-9: wide layers on small maps, which a processor runs near its peak."""

from torch import Tensor, nn


class ResNet9(nn.Module):
    """Eight convolutions, two shortcuts, and one linear layer.

    Every stage of this network ends with 2x2 pooling, so that most of its weights work on maps of 8x8 and
    4x4 pixels.

    Parameters
    ----------
    classes : int
        K, number of logits.
    channels : int
        Channels of the images.
    width : int
        Channels of the first convolution; the last has eight times as many.

    References
    ----------
    Page, How to train your ResNet, 2018 (64 channels; without its factor on the logits). Coleman et al.,
    DAWNBench, NeurIPS ML Systems Workshop 2017.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(channels, width),
            convolution(width, 2 * width),
            halved(),
            Shortcut(2 * width),
            convolution(2 * width, 4 * width),
            halved(),
            convolution(4 * width, 8 * width),
            halved(),
            Shortcut(8 * width),
        )
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        return self.fc(self.features(x).amax(dim=(2, 3)))


class Shortcut(nn.Module):
    """Two convolutions whose result is added to what went in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(convolution(channels, channels), convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        return x + self.inner(x)


def convolution(entering: int, leaving: int) -> nn.Sequential:
    """A 3x3 convolution with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(entering, leaving, 3, padding=1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()
    )


def halved() -> nn.Module:
    """2x2 pooling; a map of one pixel stays."""
    return nn.MaxPool2d(2, ceil_mode=True)
