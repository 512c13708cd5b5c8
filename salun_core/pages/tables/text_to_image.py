"""Tables of text-to-image pipelines."""

from typing import Any

import pandas as pd

from salun_core.data.downloads import CLIP_NAME
from salun_core.experiments.rehearsal.networks import SD_UNET, SD_VAE, decoder_cost, text_unet_cost
from salun_core.experiments.rehearsal.plan import drawing_memory, training_memory
from salun_core.experiments.runs.cells import NO_MASK, Cell, MaskSpec, Scenario
from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.methods import name_of
from salun_core.metrics.share import wilson
from salun_core.models.text_to_image.families import family_of
from salun_core.models.text_to_image.pipelines import image_size
from salun_core.pages.findings.text_to_image import kinds_of
from salun_core.pages.markup import Code, Text
from salun_core.pages.tables.table import Table, spread
from salun_core.pages.words import listed

LESS_MEMORY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("batch_size: 1", {}),
    ("precision: bf16", {"precision": "bf16"}),
    ("gradient_checkpointing: true", {"gradient_checkpointing": True}),
    ("batch_size: 8, the preset paper", {"batch_size": 8}),
    ("batch_size: 1, half: true", {"batch_size": 1, "half": True}),
    ("optimizer: adafactor", {"optimizer": "adafactor"}),
    ("sample_batch: 1", {"sample_batch": 1}),
)
"""Settings that change memory, each on top of those before it."""


def memory_table() -> Table:
    """Memory of an accelerator that unlearning takes at the size of Stable Diffusion 1.4, and drawing after it, over settings."""
    net, decoder = text_unet_cost(SD_UNET), decoder_cost(SD_VAE)
    values = {
        "batch_size": 1,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "half": False,
        "optimizer": "adam",
        "sample_batch": 8,
        "clip": CLIP_NAME,
    }
    kinds = {"With a mask": MaskSpec("salient", 0.5), "Without": NO_MASK, "Adapters": MaskSpec("lora")}
    lines = []
    for said, more in LESS_MEMORY:
        values |= more
        line = {"Settings, each on top of those above": said}
        for kind, mask in kinds.items():
            cell = Cell(0, Scenario("class", target=0), "rl", mask)
            line[f"{kind} (GB)"] = f"{training_memory(cell, values, net, accelerator=True) / 1e9:.1f}"
        drawing = drawing_memory(values, net, decoder, side=SD_VAE["sample_size"])
        lines.append(line | {"Drawing (GB)": f"{drawing / 1e9:.1f}"})
    return Table(
        pd.DataFrame(lines),
        f"Peak memory of unlearning at the size of Stable Diffusion 1.4 ({net.weights:,} weights): the original, a copy "
        "with gradients and optimiser state, a mask, and the activations of a batch of each set. Computed from "
        "shapes; within 10% of what a dry run counts. Parts used only for sampling stay off the accelerator. Drawing: "
        "both networks, those parts, CLIP, and a batch of images; a run needs the larger of the two",
    )


def pipeline_table(lab: TextLab) -> Table:
    """The pipeline: its parts, weights, and what is asked of it."""
    pipe, how = lab.pipe, lab.sampling
    parts = family_of(pipe).parts(pipe)
    network, *others = (sum(w.numel() for w in part.parameters()) for part in parts.values())
    size = image_size(pipe)
    lines = [
        ("Weights of the denoising network, the only part that is unlearned", f"{network:,}"),
        (
            f"Weights of the autoencoder and of the text {'encoder' if len(others) == 2 else 'encoders'}",
            listed([f"{count:,}" for count in others]),
        ),
        ("Images", f"{size} x {size} pixels"),
        (
            "Latents",
            f"{lab.network.config.in_channels} x {lab.network.config.sample_size} x {lab.network.config.sample_size}",
        ),
        (
            "Noise schedule",
            f"{type(pipe.scheduler).__name__}, {pipe.scheduler.config.num_train_timesteps} steps",
        ),
        (
            "Sampling",
            f"{how.sampler.upper()}, {how.sample_steps} steps, guidance w = {how.guidance:g} (scale {how.guidance + 1:g})",
        ),
        ("Safety checker", "on" if getattr(pipe, "safety_checker", None) is not None else "off"),
    ]
    return Table(pd.DataFrame(lines, columns=["Name", "Value"]), "The pipeline and how it is sampled.")


