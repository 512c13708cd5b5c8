"""Columns of what a pipeline draws besides its classes: them in styles, and ordinary captions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from salun_core.errors import UserError
from salun_core.experiments.generation.lab import result_of
from salun_core.experiments.text_to_image import problem
from salun_core.experiments.text_to_image.class_forgetting import TextToImageParams, run
from salun_core.metrics.generation.clip import clip_scores, nearest_text
from salun_core.metrics.generation.frechet import Moments, frechet_distance
from salun_core.metrics.generation.recognition import recognised
from salun_core.pages.findings.text_to_image import kinds_of
from salun_core.pages.tables.text_to_image import styles_and_captions_table

STYLES = ["ink", "chalk"]
SMALL = {
    "methods": ["uce"],
    "masks": [],
    "class_prompt": "a photo of a {}",
    "test_prompts": ["a photo of a {}"],
    "samples": 2,
    "sample_steps": 2,
    "judge_width": 8,
    "judge_epochs": 1,
    "styles": STYLES,
    "style_samples": 2,
    "style_prompt": "a {object} in {style}",
    "caption_count": 3,
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Five images and their captions, in COCO's layout."""
    folder = tmp_path_factory.mktemp("coco")
    rng = torch.Generator().manual_seed(0)
    images, annotations = [], []
    for i in range(5):
        pixels = torch.randint(0, 256, (16, 24, 3), generator=rng).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png"})
        annotations.append({"id": i, "image_id": i, "caption": f"a photo of a {i}"})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return {"captions": folder / "captions.json", "caption_images": folder}


@pytest.fixture(scope="module")
def results(coco, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    params = TextToImageParams.load({**SMALL, **coco, "out_dir": out})
    return run(params), params


def stored(lab, row, count):
    """The images of one sheet of a cell, found by their number."""
    files = [load_file(file) for file in lab.store.folder.glob("samples-*.safetensors")]
    own = [f["images"] for f in files if "labels" not in f and len(f["images"]) == count]
    assert len(own) == 2  # the original and the other
    drawn = lab.problem.drawn_for
    sheet = next(s for s in lab.sheets.values() if len(s.texts) == count)
    again = drawn(lab.model(result_of(lab, row)), sheet.texts, sheet.streams, lab.sampling)
    assert any(torch.equal(again, images) for images in own)
    return again, sheet


def test_retention_is_what_judge_and_clip_see_in_the_images(results):
    found, _ = results
    lab = found.lab
    row = found.cells.iloc[1]
    images, sheet = stored(lab, row, 10 * 2 * 2)
    assert sheet.texts[:3] == ["a zero in ink", "a zero in ink", "a zero in chalk"]
    assert len(set(sheet.streams)) == len(sheet.streams)
    right, seen_as, shown = [], [], recognised(lab.classifier, images)
    for i, image in enumerate(images):
        digit, style = i // 4, i // 2 % 2
        words = list(dict.fromkeys(sheet.texts[4 * digit : 4 * digit + 4]))
        near = int(nearest_text(lab.clip, image[None], words))
        if digit != 7:
            right.append(int(shown[i]) == digit)
            seen_as.append(near == style)
    gone = [int(shown[i]) != 7 for i in range(28, 32)]
    assert float(row["IRA"]) == pytest.approx(sum(right) / 36)
    assert float(row["CRA"]) == pytest.approx(sum(seen_as) / 36)
    assert float(row["styles UA"]) == pytest.approx(sum(gone) / 4)


def test_utility_is_measured_on_images_drawn_for_the_captions(results, coco):
    found, _ = results
    lab, row = found.lab, found.cells.iloc[1]
    images, sheet = stored(lab, row, 3)
    features = lab.features[0]
    own = {f"a photo of a {i}": coco["caption_images"] / f"{i}.png" for i in range(5)}
    real = []
    for text in sheet.texts:
        picture = Image.open(own[text])
        picture = picture.crop((4, 0, 20, 16))
        real.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    expected = frechet_distance(
        Moments.measured(features(images)), Moments.measured(features(torch.stack(real)))
    )
    assert row["caption CLIP"] == pytest.approx(
        float(clip_scores(lab.clip, images, sheet.texts).mean()), rel=1e-4
    )
    assert row["caption FD"] == pytest.approx(expected, rel=0.05)
    assert row["n captions"] == 3


def test_the_table_shows_what_was_measured_and_says_what_was_not(results):
    found, _ = results
    table = styles_and_captions_table(found.cells)
    assert table.frame["Method"].tolist() == ["Original", "UCE"]
    assert {"IRA", "CRA", "CLIP score, captions"} <= set(table.frame.columns)
    plain = found.cells.drop(
        columns=[c for c in found.cells if c in ("styles UA", "IRA", "CRA") or "caption" in c]
    )
    assert "Not run here" in str(styles_and_captions_table(plain))


def test_a_finished_run_draws_nothing_again(results, monkeypatch):
    _, params = results
    monkeypatch.setattr(problem, "sample_prompts", None)
    again = run(params)
    assert again.cells["IRA"].notna().all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"styles": ["ink"]}, "styles \\['ink'\\] must be two names or more"),
        ({"styles": STYLES, "clip": "none"}, "styles are measured by CLIP, and clip is none"),
        ({"captions": "c.json"}, "captions c.json came without caption_images"),
        ({"caption_images": "folder"}, "caption_images folder came without captions"),
        ({"style_prompt": "a {object}"}, "must hold {object} and {style} once each"),
        ({"style_prompt": "a {object!r} in {style}"}, "must hold {object} and {style} once each"),
        ({"style_prompt": "a {object} in {style"}, "must hold {object} and {style} once each"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(given, said):
    with pytest.raises(UserError, match=said):
        TextToImageParams.load(given)


def test_a_missing_picture_is_named_before_anything_is_unlearned(coco, tmp_path):
    with pytest.raises(UserError, match=r"\d\.png is missing, one of 5 of 5 images"):
        TextToImageParams.load(
            {
                **SMALL,
                "captions": coco["captions"],
                "caption_images": tmp_path,
                "caption_count": 5,
                "out_dir": tmp_path,
            }
        ).lab()


def test_the_tables_by_kind_of_prompt_do_not_take_styles_for_a_kind(results):
    found, _ = results
    assert kinds_of(found.cells) == list(found.lab.kinds)
