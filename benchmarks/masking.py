"""What a mask costs in each optimiser step."""

import copy

import torch

from benchmarks.measure import Row, in_turn
from benchmarks.problems import problem
from salun_core.methods import METHODS
from salun_core.rng import generator
from salun_core.saliency import random_mask, restore_unmarked_

BOUND = 0.05
STEPS = 2


def run(*, small: bool) -> list[Row]:
    """Random labelling with and without a mask on ResNet-18, the same steps."""
    width, batch = (8, 32) if small else (64, 64)
    task = problem(width=width, images=batch * 4, batch=batch)
    mask = random_mask(dict(task.model.named_parameters()), keep=0.5, rng=generator(0, "mask"))

    def with_mask() -> object:
        return METHODS["rl"](task, mask=mask, steps=STEPS, lr=0.01)

    def without() -> object:
        return METHODS["rl"](task, steps=STEPS, lr=0.01)

    ours, plain = in_turn(with_mask, without, repeats=3 if small else 5)
    # Two long times differ by noise as well, so the work that a mask adds is timed by itself besides.
    changed = copy.deepcopy(task.model)
    alone, _ = in_turn(
        lambda: restore_unmarked_(changed, task.model, mask), lambda: None, repeats=3 if small else 20
    )
    cost, share = ours / plain - 1, alone / (plain / STEPS)
    weights = sum(w.numel() for w in task.model.parameters())
    device = "GPU" if torch.cuda.is_available() else "CPU"
    note = (
        f"a mask costs {100 * cost:.1f}% of a step by the difference, {100 * share:.1f}% by itself; "
        f"the bound of {100 * BOUND:g}% {'holds' if share < BOUND else 'is missed'}"
    )
    return [Row(f"ResNet-18, {weights:,} weights, batch {batch}, {device}", ours, plain, note=note)]
