"""What notebooks show of a run besides the common tables and figures."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from salun_core.errors import one_of
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import Results
from salun_core.experiments.classification.stability import StabilityResults
from salun_core.experiments.runs.cells import Cell, MaskSpec, default_mask
from salun_core.experiments.runs.params import Params, parameter
from salun_core.experiments.runs.store import read_results
from salun_core.experiments.runs.table import read_table
from salun_core.methods import name_of
from salun_core.metrics import ATTACKS
from salun_core.metrics.gaps import AVERAGE, by_method, gaps, noise_floor
from salun_core.pages.tables import Table, methods_table, read_published, spread
from salun_core.paths import project_root
from salun_core.saliency import layer_table


class Prose(str):
    """Markdown text that a notebook shows as text, not as a string."""

    def _repr_markdown_(self) -> str:
        return str(self)


def published_folder() -> Path:
    """Where the paper's numbers lie."""
    return project_root() / "data" / "published"


def split_table(lab: ClassifierLab, params: Any) -> Table:
    """Images by role for the first seed of each scenario."""
    rows = []
    for scenario in params.scenarios():
        split = lab.split(params.seeds[0], scenario)
        rows.append(
            {"Scenario": scenario.label} | {r.replace("_", " "): f"{len(ids):,}" for r, ids in split.items()}
        )
    return Table(pd.DataFrame(rows), f"{lab.data.name}: images by role, seed {params.seeds[0]}")


def salient_layers(lab: ClassifierLab, params: Any) -> pd.DataFrame:
    """Salient share by layer in the first scenario of the first seed."""
    mask, _ = lab.mask(params.seeds[0], params.scenarios()[0], MaskSpec("salient", params.keep, params.score))
    assert mask is not None
    return layer_table(mask)


def attacks(results: Results, scenario: str) -> tuple[pd.DataFrame, str]:
    """MIA with every feature for each method on the first seed, from stored logits, and its caption."""
    params, lab = results.params, results.lab
    kind = next(s for s in params.scenarios() if s.label == scenario)
    seed = params.seeds[0]
    rows = []
    mine = results.cells[(results.cells["scenario"] == scenario) & (results.cells["seed"] == seed)]
    mine = mine[(mine["replica"] == 0) & (mine["status"] == "done")]
    for _, row in mine.iterrows():
        mask = default_mask(row["method"], params.keep, params.score)
        stored = lab.run(Cell(seed, kind, row["method"], mask, row["settings"]))
        evaluation = lab.evaluation(stored)
        rows.append({"method": row["method"]} | {n: float(m(evaluation)) for n, m in ATTACKS.items()})
    count = mine["n_forget"].iloc[0]
    return pd.DataFrame(rows), (
        f"{scenario}, seed {seed}: percent of the forget set (n = {count:.0f}) taken for images never trained "
        "on, by the feature the attack sees. The paper reports confidence."
    )


def sentences(cells: pd.DataFrame) -> Prose:
    """What results show, in sentences computed from them."""
    said = []
    for scenario in dict.fromkeys(cells["scenario"]):
        part = cells[cells["scenario"] == scenario]
        table = methods_table(part, scenario)
        competing = table[~table["method"].isin(["retrain", "original"])].sort_values(AVERAGE)
        if competing.empty:
            continue
        best = competing.iloc[0]
        text = (
            f"**{scenario[:1].upper()}{scenario[1:]}.** Nearest to Retrain is {best['Method']}, with an average gap of "
            f"{best[AVERAGE]:.2f} points over {best['seeds']:.0f} seeds"
        )
        floor = noise_floor(part)[AVERAGE]
        if len(floor):
            text += (
                f"; two retrained models of one split lie {100 * floor.mean():.2f} points apart "
                f"(n = {len(floor)} pairs)"
            )
            inside = competing[competing[AVERAGE] <= 100 * floor.max()]["Method"].tolist()
            text += f". Within the largest such gap: {', '.join(inside) if inside else 'no method'}"
        said.append(text + ".")
        own = competing.set_index("method")
        if {"salun", "rl"} <= set(own.index):
            with_mask, without = own.loc["salun", AVERAGE], own.loc["rl", AVERAGE]
            apart = abs(with_mask - without)
            verdict = "more" if len(floor) and apart > 100 * floor.mean() else "no more"
            said.append(
                f"The saliency mask changes the average gap of random labelling from {without:.2f} to "
                f"{with_mask:.2f} points"
                + (f", {verdict} than the noise of retraining." if len(floor) else ".")
            )
        if "original" in set(table["method"]):
            nothing = table.loc[table["method"] == "original", AVERAGE].iloc[0]
            worse = competing[competing[AVERAGE] >= nothing]["Method"].tolist()
            said.append(
                f"Doing nothing has an average gap of {nothing:.2f} points; "
                + (
                    f"{', '.join(worse)} {'is' if len(worse) == 1 else 'are'} no nearer."
                    if worse
                    else "every method is nearer."
                )
            )
        lost = part[part["status"] != "done"]
        if len(lost):
            names = sorted({name_of(m, k) for m, k in zip(lost["method"], lost["mask"], strict=True)})
            said.append(f"Diverged in at least one seed: {', '.join(names)}.")
    return Prose("\n\n".join(said))


