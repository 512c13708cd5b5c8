"""The contract finds what breaks it."""

import copy
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from problems import trained_task
from pydantic import PositiveFloat

from salun_core.data.batches import Batches
from salun_core.errors import UserError
from salun_core.methods.contract import check_method, differences, observed, unchanged
from salun_core.methods.engine import Method, Unlearned, descend
from salun_core.metrics.classification.outputs import evaluate
from salun_core.saliency import SCORES, saliency_mask, saliency_scores


def honest(task, *, mask=None, lr: PositiveFloat = 0.01, seed: int = 0):
    def losses(model):
        yield from ((task.loss(model, batch), len(batch[0])) for batch in task.retain)

    return descend(task, losses, lr=lr, mask=mask, seed=seed)


def breaking(what):
    """An honest method that does one thing more."""

    def run(task, *, mask=None, lr: PositiveFloat = 0.01, seed: int = 0):
        result = honest(task, mask=mask, lr=lr, seed=seed)
        found = what(task, result)
        return found if isinstance(found, Unlearned) else result

    return run


def first(task):
    return next(iter(task.model.parameters()))


def moved(task, result):
    with torch.no_grad():
        next(iter(result.model.parameters())).flatten()[0] += 1


COUNT = itertools.count(1)
SPARE = torch.nn.Linear(2, 2).eval()
FAULTS = {
    "weight 0.weight": lambda task, _: first(task).data.add_(1),
    "buffer 1.running_mean": lambda task, _: task.model[1].running_mean.add_(1),
    "training mode of 1": lambda task, _: task.model[1].train(not task.model[1].training),
    "requires_grad of weight 4.bias": lambda task, _: task.model[4].bias.requires_grad_(False),
    "gradient of weight": lambda task, _: task.model.zero_grad(),
    "_forward_hooks of 0": lambda task, _: task.model[0].register_forward_hook(lambda *_: None),
    "place of weight 0.weight": lambda task, _: setattr(first(task), "data", first(task).data.clone()),
    "images of the forget set": lambda task, _: task.forget.images.add_(1),
    "random numbers of torch": lambda *_: torch.rand(1),
    "random numbers of numpy": lambda *_: np.random.rand(),  # noqa: NPY002
    "random numbers of Python": lambda *_: random.random(),
    "shares memory": lambda task, _: Unlearned(task.model, [], 0),
    "0.weight of the unlearned model is not finite": lambda _, result: dict(result.model.named_parameters())[
        "0.weight"
    ].data.fill_(math.nan),
    "other weights than the task's own": lambda *_: Unlearned(SPARE, [], 0),
    "in training mode": lambda _, result: result.model[1].train(),
    "two runs with one seed differ": lambda _, result: first(result).data.mul_(next(COUNT)),
    "although the mask holds": moved,
}


def own_task():
    task = trained_task()
    parts = {role: Batches(b.images.clone(), b.labels, b.ids, b.size) for role, b in task.parts.items()}
    return type(task)(copy.deepcopy(task.model), parts, task.build, task.recipe)


def test_an_honest_method_passes():
    check_method(Method(honest, "honest"), own_task())


@pytest.mark.parametrize("found", FAULTS)
def test_each_fault_is_found_and_named(found):
    with pytest.raises(AssertionError, match=found):
        check_method(Method(breaking(FAULTS[found]), "bad"), own_task())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (({}, [], 0), "the unlearned model is a dict"),
        ((SPARE, [torch.tensor(1.0)], 0), "not a list of numbers: write loss.item"),
        ((SPARE, None, 0), "not a list of numbers"),
        ((SPARE, [1.0], "many"), "samples of an Unlearned are a str"),
    ],
)
def test_what_could_not_be_stored_is_refused_when_it_is_returned(parts, message):
    with pytest.raises(UserError, match=message):
        Unlearned(*parts)


def test_gradients_that_a_method_switches_off_are_recorded_again_after_it():
    switching = breaking(lambda *_: torch._C._set_grad_enabled(False))
    check_method(Method(switching, "switching"), own_task())
    assert torch.is_grad_enabled()


def test_settings_that_take_anything_are_found():
    def run(task, *, mask=None, lr: Any = 0.01, seed: int = 0):
        return honest(task, mask=mask, lr=0.01, seed=seed)

    with pytest.raises(AssertionError, match="asked for its model|lr=nan was not refused"):
        check_method(Method(run, "careless"), own_task())


def test_values_are_compared_bit_by_bit():
    nan, zero = torch.tensor([float("nan")]), torch.zeros(1)
    assert differences({"a": nan}, {"a": nan.clone()}) == []
    assert differences({"a": zero}, {"a": -zero}) == ["a"]
    assert differences({"a": zero}, {"a": zero.double()}) == ["a"]
    assert differences({"a": zero}, {"b": zero}) == ["a", "b"]


@pytest.mark.parametrize("mode", ["training", "evaluation", "mixed"])
def test_masks_and_evaluation_leave_everything_as_it_is(mode):
    task = own_task()
    task.model.train(mode == "training")
    if mode == "mixed":
        task.model[1].eval()
        task.model[4].train()
        task.model[0].weight.requires_grad_(False)
        task.model[4].weight.grad = torch.ones_like(task.model[4].weight)
    with unchanged(task):
        for score in SCORES:
            for dtype in (None, torch.float64):
                saliency_scores(task.model, task.forget, task.loss, score=score, dtype=dtype)
        saliency_mask(task.model, task.forget, task.loss, keep=0.3)
        evaluate(task.model, task.parts)
    assert len(observed(task)) > 100
