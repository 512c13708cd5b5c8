"""Runs cells of text-to-image: unlearns a class, draws images for every kind of prompt; `generation.lab` judges."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from salun_core.code_digest import code_digest
from salun_core.experiments.generation.lab import LABS as GENERATION
from salun_core.experiments.generation.lab import SAMPLES, GenerationLab
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.runs.pieces import Pieces
from salun_core.experiments.runs.store import Key, Result
from salun_core.experiments.text_to_image.problem import Problem, Prompts
from salun_core.experiments.text_to_image.unlearned_elsewhere import UnlearnedElsewhere
from salun_core.methods.lora import Lora
from salun_core.metrics.generation.clip import Clip, clip_scores, nearest_text
from salun_core.metrics.generation.imagenet import imagenet_judge
from salun_core.metrics.generation.recognition import recognise
from salun_core.models.text_to_image.deltas import load_delta, weights_digest
from salun_core.models.text_to_image.families import family_of, network_of
from salun_core.models.text_to_image.pipelines import (
    config_of,
    pipeline_identity,
    resting,
    tokenizer_digest,
)
from salun_core.models.text_to_image.unlearned import load_unlearned
from salun_core.tasks.text_to_image import TextToImageTask

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from salun_core.experiments.text_to_image.params import TextSampling
    from salun_core.experiments.text_to_image.styles_and_captions import Captioned, Crossed

CODE = ("salun_core.experiments.text_to_image.problem",)
"""Where a model is computed; with all that these import and its method, the code behind it."""

STYLES_AND_CAPTIONS = "salun_core.experiments.text_to_image.styles_and_captions"
"""What is measured of images beside those of the classes."""

LABS = (*GENERATION, "salun_core.experiments.text_to_image.lab")
"""What puts these together; it counts without what it imports."""

IMAGENET = "imagenet"  # the judge of the paper's Table 2
FIRST = "direct"  # the kind of prompt that tables speak of where they name none


@dataclass
class TextLab(GenerationLab):
    """One pipeline and one data set that shows what it draws; every seed and forgotten class on them.

    Parameters
    ----------
    problem : Problem
        What determines the models.
    lora_rank : int
        Rank of the adapters where they take the place of a mask.
    clip : Clip, optional
        For CLIP score and CLIP accuracy of the other classes.
    judge_weights : path, optional
        Weights of the judge "imagenet"; looked for in torch's cache otherwise.
    imagenet : tuple of int
        Numbers in ImageNet of the classes, for that judge.
    keep_models, keep_samples : bool
        Keep what changed in each network, and the images it drew, after they have been judged.
    covering : callable, optional
        Applied to samples before a picture of them is written.
    sheets : mapping
        What every model draws besides the classes, and what is measured of it, by name.
    """

    sampling: "TextSampling"
    problem: Problem = field(kw_only=True)
    lora_rank: int = 4
    clip: Clip | None = None
    judge_weights: Path | None = None
    imagenet: tuple[int, ...] = ()
    keep_models: bool = True
    keep_samples: bool = True
    covering: Any = None
    sheets: "Mapping[str, Crossed | Captioned]" = field(default_factory=dict)
    _task: tuple[tuple[int, Scenario], TextToImageTask] | None = field(default=None, repr=False)

    kind = "text_to_image"

    @property
    def pipe(self) -> "StableDiffusionPipeline":
        """The model to unlearn."""
        return self.problem.pipe

    @property
    def network(self) -> Any:
        """Its denoising network."""
        return network_of(self.pipe)

    @property
    def prompts(self) -> Prompts:
        """How classes are asked for."""
        return self.problem.prompts

    @property
    def about(self) -> dict[str, Any]:
        """What network it is, for the results table."""
        config = self.network.config
        blocks = config.get("block_out_channels")  # a transformer has the same width all along
        width = blocks[0] if blocks else config.num_attention_heads * config.attention_head_dim
        return {"arch": "stable diffusion", "width": width}

    @property
    def judged(self) -> int:
        """Classes that the judge tells apart: K, and for "imagenet" all others as one more."""
        return self.classes + (self.judging.judge == IMAGENET)

    @cached_property
    def classifier(self) -> nn.Module:
        """The judge: trained on all real training images, or the paper's, trained on ImageNet."""
        if self.judging.judge != IMAGENET:
            return super().classifier
        return imagenet_judge(self.judge_weights, numbers=self.imagenet, device=self.device)

    @cached_property
    def judge_accuracy(self) -> float:
        """Share of real test images that the judge recognises."""
        if self.judging.judge != IMAGENET:
            return super().judge_accuracy
        rows = slice(self.data.n_train, None)
        seen = recognise(self.classifier, self.data.images[rows], self.data.labels[rows], classes=self.judged)
        return int(seen.counts.diagonal().sum()) / int(seen.counts.sum())

    @cached_property
    def judge_key(self) -> Key:
        """Identity of the judge."""
        if self.judging.judge != IMAGENET:
            return super().judge_key
        what = {"arch": IMAGENET, "weights": weights_digest(self.classifier)}
        return Key("judge", what, code_digest(imagenet_judge.__module__))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of prompts, in the order in which images are drawn for them."""
        return tuple(self.prompts.test)

    def replaced(self, forgotten: int) -> int:
        """Number of the class that takes the place of a forgotten one."""
        return self.problem.replaced(forgotten)

    def build(self, seed: int) -> nn.Module:
        """The pipeline's denoising network."""
        return self.network

    def task(self, seed: int, scenario: Scenario) -> TextToImageTask:
        """The unlearning problem of one seed and forgotten class."""
        if self._task is None or self._task[0] != (seed, scenario):
            self._task = None  # free the old latents before the new ones are made
            self._task = ((seed, scenario), self.problem.task(seed, scenario))
        return self._task[1]

    def mask(self, seed: int, scenario: Scenario, spec: MaskSpec) -> tuple[Any, float]:
        """The mask of a cell, or adapters in its place, and the seconds it costs."""
        if spec.kind == "lora":
            return Lora(self.lora_rank), 0.0
        return super().mask(seed, scenario, spec)

    def unlearned(self, cell: Cell, values: dict[str, Any]) -> tuple[Any, Any]:
        """See `Lab.unlearned`; parts that only draw or judge leave the accelerator meanwhile."""
        if isinstance(cell, UnlearnedElsewhere):
            return load_unlearned(cell.path, self.pipe), None
        self.task(cell.seed, cell.scenario)  # encodes images and prompts, for which they are needed
        parts = family_of(self.pipe).parts(self.pipe)
        idle: list[nn.Module | None] = [part for part in parts.values() if part is not self.network]
        idle += [getattr(self.pipe, "safety_checker", None), self.clip.model if self.clip else None]
        with resting(*idle):
            return super().unlearned(cell, values)

    def finished(self, model: nn.Module) -> nn.Module:
        """The unlearned network in the pipeline's own precision: what is measured is what is stored."""
        return model.to(self.network.dtype)

    def weights(self, model: nn.Module, digest: str) -> bytes:
        """What changed, as the content of a safetensors file."""
        return self.problem.weights(model, digest)

    def model(self, result: Result) -> nn.Module:
        """The unlearned network behind a result."""
        return load_delta(self.weights_file(result), self.network).eval()

    def drawn(self, model: nn.Module, forgotten: Sequence[int], pieces: Pieces) -> tuple[Tensor, Tensor]:
        """The samples a model is measured by, and the class each was asked for."""
        return self.problem.drawn(model, self.sampling, kept=pieces.images)

    def shown(self, images: Tensor) -> Tensor:
        """Samples as they may be shown in a picture."""
        return images if self.covering is None else self.covering(images)

    def further(self, images: Tensor, labels: Tensor, forgotten: Sequence[int]) -> dict[str, Tensor]:
        """CLIP score of the other classes' images with their prompts, and whether their own class is nearest."""
        if self.clip is None:
            return {}
        each = len(images) // len(self.kinds)
        images, labels = images[:each], labels[:each]
        kept = ~torch.isin(labels, torch.tensor(forgotten))
        texts = self.prompts.texts(self.kinds[0], labels)
        asked = [text for text, keep in zip(texts, kept.tolist(), strict=True) if keep]
        nearest = nearest_text(self.clip, images[kept], self.prompts.training)
        return {
            "clip_score": clip_scores(self.clip, images[kept], asked).float(),
            "clip_right": (nearest == labels[kept]).float(),
        }

    def beside(self, cell: Cell, model: Result) -> dict[str, Tensor]:
        """What is measured of classes in other styles, and of ordinary captions."""
        found: dict[str, Tensor] = {}
        for name, sheet in self.sheets.items():
            images = self._drawn_beside(name, sheet, cell, model)
            assert self.clip is not None
            found |= sheet.measured(images, judge=self.classifier, clip=self.clip, features=self.features[0])
        return found

    def _drawn_beside(self, name: str, sheet: "Crossed | Captioned", cell: Cell, model: Result) -> Tensor:
        key = self._beside_key(name, sheet, cell)
        found = self.store.get(key)
        if found is None or not self.store.has_files(found):
            start = time.perf_counter()
            net = self._model(model.key.name).to(self.device)
            with self.pieces(key) as pieces:
                images = self.problem.drawn_for(
                    net, sheet.texts, sheet.streams, self.sampling, kept=pieces.images(name)
                )
                values = {"seconds": pieces.before + self.since(start)}
                self.store.put(
                    key, values, self.provenance(), {SAMPLES: save({"images": images.contiguous()})}
                )
        return load(self.store.path(key, SAMPLES).read_bytes())["images"]

    def _beside_key(self, name: str, sheet: "Crossed | Captioned", cell: Cell) -> Key:
        samples = self.samples_key(cell)
        texts = hashlib.sha256("\n".join(sheet.texts).encode()).hexdigest()
        what = {n: v for n, v in samples.what.items() if n != "prompts"} | {"sheet": name, "texts": texts}
        return Key("samples", what, samples.code)

    def computed(self, cell: Cell, key: Key) -> Result:
        """Run the stages of the cell that are not stored yet."""
        result = super().computed(cell, key)
        if not self.keep_samples:
            for name, sheet in self.sheets.items():
                self.store.path(self._beside_key(name, sheet, cell), SAMPLES).unlink(missing_ok=True)
        return result

    def unlearned_key(self, cell: Cell) -> Key:
        """Identity of the cell's model."""
        prompts = self.prompts
        what: dict[str, Any] = {**self._images, **cell.what, "pipeline": self._pipeline}
        if isinstance(cell, UnlearnedElsewhere):
            return Key("unlearned", what, code_digest(load_unlearned.__module__, alone=LABS))
        what |= {"classes": list(self.data.classes), "prompts": list(prompts.training)}
        what |= {"forgetting": self.problem.forgetting.identity(), "replacement": self.problem.replacement}
        if cell.mask.kind == "lora":
            what["rank"] = self.lora_rank
        return Key("unlearned", what, code_digest(*CODE, *cell.modules, alone=LABS))

    def samples_key(self, cell: Cell) -> Key:
        """Identity of its samples."""
        model = self.unlearned_key(cell)
        what = {"model": dict(model.what), "sampling": self.sampling.identity(), "bf16": self.problem.bf16}
        what["prompts"] = nested(self.prompts.test)
        return Key("samples", what, model.code)

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        key = super().key(cell)
        if self.clip is None:
            return key
        if self.sheets:
            more = {name: sheet.what for name, sheet in self.sheets.items()}
            key = Key(
                key.kind,
                {**key.what, "sheets": more},
                f"{key.code} {code_digest(STYLES_AND_CAPTIONS, alone=LABS)}",
            )
        clip = {
            "weights": weights_digest(self.clip.model),
            "config": config_of(self.clip.model),
            "tokenizer": tokenizer_digest(self.clip.tokenizer),
            "pixels": [list(self.clip.mean), list(self.clip.std)],
        }
        return Key(key.kind, {**key.what, "clip": clip}, f"{key.code} {code_digest(clip_scores.__module__)}")

    @cached_property
    def _pipeline(self) -> dict[str, Any]:
        return pipeline_identity(self.pipe)


def nested(prompts: Mapping[str, tuple[tuple[str, ...], ...]]) -> dict[str, list[list[str]]]:
    """Prompts by kind as JSON values."""
    return {kind: [list(of_class) for of_class in classes] for kind, classes in prompts.items()}
