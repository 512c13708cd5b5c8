"""Presets for a GPU, run here in small."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from salun_core.__main__ import main
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.rehearsal import chosen, rehearsed, unrecorded
from salun_core.experiments.rehearsal.networks import (
    SD_UNET,
    Flops,
    classifier_cost,
    cost,
    text_unet_cost,
    unet_cost,
)
from salun_core.experiments.rehearsal.smaller import smaller
from salun_core.experiments.runs.params import preset_names
from salun_core.models import build_model
from salun_core.paths import project_root


def act(label):
    return next(act for act in unrecorded() if act.label == label)


def test_every_preset_is_run_by_the_book_recorded_or_rehearsed():
    named = {(act.experiment, act.preset) for act in unrecorded()}
    presets = {(experiment, preset) for experiment in EXPERIMENTS for preset in preset_names(experiment)}
    results = project_root() / "data" / "recorded"
    recorded = {(e, p) for e, p in presets if (results / p / "results" / f"{e}.json").is_file()}
    assert recorded and not recorded & named
    assert {preset for _, preset in presets - named - recorded} == {"quick"}
    assert {"dataset cifar100", "dataset svhn", "dataset tiny_imagenet", "arch vgg16", "arch swin_t"} == {
        act.label.split(", ")[1] for act in unrecorded() if act.given
    }


def test_costs_are_those_worked_out_by_hand():
    def convolution():
        return nn.Conv2d(3, 5, 3, padding=1, bias=False)

    found = cost(convolution, lambda net: net(torch.zeros(2, 3, 8, 8)), images=2)
    assert found.weights == 3 * 5 * 9
    assert found.flops == 2 * 64 * 3 * 5 * 9  # 64 places, 5 sums of 27 products
    assert found.activations == 4 * 3 * 64  # what entered
    with Flops() as meter:
        x = torch.zeros(1, 3, 8, 8, requires_grad=True)
        torch.autograd.grad(convolution()(x).sum(), x)
    assert meter.total == 2 * found.flops  # forward, and backward to the image alone


def test_costs_of_published_networks():
    resnet = classifier_cost("resnet18", 64, classes=10, channels=3, size=32)
    assert resnet.weights == 11_173_962
    assert resnet.flops == pytest.approx(2 * 0.5554e9, rel=0.01)  # multiplications and additions for CIFAR-10
    assert unet_cost((128, 256, 256, 256), 2, (16,), channels=3, size=32).weights == pytest.approx(
        35.7e6, rel=0.01
    )


@pytest.mark.slow
def test_the_network_of_stable_diffusion_has_its_published_size():
    assert text_unet_cost(SD_UNET).weights == 859_520_964


def test_what_is_made_small_stays_a_valid_preset_of_the_same_settings():
    full = EXPERIMENTS["stability"].params.load({"preset": "paper"})
    small = EXPERIMENTS["stability"].params.load({"preset": "paper", **smaller(full)})
    assert small.fractions == (full.fractions[0], full.fractions[-1])
    assert small.methods == full.methods and small.forgetting.keep == full.forgetting.keep
    assert small.training.arch == full.training.arch and small.training.complete_recipe.epochs == 1
    assert small.tuning.settings["salun"]["epochs"] == 1


def test_a_classification_preset_is_run_and_its_needs_grow_with_the_preset(tmp_path):
    outcome = rehearsed(act("classification fast-50"), tmp_path)
    assert outcome.cells > 20
    full = EXPERIMENTS["classification"].params.load({"preset": "fast-50"})
    methods = len(full.methods) - 2
    seeds, tuning = len(full.repetition.seeds), len(full.tuning.tuning_seed)
    wanted = tuning * (methods * full.tuning.tuning_budget + 2)
    wanted += seeds * (methods + 2 + full.repetition.noise_floor)
    assert outcome.full.cells == wanted
    # Retraining alone: two tuning seeds, and three on three seeds, on half of 45,000 images for 30 epochs.
    forward = classifier_cost("resnet18", 64, classes=10, channels=3, size=32).flops
    least = 3 * forward * 22_500 * 30 * (tuning + seeds * 3)
    assert least < outcome.full.flops < 20 * least
    assert outcome.full.device > 4.25 * 4 * 11_173_962


@pytest.mark.slow
@pytest.mark.parametrize("label", [a.label for a in unrecorded()])
def test_every_preset_runs_in_small(label, tmp_path):
    assert rehearsed(act(label), tmp_path).cells > 1


def test_names_choose_and_unknown_ones_are_refused(capsys):
    assert {a.experiment for a in chosen(["saliency"])} == {"saliency"}
    assert [a.label for a in chosen(["diffusion", "paper"])] == ["diffusion paper"]
    assert main(["rehearse", "salience"]) == 2
    assert "did you mean 'saliency'?" in capsys.readouterr().err
    assert main(["rehearse", "--tflops", "0"]) == 2
    assert "tflops must be positive" in capsys.readouterr().err
    assert main(["rehearse", "--workers", "0"]) == 2
    assert "workers must be at least 1" in capsys.readouterr().err


def test_stand_ins_have_the_moments_of_any_network_they_meet():
    # A stand-in for tests and rehearsals must not be mistaken for data: every pixel is noise.
    from salun_core.experiments.rehearsal.stand_ins import SHAPES, images_like

    for name in ("cifar100", "svhn", "tiny_imagenet"):
        data = images_like(name)
        assert (len(data.classes), data.images.shape[-1]) == (SHAPES[name].classes, SHAPES[name].size)
        mean, std = data.moments
        build_model("resnet18", classes=3, channels=3, size=8, seed=0, width=4, mean=mean, std=std)
        assert mean == pytest.approx([0.5] * 3, abs=0.01) and std == pytest.approx([0.29] * 3, abs=0.01)


OF_A_POOL = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import getpid
from salun_core.experiments.rehearsal import _begin_worker

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), _begin_worker) as pool:
        print(pool.submit(getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path):
    (tmp_path / "pool.py").write_text(OF_A_POOL)
    with subprocess.Popen(
        [sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker goes on")


def test_bfloat16_is_rehearsed_where_the_processor_has_it(monkeypatch):
    full = EXPERIMENTS["classification"].params.load({"preset": "fast"})
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert smaller(full)["precision"] == precision
