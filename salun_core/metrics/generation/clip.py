"""How well images match their prompts, measured by CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_core.data.downloads import CLIP_NAME, DOWNLOADS, how_to_get
from salun_core.errors import UserError
from salun_core.files import all_regular
from salun_core.metrics.share import Share, wilson
from salun_core.models.text_to_image.pipelines import silent
from salun_core.paths import expanded

if TYPE_CHECKING:
    from transformers import CLIPModel

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that OpenAI's models were trained with."""


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what turns texts and pixels into its inputs.

    Parameters
    ----------
    model : CLIPModel
        In evaluation mode.
    tokenizer : tokenizer of transformers
        Its own.
    name : str
        Folder or name on the hub, for captions.
    mean, std : tuple of float
        By which pixels in [0, 1] are normalised.
    """

    model: "CLIPModel" = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def load_clip(
    source: str | Path,
    *,
    tokenizer: Any = None,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Clip:
    """Read a CLIP model.

    Parameters
    ----------
    source : str or path
        A folder, or the name of a model on the Hugging Face hub ("openai/clip-vit-large-patch14").
    tokenizer : tokenizer, optional
        For a folder without one.
    mean, std : tuple of float
        Of the pixels it was trained with.
    download : bool
        Fetch a model that is not in the hub's local cache.
    device : torch.device
        Where it goes.

    Raises
    ------
    UserError
        If its weights are not here, or not safetensors; with the file and the command.
    """
    from transformers import AutoTokenizer, CLIPModel

    folder = expanded(source)
    if not folder.is_dir() and str(source) == CLIP_NAME:
        folder = DOWNLOADS["clip"].folder()
    local = folder.is_dir()
    if local and not (folder / "model.safetensors").is_file():
        pickled = (folder / "pytorch_model.bin").is_file()
        raise UserError(
            f"{folder / 'model.safetensors'} is missing: "
            + (
                "pytorch_model.bin is a pickle, which can run code; save the model again with safe_serialization=True"
                if pickled
                else "copy the CLIP model again, whole"
            )
        )
    if local:
        all_regular(folder)
    options: dict[str, Any] = {"local_files_only": local or not download}
    place: Any = folder if local else str(source)
    try:
        with silent():
            model = CLIPModel.from_pretrained(place, use_safetensors=True, **options)
            own = tokenizer or AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:  # the libraries raise many kinds for one fact
        if local:
            raise UserError(
                f"the CLIP model in {folder} is incomplete or damaged: copy it again, with its tokenizer"
            ) from error
        how = f"run 'hf download {source}' with a network, or give a local folder"
        if str(source) == CLIP_NAME:
            how = how_to_get("clip")
        raise UserError(
            f"the CLIP model {source} is neither in the hub's cache nor could it be fetched: {how}; "
            "or leave the CLIP score out with clip: none"
        ) from error
    return Clip(model.eval().to(device), own, str(source), mean, std)


def in_hub_cache(name: str) -> bool:
    """Whether the hub's local cache holds weights of this model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)


def clip_scores(clip: Clip, images: Tensor, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    r"""Fit of each image to its own text, :math:`100\,\max(\cos(E_I, E_T), 0)`; higher is better.

    Parameters
    ----------
    clip : Clip
        From `load_clip`.
    images : Tensor
        uint8 (N, 1 or 3, H, W).
    texts : sequence of str
        N texts; what is too long for the model is cut off, as is usual for this score.
    batch_size : int
        Images at once.

    Returns
    -------
    Tensor
        float32 (N,).

    References
    ----------
    Hessel et al., CLIPScore, EMNLP 2021, whose factor is 2.5; 100 as in most reports on text-to-image models.
    """
    if len(images) != len(texts):
        raise UserError(f"{len(images)} images came with {len(texts)} texts: give one each")
    of_images = image_features(clip, images, batch_size=batch_size)
    unique = list(dict.fromkeys(texts))
    of_texts = text_features(clip, unique, batch_size=batch_size)
    places = {text: i for i, text in enumerate(unique)}
    own = of_texts[[places[text] for text in texts]]
    return 100 * (of_images * own).sum(dim=1).clamp_min(0)


def clip_accuracy(
    clip: Clip,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    prompts: Sequence[str],
    *,
    batch_size: int = 64,
) -> Share:
    """Share of images that lie nearer to the prompt of their own class than to that of any other.

    Parameters
    ----------
    clip : Clip
        From `load_clip`.
    images : Tensor
        uint8 (N, 1 or 3, H, W).
    labels : sequence of int
        The class each was asked for, in [0, K).
    prompts : sequence of str
        K prompts, one for each class.
    batch_size : int
        Images at once.

    References
    ----------
    Radford et al., ICML 2021 (zero-shot classification); Kumari et al., ICCV 2023 (as a measure of ablation).
    """
    asked = torch.as_tensor(labels, dtype=torch.int64)
    if len(asked) != len(images):
        raise UserError(f"{len(images)} images came with {len(asked)} labels: give one each")
    if len(asked) and not (asked.min() >= 0 and asked.max() < len(prompts)):
        raise UserError(
            f"labels go from {int(asked.min())} to {int(asked.max())}, but there are {len(prompts)} prompts"
        )
    nearest = nearest_text(clip, images, prompts, batch_size=batch_size)
    return wilson(int((nearest == asked).sum()), n=len(asked))


def nearest_text(clip: Clip, images: Tensor, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """Position of the text that each image lies nearest to, int64 (N,)."""
    of_texts = text_features(clip, texts, batch_size=batch_size)
    return (image_features(clip, images, batch_size=batch_size) @ of_texts.T).argmax(dim=1)


@torch.no_grad()
def image_features(clip: Clip, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """Projected embeddings of images, of length 1, float32 (N, D) on the CPU."""
    model: Any = clip.model
    size = model.config.vision_config.image_size
    mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(model.device) for v in (clip.mean, clip.std))
    found = [torch.empty(0, model.config.projection_dim)]
    for part in images.split(batch_size):
        pixels = part.expand(-1, 3, -1, -1).to(model.device).float() / 255
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        values = ((pixels - mean) / std).to(model.dtype)
        pooled = model.vision_model(pixel_values=values).pooler_output
        found.append(F.normalize(model.visual_projection(pooled).float(), dim=1).cpu())
    return torch.cat(found)


@torch.no_grad()
def text_features(clip: Clip, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """Projected embeddings of texts, of length 1, float32 (N, D) on the CPU."""
    model: Any = clip.model
    length = model.config.text_config.max_position_embeddings
    found = [torch.empty(0, model.config.projection_dim)]
    for start in range(0, len(texts), batch_size):
        part = list(texts[start : start + batch_size])
        given = clip.tokenizer(
            part, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(model.device)
        pooled = model.text_model(
            input_ids=given.input_ids, attention_mask=given.attention_mask
        ).pooler_output
        found.append(F.normalize(model.text_projection(pooled).float(), dim=1).cpu())
    return torch.cat(found)
