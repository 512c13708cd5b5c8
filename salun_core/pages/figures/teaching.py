"""Figures of the chapters that explain the membership attack, the noise floor and intervals."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats

from salun_core.experiments.classification.trajectories import Trajectories
from salun_core.methods import name_of
from salun_core.metrics import METRICS
from salun_core.metrics.classification.mia import attack, confidence, matched_by_class
from salun_core.metrics.classification.outputs import Evaluation
from salun_core.metrics.gaps import METRICS as FOUR
from salun_core.pages.figures.chart import LOOK, WIDTH, Chart, panels, style
from salun_core.pages.figures.interactive import EYE

SIDES = {"retain": ("members (retain)", "#0072B2"), "test": ("non-members (test)", "#E69F00")}
BINS = np.linspace(0, 1, 26)


# --- the membership attack ----------------------------------------------------------------------------


def models_of(found: Trajectories) -> dict[str, Evaluation]:
    """Outputs of the original model, of the first retrained one, and of each method at its end."""
    first = next(iter(found.paths.values()))[0]
    ends = {name_of(name): path[-1] for name, path in found.paths.items()}
    return {"Original": first, "Retrain": found.retrained[0], **ends}


def features(seen: Evaluation) -> dict[str, np.ndarray]:
    """The attack's feature, the probability of the true class, by role: members, non-members, suspects."""
    members, outsiders = matched_by_class(seen, seen.rows("retain"), seen.rows("test"))
    rows = {"retain": members, "test": outsiders, "forget": seen.rows("forget")}
    return {
        role: confidence(seen.logits[part], seen.labels[part])[:, 0].numpy() for role, part in rows.items()
    }


def flagged(seen: Evaluation, suspects: np.ndarray) -> np.ndarray:
    """Whether the attack on a model takes each confidence for that of a non-member, (n,)."""
    sides = features(seen)
    return ~attack(sides["retain"][:, None], sides["test"][:, None], suspects[:, None])


def two_sides(seen: Evaluation, name: str) -> Chart:
    """What the attack is trained on: confidence of members and of non-members."""
    sides = features(seen)
    with style():
        fig, axis = panels(height=2.6)
        for role, (label, colour) in SIDES.items():
            axis.hist(sides[role], BINS, color=colour, alpha=0.55, label=label)
        axis.set_yscale("log")
        axis.set(xlabel="probability of the true class", ylabel="images (log scale)", xlim=(0, 1))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=2)
    low = {role: int((sides[role] < 0.9).sum()) for role in SIDES}
    n = len(sides["retain"])
    finding = f"Of {n} images on each side, {low['retain']} members and {low['test']} non-members have a confidence below 0.9"
    return Chart(
        fig, f"{finding}.", f"{name}. {finding}. The attack must give the same answer for most of the others."
    )


def decision_rule(models: Mapping[str, Evaluation]) -> Chart:
    """Where on the line from 0 to 1 the attack says "never trained on", and where the forget images lie."""
    line = np.linspace(0, 1, 401)
    with style():
        fig, axes = panels(len(models), 1, height=0.78 * len(models) + 0.5, sharex=True, squeeze=False)
        said = []
        for axis, (name, seen) in zip(axes[:, 0], models.items(), strict=True):
            outside = flagged(seen, line)
            axis.fill_between(line, 0, 1, where=outside, color="#E69F00", alpha=0.35, lw=0, step="mid")
            forget = features(seen)["forget"]
            axis.plot(forget, np.linspace(0.08, 0.92, len(forget)), "|", color="black", ms=5, mew=0.7)
            share = float(METRICS["MIA"](seen))
            axis.set(yticks=[], ylim=(0, 1), xlim=(-0.01, 1.01))
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axis.text(
                1.02, 0.5, f"MIA {100 * share:.0f}%", transform=axis.transAxes, va="center", fontsize=10
            )
            said.append(f"{name} {100 * share:.0f}%")
        axes[-1, 0].set_xlabel("probability of the true class")
    finding = f"Share of the forget set that the attack takes for images never trained on: {', '.join(said)}"
    caption = (
        f"{finding}. Orange: confidences for which it does so; strokes: forget images (heights have no meaning). Each model has its "
        "own attack, fitted to its own confidences."
    )
    return Chart(fig, f"{finding}.", caption)


