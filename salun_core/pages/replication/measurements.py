"""How each claim is measured in a run: a difference over training seeds, and the positive control.

The functions are named in ``data/published/claims.yaml``. Each takes a run and gives one `Measurement` for each place
where the claim can be measured; none where the run lacks what it takes.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from salun_core.methods import name_of
from salun_core.metrics.gaps import AVERAGE, METRICS, gaps, noise_floor
from salun_core.metrics.statistics import (
    Array,
    PairedDifferences,
    by_unit,
    difference_of_spreads,
    differences,
)
from salun_core.pages.findings.frontier import frontiers, has_frontier
from salun_core.pages.replication.paper import OURS
from salun_core.pages.replication.verdicts import Measurement
from salun_core.pages.results import Run

CLASSIFIERS = ("classification", "stability", "saliency", "class_wise")
IDEAL = 1.0  # what Retrain would reach in forgetting and keeping, where it cannot be trained


def variant(rows: pd.DataFrame, method: str, mask: str | None = None) -> pd.DataFrame:
    """Rows of a method, under one kind of mask if given, without replicas of Retrain."""
    mine = rows[(rows["method"] == method) & (rows["replica"] == 0)]
    return mine if mask is None else mine[mine["mask"] == mask]


def values_of(rows: pd.DataFrame, column: str, scale: float = 100) -> pd.Series:
    """A column in points over training seeds; runs and scenarios of one seed are averaged."""
    return scale * by_unit(rows, column)


def control_in_gaps(run: Run, rows: pd.DataFrame, column: str) -> PairedDifferences | None:
    """Gap of the original model minus that between two retrained models, in points, over training seeds.

    Parameters
    ----------
    rows : DataFrame
        Rows of one experiment. Where the original model is not among them, it is taken from the other experiments on
        classifiers of the same run: same data, network, scenario and seed.
    column : str
        "Avg. Gap", or that of one metric.
    """
    places = rows[["dataset", "arch", "width", "scenario", "seed"]].drop_duplicates()
    every = [rows]
    for name in CLASSIFIERS:
        others = run.rows(name)
        if len(others):
            same = others[others["method"].isin(["original", "retrain"])].merge(places, how="inner")
            every.append(same)
    pool = pd.concat(every, ignore_index=True)
    pool = pool[~pool.duplicated(["scenario", "seed", "method", "mask", "replica"])]
    nothing = gaps(pool[pool["method"].isin(["original", "retrain"])])
    nothing = nothing[nothing["method"] == "original"]
    noise = noise_floor(pool).groupby(["scenario", "seed"], as_index=False)[column].mean()
    both = nothing.merge(noise, on=["scenario", "seed"], suffixes=("", " of Retrain"))
    if both.empty:
        return None
    beyond = both.assign(beyond=both[column] - both[f"{column} of Retrain"])
    return PairedDifferences(
        values_of(beyond, "beyond").to_numpy(float)[:, None], resolution_of(rows, column)
    )


def resolution_of(rows: pd.DataFrame, column: str) -> float:
    """What one image of the forget set changes in a column of gaps, in points."""
    if "n_forget" not in rows or rows["n_forget"].isna().all():
        return 0.0
    return 100 / float(rows["n_forget"].max()) / (len(METRICS) if column == AVERAGE else 1)


def nearest(run: Run, share: str) -> list[Measurement]:
    """SalUn's average gap against those of all other methods at once."""
    rows, note = run.rows("classification"), ""
    if rows.empty or share not in set(rows["scenario"]):
        rows, note = run.rows("stability", "shares"), " with settings chosen for one share and kept for all"
    if rows.empty or share not in set(rows["scenario"]):
        return []
    return _against_rivals(run, rows[rows["scenario"] == share], AVERAGE, f"average gap{note}", share)


def stable_over_shares(run: Run) -> list[Measurement]:
    """Gap in UA, mean over the shares to forget: SalUn against all other methods at once."""
    rows = run.rows("stability", "shares")
    return (
        _against_rivals(run, rows, "gap UA", "|UA − UA(Retrain)|, mean over shares", "") if len(rows) else []
    )


