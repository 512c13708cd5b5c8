"""A table of a page, and how numbers are printed in it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from salun_core.pages.markup import html_template

# pandas' Styler cannot take its place: it gives headers no scope and rows no class, leaves no cell within reach
# of the keyboard, and writes tooltips into `title` without escaping them.
PAGE = html_template(
    """<figure class="result{{ "" if numbered else " unnumbered" }}"><figcaption>{{ caption }}</figcaption>\
<div class="wide" tabindex="0" role="region" aria-label="{{ label }}"><table class="results">\
<thead><tr>{% for cell in head %}<th scope="col" class="{{ cell.kind }}">{{ cell.text | lines }}</th>{% endfor %}\
</tr></thead><tbody>{% for row in rows %}<tr{% if row.best %} class="best"{% endif %}>{% for cell in row.cells %}\
<td class="{{ cell.kind }}"{% if cell.origin %} tabindex="-1" title="{{ cell.origin }}"{% endif %}>\
{% if cell.link %}<a href="{{ cell.link }}">{{ cell.text | lines }}</a>{% else %}{{ cell.text | lines }}{% endif %}</td>\
{% endfor %}</tr>{% endfor %}</tbody></table></div></figure>"""
)
NUMBER = re.compile(r"^[-+−±×<>≥≤(]?\s?\d")
NO_NUMBER = ("", "–", "diverged")
HUNDRED = 99.5  # from here on, two digits would be written with an exponent


@dataclass(frozen=True)
class Table:
    """A table for the book: caption, scoped headers, numbers to the right, some rows bold.

    Parameters
    ----------
    frame : DataFrame
        What is printed; every value is shown as text, with its line breaks.
    caption : str
        Above the table; what stands before its first colon names the table for screen readers.
    bold : tuple
        Labels of rows to be noticed.
    origins : mapping
        By a row's label and a column: what is shown where a reader points at that cell.
    links : mapping
        By a row's label and a column: the page that the cell leads to.
    roomy : str
        The column that takes the room that others leave.
    numbered : bool
        Whether the book counts it; parameters and provenance are not counted.
    """

    frame: pd.DataFrame
    caption: str
    bold: tuple[Any, ...] = ()
    origins: Mapping[tuple[Any, str], str] = field(default_factory=dict)
    links: Mapping[tuple[Any, str], str] = field(default_factory=dict)
    roomy: str = ""
    numbered: bool = True

    @property
    def sentences(self) -> str:
        """The caption from its first capital to its full stop, which a mere title does not have."""
        title = ": " not in self.caption and ". " not in self.caption
        ended = title or self.caption.endswith((".", "?", "!"))
        return self.caption[:1].upper() + self.caption[1:] + ("" if ended else ".")

    def _repr_html_(self) -> str:
        kinds = {
            column: ("numbers" if is_numeric(self.frame[column]) else "words")
            + (" roomy" if column == self.roomy else "")
            for column in self.frame.columns
        }
        rows = []
        for index, row in zip(self.frame.index, self.frame.itertuples(index=False), strict=True):
            cells = []
            for column, value in zip(self.frame.columns, row, strict=True):
                origin, link = self.origins.get((index, column), ""), self.links.get((index, column), "")
                kind = kinds[column] + (" origin" if origin else "")
                cells.append({"kind": kind, "text": value, "origin": origin, "link": link})
            rows.append({"best": index in self.bold, "cells": cells})
        return PAGE.render(
            caption=self.sentences,
            label=self.caption.partition(":")[0],
            numbered=self.numbered,
            head=[{"kind": kinds[column], "text": column} for column in self.frame.columns],
            rows=rows,
        )

    def to_latex(self, *, label: str = "") -> str:
        r"""The table for a paper: ``booktabs`` rules, caption, the best row bold; a line break becomes a space.

        Parameters
        ----------
        label : str
            For ``\\ref``; none by default.
        """
        shown = self.frame.map(lambda value: latex(str(value).replace("\n", " ")))
        shown.columns = pd.Index([latex(str(column)) for column in shown.columns])
        best = {place for place, index in enumerate(shown.index) if index in self.bold}
        styled = (
            shown.reset_index(drop=True)
            .style.hide(axis="index")
            .apply(lambda row: ["textbf:--rwrap;" if row.name in best else ""] * len(row), axis=1)
        )
        kinds = ["r" if is_numeric(self.frame[column]) else "l" for column in self.frame.columns]
        return styled.to_latex(
            hrules=True,
            caption=latex(self.sentences),
            label=label or None,
            column_format="".join(kinds),
            position="tb",
            position_float="centering",
        )

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.frame.to_string(index=False)}"


LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "ℓ": r"$\ell$",
    "₁": r"$_1$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
}


def latex(text: str) -> str:
    """A text as LaTeX shows it, mark by mark."""
    return "".join(LATEX.get(mark, mark) for mark in text)


def is_numeric(column: pd.Series) -> bool:
    """Whether every text of a column is a number, perhaps with an interval behind it, or stands for none."""
    texts = [str(value) for value in column]
    return all(text in NO_NUMBER or bool(NUMBER.match(text)) for text in texts) and any(
        text not in NO_NUMBER for text in texts
    )


def compact(value: Any) -> str:
    """A parameter as text: nothing as a dash, bounds as "low to high", lists and mappings without marks."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, Mapping):
        if "low" in value and "high" in value:
            return ", ".join(map(str, value["choices"])) or f"{value['low']:g} to {value['high']:g}"
        return "; ".join(f"{name}: {compact(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(compact, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def spread(mean: float, std: float, none: str = "diverged") -> str:
    """``mean ± std`` with two decimals, without the second where there is one seed; ``none`` for no mean."""
    if math.isnan(mean):
        return none
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def number(value: float, digits: int = 2) -> str:
    """A number, or a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def short(value: Any) -> str:
    """A setting in few characters."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if abs(value) < HUNDRED else f"{value:,.0f}"
