"""Folders of several machines: brought together, checked, and safe without locks that all of them see."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from salun_core.__main__ import main
from salun_core.errors import UserError
from salun_core.experiments.runs import store as stores
from salun_core.experiments.runs.merge import merge
from salun_core.experiments.runs.store import Key, Store
from salun_core.files import write_whole
from salun_core.saliency import load_mask, save_mask


def keyed(number, code="code"):
    return Key("cell", {"number": number}, code)


def filled(folder, numbers, *, content=b"logits", code="code", seconds=1.0):
    store = Store(folder / "cells")
    for number in numbers:
        values = {"seconds": seconds, "status": "done"}
        store.put(keyed(number, code), values, {"finished": str(seconds)}, {".outputs.safetensors": content})
    return folder


def names(folder):
    return sorted(path.name for path in (folder / "cells").glob("*-*"))


def test_results_of_two_machines_come_together(tmp_path, capsys):
    one = filled(tmp_path / "one", [1, 2])
    two = filled(tmp_path / "two", [2, 3], seconds=9.0)  # the same cell, computed on both
    write_whole(one / "results/classification.json", b'{"rows": []}')
    assert main(["merge", str(one), str(two), "--into", str(tmp_path / "all")]) == 0
    assert "3 results merged, 1 were already there or came twice" in capsys.readouterr().out
    assert names(tmp_path / "all") == sorted({*names(one), *names(two)})
    store = Store(tmp_path / "all/cells")
    assert all(store.get(keyed(number)) is not None for number in (1, 2, 3))
    assert (tmp_path / "all/results/classification.json").read_bytes() == b'{"rows": []}'
    assert merge([one, two], tmp_path / "all").new == 0  # and again


def test_masks_come_along_and_damaged_ones_are_refused(tmp_path):
    one = filled(tmp_path / "one", [1])
    mask = save_mask({"w": torch.eye(9, dtype=torch.bool)}, one / "cells/mask-1.safetensors")
    Store(one / "cells").put(keyed(2), {"status": "done", "mask_file": mask.name}, {"finished": "now"})
    assert merge([one], tmp_path / "all").new == 2
    assert load_mask(tmp_path / "all/cells/mask-1.safetensors")["w"].sum() == 9
    content = mask.read_bytes()
    mask.write_bytes(content[:-1] + bytes([content[-1] ^ 128]))
    with pytest.raises(UserError, match="mask-1.safetensors is damaged"):
        merge([one], tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_lists_that_differ_are_named_and_not_copied(tmp_path, capsys):
    one, two = filled(tmp_path / "one", [1]), filled(tmp_path / "two", [2])
    write_whole(one / "results/saliency.json", b"1")
    write_whole(two / "results/saliency.json", b"2")
    assert main(["merge", str(one), str(two), "--into", str(tmp_path / "all")]) == 0
    assert "run saliency into" in capsys.readouterr().out
    assert not (tmp_path / "all/results").exists()


def test_lists_named_like_no_experiment_are_left_and_named(tmp_path, capsys):
    one, two = filled(tmp_path / "one", [1]), filled(tmp_path / "two", [2])
    for folder, content in ((one, b"1"), (two, b"2")):
        write_whole(folder / "results/diffusion-old.json", content)
        write_whole(folder / "results/diffusion.json", b"same")
    assert main(["merge", str(one), str(two), "--into", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out.splitlines()
    for folder in (one, two):
        assert (
            f"{folder / 'results/diffusion-old.json'} is left there: it is named like no experiment" in said
        )
    assert len(said) == 3 and [path.name for path in (tmp_path / "all/results").iterdir()] == [
        "diffusion.json"
    ]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"content": b"others"}, "other outputs"),
        ({"code": "later"}, "different versions of the code"),
    ],
)
def test_contradictions_are_refused_and_nothing_is_written(tmp_path, other, why):
    one, two = filled(tmp_path / "one", [1]), filled(tmp_path / "two", [1], **other)
    with pytest.raises(UserError, match=why):
        merge([one, two], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("damage", ["result", "outputs", "outputs gone", "renamed"])
def test_damage_is_refused(tmp_path, damage):
    one = filled(tmp_path / "one", [1])
    file, side = (
        one / "cells" / f"{keyed(1).name}.json",
        one / "cells" / f"{keyed(1).name}.outputs.safetensors",
    )
    if damage == "result":
        file.write_text(file.read_text().replace("done", "gone"))
    elif damage == "outputs":
        side.write_bytes(b"logitz")
    elif damage == "outputs gone":
        side.unlink()
    else:
        file.rename(file.with_name(f"{keyed(2).name}.json"))
    with pytest.raises(UserError, match="damaged"):
        merge([one], tmp_path / "all")


@pytest.mark.parametrize("other", [1.0, -0.0])
def test_the_same_numbers_in_another_order_are_the_same(tmp_path, other):
    about = {"kind": "classification", "n": "2"}
    one, two = torch.tensor([0.0, float("nan")]), torch.tensor([2, 3])
    ours = save({"logits": one, "ids": two}, metadata=about)
    start = 8 + int.from_bytes(ours[:8], "little")
    header = json.loads(ours[8:start])
    turned = json.dumps(dict(reversed(header.items()))).encode()
    same = len(turned).to_bytes(8, "little") + turned + ours[start:]
    assert same != ours
    folders = [filled(tmp_path / "one", [1], content=ours), filled(tmp_path / "two", [1], content=same)]
    assert merge(folders, tmp_path / "all").known == 1
    differs = save({"logits": torch.tensor([other, float("nan")]), "ids": two}, metadata=about)
    with pytest.raises(UserError, match="other outputs"):
        merge([*folders, filled(tmp_path / "three", [1], content=differs)], tmp_path / "more")


def test_what_is_no_output_folder_is_refused(tmp_path, capsys):
    assert main(["merge", str(tmp_path), "--into", str(tmp_path / "all")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_a_folder_without_one_result_is_refused(tmp_path, capsys):
    (tmp_path / "empty/cells").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    one = filled(tmp_path / "one", [1])
    for name in ("empty", "file", "missing"):
        assert main(["merge", str(one), str(tmp_path / name), "--into", str(tmp_path / "all")]) == 2
        said = capsys.readouterr()
        assert f"{tmp_path / name} holds no results" in said.err and not said.out
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("merge", "one"),
        ("merge", "one/cells"),
        ("merge", "one/results"),
        ("merge", "all/cells"),
        ("export", "one"),
        ("export", "one/cells"),
    ],
)
def test_what_may_not_be_read_is_said(tmp_path, capsys, monkeypatch, command, folder):
    one = filled(tmp_path / "one", [1])
    filled(tmp_path / "all", [2])
    write_whole(one / "results/classification.json", b"{}")
    closed = {str(tmp_path / name) for name in (folder, f"{folder}/cells", f"{folder}/results")}

    def guarded(real):
        def inner(path=".", *more, **named):
            if str(path) in closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *more, **named)

        return inner

    for name in ("listdir", "scandir"):  # root may read everything
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    words = {
        "merge": ["merge", str(one), "--into", str(tmp_path / "all")],
        "export": ["export", keyed(1).name, str(tmp_path / "shared"), "--out", str(one)],
    }[command]
    assert main(words) == 2
    said = capsys.readouterr()
    assert re.search(r"cannot read .*: Permission denied; check its permissions", said.err) and not said.out


# --- without locks ------------------------------------------------------------------------------------


def test_the_first_result_stored_stays(tmp_path):
    store = Store(tmp_path)
    first = store.put(keyed(1), {"v": 1}, {}, {".outputs.bin": b"first"})
    second = store.put(keyed(1), {"v": 2}, {}, {".outputs.bin": b"second"})
    assert second.content == {"v": 1} and second.files == first.files
    assert store.put(keyed(1, "newer code"), {"v": 3}, {}, {}).content == {"v": 3}


def test_two_that_store_at_one_moment_never_mix(tmp_path, monkeypatch):
    """The other machine stores its result between our outputs and our result."""
    ours, theirs = Store(tmp_path), Store(tmp_path)
    others = iter([True])

    def interrupted(path, content):
        done = write_whole(path, content)
        if str(path).endswith(".outputs.bin") and content == b"ours" and next(others, False):
            monkeypatch.setattr(stores, "write_whole", write_whole)
            write_whole(theirs.path(keyed(1), ".outputs.bin"), b"theirs")
            monkeypatch.setattr(stores, "write_whole", interrupted)
        return done

    monkeypatch.setattr(stores, "write_whole", interrupted)
    stored = ours.put(keyed(1), {"v": 1}, {}, {".outputs.bin": b"ours"})
    found = ours.get(keyed(1))
    assert found is not None and found.content == stored.content
    assert ours.read(found, f"{keyed(1).name}.outputs.bin") == b"ours"


def test_an_output_of_another_computation_is_not_read(tmp_path):
    store = Store(tmp_path)
    result = store.put(keyed(1), {}, {}, {".outputs.bin": b"ours"})
    write_whole(store.path(keyed(1), ".outputs.bin"), b"theirs")
    with pytest.raises(UserError, match="another computation"):
        store.read(result, f"{keyed(1).name}.outputs.bin")


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    store = Store(tmp_path)
    with store.alone(keyed(1)), Store(tmp_path).alone(keyed(1)):
        store.put(keyed(1), {}, {})
    assert [path.name for path in (tmp_path / ".locks").iterdir()] == [".probe"]


def test_locks_do_not_pile_up(tmp_path):
    store = Store(tmp_path)
    for number in range(3):
        with store.alone(keyed(number)):
            assert (tmp_path / ".locks" / keyed(number).name).exists()
    assert [path.name for path in (tmp_path / ".locks").iterdir()] == [".probe"]


SCRIPT = """
import contextlib, json, sys
from salun_core.experiments.classification.method_comparison import ClassificationParams, run
from salun_core.experiments.runs.store import Store
if "--apart" in sys.argv:
    Store.alone = lambda self, key: contextlib.nullcontext()  # another machine does not see our locks
    print("ready", flush=True)
    sys.stdin.readline()
