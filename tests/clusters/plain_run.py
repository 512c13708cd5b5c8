"""What the checks of clusters share: a small experiment, its run without a cluster, and the comparison of the two."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
GIVEN = {
    "width": 4,
    "epochs": 1,
    "train_images": 200,
    "scenario": "random",
    "tuning_seed": "1000",
    "tuning_budget": 2,
    "noise_floor": 1,
}
NUMBERS = ["cell", "study", "method", "mask", "seed", "settings", "status", "UA", "RA", "TA", "MIA"]


def say(text: str) -> None:
    """Print a line behind the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def installed(*packages: str) -> str:
    """Install packages of Debian; why that failed, or nothing."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get here to install it"
    say(f"installing {' and '.join(packages)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-qq", *words], env=environment, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            return (
                f"apt-get {words[0]} failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}"
            )
    return ""


def given(more: dict[str, Any]) -> list[str]:
    """The experiment's parameters as words of a command."""
    return [word for name, value in (GIVEN | more).items() for word in ("-p", name, str(value))]


def run_plainly(more: dict[str, Any], out: Path, **how: Any) -> None:
    """Run the experiment without a cluster."""
    words = [sys.executable, "-m", "salun_core", "run", "classification", *given(more), "--out", str(out)]
    subprocess.run(words, check=True, capture_output=True, **how)


def on_cluster(more: dict[str, Any], out: Path, profile: Path, *further: str) -> list[str]:
    """The command behind `make run` with a profile."""
    words = [sys.executable, "book/_ext/sharding.py", "classification", *given(more), "--out", str(out)]
    return [*words, "--profile-dir", str(profile), *further]


def impatient(name: str, folder: Path, **more: Any) -> Path:
    """A profile of the project that looks at jobs more often: here they take seconds."""
    settings = yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text("utf8")) | {
        setting.replace("_", "-"): value for setting, value in more.items()
    }
    (folder / "profile").mkdir()
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(settings))
    return folder / "profile"


def differences(plain: Path, other: Path, scratch: Path) -> list[str]:
    """How the lists of cells, the tables and the cells of two results folders differ; nothing if in no bit."""
    sys.path.insert(0, str(ROOT))
    from salun_core.experiments.runs.merge import merge
    from salun_core.experiments.runs.store import RESULTS
    from salun_core.experiments.runs.table import read_table

    both = merge([plain, other], scratch / "both")  # refuses what is not the same to the last bit
    one, two = (read_table(out, "classification")[NUMBERS] for out in (plain, other))
    results = [(out / "results/classification.json").read_bytes() for out in (plain, other)]
    count = len(list((plain / "cells").glob(RESULTS)))
    found = [] if results[0] == results[1] else ["the lists of cells differ"]
    if not one.equals(two):
        found.append(f"the tables differ:\n{one.compare(two) if one.shape == two.shape else (one, two)}")
    if not both.new == both.known == count:
        found.append(f"{both.new} and {both.known} of {count} cells")
    say(f"{len(one)} rows, {count} cells, {len(found)} differences")
    return found
