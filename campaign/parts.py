"""The parts of the campaign. Each tries something many times and counts; a difference ends it."""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from hypothesis import HealthCheck, given, settings, strategies
from hypothesis import seed as with_seed
from PIL import Image

from campaign.small import GIVEN, Small, called, sentences
from salun_core.errors import UserError
from salun_core.experiments import EXPERIMENTS
from salun_core.experiments.runs.store import RESULTS, read_result
from salun_core.experiments.runs.table import read_table


class Difference(Exception):
    """Something was lost, stale, or let in."""


@dataclass
class Part:
    """What one part of the campaign tried.

    Parameters
    ----------
    name : str
        Key of ``PARTS``.
    counts : Counter
        What was tried, and what came of it.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)

    def same(self, run: Small, reference: str, after: str) -> None:
        """Demand the numbers of the reference."""
        self.counts["tables compared"] += 1
        if run.rows() != reference:
            raise Difference(f"{run.kind} after {after}: the table differs from that of a run left alone")

    def ended(self, result: tuple[int, str], statuses: tuple[int, ...], after: str) -> None:
        """Demand an exit status, and at most one sentence."""
        status, said = result
        found = sentences(said)
        if status not in statuses or len(found) > 1 or any(line.startswith("Traceback") for line in found):
            raise Difference(f"after {after}: status {status}, and it said: {said[-600:]}")
        self.counts[f"ended with status {status}"] += 1


@dataclass(frozen=True)
class Effort:
    """How much is tried, where, and with which random numbers."""

    short: bool
    folder: Path
    rng: random.Random

    def kinds(self) -> list[str]:
        """Kinds of runs that are tried."""
        return ["classification"] if self.short else list(GIVEN)

    def reference(self, kind: str) -> tuple[Small, str, float]:
        """A run of a kind that is left alone, its table, and the seconds it took."""
        run = Small(kind, self.folder / f"{kind}-alone")
        start = time.monotonic()
        if not (run.out / "results" / f"{kind}.json").is_file():
            status, said = run.run()
            if status:
                raise Difference(f"{kind} does not run: {said[-600:]}")
        return run, run.rows(), max(4.0, time.monotonic() - start)

    def fresh(self, kind: str, name: str, **how: Any) -> Small:
        """A run into an empty folder."""
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        return Small(kind, out, **how)


# --- bad input ----------------------------------------------------------------------------------------

PLAIN = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(strategies.characters(), max_size=12)
    | strategies.sampled_from(["nan", "inf", "-1", "0", "1e400", "1.5", "{}", "{} {x}", "../..", "[[["]),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=4) | strategies.integers(), inner, max_size=2)
    ),
    max_leaves=6,
)


def inputs(effort: Effort) -> Part:
    """Values drawn for every parameter of every experiment, and files and words of the command line."""
    part = Part("inputs")
    places = [(name, known) for name, e in EXPERIMENTS.items() for known in e.params.declared()]
    tried = settings(
        max_examples=300 if effort.short else 3000,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    @tried
    @given(place=strategies.sampled_from(places), value=PLAIN)
    def parameter(place: tuple[str, str], value: Any) -> None:
        experiment, name = place
        part.counts["values of parameters"] += 1
        try:
            EXPERIMENTS[experiment].params.load({name: value})
        except UserError as error:
            part.counts["refused in one sentence"] += 1
            if "\n" in str(error):
                raise Difference(f"{experiment}: {name} {value!r}: more than one line") from None
            return
        except Exception as error:
            raise Difference(f"{experiment}: {name} {value!r}: {type(error).__name__}: {error}") from error
        part.counts["taken"] += 1

    file = effort.folder / "drawn.yaml"

    @settings(tried, max_examples=30 if effort.short else 300)
    @given(
        content=strategies.binary(max_size=60) | PLAIN.map(lambda v: json.dumps(v).encode(errors="replace"))
    )
    def files(content: bytes) -> None:
        file.write_bytes(content)
        part.counts["files of parameters"] += 1
        words = ["run", "classification", "-f", str(file), "-p", "preset", "none such"]
        part.ended(called(words), (2,), f"the file {content!r}")

    for draw in (parameter, files):
        with_seed(effort.rng.getrandbits(64))(draw)()
    return part


# --- kills --------------------------------------------------------------------------------------------


def kills(effort: Effort) -> Part:
    """Runs that are killed or interrupted at random moments and started again, alone and in shards."""
    part = Part("kills")
    for kind in effort.kinds():
        _, reference, seconds = effort.reference(kind)
        run = effort.fresh(kind, f"{kind}-killed")
        for _ in range(3 if effort.short else 12):
            part.counts["runs killed or interrupted"] += _stopped(effort, run.start(), seconds)
            _check_whole(part, run.cells)
        part.ended(run.run(), (0,), "kills")
        part.same(run, reference, "kills")
    if not effort.short:
        _shards(effort, part)
    return part


def _stopped(effort: Effort, process: Any, seconds: float) -> int:
    """Stop a process at a random moment; 0 if it had ended before."""
    try:
        process.wait(timeout=effort.rng.uniform(0.4, 1.0) * seconds)
    except Exception:  # it runs: as it should
        how = signal.SIGINT if effort.rng.random() < 0.25 else signal.SIGKILL
        process.send_signal(how)
        said = process.communicate()[1]
        if how == signal.SIGINT and "Traceback" in said and "salun_core" in said.partition("Traceback")[0]:
            raise Difference(f"an interrupted run showed a traceback: {said[-600:]}") from None
        return 1
    process.communicate()
    return 0


def _check_whole(part: Part, cells: Path) -> None:
    for path in cells.glob(RESULTS):
        part.counts["results looked at after a kill"] += 1
        if read_result(path) is None:
            raise Difference(f"{path.name} is there and not whole after a kill")


def _shards(effort: Effort, part: Part) -> None:
    """Every shard of a plan killed once and run again, then gathered."""
    _, reference, seconds = effort.reference("classification")
    run = effort.fresh("classification", "sharded")
    part.ended(run.run(["plan", *run.words[1:], "--write", "all"]), (0,), "planning")
    plan = run.out / "shards/all/plan.json"
    for name in yaml.safe_load(plan.read_text())["shards"]:
        words = ["shard", str(plan), name]
        part.counts["shards killed"] += _stopped(effort, run.start(words), seconds)
        part.ended(run.run(words), (0,), f"a kill of the shard {name}")
    part.ended(run.run(["shard", str(plan)]), (0,), "gathering")
    part.same(run, reference, "kills of every shard")


# --- several processes --------------------------------------------------------------------------------


def together(effort: Effort) -> Part:
    """Two and four processes that run the same into one folder."""
    part = Part("together")
    for kind in effort.kinds():
        _, reference, _ = effort.reference(kind)
        for count in (2,) if effort.short else (2, 4):
            run = effort.fresh(kind, f"{kind}-together")
            processes = [run.start() for _ in range(count)]
            for process in processes:
                said = process.communicate()[1]
                part.ended((process.returncode, said), (0,), f"{count} processes at once")
            part.counts["processes side by side"] += count
            part.same(run, reference, f"{count} processes at once")
    return part


# --- damage -------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut short": lambda text, rng: text[: rng.randrange(len(text) + 1)],
    "empty": lambda text, rng: b"",
    "one byte changed": lambda text, rng: _flipped(text, rng),
    "random bytes": lambda text, rng: rng.randbytes(len(text)),
    "not a number": lambda text, rng: text.replace(b": 0", b": NaN", 1),
    "nested without end": lambda text, rng: b"[" * 100_000,
    "5,000 digits": lambda text, rng: text.replace(b": 0", b": " + b"9" * 5000, 1),
    "half a character": lambda text, rng: text.replace(b'"', b'"\\ud800', 1),
    "of another form": lambda text, rng: rng.choice(
        [b"{}", b"[]", b"null", b"3", b'{"rows": 1, "params": {}}']
    ),
}


def _flipped(text: bytes, rng: random.Random) -> bytes:
    if not text:
        return b"x"
    place = rng.randrange(len(text))
    return text[:place] + bytes([text[place] ^ (1 << rng.randrange(8))]) + text[place + 1 :]


def damage(effort: Effort) -> Part:
    """Files of a finished run that are damaged, deleted, or another's, before it is run again."""
    part = Part("damage")
    for kind in effort.kinds():
        alone, reference, _ = effort.reference(kind)
        run = effort.fresh(kind, f"{kind}-damaged")
        shutil.copytree(alone.out, run.out)
        rounds = 2 if effort.short else 6 if kind == "classification" else 1
        for what in [*DAMAGES, "deleted", "another's"] * rounds:
            files = sorted(f for f in run.out.rglob("*") if f.is_file() and ".locks" not in f.parts)
            file = effort.rng.choice(files)
            if what == "deleted":
                file.unlink()
            elif what == "another's":
                file.write_bytes(effort.rng.choice(files).read_bytes())
            else:
                file.write_bytes(DAMAGES[what](file.read_bytes(), effort.rng))
            part.counts["files damaged"] += 1
            after = f"{file.relative_to(run.out)} was {what}"
            part.ended(run.inside(), (0,), after)
            part.same(run, reference, after)
    return part


