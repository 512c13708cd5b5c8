"""Shards: what more workers gain, what a shard costs, and what a cell leaves on disk. On an idle machine only."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row
from salun_core.experiments.runs.provenance import provenance
from salun_core.files import write_whole
from salun_core.paths import project_root

WORKERS = (1, 2, 4)
GIVEN: dict[str, Any] = {
    "scenario": "random",
    "methods": "retrain,ft,ga,rl,salun",
    "seeds": "0,1,2,3",
    "tuning_budget": 4,
    "noise_floor": 1,
    "threads": 1,
}
SMALL = {
    "width": 4,
    "epochs": 1,
    "train_images": 200,
    "methods": "retrain,ga",
    "seeds": "0",
    "tuning_budget": 2,
}


def run(*, small: bool) -> list[Row]:
    """One experiment in one process, then in shards with 1, 2 and 4 workers; in full it writes ``data/measured/scaling.json``."""
    given = GIVEN | SMALL if small else GIVEN
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    with tempfile.TemporaryDirectory(prefix="salun-scaling-") as scratch:
        out = Path(scratch)
        plain = _seconds("-m", "salun_core", "run", "classification", *words, "--out", f"{out}/plain")
        workers = {}
        for count in (1, 2) if small else WORKERS:
            workers[count] = _seconds(
                "book/_ext/sharding.py",
                "classification",
                *words,
                "--cores",
                str(count),
                "--out",
                f"{out}/{count}",
            )
        found = _left(out / "1") | {"plain_seconds": plain, "seconds": workers}
    found["shard_seconds"] = (workers[1] - plain) / found["shards"]
    if not small:
        found["machine"] = provenance(torch.device("cpu")) | {"processors": os.cpu_count()}
        text = json.dumps(found, indent=1, sort_keys=True)
        write_whole(project_root() / "data" / "measured" / "scaling.json", text.encode())
    note = f"{found['shard_seconds']:.1f} s for each of {found['shards']} shards on top"
    rows = [Row(f"{found['cells']} cells: 1 worker against one process", workers[1], plain, note=note)]
    for count, seconds in list(workers.items())[1:]:
        note = f"{3600 * found['cells'] / seconds:,.0f} cells an hour"
        rows.append(Row(f"{count} workers against 1", seconds, workers[1], note=note))
    return rows


def _seconds(*words: str) -> float:
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *words], cwd=project_root(), env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - start


def _left(out: Path) -> dict[str, Any]:
    """What a run in shards leaves: results, shards, files and bytes."""
    cells = [path for path in (out / "cells").glob("cell-*") if path.is_file()]
    shards = list((out / "shards").rglob("*.done"))
    return {
        "cells": sum(path.suffix == ".json" for path in cells),
        "cell_files": len(cells),
        "cell_bytes": sum(path.stat().st_size for path in cells),
        "shards": len(shards) - 1,  # one mark is that of the table
        "shard_files": sum(path.is_file() for path in (out / "shards").rglob("*")),
    }
