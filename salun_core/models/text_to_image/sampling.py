"""Drawing images for prompts: in batches, deterministic, with one random stream for each image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from salun_core.models.diffusion.conditions import Condition, Embedded
from salun_core.models.diffusion.sampling import Kept, checked_streams, denoising, sampled, to_pixels
from salun_core.models.diffusion.unet import quiet
from salun_core.models.text_to_image.families import network_of
from salun_core.models.text_to_image.pipelines import decode_latents, encode_prompts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def sample_prompts(
    pipe: "DiffusionPipeline",
    prompts: Sequence[str] | Condition,
    *,
    unet: nn.Module | None = None,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    guidance: float = 6.5,
    steps: int = 50,
    eta: float = 0.0,
    sampler: str = "ddim",
    batch_size: int = 8,
    bf16: bool = False,
    progress: bool = False,
    kept: Kept | None = None,
) -> Tensor:
    """Draw one image for each prompt.

    Parameters
    ----------
    pipe : pipeline of diffusers
        From `load_pipeline`. If it has a safety checker, the images it flags come back black.
    prompts : sequence of str, or Condition
        Texts, cut off where the text encoder takes no more, or what the network is given for them:
        embeddings (N, L, D), or the same in several parts.
    unet : nn.Module, optional
        A denoising network to use in place of the pipeline's own.
    seed, streams
        As in `sampling.sample`: together they fix the noise of an image, whatever batch it is in.
    guidance : float
        w of `guided_noise`; the 7.5 of Stable Diffusion is 6.5 here.
    steps, eta : int, float
        Denoising steps, and the noise added in them (DDIM).
    sampler : str
        "ddim", or "lms", the linear multistep method of the released code. Pipelines of flow matching are
        drawn with Euler's method.
    batch_size : int
        Images denoised at once.
    bf16, progress, kept
        As in `sampling.sample`.

    Returns
    -------
    Tensor
        uint8 (N, 3, H, W) on the CPU.

    Raises
    ------
    UserError
        If a setting is out of range.
    """
    net = network_of(pipe) if unet is None else unet
    numbers = checked_streams(
        streams, len(prompts), pipe.scheduler, steps, guidance, what="prompts", eta=eta, sampler=sampler
    )
    rows = torch.arange(len(prompts))
    wanted: Condition
    if isinstance(prompts, Tensor | Embedded):
        bank, wanted = encode_prompts(pipe, []), prompts
    else:
        bank = encode_prompts(pipe, prompts)
        wanted = bank.rows(bank.numbers(prompts))
    weight = next(net.parameters())
    null = bank.given[0].to(weight.device, weight.dtype)
    home = pipe.vae.device

    return sampled(
        lambda part, stream: denoising(
            net,
            pipe.scheduler,
            wanted[part].to(weight.device, weight.dtype),
            stream,
            seed,
            guidance,
            steps,
            eta,
            bf16,
            null=null,
            clip=False,
            sampler=sampler,
        ),
        lambda latents: shown(pipe, decode_latents(pipe, latents.to(home))),
        rows,
        numbers,
        steps=steps,
        batch_size=batch_size,
        progress=progress,
        kept=kept,
    )


def shown(pipe: "DiffusionPipeline", images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8; those that the pipeline's safety checker flags are black."""
    if getattr(pipe, "safety_checker", None) is not None:
        # The pipeline's method takes images in [-1, 1] and brings them to [0, 1] itself. It paints what it
        # objects to with zeros, a mid grey on this scale.
        with quiet():
            images, flagged = pipe.run_safety_checker(images, images.device, pipe.vae.dtype)
        images = torch.as_tensor(images)
        images[torch.as_tensor(flagged)] = -1
    return to_pixels(images)
