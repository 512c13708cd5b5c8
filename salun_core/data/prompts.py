"""Prompts that text-to-image models are measured with: from files, for digits, for classes, and the paper's own."""

import contextlib
import csv
import hashlib
import io
import itertools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from salun_core.data.captions import KINDS, captions
from salun_core.errors import UserError, one_of
from salun_core.files import regular
from salun_core.paths import expanded

MOST_BYTES = 64 * 2**20
MOST_CHARACTERS = 10_000  # of one prompt
I2P_ROWS = 4703
LARGEST = 10**15  # a seed is smaller
I2P_SEEDS = ("sd_seed", "evaluation_seed")
I2P_GUIDANCE = ("sd_guidance_scale", "evaluation_guidance")
"""Columns of I2P as its authors publish it, and of the copy that comes with ESD and SalUn."""

IMAGENETTE = {
    "tench": 0,
    "English springer": 217,
    "cassette player": 482,
    "chain saw": 491,
    "church": 497,
    "French horn": 566,
    "garbage truck": 569,
    "gas pump": 571,
    "golf ball": 574,
    "parachute": 701,
}
"""Classes of Imagenette with their numbers in ImageNet, in the order of its folders."""

CANVAS = "A {object} image in {style} style."
"""The prompts of UnlearnCanvas, for each of its objects in each of its styles."""

CLASS_FORGET = "an image of a {}"
CLASS_TEST = "Image of {}"
"""Prompts for a class of Imagenette in forgetting and in measuring, as the released code has them."""

NSFW_FORGET = "a photo of a nude person"
NSFW_REPLACEMENT = NSFW_RETAIN = "a photo of a person wearing clothes"
"""What the paper forgets to make a model safe; what replaces it and what is kept share one prompt."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts with what is known of each.

    Parameters
    ----------
    name : str
        Name for tables and captions.
    texts : tuple of str
        N prompts.
    seeds : tuple of int
        Number of the noise of each image; empty if none are given.
    guidance : tuple of float
        w of `models.unet.guided_noise` for each prompt; empty if none are given.
    categories : tuple of tuple of str
        Categories of unsafe content that each prompt is listed under; empty if none are given.
    digest : str
        SHA-256 of the file they were read from, or of the texts.
    """

    name: str
    texts: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not self.texts:
            raise UserError(f"{self.name} holds no prompts: give at least one")
        for what in ("seeds", "guidance", "categories"):
            given = getattr(self, what)
            if given and len(given) != len(self.texts):
                raise UserError(
                    f"{self.name} has {len(self.texts)} prompts and {len(given)} {what}: give one each"
                )
        if not self.digest:
            digest = hashlib.sha256("\n".join(self.texts).encode()).hexdigest()
            object.__setattr__(self, "digest", digest)

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, numbers: Sequence[int]) -> "PromptSet":
        """Some of the prompts, by their numbers."""
        picked: dict[str, Any] = {
            what: tuple(getattr(self, what)[i] for i in numbers) if getattr(self, what) else ()
            for what in ("texts", "seeds", "guidance", "categories")
        }
        return replace(self, **picked)

    def without_guidance(self) -> "PromptSet":
        """The same prompts, to be drawn with the guidance of the run."""
        return replace(self, guidance=())

    @property
    def identity(self) -> str:
        """SHA-256 of all that determines what is drawn: texts, seeds and guidance."""
        values = (self.texts, self.seeds, self.guidance)
        return hashlib.sha256(repr(values).encode()).hexdigest()

    def about(self, category: str) -> "PromptSet":
        """The prompts of one category.

        Raises
        ------
        UserError
            If no prompt is of that category.
        """
        known = sorted({c for each in self.categories for c in each})
        one_of(category, known, f"category of {self.name}")
        return self.rows([i for i, each in enumerate(self.categories) if category in each])


def read_prompts(
    path: Path | str,
    *,
    column: str = "prompt",
    seeds: str = "",
    guidance: str = "",
    categories: str = "",
    rows: int | None = None,
    empty: bool = False,
) -> PromptSet:
    """Read prompts from a CSV file with a header; the content is data and nothing else.

    Parameters
    ----------
    path : path
        UTF-8, at most 64 MiB.
    column : str
        Column with the prompts.
    seeds, guidance, categories : str
        Columns with whole numbers, with guidance scales (which count w + 1), and with names between commas.
    rows : int, optional
        How many prompts there must be.
    empty : bool
        Accept prompts without text; they are kept, as the empty prompt.

    Raises
    ------
    UserError
        If the file is missing, too large, no text, lacks a column, or has another number of rows or a value
        that is none; with the line.
    """
    path = expanded(path)
    names, found, digest = _table(path)
    for wanted in filter(None, (column, seeds, guidance, categories)):
        if wanted not in names:
            raise UserError(
                f"{path} has no column {wanted!r}: it has {', '.join(map(repr, names)) or 'none'}"
            )
        if names.count(wanted) > 1:
            raise UserError(f"{path} has the column {wanted!r} twice: leave one of them out")
    if rows is not None and len(found) != rows:
        raise UserError(f"{path} has {len(found)} prompts instead of {rows}: copy the whole file")
    for number, row in enumerate(found, start=1):
        if None in row or any(value is None for value in row.values()):
            raise UserError(
                f"row {number} of {path} does not have as many fields as the header: copy the file again"
            )
        said = row[column].strip()
        if not (said or empty) or len(said) > MOST_CHARACTERS:
            raise UserError(
                f"row {number} of {path} has a prompt of {len(said)} characters: "
                f"give 1 to {MOST_CHARACTERS:,}"
            )
    return PromptSet(
        path.stem,
        tuple(row[column].strip() for row in found),
        tuple(_number(row, seeds, i, path) for i, row in enumerate(found, start=1)) if seeds else (),
        tuple(_scale(row, guidance, i, path) for i, row in enumerate(found, start=1)) if guidance else (),
        tuple(_names(row[categories]) for row in found) if categories else (),
        digest,
    )


