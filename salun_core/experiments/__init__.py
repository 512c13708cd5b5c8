"""Experiments. A new one is a module and a line in ``EXPERIMENTS``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from salun_core.experiments.classification import class_wise, method_comparison, saliency, stability
from salun_core.experiments.diffusion import class_forgetting as diffusion
from salun_core.experiments.diffusion.params import DiffusionParams
from salun_core.experiments.runs.grid import Grid
from salun_core.experiments.runs.params import Params
from salun_core.experiments.text_to_image import class_forgetting as text_to_image
from salun_core.experiments.text_to_image import unsafe
from salun_core.experiments.text_to_image.params import TextToImageParams


@dataclass(frozen=True)
class Experiment:
    """An experiment's parameters, its cells, and how it is run."""

    params: type[Params]
    grid: Callable[..., Grid]
    run: Callable[..., Any]
    title: str


EXPERIMENTS: dict[str, Experiment] = {
    "classification": Experiment(
        method_comparison.ClassificationParams,
        method_comparison.grid,
        method_comparison.run,
        "unlearning methods against Retrain on an image classifier (Table 1 of the paper)",
    ),
    "class_wise": Experiment(
        class_wise.ClassWiseParams,
        class_wise.grid,
        class_wise.run,
        "every class forgotten once, with settings chosen on one of them",
    ),
    "stability": Experiment(
        stability.StabilityParams,
        stability.grid,
        stability.run,
        "how methods fare when the share to forget or their settings change (Figure 2 of the paper)",
    ),
    "saliency": Experiment(
        saliency.MaskParams,
        saliency.grid,
        saliency.run,
        "whether it matters which weights the mask keeps: salient, random, least salient, none",
    ),
    "diffusion": Experiment(
        DiffusionParams,
        diffusion.grid,
        diffusion.run,
        "a class forgotten by a class-conditional diffusion model (Figures 3 and 4 of the paper)",
    ),
    "text_to_image": Experiment(
        TextToImageParams,
        text_to_image.grid,
        text_to_image.run,
        "a class forgotten by a Stable Diffusion pipeline (Table 2 of the paper)",
    ),
    "unsafe": Experiment(
        unsafe.UnsafeParams,
        unsafe.grid,
        unsafe.run,
        "an unsafe concept forgotten, and every way to bring it back (Figures 5 and 6 of the paper)",
    ),
}

__all__ = ["EXPERIMENTS", "Experiment"]
