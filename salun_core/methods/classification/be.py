"""Boundary expanding: give forget images a class of their own, then take that class away."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import skip_init

from salun_core.errors import UserError
from salun_core.methods.engine import Method, Unlearned, descend, rounds
from salun_core.methods.search import between
from salun_core.methods.settings import BatchNormStats
from salun_core.models.classification.scores import class_scores
from salun_core.networks import copied, evaluating
from salun_core.rng import generator
from salun_core.saliency import Mask, check_mask
from salun_core.tasks.base import Task


def be(
    task: Task,
    *,
    mask: Mask | None = None,
    epochs: PositiveInt = 10,
    steps: PositiveInt | None = None,
    lr: PositiveFloat = 1e-5,
    extra_logit: Literal["removed", "kept"] = "removed",
    bn_stats: BatchNormStats = "update",
    seed: int = 0,
) -> Unlearned:
    """Add a class, train the forget images towards it, and remove it.

    Parameters
    ----------
    task : ClassificationTask
        A trained classifier whose last linear layer gives the class scores.
    mask : Mask, optional
        Weights that may change; the weights of the added class always may.
    extra_logit : str
        "removed" before evaluation, as the method is published; "kept", as the released code of SalUn
        leaves it, which makes every image sent to the extra class count as forgotten.
    epochs, steps, lr, bn_stats, seed
        As in `rl`.

    References
    ----------
    Chen et al., Boundary Unlearning, CVPR 2023.
    """
    rng = generator(seed, "be")
    name, head = classifier_head(task)
    if mask is not None:
        check_mask(mask, task.model)
        marked = {
            key: torch.ones_like(mask[key][:1]) for key in (f"{name}.weight", f"{name}.bias") if key in mask
        }
        mask = {key: torch.cat([m, marked[key]]) if key in marked else m for key, m in mask.items()}
    expanded = copied(task.model)
    _replace_head(expanded, name, _widened(head, rng))
    extra = head.out_features

    def losses(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for step in rounds(task, rng, order="forget", epochs=epochs, steps=steps):
            assert step.forget is not None
            images, labels = step.forget
            yield task.loss(model, (images, torch.full_like(labels, extra))), step.samples

    # The task's own losses and data, starting from the expanded network.
    result = descend(
        replace(task, model=expanded),  # type: ignore[type-var]
        losses,
        lr=lr,
        mask=mask,
        seed=seed,
        bn_stats=bn_stats,
    )
    if extra_logit == "removed":
        _replace_head(result.model, name, _narrowed(result.model.get_submodule(name), extra))
    return result


def classifier_head(task: Task) -> tuple[str, nn.Linear]:
    """The last linear layer that has one output per class and gives one more when it is widened, with its name."""
    images, _ = next(iter(task.forget))
    with torch.no_grad(), evaluating(task.model) as model:
        classes = class_scores(model, images[:1]).size(1)
    heads = [
        (n, m)
        for n, m in task.model.named_modules()
        if isinstance(m, nn.Linear) and m.out_features == classes
    ]
    for name, head in reversed(heads):
        if not isinstance(head.weight, nn.Parameter):
            raise UserError(
                f"boundary expanding needs a plain linear last layer, but the weight of {name} is computed from others: "
                "remove its weight_norm, spectral_norm or pruning first"
            )
        if _widens(task.model, name, head, images[:1]):  # others may have as many outputs
            return name, head
    raise UserError(
        f"boundary expanding needs a linear last layer with {classes} outputs, which are the class scores; this model "
        "has none"
    )


def _widens(model: nn.Module, name: str, head: nn.Linear, images: Tensor) -> bool:
    """Whether the class scores are one more when a layer has one output more."""
    twin = copied(model)
    _replace_head(twin, name, _widened(head, generator(0, "be")))
    with torch.no_grad(), evaluating(twin):
        try:
            return class_scores(twin, images).size(1) == head.out_features + 1
        except UserError:  # the network counts on the number of its outputs
            return False


def _replace_head(model: nn.Module, name: str, head: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, head)


def _widened(head: nn.Linear, rng: torch.Generator) -> nn.Linear:
    """``head`` with one more output, drawn as torch initialises a linear layer."""
    bound = head.in_features**-0.5
    wide = _uninitialised(head, head.out_features + 1)
    new = (torch.rand(1, head.in_features + 1, generator=rng) * 2 - 1).to(head.weight) * bound
    with torch.no_grad():
        wide.weight.copy_(torch.cat([head.weight, new[:, :-1]]))
        if head.bias is not None:
            wide.bias.copy_(torch.cat([head.bias, new[0, -1:]]))
    return wide


def _narrowed(head: nn.Module, outputs: int) -> nn.Linear:
    assert isinstance(head, nn.Linear)
    narrow = _uninitialised(head, outputs)
    with torch.no_grad():
        narrow.weight.copy_(head.weight[:outputs])
        if head.bias is not None:
            narrow.bias.copy_(head.bias[:outputs])
    return narrow


def _uninitialised(head: nn.Linear, outputs: int) -> nn.Linear:
    """A layer like ``head`` with another number of outputs; draws no random numbers."""
    layer = skip_init(
        nn.Linear,
        head.in_features,
        outputs,
        bias=head.bias is not None,
        device=head.weight.device,
        dtype=head.weight.dtype,
    )
    assert isinstance(layer, nn.Linear)
    for name, weight in layer.named_parameters():
        weight.requires_grad_(head.get_parameter(name).requires_grad)
    return layer.train(head.training)


METHOD = Method(
    be, "BE", tasks=("classification",), search={"lr": between(1e-6, 1e-4)}, source="Chen et al., CVPR 2023"
)