def read_i2p(path: Path | str, *, rows: int | None = I2P_ROWS) -> PromptSet:
    """Read the prompts of I2P, with the seed and guidance that each is drawn with.

    Parameters
    ----------
    path : path
        ``i2p_benchmark.csv``, or the copy that comes with the released code of ESD and SalUn,
        ``unsafe-prompts4703.csv``, in which one prompt has lost its text.
    rows : int, optional
        Prompts it must hold; None for a part of it.

    References
    ----------
    Schramowski et al., Safe latent diffusion, CVPR 2023 (Inappropriate Image Prompts).
    """
    names, _, _ = _table(expanded(path))
    seeds, guidance = (
        next((name for name in known if name in names), known[0]) for known in (I2P_SEEDS, I2P_GUIDANCE)
    )
    return read_prompts(path, seeds=seeds, guidance=guidance, categories="categories", rows=rows, empty=True)


def digit_prompts(digit: int, split: str = "test") -> dict[str, PromptSet]:
    """Prompts for a digit by kind: direct, indirect, misspelt, composed; see `data.captions`."""
    if not 0 <= digit <= 9:
        raise UserError(f"there is no digit {digit}: give one from 0 to 9")
    return {
        kind: PromptSet(f"{kind} prompts", tuple(c.text for c in captions(kind, split) if c.digit == digit))
        for kind in KINDS
    }


def class_prompts(names: Sequence[str], templates: Sequence[str] = (CLASS_TEST,)) -> dict[str, PromptSet]:
    """Prompts for classes by name, one for each template; {} stands for the name.

    Raises
    ------
    UserError
        If a template has no place for the name.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"the template {template!r} must hold {{}} once, where the class name goes")
    return {name: PromptSet(name, tuple(t.format(name) for t in templates)) for name in names}


def _table(path: Path) -> tuple[list[str], list[dict[str, str]], str]:
    """Column names and rows of a CSV file, and the file's digest."""
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV in UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} is not a text file: give a CSV file")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        found = list(reader)
    except csv.Error as error:
        raise UserError(
            f"{path} is not valid CSV near line {reader.line_num}: {error}; copy it again"
        ) from error
    return list(reader.fieldnames or []), found, hashlib.sha256(content).hexdigest()


def crossed_prompts(
    domains: Mapping[str, Sequence[str]], template: str = CANVAS
) -> tuple[PromptSet, dict[str, tuple[int, ...]]]:
    """A prompt for every combination of concepts, with the number of each concept in its domain.

    Parameters
    ----------
    domains : mapping of str to sequence of str
        Names by domain, such as ``{"style": ["Van_Gogh", "Sketch"], "object": ["Cats", "Dogs"]}``;
        underscores are read as blanks.
    template : str
        Holds every domain once, in braces.

    Returns
    -------
    prompts, asked
        N prompts, the last domain changing fastest, and what `metrics.generation.canvas.retention` takes as
        ``asked``.

    Raises
    ------
    UserError
        If the template and the domains do not fit, or a domain is empty.
    """
    held = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    if sorted(held) != sorted(domains):
        raise UserError(
            f"the template {template!r} must hold each of {', '.join(f'{{{name}}}' for name in domains)} once"
        )
    sizes = [range(len(names)) for names in domains.values()]
    rows = list(itertools.product(*sizes))
    spoken = {name: [each.replace("_", " ") for each in names] for name, names in domains.items()}
    texts = [
        template.format(**{name: spoken[name][i] for name, i in zip(domains, row, strict=True)})
        for row in rows
    ]
    asked = {name: tuple(row[place] for row in rows) for place, name in enumerate(domains)}
    return PromptSet(" x ".join(domains), tuple(texts)), asked


def _content(path: Path) -> bytes:
    try:
        size = regular(path).stat().st_size
        if size > MOST_BYTES:
            raise UserError(
                f"{path} has {size / 2**20:.0f} MiB, more than {MOST_BYTES // 2**20}: give a file of prompts"
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give a CSV file with a column of prompts, such as I2P's "
            "i2p_benchmark.csv"
        ) from error


def _number(row: Mapping[str, str], column: str, number: int, path: Path) -> int:
    with contextlib.suppress(ValueError):
        if abs(value := int(row[column])) < LARGEST:
            return value
    raise UserError(
        f"row {number} of {path} has {row[column][:40]!r} for {column}: give a whole number of at most 15 digits"
    )


def _scale(row: Mapping[str, str], column: str, number: int, path: Path) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1000:
        raise UserError(f"row {number} of {path} has {row[column][:40]!r} for {column}: give 1 to 1000")
    return value - 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
