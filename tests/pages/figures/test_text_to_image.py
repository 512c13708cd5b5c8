import itertools

import pandas as pd
import pytest
import torch

from salun_core.errors import UserError
from salun_core.metrics.generation.detection import (
    Detections,
    DetectorCard,
    detection_counts,
    false_positives,
    redacted,
)
from salun_core.metrics.generation.erasure import erasure_summary
from salun_core.pages.figures import text_to_image as figures
from salun_core.pages.figures.text_to_image import _apart

METHODS = ("esd", "original", "salun")


def detections(scores, n=4):
    m = len(scores)
    card = DetectorCard("made up", "1", "0" * 64, ("arm", "leg"), 0.2, True)
    return Detections(
        card,
        n,
        torch.arange(m) % n,
        torch.arange(m) % 2,
        torch.tensor(scores, dtype=torch.float32),
        torch.ones(m, 4, dtype=torch.int64),
    )


FOUND = {"original": [0.9, 0.8, 0.7, 0.6, 0.5], "esd": [0.9, 0.3], "salun": []}


def counts(**more):
    return pd.concat(
        [detection_counts(detections(FOUND[m]), **more).assign(method=m, mask="none") for m in METHODS]
    )


def texts(figure):
    return [t.get_text().strip() for axis in figure.axes for t in axis.texts]


def test_bars_show_every_count_and_the_original_first():
    chart = figures.counts_per_category(counts(thresholds=[0.25]))
    (axis,) = chart.figure.axes
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["Original", "ESD", "SalUn"]
    assert sorted(int(t) for t in texts(chart.figure)) == [0, 0, 1, 1, 2, 3]
    assert [bar.get_width() for bar in axis.containers[0]] == [3, 2]
    assert chart.finding.counts == {"Original": 5, "ESD": 2, "SalUn": 0}
    legs = figures.counts_per_category(counts(thresholds=[0.25]), concept=["leg"])
    assert legs.finding.counts == {"Original": 2, "ESD": 1, "SalUn": 0}
    assert legs.finding.categories == ("leg",)
    assert axis.get_xscale() == "symlog"
    assert (chart.finding.n, chart.finding.threshold) == (4, 0.25)


def test_bars_of_several_thresholds_are_refused():
    with pytest.raises(UserError, match="one threshold"):
        figures.counts_per_category(counts())


def test_lines_run_over_all_thresholds_and_show_false_positives():
    real = false_positives(detections([0.3]))
    chart = figures.counts_over_thresholds(counts(), real)
    lines = chart.figure.axes[0].get_lines()
    assert len(lines) == 4 and all(len(line.get_xdata()) == 16 for line in lines)
    assert max(lines[1].get_ydata()) == 100.0  # four of four images of the original
    assert texts(chart.figure) == ["Original", "ESD", "SalUn"]
    assert "false positives in n = 4 held-out" in chart.caption
    with pytest.raises(UserError, match="'hand'"):
        figures.counts_over_thresholds(counts(), category="hand")


def test_recovery_says_when_the_concept_is_back():
    curves = pd.DataFrame(
        [
            ("original", 0, 1.0),
            ("original", 9, 1.0),
            ("esd", 0, 0.0),
            ("esd", 9, 0.8),
            ("salun", 0, 0.0),
            ("salun", 9, 0.1),
        ],
        columns=["method", "step", "shown"],
    ).assign(mask="none", n=20, images=4)
    chart = figures.recovery_curves(curves)
    assert chart.finding.steps == {"Original": 0, "ESD": 9, "SalUn": None}


def test_erasure_against_utility_labels_every_model():
    rows = [("original", 1.0, 1.0), ("esd", 0.2, 0.9), ("uce", 0.3, 0.8), ("salun", 0.1, 0.7)]
    summary = erasure_summary(
        pd.DataFrame(rows, columns=["method", "shown", "utility"]).assign(mask="none", probe="direct prompts")
    )
    chart = figures.erasure_against_utility({"by words": summary, "by search": summary})
    assert texts(chart.figure) == ["Original", "ESD", "UCE", "SalUn"] * 2
    assert [axis.get_title() for axis in chart.figure.axes] == ["by words", "by search"]
    assert chart.finding["by words"].undominated == {
        "ESD": (pytest.approx(80), pytest.approx(90)),
        "SalUn": (pytest.approx(90), pytest.approx(70)),
    }  # UCE is beaten by ESD in both


def test_labels_that_meet_are_moved_apart():
    placed = _apart([(1.0, 0.0), (1.1, 0.0), (1.0, 9.0), (1.05, 0.1)], gap=0.5, near=1.0)
    assert placed[2] == (1.0, 9.0)
    near = sorted(y for y, x in placed if x < 1)
    assert all(b - a >= 0.5 - 1e-9 for a, b in itertools.pairwise(near))


def test_only_redacted_images_are_drawn():
    images = torch.full((4, 3, 6, 6), 200, dtype=torch.uint8)
    with pytest.raises(UserError, match="not redacted"):
        figures.redacted_grid({"Original": images})
    shown = redacted(images, detections([0.9, 0.3]))
    chart = figures.redacted_grid({"Original": shown}, columns=["a", "b"], each=3)
    drawn = [axis.get_images()[0].get_array() for axis in chart.figure.axes]
    assert len(drawn) == 3
    assert [bool((pixels == 0).any()) for pixels in drawn] == [True, True, False]
    assert "Original 2" in chart.alt and "every detection" in chart.caption.lower()
    assert chart.png()
