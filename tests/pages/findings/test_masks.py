"""Findings on masks follow from the rows."""

import pandas as pd
import pytest
import result_frames

from salun_core.pages.findings import masks as findings

CELLS = result_frames.masks()


def control(cells, kind):
    return next(each for each in findings.masks_compared(cells).controls if each.control == kind)


def test_a_clear_gain_is_found_for_each_method():
    found = control(CELLS, "random")
    assert set(found.nearer) == {"RL", "FT"}
    # 3 points of UA, one metric in four.
    assert found.methods["RL"].mean == pytest.approx(0.75, abs=0.1)
    assert set(control(result_frames.masks(gain=-0.015), "random").farther) == {"RL", "FT"}


def test_no_gain_is_unclear():
    assert set(control(result_frames.masks(gain=0.0), "random").unclear) == {"RL", "FT"}


def test_one_seed_is_unclear():
    assert set(control(result_frames.masks(seeds=1), "random").unclear) == {"RL", "FT"}


def test_settings_that_differ_are_noticed():
    assert findings.masks_compared(CELLS).same_settings
    salient = CELLS["mask"] == "salient"
    apart = CELLS.assign(settings=[{"lr": 0.1} if s else {"lr": 0.2} for s in salient])
    assert not findings.masks_compared(apart).same_settings


def test_the_density_with_the_largest_difference():
    rows = result_frames.saliency()
    found = findings.over_density(rows[rows["study"] == "density"])
    assert (found.apart, found.keep) == (pytest.approx(5.0), 5.0)
    assert findings.over_density(rows[(rows["study"] == "density") & (rows["mask"] == "random")]) is None


def test_pairs_of_training_seeds_are_one_kind():
    pairs = pd.concat(
        [
            result_frames.agreement(),
            pd.DataFrame(
                [
                    {
                        "what": "training seed",
                        "detail": f"0 and {s}",
                        "seed": 0,
                        "iou": 0.4,
                        "expected": 1 / 3,
                    }
                    for s in (1, 2)
                ]
            ),
        ]
    )
    found = findings.mask_agreement(pairs)
    assert list(found.overlaps.values()) == sorted(found.overlaps.values())
    assert found.overlaps["training seed: two seeds"] == pytest.approx(0.4)
    assert found.expected == pytest.approx(1 / 3)


def test_the_least_and_the_most_marked_layer():
    layers = pd.DataFrame(
        {"layer": ["a", "b", "c"], "weights": [10, 20, 30], "kept": [1, 20, 15], "share": [0.1, 1, 0.5]}
    )
    found = findings.layer_shares(layers, 0.6)
    assert found.least == ("a", pytest.approx(10)) and found.most == ("b", pytest.approx(100))
    assert found.weights == 60
