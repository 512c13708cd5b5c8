"""Whether a data set and a model of your own fit: a whole small unlearning run, looked at closely."""

import copy
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from salun_core.data import ImageData, from_datasets
from salun_core.data.batches import Batches, Loader
from salun_core.data.images import resized
from salun_core.data.on_disk import chunks
from salun_core.data.splits import split_data
from salun_core.errors import UserError, one_line
from salun_core.experiments.runs.machine import OneThread
from salun_core.experiments.runs.params import LONG, Params, parameter
from salun_core.methods import METHODS
from salun_core.metrics import Evaluation, evaluate
from salun_core.metrics.classification.accuracy import unlearning_accuracy
from salun_core.models import build_model, takes_width
from salun_core.models.classification.external import check_output
from salun_core.paths import output_folder
from salun_core.rng import generator
from salun_core.saliency import Mask, density, saliency_mask
from salun_core.tasks.classification import ClassificationTask
from salun_core.tasks.classification_training import Recipe, train_network

SECONDS = 30.0  # for training and unlearning together
PASSES = 40  # through the images, at most
DULL = 0.02  # standard deviation of pixels below which something went wrong with their scale
REPEATED = 0.1  # share of images seen before from which it cannot be chance
LEARNED = 0.6  # accuracy on the images to forget from which unlearning can be seen


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Parameters
    ----------
    what : str
        What should be so.
    ok : bool or None
        Whether it is; None where it could not be looked at.
    said : str
        What was found, and if it is wrong, what to change and where.
    """

    what: str
    ok: bool | None
    said: str

    @property
    def mark(self) -> str:
        """``ok``, ``NO`` or ``?``."""
        return "?" if self.ok is None else "ok" if self.ok else "NO"

    def __str__(self) -> str:
        return f"{self.mark:<3} {one_line(self.what)}: {one_line(self.said)}"


@dataclass(frozen=True)
class CompatibilityReport:
    """What `check_compatibility` found, in the order in which it looked."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.ok is not False for check in self.checks)

    @property
    def end(self) -> str:
        """All of it in a sentence."""
        if not self.ok:
            return "Something does not fit: see NO."
        if all(check.ok for check in self.checks):
            return "Everything fits."
        return "Nothing wrong was found; what is marked ? could not be seen."

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), self.end])

    __repr__ = __str__


def check_compatibility(
    dataset: Any,
    model: nn.Module | str,
    *,
    size: int | None = None,
    width: int | None = None,
    keep: float = 0.5,
    images: int = 200,
) -> CompatibilityReport:
    """Run mask, unlearning and evaluation on some images, and report in plain words what does not fit.

    Parameters
    ----------
    dataset : ImageData, Dataset, or pair of Dataset
        Images and labels as `from_datasets` takes them: a training set, or a training and a test set.
    model : nn.Module or str
        A classifier of images in [0, 1] (N, C, H, W) that gives logits (N, K), trained or not, which is left
        as it is; or a name as for the parameter ``arch``.
    size : int, optional
        Resize images to ``size`` x ``size``.
    width : int, optional
        For a network by name that has such a setting.
    keep : float
        Density of the saliency mask, in (0, 1].
    images : int
        Images looked at; fewer for a slow network, so that it takes less than a minute, or two for the largest.

    Returns
    -------
    CompatibilityReport
        Prints as a list. After a data set or model that cannot be used at all the rest is left out.
    """
    return CompatibilityReport(tuple(_checks(dataset, model, size, width, keep, images)))


def _checks(
    dataset: Any, model: nn.Module | str, size: int | None, width: int | None, keep: float, images: int
) -> Iterator[Check]:
    try:
        data = _images(dataset, size)
    except UserError as error:
        yield Check("the data set can be read", False, f"{error}. Change the data set's __getitem__")
        return
    shape = "x".join(map(str, data.images.shape[1:]))
    yield Check(
        "the data set can be read",
        True,
        f"{data.n_train:,} training and {len(data.labels) - data.n_train:,} test images, {shape}",
    )
    yield from _labels(data)
    yield _pixels(data)
    yield from _repeated(data)
    try:
        net = _network(model, data, width)
    except UserError as error:
        yield Check("the model takes them", False, f"{error}. Change the model's forward, or `arch`")
        return
    yield Check("the model takes them", True, f"logits of {len(data.classes)} classes")
    seconds = _seconds_each(net, data)
    part = _some(data, images, seconds)
    batches = _batches(part, torch.arange(len(part.labels)))
    before = _state(net)
    first, second = (evaluate(net, {"test": batches}) for _ in range(2))
    yield _repeatable(first, second, _same(before, _state(net)))
    yield _alone(net, batches, first)
    yield _logits(first)
    yield _batch_norm(net)
    if not isinstance(model, str):
        yield _recognised(net, part)
    yield from _unlearned(net, part, keep, SECONDS / (seconds * len(part.labels)))


