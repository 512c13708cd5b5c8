import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from salun_core.code_digest import code_digest
from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.runs.merge import same_content
from salun_core.experiments.runs.store import Key, Store, digest
from salun_core.files import write_whole

KEY = Key("cell", {"seed": 1, "method": "rl"}, code="abc")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def put(store, key=KEY):
    return store.put(key, {"UA": 0.25, "none": None}, {"device": "cpu"}, {".logits": b"12345678"})


def test_a_result_comes_back_as_it_was(store):
    put(store)
    found = store.get(KEY)
    assert found.content == {"UA": 0.25, "none": None}
    assert found.provenance == {"device": "cpu"}
    assert store.path(KEY, ".logits").read_bytes() == b"12345678"
    assert [r.key.name for r in store.all()] == [KEY.name]


def test_the_order_of_settings_does_not_matter_and_every_value_does():
    assert Key("cell", {"b": 1, "a": 2}).name == Key("cell", {"a": 2, "b": 1}).name
    assert Key("cell", {"a": 2}).name != Key("cell", {"a": 3}).name
    assert digest({"a": 1.0}) != digest({"a": 1.5})


@pytest.mark.parametrize("damage", ["truncated", "edited", "empty", "binary", "side file", "side file gone"])
def test_damage_is_detected(store, damage):
    put(store)
    path = store.path(KEY)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "edited":
        path.write_text(path.read_text().replace("0.25", "0.26"))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    elif damage == "side file":
        store.path(KEY, ".logits").write_bytes(b"12345679")
    else:
        store.path(KEY, ".logits").unlink()
    assert store.get(KEY) is None
    put(store)  # and it can be computed again in the same place
    assert store.get(KEY) is not None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "9" * 5000,
        '{"values": NaN}',
        '{"values": "\\ud800"}',
        "null",
        "[]",
        "3",
    ],
)
def test_text_that_this_project_never_writes_counts_as_damaged(store, text):
    put(store)
    path = store.path(KEY)
    for whole in (text, path.read_text().replace("0.25", text.removeprefix('{"values": ').removesuffix("}"))):
        path.write_text(whole)
        assert store.get(KEY) is None
        assert store.all() == []


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["a"]},
        {"files": {"../../secret": "0"}},
        {"files": {"x": 3}},
        {"values": []},
        {"kind": 3},
        {"code": None},
        {"format": 2},
        {"more": 1},
    ],
)
def test_a_file_of_another_form_counts_as_damaged_even_with_its_digest_made_again(store, change):
    put(store)
    path = store.path(KEY)
    record = {n: v for n, v in json.loads(path.read_text()).items() if n != "digest"} | change
    path.write_text(json.dumps(record | {"digest": digest(record)}))
    assert store.get(KEY) is None


def test_what_may_not_be_read_is_said(store, monkeypatch):
    put(store)

    def refused(*_args, **_more):
        raise PermissionError(13, "Permission denied", "the file")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refused)
        with pytest.raises(UserError, match="cannot read the file: Permission denied"):
            store.get(KEY)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refused)
        with pytest.raises(UserError, match="cannot read the file: Permission denied"):
            store.get(KEY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refused)
        with pytest.raises(UserError, match="cannot read the file: Permission denied"):
            store.all()


@pytest.mark.parametrize("side", [False, True])
def test_what_is_no_file_is_not_waited_for(store, side):
    result = store.put(KEY, {"a": 1}, {}, {".outputs.safetensors": b"logits"})
    path = store.folder / result.outputs if side else store.path(KEY)
    path.unlink()
    os.mkfifo(path)
    assert store.get(KEY) is None
    store.put(KEY, {"a": 1}, {}, {".outputs.safetensors": b"logits"})
    assert store.get(KEY) is not None
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="Is a directory; move away what lies there"):
        store.get(KEY)


def test_locks_that_cannot_be_taken_are_said(store):
    (store.folder / ".locks").write_text("")
    with pytest.raises(UserError, match=r"\.locks.*is a file"), store.alone(KEY):
        pass