def suspects(found: Trajectories, seen: Evaluation, name: str, *, each: int = 8) -> Chart:
    """Forget images that the attack flags, and some that it does not, with their confidence."""
    rows = seen.rows("forget")
    values = features(seen)["forget"]
    outside = flagged(seen, values)
    grids = {"taken for never trained on": outside, "taken for trained on": ~outside}
    with style():
        fig = Figure(figsize=(WIDTH, 3.1))
        # A title of half the figure: as text of the first picture, the words would widen its column or get no room.
        halves = fig.add_gridspec(2, 1)
        for i, (label, mine) in enumerate(grids.items()):
            part = fig.add_subfigure(halves[i])
            part.suptitle(label, x=0.01, ha="left", fontsize=9.5)
            line = part.subplots(1, each, squeeze=False)[0]
            for axis in line:
                axis.axis("off")
            chosen = np.flatnonzero(mine)
            chosen = chosen[np.argsort(values[chosen], kind="stable")][:each]
            for axis, j in zip(line, chosen, strict=False):
                image = found.data.images[int(seen.ids[rows[j]])].permute(1, 2, 0).numpy()
                grey = {"cmap": "gray_r", "vmin": 0, "vmax": 255} if image.shape[2] == 1 else {}
                axis.imshow(image.squeeze(), interpolation="nearest", **grey)
                axis.set_title(
                    f"{found.data.classes[int(seen.labels[rows[j]])]}: {values[j]:.2f}", fontsize=9
                )
    finding = f"{int(outside.sum())} of {len(values)} forget images are taken for images never trained on"
    caption = f"{name}. {finding}; each is shown with its true class and the probability of that class, the least confident of each kind first."
    return Chart(fig, f"{finding}.", caption, photo=True)


# --- noise --------------------------------------------------------------------------------------------


def measured(found: Trajectories) -> pd.DataFrame:
    """UA, RA, TA and MIA, in [0, 1], of every retrained model and of each method at its end: columns ``model``, …."""
    models = [("retrain", seen) for seen in found.retrained]
    models += [(name, path[-1]) for name, path in found.paths.items()]
    return pd.DataFrame(
        [{"model": name} | {m: float(METRICS[m](seen)) for m in FOUR} for name, seen in models]
    )


def floor_chart(table: pd.DataFrame) -> Chart:
    """Distances between pairs of retrained models, and of each method to each of them."""
    retrained = table[table["model"] == "retrain"][list(FOUR)].to_numpy(float)
    others = table[table["model"] != "retrain"]
    first, second = np.triu_indices(len(retrained), 1)
    pairs = 100 * np.abs(retrained[first] - retrained[second])
    names = ["retrain", *others["model"]]
    distances = [pairs, *(100 * np.abs(retrained - row) for row in others[list(FOUR)].to_numpy(float))]
    far = far_off([values.mean() for values in distances])
    with style():
        fig, axes = panels(1, len(FOUR) + 1, height=0.34 * len(names) + 1.2, sharey=True)
        for k, (axis, title) in enumerate(zip(axes, ("mean", *FOUR), strict=True)):
            band = pairs.mean(axis=1) if k == 0 else pairs[:, k - 1]
            axis.axvspan(0, band.max(), color="0.88", lw=0)
            for y, (name, values) in enumerate(zip(names, distances, strict=True)):
                mine = values.mean(axis=1) if k == 0 else values[:, k - 1]
                colour, marker = LOOK[name]
                if y in far:
                    where = axis.get_yaxis_transform()
                    axis.text(
                        1, y, f"{mine.mean():.0f} →", color=colour, transform=where, va="center", ha="right"
                    )
                    continue
                axis.plot(mine, [y] * len(mine), ".", color=colour, alpha=0.5, ms=5, mew=0, clip_on=False)
                axis.plot(mine.mean(), y, marker, color=colour, mec="white", mew=0.6, zorder=3, clip_on=False)
            axis.set_title(title)
            axis.set_xlim(left=0)
        axes[0].set_yticks(range(len(names)), ["Retrain", *(name_of(name) for name in names[1:])])
        axes[0].invert_yaxis()
        fig.supxlabel("distance to a retrained model (percentage points)", fontsize=10.5)
    typical, largest = pairs.mean(), pairs.mean(axis=1).max()
    said = ", ".join(f"{name_of(names[y])} ({distances[y].mean():.0f} points)" for y in sorted(far))
    left_out = f" Outside the picture, with the mean at the arrow: {said}." if far else ""
    finding = f"Two retrained models lie {typical:.1f} points apart on the mean of the four metrics, up to {largest:.1f}: the noise floor"
    return Chart(
        fig,
        f"{finding}.",
        f"{finding}. Dots: {len(pairs)} pairs of {len(retrained)} retrained models, or one method against each; "
        f"large markers: means; grey: the range that retraining alone produces.{left_out} {EYE}.",
    )


