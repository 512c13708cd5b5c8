"""The share of Retrain's rectangle that a method leaves out: known answers, counted points, no reward for more of the same."""

import numpy as np
import pytest

from salun_core.errors import UserError
from salun_core.metrics.generation.frontier import area_left_out, frontier


@pytest.mark.parametrize(
    ("points", "goal", "left"),
    [
        ([(1.0, 1.0)], (1.0, 1.0), 0.0),
        ([(0.0, 1.0)], (1.0, 1.0), 1.0),  # Original: nothing forgotten
        ([(1.0, 0.0)], (1.0, 1.0), 1.0),  # noise: nothing kept
        ([(0.5, 1.0)], (1.0, 1.0), 0.5),
        ([(0.5, 1.0), (1.0, 0.5)], (1.0, 1.0), 0.25),
        ([(0.9, 0.9), (0.5, 0.5)], (1.0, 1.0), 0.19),  # the second one adds nothing
        ([(1.0, 1.0)], (0.8, 0.9), 0.0),  # better than the goal counts as equal
        ([(0.4, 0.9)], (0.8, 0.9), 0.5),
        ([], (1.0, 1.0), 1.0),
    ],
)
def test_known_areas(points: list[tuple[float, float]], goal: tuple[float, float], left: float) -> None:
    assert area_left_out(points, goal) == pytest.approx(left)


def test_it_is_the_share_of_random_points_that_no_point_covers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        points, goal = rng.random((6, 2)), 0.5 + 0.5 * rng.random(2)
        thrown = rng.random((200_000, 2)) * goal
        covered = (thrown[:, None] <= points[None]).all(axis=2).any(axis=1)
        assert area_left_out(points, goal) == pytest.approx(1 - covered.mean(), abs=0.005)


def test_another_strength_never_makes_it_larger() -> None:
    rng = np.random.default_rng(1)
    points = rng.random((8, 2))
    left = [area_left_out(points[:n], (0.9, 0.9)) for n in range(9)]
    assert left == sorted(left, reverse=True)
    assert left[0] == 1.0
    assert left[-1] < left[1]


def test_the_frontier_has_no_point_that_another_one_beats() -> None:
    points = np.array([(0.2, 0.9), (0.5, 0.9), (0.5, 0.4), (0.8, 0.3), (0.7, 0.1)])
    assert frontier(points).tolist() == [[0.5, 0.9], [0.8, 0.3]]


def test_a_goal_without_area_is_refused() -> None:
    with pytest.raises(UserError, match=r"above 0 in both coordinates, got \[0.0, 1.0\]"):
        area_left_out([(1.0, 1.0)], (0.0, 1.0))
