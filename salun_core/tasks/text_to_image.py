"""Text-to-image: what a pipeline should forget, what replaces it, and what it should keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from salun_core.data.batches import Batches, Loader, captioned_batches
from salun_core.errors import UserError, one_of
from salun_core.models.diffusion.conditions import Condition
from salun_core.models.diffusion.objectives import TIMES, Objective, objective_of
from salun_core.models.text_to_image.families import family_of, network_of
from salun_core.models.text_to_image.pipelines import (
    Prompts,
    check_pipeline,
    encode_images,
    encode_prompts,
    too_long,
)
from salun_core.networks import check_trainable
from salun_core.tasks.diffusion_training import limited
from salun_core.tasks.noise_prediction import NoisePrediction

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZERS = ("adam", "adafactor")
Tokens = Literal["concept", "all", "padded"]
TOKENS = get_args(Tokens)


@dataclass(frozen=True)
class TextToImageTask(NoisePrediction):
    """The denoising network of a pipeline, with the latents and prompts it should forget and keep.

    Only this network is unlearned; text encoder and autoencoder are not needed any more once the task exists.

    Parameters
    ----------
    model : nn.Module
        The pipeline's ``UNet2DConditionModel``, or its transformer. Half precision is enough: methods train a
        copy in single precision.
    parts : mapping of str to Batches
        By role, at least "forget" and "retain": latents as `encode_images` gives them, and numbers of prompts.
        They may lie on the CPU: each batch is moved to the network.
    prompts : Prompts
        What the numbers mean; number 0 is the empty prompt.
    replacement : Tensor
        int64 (M,), number of the prompt c' that takes the place of each prompt; -1 where there is none.
    schedule : scheduler of diffusers
        How latents turn into noise, and with what objective the network was trained (see `objective_of`).
    times : str
        How flow matching draws time steps: "logit_normal" or "uniform".
    target, relabel_drop, mask_guidance, mask_draws, antithetic
        The losses of forgetting and of masks, see `NoisePrediction`.
    drop_share : float
        Share of prompts dropped in the loss the model was trained with.
    precision : str
        Of the training passes: "fp32", "bf16" or "fp16" (with scaled gradients). The weights that are
        trained and the optimiser's state stay in single precision.
    optimizer_name : str
        "adam", or "adafactor", whose state takes almost no memory.
    clip : float
        Largest norm of the gradient of a step; 0 for no limit.
    """

    model: nn.Module
    parts: Mapping[str, Batches]
    prompts: Prompts
    replacement: Tensor = field(repr=False)
    schedule: Any
    drop_share: float = 0.0
    precision: str = "fp32"
    optimizer_name: str = "adam"
    clip: float = 1.0
    times: str = "logit_normal"
    kind: str = "text_to_image"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.precision, PRECISIONS, "precision")
        one_of(self.optimizer_name, OPTIMIZERS, "optimiser")
        one_of(self.times, TIMES, "distribution of times")
        for role in ("forget", "retain"):
            if self.parts[role].n == 0:
                raise UserError(f"the {role} set holds no images: give at least one with its prompt")
        asked = self.parts["forget"].labels.unique().cpu()
        if (self.replacement[asked] < 0).any():
            number = int(asked[self.replacement[asked] < 0][0])
            raise UserError(
                f"the prompt {self.prompts.texts[number]!r} is to be forgotten but has no replacement: give one"
            )

    @property
    def forget(self) -> Batches:
        """Latents to forget, with the numbers of their prompts."""
        return self.parts["forget"]

    @property
    def retain(self) -> Batches:
        """Latents to keep, with the numbers of their prompts."""
        return self.parts["retain"]

    @property
    def null(self) -> int:
        """Number of the empty prompt."""
        return 0

    @property
    def drop(self) -> float:
        """Share of images that a network in training sees without their prompt."""
        return self.drop_share

    @property
    def objective(self) -> Objective:
        """What the network was trained with."""
        return objective_of(self.schedule, self.times)

    @property
    def autocast(self) -> torch.dtype | None:
        """Precision of the training passes, None for that of the weights."""
        return PRECISIONS[self.precision]

    def clean(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (N, C, h, w) drawn from their distributions, or their means without ``rng``."""
        mean, std = images.to(next(self.model.parameters()).device).chunk(2, dim=1)
        if rng is None:
            return mean
        return mean + std * torch.randn(tuple(mean.shape), generator=rng).to(mean)

    def wrong(self, conditions: Tensor, rng: torch.Generator) -> Tensor:
        """The replacement of each prompt."""
        return self.replacement.to(conditions.device)[conditions]

    def condition(self, conditions: Tensor) -> Condition:
        """What the network is given for prompts by number."""
        return self.prompts.rows(conditions)

    def tokens(self, which: Tokens = "concept") -> Tensor:
        """Tokens of each prompt, bool (M, L).

        Parameters
        ----------
        which : str
            "concept": those that the prompt's replacement lacks, or all if there are none. "all": everything
            between start and end. "padded": that, the end, and the padding.
        """
        one_of(which, TOKENS, "choice of tokens")
        ids, lengths = self.prompts.ids, self.prompts.lengths[:, None]
        places = torch.arange(ids.shape[1])[None]
        if which == "padded":
            return (places > 0).expand_as(ids)
        inside = (places > 0) & (places < lengths - 1)
        if which == "all":
            return inside
        marked = inside.clone()
        for number, other in enumerate(self.replacement.tolist()):
            if other >= 0:
                own = inside[number] & ~torch.isin(ids[number], ids[other])
                marked[number] = own if own.any() else inside[number]
        return marked

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Adam or Adafactor without weight decay, constant learning rate, gradients limited."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        made: torch.optim.Optimizer
        if self.optimizer_name == "adafactor":
            made = torch.optim.Adafactor(weights, lr=lr, weight_decay=0.0)
        else:
            made = torch.optim.Adam(weights, lr=lr)
        return limited(made, self.clip)

    def train(self, batches: Loader, *, seed: int) -> tuple[nn.Module, list[float]]:
        """Refused: these pipelines are not trained from scratch here."""
        raise UserError(
            "text-to-image pipelines are not retrained here: compare with the original and with the "
            "prompts that should stay"
        )


