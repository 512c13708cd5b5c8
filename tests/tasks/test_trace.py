"""Losses are kept without a tensor for each step."""

import gc

import pytest
import torch
from torch import Tensor, nn

from salun_core.data.batches import Batch, Batches
from salun_core.methods.engine import descend
from salun_core.tasks.classification import classification_task
from salun_core.tasks.classification_training import Recipe, train_network
from salun_core.tasks.trace import BLOCK, Trace


def _living() -> int:
    return sum(type(found) is Tensor for found in gc.get_objects())


def test_all_losses_come_back_in_order_over_several_blocks():
    given = torch.linspace(0, 1, 2 * BLOCK + 7, dtype=torch.float64)
    trace = Trace()
    for value in given:
        trace.add(value)
    assert len(trace) == len(given)
    assert torch.equal(trace.values(), given)


def test_no_losses_are_an_empty_tensor():
    assert Trace().values().tolist() == []


def test_the_graph_of_a_loss_is_not_kept():
    trace = Trace()
    trace.add((torch.ones(1, requires_grad=True) * 2).sum())
    assert not trace.values().requires_grad


@pytest.mark.parametrize("what", ["training", "unlearning"])
def test_a_run_holds_no_more_tensors_after_many_steps(what: str):
    images, labels = torch.rand(100, 1, 2, 2), torch.arange(100) % 2
    batches = Batches(images, labels, torch.arange(100), size=1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    living: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        living.append(sum(type(found) is Tensor for found in gc.get_objects()))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    if what == "training":
        train_network(net, batches, loss, recipe=Recipe(epochs=1, lr=0.01, batch_size=1), seed=0)
    else:
        task = classification_task(net, forget=[(images, labels)], retain=[(images, labels)])
        descend(task, lambda model: ((loss(model, b), 1) for b in batches), lr=0.01, mask=None, seed=0)
    assert len(living) == 100
    assert living[-1] - living[10] < 5
