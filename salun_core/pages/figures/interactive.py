"""Pieces of a page that answer to the reader's hand: their data, and a picture for where no script runs.

The data lie in the page; ``book/_static/pieces.js`` draws them. Nothing is asked of a server.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from salun_core.data.images import ImageData
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.saliency import MaskResults
from salun_core.experiments.classification.toy import CLASSES, REACH, Snapshot, Toy
from salun_core.experiments.classification.trajectories import Trajectories
from salun_core.experiments.runs.cells import MaskSpec
from salun_core.methods import name_of
from salun_core.metrics import METRICS
from salun_core.metrics.classification.outputs import Evaluation
from salun_core.metrics.gaps import AVERAGE, by_method, gaps
from salun_core.metrics.gaps import METRICS as FOUR
from salun_core.pages.figures.chart import LOOK, MASK_LOOK, Chart, panels, style
from salun_core.pages.markup import html_template, safe_html, script_json
from salun_core.pages.words import MASK_LABELS
from salun_core.rng import generator
from salun_core.saliency import Scores, least_salient_mask, top_mask

PIECE = html_template(
    """<figure class="result" data-piece="{{ kind }}"><div class="still">{{ still }}</div>\
<script type="application/json">{{ data }}</script><figcaption>{{ caption }}</figcaption></figure>"""
)

EYE = "Settings chosen by eye, so that paths can be seen"  # in trajectories.py

CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73")
SIDE = 200  # units of a drawn plane


@dataclass(frozen=True)
class Piece:
    """An interactive figure.

    Parameters
    ----------
    kind : str
        The function of ``pieces.js`` that draws it.
    data : mapping
        What it draws, as JSON.
    still : Chart
        The same finding as a picture: shown in print, and where no script runs.
    caption : str
        Caption of both.
    """

    kind: str
    data: Mapping[str, Any]
    still: Chart
    caption: str

    def __repr__(self) -> str:
        return self.still.alt

    def _repr_html_(self) -> str:
        return PIECE.render(
            kind=self.kind,
            still=safe_html(self.still.image()),
            data=script_json(self.data),
            caption=self.caption,
        )


# --- the plane ----------------------------------------------------------------------------------------


def plane(toy: Toy) -> Piece:
    """Scrub the steps of unlearning on the plane, with each mask, and leaf through the retrained models."""
    names = {"none": "RL (no mask)", "salient": "SalUn (salient mask)", "random": "Random mask"}
    paths = {"retrain": toy.retrained, **toy.paths}
    labels = {"retrain": "Retrain", **names}
    points = [
        {"role": role, "class": int(label), "at": place(point.view(-1).tolist())}
        for role in ("forget", "retain")
        for point, label in zip(toy.points[role].images, toy.points[role].labels, strict=True)
    ]
    data = {
        "colours": CLASS_COLOURS,
        "side": SIDE,
        "points": points,
        "forget": toy.points["forget"].n,
        "paths": [
            {
                "label": labels[kind],
                "scrub": "Retrained model" if kind == "retrain" else "Step",
                "frames": [frame(snapshot) for snapshot in snapshots],
            }
            for kind, snapshots in paths.items()
        ],
    }
    wrong = {kind: round(s[-1].metrics()["UA"] * toy.points["forget"].n) for kind, s in paths.items()}
    least, most = (
        round(toy.points["forget"].n * f(s.metrics()["UA"] for s in toy.retrained)) for f in (min, max)
    )
    n, steps = toy.points["forget"].n, len(toy.paths["none"]) - 1
    finding = (
        f"Models retrained without the {n} forget points get {span(least, most)} of them wrong. After {steps} steps "
        f"random labelling gets {wrong['none']} wrong, with the salient mask {wrong['salient']}, with a random mask {wrong['random']}."
    )
    caption = (
        f"{finding} A network with two inputs and three classes: the coloured areas show its decisions, diamonds the points "
        "to forget, circles those to keep; a cross marks a wrong answer."
    )
    ends = {"before": toy.paths["none"][0], **{labels[kind]: s[-1] for kind, s in paths.items()}}
    return Piece("plane", data, planes_chart(toy, ends, finding), caption)


def span(low: int, high: int) -> str:
    """Two bounds in words, or the one value that they are."""
    return f"{low}" if low == high else f"{low} to {high}"


def place(point: Sequence[float]) -> list[int]:
    """A point of the plane in the units of the drawing, downwards."""
    x, y = point
    return [round(SIDE * (x + REACH) / (2 * REACH)), round(SIDE * (REACH - y) / (2 * REACH))]


def frame(snapshot: Snapshot) -> dict[str, Any]:
    """One state of the plane: the areas of the classes but the first, wrong answers, and the metrics."""
    wrong = []
    for role in ("forget", "retain"):
        logits, labels = snapshot.evaluation.part(role)
        wrong += (logits.argmax(dim=1) != labels).tolist()
    return {
        "areas": [area(margin) for margin in margins(snapshot)[1:]],
        "wrong": [i for i, missed in enumerate(wrong) if missed],
        **{name: round(value, 4) for name, value in snapshot.metrics().items()},
    }


def margins(snapshot: Snapshot) -> list[np.ndarray]:
    """For each class, by how much its logit exceeds the best other one, (G, G): positive where it wins."""
    logits = snapshot.logits.numpy()
    return [logits[..., k] - np.delete(logits, k, axis=-1).max(axis=-1) for k in range(CLASSES)]


def area(margin: np.ndarray) -> str:
    """Where a margin is positive, as a path of SVG in whole units."""
    line = np.linspace(0, SIDE, len(margin))
    filled = Figure().subplots().contourf(line, line[::-1], margin, levels=[0, 1e9], colors="k")
    parts = []
    for polygon in filled.get_paths()[0].to_polygons():
        rounded = np.round(np.asarray(polygon, dtype=float)).astype(int)
        steps = np.diff(rounded, axis=0)
        steps = steps[np.abs(steps).sum(axis=1) > 0]
        moves = "".join(f"{x} {y} " for x, y in steps[:-1]).replace(" -", "-").strip()
        if moves:
            parts.append(f"M{rounded[0][0]} {rounded[0][1]}l{moves}z")
    return "".join(parts)


def planes_chart(toy: Toy, states: Mapping[str, Snapshot], finding: str) -> Chart:
    """Some states of the plane beside each other."""
    edge = (-REACH, REACH)
    line = np.linspace(*edge, toy.retrained[0].logits.shape[0])
    with style():
        fig, axes = panels(1, len(states), height=1.75, sharey=True)
        for axis, (name, snapshot) in zip(axes, states.items(), strict=True):
            for margin, colour in zip(margins(snapshot), CLASS_COLOURS, strict=True):
                axis.contourf(line, line, margin, levels=[0, 1e9], colors=[colour], alpha=0.25)
            for role, marker, size in (("retain", "o", 2.2), ("forget", "D", 3.2)):
                points = toy.points[role].images.view(-1, 2)
                for k, colour in enumerate(CLASS_COLOURS):
                    mine = points[toy.points[role].labels == k]
                    edge_width = 0.5 * (role == "forget")
                    axis.plot(
                        *mine.T, marker, color=colour, ms=size, mew=edge_width, mec="black", rasterized=True
                    )  # as vectors, the points would be most of the file
            axis.set(xticks=[], yticks=[], xlim=edge, ylim=edge, aspect="equal")
            axis.set_title(name.partition(" (")[0], fontsize=9)
    return Chart(fig, finding)


# --- trajectories -------------------------------------------------------------------------------------


def trajectories(found: Trajectories, *, images: int = 160) -> Piece:
    """Paths of methods in the plane of UA and TA into the cloud of retrained models.

    Parameters
    ----------
    found : Trajectories
        Outputs along the paths.
    images : int
        Pictures whose answers can be looked at: all of the forget set that fit, the rest from the test set.
    """
    shown = pictures(found, images)
    measured = {name: [at(seen, shown) for seen in path] for name, path in found.paths.items()}
    retrained = [at(seen, shown) for seen in found.retrained]
    paths = [
        {"label": "Retrain", "colour": LOOK["retrain"][0], "scrub": "Retrained model", "frames": retrained}
    ]
    for name, frames in measured.items():
        stepped = [{"step": step, **frame} for step, frame in zip(found.steps, frames, strict=True)]
        paths.append({"label": name_of(name), "colour": LOOK[name][0], "scrub": "Step", "frames": stepped})
    x, y = near_cloud(measured, retrained)
    data = {
        "x": x,
        "y": y,
        "sprite": sprite(found.data, [i for _, i in shown]),
        "classes": [str(name) for name in found.data.classes],
        "images": [{"role": role, "label": int(found.data.labels[i])} for role, i in shown],
        "original": next(iter(measured.values()))[0]["answers"],
        "paths": paths,
    }
    ends = {name: frames[-1] for name, frames in measured.items()}
    finding = (
        f"{len(retrained)} retrained models lie at UA {spread_of(retrained, 'UA')} and TA {spread_of(retrained, 'TA')}; after "
        f"{found.steps[-1]} steps "
        + ", ".join(f"{name_of(n)} is at UA {e['UA']:.1f}% and TA {e['TA']:.1f}%" for n, e in ends.items())
        + "."
    )
    n_forget, n_test = found.task.forget.n, found.task.parts["test"].n
    caption = (
        f"{finding} {found.data.name}, {n_forget} forget and {n_test} test images, one split; crosses are retrained models. Every "
        f"path starts at the original model, upper left. {EYE}.{beyond(measured, x, y)}"
    )
    return Piece("trajectories", data, paths_chart(measured, retrained, finding), caption)


Path = Sequence[Mapping[str, Any]]  # what `at` tells of a model, look by look


def near_cloud(measured: Mapping[str, Path], retrained: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The axes of UA and TA within which the cloud of retrained models can be told from the paths near it.

    Around the original model and the cloud there is as much room again as lies between them, and at least 5 points:
    a path that runs to the far corner would otherwise press all others into one.
    """
    start = next(iter(measured.values()))[0]
    room = max(5, *(abs(frame[m] - start[m]) for frame in retrained for m in ("UA", "TA")))

    def axis(metric: str) -> dict[str, Any]:
        core = [frame[metric] for frame in [start, *retrained]]
        every = [frame[metric] for frames in measured.values() for frame in frames] + core
        bounds = [max(min(every), min(core) - room), min(max(every), max(core) + room)]
        return axis_of(bounds, f"{metric} (%)")

    return axis("UA"), axis("TA")


