"""The rule by which a claim is judged, and how often it errs where the truth is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from salun_core.metrics.statistics import Evidence, PairedDifferences, holm, p_above, p_below

HOLDS, CONTRADICTED, EQUIVALENT = "holds", "contradicted", "equivalent within the margin"
UNDECIDED, NOT_TESTABLE, NOT_RUN = "undecided", "not testable in this run", "not run"
WORDS = (HOLDS, CONTRADICTED, EQUIVALENT, UNDECIDED, NOT_TESTABLE)
LEVEL = 0.05  # of wrong verdicts that is accepted, over all claims of one run
FEWEST = 3  # training seeds from which an interval is taken seriously


@dataclass(frozen=True)
class Measurement:
    """An advantage that a claim asserts, as measured in one run.

    Parameters
    ----------
    what : str
        The difference, worded so that a positive one speaks for the claim.
    evidence : PairedDifferences or Resampled
        The difference over training seeds or settings, in the claim's unit.
    margin : float
        A smaller advantage is taken for none, in the same unit.
    control : PairedDifferences or None
        How much farther from Retrain the original model is than a retrained model, over training seeds; None where
        that was not measured.
    scenario : str
        Where it was measured.
    how : str
        At which settings, where the run measures the same claim at others too.
    """

    what: str
    evidence: Evidence
    margin: float
    control: PairedDifferences | None
    scenario: str = ""
    how: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the rule says on a measurement.

    Parameters
    ----------
    word : str
        One of ``WORDS``.
    reason : str
        Why a claim cannot be tested in this run; or that an advantage that holds is within the margin.
    p_difference, p_equivalence : float
        P values, adjusted for all claims of the run: that there is no difference, that it is not within the
        margin. NaN where the claim is not testable.
    """

    word: str
    reason: str = ""
    p_difference: float = math.nan
    p_equivalence: float = math.nan


def untestable(found: Measurement) -> str:
    """Why a claim cannot be judged in this run; empty where it can.

    The positive control: unless doing nothing is clearly farther from Retrain than another Retrain, there is nothing
    to forget in this run, and no method can do better than another.
    """
    if found.control is None:
        return "Original, or a second Retrain, was not run, so there is no positive control"
    if min(found.control.n, found.evidence.n) < FEWEST:
        return f"fewer than {FEWEST} {'training seeds' if found.control.n < FEWEST else 'values'}"
    if found.control.p_above() > LEVEL:
        return "doing nothing is not clearly farther from Retrain than another Retrain is"
    return ""


def judge(found: Sequence[Measurement], *, times: float = 1.0) -> list[Verdict]:
    """Verdicts on all measurements of one run, which are one family.

    Superiority and equivalence are two tests. A claim *holds* if its advantage is above 0 and is *contradicted* if it
    is below, both by one two-sided test; it is *equivalent within the margin* if the advantage is neither above
    the margin nor below its negative, by two one-sided tests. Each of the two families of p values is adjusted by
    Holm's procedure: in a run, the probability of any wrong difference is at most 5%, and so is that of any wrong
    equivalence.

    Parameters
    ----------
    times : float
        Factor on the margins.
    """
    reasons = [untestable(each) for each in found]
    family = [each for each, reason in zip(found, reasons, strict=True) if not reason]
    sides = [(each.evidence.p_above(), each.evidence.p_below()) for each in family]
    different = holm([min(1.0, 2 * min(pair)) for pair in sides]) if family else np.empty(0)
    inside = (
        holm([_p_inside(each.evidence, times * each.margin) for each in family]) if family else np.empty(0)
    )
    judged = iter(zip(sides, different, inside, strict=True))
    verdicts = []
    for reason in reasons:
        if reason:
            verdicts.append(Verdict(NOT_TESTABLE, reason))
            continue
        (above, below), p_difference, p_equivalence = next(judged)
        word = _word(above < below, p_difference, p_equivalence)
        small = word in (HOLDS, CONTRADICTED) and p_equivalence <= LEVEL
        verdicts.append(Verdict(word, "within the margin" if small else "", p_difference, p_equivalence))
    return verdicts


