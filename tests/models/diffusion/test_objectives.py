import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from salun_core.errors import UserError
from salun_core.models.diffusion.objectives import FlowMatching, objective_of

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def pair(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((3, 4, 2, 2), generator=rng), torch.randn((3, 4, 2, 2), generator=rng)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_noise_is_mixed_as_in_training_whatever_the_sampler(kind):
    clean, noise = pair()
    times = torch.tensor([0, 500, 999])
    kept = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[times].view(-1, 1, 1, 1)
    objective = objective_of(kind(**BETAS))
    expected = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    torch.testing.assert_close(objective.noisy(clean, noise, times), expected)
    assert objective.target(clean, noise, times) is noise
    velocity = objective_of(kind(**BETAS, prediction_type="v_prediction"))
    torch.testing.assert_close(
        velocity.target(clean, noise, times), kept.sqrt() * noise - (1 - kept).sqrt() * clean
    )


def test_time_steps_of_a_diffusion_are_uniform():
    objective = objective_of(DDPMScheduler(num_train_timesteps=10))
    drawn = objective.drawn(5000, torch.Generator().manual_seed(0))
    assert (drawn.bincount(minlength=10) / 500 - 1).abs().max() < 0.2
    paired = objective.drawn(7, torch.Generator().manual_seed(0), antithetic=True)
    assert (paired[:3] + paired[4:] == 9).all()
    assert objective.at(torch.tensor([0.0, 0.05, 0.1, 0.999, 1.0])).tolist() == [0, 0, 1, 9, 9]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_runs_straight_from_image_to_noise(shift):
    schedule = FlowMatchEulerDiscreteScheduler(shift=shift)
    objective = objective_of(schedule)
    clean, noise = pair()
    times = objective.drawn(3, torch.Generator().manual_seed(1))
    found = objective.noisy(clean, noise, times)
    torch.testing.assert_close(found, schedule.scale_noise(clean, times, noise))
    torch.testing.assert_close(objective.target(clean, noise, times), noise - clean)
    sigma = (times / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(found - sigma * objective.target(clean, noise, times), clean)


def test_time_steps_of_a_flow_are_logit_normal_and_shifted():
    from diffusers.training_utils import compute_density_for_timestep_sampling as density

    schedule = FlowMatchEulerDiscreteScheduler(shift=3.0)
    grid = schedule.timesteps
    drawn = objective_of(schedule).drawn(20_000, torch.Generator().manual_seed(0))
    u = density("logit_normal", 20_000, 0.0, 1.0, generator=torch.Generator().manual_seed(1))
    reference = grid[(u * 1000).long()]
    marks = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close(drawn.quantile(marks), reference.quantile(marks), atol=8, rtol=0)
    # The middle of a logit-normal is 1/2, which a shift of 3 moves to 3/4.
    assert drawn.median().item() == pytest.approx(750, abs=8)
    uniform = objective_of(FlowMatchEulerDiscreteScheduler(), "uniform").drawn(
        20_000, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(uniform.quantile(marks), 1000 * marks, atol=12, rtol=0)


def test_equal_parts_are_visited_equally_often():
    objective = FlowMatching(FlowMatchEulerDiscreteScheduler(), "logit_normal")
    edges = objective.at(torch.tensor([0.25, 0.5, 0.75]))
    drawn = objective.drawn(20_000, torch.Generator().manual_seed(0))
    shares = torch.bucketize(-drawn, -edges).bincount() / 20_000
    assert (shares - 0.25).abs().max() < 0.02
    assert torch.isfinite(objective.at(torch.tensor([0.0, 1.0]))).all()
    paired = objective.drawn(6, torch.Generator().manual_seed(0), antithetic=True)
    torch.testing.assert_close(paired[:3] + paired[3:], torch.full((3,), 1001.0), atol=1.01, rtol=0)


def test_sampling_leaves_the_objective_as_it_was():
    schedule = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule.set_timesteps(4)
    assert len(objective_of(schedule).grid) == 1000


def test_a_scheduler_that_says_nothing_of_training_is_refused():
    with pytest.raises(UserError, match="EDMEulerScheduler"):
        objective_of(EDMEulerScheduler())
    with pytest.raises(UserError, match="prediction"):
        objective_of(DDPMScheduler(prediction_type="sample"))
    with pytest.raises(UserError, match="distribution of times"):
        FlowMatching(FlowMatchEulerDiscreteScheduler(), "normal")
