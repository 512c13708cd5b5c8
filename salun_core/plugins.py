"""Tables of names that other packages add to, without a change here.

Where the name of a method, metric, data set, model or score is expected, ``package.module:NAME`` is one too. A
package that is installed can also give its own a plain name, by an entry point::

    [project.entry-points."salun_core.methods"]
    my_method = "my_package.unlearning:METHOD"
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from salun_core.errors import Unknown, UserError, lacks_memory, nearest

T = TypeVar("T")


class Table(dict[str, T]):
    """A dict of what this project has by name, in which names of other packages are found as well.

    Iteration gives the project's own entries only, so that nothing which happens to be installed takes part in a
    run that does not ask for it; `installed` gives the others.

    Parameters
    ----------
    entries : mapping
        By name.
    what : str
        What an entry is called in messages.
    group : str
        Group of entry points.
    adapt : callable, optional
        ``adapt(found, name)`` makes an entry of what another package offers, or raises `UserError`.
    """

    def __init__(
        self,
        entries: Mapping[str, T],
        *,
        what: str,
        group: str,
        adapt: Callable[[Any, str], T] | None = None,
    ) -> None:
        super().__init__(entries)
        self.what, self.group, self.adapt = what, group, adapt
        self._loaded: dict[str, T] = {}

    @cached_property
    def installed(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages by name; those that repeat a name of this project are left out."""
        return {e.name: e for e in entry_points(group=self.group) if not dict.__contains__(self, e.name)}

    def __missing__(self, name: str) -> T:
        if name not in self._loaded:
            if ":" not in str(name) and name not in self.installed:
                known = [*self, *self.installed]
                near = nearest(name, known)
                hint = f"did you mean {near!r}? " if near else ""
                raise Unknown(f"unknown {self.what} {name!r}: {hint}there are {', '.join(known)}")
            found = imported(self._place(name), self.what)
            self._loaded[name] = found if self.adapt is None else self.adapt(found, name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except UserError:
            return False
        return True

    def modules(self, name: str) -> tuple[str, ...]:
        """The module that brings an entry of another package; empty for one of this project."""
        return () if dict.__contains__(self, name) else (self._place(name).partition(":")[0],)

    def blaming(self, name: str) -> AbstractContextManager[None]:
        """What an entry of another package raises becomes one sentence; errors of this project's own stay what they are."""
        return blaming(self.what, name) if self.modules(name) else nullcontext()

    def _place(self, name: str) -> str:
        return self.installed[name].value if name in self.installed else name


class Failed(UserError):
    """An error inside the code of another package; the command line writes its traceback to a file."""


@contextmanager
def blaming(what: str, name: str, form: str = "") -> Iterator[None]:
    """What an entry of another package raises becomes one sentence that names it.

    Parameters
    ----------
    what, name : str
        What it is, and its name.
    form : str
        What it is given and what it returns, as a reminder.

    Raises
    ------
    Failed
        For any error but `UserError`, which is a sentence already, and lack of memory.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # code of others may raise anything, and end a script
        if lacks_memory(error):
            raise
        why = " ".join(str(error).split())[:200]
        raise Failed(
            f"{what} {name!r} failed with {type(error).__name__}: {why}{': ' if form else ''}{form}"
        ) from error


def imported(place: str, what: str) -> Any:
    """What ``package.module:NAME`` names.

    Raises
    ------
    UserError
        If the module cannot be imported, or holds no such name.
    """
    module, _, path = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except SystemExit as error:  # a script that reads a command line of its own, which this is not
        raise UserError(
            f"{what} {place!r} cannot be imported (it ends Python): put what {module} does as a script under "
            "if __name__ == '__main__'"
        ) from error
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(
            f"{what} {place!r} cannot be imported ({error}): write package.module:NAME, on the Python path"
        ) from error
    return found


def called(found: Any, name: str, what: str) -> Callable[..., Any]:
    """Refuse what cannot be called.

    Raises
    ------
    UserError
        With what it is instead.
    """
    if not callable(found):
        raise UserError(f"{what} {name!r} is a {type(found).__name__}: name a callable")
    return found


def settings_of(builder: Callable[..., Any]) -> set[str]:
    """Names of the keyword arguments a callable lists in its signature, and ``**`` if it takes any other."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except ValueError:  # compiled code need not have a signature
        return {"**"}
    return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}
