"""The artefact behind every metric of a generator: what the judge says of each image, and moments of its features."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from salun_core.errors import UserError
from salun_core.files import parse_json, regular
from salun_core.metrics.generation.frechet import Moments, frechet_distance
from salun_core.metrics.generation.recognition import Recognition
from salun_core.metrics.share import Share

FORMAT = "salun-generation-1"


@dataclass(frozen=True)
class Reference:
    """Real images of the classes that were not to be forgotten, as moments of their features.

    Parameters
    ----------
    name : str
        Which features, "FID (Inception features)" or others.
    real : Moments
        Training images.
    held_out : Moments
        Other real images, as many as there are generated ones: what perfect samples would show.
    """

    name: str
    real: Moments
    held_out: Moments

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors = self.real.tensors("real") | self.held_out.tensors("held_out")
        return save(tensors, metadata={"format": FORMAT, "name": self.name})

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `to_bytes` wrote, once for all cells that share it.

        Raises
        ------
        UserError
            If the file is missing or damaged.
        """
        changed = path.stat() if path.is_file() else None
        return _reference(path, changed and (changed.st_mtime_ns, changed.st_size))


@dataclass(frozen=True)
class GeneratedOutputs:
    """What is known of the images that an unlearned generator drew.

    Parameters
    ----------
    logits : Tensor
        float32 (n, J): the judge's answer to each image; J is K, or more for a judge that knows other classes.
    labels : Tensor
        int64 (n,): the class each image was asked for.
    prompts : Tensor
        int64 (n,): kind of prompt, a position in ``kinds``.
    kinds : tuple of str
        Kinds of prompts; the first is the one that tables speak of.
    forgotten : tuple of int
        The classes that were to be forgotten.
    classes : int
        Rows and columns of the confusion.
    moments : Moments
        Of the features of the other classes' images, first kind of prompt.
    reference : Reference
        What they are compared with.
    extra : mapping of str to Tensor
        Further values: of each image of the other classes, first kind, ``clip_score`` and ``clip_right``; of
        classes in styles ``crossed_asked`` and ``crossed_seen``, (2, m) each; of images for ordinary captions
        ``caption_clip``, its error, ``caption_distance`` and ``caption_n``.
    """

    logits: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    prompts: Tensor = field(repr=False)
    kinds: tuple[str, ...]
    forgotten: tuple[int, ...]
    classes: int
    moments: Moments = field(repr=False)
    reference: Reference = field(repr=False)
    extra: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def recognition(self, kind: str = "") -> Recognition:
        """Classes asked for by one kind of prompt, the first by default, against classes recognised."""
        rows = self.prompts == self.kinds.index(kind or self.kinds[0])
        asked, seen = self.labels[rows], self.logits[rows].argmax(dim=1)
        counts = torch.bincount(asked * self.classes + seen, minlength=self.classes**2)
        return Recognition(counts.view(self.classes, self.classes))

    def to_bytes(self, reference: str) -> bytes:
        """A safetensors file; ``reference`` names the file that the reference is in, beside it."""
        tensors = {
            "logits": self.logits.half(),
            "labels": self.labels.to(torch.int16),
            "prompts": self.prompts.to(torch.uint8),
            **self.moments.tensors("moments"),
            **{f"extra {name}": value for name, value in self.extra.items()},
        }
        about = {
            "kinds": json.dumps(self.kinds),
            "forgotten": ",".join(map(str, self.forgotten)),
            "classes": str(self.classes),
        }
        return save(tensors, metadata={"format": FORMAT, "reference": reference, **about})

    @classmethod
    def load(cls, path: Path) -> "GeneratedOutputs":
        """Read what `to_bytes` wrote.

        Raises
        ------
        UserError
            If a file is missing or damaged.
        """
        tensors, header = _read(path)
        return cls(
            tensors["logits"].float(),
            tensors["labels"].long(),
            tensors["prompts"].long(),
            tuple(json.loads(header["kinds"])),
            tuple(map(int, header["forgotten"].split(","))),
            int(header["classes"]),
            Moments.of(tensors, "moments"),
            Reference.load(path.with_name(header["reference"])),
            {n.removeprefix("extra "): v for n, v in tensors.items() if n.startswith("extra ")},
        )


def unlearning_accuracy(outputs: GeneratedOutputs, kind: str = "") -> Share | None:
    """UA: share of images asked for as a forgotten class that are not recognised as one."""
    return outputs.recognition(kind).unlearning_accuracy(outputs.forgotten) if _has(outputs, kind) else None


def other_accuracy(outputs: GeneratedOutputs, kind: str = "") -> Share | None:
    """OA: share of images of all other classes that are recognised as asked for."""
    return outputs.recognition(kind).other_accuracy(outputs.forgotten) if _has(outputs, kind) else None


def strays(outputs: GeneratedOutputs) -> Share:
    """Share of images of other classes that are recognised as a forgotten one."""
    return outputs.recognition().strays(outputs.forgotten)


def distance(outputs: GeneratedOutputs) -> float:
    """FD: squared Fréchet distance of the other classes' images to real ones."""
    return frechet_distance(outputs.moments, outputs.reference.real)


def distance_floor(outputs: GeneratedOutputs) -> float:
    """The same distance for as many held-out real images."""
    return frechet_distance(outputs.reference.held_out, outputs.reference.real)


def distance_name(outputs: GeneratedOutputs) -> str:
    """Features of that distance."""
    return outputs.reference.name


def distance_count(outputs: GeneratedOutputs) -> float:
    """Images behind that distance."""
    return outputs.moments.n


def confusion(outputs: GeneratedOutputs, kind: str = "") -> list[list[int]] | None:
    """Images by class asked for (rows) and class recognised."""
    return outputs.recognition(kind).counts.tolist() if _has(outputs, kind) else None


def mean_of(outputs: GeneratedOutputs, name: str) -> float | None:
    """Mean of a further value; None where it was not measured."""
    return float(outputs.extra[name].double().mean()) if name in outputs.extra else None


def _has(outputs: GeneratedOutputs, kind: str) -> bool:
    return not kind or kind in outputs.kinds


@lru_cache(maxsize=4)
def _reference(path: Path, changed: tuple[int, int] | None) -> Reference:
    tensors, header = _read(path)
    return Reference(header["name"], Moments.of(tensors, "real"), Moments.of(tensors, "held_out"))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content = regular(path).read_bytes()
        tensors = load(content)
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run the cell again") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: delete it and run the cell again") from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} holds no outputs of a generator: delete it and run the cell again")
    return tensors, header
