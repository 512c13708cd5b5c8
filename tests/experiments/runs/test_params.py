import json

import pytest
import torch

from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.runs import trained
from salun_core.experiments.runs.params import assigned_names
from salun_core.paths import project_root

MORE = {"classification": {"tune": False}}  # without which pretrained is refused
SEARCH = {"rl": {"lr": {"low": 0.1, "high": 1}}}


def load(**given):
    return ClassificationParams.load(given)


def test_the_preset_fills_what_is_not_given():
    params = load(keep=0.3)
    preset = ClassificationParams.read_preset("quick")
    assert params.keep == 0.3
    assert params.width == preset["width"]
    assert load(width=None).width == preset["width"]  # None means: as the preset says


def test_lists_may_come_as_text_as_papermill_gives_them():
    params = load(seeds="[4, 5]", methods="rl,salun", scenario="class", forget_class="7")
    assert params.seeds == (4, 5)
    assert params.methods == ("rl", "salun")
    assert params.scenario == ("class",)
    assert load(tune="true", keep="0.25").keep == 0.25
    assert load(seeds=3).seeds == (3,)


def test_numbers_in_exponent_form_are_numbers_in_settings_too():
    assert load(settings={"rl": {"lr": "1e-3"}}).settings["rl"]["lr"] == 1e-3


def test_the_word_none_takes_back_what_a_preset_gives():
    """Where there may be no value: a method, or a class, may be called so."""
    cpu = {"preset": "cifar10-cpu", "data_dir": "."}
    assert ClassificationParams.load(cpu).train_images == 20_000
    for none in ("none", "None"):
        assert ClassificationParams.load({**cpu, "train_images": none, "width": none}).train_images is None
        assert load(retrained=none, data_dir=none).training.retrained is None
    assert load(scenario="class", forget_class="none").forget_class == "none"
    with pytest.raises(UserError, match="keep: input should be a valid number"):
        load(keep="none")


def test_a_preset_takes_from_another_experiments_what_both_have(monkeypatch, tmp_path):
    for name, text in {
        "one/first": "arch: resnet18\nwidth: 8\nmasks: [none]\nkeep: 0.1",
        "one/second": "like: first\nwidth: 16",
        "classification/quick": "{}",
        "classification/mine": "like: one/second\nkeep: 0.2",
        "classification/more": "like: mine\nkepe: 0.3",
    }.items():
        (file := tmp_path / "presets" / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr("salun_core.experiments.runs.params.resources.files", lambda _: tmp_path)
    mine = {"arch": "resnet18", "width": 16, "keep": 0.2}  # classification has no masks
    assert ClassificationParams.read_preset("mine") == mine
    with pytest.raises(UserError, match="preset 'more': unknown parameter 'kepe'"):
        load(preset="more")


def test_a_preset_can_be_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("width: 4\nseeds: [9]\n")
    assert load(preset=str(path)).seeds == (9,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"forget_fracton": 0.1}, "did you mean 'forget_fraction'"),
        ({"preset": "quik"}, "did you mean 'quick'"),
        ({"preset": "none.yaml"}, "none.yaml"),
        ({"dataset": "cifar11"}, "did you mean 'cifar10"),
        ({"arch": "resnet19"}, "did you mean 'resnet"),
        ({"methods": ["salum"]}, "did you mean 'salun'"),
        ({"methods": []}, "methods is empty"),
        ({"forget_fraction": 0}, "forget_fraction must lie between 0 and 1.*got 0"),
        ({"forget_fraction": 1}, "got 1"),
        ({"forget_fraction": 1.5}, "got 1.5"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "repeats"),
        ({"seeds": [1000]}, "tuning_seed 1000"),
        ({"keep": 0}, "keep must lie in"),
        ({"keep": "half"}, "keep"),
        ({"width": -3}, "width.*-3"),
        ({"scenario": "indices"}, "forget_indices"),
        ({"scenario": "sideways"}, "scenario.*sideways"),
        ({"scenario": "random", "forget_class": 3}, "forget_class is given, but scenario is random"),
        ({"dataset": "imagefolder"}, "data_dir"),
        ({"data_dir": "x"}, "leave out data_dir"),
        ({"crop": 8}, "crop 8 shifts images of 8 pixels out of sight"),
        ({"settings": {"rl": {"lrr": 1}}}, "did you mean 'lr'"),
        ({"settings": {"rll": {"lr": 1}}}, "did you mean 'rl'"),
        ({"search": {"rl": {"lr": {"low": 1}}}}, "low and high"),
        (
            {"search": {"rl": {"lr": {"low": True, "high": 2}}}},
            "search.rl.lr.low: .* must be a number, got True",
        ),
        ({"search": {"rl": {"lr": {"choices": [0.1, 0.2, 0.1]}}}}, "the choices repeat 0.1"),
        ({"settings": {"rl": {"lr": 0.1}}, "search": SEARCH}, "lr of rl is fixed in settings"),
        ({"tune": False, "search": SEARCH}, "search has no effect here, as tune is false"),
        ({"recipe": "papr"}, "did you mean 'paper'"),
        ({"deterministic": True, "threads": 2}, "deterministic computes with one thread, and threads is 2"),
        ({"settings": {"rl": {"lr": "1e300"}}}, "RL: lr must be at most 3.4e.38 in size"),
        ({"settings": {"rl": {"epochs": 10**12}}}, "RL: epochs must be at most 1,000,000, got 1000000000000"),
        ({"search": {"rl": {"lr": {"low": 0.1, "high": 1e300}}}}, "RL: lr must be at most 3.4e.38 in size"),
        ({"epochs": 10**6}, "epochs.*100000, got 1000000"),
        ({"train_images": 10**8}, "train_images must be at most 10,000,000, got 100000000"),
        ({"device": "gpu"}, "choose auto, cpu or cuda"),
        ({"device": "cuda:99"}, "no such accelerator"),
    ],
)
def test_bad_input_gets_one_sentence(given, message):
    with pytest.raises(UserError, match=message) as caught:
        load(**given).lab()
    assert "\n" not in str(caught.value)


