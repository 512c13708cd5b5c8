"""Tiny ImageNet from the folders of its archive."""

from pathlib import Path

import torch

from salun_core.data.image_files import read_images
from salun_core.data.images import ImageData
from salun_core.errors import UserError
from salun_core.files import regular
from salun_core.paths import sets_folder

FOLDER = "tiny-imagenet-200"
REMEDY = f"unpack tiny-imagenet-200.zip (cs231n.stanford.edu) there, or set data_dir to the folder {FOLDER}"


def load(data_dir: Path | None = None, *, size: int | None = None, download: bool = True) -> ImageData:
    """100,000 training images and 10,000 test images of 64x64 pixels in 200 classes.

    The official validation images are the test part: the archive's own test images have no labels.
    Classes are named as in ``words.txt`` where those names are distinct, else by WordNet id.

    Parameters
    ----------
    data_dir : Path, optional
        The folder ``tiny-imagenet-200``, or the one that holds it.
    size : int, optional
        Resize to ``size`` x ``size``.
    download
        Not used: torchvision does not fetch this data set.

    Raises
    ------
    UserError
        If the folder or a part of it is missing, or an image cannot be read.

    References
    ----------
    Le and Yang, Tiny ImageNet visual recognition challenge, 2015.
    """
    root = sets_folder(data_dir)
    if (root / FOLDER).is_dir():
        root = root / FOLDER
    listing = root / "val" / "val_annotations.txt"
    for needed in (root / "train", listing):
        if not needed.exists():
            raise UserError(f"tiny_imagenet is not in {root} ({needed} is missing): {REMEDY}")
    names = sorted(f.name for f in (root / "train").iterdir() if f.is_dir() and not f.name.startswith("."))
    files, labels = [], []
    for number, name in enumerate(names):
        found = sorted((root / "train" / name / "images").glob("[!.]*.JPEG"))
        if not found:
            raise UserError(f"class {name!r} has no images in {root / 'train'}: unpack the archive again")
        files += found
        labels += [number] * len(found)
    n_train = len(files)
    numbers = {name: number for number, name in enumerate(names)}
    for line in regular(listing).read_text("utf8", errors="replace").splitlines():
        fields = line.split("\t")  # file, class, and a bounding box that nothing here needs
        if len(fields) < 2 or fields[1] not in numbers:
            raise UserError(
                f"{listing} has a line without a known class ({line[:40]!r}): unpack the archive again"
            )
        files.append(root / "val" / "images" / fields[0])
        labels.append(numbers[fields[1]])
    images = read_images(files, size=size, colour=True)
    return ImageData(
        name="tiny_imagenet",
        images=images,
        labels=torch.tensor(labels),
        n_train=n_train,
        classes=_words(root, names),
        flip=True,
        pad=max(1, images.shape[-1] // 16),
        note="Tiny ImageNet; its validation images are the test part",
    )


def _words(root: Path, names: list[str]) -> tuple[str, ...]:
    file = root / "words.txt"
    if not file.is_file():
        return tuple(names)
    lines = (
        line.split("\t", 1) for line in file.read_text("utf8", errors="replace").splitlines() if "\t" in line
    )
    words = {name: text.split(",")[0].strip() for name, text in lines}
    chosen = tuple(words.get(name, name) for name in names)
    return chosen if len(set(chosen)) == len(chosen) else tuple(names)
