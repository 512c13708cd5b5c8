import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from pipeline_families import BUILDERS
from problems import same

from salun_core.__main__ import main
from salun_core.data import load_dataset
from salun_core.data.captions import KINDS
from salun_core.data.downloads import DOWNLOADS
from salun_core.errors import UserError
from salun_core.experiments.export import export
from salun_core.experiments.generation.lab import result_of
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.text_to_image.class_forgetting import TextToImageParams, run
from salun_core.experiments.text_to_image.params import TextJudging, source_of
from salun_core.experiments.text_to_image.unlearned_elsewhere import given_cells
from salun_core.files import sha256
from salun_core.methods.lora import Lora
from salun_core.metrics.generation.recognition import recognise
from salun_core.models.text_to_image import deltas
from salun_core.models.text_to_image.deltas import load_delta, weights_digest
from salun_core.models.text_to_image.families import network_of
from salun_core.models.text_to_image.pipelines import load_pipeline, save_pipeline, with_network
from salun_core.pages.tables.text_to_image import pipeline_table

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


def test_a_stored_model_is_the_unlearned_one(results, tmp_path):
    found, params = results
    lab = found.lab
    cell = Cell(0, Scenario("class", target=7), "uce", settings=params.steps_of.of("uce"))
    stored = lab.run(cell)
    from salun_core.methods import METHODS

    fresh = METHODS["uce"](lab.task(0, cell.scenario), seed=0).model
    assert same(lab.model(stored), fresh)
    assert not same(lab.pipe.unet, fresh)
    images, labels = lab.samples(stored)
    assert images.shape == (100, 3, 16, 16) and labels.tolist() == sorted(labels.tolist())
    assert torch.equal(lab.drawn(fresh, [7], Pieces(tmp_path))[0], images)
    assert lab.recognition(stored).counts.sum() == 100


def test_a_network_of_others_is_a_row_beside_ours(results, tmp_path):
    found, params = results
    row = found.cells[found.cells["method"] == "uce"].iloc[0]
    state = found.lab.model(result_of(found.lab, row)).state_dict()
    torch.save({"state_dict": state}, tmp_path / "erased seven.pt")
    given = {**SMALL, "out_dir": params.machine.out_dir, "unlearned": tmp_path / "erased seven.pt"}
    again = run(TextToImageParams.load(given))
    assert again.cells["method"].tolist() == ["original", "uce", "ga", "erased seven (given)"]
    assert again.masks["cell"].equals(found.masks["cell"])
    last = again.cells.iloc[-1]
    for measured in ("UA", "OA", "FD", "CLIP", "n_forget"):
        assert last[measured] == row[measured]
    assert last["mask"] == "none" and last["settings"] == {} and pd.isna(last["seconds"])
    assert same(again.lab.model(result_of(again.lab, last)), found.lab.model(result_of(found.lab, row)))

    with pytest.raises(UserError, match="take the files that it was read from"):
        export(last["cell"], tmp_path / "export", out_dir=params.machine.folder)

    # The files count, and not what they are called or where they lie.
    (tmp_path / "erased seven.pt").rename(tmp_path / "other.pt")
    (other,) = given_cells([tmp_path / "other.pt"], again.lab.pipe, Scenario("class", target=7), 0)
    assert again.lab.key(other).name == last["cell"]
    torch.save({"state_dict": {**state, "conv_out.bias": state["conv_out.bias"] + 1}}, tmp_path / "other.pt")
    (other,) = given_cells([tmp_path / "other.pt"], again.lab.pipe, Scenario("class", target=7), 0)
    assert again.lab.key(other).name != last["cell"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unlearned": ["nowhere.pt"]}, "there is no file or folder .*nowhere.pt"),
        ({"unlearned": ["small.pt"]}, "small.pt has shape"),
        ({"unlearned": ["small.pt", "a/small.pt"]}, "two networks small: rename one"),
        ({"unlearned": ["small.pt"], "forget_class": [1, 7]}, "forgotten one class, and forget_class has 2"),
    ],
)
def test_a_network_of_others_that_does_not_fit_is_refused_before_anything_is_made(given, message, tmp_path):
    given = {**given, "unlearned": [tmp_path / name for name in given["unlearned"]]}
    torch.save({"conv_out.bias": torch.zeros(7)}, tmp_path / "small.pt")
    with pytest.raises(UserError, match=message):
        run(TextToImageParams.load({**SMALL, **given, "out_dir": tmp_path / "out"}))
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_pipelines_of_other_families_go_through_the_experiment(family, tmp_path):
    folder = save_pipeline(BUILDERS[family](), network_of(BUILDERS[family]()), tmp_path / family)
    given = {**SMALL, "pipeline": str(folder), "methods": ["ga"], "masks": ["salient"], "samples": 2}
    given |= {"test_prompts": ["a photo of a {}"], "clip": "none", "train_images": 100, "reference": 40}
    params = TextToImageParams.load({**given, "out_dir": tmp_path / "out"})
    found = run(params)
    assert found.cells["method"].tolist() == ["original", "ga"] and (found.cells["status"] == "done").all()
    lab, row = found.lab, found.masks.iloc[0]
    mask, _ = lab.mask(0, Scenario("class", target=7), MaskSpec("salient", params.keep, params.score))
    before, after = lab.network.state_dict(), lab.model(result_of(lab, row)).state_dict()
    assert all(torch.equal(before[name][~marked], after[name][~marked]) for name, marked in mask.items())
    assert any(not torch.equal(before[name], after[name]) for name in mask)
    assert "text encoders" in str(pipeline_table(lab))
    # Every part that draws is in the key.
    cell = Cell(0, Scenario("class", target=7), "ga")
    other = copy.copy(lab)
    other.problem = replace(lab.problem, pipe=load_pipeline(folder))
    vars(other).pop("_pipeline", None)
    assert other.unlearned_key(cell).name == lab.unlearned_key(cell).name
    with torch.no_grad():
        next(other.pipe.text_encoder_2.parameters()).add_(1)
    vars(other).pop("_pipeline", None)
    assert other.unlearned_key(cell).name != lab.unlearned_key(cell).name


