"""Influence unlearning: one step along an approximate inverse Hessian."""

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from salun_core.data.batches import Loader
from salun_core.errors import Diverged
from salun_core.methods.classification.per_image import free_weights, per_image_gradients
from salun_core.methods.engine import Method, Unlearned, trainable_copy
from salun_core.methods.search import between
from salun_core.rng import generator
from salun_core.saliency import Mask, check_mask
from salun_core.tasks.base import Task


def iu(
    task: Task,
    *,
    mask: Mask | None = None,
    alpha: NonNegativeFloat = 5.0,
    samples: PositiveInt = 1000,
    seed: int = 0,
) -> Unlearned:
    r"""Move the weights by ``alpha`` times an inverse-Hessian product of the influence of the forget set.

    With :math:`n = n_f + n_r` images, ``v`` is the change of the mean gradient when the forget set goes,

    .. math:: v = \frac{1}{n} \sum_f \nabla \ell - \frac{n_f}{n\, n_r} \sum_r \nabla \ell,

    and ``k``, starting at ``v``, goes through the recursion of the released code over ``samples`` single
    images of the retain set: with gradient g, ``s = o g``, ``k -= (k g) / (N + s) o`` and
    ``o -= s / (N + s) o``, where ``o`` starts as the first image's gradient. Because one vector ``o``
    stands for the whole inverse, this is cheaper and cruder than WoodFisher. Gradients are taken in
    evaluation mode without augmentation.

    Parameters
    ----------
    task : ClassificationTask
        A trained classifier with its forget and retain set.
    mask : Mask, optional
        Applied to the final step.
    alpha : float
        Length of the step.
    samples : int
        N, images of the retain set in the recursion, in an order drawn from ``seed``.

    References
    ----------
    Koh and Liang, ICML 2017; Izzo et al., AISTATS 2021; Singh and Alistarh, NeurIPS 2020 (WoodFisher).
    """
    model = trainable_copy(task.model).eval()
    if mask is not None:
        check_mask(mask, model)
    n_f, n_r = task.forget.n, task.retain.n
    n = n_f + n_r
    influence = _summed_gradient(task, model, task.forget) / n
    influence -= _summed_gradient(task, model, task.retain) * (n_f / (n * n_r))

    rows = torch.randperm(n_r, generator=generator(seed, "iu"))[: samples + 1]
    step = influence
    basis: Tensor | None = None
    for g in per_image_gradients(task, model, task.retain.subset(rows)):
        if basis is None:
            basis = g.clone()
            continue
        s = basis @ g
        step = step - (step @ g) / (samples + s) * basis
        basis = basis - s / (samples + s) * basis
    if not torch.isfinite(step).all():
        raise Diverged("the influence step is not finite: the model's gradients are too large")
    with torch.no_grad():
        weights = free_weights(model)
        parts = step.split([w.numel() for w in weights.values()])
        for (name, weight), part in zip(weights.items(), parts, strict=True):
            change = alpha * part.view_as(weight)
            weight.copy_(
                weight + change
                if mask is None
                else torch.where(mask[name].to(weight.device), weight + change, weight)
            )
    return Unlearned(model, [], samples=n + len(rows))


def _summed_gradient(task: Task, model: nn.Module, batches: Loader) -> Tensor:
    weights = list(free_weights(model).values())
    total = torch.zeros(sum(w.numel() for w in weights), dtype=weights[0].dtype, device=weights[0].device)
    for batch in batches:
        loss = task.loss(model, batch) * len(batch[0])
        grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        total += torch.cat([g.reshape(-1) for g in grads])
    return total


METHOD = Method(
    iu,
    "IU",
    tasks=("classification",),
    search={"alpha": between(1, 20)},
    source="Izzo et al., AISTATS 2021; Koh and Liang, ICML 2017",
)
