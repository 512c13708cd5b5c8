"""No metric depends on how a data set numbers its images: only the released order of the attack does."""

from functools import cache, partial
from statistics import mean, stdev

import pytest
import torch

from salun_core.data.splits import ROLES
from salun_core.metrics import ATTACKS, METRICS, SELECTION, Evaluation
from salun_core.metrics.classification.mia import matched_by_class, mia

COUNTS = {
    "retain": 5000,
    "forget": 1000,
    "validation": 1000,
    "test": 1500,
    "validation_forgotten": 100,
    "test_forgotten": 100,
}
CLASSES = 10
EVERY = METRICS | ATTACKS | {f"select {name}": metric for name, metric in SELECTION.items()}
EXACT = {"UA", "RA", "TA", "TFA", "select UA", "select RA", "select VA"}


def trained_model(seed=0):
    """What an original model says: images it was trained on are easier, and so are some classes."""
    rng = torch.Generator().manual_seed(seed)
    roles = torch.cat([torch.full((n,), ROLES.index(role)) for role, n in COUNTS.items()]).to(torch.uint8)
    labels = torch.randint(0, CLASSES, (len(roles),), generator=rng)
    known = (roles == ROLES.index("retain")) | (roles == ROLES.index("forget"))
    logits = torch.randn(len(roles), CLASSES, generator=rng)
    # From 5 for the easiest class to 0.5 for the hardest.
    logits[torch.arange(len(roles)), labels] += 5 - 0.5 * labels + 2.5 * known
    return logits, labels, roles


def numbered(number, seed=0):
    """The same answers in a data set that numbers its images otherwise; training images come first."""
    logits, labels, roles = trained_model()
    held_out = torch.tensor([ROLES[r].startswith("test") for r in roles.tolist()])
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = {
        "shuffled": shuffled,
        "sorted by class": shuffled[labels[shuffled].argsort(stable=True)],
        "reversed": shuffled.flip(0),
        "sorted by class, reversed": shuffled[labels[shuffled].argsort(stable=True, descending=True)],
    }[number]
    order = order[held_out[order].long().argsort(stable=True)]
    ids = torch.empty_like(order)
    ids[order] = torch.arange(len(order))
    rows = ids.argsort()  # the rows of an evaluation follow the numbering too
    return Evaluation(logits[rows], labels[rows], ids[rows], roles[rows])


@cache
def redrawn(name):
    """Mean and largest deviation that other random numberings lead one to expect: the sampling noise."""
    values = [float(EVERY[name](numbered("shuffled", seed))) for seed in range(6)]
    return mean(values), 5 * stdev(values)


@pytest.mark.parametrize("number", ["sorted by class", "reversed", "sorted by class, reversed"])
@pytest.mark.parametrize("name", EVERY)
def test_renumbering_the_images_changes_no_metric(name, number):
    middle, noise = redrawn(name)
    if name in EXACT:
        assert noise == 0
    assert noise < 0.1
    assert float(EVERY[name](numbered(number))) == pytest.approx(middle, abs=noise, rel=1e-12)


def test_the_attack_on_an_original_model_in_a_folder_sorted_by_class():
    """Its members are drawn from all classes; in the released order they are the first classes only."""
    middle, noise = redrawn("MIA")
    released = partial(mia, order="released")
    assert float(released(numbered("shuffled"))) == pytest.approx(middle, abs=noise)
    assert abs(float(released(numbered("sorted by class"))) - middle) > 2 * noise


def test_members_and_outsiders_have_the_same_classes():
    found = numbered("sorted by class")
    members, outsiders = matched_by_class(found, found.rows("retain"), found.rows("test"))
    # There are more retain than test images of every class, so no test image is left out.
    assert sorted(outsiders.tolist()) == sorted(found.rows("test").tolist())
    counts = [torch.bincount(found.labels[rows], minlength=CLASSES) for rows in (members, outsiders)]
    assert counts[0].tolist() == counts[1].tolist()
    assert (found.roles[members] == ROLES.index("retain")).all()
    # Not the first of each class: the mean place of the members is that of all.
    middle = float(found.ids[found.rows("retain")].double().mean())
    assert float(found.ids[members].double().mean()) == pytest.approx(middle, rel=0.05)


def test_where_a_class_is_rare_on_one_side_both_sides_have_few_of_it():
    labels = torch.tensor([0] * 8 + [1] * 2 + [0] * 3 + [1] * 6 + [2])
    roles = torch.tensor([ROLES.index("retain")] * 10 + [ROLES.index("test")] * 10, dtype=torch.uint8)
    found = Evaluation(torch.zeros(20, 3), labels, torch.arange(20), roles)
    members, outsiders = matched_by_class(found, found.rows("retain"), found.rows("test"))
    assert labels[members].sort().values.tolist() == [0, 0, 0, 1, 1]
    assert labels[outsiders].sort().values.tolist() == [0, 0, 0, 1, 1]


def test_without_a_class_in_common_there_is_no_attack():
    labels = torch.tensor([0, 0, 1, 1, 0])
    roles = torch.tensor([ROLES.index(r) for r in ("retain", "retain", "test", "test", "forget")]).byte()
    found = Evaluation(torch.zeros(5, 2), labels, torch.arange(5), roles)
    assert mia(found).n == 0
    assert mia(found, order="released").n == 1


def test_the_images_kept_of_a_recorded_run_are_those_that_the_attack_draws():
    """So its MIA is that of the whole run, up to half precision."""
    found = numbered("sorted by class")
    kept = found.sampled(
        2000
    )  # of 5,000 retain images, at least as many of every class as of the test images
    whole, part = (matched_by_class(e, e.rows("retain"), e.rows("test")) for e in (found, kept))
    for of_all, of_kept in zip(whole, part, strict=True):
        assert kept.ids[of_kept].tolist() == found.ids[of_all].tolist()
    assert len(kept.rows("retain")) == 2000
    assert float(mia(kept)) == pytest.approx(float(mia(found)), abs=0.005)
