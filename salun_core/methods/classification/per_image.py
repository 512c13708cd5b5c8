"""Loss gradients of single images, several at a time through the network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from salun_core.data.batches import Batches, Loader
from salun_core.tasks.base import Task

GRADIENT_BYTES = 1 << 29  # memory for the gradients held at once


def free_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are not frozen."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def per_image_gradients(task: Task, model: nn.Module, batches: Loader) -> Iterator[Tensor]:
    """Yield the loss gradient (P,) of each image in order, over the weights of `free_weights` one after the other.

    The network runs in evaluation mode, without augmentation.
    """
    # Detached: a sum of gradients that could be differentiated again would hold all images.
    weights = {name: weight.detach() for name, weight in free_weights(model).items()}
    fixed = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def loss_of_one(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        network = _Bound(model, {**fixed, **weights})
        return task.loss(network, (image[None], label[None]))

    gradient = vmap(grad(loss_of_one), in_dims=(None, 0, 0))
    count = sum(w.numel() for w in weights.values())
    together = max(1, min(64, GRADIENT_BYTES // (4 * count)))
    # What a loader gives is taken as it comes: larger batches would have to be copied together.
    for some in batches.resized(together) if isinstance(batches, Batches) else batches:
        for images, labels in zip(*(part.split(together) for part in some), strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # the others cannot be taken for several images at once
                parts = gradient(weights, images.to(next(iter(weights.values())).dtype).contiguous(), labels)
            yield from torch.cat([parts[name].reshape(len(images), -1) for name in weights], dim=1)


class _Bound(nn.Module):
    """A network called with given weights instead of its own, in evaluation mode."""

    def __init__(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["call"] = lambda images: functional_call(network, state, (images,))
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        return self.__dict__["call"](images)
