"""Selective synaptic dampening: shrink the weights that matter far more for the forget set than for all data."""

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from salun_core.data.batches import Loader
from salun_core.errors import Diverged
from salun_core.methods.classification.per_image import free_weights, per_image_gradients
from salun_core.methods.engine import Method, Unlearned, trainable_copy
from salun_core.methods.search import between
from salun_core.saliency import Mask, check_mask
from salun_core.tasks.base import Task


def ssd(
    task: Task,
    *,
    mask: Mask | None = None,
    alpha: PositiveFloat = 2.0,
    lam: PositiveFloat = 1.0,
    seed: int = 0,
) -> Unlearned:
    r"""Multiply chosen weights by a factor below 1; nothing is trained.

    The importance of a weight for a set is the diagonal of its Fisher information, the mean squared loss gradient of
    its images: :math:`I_f` for the forget set, :math:`I` for forget and retain set together. Where
    :math:`I_f > \alpha I` the weight becomes

    .. math:: \theta_u = \min\Big(\frac{\lambda I}{I_f}, 1\Big)\, \theta_o .

    Gradients are taken image by image, in evaluation mode without augmentation. The released code squares the
    gradients of batches, whose values depend on the size and the order of the batches.

    Parameters
    ----------
    task : ClassificationTask
        A trained classifier with its forget and retain set.
    mask : Mask, optional
        Weights that may change; all by default.
    alpha : float
        How many times more a weight must matter for the forget set. As its n_f of the n images count in :math:`I`
        too, no weight is chosen from n / n_f on: the paper's 10 does nothing where a tenth is to be forgotten.
    lam : float
        :math:`\lambda`, how much of a chosen weight is left.
    seed : int
        Without effect: nothing is drawn.

    References
    ----------
    Foster et al., Fast machine unlearning without retraining through selective synaptic dampening, AAAI 2024,
    arXiv:2308.07707.
    """
    model = trainable_copy(task.model).eval()
    if mask is not None:
        check_mask(mask, model)
    n_f, n = task.forget.n, task.forget.n + task.retain.n
    squared = _squared_gradients(task, model, task.forget)
    forget = squared / n_f
    every = (squared + _squared_gradients(task, model, task.retain)) / n
    if not torch.isfinite(every).all():
        raise Diverged("the importance of a weight is not finite: the model's gradients are too large")
    factor = torch.where(forget > alpha * every, (lam * every / forget).clamp(max=1), 1)
    with torch.no_grad():
        weights = free_weights(model)
        parts = factor.split([w.numel() for w in weights.values()])
        for (name, weight), part in zip(weights.items(), parts, strict=True):
            dampened = weight * part.view_as(weight).to(weight.dtype)
            weight.copy_(
                dampened if mask is None else torch.where(mask[name].to(weight.device), dampened, weight)
            )
    return Unlearned(model, [], samples=n)


def _squared_gradients(task: Task, model: nn.Module, batches: Loader) -> Tensor:
    """Sum over images of the squared loss gradient (P,), in double precision."""
    weights = free_weights(model).values()
    total = torch.zeros(
        sum(w.numel() for w in weights), dtype=torch.float64, device=next(iter(weights)).device
    )
    for gradient in per_image_gradients(task, model, batches):
        total.addcmul_(gradient.double(), gradient.double())
    return total


METHOD = Method(
    ssd,
    "SSD",
    tasks=("classification",),
    search={"alpha": between(1, 10), "lam": between(0.1, 5)},
    source="Foster et al., AAAI 2024",
)
