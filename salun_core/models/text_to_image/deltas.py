"""The weights of a network that differ from those of another, as one small file."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.files import parse_json, regular, write_whole
from salun_core.networks import apart
from salun_core.saliency import packed_bits, unpacked_bits

FORMAT = "salun-delta-1"


def save_delta(
    model: nn.Module, original: nn.Module, path: Path | str, *, note: Mapping[str, str] | None = None
) -> Path:
    """Write what changed from ``original`` to ``model`` as safetensors.

    A tensor in which fewer than all entries changed is written as those entries and one bit for every
    entry: with a mask that keeps half of single-precision weights, about half of the bytes of a copy.

    Parameters
    ----------
    model, original : nn.Module
        Networks of one architecture. Where the original has half precision, it counts as exactly that value
        in the precision of ``model``.
    path : path
        File to write; replaced whole.
    note : mapping of str to str, optional
        Stored in the file's header.

    Raises
    ------
    UserError
        If the networks are not of one architecture.
    """
    return write_whole(path, delta_bytes(model, original, note=note))


def delta_bytes(
    model: nn.Module, original: nn.Module, *, note: Mapping[str, str] | None = None, result: str | None = None
) -> bytes:
    """The content of the file that `save_delta` writes; ``result`` is the digest of ``model``, where it is known."""
    before, after = original.state_dict(), model.state_dict()
    _check_same(before, after)
    parts, shapes = {}, {}
    for name, new in after.items():
        new, old = new.detach().cpu().contiguous(), before[name].detach().cpu().to(new.dtype)
        changed = _bits(new) != _bits(old)
        count = int(changed.sum())
        if not count:
            continue
        shapes[name] = list(new.shape)
        if count < 0.9 * new.numel():
            parts[f"{name}:values"] = new[changed]
            parts[f"{name}:places"] = packed_bits(changed)
        else:
            parts[f"{name}:values"] = new.flatten()
    header = {
        "format": FORMAT,
        "original": weights_digest(original),
        "result": weights_digest(model) if result is None else result,
        "dtype": str(next(iter(after.values())).dtype).removeprefix("torch."),
        "shapes": json.dumps(shapes),
        **(note or {}),
    }
    return save(apart(parts), metadata=header)  # the values of tied weights share memory


def load_delta(path: Path | str, original: nn.Module) -> nn.Module:
    """A copy of ``original`` with the changes in a file; equal to what was saved, to the last bit.

    Raises
    ------
    UserError
        If the file is missing or damaged, or was made from another network.
    """
    try:
        with safe_open(str(regular(path)), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(f"{path} holds no changed weights: give a file written by save_delta")
            if header["original"] != weights_digest(original):
                raise UserError(
                    f"{path} was made from another network (digest {header['original'][:12]}): "
                    "load it onto the one it was unlearned from"
                )
            shapes: dict[str, list[int]] = parse_json(header["shapes"])
            model = copy.deepcopy(original).to(getattr(torch, header["dtype"]))
            state, names = model.state_dict(), set(file.keys())
            for name, shape in shapes.items():
                values = file.get_tensor(f"{name}:values").to(state[name])
                if f"{name}:places" in names:
                    places = unpacked_bits(file.get_tensor(f"{name}:places"), shape).to(values.device)
                    state[name][places] = values
                else:
                    state[name].copy_(values.view(shape))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: save the changed weights first") from error
    except (
        SafetensorError,
        OSError,
        LookupError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: delete it and save the changed weights again") from error
    if weights_digest(model) != header["result"]:
        raise UserError(f"{path} is damaged: its weights are not those that were saved")
    return model


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all weights and buffers, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(_bits(value.detach().cpu().contiguous()).numpy().tobytes())
    return sha.hexdigest()


def _bits(values: Tensor) -> Tensor:
    """Values as integers of the same size: equal where every bit is, also for -0 and NaN."""
    sizes: dict[int, Any] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(sizes[values.itemsize])


def _check_same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    for name in before.keys() | after.keys():
        a, b = (tuple(state[name].shape) if name in state else None for state in (before, after))
        if a != b:
            raise UserError(
                f"{name} has shape {a} in the original and {b} in the model: give one network's two states"
            )
