"""What notebooks on generative models show besides the common tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.experiments.generation.lab import GenerationLab, grid_samples, result_of
from salun_core.methods import name_of
from salun_core.metrics.share import Share, wilson
from salun_core.models.diffusion.unet import load_diffusion, save_diffusion
from salun_core.pages.tables import Table, number, spread
from salun_core.pages.text.classification import Prose
from salun_core.pages.tooltips import behind

MiB = 2**20


def row_of(cells: pd.DataFrame, **wanted: str) -> pd.Series:
    """The first finished row with these values, such as ``method="original"``.

    Raises
    ------
    UserError
        If the run has none.
    """
    done = cells[cells["status"] == "done"]
    for name, value in wanted.items():
        done = done[done[name] == value]
    if done.empty:
        said = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise UserError(f"this run has no finished cell of {said}: add it to the parameters")
    return done.iloc[0]


def samples_by_name(
    lab: GenerationLab, cells: pd.DataFrame, names: Sequence[str] = ()
) -> dict[str, tuple[Tensor, Tensor]]:
    """Stored samples of the first seed and forgotten class, by the name of method and mask.

    Parameters
    ----------
    names : sequence of str
        The names wanted, in order; all by default.
    """
    rows = _first(cells)
    found = {name: lab.samples(result_of(lab, row)) for name, row in rows.items()}
    return {name: found[name] for name in names if name in found} if names else found


def recorded_samples(folder: Path, cells: pd.DataFrame) -> dict[str, tuple[Tensor, Tensor]]:
    """The first samples of each recorded model, from the pictures that are committed with its cell.

    Raises
    ------
    UserError
        If a picture is missing or damaged.
    """
    found = {}
    for name, row in _first(cells).items():
        path = folder / "cells" / f"{row['cell']}.grid.png"
        try:
            found[name] = grid_samples(path.read_bytes(), classes=len(row["classes"]))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; restore it from git") from error
    return found


def confusions_by_name(
    lab: GenerationLab, cells: pd.DataFrame, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Classes asked for against classes recognised, of the same rows as `samples_by_name`."""
    rows = _first(cells)
    return {
        name: lab.recognition(result_of(lab, rows[name])).counts for name in names or rows if name in rows
    }


def origins_by_name(cells: pd.DataFrame) -> dict[str, str]:
    """Where the samples of `samples_by_name` come from, in lines."""
    return {
        name: behind(row, f"UA {100 * row['UA']:.1f}%, other classes {100 * row['OA']:.1f}%")
        for name, row in _first(cells).items()
    }


def _first(cells: pd.DataFrame) -> dict[str, pd.Series]:
    done = cells[(cells["replica"] == 0) & (cells["status"] == "done")]
    first = done[(done["seed"] == done["seed"].iloc[0]) & (done["scenario"] == done["scenario"].iloc[0])]
    return {name_of(row["method"], row["mask"]): row for _, row in first.iterrows()}


def generation_table(cells: pd.DataFrame) -> Table:
    """Method × (UA, other classes, strays, Fréchet distance, cost of unlearning and of its mask)."""
    part = cells[(cells["replica"] == 0) & (cells["status"] == "done")]
    lines = []
    for (method, mask), mine in part.groupby(["method", "mask"], sort=False):
        line: dict[str, Any] = {"Method": name_of(str(method), str(mask))}
        for column, title in (("UA", "UA"), ("OA", "Others"), ("strays", "Strays")):
            values = 100 * mine[column].astype(float)
            line[title] = spread(values.mean(), values.std(ddof=1))
            if len(mine) == 1 and column != "strays":
                share = _share(mine, column)
                line[title] += f"\n({100 * share.low:.0f}–{100 * share.high:.0f})"
        for column in ("FD", "FD floor"):
            values = mine[column].astype(float)
            line[column] = spread(values.mean(), values.std(ddof=1))
        line["RTE (s)"] = number(float(mine["seconds"].astype(float).mean()), 1)
        line["of it mask"] = number(float(mine["mask_seconds"].astype(float).mean()), 1)
        if mine["peak_memory"].notna().any():
            line["Peak (MiB)"] = number(float(mine["peak_memory"].astype(float).mean()) / MiB, 0)
        lines.append(line)
    first = part.iloc[0]
    runs = part[["seed", "scenario"]].drop_duplicates()
    spreads = (
        f"mean ± standard deviation over {len(runs)} runs (seeds and classes)"
        if len(runs) > 1
        else "95% Wilson intervals below, for this one run"
    )
    caption = (
        f"{first['dataset']}, {', '.join(map(str, part['forgotten'].unique()))} forgotten: UA and the share of samples "
        f"of other classes recognised as asked, in percent, {spreads}; strays are samples of other classes taken for the "
        f"forgotten one. {first['n_class']} samples a class, judge right on {100 * first['judge']:.1f}% of real test "
        f"images. {first['distance']}, n = {first['n_distance']:.0f}; its floor is real against real images."
    )
    return Table(pd.DataFrame(lines), caption)


