"""What every unlearning method promises, as checks to run on your own method.

Each check raises ``AssertionError`` with what was found. `check_method` runs them all.
"""

import copy
import dataclasses
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from salun_core.errors import UserError, one_of
from salun_core.methods.engine import Method, Unlearned, check_settings
from salun_core.models.diffusion.unet import build_unet
from salun_core.models.text_to_image.pipelines import check_pipeline
from salun_core.models.text_to_image.tiny_pipeline import build_tiny_sd
from salun_core.networks import copied
from salun_core.rng import generator, isolated
from salun_core.saliency import Mask, random_mask
from salun_core.tasks.base import Task
from salun_core.tasks.classification import classification_task
from salun_core.tasks.classification_training import Recipe
from salun_core.tasks.diffusion import diffusion_task
from salun_core.tasks.diffusion_training import DiffusionRecipe
from salun_core.tasks.text_to_image import text_to_image_task

MODES = ("training", "evaluation", "mixed")
NONSENSE: tuple[Any, ...] = (math.nan, math.inf, -math.inf, 1e300, True, "nonsense", [], {})


def check_method(method: Method, task: Task, *, maskable: bool = True, **settings: Any) -> None:
    """Run every check of this module.

    Parameters
    ----------
    method : Method
        The method to check.
    task : Task
        A small problem of a kind that it works on; copies of it are used.
    maskable : bool
        Whether it takes a mask. Retrain, which starts from random weights, does not.
    **settings
        Of the method, to make it quick.
    """
    check_refusals(method, task)
    for mode in MODES:
        check_pure(method, task, mode=mode, **settings)
    check_repeatable(method, task, **settings)
    if maskable:
        for keep in (0.02, 0.5, 0.95):
            weights = {name: w for name, w in task.model.named_parameters() if w.requires_grad}
            mask = random_mask(weights, keep=keep, rng=generator(0, "contract", keep))
            check_mask_held(method, task, mask, **settings)


def small_task(kind: str) -> Task:
    """A problem that is quickly computed, of a kind of task: its network has random weights.

    Parameters
    ----------
    kind : str
        "classification", "diffusion" or "text_to_image"; the last two need diffusers.
    """
    rng = generator(0, "contract", kind)
    images = {role: torch.rand(n, 1, 8, 8, generator=rng) for role, n in (("forget", 8), ("retain", 24))}
    labels = {"forget": torch.zeros(8, dtype=torch.int64), "retain": torch.arange(24) % 3 + 1}
    loaders: dict[str, Any] = {
        r: list(zip(images[r].split(8), labels[r].split(8), strict=True)) for r in images
    }
    if kind == "classification":
        return classification_task(_network(0), **loaders, build=_network, recipe=Recipe(epochs=1, lr=0.01))
    if kind == "diffusion":
        from diffusers import DDPMScheduler

        unet = build_unet(classes=4, channels=1, size=8, widths=(8, 16), layers=1, seed=0)
        recipe = DiffusionRecipe(steps=2, lr=1e-3, batch_size=8)
        return diffusion_task(unet, DDPMScheduler(), **loaders, recipe=recipe)
    one_of(kind, ("text_to_image",), "kind of task")
    sizes: dict[str, Any] = {"widths": (8, 16), "autoencoder": (8, 16), "text_width": 16, "text_layers": 1}
    pipe = check_pipeline(build_tiny_sd(("a", "dog", "cat"), size=8, text_length=8, seed=0, **sizes))
    asked = {"forget": ["a dog"] * 8, "retain": ["a cat"] * 24}
    parts: dict[str, Any] = {role: (images[role], asked[role]) for role in images}
    return text_to_image_task(pipe, **parts, replacement="a cat", batch_size=8)


def quick_settings(method: Method) -> dict[str, Any]:
    """Settings that make a method short, as far as it has them: two steps, or one epoch."""
    short = {"steps": 2} if "steps" in method.defaults else {"epochs": 1}
    return {name: value for name, value in short.items() if name in method.defaults}


def _network(seed: int) -> nn.Module:
    with isolated(seed, "initial weights"):
        layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(64, 4))


def check_pure(method: Method, task: Task, *, mode: str = "mixed", **settings: Any) -> Unlearned:
    """The method changes nothing that was there before, and returns a model of its own in evaluation mode.

    Its weights have the same names and shapes, and are finite.

    Parameters
    ----------
    method, task, **settings
        As in `check_method`.
    mode : str
        Of the model before: "training", "evaluation", or "mixed", in which every second part is in training mode,
        a weight is frozen, and the weights carry gradients of something else.
    """
    model = copied(task.model).train(mode == "training")
    if mode == "mixed":
        for place, part in enumerate(model.modules()):
            part.training = place % 2 == 0
        weights = [w for w in model.parameters() if w.requires_grad]
        if len(weights) > 1:
            weights[0].requires_grad_(False)
        for weight in weights[1:]:
            weight.grad = torch.full_like(weight, 0.25)
    twin = with_model(task, model)
    with unchanged(twin):
        result = method(twin, **settings)
    shared = storages(result.model) & storages(model)
    assert not shared, "the unlearned model shares memory with the task's own"
    still = [name or "the model" for name, part in result.model.named_modules() if part.training]
    assert not still, f"the unlearned model is returned in training mode: {still[0]}"
    assert all(math.isfinite(loss) for loss in result.losses), "a loss is not finite"
    before, after = tensors_of(model), tensors_of(result.model)
    kept = {name: value.shape for name, value in before.items()}
    assert {name: value.shape for name, value in after.items()} == kept, (
        "the unlearned model has other weights than the task's own, by name or shape"
    )
    wild = [
        name for name, value in after.items() if not value.isfinite().all() and before[name].isfinite().all()
    ]
    assert not wild, f"{wild[0]} of the unlearned model is not finite"
    return result


