"""The unlearning problems of one data set and one kind of classifier: networks, splits, trained models, outputs."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from salun_core.data.augment import augmentation
from salun_core.data.batches import Batches
from salun_core.data.images import ImageData
from salun_core.data.splits import Split, split_data
from salun_core.errors import UserError
from salun_core.experiments.runs.cells import Scenario
from salun_core.metrics.classification.outputs import Evaluation, evaluate
from salun_core.models.build import build_model
from salun_core.models.classification.checkpoints import Checkpoint
from salun_core.models.classification.scores import check_classifier
from salun_core.tasks.classification import ClassificationTask
from salun_core.tasks.classification_training import Recipe


@dataclass(frozen=True)
class Problem:
    """Everything that determines a trained classifier and the task of forgetting.

    Parameters
    ----------
    data : ImageData
        All images, on the CPU.
    arch, width : str, int
        The network, see ``models.build_model``.
    recipe : Recipe
        Training from scratch.
    batch_size : int
        Images in a batch of the forgetting methods.
    relabel, bf16, compile
        See ``ClassificationTask``.
    validation : float
        Share of the training images set aside before anything is trained.
    device : torch.device
        Where networks and images lie.
    pretrained, retrained : Checkpoint, optional
        The model before forgetting, and one trained without the forget set, where they are given and not trained.
    """

    data: ImageData
    arch: str
    width: int | None
    recipe: Recipe
    batch_size: int = 256
    relabel: str = "wrong"
    bf16: bool = False
    compile: bool = False
    validation: float = 0.1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    pretrained: Checkpoint | None = None
    retrained: Checkpoint | None = None

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised network."""
        if self.pretrained is not None and self.pretrained.transformer is not None:
            return self.pretrained.build(seed).to(self.device)
        mean, std = self.data.moments
        _, channels, _, size = self.data.images.shape
        net = build_model(
            self.arch,
            classes=len(self.data.classes),
            channels=channels,
            size=size,
            seed=seed,
            width=self.width,
            mean=mean,
            std=std,
        )
        return net.to(self.device)

    @property
    def network(self) -> dict[str, Any]:
        """Name and width of the network; those given say nothing of a model of transformers."""
        brought = self.pretrained.arch if self.pretrained is not None else None
        return {"arch": brought or self.arch, "width": self.width if brought is None else None}

    def split(self, seed: int, scenario: Scenario) -> Split:
        """Sample ids by role. The validation part depends on the seed only."""
        return split_data(
            self.data,
            scenario=scenario.kind,
            seed=seed,
            forget_fraction=scenario.fraction,
            forget_class=scenario.target,
            forget_ids=list(scenario.ids) if scenario.ids is not None else None,
            validation=self.validation,
        )

    def trained(self, seed: int, scenario: Scenario) -> tuple[nn.Module, list[float], int]:
        """The model trained on forget and retain set together, the loss of each epoch, and the images seen."""
        batches = self._batches(self.split(seed, scenario).train)
        # The task holds the losses and the recipe; its own model is not used for training from scratch.
        task = self._task(self.build(seed), {"forget": batches, "retain": batches})
        net, losses = task.train(batches, seed=seed)
        return net, losses, len(losses) * batches.n

    def brought(self, checkpoint: Checkpoint) -> nn.Module:
        """The model of a checkpoint."""
        return checkpoint.load(self.build(0)).to(self.device)

    def check_checkpoints(self) -> None:
        """Refuse a checkpoint that is not of this network, or does not take these images, before anything is computed."""
        for checkpoint in (self.pretrained, self.retrained):
            if checkpoint is not None:
                rows = slice(0, 2)
                images = self.data.images[rows].to(self.device).float() / 255
                found = check_classifier(
                    self.brought(checkpoint),
                    images,
                    self.data.labels[rows],
                    f"{self.data.name} for {checkpoint.source}",
                )
                if found != len(self.data.classes):
                    raise UserError(
                        f"the model {checkpoint.source} has {found} classes, but {self.data.name} has "
                        f"{len(self.data.classes)}: give a model that was trained on these"
                    )

    def task(self, seed: int, scenario: Scenario, original: nn.Module) -> ClassificationTask:
        """The unlearning problem of one seed and scenario, with its trained model."""
        split = self.split(seed, scenario)
        return self._task(original, {role: self._batches(ids) for role, ids in split.items()})

    @staticmethod
    def outputs(model: nn.Module, task: ClassificationTask) -> Evaluation:
        """What a model says of every image."""
        return evaluate(model, task.parts)

    @property
    def identity(self) -> dict[str, Any]:
        """All of it but the seed, as JSON values."""
        return {
            "data": self.data.digest,
            "classes": list(self.data.classes),
            "size": list(self.data.images.shape[1:]),
            "augmentation": [self.data.flip, self.data.pad],
            **self.network,
            "recipe": asdict(self.recipe) | {"milestones": list(self.recipe.milestones)},
            "validation": self.validation,
            "bf16": self.bf16,
            "compile": self.compile,
            # Left out where it is trained, so that results of such runs keep their names.
            **({"pretrained": self.pretrained.digest} if self.pretrained is not None else {}),
        }

    def _task(self, model: nn.Module, parts: dict[str, Batches]) -> ClassificationTask:
        return ClassificationTask(
            model,
            parts,
            self.build,
            self.recipe,
            relabel=self.relabel,
            bf16=self.bf16,
            compile=self.compile,
        )

    def _batches(self, ids: torch.Tensor) -> Batches:
        return self.data.batches(
            ids, device=self.device, size=self.batch_size, augment=augmentation(self.data)
        )
