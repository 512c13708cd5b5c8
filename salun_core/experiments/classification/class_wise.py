"""The class-wise experiment: every class is forgotten once, with settings chosen on one of them."""

from itertools import product
from typing import ClassVar

from pydantic import Field, field_validator

from salun_core.data.splits import class_number
from salun_core.errors import UserError, one_of
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import (
    ClassifierParams,
    Results,
    finished,
)
from salun_core.experiments.runs.cells import (
    Cell,
    Scenario,
    default_mask,
    progress_bar,
    retrain_replicas,
    run_cells,
)
from salun_core.experiments.runs.tuning import FREE, Variant, tune
from salun_core.methods import METHODS


class ClassWiseParams(ClassifierParams):
    """Parameters of the class-wise experiment; settings are chosen on ``forget_class``."""

    experiment: ClassVar[str] = "class_wise"
    fixed: ClassVar[tuple[str, ...]] = ("scenario", "forget_fraction", "forget_indices")

    methods: tuple[str, ...] = ("ft", "rl", "ga", "l1_sparse", "salun", "salun_soft")
    classes: tuple[int | str, ...] = ()
    noise_floor: int = Field(1, ge=0)

    @field_validator("methods")
    @classmethod
    def _tunable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            one_of(name, [m for m in METHODS if m not in FREE], "method")
        return value

    @field_validator("scenario")
    @classmethod
    def _classes_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value != ("class",):
            raise UserError(f"class_wise forgets classes, not {', '.join(value)}: leave scenario out")
        return value


def run(params: ClassWiseParams, *, lab: ClassifierLab | None = None) -> Results:
    """Run or resume the experiment.

    Settings are chosen once, for ``forget_class`` on the tuning seed, and kept for every class: a method
    that needs another setting for each class cannot be tuned where Retrain is not known.
    """
    lab = lab or params.lab()
    names = lab.data.classes
    given = params.classes or tuple(range(len(names)))
    scenarios = [Scenario("class", target=class_number(lab.data, c)) for c in given]
    base = Scenario("class", target=class_number(lab.data, params.forget_class))
    for scenario, seed in product([base, *scenarios], params.seeds):
        lab.split(seed, scenario)
    variants = [Variant(m, default_mask(m, params.keep, params.score)) for m in params.methods]
    budget = params.budget()
    each = len(variants) + 2 + params.noise_floor
    total = budget.count(variants, base) + len(params.seeds) * len(scenarios) * each
    cells = []
    with progress_bar(total, lab.experiment) as progress:
        tuning, chosen = tune(lab, budget, variants, base, progress=progress)
        for seed, scenario in product(params.seeds, scenarios):
            wanted = [Cell(seed, scenario, "retrain"), Cell(seed, scenario, "original")]
            wanted += [Cell(seed, scenario, v.method, v.mask, chosen[v]) for v in variants]
            wanted += retrain_replicas(seed, scenario, params.noise_floor)
            rows = run_cells(lab, wanted, progress=progress)
            cells.append(rows.assign(forgotten=names[int(scenario.target or 0)]))
    return finished(lab, params, cells, [tuning])
