"""Draws of a part of a set: every class in proportion, and the same whatever else the set holds."""

import pytest
import torch

from salun_core.data.draws import class_ranks, lots, stratified_order

LABELS = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
IDS = torch.arange(100)


@pytest.mark.parametrize("size", [1, 10, 33, 50, 97, 100])
def test_the_first_part_of_a_stratified_order_has_the_shares_of_the_whole(size):
    order = stratified_order(LABELS, lots(IDS, "test"))
    assert order.sort().values.tolist() == IDS.tolist()
    counts = torch.bincount(LABELS[order[:size]], minlength=3)
    assert ((counts - size * torch.tensor([0.6, 0.3, 0.1])).abs() <= 1).all()


def test_an_image_has_the_same_lot_in_every_set():
    part = torch.tensor([7, 93, 2])
    assert torch.equal(lots(part, "test"), lots(IDS, "test")[part])
    assert not torch.equal(lots(IDS, "test"), lots(IDS, "another purpose"))
    assert lots(IDS[:0], "test").shape == (0,)


def test_lots_are_spread_evenly_and_tell_nothing_of_the_id():
    found = lots(torch.arange(20_000), "test")
    assert torch.histc(found, 10, 0, 1).sub(2000).abs().max() < 200
    assert abs(float(torch.corrcoef(torch.stack([found, torch.arange(20_000.0).double()]))[0, 1])) < 0.03


def test_ranks_count_within_the_class():
    ranks = class_ranks(torch.tensor([1, 0, 1, 0, 1]), torch.tensor([0.5, 0.9, 0.1, 0.2, 0.3]))
    assert ranks.tolist() == [2, 1, 0, 0, 1]


def test_drawing_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    stratified_order(LABELS, lots(IDS, "test"))
    assert torch.equal(torch.rand(1), expected)
