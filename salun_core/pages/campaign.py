"""What the last campaign tried, as its record says."""

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
            "Date": part["date"],
            "Revision": part["revision"],
        }
        for name, part in record.items()
    ]
    return Table(
        pd.DataFrame(rows),
        "The last campaign: what was tried; no difference was found",
        roomy="Tried",
        numbered=False,
    )
