"""Whatever determines a result is in its key: every parameter and every file of an input, changed one at a time."""

import copy
import json
import shutil
import typing
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from salun_core.code_digest import code_digest, forget_files
from salun_core.data import load_dataset
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.classification.params import ClassifierParams
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.store import Result
from salun_core.experiments.text_to_image import params as text_params
from salun_core.experiments.text_to_image.params import TextToImageParams
from salun_core.experiments.text_to_image.probes import Prober
from salun_core.models.diffusion.unet import build_unet, noise_schedule, save_diffusion
from salun_core.models.text_to_image.pipelines import load_pipeline, pipeline_identity
from salun_core.paths import models_folder

DIGITS = [f"number {i}" for i in range(10)]
IDS = "forget_indices"

BASE = {
    "classification": {
        "scenario": ["random", "class", "indices"],
        "forget_class": 3,
        IDS: "ids.txt",
        "methods": ["ft", "salun"],
        "width": 4,
        "tuning_budget": 2,
    },
    "class_wise": {"methods": ["ft", "salun"], "classes": [1, 2], "tuning_budget": 2},
    "stability": {
        "methods": ["ft", "salun"],
        "tuning_budget": 2,
        "surface_lrs": [0.1],
        "surface_epochs": [1],
        "surface_keeps": [0.5],
    },
    "saliency": {"methods": ["rl", "ft"], "tuning_budget": 2},
    "diffusion": {"methods": ["original", "salun", "ft"]},
    "text_to_image": {"methods": ["original", "salun"], "masks": ["lora", "random"]},
    "unsafe": {"methods": ["original", "salun"], "prompts_file": "prompts.csv", "prompts_rows": 0},
}

OTHER = {
    "strengths": [0.5],
    # Another value, where none follows from the declaration; for one experiment alone where it is named.
    "scenario": ["class", "indices"],
    "only_classes": ["3", "5", "7"],
    "train_images": 800,
    "image_size": 12,
    "forget_class": 4,
    IDS: "other_ids.txt",
    "arch": "vgg16",
    "recipe": "fast",
    "judge_recipe": "fast",
    "judge": "vgg16",
    "settings": {"ft": {"epochs": 4}, "salun": {"epochs": 4}, "rl": {"epochs": 4}},
    "search": {m: {"lr": {"low": 0.01, "high": 0.02}} for m in ("ft", "salun", "rl")},
    "attention": [4],
    "replacement": 5,
    "class_names": DIGITS,
    "test_prompts": ["a {}"],
    "class_prompt": "the {}",
    "prompts_category": "sexual",
    "prompts_file": "other_prompts.csv",
    "clip": "none",
    ("diffusion", "clip"): 0.5,
    "prompts_rows": 2,
    "styles": ["ink", "chalk"],
    "style_prompt": "{object} in {style}",
    "captions": "other_captions.json",
}
COCO = {"captions": "captions.json", "caption_images": "pictures", "caption_count": 2}
TOGETHER = {
    # What both runs are given besides, for the parameter to mean anything.
    "class_prompt": {"class_names": DIGITS},
    "style_prompt": {"styles": ["ink", "chalk"]},
    "style_samples": {"styles": ["ink", "chalk"]},
    "caption_count": COCO,
    "captions": COCO,
    "test_prompts": {"class_names": DIGITS},
    "only_classes": {"forget_class": "3", "replacement": "5"},
    "together": {"forget_class": [3, 4]},
    ("saliency", "forget_class"): {"scenario": "class", "forget_class": 3},
    ("saliency", IDS): {"scenario": "indices", IDS: "ids.txt"},
}
IN_VAIN = {"tune": {"tuning_budget"}}
"""What has no effect with the other value, and is refused beside it."""
ALREADY = {
    # Pairs of runs that say it all.
    ("saliency", "scenario"): ({"scenario": "random"}, {"scenario": "class", "forget_class": 3}),
}
FILES = {
    "dataset",
    "data_dir",
    "pipeline",
    "pretrained",
    "features",
    "inception_weights",
    "judge_weights",
    "unlearned",
    "retrained",
    "caption_images",
}
"""What lies in files: their content is changed in tests below."""
NOT_HERE = {
    "preset": "names a set of values",
    "device": "there may be one only",
    "detector": "nudenet may not be installed; the detector's card is in the key",
    "own_images": "draws images, whose digest is in the key",
    "pickle": "reads other files, whose digest is in the key",
    "half": "changes the weights, whose digest is in the key",
}
IN_ITS_PLACE = "in its place"
SHARED = {"class_wise": ClassifierParams, "stability": ClassifierParams, "saliency": ClassifierParams}
SHARED["unsafe"] = TextToImageParams

