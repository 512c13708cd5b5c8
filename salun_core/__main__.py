"""Command line: ``python -m salun_core``."""

import os
import signal


def _leave(*_: object) -> None:
    os.write(2, b"salun_core: interrupted; what is finished is kept\n")
    os._exit(130)


if __name__ == "__main__":  # Ctrl+C while the modules below are read
    signal.signal(signal.SIGINT, _leave)

import argparse
import contextlib
import io
import json
import math
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import yaml

from salun_core.errors import UserError, lacks_memory, one_line, one_of
from salun_core.escaping import terminal_text
from salun_core.plugins import Failed, blaming

FINISHED = "what is finished is kept"  # which may be nothing
CONTINUED = "finished cells are kept, the same command goes on"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0, 1 where a check fails, 2 with one sentence on stderr for what a user can put right, 130 after Ctrl+C, and 70 for
    an error that nobody expected: then one sentence says where the traceback is and what to do with it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know all characters of names and tables
            stream.reconfigure(errors="backslashreplace")
    given = parser().parse_args(words)
    with _noting_interrupts() as pressed:
        return _done(given, pressed)


def _done(given: argparse.Namespace, pressed: Sequence[int]) -> int:
    try:
        status = given.do(given)
        sys.stdout.flush()
        return status or 0
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _ended(130, f"interrupted; {given.kept}")
    except Failed as error:
        return _ended(2, f"{error} (traceback in {traced(error)})")
    except UserError as error:
        return _ended(2, str(error))
    except Exception as error:
        if pressed:  # libraries that are being imported turn Ctrl+C into errors of their own
            return _ended(130, f"interrupted; {given.kept}")
        said = expected(error)
        return _ended(2, said) if said else _ended(70, reported(error))


@contextlib.contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Signals of Ctrl+C that came meanwhile; each is raised as ever. Where they are ignored, they still are."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    usual = before in (signal.default_int_handler, _leave)
    if not usual or threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def note(number: int, _: Any) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _ended(status: int, text: str) -> int:
    print(f"salun_core: {one_line(text)}", file=sys.stderr)
    return status


def expected(error: Exception) -> str:
    """What a person can do about an error that a library or the system raises; empty for any other."""
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name or "")):
        return f"this needs {error.name}, which is not installed: pip install 'salun-companion[{extra}]'"
    if lacks_memory(error):
        return (
            "there is not enough memory: take smaller images, batches or networks (finished cells are kept)"
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    return ""


def traced(error: Exception) -> Path:
    """Write the traceback of an error to a file, with what it takes to look for its cause."""
    import tempfile
    import traceback

    from salun_core.files import write_whole
    from salun_core.paths import output_folder

    text = "".join(traceback.format_exception(error))
    text += f"\ncommand: {shlex.join(sys.argv)}\n"
    try:
        from salun_core.experiments.runs.provenance import environment

        text += yaml.safe_dump(environment(), sort_keys=False)
    except Exception as second:  # what went wrong may be the import of torch
        text += f"environment: unknown ({type(second).__name__}: {second})\n"
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    content = text.encode(errors="backslashreplace")
    try:
        return write_whole(output_folder(None) / "errors" / name, content)
    except UserError:  # a read-only or full disk may be what went wrong
        return write_whole(Path(tempfile.gettempdir()) / name, content)


def reported(error: Exception) -> str:
    """Write the traceback of an error that nobody expected to a file, and say what to do with it."""
    log = traced(error)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"this should not happen: {what[:200]} (traceback in {log}; please report it with that file among the issues "
        "of the project; finished cells are kept)"
    )


