"""Metrics of a generator from stored outputs: by hand, in any order of the images, and after a round trip."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from salun_core.data.captions import KINDS as PROMPTS
from salun_core.errors import UserError
from salun_core.metrics import GENERATION, TEXT_TO_IMAGE
from salun_core.metrics.generation.frechet import Moments
from salun_core.metrics.generation.outputs import GeneratedOutputs, Reference

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((60, 4))
ASKED = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
SEEN = [
    0,
    1,
    1,
    2,
    1,
    1,
    0,
    2,
    0,
    0,
]  # 3 of 4 forgotten; 3 of 6 others right, 3 taken for the forgotten class
FIRST, SECOND = PROMPTS[:2]


def outputs():
    """Ten images for the first kind of prompt, and the same again, all right, for a second kind."""
    seen = torch.tensor(SEEN + ASKED)
    logits = torch.nn.functional.one_hot(seen, 3).float()
    reference = Reference("judge", Moments.measured(FEATURES), Moments.measured(FEATURES[:30] + 0.1))
    return GeneratedOutputs(
        logits,
        torch.tensor(ASKED * 2),
        torch.tensor([0] * 10 + [1] * 10),
        (FIRST, SECOND),
        (0,),
        3,
        Moments.measured(FEATURES + 1),
        reference,
        {
            "clip_score": torch.tensor([20.0, 30, 25, 25, 22, 28]),
            "clip_right": torch.tensor([1.0, 0, 1, 1, 1, 0]),
        },
    )


def measured(table, found):
    values = {name: metric(found) for name, metric in table.items()}
    return {n: v if isinstance(v, str | list) or v is None else float(v) for n, v in values.items()}


def test_metrics_by_hand():
    found = measured(TEXT_TO_IMAGE, outputs())
    assert (found["UA"], found["OA"], found["strays"]) == (0.75, 0.5, 0.5)
    assert found["confusion"] == [[1, 2, 1], [1, 2, 0], [2, 0, 1]]
    # Equal covariances: the distance is that of the means, 4 features moved by 1.
    assert found["FD"] == pytest.approx(4, abs=1e-6)
    assert (found["CLIP"], found["CLIP accuracy"]) == (25.0, pytest.approx(4 / 6))
    assert (found[f"UA {SECOND}"], found[f"OA {SECOND}"]) == (0.0, 1.0)
    assert found[f"UA {PROMPTS[2]}"] is None  # was not asked for


@pytest.mark.parametrize("order", ["reversed", "sorted by answer", "shuffled"])
def test_the_order_of_the_images_changes_nothing(order):
    found = outputs()
    rows = {
        "reversed": torch.arange(20).flip(0),
        "sorted by answer": found.logits.argmax(dim=1).argsort(),
        "shuffled": torch.randperm(20),
    }[order]
    moved = replace(
        found,
        logits=found.logits[rows],
        labels=found.labels[rows],
        prompts=found.prompts[rows],
        extra={name: value.flip(0) for name, value in found.extra.items()},
    )
    assert measured(TEXT_TO_IMAGE, moved) == measured(TEXT_TO_IMAGE, found)


@pytest.mark.parametrize("rows", [np.arange(60)[::-1], RNG.permutation(60)], ids=["reversed", "shuffled"])
def test_the_order_of_the_images_changes_no_distance(rows):
    found = outputs()
    moved = replace(found, moments=Moments.measured((FEATURES + 1)[rows]))
    assert float(GENERATION["FD"](moved)) == pytest.approx(float(GENERATION["FD"](found)), abs=1e-9)


def test_stored_outputs_give_the_same_metrics(tmp_path):
    found = outputs()
    (tmp_path / "reference.safetensors").write_bytes(found.reference.to_bytes())
    path = tmp_path / "x.outputs.safetensors"
    path.write_bytes(found.to_bytes("reference.safetensors"))
    assert measured(TEXT_TO_IMAGE, GeneratedOutputs.load(path)) == measured(TEXT_TO_IMAGE, found)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"x\.outputs\.safetensors is damaged"):
        GeneratedOutputs.load(path)


def test_half_of_a_covariance_is_stored_and_all_of_it_read_to_the_last_bit():
    moments = Moments.measured(RNG.standard_normal((5, 7)))  # fewer images than features, as for Inception
    stored = moments.tensors("x")
    assert stored["x covariance"].shape == (7 * 8 // 2,)
    whole = stored | {"x covariance": torch.from_numpy(moments.covariance)}  # as older files have it
    for tensors in (stored, whole):
        again = Moments.of(tensors, "x")
        assert np.array_equal(again.covariance, moments.covariance)
        assert np.array_equal(again.mean, moments.mean) and again.n == 5


def test_a_reference_is_read_once_and_again_where_its_file_has_changed(tmp_path):
    path = tmp_path / "reference.safetensors"
    path.write_bytes(outputs().reference.to_bytes())
    first = Reference.load(path)
    assert Reference.load(path) is first
    path.write_bytes(replace(outputs().reference, name="another").to_bytes())
    assert Reference.load(path).name == "another"
    path.write_bytes(b"half a file")
    with pytest.raises(UserError, match="damaged"):
        Reference.load(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        Reference.load(path)
