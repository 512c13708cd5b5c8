"""Runs in shards: `make run` plans an experiment, lets Snakemake compute it here or on a cluster, and shows how far it is.

Snakemake decides what is computed when and where (the Snakefile; folders in ``profiles`` for clusters). This module
writes the plan that the Snakefile reads, and turns the states of all shards into one line.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from execution import (
    NOTEBOOK,
    PROFILES,
    ROOT,
    Bars,
    build,
    experiment_of,
    notebooks,
    parameters,
    say,
    snakemake,
)
from tqdm import tqdm

LOOK = 1.0  # seconds between two looks at the states
SHOWN = 10  # failures that are listed at the end


def planned(
    experiment: str, words: Sequence[str], *, name: str, gpus: int | None, meant: bool = False
) -> Path | None:
    """Write the plan of an experiment; None where that was refused, after one sentence on stderr."""
    command = [sys.executable, "-m", "salun_core", "plan", experiment, *words, "--write", name]
    command += [] if gpus is None else ["--gpus", str(gpus)]
    command += ["--yes"] if meant else []
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return ROOT / done.stdout.strip().splitlines()[-1] if done.returncode == 0 else None


def resources(plan: dict[str, Any], cores: str, profile_dir: str) -> tuple[list[str], dict[str, str]]:
    """Snakemake's options for this machine, or for a cluster, and the environment that its jobs get."""
    if profile_dir:
        return ["--profile", profile_dir], {}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = [g for g in gpus if g.strip()] or [str(g) for g in plan["gpus"]]
    return ["--cores", cores, "--resources", f"gpu={max(len(gpus), 1)}", f"mem_mb={memory()}"], (
        {"SALUN_GPUS": ",".join(gpus)} if plan["gpus"] else {}
    )


def volume(profile_dir: str) -> Path | None:
    """Where a profile keeps its files, if its cluster shares no others with this machine."""
    if not profile_dir:
        return None
    file = ROOT / profile_dir / "config.yaml"
    settings = yaml.safe_load(file.read_text("utf8")) if file.is_file() else {}
    found = settings.get("default-storage-prefix")
    return Path(found) if found else None


def memory() -> int:
    """Memory of this machine in MB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6


class Progress:
    """How far all shards of a run are.

    Parameters
    ----------
    folder : Path
        Where the plan and the states lie.
    plan : dict
        The plan.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan
        self.begun = time.time()

    def states(self) -> dict[str, dict[str, Any]]:
        """States by shard: of those that are finished, and of those that have begun since this run was started."""
        found = {}
        for name, shard in self.plan["shards"].items():
            path = self.folder / f"{name}.json"
            with contextlib.suppress(OSError, ValueError):
                if shard["finished"] or path.stat().st_mtime >= self.begun - 1:
                    found[name] = json.loads(path.read_text("utf8"))
        return found

    def counts(self) -> tuple[int, int, list[dict[str, str]]]:
        """Results that are there, all results, and what failed."""
        states = self.states()
        total = sum(states.get(n, {}).get("total", s["cells"]) for n, s in self.plan["shards"].items())
        failed = [failure for state in states.values() for failure in state["failed"]]
        return sum(state["done"] for state in states.values()), total, failed

    def watch(self, child: "subprocess.Popen[Any]", title: str) -> int:
        """Show one line until Snakemake ends; its exit status."""
        done, total, _ = self.counts()
        target: Any = Bars(sys.stderr)
        with tqdm(desc=title, unit="cell", total=total, initial=done, file=target, smoothing=0.1) as bar:
            while True:
                status = _wait(child)
                done, bar.total, failed = self.counts()
                bar.update(done - bar.n)
                if failed:
                    last = failed[-1]
                    bar.set_postfix_str(f"{len(failed)} failed, {last['what']}: {last['why']}", refresh=False)
                bar.refresh()
                if status is not None:
                    return status

    def report(self, again: str) -> None:
        """Say what failed, why, and how to repeat it."""
        _, _, failed = self.counts()
        for why, count in list(Counter(f"{f['what']}: {f['why']}" for f in failed).items())[:SHOWN]:
            say(f"  {why}" + (f" ({count} times)" if count > 1 else ""))
        if len(failed) > SHOWN:
            say(f"  and {len(failed) - SHOWN} more, in {self.folder}/*/*.json")
        states = self.states()
        broken = [name for name, state in states.items() if not state["ended"]]
        for name in broken[:SHOWN]:
            say(f"  {name} ended before it was done: {_last_line(self.folder / f'{name}.log')}")
        if not failed and not broken:
            say(f"  {_last_line(self.folder / 'gather.log') or _last_line(self.folder / 'snakemake.log')}")
            say(f"  more of it in {self.folder / 'snakemake.log'}")
        say(f"All that was finished is kept. This computes what is missing, and nothing else:\n  {again}")


