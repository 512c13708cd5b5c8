"""What an independent classifier sees in generated images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.metrics.share import Share, wilson


@dataclass(frozen=True)
class Recognition:
    """How often images asked for as one class were recognised as each.

    Parameters
    ----------
    counts : Tensor
        int64 (K, K): rows are the classes asked for, columns those recognised.
    """

    counts: Tensor

    def unlearning_accuracy(self, forgotten: int | Sequence[int]) -> Share:
        """UA: share of samples of the forgotten class that are *not* recognised as it; best near Retrain's.

        Of several classes, those not recognised as any of them: to draw one in place of another is not to
        forget.

        A model that gives noise, or another class, reaches 1, so this says nothing of the quality of what
        appears instead: read it with `other_accuracy` and a Fréchet distance.

        References
        ----------
        Fan et al., SalUn, ICLR 2024 (UA of generation).
        """
        gone = self._marked(forgotten)
        rows = self.counts[gone]
        return wilson(int(rows[:, ~gone].sum()), n=int(rows.sum()))

    def other_accuracy(self, forgotten: int | Sequence[int]) -> Share:
        """Share of samples of all *other* classes recognised as the class asked for; higher is better.

        The paper leaves this out: it is what over-forgetting destroys.
        """
        others = ~self._marked(forgotten)
        rows = self.counts[others]
        return wilson(int(rows[:, others].diagonal().sum()), n=int(rows.sum()))

    def class_accuracy(self) -> list[Share]:
        """Share recognised as the class asked for, for each class; NaN for one not asked for."""
        return [wilson(int(row[c]), n=int(row.sum())) for c, row in enumerate(self.counts)]

    def strays(self, forgotten: int | Sequence[int]) -> Share:
        """Share of samples of all other classes that are recognised as a forgotten one; lower is better."""
        gone = self._marked(forgotten)
        rows = self.counts[~gone]
        return wilson(int(rows[:, gone].sum()), n=int(rows.sum()))

    def _marked(self, classes: int | Sequence[int]) -> Tensor:
        marked = torch.zeros(len(self.counts), dtype=torch.bool)
        marked[[classes] if isinstance(classes, int) else list(classes)] = True
        return marked


def recognise(
    classifier: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    *,
    classes: int,
    batch_size: int = 256,
) -> Recognition:
    """Ask a classifier what generated images show.

    Parameters
    ----------
    classifier : nn.Module
        Trained on real images: floats in [0, 1] to logits (N, K), in evaluation mode.
    images : Tensor
        uint8 (N, C, H, W).
    labels : sequence of int
        The class each image was asked for, in [0, K).
    classes : int
        K.
    batch_size : int
        Images at once.

    Raises
    ------
    UserError
        If there are not as many labels as images, or a label is out of range.
    """
    asked = torch.as_tensor(labels, dtype=torch.int64)
    if len(asked) != len(images):
        raise UserError(f"{len(images)} images came with {len(asked)} labels: give one each")
    if len(asked) and not (asked.min() >= 0 and asked.max() < classes):
        raise UserError(f"labels must lie in [0, {classes}), got {int(asked.min())} to {int(asked.max())}")
    seen = recognised(classifier, images, batch_size=batch_size)
    pairs = asked * classes + seen
    return Recognition(torch.bincount(pairs, minlength=classes**2).view(classes, classes))


@torch.no_grad()
def recognised(classifier: nn.Module, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """The class that a classifier sees in each image, int64 (N,) on the CPU; see `recognise`."""
    device = next(classifier.parameters()).device
    seen = [classifier(part.to(device).float() / 255).argmax(1).cpu() for part in images.split(batch_size)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *seen])
