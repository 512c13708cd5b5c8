"""Runs classification cells: trains originals, builds masks, unlearns, and stores what the models say."""

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from salun_core.code_digest import code_digest
from salun_core.data.images import ImageData
from salun_core.data.splits import Split
from salun_core.errors import Diverged
from salun_core.experiments.classification.problem import Problem
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.lab import Lab
from salun_core.experiments.runs.provenance import peak_memory
from salun_core.experiments.runs.store import Key, Result, Store
from salun_core.metrics.classification.outputs import Evaluation
from salun_core.models import modules_of
from salun_core.networks import weight_bytes
from salun_core.tasks.classification import ClassificationTask

CODE = ("salun_core.experiments.classification.problem",)
"""Where a cell is computed; with all that these import, its network and its method, the code behind it."""

LABS = ("salun_core.experiments.runs.lab", "salun_core.experiments.classification.lab")
"""What puts these together; it counts without what it imports."""

OUTPUTS = ".outputs.safetensors"


@dataclass
class ClassifierLab(Lab):
    """One data set and one kind of network; every seed and scenario on them.

    Parameters
    ----------
    problem : Problem
        What determines the models.
    store : Store
        Where results lie.
    compact : int
        Images of each role whose outputs are kept, in half precision; 0 for all, in single precision.
    """

    problem: Problem
    store: Store
    compact: int = 0
    _task: tuple[tuple[int, Scenario], ClassificationTask] | None = field(default=None, repr=False)

    @property
    def data(self) -> ImageData:  # type: ignore[override]
        """All images."""
        return self.problem.data

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where networks and images lie."""
        return self.problem.device

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised network."""
        return self.problem.build(seed)

    def split(self, seed: int, scenario: Scenario) -> Split:
        """Sample ids by role."""
        return self.problem.split(seed, scenario)

    def original(self, seed: int, scenario: Scenario) -> nn.Module:
        """The model trained on forget and retain set together: one per seed, and one per list of images."""
        if self.problem.pretrained is not None:
            return self.problem.brought(self.problem.pretrained)
        key = self.original_key(seed, scenario)
        with self.store.alone(key):
            found = self.store.get(key)
            if found is None or not self.store.has_files(found):
                found = self._trained(seed, scenario, key)
        # What is stored, also when it was trained just now: another machine may have been first.
        net = self.build(seed).to(memory_format=torch.channels_last)
        net.load_state_dict(load(self.store.read(found, next(iter(found.files)))))
        return net.eval()

    def _trained(self, seed: int, scenario: Scenario, key: Key) -> Result:
        start = time.perf_counter()
        net, losses, samples = self.problem.trained(seed, scenario)
        values = {
            "seconds": self.since(start),
            "samples": samples,
            "losses": losses,
            "peak_memory": peak_memory(self.device),
        }
        return self.store.put(key, values, self.provenance(), {".model.safetensors": weight_bytes(net)})

    def task(self, seed: int, scenario: Scenario) -> ClassificationTask:
        """The unlearning problem of one seed and scenario, with its trained model."""
        if self._task is None or self._task[0] != (seed, scenario):
            self._task = None  # free the old images before the new ones are copied
            original = self.original(seed, scenario)
            self._task = ((seed, scenario), self.problem.task(seed, scenario, original))
        return self._task[1]

    def unlearned(self, cell: Cell, values: dict[str, Any]) -> tuple[Any, Any]:
        """See `Lab.unlearned`; a retrained model supplied by the user is taken as it is, and its cost is unknown."""
        if cell.method == "retrain" and self.problem.retrained is not None:
            values |= {"seconds": None, "samples": None, "losses": []}
            return self.problem.brought(self.problem.retrained), None
        return super().unlearned(cell, values)

    def computed(self, cell: Cell, key: Key) -> Result:
        """Run the cell and store what its model says of the images."""
        task = self.task(cell.seed, cell.scenario)
        values: dict[str, Any] = {"about": self.about, "status": "done", "mask_seconds": None}
        values["counts"] = {role: batches.n for role, batches in task.parts.items()}
        values["kept"] = self.compact
        try:
            model, _ = self.unlearned(cell, values)
            found = self.problem.outputs(model, task)
        except Diverged as error:
            values |= {"status": "diverged", "why": str(error)}
            return self.store.put(key, values, self.provenance())
        if self.compact:
            files = {f"{OUTPUTS}.xz": found.sampled(self.compact).to_bytes(compressed=True)}
        else:
            files = {OUTPUTS: found.to_bytes()}
        return self.store.put(key, values, self.provenance(), files)

    def keeps(self, result: Result) -> bool:
        """Whether the result holds outputs of as many images as this lab stores: metrics are computed from them."""
        return result.outputs is None or result.content.get("kept") == self.compact

    @cached_property
    def about(self) -> dict[str, Any]:
        """What data and network it is, for the results table."""
        return {
            "kind": "classification",
            "dataset": self.data.name,
            **self.problem.network,
            "weights": sum(w.numel() for w in self.build(0).parameters()),
        }

    def evaluation(self, result: Result) -> Evaluation:
        """The stored outputs behind a result."""
        assert result.outputs is not None
        return Evaluation.load(self.store.file(result, result.outputs))

    def key(self, cell: Cell) -> Key:
        """Identity of a cell."""
        what = {"original": dict(self.original_key(cell.seed, cell.scenario).what), **cell.what}
        if cell.method == "retrain" and self.problem.retrained is not None:
            what["retrained"] = self.problem.retrained.digest
        what |= {"relabel": self.problem.relabel, "batch_size": self.problem.batch_size}
        return Key("cell", what, self._code(*cell.modules))

    def original_key(self, seed: int, scenario: Scenario) -> Key:
        """Identity of an original model."""
        what = self.problem.identity | {"seed": seed}
        if scenario.ids is not None:  # listed images are trained on, so they change the validation part
            what["listed"] = sorted(scenario.ids)
        return Key("original", what, self._code())

    def _code(self, *modules: str) -> str:
        return code_digest(*CODE, *modules_of(self.problem.arch), *modules, alone=LABS)
