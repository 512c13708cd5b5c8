"""The paper's claims, each with what we measured and a verdict by a rule that was fixed before measuring."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salun_core.methods import name_of
from salun_core.metrics.gaps import AVERAGE, gaps, noise_floor, summary
from salun_core.pages.replication.all_results import results_of
from salun_core.pages.tables import Table, read_published
from salun_core.pages.text.classification import Prose, published_folder
from salun_core.paths import output_folder, project_root

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "undecided", "not testable here"


@dataclass(frozen=True)
class Effect:
    """An advantage that a claim asserts, as measured in one run.

    Parameters
    ----------
    what : str
        The difference, worded so that a positive one speaks for the claim.
    mean, low, high : float
        In points (or another unit that ``what`` names), with a 95 % interval; NaN where there is one value.
    n : int
        Values behind them.
    tolerance : float
        The noise of retraining in the same unit.
    scenario : str
        Where it was measured.
    """

    what: str
    mean: float
    low: float
    high: float
    n: int
    tolerance: float
    scenario: str = ""

    @classmethod
    def of(cls, what: str, found: Mapping[str, float], tolerance: float, scenario: str = "") -> "Effect":
        """An effect whose mean and interval are those of a `summary`."""
        return cls(what, found["mean"], found["low"], found["high"], int(found["n"]), tolerance, scenario)


def verdict(effect: Effect, *, times: float = 1.0) -> str:
    """The rule, at ``times`` the tolerance.

    "holds": the whole interval is above 0 and the mean is above the tolerance. "does not hold": the whole
    interval is below the tolerance, so that any advantage is smaller than the noise of retraining.
    "undecided": anything else, and always where there is no interval or no tolerance.
    """
    bound = times * effect.tolerance
    if any(math.isnan(value) for value in (effect.low, effect.high, bound)):
        return OPEN
    if effect.low > 0 and effect.mean > bound:
        return HOLDS
    return FAILS if effect.high < bound else OPEN


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Parameters
    ----------
    name : str
        Short name.
    said : str
        The claim in our words.
    place : str
        Where the paper makes it.
    published : callable
        Gives the paper's numbers as text, from ``data/published``; empty where none are at hand.
    test : callable
        ``test(folder)`` measures it on the results in a folder: a list of `Effect`, empty where they are absent.
    chapter : str
        Page of the book, as a link from another chapter.
    needs : str
        What a test on the paper's own ground would need, where we have none.
    """

    name: str
    said: str
    place: str
    published: Callable[[], str]
    test: Callable[[Path], list[Effect]]
    chapter: str
    needs: str = ""


def paired(first: pd.Series, second: pd.Series) -> dict[str, float]:
    """`summary` of the differences of two series over the seeds they share, in points."""
    return summary(100 * (first.astype(float) - second.astype(float)).dropna())


def by_seed(part: pd.DataFrame, method: str, mask: str, column: str) -> pd.Series:
    """A column of one method, indexed by seed."""
    mine = part[(part["method"] == method) & (part["mask"] == mask)]
    return mine.groupby("seed")[column].mean()


def nearest(folder: Path, *, share: str) -> list[Effect]:
    """SalUn's average gap against that of the best other method, over seeds."""
    rows, note = results_of(folder, "classification"), ""
    if rows.empty or share not in set(rows["scenario"]):
        rows, note = results_of(folder, "stability"), ", settings chosen for another share"
        rows = rows[rows["study"] == "shares"] if "study" in rows else rows
    if rows.empty or share not in set(rows["scenario"]):
        return []
    rows = rows[rows["scenario"] == share]
    part = gaps(rows[rows["replica"] == 0])
    others = part[~part["method"].isin(["salun", "salun_soft", "retrain", "original"])]
    if others.empty or "salun" not in set(part["method"]):
        return []
    best = others.groupby("method")[AVERAGE].mean().astype(float).idxmin()
    found = paired(by_seed(part, best, "none", AVERAGE), by_seed(part, "salun", "salient", AVERAGE))
    said = f"gap of {name_of(str(best))}, the best other method, minus gap of SalUn (points{note})"
    return [Effect.of(said, found, floor(rows, AVERAGE), share)]