def far_off(means: Sequence[float], *, times: float = 5) -> set[int]:
    """Which of some distances would press all smaller ones together: those over so many ``times`` the next smaller."""
    order = np.argsort(means)
    for i in range(2, len(order)):  # the least, the noise floor, may be small beside all
        if means[order[i]] > times * means[order[i - 1]]:
            return {int(place) for place in order[i:]}
    return set()


def coverage(counts: Sequence[int] = (2, 3, 4, 5, 6, 8, 10, 20), *, draws: int = 20_000) -> pd.DataFrame:
    """How often two kinds of 95% interval hold the true mean of normal values, by simulation.

    Returns
    -------
    DataFrame
        ``n`` values in each sample, and the shares of samples, in [0, 1], for ``normal`` (1.96 standard errors)
        and ``t`` (the quantile of Student's distribution).
    """
    rng = np.random.default_rng(0)
    rows = []
    for n in counts:
        sample = rng.standard_normal((draws, n))
        error = sample.std(axis=1, ddof=1) / math.sqrt(n)
        off = np.abs(sample.mean(axis=1))
        bounds = {"normal": stats.norm.ppf(0.975), "t": stats.t.ppf(0.975, n - 1)}
        rows.append({"n": n} | {kind: float((off <= bound * error).mean()) for kind, bound in bounds.items()})
    return pd.DataFrame(rows)


def coverage_chart(table: pd.DataFrame) -> Chart:
    """What share of 95% intervals is right, over the number of seeds."""
    looks = {"normal": ("±1.96 standard errors", "#56B4E9", "o"), "t": ("t interval", "#D55E00", "D")}
    with style():
        fig, axis = panels(height=2.8)
        for kind, (label, colour, marker) in looks.items():
            axis.plot(table["n"], 100 * table[kind], marker=marker, color=colour, label=label)
        axis.axhline(95, color="black", lw=0.8, ls="--")
        axis.set(
            xlabel="number of seeds", ylabel="intervals that contain\nthe true mean (%)", xticks=table["n"]
        )
        axis.legend()
    three = table[table["n"] == 3].iloc[0]
    finding = (
        f"With 3 seeds, an interval of ±1.96 standard errors contains the true mean in {100 * three['normal']:.0f}% of cases rather than 95%, "
        f"the t interval in {100 * three['t']:.0f}%"
    )
    return Chart(
        fig,
        f"{finding}.",
        f"{finding}. Simulated from normal values, 20,000 samples for each number of seeds.",
    )


def paired_and_not(first: Evaluation, second: Evaluation, role: str = "test") -> dict[str, float]:
    """Difference in accuracy of two models on the same images, with its standard error taken in two ways.

    Returns
    -------
    dict
        ``difference``, the standard errors ``paired`` (of the difference image by image) and ``apart`` (as if each
        model had been shown images of its own), in [0, 1], and ``n`` images.
    """
    right = [
        (logits.argmax(dim=1) == labels).to(torch.float64)
        for logits, labels in (first.part(role), second.part(role))
    ]
    n = len(right[0])
    return {
        "difference": float((right[0] - right[1]).mean()),
        "paired": float((right[0] - right[1]).std()) / math.sqrt(n),
        "apart": math.sqrt(sum(float(r.var()) for r in right) / n),
        "n": n,
    }
