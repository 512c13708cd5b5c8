"""Forget-Me-Not: train the network to pay no attention to the words of the forgotten concept."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.methods.diffusion.network_parts import Part, cross_attention_layers, part_mask
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task
from salun_core.tasks.text_to_image import TextToImageTask, Tokens


def fmn(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = 35,
    lr: PositiveFloat = 2e-6,
    tokens: Tokens = "concept",
    part: Part = "full",
    seed: int = 0,
) -> Unlearned:
    r"""Minimise the attention that noisy images of the forgotten concept pay to its words.

    The loss is the mean of :math:`A^2` over layers, heads, image positions and the tokens chosen, where
    :math:`A = \mathrm{softmax}(q k^\top / \sqrt{d})` is the cross-attention. The retain set is not used.

    Parameters
    ----------
    task : TextToImageTask
        A pipeline's network with its forget set.
    mask : Mask, optional
        Weights that may change, within ``part``.
    epochs, steps, lr, seed
        As in `rl`; by default 35 steps as the authors take.
    tokens : str
        "concept": the tokens of a prompt that its replacement lacks. "all": every token between start and
        end, and "padded": those and all behind them, which carry the meaning of the whole prompt.
    part : str
        A key of ``network_parts.PARTS``.

    References
    ----------
    Zhang et al., Forget-Me-Not: Learning to forget in text-to-image diffusion models, 2023.
    """
    if not isinstance(task, TextToImageTask):
        raise UserError("Forget-Me-Not works on a text-to-image model only")
    wanted = task.tokens(tokens).to(task.forget.labels.device)  # (M, L)
    mask = part_mask(task.model, part, mask)
    rng = generator(seed, "fmn")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="forget", epochs=epochs, steps=steps):
            assert step.forget is not None
            images, given = step.forget
            noisy, times, _ = task.noised(images, rng)
            with cross_attention(model) as maps:
                task.predict(model, noisy, times, given)
                # The step is taken while the hooks are in place: with gradient checkpointing the backward
                # pass runs each block again, and must find the same operations there.
                yield attention_to(maps, wanted[given].to(noisy.device)), len(images)

    return descend(task, losses, lr=lr, mask=mask, seed=seed)


def attention_to(maps: list[Tensor], tokens: Tensor) -> Tensor:
    """Mean square over layers of the attention (N, heads, places, L) to the marked tokens (N, L)."""
    share = tokens / tokens.sum()  # (N, L): the mean over the marked tokens as a weighted sum over all
    squares = [attention.float().square().mean(dim=(1, 2)) for attention in maps]  # (N, L) each
    return torch.stack([(square * share).sum() for square in squares]).mean()


@contextlib.contextmanager
def cross_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the cross-attention maps (N, heads, places, L) of the first pass made inside the block.

    A gradient of the maps must be taken inside the block too, if the model checkpoints its activations.
    """
    maps: list[Tensor] = []
    seen: set[nn.Module] = set()

    def note(layer: Any, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        text = named["encoder_hidden_states"]
        query, key = layer.head_to_batch_dim(layer.to_q(given[0])), layer.head_to_batch_dim(layer.to_k(text))
        found = layer.get_attention_scores(query, key)  # (N * heads, places, L)
        if layer not in seen:  # a recomputed block computes its maps again: no need to hold them twice
            seen.add(layer)
            maps.append(found.view(len(text), -1, *found.shape[1:]))

    layers = cross_attention_layers(model)
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


METHOD = Method(
    fmn,
    "FMN",
    tasks=("text_to_image",),
    search={"lr": between(1e-6, 1e-3)},
    source="Zhang et al., 2023",
)