def _images(dataset: Any, size: int | None) -> ImageData:
    if isinstance(dataset, ImageData):
        return resized(dataset, size)
    train, test = dataset if isinstance(dataset, tuple | list) and len(dataset) == 2 else (dataset, None)
    return from_datasets(train, test, name="given", size=size)


def _labels(data: ImageData) -> Iterator[Check]:
    counts = torch.bincount(data.labels[: data.n_train], minlength=len(data.classes))
    empty = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]
    what = "every class has training images"
    if empty:
        yield Check(
            what, False, f"none for {', '.join(empty[:5])}: number labels from 0 without gaps in the data set"
        )
    elif len(counts) < 2:
        yield Check(what, False, "there is one class only: a wrong label needs a second one")
    else:
        yield Check(what, True, f"{len(counts)} classes, {int(counts.min()):,} to {int(counts.max()):,} each")


def _pixels(data: ImageData) -> Check:
    mean, std = (sum(values) / len(values) for values in data.moments)
    said = f"mean {mean:.2f}, standard deviation {std:.3f} on the scale from 0 to 1"
    if std < DULL:
        said += ": hardly anything to see; were the pixels divided by 255 twice?"
    return Check("the pixels use their range", std >= DULL, said)


def _repeated(data: ImageData) -> Iterator[Check]:
    known: set[bytes] = set()
    again = 0
    for key in _digests(data.images[: data.n_train]):
        again += key in known
        known.add(key)
    said = f"{again:,} of {data.n_train:,} repeat an earlier one ({100 * again / data.n_train:.1f}%)"
    if again > REPEATED * data.n_train:
        said += ": give every image once, or its copy stays in the retain set when it is forgotten"
    yield Check("training images differ from each other", again <= REPEATED * data.n_train, said)
    test = data.images[data.n_train :]
    seen = sum(key in known for key in _digests(test))
    said = f"{seen:,} of {len(test):,} test images ({100 * seen / len(test):.1f}%) are also training images"
    if seen > REPEATED * len(test):
        said += ": give other images as test set, or TA and MIA mean nothing"
    yield Check("training and test images differ", seen <= REPEATED * len(test), said)


def _digests(images: Tensor) -> Iterator[bytes]:
    """What tells images apart, a few bytes each: a large set is not held in memory."""
    for part in chunks(images):
        for image in part:
            yield hashlib.sha256(image.contiguous().numpy().data).digest()


def _network(model: nn.Module | str, data: ImageData, width: int | None) -> nn.Module:
    _, channels, _, size = data.images.shape
    if isinstance(model, str):
        mean, std = data.moments
        return build_model(
            model,
            classes=len(data.classes),
            channels=channels,
            size=size,
            seed=0,
            width=width if takes_width(model) else None,
            mean=mean,
            std=std,
        ).eval()
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}, not an nn.Module")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UserError("no weight of the model has requires_grad: nothing can be forgotten")
    net = copy.deepcopy(model).cpu().eval()
    check_output(net, type(model).__name__, classes=len(data.classes), channels=channels, size=size)
    return net


def _seconds_each(net: nn.Module, data: ImageData) -> float:
    """Seconds for one image forward and backward: the least of three times, after one that warms up."""
    probe = copy.deepcopy(net)
    images = data.images[:4].float() / 255
    times = []
    for _ in range(4):
        start = time.perf_counter()
        probe(images).sum().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:]) / len(images)


def _some(data: ImageData, images: int, seconds: float) -> ImageData:
    """A small data set with about as many images of each class, a fifth of them for testing."""
    count = max(20, min(images, int(SECONDS / (PASSES * seconds))))
    rng = generator(0, "check")

    def drawn(first: int, last: int, most: int) -> Tensor:
        order = first + torch.randperm(last - first, generator=rng)
        # One of each class in turn, so that no class is missing where there are enough images.
        turn = torch.zeros(len(order), dtype=torch.int64)
        for label in data.labels[order].unique():
            rows = (data.labels[order] == label).nonzero().view(-1)
            turn[rows] = torch.arange(len(rows))
        return order[turn.argsort(stable=True)][:most]

    train, test = drawn(0, data.n_train, count * 4 // 5), drawn(data.n_train, len(data.labels), count // 5)
    ids = torch.cat([train, test])
    return replace(data, images=data.images[ids], labels=data.labels[ids], n_train=len(train))


def _batches(data: ImageData, ids: Tensor) -> Batches:
    return Batches(data.images[ids], data.labels[ids], ids, size=32)


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, after[name]) for name, value in before.items())


