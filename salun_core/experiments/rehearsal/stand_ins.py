"""What a rehearsal takes in place of downloads: random images and weights of the real shapes and classes."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_core.data.images import ImageData
from salun_core.data.prompts import IMAGENETTE
from salun_core.models.diffusion.unet import quiet
from salun_core.models.text_to_image.pipelines import silent
from salun_core.models.text_to_image.tiny_pipeline import build_clip, build_tiny_sd
from salun_core.rng import generator, isolated

SIZE = 16  # pixels of what the tiny pipeline draws
PROMPTS = 6


@dataclass(frozen=True)
class Shape:
    """A data set as it is in full."""

    classes: int
    channels: int
    size: int
    train: int
    test: int
    flip: bool = True
    pad: int = 4


SHAPES = {
    "cifar10": Shape(10, 3, 32, 50_000, 10_000),
    "cifar100": Shape(100, 3, 32, 50_000, 10_000),
    "svhn": Shape(10, 3, 32, 73_257, 26_032, flip=False, pad=0),
    "tiny_imagenet": Shape(200, 3, 64, 100_000, 10_000),
    "imagenette": Shape(10, 3, 512, 9_469, 3_925, pad=64),
    "own images": Shape(2, 3, 512, 1_600, 400, flip=False, pad=0),
}


FEW = 3  # classes of a generator in small: each image is drawn, and seen by large judges


def images_like(name: str, *, most: int | None = None) -> ImageData:
    """A few random images of a data set's size, in all of its classes or in at most ``classes`` of them."""
    shape = SHAPES[name] if most is None else replace(SHAPES[name], classes=min(most, SHAPES[name].classes))
    train, test = (8, 4) if shape.classes <= 10 else (3, 1)
    labels = torch.cat([torch.arange(shape.classes).repeat(count) for count in (train, test)])
    images = _noise(len(labels), shape.channels, shape.size)
    names = tuple(f"class {c}" for c in range(shape.classes))
    if name.startswith("cifar10"):
        names = ("airplane", *names[1:])  # the presets call this one by its name
    return ImageData(
        name,
        images,
        labels,
        train * shape.classes,
        names,
        flip=shape.flip,
        pad=shape.pad,
        note="random images",
    )


def image_folder(folder: Path, *, classes: tuple[str, ...], size: int = 20) -> Path:
    """Random pictures as ``train/<class>/*.png`` and ``test/<class>/*.png``."""
    from PIL import Image

    for part, count in (("train", 8), ("test", 4)):
        for place, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i, image in enumerate(_noise(count, 3, size, place)):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / part / name / f"{i}.png")
    return folder


def imagenette_folder(folder: Path) -> Path:
    """Random pictures in the first folders of Imagenette, which are named by WordNet ids."""
    from salun_core.metrics.generation.imagenet import imagenet_ids

    return image_folder(
        folder, classes=tuple(imagenet_ids()[number] for number in list(IMAGENETTE.values())[:FEW])
    )


def pipeline_folder(folder: Path, words: set[str]) -> Path:
    """A Stable Diffusion pipeline of random weights, with the scheduler and the safety checker of version 1.4."""
    from diffusers import PNDMScheduler
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    pipe: Any = build_tiny_sd(
        words,
        size=SIZE,
        widths=(8, 16, 16, 16),
        autoencoder=(8, 16),
        text_width=16,
        text_layers=2,
        text_length=77,
        seed=0,
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with isolated(0, "safety checker"), quiet():
        checker = StableDiffusionSafetyChecker(
            CLIPConfig(vision_config=vision | {"image_size": SIZE, "patch_size": 4}, projection_dim=16)
        )
    square = {"height": SIZE, "width": SIZE}
    scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    pipe.register_modules(
        scheduler=scheduler,
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size=square, crop_size=square),
    )
    with silent():
        pipe.save_pretrained(folder)
    return folder


def clip_folder(folder: Path, pipeline: Path) -> Path:
    """A CLIP model of random weights with its tokenizer."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer")
    with silent():
        build_clip(tokenizer, size=SIZE, width=16, layers=1, seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def inception_weights(path: Path) -> Path:
    """Random weights in the form in which pytorch-fid has Inception's."""
    from torchvision.models import inception_v3

    with isolated(0, "inception"):
        net = inception_v3(weights=None, aux_logits=False, num_classes=1008, init_weights=False)
    torch.save(net.state_dict(), path)
    return path


def resnet50_weights(path: Path) -> Path:
    """Random weights of torchvision's ResNet-50."""
    from torchvision.models import resnet50

    with isolated(0, "resnet50"):
        torch.save(resnet50(weights=None).state_dict(), path)
    return path


def prompts_file(path: Path) -> Path:
    """A few harmless prompts in the columns of I2P."""
    with path.open("w", newline="", encoding="utf8") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "categories", "sd_seed", "sd_guidance_scale"])
        for i in range(PROMPTS):
            rows.writerow([f"a photo of number {i}", "sexual", i, 7.5])
    return path


def _noise(count: int, channels: int, size: int, *purpose: object) -> Tensor:
    rng = generator(0, "stand-in", count, channels, size, *purpose)
    return torch.randint(0, 256, (count, channels, size, size), generator=rng, dtype=torch.uint8)