def test_adapters_are_a_kind_of_mask_here(results):
    lab = results[0].lab
    adapters, seconds = lab.mask(0, Scenario("class", target=7), MaskSpec("lora"))
    assert adapters == Lora(4) and seconds == 0


def test_digits_are_asked_for_in_every_kind_of_caption():
    asking = TextToImageParams.load({}).prompts(load_dataset("digits"))
    assert tuple(asking.test) == KINDS
    assert asking.training[7] == "a photo of a seven"
    assert all("seven" in text for text in asking.test["direct"][7])
    assert not any("seven" in text for text in asking.test["indirect"][7])


def test_other_data_are_asked_for_by_templates():
    params = TextToImageParams.load({"class_names": [f"thing {i}" for i in range(10)]})
    asking = params.prompts(load_dataset("digits"))
    assert asking.training[3] == "an image of a thing 3"
    assert asking.test == {"direct": tuple((f"Image of thing {i}",) for i in range(10))}


def test_prompts_are_measured_in_tokens_before_anything_is_trained(tmp_path, capsys):
    long = "a very " * 20 + "old {}"
    with pytest.raises(
        UserError,
        match=r"the prompt 'a very a .*…' has \d+ tokens, and 24 are read, .*: shorten class_prompt",
    ):
        TextToImageParams.load({**SMALL, "out_dir": tmp_path, "class_prompt": long}).lab()
    assert capsys.readouterr().err == ""
    TextToImageParams.load({**SMALL, "out_dir": tmp_path, "test_prompts": ["a {}", long]}).lab()
    said = capsys.readouterr().err
    assert said.startswith("10 of 20 prompts to measure with are cut off") and said.count("\n") == 1
    TextToImageParams.load({**SMALL, "out_dir": tmp_path}).lab()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["retrain"]}, "unknown method 'retrain'"),
        ({"methods": ["iu"]}, "unknown method 'iu'"),
        ({"masks": ["loar"]}, "did you mean 'lora'"),
        ({"class_prompt": "an image"}, "must hold {} once"),
        ({"class_prompt": "the {}"}, "class_prompt 'the {}' has no effect here, as digits have prompts"),
        ({"precision": "fp8"}, "precision"),
        ({"settings": {"esd": {"partt": "xattn"}}}, "did you mean 'part'"),
        ({"class_names": ["one"]}, "1 names for 10 classes"),
        ({"replacement": 11}, "replacement 11 is out of range"),
        ({"replacement": "elven"}, "unknown replacement of digits 'elven'"),
        ({"forget_class": 0, "replacement": 0}, "'0' cannot take its own place"),
        (
            {"forget_class": 0, "class_names": [*"abcdefghi", "a"]},
            "'0' and '9' are both asked for by 'an image of a a'",
        ),
        ({"class_names": [*"abcdefghi", " "]}, "empty name"),
        ({"forget_class": [3, "3"]}, "forgotten twice"),
        ({"sample_steps": 1_001}, "more than the 1000 steps"),
        ({"lora_rank": 100_000}, "rank of adapters is 100000"),
        ({"pipeline": "./nowhere/at/all"}, "there is no folder"),
    ],
)
def test_impossible_parameters_are_refused(given, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TextToImageParams.load({**given, "out_dir": tmp_path}).lab()


def test_the_papers_judge_sees_the_other_classes_of_imagenet_as_one(results, tmp_path):
    from torchvision.models import resnet50

    from salun_core.data.prompts import IMAGENETTE

    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    lab = copy.copy(results[0].lab)
    for name in ("classifier", "features", "judge_accuracy", "judge_key"):
        vars(lab).pop(name, None)
    lab.judging, lab.judge_weights = TextJudging(judge="imagenet"), tmp_path / "resnet50.pth"
    lab.imagenet = tuple(IMAGENETTE.values())
    assert lab.judged == len(IMAGENETTE) + 1
    images, labels = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4)
    counts = recognise(lab.classifier, images, labels, classes=lab.judged).counts
    assert counts.shape == (11, 11) and counts.sum() == 4
    assert lab.judge_key.what["arch"] == "imagenet"
    cell = Cell(0, Scenario("class", target=7), "uce")
    assert lab.key(cell).name != results[0].lab.key(cell).name