def _extra_of(module: str) -> str | None:
    """The extra of the installed package that brings a module."""
    package = module.partition(".")[0].replace("_", "-")
    try:
        required = requires("salun-companion") or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
    for text in required:
        if re.match(rf"{re.escape(package)}\b(?!-)", text) and (
            extra := re.search("extra == [\"']([a-z]+)", text)
        ):
            return extra[1]
    return None


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of the file or folder is empty: give one, or leave it out")
    return Path(text)


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment")
    command.add_argument(
        "preset", nargs="?", help="preset that gives what is not given otherwise (default: quick)"
    )
    command.add_argument(
        "-f", "--file", type=_path, action="append", default=[], help="YAML file of parameters"
    )
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command.add_argument("--out", type=_path, help="output folder (default data/runs)")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(
        prog="python -m salun_core",
        description="Run the experiments of the SalUn companion, and read their results.",
    )
    top.set_defaults(kept=FINISHED)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run or resume an experiment")
    _add_parameters(run)
    run.add_argument("--yes", action="store_true", help="run a grid of very many cells")
    run.set_defaults(do=_run, kept=CONTINUED)

    planning = commands.add_parser(
        "plan", help="what a run needs in memory, disk and time, and whether this machine has it"
    )
    _add_parameters(planning)
    planning.add_argument(
        "--tflops", type=float, default=30.0, help="speed, sustained, that hours are printed for"
    )
    planning.add_argument(
        "--shards", action="store_true", help="print the shards instead, and what to ask a cluster for"
    )
    planning.add_argument(
        "--gpus", type=int, help="accelerators of a shard; by default 1 where it will use one"
    )
    planning.add_argument("--write", metavar="NAME", help="write shards/NAME/plan.json in the output folder")
    planning.add_argument("--yes", action="store_true", help="write the shards of a grid of very many cells")
    planning.set_defaults(do=_plan)

    shard = commands.add_parser("shard", help="compute one shard of a plan, or with no name list all results")
    shard.add_argument("plan", type=_path, help="plan.json, as `plan --write` wrote it")
    shard.add_argument("name", nargs="?", help="such as cells/random-10-seed-0")
    shard.set_defaults(do=_shard, kept=CONTINUED)

    merging = commands.add_parser("merge", help="bring the results of several output folders together")
    merging.add_argument("folders", nargs="+", type=_path, metavar="FOLDER")
    merging.add_argument("--into", type=_path, required=True, help="output folder; may hold results already")
    merging.set_defaults(do=_merge, kept="what is merged is kept, the same command goes on")

    record = commands.add_parser("record", help="run or resume a preset into data/recorded, to be committed")
    record.add_argument("experiment")
    record.add_argument("preset")
    record.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    record.add_argument("--yes", action="store_true", help="run a grid of very many cells")
    record.set_defaults(do=_record, file=[], out=None, kept=CONTINUED)

    manifest = commands.add_parser(
        "manifest", help="write the digests of all recorded runs to data/recorded/MANIFEST, or compare them"
    )
    manifest.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    manifest.set_defaults(do=_manifest)

    listing = commands.add_parser("list", help="experiments, methods, data sets, models, metrics")
    listing.set_defaults(do=_list)

    tiny = commands.add_parser("train-tiny-sd", help="train the small text-to-image pipeline from scratch")
    tiny.add_argument("--out", type=_path, help="folder for it (default data/models/tiny-sd)")
    tiny.add_argument("--seed", type=int, default=0)
    tiny.add_argument("--threads", type=int, default=1, help="1 by default, for the same weights everywhere")
    tiny.set_defaults(
        do=_train_tiny_sd, kept="the same command goes on from the last checkpoint, one every two minutes"
    )

    fetching = commands.add_parser("fetch", help="fetch published weights and prompts, with checksums")
    fetching.add_argument(
        "names", nargs="*", metavar="NAME", help="inception, resnet50, clip, i2p; all by default"
    )
    fetching.add_argument(
        "--list", action="store_true", help="only say what there is, from where, and what is here"
    )
    fetching.set_defaults(do=_fetch, kept="what is fetched is kept, the same command goes on")

    check = commands.add_parser("check", help="whether a data set and a model of your own fit")
    check.add_argument("--dataset", required=True, help="a data set's name, or package.module:function")
    check.add_argument("--data-dir", help="where its files are")
    check.add_argument("--image-size", type=int, help="resize images to this many pixels")
    check.add_argument("--arch", required=True, help="resnet18, torchvision:NAME, package.module:function, …")
    check.add_argument("--width", type=int)
    check.add_argument("--keep", type=float, default=0.5, help="density of the mask")
    check.set_defaults(do=_check)

    contract = commands.add_parser(
        "check-method", help="whether a method of your own keeps what every method promises"
    )
    contract.add_argument(
        "method", help="package.module:NAME of a Method, or of a function; or a method's name"
    )
    contract.add_argument("-s", "--setting", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    contract.add_argument("--kind", action="append", help="kind of task; all that it works on by default")
    contract.add_argument("--without-mask", action="store_true", help="the method takes no mask")
    contract.set_defaults(do=_check_method)

    rehearse = commands.add_parser(
        "rehearse", help="run presets made for a GPU in small, here, and print what they need in full"
    )
    rehearse.add_argument("names", nargs="*", metavar="NAME", help="experiments or presets; all by default")
    rehearse.add_argument(
        "--tflops", type=float, default=30.0, help="speed, sustained, that hours are printed for"
    )
    rehearse.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 4),
        help="presets run at a time, one thread each",
    )
    rehearse.set_defaults(do=_rehearse)

    sharing = commands.add_parser(
        "export", help="a cell as files to share: weights, mask, metrics, a model card"
    )
    sharing.add_argument(
        "cell", help="its name, from the column cell of `results`; the first letters are enough"
    )
    sharing.add_argument("folder", type=_path, help="written to")
    sharing.add_argument("--changed", action="store_true", help="only what changed in the weights")
    sharing.add_argument("--data-dir", type=_path, help="where the data of the run are")
    sharing.add_argument("--out", type=_path, help="output folder of the run (default data/runs)")
    sharing.set_defaults(
        do=_export, kept="the files may not belong together: the same command writes all anew"
    )

    adding = commands.add_parser("add", help="add results made elsewhere, to be shown as contributed")
    adding.add_argument("file", nargs="?", type=_path, help="CSV, a row for each model")
    adding.add_argument("--check", action="store_true", help="only say whether it is right")
    adding.add_argument("--schema", action="store_true", help="print what a row holds, as JSON Schema")
    adding.set_defaults(do=_add)

    results = commands.add_parser("results", help="print the results of an experiment's last run")
    results.add_argument("experiment")
    results.add_argument("--format", choices=("table", "csv", "json", "latex", "parquet"), default="table")
    results.add_argument(
        "--to", type=_path, metavar="FILE", help="write there and print nothing; for parquet"
    )
    results.add_argument("--out", type=_path, help="output folder of the run (default data/runs)")
    results.add_argument(
        "--metric",
        action="append",
        default=[],
        help="one more column: package.module:NAME, or an installed metric",
    )
    results.set_defaults(do=_results)
    return top


