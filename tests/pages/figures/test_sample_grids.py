"""Grids of samples show what they were given."""

import pytest
import torch

from salun_core.pages.figures import sample_grids

pytestmark = pytest.mark.long


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_frames_the_forgotten_class(channels):
    images = torch.randint(0, 256, (12, channels, 8, 8), dtype=torch.uint8)
    labels = torch.arange(12) % 4
    chart = sample_grids.method_grid(
        {"Original": (images, labels), "SalUn": (images, labels)}, list("abcd"), forgotten=2
    )
    assert chart.photo
    assert len(chart.figure.axes) == 2 * 2 * 4
    assert chart.png().startswith(b"\x89PNG")


def test_a_forgotten_class_beyond_the_columns_is_shown():
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    chart = sample_grids.method_grid(
        {"A": (images, torch.arange(12))}, [str(c) for c in range(12)], forgotten=11
    )
    assert chart.figure.axes[9].get_title() == "11"


def test_trajectories_put_two_models_above_each_other():
    frames = torch.zeros(4, 2, 3, 8, 8, dtype=torch.uint8)
    chart = sample_grids.trajectories(
        frames, frames, [5, 10, 15, 20], asked="class 3", names=("Original", "SalUn")
    )
    assert len(chart.figure.axes) == 4 * 4
