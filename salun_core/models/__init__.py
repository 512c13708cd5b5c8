"""Networks for small images. A new one is a file and a line in ``MODELS``."""

from collections.abc import Callable
from functools import partial

from torch import nn

from salun_core.models.build import build_model, check_arch, modules_of, takes_width
from salun_core.models.classification.resnet import ResNet18
from salun_core.models.classification.resnet6 import ResNet6
from salun_core.models.classification.resnet9 import ResNet9
from salun_core.models.classification.resnet34 import ResNet34
from salun_core.models.classification.swin import swin_tiny
from salun_core.models.classification.vgg import VGG16
from salun_core.models.classification.vgg6 import VGG6
from salun_core.plugins import Table, called

MODELS: Table[Callable[..., nn.Module]] = Table(
    {
        "resnet6": ResNet6,
        "resnet9": ResNet9,
        "resnet18": ResNet18,
        "resnet34": ResNet34,
        "vgg16": VGG16,
        "vgg6": VGG6,
        "swin_t": swin_tiny,
    },
    what="arch",
    group="salun_core.models",
    adapt=partial(called, what="arch"),
)
"""Builders by name, called with those of ``classes, channels, size, width`` that they take."""


__all__ = ["MODELS", "build_model", "check_arch", "modules_of", "takes_width"]
