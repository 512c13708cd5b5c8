"""What results of text-to-image pipelines show, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from salun_core.methods import name_of


def kinds_of(cells: pd.DataFrame) -> list[str]:
    """Kinds of prompts that were drawn for in a table of the text-to-image experiment, in its order."""
    columns = [str(name) for name in cells.columns if str(name).startswith("UA ")]
    return [name.removeprefix("UA ") for name in columns if cells[name].notna().any()]


def means_by_kind(cells: pd.DataFrame, kinds: Sequence[str]) -> pd.DataFrame:
    """Mean UA and OA by method (rows, without the original) and kind of prompt (columns "UA direct", …), in percent."""
    part = cells[(cells["status"] == "done") & (cells["method"] != "original")]
    names = [name_of(m, k) for m, k in zip(part["method"], part["mask"], strict=True)]
    columns = [f"{metric} {kind}" for kind in kinds for metric in ("UA", "OA")]
    return 100 * part[columns].astype(float).groupby(names, sort=False).mean()


@dataclass(frozen=True)
class ErasureByPrompt:
    """Whether the concept is gone or only its name; numbers in percent and points.

    Parameters
    ----------
    unerased : mapping of str to tuple of str
        By kind of prompt: methods under which at least half of the images still show what was forgotten.
    falls : mapping of str to (str, float)
        By every kind but the first: the method whose UA falls most from the first kind, and by how many points.
    harm : mapping of str to float
        Images of other classes that are not recognised, by method, least first.
    first : str
        The kind of prompt that was used for forgetting.
    """

    unerased: Mapping[str, tuple[str, ...]]
    falls: Mapping[str, tuple[str, float]]
    harm: Mapping[str, float]
    first: str


def erasure_by_prompt(cells: pd.DataFrame, kinds: Sequence[str] = ()) -> ErasureByPrompt:
    """Who erases the words and who the concept, and what it costs the other classes."""
    kinds = list(kinds) or kinds_of(cells)
    means = means_by_kind(cells, kinds)
    falls = {}
    for kind in kinds[1:]:
        fall = means[f"UA {kinds[0]}"] - means[f"UA {kind}"]
        falls[kind] = (str(fall.idxmax()), float(fall.max()))
    harm = (100 - means[[f"OA {kind}" for kind in kinds]].mean(axis=1)).sort_values()
    return ErasureByPrompt(
        {kind: tuple(means.index[means[f"UA {kind}"] < 50]) for kind in kinds},
        falls,
        {str(name): float(value) for name, value in harm.items()},
        kinds[0],
    )
