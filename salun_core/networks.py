"""What is asked of any network, whatever it computes: where it is, in which mode, and that it is whole."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from salun_core.errors import UserError

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def check_whole(model: object) -> None:
    """Refuse what is not a network whose weights all lie in this process.

    Raises
    ------
    UserError
        If it is no ``nn.Module``, has no weights, is wrapped for several devices, or its weights are sharded or
        not loaded.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module")
    for wrapper in WRAPPERS:
        if any(base.__name__ == wrapper for base in type(model).__mro__):
            inside = "model.module" if hasattr(model, "module") else "the whole model, gathered on one device"
            raise UserError(f"the model is wrapped in {wrapper}: give {inside}, and wrap the result again")
    weights = dict(model.named_parameters())
    if not weights:
        raise UserError("the model has no weights: nothing can be unlearned in it")
    for name, weight in weights.items():
        if type(weight.data).__name__ == "DTensor":
            raise UserError(
                f"the weights of the model are sharded ({name} is a DTensor): gather them on one device"
            )
        if weight.is_meta:
            raise UserError(f"the weights of the model are not loaded ({name} is on the meta device)")


def device_of(model: nn.Module) -> torch.device:
    """Where the first weight of a network lies; the processor for one without weights."""
    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, and afterwards each of its parts in the mode it was in."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        yield model.eval()
    finally:
        for part, training in modes:
            part.training = training
