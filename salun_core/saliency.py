"""Saliency masks: which weights a forgetting method may change.

A mask is a dict from weight name to a boolean tensor of the weight's shape; ``True`` marks a weight
that may change. The paper's threshold appears here as ``keep``, the share of weights marked.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from salun_core.data.batches import Batch, as_loader
from salun_core.errors import Diverged, UserError, lacks_memory, one_of
from salun_core.files import parse_json, regular, write_whole
from salun_core.networks import check_trainable, copied, device_of, evaluating, gradients, read_tensors
from salun_core.plugins import Failed, Table, called
from salun_core.rng import isolated

Mask = dict[str, Tensor]
Scores = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""``loss(model, batch)``, a mean over the images of the batch."""

FORMATS = ("safetensors", "official")
FORMAT = "salun-mask-1"  # of the first, in its header
TORCH_SAVE = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # how its files begin, since 2020 and before
CHUNK = 1 << 24  # entries looked at together when counting: 64 MiB of temporary memory


@dataclass(frozen=True)
class Rule:
    """How the gradients of the batches become one score per weight."""

    absolute_per_batch: bool = False  # sum of |gradient| instead of |sum of gradients|
    batch_means: bool = False  # every batch counts alike, also a short last one
    first_batch_only: bool = False
    train_mode: bool = False  # batch statistics in BatchNorm, dropout on
    ascent: float = 0.0  # learning rate of a step of gradient ascent after each batch
    clip: float = 0.0  # largest norm of a batch's gradient over all weights; 0 for no limit


OwnScore = Callable[[nn.Module, Iterable[Batch], Loss], Scores]
"""A score of another package: ``score(model, forget, loss)`` gives a non-negative tensor for each trainable weight."""


def _score(found: Any, name: str) -> "Rule | OwnScore":
    return found if isinstance(found, Rule) else called(found, name, "saliency score")


SCORES: Table[Rule | OwnScore] = Table(
    {
        "abs_sum": Rule(),  # the paper's: |gradient of the loss summed over the forget set|
        "sum_abs": Rule(absolute_per_batch=True),
        "batch_means": Rule(batch_means=True),  # released code since December 2023
        "clipped_batches": Rule(batch_means=True, clip=1.0),  # released code for class-conditional diffusion
        "first_batch": Rule(first_batch_only=True),
        "train_mode": Rule(train_mode=True),
        # October 2023: the weights moved by gradient ascent while the gradients were collected.
        "first_release": Rule(absolute_per_batch=True, batch_means=True, train_mode=True, ascent=0.01),
        "drifting": Rule(batch_means=True, ascent=0.01),  # 1 to 17 December 2023
    },
    what="saliency score",
    group="salun_core.scores",
    adapt=_score,
)
"""Definitions of the score found in the paper, in its code over time, and in public ports."""


LARGE = 100_000_000  # weights from which gradients are added up, and scores kept, on the CPU


def saliency_scores(
    model: nn.Module,
    forget: Iterable[Any],
    loss: Loss,
    *,
    score: str = "abs_sum",
    dtype: torch.dtype | None = None,
) -> Scores:
    """Score every weight by the size of the gradient of the forgetting loss.

    Parameters
    ----------
    model : nn.Module
        Read only; its mode, gradients and buffers stay as they are.
    forget : iterable
        The forget set: (images, condition) or dicts, see `Stream`. Give it without augmentation: a mask made from
        augmented images is another one for another draw.
    loss : callable
        ``loss(model, batch)``, a mean over the batch; weighted here by the batch's size, so that with
        the default score the result does not depend on how the set is cut into batches.
    score : str
        A key of ``SCORES``, or ``package.module:NAME`` of a `Rule` or a function (see `OwnScore`).
    dtype : torch.dtype, optional
        Precision of the gradients of a batch; they are added up in double precision in any case. By default the
        model's own, and single precision for a model in half precision, whose small gradients would vanish. Another
        one is that of a copy of the model: with ``torch.float64`` the scores of two batch sizes agree to more
        digits, at about four times the cost.

    Returns
    -------
    dict of str to Tensor
        Non-negative float32 tensors, one for each trainable weight: on the model's device, or on the CPU for a
        network of more than ``LARGE`` weights, whose sums would fill an accelerator.

    Raises
    ------
    UserError
        If ``forget`` holds no images, or a gradient is not finite.
    Diverged
        If it is a score that moves the weights between batches, and they overflow.

    References
    ----------
    Fan et al., SalUn, ICLR 2024, equation of the mask (section 4).
    """
    rule = SCORES[one_of(score, SCORES, "saliency score")]
    check_trainable(model)
    if not callable(loss):
        raise UserError(
            f"the loss is a {type(loss).__name__}: give a function loss(model, batch), such as task.loss"
        )
    # A task knows its classes, and a mask is usually made with the loss of one.
    classes = getattr(getattr(loss, "__self__", None), "classes", None)
    data = as_loader(forget, device=device_of(model), what="the forget set", classes=classes)
    if not isinstance(rule, Rule):
        return _own_scores(model, data, loss, rule, score)
    net = model
    if dtype is None and any(w.itemsize < 4 for w in model.parameters()):
        dtype = torch.float32
    other = dtype is not None and any(w.dtype != dtype for w in model.parameters())
    if other or rule.train_mode or rule.ascent:
        net = copied(model).to(dtype=dtype)
    with gradients(), evaluating(net), isolated(0, "saliency"):  # dropout draws in training mode
        net.train(rule.train_mode)
        weights = {name: w for name, w in net.named_parameters() if w.requires_grad}
        if not weights:
            raise UserError("all weights of the model are frozen: set requires_grad on those that may change")
        total = _summed_gradients(net, weights, data, loss, rule)
    # One at a time, so that sums and scores of a large network are not held together.
    scores = {name: total.pop(name).abs().float() for name in list(total)}
    finite = torch.stack([values.isfinite().all() for values in scores.values()]).tolist()
    for name, is_finite in zip(scores, finite, strict=True):
        if not is_finite:
            if rule.ascent:
                raise Diverged(f"the ascent of score {score} overflows on this model: choose another score")
            raise UserError(f"the gradient of {name} is not finite: check the model and the images for NaN")
    return scores


