"""ResNet-34 for small images: an independent judge of generated ones."""

from typing import ClassVar

from salun_core.models.classification.resnet import ResNet18


class ResNet34(ResNet18):
    """ResNet-34, built like `ResNet18`.

    References
    ----------
    He et al., Deep residual learning for image recognition, CVPR 2016.
    """

    blocks: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)
