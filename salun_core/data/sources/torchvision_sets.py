"""CIFAR-10, CIFAR-100 and SVHN, read and downloaded through torchvision."""

import shutil
import tarfile
import tempfile
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salun_core.data.images import ImageData, resized
from salun_core.errors import UserError
from salun_core.files import all_regular, regular
from salun_core.paths import sets_folder


@dataclass(frozen=True)
class Source:
    """Files of a data set and how torchvision reads them.

    Parameters
    ----------
    name : str
        Key in ``DATASETS``.
    files : tuple of str
        What must lie in the folder.
    archive : str
        What is also accepted there, packed; empty for none.
    read : callable
        ``read(folder, download)`` returns torchvision's training and test set.
    """

    name: str
    files: tuple[str, ...]
    archive: str
    read: Callable[[Path, bool], tuple[Any, Any]]


def load_cifar10(
    data_dir: Path | None = None, *, size: int | None = None, download: bool = True
) -> ImageData:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in 10 classes.

    Parameters
    ----------
    data_dir : Path, optional
        The folder with ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``, or to download to.
    size : int, optional
        Resize to ``size`` x ``size``.
    download : bool
        Whether it may be fetched.

    Raises
    ------
    UserError
        If it is neither there nor can be downloaded, or the copy is damaged.

    References
    ----------
    Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    return _cifar("CIFAR10", "cifar10", "cifar-10-batches-py", data_dir, size, download)


def load_cifar100(
    data_dir: Path | None = None, *, size: int | None = None, download: bool = True
) -> ImageData:
    """CIFAR-100: as CIFAR-10, with 100 classes; ``cifar-100-python`` or ``cifar-100-python.tar.gz``."""
    return _cifar("CIFAR100", "cifar100", "cifar-100-python", data_dir, size, download)


def load_svhn(data_dir: Path | None = None, *, size: int | None = None, download: bool = True) -> ImageData:
    """SVHN: 73,257 training and 26,032 test images of house numbers, 32x32 pixels, 10 classes.

    Trained on without augmentation, as in the paper's code: a mirrored or cut digit may be another one.

    Parameters
    ----------
    data_dir : Path, optional
        The folder with ``train_32x32.mat`` and ``test_32x32.mat``, or to download to.
    size, download
        As for CIFAR-10.

    Raises
    ------
    UserError
        As for CIFAR-10.

    References
    ----------
    Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011.
    """

    def read(root: Path, fetch: bool) -> tuple[Any, Any]:
        from torchvision.datasets import SVHN

        return SVHN(str(root), "train", download=fetch), SVHN(str(root), "test", download=fetch)

    source = Source("svhn", ("train_32x32.mat", "test_32x32.mat"), "", read)
    train, test = obtained(source, data_dir, download)
    data = ImageData(
        name="svhn",
        images=torch.from_numpy(np.concatenate([train.data, test.data])),
        labels=torch.from_numpy(np.concatenate([train.labels, test.labels])),
        n_train=len(train.labels),
        classes=tuple(str(d) for d in range(10)),
        note="SVHN, cropped digits",
    )
    return resized(data, size)


def obtained(source: Source, data_dir: Path | None, download: bool) -> tuple[Any, Any]:
    """Training and test set from the folder, from an archive in it, or from the network.

    What is fetched arrives in the folder whole or not at all.

    Raises
    ------
    UserError
        If that fails, with the folder and what to put there.
    """
    root = sets_folder(data_dir)
    if root.name in source.files:  # the inner folder was given
        root = root.parent
    wanted = " and ".join(source.files) + (f" (or {source.archive})" if source.archive else "")
    remedy = f"put {wanted} there, or set data_dir to the folder that holds it"
    if any((root / file).exists() for file in source.files):
        for file in source.files:
            all_regular(regular(root / file))
        try:
            return source.read(root, False)
        except Exception as error:  # torchvision compares checksums, then unpickles
            raise UserError(
                f"the copy of {source.name} in {root} is damaged or incomplete: delete {wanted} and try again"
            ) from error
    if (root / "train").is_dir():
        remedy = f"{remedy}; a folder of class folders, as this seems to be, is dataset imagefolder"
    archive = root / source.archive
    packed = bool(source.archive) and archive.is_file()
    if not packed and not download:
        raise UserError(f"{source.name} is not in {root}, and downloading is switched off: {remedy}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".part-") as part:
            if packed:
                with tarfile.open(archive) as tar:
                    tar.extractall(part, filter="data")
                source.read(Path(part), False)  # checksums
            else:
                source.read(Path(part), True)
            for file in source.files:
                shutil.move(Path(part) / file, root / file)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        if packed:
            raise UserError(
                f"{archive} is damaged or cannot be unpacked ({error}): download it again"
            ) from error
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"{source.name} is not in {root} and cannot be downloaded ({reason}): {remedy}"
        ) from error
    return source.read(root, False)


def _cifar(
    kind: str, name: str, folder: str, data_dir: Path | None, size: int | None, download: bool
) -> ImageData:
    def read(root: Path, fetch: bool) -> tuple[Any, Any]:
        from torchvision import datasets

        make = getattr(datasets, kind)
        return make(str(root), True, download=fetch), make(str(root), False, download=fetch)

    archive = folder.replace("-batches-py", "-python") + ".tar.gz"
    train, test = obtained(Source(name, (folder,), archive, read), data_dir, download)
    images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)  # (N, C, H, W)
    data = ImageData(
        name=name,
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=torch.tensor([*train.targets, *test.targets]),
        n_train=len(train.targets),
        classes=tuple(train.classes),
        flip=True,
        pad=4,
        note=f"{'CIFAR-10' if name == 'cifar10' else 'CIFAR-100'}, original pixels",
    )
    return resized(data, size)