def _parameters(given: argparse.Namespace) -> dict[str, Any]:
    from salun_core.experiments import EXPERIMENTS
    from salun_core.experiments.runs.plain_values import read_yaml

    values: dict[str, Any] = {}
    params = EXPERIMENTS[one_of(given.experiment, EXPERIMENTS, "experiment")].params
    for path in given.file:
        found = read_yaml(path)  # null is the default, as in the cells of notebooks
        two = {name: found[name] for name in params.may_be_blank() if name in found}
        values |= found | _all_given(two, f"{path}: parameter", params.may_be_none())
    values |= {} if given.preset is None else {"preset": given.preset}
    values |= _read_values(given.parameter, "parameter", params.may_be_none())
    if given.preset is not None and str(values["preset"]) != given.preset:
        raise UserError(
            f"two presets are given, {given.preset!r} and {values['preset']!r}: leave one of them out"
        )
    if given.out is not None:
        values["out_dir"] = given.out
    return values


def _all_given(values: dict[str, Any], what: str, may_be_none: Sequence[str] = ()) -> dict[str, Any]:
    """The values, none of which is null: beside a preset, that could mean the preset's value as well as none."""
    for name, value in values.items():
        if value is None:
            none = ", or the word none for no value" if name in may_be_none else ""
            raise UserError(
                f"{what} {name} is given without a value: give one{none}, or leave it out to take the default"
            )
    return values


def _read_values(
    pairs: Sequence[tuple[str, str]], what: str, may_be_none: Sequence[str] = ()
) -> dict[str, Any]:
    from salun_core.experiments.runs.plain_values import parse_yaml

    values = {}
    for name, text in pairs:
        try:
            values[name] = parse_yaml(text) if text else ""  # blank text means something for some
        except yaml.YAMLError:
            values[name] = text
    return _all_given(values, what, may_be_none)


def _run(given: argparse.Namespace) -> None:
    from salun_core.experiments.runs.manifest import kept_true
    from salun_core.experiments.runs.table import printed

    experiment, params = _chosen(given.experiment, _parameters(given), meant=given.yes)
    with kept_true(params.machine.folder):
        results = experiment.run(params)
    print(printed(results.cells, "table"))


