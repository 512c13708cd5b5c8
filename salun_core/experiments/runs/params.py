"""Parameters of an experiment: declared once, read by notebooks, YAML files, the command line and the book."""

import ast
import types
import typing
from collections.abc import Iterator, Mapping
from copy import copy
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from salun_core.errors import UserError, nearest, one_of
from salun_core.experiments.runs.plain_values import check_plain, parse_yaml, read_yaml, shown
from salun_core.methods.settings import out_of_range


def parameter(
    default: Any,
    description: str,
    *,
    no_effect: str = "",
    repeats: bool = False,
    needs: str = "",
    any_whole: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a parameter.

    Parameters
    ----------
    default : Any
        Its value where neither the user nor the preset gives one.
    description : str
        What it means, with its unit and its range; shown wherever the parameter is.
    no_effect : str
        Why it cannot change a result, for those that cannot. All others are part of a result's key.
    repeats : bool
        Whether an entry may stand twice in a list; twice the same seed, say, would count as two.
    needs : str
        Of what else it depends whether it means anything; a user who gives it in vain is told. "prompts_file":
        that parameter has a value other than none, 0, false and an empty list. "judge is imagenet", "judge is not
        imagenet", "masks has lora": it is, or holds, that value. Of several, with " or " between them, one suffices.
    any_whole : bool
        Whether it may be larger than ``LARGE``: a seed is a name and no count.
    **bounds
        ``ge, gt, le, lt`` of pydantic.
    """
    extra: dict[str, Any] = {
        "no_effect": no_effect,
        "repeats": repeats,
        "needs": needs,
        "any_whole": any_whole,
    }
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def redeclared(group: "type[Group]", name: str, default: Any) -> Any:
    """A parameter of ``group`` with another default, for a group that derives from it."""
    field = copy(group.model_fields[name])
    field.default = default
    return field


LARGE = 10**7  # no number of steps, images or channels is larger
LONG = 100_000  # no training from scratch has more epochs
REPEATED = 1000  # nothing is repeated more often: each time is a cell, and cells are listed before they run


class Group(BaseModel):
    """Parameters that belong together and are handed as one object to the code that uses them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    choices: ClassVar[dict[str, tuple[Any, str]]] = {}
    """Parameters that are a name from a table: the table, and what its entries are called in messages."""

    blank: ClassVar[tuple[str, ...]] = ()
    """Parameters that may be an empty text, which is no value as well."""

    @field_validator("*", mode="before")
    @classmethod
    def _as_list(cls, value: Any, info: ValidationInfo) -> Any:
        name, field = str(info.field_name), cls.model_fields[str(info.field_name)]
        if _may_be_none(field) and (_is_none(value) or (value == "" and name in cls.blank)):
            return None
        kinds = set(_kinds(field.annotation))
        if not kinds & {bool, Any} and _holds_truth(value):
            raise UserError(
                f"{name} is {shown(value)}: true and false are only for switches, and this is not one"
            )
        if value == "" and (Path in kinds or (str in kinds and field.default != "" and not _is_list(field))):
            raise UserError(f"{name} is an empty text: give a value, or leave it out")
        if not _is_list(field):
            return value
        if isinstance(value, str):
            return [part.strip(" '\"") for part in value.strip("[]() ").split(",") if part.strip(" '\"")]
        return [value] if isinstance(value, int | float | Path) else value

    @field_validator("*")
    @classmethod
    def _once_each(cls, value: Any, info: ValidationInfo) -> Any:
        known = cls.model_fields[str(info.field_name)]
        if not _extra(known, "any_whole") and (wanted := out_of_range(value, LARGE)):
            raise UserError(f"{info.field_name} must be {wanted}, got {shown(value)}")
        if isinstance(value, tuple) and not _extra(known, "repeats"):
            seen = set()
            for entry in value:
                if entry in seen:
                    raise UserError(f"{info.field_name} {shown(list(value))} repeats {entry}: give each once")
                seen.add(entry)
        return value

    @field_validator("*")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        if str(info.field_name) in cls.choices and value is not None:
            for name in value if isinstance(value, tuple) else (value,):
                one_of(name, *cls.choices[str(info.field_name)])
        return value

    def identity(self) -> dict[str, Any]:
        """The values that determine a result, as JSON values."""
        kept = {name for name, field in type(self).model_fields.items() if not _extra(field, "no_effect")}
        return self.model_dump(mode="json", include=kept)


def _may_be_none(field: FieldInfo) -> bool:
    """Whether the word none is no value: with it a user takes back what a preset gives. A class may be called so."""
    kinds = set(_kinds(field.annotation))
    return type(None) in kinds and not kinds >= {int, str}


def _is_none(value: Any) -> bool:
    return isinstance(value, str) and value.lower() == "none"


class Declared(NamedTuple):
    """Where a parameter is declared: the group (empty for the experiment itself) and its field."""

    group: str
    field: FieldInfo


class Params(Group):
    """Base of the experiments' parameters, grouped inside and flat outside.

    Users give every parameter by its own name; the groups that they belong to are fields of the class. A
    value of None means "as the preset says". A preset is a YAML file,
    ``salun_core/experiments/presets/EXPERIMENT/NAME.yaml``, or any YAML file given by its path.
    """

    experiment: ClassVar[str]
    fixed: ClassVar[tuple[str, ...]] = ()  # parameters that have one value in this experiment
    needless: ClassVar[
        tuple[str, ...]
    ] = ()  # parameters that mean something here without what they need elsewhere

    @classmethod
    def declared(cls) -> dict[str, Declared]:
        """Every parameter by the name that users give it."""
        found: dict[str, Declared] = {}
        for name, field in cls.model_fields.items():
            part = field.annotation
            if isinstance(part, type) and issubclass(part, Group):
                found |= {inner: Declared(name, f) for inner, f in part.model_fields.items()}
            else:
                found[name] = Declared("", field)
        return found

    @property
    def downloads(self) -> tuple[str, ...]:
        """Keys of ``DOWNLOADS`` that a run reads from where `fetch` puts them."""
        return ()

    @classmethod
    def may_be_blank(cls) -> tuple[str, ...]:
        """Parameters for which an empty text is a value."""
        groups = [field.annotation for field in cls.model_fields.values()]
        inner = [part for part in groups if isinstance(part, type) and issubclass(part, Group)]
        return tuple(name for part in (cls, *inner) for name in part.blank)

    @classmethod
    def may_be_none(cls) -> tuple[str, ...]:
        """Parameters for which the word none is no value."""
        return tuple(name for name, place in cls.declared().items() if _may_be_none(place.field))

    def __getattr__(self, name: str) -> Any:
        place = type(self).declared().get(name)
        if place is None or not place.group:
            raise AttributeError(f"{type(self).__name__} has no parameter {name!r}")
        return getattr(getattr(self, place.group), name)

    @classmethod
    def load(cls, given: Mapping[str, Any]) -> Self:
        """Check ``given`` on top of the preset it names.

        Raises
        ------
        UserError
            One sentence for the first thing that is wrong, with a suggestion for a misspelt name.
        """
        known = cls.declared()
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in known:
                raise UserError(_unknown(name, known))
            check_plain(name, given[name])
        values, preset = dict(given), None
        if "preset" in known:
            preset = str(given.get("preset", known["preset"].field.default))
            values = {**cls.read_preset(preset), **given, "preset": preset}
        for name in values:
            if name not in known:
                raise UserError(f"preset {preset!r}: {_unknown(name, known)}")
            check_plain(name, values[name])
        checked = cls.restored(values)
        for name in given:
            if said := checked.idle(name):
                raise UserError(f"{name} has no effect here, {said}: change that, or leave {name} out")
        cls.check_given(given, checked)
        return checked

    @classmethod
    def read_preset(cls, preset: str) -> dict[str, Any]:
        """Values of a preset by name, or of a YAML file by path.

        A preset may be ``like:`` another, from which it takes what it does not give itself: NAME of the same
        experiment, or EXPERIMENT/NAME of another, and of that one only the parameters that both experiments have.

        Raises
        ------
        UserError
            If there is neither such a preset nor such a file, or the file is not a YAML mapping.
        """
        if preset.endswith((".yaml", ".yml")):
            return read_yaml(Path(preset))
        known = preset_names(cls.experiment)
        one_of(preset, known, "preset", choice=f"one of {', '.join(known)}, or give a .yaml file")
        own, taken = _packaged(cls.experiment, preset)
        return {name: value for name, value in taken.items() if name in cls.declared()} | own

    def idle(self, name: str) -> str:
        """Why a parameter means nothing beside the others, in words; empty if it means something."""
        needs = str(_extra(type(self).declared()[name].field, "needs") or "")
        if not needs or name in self.needless:
            return ""
        lacking = [self._lacking(clause) for clause in needs.split(" or ")]
        return f"as {' and '.join(lacking)}" if all(lacking) else ""

    def _lacking(self, clause: str) -> str:
        """How a clause of `needs` is not fulfilled, in words; empty if it is."""
        other, _, wanted = clause.partition(" ")
        found = getattr(self, other)
        relation, _, value = wanted.rpartition(" ")
        if relation == "has":
            return "" if value in found else f"{other} has no {value}"
        same = found is None if value == "none" else found == value
        if {"": bool(found), "is": same, "is not": not same}[relation]:
            return ""
        if found is None or found == ():
            return f"{other} is not given"
        return f"{other} is {str(found).lower() if isinstance(found, bool) else shown(found)}"

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Self:
        """The parameters that `shown` has written down, as they were then: no preset is read.

        Raises
        ------
        UserError
            If a value cannot be used, or there is no such parameter today.
        """
        known, nested = cls.declared(), dict[str, Any]()
        for name, value in values.items():
            if name not in known:
                raise UserError(_unknown(name, known))
            if known[name].group:
                nested.setdefault(known[name].group, {})[name] = value
            else:
                nested[name] = value
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise UserError(_first_sentence(error, {place.group for place in known.values()})) from None

    @classmethod
    def check_given(cls, given: dict[str, Any], checked: Any) -> None:
        """Refuse values given by the user that other parameters make meaningless; by default, none."""

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Check the parameters of a running notebook; call it in the first cell after them.

        papermill only mentions an unknown name and goes on. So every name that the cells so far have
        assigned must be a parameter: a misspelt one in the injected cell is not.

        Parameters
        ----------
        namespace : mapping
            ``globals()`` of the notebook.
        """
        assigned: list[str] = []
        for source in namespace.get("In", [])[:-1]:  # the last entry is the cell that calls this
            assigned += assigned_names(source)
        known = cls.declared()
        assigned = assigned or [name for name in known if name in namespace]
        for name in assigned:  # also one that is None, which says "as the preset" only of what exists
            if name not in known:
                raise UserError(_unknown(name, known))
        return cls.load({name: namespace.get(name) for name in assigned})

    def shown(self) -> dict[str, Any]:
        """The parameters as plain values, flat, for a table or a YAML file."""
        values: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            inner = isinstance(getattr(self, name), Group)
            values |= value if inner else {name: value}
        return values


class PresetParams(Params):
    """Base of parameters that a preset gives."""

    preset: str = parameter(
        "quick",
        "a preset's name, or a YAML file; names set to None are taken from it",
        no_effect="the values that it gives are part of the key",
    )


def parameters_cell(cls: type[Params]) -> str:
    """The cell tagged ``parameters`` of an experiment's notebook, made from the declarations.

    The preset is named, and everything else is None, which means "as the preset says"; where there are no
    presets, the defaults are shown.
    """
    lines = []
    known = cls.declared()
    for name, (_, field) in known.items():
        if name in cls.fixed:
            continue
        shown = name == "preset" or "preset" not in known
        text = field.description
        if name == "preset":
            names = preset_names(cls.experiment)
            if len(names) > 5:  # a line's worth: without those named after another, such as fast-50
                names = [n for n in names if not any(n.startswith(f"{other}-") for other in names)]
            text = f"{', '.join(names)}, or a YAML file"
            text += (
                "; None: as it says" if len(text) < 70 else ""
            )  # what does not fit, a formatter would break
        default = repr(field.default).replace("'", '"') if shown else None
        lines.append(f"{name}: {_notebook_type(field.annotation)} = {default}  # {text}")
    return "\n".join(lines)


def assigned_names(source: str) -> list[str]:
    """Names assigned at the top level of a cell, in order."""
    names = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def preset_names(experiment: str) -> list[str]:
    """Names of an experiment's presets; "quick" first."""
    folder = resources.files("salun_core.experiments") / "presets" / experiment
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir())
    return sorted(names, key=lambda name: name != "quick")


