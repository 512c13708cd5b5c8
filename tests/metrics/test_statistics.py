"""Intervals and tests against values worked out by hand, and their error rates where the truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from salun_core.metrics import statistics

RNG = np.random.default_rng(1)
VALUES = RNG.normal(0.4, 1.0, (6, 1))


def test_runs_of_one_training_seed_are_one_value():
    rows = pd.DataFrame({"seed": [0, 0, 1, 1], "UA": [0.1, 0.3, 0.5, None]})
    assert statistics.by_unit(rows, "UA").to_dict() == {0: pytest.approx(0.2), 1: pytest.approx(0.5)}


def test_differences_are_over_units_that_all_have():
    mine = pd.Series({0: 1.0, 1: 2.0, 2: 3.0})
    rival = pd.Series({2: 7.0, 1: 5.0, 5: 0.0})
    assert statistics.differences(mine, [rival]).tolist() == [[3.0], [4.0]]


def test_with_one_rival_it_is_the_t_test():
    theirs = ttest_1samp(VALUES[:, 0], 0.1, alternative="greater")
    assert statistics.p_above(VALUES, 0.1) == pytest.approx(theirs.pvalue)
    assert statistics.p_below(VALUES, 0.1) == pytest.approx(1 - theirs.pvalue)
    low, high = ttest_1samp(VALUES[:, 0], 0.0).confidence_interval(0.9)
    assert statistics.interval(VALUES, level=0.9) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_to_the_best_rival_by_hand():
    # Two rivals, three units: means 2 and 3, standard deviations 1 and 2.
    values = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 5.0]])
    low, high = statistics.interval(values)
    assert low == pytest.approx(min(2 - 4.3027 / math.sqrt(3), 3 - 4.3027 * 2 / math.sqrt(3)), rel=1e-4)
    assert high == pytest.approx(min(2 + 6.2053 / math.sqrt(3), 3 + 6.2053 * 2 / math.sqrt(3)), rel=1e-4)


def test_an_interval_and_its_p_values_agree():
    values = RNG.normal(0.3, 1.0, (7, 4))
    for level in (0.6, 0.9, 0.99):
        low, high = statistics.interval(values, level=level)
        assert (low > 0) == (statistics.p_above(values) < (1 - level) / 2)
        assert (high < 0.5) == (statistics.p_below(values, 0.5) < (1 - level) / 2)


def test_equal_values_are_known_to_the_resolution_only():
    equal = np.full((5, 1), 0.2)
    assert statistics.interval(equal) == (pytest.approx(0.2), pytest.approx(0.2))
    assert statistics.p_above(equal) == 0
    low, high = statistics.interval(equal, resolution=1.0)
    assert high - low == pytest.approx(2 * 2.7764 / math.sqrt(5), rel=1e-4)
    assert statistics.p_above(equal, resolution=1.0) > 0.3


def test_one_unit_decides_nothing():
    assert statistics.p_above([[3.0]]) == statistics.p_below([[3.0]]) == 1
    assert all(math.isnan(end) for end in statistics.interval([[3.0]]))


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.2]).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.2])
    both = statistics.holm([[0.01, 0.04, 0.03, 0.2], [0.5, 0.9, 0.4, 0.001]])
    assert both[1].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.004])


def covered(draw, truth, **options):
    ends = [statistics.interval(draw(), **options) for _ in range(1500)]
    return np.mean([low <= truth <= high for low, high in ends])


@pytest.mark.parametrize("means", [(0.0, 0.0, 0.0), (0.0, 1.0, 2.0), (0.0, 9.0, 9.0)])
def test_the_interval_covers_the_difference_to_the_best(means):
    rng = np.random.default_rng(0)
    # The rivals share the noise of the method that they are compared with.
    found = covered(lambda: rng.normal(means, 1.0, (5, 3)) + rng.normal(0, 1.0, (5, 1)), 0.0)
    assert found > 0.94


@pytest.mark.long
def test_the_best_is_among_those_that_may_be_best():
    rng = np.random.default_rng(0)
    names = list("abcd")
    kept = []
    for _ in range(400):
        values = pd.DataFrame(rng.normal([0.0, 0.2, 0.4, 3.0], 0.3, (6, 4)), columns=names)
        kept.append(statistics.may_be_best(values))
    assert np.mean(["a" in found for found in kept]) > 0.95
    assert np.mean(["d" in found for found in kept]) < 0.05
    assert statistics.may_be_best(values.head(1)) == list(values.head(1).mean().sort_values().index)


def test_two_identical_arms_differ_in_nothing():
    arm = RNG.normal(30, 20, 12)
    found = statistics.difference_of_spreads(arm, arm)
    assert (found.mean, *found.interval()) == (0, 0, 0)
    assert found.p_above() == found.p_below() == 1


def test_a_narrower_arm_is_found_from_paired_settings():
    arm = RNG.normal(30, 20, 12)
    found = statistics.difference_of_spreads(arm, 30 + (arm - 30) / 4)
    assert found.mean == pytest.approx(0.75 * arm.std(ddof=1))
    assert found.interval()[0] > 0
    assert found.p_above() < 0.025
    lost = arm.copy()
    lost[3] = np.nan
    assert statistics.difference_of_spreads(arm, lost).n == 11


def test_several_seeds_of_the_same_settings_are_averaged():
    arm = RNG.normal(30, 20, (3, 12))
    found = statistics.difference_of_spreads(arm, arm / 2, draws=500)
    assert found.mean == pytest.approx(arm.std(axis=1, ddof=1).mean() / 2)
    assert found.n == 12
