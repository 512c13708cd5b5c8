"""VGG-16 with batch normalisation for small images."""

from torch import Tensor, nn

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels in units of the width


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16, each with BatchNorm, and one linear layer.

    Parameters
    ----------
    classes : int
        K, number of logits.
    channels : int
        Channels of the images.
    size : int
        Height and width of the images. Every stage ends with 2x2 pooling; below 32 pixels the first
        stages do without, so that the last ones see as many pixels as those of a 32-pixel image.
    width : int
        Channels of the first stage.

    References
    ----------
    Simonyan and Zisserman, ICLR 2015; Ioffe and Szegedy, ICML 2015.
    """

    def __init__(self, classes: int, channels: int = 3, size: int = 32, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        without = len(STAGES) - min(len(STAGES), size.bit_length() - 1)  # each pooling halves, rounding down
        entering = channels
        for number, stage in enumerate(STAGES):
            for factor in stage:
                leaving = width * factor
                # BatchNorm has a bias of its own.
                layers += [
                    nn.Conv2d(entering, leaving, 3, padding=1, bias=False),
                    nn.BatchNorm2d(leaving),
                    nn.ReLU(),
                ]
                entering = leaving
            if number >= without:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(entering, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        return self.fc(self.features(x).mean(dim=(2, 3)))
