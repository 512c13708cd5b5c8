"""What notebooks show of a run besides the common tables and figures."""

from pathlib import Path
from typing import Any

import pandas as pd

from salun_core.experiments.cells import Cell, MaskSpec
from salun_core.experiments.classification import Results, default_mask
from salun_core.experiments.classifier_lab import ClassifierLab
from salun_core.metrics import ATTACKS
from salun_core.metrics.gaps import AVERAGE, noise_floor
from salun_core.paths import project_root
from salun_core.saliency import layer_table
from salun_core.tables import Table, methods_table, name_of


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


def sentences(results: Results) -> Prose:
    """What a run shows, in sentences computed from it."""
    said = []
    for scenario in dict.fromkeys(results.cells["scenario"]):
        part = results.cells[results.cells["scenario"] == scenario]
        table = methods_table(part, scenario)
        competing = table[~table["method"].isin(["retrain", "original"])].sort_values(AVERAGE)
        if competing.empty:
            continue
        best = competing.iloc[0]
        text = (
            f"**{scenario}.** Nearest to Retrain is {best['Method']}, with an average gap of "
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


def provenance_table(results: Results) -> Table:
    """Where and with what the cells of a run were computed."""
    stored = {r.key.name: r for r in results.lab.store.all()}
    found = [stored[name].provenance for name in results.cells["cell"] if name in stored]
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
        ("seconds in all", f"{results.cells['seconds'].fillna(0).sum():.0f}"),
    ]
    return Table(pd.DataFrame(rows, columns=["Parameter", "Value"]), "Provenance of the reported cells")
