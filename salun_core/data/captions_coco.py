"""COCO's captions by path: prompts for measuring how well a text-to-image model still draws ordinary scenes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from salun_core.data.prompts import MOST_CHARACTERS, PromptSet
from salun_core.errors import UserError
from salun_core.files import parse_json, regular
from salun_core.paths import expanded
from salun_core.rng import derive, generator

MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class CocoCaptions:
    """Captions of COCO, one for each image.

    Parameters
    ----------
    prompts : PromptSet
        N captions.
    files : tuple of str
        Names of the N images they describe.
    """

    prompts: PromptSet
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def paths(self, folder: Path | str) -> list[Path]:
        """Where the images lie in a folder, such as ``val2014``.

        Raises
        ------
        UserError
            If one is missing.
        """
        found = [expanded(folder) / name for name in self.files]
        if missing := [path for path in found if not path.is_file()]:
            raise UserError(
                f"{missing[0]} is missing, one of {len(missing)} of {len(found)} images: give COCO's folder that "
                "belongs to the captions"
            )
        return found


def read_coco_captions(path: Path | str, *, count: int | None = None, seed: int = 0) -> CocoCaptions:
    """Read an annotation file of COCO's captions and draw from it.

    Parameters
    ----------
    path : path
        ``captions_val2014.json`` or a file of the same form, at most 256 MiB.
    count : int, optional
        Images to draw; all by default. A larger draw begins with the smaller.
    seed : int
        Draws the images, and for each one of its captions. The order in the file does not matter.

    Returns
    -------
    CocoCaptions
        In the order drawn.

    Raises
    ------
    UserError
        If the file is missing, too large, of another kind, or holds fewer images.

    References
    ----------
    Lin et al., Microsoft COCO: Common objects in context, ECCV 2014.
    """
    path = expanded(path)
    content = _content(path)
    try:
        held = parse_json(content)
        images = {int(row["id"]): str(row["file_name"]) for row in held["images"]}
        captions: dict[int, dict[int, str]] = {}
        for row in held["annotations"]:
            text = " ".join(row["caption"].split())
            if text and len(text) <= MOST_CHARACTERS:
                captions.setdefault(int(row["image_id"]), {})[int(row["id"])] = text
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a COCO captions file: give captions_val2014.json or a file of the same form"
        ) from error
    numbers = sorted(images.keys() & captions.keys())
    if not numbers or (count is not None and not 0 < count <= len(numbers)):
        raise UserError(
            f"{path} has captions of {len(numbers)} images, and {count or 'some'} were asked for: ask for fewer"
        )
    order = torch.randperm(len(numbers), generator=generator(seed, "coco images"))[:count]
    drawn = [numbers[i] for i in order.tolist()]
    texts = [_one_of(captions[number], derive(seed, "coco caption", number)) for number in drawn]
    digest = hashlib.sha256(content).hexdigest()
    return CocoCaptions(
        PromptSet(path.stem, tuple(texts), digest=digest), tuple(images[number] for number in drawn)
    )


def _one_of(captions: dict[int, str], draw: int) -> str:
    return captions[sorted(captions)[draw % len(captions)]]


def _content(path: Path) -> bytes:
    try:
        size = regular(path).stat().st_size
        if size > MOST_BYTES:
            raise UserError(
                f"{path} has {size / 2**20:.0f} MiB, more than {MOST_BYTES // 2**20}: give a file of captions"
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give COCO's captions_val2014.json or a file of the same form"
        ) from error
