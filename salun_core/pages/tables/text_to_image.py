"""Tables of text-to-image pipelines."""

from typing import Any

import pandas as pd

from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.methods import name_of
from salun_core.metrics.share import wilson
from salun_core.models.text_to_image.pipelines import image_size
from salun_core.pages.findings.text_to_image import kinds_of
from salun_core.pages.markup import Code, Text
from salun_core.pages.tables.table import Table, spread


def pipeline_table(lab: TextLab) -> Table:
    """The pipeline: its parts, weights, and what is asked of it."""
    pipe, how = lab.pipe, lab.sampling
    counts = {
        part: sum(w.numel() for w in getattr(pipe, part).parameters())
        for part in ("unet", "vae", "text_encoder")
    }
    size = image_size(pipe)
    lines = [
        ("Weights of the denoising network, the only part that is unlearned", f"{counts['unet']:,}"),
        (
            "Weights of the autoencoder and of the text encoder",
            f"{counts['vae']:,} and {counts['text_encoder']:,}",
        ),
        ("Images", f"{size} x {size} pixels"),
        (
            "Latents",
            f"{pipe.unet.config.in_channels} x {pipe.unet.config.sample_size} x {pipe.unet.config.sample_size}",
        ),
        (
            "Noise schedule",
            f"{type(pipe.scheduler).__name__}, {pipe.scheduler.config.num_train_timesteps} steps",
        ),
        (
            "Sampling",
            f"{how.sampler.upper()}, {how.sample_steps} steps, guidance w = {how.guidance:g} (scale {how.guidance + 1:g})",
        ),
        ("Safety checker", "on" if pipe.safety_checker is not None else "off"),
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
        f"Images of the other classes, direct prompts, n = {n}: cosine of image and prompt times 100, and the percentage "
        "that lie nearer to the prompt of their own class than to that of any other.",
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
