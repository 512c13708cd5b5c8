"""Results made elsewhere: checked against a schema when they are added, and shown beside ours, never among them."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from salun_core.errors import UserError, nearest
from salun_core.escaping import FORMULA, TURNING
from salun_core.files import parse_json, readable, regular, write_whole
from salun_core.methods import METHODS, name_of
from salun_core.metrics.gaps import AVERAGE, METRICS, by_method, gaps
from salun_core.pages.markup import Text
from salun_core.pages.tables.table import Table, spread
from salun_core.pages.words import data_and_network
from salun_core.paths import project_root

Fraction = Annotated[float, Field(ge=0, le=1)]
LINE = Annotated[
    str, Field(min_length=1, max_length=400, pattern=rf"^[^\x00-\x1f\x7f\u2028\u2029{TURNING}]*$")
]


class Contribution(BaseModel):
    """One model, unlearned or retrained by someone else: a row of the file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    dataset: LINE = Field(description="data set")
    arch: LINE = Field(description="network")
    scenario: LINE = Field(description='what is forgotten: "random 10%", "class 3"')
    method: LINE = Field(
        description="unlearning method: a key of METHODS where it is one of them, else its name"
    )
    mask: LINE = Field("none", description="none, salient, random, …")
    keep: float | None = Field(None, gt=0, le=1, description="share of weights that may change")
    seed: int = Field(ge=0, lt=2**63, description="of this row; one row for each model, and no means")
    replica: int = Field(0, ge=0, description="number of a further model retrained on the same split")
    UA: Fraction = Field(description="share of forget images answered wrongly, 0 to 1: 1 - forget accuracy")
    RA: Fraction = Field(description="accuracy on the retain set, 0 to 1")
    TA: Fraction = Field(description="accuracy on the test set, 0 to 1")
    MIA: Fraction | None = Field(None, description="share of forget images taken for non-members, 0 to 1")
    seconds: float | None = Field(None, ge=0, description="time of unlearning")
    n_forget: int | None = Field(None, ge=1, description="images in the forget set")
    settings: str | None = Field(None, description="settings of the method, as JSON")
    contributor: LINE = Field(description="who made it")
    code: LINE = Field(description="address and commit of the code that made it")
    note: str | None = Field(None, description="what a reader must know to compare", max_length=400)

    @field_validator("*", mode="before")
    @classmethod
    def _plain_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = str(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, str) and "_" in value and re.search("int|float", kinds):  # Python reads 0_1 as 1
            raise PydanticCustomError("number", "write the number without _")
        return value


COLUMNS = tuple(Contribution.model_fields)
SAME = ["dataset", "arch", "scenario", "method", "mask", "keep", "seed", "replica"]
"""What tells two rows apart; the second of a pair is refused."""


_KEYS = {name.casefold(): key for key, method in METHODS.items() for name in (method.label, key)}


def contributed_folder() -> Path:
    """Where contributed results lie, a file for each contribution."""
    return project_root() / "data" / "contributed"


def schema() -> str:
    """The schema of a row, as JSON Schema."""
    return json.dumps(Contribution.model_json_schema(), indent=1, ensure_ascii=False)


