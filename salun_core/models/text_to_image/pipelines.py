"""Text-to-image pipelines of diffusers: reading and writing them, encoding prompts and images, decoding latents."""

import contextlib
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from salun_core.data.images import resized_pixels
from salun_core.errors import UserError, lacks_memory, one_line
from salun_core.files import all_regular, read_config
from salun_core.models.diffusion.conditions import Condition, Embedded, stacked
from salun_core.models.diffusion.objectives import PREDICTIONS, Denoising, objective_of
from salun_core.models.diffusion.unet import check_schedule, predict_noise, quiet
from salun_core.models.text_to_image.deltas import weights_digest
from salun_core.models.text_to_image.families import family_of, named_family, network_of
from salun_core.networks import check_loaded, device_of, without_bars
from salun_core.paths import expanded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HUB_NAME = re.compile(
    r"(?!.*(--|[.]{2}|[.]git$))(?=.{3,96}$)\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII
)  # the hub's rules

TRIED = 16  # height of the latents that a pipeline is tried out on

MOST_LAYERS, LARGEST = 1000, 10**7  # of a network's configuration: layers, and any other number

PIXELS = 4 * 512**2
"""Pixels that the autoencoder works on at once: in single precision it takes about 2.6 KB for each."""


def load_pipeline(
    source: str | Path,
    *,
    safety_checker: bool = True,
    pickle: bool = False,
    download: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> "DiffusionPipeline":
    """Read a text-to-image pipeline.

    Parameters
    ----------
    source : str or path
        A diffusers folder, or the name of a model on the Hugging Face hub ("CompVis/stable-diffusion-v1-4").
    safety_checker : bool
        Keep the pipeline's own; False turns it off.
    pickle : bool
        Also read weights that are not safetensors, with torch's restricted reader (``weights_only=True``).
    download : bool
        Fetch a model that is not in the hub's local cache.
    dtype : torch.dtype
        Precision of the weights; half precision halves the memory of what is not trained.
    device : torch.device
        Where the pipeline goes.

    Raises
    ------
    UserError
        If weights are missing, truncated, pickled, or of another kind of pipeline; with file and remedy.
    """
    from diffusers import DiffusionPipeline

    folder = expanded(source)
    local = folder.is_dir()
    if local:
        _check_folder(folder, pickle=pickle)
    else:
        check_hub_name(source)
    held = read_config(folder / "model_index.json") if local else {"safety_checker": None}
    # A part that the folder itself says it lacks must be named again.
    extra: dict[str, Any] = {part: None for part, kind in held.items() if kind == [None, None]}
    if "safety_checker" in held and not safety_checker:
        extra |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with silent():
            extra |= _encoders(folder, held, pickle=pickle) if local else {}
            pipe = DiffusionPipeline.from_pretrained(
                folder if local else str(source),
                use_safetensors=None if pickle else True,
                local_files_only=local or not download,
                **extra,
            )
    except UserError:
        raise
    except Exception as error:  # the libraries raise what a broken configuration leads them to
        if lacks_memory(error):
            raise
        if local:
            raise UserError(f"the pipeline in {folder} is incomplete or damaged: copy it again") from error
        raise UserError(
            f"model_index.json of {source} is neither in the cache nor could it be fetched: run "
            f"'hf download {source}' with a network, or give a local folder"
        ) from error
    for part in pipe.components.values():
        for name, weight in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if weight.is_meta:
                raise UserError(
                    f"the weights of {type(part).__name__} in {source} do not match its configuration: {name} is missing; "
                    "copy both from where they were trained"
                )
    with quiet():
        check_pipeline(pipe, source).to(device, dtype)
        # This autoencoder overflows in half precision.
        if dtype == torch.float16 and pipe.vae.config.get("force_upcast"):
            pipe.vae.float()
    if local:
        _try_out(pipe, folder)
    return pipe


@torch.no_grad()
def _try_out(pipe: Any, folder: Path) -> None:
    """Use every part once, on latents of a few pixels: a broken configuration can be loaded and not be used."""
    network, vae = network_of(pipe), pipe.vae
    try:
        given = encode_prompts(pipe, ["a"]).given[:1]
        weight = next(network.parameters())
        side = min(network.config.sample_size, TRIED)
        noisy = torch.zeros(
            1, network.config.in_channels, side, side, device=weight.device, dtype=weight.dtype
        )
        predict_noise(
            network, noisy, torch.ones(1, device=weight.device), given.to(weight.device, weight.dtype)
        )
        pixels = decode_latents(pipe, noisy.to(vae.device))
        vae.encode(pixels.to(vae.device, next(vae.parameters()).dtype))
    except Exception as error:  # the libraries raise what a broken configuration leads them to
        if lacks_memory(error):
            raise
        raise UserError(
            f"the pipeline in {folder} does not work ({type(error).__name__}: {one_line(error)[:120]}): its configuration "
            "is damaged, copy it again"
        ) from error


def check_hub_name(source: str | Path) -> None:
    """Refuse what is no folder and cannot be the name of a pipeline on the hub either.

    Raises
    ------
    UserError
        If that is so.
    """
    if not HUB_NAME.fullmatch(str(source)):
        raise UserError(f"there is no folder {source}: give a diffusers folder or the name of a hub model")


def network_config(file: Path) -> dict[str, Any]:
    """The configuration of a network, a JSON file.

    Raises
    ------
    UserError
        If it is missing or damaged, or asks for a network that nobody could build: that would take for ever to say.
    """
    config = read_config(file)
    for name, value in config.items():
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
        most = MOST_LAYERS if "layers" in name else LARGEST
        if len(numbers) > MOST_LAYERS or any(not abs(number) <= most for number in numbers):
            raise UserError(f"{file} is damaged, {name} is {one_line(value)[:40]}: copy the pipeline again")
    return config


def check_pipeline(pipe: Any, source: str | Path = "the pipeline") -> Any:
    """Refuse a pipeline of an unknown family, or whose network predicts what no objective knows; else return it."""
    family = family_of(pipe, source)
    check_schedule(pipe.scheduler, source)
    predicts = pipe.scheduler.config.get("prediction_type", "epsilon")
    if predicts not in PREDICTIONS:
        raise UserError(
            f"the network of {source} predicts {predicts!r}: give one that predicts the noise or the velocity"
        )
    flows = not isinstance(objective_of(pipe.scheduler), Denoising)
    if flows != family.flows:
        raise UserError(
            f"{source} comes with a {type(pipe.scheduler).__name__}, which a {family.pipeline} is not trained "
            "with: give it the scheduler it was released with"
        )
    network = network_of(pipe)
    taken, made = network.config.in_channels, pipe.vae.config.latent_channels
    if taken != made:
        raise UserError(
            f"the network of {source} takes {taken} channels where latents have {made}: give one for text alone"
        )
    length = pipe.tokenizer.model_max_length
    if (
        not isinstance(length, int) or not 2 <= length <= LARGEST
    ):  # transformers puts 10^30 where nothing is said
        raise UserError(
            f"the tokenizer of {source} reads at most {one_line(length)[:40]} tokens: give model_max_length in its "
            "tokenizer_config.json, 77 for CLIP"
        )
    network.eval()
    for part in family.parts(pipe).values():
        if part is not network:
            part.eval().requires_grad_(False)
    return pipe


def save_pipeline(pipe: "DiffusionPipeline", network: nn.Module, folder: Path | str) -> Path:
    """Write the pipeline with another denoising network as a diffusers folder, in safetensors."""
    try:
        with silent():
            with_network(pipe, network).save_pretrained(folder, safe_serialization=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    return Path(folder)


def with_network(pipe: "DiffusionPipeline", network: nn.Module) -> Any:
    """The same pipeline around another denoising network; nothing is copied."""
    family = family_of(pipe)
    with quiet():
        return type(pipe)(**{**pipe.components, family.network: network}, **family.options(pipe))


def pipeline_identity(pipe: "DiffusionPipeline") -> dict[str, Any]:
    """All of a pipeline that has a share in its images, as JSON values: the same for equal folders, wherever they lie."""
    family = family_of(pipe)
    parts = family.parts(pipe)
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in family.encoders]
    found = {name: getattr(pipe, name) for name in tokenizers if getattr(pipe, name) is not None}
    return {
        "weights": {name: weights_digest(part) for name, part in parts.items()},
        "configs": {name: config_of(part) for name, part in {**parts, "scheduler": pipe.scheduler}.items()},
        "tokenizers": {name: tokenizer_digest(tokenizer) for name, tokenizer in found.items()},
        "options": {name: repr(value) for name, value in family.options(pipe).items()},
    }


def config_of(part: Any) -> dict[str, str]:
    """The class and the configuration of a part of a pipeline, without the versions that wrote it."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    kept = {n: repr(v) for n, v in config.items() if n[0] != "_" and not n.endswith("_version")}
    return {"class": type(part).__name__, **dict(sorted(kept.items()))}


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of all that a tokenizer is stored as, as 64 hexadecimal digits; what it was used for last does not count."""
    sha = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*.*")):
            text = path.read_text("utf8")
            if path.suffix == ".json":  # a fast tokenizer remembers how it last cut and padded
                values = json.loads(text)
                text = repr(sorted((n, v) for n, v in values.items() if n not in ("truncation", "padding")))
            sha.update(f"{path.name}\n{text}\n".encode())
    return sha.hexdigest()


@dataclass(frozen=True)
class Prompts:
    """Prompts by number, embedded once.

    Parameters
    ----------
    texts : tuple of str
        M prompts; number 0 is the empty one, and stands for no prompt at all.
    ids : Tensor
        int64 (M, L), their tokens, padded.
    lengths : Tensor
        int64 (M,), how many of these are not padding, the tokens of start and end included.
    given : Condition
        What the denoising network is given for them, M of each part.
    """

    texts: tuple[str, ...]
    ids: Tensor = field(repr=False)
    lengths: Tensor = field(repr=False)
    given: Condition = field(repr=False)

    @property
    def embeddings(self) -> Tensor:
        """(M, L, D), their embedded tokens."""
        return self.given.tokens if isinstance(self.given, Embedded) else self.given

    def rows(self, numbers: Tensor) -> Condition:
        """What the denoising network is given for the prompts with these numbers, (N,)."""
        return self.given[numbers.to(self.given.device)]

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Numbers of prompts, int64 (N,)."""
        places = {text: i for i, text in enumerate(self.texts)}
        return torch.tensor([places[text] for text in texts], dtype=torch.int64)


def too_long(pipe: "DiffusionPipeline", texts: Sequence[str]) -> list[int]:
    """Positions of the prompts with more tokens than the text encoder takes; their ends are cut off."""
    most = pipe.tokenizer.model_max_length
    with silent():  # the tokenizer remarks on what is asked of it here
        lengths = [len(own) for own in pipe.tokenizer(list(texts)).input_ids] if len(texts) else []
    return [i for i, length in enumerate(lengths) if length > most]


@torch.no_grad()
def encode_prompts(pipe: "DiffusionPipeline", texts: Sequence[str], *, batch_size: int = 64) -> Prompts:
    """Embed the empty prompt and ``texts``, each once, in the order of their first appearance.

    Of a prompt that is longer than the text encoder takes (77 tokens for CLIP) the beginning is kept, as the
    pipeline itself does; `too_long` says which those are.
    """
    every = tuple(dict.fromkeys(["", *texts]))
    length = pipe.tokenizer.model_max_length
    tokens = pipe.tokenizer(list(every), truncation=True, max_length=length).input_ids
    padded = pipe.tokenizer(
        list(every), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    family = family_of(pipe)
    with silent():
        given = [family.unprompted(pipe)[None]]
        for start in range(1, len(every), batch_size):
            given.append(family.embedded(pipe, every[start : start + batch_size]))
    return Prompts(every, padded.input_ids, torch.tensor([len(own) for own in tokens]), stacked(given))


@torch.no_grad()
def encode_images(pipe: "DiffusionPipeline", images: Tensor, *, batch_size: int = 32) -> Tensor:
    """Latent images as distributions: scaled mean and standard deviation, float32 (N, 2 C, h, w), on the CPU.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its autoencoder is used.
    images : Tensor
        uint8 (N, 1 or 3, H, W); fitted to the size that the pipeline draws.
    batch_size : int
        Images at once, at most; fewer of large ones (see ``PIXELS``).
    """
    vae, size = pipe.vae, image_size(pipe)
    weight = next(vae.parameters())
    scale, shift = latent_scale(pipe)
    if not len(images):
        side = network_of(pipe).config.sample_size
        return torch.empty(0, 2 * vae.config.latent_channels, side, side)
    parts = []
    for part in images.split(_at_once(batch_size, size)):
        pixels = fitted(part, size).to(weight.device).to(weight.dtype) / 127.5 - 1
        found = vae.encode(pixels).latent_dist
        moments = torch.cat([(found.mean - shift) * scale, found.std * scale], dim=1)
        parts.append(moments.float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def decode_latents(pipe: "DiffusionPipeline", latents: Tensor, *, batch_size: int = 32) -> Tensor:
    """Images from scaled latents (N, C, h, w): floats in about [-1, 1], (N, 3, H, W)."""
    vae = pipe.vae
    dtype = next(vae.parameters()).dtype
    scale, shift = latent_scale(pipe)
    parts = latents.split(_at_once(batch_size, latents.shape[-1] * pipe.vae_scale_factor))
    return torch.cat([vae.decode(part.to(dtype) / scale + shift).sample.float() for part in parts])


def _at_once(batch_size: int, size: int) -> int:
    return max(1, min(batch_size, PIXELS // size**2))


def latent_scale(pipe: "DiffusionPipeline") -> tuple[float, float]:
    """What latents are multiplied by, and what is subtracted from them before."""
    config = pipe.vae.config
    return config.scaling_factor, config.get("shift_factor") or 0.0


def image_size(pipe: "DiffusionPipeline") -> int:
    """Height (= width) in pixels of what a pipeline draws."""
    return network_of(pipe).config.sample_size * pipe.vae_scale_factor


def fitted(images: Tensor, size: int) -> Tensor:
    """uint8 images with three channels of ``size`` x ``size`` pixels: shorter side resized, middle cut out."""
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    if images.shape[-2:] == (size, size) or not len(images):
        return images
    # Few at a time: resampling takes floats, four times the bytes.
    return torch.cat([resized_pixels(part, size) for part in images.split(64)])


@contextlib.contextmanager
def resting(*networks: nn.Module | None) -> Iterator[None]:
    """Networks that are not needed for a while, on the CPU; where they were afterwards."""
    moved = [(network, device_of(network)) for network in networks if network is not None]
    for network, _ in moved:
        network.to("cpu")
    if any(device.type == "cuda" for _, device in moved):
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for network, device in moved:
            network.to(device)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep bars and remarks of loading out of notebooks; what matters is raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Diffusers calls it an error that a folder has pickles in place of safetensors, and goes on.
    errors = _at(logging.ERROR, "transformers"), _at(logging.CRITICAL, "diffusers")
    with without_bars(diffusers_logging, transformers_logging), quiet(), errors[0], errors[1]:
        yield


@contextlib.contextmanager
def _at(level: int, name: str) -> Iterator[None]:
    """Let a logger tell what is at this level or above."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_folder(folder: Path, *, pickle: bool) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        config = folder / "config.json"
        if config.is_file() and (kind := read_config(config).get("_class_name")):
            raise UserError(
                f"{folder} holds a {kind} alone and no pipeline: give the folder of a whole pipeline as pipeline (and an "
                "unlearned network as unlearned)"
            )
        raise UserError(f"{index} is missing: give a diffusers folder, as save_pretrained writes it")
    all_regular(folder)
    held = read_config(index)
    if (schedule := folder / "scheduler" / "scheduler_config.json").exists():
        read_config(schedule, infinite=True)
    family = named_family(str(held.get("_class_name")), f"the pipeline in {folder}")
    for part in (family.network, "vae", "scheduler", "tokenizer", *family.encoders):
        kind = held.get(part, [None, None])
        if not isinstance(kind, list) or len(kind) != 2 or not all(isinstance(n, str | None) for n in kind):
            raise UserError(
                f"{index} is damaged, {part} is {one_line(kind)[:40]}: copy the pipeline again, whole"
            )
        if kind[1] is None and part not in family.optional:
            raise UserError(f"{index} names no {part}: copy the pipeline again, whole")
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder / 'tokenizer' / 'vocab.json'} is missing: copy the pipeline again, whole")
    if (words := folder / "tokenizer" / "tokenizer_config.json").exists():
        read_config(words)
    for part in (family.network, "vae", *family.encoders):
        if held.get(part, [None])[0] is None and part in family.optional:
            continue
        stem = "model" if part in family.encoders else "diffusion_pytorch_model"
        if not (folder / part / "config.json").is_file():
            raise UserError(f"{folder / part / 'config.json'} is missing: copy the pipeline again, whole")
        network_config(folder / part / "config.json")
        files = sorted((folder / part).glob("*.safetensors"))
        if not files and not pickle:
            pickled = next((folder / part).glob("*.bin"), None)
            raise UserError(
                f"{pickled} is a pickle, which can run code: convert it to safetensors, or allow it (pickle: true in "
                "parameters, pickle=True in Python)"
                if pickled
                else f"{folder / part / stem}.safetensors is missing: copy the pipeline again, whole"
            )
        for file in files:
            try:
                with safe_open(str(file), framework="pt") as content:
                    content.keys()
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is truncated or damaged: copy it again") from error


def _encoders(folder: Path, held: Mapping[str, Any], *, pickle: bool) -> dict[str, Any]:
    """The text encoders of a folder, read here since diffusers does not tell which of their weights were drawn anew."""
    import transformers

    found = {}
    for part in named_family(str(held.get("_class_name")), folder).encoders:
        library, kind = held.get(part) or ("", "")
        if library == "transformers" and (encoder := getattr(transformers, kind, None)):
            found[part], info = encoder.from_pretrained(
                folder / part,
                use_safetensors=None if pickle else True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            # Files of others hold buffers that newer encoders do without.
            check_loaded({**info, "unexpected_keys": ()}, folder / part)
    return found