PLACES = [
    pytest.param(experiment, name, marks=[pytest.mark.slow] if shared and name in shared.declared() else [])
    for experiment, kind in EXPERIMENTS.items()
    for shared in [SHARED.get(experiment)]
    for name in kind.params.declared()
    if name not in kind.params.fixed and name not in FILES and name not in NOT_HERE
]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", None)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(models_folder() / "tiny-sd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that parameters name."""
    top = tmp_path_factory.mktemp("files")
    (top / "ids.txt").write_text("1\n2\n3\n")
    (top / "other_ids.txt").write_text("1\n2\n4\n")
    rows = 'one person,"sexual, violence",1,7.5\nanother person,violence,2,5\n'
    header = "prompt,categories,evaluation_seed,evaluation_guidance\n"
    (top / "prompts.csv").write_text(header + rows)
    (top / "other_prompts.csv").write_text(header + rows.replace("one", "some"))
    (top / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 16), (60 * i, 9, 9)).save(top / f"pictures/{i}.png")
    for name, word in (("captions", "a cat"), ("other_captions", "a dog")):
        described = [{"id": i, "image_id": i, "caption": f"{word} on chair {i}"} for i in range(3)]
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
        (top / f"{name}.json").write_text(json.dumps({"images": images, "annotations": described}))
    return top


@pytest.fixture(scope="module")
def keys(digits, pipe, folder):
    """Names of all cells of a run, those of its tuning and its probes included."""
    known = {}

    def of(experiment, given, *, anew=False):
        given = given | here(given, folder)
        text = json.dumps([experiment, given], default=str, sort_keys=True)
        if anew or text not in known:
            known[text] = names(experiment, given)
        return known[text]

    def names(experiment, given):
        kind = EXPERIMENTS[experiment]
        params = kind.params.load({**given, "out_dir": str(folder / "out")})
        own = {}
        if not set(given) & {
            "only_classes",
            "train_images",
            "image_size",
            "crop",
            "data_dir",
        }:
            own = {"data": digits}
        if isinstance(params, TextToImageParams) and "pipeline" not in given:
            own["pipe"] = pipe
        lab = params.lab(**own)
        grid = kind.grid(params, lab)
        cells = [cell for study in grid.studies(grid.fixed).values() for cell in study]
        for scenario, variant in grid.tuned:
            cells += [
                Cell(seed, scenario, variant.method, variant.mask, point, reported=False)
                for seed in grid.tuning.tuning_seed
                for point in grid.tuning.points(variant.method)
            ]
        found = [lab.key(cell) for cell in cells]
        if experiment == "unsafe":
            lab.__dict__["classifier"] = (
                nn.Identity()
            )  # only its name is asked for; how it is trained is in the key
            prober = Prober(lab, params.probing, params.unnamed.read(), params.attacking)
            found += [
                prober.key(cell, Result(key, {}, {}), cell.scenario.numbers[0])
                for cell, key in zip(cells, list(found), strict=True)
            ]
        return sorted({key.name for key in found})

    return of


@pytest.fixture(scope="module", autouse=True)
def read_once(pipe):
    """Read CLIP once."""
    found = text_params.clip_of(pipe, "data/models/tiny-sd-clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_params, "clip_of", lambda *_, **__: found)
        yield


def another(experiment, name, field, now, choices):
    """Another value that a parameter may have."""
    for known in ((experiment, name), name):
        if known in OTHER:
            return OTHER[known]
    kinds = [field.annotation, *typing.get_args(field.annotation)]
    literal = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
    if isinstance(now, list):
        if len(now) > 1:
            return now[:-1]
        return [now[0] + 1 if isinstance(now[0], int) else now[0] / 2]
    if name in choices:
        return next(value for value in reversed(list(choices[name][0])) if value != now)
    if literal:
        return next(value for value in typing.get_args(literal[0]) if value not in (now, "auto"))
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return now + 1
    if isinstance(now, float):
        return now * 0.9 or 0.1
    assert now is None, f"{name} needs an entry in OTHER"
    return 2


def pair(experiment, name, folder):
    """Parameters of two runs that differ in one."""
    params = EXPERIMENTS[experiment].params
    group, field = params.declared()[name]
    if (experiment, name) in ALREADY:
        return tuple(BASE[experiment] | given for given in ALREADY[experiment, name])
    together = TOGETHER.get((experiment, name), TOGETHER.get(name, {}) if experiment != "saliency" else {})
    first = {n: v for n, v in (BASE[experiment] | together).items() if n in params.declared()}
    first = {n: v for n, v in first.items() if n not in params.fixed}
    checked = params.load(
        {n: v for n, v in first.items() if n not in (IDS, "prompts_file")} | here(first, folder)
    )
    choices = (type(getattr(checked, group)) if group else params).choices
    second = first | {name: another(experiment, name, field, checked.shown()[name], choices)}
    return first, {n: v for n, v in second.items() if n not in IN_VAIN.get(name, ())}


def here(given, folder):
    """Parameters that name a file, with its folder."""
    return {n: str(folder / v) for n, v in given.items() if isinstance(v, str) and (folder / v).exists()}


def test_every_parameter_is_looked_at():
    known = {name for kind in EXPERIMENTS.values() for name in kind.params.declared()}
    assert FILES | NOT_HERE.keys() <= known
    seen = {place.values[1] for place in PLACES}
    fixed = {name for kind in EXPERIMENTS.values() for name in kind.params.fixed}
    assert known == seen | FILES | NOT_HERE.keys() | (fixed - seen)


@pytest.mark.parametrize(("experiment", "name"), PLACES)
def test_another_value_is_another_result_or_the_declaration_says_why_not(keys, folder, experiment, name):
    first, second = pair(experiment, name, folder)
    reason = EXPERIMENTS[experiment].params.declared()[name].field.json_schema_extra["no_effect"]
    same = keys(experiment, first) == keys(experiment, second)
    assert same == (bool(reason) and not reason.endswith(IN_ITS_PLACE))


# --- files --------------------------------------------------------------------------------------------


def test_the_images_that_captions_describe_are_in_the_key(keys, folder):
    given = BASE["text_to_image"] | COCO | {"caption_count": 3}
    first = keys("text_to_image", given)
    picture = folder / "pictures/1.png"
    before = picture.read_bytes()
    Image.new("RGB", (20, 16), (61, 9, 9)).save(picture)
    try:
        assert keys("text_to_image", given, anew=True) != first
    finally:
        picture.write_bytes(before)


def test_images_names_of_classes_and_their_order_are_in_the_key(keys, tmp_path):
    def made(change=None):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        for part in ("train", "test"):
            for k, name in enumerate(("bee", "cat", "dog")):
                place = tmp_path / "set" / part / name
                place.mkdir(parents=True)
                for i in range(4):
                    Image.new("L", (8, 8), 60 * k + i).save(place / f"{i}.png")
        if change is not None:
            change(tmp_path / "set")
        given = {"dataset": "imagefolder", "data_dir": str(tmp_path / "set"), "forget_class": "dog"}
        return keys(
            "classification", {**given, "scenario": "class", "methods": ["ft"], "tune": False}, anew=True
        )

    first = made()
    assert made() == first
    changes = {
        "a pixel": lambda top: Image.new("L", (8, 8), 7).save(top / "train/bee/0.png"),
        "a test image": lambda top: Image.new("L", (8, 8), 7).save(top / "test/bee/0.png"),
        "an image less": lambda top: (top / "train/cat/3.png").unlink(),
        "a renamed class": lambda top: [(top / p / "cat").rename(top / p / "cow") for p in ("train", "test")],
        "a class that moves": lambda top: [
            (top / p / "cat").rename(top / p / "eel") for p in ("train", "test")
        ],
        "two classes swapped": lambda top: swapped(top),
    }
    seen = {what: tuple(made(change)) for what, change in changes.items()}
    assert [what for what, found in seen.items() if found == tuple(first)] == []
    assert len(set(seen.values())) == len(changes)


def swapped(top):
    for part in ("train", "test"):
        (top / part / "dog").rename(top / part / "x")
        (top / part / "cat").rename(top / part / "dog")
        (top / part / "x").rename(top / part / "cat")


def edits(folder):
    """Every file of a model, changed one value at a time: its path, and what to write."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            for name in list(tensors)[:: max(1, len(tensors) // 2)]:
                changed = tensors[name].clone()
                changed.view(-1)[0] += 1
                yield path, name, lambda to, n=name, t=tensors, c=changed: save_file({**t, n: c}, to)
        elif path.suffix == ".json":
            values = json.loads(path.read_text())
            for name, value in values.items():
                # A tokenizer that reads more than its text encoder takes is refused.
                other = value // 2 if name == "model_max_length" else changed_value(value)
                if name[0] != "_" and other is not None:
                    text = json.dumps({**values, name: other})
                    yield path, name, lambda to, text=text: to.write_text(text)