def check_repeatable(method: Method, task: Task, **settings: Any) -> None:
    """One seed gives one result, whatever ran before; and two runs differ from each other in nothing."""
    first = method(task, seed=3, **settings)
    torch.rand(3)
    again = method(task, seed=3, **settings)
    found = differences(tensors_of(first.model), tensors_of(again.model))
    assert not found, f"two runs with one seed differ in {found[0]}"
    assert first.losses == again.losses, "two runs with one seed have different losses"
    assert first.samples == again.samples, "two runs with one seed count different samples"


def check_mask_held(method: Method, task: Task, mask: Mask, **settings: Any) -> Unlearned:
    """Weights outside the mask are the same to the last bit, and the mask itself is left alone."""
    before = {name: marked.clone() for name, marked in mask.items()}
    result = method(task, mask=mask, seed=1, **settings)
    found = differences(before, mask)
    assert not found, f"the mask was changed: {found[0]}"
    changed = dict(result.model.named_parameters())
    for name, weight in task.model.named_parameters():
        free = mask.get(name, torch.zeros_like(weight, dtype=torch.bool))
        moved = int((changed[name] != weight)[~free].sum())
        assert not moved, f"{moved} weights of {name} moved although the mask holds them"
    return result


def check_refusals(method: Method, task: Task) -> None:
    """Nonsense in any setting, or an unknown setting, is refused in one sentence before the task is looked at."""
    stub = _Untouched(task.kind)
    assert_refused(lambda: method(stub, no_such_setting=1), "an unknown setting")
    for name, default in method.defaults.items():
        for value in NONSENSE:
            if isinstance(default, type(value)) and not isinstance(value, float):
                continue  # the type is right, and the method knows better which values are
            what = f"{name}={value!r}"
            assert_refused(lambda given={name: value}: method(stub, **given), what)
            assert_refused(lambda given={name: value}: check_settings(method, given), what)
    check_settings(method, method.defaults)


def assert_refused(call: Any, what: str) -> None:
    """The call raises `UserError`, with a sentence of one line."""
    said = ""
    try:
        call()
    except UserError as error:
        said = str(error)
    assert said, f"{what} was not refused"
    assert "\n" not in said, f"the refusal of {what} takes more than a line"


@contextmanager
def unchanged(task: Task) -> Iterator[None]:
    """Inside the block nothing of the task, and no global state, may change."""
    before = observed(task)
    yield
    found = differences(before, observed(task))
    assert not found, "these changed: " + ", ".join(found[:5])


def observed(task: Task) -> dict[str, Any]:
    """Everything that can be seen of a task and of the global state, by name; tensors are copied."""
    seen: dict[str, Any] = {}
    for name, part in task.model.named_modules():
        where = name or "the model"
        seen[f"training mode of {where}"] = part.training
        seen[f"identity of {where}"] = id(part)
        for attribute, value in vars(part).items():
            if attribute.endswith("_hooks") and isinstance(value, dict):
                seen[f"{attribute} of {where}"] = list(value)
    for kind, found in (("weight", task.model.named_parameters()), ("buffer", task.model.named_buffers())):
        for name, value in found:
            seen[f"{kind} {name}"] = value.detach().clone()
            seen[f"place of {kind} {name}"] = (id(value), value.data_ptr(), value.stride(), value.dtype)
            seen[f"requires_grad of {kind} {name}"] = value.requires_grad
            seen[f"gradient of {kind} {name}"] = None if value.grad is None else value.grad.clone()
    for role, part in getattr(task, "parts", {}).items():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                seen[f"{name} of the {role} set"] = value.clone()
    return seen | global_state()


def global_state() -> dict[str, Any]:
    """Random states of torch, numpy and Python, and the switches of torch."""
    state: dict[str, Any] = {
        "random numbers of torch": torch.get_rng_state(),
        "random numbers of numpy": str(np.random.get_state()),  # noqa: NPY002
        "random numbers of Python": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
    if torch.cuda.is_available():
        for number, values in enumerate(torch.cuda.get_rng_state_all()):
            state[f"random numbers of accelerator {number}"] = values
    return state


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names whose values are not the same, to the last bit, or that are on one side only."""
    names = [*before, *(name for name in after if name not in before)]
    return [name for name in names if not _same(before.get(name, "absent"), after.get(name, "absent"))]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def storages(model: nn.Module) -> set[int]:
    """Addresses of the memory behind weights and buffers."""
    return {t.untyped_storage().data_ptr() for t in tensors_of(model).values() if t.numel()}


def with_model(task: Task, model: nn.Module) -> Task:
    """The same task with another model."""
    if dataclasses.is_dataclass(task) and not isinstance(task, type):
        return dataclasses.replace(task, model=model)
    twin = copy.copy(task)
    vars(twin)["model"] = model
    return twin


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        # Bits and not values: NaN is itself, and 0 is not -0.
        return a.dtype == b.dtype and a.shape == b.shape and bool(_bits(a).equal(_bits(b)))
    return type(a) is type(b) and bool(a == b)


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat


class _Untouched:
    """A task of a kind that may not be asked for anything else."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the task was asked for its {name} before the settings were checked")
