"""Runs cells of text-to-image: makes the task of a class, unlearns, draws images for every kind of prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from salun_core.data.images import ImageData
from salun_core.data.splits import split_data
from salun_core.errors import UserError
from salun_core.experiments.generation.lab import STREAMS, GenerationLab, Judge, Sampling, listed
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.runs.code_digest import code_digest
from salun_core.experiments.runs.store import Key, Result, Store
from salun_core.files import sha256
from salun_core.methods import METHODS
from salun_core.methods.lora import Lora
from salun_core.metrics.generation.clip import Clip, clip_accuracy, clip_scores
from salun_core.metrics.generation.imagenet import imagenet_judge
from salun_core.metrics.generation.recognition import Recognition, recognise
from salun_core.models import module_of
from salun_core.models.text_to_image.deltas import delta_bytes, load_delta, weights_digest
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.saliency import Mask
from salun_core.tasks.text_to_image import TextToImageTask, text_to_image_task

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CODE = (
    "salun_core.data.captions",
    "salun_core.data.splits",
    "salun_core.metrics.generation.clip",
    "salun_core.metrics.generation.frechet",
    "salun_core.metrics.generation.recognition",
    "salun_core.models.text_to_image.pipelines",
    "salun_core.models.text_to_image.sampling",
    "salun_core.saliency",
    "salun_core.tasks.text_to_image",
)
"""Modules on which every cell depends, besides that of its method."""

IMAGENET, IMAGENET_MODULE = (
    "imagenet",
    "salun_core.metrics.generation.imagenet",
)  # the judge of the paper's Table 2
LARGE = 100_000_000  # weights from which gradients for masks are taken in single precision
FIRST = "direct"  # the kind of prompt that tables speak of where they name none


@dataclass(frozen=True)
class Asking:
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


@dataclass(frozen=True)
class TextForgetting:
    """The losses of forgetting: see ``TextToImageTask``; ``batch_size`` images of each set in a step."""

    batch_size: int = 8
    replacement: int | None = None
    target: str = "original"
    relabel_drop: float = 0.0
    mask_guidance: float = 0.0
    mask_draws: int = 1
    antithetic: bool = False
    precision: str = "fp32"
    optimizer_name: str = "adam"
    gradient_checkpointing: bool = False
    grad_clip: float = 1.0


@dataclass
class TextLab(GenerationLab):
    """One pipeline and one data set that shows what it draws; every seed and forgotten class on them.

    Parameters
    ----------
    data : ImageData
        Images with three channels, at the pipeline's size, on the CPU.
    pipe : StableDiffusionPipeline
        The model to unlearn.
    asking : Asking
        Prompts.
    store : Store
        Where results lie.
    forgetting, sampling, judge
        How it forgets, how it is measured, and by whom.
    inception : path, optional
        Weights of Inception, for a FID; None for a distance in the features of the judge.
    bf16 : bool
        Draw images under bfloat16 autocast.
    lora_rank : int
        Rank of the adapters where they take the place of a mask.
    clip : Clip, optional
        For CLIP score and CLIP accuracy of the other classes.
    judge_weights : path, optional
        Weights of the judge "imagenet"; looked for in torch's cache otherwise.
    imagenet : tuple of int
        Numbers in ImageNet of the classes, for that judge.
    keep_models : bool
        Store what changed in each network; without, results are kept and the unlearned weights are not.
    device : torch.device
        Where networks and images lie.
    experiment, source : str
        Names for the results table.
    """

    data: ImageData
    pipe: "StableDiffusionPipeline"
    asking: Asking
    store: Store
    judge: Judge
    forgetting: TextForgetting = field(default_factory=TextForgetting)
    sampling: Sampling = field(default_factory=Sampling)
    inception: Path | None = None
    bf16: bool = False
    lora_rank: int = 4
    clip: Clip | None = None
    judge_weights: Path | None = None
    imagenet: tuple[int, ...] = ()
    keep_models: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    experiment: str = "text_to_image"
    source: str = "quick"
    _task: tuple[tuple[int, Scenario], TextToImageTask] | None = None

    def __post_init__(self) -> None:
        # In double precision a network of hundreds of millions of weights fits on few accelerators.
        if sum(w.numel() for w in self.pipe.unet.parameters()) > LARGE:
            self.mask_dtype = torch.float32

    @property
    def about(self) -> dict[str, Any]:
        """What network it is, for the results table."""
        return {"arch": "stable diffusion", "width": self.pipe.unet.config.block_out_channels[0]}

    @property
    def judged(self) -> int:
        """Classes that the judge tells apart: K, and for "imagenet" all others as one more."""
        return self.classes + (self.judge.arch == IMAGENET)

    @cached_property
    def classifier(self) -> nn.Module:
        """The judge: trained on all real training images, or the paper's, trained on ImageNet."""
        if self.judge.arch != IMAGENET:
            return super().classifier
        return imagenet_judge(self.judge_weights, numbers=self.imagenet, device=self.device)

    @cached_property
    def judge_accuracy(self) -> float:
        """Share of real test images that the judge recognises."""
        if self.judge.arch != IMAGENET:
            return super().judge_accuracy
        rows = slice(self.data.n_train, None)
        seen = recognise(self.classifier, self.data.images[rows], self.data.labels[rows], classes=self.judged)
        return int(seen.counts.diagonal().sum()) / int(seen.counts.sum())

    @cached_property
    def _judge_key(self) -> Key:
        if self.judge.arch != IMAGENET:
            return super()._judge_key
        return Key("judge", {"arch": IMAGENET, "weights": weights_digest(self.classifier)})

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of prompts, in the order in which images are drawn for them."""
        return tuple(self.asking.test)

    def replaced(self, forgotten: int) -> int:
        """Number of the class that takes the place of a forgotten one: a given one, or the next."""
        chosen = self.forgetting.replacement
        return (forgotten + 1) % self.classes if chosen is None else chosen

    def task(self, seed: int, scenario: Scenario) -> TextToImageTask:
        """The unlearning problem of one seed and forgotten class."""
        if self._task is None or self._task[0] != (seed, scenario):
            self._task = None  # free the old latents before the new ones are made
            how = self.forgetting
            split = split_data(
                self.data, scenario="class", seed=seed, forget_class=scenario.target, validation=0
            )
            given = {role: self._captioned(split[role]) for role in ("forget", "retain")}
            settings = asdict(how)
            del settings["replacement"]
            settings["clip"] = settings.pop("grad_clip")
            task = text_to_image_task(
                self.pipe,
                forget=given["forget"],
                retain=given["retain"],
                replacement=self.asking.training[self.replaced(self.forgotten(scenario))],
                **settings,
            )
            self._task = ((seed, scenario), task)
        return self._task[1]

    def mask(self, seed: int, scenario: Scenario, spec: MaskSpec) -> tuple[Mask | Lora | None, float]:  # type: ignore[override]
        """The mask of a cell, or adapters in its place, and the seconds it costs."""
        if spec.kind == "lora":
            return Lora(self.lora_rank), 0.0
        return super().mask(seed, scenario, spec)

    def finished(self, model: nn.Module) -> nn.Module:
        """The unlearned network in the pipeline's own precision: what is measured is what is stored."""
        return model.to(self.pipe.unet.dtype)

    def weights(self, model: nn.Module, task: Any) -> bytes | None:
        """What changed, as the content of a safetensors file."""
        return delta_bytes(model, self.pipe.unet) if self.keep_models else None

    def model(self, result: Result) -> nn.Module:
        """The unlearned network behind a result."""
        path = self.store.path(result.key, ".model.safetensors")
        if not path.is_file():
            raise UserError(
                f"{path} is not here: the run kept no weights (keep_models: false), so unlearn again with "
                "keep_models: true and another out_dir"
            )
        return load_delta(path, self.pipe.unet).eval()

    def drawn(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The samples a model is measured by, uint8 (n, 3, H, W), and the class each was asked for (n,).

        ``samples`` images of each class for every kind of prompt in turn. Image i of a class has the same
        noise for every model and kind.
        """
        count, how = self.sampling.samples, self.sampling
        labels = torch.arange(self.classes).repeat_interleave(count)
        places = torch.arange(count).repeat(self.classes)
        images = [
            sample_prompts(
                self.pipe,
                self.texts(kind, labels),
                unet=model,
                seed=0,
                streams=(labels * STREAMS + places).tolist(),
                guidance=how.guidance,
                steps=how.steps,
                eta=how.eta,
                sampler=how.sampler,
                batch_size=how.batch_size,
                bf16=self.bf16,
            )
            for kind in self.kinds
        ]
        return torch.cat(images), labels.repeat(len(images))

    def texts(self, kind: str, labels: Tensor) -> list[str]:
        """The prompts behind the samples of one kind, given the class of each: those of a class in turn."""
        prompts, seen, found = self.asking.test[kind], Counter[int](), []
        for label in labels.tolist():
            found.append(prompts[label][seen[label] % len(prompts[label])])
            seen[label] += 1
        return found

    def measured(self, images: Tensor, labels: Tensor, forgotten: int) -> dict[str, Any]:
        """What the judge sees for each kind of prompt, and the rest for the first; as JSON values."""
        each = len(images) // len(self.kinds)
        values = super().measured(images[:each], labels[:each], forgotten)
        seen = {
            kind: recognise(self.classifier, part, asked, classes=self.judged)
            for kind, part, asked in zip(self.kinds, images.split(each), labels.split(each), strict=True)
        }
        by_kind = {
            kind: {
                "UA": float(found.unlearning_accuracy(forgotten)),
                "OA": float(found.other_accuracy(forgotten)),
                "confusion": found.counts.tolist(),
            }
            for kind, found in seen.items()
        }
        if self.clip is not None:
            values["metrics"] |= self.understood(self.clip, images[:each], labels[:each], forgotten)
        return values | {"kinds": by_kind}

    def understood(self, clip: Clip, images: Tensor, labels: Tensor, forgotten: int) -> dict[str, float]:
        """CLIP score of the other classes' images with their prompts, and how often their own class is nearest."""
        kept = labels != forgotten
        texts = [t for t, k in zip(self.texts(self.kinds[0], labels), kept.tolist(), strict=True) if k]
        nearest = clip_accuracy(clip, images[kept], labels[kept], self.asking.training)
        return {
            "CLIP": clip_scores(clip, images[kept], texts).mean().item(),
            "CLIP accuracy": nearest.value,
        }

    def recognition(self, result: Result, kind: str = FIRST) -> Recognition:
        """Classes asked for by one kind of prompt against classes recognised."""
        return Recognition(torch.tensor(result.content["kinds"][kind]["confusion"]))

    def row(self, cell: Cell, result: Result) -> dict[str, Any]:
        """One row of the results table; UA and OA also for every kind of prompt."""
        by_kind = result.content.get("kinds", {})
        extra = {
            f"{name} {kind}": by_kind.get(kind, {}).get(name) for kind in self.kinds for name in ("UA", "OA")
        }
        metrics = result.content.get("metrics", {})
        extra |= {name: metrics.get(name) for name in ("CLIP", "CLIP accuracy") if self.clip is not None}
        return super().row(cell, result) | extra

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        what: dict[str, Any] = {**self._images, **cell.what, "pipeline": self._parts}
        what |= {"asking": {"training": list(self.asking.training), "test": nested(self.asking.test)}}
        what |= {"forgetting": asdict(self.forgetting), "sampling": listed(asdict(self.sampling))}
        what |= {"bf16": self.bf16, "judge": dict(self._judge_key.what)}
        if self.clip is not None:
            what["clip"] = weights_digest(self.clip.model)
        if cell.mask.kind == "lora":
            what["rank"] = self.lora_rank
        what["features"] = sha256(self.inception) if self.inception is not None else "judge"
        judge = IMAGENET_MODULE if self.judge.arch == IMAGENET else module_of(self.judge.arch)
        code = code_digest(*CODE, METHODS[cell.method].module, judge)
        return Key("cell", what, code)

    @cached_property
    def _parts(self) -> dict[str, str]:
        return {part: weights_digest(getattr(self.pipe, part)) for part in ("unet", "vae", "text_encoder")}

    def _captioned(self, ids: Tensor) -> tuple[Tensor, Sequence[str]]:
        return self.data.images[ids], [self.asking.training[c] for c in self.data.labels[ids].tolist()]


def nested(prompts: Mapping[str, tuple[tuple[str, ...], ...]]) -> dict[str, list[list[str]]]:
    """Prompts by kind as JSON values."""
    return {kind: [list(of_class) for of_class in classes] for kind, classes in prompts.items()}
