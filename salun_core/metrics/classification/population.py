"""Audits over a population of models, which ask whether models that unlearned differ from retrained ones.

An attack on one model learns one rule for all images. These audits have a rule for each image, learned from several
models that unlearned it and several that were retrained without it. The two populations differ in seeds only: the
same split, the same images to forget.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student
from torch import Tensor

from salun_core.errors import UserError
from salun_core.metrics.classification.outputs import Evaluation
from salun_core.metrics.share import NOTHING, Share

Array = npt.NDArray[np.float64]

OWN_VARIANCE = 64  # models of each kind from which every image has a variance of its own
FALSE_ALARMS = 0.01  # share of retrained models' images that may be called unlearned


@dataclass(frozen=True)
class Audit:
    """What an audit finds.

    Parameters
    ----------
    ids : array
        Sample ids of the forget images, ascending, int64 (n,).
    scores : array
        A value in [0, 1] for each, (n,); the audit says what it means.
    share : Share
        Their mean over ``n`` images. Its 95% interval is for another draw of models (a jackknife over both
        populations, which is on the wide side); NaN where leaving out one model leaves too few.
    """

    ids: npt.NDArray[np.int64]
    scores: Array
    share: Share

    def __float__(self) -> float:
        return self.share.value


def ulira(unlearned: Sequence[Evaluation], retrained: Sequence[Evaluation]) -> Audit:
    r"""U-LiRA: how often a likelihood ratio for each image tells an unlearned from a retrained model.

    Of every pair of an unlearned and a retrained model, the others are used to fit two normal distributions to the
    logit of the true class's probability, :math:`\log p_y - \log(1 - p_y)`, of each image: one to unlearned and one to
    retrained models. The two of the pair are then judged by which density is larger. Both are judged by the same
    densities, so two populations without a difference give 1/2 on average, however few models there are.

    Parameters
    ----------
    unlearned, retrained : sequence of Evaluation
        At least 3 models each, with the same forget images. With fewer than ``OWN_VARIANCE`` models of a kind, all
        images share the mean of their variances, as LiRA does.

    Returns
    -------
    Audit
        ``scores``: share of right judgements for each image. ``share``: their mean, best near 0.5; 1 if every image
        betrays what was done. Too few models give a share that is NaN.

    Raises
    ------
    UserError
        If the models do not have the same forget images.

    References
    ----------
    Hayes et al., Inexact unlearning needs more careful evaluations, SaTML 2025 (U-LiRA); Carlini et al., Membership
    inference attacks from first principles, S&P 2022 (LiRA, and the pooled variance).
    """
    ids = same_images(unlearned, retrained, "forget")

    def right(*logits: Array) -> Array:
        of_unlearned, of_retrained = _likelihood_ratios(*logits)
        return (_half_ties(of_unlearned) + _half_ties(-of_retrained)).mean(axis=(0, 1)) / 2

    return _audited(ids, right, _logits(unlearned), _logits(retrained), least=(3, 3))


def ulira_at_few_false_alarms(unlearned: Sequence[Evaluation], retrained: Sequence[Evaluation]) -> Audit:
    """U-LiRA at a false alarm rate of one in a hundred images of retrained models.

    As `ulira`, with one threshold for the likelihood ratios of all images: the lowest that at most
    ``FALSE_ALARMS`` of those of retrained models exceed.

    Returns
    -------
    Audit
        ``scores``: share of unlearned models found out by each image. ``share``: their mean, best near
        ``FALSE_ALARMS``. An average can hide that a few images are exposed; this does not.
    """
    ids = same_images(unlearned, retrained, "forget")

    def found_out(*logits: Array) -> Array:
        of_unlearned, of_retrained = _likelihood_ratios(*logits)
        threshold = np.quantile(of_retrained, 1 - FALSE_ALARMS, method="higher")
        return (of_unlearned > threshold).mean(axis=(0, 1))

    return _audited(ids, found_out, _logits(unlearned), _logits(retrained), least=(3, 3))


def rmia(
    unlearned: Sequence[Evaluation],
    retrained: Sequence[Evaluation],
    *,
    gamma: float = 2.0,
    offline: float = 0.33,
) -> Audit:
    r"""RMIA: how often an image looks more like a member to an unlearned model than to a retrained one.

    The score of an image x for a model is the share of test images z with

    .. math:: \frac{p(x | \theta) / p(x)}{p(z | \theta) / p(z)} \ge \gamma ,

    where p(x | θ) is the probability of the true class, and p(x) its mean over models that never saw x and models that
    did. The latter are not available and are estimated as in the offline attack, :math:`p(x) = \frac{(1 + a)\,
    p_{out}(x) + 1 - a}{2}`. One retrained model after the other is compared with each unlearned one; all further
    retrained models give p_out.

    Parameters
    ----------
    unlearned, retrained : sequence of Evaluation
        At least 1 unlearned and 2 retrained models, with the same forget and test images.
    gamma : float
        γ.
    offline : float
        a, in [0, 1].

    Returns
    -------
    Audit
        ``scores``: for each image, the share of pairs in which the unlearned model has the higher score, ties
        counted as one half. ``share``: their mean, best near 0.5. Above it the images are remembered; below it they
        look less familiar than images that were never seen. Too few models give a share that is NaN.

    Raises
    ------
    UserError
        If the models do not have the same images.

    References
    ----------
    Zarifzadeh, Liu and Shokri, Low-cost high-power membership inference attacks, ICML 2024.
    """
    ids = same_images(unlearned, retrained, "forget")
    n, tested = len(ids), len(same_images(unlearned, retrained, "test"))

    def scores(seen: Array, mean: Array) -> Array:
        ratios = seen / mean
        return np.searchsorted(np.sort(ratios[n:]), ratios[:n] / gamma, side="right") / tested

    def higher(of_unlearned: Array, of_retrained: Array) -> Array:
        wins = np.zeros(n)
        for j, seen in enumerate(of_retrained):
            out = np.delete(of_retrained, j, axis=0).mean(axis=0)
            mean = ((1 + offline) * out + 1 - offline) / 2
            theirs = scores(seen, mean)
            wins += sum(_half_ties(scores(other, mean) - theirs) for other in of_unlearned)
        return wins / (len(of_unlearned) * len(of_retrained))

    parts = (
        np.concatenate([_true_class(models, role) for role in ("forget", "test")], axis=1)
        for models in (unlearned, retrained)
    )
    return _audited(ids, higher, *parts, least=(1, 2) if tested else (math.inf, math.inf))


def same_images(
    unlearned: Sequence[Evaluation], retrained: Sequence[Evaluation], role: str
) -> npt.NDArray[np.int64]:
    """The ids of a role, which all models must share, ascending.

    Raises
    ------
    UserError
        If they do not.
    """
    every = [model.ids[model.rows(role)] for model in (*unlearned, *retrained)]
    if any(ids.tolist() != every[0].tolist() for ids in every[1:]):
        raise UserError(
            f"the models of a population have different {role} images: give unlearned and retrained models of one split"
        )
    return every[0].numpy() if every else np.empty(0, dtype=np.int64)


def _audited(
    ids: npt.NDArray[np.int64],
    scores: Callable[[Array, Array], Array],
    unlearned: Array,
    retrained: Array,
    *,
    least: tuple[float, float],
) -> Audit:
    """The scores of an audit and their mean, with an interval from leaving out each model in turn (jackknife).

    ``unlearned`` and ``retrained`` are what is seen of the models, (models, …); ``least`` how many the audit needs.
    """
    counts = len(unlearned), len(retrained)
    if not len(ids) or any(count < needed for count, needed in zip(counts, least, strict=True)):
        return Audit(ids, np.full(len(ids), math.nan), NOTHING)
    found = scores(unlearned, retrained)
    mean = float(found.mean())
    if any(count <= needed for count, needed in zip(counts, least, strict=True)):
        return Audit(ids, found, Share(mean, len(ids), math.nan, math.nan))
    without = (
        [scores(np.delete(unlearned, i, axis=0), retrained).mean() for i in range(counts[0])],
        [scores(unlearned, np.delete(retrained, j, axis=0)).mean() for j in range(counts[1])],
    )
    variance = sum((len(means) - 1) * np.var(means) for means in without)
    half = float(student.ppf(0.975, min(counts) - 1)) * math.sqrt(variance)
    return Audit(ids, found, Share(mean, len(ids), max(0.0, mean - half), min(1.0, mean + half)))


def _likelihood_ratios(unlearned: Array, retrained: Array) -> tuple[Array, Array]:
    """Log-likelihood ratios (U, R, n) of the two models of each pair; positive where they speak for "unlearned"."""
    without = [
        [_normal(np.delete(part, i, axis=0)) for i in range(len(part))] for part in (unlearned, retrained)
    ]
    found = np.empty((2, len(unlearned), len(retrained), unlearned.shape[1]))
    for i, j in product(range(len(unlearned)), range(len(retrained))):
        for side, seen in enumerate((unlearned[i], retrained[j])):
            likely, other = (
                -(((seen - mean) / std) ** 2) / 2 - np.log(std)
                for mean, std in (without[0][i], without[1][j])
            )
            found[side, i, j] = likely - other
    return found[0], found[1]


def _normal(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (n,) of the logits (models, n) of each image."""
    variance = values.var(axis=0, ddof=1)
    if len(values) < OWN_VARIANCE:
        variance = np.full_like(variance, variance.mean())
    return values.mean(axis=0), np.sqrt(variance + 1e-12)


def _logits(models: Sequence[Evaluation]) -> Array:
    """Logit of the true class's probability for each forget image, (models, n)."""
    rows = []
    for model in models:
        logits, labels = model.part("forget")
        true = logits.double().gather(1, labels[:, None])
        others = logits.double().scatter(1, labels[:, None], -math.inf).logsumexp(dim=1, keepdim=True)
        rows.append((true - others)[:, 0].numpy())
    return np.stack(rows) if rows else np.empty((0, 0))


def _true_class(models: Sequence[Evaluation], role: str) -> Array:
    """Probability of the true class of each image in a role, (models, n)."""

    def of(logits: Tensor, labels: Tensor) -> Array:
        return logits.double().softmax(dim=1).gather(1, labels[:, None])[:, 0].numpy()

    rows = [of(*model.part(role)) for model in models]
    return np.stack(rows) if rows else np.empty((0, 0))


def _half_ties(values: Array) -> Array:
    """1 for positive values, 0 for negative ones, one half for 0."""
    return (np.sign(values) + 1) / 2
