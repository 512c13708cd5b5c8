"""A lab turns a cell into a stored result, whatever the cell's method does."""

from dataclasses import replace

import pytest

from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.runs.table import Table
from salun_core.saliency import SCORES


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    values = {"preset": "quick", "width": 4, "epochs": 1, "out_dir": str(tmp_path_factory.mktemp("out"))}
    return ClassificationParams.load(values).lab()


@pytest.mark.parametrize("alpha", [1e12, 1e30])
def test_a_method_that_diverges_is_a_result_and_not_the_end_of_the_run(lab, alpha):
    cell = Cell(0, Scenario("random", fraction=0.1), "iu", settings={"alpha": alpha})
    result = lab.run(cell)
    assert result.content["status"] == "diverged"
    assert "finite" in result.content["why"]
    table = Table(lab.folder, "classification", {})
    row = table.rows([{"cell": result.key.name, "reported": True}]).iloc[0]
    assert row["UA"] is None and row["status"] == "diverged"


def test_a_mask_whose_ascent_overflows_makes_a_diverged_cell(lab, monkeypatch):
    monkeypatch.setitem(SCORES, "drifting", replace(SCORES["drifting"], ascent=1e150))
    cell = Cell(0, Scenario("random", fraction=0.5), "rl", MaskSpec("salient", 0.5, "drifting"))
    result = lab.run(cell)
    assert result.content["status"] == "diverged"
    assert "drifting" in result.content["why"]
