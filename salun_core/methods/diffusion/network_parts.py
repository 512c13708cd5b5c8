"""Parts of a text-conditioned denoising network, as masks."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from salun_core.errors import UserError
from salun_core.methods.lora import Lora
from salun_core.methods.settings import check_value
from salun_core.saliency import Mask, check_mask

Part = Literal["full", "xattn", "noxattn", "selfattn", "kv"]

PARTS: dict[Part, Callable[[str], bool]] = {
    "full": lambda name: True,
    "xattn": lambda name: ".attn2." in name,
    # Neither the embedding of the time step nor the last layer, as in the authors' code.
    "noxattn": lambda name: (
        ".attn2." not in name and not name.startswith(("conv_out", "conv_norm_out", "time_embedding"))
    ),
    "selfattn": lambda name: ".attn1." in name,
    "kv": lambda name: name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")),
}
"""Which weights belong to a part, by their names in diffusers.

"full": all. "xattn": cross-attention, where the text comes in. "noxattn": all else. "selfattn":
self-attention. "kv": the keys and values of cross-attention.
"""


def cross_attention_layers(model: nn.Module) -> list[Any]:
    """The layers in which a network attends to text and to nothing else, in order.

    There are none in a transformer that attends to image and text jointly, as that of Stable Diffusion 3
    does; what bears the same name in version 3.5 is a second self-attention.

    Raises
    ------
    UserError
        If there are none.
    """
    found = [
        module
        for name, module in model.named_modules()
        if name.endswith(".attn2") and getattr(module, "is_cross_attention", False)
    ]
    if not found:
        raise UserError(
            "the network has no cross-attention, layers that attend to text alone: give one with it"
        )
    return found


def part_mask(model: nn.Module, part: Part, mask: Mask | None = None) -> Mask | None:
    """A mask for one part of a network, and within a mask that is given.

    Parameters
    ----------
    model : nn.Module
        Denoising network.
    part : str
        A key of ``PARTS``.
    mask : Mask, optional
        Only weights that it marks too. Adapters are handed on, with "full" only.

    Raises
    ------
    UserError
        If the network has no such part.
    """
    check_value("part", part, Part)
    belongs = PARTS[part]
    if part == "full":
        return mask
    if isinstance(mask, Lora):
        raise UserError(f"adapters name their own layers: give them with part 'full', not {part!r}")
    try:
        cross_attention_layers(model)
    except UserError as error:
        raise UserError(f"the network has no cross-attention, so no part {part!r}: choose 'full'") from error
    weights = dict(model.named_parameters())
    # One value seen as many: the mask of a part takes no memory.
    whole = {
        name: torch.tensor(belongs(name), device=w.device).expand(w.shape) for name, w in weights.items()
    }
    if mask is None:
        return whole
    check_mask(mask, model)
    return {name: whole[name] & mask[name].to(whole[name].device) for name in whole}
