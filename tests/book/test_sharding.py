"""What Snakemake makes of a plan, and how all shards are shown as one line."""

import importlib.util
import json
import subprocess
import sys
import time

import pytest
import yaml
from execution import ROOT, experiment_of, gathered, notebooks
from sharding import Progress, main, resources

PLAN = {
    "experiment": "classification",
    "given": {},
    "threads": 1,
    "gpus": [],
    "shards": {
        "originals/seed-0": {"needs": []},
        "tuning/random-10-ga-none": {"needs": ["originals/seed-0"]},
        "cells/random-10-seed-0": {"needs": ["originals/seed-0", "tuning/random-10-ga-none"]},
        "cells/random-50-seed-0": {"needs": ["originals/seed-0", "tuning/random-10-ga-none"]},
    },
}
for _shard in PLAN["shards"].values():
    _shard |= {"cells": 3, "finished": False, "gpu": 1, "mem_mb": 3000, "runtime": 20}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    for stage in ("originals", "tuning", "cells"):
        (tmp_path / stage).mkdir()
    return tmp_path


@pytest.mark.parametrize("profile", ["", "slurm"])
def test_snakemake_runs_every_shard_after_what_it_needs(folder, profile):
    (folder / "originals/seed-0.done").touch()
    options, _ = resources(PLAN, "2", f"profiles/{profile}" if profile else "")
    words = [sys.executable, "-m", "snakemake", "-n", "--nolock", f"{folder}/gathered.done", *options]
    words += ["--config", f"plans={json.dumps([f'{folder}/plan.json'])}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    order = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("rule ")]
    assert order[0] == "tuning" and order[-1] == "gather"
    assert sorted(order) == ["gather", "shard", "shard", "tuning"]
    assert "gpu=1" in said and "mem_mb=3000" in said and "runtime=20" in said


def without_gpus(folder):
    plan = PLAN | {"shards": {name: shard | {"gpu": 0} for name, shard in PLAN["shards"].items()}}
    (folder / "plan.json").write_text(json.dumps(plan))


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_storage_plugin_fs") is None, reason="the extra cluster is not there"
)
def test_marks_lie_on_the_volume_of_a_cluster_that_shares_nothing_else(folder):
    without_gpus(folder)
    (folder / "originals/seed-0.done").touch()
    settings = yaml.safe_load((ROOT / "profiles/kubernetes/config.yaml").read_text("utf8"))
    assert settings["kubernetes-persistent-volumes"].endswith(f":{settings['default-storage-prefix']}")
    run, volume = folder.name, str(folder.parent)
    words = [sys.executable, "-m", "snakemake", "-n", "--nolock", f"{run}/gathered.done"]
    words += ["--profile", "profiles/kubernetes", "--default-storage-prefix", volume]
    words += ["--config", f"plans={json.dumps([f'{run}/plan.json'])}", f"shared={volume}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert f"{folder}/cells/random-10-seed-0.done (send to storage)" in said
    assert f"log: {folder}/cells/random-10-seed-0.log\n" in said
    assert "rule originals" not in said and "gpu=" not in said and "mem_mb=3000" in said


@pytest.mark.parametrize("out", [[], ["--out", "data/runs"], ["--out", "/salun-not/runs"]])
def test_a_run_in_pods_needs_a_folder_on_their_volume(out, capsys):
    assert main(["classification", "--profile-dir", "profiles/kubernetes", *out]) == 2
    assert "OUT=/salun/runs" in capsys.readouterr().err
    assert main(["--book", "smoke", "--profile-dir", "profiles/kubernetes"]) == 2


def test_one_line_says_how_far_all_shards_are(folder, capsys):
    progress = Progress(folder, PLAN)
    assert progress.counts() == (0, 12, [])
    failure = {"what": "random 10%, seed 0, ga", "why": "RuntimeError: out of memory"}
    states = {
        "originals/seed-0": {"done": 3, "total": 3, "failed": [], "ended": True},
        "tuning/random-10-ga-none": {"done": 4, "total": 7, "failed": [failure], "ended": True},
        "cells/random-10-seed-0": {"done": 1, "total": 3, "failed": [], "ended": False},
    }
    for name, state in states.items():
        (folder / f"{name}.json").write_text(json.dumps(state))
    (folder / "cells/random-10-seed-0.log").write_text("something\nKilled\n\n")
    assert progress.counts() == (8, 16, [failure])
    progress.report("make run EXPERIMENT=classification")
    said = capsys.readouterr().err
    assert "random 10%, seed 0, ga: RuntimeError: out of memory" in said
    assert "cells/random-10-seed-0 ended before it was done: Killed" in said
    assert said.endswith("make run EXPERIMENT=classification\n")
    progress.begun = time.time() + 60  # states of an earlier run do not count, unless they stand
    assert progress.counts() == (0, 12, [])


def test_each_accelerator_of_this_machine_takes_one_shard(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    options, given = resources(PLAN | {"gpus": [0, 1]}, "8", "")
    assert "gpu=2" in options and given == {"SALUN_GPUS": "2,5"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    options, given = resources(PLAN | {"gpus": [0, 1, 2]}, "8", "")
    assert "gpu=3" in options and given == {"SALUN_GPUS": "0,1,2"}
    assert resources(PLAN, "8", "profiles/slurm") == (["--profile", "profiles/slurm"], {})


def test_a_notebook_waits_for_the_shards_of_its_experiment():
    found = {name: experiment_of(ROOT / "notebooks" / f"{name}.ipynb") for name in notebooks()}
    assert found["classification"] == "classification" and found["sd_nsfw"] == "unsafe"
    assert found["ddpm"] == found["generality"] == "diffusion" and found["toy"] is None
    plans = {"data/runs/shards/notebook-ddpm": PLAN, "data/runs/shards/diffusion-quick": PLAN}
    assert gathered("ddpm", plans) == ["data/runs/shards/notebook-ddpm/gathered.done"]
    assert gathered("toy", plans) == []
