"""Pieces of a page that answer to the reader's hand: their data, and a picture for where no script runs.

The data lie in the page; ``book/_static/pieces.js`` draws them. Nothing is asked of a server.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from salun_core.experiments.classification.toy import CLASSES, REACH, Snapshot, Toy
from salun_core.pages.figures.charts import Chart, panels, style

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
        # Inside a script element only "</" and "<!--" could end it early.
        data = json.dumps(self.data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        return (
            f'<figure class="result" data-piece="{self.kind}"><div class="still">{self.still.image()}</div>'
            f'<script type="application/json">{data}</script>'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
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
        f"{finding} A network with two inputs and three classes: the coloured areas are its decision, diamonds are the points "
        "to forget, circles those to keep, and a cross marks a wrong answer."
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
