"""The denoising network of class-conditional diffusion, from diffusers and to diffusers folders."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from salun_core.errors import UserError, one_of
from salun_core.files import all_regular, read_config
from salun_core.models.diffusion.conditions import Condition, Embedded, with_null
from salun_core.networks import check_loaded
from salun_core.rng import isolated

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""Noise schedules: the DDPM paper's (1e-4 to 0.02 for 1000 steps), and the cosine one for small images."""


def build_unet(
    *,
    classes: int,
    channels: int,
    size: int,
    widths: Sequence[int],
    layers: int = 2,
    attention: Sequence[int] = (),
    head: int | None = None,
    dropout: float = 0.0,
    seed: int,
) -> "UNet2DModel":
    """Build a freshly initialised denoising network, conditioned on a class or on none.

    Parameters
    ----------
    classes : int
        K. The network embeds K + 1 conditions: number K is the null class, "no class in particular".
    channels, size : int
        Channels and height (= width) of the images.
    widths : sequence of int
        Channels at each resolution; the resolution halves from one to the next.
    layers : int
        Residual blocks at each resolution.
    attention : sequence of int
        Resolutions with self-attention, besides the middle of the network.
    head : int, optional
        Channels of an attention head; all in one head by default.
    dropout : float
        Inside the residual blocks.
    seed : int
        Of the initialisation. The global random state is left as it was.

    Raises
    ------
    UserError
        If the images cannot be halved that often, or a width is not a multiple of 4.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020; Ho and Salimans, Classifier-free
    diffusion guidance, 2022 (the null class).
    """
    from diffusers import UNet2DModel

    halvings = len(widths) - 1
    if halvings < 0 or size < 2**halvings or size % 2**halvings:
        raise UserError(
            f"images of {size} pixels cannot be halved {halvings} times: "
            f"choose an image_size that is a multiple of {2 ** max(halvings, 0)}, or give fewer widths"
        )
    if wrong := [width for width in widths if width < 4 or width % 4]:
        raise UserError(f"width {wrong[0]} is not a multiple of 4, which group normalisation needs")
    attends = [size // 2**level in attention for level in range(len(widths))]
    groups = next(g for g in (32, 16, 8, 4, 2) if all(width % g == 0 and width > g for width in widths))
    with isolated(seed, "initial weights"), quiet():
        return UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers,
            block_out_channels=tuple(widths),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            norm_num_groups=groups,
            attention_head_dim=head,
            dropout=dropout,
            num_class_embeds=classes + 1,
        ).train()


def like(model: "UNet2DModel", *, seed: int) -> "UNet2DModel":
    """A freshly initialised network of the same kind as ``model``."""
    from diffusers import UNet2DModel

    with isolated(seed, "initial weights"), quiet():
        return UNet2DModel.from_config(model.config).train()


def noise_schedule(schedule: str = "linear", *, steps: int = 1000) -> "DDPMScheduler":
    """How images turn into noise over ``steps`` diffusion steps.

    Parameters
    ----------
    schedule : str
        A key of ``SCHEDULES``.
    steps : int
        T.
    """
    from diffusers import DDPMScheduler

    if steps < 2:
        raise UserError(f"a diffusion needs at least 2 steps, got {steps}")
    name = SCHEDULES[one_of(schedule, SCHEDULES, "noise schedule")]
    return DDPMScheduler(num_train_timesteps=steps, beta_schedule=name, clip_sample=True)


def predict_noise(model: nn.Module, noisy: Tensor, times: Tensor, conditions: Condition) -> Tensor:
    """The noise in each image, (N, C, H, W), given its time step (N,) and what it should show.

    Conditions are classes, int64 (N,), for a class-conditional network, or embedded prompts, floats
    (N, L, D) or `Embedded`, for one that is conditioned on text. What is predicted is the noise, or what else
    the network was trained to predict (see `objectives`).
    """
    if isinstance(conditions, Embedded):
        return conditions.predicted(model, noisy, times)
    name = "encoder_hidden_states" if conditions.is_floating_point() else "class_labels"
    return model(noisy, times, **{name: conditions}, return_dict=False)[0]


