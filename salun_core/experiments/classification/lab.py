"""Runs classification cells: trains originals, builds masks, unlearns, measures, stores."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from salun_core.data.augment import augmentation
from salun_core.data.batches import Batches
from salun_core.data.images import ImageData
from salun_core.data.splits import Split, split_data
from salun_core.errors import Diverged
from salun_core.experiments.runs.cells import Cell, Scenario, cell_row
from salun_core.experiments.runs.code_digest import code_digest
from salun_core.experiments.runs.lab import MaskingLab, check_finite, thinned
from salun_core.experiments.runs.provenance import peak_memory
from salun_core.experiments.runs.store import Key, Result, Store
from salun_core.methods import METHODS
from salun_core.metrics import METRICS, SELECTION
from salun_core.metrics.classification.outputs import Evaluation, evaluate
from salun_core.models import build_model, module_of
from salun_core.saliency import density, layer_table
from salun_core.tasks.classification import ClassificationTask
from salun_core.tasks.classification_training import Recipe

CODE = (
    "salun_core.data.augment",
    "salun_core.data.splits",
    "salun_core.models.classification.normalised",
    "salun_core.saliency",
    "salun_core.tasks.classification",
)
"""Modules on which every cell depends, besides those of its network and its method."""


@dataclass
class ClassifierLab(MaskingLab):
    """One data set and one kind of network; every seed and scenario on them.

    Parameters
    ----------
    data : ImageData
        All images, on the CPU.
    store : Store
        Where results lie.
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
    experiment, source : str
        Names for the results table.
    """

    data: ImageData
    store: Store
    arch: str
    width: int | None
    recipe: Recipe
    batch_size: int = 256
    relabel: str = "wrong"
    bf16: bool = False
    compile: bool = False
    validation: float = 0.1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    experiment: str = "classification"
    source: str = "quick"
    _task: tuple[tuple[int, Scenario], ClassificationTask] | None = None

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised network."""
        mean, std = self.data.moments
        return build_model(
            self.arch,
            classes=len(self.data.classes),
            channels=self.data.images.shape[1],
            size=self.data.images.shape[-1],
            seed=seed,
            width=self.width,
            mean=mean,
            std=std,
        ).to(self.device)

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

    def original(self, seed: int, scenario: Scenario) -> nn.Module:
        """The model trained on forget and retain set together: one a seed, and one a list of images."""
        key = self._original_key(seed, scenario)
        with self.store.alone(key):
            return self._original(seed, scenario, key)

    def _original(self, seed: int, scenario: Scenario, key: Key) -> nn.Module:
        net = self.build(seed).to(memory_format=torch.channels_last)
        found = self.store.get(key)
        if found and self.store.has_files(found):
            net.load_state_dict(load_file(self.store.folder / next(iter(found.files))))
            return net.eval()
        batches = self._batches(self.split(seed, scenario).train)
        # The task holds the losses and the recipe; its own model is not used for training from scratch.
        task = ClassificationTask(
            net,
            {"forget": batches, "retain": batches},
            self.build,
            self.recipe,
            bf16=self.bf16,
            compile=self.compile,
        )
        start = time.perf_counter()
        net, losses = task.train(batches, seed=seed)
        values = {
            "seconds": self._since(start),
            "samples": len(losses) * batches.n,
            "losses": losses,
            "peak_memory": peak_memory(self.device),
        }
        weights = {name: value.contiguous().cpu() for name, value in net.state_dict().items()}
        self.store.put(key, values, self.provenance(), {".model.safetensors": save(weights)})
        return net

    def task(self, seed: int, scenario: Scenario) -> ClassificationTask:
        """The unlearning problem of one seed and scenario, with its trained model."""
        if self._task is None or self._task[0] != (seed, scenario):
            self._task = None  # free the old images before the new ones are copied
            parts = {role: self._batches(ids) for role, ids in self.split(seed, scenario).items()}
            task = ClassificationTask(
                self.original(seed, scenario),
                parts,
                self.build,
                self.recipe,
                relabel=self.relabel,
                bf16=self.bf16,
                compile=self.compile,
            )
            self._task = ((seed, scenario), task)
        return self._task[1]

    def run(self, cell: Cell) -> Result:
        """The cell's result, from the store or computed now."""
        key = self.key(cell)
        found = self.store.get(key)
        if found is None:
            with self.store.alone(key):
                found = self.store.get(key) or self._computed(cell, key)
        measured = "metrics" in found.content or found.content["status"] == "diverged"
        if not cell.reported or measured:
            return found
        # So far this cell only took part in a choice, for which no test image is looked at.
        if not self.store.has_files(found):
            return self._computed(cell, key)
        content = self.store.path(key, ".logits.safetensors").read_bytes()
        values = found.content | {"metrics": measure(METRICS, self.evaluation(found))}
        return self.store.put(key, values, found.provenance, {".logits.safetensors": content})

    def _computed(self, cell: Cell, key: Key) -> Result:
        task = self.task(cell.seed, cell.scenario)
        values: dict[str, Any] = {"mask_seconds": None}
        try:
            mask, mask_seconds = self.mask(cell.seed, cell.scenario, cell.mask)
            values["mask_seconds"] = mask_seconds
            start = time.perf_counter()
            unlearned = METHODS[cell.method](task, mask=mask, seed=cell.seed, **cell.settings)
            values |= {"seconds": mask_seconds + self._since(start), "samples": unlearned.samples}
            check_finite(unlearned.model)
            evaluation = evaluate(unlearned.model, task.parts)
        except Diverged as error:
            values |= {"status": "diverged", "why": str(error)}
            return self.store.put(key, values, self.provenance())
        values |= {
            "status": "done",
            "selection": measure(SELECTION, evaluation),
            "counts": {role: batches.n for role, batches in task.parts.items()},
            "losses": thinned(unlearned.losses),
            "peak_memory": peak_memory(self.device),
        }
        if cell.reported:
            values["metrics"] = measure(METRICS, evaluation)
        if mask is not None:
            values["density"] = density(mask)
            values["layers"] = layer_table(mask)[["layer", "weights", "kept"]].to_dict("list")
        return self.store.put(key, values, self.provenance(), {".logits.safetensors": evaluation.to_bytes()})

    def row(self, cell: Cell, result: Result) -> dict[str, Any]:
        """One row of the results table."""
        values = result.content
        counts = values.get("counts", {})
        return cell_row(
            cell,
            result,
            self,
            arch=self.arch,
            width=self.width,
            **{name: values.get("metrics", {}).get(name) for name in METRICS},
            **{f"select_{name}": value for name, value in values.get("selection", {}).items()},
            **{f"n_{role}": counts.get(role) for role in ("forget", "retain", "validation", "test")},
        )

    def evaluation(self, result: Result) -> Evaluation:
        """The stored logits behind a result."""
        return Evaluation.load(self.store.path(result.key, ".logits.safetensors"))

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        what = {"original": dict(self._original_key(cell.seed, cell.scenario).what), **cell.what}
        what |= {"relabel": self.relabel, "batch_size": self.batch_size}
        return Key("cell", what, self._code(METHODS[cell.method].module))

    def _original_key(self, seed: int, scenario: Scenario) -> Key:
        what: dict[str, Any] = {
            "data": self.data.digest,
            "size": list(self.data.images.shape[1:]),
            "augmentation": [self.data.flip, self.data.pad],
            "arch": self.arch,
            "width": self.width,
            "recipe": asdict(self.recipe) | {"milestones": list(self.recipe.milestones)},
            "validation": self.validation,
            "bf16": self.bf16,
            "compile": self.compile,
            "seed": seed,
        }
        if scenario.ids is not None:  # listed images are trained on, so they change the validation part
            what["listed"] = sorted(scenario.ids)
        return Key("original", what, self._code())

    def _code(self, *modules: str) -> str:
        return code_digest(*CODE, module_of(self.arch), *modules)

    def _batches(self, ids: torch.Tensor) -> Batches:
        images, labels = self.data.images[ids].to(self.device), self.data.labels[ids].to(self.device)
        return Batches(images, labels, ids, size=self.batch_size, augment=augmentation(self.data))


def measure(metrics: Mapping[str, Callable[[Evaluation], Any]], evaluation: Evaluation) -> dict[str, Any]:
    """The values of some metrics as JSON numbers."""
    return {name: plain(metric(evaluation)) for name, metric in metrics.items()}


def plain(value: Any) -> float | None:
    """A metric as a JSON number; None where it does not exist (NaN)."""
    number = float("nan") if value is None else float(value)
    return number if number == number else None
