"""A small diffusion experiment from end to end."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from problems import same

from salun_core.__main__ import main
from salun_core.errors import UserError
from salun_core.experiments.diffusion import lab as diffusion_lab
from salun_core.experiments.diffusion.class_forgetting import DiffusionParams, run
from salun_core.experiments.export import export
from salun_core.experiments.generation.lab import result_of, scenario_of
from salun_core.experiments.runs import pieces
from salun_core.experiments.runs import table as tables_of_runs
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.runs.table import printed, read_table
from salun_core.metrics.generation.recognition import recognise
from salun_core.models.diffusion import sampling
from salun_core.models.diffusion.sampling import sample
from salun_core.models.diffusion.unet import build_unet, load_diffusion, noise_schedule, save_diffusion
from salun_core.pages.tables import generation as tables
from salun_core.pages.tables.paper import as_latex
from salun_core.pages.text import generation as text
from salun_core.saliency import load_mask
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import Paused, seconds_behind

GIVEN = {
    "preset": "quick",
    "widths": [8],
    "steps": 20,
    "forget_steps": 3,
    "settings": {},
    "mask_draws": 1,
    "samples": 3,
    "sample_steps": 3,
    "judge_width": 4,
    "judge_epochs": 1,
    "methods": ["original", "ga", "salun"],
    "masks": ["none", "salient", "random"],
}


BROUGHT = GIVEN | {"widths": None}  # a network that is brought along has its own


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run(DiffusionParams.load(GIVEN | {"out_dir": str(tmp_path_factory.mktemp("out"))}))


def test_metrics_of_other_packages_are_columns_of_generators_too(results, tmp_path, monkeypatch):
    (tmp_path / "measures.py").write_text("def drawn(outputs):\n    return len(outputs.labels)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = results.lab.store.folder.parent
    cells = read_table(folder, "diffusion", metrics=["measures:drawn"])
    reported = cells[cells["reported"]]
    counts = {float(np.sum(c)) for c in reported["confusion"]}  # one for all
    assert set(reported["measures:drawn"]) == counts and 0 not in counts
    assert "measures:drawn" in printed(cells, "table")
    assert f"& {counts.pop():.2f} &" in as_latex(cells)
    with pytest.raises(UserError, match="metric TFA is one of classifiers, and these cells are of diffusion"):
        read_table(folder, "diffusion", metrics=["TFA"])


def test_every_cell_is_there_and_a_second_run_computes_nothing(results):
    assert results.cells["method"].tolist() == ["original", "retrain", "ga", "salun"]
    assert list(zip(results.masks["method"], results.masks["mask"], strict=True)) == [
        ("rl", "none"),
        ("salun", "salient"),
        ("rl", "random"),
    ]
    before = {p.name: p.stat().st_mtime_ns for p in results.lab.store.folder.glob("*-*")}
    again = run(results.params)
    assert {p.name: p.stat().st_mtime_ns for p in results.lab.store.folder.glob("*-*")} == before
    pd.testing.assert_frame_equal(again.cells, results.cells)
    table = read_table(results.lab.store.folder.parent, "diffusion")
    assert len(table) == len(results.cells) + len(results.masks)


def test_the_table_for_a_paper_says_what_it_needs(results, capsys):
    assert main(["results", "diffusion", "--out", str(results.lab.folder), "--format", "latex"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "booktabs" in first and lines[0].startswith("\\begin{table}")


def test_a_model_is_exported_as_a_diffusers_folder_with_its_mask_and_a_card(results, tmp_path):
    row = results.cells[results.cells["method"] == "salun"].iloc[0]
    export(row["cell"], tmp_path, out_dir=results.lab.folder)
    unet, _ = load_diffusion(tmp_path)
    assert same(unet, results.lab.model(result_of(results.lab, row)))
    assert load_mask(tmp_path / "mask.safetensors")
    assert "pipeline_tag: unconditional-image-generation" in (tmp_path / "README.md").read_text("utf8")


@pytest.mark.parametrize("damage", ["swapped", "truncated", "edited"])
def test_damaged_weights_and_samples_are_never_taken_for_those_of_the_cell(results, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(results.lab.folder, out)
    lab = DiffusionParams.load(GIVEN | {"out_dir": str(out)}).lab()
    mine, other = (result_of(lab, results.cells.query("method == @name").iloc[0]) for name in ("salun", "ga"))
    expected = lab.model(mine).state_dict()
    for stage, suffix in (("unlearned", "model"), ("samples_cell", "samples")):
        file, source = (out / "cells" / f"{r.content[stage]}.{suffix}.safetensors" for r in (mine, other))
        content = file.read_bytes()
        assert content != source.read_bytes()
        file.write_bytes(
            {
                "swapped": source.read_bytes(),
                "truncated": content[:-9],
                "edited": content[:-1] + bytes([content[-1] ^ 1]),
            }[damage]
        )
    for read in (lab.model, lab.weights_file, lab.samples):
        with pytest.raises(UserError, match=f"damaged, or is not what .* delete it and {mine.key.name}.json"):
            read(mine)
    assert lab.model(other)
    assert main(["export", mine.key.name, str(tmp_path / "shared"), "--out", str(out)]) == 0
    assert same_weights(load_diffusion(tmp_path / "shared")[0].state_dict(), expected)
    card = (tmp_path / "shared/README.md").read_text("utf8")
    assert "the weights it kept are damaged" in card and "computed, to the last bit" in card
    (out / "cells" / f"{mine.key.name}.json").unlink()  # as the sentence says
    again = run(DiffusionParams.load(GIVEN | {"out_dir": str(out)}))
    assert same_weights(again.lab.model(mine).state_dict(), expected)
    assert again.lab.samples(mine)[0].equal(results.lab.samples(mine)[0])


def test_a_table_is_not_made_with_another_reference_than_the_one_stored(results, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(results.lab.folder, out)
    shutil.rmtree(out / "measured")
    (reference,) = (out / "cells").glob("reference-*.safetensors")
    content = reference.read_bytes()
    reference.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="reference-.* is not what it was stored as: delete it and cell-"):
        read_table(out, "diffusion")
    name = next(iter(results.cells["cell"]))
    (out / "cells" / f"{name}.json").unlink()
    run(DiffusionParams.load(GIVEN | {"out_dir": str(out)}))
    assert (
        read_table(out, "diffusion")["FD"].tolist()
        == read_table(results.lab.folder, "diffusion")["FD"].tolist()
    )


def test_a_reference_that_cells_share_is_hashed_once_for_each_table(results, tmp_path, monkeypatch):
    out, hashed = tmp_path / "out", []
    shutil.copytree(results.lab.folder, out)
    shutil.rmtree(out / "measured")
    real = tables_of_runs.is_whole
    monkeypatch.setattr(
        tables_of_runs, "is_whole", lambda file, of: hashed.append(file.name) or real(file, of)
    )
    made = tables_of_runs.Table(out, "diffusion", {})
    entries = [{"cell": name, "reported": True} for name in results.cells["cell"]]
    for count in (1, 2):  # one that is damaged in between is seen
        made.rows(entries)
        assert sum(name.startswith("reference-") for name in hashed) == count
        made.measured = tables_of_runs.Measured(tmp_path / "none kept")
    assert len(entries) > 1


def same_weights(found, expected):
    return all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_kill_between_training_and_storing_costs_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion_lab, "LONG", 1)
    params = DiffusionParams.load(
        GIVEN | {"out_dir": str(tmp_path), "methods": ["original"], "masks": ["none"]}
    )
    lab, cell = params.lab(), Cell(0, Scenario("class", target=3), "retrain")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lab, "weights", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.run(cell)
    assert len(list(tmp_path.rglob("training-*.pt"))) == 1  # that of Retrain; the original model is stored

    def trained(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(DiffusionTask, "loss", trained)
    assert params.lab().run(cell).content["status"] == "done"
    assert not list(tmp_path.rglob("training-*.pt"))


def test_a_kill_between_batches_of_samples_costs_no_more_than_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "EVERY", 0.0)
    given = GIVEN | {"methods": ["original"], "masks": ["none"], "sample_batch": 7}
    cell = Cell(0, Scenario("class", target=3), "original")
    undisturbed = DiffusionParams.load(given | {"out_dir": str(tmp_path / "undisturbed")}).lab()
    expected = undisturbed.samples(undisturbed.run(cell))
    lab = DiffusionParams.load(given | {"out_dir": str(tmp_path / "killed")}).lab()
    made = sampling.denoising
    drawn = []

    def killed_at(batch):
        def counted(model, schedule, conditions, *more, **named):
            if len(drawn) == batch:
                raise KeyboardInterrupt
            drawn.append(len(conditions))
            return made(model, schedule, conditions, *more, **named)

        return counted

    monkeypatch.setattr(sampling, "denoising", killed_at(3))
    with pytest.raises(KeyboardInterrupt):
        lab.run(cell)
    kept = lab.store.folder / ".pieces"
    assert drawn == [7, 7, 7] and len(list(kept.rglob("*.safetensors"))) == 3
    damaged = sorted(kept.rglob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    monkeypatch.setattr(sampling, "denoising", killed_at(None))
    result = lab.run(cell)
    assert drawn == [7, 7, 7, 7, 7, 2]  # the damaged one again, and the two that were missing
    assert all(torch.equal(a, b) for a, b in zip(lab.samples(result), expected, strict=True))
    assert not kept.exists()
    assert result.content["sampling_seconds"] > 0


def test_metrics_follow_from_the_stored_samples(results):
    row = results.cells.query("method == 'ga'").iloc[0]
    images, labels = results.lab.samples(result_of(results.lab, row))
    assert images.shape == (30, 1, 8, 8)
    seen = recognise(results.lab.classifier, images, labels, classes=10).counts
    wrong = 3 - int(seen[3, 3])
    assert row["UA"] == pytest.approx(wrong / 3)
    others = [c for c in range(10) if c != 3]
    assert row["OA"] == pytest.approx(sum(int(seen[c, c]) for c in others) / 27)
    assert row["strays"] == pytest.approx(sum(int(seen[c, 3]) for c in others) / 27)


def test_stored_samples_are_those_of_the_stored_model(results):
    """Drawn again one by one, from other places in the batch."""
    row = results.cells.query("method == 'salun'").iloc[0]
    found = result_of(results.lab, row)
    images, labels = results.lab.samples(found)
    again = sample(
        results.lab.model(found),
        results.lab.schedule,
        labels[-2:],
        streams=[9 * 1_000_000 + 1, 9 * 1_000_000 + 2],
        guidance=results.params.guidance,
        steps=3,
        batch_size=1,
    )
    assert (again.int() - images[-2:].int()).abs().max() <= 1


def test_retrain_sees_no_image_of_the_class(results):
    row = results.cells.query("method == 'retrain'").iloc[0]
    labels = results.lab.data.labels[: results.lab.data.n_train]
    assert row["n_forget"] == int((labels == 3).sum())
    assert row["n_retain"] == int((labels != 3).sum())


def test_weights_outside_the_mask_are_those_of_the_original(results):
    lab = results.lab
    scenario_mask, _ = lab.mask(
        0, Scenario("class", target=3), MaskSpec("salient", results.params.keep, results.params.score)
    )
    original = lab.original(0).state_dict()
    row = results.masks.query("mask == 'salient'").iloc[0]
    changed = lab.model(result_of(lab, row)).state_dict()
    assert all(torch.equal(original[n][~m], changed[n][~m]) for n, m in scenario_mask.items())
    assert any(not torch.equal(original[n], changed[n]) for n in scenario_mask)


def test_a_model_of_ones_own_takes_the_place_of_the_original(tmp_path):
    net = build_unet(classes=10, channels=1, size=8, widths=[4, 8], layers=1, seed=5)
    folder = save_diffusion(net.eval(), noise_schedule(steps=100), tmp_path / "mine")
    given = BROUGHT | {"methods": ["original"], "masks": [], "out_dir": str(tmp_path / "out")}
    given |= {"pretrained": str(folder)}
    assert run(DiffusionParams.load(given | {"steps": None})).cells["method"].tolist() == [
        "original"
    ]  # nothing is trained
    results = run(DiffusionParams.load(given | {"retrained": "train"}))
    loaded = results.lab.original(0).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in net.state_dict().items())
    assert set(results.cells["width"]) == {4}
    with pytest.raises(UserError, match="widths has no effect here, as pretrained is"):
        DiffusionParams.load(given | {"retrained": "train", "widths": [4, 8]})
    # Retrain is a network of the same kind, not of the preset's.
    row = results.cells.query("method == 'retrain'").iloc[0]
    retrained = results.lab.model(result_of(results.lab, row)).state_dict()
    assert {n: w.shape for n, w in retrained.items()} == {n: w.shape for n, w in loaded.items()}
    with pytest.raises(UserError, match="sample_steps 200 is more than the model's 100 steps"):
        DiffusionParams.load(given | {"steps": None, "sample_steps": 200}).lab()
    longer = save_diffusion(net, noise_schedule(steps=3000), tmp_path / "longer")
    DiffusionParams.load(given | {"pretrained": str(longer), "steps": None, "sample_steps": 2000}).lab()


def test_a_retrained_model_of_ones_own_costs_no_training(tmp_path, monkeypatch):
    nets = [
        build_unet(classes=10, channels=1, size=8, widths=[4, 8], layers=1, seed=i).eval() for i in (5, 6)
    ]
    folders = [
        str(save_diffusion(net, noise_schedule(steps=100), tmp_path / str(i))) for i, net in enumerate(nets)
    ]
    preset = DiffusionParams.read_preset("quick") | {"noise_floor": 2}  # which a preset may give in vain
    (tmp_path / "floor.yaml").write_text(json.dumps(preset))
    given = BROUGHT | {"masks": [], "out_dir": str(tmp_path / "out"), "steps": None, "methods": ["ga"]}
    given |= {"preset": str(tmp_path / "floor.yaml"), "pretrained": folders[0], "retrained": folders[1]}

    def trained(*_, **__):
        raise AssertionError("a model was trained")

    monkeypatch.setattr(DiffusionTask, "train", trained)
    results = run(DiffusionParams.load(given))
    assert results.cells["method"].tolist() == ["retrain", "ga"]
    row = results.cells.iloc[0]
    assert same(results.lab.model(result_of(results.lab, row)), nets[1].train()) and pd.isna(row["seconds"])
    assert "Retrain" in str(tables.generation_table(results.cells)) and "nan" not in str(
        text.sentences(results.cells)
    )
    # Its files are part of its key, and of no other cell's.
    save_diffusion(nets[0], noise_schedule(steps=100), tmp_path / "1")
    again = run(DiffusionParams.load(given)).cells["cell"]
    assert again[0] != row["cell"] and again[1] == results.cells["cell"][1]
    for wrong, said in (
        ({"pretrained": None}, "retrained is given without pretrained"),
        ({"forget_class": [1, 3]}, "without one class: give one forget_class"),
        ({"retrained": str(tmp_path)}, "unet/config.json is missing"),
    ):
        with pytest.raises(UserError, match=said):
            DiffusionParams.load(given | wrong).lab()
    save_diffusion(nets[1], noise_schedule(steps=90), tmp_path / "1")
    with pytest.raises(UserError, match="noise schedules .* differ"):
        DiffusionParams.load(given).lab()
    other = build_unet(classes=10, channels=1, size=8, widths=[4, 4], layers=1, seed=5)
    save_diffusion(other, noise_schedule(steps=100), tmp_path / "1")
    with pytest.raises(UserError, match="networks .* differ"):
        DiffusionParams.load(given).lab()


def test_weights_in_pickles_are_refused_by_name(tmp_path):
    net = build_unet(classes=10, channels=1, size=8, widths=[4, 8], layers=1, seed=5)
    folder = save_diffusion(net, noise_schedule(steps=100), tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(net.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="diffusion_pytorch_model.bin is a pickle, which can run code"):
        load_diffusion(folder)


def test_the_time_of_an_interrupted_training_counts(tmp_path, monkeypatch):
    """Retrain's run time is that of all its runs, and what other cells cost does not change."""
    params = DiffusionParams.load(GIVEN | {"out_dir": str(tmp_path), "minutes": 5})
    lab, retrain = params.lab(), Cell(0, Scenario("class", target=3), "retrain")
    lab.original(0)
    lab.deadline = 0.0
    for step in (1, 2):
        with pytest.raises(Paused, match=f"after {step} of 20"):
            lab.run(retrain)
    (file,) = tmp_path.rglob("training-*.pt")
    spent = seconds_behind(file)
    assert spent > 0
    parts = torch.load(file, weights_only=True)
    torch.save(parts | {"seconds": 5000.0}, file)
    other = lab.run(Cell(0, retrain.scenario, "ga", settings={"steps": 1}))
    assert other.content["seconds"] < 1000
    assert 5000 < params.lab().run(retrain).content["seconds"] < 6000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image_size": 7, "widths": [8, 8]}, "cannot be halved"),
        ({"forget_class": [10]}, "out of range"),
        ({"forget_class": []}, "forget_class is empty"),
        ({"methods": ["iu"]}, "unknown method 'iu'"),
        ({"masks": ["salent"]}, "did you mean 'salient'"),
        ({"sample_steps": 2000}, "more than diffusion_steps"),
        ({"pretrained": "/nowhere", "steps": None, "widths": None}, "/nowhere"),
        ({"pretrained": "data/models/tiny-sd", "steps": None, "widths": None}, "UNet2DConditionModel"),
        ({"settings": {"rl": {"rate": 1}}}, "setting of RL"),
        ({"dataset": "imagefolder"}, "needs data_dir"),
        ({"head": 1000}, "head 1000 is more than the .* channels"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_trained(tmp_path, wrong, said):
    with pytest.raises(UserError, match=said) as refusal:
        run(DiffusionParams.load(GIVEN | {"out_dir": str(tmp_path)} | wrong))
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "cells").glob("*.json"))


