"""Tables of results, in the paper's own layout."""

import html
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from salun_core.errors import UserError
from salun_core.experiments.classification.compatibility import CompatibilityReport
from salun_core.methods import METHODS, name_of
from salun_core.metrics.gaps import AVERAGE, METRICS, by_method, floor_of, gaps, noise_floor
from salun_core.pages.tooltips import behind_mean

PAPER_NAMES = {method.label: name for name, method in METHODS.items()} | {"l1-sparse": "l1_sparse"}
WORDS = (
    "Method",
    "Scenario",
    "Layer",
    "Parameter",
    "Value",
    "Searched",
    "Chosen",
    "Verdict",
    "Claim",
    "Run",
    "At half",
    "When",
    "Where",
    "What",
    "Source",
    "At double",
    "Paper",
    "Name",
    "Remark",
    "Scores",
    "Mask",
)
PUBLISHED = ("Retrain", "FT", "RL", "GA", "IU", "BE", "BS", "ℓ1-sparse", "SalUn", "SalUn-soft")


@dataclass(frozen=True)
class Table:
    """A table of texts for the book: caption, scoped headers, numbers to the right, some rows bold.

    ``behind`` maps a row's label and a column to what is shown where a reader points at that cell, ``links``
    to the page that it leads to. The column ``roomy`` takes the room that others leave.
    """

    frame: pd.DataFrame
    caption: str
    bold: tuple[Any, ...] = ()
    behind: Mapping[tuple[Any, str], str] = field(default_factory=dict)
    links: Mapping[tuple[Any, str], str] = field(default_factory=dict)
    roomy: str = ""

    def _repr_html_(self) -> str:
        head = "".join(cell(c, c, "th scope='col'") for c in self.frame.columns)
        rows = []
        for index, row in zip(self.frame.index, self.frame.itertuples(index=False), strict=True):
            cells = "".join(
                cell(
                    c,
                    value,
                    behind=self.behind.get((index, c), ""),
                    link=self.links.get((index, c), ""),
                    more=" roomy" if c == self.roomy else "",
                )
                for c, value in zip(self.frame.columns, row, strict=True)
            )
            rows.append(f"<tr class='best'>{cells}</tr>" if index in self.bold else f"<tr>{cells}</tr>")
        caption = html.escape(self.caption[:1].upper() + self.caption[1:])
        label = html.escape(self.caption.partition(":")[0], quote=True)
        return (
            f'<figure class="result"><figcaption>{caption}</figcaption>'
            f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table class="results">'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></figure>"
        )

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.frame.to_string(index=False)}"


def cell(
    column: str, value: Any, tag: str = "td", *, behind: str = "", link: str = "", more: str = ""
) -> str:
    """One cell in HTML; words and numbers are set differently, and a line break is kept."""
    kind = ("words" if column.partition("\n")[0] in WORDS else "numbers") + more
    text = html.escape(str(value)).replace("\n", "<br>")
    if link:
        text = f'<a href="{html.escape(link, quote=True)}">{text}</a>'
    spot = f" spot' tabindex='-1' title='{html.escape(behind, quote=True)}" if behind else ""
    return f"<{tag} class='{kind}{spot}'>{text}</{tag[:2]}>"


def methods_table(cells: pd.DataFrame, scenario: str) -> pd.DataFrame:
    """Means over seeds of one scenario, as numbers.

    Returns
    -------
    DataFrame
        One row per method and mask, in order of first appearance: for UA, RA, TA, MIA the columns
        ``X, X std, X gap`` in percent; "Avg. Gap", "Avg. Gap std", "floor units" (Avg. Gap over that
        between two retrained models), "RTE" in seconds, and "seeds".
    """
    part = gaps(cells[cells["scenario"] == scenario])
    if part.empty:
        raise UserError(
            f"there are no results for {scenario!r}: the scenarios are {', '.join(cells['scenario'].unique())}"
        )
    floor = floor_of(noise_floor(part), scenario)
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    for column in [*METRICS, *(f"gap {m}" for m in METRICS), AVERAGE, "seconds"]:
        for _, row in by_method(part, column).iterrows():
            entry = rows.setdefault((row["method"], row["mask"], row["keep"]), {})
            if column == "seconds":
                entry |= {"RTE": row["mean"], "RTE std": row["std"]}
                continue
            name = f"{column.removeprefix('gap ')} gap" if column.startswith("gap ") else column
            entry |= {name: 100 * row["mean"], f"{name} std": 100 * row["std"]}
            if column == AVERAGE:
                entry |= {"floor units": row["mean"] / floor if floor else math.nan, "seeds": row["n"]}
    return pd.DataFrame(
        [
            {"method": key[0], "mask": key[1], "Method": name_of(*key[:2])} | entry
            for key, entry in rows.items()
        ]
    )


