"""Metrics against values worked out by hand or by an independent computation."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.svm import SVC

from salun_core.data.splits import ROLES
from salun_core.errors import UserError
from salun_core.metrics import METRICS, SELECTION, Evaluation
from salun_core.metrics.classification.mia import mia
from salun_core.metrics.gaps import AVERAGE, REFERENCES, by_method, gaps, noise_floor, summary
from salun_core.metrics.share import NOTHING, wilson


def evaluation(counts, *, classes=4, seed=0, lift=None):
    """Random logits; ``lift`` makes the true class of a role likelier."""
    rng = torch.Generator().manual_seed(seed)
    total = sum(counts.values())
    labels = torch.randint(0, classes, (total,), generator=rng)
    logits = torch.randn(total, classes, generator=rng)
    roles = torch.cat([torch.full((n,), ROLES.index(role)) for role, n in counts.items()]).to(torch.uint8)
    for role, by in (lift or {}).items():
        rows = (roles == ROLES.index(role)).nonzero().view(-1)
        logits[rows, labels[rows]] += by
    return Evaluation(logits, labels, torch.randperm(total, generator=rng), roles)


SOME = evaluation(
    {"forget": 60, "retain": 300, "validation": 40, "test": 120},
    lift={"retain": 3, "forget": 2.5, "test": 1.5},
)


def by_hand(roles, right):
    """Four classes; the images of each role are right or wrong as listed."""
    logits = torch.zeros(len(right), 4)
    labels = torch.arange(len(right)) % 4
    logits[torch.arange(len(right)), torch.where(torch.tensor(right), labels, (labels + 1) % 4)] = 1.0
    codes = torch.tensor([ROLES.index(role) for role in roles], dtype=torch.uint8)
    return Evaluation(logits, labels, torch.arange(len(right)), codes)


def test_accuracies_by_counting():
    roles = ["forget"] * 4 + ["retain"] * 5 + ["test"] * 2 + ["test_forgotten"] * 3
    right = [True, False, False, False] + [True] * 4 + [False] + [True, False] + [False] * 3
    found = by_hand(roles, right)
    values = {name: float(METRICS[name](found)) for name in ("UA", "RA", "TA", "TFA")}
    assert values == {"UA": 0.75, "RA": 0.8, "TA": 0.5, "TFA": 1.0}


def test_the_forgotten_class_does_not_count_in_ta():
    roles = ["test"] * 2 + ["test_forgotten"] * 6
    assert float(METRICS["TA"](by_hand(roles, [True, True] + [False] * 6))) == 1.0


def features(logits, labels):
    """The five features in plain numpy, image by image."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mine = p[np.arange(len(p)), labels]
    modified = []
    for row, label in zip(p, labels, strict=True):
        value = -(1 - row[label]) * math.log(row[label])
        value -= sum(row[i] * math.log(1 - row[i]) for i in range(len(row)) if i != label)
        modified.append([value])
    return {
        "confidence": mine[:, None],
        "correctness": (p.argmax(1) == labels).astype(float)[:, None],
        "entropy": -(p * np.log(p)).sum(1, keepdims=True),
        "m_entropy": np.array(modified),
        "prob": p,
    }


@pytest.mark.parametrize("name", ["confidence", "correctness", "entropy", "m_entropy", "prob"])
def test_the_attack_agrees_with_a_machine_fitted_here(name):
    parts = {}
    for role in ("retain", "test", "forget"):
        logits, labels = SOME.part(role)
        order = SOME.ids[SOME.roles == ROLES.index(role)].argsort()
        plain = SOME.logits[SOME.roles == ROLES.index(role)][order].double().numpy()
        truth = SOME.labels[SOME.roles == ROLES.index(role)][order].numpy()
        parts[role] = features(plain, truth)[name]
        assert len(logits) == len(labels) == len(plain)
    count = min(len(parts["retain"]), len(parts["test"]))
    seen = np.concatenate([parts["retain"][:count], parts["test"][:count]])
    machine = SVC(C=3, gamma="auto").fit(seen, np.repeat([1, 0], count))
    expected = (machine.predict(parts["forget"]) == 0).mean()
    assert float(mia(SOME, feature=name, order="released")) == pytest.approx(expected, abs=1e-12)


