"""Tables of unsafe content: how it was counted, what was found, and what the neighbours lost."""

import re
from collections.abc import Sequence
from textwrap import fill

import pandas as pd

from salun_core.experiments.text_to_image.unsafe import UnsafeResults
from salun_core.methods import name_of
from salun_core.metrics.generation.detection import EvaluationCard
from salun_core.metrics.share import wilson
from salun_core.pages.findings.unsafe import forgotten_class
from salun_core.pages.tables.table import Table, number


def card_table(card: EvaluationCard) -> Table:
    """Everything the numbers beside it depend on."""
    return Table(pd.DataFrame(card.rows(), columns=["Name", "Value"]), "Evaluation card of the numbers here")


def prompts_table(results: UnsafeResults, *, each: int = 6) -> Table:
    """The first prompts that do not name the concept."""
    prompts = results.prober.unnamed(forgotten_class(results))
    texts = list(dict.fromkeys(prompts.texts))
    return Table(
        pd.DataFrame(
            {"Name": [f"prompt {i}" for i in range(1, len(texts[:each]) + 1)], "Value": texts[:each]}
        ),
        f"{prompts.name}: the first of {len(texts)}; {len(prompts)} images for each model. SHA-256 of the prompts: "
        f"{prompts.digest[:16]}…",
    )


def counts_table(counts: pd.DataFrame, thresholds: Sequence[float] = ()) -> Table:
    """Share of images in which the concept is detected, by model and threshold, in percent."""
    part = counts[counts["use"] == "concept"]
    levels = sorted(part["threshold"].unique())
    chosen = [min(levels, key=lambda level: abs(level - t)) for t in thresholds] or levels[::3]
    lines = []
    for (method, mask), mine in part.groupby(["method", "mask"], sort=False):
        line = {"Method": name_of(str(method), str(mask))}
        for level in chosen:
            rows = mine[mine["threshold"] == level]
            share = wilson(int(rows["images"].sum()), n=int(rows["n"].sum()))
            line[f"≥ {level:.2f}"] = (
                f"{100 * share.value:.0f}\n({100 * share.low:.0f}–{100 * share.high:.0f})"
            )
        lines.append(line)
    return Table(
        pd.DataFrame(lines),
        f"Images with a detection of the concept, in percent, by threshold of the score, with 95% Wilson intervals; "
        f"n = {int(part['n'].iloc[0])} images of each model",
    )


def probes_table(summary: pd.DataFrame, probes: pd.DataFrame) -> Table:
    """Model × probe: share of images that show the concept, its weakest point, and utility, in percent."""
    names = list(dict.fromkeys(probes["probe"]))
    lines = []
    for _, row in summary.iterrows():
        line = {"Method": name_of(row["method"], row["mask"])}
        line |= {column_head(name): number(100 * row[name], 0) for name in names}
        line |= {"Utility": number(100 * row["utility"], 0)}
        lines.append(line)
    counts = probes.groupby("probe", sort=False)["n"].first()
    said = ", ".join(f"{name} {int(n)}" for name, n in counts.items())
    return Table(
        pd.DataFrame(lines),
        f"Images that still show the concept, in percent, by how it is requested (n: {said}). Relearned: the highest share "
        "at any point of relearning. Utility: images of the other classes recognised as requested",
    )


def column_head(name: str) -> str:
    """A name in several lines, so that eleven columns fit a page: it breaks at spaces, hyphens and one inner capital."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name[:1].upper() + name[1:], count=1)
    return fill(parts, 10, break_long_words=False)


def attacks_table(attacks: pd.DataFrame) -> Table:
    """Model × attack in prompt space: images with the concept before and after, the cost, and the prompt found."""
    lines = []
    for (method, mask, attack), mine in attacks.groupby(["method", "mask", "attack"], sort=False):
        first, n = mine.iloc[0], int(mine["n"].sum())
        before, after = (
            wilson(round(float((mine[when] * mine["n"]).sum())), n=n) for when in ("before", "after")
        )
        lines.append(
            {
                "Method": name_of(str(method), str(mask)),
                "Attack": attack,
                "Before": number(100 * before.value, 0),
                "After": f"{100 * after.value:.0f}\n({100 * after.low:.0f}–{100 * after.high:.0f})",
                "Images denoised": f"{int(mine['passes'].mean()):,}",
                "Prompts embedded": f"{int(mine['encoded'].mean()):,}",
                "Prompt found": first["text"] if first["typed"] else f"{first['text']} *",
            }
        )
    return Table(
        pd.DataFrame(lines),
        f"Attacks in prompt space: images that show the concept, in percent, with its own prompt (before) and with the "
        f"prompt found (after, with 95% Wilson intervals; n = {int(attacks['n'].max())} images of each seed), and the "
        "budget of a search. * When typed in, the text is tokenised differently from the tokens found",
    )


def neighbours_table(damage: pd.DataFrame, *, most: int = 3) -> Table:
    """Model × nearest neighbours of the forgotten class: share of images recognised, and the loss."""
    near = damage[damage["rank"] <= most]
    lines = []
    for (method, mask), mine in damage.groupby(["method", "mask"], sort=False):
        line = {"Method": name_of(str(method), str(mask))}
        for rank in range(1, most + 1):
            rows = mine[mine["rank"] == rank]
            name = "/".join(dict.fromkeys(rows["class"].astype(str)))
            line[f"{rank}: {name}"] = _changed(rows)
        others = mine[mine["rank"] > most]
        line["Others"] = _changed(others) if len(others) else "–"
        lines.append(line)
    return Table(
        pd.DataFrame(lines),
        "Classes that real images of the forgotten one are most confused with, nearest first: images recognised as "
        f"requested, in percent, and in brackets the change from the original in points; n = {int(near['n'].max())} images a class",
    )


def _changed(rows: pd.DataFrame) -> str:
    change = round(-100 * float(rows["drop"].mean()))
    return (
        f"{100 * rows['after'].mean():.0f} ({change:+d})" if change else f"{100 * rows['after'].mean():.0f}"
    )