def _own_scores(model: nn.Module, forget: Iterable[Batch], loss: Loss, rule: OwnScore, score: str) -> Scores:
    with gradients(), evaluating(model), isolated(0, "saliency"):
        found = rule(model, forget, loss)
    wanted = {name: w.shape for name, w in model.named_parameters() if w.requires_grad}
    given = found if isinstance(found, Mapping) else {}
    if {name: getattr(values, "shape", None) for name, values in given.items()} != wanted:
        raise Failed(f"saliency score {score!r} must give one value for each trainable weight of the model")
    scores = {name: torch.as_tensor(found[name]).detach().float() for name in wanted}
    if not all(bool((values >= 0).all()) for values in scores.values()):
        raise Failed(f"saliency score {score!r} must give values of at least 0, and no NaN")
    return scores


def _summed_gradients(
    net: nn.Module, weights: Mapping[str, Tensor], forget: Iterable[Batch], loss: Loss, rule: Rule
) -> dict[str, Tensor]:
    first = next(iter(weights.values()))
    dtype = first.dtype
    place = torch.device("cpu") if _count(weights) > LARGE else first.device
    total: list[Tensor] = []
    for images, condition in forget:
        images = images.to(dtype) if images.is_floating_point() else images
        value = _mean_loss(loss, net, (images, condition)) * (1 if rule.batch_means else len(images))
        grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)
        if rule.clip:
            grads = _limited(grads, rule.clip)
        parts = [g.abs() for g in grads] if rule.absolute_per_batch else list(grads)
        # In double precision, so that the sum does not depend on how many batches there are.
        total = (
            [_added(t, p.to(place)) for t, p in zip(total, parts, strict=True)]
            if total
            else [p.to(place) for p in parts]
        )
        if rule.first_batch_only:
            break
        if rule.ascent:
            with torch.no_grad():
                scale = rule.ascent / (1 if rule.batch_means else len(images))
                for weight, grad in zip(weights.values(), grads, strict=True):
                    weight.add_(grad, alpha=scale)
        del value, grads, parts  # or they would be held while the next batch is computed
    if not total:
        raise UserError("the forget set holds no images: choose a larger forget_fraction or another class")
    return dict(zip(weights, total, strict=True))


