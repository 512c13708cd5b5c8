"""The built book as a reader meets it: `make check`, or `pytest tests/book/test_pages.py --book _build/html`.

The pages are served from this machine and shown by a headless Chromium that can reach nothing else.
"""

import functools
import gzip
import html
import re
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest
import yaml
from browsing import PHONE, WIDE, launched, served, visit
from bs4 import BeautifulSoup


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        book = metafunc.config.getoption("book")
        names = sorted(f.relative_to(book).as_posix() for f in book.rglob("*.html")) if book else []
        names = [name for name in names if not name.startswith("_")]
        names = names or [pytest.param("", marks=pytest.mark.skip(reason="no --book"))]
        metafunc.parametrize("page", names, scope="module")  # all tests of a page, then those of the next


@pytest.fixture(scope="module")
def book(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("book")
    if folder is None:
        pytest.skip("no --book")
    assert (folder / "index.html").is_file(), f"no book in {folder}"
    return folder.resolve()


@functools.lru_cache(maxsize=1)  # the tests of a page follow each other
def soup(file: Path) -> BeautifulSoup:
    return BeautifulSoup(file.read_text("utf8"), "html.parser")


# --- what lies on disk --------------------------------------------------------------------------------


def test_links_and_anchors_inside_the_book_lead_somewhere(book, page):
    broken = []
    for link in soup(book / page).find_all(["a", "link", "img", "script", "source"]):
        target = link.get("href") or link.get("src")
        if not target or urlparse(target).scheme:
            continue
        path, _, anchor = urljoin(page, target).partition("#")
        path = unquote(path.partition("?")[0]) or page
        if target.startswith("#"):
            path = page
        file = book / path
        missing = anchor and file.suffix == ".html" and file.is_file() and anchor not in anchors(file)
        if missing or not file.is_file():
            broken.append(target)
    assert broken == []


@functools.cache
def packed(file: Path) -> int:
    """Size of a file as servers send it; pictures and fonts hardly shrink."""
    return len(gzip.compress(file.read_bytes()))


@functools.cache
def anchors(file: Path) -> frozenset[str]:
    return frozenset(re.findall(r'\s(?:id|name)="([^"]+)"', file.read_text("utf8")))


def test_pictures_say_what_they_show(book, page):
    article = soup(book / page).select("article img, main img")
    silent = [i["src"] for i in article if not (i.get("alt") or "").strip() or is_file_name(i["alt"])]
    assert silent == []


def is_file_name(text: str) -> bool:
    return text.strip().lower().endswith((".png", ".svg", ".jpg", ".jpeg", ".gif"))


def test_no_page_is_unfinished(book, page):
    whole = soup(book / page)
    assert not whole.select(".problematic, .system-message")
    assert "Not executed here" not in whole.get_text()


def test_nothing_is_loaded_from_a_network(book, page):
    loaded = [
        t.get("src") for t in soup(book / page).find_all(["script", "img", "iframe", "source", "embed"])
    ]
    loaded += [t.get("href") for t in soup(book / page).find_all("link") if "stylesheet" in t.get("rel", [])]
    assert [address for address in loaded if address and urlparse(address).netloc] == []


def test_the_book_is_light(book):
    size = sum(file.stat().st_size for file in book.rglob("*") if file.is_file())
    assert size < 40e6


def test_a_page_is_light(book, page):
    """The page alone; with all that it fetches it is weighed in the browser."""
    assert (book / page).stat().st_size < 1e6


def test_an_interactive_figure_is_light(book, page):
    for figure in soup(book / page).select("figure[data-piece]"):
        assert len(str(figure).encode()) < 300e3


def test_every_page_says_something_of_its_own_where_a_link_to_it_is_shown(book):
    told: dict[str, list[str]] = {}
    title = yaml.safe_load((Path(__file__).parents[2] / "_config.yml").read_text("utf8"))["title"]
    for file in [*book.glob("book/*.html"), *book.glob("notebooks/*.html")]:
        head = BeautifulSoup(file.read_text("utf8").partition("</head>")[0], "html.parser")
        said = {tag.get("property") or tag.get("name"): tag.get("content") for tag in head.find_all("meta")}
        assert said["og:site_name"] == title
        told.setdefault(said["description"], []).append(file.name)
    assert [names for names in told.values() if len(names) > 1] == []


def test_links_to_the_outside_are_listed(book):
    found = set()
    for file in book.rglob("*.html"):
        links = map(html.unescape, re.findall(r'<a\b[^>]*?\shref="([^"]+)"', file.read_text("utf8")))
        found |= {(link, file.relative_to(book).as_posix()) for link in links if urlparse(link).netloc}
    listing = "".join(f"{link}\t{page}\n" for link, page in sorted(found))
    (book.parent / "external-links.tsv").write_text(listing, "utf8")
    assert all(urlparse(link).scheme == "https" or "localhost" in link for link, _ in found)


# --- in a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(book):
    with served(book) as found:
        yield found


@pytest.fixture(scope="module")
def browser(book):
    with launched() as found:
        yield found


CONTRAST = {"runOnly": ["color-contrast"]}
ALL_ELSE = {"rules": {"color-contrast": {"enabled": False}}}
LOOKS = [  # contrast is a matter of the theme, and all else one of the size
    (WIDE, "light", {}),
    (WIDE, "dark", CONTRAST),
    (PHONE, "dark", CONTRAST),
    (PHONE, "light", ALL_ELSE),
]


def test_a_page_loads_fits_and_can_be_read_by_all(browser, address, book, page):
    """Loaded once, then looked at in four ways, so that the whole book takes minutes."""
    shown, wrong = visit(browser, address + page, size=WIDE, scheme="light")
    found: dict[str, list[str]] = {}
    try:
        if shown.query_selector(".math"):
            shown.wait_for_function("window.MathJax?.startup?.promise?.then(() => true)")
        formulas = shown.locator("article .math").count()
        assert shown.locator("article .math mjx-container").count() >= formulas
        assert shown.locator("[data-mml-node=merror]").count() == 0
        assert shown.locator("svg.svg-inline--fa animate").count() == 0  # what stands for a missing icon
        fetched = shown.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        files = {unquote(urlparse(name).path).lstrip("/") for name in fetched if name.startswith(address)}
        assert packed(book / page) + sum(packed(book / file) for file in files) < 1e6
        for size in (WIDE, PHONE):
            look_at(shown, size, "light")
            assert shown.evaluate("document.documentElement.scrollHeight") < 10_000
        for size, scheme, _ in LOOKS:
            look_at(shown, size, scheme)
            shown.evaluate(OPEN)
            found[f"{size['width']}, {scheme}"] = shown.evaluate(OVERFLOW) + shown.evaluate(CUT_CODE)
        assert wrong == []  # before axe, which fetches style sheets once more, some from where they are not
        for size, scheme, rules in LOOKS:
            look_at(shown, size, scheme)
            shown.evaluate(OPEN)
            found[f"{size['width']}, {scheme}"] += barriers(shown, rules)
        assert {look: faults for look, faults in found.items() if faults} == {}
    finally:
        shown.context.close()


def look_at(shown, size, scheme) -> None:
    """Change the window and the theme of a page that is open."""
    shown.set_viewport_size(size)
    shown.emulate_media(color_scheme=scheme)
    shown.wait_for_function(f"document.documentElement.dataset.theme === {scheme!r}")


# Sections that are folded on a telephone are looked at as well.
OPEN = "document.querySelectorAll('details.part').forEach(part => { part.open = true; })"

# Elements that make the page wider than the window, innermost ones.
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= wide) return [];
  const scrolls = e => e && (/(auto|scroll|hidden|clip)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return [...document.querySelectorAll("main *")]
    .filter(e => e.getBoundingClientRect().right > wide + 1 && !scrolls(e.parentElement))
    .map(e => e.tagName + "." + e.className).slice(0, 8).concat(["page is " + document.documentElement.scrollWidth]);
}"""

# Lines of code that go on beyond their frame; and printed text that is wrapped, so that its columns are lost.
CUT_CODE = """() => [...document.querySelectorAll("article :is(.highlight, .cell_input, .cell_output) pre")]
  .filter(e => e.closest(".cell_output") ? getComputedStyle(e).whiteSpace !== "pre" : e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent.slice(0, 60))"""


def barriers(shown, rules: dict[str, object]) -> list[str]:
    """Serious accessibility faults that axe finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(shown, options={"resultTypes": ["violations"], **rules}).response["violations"]
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def test_the_first_screen_answers(browser, address):
    """Question, three findings, three doors and one figure, on a screen of 1280 by 900 before anything is scrolled."""
    shown, wrong = visit(browser, address + "book/index.html", size=WIDE, scheme="light")
    try:
        assert shown.locator("article h1").inner_text().strip("#").endswith("?")
        parts = {
            "article h1": 1,
            "article > section > ul.simple > li": 3,
            ".doors .sd-card": 3,
            "figure.result img": 1,
        }
        for selector, count in parts.items():
            found = shown.locator(selector)
            assert found.count() == count, selector
            for part in found.all():
                box = part.bounding_box()
                assert box["y"] + box["height"] <= 900, selector
        assert wrong == []
    finally:
        shown.context.close()


