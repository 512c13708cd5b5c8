import copy

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from problems import same
from text_problems import SEVEN, THREE, images, pipeline
from torch import nn

from salun_core.errors import Diverged, UserError
from salun_core.metrics.generation.erasure import (
    erasure_summary,
    nearest_classes,
    neighbour_damage,
    noised,
    recovery,
    relearning_curve,
    search_embedding,
)
from salun_core.metrics.generation.recognition import Recognition
from salun_core.models.diffusion.unet import predict_noise
from salun_core.models.text_to_image.pipelines import encode_images, encode_prompts

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def latents():
    return encode_images(pipeline(), images(6)).chunk(2, dim=1)[0]


@pytest.fixture(scope="module")
def concept():
    return encode_prompts(pipeline(), [SEVEN, THREE]).embeddings[1]


class Renamed(nn.Module):
    """A network that knows everything, but under other names: embeddings moved by a known vector."""

    def __init__(self, unet, move):
        super().__init__()
        self.unet = unet
        self.register_buffer("move", move)

    def forward(self, noisy, times, encoder_hidden_states, return_dict=False):
        return self.unet(
            noisy, times, encoder_hidden_states=encoder_hidden_states - self.move, return_dict=False
        )


def searched(latents, concept, edited=None, **more):
    unet = pipeline().unet
    return search_embedding(
        unet if edited is None else edited, unet, pipeline().scheduler, latents, concept=concept, **more
    )


# --- the search -----------------------------------------------------------------------------------------


def test_the_unedited_network_is_found_out_at_once(latents, concept):
    found = searched(latents, concept, steps=0)
    assert found.curve == [(0, 0.0)]
    assert found.shift == 0
    assert torch.equal(found.embedding, concept)


def test_a_renamed_concept_is_found_within_reach_and_not_beyond(latents, concept):
    # All tokens move by one vector, of a third of their length.
    move = torch.randn(concept.shape[1], generator=torch.Generator().manual_seed(0))
    move = move / move.norm() * concept.norm(dim=1).mean() / 3
    hidden = Renamed(pipeline().unet, move)
    assert searched(latents, concept, hidden, start=concept + move, steps=0).before == pytest.approx(
        0, abs=1e-9
    )
    wide = searched(latents, concept, hidden, steps=40, lr=0.05, radius=1.0)
    assert wide.before > 0 and wide.after < 0.2 * wide.before
    tight = searched(latents, concept, hidden, steps=40, lr=0.05, radius=0.05)
    assert wide.after < tight.after < tight.before


def test_the_bound_holds_for_every_token(latents, concept):
    hidden = Renamed(pipeline().unet, 3 * torch.ones(concept.shape[1]))
    found = searched(latents, concept, hidden, steps=10, lr=0.5, radius=0.1)
    moved = (found.embedding - concept).norm(dim=1)
    assert (moved <= 0.1 * concept.norm(dim=1) * (1 + 1e-5)).all()
    assert 0.05 < found.shift <= 0.1 + 1e-6


def test_the_distance_is_that_of_the_two_predictions(latents, concept):
    edited = copy.deepcopy(pipeline().unet)
    with torch.no_grad():
        for weight in edited.parameters():
            weight.mul_(1.05)
    found = searched(latents, concept, edited, steps=0, batch_size=4)
    from salun_core.rng import generator

    noisy, times, _ = noised(
        pipeline().scheduler, latents, generator(0, "embedding search", "fixed"), spread=True
    )
    asked = concept.expand(len(noisy), -1, -1)
    with torch.no_grad():
        one, other = (predict_noise(m, noisy, times, asked) for m in (edited, pipeline().unet))
    assert found.before == pytest.approx(F.mse_loss(one, other).item(), rel=1e-4)


def test_the_search_leaves_networks_alone_and_repeats(latents, concept):
    edited = Renamed(copy.deepcopy(pipeline().unet), torch.ones(concept.shape[1])).train()
    before = copy.deepcopy(edited)
    first, again = (searched(latents, concept, edited, steps=3, seed=5) for _ in range(2))
    assert torch.equal(first.embedding, again.embedding) and first.curve == again.curve
    assert same(edited, before) and edited.training
    assert all(w.requires_grad and w.grad is None for w in edited.parameters())
    assert first.after <= first.before


def test_time_steps_are_spread_over_the_diffusion(latents):
    _, times, noise = noised(pipeline().scheduler, latents, torch.Generator().manual_seed(0), spread=True)
    assert [int(t * 6 / 1000) for t in times] == list(range(6))
    assert noise.shape == latents.shape


# --- relearning -----------------------------------------------------------------------------------------


