"""UnlearnDiffAtk: tokens before a prompt with which the unlearned network removes the noise from concept images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.metrics.generation.erasure import frozen
from salun_core.metrics.generation.prompt_attacks.tokens import PromptAttack, PromptSpace, Target
from salun_core.models.diffusion.objectives import objective_of
from salun_core.rng import generator


def unlearn_diff_atk(
    edited: nn.Module,
    space: PromptSpace,
    schedule: Any,
    latents: Tensor,
    *,
    prompt: str,
    tokens: int = 5,
    times: int = 50,
    iterations: int = 40,
    lr: float = 0.01,
    weight_decay: float = 0.1,
    batch_size: int = 1,
    seed: int = 0,
) -> PromptAttack:
    r"""Search for tokens a that, put before the prompt p, minimise the denoising error on images of the concept.

    White box, on the unlearned network alone:

    .. math:: \min_{a} \; E_{x, \epsilon} \| \epsilon_u(x_t, [a, p]) - \epsilon \|^2 .

    Each token is a distribution over all tokens, uniform at first. A step draws one token from each, takes the
    gradient of the loss with respect to the drawn one-hot vectors (its entries limited to [-1, 1]), makes a
    step of Adam, and projects each distribution back onto the simplex. After ``iterations`` steps at one time
    t the most likely tokens are scored on fixed noise, and the search goes on at the next t. The best tokens
    scored are returned; the authors draw an image instead and stop as soon as it shows the concept.

    Parameters
    ----------
    edited : nn.Module
        The unlearned denoising network.
    space : PromptSpace
        Tokens and text encoder.
    schedule : scheduler of diffusers
        The network's.
    latents : Tensor
        (N, C, h, w), clean and scaled, of images that show the concept.
    prompt : str
        p, which the attack leaves as it is.
    tokens : int
        Number of tokens put before it.
    times, iterations : int
        Time steps visited, evenly spaced over the diffusion, and steps at each.
    lr, weight_decay : float
        Of Adam.
    batch_size : int
        Noisy images in a step.
    seed : int
        Of tokens and noise.

    References
    ----------
    Zhang et al., To generate or not? Safety-driven unlearned diffusion models are still easy to generate
    unsafe images ... for now, ECCV 2024, arXiv:2310.11868; released code, October 2024 ("text_grad").
    """
    if times < 1 or iterations < 1 or not lr > 0 or weight_decay < 0:
        raise UserError(
            f"the budget of UnlearnDiffAtk must be positive, got times {times}, iterations {iterations}, lr {lr:g}"
        )
    ids, places = space.with_places(prompt, tokens)
    target = Target(edited, schedule, latents, batch_size=batch_size, seed=seed)
    rng = generator(seed, "UnlearnDiffAtk")
    table = space.table[space.allowed.to(space.table.device)].float()  # (V, D)
    spread = torch.full((tokens, len(table)), 1 / len(table), device=table.device)  # (k, V)
    spread.requires_grad_(True)
    optimizer = torch.optim.Adam([spread], lr=lr, weight_decay=weight_decay)
    visited = objective_of(schedule).at((torch.arange(times) + 0.5) / times)
    encoded, best = 1, ids
    with frozen(edited, space.encoder):
        curve = [(0, target.score(space.embedded(space.padded(space.ids(prompt))[None])[0]))]
        for done, time in enumerate(visited, start=1):
            for _ in range(iterations):
                chosen = torch.multinomial(spread.detach().cpu(), 1, generator=rng).view(-1).to(table.device)
                vectors = table[chosen].requires_grad_(True)
                loss = target.loss(space.embedded_with(ids, places, vectors), *target.drawn(time))
                (slope,) = torch.autograd.grad(loss, [vectors])
                spread.grad = one_hot_gradient(slope, table)
                optimizer.step()
                with torch.no_grad():
                    spread.copy_(simplex(spread))
            now = ids.index_copy(0, places, space.allowed[spread.detach().argmax(dim=1).cpu()])
            loss_now = target.score(space.embedded(now[None])[0])
            if done == 1 or loss_now < min(value for _, value in curve[1:]):
                best = now
            curve.append((done * iterations, loss_now))
            encoded += iterations + 1
    text, typed = space.decoded(best)
    return PromptAttack(best, text, typed, curve, target.passes, encoded)


def one_hot_gradient(slope: Tensor, table: Tensor) -> Tensor:
    r"""Gradient with respect to one-hot vectors u, given that with respect to their embeddings :math:`uE`.

    Parameters
    ----------
    slope : Tensor
        (k, D).
    table : Tensor
        E, (V, D).

    Returns
    -------
    Tensor
        (k, V), entries limited to [-1, 1] as in the released code.
    """
    return F.hardtanh(slope @ table.T)


def simplex(points: Tensor) -> Tensor:
    """The nearest points whose entries are not negative and sum to 1, for each row of (k, V).

    References
    ----------
    Held, Wolfe and Crowder, Mathematical Programming 6 (1974); Duchi et al., ICML 2008.
    """
    high = points.sort(dim=1, descending=True).values
    excess = high.cumsum(dim=1) - 1
    counts = torch.arange(1, points.shape[1] + 1, device=points.device)
    kept = (high * counts > excess).sum(dim=1, keepdim=True)  # entries that stay positive
    return (points - excess.gather(1, kept - 1) / kept).clamp_min(0)
