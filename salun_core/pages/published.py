"""The numbers of the paper and of others, as transcribed in ``data/published``."""

from pathlib import Path

import pandas as pd

from salun_core.errors import UserError
from salun_core.methods import METHODS, name_of
from salun_core.paths import project_root

METHOD_NAMES = {method.label: name for name, method in METHODS.items()} | {"l1-sparse": "l1_sparse"}
"""Keys of ``METHODS`` by the names that publications use."""


def published_folder() -> Path:
    """Where the transcribed numbers lie."""
    return project_root() / "data" / "published"


def read_published(path: Path | str) -> pd.DataFrame:
    """Read a table of published numbers.

    Parameters
    ----------
    path : path or str
        A CSV file, or its name in `published_folder`.

    Returns
    -------
    DataFrame
        Columns ``table, dataset, model, setting, method, metric, value, std, gap, source, verified, note``; values in
        the unit of the source; methods by their keys in ``METHODS`` where they are among them.
    """
    path = published_folder() / path
    try:
        rows = pd.read_csv(path)
    except (OSError, pd.errors.ParserError) as error:
        raise UserError(f"cannot read {path}: {error}; restore it from git") from error
    return rows.assign(method=[METHOD_NAMES.get(name, name) for name in rows["method"]])


def published_name(method: str) -> str:
    """How tables of this project name a method of a publication."""
    return name_of(method) if method in METHODS else method
