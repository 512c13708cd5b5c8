"""Concept Ablation: the network learns to predict for the forgotten prompt what it predicts for an anchor."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.methods.diffusion.network_parts import Part, part_mask
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import Order
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task
from salun_core.tasks.noise_prediction import Target
from salun_core.tasks.text_to_image import TextToImageTask


def ca(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = 100,
    lr: PositiveFloat = 1.6e-5,
    images: Literal["anchor", "concept"] = "anchor",
    alpha: NonNegativeFloat = 0.0,
    target: Target = "current",
    part: Part = "kv",
    seed: int = 0,
) -> Unlearned:
    r"""Match the prediction for the forgotten prompt c to that for its anchor c', on the anchor's images.

    The model-based variant, optionally with the training loss on the same images beside it:

    .. math:: \|\epsilon_\theta(x_t, c) - \mathrm{sg}[\epsilon_\theta(x_t, c')]\|^2
              + \alpha \|\epsilon_\theta(x_t, c') - \epsilon\|^2 .

    No gradient flows into the target (sg). The defaults are those of the released code: the target comes
    from the weights being trained, only keys and values of cross-attention move, in 100 steps; its learning
    rate of 2e-6 is multiplied by two devices and four images on each.

    Random labelling aims at the same target. It differs in the images, which show the forgotten concept
    there and the anchor here, in the second term, and in the weights that move.

    Parameters
    ----------
    task : TextToImageTask
        The replacement of a forgotten prompt is its anchor.
    mask : Mask, optional
        Weights that may change, within ``part``.
    epochs, steps, lr, seed
        As in `rl`; an epoch is a pass over the images used.
    images : str
        "anchor": images of the retain set whose prompt is an anchor, as the authors do. "concept": the
        forget set, for a task without such images; the second term is then left out.
    alpha : float
        Weight of the second term, the authors' optional regularisation.
    target : str
        Whose prediction for c' is matched: that of the "current" weights, or of the "original" model.
    part : str
        A key of ``network_parts.PARTS``.

    References
    ----------
    Kumari et al., Ablating concepts in text-to-image diffusion models, ICCV 2023.
    """
    if not isinstance(task, TextToImageTask):
        raise UserError("Concept Ablation works on a text-to-image model only")
    with_anchors = images == "anchor"
    used, asked_by = anchored(task) if with_anchors else (task, {})
    mask = part_mask(task.model, part, mask)
    rng = generator(seed, "ca")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        order: Order = "retain" if with_anchors else "forget"
        for step in rounds(used, rng, order=order, epochs=epochs, steps=steps):
            batch = step.retain if with_anchors else step.forget
            assert batch is not None
            seen, given = batch
            noisy, times, noise = task.noised(seen, rng)
            anchor = given if with_anchors else task.wrong(given, rng)
            concept = concepts(asked_by, given, rng) if with_anchors else given
            with torch.no_grad():
                source = model if target == "current" else task.model
                goal = task.predict(source, noisy, times, anchor, fast=True)
            loss = F.mse_loss(task.predict(model, noisy, times, concept), goal)
            if with_anchors and alpha:
                loss = loss + alpha * F.mse_loss(task.predict(model, noisy, times, anchor), noise)
            yield loss, len(seen)

    return descend(task, losses, lr=lr, mask=mask, seed=seed)


def anchored(task: TextToImageTask) -> tuple[TextToImageTask, dict[int, Tensor]]:
    """The task with only the anchors' images to keep, and the forgotten prompts by anchor."""
    asked = task.forget.labels.unique()
    anchors = task.wrong(asked, generator(0))
    rows = torch.isin(task.retain.labels, anchors).nonzero().view(-1)
    if not len(rows):
        raise UserError(
            "the retain set has no images of the anchor: add some with the prompt of the replacement, or set "
            "images to 'concept'"
        )
    parts = {**task.parts, "retain": task.retain.subset(rows)}
    return replace(task, parts=parts), {int(a): asked[anchors == a] for a in anchors.unique()}


def concepts(asked_by: dict[int, Tensor], anchors: Tensor, rng: torch.Generator) -> Tensor:
    """For each anchor one of the forgotten prompts it stands in for."""
    places = torch.rand(len(anchors), generator=rng).tolist()
    groups = [asked_by[int(anchor)] for anchor in anchors]
    return torch.stack([group[int(x * len(group))] for group, x in zip(groups, places, strict=True)])


METHOD = Method(
    ca,
    "CA",
    tasks=("text_to_image",),
    search={"lr": between(1e-6, 1e-3)},
    source="Kumari et al., ICCV 2023",
)
