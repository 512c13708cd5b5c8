"""The paper's numbers are as printed there, and every method is among them."""

import pytest

from salun_core.methods import METHODS
from salun_core.metrics.gaps import AVERAGE
from salun_core.pages.figures import classification as figures
from salun_core.pages.published import published_folder, read_published
from salun_core.pages.tables.published import FIGURE2, TABLE1, figure_table, published_table


@pytest.mark.parametrize("setting", ["random data forgetting 10%", "random data forgetting 50%"])
def test_every_method_of_the_paper_is_there(setting):
    frame = published_table(setting).frame
    rows = read_published(TABLE1)
    assert len(frame) == rows[rows["setting"] == setting]["method"].nunique() == 10
    assert METHODS["l1_sparse"].label in set(frame["Method"])


def test_numbers_are_as_printed():
    table = published_table().frame.set_index("Method")
    assert table.loc["Retrain", "UA"].startswith("5.24")
    assert table.loc["SalUn", AVERAGE] == table[AVERAGE].drop("Retrain").min()


def test_every_method_of_the_paper_is_beside_ours():
    import result_frames

    chart = figures.published_beside(
        result_frames.classification(), "random 10%", "random data forgetting 10%"
    )
    paper = set(read_published(TABLE1)["method"]) - {"retrain"}
    assert set(chart.finding.methods) == paper
    assert "l1_sparse" in paper


def test_what_all_rows_share_is_said_once():
    table = figure_table(FIGURE2, "Figure 2(b)")
    assert "Scenario" not in table.frame and "10% random forgetting" in table.caption
    assert table.frame["Published"].iloc[0] == "5.2"


@pytest.mark.parametrize("path", sorted(published_folder().glob("*.csv")), ids=lambda path: path.stem)
def test_transcribed_numbers_have_their_source(path):
    rows = read_published(path.name)
    assert rows["source"].notna().all()
    assert rows["value"].notna().all()
    assert set(rows["verified"]) == {"yes"}
