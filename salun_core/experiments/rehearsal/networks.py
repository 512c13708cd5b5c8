"""What a network costs: weights, arithmetic and activations of one image, found without memory for either."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from salun_core.errors import UserError, one_line
from salun_core.models import build_model
from salun_core.models.classification.scores import class_scores
from salun_core.models.diffusion.unet import build_unet, quiet

SD_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""The denoising network of Stable Diffusion 1.4: 859,520,964 weights."""

SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
"""Its autoencoder."""

TEXT_WEIGHTS = 123_060_480
"""Weights of its text encoder, that of CLIP ViT-L/14."""


class Flops(TorchDispatchMode):
    """Counts what convolutions, products of matrices and attention do inside the block, forward and backward.

    torch's own counter also says in which module, and fails for that where a gradient is asked for an input.
    """

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


@dataclass(frozen=True)
class Cost:
    """Of one image through one network.

    Parameters
    ----------
    weights : int
        Of the network.
    flops : float
        Of the forward pass; a multiplication and an addition are two.
    activations : float
        Bytes kept for the backward pass, in single precision.
    """

    weights: int
    flops: float
    activations: float


def classifier_cost(
    arch: str,
    width: int | None,
    *,
    classes: int,
    channels: int,
    size: int,
    brought: Callable[[], nn.Module] | None = None,
) -> Cost:
    """Of a classifier: the one that ``brought`` builds, where a configuration describes it."""

    def build() -> nn.Module:
        mean = [0.5] * channels
        return build_model(
            arch, classes=classes, channels=channels, size=size, seed=0, width=width, mean=mean, std=mean
        )

    return cost(
        brought or build, lambda net: class_scores(net, torch.zeros(2, channels, size, size)), images=2
    )


def unet_cost(
    widths: tuple[int, ...], layers: int, attention: tuple[int, ...], *, channels: int, size: int
) -> Cost:
    """Of the denoising network of class-conditional diffusion."""

    def build() -> nn.Module:
        return build_unet(
            classes=10,
            channels=channels,
            size=size,
            widths=widths,
            layers=layers,
            attention=attention,
            seed=0,
        )

    def run(net: nn.Module) -> Any:
        images, zero = torch.zeros(1, channels, size, size), torch.zeros(1, dtype=torch.int64)
        return net(images, zero, class_labels=zero).sample

    return cost(build, run)


def text_unet_cost(config: dict[str, Any], *, tokens: int = 77) -> Cost:
    """Of the denoising network of a text-to-image pipeline: a UNet, or the transformer of Stable Diffusion 3."""
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    side, zero = config["sample_size"], torch.zeros(1, dtype=torch.int64)

    def transformer(net: Any) -> Any:
        kept = net.config
        given = {
            "encoder_hidden_states": torch.zeros(1, 2 * tokens, kept.joint_attention_dim),
            "pooled_projections": torch.zeros(1, kept.pooled_projection_dim),
        }
        return net(torch.zeros(1, kept.in_channels, side, side), timestep=zero.to("meta"), **given).sample

    def unet(net: Any) -> Any:
        prompt = torch.zeros(1, tokens, net.config.cross_attention_dim)
        more: dict[str, Any] = {}
        if net.config.addition_embed_type == "text_time":
            width = net.config.projection_class_embeddings_input_dim - 6 * net.config.addition_time_embed_dim
            more = {
                "added_cond_kwargs": {"text_embeds": torch.zeros(1, width), "time_ids": torch.zeros(1, 6)}
            }
        return net(torch.zeros(1, net.config.in_channels, side, side), zero.to("meta"), prompt, **more).sample

    if config.get("_class_name") == SD3Transformer2DModel.__name__:
        return cost(lambda: SD3Transformer2DModel.from_config(config), transformer)
    return cost(lambda: UNet2DConditionModel.from_config(config), unet)


def decoder_cost(config: dict[str, Any]) -> Cost:
    """Of drawing the image behind a latent of what the pipeline draws; the weights are those of the whole autoencoder."""
    from diffusers import AutoencoderKL

    side = config["sample_size"] // 2 ** (len(config["block_out_channels"]) - 1)

    def run(net: Any) -> Any:
        return net.decode(torch.zeros(1, config["latent_channels"], side, side)).sample

    return cost(lambda: AutoencoderKL.from_config(config), run)


@contextmanager
def describing(source: object) -> Iterator[None]:
    """Turn whatever a broken configuration leads to, while networks are built from it, into one sentence."""
    try:
        yield
    except Exception as error:  # the libraries raise many kinds
        raise UserError(
            f"the configurations in {source} describe no network that can be built ({type(error).__name__}: "
            f"{one_line(error)[:120]}): copy the pipeline again, whole"
        ) from error


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention that keeps queries, keys and values and no matrix of weights, as the kernels of accelerators do.

    On the meta device torch takes the plain formula, whose matrices are most of what it keeps.
    """
    plain = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **more: Any) -> Any:
        return checkpoint(partial(_attention, plain, args, more), query, key, value, use_reentrant=True)

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def _attention(plain: Any, args: Any, more: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return plain(query, key, value, *args, **more)


def cost(build: Callable[[], nn.Module], run: Callable[[nn.Module], Tensor], *, images: int = 1) -> Cost:
    """Of ``run(net)``, a forward pass of ``images`` images through the network that ``build`` makes.

    Everything takes place on torch's meta device, which has shapes and no numbers.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"), quiet(), _fused_attention():
        net = build().train()
        own = {weight.untyped_storage()._cdata for weight in net.parameters()}
        with Flops() as meter, saved_tensors_hooks(keep, lambda tensor: tensor):
            out = run(net)
            activations = sum(
                tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own
            )
        assert out.device.type == "meta"
    weights = sum(weight.numel() for weight in net.parameters())
    return Cost(weights, meter.total / images, activations / images)
