"""What a classifier says of images, whichever library it comes from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from salun_core.data.batches import Loader, as_loader, check_labels
from salun_core.errors import UserError
from salun_core.networks import device_of, evaluating, reading


def class_scores(model: nn.Module, images: Tensor, of: str = "") -> Tensor:
    """Class scores (N, K) of a model that returns a tensor, a tuple, or an output with ``logits``.

    Images are put on the model's device first, and floats into its precision.

    Raises
    ------
    UserError
        If the model cannot read the images (``of`` says whose they are, see `reading`), or gives no scores.
    """
    weight = next(model.parameters(), None)
    if weight is not None and weight.is_floating_point():
        images = images.to(weight.device, weight.dtype)
    with reading(model, images, of):
        returned = model(images)
    if isinstance(returned, Mapping):  # the outputs of transformers are mappings
        found = returned.get("logits")
    elif isinstance(returned, tuple | list):
        found = returned[0] if returned else None
    else:
        found = getattr(returned, "logits", returned)
    if not isinstance(found, Tensor):
        keys = f" of {', '.join(map(str, returned))}" if isinstance(returned, Mapping) and returned else ""
        raise UserError(
            f"the model returns a {type(returned).__name__}{keys}: give one that returns logits (N, K), or an output with "
            'them under the name "logits"'
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
        logits = class_scores(model, images, f"of {what}")
    if logits.ndim != 2 or len(logits) != len(images):
        raise UserError(
            f"the model gives {tuple(logits.shape)} for {len(images)} images: a classifier gives logits (N, K)"
        )
    classes = logits.shape[1]
    if classes > 1 and (logits >= 0).all() and (logits.float().sum(dim=1) - 1).abs().max() < 1e-3:
        raise UserError("the model ends in a softmax: give one that returns logits")
    check_labels(labels, what, classes)
    return classes


def data_for(model: nn.Module, given: Mapping[str, Any]) -> tuple[dict[str, Loader], int | None]:
    """Loaders as data for a classifier, by role, and its number of classes; None if there is no image.

    The first batch of each goes through the model; later ones are held to its classes as they are read.

    Raises
    ------
    UserError
        If they do not fit, see `check_classifier` and `as_loader`.
    """
    parts = {role: as_loader(source, device=device_of(model), what=role) for role, source in given.items()}
    classes = None
    for role, part in parts.items():
        first = next(iter(part), None)
        if first is not None:
            classes = check_classifier(model, *first, what=role)
            parts[role] = as_loader(part, device=part.device, what=role, classes=classes)
    return parts, classes
