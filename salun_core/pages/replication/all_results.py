"""All cells of all experiments in one table: published, recorded and computed here."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from salun_core.escaping import csv_text
from salun_core.metrics.gaps import AVERAGE, METRICS
from salun_core.pages.contributed import contributed_rows
from salun_core.pages.markup import html_template
from salun_core.pages.published import published_folder, read_published
from salun_core.pages.results import all_runs
from salun_core.pages.tables.table import Table

COLUMNS: dict[str, str] = {
    "source": "published (the paper's), re-run (by others), recorded (ours, committed), quick (computed for this book) or "
    "contributed (made elsewhere, not checked by us)",
    "run": "name of the recorded run, of the published table or figure, or of the contribution",
    "experiment": "experiment of this project",
    "dataset": "data set",
    "arch": "network",
    "width": "channels of its first stage",
    "scenario": "what is forgotten",
    "method": "unlearning method",
    "mask": "kind of mask: none, salient, random, random_per_layer, least_salient",
    "keep": "share of weights that may change, 0 to 1",
    "seed": "seed of the split and of training; empty where values are means over seeds",
    "unlearning_seed": "seed of unlearning, where it varies within a training seed",
    "replica": "0, or the number of a further model retrained on the same split",
    "study": "part of the experiment",
    "protocol": "release of the official code that is imitated",
    "UA": "share of forget images misclassified, 0 to 1; for generators: of samples not recognised",
    "RA": "accuracy on the retain set, 0 to 1",
    "TA": "accuracy on the test set, 0 to 1",
    "MIA": "share of forget images that the attack takes for non-members, 0 to 1",
    "OA": "generators: share of samples of other classes recognised as requested, 0 to 1",
    "FD": "generators: Fréchet distance of samples of other classes to real images; see distance",
    "distance": "features of that distance",
    "gap": "average gap to the mean of all retrained models of the split over UA, RA, TA and MIA, 0 to 1",
    "seconds": "time of unlearning, mask included",
    "samples_seen": "images that went forward and backward",
    "flops": "floating-point operations of unlearning",
    "n_forget": "images in the forget set",
    "metric": "published values of another kind: what the value is",
    "value": "that value, in the unit of its source",
    "status": "done, or diverged",
    "settings": "settings of the method, as JSON",
    "device": "processor or accelerator",
    "code": "revision of the code",
    "finished": "when, UTC",
    "cell": "name of the stored cell",
}
"""The data dictionary: every column of `every_cell`."""

EXPERIMENTS = (
    "classification",
    "class_wise",
    "stability",
    "saliency",
    "diffusion",
    "text_to_image",
    "unsafe",
)
LINKS = html_template(
    """<p>{{ rows }} rows: {% for link in links %}{% if not loop.first %} · {% endif %}\
<a download="salun-results.{{ link.kind }}" href="{{ link.target }}">{{ link.text }}</a>{% endfor %}</p>"""
)


def every_cell(out_dir: Path | None = None) -> pd.DataFrame:
    """Published, recorded, quick and contributed results, one row a cell.

    Parameters
    ----------
    out_dir : path, optional
        Where quick results are; ``data/runs`` of the project by default.

    Returns
    -------
    DataFrame
        The columns of ``COLUMNS``. What was not run is not there.
    """
    parts = [published_rows(), contributed_rows()]
    for run in all_runs(out_dir):
        source = "quick" if run.name == "quick" else "recorded"
        for experiment in EXPERIMENTS:
            rows = run.rows(experiment)
            if experiment == "unsafe" and len(rows):  # most of them are cells of text_to_image
                rows = rows[~rows["cell"].isin(run.rows("text_to_image").get("cell", []))]
            if len(rows):
                settings = [json.dumps(value, sort_keys=True) for value in rows["settings"]]
                parts.append(rows.assign(source=source, run=run.name, settings=settings))
    frame = pd.concat(
        [part.reindex(columns=list(COLUMNS)).astype(object) for part in parts], ignore_index=True
    )
    return frame.infer_objects()


def published_rows() -> pd.DataFrame:
    """The paper's numbers and re-runs by others: a row for each line of a table of methods, and for each other value."""
    rows = []
    for path in sorted(published_folder().glob("*.csv")):
        table = read_published(path)
        source = "re-run" if path.stem.startswith("independent") else "published"
        for (place, setting, method), mine in table.groupby(["table", "setting", "method"], sort=False):
            first = mine.iloc[0]
            shared: dict[str, Any] = {
                "source": source,
                "run": place,
                "dataset": first["dataset"],
                "arch": first["model"],
                "scenario": setting,
                "method": method,
                "status": "done",
            }
            found = dict(zip(mine["metric"], mine["value"], strict=True))
            if "forget accuracy" in found and set(METRICS) - {"UA"} <= set(found):
                found["UA"] = 100 - found["forget accuracy"]
            if set(METRICS) <= set(found):
                wide = {name: found[name] / 100 for name in METRICS}
                gap = found[AVERAGE] / 100 if AVERAGE in found else None
                seconds = 60 * found["RTE"] if "RTE" in found else None
                rows.append(shared | wide | {"gap": gap, "seconds": seconds})
            else:
                rows += [shared | {"metric": name, "value": value} for name, value in found.items()]
    return pd.DataFrame(rows)


NUMBERS = ["UA", "RA", "TA", "MIA", "gap", "OA", "FD", "seconds"]
NAMED = ["mask", "keep", "scenario", "seed", "source", "experiment", "study", "dataset", "metric", "value"]
SHOWN = ["method", *NUMBERS, *NAMED, "run", "code", "cell"]


def shown(cells: pd.DataFrame) -> pd.DataFrame:
    """What a page shows: the method, its numbers, then the rest; recorded rows first, then quick ones, the paper's, others'."""
    order = {"recorded": 0, "quick": 1, "published": 2, "re-run": 3, "contributed": 4}
    rows = cells.iloc[cells["source"].map(order).argsort(kind="stable")]
    return rows[SHOWN].round(4).astype(object).fillna("")


def counts(cells: pd.DataFrame) -> Table:
    """Rows by source and experiment."""
    found = cells.fillna({"experiment": ""}).groupby(["source", "experiment"]).size().reset_index()
    found.columns = ["Source", "Name", "Rows"]
    return Table(found, "Rows of the table by source and experiment", numbered=False)


def dictionary() -> Table:
    """The meaning of every column."""
    frame = pd.DataFrame({"Name": list(COLUMNS), "Value": list(COLUMNS.values())})
    return Table(frame, "Data dictionary: the columns of the table and of the files", numbered=False)


class Downloads:
    """Links that hold a table themselves, as CSV and as Parquet."""

    def __init__(self, frame: pd.DataFrame) -> None:
        buffer = io.BytesIO()
        frame.astype({name: "string" for name in frame if frame[name].dtype == object}).to_parquet(buffer)
        self.rows = len(frame)
        self.files = {
            "csv": ("CSV", "text/csv", csv_text(frame).encode()),
            "parquet": ("Parquet", "application/vnd.apache.parquet", buffer.getvalue()),
        }

    def __repr__(self) -> str:
        return f"{self.rows:,} rows"

    def _repr_html_(self) -> str:
        links = [
            {
                "kind": kind,
                "target": f"data:{mime};base64,{base64.b64encode(content).decode()}",
                "text": f"{name} ({len(content) / 1024:.0f} kB)",
            }
            for kind, (name, mime, content) in self.files.items()
        ]
        return LINKS.render(rows=f"{self.rows:,}", links=links)