def _mean_loss(loss: Loss, net: nn.Module, batch: Batch) -> Tensor:
    """The loss of a batch; an error in a user's own loss is reported in one sentence."""
    try:
        value = loss(net, batch)
    except UserError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        shape = " x ".join(map(str, batch[0].shape))
        raise UserError(
            f"loss(model, batch) cannot be computed on images of the forget set ({shape}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"the loss gives a {found}: return one number, the mean over the batch, as a tensor")
    if not value.requires_grad:
        raise UserError(
            "no gradient comes back from the loss: leave out torch.no_grad and detach in it and the model"
        )
    return value


def _limited(grads: Sequence[Tensor], most: float) -> tuple[Tensor, ...]:
    """Gradients scaled down together until their norm is ``most`` at most, as `clip_grad_norm_` does."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    return tuple(g * scale for g in grads)


def _added(total: Tensor, part: Tensor) -> Tensor:
    # The first gradient is not ours to change, and a forget set of one batch needs no second copy of it.
    return total.add_(part) if total.dtype == torch.float64 else total.double().add_(part)


def saliency_mask(
    model: nn.Module,
    forget: Iterable[Any],
    loss: Loss,
    *,
    keep: float = 0.5,
    score: str = "abs_sum",
    dtype: torch.dtype | None = None,
) -> Mask:
    """Mark the ``keep`` share of all weights with the largest ``|d loss / d weight|`` on ``forget``.

    All layers are ranked together; the count is exact (``round(keep * P)``), ties going to the earlier
    weight. See `saliency_scores` for the other parameters.

    Raises
    ------
    UserError
        If ``keep`` lies outside (0, 1], or as `saliency_scores` does.
    """
    check_keep(keep)
    return top_mask(saliency_scores(model, forget, loss, score=score, dtype=dtype), keep=keep)


def top_mask(scores: Scores, *, keep: float) -> Mask:
    """Mark the ``keep`` share of entries with the largest scores, over all tensors at once."""
    check_keep(keep)
    return _largest(scores, round(keep * _count(scores)))


def least_salient_mask(scores: Scores, *, keep: float) -> Mask:
    """Mark the ``keep`` share of entries with the *smallest* scores.

    The control, and, by a sign error, what the released code did until December 2023.
    """
    check_keep(keep)
    total = _count(scores)
    return {name: ~marked for name, marked in _largest(scores, total - round(keep * total)).items()}


def threshold_mask(scores: Scores, *, gamma: float | None = None) -> Mask:
    """Mark entries with a score of at least ``gamma``, the rule as the paper writes it.

    Parameters
    ----------
    scores : dict of str to Tensor
        From `saliency_scores`.
    gamma : float, optional
        Threshold, in the unit of the scores; by default their upper median, so that at least half of
        the entries are marked (all entries tied with the median are).
    """
    if gamma is None:
        gamma = kth_largest(scores, (_count(scores) + 1) // 2)
    return {name: values >= gamma for name, values in scores.items()}


def random_mask(
    like: Mapping[str, Tensor], *, keep: float, rng: torch.Generator, per_layer: Mask | None = None
) -> Mask:
    """Mark exactly ``round(keep * P)`` entries drawn at random, the control for a saliency mask.

    Parameters
    ----------
    like : dict of str to Tensor
        Gives names, shapes and device: scores, another mask, or ``dict(model.named_parameters())``.
    keep : float
        Share marked, in (0, 1].
    rng : torch.Generator
        A CPU generator.
    per_layer : Mask, optional
        Take the count of each layer from this mask instead of ``keep``: the same number of weights in
        every layer, but not the same weights.
    """
    check_keep(keep)
    draws = {name: torch.rand(t.shape, generator=rng).to(t.device) for name, t in like.items()}
    if per_layer is None:
        return top_mask(draws, keep=keep)
    return {
        name: _largest({name: values}, int(per_layer[name].sum()))[name] for name, values in draws.items()
    }


def restore_unmarked_(model: nn.Module, original: nn.Module, mask: Mask) -> None:
    """Set every weight outside ``mask`` back to its value in ``original``, to the last bit."""
    with torch.no_grad():
        before = dict(original.named_parameters())
        for name, weight in model.named_parameters():
            if name in mask:
                torch.where(mask[name].to(weight.device), weight, before[name], out=weight)


def check_boolean(mask: object) -> None:
    """Refuse anything but a dict of boolean tensors.

    Raises
    ------
    UserError
        With the name of the first tensor that is not boolean.
    """
    if not isinstance(mask, Mapping):
        raise UserError(f"the mask is a {type(mask).__name__}: give one from saliency_mask or load_mask")
    for name, marked in mask.items():
        if not isinstance(marked, Tensor) or marked.dtype != torch.bool:
            kind = marked.dtype if isinstance(marked, Tensor) else type(marked).__name__
            raise UserError(
                f"the mask of {name} is {kind}, not boolean: give one from saliency_mask or load_mask"
            )


def check_mask(mask: Mask, model: nn.Module) -> None:
    """Refuse a mask that was made for another network.

    Raises
    ------
    UserError
        If a weight has no mask, or a mask no weight of its shape (a frozen weight needs none), or it is not boolean.
    """
    check_boolean(mask)
    shapes = {name: tuple(w.shape) for name, w in model.named_parameters()}
    masked = {name: tuple(m.shape) for name, m in mask.items()}
    needed = {name for name, w in model.named_parameters() if w.requires_grad} | masked.keys()
    if wrong := sorted(name for name in needed if shapes.get(name) != masked.get(name)):
        name = wrong[0]
        raise UserError(
            f"the mask does not fit the model: {name} has shape {shapes.get(name, 'none')} in the model and "
            f"{masked.get(name, 'none')} in the mask; compute the mask on this model"
        )


def density(mask: Mask) -> float:
    """Share of weights marked, in [0, 1]."""
    return sum(int(m.sum()) for m in mask.values()) / _count(mask)


def layer_table(mask: Mask) -> pd.DataFrame:
    """Count the marked weights of each tensor: columns ``layer, weights, kept, share``, in model order."""
    rows = [(name, m.numel(), int(m.sum())) for name, m in mask.items()]
    table = pd.DataFrame(rows, columns=["layer", "weights", "kept"])
    return table.assign(share=table["kept"] / table["weights"])


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of one network, in [0, 1]."""
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    either = sum(int((a[name] | b[name]).sum()) for name in a)
    return both / either if either else 1.0


def expected_iou(keep_a: float, keep_b: float) -> float:
    """Intersection over union that two independent random masks of these densities reach (large P)."""
    return keep_a * keep_b / (keep_a + keep_b - keep_a * keep_b)


def save_mask(
    mask: Mask, path: Path | str, *, note: Mapping[str, str] | None = None, format: str = "safetensors"
) -> Path:
    """Write a mask to a file.

    Parameters
    ----------
    mask : Mask
        Boolean tensors by weight name.
    path : path
        File to write; replaced whole.
    note : mapping of str to str, optional
        Stored in the file's header (data set, keep, seed, …); the official format has no place for it.
    format : str
        "safetensors": one bit per weight. "official": int64 tensors of ones and zeros in a file of ``torch.save``,
        as the authors' code writes and reads them (64 times as large).
    """
    one_of(format, FORMATS, "format of a mask")
    check_boolean(mask)
    if format == "official":
        if note:
            raise UserError(
                "the official format of masks has no room for a note: leave it out, or write safetensors"
            )
        content = io.BytesIO()
        torch.save({name: marked.cpu().long() for name, marked in mask.items()}, content)
        return write_whole(path, content.getvalue())
    packed = {name: packed_bits(marked) for name, marked in mask.items()}
    shapes = {name: list(marked.shape) for name, marked in mask.items()}
    sha = _digest((name, shapes[name], packed[name]) for name in mask)
    header = {"format": FORMAT, "shapes": json.dumps(shapes), **(note or {}), "sha256": sha}
    return write_whole(path, save(packed, metadata=header))


def mask_digest(mask: Mask) -> str:
    """SHA-256 of what a mask marks, as 64 hexadecimal digits."""
    return _digest((name, list(marked.shape), packed_bits(marked)) for name, marked in mask.items())


def stored_mask_digest(path: Path | str) -> str:
    """`mask_digest` of a mask written by `save_mask`, without unpacking it.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not such a mask.
    """
    with _packed(path) as (_, _, digest):
        return digest


def _digest(packed: Iterable[tuple[str, list[int], Tensor]]) -> str:
    sha = hashlib.sha256()
    for name, shape, bits in packed:
        sha.update(f"{name} {tuple(shape)}".encode() + bits.numpy().tobytes())
    return sha.hexdigest()


@contextmanager
def _packed(path: Path | str) -> Iterator[tuple[Any, dict[str, list[int]], str]]:
    """An open file of `save_mask`, the shapes by name and the digest, which is checked; what is wrong in a sentence."""
    try:
        with safe_open(str(regular(path)), framework="pt") as content:
            header = content.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(f"{path} is not a saliency mask: give a file written by save_mask")
            shapes = parse_json(header["shapes"])
            digest = _digest((name, shape, content.get_tensor(name)) for name, shape in shapes.items())
            if header.get("sha256", digest) != digest:
                raise ValueError("its digest is another")
            yield content, shapes, digest
    except FileNotFoundError as error:
        raise UserError(f"there is no mask file {path}: compute the mask first") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the mask file {path} is damaged: delete it and compute the mask again") from error


def load_mask(path: Path | str, *, device: torch.device | str = "cpu") -> Mask:
    """Read a mask written by `save_mask`, or by the authors' code (``with_0.5.pt``).

    Files of ``torch.save`` are read as tensors only, so that no code in them can run. Where all names start with
    ``module.``, as those of a ``DataParallel`` model do, this is left out.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not a mask.
    """
    try:
        with regular(path).open("rb") as file:
            start = file.read(4)
    except OSError:
        start = b""  # what follows says what is wrong
    if start in TORCH_SAVE:
        return {name: marked.to(device) for name, marked in _official_mask(path).items()}
    with _packed(path) as (content, shapes, _):
        return {
            name: unpacked_bits(content.get_tensor(name), shape).to(device) for name, shape in shapes.items()
        }


def _official_mask(path: Path | str) -> Mask:
    found = read_tensors(path, "the mask as a plain dict of tensors")
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(n, str) and isinstance(m, Tensor) for n, m in found.items())
    ):
        raise UserError(f"{path} is not a saliency mask: give a dict of tensors by weight name")
    found = {name: values.to_dense() for name, values in found.items()}  # some are stored sparse
    for name, values in found.items():
        if not ((values == 0) | (values == 1)).all():
            raise UserError(f"{path} is not a saliency mask: {name} holds other values than 0 and 1")
    wrapped = all(name.startswith("module.") for name in found)
    return {name.removeprefix("module.") if wrapped else name: m.bool() for name, m in found.items()}


