"""What the last campaign tried, as its record says."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from salun_core.errors import UserError
from salun_core.files import read_json
from salun_core.pages.tables.table import Table
from salun_core.paths import project_root


def tried(_: Any = None) -> Table:
    """One row for each part of the campaign: what was tried how often, when, and at which revision of the code.

    Raises
    ------
    UserError
        If there is no record of a campaign.
    """
    record = read_json(project_root() / "data" / "campaign.json")
    if not isinstance(record, dict) or not record:
        raise UserError("data/campaign.json holds no record: run `make campaign`, or restore it from git")
    rows = [
        {
            "Part": name,
            "Tried": "\n".join(f"{count:,} {what}" for what, count in part["counts"].items()),
            "Form": "short" if part["short"] else "full",
            "Minutes": f"{part['seconds'] / 60:.1f}",
            "Date": part["date"],
            "Revision": part["revision"],
        }
        for name, part in record.items()
    ]
    return Table(
        pd.DataFrame(rows),
        f"{_title(record)}: what was tried; no difference was found",
        roomy="Tried",
        numbered=False,
    )


def _title(record: Mapping[str, Mapping[str, Any]]) -> str:
    """What the parts are together: one full campaign only where all are full and of one revision."""
    full = [part for part in record.values() if not part["short"]]
    revisions = {part["revision"] for part in record.values()}
    if len(full) == len(record) and len(revisions) == 1:
        return f"The last full campaign, at revision {revisions.pop()}"
    of = "of one revision" if len(revisions) == 1 else f"at {len(revisions)} revisions of the code"
    return f"Each part as it was last tried, {len(full)} of {len(record)} in full and {of}"
