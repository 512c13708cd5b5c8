"""How often the rule for claims errs and finds, as data."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

ENOUGH = 0.5  # share of runs from which an advantage counts as found in most of them


@dataclass(frozen=True)
class ErrorRates:
    """Error rates of the rule in simulated runs.

    Parameters
    ----------
    wrong : float
        Largest share of runs with any wrong verdict, over all simulated truths.
    needed : mapping of int to float
        By number of training seeds: the smallest simulated advantage, in noise floors, that is found in most runs;
        infinite where none is.
    """

    wrong: float
    needed: Mapping[int, float]


def error_rates(rates: pd.DataFrame) -> ErrorRates:
    """What a simulation shows; ``rates`` has ``advantage, units, holds, wrong``."""
    needed = {}
    for units, mine in rates.groupby("units"):
        found = mine.loc[mine["holds"] > ENOUGH, "advantage"]
        needed[int(units)] = float(found.min()) if len(found) else float("inf")
    return ErrorRates(float(rates["wrong"].max()), needed)
