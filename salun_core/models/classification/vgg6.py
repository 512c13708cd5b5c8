"""VGG-6: a plain network of few, wide layers, trained on a processor within minutes."""

from torch import Tensor, nn

from salun_core.models.classification.resnet9 import convolution, halved


class VGG6(nn.Module):
    """Six 3x3 convolutions on pixels folded into channels, and one linear layer.

    The image is folded first: each block of 2x2 pixels becomes one place with four times the channels, so that
    no layer works on maps of the full size.

    Parameters
    ----------
    classes : int
        K, number of logits.
    channels : int
        Channels of the images.
    width : int
        Channels of the first convolution; the last has four times as many.

    References
    ----------
    Simonyan and Zisserman, ICLR 2015, for pairs of 3x3 convolutions between poolings. Shi et al., CVPR 2016, for
    the folding (its inverse, "pixel shuffle").
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.PixelUnshuffle(2),
            convolution(4 * channels, width),
            convolution(width, width),
            halved(),
            convolution(width, 2 * width),
            convolution(2 * width, 2 * width),
            halved(),
            convolution(2 * width, 4 * width),
            convolution(4 * width, 4 * width),
        )
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W), H and W even."""
        return self.fc(self.features(x).amax(dim=(2, 3)))
