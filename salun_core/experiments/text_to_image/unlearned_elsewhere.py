"""Cells of networks that others have unlearned: they are measured and probed like ours, and nothing is trained."""

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from salun_core.errors import UserError
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.files import sha256
from salun_core.models.text_to_image.unlearned import load_unlearned, unlearned_files
from salun_core.paths import expanded, project_root

METHOD = "given"


@dataclass(frozen=True)
class UnlearnedElsewhere(Cell):
    """A network in files, in the place of a method.

    Parameters
    ----------
    path : Path
        File or folder.
    digest : str
        Of the files that are read.
    """

    _: KW_ONLY
    path: Path
    digest: str

    def __post_init__(self) -> None:
        """Nothing to check: `given_cells` has read the files."""

    @property
    def all_settings(self) -> dict[str, Any]:
        """None: how it was unlearned is not known here."""
        return {}

    @property
    def what(self) -> dict[str, Any]:
        """What determines its result, as JSON values: the files, whatever they are called."""
        scenario = {"kind": self.scenario.kind, "target": self.scenario.target}
        return {
            "seed": self.seed,
            "unlearning_seed": 0,
            "scenario": scenario,
            "method": METHOD,
            "settings": {},
            "mask": {"kind": "none"},
            "files": self.digest,
        }

    @property
    def label(self) -> str:
        """What is being run, for progress bars and messages."""
        return f"{self.scenario.label}, {self.tags['method']}"


def given_cells(
    sources: Sequence[Path], pipe: Any, scenario: Scenario, seed: int
) -> list[UnlearnedElsewhere]:
    """A cell for each file or folder; its row in tables is called by the name of the file.

    Parameters
    ----------
    sources : sequence of path
        As in `load_unlearned`; relative paths also from the top of the project.
    pipe : pipeline of diffusers
        The one that they were unlearned from.
    scenario, seed
        Of the cells.
    """
    made = []
    for source, name in zip(sources, names_of(sources), strict=True):
        path = place_of(source)
        digests = sorted(sha256(file) for file in unlearned_files(path, pipe))
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()
        tags = {"study": "methods", "method": name}
        made.append(UnlearnedElsewhere(seed, scenario, METHOD, tags=tags, path=path, digest=digest))
    return made


def check_given(sources: Sequence[Path], pipe: Any) -> None:
    """Read every network once, so that one that does not fit is refused before anything is computed.

    Raises
    ------
    UserError
        If one is missing, damaged, or not of this pipeline, or if two have the same name.
    """
    names_of(sources)
    for source in sources:
        load_unlearned(place_of(source), pipe)


def names_of(sources: Sequence[Path]) -> list[str]:
    """What the networks are called in tables: "erased-church (given)".

    Raises
    ------
    UserError
        If two of them have one name.
    """
    names = []
    for source in sources:
        own = source.parent if source.name in ("unet", "transformer") else source
        name = f"{own.name if place_of(source).is_dir() else own.stem} (given)"
        if name in names:
            raise UserError(
                f"unlearned names two networks {name.removesuffix(' (given)')}: rename one of them, so that "
                "their rows can be told apart"
            )
        names.append(name)
    return names


def place_of(source: Path) -> Path:
    """Where a file or folder lies, also relative to the top of the project."""
    path = expanded(source)
    return path if path.exists() or path.is_absolute() else project_root() / path
