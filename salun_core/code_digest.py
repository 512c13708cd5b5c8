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

from salun_core.files import readable, sha256
from salun_core.plugins import modules_behind

PACKAGE = __name__.partition(".")[0]
HERE = Path(__file__).parents[1]  # the folder that holds the package
CODE = (".py", ".pyc", ".ipynb")
SYSTEM = ("/proc/", "/sys/", "/dev/")  # what lies there is no file that anyone wrote
LONGEST, MOST_FOLDERS = 1024, 100  # characters of a path, places where it is looked for
AT_RUN_TIME = {"import_module", "__import__", "resolve_name", "run_module"}
"""Functions that import what they are given the name of."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # another one in each process
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

NOT_HASHED = {PACKAGE, "__main__", *LIBRARIES, *sys.stdlib_module_names}
"""Packages of which no files are read where they lie outside the projects."""


def code_digest(*modules: str, alone: Sequence[str] = (), folders: Sequence[Path] = ()) -> str:
    """Digest of ``modules`` and of every module of their projects that they import, directly or not.

    Comments, docstrings and layout do not count; a file near a module that the module names does (`named_near`), and so
    does a module that it names and imports at run time (``import_module("name")``). Names that are put together at
    run time, and folders that are searched, are not seen. Of a package's ``__init__`` nothing counts but the modules
    that the imported names come from: a table such as ``METHODS`` may grow without changing any result, and whoever
    takes an entry out of it names that entry's module as well.

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
        for data in named_near(files[name], name, Path.cwd()):
            sha.update(f"{data.name}\n{sha256(data)}\n".encode())
    for package in sorted({name.partition(".")[0] for name in modules} - NOT_HASHED):
        if not locate(package, folders):
            sha.update(_installed(package))
    return sha.hexdigest()[:16]


def function_digest(function: Callable[..., Any], *stated: str, folders: Sequence[Path] = ()) -> str:
    """Digest of a function, of the values bound to it by ``partial``, and of all that its modules import.

    Its modules are those that its code comes from (`plugins.modules_behind`) and those that are ``stated``.
    """
    modules, bound = sorted({*stated, *modules_behind(function)}), []
    while isinstance(function, partial):
        bound.append(ADDRESS.sub("", repr((function.args, sorted(function.keywords.items())))))
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)  # an object that can be called
    text = "\n".join([code_digest(*modules, folders=folders), name, *bound])
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
    nodes = list(_run_time(tree))
    chosen = package.partition(".")[0] != PACKAGE and any(_named(node) & AT_RUN_TIME for node in nodes)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package).rstrip(".")
            for alias in node.names:
                yield from _origin(base, alias.name, folders, tables)
        elif (chosen or strings) and isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = _absolute(node.value.partition(":")[0], package)
            yield from [name] if (chosen or "." in name) and locate(name, folders) else []


def _named(node: ast.AST) -> set[str]:
    """Names that a node uses, or imports under another."""
    if isinstance(node, ast.ImportFrom):
        return {alias.name for alias in node.names}
    return {str(getattr(node, kind)) for kind in ("id", "attr") if hasattr(node, kind)}


def _absolute(name: str, package: str) -> str:
    """A module's name, which may begin with dots, as seen from inside ``package``."""
    inner = name.lstrip(".")
    above = package.split(".")[: len(package.split(".")) - (len(name) - len(inner)) + 1]
    return ".".join([*above, inner]) if len(inner) < len(name) else name


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
                    inner = _absolute("." * node.level + (node.module or ""), base).rstrip(".")
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
    """What a file says; of a file that is no code of this Python, its bytes."""
    with readable(file):
        content = file.read_bytes()
    try:
        return ast.parse(content)  # a byte order mark and a declared encoding count
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([ast.Expr(ast.Constant(content))], [])


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
def named_near(file: Path, name: str, here: Path) -> tuple[Path, ...]:
    """Files that are no code and are named as text in a module: tables that it reads.

    Parameters
    ----------
    file, name : Path, str
        The module.
    here : Path
        The working directory.

    Returns
    -------
    tuple of Path
        Those beside the module. For a module of someone else's also those above, up to the folder that it is imported
        from, and in the working directory, each time also in folders below that it names; and whole paths.
    """
    named = sorted(text for text in texts_in(file) if 0 < len(text) <= LONGEST and text.isprintable())
    named = [text for text in named if not text.startswith(SYSTEM)]
    if name.partition(".")[0] == PACKAGE:
        places = [file.parent]
        named = [text for text in named if not text.startswith("/")]
    else:
        places = [*list(file.parents)[: name.count(".") + 1 + (file.name == "__init__.py")], here]
        for folder in places:
            if len(places) < MOST_FOLDERS:
                places += [folder / text for text in named if _is_folder_below(folder, text)]
        named += [f"{file.stem}{text}" for text in named if text.startswith(".")]  # with_suffix
    paths = (place / text for place in places for text in named)
    return tuple({path.resolve(): path for path in paths if _is_table(path)}.values())


def _is_folder_below(folder: Path, text: str) -> bool:
    path = Path(text)
    try:
        return (
            not path.is_absolute() and ".." not in path.parts and path != Path() and (folder / path).is_dir()
        )
    except OSError:
        return False


def _is_table(path: Path) -> bool:
    try:
        return path.suffix not in CODE and path.is_file()
    except OSError:  # no name of a file, or a folder that may not be read
        return False


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
    for cached in (_digest, imports_of, _locate, _tree, _substance, texts_in, named_near, _installed):
        cached.cache_clear()
