"""Images in folders named after their class."""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from salun_core.data.image_files import read_images
from salun_core.data.images import ImageData, check_class_name
from salun_core.errors import UserError, one_line
from salun_core.paths import expanded

LAYOUT = "expected train/<class>/<image> and test/<class>/<image> (or val/ for test/) in data_dir"
CLUTTER = ("Thumbs.db", "desktop.ini", "__MACOSX")
NAMED = 3  # of what is passed over, so many are named


def load(data_dir: Path | None = None, *, size: int | None = None, download: bool = True) -> ImageData:
    """Read ``train/<class>/*`` and ``test/<class>/*``, or ``val/`` where there is no ``test/`` (Imagenette).

    Classes are the folder names of ``train`` in alphabetical order, files follow in the same order. What is
    passed over is said on stderr, with its number: hidden files, files beside the classes, dangling links,
    folders within a class, folders beside the two parts, and what is neither file nor folder. The training augmentation is
    that of photographs: mirror images, and random crops with an eighth of the width as padding.

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
    root, train, test = pictures(data_dir, said=True)
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


def pictures(
    data_dir: Path | None, *, said: bool = False
) -> tuple[Path, dict[str, list[Path]], dict[str, list[Path]]]:
    """The folder, and the files of its two parts by class; none is opened. With ``said``, what is passed over is said.

    Raises
    ------
    UserError
        If a folder is missing or empty, a class has no images, or the two parts name different classes.
    """
    if data_dir is None:
        raise UserError(f"dataset imagefolder needs data_dir: {LAYOUT}")
    root = expanded(data_dir)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: {LAYOUT}")
    _check_name(root.resolve())
    other = "val" if (root / "val").is_dir() and not (root / "test").is_dir() else "test"
    passed: dict[str, list[Path]] = {}
    train, test = (_by_class(root / part, passed) for part in ("train", other))
    if said:
        _say(root, other, passed)
    if odd := sorted(train.keys() ^ test.keys()):
        part = other if odd[0] in train else "train"
        raise UserError(
            f"class {odd[0]!r} has no folder in {root / part}: both parts must hold the same classes"
        )
    if len(train) < 2:
        raise UserError(f"{root / 'train'} holds one class, {next(iter(train))!r}: at least two are needed")
    return root, train, test


def _say(root: Path, test: str, passed: dict[str, list[Path]]) -> None:
    """Say what is passed over in the two parts, and which folders beside them are not read."""
    remarks = [
        f"passed over {_listed(why, [p.relative_to(root) for p in paths])}"
        for why, paths in sorted(passed.items())
    ]
    beside: dict[str, list[Path]] = {}
    unread = [path for path in _kept(root.iterdir(), "folder", beside) if path.name not in ("train", test)]
    if unread:
        listed = _listed("folder", [path.relative_to(root) for path in unread])
        remarks.append(f"passed over {listed}: only train/ and {test}/ are read")
    for remark in remarks:
        tqdm.write(one_line(f"{root}: {remark}"), file=sys.stderr)


def _by_class(part: Path, passed: dict[str, list[Path]]) -> dict[str, list[Path]]:
    if not part.is_dir():
        raise UserError(f"there is no folder {part}: {LAYOUT}")
    folders = _kept(part.iterdir(), "folder", passed)
    if not folders:
        raise UserError(f"{part} holds no class folders: {LAYOUT}")
    found = {}
    for folder in folders:
        _check_name(folder)
        found[folder.name] = _kept(folder.iterdir(), "file", passed)
        if not found[folder.name]:
            raise UserError(f"class {folder.name!r} has no images in {part}: add some or remove the folder")
    return found


def _check_name(folder: Path) -> None:
    """Refuse a name that is not valid text: results are looked up by it."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        shown = folder.name.encode(errors="surrogateescape")
        raise UserError(f"the name of the folder {shown!r} is not UTF-8: rename it") from error
    check_class_name(folder.name, f"folder {folder.parent}")


def _kept(paths: Iterable[Path], kind: str, passed: dict[str, list[Path]]) -> list[Path]:
    """The folders, or the files, among ``paths``, in order; all others go to ``passed``, by what they are."""
    kept = []
    for path in sorted(paths):
        if path.name.startswith(".") or path.name in CLUTTER:
            what = "hidden"
        elif path.is_dir():
            what = "folder"
        elif path.is_file():
            what = "file"
        else:
            what = "special file" if path.exists() else "dangling link"
        if what == kind:
            kept.append(path)
        else:
            passed.setdefault(what, []).append(path)
    return kept


def _listed(what: str, paths: list[Path]) -> str:
    names = ", ".join(str(path) for path in paths[:NAMED]) + (", …" if len(paths) > NAMED else "")
    kind = "hidden file" if what == "hidden" else what
    return f"{len(paths)} {kind}{'s' if len(paths) > 1 else ''} ({names})"
