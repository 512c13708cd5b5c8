"""What was reported agrees with the transcribed tables."""

import pytest

from salun_core.metrics.gaps import AVERAGE
from salun_core.pages.published import read_published
from salun_core.pages.replication import paper


def test_the_papers_own_differences():
    assert paper.table1("random data forgetting 10%").advantage == pytest.approx(1.11)
    assert paper.table1("random data forgetting 50%").advantage == pytest.approx(1.07)
    assert paper.figure2_shares().advantage == pytest.approx(1.215)
    assert paper.figure2_settings().advantage == pytest.approx(37.0)
    assert paper.table1_time().advantage == pytest.approx(43.29 / 2.66)
    assert "33 detections" in paper.figure5().words


def test_the_rerun_agrees_at_10_and_turns_at_50_percent():
    ten, fifty = (paper.ten_seeds(f"random data forgetting {share}%") for share in (10, 50))
    assert ten.advantage == pytest.approx(2.98 - 1.60)
    assert fifty.advantage == pytest.approx(3.47 - 4.57)
    assert "SalUn-soft 1.71" in fifty.words


def test_gaps_of_the_rerun_are_those_of_its_means():
    rows = read_published(paper.TEN_SEEDS)
    rows = rows[rows["model"] == "ResNet-18"]
    gaps = rows.pivot_table(index=["setting", "method"], columns="metric", values="gap")
    said = rows[rows["metric"] == AVERAGE].set_index(["setting", "method"])["value"]
    metrics = ["forget accuracy", "RA", "TA", "MIA"]
    assert (gaps[metrics].mean(axis=1) - said).abs().max() < 0.006  # as rounded there
    assert set(rows["n"]) == {10}


def test_a_random_mask_keeps_the_other_classes_better_in_the_rerun():
    found = paper.ddpm_masks()
    assert found.advantage == pytest.approx(94.03 - 98.75, abs=0.01)
    assert "10 forgotten classes" in found.words
