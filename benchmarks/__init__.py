"""Benchmarks: each compares two ways of doing one thing, measured in turn in one run.

A new benchmark is one module with ``run(*, small) -> list[Row]`` and one line in ``BENCHMARKS``. Seconds
depend on the machine and on what else it does; the ratio of two that alternate does so much less.
"""

from collections.abc import Callable

from benchmarks import attack, diffusion, epoch, masking, selection
from benchmarks.measure import Row

BENCHMARKS: dict[str, Callable[..., list[Row]]] = {
    "selection": selection.run,
    "epoch": epoch.run,
    "masking": masking.run,
    "attack": attack.run,
    "diffusion": diffusion.run,
}