def test_search_finds_saliency(browser, address):
    shown, wrong = visit(browser, address + "search.html?q=saliency", size=WIDE, scheme="light")
    shown.wait_for_selector("#search-results li a")
    assert wrong == []
    shown.context.close()


def test_all_results_finds_a_cell_by_its_name(browser, book, address):
    name = re.search(r"cell-[0-9a-f]{20}", (book / "notebooks/classification.html").read_text("utf8"))[0]
    shown, wrong = visit(browser, address + "notebooks/explorer.html", size=WIDE, scheme="light")
    try:
        field = shown.locator(".dt-search input")
        field.wait_for()
        rows = shown.locator(".dt-scroll-body tbody tr")
        several = rows.count()
        field.fill(name)
        shown.locator(".dt-info", has_text="filtered").wait_for()
        assert 0 < rows.count() < several  # experiments share cells
        assert all(name in row for row in rows.all_inner_texts())
        assert wrong == []
    finally:
        shown.context.close()


def test_the_verdict_of_a_main_table_is_seen_on_a_telephone(browser, address):
    shown, wrong = visit(browser, address + "notebooks/recorded.html", size=PHONE, scheme="light")
    try:
        shown.wait_for_load_state("load")  # a slow page is idle before it is read to its end
        shown.evaluate(OPEN)
        table = shown.locator("table.results", has=shown.locator("th", has_text="Avg. Gap")).first
        row = table.locator("tbody tr").nth(2).locator("td")
        narrow, texts = table.locator("th").all_inner_texts(), row.all_inner_texts()
        assert narrow.index("Avg. Gap") == 1
        box = row.nth(1).bounding_box()
        assert box["x"] + box["width"] <= PHONE["width"]
        look_at(shown, WIDE, "light")
        wide = table.locator("th").all_inner_texts()
        assert wide.index("Avg. Gap") == wide.index("MIA") + 1
        assert dict(zip(narrow, texts, strict=True)) == dict(zip(wide, row.all_inner_texts(), strict=True))
        assert wrong == []
    finally:
        shown.context.close()


