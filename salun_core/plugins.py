"""Tables of names that other packages add to, without a change here.

Where the name of a method, metric, data set, model or score is expected, ``package.module:NAME`` is one too. A
package that is installed can also give its own a plain name, by an entry point::

    [project.entry-points."salun_core.methods"]
    my_method = "my_package.unlearning:METHOD"
"""

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from salun_core.errors import Unknown, UserError, lacks_memory, nearest

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]


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

    def stated(self, name: str) -> tuple[str, ...]:
        """The module that an entry of another package is looked for in; empty for one of this project."""
        return () if self._is_own(name) else (self._place(name).partition(":")[0],)

    def modules(self, name: str) -> tuple[str, ...]:
        """That module, and those that the entry's code comes from; empty for one of this project."""
        return () if self._is_own(name) else tuple(sorted({*self.stated(name), *modules_behind(self[name])}))

    def blaming(self, name: str) -> AbstractContextManager[None]:
        """What an entry of another package raises becomes one sentence; errors of this project's own stay what they are."""
        return nullcontext() if self._is_own(name) else blaming(self.what, name)

    def _is_own(self, name: str) -> bool:
        return dict.__contains__(self, name)

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


def modules_behind(found: Any) -> set[str]:
    """Dotted names of the modules that an object's code comes from, however it was put together.

    The modules of functions and classes, and of what a ``partial`` binds, a closure holds, a decorator wraps, a method
    belongs to, a default names, and an object that can be called keeps in its attributes.
    """
    names: set[str] = set()
    seen: dict[int, Any] = {}  # held, so that no other object gets the same id meanwhile
    waiting = [found]
    while waiting:
        value = waiting.pop()
        if value is None or isinstance(value, str | bytes | int | float | complex) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, types.ModuleType):
            names.add(value.__name__)
        elif isinstance(value, type):
            names |= {base.__module__ for base in value.__mro__}
        elif isinstance(value, partial):
            waiting += [value.func, value.args, value.keywords]
        elif isinstance(value, types.FunctionType):
            names.add(value.__module__)
            waiting += [value.__defaults__, value.__kwdefaults__, vars(value), *_held(value)]
        elif isinstance(value, types.MethodType):
            waiting += [value.__func__, value.__self__]
        elif isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        else:
            waiting += [getattr(value, "__dict__", None), *_slots(value)]
            if not type(value).__module__.startswith(f"{PACKAGE}."):  # the code that uses it counts its class
                waiting.append(type(value))
    return {name for name in names if name and not _is_pythons(name)}


def _held(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that is not bound yet
            yield cell.cell_contents


def _slots(value: Any) -> Iterator[Any]:
    bases = (
        () if _is_pythons(type(value).__module__) else type(value).__mro__
    )  # signatures hold annotations there
    for base in bases:
        names = vars(base).get("__slots__", ())
        yield from (getattr(value, name, None) for name in ([names] if isinstance(names, str) else names))


def _is_pythons(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def settings_of(builder: Callable[..., Any]) -> set[str]:
    """Names of the keyword arguments a callable lists in its signature, and ``**`` if it takes any other."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except ValueError:  # compiled code need not have a signature
        return {"**"}
    return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}
