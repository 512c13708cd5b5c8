"""Concept Ablation: what the forgotten prompt predicts becomes what its anchor predicts, on the anchor's images."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.errors import UserError, one_of
from salun_core.methods.diffusion.network_parts import part_mask
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task
from salun_core.tasks.text_to_image import TextToImageTask

IMAGES = ("anchor", "concept")


def ca(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: int = 10,
    steps: int | None = None,
    lr: float = 2e-6,
    images: str = "anchor",
    alpha: float = 1.0,
    part: str = "xattn",
    seed: int = 0,
) -> Unlearned:
    r"""Match the prediction for the forgotten prompt c to that of the frozen model for its anchor c'.

    The model-based variant, with the usual loss on the anchor's images beside it:

    .. math:: \|\epsilon_\theta(x_t, c) - \epsilon_o(x_t, c')\|^2
              + \alpha \|\epsilon_\theta(x_t, c') - \epsilon\|^2 .

    Random labelling aims at the same target; it differs in the images, which show what is forgotten there
    and the anchor here, in the second term, and in the weights that move.

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
        Weight of the second term.
    part : str
        A key of ``parts.PARTS``; cross-attention by default.

    References
    ----------
    Kumari et al., Ablating concepts in text-to-image diffusion models, ICCV 2023.
    """
    if not isinstance(task, TextToImageTask):
        raise UserError("Concept Ablation works on a text-to-image model only")
    one_of(images, IMAGES, "images to ablate with")
    with_anchors = images == "anchor"
    used, asked_by = anchored(task) if with_anchors else (task, {})
    mask = part_mask(task.model, part, mask)
    rng = generator(seed, "ca")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        order = "retain" if with_anchors else "forget"
        for step in rounds(used, rng, order=order, epochs=epochs, steps=steps):
            batch = step.retain if with_anchors else step.forget
            assert batch is not None
            seen, given = batch
            noisy, times, noise = task.noised(seen, rng)
            anchor = given if with_anchors else task.wrong(given, rng)
            concept = concepts(asked_by, given, rng) if with_anchors else given
            with torch.no_grad():
                goal = task.predict(task.model, noisy, times, anchor, fast=True)
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