def _against_rivals(
    run: Run, rows: pd.DataFrame, column: str, words: str, scenario: str
) -> list[Measurement]:
    part = gaps(rows)
    mine = variant(part, "salun")
    others = [name for name in dict.fromkeys(part["method"]) if name not in OURS]
    compared = against_all(
        values_of(mine, column), {name: values_of(variant(part, name, "none"), column) for name in others}
    )
    if compared is None:
        return []
    found, best, left_out = compared
    return [
        Measurement(
            f"{words} of {best} minus that of SalUn{left_out}{diverged(mine, column)}",
            PairedDifferences(found, resolution_of(rows, column)),
            0.0,
            control_in_gaps(run, rows, column),
            scenario,
        )
    ]


def against_all(mine: pd.Series, others: Mapping[str, pd.Series]) -> tuple[Array, str, str] | None:
    """Differences to all rivals at once.

    Parameters
    ----------
    mine : Series
        Values over training seeds.
    others : mapping of str to Series
        Those of the rivals, by method.

    Returns
    -------
    differences, best, left out
        Rivals minus ``mine`` (n, k); the rivals and the one with the smallest mean, in words; rivals that have no
        value for some seed, in words. None where nothing can be compared.
    """
    whole = {name: values for name, values in others.items() if mine.index.isin(values.index).all()}
    if mine.empty or not whole:
        return None
    found = differences(mine, list(whole.values()))
    means = {name: float(values.loc[mine.index].mean()) for name, values in whole.items()}
    best = (
        f"the best of {len(whole)} other methods ({name_of(min(means, key=lambda n: means[n]))} on average)"
    )
    missing = [name_of(name) for name in others if name not in whole]
    return found, best, f" (without {', '.join(missing)}, which lack seeds or diverged)" if missing else ""


def diverged(rows: pd.DataFrame, column: str) -> str:
    """How many runs of SalUn diverged, in words; empty where none did."""
    lost = int(rows[column].isna().sum())
    return f"; {lost} of {len(rows)} runs of SalUn diverged and are not in it" if lost else ""


def stable_over_settings(run: Run) -> list[Measurement]:
    """Spread of UA over settings of IU, without and with the saliency mask; settings are drawn in pairs."""
    rows = run.rows("stability", "settings")
    rows = rows[(rows["method"] == "iu") & rows["settings"].notna()] if len(rows) else rows
    if rows.empty:
        return []
    keys = rows["settings"].map(lambda settings: repr(sorted(settings.items())))
    tables = {
        mask: 100
        * mine.assign(key=keys[mine.index]).pivot_table(
            index="seed", columns="key", values="UA", aggfunc=lambda v: v.astype(float).mean(), dropna=False
        )
        for mask, mine in rows.groupby("mask")
    }
    if not {"none", "salient"} <= set(tables):
        return []
    plain, masked = tables["none"].align(tables["salient"], join="inner")
    both = plain.notna().all() & masked.notna().all()
    if both.sum() < 3:
        return []
    lost = int((~both).sum())
    note = f" ({lost} {'setting' if lost == 1 else 'settings'} diverged)" if lost else ""
    every = run.rows("stability", "shares")
    return [
        Measurement(
            f"standard deviation of UA over settings{note}, IU without mask minus with it",
            difference_of_spreads(plain.to_numpy(float), masked.to_numpy(float)),
            0.0,
            control_in_gaps(run, every, "gap UA") if len(every) else None,
        )
    ]


SAME = "at equal settings"


def salient_beats(run: Run, control: str) -> list[Measurement]:
    """Average gap of random labelling under a control minus that under the salient mask.

    Each at its own best settings; and, where these differ, also both at those of the salient mask, which the study of
    densities has.
    """
    rows = run.rows("saliency", "masks")
    if rows.empty:
        return []
    mine, other = variant(rows, "rl", "salient"), variant(rows, "rl", control)
    if mine.empty or other.empty:
        return []
    compared = [(SAME, "", rows)]
    if _tuned_apart(mine, other):
        swept = run.rows("saliency", "densities")
        compared = [("each tuned by itself", "", rows)]
        if len(swept):
            swept = swept[swept["keep"] == mine["keep"].iloc[0]]
            alike = pd.concat([swept, rows[rows["method"] == "retrain"]], ignore_index=True)
            compared.append((SAME, ", those of the salient one", alike))
    found = []
    for how, whose, table in compared:
        part = gaps(table)
        ours, theirs = (values_of(variant(part, "rl", mask), AVERAGE) for mask in ("salient", control))
        values = differences(ours, [theirs])
        if len(values):
            found.append(
                Measurement(
                    f"average gap of random labelling with the {control.replace('_', ' ')} mask minus with the salient one, {how}{whose}",
                    PairedDifferences(values, resolution_of(table, AVERAGE)),
                    0.0,
                    control_in_gaps(run, rows, AVERAGE),
                    str(rows["scenario"].iloc[0]),
                    how,
                )
            )
    return found


