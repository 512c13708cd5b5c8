"""The book on paper: as one PDF, and as a browser prints a page."""

import re
from importlib import resources
from pathlib import Path

import pytest
from browsing import WIDE, launched
from paper import print_pdf

STATIC = Path(__file__).resolve().parents[2] / "book/_static"
PAGE = """<!DOCTYPE html><html data-theme="dark"><title>Book</title><style>{folds}</style><style>{style}</style>
<body class="bd-article"><h1>Part</h1><h2>Chapter</h2>
<details class="sd-dropdown" id="answer"><summary>Answer</summary>42</details>
<details class="sd-dropdown" id="module"><summary>module</summary><dl class="py"></dl></details>
<details class="sd-dropdown" open id="read"><summary>Read</summary>open already</details>
<div class="cell tag_hide-input"><details class="hide" id="drawing"><summary>Show code</summary>plot()</details></div>
<div class="cell tag_hide-output"><details class="hide" id="output"><summary>Show output</summary>
  <p style="break-before: page">a table</p>
  <table class="results"><tr><td class="numbers">22.86 ± 1.58</td><td style="width: 100%">{words}</td></tr></table></details></div>
<div class="cell tag_hide-cell"><details class="hide" id="solution"><summary>Show cell</summary>x = 1</details></div>
<div class="dt-container">a table of a thousand rows</div><div class="on-paper">The table is left out.</div>
<mjx-container display="true"><svg width="3000" height="40" viewBox="0 0 3000 40">
  <g stroke="black" stroke-width="0"><path d="M0 0L9 9"/></g></svg></mjx-container>
<script>{script}</script></body></html>"""


@pytest.fixture
def page(tmp_path):
    """A page with whatever a page folds, and the style and the script of the book."""
    file = tmp_path / "all.html"
    folds = resources.files("myst_nb").joinpath("static/mystnb.css").read_text("utf8")
    style, script = ((STATIC / name).read_text("utf8") for name in ("companion.css", "companion.js"))
    content = PAGE.replace("{folds}", folds).replace("{style}", style).replace("{script}", script)
    file.write_text(content.replace("{words}", "words " * 200), "utf8")
    return file


def opened(shown):
    return set(shown.locator("details[open]").evaluate_all("all => all.map(fold => fold.id)"))


def test_the_pdf_has_an_outline_and_what_a_reader_unfolds_is_open(page, tmp_path):
    with launched():  # or there is no browser
        content = print_pdf(page, tmp_path / "book.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"/Outlines" in content
    assert len(re.findall(rb"/Type /Page\b", content)) == 2  # the second begins within a folded output


def test_on_paper_answers_outputs_and_solutions_are_open_and_afterwards_as_they_were(page):
    with launched() as browser:
        shown = browser.new_page()
        shown.goto(page.as_uri())
        before, theme = opened(shown), "document.documentElement.dataset.theme"
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened(shown) == {"answer", "read", "output", "solution"}
        assert shown.evaluate(theme) == "light"
        shown.evaluate("dispatchEvent(new Event('afterprint'))")
        assert opened(shown) == before == {"read"}
        assert shown.evaluate(theme) == "dark"


def test_what_is_opened_for_paper_is_seen_at_once_and_without_its_button(page):
    with launched() as browser:
        shown = browser.new_page(viewport=WIDE)
        shown.goto(page.as_uri())
        shown.emulate_media(media="print")
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")  # and the page is taken right now:
        for fold in ("output", "solution"):
            inside = shown.locator(f"#{fold} > *")
            looks = inside.evaluate_all(
                "all => all.map(e => getComputedStyle(e)).map(s => [s.opacity, s.animationName])"
            )
            assert looks and all(look == ["1", "none"] for look in looks)
            assert not shown.locator(f"#{fold} > summary").is_visible()


def test_a_number_keeps_its_spread_in_its_line(page):
    with launched() as browser:
        shown = browser.new_page(viewport=WIDE)
        shown.goto(page.as_uri())
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")
        shown.emulate_media(media="print")
        lines = "cell => { const all = document.createRange(); all.selectNodeContents(cell); return all.getClientRects().length; }"
        assert shown.locator("td.numbers").evaluate(lines) == 1


def test_paper_shows_nothing_that_needs_a_screen(page):
    with launched() as browser:
        shown = browser.new_page(viewport=WIDE)
        shown.goto(page.as_uri())
        table, note = shown.locator(".dt-container"), shown.locator(".on-paper")
        assert table.is_visible() and not note.is_visible()
        shown.emulate_media(media="print")
        assert note.is_visible() and not table.is_visible()
        assert not shown.locator("#drawing").is_visible()
        assert shown.locator("#module").is_visible()
        formula = shown.locator("mjx-container svg")
        assert formula.bounding_box()["width"] <= WIDE["width"]
        assert formula.locator("path").evaluate("path => getComputedStyle(path).stroke") == "none"
