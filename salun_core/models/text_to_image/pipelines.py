"""Stable Diffusion pipelines of diffusers: reading and writing them, encoding prompts and images, decoding latents."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from salun_core.data.images import resized_pixels
from salun_core.errors import UserError
from salun_core.models.diffusion.unet import quiet

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KIND = "StableDiffusionPipeline"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""File of weights in each folder of a pipeline, without its ending."""

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
) -> "StableDiffusionPipeline":
    """Read a text-to-image pipeline.

    Parameters
    ----------
    source : str or path
        A diffusers folder, or the name of a model on the Hugging Face hub ("CompVis/stable-diffusion-v1-4").
    safety_checker : bool
        Keep the pipeline's own; False turns it off.
    pickle : bool
        Also read weights that are no safetensors, with torch's restricted reader (``weights_only=True``).
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
    from diffusers import StableDiffusionPipeline

    folder = Path(source).expanduser()
    local = folder.is_dir()
    if local:
        _check_folder(folder, pickle=pickle)
    elif str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise UserError(f"there is no folder {source}: give a diffusers folder or the name of a hub model")
    extra: dict[str, Any] = (
        {} if safety_checker else {"safety_checker": None, "requires_safety_checker": False}
    )
    try:
        with silent():
            pipe = StableDiffusionPipeline.from_pretrained(
                folder if local else str(source),
                use_safetensors=None if pickle else True,
                local_files_only=local or not download,
                **extra,
            )
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if local:
            raise UserError(f"the pipeline in {folder} is incomplete or damaged: copy it again") from error
        raise UserError(
            f"model_index.json of {source} is neither in the cache nor could it be fetched: run "
            f"'hf download {source}' with a network, or give a local folder"
        ) from error
    with quiet():
        return check_pipeline(pipe, source).to(device, dtype)


def check_pipeline(pipe: Any, source: str | Path = "the pipeline") -> Any:
    """Refuse a pipeline that is not Stable Diffusion's, or whose network does not predict noise; else return it."""
    if type(pipe).__name__ != KIND:
        raise UserError(f"{source} is a {type(pipe).__name__}: give a {KIND}")
    predicts = pipe.scheduler.config.get("prediction_type", "epsilon")
    if predicts != "epsilon":
        raise UserError(f"the network of {source} predicts {predicts!r}: give one that predicts the noise")
    taken, made = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if taken != made:
        raise UserError(
            f"the network of {source} takes {taken} channels where latents have {made}: give one for text alone"
        )
    pipe.unet.eval()
    for part in (pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe


def save_pipeline(pipe: "StableDiffusionPipeline", unet: nn.Module, folder: Path | str) -> Path:
    """Write the pipeline with another denoising network as a diffusers folder, in safetensors."""
    try:
        with silent():
            with_unet(pipe, unet).save_pretrained(folder, safe_serialization=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    return Path(folder)


def with_unet(pipe: "StableDiffusionPipeline", unet: nn.Module) -> "StableDiffusionPipeline":
    """The same pipeline around another denoising network; nothing is copied."""
    with quiet():
        return type(pipe)(
            **{**pipe.components, "unet": unet}, requires_safety_checker=pipe.safety_checker is not None
        )


@dataclass(frozen=True)
class Prompts:
    """Prompts by number, embedded once.

    Parameters
    ----------
    texts : tuple of str
        M prompts; number 0 is the empty one.
    ids : Tensor
        int64 (M, L), their tokens, padded.
    lengths : Tensor
        int64 (M,), how many of these are no padding: with the tokens of start and end.
    embeddings : Tensor
        (M, L, D), what the denoising network sees of them.
    """

    texts: tuple[str, ...]
    ids: Tensor = field(repr=False)
    lengths: Tensor = field(repr=False)
    embeddings: Tensor = field(repr=False)

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Numbers of prompts, int64 (N,)."""
        places = {text: i for i, text in enumerate(self.texts)}
        return torch.tensor([places[text] for text in texts], dtype=torch.int64)


def too_long(pipe: "StableDiffusionPipeline", texts: Sequence[str]) -> list[int]:
    """Positions of the prompts with more tokens than the text encoder takes; their ends are cut off."""
    most = pipe.tokenizer.model_max_length
    with silent():  # the tokenizer remarks on what is asked of it here
        lengths = [len(own) for own in pipe.tokenizer(list(texts)).input_ids] if len(texts) else []
    return [i for i, length in enumerate(lengths) if length > most]


@torch.no_grad()
def encode_prompts(pipe: "StableDiffusionPipeline", texts: Sequence[str], *, batch_size: int = 64) -> Prompts:
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
    ids = padded.input_ids
    device = pipe.text_encoder.device
    parts = [pipe.text_encoder(part.to(device))[0] for part in ids.split(batch_size)]
    return Prompts(every, ids, torch.tensor([len(own) for own in tokens]), torch.cat(parts))


@torch.no_grad()
def encode_images(pipe: "StableDiffusionPipeline", images: Tensor, *, batch_size: int = 32) -> Tensor:
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
    scale = vae.config.scaling_factor
    if not len(images):
        side = pipe.unet.config.sample_size
        return torch.empty(0, 2 * vae.config.latent_channels, side, side)
    parts = []
    for part in images.split(_at_once(batch_size, size)):
        pixels = fitted(part, size).to(weight.device).to(weight.dtype) / 127.5 - 1
        found = vae.encode(pixels).latent_dist
        parts.append(torch.cat([found.mean * scale, found.std * scale], dim=1).float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def decode_latents(pipe: "StableDiffusionPipeline", latents: Tensor, *, batch_size: int = 32) -> Tensor:
    """Images from scaled latents (N, C, h, w): floats in about [-1, 1], (N, 3, H, W)."""
    vae = pipe.vae
    dtype = next(vae.parameters()).dtype
    scale = vae.config.scaling_factor
    parts = latents.split(_at_once(batch_size, latents.shape[-1] * pipe.vae_scale_factor))
    return torch.cat([vae.decode(part.to(dtype) / scale).sample.float() for part in parts])


def _at_once(batch_size: int, size: int) -> int:
    return max(1, min(batch_size, PIXELS // size**2))


def image_size(pipe: "StableDiffusionPipeline") -> int:
    """Height (= width) in pixels of what a pipeline draws."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def fitted(images: Tensor, size: int) -> Tensor:
    """uint8 images with three channels of ``size`` x ``size`` pixels: shorter side resized, middle cut out."""
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    if images.shape[-2:] == (size, size) or not len(images):
        return images
    # Few at a time: resampling takes floats, four times the bytes.
    return torch.cat([resized_pixels(part, size) for part in images.split(64)])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep bars and remarks of loading out of notebooks; what matters is raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    bars = [
        library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()
    ]
    loud = logging.getLogger("transformers")
    level = loud.level
    loud.setLevel(logging.ERROR)
    for library in bars:
        library.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        loud.setLevel(level)
        for library in bars:
            library.enable_progress_bar()


def _check_folder(folder: Path, *, pickle: bool) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{index} is missing: give a diffusers folder, as save_pretrained writes it")
    kind = _read(index).get("_class_name")
    if kind != KIND:
        raise UserError(f"{folder} holds a {kind}: give a {KIND}")
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder / 'tokenizer' / 'vocab.json'} is missing: copy the pipeline again, whole")
    for part, stem in WEIGHTS.items():
        if not (folder / part / "config.json").is_file():
            raise UserError(f"{folder / part / 'config.json'} is missing: copy the pipeline again, whole")
        _read(folder / part / "config.json")
        files = sorted((folder / part).glob("*.safetensors"))
        if not files and not pickle:
            pickled = next((folder / part).glob("*.bin"), None)
            raise UserError(
                f"{pickled} is a pickle, which can run code: convert it to safetensors, or ask for it by name "
                "(pickle=True)"
                if pickled
                else f"{folder / part / stem}.safetensors is missing: copy the pipeline again, whole"
            )
        for file in files:
            try:
                with safe_open(str(file), framework="pt") as content:
                    content.keys()
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is truncated or damaged: copy it again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: copy it again") from error
    return content if isinstance(content, dict) else {}