def changed_value(value):
    """Another value of the same type, one that the library still reads; None where there is none."""
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int | float) and value else None


HARMLESS = {
    # Values of the configurations that have no share in any image, or that say twice what the weights say.
    # The last two are set right by diffusers when it reads them.
    "transformers_version", "dtype", "torch_dtype", "requires_safety_checker", "vocab_size", "clip_sample", "steps_offset",
}  # fmt: skip


def test_every_file_of_a_pipeline_is_in_the_key(pipe, tmp_path):
    source = models_folder() / "tiny-sd"
    first = pipeline_identity(pipe)
    shutil.copytree(source, tmp_path / "copy")
    assert pipeline_identity(load_pipeline(tmp_path / "copy")) == first
    unseen, seen = [], set()
    for path, name, write in edits(source):
        if path.name in ("provenance.json", "model_index.json") or name in HARMLESS:
            continue
        place = tmp_path / "copy" / path.relative_to(source)
        write(place)
        try:
            with_edit = pipeline_identity(load_pipeline(tmp_path / "copy"))
        except Exception:  # refused, which is no wrong number
            continue
        finally:
            shutil.copy(path, place)
        seen.add(path.parent.name)
        if with_edit == first:
            unseen.append(f"{path.relative_to(source)}: {name}")
    assert not unseen
    assert seen == {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}


