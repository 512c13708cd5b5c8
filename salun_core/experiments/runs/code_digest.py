"""A digest of the code that a result depends on."""

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

PACKAGE = __name__.partition(".")[0]


def code_digest(*modules: str) -> str:
    """Digest of ``modules`` and of every module of their projects that they import, directly or not.

    Comments, docstrings and layout do not count. Packages count as the names imported from them, not as
    their ``__init__``, so that adding a method to the table of methods changes no result.

    Parameters
    ----------
    *modules : str
        Dotted names. Installed packages other than this one count by their name only: their versions
        are in the provenance.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and _file(name) is not None:
            found.add(name)
            waiting += _imports(name)
    sha = hashlib.sha256()
    for name in sorted(found):
        sha.update(f"{name}\n{_substance(name)}\n".encode())
    return sha.hexdigest()[:16]


@cache
def _file(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except (ModuleNotFoundError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.submodule_search_locations is not None:
        return None
    file = Path(spec.origin or "")
    installed = any(file.is_relative_to(get_path(part)) for part in ("stdlib", "purelib", "platlib"))
    if file.suffix != ".py" or (installed and name.partition(".")[0] != PACKAGE):
        return None
    return file


@cache
def _tree(name: str) -> ast.Module:
    file = _file(name)
    assert file is not None
    return ast.parse(file.read_text("utf8"))


def _imports(name: str) -> list[str]:
    names = []
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    own = {PACKAGE, name.partition(".")[0]}
    return [n for n in names if n.partition(".")[0] in own]


@cache
def _substance(name: str) -> str:
    tree = ast.parse(ast.unparse(_tree(name)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.dump(tree)