def main_table(cells: pd.DataFrame, scenario: str, *, caption: str | None = None) -> Table:
    """Method × (UA, RA, TA, MIA with the gap to Retrain, Avg. Gap, RTE): the layout of the paper's Table 1.

    The best average gap is bold; Original and Retrain do not compete.
    """
    numbers = methods_table(cells, scenario)
    competing = numbers[~numbers["method"].isin(["original", "retrain"])]
    best = competing[AVERAGE].idxmin() if len(competing) else None
    shown = pd.DataFrame({"Method": numbers["Method"]})
    for name in METRICS:
        shown[name] = [
            spread(r[name], r[f"{name} std"])
            + ("" if r["method"] == "retrain" else f"\n({r[f'{name} gap']:.2f})")
            for _, r in numbers.iterrows()
        ]
    shown[AVERAGE] = [spread(r[AVERAGE], r[f"{AVERAGE} std"]) for _, r in numbers.iterrows()]
    if numbers["floor units"].notna().any():
        shown["Floor units"] = [number(v, 1) for v in numbers["floor units"]]
    shown["RTE (s)"] = [number(v) for v in numbers["RTE"]]
    seeds = sorted(set(numbers["seeds"].astype(int)))
    first = cells[cells["scenario"] == scenario].iloc[0]
    text = caption or (
        f"{first['dataset']}, {first['arch']}, {scenario}: percent, mean ± standard deviation over "
        f"{' to '.join(map(str, seeds))} seeds (training and unlearning both vary), gap to Retrain in brackets, "
        f"{first['n_forget']:.0f} forget images; best Avg. Gap bold."
    )
    return Table(shown, text, (best,) if best is not None else (), _behind_rows(cells, scenario, numbers))


def _behind_rows(cells: pd.DataFrame, scenario: str, numbers: pd.DataFrame) -> dict[tuple[Any, str], str]:
    """For each number of the main table the runs that its mean is over."""
    part = gaps(cells[(cells["scenario"] == scenario) & (cells["replica"] == 0)])
    found: dict[tuple[Any, str], str] = {}
    for index, row in numbers.iterrows():
        mine = part[(part["method"] == row["method"]) & (part["mask"] == row["mask"])]
        found |= {(index, name): behind_mean(mine, name) for name in (*METRICS, AVERAGE)}
        found[index, "RTE (s)"] = behind_mean(mine, "seconds", scale=1, unit=" s")
    return found


def published_table(path: Path | str, setting: str = "random data forgetting 10%") -> Table:
    """The paper's own Table 1 from its CSV, in the same layout; RTE in minutes, as printed there."""
    rows = read_published(path)
    rows = rows[(rows["setting"] == setting) & (rows["verified"] == "yes")]
    shown = []
    for method in [m for m in PUBLISHED if m in set(rows["method"])]:
        mine = rows[rows["method"] == method].set_index("metric")
        line: dict[str, Any] = {"Method": method}
        for name in METRICS:
            value = mine.loc[name]
            gap = "" if method == "Retrain" else f"\n({value['gap']:.2f})"
            line[name] = spread(value["value"], value["std"]) + gap
        line[AVERAGE] = f"{mine.loc[AVERAGE, 'value']:.2f}"
        line["RTE (min)"] = f"{mine.loc['RTE', 'value']:.2f}"
        shown.append(line)
    table = pd.DataFrame(shown)
    competing = table[table["Method"] != "Retrain"]
    best = competing[AVERAGE].astype(float).idxmin()
    caption = (
        f"Published: Table 1 of the paper, CIFAR-10, ResNet-18, {setting}, 10 trials. Another data set and "
        "model than the table above: compare the order of the methods, not the numbers."
    )
    return Table(table, caption, (best,))


