"""Tables of classifiers that forget, in the layout of the paper's Table 1."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from salun_core.errors import UserError
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import Results
from salun_core.experiments.runs.store import read_result
from salun_core.methods import name_of
from salun_core.metrics import ATTACKS
from salun_core.metrics.gaps import AVERAGE, METRICS, by_method, floor_of, gaps, noise_floor
from salun_core.pages.findings.classification import NO_RETRAIN, REFERENCES, beside_its_cost, costs
from salun_core.pages.tables.table import Table, number, short, spread
from salun_core.pages.tooltips import origins_of_mean
from salun_core.pages.words import data_and_network, listed, seeds


def methods_table(cells: pd.DataFrame, scenario: str) -> pd.DataFrame:
    """Means over seeds of one scenario, as numbers.

    Returns
    -------
    DataFrame
        One row per method and mask, in order of first appearance: for UA, RA, TA, MIA the columns
        ``X, X std, X gap`` in percent; "Avg. Gap", "Avg. Gap std", "floor units" (Avg. Gap over that
        between two retrained models), "RTE" in seconds; "seeds" with a value, and "lost" ones that diverged.
    """
    part = gaps(cells[cells["scenario"] == scenario])
    if part.empty:
        raise UserError(
            f"there are no results for {scenario!r}: the scenarios are {', '.join(cells['scenario'].unique())}"
        )
    floor = floor_of(noise_floor(part), scenario)
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    # Without a retrained model there is no gap, and what has none is no run that diverged.
    counted = AVERAGE if (part["method"] == "retrain").any() else "UA"
    for column in [*METRICS, *(f"gap {m}" for m in METRICS), AVERAGE, "seconds"]:
        for _, row in by_method(part, column).iterrows():
            entry = rows.setdefault((row["method"], row["mask"], row["keep"]), {})
            if column == "seconds":
                entry |= {"RTE": row["mean"], "RTE std": row["std"]}
                continue
            name = f"{column.removeprefix('gap ')} gap" if column.startswith("gap ") else column
            entry |= {name: 100 * row["mean"], f"{name} std": 100 * row["std"]}
            if column == AVERAGE:
                entry |= {"floor units": row["mean"] / floor if floor else math.nan}
            if column == counted:
                entry |= {"seeds": row["n"], "lost": row["lost"]}
    return pd.DataFrame(
        [
            {"method": key[0], "mask": key[1], "Method": name_of(*key[:2])} | entry
            for key, entry in rows.items()
        ]
    )


def main_table(
    cells: pd.DataFrame, scenario: str, *, caption: str | None = None, more: Sequence[str] = ()
) -> Table:
    """Method × (UA, RA, TA, MIA with the gap to Retrain, Avg. Gap, RTE): the layout of the paper's Table 1.

    The smallest average gap is bold; Original and Retrain do not compete, and the caption says so. Columns ``more`` are
    shown as they are.
    """
    numbers = methods_table(cells, scenario)
    competing = numbers[~numbers["method"].isin(REFERENCES)]
    best = competing[AVERAGE].idxmin() if competing[AVERAGE].notna().any() else None
    shown = pd.DataFrame({"Method": numbers["Method"]})
    for name in METRICS:
        shown[name] = [
            spread(r[name], r[f"{name} std"])
            + (
                ""
                if r["method"] == "retrain" or math.isnan(r[f"{name} gap"])
                else f"\n({r[f'{name} gap']:.2f})"
            )
            for _, r in numbers.iterrows()
        ]
    retrained = bool((numbers["method"] == "retrain").any())
    if retrained:
        shown[AVERAGE] = [spread(r[AVERAGE], r[f"{AVERAGE} std"]) for _, r in numbers.iterrows()]
    if numbers["floor units"].notna().any():
        shown["Floor units"] = [number(v, 1) for v in numbers["floor units"]]
    shown["RTE (s)"] = [number(v) for v in numbers["RTE"]]
    part = cells[cells["scenario"] == scenario]
    for name in more:
        shown[name] = [spread(r["mean"], r["std"], "–") for _, r in by_method(part, name).iterrows()]
    if (numbers["lost"] > 0).any():
        shown["Diverged"] = [f"{r['lost']} of {r['lost'] + r['seeds']}" for _, r in numbers.iterrows()]
    first = part.iloc[0]
    gap = "in brackets the gap to the mean of all retrained models of the split, " if retrained else ""
    best_said = "" if retrained else f". {NO_RETRAIN}"
    if best is not None:
        present = [name_of(method) for method in REFERENCES if method in set(numbers["method"])]
        best_said = f"; smallest average gap bold, {listed(present)} not compared"
    text = caption or (
        f"{data_and_network(first)}, {scenario}: percent, mean ± standard deviation over {seeds(part)}, "
        f"{gap}{first['n_forget']:.0f} forget images{best_said}"
    )
    return Table(shown, text, (best,) if best is not None else (), _origins(cells, scenario, numbers))


def _origins(cells: pd.DataFrame, scenario: str, numbers: pd.DataFrame) -> dict[tuple[Any, str], str]:
    """For each number of the main table the runs that its mean is over."""
    part = gaps(cells[cells["scenario"] == scenario])
    part = part[part["replica"] == 0]
    found: dict[tuple[Any, str], str] = {}
    for index, row in numbers.iterrows():
        mine = part[(part["method"] == row["method"]) & (part["mask"] == row["mask"])]
        found |= {(index, name): origins_of_mean(mine, name) for name in (*METRICS, AVERAGE)}
        found[index, "RTE (s)"] = origins_of_mean(mine, "seconds", scale=1, unit=" s")
    return found


@beside_its_cost
def cost_table(cells: pd.DataFrame, scenario: str, tuning: pd.DataFrame | None = None) -> Table:
    """What each method costs beside retraining: time, images seen, operations, tuning, and when tuning has paid."""
    found = costs(cells, scenario, tuning)
    lines = []
    for each in found.methods:
        lines.append(
            {
                "Method": each.name,
                "RTE (s)": number(each.seconds * found.retrain),
                "of Retrain": percent(each.seconds),
                "Images seen": percent(each.samples),
                "FLOPs": percent(each.flops),
                "Tuning": percent(each.tuning),
                "Break-even": "never" if math.isinf(each.break_even) else number(each.break_even, 1),
            }
        )
    frame = pd.DataFrame(lines)
    shown = frame.drop(columns=[name for name in frame if (frame[name] == "–").all()])
    flops = "" if math.isnan(found.flops) else f" and {found.flops:.2g} floating-point operations"
    return Table(
        shown,
        f"{scenario}: cost of unlearning, mask included, in percent of that of Retrain, which takes {found.retrain:.1f} s, "
        f"{found.samples:,.0f} images{flops}. Tuning: seconds for all settings that were tried and for the retrained model "
        "used for comparison; break-even: number of forget requests from which unlearning and its tuning are faster than "
        f"retraining. Means over {found.seeds} training seeds",
    )


def percent(share: float) -> str:
    """A share in percent with two digits, or a dash for none."""
    return "–" if math.isnan(share) else f"{short(100 * share)}%"


def split_table(lab: ClassifierLab, params: Any) -> Table:
    """Images by role for the first seed of each scenario."""
    rows = []
    for scenario in params.scenarios():
        split = lab.split(params.seeds[0], scenario)
        rows.append(
            {"Scenario": scenario.label} | {r.replace("_", " "): f"{len(ids):,}" for r, ids in split.items()}
        )
    return Table(pd.DataFrame(rows), f"{lab.data.name}: images by role, seed {params.seeds[0]}")


def attacks_table(results: Results, scenario: str) -> Table:
    """MIA with every feature for each method on the first seed, in percent, from stored logits."""
    values, forgotten = attacks(results, scenario)
    shown = pd.DataFrame({"Method": [name_of(method) for method in values["method"]]})
    for column in values.columns.drop("method"):
        shown[column] = [number(100 * value) for value in values[column]]
    return Table(
        shown,
        f"{scenario}, seed {results.params.seeds[0]}: percent of the forget set (n = {forgotten}) taken for images "
        "never trained on, by the feature that the attack uses. The paper reports confidence.",
    )


def attacks(results: Results, scenario: str) -> tuple[pd.DataFrame, int]:
    """Shares of the forget set taken for non-members, by method (rows) and feature, and the size of the set."""
    lab, seed = results.lab, results.params.seeds[0]
    mine = results.cells[(results.cells["scenario"] == scenario) & (results.cells["seed"] == seed)]
    mine = mine[(mine["replica"] == 0) & (mine["status"] == "done")].drop_duplicates(["method", "mask"])
    rows = []
    for _, row in mine.iterrows():
        stored = read_result(lab.store.folder / f"{row['cell']}.json")
        assert stored is not None
        evaluation = lab.evaluation(stored)
        rows.append({"method": row["method"]} | {n: float(m(evaluation)) for n, m in ATTACKS.items()})
    return pd.DataFrame(rows), int(mine["n_forget"].iloc[0])


def grid_table(
    cells: pd.DataFrame, column: str, caption: str, *, across: str, rows: tuple[str, ...] = ("method", "mask")
) -> Table:
    """A metric's mean ± std over seeds, in percent: one row a method, one column a value of ``across``."""
    table = by_method(cells, column, group=(*rows, across))
    lines = []
    for key, part in table.groupby(list(rows), sort=False):
        line = {"Method": name_of(*map(str, key))} if len(rows) == 2 else {"Method": name_of(str(key[0]))}
        for _, row in part.iterrows():
            line[str(row[across]).replace("_", " ")] = mean_and_lost(row)
        lines.append(line)
    shown = pd.DataFrame(lines).fillna("–")
    return Table(shown, f"{caption}, mean ± standard deviation over {seeds(cells)}")


