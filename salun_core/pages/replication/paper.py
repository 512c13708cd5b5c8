"""What the paper, and others after it, report on its claims: numbers from ``data/published``, each with its words.

The functions are named in ``data/published/claims.yaml``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from salun_core.metrics.gaps import AVERAGE
from salun_core.metrics.statistics import PairedDifferences
from salun_core.pages.findings.unsafe import published_counts
from salun_core.pages.published import published_name, read_published
from salun_core.pages.tables.published import FIGURE2, TABLE1

TEN_SEEDS = "independent_rerun_2026-09_ten_seeds.csv"
OURS = (
    "salun",
    "salun_soft",
    "retrain",
    "original",
)  # the paper's own methods, and what methods are compared with


@dataclass(frozen=True)
class Reported:
    """What was reported on a claim.

    Parameters
    ----------
    words : str
        The numbers, in words.
    advantage : float or None
        The difference that the claim is about, positive in its favour, in the claim's unit; None where only one side
        of it was reported.
    """

    words: str
    advantage: float | None = None


def best_other(values: pd.Series) -> str:
    """The method with the smallest value that is not the paper's own."""
    return str(values.drop([name for name in OURS if name in values.index]).astype(float).idxmin())


def table1(setting: str) -> Reported:
    """Average gaps of SalUn and the best other method in the paper's Table 1."""
    return _gaps(TABLE1, setting)


def _gaps(name: str, setting: str) -> Reported:
    rows = read_published(name)
    rows = rows[(rows["setting"] == setting) & (rows["metric"] == AVERAGE)]
    values = rows.set_index("method")["value"].astype(float)
    best = best_other(values)
    return Reported(
        f"SalUn {values['salun']:.2f}, {published_name(best)} {values[best]:.2f} points",
        float(values[best] - values["salun"]),
    )


def ten_seeds(setting: str) -> Reported:
    """The same in an independent rerun over ten seeds, with SalUn-soft where it is nearer than SalUn."""
    found = _gaps(TEN_SEEDS, setting)
    rows = read_published(TEN_SEEDS)
    rows = rows[(rows["setting"] == setting) & (rows["metric"] == AVERAGE)]
    soft = float(rows.set_index("method")["value"]["salun_soft"])
    extra = f"; SalUn-soft {soft:.2f}"
    return Reported(f"{found.words}{extra} (means over ten seeds)", found.advantage)


def figure2_shares() -> Reported:
    """Gaps in UA of SalUn and the best other method in the paper's Figure 2(a), means over its two shares."""
    rows = read_published(FIGURE2)
    means = rows[rows["table"].str.startswith("Figure 2(a)")].groupby("method")["value"].mean()
    best = best_other(means)
    return Reported(
        f"mean over 10% and 50%: SalUn {means['salun']:.2f}, {published_name(best)} {means[best]:.2f} points",
        float(means[best] - means["salun"]),
    )


def figure2_settings() -> Reported:
    """The spread of UA over settings of IU in the paper's Figure 2(b): its boxes."""
    rows = read_published(FIGURE2)
    values = rows[rows["table"].str.startswith("Figure 2(b)")].set_index(["method", "metric"])["value"]
    boxes = {
        name: (values[key, "UA box low"], values[key, "UA box high"])
        for name, key in (("IU", "iu"), ("IU with the mask", "IU + SalUn"))
    }
    said = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in boxes.items())
    widths = [high - low for low, high in boxes.values()]
    return Reported(f"middle half of UA over settings: {said}%", float(widths[0] - widths[1]))


def figure5() -> Reported:
    """Detections left in the paper's Figure 5; those of the other methods are not known."""
    return Reported(f"SalUn {sum(published_counts().counts)} detections in 4,703 prompts")


def table1_time() -> Reported:
    """Times of SalUn and Retrain in the paper's Table 1."""
    return _times(TABLE1)


def ten_seeds_time() -> Reported:
    """The same in the independent rerun."""
    return _times(TEN_SEEDS)


def _times(name: str) -> Reported:
    rows = read_published(name)
    mine = rows[(rows["setting"] == "random data forgetting 10%") & (rows["metric"] == "RTE")]
    values = mine.set_index("method")["value"].astype(float)
    factor = float(values["retrain"] / values["salun"])
    return Reported(
        f"SalUn {values['salun']:.2f}, Retrain {values['retrain']:.2f} minutes: {factor:.0f} times faster",
        factor,
    )


def ddpm_masks() -> Reported:
    """Other classes that a DDPM draws after RL under the salient and under a random mask, over ten forgotten classes."""
    rows = read_published(TEN_SEEDS)
    rows = rows[rows["model"] == "DDPM"]
    table = rows.pivot_table(index="setting", columns="method", values="value")
    apart = PairedDifferences((table["salun"] - table["random mask"]).to_numpy()[:, None])
    low, high = apart.interval()
    return Reported(
        f"DDPM, one model: other classes recognised {table['salun'].mean():.2f}% under the salient and "
        f"{table['random mask'].mean():.2f}% under a random mask; {apart.mean:+.2f} points over {apart.n} forgotten "
        f"classes ({low:+.2f} to {high:+.2f})",
        apart.mean,
    )


REPORTS: dict[str, Callable[..., Reported]] = {
    function.__name__: function
    for function in (
        table1,
        table1_time,
        figure2_shares,
        figure2_settings,
        figure5,
        ten_seeds,
        ten_seeds_time,
        ddpm_masks,
    )
}
