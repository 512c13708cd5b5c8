"""Stored samples and rows, as figures ask for them."""

import generated_frames
import pytest
import torch

from salun_core.errors import UserError
from salun_core.experiments.generation.lab import grid_png
from salun_core.models.diffusion.unet import build_unet, noise_schedule
from salun_core.pages import stored_samples

CELLS = generated_frames.cells()


def test_a_row_that_is_missing_is_one_sentence():
    assert stored_samples.row_of(CELLS, mask="salient")["method"] == "salun"
    with pytest.raises(UserError, match="no finished cell of mask random: add it"):
        stored_samples.row_of(CELLS, mask="random")


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_come_back_from_the_picture_of_them(tmp_path, channels):
    images = torch.randint(256, (12, channels, 8, 8), dtype=torch.uint8)
    labels = torch.arange(3).repeat_interleave(4)
    (tmp_path / "salun.grid.png").write_bytes(grid_png(images, labels))
    cells = CELLS[CELLS["method"] == "salun"].assign(classes=[["zero", "one", "two"]])
    ((name, (found, whose)),) = stored_samples.recorded_samples(tmp_path, cells).items()
    assert name == "SalUn"
    assert torch.equal(found, images)
    assert torch.equal(whose, labels)


@pytest.mark.parametrize("content", [None, b"no picture", "wrong size"])
def test_a_picture_that_is_missing_or_damaged_is_one_sentence(tmp_path, content):
    if content == "wrong size":
        content = grid_png(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    if content is not None:
        (tmp_path / "salun.grid.png").write_bytes(content)
    cells = CELLS[CELLS["method"] == "salun"].assign(classes=[["zero", "one", "two"]])
    with pytest.raises(UserError, match="restore it from git|does not hold"):
        stored_samples.recorded_samples(tmp_path, cells)


def test_a_saved_model_is_read_again(tmp_path):
    model = build_unet(classes=3, channels=1, size=8, widths=(8,), layers=1, attention=(), seed=0)
    said = str(stored_samples.saved_model(model, noise_schedule("linear", steps=10), tmp_path / "mine"))
    assert said.startswith("mine: ")
    assert said.endswith("read again they are equal.")