def check_keep(keep: float, weights: int | None = None) -> None:
    """Refuse a share outside (0, 1], or one that marks none of a network's ``weights``."""
    if not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise UserError(f"keep must lie in (0, 1], got {keep}: it is the share of weights that may change")
    if weights is not None and not round(keep * weights):
        raise UserError(
            f"keep {keep:g} of {weights:,} weights marks none, so that nothing could change: give at least {1 / weights:.1e}"
        )


def packed_bits(marked: Tensor) -> Tensor:
    """Boolean entries as uint8, eight in each."""
    return torch.from_numpy(np.packbits(marked.cpu().numpy().reshape(-1)))


def unpacked_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """The boolean tensor of a shape that `packed_bits` made ``bits`` of."""
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() for t in tensors.values())


def _groups(scores: Scores) -> Iterator[tuple[list[str], Tensor]]:
    """The scores as integers, small tensors joined: for non-negative floats the bit pattern grows with the value."""
    names: list[str] = []
    parts: list[Tensor] = []
    for name, values in scores.items():
        if parts and sum(part.numel() for part in parts) + values.numel() > CHUNK:
            yield names, torch.cat(parts)
            names, parts = [], []
        names.append(name)
        parts.append(values.reshape(-1).view(torch.int32))
        if values.numel() > CHUNK:  # by itself, without a copy
            yield names, parts[0]
            names, parts = [], []
    if parts:
        yield names, torch.cat(parts)


