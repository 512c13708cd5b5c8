"""Where SalUn-soft comes to rest, against the closed form of its objective."""

from functools import partial

import pytest
import torch
from problems import trained_task
from torch import nn

from salun_core.data.batches import Batches
from salun_core.errors import UserError
from salun_core.methods import METHODS
from salun_core.methods.step_size import StepSizes
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import DiffusionRecipe, limited

pytestmark = pytest.mark.long

SGD, Adam, AdamW, Adafactor = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adafactor)
ANCHOR = torch.full((2, 4), 0.25)
GOAL = torch.tensor([[-2.0, -0.5, -0.2, 0.25], [0.6, 1.0, 1.5, 3.0]])  # (2, 4): the minimum without penalty
BETA = 0.5


class Point(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.w = nn.Parameter(at.clone())


class Parabola:
    """The loss (w - goal)^2 / 2 in every weight, and an optimiser of one's choice."""

    kind = "classification"

    def __init__(self, optimizer, at=ANCHOR, goal=GOAL):
        self.model, self.goal, self.made = Point(at), goal, optimizer
        nothing = torch.zeros(1, dtype=torch.long)
        self.forget = self.retain = Batches(torch.zeros(1, 1, 1, 1), nothing, nothing)

    def loss(self, model, batch, rng=None):
        return 0 * model.w.sum()

    def relabel_loss(self, model, batch, rng):
        return (model.w - self.goal).square().sum() / 2

    def optimizer(self, model, lr):
        return self.made(model.parameters(), lr=lr)


def closed_form(anchor, goal, beta, decay=0.0):
    """Minimum of (w - goal)^2 / 2 + decay w^2 / 2 + beta |w - anchor|."""
    pull = goal - (1 + decay) * anchor
    return anchor + pull.sign() * (pull.abs() - beta).clamp(min=0) / (1 + decay)


def rested(task, *, lr, steps=2000, beta=BETA):
    result = METHODS["salun_soft"](
        task, steps=steps, lr=lr, order="forget", beta=beta, decline="constant", shrink="penalty"
    )
    return result.model.w.detach()


@pytest.mark.parametrize("lr", [0.01, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_half_of_the_way_whatever_momentum_and_learning_rate(momentum, lr):
    # min (w - 1)^2 / 2 + |w| / 2 has its minimum at w = 1/2.
    task = Parabola(partial(SGD, momentum=momentum), at=torch.zeros(1), goal=torch.ones(1))
    assert rested(task, lr=lr).item() == pytest.approx(0.5, abs=1e-3)


UNDECAYED = [
    partial(SGD, momentum=0.9),
    partial(SGD, momentum=0.9, nesterov=True),
    partial(SGD, momentum=0.9, dampening=0.5),
    Adam,
    partial(Adam, betas=(0.5, 0.99)),
    partial(Adam, amsgrad=True),
    partial(AdamW, weight_decay=0),
    partial(Adafactor, weight_decay=0),
]


@pytest.mark.parametrize("clip", [0, 0.3])
@pytest.mark.parametrize("optimizer", UNDECAYED)
def test_every_optimiser_rests_at_the_closed_form(optimizer, clip):
    task = Parabola(lambda weights, lr: limited(optimizer(weights, lr=lr), clip))
    found = rested(task, lr=0.01)
    torch.testing.assert_close(found, closed_form(ANCHOR, GOAL, BETA), rtol=0, atol=1e-3)
    assert torch.equal(found[0, 1:] == ANCHOR[0, 1:], torch.tensor([False, True, True]))


@pytest.mark.parametrize("optimizer", [partial(SGD, momentum=0.9), Adam])
def test_weight_decay_is_part_of_the_objective(optimizer):
    found = rested(Parabola(partial(optimizer, weight_decay=0.2)), lr=0.01)
    torch.testing.assert_close(found, closed_form(ANCHOR, GOAL, BETA, decay=0.2), rtol=0, atol=1e-3)


def test_the_optimiser_of_diffusion_tasks_rests_at_the_closed_form():
    recipe = DiffusionRecipe(steps=1, clip=1.0)
    fake = type("", (), {"recipe": recipe})()
    task = Parabola(None)
    task.optimizer = lambda model, lr: DiffusionTask.optimizer(fake, model, lr)
    found = rested(task, lr=0.01)
    torch.testing.assert_close(found, closed_form(ANCHOR, GOAL, BETA), rtol=0, atol=1e-3)


def test_a_declining_penalty_ends_at_the_minimum_without_it():
    task = Parabola(partial(SGD, momentum=0.9))
    soft = METHODS["salun_soft"](task, steps=2000, lr=0.01, order="forget", beta=BETA).model
    torch.testing.assert_close(soft.w.detach(), GOAL, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(SGD, momentum=0.9, dampening=0.3),
        partial(SGD, momentum=0.8, nesterov=True),
        Adam,
        partial(Adam, amsgrad=True),
        partial(Adafactor, weight_decay=0),
    ],
)
def test_under_a_constant_gradient_each_step_is_the_step_size_times_the_gradient(optimizer):
    gradient = torch.tensor([[1e-3, -2.0, 0.5], [0.1, 3.0, -1e-2]])
    for shape in ((2, 3), (6,)):
        weight = nn.Parameter(torch.ones(shape))
        made = limited(optimizer([weight], lr=0.01), 1.0)
        sizes = StepSizes(made)
        for factor in (1.0, 1.0, 1.0, 1.0):
            before = weight.detach().clone()
            weight.grad = factor * gradient.view(shape).clone()
            made.step()
            moved = sizes()[weight] * gradient.view(shape)
            torch.testing.assert_close(before - weight.detach(), moved, rtol=1e-3, atol=1e-6)


def test_an_optimiser_with_unknown_steps_is_refused():
    task = Parabola(torch.optim.RMSprop)
    with pytest.raises(UserError, match="RMSprop are not known: give the task one of SGD, Adam"):
        rested(task, lr=0.01)
    # The released code's rule needs no step size.
    METHODS["salun_soft"](task, steps=1, lr=0.01, order="forget", shrink="quantile", beta=0.5)


def test_the_larger_beta_the_more_weights_stay():
    task = trained_task()

    def unchanged(beta):
        soft = METHODS["salun_soft"](task, epochs=2, beta=beta).model
        pairs = zip(soft.parameters(), task.model.parameters(), strict=True)
        return torch.cat([(a == b).flatten() for a, b in pairs]).float().mean()

    shares = [unchanged(beta) for beta in (0.0, 1e-4, 1e-3, 1e-2)]
    assert shares == sorted(shares)
    assert shares[0] < 0.01 < 0.1 < shares[2] < 0.8
