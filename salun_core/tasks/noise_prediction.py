"""What tasks with a denoising network share: noise, losses, and the condition an image is drawn for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.data.batches import Batch, Loader
from salun_core.errors import UserError, one_of
from salun_core.models.diffusion.conditions import Condition
from salun_core.models.diffusion.objectives import Objective, objective_of
from salun_core.models.diffusion.unet import guided_noise, predict_noise
from salun_core.networks import reading
from salun_core.rng import derive

Target = Literal["original", "current"]
TARGETS = get_args(Target)


class _Fields:
    """What every such task has, declared by itself."""

    model: nn.Module
    parts: Mapping[str, Loader]
    schedule: Any


@dataclass(frozen=True, kw_only=True)
class NoisePrediction(_Fields):
    """Base of such tasks. One that derives from it says what a condition is, and what a wrong one.

    A condition is a number: of a class, or of a prompt. ``null`` is the number of none in particular.

    Parameters
    ----------
    target : str
        Whose prediction for a wrong condition c' the forgetting loss aims at: that of the "original" model,
        which stays put, or of the "current" weights, as in the released code. Never a path for gradients.
    relabel_drop : float
        Share of forget images whose condition is dropped, independently on both sides, in the forgetting
        loss; the released code has 0.1 for classes.
    mask_guidance : float
        w of the guided prediction in the loss that masks are computed from; 0 for the plain prediction.
        The released code has 2 for classes and 7.5 for prompts.
    mask_draws : int
        Time steps and noises for each image in that loss, spread evenly over the diffusion.
    antithetic : bool
        Draw time steps in pairs t, T - 1 - t.

    Raises
    ------
    UserError
        If ``target`` is unknown or ``mask_draws`` is below 1.
    """

    target: str = "original"
    relabel_drop: float = 0.0
    mask_guidance: float = 0.0
    mask_draws: int = 1
    antithetic: bool = False

    def __post_init__(self) -> None:
        one_of(self.target, TARGETS, "target of the forgetting loss")
        if not isinstance(self.mask_draws, int) or self.mask_draws < 1:
            raise UserError(f"mask_draws must be at least 1, got {self.mask_draws}")

    @property
    def null(self) -> int:
        """Number of the condition that stands for none."""
        raise NotImplementedError

    @property
    def drop(self) -> float:
        """Share of images that a network in training sees without their condition."""
        return 0.0

    @property
    def autocast(self) -> torch.dtype | None:
        """Precision of the training passes, None for that of the weights."""
        return None

    @property
    def forget(self) -> Loader:
        """The images to forget."""
        return self.parts["forget"]

    @property
    def retain(self) -> Loader:
        """The images to keep."""
        return self.parts["retain"]

    @property
    def objective(self) -> Objective:
        """What the network was trained with: noise, time steps, and what it predicts."""
        return objective_of(self.schedule)

    def clean(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """What the network sees of images without noise, on its own scale; drawn from ``rng`` where it is random."""
        raise NotImplementedError

    def wrong(self, conditions: Tensor, rng: torch.Generator) -> Tensor:
        """A wrong condition for each one."""
        raise NotImplementedError

    def condition(self, conditions: Tensor) -> Condition:
        """What the network is given for the numbers of conditions, (N,)."""
        return conditions

    def noised(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images, their time steps (N,) and what the network should predict of them, drawn from ``rng``.

        That is the noise in them, or what else `objective` says.
        """
        times = self.objective.drawn(len(images), rng, antithetic=self.antithetic)
        clean = self.clean(images, rng)
        noise = torch.randn(tuple(clean.shape), generator=rng).to(clean)
        times = times.to(clean.device)
        return self.noisy(clean, noise, times), times, self.objective.target(clean, noise, times)

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Images on the network's scale, mixed with noise up to their time steps."""
        # Batches come channels last, which suits wide networks on an accelerator and none on a processor.
        layout = torch.channels_last if clean.is_cuda else torch.contiguous_format
        return self.objective.noisy(clean, noise, times).contiguous(memory_format=layout)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        r"""The training loss, such as :math:`\|\epsilon_\theta(x_t, c) - \epsilon\|^2`, a mean over elements.

        With ``rng``: time steps and noise are drawn from it, and a model in training mode sees no condition
        for a share of the images. Without: `fixed_loss`, for masks.
        """
        if rng is None:
            return self.fixed_loss(model, batch)
        images, given = batch
        noisy, times, target = self.noised(images, rng)
        seen = self.dropped(given, rng, self.drop if model.training else 0.0)
        return F.mse_loss(self.predict(model, noisy, times, seen), target)

    def fixed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The same error with time steps and noise that depend on nothing but the image itself.

        So the gradient over a set of images, and the mask made from it, does not depend on how the set is
        ordered or cut into batches. ``mask_guidance`` and ``mask_draws`` apply here.
        """
        images, given = batch
        clean = self.clean(images)
        shape = tuple(clean.shape[1:])
        drawn = [fixed_draws(image, shape, draws=self.mask_draws) for image in images.detach().cpu()]
        times = self.objective.at(torch.cat([places for places, _ in drawn])).to(clean.device)  # (N * draws,)
        noise = torch.cat([e for _, e in drawn]).to(clean)
        clean = clean.repeat_interleave(self.mask_draws, dim=0)
        noisy = self.noisy(clean, noise, times)
        seen = self.condition(given.repeat_interleave(self.mask_draws))
        null = self.condition(torch.full_like(given[:1], self.null))[0]
        if seen.is_floating_point():
            seen, null = seen.to(noisy.dtype), null.to(noisy.dtype)
        found = guided_noise(model, noisy, times, seen, null=null, guidance=self.mask_guidance)
        return F.mse_loss(found, self.objective.target(clean, noise, times))

    def relabel_loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        r"""Distance to the prediction for a wrong condition, :math:`\|\epsilon_\theta(x_t, c) - \epsilon(x_t, c')\|^2`.

        A mean over elements, like `loss`, so that a weight between the two does not depend on the size of
        the images (see `alpha_on_means`). The target is a constant: no gradient flows into it.
        """
        images, given = batch
        noisy, times, _ = self.noised(images, rng)
        wrong = self.wrong(given, rng)
        of_true = self.dropped(given, rng, self.relabel_drop)
        of_wrong = self.dropped(wrong, rng, self.relabel_drop)
        with torch.no_grad():
            source = model if self.target == "current" else self.model
            goal = self.predict(source, noisy, times, of_wrong, fast=model.training)
        return F.mse_loss(self.predict(model, noisy, times, of_true), goal)

    def predict(
        self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Tensor, *, fast: bool | None = None
    ) -> Tensor:
        """The noise in each image, float32 (or double, for a double model)."""
        return self.predict_given(model, noisy, times, self.condition(conditions), fast=fast)

    def predict_given(
        self, model: nn.Module, noisy: Tensor, times: Tensor, seen: Condition, *, fast: bool | None = None
    ) -> Tensor:
        """As `predict`, for conditions as `condition` makes them, which need not belong to any number."""
        fast = model.training if fast is None else fast
        own = next(model.parameters()).dtype
        seen = seen.to(noisy.device, own) if seen.is_floating_point() else seen
        reduced = self.autocast if fast and own == torch.float32 else None
        with (
            reading(model, noisy),
            torch.autocast(noisy.device.type, reduced, enabled=reduced is not None),
        ):
            found = predict_noise(model, noisy.to(own), times, seen)
        return found if found.dtype == torch.float64 else found.float()

    def dropped(self, conditions: Tensor, rng: torch.Generator, share: float) -> Tensor:
        """The conditions, a random ``share`` of them replaced by none."""
        if not share:
            return conditions
        gone = (torch.rand(conditions.shape, generator=rng) < share).to(conditions.device)
        return conditions.masked_fill(gone, self.null)


def fixed_draws(
    image: Tensor, shape: tuple[int, ...] | None = None, *, draws: int = 1
) -> tuple[Tensor, Tensor]:
    """Places of time steps (draws,) and noise (draws, C, H, W) that depend on the values of one image only.

    One place from each of ``draws`` equal parts of [0, 1); see `Objective.at`.
    """
    pixels = (image.detach().float() * 255).round().to(torch.int16).cpu().contiguous()
    name = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).hexdigest()
    rng = torch.Generator().manual_seed(derive(0, "noise of an image", name))
    places = (torch.arange(draws) + torch.rand(draws, generator=rng)) / draws
    return places, torch.randn((draws, *(shape or image.shape)), generator=rng)
