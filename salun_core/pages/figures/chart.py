"""What all figures share: one style, one colour for each method, caption and text alternative, tooltips."""

import base64
import io
import math
import re
from collections.abc import Iterator
from colorsys import hsv_to_rgb
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from salun_core.files import write_whole
from salun_core.methods import METHODS
from salun_core.metrics.gaps import summary
from salun_core.metrics.statistics import by_unit
from salun_core.pages.markup import html_template, safe_html
from salun_core.pages.tooltips import Tooltip, origin_of, origins_of_mean, overlay, unit_of

IMAGE = html_template("""<img class="{{ kind }}" alt="{{ alt }}" src="{{ source }}">""")
FIGURE = html_template(
    """<figure class="result" tabindex="0">{% if tooltips %}<div class="origins" \
style="position:relative;width:fit-content">{{ image }}{{ tooltips }}</div>{% else %}{{ image }}{% endif %}\
{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>"""
)

# Okabe and Ito's colours, told apart by most colour-blind readers, and a marker of its own for each method.
LOOK: dict[str, tuple[str, str]] = {
    "retrain": ("#000000", "*"),
    "original": ("#8C8C8C", "X"),
    "ft": ("#0072B2", "o"),
    "rl": ("#E69F00", "s"),
    "ga": ("#56B4E9", "v"),
    "iu": ("#CC79A7", "^"),
    "be": ("#882255", "<"),
    "bs": ("#44AA99", ">"),
    "l1_sparse": ("#999933", "P"),
    "neggrad_plus": ("#6F4C9B", "4"),
    "scrub": ("#4E79C4", "x"),
    "ssd": ("#B15928", "+"),
    "salun": ("#D55E00", "D"),
    "salun_soft": ("#009E73", "d"),
    "esd": ("#332288", "h"),
    "fmn": ("#117733", "p"),
    "ca": ("#AA4499", "H"),
    "uce": ("#A6761D", "8"),
    "erasediff": ("#661100", "1"),
    "rece": ("#6699CC", "2"),
    "advunlearn": ("#88CCEE", "3"),
}
MASK_LOOK = {
    "none": ("#56B4E9", "o"),
    "salient": ("#D55E00", "D"),
    "random": ("#000000", "s"),
    "random_per_layer": ("#8C8C8C", "P"),
    "least_salient": ("#009E73", "v"),
    "lora": ("#CC79A7", "X"),
}
WIDTH = 6.5  # inches: a phone shows it in a frame that scrolls
NARROW = 4.6  # inches: legible when a phone shrinks it to 390 pixels


@dataclass(frozen=True)
class Chart:
    """A figure with what it shows.

    A notebook shows it as an image that scales with the page.

    Parameters
    ----------
    figure : Figure
        Matplotlib's.
    alt : str
        The finding in words, as text alternative.
    caption : str
        The finding, and how the figure is to be read.
    finding : object
        The finding as data, from `salun_core.pages.findings`.
    photo : bool
        Whether it shows photographs, which keep their colours in the dark theme.
    tooltips : tuple of Tooltip
        What is shown where a reader points at a mark.
    """

    figure: Figure
    alt: str
    caption: str = ""
    finding: Any = None
    photo: bool = False
    tooltips: tuple[Tooltip, ...] = ()

    def __post_init__(self) -> None:
        # A class named "$x$" is a text. Only the labels of logarithmic axes are mathematics.
        for text in self.figure.findobj(Text):
            text.set_parse_math(False)
        for axes in self.figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if isinstance(axis.get_major_formatter(), LogFormatter):
                    for label in axis.get_ticklabels(which="both"):
                        label.set_parse_math(True)

    def svg(self) -> bytes:
        """The figure as SVG, coordinates to a hundredth of a point; the same figure gives the same bytes."""
        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "salun", "svg.fonttype": "path"}):
            self.figure.savefig(
                buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
            )
        return lean(buffer.getvalue().decode()).encode()

    def png(self) -> bytes:
        """The figure as PNG, twice the size of the page."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        return buffer.getvalue()

    def save(self, path: Path | str) -> Path:
        """Write the figure as SVG, or as PNG where ``path`` ends so."""
        return write_whole(path, self.png() if str(path).endswith(".png") else self.svg())

    def image(self) -> str:
        """The figure as an HTML image that holds its own data."""
        if self.photo:
            source = f"data:image/png;base64,{base64.b64encode(self.png()).decode()}"
        else:
            source = f"data:image/svg+xml,{svg_address(self.svg().decode())}"
        width = "" if self.figure.get_figwidth() > NARROW else " narrow"
        return IMAGE.render(
            kind=f"{'photo' if self.photo else 'chart'}{width}", alt=self.alt, source=safe_html(source)
        )

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        return FIGURE.render(
            image=safe_html(self.image()),
            tooltips=safe_html(overlay(self.figure, self.tooltips)) if self.tooltips else "",
            caption=self.caption[:1].upper() + self.caption[1:],
        )


UNSEEN = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
DECIMALS = re.compile(r"(?<![\w.])-?[1-9]\d*\.\d{3,}")  # scales of letters are below 1, and stay
PATH = re.compile(r'\bd="[^"]*"')


def lean(svg: str) -> str:
    """Matplotlib's SVG without what nobody sees: comments, indentation, and decimals beyond the second."""
    svg = DECIMALS.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), UNSEEN.sub("", svg))
    svg = PATH.sub(lambda path: re.sub(r"\s*([A-Za-z])\s+", r"\1", " ".join(path[0].split())), svg)
    return re.sub(r">\s+<", "><", svg)


