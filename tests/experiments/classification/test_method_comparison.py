"""A small experiment from end to end: killed and resumed, merged, damaged, on a full disk."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from salun_core.data import load_dataset
from salun_core.errors import UserError
from salun_core.experiments.classification.method_comparison import ClassificationParams, run
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario, Variant
from salun_core.experiments.runs.table import Run, read_table
from salun_core.experiments.runs.tuning import tune
from salun_core.metrics import METRICS

GIVEN = {
    "preset": "quick",
    "width": 4,
    "epochs": 1,
    "scenario": ["random"],
    "methods": ["retrain", "ft", "ga", "salun"],
    "settings": {"ft": {"epochs": 1}, "salun": {"epochs": 1}},
    "seeds": [0],
    "tuning_seed": [1000],
    "tuning_budget": 2,
    "noise_floor": 1,
}
UNTUNED = {"tune": False, "tuning_seed": None, "tuning_budget": None, "noise_floor": 0}
RESULT = ["method", "mask", "seed", "replica", "UA", "RA", "TA", "MIA", "reported", "status"]


def done(folder, **more):
    return run(ClassificationParams.load(GIVEN | more | {"out_dir": str(folder)}))


def numbers(cells):
    return cells[[name for name in RESULT if name in cells]].reset_index(drop=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the whole run."""
    folder = tmp_path_factory.mktemp("whole")
    done(folder)
    return folder


@pytest.fixture
def mine(finished, tmp_path):
    """A copy of that folder to change."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def touched(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*-*")}


def test_a_second_run_computes_nothing(mine):
    before = touched(mine)
    again = done(mine)
    assert touched(mine) == before
    table = read_table(mine, "classification")
    pd.testing.assert_frame_equal(numbers(again.cells), numbers(table[table["reported"]]), check_dtype=False)


def test_killed_at_any_moment_a_run_resumes_to_the_same_table(finished, tmp_path):
    words = [sys.executable, "-m", "salun_core", "run", "classification", "--out", str(tmp_path)]
    for name, value in GIVEN.items():
        words += ["-p", name, json.dumps(value)]
    cells = tmp_path / "cells"
    kills = 0
    for count in (2, 7):
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and len(list(cells.glob("*.json"))) < count:
            time.sleep(0.02)
        if child.poll() is None:
            kept = {path.name for path in cells.glob("*.json")}
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
            assert kept <= {path.name for path in cells.glob("*.json")}
    assert kills
    results = done(tmp_path)
    expected = read_table(finished, "classification")
    pd.testing.assert_frame_equal(
        numbers(read_table(tmp_path, "classification")), numbers(expected), check_dtype=False
    )
    assert len(results.cells) == 5


def test_a_cell_does_not_depend_on_what_ran_before_it(finished, tmp_path):
    alone = done(tmp_path, methods=["retrain", "salun"], **UNTUNED)
    lab = ClassificationParams.load(GIVEN | {"out_dir": str(finished)}).lab()
    row = alone.cells.query("method == 'salun'").iloc[0]
    cell = Cell(
        0,
        Scenario("random", fraction=0.1),
        "salun",
        MaskSpec(row["mask"], row["keep"], row["score"]),
        {"epochs": 1},
    )
    torch.rand(7)
    assert lab.run(cell).key.name == row["cell"]
    lab.store.path(lab.key(cell)).unlink()
    assert float(METRICS["UA"](lab.evaluation(lab.run(cell)))) == row["UA"]


@pytest.mark.parametrize("damage", ["truncated", "edited", "outputs"])
def test_a_damaged_cell_is_computed_again_with_the_same_numbers(mine, damage):
    table = read_table(mine, "classification")
    name = table.query("method == 'ft' and reported")["cell"].iloc[0]
    path = mine / "cells" / f"{name}.json"
    outputs = path.with_name(f"{name}.outputs.safetensors")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "edited":
        path.write_text(path.read_text().replace('"seconds"', '"second"'))
    else:
        outputs.write_bytes(outputs.read_bytes()[:-1])
    before = touched(mine)
    done(mine)
    changed = {file for file, when in touched(mine).items() if before.get(file) != when}
    assert f"{name}.json" in changed
    assert len({file.split(".")[0] for file in changed}) == 1
    pd.testing.assert_frame_equal(
        numbers(read_table(mine, "classification")), numbers(table), check_dtype=False
    )


def test_tuning_never_looks_at_test_images(finished):
    """Candidates of the tuning seed carry no test metric, and no metric is stored with any cell."""
    table = read_table(finished, "classification")
    tried = table[~table["reported"].astype(bool)]
    assert len(tried) >= 2 + 2 * 3  # Retrain and Original, and two candidates for each of three methods
    assert tried["TA"].isna().all()
    assert set(tried["seed"]) == {1000}
    for name in table["cell"]:
        assert "metrics" not in json.loads((finished / "cells" / f"{name}.json").read_text())["values"]


def test_no_test_image_takes_part_in_a_choice(tmp_path):
    """Replace every test image by noise: whatever settings are chosen by stays, to the last bit."""
    params = ClassificationParams.load(GIVEN | {"methods": ["ga"], "out_dir": str(tmp_path)})
    clean = load_dataset("digits")
    images = clean.images.clone()
    images[clean.n_train :] = torch.randint_like(images[clean.n_train :], 256)
    tunings = []
    for data in (clean, replace(clean, images=images)):
        lab = params.lab(data=data)
        variants = [Variant("retrain"), Variant("ga")]
        scenario = params.scenarios()[0]
        rows, chosen = tune(Run(lab, params), params.tuning, variants, [scenario])
        tunings.append(rows[["select_UA", "select_RA", "select_VA", "select_MIA", "distance", "chosen"]])
        assert chosen[scenario, variants[1]]
    pd.testing.assert_frame_equal(*tunings)
    assert len(list((tmp_path / "cells").glob("original-*.json"))) == 2  # both were computed


def test_a_recorded_run_needs_no_weights(mine):
    for path in (mine / "cells").glob("*.model.safetensors"):
        path.unlink()
    before = touched(mine)
    results = done(mine, recorded=True)
    assert touched(mine) == before
    assert numbers(results.cells)["UA"].notna().all()


def test_pieces_from_two_machines_merge_into_the_same_table(finished, tmp_path):
    done(tmp_path / "a", methods=["retrain", "ft"])
    done(tmp_path / "b", methods=["retrain", "ga", "salun"])
    for path in (tmp_path / "b" / "cells").glob("*-*"):
        shutil.copy(path, tmp_path / "a" / "cells" / path.name)
    before = touched(tmp_path / "a")
    merged = done(tmp_path / "a")
    new = {name.split(".")[0] for name in touched(tmp_path / "a").keys() - before.keys()}
    assert not new
    expected = read_table(finished, "classification").query("reported == True")
    pd.testing.assert_frame_equal(numbers(merged.cells), numbers(expected), check_dtype=False)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    done(tmp_path, methods=["retrain", "ft"], **UNTUNED)
    before = touched(tmp_path)
    real = os.fsync

    def full(number):
        if os.fstat(number).st_size:  # the probe at the start still finds room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    more = {"methods": ["retrain", "ft", "ga"], **UNTUNED}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full") as refusal:
            done(tmp_path, **more)
    assert "\n" not in str(refusal.value)
    assert touched(tmp_path) == before
    assert len(done(tmp_path, **more).cells) == 3


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="choose another output folder"):
        done(tmp_path / "out")