def test_numbers_that_single_precision_cannot_hold_and_endless_counts_are_refused():
    diffusion = EXPERIMENTS["diffusion"].params
    for given, message in (
        ({"alpha": 1e300}, "alpha must be at most 3.4e.38 in size, which single precision holds, got 1e.300"),
        ({"lr": "1e-300"}, "lr must be 0 or at least 1.2e-38 in size"),
        ({"widths": [10**9, 128]}, "widths must be at most 10,000,000"),
        ({"strengths": [100], "forget_steps": 10**5}, "RL: steps must be at most 1,000,000, got 10000000"),
    ):
        with pytest.raises(UserError, match=message):
            diffusion.load(given)
    assert load(seeds=[20_261_129, 10**14]).seeds == (20_261_129, 10**14)  # a seed is no count


def test_a_notebook_is_refused_for_a_name_it_never_declared():
    cells = ["", "keep: float = 0.5  # share", "# Parameters\nforget_fracton = 0.2", "params = load()"]
    with pytest.raises(UserError, match="forget_fracton"):
        ClassificationParams.from_notebook({"In": cells, "keep": 0.5, "forget_fracton": 0.2})
    cells[2] = "forget_fracton = None"
    with pytest.raises(UserError, match="forget_fracton"):
        ClassificationParams.from_notebook({"In": cells, "keep": 0.5, "forget_fracton": None})


def test_a_notebook_gives_its_parameters():
    cells = ["", "keep: float = 0.5\nseeds: list = None", "keep = 0.2", "params = load()"]
    params = ClassificationParams.from_notebook({"In": cells, "keep": 0.2, "seeds": None})
    assert params.keep == 0.2


