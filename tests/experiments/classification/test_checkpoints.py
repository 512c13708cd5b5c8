"""Classification that starts from a model that others have trained."""

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from problems import same
from safetensors.torch import load_file, save_file
from torch import nn

from salun_core.errors import UserError
from salun_core.experiments.classification.method_comparison import ClassificationParams, run
from salun_core.experiments.classification.stability import StabilityParams
from salun_core.experiments.export import export
from salun_core.models import build_model
from salun_core.models.classification.checkpoints import Checkpoint
from salun_core.models.classification.normalised import Normalised
from salun_core.models.text_to_image.deltas import load_delta
from salun_core.pages.figures import classification as figures
from salun_core.pages.tables import classification as tables
from salun_core.pages.text import classification as text
from salun_core.saliency import load_mask

SMALL = {
    "preset": "quick",
    "dataset": "digits",
    "train_images": 200,
    "arch": "resnet18",
    "width": 4,
    "recipe": "digits",
}
SMALL |= {"methods": ["original", "salun"], "settings": {"salun": {"epochs": 1}}, "tune": False, "threads": 1}
SMALL |= {"scenario": ["class"], "forget_class": 3, "seeds": [0], "epochs": 1, "noise_floor": 0}
BROUGHT = SMALL | dict.fromkeys(
    ("recipe", "epochs", "noise_floor")
)  # which mean nothing where none is trained


def network(seed, width=4):
    given = {"classes": 10, "channels": 1, "size": 8, "mean": [0.3], "std": [0.4]}
    return build_model("resnet18", seed=seed, width=width, **given)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two models by others, stored in every way that people store them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, seed in (("before", 5), ("after", 6)):
        state = network(seed).net.state_dict()  # as trained outside, without our normalisation
        save_file(state, folder / f"{name}.safetensors")
        torch.save(
            {"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": torch.tensor(3)},
            folder / f"{name}.pt",
        )
        torch.save(network(seed).state_dict(), folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_weights_are_found_under_the_names_that_others_give_them(files, ending):
    loaded = Checkpoint(str(files / f"before.{ending}")).load(network(1))
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(images), network(5).eval()(images))


