"""The figure of the released code's history."""

import itertools
from datetime import date, timedelta

import pandas as pd
import pytest
import result_frames

from salun_core.pages.replication import errata, mask_history
from salun_core.pages.results import Run

CHANGES = errata.protocol_changes(Run("quick", lambda name: result_frames.saliency()))


@pytest.mark.parametrize(
    ("when", "begin", "end"),
    [
        ("2023-12-01 to 2023-12-16", date(2023, 12, 1), date(2023, 12, 16)),
        ("since 2026-02-28", date(2026, 2, 28), mask_history.LAST),
        ("until 2024-05-15", mask_history.FIRST, date(2024, 5, 15)),
    ],
)
def test_a_time_is_read(when, begin, end):
    assert mask_history.dates_of(when) == (begin, end)


def test_the_mask_of_the_classifiers_code_is_told_without_a_gap():
    found = [p for p in mask_history.periods(errata.read_errata(), {}) if p.where == "classification"]
    assert (found[0].begin, found[-1].end) == (mask_history.FIRST, mask_history.LAST)
    for earlier, later in itertools.pairwise(found):
        assert timedelta(0) <= later.begin - earlier.end <= timedelta(days=1)


def test_the_figure_shows_what_was_measured_and_says_what_was_not():
    chart = mask_history.timeline(mask_history.periods(errata.read_errata(), CHANGES), "kept")
    shown = {text.get_text() for text in chart.figure.axes[1].texts}
    assert f"{CHANGES['released 2023-10'].mean:+.2f}" in shown
    assert {"diverged", "not measured"} <= shown
    assert "in run kept" in chart.caption
    assert "Stable Diffusion, 2023-10-11 to 2024-05-15: no mask" in chart.alt


def test_the_effects_come_from_the_run_with_most_seeds(monkeypatch):
    frame = result_frames.saliency()
    few = frame[frame["seed"].isin(sorted(frame["seed"].unique())[:2])]
    kept = [Run(name, lambda e, rows=rows: rows) for name, rows in (("few", few), ("many", frame))]
    nothing = Run("quick", lambda e: pd.DataFrame())
    for runs, where in (
        (kept, "in run many"),
        ([nothing], "measured in no run so far"),
        ([], "measured in no run"),
    ):
        monkeypatch.setattr(mask_history, "all_runs", lambda out_dir=None, runs=runs: runs)
        assert where in mask_history.figure().caption