def _wait(child: "subprocess.Popen[Any]") -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        return child.wait(LOOK)
    return None


def _last_line(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text("utf8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1] if lines else ""


def run(given: argparse.Namespace) -> int:
    """Plan, compute, gather and print; 0 only if the table is whole."""
    shared = volume(given.profile_dir)
    if shared and not (given.out and given.out.absolute().is_relative_to(shared)):
        say(
            f"{given.profile_dir} reaches only what lies on its volume: name a folder there, like OUT={shared}/runs"
        )
        return 2
    words = ["-p", "preset", given.preset]
    for pair in given.parameter:
        words += ["-p", *pair]
    words += ["--out", str(given.out)] if given.out else []
    file = planned(
        given.experiment,
        words,
        name=f"{given.experiment}-{Path(given.preset).stem}",
        gpus=given.gpus,
        meant=given.yes,
    )
    if file is None:
        return 2
    folder, plan = file.parent, json.loads(file.read_text("utf8"))
    run_folder = os.path.relpath(folder, shared or ROOT)
    options, extra = resources(plan, given.cores, given.profile_dir)
    settings = [f"plans={json.dumps([f'{run_folder}/plan.json'])}"]
    settings += [] if given.profile_dir else [f"memory={memory()}"]
    settings += [f"shared={shared}"] if shared else []
    progress = Progress(folder, plan)
    try:
        with (
            (folder / "snakemake.log").open("w") as log,
            snakemake(
                f"{run_folder}/gathered.done",
                "--quiet",
                "progress",
                "rules",
                "reason",
                "host",
                *options,
                "--config",
                *settings,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | extra,
            ) as child,
        ):
            signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            status = progress.watch(child, given.experiment)
    except BlockingIOError:
        return 3
    _, _, failed = progress.counts()
    if status or failed:
        say(f"{given.experiment}: {len(failed)} results could not be computed")
        progress.report(given.again)
        return 1
    out = ["--out", str(given.out)] if given.out else []
    return subprocess.run(
        [sys.executable, "-m", "salun_core", "results", given.experiment, *out], cwd=ROOT
    ).returncode


def book(given: argparse.Namespace) -> int:
    """Compute what the notebooks show in shards on a cluster, then execute them and build the book."""
    if shared := volume(given.profile_dir):
        say(
            f"the book lies in this folder and {given.profile_dir} reaches only {shared}: compute the experiments there with "
            "`make run`, or the book without a profile"
        )
        return 2
    files = []
    for name in notebooks():
        if (experiment := experiment_of(ROOT / "notebooks" / f"{name}.ipynb")) is None:
            continue
        values = parameters(name, given.book)
        values.pop("out_dir", None)
        words = [word for key, value in values.items() for word in ("-p", key, json.dumps(value))]
        words += ["--out", str(PROFILES[given.book])]
        file = planned(experiment, words, name=f"{NOTEBOOK}{name}", gpus=given.gpus)
        if file is None:
            return 2
        files.append(os.path.relpath(file, ROOT))
    where = ["--profile", given.profile_dir] if given.profile_dir else ["--cores", given.cores]
    return build(given.book, *where, "--config", f"plans={json.dumps(files)}")


def main(words: list[str] | None = None) -> int:
    """Command line of ``make run``."""
    parser = argparse.ArgumentParser(description="Run an experiment in shards, here or on a cluster.")
    parser.add_argument("experiment", nargs="?", default="classification")
    parser.add_argument("--book", choices=PROFILES, help="the experiments of all notebooks, then the book")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--out", type=Path, help="output folder (default data/runs)")
    parser.add_argument("--cores", default="all", help="processors of this machine to use (default all)")
    parser.add_argument("--gpus", type=int, help="accelerators of a shard; by default 1 where there is one")
    parser.add_argument(
        "--yes", action="store_true", help="run a grid of very many cells; with make, ARGS=--yes"
    )
    parser.add_argument("--profile-dir", default="", help="folder of a Snakemake profile, for a cluster")
    given = parser.parse_args(words)
    given.again = os.environ.get("SALUN_AGAIN") or " ".join([sys.executable, *sys.argv])
    return book(given) if given.book else run(given)


if __name__ == "__main__":
    sys.exit(main())
