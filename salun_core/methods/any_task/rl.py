"""Random labelling: teach wrong answers on the forget set and right ones on the retain set."""

from collections.abc import Iterator

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.methods.engine import Losses, Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats, Order
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task


def relabelled_losses(
    task: Task, *, order: Order, alpha: float, epochs: int, steps: int | None, seed: int
) -> Losses:
    """The losses of random labelling, step by step: relabelled forget batches, and ``alpha`` times retain."""
    rng = generator(seed, "rl")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order=order, epochs=epochs, steps=steps):
            terms = []
            if step.forget is not None:
                terms.append(task.relabel_loss(model, step.forget, rng))
            if step.retain is not None:
                terms.append(alpha * task.loss(model, step.retain, rng))
            yield sum(terms[1:], start=terms[0]), step.samples

    return losses


def rl(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 0.013,
    alpha: NonNegativeFloat = 1.0,
    order: Order = "forget_then_retain",
    bn_stats: BatchNormStats = "update",
    decay_unmarked: bool = False,
    seed: int = 0,
) -> Unlearned:
    """Fine-tune towards wrong answers on the forget set and right ones on the retain set.

    With a saliency mask this is SalUn.

    Parameters
    ----------
    task : Task
        Its ``relabel_loss`` says what a wrong answer is.
    mask : Mask, optional
        Weights that may change; all by default.
    epochs, steps : int
        Length of the run, see `engine.rounds`.
    lr : float
        Learning rate.
    alpha : float
        Weight of the retain term, on means over images.
    order : str
        "forget_then_retain" (the released code's for CIFAR-10 and SVHN), "interleaved" or "joint".
    bn_stats, decay_unmarked
        See `engine.descend`.
    seed : int
        Order, augmentation, labels.

    References
    ----------
    Golatkar et al., CVPR 2020 (random labels); Fan et al., SalUn, ICLR 2024 (with a retain term).
    """
    losses = relabelled_losses(task, order=order, alpha=alpha, epochs=epochs, steps=steps, seed=seed)
    return descend(
        task, losses, lr=lr, mask=mask, seed=seed, bn_stats=bn_stats, decay_unmarked=decay_unmarked
    )


METHOD = Method(rl, "RL", search={"lr": between(5e-4, 5e-2)}, source="Golatkar et al., CVPR 2020")