def floor(rows: pd.DataFrame, column: str) -> float:
    """Mean gap between two retrained models of one split, in points."""
    return 100 * float(noise_floor(rows)[column].mean())


def stable_over_shares(folder: Path) -> list[Effect]:
    """Distance in UA to Retrain, over all shares to forget: SalUn against the best other method."""
    rows = results_of(folder, "stability")
    rows = rows[rows["study"] == "shares"] if "study" in rows else rows
    if rows.empty or "salun" not in set(rows["method"]):
        return []
    part = gaps(rows[rows["replica"] == 0])
    part = part[~part["method"].isin(["retrain", "original"])]
    others = part[part["method"] != "salun"].groupby("method")["gap UA"].mean().astype(float)
    if others.empty:
        return []
    best = str(others.idxmin())
    index = ["scenario", "seed"]
    ours = part[part["method"] == "salun"].groupby(index)["gap UA"].mean()
    theirs = part[part["method"] == best].groupby(index)["gap UA"].mean()
    found = paired(theirs.groupby("seed").mean(), ours.groupby("seed").mean())
    said = f"|UA - UA(Retrain)| of {name_of(best)} minus that of SalUn, mean over shares (points)"
    return [Effect.of(said, found, floor(rows, "gap UA"))]


def stable_over_settings(folder: Path) -> list[Effect]:
    """Spread of UA over settings of IU, without and with the saliency mask; a bootstrap over the settings."""
    every = results_of(folder, "stability")
    if "study" not in every:
        return []
    rows = every[(every["study"] == "settings") & (every["method"] == "iu")]
    plain = 100 * rows.loc[rows["mask"] == "none", "UA"].astype(float).dropna().to_numpy()
    masked = 100 * rows.loc[rows["mask"] == "salient", "UA"].astype(float).dropna().to_numpy()
    if len(plain) < 3 or len(masked) < 3:
        return []
    rng = np.random.default_rng(0)
    draws = [
        np.std(rng.choice(plain, len(plain)), ddof=1) - np.std(rng.choice(masked, len(masked)), ddof=1)
        for _ in range(2000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    mean = float(np.std(plain, ddof=1) - np.std(masked, ddof=1))
    said = "standard deviation of UA over settings, IU without mask minus with it (points)"
    return [Effect(said, mean, float(low), float(high), len(plain), floor(every, "gap UA"))]


def salient_beats(folder: Path, *, control: str) -> list[Effect]:
    """Average gap of random labelling under a control minus that under the salient mask, over seeds."""
    rows = results_of(folder, "saliency")
    if rows.empty:
        return []
    rows = rows[rows["study"] == "masks"]
    part = gaps(rows[rows["replica"] == 0])
    other, mine = by_seed(part, "rl", control, AVERAGE), by_seed(part, "rl", "salient", AVERAGE)
    if other.empty or mine.empty:
        return []
    found = paired(other, mine)
    said = f"gap of random labelling with the {control.replace('_', ' ')} mask minus with the salient one (points)"
    place = str(rows["scenario"].iloc[0])
    return [Effect.of(said, found, floor(rows, AVERAGE), place)]


CLASSICAL = ("ga", "ft", "l1_sparse", "rl")
CONCEPT_ERASURE = ("esd", "fmn", "ca", "uce")
BOTH = ("lesser of UA and other-class accuracy", ("UA", "OA"))
UNNAMED = ("images without the concept, for prompts that do not name it,", ("UA indirect",))


def generator_forgets(
    folder: Path, *, experiment: str, rivals: Sequence[str], measured: tuple[str, Sequence[str]] = BOTH
) -> list[Effect]:
    """What a generator has forgotten: SalUn against the best of its rivals.

    Parameters
    ----------
    experiment : str
        Whose results: "diffusion", "text_to_image" or "unsafe".
    rivals : sequence of str
        Methods, of which the best counts.
    measured : (str, sequence of str)
        What is compared, in words and as columns, the least of which counts. The tolerance is one sample.
    """
    rows = results_of(folder, experiment)
    rows = rows[rows["study"] == "methods"] if "study" in rows else rows
    words, columns = measured
    if rows.empty or not {"salun", *columns} <= {*rows["method"], *rows}:
        return []
    rows = rows[rows["replica"] == 0].assign(least=rows[list(columns)].astype(float).min(axis=1))
    others = rows[rows["method"].isin(rivals)]
    if others.empty:
        return []
    best = str(others.groupby("method")["least"].mean().idxmax())
    index = ["scenario", "seed"]
    ours = rows[rows["method"] == "salun"].set_index(index)["least"]
    found = paired(ours, others[others["method"] == best].set_index(index)["least"])
    one = 100 / float(rows["n_class"].iloc[0])
    said = f"{words} SalUn minus {name_of(best)}, the best other (points)"
    place = str(rows["scenario"].iloc[0])
    return [Effect.of(said, found, one, place)]


def cheap(folder: Path) -> list[Effect]:
    """How often Retrain's time must be halved to reach SalUn's; once is the tolerance."""
    rows = results_of(folder, "classification")
    effects = []
    for scenario, mine in rows.groupby("scenario", sort=False) if len(rows) else []:
        mine = mine[mine["replica"] == 0]
        ours, theirs = (
            by_seed(mine, "salun", "salient", "seconds"),
            by_seed(mine, "retrain", "none", "seconds"),
        )
        if ours.empty or theirs.empty:
            continue
        found = summary(np.log2(theirs.astype(float) / ours.astype(float)))
        said = "halvings from Retrain's time to SalUn's, mask included, tuning not (tolerance: one halving)"
        effects.append(Effect.of(said, found, 1.0, str(scenario)))
    return effects


def table1(setting: str) -> str:
    """Average gaps of SalUn and the best other method in the paper's Table 1."""
    rows = read_published(published_folder() / "table1_cifar10_resnet18_random.csv")
    mine = (
        rows[(rows["setting"] == setting) & (rows["metric"] == AVERAGE)]
        .set_index("method")["value"]
        .astype(float)
    )
    ours = [name for name in mine.index if str(name).startswith("SalUn")]
    best = mine.drop([*ours, "Retrain"]).idxmin()
    return f"SalUn {mine['SalUn']:.2f}, {best} {mine[best]:.2f} points"


def table1_time() -> str:
    """Times of SalUn and Retrain in the paper's Table 1."""
    rows = read_published(published_folder() / "table1_cifar10_resnet18_random.csv")
    mine = rows[(rows["setting"] == "random data forgetting 10%") & (rows["metric"] == "RTE")]
    values = mine.set_index("method")["value"]
    return f"SalUn {values['SalUn']:.2f}, Retrain {values['Retrain']:.2f} minutes"


def figure2(part: str, *, spread: bool) -> str:
    """What the paper's Figure 2 shows of SalUn and of the best, or the only, other method."""
    rows = read_published(published_folder() / "figure2_instability.csv")
    rows = rows[rows["table"].str.startswith(part)]
    if spread:
        values = rows.set_index(["method", "metric"])["value"]
        pairs = [
            f"{name} {values[(name, 'UA whisker low')]:g} to {values[(name, 'UA whisker high')]:g}"
            for name in ("IU", "IU + SalUn")
        ]
        return "UA over settings: " + ", ".join(pairs) + " %"
    means = rows.groupby("method")["value"].mean()
    best = means.drop("SalUn").idxmin()
    return f"mean over 10 % and 50 %: SalUn {means['SalUn']:.2f}, {best} {means[best]:.2f} points"


def figure5() -> str:
    """Detections left in the paper's Figure 5."""
    rows = read_published(published_folder() / "figure5_i2p_nudity_counts.csv")
    mine = rows[(rows["method"] == "SalUn") & rows["metric"].str.startswith("detections")]
    return f"SalUn {mine['value'].sum():.0f} detections in 4,703 prompts"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "nearest at 10 %",
        "Of all approximate methods SalUn comes nearest to Retrain when 10 % of the images are forgotten.",
        "Table 1",
        lambda: table1("random data forgetting 10%"),
        lambda folder: nearest(folder, share="random 10%"),
        "classification.html",
    ),
    Claim(
        "nearest at 50 %",
        "The same when half of the images are forgotten.",
        "Table 1",
        lambda: table1("random data forgetting 50%"),
        lambda folder: nearest(folder, share="random 50%"),
        "classification.html",
        "python -m salun_core run classification -p preset fast-50",
    ),
    Claim(
        "stable over shares",
        "Its distance in UA to Retrain stays smaller than that of the others, whatever the share to forget.",
        "Figure 2(a)",
        lambda: figure2("Figure 2(a)", spread=False),
        stable_over_shares,
        "stability.html",
    ),
    Claim(
        "stable over settings",
        "A saliency mask makes influence unlearning depend less on its settings.",
        "Figure 2(b)",
        lambda: figure2("Figure 2(b)", spread=True),
        stable_over_settings,
        "stability.html",
    ),
    Claim(
        "salient beats random",
        "Salient weights are better ones to change than random weights of the same number.",
        "shown for generated images only",
        lambda: "",
        lambda folder: salient_beats(folder, control="random"),
        "saliency.html",
    ),
    Claim(
        "salient beats least salient",
        "And better than those that are least salient, which the released code took until December 2023.",
        "implied",
        lambda: "",
        lambda folder: salient_beats(folder, control="least_salient"),
        "saliency.html",
    ),
    Claim(
        "carries over to generation",
        "SalUn forgets a class in a diffusion model and keeps the others, where methods made for classifiers do "
        "one or the other.",
        "Figure 3",
        lambda: "",
        partial(generator_forgets, experiment="diffusion", rivals=CLASSICAL),
        "generality.html",
    ),
    Claim(
        "Imagenette",
        "In Stable Diffusion SalUn forgets an Imagenette class almost fully, at a better FID than ESD. Ours: tiny-sd and digits.",
        "Table 2",
        lambda: "",
        partial(generator_forgets, experiment="text_to_image", rivals=CONCEPT_ERASURE),
        "sd_class.html",
        "the weights of Stable Diffusion v1.4 and of an ImageNet ResNet-50, and a GPU",
    ),
    Claim(
        "unsafe content",
        "With prompts of I2P, Stable Diffusion after SalUn shows the fewest nude body parts. Ours: tiny-sd, a digit, and "
        "prompts that do not name it.",
        "Figure 5",
        figure5,
        partial(generator_forgets, experiment="unsafe", rivals=CONCEPT_ERASURE, measured=UNNAMED),
        "sd_nsfw.html",
        "the weights of Stable Diffusion v1.4, the prompts of I2P, and a GPU",
    ),
    Claim(
        "run time",
        "SalUn takes a small part of the time of retraining.",
        "Table 1",
        table1_time,
        cheap,
        "classification.html",
    ),
)


