"""Runs of every kind that take seconds, and what is compared of them."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_core.__main__ import main
from salun_core.experiments.runs.table import read_table, records
from salun_core.paths import project_root

VOLATILE = (
    "seconds",
    "mask_seconds",
    "sampling_seconds",
    "peak_memory",
    "finished",
    "code",
    "device",
    "threads",
)
"""Columns of a table that say when, where and how fast a cell was computed."""

HERE = project_root(Path(__file__).parent)

JUDGE = {"judge": "resnet18", "judge_width": 4, "judge_epochs": 1, "reference": 40, "seeds": [0]}
GIVEN: dict[str, dict[str, Any]] = {
    "classification": {
        "dataset": "digits",
        "train_images": 200,
        "width": 4,
        "epochs": 1,
        "scenario": "random",
        "seeds": [0],
        "noise_floor": 0,
        "tune": False,
        "methods": ["ft", "salun"],
        "settings": {"ft": {"epochs": 1}, "salun": {"epochs": 1}},
    },
    "diffusion": {
        **JUDGE,
        "steps": 20,
        "warmup": 0,
        "widths": [8, 16],
        "forget_steps": 3,
        "settings": {"salun": {"steps": 3}},
        "mask_draws": 1,
        "samples": 4,
        "sample_steps": 3,
        "methods": ["salun"],
        "masks": ["none"],
    },
    "text_to_image": {
        **JUDGE,
        "forget_steps": 2,
        "settings": {"salun": {"steps": 2}},
        "mask_draws": 1,
        "samples": 4,
        "sample_steps": 2,
        "methods": ["salun"],
        "masks": ["none"],
        "clip": "none",
    },
}


@dataclass(frozen=True)
class Small:
    """One small run in a folder of its own.

    Parameters
    ----------
    kind : str
        A key of ``GIVEN``.
    out : path
        Where its results go.
    code : path
        Folder of the package that runs, this project's by default.
    more : tuple
        Further words of the command.
    """

    kind: str
    out: Path
    code: Path = HERE
    more: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The command."""
        given = [w for n, v in GIVEN[self.kind].items() for w in ("-p", n, json.dumps(v))]
        return ["run", self.kind, *given, "--out", str(self.out), *self.more]

    def start(self, words: list[str] | None = None, **how: Any) -> "subprocess.Popen[str]":
        """Run it, or other words, in a process of its own."""
        environment = os.environ | {"PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "salun_core", *(words or self.words)]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.code, env=environment, **pipes, **how)

    def run(self, words: list[str] | None = None, **how: Any) -> tuple[int, str]:
        """The same to its end: exit status, and what it printed on stderr."""
        process = self.start(words, **how)
        said = process.communicate()[1]
        return process.returncode, said

    def inside(self) -> tuple[int, str]:
        """The same in this process, which is faster."""
        return called(self.words)

    def rows(self) -> str:
        """Its table but for time and place, as text."""
        found = read_table(self.out, self.kind)
        return json.dumps(records(found.drop(columns=[n for n in VOLATILE if n in found])), sort_keys=True)

    @property
    def cells(self) -> Path:
        """Where its cells lie."""
        return self.out / "cells"


def called(words: list[str]) -> tuple[int, str]:
    """Exit status and stderr of a command that is run in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    return status, said.getvalue()


def sentences(said: str) -> list[str]:
    """What a command said, without its bars of progress."""
    lines = said.replace("\r", "\n").splitlines()
    return [line for line in lines if line.startswith(("salun_core:", "Traceback", "usage:"))]
