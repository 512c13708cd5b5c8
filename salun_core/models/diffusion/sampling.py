"""Drawing images from a diffusion model: deterministic, one random stream for each image."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from salun_core.errors import UserError, one_of
from salun_core.models.diffusion.conditions import Condition
from salun_core.models.diffusion.objectives import is_flow
from salun_core.models.diffusion.unet import class_count, guided_noise
from salun_core.rng import generator

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

SAMPLERS = ("ddim", "lms")
SLOW = 10.0  # seconds from which a bar is shown

Kept = Callable[[range, Callable[[], Tensor]], Tensor]
"""Gives the images of these rows, drawn by the function unless they are kept from an earlier run."""


def sample(
    model: nn.Module,
    schedule: "DDPMScheduler",
    labels: Sequence[int] | Tensor,
    *,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    guidance: float = 2.0,
    steps: int = 50,
    eta: float = 0.0,
    batch_size: int = 256,
    bf16: bool = False,
    progress: bool = False,
    kept: Kept | None = None,
) -> Tensor:
    """Draw one image for each label.

    Parameters
    ----------
    model : nn.Module
        Class-conditional denoising network; left in the mode it was in.
    schedule : DDPMScheduler
        The noise schedule it was trained with.
    labels : sequence of int
        A class in [0, K), or K for no class, for each image.
    seed : int
        Together with its stream this fixes the noise of an image, whatever batch it is in.
    streams : sequence of int, optional
        Number of the noise of each image, ``0, 1, 2, …`` by default. Two models sampled with equal
        streams start from equal noise, and so do two classes.
    guidance : float
        w of `guided_noise`.
    steps : int
        Denoising steps (DDIM).
    eta : float
        0: deterministic (DDIM). 1 with all T steps: ancestral sampling (DDPM), as the paper does.
    batch_size : int
        Images denoised at once.
    bf16 : bool
        Run the network under bfloat16 autocast.
    progress : bool
        A bar on stderr with the time left, where it takes longer than ten seconds.
    kept : callable, optional
        Called with the rows of each batch and a function that draws them; returns their images. It may keep
        images for a run that is interrupted.

    Returns
    -------
    Tensor
        uint8 (N, C, H, W) on the CPU.

    Raises
    ------
    UserError
        If a label or a setting is out of range.

    References
    ----------
    Song et al., Denoising diffusion implicit models, ICLR 2021.
    """
    wanted, numbers = _checked(model, schedule, labels, streams, steps, guidance)
    null = class_count(model)
    images = sampled(
        lambda part, stream: denoising(
            model, schedule, part, stream, seed, guidance, steps, eta, bf16, null=null
        ),
        to_pixels,
        wanted,
        numbers,
        steps=steps,
        batch_size=batch_size,
        progress=progress,
        kept=kept,
    )
    return images if len(images) else torch.empty(0, *_shape(model), dtype=torch.uint8)


def sampled(
    states: Callable[[Tensor, Tensor], Iterator[tuple[int, Tensor]]],
    finish: Callable[[Tensor], Tensor],
    conditions: Tensor,
    streams: Tensor,
    *,
    steps: int,
    batch_size: int,
    progress: bool,
    kept: Kept | None = None,
) -> Tensor:
    """Run the denoising ``states`` of each batch of conditions and streams to its end, and ``finish`` the last."""
    starts = range(0, len(streams), batch_size)
    images = []
    with tqdm(
        total=len(starts) * steps,
        desc="sampling",
        unit="step",
        leave=False,
        disable=not progress,
        delay=SLOW,
    ) as bar:

        def drawn(rows: range) -> Tensor:
            here = slice(rows.start, rows.stop)
            last = torch.empty(0)
            for _, noisy in states(conditions[here], streams[here]):
                bar.update()
                last = noisy
            return finish(last)

        for number, start in enumerate(starts, start=1):
            rows = range(start, min(start + batch_size, len(streams)))
            images.append(kept(rows, partial(drawn, rows)) if kept else drawn(rows))
            bar.update(number * steps - bar.n)  # of a batch that was kept
    return torch.cat(images).contiguous() if images else torch.empty(0, dtype=torch.uint8)


def trajectory(
    model: nn.Module,
    schedule: "DDPMScheduler",
    labels: Sequence[int] | Tensor,
    *,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    guidance: float = 2.0,
    steps: int = 50,
    frames: int = 8,
) -> tuple[Tensor, list[int]]:
    """The way from noise to image, for a few images.

    Parameters
    ----------
    frames : int
        States shown, evenly spaced; the last is the finished image.
    model, schedule, labels, seed, streams, guidance, steps
        As in `sample`.

    Returns
    -------
    images, times
        uint8 (frames, N, C, H, W) on the CPU, and the number of denoising steps behind each frame.
    """
    wanted, numbers = _checked(model, schedule, labels, streams, steps, guidance)
    if not 1 <= frames <= steps:
        raise UserError(f"frames must lie in [1, {steps}], got {frames}: one for each step at most")
    shown = [round(steps * (i + 1) / frames) for i in range(frames)]
    null = class_count(model)
    states = denoising(model, schedule, wanted, numbers, seed, guidance, steps, 0.0, False, null=null)
    return torch.stack([to_pixels(noisy) for done, noisy in states if done in shown]), shown


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, on the CPU."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().cpu()


def denoising(
    model: nn.Module,
    schedule: "DDPMScheduler",
    conditions: Condition,
    streams: Tensor,
    seed: int,
    guidance: float,
    steps: int,
    eta: float,
    bf16: bool,
    *,
    null: int | Condition,
    clip: bool = True,
    sampler: str = "ddim",
) -> Iterator[tuple[int, Tensor]]:
    """Steps done so far and the images, still in [-1, 1], after each denoising step."""
    weight = next(model.parameters())
    shape, wanted = _shape(model), conditions.to(weight.device)
    solver: Solver
    if is_flow(schedule):
        solver = Euler(schedule, model, steps)
    elif sampler == "lms":
        solver = Lms(schedule, steps)
    else:
        solver = Ddim(schedule, steps, eta, clip)
    rngs = [generator(seed, "sample", int(s)) for s in streams]

    def noise() -> Tensor:
        return torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(weight)

    @torch.no_grad()
    def denoised(noisy: Tensor, t: Tensor) -> Tensor:
        times = t.to(noisy.device).expand(len(noisy))
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=bf16):
            seen = solver.seen(noisy, t)
            found = guided_noise(model, seen, times, wanted, null=null, guidance=guidance)
        return solver.step(found.to(noisy), t, noisy, noise)

    was_training = model.training
    model.eval()
    try:
        noisy = solver.start * noise()
        for done, t in enumerate(solver.times, start=1):
            noisy = denoised(noisy, t)
            yield done, noisy
    finally:
        model.train(was_training)


class Solver(Protocol):
    """A way from noise to image: the time steps at which the network is asked, and what is made of its answers."""

    times: Tensor
    start: float
    """Standard deviation of the noise it starts from."""

    def seen(self, noisy: Tensor, t: Tensor) -> Tensor:
        """The images on the scale that the network takes."""
        ...

    def step(self, found: Tensor, t: Tensor, noisy: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """The images after the step at ``t``, given the prediction; ``noise`` draws more where it is needed."""
        ...


class Plain:
    """Base of the solvers that keep images on the network's own scale."""

    start = 1.0

    def seen(self, noisy: Tensor, t: Tensor) -> Tensor:
        """See `Solver.seen`."""
        return noisy