def test_a_diverging_method_is_a_result(tmp_path, results):
    given = GIVEN | {"out_dir": str(results.params.out_dir), "methods": ["ga"], "masks": []}
    again = run(DiffusionParams.load(given | {"settings": {"ga": {"lr": 1e30}}}))
    row = again.cells.query("method == 'ga'").iloc[0]
    assert row["status"] == "diverged"
    assert pd.isna(row["UA"])


def test_strengths_multiply_the_steps_of_every_method_under_its_own_and_under_other_masks() -> None:
    given = {"methods": ["original", "ga", "salun"], "masks": ["none", "salient", "random"]}
    params = DiffusionParams.load({"preset": "quick", **given, "forget_steps": 50, "strengths": [0.1, 2]})
    ends = ("original", "retrain")
    cells = params.cells_of(Scenario("class", target=3), 0, (*ends, "ga", "salun"))
    along = [cell for cell in cells if cell.tags["study"] == "frontier"]
    steps = {
        name: [c.settings["steps"] for c in along if (c.method, c.mask.kind) == name]
        for name in {(c.method, c.mask.kind) for c in along}
    }
    assert steps == {
        ("ga", "none"): [2, 20, 40],
        ("salun", "salient"): [5, 50, 100],
        ("rl", "random"): [5, 50, 100],
    }
    # At its own strength each is a cell of the other parts, and computed once.
    others = {c.label: c.what for c in cells if c.tags["study"] != "frontier"}
    assert all(c.what in others.values() for c in along if c.tags["strength"] == 1)


