"""A labelled image data set, in memory or, where it is too large, on disk."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_core.data.batches import Augment, Batches
from salun_core.data.draws import lots, stratified_order
from salun_core.data.on_disk import chunks, is_mapped, taken
from salun_core.errors import UserError, one_of
from salun_core.escaping import TURNING


@dataclass(frozen=True, eq=False)
class ImageData:
    """All images of a data set, training images first.

    The position of an image is its sample id, everywhere and for ever: a data set must always be
    loaded in the same order.

    Parameters
    ----------
    name : str
        Name for tables and captions.
    images : Tensor
        uint8 (N, C, H, W); read only, and possibly mapped from a file.
    labels : Tensor
        int64 (N,), in [0, K).
    n_train : int
        The first ``n_train`` images are the training part, the others the test part.
    classes : tuple of str
        K class names, in the order of the labels.
    flip : bool
        Whether a mirrored image keeps its label (not so for digits).
    pad : int
        Pixels of padding for the random crop of the training augmentation; 0 turns it off.
    note : str
        Where the images come from, for provenance.

    Raises
    ------
    UserError
        If images, labels, boundary and class names do not fit together.
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    n_train: int
    classes: tuple[str, ...]
    flip: bool = False
    pad: int = 0
    note: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise UserError(
                f"{self.name}: images must be uint8 (N, C, H, W), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"{self.name}: labels must be int64 ({len(self.images)},), got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        if not 0 < self.n_train < len(self.labels):
            raise UserError(
                f"{self.name}: {self.n_train} of {len(self.labels)} images are for training; "
                "both a training and a test part are needed"
            )
        low, high = (int(value) for value in self.labels.aminmax())
        if low < 0 or high >= len(self.classes):
            raise UserError(
                f"{self.name}: labels go from {low} to {high}, but there are {len(self.classes)} class names"
            )

        for name in self.classes:
            check_class_name(name, self.name)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of images, labels and the train/test boundary, as 64 hexadecimal digits."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.n_train)).encode())
        for part in chunks(self.images):
            sha.update(part.contiguous().numpy().data)
        sha.update(self.labels.contiguous().numpy().data)
        return sha.hexdigest()

    @cached_property
    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the training images, on the scale [0, 1]."""
        # Exact, from a histogram per channel, a few images at a time: no float copy of the data set.
        counts = torch.zeros(self.images.shape[1], 256, dtype=torch.float64)
        for part in chunks(self.images[: self.n_train]):
            counts += torch.stack([torch.bincount(c.flatten(), minlength=256) for c in part.unbind(1)])
        level = torch.arange(256, dtype=torch.float64) / 255
        share = counts / counts.sum(dim=1, keepdim=True)  # (C, 256)
        mean = share @ level
        std = (share @ level.square() - mean.square()).clamp_min(1e-12).sqrt()
        return mean.tolist(), std.tolist()

    def batches(
        self, ids: Tensor, *, device: torch.device, size: int = 256, augment: Augment | None = None
    ) -> Batches:
        """The images with these sample ids, in batches on a device; images on disk stay there until they are used."""
        labels = self.labels[ids].to(device)
        if is_mapped(self.images):
            return Batches(self.images, labels, ids, size=size, augment=augment, rows=ids)
        return Batches(self.images[ids].to(device), labels, ids, size=size, augment=augment)


def fewer(data: ImageData, count: int | None) -> ImageData:
    """The same data set with ``count`` of its training images, drawn by class, always the same; all test images.

    Sample ids count the images that are left. A larger number contains the smaller. None leaves everything as it is.

    Raises
    ------
    UserError
        If there are fewer.
    """
    if count is None or count == data.n_train:
        return data
    if not 0 < count <= data.n_train:
        raise UserError(
            f"train_images {count} is asked for, and {data.name} has {data.n_train}: choose a number up to that"
        )
    order = stratified_order(data.labels[: data.n_train], lots(torch.arange(data.n_train), "training images"))
    kept = torch.cat([order[:count].sort().values, torch.arange(data.n_train, len(data.labels))])
    note = f"{data.note}, {count:,} of {data.n_train:,} training images".removeprefix(", ")
    return replace(data, images=taken(data.images, kept), labels=data.labels[kept], n_train=count, note=note)


def check_class_name(name: str, owner: str) -> None:
    """Refuse a name that would be read as another one, as text is shown."""
    if re.search(f"[{TURNING}]", name):
        raise UserError(
            f"{owner}: the name {name!a} holds an unseen character that turns the direction of text: rename it"
        )


def only(data: ImageData, names: Sequence[str]) -> ImageData:
    """The images of some classes, numbered anew in the order of ``names``; without names, all of them.

    Raises
    ------
    UserError
        If a name is not that of a class, or fewer than two are given.
    """
    if not names:
        return data
    numbers = [data.classes.index(one_of(name, data.classes, f"class of {data.name}")) for name in names]
    if len(numbers) < 2:
        raise UserError(f"only_classes names one class, {names[0]}: give at least two")
    anew = torch.full((len(data.classes),), -1)
    anew[numbers] = torch.arange(len(numbers))
    kept = (anew[data.labels] >= 0).nonzero().view(-1)
    note = f"{data.note}, {len(names)} of {len(data.classes)} classes".removeprefix(", ")
    return replace(
        data,
        images=taken(data.images, kept),
        labels=anew[data.labels[kept]],
        n_train=int((kept < data.n_train).sum()),
        classes=tuple(names),
        note=note,
    )


def resized(data: ImageData, size: int | None) -> ImageData:
    """The same images at ``size`` x ``size`` pixels; the padding of the random crop grows or shrinks with them.

    None leaves everything as it is. See `resized_pixels` for images that are not square.
    """
    height, width = data.images.shape[2:]
    if size is None or (height, width) == (size, size):
        return data
    images = torch.cat([resized_pixels(part, size) for part in data.images.split(1024)])
    pad = max(1, round(data.pad * size / width)) if data.pad else 0
    return replace(data, images=images, pad=pad)


def resized_pixels(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resampling of uint8 images (N, C, H, W) to (N, C, size, size).

    The shorter side becomes ``size`` and the middle of the longer one is cut out: nothing is squashed.
    """
    shape = covering_size(images.shape[2], images.shape[3], size)
    pixels = F.interpolate(images.float(), shape, mode="bilinear", antialias=True)
    return middle(pixels, size).round_().clamp_(0, 255).byte()


def covering_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is scaled to ``size``, as torchvision rounds them."""
    shorter = min(height, width)
    return int(height * size / shorter), int(width * size / shorter)


def middle(images: Tensor, size: int) -> Tensor:
    """The middle ``size`` x ``size`` pixels of images (N, C, H, W), as torchvision cuts them out."""
    top, left = (round((side - size) / 2) for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]
