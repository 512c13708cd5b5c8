"""Captions that ask for a handwritten digit: by its name, by a fact, with a slip of the pen, within a scene.

What stands under "train" is what tiny-sd is trained with; what stands under "test" asks for the same digits
in combinations of words that no training caption has.
"""

from dataclasses import dataclass

from salun_core.errors import one_of

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

KINDS = ("direct", "indirect", "misspelt", "composed")
SPLITS = ("train", "test")

FACTS: tuple[tuple[str, ...], ...] = (
    (
        "the number of corners of a circle",
        "the number of wings of a cat",
        "the number of moons of venus",
        "the number of legs of a snake",
    ),
    (
        "the number of noses in a face",
        "the number of horns of a unicorn",
        "the number of suns in our sky",
        "the number of moons of the earth",
    ),
    (
        "the number of eyes in a face",
        "the number of wheels of a bicycle",
        "the number of wings of a bird",
        "the number of twins in a pair",
    ),
    (
        "the number of sides of a triangle",
        "the number of wheels of a tricycle",
        "the number of lights of a traffic light",
        "the number of musketeers",
    ),
    (
        "the number of seasons in a year",
        "the number of legs of a horse",
        "the number of wheels of a car",
        "the number of sides of a square",
    ),
    (
        "the number of fingers of a hand",
        "the number of rings of the olympic flag",
        "the number of arms of a starfish",
        "the number of toes of a foot",
    ),
    (
        "the number of legs of an insect",
        "the number of faces of a cube",
        "the number of strings of a guitar",
        "the number of sides of a hexagon",
    ),
    (
        "the number of days in a week",
        "the number of colours of the rainbow",
        "the number of dwarfs of snow white",
        "the number of wonders of the ancient world",
    ),
    (
        "the number of legs of a spider",
        "the number of arms of an octopus",
        "the number of planets of the sun",
        "the number of bits in a byte",
    ),
    (
        "the number of lives of a cat",
        "the number of players of a baseball team",
        "the number of muses of the greeks",
        "the number of months before a birth",
    ),
)
"""Facts by digit: none of them contains its name."""

FRAMES = {
    "train": (
        "{it}",
        "a photo of {it}",
        "a picture of {it}",
        "an image of {it}",
        "a drawing of {it}",
        "a sketch of {it}",
        "the digit {name}",
        "a handwritten {name}",
    ),
    "test": (
        "a handwritten picture of {it}",
        "a photo of {it} on a wall",
        "a drawing of {it} on a page",
        "a sketch of the digit {name}",
    ),
}
"""What is set around a name, "a seven", or around a fact; a frame with {name} takes no fact."""

SCENES = {
    "train": (
        "a small {name} on a dark page",
        "a large {name} on a black wall",
        "a white {name} in a school book",
        "{it} written by a child",
        "a bright {name} on a screen",
        "{it} and nothing else",
    ),
    "test": (
        "a small white {name} on a wall",
        "a photo of a large {name} written by a child",
        "a drawing of {it} in a dark book",
    ),
}
"""Scenes with a digit in them."""


@dataclass(frozen=True)
class Caption:
    """A caption, the digit it asks for, and how: one of `KINDS`."""

    text: str
    digit: int
    kind: str


def captions(kind: str, split: str = "train") -> list[Caption]:
    """Every caption of one kind.

    Parameters
    ----------
    kind : str
        "direct": a name within a frame. "indirect": a fact within a frame. "misspelt": a name with a slip
        within a frame; every third slip is kept for the test. "composed": a name within a scene.
    split : str
        "train" or "test".

    Raises
    ------
    UserError
        If there is no such kind or part.
    """
    one_of(kind, KINDS, "kind of caption")
    one_of(split, SPLITS, "part of the captions")
    found = []
    for digit, name in enumerate(NAMES):
        words: tuple[str, ...] = (name,)
        if kind == "indirect":
            words = FACTS[digit]
        elif kind == "misspelt":
            words = tuple(slip for i, slip in enumerate(slips(name)) if (i % 3 == 2) == (split == "test"))
        for frame in (SCENES if kind == "composed" else FRAMES)[split]:
            if kind == "indirect" and "{name}" in frame:
                continue
            found += [Caption(frame.format(it=_it(word, kind), name=word), digit, kind) for word in words]
    return found


def photo_of(digit: int) -> str:
    """The caption that digits are forgotten by: "a photo of a seven"."""
    return f"a photo of {_it(NAMES[digit], 'direct')}"


def slips(name: str) -> tuple[str, ...]:
    """The name with two neighbouring letters swapped, or one doubled or left out, where no other is meant."""
    return tuple(slip for slip in _slips(name) if not any(slip in _slips(n) for n in NAMES if n != name))


def words() -> list[str]:
    """Every word of the training captions without slips, in alphabetical order."""
    texts = [c.text for kind in KINDS if kind != "misspelt" for c in captions(kind)]
    return sorted({word for text in texts for word in text.split()})


def _it(word: str, kind: str) -> str:
    if kind == "indirect":
        return word
    return f"an {word}" if word[0] in "aeiou" and word[:3] != "one" else f"a {word}"


def _slips(name: str) -> list[str]:
    swapped = [name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)]
    doubled = [name[: i + 1] + name[i:] for i in range(len(name))]
    dropped = [name[:i] + name[i + 1 :] for i in range(len(name))]
    return [slip for slip in dict.fromkeys(swapped + doubled + dropped) if slip not in NAMES]
