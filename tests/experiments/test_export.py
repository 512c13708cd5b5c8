"""What a cell is exported as, read again with the tools of those who get it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from salun_core.__main__ import main
from salun_core.errors import UserError
from salun_core.experiments.classification.method_comparison import ClassificationParams, run
from salun_core.experiments.export import _found, export, model_card
from salun_core.saliency import density, load_mask

CLASSIFIER = {
    "preset": "quick",
    "dataset": "digits",
    "arch": "resnet18",
    "width": 4,
    "epochs": 1,
    "recipe": "digits",
}
CLASSIFIER |= {"methods": ["salun", "ft"], "seeds": [0], "tune": False, "noise_floor": 0, "threads": 1}
CLASSIFIER |= {
    "scenario": ["class"],
    "forget_class": 3,
    "settings": {m: {"epochs": 1} for m in ("salun", "ft")},
}
CLASSIFIER |= {"train_images": 300}


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    out = tmp_path_factory.mktemp("classified")
    return run(ClassificationParams.load(CLASSIFIER | {"out_dir": str(out)})), out


def cell_of(results, method):
    return results.cells[results.cells["method"] == method].iloc[0]


def test_every_masked_cell_keeps_its_mask(classified):
    results, out = classified
    row = cell_of(results, "salun")
    content = json.loads((out / "cells" / f"{row['cell']}.json").read_text())["values"]
    mask = load_mask(out / "cells" / content["mask_file"])
    assert density(mask) == pytest.approx(0.5, abs=1e-4)
    cell = next(c for c in (out / "cells").glob("cell-*.json") if c.stem == cell_of(results, "ft")["cell"])
    assert "mask_file" not in json.loads(cell.read_text())["values"]


def test_a_classifier_is_exported_with_card_mask_and_the_metrics_of_its_table(classified, tmp_path, capsys):
    results, out = classified
    row = cell_of(results, "salun")
    assert main(["export", row["cell"], str(tmp_path / "shared"), "--out", str(out)]) == 0
    folder = tmp_path / "shared"
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "config.json",
        "mask.safetensors",
        "metrics.json",
        "model.safetensors",
        "provenance.json",
    }
    card = (folder / "README.md").read_text("utf8")
    code = card.split("```python\n")[1].split("```")[0]
    loaded: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, loaded)
    lab = results.lab
    task = lab.task(0, results.params.scenarios()[0])
    found = lab.problem.outputs(loaded["model"], task)
    stored = lab.evaluation(lab.store.all()[[r.key.name for r in lab.store.all()].index(row["cell"])])
    assert torch.allclose(found.logits, stored.logits, atol=1e-4)  # up to the layout of memory
    assert "are those of the stored cell, to the last digit" in card
    mask, before = load_mask(folder / "mask.safetensors"), dict(task.model.named_parameters())
    after = dict(loaded["model"].named_parameters())
    assert all(torch.equal(before[n][~m], after[n][~m]) for n, m in mask.items())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["UA"] == row["UA"] and metrics["gap UA"] == pytest.approx(
        abs(row["UA"] - cell_of(results, "retrain")["UA"])
    )


def test_a_copy_among_the_lists_of_results_is_passed_over(classified, tmp_path):
    results, out = classified
    lists = out / "results"
    copy = lists / "class-old.json"  # before classification.json in the order of names
    copy.write_bytes((lists / "classification.json").read_bytes())
    try:
        assert export(cell_of(results, "ft")["cell"], tmp_path, out_dir=out)
    finally:
        copy.unlink()


def test_the_card_is_one_that_the_hub_reads(classified, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    results, out = classified
    export(cell_of(results, "ft")["cell"], tmp_path, out_dir=out)
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-classification" and "machine-unlearning" in card.data.tags
    values = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert values["UA"] == cell_of(results, "ft")["UA"]
    for said in ("## Limits", "## Provenance", "class 3", "mask: none", "SHA-256 of the weights"):
        assert said in card.text
    assert not (tmp_path / "mask.safetensors").exists()


def test_names_in_a_card_are_text(classified):
    results, out = classified
    found = _found(cell_of(results, "ft")["cell"], out, None, None)
    found.result.content["about"]["dataset"] = "**folder**"
    record = {"computed": found.result.provenance, "check": "", "note": "", "weights": ""}
    row = found.row | {"scenario": "class <img src=x onerror=alert(1)>"}
    body = model_card(found, row, record, None, changed_only=False).split("\n---\n")[1]
    assert r"\<img src=x onerror=alert(1)\>" in body and "<img" not in body.replace(r"\<", "")
    assert "**folder**" not in body


def test_a_folder_with_another_cells_export_is_refused(classified, tmp_path):
    results, out = classified
    masked, plain = (cell_of(results, method)["cell"] for method in ("salun", "ft"))
    written = export(masked, tmp_path, out_dir=out)
    kept = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(
        UserError, match=f"holds the export of another cell than {plain}: name another folder"
    ):
        export(plain, tmp_path, out_dir=out)  # or the mask would lie beside weights that had none
    assert (tmp_path / "model.safetensors").read_bytes() == kept
    assert export(masked, tmp_path, out_dir=out) == written  # the same again is no harm


def test_only_what_changed_can_be_exported(classified, tmp_path):
    from salun_core.models.text_to_image.deltas import load_delta

    results, out = classified
    for whole in (False, True):
        export(cell_of(results, "salun")["cell"], tmp_path / str(whole), out_dir=out, changed_only=not whole)
    original = results.lab.task(0, results.params.scenarios()[0]).model
    model = load_delta(tmp_path / "False" / "changed.safetensors", original)
    weights = load_file(tmp_path / "True" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "False" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cell-nothing", "no cells in"),
        ("cell-", "3 cells in"),
        ("../cell-1", "no cells in"),
        ("cell-**", "no cells in"),
    ],
)
def test_a_name_that_is_not_of_one_cell_is_refused(classified, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        export(name, tmp_path / "shared", out_dir=classified[1])
    assert not (tmp_path / "shared").exists()


def test_a_cell_of_other_data_is_refused(classified, tmp_path):
    from dataclasses import replace

    results, out = classified
    other = replace(results.lab.data, images=255 - results.lab.data.images)
    with pytest.raises(UserError, match="computed from other things than those here \\(original differ"):
        export(cell_of(results, "ft")["cell"], tmp_path, out_dir=out, data=other)


def test_the_five_lines_of_the_book_hold_the_weights_outside_a_mask():
    text = (Path(__file__).parents[2] / "book" / "method.md").read_text("utf8")
    code = next(block for block in text.split("```")[1::2] if "train_step(" in block)
    assert len(code.removeprefix("python\n").strip().splitlines()) == 5
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 3))
    model[0].requires_grad_(False)  # frozen, and then no mask names it
    first = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    mask = {name: torch.rand(weight.shape) < 0.5 for name, weight in model[1].named_parameters("1")}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(3)]

    def train_step(model, images, labels):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    given = {"model": model, "mask": mask, "batches": batches, "train_step": train_step, "torch": torch}
    exec(code.removeprefix("python\n"), given)
    for name, weight in model[1].named_parameters("1"):
        assert torch.equal(weight[~mask[name]], first[name][~mask[name]])
        assert not torch.equal(weight[mask[name]], first[name][mask[name]])
    assert torch.equal(model[0].weight, first["0.weight"])
