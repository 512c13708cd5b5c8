"""The one layer that escapes: every text passes through here on its way into a page.

Names of classes, data sets, files and prompts belong to the user, and what a page shows of them is text and
never markup. HTML comes from `html_template`, which escapes what it fills in; sentences are `Text`, plain
words with parts marked as bold, code or link, escaped when a notebook shows them. Downloads, and whatever
is Markdown, pass through `salun_core.escaping`. A `Chart` turns matplotlib's mathematics off.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from salun_core.escaping import markdown_text

HTML = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
HTML.filters["lines"] = lambda text: Markup("<br>").join(str(text).split("\n"))

STARTS = re.compile(r"^(\d*)([-+=:.)])")  # what starts a list, a heading or a block at the start of a line


def html_template(source: str) -> jinja2.Template:
    """A template of HTML that escapes every value it fills in; the filter ``lines`` keeps line breaks."""
    return HTML.from_string(source)


def safe_html(text: str) -> Markup:
    """HTML that a template of this module made, to be filled into another one."""
    return Markup(text)


def script_json(value: Any) -> Markup:
    """A value as JSON within a ``script`` element, which only "</" or "<!--" could end early."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


@dataclass(frozen=True)
class Bold:
    """Words to be noticed."""

    text: str


@dataclass(frozen=True)
class Code:
    """A name or a command."""

    text: str


@dataclass(frozen=True)
class Link:
    """Words that lead to a page."""

    text: str
    target: str


Part = str | Bold | Code | Link
Paragraph = Part | Sequence[Part]


@dataclass(frozen=True)
class Bullets:
    """A list of paragraphs."""

    items: Sequence[Paragraph]


class Text:
    """Paragraphs that a notebook shows.

    Parameters
    ----------
    *blocks : Paragraph or Bullets
        A paragraph is a text, or a sequence of texts and of `Bold`, `Code` and `Link`.
    """

    def __init__(self, *blocks: Paragraph | Bullets) -> None:
        self.blocks = blocks

    def __str__(self) -> str:
        """The words alone."""
        return "\n\n".join(
            "\n".join(f"- {_plain(item)}" for item in block.items)
            if isinstance(block, Bullets)
            else _plain(block)
            for block in self.blocks
        )

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return "\n\n".join(
            "\n".join(f"- {_marked(item)}" for item in block.items)
            if isinstance(block, Bullets)
            else _marked(block)
            for block in self.blocks
        )


def _parts(paragraph: Paragraph) -> Sequence[Part]:
    return (paragraph,) if isinstance(paragraph, str | Bold | Code | Link) else paragraph


def _plain(paragraph: Paragraph) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in _parts(paragraph))


def _marked(paragraph: Paragraph) -> str:
    text = ""
    for part in _parts(paragraph):
        match part:
            case str():
                # Spaces at the ends separate it from its neighbours.
                edge = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
                text += f"{edge[0] and ' '}{markdown_text(part)}{edge[1] and ' '}"
            case Bold(words):
                text += f"**{markdown_text(words)}**"
            case Code(words):
                fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
                pad = " " if words.startswith("`") or words.endswith("`") else ""
                text += f"{fence}{pad}{' '.join(words.split())}{pad}{fence}"
            case Link(words, target):
                text += f"[{markdown_text(words)}]({quote(target, safe='/:#?=&%.-_')})"
    return STARTS.sub(r"\1\\\2", text.strip())
