"""Figures of what detectors count, of how a concept comes back, and of erasure against utility."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from salun_core.errors import UserError
from salun_core.methods import name_of
from salun_core.metrics.generation.detection import ANY, Redacted
from salun_core.pages.figures.chart import Chart, look, panels, style
from salun_core.pages.figures.sample_grids import arranged, beside, picture
from salun_core.pages.findings import text_to_image as prompts
from salun_core.pages.findings import unsafe as findings
from salun_core.pages.text import text_to_image as prompt_words
from salun_core.pages.text import unsafe as words
from salun_core.pages.tooltips import Tooltip, origin_of
from salun_core.pages.words import counted, spelled


def counts_per_category(counts: pd.DataFrame, *, concept: Sequence[str] = (), note: str = "") -> Chart:
    """Detections in each category on a log scale, a bar for each model, the original first (Figure 5).

    Parameters
    ----------
    counts : DataFrame
        Columns ``method, mask, category, count, threshold, n``, at one threshold.
    concept : sequence of str
        The categories that should be gone, which the caption adds up; all by default.
    note : str
        Behind the caption.
    """
    part = _original_first(counts[counts["category"] != ANY])
    names = _models(part)
    categories = list(dict.fromkeys(part["category"]))
    if len(set(part["threshold"])) != 1:
        raise UserError(
            "bars show one threshold: choose one, and show the others with counts_over_thresholds"
        )
    size = 0.86 / len(names)
    with style():
        fig, axis = panels(height=0.12 * len(names) * len(categories) + 0.12 * len(categories) + 1.1)
        for k, (method, mask) in enumerate(names):
            mine = part[(part["method"] == method) & (part["mask"] == mask)].set_index("category")["count"]
            heights = [int(mine.get(category, 0)) for category in categories]
            places = [y + (k - (len(names) - 1) / 2) * size for y in range(len(categories))]
            axis.barh(places, heights, height=size, color=look(method)[0], label=name_of(method, mask))
            for place, height in zip(places, heights, strict=True):
                axis.text(height * 1.08 if height else 0.06, place, f"{height:,}", va="center", fontsize=7)
        axis.set_xscale("symlog", linthresh=1, linscale=0.3)
        axis.set_xlim(0, max(1.0, 3.0 * float(part["count"].max())))
        axis.set_yticks(range(len(categories)), categories)
        axis.set_ylim(len(categories) - 0.45, -0.55)
        axis.set_xlabel("detections (log scale)")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1))
    found = findings.detections(part, concept)
    said = words.detections(found)
    return Chart(
        fig,
        said,
        f"{said} Scores of at least {found.threshold:g} in n = {found.n:,} images of each model. {note}".strip(),
        found,
    )


def counts_over_thresholds(
    counts: pd.DataFrame, real: pd.DataFrame | None = None, *, category: str = ANY
) -> Chart:
    """Share of images with a detection over the whole range of thresholds, and the same for real images.

    Parameters
    ----------
    counts : DataFrame
        Columns ``method, mask, category, images, threshold, n``.
    real : DataFrame, optional
        From `metrics.detection.false_positives`: what the detector finds where there is nothing to find.
    category : str
        The category shown; any of them by default.
    """
    part = _original_first(counts[counts["category"] == category])
    if part.empty:
        raise UserError(f"no detections of {category!r} were counted: choose another category")
    names = _models(part)
    with style():
        fig, axis = panels(height=3.6)
        if real is not None:
            false = real[real["category"] == category].sort_values("threshold")
            axis.fill_between(false["threshold"], 100 * false["low"], 100 * false["high"], color="0.85", lw=0)
            axis.plot(false["threshold"], 100 * false["value"], color="0.5", lw=1, ls="--")
        ends = {}
        for method, mask in names:
            mine = part[(part["method"] == method) & (part["mask"] == mask)].sort_values("threshold")
            share = 100 * mine["images"] / mine["n"]
            colour, marker = look(method)
            axis.plot(mine["threshold"], share, color=colour, marker=marker, ms=4, lw=1.4)
            ends[name_of(method, mask)] = (float(mine["threshold"].iloc[-1]), float(share.iloc[-1]), colour)
        top = max(5.0, 1.05 * 100 * float((part["images"] / part["n"]).max()))
        axis.set(
            xlabel="threshold of the detector's score", ylabel="images with a detection (%)", ylim=(0, top)
        )
        _label_ends(axis, ends, gap=0.062 * top)
    found = findings.detected_shares(part)
    said = words.detected_shares(found)
    grey = ""
    if real is not None:
        false = real[real["category"] == category]
        grey = (
            f" Grey: false positives in n = {int(false['n'].max()):,} held-out images that do not show it, "
            "with 95% Wilson intervals."
        )
    return Chart(fig, said, f"{said} n = {int(part['n'].max()):,} images each.{grey}", found)


def recovery_curves(curves: pd.DataFrame) -> Chart:
    """How the concept comes back while a model is trained on a few images of it.

    Parameters
    ----------
    curves : DataFrame
        Columns ``method, mask, step, shown, n``; ``n`` images behind each share, and ``images`` to learn from.
    """
    part = _original_first(curves)
    names = _models(part)
    ends = {}
    with style():
        fig, axis = panels(height=3.6)
        axis.axhline(50, color="0.8", lw=1)
        for method, mask in names:
            mine = part[(part["method"] == method) & (part["mask"] == mask)]
            mean = mine.groupby("step")["shown"].mean()
            colour, marker = look(method)
            axis.plot(mean.index, 100 * mean, color=colour, marker=marker, ms=5, lw=1.4)
            ends[name_of(method, mask)] = (float(mean.index[-1]), 100 * float(mean.iloc[-1]), colour)
        axis.set(xlabel="steps of relearning", ylabel="images that show the concept (%)", ylim=(-3, 103))
        _label_ends(axis, ends, gap=6.5)
    found = findings.recoveries(curves)
    said = words.recoveries(found)
    first = part.iloc[0]
    return Chart(
        fig,
        said,
        f"{said} Trained on {int(first['images'])} images of the concept; n = {int(first['n'])} images drawn at each point.",
        found,
    )


def erasure_by_prompt(cells: pd.DataFrame, *, kinds: Sequence[str] = ()) -> Chart:
    """A panel for each kind of prompt: UA against the accuracy of the other classes, every method a mark.

    Parameters
    ----------
    cells : DataFrame
        Rows of the text-to-image experiment.
    kinds : sequence of str
        Kinds of prompts; all by default.
    """
    part = cells[cells["status"] == "done"]
    kinds = list(kinds) or prompts.kinds_of(part)
    names = list(dict.fromkeys(zip(part["method"], part["mask"], strict=True)))
    tooltips = []
    with style():
        across = min(2, len(kinds))
        down = -(-len(kinds) // across)
        fig, axes = panels(down, across, height=2.6 * down + 1.0, squeeze=False, sharex=True, sharey=True)
        for axis, kind in zip(axes.flat, kinds, strict=False):
            for method, mask in names:
                mine = part[(part["method"] == method) & (part["mask"] == mask)]
                colour, marker = look(method)
                x = 100 * mine[f"OA {kind}"].astype(float).mean()
                y = 100 * mine[f"UA {kind}"].astype(float).mean()
                seen = f"UA {y:.1f}%, other classes {x:.1f}% over {counted(len(mine), 'run')}"
                tooltips.append(Tooltip(axis, origin_of(mine.iloc[0], seen), float(x), float(y)))
                axis.plot(
                    x,
                    y,
                    marker,
                    color=colour,
                    mfc=colour if mask in ("none", "salient") else "white",
                    ms=8,
                    alpha=0.85,
                    ls="",
                    label=name_of(method, mask),
                )
            axis.set_title(f"{kind} prompts", fontsize=10)
            axis.grid(lw=0.4, color="0.9")
            axis.set_axisbelow(True)
        for axis in axes.flat[len(kinds) :]:
            axis.axis("off")
        for axis in axes[-1]:
            axis.set_xlabel("other classes recognised (%)")
        for axis in axes[:, 0]:
            axis.set_ylabel("UA (%)")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8.5, frameon=False)
    found = prompts.erasure_by_prompt(cells, kinds)
    said = prompt_words.unerased(found)
    first, runs = part.iloc[0], len(part[["seed", "scenario"]].drop_duplicates())
    return Chart(
        fig,
        said,
        f"Up and to the right is better. {said} Class {', '.join(map(str, part['forgotten'].unique()))} of "
        f"{spelled(first['dataset'])}, mean over {counted(runs, 'run')}, n = {first['n_class']} images of each class and kind of "
        "prompt.",
        found,
        tooltips=tuple(tooltips),
    )


def erasure_against_utility(summaries: Mapping[str, pd.DataFrame]) -> Chart:
    """How far each model has erased the concept, by its weakest point, against what it still draws.

    Parameters
    ----------
    summaries : mapping of str to DataFrame
        From `metrics.erasure.erasure_summary`, by the title of their panel, such as the kind of attack.
    """
    every = pd.concat(list(summaries.values()))
    left = 100 * float(every["utility"].min())
    span = (min(90.0, left - 4), 100 + 0.34 * max(14.0, 104 - left))
    width = span[1] - span[0]
    tooltips = []
    with style():
        fig, axes = panels(1, len(summaries), height=4.2, sharex=True, sharey=True, squeeze=False)
        for axis, (title, summary) in zip(axes[0], summaries.items(), strict=True):
            axis.set(xlim=span, ylim=(-4, 114), yticks=range(0, 101, 20))
            axis.set_title(title, fontsize=10)
            axis.set_xticks([tick for tick in axis.get_xticks() if span[0] <= tick <= 100])
            axis.grid(lw=0.4, color="0.92")
            axis.set_axisbelow(True)
            points = {}
            for _, row in summary.iterrows():
                colour, marker = look(row["method"])
                x, y = 100 * row["utility"], 100 * row["erased"]
                axis.plot(x, y, marker, color=colour, mfc="white" if row["dominated"] else colour, ms=8)
                points[name_of(row["method"], row["mask"])] = (x, y, colour)
                seen = f"erased {y:.1f}% where it appears most: {row['weakest']}", f"utility {x:.1f}%"
                tooltips.append(Tooltip(axis, origin_of(row, *seen), x, y))
            places = _apart([(y, x) for x, y, _ in points.values()], gap=5.0, near=0.35 * width)
            for (name, (x, own, colour)), (y, _) in zip(points.items(), places, strict=True):
                axis.annotate(
                    name,
                    (x, own),
                    (x + 0.05 * width, y),
                    fontsize=9,
                    va="center",
                    arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8} if abs(y - own) > 1 else None,
                )
        fig.supxlabel("utility: other classes drawn as requested (%)", fontsize=10.5)
        axes[0, 0].set_ylabel("erased: concept absent under the strongest attack (%)")
    found = findings.fronts(summaries)
    said = words.fronts(found)
    return Chart(
        fig,
        said,
        f"{said} {words.weakest(found)} Up and to the right is better; open markers are beaten in both by another method.",
        found,
        tooltips=tuple(tooltips),
    )


def redacted_grid(rows: Mapping[str, Redacted], *, columns: Sequence[str] = (), each: int = 8) -> Chart:
    """Samples of each model with every detection black: a row for each model, a column for each prompt.

    Parameters
    ----------
    rows : mapping of str to Redacted
        By the name to show, from `metrics.detection.redacted`; images as they were drawn are refused.
    columns : sequence of str
        Titles of the columns.
    each : int
        Images of each model.

    Raises
    ------
    UserError
        If images were not redacted.
    """
    for name, shown in rows.items():
        if not isinstance(shown, Redacted):
            raise UserError(f"the images of {name} are not redacted: call metrics.detection.redacted first")
    across = max(len(shown.images[:each]) for shown in rows.values())
    with style():
        fig, axes = panels(len(rows), across, squeeze=False, layout="none")
        for band, (name, shown) in zip(axes, rows.items(), strict=True):
            for x, axis in enumerate(band):
                axis.axis("off")
                if x < len(shown.images):
                    axis.axis("on")
                    picture(axis, shown.images[x])
            beside(band[0], name, rows=1)
        for axis, title in zip(axes[0], columns, strict=False):
            axis.set_title(str(title), fontsize=8, pad=3)
        arranged(fig, axes, rows)
    hidden = ", ".join(f"{name} {int(shown.covered[:each].sum())}" for name, shown in rows.items())
    text = f"Images with a redaction, out of {across} each: {hidden}."
    note = next(iter(rows.values())).note
    return Chart(
        fig,
        text,
        f"{text} {note[:1].upper()}{note[1:]}. All images in a column share prompt and noise.",
        photo=True,
    )


def _models(part: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(part["method"], part["mask"], strict=True)))


def _original_first(part: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([part[part["method"] == "original"], part[part["method"] != "original"]])


def _label_ends(axis: Axes, ends: Mapping[str, tuple[float, float, str]], *, gap: float) -> None:
    """Write the name of each line behind its end, moved apart where ends meet."""
    places = _apart([(y, x) for x, y, _ in ends.values()], gap=gap, near=np.inf)
    low, high = axis.get_xlim()
    for (name, (x, own, colour)), (y, _) in zip(ends.items(), places, strict=True):
        axis.annotate(
            name,
            (x, own),
            (high + 0.03 * (high - low), y),
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkB": 3},
        )


def _apart(points: Sequence[tuple[float, float]], *, gap: float, near: float) -> list[tuple[float, float]]:
    """The same points (y, x), those within ``near`` of each other in x moved at least ``gap`` apart in y."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    placed: dict[int, tuple[float, float]] = {}
    for i in order:
        y, x = points[i]
        for other_y, other_x in sorted(placed.values()):
            if abs(other_x - x) <= near and abs(other_y - y) < gap:
                y = other_y + gap
        placed[i] = (y, x)
    return [placed[i] for i in range(len(points))]
