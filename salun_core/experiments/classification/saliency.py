"""The saliency experiment, which asks whether it matters which weights the mask keeps."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import pandas as pd
import torch
from pydantic import Field, field_validator

from salun_core.data.batches import Batches
from salun_core.errors import Diverged, UserError, one_of
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import ClassifierParams, Results, finished
from salun_core.experiments.runs.cells import (
    MASKS,
    Cell,
    MaskSpec,
    Scenario,
    progress_bar,
    retrain_replicas,
    run_cells,
)
from salun_core.experiments.runs.store import Key
from salun_core.experiments.runs.tuning import FREE, Variant, tune
from salun_core.methods import METHODS
from salun_core.saliency import SCORES, Mask, expected_iou, mask_iou, saliency_mask

PROTOCOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # What each revision of the released code did to mask and update: mask settings, method settings.
    "paper": ({"kind": "salient"}, {}),
    "released 2023-10": (
        {"kind": "least_salient", "score": "first_release", "augmented": True},
        {"decay_unmarked": True},
    ),
    "released 2023-12-01": (
        {"kind": "least_salient", "score": "drifting", "augmented": True},
        {"decay_unmarked": True},
    ),
    "released 2023-12-17": (
        {"kind": "salient", "score": "batch_means", "augmented": True},
        {"decay_unmarked": True},
    ),
    "released 2026-02": ({"kind": "salient", "score": "batch_means", "augmented": True}, {}),
}


class MaskParams(ClassifierParams):
    """Parameters of the saliency experiment."""

    experiment: ClassVar[str] = "saliency"

    methods: tuple[str, ...] = ("rl", "ft", "ga", "iu", "l1_sparse")
    masks: tuple[str, ...] = ("none", "salient", "random", "least_salient")
    densities: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    noise_floor: int = Field(1, ge=0)

    @field_validator("methods", "masks", "protocols")
    @classmethod
    def _known_names(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        known = {"methods": [m for m in METHODS if m not in FREE], "masks": MASKS, "protocols": PROTOCOLS}
        for name in value:
            one_of(name, known[info.field_name], info.field_name.removesuffix("s"))
        return value

    @field_validator("densities")
    @classmethod
    def _densities(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [k for k in value if not 0 < k <= 1]:
            raise UserError(f"densities must lie in (0, 1], got {wrong[0]:g}")
        return value


@dataclass(frozen=True)
class MaskResults(Results):
    """Results with three more tables.

    Parameters
    ----------
    density : DataFrame
        SalUn's setting under salient, random and least-salient masks over the share kept.
    protocols : DataFrame
        The released code over time.
    agreement : DataFrame
        Overlap of masks, see `mask_agreement`.
    """

    density: pd.DataFrame
    protocols: pd.DataFrame
    agreement: pd.DataFrame


def run(params: MaskParams, *, lab: ClassifierLab | None = None) -> MaskResults:
    """Run or resume the experiment: the same tuning budget for each method under each mask."""
    lab = lab or params.lab()
    (scenario,) = params.checked_scenarios(lab)[:1]
    budget = params.budget()
    specs = {
        kind: MaskSpec() if kind == "none" else MaskSpec(kind, params.keep, params.score)
        for kind in params.masks
    }
    variants = [Variant(m, spec) for m, spec in product(params.methods, specs.values())]
    densities = [
        MaskSpec(kind, keep, params.score)
        for kind, keep in product(("salient", "random", "least_salient"), params.densities)
    ]
    named = {name: PROTOCOLS[name] for name in params.protocols}
    an_seed = len(variants) + 1 + params.noise_floor + len(densities) + len(named)
    total = budget.count(variants, scenario) + len(params.seeds) * an_seed
    cells, density, protocols = [], [], []
    with progress_bar(total, lab.experiment) as progress:
        tuning, chosen = tune(lab, budget, variants, scenario, progress=progress)
        salun = chosen.get(Variant("rl", specs["salient"]), {}) if "salient" in specs else {}
        for seed in params.seeds:
            retrain = Cell(seed, scenario, "retrain")
            wanted = [retrain, *(Cell(seed, scenario, v.method, v.mask, chosen[v]) for v in variants)]
            wanted += retrain_replicas(seed, scenario, params.noise_floor)
            cells.append(run_cells(lab, wanted, progress=progress).assign(part="masks"))
            # One setting for all densities and protocols, the one chosen for SalUn: only the mask changes.
            swept = [Cell(seed, scenario, "rl", spec, salun) for spec in densities]
            density.append(run_cells(lab, swept, progress=progress).assign(part="density"))
            past = [
                Cell(
                    seed,
                    scenario,
                    "rl",
                    MaskSpec(keep=params.keep, **mask),
                    {**salun, **more},
                    tags={"protocol": name},
                )
                for name, (mask, more) in named.items()
            ]
            protocols.append(run_cells(lab, past, progress=progress).assign(part="protocols"))
    done = finished(lab, params, [*cells, *density, *protocols], [tuning])
    return MaskResults(
        pd.concat(cells, ignore_index=True),
        tuning,
        lab,
        params,
        pd.concat(density, ignore_index=True),
        pd.concat(protocols, ignore_index=True) if named else done.cells.iloc[:0],
        mask_agreement(lab, params.seeds, scenario, keep=params.keep),
    )


def mask_agreement(
    lab: ClassifierLab, seeds: tuple[int, ...], scenario: Scenario, *, keep: float
) -> pd.DataFrame:
    """Overlap of pairs of masks that differ in one thing.

    Returns
    -------
    DataFrame
        ``what`` differs, ``detail``, ``seed``, ``iou`` in [0, 1], and ``expected``, the overlap of two
        independent random masks of this density.
    """
    rows = []
    for seed in seeds:
        what = {"cell": lab.key(Cell(seed, scenario, "original")).what, "keep": keep, "seeds": list(seeds)}
        key = Key("agreement", what, lab.key(Cell(seed, scenario, "original")).code)
        found = lab.store.get(key)
        if found is None:
            pairs = [
                {
                    "what": w,
                    "detail": d,
                    "seed": seed,
                    "iou": mask_iou(a, b),
                    "expected": expected_iou(keep, keep),
                }
                for w, d, a, b in _pairs(lab, seed, seeds, scenario, keep)
            ]
            found = lab.store.put(key, {"pairs": pairs}, lab.provenance())
        rows += found.content["pairs"]
    return pd.DataFrame(rows)


def _pairs(
    lab: ClassifierLab, seed: int, seeds: tuple[int, ...], scenario: Scenario, keep: float
) -> Iterator[tuple[str, str, Mask, Mask]]:
    def of(spec: MaskSpec, *, seed: int = seed, scenario: Scenario = scenario) -> Mask:
        mask, _ = lab.mask(seed, scenario, spec)
        assert mask is not None
        return mask

    paper = MaskSpec("salient", keep)
    mask = of(paper)
    task = lab.task(seed, scenario)
    assert isinstance(task.forget, Batches)
    for size in (1 + task.forget.size // 3, 1 + task.forget.size // 10):
        other = saliency_mask(task.model, task.forget.resized(size), task.loss, keep=keep)
        yield "batch size", f"{task.forget.size} and {size}", mask, other
    single = saliency_mask(task.model, task.forget, task.loss, keep=keep, dtype=None)
    yield "precision", "double and single", mask, single
    for score in SCORES:
        if score == "abs_sum":
            continue
        with contextlib.suppress(Diverged):  # no mask, hence no overlap; its protocol's row says so
            yield "score", score, mask, of(MaskSpec("salient", keep, score))
    draws = [of(MaskSpec("salient", keep, augmented=True, draw=draw)) for draw in (0, 1)]
    yield "augmentation", "none and one draw", mask, draws[0]
    yield "augmentation", "two draws", draws[0], draws[1]
    yield "control", "random mask", mask, of(MaskSpec("random", keep))
    half = task.forget.n // 2
    rows = torch.arange(task.forget.n)
    parts = [
        saliency_mask(task.model, task.forget.subset(part), task.loss, keep=keep)
        for part in (rows[:half], rows[half:])
    ]
    yield "forget set", "two halves", parts[0], parts[1]
    retained = task.retain.subset(torch.arange(min(task.forget.n, task.retain.n)))
    yield (
        "forget set",
        "forget and retain images",
        mask,
        saliency_mask(task.model, retained, task.loss, keep=keep),
    )
    count = len(lab.data.classes)
    by_class = {c: of(paper, scenario=Scenario("class", target=c)) for c in (0, count // 2, count - 1)}
    yield "forget set", "two classes", by_class[0], by_class[count - 1]
    yield "forget set", "random share and a class", mask, by_class[count // 2]
    for other_seed in seeds:
        if other_seed > seed:
            yield "training seed", f"{seed} and {other_seed}", mask, of(paper, seed=other_seed)
