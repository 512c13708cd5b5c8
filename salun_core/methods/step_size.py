"""How far an optimiser moved each weight in its last step, for each unit of gradient."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

from salun_core.errors import UserError
from salun_core.tasks.diffusion_training import gradient_scale

Size = Tensor | float
Group = dict[str, Any]


class StepSizes:
    r"""The step sizes :math:`\eta_i` that make an optimiser's step one of gradient descent.

    Every optimiser moves weight i by :math:`-\eta_i\,\bar g_i`, where :math:`\bar g_i` is a weighted *mean* of
    the gradients so far. With momentum the step holds a *sum* of gradients, so that :math:`\eta_i` is larger than the
    learning rate: for SGD with momentum :math:`\mu`, :math:`\eta = \text{lr}\,(1 + \mu + \mu^2 + \dots)`, which goes to
    :math:`\text{lr} / (1 - \mu)`. Adaptive optimisers have one for every weight. A limit to the norm of the gradient
    makes it smaller by the factor that the gradient lost. Weight decay is not part of it: coupled decay
    (``SGD``, ``Adam``) belongs to the gradient, decoupled decay (``AdamW``) is applied apart.

    Parameters
    ----------
    optimizer : Optimizer
        ``SGD``, ``Adam``, ``AdamW`` or ``Adafactor`` of torch. Gets a hook before its steps.

    Raises
    ------
    UserError
        If it is another one.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        known: dict[type, Callable[[Group], Iterator[tuple[Tensor, Size]]]] = {
            SGD: self._sgd,
            Adam: self._adam,
            AdamW: self._adam,
            Adafactor: self._adafactor,
        }
        if type(optimizer) not in known:
            names = ", ".join(kind.__name__ for kind in known)
            raise UserError(
                f"the step sizes of {type(optimizer).__name__} are not known: give the task one of {names}"
            )
        self.optimizer = optimizer
        self._of_group = known[type(optimizer)]
        self._weight: dict[int, float] = {}  # by group: total weight of the gradients in its running sum
        self._rms: dict[Tensor, float] = {}
        if isinstance(optimizer, Adafactor):
            optimizer.register_step_pre_hook(lambda *_: self._note_size_of_weights())

    def __call__(self) -> dict[Tensor, Size]:
        """Step size of each weight that moved in the last step: one number, or a tensor of the weight's shape.

        To be called once after every step.
        """
        return {w: size for group in self.optimizer.param_groups for w, size in self._of_group(group)}

    def _sgd(self, group: Group) -> Iterator[tuple[Tensor, Size]]:
        now, momentum = gradient_scale(self.optimizer), group["momentum"]
        before = self._weight.get(id(group))
        # As torch does it: the first gradient enters the running sum without dampening.
        total = now if before is None else momentum * before + (1 - group["dampening"]) * now
        self._weight[id(group)] = total
        if not momentum:
            total = now
        elif group["nesterov"]:
            total = now + momentum * total
        yield from ((w, float(group["lr"]) * total) for w in group["params"] if w.grad is not None)

    def _adam(self, group: Group) -> Iterator[tuple[Tensor, Size]]:
        beta1, beta2 = map(float, group["betas"])
        total = beta1 * self._weight.get(id(group), 0.0) + (1 - beta1) * gradient_scale(self.optimizer)
        self._weight[id(group)] = total
        for weight in group["params"]:
            state = self.optimizer.state.get(weight)
            if weight.grad is None or not state:
                continue
            steps = float(state["step"])
            square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
            root = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
            yield weight, root.reciprocal_().mul_(float(group["lr"]) * total / (1 - beta1**steps))

    def _adafactor(self, group: Group) -> Iterator[tuple[Tensor, Size]]:
        eps1, eps2 = group["eps"]
        for weight in group["params"]:
            state = self.optimizer.state.get(weight)
            if weight.grad is None or not state:
                continue
            least = torch.finfo(weight.dtype).eps if eps1 is None else eps1
            if weight.dim() > 1:
                rows = state["row_var"]
                square = rows @ state["col_var"] / rows.mean(dim=-2, keepdim=True).clamp_(min=least)
            else:
                square = state["variance"].clone()
            size = square.clamp_(min=least**2).rsqrt_()
            too_long = max(1.0, rms(weight.grad * size) / group["d"])
            rate = min(float(group["lr"]), float(state["step"]) ** -0.5) * max(eps2, self._rms[weight])
            yield weight, size.mul_(rate * gradient_scale(self.optimizer) / too_long)

    def _note_size_of_weights(self) -> None:
        # The rate of Adafactor is relative to the weights as they are before the step.
        self._rms = {w: rms(w.detach()) for group in self.optimizer.param_groups for w in group["params"]}


def rms(values: Tensor) -> float:
    """Root mean square of the entries."""
    return values.norm(2).item() / values.numel() ** 0.5


@torch.no_grad()
def soft_threshold_(weight: nn.Parameter, anchor: Tensor, threshold: Size) -> None:
    r"""Shrink the change of a weight by ``threshold``: :math:`w \leftarrow w_o + S_\tau(w - w_o)`.

    Exactly the anchor where the change is at most ``threshold``, so that such weights end bit-identical to it.
    """
    change = weight - anchor
    shrunk = weight - change.sign() * threshold
    weight.copy_(torch.where(change.abs() <= threshold, anchor, shrunk))
