"""Ring-A-Bell: tokens whose embedding lies where the concept is, found without looking at any denoising network."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from salun_core.errors import UserError
from salun_core.metrics.generation.erasure import frozen
from salun_core.metrics.generation.prompt_attacks.tokens import PromptAttack, PromptSpace
from salun_core.rng import generator


def ring_a_bell(
    space: PromptSpace,
    *,
    pairs: Sequence[tuple[str, str]],
    prompt: str,
    strength: float = 3.0,
    tokens: int = 16,
    population: int = 200,
    generations: int = 3000,
    mutation: float = 0.25,
    crossover: float = 0.5,
    batch_size: int = 200,
    seed: int = 0,
) -> PromptAttack:
    r"""Search for a prompt a that is embedded near the prompt p moved towards the concept.

    Black box: only the text encoder f is used, so the same prompt is tried on every model.

    .. math:: \min_{a} \; \| f(a) - [f(p) + \eta\, \hat c] \|^2 , \qquad
              \hat c = \frac{1}{n} \sum_i \left[ f(p_i^{c}) - f(p_i^{\bar c}) \right] ,

    the squared distance summed over all tokens. The search is a genetic one: of each generation the better
    half survives; of these each has with probability ``crossover`` two children with another one, exchanging
    the tokens behind a random place; and with probability ``mutation`` one token of a prompt is drawn anew.

    Parameters
    ----------
    space : PromptSpace
        Tokens and text encoder.
    pairs : sequence of (str, str)
        Prompts with the concept, and the same without it.
    prompt : str
        p, which need not name the concept.
    strength : float
        :math:`\eta`; the authors use 3 for nudity.
    tokens : int
        Number of tokens to find.
    population, generations : int
        Prompts in the first generation, and number of generations.
    mutation, crossover : float
        Probabilities.
    batch_size : int
        Prompts embedded at once.
    seed : int
        Of the search.

    References
    ----------
    Tsai et al., Ring-A-Bell! How reliable are concept removal methods for diffusion models?, ICLR 2024,
    arXiv:2310.10012; released code ("InversePrompt").
    """
    if population < 2 or generations < 1 or not 0 <= mutation <= 1 or not 0 <= crossover <= 1:
        raise UserError(
            f"the budget of Ring-A-Bell must be positive, got population {population}, generations {generations}, "
            f"mutation {mutation:g}, crossover {crossover:g}"
        )
    ids, places = space.with_places("", tokens)
    rng = generator(seed, "Ring-A-Bell")
    encoded = 0

    def drawn(*shape: int) -> Tensor:
        return space.allowed[torch.randint(0, len(space.allowed), shape, generator=rng)]

    def distances(found: Tensor) -> Tensor:  # (n, k) to (n,)
        nonlocal encoded
        encoded += len(found)
        whole = ids.repeat(len(found), 1).index_copy(1, places, found)
        parts = [space.embedded(part) for part in whole.split(batch_size)]
        return torch.cat([(part - goal).square().sum(dim=(1, 2)).cpu() for part in parts])

    with frozen(space.encoder):
        plain = space.embedded(space.padded(space.ids(prompt))[None])
        goal = plain + strength * concept_vector(space, pairs)
        encoded += 1 + 2 * len(pairs)
        curve = [(0, float((plain - goal).square().sum()))]
        prompts, best = drawn(population, tokens), ids
        for step in range(1, generations + 1):
            scores = distances(prompts)
            order = scores.argsort(stable=True)
            if len(curve) == 1 or scores[order[0]] < min(value for _, value in curve[1:]):
                best = ids.index_copy(0, places, prompts[order[0]])
            curve.append((step, float(scores[order[0]])))
            prompts = prompts[order[: population // 2]]
            if step < generations:
                prompts = _mutated(_crossed(prompts, crossover, rng), mutation, drawn, rng)
    text, typed = space.decoded(best)
    return PromptAttack(best, text, typed, curve, 0, encoded)


def concept_vector(space: PromptSpace, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Mean difference of embedded prompts with and without a concept, (L, D)."""
    if not pairs:
        raise UserError("Ring-A-Bell needs at least one pair of prompts, with and without the concept")
    sides = [torch.stack([space.padded(space.ids(pair[side])) for pair in pairs]) for side in (0, 1)]
    return (space.embedded(sides[0]) - space.embedded(sides[1])).mean(dim=0)


def _crossed(parents: Tensor, crossover: float, rng: torch.Generator) -> Tensor:
    """The parents (n, k), and two children of each that has some."""
    count, tokens = parents.shape
    rows = (torch.rand(count, generator=rng) < crossover).nonzero().view(-1)
    others = torch.randint(0, count, (len(rows),), generator=rng)
    cuts = torch.randint(0, tokens, (len(rows), 1), generator=rng)
    behind = torch.arange(tokens)[None] >= cuts
    one, other = parents[rows], parents[others]
    return torch.cat([parents, torch.where(behind, other, one), torch.where(behind, one, other)])


def _mutated(
    prompts: Tensor, mutation: float, drawn: Callable[[int], Tensor], rng: torch.Generator
) -> Tensor:
    """The prompts (n, k), some with one token drawn anew."""
    rows = (torch.rand(len(prompts), generator=rng) < mutation).nonzero().view(-1)
    places = torch.randint(0, prompts.shape[1], (len(rows),), generator=rng)
    return prompts.index_put((rows, places), drawn(len(rows)))