def _repeatable(first: Evaluation, second: Evaluation, unchanged: bool) -> Check:
    what = "evaluation gives the same answers twice"
    if not unchanged:
        return Check(
            what, False, "it changes the model's buffers: in forward, update them only if self.training"
        )
    if torch.equal(first.logits, second.logits):
        return Check(what, True, "to the last bit")
    most = float((first.logits - second.logits).abs().max())
    return Check(
        what,
        False,
        f"logits differ by up to {most:.2g}: something random is on in evaluation mode; in forward, write "
        "F.dropout(x, training=self.training), and draw nothing",
    )


def _alone(net: nn.Module, batches: Batches, first: Evaluation) -> Check:
    what = "an image gets the same answer alone as in a batch"
    logits = evaluate(net, {"test": batches.subset(torch.arange(4)).resized(1)}).logits
    apart = float((logits - first.logits[:4]).abs().max())
    scale = float(first.logits.abs().max())
    if apart <= 1e-3 * max(scale, 1e-3):
        return Check(what, True, f"up to rounding ({apart:.1g})")
    return Check(
        what,
        False,
        f"logits differ by {apart:.2g}: a layer looks at other images of the batch; use BatchNorm with "
        "track_running_stats=True, or another normalisation",
    )


def _logits(found: Evaluation) -> Check:
    what = "the outputs are logits"
    if bool((found.logits >= 0).all()) and torch.allclose(
        found.logits.sum(1), torch.ones(len(found.logits)), atol=1e-3
    ):
        return Check(what, False, "they are probabilities: leave the softmax out of the model's forward")
    return Check(what, True, f"from {float(found.logits.min()):.2g} to {float(found.logits.max()):.2g}")


def _batch_norm(net: nn.Module) -> Check:
    layers = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    said = "none: the setting bn_stats changes nothing"
    if layers:
        said = (
            f"{len(layers)} layers, whose running statistics unlearning moves under any mask; "
            "bn_stats: freeze holds them"
        )
    return Check("BatchNorm", True, said)


def _recognised(net: nn.Module, part: ImageData) -> Check:
    accuracy = _accuracy(net, _batches(part, torch.arange(part.n_train)))
    said = f"{100 * accuracy:.0f}% of the training images"
    if accuracy < LEARNED:
        said += (
            ": untrained, or made for other pixel values than 0 to 1; normalisation belongs into its forward"
        )
    return Check("the model given recognises images", True if accuracy >= LEARNED else None, said)


def _unlearned(net: nn.Module, part: ImageData, keep: float, passes: float) -> Iterator[Check]:
    split = split_data(part, scenario="random", seed=0, forget_fraction=0.2, validation=0.0)
    every = torch.cat([split[role] for role in split])
    yield Check(
        "every image has one role",
        len(every) == len(every.unique()) == len(part.labels),
        ", ".join(f"{len(ids)} {role}" for role, ids in split.items() if len(ids)),
    )
    parts = {role: _batches(part, ids) for role, ids in split.items()}
    until = time.perf_counter() + SECONDS
    net, accuracy = _trained(
        net, _batches(part, split.train), parts["forget"], until, epochs=_within(passes / 2, 10)
    )
    task = ClassificationTask(net, parts, lambda seed: copy.deepcopy(net), Recipe(epochs=1, lr=0.01))
    mask = saliency_mask(net, task.forget, task.loss, keep=keep)
    yield from _masks(task, mask, keep)
    before = _state(net)
    changed, gain, rate = _forgotten(task, mask, until, epochs=_within(passes / 4, 3))
    weights = dict(changed.named_parameters())
    held = all(torch.equal(before[n][~m], weights[n].detach()[~m]) for n, m in mask.items())
    yield Check(
        "weights outside the mask stay", held, "to the last bit" if held else "some moved: please report it"
    )
    if not _same(before, _state(net)):
        said = "it changed: keep state in parameters and buffers, which deepcopy copies, not in globals"
        yield Check("the model given stays as it is", False, said)
    what = "unlearning raises UA"
    if accuracy < LEARNED:
        said = (
            f"not seen, because a short training brings only {100 * accuracy:.0f}% of the images to forget right; "
            "give a trained model to see it"
        )
        yield Check(what, None, said)
    elif gain > 0:
        yield Check(what, True, f"by {100 * gain:.0f} points, random labelling at learning rate {rate:g}")
    else:
        said = f"it changes by {100 * gain:.0f} points up to learning rate {rate:g}: raise it, or look for frozen layers"
        yield Check(what, False, said)