given = {"preset": "quick", "width": 4, "epochs": 1, "train_images": 200, "scenario": ["random"], "seeds": [0],
         "methods": ["retrain", "ft", "ga", "salun"], "settings": {"ft": {"epochs": 1}, "salun": {"epochs": 1}},
         "tune": False, "noise_floor": 2, "out_dir": sys.argv[1]}
cells = run(ClassificationParams.load(given)).cells
print(json.dumps(cells[["cell", "method", "UA", "RA", "TA", "MIA"]].to_dict("list")))
"""


@pytest.mark.slow
def test_two_machines_without_a_common_lock_make_one_table(tmp_path):
    alone = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "alone")], capture_output=True, text=True, check=True
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    both = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "both"), "--apart"], **pipes)
        for _ in range(2)
    ]
    for child in both:
        assert child.stdout.readline() == "ready\n"
    for child in both:
        child.stdin.write("\n")
        child.stdin.flush()
    tables = [child.communicate()[0] for child in both]
    assert [json.loads(table) for table in tables] == [json.loads(alone.stdout)] * 2
    store = Store(tmp_path / "both/cells")
    files = [path for path in store.folder.glob("*.json") if path.name[0] != "."]
    assert len(store.all()) == len(files) and all(store.has_files(result) for result in store.all())
