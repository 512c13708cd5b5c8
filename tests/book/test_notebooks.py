"""Every notebook is a template: no outputs, typed and explained parameters, a place in the book."""

import ast
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import yaml
from execution import (
    PROFILES,
    code,
    dependencies,
    longest,
    notebooks,
    parameters,
    parameters_declared,
    recorded_files,
)

from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.runs.params import Params
from salun_core.files import write_whole

ROOT = Path(__file__).parents[2]
FOUND = sorted((ROOT / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf8"))["cells"] if cell["cell_type"] == "code"]


def parameters_cell(path: Path) -> str:
    return "".join(code_cells(path)[0]["source"])


def params_of(path: Path) -> type[Params]:
    """The class that checks a notebook's parameters, by what the notebook imports."""
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code_cells(path)))
    called = next(
        n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "from_notebook"
    ).value.id
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    module = next(n.module for n in imports if called in [alias.name for alias in n.names])
    return getattr(importlib.import_module(module), called)


@every_notebook
def test_nothing_but_the_source_is_in_git(path):
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert "widgets" not in json.loads(path.read_text("utf8"))["metadata"]


KINDS = {kind.params for kind in EXPERIMENTS.values()}


@pytest.mark.parametrize(
    "path", [path for path in FOUND if params_of(path) in KINDS], ids=lambda path: path.stem
)
def test_a_grid_that_is_far_too_large_is_refused_in_the_first_cell_after_the_parameters(path):
    """Needs are worked out before anything is read, as on the command line."""
    given = {"In": ["seeds = [*range(900)]", ""], "seeds": [*range(900)]}
    with pytest.raises(UserError, match="more than 5,000: add --yes or set many_cells true"):
        exec("".join(code_cells(path)[1]["source"]), given)


@every_notebook
def test_there_is_an_exercise_whose_folded_solution_checks_itself(path):
    cells = json.loads(path.read_text("utf8"))["cells"]
    solutions = [i for i, cell in enumerate(cells) if "solution" in cell["metadata"].get("tags", [])]
    assert solutions
    for i in solutions:
        assert "## Exercise" in "".join(cells[i - 1]["source"])
        assert "hide-cell" in cells[i]["metadata"]["tags"]
        assert any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse("".join(cells[i]["source"]))))


@every_notebook
def test_the_first_code_cell_is_tagged_parameters(path):
    tagged = ["parameters" in cell["metadata"].get("tags", []) for cell in code_cells(path)]
    assert tagged.index(True) == 0
    assert sum(tagged) == 1


@every_notebook
def test_every_parameter_has_a_type_and_a_comment(path):
    source = parameters_cell(path)
    nodes = ast.parse(source).body
    assert all(isinstance(node, ast.AnnAssign) for node in nodes)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    explained = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    assert [node.target.id for node in nodes if node.end_lineno not in explained] == []


@every_notebook
def test_parameters_are_those_of_the_experiment(path):
    """A name the experiment does not know, or a value it refuses, would stop every run."""
    tree = ast.parse(parameters_cell(path))
    given = {node.target.id: ast.literal_eval(node.value) for node in tree.body}
    params = params_of(path)
    assert set(given) == set(params.declared()) - set(params.fixed)
    params.load(given)


@every_notebook
def test_the_parameters_cell_is_the_one_made_from_the_declarations(path):
    assert parameters_cell(path) == parameters_declared(path), "run `make notebooks`"


@every_notebook
@pytest.mark.parametrize("profile", PROFILES)
def test_the_book_gives_values_that_the_experiment_accepts(path, profile):
    params_of(path).load(parameters(path.stem, profile, ROOT))


def test_notebooks_yaml_and_the_table_of_contents_name_every_notebook():
    names = {path.stem for path in FOUND}
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))["parts"]
    pages = [chapter["file"] for part in parts for chapter in part["chapters"]]
    assert {Path(page).name for page in pages if page.startswith("notebooks/")} == names
    assert set(notebooks(ROOT)) == names
    for entry in notebooks(ROOT).values():
        assert set(entry) - {"after", "long"} == set(PROFILES)
        assert set(entry.get("after", [])) <= names


def test_long_notebooks_are_started_first():
    first = longest("quick", ROOT)
    assert first
    options = ["--dry-run", "--forceall", "--cores", "1", "--nolock", "--prioritize", *first]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            "Snakefile",
            *options,
            "--config",
            "profile=quick",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    urgent = re.findall(
        r"output: (\S+)(?:(?!output: ).)*?priority: highest", done.stdout + done.stderr, re.DOTALL
    )
    assert set(urgent) == set(first)


