"""Two ways of doing one thing, measured in turn."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One comparison; ``ratio`` is the plain way over ours, so that more is better.

    Parameters
    ----------
    what : str
        What is compared, with its size.
    ours, plain : float
        Both measurements in ``unit``.
    unit : str
        "s" or "MiB".
    note : str
        What else there is to say, for instance whether a bound holds.
    """

    what: str
    ours: float
    plain: float
    unit: str = "s"
    note: str = ""

    @property
    def ratio(self) -> float:
        """Plain over ours."""
        return self.plain / self.ours

    def shown(self) -> dict[str, str]:
        """The row as printed."""
        return {
            "compared": self.what,
            "ours": f"{self.ours:.4g} {self.unit}",
            "plain": f"{self.plain:.4g} {self.unit}",
            "ratio": f"{self.ratio:.2f}",
            "note": self.note,
        }


def in_turn(ours: Callable[[], object], plain: Callable[[], object], *, repeats: int) -> tuple[float, float]:
    """Median seconds of both ways; they alternate, after one round that is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for way, taken in zip((ours, plain), seconds, strict=True):
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def peaks(module: str, functions: Sequence[str], size: int) -> list[float]:
    """MiB by which memory grows, at most, while each ``module.function(prepared)`` runs.

    ``module.prepared(size)`` makes the argument and is not counted. Each function has a process of its own,
    forked from a fresh one that has imported the module and done nothing else. Memory is read every few
    milliseconds: the high-water mark that the system keeps is inherited from the process before.
    """
    code = f"""
import importlib, os, sys, threading, psutil
part = importlib.import_module({module!r})
def measure(function):
    argument = part.prepared({size})
    process = psutil.Process()
    before = most = process.memory_info().rss
    done = threading.Event()
    def watch():
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = function(argument)
    most = max(most, process.memory_info().rss)
    done.set()
    watcher.join()
    print((most - before) / 2**20, flush=True)
for name in {list(functions)!r}:
    child = os.fork()
    if child == 0:
        measure(getattr(part, name))
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(name + " did not finish")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [max(float(line), 0.1) for line in ended.stdout.split()]  # less cannot be told
