"""Where data sets lie and runs are written."""

from pathlib import Path

from salun_core.errors import UserError

MEASURED = "measured"
"""Folder of a run: its metrics, which follow from its cells and the code and are kept to be found faster."""


def project_root(start: Path | None = None) -> Path:
    """The nearest folder above ``start`` (the current folder) that holds this project, else ``start``."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "_config.yml").is_file() and (folder / "salun_core").is_dir():
            return folder
    return start


def expanded(path: Path | str) -> Path:
    """The path with ``~`` and ``~name`` read as the home of a user.

    Raises
    ------
    UserError
        If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path} begins with a user who is not known here: give the path in full") from None


def output_folder(given: Path | None) -> Path:
    """``given``, or ``data/runs`` of this project: the same from the top and from ``notebooks/``."""
    return expanded(given) if given is not None else project_root() / "data" / "runs"


def recorded_folder() -> Path:
    """``data/recorded`` of this project, where recorded runs lie, a folder for each preset."""
    return project_root() / "data" / "recorded"


def sets_folder(given: Path | str | None) -> Path:
    """``given``, or ``data/sets`` of this project: the same from its top and from ``notebooks/``."""
    return expanded(given) if given is not None else project_root() / "data" / "sets"


def models_folder() -> Path:
    """``data/models`` of this project, where small trained models are committed."""
    return project_root() / "data" / "models"


def shipped_folder() -> Path:
    """Where an installed package keeps the part of ``data/models`` that comes with it; absent in a checkout."""
    return Path(__file__).parent / "shipped"
