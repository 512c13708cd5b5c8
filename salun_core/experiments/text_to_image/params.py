"""Parameters of the text-to-image experiment."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import ValidationInfo, field_validator, model_validator
from tqdm import tqdm

from salun_core.data.captions import KINDS, NAMES, captions, photo_of
from salun_core.data.downloads import CLIP_NAME, refuse_missing
from salun_core.data.images import ImageData
from salun_core.data.splits import class_number
from salun_core.errors import UserError
from salun_core.experiments.generation.params import Forgetting, GenerationParams, Judging, Sampling, Steps
from salun_core.experiments.runs.cells import CHANGES
from salun_core.experiments.runs.params import Group, parameter
from salun_core.experiments.text_to_image.lab import FIRST, IMAGENET, TextLab
from salun_core.experiments.text_to_image.problem import Problem, Prompts
from salun_core.experiments.text_to_image.styles_and_captions import StylesAndCaptions
from salun_core.experiments.text_to_image.unlearned_elsewhere import check_given
from salun_core.methods.lora import Lora
from salun_core.metrics.generation.clip import Clip, in_hub_cache, load_clip
from salun_core.metrics.generation.imagenet import imagenet_judge, imagenet_numbers, spoken
from salun_core.models.diffusion.sampling import SAMPLERS
from salun_core.models.text_to_image.families import network_of
from salun_core.models.text_to_image.pipelines import fitted, image_size, load_pipeline, silent, too_long
from salun_core.paths import models_folder, project_root, shipped_folder
from salun_core.tasks.text_to_image import OPTIMIZERS, PRECISIONS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

COMMITTED = {
    "data/models/tiny-sd": "give a pipeline of your own",
    "data/models/tiny-sd-clip": "choose another clip: a folder, a model of the hub, or none",
}
ALL = ("original", "ft", "rl", "ga", "l1_sparse", "esd", "fmn", "ca", "uce", "salun", "salun_soft")
PARTS = "the digests of its parts are part of the key in its place"


class Pipeline(Group):
    """The pipeline to unlearn."""

    pipeline: str = parameter(
        "data/models/tiny-sd",
        "a diffusers folder, or the name of a model on the Hugging Face hub",
        no_effect=PARTS,
    )
    download: bool = parameter(
        False, "fetch a hub model that is not in the cache", no_effect="the same files either way"
    )
    pickle: bool = parameter(
        False, "also read weights that are not safetensors, with the restricted reader", no_effect=PARTS
    )
    safety_checker: bool = parameter(
        True, "False turns the safety checker of the pipeline off", no_effect="samples are drawn without it"
    )
    half: bool = parameter(False, "keep what is not trained in bfloat16", no_effect=PARTS)


class Naming(Group):
    """How classes are called in prompts."""

    class_names: tuple[str, ...] = parameter(
        (), "names of the classes in prompts; those of the data by default", repeats=True
    )
    class_prompt: str = parameter(
        "an image of a {}", "the prompt of a class in forgetting, {} for its name; digits have their own"
    )
    test_prompts: tuple[str, ...] = parameter(
        (), "prompts that models are measured with; digits have their own, of four kinds"
    )
    replacement: int | str | None = parameter(
        None, "the class that takes the place of the forgotten one; the next by default"
    )

    @field_validator("class_names")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() for name in value):
            raise UserError(f"class_names {list(value)} holds an empty name: give every class one")
        return value

    @field_validator("class_prompt", "test_prompts")
    @classmethod
    def _placed(cls, value: Any, info: ValidationInfo) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1:
                raise UserError(
                    f"{info.field_name} {text!r} must hold {{}} once, where the class name goes, and no other brace"
                )
        return value


class TextForgetting(Forgetting):
    """The losses of forgetting: see ``TextToImageTask``."""

    batch_size: int = parameter(8, "images of each set in a step", ge=1)
    precision: str = parameter(
        "fp32", "of the training passes: " + ", ".join(PRECISIONS) + "; weights and optimiser stay in fp32"
    )
    optimizer: str = parameter("adam", ", ".join(OPTIMIZERS) + "; adafactor keeps almost no state")
    gradient_checkpointing: bool = parameter(False, "compute activations twice instead of keeping them")
    grad_clip: float = parameter(
        1.0, "largest norm of the gradient of a step; 0 for no limit, as in the released code", ge=0
    )

    choices: ClassVar[dict[str, tuple[Any, str]]] = {
        **Forgetting.choices,
        "precision": (PRECISIONS, "precision"),
        "optimizer": (OPTIMIZERS, "optimiser"),
    }


class TextSteps(Steps):
    """Steps, and the adapters that may take the place of a mask."""

    lora_rank: int = parameter(4, "rank of the adapters", needs="masks has lora", ge=1)
    lora_lr: float | None = parameter(
        None, "their learning rate; forget_lr by default", needs="masks has lora", gt=0
    )


class TextSampling(Sampling):
    """How images are drawn."""

    sample_steps: int = parameter(50, "denoising steps", ge=1)
    sampler: str = parameter("ddim", "ddim, or lms as in the released code")
    sample_batch: int = parameter(
        8, "images denoised together", ge=1, no_effect="each image has noise of its own"
    )
    keep_models: bool = parameter(
        True, "keep what changed in each network", no_effect="says how much is kept of a result"
    )
    keep_samples: bool = parameter(
        True,
        "keep all images drawn, and not only the first of each class",
        no_effect="says how much is kept of a result",
    )

    choices: ClassVar[dict[str, tuple[Any, str]]] = {"sampler": (SAMPLERS, "sampler")}

    def refuse_more_steps(self, pipe: "DiffusionPipeline") -> None:
        """Refuse more denoising steps than the pipeline was trained with."""
        trained = int(pipe.scheduler.config.num_train_timesteps)
        if self.sample_steps > trained:
            raise UserError(
                f"sample_steps {self.sample_steps} is more than the {trained} steps of the pipeline: give {trained} or less"
            )


class TextJudging(Judging):
    """Who judges."""

    clip: str | None = parameter(
        None,
        "a CLIP model, folder or hub name, for CLIP score and accuracy; none to leave them out",
        no_effect="the digest of its weights is part of the key in its place",
    )
    judge_weights: Path | None = parameter(
        None,
        "weights of the judge imagenet; those in torch's cache by default",
        needs="judge is imagenet",
        no_effect="the digest of the weights is part of the key in its place",
    )

    ready_made: ClassVar[tuple[str, ...]] = (IMAGENET,)
    blank: ClassVar[tuple[str, ...]] = ("clip",)  # the same as none

    @property
    def downloads(self) -> tuple[str, ...]:
        """Those of the distance, and the judge that torchvision trained."""
        own = ("resnet50",) if self.judge == IMAGENET and self.judge_weights is None else ()
        return (*super().downloads, *own)


class TextToImageParams(GenerationParams):
    """Parameters of the text-to-image experiment."""

    experiment: ClassVar[str] = "text_to_image"
    kind: ClassVar[str] = "text_to_image"
    known_masks: ClassVar[tuple[str, ...]] = CHANGES

    methods: tuple[str, ...] = parameter(ALL, "methods beside the original, which is always the first row")
    masks: tuple[str, ...] = parameter(
        ("none", "salient", "random", "least_salient", "lora"), "for random labelling: " + ", ".join(CHANGES)
    )
    unlearned: tuple[Path, ...] = parameter(
        (),
        "networks that others have unlearned, each a row beside ours: diffusers folders, .safetensors, .pt, .ckpt",
        no_effect="the digest of its files is part of the key of its row",
    )
    pipeline: Pipeline = Pipeline()
    naming: Naming = Naming()
    forgetting: TextForgetting = TextForgetting()
    steps_of: TextSteps = TextSteps()
    sampling: TextSampling = TextSampling()
    judging: TextJudging = TextJudging()
    styles_and_captions: StylesAndCaptions = StylesAndCaptions()

    @model_validator(mode="after")
    def _one_class(self) -> "TextToImageParams":
        self.styles_and_captions.refuse_half(self.judging.clip)
        if self.unlearned and self.models > 1:
            raise UserError(
                f"unlearned networks have forgotten one class, and forget_class has {len(self.forget_class)}: give "
                "the one that they have forgotten, or together: true if they have forgotten all of them"
            )
        return self

    @property
    def downloads(self) -> tuple[str, ...]:
        """Those of the judge, and CLIP where it is neither in its folder nor in the hub's cache, nor may be fetched there."""
        clip = self.judging.clip == CLIP_NAME and not self.pipeline.download
        wanted = clip and not isinstance(source_of(CLIP_NAME), Path) and not in_hub_cache(CLIP_NAME)
        return (*super().downloads, *(("clip",) if wanted else ()))

    def names(self, data: ImageData) -> tuple[str, ...]:
        """What the classes are called in prompts."""
        digits = _digits(data)
        own = (NAMES[d] for d in digits) if digits else map(spoken, data.classes)
        names = self.naming.class_names or tuple(own)
        if len(names) != len(data.classes):
            raise UserError(
                f"class_names has {len(names)} names for {len(data.classes)} classes: give one each, or set it "
                "to [], to name them as the data do"
            )
        return names

    def prompts(self, data: ImageData) -> Prompts:
        """The prompts of every class: digits by the captions of tiny-sd, others by templates."""
        naming = self.naming
        digits = _digits(data)
        if digits and not naming.class_names and not naming.test_prompts:
            if naming.class_prompt != Naming.model_fields["class_prompt"].default:
                raise UserError(
                    f"class_prompt {naming.class_prompt!r} has no effect here, as digits have prompts of their own: give "
                    "class_names or test_prompts too, or leave class_prompt out"
                )
            by_kind = {
                kind: tuple(
                    tuple(c.text for c in captions(kind, "test") if c.digit == digit) for digit in digits
                )
                for kind in KINDS
            }
            return Prompts(tuple(photo_of(d) for d in digits), by_kind)
        names = self.names(data)
        templates = naming.test_prompts or ("Image of {}",)
        test = {FIRST: tuple(tuple(text.format(name) for text in templates) for name in names)}
        return Prompts(tuple(naming.class_prompt.format(name) for name in names), test)

    def load_pipe(self) -> "StableDiffusionPipeline":
        """The pipeline to unlearn, on its device."""
        how = self.pipeline
        pipe: Any = load_pipeline(
            source_of(how.pipeline),
            safety_checker=how.safety_checker,
            pickle=how.pickle,
            download=how.download,
            dtype=torch.bfloat16 if how.half else torch.float32,
            device=self.machine.ready(),
        )
        self.sampling.refuse_more_steps(pipe)
        if "lora" in self.masks:
            Lora(self.steps_of.lora_rank).refuse_full_rank(network_of(pipe))
        check_given(self.unlearned, pipe)
        return pipe

    def lab(self, *, data: ImageData | None = None, pipe: "StableDiffusionPipeline | None" = None) -> TextLab:
        """Load pipeline and data, and open the store.

        Parameters
        ----------
        data : ImageData, optional
            Use these images instead of ``dataset``.
        pipe : StableDiffusionPipeline, optional
            From `load_pipe`, if it is loaded already.
        """
        judging = self.judging
        refuse_missing(self.downloads)
        if judging.judge == IMAGENET:
            imagenet_judge(judging.judge_weights)  # refuses missing weights before anything large is read
        assert judging.inception is None or judging.inception.is_file()
        device, store = self.machine.ready(), self.machine.store()
        pipe = self.load_pipe() if pipe is None else pipe
        clip = clip_of(pipe, judging.clip, download=self.pipeline.download) if judging.clip else None
        data = self.data.load(size=image_size(pipe)) if data is None else data
        data = replace(data, images=fitted(data.images, image_size(pipe)).contiguous())
        prompts = self.prompts(data)
        sheets = self.styles_and_captions.sheets(self.names(data), image_size(pipe))
        refuse_long(pipe, prompts.training)
        drawn = [text for kind in prompts.test.values() for of_class in kind for text in of_class]
        remark_long(pipe, drawn, "to measure with")
        for name, sheet in sheets.items():
            remark_long(pipe, list(dict.fromkeys(sheet.texts)), f"of {name}")
        problem = Problem(
            data,
            pipe,
            prompts,
            self.forgetting,
            replacement=None
            if self.naming.replacement is None
            else class_number(data, self.naming.replacement, parameter="replacement", also=self.names(data)),
            together=tuple(self.forgotten(data)) if self.together else (),
            bf16=self.pipeline.half or self.forgetting.precision == "bf16",
        )
        imagenet = (
            imagenet_numbers(data.classes, self.naming.class_names) if judging.judge == IMAGENET else ()
        )
        for number in self.forgotten(data):
            problem.refuse_same_prompts(number)
        return TextLab(
            data,
            store,
            judging,
            self.sampling,
            device,
            problem=problem,
            lora_rank=self.steps_of.lora_rank,
            clip=clip,
            keep_models=self.sampling.keep_models,
            keep_samples=self.sampling.keep_samples,
            judge_weights=judging.judge_weights,
            imagenet=imagenet,
            sheets=sheets,
        )

    def settings_under(self, mask: str) -> dict[str, Any]:
        """SalUn's settings under a kind of mask; adapters may have a learning rate of their own."""
        settings, own = self.steps_of.of("salun"), self.steps_of.lora_lr
        return settings | ({"lr": own} if mask == "lora" and own else {})