def checked(path: Path) -> pd.DataFrame:
    """The rows of a file of contributed results.

    Raises
    ------
    UserError
        One sentence for the first thing that is wrong, with the line and what to write instead.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a CSV file")
    try:
        with readable(path):
            text = regular(path).read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: give a CSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it as CSV UTF-8") from error
    reader = csv.DictReader(io.StringIO(text))
    try:
        names, given = list(reader.fieldnames or []), [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path.name}, line {reader.line_num + 1}: {error}: save it as CSV again") from error
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path.name}: column {name!r} appears twice: leave one out")
        if name not in COLUMNS:
            near = nearest(name, COLUMNS)
            hint = f"did you mean {near!r}?" if near else f"the columns are {', '.join(COLUMNS)}"
            if len(names) == 1 and re.search("[;\t|]", name):
                hint = "separate the columns by commas, and write decimal points"
            raise UserError(f"{path.name}: unknown column {name!r}: {hint}")
    rows = [_row(path, line, row) for line, row in given]
    if not rows:
        raise UserError(f"{path.name} holds no rows below its heading: write one for each model")
    frame = pd.DataFrame([row.model_dump() for row in rows])
    again = frame[frame.duplicated(SAME)]
    if len(again):
        first = again.iloc[0]
        raise UserError(
            f"{path.name}: {first['method']} on {first['dataset']}, {first['scenario']}, seed {first['seed']} appears "
            "twice: give one row for each model"
        )
    return frame


def _row(path: Path, line: int, row: dict[str | None, Any]) -> Contribution:
    if None in row or None in row.values():
        raise UserError(f"{path.name}, line {line}: its number of fields differs from the heading's")
    given = {str(name): value.strip() for name, value in row.items() if value.strip()}
    try:
        found = Contribution.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        said = first["msg"][0].lower() + first["msg"][1:]
        value = (
            f", got {given[name][:40]!r}"
            if name in given
            else f": {Contribution.model_fields[name].description}"
        )
        percent = name in METRICS and first["type"] == "less_than_equal"
        hint = ": write a fraction and not percent" if percent else ""
        raise UserError(f"{path.name}, line {line}: {name}: {said}{value}{hint}") from None
    key = _KEYS.get(found.method.casefold())
    if key is not None and found.method != key:  # or a file's own Retrain would give no gaps
        raise UserError(f"{path.name}, line {line}: method {found.method!r} is one of ours: write {key!r}")
    if found.settings is not None:
        _check_mapping(found.settings, f"{path.name}, line {line}: settings are not")
    for name, value in found:
        if isinstance(value, str) and FORMULA.match(value):  # the file is shared as it is
            raise UserError(
                f"{path.name}, line {line}: {name}: a spreadsheet takes {value[:40]!r} for a formula: begin with a word"
            )
    return found


def _check_mapping(text: str, what: str) -> None:
    try:
        value = parse_json(text, strict=True)
    except ValueError as error:
        raise UserError(f"{what} valid JSON ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} a mapping: write {{}} with names and values")


def add(path: Path, *, folder: Path | None = None) -> tuple[Path, int]:
    """Check a file and put it among the contributed results, under its own name; returns the file and its rows.

    Raises
    ------
    UserError
        If it does not fit the schema, or a contribution of other content has its name already.
    """
    frame = checked(path)
    target = (folder or contributed_folder()) / f"{path.stem}.csv"
    content = frame.to_csv(index=False, lineterminator="\n").encode()
    if target.is_file() and target.read_bytes() != content:
        raise UserError(
            f"{target} already exists with other rows: give the file another name, or delete that one"
        )
    return write_whole(target, content), len(frame)


def contributed_rows(folder: Path | None = None) -> pd.DataFrame:
    """All contributed rows, ``run`` naming the file, with the gap to the retrained models *of that file*.

    Empty where there are none.
    """
    parts = []
    for path in sorted((folder or contributed_folder()).glob("*.csv")):
        frame = checked(path).assign(width=None, source="contributed", run=path.stem, status="done")
        for name in METRICS:
            frame[name] = frame[name].astype(float)
        if (frame["method"] == "retrain").any():
            frame = gaps(frame).rename(columns={AVERAGE: "gap"})
        parts.append(frame)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _shown(method: str, mask: str) -> str:
    if dict.__contains__(METHODS, method):
        return name_of(method, mask)
    # Theirs stays text: to ask a plug-in of that name for its label would import a module that the file chose.
    return method if mask == "none" else f"{method} + {mask.replace('_', ' ')} mask"


def contributed_table(folder: Path | None = None) -> Table | Text:
    """Means over seeds of every contribution, named as such."""
    rows = contributed_rows(folder)
    if rows.empty:
        return Text("Nobody has contributed results yet.")
    lines = []
    for (run, _, _, scenario), part in rows.groupby(["run", "dataset", "arch", "scenario"], sort=False):
        part = part.assign(keep=part["keep"].astype(float).fillna(1.0))
        densities = part.groupby(["method", "mask"])["keep"].nunique()
        for (method, mask, keep), mine in part.groupby(["method", "mask", "keep"], sort=False):
            line = {
                "Contribution": run,
                "Data": f"{data_and_network(part.iloc[0])}, {scenario}",
                "Method": _shown(method, mask),
            }
            if densities[method, mask] > 1:
                line["Method"] += f", {100 * keep:g}%"
            for name in (*METRICS, "gap"):
                if name in mine:
                    found = by_method(mine, name).iloc[0]
                    line["Avg. Gap" if name == "gap" else name] = (
                        "–" if not found["n"] else spread(100 * found["mean"], 100 * found["std"])
                    )
            lines.append(line | {"Seeds": str(mine["seed"].nunique()), "By": mine.iloc[0]["contributor"]})
    return Table(
        pd.DataFrame(lines).fillna("–"),
        "Contributed: produced by others with their own code, not run here, and used in no other table or verdict of this book; percent, "
        "mean ± standard deviation over their seeds, gaps to their own retrained models",
    )
