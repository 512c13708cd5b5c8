"""Finished cells on disk: each one whole, recognised when damaged, and found again by what it is."""

import contextlib
import errno
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from salun_core.errors import UserError
from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.runs.provenance import revision
from salun_core.files import (
    check_writable,
    is_special,
    listed,
    read_json,
    readable,
    regular,
    sha256,
    unwritable,
    write_whole,
)

FORMAT = 1
RESULTS = "*-*.json"  # names of results in a folder of cells
ATTEMPTS = 5  # to store a result that another machine is storing at the same moment
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Key:
    """What determines a result.

    Parameters
    ----------
    kind : str
        "original" or "cell", the first word of the file name.
    what : mapping
        JSON values, complete: two keys with equal values mean the same numbers.
    code : str
        Digest of the code that computes it. Not part of the name: a result of other code is found,
        recognised as outdated, and computed again in its place.
    """

    kind: str
    what: Mapping[str, Any]
    code: str = ""

    @property
    def name(self) -> str:
        """File name without ending: stable, and the same on every machine."""
        return f"{self.kind}-{digest(self.what)[:20]}"


@dataclass(frozen=True)
class Result:
    """A stored result: what it is, what came out, and where it came from."""

    key: Key
    content: dict[str, Any]
    provenance: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def outputs(self) -> str | None:
        """Name of the side file that holds what the model did on stored samples, where there is one."""
        return next((name for name in self.files if ".outputs." in name), None)


class Store:
    """Results in one folder.

    A result is a JSON file that names its side files (logits, weights) with their digests, and ends with
    its own digest. It is written after them, so a run that is killed leaves whole results and strays,
    and strays are never read.

    Parameters
    ----------
    folder : path
        Made when missing.
    trusted : bool
        Take whole results also when other code computed them, or of their side files only the outputs are
        here: for recorded runs, which are continued on other machines and after changes that leave numbers
        alone.
    deterministic : bool
        Take only results that were computed with this set, and so all that they were computed from: others may differ in
        their last digits. They are computed again, in their place.

    Raises
    ------
    UserError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path | str, *, trusted: bool = False, deterministic: bool = False) -> None:
        self.folder = check_writable(folder)
        self.trusted, self.deterministic = trusted, deterministic
        self._said = False
        revision()  # kept from here on: files that change during a long run are not the code that runs

    def path(self, key: Key, suffix: str = ".json") -> Path:
        """Where a result, or a side file of it, lies."""
        return self.folder / f"{key.name}{suffix}"

    def get(self, key: Key) -> Result | None:
        """The stored result; None unless there is one that is whole and was computed by this code, as this store asks for."""
        found = read_result(self.path(key))
        if found is None or digest(found.key.what) != digest(key.what):
            return None
        if self.deterministic and found.provenance.get("deterministic") is not True:
            self._say_once(found)
            return None
        if self.trusted:
            return found if self.has_files(found, kept=True) else None
        return found if found.key.code == key.code and self.has_files(found) else None

    def _say_once(self, found: Result) -> None:
        if not self._said:
            self._said = True
            tqdm.write(
                f"deterministic: results in {self.folder} that were computed without it, such as {found.key.name} "
                f"(threads: {found.provenance.get('threads', 'unknown')}), are computed again",
                file=sys.stderr,
            )

    def has_files(self, result: Result, *, kept: bool = False) -> bool:
        """Whether the side files of a result are here and whole; with ``kept`` only its outputs need to be."""
        names = [result.outputs] if kept and result.outputs else [] if kept else list(result.files)
        return all(is_whole(self.folder / name, result.files[name]) for name in names)

    def put(
        self,
        key: Key,
        values: Mapping[str, Any],
        provenance: Mapping[str, Any],
        side_files: Mapping[str, bytes] | None = None,
    ) -> Result:
        """Write a result and its side files (content by suffix), unless a whole one of this code is there by now.

        Machines on one file system may not see each other's locks, and then compute the same result twice. The first
        one stored stays, and is what comes back: on other hardware the second may differ in its last digits. Two
        that are written at one moment can leave a result with the other's side files; that is seen, and written again.

        Raises
        ------
        UserError
            If it cannot be written, or is overwritten each time.
        """
        for _ in range(ATTEMPTS):
            found = self.get(key)
            if found is not None and self.has_files(found):
                return found
            made = self._write(key, values, provenance, side_files or {})
            if self.has_files(made):
                return made
        raise UserError(
            f"{self.path(key)} is overwritten by another process each time: stop one of the two and start it again"
        )

    def _write(
        self,
        key: Key,
        values: Mapping[str, Any],
        provenance: Mapping[str, Any],
        side_files: Mapping[str, bytes],
    ) -> Result:
        files = {}
        provenance = {**provenance, **({"deterministic": True} if self.deterministic else {})}
        for suffix, content in side_files.items():
            file = write_whole(self.path(key, suffix), content)
            files[file.name] = hashlib.sha256(content).hexdigest()
        record: dict[str, Any] = {
            "format": FORMAT,
            "kind": key.kind,
            "key": dict(key.what),
            "code": key.code,
            "values": dict(values),
            "provenance": provenance,
            "files": files,
        }
        record["digest"] = digest(record)
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        write_whole(self.path(key), text.encode())
        return Result(key, dict(values), dict(provenance), files)

    @contextlib.contextmanager
    def alone(self, key: Key) -> Iterator[None]:
        """Wait until no other process on this machine is computing this result; ask `get` again inside.

        Two notebooks that share cells then share the work. The lock ends with the process that holds it,
        however it ends. It saves work and nothing else: where a file system has no locks, or other machines do not
        see them, `put` keeps results whole.
        """
        if not self._has_locks:
            yield
            return
        lock = FileLock(self.folder / ".locks" / key.name)
        try:
            Path(lock.lock_file).parent.mkdir(exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise unwritable(Path(lock.lock_file), error) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()  # a long run leaves no lock for every cell
            lock.release()

    def is_taken(self, key: Key) -> bool:
        """Whether another process on this machine is computing this result at this moment, as far as can be seen."""
        try:
            import fcntl
        except ImportError:  # Windows: one waits
            return False
        path = self.folder / ".locks" / key.name
        try:
            if is_special(path):  # opening a pipe may never end
                return False
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is no lock, or none that can be seen: `alone` says what is wrong
            return False
        return False

    @cached_property
    def _has_locks(self) -> bool:
        """Whether the file system has locks that end with their process; filelock's other kind outlives a kill."""
        try:
            import fcntl
        except ImportError:  # Windows has locks of its own
            return True
        probe = self.folder / ".locks" / ".probe"
        try:
            probe.parent.mkdir(exist_ok=True)
            with probe.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is at this place
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise unwritable(probe, error) from error
        return True

    @contextlib.contextmanager
    def pieces(self, key: Key, **more: Any) -> Iterator[Pieces]:
        """Where a long computation of this result keeps what it has made; store the result inside.

        Parameters
        ----------
        **more
            JSON values that are not in the key, and on which the pieces depend: batch sizes.
        """
        what = {"code": key.code, "deterministic": self.deterministic, **more}
        pieces = Pieces(self.folder / ".pieces" / f"{key.name}-{digest(what)[:8]}")
        yield pieces
        pieces.clear(f"{key.name}-*")  # not after an error; and those of older code or another batch size

    def file(self, result: Result, name: str) -> Path:
        """Where a side file lies, the one that the result was stored with.

        Raises
        ------
        UserError
            If it is missing or another.
        """
        if name not in result.files or not is_whole(self.folder / name, result.files[name]):
            raise unlike(self.folder / name, result)
        return self.folder / name

    def read(self, result: Result, name: str) -> bytes:
        """Content of a side file, the one that the result was stored with.

        Raises
        ------
        UserError
            If it is missing or another.
        """
        try:
            content = regular(self.folder / name).read_bytes()
        except (OSError, UserError) as error:
            raise unlike(self.folder / name, result) from error
        if hashlib.sha256(content).hexdigest() != result.files[name]:
            raise unlike(self.folder / name, result)
        return content

    def all(self) -> list[Result]:
        """Every whole result in the folder, by name."""
        return read_results(self.folder)