def _packaged(experiment: str, preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset's own values, and those that it takes from another experiment's."""
    file = resources.files("salun_core.experiments") / "presets" / experiment / f"{preset}.yaml"
    values = parse_yaml(file.read_text("utf8")) or {}
    if not (like := values.pop("like", None)):
        return values, {}
    other, _, name = like.rpartition("/")
    theirs, taken = _packaged(other or experiment, name)
    return (values, {**taken, **theirs}) if other else ({**theirs, **values}, taken)


def _extra(field: FieldInfo, name: str) -> Any:
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


def _members(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        yield from typing.get_args(annotation)
    else:
        yield annotation


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types that a value, or an entry of it, may have."""
    if typing.get_origin(annotation) is typing.Literal:
        yield str
    elif inner := typing.get_args(annotation):
        for part in inner:
            yield from _kinds(part)
    else:
        yield annotation


def _holds_truth(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_truth, value))
    return isinstance(value, bool)


def _is_list(field: FieldInfo) -> bool:
    return any(typing.get_origin(member) is tuple for member in _members(field.annotation))


def _notebook_type(annotation: Any) -> str:
    """A plain type's name: papermill shows it, and reads numbers and lists by it."""
    members = [m for m in _members(annotation) if m is not type(None)]
    kinds = [typing.get_origin(m) or m for m in members]
    if tuple in kinds:
        return "list"
    if dict in kinds:
        return "dict"
    return kinds[0].__name__ if len(kinds) == 1 and kinds[0] in (int, float, bool) else "str"


def _unknown(name: Any, known: Mapping[str, Any]) -> str:
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else f"the parameters are {', '.join(known)}"
    return f"unknown parameter {shown(name)}: {hint}"


def _first_sentence(error: ValidationError, groups: set[str]) -> str:
    problems = error.errors()
    first = problems[0]
    message = first["msg"].removeprefix("Value error, ")
    loc = first["loc"][1:] if first["loc"] and first["loc"][0] in groups else first["loc"]
    where = ".".join(str(part) for part in loc)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if not where or message.startswith(str(loc[0])):
        return message + more
    if first["type"] not in ("value_error", "missing"):  # pydantic's own words, not a name such as "FT"
        message = f"{message[0].lower()}{message[1:]}, got {shown(first['input'])}"
    return f"{where}: {message}{more}"
