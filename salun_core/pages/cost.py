"""How cost grows, as measured by ``python -m benchmarks scaling`` and ``large_folder``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_core.paths import project_root


@dataclass(frozen=True)
class Text:
    """Markdown that a page shows."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text


def scaling(runs: Path, *, measured: Path | None = None) -> Text:
    """Cells an hour against workers, and what a shard and a cell cost.

    Parameters
    ----------
    runs : Path
        Not used: what is shown was measured on an idle machine.
    measured : Path, optional
        The file; ``data/measured/scaling.json`` by default.
    """
    found = _measured("scaling", measured)
    if found is None:
        return Text("Not measured yet: `python -m benchmarks scaling`, on an idle machine, makes the table.")
    cells, first = found["cells"], found["seconds"]["1"]
    lines = ["| workers | minutes | cells an hour | times one worker |", "| ---: | ---: | ---: | ---: |"]
    for workers, seconds in sorted(found["seconds"].items(), key=lambda each: int(each[0])):
        lines.append(
            f"| {workers} | {seconds / 60:.1f} | {3600 * cells / seconds:,.0f} | {first / seconds:.2f} |"
        )
    machine = found["machine"]
    lines += [
        "",
        f"{cells} cells in {found['shards']} shards on {machine['device']} with {machine['processors']} processors, "
        f"revision {machine['revision']}, {machine['finished'][:10]}. In one process the same took "
        f"{found['plain_seconds'] / 60:.1f} minutes, so a shard costs {found['shard_seconds']:.1f} seconds on top of its "
        f"cells: a Python that loads PyTorch and the images. A cell leaves {found['cell_files'] / cells:.1f} files and "
        f"{found['cell_bytes'] / cells / 1024:,.0f} KiB, a shard "
        f"{found['shard_files'] / found['shards']:.1f} files.",
    ]
    return Text("\n".join(lines))


def large_folder(runs: Path, *, measured: Path | None = None) -> Text:
    """Memory and time of an experiment whose images are larger than its memory.

    Parameters
    ----------
    runs : Path
        Not used: it takes too long for a book that is built anew.
    measured : Path, optional
        The file; ``data/measured/large_folder.json`` by default.
    """
    found = _measured("large_folder", measured)
    if found is None:
        return Text("Not measured yet: `python -m benchmarks large_folder` tries it on 100,000 images.")
    machine = found["machine"]
    return Text(
        f"Tried on {found['images']:,} JPEG files, {found['decoded_bytes'] / 1e9:.1f} GB when decoded, in a process whose "
        f"data were limited to {found['limit_bytes'] / 1e9:.0f} GB: a small network was trained, retrained and unlearned "
        f"in {found['seconds'] / 60:.0f} minutes with {found['peak_bytes'] / 1e9:.1f} GB of memory at most "
        f"({machine['device']}, revision {machine['revision']}, {machine['finished'][:10]})."
    )


def _measured(name: str, given: Path | None) -> dict[str, Any] | None:
    """What a benchmark wrote, or None if it was not run."""
    file = given or project_root() / "data" / "measured" / f"{name}.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text("utf8"))
    return found
