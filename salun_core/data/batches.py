"""Batches of images: in memory, or read anew from a loader for each pass."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from salun_core.data.on_disk import release
from salun_core.errors import UserError

Batch = tuple[Tensor, Tensor]
"""``(images, condition)``: floats in [0, 1] (N, C, H, W), and a class label or prompt index each (N,)."""

Augment = Callable[[Tensor, torch.Generator], Tensor]

IMAGES = ("pixel_values", "images", "image")
LABELS = ("labels", "label")
PROMPTS = ("prompts", "prompt", "text", "caption")
FORM = "a batch is (images, labels), or a dict with pixel_values and labels"


@dataclass(frozen=True)
class Batches:
    """Part of a data set in memory, cut into batches.

    Iterating gives every image once, in order and without augmentation: what masks and metrics need.
    ``shuffled`` gives one training epoch.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W), uint8 (scaled to [0, 1] when a batch is cut) or float (handed on as it is).
    labels : Tensor
        (N,) int64.
    ids : Tensor
        (N,) int64 sample ids.
    size : int
        Images in a batch, at most.
    augment : callable, optional
        ``augment(images, rng)``, used by ``shuffled`` only.
    rows : Tensor, optional
        (N,) int64: positions of this part in ``images``, where those lie on disk and only batches come to memory.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    size: int = 256
    augment: Augment | None = None
    rows: Tensor | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def empty(self) -> bool:
        """Whether there is no image."""
        return self.n == 0

    @property
    def distinct(self) -> tuple[int, ...]:
        """The labels that occur, in order."""
        return tuple(self.labels.unique().tolist())

    @property
    def device(self) -> torch.device:
        """Where batches are put."""
        return self.labels.device

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.n, self.size):
            part = slice(start, start + self.size)
            yield self._scaled(self._pixels(part)), self.labels[part]

    def shuffled(self, rng: torch.Generator) -> Iterator[Batch]:
        """One epoch in an order drawn from ``rng``, augmented by draws from ``rng`` (a CPU generator)."""
        if not self.n:
            return
        order = torch.randperm(self.n, generator=rng).to(self.device)
        # Batches of nearly equal size: a short last one would distort BatchNorm, one image would stop it.
        for rows in order.tensor_split(len(self)):
            images = self._scaled(self._pixels(rows))
            if self.augment is not None:
                images = self.augment(images, rng)
            yield images, self.labels[rows]

    def resized(self, size: int) -> "Batches":
        """The same images in batches of ``size``."""
        return replace(self, size=size)

    def subset(self, rows: Tensor) -> "Batches":
        """The images at positions ``rows``, with the same settings."""
        rows = rows.to(self.device)
        part = replace(self, labels=self.labels[rows], ids=self.ids[rows.to(self.ids.device)])
        if self.rows is not None:
            return replace(part, rows=self.rows[rows.cpu()])
        return replace(part, images=self.images[rows])

    def _pixels(self, part: slice | Tensor) -> Tensor:
        if self.rows is None:
            return self.images[part]
        pixels = self.images[self.rows[part if isinstance(part, slice) else part.cpu()]]
        release(self.images)
        return pixels.to(self.device)

    def _scaled(self, images: Tensor) -> Tensor:
        # Reordered first: a byte is moved where a float would be four.
        images = images.contiguous(memory_format=torch.channels_last)
        return _scaled(images)


