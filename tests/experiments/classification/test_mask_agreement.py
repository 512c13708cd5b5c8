"""Overlaps of masks do not depend on how the images are numbered, and cover every seed and pair of seeds."""

from dataclasses import replace
from itertools import combinations
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch

from salun_core.experiments.classification.mask_agreement import mask_agreement
from salun_core.experiments.runs.cells import Scenario
from salun_core.experiments.runs.lab import mask_of, scores_of
from salun_core.experiments.runs.store import Key, Store
from salun_core.saliency import SCORES, saliency_mask, saliency_scores
from tests.problems import trained_task

RANDOM = Scenario("random", fraction=0.1)
DRAWN = ["two halves", "forget and retain images", "first_batch", "batch_means"]


def numbered(how, seed=0):
    """The forget and retain set, in another order and with ids to match."""
    task = trained_task()
    parts = {}
    for role, part in task.parts.items():
        order = torch.randperm(part.n, generator=torch.Generator().manual_seed(seed))
        if how != "shuffled":
            order = order[part.labels[order].argsort(stable=True, descending=how == "reversed")]
        moved = part.subset(order).resized(32)
        parts[role] = replace(moved, ids=part.ids.sort().values)
    return replace(task, parts=parts)


class Lab:
    """Models and masks of `numbered` tasks, and a store."""

    def __init__(self, folder, how="shuffled", seed=0):
        self.store, self.how, self.seed, self.asked = Store(folder), how, seed, []
        self.data = SimpleNamespace(classes=tuple(range(10)))

    def task(self, seed, scenario):
        self.asked.append(seed)
        return numbered(self.how, self.seed + seed)

    def mask(self, seed, scenario, spec):
        task = numbered(self.how, self.seed + seed)
        if scenario.kind == "class":
            of_class = (task.forget.labels == scenario.target).nonzero().view(-1)
            task = replace(task, parts=task.parts | {"forget": task.forget.subset(of_class)})
        scores = None if spec.kind == "random" else scores_of(task, spec, seed=seed)
        return mask_of(task.model, spec, scores, seed=seed), 0.0

    def key(self, cell):
        return Key("cell", {"seed": cell.seed, "how": self.how, "other": self.seed}, "code")

    def provenance(self):
        return {}


def overlaps(folder, how, seed=0):
    table = mask_agreement(Lab(folder, how, seed), [0], RANDOM, keep=0.3)
    return table.set_index("detail")["iou"]


@pytest.mark.parametrize("how", ["sorted by class", "reversed"])
def test_renumbering_the_images_changes_no_overlap(tmp_path, how):
    drawn = [overlaps(tmp_path, "shuffled", seed) for seed in range(4)]
    sorted_by_class = overlaps(tmp_path, how)
    for name in DRAWN:
        values = [float(found[name]) for found in drawn]
        assert float(sorted_by_class[name]) == pytest.approx(mean(values), abs=5 * stdev(values))


def test_every_part_holds_every_class(tmp_path, monkeypatch):
    """Halves, retain images, and the first batch where a score depends on the order."""
    parts, first = [], {}

    def masked(model, batches, loss, **how):
        parts.append((batches.n, len(batches.labels.unique())))
        return saliency_mask(model, batches, loss, **how)

    def scored(model, forget, loss, *, score):
        labels = [labels for _, labels in forget]
        if len(torch.cat(labels).unique()) > 1:  # not the masks of a single class
            first[score] = len(labels[0].unique())
        return saliency_scores(model, forget, loss, score=score)

    monkeypatch.setattr("salun_core.experiments.classification.mask_agreement.saliency_mask", masked)
    monkeypatch.setattr("salun_core.experiments.runs.lab.saliency_scores", scored)
    overlaps(tmp_path, "sorted by class")
    assert set(parts) == {(60, 10), (120, 10)}
    assert first.keys() == SCORES.keys()
    assert min(first.values()) > 6  # of 32 images; 3 classes where they are in order


def test_every_seed_and_every_two_seeds_are_compared_once(tmp_path):
    table = mask_agreement(Lab(tmp_path), [2, 0, 1], RANDOM, keep=0.3)
    between = table[table["what"] == "training seed"]
    assert between["detail"].tolist() == [f"{a} and {b}" for a, b in combinations(range(3), 2)]
    within = table[table["what"] != "training seed"]
    assert within.groupby("seed").size().nunique() == 1
    assert within["seed"].unique().tolist() == [0, 1, 2]


def test_a_further_seed_computes_only_what_is_new(tmp_path):
    first = mask_agreement(Lab(tmp_path), [0, 1], RANDOM, keep=0.3)
    stored = len(list(tmp_path.rglob("agreement-*.json")))
    more = Lab(tmp_path)
    table = mask_agreement(more, [0, 1, 2], RANDOM, keep=0.3)
    assert len(list(tmp_path.rglob("agreement-*.json"))) == stored + 3  # seed 2, and 2 with 0 and with 1
    kept = table.merge(first, on=["what", "detail", "seed"], suffixes=("", " first")).dropna()
    assert len(kept) == len(first)
    assert kept["iou"].tolist() == kept["iou first"].tolist()
    again = Lab(tmp_path)
    assert mask_agreement(again, [0, 1, 2], RANDOM, keep=0.3).equals(table)
    assert not again.asked
