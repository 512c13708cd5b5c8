"""What users give, in YAML files and on the command line, checked to be plain values before anything reads them."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from salun_core.errors import UserError
from salun_core.files import regular

LARGEST = 2**53  # whole numbers that every JSON reader keeps
LONGEST = 10_000  # characters of a text
DEEPEST = 12  # lists and mappings within each other
BYTES = 10**6  # of a file of parameters
MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML without what hides a mistake or costs without end: names given twice, references, tags, deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "write references (*) out", event.start_mark)
        if (event := self.peek_event()).tag is not None:  # a tag and a text that do not fit raise anything
            raise yaml.MarkedYAMLError(None, None, f"leave out the tag {event.tag}", event.start_mark)
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(None, None, "its brackets nest too deep", self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for name, _ in node.value:
            if name.tag == MERGE:  # gives names a second time, unseen
                raise yaml.MarkedYAMLError(None, None, "write merges (<<) out", name.start_mark)
            if name.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"give {name.value!r} once", name.start_mark)
            seen.append(name.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """A YAML text as plain values.

    Raises
    ------
    yaml.YAMLError
        If it is not YAML, repeats a name, refers to another part of itself, names a type, or nests too deep.
    """
    try:
        return yaml.load(text, _Loader)  # derived from the safe loader
    except (ValueError, ArithmeticError) as error:  # 5,000 digits, the 31st of February, no such character
        raise yaml.YAMLError(str(error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises
    ------
    UserError
        If there is no such file, or it holds no mapping of names to plain values.
    """
    try:
        with regular(path).open("rb") as file:
            content = file.read(BYTES + 1)
        if len(content) > BYTES:
            raise UserError(f"{path} holds more than {BYTES:,} bytes: give a file of parameters")
        values = parse_yaml(content.decode("utf8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        why = (getattr(error, "problem", None) or "").partition("\n")[0]
        why = f" ({why})" if why else ""
        raise UserError(
            f"{path} is not valid YAML{line}{why}: write one 'name: value' a line, each name once"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'name: value' lines, not a {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"{path} has a value for {name!r}: the name of a parameter must be text")
    return values


def check_plain(name: str, value: Any, depth: int = 0) -> None:
    """Refuse what no parameter can be, wherever it stands in a value.

    A value is None, true or false, a finite number, text, a path, or a list or mapping of these. Whole numbers have at
    most 15 digits, and text can be written in UTF-8.

    Raises
    ------
    UserError
        One sentence with the parameter's name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if depth > DEEPEST:
        raise UserError(f"{name} nests lists more than {DEEPEST} deep: no parameter needs that")
    match value:
        case None | bool():
            return
        case int():
            wrong = "" if abs(value) < LARGEST else "a whole number of more than 15 digits"
        case float():
            wrong = "" if np.isfinite(value) else f"the number {value}"
        case str() | Path():
            wrong = _wrong_text(str(value))
        case list() | tuple() | range():
            for entry in value:
                check_plain(name, entry, depth + 1)
            return
        case Mapping():
            for key, entry in value.items():
                if not isinstance(key, str):
                    raise UserError(f"{name} has an entry named {shown(key)}: names of entries are text")
                check_plain(name, key, depth + 1)
                check_plain(f"{name}.{key if key.isprintable() else shown(key)}", entry, depth + 1)
            return
        case _:
            wrong = f"a {type(value).__name__}"
    if wrong:
        raise UserError(f"{name} is {wrong}: give a finite number, text, or a list of these")


def shown(value: Any) -> str:
    """A value in a message: what Python would print, cut where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    short.maxlong = 20
    short.maxlist = short.maxtuple = 10
    return short.repr(value)


def numeric(value: Any) -> Any:
    """Text that reads as a number as that number: YAML 1.1 leaves 1e-4 a text."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _wrong_text(text: str) -> str:
    if len(text) > LONGEST:
        return f"a text of {len(text)} characters"
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        return "a text with characters that cannot be stored"
    return ""