# --- what a notebook depends on -----------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project: one module for each way to be imported."""
    files = {
        "salun_core/__init__.py": "",
        "salun_core/direct.py": "from salun_core.inner import deep\n",
        "salun_core/inner/__init__.py": "from salun_core.unused import x\n",
        "salun_core/inner/deep.py": "from . import sibling\nfrom ..lazy import f\n",
        "salun_core/inner/sibling.py": "",
        "salun_core/lazy.py": "def f():\n    from salun_core import inside\n",
        "salun_core/inside.py": "TABLE = 'table9'\n",
        "salun_core/table.py": "LOADERS = {'a': 'salun_core.by_name'}\n",
        "salun_core/by_name.py": "",
        "salun_core/methods/__init__.py": "from salun_core.methods.one import one\nMETHODS = {}\n",
        "salun_core/methods/one.py": "",
        "salun_core/unused.py": "x = 1\n",
        "salun_core/tried.py": 'class TriedParams:\n    experiment: str = "demo"\n',
        "salun_core/experiments/presets/demo/quick.yaml": "",
        "salun_core/experiments/presets/demo/other.yaml": "",
        "data/published/table9.csv": "",
        "data/published/table8.csv": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def notebook(project: Path, *cells: str) -> Path:
    path = project / "notebooks/demo.ipynb"
    path.parent.mkdir(exist_ok=True)
    made = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "import this"}, *made]}))
    return path


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("import numpy", set()),
        ("%matplotlib inline\nfrom salun_core import by_name", {"by_name.py"}),
        (
            "from salun_core.direct import deep",
            {"direct.py", "inner/deep.py", "inner/sibling.py", "lazy.py", "inside.py"},
        ),
        ("import salun_core.table", {"table.py", "by_name.py"}),
        ("from salun_core.methods import METHODS", {"methods/__init__.py", "methods/one.py"}),
        ("from salun_core.methods.one import one", {"methods/one.py"}),
    ],
)
def test_imports_are_followed_from_cells_through_modules(project, cell, expected):
    found = {file.as_posix() for file in dependencies(notebook(project, cell), {}, project)}
    modules = {name for name in found if name.endswith(".py")}
    assert modules == {f"salun_core/{name}" for name in expected}


def test_the_preset_in_use_counts_and_no_other(project):
    path = notebook(project, 'preset: str = "quick"  # which', "from salun_core.tried import TriedParams")
    assert [f.stem for f in dependencies(path, {}, project)] == ["quick", "tried"]
    assert [f.stem for f in dependencies(path, {"preset": "other"}, project)] == ["other", "tried"]


def test_data_named_in_code_count(project):
    path = notebook(project, "from salun_core.inside import TABLE")
    assert Path("data/published/table9.csv") in dependencies(path, {}, project)
    assert Path("data/published/table8.csv") not in dependencies(path, {}, project)


def test_the_recorded_run_in_use_counts_and_no_other(project):
    for name in ("mine/results/demo.json", "mine/cells/cell-1.json", "other/cells/cell-2.json"):
        (project / "data/recorded" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "data/recorded" / name).write_text("{}")
    found = dependencies(notebook(project, 'run_name: str = "mine"'), {}, project)
    mine, other = (Path(f"data/recorded/{name}/cells") for name in ("mine", "other"))
    assert set(found) == {Path("data/recorded/mine/results/demo.json"), mine}
    assert other in dependencies(notebook(project, ""), {"run_name": "other"}, project)


def test_cells_of_a_recorded_run_count_by_their_folder_which_a_replaced_one_changes(tmp_path):
    cell = tmp_path / "cells/cell-1.json"
    cell.parent.mkdir()
    cell.write_text("{}")
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured/UA-0.json").write_text("{}")  # by a page that shows it, which may also delete it
    assert recorded_files(tmp_path) == {cell.parent, tmp_path / "results.json"}
    os.utime(cell.parent, (0, 0))
    write_whole(cell, b"{ }")  # as results are written, and as git checks files out
    assert cell.parent.stat().st_mtime > 0


def test_a_recorded_run_that_a_notebook_names_counts_and_all_of_them_where_it_reads_all(project):
    for name in ("mine/results/a.json", "other/results/b.json"):
        (project / "data/recorded" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "data/recorded" / name).write_text("{}")
    named = notebook(project, 'recorded("mine", "diffusion")')
    assert [f.name for f in dependencies(named, {}, project)] == ["a.json"]
    reads = notebook(project, "from salun_core.pages.results import ReadingParams")
    assert {"a.json", "b.json"} <= {f.name for f in dependencies(reads, {}, project)}


def test_code_leaves_out_what_is_not_python(project):
    assert code(notebook(project, "%load_ext x\n!ls\na = 1")) == "a = 1"


def studies_tagged() -> set[str]:
    """Names that experiments give to the parts of their results."""
    found = set()
    for file in (ROOT / "salun_core/experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf8"))):
            match node:
                case ast.keyword(arg="study", value=ast.Constant(value=str(name))):
                    found.add(name)
                case ast.Dict(keys=keys, values=values):
                    found |= {
                        value.value
                        for key, value in zip(keys, values, strict=True)
                        if isinstance(key, ast.Constant)
                        and key.value == "study"
                        and isinstance(value, ast.Constant)
                    }
    return found


@every_notebook
def test_the_parts_of_recorded_results_that_a_page_shows_exist(path):
    read = {
        node.args[0].value
        for node in ast.walk(ast.parse(code(path)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "study"
    }
    assert read <= studies_tagged()
