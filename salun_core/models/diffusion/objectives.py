"""Training objectives of denoising networks: how much noise, at which times, and what is to be predicted of it."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from salun_core.errors import UserError, one_of
from salun_core.models.diffusion.unet import quiet

PREDICTIONS = ("epsilon", "v_prediction")
TIMES = ("logit_normal", "uniform")


class Objective:
    """Base of the objectives.

    A time step is a number as the network takes it; the larger, the more noise.
    """

    steps: int
    """T, the number of time steps."""

    def at(self, places: Tensor) -> Tensor:
        """Time steps at places in [0, 1): equal parts of [0, 1) are visited equally often in training."""
        raise NotImplementedError

    def drawn(self, n: int, rng: torch.Generator, *, antithetic: bool = False) -> Tensor:
        """Time steps (n,) as in training; ``antithetic`` pairs each with the one equally far from the other end."""
        raise NotImplementedError

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Images mixed with noise up to their time steps (N,)."""
        raise NotImplementedError

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should predict; the loss is the mean squared distance to it."""
        raise NotImplementedError


class Denoising(Objective):
    r"""The objective of diffusion models, with the noise or the velocity as the target.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon , \qquad
              \text{target } \epsilon \text{ or } \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\, x_0 ,

    with t uniform in 0, …, T - 1. Only the betas of the given scheduler count: those made for sampling, such as
    Euler's, mix noise on another scale.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020; Salimans and Ho, Progressive
    distillation for fast sampling of diffusion models, ICLR 2022 (velocity).
    """

    def __init__(self, schedule: Any) -> None:
        from diffusers import DDPMScheduler

        with quiet():
            self.schedule = DDPMScheduler.from_config(schedule.config)
        self.steps = self.schedule.config.num_train_timesteps
        self.predicts = one_of(self.schedule.config.prediction_type, PREDICTIONS, "prediction of the network")

    def at(self, places: Tensor) -> Tensor:
        """See `Objective.at`."""
        return (places * self.steps).long().clamp_(max=self.steps - 1)

    def drawn(self, n: int, rng: torch.Generator, *, antithetic: bool = False) -> Tensor:
        """See `Objective.drawn`."""
        if not antithetic:
            return torch.randint(0, self.steps, (n,), generator=rng)
        half = torch.randint(0, self.steps, ((n + 1) // 2,), generator=rng)
        return torch.cat([half, self.steps - 1 - half])[:n]

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Objective.noisy`."""
        return self.schedule.add_noise(clean, noise, times)

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Objective.target`."""
        if self.predicts == "epsilon":
            return noise
        return self.schedule.get_velocity(clean, noise, times)


class FlowMatching(Objective):
    r"""The objective of rectified flows.

    .. math:: x_\sigma = (1 - \sigma)\, x_0 + \sigma\, \epsilon , \qquad \text{target } \epsilon - x_0 .

    The network takes :math:`T\sigma`. A place u in [0, 1) is drawn, and the scheduler's grid of T values of
    :math:`\sigma` says which it is, with its shift towards more noise where it has one.

    Parameters
    ----------
    schedule : FlowMatchEulerDiscreteScheduler
        Its settings are used, its state is not.
    times : str
        How u is distributed: "logit_normal", as Stable Diffusion 3 was trained, or "uniform".

    References
    ----------
    Lipman et al., Flow matching for generative modeling, ICLR 2023; Liu et al., Flow straight and fast, ICLR
    2023; Esser et al., Scaling rectified flow transformers for high-resolution image synthesis, ICML 2024
    (logit-normal times, shift).
    """

    def __init__(self, schedule: Any, times: str = "logit_normal") -> None:
        self.density = one_of(times, TIMES, "distribution of times")
        self.grid: Tensor = type(schedule).from_config(schedule.config).timesteps  # (T,), falling
        self.steps = len(self.grid)

    def at(self, places: Tensor) -> Tensor:
        """See `Objective.at`."""
        if self.density == "logit_normal":
            places = torch.special.expit(math.sqrt(2) * torch.erfinv(2 * places - 1))
        return self.grid[(places * self.steps).long().clamp_(max=self.steps - 1)]

    def drawn(self, n: int, rng: torch.Generator, *, antithetic: bool = False) -> Tensor:
        """See `Objective.drawn`."""
        if not antithetic:
            return self.at(torch.rand(n, generator=rng))
        half = torch.rand((n + 1) // 2, generator=rng)
        return self.at(torch.cat([half, 1 - half])[:n])

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Objective.noisy`."""
        sigma = (times / self.steps).to(clean).view(-1, *[1] * (clean.ndim - 1))
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Objective.target`."""
        return noise - clean


def is_flow(schedule: Any) -> bool:
    """Whether a scheduler of diffusers is one of flow matching."""
    return type(schedule).__name__.startswith("FlowMatch")


def check_scheduler(schedule: Any) -> None:
    """Refuse anything but a scheduler of diffusers that says how its network was trained.

    Raises
    ------
    UserError
        See `objective_of`.
    """
    if isinstance(schedule, type) or not hasattr(schedule, "config"):
        raise UserError(
            f"the scheduler is a {type(schedule).__name__}: give one of diffusers, such as DDPMScheduler()"
        )
    objective_of(schedule)


@lru_cache(maxsize=16)
def objective_of(schedule: Any, times: str = "logit_normal") -> Objective:
    """The objective that networks with a scheduler of diffusers were trained with.

    Parameters
    ----------
    schedule : scheduler of diffusers
        As it comes with the network.
    times : str
        As in `FlowMatching`; without meaning for other schedulers.

    Raises
    ------
    UserError
        If the scheduler has neither betas nor flow matching's sigmas, or the network predicts neither noise
        nor velocity.
    """
    if is_flow(schedule):
        return FlowMatching(schedule, times)
    if "beta_schedule" not in schedule.config:
        raise UserError(
            f"a {type(schedule).__name__} says nothing of how the network was trained: give one with betas, "
            "such as DDIMScheduler, or FlowMatchEulerDiscreteScheduler"
        )
    return Denoising(schedule)
