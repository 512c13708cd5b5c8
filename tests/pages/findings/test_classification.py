"""Findings follow from the rows: change the rows, and they change."""

import math

import pytest
import result_frames

from salun_core.metrics.gaps import METRICS, gaps
from salun_core.pages.findings import classification as findings

CELLS = result_frames.classification()
SCENARIO = CELLS["scenario"].iloc[0]


def like_retrain(cells, *methods):
    """Rows in which these methods have Retrain's numbers, a different replica's for each seed."""
    turned = cells.copy()
    for _, retrain in cells[(cells["method"] == "retrain") & (cells["replica"] == 0)].iterrows():
        same = (turned["scenario"] == retrain["scenario"]) & (turned["seed"] == retrain["seed"])
        for method in methods:
            turned.loc[same & (turned["method"] == method), list(METRICS)] = [retrain[m] for m in METRICS]
    return turned


def test_the_method_that_is_clearly_nearest_is_named_alone():
    found = findings.ranking(like_retrain(CELLS, "bs"), SCENARIO)
    assert next(iter(found.gaps)) == "BS"
    assert found.nearest == ("BS",)
    assert list(found.gaps.values()) == sorted(found.gaps.values())


def test_methods_that_the_seeds_do_not_tell_apart_are_named_together():
    found = findings.ranking(like_retrain(CELLS, "bs", "iu"), SCENARIO)
    assert set(found.nearest) == {"BS", "IU"}


def test_one_seed_names_no_nearest():
    found = findings.ranking(CELLS[CELLS["seed"] == 0], SCENARIO)
    assert found.nearest == ()
    assert found.seeds == 1


def test_who_lies_within_the_noise_and_who_is_no_nearer_than_doing_nothing():
    found = findings.ranking(like_retrain(CELLS, "bs"), SCENARIO)
    assert found.inside == ("BS",)
    assert 0 < found.floor.mean <= found.floor.largest
    assert found.floor.pairs == CELLS["seed"].nunique()
    # Boundary shrink, expanding and gradient ascent were made to do next to nothing, and a little harm.
    assert "FT" not in found.no_nearer and "SalUn" not in found.no_nearer
    worse = result_frames.classification(away={**result_frames.AWAY, "ga": (-0.1, -0.1, -0.1, -0.1)})
    assert "GA" in findings.ranking(worse, SCENARIO).no_nearer


def test_without_replicas_there_is_no_floor():
    found = findings.ranking(CELLS[CELLS["replica"] == 0], SCENARIO)
    assert found.floor is None
    assert found.inside == ()


def test_runs_that_diverged_are_counted_and_in_no_mean():
    lost = CELLS.copy()
    one = (lost["method"] == "iu") & (lost["scenario"] == SCENARIO)
    lost.loc[one & (lost["seed"] == 1), list(METRICS)] = None
    found = findings.ranking(lost, SCENARIO)
    assert found.diverged == {"IU": 1}
    lost.loc[one, list(METRICS)] = None
    assert "IU" not in findings.ranking(lost, SCENARIO).gaps


def test_a_pair_is_compared_over_shared_seeds_and_says_at_which_settings():
    rows = findings.named(gaps(CELLS[CELLS["scenario"] == SCENARIO]))
    found = findings.pair(rows, "RL", "SalUn")
    assert found.gaps[0] - found.gaps[1] == pytest.approx(found.mean)
    assert found.low < found.mean < found.high
    assert found.same_settings
    rows.loc[rows["method"] == "rl", "settings"] = [{"lr": 0.5}] * (rows["method"] == "rl").sum()
    assert not findings.pair(rows, "RL", "SalUn").same_settings
    assert findings.pair(rows, "RL", "ESD") is None


def test_the_plane_of_ua_and_ta():
    found = findings.trade_off(like_retrain(CELLS, "salun"), SCENARIO)
    assert "SalUn" in found.inside
    assert "L1" not in found.distances and "Retrain" not in found.distances
    assert found.scatter > 0
    far = findings.trade_off(CELLS.assign(UA=CELLS["UA"] + 0.2 * (CELLS["method"] == "salun")), SCENARIO)
    assert "SalUn" not in far.inside


def test_costs_include_tuning_where_it_is_known():
    found = findings.costs(CELLS, SCENARIO)
    assert all(cost.seconds == pytest.approx(0.1) for cost in found.methods)
    assert all(math.isnan(cost.tuning) for cost in found.methods)
    tuned = findings.costs(CELLS, SCENARIO, result_frames.tuning())
    cost = {each.name: each for each in tuned.methods}["FT"]
    # Three candidates of 10 s and a model retrained in 100 s, on two tuning seeds.
    assert cost.tuning == pytest.approx(2.6)
    assert cost.break_even == pytest.approx(2.6 / 0.9)
    slow = CELLS.assign(seconds=CELLS["seconds"].where(CELLS["method"] != "ft", 200.0))
    cost = {c.name: c for c in findings.costs(slow, SCENARIO, result_frames.tuning()).methods}["FT"]
    assert math.isinf(cost.break_even)


def test_classes_are_counted_as_units():
    cells = result_frames.classification(
        scenarios=[f"class {c}" for c in range(4)], methods=["original", "rl", "salun"], seeds=2
    )
    cells = cells.assign(forgotten=cells["scenario"].str.removeprefix("class "))
    found = findings.class_by_class(like_retrain(cells, "salun"))
    assert found.nearest == ("SalUn",)
    assert found.mask_wins == len(found.classes) == 4
    # SalUn has Retrain's numbers in all classes but one.
    worse = like_retrain(cells, "salun")
    one = (worse["method"] == "salun") & (worse["forgotten"] == "2")
    worse.loc[one, "UA"] += 0.5
    found = findings.class_by_class(worse)
    assert found.mask_wins == 3
    assert found.worst["SalUn"] == pytest.approx(12.5, abs=0.2)
