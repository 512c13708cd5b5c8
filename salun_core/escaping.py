"""A user's texts in files that other programs read: never a formula in CSV, never markup in Markdown.

Names of classes, data sets, files, methods and prompts belong to users. HTML is made in `pages.markup`.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What Markdown, MyST or MathJax may read as markup; the last two would make an address a link.
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&@^!]|:(?=//)|(?<=\w)\.(?=[^\W\d]))")
# What a spreadsheet takes for a formula, wide forms included, behind apostrophes that are the text's own.
FORMULA = re.compile("'*[=+\\-@\t\r\n\0＝＋－＠]")
# Unseen characters that turn the direction of the text behind them, as a set in a pattern: a name would be read as another.
TURNING = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
OBEYED = re.compile(rf"[\0-\x08\x0b-\x1f\x7f-\x9f{TURNING}\u2028\u2029]")
"""What a terminal obeys instead of showing it, but tabs and the ends of lines."""
QUOTED_OR_END = re.compile(r'("(?:[^"]|"")*")|\r\n')


def markdown_text(text: object) -> str:
    """A text within a paragraph of Markdown, on one line."""
    return MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def terminal_text(text: str) -> str:
    r"""A text of several lines for a terminal, which obeys no character in it: ``\\u001b`` in place of an escape.

    JSON says the same afterwards.
    """
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_text(frame: "pd.DataFrame") -> str:
    r"""A table as CSV in which no text and no heading is a formula to a spreadsheet.

    An apostrophe stands before such a text, and before one that begins with apostrophes and goes on like that, so that
    taking one away restores every text. Numbers are written as they are.

    Parameters
    ----------
    frame : DataFrame
        Without its index.

    Notes
    -----
    To read it with pandas exactly as it was:
    ``read_csv(path, keep_default_na=False, na_values=[""]).replace(r"^'('*[=+@\t\r\n\0＝＋－＠-])", r"\1", regex=True)``.

    References
    ----------
    OWASP, CSV Injection; CWE-1236.
    """
    safe = frame.map(_inert).rename(columns=_inert)
    # Python quotes only the line ends that it writes, and a bare "\r" starts a row in a spreadsheet as well.
    text = str(safe.to_csv(index=False, lineterminator="\r\n"))
    return QUOTED_OR_END.sub(lambda found: found[1] or "\n", text)


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value
