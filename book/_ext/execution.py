"""Executing the notebooks: what each one depends on, with which parameters, and how it is run.

The Snakefile decides *whether* a notebook is executed and calls `execute`. Run as a program, this module
starts Snakemake, one at a time for a checkout, and goes on after a run that was killed.
"""

import argparse
import ast
import atexit
import contextlib
import fcntl
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, TextIO

import yaml

from salun_core.code_digest import imported_files, locate, named_near, names_imported, texts, texts_in
from salun_core.paths import MEASURED

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "salun_core"
NOTEBOOK = "notebook-"  # what the name of a run in shards begins with where it is that of a notebook
PROFILES = {"quick": Path("data/runs"), "smoke": Path("data/runs/smoke")}  # profile -> its output folder


def site(profile: str) -> Path:
    """Where the book of a profile is built, relative to the top; its pages are in ``_build/html`` there."""
    return Path() if profile == "quick" else PROFILES[profile]


# --- parameters ---------------------------------------------------------------------------------------


@cache
def notebooks(root: Path = ROOT) -> dict[str, dict[str, dict[str, Any]]]:
    """Names of the notebooks in the book, each with its parameters by profile."""
    return yaml.safe_load((root / "notebooks.yaml").read_text("utf8"))


def longest(profile: str, root: Path = ROOT) -> list[str]:
    """Executed notebooks that take longest: started first, none of them runs alone at the end."""
    folder = PROFILES[profile] / "notebooks"
    return [str(folder / f"{name}.ipynb") for name, entry in notebooks(root).items() if entry.get("long")]


def parameters(name: str, profile: str, root: Path = ROOT) -> dict[str, Any]:
    """Parameters that a notebook is given in a profile; other profiles than quick write to their own folder."""
    given = dict(notebooks(root)[name].get(profile) or {})
    if profile == "quick" or "out_dir" not in _declared(
        ast.parse(code(root / "notebooks" / f"{name}.ipynb"))
    ):
        return given
    return {**given, "out_dir": str(PROFILES[profile])}


def before(name: str, root: Path = ROOT) -> list[str]:
    """Notebooks whose results a notebook shows: it is executed after them."""
    return list(notebooks(root)[name].get("after") or [])


# --- what a notebook depends on -----------------------------------------------------------------------


def dependencies(notebook: Path, given: dict[str, Any], root: Path = ROOT) -> list[Path]:
    """Files whose change can change what a notebook shows.

    These are the modules of this project that it imports, directly or not, the preset it is run with, and
    the published data that it or those modules name, and the recorded runs that it
    shows: that of its parameter ``run_name``, those that it names, and all of them where it reads
    all (``ReadingParams``). A package's ``__init__`` counts where a name is
    taken from it, not where it is only passed through on the way to a module.

    Parameters
    ----------
    notebook : Path
        The template.
    given : dict
        The parameters it is executed with.
    root : Path
        Top of the project.

    Returns
    -------
    list of Path
        Sorted, relative to ``root``.
    """
    tree, folders = ast.parse(code(notebook)), (root,)
    own = list(names_imported(tree, "", folders, tables=True, strings=True))
    modules = imported_files(own, folders, tables=True, strings=True)
    found = set(modules.values())
    said = texts(tree).union(*map(texts_in, found))
    found |= {table for name, file in modules.items() for table in named_near(file, name, root)}
    found |= {file for file in _files(root / "data/published") if any(file.stem in text for text in said)}
    if any("contributed" in text for text in said):
        found |= {file for file in _files(root / "data/contributed") if file.suffix == ".csv"}
    for run in _recorded(tree, given, root):
        found |= recorded_files(run)
    preset = str(given.get("preset") or _declared(tree).get("preset") or "")
    presets = root / PACKAGE / "experiments" / "presets"
    # Presets lie in a folder named after their experiment, which the parameters that a notebook imports name.
    declared = {
        name for file in map(partial(locate, folders=folders), own) if file for name in _experiments(file)
    }
    named = {presets / name / f"{preset}.yaml" for name in declared}
    found |= {file for file in (*named, root / preset) if file.is_file()}
    return sorted(file.relative_to(root) for file in found)


