"""One list of the digests of all recorded runs, so that no recorded file changes unseen."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from salun_core.errors import UserError
from salun_core.files import readable, sha256, write_whole
from salun_core.paths import MEASURED, recorded_folder

NAME = "MANIFEST"
UNKEPT = (".model.safetensors", ".samples.safetensors", ".pt")
UNKEPT_FOLDERS = (MEASURED,)
"""What .gitignore leaves out of a recorded run, besides hidden files and folders."""

NAMED = 3  # of the files that differ, so many are named


@dataclass(frozen=True)
class Differences:
    """Files of recorded runs that are not as the manifest says, by their paths in the folder of all recorded runs."""

    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self))

    def __str__(self) -> str:
        said = []
        for part in fields(self):
            if names := getattr(self, part.name):
                more = ", …" if len(names) > NAMED else ""
                said.append(f"{len(names)} {part.name} ({', '.join(names[:NAMED])}{more})")
        return "; ".join(said)


def kept_files(folder: Path) -> list[str]:
    """Files of recorded runs that git keeps, by their paths in ``folder``, sorted."""
    found = []
    for run in (path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ():
        for top, folders, names in os.walk(run):
            folders[:] = [name for name in folders if name[0] != "." and name not in UNKEPT_FOLDERS]
            kept = (name for name in names if name[0] != "." and not name.endswith(UNKEPT))
            found += [(Path(top) / name).relative_to(folder).as_posix() for name in kept]
    return sorted(found)


def write(folder: Path | None = None) -> tuple[Path, int]:
    """Write the manifest of all recorded runs; returns its place and the number of files it lists.

    It has the form of ``sha256sum``: a digest, two blanks and a path on each line, sorted by path.

    Parameters
    ----------
    folder : Path, optional
        Holds the recorded runs; ``data/recorded`` of this project by default.

    Raises
    ------
    UserError
        If a file cannot be read, has a name that takes more than one line, or the manifest cannot be written.
    """
    folder = folder or recorded_folder()
    found = _digests(folder)
    lines = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    return write_whole(folder / NAME, lines.encode()), len(found)


def differences(folder: Path | None = None) -> Differences:
    """Compare the recorded runs with their manifest.

    Raises
    ------
    UserError
        If there is no manifest, or it is not one.
    """
    folder = folder or recorded_folder()
    listed, here = _read(folder / NAME), _digests(folder)
    both = listed.keys() & here.keys()
    return Differences(
        tuple(sorted(name for name in both if listed[name] != here[name])),
        tuple(sorted(listed.keys() - here.keys())),
        tuple(sorted(here.keys() - listed.keys())),
    )


@contextlib.contextmanager
def kept_true(out: Path) -> Iterator[None]:
    """Write the manifest when what runs inside has ended, in whatever way, if ``out`` is the folder of a recorded run."""
    try:
        yield
    finally:
        folder = recorded_folder().resolve()
        if folder in out.resolve().parents and out.is_dir():
            write(folder)


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for name in kept_files(folder):
        if "\n" in name or "\\" in name:
            raise UserError(f"the name of {folder / name!r} does not fit on a line of {NAME}: rename it")
        found[name] = sha256(folder / name)
    return found


def _read(path: Path) -> dict[str, str]:
    try:
        with readable(path):
            lines = path.read_text("utf8").splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {path}: restore it from git, or write it with 'python -m salun_core manifest'"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: restore it from git") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise UserError(f"line {number} of {path} is not a digest and a path: restore it from git")
        found[name] = digest
    return found
