"""Findings on generative models follow from the counts behind them."""

import math

import generated_frames
import pandas as pd
import pytest
import torch

from salun_core.pages.findings import generation as findings
from salun_core.pages.findings import text_to_image

CELLS = generated_frames.cells()
row = generated_frames.row


def test_who_forgets_too_little_and_too_much():
    found = findings.forgetting(CELLS)
    assert found.before == (1.0, 1.0)
    assert found.too_little == ("FT",)
    assert found.too_much == ("GA",)
    weak = findings.forgetting(CELLS.assign(OA=CELLS["OA"] / 2))  # of what a weak model knew, as much is left
    assert weak.too_much == ("GA",)
    assert found.both == weak.both == ("SalUn",)
    assert found.unlearned == 3


def test_who_is_like_retrain():
    found = findings.forgetting(CELLS)
    assert found.like_retrain == ("SalUn",)  # 10 of 10 and 20 of 20 against 10 of 10 and 18 of 20
    assert found.distances["SalUn"] == pytest.approx(5.0)
    assert found.within_floor == ("FT",)
    without = findings.forgetting(CELLS[~CELLS["method"].isin(["retrain", "original"])])
    assert not without.distances and math.isnan(without.before[0])


def test_the_mask_is_compared_with_each_control():
    masks = pd.DataFrame(
        [
            row("rl", ua=0.9, oa=1.0),
            row("salun", "salient", ua=1.0, oa=0.9, fd=3.0),
            row("rl", "random", ua=0.8, oa=1.0),
        ]
    )
    found = findings.mask_changes(masks).against
    assert pytest.approx((10.0, -10.0, 1.0)) == (found["none"].UA, found["none"].OA, found["none"].FD)
    assert pytest.approx(20.0) == found["random"].UA
    assert found["none"].alike and found["random"].alike
    clear = masks.assign(OA=[0.2, 0.9, 1.0])
    assert not findings.mask_changes(clear).against["none"].alike
    assert findings.mask_changes(masks[masks["mask"] == "salient"]) is None
    assert findings.mask_changes(pd.DataFrame()) is None


def test_what_appears_instead():
    counts = {r["method"]: torch.tensor(r["confusion"]) for _, r in CELLS.iterrows()}
    found = findings.instead(counts, ["zero", "one", "two"], 1)
    assert found.seen["original"] == ("one", 100.0)
    assert found.seen["salun"] == ("zero", 100.0)
    assert found.n == 10


def test_erasure_by_kind_of_prompt():
    cells = pd.DataFrame(
        [
            {"method": m, "mask": "none", "status": "done"}
            | dict(zip(("UA direct", "OA direct", "UA indirect", "OA indirect"), values, strict=True))
            for m, values in {
                "original": (0.0, 1.0, 0.0, 1.0),
                "esd": (1.0, 0.9, 0.2, 0.9),
                "uce": (0.4, 1.0, 0.4, 1.0),
            }.items()
        ]
    )
    found = text_to_image.erasure_by_prompt(cells)
    assert found.unerased == {"direct": ("UCE",), "indirect": ("ESD", "UCE")}
    assert found.falls == {"indirect": ("ESD", pytest.approx(80.0))}
    assert list(found.harm) == ["UCE", "ESD"]
