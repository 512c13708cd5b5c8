"""One number for a method that is run at several strengths: how much of what Retrain reaches it leaves out."""

import math

import numpy as np
from numpy.typing import ArrayLike

from salun_core.errors import UserError


def frontier(points: ArrayLike) -> np.ndarray:
    """The points that no other one beats in both coordinates, by the first one, (k, 2).

    Parameters
    ----------
    points : array-like
        (n, 2), larger is better in both: UA and the accuracy of the other classes.
    """
    best = -math.inf
    kept = []
    for point in sorted(map(tuple, np.asarray(points, float).reshape(-1, 2)), reverse=True):
        if point[1] > best:
            best = point[1]
            kept.append(point)
    return np.array(kept[::-1]).reshape(-1, 2)


def area_left_out(points: ArrayLike, goal: ArrayLike) -> float:
    """Share of the rectangle below ``goal`` that no point covers, in [0, 1].

    A point covers all that is worse than it in both coordinates. Zero: some point is as good as the goal in both. One:
    every point is at zero in a coordinate. Between the points nothing is interpolated, since a model between two
    strengths was not trained; more strengths can only make the share smaller.

    It is the hypervolume indicator (Zitzler and Thiele, IEEE Trans. Evolutionary Computation 3 (1999) 257) in two
    dimensions, clipped at the goal and subtracted from the whole.

    Parameters
    ----------
    points : array-like
        (n, 2), shares that are best when large: UA and the accuracy of the other classes.
    goal : array-like
        (2,), the same of Retrain.

    Raises
    ------
    UserError
        If a coordinate of the goal is not above zero: there is no rectangle.
    """
    reached = np.asarray(goal, float)
    if not (reached > 0).all():
        raise UserError(f"the goal must be above 0 in both coordinates, got {reached.tolist()}")
    kept = frontier(np.minimum(np.asarray(points, float).reshape(-1, 2) / reached, 1.0))
    if len(kept) == 0:
        return 1.0
    widths = np.diff(kept[:, 0], prepend=0.0)
    return float(1.0 - (widths * kept[:, 1]).sum())
