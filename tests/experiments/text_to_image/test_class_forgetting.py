import copy

import pytest
import torch
from problems import same

from salun_core.data import load_dataset
from salun_core.data.captions import KINDS
from salun_core.errors import UserError
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.text_to_image.class_forgetting import TextToImageParams, run
from salun_core.methods.lora import Lora
from salun_core.metrics.generation.recognition import recognise

SMALL = {
    "methods": ["uce", "ga"],
    "masks": ["salient", "lora"],
    "forget_steps": 2,
    "settings": {"ga": {"steps": 2}},
    "test_prompts": ["a photo of a {}", "a sketch of the digit {}"],
    "class_prompt": "a photo of a {}",
    "samples": 10,
    "sample_steps": 2,
    "judge_width": 8,
    "judge_epochs": 1,
    "mask_draws": 1,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    params = TextToImageParams.load({**SMALL, "out_dir": out})
    return run(params), params


def test_the_original_comes_first_and_every_cell_is_measured(results):
    found, _ = results
    assert found.cells["method"].tolist() == ["original", "uce", "ga"]
    assert found.masks["mask"].tolist() == ["salient", "lora"]
    for frame in (found.cells, found.masks):
        assert (frame["status"] == "done").all()
        assert frame["UA"].between(0, 1).all() and (frame["FD"] >= 0).all()
        assert (frame["peak_memory"].dropna() > 0).all()
        assert (frame["UA"] == frame["UA direct"]).all()
        assert frame["CLIP accuracy"].between(0, 1).all() and frame["CLIP"].between(0, 100).all()
    assert found.cells["forgotten"].unique().tolist() == ["7"]


def test_a_finished_run_is_read_from_the_store(results):
    found, params = results
    again = run(params)
    assert again.cells.drop(columns="seconds").equals(found.cells.drop(columns="seconds"))
    assert again.lab._task is None  # nothing was computed


def test_a_stored_model_is_the_unlearned_one(results):
    found, params = results
    lab = found.lab
    cell = Cell(0, Scenario("class", target=7), "uce", settings=params.settings_of("uce"))
    stored = lab.run(cell)
    from salun_core.methods import METHODS

    fresh = METHODS["uce"](lab.task(0, cell.scenario), seed=0).model
    assert same(lab.model(stored), fresh)
    assert not same(lab.pipe.unet, fresh)
    images, labels = lab.samples(stored)
    assert images.shape == (100, 3, 16, 16) and labels.tolist() == sorted(labels.tolist())
    assert torch.equal(lab.drawn(fresh)[0], images)
    assert lab.recognition(stored).counts.sum() == 100


def test_adapters_are_a_kind_of_mask_here(results):
    lab = results[0].lab
    adapters, seconds = lab.mask(0, Scenario("class", target=7), MaskSpec("lora"))
    assert adapters == Lora(4) and seconds == 0


def test_digits_are_asked_for_in_every_kind_of_caption():
    asking = TextToImageParams.load({}).asking(load_dataset("digits"))
    assert tuple(asking.test) == KINDS
    assert asking.training[7] == "a photo of a seven"
    assert all("seven" in text for text in asking.test["direct"][7])
    assert not any("seven" in text for text in asking.test["indirect"][7])


def test_other_data_are_asked_for_by_templates():
    params = TextToImageParams.load({"class_names": [f"thing {i}" for i in range(10)]})
    asking = params.asking(load_dataset("digits"))
    assert asking.training[3] == "an image of a thing 3"
    assert asking.test == {"direct": tuple((f"Image of thing {i}",) for i in range(10))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["retrain"]}, "unknown method 'retrain'"),
        ({"methods": ["iu"]}, "unknown method 'iu'"),
        ({"masks": ["loar"]}, "did you mean 'lora'"),
        ({"class_prompt": "an image"}, "must hold {} once"),
        ({"precision": "fp8"}, "precision"),
        ({"settings": {"esd": {"partt": "xattn"}}}, "did you mean 'part'"),
        ({"class_names": ["one"]}, "1 names for 10 classes"),
        ({"replacement": 11}, "11"),
        ({"pipeline": "./nowhere/at/all"}, "there is no folder"),
    ],
)
def test_impossible_parameters_are_refused(given, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TextToImageParams.load({**given, "out_dir": tmp_path}).lab()


def test_the_papers_judge_sees_the_other_classes_of_imagenet_as_one(results, tmp_path):
    from torchvision.models import resnet50

    from salun_core.data.prompts import IMAGENETTE
    from salun_core.experiments.generation.lab import Judge
    from salun_core.tasks.classification_training import RECIPES

    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    lab = copy.copy(results[0].lab)
    for name in ("classifier", "features", "judge_accuracy", "_judge_key"):
        vars(lab).pop(name, None)
    lab.judge, lab.judge_weights = Judge("imagenet", None, RECIPES["digits"]), tmp_path / "resnet50.pth"
    lab.imagenet = tuple(IMAGENETTE.values())
    assert lab.judged == len(IMAGENETTE) + 1
    images, labels = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4)
    counts = recognise(lab.classifier, images, labels, classes=lab.judged).counts
    assert counts.shape == (11, 11) and counts.sum() == 4
    assert lab._judge_key.what["arch"] == "imagenet"
    cell = Cell(0, Scenario("class", target=7), "uce")
    assert lab.key(cell).name != results[0].lab.key(cell).name


def test_the_papers_judge_refuses_classes_that_are_not_of_imagenet(tmp_path):
    from torchvision.models import resnet50

    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    given = {"judge": "imagenet", "judge_weights": tmp_path / "resnet50.pth", "out_dir": tmp_path}
    with pytest.raises(UserError, match="judge imagenet does not know class '0'"):
        TextToImageParams.load(given).lab()
    swapped = {**given, "class_names": ["church"] * 9 + ["tench"]}
    with pytest.raises(UserError, match="both 'church'"):
        TextToImageParams.load(swapped).lab()


def test_missing_weights_of_the_judge_are_named_with_the_command(tmp_path):
    given = {**SMALL, "judge": "imagenet", "judge_weights": tmp_path / "none.pth", "out_dir": tmp_path}
    with pytest.raises(UserError, match="none.pth is missing: run"):
        TextToImageParams.load(given).lab()


def test_the_papers_preset_names_the_command_that_fetches_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    params = TextToImageParams.load(
        {"preset": "paper", "data_dir": tmp_path, "out_dir": tmp_path, "judge": "resnet34"}
    )
    with pytest.raises(UserError, match="hf download CompVis/stable-diffusion-v1-4"):
        params.lab()
