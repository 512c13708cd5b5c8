"""Where data sets lie unless a folder is given."""

from pathlib import Path


def sets_folder(given: Path | str | None) -> Path:
    """``given``, or ``data/sets`` of this project: the same from its top and from ``notebooks/``."""
    if given is not None:
        return Path(given).expanduser()
    here = Path.cwd()
    tops = [f for f in (here, *here.parents) if (f / "_config.yml").is_file() and (f / "salun_core").is_dir()]
    return (tops[0] if tops else here) / "data" / "sets"