def kth_largest(scores: Scores, k: int) -> float:
    """The k-th largest of all entries (k from 1), which must be non-negative float32."""
    bits, _ = _kth_largest(scores, k)
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()


def _kth_largest(scores: Scores, k: int) -> tuple[int, int]:
    """Bit pattern of the k-th largest score, and how many entries equal to it are among the first k.

    Two counting passes of 16 bits each: linear time, no sort, and no copy of the scores.
    """
    device = next(iter(scores.values())).device
    prefix, wanted = 0, k
    for shift, width in ((16, 1 << 15), (0, 1 << 16)):
        counts = torch.zeros(width, dtype=torch.int64, device=device)
        for _, group in _groups(scores):
            for bits in group.split(CHUNK):
                bits = bits[(bits >> 16) == prefix] & 0xFFFF if shift == 0 else bits >> shift
                if bits.numel():
                    counts += torch.bincount(bits, minlength=width)
        from_top = counts.flip(0).cumsum(0)  # entries in this bucket or a higher one
        bucket = int((from_top < wanted).sum())
        above = int(from_top[bucket - 1]) if bucket else 0
        wanted -= above
        prefix = (prefix << 16 if shift == 0 else 0) | (width - 1 - bucket)
    return prefix, wanted


def _largest(scores: Scores, k: int) -> Mask:
    """Mark exactly the ``k`` largest scores; ties go to the earlier entry."""
    if k == 0:
        return {name: torch.zeros_like(values, dtype=torch.bool) for name, values in scores.items()}
    threshold, ties = _kth_largest(scores, k)
    mask = {}
    for names, bits in _groups(scores):
        marked = bits > threshold
        tied = bits == threshold
        if ties and (here := int(tied.sum())):
            marked[tied.nonzero().view(-1)[:ties]] = True
            ties -= min(here, ties)
        for name, part in zip(names, marked.split([scores[n].numel() for n in names]), strict=True):
            mask[name] = part.view(scores[name].shape)
    return mask