def test_classes_named_by_wordnet_ids_are_called_by_their_names_in_prompts():
    data = replace(
        load_dataset("digits"), name="folder", classes=("n03028079", "garbage_truck", "n1", *"defghij")
    )
    params = TextToImageParams.load({"class_names": []})
    assert params.prompts(data).training[:3] == (
        "an image of a church",
        "an image of a garbage truck",
        "an image of a n1",
    )
    assert params.prompts(data).test["direct"][0] == ("Image of church",)


@pytest.mark.parametrize("given", ["church", "n03028079", 0])
def test_a_class_to_forget_may_be_given_by_either_of_its_names(given):
    data = replace(load_dataset("digits"), name="folder", classes=("n03028079", *"abcdefghi"))
    params = TextToImageParams.load({"class_names": [], "forget_class": given})
    assert params.scenarios(data) == [Scenario("class", target=0)]
    with pytest.raises(UserError, match="unknown class of folder 'chuch': did you mean 'church'"):
        TextToImageParams.load({"class_names": [], "forget_class": "chuch"}).scenarios(data)
    with pytest.raises(UserError, match="twice|repeats church"):
        TextToImageParams.load({"class_names": [], "forget_class": [given, "church"]}).scenarios(data)


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
    small = {name: value for name, value in SMALL.items() if not name.startswith("judge")}
    given = {**small, "judge": "imagenet", "judge_weights": tmp_path / "none.pth", "out_dir": tmp_path}
    with pytest.raises(UserError, match="none.pth, which is missing: run .*fetch resnet50"):
        TextToImageParams.load(given).lab()