@dataclass(frozen=True)
class Stream:
    """Part of a data set that a loader reads anew for each pass; no more than two batches are in memory.

    Order and augmentation are the loader's own. What it draws from torch's random numbers is repeatable all the
    same: a plain pass is always the same one, and ``shuffled`` gives another epoch for another ``rng``. The random
    numbers of the caller, and a generator that the loader was given, stay as they are.

    Parameters
    ----------
    source : iterable
        Gives (images, labels), or dicts with ``pixel_values`` and ``labels``, from the start each time: a
        ``DataLoader``, a list of batches, … Images are uint8 (scaled to [0, 1]) or float (handed on as they are).
    device : torch.device
        Where batches are put.
    what : str
        Name in messages.
    size : int, optional
        Images in a batch; by default as they come.
    classes : int, optional
        K: another label than 0 to K - 1 is refused, in whichever batch it is.
    unit : bool
        Refuse images outside [0, 1].

    Raises
    ------
    UserError
        While it is read: if it gives no batches (see `batch_of`), or others than these.
    """

    source: Iterable[Any] = field(repr=False)
    device: torch.device
    what: str = "the loader"
    size: int | None = None
    classes: int | None = None
    unit: bool = False
    counted: dict[str, int] = field(default_factory=dict, repr=False)  # images and batches of a whole pass
    seen: dict[int, None] = field(default_factory=dict, repr=False)  # labels so far

    @property
    def n(self) -> int:
        """Number of images; found by a pass if none was made before."""
        if "images" not in self.counted:
            for _ in self:
                pass
        return self.counted["images"]

    @property
    def distinct(self) -> tuple[int, ...]:
        """The labels that occur, in order; found by a pass if none was made before."""
        return tuple(sorted(self.seen)) if self.n else ()

    @property
    def empty(self) -> bool:
        """Whether there is no image; reads the first batch."""
        return next(iter(self), None) is None

    def __len__(self) -> int:
        if self.size is not None:
            return -(-self.n // self.size)
        try:
            return len(self.source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):  # a loader of a set without a length
            if "batches" not in self.counted:
                for _ in self:
                    pass
            return self.counted["batches"]

    def __iter__(self) -> Iterator[Batch]:
        return self._pass(0)

    def shuffled(self, rng: torch.Generator) -> Iterator[Batch]:
        """One epoch, in the loader's own order."""
        held: Batch | None = None
        for batch in self._pass(int(torch.randint(1, 2**62, (), generator=rng))):
            if held is not None:
                # BatchNorm cannot be trained on a last batch of one image.
                if len(batch[0]) == 1 and len(held[0]) > 2:
                    batch = (torch.cat([held[0][-1:], batch[0]]), torch.cat([held[1][-1:], batch[1]]))
                    held = (held[0][:-1], held[1][:-1])
                yield held
            held = batch
        if held is not None:
            yield held

    def resized(self, size: int) -> "Stream":
        """The same images in batches of ``size``."""
        return replace(self, size=size)

    def subset(self, rows: Tensor) -> Batches:
        """The images at positions ``rows``, read in one pass and kept in memory."""
        place = {row: i for i, row in enumerate(rows.tolist())}
        kept: list[Tensor] = []  # once: a list of images to be stacked would hold them twice
        first = 0
        for batch in self:
            kept = kept or [part.new_empty(len(rows), *part.shape[1:]) for part in batch]
            for row in range(first, first + len(batch[0])):
                if row in place:
                    for whole, part in zip(kept, batch, strict=True):
                        whole[place[row]] = part[row - first]
            first += len(batch[0])
        if len(rows) and first <= int(rows.max()):
            raise UserError(
                f"{self.what} gave {first} images, fewer than before: give a loader that repeats them"
            )
        return Batches(kept[0], kept[1], rows, size=self.size or len(rows))

    def _pass(self, seed: int) -> Iterator[Batch]:
        images = batches = 0
        for batch in self._regrouped(self._read(seed)):
            images += len(batch[0])
            batches += 1
            yield batch
        self.counted["images"] = images
        if self.size is None:
            self.counted["batches"] = batches

    def _regrouped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.size is None:
            yield from batches
            return
        parts: list[Batch] = []
        for batch in batches:
            parts.append(batch)
            while (have := sum(len(images) for images, _ in parts)) >= self.size:
                images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
                yield images[: self.size], labels[: self.size]
                parts = [(images[self.size :], labels[self.size :])] if have > self.size else []
        if parts:
            images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            yield images, labels

    def _read(self, seed: int) -> Iterator[Batch]:
        draws = _OwnDraws(self.source, seed)
        with draws:
            items = iter(self.source)
        while True:
            with draws:
                item = next(items, _END)
            if item is _END:
                return
            images, labels = batch_of(item, self.what)
            if self.classes is not None:  # here, since an accelerator would die of a wrong label
                check_labels(labels, self.what, self.classes)
            if self.unit and images.is_floating_point():
                _check_unit(images, self.what)
            self.seen.update(dict.fromkeys(labels.tolist()))
            yield _scaled(images.to(self.device)), labels.to(self.device)


def _scaled(images: Tensor) -> Tensor:
    """Bytes to [0, 1]; other images as they are. A copy either way: a network may write into what it is given."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.clone()


Loader = Batches | Stream
"""Data of a task: in memory, or read anew for each pass."""


def as_loader(
    source: Any,
    *,
    device: torch.device,
    what: str = "the loader",
    classes: int | None = None,
    unit: bool = False,
) -> Loader:
    """``source`` as data of a task: `Batches` as they are, a `Stream` with these settings, any other iterable as one.

    The parameters are those of `Stream`.

    Raises
    ------
    UserError
        If ``source`` cannot be iterated, or only once; or if it is in memory and does not hold to the settings.
    """
    if isinstance(source, Stream):
        return replace(
            source, classes=source.classes if classes is None else classes, unit=source.unit or unit
        )
    if isinstance(source, Batches):
        check_labels(source.labels, what, classes)
        for images, _ in itertools.islice(source, 1 if unit else 0):
            _check_unit(images, what)
        return source
    _check_iterable(source, what, FORM)
    if isinstance(source, Iterator):
        raise UserError(
            f"{what} is a {type(source).__name__}, which can be read once only: give a DataLoader or a list of batches"
        )
    return Stream(source, device, what, classes=classes, unit=unit)


def _check_iterable(source: Any, what: str, form: str) -> None:
    if not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise UserError(f"{what} is a {type(source).__name__}: give a DataLoader or another iterable; {form}")


def batch_of(item: Any, what: str = "the loader") -> Batch:
    """Images and labels of what a loader gives.

    Raises
    ------
    UserError
        If it is not a batch, has no images, or has labels that are not class numbers or images that are not finite.
    """
    if isinstance(item, Mapping):
        images, labels = (next((item[k] for k in keys if k in item), None) for keys in (IMAGES, LABELS))
        if labels is None:
            labels = next((item[k] for k in PROMPTS if k in item), None)
        if images is None or labels is None:
            raise UserError(f"{what} gives a dict with {', '.join(map(str, item))}: {FORM}")
    elif isinstance(item, tuple | list) and len(item) >= 2:
        images, labels = item[0], item[1]
    else:
        raise UserError(f"{what} gives a {type(item).__name__}: {FORM}")
    if (not isinstance(labels, Tensor) and getattr(labels, "ndim", None) == 0) or isinstance(labels, int):
        raise UserError(f"{what} gives single images: put the data set into a torch.utils.data.DataLoader")
    if _are_texts(labels) and labels:
        raise UserError(
            f"{what} gives texts in place of class numbers: number the classes; of prompts, give what a text-to-image "
            "task has encoded, such as task.forget"
        )
    images, labels = as_tensor(images, what, FORM), as_tensor(labels, what, FORM)
    if labels.ndim == 0:
        raise UserError(f"{what} gives single images: put the data set into a torch.utils.data.DataLoader")
    if len(images) != len(labels):
        raise UserError(f"{what} gives {len(images)} images with {len(labels)} labels: give one label each")
    if not images.numel():
        raise UserError(f"{what} gives a batch without images: leave it out")
    check_labels(labels, what)
    check_pixels(images, what)
    if images.is_inference() or labels.is_inference():  # made under torch.inference_mode: no gradient passes
        images, labels = images.clone(), labels.clone()
    return images, labels.long()


def as_tensor(values: Any, what: str, form: str) -> Tensor:
    """What a loader gives as a tensor; ``form`` says what a batch is.

    Raises
    ------
    UserError
        If it cannot be one.
    """
    if isinstance(values, list | tuple) and values and all(isinstance(v, Tensor) for v in values):
        values = torch.stack(list(values)) if len({v.shape for v in values}) == 1 else values
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} gives images or labels that are not tensors ({error}): {form}") from error


def check_pixels(images: Tensor, what: str) -> None:
    """Refuse images that are not finite, or whole numbers other than bytes, which nobody would scale to [0, 1].

    Raises
    ------
    UserError
        That says what to give instead.
    """
    if images.is_floating_point():
        if images.numel() and not all(value.isfinite() for value in images.aminmax()):
            raise UserError(
                f"{what} gives images with NaN or infinite pixels: leave them out, or read them again"
            )
    elif images.dtype not in (torch.uint8, torch.bool):
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(
            f"{what} gives images of {kind}: give bytes (uint8), or floats as the model takes them"
        )


def check_labels(labels: Tensor, what: str, classes: int | None = None) -> None:
    """Refuse labels that are not one class number for each image, from 0 to ``classes`` - 1.

    Raises
    ------
    UserError
        With the label and the classes there are.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"{what} gives labels {labels.dtype} {tuple(labels.shape)}: give one class number per image"
        )
    if classes is None or not labels.numel():
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise UserError(f"{what} gives label {wrong}, but the model has classes 0 to {classes - 1}")


