"""Class-conditional diffusion: the noise-prediction loss, wrong classes, and the data of one problem."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.data.batches import Batch, Batches
from salun_core.errors import UserError, one_of
from salun_core.models.unet import class_count, guided_noise, predict_noise
from salun_core.rng import derive
from salun_core.tasks.classification import random_labels
from salun_core.tasks.diffusion_training import DiffusionRecipe, adam, train_diffusion

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

RELABEL = ("next", "random")
TARGETS = ("original", "current")


@dataclass(frozen=True)
class DiffusionTask:
    """A trained diffusion model and the images it should forget and keep.

    Parameters
    ----------
    model : nn.Module
        Trained on forget and retain set together; predicts noise given a noisy image in [-1, 1], a time
        step and a class, or number K for no class.
    parts : mapping of str to Batches
        Images by role, at least "forget" and "retain".
    build : callable
        ``build(seed)`` returns a freshly initialised network of the same kind.
    recipe : DiffusionRecipe
        How such a network is trained from scratch.
    schedule : DDPMScheduler
        How images turn into noise.
    relabel : str
        The wrong class c' of a forgotten image: "next", (c + 1) mod K, as in the released code, or
        "random", drawn anew from the others at each step.
    target : str
        Whose prediction for c' the forgetting loss aims at: that of the "original" model, which stays
        put, or of the "current" weights, as in the released code. Never a path for gradients.
    relabel_drop : float
        Share of forget images whose class is dropped, independently on both sides, in the forgetting
        loss; the released code has 0.1.
    mask_guidance : float
        w of the guided prediction in the loss that masks are computed from; 0 for the plain prediction.
        The released code has 2.
    mask_draws : int
        Time steps and noises for each image in that loss, spread evenly over the diffusion.
    antithetic : bool
        Draw time steps in pairs t, T - 1 - t.
    bf16 : bool
        Train under bfloat16 autocast. Gradients for masks stay in full precision.
    compile : bool
        Train through ``torch.compile``.
    checkpoint : callable, optional
        ``checkpoint(seed, batches)`` names the file from which training from scratch continues.
    deadline : float, optional
        Where such a training stops to be continued, see `train_diffusion`.
    progress : bool
        Show a bar while training from scratch.
    """

    model: nn.Module
    parts: Mapping[str, Batches]
    build: Callable[[int], nn.Module]
    recipe: DiffusionRecipe
    schedule: "DDPMScheduler"
    relabel: str = "next"
    target: str = "original"
    relabel_drop: float = 0.0
    mask_guidance: float = 0.0
    mask_draws: int = 1
    antithetic: bool = False
    bf16: bool = False
    compile: bool = False
    checkpoint: Callable[[int, Batches], Path] | None = None
    deadline: float | None = None
    progress: bool = False
    kind: str = "diffusion"
    classes: int = field(init=False)

    def __post_init__(self) -> None:
        one_of(self.relabel, RELABEL, "choice of wrong classes")
        one_of(self.target, TARGETS, "target of the forgetting loss")
        if self.mask_draws < 1:
            raise UserError(f"mask_draws must be at least 1, got {self.mask_draws}")
        for role in ("forget", "retain"):
            if self.parts[role].n == 0:
                raise UserError(f"the {role} set holds no images: choose another class to forget")
        object.__setattr__(self, "classes", class_count(self.model))

    @property
    def forget(self) -> Batches:
        """The images to forget."""
        return self.parts["forget"]

    @property
    def retain(self) -> Batches:
        """The images to keep."""
        return self.parts["retain"]

    @property
    def steps(self) -> int:
        """T, the number of diffusion steps."""
        return self.schedule.config.num_train_timesteps

    def noised(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images, their time steps (N,) and the noise in them, drawn from ``rng``."""
        n = len(images)
        if self.antithetic:
            half = torch.randint(0, self.steps, ((n + 1) // 2,), generator=rng)
            times = torch.cat([half, self.steps - 1 - half])[:n]
        else:
            times = torch.randint(0, self.steps, (n,), generator=rng)
        noise = torch.randn(tuple(images.shape), generator=rng).to(images)
        times = times.to(images.device)
        return self.noisy(images, noise, times), times, noise

    def noisy(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Images in [0, 1] mapped to [-1, 1] and mixed with noise up to their time steps."""
        # Batches come channels last, which suits wide networks on an accelerator and none on a processor.
        layout = torch.channels_last if images.is_cuda else torch.contiguous_format
        mixed = self.schedule.add_noise(images * 2 - 1, noise, times)
        return mixed.contiguous(memory_format=layout)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        r"""Noise-prediction error, :math:`\|\epsilon_\theta(x_t, c) - \epsilon\|^2` as a mean over elements.

        With ``rng``: time steps and noise are drawn from it, and a model in training mode sees no class
        for a share of the images. Without: `fixed_loss`, for masks.
        """
        if rng is None:
            return self.fixed_loss(model, batch)
        images, labels = batch
        noisy, times, noise = self.noised(images, rng)
        classes = self.dropped(labels, rng, self.recipe.drop if model.training else 0.0)
        return F.mse_loss(self.predict(model, noisy, times, classes), noise)

    def fixed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The same error with time steps and noise that depend on nothing but the image itself.

        So the gradient over a set of images, and the mask made from it, does not depend on how the set is
        ordered or cut into batches. ``mask_guidance`` and ``mask_draws`` apply here.
        """
        images, labels = batch
        drawn = [fixed_draws(image, steps=self.steps, draws=self.mask_draws) for image in images]
        times = torch.cat([t for t, _ in drawn]).to(images.device)  # (N * draws,)
        noise = torch.cat([e for _, e in drawn]).to(images)
        noisy = self.noisy(images.repeat_interleave(self.mask_draws, dim=0), noise, times)
        classes = labels.repeat_interleave(self.mask_draws)
        found = guided_noise(model, noisy, times, classes, null=self.classes, guidance=self.mask_guidance)
        return F.mse_loss(found, noise)

    def relabel_loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        r"""Distance to the prediction for a wrong class, :math:`\|\epsilon_\theta(x_t, c) - \epsilon(x_t, c')\|^2`.

        A mean over elements, like `loss`, so that a weight between the two does not depend on the size of
        the images (see `alpha_on_means`). The target is a constant: no gradient flows into it.
        """
        images, labels = batch
        noisy, times, _ = self.noised(images, rng)
        wrong = wrong_classes(labels, self.classes, rng, how=self.relabel)
        of_true = self.dropped(labels, rng, self.relabel_drop)
        of_wrong = self.dropped(wrong, rng, self.relabel_drop)
        with torch.no_grad():
            source = model if self.target == "current" else self.model
            goal = self.predict(source, noisy, times, of_wrong, fast=model.training)
        return F.mse_loss(self.predict(model, noisy, times, of_true), goal)

    def predict(
        self, model: nn.Module, noisy: Tensor, times: Tensor, classes: Tensor, *, fast: bool | None = None
    ) -> Tensor:
        """The noise in each image, float32 (or double, for a double model)."""
        fast = model.training if fast is None else fast
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.bf16 and fast):
            found = predict_noise(model, noisy, times, classes)
        return found if found.dtype == torch.float64 else found.float()

    def dropped(self, classes: Tensor, rng: torch.Generator, share: float) -> Tensor:
        """The classes, a random ``share`` of them replaced by the null class K."""
        if not share:
            return classes
        gone = (torch.rand(classes.shape, generator=rng) < share).to(classes.device)
        return classes.masked_fill(gone, self.classes)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Adam without weight decay, constant learning rate, gradients limited as in training."""
        return adam(model, lr, clip=self.recipe.clip)

    def train(self, batches: Batches, *, seed: int) -> tuple[nn.Module, list[float]]:
        """Train a new network from scratch; the loss is given for each pass through the data."""
        net = self.build(seed).to(batches.images.device)
        if self.compile:
            net.compile()
        return train_diffusion(
            net,
            batches,
            self.loss,
            recipe=self.recipe,
            seed=seed,
            checkpoint=self.checkpoint(seed, batches) if self.checkpoint is not None else None,
            deadline=self.deadline,
            progress=self.progress,
        )


def wrong_classes(labels: Tensor, classes: int, rng: torch.Generator, *, how: str = "next") -> Tensor:
    """A class c' ≠ c for each image: the "next" one, or one of the others at "random"."""
    if how == "next":
        if classes < 2:
            raise UserError(f"another class needs at least 2 classes, got {classes}")
        return (labels + 1) % classes
    return random_labels(labels, classes, rng)


def fixed_draws(image: Tensor, *, steps: int, draws: int = 1) -> tuple[Tensor, Tensor]:
    """Time steps (draws,) and noise (draws, C, H, W) that depend on the pixels of one image only.

    One time step from each of ``draws`` equal parts of the diffusion.
    """
    pixels = (image.detach().float() * 255).round().to(torch.int16).cpu().contiguous()
    name = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).hexdigest()
    rng = torch.Generator().manual_seed(derive(0, "noise of an image", name))
    places = (torch.arange(draws) + torch.rand(draws, generator=rng)) / draws
    times = (places * steps).long().clamp_(max=steps - 1)
    return times, torch.randn((draws, *image.shape), generator=rng)


def alpha_on_means(alpha: float, shape: tuple[int, int, int]) -> float:
    """The released code's weight of the retain term, converted to means over elements.

    There the forgetting loss is a mean over all elements, but the retain loss sums over the elements of an
    image: its ``alpha = 1e-3`` weighs 3,072 elements of a 3 x 32 x 32 image, 3.072 on equal terms.

    Parameters
    ----------
    alpha : float
        As given to the released code.
    shape : tuple of int
        C, H, W.
    """
    channels, height, width = shape
    return alpha * channels * height * width
