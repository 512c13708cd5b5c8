"""What a run needs, before it is run."""

import copy
import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from PIL import Image
from pipeline_families import BUILDERS
from text_problems import FIVE, SEVEN, THREE, images, pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from salun_core.__main__ import main
from salun_core.data import load_dataset
from salun_core.data.on_disk import VARIABLE
from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.classification.method_comparison import run as run_classification
from salun_core.experiments.rehearsal import plan
from salun_core.experiments.rehearsal.networks import SD_UNET, text_unet_cost
from salun_core.experiments.runs.cells import NO_MASK, Cell, MaskSpec, Scenario
from salun_core.experiments.runs.params import preset_names
from salun_core.experiments.text_to_image.class_forgetting import TextToImageParams
from salun_core.experiments.text_to_image.class_forgetting import run as run_text
from salun_core.methods import METHODS
from salun_core.metrics.generation.erasure import relearning_curve
from salun_core.models.text_to_image.families import network_of
from salun_core.models.text_to_image.pipelines import save_pipeline
from salun_core.pages.tables.text_to_image import LESS_MEMORY
from salun_core.paths import project_root
from salun_core.saliency import random_mask
from salun_core.tasks.text_to_image import text_to_image_task

HALF = MaskSpec("salient", 0.5)
PLAIN = {
    "half": False,
    "optimizer": "adam",
    "batch_size": 8,
    "gradient_checkpointing": False,
    "precision": "fp32",
}
PROBED = PLAIN | {"attack_batch": 1, "prompt_batch": 1, "relearn_steps": 3, "relearn_images": 4}
LEAST = {
    "masks": ["lora"],
    "methods": ["original"],
    **{name: value for _, more in LESS_MEMORY for name, value in more.items()},
}


class Held(TorchDispatchMode):
    """Counts the bytes that are alive, and the most there were, of tensors made inside the block."""

    now = most = 0

    def __init__(self):
        super().__init__()
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, place, size):
        self.known.discard(place)
        self.now -= size


def cell(method="rl", mask=HALF):
    return Cell(0, Scenario("class", target=0), method, mask)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_checkpointing": True},
        {"precision": "bf16"},
        {"precision": "bf16", "gradient_checkpointing": True},
        {"optimizer": "adafactor"},
    ],
)
def test_memory_of_unlearning_is_what_a_run_holds(given):
    values = PLAIN | given
    task = text_to_image_task(
        copy.deepcopy(pipeline()),
        forget=(images(16), [SEVEN] * 16),
        retain=(images(16, 1), [THREE, FIVE] * 8),
        replacement=THREE,
        batch_size=8,
        precision=values["precision"],
        optimizer_name=values["optimizer"],
        gradient_checkpointing=values["gradient_checkpointing"],
    )
    mask = random_mask(dict(task.model.named_parameters()), keep=0.5, rng=torch.Generator().manual_seed(0))
    with Held() as held:
        METHODS["rl"](task, mask=mask, order="joint", steps=3)
    net = text_unet_cost(dict(pipeline().unet.config))
    found = held.most + 5 * net.weights  # the original and the mask were there before
    assert plan.training_memory(cell(), values, net, accelerator=False) == pytest.approx(found, rel=0.25)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_probing_is_what_relearning_holds(checkpointing):
    unet = copy.deepcopy(pipeline().unet)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    shape = (4, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    latents, prompts = torch.zeros(shape), torch.zeros(77, unet.config.cross_attention_dim)
    with Held() as held:
        relearning_curve(unet, pipeline().scheduler, latents, prompts, lambda _: 0.0, steps=3)
    net = text_unet_cost(dict(unet.config))
    values = PROBED | {"gradient_checkpointing": checkpointing}
    found = held.most + 2 * 4 * net.weights  # the original and the unlearned network were there before
    assert plan.probing_memory(values, net, 0, accelerator=False) == pytest.approx(found, rel=0.25)
    # On an accelerator the original and CLIP rest, and Adam's step takes as much again as the weights for a moment.
    large = replace(net, activations=0.0)
    assert plan.probing_memory(values, large, 7, accelerator=True) == 24 * net.weights
    assert plan.probing_memory(values, large, 7, accelerator=False) == 24 * net.weights + 7
    assert (
        plan.probing_memory(values | {"relearn_steps": 0}, large, 7, accelerator=True) == 8 * net.weights + 7
    )


@pytest.mark.parametrize(
    ("experiment", "memory", "given"),
    [
        ("text_to_image", 24e9, {}),
        ("unsafe", 24e9, {}),
        # All lines of the table of settings that take less, and what the page says beside it.
        ("text_to_image", 8e9, LEAST),
    ],
)
def test_the_documented_recipes_fit(experiment, memory, given, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "find_device", lambda _: torch.device("cuda"))
    files = {"data_dir": "."} if experiment == "text_to_image" else {"prompts_file": tmp_path / "i2p.csv"}
    params = EXPERIMENTS[experiment].params.load({"preset": "paper", **files, **given})
    need = plan.needs(params, plan.assumed(params.shown()))
    plan.check(need, plan.Machine(64e9, memory, 1e12, tmp_path))
    if experiment == "unsafe":  # with less for unlearning, relearning takes most
        more = params.model_copy(
            update={
                "forgetting": params.forgetting.model_copy(update={"batch_size": 2, "optimizer": "adafactor"})
            }
        )
        assert plan.needs(more).device == pytest.approx(24 * 859_520_964 + 4 * (83.7e6 + 123.1e6), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "counted"),
    [
        # Steps of Adam on a network of this size without numbers (FakeTensorMode), all that is alive counted.
        ({"batch_size": 1}, 20.4e9),
        ({"batch_size": 1, "precision": "bf16"}, 20.9e9),
        ({"batch_size": 1, "gradient_checkpointing": True}, 18.58e9),
        ({"batch_size": 2, "precision": "bf16", "gradient_checkpointing": True}, 18.81e9),
        ({"batch_size": 8, "precision": "bf16", "gradient_checkpointing": True}, 20.53e9),
    ],
)
def test_memory_of_stable_diffusion(given, counted):
    found = plan.training_memory(cell(), PLAIN | given, text_unet_cost(SD_UNET), accelerator=False)
    assert found == pytest.approx(counted, rel=0.1)