def provenance_table(cells: pd.DataFrame, folder: Path) -> Table:
    """Where and with what cells were computed that lie in ``folder``."""
    stored = {r.key.name: r for r in read_results(folder)}
    found = [stored[name].provenance for name in cells["cell"] if name in stored]
    rows = [
        ("cells", str(len(found))),
        ("computed", " to ".join(sorted({p["finished"][:10] for p in found}))),
        ("code revision", ", ".join(sorted({p["revision"] for p in found}))),
        ("device", "; ".join(sorted({f"{p['device']}, {p['threads']} thread(s)" for p in found}))),
        ("python", ", ".join(sorted({p["python"] for p in found}))),
        *(
            (name, ", ".join(sorted({p["libraries"][name] for p in found})))
            for name in ("torch", "scikit-learn")
        ),
        ("data", "; ".join(sorted({p["data_note"] for p in found}))),
        ("seconds in all", f"{cells['seconds'].fillna(0).sum():.0f}"),
    ]
    return Table(pd.DataFrame(rows, columns=["Parameter", "Value"]), "Provenance of the reported cells")


def grid_table(
    cells: pd.DataFrame, column: str, caption: str, *, across: str, rows: tuple[str, ...] = ("method", "mask")
) -> Table:
    """A metric's mean ± std over seeds, in percent: one row a method, one column a value of ``across``."""
    table = by_method(cells, column, group=(*rows, across))
    lines = []
    for key, part in table.groupby(list(rows), sort=False):
        line = {"Method": name_of(*map(str, key))} if len(rows) == 2 else {"Method": name_of(str(key[0]))}
        for _, row in part.iterrows():
            line[str(row[across]).replace("_", " ")] = spread(100 * row["mean"], 100 * row["std"])
        lines.append(line)
    shown = pd.DataFrame(lines).fillna("–")
    return Table(shown, f"{caption}, mean ± standard deviation over {cells['seed'].nunique()} seeds")


def shares_table(cells: pd.DataFrame) -> Table:
    """|UA - UA(Retrain)| by method and share to forget."""
    part = gaps(cells)
    part = part[part["method"] != "retrain"]
    return grid_table(part, "gap UA", "|UA − UA(Retrain)| in points", across="scenario")


def notes_table(path: Path, figure: str) -> Table:
    """Published values of one figure, with what is odd about them."""
    rows = read_published(path)
    rows = rows[rows["table"].str.startswith(figure)]
    shown = pd.DataFrame(
        {
            "Scenario": rows["setting"],
            "Method": rows["method"].replace("l1-sparse", "ℓ1-sparse"),
            "Name": rows["metric"],
            "Published": [f"{v:g}" for v in rows["value"]],
            "Remark": rows["note"].fillna(""),
        }
    )
    caption = f"Published: {figure} of the paper ({rows['dataset'].iloc[0]}, {rows['model'].iloc[0]})"
    for column in [
        c for c in shown if (shown[c] == shown[c].iloc[0]).all()
    ]:  # what all rows share is said once
        caption += f"; {shown[column].iloc[0]}".rstrip("; ")
        shown = shown.drop(columns=column)
    return Table(shown, caption)


