"""A share of images, with the uncertainty that comes from their number."""

import math
from dataclasses import dataclass

from scipy.stats import norm


@dataclass(frozen=True)
class Share:
    """``value`` in [0, 1] of ``n`` images, and a 95% interval ``low`` to ``high``.

    The interval is Wilson's for this one model, except where several models are behind the value.
    """

    value: float
    n: int
    low: float
    high: float

    def __float__(self) -> float:
        return self.value


NOTHING = Share(math.nan, 0, math.nan, math.nan)
"""The share of no images."""


def wilson(count: int, *, n: int, level: float = 0.95) -> Share:
    """The share ``count / n`` with its Wilson score interval; `NOTHING` for ``n = 0``.

    References
    ----------
    Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209-212.
    """
    if n == 0:
        return NOTHING
    z = float(norm.ppf((1 + level) / 2))
    p = count / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, n, max(0.0, middle - half), min(1.0, middle + half))
