"""A table keeps what a reader and a screen reader need."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from salun_core.pages.tables.table import Table, is_numeric, short

FRAME = pd.DataFrame({"Method": ["A", "B"], "UA": ["1.00 ± 0.10\n(2.00)", "diverged"], "What": ["a", "b"]})
TABLE = Table(
    FRAME, "results: of two methods", (1,), {(0, "UA"): "cell-1"}, {(0, "Method"): "a.html"}, roomy="What"
)


def page(table):
    return BeautifulSoup(table._repr_html_(), "html.parser")


def test_headers_have_a_scope_and_the_region_a_name():
    found = page(TABLE)
    assert [head["scope"] for head in found.find_all("th")] == ["col"] * 3
    region = found.select_one("[role=region]")
    assert region["aria-label"] == "results" and region["tabindex"] == "0"
    assert found.figcaption.get_text() == "Results: of two methods."


def test_bold_rows_links_tooltips_and_line_breaks():
    found = page(TABLE)
    assert [row.get("class") for row in found.select("tbody tr")] == [None, ["best"]]
    assert found.a["href"] == "a.html"
    assert found.select_one("td.origin")["title"] == "cell-1"
    assert found.select_one("td.origin")["tabindex"] == "-1"
    assert found.select_one("td.origin").find("br")


def test_numbers_stand_to_the_right_and_words_to_the_left():
    kinds = [cell["class"] for cell in page(TABLE).select("tbody tr")[0].find_all("td")]
    assert kinds == [["words"], ["numbers", "origin"], ["words", "roomy"]]


@pytest.mark.parametrize(
    ("texts", "numeric"),
    [
        (["1", "2.5", ""], True),
        (["–", "–"], False),
        (["+1.20\n(n = 3)", "−0.3", "×6.1", "<0.001"], True),
        (["12 of 20", "3"], True),
        (["lr 0.1", "0.2"], False),
        (["paper", "2023-10-11"], False),
    ],
)
def test_what_counts_as_a_column_of_numbers(texts, numeric):
    assert is_numeric(pd.Series(texts)) == numeric


def test_a_table_that_is_not_numbered_is_told_apart():
    assert page(TABLE).figure["class"] == ["result"]
    assert page(Table(FRAME, "a", numbered=False)).figure["class"] == ["result", "unnumbered"]


def test_a_table_for_a_paper_has_rules_a_caption_and_its_best_row_bold():
    frame = pd.DataFrame(
        {"Method": ["A_1", "B & C"], "UA (%)": ["1.00 ± 0.10\n(2.00)", "–"], "Why": [r"\a{b}", "<x>"]}
    )
    text = Table(frame, "results: 50% of $x", (1,)).to_latex(label="tab:one")
    assert [line for line in text.splitlines() if "rule" in line] == [
        "\\toprule",
        "\\midrule",
        "\\bottomrule",
    ]
    assert r"\begin{tabular}{lrl}" in text and r"\label{tab:one}" in text
    assert r"\caption{Results: 50\% of \$x.}" in text
    assert r"Method & UA (\%) & Why \\" in text
    assert r"A\_1 & 1.00 $\pm$ 0.10 (2.00) & \textbackslash{}a\{b\} \\" in text
    assert r"\textbf{B \& C} & \textbf{--} & \textbf{\textless{}x\textgreater{}} \\" in text


def test_rows_with_one_label_are_no_hindrance():
    frame = pd.DataFrame({"a": ["1", "2"]}, index=[0, 0])
    assert r"\textbf{1}" in Table(frame, "two", (0,)).to_latex()


def test_a_number_in_short_has_two_digits_and_no_exponent_from_a_hundred_on():
    assert [short(v) for v in (0.00123, 0.5, 7.26, 99.4, 99.6, 200.0, 12345.6, 3, "auto")] == [
        "0.0012", "0.5", "7.3", "99", "100", "200", "12,346", "3", "auto",
    ]  # fmt: skip
