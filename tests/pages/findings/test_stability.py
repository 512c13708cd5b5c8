"""Findings on changing shares and settings follow from the rows."""

import pandas as pd
import pytest
import result_frames

from salun_core.pages.findings import stability as findings
from salun_core.pages.findings.classification import Floor

ROWS = result_frames.stability()
SHARES, SPREAD = ROWS[ROWS["study"] == "shares"], ROWS[ROWS["study"] == "settings"]


def test_the_worst_share_counts():
    moved = SHARES.copy()
    moved.loc[(moved["method"] == "salun") & (moved["scenario"] == "random 50%"), "UA"] += 0.3
    before, after = findings.over_shares(SHARES), findings.over_shares(moved)
    assert after.worst["SalUn"] > 25 > before.worst["SalUn"]
    assert list(after.worst.values()) == sorted(after.worst.values())
    assert "SalUn" not in after.inside


def test_the_spread_over_settings():
    found = findings.over_settings(SPREAD, Floor(0.5, 1.0, 3))
    assert next(iter(found.ranges)) == "IU"
    ua = 100 * SPREAD.query("method == 'iu' and mask == 'none'")["UA"].astype(float)
    assert found.ranges["IU"] == pytest.approx(ua.max() - ua.min())
    near, n = found.near["IU"]
    assert near == ((ua - found.retrain).abs() <= 1.0).sum() and n == 8
    lost = SPREAD.copy()
    lost.loc[lost.index[-1], "UA"] = None
    counted = findings.over_settings(lost, Floor(0.5, 100.0, 3))
    assert counted.diverged == 1
    assert sum(n for _, n in counted.near.values()) == sum(n for _, n in found.near.values())
    assert sum(near for near, _ in counted.near.values()) == len(SPREAD.query("method != 'retrain'")) - 1


def test_the_smallest_distance_on_the_surface():
    rows = pd.DataFrame(
        [
            {"keep": keep, "settings": {"lr": lr, "epochs": 2}, "distance": distance}
            for keep, lr, distance in ((0.1, 0.1, 0.3), (0.1, 0.2, float("inf")), (0.5, 0.1, 0.2))
        ]
    )
    found = findings.surface(rows)
    assert (found.distance, found.keep, found.lr) == (20.0, 0.5, 0.1)
    assert found.by_keep == {0.1: 30.0, 0.5: 20.0}
