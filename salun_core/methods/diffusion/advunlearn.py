"""AdvUnlearn: ESD against the embedded prompt that would bring the concept back best, sought anew at each step."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.methods.diffusion.network_parts import Part, part_mask
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.models.diffusion.conditions import Condition, bounded_, vectors, with_vectors
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task
from salun_core.tasks.text_to_image import TextToImageTask

Search = Literal["adam", "sign"]
SCALE = 2.0**12  # gradients of a multiple of the loss do not vanish in half precision


def advunlearn(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = 1000,
    lr: PositiveFloat = 1e-5,
    eta: NonNegativeFloat = 1.0,
    gamma: NonNegativeFloat = 0.3,
    warmup: NonNegativeInt = 200,
    attack_steps: PositiveInt = 30,
    attack_lr: PositiveFloat = 1e-3,
    attack_radius: PositiveFloat = 0.5,
    attack: Search = "adam",
    part: Part = "full",
    seed: int = 0,
) -> Unlearned:
    r"""Minimise the loss of ESD for the worst embedded prompt near c, and keep predictions for other prompts.

    .. math:: \min_\theta \; \|\epsilon_\theta(x_t, c^*) - [\epsilon_o(x_t, \varnothing)
              - \eta\,(\epsilon_o(x_t, c) - \epsilon_o(x_t, \varnothing))]\|^2
              + \gamma \, \|\epsilon_\theta(\tilde x_t, \tilde c) - \epsilon_o(\tilde x_t, \tilde c)\|^2 ,

    .. math:: c^* = \arg\min_{c'} \|\epsilon_\theta(x_t, c') - \epsilon_o(x_t, c)\|^2
              \quad \text{subject to} \quad \|c'_l - c_l\|_2 \le r \|c_l\|_2 \;\; \text{for each token } l ,

    with the frozen original :math:`\epsilon_o`, and images and prompts :math:`\tilde x, \tilde c` of the
    retain set. The authors found the text encoder the better part to train; here, as in their comparison,
    it is the denoising network, and the attack changes the embedded prompt, not words put before it.

    Parameters
    ----------
    task : TextToImageTask
        A pipeline's network with its forget and retain set.
    mask : Mask, optional
        Weights that may change, within ``part``.
    epochs, steps, lr, seed
        As in `rl`; by default 1,000 steps as the authors take.
    eta : float
        As in `esd`.
    gamma : float
        :math:`\gamma`, at least 0.
    warmup : int
        Steps before the first attack; c itself is used in them.
    attack_steps, attack_lr : int, float
        Of each attack, which starts from c and draws new noise in each of its steps.
    attack_radius : float
        r, positive.
    attack : str
        "adam", or "sign" for the sign of the gradient in its place, as in fast adversarial training.
    part : str
        A key of ``network_parts.PARTS``.

    References
    ----------
    Zhang et al., Defensive unlearning with adversarial training for robust concept erasure in diffusion
    models, NeurIPS 2024, arXiv:2405.15234.
    """
    if not isinstance(task, TextToImageTask):
        raise UserError("AdvUnlearn works on a text-to-image model only")
    mask = part_mask(task.model, part, mask)
    rng = generator(seed, "advunlearn")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for number, step in enumerate(rounds(task, rng, order="joint", epochs=epochs, steps=steps)):
            assert step.forget is not None and step.retain is not None
            images, given = step.forget
            asked = task.condition(given)
            if number >= warmup:
                asked = strongest(
                    task,
                    model,
                    images,
                    given,
                    rng,
                    steps=attack_steps,
                    lr=attack_lr,
                    radius=attack_radius,
                    search=attack,
                )
            noisy, times, _ = task.noised(images, rng)
            with torch.no_grad():
                of_none = task.predict(task.model, noisy, times, torch.full_like(given, task.null), fast=True)
                of_it = task.predict(task.model, noisy, times, given, fast=True)
            goal = of_none - eta * (of_it - of_none)
            loss = F.mse_loss(task.predict_given(model, noisy, times, asked), goal)
            if gamma:
                kept, prompts = step.retain
                noisy, times, _ = task.noised(kept, rng)
                with torch.no_grad():
                    goal = task.predict(task.model, noisy, times, prompts, fast=True)
                loss = loss + gamma * F.mse_loss(task.predict(model, noisy, times, prompts), goal)
            yield loss, step.samples if gamma else len(images)

    return descend(task, losses, lr=lr, mask=mask, seed=seed)


def strongest(
    task: TextToImageTask,
    model: nn.Module,
    images: Tensor,
    given: Tensor,
    rng: torch.Generator,
    *,
    steps: int,
    lr: float,
    radius: float,
    search: Search = "adam",
) -> Condition:
    """The embedded prompts :math:`c^*` described in `advunlearn`, one for each image.

    Parameters
    ----------
    task : TextToImageTask
        Gives the original network.
    model : nn.Module
        The network in training; its gradients stay as they are.
    images, given : Tensor
        Latents to forget, and numbers of their prompts (N,). Equal prompts get equal changes.
    rng : torch.Generator
        Of the noise.
    steps, lr, radius, search
        As in `advunlearn`.
    """
    numbers, places = given.unique(return_inverse=True)
    start = task.condition(numbers)
    start = start.to(next(model.parameters()).device, torch.float32)
    origin = [v.detach() for v in vectors(start)]
    move = [torch.zeros_like(v, requires_grad=True) for v in origin]
    optimizer = torch.optim.Adam(move, lr=lr)

    def found() -> Condition:
        return with_vectors(start, [v + m for v, m in zip(origin, move, strict=True)])

    for _ in range(steps):
        noisy, times, _ = task.noised(images, rng)
        with torch.no_grad():
            goal = task.predict(task.model, noisy, times, given, fast=True)
        loss = F.mse_loss(task.predict_given(model, noisy, times, found()[places]), goal)
        slopes = torch.autograd.grad(loss * SCALE, move)
        with torch.no_grad():
            for part, slope in zip(move, slopes, strict=True):
                if search == "sign":
                    part.sub_(slope.sign(), alpha=lr)
                else:
                    part.grad = slope / SCALE
            if search == "adam":
                optimizer.step()
            for part, whole in zip(move, origin, strict=True):
                bounded_(part, whole, radius)
    with torch.no_grad():
        return found()[places]


METHOD = Method(
    advunlearn,
    "AdvUnlearn",
    tasks=("text_to_image",),
    search={"lr": between(1e-6, 1e-3), "gamma": between(0.1, 3.0)},
    source="Zhang et al., NeurIPS 2024",
)