def _p_inside(evidence: Evidence, margin: float) -> float:
    """P value of two one-sided tests that the advantage is within the margin."""
    return max(evidence.p_above(-margin), evidence.p_below(margin))


def _word(positive: bool, p_difference: float, p_equivalence: float) -> str:
    if p_difference <= LEVEL:
        return HOLDS if positive else CONTRADICTED
    return EQUIVALENT if p_equivalence <= LEVEL else UNDECIDED


# --- how often the rule errs --------------------------------------------------------------------------


def simulated_verdicts(
    advantage: float,
    *,
    units: int = 5,
    rivals: int = 8,
    claims: int = 10,
    runs: int = 2000,
    margin: float = 0.5,
    seed: int = 0,
) -> pd.Series:
    """Verdicts on simulated runs in which the truth is known.

    Every run has ``claims`` claims on ``units`` training seeds. In the first one SalUn is nearer to Retrain than the
    best of its rivals by ``advantage``; in all others every method is equally near. Each model's four metrics
    scatter like those of retrained models, the reference is the mean of two of them, and the unit is the noise
    floor: the mean average gap between two retrained models.

    Parameters
    ----------
    advantage : float
        In noise floors. The other rivals are up to one floor farther.
    margin : float
        In noise floors.

    Returns
    -------
    Series
        Share of runs by verdict on the first claim; "wrong" is the share with any wrong word on any claim: "holds"
        or "contradicted" where all are equal, the wrong sign, or "equivalent" where the advantage is at least
        the margin.
    """
    rng = np.random.default_rng(seed)
    truth = np.zeros((claims, rivals))
    truth[0] = advantage + np.linspace(0, 1, rivals) * (advantage != 0)
    values = np.stack([_differences(truth[c], runs, units, rng) for c in range(claims)], axis=1)
    above, below = p_above(values), p_below(values)  # (runs, claims)
    different = holm(np.minimum(1.0, 2 * np.minimum(above, below)))
    inside = holm(np.maximum(p_above(values, -margin), p_below(values, margin)))
    words = np.where(
        different <= LEVEL,
        np.where(above < below, HOLDS, CONTRADICTED),
        np.where(inside <= LEVEL, EQUIVALENT, UNDECIDED),
    )
    equal = truth.min(axis=1) == 0
    beyond = np.abs(truth.min(axis=1)) >= margin
    wrong = np.isin(words, (HOLDS, CONTRADICTED)) & equal
    wrong |= (words == CONTRADICTED) & (truth.min(axis=1) > 0)
    wrong |= (words == EQUIVALENT) & beyond
    shares = {word: float((words[:, 0] == word).mean()) for word in WORDS if word != NOT_TESTABLE}
    return pd.Series(shares | {"wrong": float(wrong.any(axis=1).mean())})


def _differences(truth: np.ndarray, runs: int, units: int, rng: np.random.Generator) -> np.ndarray:
    """Average gaps of the rivals minus that of SalUn, (runs, units, rivals), in noise floors."""
    sigma = math.sqrt(math.pi) / 2  # two draws lie one floor apart on average
    bias = 3.0  # of every method, in floors: far enough from 0 for a gap to be a difference

    def gaps_to(reference: np.ndarray, shift: np.ndarray) -> np.ndarray:
        models = bias + shift[:, None] + sigma * rng.standard_normal((runs, units, len(shift), 4))
        return np.abs(models - reference[:, :, None]).mean(axis=-1)

    reference = sigma / math.sqrt(2) * rng.standard_normal((runs, units, 4))
    mine = gaps_to(reference, np.zeros(1))
    return gaps_to(reference, truth) - mine


def error_rates(
    advantages: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    units: Sequence[int] = (3, 5, 10),
    *,
    runs: int = 1000,
) -> pd.DataFrame:
    """`simulated_verdicts` over true advantages and numbers of training seeds, one row each."""
    return pd.DataFrame(
        [
            {"advantage": a, "units": n} | simulated_verdicts(a, units=n, runs=runs).to_dict()
            for n in units
            for a in advantages
        ]
    )
