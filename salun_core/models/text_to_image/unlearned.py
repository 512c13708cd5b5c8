"""Networks that others have unlearned: read in any of the forms in which they are released, for a pipeline of ours."""

import copy
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.files import read_config, regular
from salun_core.models.text_to_image.deltas import FORMAT, load_delta
from salun_core.models.text_to_image.families import family_of, network_of
from salun_core.networks import check_finite, read_tensors
from salun_core.paths import expanded

TENSORS = (".safetensors",)
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "unet", "transformer", "model", "module", "params")
"""Names under which files hold the weights, beside other things."""

PREFIXES = ("", "module.", "unet.", "transformer.", "model.diffusion_model.", "diffusion_model.", "model.")
"""What may stand before the name of each weight; what has another name then belongs to other parts."""

ADAPTERS = re.compile(r"lora|\.alpha$|_adapter")


def load_unlearned(path: Path | str, pipe: Any) -> nn.Module:
    """The denoising network that a file or folder makes of a pipeline's own.

    Parameters
    ----------
    path : path
        A diffusers folder, of a whole pipeline or of its network alone; a file in safetensors, or a pickle
        (.pt, .pth, .bin, .ckpt), which is read without running code; or a file of `save_delta`. Names of
        weights may be those of diffusers or of CompVis. A file with some of the weights changes these alone.
    pipe : pipeline of diffusers
        The one that was unlearned; it stays as it is.

    Returns
    -------
    nn.Module
        A copy of the pipeline's network, in its precision and on its device, in evaluation mode.

    Raises
    ------
    UserError
        If nothing is there, it cannot be read, or it holds another network; with the weight that shows it.
    """
    path, network = expanded(path), network_of(pipe)
    files = unlearned_files(path, pipe)
    if _is_delta(path):
        return load_delta(path, network).eval()
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _from_file(file)
    return _filled(network, fitting(weights, network, path), path)


def unlearned_files(path: Path | str, pipe: Any) -> list[Path]:
    """The files that `load_unlearned` reads weights from.

    Raises
    ------
    UserError
        If there are none, or a folder is that of another network.
    """
    path = expanded(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}: give the one with the unlearned network")
    return _in_folder(path, family_of(pipe).network, network_of(pipe)) if path.is_dir() else [regular(path)]


def fitting(weights: Mapping[str, Tensor], network: nn.Module, source: Path | str) -> dict[str, Tensor]:
    """The weights by their names in the network, those of other parts left out.

    Parameters
    ----------
    weights : mapping of str to Tensor
        By the names in a file.
    network : nn.Module
        Says which weights there are.
    source : path
        Where they come from, for messages.

    Raises
    ------
    UserError
        If none belongs to the network, one of its part does not, or a shape differs.
    """
    own = network.state_dict()
    known = {name: name for name in own} | {
        other: name for name in own if (other := compvis_name(name, network)) is not None
    }
    found: dict[str, Tensor] = {}
    chosen = ""
    for prefix in PREFIXES:
        here = {name.removeprefix(prefix): v for name, v in weights.items() if name.startswith(prefix)}
        matched = {known[name]: value for name, value in here.items() if name in known}
        if len(matched) > len(found):
            found, chosen = matched, prefix
    if not found:
        some = next(iter(weights), "nothing")
        if any(ADAPTERS.search(name) for name in weights):
            raise UserError(
                f"{source} holds adapters ({some}): add them to the network's weights and save it"
            )
        raise UserError(
            f"{source} holds no weight of a {type(network).__name__} (but {some}): give the unlearned "
            "denoising network"
        )
    strange = [
        name
        for name in weights
        if name.startswith(chosen) and name.removeprefix(chosen) not in known and (chosen or "." in name)
    ]
    if strange:
        raise UserError(
            f"{source} holds {strange[0]}, which the pipeline's {type(network).__name__} lacks: give the "
            "pipeline that was unlearned"
        )
    for name, value in found.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"{source} has shape {tuple(value.shape)} for {name}, the pipeline's network "
                f"{tuple(own[name].shape)}: give the pipeline that was unlearned"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"{source} holds values of {name} that are not finite: copy it again")
    return found


