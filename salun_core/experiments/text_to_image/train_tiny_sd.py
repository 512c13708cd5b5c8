"""Trains tiny-sd from scratch: autoencoder, text encoder, denoising network; and measures how good it is."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from salun_core.data import load_dataset
from salun_core.data.augment import augmentation
from salun_core.data.batches import Batch, Batches
from salun_core.data.captions import KINDS, NAMES, Caption, captions, words
from salun_core.data.images import ImageData
from salun_core.errors import UserError
from salun_core.experiments.runs.provenance import provenance
from salun_core.files import check_writable, sha256, write_whole
from salun_core.metrics.generation.recognition import Recognition, recognise
from salun_core.metrics.share import Share, wilson
from salun_core.models import build_model
from salun_core.models.text_to_image.pipelines import encode_images, encode_prompts, fitted, silent
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.models.text_to_image.tiny_pipeline import build_clip, build_tiny_sd
from salun_core.networks import weight_bytes
from salun_core.rng import derive
from salun_core.tasks import RECIPES
from salun_core.tasks.classification_training import train_network
from salun_core.tasks.diffusion_training import DiffusionRecipe, train_diffusion
from salun_core.tasks.text_to_image import TextToImageTask

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

SIZE = 16
GUIDANCE = 2.0
STEPS = 25

# Chosen by measuring on one processor core: the three together stay under ten minutes.
RECIPES_TINY = {
    "autoencoder": DiffusionRecipe(
        steps=500, lr=3e-3, batch_size=64, decline="cosine", warmup=30, ema=0.98, drop=0
    ),
    "clip": DiffusionRecipe(steps=600, lr=2e-3, batch_size=80, decline="cosine", warmup=50, ema=0.98, drop=0),
    "unet": DiffusionRecipe(steps=2500, lr=2e-3, batch_size=64, decline="cosine", warmup=100, ema=0.995),
}
KL = 1e-4
WORDS = 0.3  # weight of the loss that keeps the words of a caption
GROUPS = 8  # captions of each digit in a step of CLIP


def images_of(data: ImageData, *, train: bool, size: int = 256) -> Batches:
    """Real digits as the pipeline draws them: 16 pixels, three equal channels."""
    rows = slice(data.n_train) if train else slice(data.n_train, None)
    ids = torch.arange(len(data.labels))[rows]
    return Batches(fitted(data.images[rows], SIZE).contiguous(), data.labels[rows], ids, size=size)


def load_digits() -> ImageData:
    """The digits of scikit-learn at 16 pixels."""
    return load_dataset("digits", None, size=SIZE)


def train_tiny_sd(
    *,
    seed: int = 0,
    recipes: dict[str, DiffusionRecipe] | None = None,
    checkpoints: Path | None = None,
    progress: bool = False,
) -> tuple["StableDiffusionPipeline", "CLIPModel", dict[str, float]]:
    """Train the pipeline from scratch on captioned digits.

    Parameters
    ----------
    seed : int
        Initialisation, order, noise and captions.
    recipes : dict of str to DiffusionRecipe, optional
        In place of ``RECIPES_TINY``.
    checkpoints : path, optional
        Folder from which an interrupted training goes on; not emptied.
    progress : bool
        Bars with the time left.

    Returns
    -------
    pipeline, clip, seconds
        The pipeline, the CLIP model that its text encoder was trained in, and the seconds of each stage.
    """
    recipes = recipes or RECIPES_TINY
    batches = images_of(load_digits(), train=True)
    pipe = build_tiny_sd(words(), size=SIZE, seed=derive(seed, "tiny-sd"))
    clip = build_clip(pipe.tokenizer, size=SIZE, seed=derive(seed, "clip"))
    every = [caption for kind in KINDS for caption in captions(kind)]
    seconds = {}

    def stage(name: str, model: nn.Module, of: Batches, loss: Callable[..., Tensor]) -> None:
        start = time.perf_counter()
        recipe, done = recipes[name], None
        if checkpoints is not None:
            what = hashlib.sha256(f"{name} {seed} {recipes}".encode()).hexdigest()[:16]
            done = checkpoints / f"{name}-{what}.safetensors"
        if done is not None and done.is_file():
            model.load_state_dict(load_file(done))
            model.eval()
            return
        train_diffusion(
            model,
            of,
            loss,
            recipe=recipe,
            seed=derive(seed, name),
            checkpoint=done.with_suffix(".pt") if done is not None else None,
            progress=progress,
        )
        if done is not None:
            write_whole(done, weight_bytes(model))
            done.with_suffix(".pt").unlink(missing_ok=True)
        seconds[name] = time.perf_counter() - start

    stage("autoencoder", pipe.vae, batches, autoencoder_loss)
    stage("clip", clip, batches, clip_loss(pipe, every))
    pipe.text_encoder.load_state_dict(clip.text_model.state_dict())
    for part in (pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    spread = encode_images(pipe, batches.images).chunk(2, dim=1)[0].std().item()
    pipe.vae.register_to_config(scaling_factor=pipe.vae.config.scaling_factor / spread)
    latents = replace(batches, images=encode_images(pipe, batches.images))
    stage("unet", pipe.unet, latents, noise_loss(pipe, latents, every, drop=recipes["unet"].drop))
    return pipe, clip, seconds


def autoencoder_loss(vae: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    """Squared error of the image through a drawn latent, and a little of the divergence from a normal one."""
    model: Any = vae
    pixels = batch[0] * 2 - 1
    latent = model.encode(pixels).latent_dist
    drawn = latent.mean + latent.std * torch.randn(latent.mean.shape, generator=rng)
    error = F.mse_loss(model.decode(drawn).sample, pixels)
    return error + KL * latent.kl().mean() / latent.mean[0].numel()


def clip_loss(pipe: "StableDiffusionPipeline", every: list[Caption]) -> Callable[..., Tensor]:
    """Contrastive loss of images and captions: a group has one caption for each digit.

    References
    ----------
    Radford et al., Learning transferable visual models from natural language supervision, ICML 2021.
    """
    ids, by_digit = encode_prompts(pipe, [c.text for c in every]), captions_by_digit(pipe, every)

    def loss(clip: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        model: Any = clip
        images, labels = batch
        asked = torch.arange(len(NAMES)).repeat(GROUPS)
        tokens = ids.ids[draw_captions(by_digit, asked, rng)]
        found = model(input_ids=tokens, pixel_values=images * 2 - 1)
        close = found.logits_per_image.view(len(images), GROUPS, len(NAMES))  # (N, G, 10)
        to_text = F.cross_entropy(close.flatten(0, 1), labels.repeat_interleave(GROUPS))
        same = F.one_hot(labels, len(NAMES)).to(close)  # (N, 10)
        share = same / same.sum(dim=0).clamp_min(1)
        to_image = -(close.log_softmax(dim=0) * share[:, None]).sum(dim=0).mean()
        return (to_text + to_image) / 2 + WORDS * word_loss(model.text_model, tokens, found)

    return loss


def word_loss(text: Any, tokens: Tensor, found: Any) -> Tensor:
    """How badly the words of a caption, in any order, can be told from its embedding, in nats per token.

    Without it all captions of a digit would become one point, and no erasure could tell them apart.
    """
    scores = found.text_model_output.pooler_output @ text.embeddings.token_embedding.weight.T  # (n, V)
    inside = (tokens != text.config.bos_token_id) & (tokens != text.config.eos_token_id)
    every = scores.log_softmax(dim=1).gather(1, tokens)
    return -(every * inside).sum() / inside.sum()


def noise_loss(
    pipe: "StableDiffusionPipeline", latents: Batches, every: list[Caption], *, drop: float
) -> Callable[..., Tensor]:
    """The loss of the task, with a caption drawn for each image in each step."""
    prompts = encode_prompts(pipe, [c.text for c in every])
    by_digit = captions_by_digit(pipe, every)
    nothing = torch.zeros(len(prompts.texts), dtype=torch.int64)
    task = TextToImageTask(
        pipe.unet,
        {"forget": latents, "retain": latents},
        prompts,
        nothing,
        pipe.scheduler,
        drop_share=drop,
        antithetic=True,
    )

    def loss(unet: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        images, labels = batch
        return task.loss(unet, (images, draw_captions(by_digit, labels, rng)), rng)

    return loss


def captions_by_digit(pipe: "StableDiffusionPipeline", every: list[Caption]) -> list[list[Tensor]]:
    """Numbers of the captions (as `encode_prompts` counts them) by digit and kind."""
    prompts = encode_prompts(pipe, [c.text for c in every])
    return [
        [
            prompts.numbers([c.text for c in every if c.digit == digit and c.kind == kind])
            for kind in dict.fromkeys(c.kind for c in every)
        ]
        for digit in range(len(NAMES))
    ]


def draw_captions(by_digit: list[list[Tensor]], digits: Tensor, rng: torch.Generator) -> Tensor:
    """A caption for each digit, all kinds equally often."""
    places = torch.rand((len(digits), 2), generator=rng).tolist()
    drawn = []
    for digit, (kind, place) in zip(digits.tolist(), places, strict=True):
        group = by_digit[digit][int(kind * len(by_digit[digit]))]
        drawn.append(group[int(place * len(group))])
    return torch.stack(drawn)


def train_judge(*, seed: int = 1) -> tuple[nn.Module, Share]:
    """A classifier of real digits at 16 pixels, and its accuracy on those it was not trained on."""
    data = load_digits()
    images = images_of(data, train=True)
    mean, std = data.moments
    net = build_model(
        "resnet34", classes=10, channels=3, size=SIZE, seed=seed, width=16, mean=mean * 3, std=std * 3
    ).to(memory_format=torch.channels_last)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    batches = replace(images, augment=augmentation(data))
    net, _ = train_network(net, batches, loss, recipe=RECIPES["digits"], seed=seed)
    test = images_of(data, train=False)
    seen = recognise(net, test.images, test.labels, classes=10)
    return net, wilson(int(seen.counts.diagonal().sum()), n=test.n)


def measure(
    pipe: "StableDiffusionPipeline",
    judge: nn.Module,
    *,
    unet: nn.Module | None = None,
    each: int = 20,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    seed: int = 0,
) -> dict[str, Recognition]:
    """What the judge sees in images for captions that no training had, by kind; ``each`` of every digit."""
    seen = {}
    for kind in KINDS:
        found = captions(kind, "test")
        asked = [[c for c in found if c.digit == digit] for digit in range(len(NAMES))]
        drawn = [group[i % len(group)] for group in asked for i in range(each)]
        images = sample_prompts(
            pipe,
            [c.text for c in drawn],
            unet=unet,
            guidance=guidance,
            steps=steps,
            seed=seed,
            batch_size=100,
        )
        seen[kind] = recognise(judge, images, [c.digit for c in drawn], classes=10)
    return seen


def shares(seen: dict[str, Recognition]) -> dict[str, Share]:
    """Share of images that show the digit asked for, by kind of caption."""
    return {
        kind: wilson(int(found.counts.diagonal().sum()), n=int(found.counts.sum()))
        for kind, found in seen.items()
    }


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of all files of a folder but its provenance."""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "provenance.json"):
        sha.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    return sha.hexdigest()