def is_within(frame: Mapping[str, Any], x: Mapping[str, Any], y: Mapping[str, Any]) -> bool:
    """Whether a model is in the picture."""
    return bool(x["low"] <= frame["UA"] <= x["high"] and y["low"] <= frame["TA"] <= y["high"])


def beyond(measured: Mapping[str, Path], x: Mapping[str, Any], y: Mapping[str, Any]) -> str:
    """Which paths leave the picture, and where to, in words; nothing if none does."""
    said = []
    for name, frames in measured.items():
        outside = [frame for frame in frames if not is_within(frame, x, y)]
        if outside:
            far = max(outside, key=lambda frame: frame["UA"] - frame["TA"])
            back = ", and comes back" if is_within(frames[-1], x, y) else ""
            said.append(f"{name_of(name)} as far as UA {far['UA']:.0f}% and TA {far['TA']:.0f}%{back}")
    return f" Paths leave the picture: {'; '.join(said)}." if said else ""


def pictures(found: Trajectories, count: int) -> list[tuple[str, int]]:
    """Role and sample id of the pictures to show: forget images first, then test images, drawn with a fixed seed."""
    chosen: list[tuple[str, int]] = []
    for role in ("forget", "test"):
        ids = found.split[role]
        order = torch.randperm(len(ids), generator=generator(0, "pictures", role))
        room = count - len(chosen) if role == "test" else count // 2
        chosen += [(role, int(i)) for i in ids[order[:room].sort()[0]]]
    return chosen