def test_assigned_names_are_those_at_the_top_level():
    assert assigned_names("a = 1\nb: int = 2\nif a:\n    c = 3\nd.e = 4") == ["a", "b"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_is_valid(name):
    from importlib import resources

    folder = resources.files("salun_core.experiments") / "presets" / name
    presets = [f.name.removesuffix(".yaml") for f in folder.iterdir()]
    assert "quick" in presets
    for preset in presets:
        given = {"preset": preset}
        if EXPERIMENTS[name].params.read_preset(preset).get("dataset") == "imagefolder":
            given["data_dir"] = "somewhere"
        EXPERIMENTS[name].params.load(given)


def test_settings_of_the_user_stand_above_the_bounds_of_a_preset(tmp_path):
    """And bounds of the user do not come to nothing because of them."""
    preset = tmp_path / "mine.yaml"
    preset.write_text("search: {rl: {lr: {low: 0.1, high: 1}}}\n")
    found = ClassificationParams.load({"preset": str(preset), "settings": {"rl": {"lr": 0.1}}})
    assert "lr" not in found.tuning.bounds("rl")
    preset.write_text("settings: {rl: {lr: 0.1}}\n")
    with pytest.raises(UserError, match="is fixed in settings"):
        ClassificationParams.load({"preset": str(preset), "search": SEARCH})


@pytest.mark.parametrize(
    ("experiment", "given", "message"),
    [
        ("text_to_image", {"judge_weights": "x.pth"}, "judge_weights .*, as judge is 'resnet18'"),
        ("text_to_image", {"judge": "imagenet", "judge_epochs": 2}, "as judge is 'imagenet'"),
        ("text_to_image", {"style_samples": 2}, "as styles is not given"),
        ("unsafe", {"prompts_category": "sexual"}, "prompts_category .*, as prompts_file is not given"),
        ("unsafe", {"lora_lr": 0.1}, "as masks has no lora"),
        ("unsafe", {"attack_steps": 0, "attack_lr": 0.1}, "attack_lr .*, as attack_steps is 0"),
        ("unsafe", {"prompt_attacks": ["p4d"], "ring_strength": 2}, "as prompt_attacks has no ring_a_bell"),
        ("class_wise", {"tune": False, "tuning_budget": 3}, "as tune is false: change that, or leave"),
        *(
            (
                experiment,
                {"pretrained": "x", **MORE.get(experiment, {}), name: value},
                f"{name} has no effect here, as pretrained is 'x' and ",
            )
            for experiment, name, value in (
                ("classification", "epochs", 3),
                ("classification", "recipe", "fast"),
                ("classification", "noise_floor", 2),
                ("diffusion", "steps", 9),
                ("diffusion", "lr", 0.1),
                ("diffusion", "decline", "cosine"),
                ("diffusion", "warmup", 1),
                ("diffusion", "ema", 0.5),
                ("diffusion", "minutes", 5),
                ("diffusion", "noise_floor", 2),
            )
        ),
        (
            "diffusion",
            {"pretrained": "x", "retrained": "y", "steps": 9},
            "as pretrained is 'x' and retrained is 'y': change that, or leave steps out",
        ),
    ],
)
def test_a_parameter_given_in_vain_is_refused(experiment, given, message):
    with pytest.raises(UserError, match=message):
        EXPERIMENTS[experiment].params.load(given)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_a_parameter_needs_exists_and_values_of_presets_may_be_in_vain(name):
    params = EXPERIMENTS[name].params
    known = params.declared()
    checked = params.load({"preset": "quick"})
    for parameter, (_, field) in known.items():
        assert isinstance(checked.idle(parameter), str)
        for clause in filter(None, str((field.json_schema_extra or {}).get("needs", "")).split(" or ")):
            needs = clause.split()
            assert needs[0] in known and len(needs) != 2


def test_a_stability_run_spreads_settings_without_tuning():
    EXPERIMENTS["stability"].params.load({"tune": False, "search": SEARCH, "tuning_seed": [1000]})


@pytest.mark.parametrize("has", [True, False])
def test_a_processor_without_bfloat16_says_that_it_emulates_it_and_only_there(has, monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    trained._say_if_emulated.cache_clear()
    assert not trained.Trained().bf16(torch.device("cpu"))
    assert capsys.readouterr().err == ""
    assert trained.Trained(precision="bf16").bf16(torch.device("cpu"))
    assert ("precision fp32" in capsys.readouterr().err) is not has
    trained._say_if_emulated.cache_clear()


TRAINING = [name for name, experiment in EXPERIMENTS.items() if "training" in experiment.params.model_fields]


@pytest.mark.parametrize("name", TRAINING)
def test_the_papers_models_are_trained_in_single_precision_also_on_a_gpu(name):
    training = EXPERIMENTS[name].params.load({"preset": "paper"}).training
    assert not training.bf16(torch.device("cuda"))
    assert trained.Trained(precision="auto").bf16(torch.device("cuda"))


RECORDED = sorted((project_root() / "data" / "recorded").glob("*/results/*.json"))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: f"{file.stem} {file.parts[-3]}")
def test_a_recorded_preset_says_what_it_was_recorded_with(file, tmp_path):
    """Also where it builds on another preset, which may have changed since."""
    then = json.loads(file.read_text("utf8"))["params"]
    place = {"data_dir": str(tmp_path)} if then["dataset"] == "imagefolder" else {}
    now = EXPERIMENTS[file.stem].params.load({"preset": file.parts[-3], **place}).shown()
    left_out = {"data_dir", "out_dir", "recorded"}
    # A parameter that came later had its default then.
    default = {n: place.field.default for n, place in EXPERIMENTS[file.stem].params.declared().items()}
    differ = {name: (then.get(name, default.get(name)), now.get(name)) for name in {*then, *now} - left_out}
    assert {
        n: pair
        for n, pair in differ.items()
        if len({json.dumps(value, sort_keys=True) for value in pair}) > 1
    } == {}