def test_what_is_not_trained_needs_less():
    net = text_unet_cost(dict(pipeline().unet.config))
    weights = {
        name: plan.training_memory(cell(*given), PLAIN | {"batch_size": 0}, net, accelerator=False)
        / net.weights
        for name, given in {
            "salun": ("salun", HALF),
            "rl": ("rl", NO_MASK),
            "uce": ("uce", NO_MASK),
            "lora": ("rl", MaskSpec("lora")),
        }.items()
    }
    assert weights["salun"] == 4 * 5 + 1 and weights["rl"] == 20 and weights["uce"] == 8
    assert weights["uce"] < weights["lora"] < 9
    # For a moment Adam's step on an accelerator holds as much again as the weights.
    step = plan.training_memory(cell(), PLAIN | {"batch_size": 0}, net, accelerator=True)
    assert step / net.weights == 25


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_preset_is_planned_without_its_data_and_weights(experiment, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "machine", lambda *_: plan.Machine(1e15, None, 1e15, tmp_path))
    for preset in preset_names(experiment):
        assert main(["plan", experiment, "-p", "preset", preset, "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        for word in ("cells", "memory", "disk", "hours at 30 TFLOP/s"):
            assert word in said
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.parametrize(
    ("experiment", "given", "named"),
    [
        ("diffusion", {}, ["inception"]),
        ("text_to_image", {}, ["inception", "resnet50", "clip"]),
        ("text_to_image", {"clip": "none", "features": "judge"}, ["resnet50"]),
        ("text_to_image", {"download": True}, ["inception", "resnet50"]),
        ("unsafe", {}, ["clip", "i2p"]),
    ],
)
def test_files_to_fetch_are_named_together_before_anything_is_read(
    experiment, given, named, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(plan, "machine", lambda *_: plan.Machine(1e15, None, 1e15, tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = [text for name, value in given.items() for text in ("-p", name, str(value))]
    assert main(["plan", experiment, "-p", "preset", "paper", *asked]) == 0
    assert f"'python -m salun_core fetch {' '.join(named)}'\n" in capsys.readouterr().out
    params = EXPERIMENTS[experiment].params.load({"preset": "paper", "data_dir": tmp_path} | given)
    assert list(params.downloads) == named
    if len(named) > 1:
        command = f"run 'python -m salun_core fetch {' '.join(named)}' with a network"
        with pytest.raises(UserError, match=command):
            params.lab()


def test_what_is_said_of_the_papers_preset():
    params = TextToImageParams.load({"preset": "paper", "data_dir": "."})
    need = plan.needs(params, "imagenette")
    assert need.cells == 10 * (6 + 5)
    # Half of the weights under three masks in each class, 860 million of 4 bytes, and a bit for every weight.
    net = 859_520_964
    masked = 10 * (4 * (0.5 * 4 + 1 / 8)) * net
    dense = 10 * 4 * (4 + 1 / 8) * net  # ESD, FMN, no mask, adapters
    small = 10 * 2 * (0.03 * 4 + 1 / 8) * net  # keys and values alone
    assert need.disk["changed weights"] == pytest.approx(masked + dense + small)
    assert need.disk["samples"] == 10 * 500 * 3 * 512**2
    without = TextToImageParams.load({"preset": "paper", "data_dir": ".", "keep_models": False})
    assert plan.needs(without, "imagenette").disk["changed weights"] < 4e9
    drawn = 110 * 10 * 500 * 100 * 2 * text_unet_cost(SD_UNET).flops
    assert drawn < need.flops < 1.5 * drawn


def test_cells_and_disk_are_those_of_the_run(tmp_path):
    given = {
        "dataset": "digits",
        "arch": "resnet6",
        "methods": ["retrain", "salun", "ft"],
        "scenario": ["random", "class"],
        "forget_class": 3,
        "train_images": 200,
        "seeds": [0],
        "unlearning_seeds": [0, 1],
        "noise_floor": 1,
        "tune": False,
        "epochs": 1,
        "settings": {"salun": {"epochs": 1}, "ft": {"epochs": 1}},
        "out_dir": tmp_path,
    }
    params = ClassificationParams.load(given)
    need = plan.needs(params)
    results = run_classification(params)
    assert need.cells == len(results.cells) == 2 * 6
    files = sum(file.stat().st_size for file in (tmp_path / "cells").glob("*.safetensors"))
    assert sum(need.disk.values()) == pytest.approx(files, rel=0.2)
    for name, shape in plan.SHIPPED.items():
        data = load_dataset(name)
        assert (shape.classes, shape.channels, shape.size) == (len(data.classes), *data.images.shape[1:3])
        assert (shape.train, shape.test) == (data.n_train, len(data.labels) - data.n_train)


def test_images_that_are_not_kept_leave_the_first_of_each_class(tmp_path):
    from salun_core.pages.stored_samples import samples_by_name

    small = {"methods": ["uce"], "masks": [], "samples": 3, "sample_steps": 1, "judge_epochs": 1}
    small |= {"judge_width": 8, "test_prompts": ["a photo of a {}"], "clip": "none", "reference": 40}
    params = TextToImageParams.load({**small, "keep_samples": False, "out_dir": tmp_path})
    found = run_text(params)
    assert not list(tmp_path.rglob("*.samples.safetensors")) and list(tmp_path.rglob("*.grid.png"))
    drawn, labels = samples_by_name(found.lab, found.cells)["UCE"]
    assert drawn.shape == (30, 3, 16, 16) and labels.bincount().tolist() == [3] * 10
    with pytest.raises(UserError, match="keep_samples: false keep no samples"):
        found.lab.samples(replace_result(found))
    assert (run_text(params).cells["UA"] == found.cells["UA"]).all()
    need = plan.needs(params)
    assert need.disk["samples"] == 30 * 3 * 16**2


def replace_result(found):
    from salun_core.experiments.generation.lab import result_of

    return result_of(found.lab, found.cells.iloc[0])


@pytest.mark.parametrize(
    ("have", "said"),
    [
        ((1e12, None, 1e9), "223 GB into .*, which has room for 1.0 GB: set keep_models: false"),
        ((1e12, 16e9, 1e12), "about 21.. GB on the accelerator, which has 16.0 GB: set a smaller batch_size"),
        (
            (24e9, None, 1e12),
            "GB of memory, and this machine has 24.0 GB: set .*optimizer adafactor, half, a smaller sample_batch or relearn_steps 0",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_what_needs_less(have, said, tmp_path, monkeypatch):
    if have[1] is not None:
        monkeypatch.setattr(plan, "find_device", lambda _: torch.device("cuda"))
    params = TextToImageParams.load({"preset": "paper", "data_dir": "."})
    need = plan.needs(params, "imagenette")
    plan.check(need, plan.Machine(64e9, have[1] and 24e9, 1e12, tmp_path))
    with pytest.raises(UserError, match=said):
        plan.check(need, plan.Machine(*have, tmp_path))


def test_a_run_that_cannot_fit_ends_before_it_reads_anything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10**3))
    out = tmp_path / "out"
    assert main(["run", "classification", "-p", "preset", "quick", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "GB into" in said and "kept_outputs" in said and not out.exists()


def test_shards_are_checked_as_a_run_is(tmp_path, capsys, monkeypatch):
    given = [
        "-p",
        "seeds",
        "[0, 1, 2]",
        "-p",
        "methods",
        "[ft]",
        "-p",
        "tune",
        "false",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(plan, "MANY", 2)
    for how in (["--shards"], ["--write", "all"]):
        assert main(["plan", "classification", *given, *how]) == 2
        assert "more than 2: add --yes" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10**3))
        assert main(["plan", "classification", *given, "--write", "all", "--yes"]) == 0  # for other machines
        file = tmp_path / "shards/all/plan.json"
        name = next(iter(json.loads(file.read_text())["shards"]))
        capsys.readouterr()
        assert main(["shard", str(file), name]) == 2
        assert "GB into" in capsys.readouterr().err
        assert not list((tmp_path / "cells").glob("*-*"))
    monkeypatch.setattr(plan, "machine", lambda *_: plan.Machine(1e3, None, 1e12, tmp_path))
    assert main(["shard", str(file), name]) == 2
    assert "GB of memory" in capsys.readouterr().err


def test_a_grid_far_too_large_is_refused_before_its_cells_are_listed(monkeypatch):
    given = {
        "seeds": [*range(3000)],
        "unlearning_seeds": [*range(3000)],
        "methods": ["ft", "ga"],
        "noise_floor": 0,
    }
    monkeypatch.setattr(plan, "cells_of", lambda *_: pytest.fail("cells are listed"))
    with pytest.raises(UserError, match="at least 18,000,004 cells, more than 5,000: add --yes"):
        plan.check_run(ClassificationParams.load({**given, "tuning_seed": [5000, 5001]}))


def test_very_many_cells_are_run_where_a_parameter_says_that_they_are_meant(monkeypatch):
    monkeypatch.setattr(plan, "MANY", 2)
    with pytest.raises(UserError, match="set many_cells true"):
        plan.check_run(ClassificationParams.load({}))
    plan.check_run(ClassificationParams.load({"many_cells": True}))


@pytest.mark.parametrize(
    ("experiment", "preset"), [(name, preset) for name in EXPERIMENTS for preset in preset_names(name)]
)
def test_a_grid_has_as_many_cells_as_its_lists_say_at_least(experiment, preset):
    given = {"preset": preset, "data_dir": "."}
    if EXPERIMENTS[experiment].params.read_preset(preset).get("dataset") != "imagefolder":
        del given["data_dir"]
    params = EXPERIMENTS[experiment].params.load(given)
    stand_in = plan.assumed({**EXPERIMENTS[experiment].params.read_preset(preset)})
    assert 0 < plan.cells_at_least(params) <= plan.needs(params, stand_in).cells


@pytest.mark.parametrize("experiment", ["diffusion", "unsafe"])
def test_classes_forgotten_together_are_one_model_that_draws_and_is_probed_for_each(experiment):
    def planned(**given):
        params = EXPERIMENTS[experiment].params.load({"preset": "quick", **given})
        return plan.needs(params), plan.cells_at_least(params)

    (one, least), (both, together) = planned(forget_class=[3]), planned(forget_class=[3, 4], together=True)
    (apart, twice) = planned(forget_class=[3, 4])
    assert one.cells == both.cells < apart.cells and least == together < twice
    assert one.flops <= both.flops < apart.flops
    assert both.disk.get("probes", 0) == 2 * one.disk.get("probes", 0)


def test_folders_of_pictures_are_counted(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30)).save(tmp_path / part / name / f"{i}.png")
    shape, names = plan.folder_shape(tmp_path)
    assert (shape.classes, shape.channels, shape.size, shape.train, shape.test) == (2, 3, 30, 6, 4)
    assert names == ("a", "b")


def test_images_that_lie_on_disk_take_disk_and_no_memory(tmp_path, monkeypatch):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(tmp_path / part / name / "0.png")
    params = ClassificationParams.load(
        {"dataset": "imagefolder", "data_dir": tmp_path, "arch": "resnet6", "width": 4, "batch_size": 2}
    )
    inside = plan.needs(params)
    assert inside.host == 4 * 3 * 64**2 and not inside.disk["decoded images"]
    monkeypatch.setenv(VARIABLE, "0.01")
    outside = plan.needs(params)
    assert outside.host == 10_000 and outside.disk["decoded images"] == inside.host
    assert inside.device - outside.device == inside.host


def test_a_pipeline_is_measured_by_its_configuration(tmp_path):
    folder = save_pipeline(pipeline(), pipeline().unet, tmp_path / "pipe")
    params = TextToImageParams.load({"pipeline": str(folder)})
    assert plan.part_config(params, "unet")["block_out_channels"] == [8, 16]
    assert plan.needs(params).cells > 0
    with pytest.raises(UserError, match="the size of pipeline nobody/nothing is not known"):
        plan.needs(TextToImageParams.load({"pipeline": "nobody/nothing"}))


def test_a_classifier_that_others_trained_is_measured_by_its_configuration_and_not_trained(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **small)
    config.save_pretrained(tmp_path)  # no weights
    given = {"dataset": "digits", "tune": False, "methods": ["original", "ft"], "seeds": [0]}
    brought = ClassificationParams.load(given | {"pretrained": str(tmp_path)})
    net = plan.classifier_cost(
        "none", None, classes=10, channels=1, size=8, brought=lambda: ViTForImageClassification(config)
    )
    assert net.weights == sum(w.numel() for w in ViTForImageClassification(config).parameters())
    need, images = plan.needs(brought), plan.SHIPPED["digits"]
    retained, epochs = 0.9 * images.train, brought.tuning.settings["ft"]["epochs"]
    seen = 2 * (images.train + images.test) + 3 * epochs * retained  # both are measured, and one is trained
    assert need.cells == 2 and need.flops == pytest.approx(net.flops * seen)
    assert not need.disk["trained models"]


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_pipelines_of_other_families_are_planned(family, tmp_path):
    pipe = BUILDERS[family]()
    folder = save_pipeline(pipe, network_of(pipe), tmp_path / family)
    config = plan.part_config(TextToImageParams.load({"pipeline": str(folder)}), "unet", "transformer")
    net = text_unet_cost(config)
    assert net.weights == sum(weight.numel() for weight in network_of(pipe).parameters())
    assert net.flops > 2 * net.weights and net.activations > 0
    params = TextToImageParams.load({"pipeline": str(folder), "out_dir": tmp_path})
    assert plan.needs(params).flops > 0


def test_the_speed_must_be_one(capsys):
    assert main(["plan", "classification", "--tflops", "0"]) == 2
    assert "tflops must be positive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("unet", {"sample_size": None}),
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"down_block_types": 3}),
        ("vae", {"block_out_channels": "x"}),
        ("vae", []),
        ("unet", None),
    ],
)
def test_a_pipeline_with_a_damaged_configuration_is_not_planned(part, damage, tmp_path):
    folder = shutil.copytree(project_root() / "data" / "models" / "tiny-sd", tmp_path / "sd")
    file = folder / part / "config.json"
    held = json.loads(file.read_text())
    text = "[" * 5000 if damage is None else json.dumps(held | damage if isinstance(damage, dict) else damage)
    file.write_text(text)
    with pytest.raises(UserError, match=str(folder)) as caught:
        plan.needs(TextToImageParams.load({"pipeline": str(folder)}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./typo", "typo", "a/b/c", "~/typo", "/typo", "a--b/c"])
def test_a_pipeline_that_does_not_exist_is_one_sentence(name, tmp_path):
    params = TextToImageParams.load({"pipeline": name})
    for look in (plan.needs, lambda given: given.load_pipe()):
        with pytest.raises(UserError, match="there is no folder .*: give a diffusers folder"):
            look(params)


def test_a_folder_whose_first_picture_is_damaged_is_not_planned(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "1.png").write_bytes(b"no picture")
    params = ClassificationParams.load({"dataset": "imagefolder", "data_dir": str(tmp_path)})
    with pytest.raises(UserError, match="cat/1.png cannot be read as an image: replace or remove it"):
        plan.needs(params)
