"""The book as one PDF."""

from browsing import launched
from paper import UNFOLD, print_pdf


def test_the_pdf_has_an_outline_and_what_a_reader_unfolds_is_open(tmp_path):
    page = tmp_path / "all.html"
    page.write_text(
        "<!DOCTYPE html><title>Book</title><body><h1>Part</h1><h2>Chapter</h2>"
        "<details class=sd-dropdown><summary>Answer</summary>42</details>"
        f"<details class=sd-dropdown><summary>module</summary><dl class=py></dl></details>{UNFOLD}</body>",
        "utf8",
    )
    with launched() as browser:
        shown = browser.new_page()
        shown.goto(page.as_uri())
        assert shown.locator("details").evaluate_all("all => all.map(fold => fold.open)") == [True, False]
        content = print_pdf(page, tmp_path / "book.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"/Outlines" in content