def _chosen(name: str, values: dict[str, Any], *, meant: bool, here: bool = True) -> tuple[Any, Any]:
    """Experiment and parameters; refused are grids of very many cells, unless meant, and what cannot fit ``here``."""
    from salun_core.experiments import EXPERIMENTS
    from salun_core.experiments.rehearsal import plan

    experiment = EXPERIMENTS[one_of(name, EXPERIMENTS, "experiment")]
    params = experiment.params.load(values)
    plan.check_run(params, meant=meant, here=here)
    return experiment, params


def _plan(given: argparse.Namespace) -> None:
    if given.gpus is not None and given.gpus < 0:
        raise UserError(f"--gpus must be 0 or more, got {given.gpus}: it is the number a shard asks for")
    if given.shards or given.write is not None:
        _plan_shards(given)
        return
    if given.gpus is not None:
        raise UserError(
            f"--gpus {given.gpus} is of a shard, and no shards are planned: add --shards, or leave it out"
        )
    from salun_core.data.downloads import missing
    from salun_core.experiments import EXPERIMENTS
    from salun_core.experiments.rehearsal import plan

    _check_tflops(given.tflops)
    experiment = EXPERIMENTS[one_of(given.experiment, EXPERIMENTS, "experiment")]
    values = _parameters(given)
    preset = experiment.params.read_preset(str(values.get("preset", "quick")))
    assumed = "" if {**preset, **values}.get("data_dir") else plan.assumed({**preset, **values})
    params = experiment.params.load(values | ({"data_dir": Path()} if assumed else {}))
    need = plan.needs(params, assumed)
    have = plan.machine(params.machine.folder, params.machine.device)
    print(plan.printed(need, have, tflops=given.tflops, downloads=missing(params.downloads)), flush=True)
    plan.check(need, have)


def _check_tflops(speed: float) -> None:
    if not 0 < speed < math.inf:
        raise UserError(
            f"tflops must be positive and finite, got {speed:g}: 30 is a fast GPU in half precision"
        )


def _plan_shards(given: argparse.Namespace) -> None:
    import torch

    from salun_core.experiments.runs.shards import plan
    from salun_core.files import write_whole
    from salun_core.paths import output_folder

    if given.write is not None and not re.fullmatch(r"\w[\w.-]*", given.write):
        raise UserError(f"--write {given.write!r} is not a valid name: use letters, digits, dots and dashes")
    values = _parameters(given)
    grid = _grid(given.experiment, values, meant=given.yes, here=False)  # others may compute it
    here = grid.lab.device.type == "cuda"
    folder = output_folder(given.out) / "shards" / (given.write or given.experiment)
    shards = plan(grid, folder, gpus=int(here) if given.gpus is None else given.gpus)
    if not given.write:
        print(f"{'shard':<44} {'cells':>6} {'gpu':>4} {'mem_mb':>8} {'runtime':>8}")
        for name, shard in shards.items():
            minutes = f"{shard['runtime']}" if shard["measured"] else f"<{shard['runtime']}?"
            print(f"{name:<44} {shard['cells']:>6} {shard['gpu']:>4} {shard['mem_mb']:>8} {minutes:>8}")
        return
    (folder / "gathered.done").unlink(missing_ok=True)
    record = {
        "experiment": given.experiment,
        "given": {name: str(v) if isinstance(v, Path) else v for name, v in values.items()},
        "threads": grid.params.machine.threads,
        "gpus": list(range(torch.cuda.device_count())) if here else [],
        "shards": shards,
    }
    print(write_whole(folder / "plan.json", json.dumps(record, indent=1).encode()))


def _shard(given: argparse.Namespace) -> int:
    from salun_core.experiments.runs.manifest import kept_true
    from salun_core.experiments.runs.shards import gather, own_gpu, read_plan, run_shard, shards

    experiment, values = read_plan(given.plan)
    if given.name is None:
        grid = _grid(experiment, values, meant=True, here=False)
        with kept_true(grid.params.machine.folder):
            gather(grid)
        return 0
    with own_gpu():
        grid = _grid(experiment, values, meant=True)  # or it would not have been planned
        shard = shards(grid)[one_of(given.name, shards(grid), "shard")]
        state = run_shard(grid, shard, given.plan.parent / f"{given.name}.json")
    for failure in state.failed:
        print(one_line(f"{failure['what']}: {failure['why']}"), file=sys.stderr)
    return 0  # what failed is in the state: other shards need not wait for it