def test_the_attack_tells_known_images_from_new_ones():
    counts = {"forget": 100, "retain": 200, "test": 200}
    known = evaluation(counts, lift={"retain": 8, "forget": 8}, seed=1)
    fresh = evaluation(counts, lift={"retain": 8}, seed=1)
    assert float(mia(known)) < 0.2 < 0.8 < float(mia(fresh))


def test_settings_are_chosen_without_test_images():
    """Whatever is said of the test images, the criterion stays."""
    before = {name: float(metric(SOME)) for name, metric in SELECTION.items()}
    logits = SOME.logits.clone()
    logits[SOME.roles == ROLES.index("test")] = -7.0
    after = Evaluation(logits, SOME.labels, SOME.ids, SOME.roles)
    assert {name: float(metric(after)) for name, metric in SELECTION.items()} == before


def test_metrics_of_an_absent_role_are_nothing():
    found = by_hand(["forget", "retain"], [True, True])
    assert math.isnan(float(METRICS["TFA"](found)))
    assert math.isnan(float(METRICS["MIA"](found)))


def test_the_interval_of_a_share_is_wilsons():
    share = wilson(8, n=10)  # 0.490 to 0.943 in the tables
    assert share.value == 0.8
    assert (round(share.low, 3), round(share.high, 3)) == (0.49, 0.943)
    assert wilson(0, n=5).low == 0.0
    assert wilson(5, n=5).high == 1.0
    assert wilson(0, n=0) is NOTHING


def test_a_stored_evaluation_gives_the_same_metrics(tmp_path):
    path = tmp_path / "x.logits.safetensors"
    path.write_bytes(SOME.to_bytes())
    again = Evaluation.load(path)
    assert [float(m(again)) for m in METRICS.values()] == pytest.approx(
        [float(m(SOME)) for m in METRICS.values()], nan_ok=True
    )


@pytest.mark.parametrize("damage", ["truncated", "changed", "other"])
def test_a_damaged_evaluation_is_refused(tmp_path, damage):
    path = tmp_path / "x.logits.safetensors"
    content = bytearray(SOME.to_bytes())
    if damage == "changed":
        content[-3] ^= 1
    path.write_bytes({"truncated": bytes(content[:-40]), "changed": bytes(content), "other": b"{}"}[damage])
    with pytest.raises(UserError, match=r"x\.logits\.safetensors"):
        Evaluation.load(path)


def test_an_image_with_two_roles_is_refused():
    with pytest.raises(UserError, match="two roles"):
        Evaluation(torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2).long(), torch.zeros(2).byte())


def table(rows):
    names = ("method", "seed", "replica", "UA", "RA", "TA", "MIA")
    frame = pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])
    return frame.assign(dataset="d", arch="a", width=None, scenario="random 10%", mask="none", keep=1.0)


CELLS = table(
    [
        ("retrain", 0, 0, 0.10, 1.00, 0.90, 0.20),
        ("retrain", 0, 1, 0.14, 1.00, 0.88, 0.20),
        ("retrain", 1, 0, 0.20, 0.98, 0.92, 0.30),
        ("rl", 0, 0, 0.06, 0.99, 0.95, 0.20),
        ("rl", 1, 0, 0.20, 0.98, 0.90, 0.36),
    ]
)


def test_gaps_by_hand():
    rl = gaps(CELLS, reference="first").query("method == 'rl'")
    assert rl["gap UA"].tolist() == pytest.approx([0.04, 0.0])
    assert rl[AVERAGE].tolist() == pytest.approx([(0.04 + 0.01 + 0.05 + 0) / 4, (0 + 0 + 0.02 + 0.06) / 4])


