"""The machine on one feature against scikit-learn's, and against the conditions of an optimum."""

import numpy as np
import pytest
from sklearn.svm import SVC

from salun_core.metrics.classification import svm
from salun_core.metrics.classification.mia import PENALTY, attack
from salun_core.metrics.classification.svm import WIDEST, one_feature_machine

rng = np.random.default_rng(0)
N = 700


def sigmoid(values):
    """In single precision, where much becomes exactly 1."""
    return np.float32(1 / (1 + np.exp(-values))).astype(float)


def clipped(share):
    near = np.where(rng.random(N) < share, 0.98, 0.03)
    return np.clip(near + 0.01 * rng.standard_normal(N), 0, 1)


CASES = {
    # Members, outsiders, suspects.
    "overlapping": [rng.beta(a, 1, N) for a in (6, 2, 4)],
    "saturated at 1": [sigmoid(5 * rng.standard_normal(N) + by) for by in (20, 12, 15)],
    "two peaks": [clipped(share) for share in (0.97, 0.8, 0.85)],
    "ties": [np.round(rng.beta(a, 1, N), 2) for a in (5, 2, 3)],
    "all alike": [rng.random(N) for _ in range(3)],
    "all equal, more members": [np.ones(60), np.ones(50), rng.random(N)],
    "all equal, fewer members": [np.ones(40), np.ones(50), rng.random(N)],
    "one member": [np.array([0.9]), rng.random(50), rng.random(N)],
    "one each": [np.array([1.0]), np.array([0.5]), rng.random(N)],
    "right or wrong": [(rng.random(N) < share).astype(float) for share in (0.99, 0.8, 0.9)],
    "entropy": [rng.exponential(by, N) for by in (0.2, 0.6, 0.4)],
    "wide": [40 * rng.random(N // 10) for _ in range(3)],
}


def column(values):
    return values[:, None]


@pytest.mark.parametrize("name", CASES)
def test_every_suspect_is_judged_as_by_scikit_learn(name):
    members, outsiders, suspects = CASES[name]
    seen, sides = np.r_[members, outsiders], np.r_[np.ones(len(members)), -np.ones(len(outsiders))]
    theirs = SVC(C=PENALTY, gamma="auto", tol=1e-7).fit(column(seen), sides)
    ours = one_feature_machine(seen, sides, penalty=PENALTY)
    assert ours is not None
    expected = theirs.decision_function(column(suspects))
    assert np.abs(ours(suspects) - expected).max() < 1e-4  # theirs computes its kernel in single precision
    assert np.array_equal(attack(*map(column, CASES[name])), theirs.predict(column(suspects)) == 1)


def test_the_order_of_the_images_does_not_matter():
    members, outsiders, suspects = CASES["overlapping"]
    again = attack(*map(column, (members[::-1], outsiders[::-1], suspects)))
    assert np.array_equal(again, attack(*map(column, CASES["overlapping"])))


@pytest.mark.parametrize("values", [np.ones(50), rng.random(50)], ids=["equal values", "equal sets"])
def test_who_lies_on_the_boundary_is_a_member(values):
    """Members and outsiders do not differ: f + b is 0 everywhere, which libsvm counts as the class of members."""
    decision = one_feature_machine(np.r_[values, values], np.repeat([1.0, -1.0], 50), penalty=PENALTY)
    assert np.abs(decision(rng.random(20))).max() < 1e-12
    assert attack(column(values), column(values), column(rng.random(20))).all()


def test_an_intercept_that_is_not_determined_is_the_middle_of_its_interval():
    """Far apart and with little penalty both losses are positive for every b between the two ends."""
    decision = one_feature_machine(np.array([0.0, 8.0]), np.array([1.0, -1.0]), penalty=0.25)
    # f is 1/4 at 0 and -1/4 at 8, so b may lie from -3/4 to 3/4.
    assert decision(np.array([0.0, 4.0, 8.0])) == pytest.approx([0.25, 0.0, -0.25], abs=1e-6)


@pytest.mark.parametrize("steps", [2, svm.STEPS])
def test_what_cannot_be_solved_is_left_to_scikit_learn(monkeypatch, steps):
    """Too few steps, or values too far apart."""
    monkeypatch.setattr(svm, "STEPS", steps)
    stretch = 1 if steps == 2 else 2 * WIDEST
    members, outsiders, suspects = (stretch * values for values in CASES["overlapping"])
    seen, sides = np.r_[members, outsiders], np.r_[np.ones(N), -np.ones(N)]
    assert one_feature_machine(seen, sides, penalty=PENALTY) is None
    theirs = SVC(C=PENALTY, gamma="auto").fit(column(seen), sides).predict(column(suspects)) == 1
    assert np.array_equal(attack(*map(column, (members, outsiders, suspects))), theirs)
