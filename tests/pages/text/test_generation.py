"""Tables, sentences and figures of generative models agree with the counts behind them."""

import pandas as pd
import pytest
import torch

from salun_core.errors import UserError
from salun_core.experiments.generation.lab import grid_png
from salun_core.models.diffusion.unet import build_unet, noise_schedule
from salun_core.pages.figures import sample_grids
from salun_core.pages.text import generation as report

K = 3


def row(method, mask="none", *, ua, oa, fd=2.0, seed=0, seconds=1.0):
    """A cell with ten samples a class; class 1 is forgotten."""
    confusion = torch.zeros(K, K, dtype=torch.int64)
    confusion[1] = torch.tensor([round(10 * ua), 10 - round(10 * ua), 0])
    for c in (0, 2):
        confusion[c, c] = round(10 * oa)
        confusion[c, 2 - c] += 10 - round(10 * oa)
    return {
        "dataset": "digits",
        "scenario": "class 1",
        "forgotten": "one",
        "method": method,
        "mask": mask,
        "seed": seed,
        "replica": 0,
        "status": "done",
        "UA": ua,
        "OA": oa,
        "strays": 0.0,
        "FD": fd,
        "FD floor": 1.0,
        "distance": "Fréchet distance (test features)",
        "n_distance": 20,
        "n_class": 10,
        "judge": 0.97,
        "confusion": confusion.tolist(),
        "seconds": seconds,
        "mask_seconds": 0.5,
        "peak_memory": 100 * report.MiB,
        "cell": method,
    }


CELLS = pd.DataFrame(
    [
        row("retrain", ua=1.0, oa=0.9, seconds=50),
        row("original", ua=0.0, oa=1.0),
        row("ga", ua=1.0, oa=0.2, fd=30.0),
        row("ft", ua=0.1, oa=1.0, fd=0.9),
        row("salun", "salient", ua=1.0, oa=1.0, seconds=2),
    ]
)


def test_who_forgets_too_little_and_too_much():
    said = report.generation_sentences(CELLS)
    assert "100.0% of the original model's samples" in said
    assert "Under-forgetting (UA below one half): FT." in said
    assert "Over-forgetting (the other classes recognised less than 90% as often as before): GA." in said
    weak = report.generation_sentences(CELLS.assign(OA=CELLS["OA"] / 2))
    assert "often as before): GA." in weak
    assert "Nearest to Retrain in both together is SalUn, 5.0 points" in said
    assert "by their 95% intervals: SalUn." in said  # 10 of 10 and 20 of 20 against 10 of 10 and 18 of 20
    assert "within that distance for: FT" in said


def test_one_run_has_intervals_and_several_have_a_spread():
    one = report.generation_table(CELLS).frame.set_index("Method")
    assert one.loc["SalUn", "UA"] == "100.00\n(72–100)"  # Wilson, 10 of 10
    assert one.loc["SalUn", "of it mask"] == "0.5"
    twice = pd.concat([CELLS, CELLS.assign(seed=1, UA=CELLS["UA"] / 2)])
    assert report.generation_table(twice).frame.set_index("Method").loc["SalUn", "UA"] == "75.00 ± 35.36"


def test_the_mask_is_compared_with_each_control():
    masks = pd.DataFrame(
        [
            row("rl", ua=0.9, oa=1.0),
            row("salun", "salient", ua=1.0, oa=0.9, fd=3.0),
            row("rl", "random", ua=0.8, oa=1.0),
        ]
    )
    said = report.mask_sentences(masks)
    assert "against no mask +10.0 points of UA, -10.0 of other classes, +1.00" in said
    assert "against the random mask +20.0 points of UA" in said
    assert "do not tell it from: no mask, random." in said
    clear = masks.assign(OA=[0.2, 0.9, 1.0])
    assert "do not tell it from: random." in report.mask_sentences(clear)
    assert "nothing to compare" in report.mask_sentences(masks[masks["mask"] == "salient"])
    assert "no masks" in report.mask_sentences(pd.DataFrame())