def test_every_file_of_a_model_of_ones_own_is_in_the_key(digits, tmp_path):
    unet = build_unet(classes=10, channels=1, size=8, widths=(16, 32), layers=1, attention=(), seed=0)
    folder = save_diffusion(unet.eval(), noise_schedule(steps=1000), tmp_path / "mine")
    given = {**BASE["diffusion"], "pretrained": str(folder), "out_dir": str(tmp_path / "out")}
    lab = EXPERIMENTS["diffusion"].params.load(given).lab(data=digits)
    first, files = lab.original_key(0), [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert lab.original_key(0).name != first.name, path.name
        path.write_bytes(content)
    assert lab.original_key(0).name == first.name


def test_the_files_of_the_judges_are_in_the_key(keys, tmp_path):
    weights = tmp_path / "inception.pth"
    found = []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        given = {"features": "inception", "inception_weights": str(weights)}
        lab = (
            EXPERIMENTS["diffusion"]
            .params.load({**BASE["diffusion"], **given, "out_dir": str(tmp_path)})
            .lab()
        )
        found.append(lab.key(Cell(0, Scenario("class", target=3), "original")).name)
    assert len({*found, keys("diffusion", BASE["diffusion"])[0]}) == 3


def test_all_that_a_clip_model_judges_by_is_in_the_key(pipe, digits, tmp_path):
    given = {**BASE["text_to_image"], "out_dir": str(tmp_path)}
    lab = EXPERIMENTS["text_to_image"].params.load(given).lab(data=digits, pipe=pipe)
    cell = Cell(0, Scenario("class", target=7), "original")
    found = {lab.key(cell).name}
    whole = lab.clip
    lab.clip = replace(whole, mean=(0.4, 0.5, 0.5))
    found.add(lab.key(cell).name)
    lab.clip = replace(whole, std=(0.4, 0.5, 0.5))
    found.add(lab.key(cell).name)
    lab.clip = replace(whole, tokenizer=copy.deepcopy(whole.tokenizer))
    lab.clip.tokenizer.add_tokens(["seventeen"])
    found.add(lab.key(cell).name)
    lab.clip = replace(whole, model=copy.deepcopy(whole.model))
    with torch.no_grad():
        lab.clip.model.logit_scale += 1
    found.add(lab.key(cell).name)
    assert len(found) == 5


def test_a_network_of_ones_own_counts_with_all_that_it_imports(tmp_path, monkeypatch):
    package = tmp_path / "mynets"
    for name, text in {
        "mynets/__init__.py": "",
        "mynets/net.py": "from .blocks import block\nfrom . import sizes\nfrom other_place import head\n",
        "mynets/blocks.py": "from .deep.inner import block\n",
        "mynets/deep/__init__.py": "from ..sizes import WIDTH\n",
        "mynets/deep/inner.py": "block = 1\n",
        "mynets/sizes.py": "WIDTH = 3\n",
        "other_place/__init__.py": "from .head import head\n",
        "other_place/head.py": "head = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def now():
        forget_files()
        return code_digest("mynets.net")

    first, files = now(), sorted([*package.rglob("*.py"), *(tmp_path / "other_place").rglob("*.py")])
    for file in files:
        text = file.read_text()
        file.write_text(text + "EDITED = 1\n")
        assert now() != first, file.name
        file.write_text(text)
    assert now() == first


def test_a_cell_of_which_less_is_kept_is_computed_again(tmp_path):
    given = {"methods": ["ft"], "tune": False, "noise_floor": 0, "seeds": [0], "epochs": 1, "width": 4}
    given |= {"scenario": "random", "settings": {"ft": {"epochs": 1}}, "out_dir": str(tmp_path)}
    small = load_dataset("digits", None)
    kind = EXPERIMENTS["classification"]
    kept, finished = {}, []
    for count in (20, 0, 0):
        params = kind.params.load({**given, "kept_outputs": count})
        rows = kind.run(params, lab=params.lab(data=small)).cells
        finished.append(
            [path.stat().st_mtime_ns for path in sorted((tmp_path / "cells").glob("cell-*.json"))]
        )
        kept[count] = rows[["UA", "RA", "TA", "MIA"]].to_numpy().tolist()
    assert finished[1] == finished[2]
    assert finished[0] != finished[1]
    fresh = kind.params.load({**given, "out_dir": str(tmp_path / "fresh")})
    rows = kind.run(fresh, lab=fresh.lab(data=small)).cells
    assert kept[0] == rows[["UA", "RA", "TA", "MIA"]].to_numpy().tolist()