def ledger(out_dir: Path | None = None) -> pd.DataFrame:
    """Every claim with every run that tests it.

    Returns
    -------
    DataFrame
        One row for each claim and effect (one row with "not testable here" where there is none): ``claim,
        said, place, published, run, effect, mean, low, high, n, tolerance, half, verdict, double, chapter,
        needs``.
    """
    recorded = project_root() / "data" / "recorded"
    folders = (
        [(path.name, path) for path in sorted(recorded.iterdir()) if path.is_dir()]
        if recorded.is_dir()
        else []
    )
    rows: list[dict[str, Any]] = []
    for claim in CLAIMS:
        shared = {
            "claim": claim.name,
            "said": claim.said,
            "place": claim.place,
            "published": claim.published(),
            "chapter": claim.chapter,
            "needs": claim.needs,
        }
        found = []
        for name, folder in [("quick", output_folder(out_dir)), *folders]:
            for effect in claim.test(folder):
                found.append(
                    shared
                    | {"run": f"{name}, {effect.scenario}".rstrip(", "), "effect": effect.what}
                    | {n: getattr(effect, n) for n in ("mean", "low", "high", "n", "tolerance")}
                    | {"half": verdict(effect, times=0.5), "verdict": verdict(effect)}
                    | {"double": verdict(effect, times=2.0)}
                )
        rows += found or [shared | {"run": "", "effect": "", "verdict": ABSENT}]
    return pd.DataFrame(rows)