def test_the_curve_starts_at_the_given_model(latents, concept):
    model, seen = pipeline().unet, []

    def measure(net):
        seen.append(net)
        return float(next(net.parameters()).detach().double().sum())

    before = copy.deepcopy(model)
    curve = relearning_curve(
        model, pipeline().scheduler, latents, concept, measure, steps=5, every=2, lr=1e-3
    )
    assert [step for step, _ in curve] == [0, 2, 4, 5]
    assert seen[0] is model
    assert curve[0][1] == float(next(model.parameters()).detach().double().sum())
    assert len({value for _, value in curve}) == 4
    assert same(model, before) and not model.training


def test_relearning_learns_the_images_again(latents, concept):
    schedule = pipeline().scheduler
    noisy, times, noise = noised(schedule, latents, torch.Generator().manual_seed(9), spread=True)
    asked = concept.expand(len(latents), -1, -1)

    def error(net):
        with torch.no_grad():
            return F.mse_loss(predict_noise(net, noisy, times, asked), noise).item()

    curve = relearning_curve(pipeline().unet, schedule, latents, asked, error, steps=40, every=40, lr=3e-3)
    assert curve[-1][1] < 0.8 * curve[0][1]


def test_no_steps_measure_once(latents, concept):
    curve = relearning_curve(pipeline().unet, pipeline().scheduler, latents, concept, lambda _: 0.25, steps=0)
    assert curve == [(0, 0.25)]


def test_a_relearning_that_runs_off_is_told(latents, concept):
    broken = latents.clone()
    broken[0] = float("nan")
    with pytest.raises(Diverged, match="at step"):
        relearning_curve(
            pipeline().unet, pipeline().scheduler, broken, concept, lambda _: 0.0, steps=5, batch_size=6
        )


def test_recovery_is_the_first_step_that_reaches_the_share():
    curve = [(0, 0.0), (10, 0.4), (20, 0.6), (30, 0.5)]
    assert recovery(curve) == 20
    assert recovery(curve, 0.4) == 10
    assert recovery(curve, 0.7) is None


# --- neighbours -----------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Logits that depend on nothing."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_neighbours_are_ordered_by_probability():
    classifier = Fixed([0.1, 5.0, 0.3, -1.0])
    assert nearest_classes(classifier, images(3), 1) == [2, 0, 3]
    assert nearest_classes(classifier, images(3), 0) == [1, 2, 3]


def test_damage_is_the_loss_of_recognition_by_hand():
    before = Recognition(torch.tensor([[8, 2, 0], [0, 10, 0], [0, 0, 10]]))
    after = Recognition(torch.tensor([[0, 10, 0], [5, 5, 0], [0, 1, 9]]))
    table = neighbour_damage(before, after, [2, 1], "abc")
    assert table.to_numpy().tolist() == [
        [1, "c", 1.0, 0.9, pytest.approx(0.1), 10],
        [2, "b", 1.0, 0.5, 0.5, 10],
    ]


# --- the summary ----------------------------------------------------------------------------------------


def probes(**models):
    rows = [
        (name, "none", probe, shown, utility)
        for name, (values, utility) in models.items()
        for probe, shown in values.items()
    ]
    return pd.DataFrame(rows, columns=["method", "mask", "probe", "shown", "utility"])


def test_a_model_is_as_good_as_its_worst_case():
    table = erasure_summary(
        probes(
            original=({"direct": 1.0, "indirect": 0.9}, 1.0),
            esd=({"direct": 0.0, "indirect": 0.75}, 0.9),
            uce=({"direct": 0.25, "indirect": 0.0}, 0.9),
            ca=({"direct": 0.5, "indirect": 0.0}, 0.95),
        )
    ).set_index("method")
    assert table["worst"].tolist() == [1.0, 0.75, 0.25, 0.5]
    assert table["weakest"].tolist() == ["direct", "indirect", "direct", "direct"]
    assert table["erased"].tolist() == [0.0, 0.25, 0.75, 0.5]
    assert table["dominated"].to_dict() == {"original": False, "esd": True, "uce": False, "ca": False}


def test_a_missing_probe_is_refused():
    table = probes(esd=({"direct": 0.0}, 1.0), uce=({"direct": 0.0, "relearned": 0.1}, 1.0))
    with pytest.raises(UserError, match="esd was not probed by relearned"):
        erasure_summary(table)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, e: searched(x[:0], e), "at least one image"),
        (lambda x, e: searched(x, e, start=e[:2]), "start has shape"),
        (lambda x, e: searched(x, e, radius=0.0), "budget"),
        (
            lambda x, e: relearning_curve(pipeline().unet, pipeline().scheduler, x[:0], e, float),
            "at least one image",
        ),
        (
            lambda x, e: relearning_curve(pipeline().unet, pipeline().scheduler, x, e, float, every=0),
            "positive settings",
        ),
        (lambda x, e: nearest_classes(Fixed([0.0, 1.0]), images(0), 0), "at least one real image"),
    ],
)
def test_what_cannot_be_is_refused(latents, concept, call, message):
    with pytest.raises(UserError, match=message):
        call(latents, concept)
