"""The text-to-image experiment: a class is forgotten by a Stable Diffusion pipeline (Table 2 of the paper)."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from pydantic import Field, field_validator

from salun_core.data import load_dataset
from salun_core.data.captions import KINDS, NAMES, captions, photo_of
from salun_core.data.images import ImageData
from salun_core.data.splits import class_number
from salun_core.errors import UserError, one_of
from salun_core.experiments.generation.params import GenerationParams
from salun_core.experiments.runs.cells import CHANGES, Cell, Scenario, default_mask, progress_bar, run_cells
from salun_core.experiments.runs.params import find_device
from salun_core.experiments.runs.results_file import write_table
from salun_core.experiments.runs.tuning import Variant
from salun_core.experiments.text_to_image.lab import FIRST, IMAGENET, Asking, TextForgetting, TextLab
from salun_core.metrics.generation.clip import Clip, load_clip
from salun_core.metrics.generation.imagenet import imagenet_judge, imagenet_numbers
from salun_core.models.diffusion.sampling import SAMPLERS
from salun_core.models.text_to_image.pipelines import fitted, image_size, load_pipeline
from salun_core.paths import models_folder, output_folder, project_root
from salun_core.tasks.text_to_image import OPTIMIZERS, PRECISIONS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

COMMITTED = ("data/models/tiny-sd", "data/models/tiny-sd-clip")
ALL = ("original", "ft", "rl", "ga", "l1_sparse", "esd", "fmn", "ca", "uce", "salun", "salun_soft")


class TextToImageParams(GenerationParams):
    """Parameters of the text-to-image experiment."""

    experiment: ClassVar[str] = "text_to_image"
    kind: ClassVar[str] = "text_to_image"
    known_masks: ClassVar[tuple[str, ...]] = CHANGES
    known_judges: ClassVar[tuple[str, ...]] = (IMAGENET,)

    methods: tuple[str, ...] = ALL
    masks: tuple[str, ...] = ("none", "salient", "random", "least_salient", "lora")
    # The pipeline.
    pipeline: str = "data/models/tiny-sd"
    download: bool = False
    pickle: bool = False
    safety_checker: bool = True
    half: bool = False
    # Prompts.
    class_names: tuple[str, ...] = ()
    class_prompt: str = "an image of a {}"
    test_prompts: tuple[str, ...] = ()
    replacement: int | str | None = None
    # Forgetting.
    batch_size: int = Field(8, ge=1)
    precision: str = "fp32"
    optimizer: str = "adam"
    gradient_checkpointing: bool = False
    grad_clip: float = Field(1.0, ge=0)
    lora_rank: int = Field(4, ge=1)
    lora_lr: float | None = None
    # Measuring.
    clip: str | None = None
    judge_weights: Path | None = None
    sampler: str = "ddim"
    sample_batch: int = Field(8, ge=1)
    keep_models: bool = True

    names: ClassVar[dict[str, tuple[Any, str]]] = {
        **GenerationParams.names,
        "precision": (PRECISIONS, "precision"),
        "optimizer": (OPTIMIZERS, "optimiser"),
        "sampler": (SAMPLERS, "sampler"),
    }

    @field_validator("precision", "optimizer", "sampler")
    @classmethod
    def _known_too(cls, value: str, info: Any) -> str:
        return one_of(value, *cls.names[info.field_name])

    @field_validator("clip")
    @classmethod
    def _or_none(cls, value: str | None) -> str | None:
        return value if value and value != "none" else None

    @field_validator("class_prompt", "test_prompts")
    @classmethod
    def _placed(cls, value: Any, info: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            if text.count("{}") != 1:
                raise UserError(f"{info.field_name} {text!r} must hold {{}} once, where the class name goes")
        return value

    def asking(self, data: ImageData) -> Asking:
        """The prompts of every class: digits by the captions of tiny-sd, others by templates."""
        if data.name == "digits" and not self.class_names and not self.test_prompts:
            by_kind = {
                kind: tuple(
                    tuple(c.text for c in captions(kind, "test") if c.digit == digit) for digit in range(10)
                )
                for kind in KINDS
            }
            return Asking(tuple(photo_of(d) for d in range(10)), by_kind)
        names = self.class_names or (NAMES if data.name == "digits" else data.classes)
        if len(names) != len(data.classes):
            raise UserError(
                f"class_names has {len(names)} names for {len(data.classes)} classes: give one each"
            )
        templates = self.test_prompts or ("Image of {}",)
        test = {FIRST: tuple(tuple(text.format(name) for text in templates) for name in names)}
        return Asking(tuple(self.class_prompt.format(name) for name in names), test)

    def load_pipe(self) -> "StableDiffusionPipeline":
        """The pipeline to unlearn, on its device."""
        return load_pipeline(
            source_of(self.pipeline),
            safety_checker=self.safety_checker,
            pickle=self.pickle,
            download=self.download,
            dtype=torch.bfloat16 if self.half else torch.float32,
            device=find_device(self.device),
        )

    def lab(self, *, data: ImageData | None = None, pipe: "StableDiffusionPipeline | None" = None) -> TextLab:
        """Load pipeline and data, and open the store.

        Parameters
        ----------
        data : ImageData, optional
            Use these images instead of ``dataset``.
        pipe : StableDiffusionPipeline, optional
            From `load_pipe`, if it is loaded already.
        """
        if self.judge == IMAGENET:
            imagenet_judge(self.judge_weights)  # refuses missing weights before anything large is read
        parts = self.shared_parts()
        parts["sampling"] = replace(parts["sampling"], sampler=self.sampler)
        pipe = self.load_pipe() if pipe is None else pipe
        clip = clip_of(pipe, self.clip, download=self.download) if self.clip else None
        if data is None:
            data = load_dataset(self.dataset, self.data_dir, size=image_size(pipe))
        data = replace(data, images=fitted(data.images, image_size(pipe)).contiguous())
        own = {f.name: getattr(self, f.name) for f in fields(TextForgetting) if hasattr(self, f.name)}
        own["replacement"] = None if self.replacement is None else class_number(data, self.replacement)
        return TextLab(
            data,
            pipe,
            self.asking(data),
            forgetting=TextForgetting(**own, optimizer_name=self.optimizer),
            bf16=self.half or self.precision == "bf16",
            lora_rank=self.lora_rank,
            clip=clip,
            keep_models=self.keep_models,
            judge_weights=self.judge_weights,
            imagenet=imagenet_numbers(data.classes, self.class_names) if self.judge == IMAGENET else (),
            **parts,
        )

    def settings_under(self, kind: str) -> dict[str, Any]:
        """SalUn's settings under a kind of mask; adapters may have a learning rate of their own."""
        settings = self.settings_of("salun")
        return settings | ({"lr": self.lora_lr} if kind == "lora" and self.lora_lr else {})


