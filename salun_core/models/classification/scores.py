"""What a classifier says of images, whichever library it comes from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.networks import evaluating


def class_scores(model: nn.Module, images: Tensor) -> Tensor:
    """Class scores (N, K) of a model that returns a tensor, a tuple, or an output with ``logits``.

    Images are put on the model's device first, and floats into its precision.
    """
    weight = next(model.parameters(), None)
    if weight is not None and weight.is_floating_point():
        images = images.to(weight.device, weight.dtype)
    found = model(images)
    if isinstance(found, Mapping):  # the outputs of transformers are mappings
        found = found.get("logits")
    elif isinstance(found, tuple | list):
        found = found[0]
    else:
        found = getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        raise UserError(
            f"the model returns a {type(found).__name__}: give one that returns logits (N, K), or an output with them"
        )
    return found


def check_classifier(model: nn.Module, images: Tensor, labels: Tensor, what: str = "the loader") -> int:
    """Send a batch through the model in evaluation mode; returns K.

    Raises
    ------
    UserError
        If the model cannot read the images, does not give logits (N, K), or labels are not classes from 0 to K - 1.
    """
    with torch.no_grad(), evaluating(model):
        try:
            logits = class_scores(model, images)
        except UserError:
            raise
        except Exception as error:  # a user's network may raise anything
            shape = " x ".join(map(str, images.shape))
            raise UserError(f"the model cannot read the images of {what} ({shape}): {error}") from error
    if logits.ndim != 2 or len(logits) != len(images):
        raise UserError(
            f"the model gives {tuple(logits.shape)} for {len(images)} images: a classifier gives logits (N, K)"
        )
    classes = logits.shape[1]
    if classes > 1 and (logits >= 0).all() and (logits.float().sum(dim=1) - 1).abs().max() < 1e-3:
        raise UserError("the model ends in a softmax: give one that returns logits")
    if labels.ndim != 1 or labels.is_floating_point():
        raise UserError(
            f"{what} gives labels {labels.dtype} {tuple(labels.shape)}: give one class number per image"
        )
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise UserError(f"{what} gives label {wrong}, but the model has classes 0 to {classes - 1}")
    return classes
