"""Where paper, released code and ports differ, and what each difference changes where we can measure it."""

from pathlib import Path

import pandas as pd

from salun_core.experiments.runs.params import read_yaml
from salun_core.metrics.gaps import AVERAGE, gaps, summary
from salun_core.pages.replication.all_results import results_of
from salun_core.pages.tables import Table
from salun_core.pages.text.classification import published_folder, recorded_agreement
from salun_core.paths import output_folder, project_root

PAPER = "paper"  # the protocol that follows the paper's formulas


def protocol_effects(folder: Path) -> dict[str, str]:
    """Change of the average gap against the paper's protocol, in points, by protocol; empty where not run."""
    rows = results_of(folder, "saliency")
    if rows.empty or "protocol" not in rows:
        return {}
    main = rows[(rows["study"] == "masks") & (rows["method"] == "retrain") & (rows["replica"] == 0)]
    part = gaps(pd.concat([main, rows[rows["protocol"].notna()]], ignore_index=True))
    by_seed = part[part["protocol"].notna()].set_index(["protocol", "seed"])[AVERAGE].astype(float)
    said = {}
    for name in dict.fromkeys(by_seed.index.get_level_values(0)):
        apart = 100 * (by_seed[name] - by_seed[PAPER])
        found = summary(apart)
        lost = int(apart.isna().sum())
        if not found["n"]:
            said[str(name)] = f"diverged\n(n = {lost})"
            continue
        spread = f" ± {found['std']:.2f}" if found["n"] > 1 else ""
        said[str(name)] = f"{found['mean']:+.2f}{spread}\n(n = {found['n']})"
    return said


def score_overlaps(folder: Path) -> dict[str, str]:
    """Overlap of the mask of each score with the paper's, by score; empty where not run."""
    pairs = recorded_agreement(folder)
    if pairs.empty:
        return {}
    mine = pairs[pairs["what"] == "score"]
    means = mine.groupby("detail")["iou"].agg(["mean", "count"])
    return {str(name): f"{row['mean']:.2f}\n(n = {row['count']:.0f})" for name, row in means.iterrows()}


def drift_table(out_dir: Path | None = None, *, recorded: str) -> Table:
    """Every difference with its date, its place and its measured effects.

    Parameters
    ----------
    out_dir : path, optional
        Where quick results are.
    recorded : str
        Name of the recorded run to show beside them.
    """
    there = project_root() / "data" / "recorded" / recorded
    quick, kept, overlaps = (
        protocol_effects(output_folder(out_dir)),
        protocol_effects(there),
        score_overlaps(there),
    )
    lines = []
    for entry in read_yaml(published_folder() / "drift.yaml")["differences"]:
        protocol, score = entry.get("protocol", ""), entry.get("score", "")
        lines.append(
            {
                "When": entry["when"].replace(" to ", "\nto "),
                "Where": entry["where"],
                "What": entry["what"],
                "Gap,\nquick": quick.get(protocol, ""),
                f"Gap,\n{recorded}": kept.get(protocol, ""),
                "Overlap\nof masks": overlaps.get(score, ""),
                "Source": entry["source"],
            }
        )
    caption = (
        "Differences between paper, released code and ports: change of the average gap of random labelling against the "
        "paper's protocol in points (mean ± standard deviation over n seeds), and intersection over union of the mask "
        f"with the paper's on {recorded} (two random halves reach 0.33); empty where we have no measurement"
    )
    return Table(pd.DataFrame(lines), caption, roomy="What")
