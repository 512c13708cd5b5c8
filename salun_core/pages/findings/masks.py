"""What results on the saliency mask show, as data."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from salun_core.methods import name_of
from salun_core.metrics.gaps import gaps
from salun_core.pages.findings.classification import Floor, Pair, floor, named, pair

CONTROLS = ("none", "random", "random_per_layer", "least_salient")


@dataclass(frozen=True)
class AgainstControl:
    """The salient mask against one other kind of mask, for each method.

    Parameters
    ----------
    control : str
        The other kind of mask.
    methods : mapping of str to Pair
        By the name of the method: its gap under the control, minus that under the salient mask.
    """

    control: str
    methods: Mapping[str, Pair]

    @property
    def nearer(self) -> tuple[str, ...]:
        """Methods that the salient mask brings nearer to Retrain: the whole interval says so."""
        return tuple(name for name, found in self.methods.items() if found.low > 0)

    @property
    def farther(self) -> tuple[str, ...]:
        """Methods that it takes farther away."""
        return tuple(name for name, found in self.methods.items() if found.high < 0)

    @property
    def unclear(self) -> tuple[str, ...]:
        """Methods for which the interval holds 0, or there is none."""
        return tuple(name for name in self.methods if name not in (*self.nearer, *self.farther))


@dataclass(frozen=True)
class MaskComparison:
    """Average gaps under all kinds of mask.

    Parameters
    ----------
    controls : tuple of AgainstControl
        One for each kind that was run beside the salient one.
    floor : Floor or None
        Noise of retraining.
    seeds : int
        Training seeds.
    same_settings : bool
        Whether a method has equal settings under all masks.
    """

    controls: tuple[AgainstControl, ...]
    floor: Floor | None
    seeds: int
    same_settings: bool


def masks_compared(cells: pd.DataFrame) -> MaskComparison:
    """Whether the salient mask is nearer to Retrain than the others."""
    part = gaps(cells)
    part = part[~part["method"].isin(["retrain", "original"])]
    found, same = [], True
    for control in [kind for kind in CONTROLS if kind in set(part["mask"])]:
        pairs: dict[str, Pair] = {}
        for method, rows in part.groupby("method", sort=False):
            ours, theirs = name_of(str(method), "salient"), name_of(str(method), control)
            compared = pair(named(rows), theirs, ours)
            if compared is not None:
                pairs[name_of(str(method))] = compared
                same &= compared.same_settings
        found.append(AgainstControl(control, pairs))
    return MaskComparison(tuple(found), floor(cells), int(part["seed"].nunique()), same)


@dataclass(frozen=True)
class LayerShares:
    """Salient shares of the layers, in percent: the least and the most marked layer."""

    least: tuple[str, float]
    most: tuple[str, float]
    keep: float
    weights: int
    layers: int


def layer_shares(layers: pd.DataFrame, keep: float) -> LayerShares:
    """Where the salient weights lie; ``layers`` is a `saliency.layer_table`."""
    ends = [layers.loc[layers["share"].idxmin()], layers.loc[layers["share"].idxmax()]]
    least, most = ((str(row["layer"]), float(100 * row["share"])) for row in ends)
    return LayerShares(least, most, 100 * keep, int(layers["weights"].sum()), len(layers))


@dataclass(frozen=True)
class MaskAgreement:
    """Mean overlap (IoU) of pairs of masks by what differs, smallest first, and that of two random masks."""

    overlaps: Mapping[str, float]
    expected: float
    seeds: int


def mask_agreement(agreement: pd.DataFrame) -> MaskAgreement:
    """How far masks agree that differ in one thing; ``agreement`` comes from the saliency experiment."""
    means = labelled(agreement).groupby("pair")["iou"].mean().sort_values()
    return MaskAgreement(
        {str(name): float(value) for name, value in means.items()},
        float(agreement["expected"].iloc[0]),
        int(agreement["seed"].nunique()),
    )


def labelled(agreement: pd.DataFrame) -> pd.DataFrame:
    """Pairs of masks with a name for each kind of pair; pairs of training seeds are one kind."""
    rows = agreement.assign(pair=agreement["what"] + ": " + agreement["detail"])
    rows.loc[rows["what"] == "training seed", "pair"] = "training seed: two seeds"
    return rows


@dataclass(frozen=True)
class OverDensity:
    """Largest difference in UA, in points, between salient and random masks over the densities, and where."""

    apart: float
    keep: float
    seeds: int


def over_density(density: pd.DataFrame) -> OverDensity | None:
    """Whether the ranking of weights shows at any density; None without both kinds of mask."""
    means = density.assign(UA=density["UA"].astype(float)).pivot_table(
        index="keep", columns="mask", values="UA"
    )
    if not {"salient", "random"} <= set(means):
        return None
    apart = 100 * (means["salient"] - means["random"]).abs()
    return OverDensity(float(apart.max()), 100 * float(apart.idxmax()), int(density["seed"].nunique()))


@dataclass(frozen=True)
class ScoreSpan:
    """Scores of single weights.

    Parameters
    ----------
    powers : float
        Powers of ten between the smallest and the largest score above 0.
    zero : float
        Share of the weights with a score of exactly 0.
    keep : float
        Share of the weights that the mask marks.
    threshold : float
        The score from which it does.
    weights : int
        All weights.
    """

    powers: float
    zero: float
    keep: float
    threshold: float
    weights: int


@dataclass(frozen=True)
class MarkedShares:
    """Percentage of weights that a mask marks: of all, and by layer."""

    all: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class AfterEpochs:
    """UA and TA in percent after the last epoch of forgetting, by kind of mask."""

    epochs: int
    UA: Mapping[str, float]
    TA: Mapping[str, float]


def after_epochs(curve: pd.DataFrame) -> AfterEpochs:
    """Where forgetting ends; ``curve`` has ``mask, epochs, UA, TA``."""
    last = curve[curve["epochs"] == curve["epochs"].max()].set_index("mask")
    ua, ta = ({str(k): 100 * float(v) for k, v in last[name].items()} for name in ("UA", "TA"))
    return AfterEpochs(int(curve["epochs"].max()), ua, ta)