def test_a_row_that_is_missing_is_one_sentence():
    assert report.row_of(CELLS, mask="salient")["method"] == "salun"
    with pytest.raises(UserError, match="no finished cell of mask random: add it"):
        report.row_of(CELLS, mask="random")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_frames_the_forgotten_class(channels):
    images = torch.randint(0, 256, (12, channels, 8, 8), dtype=torch.uint8)
    labels = torch.arange(12) % 4
    chart = sample_grids.method_grid(
        {"Original": (images, labels), "SalUn": (images, labels)}, list("abcd"), forgotten=2
    )
    assert "class c was to be forgotten" in chart.alt
    assert "n = 2 of each class and model" in chart.caption
    assert chart.photo
    assert len(chart.figure.axes) == 2 * 2 * 4
    assert chart.png().startswith(b"\x89PNG")


def test_a_forgotten_class_beyond_the_columns_is_shown():
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    chart = sample_grids.method_grid(
        {"A": (images, torch.arange(12))}, [str(c) for c in range(12)], forgotten=11
    )
    assert chart.figure.axes[9].get_title() == "11"


def test_a_confusion_says_what_appears_instead():
    counts = {r["method"]: torch.tensor(r["confusion"]) for _, r in CELLS.iterrows()}
    chart = sample_grids.confusions(counts, ["zero", "one", "two"], forgotten=1)
    assert "Asked for one, most often recognised: retrain zero (100%), original one (100%)" in chart.alt
    assert "salun zero (100%)" in chart.alt
    assert "n = 10 a row" in chart.caption


def test_the_comparison_names_who_reaches_both():
    chart = sample_grids.generation_compared(CELLS)
    assert chart.alt == (
        "At least 95% in UA, and in the other classes at least 95% of what the original has: SalUn (of 3)."
    )
    weak = CELLS.assign(OA=CELLS["OA"] / 2)  # of what a weak model knew, as much is left
    assert sample_grids.generation_compared(weak).alt == chart.alt
    assert "10 samples a class" in chart.caption
    assert chart.svg()


def test_trajectories_put_two_models_above_each_other():
    frames = torch.zeros(4, 2, 3, 8, 8, dtype=torch.uint8)
    chart = sample_grids.trajectories(
        frames, frames, [5, 10, 15, 20], asked="class 3", names=("Original", "SalUn")
    )
    assert len(chart.figure.axes) == 4 * 4
    assert "Original above, SalUn below" in chart.alt


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_come_back_from_the_picture_of_them(tmp_path, channels):
    images = torch.randint(256, (12, channels, 8, 8), dtype=torch.uint8)
    labels = torch.arange(K).repeat_interleave(4)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "salun.grid.png").write_bytes(grid_png(images, labels))
    cells = CELLS[CELLS["method"] == "salun"].assign(classes=[["zero", "one", "two"]])
    ((name, (found, whose)),) = report.recorded_samples(tmp_path, cells).items()
    assert name == "SalUn"
    assert torch.equal(found, images)
    assert torch.equal(whose, labels)


@pytest.mark.parametrize("content", [None, b"no picture", "wrong size"])
def test_a_picture_that_is_missing_or_damaged_is_one_sentence(tmp_path, content):
    (tmp_path / "cells").mkdir()
    if content == "wrong size":
        content = grid_png(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    if content is not None:
        (tmp_path / "cells" / "salun.grid.png").write_bytes(content)
    cells = CELLS[CELLS["method"] == "salun"].assign(classes=[["zero", "one", "two"]])
    with pytest.raises(UserError, match="restore it from git|does not hold"):
        report.recorded_samples(tmp_path, cells)


def test_a_saved_model_is_read_again(tmp_path):
    model = build_unet(classes=K, channels=1, size=8, widths=(8,), layers=1, attention=(), seed=0)
    said = report.saved_model(model, noise_schedule("linear", steps=10), tmp_path / "mine")
    assert said.startswith("mine: ")
    assert said.endswith("read again they are equal.")
