import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from salun_core.errors import UserError
from salun_core.experiments.generation.lab import result_of
from salun_core.experiments.runs import pieces
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.text_to_image import probes, unsafe
from salun_core.experiments.text_to_image.params import TextToImageParams
from salun_core.experiments.text_to_image.probes import ADVERSARIAL, ATTACKS, RELEARNED, UNNAMED, Prober
from salun_core.experiments.text_to_image.unsafe import UnsafeParams, run
from salun_core.metrics.generation.detection import Redacted, detect
from salun_core.metrics.generation.erasure import erasure_summary
from salun_core.pages import stored_samples
from salun_core.pages.findings import unsafe as findings
from salun_core.pages.tables import unsafe as tables
from salun_core.pages.text import unsafe as text

SMALL = {
    "methods": ["original", "uce"],
    "samples": 4,
    "sample_steps": 2,
    "judge_width": 8,
    "judge_epochs": 1,
    "probe_samples": 7,
    "attack_steps": 2,
    "attack_samples": 3,
    "relearn_steps": 2,
    "relearn_every": 1,
    "relearn_samples": 3,
    "pictures": 5,
    "prompt_steps": 2,
    "prompt_tokens": 3,
    "ring_population": 4,
    "ring_generations": 2,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    torch.set_num_threads(1)
    params = UnsafeParams.load({**SMALL, "out_dir": tmp_path_factory.mktemp("runs")})
    return run(params)


def test_every_model_goes_through_every_probe_and_the_original_first(results):
    table = results.probes.pivot_table(index="method", columns="probe", values="shown", sort=False)
    assert table.index.tolist() == ["original", "uce"]
    assert table.columns.tolist() == [
        "direct",
        "indirect",
        "misspelt",
        "composed",
        UNNAMED,
        *ATTACKS,
    ]
    assert ATTACKS == (ADVERSARIAL, "UnlearnDiffAtk", "P4D", "Ring-A-Bell", RELEARNED)
    assert table.stack().between(0, 1).all()
    assert results.curves.groupby("method", sort=False)["step"].apply(list).tolist() == [[0, 1, 2]] * 2
    assert erasure_summary(results.probes)["method"].tolist() == ["original", "uce"]


def test_a_network_of_others_goes_through_every_probe_and_attack(results, tmp_path):
    lab, mine = results.lab, results.cells.set_index("method").loc["uce"]
    shutil.copy(lab.weights_file(result_of(lab, mine)), tmp_path / "erased.safetensors")
    given = {**SMALL, "unlearned": [tmp_path / "erased.safetensors"], "out_dir": lab.folder}
    found = run(UnsafeParams.load(given))
    for table, columns in (
        (found.probes, ["probe", "shown", "n", "utility"]),
        (found.curves, ["step", "shown"]),
        (found.attacks, ["attack", "text", "before", "after", "loss_after", "passes"]),
        (found.counts, ["use", "category", "threshold", "count"]),
    ):
        parts = [
            table[table["method"] == name][columns].reset_index(drop=True)
            for name in ("uce", "erased (given)")
        ]
        assert len(parts[0]) and parts[0].equals(parts[1])
    assert "erased (given)" in str(tables.attacks_table(found.attacks))
    assert "3 models" in str(text.seconds_sentence(found.lab, found.probes, found.cells))


def test_attacks_in_prompt_space_are_reported_with_their_budget(results):
    found = results.attacks
    assert found["method"].tolist() == ["original"] * 3 + ["uce"] * 3
    assert found["attack"].tolist() == ["UnlearnDiffAtk", "P4D", "Ring-A-Bell"] * 2
    assert (found["n"] == 3).all() and found[["before", "after"]].stack().between(0, 1).all()
    shown = results.probes.set_index(["method", "probe"])["shown"]
    for _, row in found.iterrows():
        assert row["after"] == shown[row["method"], row["attack"]]
    black_box = found[found["attack"] == "Ring-A-Bell"]
    assert (black_box["passes"] == 0).all() and black_box["text"].nunique() == 1
    assert (found.loc[found["attack"] != "Ring-A-Bell", "passes"] > 0).all()
    # With its own prompt the original predicts what it does.
    p4d = found[found["attack"] == "P4D"].set_index("method")["loss_before"]
    assert p4d["original"] == 0 and p4d["uce"] > 0


def test_what_relearning_does_not_need_leaves_the_accelerator(results, monkeypatch):
    lab, there = replace(results.lab), []

    @contextmanager
    def resting(*networks):
        there.append(networks)
        yield
        there.append("back")

    def curve(model, *_, **__):
        there.append("relearning")
        assert (
            model.conv_in.gradient_checkpointing
        )  # as the task has it, also where the task is made only now
        return [(0, 0.0)]

    monkeypatch.setattr(probes, "resting", resting)
    monkeypatch.setattr(probes, "relearning_curve", curve)
    made, lab._task = lab.problem.task, None

    def task(*given):
        lab.network.conv_in.gradient_checkpointing = True
        return made(*given)

    monkeypatch.setattr(lab.problem, "task", task)
    prober = Prober(lab, results.prober.how)  # with no attack in prompt space, so its results are others
    result = result_of(results.lab, results.cells.iloc[1])
    cell = Cell(0, Scenario("class", target=7), "original")
    try:
        prober._computed(cell, result, 7, prober.key(cell, result, 7))
    finally:
        del lab.network.conv_in.gradient_checkpointing
    assert there == [(lab.network, lab.clip.model), "relearning", "back"]


def test_an_attack_that_fails_does_not_cost_the_images_that_were_drawn_before_it(results, monkeypatch):
    few = Prober(results.lab, results.prober.how.model_copy(update={"probe_samples": 3}))
    result = result_of(results.lab, results.cells.iloc[1])
    cell = Cell(0, Scenario("class", target=7), "original")

    def failing(*_, **__):
        raise RuntimeError("an attack failed")

    with monkeypatch.context() as patched:
        patched.setattr(probes, "search_embedding", failing)
        with pytest.raises(RuntimeError, match="an attack failed"):
            few.run(cell, result, 7)
    monkeypatch.setattr(Prober, "_unnamed", failing)  # they are not drawn again
    probed = few.run(cell, result, 7)
    assert few.detections(probed).n == 3 and [UNNAMED, 3] in [row[::2] for row in probed.content["shown"]]
    longer = Prober(results.lab, few.how.model_copy(update={"attack_steps": 3})).run(cell, result, 7)
    assert longer.key.name != probed.key.name and longer.files != {} and few.detections(longer).n == 3


def test_a_run_killed_between_prompts_goes_on_where_it_was(results, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "EVERY", 0.0)
    monkeypatch.setattr(probes, "CHUNK", 1)
    prober = Prober(results.lab, results.prober.how.model_copy(update={"probe_samples": 5}))
    monkeypatch.setattr(prober, "lab", replace(prober.lab, sampling=sampling_in_batches_of(prober.lab, 2)))
    model, drawn, searched, killed = results.lab.pipe.unet, prober._drawn, [], []

    def counted(*given, **more):
        if len(searched) == 2 and not killed:
            raise KeyboardInterrupt
        searched.append(given)
        return drawn(*given, **more)

    monkeypatch.setattr(prober, "_drawn", counted)
    with pytest.raises(KeyboardInterrupt):
        prober._unnamed(model, 7, Pieces(tmp_path / "a"))
    killed.append(True)
    resumed = prober._unnamed(model, 7, Pieces(tmp_path / "a"))
    assert len(searched) == 3  # batches of 2, 2 and 1
    whole = prober._unnamed(model, 7, Pieces(tmp_path / "b"))
    assert len(searched) == 6
    for name in ("images", "labels", "scores", "boxes"):
        assert torch.equal(getattr(resumed[0], name), getattr(whole[0], name))
    assert torch.equal(resumed[1].images, whole[1].images) and resumed[1].note == whole[1].note
    assert torch.equal(resumed[1].covered, whole[1].covered)


def sampling_in_batches_of(lab, size):
    return lab.sampling.model_copy(update={"sample_batch": size})


def test_the_search_finds_the_original_at_once(results):
    from salun_core.experiments.runs.store import read_results

    probes = [r for r in read_results(results.lab.store.folder) if r.key.kind == "probe"]
    original = next(r for r in probes if r.key.what["cell"]["method"] == "original")
    assert [loss for _, loss in original.content["attack"]["curve"]] == [0.0, 0.0, 0.0]


def test_scores_are_stored_once_and_counted_at_every_threshold(results):
    for name, mine in results.counts.groupby("method"):
        assert set(mine["use"]) == {"range", "bars", "concept"}, name
        assert mine.loc[mine["use"] == "range", "threshold"].nunique() == 16
        assert mine.loc[mine["use"] == "bars", "threshold"].unique().tolist() == [0.5]
        assert (mine["n"] == 7).all()
    shown = results.probes[results.probes["probe"] == UNNAMED].set_index("method")["shown"]
    bars = results.counts[(results.counts["use"] == "bars") & (results.counts["category"] == "7")]
    assert (bars.set_index("method")["images"] / 7).to_dict() == pytest.approx(shown.to_dict())


def test_only_covered_images_are_stored(results):
    lab, forgotten = results.lab, 7
    for shown in stored_samples.covered_by_name(results).values():
        assert isinstance(shown, Redacted) and len(shown.images) == 5
        again = detect(results.prober.detector, shown.images)
        assert shown.covered.tolist() == [bool((image == 0).all()) for image in shown.images]
        assert again.n == 5
    names = {path.name.split(".", 1)[1] for path in lab.store.folder.glob("probe-*")}
    assert names == {"json", "detections.safetensors", "redacted.safetensors"}
    # The images that are covered are those in which the detector reports the digit at all.
    probed = stored_samples.covered_by_name(results)["Original"]
    row = results.probes[results.probes["method"] == "original"].iloc[0]
    from salun_core.experiments.runs.store import read_result

    stored = read_result(lab.store.folder / f"{row['probe_cell']}.json")
    found = results.prober.detections(stored).only(["7"])
    assert set(found.images[found.images < 5].tolist()) == set(probed.covered.nonzero().view(-1).tolist())
    assert results.prober.concept(forgotten) == ["7"]


def test_a_finished_run_is_read_from_the_store(results):
    again = run(results.params)
    assert again.probes.equals(results.probes)
    assert again.lab._task is None  # nothing was computed


def test_neighbours_come_first(results):
    order = results.prober.neighbours(7)
    assert sorted([*order, 7]) == list(range(10))
    mine = results.damage[results.damage["method"] == "uce"]
    assert mine["class"].tolist() == [str(k) for k in order]
    assert (results.damage.loc[results.damage["method"] == "original", "drop"] == 0).all()


def test_what_the_notebook_shows(results):
    real = results.prober.real(7)
    assert real["n"].max() == (results.lab.data.labels[results.lab.data.n_train :] != 7).sum()
    summary = erasure_summary(results.probes)
    made = [
        tables.card_table(results.prober.card(results.cells.iloc[0])),
        tables.prompts_table(results),
        tables.counts_table(results.counts),
        tables.probes_table(summary, results.probes),
        tables.neighbours_table(results.damage),
        tables.attacks_table(results.attacks),
    ]
    assert all(len(table.frame) and table.caption for table in made)
    shown = dict(made[0].frame.to_numpy())
    assert "judge" in shown["Detector"] and shown["Safety checker"] == "off"
    for said in (
        text.attack_sentences(results),
        text.unnamed_sentences(results, real),
        text.seconds_sentence(results.lab, results.probes, results.cells),
    ):
        assert "nan" not in str(said)


def test_the_published_counts_are_those_of_the_file():
    assert findings.published_counts().counts == (0, 9, 9, 2, 3, 4, 2, 4)


def test_prompts_from_a_file_take_the_place_of_the_indirect_ones(results, tmp_path):
    path = tmp_path / "i2p.csv"
    path.write_text(
        "prompt,categories,sd_seed,sd_guidance_scale\n"
        "a photo of a seven,sexual,5,7\na photo of a three,hate,6,3\na photo of a five,sexual,9,3\n"
    )
    given = {**SMALL, "out_dir": tmp_path, "prompts_file": path, "prompts_rows": 3}
    params = UnsafeParams.load(given)
    assert params.unnamed.read().guidance == ()
    chosen = UnsafeParams.load(
        {**given, "prompts_category": "sexual", "prompts_guidance": True}
    ).unnamed.read()
    assert chosen.seeds == (5, 9) and chosen.guidance == (6.0, 2.0)
    prober = Prober(results.lab, results.prober.how, chosen)
    assert prober.unnamed(7).seeds == (5, 9, 5, 9, 5, 9, 5)
    # Prompts are drawn in groups of one guidance; each keeps its place.
    model = results.lab.pipe.unet
    found, _ = prober._unnamed(model, 7, Pieces(tmp_path / "pieces"))
    alone = [
        prober._drawn(model, [text], 7, streams=[seed], guidance=w)
        for text, seed, w in zip(chosen.texts, chosen.seeds, chosen.guidance, strict=True)
    ]
    expected = detect(prober.detector, torch.cat([alone[i % 2] for i in range(7)]))
    order = (found.images * 10 + found.labels).argsort()
    assert found.images[order].tolist() == expected.images.tolist()
    torch.testing.assert_close(found.scores[order], expected.scores, atol=1e-3, rtol=1e-3)


def drawn_by_the_pipeline(folder, **more):
    prompts = folder / "prompts.csv"
    prompts.write_text("prompt,categories,sd_seed,sd_guidance_scale\na picture,sexual,5,7\n")
    return UnsafeParams.load(
        {
            **SMALL,
            "out_dir": folder,
            "prompts_file": prompts,
            "prompts_rows": 1,
            "own_images": 8,
            "class_names": ["seven", "three"],
            "class_prompt": "a photo of a {}",
            "test_prompts": ["a photo of a {}"],
            "forget_class": [0],
            "replacement": 1,
            **more,
        }
    )


def test_a_concept_without_a_data_set_is_drawn_by_the_pipeline(tmp_path):
    params = drawn_by_the_pipeline(tmp_path)
    data = params.lab().data
    assert data.labels.tolist() == [0] * 8 + [1] * 8 + [0] * 2 + [1] * 2
    assert data.n_train == 16 and data.classes == ("seven", "three")
    assert torch.equal(params.lab().data.images, data.images)
    prober = Prober(params.lab(), params.probing)
    with pytest.raises(UserError, match="give prompts_file"):
        prober.unnamed(0)
    params = params.model_copy(update={"unnamed": params.unnamed.model_copy(update={"prompts_file": None})})
    with pytest.raises(UserError, match="unsafe needs prompts_file"):
        params.lab()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": "/nowhere"}, "/nowhere"),
        ({"forget_class": ["six"]}, "class of own images 'six'"),
        ({"detector": "nudenet"}, "the package nudenet is not installed"),
    ],
)
def test_what_is_missing_is_said_before_images_are_drawn(given, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    monkeypatch.setattr(unsafe, "sample_prompts", lambda *_, **__: pytest.fail("images were drawn"))
    with pytest.raises(UserError, match=message):
        drawn_by_the_pipeline(tmp_path, **given).lab()


def test_prompts_are_checked_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(UnsafeParams, "load_pipe", lambda self: pytest.fail("the pipeline was loaded"))
    monkeypatch.chdir(tmp_path)
    for file, message in (
        ("/nowhere.csv", "cannot read /nowhere.csv"),
        ("data/sets/i2p_benchmark.csv", r"i2p_benchmark\.csv is missing: run .*fetch i2p.*SHA-256"),
    ):
        with pytest.raises(UserError, match=message):
            UnsafeParams.load({**SMALL, "out_dir": tmp_path, "prompts_file": file}).lab()


def test_prompts_that_are_cut_off_are_counted(tmp_path, capsys):
    path = tmp_path / "prompts.csv"
    path.write_text(
        "prompt,categories,evaluation_seed,evaluation_guidance\n"
        f"a photo of a seven,sexual,5,7\n{'a very ' * 20} old photo,hate,6,3\n,hate,7,3\n"
    )
    given = {**SMALL, "out_dir": tmp_path, "prompts_file": path, "prompts_rows": 3}
    params = UnsafeParams.load(given)
    lab = params.lab()
    said = capsys.readouterr().err
    assert (
        "1 of 3 prompts of prompts are cut off where the text encoder ends: the prompt 'a very a very" in said
    )
    assert "has 85 tokens, and 24 are read; shorten them" in said
    prober = Prober(lab, params.probing, params.unnamed.read())
    drawn = prober._unnamed(lab.pipe.unet, 7, Pieces(tmp_path / "pieces"))[0]
    assert drawn.n == 7


def test_attacks_that_need_more_tokens_than_a_prompt_has_are_refused_at_once(tmp_path):
    given = {**SMALL, "out_dir": tmp_path, "prompt_tokens": 23}
    params = UnsafeParams.load(given)
    with pytest.raises(
        UserError, match="prompt_tokens is 23, and a prompt of this pipeline holds 22: take fewer"
    ):
        params.lab()


def test_nudenet_blackens_the_picture_of_samples(tmp_path):
    pytest.importorskip("nudenet")
    params = UnsafeParams.load({**SMALL, "out_dir": tmp_path, "detector": "nudenet"})
    lab = params.lab()
    images = torch.randint(0, 256, (2, 3, 16, 16)).byte()
    assert lab.covering(images).shape == images.shape
    prober = Prober(lab, params.probing)
    assert len(prober.concept(7)) == 9 and prober.categories["feet"] == ("FEET_EXPOSED",)
    assert prober.shown(images, 7) in (0.0, 0.5, 1.0)


def test_both_quick_presets_unlearn_alike():
    """Then the two notebooks share their models."""
    ours, theirs = (params.read_preset("quick") for params in (UnsafeParams, TextToImageParams))
    assert {name: ours.get(name) for name in theirs} == theirs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"detector": "nudnet"}, "did you mean 'nudenet'"),
        ({"own_images": 5}, "own_images needs class_names"),
        ({"keep_models": False}, "unsafe probes the models it made and what they draw"),
        ({"threshold": 0}, "threshold"),
        ({"prompt_attacks": ["p4"]}, "did you mean 'p4d'"),
        ({"atack_steps": 1}, "did you mean 'attack_steps'"),
    ],
)
def test_impossible_parameters_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        UnsafeParams.load(given)


def test_of_concepts_forgotten_together_each_is_probed(tmp_path):
    given = {**SMALL, "methods": ["uce"], "forget_class": [7, 3], "together": True}
    found = run(UnsafeParams.load({**given, "out_dir": tmp_path}))
    shown = found.probes.pivot_table(
        index=["method", "forgotten"], columns="probe", values="shown", sort=False
    )
    assert shown.index.tolist() == [("original", "7"), ("original", "3"), ("uce", "7"), ("uce", "3")]
    assert shown.notna().all(axis=None)
    assert found.probes["probe_cell"].nunique() == 4
    assert (found.curves["images"] == found.params.probing.relearn_images).all()
    labels = [
        found.prober.examples(Cell(0, Scenario("class", target=(7, 3)), "original"), c).labels for c in (7, 3)
    ]
    assert [len(set(own.tolist())) for own in labels] == [1, 1] and labels[0][0] != labels[1][0]
    assert set(stored_samples.covered_by_name(found)) == {"Original", "UCE"}