def at(seen: Evaluation, shown: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """UA and TA in percent, and the answers to the pictures shown."""
    row_of = {int(i): row for row, i in enumerate(seen.ids)}
    answers = seen.logits.argmax(dim=1)
    return {
        **{name: round(100 * float(METRICS[name](seen)), 2) for name in ("UA", "TA")},
        "answers": [int(answers[row_of[i]]) for _, i in shown],
    }


def axis_of(values: Sequence[float], label: str) -> dict[str, Any]:
    """Bounds and ticks of an axis that holds all values, percentages."""
    ticks = MaxNLocator(5).tick_values(min(values), max(values))
    return {
        "label": label,
        "low": float(max(ticks[0], 0)) - 1e-9,
        "high": float(min(ticks[-1], 100)),
        "ticks": [float(tick) for tick in ticks if 0 <= tick <= 100],
    }


def spread_of(frames: Sequence[Mapping[str, Any]], name: str) -> str:
    """The range of a metric over some models."""
    values = [frame[name] for frame in frames]
    return f"{min(values):.1f} to {max(values):.1f}%"


def sprite(data: ImageData, ids: Sequence[int], *, columns: int = 16) -> dict[str, Any]:
    """Pictures side by side in one PNG."""
    images = data.images[list(ids)]
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    sheet[:n] = images
    sheet = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels).numpy()
    # Grey images are drawn as ink on paper.
    buffer = io.BytesIO()
    Image.fromarray(255 - pixels[..., 0] if channels == 1 else pixels).save(buffer, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"uri": uri, "columns": columns, "tile": width}


