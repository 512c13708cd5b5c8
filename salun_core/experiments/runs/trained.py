"""Parameters of the models that are compared: how they are trained, or where they come from."""

import sys
from functools import cache
from typing import Literal, Self

import torch
from pydantic import model_validator
from tqdm import tqdm

from salun_core.errors import UserError
from salun_core.experiments.runs.params import Group, parameter

TRAIN = "train"  # in place of a model
HERE = f"pretrained is none or retrained is {TRAIN}"  # what a parameter of training needs
DIGEST = "its digest is part of the key in its place"


class Trained(Group):
    """Models before forgetting and Retrain: trained here, or brought along."""

    precision: Literal["auto", "fp32", "bf16"] = parameter("fp32", "fp32, bf16, or auto: bf16 on a GPU")
    compile: bool = parameter(False, "train through torch.compile")
    pretrained: str | None = parameter(
        None,
        "a trained model: file or folder of weights, or an id of the Hugging Face hub",
        no_effect=DIGEST,
    )
    retrained: str | None = parameter(
        None,
        'Retrain, with pretrained: such a model, or "train"; None: there is none, and no gaps',
        no_effect=DIGEST,
    )

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.retrained is not None and self.pretrained is None:
            raise UserError("retrained is given without pretrained: name the model before forgetting as well")
        return self

    @property
    def retrains(self) -> bool:
        """Whether there are models to compare with."""
        return self.pretrained is None or self.retrained is not None

    @property
    def retrains_itself(self) -> bool:
        """Whether they are trained here."""
        return self.pretrained is None or self.retrained == TRAIN

    @property
    def brought(self) -> dict[str, str]:
        """The models that are not trained here, by the name of their parameter."""
        both = {"pretrained": self.pretrained, "retrained": self.retrained}
        return {name: model for name, model in both.items() if model is not None and model != TRAIN}

    def bf16(self, device: torch.device) -> bool:
        """Whether training computes in bfloat16 there."""
        if self.precision == "bf16" and device.type == "cpu":
            _say_if_emulated()
        return self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")


def has_bf16() -> bool:
    """Whether this processor has instructions for bfloat16; else it emulates them, many times slower."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _say_if_emulated() -> None:
    """Tell once that bfloat16 takes longer than single precision where the processor has no instructions for it."""
    if not has_bf16():
        tqdm.write(
            "precision bf16: this processor has no instructions for bfloat16 and emulates it, which takes ten to twenty "
            "times as long as precision fp32; the results of the two differ in their last digits",
            file=sys.stderr,
        )
