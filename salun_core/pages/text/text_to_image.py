"""Sentences on text-to-image pipelines, made from findings."""

import pandas as pd

from salun_core.pages.findings import text_to_image as findings
from salun_core.pages.findings.text_to_image import ErasureByPrompt
from salun_core.pages.markup import Text
from salun_core.pages.words import listed


def kinds_sentences(cells: pd.DataFrame) -> Text:
    """Who erases the words and who the concept, and what it costs the others."""
    found = findings.erasure_by_prompt(cells)
    said = []
    for kind, (name, points) in found.falls.items():
        fall = f"falls most for {name}, by {points:.0f} points" if points > 0 else "falls for no method"
        said.append(
            f"From {found.first} to {kind} prompts, UA {fall}; with {kind} prompts, at least half of the images still show the "
            f"class after: {listed(found.unerased[kind], 'no method')}."
        )
    return Text(*said, harm(found))


def harm(found: ErasureByPrompt) -> str:
    """Under which methods the other classes suffer."""
    lost = list(found.harm.items())
    (least, low), (most, high) = lost[0], lost[-1]
    return (
        "Over all kinds of prompts, "
        f"{low:.1f}% ({least}) to {high:.1f}% ({most}) of the images of other classes are not recognised."
    )


def unerased(found: ErasureByPrompt) -> str:
    """Where the class is still drawn, by kind of prompt."""
    said = "; ".join(
        f"{kind} prompts: {listed(names, 'no method')}" for kind, names in found.unerased.items()
    )
    return f"Forgotten in less than half of the images: {said}."
