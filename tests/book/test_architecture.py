"""The page for maintainers against the tree it describes."""

import re
from pathlib import Path

import architecture
from architecture import GROUND, Room, depths, needed, rooms

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book/architecture.md").read_text("utf8")


def test_the_page_describes_the_rooms_that_there_are():
    folders = {p.name for p in (ROOT / "salun_core").iterdir() if any(p.glob("*.py")) and p.is_dir()}
    described = re.findall(r"^(\w+)\n: ", PAGE, flags=re.MULTILINE)
    assert set(described) == folders | {"saliency", GROUND}
    assert set(rooms()) == set(described)
    for name, room in rooms().items():  # from the ground up
        assert all(described.index(used) < described.index(name) for used in room.uses)


def test_every_module_stands_in_a_room():
    modules = [p for p in (ROOT / "salun_core").rglob("*.py") if p.read_text("utf8").strip()]
    outside = [p for p in modules if p.parent.name == "salun_core" and p.stem in ("__init__", "__main__")]
    assert sum(room.files for room in rooms().values()) == len(modules) - len(outside)


def test_arrows_go_down():
    found = rooms()
    depth = depths(found)
    assert all(depth[used] > depth[name] for name, room in found.items() for used in room.uses)


def test_an_arrow_that_others_imply_is_left_out():
    found = {
        "low": Room("low", 1, 1, {}),
        "middle": Room("middle", 1, 1, {"low": 2}),
        "high": Room("high", 1, 1, {"low": 1, "middle": 3}),
    }
    assert needed(found) == [("middle", "low"), ("high", "middle")]
    assert depths(found) == {"high": 0, "middle": 1, "low": 2}


def test_the_picture_and_the_table_follow_the_imports():
    found = rooms()
    drawn, table = architecture.picture(), architecture.table()
    for name, room in found.items():
        assert f">{name}</text>" in drawn
        assert f"{room.lines:,} lines" in drawn
        for used, count in room.uses.items():
            assert used in found
            assert f'<td class="numbers">{count}</td>' in table


def test_the_walk_of_one_cell_is_short():
    """From the parameters cell to one printed number, a reader opens at most twenty files."""
    walk = PAGE.partition("## The walk of one cell")[2].partition("\n## ")[0]
    names = re.findall(r"[~<](salun_core[\w.]+)", walk)
    files = {name.rpartition(".")[0] for name in names}
    assert 10 <= len(files) <= 20