def paths_chart(
    measured: Mapping[str, Path],
    retrained: Path,
    finding: str,
) -> Chart:
    """All paths near the cloud, and the cloud, in one picture."""
    horizontal, vertical = near_cloud(measured, retrained)
    with style():
        fig, axis = panels(height=3.8)
        for name, frames in measured.items():
            colour, marker = LOOK[name]
            x, y = ([frame[metric] for frame in frames] for metric in ("UA", "TA"))
            axis.plot(x, y, "-", color=colour, lw=1.2, marker=".", ms=4)
            axis.plot(x[-1], y[-1], marker, color=colour, ms=8, label=name_of(name))
        for i, frame in enumerate(retrained):
            axis.plot(frame["UA"], frame["TA"], "+", color="black", ms=8, label="Retrain" if i == 0 else None)
        axis.set(xlabel="UA: forget images answered wrongly (%)", ylabel="TA: test accuracy (%)")
        for limits, shown in ((axis.set_xlim, horizontal), (axis.set_ylim, vertical)):
            margin = 0.02 * (shown["high"] - shown["low"])  # marks on an edge stay whole
            limits(shown["low"] - margin, shown["high"] + margin)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return Chart(fig, finding)


# --- the share kept -----------------------------------------------------------------------------------


def keep(results: MaskResults, *, pictures: int = 12) -> Piece:
    """The mask by layer, the four metrics and some answers, over the share of weights that may change.

    Parameters
    ----------
    results : MaskResults
        Of the saliency experiment.
    pictures : int
        Forget images of the first seed whose answers are shown.
    """
    lab, params = results.lab, results.params
    seed, scenario = params.seeds[0], params.scenarios()[0]
    scores, _ = lab.scores(seed, scenario, MaskSpec("salient", params.keep, params.score))
    retrain = results.cells[(results.cells["method"] == "retrain") & (results.cells["replica"] == 0)]
    forget = lab.split(seed, scenario)["forget"]
    drawn = torch.randperm(len(forget), generator=generator(0, "pictures", "keep"))[:pictures]
    ids = forget[drawn].sort()[0]
    kinds = ("salient", "random", "least_salient")
    tuned = results.cells[(results.cells["method"] == "rl") & results.cells["mask"].isin(kinds)]
    rates = {"the same for all masks": results.density, "chosen for each mask": tuned}
    shares = {share: shares_by_layer(scores, float(share)) for share in sorted(set(results.density["keep"]))}
    replicas = results.cells[results.cells["method"] == "retrain"]
    states: list[dict[str, Any]] = []
    for rate, rows in rates.items():
        for (mask, share), mine in rows.groupby(["mask", "keep"], sort=False):
            states.append(
                {
                    "rate": rate,
                    "mask": str(mask),
                    "keep": float(share),
                    "layers": (shares.get(share) or shares_by_layer(scores, float(share)))[str(mask)],
                    **gap_of(mine, replicas),
                    **means_of(mine),
                    "answers": answers_of(lab, mine[mine["seed"] == seed], ids),
                }
            )
    least, most = min(shares), max(shares)
    said = []
    for mask in kinds:
        of_mask = results.density[results.density["mask"] == mask]
        both = [gap_of(of_mask[of_mask["keep"] == share], replicas)["gap"] for share in (least, most)]
        said.append(
            f"{MASK_LABELS[mask]} {' and '.join('diverged' if g is None else f'{g:.2f}' for g in both)}"
        )
    finding = (
        f"Average gap to Retrain, mean over seeds, when {100 * least:g}% and when {100 * most:g}% of the weights may "
        f"change, in points: {'; '.join(said)}"
    )
    data = {
        "masks": {mask: MASK_LABELS[mask] for mask in kinds},
        "rates": list(rates),
        "metrics": list(FOUR),
        "layers": list(scores),
        "states": states,
        "retrain": means_of(retrain) | {"answers": answers_of(lab, retrain[retrain["seed"] == seed], ids)},
        "start": params.keep,
        "classes": [str(name) for name in lab.data.classes],
        "labels": [int(lab.data.labels[i]) for i in ids],
        "sprite": sprite(lab.data, ids.tolist()),
    }
    caption = (
        f"{finding}. Random labelling, {scenario.label}; metrics are means over {retrain['seed'].nunique()} seeds, layers and answers those "
        "of the first."
    )
    return Piece("keep", data, charts_over_keep(results.density, retrain, finding), caption)


