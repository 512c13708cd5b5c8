"""The artefact behind every metric: one row of logits for each image."""

import hashlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from salun_core.data.batches import Batches, Loader
from salun_core.data.draws import lots, stratified_order
from salun_core.data.splits import ROLES
from salun_core.errors import Diverged, UserError
from salun_core.files import parse_json, regular, write_whole
from salun_core.models.classification.scores import class_scores
from salun_core.networks import evaluating

FIELDS = {"logits": torch.float32, "labels": torch.int64, "ids": torch.int64, "roles": torch.uint8}
FORMAT = "salun-evaluation-2"
STORED = (*FIELDS, "counts")
DRAW = "outputs"  # purpose of the lots by which images are drawn
SMALL = {
    "logits": torch.float16,
    "labels": torch.int16,
    "ids": torch.int32,
    "counts": torch.int32,
}  # as sampled


@dataclass(frozen=True)
class Evaluation:
    """What a model says of every image.

    Parameters
    ----------
    logits : Tensor
        float32 (n, K), finite, on the CPU.
    labels : Tensor
        True classes, int64 (n,).
    ids : Tensor
        Sample ids, int64 (n,), each once.
    roles : Tensor
        uint8 (n,), positions in ``data.splits.ROLES``.
    counts : Tensor
        int64 (R, K, K): by role, how many images of each true class (rows) were taken for each class. Where
        only a part of the images is kept, see `sampled`, the counts are still those of all; otherwise they
        need not be given.

    Raises
    ------
    UserError
        If the parts do not fit together or a logit is not finite.
    """

    logits: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    roles: Tensor = field(repr=False)
    counts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), repr=False)

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name, dtype in FIELDS.items():
            value = getattr(self, name)
            if value.dtype != dtype or len(value) != n or value.ndim != (2 if name == "logits" else 1):
                raise UserError(
                    f"{name} of an evaluation is {value.dtype} {tuple(value.shape)} for {n} images"
                )
        if not torch.isfinite(self.logits).all():
            raise Diverged("the model gives logits that are not finite: its weights are damaged or diverged")
        if len(self.ids.unique()) < n:
            raise UserError("an image has two roles: forget, retain and held-out images must be disjoint")
        if not self.counts.numel():
            object.__setattr__(self, "counts", self._counted())

    def _counted(self) -> Tensor:
        classes = max(self.logits.size(1), int(self.labels.max()) + 1 if len(self.labels) else 1)
        place = (self.roles.long() * classes + self.labels) * classes + self.logits.argmax(dim=1)
        shape = (len(ROLES), classes, classes)
        return torch.bincount(place, minlength=len(ROLES) * classes**2).view(shape)

    def confusion(self, role: str) -> Tensor:
        """Images of a role by true class (rows) and by the class the model takes them for, int64 (K, K)."""
        return self.counts[ROLES.index(role)]

    def sampled(self, most: int) -> "Evaluation":
        """At most ``most`` images of each role, drawn by class; the counts stay those of all images.

        The draw depends on the ids and labels of a role alone: models of one split keep the same images. They
        are those that the membership attack draws as well.
        """
        kept = []
        for role in ROLES:
            rows = self.rows(role)
            order = stratified_order(self.labels[rows], lots(self.ids[rows], DRAW))
            kept.append(rows[order[:most]].sort().values)
        some = torch.cat(kept)
        most_half = torch.finfo(SMALL["logits"]).max
        # What a small file holds, here too.
        logits = self.logits[some].clamp(-most_half, most_half).to(SMALL["logits"]).float()
        return Evaluation(logits, self.labels[some], self.ids[some], self.roles[some], self.counts)

    def rows(self, role: str) -> Tensor:
        """Positions of the images in a role, in the order of their ids, int64 (n,)."""
        rows = (self.roles == ROLES.index(role)).nonzero().view(-1)
        return rows[self.ids[rows].argsort()]

    def part(self, role: str) -> tuple[Tensor, Tensor]:
        """Logits and labels of the images in a role, in the order of their ids."""
        rows = self.rows(role)
        return self.logits[rows], self.labels[rows]

    def size(self, role: str) -> int:
        """Number of images in a role."""
        return int((self.roles == ROLES.index(role)).sum())

    def to_bytes(self, *, compressed: bool = False) -> bytes:
        """The artefact as a safetensors file with a digest of its content; ``compressed`` in half precision, by xz."""
        tensors = {name: getattr(self, name).contiguous() for name in STORED}
        header = {"format": FORMAT, "roles": json.dumps(ROLES), "sha256": _digest(tensors)}
        if not compressed:
            return save(tensors, metadata=header)
        small = {name: value.to(SMALL.get(name, value.dtype)) for name, value in tensors.items()}
        return lzma.compress(save(small, metadata=header), preset=9)

    def save(self, path: Path | str) -> Path:
        """Write the artefact, whole or not at all."""
        return write_whole(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path | str) -> "Evaluation":
        """Read an artefact.

        Raises
        ------
        UserError
            If the file is missing, truncated or edited.
        """
        try:
            content = regular(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; run the cell again") from error
        try:
            if Path(path).suffix == ".xz":
                content = lzma.decompress(content)
            tensors = {n: v.to(FIELDS.get(n, torch.int64)).contiguous() for n, v in load(content).items()}
            size = int.from_bytes(content[:8], "little")
            header = parse_json(content[8 : 8 + size]).get("__metadata__", {})
        except (SafetensorError, ValueError, lzma.LZMAError, EOFError) as error:
            raise UserError(f"{path} is damaged: delete it and run the cell again") from error
        if header.get("format") != FORMAT or tensors.keys() != set(STORED):
            raise UserError(f"{path} is not a stored evaluation: give an .outputs file of a run")
        if header.get("sha256") != _digest(tensors):
            raise UserError(f"{path} has been changed since it was written: delete it and run the cell again")
        return cls(**tensors)


def evaluate(model: nn.Module, parts: Mapping[str, Loader]) -> Evaluation:
    """Run a model once over every image, in evaluation mode and without augmentation.

    Parameters
    ----------
    model : nn.Module
        Float images (N, C, H, W) to logits (N, K). Left in the mode it was in.
    parts : mapping of str to Batches or Stream
        Images by role. Those of a stream have no ids of their own: then all images are numbered in turn.
    """
    logits, labels, roles = [], [], []
    with torch.no_grad(), evaluating(model):
        for role, batches in parts.items():
            for images, true in batches:
                logits.append(class_scores(model, images).float().cpu())
                labels.append(true.cpu())
                roles.append(torch.full((len(true),), ROLES.index(role), dtype=torch.uint8))
    known = [batches.ids.cpu() for batches in parts.values() if isinstance(batches, Batches)]
    ids = torch.cat(known) if len(known) == len(parts) else torch.arange(sum(map(len, labels)))
    return Evaluation(torch.cat(logits), torch.cat(labels), ids, torch.cat(roles))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in STORED:
        sha.update(f"{name} {tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy().data)
    return sha.hexdigest()
