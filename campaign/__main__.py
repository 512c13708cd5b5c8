"""``python -m campaign [PART ...] [--short]``: try to lose a result, to get a stale one, to get past the checks."""

import argparse
import datetime
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from campaign.parts import PARTS, Difference, Effort
from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.provenance import environment
from salun_core.files import write_whole
from salun_core.paths import project_root

RECORD = Path("data/campaign.json")


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 at the first difference."""
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PART", help=", ".join(f"'{name}'" for name in PARTS))
    parser.add_argument("--short", action="store_true", help="the part that fits into continuous integration")
    parser.add_argument("--seed", type=int, help="of its random numbers; by the clock by default")
    parser.add_argument("--record", action="store_true", help=f"write what was tried to {RECORD}")
    given = parser.parse_args(words)
    try:
        names = [one_of(name, PARTS, "part") for name in given.names] or list(PARTS)
    except UserError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    seed = given.seed if given.seed is not None else time.time_ns() % 10**9
    tried: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        for name in names:
            start = time.monotonic()
            try:
                part = PARTS[name](Effort(given.short, Path(folder), random.Random(f"{seed} {name}")))
            except Difference as found:
                print(f"campaign: {name}, seed {seed}: {found}", file=sys.stderr)
                return 1
            seconds = round(time.monotonic() - start)
            tried[name] = {"counts": dict(part.counts), "seconds": seconds}
            counts = ", ".join(f"{count:,} {what}" for what, count in part.counts.items())
            print(f"{name}: {counts} ({seconds} s)", flush=True)
    if given.record:
        keep(tried, short=given.short, seed=seed)
    print("no difference")
    return 0


def keep(tried: Mapping[str, Mapping[str, object]], *, short: bool, seed: int) -> Path:
    """Write the counts of these parts into the record; other parts stay as they are."""
    path = project_root() / RECORD
    known = json.loads(path.read_text("utf8")) if path.is_file() else {}
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    how = {"date": day, "revision": environment()["revision"], "short": short, "seed": seed}
    known |= {name: {**values, **how} for name, values in tried.items()}
    return write_whole(path, (json.dumps(known, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
