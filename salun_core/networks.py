"""What is asked of any network, whatever it computes: where it is, in which mode, and that it is whole."""

import copy
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from salun_core.errors import UserError, lacks_memory

COPIES = ("DataParallel", "DistributedDataParallel")  # around a whole network
PIECES = ("FullyShardedDataParallel", "FSDPModule")  # which leave a part of every weight in this process


def check_whole(model: object) -> None:
    """Refuse what is not a network whose weights all lie in this process.

    Raises
    ------
    UserError
        If it is not an ``nn.Module``, has no weights, is wrapped for several devices, or its weights are sharded or
        not loaded.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module")
    for wrapper in COPIES:
        if any(base.__name__ == wrapper for base in type(model).__mro__):
            raise UserError(
                f"the model is wrapped in {wrapper}: give model.module, and wrap the result again"
            )
    for place, part in model.named_modules():
        if shards := next((base.__name__ for base in type(part).__mro__ if base.__name__ in PIECES), None):
            raise UserError(
                f"{f'part {place} of the model' if place else 'the model'} is wrapped in {shards}: give the whole model, "
                "gathered on one device, and wrap the result again"
            )
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


def check_trainable(model: nn.Module) -> None:
    """Refuse, besides what `check_whole` refuses, a network in whose copy no weight could be trained.

    Raises
    ------
    UserError
        If it, or a part of it, is a program of ``torch.jit``, or was made in inference mode, or has a weight that is
        not finite.
    """
    check_whole(model)
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise UserError("the model is traced or scripted by torch.jit: give the nn.Module it was made of")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):  # the first batch makes it
            continue
        if tensor.is_complex() and tensor.requires_grad:
            raise UserError(
                f"the model has complex weights ({name}): only real ones are ranked and unlearned"
            )
        if tensor.is_inference():
            raise UserError(
                f"the model was made under torch.inference_mode ({name} can have no gradient): give copy.deepcopy(model), "
                "made outside of it"
            )
    check_finite(model)


def check_finite(model: nn.Module, whose: object = "the model") -> None:
    """Refuse a network with a weight that is not a number, or infinite.

    Raises
    ------
    UserError
        That begins with ``whose``, a name of the network or of its file, and names the weight.
    """
    for name, weight in model.named_parameters():
        if nn.parameter.is_lazy(weight) or weight.is_meta or torch.isfinite(weight).all():
            continue
        raise UserError(
            f"{whose} has weights that are not finite ({name}): its training diverged; give another checkpoint"
        )


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network, with what it has computed from its weights and keeps.

    Raises
    ------
    UserError
        If it cannot be copied.
    """
    # The older forms of weight_norm, spectral_norm and pruning keep the weight of the last pass, computed from
    # parameters; deepcopy refuses that, and the next pass replaces it.
    computed = [
        value
        for part in model.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
    except Exception as error:  # a user's network may hold anything
        if lacks_memory(error):
            raise
        raise UserError(
            f"the model cannot be copied ({error}): methods train a copy, so keep in it only what copy.deepcopy copies"
        ) from error


def weight_bytes(model: nn.Module, *, note: Mapping[str, str] | None = None) -> bytes:
    """All weights and buffers of a network as a safetensors file.

    Weights that are tied are written under each of their names, so that ``load_state_dict`` reads the file.

    Parameters
    ----------
    model : nn.Module
        The network.
    note : mapping of str to str, optional
        Stored in the file's header.
    """
    return save(apart(model.state_dict()), metadata=dict(note or {}) or None)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the processor, each in memory of its own, as safetensors demands."""
    found, seen = {}, set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found


def read_tensors(path: Path | str, remedy: str, **how: Any) -> Any:
    """What a file of ``torch.save`` holds, as tensors only: no code in it is run.

    Parameters
    ----------
    path : Path
        The file.
    remedy : str
        What to save instead, where it holds other things.
    **how
        For ``torch.load``.

    Raises
    ------
    UserError
        If it is damaged, or holds more than tensors.
    """
    try:
        with warnings.catch_warnings():
            # Checking takes no time here, and what cannot be read of a protocol is refused below.
            warnings.filterwarnings("ignore", message="Validating sparse tensor")
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, **how)
    except Exception as error:  # a truncated pickle can raise almost anything
        if lacks_memory(error):
            raise
        if re.search(
            "unsupported (global|class)", str(error), re.IGNORECASE
        ):  # torch names what it will not call
            raise UserError(f"{path} holds more than tensors, which could run code: save {remedy}") from error
        if "unsupported operand" in str(error).lower() and zipfile.is_zipfile(path):  # so torch.save wrote it
            raise UserError(
                f"{path} was pickled in a way that is not read without running code: save it again with torch.save, without "
                "pickle_protocol, or as safetensors"
            ) from error
        raise UserError(
            f"{path} is truncated or damaged, or was not written by torch.save: copy or save it again"
        ) from error


def check_loaded(info: Mapping[str, Any], source: object) -> None:
    """Refuse a network some of whose weights were not in its file: transformers and diffusers draw those anew.

    Parameters
    ----------
    info : mapping
        What ``from_pretrained(..., output_loading_info=True)`` says.
    source : object
        Folder, for the message.

    Raises
    ------
    UserError
        With the first names that are missing, have another shape, or are left over.
    """
    missing = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    other = [
        f"{name} has shape {tuple(there)} there and {tuple(here)} here"
        for name, there, here in info["mismatched_keys"]
    ]
    # Classifiers are saved with the pooling layer of the model they were made of, and do without it.
    left = [f"{name} is left over" for name in sorted(info["unexpected_keys"]) if ".pooler." not in name]
    if wrong := [*sorted(other), *missing, *left]:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"the weights in {source} do not match its configuration: {', '.join(wrong[:3])}{more}; copy both from where "
            "they were trained"
        )


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients are recorded, also where the caller has switched them off."""
    switched = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with switched, torch.enable_grad():
        yield


@contextmanager
def reading(model: nn.Module, images: Tensor, of: str = "") -> Iterator[None]:
    """What a network raises while it reads ``images`` becomes one sentence, except that memory is lacking.

    Parameters
    ----------
    model : nn.Module
        Named "model" in the sentence.
    images : Tensor
        (N, …); their shape is told.
    of : str
        Whose images they are, "of …".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's network may raise anything
        if lacks_memory(error):
            raise
        shape = " x ".join(map(str, images.shape))
        said = f"the model cannot read the images{' ' if of else ''}{of} ({shape}): {str(error)[:400]}"
        normalises = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
        if model.training and len(images) == 1 and normalises:
            said += "; BatchNorm learns nothing from one image: give larger batches, or bn_stats='freeze'"
        else:
            said += "; give images of the size and channels that it takes (image_size in an experiment)"
        raise UserError(said) from error


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


@contextmanager
def without_bars(*libraries: Any) -> Iterator[None]:
    """Keep the bars that libraries show while they load out of notebooks; these are their modules of logging."""
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