# --- edits --------------------------------------------------------------------------------------------

EDITS = {
    # An edited file of the package, and the methods whose cells are computed again; None for all.
    "methods/any_task/ft.py": {"ft"},
    "experiments/runs/lab.py": None,
    "saliency.py": None,
    "models/build.py": None,
    "metrics/classification/mia.py": set(),
    "pages/tables/table.py": set(),
}


def edits(effort: Effort) -> Part:
    """Edits of code and of images between two runs."""
    part = Part("edits")
    code = effort.folder / "code"
    here = Small("classification", code).code
    shutil.copytree(here / "salun_core", code / "salun_core", ignore=shutil.ignore_patterns("__pycache__"))
    run = effort.fresh("classification", "edited", code=code)
    part.ended(run.run(), (0,), "nothing")
    reference, seen = run.rows(), _computed(run)
    for name in list(EDITS)[:1] if effort.short else EDITS:
        file = code / "salun_core" / name
        original = file.read_text("utf8")
        for addition, expected in (("\n# a comment\n", set()), ("\nEDITED = 1\n", EDITS[name])):
            file.write_text(original + addition)
            part.ended(run.run(), (0,), f"an edit of {name}")
            part.counts["edits of code"] += 1
            now = _computed(run)
            anew = {method for method in now if now[method] != seen[method]}
            if anew != (set(now) if expected is None else expected):
                raise Difference(f"{name} + {addition!r}: computed anew: {sorted(anew)}")
            part.same(run, reference, f"an edit of {name} that changes no number")
            seen = now
        file.write_text(original)
        if EDITS[name] != set():
            part.ended(run.run(), (0,), "undoing an edit")
            seen = _computed(run)
    _images(effort, part)
    return part


