"""The benchmarks run and compare like with like; what they measure is no test."""

import math

import pytest
import torch

from benchmarks import BENCHMARKS, selection
from benchmarks.__main__ import main


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_gives_ratios(name, capsys):
    assert main([name, "--small"]) == 0
    printed = capsys.readouterr().out
    assert name in printed
    assert "ratio" in printed


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
