"""SalUn once, slowly, on a small network: the chapter that shows each step."""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from pydantic import field_validator

from salun_core.experiments.classification.lab import ClassifierLab
from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.runs.cells import Scenario
from salun_core.experiments.runs.machine import OneThread
from salun_core.experiments.runs.params import LONG, Params, parameter
from salun_core.methods import METHODS
from salun_core.metrics import METRICS, evaluate
from salun_core.saliency import Mask, Scores, check_keep, saliency_scores, top_mask
from salun_core.tasks.classification import ClassificationTask


class MiniatureParams(Params):
    """Parameters of the miniature."""

    experiment: ClassVar[str] = "miniature"

    forget_class: int = parameter(3, "the digit to forget", ge=0, le=9)
    keep: float = parameter(0.15, "share of weights that may change, (0, 1]")
    width: int = parameter(8, "channels of the first stage of the network", ge=1)
    epochs: int = parameter(5, "epochs of unlearning, at most", ge=1, le=LONG)
    lr: float = parameter(0.02, "its learning rate", gt=0)
    machine: OneThread = OneThread()

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: float) -> float:
        check_keep(value)
        return value


@dataclass(frozen=True)
class Miniature:
    """What the steps lead to: the problem, the scores, the mask."""

    lab: ClassifierLab
    task: ClassificationTask
    scores: Scores
    mask: Mask


def prepare(params: MiniatureParams) -> Miniature:
    """Train the network, or find it, and score its weights on the forget set."""
    given = {
        "preset": "quick",
        "scenario": ["class"],
        "forget_class": params.forget_class,
        "width": params.width,
    }
    given |= {"keep": params.keep, "threads": params.threads, "out_dir": params.out_dir}
    lab = ClassificationParams.load(given).lab()
    task = lab.task(0, Scenario("class", target=params.forget_class))
    scores = saliency_scores(task.model, task.forget, task.loss)
    return Miniature(lab, task, scores, top_mask(scores, keep=params.keep))


def over_epochs(mini: Miniature, params: MiniatureParams) -> pd.DataFrame:
    """UA, RA and TA after each number of epochs, with the mask and without it.

    Returns
    -------
    DataFrame
        Columns ``mask`` ("salient" or "none"), ``epochs`` and the metrics, in [0, 1].
    """
    rows = []
    for kind, mask in (("salient", mini.mask), ("none", None)):
        for epochs in range(params.epochs + 1):
            model = mini.task.model
            if epochs:
                model = METHODS["rl"](mini.task, mask=mask, epochs=epochs, lr=params.lr).model
            found = evaluate(model, mini.task.parts)
            rows.append(
                {"mask": kind, "epochs": epochs}
                | {name: float(METRICS[name](found)) for name in ("UA", "RA", "TA")}
            )
    return pd.DataFrame(rows)
