"""What a mask costs in each optimiser step."""

import torch

from benchmarks.measure import Row, in_turn
from benchmarks.problems import problem
from salun_core.methods import METHODS
from salun_core.rng import generator
from salun_core.saliency import random_mask

BOUND = 0.05


def run(*, small: bool) -> list[Row]:
    """Random labelling with and without a mask on ResNet-18, the same steps."""
    width, batch = (8, 32) if small else (64, 64)
    task = problem(width=width, images=batch * 4, batch=batch)
    mask = random_mask(dict(task.model.named_parameters()), keep=0.5, rng=generator(0, "mask"))

    def with_mask() -> object:
        return METHODS["rl"](task, mask=mask, steps=2, lr=0.01)

    def without() -> object:
        return METHODS["rl"](task, steps=2, lr=0.01)

    ours, plain = in_turn(with_mask, without, repeats=3 if small else 5)
    cost = ours / plain - 1
    weights = sum(w.numel() for w in task.model.parameters())
    device = "GPU" if torch.cuda.is_available() else "CPU"
    note = f"masking costs {100 * cost:.1f}% of a step; the bound of 5% {'holds' if cost < BOUND else 'is missed'}"
    return [Row(f"ResNet-18, {weights:,} weights, batch {batch}, {device}", ours, plain, note=note)]
