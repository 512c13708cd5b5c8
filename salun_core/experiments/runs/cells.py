"""Cells: the points of an experiment's grid."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from salun_core.errors import one_line, one_of
from salun_core.methods import METHODS
from salun_core.methods.engine import check_settings
from salun_core.rng import derive
from salun_core.saliency import SCORES, check_keep

MASKS = ("none", "salient", "random", "random_per_layer", "least_salient")
CHANGES = (*MASKS, "lora")  # what may change: weights under a mask, or adapters in its place


@dataclass(frozen=True)
class MaskSpec:
    """Which mask a cell uses.

    A kind from ``CHANGES``, the share of weights kept, a key of ``saliency.SCORES``, whether the forget set
    is augmented while scoring (as in the released code), and the draw of a random mask or augmentation.
    """

    kind: str = "none"
    keep: float = 1.0
    score: str = "abs_sum"
    augmented: bool = False
    draw: int = 0

    def __post_init__(self) -> None:
        one_of(self.kind, CHANGES, "kind of mask")
        one_of(self.score, SCORES, "saliency score")
        check_keep(self.keep)


NO_MASK = MaskSpec()


def default_mask(method: str, keep: float, score: str) -> MaskSpec:
    """The mask a method is run with unless an experiment says otherwise."""
    kind = METHODS[method].mask
    return NO_MASK if kind == "none" else MaskSpec(kind, keep, score)


@dataclass(frozen=True)
class Scenario:
    """What is to be forgotten: a random share, a class or several at once, or listed sample ids."""

    kind: Literal["random", "class", "indices"]
    fraction: float | None = None
    target: int | str | tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Name for tables: "random 10%", "class 3", "classes 3, 5", "120 listed images"."""
        if self.kind == "random":
            assert self.fraction is not None
            return f"random {100 * self.fraction:.12g}%"  # two shares never have one name
        if self.kind == "indices":
            return f"{len(self.ids or ())} listed images"
        if isinstance(self.target, tuple):
            return f"classes {', '.join(map(str, self.target))}"
        return f"class {self.target}"

    @classmethod
    def from_what(cls, what: Mapping[str, Any]) -> "Scenario":
        """The scenario in `Cell.what`, also after it was stored as JSON."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in what.items()}
        return cls(**values)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the classes to forget; none where no class is, or one is given by its name."""
        if isinstance(self.target, tuple):
            return self.target
        return (self.target,) if isinstance(self.target, int) else ()


@dataclass(frozen=True)
class Variant:
    """A method under a mask."""

    method: str
    mask: MaskSpec = NO_MASK


@dataclass(frozen=True)
class Cell:
    """One run: a method on one split and trained model, with one seed of unlearning.

    Parameters
    ----------
    seed : int
        Of the split and of training from scratch.
    scenario : Scenario
        What is forgotten.
    method : str
        A key of ``METHODS``.
    mask : MaskSpec
        Which weights it may change.
    settings : mapping
        On top of the method's defaults.
    unlearning_seed : int
        Repeats unlearning, and nothing else, with other random draws.
    reported : bool
        False for a cell that only takes part in the choice of settings: no test image is looked at.
    tags : mapping
        Columns that say what the cell is for; like ``reported`` they do not change its result.
    """

    seed: int
    scenario: Scenario
    method: str
    mask: MaskSpec = NO_MASK
    settings: Mapping[str, Any] = field(default_factory=dict)
    unlearning_seed: int = 0
    reported: bool = True
    tags: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(METHODS[one_of(self.method, METHODS, "method")], self.settings)

    @classmethod
    def from_what(cls, what: Mapping[str, Any]) -> "Cell":
        """The cell that `what` describes, as the key of a stored result holds it."""
        return cls(
            what["seed"],
            Scenario.from_what(what["scenario"]),
            what["method"],
            MaskSpec(**what["mask"]),
            what["settings"],
            what["unlearning_seed"],
        )

    @property
    def all_settings(self) -> dict[str, Any]:
        """The method's defaults with this cell's settings on top."""
        return {**METHODS[self.method].defaults, **self.settings}

    @property
    def method_seed(self) -> int:
        """The seed that the method is called with."""
        if not self.unlearning_seed:
            return self.seed
        return derive(self.seed, "unlearning", self.unlearning_seed) % 2**31

    @property
    def what(self) -> dict[str, Any]:
        """What of this cell determines its result, as JSON values."""
        return {
            "seed": self.seed,
            "unlearning_seed": self.unlearning_seed,
            "scenario": {k: v for k, v in asdict(self.scenario).items() if v is not None},
            "method": self.method,
            "settings": self.all_settings,
            "mask": asdict(self.mask) if self.mask.kind != "none" else {"kind": "none"},
        }

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that define its method and, where another package brings it, its saliency score."""
        score = () if self.mask.kind == "none" else SCORES.modules(self.mask.score)
        return (METHODS[self.method].module, *METHODS.modules(self.method), *score)

    @property
    def label(self) -> str:
        """What is being run, for progress bars and messages."""
        own = self.mask.kind in ("none", METHODS[self.method].mask)
        mask = "" if own else f" + {self.mask.kind} mask"
        use = "" if self.reported else " (tuning)"
        return one_line(f"{self.scenario.label}, seed {self.seed}, {self.method}{mask}{use}")


def retrain_replicas(seed: int, scenario: Scenario, count: int, **tags: Any) -> list[Cell]:
    """Further retrained models of one split, which differ in initialisation and order only."""
    return [Cell(seed, scenario, "retrain", settings={"replica": i + 1}, tags=tags) for i in range(count)]