def make(
    folder: Path, *, seed: int = 0, least: float = 0.9, progress: bool = True, command: str = ""
) -> dict[str, Any]:
    """Train, measure, and write the folder with its provenance.

    Parameters
    ----------
    folder : path
        Where the diffusers folder goes. The CLIP model goes beside it, to ``NAME-clip``.
    seed : int
        Of the training.
    least : float
        Share of images that must show the digit asked for, for direct and for indirect captions.
    progress : bool
        Bars with the time left.
    command : str
        What was typed, for the provenance.

    Raises
    ------
    UserError
        If the images are not good enough; nothing is written then.
    """
    check_writable(folder)
    start = time.perf_counter()
    training = folder.parent / f"{folder.name}-training"
    pipe, clip, seconds = train_tiny_sd(seed=seed, checkpoints=training, progress=progress)
    trained = time.perf_counter() - start
    judge, accuracy = train_judge()
    found = shares(measure(pipe, judge))
    for kind in ("direct", "indirect"):
        if found[kind].value < least:
            raise UserError(
                f"{found[kind].value:.0%} of the images for {kind} captions show their digit, less than "
                f"{least:.0%}: train with another seed"
            )
    with silent():
        pipe.save_pretrained(folder, safe_serialization=True)
        clip.save_pretrained(folder.parent / f"{folder.name}-clip", safe_serialization=True)
    shutil.rmtree(training)
    digest = folder_digest(folder)
    record = {
        "command": command or " ".join(sys.argv),
        "seed": seed,
        "digest": digest,
        "files": {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*.safetensors"))},
        "weights": {
            part: sum(w.numel() for w in getattr(pipe, part).parameters())
            for part in ("unet", "vae", "text_encoder")
        },
        "seconds": {"training": trained, **seconds},
        "guidance": GUIDANCE,
        "steps": STEPS,
        "judge": {"accuracy": accuracy.value, "n": accuracy.n},
        "shown": {kind: {"value": s.value, "n": s.n} for kind, s in found.items()},
        **provenance(torch.device("cpu")),
    }
    write_whole(folder / "provenance.json", (json.dumps(record, indent=1) + "\n").encode())
    return record