def test_a_long_page_is_its_headings_on_a_telephone(browser, address):
    """Opened by touch, keyboard and links; all open where the window is wide and on paper."""
    page = address + "book/method.html"
    shown, wrong = visit(browser, page, size=PHONE, scheme="light")
    parts, opened = shown.locator("details.part"), shown.locator("details.part[open]")
    ends = shown.locator("#sources p").first
    try:
        parts.first.wait_for()
        assert parts.count() == shown.locator("article > section > section").count() > 3
        assert opened.count() == 0
        parts.first.locator("> summary").click()
        parts.nth(1).locator("> summary").focus()
        shown.keyboard.press("Enter")
        assert opened.count() == 2
        assert not ends.is_visible()
        shown.evaluate("location.hash = 'sources'")
        ends.wait_for()
        parts.last.locator("> summary").click()
        assert not ends.is_visible()
        shown.evaluate("document.body.insertAdjacentHTML('beforeend', '<a href=#sources id=again>again</a>')")
        shown.evaluate("document.getElementById('again').click()")  # the address stays the same
        ends.wait_for()
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened.count() == parts.count()
        shown.evaluate("dispatchEvent(new Event('afterprint'))")
        assert opened.count() == 3
        button = shown.get_by_role("button", name="Open all sections")
        button.click()
        assert opened.count() == parts.count()
        shown.get_by_role("button", name="Close all sections").click()
        assert opened.count() == 0
        text = shown.locator("article").text_content().replace("Open all sections", "")
        shown.set_viewport_size(WIDE)
        parts.first.wait_for(state="detached")
        assert ends.is_visible()
        assert "".join(shown.locator("article").text_content().split()) == "".join(text.split())
        assert wrong == []
    finally:
        shown.context.close()


