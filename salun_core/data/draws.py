"""Parts of a data set, drawn so that the order in which it numbers its images does not matter.

Taking the first images of a set is right only where their order is random: a folder of images is numbered
class by class, and its first thousand are one class.
"""

import numpy as np
import torch
from torch import Tensor

from salun_core.data.batches import Batches
from salun_core.rng import derive


def lots(ids: Tensor, *purpose: object) -> Tensor:
    """A random number in [0, 1) for each sample id, float64 (n,).

    The number depends on the id and the purpose only. Whatever else a set contains, an image is drawn before
    the same other images, and so a part of a set is drawn as it is in the whole set.

    Parameters
    ----------
    ids : Tensor
        int64 (n,), not negative.
    purpose : object
        Names, and perhaps a seed. Draws for different purposes are unrelated.
    """
    if not len(ids):
        return torch.empty(0, dtype=torch.float64)
    numbers = np.random.default_rng(derive(0, "lots", *purpose)).random(int(ids.max()) + 1)
    return torch.from_numpy(numbers)[ids.cpu()]


def class_ranks(labels: Tensor, numbers: Tensor) -> Tensor:
    """Place of each image among those of its class in the order of ``numbers``, from 0, int64 (n,)."""
    order = numbers.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # class by class, in each by its number
    sizes = torch.bincount(labels)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    return ranks


def stratified_order(labels: Tensor, numbers: Tensor) -> Tensor:
    """A random order in which every first part has the class shares of the whole, up to rounding.

    Parameters
    ----------
    labels : Tensor
        Classes, int64 (n,).
    numbers : Tensor
        (n,), from `lots`.

    Returns
    -------
    Tensor
        Positions, int64 (n,).
    """
    order = numbers.argsort(stable=True)
    place = (class_ranks(labels, numbers) + 0.5) / torch.bincount(labels).double()[labels]
    return order[place[order].argsort(stable=True)]


def drawn(batches: Batches, count: int, *purpose: object) -> Batches:
    """At most ``count`` images of a set, every class in its share."""
    order = stratified_order(batches.labels.cpu(), lots(batches.ids, *purpose))
    return batches.subset(order[:count])
