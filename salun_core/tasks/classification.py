"""Image classification: cross-entropy, wrong labels, and the data of one unlearning problem."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.data.batches import Batch, Loader
from salun_core.errors import UserError, one_of
from salun_core.models.classification.scores import class_scores, data_for
from salun_core.networks import check_trainable
from salun_core.tasks import RECIPES
from salun_core.tasks.base import check_training, fresh
from salun_core.tasks.classification_training import Recipe, sgd, train_network

RELABEL = ("wrong", "all")


@dataclass(frozen=True)
class ClassificationTask:
    """A trained classifier and the images it should forget, keep, and be measured on.

    Parameters
    ----------
    model : nn.Module
        Trained on forget and retain set together: images in [0, 1] (N, C, H, W) to logits (N, K).
    parts : mapping of str to Batches or Stream
        Images by role: "forget", "retain", "validation", "test", … (see ``data.splits.ROLES``).
    build : callable, optional
        ``build(seed)`` returns a freshly initialised network of the same kind. Only Retrain needs it.
    recipe : Recipe, optional
        How such a network is trained from scratch. Only Retrain needs it.
    relabel : str
        "wrong": random labels are uniform over the K - 1 wrong classes (the paper's y' ≠ y); "all": over
        all K classes, as the released code draws them.
    bf16 : bool
        Train under bfloat16 autocast. Gradients for masks and all measurements stay in full precision.
    compile : bool
        Train through ``torch.compile``.
    classes : int, optional
        K, where it is known: a mask made with the task's loss holds the labels of its loader to it.
    """

    model: nn.Module
    parts: Mapping[str, Loader]
    build: Callable[[int], nn.Module] | None = None
    recipe: Recipe | None = None
    relabel: str = "wrong"
    bf16: bool = False
    compile: bool = False
    kind: str = "classification"
    classes: int | None = None

    def __post_init__(self) -> None:
        one_of(self.relabel, RELABEL, "choice of random labels")
        for role in ("forget", "retain"):
            if self.parts[role].empty:
                raise UserError(f"the {role} set holds no images: choose another forget_fraction or class")

    @property
    def forget(self) -> Loader:
        """The images to forget."""
        return self.parts["forget"]

    @property
    def retain(self) -> Loader:
        """The images to keep."""
        return self.parts["retain"]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Class scores (N, K) in float32 (or double, for a double model)."""
        # Only training runs in bfloat16: masks and metrics are taken in evaluation mode.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16 and model.training):
            scores = class_scores(model, images)
        return scores if scores.dtype == torch.float64 else scores.float()

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """Cross-entropy with the true label, nats per image."""
        images, labels = batch
        logits = self.logits(model, images)
        return F.cross_entropy(logits, labels.to(logits.device))

    def relabel_loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """Cross-entropy with a label drawn at random (SalUn, the forgetting term), nats per image."""
        images, labels = batch
        logits = self.logits(model, images)
        drawn = random_labels(labels, logits.size(1), rng, wrong=self.relabel == "wrong")
        return F.cross_entropy(logits, drawn.to(logits.device))

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """SGD with momentum 0.9 and weight decay 5e-4, constant learning rate."""
        return sgd(model, lr)

    def train(self, batches: Loader, *, seed: int) -> tuple[nn.Module, list[float]]:
        """Train a new network from scratch; the loss is given for each epoch."""
        if self.build is None or self.recipe is None:
            raise UserError(
                "training from scratch needs a new network and a recipe: give the task build= (a function of a seed "
                f"that returns a network) and recipe= (a Recipe, or one of {', '.join(RECIPES)})"
            )
        net = fresh(self.build, seed).to(batches.device).to(memory_format=torch.channels_last)
        step = cast(nn.Module, torch.compile(net)) if self.compile else net
        _, losses = train_network(step, batches, self.loss, recipe=self.recipe, seed=seed)
        return net.eval(), losses


def classification_task(
    model: nn.Module,
    *,
    forget: Any,
    retain: Any,
    test: Any = None,
    build: Callable[[int], nn.Module] | None = None,
    recipe: Recipe | str | None = None,
    relabel: str = "wrong",
    bf16: bool = False,
    compile: bool = False,
) -> ClassificationTask:
    """Make a task of any classifier and any loaders.

    Parameters
    ----------
    model : nn.Module
        A trained classifier: images to logits (N, K), as a tensor or in an output with ``logits`` (the models of
        transformers). Left as it is; methods return a new model, where this one is. Weights in half precision are
        trained in single precision and come back so: most steps are smaller than half precision can hold.
    forget, retain, test : iterable
        ``DataLoader``, list of batches, …: (images, labels), or dicts with ``pixel_values`` and ``labels``. Images as
        the model takes them, labels int64 (N,) from 0. They are read anew for each pass, in the order and with the
        augmentation that they give, so that a set may be larger than memory; only IU picks images at random, and
        holds its ``samples`` images in memory. A loader of ``retain`` should shuffle.
    build : callable, optional
        ``build(seed)`` returns a freshly initialised network. Only Retrain needs it, and ``recipe``.
    recipe : Recipe or str, optional
        How such a network is trained; a key of ``RECIPES``.
    relabel, bf16, compile
        As in `ClassificationTask`.

    Raises
    ------
    UserError
        If model and loaders do not fit together, or the model is wrapped for several devices.
    """
    check_trainable(model)
    given = {"forget": forget, "retain": retain} | ({"test": test} if test is not None else {})
    if isinstance(recipe, str):
        recipe = RECIPES[one_of(recipe, RECIPES, "recipe")]
    check_training(build, recipe, Recipe)
    parts, classes = data_for(model, given)
    return ClassificationTask(
        model, parts, build, recipe, relabel=relabel, bf16=bf16, compile=compile, classes=classes
    )


def random_labels(labels: Tensor, classes: int, rng: torch.Generator, *, wrong: bool = True) -> Tensor:
    """Draw a label for each image, uniform over the wrong classes or over all.

    Parameters
    ----------
    labels : Tensor
        True labels, int64 (N,), in [0, classes).
    classes : int
        K; at least 2 when ``wrong``.
    rng : torch.Generator
        A CPU generator.
    wrong : bool
        Leave out the true label. The released code does not: one image in K keeps its label there.
    """
    if not wrong:
        return torch.randint(0, classes, labels.shape, generator=rng).to(labels.device)
    if classes < 2:
        raise UserError(f"a wrong label needs at least 2 classes, got {classes}")
    return (labels + torch.randint(1, classes, labels.shape, generator=rng).to(labels.device)) % classes