def test_fewer_samples_of_other_classes_are_the_first_of_those_that_there_would_be(tmp_path) -> None:
    few, many = (
        run(
            DiffusionParams.load({**GIVEN, "masks": [], "methods": ["original"], "out_dir": tmp_path, **more})
        )
        for more in ({"samples_other": 2}, {})
    )
    (images, labels), (whole, every) = (
        made.lab.samples(result_of(made.lab, made.cells.iloc[0])) for made in (few, many)
    )
    forgotten = few.params.forget_class[0]
    assert [int((labels == c).sum()) for c in range(10)] == [3 if c == forgotten else 2 for c in range(10)]
    for c in range(10):
        mine = images[labels == c]
        assert torch.equal(mine, whole[every == c][: len(mine)])
    assert (few.cells["n_class"].iloc[0], few.cells["n_other"].iloc[0]) == (3, 2)
    with pytest.raises(UserError, match="samples_other 4 is more than samples 3"):
        DiffusionParams.load({**GIVEN, "samples_other": 4})


def test_several_classes_are_forgotten_by_one_model(tmp_path, results):
    given = {**GIVEN, "methods": ["original", "salun"], "masks": ["salient"], "forget_class": [3, 5]}
    found = run(DiffusionParams.load(given | {"together": True, "out_dir": str(tmp_path)}))
    assert found.cells["method"].tolist() == ["original", "retrain", "salun"]
    assert found.cells["scenario"].unique().tolist() == ["classes 3, 5"]
    assert found.cells["forgotten"].unique().tolist() == ["3, 5"]
    lab, row = found.lab, found.cells.iloc[-1]
    scenario = scenario_of(lab, row)
    assert scenario == Scenario("class", target=(3, 5))
    parts = lab.task(0, scenario).parts
    assert set(parts["forget"].labels.tolist()) == {3, 5}
    assert set(parts["retain"].labels.tolist()) == set(range(10)) - {3, 5}
    assert row["n_forget"] == parts["forget"].n
    outputs = lab.outputs(result_of(lab, row))
    seen = outputs.logits.argmax(1)
    gone = torch.isin(outputs.labels, torch.tensor([3, 5]))
    assert int(gone.sum()) == 2 * 3  # samples of each
    assert row["UA"] == pytest.approx(float((~torch.isin(seen[gone], torch.tensor([3, 5]))).float().mean()))
    assert row["OA"] == pytest.approx(float((seen == outputs.labels)[~gone].float().mean()))
    assert row["n_distance"] == 8 * 3
    one = results.lab.outputs(result_of(results.lab, results.cells.iloc[-1])).reference
    assert outputs.reference.real.n < one.real.n or (outputs.reference.real.mean != one.real.mean).any()
    again = run(
        DiffusionParams.load({**GIVEN, "forget_class": [3], "together": True, "out_dir": results.lab.folder})
    )
    assert again.cells["cell"].tolist() == results.cells["cell"].tolist()  # one class is one class