def _computed(run: Small) -> dict[str, int]:
    """When the cell of each method was written."""
    found = {}
    for path in run.cells.glob(RESULTS):
        result = read_result(path)
        if result is not None and result.key.kind == "cell":
            found[result.key.what["method"]] = path.stat().st_mtime_ns
    return found


def _images(effort: Effort, part: Part) -> None:
    """One pixel, one file, one name changed: the numbers are those of a run that never saw the old ones."""
    top = effort.folder / "images"
    for k, name in enumerate(("bee", "cat", "dog")):
        for split, count in (("train", 24), ("test", 8)):
            for i in range(count):
                place = top / split / name / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                noise = effort.rng.randbytes(64)
                Image.frombytes("L", (8, 8), bytes((b // 2 + 60 * k) % 256 for b in noise)).save(place)

    def changed_pixel() -> None:
        Image.new("L", (8, 8), 200).save(top / "train/bee/3.png")

    def renamed() -> None:
        for split in ("train", "test"):
            (top / split / "cat").rename(top / split / "ant")

    def fewer() -> None:
        (top / "train/dog/5.png").unlink()

    class_wise = ("-p", "scenario", "class", "-p", "forget_class", "dog")
    more = (
        "-p",
        "dataset",
        "imagefolder",
        "-p",
        "data_dir",
        str(top),
        "-p",
        "train_images",
        "60",
        *class_wise,
    )
    run = effort.fresh("classification", "own-images", more=more)
    part.ended(run.inside(), (0,), "nothing")
    before = run.rows()
    for change in (changed_pixel, renamed, fewer):
        change()
        part.counts["edits of images"] += 1
        part.ended(run.inside(), (0,), change.__name__)
        fresh = effort.fresh("classification", "own-images-fresh", more=more)
        part.ended(fresh.inside(), (0,), change.__name__)
        part.same(run, fresh.rows(), change.__name__)
        if run.rows() == before:
            raise Difference(f"after {change.__name__}: the old table came back")
        before = run.rows()


# --- a disk that is full ------------------------------------------------------------------------------


def full_disk(effort: Effort) -> Part:
    """Writes that the system refuses, one after the other; then the same command with room."""
    part = Part("full disk")
    _, reference, _ = effort.reference("classification")
    run = effort.fresh("classification", "full")
    real, sizes = os.fsync, [0, 1, 2, 3, 5] if effort.short else list(range(12))
    for room in sizes:
        left = [room]

        def fsync(file: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            real(file)

        with mock.patch("os.fsync", fsync):
            part.ended(run.inside(), (0, 2), f"a disk full after {room} files")
        part.counts["runs on a full disk (simulated)"] += 1
        if strays := list(run.out.rglob(".part-*")):
            raise Difference(f"a write that failed left {strays[0].name}")
    if not effort.short:
        for limit in (500, 5_000, 50_000):

            def small(limit: int = limit) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            part.ended(run.run(preexec_fn=small), (0, 2), f"files of at most {limit} bytes")
            part.counts["runs whose files the system kept small"] += 1
    part.ended(run.inside(), (0,), "a full disk")
    part.same(run, reference, "a full disk")
    return part


# --- other numbers of threads -------------------------------------------------------------------------

METRICS = ["UA", "RA", "TA", "MIA"]


def threads(effort: Effort) -> Part:
    """How far two and four threads move the numbers, beside what retraining moves them; a measurement, and no trial."""
    part, found = Part("threads"), {}
    for count in (1, 2, 4):
        more = ("-p", "threads", str(count), "-p", "noise_floor", "3", "-p", "epochs", "8")
        run = effort.fresh("classification", f"{count}-threads", more=more)
        part.ended(run.inside(), (0,), f"{count} threads")
        found[count] = read_table(run.out, run.kind)
    alone = found[1]
    for count in (2, 4):
        apart = (found[count][METRICS].astype(float) - alone[METRICS].astype(float)).abs().max(axis=1)
        part.counts[f"of {len(alone)} rows differ with {count} threads"] = int((apart > 0).sum())
        part.counts[f"thousandths is the largest difference with {count} threads"] = round(1000 * apart.max())
    retrained = alone.loc[alone["method"] == "retrain", METRICS].astype(float)
    spread = (retrained.max() - retrained.min()).max()
    part.counts["thousandths apart are retrained models"] = round(1000 * spread)
    return part


PARTS: dict[str, Callable[[Effort], Part]] = {
    "inputs": inputs,
    "damage": damage,
    "full disk": full_disk,
    "kills": kills,
    "together": together,
    "edits": edits,
    "threads": threads,
}