def prompts_table(lab: TextLab, forgotten: int, *, each: int = 2) -> Table:
    """Prompts for the forgotten class: those of forgetting, and the first of every kind of test prompt."""
    lines = [("forgetting", lab.prompts.training[forgotten])]
    lines += [("in its place", lab.prompts.training[lab.replaced(forgotten)])]
    for kind, classes in lab.prompts.test.items():
        lines += [(f"test: {kind}", text) for text in classes[forgotten][:each]]
    return Table(pd.DataFrame(lines, columns=["Name", "Value"]), "Prompts for the forgotten class.")


def clip_table(cells: pd.DataFrame) -> Table | Text:
    """Method × (CLIP score, CLIP accuracy) of the other classes, where a CLIP model was given."""
    if "CLIP" not in cells.columns:
        return Text(("Not run here: no CLIP model was given (parameter ", Code("clip"), ")."))
    part = cells[cells["status"] == "done"]
    lines = []
    for (method, mask), mine in part.groupby(["method", "mask"], sort=False):
        score, nearest = (mine[name].astype(float) for name in ("CLIP", "CLIP accuracy"))
        lines.append(
            {
                "Method": name_of(str(method), str(mask)),
                "CLIP score": spread(score.mean(), score.std(ddof=1)),
                "CLIP accuracy": spread(100 * nearest.mean(), 100 * nearest.std(ddof=1)),
            }
        )
    n = int(part.iloc[0]["n_distance"])
    return Table(
        pd.DataFrame(lines),
        f"Images of the other classes, direct prompts, n = {n}: cosine similarity of image and prompt times 100, and the "
        "percentage of images nearer to the prompt of their own class than to any other.",
    )


STYLES_AND_CAPTIONS = {
    "styles UA": ("UA in styles", 100),
    "IRA": ("IRA", 100),
    "CRA": ("CRA", 100),
    "caption CLIP": ("CLIP score, captions", 1),
    "caption FD": ("FD, captions", 1),
}
"""Columns of what is drawn besides the classes: what they are called here, and their factor."""


def styles_and_captions_table(cells: pd.DataFrame) -> Table | Text:
    """Method × (retention in the domain and across domains, utility for captions), where they were asked for."""
    part = cells[cells["status"] == "done"]
    known = {
        name: how for name, how in STYLES_AND_CAPTIONS.items() if name in part and part[name].notna().any()
    }
    if not known:
        return Text(
            (
                "Not run here: neither styles to draw the classes in (parameter ",
                Code("styles"),
                ") nor captions (",
                Code("captions"),
                " and ",
                Code("caption_images"),
                ") were given.",
            )
        )
    lines = []
    for (method, mask), mine in part.groupby(["method", "mask"], sort=False):
        line = {"Method": name_of(str(method), str(mask))}
        for name, (shown, factor) in known.items():
            values = factor * mine[name].astype(float)
            line[shown] = spread(values.mean(), values.std(ddof=1))
        lines.append(line)
    return Table(
        pd.DataFrame(lines),
        "Beyond the classes as they are. In styles: UA, the percentage of images of the forgotten class in which it is not "
        "recognised; IRA, of the other classes, in which the class is recognised; CRA, in which the style is. "
        "For captions: CLIP score, and distance to the images that the captions describe.",
    )


def kinds_table(cells: pd.DataFrame) -> Table:
    """Method × kind of prompt: UA, and other classes recognised, in percent."""
    part = cells[cells["status"] == "done"]
    lines = []
    for (method, mask), mine in part.groupby(["method", "mask"], sort=False):
        line: dict[str, Any] = {"Method": name_of(str(method), str(mask))}
        for kind in kinds_of(part):
            ua, oa = (100 * float(mine[f"{name} {kind}"].astype(float).mean()) for name in ("UA", "OA"))
            line[kind] = f"{ua:.0f} / {oa:.0f}"
        lines.append(line)
    n = int(part.iloc[0]["n_class"])
    worst = wilson(n // 2, n=n)
    return Table(
        pd.DataFrame(lines),
        f"UA / share of the other classes recognised, in percent, by kind of prompt. n = {n} images of each class and "
        f"kind: a share of one half has the 95% interval {100 * worst.low:.0f} to {100 * worst.high:.0f}.",
    )
