"""Forgetting a class with a text-to-image pipeline: prompts, losses, samples."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from salun_core.data.images import ImageData
from salun_core.data.splits import split_data
from salun_core.errors import UserError
from salun_core.experiments.runs.cells import Scenario
from salun_core.models.diffusion.sampling import Kept
from salun_core.models.text_to_image.deltas import delta_bytes
from salun_core.models.text_to_image.families import network_of
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.tasks.text_to_image import TextToImageTask, text_to_image_task

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from salun_core.experiments.text_to_image.params import TextForgetting, TextSampling

STREAMS = 1_000_000  # noise streams of one class, so that a larger sample contains the smaller


@dataclass(frozen=True)
class Prompts:
    """How classes are asked for.

    Parameters
    ----------
    training : tuple of str
        The prompt of each class in forgetting.
    test : mapping of str to tuple of tuple of str
        The prompts of each class, by kind, that models are measured with; "direct" is the first kind.
    """

    training: tuple[str, ...]
    test: Mapping[str, tuple[tuple[str, ...], ...]]

    def texts(self, kind: str, labels: Tensor) -> list[str]:
        """The prompts behind the samples of one kind, given the class of each: those of a class in turn."""
        prompts, seen, found = self.test[kind], Counter[int](), []
        for label in labels.tolist():
            found.append(prompts[label][seen[label] % len(prompts[label])])
            seen[label] += 1
        return found


@dataclass
class Problem:
    """Everything that determines the task of forgetting and the samples.

    Parameters
    ----------
    data : ImageData
        Images with three channels, at the pipeline's size, on the CPU.
    pipe : StableDiffusionPipeline
        The model to unlearn.
    prompts : Prompts
        How classes are asked for.
    forgetting : TextForgetting
        The losses of forgetting.
    replacement : int, optional
        The class that takes the place of a forgotten one; the next by default.
    together : tuple of int
        Classes that are forgotten at once: none of them takes the place of another.
    bf16 : bool
        Draw images under bfloat16 autocast.
    """

    data: ImageData
    pipe: "StableDiffusionPipeline"
    prompts: Prompts
    forgetting: "TextForgetting"
    replacement: int | None = None
    together: tuple[int, ...] = ()
    bf16: bool = False

    def replaced(self, forgotten: int) -> int:
        """Number of the class that takes the place of a forgotten one."""
        if self.replacement is not None:
            return self.replacement
        count = len(self.data.classes)
        following = [(forgotten + step) % count for step in range(1, count)]
        return next((number for number in following if number not in self.together), forgotten)

    def refuse_same_prompts(self, forgotten: int) -> None:
        """Refuse a class to forget that is asked for as another one is, or that would take its own place."""
        names, asked, instead = self.data.classes, self.prompts.training, self.replaced(forgotten)
        gone = {forgotten, *self.together}
        if len(gone) == len(names):
            raise UserError(f"all {len(names)} classes are to be forgotten: keep at least one")
        if instead in gone:
            place = (
                "its own place"
                if instead == forgotten
                else f"the place of {names[forgotten]!r}, which is forgotten too"
            )
            raise UserError(
                f"the class {names[instead]!r} cannot take {place}: give replacement another class"
            )
        for number, prompt in enumerate(asked):
            if number not in gone and prompt == asked[forgotten]:
                raise UserError(
                    f"the classes {names[forgotten]!r} and {names[number]!r} are both asked for by {prompt!r}, and only "
                    "the first is to be forgotten: give them different class_names"
                )

    def task(self, seed: int, scenario: Scenario) -> TextToImageTask:
        """The unlearning problem of one seed and forgotten class."""
        how = self.forgetting
        split = split_data(
            self.data, scenario="class", seed=seed, forget_class=scenario.numbers, validation=0
        )
        asked = self.prompts.training
        given = {role: self._captioned(split[role]) for role in ("forget", "retain")}
        return text_to_image_task(
            self.pipe,
            forget=given["forget"],
            retain=given["retain"],
            replacement={asked[number]: asked[self.replaced(number)] for number in scenario.numbers},
            batch_size=how.batch_size,
            **how.losses(),
            precision=how.precision,
            optimizer_name=how.optimizer,
            gradient_checkpointing=how.gradient_checkpointing,
            clip=how.grad_clip,
        )

    def weights(self, model: nn.Module, digest: str) -> bytes:
        """What changed in a network, whose digest is known, as the content of a safetensors file."""
        return delta_bytes(model, network_of(self.pipe), result=digest)

    def drawn(
        self, model: nn.Module, how: "TextSampling", *, kept: Callable[[str], Kept]
    ) -> tuple[Tensor, Tensor]:
        """Samples uint8 (n, 3, H, W), and the class each was asked for (n,).

        ``samples`` images of each class for every kind of prompt in turn. Image i of a class has the same
        noise for every model and kind. ``kept`` keeps the batches of a kind.
        """
        classes, count = len(self.data.classes), how.samples
        labels = torch.arange(classes).repeat_interleave(count)
        places = torch.arange(count).repeat(classes)
        streams = (labels * STREAMS + places).tolist()
        images = [
            self.drawn_for(model, self.prompts.texts(kind, labels), streams, how, kept=kept(kind))
            for kind in self.prompts.test
        ]
        return torch.cat(images), labels.repeat(len(images))

    def drawn_for(
        self,
        model: nn.Module,
        texts: Sequence[str],
        streams: Sequence[int],
        how: "TextSampling",
        *,
        kept: Kept | None = None,
    ) -> Tensor:
        """An image for each prompt, uint8 (n, 3, H, W); ``streams`` says which noise it starts from."""
        return sample_prompts(
            self.pipe,
            texts,
            unet=model,
            seed=0,
            streams=streams,
            guidance=how.guidance,
            steps=how.sample_steps,
            eta=how.eta,
            sampler=how.sampler,
            batch_size=how.sample_batch,
            bf16=self.bf16,
            progress=True,
            kept=kept,
        )

    def _captioned(self, ids: Tensor) -> tuple[Tensor, list[str]]:
        return self.data.images[ids], [self.prompts.training[c] for c in self.data.labels[ids].tolist()]
