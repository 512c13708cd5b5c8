"""Image classification: cross-entropy, wrong labels, and the data of one unlearning problem."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.data.batches import Batch, Batches
from salun_core.errors import UserError, one_of
from salun_core.tasks.classification_training import Recipe, sgd, train_network

RELABEL = ("wrong", "all")


@dataclass(frozen=True)
class ClassificationTask:
    """A trained classifier and the images it should forget, keep, and be measured on.

    Parameters
    ----------
    model : nn.Module
        Trained on forget and retain set together: images in [0, 1] (N, C, H, W) to logits (N, K).
    parts : mapping of str to Batches
        Images by role: "forget", "retain", "validation", "test", … (see ``data.splits.ROLES``).
    build : callable
        ``build(seed)`` returns a freshly initialised network of the same kind.
    recipe : Recipe
        How such a network is trained from scratch.
    relabel : str
        "wrong": random labels are uniform over the K - 1 wrong classes (the paper's y' ≠ y); "all": over
        all K classes, as the released code draws them.
    bf16 : bool
        Train under bfloat16 autocast. Gradients for masks and all measurements stay in full precision.
    compile : bool
        Train through ``torch.compile``.
    """

    model: nn.Module
    parts: Mapping[str, Batches]
    build: Callable[[int], nn.Module]
    recipe: Recipe
    relabel: str = "wrong"
    bf16: bool = False
    compile: bool = False
    kind: str = "classification"

    def __post_init__(self) -> None:
        one_of(self.relabel, RELABEL, "choice of random labels")
        for role in ("forget", "retain"):
            if self.parts[role].n == 0:
                raise UserError(f"the {role} set holds no images: choose another forget_fraction or class")

    @property
    def forget(self) -> Batches:
        """The images to forget."""
        return self.parts["forget"]

    @property
    def retain(self) -> Batches:
        """The images to keep."""
        return self.parts["retain"]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Class scores (N, K) in float32 (or double, for a double model)."""
        # Only training runs in bfloat16: masks and metrics are taken in evaluation mode.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16 and model.training):
            scores = model(images)
        return scores if scores.dtype == torch.float64 else scores.float()

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """Cross-entropy with the true label, nats per image."""
        images, labels = batch
        return F.cross_entropy(self.logits(model, images), labels)

    def relabel_loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """Cross-entropy with a label drawn at random (SalUn, the forgetting term), nats per image."""
        images, labels = batch
        logits = self.logits(model, images)
        return F.cross_entropy(
            logits, random_labels(labels, logits.size(1), rng, wrong=self.relabel == "wrong")
        )

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """SGD with momentum 0.9 and weight decay 5e-4, constant learning rate."""
        return sgd(model, lr)

    def train(self, batches: Batches, *, seed: int) -> tuple[nn.Module, list[float]]:
        """Train a new network from scratch; the loss is given for each epoch."""
        net = self.build(seed).to(batches.images.device).to(memory_format=torch.channels_last)
        step = cast(nn.Module, torch.compile(net)) if self.compile else net
        _, losses = train_network(step, batches, self.loss, recipe=self.recipe, seed=seed)
        return net.eval(), losses


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
