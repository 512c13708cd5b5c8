"""Unlearning methods. A new one is a file with a ``METHOD`` and a line in ``METHODS``."""

import inspect
from typing import Any

from salun_core.errors import UserError, one_of
from salun_core.methods.any_task import ft, ga, l1_sparse, original, retrain, rl, salun, salun_soft
from salun_core.methods.classification import be, bs, iu, neggrad_plus, scrub, ssd
from salun_core.methods.diffusion import advunlearn, ca, erasediff, esd, fmn, rece, uce
from salun_core.methods.engine import Method, Unlearned
from salun_core.plugins import Table, called


def _method(found: Any, name: str) -> Method:
    if isinstance(found, Method):
        return found
    function = called(found, name, "method")
    try:
        inspect.signature(function).bind(None, mask=None, seed=0)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"method {name!r} cannot be called with a task, mask= and seed= ({error}): see CONTRIBUTING.md"
        ) from error
    return Method(function, getattr(function, "__name__", name))


METHODS: Table[Method] = Table(
    {
        "original": original.METHOD,
        "retrain": retrain.METHOD,
        "ft": ft.METHOD,
        "rl": rl.METHOD,
        "ga": ga.METHOD,
        "iu": iu.METHOD,
        "be": be.METHOD,
        "bs": bs.METHOD,
        "l1_sparse": l1_sparse.METHOD,
        "neggrad_plus": neggrad_plus.METHOD,
        "scrub": scrub.METHOD,
        "ssd": ssd.METHOD,
        "esd": esd.METHOD,
        "fmn": fmn.METHOD,
        "ca": ca.METHOD,
        "uce": uce.METHOD,
        "rece": rece.METHOD,
        "advunlearn": advunlearn.METHOD,
        "erasediff": erasediff.METHOD,
        "salun": salun.METHOD,
        "salun_soft": salun_soft.METHOD,
    },
    what="method",
    group="salun_core.methods",
    adapt=_method,
)
"""Every method by its name in parameters, in the order of the tables."""


def methods_for(kind: str) -> tuple[str, ...]:
    """Names of the methods that work on a kind of task ("classification", "diffusion", …)."""
    return tuple(name for name, method in METHODS.items() if not method.tasks or kind in method.tasks)


def fitting(name: str, kind: str, what: str = "method", *, without: tuple[str, ...] = ()) -> str:
    """Return the name of a method that works on a kind of task.

    Parameters
    ----------
    name : str
        A name of ``METHODS``, ``package.module:NAME`` included.
    kind : str
        Of the task.
    what : str
        What the name is called in messages.
    without : tuple of str
        Names that cannot be used here.

    Raises
    ------
    UserError
        If there is no such method, or it does not work on this kind.
    """
    if not dict.__contains__(METHODS, name) and name in METHODS:
        tasks = METHODS[name].tasks
        if tasks and kind not in tasks:
            raise UserError(f"{what} {name!r} works on {', '.join(tasks)} only, not on {kind}")
        return name
    if ":" in name:
        return one_of(name, METHODS, what)
    return one_of(name, [m for m in (*methods_for(kind), *METHODS.installed) if m not in without], what)


def name_of(method: str, mask: str = "none") -> str:
    """A method's name in tables, with the mask where it is not its own: "FT + salient mask"."""
    label = METHODS[method].label if method in METHODS else method
    if mask == "lora":
        return f"{label} with adapters"
    own = METHODS[method].mask if method in METHODS else "none"
    return label if mask in ("none", own) else f"{label} + {mask.replace('_', ' ')} mask"


__all__ = ["METHODS", "Method", "Unlearned", "fitting", "methods_for", "name_of"]
