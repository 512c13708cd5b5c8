"""The parameters of a preset made small: shorter, fewer, narrower, and otherwise the same."""

from collections.abc import Mapping
from typing import Any

from salun_core.experiments.runs.params import Params
from salun_core.experiments.runs.trained import has_bf16
from salun_core.methods import METHODS

NUMBERS: dict[str, int] = {
    # Networks and their training.
    "width": 8,
    "epochs": 1,
    "steps": 3,
    "warmup": 1,
    "judge_width": 4,
    "judge_epochs": 1,
    # Forgetting.
    "batch_size": 32,
    "forget_steps": 2,
    "tuning_budget": 2,
    "spread_candidates": 2,
    "noise_floor": 1,
    "mask_draws": 1,
    # Measuring.
    "samples": 2,
    "samples_other": 2,
    "sample_steps": 3,
    "style_samples": 1,
    "caption_count": 2,
    "reference": 20,
    "kept_outputs": 20,
    "own_images": 8,  # two of them are held out, as a Fréchet distance needs
    "probe_samples": 4,
    "attack_steps": 2,
    "attack_batch": 2,
    "attack_samples": 2,
    "prompt_steps": 2,
    "prompt_batch": 2,
    "ring_population": 4,
    "ring_generations": 2,
    "relearn_steps": 2,
    "relearn_every": 1,
    "relearn_samples": 2,
    "train_images": 80,
}
"""Numbers are cut to these."""

LENGTHS: dict[str, int] = {"seeds": 1, "unlearning_seeds": 2, "tuning_seed": 1}
"""Of these lists the beginning is kept."""

ENDS = ("strengths", "fractions", "densities", "surface_lrs", "surface_keeps")
"""Of these lists the first and the last entry are kept."""

SETTINGS: dict[str, int] = {"epochs": 1, "steps": 2, "samples": 6}
"""Settings of every method that has them."""


def smaller(full: Params) -> dict[str, Any]:
    """Parameters to give on top of the preset that ``full`` was made from."""
    values = full.shown()
    found: dict[str, Any] = {}
    for name, most in NUMBERS.items():
        if isinstance(values.get(name), int):
            found[name] = min(values[name], most)
    if "recipe" in values:
        found["epochs"] = 1
    if "judge_recipe" in values and values["judge"] != "imagenet":
        found["judge_epochs"] = 1
    for name, length in LENGTHS.items():
        if name in values:
            found[name] = values[name][:length]
    for name in ENDS:
        if values.get(name):
            found[name] = list(dict.fromkeys([values[name][0], values[name][-1]]))
    if values.get("surface_epochs"):
        found["surface_epochs"] = [1]
    if "widths" in values:  # of a denoising network: as many, each a sixteenth
        found["widths"] = [max(8, width // 16) for width in values["widths"]]
    if "classes" in values:
        found["classes"] = [0, 1]
    if isinstance(values.get("forget_class"), list):
        found["forget_class"] = values["forget_class"][:1]
    if values.get("precision") in ("auto", "bf16"):
        found["precision"] = "bf16" if has_bf16() else "fp32"  # as on a GPU, unless it would be emulated
    found["settings"] = {
        method: values["settings"].get(method, {}) | short
        for method in METHODS
        if (short := _short(METHODS[method].defaults, values["settings"].get(method, {})))
        and _known(full, method)
    }
    return {name: value for name, value in found.items() if not full.idle(name)}


def _short(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, int]:
    every = {**defaults, **given}
    return {
        name: min(every[name], most) for name, most in SETTINGS.items() if isinstance(every.get(name), int)
    }


def _known(full: Params, method: str) -> bool:
    kind = getattr(full, "kind", "classification")
    tasks = METHODS[method].tasks
    return not tasks or kind in tasks