def masks_table(cells: pd.DataFrame) -> Table:
    """Average gap by method and kind of mask; the best mask of each method is not marked, noise decides."""
    part = gaps(cells[cells["replica"] == 0])
    part = part[part["method"] != "retrain"].assign(kind=lambda frame: frame["mask"].str.replace("_", " "))
    caption = "Average gap to Retrain in points, by mask (columns), every pair tuned with the same budget"
    return grid_table(part, AVERAGE, caption, across="kind", rows=("method",))


def protocols_table(protocols: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Random labelling with SalUn's setting under the masks and updates of each release."""
    retrain = cells[(cells["method"] == "retrain") & (cells["replica"] == 0)]
    part = gaps(pd.concat([retrain, protocols], ignore_index=True))
    part = part[part["protocol"].notna()]
    lines = []
    for name, mine in part.groupby("protocol", sort=False):
        line = {"Name": name, "Scores": mine["score"].iloc[0], "Mask": mine["mask"].iloc[0].replace("_", " ")}
        for column in ("UA", "RA", "TA", "MIA", AVERAGE):
            values = 100 * mine[column].astype(float)
            line[column] = spread(values.mean(), values.std(ddof=1))
        lines.append(line)
    return Table(
        pd.DataFrame(lines),
        "What each release of the official code did to the mask, in percent, mean ± standard deviation over "
        f"{part['seed'].nunique()} seeds; the settings are SalUn's, only mask and weight decay differ",
    )


def mask_sentences(cells: pd.DataFrame) -> Prose:
    """Whether the salient mask is nearer to Retrain than the other masks, by method."""
    part = gaps(cells[cells["replica"] == 0])
    part = part[part["method"] != "retrain"]
    floor = 100 * noise_floor(cells)[AVERAGE].mean()
    said = []
    for other in [m for m in ("none", "random", "least_salient") if m in set(part["mask"])]:
        better: list[str] = []
        worse: list[str] = []
        equal: list[str] = []
        for method, mine in part.groupby("method", sort=False):
            by_seed = 100 * mine.pivot_table(index="seed", columns="mask", values=AVERAGE)
            if not {"salient", other} <= set(by_seed):
                continue
            apart = (by_seed[other] - by_seed["salient"]).dropna()
            clear = abs(apart.mean()) > max(
                floor, 0 if len(apart) < 2 else 2 * apart.std() / len(apart) ** 0.5
            )
            label = f"{name_of(str(method))} ({apart.mean():+.2f})"
            (equal if not clear else better if apart.mean() > 0 else worse).append(label)
        name = "no mask" if other == "none" else f"the {other.replace('_', ' ')} mask"
        parts = [
            f"{verb} for {', '.join(names)}"
            for verb, names in (
                ("clearly nearer to Retrain", better),
                ("clearly farther", worse),
                ("not clearly different", equal),
            )
            if names
        ]
        said.append(f"Against {name}, the salient mask is {'; '.join(parts)}.")
    rule = (
        "In brackets: points of average gap gained. *Clearly* means more than the mean gap between two retrained "
        f"models ({floor:.2f} points) and more than two standard errors of the paired difference over "
        f"{part['seed'].nunique()} seeds."
    )
    return Prose("\n\n".join([*said, rule]))


def stability_sentences(results: StabilityResults) -> Prose:
    """What happens when the share or the settings change."""
    part = gaps(results.cells)
    floor = 100 * noise_floor(results.cells)["gap UA"].max()
    part = part[part["method"] != "retrain"]
    worst = (
        100
        * part.groupby(["method", "mask", "scenario"], sort=False)["gap UA"]
        .mean()
        .groupby(["method", "mask"])
        .max()
    )
    inside = [name_of(*map(str, key)) for key, value in worst.items() if value <= floor]
    said = [
        f"The gap in UA stays within the largest gap between two retrained models ({floor:.1f} points) at every "
        f"share for {', '.join(inside) if inside else 'no method'}; the worst mean gaps are "
        + ", ".join(f"{name_of(*map(str, key))} {value:.1f}" for key, value in worst.sort_values().items())
        + " points."
    ]
    rows = results.spread.dropna(subset=["UA"])
    target = rows.loc[rows["method"] == "retrain", "UA"].astype(float).mean()
    near = []
    for key, mine in rows[rows["method"] != "retrain"].groupby(["method", "mask"], sort=False):
        apart = 100 * (mine["UA"].astype(float) - target).abs()
        near.append(f"{name_of(*map(str, key))} {int((apart <= floor).sum())} of {len(mine)}")
    said.append(f"Settings that bring UA within that distance of Retrain: {', '.join(near)}.")
    if len(results.surface):
        best = 100 * results.surface.groupby("keep")["distance"].min()
        said.append(
            "The smallest distance on the surface is "
            + ", ".join(f"{value:.1f} points at keep {keep:g}" for keep, value in best.items())
            + "."
        )
    return Prose("\n\n".join(said))


def class_sentences(cells: pd.DataFrame) -> Prose:
    """Which classes are hard, and for how many classes each method is the nearest to Retrain."""
    part = gaps(cells[cells["replica"] == 0])
    part = part[~part["method"].isin(["retrain", "original"])]
    table = 100 * part.pivot_table(index="forgotten", columns="method", values=AVERAGE, sort=False)
    nearest = table.idxmin(axis=1).value_counts()
    said = ", ".join(f"{name_of(str(m))} for {n}" for m, n in nearest.items())
    hard = table.min(axis=1).idxmax()
    text = (
        f"Of {len(table)} classes, the nearest to Retrain is {said}. Hardest is class {hard}, where the best method "
        f"is {table.min(axis=1).max():.2f} points away."
    )
    if {"salun", "rl"} <= set(table):
        wins = int((table["salun"] < table["rl"]).sum())
        text += f" With the saliency mask, random labelling is nearer to Retrain for {wins} of {len(table)} classes."
    return Prose(text)


class RecordedParams(Params):
    """Parameters of the chapter on recorded runs."""

    experiment: ClassVar[str] = "recorded"

    run_name: str = parameter("cifar10-cpu", "folder of the run in data/recorded")

    def folder(self) -> Path:
        """Where the runs lie.

        Raises
        ------
        UserError
            If there are none of this name.
        """
        folder = project_root() / "data" / "recorded"
        one_of(self.run_name, sorted(f.name for f in folder.iterdir() if f.is_dir()), "recorded run")
        return folder / self.run_name


def recorded_settings(folder: Path, experiment: str = "classification") -> dict[str, Any]:
    """Parameters of a recorded run."""
    return dict(json.loads((folder / "results" / f"{experiment}.json").read_text("utf8"))["params"])


def recorded_cells(folder: Path, experiment: str = "classification") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reported cells and tuning candidates of a recorded run."""
    rows = read_table(folder, experiment)
    reported = rows["reported"].astype(bool)
    tried = rows[~reported & rows["chosen"].notna()]
    return rows[reported].reset_index(drop=True), tried.assign(
        chosen=tried["chosen"].astype(bool)
    ).reset_index(drop=True)


def recorded_agreement(folder: Path) -> pd.DataFrame:
    """Overlap of pairs of masks in a recorded run, see `masks.mask_agreement`."""
    found = [result for result in read_results(folder / "cells") if result.key.kind == "agreement"]
    return pd.DataFrame([pair for result in found for pair in result.content["pairs"]])


def recorded_setting(cells: pd.DataFrame, settings: dict[str, Any]) -> Prose:
    """How far a recorded setting is from the paper's."""
    first = cells.iloc[0]
    retrain = cells[(cells["method"] == "retrain") & (cells["replica"] == 0)]
    random = retrain[retrain["scenario"] == "random 10%"]
    pixels = f", images reduced to {settings['image_size']} pixels" if settings.get("image_size") else ""
    text = (
        f"These runs: {first['dataset']}{pixels}, {first['arch']} of width {first['width']} (the paper's has 64), recipe "
        f"{settings['recipe']}, {cells['seed'].nunique()} seeds, on {first['device']}."
    )
    if len(random):
        published = read_published(published_folder() / "table1_cifar10_resnet18_random.csv")
        theirs = published[
            (published["setting"] == "random data forgetting 10%")
            & (published["method"] == "Retrain")
            & (published["metric"] == "TA")
        ]["value"].iloc[0]
        ours = 100 * random["TA"].astype(float).mean()
        text += (
            f" Retrain reaches a test accuracy of {ours:.1f}%, the paper's {theirs:.1f}%. Levels are therefore not "
            "comparable; the order of the methods, and gaps relative to the noise floor, are."
        )
    return Prose(text)
