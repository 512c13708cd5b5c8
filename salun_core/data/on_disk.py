"""Images that do not fit into memory: one file of raw pixels, mapped, of which only what is read takes memory."""

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salun_core.errors import UserError
from salun_core.files import read_json, sha256, unwritable, write_whole
from salun_core.paths import sets_folder

IN_MEMORY = 2 * 1024**3  # bytes
VARIABLE = "SALUN_IMAGES_IN_MEMORY"  # the same in MB, for this machine
CHUNK = 32 * 1024**2  # bytes that are gone through at a time

Pixels = Callable[[int, np.ndarray], None]
"""Writes the pixels of images (n, H, W, C), the first of which has a number."""

_maps: dict[int, mmap.mmap] = {}  # by address of the first pixel


def in_memory() -> int:
    """Bytes up to which images are held in memory.

    Raises
    ------
    UserError
        If the environment variable is not a number.
    """
    given = os.environ.get(VARIABLE, "")
    if not given:
        return IN_MEMORY
    try:
        return round(float(given) * 1e6)
    except ValueError:
        raise UserError(f"{VARIABLE} is {given!r}: give a number of MB, such as 2000") from None


def is_mapped(images: Tensor) -> bool:
    """Whether the images lie in a file."""
    return images.device.type == "cpu" and images.untyped_storage().data_ptr() in _maps


def release(images: Tensor) -> None:
    """Give back the memory of what was read of mapped images; others stay as they are."""
    if is_mapped(images) and hasattr(mmap, "MADV_DONTNEED"):
        _maps[images.untyped_storage().data_ptr()].madvise(mmap.MADV_DONTNEED)


def chunks(images: Tensor) -> Iterator[Tensor]:
    """The images in order, a few at a time; mapped ones give their memory back."""
    each = max(1, images[:1].numel())
    for part in images.split(max(1, CHUNK // each)):
        yield part
        release(images)


def taken(images: Tensor, rows: Tensor) -> Tensor:
    """``images[rows]``; where that does not fit into memory either, in a file of its own."""
    shape = (len(rows), *images.shape[1:])
    if not is_mapped(images) or rows.numel() * images[:1].numel() <= in_memory():
        found = images[rows]
        release(images)
        return found

    def write(put: Pixels) -> None:
        first = 0
        for part in rows.split(max(1, CHUNK // images[:1].numel())):
            put(first, images[part].permute(0, 2, 3, 1).numpy())
            release(images)
            first += len(part)

    name = hashlib.sha256(_maps_name(images).encode() + rows.numpy().tobytes()).hexdigest()
    return cached(name, shape, write)


def file_name(files: Sequence[Path], *what: object) -> str:
    """Name of a cache: it changes with the files, their sizes and times, and with ``what``."""
    sha = hashlib.sha256(repr(what).encode())
    for file in files:
        state = file.stat()
        sha.update(f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return sha.hexdigest()


def cached(name: str, shape: tuple[int, ...], write: Callable[[Pixels], None]) -> Tensor:
    """Images from the cache in ``data/sets/cache``, written first where they are missing or damaged.

    Parameters
    ----------
    name : str
        Digest of all that determines the pixels.
    shape : tuple of int
        (N, C, H, W).
    write : callable
        ``write(put)`` calls ``put(first, pixels)`` for all images, in any order and from any thread.

    Returns
    -------
    Tensor
        uint8 (N, C, H, W), for reading only.

    Raises
    ------
    UserError
        If the cache cannot be written.
    """
    path = sets_folder(None) / "cache" / f"{name[:20]}.pixels"
    record = path.with_suffix(".json")
    expected = {"name": name, "shape": list(shape)}
    try:
        found = read_json(record)
        sound = {key: found[key] for key in expected} == expected and found["sha256"] == sha256(path)
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        _written(path, shape, write)
        write_whole(record, json.dumps(expected | {"sha256": sha256(path)}).encode())
    return _mapped(path, shape)


def _written(path: Path, shape: tuple[int, ...], write: Callable[[Pixels], None]) -> None:
    size = shape[1] * shape[2] * shape[3]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    except OSError as error:
        raise unwritable(path, error) from error

    def put(first: int, pixels: np.ndarray) -> None:
        content = memoryview(pixels.tobytes())
        written = 0
        while written < len(content):
            written += os.pwrite(handle, content[written:], first * size + written)

    try:
        try:
            write(put)
            os.fsync(handle)
            os.replace(temporary, path)
        except OSError as error:
            raise unwritable(path, error) from error
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(handle)


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    n, channels, height, width = shape
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the file is for reading only
        flat = torch.from_numpy(np.frombuffer(content, dtype=np.uint8))
    _maps[flat.untyped_storage().data_ptr()] = content
    _names[flat.untyped_storage().data_ptr()] = path.stem
    return flat.view(n, height, width, channels).permute(0, 3, 1, 2)


_names: dict[int, str] = {}


def _maps_name(images: Tensor) -> str:
    return f"{_names[images.untyped_storage().data_ptr()]} {images.storage_offset()} {tuple(images.shape)}"
