"""Drawing images for prompts: in batches, deterministic, with one random stream for each image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from salun_core.models.diffusion.sampling import checked_streams, denoising, sampled, to_pixels
from salun_core.models.diffusion.unet import quiet
from salun_core.models.text_to_image.pipelines import decode_latents, encode_prompts

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def sample_prompts(
    pipe: "StableDiffusionPipeline",
    prompts: Sequence[str] | Tensor,
    *,
    unet: nn.Module | None = None,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    guidance: float = 6.5,
    steps: int = 50,
    eta: float = 0.0,
    batch_size: int = 8,
    bf16: bool = False,
    progress: bool = False,
) -> Tensor:
    """Draw one image for each prompt.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        If it has a safety checker, the images it flags come back black.
    prompts : sequence of str, or Tensor
        Texts, cut off where the text encoder takes no more, or their embeddings (N, L, D).
    unet : nn.Module, optional
        A denoising network to use in place of the pipeline's own.
    seed, streams
        As in `sampling.sample`: together they fix the noise of an image, whatever batch it is in.
    guidance : float
        w of `guided_noise`; the 7.5 of Stable Diffusion is 6.5 here.
    steps, eta : int, float
        Denoising steps (DDIM), and the noise added in them.
    batch_size : int
        Images denoised at once.
    bf16, progress
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
    net = pipe.unet if unet is None else unet
    numbers = checked_streams(streams, len(prompts), pipe.scheduler, steps, guidance, what="prompts")
    bank = encode_prompts(pipe, [] if isinstance(prompts, Tensor) else prompts)
    rows = torch.arange(len(prompts))
    wanted = prompts if isinstance(prompts, Tensor) else bank.embeddings[bank.numbers(prompts)]
    weight = next(net.parameters())
    null = bank.embeddings[0].to(weight)
    home = pipe.vae.device

    return sampled(
        lambda part, stream: denoising(
            net,
            pipe.scheduler,
            wanted[part].to(weight),
            stream,
            seed,
            guidance,
            steps,
            eta,
            bf16,
            null=null,
            clip=False,
        ),
        lambda latents: shown(pipe, decode_latents(pipe, latents.to(home))),
        rows,
        numbers,
        steps=steps,
        batch_size=batch_size,
        progress=progress,
    )


def shown(pipe: "StableDiffusionPipeline", images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8; those that the pipeline's safety checker flags are black."""
    if pipe.safety_checker is not None:
        # The pipeline's method takes images in [-1, 1] and brings them to [0, 1] itself. It paints what it
        # objects to with zeros, a mid grey on this scale.
        with quiet():
            images, flagged = pipe.run_safety_checker(images, images.device, pipe.vae.dtype)
        images = torch.as_tensor(images)
        images[torch.as_tensor(flagged)] = -1
    return to_pixels(images)
