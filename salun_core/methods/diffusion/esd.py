"""Erased Stable Diffusion: train the predictions for a class or a prompt to point away from it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.methods.diffusion.network_parts import Part, part_mask
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task
from salun_core.tasks.noise_prediction import NoisePrediction


def esd(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 1e-5,
    eta: NonNegativeFloat = 1.0,
    part: Part = "full",
    seed: int = 0,
) -> Unlearned:
    r"""Match the prediction for the forgotten class or prompt c to negative guidance, away from c.

    The target comes from the frozen original model,

    .. math:: \epsilon_o(x_t, \varnothing) - \eta\,(\epsilon_o(x_t, c) - \epsilon_o(x_t, \varnothing)).

    The retain set is not used. Noisy images :math:`x_t` are made from the forget set; the authors draw
    them from the model itself, which needs no images but a sampling run at every step.

    Parameters
    ----------
    task : DiffusionTask or TextToImageTask
        A trained diffusion model with its forget set.
    mask : Mask, optional
        Weights that may change; all by default.
    epochs, steps, lr, seed
        As in `rl`.
    eta : float
        Strength of the negative guidance, at least 0; at 0 c becomes "nothing in particular".
    part : str
        Weights that may change, with those of the mask: "full", or, for a network that attends to text, a
        key of ``PARTS``: "xattn" for ESD-x, "noxattn" for ESD-u, "selfattn".

    References
    ----------
    Gandikota et al., Erasing concepts from diffusion models, ICCV 2023.
    """
    if not isinstance(task, NoisePrediction):
        raise UserError("ESD works on a diffusion model only")
    mask = part_mask(task.model, part, mask)
    rng = generator(seed, "esd")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="forget", epochs=epochs, steps=steps):
            assert step.forget is not None
            images, given = step.forget
            noisy, times, _ = task.noised(images, rng)
            null = torch.full_like(given, task.null)
            with torch.no_grad():
                of_none = task.predict(task.model, noisy, times, null, fast=True)
                of_it = task.predict(task.model, noisy, times, given, fast=True)
            goal = of_none - eta * (of_it - of_none)
            yield F.mse_loss(task.predict(model, noisy, times, given), goal), len(images)

    return descend(task, losses, lr=lr, mask=mask, seed=seed)


METHOD = Method(
    esd,
    "ESD",
    tasks=("diffusion", "text_to_image"),
    search={"lr": between(1e-6, 1e-3)},
    source="Gandikota et al., ICCV 2023",
)
