"""One table of all results: every column explained, every source there, all shares fractions."""

import base64
import io

import pandas as pd
import pytest
import result_frames
from bs4 import BeautifulSoup

from salun_core.pages.replication import all_results
from salun_core.pages.results import Run


@pytest.fixture
def cells(monkeypatch):
    frames = {"classification": result_frames.classification().assign(gap=0.005)}
    runs = [Run(name, lambda e: frames.get(e, pd.DataFrame())) for name in ("quick", "cifar10-cpu")]
    monkeypatch.setattr(all_results, "all_runs", lambda out_dir: runs)
    return all_results.every_cell()


def test_every_column_is_explained_and_every_source_is_there(cells):
    assert list(cells.columns) == list(all_results.COLUMNS)
    assert set(cells["source"]) == {"published", "re-run", "recorded", "quick"}
    assert cells.query("source == 'recorded'")["run"].unique().tolist() == ["cifar10-cpu"]
    assert cells["status"].notna().all()


def test_shares_are_fractions_wherever_they_come_from(cells):
    for name in ("UA", "RA", "TA", "MIA", "OA", "gap"):
        assert cells[name].dropna().astype(float).between(0, 1).all()


def test_published_tables_become_rows_in_our_columns(cells):
    paper = cells.query("source == 'published' and run == 'Table 1'")
    assert len(paper) == 20
    mine = paper.query("method == 'l1_sparse' and scenario == 'random data forgetting 10%'").iloc[0]
    assert mine["gap"] == pytest.approx(0.0226)
    rerun = cells.query("run == 'ten-seed rerun' and scenario == 'random data forgetting 50%'")
    assert len(rerun) == 10
    salun = rerun[rerun["method"] == "salun"].iloc[0]
    assert salun["UA"] == pytest.approx(1 - 0.9938)
    assert salun["seconds"] == pytest.approx(60 * 1.22)


def test_the_table_opens_on_recorded_rows_with_numbers_beside_the_method(cells):
    first = all_results.shown(cells).iloc[0]
    assert first["source"] == "recorded" and list(first.index[:5]) == ["method", "UA", "RA", "TA", "MIA"]
    numbers = all_results.shown(cells)[all_results.NUMBERS].iloc[0]
    assert all(isinstance(value, float) or value == "" for value in numbers)
    assert list(first.index).index("source") > list(first.index).index("seconds")


def test_the_searchable_table_shows_any_text_as_text(cells):
    from itables import to_html_datatable

    named = all_results.shown(cells.assign(dataset="<img src=x onerror=alert(1)>"))
    html = to_html_datatable(named.head(20), connected=True)
    assert not BeautifulSoup(html, "html.parser").find_all(onerror=True)
    assert "onerror" in html
    assert "<img src=x" not in html


def test_downloads_hold_the_whole_table(cells):
    page = BeautifulSoup(all_results.Downloads(cells)._repr_html_(), "html.parser")
    assert f"{len(cells):,} rows" in page.get_text()
    csv, parquet = (
        base64.b64decode(link["href"].partition(",")[2]) for link in page.find_all("a", download=True)
    )
    assert len(pd.read_csv(io.BytesIO(csv))) == len(pd.read_parquet(io.BytesIO(parquet))) == len(cells)