def guided_noise(
    model: nn.Module,
    noisy: Tensor,
    times: Tensor,
    conditions: Condition,
    *,
    null: int | Condition,
    guidance: float,
) -> Tensor:
    r"""Classifier-free guidance, :math:`(1 + w)\,\epsilon_c - w\,\epsilon_\varnothing`.

    Parameters
    ----------
    model : nn.Module
        Denoising network.
    noisy, times, conditions
        As in `predict_noise`.
    null : int or Condition
        The condition that stands for none: number of the null class, or the embedded empty prompt (L, D).
    guidance : float
        w; 0 is the plain prediction. Libraries that call the plain prediction 1 count w + 1.
    """
    if not guidance:
        return predict_noise(model, noisy, times, conditions)
    both = with_null(conditions, null)
    of_condition, of_none = predict_noise(model, noisy.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
    return (1 + guidance) * of_condition - guidance * of_none


def class_count(model: nn.Module, what: str = "the denoising network") -> int:
    """K of a class-conditional network; its null class is number K.

    Parameters
    ----------
    model : nn.Module
        Denoising network.
    what : str
        Its name in messages.

    Raises
    ------
    UserError
        If the network takes no class.
    """
    embedding = getattr(model, "class_embedding", None)
    if not isinstance(embedding, nn.Embedding):
        raise UserError(
            f"{what} takes no class, so there is none it could forget: give one trained with num_class_embeds = K + 1"
        )
    return embedding.num_embeddings - 1


def save_diffusion(model: nn.Module, schedule: "DDPMScheduler", folder: Path | str) -> Path:
    """Write network and noise schedule as a diffusers folder (``DDPMPipeline.from_pretrained`` reads it)."""
    from diffusers import DDPMPipeline

    folder = Path(folder)
    try:
        with quiet():
            DDPMPipeline(unet=model, scheduler=schedule).save_pretrained(folder, safe_serialization=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    return folder


def load_diffusion(
    folder: Path | str, *, classes: int | None = None, channels: int | None = None, size: int | None = None
) -> tuple["UNet2DModel", "DDPMScheduler"]:
    """Read network and noise schedule from a diffusers folder; nothing is downloaded.

    Parameters
    ----------
    folder : path
        With ``unet/`` and ``scheduler/``, as `save_diffusion` and the pipelines of diffusers write it.
    classes, channels, size : int, optional
        Refuse a network that is made for other images.

    Raises
    ------
    UserError
        If a part is missing, damaged, of another kind, or made for other images.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    folder = Path(folder)
    _check_kind(folder)
    all_regular(folder)
    pickles = sorted((folder / "unet").glob("*.bin"))
    if pickles and not any((folder / "unet").glob("*.safetensors")):
        raise UserError(f"{pickles[0]} is a pickle, which can run code: convert it to safetensors")
    try:
        with quiet():
            model, info = UNet2DModel.from_pretrained(
                folder / "unet",
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
            schedule = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(
            f"the diffusion model in {folder} is incomplete or damaged: copy or train it again"
        ) from error
    check_loaded(info, folder / "unet")
    check_schedule(schedule, folder)
    if schedule.config.prediction_type != "epsilon":
        raise UserError(
            f"the network in {folder} predicts {schedule.config.prediction_type!r}: "
            "give one that predicts the noise ('epsilon')"
        )
    if model.config.out_channels != model.config.in_channels:
        raise UserError(f"the network in {folder} also predicts variances: give one that predicts noise only")
    if (
        model.config.sample_size is None
    ):  # nothing is said of it, and any size goes that can be halved as often
        model.register_to_config(sample_size=size)
    found = {"classes": class_count(model, f"the network in {folder}"), "channels": model.config.in_channels}
    found["size"] = model.config.sample_size
    if classes is not None and found["classes"] == classes - 1:
        raise UserError(
            f"the network in {folder} has {classes} classes and none that stands for no class: "
            f"give one trained with num_class_embeds = {classes + 1}"
        )
    other = "give the images it was trained on, or another network"
    for name, wanted, remedy in (
        ("classes", classes, other),
        ("channels", channels, other),
        ("size", size, f"set image_size to {found['size']}, or give another network"),
    ):
        if wanted is not None and found[name] is not None and found[name] != wanted:
            raise UserError(
                f"the network in {folder} is made for {name} = {found[name]}, but the images have {wanted}: {remedy}"
            )
    return model.eval(), schedule


def check_schedule(schedule: Any, source: Path | str) -> None:
    """Refuse a schedule of noise that is not finite.

    Raises
    ------
    UserError
        With the place that it comes from.
    """
    for name in ("betas", "alphas_cumprod"):
        values = getattr(schedule, name, None)  # flows have neither
        if isinstance(values, Tensor) and not torch.isfinite(values).all():
            raise UserError(
                f"the schedule of noise in {source} is not finite: copy scheduler/scheduler_config.json again"
            )


def _check_kind(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a diffusers folder with unet and scheduler")
    if (folder / "config.json").is_file() and not (folder / "unet").is_dir():
        raise UserError(
            f"{folder} is a network without its schedule of noise: put its files into unet/, and the "
            "scheduler_config.json that it was trained with into scheduler/ beside it"
        )
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise UserError(
                f"{folder} is not a diffusers folder, {part} is missing: give one with unet and scheduler"
            )
        kind = read_config(folder / part, infinite=part.startswith("scheduler")).get("_class_name", "")
        if part.startswith("unet") and kind != "UNet2DModel":
            raise UserError(f"{folder} holds a {kind}: a class-conditional diffusion needs a UNet2DModel")


def _no_false_alarm(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers' remarks about defaults out of notebooks."""
    # Masks are made in double precision, and diffusers warns of it although no layer objects.
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_no_false_alarm)
    loud = logging.getLogger("diffusers")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        yield
    finally:
        loud.setLevel(level)