class Tied(nn.Module):
    """Two layers with one weight, as no file of safetensors holds it twice without a copy."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        return self.head(self.second(self.first(images.mean(dim=1).flatten(1)).relu()))


def tied(num_classes):
    torch.manual_seed(0)
    return Tied()


def test_weights_that_are_tied_are_stored_exported_and_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    mine = {**SMALL, "arch": "test_checkpoints:tied", "width": None, "recipe": "digits"}
    results = run(ClassificationParams.load(mine | {"out_dir": str(tmp_path / "out")}))
    row = results.cells.query("method == 'salun'").iloc[0]
    for changed in (False, True):
        export(row["cell"], tmp_path / "shared", out_dir=tmp_path / "out", changed_only=changed)
    original = results.lab.task(0, results.params.scenarios()[0]).model
    again, first = copy.deepcopy(original), load_delta(tmp_path / "shared" / "changed.safetensors", original)
    again.load_state_dict(load_file(tmp_path / "shared" / "model.safetensors"))
    assert same(again, first) and not same(again, original)
    # As others write it: under one of the names, whichever.
    for left_out in ("first.weight", "second.weight"):
        weights = {n: v.clone() for n, v in again.net.state_dict().items() if n != left_out}
        save_file(weights, tmp_path / "one.safetensors")
        given = BROUGHT | {"pretrained": str(tmp_path / "one.safetensors"), "methods": ["original"]}
        given |= {"arch": mine["arch"], "width": None}
        found = ClassificationParams.load(given | {"out_dir": str(tmp_path / left_out)})
        brought = found.lab().original(0, found.scenarios()[0])
        assert same(brought.net, again.net) and brought.net.first.weight is brought.net.second.weight


def test_a_checkpoint_that_diverged_is_refused_by_its_name(tmp_path):
    state = network(5).net.state_dict()
    state["fc.weight"][0, 0] = float("inf")
    save_file(state, tmp_path / "diverged.safetensors")
    with pytest.raises(
        UserError, match=r"diverged.safetensors has weights that are not finite \(net.fc.weight\)"
    ):
        Checkpoint(str(tmp_path / "diverged.safetensors")).load(network(1))


@pytest.fixture(scope="module")
def found(files, tmp_path_factory):
    given = {"pretrained": str(files / "before.safetensors"), "retrained": str(files / "after.safetensors")}
    out = {"out_dir": str(tmp_path_factory.mktemp("runs"))}
    return run(ClassificationParams.load(BROUGHT | given | out))


def test_original_and_retrain_are_the_models_given(found):
    lab, images = found.lab, found.lab.data.images.float() / 255
    for method, seed in (("original", 5), ("retrain", 6)):
        row = found.cells[found.cells["method"] == method].iloc[0]
        result = next(r for r in lab.store.all() if r.key.name == row["cell"])
        stored = lab.evaluation(result)
        direct = network(seed)
        direct.mean, direct.std = (torch.tensor(v).view(-1, 1, 1) for v in lab.data.moments)
        with torch.no_grad():
            logits = direct.eval()(images[stored.ids])
        assert torch.allclose(stored.logits, logits, atol=1e-4)
    assert found.cells["method"].tolist() == ["retrain", "original", "salun"]
    assert not list(lab.store.folder.glob("original-*"))  # nothing was trained


def test_costs_of_a_retrained_model_that_is_given_are_not_known(found):
    assert "gap to the mean" in tables.main_table(found.cells, "class 3").caption
    assert "not known" in str(figures.break_even(found.cells, "class 3"))
    assert "not known" in str(tables.cost_table(found.cells, "class 3"))


def test_without_retrain_tables_figures_and_the_chapters_exercise_say_so(files, tmp_path, capsys):
    given = {"pretrained": str(files / "before.safetensors"), "out_dir": str(tmp_path)}
    results = run(ClassificationParams.load(BROUGHT | given))
    assert results.cells["method"].tolist() == ["original", "salun"]
    table = tables.main_table(results.cells, "class 3")
    assert "No model was retrained" in table.caption and "Avg. Gap" not in table.frame
    assert not table.frame.astype(str).apply(lambda c: c.str.contains("nan|diverged")).any(axis=None)
    for shown in (
        figures.gap_to_retrain(results.cells, "class 3"),
        figures.trade_off(results.cells, "class 3"),
        figures.break_even(results.cells, "class 3"),
        figures.published_beside(results.cells, "class 3", "random data forgetting 10%"),
        tables.cost_table(results.cells, "class 3"),
        text.sentences(results.cells),
    ):
        assert "No model was retrained" in str(shown)
    assert len(tables.attacks_table(results, "class 3").frame) == 2
    notebook = json.loads(
        (Path(__file__).parents[3] / "notebooks" / "classification.ipynb").read_text("utf8")
    )
    (solution,) = (c for c in notebook["cells"] if "solution" in c["metadata"].get("tags", []))
    exec("".join(solution["source"]), {"results": results})
    assert (
        capsys.readouterr().out == "no method can be compared: give retrained, or train without pretrained\n"
    )


def test_the_digest_of_a_checkpoint_is_in_the_key_and_nothing_else_has_changed(files, tmp_path):
    from salun_core.experiments.runs.cells import Cell, Scenario

    def keys(**given):
        lab = ClassificationParams.load(BROUGHT | given | {"out_dir": str(tmp_path)}).lab()
        return [lab.key(Cell(0, Scenario("class", target=3), method)).what for method in ("ft", "retrain")]

    plain = keys()
    assert "pretrained" not in json.dumps(plain) and "retrained" not in json.dumps(plain)
    before, after, other = (str(files / f) for f in ("before.safetensors", "after.safetensors", "before.pth"))
    one, two = keys(pretrained=before), keys(pretrained=other)
    assert one[0]["original"]["pretrained"] == Checkpoint(before).digest != two[0]["original"]["pretrained"]
    compared = keys(pretrained=before, retrained=after)
    assert compared[0] == one[0]
    assert compared[1] == one[1] | {"retrained": Checkpoint(after).digest}
    trained = keys(pretrained=before, retrained="train")
    assert trained == one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pretrained": "nowhere.pt"}, "there is no checkpoint nowhere.pt"),
        ({"retrained": "BEFORE"}, "retrained is given without pretrained"),
        ({"pretrained": "BEFORE", "tune": True}, "pretrained needs tune: false"),
        (
            {"pretrained": "BEFORE", "retrained": "BEFORE", "seeds": [0, 1]},
            "one scenario and one number in seeds",
        ),
        (
            {"pretrained": "BEFORE", "width": 8},
            "do not fit this network: net.* has shape .* choose arch and width as they were trained",
        ),
        (
            {"pretrained": "BEFORE", "only_classes": ["1", "3"], "train_images": 150},
            "net.fc.weight has shape .10, 32. there and .2, 32. here",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(files, tmp_path, given, message):
    given = {n: str(files / "before.pth") if v == "BEFORE" else v for n, v in given.items()}
    with pytest.raises(UserError, match=message) as refusal:
        ClassificationParams.load(BROUGHT | given | {"out_dir": str(tmp_path)}).lab()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("wrapped", ["model._orig_mod.", "model.module.", "_orig_mod.module.model."])
def test_several_wrappers_around_a_network_are_taken_off(tmp_path, wrapped):
    state = network(5).net.state_dict()
    torch.save({wrapped + name: value for name, value in state.items()}, tmp_path / "wrapped.pt")
    assert same(Checkpoint(str(tmp_path / "wrapped.pt")).load(network(1)), network(5))


@pytest.mark.parametrize("part", ["model", "module", "net"])
def test_a_network_may_have_a_part_that_is_named_like_a_wrapper(tmp_path, part):
    def built(seed):
        torch.manual_seed(seed)
        return Normalised(nn.Sequential(OrderedDict([(part, nn.Linear(3, 2))])), [0.3], [0.4])

    for kept in (built(5).net, built(5)):
        torch.save(kept.state_dict(), tmp_path / "own.pt")
        assert same(Checkpoint(str(tmp_path / "own.pt")).load(built(1)), built(5))


def test_a_weight_that_a_checkpoint_lacks_or_has_too_much_is_named(tmp_path):
    state = network(5).net.state_dict()
    bias = state.pop("fc.bias")
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(UserError, match=r"net.fc.bias is missing there \(1 of"):
        Checkpoint(str(tmp_path / "less.pt")).load(network(1))
    torch.save(state | {"fc.bias": bias, "head": bias}, tmp_path / "more.pt")
    with pytest.raises(UserError, match=r"net.head is left over \(1 of"):
        Checkpoint(str(tmp_path / "more.pt")).load(network(1))


def test_an_experiment_that_needs_retrained_models_says_how_to_have_them(files):
    with pytest.raises(UserError, match="stability compares with retrained models: give retrained: train"):
        StabilityParams.load({"pretrained": str(files / "before.pth"), "tune": False})


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": network(0)}, tmp_path / "whole.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        Checkpoint(str(tmp_path / "whole.pt")).load(network(1))
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="cut.pt is truncated or damaged"):
        Checkpoint(str(tmp_path / "cut.pt")).load(network(1))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_file_that_holds_no_weights_at_all_is_not_suspected_of_code(tmp_path, ending):
    (tmp_path / f"page.{ending}").write_bytes(b"<!DOCTYPE html> of a download that failed")
    with pytest.raises(UserError, match=f"page.{ending} is truncated or damaged"):
        Checkpoint(str(tmp_path / f"page.{ending}")).load(network(1))


def vision_transformer(folder):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **small)
    vit = ViTForImageClassification(config).eval()
    vit.save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.3], image_std=[0.4]).save_pretrained(folder)
    return vit


OWN = BROUGHT | {"arch": None, "width": None}  # as a folder of transformers says itself


def test_a_folder_of_transformers_with_its_preprocessing(tmp_path, capfd):
    vit = vision_transformer(tmp_path / "vit")
    given = {"pretrained": str(tmp_path / "vit"), "out_dir": str(tmp_path / "runs")}
    for name in ("arch", "width"):
        with pytest.raises(
            UserError, match=rf"{name} has no effect here, as pretrained .*vit says itself .*ViTFor"
        ):
            ClassificationParams.load(OWN | given | {name: SMALL[name]})
    results = run(ClassificationParams.load(OWN | given))
    assert "Loading weights" not in capfd.readouterr().err  # the bar of another library
    assert set(results.cells["arch"]) == {"transformers:ViTForImageClassification"}
    assert results.cells["width"].isna().all()
    (what,) = {
        json.dumps(r.key.what["original"]) for r in results.lab.store.all() if "original" in r.key.what
    }
    assert '"arch": "transformers:ViTForImageClassification"' in what and '"width": null' in what
    row = results.cells[results.cells["method"] == "original"].iloc[0]
    lab = results.lab
    stored = lab.evaluation(next(r for r in lab.store.all() if r.key.name == row["cell"]))
    images = lab.data.images[stored.ids].float() / 255
    with torch.no_grad():
        assert torch.allclose(stored.logits, vit((images - 0.3) / 0.4).logits, atol=1e-4)


def test_images_of_another_size_than_a_brought_network_takes_name_the_remedy(tmp_path):
    vision_transformer(tmp_path / "vit")
    given = {"pretrained": str(tmp_path / "vit"), "out_dir": str(tmp_path / "runs"), "image_size": 12}
    with pytest.raises(
        UserError, match=r"images of \w+ for \S+vit \(2 x 1 x 12 x 12\): .*\(image_size in an exp"
    ):
        ClassificationParams.load(OWN | given).lab()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "config.json is damaged: copy it again"),
        ("config.json", b'{"model_type": "t5"}', "describes no image classifier"),
        ("preprocessor_config.json", b'{"do_normalize": true}', "describes no image classifier .KeyError"),
        ("model.safetensors", None, "holds no safetensors: .* save_pretrained"),
    ],
)
def test_a_folder_of_transformers_that_is_incomplete_is_refused(tmp_path, file, content, message):
    vit = vision_transformer(tmp_path / "vit")
    torch.save(vit.state_dict(), tmp_path / "vit" / "pytorch_model.bin")  # not part of the digest
    if content is None:
        (tmp_path / "vit" / file).unlink()
    else:
        (tmp_path / "vit" / file).write_bytes(content)
    given = {"pretrained": str(tmp_path / "vit"), "out_dir": str(tmp_path / "runs")}
    with pytest.raises(UserError, match=message) as refusal:
        ClassificationParams.load(OWN | given).lab()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"vit\.layers\.\S+ is missing.* more; copy both"),
        ({"num_hidden_layers": 0}, r"vit\.layers\.0\.\S+ is left over"),
        (
            {"id2label": {str(i): str(i) for i in range(4)}},
            r"classifier\.bias has shape \(10,\) there and \(4,\)",
        ),
    ],
)
def test_weights_that_do_not_match_their_configuration_are_not_drawn_anew(tmp_path, change, message):
    vision_transformer(tmp_path / "vit")
    file = tmp_path / "vit" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf8")) | change))
    with pytest.raises(UserError, match=message):
        Checkpoint(str(tmp_path / "vit")).load(torch.nn.Identity())


def test_a_pooling_layer_that_a_classifier_does_not_use_may_be_left_over(tmp_path):
    vit = vision_transformer(tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    save_file({**load_file(file), "vit.pooler.dense.bias": torch.zeros(8)}, file, metadata={"format": "pt"})
    found = Checkpoint(str(tmp_path / "vit")).load(torch.nn.Identity())
    assert same(found.net, vit)


def test_a_model_of_transformers_is_exported_as_one(tmp_path, capfd):
    vision_transformer(tmp_path / "vit")
    given = {"pretrained": str(tmp_path / "vit"), "out_dir": str(tmp_path / "runs")}
    results = run(ClassificationParams.load(OWN | given))
    row = results.cells[results.cells["method"] == "salun"].iloc[0]
    lab = results.lab
    stored = lab.evaluation(next(r for r in lab.store.all() if r.key.name == row["cell"]))
    images = (lab.data.images[stored.ids].float() / 255 - 0.3) / 0.4
    capfd.readouterr()
    for changed_only in (False, True):
        folder = tmp_path / str(changed_only)
        export(row["cell"], folder, out_dir=tmp_path / "runs", changed_only=changed_only)
        assert "Writing model" not in capfd.readouterr().err  # the bar of another library
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}  # to be shared
        card = (folder / "README.md").read_text("utf8")
        assert "library_name: transformers" in card
        loaded: dict = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            code = card.split("```python\n")[1].split("```")[0]
            exec(code.replace("FOLDER", str(tmp_path / "vit")), loaded)
        with torch.no_grad():
            assert torch.allclose(loaded["model"](images).logits, stored.logits, atol=1e-4)
        assert (
            load_mask(folder / "mask.safetensors").keys() <= dict(loaded["model"].named_parameters()).keys()
        )
    assert (tmp_path / "False" / "preprocessor_config.json").is_file()
