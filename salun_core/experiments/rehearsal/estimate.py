"""From what a rehearsal did to what the whole preset will need."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from salun_core.experiments.rehearsal.networks import (
    SD_UNET,
    SD_VAE,
    TEXT_WEIGHTS,
    Cost,
    classifier_cost,
    decoder_cost,
    text_unet_cost,
    unet_cost,
)
from salun_core.experiments.rehearsal.smaller import ratio
from salun_core.experiments.rehearsal.stand_ins import Shape
from salun_core.experiments.runs.params import Params
from salun_core.methods import METHODS

FLOAT = 4  # bytes

AXES: dict[str, tuple[str, ...]] = {
    "tuning": ("tuning_seed",),
    "methods": ("seeds", "forget_class"),
    "masks": ("seeds", "forget_class"),
    "classes": ("seeds", "classes"),
    "shares": ("seeds", "fractions"),
    "densities": ("seeds", "densities"),
    "releases": ("seeds",),
    "settings": ("spread_candidates",),
    "surface": ("surface_lrs", "surface_keeps", "surface_epochs"),
}
"""Lists and numbers along which the cells of a study multiply; replicas and seeds of unlearning are told apart."""


@dataclass(frozen=True)
class Estimate:
    """What a preset needs in full.

    Parameters
    ----------
    cells : int
        Its grid, without what widening the bounds of tuning adds.
    flops : float
        Arithmetic, forward and backward.
    memory : float
        Bytes on the device at most: weights, gradients, optimiser, mask, activations of a batch.
    disk : float
        Bytes of results.
    """

    cells: int
    flops: float
    memory: float
    disk: float

    def hours(self, tflops: float) -> float:
        """At so many TFLOP/s, sustained."""
        return self.flops / tflops / 1e12 / 3600


@dataclass(frozen=True)
class Rehearsed:
    """One preset in full, and what was run in its place.

    Parameters
    ----------
    full, small : Params
        Parameters of both.
    shape, stand_in : Shape
        The data of both.
    rows : DataFrame
        All cells that were run, see `runs.table`, with the arithmetic of each in ``flops``.
    folder : path
        Where their results lie.
    """

    full: Params
    small: Params
    shape: Shape
    stand_in: Shape
    rows: pd.DataFrame
    folder: Path

    @property
    def shown(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """All parameters, flat: of the full preset and of the small one."""
        return self.full.shown(), self.small.shown()


def estimate(run: Rehearsed) -> Estimate:
    """Scale every cell that was run to its full size, and count how many there are of its kind."""
    times = run.rows.apply(lambda row: multiplicity(row, run), axis=1)
    kind = str(getattr(run.full, "kind", "classification"))
    flops, weights = {
        "classification": _classification,
        "diffusion": _diffusion,
        "text_to_image": _text_to_image,
    }[kind](run, times)
    return Estimate(
        round(times.sum()), flops, _memory(run, kind, weights[0]), _disk(run, times.sum(), weights)
    )


def multiplicity(row: Any, run: Rehearsed) -> float:
    """How many cells of the full grid a row stands for."""
    full, small = run.shown
    times = 1.0
    for axis in AXES[row["study"]]:
        if axis == "classes":
            times *= (len(full[axis]) or run.shape.classes) / len(small[axis])
        elif axis == "surface_epochs":
            times *= sum(full[axis]) / sum(small[axis])  # twice the epochs are twice the work
        elif axis in full:
            times *= ratio(full, small, axis)
    if row["replica"]:
        return times * ratio(full, small, "noise_floor")
    if row["method"] in ("original", "retrain"):
        return times
    if row["study"] == "tuning":
        # The rows include candidates beyond the first bounds, which the small budget always leads to.
        same = run.rows[(run.rows["study"] == "tuning") & (run.rows["variant"] == row["variant"])]
        return times * full["tuning_budget"] * len(small["tuning_seed"]) / len(same)
    return times * (
        ratio(full, small, "unlearning_seeds") if row["study"] not in ("settings", "surface") else 1
    )


def _classification(run: Rehearsed, times: Any) -> tuple[float, tuple[int, int]]:
    full, small = run.shown
    large, little = (
        classifier_cost(
            v["arch"],
            params.training.own_width,
            classes=shape.classes,
            channels=shape.channels,
            size=v["image_size"] or shape.size,
        )
        for params, v, shape in ((run.full, full, run.shape), (run.small, small, run.stand_in))
    )
    images = run.shape.train / run.stand_in.train
    recipe = run.full.training.complete_recipe
    every = [shape.train + shape.test for shape in (run.shape, run.stand_in)]

    def whole(row: Any) -> float:
        given = {**METHODS[row["method"]].defaults, **full["settings"].get(row["method"], {})}
        epochs = recipe.epochs if row["method"] == "retrain" else given.get("epochs", 1)
        work = max(row["flops"] - little.flops * every[1], 0.0)
        scaled = work * large.flops / little.flops * images * max(epochs, 1)
        return scaled + large.flops * every[0]

    originals = len(full["seeds"]) + (len(full["tuning_seed"]) if full["tune"] else 0)
    trained = originals * 3 * large.flops * 0.9 * run.shape.train * recipe.epochs
    return trained + float((run.rows.apply(whole, axis=1) * times).sum()), (large.weights, little.weights)


def _diffusion(run: Rehearsed, times: Any) -> tuple[float, tuple[int, int]]:
    full, small = run.shown
    large, little = (
        unet_cost(
            tuple(v["widths"]),
            v["layers"],
            tuple(v["attention"]),
            channels=shape.channels,
            size=v["image_size"] or shape.size,
        )
        for v, shape in ((full, run.shape), (small, run.stand_in))
    )
    drawn = [_denoised(v, shape) * net.flops for v, shape, net in _both(run, large, little)]
    training = [v["steps"] * v["batch_size"] for v in (full, small)]

    def whole(row: Any) -> float:
        work = max(row["flops"] - drawn[1], 0.0) * large.flops / little.flops
        steps = training[0] / training[1] if row["method"] == "retrain" else _steps(row, run)
        return work * steps + drawn[0]

    trained = len(full["seeds"]) * 3 * large.flops * training[0]
    return trained + float((run.rows.apply(whole, axis=1) * times).sum()), (large.weights, little.weights)


def _text_to_image(run: Rehearsed, times: Any) -> tuple[float, tuple[int, int]]:
    large, decoder = text_unet_cost(SD_UNET), decoder_cost(SD_VAE)
    tiny = run.rows.attrs["unet"]
    little = text_unet_cost(tiny)
    full, _ = run.shown
    drawn = [_denoised(v, shape) * net.flops for v, shape, net in _both(run, large, little)]
    decoded = full["samples"] * run.shape.classes * decoder.flops

    def whole(row: Any) -> float:
        work = max(row["flops"] - drawn[1], 0.0) * large.flops / little.flops
        return work * _steps(row, run) + drawn[0] + decoded

    return float((run.rows.apply(whole, axis=1) * times).sum()), (large.weights, little.weights)


def _both(run: Rehearsed, large: Cost, little: Cost) -> tuple[tuple[Mapping[str, Any], Shape, Cost], ...]:
    full, small = run.shown
    return (full, run.shape, large), (small, run.stand_in, little)


def _denoised(values: Mapping[str, Any], shape: Shape) -> float:
    """Passes through the network that drawing the samples of one model takes."""
    passes = 2 if values["guidance"] else 1
    return shape.classes * values["samples"] * values["sample_steps"] * passes


def _steps(row: Any, run: Rehearsed) -> float:
    """How many times more images a method sees in full."""
    full, small = run.shown
    defaults = METHODS[row["method"]].defaults

    def steps(values: Mapping[str, Any]) -> float:
        own = values["settings"].get(row["method"], {})
        return own.get("steps") or defaults.get("steps") or values["forget_steps"]

    return steps(full) * full["batch_size"] / (steps(small) * small["batch_size"])


def _memory(run: Rehearsed, kind: str, weights: int) -> float:
    full, _ = run.shown
    half = full.get("precision") in ("bf16", "fp16", "auto")
    size = full.get("image_size") or run.shape.size
    if kind == "classification":
        net = classifier_cost(
            full["arch"],
            run.full.training.own_width,
            classes=run.shape.classes,
            channels=run.shape.channels,
            size=size,
        )
        copies, batch = 4.25, full["batch_size"]  # original, copy, gradient, momentum, and a mask of bytes
        data = (run.shape.train + run.shape.test) * run.shape.channels * size**2
    elif kind == "diffusion":
        net = unet_cost(
            tuple(full["widths"]),
            full["layers"],
            tuple(full["attention"]),
            channels=run.shape.channels,
            size=size,
        )
        copies, batch = (
            5.25,
            2 * full["batch_size"],
        )  # two moments of Adam; a forget and a retain batch together
        data = run.shape.train * run.shape.channels * size**2
    else:
        net = text_unet_cost(SD_UNET)
        copies, batch = 5.25, 2 * full["batch_size"]
        data = FLOAT * (decoder_cost(SD_VAE).weights + TEXT_WEIGHTS)
    kept = net.activations * batch * (0.5 if half else 1.0)
    # Checkpointing keeps what enters each block, and one block's own at a time.
    kept *= 0.15 if full.get("gradient_checkpointing") else 1.0
    return copies * FLOAT * weights + kept + data


def _disk(run: Rehearsed, cells: float, weights: tuple[int, int]) -> float:
    full, small = run.shown
    size = [v.get("image_size") or shape.size for v, shape in ((full, run.shape), (small, run.stand_in))]
    every = [shape.train + shape.test for shape in (run.shape, run.stand_in)]
    rows = every[0] / every[1]
    if full.get("kept_outputs"):
        rows = full["kept_outputs"] / small["kept_outputs"]
    drawn = run.shape.classes * full.get("samples", 1) / (run.stand_in.classes * small.get("samples", 1))
    times = {
        ".model.": weights[0] / weights[1],
        ".outputs.": drawn if "samples" in full else rows,
        ".samples.": drawn * (size[0] / size[1]) ** 2,
        ".images.": full.get("own_images", 1) / max(small.get("own_images", 1), 1) * (size[0] / size[1]) ** 2,
    }
    total = 0.0
    for path in run.folder.rglob("*"):
        if path.is_file():
            scale = next((value for part, value in times.items() if part in path.name), 1.0)
            total += path.stat().st_size * scale
    return total * max(cells / len(run.rows), 1.0)