def _recorded(tree: ast.Module, given: dict[str, Any], root: Path) -> list[Path]:
    """Folders of the recorded runs that a notebook shows."""
    folder = root / "data/recorded"
    runs = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    imported = {
        name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    named = {given.get("run_name") or _declared(tree).get("run_name"), *texts(tree)}
    return [run for run in runs if run.name in named or "ReadingParams" in imported]


def recorded_files(run: Path) -> set[Path]:
    """What stands for a recorded run: its tables, and the folder of its cells.

    A folder's time changes when a file in it is added, replaced or removed. Snakemake takes minutes over thousands of files.
    Metrics that are kept beside them follow from the cells and the code. Pages that show them write and delete them, so
    that no page may wait for them.
    """
    cells = run / "cells"
    return {file for file in _files(run) if file.parent not in (cells, run / MEASURED)} | {
        folder for folder in (cells,) if folder.is_dir()
    }


def code(notebook: Path) -> str:
    """Python of a notebook's code cells, without IPython's own lines."""
    cells = json.loads(notebook.read_text("utf8"))["cells"]
    lines = [line for c in cells if c["cell_type"] == "code" for line in _lines(c)]
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!", "?")))


def _lines(cell: dict[str, Any]) -> list[str]:
    source = cell["source"]
    return (source if isinstance(source, str) else "".join(source)).splitlines()


@cache
def _experiments(file: Path) -> frozenset[str]:
    """Names of the experiments whose parameters a module declares."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf8"))):
        match node:
            case ast.AnnAssign(target=ast.Name(id="experiment"), value=ast.Constant(value=str(name))):
                found.add(name)
    return frozenset(found)


def _files(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


def _declared(tree: ast.Module) -> dict[str, Any]:
    return {
        node.target.id: node.value.value if isinstance(node.value, ast.Constant) else None
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def parameters_declared(notebook: Path) -> str:
    """The parameters cell that a notebook should have, from the class whose ``from_notebook`` it calls."""
    from salun_core.experiments.runs.params import parameters_cell

    return parameters_cell(_parameters_class(notebook))


def experiment_of(notebook: Path, root: Path = ROOT) -> str | None:
    """The experiment with presets that a notebook runs; None where it runs none."""
    name = str(_parameters_class(notebook).experiment)
    return name if (root / PACKAGE / "experiments" / "presets" / name).is_dir() else None


def _parameters_class(notebook: Path) -> Any:
    """The class whose ``from_notebook`` a notebook calls."""
    tree = ast.parse(code(notebook))
    (name,) = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "from_notebook"
        and isinstance(node.value, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return getattr(importlib.import_module(str(node.module)), name)
    raise SystemExit(f"{notebook} does not import {name}")


def declare(root: Path = ROOT) -> None:
    """Write anew what committed files hold of results and declarations: notebooks' parameters, the README's findings."""
    from salun_core.pages.replication.headline import readme

    front = root / "README.md"
    front.write_text(readme(front.read_text("utf8")), "utf8")
    for name in notebooks(root):
        path = root / "notebooks" / f"{name}.ipynb"
        content = json.loads(path.read_text("utf8"))
        (cell,) = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
        cell["source"] = parameters_declared(path).splitlines(keepends=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf8")


# --- execution ----------------------------------------------------------------------------------------


STAMP = "COMPANION_STAMP"  # where a kernel leaves its stamp
QUIET = ["--log-level=CRITICAL"]  # a kernel calls its own orderly shutdown an error
STAMPED = ["--IPKernelApp.extensions=['book._ext.execution']"]  # this module, see `load_ipython_extension`


def execute(template: Path, output: Path, given: dict[str, Any], *, threads: int = 1) -> None:
    """Execute a notebook with papermill; ``output`` appears only when it reached its end.

    The copy in work lies beside, in ``running``; the copy of a notebook that failed stays in ``failed``.
    Progress bars of the notebook are shown on stderr while it runs. Kernels talk through files of a
    temporary folder, not through network ports.

    Raises
    ------
    SystemExit
        With one line that names the cell, the error and the copy, if a cell fails.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    runs = output.parent.parent
    running, failed = runs / "running" / output.name, runs / "failed" / output.name
    for file in (running, failed, output):
        file.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    with (
        running.with_suffix(".lock").open("a") as lock,
        tempfile.TemporaryDirectory(prefix="salun-") as scratch,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # wait for a copy that outlived a Snakemake that was killed
        say(f"Executing {template}")
        os.environ |= {
            "IPYTHONDIR": scratch,
            "JUPYTER_RUNTIME_DIR": scratch,
            "OMP_NUM_THREADS": str(threads),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONHASHSEED": "0",
            STAMP: f"{scratch}/stamp.json",
        }
        try:
            papermill.execute_notebook(
                template,
                running,
                parameters=given,
                kernel_name="python3",
                progress_bar=False,
                stderr_file=Bars(sys.stderr),
                start_timeout=600,
                config=Config(
                    KernelManager={
                        "transport": "ipc",
                        "ip": f"{scratch}/kernel",  # its sockets, no other's
                        "shutdown_wait_time": 60,  # seconds for its stamp, before it is killed
                    },
                    NotebookClient={"extra_arguments": [*QUIET, *STAMPED]},
                ),
            )
        except PapermillExecutionError as error:
            what = f"cell {error.cell_index + 1} ended with {error.ename}: {error.evalue}".splitlines()[0]
        except DeadKernelError:
            what = "its kernel died, as it does when memory runs out"
        except KeyboardInterrupt:
            what = "it was interrupted; the same command goes on"
        else:
            stamp(running, Path(os.environ[STAMP]))
            running.replace(output)
            return
    running.replace(failed)
    raise SystemExit(f"\n{template} did not finish: {what} (see {failed})")


def stamp(notebook: Path, left: Path) -> None:
    """Write into a notebook's metadata where and with what it was executed.

    Parameters
    ----------
    notebook : Path
        The executed notebook.
    left : Path
        What its kernel left behind. A kernel that was killed while it shut down left nothing; then this process says it.
    """
    content = json.loads(notebook.read_text("utf8"))
    content["metadata"]["companion"] = json.loads(left.read_text("utf8")) if left.is_file() else _here()
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf8")


def load_ipython_extension(shell: Any) -> None:
    """Let a kernel leave its stamp when it ends: it has loaded what a process of its own takes seconds to load."""

    def leave() -> None:
        written = Path(os.environ[STAMP]).with_suffix(".part")
        written.write_text(json.dumps(_here()), "utf8")
        written.replace(os.environ[STAMP])

    atexit.register(leave)


def _here() -> dict[str, Any]:
    from salun_core.experiments.runs.machine import find_device
    from salun_core.experiments.runs.provenance import provenance

    return provenance(find_device("auto")) | {"threads": int(os.environ["OMP_NUM_THREADS"])}


class Bars(io.TextIOBase):
    """Passes progress bars on: as they are to a terminal, as a line now and then to a log.

    Parameters
    ----------
    target : text stream
        Where they are shown.
    every : float
        Seconds between two states of a bar in a log.
    """

    def __init__(self, target: TextIO, every: float = 20) -> None:
        self.target, self.every = target, every
        self.shown, self.last = -every, ""

    def write(self, text: str) -> int:
        """Show ``text``, or keep the state of a bar until it is time."""
        if self.target.isatty():
            self.target.write(text)
            return len(text)
        for part in re.split(r"(?<=\n)|\r", text):
            if part.endswith("\n"):
                line = part.strip() or self.last
                self._line(line)
                self.last = ""
            elif part.strip():
                self.last = part.strip()
                if time.monotonic() - self.shown >= self.every:
                    self._line(self.last)
        return len(text)

    def flush(self) -> None:
        """Pass on to the target."""
        self.target.flush()

    def _line(self, text: str) -> None:
        if text:
            self.shown = time.monotonic()
            self.target.write(text + "\n")


# --- rendering ----------------------------------------------------------------------------------------


def pages(root: Path = ROOT) -> list[Path]:
    """Files that the book is made from, beside the executed notebooks."""
    found = {Path("_config.yml"), Path("_toc.yml")}
    for folder in ("book", PACKAGE, "data/published", "data/measured"):
        found |= {file.relative_to(root) for file in _files(root / folder)}
    recorded = root / "data/recorded"
    for run in recorded.iterdir() if recorded.is_dir() else []:
        found |= {file.relative_to(root) for file in (recorded_files(run) if run.is_dir() else {run})}
    return sorted(file for file in found if "__pycache__" not in file.parts and file.name[0] != ".")


def render(profile: str) -> None:
    """Build the HTML book of a profile; a warning is a failure.

    Raises
    ------
    SystemExit
        If the build fails, after what Sphinx said.
    """
    say("Building the book")
    target = ROOT / site(profile)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [sys.executable, str(program), "build", ".", "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, "--path-output", str(target)],
        cwd=ROOT,
        env={
            **os.environ,
            "COMPANION_RUNS": str(PROFILES[profile]),
            "COMPANION_JOBS": str(os.cpu_count()),
            "PYTHONWARNINGS": "ignore",
            "NO_COLOR": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        # Sphinx warns of a page once, when it reads it: it must be read again, or the next build passes.
        shutil.rmtree(target / "_build" / ".doctrees", ignore_errors=True)
        say(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))  # without colours
        raise SystemExit("the book was not built: see the warnings and errors above")


# --- one Snakemake at a time --------------------------------------------------------------------------


@contextlib.contextmanager
def snakemake(*options: str, **how: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Start Snakemake on this checkout.

    Snakemake leaves its lock behind when it is killed. The operating system lets go of ours, so where we
    hold it, a lock of Snakemake is an old one.

    Parameters
    ----------
    *options : str
        Of Snakemake, targets included.
    **how
        Further arguments of ``Popen``.

    Raises
    ------
    BlockingIOError
        If another one is running here.
    """
    state = ROOT / ".snakemake"
    state.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile"]
    with (state / "companion.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another `make book` or `make run` is running in this folder: wait for it, or stop it")
            raise
        if any((state / "locks").glob("*")):
            subprocess.run([*command, "--unlock"], cwd=ROOT, check=True, capture_output=True)
        shared = ["--keep-going", "--rerun-incomplete", *options]
        yield subprocess.Popen([*command, *shared], cwd=ROOT, pass_fds=[lock.fileno()], **how)


def plans(written: list[str], shared: str = "") -> dict[str, dict[str, Any]]:
    """Plans of runs in shards, by the folder that each lies in, seen from ``shared``; see `salun_core.experiments.runs.shards`."""
    return {str(Path(file).parent): json.loads(Path(shared, file).read_text("utf8")) for file in written}


def gathered(name: str, planned: dict[str, dict[str, Any]]) -> list[str]:
    """Marks that a notebook waits for: its experiment has been computed in shards, where that was planned."""
    return [f"{folder}/gathered.done" for folder in planned if Path(folder).name == f"{NOTEBOOK}{name}"]


def build(profile: str, *options: str) -> int:
    """Run Snakemake for the book; the exit status is Snakemake's, or 3 if another run is alive.

    Parameters
    ----------
    profile : str
        Which parameters.
    *options : str
        Of Snakemake: where it computes, and further settings of the Snakefile.
    """
    try:
        first = ["--prioritize", *longest(profile)]
        with snakemake("--quiet", "all", *first, *options, f"profile={profile}") as child:
            while True:  # Ctrl+C reaches Snakemake too, which stops its jobs and says so
                with contextlib.suppress(KeyboardInterrupt):
                    return child.wait()
    except BlockingIOError:
        return 3


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> int:
    """Command line; ``build`` is the one for people, Snakemake calls the others."""
    parser = argparse.ArgumentParser(description="Execute what is out of date and build the book.")
    parser.add_argument(
        "--profile", choices=PROFILES, default="quick", help="which parameters (default quick)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("build", help="execute what is out of date, then build the book")
    whole.add_argument("--cores", default="all", help="notebooks at the same time (default all)")
    one = commands.add_parser("execute", help="execute one notebook")
    one.add_argument("name")
    one.add_argument("--threads", type=int, default=1)
    commands.add_parser("declare", help="write the parameters cells of the notebooks from their declarations")
    commands.add_parser("render", help="build the book from executed notebooks")
    given = parser.parse_args(words)

    if given.command == "execute":
        folder = PROFILES[given.profile] / "notebooks"
        values = parameters(given.name, given.profile)
        name = f"{given.name}.ipynb"
        execute(Path("notebooks", name), folder / name, values, threads=given.threads)
        return 0
    if given.command == "declare":
        declare()
        return 0
    if given.command == "render":
        render(given.profile)
        return 0
    status = build(given.profile, "--cores", given.cores, "--config")
    if status == 0:
        print(f"The book: {(ROOT / site(given.profile) / '_build/html/index.html').as_uri()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
