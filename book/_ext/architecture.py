"""The rooms of the library and who uses whom, drawn from the imports, so that the page about them cannot go stale."""

import html
import re
import sys
from collections import Counter
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from salun_core.pages.tables.table import Table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "salun_core"
GROUND = "ground"  # modules that stand by themselves, except saliency, which is a concept of its own
ALONE = ("saliency",)
WIDE, HIGH, GAP = 172, 46, 34
WALKS = {
    # A number, by the heading under which the page walks to it; and how many files a run executes for it.
    "UA of a classifier": ("The walk of one cell", 60),
    "UA of a text-to-image model": ("The same for a text-to-image model", 69),
}


@dataclass(frozen=True)
class Room:
    """A folder of the library, or the modules on its ground.

    Parameters
    ----------
    name : str
        Its name in the tree.
    files, lines : int
        Its size; empty files do not count.
    uses : dict of str to int
        By room: how many imports lead there.
    """

    name: str
    files: int
    lines: int
    uses: dict[str, int]


class Shown(str):
    """HTML that a page shows."""

    def _repr_html_(self) -> str:
        return str(self)


def room_of(module: str) -> str:
    """The room in which a module stands."""
    parts = module.split(".")
    if len(parts) < 2 or parts[1] == "__main__":
        return ""
    is_folder = (ROOT / PACKAGE / parts[1]).is_dir()
    return parts[1] if is_folder or parts[1] in ALONE else GROUND


def rooms() -> dict[str, Room]:
    """Every room, from the ground up: each uses only rooms before it.

    Raises
    ------
    graphlib.CycleError
        If two rooms use each other.
    """
    sys.path.insert(0, str(ROOT))
    from salun_core.code_digest import imports_of

    files: dict[str, list[Path]] = {}
    uses: dict[str, Counter[str]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not (room := room_of(module)):
            continue
        files.setdefault(room, []).append(path)
        found = imports_of(path, module, (ROOT,), tables=True, strings=False)
        there = Counter(other for name in found if (other := room_of(name)) and other != room)
        uses[room] = uses.get(room, Counter()) + there
    order = TopologicalSorter({room: set(used) for room, used in uses.items()}).static_order()
    return {room: _room(room, files[room], uses[room]) for room in order}


def _room(name: str, files: list[Path], uses: Counter[str]) -> Room:
    lines = [len(text.splitlines()) for file in files if (text := file.read_text("utf8")).strip()]
    return Room(name, len(lines), sum(lines), dict(uses))


def depths(found: dict[str, Room]) -> dict[str, int]:
    """How far a room lies below the top: one more than the lowest room that uses it."""
    depth = dict.fromkeys(found, 0)
    for name in reversed(found):
        for used in found[name].uses:
            depth[used] = max(depth[used], depth[name] + 1)
    return depth


def needed(found: dict[str, Room]) -> list[tuple[str, str]]:
    """The arrows of the picture: uses that no other path of arrows implies."""
    below: dict[str, set[str]] = {}
    for name, room in found.items():
        below[name] = set(room.uses) | {far for used in room.uses for far in below[used]}
    return [
        (name, used)
        for name, room in found.items()
        for used in room.uses
        if not any(used in below[other] for other in room.uses if other != used)
    ]


def picture(runs: Path | None = None) -> Shown:
    """The rooms as boxes, the highest on top, with the arrows between them."""
    found = rooms()
    depth = depths(found)
    rows = [[name for name in found if depth[name] == row] for row in range(max(depth.values()) + 1)]
    width = max(map(len, rows)) * (WIDE + GAP)
    place: dict[str, tuple[float, float]] = {}
    for y, row in enumerate(rows):
        for i, name in enumerate(row):
            above = [place[upper][0] for upper, lower in needed(found) if lower == name]
            # A room that has its row for itself stands under those that use it.
            x = sum(above) / len(above) if len(row) == 1 and above else width * (i + 0.5) / len(row)
            place[name] = (x, y * (HIGH + GAP) + HIGH / 2 + 2)
    parts = []
    for upper, lower in needed(found):
        (x1, y1), (x2, y2) = place[upper], place[lower]
        parts.append(
            f'<line x1="{x1:.0f}" y1="{y1 + HIGH / 2:.0f}" x2="{x2:.0f}" y2="{y2 - HIGH / 2 - 3:.0f}" '
            'stroke="currentColor" stroke-width="1.1" marker-end="url(#tip)"/>'
        )
    for name, room in found.items():
        x, mid = place[name]
        parts.append(
            f'<g><rect x="{x - WIDE / 2:.0f}" y="{mid - HIGH / 2:.0f}" width="{WIDE}" height="{HIGH}" rx="4" '
            'fill="var(--pst-color-surface, #eee)" stroke="currentColor"/>'
            f'<text x="{x:.0f}" y="{mid - 3:.0f}" text-anchor="middle" font-weight="600" font-size="15">{name}</text>'
            f'<text x="{x:.0f}" y="{mid + 15:.0f}" text-anchor="middle" font-size="12">'
            f"{room.files} {'file' if room.files == 1 else 'files'}, {room.lines:,} lines</text></g>"
        )
    said = "; ".join(f"{upper} uses {lower}" for upper, lower in needed(found))
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    )
    tip += '<path d="M0 0l8 4-8 4z" fill="currentColor"/></marker>'
    caption = (
        "The rooms of salun_core, drawn from their imports when this page was built. An arrow means that modules of the upper "
        "room import modules of the lower one; arrows that follow from others are left out."
    )
    return Shown(
        f'<figure class="result"><svg role="img" aria-label="{html.escape(said, quote=True)}" class="rooms" fill="currentColor" '
        f'viewBox="0 0 {width} {len(rows) * (HIGH + GAP)}"><defs>{tip}</defs>{"".join(parts)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(runs: Path | None = None) -> "Table":
    """Who uses whom: imports from each room (rows) to each other room (columns)."""
    from salun_core.pages.tables.table import Table

    found = rooms()
    upwards = list(reversed(found))
    rows = [
        {"from": name} | {other: str(found[name].uses.get(other) or "–") for other in upwards[1:]}
        for name in upwards
    ]
    return Table(
        pd.DataFrame(rows),
        "imports between rooms: how many lead from the room of a row into the room of a column; none lies below the diagonal",
    )


def walk(heading: str) -> list[str]:
    """The modules that a section of the page names, in order."""
    from salun_core.code_digest import locate

    page = (ROOT / "book/architecture.md").read_text("utf8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found: dict[str, None] = {}
    for name in re.findall(rf"[~<]({PACKAGE}[\w.]+)", section):
        while not locate(name, (ROOT,)):
            name = name.rpartition(".")[0]
        found[name] = None
    return list(found)


def walks(runs: Path | None = None) -> "Table":
    """How many files a reader opens on the way to a number, and how many a run executes."""
    from salun_core.pages.tables.table import Table

    rows = [
        {"number": number, "files opened": str(len(walk(heading))), "files executed": f"about {executed}"}
        for number, (heading, executed) in WALKS.items()
    ]
    return Table(
        pd.DataFrame(rows),
        "files behind one number: those that a reader opens, and those that a run executes",
    )
