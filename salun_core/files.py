"""Files that are either whole or absent."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

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
        raise _explained(path, error) from error
    return path


def check_writable(folder: Path | str) -> Path:
    """Create ``folder`` and prove that a file can be written there, before hours of work depend on it."""
    probe = write_whole(Path(folder) / ".writable", b"")
    probe.unlink(missing_ok=True)
    return Path(folder)


def sha256(path: Path | str) -> str:
    """Digest of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _explained(path: Path, error: OSError) -> UserError:
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
