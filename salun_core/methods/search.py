"""Bounds of settings, and the candidates a tuning budget buys within them."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from scipy.stats import qmc

from salun_core.rng import derive


class Range(BaseModel):
    """Values a setting may take: an interval (``log`` for a logarithmic scale) or a list of choices."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float | None = None
    high: float | None = None
    log: bool = True
    integer: bool = False
    choices: tuple[Any, ...] = ()

    @field_validator("low", "high", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"an end of an interval must be a number, got {value}")
        return value

    @field_validator("choices")
    @classmethod
    def _once_each(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for i, choice in enumerate(value):
            if choice in value[:i]:
                raise ValueError(f"the choices repeat {choice!r}: give each once")
        return value

    @model_validator(mode="after")
    def _one_form(self) -> "Range":
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise ValueError("give either low and high, or choices")
        low, high = self.low, self.high
        if low is not None and high is not None and (high < low or (self.log and low <= 0)):
            raise ValueError(f"low {low} and high {high} do not bound an interval")
        return self

    def at(self, position: float) -> Any:
        """The value at ``position`` in [0, 1]."""
        if self.choices:
            return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]
        assert self.low is not None and self.high is not None
        if self.log:
            value = math.exp(math.log(self.low) + position * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + position * (self.high - self.low)
        return round(value) if self.integer else float(f"{value:.3g}")  # readable, and stable as a key


def between(low: float, high: float, *, log: bool = True) -> Range:
    """An interval, on a logarithmic scale by default."""
    return Range(low=low, high=high, log=log)


def one_from(*choices: Any) -> Range:
    """A list of choices."""
    return Range(choices=choices)


def candidates(search: dict[str, Range], budget: int) -> list[dict[str, Any]]:
    """Spread ``budget`` settings over the bounds, the same ones on every call.

    One setting: evenly spaced with both ends. Several: the points of a Halton sequence, which fill the
    box evenly however many are taken.

    Parameters
    ----------
    search : dict of str to Range
        Bounds by setting.
    budget : int
        Number of candidates; a list of choices alone gives no more than its length.
    """
    if not search:
        return [{}]
    names = sorted(search)
    if len(names) == 1:
        (only,) = (search[name] for name in names)
        count = min(budget, len(only.choices)) if only.choices else budget
        places = [[i / (count - 1)] if count > 1 else [0.5] for i in range(count)]
    else:
        seed = derive(0, "candidates", *names) % 2**32
        places = qmc.Halton(d=len(names), scramble=True, rng=seed).random(budget).tolist()
    points = [{name: search[name].at(x) for name, x in zip(names, place, strict=True)} for place in places]
    return [point for i, point in enumerate(points) if point not in points[:i]]