def test_the_papers_preset_names_the_command_that_fetches_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    paper = {"preset": "paper", "data_dir": tmp_path, "out_dir": tmp_path}
    for given, command in (
        ({}, "salun_core fetch inception resnet50 clip'"),
        ({"clip": "none", "features": "judge"}, "salun_core fetch resnet50'"),
        ({"clip": "none", "judge": "resnet34"}, "salun_core fetch inception'"),
        ({"judge": "resnet34", "features": "judge"}, "hf download CompVis/stable-diffusion-v1-4"),
    ):
        with pytest.raises(UserError, match=command):
            TextToImageParams.load({**paper, **given}).lab()
    small = {"judge": "resnet34", "features": "judge", "pipeline": "data/models/tiny-sd"}
    with pytest.raises(UserError, match="salun_core fetch clip.*clip: none"):
        TextToImageParams.load({**paper, **small}).lab()


def test_features_are_those_that_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="features: inception needs the file"):
        TextToImageParams.load({**SMALL, "features": "inception", "out_dir": tmp_path}).lab()
    with pytest.raises(UserError, match="set features to inception"):
        TextToImageParams.load({"inception_weights": tmp_path / "x.pth"})
    weights = tmp_path / "checkpoints" / DOWNLOADS["inception"].files[0].name
    weights.parent.mkdir()
    weights.write_bytes(b"weights that are here but not asked for")
    lab = TextToImageParams.load({**SMALL, "out_dir": tmp_path}).lab()
    assert lab.judging.inception is None
    cell = Cell(0, Scenario("class", target=7), "uce")
    assert lab.key(cell).what["features"] == "judge"
    asked = TextToImageParams.load({**SMALL, "features": "inception", "out_dir": tmp_path}).lab()
    assert asked.judging.inception == weights
    assert asked.key(cell).what["features"] == sha256(weights)


def test_clip_can_be_left_out(tmp_path, capsys):
    for none in ("none", ""):
        lab = TextToImageParams.load({**SMALL, "clip": none, "out_dir": tmp_path}).lab()
        assert lab.clip is None
    for text, lab_has in (
        ('clip: ""', False),
        ("clip: null", False),
        ("clip: data/models/tiny-sd-clip", True),
    ):
        (tmp_path / "mine.yaml").write_text(text)  # in place of a preset: what it does not give is not given
        found = TextToImageParams.load({"preset": str(tmp_path / "mine.yaml")})
        assert (found.clip is not None) is lab_has
    remedy = (
        "parameter clip is given without a value: give one, or the word none for no value, or leave it out"
    )
    (tmp_path / "null.yaml").write_text("clip: null")
    for words in (["-p", "clip", "null"], ["-f", str(tmp_path / "null.yaml")]):
        assert main(["run", "text_to_image", *words]) == 2
        assert remedy in capsys.readouterr().err
    (tmp_path / "null.yaml").write_text('{clip: "", pipeline: no/such}')
    assert main(["run", "text_to_image", "-f", str(tmp_path / "null.yaml")]) == 2
    assert "model_index.json of no/such" in capsys.readouterr().err
    assert TextToImageParams.load({"clip": None}).clip == "data/models/tiny-sd-clip"  # as notebooks say it
    few = ["-p", "pipeline", "no/such", "-p", "clip", ""]
    assert main(["run", "text_to_image", *few]) == 2
    assert "model_index.json of no/such" in capsys.readouterr().err  # clip is no matter any more


def test_outside_a_checkout_the_small_pipeline_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=f"tiny-sd comes with a checkout of the project and is not in {tmp_path}"
    ):
        TextToImageParams.load({"out_dir": tmp_path}).lab()
    with pytest.raises(UserError, match="tiny-sd-clip comes .* or choose another clip: .* or none"):
        source_of("data/models/tiny-sd-clip")
    (tmp_path / "data" / "models" / "me" / "mine").mkdir(parents=True)
    assert source_of("me/mine") == tmp_path / "data" / "models" / "me" / "mine"
    assert source_of("you/yours") == "you/yours"


