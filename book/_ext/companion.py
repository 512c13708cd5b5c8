"""Sphinx extension of the book: executed notebooks, numbers from results, nothing from a network.

The table of contents names the notebooks' templates, so that links to sources hold and a clean checkout
builds. While a page is read, the copy that papermill executed takes the template's place.
"""

import ast
import contextlib
import hashlib
import importlib
import json
import os
import re
import shlex
import sys
import warnings
from base64 import b64decode
from html import escape, unescape
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile
from typing import Any

import icons
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

log = logging.getLogger(__name__)

NOT_RUN = """:::{admonition} Not executed here
:class: warning
This page shows the code without its results. `make book` executes it.
:::"""


# --- executed notebooks -------------------------------------------------------------------------------


def executed(app: Sphinx, docname: str) -> Path | None:
    """Path of a notebook page's executed copy, which need not exist; None for other pages."""
    folder, _, name = docname.rpartition("/")
    return runs(app) / "notebooks" / f"{name}.ipynb" if folder == "notebooks" else None


def runs(app: Sphinx) -> Path:
    """Folder of this build's runs."""
    return Path(app.srcdir, app.config.companion_runs)


def age(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def stopped(cell: dict[str, Any]) -> bool:
    """Tell whether a code cell was never reached, or ended in an error."""
    unreached = cell["execution_count"] is None and "".join(cell["source"]).strip()
    return bool(unreached) or any(output["output_type"] == "error" for output in cell["outputs"])


def show_executed(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give myst-nb the executed copy of a notebook (event source-read)."""
    path = executed(app, docname)
    if path is None:
        return
    app.env.note_dependency(str(path))
    app.env.metadata[docname]["companion_executed"] = age(path)
    notebook = json.loads(path.read_text("utf8") if path.exists() else source[0])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if not path.exists():
        notebook["cells"].insert(1, markdown("not-executed", NOT_RUN))
    else:
        if any(stopped(cell) for cell in code):
            log.warning("the executed notebook stopped before its end", location=docname)
        notebook["cells"].append(markdown("how-executed", how_executed(docname, notebook)))
        for cell in code:  # the closing note tells what papermill was given
            tags = cell["metadata"].get("tags", [])
            cell["metadata"]["tags"] = [*tags, "remove-cell"] if "injected-parameters" in tags else tags
    notebook["metadata"].pop("widgets", None)  # they would ask a network for their scripts
    source[0] = json.dumps(notebook)


def markdown(name: str, text: str) -> dict[str, Any]:
    """A Markdown cell."""
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def how_executed(docname: str, notebook: dict[str, Any]) -> str:
    """What was run, when, for how long, where and with what: a closing section whose command can be copied."""
    name = Path(docname).name
    record = notebook["metadata"].get("papermill", {})
    given = record.get("parameters") or {}
    words = ["papermill", f"{docname}.ipynb", f"{name}.executed.ipynb"]
    if given:
        words += ["-y", yaml.safe_dump(given, default_flow_style=True, sort_keys=False, width=10**6).strip()]
    lines = ["## Run this page again", "", "```bash", shlex.join(words), "```", ""]
    told = []
    if record.get("duration") is not None:
        day = str(record.get("start_time", ""))[:10]
        told.append(
            f"It took {spell_duration(record['duration'])} on {day}; cells that were stored before are not computed again."
        )
    if made := notebook["metadata"].get("companion"):
        versions = ", ".join(f"{library} {version}" for library, version in made["libraries"].items())
        threads = f"{made['threads']} {'thread' if made['threads'] == 1 else 'threads'}"
        told.append(
            f"Machine: {made['device']}, {threads}, {made['platform']}. Code revision `{made['revision']}`; Python "
            f"{made['python']}, {versions}."
        )
    told.append(
        f'<a download href="../_sources/{docname}.ipynb">Download the executed notebook</a>, with these results in '
        'it. Without a copy of the project: <a href="../book/rerun.html#launching">Binder and Colab</a>.'
    )
    return "\n\n".join(["\n".join(lines), *told])


def spell_duration(seconds: float) -> str:
    """For instance "42 s" or "3 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Pages that show computed parts, or whose notebook was executed since they were read (env-get-outdated)."""
    return [
        doc
        for doc in env.found_docs - added
        if env.metadata[doc].get("companion_computed")
        or ((path := executed(app, doc)) and env.metadata[doc].get("companion_executed") != age(path))
    ]


# --- numbers of figures and tables of notebooks --------------------------------------------------------


class Output(nodes.General, nodes.Element):  # type: ignore[misc]  # docutils is untyped
    """A captioned output of a notebook, with ``html``."""


class ResultFigure(Output):
    """A figure, numbered like the other figures of the book."""


class ResultTable(Output):
    """A table, numbered like the other tables of the book."""


RESULT = re.compile(r'<figure class="result".*?</figure>', re.DOTALL)


def number_results(app: Sphinx, doctree: nodes.document) -> None:
    """Make captioned outputs of notebooks nodes that Sphinx counts (event doctree-read).

    They can be referred to: ``{numref}`tab-classification-2``` is the second table of that page.
    """
    page = app.env.docname
    counts = {ResultFigure: 0, ResultTable: 0}
    domain: Any = app.env.get_domain("std")
    for raw in list(doctree.findall(nodes.raw)):
        text = raw.astext().strip()
        if "html" not in raw.get("format", "") or not RESULT.fullmatch(text) or "<figcaption>" not in text:
            continue
        kind = ResultTable if "<table" in text else ResultFigure
        counts[kind] += 1
        name = f"{'tab' if kind is ResultTable else 'fig'}-{Path(page).name}-{counts[kind]}"
        caption = re.sub(r"<[^>]*>", "", text.partition("<figcaption>")[2].partition("</figcaption>")[0])
        node = kind(html=text, ids=[name], names=[name], title=unescape(caption))
        raw.replace_self(node)
        doctree.ids[name] = node
        domain.note_hyperlink_target(name, page, name, node["title"])


def passed(self: Any, node: nodes.Element) -> None:
    """Nothing comes after what `write_result` wrote."""


def title_of(node: nodes.Element) -> str:
    """The caption of a numbered output."""
    return str(node["title"])


def write_result(self: Any, node: nodes.Element) -> None:
    """Write a numbered output of a notebook as HTML."""
    name, start = node["ids"][0], len(self.body)
    self.add_fignumber(node)
    number = "".join(self.body[start:])
    del self.body[start:]
    what = "table" if isinstance(node, ResultTable) else "figure"
    link = f'<a class="headerlink" href="#{name}" title="Link to this {what}">#</a>'
    text = node["html"].replace("<figure ", f'<figure id="{name}" ', 1)
    text = text.replace("<figcaption>", f"<figcaption>{number}", 1).replace(
        "</figcaption>", f"{link}</figcaption>", 1
    )
    self.body.append(text)
    raise nodes.SkipNode


# --- reference from docstrings ------------------------------------------------------------------------


MODULES = re.compile(r"^<!-- modules: (\S+)(?: without (\S+))? -->$", re.MULTILINE)


def show_modules(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace ``<!-- modules: NAME -->`` by a reference of that package or module (event source-read).

    ``<!-- modules: NAME without PART -->`` leaves a package in it to another page.
    """

    def reference(found: re.Match[str]) -> str:
        top = Path(app.srcdir)
        sections: dict[str, list[str]] = {}
        load([name for _, name in modules(top, found[1].partition(".")[0])])
        for folder, name in modules(top, found[1], found[2]):
            app.env.note_dependency(str(folder))  # a new file is a new section
            package = name if name == found[1] else ".".join(folder.relative_to(top).parts)
            automodule = f".. automodule:: {name}\n   :members:\n   :ignore-module-all:\n   :no-value:"
            title = ": ".join(filter(None, (name.removeprefix(package).strip("."), purpose(top, name))))
            shown = f"```{{eval-rst}}\n{automodule}\n```\n"
            if source_of(top, name):
                # Folded, or the page of a large room would be as long as a corridor. Titles hold backticks, which a
                # fence of backticks may not have.
                shown = f"~~~~{{dropdown}} {title}\n{shown}~~~~\n"
            sections.setdefault(package, [f"## `{package}`\n"]).append(shown)
        return "\n".join(part for section in sections.values() for part in section)

    source[0] = MODULES.sub(reference, source[0])


def source_of(top: Path, name: str) -> str:
    """The source of a module; that of a package is often empty."""
    base = top.joinpath(*name.split("."))
    file = next(f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file())
    return file.read_text("utf8").strip()


def purpose(top: Path, name: str) -> str:
    """First line of a module's docstring, or its name where it has none."""
    words = ast.get_docstring(ast.parse(source_of(top, name))) or name.rpartition(".")[2]
    return words.partition("\n\n")[0].replace("\n", " ").replace("``", "`").rstrip(".")


def keep_bars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Read ``|x|`` in a docstring as an absolute value (event autodoc-process-docstring)."""
    text = "``".join(
        part if i % 2 else part.replace("|", r"\|") for i, part in enumerate("\n".join(lines).split("``"))
    )
    lines[:] = text.split("\n")


def name_types(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Say which class a type in a docstring is: several have one name (event autodoc-process-docstring)."""
    module, top = sys.modules.get(getattr(obj, "__module__", None) or name), name.partition(".")[0]

    def whole(word: re.Match[str]) -> str:
        found = getattr(module, word[0], None)
        if isinstance(found, type) and found.__module__.partition(".")[0] == top:
            return f"~{found.__module__}.{found.__qualname__}"
        return word[0]

    for i, line in enumerate(lines):
        if field := re.match(r"\s*:(?:type\s+\w+|rtype):", line):
            lines[i] = field[0] + re.sub(r"(?<![\w.])[A-Z]\w+", whole, line[field.end() :])


def load(names: list[str]) -> None:
    """Import modules before the first one is documented.

    Sphinx writes to a documented class's annotations, and pydantic cannot derive a class from it then.
    """
    for name in names:
        with contextlib.suppress(Exception):  # autodoc reports it, with its place
            importlib.import_module(name)


def modules(top: Path, name: str, without: str | None = None) -> list[tuple[Path, str]]:
    """A module, or a package and all public modules in it but those of one part, each with its folder."""
    if name == without:
        return []
    place = top.joinpath(*name.split("."))
    if not place.is_dir():
        return [(place.parent, name)]
    found = [(place, name)] if (place / "__init__.py").is_file() else []
    for part in sorted(place.iterdir()):
        if part.suffix == ".py" and part.name[0] != "_":
            found.append((place, f"{name}.{part.stem}"))
        elif part.is_dir() and any(part.glob("*.py")) and part.name[0] != "_":
            found += modules(top, f"{name}.{part.name}", without)
    return found


# --- numbers in prose ---------------------------------------------------------------------------------


class Result(SphinxRole):
    """A number from a results file: ``{res}`runs/classification#rows/0/UA:.1%```.

    Before ``#`` stands a JSON file without its suffix: ``published/...`` and ``recorded/...`` lie in
    ``data``, ``runs/...`` in the results folder of the runs this book is built from. Behind it stand the
    keys on the way to the value, and behind the last colon a format as in ``format``. A missing file or
    key is a warning, which fails the build.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Replace the role by the value's text."""
        try:
            return [nodes.inline(self.rawtext, self.value(), classes=["result"])], []
        except (OSError, LookupError, ValueError, TypeError) as error:
            problem = f"no result for {self.text!r}: {type(error).__name__}: {error}"
            log.warning(problem, location=self.get_location())
            return [nodes.problematic(self.rawtext, "?")], []

    def value(self) -> str:
        """The text to show."""
        place, _, keys = self.text.partition("#")
        keys, _, form = keys.rpartition(":") if ":" in keys else (keys, "", "")
        folder, _, name = place.partition("/")
        app = self.env.app
        base = runs(app) / "results" if folder == "runs" else Path(app.srcdir, "data", folder)
        file = base / f"{name}.json"
        self.env.note_dependency(str(file))
        found: Any = json.loads(file.read_text("utf8"))
        for key in keys.split("/"):
            found = found[int(key)] if isinstance(found, list) else found[key]
        return format(found, form)


class Computed(SphinxDirective):
    """What a function of the project returns, as a notebook would show it.

    ``salun_core.pages.NAME:function`` is called with the folder of the runs that this book is built from. What
    cannot be computed is a warning, which fails the build.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Call the function and show what it gives."""
        self.env.metadata[self.env.docname]["companion_computed"] = True
        module, _, name = self.arguments[0].partition(":")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = getattr(importlib.import_module(module), name)(runs(self.env.app))
        except Exception as error:
            log.warning(
                f"{self.arguments[0]} failed: {type(error).__name__}: {error}", location=self.get_location()
            )
            return [nodes.problematic(self.block_text, "?")]
        if hasattr(found, "_repr_html_"):
            return [nodes.raw("", found._repr_html_(), format="html")]
        return self.parse_text_to_nodes(found._repr_markdown_())


# --- what a page says of itself elsewhere --------------------------------------------------------------


CARD = "_static/card.png"


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give a page a description and what a link to it shows elsewhere (event html-page-context)."""
    if doctree is None:
        return
    said = summary_of(doctree)
    title = unescape(re.sub(r"<[^>]*>", "", context.get("title", "")))
    base = app.config.html_baseurl.rstrip("/")  # addresses of pictures must be whole, where there is one
    values = {
        ("name", "description"): said,
        ("property", "og:title"): title,
        ("property", "og:description"): said,
        ("property", "og:type"): "article",
        ("property", "og:site_name"): app.config.html_title,  # that of the book; Jupyter Book sets no project
        ("property", "og:image"): f"{base}/{CARD}" if base else context["pathto"](CARD, 1),
        ("property", "og:image:alt"): "The question of this book and its first finding",
        ("name", "twitter:card"): "summary_large_image",
    }
    tags = (
        f'<meta {kind}="{name}" content="{escape(value, quote=True)}">'
        for (kind, name), value in values.items()
        if value
    )
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)


def summary_of(doctree: nodes.document, length: int = 200) -> str:
    """The first words of a page, behind its heading and the label of its first paragraph."""
    for paragraph in doctree.findall(nodes.paragraph):
        words = " ".join(paragraph.astext().split()).removeprefix("The question. ")
        if len(words) > 30:
            return words if len(words) <= length else words[: length - 1].rsplit(" ", 1)[0] + "…"
    return ""


# --- nothing from a network ---------------------------------------------------------------------------


def mend_roles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Make the entries of a bibliography items of their list for screen readers (html-page-context)."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def name_toggles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the folds of the navigation a name for screen readers (event html-page-context)."""
    contents = context.get("generate_toctree_html")
    if contents is None:  # another theme
        return

    def named(*args: Any, **options: Any) -> Any:
        found = contents(*args, **options)
        for toggle in found.select("summary"):
            toggle["aria-label"] = f"Pages below {toggle.find_parent('li').a.get_text(strip=True)}"
        return found

    context["generate_toctree_html"] = named


INLINED = re.compile(
    r'<script>(?:(?!</script>).)*?inject(?:CSS|Module)\("[A-Za-z0-9+/=]{9999,}.*?</script>', re.DOTALL
)
LIBRARY = re.compile(r'(inject(?:CSS|Module))\("([A-Za-z0-9+/=]{9999,})"\)')
DOWNLOAD = re.compile(r'<a download="([^"]+)" href="data:[^;"]+;base64,([^"]+)"')


def lighten(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Take out of a page what not every reader needs at once: files to download, and itables' library.

    A notebook holds both as base64. The library becomes a script of its own that also works without a server
    (event html-page-context).
    """

    def stored(name: str, content: bytes) -> str:
        file = f"_static/inline/{hashlib.sha256(content).hexdigest()[:12]}-{name}"
        target = Path(app.outdir, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return str(context["pathto"](file, 1))

    def download(found: re.Match[str]) -> str:
        return f'<a download="{found[1]}" href="{stored(found[1], b64decode(found[2]))}"'

    def script(found: re.Match[str]) -> str:
        files = []

        def library(part: re.Match[str]) -> str:
            name = f"inlined_{part[1]}"
            text = json.dumps(b64decode(part[2]).decode("latin1"), ensure_ascii=True)
            files.append(stored(f"{part[1]}.js", f"const {name} = {text};\n".encode()))
            return f"{part[1]}(btoa({name}))"

        rest = LIBRARY.sub(library, found[0])
        return "".join(f'<script src="{file}"></script>\n' for file in files) + rest

    if "body" in context:
        context["body"] = INLINED.sub(script, DOWNLOAD.sub(download, context["body"]))


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the scripts of thebe, which come from a network (event html-page-context)."""
    scripts = context.get("script_files", [])
    context["script_files"] = [script for script in scripts if "thebe" not in repr_script(script)]


def repr_script(script: Any) -> str:
    """File name and body of a script tag, in one text."""
    return f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {}).get('body', '')}"


def draw_pictures(app: Sphinx) -> None:
    """Write the pictures that are shown elsewhere, from results: by file name the function that makes each."""
    for name, place in app.config.companion_pictures.items():
        module, _, function = place.partition(":")
        try:
            picture = getattr(importlib.import_module(module), function)(runs(app))
        except Exception as error:
            log.warning(f"{place} failed: {type(error).__name__}: {error}")
        else:
            picture.save(Path(app.outdir, "_static", name))


def finish(app: Sphinx, error: Exception | None) -> None:
    """Put in place what Sphinx does not copy: MathJax, executed notebooks, pictures (event build-finished).

    Of the theme's icons those that are shown stay.
    """
    if error is not None or app.builder.format != "html":
        return
    spec = find_spec("sphinx-mathjax-offline")
    assert spec is not None
    assert spec.origin is not None
    copy(
        Path(spec.origin).parent / "static/mathjax/tex-svg.js",
        Path(app.outdir, "_static", app.config.mathjax_path),
    )
    draw_pictures(app)
    icons.keep_shown(Path(app.outdir))
    for doc in app.env.found_docs:
        if (path := executed(app, doc)) and path.exists():
            copy(path, Path(app.outdir, "_sources", f"{doc}.ipynb"))


def copy(source: Path, target: Path) -> None:
    """Copy a file, making the folder it goes to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copyfile(source, target)


def share_out(app: Sphinx, config: Any) -> None:
    """Read and write pages in as many processes as asked for, for which Jupyter Book has no option (config-inited).

    Sphinx reads in one process where an extension does not say that it may be several. Two of Jupyter Book's do not
    say: one acts on LaTeX only, the other numbers chapters after they have been read.
    """
    for name in ("sphinx_jupyterbook_latex", "sphinx_multitoc_numbering"):
        if (extension := app.extensions.get(name)) and extension.parallel_read_safe is None:
            extension.parallel_read_safe = True
    app.parallel = int(os.environ.get("COMPANION_JOBS", app.parallel))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx_design")
    sys.path.insert(0, str(app.srcdir))  # docstrings come from this tree, whatever is installed
    app.add_config_value("companion_runs", os.environ.get("COMPANION_RUNS", "data/runs"), "env", [str])
    app.add_config_value("companion_pictures", {}, "html", [dict])
    app.add_role("res", Result())
    app.add_directive("computed", Computed)
    for node, what in ((ResultFigure, "figure"), (ResultTable, "table")):
        app.add_enumerable_node(node, what, title_of, html=(write_result, passed))
    app.connect("config-inited", share_out)
    app.connect("doctree-read", number_results)
    app.connect("source-read", show_executed)
    app.connect("source-read", show_modules)
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("autodoc-process-docstring", name_types, priority=900)  # after napoleon
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", name_toggles, priority=900)
    app.connect("html-page-context", mend_roles)
    app.connect("html-page-context", lighten)
    app.connect("html-page-context", describe)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
