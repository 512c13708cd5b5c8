"""Data sets. A new one is a file with a loader and a line in ``DATASETS``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from salun_core.data.images import ImageData, resized
from salun_core.data.sources import digits, image_folder, noisy_digits, tiny_imagenet, torchvision_sets
from salun_core.data.torch_datasets import from_datasets
from salun_core.errors import UserError, one_of
from salun_core.plugins import Table, called, settings_of


def _loader(found: Any, name: str) -> Callable[..., ImageData]:
    """A loader of another package; what is not an ``ImageData`` yet goes through `from_datasets`."""
    taken = settings_of(called(found, name, "data set"))

    def load(data_dir: Path | None, *, size: int | None = None, download: bool = True) -> ImageData:
        offered = {"data_dir": data_dir, "size": size, "download": download}
        try:
            made = found(**{key: value for key, value in offered.items() if key in taken})
        except UserError:
            raise
        except Exception as error:  # a user's module may raise anything
            raise UserError(f"data set {name!r} cannot be loaded: {error}") from error
        if isinstance(made, ImageData):
            return resized(made, size)
        train, test = made if isinstance(made, tuple | list) and len(made) == 2 else (made, None)
        return from_datasets(train, test, name=name.rpartition(":")[2], size=size)

    return load


DATASETS: Table[Callable[..., ImageData]] = Table(
    {
        "digits": digits.load,
        "noisy_digits": noisy_digits.load,
        "cifar10": torchvision_sets.load_cifar10,
        "cifar100": torchvision_sets.load_cifar100,
        "svhn": torchvision_sets.load_svhn,
        "tiny_imagenet": tiny_imagenet.load,
        "imagefolder": image_folder.load,
    },
    what="data set",
    group="salun_core.datasets",
    adapt=_loader,
)
"""Loaders by name, called as ``load(data_dir, size=None, download=True)``.

One of another package is called with those of the three that its signature names, and may also return a data set of
PyTorch, or a pair of them: a training and a test set."""


def load_dataset(
    name: str, data_dir: Path | str | None = None, *, size: int | None = None, download: bool = True
) -> ImageData:
    """Load a data set into memory.

    Parameters
    ----------
    name : str
        A key of ``DATASETS``, or ``package.module:function``.
    data_dir : path, optional
        Where the files are, or shall be downloaded to (default ``data/sets`` of this project).
    size : int, optional
        Resize all images to ``size`` x ``size`` pixels (antialiased bilinear).
    download : bool
        Whether files that are missing may be fetched.

    Raises
    ------
    UserError
        If the data set is unknown, missing or damaged.
    """
    load = DATASETS[one_of(name, DATASETS, "data set")]
    if size is not None and size < 1:
        raise UserError(f"image_size must be at least 1 pixel, got {size}")
    return load(Path(data_dir) if data_dir is not None else None, size=size, download=download)


__all__ = ["DATASETS", "ImageData", "from_datasets", "load_dataset"]