def _within(passes: float, most: int) -> int:
    return max(1, min(most, int(passes)))


def _trained(
    net: nn.Module, train: Batches, forget: Batches, until: float, *, epochs: int
) -> tuple[nn.Module, float]:
    """The network, trained for a moment if it does not know the images yet, and its accuracy on some."""
    best, most = net, _accuracy(net, forget)
    for lr in (0.05, 0.01, 0.2):
        if most >= LEARNED or time.perf_counter() > until:
            break
        task = ClassificationTask(
            net, {"forget": train, "retain": train}, lambda _: net, Recipe(epochs=1, lr=lr)
        )
        recipe = Recipe(epochs=epochs, lr=lr, batch_size=16, schedule="one_cycle", nesterov=True)
        try:
            model, _ = train_network(copy.deepcopy(net), train, task.loss, recipe=recipe, seed=0)
        except UserError:  # diverged: the next rate is another one
            continue
        if (reached := _accuracy(model, forget)) > most:
            best, most = model, reached
    return best, most


def _accuracy(net: nn.Module, batches: Loader) -> float:
    return 1 - float(unlearning_accuracy(evaluate(net, {"forget": batches})))


def _masks(task: ClassificationTask, mask: Mask, keep: float) -> Iterator[Check]:
    loss = task.loss(task.model, next(iter(task.forget)))
    weights = {name: w for name, w in task.model.named_parameters() if w.requires_grad}
    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    unused = [name for name, grad in zip(weights, grads, strict=True) if grad is None]
    frozen = [name for name, w in task.model.named_parameters() if not w.requires_grad]
    said = f"{len(weights)} tensors"
    if frozen:
        said += (
            f"; frozen and never changed: {', '.join(frozen[:3])}{' and others' if len(frozen) > 3 else ''}"
        )
    if unused:
        said = f"{', '.join(unused[:3])} {'gets' if len(unused) == 1 else 'get'} none: use them in forward or delete them"
    yield Check("every weight gets a gradient", not unused, said)
    marked = density(mask)
    exact = abs(marked - keep) <= 1 / sum(m.numel() for m in mask.values())
    other = saliency_mask(task.model, task.forget.resized(7), task.loss, keep=keep)
    differing = sum(int((mask[name] ^ other[name]).sum()) for name in mask)
    said = f"{100 * marked:.2f}% of the weights"
    if differing:
        said += f", but {differing:,} others with batches of 7: a layer mixes images of a batch in evaluation mode"
    yield Check("the mask has its density and does not depend on batches", exact and not differing, said)


def _forgotten(
    task: ClassificationTask, mask: Mask, until: float, *, epochs: int
) -> tuple[nn.Module, float, float]:
    """Random labelling at a growing learning rate until it shows: model, gain in UA, the rate."""
    before = _accuracy(task.model, task.forget)
    model, gain, rate = task.model, 0.0, 0.0
    for rate in (0.01, 0.05, 0.2):
        try:
            model = METHODS["rl"](task, mask=mask, epochs=epochs, lr=rate).model
            gain = before - _accuracy(model, task.forget)
        except UserError:  # diverged
            break
        if gain > 0.05 or time.perf_counter() > until:
            break
    return model, gain, rate


class YourDataParams(Params):
    """Parameters of the notebook that shows how to bring data, a network and a method."""

    experiment: ClassVar[str] = "your_data"

    data_dir: Path | None = parameter(None, "a folder with train/<class>/* and test/<class>/* of your own")
    image_size: int | None = parameter(None, "pixels; resize all images", ge=1)
    epochs: int = parameter(8, "epochs of training from scratch", ge=1, le=LONG)
    machine: OneThread = OneThread()

    def folder(self) -> Path:
        """Where the notebook writes what it makes up."""
        folder = output_folder(self.out_dir) / "your_data"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def write_image_folder(dataset: Any, folder: Path) -> Path:
    """Write (image, label) pairs as ``train/<class>/<number>.png`` and ``test/…``, every fourth image to ``test``.

    Parameters
    ----------
    dataset : iterable of (Tensor, int)
        Grey or colour images, uint8 (C, H, W).
    folder : Path
        Written to; pictures that are there already are left.
    """
    from torchvision.io import write_png

    for number, (image, label) in enumerate(dataset):
        place = folder / ("test" if number % 4 == 3 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{number:04}.png"
        if not path.exists():
            write_png(image, str(path))
    return folder