@dataclass(frozen=True)
class TextToImageResults:
    """Results of the experiment.

    Parameters
    ----------
    cells : DataFrame
        The original and every method with its own mask, one row per forgotten class and seed.
    masks : DataFrame
        SalUn's settings under each kind of mask and with adapters.
    lab : TextLab
        For a closer look: models, samples.
    params : TextToImageParams
        The parameters, complete.
    """

    cells: pd.DataFrame
    masks: pd.DataFrame
    lab: TextLab
    params: TextToImageParams


def run(params: TextToImageParams, *, lab: TextLab | None = None) -> TextToImageResults:
    """Run or resume the experiment, in the lab given or in the one the parameters describe.

    Raises
    ------
    UserError
        For anything the user can put right, before anything is computed.
    """
    lab = lab or params.lab()
    scenarios = [Scenario("class", target=class_number(lab.data, c)) for c in params.forget_class]
    names = ["original", *(m for m in params.methods if m != "original")]
    variants = [Variant(m, default_mask(m, params.keep, params.score)) for m in names]
    masked = [(kind, params.mask_variant(kind)) for kind in params.masks]
    cells, masks = [], []
    total = len(scenarios) * len(params.seeds) * (len(variants) + len(masked))
    with progress_bar(total, lab.experiment) as progress:
        for scenario in scenarios:
            for seed in params.seeds:
                wanted = [
                    Cell(seed, scenario, v.method, v.mask, params.settings_of(v.method)) for v in variants
                ]
                cells.append(run_cells(lab, wanted, progress=progress).assign(part="methods"))
                wanted = [
                    Cell(seed, scenario, v.method, v.mask, params.settings_under(kind)) for kind, v in masked
                ]
                masks.append(run_cells(lab, wanted, progress=progress).assign(part="masks"))
    frame = pd.concat(cells, ignore_index=True)
    every = pd.concat([*cells, *masks], ignore_index=True)
    write_table(every, output_folder(params.out_dir), params.experiment, params.shown())
    return TextToImageResults(frame, pd.concat(masks, ignore_index=True), lab, params)


def clip_of(pipe: Any, source: str, *, download: bool = False) -> Clip:
    """A CLIP model to judge images with.

    A folder without a tokenizer holds the model that the pipeline's own text encoder was trained in, with pixels from
    -1 to 1.
    """
    place = source_of(source)
    if isinstance(place, Path) and not (place / "tokenizer_config.json").is_file():
        half = (0.5, 0.5, 0.5)
        return load_clip(place, tokenizer=pipe.tokenizer, mean=half, std=half, device=pipe.device)
    return load_clip(place, download=download, device=pipe.device)


def source_of(model: str) -> str | Path:
    """A folder, also relative to the top of the project or to its models, or else the name of a hub model.

    Raises
    ------
    UserError
        If it is the model that comes with the project, and the project is not here.
    """
    for folder in (project_root(), models_folder()):
        if (folder / model).is_dir():
            return folder / model
    if model in COMMITTED and not Path(model).is_dir():
        raise UserError(
            f"{model} comes with a checkout of the project and is not in {project_root()}: run in the checkout, "
            "train it there with 'python -m salun_core train-tiny-sd', or give a pipeline of your own"
        )
    return model
