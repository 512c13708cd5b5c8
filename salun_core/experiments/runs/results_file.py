"""The table of a run as files and as text."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from salun_core.errors import UserError
from salun_core.files import write_whole

SHOWN = ("scenario", "method", "mask", "seed", "UA", "RA", "TA", "MIA", "OA", "FD", "seconds", "status")


def write_table(cells: pd.DataFrame, folder: Path, experiment: str, params: dict[str, Any]) -> Path:
    """Write all rows and the parameters behind them to ``folder/results/EXPERIMENT.json``."""
    # Where files lie on this machine is nobody else's business, and no part of a result.
    shared = {name: value for name, value in params.items() if name not in ("data_dir", "out_dir")}
    record = {"experiment": experiment, "params": shared, "rows": records(cells)}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    return write_whole(folder / "results" / f"{experiment}.json", text.encode())


def read_table(folder: Path, experiment: str) -> pd.DataFrame:
    """Read the rows of an experiment's last run.

    Raises
    ------
    UserError
        If the experiment has not been run into this folder, or the file is damaged.
    """
    path = folder / "results" / f"{experiment}.json"
    try:
        return pd.DataFrame(json.loads(path.read_text("utf8"))["rows"])
    except FileNotFoundError:
        raise UserError(
            f"no results of {experiment} in {folder}: run `python -m salun_core run {experiment}` first"
        ) from None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: run the experiment again, finished cells are reused") from None


def records(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values, with None where there is no value."""
    return [
        {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
        for row in json.loads(cells.to_json(orient="records", double_precision=15))
    ]


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
        buffer = io.StringIO()
        flat.to_csv(buffer, index=False, lineterminator="\n")
        return buffer.getvalue().rstrip("\n")
    return cells[[name for name in SHOWN if name in cells]].to_string(
        index=False, float_format=lambda x: f"{x:.4f}"
    )
