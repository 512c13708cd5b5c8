"""What an unlearned pipeline still draws beyond the classes of its data: them in other styles, ordinary captions."""

import string
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator
from torch import Tensor, nn

from salun_core.data.captions_coco import read_coco_captions
from salun_core.data.prompts import CANVAS, crossed_prompts
from salun_core.errors import UserError
from salun_core.experiments.runs.params import Group, parameter
from salun_core.files import sha256
from salun_core.metrics.generation.canvas import CLASS, STYLE
from salun_core.metrics.generation.clip import Clip, image_features, text_features
from salun_core.metrics.generation.frechet import Features, Moments
from salun_core.metrics.generation.recognition import recognised
from salun_core.metrics.generation.utility import caption_utility, moments_of_files

CROSSED, CAPTIONS = 2, 3  # noise streams of these images, apart from those of the classes
STREAMS = 10**12


class StylesAndCaptions(Group):
    """What is drawn besides the classes of the data, for columns of retention and utility."""

    styles: tuple[str, ...] = parameter(
        (),
        "draw every class in these styles too, as UnlearnCanvas: columns IRA and CRA, by clip",
    )
    style_prompt: str = parameter(
        CANVAS, "the prompt of a class in a style: {object} and {style}", needs="styles"
    )
    style_samples: int = parameter(10, "images of every class in every style", needs="styles", ge=1)
    captions: Path | None = parameter(
        None, "COCO's captions_val2014.json or the like: columns caption CLIP and caption FD"
    )
    caption_images: Path | None = parameter(
        None,
        "the folder of the images that the captions describe",
        no_effect="the digests of its images are part of the key in its place",
    )
    caption_count: int = parameter(1000, "images to draw for captions", needs="captions", ge=2)

    @field_validator("style_prompt")
    @classmethod
    def _placed(cls, value: str) -> str:
        try:
            held = [
                f"{name}{spec}{conversion or ''}"
                for _, name, spec, conversion in string.Formatter().parse(value)
                if name is not None
            ]
        except ValueError:
            held = []
        if sorted(held) != [CLASS, STYLE]:
            raise UserError(
                f"style_prompt {value!r} must hold {{object}} and {{style}} once each, and no other brace"
            )
        return value

    @field_validator("styles")
    @classmethod
    def _several(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) == 1 or not all(style.strip() for style in value):
            raise UserError(
                f"styles {list(value)} must be two names or more: a style is recognised among the others"
            )
        return value

    def refuse_half(self, clip: str | None) -> None:
        """Refuse what lacks its other half, before anything is read."""
        if (self.captions is None) != (self.caption_images is None):
            given, lacks = ("captions", "caption_images") if self.captions else ("caption_images", "captions")
            raise UserError(
                f"{given} {getattr(self, given)} came without {lacks}: give COCO's annotation file and the folder of its "
                "images"
            )
        if clip is None and (self.styles or self.captions):
            raise UserError(
                f"{'styles' if self.styles else 'captions'} are measured by CLIP, and clip is none: give a CLIP model, "
                "or leave them out"
            )

    @property
    def images(self) -> tuple[int, int]:
        """Images of every class in styles, and images for captions."""
        return len(self.styles) * self.style_samples, self.caption_count if self.captions else 0

    def sheets(self, classes: tuple[str, ...], size: int) -> "dict[str, Crossed | Captioned]":
        """What is drawn, by name; ``classes`` as prompts call them, images of ``size`` pixels.

        Raises
        ------
        UserError
            If a file is missing or of the wrong kind.
        """
        found: dict[str, Crossed | Captioned] = {}
        if self.styles:
            found["crossed"] = Crossed(classes, self.styles, self.style_prompt, self.style_samples)
        if self.captions and self.caption_images:
            held = read_coco_captions(self.captions, count=self.caption_count)
            found["captions"] = Captioned(held.prompts.texts, tuple(held.paths(self.caption_images)), size)
        return found


@dataclass(frozen=True)
class Crossed:
    """Every class in every style.

    Parameters
    ----------
    classes, styles : tuple of str
        Their names.
    template : str
        The prompt.
    each : int
        Images of each combination.
    """

    classes: tuple[str, ...]
    styles: tuple[str, ...]
    template: str
    each: int

    @cached_property
    def _prompts(self) -> tuple[tuple[str, ...], Tensor]:
        prompts, asked = crossed_prompts({CLASS: self.classes, STYLE: self.styles}, self.template)
        return prompts.texts, torch.tensor([asked[CLASS], asked[STYLE]])

    @property
    def texts(self) -> list[str]:
        """The prompt of each image."""
        return [text for text in self._prompts[0] for _ in range(self.each)]

    @property
    def streams(self) -> list[int]:
        """The noise of each image; a larger sample contains the smaller."""
        combinations = len(self._prompts[0])
        return [
            CROSSED * STREAMS + place * combinations + i
            for i in range(combinations)
            for place in range(self.each)
        ]

    @property
    def what(self) -> dict[str, Any]:
        """What determines the values besides the images and the judge."""
        return {"texts": list(self._prompts[0]), "each": self.each}

    def measured(
        self, images: Tensor, *, judge: nn.Module, clip: Clip, features: Features
    ) -> dict[str, Tensor]:
        """Classes by the judge, and styles by the prompt of the same class that CLIP finds nearest."""
        texts, asked = self._prompts
        asked = asked.repeat_interleave(self.each, dim=1)
        of_texts = text_features(clip, texts).view(len(self.classes), len(self.styles), -1)
        fit = (of_texts[asked[0]] @ image_features(clip, images)[:, :, None])[:, :, 0]
        seen = torch.stack([recognised(judge, images).cpu(), fit.argmax(dim=1)])
        return {"crossed_asked": asked.to(torch.int16), "crossed_seen": seen.to(torch.int16)}


@dataclass(frozen=True)
class Captioned:
    """Ordinary captions, and the real images that they describe.

    Parameters
    ----------
    captions : tuple of str
        N captions.
    files : tuple of path
        N images.
    size : int
        Pixels at which they are compared.
    """

    captions: tuple[str, ...]
    files: tuple[Path, ...]
    size: int

    @property
    def texts(self) -> list[str]:
        """The prompt of each image."""
        return list(self.captions)

    @property
    def streams(self) -> list[int]:
        """The noise of each image."""
        return [CAPTIONS * STREAMS + i for i in range(len(self.captions))]

    @cached_property
    def what(self) -> dict[str, Any]:
        """What determines the values besides the images and the judge."""
        return {"texts": list(self.captions), "real": [sha256(file) for file in self.files]}

    def measured(
        self, images: Tensor, *, judge: nn.Module, clip: Clip, features: Features
    ) -> dict[str, Tensor]:
        """CLIP score of the images with their captions, and their distance to the real ones."""
        real = self._real(features)
        found = caption_utility(images, self.captions, clip=clip, features=features, real=real)
        values = {
            "clip": found.clip,
            "clip_error": found.clip_error,
            "distance": found.distance,
            "n": found.n,
        }
        return {f"caption_{name}": torch.tensor(float(value)).double() for name, value in values.items()}

    def _real(self, features: Features) -> Moments:
        known: dict[int, Moments] = self.__dict__.setdefault("_known", {})
        if id(features) not in known:
            known[id(features)] = moments_of_files(self.files, features, size=self.size)
        return known[id(features)]
