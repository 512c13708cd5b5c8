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
    monkeypatch.setitem(SCORES, "drifting", replace(SCORES["drifting"], ascent=1e30))
    cell = Cell(0, Scenario("random", fraction=0.5), "rl", MaskSpec("salient", 0.5, "drifting"))
    result = lab.run(cell)
    assert result.content["status"] == "diverged"
    assert "drifting" in result.content["why"]


def test_masks_of_augmented_images_differ_by_draw(lab):
    specs = [MaskSpec("salient", 0.5, "batch_means", augmented=True, draw=draw) for draw in (0, 0, 1)]
    first, again, other = (lab.mask(0, Scenario("random", fraction=0.1), spec)[0] for spec in specs)
    same = [all((first[name] == mask[name]).all() for name in first) for mask in (again, other)]
    # Noisy digits are not augmented, so a draw decides the order of the images only: the sum of batch means
    # weighs a last batch that is smaller, whichever images it holds.
    assert same == [True, False]
