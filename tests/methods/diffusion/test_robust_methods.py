"""EraseDiff, RECE and AdvUnlearn, each against the equation that defines it."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pipeline_families import family_task
from problems import same
from text_problems import FIVE, SEVEN, THREE, images, pipeline, text_task

from salun_core.errors import UserError
from salun_core.methods import METHODS
from salun_core.methods.diffusion.advunlearn import strongest
from salun_core.methods.diffusion.erasediff import look_ahead, multiplier
from salun_core.methods.diffusion.network_parts import PARTS
from salun_core.methods.diffusion.rece import remaining
from salun_core.methods.diffusion.uce import edited, edited_tokens, kept_tokens
from salun_core.methods.engine import trainable_copy
from salun_core.models.diffusion.conditions import vectors
from salun_core.models.text_to_image.pipelines import with_network
from salun_core.rng import generator
from salun_core.saliency import random_mask
from salun_core.tasks.text_to_image import text_to_image_task

pytestmark = pytest.mark.long


def one_batch(task):
    """The same task with all images in one batch."""
    return replace(task, parts={role: batches.resized(1000) for role, batches in task.parts.items()})


def half_mask(task):
    weights = dict(task.model.named_parameters())
    return random_mask(weights, keep=0.5, rng=torch.Generator().manual_seed(1))


def plain_descent(task):
    """The task with plain gradient descent, so that a step shows its gradient."""

    class Plain(type(task)):
        def optimizer(self, model, lr):
            return torch.optim.SGD(model.parameters(), lr=lr)

    return Plain(**vars(task))


def first_gradients(task, seed):
    """Gradients of the two losses in the first step of EraseDiff, flat, with the losses."""
    rng = generator(seed, "erasediff")
    model = trainable_copy(task.model).train()
    forget, retain = next(task.forget.shuffled(rng)), next(task.retain.shuffled(rng))
    losses = task.loss(model, retain, rng), task.relabel_loss(model, forget, rng)
    flat = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()
        for loss in losses
    ]
    return *flat, *(loss.item() for loss in losses)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rule", ["gradient", "cosine", "fixed"])
def test_erasediff_steps_along_the_sum_of_both_gradients(rule, masked):
    # Two steps of relabelling first: at the original the forgetting gradient has a special direction.
    start = METHODS["rl"](text_task(), steps=2, lr=1e-2, order="joint").model
    task = plain_descent(replace(one_batch(text_task()), model=start))
    mask = half_mask(task) if masked else None
    eta, lr = 0.7, 1e-2
    found = METHODS["erasediff"](task, steps=1, lr=lr, rule=rule, eta=eta, mask=mask, seed=4)
    r, q, keeping, forgetting = first_gradients(task, 4)
    if masked:
        flat = torch.cat([mask[name].flatten() for name, _ in task.model.named_parameters()])
        r, q = r * flat, q * flat
    weight = {
        "gradient": max(0.0, eta - float(r @ q / (q @ q))),
        "cosine": max(0.0, eta - float(r @ q / (r.norm() * q.norm()))),
        "fixed": eta,
    }[rule]
    assert found.losses[0] == pytest.approx(keeping + weight * forgetting, rel=1e-4)
    moved = torch.cat(
        [
            (a - b).flatten().double()
            for a, b in zip(found.model.parameters(), start.parameters(), strict=True)
        ]
    )
    expected = -lr * (r + weight * q)
    assert (moved - expected).norm() < 2e-3 * expected.norm()
    assert moved.count_nonzero() > 0


def test_the_step_of_erasediff_lowers_the_forgetting_loss_by_its_share():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        r, q = torch.randn(5, generator=rng), torch.randn(5, generator=rng)
        rr, qq, rq = float(r @ r), float(q @ q), float(r @ q)
        weight = multiplier("gradient", 0.3, 0.0, rr, qq, rq)
        reached = float(q @ (r + weight * q))
        # Nothing is added where the gradient of the rest does it alone; else exactly what is asked for.
        assert (weight == 0 and reached >= 0.3 * qq) or reached == pytest.approx(0.3 * qq, rel=1e-4)
        by_value = multiplier("value", 0.3, 2.0, rr, qq, rq)
        reached = float(q @ (r + by_value * q))
        assert (by_value == 0 and reached >= 0.6) or reached == pytest.approx(0.6, rel=1e-4)
    assert multiplier("gradient", 0.3, 0.0, 1.0, 0.0, 0.0) == 0


def test_looking_ahead_is_descent_on_the_forgetting_loss_and_changes_nothing():
    task = text_task()
    model = METHODS["rl"](task, steps=2, lr=1e-2, order="joint").model
    before, batch = copy.deepcopy(model), next(iter(task.forget))
    rng = generator(0)
    state = rng.get_state()
    found = look_ahead(task, model, batch, rng, mask=None, lr=0.05, steps=2)
    assert torch.equal(rng.get_state(), state) and same(model, before)
    twin, values = copy.deepcopy(model), []
    for step in range(3):
        rng.set_state(state)
        value = task.relabel_loss(twin, batch, rng)
        values.append(value.item())
        if step < 2:
            slopes = torch.autograd.grad(value, list(twin.parameters()))
            with torch.no_grad():
                for weight, slope in zip(twin.parameters(), slopes, strict=True):
                    weight -= 0.05 * slope
    assert found == pytest.approx(values[0] - values[2], rel=1e-3)
    assert found > 0
    nothing = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in model.named_parameters()}
    assert look_ahead(task, model, batch, rng, mask=nothing, lr=0.05, steps=2) == 0


def test_erasediff_by_value_asks_for_less_the_nearer_it_is():
    task = one_batch(text_task())
    seen = []
    for eta in (1.0, 1000.0):
        losses = METHODS["erasediff"](task, steps=1, lr=1e-3, rule="value", eta=eta, seed=2).losses
        seen.append(losses[0])
    assert seen[1] > seen[0]


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("method", ["erasediff", "advunlearn"])
def test_the_methods_run_on_newer_pipelines(method, name):
    task = family_task(name)
    more = {"warmup": 0, "attack_steps": 2} if method == "advunlearn" else {}
    mask = half_mask(task)
    changed = dict(METHODS[method](task, steps=2, lr=1e-3, mask=mask, **more).model.named_parameters())
    weights = dict(task.model.named_parameters())
    assert all(torch.equal(changed[key][~mask[key]], w[~mask[key]]) for key, w in weights.items())
    assert any(not torch.equal(changed[key], w) for key, w in weights.items())


@pytest.mark.parametrize("method", ["erasediff", "advunlearn"])
def test_checkpointed_gradients_change_nothing(method):
    pipe = with_network(pipeline(), copy.deepcopy(pipeline().unet))
    saving = text_to_image_task(
        pipe,
        forget=(images(10), [SEVEN] * 10),
        retain=(images(16, 1), [THREE, FIVE] * 8),
        replacement=THREE,
        batch_size=5,
        gradient_checkpointing=True,
    )
    more = {"warmup": 0, "attack_steps": 2} if method == "advunlearn" else {}
    model, plain = (METHODS[method](task, steps=2, lr=1e-3, **more).model for task in (saving, text_task()))
    assert model.is_gradient_checkpointing
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_erasediff_refuses_settings_that_make_no_sense():
    for wrong, message in (
        ({"rule": "both"}, "rule must be 'gradient'"),
        ({"eta": 0.0}, "eta must be positive"),
        ({"inner": 0}, "inner must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            METHODS["erasediff"](text_task(), **wrong)


def test_the_remaining_tokens_are_where_the_gradient_vanishes():
    rng = torch.Generator().manual_seed(0)
    new, old = ([torch.randn((3, 5), generator=rng).double() for _ in range(4)] for _ in range(2))
    concepts = torch.randn((2, 5), generator=rng).double()
    found = remaining(new, old, concepts, bound=0.2).requires_grad_(True)
    loss = 0.2 * found.square().sum()
    for v, w in zip(new, old, strict=True):
        loss = loss + (found @ v.T - concepts @ w.T).square().sum()
    (slope,) = torch.autograd.grad(loss, found)
    assert slope.abs().max() < 1e-10
    # Where nothing was edited, the strongest embedding is the concept itself.
    torch.testing.assert_close(remaining(old, old, concepts, bound=1e-12), concepts)


def test_rece_is_uce_and_then_uce_against_what_remains():
    task = text_task()
    mask = half_mask(task)
    found = METHODS["rece"](task, epochs=2, bound=0.05, erase=1.0, preserve=0.2, ridge=0.3, mask=mask).model
    settings = {"erase": 1.0, "preserve": 0.2, "ridge": 0.3}
    model = METHODS["uce"](task, mask=mask, **settings).model
    original = dict(task.model.named_parameters())
    concepts, anchors = edited_tokens(task)
    with torch.no_grad():
        for _ in range(2):
            layers = {n: w for n, w in model.named_parameters() if PARTS["kv"](n)}
            strongest_ = remaining(list(layers.values()), [original[n] for n in layers], concepts, bound=0.05)
            for name, weight in layers.items():
                solved = edited(weight, strongest_, anchors, kept_tokens(task), **settings).float()
                weight.copy_(torch.where(mask[name], solved, original[name]))
    assert same(found, model)


def test_rece_leaves_less_to_find_than_uce():
    task = text_task()
    concepts, _ = edited_tokens(task)
    before = dict(task.model.named_parameters())

    def left(model):
        pairs = [(w, before[n]) for n, w in model.named_parameters() if PARTS["kv"](n)]
        tokens = remaining([v for v, _ in pairs], [w for _, w in pairs], concepts, bound=0.1).float()
        return sum((tokens @ v.T - concepts @ w.T).square().sum().item() for v, w in pairs)

    settings = {"erase": 1.0, "preserve": 0.0, "ridge": 0.01}
    edited_once = METHODS["uce"](task, **settings).model
    assert left(METHODS["rece"](task, epochs=3, **settings).model) > 1.1 * left(edited_once)


def test_rece_refuses_settings_that_make_no_sense():
    with pytest.raises(UserError, match="epochs must be at least 1"):
        METHODS["rece"](text_task(), epochs=0)
    with pytest.raises(UserError, match="bound must be positive"):
        METHODS["rece"](text_task(), bound=0.0)


def esd_goal(task, noisy, times, n, eta):
    none, it = (task.prompts.embeddings[i].expand(n, -1, -1) for i in (0, 1))
    of_none, of_it = (task.model(noisy, times, encoder_hidden_states=e).sample for e in (none, it))
    return of_none - eta * (of_it - of_none)


@pytest.mark.parametrize("warmup", [0, 9])
def test_advunlearn_is_esd_for_the_worst_prompt_and_the_original_for_the_others(warmup):
    task = one_batch(text_task())
    settings = {"lr": 1e-3, "eta": 2.0, "gamma": 0.7, "warmup": warmup, "seed": 6}
    attack = {"attack_steps": 3, "attack_lr": 0.1, "attack_radius": 0.4}
    after_one = METHODS["advunlearn"](task, steps=1, **settings, **attack).model
    found = METHODS["advunlearn"](task, steps=2, **settings, **attack)
    assert found.samples == 2 * 26
    rng = generator(6, "advunlearn")
    for step, model in enumerate((task.model, after_one)):
        (latents, given), (kept, prompts) = next(task.forget.shuffled(rng)), next(task.retain.shuffled(rng))
        asked = task.prompts.embeddings[given]
        if not warmup:
            asked = strongest(task, model, latents, given, rng, steps=3, lr=0.1, radius=0.4)
        with torch.no_grad():
            noisy, times, _ = task.noised(latents, rng)
            goal = esd_goal(task, noisy, times, len(given), 2.0)
            erased = F.mse_loss(model(noisy, times, encoder_hidden_states=asked).sample, goal)
            noisy, times, _ = task.noised(kept, rng)
            embedded = task.prompts.embeddings[prompts]
            now, then = (m(noisy, times, encoder_hidden_states=embedded).sample for m in (model, task.model))
            others = F.mse_loss(now, then)
        assert found.losses[step] == pytest.approx((erased + 0.7 * others).item(), rel=1e-3)
        assert (others > 1e-4) == (step == 1)  # what has not moved yet is kept exactly
    assert METHODS["advunlearn"](task, steps=1, **{**settings, "gamma": 0.0}, **attack).samples == 10


@pytest.mark.parametrize("search", ["adam", "sign"])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_attack_finds_prompts_nearer_to_the_concept_within_its_radius(name, search):
    task = text_task() if name == "sd" else family_task(name)
    edited_model = METHODS["esd"](task, steps=15, lr=1e-2, part="kv").model
    edited_model.zero_grad()
    given = torch.tensor([1] * 10)
    latents = task.forget.images
    before = [w.clone() for w in edited_model.parameters()]
    settings = {"steps": 30, "lr": 0.02, "radius": 0.3, "search": search}
    asked = strongest(task, edited_model, latents, given, generator(0), **settings)
    start = task.condition(given)
    noisy, times, _ = task.noised(latents, torch.Generator().manual_seed(9))
    with torch.no_grad():
        goal = task.predict(task.model, noisy, times, given)
        was, now = (
            F.mse_loss(task.predict_given(edited_model, noisy, times, e), goal).item() for e in (start, asked)
        )
    assert now < 0.97 * was
    for moved, origin in zip(vectors(asked), vectors(start), strict=True):
        shift = (moved - origin).norm(dim=-1) / origin.norm(dim=-1)
        assert 0 < shift.max() <= 0.3 + 1e-5
        assert torch.equal(moved, moved[:1].expand_as(moved))  # one prompt, one change
    assert all(torch.equal(a, b) for a, b in zip(before, edited_model.parameters(), strict=True))
    assert all(w.grad is None for w in edited_model.parameters())


def test_advunlearn_refuses_settings_that_make_no_sense():
    for wrong, message in (
        ({"attack": "pgd"}, "attack must be 'adam' or 'sign'"),
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"attack_steps": 0}, "attack_steps must be at least 1"),
        ({"attack_lr": 0.0}, "attack_lr must be positive"),
        ({"attack_radius": 0.0}, "attack_radius must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            METHODS["advunlearn"](text_task(), **wrong)
