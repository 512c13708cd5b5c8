"""``python -m campaign [PART ...] [--short]``: try to lose a result, to get a stale one, to get past the checks."""

import argparse
import datetime
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import salun_core
from campaign.parts import PARTS, Difference, Effort
from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.provenance import revision
from salun_core.files import read_json, write_whole
from salun_core.paths import project_root

RECORD = Path("data/campaign.json")


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, 1 at the first difference, or 2 with one sentence for what a user can put right."""
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PART", help=", ".join(f"'{name}'" for name in PARTS))
    parser.add_argument("--short", action="store_true", help="the part that fits into continuous integration")
    parser.add_argument("--seed", type=int, help="of its random numbers; by the clock by default")
    parser.add_argument(
        "--record", action="store_true", help=f"write what was tried to {RECORD}, each part when it has ended"
    )
    parser.add_argument(
        "--resume", action="store_true", help="leave out the parts that are recorded with the code of today"
    )
    given = parser.parse_args(words)
    try:
        return _run(given)
    except UserError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        said = (
            "parts that have ended are recorded, --resume leaves them out" if given.record else "interrupted"
        )
        print(f"campaign: {said}", file=sys.stderr)
        return 130


def _run(given: argparse.Namespace) -> int:
    names = [one_of(name, PARTS, "part") for name in given.names] or list(PARTS)
    if given.resume and not given.record:
        raise UserError("--resume goes on with what is recorded: add --record")
    before = code()
    if given.resume:
        names = _left(names, before, short=given.short)
    if given.record:
        refuse_short(names, short=given.short)
    seed = given.seed if given.seed is not None else time.time_ns() % 10**9
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        for name in names:
            start = time.monotonic()
            try:
                part = PARTS[name](Effort(given.short, Path(folder), random.Random(f"{seed} {name}")))
            except Difference as found:
                print(f"campaign: {name}, seed {seed}: {found}", file=sys.stderr)
                return 1
            seconds = round(time.monotonic() - start)
            counts = ", ".join(f"{count:,} {what}" for what, count in part.counts.items())
            print(f"{name}: {counts} ({seconds} s)", flush=True)
            if given.record:
                if code() != before:
                    raise UserError(
                        f"the code changed while {name} was tried, which is not recorded: run it again, and leave "
                        "the code alone"
                    )
                tried = {"counts": dict(part.counts), "seconds": seconds, "seed": seed, "code": before}
                keep(name, tried, short=given.short)
    print("no difference")
    return 0


def code() -> str:
    """Digest of every file of the package and of the campaign: with another, a part is tried again."""
    sha = hashlib.sha256()
    for top in (Path(salun_core.__file__).parent, Path(__file__).parent):
        for file in sorted(file for file in top.rglob("*") if file.suffix in (".py", ".yaml", ".json")):
            sha.update(f"{file.relative_to(top.parent).as_posix()}\n".encode())
            sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()[:16]


def recorded() -> dict[str, dict[str, Any]]:
    """What was tried, by part.

    Raises
    ------
    UserError
        If the record is damaged.
    """
    path = project_root() / RECORD
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise UserError(f"{path} is damaged: restore it from git, or delete it")
    return found


def refuse_short(names: Sequence[str], *, short: bool) -> None:
    """Refuse to put a short form in the place of a full one.

    Raises
    ------
    UserError
        If one of these parts is recorded in full.
    """
    known = recorded()
    for name in names:
        if short and name in known and not known[name].get("short"):
            raise UserError(
                f"{name} is recorded in full, and its short form would replace that: leave out --short or --record"
            )


def _left(names: Sequence[str], now: str, *, short: bool) -> list[str]:
    """The parts that are not recorded with this code, or only in short where the full form is asked for."""
    known, left = recorded(), []
    for name in names:
        part = known.get(name, {})
        if part.get("code") == now and (short or not part.get("short")):
            print(f"{name}: recorded on {part['date']} at revision {part['revision']}, left out", flush=True)
        else:
            left.append(name)
    return left


def keep(name: str, tried: Mapping[str, object], *, short: bool) -> Path:
    """Write what a part tried into the record; other parts stay as they are."""
    refuse_short([name], short=short)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    how = {"date": day, "revision": revision(), "short": short}
    parts = recorded() | {name: {**tried, **how}}
    parts = {each: parts[each] for each in [*PARTS, *parts] if each in parts}  # in the order of the campaign
    return write_whole(project_root() / RECORD, (json.dumps(parts, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
