"""Images in folders named after their class."""

from pathlib import Path

import torch

from salun_core.data.image_files import read_images
from salun_core.data.images import ImageData
from salun_core.errors import UserError

LAYOUT = "expected train/<class>/<image> and test/<class>/<image> (or val/ for test/) in data_dir"
CLUTTER = ("Thumbs.db", "desktop.ini")


def load(data_dir: Path | None = None, *, size: int | None = None, download: bool = True) -> ImageData:
    """Read ``train/<class>/*`` and ``test/<class>/*``, or ``val/`` where there is no ``test/`` (Imagenette).

    Classes are the folder names of ``train`` in alphabetical order, files follow in the same order; hidden
    files are passed over. The training augmentation is that of photographs: mirror images, and random
    crops with an eighth of the width as padding.

    Parameters
    ----------
    data_dir : Path
        The folder that holds ``train`` and ``test``.
    size : int, optional
        Bring every image to ``size`` x ``size``: the shorter side is resized and the middle cut out. Needed
        when they are not square or differ in size.
    download
        Not used: there is nothing to fetch.

    Raises
    ------
    UserError
        If a folder is missing or empty, a class has no images, the two parts name different classes, or
        an image cannot be read.
    """
    root, train, test = pictures(data_dir)
    files = [file for part in (train, test) for name in train for file in part[name]]
    labels = [number for part in (train, test) for number, name in enumerate(train) for _ in part[name]]
    images = read_images(files, size=size)
    kinds = sorted({file.suffix.lower().lstrip(".") or "no suffix" for file in files})
    return ImageData(
        name=root.resolve().name,
        images=images,
        labels=torch.tensor(labels),
        n_train=sum(map(len, train.values())),
        classes=tuple(train),
        flip=True,
        pad=max(1, images.shape[-1] // 8),
        note=f"image folder, {len(files)} files ({', '.join(kinds)})",
    )


def pictures(data_dir: Path | None) -> tuple[Path, dict[str, list[Path]], dict[str, list[Path]]]:
    """The folder, and the files of its two parts by class; none is opened.

    Raises
    ------
    UserError
        If a folder is missing or empty, a class has no images, or the two parts name different classes.
    """
    if data_dir is None:
        raise UserError(f"dataset imagefolder needs data_dir: {LAYOUT}")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: {LAYOUT}")
    other = "val" if (root / "val").is_dir() and not (root / "test").is_dir() else "test"
    train, test = (_by_class(root / part) for part in ("train", other))
    if odd := sorted(train.keys() ^ test.keys()):
        part = other if odd[0] in train else "train"
        raise UserError(
            f"class {odd[0]!r} has no folder in {root / part}: both parts must hold the same classes"
        )
    if len(train) < 2:
        raise UserError(f"{root / 'train'} holds one class, {next(iter(train))!r}: at least two are needed")
    return root, train, test


def _by_class(part: Path) -> dict[str, list[Path]]:
    if not part.is_dir():
        raise UserError(f"there is no folder {part}: {LAYOUT}")
    folders = sorted(f for f in part.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise UserError(f"{part} holds no class folders: {LAYOUT}")
    found = {}
    for folder in folders:
        found[folder.name] = sorted(f for f in folder.iterdir() if f.is_file() and not _is_clutter(f))
        if not found[folder.name]:
            raise UserError(f"class {folder.name!r} has no images in {part}: add some or remove the folder")
    return found


def _is_clutter(file: Path) -> bool:
    return file.name.startswith(".") or file.name in CLUTTER
