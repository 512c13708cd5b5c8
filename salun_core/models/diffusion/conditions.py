"""What a denoising network is told to show: a class, an embedded prompt, or a prompt embedded in several parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Embedded:
    """Prompts as networks with several text encoders take them; a subclass for each way to hand them over.

    Rows are picked and tensors converted in all parts at once, as if it were one tensor.

    Parameters
    ----------
    tokens : Tensor
        (N, L, D), or (L, D) for a single prompt.
    pooled : Tensor
        (N, P), or (P,): each prompt as one vector.
    """

    tokens: Tensor
    pooled: Tensor

    def predicted(self, model: nn.Module, noisy: Tensor, times: Tensor) -> Tensor:
        """What the network predicts for noisy images (N, C, h, w) at their time steps (N,)."""
        raise NotImplementedError

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same prompts with every part changed."""
        return type(self)(**{name: change(part) for name, part in self._parts().items()})

    def __getitem__(self, rows: Any) -> Self:
        return self.each(lambda part: part[rows])

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, *to: Any) -> Self:
        """All parts on a device or in a precision, as ``Tensor.to``."""
        return self.each(lambda part: part.to(*to))

    def is_floating_point(self) -> bool:
        """True: prompts are embedded as floats."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the parts lie."""
        return self.tokens.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parts."""
        return self.tokens.dtype

    def _parts(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


Condition = Tensor | Embedded
"""Classes, int64 (N,); embedded prompts, floats (N, L, D); or prompts embedded in several parts."""


def stacked(conditions: Sequence[Condition]) -> Condition:
    """Conditions of one kind, one behind the other."""
    first = conditions[0]
    if isinstance(first, Tensor):
        return torch.cat([c for c in conditions if isinstance(c, Tensor)])
    parts = [c._parts() for c in conditions if isinstance(c, Embedded)]
    return type(first)(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def repeated(condition: Condition, n: int) -> Condition:
    """One condition, without N, as n equal ones."""
    if isinstance(condition, Embedded):
        return condition.each(lambda part: part.expand(n, *part.shape))
    return condition.expand(n, *condition.shape)


def vectors(condition: Condition) -> list[Tensor]:
    """What embedded prompts say, as vectors along the last axis: tokens (…, L, D), and pooled prompts (…, 1, P)."""
    if isinstance(condition, Embedded):
        return [condition.tokens, condition.pooled.unsqueeze(-2)]
    return [condition]


def with_vectors(condition: Condition, changed: Sequence[Tensor]) -> Condition:
    """The same embedded prompts with other `vectors`."""
    if isinstance(condition, Embedded):
        return replace(condition, tokens=changed[0], pooled=changed[1].squeeze(-2))
    return changed[0]


def bounded_(move: Tensor, origin: Tensor, radius: float) -> None:
    """Shorten each vector of ``move`` to at most ``radius`` times the length of that in ``origin``."""
    length = move.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    move.mul_((radius * origin.norm(dim=-1, keepdim=True) / length).clamp_max(1.0))


def with_null(conditions: Condition, null: int | Condition) -> Condition:
    """The N conditions, and as many times the one that stands for none behind them.

    Parameters
    ----------
    conditions : Condition
        N of them.
    null : int or Condition
        Number of the null class, or the embedding of one prompt.
    """
    if isinstance(null, int):
        return stacked([conditions, torch.full_like(conditions, null)])  # type: ignore[arg-type]
    return stacked([conditions, repeated(null.to(conditions.device, conditions.dtype), len(conditions))])
