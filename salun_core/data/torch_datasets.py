"""Any pair of PyTorch data sets as images in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salun_core.data.image_files import picture_8bit
from salun_core.data.images import ImageData, resized_pixels
from salun_core.errors import UserError
from salun_core.rng import generator

TWICE = 16  # images read twice, to find random transforms


def from_datasets(
    train: Any,
    test: Any = None,
    *,
    name: str,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    flip: bool = False,
    pad: int = 0,
) -> ImageData:
    """Take images from any two ``torch.utils.data.Dataset`` of (image, label).

    Parameters
    ----------
    train, test : Dataset
        With a length and items ``(image, label)``. Images: PIL, or arrays or tensors of uint8 or of floats
        in [0, 1], shaped (H, W), (H, W, C) or (C, H, W). Labels: whole numbers from 0. Without
        augmentation and normalisation: the training does the first, the model the second. Without
        ``test``, a fifth of each class of ``train`` is set aside, always the same one.
    name : str
        For tables.
    classes : sequence of str, optional
        Class names; by default ``train.classes``, or the numbers.
    size : int, optional
        Resize to ``size`` x ``size``; needed when images are not square or differ in size.
    flip : bool
        Whether the training may mirror images, see `ImageData`.
    pad : int
        Padding of the random crop in training, see `ImageData`.

    Raises
    ------
    UserError
        If a set is empty, changes from one reading to the next, or holds something else.
    """
    images, labels = _gathered(train, f"{name} (train)", size)
    n_train = len(labels)
    if test is not None:
        more, more_labels = _gathered(test, f"{name} (test)", size)
        if more.shape[1:] != images.shape[1:]:
            raise UserError(
                f"{name}: training images are {_shape(images[0])}, test images {_shape(more[0])}: "
                "give both the same channels, and size= to resize them"
            )
        images, labels = torch.cat([images, more]), torch.cat([labels, more_labels])
    else:
        order, n_train = _fifth_last(labels)
        images, labels = images[order], labels[order]
    names = classes if classes is not None else getattr(train, "classes", range(int(labels.max()) + 1))
    return ImageData(
        name,
        images,
        labels,
        n_train,
        tuple(map(str, names)),
        flip,
        pad,
        note=f"{len(labels)} images from Python",
    )


def _gathered(dataset: Any, what: str, size: int | None) -> tuple[Tensor, Tensor]:
    try:
        count = len(dataset)
        dataset[0] if count else None
    except (TypeError, NotImplementedError, AttributeError) as error:
        raise UserError(
            f"{what}: a {type(dataset).__name__} cannot be indexed: give a data set with a length and numbered items"
        ) from error
    if count == 0:
        raise UserError(f"{what} holds no images")
    labels = torch.empty(count, dtype=torch.int64)
    images: Tensor | None = None
    for row in range(count):
        image, labels[row] = _item(dataset[row], f"{what}, item {row}", size)
        if images is None:
            images = torch.empty(count, *image.shape, dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"{what}: item {row} is {_shape(image)}, item 0 is {_shape(images[0])}: "
                "give size= to resize them, and convert all to grey or all to RGB"
            )
        images[row] = image
    assert images is not None
    for row in range(min(count, TWICE)):
        again, _ = _item(dataset[row], f"{what}, item {row}", size)
        if not torch.equal(again, images[row]):
            raise UserError(
                f"{what}: item {row} differs when read again: leave random transforms out of the data set"
            )
    return images, labels


def _item(item: Any, what: str, size: int | None) -> tuple[Tensor, int]:
    try:
        image, label = item[0], item[1]
        number = int(label)
        if number != label or number < 0:
            raise ValueError
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise UserError(
            f"{what} is not (image, label) with a whole number from 0 as label: wrap the data set"
        ) from error
    if isinstance(image, Image.Image):
        image = np.asarray(picture_8bit(image, size, what))
    pixels = _pixels(image, what)
    if size is not None and pixels.shape[1:] != (size, size):
        pixels = resized_pixels(pixels[None], size)[0]
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(f"{what} is {_shape(pixels)}, not square: give size= to resize all images")
    return pixels, number


def _pixels(image: Any, what: str) -> Tensor:
    """One image as uint8 (C, H, W)."""
    from_tensor = isinstance(image, Tensor)
    tensor = image.detach().cpu() if from_tensor else torch.from_numpy(np.array(image))
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif tensor.ndim == 3:
        # Tensors have their channels first and arrays last, unless only the other order makes sense.
        first, last = tensor.shape[0] in (1, 3), tensor.shape[2] in (1, 3)
        if last and not (first and from_tensor):
            tensor = tensor.permute(2, 0, 1)
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise UserError(
            f"{what} has shape {tuple(tensor.shape)}: give 1 or 3 channels, (H, W, C) or (C, H, W)"
        )
    if tensor.is_floating_point():
        low, high = (float(value) for value in tensor.aminmax())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{what} holds floats from {low:g} to {high:g} instead of 0 to 1: leave out normalisation, "
                "the model does it"
            )
        tensor = (tensor * 255).round()
    elif tensor.dtype != torch.uint8:
        raise UserError(f"{what} holds {tensor.dtype} pixels: give uint8 (0 to 255) or floats (0 to 1)")
    return tensor.byte()


def _fifth_last(labels: Tensor) -> tuple[Tensor, int]:
    """An order with a fifth of each class (at least one image) at the end, and where that begins."""
    rng = generator(0, "test part")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().view(-1)
        if len(rows) < 2:
            raise UserError(
                f"class {int(label)} has one image only: give a test set, or more images of that class"
            )
        count = max(1, round(len(rows) / 5))
        held[rows[torch.randperm(len(rows), generator=rng)[:count]]] = True
    return torch.cat([(~held).nonzero().view(-1), held.nonzero().view(-1)]), int((~held).sum())


def _shape(image: Tensor) -> str:
    return "x".join(map(str, image.shape))
