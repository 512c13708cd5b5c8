"""Files that only the paper's settings need: where they come from, what they must be, and where they go."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from salun_core.errors import UserError, one_of
from salun_core.files import check_writable, sha256
from salun_core.paths import models_folder, sets_folder

CHUNK = 1 << 20
SECONDS = 60  # without an answer, before another address is tried


@dataclass(frozen=True)
class File:
    """One file to fetch.

    Parameters
    ----------
    name : str
        In its folder.
    sha256 : str
        Digest of its content, 64 hexadecimal digits.
    addresses : tuple of str
        Where to fetch it, tried in this order.
    """

    name: str
    sha256: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Download:
    """Files that belong together.

    Parameters
    ----------
    about : str
        What they are and what needs them.
    folder : callable
        Where they go.
    files : tuple of File
        What is fetched.
    """

    about: str
    folder: Callable[[], Path]
    files: tuple[File, ...]

    @property
    def paths(self) -> list[Path]:
        """Where the files lie, once they are here."""
        return [self.folder() / file.name for file in self.files]


def torch_cache() -> Path:
    """The folder in which torch keeps published weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


CLIP_NAME = "openai/clip-vit-large-patch14"
_CLIP = f"https://huggingface.co/{CLIP_NAME}/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41"
_I2P_COPY = (
    "https://raw.githubusercontent.com/Con6924/SPM/3dd762e6895b23cd20cf1653a16addc5c16a12f3/benchmark/"
    "i2p_benchmark.csv"
)

DOWNLOADS: dict[str, Download] = {
    "inception": Download(
        "Inception's weights as pytorch-fid converted them (91 MiB), for a FID",
        torch_cache,
        (
            File(
                "pt_inception-2015-12-05-6726825d.pth",
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                (
                    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                    "pt_inception-2015-12-05-6726825d.pth",
                ),
            ),
        ),
    ),
    "resnet50": Download(
        "torchvision's ResNet-50, second weights (98 MiB), for judge: imagenet",
        torch_cache,
        (
            File(
                "resnet50-11ad3fa6.pth",
                "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
                ("https://download.pytorch.org/models/resnet50-11ad3fa6.pth",),
            ),
        ),
    ),
    "clip": Download(
        f"the CLIP model {CLIP_NAME} (1.6 GiB), for the CLIP score",
        lambda: models_folder() / CLIP_NAME,
        tuple(
            File(name, digest, (f"{_CLIP}/{name}",))
            for name, digest in (
                ("config.json", "8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a"),
                ("merges.txt", "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
                ("model.safetensors", "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"),
                ("tokenizer.json", "a83e0809aa4c3af7208b2df632a7a69668c6d48775b3c3fe4e1b1199d1f8b8f4"),
                ("tokenizer_config.json", "deef455e52fa5e8151e339add0582e4235f066009601360999d3a9cda83b1129"),
                ("vocab.json", "3f0c4f7d2086b61b38487075278ea9ed04edb53a03cbb045b86c27190fa8fb69"),
            )
        ),
    ),
    "i2p": Download(
        "the 4,703 prompts of I2P (1.3 MiB), for unsafe content",
        lambda: sets_folder(None),
        (
            File(
                "i2p_benchmark.csv",
                "5e78f211b3944d90182ab708ed0bd8af657c24a308153e6ccd5db9d9dbfe50cb",
                ("https://huggingface.co/datasets/AIML-TUDA/i2p/resolve/main/i2p_benchmark.csv", _I2P_COPY),
            ),
        ),
    ),
}
"""Everything that `fetch` knows, by name."""


def how_to_get(name: str) -> str:
    """What to do about missing files: the command that fetches them, the address, the place and the digest."""
    download = DOWNLOADS[name]
    file, path = download.files[0], download.paths[0]
    others, listed = "", ""
    if len(download.files) > 1:
        others = f", and {len(download.files) - 1} files beside it,"
        listed = "; 'python -m salun_core fetch --list' names all"
    return (
        f"run {fetching([name])} with a network, or copy {file.addresses[0]}{others} to {path} "
        f"(SHA-256 {file.sha256}{listed})"
    )


def missing(names: Iterable[str]) -> list[str]:
    """Which of these downloads are not here, or not whole, by file names; their content is not checked."""
    return [name for name in names if not all(path.is_file() for path in DOWNLOADS[name].paths)]


def refuse_missing(names: Iterable[str]) -> None:
    """Name all that must be fetched at once, where it is more than one; what needs a single one says more of it.

    Raises
    ------
    UserError
        If two or more are missing; with the command that fetches them.
    """
    gone = missing(names)
    if len(gone) > 1:
        raise UserError(
            f"{len(gone)} downloads are missing: {', '.join(gone)}; run {fetching(gone)} with a network, or copy them to "
            "where 'python -m salun_core fetch --list' says"
        )


def fetching(names: Iterable[str]) -> str:
    """The command that fetches these downloads, in quotes."""
    return f"'python -m salun_core fetch {' '.join(names)}'"


def fetch(names: Sequence[str] = (), *, progress: bool = True) -> Iterator[tuple[Path, bool]]:
    """Fetch what is missing and check what is here.

    Parameters
    ----------
    names : sequence of str
        Keys of ``DOWNLOADS``; all by default.
    progress : bool
        A bar on stderr for each file.

    Yields
    ------
    path, fetched
        Each file, and whether it was fetched now; False if it was here already, with the right content.

    Raises
    ------
    UserError
        If a file here or at its addresses has another content than expected, or no address answers.
    """
    for name in names or tuple(DOWNLOADS):
        download = DOWNLOADS[one_of(name, DOWNLOADS, "download")]
        for file, path in zip(download.files, download.paths, strict=True):
            if path.is_file():
                if (found := sha256(path)) != file.sha256:
                    raise UserError(
                        f"{path} has SHA-256 {found} instead of {file.sha256}: delete it and fetch it again"
                    )
                yield path, False
                continue
            check_writable(path.parent)
            _fetched(file, path, progress)
            yield path, True


def _fetched(file: File, path: Path, progress: bool) -> None:
    """Write the file from the first address that gives the right content."""
    problems = []
    for address in file.addresses:
        part = path.with_name(f".part-{os.getpid()}-{path.name}")
        try:
            found = _copied(address, part, path.name, progress)
            if found == file.sha256:
                part.replace(path)
                return
            problems.append(f"{address} gives a file with SHA-256 {found} instead of {file.sha256}")
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            problems.append(f"{address} does not answer ({getattr(error, 'reason', error)})")
        except (
            http.client.HTTPException
        ) as error:  # the connection ended in the middle of an answer, or it is none
            problems.append(f"{address} broke off ({error or type(error).__name__})")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            part.unlink(missing_ok=True)
    raise UserError(f"{path.name} could not be fetched: {'; '.join(problems)}; copy it to {path} yourself")


def _copied(address: str, to: Path, name: str, progress: bool) -> str:
    """Copy an address to a file; returns the digest of what came."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(address, timeout=SECONDS) as answer, open(to, "wb") as out:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(
            total=size or None, desc=name, unit="B", unit_scale=True, leave=False, disable=not progress
        ) as bar:
            while content := answer.read(CHUNK):
                out.write(content)
                digest.update(content)
                bar.update(len(content))
            if size and out.tell() < size:  # the end of the connection looks like the end of the file
                raise http.client.HTTPException(f"after {out.tell():,} of {size:,} bytes")
    return digest.hexdigest()
