"""Networks that are defined elsewhere: torchvision's, and any callable on the Python path."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from salun_core.errors import UserError, one_of
from salun_core.plugins import called, imported

TORCHVISION = "torchvision"


def find_builder(arch: str) -> Callable[..., Any]:
    """The callable behind "torchvision:NAME" or "package.module:function".

    Raises
    ------
    UserError
        If there is none.
    """
    module, _, name = arch.partition(":")
    if module == TORCHVISION:
        from torchvision import models

        return models.get_model_builder(one_of(name, models.list_models(models), "torchvision classifier"))
    return called(imported(arch, "arch"), arch, "arch")


def built(arch: str, builder: Callable[..., Any], given: dict[str, Any]) -> nn.Module:
    """Call ``builder``; an error inside it is reported in one sentence.

    Raises
    ------
    UserError
        If the call fails or does not return an ``nn.Module``.
    """
    try:
        net = builder(**given)
    except UserError:
        raise
    except Exception as error:
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"arch {arch!r} cannot be built with {words}: {error}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"arch {arch!r} returned a {type(net).__name__} instead of an nn.Module")
    return net


def check_output(model: nn.Module, arch: str, *, classes: int, channels: int, size: int) -> None:
    """Send two black images through a copy of ``model``, as for measuring and as for training.

    Raises
    ------
    UserError
        If that fails or does not give logits (2, K).
    """
    probe = copy.deepcopy(model)
    images = torch.zeros(2, channels, size, size)
    for training in (False, True):
        when = " in training mode" if training else ""
        try:
            with torch.no_grad():
                logits = probe.train(training)(images)
        except Exception as error:
            raise UserError(
                f"arch {arch!r} does not take {channels}x{size}x{size} images{when} ({error}): set image_size"
            ) from error
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != (2, classes):
            raise UserError(f"arch {arch!r} must give logits (2, {classes}) for 2 images{when}, got {found}")
