"""Where and with what a result was computed."""

import contextlib
import datetime
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import salun_core
from salun_core import __version__
from salun_core.code_digest import LIBRARIES


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe this machine, its software and the revision of the code.

    Returns
    -------
    dict
        ``revision`` (with ``+`` behind it when tracked files differ from it), ``finished`` (UTC),
        ``device``, ``threads``, ``python``, ``platform``, ``libraries``.
    """
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **environment(),
    }


def environment() -> dict[str, Any]:
    """The software here: ``salun_core``, ``revision``, ``python``, ``platform``, ``libraries``."""
    return {
        "salun_core": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": _libraries(),
    }


def fresh_clock(device: torch.device) -> float:
    """A reading of ``time.perf_counter()``, with `peak_memory` counted from here on (on Linux, or an accelerator)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return time.perf_counter()


def peak_memory(device: torch.device) -> int | None:
    """Largest memory use so far, in bytes: of the process, or of the accelerator; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def device_name(device: torch.device) -> str:
    """Name of the processor or the accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            lines = Path("/proc/cpuinfo").read_text("utf8").splitlines()
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            return platform.processor() or "cpu"
    return device.type


@cache
def revision() -> str:
    """Git revision of the code, or "unknown" outside a checkout."""
    here = Path(salun_core.__file__).parent  # all of the package, wherever this module lies in it
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if dirty else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


@cache
def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES.values():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
