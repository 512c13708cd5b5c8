"""Tables of generative models."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from salun_core.methods import name_of
from salun_core.pages.findings.generation import finished, share_of
from salun_core.pages.tables.table import Table, number, spread
from salun_core.pages.words import sample_size, spelled

MiB = 2**20


def generation_table(cells: pd.DataFrame, more: Sequence[str] = ()) -> Table:
    """Method × (UA, other classes, false alarms, Fréchet distance, ``more`` columns, cost of unlearning and of its mask)."""
    part = finished(cells)
    lines = []
    for (method, mask), mine in part.groupby(["method", "mask"], sort=False):
        line: dict[str, Any] = {"Method": name_of(str(method), str(mask))}
        for column, title in (("UA", "UA"), ("OA", "Others"), ("strays", "Mistaken")):
            values = 100 * mine[column].astype(float)
            line[title] = spread(values.mean(), values.std(ddof=1))
            if len(mine) == 1 and column != "strays":
                share = share_of(mine, column)
                line[title] += f"\n({100 * share.low:.0f}–{100 * share.high:.0f})"
        for column in ("FD", "FD floor", *more):
            values = mine[column].astype(float)
            line[column] = spread(values.mean(), values.std(ddof=1), "–" if column in more else "diverged")
        line["RTE (s)"] = number(float(mine["seconds"].astype(float).mean()), 1)
        line["Mask (s)"] = number(float(mine["mask_seconds"].astype(float).mean()), 1)
        if mine["peak_memory"].notna().any():
            line["Peak (MiB)"] = number(float(mine["peak_memory"].astype(float).mean()) / MiB, 0)
        lines.append(line)
    lost = cells[(cells["replica"] == 0) & (cells["status"] != "done")]
    first = part.iloc[0]
    runs = part[["seed", "scenario"]].drop_duplicates()
    spreads = (
        f"mean ± standard deviation over {len(runs)} runs (seeds and classes)"
        if len(runs) > 1
        else "95% Wilson intervals below, for this one run"
    )
    gone = (
        f" {len(lost)} diverged, excluded from all means: {', '.join(sorted({name_of(m, k) for m, k in zip(lost['method'], lost['mask'], strict=True)}))}."
        if len(lost)
        else ""
    )
    caption = (
        f"{spelled(first['dataset'])}, {', '.join(map(str, part['forgotten'].unique()))} forgotten: UA and the share of samples "
        f"of other classes recognised as requested, in percent, {spreads}; mistaken: samples of other classes taken for the "
        f"forgotten one. {sample_size(part)}; the judge is right on {100 * first['judge']:.1f}% of real test "
        f"images. {first['distance']}, n = {first['n_distance']:.0f}; its floor compares real with real images. RTE includes "
        f"the time for the mask.{gone}"
    )
    return Table(pd.DataFrame(lines), caption)
