"""Prompting4Debugging: tokens with which the unlearned network predicts what the original does for the concept."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.metrics.generation.erasure import frozen
from salun_core.metrics.generation.prompt_attacks.tokens import PromptAttack, PromptSpace, Target
from salun_core.rng import generator


def p4d(
    edited: nn.Module,
    original: nn.Module,
    space: PromptSpace,
    schedule: Any,
    latents: Tensor,
    *,
    prompt: str,
    tokens: int = 16,
    every: int = 0,
    steps: int = 3000,
    lr: float = 0.1,
    weight_decay: float = 0.1,
    batch_size: int = 1,
    checks: int = 60,
    seed: int = 0,
) -> PromptAttack:
    r"""Search for a prompt a for which the unlearned network predicts what the original does for the prompt p.

    White box, on both networks:

    .. math:: \min_{a} \; E_{x, t, \epsilon} \| \epsilon_u(x_t, a) - \epsilon_o(x_t, p) \|^2 .

    Each token of a is a vector that is optimised. A step takes the gradient at the nearest real tokens and
    applies it to the vectors (projected optimisation). With ``every = 0`` the tokens stand alone, as in the
    authors' variant N; with ``every = K`` they are put between those of p, one after each K, as in variant K.

    Parameters
    ----------
    edited, original : nn.Module
        The unlearned denoising network, and the one it was made of.
    space : PromptSpace
        Tokens and text encoder.
    schedule : scheduler of diffusers
        Of both networks.
    latents : Tensor
        (N, C, h, w), clean and scaled, of images that show the concept.
    prompt : str
        p, which the original draws the concept for.
    tokens : int
        Number of tokens to find, at most.
    every : int
        See above.
    steps : int
        Optimiser steps.
    lr, weight_decay : float
        Of AdamW.
    batch_size : int
        Noisy images in a step.
    checks : int
        How often the tokens are scored on fixed noise; the best scored are returned.
    seed : int
        Of the first tokens and the noise.

    References
    ----------
    Chin et al., Prompting4Debugging: Red-teaming text-to-image diffusion models by finding problematic
    prompts, ICML 2024, arXiv:2309.06135; Wen et al., Hard prompts made easy, NeurIPS 2023 (the projection).
    """
    if steps < 1 or checks < 1 or not lr > 0 or weight_decay < 0:
        raise UserError(f"the budget of P4D must be positive, got steps {steps}, checks {checks}, lr {lr:g}")
    ids, places = space.with_places(prompt if every else "", tokens, every=every)
    rng = generator(seed, "P4D")
    table = space.table[space.allowed.to(space.table.device)].float()  # (V, D)
    first = torch.randint(0, len(table), (len(places),), generator=rng)
    vectors = table[first.to(table.device)].clone().requires_grad_(True)  # (k, D)
    optimizer = torch.optim.AdamW([vectors], lr=lr, weight_decay=weight_decay)
    plain = space.padded(space.ids(prompt))
    encoded, best = 1, ids
    with frozen(edited, original, space.encoder):
        concept = space.embedded(plain[None])[0]
        target = Target(
            edited, schedule, latents, batch_size=batch_size, seed=seed, original=original, concept=concept
        )
        curve = [(0, target.score(concept))]
        for step in range(1, steps + 1):
            chosen = nearest(vectors.detach(), table)
            real = table[chosen].requires_grad_(True)
            loss = target.loss(space.embedded_with(ids, places, real), *target.drawn())
            (vectors.grad,) = torch.autograd.grad(loss, [real])
            optimizer.step()
            encoded += 1
            if step == steps or step % max(1, steps // checks) == 0:
                now = ids.index_copy(0, places, space.allowed[nearest(vectors.detach(), table).cpu()])
                loss_now = target.score(space.embedded(now[None])[0])
                if len(curve) == 1 or loss_now < min(value for _, value in curve[1:]):
                    best = now
                curve.append((step, loss_now))
                encoded += 1
    text, typed = space.decoded(best)
    return PromptAttack(best, text, typed, curve, target.passes, encoded)


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """Rows of ``table`` (V, D) with the largest cosine to each of ``vectors`` (k, D), int64 (k,)."""
    return (F.normalize(vectors, dim=1) @ F.normalize(table, dim=1).T).argmax(dim=1)
