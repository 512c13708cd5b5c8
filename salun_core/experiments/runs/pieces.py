"""Long computations that are made piece by piece: what a run has made before it is killed, the next one has."""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from salun_core.files import write_whole

EVERY = 30.0  # seconds between two writes: what is done sooner is not written at all
SECONDS = "seconds"
APART = "/"  # between the name of a piece and that of a tensor in it


class Pieces:
    """Named tensors of one computation, on disk until it is whole.

    Parameters
    ----------
    folder : path
        For this computation alone; made when the first piece is written.
    every : float
        Seconds between two writes.
    """

    def __init__(self, folder: Path, *, every: float | None = None) -> None:
        self.folder = folder
        self.every = EVERY if every is None else every
        self.before = 0.0
        """Seconds that earlier runs have spent on the pieces that are here."""
        self._here: dict[str, dict[str, Tensor]] = {}
        self._new: dict[str, Tensor] = {}
        self._written = time.monotonic()
        for path in sorted(folder.glob("*.safetensors")):
            self._read(path)

    def __call__(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The piece of this name: from an earlier run, or made now."""
        if name in self._here:
            return self._here.pop(name)
        made = make()
        self._new |= {f"{name}{APART}{part}": tensor.contiguous() for part, tensor in made.items()}
        now = time.monotonic()
        if now - self._written >= self.every:
            spent = torch.tensor(now - self._written, dtype=torch.float64)
            content = save({**self._new, SECONDS: spent})
            write_whole(self.folder / f"{name}.{_digest(content)}.safetensors", content)
            self._new, self._written = {}, now
        return made

    def images(self, name: str) -> Callable[[range, Callable[[], Tensor]], Tensor]:
        """Keeps the batches of one drawing, as `sampled` asks for them."""

        def kept(rows: range, draw: Callable[[], Tensor]) -> Tensor:
            return self(f"{name}-{rows.start:07d}-{rows.stop:07d}", lambda: {"images": draw()})["images"]

        return kept

    def clear(self, others: str = "") -> None:
        """Delete all pieces, as the whole is stored; also those in folders beside that match a pattern."""
        for folder in (self.folder, *(self.folder.parent.glob(others) if others else ())):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # that of all computations, with the last one

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            if _digest(content) != path.suffixes[-2].removeprefix("."):  # damaged: made again
                return
            found = load(content)
        except (OSError, IndexError, SafetensorError):  # and so is what cannot be read
            return
        self.before += float(found.pop(SECONDS, torch.zeros(())))
        for full, tensor in found.items():
            name, _, part = full.rpartition(APART)
            self._here.setdefault(name, {})[part] = tensor


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]
