"""Which files a piece of code depends on, and a digest of their substance.

One walker over imports serves both questions that the project asks: would this stored result come out the
same today (`code_digest`), and must this notebook be executed again (`imported_files`)?
"""

import ast
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from typing import Any

from salun_core.errors import UserError

PACKAGE = __name__.partition(".")[0]
HERE = Path(__file__).parents[1]  # the folder that holds the package
FILE = re.compile(r"[\w-]+(?:[./][\w-]+)*\.\w{1,12}", re.ASCII)  # a path within a folder
INSTALLED = ("site-packages", "dist-packages")

LIBRARIES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "sklearn": "scikit-learn",
    "diffusers": "diffusers",
    "transformers": "transformers",
}
"""Packages whose versions are written beside every result, by the names under which they are imported."""


def code_digest(*modules: str, alone: Sequence[str] = (), folders: Sequence[Path] = ()) -> str:
    """Digest of ``modules`` and of every module of their projects that they import, directly or not.

    Comments, docstrings and layout do not count; a file beside a module that the module names does. Of a package's ``__init__`` nothing counts but the modules
    that the imported names come from: a table such as ``METHODS`` may grow without changing any result, and
    whoever takes an entry out of it names that entry's module as well.

    Parameters
    ----------
    *modules : str
        Dotted names. Of installed packages other than this one, those named here count with all their files,
        unless their version is in the provenance (``LIBRARIES``); what they import does not.
    alone : sequence of str
        Modules that count without what they import: those that put the others together.
    folders : sequence of Path
        Where they are looked for; `search_path` by default.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    return _digest(modules, tuple(alone), tuple(folders) or search_path())


@cache
def _digest(modules: tuple[str, ...], alone: tuple[str, ...], folders: tuple[Path, ...]) -> str:
    files = imported_files(modules, folders, tables=False)
    files |= {name: file for name in alone if (file := locate(name, folders)) is not None}
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(f"{name}\n{_substance(files[name])}\n".encode())
        for data in named_beside(files[name]):
            sha.update(f"{data.name}\n".encode() + hashlib.sha256(data.read_bytes()).digest())
    for package in sorted({name.partition(".")[0] for name in modules} - {PACKAGE, "__main__", *LIBRARIES}):
        if not locate(package, folders):
            sha.update(_installed(package))
    return sha.hexdigest()[:16]


def function_digest(function: Callable[..., Any], *, folders: Sequence[Path] = ()) -> str:
    """Digest of a function, of the values bound to it by ``partial``, and of all that its module imports."""
    bound = []
    while isinstance(function, partial):
        bound.append(repr((function.args, sorted(function.keywords.items()))))
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)  # an object that can be called
    text = "\n".join([code_digest(function.__module__, folders=folders), name, *bound])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def search_path() -> tuple[Path, ...]:
    """Folders that are searched for modules: that of this package, then Python's own path without what is installed."""
    return _search_path(tuple(sys.path), Path.cwd())


@cache
def _search_path(entries: tuple[str, ...], here: Path) -> tuple[Path, ...]:
    installed = {Path(get_path(part)).resolve() for part in ("stdlib", "purelib", "platlib", "platstdlib")}
    own = [(here / entry).resolve() for entry in entries]
    # Another environment's packages, or a user's own, can be on the path as well.
    own = [folder for folder in own if folder.name not in INSTALLED]
    return (HERE, *(folder for folder in own if folder not in installed and folder != HERE))


def imported_files(
    starts: Iterable[str], folders: Sequence[Path], *, tables: bool, strings: bool = False
) -> dict[str, Path]:
    """Modules behind ``starts`` and all that they import, directly or not.

    Parameters
    ----------
    starts : iterable of str
        Dotted names; what is not found in ``folders`` is left out.
    folders : sequence of Path
        Where top-level modules and packages are looked for, in order.
    tables : bool
        Whether the ``__init__`` of a package counts where a name that it defines is taken from it.
    strings : bool
        Whether a text that is the dotted name of a module counts as an import of it.

    Returns
    -------
    dict of str to Path
        Files by dotted name.
    """
    found: dict[str, Path] = {}
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        file = locate(name, tuple(folders))
        if file is None or name in found or not (tables or _counts(name, file)):
            continue
        found[name] = file
        if name.partition(".")[0] != PACKAGE:  # importing a module runs the packages that it is in
            waiting += [parent for parent in (name.rpartition(".")[0],) if parent]
        waiting += imports_of(file, name, tuple(folders), tables=tables, strings=strings)
    return found