def _merge(given: argparse.Namespace) -> None:
    from salun_core.experiments import EXPERIMENTS
    from salun_core.experiments.runs.manifest import kept_true
    from salun_core.experiments.runs.merge import merge

    with kept_true(given.into):
        done = merge(given.folders, given.into, experiments=EXPERIMENTS)
    print(f"{given.into}: {done.new} results merged, {done.known} were already there or came twice")
    for name in done.unlisted:
        said = f"results of {name} differ between the folders: run {name} into {given.into} to make its table"
        print(one_line(said))
    for path in done.left:
        print(one_line(f"{path} is left there: it is named like no experiment"))


def _grid(name: str, values: dict[str, Any], *, meant: bool, here: bool = True) -> Any:
    experiment, params = _chosen(name, values, meant=meant, here=here)
    return experiment.grid(params, params.lab())


def _record(given: argparse.Namespace) -> None:
    from salun_core.paths import recorded_folder

    folder = recorded_folder() / Path(given.preset).stem
    if fixed := {"preset", "out_dir", "recorded"} & {name for name, _ in given.parameter}:
        raise UserError(
            f"record chooses {', '.join(sorted(fixed))} itself, for {folder}: leave it out, or use run"
        )
    given.parameter += [("preset", given.preset), ("out_dir", str(folder)), ("recorded", "true")]
    _run(given)


def _manifest(given: argparse.Namespace) -> int:
    from salun_core.experiments.runs import manifest
    from salun_core.paths import recorded_folder

    if not recorded_folder().is_dir():
        raise UserError(f"there is no folder {recorded_folder()}: run this in a checkout of the project")
    if not given.check:
        path, count = manifest.write()
        print(f"{path}: {count:,} files")
        return 0
    if found := manifest.differences():
        print(f"recorded files are not as {recorded_folder() / manifest.NAME} lists them: {found}")
        return 1
    print("every recorded file is as the manifest lists it")
    return 0


def _train_tiny_sd(given: argparse.Namespace) -> None:
    from salun_core.experiments.runs.machine import use_threads
    from salun_core.experiments.text_to_image.train_tiny_sd import make
    from salun_core.paths import models_folder

    use_threads(given.threads)
    folder = given.out or models_folder() / "tiny-sd"
    command = f"python -m salun_core train-tiny-sd --seed {given.seed} --threads {given.threads}"
    record = make(folder, seed=given.seed, command=command)
    for kind, share in record["shown"].items():
        print(f"{kind}: {share['value']:.1%} of {share['n']} images show the digit asked for")
    print(f"written to {folder}, digest {record['digest']}")


def _fetch(given: argparse.Namespace) -> None:
    from salun_core.data.downloads import DOWNLOADS, fetch

    for name in given.names:
        one_of(name, DOWNLOADS, "download")
    if given.list:
        for name, download in DOWNLOADS.items():
            here = "here" if all(path.is_file() for path in download.paths) else "missing"
            print(f"{name:<10} {here:<8} {download.about}")
            for file, path in zip(download.files, download.paths, strict=True):
                print(f"{'':<19} {path}\n{'':<21} from {file.addresses[0]}\n{'':<21} SHA-256 {file.sha256}")
        return
    for path, fetched in fetch(given.names):
        print(f"{path}: {'fetched' if fetched else 'was here'}, content as expected", flush=True)


def _list(given: argparse.Namespace) -> None:
    from salun_core.data import DATASETS
    from salun_core.experiments import EXPERIMENTS
    from salun_core.methods import METHODS
    from salun_core.metrics import METRICS
    from salun_core.models import MODELS
    from salun_core.saliency import SCORES

    def listed(table: Any, texts: Mapping[str, str] | None = None) -> dict[str, str]:
        more = {name: f"installed: {entry.value}" for name, entry in table.installed.items()}
        return {**dict.fromkeys(table, ""), **(texts or {}), **more, "package.module:NAME": "yours"}

    for title, names in (
        ("experiments", {name: e.title for name, e in EXPERIMENTS.items()}),
        ("methods", listed(METHODS, {name: f"{m.label} ({m.source})" for name, m in METHODS.items()})),
        ("data sets", listed(DATASETS)),
        ("models", listed(MODELS, {"torchvision:NAME": ""})),
        ("metrics", listed(METRICS)),
        ("saliency scores", listed(SCORES)),
    ):
        print(f"{title}:")
        for name, text in names.items():
            print(f"  {name:<16} {text}".rstrip())


