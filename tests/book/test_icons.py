"""Of the theme's icons a book keeps those that it shows."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import icons
import pytest
from browsing import launched
from fontTools.ttLib import TTFont

PAGE = """<!DOCTYPE html><title>Icons</title><link rel="stylesheet" href="_static/styles/pydata-sphinx-theme.css">
<script src="_static/scripts/fontawesome.js"></script>
<i class="fa-solid fa-bars"></i><i class="fa-solid fa-search"></i>"""


@pytest.fixture
def site(tmp_path):
    """A page with two icons, the second by an older name, in the theme that the book uses."""
    theme = Path(find_spec("pydata_sphinx_theme").origin).parent / "theme/pydata_sphinx_theme/static"
    shutil.copytree(theme, tmp_path / "_static")
    (tmp_path / "index.html").write_text(PAGE, "utf8")
    return tmp_path


def test_icons_that_are_shown_stay_and_all_others_go(site):
    script, fonts = site / "_static/scripts/fontawesome.js", site / "_static/vendor/fontawesome/webfonts"
    icons.keep_shown(site)
    icons.keep_shown(site)  # a second build finds what the first one left
    assert script.stat().st_size < 100e3
    assert sum(file.stat().st_size for file in fonts.iterdir()) < 20e3
    with TTFont(fonts / "fa-solid-900.ttf") as font:
        there = set(font.getBestCmap())
    assert {0xF0C9, 0xF002, 0xF05A} <= there  # bars, search, and what the style puts before a note
    assert len(there) < 40


def test_they_are_drawn_with_the_script_and_without(site):
    with launched() as browser:
        before = drawn(browser, site)
        icons.keep_shown(site)
        assert drawn(browser, site) == before
        context = browser.new_context(java_script_enabled=False)
        shown = context.new_page()
        loaded = []
        shown.on("requestfinished", lambda request: loaded.append(request.url))
        shown.goto((site / "index.html").as_uri(), wait_until="networkidle")
        assert any(re.search(r"fa-solid-900\.ttf$", name) for name in loaded)


def drawn(browser, site):
    """The outlines on the page."""
    shown = browser.new_page()
    shown.goto((site / "index.html").as_uri())
    shown.locator("svg.svg-inline--fa").nth(1).wait_for()
    return shown.locator("svg path").evaluate_all("all => all.map(path => path.getAttribute('d'))")
