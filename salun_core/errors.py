"""One kind of error for everything a user can put right."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """A text as it may be shown: line breaks become spaces, and what a terminal would obey or not show is escaped."""
    return "".join(map(_visible, " ".join(str(text).splitlines())))


class UserError(ValueError):
    """Input that cannot be used; the message is one sentence with the value and the remedy.

    The command line prints the message alone and ends with status 2; a notebook shows it without a
    traceback, because where it was raised says nothing to the person who typed the value.

    Parameters
    ----------
    message : str
        Written as `one_line` shows it, whatever it quotes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def _render_traceback_(self) -> list[str]:  # read by IPython, hence by papermill's output
        return [f"{type(self).__name__}: {self}"]


class Diverged(UserError):
    """A run whose loss, weights or outputs stopped being finite: a result of its settings, not a crash."""


class Unknown(UserError, KeyError):
    """A name that is not in a table; a `KeyError` too, as any dict would raise."""

    def __str__(self) -> str:  # a KeyError would show its message in quotes
        return str(self.args[0])


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or the system reports a lack of memory."""
    return isinstance(error, MemoryError) or bool(
        re.search("out of memory|can't allocate memory", str(error))
    )


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is written most like ``name``, whatever their capitals; None if none is."""
    by_small = {text.lower(): text for text in known}
    near = difflib.get_close_matches(str(name).lower(), by_small, n=1)
    return by_small[near[0]] if near else None


def one_of(name: str, known: Iterable[str], what: str, *, choice: str = "") -> str:
    """Return ``name`` if it is known, else refuse it with the nearest known name.

    Of a `plugins.Table`, names of other packages are known as well.

    Parameters
    ----------
    name : str
        As it was given.
    known : iterable of str
        What it may be.
    what : str
        What it is the name of, for the message.
    choice : str
        What there is to choose, where no known name is near; by default one of ``known``.

    Raises
    ------
    UserError
        If ``name`` is not among ``known``.
    """
    if isinstance(known, Mapping) and ":" in str(name):
        with contextlib.suppress(KeyError):
            known[name]  # a table of plug-ins says why it cannot load one
            return name
    # Plug-ins that are installed have names that the table does not list.
    known = [*known, *getattr(known, "installed", ())]
    if name in known:
        return name
    near = nearest(name, known)
    hint = (
        f"did you mean {near!r}?"
        if near
        else f"choose {choice or 'one of ' + ', '.join(known)}"
        if known
        else "there is none"
    )
    raise UserError(f"unknown {what} {name!r}: {hint}")
