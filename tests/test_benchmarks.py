"""The benchmarks run and compare like with like; what they measure is no test."""

import math

import pytest
import torch

from benchmarks import selection
from benchmarks.__main__ import BENCHMARKS, main


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n in ("scaling", "large_folder", "book") else [])
        for n in BENCHMARKS
    ],
)
def test_a_benchmark_gives_ratios(name, capsys, monkeypatch):
    rows = []
    monkeypatch.setitem(
        BENCHMARKS, name, lambda run=BENCHMARKS[name], **more: rows.extend(run(**more)) or rows
    )
    assert main([name, "--small"]) == 0
    printed = capsys.readouterr().out
    assert rows
    for row in rows:
        assert min(row.ours, row.plain, row.ratio) > 0 and math.isfinite(row.ratio)
        assert row.what in printed and f"{row.ratio:.2f}" in printed


def test_both_selections_keep_the_same_weights():
    scores = selection.prepared(50_001)
    ours = torch.cat(list(selection.counted(scores).values()))
    assert torch.equal(ours, selection.sorted_twice(scores))


def test_a_ratio_above_one_means_faster():
    row = selection.Row("x", ours=2.0, plain=5.0)
    assert math.isclose(row.ratio, 2.5)


def test_an_unknown_benchmark_is_refused(capsys):
    assert main(["epochs"]) == 2
    assert "did you mean 'epoch'" in capsys.readouterr().err
