"""Parameters that every experiment has: how often everything is repeated."""

from typing import Any

from pydantic import field_validator

from salun_core.errors import UserError
from salun_core.experiments.runs.params import REPEATED, Group, parameter
from salun_core.experiments.runs.trained import HERE


class Repetition(Group):
    """Seeds of training, and of unlearning on each trained model."""

    seeds: tuple[int, ...] = parameter(
        (0,), "seeds of training, and of the split where images are drawn", any_whole=True
    )
    unlearning_seeds: tuple[int, ...] = parameter(
        (0,), "seeds of unlearning, for each trained model", any_whole=True
    )

    @field_validator("seeds", "unlearning_seeds")
    @classmethod
    def _some(cls, value: tuple[int, ...], info: Any) -> tuple[int, ...]:
        if not value:
            raise UserError(f"{info.field_name} is empty: give at least one number, for instance [0, 1, 2]")
        return value


class RetrainRepetition(Repetition):
    """The same where models are retrained, which shows how far they differ among themselves."""

    noise_floor: int = parameter(0, "further retrained models for each seed", needs=HERE, ge=0, le=REPEATED)
