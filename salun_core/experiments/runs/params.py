"""Parameters of an experiment: one model for notebooks, YAML files and the command line."""

import ast
import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from salun_core.errors import UserError


class Params(BaseModel):
    """Base of the experiments' parameters.

    A value of None means "as the preset says". A preset is a YAML file,
    ``salun_core/experiments/presets/EXPERIMENT/NAME.yaml``, or any YAML file given by its path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    experiment: ClassVar[str]
    fixed: ClassVar[tuple[str, ...]] = ()  # fields that have one value in this experiment

    @classmethod
    def load(cls, given: Mapping[str, Any]) -> Self:
        """Check ``given`` on top of the preset it names.

        Raises
        ------
        UserError
            One sentence for the first thing that is wrong, with a suggestion for a misspelt name.
        """
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in cls.model_fields:
                raise UserError(_unknown(name, cls))
        values, preset = dict(given), None
        if "preset" in cls.model_fields:
            preset = str(given.get("preset", cls.model_fields["preset"].default))
            values = {**read_preset(cls.experiment, preset), **given, "preset": preset}
        for name in values:
            if name not in cls.model_fields:
                raise UserError(f"preset {preset!r}: {_unknown(name, cls)}")
        try:
            checked = cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_first_sentence(error)) from None
        cls.check_given(given, checked)
        return checked

    @classmethod
    def check_given(cls, given: dict[str, Any], checked: Any) -> None:
        """Refuse values given by the user that the rest makes meaningless; nothing by default."""

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
        assigned = assigned or [name for name in cls.model_fields if name in namespace]
        return cls.load(
            {name: namespace.get(name) for name in dict.fromkeys(assigned)} | _nones(assigned, cls)
        )

    def shown(self) -> dict[str, Any]:
        """The parameters as plain values, for a table or a YAML file."""
        return self.model_dump(mode="json")


def assigned_names(source: str) -> list[str]:
    """Names assigned at the top level of a cell, in order."""
    names = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def read_preset(experiment: str, preset: str) -> dict[str, Any]:
    """Values of a preset by name, or of a YAML file by path.

    Raises
    ------
    UserError
        If there is neither such a preset nor such a file, or the file is not a YAML mapping.
    """
    folder = resources.files("salun_core.experiments") / "presets" / experiment
    if preset.endswith((".yaml", ".yml")):
        return read_yaml(Path(preset))
    file = folder / f"{preset}.yaml"
    if not file.is_file():
        known = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir())
        near = difflib.get_close_matches(preset, known, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"choose one of {', '.join(known)}, or give a .yaml file"
        )
        raise UserError(f"unknown preset {preset!r}: {hint}")
    values = yaml.safe_load(file.read_text("utf8")) or {}
    like = values.pop("like", None)  # a preset may name another that it differs from
    return {**read_preset(experiment, like), **values} if like else values


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file."""
    try:
        values = yaml.safe_load(path.read_text("utf8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise UserError(f"{path} is not valid YAML{line}: write one 'name: value' a line") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'name: value' lines, not a {type(values).__name__}")
    return values


def _nones(assigned: list[str], cls: type[Params]) -> dict[str, Any]:
    # A name set to None means "as the preset says", but a misspelt one must be refused all the same.
    for name in assigned:
        if name not in cls.model_fields:
            raise UserError(_unknown(name, cls))
    return {}


def _unknown(name: str, cls: type[Params]) -> str:
    near = difflib.get_close_matches(name, cls.model_fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the parameters are {', '.join(cls.model_fields)}"
    return f"unknown parameter {name!r}: {hint}"


def _first_sentence(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if not where:
        return message + more
    given = f", got {first['input']!r}" if first["type"] not in ("value_error", "missing") else ""
    return f"{where}: {message[0].lower()}{message[1:]}{given}{more}"


def numeric(value: Any) -> Any:
    """Text that reads as a number as that number: YAML 1.1 leaves 1e-4 a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def find_device(name: str) -> torch.device:
    """The device asked for; "auto" is a CUDA accelerator if there is one.

    Raises
    ------
    UserError
        If the name is unknown or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"device {name!r} is not supported (masks need double precision): choose auto, cpu or cuda"
        )
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise UserError(f"device {name!r} was asked for, but torch sees no such accelerator: choose cpu")
    return device