def read_published(path: Path | str) -> pd.DataFrame:
    """A CSV of published numbers (columns ``table, setting, method, metric, value, std, gap, source, verified``)."""
    try:
        return pd.read_csv(path)
    except (OSError, pd.errors.ParserError) as error:
        raise UserError(f"cannot read {path}: {error}; restore it from git") from error


def tuning_table(tuning: pd.DataFrame) -> Table:
    """The chosen settings of each method, with the bounds tried and the distance reached."""
    if tuning.empty:
        return Table(
            pd.DataFrame({"Method": []}), "Tuning is off: every method has the settings it was given."
        )
    rows = []
    for (scenario, method, mask), part in tuning.groupby(["scenario", "method", "mask"], sort=False):
        chosen = part[part["chosen"]].iloc[0]
        tried = varied(part["settings"])
        rows.append(
            {
                "Scenario": scenario,
                "Method": name_of(method, mask),
                "Tried": len(part),
                "Searched": "; ".join(f"{n} {short(min(v))} to {short(max(v))}" for n, v in tried.items())
                or "nothing",
                "Chosen": "; ".join(_choice(n, chosen["settings"][n], v) for n, v in tried.items())
                or "default",
                "Distance": f"{100 * chosen['distance']:.2f}",
                "Worst": f"{100 * part['distance'].replace(math.inf, math.nan).max():.2f}",
            }
        )
    seeds = ", ".join(map(str, sorted(tuning["seed"].unique())))
    caption = (
        f"Settings chosen on tuning seed {seeds}, which is not reported: mean gap to Retrain over UA, RA, "
        "validation accuracy and MIA, in points."
    )
    if any("*" in row["Chosen"] for row in rows):
        caption += " * the largest or smallest value tried: a better one may lie beyond."
    return Table(pd.DataFrame(rows), caption)


def _choice(name: str, value: Any, tried: list[Any]) -> str:
    return f"{name} {short(value)}" + ("*" if value in (min(tried), max(tried)) else "")


def varied(settings: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that take more than one value, with their values."""
    every: dict[str, list[Any]] = {}
    for one in settings:
        for name, value in one.items():
            every.setdefault(name, []).append(value)
    return {name: values for name, values in every.items() if len({json.dumps(v) for v in values}) > 1}


def layers_table(layers: pd.DataFrame, caption: str) -> Table:
    """Weights, kept weights and kept share of each tensor, from `saliency.layer_table`."""
    shown = layers.rename(columns={"layer": "Layer", "weights": "Weights", "kept": "Kept"})
    shown = shown.assign(Share=[f"{100 * s:.1f}%" for s in layers["share"]]).drop(columns="share")
    return Table(shown, caption)


def attacks_table(values: pd.DataFrame, caption: str) -> Table:
    """MIA by feature (columns) and method (rows), shares in [0, 1], printed in percent."""
    shown = values.rename(columns={"method": "Method"}).copy()
    shown["Method"] = [name_of(m) for m in shown["Method"]]
    for column in shown.columns.drop("Method"):
        shown[column] = [number(100 * v) for v in shown[column]]
    return Table(shown, caption)


def settings_table(params: Mapping[str, Any]) -> Table:
    """The parameters of a run."""
    rows = [(name, compact(value)) for name, value in params.items()]
    return Table(pd.DataFrame(rows, columns=["Parameter", "Value"]), "Parameters of this run")


def compatibility_table(report: CompatibilityReport) -> Table:
    """What `check_compatibility` found, one row a check; what does not fit is bold."""
    rows = [{"Verdict": c.mark, "Name": c.what, "Remark": c.said} for c in report.checks]
    wrong = tuple(row for row, check in enumerate(report.checks) if check.ok is False)
    return Table(pd.DataFrame(rows), report.end, wrong)


def compact(value: Any) -> str:
    """A parameter as text: nothing as a dash, bounds as "low to high", lists and mappings without marks."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, Mapping):
        if "low" in value and "high" in value:
            return ", ".join(map(str, value["choices"])) or f"{value['low']:g} to {value['high']:g}"
        return "; ".join(f"{name}: {compact(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(compact, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def spread(mean: float, std: float) -> str:
    """``mean ± std`` with two decimals, without the second where there is one seed."""
    if math.isnan(mean):
        return "diverged"
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def number(value: float, digits: int = 2) -> str:
    """A number, or a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def short(value: Any) -> str:
    """A setting in few characters."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)
