"""EraseDiff: keep the training loss of the rest low while the forgetting loss is made to fall at every step."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.data.batches import Batch
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.lora import Lora
from salun_core.methods.search import between
from salun_core.networks import copied
from salun_core.rng import generator
from salun_core.saliency import Mask
from salun_core.tasks.base import Task

Rule = Literal["gradient", "value", "cosine", "fixed"]
SCALE = 2.0**12  # gradients of a multiple of the loss do not vanish in half precision


def multiplier(
    rule: Rule, eta: float, gap: float, keeping: float, forgetting: float, between_them: float
) -> float:
    r"""The weight :math:`\lambda` of the forgetting gradient q beside the gradient r of the rest.

    Parameters
    ----------
    rule : str
        A key of ``RULES``.
    eta : float
        :math:`\eta`.
    gap : float
        How far the forgetting loss is above what a few steps towards it reach.
    keeping, forgetting, between_them : float
        :math:`\|r\|^2`, :math:`\|q\|^2` and :math:`\langle r, q \rangle`.
    """
    if not forgetting:
        return 0.0
    return max(0.0, RULES[rule](eta, gap, keeping, forgetting, between_them))


RULES: dict[Rule, Callable[[float, float, float, float, float], float]] = {
    # <q, r + λ q> = η |q|²: each step lowers the forgetting loss by at least a share η of what q alone would.
    "gradient": lambda eta, gap, rr, qq, rq: (eta * qq - rq) / qq,
    # The same with a demand that fades as the forgetting loss comes near what can be reached.
    "value": lambda eta, gap, rr, qq, rq: (eta * gap - rq) / qq,
    # The released code: a cosine in the place of the projection.
    "cosine": lambda eta, gap, rr, qq, rq: eta - rq / ((rr * qq) ** 0.5 + 1e-8),
    # The released code's default: the same weight all along.
    "fixed": lambda eta, gap, rr, qq, rq: eta,
}


def erasediff(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 5,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 1e-5,
    rule: Rule = "gradient",
    eta: PositiveFloat = 0.1,
    inner: PositiveInt = 2,
    seed: int = 0,
) -> Unlearned:
    r"""Minimise the training loss on the retain set, subject to forgetting being as good as it can be made.

    .. math:: \min_\theta L_r(\theta) \quad \text{subject to} \quad
              g(\theta) = L_f(\theta) - L_f(\theta^{(K)}) \le 0 ,

    where :math:`L_f` is the task's ``relabel_loss`` and :math:`\theta^{(K)}` what K steps of descent on it
    make of :math:`\theta`, a constant. A step follows :math:`\nabla L_r + \lambda \nabla g`, the direction
    nearest to :math:`\nabla L_r` of those with :math:`\langle \nabla g, \cdot \rangle \ge a`:

    .. math:: \lambda = \max\Big(0, \frac{a - \langle \nabla L_r, \nabla g \rangle}{\|\nabla g\|^2}\Big) ,
              \qquad a = \eta \|\nabla g\|^2 .

    As :math:`\nabla g = \nabla L_f`, random labelling takes the same steps with a fixed
    :math:`1 / \alpha` in the place of :math:`\lambda`.

    Parameters
    ----------
    task : DiffusionTask or TextToImageTask
        A trained diffusion model with its forget and retain set.
    mask : Mask, optional
        Weights that may change; all by default. Only their gradients count.
    epochs, steps, lr, seed
        As in `rl`; a step takes a batch of each set, and an epoch is a pass over the forget set.
    rule : str
        "gradient": as above. "value": :math:`a = \eta\, g(\theta)`, which needs the K steps. "cosine" and
        "fixed": as in the released code, :math:`\eta - \cos(\nabla L_r, \nabla g)` where positive, and
        :math:`\lambda = \eta`.
    eta : float
        :math:`\eta`, positive.
    inner : int
        K, for the rule "value": steps of plain gradient descent at the rate ``lr`` on the step's own batch.

    References
    ----------
    Wu et al., Erasing undesirable influence in diffusion models, CVPR 2025, arXiv:2401.05779; Liu et al.,
    BOME! Bilevel optimization made easy, NeurIPS 2022 (the rules for a).
    """
    rng = generator(seed, "erasediff")

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        movable = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
        marks = [None if mask is None or isinstance(mask, Lora) else mask[name] for name, _ in movable]

        def gradients(loss: Tensor) -> list[Tensor]:
            found = torch.autograd.grad(
                loss * SCALE,
                [w for _, w in movable],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return [g / SCALE if m is None else g / SCALE * m for g, m in zip(found, marks, strict=True)]

        for step in rounds(task, rng, order="joint", epochs=epochs, steps=steps):
            assert step.forget is not None and step.retain is not None
            gap = 0.0
            if rule == "value":
                gap = look_ahead(task, model, step.forget, rng, mask=mask, lr=lr, steps=inner)
            keeping = task.loss(model, step.retain, rng)
            forgetting = task.relabel_loss(model, step.forget, rng)
            if rule == "fixed":
                yield keeping + eta * forgetting, step.samples
                continue
            r, q = gradients(keeping), gradients(forgetting)
            weight = multiplier(rule, eta, gap, product(r, r), product(q, q), product(r, q))
            yield keeping + weight * forgetting, step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed)


def product(a: list[Tensor], b: list[Tensor]) -> float:
    """Inner product of two gradients, over all weights."""
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


def look_ahead(
    task: Task,
    model: nn.Module,
    batch: Batch,
    rng: torch.Generator,
    *,
    mask: Mask | Lora | None,
    lr: float,
    steps: int,
) -> float:
    """How much the forgetting loss of a batch falls by some steps of descent on it; the model stays as it is.

    Both values are taken with the same random draws, which leave ``rng`` as it was.
    """
    twin = copied(model)
    weights = [(name, w) for name, w in twin.named_parameters() if w.requires_grad]
    state = rng.get_state()

    def loss(net: nn.Module) -> Tensor:
        rng.set_state(state)
        return task.relabel_loss(net, batch, rng)

    with torch.no_grad():
        now = float(loss(model))
    for _ in range(steps):
        found = torch.autograd.grad(
            loss(twin) * SCALE, [w for _, w in weights], allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            for (name, weight), gradient in zip(weights, found, strict=True):
                marked = gradient if mask is None or isinstance(mask, Lora) else gradient * mask[name]
                weight.sub_(marked, alpha=lr / SCALE)
    with torch.no_grad():
        reached = float(loss(twin))
    rng.set_state(state)
    return now - reached


METHOD = Method(
    erasediff,
    "EraseDiff",
    tasks=("diffusion", "text_to_image"),
    search={"lr": between(1e-6, 1e-3), "eta": between(1e-2, 1.0)},
    source="Wu et al., CVPR 2025",
)
