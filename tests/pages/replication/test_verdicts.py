"""The rule says what it should where the truth is known, and its error rates are those it promises."""

import numpy as np
import pytest

from salun_core.metrics.statistics import PairedDifferences
from salun_core.pages.figures import verdicts as figures
from salun_core.pages.replication.verdicts import (
    CONTRADICTED,
    EQUIVALENT,
    HOLDS,
    NOT_TESTABLE,
    UNDECIDED,
    Measurement,
    error_rates,
    judge,
    simulated_verdicts,
)

SCATTER = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
CONTROL = PairedDifferences(5 + SCATTER[:, None])


def measured(mean, scatter=0.2, *, margin=0.5, control=CONTROL, n=5):
    values = mean + scatter * SCATTER[:n, None]
    return Measurement("a difference", PairedDifferences(values), margin, control)


def words(*found, **options):
    return [verdict.word for verdict in judge(found, **options)]


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (measured(3.0), HOLDS),
        (measured(-3.0), CONTRADICTED),
        (measured(0.0), EQUIVALENT),
        (measured(0.0, 2.0), UNDECIDED),
        (measured(0.6, 2.0), UNDECIDED),
        (measured(3.0, 9.0), UNDECIDED),
    ],
)
def test_the_word_follows_the_interval(found, word):
    assert words(found) == [word]


def test_an_advantage_may_hold_and_be_within_the_margin():
    (found,) = judge([measured(0.3, 0.1)])
    assert (found.word, found.reason) == (HOLDS, "within the margin")
    assert judge([measured(3.0)])[0].reason == ""


def test_the_margin_decides_only_on_equivalence():
    found = measured(0.0, 0.5)
    assert [words(found, times=times) for times in (0.5, 1.0, 2.0)] == [
        [UNDECIDED],
        [EQUIVALENT],
        [EQUIVALENT],
    ]
    clear = measured(3.0)
    assert words(clear, times=0.5) == words(clear, times=2.0) == [HOLDS]


@pytest.mark.parametrize(
    ("control", "why"),
    [
        (None, "no positive control"),
        (PairedDifferences(SCATTER[:, None]), "doing nothing"),
        (PairedDifferences(5 + SCATTER[:2, None]), "training seeds"),
    ],
)
def test_without_a_positive_control_nothing_is_judged(control, why):
    (found,) = judge([measured(3.0, control=control)])
    assert found.word == NOT_TESTABLE
    assert why in found.reason
    assert np.isnan(found.p_difference)


def test_too_few_values_are_not_judged():
    assert words(measured(3.0, n=2)) == [NOT_TESTABLE]


def test_the_family_makes_each_claim_harder():
    weak = measured(0.4, 0.35)
    assert words(weak) == [HOLDS]
    alone = judge([weak])[0].p_difference
    among = judge([weak, *[measured(0.0, 2.0)] * 9])[0]
    assert among.word == UNDECIDED
    assert among.p_difference == pytest.approx(min(1, 10 * alone))


def test_claims_that_cannot_be_tested_are_not_in_the_family():
    weak = measured(0.4, 0.35)
    assert words(weak, *[measured(0.0, 2.0, control=None)] * 9)[0] == HOLDS


@pytest.mark.parametrize("units", [3, 5, 10])
def test_where_all_are_equal_at_most_one_run_in_twenty_has_a_wrong_verdict(units):
    assert simulated_verdicts(0.0, units=units, runs=1500)["wrong"] <= 0.05


@pytest.mark.parametrize("rivals", [1, 8])
def test_an_advantage_of_two_floors_is_found_in_most_runs_of_five_seeds(rivals):
    found = simulated_verdicts(2.0, units=5, rivals=rivals, runs=1500)
    assert found[HOLDS] > 0.5
    assert found[CONTRADICTED] == 0
    assert found["wrong"] <= 0.05


def test_a_true_disadvantage_is_contradicted():
    found = simulated_verdicts(-3.0, units=10, runs=300)
    assert found[CONTRADICTED] > 0.5
    assert found[HOLDS] == 0


def test_equality_is_recognised_within_a_wide_margin_and_not_at_its_edge():
    assert simulated_verdicts(0.0, units=10, margin=3.0, runs=300)[EQUIVALENT] > 0.9
    at_edge = simulated_verdicts(2.0, units=10, rivals=1, claims=1, margin=2.0, runs=1500)
    assert at_edge[EQUIVALENT] <= 0.05


def test_the_figure_says_what_the_simulation_found():
    rates = error_rates((0.0, 4.0), (3, 10), runs=200)
    chart = figures.error_rates(rates, runs=200)
    assert chart.finding.needed == {3: float("inf"), 10: 4.0}
    assert chart.finding.wrong == rates["wrong"].max()
    assert chart.svg()
