"""Sentences on how far a recorded setting is from the paper's."""

import pandas as pd

from salun_core.pages.markup import Text
from salun_core.pages.published import read_published
from salun_core.pages.results import Recorded
from salun_core.pages.tables.published import TABLE1
from salun_core.pages.words import counted, listed, spelled

SETTINGS = {"random 10%": "random data forgetting 10%", "random 50%": "random data forgetting 50%"}
"""Settings of the paper's Table 1 by our name for them."""


def setting(run: Recorded) -> Text:
    """What was run, and how far its Retrain is from the paper's."""
    rows, given = run.rows, run.settings
    first = rows.iloc[0]
    scenario = next((name for name in SETTINGS if (rows["scenario"] == name).any()), None)
    retrained = rows[(rows["method"] == "retrain") & (rows["scenario"] == scenario) & (rows["replica"] == 0)]
    pixels = f", images reduced to {given['image_size']} pixels" if given.get("image_size") else ""
    part = f", {given['train_images']:,} of its training images" if given.get("train_images") else ""
    devices = listed(list(rows["device"].dropna().unique()))
    width = "" if pd.isna(first["width"]) else f" of width {first['width']:.0f}"
    text = (
        f"These runs: {spelled(first['dataset'])}{part}{pixels}, {spelled(first['arch'])}{width}, recipe {given.get('recipe', 'unknown')}, "
        f"{counted(rows['seed'].nunique(), 'training seed')}, on {devices}."
    )
    if scenario is not None and len(retrained):
        published = read_published(TABLE1)
        theirs = published[
            (published["setting"] == SETTINGS[scenario])
            & (published["method"] == "retrain")
            & (published["metric"] == "TA")
        ]["value"].iloc[0]
        ours = 100 * retrained["TA"].astype(float).mean()
        text += (
            f" Retrain reaches a test accuracy of {ours:.1f}%, the paper's {theirs:.1f}%. Levels are therefore not "
            "comparable; the order of the methods, and gaps relative to the noise floor, are."
        )
    return Text(text)
