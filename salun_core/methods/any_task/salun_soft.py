"""SalUn-soft: no fixed mask, but a penalty that keeps most weights where they were."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.methods.any_task.rl import relabelled_losses
from salun_core.methods.engine import Method, Unlearned, descend, round_count
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats, Order
from salun_core.methods.step_size import Size, StepSizes, soft_threshold_
from salun_core.networks import copied
from salun_core.saliency import Mask, kth_largest
from salun_core.tasks.base import Task


def salun_soft(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 0.013,
    alpha: NonNegativeFloat = 1.0,
    order: Order = "forget_then_retain",
    shrink: Literal["penalty", "quantile"] = "penalty",
    beta: NonNegativeFloat = 1e-3,
    decline: Literal["linear", "constant"] = "linear",
    anchor: Literal["original", "epoch"] = "original",
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    r"""Random labelling with an :math:`\ell_1` penalty on the distance to the original weights.

    Minimises :math:`L(\theta) + \beta\,\|\theta - \theta_o\|_1`, where L is the loss of `rl` with the weight decay of
    the optimiser. After each step the change of every weight shrinks towards zero by a threshold
    (soft-thresholding); smaller changes are undone.

    Parameters
    ----------
    task : Task
        A trained model with its forget and retain set.
    mask : Mask, optional
        Additional hard mask.
    epochs, steps, lr, alpha, order, bn_stats, seed
        Those of `rl`.
    shrink : str
        "penalty": the threshold of weight i is :math:`\eta_i \beta_s`, the proximal step of the penalty. "quantile":
        that share ``beta`` of all changes is undone, and the others shrink by the largest of these, as in the
        released code.
    beta : float
        Weight of the penalty, in the unit of the loss per unit of weight; or the share undone (then in [0, 1]).
    decline : str
        "linear": :math:`\beta_s = \beta\,(1 - s / S)` at step s of S. "constant": :math:`\beta_s = \beta`.
    anchor : str
        What changes are counted from: "original" (the paper's), or "epoch", the weights at the start of
        each epoch (the released code's).

    Notes
    -----
    The threshold contains the size :math:`\eta_i` of the step that was taken, see `StepSizes`, not the learning rate.
    A step without the penalty is :math:`-\eta_i \bar g_i` with a mean :math:`\bar g_i` of past gradients. Where the
    weights have come to rest at :math:`\theta_i \ne \theta_{o,i}`, all these gradients are the same
    :math:`g_i = \partial L / \partial \theta_i`, and the step :math:`-\eta_i g_i` must cancel the threshold
    :math:`\eta_i \beta \operatorname{sign}(\theta_i - \theta_{o,i})`. So
    :math:`g_i + \beta \operatorname{sign}(\theta_i - \theta_{o,i}) = 0`; and :math:`\theta_{o,i}` itself is kept exactly
    where :math:`|g_i| \le \beta`. These are the conditions for a stationary point of the objective, whatever momentum and
    step size are. With the threshold :math:`\text{lr}\,\beta` they would be those of a penalty
    :math:`(1 - \mu)\,\beta`, ten times too weak for a momentum :math:`\mu = 0.9`.

    References
    ----------
    Fan et al., SalUn, ICLR 2024, section on the soft-thresholding variant. Gao, Rodomanov and Stich, ICML 2024 (proximal
    steps with momentum); Yun, Lozano and Yang, NeurIPS 2021 (with adaptive step sizes).
    """
    total = round_count(task, order=order, epochs=epochs, steps=steps)
    an_epoch = round_count(task, order=order, epochs=1)
    reference: nn.Module = task.model
    done = 0

    def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        step_sizes = StepSizes(optimizer) if shrink == "penalty" else None

        def shrink_changes(*_: Any) -> None:
            nonlocal done, reference
            anchors = dict(reference.named_parameters())
            now = beta * (1 - done / total) if decline == "linear" else beta
            if step_sizes is None:
                common = _quantile(model, anchors, now)
                thresholds: dict[Tensor, Size] = dict.fromkeys(model.parameters(), common)
            else:
                thresholds = {w: size * now for w, size in step_sizes().items()}
            for name, weight in model.named_parameters():
                if weight in thresholds:
                    soft_threshold_(weight, anchors[name], thresholds[weight])
            done += 1
            if anchor == "epoch" and done % an_epoch == 0:
                reference = copied(model)

        optimizer.register_step_post_hook(shrink_changes)

    losses = relabelled_losses(task, order=order, alpha=alpha, epochs=epochs, steps=steps, seed=seed)
    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats, prepare=prepare)


@torch.no_grad()
def _quantile(model: nn.Module, anchors: dict[str, nn.Parameter], share: float) -> float:
    """The size that a ``share`` of all changes does not exceed."""
    sizes = {name: (w - anchors[name]).abs_().float() for name, w in model.named_parameters()}
    count = sum(size.numel() for size in sizes.values())
    undone = int(share * count)
    return kth_largest(sizes, count - undone + 1) if undone else 0.0


def _check(settings: Mapping[str, Any]) -> None:
    if settings["shrink"] == "quantile" and settings["beta"] > 1:
        raise UserError(
            f"SalUn-soft: beta must be at most 1 with shrink='quantile', where it is a share, got {settings['beta']:g}"
        )


METHOD = Method(
    salun_soft,
    "SalUn-soft",
    search={"lr": between(5e-4, 5e-2), "beta": between(1e-4, 1e-2)},
    source="Fan et al., ICLR 2024",
    check=_check,
)
