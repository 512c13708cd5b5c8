"""SalUn-soft: no fixed mask, but a penalty that keeps most weights where they were."""

import copy

import torch
from torch import nn

from salun_core.errors import UserError, one_of
from salun_core.methods.any_task.rl import relabelled_losses
from salun_core.methods.engine import Method, Unlearned, descend, round_count
from salun_core.methods.search import between
from salun_core.saliency import Mask, kth_largest
from salun_core.tasks.base import Task

SHRINK = ("penalty", "quantile")
ANCHORS = ("original", "epoch")


def salun_soft(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: int = 10,
    steps: int | None = None,
    lr: float = 0.013,
    alpha: float = 1.0,
    order: str = "forget_then_retain",
    shrink: str = "penalty",
    beta: float = 1e-3,
    anchor: str = "original",
    bn_stats: str = "update",
    seed: int = 0,
) -> Unlearned:
    r"""Random labelling with an :math:`\ell_1` proximal step towards the original weights.

    After each optimiser step the change of every weight shrinks towards zero by a threshold ``t``
    (soft-thresholding, changes up to ``t`` are undone), and ``t`` falls linearly to 0 over the run.

    Parameters
    ----------
    task : Task
        A trained model with its forget and retain set.
    mask : Mask, optional
        Additional hard mask.
    epochs, steps, lr, alpha, order, bn_stats, seed
        Those of `rl`.
    shrink : str
        "penalty": ``t = lr * beta * (1 - s / S)`` at step s of S, the proximal step of the penalty
        ``beta * |change|``. "quantile": ``t`` is the ``beta * (1 - s / S)`` quantile of the changes, as
        in the released code.
    beta : float
        Weight of the penalty, or starting share of changes undone (then in [0, 1]).
    anchor : str
        What changes are counted from: "original" (the paper's), or "epoch", the weights at the start of
        each epoch (the released code's).

    References
    ----------
    Fan et al., SalUn, ICLR 2024, section on the soft-thresholding variant.
    """
    one_of(shrink, SHRINK, "rule for the threshold")
    one_of(anchor, ANCHORS, "anchor")
    if beta < 0 or (shrink == "quantile" and beta > 1):
        raise UserError(f"beta must be at least 0 (at most 1 for a quantile), got {beta}")
    total = round_count(task, order=order, epochs=epochs, steps=steps)
    an_epoch = round_count(task, order=order, epochs=1)
    reference: nn.Module = task.model
    done = 0

    @torch.no_grad()
    def shrink_changes(model: nn.Module) -> None:
        nonlocal done, reference
        anchors = dict(reference.named_parameters())
        changes = {name: weight - anchors[name] for name, weight in model.named_parameters()}
        left = 1 - done / total
        if shrink == "penalty":
            threshold = lr * beta * left
        else:
            sizes = {name: change.abs().float() for name, change in changes.items()}
            count = sum(s.numel() for s in sizes.values())
            undone = int(beta * left * count)
            threshold = kth_largest(sizes, count - undone + 1) if undone else 0.0
        for name, weight in model.named_parameters():
            change = changes[name]
            # Exactly the anchor where the change is undone: most weights end bit-identical to it.
            shrunk = weight - change.sign() * threshold
            weight.copy_(torch.where(change.abs() <= threshold, anchors[name], shrunk))
        done += 1
        if anchor == "epoch" and done % an_epoch == 0:
            reference = copy.deepcopy(model)

    losses = relabelled_losses(task, order=order, alpha=alpha, epochs=epochs, steps=steps, seed=seed)
    return descend(task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats, after_step=shrink_changes)


METHOD = Method(
    salun_soft,
    "SalUn-soft",
    search={"lr": between(5e-4, 5e-2), "beta": between(1e-4, 1e-2)},
    source="Fan et al., ICLR 2024",
)
