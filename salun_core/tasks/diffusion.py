"""Class-conditional diffusion: the noise-prediction loss, wrong classes, and the data of one problem."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from salun_core.data.batches import Loader, as_loader, check_labels
from salun_core.errors import UserError, one_of
from salun_core.models.diffusion.objectives import check_scheduler
from salun_core.models.diffusion.unet import class_count, like, predict_noise
from salun_core.networks import check_trainable, device_of, evaluating, reading
from salun_core.tasks.base import check_training, fresh
from salun_core.tasks.classification import random_labels
from salun_core.tasks.diffusion_training import DiffusionRecipe, adam, train_diffusion
from salun_core.tasks.noise_prediction import NoisePrediction

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

RELABEL = ("next", "random")
DEFAULT = DiffusionRecipe(steps=1)


@dataclass(frozen=True)
class DiffusionTask(NoisePrediction):
    """A trained diffusion model and the images it should forget and keep.

    Parameters
    ----------
    model : nn.Module
        Trained on forget and retain set together; predicts noise given a noisy image in [-1, 1], a time
        step and a class, or number K for no class.
    parts : mapping of str to Batches or Stream
        Images by role, at least "forget" and "retain".
    build : callable or None
        ``build(seed)`` returns a freshly initialised network of the same kind. Only Retrain needs it.
    recipe : DiffusionRecipe or None
        How such a network is trained from scratch. Only Retrain needs it; its ``drop`` and ``clip`` (the defaults
        without a recipe) also hold for unlearning.
    schedule : DDPMScheduler
        How images turn into noise.
    relabel : str
        The wrong class c' of a forgotten image: "next", (c + 1) mod K, as in the released code, or
        "random", drawn anew from the others at each step.
    target, relabel_drop, mask_guidance, mask_draws, antithetic
        The losses of forgetting and of masks, see `NoisePrediction`.
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
    parts: Mapping[str, Loader]
    build: Callable[[int], nn.Module] | None
    recipe: DiffusionRecipe | None
    schedule: "DDPMScheduler"
    relabel: str = "next"
    bf16: bool = False
    compile: bool = False
    checkpoint: Callable[[int, Any], Path] | None = None
    deadline: float | None = None
    progress: bool = False
    kind: str = "diffusion"
    classes: int = field(init=False)
    gone: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        one_of(self.relabel, RELABEL, "choice of wrong classes")
        super().__post_init__()
        for role in ("forget", "retain"):
            if self.parts[role].empty:
                raise UserError(f"the {role} set holds no images: choose another class to forget")
        object.__setattr__(self, "classes", class_count(self.model))
        # Now, since a loader cannot be read for it while a method reads it. A random part of all data has every class,
        # and then none goes.
        found = self.forget.distinct
        object.__setattr__(self, "gone", found if len(found) < self.classes else ())

    @property
    def null(self) -> int:
        """Number of the class that stands for none."""
        return self.classes

    @property
    def drop(self) -> float:
        """Share of images trained without their class."""
        return (self.recipe or DEFAULT).drop

    @property
    def autocast(self) -> torch.dtype | None:
        """Precision of the training passes."""
        return torch.bfloat16 if self.bf16 else None

    def clean(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Images in [0, 1] as the network sees them, in [-1, 1]."""
        return images * 2 - 1

    def wrong(self, conditions: Tensor, rng: torch.Generator) -> Tensor:
        """A wrong class for each image; where several classes are forgotten, none of these."""
        return wrong_classes(conditions, self.classes, rng, how=self.relabel, gone=self.gone)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Adam without weight decay, constant learning rate, gradients limited as in training."""
        return adam(model, lr, clip=(self.recipe or DEFAULT).clip)

    def train(self, batches: Loader, *, seed: int) -> tuple[nn.Module, list[float]]:
        """Train a new network from scratch; the loss is given for each pass through the data."""
        if self.build is None or self.recipe is None:
            raise UserError(
                "training from scratch needs a new network and a recipe: give the task build= (a function of a seed "
                "that returns a network) and recipe= (a DiffusionRecipe)"
            )
        net = fresh(self.build, seed).to(batches.device)
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


def diffusion_task(
    unet: nn.Module,
    scheduler: Any,
    *,
    forget: Any,
    retain: Any,
    build: Callable[[int], nn.Module] | None = None,
    recipe: DiffusionRecipe | None = None,
    **settings: Any,
) -> DiffusionTask:
    """Make a task of a class-conditional denoising network and any loaders.

    Parameters
    ----------
    unet : UNet2DModel
        Trained with K + 1 conditions, the last of them "no class", to predict the noise. Left as it is.
    scheduler : scheduler of diffusers
        How images turn into noise.
    forget, retain : iterable
        Loaders as for `classification_task`, of images in [0, 1] (or bytes) with their classes. They are read anew for
        each pass. A loader of ``retain`` should shuffle.
    build : callable, optional
        ``build(seed)`` returns a freshly initialised network; by default one of the same configuration. Only Retrain
        needs it, and ``recipe``.
    recipe : DiffusionRecipe, optional
        How such a network is trained.
    **settings
        Those of `DiffusionTask` from ``relabel`` on.

    Raises
    ------
    UserError
        If network, scheduler and loaders do not fit together, or the network is wrapped for several devices.
    """
    check_trainable(unet)
    check_training(build, recipe, DiffusionRecipe)
    check_scheduler(scheduler)
    classes = class_count(unet)
    parts = {
        role: as_loader(source, device=device_of(unet), what=role, unit=True)
        for role, source in (("forget", forget), ("retain", retain))
    }
    for role, part in parts.items():
        first = next(iter(part), None)
        if first is not None:
            if int(first[1].max()) == classes:  # common: a network without a condition for "no class"
                raise UserError(
                    f"{role} gives label {classes}, but the last of the network's {classes + 1} conditions means no class: "
                    "give a network trained with num_class_embeds = K + 1"
                )
            check_labels(first[1], role, classes)
            _check_denoiser(unet, *first, role)
        parts[role] = as_loader(part, device=part.device, what=role, classes=classes)
    if build is None and hasattr(unet, "config"):

        def build(seed: int) -> nn.Module:
            return like(unet, seed=seed)

    given = ("model", "parts", "build", "recipe", "schedule", "kind")
    known = [f.name for f in fields(DiffusionTask) if f.init and f.name not in given]
    for name in settings:
        one_of(name, known, "setting of a diffusion task")
    return DiffusionTask(unet, parts, build, recipe, scheduler, **settings)


def _check_denoiser(unet: nn.Module, images: Tensor, labels: Tensor, what: str) -> None:
    weight = next(unet.parameters())
    noisy, times = images.to(weight), torch.zeros(len(images), dtype=torch.int64, device=weight.device)
    with torch.no_grad(), evaluating(unet), reading(unet, images, f"of {what}"):
        found = predict_noise(unet, noisy, times, labels)
    if found.shape != images.shape:
        raise UserError(
            f"the network gives {tuple(found.shape)} for images {tuple(images.shape)}: give one that predicts the noise only"
        )


def wrong_classes(
    labels: Tensor, classes: int, rng: torch.Generator, *, how: str = "next", gone: Sequence[int] = ()
) -> Tensor:
    """A class c' ≠ c for each image: the "next" one, or one of the others at "random"; none that is ``gone``."""
    if len(gone) > 1:
        kept = torch.tensor([c for c in range(classes) if c not in gone])
        if not len(kept):
            raise UserError(f"all {classes} classes are to be forgotten: keep at least one")
        if how == "next":
            after = torch.searchsorted(kept, labels.cpu(), right=True) % len(kept)
        else:
            after = torch.randint(0, len(kept), labels.shape, generator=rng)
        return kept[after].to(labels.device)
    if how == "next":
        if classes < 2:
            raise UserError(f"another class needs at least 2 classes, got {classes}")
        return (labels + 1) % classes
    return random_labels(labels, classes, rng)


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
