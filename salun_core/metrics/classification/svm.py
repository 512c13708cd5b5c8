"""A support vector machine on one feature, in time that grows with the number of images and not its square.

scikit-learn's machine compares every image with every other one. With one feature that is not necessary: over an
interval of a few units a Gaussian is a sum of some thirty cosines to the last digit of double precision. In their
coefficients the machine is a quadratic program with few unknowns, which an interior-point method solves exactly,
where the decomposition in scikit-learn's stops at a tolerance of 0.001.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Vector = npt.NDArray[np.float64]
Decision = Callable[[Vector], Vector]

MARGIN = 6.2  # a Gaussian is below 1e-16 beyond it
WIDEST = 60.0  # range of a feature, beyond which the cosines become too many
GAP = (
    1e-11  # difference between the two bounds on the objective, relative to it, at which a solution is final
)
STEPS = 100  # of the interior-point method, which needs 10 to 30


def one_feature_machine(values: Vector, sides: Vector, *, penalty: float) -> Decision | None:
    r"""The support vector machine with kernel :math:`\exp(-(x - x')^2)` on one feature.

    It minimises :math:`\frac12 \|f\|^2 + C \sum_i \max(0, 1 - y_i (f(x_i) + b))` over functions f of the kernel's
    space and the intercept b. Where the optimal b is an interval, its middle is taken, as libsvm does.

    Parameters
    ----------
    values : array
        The feature, (n,), finite.
    sides : array
        y, 1 or -1, (n,). Both must occur.
    penalty : float
        C.

    Returns
    -------
    callable or None
        The decision function, features (m,) to f + b (m,). None where the values spread over more than
        ``WIDEST``, or the method finds no solution to a relative precision of ``GAP``.

    References
    ----------
    Fine and Scheinberg, Efficient SVM training using low-rank kernel representations, JMLR 2 (2001) 243-264;
    Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optimization 2 (1992) 575-601.
    """
    low, high = float(values.min()), float(values.max())
    if high - low > WIDEST:
        return None
    # Equal values count as one with a larger penalty: many confidences are exactly 1.
    points, counts = np.unique(np.stack([values, sides]), axis=1, return_counts=True)
    side, costs = points[1], penalty * counts.astype(np.float64)
    waves = _waves(points[0], low, high)
    # Directions in which the images do not differ are left out.
    sizes, directions = np.linalg.eigh(waves @ waves.T)
    directions = directions[:, sizes > 1e-16 * sizes[-1]]
    features = np.ascontiguousarray(directions.T @ waves)  # (r, n)
    weights = _optimum(features, side, costs)
    if weights is None:
        return None
    intercept = _intercept(weights @ features, side, costs)
    weights = directions @ weights
    return lambda at: weights @ _waves(at, low, high) + intercept


def _waves(values: Vector, low: float, high: float) -> Vector:
    """Functions whose products sum to the kernel, (r, n): cosines and sines of a Gaussian repeated at a distance."""
    period = high - low + MARGIN
    count = np.arange(1, int(np.ceil(2.02 * period)) + 1)  # the next coefficient is below 1e-17
    angles = 2 * np.pi / period * count[:, None] * (values - low)
    sizes = np.sqrt(2 * np.sqrt(np.pi) / period) * np.exp(-((np.pi / period * count) ** 2) / 2)
    constant = np.full((1, len(values)), np.sqrt(np.sqrt(np.pi) / period))
    return np.concatenate([constant, sizes[:, None] * np.cos(angles), sizes[:, None] * np.sin(angles)])


def _optimum(features: Vector, side: Vector, costs: Vector) -> Vector | None:
    """Weights (r,) of the optimal f for features (r, n), by Mehrotra's predictor and corrector.

    Each image has a slack ``t = y (f + b) + xi - 1``, a loss ``xi``, and their multipliers ``a`` and
    ``rest = cost - a``; at the optimum ``t a = xi rest = 0``.
    """
    rows = np.concatenate([features, np.ones((1, len(side)))])  # the last one is the intercept's
    ridge = np.ones(len(rows))
    ridge[-1] = 0
    inside, outside = costs[side > 0].sum(), costs[side < 0].sum()
    a = costs * np.where(side > 0, outside, inside) / (2 * max(inside, outside))  # sums to 0 over the sides
    rest = costs - a
    t, xi, weights = np.ones(len(side)), np.ones(len(side)), np.zeros(len(rows))
    for _ in range(STEPS):
        f = weights @ rows
        missing = t - (side * f + xi - 1)
        slope = ridge * weights - rows @ (side * a)
        gap = float(t @ a + xi @ rest)
        loss = weights[:-1] @ weights[:-1] / 2 + costs @ np.maximum(0, 1 - side * f)
        if gap <= GAP * (1 + loss) and np.abs(missing).max() < 1e-9:
            return weights[:-1]
        spread = t / a + xi / rest
        normal = (rows / spread) @ rows.T + np.diag(ridge)
        normal += 1e-14 * np.diag(normal.diagonal())  # rounding may not make it indefinite
        try:
            solver = cho_factor(normal, check_finite=False)
        except LinAlgError:
            return None

        goals = -t * a, -xi * rest  # predictor: straight for the optimum
        for corrector in (False, True):
            wanted = goals[0] / a - goals[1] / rest + missing
            down = cho_solve(solver, rows @ (side * wanted / spread) - slope)
            move = (wanted - side * (down @ rows)) / spread
            dt, dxi = (goals[0] - t * move) / a, (goals[1] + xi * move) / rest
            size = _longest((t, dt), (xi, dxi), (a, move), (rest, -move))
            if not corrector:
                left = (t + size * dt) @ (a + size * move) + (xi + size * dxi) @ (rest - size * move)
                aim = (left / gap) ** 3 * gap / (2 * len(side))
                goals = aim - t * a - dt * move, aim - xi * rest + dxi * move
        size *= 0.995
        weights, t, xi = weights + size * down, t + size * dt, xi + size * dxi
        a, rest = a + size * move, rest - size * move
    return None


def _longest(*pairs: tuple[Vector, Vector]) -> float:
    """The longest step, at most 1, that keeps every first vector positive while it changes by the second."""
    with np.errstate(divide="ignore"):
        return min(1.0, *(float(np.min(np.where(by < 0, -value / by, np.inf))) for value, by in pairs))


def _intercept(f: Vector, side: Vector, costs: Vector) -> float:
    """The intercept with the least loss for given f; the middle where it is an interval."""
    turns = side - f  # where the loss of an image begins or ends
    order = np.argsort(turns)
    slope = np.cumsum(costs[order]) - costs[side > 0].sum()  # of the total loss, after each turn
    none = 1e-9 * costs.min()
    first = int(np.argmax(slope >= -none))
    last = first if slope[first] > none else min(first + 1, len(order) - 1)
    return float(turns[order[first]] + turns[order[last]]) / 2