def _check_unit(images: Tensor, what: str) -> None:
    low, high = (float(value) for value in images.aminmax())
    if low < 0 or high > 1:
        raise UserError(
            f"{what} gives images from {low:.2g} to {high:.2g} instead of 0 to 1: leave out normalisation, the task "
            "does it"
        )


def _are_texts(found: Any) -> TypeGuard[Sequence[str]]:
    return (
        isinstance(found, Sequence) and not isinstance(found, str) and all(isinstance(t, str) for t in found)
    )


_END = object()


def captioned_batches(source: Any, what: str = "the loader") -> Iterator[tuple[Tensor, list[str]]]:
    """Images, uint8 (N, C, H, W), and a prompt for each, of a loader: one pass.

    Parameters
    ----------
    source : iterable
        Gives (images, prompts), or dicts with ``pixel_values`` and ``prompts``. Images are uint8, or floats in [0, 1].

    Raises
    ------
    UserError
        If it gives something else.
    """
    form = "a batch is (images, prompts), or a dict with pixel_values and prompts"
    _check_iterable(source, what, form)
    for item in source:
        if isinstance(item, Mapping):
            images, texts = (next((item[k] for k in keys if k in item), None) for keys in (IMAGES, PROMPTS))
        elif isinstance(item, tuple | list) and len(item) >= 2:
            images, texts = item[0], item[1]
        else:
            images = texts = None
        if images is None or not _are_texts(texts):
            raise UserError(f"{what} gives no images with prompts: {form}")
        images = as_tensor(images, what, form)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"{what} gives images {tuple(images.shape)}: give (N, C, H, W), with 1 or 3 channels"
            )
        check_pixels(images, what)
        if images.dtype == torch.bool:
            images = images.float()
        if len(images) != len(texts):
            raise UserError(f"{len(images)} images of {what} came with {len(texts)} prompts: give one each")
        if images.is_floating_point() and images.numel():
            low, high = (float(value) for value in images.aminmax())
            if low < 0 or high > 1:
                raise UserError(
                    f"{what} gives images from {low:.2g} to {high:.2g} instead of 0 to 1: leave out normalisation, "
                    "the pipeline does it"
                )
            images = (images * 255).round().byte()
        yield images, list(texts)


class _OwnDraws:
    """While it is entered, torch's generator and those of a loader go on from a state of their own."""

    def __init__(self, source: Any, seed: int) -> None:
        holders = [source, getattr(source, "sampler", None)]
        given = [getattr(holder, "generator", None) for holder in holders]
        found = {id(g): g for g in given if isinstance(g, torch.Generator)}
        self.generators = [torch.default_generator, *found.values()]
        self.own = [torch.Generator(g.device).manual_seed(seed).get_state() for g in self.generators]

    def __enter__(self) -> None:
        self.callers = [g.get_state() for g in self.generators]
        for generator, state in zip(self.generators, self.own, strict=True):
            generator.set_state(state)

    def __exit__(self, *_: object) -> None:
        self.own = [g.get_state() for g in self.generators]
        for generator, state in zip(self.generators, self.callers, strict=True):
            generator.set_state(state)