def _check(given: argparse.Namespace) -> int:
    from salun_core.data import load_dataset
    from salun_core.experiments.classification.compatibility import check_compatibility
    from salun_core.experiments.classification.method_comparison import ClassificationParams

    # A run takes the same parameters, so what it would refuse is refused here.
    names = ("dataset", "data_dir", "image_size", "arch", "width", "keep")
    ClassificationParams.load({name: getattr(given, name) for name in names})
    dataset = load_dataset(given.dataset, given.data_dir, size=given.image_size)
    report = check_compatibility(
        dataset, given.arch, size=given.image_size, width=given.width, keep=given.keep
    )
    print(report)
    return 0 if report.ok else 1


def _check_method(given: argparse.Namespace) -> int:
    from salun_core.methods import METHODS, fitting
    from salun_core.methods.contract import check_method, quick_settings, small_task
    from salun_core.methods.engine import check_settings
    from salun_core.metrics import KINDS

    method = METHODS[one_of(given.method, METHODS, "method")]
    settings = quick_settings(method) | _read_values(given.setting, "setting")
    check_settings(method, settings)
    failed = 0
    for kind in given.kind or method.tasks or KINDS:
        fitting(given.method, one_of(kind, KINDS, "kind of task"))
        try:
            with blaming("method", given.method):
                check_method(method, small_task(kind), maskable=not given.without_mask, **settings)
        except Failed as error:
            broken = error.__cause__
            promise = isinstance(broken, AssertionError) and str(
                broken
            )  # of the contract, which says what it was
            failed += 1
            print(one_line(f"NO  {kind}: {promise or f'{error} (traceback in {traced(error)})'}"))
        except UserError as error:
            failed += 1
            print(f"NO  {kind}: {error}")
        else:
            print(f"ok  {kind}: pure, repeatable, and refuses what it cannot use", end="")
            print("" if given.without_mask else "; weights outside a mask stay to the last bit")
    return 1 if failed else 0


def _export(given: argparse.Namespace) -> None:
    from salun_core.experiments.export import export
    from salun_core.paths import output_folder

    written = export(
        given.cell,
        given.folder,
        out_dir=output_folder(given.out),
        changed_only=given.changed,
        data_dir=given.data_dir,
    )
    for path in written:
        print(path)


def _rehearse(given: argparse.Namespace) -> None:
    from salun_core.experiments.rehearsal import chosen, rehearse, shown
    from salun_core.experiments.runs.trained import has_bf16

    _check_tflops(given.tflops)
    if given.workers < 1:
        raise UserError(
            f"workers must be at least 1, got {given.workers}: it is the number of presets run at a time"
        )
    done = []
    for outcome in rehearse(chosen(given.names), workers=given.workers):
        done.append(outcome)
        print(
            f"{outcome.act.label}: {outcome.cells} cells in {outcome.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    print(shown(done, tflops=given.tflops).to_string(index=False))
    if not has_bf16():
        print(
            "rehearsed with precision fp32 throughout: this processor has no instructions for bfloat16",
            file=sys.stderr,
        )


def _add(given: argparse.Namespace) -> None:
    from salun_core.pages import contributed

    if given.schema:
        print(contributed.schema())
    elif given.file is None:
        raise UserError("no file is given: name a CSV file, or see what it must hold with --schema")
    elif given.check:
        print(f"{len(contributed.checked(given.file))} rows, all valid")
    else:
        path, rows = contributed.add(given.file)
        print(f"{rows} rows in {path}: `make book` in a copy of the repository shows them as contributed")


def _results(given: argparse.Namespace) -> None:
    from salun_core.experiments import EXPERIMENTS
    from salun_core.experiments.runs.table import as_parquet, printed, read_table
    from salun_core.files import write_named
    from salun_core.paths import output_folder

    one_of(given.experiment, EXPERIMENTS, "experiment")
    cells = read_table(output_folder(given.out), given.experiment, metrics=given.metric)
    if given.format == "parquet":
        if given.to is None:
            raise UserError("parquet is not a text format: name the output file with --to")
        content = as_parquet(cells)
    elif given.format == "latex":
        from salun_core.pages.tables.paper import as_latex

        content = as_latex(cells).encode()
    else:
        content = (printed(cells, given.format) + "\n").encode()
    if given.to is None:
        print(terminal_text(content.decode()), end="")
    else:
        write_named(given.to, content)


if __name__ == "__main__":
    sys.exit(main())
