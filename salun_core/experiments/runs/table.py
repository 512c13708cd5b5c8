"""Tables of results: made from stored cells, with every metric computed from the cells' outputs."""

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from tqdm import tqdm

from salun_core.code_digest import function_digest
from salun_core.errors import UserError, one_line, one_of
from salun_core.escaping import csv_text
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.params import Params
from salun_core.experiments.runs.store import FileName, Result, digest, is_whole, read_result
from salun_core.files import read_json, readable, write_whole
from salun_core.metrics import KINDS, METRICS
from salun_core.paths import MEASURED
from salun_core.plugins import Failed, blaming

if TYPE_CHECKING:
    from salun_core.experiments.runs.lab import Lab

SHOWN = ("scenario", "method", "mask", "seed", "UA", "RA", "TA", "MIA", "OA", "FD", "seconds", "status")
PRIVATE = ("data_dir", "out_dir", "unlearned")  # where files lie on this machine is nobody else's business


class Table:
    """The cells of one run of an experiment, in the order of its grid.

    Parameters
    ----------
    folder : path
        Results folder: cells lie in ``cells``, computed metrics are kept in ``measured``.
    experiment : str
        Name of the experiment.
    params : mapping
        Its parameters, flat.
    metrics : sequence of str
        Further metrics of other packages, ``package.module:NAME``: a column each, for cells of a classifier.
    """

    def __init__(
        self, folder: Path, experiment: str, params: Mapping[str, Any], *, metrics: Sequence[str] = ()
    ) -> None:
        self.folder, self.experiment, self.params = folder, experiment, params
        self.measured = Measured(folder / MEASURED, metrics)

    def rows(self, entries: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """One row for each entry: a stored cell's name (``cell``), ``reported``, and tags.

        Raises
        ------
        UserError
            If a cell is missing or damaged.
        """
        made, whole = [], set[str]()
        for entry in entries:
            result = read_result(self.folder / "cells" / f"{entry['cell']}.json")
            if result is None:
                raise UserError(
                    f"{entry['cell']} is missing from {self.folder / 'cells'} or damaged: "
                    f"run {self.experiment} again, finished cells are kept"
                )
            made.append(self.row(result, entry, whole))
        self.measured.keep()
        return pd.DataFrame(made)

    def row(self, result: Result, entry: Mapping[str, Any], whole: set[str]) -> dict[str, Any]:
        """What was run, what it led to, what it cost, and where it comes from; ``whole`` is of `Measured.of`."""
        reported = bool(entry["reported"])
        try:
            assert KINDS[result.content["about"]["kind"]]
            run, origin = self._run(result), self._origin(result, entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{entry['cell']} in {self.folder / 'cells'} was not written in the form of this version: "
                f"delete it and run {self.experiment} again"
            ) from error
        measured = self.measured.of(self.folder / "cells", result, reported=reported, whole=whole)
        return run | measured | origin

    def _run(self, result: Result) -> dict[str, Any]:
        what, values = result.key.what, result.content
        mask = what["mask"]
        return {
            "experiment": self.experiment,
            "source": self.params.get("preset"),
            **values["about"],
            "scenario": Scenario.from_what(what["scenario"]).label,
            "method": what["method"],
            "mask": mask["kind"],
            "keep": mask.get("keep", 1.0),
            "score": mask.get("score", "abs_sum"),
            "seed": what["seed"],
            "unlearning_seed": what["unlearning_seed"],
            "status": values["status"],
            "seconds": values.get("seconds"),
            "mask_seconds": values.get("mask_seconds"),
            "samples_seen": values.get("samples"),
            "peak_memory": values.get("peak_memory"),
        }

    @staticmethod
    def _origin(result: Result, entry: Mapping[str, Any]) -> dict[str, Any]:
        settings, origin = result.key.what["settings"], result.provenance
        return {
            **{f"n_{role}": count for role, count in result.content.get("counts", {}).items()},
            "settings": settings,
            "replica": settings.get("replica", 0),
            "reported": bool(entry["reported"]),
            **{name: value for name, value in entry.items() if name not in ("cell", "reported")},
            "device": origin["device"],
            "threads": origin["threads"],
            "code": origin["revision"],
            "finished": origin["finished"],
            "cell": result.key.name,
        }


class Measured:
    """Metrics of stored cells, each computed once for each state of its code and kept in a folder.

    Parameters
    ----------
    folder : path
        Where values are kept, a file for each metric; they can be deleted at any time.
    more : sequence of str
        Metrics of other packages, see `Table`.
    """

    def __init__(self, folder: Path, more: Sequence[str] = ()) -> None:
        self.folder = folder
        self.more = {name: METRICS[one_of(name, METRICS, "metric")] for name in more}
        self._known: dict[Path, dict[str, list[Any]]] = {}
        self._new: dict[Path, dict[str, list[Any]]] = {}

    def of(
        self, cells: Path, result: Result, *, reported: bool, whole: set[str] | None = None
    ) -> dict[str, Any]:
        """The metrics of a cell by column; None where the cell diverged or the metric is not defined.

        ``whole`` are files that several cells share and that this table has found as they were stored: each is
        looked at once, and then added.
        """
        kind = KINDS[result.content["about"]["kind"]]
        more = self.more if kind.metrics is METRICS else {}
        metrics = (
            {**kind.metrics, **more} if reported else {f"select_{n}": m for n, m in kind.selection.items()}
        )
        outputs = _Outputs(cells, result, kind.load, set() if whole is None else whole)
        return {name: self._value(name, metric, outputs) for name, metric in metrics.items()}

    def _value(self, name: str, metric: Callable[[Any], Any], outputs: "_Outputs") -> Any:
        if not outputs.there:
            return None
        path = self.folder / f"{re.sub('[^A-Za-z0-9-]', '_', name)}-{self._digest(name, metric)}.json"
        if path not in self._known:
            self._known[path] = _read_measured(path)
        known = self._known[path]
        found = known.get(outputs.name)
        if found is None or found[:2] != [outputs.digest, _check(found, outputs.digest, path)]:
            value = (
                _theirs(name, metric, outputs.value) if name in self.more else _plain(metric(outputs.value))
            )
            found = known[outputs.name] = [outputs.digest, _check([value], outputs.digest, path), value]
            self._new.setdefault(path, {})[outputs.name] = found
        return found[-1]

    def _digest(self, name: str, metric: Callable[[Any], Any]) -> str:
        return function_digest(metric, *(METRICS.stated(name) if name in self.more else ()))

    def keep(self) -> None:
        """Write what was computed since the last call; values of other code of the same metric are deleted."""
        for path, values in self._new.items():
            for old in self.folder.glob(f"{path.stem.rpartition('-')[0]}-*.json"):
                if old != path:
                    old.unlink(missing_ok=True)
            text = json.dumps(_read_measured(path) | values, sort_keys=True, separators=(",", ":"))
            write_whole(path, text.encode())
        self._new = {}


def _theirs(name: str, metric: Callable[[Any], Any], outputs: Any) -> Any:
    """A metric of another package; an error inside it is reported in one sentence."""
    with blaming("metric", name, "it is given an Evaluation and returns a Share or a number"):
        return _plain(metric(outputs))


class _Outputs:
    """The stored outputs of one cell, read when a metric first asks for them."""

    def __init__(self, cells: Path, result: Result, load: Callable[[Path], Any], whole: set[str]) -> None:
        self.cells, self.result, self.load, self.whole = cells, result, load, whole
        self.name = result.key.name

    @property
    def there(self) -> bool:
        return self.result.outputs is not None

    @property
    def digest(self) -> str:
        assert self.result.outputs is not None
        return self.result.files[self.result.outputs]

    @cached_property
    def value(self) -> Any:
        assert self.result.outputs is not None
        file = self.cells / self.result.outputs
        if not is_whole(file, self.digest):
            raise UserError(
                f"{file} is missing or is not what {self.name} was stored with: run the cell again"
            )
        self._check_reference(file)
        return self.load(file)

    def _check_reference(self, file: Path) -> None:
        """Refuse outputs that are compared with a file of another result, where that one is not as it was stored."""
        if file.suffix != ".safetensors":
            return
        with safe_open(file, framework="pt") as content:
            name = (content.metadata() or {}).get("reference")
        if name is None or name in self.whole:
            return
        reference = read_result(self.cells / f"{name.partition('.')[0]}.json")
        if reference is None or not is_whole(self.cells / name, reference.files.get(name, "")):
            raise UserError(
                f"{self.cells / name} is missing or is not what it was stored as: delete it and {self.name}.json, and "
                "run the experiment again (other cells are kept)"
            )
        self.whole.add(name)


class Run:
    """One run of an experiment: executes cells, and remembers which ones it consists of.

    Parameters
    ----------
    lab : Lab
        Runs cells.
    params : Params
        Written beside the list of cells.
    """

    def __init__(self, lab: "Lab", params: Params) -> None:
        self.lab, self.params = lab, params
        self.entries: list[dict[str, Any]] = []
        self.table = Table(lab.store.folder.parent, params.experiment, params.shown())

    def execute(self, cells: Iterable[Cell], title: str = "") -> pd.DataFrame:
        """Run cells, or find them in the store, and return their table, one row each and in this order.

        Cells that another process is computing come last: two runs that share cells share the work.

        Raises
        ------
        Failed
            If code of another package failed in a cell; after all other cells.
        """
        cells, names, failed = list(cells), dict[int, str](), list[Failed]()
        # Plain text on stderr, for terminals and logs: the cell being run, and the time left.
        name = f"{self.params.experiment} {title}".strip()
        with tqdm(
            total=len(cells), desc=name, unit="cell", dynamic_ncols=True, mininterval=0.5, smoothing=0.1
        ) as bar:
            for place, cell in self.lab.free_first(cells):
                bar.set_postfix_str(cell.label)
                try:
                    names[place] = self.lab.run(cell).key.name
                except Failed as error:  # no reason to lose the night for the cells of others
                    failed.append(error)
                bar.update()
        if failed:
            raise Failed(
                f"{failed[0]} ({len(failed)} of {len(cells)} cells; the others are kept)"
            ) from failed[0]
        entries = [self.entry(cell, names[place]) for place, cell in enumerate(cells)]
        self.entries += entries
        return self.table.rows(entries)

    @staticmethod
    def entry(cell: Cell, name: str) -> dict[str, Any]:
        """What the list of a run says of a cell, stored under ``name``."""
        return {"cell": name, "reported": cell.reported, **cell.tags}

    def mark(self, cells: Iterable[str], **tags: Any) -> None:
        """Add tags to cells of the tuning, by name."""
        names = set(cells)
        for entry in self.entries:
            if entry["cell"] in names and not entry["reported"]:
                entry |= tags

    def write(self) -> Path:
        """Write the list of cells and the parameters to ``results/EXPERIMENT.json``; metrics are not written."""
        shared = {name: value for name, value in self.params.shown().items() if name not in PRIVATE}
        record = {"experiment": self.params.experiment, "params": shared, "rows": self.entries}
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        path = self.table.folder / "results" / f"{self.params.experiment}.json"
        return write_whole(path, text.encode())


def read_table(folder: Path, experiment: str, *, metrics: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of an experiment's last run, metrics computed by the code of today, and those of other packages.

    Raises
    ------
    UserError
        If the experiment has not been run into this folder, or a file is damaged.
    """
    path = folder / "results" / f"{experiment}.json"
    with readable(path):
        if not path.is_file():
            raise UserError(
                f"no results of {experiment} in {folder}: run `python -m salun_core run {experiment}` first"
            )
    record = read_list(path)
    if record is None:
        raise UserError(f"{path} is damaged: run the experiment again, finished cells are reused")
    return Table(folder, experiment, record["params"], metrics=metrics).rows(record["rows"])


def read_list(path: Path) -> dict[str, Any] | None:
    """The parameters of a run and its list of cells; None if the file is damaged."""
    record = read_json(path)
    try:
        _Listed.model_validate(record)
    except ValidationError:
        return None
    return dict(record)


class _Entry(BaseModel):
    """A cell of a run; whatever else it holds are tags."""

    model_config = ConfigDict(strict=True)

    cell: FileName
    reported: bool


class _Listed(BaseModel):
    """The form of ``results/EXPERIMENT.json``."""

    model_config = ConfigDict(strict=True)

    params: dict[str, Any]
    rows: list[_Entry] = Field(min_length=1)


def records(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values, with None where there is no value."""

    def plain(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{str(n): plain(v) for n, v in row.items()} for row in cells.to_dict(orient="records")]


def as_parquet(cells: pd.DataFrame) -> bytes:
    """All columns as the content of a Parquet file; values that are not plain are written as JSON text."""
    buffer = io.BytesIO()
    plain = cells.apply(
        lambda column: (
            column.map(lambda v: json.dumps(v, sort_keys=True) if isinstance(v, dict | list | tuple) else v)
            if column.dtype == object
            else column
        )
    )
    plain.to_parquet(buffer, index=False)
    return buffer.getvalue()


def printed(cells: pd.DataFrame, form: str) -> str:
    """Rows as text.

    Parameters
    ----------
    cells : DataFrame
        Results table.
    form : str
        "table" (the main columns), "csv" or "json" (all columns).
    """
    if form == "json":
        return json.dumps(records(cells), indent=1, ensure_ascii=False)
    if form == "csv":
        flat = cells.assign(settings=[json.dumps(s, sort_keys=True) for s in cells["settings"]])
        return csv_text(flat).rstrip("\n")
    names = [name for name in (*SHOWN, *METRICS.installed) if name in cells]
    names += [name for name in cells if ":" in str(name)]  # metrics that were asked for
    plain = cells[names].map(lambda value: one_line(value) if isinstance(value, str) else value)
    return plain.to_string(index=False, float_format=lambda x: f"{x:.4f}")


def check_ran(results: pd.DataFrame) -> None:
    """Refuse a table in which Retrain, the reference of every gap, is missing or diverged."""
    retrained = results[results["method"] == "retrain"]
    if retrained.empty or (retrained["status"] != "done").any():
        raise UserError("Retrain did not finish, and every gap is measured against it: change the recipe")


def _read_measured(path: Path) -> dict[str, list[Any]]:
    """Values by cell, each behind the digest of its outputs and one of both, so that an edit is seen."""
    found = read_json(path)
    entries = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 3}


def _check(entry: list[Any], outputs: str, path: Path) -> str:
    return digest([path.stem, outputs, entry[-1]])[:20]


def _plain(value: Any) -> Any:
    """A metric as a JSON value; None where it does not exist (NaN)."""
    if isinstance(value, list | str):
        return value
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
