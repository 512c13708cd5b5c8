"""All cells of all experiments in one table: published, recorded and computed here."""

import base64
import io
import json
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from salun_core.experiments.runs.params import Params, parameter
from salun_core.experiments.runs.table import read_table
from salun_core.metrics.gaps import AVERAGE, METRICS, SPLIT, gaps
from salun_core.pages.tables import PAPER_NAMES, Table, read_published
from salun_core.pages.text.classification import Prose, published_folder
from salun_core.paths import output_folder, project_root

COLUMNS: dict[str, str] = {
    "source": "published (the paper's), re-run (by others), recorded (ours, committed) or quick (computed for this book)",
    "run": "name of the recorded run, or of the published table or figure",
    "experiment": "experiment of this project",
    "dataset": "data set",
    "arch": "network",
    "width": "channels of its first stage",
    "scenario": "what is forgotten",
    "method": "unlearning method",
    "mask": "kind of mask: none, salient, random, random_per_layer, least_salient",
    "keep": "share of weights that may change, 0 to 1",
    "seed": "seed of training and unlearning; empty where values are means over seeds",
    "replica": "0, or the number of a further model retrained on the same split",
    "study": "which comparison of the experiment a row belongs to",
    "protocol": "release of the official code that is imitated",
    "UA": "share of forget images answered wrongly, 0 to 1; for generators: of samples not recognised",
    "RA": "accuracy on the retain set, 0 to 1",
    "TA": "accuracy on the test set, 0 to 1",
    "MIA": "share of forget images that the attack takes for non-members, 0 to 1",
    "OA": "generators: share of samples of other classes recognised as asked, 0 to 1",
    "FD": "generators: Fréchet distance of samples of other classes to real images; see distance",
    "distance": "features of that distance",
    "gap": "average gap to Retrain over UA, RA, TA and MIA, 0 to 1",
    "seconds": "time of unlearning, mask included",
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

RUNS = ("classification", "class_wise", "stability", "saliency", "diffusion", "text_to_image", "unsafe")


class CollectParams(Params):
    """Parameters of the chapters that read results and compute none."""

    experiment: ClassVar[str] = "collect"

    run_name: str = parameter("cifar10-cpu", "folder of the run in data/recorded")
    out_dir: Path | None = parameter(None, "where quick results are; data/runs of the project by default")


def every_cell(out_dir: Path | None = None) -> pd.DataFrame:
    """Published, recorded and quick results, one row a cell.

    Parameters
    ----------
    out_dir : path, optional
        Where quick results are; ``data/runs`` of the project by default.

    Returns
    -------
    DataFrame
        The columns of ``COLUMNS``. What was not run is not there.
    """
    parts = [published_rows()]
    recorded = project_root() / "data" / "recorded"
    folders = sorted(path for path in recorded.iterdir() if path.is_dir()) if recorded.is_dir() else []
    for folder, source in [*((f, "recorded") for f in folders), (output_folder(out_dir), "quick")]:
        for experiment in RUNS:
            rows = results_of(folder, experiment)
            if experiment == "unsafe" and len(rows):  # most of them are cells of text_to_image
                rows = rows[~rows["cell"].isin(results_of(folder, "text_to_image").get("cell", []))]
            if len(rows):
                parts.append(rows.assign(source=source, run=folder.name if source == "recorded" else "quick"))
    frame = pd.concat(
        [part.reindex(columns=list(COLUMNS)).astype(object) for part in parts], ignore_index=True
    )
    return frame.infer_objects()


def results_of(folder: Path, experiment: str) -> pd.DataFrame:
    """Reported cells of one experiment in a folder, with their average gap; empty where it was not run."""
    if not (folder / "results" / f"{experiment}.json").is_file():
        return pd.DataFrame()
    rows = read_table(folder, experiment)
    rows = rows[rows["reported"].astype(bool)].reset_index(drop=True)
    if set(METRICS) <= set(rows):
        for name in SPLIT:
            if name not in rows:
                rows[name] = None
        rows["gap"] = gaps(rows)[AVERAGE].to_numpy()
    return rows.assign(settings=[json.dumps(value, sort_keys=True) for value in rows["settings"]])


def published_rows() -> pd.DataFrame:
    """The paper's numbers and re-runs by others: a row for each line of Table 1, and for each other value."""
    rows = []
    for path in sorted(published_folder().glob("*.csv")):
        table = read_published(path)
        source = "re-run" if "not_from_the_paper" in path.stem else "published"
        for (place, setting, method), mine in table.groupby(["table", "setting", "method"], sort=False):
            first = mine.iloc[0]
            shared: dict[str, Any] = {
                "source": source,
                "run": place,
                "dataset": first["dataset"],
                "arch": first["model"],
                "scenario": setting,
                "method": PAPER_NAMES.get(str(method), method),
                "status": "done",
            }
            found = dict(zip(mine["metric"], mine["value"], strict=True))
            if set(METRICS) <= set(found):
                wide = {name: found[name] / 100 for name in METRICS}
                gap = found[AVERAGE] / 100 if AVERAGE in found else None
                seconds = 60 * found["RTE"] if "RTE" in found else None
                rows.append(shared | wide | {"gap": gap, "seconds": seconds})
            else:
                rows += [shared | {"metric": name, "value": value} for name, value in found.items()]
    return pd.DataFrame(rows)


def dictionary() -> Table:
    """The meaning of every column."""
    frame = pd.DataFrame({"Name": list(COLUMNS), "Value": list(COLUMNS.values())})
    return Table(frame, "Data dictionary: the columns of the table and of the files")


def downloads(frame: pd.DataFrame) -> Prose:
    """Links that hold the table itself, as CSV and as Parquet."""
    csv = frame.to_csv(index=False, lineterminator="\n").encode()
    buffer = io.BytesIO()
    frame.astype({name: "string" for name in frame if frame[name].dtype == object}).to_parquet(buffer)
    links = [
        f'<a download="salun-results.{kind}" href="data:{mime};base64,{base64.b64encode(content).decode()}">'
        f"{kind.upper() if kind == 'csv' else 'Parquet'} ({len(content) / 1024:.0f} kB)</a>"
        for kind, mime, content in (
            ("csv", "text/csv", csv),
            ("parquet", "application/vnd.apache.parquet", buffer.getvalue()),
        )
    ]
    return Prose(f"{len(frame):,} rows: {' · '.join(links)}")
