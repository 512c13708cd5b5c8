"""Data sets. A new one is a file with a loader and a line in ``DATASETS``."""

from collections.abc import Callable
from pathlib import Path

from salun_core.data.images import ImageData
from salun_core.data.sources import digits, image_folder, noisy_digits, tiny_imagenet, torchvision_sets
from salun_core.data.torch_datasets import from_datasets
from salun_core.errors import UserError, one_of

DATASETS: dict[str, Callable[..., ImageData]] = {
    "digits": digits.load,
    "noisy_digits": noisy_digits.load,
    "cifar10": torchvision_sets.load_cifar10,
    "cifar100": torchvision_sets.load_cifar100,
    "svhn": torchvision_sets.load_svhn,
    "tiny_imagenet": tiny_imagenet.load,
    "imagefolder": image_folder.load,
}
"""Loaders by name, called as ``load(data_dir, size=None, download=True)``."""


def load_dataset(
    name: str, data_dir: Path | str | None = None, *, size: int | None = None, download: bool = True
) -> ImageData:
    """Load a data set into memory.

    Parameters
    ----------
    name : str
        A key of ``DATASETS``.
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
