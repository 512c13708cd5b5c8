"""How far saliency masks agree that differ in one thing: the batches, the score, the images, the training seed."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from salun_core.code_digest import code_digest
from salun_core.data.batches import Batches
from salun_core.data.draws import drawn, lots, stratified_order
from salun_core.errors import Diverged
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.experiments.runs.store import Key
from salun_core.saliency import SCORES, Mask, expected_iou, mask_iou, saliency_mask

if TYPE_CHECKING:
    from salun_core.experiments.classification.lab import ClassifierLab

Pair = tuple[str, str, Mask, Mask]
"""What differs, in which way, and the two masks."""


def mask_agreement(
    lab: "ClassifierLab", seeds: Sequence[int], scenario: Scenario, *, keep: float
) -> pd.DataFrame:
    """Overlap of pairs of masks that differ in one thing: within each seed, and between every two seeds.

    Each seed and each pair of seeds is stored by itself, so a run over more seeds computes only what is new.

    Parameters
    ----------
    lab : ClassifierLab
        Where the models are.
    seeds : sequence of int
        All seeds of the run.
    scenario : Scenario
        What is forgotten.
    keep : float
        Share of weights kept, in (0, 1].

    Returns
    -------
    DataFrame
        ``what`` differs, ``detail``, ``seed`` (of two training seeds the first), ``iou`` in [0, 1], and
        ``expected``, the overlap of two independent random masks of this density.
    """
    masks: dict[int, Mask] = {}

    def of_seed(seed: int) -> Mask:
        if seed not in masks:
            task = lab.task(seed, scenario)
            masks[seed] = saliency_mask(task.model, task.forget, task.loss, keep=keep)
        return masks[seed]

    def within(seed: int) -> Iterator[Pair]:
        return pairs_of_task(lab, seed, scenario, keep, of_seed(seed))

    def between(first: int, second: int) -> Iterator[Pair]:
        yield "training seed", f"{first} and {second}", of_seed(first), of_seed(second)

    rows, expected = [], expected_iou(keep, keep)
    every = [*((seed,) for seed in sorted(seeds)), *combinations(sorted(seeds), 2)]
    for of in every:
        cells = [lab.key(Cell(seed, scenario, "original")) for seed in of]
        what = {"cells": [dict(cell.what) for cell in cells], "keep": keep}
        key = Key("agreement", what, f"{code_digest(__name__)} {cells[0].code}")
        found = lab.store.get(key)
        if found is None:
            pairs = [
                {"what": w, "detail": d, "seed": of[0], "iou": mask_iou(a, b), "expected": expected}
                for w, d, a, b in (within(*of) if len(of) == 1 else between(*of))
            ]
            found = lab.store.put(key, {"pairs": pairs}, lab.provenance())
        rows += found.content["pairs"]
    return pd.DataFrame(rows)


def pairs_of_task(
    lab: "ClassifierLab", seed: int, scenario: Scenario, keep: float, mask: Mask
) -> Iterator[Pair]:
    """The mask of one task beside others of the same model.

    Wherever a part of the images counts, it is drawn: the first ones of a data set may be of one class.
    """
    task = lab.task(seed, scenario)
    forget, retain = task.forget, task.retain
    assert isinstance(forget, Batches) and isinstance(retain, Batches)

    def masked(batches: Batches, **how: Any) -> Mask:
        return saliency_mask(task.model, batches, task.loss, keep=keep, **how)

    def of_lab(spec: MaskSpec, scenario: Scenario = scenario) -> Mask:
        found, _ = lab.mask(seed, scenario, spec)
        assert found is not None
        return found

    for size in (1 + forget.size // 3, 1 + forget.size // 10):
        yield "batch size", f"{forget.size} and {size}", mask, masked(forget.resized(size))
    yield "precision", "double and single", masked(forget, dtype=torch.float64), masked(forget, dtype=None)
    for score in SCORES:
        if score == "abs_sum":
            continue
        with contextlib.suppress(Diverged):  # no mask, hence no overlap; its protocol's row says so
            yield "score", score, mask, of_lab(MaskSpec("salient", keep, score))
    draws = [of_lab(MaskSpec("salient", keep, augmented=True, draw=draw)) for draw in (0, 1)]
    yield "augmentation", "none and one draw", mask, draws[0]
    yield "augmentation", "two draws", draws[0], draws[1]
    yield "control", "random mask", mask, of_lab(MaskSpec("random", keep))
    order = stratified_order(forget.labels.cpu(), lots(forget.ids, "halves", seed))
    halves = [masked(forget.subset(rows)) for rows in order.tensor_split(2)]
    yield "forget set", "two halves", halves[0], halves[1]
    retained = drawn(retain, forget.n, "retained images", seed)
    yield "forget set", "forget and retain images", mask, masked(retained)
    count = len(lab.data.classes)
    paper = MaskSpec("salient", keep)
    by_class = {c: of_lab(paper, Scenario("class", target=c)) for c in (0, count // 2, count - 1)}
    yield "forget set", "two classes", by_class[0], by_class[count - 1]
    yield "forget set", "random share and a class", mask, by_class[count // 2]
