"""Parameters of the chapter that writes SalUn down without this library."""

from typing import ClassVar

from pydantic import field_validator

from salun_core.experiments.runs.params import LONG, Params, parameter
from salun_core.saliency import check_keep


class ScratchParams(Params):
    """Parameters of SalUn in forty lines."""

    experiment: ClassVar[str] = "scratch"

    forget_class: int = parameter(3, "the digit to forget", ge=0, le=9)
    keep: float = parameter(0.5, "share of weights that may change, (0, 1]")
    epochs: int = parameter(5, "epochs of random labelling", ge=1, le=LONG)
    lr: float = parameter(0.02, "its learning rate", gt=0)
    seed: int = parameter(
        0, "of the split, the network, the order of the images and the wrong labels", ge=0, any_whole=True
    )

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float) -> float:
        check_keep(value)
        return value
