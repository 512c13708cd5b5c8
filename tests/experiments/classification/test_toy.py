import pytest
import torch

from salun_core.errors import UserError
from salun_core.experiments.classification.toy import ToyParams, grid, run


@pytest.fixture(scope="module")
def toy():
    return run(ToyParams(steps=3, retrained=2))


def test_the_original_knows_all_points_and_retrain_does_not(toy):
    for path in toy.paths.values():
        assert path[0].metrics()["UA"] == 0
    assert min(model.metrics()["UA"] for model in toy.retrained) > 0.4
    assert all(model.metrics()["RA"] > 0.95 for model in toy.retrained)


def test_masks_change_the_path_and_nothing_else_does(toy):
    first = [path[1].logits for path in toy.paths.values()]
    assert not torch.equal(first[1], first[2])
    again = run(ToyParams(steps=3, retrained=2))
    assert all(torch.equal(again.paths[k][3].logits, path[3].logits) for k, path in toy.paths.items())


def test_the_retrained_models_differ(toy):
    assert not torch.equal(toy.retrained[0].logits, toy.retrained[1].logits)


def test_rows_of_the_grid_run_upwards():
    places = grid(3)
    assert places[0, 0].tolist() == [-1.25, -1.25]
    assert places[2, 0].tolist() == [-1.25, 1.25]


def test_a_keep_out_of_range_is_refused():
    with pytest.raises(UserError, match="keep must lie in"):
        ToyParams.load({"keep": 2.0})
