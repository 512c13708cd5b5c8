"""Whatever a text holds, a page shows it as text."""

import base64
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from salun_core.pages.figures import chart as figures
from salun_core.pages.markup import Bold, Bullets, Code, Link, Text
from salun_core.pages.replication.all_results import Downloads
from salun_core.pages.tables.table import Table
from salun_core.pages.tooltips import Tooltip

SCRIPT = "<img src=x onerror=alert(1)>"
QUOTES = "\" onmouseover='alert(2)' x=\""
NASTY = [
    SCRIPT,
    QUOTES,
    "</figcaption><script>alert(3)</script>",
    "**bold** _it_ `code` [a](javascript:alert(4)) ![b](x)",
    "$x^2$ \\(y\\) {ref}`z` {{ a }} {% b %}",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "::: note",
    "    code",
    "| a | b |\n|---|---|",
    "http://example.org www.example.org a@example.org &amp; &lt;",
    "a\\b\\$ 100%",
]
MARKDOWN = MarkdownIt("gfm-like", {"typographer": False, "html": True})


def words(text):
    return " ".join(text.split())


def parsed(html):
    return BeautifulSoup(html, "html.parser")


def unharmed(html, nasty):
    """Nothing of a text has become an element or an attribute."""
    page = parsed(html)
    assert not page.find_all(["script", "h1", "ul", "ol", "blockquote", "em", "code", "pre"])
    assert not [tag for tag in page.find_all(True) for name in tag.attrs if name.startswith("on")]
    assert "alert" not in "".join(
        tag.get("href", "") + tag.get("src", "")[:99] for tag in page.find_all(True)
    )
    assert words(nasty) in words(page.get_text(" ").replace("\u00a0", " ")) or any(
        words(nasty) in words(str(value)) for tag in page.find_all(True) for value in tag.attrs.values()
    )


@pytest.mark.parametrize("nasty", NASTY)
def test_a_sentence_shows_any_text(nasty):
    html = MARKDOWN.render(Text(nasty)._repr_markdown_())
    assert words(parsed(html).get_text()) == words(nasty)
    assert {tag.name for tag in parsed(html).find_all(True)} == {"p"}


@pytest.mark.parametrize("nasty", NASTY)
def test_a_sentence_with_parts_shows_any_text(nasty):
    text = Text(("The class ", Bold(nasty), " of ", nasty, " and ", Link(nasty, "a.html"), "."))
    page = parsed(MARKDOWN.render(text._repr_markdown_()))
    assert words(page.get_text()) == words(f"The class {nasty} of {nasty} and {nasty}.")
    assert {tag.name for tag in page.find_all(True)} <= {"p", "strong", "a"}
    assert [a["href"] for a in page.find_all("a")] == ["a.html"]
    assert words(str(text)) == words(f"The class {nasty} of {nasty} and {nasty}.")


def test_parts_are_what_they_say():
    text = Text((Bold("One."), " Two ", Code("a `b`"), "."), Bullets(["three", (Link("four", "x y.html"),)]))
    page = parsed(MARKDOWN.render(text._repr_markdown_()))
    assert page.strong.get_text() == "One."
    assert page.code.get_text() == "a `b`"
    assert page.a["href"] == "x%20y.html"
    assert [item.get_text() for item in page.find_all("li")] == ["three", "four"]
    assert str(text) == "One. Two a `b`.\n\n- three\n- four"


@pytest.mark.parametrize("nasty", NASTY)
def test_a_table_shows_any_text(nasty):
    table = Table(
        pd.DataFrame({nasty: [nasty], "n": ["1"]}),
        f"{nasty}: a table",
        origins={(0, "n"): nasty},
        links={(0, nasty): "a.html"},
    )
    html = table._repr_html_()
    unharmed(html, nasty)
    page = parsed(html)
    assert page.find(title=True)["title"] == nasty
    assert page.td.get_text("\n") == nasty
    assert page.th.get_text("\n") == nasty


@pytest.mark.parametrize("nasty", NASTY)
def test_a_figure_shows_any_text(nasty):
    with figures.style():
        fig, axis = figures.panels(height=2)
        axis.set(xlabel=nasty, title=nasty)
        axis.set_yticks([0, 1], [nasty, "b"])
    chart = figures.Chart(fig, nasty, nasty, tooltips=(Tooltip(axis, nasty, 0.5, 0.5),))
    html = chart._repr_html_()
    unharmed(html, nasty)
    page = parsed(html)
    assert page.img["alt"] == nasty
    assert page.select_one(".origin")["title"] == nasty
    assert len(page.find_all("img")) == 1
    svg = unquote(page.img["src"].partition(",")[2])
    ElementTree.fromstring(svg)
    assert "<script" not in svg and not re.search(r"<[^!>]*onerror", svg)


def test_the_downloads_of_a_page_hold_no_formula():
    frame = pd.DataFrame({"class": ["=cmd|' /C calc'!A0", "cat"], "UA": [-0.5, 1]})
    link = parsed(Downloads(frame)._repr_html_()).find("a", download="salun-results.csv")
    text = base64.b64decode(link["href"].partition(",")[2]).decode()
    assert text.splitlines() == ["class,UA", "'=cmd|' /C calc'!A0,-0.5", "cat,1.0"]
