"""RECE: UCE, then again for the embeddings with which the edited network would still draw the concept."""

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from salun_core.errors import Diverged
from salun_core.methods.diffusion.network_parts import PARTS
from salun_core.methods.diffusion.uce import edited, edited_tokens, kept_tokens, uce
from salun_core.methods.engine import Method, Unlearned
from salun_core.methods.search import between
from salun_core.saliency import Mask, restore_unmarked_
from salun_core.tasks.base import Task
from salun_core.tasks.text_to_image import TextToImageTask


def rece(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 3,
    erase: NonNegativeFloat = 1.0,
    preserve: NonNegativeFloat = 0.1,
    ridge: PositiveFloat = 0.1,
    bound: PositiveFloat = 0.1,
    seed: int = 0,
) -> Unlearned:
    r"""Edit keys and values as `uce` does, and then against the strongest embeddings that are left.

    After each edit, V being an edited projection and W the original one, the token that brings the concept's
    token c back best is known in closed form,

    .. math:: c^* = \arg\min_{c'} \sum_{(V, W)} \|V c' - W c\|^2 + \beta \|c'\|^2
              = \Big(\sum V^\top V + \beta I\Big)^{-1} \sum V^\top W \, c ,

    the sum going over keys and values of all layers. These tokens are then sent where the concept's were
    sent, by the closed form of `uce` around the edited weights. No images, no gradients.

    Parameters
    ----------
    task : TextToImageTask
        Its forgotten, replacing and retained prompts are used. The authors' replacement is the empty prompt.
    mask : Mask, optional
        Weights that may change; others are put back after each edit.
    epochs : int
        Edits after the one of UCE: the authors take 3 for nudity, 1 for styles and objects.
    erase, preserve, ridge : float
        As in `uce`.
    bound : float
        :math:`\beta`, positive: 0.1 for nudity and for what UCE erases easily, 0.001 for styles and the rest.
    seed : int
        Not used: nothing is drawn.

    References
    ----------
    Gong et al., Reliable and efficient concept erasure of text-to-image diffusion models, ECCV 2024,
    arXiv:2407.12383.
    """
    first = uce(task, mask=mask, erase=erase, preserve=preserve, ridge=ridge)
    assert isinstance(task, TextToImageTask)
    before = dict(task.model.named_parameters())
    layers = [(name, w) for name, w in first.model.named_parameters() if PARTS["kv"](name)]
    concepts, anchors = edited_tokens(task)
    kept = kept_tokens(task)
    with torch.no_grad():
        for _ in range(epochs):
            strongest = remaining(
                [w for _, w in layers], [before[name] for name, _ in layers], concepts, bound=bound
            )
            for _, weight in layers:
                solved = edited(weight, strongest, anchors, kept, erase=erase, preserve=preserve, ridge=ridge)
                if not torch.isfinite(solved).all():
                    raise Diverged(f"the closed form of RECE is not finite: raise ridge {ridge:g}")
                weight.copy_(solved)
            if mask is not None:
                restore_unmarked_(first.model, task.model, mask)
    return first


def remaining(new: list[Tensor], old: list[Tensor], concepts: Tensor, *, bound: float) -> Tensor:
    r"""The tokens :math:`c^*` described in `rece`, in double precision.

    Parameters
    ----------
    new, old : list of Tensor
        V and W, (out, D) each.
    concepts : Tensor
        c, (n, D).
    bound : float
        :math:`\beta`.

    Returns
    -------
    Tensor
        (n, D).
    """
    pairs = [(v.double(), w.double()) for v, w in zip(new, old, strict=True)]
    left = torch.stack([v.T @ v for v, _ in pairs]).sum(dim=0)
    left += bound * torch.eye(len(left), dtype=left.dtype, device=left.device)
    right = torch.stack([v.T @ w for v, w in pairs]).sum(dim=0)
    return torch.linalg.solve(left, right @ concepts.double().T.to(right.device)).T


METHOD = Method(
    rece,
    "RECE",
    tasks=("text_to_image",),
    search={"preserve": between(1e-3, 1.0), "bound": between(1e-3, 1.0)},
    source="Gong et al., ECCV 2024",
)
