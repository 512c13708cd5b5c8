"""The Sphinx extension on a small book, and the real book's table of contents."""

import io
import json
import os
import re
import shutil
import sys
import time
from base64 import b64encode
from pathlib import Path

import execution
import pytest
import yaml
from bs4 import BeautifulSoup
from companion import MODULES, modules, spell_duration
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils
from sphinx.util.parallel import ParallelTasks, parallel_available

from salun_core.methods import METHODS
from salun_core.metrics import ATTACKS, METRICS, POPULATION_METRICS, PROMPTS, SELECTION, TEXT_TO_IMAGE

ROOT = Path(__file__).parents[2]


PYTHON = {
    "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


class Book:
    """A book of one page and one notebook in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "notebooks").mkdir()
        self.write("index.md", "# Home\n\n```{toctree}\nnotebooks/demo\n```\n")
        template = [new_markdown_cell("# Demo"), new_code_cell("1 + 1")]
        self.write("notebooks/demo.ipynb", json.dumps(new_notebook(cells=template, metadata=PYTHON)))

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        later = (max(file.stat().st_mtime_ns, time.time_ns()) + 10**9,) * 2 if file.exists() else None
        file.write_text(text)
        if later:
            os.utime(file, ns=later)  # whatever the clock's step

    def executed(self, *outputs: dict, count: int | None = 1) -> None:
        cells = [
            new_markdown_cell("# Demo"),
            new_code_cell("1 + 1", outputs=list(outputs), execution_count=count),
        ]
        metadata = PYTHON | {
            "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
            "papermill": {
                "parameters": {"keep": 0.3, "seeds": [0, 1]},
                "duration": 61.2,
                "start_time": "2026-01-02T",
            },
            "companion": {
                "device": "a processor",
                "threads": 1,
                "platform": "Linux",
                "python": "3.12.1",
                "revision": "0123456789ab",
                "libraries": {"torch": "2.0"},
            },
        }
        self.write("data/runs/notebooks/demo.ipynb", json.dumps(new_notebook(cells=cells, metadata=metadata)))

    def build(self, **more: object) -> str:
        """Build, and return the warnings."""
        said = io.StringIO()
        out = self.folder / "_build"
        settings = {
            "extensions": ["myst_nb", "companion"],
            "nb_execution_mode": "off",
            "mathjax_path": "mathjax/tex-svg.js",
            "exclude_patterns": ["data", "_build", "jupyter_execute"],
            **more,
        }
        with patch_docutils(), docutils_namespace():
            app = Sphinx(self.folder, None, out, out / "trees", "html", settings, status=None, warning=said)
            app.build()
        self.read = app.builder.env.all_docs
        return said.getvalue()

    def page(self, name: str) -> str:
        return (self.folder / "_build" / f"{name}.html").read_text("utf8")


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def test_a_clean_checkout_builds_and_says_what_is_missing(book):
    assert book.build() == ""
    assert "Not executed here" in book.page("notebooks/demo")


@pytest.mark.skipif(not parallel_available, reason="Sphinx forks on Linux only")
def test_pages_of_several_processes_are_those_of_one(book, tmp_path, monkeypatch):
    names = [f"part{i}" for i in range(7)]  # few pages are read in one process
    book.write("index.md", "# Home\n\n```{toctree}\n" + "\n".join(["notebooks/demo", *names]) + "\n```\n")
    for place, name in enumerate(names):
        other = names[place - 1]
        book.write(
            f"{name}.md",
            f"({name})=\n# Part {place}\n\n```{{math}}\n:label: eq-{name}\nx\n```\n\n{{ref}}`{other}` {{eq}}`eq-{other}`\n",
        )
    extensions = ["myst_nb", "sphinx_multitoc_numbering", "companion"]
    forked = []
    monkeypatch.setattr(ParallelTasks, "add_task", spied(ParallelTasks.add_task, forked))
    assert book.build(extensions=extensions) == "" and not forked
    alone = {name: book.page(name) for name in ("index", "notebooks/demo", *names)}
    shutil.rmtree(tmp_path / "_build")
    monkeypatch.setenv("COMPANION_JOBS", "2")
    assert book.build(extensions=extensions) == ""
    assert {"read_process", "write_process"} <= {task.__name__ for task in forked}
    assert {name: book.page(name) for name in alone} == alone


def spied(method, seen):
    """``method``, which notes the first argument of every call."""

    def noting(self, what, *rest):
        seen.append(what)
        return method(self, what, *rest)

    return noting


def test_the_executed_copy_is_shown_and_downloaded(book):
    book.executed(new_output("execute_result", {"text/plain": "two"}, execution_count=1))
    assert book.build() == ""
    page = book.page("notebooks/demo")
    assert "two" in page
    assert "Not executed here" not in page
    assert "papermill notebooks/demo.ipynb demo.executed.ipynb -y" in BeautifulSoup(page, "html.parser").text
    assert "1 min 1 s on 2026-01-02" in page
    text = BeautifulSoup(page, "html.parser").text
    assert (
        "Machine: a processor, 1 thread, Linux. Code revision 0123456789ab; Python 3.12.1, torch 2.0." in text
    )
    assert 'href="../_sources/notebooks/demo.ipynb"' in page
    assert "widget" not in page
    download = book.folder / "_build/_sources/notebooks/demo.ipynb"
    assert download.read_bytes() == (book.folder / "data/runs/notebooks/demo.ipynb").read_bytes()


def test_figures_and_tables_of_notebooks_are_numbered_with_the_others(book):
    def shown(html):
        return new_output("execute_result", {"text/html": html, "text/plain": "x"}, execution_count=1)

    figure = '<figure class="result" tabindex="0"><img alt="a" src="data:,"><figcaption>A &amp; B</figcaption></figure>'
    table = '<figure class="result"><figcaption>Rows</figcaption><table><tr><td>1</td></tr></table></figure>'
    book.executed(shown(figure), shown(table), shown(figure))
    book.write(
        "index.md",
        "# Home\n\n```{figure} a.svg\n:name: own\nOwn\n```\n\nSee {numref}`fig-demo-2`, {ref}`fig-demo-1` and "
        "{numref}`tab-demo-1`.\n\n```{toctree}\nnotebooks/demo\n```\n",
    )
    book.write("a.svg", '<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert book.build(numfig=True) == ""
    page = BeautifulSoup(book.page("notebooks/demo"), "html.parser")
    captions = [c.get_text() for c in page.select("figure.result figcaption")]
    assert captions == ["Fig. 2 A & B#", "Table 1 Rows#", "Fig. 3 A & B#"]
    assert [f["id"] for f in page.select("figure.result")] == ["fig-demo-1", "tab-demo-1", "fig-demo-2"]
    home = BeautifulSoup(book.page("index"), "html.parser")
    assert "See Fig. 3, A & B and Table 1." in home.get_text()
    assert "notebooks/demo.html#fig-demo-2" in [a["href"] for a in home.select("a.reference")]


def test_a_first_execution_and_a_further_one_renew_the_page(book):
    book.build()
    for text in ("first", "second"):
        book.executed(new_output("stream", name="stdout", text=text))
        assert book.build() == ""
        assert text in book.page("notebooks/demo")


@pytest.mark.parametrize("how", ["error", "unreached"])
def test_a_notebook_that_stopped_is_a_warning(book, how):
    if how == "error":
        book.executed(new_output("error", ename="ValueError", evalue="no", traceback=["no"]))
    else:
        book.executed(count=None)
    assert "stopped before its end" in book.build()


def test_a_number_in_prose_comes_from_its_file_and_follows_it(book):
    book.write(
        "index.md", "# Home\n\nIt is {res}`recorded/r#rows/1/UA:.1%`.\n\n```{toctree}\nnotebooks/demo\n```\n"
    )
    for value, shown in ((0.123, "12.3%"), (0.5, "50.0%")):
        book.write("data/recorded/r.json", json.dumps({"rows": [{}, {"UA": value}]}))
        assert book.build() == ""
        assert shown in book.page("index")


def test_numbers_of_runs_come_from_the_runs_of_this_build(book):
    book.write("data/runs/results/r.json", json.dumps({"random 10%": {"n": 7}}))
    book.write("index.md", "# Home\n\n{res}`runs/r#random 10%/n`\n\n```{toctree}\nnotebooks/demo\n```\n")
    assert book.build() == ""
    assert '<span class="result">7</span>' in book.page("index")


@pytest.mark.parametrize("what", ["recorded/none#a", "recorded/r#b", "recorded/r#a:.1z", "r"])
def test_a_number_that_is_not_there_is_a_warning(book, what):
    book.write("data/recorded/r.json", json.dumps({"a": 1}))
    book.write("index.md", f"# Home\n\n{{res}}`{what}`\n\n```{{toctree}}\nnotebooks/demo\n```\n")
    assert "no result for" in book.build()


COMPUTED = """# Home

The question. How many are there, {how} of them, on this page?

```{{computed}} demo_computed:{name}
```

```{{toctree}}
notebooks/demo
```
"""
MODULE = """import pathlib
class Words(str):
    def _repr_markdown_(self): return self
class Picture:
    def _repr_html_(self): return '<figure class="result"><b>x</b><figcaption>Seen</figcaption></figure>'
def words(runs): return Words('There are **' + (runs / 'n.txt').read_text() + '**.')
def picture(runs): return Picture()
"""


@pytest.fixture
def computed(book, monkeypatch):
    book.write("demo_computed.py", MODULE)
    book.write("data/runs/n.txt", "7")
    monkeypatch.syspath_prepend(book.folder)
    yield book
    sys.modules.pop("demo_computed", None)


def test_a_computed_part_follows_what_it_is_computed_from(computed):
    computed.write("index.md", COMPUTED.format(how="all", name="words"))
    assert computed.build() == ""
    assert "There are <strong>7</strong>" in computed.page("index")
    computed.write("data/runs/n.txt", "8")
    assert computed.build() == ""
    assert "There are <strong>8</strong>" in computed.page("index")


def test_a_computed_figure_is_numbered(computed):
    computed.write("index.md", COMPUTED.format(how="all", name="picture"))
    assert computed.build(numfig=True) == ""
    assert 'id="fig-index-1"' in computed.page("index")


def test_a_part_that_cannot_be_computed_is_a_warning(computed):
    computed.write("index.md", COMPUTED.format(how="all", name="words"))
    (computed.folder / "data/runs/n.txt").unlink()
    assert "demo_computed:words failed: FileNotFoundError" in computed.build()


def test_a_picture_to_share_follows_the_results(computed):
    with (computed.folder / "demo_computed.py").open("a") as file:
        file.write("class File(str):\n    def save(self, path): path.write_text(self)\n")
        file.write("def shared(runs): return File((runs / 'n.txt').read_text())\n")
    computed.write("index.md", COMPUTED.format(how="all", name="words"))
    assert computed.build(companion_pictures={"n.png": "demo_computed:shared"}) == ""
    assert (computed.folder / "_build/_static/n.png").read_text() == "7"
    said = computed.build(companion_pictures={"n.png": "demo_computed:nothing"})
    assert "demo_computed:nothing failed: AttributeError" in said


def test_files_to_download_and_the_library_of_tables_lie_beside_their_page(book):
    style, program = (b64encode(text * 3000).decode() for text in (b"p{}\n\n", b'f("<") // \xc3\xa9\n'))
    library = f'<script>\nif (!window.x) {{ injectCSS("{style}"); injectModule("{program}"); }}\n</script>'
    file = '<a download="n.csv" href="data:text/csv;base64,YSxiCjEsMgo=">CSV</a>'
    book.executed(
        new_output("execute_result", {"text/html": f"<p>{file}</p>{library}"}, execution_count=1),
    )
    assert book.build() == ""
    page = book.page("notebooks/demo")
    assert style not in page
    assert program not in page
    inline = book.folder / "_build/_static/inline"
    (table,) = inline.glob("*-n.csv")
    assert table.read_text() == "a,b\n1,2\n"
    assert f'<a download="n.csv" href="../_static/inline/{table.name}">' in page
    scripts = [
        tag["src"] for tag in BeautifulSoup(page, "html.parser").select('script[src*="_static/inline/"]')
    ]
    assert len(scripts) == 2
    for address, name, content in zip(scripts, ("injectCSS", "injectModule"), (style, program), strict=True):
        text = (book.folder / "_build/notebooks" / address).read_text()
        assert f"{name}(btoa(inlined_{name}))" in page
        held = json.loads(text.removeprefix(f"const inlined_{name} = ").rstrip(";\n"))
        assert b64encode(held.encode("latin1")).decode() == content


def test_a_page_tells_others_what_it_is_about(computed):
    computed.write("index.md", COMPUTED.format(how='"all"', name="words"))
    computed.build()
    head = BeautifulSoup(computed.page("index"), "html.parser").head
    said = head.find("meta", property="og:description")["content"]
    assert said == "How many are there, “all” of them, on this page?"
    assert head.find("meta", attrs={"name": "description"})["content"] == said
    assert head.find("meta", property="og:title")["content"] == "Home"
    assert head.find("meta", property="og:image")["content"] == "_static/card.png"
    computed.build(html_baseurl="https://example.org/book/", html_title="All of it")
    head = BeautifulSoup(computed.page("index"), "html.parser").head
    assert head.find("meta", property="og:image")["content"] == "https://example.org/book/_static/card.png"
    assert head.find("meta", property="og:site_name")["content"] == "All of it"


def test_notebooks_of_a_public_copy_have_launch_buttons(book):
    """With the entries that the page on re-running tells to make."""
    page = (ROOT / "book" / "rerun.md").read_text("utf8")
    (entries,) = (
        part for part in page.split("```yaml\n")[1:] if "launch_buttons" in part.partition("```")[0]
    )
    config = yaml.safe_load(entries.partition("```")[0])
    where = config["repository"]
    options = {
        "launch_buttons": config["launch_buttons"],
        "repository_url": where["url"],
        "repository_branch": where["branch"],
    }
    assert book.build(html_theme="sphinx_book_theme", html_theme_options=options) == ""
    links = [
        a["href"] for a in BeautifulSoup(book.page("notebooks/demo"), "html.parser").find_all("a", href=True)
    ]
    assert "https://mybinder.org/v2/gh/OWNER/NAME/main?urlpath=lab/tree/notebooks/demo.ipynb" in links
    assert "https://colab.research.google.com/github/OWNER/NAME/blob/main/notebooks/demo.ipynb" in links
    # This edition has no address to lead to, and Jupyter Book's own would stand in.
    assert "launch_buttons" not in yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))


def test_mathjax_lies_beside_the_pages(book):
    book.write("index.md", "# Home\n\n{math}`x^2`\n\n```{toctree}\nnotebooks/demo\n```\n")
    book.build()
    assert "_static/mathjax/tex-svg.js" in book.page("index")
    assert (book.folder / "_build/_static/mathjax/tex-svg.js").stat().st_size > 10**6


def test_docstrings_become_a_reference(book):
    book.write("demo_pkg/__init__.py", '"""A package."""\n')
    book.write(
        "demo_pkg/part.py",
        '"""A module with ``f``."""\n\ndef f(x: int) -> int:\n    """Give |x|, not ``|y|``."""\n',
    )
    book.write("demo_pkg/_private.py", "")
    book.write("demo_pkg/room/__init__.py", "")  # nothing to unfold
    book.write("demo_pkg/room/inside.py", '"""A module in a package that says nothing."""\n')
    book.write("index.md", "# Home\n\n<!-- modules: demo_pkg -->\n\n```{toctree}\nnotebooks/demo\n```\n")
    assert book.build() == ""
    page = BeautifulSoup(book.page("index"), "html.parser")
    assert [h.get_text().strip("#¶") for h in page.select("section > h2")] == ["demo_pkg", "demo_pkg.room"]
    folds = [s.get_text().strip() for s in page.select("details > summary")]
    assert folds == ["A package", "part: A module with f", "inside: A module in a package that says nothing"]
    assert page.find(id="module-demo_pkg.room")  # what a link to the package leads to
    assert "Give |x|, not |y|." in page.get_text()


def test_a_type_of_a_docstring_is_the_class_that_its_module_knows(book):
    thing = 'class Thing:\n    """A thing."""\n'
    uses = 'def use(x):\n    """Use it.\n\n    Parameters\n    ----------\n    x : Thing or None\n        One.\n    """\n'
    book.write("demo_two/here.py", thing)
    book.write("demo_two/there.py", thing)
    book.write("demo_two/user.py", "from demo_two.there import Thing\n\n\n" + uses)
    book.write("index.md", "# Home\n\n<!-- modules: demo_two -->\n\n```{toctree}\nnotebooks/demo\n```\n")
    extensions = ["myst_nb", "companion", "sphinx.ext.napoleon"]
    assert book.build(extensions=extensions, nitpicky=True, nitpick_ignore=[("py:class", "None")]) == ""
    (link,) = BeautifulSoup(book.page("index"), "html.parser").select('dl.field-list a[href$=".Thing"]')
    assert link["href"] == "#demo_two.there.Thing"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s")])
def test_durations_are_spelt_out(seconds, text):
    assert spell_duration(seconds) == text


# --- the real book ------------------------------------------------------------------------------------


def chapters() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    every = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    every += [section for chapter in every for section in chapter.get("sections", [])]
    return [toc["root"], *(chapter["file"] for chapter in every)]


def test_the_table_of_contents_names_every_page_and_no_other():
    pages = {f"book/{file.stem}" for file in (ROOT / "book").glob("*.md")}
    assert {name for name in chapters() if name.startswith("book/")} == pages


def test_every_module_is_in_the_reference():
    text = "".join(file.read_text("utf8") for file in (ROOT / "book").glob("api_*.md"))
    listed = [name for found in MODULES.findall(text) for _, name in modules(ROOT, *found)]
    assert {name for _, name in modules(ROOT, "salun_core")} - {"salun_core"} == set(listed)
    assert len(listed) == len(set(listed))


def test_every_statement_of_the_guide_names_its_source():
    """A row of a table, an entry of a list or a definition leads to a run, a page or another's work."""
    text = (ROOT / "book/guide.md").read_text("utf8").partition("## Start with what you have")[2]
    parts = re.split(r"^(?=\* |\d+\. |: |:::|#|```)", text, flags=re.MULTILINE)
    said = [part for part in parts if re.match(r"\* |\d+\. |: ", part)]
    heads = [part for part in said if re.match(r"\* - (you have|do not say)\n", part)]
    assert len(heads) == 2 and len(said) > 20
    assert [
        part for part in said if part not in heads and not re.search(r"\{(doc|ref|numref|cite)", part)
    ] == []


NOT_MEASURES = {
    "distance",
    "n_distance",
    "confusion",
    "n captions",
    "caption CLIP error",
}  # columns beside a metric


def glossary() -> dict[str, str]:
    """Every term of the glossary with its meaning."""
    parts = (ROOT / "book/glossary.md").read_text("utf8").split(":::{glossary}\n")[1:]
    every = [entry for part in parts for entry in part.partition("\n:::")[0].strip().split("\n\n")]
    entries = (entry.partition("\n") for entry in every)
    return {term: meaning for term, _, meaning in entries}


def test_the_glossary_has_every_method():
    meanings = list(glossary().values())
    for key in METHODS:
        assert sum(f'METHODS["{key}"]' in meaning for meaning in meanings) == 1, key


def test_the_glossary_has_every_metric():
    text = "\n".join(f"{term}\n{meaning}" for term, meaning in glossary().items())
    of_prompts = {f"{name} {kind}" for name in ("UA", "OA", "confusion") for kind in PROMPTS}
    names = {*METRICS, *ATTACKS, *SELECTION, *POPULATION_METRICS, *TEXT_TO_IMAGE} - of_prompts - NOT_MEASURES
    called = {
        "styles UA": "UA in styles",
        "CLIP": "CLIP score",
        "MIA confidence": "confidence",
    }
    missing = [
        name for name in names if not re.search(rf"(?<!\w){re.escape(called.get(name, name))}(?!\w)", text)
    ]
    assert missing == []


def test_the_glossary_is_in_order():
    terms = [re.sub(r"[^\w ]", "", term.replace("ℓ", "l")).lower() for term in glossary()]
    assert terms == sorted(terms)


# --- execution ----------------------------------------------------------------------------------------


@pytest.fixture
def template(tmp_path: Path) -> Path:
    cells = [
        new_code_cell("keep: float = 0.5", metadata={"tags": ["parameters"]}),
        new_code_cell("import salun_core.experiments.runs.machine\n1 / keep"),
    ]
    path = tmp_path / "demo.ipynb"
    path.write_text(json.dumps(new_notebook(cells=cells, metadata=PYTHON)))
    return path


def test_execution_leaves_a_whole_copy(template, tmp_path):
    output = tmp_path / "runs/notebooks/demo.ipynb"
    execution.execute(template, output, {"keep": 0.25})
    assert json.loads(output.read_text())["cells"][-1]["outputs"][0]["data"]["text/plain"] == ["4.0"]
    made = json.loads(output.read_text())["metadata"]["companion"]
    assert {"device", "threads", "python", "platform", "revision", "libraries"} <= set(made)
    assert made["threads"] == 1


def test_a_kernel_leaves_its_stamp_and_one_that_was_killed_is_spoken_for(template, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_here", lambda: {"by": "this process"})
    output = tmp_path / "runs/notebooks/demo.ipynb"
    execution.execute(template, output, {"keep": 0.25})
    assert "revision" in json.loads(output.read_text())["metadata"]["companion"]
    execution.stamp(output, tmp_path / "nothing.json")
    assert json.loads(output.read_text())["metadata"]["companion"] == {"by": "this process"}


def test_a_notebook_that_fails_is_one_line_and_a_copy_to_look_at(template, tmp_path):
    output = tmp_path / "runs/notebooks/demo.ipynb"
    with pytest.raises(SystemExit, match="did not finish: cell 3 ended with ZeroDivisionError"):
        execution.execute(template, output, {"keep": 0})
    assert not output.exists()
    assert (tmp_path / "runs/failed/demo.ipynb").is_file()


def test_a_log_gets_the_last_state_of_a_bar_and_every_other_line():
    log = io.StringIO()
    bars = execution.Bars(log, every=1000)
    for text in ("warning\n", "\r 1/3", "\r 2/3\r 3/3", "\n", "done\n"):
        bars.write(text)
    assert log.getvalue().splitlines() == ["warning", "3/3", "done"]


def test_one_build_at_a_time(tmp_path, monkeypatch, capsys):
    import fcntl

    monkeypatch.setattr(execution, "ROOT", tmp_path)
    (tmp_path / ".snakemake").mkdir()
    with (tmp_path / ".snakemake/companion.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert execution.build("quick", "1") == 3
    assert "another `make book`" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "OMP_NUM_THREADS", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_help_names_every_target():
    import subprocess

    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("book", "test", "lint", "check", "bench", "record", "clean", "help"):
        assert f"make {target} " in shown
