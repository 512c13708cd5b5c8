"""Training a diffusion model from scratch: counted in steps, resumed from checkpoints, averaged weights."""

import copy
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from salun_core.data.batches import Batch, Loader
from salun_core.errors import UserError, one_of
from salun_core.files import write_whole
from salun_core.rng import generator, isolated
from salun_core.tasks.trace import Trace

DECLINES = ("constant", "cosine")

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]


@dataclass(frozen=True)
class DiffusionRecipe:
    """How a denoising network is trained from scratch.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    lr : float
        Learning rate of Adam, reached after ``warmup`` steps.
    batch_size : int
        Images in a step.
    decline : str
        "constant", or "cosine" to 0.
    warmup : int
        Steps of linear increase.
    ema : float
        Decay of the running average of the weights, which is what training returns; 0 for the last weights.
    clip : float
        Largest norm of the gradient of a step; 0 for no limit.
    drop : float
        Share of images trained without their class, for guidance.
    """

    steps: int
    lr: float = 2e-4
    batch_size: int = 128
    decline: str = "constant"
    warmup: int = 0
    ema: float = 0.0
    clip: float = 1.0
    drop: float = 0.1

    def __post_init__(self) -> None:
        one_of(self.decline, DECLINES, "decline of the learning rate")
        for name, ok, what in (
            ("steps", self.steps >= 1, "at least 1"),
            ("lr", self.lr > 0, "positive"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("clip", self.clip >= 0, "at least 0"),
            ("drop", 0 <= self.drop < 1, "in [0, 1)"),
        ):
            if not ok:
                raise UserError(f"{name} must be {what}, got {getattr(self, name)}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decline == "constant":
            return self.lr
        left = max(self.steps - self.warmup, 1)
        return self.lr * (1 + math.cos(math.pi * (step - self.warmup) / left)) / 2


DIFFUSION_RECIPES: dict[str, DiffusionRecipe] = {
    # As released: 800,000 steps of Adam; averaged weights were kept, but the last ones sampled and unlearned.
    "paper": DiffusionRecipe(steps=800_000, lr=2e-4, batch_size=128),
}


def adam(model: nn.Module, lr: float, *, clip: float = 1.0) -> torch.optim.Optimizer:
    """Adam without weight decay, its gradients limited to norm ``clip`` (0 for no limit)."""
    return limited(torch.optim.Adam(model.parameters(), lr=lr), clip)


def limited(optimizer: torch.optim.Optimizer, clip: float) -> torch.optim.Optimizer:
    """The optimiser, its gradients limited to norm ``clip`` (0 for no limit) before each step."""
    if clip:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]

        def limit(*_: Any) -> None:
            vars(optimizer)["norm_and_limit"] = (nn.utils.clip_grad_norm_(weights, clip), clip)

        optimizer.register_step_pre_hook(limit)
    return optimizer


def gradient_scale(optimizer: torch.optim.Optimizer) -> float:
    """What the limit of `limited` left of the last gradient, as a factor in (0, 1]; 1 without a limit."""
    norm, clip = vars(optimizer).get("norm_and_limit", (0.0, 1.0))
    return min(1.0, clip / (float(norm) + 1e-6))  # as clip_grad_norm_ does it


def train_diffusion(
    model: nn.Module,
    batches: Loader,
    loss: Loss,
    *,
    recipe: DiffusionRecipe,
    seed: int,
    checkpoint: Path | None = None,
    every: float = 120.0,
    deadline: float | None = None,
    identity: str = "",
    progress: bool = False,
) -> tuple[nn.Module, list[float]]:
    """Train ``model`` in place on ``batches``.

    Parameters
    ----------
    model : nn.Module
        Freshly initialised, on the device of the images.
    batches : Batches or Stream
        The training set; its ``size`` is replaced by the recipe's.
    loss : callable
        ``loss(model, batch, rng)``, a mean over the batch.
    recipe : DiffusionRecipe
        Length and optimiser settings.
    seed : int
        Order of the images, augmentation, noise, dropout.
    checkpoint : path, optional
        File to continue from and to save to. A continued run gives the same weights as one that was never
        interrupted. At the end it holds the finished model, to be deleted when what that leads to is stored.
    every : float
        Seconds between two checkpoints.
    deadline : float, optional
        Reading of ``time.monotonic()`` at which to save and stop (with `Paused`), where machines are lent for
        minutes; needs a checkpoint.
    identity : str
        Names what is trained; a checkpoint of something else is refused.
    progress : bool
        A bar on stderr with the time left.

    Returns
    -------
    model, losses
        The same model, in evaluation mode, and the mean loss of each pass through the data.

    Raises
    ------
    UserError
        If the loss stops being finite: with the step, and the last good checkpoint kept.
    """
    steps = batches.resized(recipe.batch_size)
    if not steps.n:
        raise UserError("there are no images to train on: choose another class to forget")
    optimizer = adam(model, recipe.lr, clip=recipe.clip)
    average = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None
    state = _State(identity, model, average, optimizer)
    saved = clock = time.monotonic()
    with isolated(seed, "train diffusion"):
        done = state.load(checkpoint) if checkpoint is not None else 0
        bar = tqdm(
            total=recipe.steps, initial=done, desc="training", unit="step", leave=False, disable=not progress
        )
        model.train()
        for step, batch in _from(steps, seed, done, recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step)
            value = loss(model, batch, generator(seed, "noise", step))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if average is not None:
                _follow_(average, model, min(recipe.ema, (1 + step) / (10 + step)))
            state.recent.add(value)
            bar.update()
            last = step + 1 == recipe.steps
            if last or (step + 1) % 100 == 0:
                state.check(recipe.lr)  # reads the losses: on an accelerator this waits for them
                bar.set_postfix_str(f"loss {state.values[-1]:.4f}")
            if checkpoint is None:
                continue
            now = time.monotonic()
            late = deadline is not None and now > deadline and not last
            if last or late or now > saved + every:
                state.check(recipe.lr)
                state.seconds += now - clock
                state.save(checkpoint, step + 1)
                saved = clock = now
            if late:
                bar.close()
                raise Paused(f"stopped after {step + 1} of {recipe.steps} steps: run again to continue")
        bar.close()
    if average is not None:
        with torch.no_grad():
            for weight, mean in zip(model.parameters(), average.parameters(), strict=True):
                weight.copy_(mean)
    passes = [state.values[i : i + len(steps)] for i in range(0, len(state.values), len(steps))]
    return model.eval(), [sum(part) / len(part) for part in passes]


def seconds_behind(checkpoint: Path) -> float:
    """Seconds of training that led to a checkpoint, over all its runs; 0 where there is none that can be read."""
    try:
        return float(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["seconds"])
    except Exception:  # training itself says what is wrong with the file
        return 0.0


class Paused(UserError):
    """Training that ran out of its share of time, with a checkpoint to continue from."""


class _State:
    """What a checkpoint holds."""

    def __init__(
        self, identity: str, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
    ) -> None:
        self.identity, self.model, self.average, self.optimizer = identity, model, average, optimizer
        self.values: list[float] = []
        self.seconds = 0.0
        self.recent = Trace()

    def check(self, lr: float) -> None:
        """Move recent losses to ``values``; refuse one that is not finite."""
        for value in self.recent.values().tolist():
            if not math.isfinite(value):
                step = len(self.values) + 1
                raise UserError(f"training diverged at step {step}: lower the learning rate {lr}")
            self.values.append(value)
        self.recent = Trace()

    def save(self, path: Path, step: int) -> None:
        """Write everything that the next step depends on."""
        content = io.BytesIO()
        parts = {
            "identity": self.identity,
            "step": step,
            "seconds": self.seconds,
            "values": self.values,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        torch.save(parts, content)
        write_whole(path, content.getvalue())

    def load(self, path: Path) -> int:
        """Continue from ``path`` if it is there; returns the number of steps done."""
        if not path.is_file():
            return 0
        try:
            parts = torch.load(path, map_location="cpu", weights_only=True)
            if parts["identity"] != self.identity:
                raise UserError(f"{path} is a checkpoint of other settings: delete it or name another file")
            self.model.load_state_dict(parts["model"])
            if self.average is not None:
                self.average.load_state_dict(parts["average"])
            self.optimizer.load_state_dict(parts["optimizer"])
            self.values = list(parts["values"])
            self.seconds = float(parts["seconds"])
            torch.set_rng_state(parts["cpu"])
            if len(parts["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(parts["cuda"])
            return int(parts["step"])
        except UserError:
            raise
        except Exception as error:  # a truncated pickle can raise almost anything
            raise UserError(f"the checkpoint {path} is damaged: delete it to start again") from error


def _from(batches: Loader, seed: int, done: int, steps: int) -> Iterator[tuple[int, Batch]]:
    """Number and batch of every step from ``done`` on: each pass through the data has its own stream."""
    step = done - done % len(batches)
    for epoch in itertools.count(done // len(batches)):
        for batch in batches.shuffled(generator(seed, "pass", epoch)):
            if step >= steps:
                return
            if step >= done:
                yield step, batch
            step += 1


@torch.no_grad()
def _follow_(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
