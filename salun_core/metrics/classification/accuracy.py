"""Shares of right and wrong answers."""

from salun_core.metrics.classification.outputs import Evaluation
from salun_core.metrics.share import Share, wilson


def accuracy(evaluation: Evaluation, role: str) -> Share:
    """Share of the images in a role that the model gets right; NaN for an empty role."""
    counts = evaluation.confusion(role)
    return wilson(int(counts.diagonal().sum()), n=int(counts.sum()))


def unlearning_accuracy(evaluation: Evaluation) -> Share:
    """UA: share of forget images the model gets wrong, best near that of Retrain.

    References
    ----------
    Fan et al., SalUn, ICLR 2024 (UA = 1 - accuracy on the forget set).
    """
    counts = evaluation.confusion("forget")
    return wilson(int(counts.sum() - counts.diagonal().sum()), n=int(counts.sum()))


def retain_accuracy(evaluation: Evaluation) -> Share:
    """RA: accuracy on the retain set."""
    return accuracy(evaluation, "retain")


def test_accuracy(evaluation: Evaluation) -> Share:
    """TA: accuracy on the test set, without images of a forgotten class."""
    return accuracy(evaluation, "test")


def validation_accuracy(evaluation: Evaluation) -> Share:
    """VA: accuracy on the validation set, without images of a forgotten class. Settings are chosen by it."""
    return accuracy(evaluation, "validation")


def test_forgetting(evaluation: Evaluation) -> Share:
    """Share of the *test* images of a forgotten class that the model gets wrong; NaN in other scenarios."""
    counts = evaluation.confusion("test_forgotten")
    return wilson(int(counts.sum() - counts.diagonal().sum()), n=int(counts.sum()))


test_accuracy.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest makes of the name
test_forgetting.__test__ = False  # type: ignore[attr-defined]
