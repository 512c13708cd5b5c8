"""What the methods share: rounds of batches, descent under a mask, and the record of a method."""

import inspect
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from salun_core.data.batches import Batch
from salun_core.errors import Diverged, UserError, one_of
from salun_core.methods.lora import Lora
from salun_core.methods.search import Range
from salun_core.methods.settings import BatchNormStats, Order, check_value
from salun_core.networks import copied, gradients
from salun_core.plugins import Failed, settings_of
from salun_core.rng import isolated
from salun_core.saliency import Mask, check_mask, restore_unmarked_
from salun_core.tasks.base import Task, settings_of_task
from salun_core.tasks.trace import Trace


@dataclass(frozen=True)
class Unlearned:
    """What a method returns.

    Parameters
    ----------
    model : nn.Module
        A new model in evaluation mode; the task's own is untouched.
    losses : list of float
        One entry per optimiser step (per epoch for retraining), in the unit of the task's loss.
    samples : int
        Images that went forward and backward, with repetition.

    Raises
    ------
    Failed
        If they are of other types: results are stored as they are.
    """

    model: nn.Module
    losses: list[float]
    samples: int

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise Failed(f"the unlearned model is a {type(self.model).__name__}: return a torch.nn.Module")
        if not isinstance(self.losses, list) or not all(isinstance(v, int | float) for v in self.losses):
            raise Failed(
                "the losses of an Unlearned are not a list of numbers: write loss.item() for each step"
            )
        if not isinstance(self.samples, int):
            raise Failed(
                f"the samples of an Unlearned are a {type(self.samples).__name__}: give a whole number"
            )