def test_where_a_mark_comes_from_is_shown(browser, address):
    shown, wrong = visit(browser, address + "notebooks/classification.html", size=WIDE, scheme="light")
    text = shown.locator("#origin-text")
    try:
        for kind in ("td.origin", "span.origin"):
            mark = shown.locator(kind).first
            assert "cell-" in mark.get_attribute("title")
            mark.scroll_into_view_if_needed()
            mark.hover(force=True)  # or a mark that covers it
            assert "cell-" in text.inner_text()
            pointed = shown.locator(".origin:hover")
            drawn = pointed.get_attribute("role") == "img"  # a number of a table is its own name
            assert pointed.get_attribute("aria-label") == (text.inner_text() if drawn else None)
            assert pointed.get_attribute("title") is None  # or the browser would show it as well
            shown.keyboard.press("Escape")
            assert text.is_hidden()
        home = shown.locator("figure.result", has=shown.locator("span.origin")).first
        home.focus()
        shown.keyboard.press("Enter")
        first = text.inner_text()
        shown.keyboard.press("ArrowLeft")
        shown.evaluate("scrollBy(0, 40)")
        shown.wait_for_timeout(200)  # for the page has scrolled there, and the text with it
        assert text.is_visible()
        assert text.inner_text() != first
        assert wrong == []
    finally:
        shown.context.close()


# --- interactive figures ------------------------------------------------------------------------------


PIECES = {
    "plane": "notebooks/toy.html",
    "trajectories": "notebooks/noise.html",
    "keep": "notebooks/saliency.html",
}


@pytest.fixture(params=PIECES.values(), ids=PIECES)
def piece_page(request, book):
    assert (book / request.param).is_file()
    return request.param


def piece_of(shown):
    figure = shown.locator("figure[data-piece]").first
    figure.scroll_into_view_if_needed()
    return figure


def far_end(slider) -> tuple[float, float]:
    """A place on a slider, near the end that is farther from where it stands."""
    slider.scroll_into_view_if_needed()
    box, at_right = slider.bounding_box(), slider.evaluate("e => 2 * e.value > e.max")
    return box["x"] + (0.1 if at_right else 0.9) * box["width"], box["y"] + box["height"] / 2


def test_every_piece_of_the_script_is_in_the_book(book):
    script = (book / "_static/pieces.js").read_text("utf8")
    names = re.search(r"const PIECES = \{([^}]*)\}", script)[1].replace(" ", "").split(",")
    assert set(names) == set(PIECES)