def compvis_name(name: str, network: nn.Module) -> str | None:
    """What CompVis' code calls a weight of a ``UNet2DConditionModel``, without prefix; None if it has no name there.

    The converters of diffusers go the other way, and need all weights at once to count the blocks by.
    """
    for pattern, place in _BLOCKS:
        if match := re.fullmatch(pattern, name):
            return place(network, *match.groups())
    return None


def _counts(network: nn.Module) -> int:
    config: Any = getattr(network, "config", {})
    layers = config.get("layers_per_block", 1)
    return layers if isinstance(layers, int) else layers[0]


def _down(network: nn.Module, block: str, kind: str, layer: str, rest: str) -> str:
    place = (_counts(network) + 1) * int(block) + int(layer) + 1
    if kind == "downsamplers":
        place = (_counts(network) + 1) * (int(block) + 1)
        return f"input_blocks.{place}.0.{rest.replace('conv', 'op', 1)}"
    return f"input_blocks.{place}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _up(network: nn.Module, block: str, kind: str, layer: str, rest: str) -> str:
    first = (_counts(network) + 1) * int(block)
    if kind == "upsamplers":
        blocks: Any = network.get_submodule(f"up_blocks.{block}")
        attends = getattr(blocks, "attentions", None) is not None
        return f"output_blocks.{first + _counts(network)}.{1 + attends}.{rest}"
    return f"output_blocks.{first + int(layer)}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _middle(network: nn.Module, kind: str, layer: str, rest: str) -> str:
    return f"middle_block.{2 * int(layer) + int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    for ours, theirs in _RESNET.items():
        if rest.startswith(ours):
            return theirs + rest.removeprefix(ours)
    return rest


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCKS: tuple[tuple[str, Any], ...] = (
    (r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", _down),
    (r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.+)", _up),
    (r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", _middle),
    (r"(.+)\.(weight|bias)", lambda _, at, kind: f"{_ENDS[at]}.{kind}" if at in _ENDS else None),
)


def _filled(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> nn.Module:
    model = copy.deepcopy(network)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in weights.items():
            state[name].copy_(value)
    check_finite(model, source)
    return model.eval()


def _in_folder(folder: Path, part: str, network: nn.Module) -> list[Path]:
    place = folder / part if (folder / part).is_dir() else folder
    if (place / "config.json").is_file():
        config = read_config(place / "config.json")
        kind = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
        if kind is not None and kind != type(network).__name__:
            raise UserError(
                f"{place} holds a {kind}, and the pipeline draws with a {type(network).__name__}: give the "
                "unlearned denoising network"
            )
    for endings in (TENSORS, PICKLES):
        files = [file for file in sorted(place.iterdir()) if file.suffix in endings and file.is_file()]
        # The same weights may lie beside these in half precision ("….fp16.safetensors").
        plain = [file for file in files if "." not in file.stem] or files
        whole = [file for file in plain if re.search(r"-\d+-of-\d+$", file.stem)]
        if whole or len(plain) == 1:
            return whole or plain
        if plain:
            raise UserError(
                f"{place} holds {plain[0].name} and {plain[1].name}: give one of them by its path"
            )
    raise UserError(
        f"{place} holds no weights: give a diffusers folder, or a file that ends in "
        f"{', '.join(TENSORS + PICKLES)}"
    )


def _from_file(path: Path) -> Mapping[str, Tensor]:
    if path.suffix in TENSORS:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is truncated or damaged: copy it again") from error
    if path.suffix not in PICKLES:
        raise UserError(
            f"{path} has an unknown file type: give a diffusers folder, or a file that ends in "
            f"{', '.join(TENSORS + PICKLES)}"
        )
    mmap = zipfile.is_zipfile(path) or None
    return _tensors(read_tensors(path, "the state_dict of its network alone", mmap=mmap), path)


def _tensors(held: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(held, Mapping):
        inner = next((held[name] for name in WRAPPERS if isinstance(held.get(name), Mapping)), None)
        if inner is None:
            break
        held = inner
    if not isinstance(held, Mapping):
        raise UserError(f"{path} holds a {type(held).__name__}: give the state_dict of a network")
    return {str(name): value for name, value in held.items() if isinstance(value, Tensor)}


def _is_delta(path: Path) -> bool:
    if path.suffix not in TENSORS:
        return False
    try:
        with safe_open(str(path), framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False