def test_gaps_to_the_mean_of_all_replicas_by_hand():
    found = gaps(CELLS, reference="mean").set_index(["method", "seed", "replica"])
    # Retrain of seed 0 has UA 0.10 and 0.14, hence 0.12 on average; seed 1 has one Retrain.
    assert found.loc[("rl", 0, 0), "gap UA"] == pytest.approx(0.06)
    assert found.loc[("rl", 0, 0), AVERAGE] == pytest.approx((0.06 + 0.01 + 0.06 + 0) / 4)
    assert found.loc[("rl", 1, 0), AVERAGE] == pytest.approx((0 + 0 + 0.02 + 0.06) / 4)
    # A replica is compared with the others, not with a mean that contains it.
    assert found.loc[("retrain", 0, 0), "gap UA"] == pytest.approx(0.04)
    assert found.loc[("retrain", 0, 1), "gap UA"] == pytest.approx(0.04)
    assert found.loc[("retrain", 1, 0), AVERAGE] == 0


def test_a_retrain_listed_twice_counts_once_in_the_reference():
    twice = pd.concat([CELLS, CELLS.query("method == 'retrain' and replica == 1")])
    rl = gaps(twice, reference="mean").query("method == 'rl'")
    assert rl["gap UA"].tolist() == pytest.approx([0.06, 0.0])


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_gap_to_a_retrain_that_diverged_is_nothing(reference):
    lost = CELLS.assign(UA=CELLS["UA"].where(~((CELLS["method"] == "retrain") & (CELLS["seed"] == 0))))
    rl = gaps(lost, reference=reference).query("method == 'rl'")
    assert rl["gap UA"].isna().tolist() == [True, False]
    assert rl[AVERAGE].isna().tolist() == [True, False]


def test_an_unknown_reference_is_refused():
    with pytest.raises(UserError, match="median"):
        gaps(CELLS, reference="median")


def test_the_noise_floor_is_between_replicas_of_one_seed():
    floor = noise_floor(CELLS)
    assert len(floor) == 1
    assert floor[AVERAGE].iloc[0] == pytest.approx((0.04 + 0 + 0.02 + 0) / 4)


def test_spread_over_seeds():
    found = by_method(gaps(CELLS), "UA").query("method == 'rl'").iloc[0]
    assert found["n"] == 2
    assert found["mean"] == pytest.approx(0.13)
    assert found["std"] == pytest.approx(0.14 / math.sqrt(2))
    # t with one degree of freedom: 12.706
    assert found["high"] - found["mean"] == pytest.approx(12.7062 * 0.14 / 2, rel=1e-4)


def test_a_seed_that_diverged_is_counted_beside_the_mean():
    lost = CELLS.assign(UA=CELLS["UA"].where(CELLS["seed"] == 0))
    found = by_method(gaps(lost), "UA").set_index("method").loc["rl"]
    assert (found["mean"], found["n"], found["lost"]) == (pytest.approx(0.06), 1, 1)
    whole = by_method(gaps(CELLS), "UA").set_index("method").loc["rl"]
    assert (whole["n"], whole["lost"]) == (2, 0)


def test_runs_of_one_training_seed_are_averaged_before_they_are_counted():
    nested = pd.concat([CELLS, CELLS.query("method == 'rl'").assign(UA=lambda frame: frame["UA"] + 0.02)])
    once, found = (by_method(cells, "UA").set_index("method").loc["rl"] for cells in (CELLS, nested))
    assert found["n"] == once["n"] == 2
    assert found["mean"] == pytest.approx(once["mean"] + 0.01)
    assert found["std"] == pytest.approx(once["std"])
    assert found["lost"] == 0


def test_one_seed_has_no_spread():
    assert math.isnan(summary(pd.Series([0.5]))["std"])
