"""Experiments. A new one is a module and a line in ``EXPERIMENTS``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from salun_core.experiments import classification
from salun_core.experiments.params import Params


@dataclass(frozen=True)
class Experiment:
    """An experiment's parameters and how it is run."""

    params: type[Params]
    run: Callable[[Any], Any]
    title: str


EXPERIMENTS: dict[str, Experiment] = {
    "classification": Experiment(
        classification.ClassificationParams,
        classification.run,
        "unlearning methods against Retrain on an image classifier (Table 1 of the paper)",
    ),
}

__all__ = ["EXPERIMENTS", "Experiment"]
