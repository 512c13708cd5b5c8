"""The paper's own tables and figures, from the transcribed numbers."""

from typing import Any

import pandas as pd

from salun_core.metrics.gaps import AVERAGE, METRICS
from salun_core.pages.published import published_name, read_published
from salun_core.pages.tables.table import Table, spread

TABLE1 = "table1_cifar10_resnet18_random.csv"
FIGURE2 = "figure2_instability.csv"


def published_table(setting: str = "random data forgetting 10%") -> Table:
    """The paper's Table 1 in the layout of ours, every method of it; RTE in minutes, as printed there."""
    rows = read_published(TABLE1)
    rows = rows[(rows["setting"] == setting) & (rows["verified"] == "yes")]
    shown = []
    for method, part in rows.groupby("method", sort=False):
        mine = part.set_index("metric")
        line: dict[str, Any] = {"Method": published_name(str(method))}
        for name in METRICS:
            value = mine.loc[name]
            gap = "" if method == "retrain" else f"\n({value['gap']:.2f})"
            line[name] = spread(value["value"], value["std"]) + gap
        line[AVERAGE] = f"{mine.loc[AVERAGE, 'value']:.2f}"
        line["RTE (min)"] = f"{mine.loc['RTE', 'value']:.2f}"
        shown.append(line)
    table = pd.DataFrame(shown)
    best = table[table["Method"] != "Retrain"][AVERAGE].astype(float).idxmin()
    caption = (
        f"Published: Table 1 of the paper, CIFAR-10, ResNet-18, {setting}, 10 trials. Another data set and "
        "model than the table above: compare the order of the methods, not the numbers."
    )
    return Table(table, caption, (best,))


def figure_table(name: str, figure: str) -> Table:
    """Published values of one figure, with what is odd about them.

    Parameters
    ----------
    name : str
        File of published numbers.
    figure : str
        How the column ``table`` of its rows starts, such as "Figure 2(a)".
    """
    rows = read_published(name)
    rows = rows[rows["table"].str.startswith(figure)]
    shown = pd.DataFrame(
        {
            "Scenario": rows["setting"],
            "Method": [published_name(method) for method in rows["method"]],
            "Name": rows["metric"],
            "Published": [f"{v:g}" for v in rows["value"]],
            "Remark": rows["note"].fillna(""),
        }
    )
    caption = f"Published: {figure} of the paper ({rows['dataset'].iloc[0]}, {rows['model'].iloc[0]})"
    for column in list(shown):  # what all rows share is said once
        if (shown[column] == shown[column].iloc[0]).all():
            caption += f"; {shown[column].iloc[0]}".rstrip("; ")
            shown = shown.drop(columns=column)
    return Table(shown, caption)
