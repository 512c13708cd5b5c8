"""Experiments in parts: any order leads to the same table, and what fails stops nothing else."""

import json
import os
import shutil

import pytest

from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.classification.method_comparison import ClassificationParams, grid, run
from salun_core.experiments.runs.merge import merge
from salun_core.experiments.runs.shards import GPUS, gather, own_gpu, plan, run_shard, shards
from salun_core.experiments.runs.store import read_result, read_results
from salun_core.experiments.runs.table import read_table

GIVEN = {
    "preset": "quick",
    "width": 4,
    "epochs": 1,
    "train_images": 200,
    "scenario": ["random"],
    "methods": ["retrain", "ft", "ga"],
    "settings": {"ft": {"epochs": 1}},
    "seeds": [0, 1],
    "tuning_seed": [1000],
    "tuning_budget": 2,
    "noise_floor": 0,
}
NUMBERS = ["cell", "study", "method", "seed", "UA", "RA", "TA", "MIA", "status", "settings"]


def params(folder, **more):
    return ClassificationParams.load(GIVEN | more | {"out_dir": str(folder)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same experiment in one go."""
    folder = tmp_path_factory.mktemp("whole")
    run(params(folder))
    return folder


def a_grid(folder, **more):
    chosen = params(folder, **more)
    return grid(chosen, chosen.lab())


def compute(folder, names=None, **more):
    """Run shards as a scheduler does; the states by name."""
    states = {}
    for name in names or shards(a_grid(folder, **more)):
        fresh = a_grid(folder, **more)  # a process of its own
        states[name] = run_shard(fresh, shards(fresh)[name], folder / "shards" / f"{name}.json")
        if states[name].ended:
            (folder / "shards" / f"{name}.done").touch()
    return states


def listed(folder):
    record = json.loads((folder / "results" / "classification.json").read_text())
    return record["rows"]


def test_shards_in_another_order_lead_to_the_same_table(whole, tmp_path):
    every = list(shards(a_grid(tmp_path)))
    stage = ("originals", "tuning", "cells")
    names = sorted(every, key=lambda n: (stage.index(n.split("/")[0]), [-ord(c) for c in n]))
    assert names != every
    states = compute(tmp_path, names)
    assert all(state.ended and not state.failed for state in states.values())
    assert not (tmp_path / "results").exists()  # no part lists results
    gather(a_grid(tmp_path))
    assert listed(tmp_path) == listed(whole)
    table = read_table(tmp_path, "classification")
    assert table[NUMBERS].equals(read_table(whole, "classification")[NUMBERS])
    both = merge([whole, tmp_path], tmp_path / "both")  # refused unless they are the same to the last bit
    assert both.new == both.known == len(read_results(whole / "cells"))


def test_what_is_finished_is_planned_as_finished_until_it_changes(whole, tmp_path):
    shutil.copytree(whole / "cells", tmp_path / "cells")
    states = compute(tmp_path)
    planned = plan(a_grid(tmp_path), tmp_path / "shards", gpus=0)
    assert all(shard["finished"] for shard in planned.values())
    assert all(shard["measured"] and shard["runtime"] >= 10 for shard in planned.values())
    lost = states["cells/random-10-seed-1"].cells[0]
    (tmp_path / "cells" / f"{lost}.json").unlink()
    planned = plan(a_grid(tmp_path), tmp_path / "shards", gpus=0)
    assert [name for name, s in planned.items() if not s["finished"]] == ["cells/random-10-seed-1"]
    shutil.copy(whole / "cells" / f"{lost}.json", tmp_path / "cells")
    outputs = tmp_path / "cells" / read_result(tmp_path / "cells" / f"{lost}.json").outputs
    for file in (
        outputs,
        tmp_path / "cells" / f"{lost}.json",
        tmp_path / "shards/cells/random-10-seed-1.json",
    ):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        planned = plan(a_grid(tmp_path), tmp_path / "shards", gpus=0)
        assert [name for name, s in planned.items() if not s["finished"]] == ["cells/random-10-seed-1"]
        file.write_bytes(content)
        (tmp_path / "shards/cells/random-10-seed-1.done").touch()
    planned = plan(a_grid(tmp_path, methods=["ft"]), tmp_path / "shards", gpus=1)
    assert not planned["cells/random-10-seed-0"]["finished"]
    assert planned["cells/random-10-seed-0"]["gpu"] == 1


def all_but(whole, folder, method, seeds):
    """A folder with what was computed, without some cells."""
    shutil.copytree(whole / "cells", folder / "cells")
    gone = [r for r in read_results(folder / "cells") if r.key.what.get("method") == method]
    for result in gone:
        if result.key.what["seed"] in seeds:
            (folder / "cells" / f"{result.key.name}.json").unlink()


def failing(monkeypatch, method, seeds):
    from salun_core.experiments.classification.lab import ClassifierLab

    computed = ClassifierLab.computed

    def refused(lab, cell, key):
        if cell.method == method and cell.seed in seeds:
            raise RuntimeError("out of memory\nand more about it")
        return computed(lab, cell, key)

    monkeypatch.setattr(ClassifierLab, "computed", refused)


def test_a_cell_that_fails_stops_no_other_and_alone_is_repeated(whole, tmp_path, monkeypatch):
    all_but(whole, tmp_path, "ft", [0])
    with monkeypatch.context() as broken:
        failing(broken, "ft", [0])
        states = compute(tmp_path)
    failed = [failure for state in states.values() for failure in state.failed]
    assert failed == [{"what": "random 10%, seed 0, ft", "why": "RuntimeError: out of memory"}]
    assert len(states["cells/random-10-seed-0"].cells) == 2
    with pytest.raises(UserError, match=r"seed 0, ft has not been computed"):
        gather(a_grid(tmp_path))
    planned = plan(a_grid(tmp_path), tmp_path / "shards", gpus=0)
    again = [name for name, s in planned.items() if not s["finished"]]
    assert again == ["cells/random-10-seed-0"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    compute(tmp_path, again)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    gather(a_grid(tmp_path))
    assert listed(tmp_path) == listed(whole)


def test_a_method_that_cannot_be_tuned_stops_no_other(whole, tmp_path, monkeypatch):
    all_but(whole, tmp_path, "ga", [1000])
    failing(monkeypatch, "ga", [1000])
    states = compute(tmp_path)
    last = states["cells/random-10-seed-1"]
    assert [failure["what"] for failure in last.failed] == ["random 10%, seed 1, ga"]
    assert last.done == 2


@pytest.mark.parametrize("name", ["classification", "class_wise", "stability", "saliency", "diffusion"])
def test_every_cell_of_an_experiment_is_in_one_shard(name, tmp_path):
    experiment = EXPERIMENTS[name]
    chosen = experiment.params.load({"preset": "quick", "out_dir": str(tmp_path)})
    cells = experiment.grid(chosen, chosen.lab())
    found = shards(cells)
    reported = [c for study in cells.studies(cells.fixed).values() for c in study]
    parts = [c for s in found.values() if s.name.startswith("cells/") for c in s.cells]
    assert len(parts) == len(reported) > 0
    if name == "diffusion":  # hours each, on a network of full size
        assert all(len({c.method for c in s.cells}) == 1 for s in found.values() if s.cells)
    assert all(need in list(found)[:i] for i, s in enumerate(found.values()) for need in s.needs)
    assert {(c.seed, c.scenario) for c in reported} <= {p for s in found.values() for p in s.shared}


def test_shards_of_one_machine_never_share_an_accelerator(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(GPUS, "3,GPU-ab")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with own_gpu() as first:
        with own_gpu() as second:
            assert (first, second) == ("3", "GPU-ab")
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-ab"
        with own_gpu() as third:
            assert third == "GPU-ab"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with own_gpu() as given:
        assert given is None


def test_a_share_that_marks_no_weight_is_refused_before_anything_is_trained(tmp_path):
    given = {"methods": ["ft", "salun"], "keep": 1e-9}
    with pytest.raises(UserError, match="keep 1e-09 of .* weights marks none.* give at least"):
        run(params(tmp_path, **given))
    wanted = a_grid(tmp_path, **given)
    with pytest.raises(UserError, match="marks none"):
        plan(wanted, tmp_path / "shards", gpus=0)
    name, shard = next(iter(shards(wanted).items()))
    with pytest.raises(UserError, match="marks none"):
        run_shard(wanted, shard, tmp_path / "shards" / f"{name}.json")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    weights = wanted.lab.weights_here
    a_grid(tmp_path, **given | {"keep": 0.6 / weights}).check()
    a_grid(tmp_path, **given | {"methods": ["ft"]}).check()  # no mask is asked for