def _digits(data: ImageData) -> list[int]:
    """The digits that the classes are; empty where they are something else."""
    of_digits = data.name == "digits" and all(name.isdigit() for name in data.classes)
    return [int(name) for name in data.classes] if of_digits else []


def refuse_long(pipe: "DiffusionPipeline", texts: Sequence[str]) -> None:
    """Refuse prompts of forgetting that the text encoder cuts off: the rest would be neither forgotten nor kept."""
    for i in too_long(pipe, texts):
        raise UserError(
            f"{_counted(pipe, texts[i])}, and what is cut off is neither forgotten nor kept: shorten class_prompt or "
            "class_names"
        )


def remark_long(pipe: "DiffusionPipeline", texts: Sequence[str], of: str) -> None:
    """Say how many prompts ``of`` something are cut off when images are drawn, and name the first."""
    if cut := too_long(pipe, texts):
        tqdm.write(
            f"{len(cut)} of {len(texts)} prompts {of} are cut off where the text encoder ends: "
            f"{_counted(pipe, texts[cut[0]])}; shorten them if the end matters",
            file=sys.stderr,
        )


def _counted(pipe: Any, text: str) -> str:
    with silent():
        count = len(pipe.tokenizer(text).input_ids)
    shown = text if len(text) <= 60 else f"{text[:59]}…"
    return f"the prompt {shown!r} has {count} tokens, and {pipe.tokenizer.model_max_length} are read"


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
    for folder in (project_root(), models_folder(), shipped_folder()):
        if (folder / model).is_dir():
            return folder / model
    if model in COMMITTED and not Path(model).is_dir():
        raise UserError(
            f"{model} comes with a checkout of the project and is not in {project_root()}: run in the checkout, "
            f"train it there with 'python -m salun_core train-tiny-sd', or {COMMITTED[model]}"
        )
    return model
