"""The class-wise experiment: every class is forgotten once, with settings chosen on one of them."""

from typing import ClassVar

from pydantic import field_validator

from salun_core.data.splits import class_number, class_numbers
from salun_core.errors import UserError
from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import Results
from salun_core.experiments.classification.params import ClassifierParams, check_splits, tunable
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.grid import Chosen, Grid
from salun_core.experiments.runs.params import parameter
from salun_core.experiments.runs.table import Run


class ClassWiseParams(ClassifierParams):
    """Parameters of the class-wise experiment; settings are chosen on ``forget_class``."""

    experiment: ClassVar[str] = "class_wise"
    fixed: ClassVar[tuple[str, ...]] = ("scenario", "forget_fraction", "forget_indices")

    methods: tuple[str, ...] = parameter(
        ("ft", "rl", "ga", "l1_sparse", "salun", "salun_soft"), "keys of METHODS; Retrain always runs"
    )
    classes: tuple[int | str, ...] = parameter((), "classes to forget, by number or name; all by default")

    @field_validator("methods")
    @classmethod
    def _tunable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tunable(value)

    @field_validator("forgetting")
    @classmethod
    def _classes_only(cls, value: object) -> object:
        scenario = getattr(value, "scenario", ())
        if scenario != ("class",):
            raise UserError(f"class_wise forgets classes, not {', '.join(scenario)}: leave scenario out")
        return value


def grid(params: ClassWiseParams, lab: ClassifierLab) -> Grid:
    """The cells of the experiment.

    Settings are chosen once, for ``forget_class`` on the tuning seeds, and kept for every class: a method
    that needs another setting for each class cannot be tuned where Retrain is not known.
    """
    names = lab.data.classes
    given = params.classes or tuple(range(len(names)))
    scenarios = [
        Scenario("class", target=number) for number in class_numbers(lab.data, given, parameter="classes")
    ]
    base = Scenario("class", target=class_number(lab.data, params.forgetting.forget_class))
    check_splits(lab, [base, *scenarios], params.repetition.seeds)
    variants = [params.variant(name) for name in params.methods]

    def studies(chosen: Chosen) -> dict[str, list[Cell]]:
        return {
            "": [
                cell
                for seed in params.repetition.seeds
                for scenario in scenarios
                for cell in params.cells(
                    seed,
                    scenario,
                    {v: chosen[base, v] for v in variants},
                    ends=("retrain", "original"),
                    study="classes",
                    forgotten=names[scenario.numbers[0]],
                )
            ]
        }

    return Grid(lab, params, studies, params.tuning, variants, [base])


def run(params: ClassWiseParams, *, lab: ClassifierLab | None = None) -> Results:
    """Run or resume the experiment."""
    lab = lab or params.lab()
    tuning, tables = grid(params, lab).execute(Run(lab, params))
    return Results(tables[""], tuning, lab, params)
