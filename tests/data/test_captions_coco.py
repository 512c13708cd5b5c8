import json
import random

import pytest

from salun_core.data.captions_coco import read_coco_captions
from salun_core.errors import UserError


def annotations(count=20, each=5):
    images = [{"id": 7 * i, "file_name": f"COCO_val2014_{7 * i:012}.jpg"} for i in range(count)]
    captions = [
        {"id": 100 * i + k, "image_id": 7 * i, "caption": f" A thing\n{i} seen {k}. "}
        for i in range(count)
        for k in range(each)
    ]
    return {"info": {}, "images": images, "annotations": captions}


def written(tmp_path, held, name="captions_val2014.json"):
    (tmp_path / name).write_text(json.dumps(held))
    return tmp_path / name


def test_every_image_has_one_of_its_captions(tmp_path):
    found = read_coco_captions(written(tmp_path, annotations()))
    assert len(found) == len(found.prompts) == 20
    assert len(set(found.files)) == 20
    picks = set()
    for text, file in zip(found.prompts.texts, found.files, strict=True):
        number = int(file[-16:-4]) // 7
        assert text.startswith(f"A thing {number} seen ") and text.endswith(".")
        picks.add(text[-2])
    assert len(picks) > 2  # not always the first
    assert found.prompts.name == "captions_val2014"


def test_a_draw_depends_on_the_seed_alone_and_grows(tmp_path):
    held = annotations()
    small, large = (read_coco_captions(written(tmp_path, held), count=n, seed=3) for n in (5, 12))
    assert large.files[:5] == small.files and large.prompts.texts[:5] == small.prompts.texts
    assert read_coco_captions(written(tmp_path, held), count=5, seed=4).files != small.files
    for part in ("images", "annotations"):
        random.Random(0).shuffle(held[part])
    again = read_coco_captions(written(tmp_path, held), count=5, seed=3)
    assert (again.files, again.prompts.texts) == (small.files, small.prompts.texts)
    assert again.prompts.digest != small.prompts.digest  # another file all the same


def test_images_without_captions_and_empty_captions_are_left_out(tmp_path):
    held = annotations(4, each=2)
    held["images"].append({"id": 999, "file_name": "lonely.jpg"})
    held["annotations"] += [{"id": 5000, "image_id": 998, "caption": "Of no image."}]
    held["annotations"] += [{"id": 6000 + k, "image_id": 0, "caption": " "} for k in range(50)]
    found = read_coco_captions(written(tmp_path, held))
    assert len(found) == 4 and "lonely.jpg" not in found.files
    assert all(found.prompts.texts)


def test_the_images_are_looked_for_in_a_folder(tmp_path):
    found = read_coco_captions(written(tmp_path, annotations(3)), count=2)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / found.files[0]).touch()
    with pytest.raises(UserError, match=f"{found.files[1]} is missing, one of 1 of 2 images"):
        found.paths(tmp_path / "val")
    (tmp_path / "val" / found.files[1]).touch()
    assert [path.name for path in found.paths(tmp_path / "val")] == list(found.files)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"annotations": []}, "not a COCO captions file"),
        ([1], "not a COCO captions file"),
        ({"images": [{"id": 1}], "annotations": []}, "not a COCO captions file"),
        ({"images": [], "annotations": [{"id": 1, "image_id": 2, "caption": 3}]}, "not a COCO captions file"),
        ({"images": [], "annotations": []}, "captions of 0 images, and some were asked for"),
    ],
)
def test_another_file_is_refused_in_one_sentence(held, message, tmp_path):
    with pytest.raises(UserError, match=message) as found:
        read_coco_captions(written(tmp_path, held))
    assert "\n" not in str(found.value)


def test_draws_and_files_that_cannot_be(tmp_path):
    file = written(tmp_path, annotations(3))
    for count in (0, 4, -1):
        with pytest.raises(UserError, match="captions of 3 images"):
            read_coco_captions(file, count=count)
    with pytest.raises(UserError, match="cannot read"):
        read_coco_captions(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="not a COCO captions file"):
        read_coco_captions(tmp_path / "broken.json")