def svg_address(svg: str) -> str:
    """SVG as the text of a data address within an attribute: a quarter shorter than base64."""
    return quote(svg.replace('"', "'").replace("\n", " "), safe=" '/:;=,()?!*+@$|[]{}")


class Card(Chart):
    """What is shown where a page is linked: a picture of 1200 by 630 pixels if its figure is 12 by 6.3 inches."""

    def png(self) -> bytes:
        """The figure as PNG, with its margins."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """The style of every figure in the book."""
    with (
        sns.axes_style("ticks"),
        mpl.rc_context(
            {
                "font.size": 10.5,
                "axes.titlesize": 11,
                "axes.labelsize": 10.5,
                "xtick.labelsize": 10,
                "ytick.labelsize": 10,
                "legend.fontsize": 9.5,
                "legend.frameon": False,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "figure.constrained_layout.use": True,
                "lines.markersize": 7,
            }
        ),
    ):
        yield


def panels(
    rows: int = 1, columns: int = 1, *, width: float = WIDTH, height: float = 3.4, **more: Any
) -> tuple[Figure, Any]:
    """An empty figure of the book's width, or another, in inches."""
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), **more)
    plt.close(fig)  # shown by the notebook once, as a Chart
    return fig, axes


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method; one that `LOOK` does not list yet has a colour and a letter of its own too."""
    unlisted = [name for name in METHODS if name not in LOOK]
    if method in LOOK or method not in unlisted:
        return LOOK.get(method, ("#555555", "o"))
    place = unlisted.index(method)
    # Steps by the golden ratio keep the hues of any number of methods apart.
    colour = mpl.colors.to_hex(hsv_to_rgb((0.1 + 0.618034 * place) % 1, 0.7, 0.6))
    return colour, f"${ascii_uppercase[place % len(ascii_uppercase)]}$"


def tooltips_of(
    axis: Axes, rows: pd.DataFrame, column: str, *, y: float, scale: float = 100
) -> list[Tooltip]:
    """Tooltips on a row of a dot plot: each of its results, and above them their mean."""
    values = scale * rows[column].astype(float)
    unit = unit_of(column, scale=scale)
    found = [
        Tooltip(axis, origin_of(row, f"{column} {value:.2f}{unit}"), float(value), y)
        for (_, row), value in zip(rows.iterrows(), values, strict=True)
    ]
    return [*found, Tooltip(axis, origins_of_mean(rows, column, scale=scale), float(values.mean()), y)]


def interval(axis: Axes, rows: pd.DataFrame, column: str, y: float, colour_marker: tuple[str, str]) -> None:
    """Mean, t interval over training seeds, and single values of one row of a dot plot, in percent or points."""
    colour, marker = colour_marker
    values = 100 * rows[column].astype(float).dropna()
    if values.empty:
        axis.text(0.02, y, "diverged", fontsize=8, va="center")
        return
    s = summary(100 * by_unit(rows, column))
    axis.plot(values, [y] * len(values), ".", color=colour, alpha=0.45, ms=5, mew=0, clip_on=False)
    if not math.isnan(s["low"]):
        axis.plot([max(0, s["low"]), min(100, s["high"])], [y, y], color=colour, lw=1.6)
    axis.plot(s["mean"], y, marker, color=colour, mec="white", mew=0.6, clip_on=False, zorder=3)
