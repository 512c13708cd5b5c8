"""Files that are either whole or absent."""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from salun_core.errors import UserError


def write_whole(path: Path | str, content: bytes) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Raises
    ------
    UserError
        If the folder cannot be written or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_char_device() and not path.is_symlink():  # one may replace it, as root
            raise OSError(errno.ENXIO, "it is a device")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error
    return path


def write_named(path: Path, content: bytes) -> None:
    """Write to a place that a user named: into a link, a device (``/dev/stdout``) or a pipe, and else as `write_whole` does."""
    if path.is_symlink() or (path.exists() and is_special(path)):
        try:
            path.write_bytes(content)
        except OSError as error:
            raise unwritable(path, error) from error
    else:
        write_whole(path, content)


def check_writable(folder: Path | str) -> Path:
    """Create ``folder`` and prove that a file can be written there, before hours of work depend on it."""
    probe = write_whole(Path(folder) / ".writable", b"")
    probe.unlink(missing_ok=True)
    return Path(folder)


def sha256(path: Path | str) -> str:
    """Digest of a file, as 64 hexadecimal digits.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    with readable(path), open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn the system's refusal to read ``path`` into one sentence; a file that is absent stays an OSError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        why = error.strerror or error
        denied = error.errno in (errno.EACCES, errno.EPERM)
        remedy = "check its permissions" if denied else "move away what lies there"
        raise UserError(f"cannot read {error.filename or path}: {why}; {remedy}") from error


def listed(folder: Path | str, pattern: str) -> list[Path]:
    """What lies in a folder under names of a pattern, sorted; nothing where there is no such folder.

    Raises
    ------
    UserError
        If it may not be read: ``Path.glob`` finds nothing there, without a word.
    """
    try:
        with readable(folder):
            names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [Path(folder) / name for name in names if fnmatchcase(name, pattern)]


def is_special(path: Path | str) -> bool:
    """Whether a pipe, a socket or a device lies there: nothing that this project writes, and reading it may never end.

    Raises
    ------
    FileNotFoundError
        If nothing lies there.
    """
    mode = os.stat(path).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def regular(path: Path | str) -> Path:
    """``path``, to be opened and read; where nothing lies, opening it says so.

    Raises
    ------
    UserError
        If a pipe, a socket or a device lies there.
    """
    try:
        special = is_special(path)
    except OSError:  # as opening it will say
        special = False
    if special:
        raise UserError(
            f"{path} is a pipe, a socket or a device, and reading it may never end: give a regular file"
        )
    return Path(path)


def all_regular(folder: Path) -> None:
    """Refuse a folder for another library to read where `regular` would refuse a file in it or in one of its folders."""
    for pattern in ("*", "*/*"):
        for path in folder.glob(pattern):
            regular(path)


def read_json(path: Path | str) -> Any:
    """What a JSON file holds; None if there is no such file, or it is damaged.

    Damaged is everything that this project does not write: NaN, numbers of thousands of digits, endless nesting, pipes.

    Raises
    ------
    UserError
        If the file is there and may not be read.
    """
    try:
        with readable(path):
            return None if is_special(path) else parse_json(Path(path).read_text("utf8"), strict=True)
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        return None


def parse_json(content: str | bytes, *, strict: bool = False, infinite: bool = False) -> Any:
    """What a JSON text says; ``strict`` refuses NaN and, unless ``infinite``, infinity, which are none in JSON.

    Raises
    ------
    ValueError
        If it says nothing that can be read: damage, numbers of thousands of digits, endless nesting.
    """

    def number(text: str) -> float:
        value = float(text)
        if math.isnan(value) or (math.isinf(value) and not infinite):
            raise ValueError(f"{text} is not JSON")  # or too large: 1e999
        return value

    try:
        if strict:
            return json.loads(content, parse_constant=number, parse_float=number)
        return json.loads(content)
    except RecursionError:
        raise ValueError("it nests without end") from None


def read_config(path: Path | str, *, infinite: bool = False) -> dict[str, Any]:
    """The configuration beside a network's weights, a JSON file that holds values by name.

    Parameters
    ----------
    path : path
        The file.
    infinite : bool
        Whether a value may be infinite: diffusers itself writes that for some schedulers. NaN never is a value.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    path = regular(path)
    try:
        content = parse_json(path.read_text("utf8"), strict=True, infinite=infinite)
    except (ValueError, OSError) as error:
        why = f" ({error})" if str(error).endswith("is not JSON") else ""
        raise UserError(f"{path} is damaged{why}: copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no values by name: copy it again")
    return content


def unwritable(path: Path, error: OSError) -> UserError:
    """Why the system refuses to write ``path``, with a remedy."""
    remedy = {
        errno.ENOSPC: "the disk is full; free some space or choose another output folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another output folder",
        errno.EROFS: "the file system is read-only; choose another output folder",
        errno.EACCES: "permission denied; choose an output folder you may write to",
        errno.EPERM: "not permitted; choose an output folder you may write to",
        errno.ENOTDIR: "a part of that path is a file; choose another output folder",
        errno.EEXIST: "a part of that path is a file; choose another output folder",
    }.get(error.errno or 0, f"{error.strerror or error}; choose another output folder")
    return UserError(f"cannot write {path}: {remedy} (what was finished before is kept)")
