"""Which images are forgotten, kept, and used to measure."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salun_core.data.images import ImageData
from salun_core.errors import UserError, one_of
from salun_core.files import regular
from salun_core.paths import expanded
from salun_core.rng import generator

ROLES = ("forget", "retain", "validation", "test", "validation_forgotten", "test_forgotten")
"""Roles of an image. The two last hold held-out images of a forgotten class, left out of accuracies."""

SCENARIOS = ("random", "class", "indices")

ID_COLUMNS = ("id", "ids", "sample_id", "index", "indices")


@dataclass(frozen=True, eq=False)
class Split(Mapping[str, Tensor]):
    """Sample ids (int64, ascending) by role; every image of the data set has exactly one role.

    Parameters
    ----------
    ids : mapping of str to Tensor
        One entry for each of ``ROLES``; a role may be empty.
    """

    ids: Mapping[str, Tensor]

    def __getitem__(self, role: str) -> Tensor:
        return self.ids[role]

    def __iter__(self) -> Iterator[str]:
        return iter(ROLES)

    def __len__(self) -> int:
        return len(ROLES)

    @property
    def train(self) -> Tensor:
        """Ids the original model is trained on: forget and retain set, ascending."""
        return torch.cat([self["forget"], self["retain"]]).sort().values


def split_data(
    data: ImageData,
    *,
    scenario: str,
    seed: int,
    forget_fraction: float | None = 0.1,
    forget_class: int | str | Sequence[int | str] | None = None,
    forget_ids: Sequence[int] | Tensor | Path | str | None = None,
    validation: float = 0.1,
) -> Split:
    """Give every image a role.

    The validation part is drawn from ``seed`` alone, by class, before anything is forgotten: the original
    model of a seed is the same for every scenario, and no method is tuned on what it is judged by. Listed
    ids never come into it.

    Parameters
    ----------
    data : ImageData
        Training images first.
    scenario : str
        "random": a share of the training images; "class": all images of a class, or of several; "indices":
        listed ids.
    seed : int
        Draws the validation part and the random share. A larger share of one seed contains the smaller.
    forget_fraction : float
        Share of the training images (validation excluded) to forget, in (0, 1); for "random".
    forget_class : int, str or sequence of them, optional
        Names or numbers of classes, see `class_numbers`; for "class". The validation and test images of
        these classes get roles of their own.
    forget_ids : sequence of int or path, optional
        Sample ids to forget, or a file of them (see `read_ids`); for "indices". All must be training images.
    validation : float
        Share of the training images set aside, in [0, 1).

    Raises
    ------
    UserError
        If the request leaves no image to forget or to keep, or names what is not there.
    """
    one_of(scenario, SCENARIOS, "scenario")
    if not 0 <= validation < 1:
        raise UserError(
            f"validation must lie in [0, 1), got {validation:g}: 0.1 sets 10% of the images aside"
        )
    n = len(data.labels)
    held_out = torch.zeros(n, dtype=torch.bool)
    listed = _listed(forget_ids, data) if scenario == "indices" else None
    held_out[validation_ids(data, seed=seed, share=validation, without=listed)] = True
    is_train = torch.arange(n) < data.n_train
    candidates = (is_train & ~held_out).nonzero().view(-1)
    of_target = torch.zeros(n, dtype=torch.bool)
    if scenario == "random":
        forget = _random_share(candidates, forget_fraction, seed)
    elif scenario == "class":
        numbers = class_numbers(data, forget_class)
        of_target = torch.isin(data.labels, torch.tensor(numbers))
        forget = candidates[of_target[candidates]]
        for number in numbers:
            if not (data.labels[forget] == number).any():
                raise UserError(
                    f"class {data.classes[number]!r} has no training images: choose another forget_class"
                )
    else:
        assert listed is not None
        forget = listed
    forgotten = torch.zeros(n, dtype=torch.bool)
    forgotten[forget] = True
    roles = {
        "forget": forgotten,
        "retain": is_train & ~held_out & ~forgotten,
        "validation": held_out & ~of_target,
        "validation_forgotten": held_out & of_target,
        "test": ~is_train & ~of_target,
        "test_forgotten": ~is_train & of_target,
    }
    if not roles["retain"].any():
        raise UserError(f"forgetting all {len(candidates)} training images leaves none to keep: forget fewer")
    return Split({role: roles[role].nonzero().view(-1) for role in ROLES})


def validation_ids(
    data: ImageData, *, seed: int, share: float = 0.1, without: Tensor | None = None
) -> Tensor:
    """Ids of the training images that ``seed`` sets aside: a share of each class, ascending.

    The total is ``share`` of all training images, rounded; a class differs from its own share by less
    than one image, and always keeps at least one. Ids in ``without``, those listed to be forgotten, are
    never set aside.
    """
    labels = data.labels[: data.n_train]
    free = torch.ones(len(labels), dtype=torch.bool)
    if without is not None:
        free[without] = False
    sizes = torch.bincount(labels, minlength=len(data.classes))
    exact = sizes.double() * share
    counts = exact.floor().long()
    # The images still missing go to the classes with the largest remainder.
    missing = round(share * len(labels)) - int(counts.sum())
    order = (exact - counts).argsort(descending=True, stable=True)
    counts[order[:missing]] += 1
    counts = counts.minimum((sizes - 1).clamp_min(0))
    rng = generator(seed, "validation")
    taken = [torch.empty(0, dtype=torch.int64)]
    for label, count in enumerate(counts.tolist()):
        rows = ((labels == label) & free).nonzero().view(-1)
        taken.append(rows[torch.randperm(len(rows), generator=rng)[:count]])
    return torch.cat(taken).sort().values


def class_number(
    data: ImageData, given: int | str | None, *, parameter: str = "forget_class", also: Sequence[str] = ()
) -> int:
    """The number of a class given by name or number; where both would fit, the name counts.

    Parameters
    ----------
    data : ImageData
        Whose classes they are.
    given : int or str
        Name or number.
    parameter : str
        What it was given as, for messages.
    also : sequence of str
        Further names of the classes, in their order, for a class that the data do not call so.

    Raises
    ------
    UserError
        If there is no such class.
    """
    if given is None:
        raise UserError("scenario 'class' needs forget_class: give a class number or name")
    if str(given) in data.classes:
        return data.classes.index(str(given))
    if also.count(str(given)) == 1:
        return also.index(str(given))
    if isinstance(given, bool) or not re.fullmatch(r"-?\d+", str(given)):
        kind = "class" if parameter == "forget_class" else parameter
        one_of(str(given), tuple(dict.fromkeys([*data.classes, *also])), f"{kind} of {data.name}")
    number = int(given)
    if not 0 <= number < len(data.classes):
        raise UserError(
            f"{parameter} {number} is out of range: {data.name} has classes 0 to {len(data.classes) - 1}"
        )
    return number


def class_numbers(
    data: ImageData,
    given: int | str | Sequence[int | str] | None,
    *,
    parameter: str = "forget_class",
    also: Sequence[str] = (),
) -> list[int]:
    """The numbers of one class or of several, each as in `class_number`.

    Raises
    ------
    UserError
        If there is no such class, or one is named twice.
    """
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    numbers = [class_number(data, each, parameter=parameter, also=also) for each in several]
    if not numbers:
        raise UserError(f"the list of classes to forget is empty: give at least one {parameter}")
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise UserError(f"class {data.classes[twice[0]]!r} is to be forgotten twice: name every class once")
    return numbers


def read_ids(path: Path | str) -> list[int]:
    """Read sample ids from a file.

    Parameters
    ----------
    path : path
        ``.npy``: a one-dimensional array of whole numbers. ``.csv``: the column named id, ids, sample_id,
        index or indices, else the only column. Anything else: whole numbers separated by blanks, commas or
        lines; what follows ``#`` is ignored.

    Raises
    ------
    UserError
        If the file cannot be read, holds something else, or nothing.
    """
    path = regular(expanded(path))
    try:
        ids = _array_ids(path) if path.suffix == ".npy" else _text_ids(path)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; give a file with one sample id a line"
        ) from error
    if not ids:
        raise UserError(f"{path} holds no sample ids: write one whole number a line")
    return ids


def _array_ids(path: Path) -> list[int]:
    with path.open("rb") as file:
        try:
            array = np.load(file, allow_pickle=False)
        except Exception as error:  # a damaged file can raise almost anything
            raise UserError(f"{path} is not a NumPy array file: save the ids with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{path} must hold a one-dimensional array of whole numbers")
    return [int(i) for i in array]


def _text_ids(path: Path) -> list[int]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: write one sample id a line") from error
    if path.suffix.lower() == ".csv":
        words = _column(path, text)
    else:
        words = [
            word
            for line in text.splitlines()
            for word in re.split(r"[\s,;]+", line.partition("#")[0])
            if word
        ]
    for word in words:
        if not re.fullmatch(r"-?\d{1,18}", word):
            raise UserError(f"{path} holds {word[:40]!r}, which is not a sample id: write whole numbers")
    return [int(word) for word in words]


def _column(path: Path, text: str) -> list[str]:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), strict=True)]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file ({error}): save it as CSV again") from error
    rows = [row for row in rows if any(row)]
    if not rows:
        return []
    column = 0
    if not re.fullmatch(r"-?\d+", rows[0][0]):  # a header
        header = [name.lower() for name in rows.pop(0)]
        named = [i for i, name in enumerate(header) if name in ID_COLUMNS]
        if len(named) > 1 or (not named and len(header) > 1):
            raise UserError(
                f"{path} has the columns {', '.join(header)}: name the one with the sample ids 'id', and no other"
            )
        column = named[0] if named else 0
    elif any(len(row) > 1 for row in rows):
        raise UserError(f"{path} has several columns and no header: name the one with the sample ids 'id'")
    return [row[column] if column < len(row) else "" for row in rows]


def _random_share(candidates: Tensor, share: float | None, seed: int) -> Tensor:
    if share is None or not 0 < share < 1:
        raise UserError(f"forget_fraction must lie between 0 and 1 (both excluded), got {share}: 0.1 is 10%")
    count = round(share * len(candidates))
    if not 0 < count < len(candidates):
        rest = "to forget" if count == 0 else "to keep"
        raise UserError(
            f"forget_fraction {share:g} of {len(candidates)} training images leaves none {rest}: "
            f"choose a {'larger' if count == 0 else 'smaller'} share"
        )
    return candidates[torch.randperm(len(candidates), generator=generator(seed, "forget"))[:count]]


def _listed(given: Sequence[int] | Tensor | Path | str | None, data: ImageData) -> Tensor:
    if given is None:
        raise UserError("scenario 'indices' needs forget_ids: give sample ids or a file with one a line")
    ids = read_ids(given) if isinstance(given, str | Path) else [int(i) for i in given]
    if not ids:
        raise UserError("the list of sample ids to forget is empty: give at least one")
    if outside := [i for i in ids if not 0 <= i < data.n_train]:
        where = "in the test part" if data.n_train <= outside[0] < len(data.labels) else "out of range"
        raise UserError(
            f"sample id {outside[0]} is {where}: the training images of {data.name} are 0 to {data.n_train - 1}"
        )
    listed = torch.tensor(ids)
    values, times = listed.unique(return_counts=True)
    if len(values) < len(ids):
        raise UserError(f"sample id {int(values[times > 1][0])} is listed twice: list every image once")
    return listed
