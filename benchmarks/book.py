"""The budget of the book: built cold, in a copy without results, on an idle machine, and what each notebook takes of it."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row
from salun_core.paths import project_root

BUDGET = 15 * 60
"""Seconds that the whole quick book may take on two idle cores."""
WORKERS = 2
RESULTS = {"runs"}  # in data; left out of the copy, like what was built and installed
SHORT = ("toy", "noise")


def run(*, small: bool) -> list[Row]:
    """The whole quick book, or two short notebooks of the smallest; the longest notebook first."""
    with tempfile.TemporaryDirectory(prefix="salun-book-") as scratch:
        copy = Path(scratch) / "project"
        shutil.copytree(project_root(), copy, ignore=_left_out)
        start, before = time.perf_counter(), _processor()
        if small:
            for name in SHORT:
                _python(copy, "--profile", "smoke", "execute", name)
            folder = copy / "data/runs/smoke/notebooks"
        else:
            _python(copy, "--profile", "quick", "build", "--cores", str(WORKERS))
            folder = copy / "data/runs/notebooks"
        seconds, processor = time.perf_counter() - start, _processor() - before
        taken = {
            path.stem: float(json.loads(path.read_text("utf8"))["metadata"]["papermill"]["duration"])
            for path in folder.glob("*.ipynb")
        }
    rows = [Row(name, of_one, BUDGET) for name, of_one in sorted(taken.items(), key=lambda each: -each[1])]
    note = f"{processor / 60:.1f} minutes of processor; ratio below 1: over the budget"
    what = "both, one after the other" if small else f"all with {WORKERS} workers, pages too"
    return [*rows, Row(what, seconds, BUDGET, note=note)]


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Names in a folder of the project that a fresh clone does not have."""
    here = Path(folder)
    hidden = {n for n in names if n.startswith(".") and n not in (".ci", ".github")}
    out = {n for n in names if n in ("_build", "__pycache__", "build", "dist") or n.endswith(".egg-info")}
    return hidden | out | (RESULTS & set(names) if here == project_root() / "data" else set())


def _python(copy: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "book/_ext/execution.py", *words],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"the book was not built:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")


def _processor() -> float:
    """Seconds of processor that finished child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
