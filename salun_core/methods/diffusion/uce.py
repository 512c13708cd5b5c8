"""Unified Concept Editing: new keys and values of cross-attention, in closed form."""

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from salun_core.errors import Diverged, UserError
from salun_core.methods.diffusion.network_parts import PARTS, cross_attention_layers
from salun_core.methods.engine import Method, Unlearned, trainable_copy
from salun_core.methods.lora import Lora
from salun_core.methods.search import between
from salun_core.saliency import Mask, check_mask, restore_unmarked_
from salun_core.tasks.base import Task
from salun_core.tasks.text_to_image import TextToImageTask


def uce(
    task: Task,
    *,
    mask: Mask | None = None,
    erase: NonNegativeFloat = 1.0,
    preserve: NonNegativeFloat = 0.1,
    ridge: PositiveFloat = 0.1,
    seed: int = 0,
) -> Unlearned:
    r"""Replace each key and value projection W by the minimiser V of a weighted sum of squares.

    .. math:: a \sum_i \|V c_i - W c'_i\|^2 + p \sum_j \|V k_j - W k_j\|^2 + \lambda \|V - W\|^2 ,

    where :math:`c_i` are the embedded tokens of forgotten prompts from the last one that names the concept
    on, :math:`c'_i` those of the replacement at the same distance from its own, and :math:`k_j` all tokens of
    the prompts to keep. No images, no gradients.

    Parameters
    ----------
    task : TextToImageTask
        Its forgotten, replacing and retained prompts are used.
    mask : Mask, optional
        Weights that may change; others are put back afterwards.
    erase, preserve, ridge : float
        a, p and :math:`\lambda`; the last must be positive.
    seed : int
        Not used: nothing is drawn.

    References
    ----------
    Gandikota et al., Unified concept editing in diffusion models, WACV 2024.
    """
    if not isinstance(task, TextToImageTask):
        raise UserError("UCE works on a text-to-image model only")
    if isinstance(mask, Lora):
        raise UserError("UCE solves for weights and trains none: use it with a mask, not with adapters")
    model = trainable_copy(task.model)
    if mask is not None:
        check_mask(mask, model)
    cross_attention_layers(model)
    concepts, anchors = edited_tokens(task)
    kept = kept_tokens(task)
    layers = [(name, w) for name, w in model.named_parameters() if PARTS["kv"](name)]
    with torch.no_grad():
        for _, weight in layers:
            solved = edited(weight, concepts, anchors, kept, erase=erase, preserve=preserve, ridge=ridge)
            if not torch.isfinite(solved).all():
                raise Diverged(f"the closed form of UCE is not finite: raise ridge {ridge:g}")
            weight.copy_(solved)
    if mask is not None:
        restore_unmarked_(model, task.model, mask)
    return Unlearned(model.eval(), [], 0)


def edited(
    weight: Tensor,
    concepts: Tensor,
    anchors: Tensor,
    kept: Tensor,
    *,
    erase: float,
    preserve: float,
    ridge: float,
) -> Tensor:
    """The minimiser described in `uce`, in double precision.

    Parameters
    ----------
    weight : Tensor
        W, (out, D).
    concepts, anchors : Tensor
        c and c', (n, D) each.
    kept : Tensor
        k, (m, D).
    erase, preserve, ridge : float
        As in `uce`.
    """
    w, c, a, k = (t.double() for t in (weight, concepts, anchors, kept))
    identity = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    left = w @ (erase * a.T @ c + preserve * k.T @ k + ridge * identity)  # (out, D)
    right = erase * c.T @ c + preserve * k.T @ k + ridge * identity  # (D, D), symmetric
    return torch.linalg.solve(right, left, left=False)


def edited_tokens(task: TextToImageTask) -> tuple[Tensor, Tensor]:
    """Embedded tokens (n, D) of the forgotten prompts and, place by place, of their replacements."""
    named = task.tokens("concept")
    old, new = [], []
    for number in task.forget.labels.unique().tolist():
        other = int(task.replacement[number])
        start = int(named[number].nonzero().max())
        # The same token counted from the end of the text: of a replacement with the same ending.
        behind = int(task.prompts.lengths[number]) - start
        there = max(1, int(task.prompts.lengths[other]) - behind)
        count = len(named[number]) - max(start, there)
        old.append(task.prompts.embeddings[number, start : start + count])
        new.append(task.prompts.embeddings[other, there : there + count])
    return torch.cat(old), torch.cat(new)


def kept_tokens(task: TextToImageTask) -> Tensor:
    """Embedded tokens (m, D) of the prompts to keep, those to forget left out."""
    numbers = task.retain.labels.unique()
    numbers = numbers[~torch.isin(numbers, task.forget.labels.unique())]
    return task.prompts.embeddings[numbers.to(task.prompts.embeddings.device)].flatten(0, 1)


METHOD = Method(
    uce,
    "UCE",
    tasks=("text_to_image",),
    search={"preserve": between(1e-3, 1.0), "ridge": between(1e-3, 1.0)},
    source="Gandikota et al., WACV 2024",
)
