"""Classifiers that others have trained: files of weights, and models of the Hugging Face hub."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from salun_core.errors import UserError
from salun_core.files import all_regular, read_config, regular, sha256
from salun_core.models.classification.normalised import Normalised
from salun_core.networks import check_finite, check_loaded, read_tensors, without_bars
from salun_core.paths import expanded
from salun_core.rng import isolated

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOMENTS = ("mean", "std")


@dataclass(frozen=True)
class Checkpoint:
    """Where a trained classifier is.

    Parameters
    ----------
    source : str
        A file of safetensors or of ``torch.save`` (tensors only: no code in it is run); a folder with
        ``model.safetensors``, with or without a configuration of transformers; or the id of a model of the Hugging
        Face hub, which is fetched, or found where it was fetched before.
    """

    source: str

    @cached_property
    def path(self) -> Path:
        """The file or folder; what is only on the hub is fetched.

        Raises
        ------
        UserError
            If there is none.
        """
        return self._found(("*.json", "*.safetensors"))

    @cached_property
    def described(self) -> Path:
        """The same, but of the hub no more is fetched than what says which network it is."""
        return self._found(("*.json",))

    def _found(self, kinds: Sequence[str]) -> Path:
        path = expanded(self.source)
        if path.exists():
            all_regular(regular(path))
            return path
        if not HUB_ID.fullmatch(self.source) or path.suffix in (".pt", ".pth", ".safetensors"):
            raise UserError(
                f"there is no checkpoint {self.source}: give a file, a folder or an id of the hub"
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

        try:
            return Path(snapshot_download(self.source, allow_patterns=list(kinds)))
        except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
            raise UserError(
                f"the model {self.source} is neither here nor can it be fetched ({type(error).__name__}): give a folder"
            ) from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, or of a folder's weights and configurations."""
        if self.path.is_file():
            return sha256(self.path)
        kept = [p for p in sorted(self.path.iterdir()) if p.suffix in (".json", ".safetensors")]
        return " ".join(f"{p.name}:{sha256(p)}" for p in kept)

    @cached_property
    def transformer(self) -> dict[str, Any] | None:
        """The configuration of a model of transformers; None for plain weights."""
        file = self.described / "config.json"
        config = read_config(file) if file.is_file() else {}
        return config if "model_type" in config else None

    @property
    def arch(self) -> str | None:
        """Name of a model of transformers, for tables."""
        if self.transformer is None:
            return None
        return (
            f"transformers:{(self.transformer.get('architectures') or [self.transformer['model_type']])[0]}"
        )

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised network like this model of transformers."""
        from transformers import AutoConfig, AutoModelForImageClassification

        with isolated(seed, "initial weights"):
            net = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(self.described))
        return self._normalised(net)

    def load(self, network: nn.Module) -> nn.Module:
        """The trained classifier, in evaluation mode.

        Parameters
        ----------
        network : nn.Module
            Of the same kind, from `models.build_model` or `build`; its weights are replaced.

        Raises
        ------
        UserError
            If the weights are not those of such a network, or not finite.
        """
        if self.transformer is not None:
            from transformers import AutoModelForImageClassification
            from transformers.utils import logging

            try:
                with without_bars(logging):
                    net, info = AutoModelForImageClassification.from_pretrained(
                        self.path,
                        local_files_only=True,
                        ignore_mismatched_sizes=True,
                        output_loading_info=True,
                    )
            except (OSError, ValueError, SafetensorError, RuntimeError) as error:
                raise UserError(
                    f"the model in {self.path} is incomplete or damaged: copy it again"
                ) from error
            check_loaded(info, self.path)
            network = self._normalised(net)
        else:
            network.load_state_dict(fitting(self._weights(), network, self.source))
        check_finite(network, self.source)
        return network.eval()

    def _normalised(self, net: nn.Module) -> nn.Module:
        file = self.described / "preprocessor_config.json"
        said = read_config(file) if file.is_file() else {}
        if not said.get("do_normalize", "image_mean" in said):
            return net
        return Normalised(net, said["image_mean"], said["image_std"])

    def _weights(self) -> dict[str, Tensor]:
        path = self.path
        if path.is_dir():
            path = path / "model.safetensors"
            if not path.is_file():
                raise UserError(f"{self.path} holds no model.safetensors: name the file with the weights")
        if path.suffix == ".safetensors":
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is truncated or damaged: copy it again") from error
        held = read_tensors(path, "model.state_dict() alone")
        while isinstance(held, Mapping) and (inner := next((held[k] for k in WRAPPERS if k in held), None)):
            held = inner
        if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
            raise UserError(f"{path} holds no weights by name: save model.state_dict()")
        return dict(held)


def fitting(weights: Mapping[str, Tensor], network: nn.Module, source: str) -> dict[str, Tensor]:
    """Weights under the names of a network, also those of its inner network, with the network's own normalisation.

    Raises
    ------
    UserError
        If a tensor is missing, left over, or has another shape.
    """
    wanted = network.state_dict()
    found = dict(weights)
    inner = network.net.state_dict() if isinstance(network, Normalised) else wanted
    # More than one wrapper may be around a network, in any order; a network may also have parts of such names.
    while (prefix := _prefix(found)) and found.keys().isdisjoint(wanted.keys() | inner.keys()):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    if isinstance(network, Normalised):
        if not found.keys().isdisjoint(inner) or not any(name.startswith("net.") for name in found):
            found = {f"net.{name}": value for name, value in found.items()}
        found = {name: wanted[name] for name in MOMENTS} | found
    # Networks without their normalisation layer, as the authors' code saves it, and counts that older versions lack.
    found |= {n: v for n, v in wanted.items() if n.endswith("num_batches_tracked") and n not in found}
    # Files of safetensors hold weights that are tied under one of their names.
    tied = {(v.data_ptr(), v.shape): n for n, v in wanted.items() if n in found}
    found |= {
        n: found[tied[at]]
        for n, v in wanted.items()
        if n not in found and (at := (v.data_ptr(), v.shape)) in tied
    }
    wrong = [
        n for n in (*wanted, *found) if n not in wanted or n not in found or wanted[n].shape != found[n].shape
    ]
    if wrong:
        name = wrong[0]
        if name not in found:
            said = "is missing there"
        elif name not in wanted:
            said = "is left over"
        else:
            said = f"has shape {tuple(found[name].shape)} there and {tuple(wanted[name].shape)} here"
        raise UserError(
            f"the weights in {source} do not fit this network: {name} {said} "
            f"({len(dict.fromkeys(wrong))} of {len(wanted)} differ); choose arch and width as they were trained"
        )
    return {name: found[name].to(wanted[name].dtype) for name in wanted}


def _prefix(names: Collection[str]) -> str:
    """What a wrapper put before all names; an empty text if none did."""
    return next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), "")