def text_to_image_task(
    pipe: "DiffusionPipeline",
    *,
    forget: Any,
    retain: Any,
    replacement: str | Mapping[str, str],
    batch_size: int = 8,
    gradient_checkpointing: bool = False,
    **settings: Any,
) -> TextToImageTask:
    """Encode images and prompts once, and make a task of them.

    ``task.forget`` holds what was encoded; a mask is made from it: ``saliency_mask(pipe.unet, task.forget, task.loss)``.

    Parameters
    ----------
    pipe : pipeline of diffusers
        From `load_pipeline`. After this only its denoising network is needed on the accelerator.
    forget, retain : (images, prompts) or iterable of them
        uint8 (N, 1 or 3, H, W) or floats in [0, 1], and a prompt for each image: all at once, or from a loader, also
        as dicts with ``pixel_values`` and ``prompts``. A loader is read once, and only latents are kept in memory.
    replacement : str or mapping of str to str
        The prompt that takes the place of a forgotten one: the same for all, or by prompt.
    batch_size : int
        Images in a step, of each set.
    gradient_checkpointing : bool
        Compute activations twice instead of keeping them. Switched on in the pipeline's own network.
    **settings
        Those of `TextToImageTask`.

    Raises
    ------
    UserError
        If images and prompts do not fit, a prompt is both to be forgotten and kept, a forgotten one has no
        replacement, a prompt is longer than the text encoder takes (the part that is cut off would be neither forgotten
        nor kept), or the network is wrapped for several devices.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size must be a whole number of at least 1, got {batch_size!r:.40}")
    check_trainable(network_of(pipe))  # before its configuration is read, which a wrapper hides
    check_pipeline(pipe)
    given = ("model", "parts", "prompts", "replacement", "schedule", "kind")
    known = [f.name for f in fields(TextToImageTask) if f.init and f.name not in given]
    for name in settings:
        one_of(name, known, "setting of a text-to-image task")
    read = {role: _read(pipe, source, role) for role, source in (("forget", forget), ("retain", retain))}
    asked = tuple(dict.fromkeys(read["forget"][1]))
    instead = dict.fromkeys(asked, replacement) if isinstance(replacement, str) else replacement
    if not isinstance(instead, Mapping) or not all(isinstance(text, str) for text in instead.values()):
        raise UserError(f"replacement is {replacement!r:.60}: give a prompt, or a dict from prompt to prompt")
    kept = set(read["retain"][1])
    if both := [text for text in asked if text in kept]:
        raise UserError(
            f"the prompt {both[0]!r:.80} is both to be forgotten and to be kept: give it on one side, or word the two apart"
        )
    if missing := [text for text in asked if text not in instead]:
        raise UserError(f"the prompt {missing[0]!r} is to be forgotten but has no replacement: give one")
    if gone := [instead[text] for text in asked if instead[text] in asked]:
        raise UserError(
            f"the prompt {gone[0]!r} is to be forgotten and cannot replace one: replace prompts by one that stays"
        )
    needed = [*asked, *(instead[text] for text in asked), *dict.fromkeys(read["retain"][1])]
    for i in too_long(pipe, needed):
        most = pipe.tokenizer.model_max_length
        raise UserError(f"the prompt {needed[i][:60]!r} has more than {most} tokens: shorten it for training")
    prompts = encode_prompts(pipe, needed)
    wrong = torch.full((len(prompts.texts),), -1)
    wrong[prompts.numbers(asked)] = prompts.numbers([instead[text] for text in asked])
    if gradient_checkpointing:
        network_of(pipe).enable_gradient_checkpointing()
    parts = {
        role: Batches(latents, prompts.numbers(texts), torch.arange(len(texts)), size=batch_size)
        for role, (latents, texts) in read.items()
    }
    settings = {"times": family_of(pipe).times, **settings}
    return TextToImageTask(network_of(pipe), parts, prompts, wrong, pipe.scheduler, **settings)


def _read(pipe: "DiffusionPipeline", source: Any, role: str) -> tuple[Tensor, list[str]]:
    """Latents and prompts of all images, encoded as they come."""
    at_once = isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor)
    latents, texts = [encode_images(pipe, torch.empty(0, 3, 1, 1).byte())], []
    for images, named in captioned_batches([source] if at_once else source, f"the {role} set"):
        latents.append(encode_images(pipe, images))
        texts += named
    return torch.cat(latents), texts