def ledger_table(rows: pd.DataFrame) -> Table:
    """The ledger as the book shows it, each claim linked to its chapter and each run to where it is shown."""
    lines, links = [], {}
    for index, (_, row) in enumerate(rows.iterrows()):
        measured = isinstance(row["effect"], str) and bool(row["effect"])
        spread = f"\n{row['low']:.2f} to {row['high']:.2f}" if measured and not math.isnan(row["low"]) else ""
        published = f"{row['place']}: {row['published']}" if row["published"] else row["place"]
        lines.append(
            {
                "Claim": row["claim"].replace(" ", "\n", 1) if len(row["claim"]) > 16 else row["claim"],
                "Paper": published,
                "Run": row["run"] if measured else "none",
                "Effect": f"{row['mean']:+.2f}{spread}" if measured else "",
                "n": f"{row['n']:.0f}" if measured else "",
                "Toler-\nance": f"{row['tolerance']:.2f}" if measured else "",
                "Verdict": row["verdict"],
                "At half": row["half"] if measured else "",
                "At double": row["double"] if measured else "",
            }
        )
        links[index, "Claim"] = row["chapter"]
        if measured:
            links[index, "Run"] = row["chapter"] if row["run"].startswith("quick") else "recorded.html"
    caption = (
        "Claims of the paper with their place and the paper's numbers, and our verdicts: effect with 95% interval over seeds "
        "(a bootstrap over settings for stability over settings), positive in favour of the claim; the tolerance is the noise "
        "of retraining in the same unit (one sample of a class for generated images, one halving for time); the last columns "
        "give the verdict at half and at double of it"
    )
    return Table(pd.DataFrame(lines), caption, links=links, roomy="Paper")


