"""The history of the mask in the released code as one figure: what it was, from when to when, and what that changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from salun_core.pages.figures.chart import Chart, panels, style
from salun_core.pages.replication.errata import Change, protocol_changes, read_errata
from salun_core.pages.results import Run, all_runs
from salun_core.pages.words import data_and_network

FIRST, LAST = date(2023, 10, 11), date(2026, 12, 31)  # the first release, and the end of the figure
PROJECT = "SalUn, reproducible"  # the title of the book, in _config.yml
BARE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # of a number, so that no line runs through it
COLOURS = {"least salient": "#D55E00", "most salient": "#0072B2", "no mask": "#8C8C8C"}


@dataclass(frozen=True)
class Period:
    """One state of the released code.

    Parameters
    ----------
    begin, end : date
        The first and the last day; `LAST` where it is the state of today.
    where, mask, also : str
        Which code, which weights it trains, and what else was peculiar.
    change : Change or None
        Its effect, where it was measured.
    """

    begin: date
    end: date
    where: str
    mask: str
    also: str
    change: Change | None


def periods(errata: Sequence[dict[str, Any]], changes: dict[str, Change]) -> list[Period]:
    """The differences that have a time and a mask, in the order of the file."""
    found = []
    for entry in errata:
        if "mask" in entry:
            begin, end = dates_of(entry["when"])
            where = entry["where"].removeprefix("released code, ")
            change = changes.get(entry.get("protocol", ""))
            found.append(Period(begin, end, where, entry["mask"], entry["also"], change))
    return found


def dates_of(when: str) -> tuple[date, date]:
    """First and last day of "2023-12-01 to 2023-12-16", "since 2026-02-28" or "until 2024-05-15"."""
    begin, _, end = when.rpartition(" to ")
    if when.startswith("since "):
        begin, end = when.removeprefix("since "), LAST.isoformat()
    begin = begin or FIRST.isoformat()
    return date.fromisoformat(begin), date.fromisoformat(end.removeprefix("until "))


def figure(out_dir: Path | None = None) -> Chart:
    """Every period of the released code on one line of time, with its effect in the run that has most seeds."""
    every = {run.name: run for run in all_runs(out_dir)}
    runs = {name: protocol_changes(run) for name, run in every.items()}
    name = max(runs, key=lambda n: (bool(runs[n]), n != "quick", most_seeds(runs[n])), default="")
    found = periods(read_errata(), runs.get(name, {}))
    return timeline(found, name, setting(every[name])) if runs.get(name) else timeline(found, "")


def setting(run: Run) -> str:
    """Data set, network and number of seeds behind the effects."""
    rows = run.rows("saliency")
    rows = rows[rows["protocol"].notna()]
    return f"{data_and_network(rows.iloc[0])}, {rows['seed'].nunique()} seeds"


def most_seeds(changes: dict[str, Change]) -> int:
    """The largest number of seeds behind a change."""
    return max((change.n for change in changes.values()), default=0)


def timeline(found: Sequence[Period], run: str, where: str = "") -> Chart:
    """Draw the periods.

    Parameters
    ----------
    found : sequence of Period
        Each becomes a row.
    run : str
        Where the effects were measured; empty if nowhere.
    where : str
        Data set, network and seeds of that run.
    """
    with style():
        fig, (left, right) = panels(
            1, 2, height=0.78 * len(found) + 0.9, sharey=True, width_ratios=[2.1, 1], squeeze=True
        )
        for y, period in enumerate(found):
            colour = COLOURS.get(period.mask.split(":")[0], "#333333")
            begin, end = day(period.begin), day(period.end)
            left.barh(y + 0.2, max(end - begin, 12), left=begin, height=0.22, color=colour)
            if period.end == LAST:
                left.plot(end, y + 0.2, ">", color=colour, ms=8, clip_on=False)
            words = f"{period.where}: {period.mask}"
            left.text(day(FIRST), y - 0.12, words, va="bottom", fontsize=9.5, weight="bold")
            left.text(day(FIRST), y + 0.04, period.also, va="bottom", fontsize=8.5)
            effect(right, y + 0.2, period.change, colour)
        left.set_ylim(len(found) - 0.4, -0.55)
        left.set_xlim(day(FIRST) - 10, day(LAST))
        years = range(FIRST.year + 1, LAST.year + 1)
        left.set_xticks([day(date(year, 1, 1)) for year in years], [str(year) for year in years])
        left.set_yticks([])
        for axis in (left, right):
            axis.spines["left"].set_visible(False)
        right.axvline(0, color="0.6", lw=1, zorder=0)
        right.tick_params(left=False)
        right.set_xlabel("change of the average gap\n(points)")
        # Within the picture, for it is shown elsewhere without its caption.
        bars = "Left: when each state was released, short ones as twelve days. "
        bars += f"Right: mean ± standard deviation, {where}.\n" if where else "Effects: not measured.\n"
        footer = f"{bars}{PROJECT}"
        fig.supxlabel(footer, x=0.01, ha="left", fontsize=8, color="0.35")
        fig.suptitle("What the mask of the released code was, and what that changes", fontsize=11.5)
    told = "; ".join(sentence(period) for period in found)
    measured = f"in run {run}, mean ± standard deviation over seeds" if run else "measured in no run so far"
    caption = (
        "The released code since October 2023: which weights it trained, and how that changes the average gap of random "
        f"labelling compared with the paper's protocol ({measured}). Short periods are drawn as twelve days"
    )
    return Chart(fig, f"Timeline of the released code. {told}.", caption)


def effect(axis: Any, y: float, change: Change | None, colour: str) -> None:
    """One measured change as a mark with its spread, or why there is none."""
    if change is None or not change.n:
        said = "not measured" if change is None else "diverged"
        axis.text(0.5, y, said, va="center", ha="center", fontsize=8.5, transform=axis.get_yaxis_transform())
        return
    spread = 0 if math.isnan(change.std) else change.std
    axis.errorbar(change.mean, y, xerr=spread, fmt="o", color=colour, ms=6, lw=1.6)
    axis.annotate(
        f"{change.mean:+.2f}",
        (change.mean, y),
        (0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        bbox=BARE,
    )


def sentence(period: Period) -> str:
    """A period in words, for those who do not see the figure."""
    until = "until today" if period.end == LAST else f"to {period.end}"
    change = "not measured" if period.change is None else str(period.change).replace("\n", " ")
    return f"{period.where}, {period.begin} {until}: {period.mask}, {period.also}; change {change}"


def day(when: date) -> int:
    """A date as a number."""
    return when.toordinal()