@cache
def imports_of(
    file: Path, name: str, folders: tuple[Path, ...], *, tables: bool, strings: bool
) -> tuple[str, ...]:
    """Dotted names of the modules that a file imports; see `imported_files`."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(names_imported(_tree(file), package, folders, tables=tables, strings=strings))


def names_imported(
    tree: ast.AST, package: str, folders: tuple[Path, ...], *, tables: bool, strings: bool
) -> Iterator[str]:
    """The same for parsed code inside ``package`` (empty for a script)."""
    for node in _run_time(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield from _origin(base, alias.name, folders, tables)
        elif strings and isinstance(node, ast.Constant) and "." in str(node.value):
            yield from [str(node.value)] if locate(str(node.value), folders) else []


def locate(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of a module, or the ``__init__`` of a package; None where there is neither."""
    return _locate(name, folders) if all(part.isidentifier() for part in name.split(".")) else None


@cache
def _locate(name: str, folders: tuple[Path, ...]) -> Path | None:
    for folder in folders:
        if folder.name in INSTALLED and name.partition(".")[0] != PACKAGE:
            continue  # this package is installed itself, beside all others
        base = folder.joinpath(*name.split("."))
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _origin(base: str, name: str, folders: tuple[Path, ...], tables: bool) -> Iterator[str]:
    """Where ``from base import name`` leads: to a module, or through a package to the module that defines the name."""
    if locate(f"{base}.{name}", folders):
        yield f"{base}.{name}"
        return
    file = locate(base, folders)
    if file is None or file.name != "__init__.py":
        yield base
        return
    if tables or _counts(base, file):
        yield base
    for node in _run_time(_tree(file)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name in (alias.asname or alias.name, "*") and (node.module or "") != base:
                    above = base.split(".")[: len(base.split(".")) - node.level + 1] if node.level else []
                    inner = ".".join([*above, *([node.module] if node.module else [])])
                    yield from _origin(inner, alias.name, folders, tables)


def _counts(name: str, file: Path) -> bool:
    """Whether a file holds code, and not one of this package's tables."""
    return file.name != "__init__.py" or name.partition(".")[0] != PACKAGE


def _run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        children = ast.iter_child_nodes(node)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            children = iter(node.orelse)
        waiting += children


@cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())  # a byte order mark and a declared encoding count
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        why = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise UserError(
            f"{file}{line}: this is no Python 3 ({why}), and a result's key holds all code behind it: mend the file, or "
            "do not import it"
        ) from error


@cache
def _substance(file: Path) -> str:
    try:
        tree = ast.parse(ast.unparse(_tree(file)))
    except RecursionError:  # an expression of a thousand terms: comments and layout count
        return hashlib.sha256(file.read_bytes()).hexdigest()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.dump(tree)


@cache
def texts_in(file: Path) -> frozenset[str]:
    """Texts that a module holds; it is read once."""
    return texts(_tree(file))


def texts(tree: ast.AST) -> frozenset[str]:
    """Texts of parsed code, docstrings included."""
    return frozenset(
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    )


@cache
def named_beside(file: Path) -> tuple[Path, ...]:
    """Files that are no code, lie beside a module or below, and are named in it as text: tables that it reads."""
    names = sorted(text for text in texts_in(file) if FILE.fullmatch(text) and not text.endswith(".py"))
    return tuple(file.parent / name for name in names if (file.parent / name).is_file())


@cache
def _installed(package: str) -> bytes:
    """Digest of the Python files of a package that lies outside the projects; empty where there are none."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for place in places for file in Path(place).rglob("*.py"))
    if spec and not places and spec.origin and spec.origin.endswith(".py"):
        files = [Path(spec.origin)]
    sha = hashlib.sha256(package.encode())
    for file in files:
        sha.update(file.name.encode() + b"\n" + file.read_bytes())
    return sha.digest() if files else b""


def forget_files() -> None:
    """Read every file anew from here on; a run otherwise keeps what it read first, which is the code it runs."""
    for cached in (_digest, imports_of, _locate, _tree, _substance, named_beside, _installed):
        cached.cache_clear()
