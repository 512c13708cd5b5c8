"""Image files, of any format and size, into one tensor."""

import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version
from torch import Tensor
from tqdm import tqdm

from salun_core.data.images import covering_size
from salun_core.data.on_disk import Pixels, cached, file_name, in_memory
from salun_core.errors import UserError, one_line

GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B")
PROGRAMS = ("EPS",)
BLOCK = 256  # files a thread reads in one go: handing over single small files costs more than reading them


def read_images(files: Sequence[Path], *, size: int | None = None, colour: bool | None = None) -> Tensor:
    """Decode image files into one tensor; above the limit of ``data.on_disk`` it is mapped from a file of pixels.

    Transparent images are laid on white, rotated photographs turned upright, 16-bit ones scaled to 8. Of animations and
    files of several pages the first picture is read, and their number is said on stderr.

    Parameters
    ----------
    files : sequence of Path
        At least one, in the order of the result.
    size : int, optional
        Resize the shorter side to ``size`` and cut out the middle (antialiased bilinear; a JPEG may be
        decoded at a fraction of its size first, but never below twice ``size``). Without it all must be
        square and of one size.
    colour : bool, optional
        Three channels or one; by default one if every image is grey.

    Returns
    -------
    Tensor
        uint8 (N, C, H, W).

    Raises
    ------
    UserError
        With the file's name, if one cannot be read or has another size; if several cannot, with their number.
    """
    several: set[Path] = set()
    try:
        found = _all_read(files, several, size=size, colour=colour)
        if several:
            tqdm.write(one_line(_first_only(sorted(several), len(files))), file=sys.stderr)
        return found
    except _Unreadable as error:
        broken = [file for file in files if _is_broken(file, size)]
        if len(broken) < 2:
            raise
        names = ", ".join(str(file) for file in broken[:3]) + (", …" if len(broken) > 3 else "")
        raise UserError(
            f"{len(broken)} of {len(files)} files cannot be read as images ({names}): replace or remove them"
        ) from error


def _first_only(several: Sequence[Path], count: int) -> str:
    names = ", ".join(str(file) for file in several[:3]) + (", …" if len(several) > 3 else "")
    return f"{len(several)} of {count} files hold several pictures, of which the first is read: {names}"


class _Unreadable(UserError):
    """A file that is not an image."""


def _is_broken(file: Path, size: int | None) -> bool:
    try:
        _picture(file, size)
    except _Unreadable:
        return True
    except UserError:
        return False
    return False


def _all_read(files: Sequence[Path], several: set[Path], *, size: int | None, colour: bool | None) -> Tensor:
    first = _picture(files[0], size, several)
    if first.size[0] != first.size[1]:
        raise UserError(
            f"{files[0]} is {_pixels(first)} pixels, not square: set image_size to resize all images"
        )
    if colour is None and first.mode == "L":
        try:
            return _decoded(files, several, first.size[0], size, mode="L", strict=True)
        except _Coloured:
            colour = True
    return _decoded(files, several, first.size[0], size, mode="L" if colour is False else "RGB")


class _Coloured(Exception):
    """A set that began with grey images holds a coloured one."""


def _decoded(
    files: Sequence[Path],
    several: set[Path],
    side: int,
    size: int | None,
    *,
    mode: str,
    strict: bool = False,
) -> Tensor:
    shape = (len(files), 3 if mode == "RGB" else 1, side, side)
    if math.prod(shape) <= in_memory():
        out = torch.empty(shape, dtype=torch.uint8)
        pixels = out.permute(0, 2, 3, 1).numpy()  # the same memory, (N, H, W, C)
        _read_into(pixels.__setitem__, files, several, side, size, mode=mode, strict=strict)
        return out
    return cached(
        file_name(files, size, mode, pillow_version),
        shape,
        lambda put: _read_into(put, files, several, side, size, mode=mode, strict=strict),
    )


def _read_into(
    put: Pixels,
    files: Sequence[Path],
    several: set[Path],
    side: int,
    size: int | None,
    *,
    mode: str,
    strict: bool,
) -> None:
    def read(start: int) -> int:
        block = files[start : start + BLOCK]
        for row, file in enumerate(block, start):
            picture = _picture(file, size, several)
            if picture.size != (side, side):
                raise UserError(
                    f"{file} is {_pixels(picture)} pixels and {files[0]} is {side}x{side}: "
                    "set image_size to resize all images"
                )
            if picture.mode != mode:
                if strict:
                    raise _Coloured
                picture = picture.convert(mode)
            put(row, np.asarray(picture).reshape(side, side, -1))
        return len(block)

    with (
        ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool,
        tqdm(total=len(files), desc="reading images", unit="image", disable=len(files) < 10_000) as bar,
    ):
        try:
            for count in pool.map(read, range(0, len(files), BLOCK)):
                bar.update(count)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _picture(file: Path, size: int | None, several: set[Path] | None = None) -> Image.Image:
    """One image as "L" or "RGB", the first of its file, which is put among ``several`` where it holds more."""
    try:
        with Image.open(file, formats=_formats()) as opened:
            if size is not None:
                opened.draft(None, (2 * size, 2 * size))
            opened.load()
            image = ImageOps.exif_transpose(opened) if "exif" in opened.info else opened
            if several is not None:
                image = image.copy() if opened.format == "GIF" else image  # which the look behind it unloads
                if _holds_more(opened):
                    several.add(file)
    except Exception as error:  # decoders raise whatever a broken file leads them to
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise _Unreadable(f"{file} cannot be read as an image ({reason}): replace or remove it") from error
    return picture_8bit(image, size, str(file))


def _holds_more(opened: Image.Image) -> bool:
    """Whether a file holds further pictures behind the one that was loaded."""
    try:
        return bool(getattr(opened, "is_animated", False))
    except Exception:  # damage behind the picture that counts
        return True


@cache
def _formats() -> list[str]:
    """Formats that are read: all of Pillow's but those that are programs, which Ghostscript would run."""
    Image.init()
    return [name for name in Image.OPEN if name not in PROGRAMS]


def picture_8bit(image: Image.Image, size: int | None, what: str) -> Image.Image:
    """An open image as 8-bit grey ("L") or colour ("RGB"), resized.

    Raises
    ------
    UserError
        For pixels of 32 bits, whose range is not known.
    """
    if image.mode in ("I", "F"):
        raise UserError(f"{what} has 32-bit pixels of unknown range: save it with 8 or 16 bits")
    mode = "L" if image.mode in GREY else "RGB"
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(above)
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        height, width = covering_size(image.height, image.width, size)
        top, left = round((height - size) / 2), round((width - size) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    return image


def _pixels(image: Image.Image) -> str:
    return f"{image.size[0]}x{image.size[1]}"