@dataclass(frozen=True)
class Method:
    """A method and what the tables, the tuning and the checks need to know of it.

    Parameters
    ----------
    run : callable
        ``run(task, *, mask=None, seed=0, **settings) -> Unlearned``.
    label : str
        Name in tables and figures.
    tasks : tuple of str
        Kinds of task it works on; empty for all.
    mask : str
        Mask it is run with unless told otherwise: "none" or "salient".
    search : mapping of str to Range
        Bounds within which its settings are tuned; empty where there is nothing to tune.
    source : str
        Where the method comes from.
    like : Method, optional
        Method whose settings it hands on through ``**settings``.
    check : callable, optional
        Raises `UserError` for settings that are right by themselves and not together. It is given all of them.
    """

    run: Callable[..., Unlearned]
    label: str
    tasks: tuple[str, ...] = ()
    mask: str = "none"
    search: Mapping[str, Range] = field(default_factory=dict)
    source: str = ""
    like: "Method | None" = None
    check: Callable[[Mapping[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        # So that `help`, `?` and `inspect.signature` tell of the function behind, not of this class.
        object.__setattr__(self, "__signature__", self._signature())
        object.__setattr__(self, "__doc__", self._help())

    def _signature(self) -> inspect.Signature:
        """That of ``run``, with the settings it hands on written out."""
        signature = inspect.signature(self.run)
        own = list(signature.parameters.values())
        if self.like is None:
            return signature
        listed = [p for p in own if p.kind is not p.VAR_KEYWORD]
        more = [
            p
            for p in self.like._signature().parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in signature.parameters
        ]
        return signature.replace(parameters=listed + more)

    def _help(self) -> str:
        signature = self._signature()
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        call = f"{self.name}{signature.replace(parameters=plain, return_annotation=signature.empty)}"
        call = textwrap.fill(call, 100, subsequent_indent="    ", break_long_words=False)
        about = [inspect.getdoc(method.run) or "" for method in (self, self.like) if method]
        more = f"\n\nThe settings of {self.like.label}\n\n" if self.like else ""
        return f"{call}\n\n{more.join(about)}"

    def __repr__(self) -> str:
        return f"<unlearning method {self.name}>"

    @property
    def defaults(self) -> dict[str, Any]:
        """Every setting of the method with its default; the mask and what makes it are not settings."""
        settings = {
            p.name: p.default for p in self._signature().parameters.values() if p.kind is p.KEYWORD_ONLY
        }
        return {name: value for name, value in settings.items() if name not in ("mask", "seed", "keep")}

    @property
    def name(self) -> str:
        """Of the function behind; what is put together from others has that of its kind."""
        return getattr(self.run, "__name__", type(self.run).__name__)

    @property
    def module(self) -> str:
        """Dotted name of the module that defines the method."""
        return self.run.__module__

    def __call__(self, task: Task, *unnamed: Any, **settings: Any) -> Unlearned:
        """Run the method; refuse a task of another kind, and settings that `check_settings` refuses.

        Gradients are recorded, also inside ``torch.no_grad``.
        """
        if not isinstance(getattr(task, "kind", None), str):
            raise UserError(
                f"{self.label} was given a {type(task).__name__} to unlearn: give a task, from classification_task, "
                "diffusion_task or text_to_image_task"
            )
        if unnamed:
            raise UserError(
                f"{self.label} was given a {type(unnamed[0]).__name__} without a name: write mask=… or the name of the "
                f"setting, one of {', '.join(self.defaults)}"
            )
        if self.tasks and task.kind not in self.tasks:
            raise UserError(f"{self.label} works on {', '.join(self.tasks)} only, not on {task.kind}")
        if not (own := settings_of(self)) & {"**"}:
            for name in settings.keys() & settings_of_task(task) - own:
                raise UserError(
                    f"unknown setting of {self.label} {name!r}: it is one of the task, give it to "
                    f"{task.kind}_task(…, {name}=…)"
                )
        check_settings(
            self, {name: value for name, value in settings.items() if name not in ("mask", "seed")}
        )
        mask = settings.get("mask")
        if not (mask is None or isinstance(mask, Mapping | Lora)):
            raise UserError(
                f"{self.label}: mask is a {type(mask).__name__}: give one from saliency_mask or load_mask"
            )
        check_value(f"{self.label}: seed", settings.get("seed", 0), int, most=math.inf)
        with gradients():
            found = self.run(task, **settings)
        if not isinstance(found, Unlearned):
            raise Failed(
                f"{self.label} returned a {type(found).__name__}: a method returns an Unlearned, as descend does"
            )
        return found


def check_settings(method: Method, settings: Mapping[str, Any]) -> None:
    """Refuse settings that a method does not have, or whose values it cannot use.

    The types of the method's parameters say what it can use, see `methods.settings`; nothing is computed.

    Parameters
    ----------
    method : Method
        One of ``METHODS``, or another.
    settings : mapping
        Values by name, on top of the defaults.

    Raises
    ------
    UserError
        One sentence that names the method, the setting, the value, and what to give instead.
    """
    parameters = {
        p.name: p for p in method._signature().parameters.values() if p.name not in ("mask", "seed")
    }
    known = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in settings.items():
        if not anything:
            one_of(name, known, f"setting of {method.label}")
        kind = parameters[name].annotation if name in known else inspect.Parameter.empty
        if kind is not inspect.Parameter.empty:
            remedy = _advice(method, name, parameters[name].default)
            check_value(f"{method.label}: {name}", value, kind, remedy=remedy)
    if method.check is not None:
        method.check({**method.defaults, **settings})


def check_search(method: Method, search: Mapping[str, Range]) -> None:
    """Refuse bounds within which a method could not run, as `check_settings` refuses a setting."""
    for name, bounds in search.items():
        for value in bounds.choices or (bounds.at(0), bounds.at(1)):
            check_settings(method, {name: value})


def _advice(method: Method, name: str, default: Any) -> str:
    bounds = method.search.get(name)
    if bounds is not None and not bounds.choices:
        return f"give one from {bounds.low:g} to {bounds.high:g}, where it is usually searched"
    return f"the default is {default!r}"


@dataclass(frozen=True)
class Round:
    """The data of one optimiser step, and ``progress``, the share of the run that lies behind it, in [0, 1).

    The share grows from epoch to epoch; in a run of one epoch, or of a number of steps, from step to step.
    """

    forget: Batch | None
    retain: Batch | None
    progress: float

    @property
    def samples(self) -> int:
        """Images in this round."""
        return sum(len(batch[0]) for batch in (self.forget, self.retain) if batch is not None)


def rounds(
    task: Task, rng: torch.Generator, *, order: Order, epochs: int, steps: int | None = None
) -> Iterator[Round]:
    """Cut a run into optimiser steps.

    Parameters
    ----------
    task : Task
        Gives the forget and the retain set.
    rng : torch.Generator
        Order and augmentation of the batches.
    order : str
        "forget" or "retain": only that set. "forget_then_retain": in each epoch every forget batch, then
        every retain batch. "interleaved": the same batches in random order. "joint": every step takes a
        forget batch together with a retain batch; an epoch is one pass over the forget set.
    epochs : int
        Passes, at least 1.
    steps : int, optional
        End after this many optimiser steps instead, repeating epochs as needed.
    """
    for name, value, kind in (
        ("order", order, Order),
        ("epochs", epochs, PositiveInt),
        ("steps", steps, PositiveInt | None),
    ):
        check_value(name, value, kind)
    retain_stream = _endless(task, rng) if order == "joint" else iter(())
    by_step = steps is not None or epochs == 1  # by epochs, a run of one epoch would never be under way
    total = round_count(task, order=order, epochs=epochs, steps=steps) if by_step else epochs
    done = 0
    for epoch in itertools.count():
        if steps is None and epoch >= epochs:
            return
        for forget, retain in _epoch(task, rng, order, retain_stream):
            if steps is not None and done >= steps:
                return
            yield Round(forget, retain, (done if by_step else epoch) / total)
            done += 1


def round_count(task: Task, *, order: Order, epochs: int, steps: int | None = None) -> int:
    """Number of optimiser steps that `rounds` will give."""
    forget, retain = len(task.forget), len(task.retain)
    an_epoch = {"forget": forget, "joint": forget, "retain": retain}.get(order, forget + retain)
    return steps if steps is not None else epochs * an_epoch


def _epoch(
    task: Task, rng: torch.Generator, order: Order, retain_stream: Iterator[Batch]
) -> Iterator[tuple[Batch | None, Batch | None]]:
    if order == "joint":
        for batch in task.forget.shuffled(rng):
            yield batch, next(retain_stream)
    elif order == "interleaved":
        forget, retain = task.forget.shuffled(rng), task.retain.shuffled(rng)
        from_forget = torch.randperm(len(task.forget) + len(task.retain), generator=rng) < len(task.forget)
        for first in from_forget.tolist():
            drawn = next(forget if first else retain, None)
            if drawn is None:
                raise UserError(
                    f"{'forget' if first else 'retain'} gives fewer batches than its len() says: mend its __len__"
                )
            yield (drawn, None) if first else (None, drawn)
    else:
        if order != "retain":
            for batch in task.forget.shuffled(rng):
                yield batch, None
        if order != "forget":
            for batch in task.retain.shuffled(rng):
                yield None, batch


def _endless(task: Task, rng: torch.Generator) -> Iterator[Batch]:
    while True:
        yield from task.retain.shuffled(rng)


Losses = Callable[[nn.Module], Iterable[tuple[Tensor, int]]]
"""Given the model in training, yields the loss of each step and the number of images behind it."""


def descend(
    task: Task,
    losses: Losses,
    *,
    lr: float,
    mask: Mask | Lora | None,
    seed: int,
    bn_stats: BatchNormStats = "update",
    decay_unmarked: bool = False,
    prepare: Callable[[nn.Module, torch.optim.Optimizer], None] | None = None,
) -> Unlearned:
    """Minimise a sequence of losses from the task's model, changing only the weights in ``mask``.

    Parameters
    ----------
    task : Task
        Gives the model to start from and the optimiser.
    losses : callable
        See `Losses`.
    lr : float
        Learning rate, constant.
    mask : Mask, Lora or None
        Weights that may change; None for all. `Lora` changes layers by adapters of low rank instead.
    seed : int
        For dropout inside the model, and the first values of adapters.
    bn_stats : str
        "update": running statistics of BatchNorm follow the batches seen, as in the released code, also
        under a mask. "freeze": they stay, and the layers normalise with them.
    decay_unmarked : bool
        Only to reproduce the released code before February 2026: mask the gradient and nothing else, so
        that weight decay moves the weights outside the mask.
    prepare : callable, optional
        Called once with the model and its optimiser before the first step, to hook into the optimiser's steps.
        Weights outside the mask are restored after those hooks. Not with adapters, which leave the weights
        alone until the end.

    Raises
    ------
    UserError
        If a setting is out of range, the mask does not fit, or the loss stops being finite.
    """
    check_value("bn_stats", bn_stats, BatchNormStats)
    check_value("lr", lr, PositiveFloat)
    model = trainable_copy(task.model)
    adapters = None
    if isinstance(mask, Lora):
        if prepare is not None:
            raise UserError(
                "this method changes weights after each step: use it with a mask, not with adapters"
            )
        with isolated(seed, "adapters"):
            adapters, mask = mask.attach(model), None
    if mask is not None:
        check_mask(mask, model)
        mask = {
            name: mask[name].to(weight.device) for name, weight in model.named_parameters() if name in mask
        }
    # What may not change at all needs no gradient and no state of the optimiser.
    fixed = [] if mask is None or decay_unmarked else unmarked_weights(model, mask)
    for weight in fixed:
        weight.requires_grad_(False)
    set_train_mode(model, bn_stats=bn_stats)
    optimizer = task.optimizer(model, lr)
    if prepare is not None:
        prepare(model, optimizer)
    # Gradients in half precision would vanish: they are taken of a multiple of the loss, and divided again.
    scaled = getattr(task, "precision", "fp32") == "fp16"
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=scaled)
    values, samples = Trace(), 0
    with isolated(seed, "descend"):
        for value, images in losses(model):
            if not value.requires_grad:
                raise UserError(
                    "the mask marks no weight: choose a larger keep"
                    if mask is not None and not any(marked.any() for marked in mask.values())
                    else "no gradient comes back from the model: leave out torch.no_grad and detach inside it"
                )
            scaler.scale(value).backward()
            if mask is not None and decay_unmarked:
                mask_gradients_(model, mask)
            scaler.step(optimizer)
            scaler.update()
            if mask is not None and not decay_unmarked:
                # Masking the gradient would not hold these weights: decay and momentum move them too.
                restore_unmarked_(model, task.model, mask)
            optimizer.zero_grad()  # now, so that no gradients are held while the next loss is computed
            values.add(value)
            samples += images
    trace = values.values().double().tolist()
    for step, value_ in enumerate(trace):
        if not math.isfinite(value_):
            raise Diverged(f"the loss stopped being finite at step {step + 1}: lower the learning rate {lr}")
    for weight in fixed:
        weight.requires_grad_(True)
    if adapters is not None:
        model = Lora.merge(adapters)
    return Unlearned(model.eval(), trace, samples)


def unmarked_weights(model: nn.Module, mask: Mask) -> list[nn.Parameter]:
    """The trainable weights of which the mask marks no entry."""
    return [w for name, w in model.named_parameters() if w.requires_grad and not mask[name].any()]


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy whose weights can be trained: in single precision where the model has half of it.

    Frozen weights stay frozen, unless all are.
    """
    twin = copied(model)
    if not any(weight.requires_grad for weight in twin.parameters()):
        twin.requires_grad_(True)
    return twin.float() if any(w.itemsize < 4 for w in twin.parameters()) else twin


def set_train_mode(model: nn.Module, *, bn_stats: BatchNormStats) -> None:
    """Switch to training mode, with BatchNorm layers left in evaluation mode for ``bn_stats="freeze"``."""
    model.train()
    if bn_stats == "freeze":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def mask_gradients_(model: nn.Module, mask: Mask) -> None:
    """Zero the gradient of every weight outside ``mask``."""
    for name, weight in model.named_parameters():
        if weight.grad is not None and name in mask:
            weight.grad.mul_(mask[name])
