"""ResNet-6: the smallest residual network of this package, for images of a few pixels."""

from typing import ClassVar

from salun_core.models.classification.resnet import ResNet18


class ResNet6(ResNet18):
    """Two stages of one block each, built like `ResNet18`.

    Of 8 pixels the last stage still sees 4x4, so that every entry of its kernels meets pixels: no weight
    is without a gradient, as most of those of ResNet-18 are there. 19,706 weights for ten classes of grey
    images at the default width.

    Parameters
    ----------
    classes : int
        K, number of logits.
    channels : int
        Channels of the images.
    width : int
        Channels of the first stage; the second has twice as many.

    References
    ----------
    He et al., Deep residual learning for image recognition, CVPR 2016.
    """

    blocks: ClassVar[tuple[int, ...]] = (1, 1)

    def __init__(self, classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__(classes, channels, width)