def test_results_of_other_code_are_computed_again_unless_accepted(store):
    put(store)
    other = Key(KEY.kind, KEY.what, code="other")
    assert store.get(other) is None
    assert Store(store.folder, trusted=True).get(other) is not None


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        write_whole(tmp_path / "x.json", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose an"):
        Store(tmp_path / "file" / "runs")


def test_a_writer_killed_at_any_moment_leaves_whole_results(tmp_path):
    script = (
        "import sys; from salun_core.experiments.runs.store import Key, Store\n"
        "store = Store(sys.argv[1]); print('ready', flush=True)\n"
        "for i in range(10**6):\n"
        "    store.put(Key('cell', {'i': i}), {'i': i, 'text': 'x' * 20000}, {}, {'.bin': b'y' * 50000})\n"
    )
    for delay in (0.05, 0.11, 0.23):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        files = list(tmp_path.glob("cell-*.json"))
        assert files, "the writer never got to write"
        store = Store(tmp_path)
        assert len(store.all()) == len(files)
        for result in store.all():
            assert store.get(Key("cell", result.key.what)).content["i"] == result.key.what["i"]


def test_the_code_digest_follows_imports_and_ignores_comments(tmp_path, monkeypatch):
    import salun_core.code_digest as code

    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("from pack.a import *\n")
    (package / "a.py").write_text("from pack import b\nx = b.y\n")
    (package / "b.py").write_text("y = 1\n")
    (package / "c.py").write_text("z = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(code, "PACKAGE", "pack")

    def now():
        code.forget_files()
        return code_digest("pack.a", "torch")

    first = now()
    (package / "b.py").write_text('"""A docstring."""\n# and a comment\ny  =  1\n')
    (package / "c.py").write_text("z = 2\n")
    assert now() == first
    (package / "b.py").write_text("y = 2\n")
    assert now() != first


def test_results_are_plain_json(store):
    put(store)
    assert json.loads(store.path(KEY).read_text())["key"] == dict(KEY.what)


def test_a_users_own_network_counts_in_the_code_digest(tmp_path, monkeypatch):
    import salun_core.code_digest as code

    file = tmp_path / "users_net.py"
    file.write_text("from salun_core.models import vgg\nwidth = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = code_digest("users_net")
    file.write_text("from salun_core.models import vgg\nwidth = 4\n")
    code.forget_files()
    assert code_digest("users_net") != first


def test_a_deterministic_store_takes_only_what_was_computed_so(tmp_path, capsys):
    def stored(**how):
        found = Store(tmp_path, **how).get(KEY)
        return found and found.content["i"]

    plain, strict = Store(tmp_path), Store(tmp_path, deterministic=True, trusted=True)
    plain.put(KEY, {"i": 1}, {"threads": 4})
    assert stored() == 1 and stored(trusted=True) == 1
    assert stored(deterministic=True) is None
    assert f"such as {KEY.name} (threads: 4), are computed again" in capsys.readouterr().err
    assert strict.get(KEY) is None and strict.get(KEY) is None
    assert capsys.readouterr().err.count("computed again") == 1
    strict.put(KEY, {"i": 2}, {"threads": 1})
    assert stored() == stored(deterministic=True) == 2


def test_a_deterministic_run_is_that_of_a_folder_of_its_own(tmp_path, capsys):
    kind = EXPERIMENTS["classification"]
    given = {"methods": ["ft"], "tune": False, "noise_floor": 0, "seeds": [0], "epochs": 1, "width": 4}
    given |= {"scenario": "random", "settings": {"ft": {"epochs": 1}}, "train_images": 200}

    def ran(folder, **how):
        kind.run(kind.params.load({**given, **how, "out_dir": str(tmp_path / folder)}))
        files = sorted((tmp_path / folder / "cells").glob("*-*"))
        return {file.name: file.stat().st_mtime_ns for file in files}

    try:
        ran("mixed", threads=2)
        for file in (tmp_path / "mixed/cells").glob("cell-*"):
            file.unlink()
        before = ran("mixed", threads=1)  # on an original model of two threads
        capsys.readouterr()
        after = ran("mixed", deterministic=True)
        assert "are computed again" in capsys.readouterr().err
        again = ran("mixed", deterministic=True)
        ran("alone", deterministic=True)
    finally:
        torch.set_num_threads(1)
    assert before.keys() == after.keys() and all(after[name] != before[name] for name in before)
    assert again == after and "are computed again" not in capsys.readouterr().err
    outputs = [name for name in after if name.endswith(".safetensors")]
    assert len(outputs) == 3
    for name in outputs:
        assert same_content(tmp_path / "mixed/cells" / name, tmp_path / "alone/cells" / name)


def test_two_runs_that_want_one_result_compute_it_once(tmp_path):
    computed = []

    def wanted():
        store = Store(tmp_path)
        with store.alone(KEY):
            if store.get(KEY) is None:
                computed.append(1)
                time.sleep(0.2)
                put(store)

    runs = [threading.Thread(target=wanted) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert computed == [1]


def test_a_result_is_taken_while_another_process_computes_it(tmp_path):
    store = Store(tmp_path)
    assert not store.is_taken(KEY)
    with store.alone(KEY):
        assert Store(tmp_path).is_taken(KEY)
        assert not store.is_taken(Key("cell", {"seed": 9}, "c"))
    assert not store.is_taken(KEY)
    (tmp_path / ".locks" / KEY.name).touch()  # of a process that was killed
    assert not store.is_taken(KEY)