def test_a_piece_answers_to_the_mouse(browser, address, piece_page):
    shown, wrong = visit(browser, address + piece_page, size=WIDE, scheme="light")
    try:
        figure = piece_of(shown)
        assert figure.locator(".still").is_hidden()
        said = figure.locator("output")
        first = said.inner_text()
        figure.locator("input[type=radio]:not(:checked)").first.click()
        second = said.inner_text()
        shown.mouse.click(*far_end(figure.get_by_role("slider").first))
        third = said.inner_text()
        assert second != first
        assert third != second
        assert wrong == []
    finally:
        shown.context.close()


def test_a_piece_answers_to_the_keyboard(browser, address, piece_page):
    shown, wrong = visit(browser, address + piece_page, size=WIDE, scheme="dark")
    try:
        figure = piece_of(shown)
        said = figure.locator("output")
        figure.locator("input:checked").first.focus()
        seen = [said.inner_text()]
        shown.keyboard.press("ArrowRight")  # to the next radio button
        seen.append(said.inner_text())
        while shown.evaluate("document.activeElement.type") != "range":
            shown.keyboard.press("Tab")
            assert shown.evaluate("document.activeElement.closest('figure[data-piece]') !== null")
        for key in ("End", "Home"):
            shown.keyboard.press(key)
            seen.append(said.inner_text())
        assert seen[2] != seen[3]
        assert seen[1] != seen[0]
        spoken = shown.evaluate("document.activeElement.getAttribute('aria-valuetext')")
        assert spoken
        assert wrong == []
    finally:
        shown.context.close()


def test_a_piece_answers_to_touch(browser, address, piece_page):
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    shown = context.new_page()
    try:
        shown.goto(address + piece_page, wait_until="networkidle")
        shown.evaluate(OPEN)
        figure = piece_of(shown)
        said = figure.locator("output")
        figure.locator("input[type=radio]:not(:checked)").first.tap()
        before = said.inner_text()
        shown.touchscreen.tap(*far_end(figure.get_by_role("slider").first))
        assert said.inner_text() != before
    finally:
        context.close()


def test_a_piece_is_a_picture_without_scripts_and_on_paper(browser, address, piece_page):
    context = browser.new_context(viewport=WIDE, java_script_enabled=False)
    shown = context.new_page()
    shown.goto(address + piece_page)
    still = shown.locator("figure[data-piece] .still img").first
    assert still.is_visible()
    assert len(still.get_attribute("alt")) > 40
    context.close()
    shown, _ = visit(browser, address + piece_page, size=WIDE, scheme="light")
    shown.emulate_media(media="print")
    assert shown.locator("figure[data-piece] .still img").first.is_visible()
    assert shown.locator("figure[data-piece] .panel").first.is_hidden()
    shown.context.close()


def test_a_click_on_a_trajectory_goes_there(browser, address):
    shown, wrong = visit(browser, address + PIECES["trajectories"], size=WIDE, scheme="light")
    figure = piece_of(shown)
    chart, said = figure.locator("svg.chart"), figure.locator("output")
    # Marks of all paths lie on each other at the original model, but the chosen path goes first.
    label = figure.locator("fieldset label").last
    label.click()
    shown.mouse.click(*far_end(figure.get_by_role("slider").first))
    start = f"{label.inner_text().strip()}, step 0 "
    assert not said.inner_text().startswith(start)
    mark, here = (
        chart.locator("polyline").last.locator("xpath=following-sibling::*[1]"),
        chart.locator(".here"),
    )
    box = mark.bounding_box()
    shown.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert said.inner_text().startswith(start)
    assert [here.get_attribute(axis) for axis in ("cx", "cy")] == [
        mark.get_attribute(axis) for axis in ("cx", "cy")
    ]
    assert wrong == []
    shown.context.close()


def test_pages_work_from_files(browser, book, piece_page):
    context = browser.new_context(viewport=WIDE)
    shown = context.new_page()
    wrong: list[str] = []
    shown.on("pageerror", lambda e: wrong.append(str(e)))
    shown.goto((book / piece_page).as_uri(), wait_until="load")
    shown.wait_for_selector("figure.live")
    assert wrong == []
    context.close()