def shares_by_layer(scores: Scores, share: float) -> dict[str, list[float]]:
    """Share of each tensor that a mask marks, in [0, 1], by kind of mask."""
    made = {"salient": top_mask(scores, keep=share), "least_salient": least_salient_mask(scores, keep=share)}
    by_layer = {
        kind: [round(float(m.double().mean()), 3) for m in mask.values()] for kind, mask in made.items()
    }
    return by_layer | {"random": [round(share, 3)] * len(scores)}


def means_of(rows: pd.DataFrame) -> dict[str, float | None]:
    """Means of the four metrics, in percent; None where all runs diverged."""
    means = {name: 100 * float(rows[name].astype(float).mean()) for name in FOUR}
    return {name: None if math.isnan(mean) else round(mean, 2) for name, mean in means.items()}


def gap_of(rows: pd.DataFrame, replicas: pd.DataFrame) -> dict[str, float | None]:
    """The average gap of one kind of run, in points, as the tables have it: gaps of single seeds, then their mean.

    With ``n`` seeds that have one, and ``lost`` that diverged; the gap is None where all did.
    """
    part = gaps(pd.concat([replicas, rows], ignore_index=True)).iloc[len(replicas) :]
    found = by_method(part, AVERAGE, group=("mask",)).iloc[0]
    mean = None if math.isnan(found["mean"]) else round(100 * found["mean"], 4)
    return {"gap": mean, "n": int(found["n"]), "lost": int(found["lost"])}


def answers_of(lab: ClassifierLab, rows: pd.DataFrame, ids: torch.Tensor) -> list[int] | None:
    """What the model behind the first of some rows says of the pictures; None where it diverged."""
    name = str(rows["cell"].iloc[0])
    files = sorted(lab.store.folder.glob(f"{name}.outputs.*"))
    if not files:
        return None
    seen = Evaluation.load(files[0])
    row_of = {int(i): row for row, i in enumerate(seen.ids)}
    return [int(seen.logits[row_of[int(i)]].argmax()) for i in ids]


def charts_over_keep(density: pd.DataFrame, retrain: pd.DataFrame, finding: str) -> Chart:
    """The four metrics over the share kept, a line a mask, with Retrain's mean."""
    with style():
        fig, axes = panels(1, len(FOUR), height=2.5)
        for axis, name in zip(axes, FOUR, strict=True):
            axis.axhline(100 * retrain[name].astype(float).mean(), color="black", lw=0.9, ls="--")
            for mask, mine in density.groupby("mask", sort=False):
                colour, marker = MASK_LOOK[str(mask)]
                mean = 100 * mine.groupby("keep")[name].mean().astype(float)
                axis.plot(mean.index, mean, color=colour, marker=marker, ms=4, label=MASK_LABELS[str(mask)])
            axis.set_title(name)
        axes[0].set_ylabel("percent")
        fig.supxlabel("share of weights that may change", fontsize=10.5)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return Chart(fig, f"{finding}.")