def claim_texts(rows: pd.DataFrame) -> Prose:
    """Each claim in words: what the paper says and where, what we measured, and where to read on."""
    parts = []
    for name, mine in rows.groupby("claim", sort=False):
        first = mine.iloc[0]
        published = f" The paper's numbers: {first['published']}." if first["published"] else ""
        head = f"**{name}.** {first['said']} ({first['place']}.){published} Chapter: [{Path(first['chapter']).stem}]({first['chapter']})."
        lines = [
            f"- {row['run']}: {row['effect']} is {row['mean']:+.2f}, n = {row['n']:.0f}; **{row['verdict']}**."
            for _, row in mine.iterrows()
            if row["effect"]
        ]
        if lines and first["needs"] and " and " in first["needs"]:
            lines.append(f"- On the paper's own ground: not run; it needs {first['needs']}.")
        if not lines:
            how = (
                f"It needs {first['needs']}."
                if " and " in first["needs"]
                else f"Run `{first['needs']}`."
                if first["needs"]
                else ""
            )
            lines = [f"- **{ABSENT}**: no run of ours measures it. {how}".rstrip()]
        parts.append("\n".join([head, "", *lines]))
    return Prose("\n\n".join(parts))


def counted(rows: pd.DataFrame) -> Prose:
    """How many claims stand, by verdict, in one sentence."""
    tested = rows[rows["effect"] != ""]
    counts = tested["verdict"].value_counts()
    said = ", ".join(f"{word} {counts.get(word, 0)}" for word in (HOLDS, FAILS, OPEN))
    return Prose(
        f"{rows['claim'].nunique()} claims, {tested['claim'].nunique()} of them measured in {len(tested)} runs: {said}; "
        f"{(absent := (rows['verdict'] == ABSENT).sum())} {'claim is' if absent == 1 else 'claims are'} {ABSENT}."
    )