class Ddim(Plain):
    """DDIM, with ``eta`` as in `sample`; ``clip`` bounds the image in sight to [-1, 1]."""

    def __init__(self, schedule: Any, steps: int, eta: float, clip: bool) -> None:
        from diffusers import DDIMScheduler

        # "trailing" starts at pure noise whatever the number of steps; "leading" would start below it.
        self.solver = DDIMScheduler.from_config(
            schedule.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=clip
        )
        self.solver.set_timesteps(steps)
        self.eta, self.clip = eta, clip
        self.times: Tensor = self.solver.timesteps

    def step(self, found: Tensor, t: Tensor, noisy: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """See `Solver.step`."""
        drawn = noise() if self.eta else None
        # Without taking the noise from the clipped image, guided samples of dark-and-bright pictures such as
        # digits run off to black and white.
        return self.solver.step(
            found, int(t), noisy, eta=self.eta, use_clipped_model_output=self.clip, variance_noise=drawn
        ).prev_sample


class Euler(Plain):
    """Euler's method along a rectified flow, with the shift of times that belongs to the size of the image."""

    def __init__(self, schedule: Any, model: nn.Module, steps: int) -> None:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        self.solver = type(schedule).from_config(schedule.config)
        given, (_, height, width) = schedule.config, _shape(model)
        shift = {}
        if given.use_dynamic_shifting:
            patch: Any = model.config
            tokens = (height // patch.patch_size) * (width // patch.patch_size)
            shift["mu"] = calculate_shift(
                tokens, given.base_image_seq_len, given.max_image_seq_len, given.base_shift, given.max_shift
            )
        self.solver.set_timesteps(steps, **shift)
        self.times: Tensor = self.solver.timesteps

    def step(self, found: Tensor, t: Tensor, noisy: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """See `Solver.step`."""
        return self.solver.step(found, t, noisy).prev_sample


class Lms:
    """Linear multistep method of order 4, with which the released code of ESD and SalUn draws.

    References
    ----------
    Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022 (the
    equation that is solved); diffusers, ``LMSDiscreteScheduler``.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        from diffusers import LMSDiscreteScheduler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, about how the library calls it
            self.solver = LMSDiscreteScheduler.from_config(
                schedule.config, timestep_spacing="linspace", use_karras_sigmas=False
            )
            self.solver.set_timesteps(steps)
        self.times: Tensor = self.solver.timesteps
        self.start = float(self.solver.init_noise_sigma)

    def seen(self, noisy: Tensor, t: Tensor) -> Tensor:
        """See `Solver.seen`."""
        return self.solver.scale_model_input(noisy, t)

    def step(self, found: Tensor, t: Tensor, noisy: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """See `Solver.step`."""
        return self.solver.step(found, t, noisy).prev_sample


def _shape(model: nn.Module) -> tuple[int, int, int]:
    config: Any = model.config
    return config.in_channels, config.sample_size, config.sample_size


def _checked(
    model: nn.Module,
    schedule: "DDPMScheduler",
    labels: Sequence[int] | Tensor,
    streams: Sequence[int] | None,
    steps: int,
    guidance: float,
) -> tuple[Tensor, Tensor]:
    wanted = torch.as_tensor(labels, dtype=torch.int64)
    classes = class_count(model)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() <= classes):
        raise UserError(
            f"labels go from {int(wanted.min())} to {int(wanted.max())}, "
            f"but the model knows classes 0 to {classes - 1} and {classes} for no class"
        )
    return wanted, checked_streams(streams, len(wanted), schedule, steps, guidance, what="labels")


def checked_streams(
    streams: Sequence[int] | None,
    n: int,
    schedule: "DDPMScheduler",
    steps: int,
    guidance: float,
    *,
    what: str,
    eta: float = 0.0,
    sampler: str = "ddim",
) -> Tensor:
    """The number of each image's noise, (N,); refuses settings of sampling that are out of range."""
    numbers = torch.arange(n) if streams is None else torch.as_tensor(streams, dtype=torch.int64)
    if len(numbers) != n:
        raise UserError(f"{len(numbers)} streams were given for {n} {what}: give one each")
    longest = schedule.config.num_train_timesteps
    if not 1 <= steps <= longest:
        raise UserError(f"steps must lie in [1, {longest}], got {steps}")
    if eta and is_flow(schedule):
        raise UserError(
            f"eta must be 0 for a pipeline of flow matching, got {eta:g}: no noise is added on the way"
        )
    one_of(sampler, SAMPLERS, "sampler")
    if sampler == "lms" and is_flow(schedule):
        raise UserError("sampler lms is for pipelines of diffusion, not of flow matching: leave it at ddim")
    if sampler == "lms" and eta:
        raise UserError(f"eta must be 0 for sampler lms, got {eta:g}: no noise is added on the way")
    if guidance < 0:
        raise UserError(f"guidance must be at least 0, got {guidance:g}: 0 is the plain prediction")
    return numbers