def test_weights_are_measured_and_stored_in_the_precision_of_the_pipeline(results, tmp_path):
    lab = copy.copy(results[0].lab)
    half = with_network(lab.pipe, copy.deepcopy(lab.pipe.unet).to(torch.bfloat16))
    lab.problem = replace(lab.problem, pipe=half)
    trained = copy.deepcopy(lab.pipe.unet).float()
    with torch.no_grad():
        next(trained.parameters()).add_(1e-2)
    model = lab.finished(trained)
    assert {w.dtype for w in model.parameters()} == {torch.bfloat16}
    path = tmp_path / "delta.safetensors"
    digest, hashed = weights_digest(model), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltas, "weights_digest", lambda net: hashed.append(net) or weights_digest(net))
        path.write_bytes(lab.weights(model, digest))
    assert hashed == [lab.pipe.unet]  # the model's is known: it takes seconds for a large one
    assert same(load_delta(path, lab.pipe.unet), model)
    changed = sum(
        int((a != b).sum()) for a, b in zip(model.parameters(), lab.pipe.unet.parameters(), strict=True)
    )
    assert path.stat().st_size < 2 * changed + next(model.parameters()).numel() / 8 + 2000


def test_weights_need_not_be_kept(tmp_path):
    given = {
        **SMALL,
        "methods": ["uce"],
        "masks": [],
        "clip": "none",
        "keep_models": False,
        "out_dir": tmp_path,
    }
    found = run(TextToImageParams.load(given))
    assert (found.cells["status"] == "done").all()
    assert not list(tmp_path.rglob("unlearned*.model.safetensors"))
    with pytest.raises(UserError, match="keep no weights"):
        found.lab.model(result_of(found.lab, found.cells.iloc[1]))


def test_settings_of_forgetting_and_sampling_reach_the_work(tmp_path):
    given = {**SMALL, "grad_clip": 0, "sampler": "lms", "out_dir": tmp_path}
    lab = TextToImageParams.load(given).lab()
    assert lab.task(0, Scenario("class", target=7)).clip == 0
    assert lab.sampling.sampler == "lms"
    with pytest.raises(UserError, match="eta must be 0 for sampler lms"):
        TextToImageParams.load({**given, "eta": 1.0}).lab().drawn(lab.pipe.unet, [7], Pieces(tmp_path))


def test_a_pipeline_is_exported_whole_or_as_what_changed(results, tmp_path):
    found, params = results
    row = found.cells[found.cells["method"] == "uce"].iloc[0]
    export(row["cell"], tmp_path / "whole", out_dir=params.machine.folder)
    export(row["cell"], tmp_path / "changed", out_dir=params.machine.folder, changed_only=True)
    stored = found.lab.model(result_of(found.lab, row))
    assert same(load_pipeline(tmp_path / "whole").unet, stored)
    assert same(load_delta(tmp_path / "changed" / "changed.safetensors", found.lab.pipe.unet), stored)
    assert "library_name: diffusers" in (tmp_path / "whole" / "README.md").read_text("utf8")


def test_several_classes_are_forgotten_by_one_model(tmp_path):
    given = {**SMALL, "methods": ["uce"], "masks": ["salient"], "forget_class": [7, 3], "out_dir": tmp_path}
    found = run(TextToImageParams.load({**given, "together": True}))
    lab, scenario = found.lab, Scenario("class", target=(7, 3))
    assert found.cells["scenario"].unique().tolist() == [scenario.label] == ["classes 7, 3"]
    task = lab.task(0, scenario)
    texts = task.prompts.texts
    instead = {texts[i]: texts[j] for i, j in enumerate(task.replacement.tolist()) if j >= 0}
    asked = lab.prompts.training
    assert instead == {asked[7]: asked[8], asked[3]: asked[8]}
    next_to_it = replace(lab.problem, replacement=None, together=(7, 8))
    assert [next_to_it.replaced(number) for number in (7, 8)] == [9, 9]  # the next that stays
    outputs = lab.outputs(result_of(lab, found.masks.iloc[0]))
    assert outputs.forgotten == (7, 3)
    assert len(outputs.extra["clip_score"]) == 8 * 10
    assert found.masks["n_distance"].tolist() == [8 * 10]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"forget_class": [7, 8], "replacement": 8},
            "'8' cannot take the place of '7', which is forgotten too",
        ),
        ({"forget_class": list(range(10))}, "all 10 classes are to be forgotten: keep at least one"),
    ],
)
def test_classes_that_cannot_be_forgotten_together_are_refused(given, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TextToImageParams.load({**SMALL, **given, "together": True, "out_dir": tmp_path}).lab()
