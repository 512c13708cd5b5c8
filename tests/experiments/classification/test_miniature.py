"""The miniature's steps, and the figures of single weights."""

import pandas as pd
import pytest
import torch

from salun_core.errors import UserError
from salun_core.experiments.classification import miniature
from salun_core.experiments.classification.miniature import MiniatureParams
from salun_core.pages.figures import weight_maps
from salun_core.saliency import top_mask


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    params = MiniatureParams.load({"width": 4, "epochs": 1, "out_dir": str(tmp_path_factory.mktemp("out"))})
    return params, miniature.prepare(params)


def test_the_curve_starts_at_the_original_model_for_both(steps):
    params, mini = steps
    curve = miniature.over_epochs(mini, params)
    start = curve[curve["epochs"] == 0].set_index("mask")
    assert start.loc["salient", ["UA", "RA", "TA"]].tolist() == start.loc["none", ["UA", "RA", "TA"]].tolist()
    assert len(curve) == 2 * (params.epochs + 1)
    assert "n = 1" in weight_maps.epochs_curve(curve).caption


def test_the_forgotten_digit_is_the_one_asked_for(steps):
    params, mini = steps
    assert set(mini.task.forget.labels.tolist()) == {params.forget_class}


def test_dead_weights_are_counted_and_change_the_threshold():
    scores = {"a": torch.tensor([0.0, 0.0, 0.0, 1.0]), "b": torch.tensor([10.0, 100.0])}
    chart = weight_maps.score_histogram(scores, keep=0.5)
    assert (chart.finding.zero, chart.finding.threshold, chart.finding.weights) == (0.5, 1.0, 6)
    assert chart.finding.powers == pytest.approx(2)
    assert weight_maps.score_histogram(scores, keep=0.9).finding.threshold == 0


def test_maps_say_the_share_of_each_layer():
    rng = torch.Generator().manual_seed(0)
    weights = {"conv": torch.randn(4, 2, 3, 3, generator=rng), "fc": torch.randn(3, 8, generator=rng)}
    scores = {name: weight.abs() for name, weight in weights.items()}
    mask = top_mask(scores, keep=0.25)
    chart = weight_maps.weight_maps(weights, scores, mask, ["conv", "fc"])
    assert chart.finding.all == pytest.approx(25)
    assert chart.finding.layers["fc"] == pytest.approx(100 * float(mask["fc"].float().mean()))
    assert chart.svg()


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(UserError, match="keep must lie"):
        MiniatureParams.load({"keep": 0})


def test_a_curve_names_its_end():
    rows = [
        {"mask": m, "epochs": e, "UA": u, "RA": 1.0, "TA": 0.9}
        for m, e, u in (("salient", 2, 0.8), ("none", 2, 1.0))
    ]
    found = weight_maps.epochs_curve(pd.DataFrame(rows)).finding
    assert {"salient": pytest.approx(80), "none": pytest.approx(100)} == found.UA
    assert found.epochs == 2
