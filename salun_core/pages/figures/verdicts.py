"""Figure of how often the rule for claims errs and finds."""

import pandas as pd

from salun_core.pages.figures.chart import Chart, panels, style
from salun_core.pages.findings import verdicts as findings
from salun_core.pages.text import verdicts as words

COLOURS = {3: ("#8C8C8C", "v"), 5: ("#0072B2", "o"), 10: ("#D55E00", "D")}


def error_rates(rates: pd.DataFrame, *, runs: int) -> Chart:
    """Share of simulated runs in which a true advantage is found, and in which any verdict is wrong.

    Parameters
    ----------
    rates : DataFrame
        One row for each true advantage and number of training seeds: ``advantage, units, holds, wrong``.
    runs : int
        Simulated runs behind each row.
    """
    with style():
        fig, (left, right) = panels(1, 2, height=3.0, sharex=True)
        for units, mine in rates.groupby("units"):
            colour, marker = COLOURS.get(int(units), ("#555555", "s"))
            label = f"{units} training seeds"
            left.plot(mine["advantage"], 100 * mine["holds"], marker, ls="-", color=colour, ms=5, label=label)
            right.plot(mine["advantage"], 100 * mine["wrong"], marker, ls="-", color=colour, ms=5)
        right.axhline(5, color="black", lw=1, ls="--")
        left.set(title="advantage found (%)", ylim=(-3, 103))
        right.set(title="any verdict wrong (%)", ylim=(0, 10))
        for axis in (left, right):
            axis.set_xlabel("true advantage (noise floors)")
            axis.grid(color="0.92")
            axis.set_axisbelow(True)
        handles, labels = left.get_legend_handles_labels()
        fig.legend(handles, labels, ncols=3, loc="outside upper center")
    found = findings.error_rates(rates)
    said = words.error_rates(found)
    return Chart(
        fig,
        said,
        f"{said} Each point: {runs:,} runs of ten claims with eight rivals each; SalUn has the advantage in one claim, and in all others "
        "all methods are equally near. Left: how often that claim is found to hold. Right: how often any of the ten verdicts is wrong; "
        "dashed: the 5% that the rule allows.",
        found,
    )
