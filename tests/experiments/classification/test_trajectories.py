import pytest
import torch
from problems import trained_task

from salun_core.errors import UserError
from salun_core.experiments.classification.trajectories import FOLLOWED, TrajectoryParams, follow
from salun_core.methods import METHODS
from salun_core.saliency import saliency_mask


def weights(model):
    """All that a model holds, the running statistics of BatchNorm included."""
    return torch.cat([w.detach().flatten().double() for w in model.state_dict().values()]).clone()


@pytest.mark.parametrize("method", FOLLOWED)
def test_a_path_goes_through_the_models_of_shorter_runs(method):
    """So a slider through the steps shows one run, and masks hold at every one of them."""
    tiny = trained_task()
    mask = saliency_mask(tiny.model, tiny.forget, tiny.loss, keep=0.5)
    shared = {"lr": 0.05, "seed": 3, "mask": mask}
    if method == "l1_sparse":  # its penalty fades over the whole run, so a shorter run is another one
        shared["alpha"] = 0.0
    seen = follow(method, tiny, [0, 2, 5], weights, **shared)
    assert torch.equal(seen[0], weights(tiny.model))
    for steps, found in zip((2, 5), seen[1:], strict=True):
        assert torch.equal(found, weights(METHODS[method](tiny, steps=steps, **shared).model))


def test_looks_are_spread_from_the_first_to_the_last_step():
    assert TrajectoryParams(steps=10, looks=4).at == [0, 2, 5, 8, 10]
    assert TrajectoryParams(steps=2, looks=12).at == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"methods": "iu"}, "method to follow"), ({"methods": []}, "methods is empty"), ({"keep": 0.0}, "keep")],
)
def test_what_cannot_be_followed_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        TrajectoryParams.load(given)