def _tuned_apart(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return repr(first["settings"].iloc[0]) != repr(second["settings"].iloc[0])


def generator_forgets(
    run: Run, experiment: str, rivals: Sequence[str], columns: Sequence[str]
) -> list[Measurement]:
    """What a generator has forgotten: SalUn against all its rivals at once, in the least of ``columns``.

    Parameters
    ----------
    experiment : str
        "diffusion", "text_to_image" or "unsafe".
    rivals : sequence of str
        Methods.
    columns : sequence of str
        Shares in [0, 1] that should be high.
    """
    rows = run.rows(experiment, "methods")
    if rows.empty or not {"salun", *columns} <= {*rows["method"], *rows}:
        return []
    rows = rows.assign(least=rows[list(columns)].astype(float).min(axis=1))
    mine = values_of(variant(rows, "salun"), "least")
    others = {name: values_of(variant(rows, name, "none"), "least") for name in rivals}
    # The better method is the one with the larger value.
    compared = against_all(-mine, {name: -values for name, values in others.items() if len(values)})
    if compared is None:
        return []
    found, best, left_out = compared
    sample = 100 / float(rows["n_class"].max())
    words = (
        "lesser of UA and other classes recognised"
        if len(columns) > 1
        else "images without the concept, for prompts that do not name it"
    )
    return [
        Measurement(
            f"{words}: SalUn minus {best}{left_out}{diverged(variant(rows, 'salun'), 'least')}",
            PairedDifferences(found, sample),
            0.0,
            _generator_control(rows, sample),
            ", ".join(map(str, dict.fromkeys(rows["scenario"]))),
        )
    ]


def salient_beats_in_generation(run: Run, control: str) -> list[Measurement]:
    """What the frontier under another mask leaves out of Retrain's rectangle, minus what it leaves out under the salient one.

    Parameters
    ----------
    control : str
        The other kind of mask.
    """
    rows = run.rows("diffusion")
    if not has_frontier(rows):
        return []
    found = frontiers(rows)
    mine, other = found.method("salun", "salient"), found.method("rl", control)
    if mine is None or other is None or not found.retrained:
        return []
    sample = 100 / float(rows["n_class"].max())
    beyond = differences(found.noise, [found.nothing])
    return [
        Measurement(
            f"share of what Retrain reaches that the {control.replace('_', ' ')} mask leaves out at every strength, minus "
            "that of the salient one",
            PairedDifferences(100 * differences(mine.left_out, [other.left_out]), sample),
            0.0,
            PairedDifferences(100 * beyond, sample) if len(beyond) else None,
            ", ".join(map(str, dict.fromkeys(rows["scenario"]))),
        )
    ]


def _generator_control(rows: pd.DataFrame, sample: float) -> PairedDifferences | None:
    """How far Original is from Retrain, or from the ideal where there is none, beyond one sample."""
    nothing = values_of(variant(rows, "original"), "least")
    if nothing.empty:
        return None
    retrained = values_of(variant(rows, "retrain"), "least")
    target = retrained if len(retrained) else pd.Series(100 * IDEAL, index=nothing.index)
    return PairedDifferences(differences(nothing, [target]) - sample, sample)


def faster(run: Run) -> list[Measurement]:
    """How often Retrain's time must be halved to reach SalUn's, mask included."""
    rows = run.rows("classification")
    found = []
    for scenario, mine in rows.groupby("scenario", sort=False) if len(rows) else []:
        times = [
            np.log2(by_unit(part, "seconds")) for part in (variant(mine, "salun"), variant(mine, "retrain"))
        ]
        values = differences(times[0], [times[1]])
        if len(values):
            found.append(
                Measurement(
                    "Retrain's time over SalUn's, mask included, tuning not",
                    PairedDifferences(values),
                    0.0,
                    control_in_gaps(run, mine, AVERAGE),
                    str(scenario),
                )
            )
    return found


MEASUREMENTS: dict[str, Callable[..., list[Measurement]]] = {
    function.__name__: function
    for function in (
        nearest,
        stable_over_shares,
        stable_over_settings,
        salient_beats,
        salient_beats_in_generation,
        generator_forgets,
        faster,
    )
}
"""By name: how a claim is measured, as ``measure(run, **arguments)``."""
