"""What sets one kind of text-to-image pipeline apart from another. A new one is a class and a line in ``FAMILIES``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.models.diffusion.conditions import Condition, Embedded


class Family:
    """A kind of pipeline: which network is unlearned, and how prompts are embedded for it.

    This one is Stable Diffusion's; the others say where they differ.
    """

    pipeline: ClassVar[str] = "StableDiffusionPipeline"
    """Class in diffusers."""
    network: ClassVar[str] = "unet"
    """The denoising network among the pipeline's parts."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Text encoders among the pipeline's parts, the tokenizers being named alike."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Text encoders that a pipeline may lack."""
    flows: ClassVar[bool] = False
    """Whether the network was trained by flow matching."""
    times: ClassVar[str] = "logit_normal"
    """How flow matching drew time steps in training, see `FlowMatching`."""

    def parts(self, pipe: Any) -> dict[str, nn.Module]:
        """Every network of a pipeline that has a share in its images, the denoising one first."""
        names = (self.network, "vae", *self.encoders)
        return {name: getattr(pipe, name) for name in names if getattr(pipe, name) is not None}

    def embedded(self, pipe: Any, texts: Sequence[str]) -> Condition:
        """What the network is given for prompts, N of each part; a prompt that is too long is cut off."""
        given = pipe.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=pipe.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return pipe.text_encoder(given.input_ids.to(pipe.text_encoder.device))[0]

    def unprompted(self, pipe: Any) -> Condition:
        """The same for no prompt at all, what guidance starts from; of one image, without N."""
        return self.embedded(pipe, [""])[0]

    def options(self, pipe: Any) -> dict[str, Any]:
        """What else a pipeline with the same parts is built with."""
        return {"requires_safety_checker": pipe.safety_checker is not None}


@dataclass(frozen=True)
class SDXLPrompts(Embedded):
    """Prompts for Stable Diffusion XL.

    Parameters
    ----------
    tokens, pooled : Tensor
        (N, L, D), both text encoders side by side, and (N, P), of the second one.
    sizes : Tensor
        (N, 6), the "time ids": original height and width, top and left of the crop, height and width wanted.
    """

    sizes: Tensor

    def predicted(self, model: nn.Module, noisy: Tensor, times: Tensor) -> Tensor:
        """See `Embedded.predicted`."""
        added = {"text_embeds": self.pooled, "time_ids": self.sizes}
        return model(
            noisy,
            times,
            encoder_hidden_states=self.tokens,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class SDXL(Family):
    """Stable Diffusion XL: two text encoders, a pooled prompt, and the size of the image as conditions."""

    pipeline = "StableDiffusionXLPipeline"
    encoders = ("text_encoder", "text_encoder_2")

    def embedded(self, pipe: Any, texts: Sequence[str]) -> SDXLPrompts:
        """See `Family.embedded`. Images are whole ones of the size that the pipeline draws."""
        tokens, _, pooled, _ = pipe.encode_prompt(
            list(texts), device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        sizes = torch.tensor([side, side, 0, 0, side, side]).to(pooled).expand(len(pooled), -1)
        return SDXLPrompts(tokens, pooled, sizes)

    def unprompted(self, pipe: Any) -> SDXLPrompts:
        """See `Family.unprompted`: zeros where the pipeline says so, as the released one does."""
        empty = self.embedded(pipe, [""])[0]
        if not pipe.config.force_zeros_for_empty_prompt:
            return empty
        return SDXLPrompts(torch.zeros_like(empty.tokens), torch.zeros_like(empty.pooled), empty.sizes)

    def options(self, pipe: Any) -> dict[str, Any]:
        """See `Family.options`."""
        zeros = pipe.config.force_zeros_for_empty_prompt
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": pipe.watermark is not None}


@dataclass(frozen=True)
class SD3Prompts(Embedded):
    """Prompts for Stable Diffusion 3: tokens (N, L, D) of three text encoders, and the first two pooled (N, P)."""

    def predicted(self, model: nn.Module, noisy: Tensor, times: Tensor) -> Tensor:
        """See `Embedded.predicted`."""
        return model(
            noisy,
            timestep=times,
            encoder_hidden_states=self.tokens,
            pooled_projections=self.pooled,
            return_dict=False,
        )[0]


class SD3(Family):
    """Stable Diffusion 3: a transformer that predicts the velocity of a rectified flow.

    The third text encoder, T5, may be missing; the pipeline puts zeros in its place.
    """

    pipeline = "StableDiffusion3Pipeline"
    network = "transformer"
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional = ("text_encoder_3",)
    flows = True

    def embedded(self, pipe: Any, texts: Sequence[str]) -> SD3Prompts:
        """See `Family.embedded`."""
        tokens, _, pooled, _ = pipe.encode_prompt(
            list(texts),
            None,
            None,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
        )
        return SD3Prompts(tokens, pooled)

    def options(self, pipe: Any) -> dict[str, Any]:
        """See `Family.options`."""
        return {}


FAMILIES: Mapping[str, Family] = {family.pipeline: family for family in (Family(), SDXL(), SD3())}
"""Every family by the class of its pipelines in diffusers."""


def family_of(pipe: Any, source: object = "the pipeline") -> Family:
    """The family that a pipeline belongs to.

    Parameters
    ----------
    pipe : pipeline of diffusers
        Whose class decides.
    source : object
        Where it comes from, for the message.

    Raises
    ------
    UserError
        If it belongs to none.
    """
    return named_family(type(pipe).__name__, source)


def named_family(kind: str, source: object) -> Family:
    """The family whose pipelines have a class of this name in diffusers."""
    if kind not in FAMILIES:
        raise UserError(f"{source} is a {kind}: give one of {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def network_of(pipe: Any) -> Any:
    """The denoising network of a pipeline, an ``nn.Module``: what is unlearned."""
    return getattr(pipe, family_of(pipe).network)
