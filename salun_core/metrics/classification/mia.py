"""Membership inference: whether the model behaves on forget images as on images it never saw."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.svm import SVC
from torch import Tensor

from salun_core.data.draws import class_ranks, lots
from salun_core.errors import one_of
from salun_core.metrics.classification.outputs import DRAW, Evaluation
from salun_core.metrics.classification.svm import one_feature_machine
from salun_core.metrics.share import NOTHING, Share, wilson


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability of the true class, (n, 1)."""
    return logits.double().softmax(dim=1).gather(1, labels[:, None])


def correctness(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the answer is right, else 0, (n, 1)."""
    return (logits.argmax(dim=1) == labels).double()[:, None]


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Entropy of the predicted distribution in nats, (n, 1)."""
    log_p = F.log_softmax(logits.double(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1, keepdim=True)


def modified_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Entropy that tells right answers from wrong ones, in nats, (n, 1).

    ``-(1 - p_y) log p_y - sum over other classes i of p_i log(1 - p_i)``. The released code assigns whole
    columns here and takes ``log p_i`` for ``log(1 - p_i)``.

    References
    ----------
    Song and Mittal, USENIX Security 2021, equation 7.
    """
    log_p = F.log_softmax(logits.double(), dim=1)
    p = log_p.exp()
    tiny = torch.finfo(p.dtype).tiny
    true = F.one_hot(labels, logits.size(1)).bool()
    p_y, log_p_y = p[true][:, None], log_p[true][:, None]
    others = torch.where(true, 0.0, p * torch.log((1 - p).clamp_min(tiny)))
    return -(1 - p_y) * log_p_y - others.sum(dim=1, keepdim=True)


def probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of all classes, (n, K)."""
    return logits.double().softmax(dim=1)


FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "confidence": confidence,
    "correctness": correctness,
    "entropy": entropy,
    "m_entropy": modified_entropy,
    "prob": probabilities,
}


ORDERS = ("drawn", "released")
"""How the images that the attack learns from are chosen, see `mia`."""

PENALTY = 3.0  # C of the machine
ON_THE_BOUNDARY = 1e-9  # decision values below this are rounding; libsvm counts 0 as a member


def mia(
    evaluation: Evaluation, *, feature: str = "confidence", held_out: str = "test", order: str = "drawn"
) -> Share:
    """Share of the forget set that an attack takes for images the model was never trained on.

    A support vector machine (RBF kernel, C = 3, gamma "auto") learns to tell retain images (members) from
    held-out ones (non-members) by one feature.

    Parameters
    ----------
    evaluation : Evaluation
        Logits of retain, forget and held-out images.
    feature : str
        A key of ``FEATURES``; the paper's is "confidence".
    held_out : str
        Role of the non-members: "test", or "validation" when settings are chosen.
    order : str
        One of ``ORDERS``. "drawn": of each class as many members as non-members, namely as many as the smaller
        side has, drawn by a seed that is always the same. So class tells nothing of membership. "released":
        the first retain images by sample id, as many as there are held-out images, as in the released code
        (where there are fewer, the first held-out images are cut to their number). In a data set that is
        numbered class by class these are one or two classes, and the attack learns to tell classes.

    Returns
    -------
    Share
        Best near that of Retrain, which was never trained on the forget set: not 1, because most held-out
        images look like members to this attack. NaN where the forget set is empty, or the two sides have no
        class in common.

    References
    ----------
    Fan et al., SalUn, ICLR 2024 (MIA); Jia et al., NeurIPS 2023; Song and Mittal, USENIX Security 2021.
    """
    feature_of = FEATURES[one_of(feature, FEATURES, "attack feature")]
    sides = evaluation.rows("retain"), evaluation.rows(held_out)
    if one_of(order, ORDERS, "order of the attack's images") == "drawn":
        sides = matched_by_class(evaluation, *sides)
    else:
        count = min(map(len, sides))
        sides = sides[0][:count], sides[1][:count]
    rows = (*sides, evaluation.rows("forget"))
    if not all(map(len, rows)):
        return NOTHING
    members, outsiders, forgotten = (
        feature_of(evaluation.logits[part], evaluation.labels[part]).numpy() for part in rows
    )
    said_member = attack(members, outsiders, forgotten)
    return wilson(int((~said_member).sum()), n=len(forgotten))


def matched_by_class(evaluation: Evaluation, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """As many rows of ``first`` as of ``second`` for each class, the most there are on both sides, drawn at random."""
    classes = evaluation.logits.size(1)
    counts = [torch.bincount(evaluation.labels[rows], minlength=classes) for rows in (first, second)]
    each = counts[0].minimum(counts[1])

    def drawn(rows: Tensor) -> Tensor:
        labels = evaluation.labels[rows]
        return rows[class_ranks(labels, lots(evaluation.ids[rows], DRAW)) < each[labels]]

    return drawn(first), drawn(second)


def attack(members: np.ndarray, outsiders: np.ndarray, suspects: np.ndarray) -> np.ndarray:
    """Fit the paper's attack and ask it about ``suspects``.

    Parameters
    ----------
    members, outsiders, suspects : array
        Features, (n, F).

    Returns
    -------
    array of bool
        Whether each suspect is taken for a member, (n,).
    """
    features = np.concatenate([members, outsiders])
    sides = np.concatenate([np.ones(len(members)), -np.ones(len(outsiders))])
    if features.shape[1] == 1:
        decision = one_feature_machine(features[:, 0], sides, penalty=PENALTY)
        if decision is not None:
            return decision(suspects[:, 0]) >= -ON_THE_BOUNDARY
    machine = SVC(C=PENALTY, kernel="rbf", gamma="auto", cache_size=1000).fit(features, sides)
    return machine.predict(suspects) == 1