def is_whole(file: Path, expected: str) -> bool:
    """Whether a side file is here and is the one that was stored."""
    try:
        with readable(file):
            return not is_special(file) and sha256(file) == expected
    except FileNotFoundError:
        return False


def unlike(file: Path, result: Result) -> UserError:
    """What to say of a side file that is missing, or is not the one its result was stored with."""
    return UserError(
        f"{file} is missing or damaged, or belongs to another computation of {result.key.name}: "
        "run the experiment again, finished cells are kept"
    )


FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A file beside a result, never one elsewhere."""


class _Record(BaseModel):
    """The form of a result's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    kind: str
    key: dict[str, Any]
    code: str
    values: dict[str, Any]
    provenance: dict[str, Any]
    files: dict[FileName, str]
    digest: str


def read_results(folder: Path | str) -> list[Result]:
    """Every whole result in a folder, sorted by file name; damaged files are left out."""
    found = map(read_result, listed(folder, RESULTS))
    return [result for result in found if result is not None]


def read_result(path: Path) -> Result | None:
    """Read one result; None if it is missing, truncated or edited."""
    record = read_json(path)
    try:
        checked = _Record.model_validate(record)
        whole = digest({name: value for name, value in record.items() if name != "digest"})
    except (ValueError, RecursionError):  # another form, or text that cannot be written
        return None
    if whole != checked.digest:
        return None
    key = Key(checked.kind, checked.key, checked.code)
    return Result(key, checked.values, checked.provenance, checked.files)
