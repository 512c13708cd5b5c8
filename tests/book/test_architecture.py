"""The page for maintainers against the tree it describes."""

import inspect
import re
import sys
from pathlib import Path

import architecture
import pytest
from architecture import GROUND, WALKS, Room, depths, needed, rooms, walk

from salun_core.code_digest import locate

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
    drawn, table = architecture.picture(), architecture.table().frame.set_index("from")
    for name, room in found.items():
        assert f">{name}</text>" in drawn
        assert f"{room.lines:,} lines" in drawn
        for used, count in room.uses.items():
            assert used in found
            assert table.loc[name, used] == str(count)


MOST = {"UA of a classifier": 20, "UA of a text-to-image model": 25}


@pytest.mark.parametrize("number", WALKS)
def test_a_reader_opens_few_files_on_the_way_to_a_number(number):
    assert 15 <= len(walk(WALKS[number][0])) <= MOST[number]


def classifier(out):
    given = {"epochs": 1, "methods": ["salun"], "tune": False, "noise_floor": 0, "seeds": [0], "width": 2}
    given |= {"scenario": ["random"], "settings": {"salun": {"epochs": 1}}, "out_dir": out}
    from salun_core.experiments.classification.method_comparison import ClassificationParams, run
    from salun_core.pages.tables.classification import main_table

    return lambda: main_table(run(ClassificationParams.load(given)).cells, "random 10%")


def text_to_image(out):
    given = {"methods": ["salun"], "masks": [], "forget_steps": 2, "mask_draws": 1, "out_dir": out}
    given |= {"samples": 10, "sample_steps": 2, "judge_width": 8, "judge_epochs": 1}
    from salun_core.experiments.text_to_image.class_forgetting import TextToImageParams, run
    from salun_core.pages.tables.generation import generation_table

    return lambda: generation_table(run(TextToImageParams.load(given)).cells)


@pytest.mark.long
@pytest.mark.parametrize(("number", "made"), [*zip(WALKS, (classifier, text_to_image), strict=True)])
def test_a_run_executes_every_file_on_the_way_and_as_many_as_the_page_says(number, made, tmp_path):
    computed, package = made(tmp_path), str(ROOT / "salun_core")
    files = set()

    def called(frame, event, arg):
        code = frame.f_code
        if (
            code.co_filename.startswith(package) and code.co_flags & inspect.CO_OPTIMIZED
        ):  # no import, no class
            files.add(Path(code.co_filename))

    sys.settrace(called)
    try:
        assert "UA" in repr(computed())
    finally:
        sys.settrace(None)
    heading, executed = WALKS[number]
    assert {locate(name, (ROOT,)) for name in walk(heading)} <= files
    assert abs(len(files) - executed) <= 5
