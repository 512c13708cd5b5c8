"""What the notebook on unsafe content shows besides what it shares with other generative models."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from salun_core.experiments.generation.lab import result_of
from salun_core.experiments.runs.store import read_result
from salun_core.experiments.text_to_image.lab import TextLab
from salun_core.experiments.text_to_image.probes import ADVERSARIAL, UNNAMED
from salun_core.experiments.text_to_image.unsafe import UnsafeResults
from salun_core.methods import name_of
from salun_core.metrics.generation.detection import EvaluationCard, Redacted
from salun_core.metrics.share import wilson
from salun_core.models.text_to_image.pipelines import encode_prompts
from salun_core.pages.tables import Table, number, read_published
from salun_core.pages.text.classification import Prose, published_folder


def card_table(card: EvaluationCard) -> Table:
    """Everything the numbers beside it depend on."""
    return Table(pd.DataFrame(card.rows(), columns=["Name", "Value"]), "Evaluation card of the numbers here")


def prompts_table(results: UnsafeResults, *, each: int = 6) -> Table:
    """The first prompts that do not name the concept."""
    prompts = results.prober.unnamed(_forgotten(results))
    texts = list(dict.fromkeys(prompts.texts))
    return Table(
        pd.DataFrame(
            {"Name": [f"prompt {i}" for i in range(1, len(texts[:each]) + 1)], "Value": texts[:each]}
        ),
        f"{prompts.name}: the first of {len(texts)}; {len(prompts)} images for each model. SHA-256 of the prompts: "
        f"{prompts.digest[:16]}…",
    )


def covered_by_name(results: UnsafeResults) -> dict[str, Redacted]:
    """Redacted images of the first seed and class, by the name of the model; others are not stored."""
    first = results.probes.iloc[0]
    mine = results.probes[
        (results.probes["seed"] == first["seed"]) & (results.probes["forgotten"] == first["forgotten"])
    ]
    found = {}
    for _, row in mine.drop_duplicates("probe_cell").iterrows():
        stored = read_result(results.lab.store.folder / f"{row['probe_cell']}.json")
        assert stored is not None
        found[name_of(row["method"], row["mask"])] = results.prober.covered(stored)
    return found


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
        line |= {name[:1].upper() + name[1:]: number(100 * row[name], 0) for name in names}
        line |= {"Utility": number(100 * row["utility"], 0)}
        lines.append(line)
    counts = probes.groupby("probe", sort=False)["n"].first()
    said = ", ".join(f"{name} {int(n)}" for name, n in counts.items())
    return Table(
        pd.DataFrame(lines),
        f"Images that still show the concept, in percent, by the way it is asked for (n: {said}). Relearned: the most it "
        "showed at any point of relearning. Utility: images of the other classes recognised as asked for",
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
        "Classes that real images of the forgotten one are most confused with, nearest first: images recognised as asked "
        f"for in percent, and in brackets the change against the original in points; n = {int(near['n'].max())} images a class",
    )


def attack_sentences(results: UnsafeResults) -> Prose:
    """What the search brings back, and how far it may go."""
    shown = results.probes.pivot_table(index=["method", "mask"], columns="probe", values="shown", sort=False)
    own = shown.drop(index=[key for key in shown.index if key[0] == "original"])
    found = own[own[ADVERSARIAL] >= 0.5].index
    hidden = [key for key in found if own.loc[key, UNNAMED] < 0.5]
    params = results.params
    said = [
        f"Within {params.attack_steps} steps the search finds an embedding that brings the concept back in at least half "
        f"of the images under {_names(found)}; under {_names(hidden)} no prompt without its name did so."
    ]
    lab, forgotten = results.lab, _forgotten(results)
    texts = (lab.prompts.training[forgotten], lab.prompts.training[lab.replaced(forgotten)])
    first, other = encode_prompts(lab.pipe, texts).embeddings[1:].float()
    apart = float(((other - first).norm(dim=1) / first.norm(dim=1)).max())
    said.append(
        f"A token may move by {params.attack_radius:g} of its length; from {texts[0]!r} to {texts[1]!r} the token that moves "
        f"most moves by {apart:.2f}. "
        + (
            "The search could thus reach another prompt of the same kind, and what it finds need not lie near the forgotten one."
            if apart <= params.attack_radius
            else "The search thus stays nearer to the forgotten prompt than another prompt of the same kind is."
        )
    )
    return Prose("\n\n".join(said))


def unnamed_sentences(results: UnsafeResults, real: pd.DataFrame) -> Prose:
    """What prompts that do not name the concept bring up, beside what the detector finds where there is nothing."""
    level, n = results.params.threshold, int(real["n"].max())
    near = real[real["category"] == "concept"]
    false = near.iloc[(near["threshold"] - level).abs().argmin()]
    shown = (
        results.probes[results.probes["probe"] == UNNAMED]
        .groupby(["method", "mask"], sort=False)["shown"]
        .mean()
    )
    said = ", ".join(f"{name_of(*map(str, key))} {100 * value:.1f}%" for key, value in shown.items())
    within = [key for key, value in shown.items() if value <= false["high"] and key[0] != "original"]
    return Prose(
        f"The concept is detected (score at least {level:g}) in: {said}.\n\n"
        f"In {n} held-out images of the data set that do not show it, the detector finds it in {100 * false['value']:.1f}% "
        f"({100 * false['low']:.1f} to {100 * false['high']:.1f}%) at threshold {false['threshold']:.2f}. "
        f"Not above what that allows: {_names(within)}."
    )


def published_counts(path: Path | None = None) -> Prose:
    """The counts that the paper's first author gave for SalUn in Figure 5."""
    rows = read_published(path or published_folder() / "figure5_i2p_nudity_counts.csv")
    values = rows["value"].astype(int).tolist()
    first = rows.iloc[0]
    return Prose(
        f"Published for SalUn on {first['dataset']}, {first['setting']}: {', '.join(map(str, values))} detections in the "
        f"{len(values)} body parts of the figure, {sum(values)} in all ({first['source']}). The source names no parts, so "
        "counts by part cannot be compared; their sum can, given the same version of the detector, the same threshold and "
        "the same number of images for each prompt."
    )


def seconds_sentence(lab: TextLab, probes: pd.DataFrame, cells: pd.DataFrame) -> Prose:
    """What unlearning and probing cost."""
    stored = [read_result(lab.store.folder / f"{name}.json") for name in probes["probe_cell"].unique()]
    spent = [sum(found.content["seconds"].values()) for found in stored if found is not None]
    unlearning = [
        result_of(lab, row).content["seconds"] for _, row in cells[cells["status"] == "done"].iterrows()
    ]
    return Prose(
        f"Unlearning took {sum(unlearning):.0f} s for {len(unlearning)} models, the probes {sum(spent):.0f} s."
    )


def _forgotten(results: UnsafeResults) -> int:
    return list(results.lab.data.classes).index(results.cells["forgotten"].iloc[0])


def _changed(rows: pd.DataFrame) -> str:
    change = round(-100 * float(rows["drop"].mean()))
    return (
        f"{100 * rows['after'].mean():.0f} ({change:+d})" if change else f"{100 * rows['after'].mean():.0f}"
    )


def _names(keys: Sequence[tuple[str, str]]) -> str:
    return ", ".join(name_of(*map(str, key)) for key in keys) if len(keys) else "no method"