def _share(rows: pd.DataFrame, column: str) -> Share:
    """UA or OA over the samples of all ``rows``."""
    found = total = 0
    for _, row in rows.iterrows():
        counts = pd.DataFrame(row["confusion"]).to_numpy()
        n = int(counts.sum(axis=1).max())
        n = int(counts.sum()) - n if column == "OA" else n
        found += round(float(row[column]) * n)
        total += n
    return wilson(found, n=total)


def _alike(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether the intervals of two models overlap in UA and in OA."""
    pairs = ((_share(a, column), _share(b, column)) for column in ("UA", "OA"))
    return all(x.low <= y.high and y.low <= x.high for x, y in pairs)


def generation_sentences(cells: pd.DataFrame) -> Prose:
    """Who forgets, who forgets too much, and what it costs beside retraining."""
    part = cells[(cells["replica"] == 0) & (cells["status"] == "done")]
    means = part.groupby(["method", "mask"], sort=False)[["UA", "OA", "FD", "seconds"]].mean(
        numeric_only=False
    )
    means = means.astype(float)
    labels = {key: name_of(*map(str, key)) for key in means.index}
    unlearned = means.drop(index=[key for key in means.index if key[0] in ("original", "retrain")])
    said = []
    if ("original", "none") in means.index:
        before = means.loc[("original", "none")]
        said.append(
            f"The judge recognises {100 * (1 - before['UA']):.1f}% of the original model's samples of the class to be "
            f"forgotten and {100 * before['OA']:.1f}% of the others."
        )
    under = [labels[key] for key, row in unlearned.iterrows() if row["UA"] < 0.5]
    known = means["OA"].get(("original", "none"), 1.0)
    over = [labels[key] for key, row in unlearned.iterrows() if row["OA"] < 0.9 * known]
    said.append(
        f"Under-forgetting (UA below one half): {_listed(under)}. Over-forgetting (the other classes recognised less than "
        f"90% as often as before): {_listed(over)}."
    )
    if ("retrain", "none") in means.index:
        retrain = means.loc[("retrain", "none")]
        gap = 100 * (unlearned[["UA", "OA"]] - retrain[["UA", "OA"]]).abs().mean(axis=1)
        near = gap.idxmin()
        rows = dict(list(part.groupby(["method", "mask"])))
        alike = [labels[key] for key in unlearned.index if _alike(rows[key], rows["retrain", "none"])]
        said.append(
            f"Nearest to Retrain in both together is {labels[near]}, {gap.min():.1f} points away on average; Retrain takes "
            f"{retrain['seconds']:.0f} s and {labels[near]} {means.loc[near, 'seconds']:.1f} s. The samples do not "
            f"suffice to tell from Retrain, by their 95% intervals: {_listed(alike)}."
        )
    floor = part["FD floor"].astype(float).mean()
    within = [labels[key] for key, row in unlearned.iterrows() if row["FD"] <= floor]
    said.append(
        f"Real images lie {floor:.2f} from real images ({part.iloc[0]['distance']}). Samples of the other classes lie "
        f"within that distance for: {_listed(within)}."
    )
    return Prose("\n\n".join(said))


def mask_sentences(masks: pd.DataFrame) -> Prose:
    """Whether it matters which weights the mask keeps."""
    part = masks[masks["status"] == "done"] if len(masks) else masks
    if part.empty:
        return Prose("This run has no masks to compare.")
    means = (
        part.groupby(["method", "mask"], sort=False)[["UA", "OA", "FD"]]
        .mean(numeric_only=False)
        .astype(float)
    )
    rows = {mask: row for (_, mask), row in means.iterrows()}
    if "salient" not in rows or len(rows) < 2:
        return Prose("There is nothing to compare the salient mask with in this run.")
    mine, n = rows["salient"], part[["seed", "scenario"]].drop_duplicates().shape[0]
    said = [
        f"against {'no mask' if mask == 'none' else 'the ' + mask.replace('_', ' ') + ' mask'} "
        f"{100 * (mine['UA'] - row['UA']):+.1f} points of UA, {100 * (mine['OA'] - row['OA']):+.1f} of other classes, "
        f"{mine['FD'] - row['FD']:+.2f} of Fréchet distance"
        for mask, row in rows.items()
        if mask != "salient"
    ]
    of_mask = dict(list(part.groupby("mask")))
    alike = [
        "no mask" if mask == "none" else mask.replace("_", " ")
        for mask in rows
        if mask != "salient" and _alike(of_mask[mask], of_mask["salient"])
    ]
    each = int(part.iloc[0]["n_class"])
    return Prose(
        f"The salient mask brings, {'; '.join(said)} (n = {n} {'run' if n == 1 else 'runs'}). One sample more or less is "
        f"{100 / each:.1f} points of UA. In UA and in the other classes, the 95% intervals of the samples do not tell it "
        f"from: {_listed(alike)}."
    )


def saved_model(model: nn.Module, schedule: Any, folder: Path) -> Prose:
    """Save a diffusion model as a diffusers folder, read it again, and say how large it is."""
    save_diffusion(model, schedule, folder)
    again, _ = load_diffusion(folder)
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    equal = "equal" if all(torch.equal(a.cpu(), b) for a, b in pairs) else "not equal"
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return Prose(f"{folder.name}: {size / MiB:.1f} MiB of weights; read again they are {equal}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
