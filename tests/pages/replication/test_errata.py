"""Every difference is listed, with what it changes where that was measured."""

import pandas as pd
import pytest
import result_frames

from salun_core.pages.replication import errata
from salun_core.pages.results import Run

RUN = Run("quick", lambda name: result_frames.saliency() if name == "saliency" else pd.DataFrame())
NOTHING = Run("quick", lambda name: pd.DataFrame())


def test_a_release_is_measured_against_the_papers_protocol():
    found = errata.protocol_changes(RUN)
    # 4 to 7 points of UA over four seeds, one metric in four; noise of the reference cancels.
    change = found["released 2023-10"]
    assert change.mean == pytest.approx(5.5 / 4, abs=0.15)
    assert (change.n, change.lost) == (4, 0)
    assert (found["paper"].mean, found["paper"].std) == (0, 0)
    lost = found["released 2023-12-01"]
    assert (lost.n, lost.lost) == (0, 4)
    assert str(lost) == "diverged\n(n = 4)"
    assert "1 diverged" in str(errata.Change(1.0, 0.1, 3, 1))


def test_without_results_there_are_no_changes():
    assert errata.protocol_changes(NOTHING) == {}


def test_the_table_has_every_difference_and_a_column_for_what_was_measured():
    entries = errata.read_errata()
    overlaps = {"cifar10-cpu": errata.score_overlaps(result_frames.agreement())}
    table = errata.table_of(entries, {"quick": errata.protocol_changes(RUN)}, overlaps)
    assert len(table.frame) == len(entries)
    assert table.frame["Source"].str.len().min() > 0
    measured = table.frame[table.frame["Gap,\nquick"] != ""]
    assert len(measured) == sum(
        "protocol" in e and e["protocol"] in errata.protocol_changes(RUN) for e in entries
    )
    assert "0.80\n(n = 3)" in set(table.frame["Overlap,\ncifar10-cpu"])
    empty = errata.table_of(entries, {"quick": {}}, {})
    assert list(empty.frame) == ["When", "Where", "What", "Source"]
    assert "no run so far" in empty.caption


@pytest.mark.parametrize("entry", errata.read_errata(), ids=lambda entry: entry["what"][:40])
def test_what_is_measured_exists(entry):
    from salun_core.experiments.classification.saliency import PROTOCOLS
    from salun_core.saliency import SCORES

    assert entry.get("protocol", "paper") in PROTOCOLS
    assert entry.get("score", "abs_sum") in SCORES
