"""A folder of images far larger than the memory it is read with: read, trained on, retrained and unlearned."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.measure import Row
from salun_core.data.on_disk import VARIABLE
from salun_core.experiments.runs.provenance import provenance
from salun_core.files import write_whole
from salun_core.paths import project_root, sets_folder

PIXELS, CLASSES = 224, 50
LIMIT = 4 * 10**9  # bytes of the process's own data
GIVEN: dict[str, Any] = {
    "dataset": "imagefolder",
    "arch": "benchmarks.large_folder:pooled",
    "recipe": "digits_short",
    "epochs": 1,
    "scenario": "random",
    "methods": "retrain,salun",
    "settings": "{salun: {epochs: 1, lr: 0.01}}",
    "seeds": "0",
    "tune": "false",
    "threads": 1,
}


def run(*, small: bool) -> list[Row]:
    """One experiment under a limit of memory; in full it writes ``data/measured/large_folder.json``.

    Its images are 100,000 JPEG files of 224 pixels, 15 GB when decoded; the network only averages them, so that it is
    the reading which is measured.
    """
    each = (20, 4) if small else (1800, 200)
    cache = sets_folder(None) / "cache"
    before = set(cache.glob("*"))
    with tempfile.TemporaryDirectory(prefix="salun-large-folder-") as scratch:
        folder = Path(scratch) / "images"
        _draw(folder, each)
        try:
            found = _measured(folder, Path(scratch) / "out", in_memory=20 if small else None)
        finally:
            for path in set(cache.glob("*")) - before:
                path.unlink()
    images = sum(each) * CLASSES
    found |= {"images": images, "decoded_bytes": images * 3 * PIXELS**2, "limit_bytes": LIMIT}
    if not small:
        found["machine"] = provenance(torch.device("cpu"))
        text = json.dumps(found, indent=1, sort_keys=True)
        write_whole(project_root() / "data" / "measured" / "large_folder.json", text.encode())
    return [
        Row(
            f"{images:,} images of {PIXELS} pixels: peak memory against their decoded pixels",
            found["peak_bytes"] / 2**20,
            found["decoded_bytes"] / 2**20,
            "MiB",
            f"{found['seconds'] / 60:.1f} minutes, under a limit of {LIMIT / 1e9:.0f} GB",
        )
    ]


def pooled(num_classes: int) -> nn.Module:
    """A network that averages an image over 7 x 7 windows before it looks at it."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(147, 64), nn.ReLU(), nn.Linear(64, num_classes)
    )


def _draw(folder: Path, each: tuple[int, int]) -> None:
    """Blurred colours, ``each`` of a class for training and test."""
    rng = np.random.default_rng(0)
    for name, count in zip(("train", "test"), each, strict=True):
        for label in range(CLASSES):
            into = folder / name / f"class{label:02d}"
            into.mkdir(parents=True)
            base = rng.integers(0, 256, (7, 7, 3))
            for number in range(count):
                small = np.clip(base + rng.normal(0, 60, base.shape), 0, 255).astype(np.uint8)
                large = Image.fromarray(small).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
                large.save(into / f"{number:04d}.jpg", quality=60)


def _measured(folder: Path, out: Path, *, in_memory: int | None) -> dict[str, Any]:
    """Seconds, peak memory and cells of the experiment in a process of its own."""
    import resource  # not on Windows

    words = [word for name, value in GIVEN.items() for word in ("-p", name, str(value))]
    words += ["-p", "data_dir", str(folder), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if in_memory is not None:
        environment[VARIABLE] = str(in_memory)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "salun_core", "run", "classification", *words],
        cwd=project_root(),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )
    said = process.stderr.read() if process.stderr is not None else b""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(
            f"the experiment ended with status {status}: {said[-300:].decode(errors='replace')}"
        )
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": time.perf_counter() - start,
        "peak_bytes": used.ru_maxrss * scale,
        "cells": len(list((out / "cells").glob("cell-*.json"))),
    }
