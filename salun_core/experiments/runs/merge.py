"""Output folders of several machines brought together: what is damaged or contradicts itself is refused."""

import lzma
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_core.errors import UserError
from salun_core.experiments.runs.store import RESULTS, Result, digest, is_whole, read_result
from salun_core.files import check_writable, listed, parse_json, readable, regular, write_whole
from salun_core.saliency import load_mask

COSTS = ("seconds", "mask_seconds", "sampling_seconds", "peak_memory")
"""Values of a result that differ each time it is computed."""


@dataclass(frozen=True)
class Merged:
    """What a merge did: results that were copied, those known already, and experiments whose table is still to be made.

    ``left`` are the lists of results that are named like no experiment: copies that a user made.
    """

    new: int
    known: int
    unlisted: tuple[str, ...]
    left: tuple[Path, ...] = ()


def merge(folders: Sequence[Path], into: Path, *, experiments: Collection[str] | None = None) -> Merged:
    """Copy the results of output folders into one.

    A result that several folders hold must be the same in all: same code, same outputs. A list of results is copied
    where all folders that have one agree; others are made again by running the experiment, which then computes nothing.
    Everything is checked before the first file is written.

    Parameters
    ----------
    folders : sequence of Path
        Output folders, each with ``cells``.
    into : Path
        Made where it is missing; what it holds takes part.
    experiments : collection of str, optional
        Names of lists of results. Others are left where they are; without it, there are no others.

    Raises
    ------
    UserError
        If a folder holds no results or may not be read, a result is damaged, or two results of one name differ.
    """
    for folder in folders:
        with readable(folder / "cells"):
            is_folder = (folder / "cells").is_dir()
        if not is_folder or not listed(folder / "cells", RESULTS):
            why = "none in its folder cells" if is_folder else "no folder cells"
            raise UserError(f"{folder} holds no results ({why}): name an output folder, such as data/runs")
    known: dict[str, tuple[Path, Result]] = {}
    new: list[tuple[Path, Result]] = []
    twice = 0
    for folder in dict.fromkeys([into, *folders]):
        for path in listed(folder / "cells", RESULTS):
            result = _checked(path)
            before = known.get(result.key.name)
            if before is None:
                known[result.key.name] = (folder, result)
                if folder != into:
                    new.append((folder, result))
                continue
            if said := _contradiction(*before, folder, result):
                raise UserError(
                    f"{result.key.name} is not the same in {before[0]} and {folder} ({said}): keep one of the two, "
                    "delete the other's file, and merge again"
                )
            twice += 1
    lists, left = _lists(folders, into, experiments)
    check_writable(into / "cells")
    for folder, result in new:
        if (mask := _mask_of(folder, result)) is not None and not (into / "cells" / mask.name).exists():
            write_whole(into / "cells" / mask.name, mask.read_bytes())
        for name in [*result.files, f"{result.key.name}.json"]:  # the result itself last, as when it was made
            source = folder / "cells" / name
            if source.is_file():
                write_whole(into / "cells" / name, source.read_bytes())
    for name, contents in lists.items():
        if len(contents) == 1:
            write_whole(into / "results" / f"{name}.json", next(iter(contents)))
    unlisted = tuple(name for name, contents in sorted(lists.items()) if len(contents) > 1)
    return Merged(len(new), twice, unlisted, left)


def _checked(path: Path) -> Result:
    result = read_result(path)
    if result is None or result.key.name != path.stem:
        raise UserError(f"{path} is damaged or was edited: delete it, or copy that folder again")
    for name, expected in result.files.items():
        file = path.with_name(name)
        needed = name == result.outputs  # weights of recorded runs are not kept
        if (needed or file.is_file()) and not is_whole(file, expected):
            raise UserError(f"{file} is missing or damaged: delete {path}, or copy that folder again")
    if (mask := _mask_of(path.parents[1], result)) is not None:
        load_mask(mask)
    return result


def _mask_of(folder: Path, result: Result) -> Path | None:
    """The mask of a result, which others may share; None where there is none, or it was not kept."""
    file = folder / "cells" / Path(str(result.content.get("mask_file", "."))).name
    return file if file.is_file() else None


def _contradiction(here: Path, one: Result, there: Path, other: Result) -> str:
    """How two results of one name differ, in words; empty where only their costs do."""
    if digest(one.key.what) != digest(other.key.what):
        return "they are results of different things"
    if one.key.code != other.key.code:
        return "computed by different versions of the code"
    if one.files.keys() != other.files.keys() or not all(
        one.files[name] == other.files[name] or same_content(here / "cells" / name, there / "cells" / name)
        for name in one.files
    ):
        return "other outputs, as on another kind of machine"
    if digest(_lasting(one)) != digest(_lasting(other)):
        return "other values"
    return ""


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same to the last bit: safetensors write what they hold in any order."""
    try:
        contents = [path.read_bytes() for path in (one, other)]
    except FileNotFoundError:  # weights that were not kept say nothing
        return True
    if contents[0] == contents[1]:
        return True
    try:
        first, second = (_parts(lzma.decompress(c) if one.suffix == ".xz" else c) for c in contents)
    except (ValueError, KeyError, TypeError, lzma.LZMAError):
        return False
    return first == second


def _parts(content: bytes) -> dict[str, Any]:
    """Metadata and tensors of a safetensors file: type, shape and bytes by name."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = parse_json(content[8:start])
    parts = {"": header.pop("__metadata__", None)}
    for name, tensor in header.items():
        first, end = tensor["data_offsets"]
        parts[name] = (tensor["dtype"], tensor["shape"], content[start + first : start + end])
    return parts


def _lasting(result: Result) -> dict[str, Any]:
    return {name: value for name, value in result.content.items() if name not in COSTS}


def _lists(
    folders: Sequence[Path], into: Path, experiments: Collection[str] | None
) -> tuple[dict[str, set[bytes]], tuple[Path, ...]]:
    """Lists of results by the name of their experiment, as they are in each folder, and files of other names."""
    found: dict[str, set[bytes]] = {}
    left: list[Path] = []
    for folder in (into, *folders):
        for path in listed(folder / "results", "*.json"):
            if experiments is not None and path.stem not in experiments:
                if folder != into:
                    left.append(path)
                continue
            with readable(path):
                found.setdefault(path.stem, set()).add(regular(path).read_bytes())
    return found, tuple(dict.fromkeys(left))
