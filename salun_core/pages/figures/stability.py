"""Figures of what happens when the share to forget or the settings of a method change."""

import math

import numpy as np
import pandas as pd
import seaborn as sns

from salun_core.methods import name_of
from salun_core.metrics.gaps import by_method, gaps, noise_floor
from salun_core.pages.figures.chart import Chart, look, panels, style
from salun_core.pages.findings import stability as findings
from salun_core.pages.text import stability as words
from salun_core.pages.tooltips import Tooltip, origin_of, origins_of_mean
from salun_core.pages.words import counted, diverged


def over_shares(cells: pd.DataFrame) -> Chart:
    """|UA - UA(Retrain)| over the share to forget, with intervals over seeds (the paper's Figure 2a)."""
    part = gaps(cells)
    part = part[part["method"] != "retrain"].assign(
        share=part["scenario"].str.extract(r"([\d.]+)%")[0].astype(float)
    )
    table = by_method(part, "gap UA", group=("method", "mask", "share"))
    floor = noise_floor(cells)
    tooltips = []
    with style():
        fig, axis = panels(height=3.8)
        if len(floor):
            axis.axhspan(0, 100 * floor["gap UA"].max(), color="0.88", lw=0)
        for i, ((method, mask), mine) in enumerate(table.groupby(["method", "mask"], sort=False)):
            mine = mine.sort_values("share")
            x = mine["share"] * (1 + 0.02 * (i - 2.5))
            half = 100 * (mine["high"] - mine["mean"])
            colour, marker = look(str(method))
            axis.errorbar(
                x,
                100 * mine["mean"],
                yerr=half,
                color=colour,
                marker=marker,
                lw=1.4,
                capsize=2,
                label=name_of(str(method), str(mask)),
            )
            for place, (_, row) in zip(x, mine.iterrows(), strict=True):
                runs = part[
                    (part["method"] == method)
                    & (part["mask"] == mask)
                    & (part["share"] == row["share"])
                    & (part["replica"] == 0)
                ]
                tooltips.append(
                    Tooltip(axis, origins_of_mean(runs, "gap UA"), float(place), 100 * row["mean"])
                )
        axis.set(
            xscale="log",
            xlabel="share of the training images to forget (%)",
            ylabel="|UA − UA(Retrain)| (points)",
        )
        axis.set_ylim(bottom=0)
        axis.set_xticks(sorted(part["share"].unique()), [f"{s:g}" for s in sorted(part["share"].unique())])
        axis.minorticks_off()
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    found = findings.over_shares(cells)
    said = words.over_shares(found)
    return Chart(
        fig,
        said,
        f"{said} Mean and 95% t interval, n = {found.seeds} seeds; settings chosen once, for the tuning share. Grey: gaps between "
        f"models retrained on one split.{diverged(part)}",
        found,
        tooltips=tuple(tooltips),
    )


def ua_over_settings(spread: pd.DataFrame) -> Chart:
    """Distribution of UA over a method's settings, with Retrain's as a line (the paper's Figure 2b)."""
    target = 100 * spread.loc[spread["method"] == "retrain", "UA"].astype(float).mean()
    rows = spread[spread["method"] != "retrain"].dropna(subset=["UA"])
    groups = list(rows.groupby(["method", "mask"], sort=False))
    tooltips = []
    with style():
        fig, axis = panels(height=0.42 * len(groups) + 1.1)
        axis.axvline(target, color="black", ls="--", lw=1)
        for y, ((method, _), mine) in enumerate(groups):
            colour, marker = look(str(method))
            ua = 100 * mine["UA"].astype(float)
            axis.boxplot(
                ua,
                positions=[y],
                orientation="horizontal",
                widths=0.5,
                showfliers=False,
                whis=(0, 100),
                medianprops={"color": colour},
                boxprops={"color": colour},
                whiskerprops={"color": colour},
                capprops={"color": colour},
            )
            places = y + np.linspace(-0.14, 0.14, len(ua))
            axis.plot(ua, places, marker, color=colour, alpha=0.6, ms=4, mew=0)
            tooltips += [
                Tooltip(axis, origin_of(row, f"UA {value:.2f}%"), float(value), float(place))
                for (_, row), value, place in zip(mine.iterrows(), ua, places, strict=True)
            ]
        axis.set_yticks(range(len(groups)), [name_of(str(m), str(k)) for (m, k), _ in groups])
        axis.set(xlabel="UA (%)", xlim=(-2, 102))
        axis.text(target, len(groups) - 0.35, f"Retrain {target:.1f}", ha="left", fontsize=9)
    found = findings.over_settings(spread)
    said = words.over_settings(found)
    lost = f" {counted(found.diverged, 'setting')} diverged and are not shown." if found.diverged else ""
    return Chart(
        fig,
        said,
        f"{said} Each point is one setting (n = {len(rows)}), seed {spread['seed'].iloc[0]}; box: quartiles, whiskers: range; "
        f"dashed: Retrain.{lost}",
        found,
        tooltips=tuple(tooltips),
    )


def response_surface(surface: pd.DataFrame) -> Chart:
    """SalUn's distance to Retrain over learning rate (columns) and epochs (rows), a panel for each density.

    Parameters
    ----------
    surface : DataFrame
        Candidates with ``distance`` (see ``experiments.tuning.with_distance``) and ``settings``.
    """
    rows = surface.assign(
        lr=[s["lr"] for s in surface["settings"]],
        epochs=[s["epochs"] for s in surface["settings"]],
        points=100 * surface["distance"].replace(math.inf, math.nan),
    )
    keeps = sorted(rows["keep"].unique())
    with style():
        fig, axes = panels(1, len(keeps), height=2.6, sharey=True, squeeze=False)
        for axis, keep in zip(axes[0], keeps, strict=True):
            grid = (
                rows[rows["keep"] == keep]
                .pivot_table(index="epochs", columns="lr", values="points")
                .sort_index(ascending=False)
            )
            sns.heatmap(
                grid,
                ax=axis,
                annot=True,
                fmt=".1f",
                cmap="cividis_r",
                cbar=False,
                vmin=0,
                vmax=rows["points"].max(),
                annot_kws={"size": 9},
            )
            axis.set(
                title=f"keep {keep:g}", xlabel="learning rate", ylabel="epochs" if keep == keeps[0] else ""
            )
            axis.set_xticklabels([f"{v:.2g}" for v in grid.columns], rotation=45)
    found = findings.surface(surface)
    said = words.surface(found)
    return Chart(
        fig,
        said,
        f"{said} Mean gap over UA, RA, validation accuracy and MIA on the tuning seed (n = 1 model a field).",
        found,
    )
