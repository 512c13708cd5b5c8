"""What a saliency mask costs: once, to compute it, and in each optimiser step."""

import copy

import torch
from torch import nn

from benchmarks.measure import Row, in_turn
from benchmarks.problems import DEVICE, noise_images, problem
from salun_core.data.batches import Batches
from salun_core.methods import METHODS
from salun_core.models.diffusion.unet import build_unet, noise_schedule
from salun_core.rng import generator
from salun_core.saliency import random_mask, restore_unmarked_, saliency_mask
from salun_core.tasks.base import Task
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import DiffusionRecipe

STEP_BOUND = 0.05  # share of a step
PASS_BOUND = 1.2  # forward-and-backward passes over the forget set
STEPS = 2


def run(*, small: bool) -> list[Row]:
    """The mask of a classifier and of a diffusion model, against a pass over the forget set; then the steps under it."""
    width, batch = (8, 32) if small else (64, 64)
    classifier = problem(width=width, images=1280, batch=32)
    denoiser = diffusion_problem(small=small)
    repeats = 3 if small else 5
    return [
        computed(f"mask of ResNet-18, {size(classifier)}", classifier, repeats=repeats),
        computed(f"mask of a diffusion UNet, {size(denoiser)}", denoiser, repeats=repeats),
        in_steps(problem(width=width, images=batch * 4, batch=batch), repeats=repeats),
    ]


def computed(what: str, task: Task, *, repeats: int) -> Row:
    """Scores and selection of the top half, against one forward-and-backward pass over the forget set."""
    model = copy.deepcopy(task.model).eval()

    def one_pass() -> None:
        rng = generator(0, "pass")
        for batch in task.forget:
            task.loss(model, batch, rng).backward()
        model.zero_grad()

    def mask() -> object:
        return saliency_mask(model, task.forget, task.loss, keep=0.5)

    ours, plain = in_turn(mask, one_pass, repeats=repeats)
    note = (
        f"the mask costs {ours / plain:.2f} passes over the forget set; the bound of {PASS_BOUND:g} "
        f"{'holds' if ours / plain < PASS_BOUND else 'is missed'}"
    )
    return Row(what, ours, plain, note=note)


def in_steps(task: Task, *, repeats: int) -> Row:
    """Random labelling with and without a mask, the same steps."""
    mask = random_mask(dict(task.model.named_parameters()), keep=0.5, rng=generator(0, "mask"))

    def with_mask() -> object:
        return METHODS["rl"](task, mask=mask, steps=STEPS, lr=0.01)

    def without() -> object:
        return METHODS["rl"](task, steps=STEPS, lr=0.01)

    ours, plain = in_turn(with_mask, without, repeats=repeats)
    # Two long times differ by noise as well, so the work that a mask adds is timed by itself besides.
    changed = copy.deepcopy(task.model)
    alone, _ = in_turn(
        lambda: restore_unmarked_(changed, task.model, mask), lambda: None, repeats=4 * repeats
    )
    cost, share = ours / plain - 1, alone / (plain / STEPS)
    note = (
        f"a mask costs {100 * cost:.1f}% of a step by the difference, {100 * share:.1f}% by itself; "
        f"the bound of {100 * STEP_BOUND:g}% {'holds' if share < STEP_BOUND else 'is missed'}"
    )
    return Row(f"steps under a mask, ResNet-18, {size(task)}", ours, plain, note=note)


def diffusion_problem(*, small: bool) -> DiffusionTask:
    """An untrained class-conditional UNet with the same images to forget and to keep."""
    widths, count = ([8, 16], 32) if small else ([32, 64, 64], 128)
    pixels, labels = (part.to(DEVICE) for part in noise_images(count))
    batches = Batches(pixels, labels, torch.arange(count), size=64)

    def build(seed: int) -> nn.Module:
        return build_unet(classes=10, channels=3, size=32, widths=widths, layers=1, seed=seed).to(DEVICE)

    parts = {"forget": batches, "retain": batches}
    return DiffusionTask(build(0), parts, build, DiffusionRecipe(steps=1), noise_schedule())


def size(task: Task) -> str:
    """Weights, forget images and device, in words."""
    weights = sum(w.numel() for w in task.model.parameters())
    return f"{weights:,} weights, {task.forget.n:,} forget images, {DEVICE.type.upper()}"