def mean_and_lost(found: Mapping[str, Any], *, scale: float = 100) -> str:
    """``mean ± std`` of a `summary`, and below it how many seeds diverged, if any did."""
    text = spread(scale * found["mean"], scale * found["std"])
    return f"{text}\n({found['lost']} diverged)" if found["lost"] and found["n"] else text


def shares_table(cells: pd.DataFrame) -> Table:
    """|UA - UA(Retrain)| by method and share to forget."""
    part = gaps(cells)
    part = part[part["method"] != "retrain"]
    return grid_table(part, "gap UA", "|UA − UA(Retrain)| in points", across="scenario")


def masks_table(cells: pd.DataFrame) -> Table:
    """Average gap by method and kind of mask; the best mask of each method is not marked, noise decides."""
    part = gaps(cells)
    part = part[~part["method"].isin(REFERENCES)].assign(
        kind=lambda frame: frame["mask"].str.replace("_", " ")
    )
    caption = (
        "Average gap to Retrain in points, by mask (columns); every combination tuned with the same budget"
    )
    return grid_table(part, AVERAGE, caption, across="kind", rows=("method",))


def protocols_table(protocols: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Random labelling with SalUn's setting under the masks and updates of each release."""
    part = gaps(pd.concat([cells[cells["method"] == "retrain"], protocols], ignore_index=True))
    part = part[part["protocol"].notna()]
    lines = []
    for name, mine in part.groupby("protocol", sort=False):
        line = {"Name": name, "Scores": mine["score"].iloc[0], "Mask": mine["mask"].iloc[0].replace("_", " ")}
        for column in ("UA", "RA", "TA", "MIA", AVERAGE):
            found = by_method(mine, column, group=("protocol",)).iloc[0]
            line[column] = mean_and_lost(found)
        lines.append(line)
    return Table(
        pd.DataFrame(lines),
        "What each release of the official code did to the mask, in percent, mean ± standard deviation over "
        f"{seeds(part)}; the settings are SalUn's, only mask and weight decay differ",
    )
