"""What values the settings of a method may take.

The type of a parameter says it: ``PositiveFloat``, ``NonNegativeInt``, … of pydantic for numbers, ``Literal`` for
choices. Numbers are finite and fit into single precision; a whole number may not have a fraction, and is at most
``MOST``; true and false are not numbers.
"""

from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import ConfigDict, Field, PositiveFloat, TypeAdapter, ValidationError

from salun_core.errors import UserError, nearest

Order = Literal["forget_then_retain", "interleaved", "joint", "forget", "retain"]
"""Which batches the steps take, see `engine.rounds`."""

BatchNormStats = Literal["update", "freeze"]
"""Whether running statistics of BatchNorm follow the batches, see `engine.descend`."""

Share = Annotated[PositiveFloat, Field(le=1)]
"""A share in (0, 1]."""

MOST = 10**6
"""No whole number of a method, such as its epochs or steps, is larger: it would never end."""

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # of single precision

CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

WANTED = {
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}
"""The errors of pydantic in words."""


def what_is_wanted(kind: Any, value: Any) -> str:
    """What ``value`` would have to be to have type ``kind``; an empty text if it has.

    Parameters
    ----------
    kind : type
        As a parameter is annotated with it.
    value : Any
        Scalars of numpy count as numbers of Python.
    """
    try:
        TypeAdapter(kind, config=CONFIG).validate_python(
            value.item() if isinstance(value, np.generic) else value
        )
    except ValidationError as error:
        first = error.errors()[0]
        context = first.get("ctx", {})
        if context.get("gt") == 0:
            return "at least 1" if _is_whole(kind) else "positive"
        said = WANTED.get(first["type"], first["msg"].removeprefix("Input should be "))
        return said.format(**context) + _near(kind, value)
    return ""


def out_of_range(value: Any, most: float = MOST) -> str:
    """What a finite number must be to be computed with; an empty text if it is that, or no number.

    Parameters
    ----------
    value : Any
        A number, or a list that may hold some.
    most : float
        The largest whole number.
    """
    match value:
        case np.generic():
            return out_of_range(value.item(), most)
        case int() if abs(value) > most:
            return f"at most {most:,}"
        case float() if abs(value) > LARGEST:
            return f"at most {LARGEST:.1e} in size, which single precision holds"
        case float() if 0 < abs(value) < SMALLEST:
            return f"0 or at least {SMALLEST:.1e} in size, which single precision holds"
        case list() | tuple():
            return next(filter(None, (out_of_range(each, most) for each in value)), "")
    return ""


def check_value(name: str, value: Any, kind: Any, *, remedy: str = "", most: float = MOST) -> None:
    """Refuse a value that does not have type ``kind``, or is out of range: whole numbers above ``most`` are.

    Raises
    ------
    UserError
        One sentence: what it must be, what it is, and the remedy.
    """
    if wanted := what_is_wanted(kind, value) or out_of_range(value, most):
        raise UserError(f"{name} must be {wanted}, got {value!r}" + (f": {remedy}" if remedy else ""))


def _is_whole(kind: Any) -> bool:
    return kind is int or any(_is_whole(part) for part in get_args(kind))


def _near(kind: Any, value: Any) -> str:
    near = nearest(value, map(str, get_args(kind)))
    return f" (did you mean {near!r}?)" if near else ""
