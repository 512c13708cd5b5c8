"""Figures of generated images, and of what an independent classifier sees in them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from salun_core.methods import name_of
from salun_core.metrics.gaps import summary
from salun_core.pages.figures.chart import WIDTH, Chart, look, panels, style, tooltips_of
from salun_core.pages.findings import generation as findings
from salun_core.pages.text import generation as words
from salun_core.pages.tooltips import Tooltip
from salun_core.pages.words import listed, sample_size, spelled

FRAME = "#D55E00"
SHOWN = {
    "UA": ("UA: forgotten class\nnot recognised (%)", 100),
    "OA": ("OA: other classes\nrecognised (%)", 100),
    "FD": ("Fréchet distance\nof the other classes", 1),
}


def picture(axis: Axes, image: Tensor) -> None:
    """Draw one image, uint8 (C, H, W), without ticks; grey images as ink on paper."""
    pixels = image.permute(1, 2, 0).numpy()
    grey: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 255} if pixels.shape[2] == 1 else {}
    axis.imshow(pixels.squeeze(), interpolation="nearest", **grey)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)


def beside(axis: Axes, name: str, *, rows: int) -> None:
    """Write the name of a band of ``rows`` images to the left of its first one."""
    text = name.replace(" + ", "\n+ ")
    axis.text(-0.15, 1 - rows / 2, text, transform=axis.transAxes, ha="right", va="center", fontsize=9.5)


def titled(axes: Any, titles: Sequence[str], *, marked: Sequence[int] = ()) -> float:
    """Write titles above the pictures of the first row, slanted where they are long; returns the inches they need."""
    slanted = max(map(len, titles)) * len(axes[0]) > 60
    for x, title in enumerate(titles):
        colour = FRAME if x in marked else "black"
        if slanted:
            place = {"rotation": 40, "ha": "left", "va": "bottom", "rotation_mode": "anchor"}
            axes[0, x].text(
                0.3, 1.1, title, transform=axes[0, x].transAxes, fontsize=9, color=colour, **place
            )
        else:
            axes[0, x].set_title(title, fontsize=9, color=colour, pad=3)
    return 0.2 + 0.055 * max(map(len, titles)) if slanted else 0.3


def arranged(figure: Figure, axes: Any, names: Iterable[str], *, head: float = 0.3) -> None:
    """Put pictures side by side in even rows, with room for the names of bands and ``head`` inches for titles."""
    rows, columns = axes.shape
    longest = max(len(line) for name in names for line in name.split(" + "))
    left = (0.2 + 0.075 * longest) / WIDTH
    height = rows * WIDTH * (1 - left) / columns + head
    figure.set_size_inches(WIDTH, height)
    figure.subplots_adjust(left=left, right=1, bottom=0, top=1 - head / height, wspace=0.05, hspace=0.05)


def method_grid(
    rows: Mapping[str, tuple[Tensor, Tensor]],
    classes: Sequence[str],
    *,
    forgotten: int | Sequence[int],
    each: int = 2,
    most: int = 10,
    origins: Mapping[str, str] | None = None,
) -> Chart:
    """Samples of each model: a band for each model, a column for each class, equal noise down a column.

    Parameters
    ----------
    rows : mapping of str to (Tensor, Tensor)
        By the name to show: samples uint8 (n, C, H, W) and the classes they were asked for (n,).
    classes : sequence of str
        Names of the classes, in the order of their numbers.
    forgotten : int or sequence of int
        The forgotten classes, whose columns are framed.
    each : int
        Samples of each class.
    most : int
        Classes shown, the forgotten ones among them.
    origins : mapping of str to str, optional
        By the name of a model: where its samples come from, shown where a reader points at one.
    """
    tooltips = []
    gone = [forgotten] if isinstance(forgotten, int) else list(forgotten)
    others = [number for number in range(len(classes)) if number not in gone]
    columns = sorted([*others[: max(0, most - len(gone))], *gone])
    with style():
        fig, axes = panels(len(rows) * each, len(columns), squeeze=False, layout="none")
        for band, (name, (images, labels)) in enumerate(rows.items()):
            for x, label in enumerate(columns):
                found = images[labels == label][:each]
                for k in range(each):
                    axis = axes[band * each + k, x]
                    axis.axis("off")
                    if k < len(found):
                        axis.axis("on")
                        picture(axis, found[k])
                        if origins and name in origins:
                            text = f"{name}, asked for {classes[label]}, noise {k}\n{origins[name]}"
                            tooltips.append(Tooltip(axis, text))
                    if label in gone:
                        frame = Rectangle(
                            (0, 0),
                            1,
                            1,
                            transform=axis.transAxes,
                            fill=False,
                            ec=FRAME,
                            lw=1.6,
                            clip_on=False,
                        )
                        axis.add_patch(frame)
            beside(axes[band * each, 0], name, rows=each)
        head = titled(
            axes,
            [str(classes[label]) for label in columns],
            marked=[columns.index(number) for number in gone],
        )
        arranged(fig, axes, rows, head=head)
    named = listed([str(classes[number]) for number in gone])
    named = f"class {named} was" if len(gone) == 1 else f"classes {named} were"
    text = f"Samples of {len(rows)} models ({', '.join(rows)}) for {len(columns)} classes; {named} to be forgotten."
    return Chart(
        fig,
        text,
        f"{text} Images in one column start from the same noise, so that rows can be compared; what was to be "
        f"forgotten is framed. n = {each} of each class and model.",
        photo=True,
        tooltips=tuple(tooltips),
    )


def trajectories(
    before: Tensor, after: Tensor, times: Sequence[int], *, asked: str, names: tuple[str, str]
) -> Chart:
    """The way from noise to image for the forgotten class, in two models.

    Parameters
    ----------
    before, after : Tensor
        uint8 (frames, n, C, H, W), from `models.sampling.trajectory` with equal streams.
    times : sequence of int
        Denoising steps behind each frame.
    asked : str
        What was asked for.
    names : tuple of str
        Names of the two models.
    """
    count = before.shape[1]
    with style():
        fig, axes = panels(2 * count, len(times), squeeze=False, layout="none")
        for half, (name, frames) in enumerate(zip(names, (before, after), strict=True)):
            for k in range(count):
                for x in range(len(times)):
                    picture(axes[half * count + k, x], frames[x, k])
            beside(axes[half * count, 0], name, rows=count)
        for x, step in enumerate(times):
            axes[0, x].set_title(f"step {step}", fontsize=8.5, pad=3)
        arranged(fig, axes, names)
        middle = (axes[count - 1, 0].get_position().y0 + axes[count, 0].get_position().y1) / 2
        fig.add_artist(Line2D([0, 1], [middle, middle], color=FRAME, lw=1.6))
    text = f"From noise to image, conditioned on {asked}: {names[0]} above, {names[1]} below, from the same noise."
    return Chart(fig, text, f"{text} n = {count} images each.", photo=True)


def confusions(counts: Mapping[str, Tensor], classes: Sequence[str], *, forgotten: int) -> Chart:
    """Classes asked for against classes recognised, a panel for each model.

    Parameters
    ----------
    counts : mapping of str to Tensor
        By the name to show: int64 (K, K), rows asked for, columns recognised.
    classes : sequence of str
        Their names.
    forgotten : int
        The forgotten class.
    """
    across = min(3, len(counts))
    down = math.ceil(len(counts) / across)
    with style():
        fig, axes = panels(down, across, height=2.35 * down, squeeze=False, sharex=True, sharey=True)
        for axis, (name, table) in zip(axes.flat, counts.items(), strict=False):
            share = (100 * table / table.sum(1, keepdim=True).clamp_min(1)).numpy()
            drawn = axis.imshow(share, cmap="cividis", vmin=0, vmax=100)
            axis.add_patch(Rectangle((-0.5, forgotten - 0.5), len(table), 1, fill=False, ec=FRAME, lw=1.4))
            axis.set_title(name, fontsize=10)
            axis.set_xticks(range(len(classes)), [str(c)[:6] for c in classes], fontsize=8, rotation=90)
            axis.set_yticks(range(len(classes)), [str(c)[:6] for c in classes], fontsize=8)
        for axis in axes.flat[len(counts) :]:
            axis.axis("off")
        fig.supxlabel("recognised", fontsize=9.5)
        fig.supylabel("requested", fontsize=9.5)
        fig.colorbar(drawn, ax=axes, shrink=0.7, label="%")
    found = findings.instead(counts, classes, forgotten)
    said = words.instead(found)
    return Chart(
        fig,
        said,
        f"{said} Share of samples (n = {found.n} a row) that the judge takes for each class.",
        found,
    )


def generation_compared(cells: pd.DataFrame) -> Chart:
    """UA, accuracy of the other classes, and Fréchet distance of every model, with Retrain as line.

    Parameters
    ----------
    cells : DataFrame
        Rows of the diffusion or text-to-image experiment.
    """
    part = cells[(cells["replica"] == 0) & (cells["status"] == "done")]
    names = list(dict.fromkeys(zip(part["method"], part["mask"], strict=True)))[::-1]
    retrain = part[part["method"] == "retrain"]
    tooltips = []
    with style():
        fig, axes = panels(1, 3, height=0.32 * len(names) + 1.3, sharey=True)
        for axis, (column, (title, scale)) in zip(axes, SHOWN.items(), strict=True):
            for y, (method, mask) in enumerate(names):
                runs = part[(part["method"] == method) & (part["mask"] == mask)]
                mine = scale * runs[column].astype(float)
                tooltips += tooltips_of(axis, runs, column, y=y, scale=scale)
                colour, marker = look(method)
                mean = summary(mine)["mean"]
                axis.plot(mine, [y] * len(mine), ".", color=colour, alpha=0.45, clip_on=False)
                filled = colour if mask in ("none", "salient") else "white"
                axis.plot(mean, y, marker, color=colour, mfc=filled, ms=6, clip_on=False, zorder=3)
            if len(retrain):
                axis.axvline(scale * retrain[column].astype(float).mean(), color="black", ls="--", lw=1)
            if column == "FD":
                floor = part["FD floor"].astype(float)
                axis.axvspan(0, floor.max(), color="0.88", lw=0)
                axis.set_xlim(left=0)
            axis.set_title(title, fontsize=9.5)
            axis.grid(axis="x", lw=0.4, color="0.9")
            axis.set_axisbelow(True)
        axes[0].set_yticks(range(len(names)), [name_of(*name) for name in names])
        axes[0].set_xlim(-3, 103)
        axes[1].set_xlim(min(90.0, 100 * float(part["OA"].astype(float).min()) - 2), 101)
    found = findings.forgetting(cells)
    said = words.both(found)
    first = part.iloc[0]
    return Chart(
        fig,
        said,
        f"{spelled(first['dataset'])}, class {', '.join(map(str, part['forgotten'].unique()))} forgotten. {said} Points are "
        f"seeds and classes (n = {len(retrain) or part['seed'].nunique()}), each with {sample_size(part)}; "
        f"{'dashed: Retrain; ' if len(retrain) else ''}grey: distance between two sets of real images. {first['distance']}.",
        found,
        tooltips=tuple(tooltips),
    )
