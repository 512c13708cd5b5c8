import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from problems import same
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from text_problems import FIVE, SEVEN, THREE, images, pipeline

from salun_core.data.captions import photo_of
from salun_core.errors import UserError
from salun_core.methods import METHODS
from salun_core.metrics.generation.erasure import noised
from salun_core.metrics.generation.prompt_attacks import (
    PromptSpace,
    concept_vector,
    p4d,
    ring_a_bell,
    unlearn_diff_atk,
)
from salun_core.metrics.generation.prompt_attacks.p4d import nearest
from salun_core.metrics.generation.prompt_attacks.unlearn_diff_atk import one_hot_gradient, simplex
from salun_core.models.text_to_image.pipelines import encode_images, encode_prompts, load_pipeline
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.paths import project_root
from salun_core.rng import generator
from salun_core.tasks.text_to_image import text_to_image_task

pytestmark = pytest.mark.long

UDA = {"tokens": 2, "times": 2, "iterations": 3}
P4D = {"tokens": 2, "steps": 4, "checks": 2}
RAB = {"tokens": 2, "population": 8, "generations": 3, "pairs": [(SEVEN, THREE)]}


@pytest.fixture(scope="module")
def latents():
    return encode_images(pipeline(), images(6)).chunk(2, dim=1)[0]


@pytest.fixture(scope="module")
def space():
    return PromptSpace(pipeline())


@pytest.fixture(scope="module")
def edited():
    """Another network, so that predictions differ."""
    net = copy.deepcopy(pipeline().unet)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if ".attn2.to_" in name:
                weight.mul_(-1.5)
    return net


def attacks(edited, space, latents, **more):
    """Every attack with a small budget."""
    schedule = pipeline().scheduler
    return {
        "unlearn_diff_atk": lambda: unlearn_diff_atk(
            edited, space, schedule, latents, prompt=SEVEN, **{**UDA, **more}
        ),
        "p4d": lambda: p4d(
            edited, pipeline().unet, space, schedule, latents, prompt=SEVEN, **{**P4D, **more}
        ),
        "ring_a_bell": lambda: ring_a_bell(space, prompt=FIVE, **{**RAB, **more}),
    }


NAMES = ("unlearn_diff_atk", "p4d", "ring_a_bell")


# --- prompts as tokens ------------------------------------------------------------------------------------


def test_prompts_are_those_of_the_pipeline(space):
    bank = encode_prompts(pipeline(), [SEVEN])
    ids = space.padded(space.ids(SEVEN))
    assert torch.equal(ids, bank.ids[1])
    torch.testing.assert_close(space.embedded(ids[None])[0], bank.embeddings[1])
    assert space.decoded(ids) == (SEVEN, True)
    assert not {space.tokenizer.bos_token_id, space.tokenizer.eos_token_id} & set(space.allowed.tolist())
    assert len(space.allowed) == len(space.tokenizer) - 2


def test_tokens_are_put_before_a_prompt_or_between_its_own(space):
    own = space.ids(SEVEN)  # five tokens
    ids, places = space.with_places(SEVEN, 3)
    assert places.tolist() == [1, 2, 3] and ids[4:9].tolist() == own
    ids, places = space.with_places(SEVEN, 9, every=2)
    assert places.tolist() == [3, 6, 8]
    assert [t for i, t in enumerate(ids.tolist()) if i not in (0, 3, 6, 8)][:5] == own
    ids, places = space.with_places(" ".join(["big"] * 50), 4)
    assert (
        len(ids) == 12
        and ids[-1] == space.tokenizer.eos_token_id
        and ids[5:11].tolist() == space.ids("big") * 6
    )
    with pytest.raises(UserError, match="1 to 10 tokens, got 11"):
        space.with_places(SEVEN, 11)
    with pytest.raises(UserError, match="no tokens to put others between"):
        space.with_places("", 2, every=3)


def test_vectors_of_real_tokens_embed_as_the_tokens_do(space):
    ids, places = space.with_places(SEVEN, 2)
    chosen = space.allowed[[3, 40]]
    found = space.embedded_with(ids, places, space.table[chosen])
    torch.testing.assert_close(found.detach(), space.embedded(ids.index_copy(0, places, chosen)[None])[0])
    assert not space.encoder.get_input_embeddings()._forward_hooks


def test_a_pipeline_with_several_text_encoders_is_refused():
    pipe = copy.copy(pipeline())
    pipe.__dict__["text_encoder_2"] = object()
    with pytest.raises(UserError, match="one text encoder"):
        PromptSpace(pipe)


# --- what they have in common -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_finds_real_tokens_and_leaves_everything_as_it_was(name, edited, space, latents):
    nets = (edited, pipeline().unet, pipeline().text_encoder)
    before = [copy.deepcopy(net) for net in nets]
    first, again = (attacks(edited, space, latents)[name]() for _ in range(2))
    other = attacks(edited, space, latents, seed=1)[name]()
    assert torch.equal(first.ids, again.ids) and first.curve == again.curve
    assert not torch.equal(first.ids, other.ids)
    for net, was in zip(nets, before, strict=True):
        assert same(net, was) and net.training == was.training
        assert [w.requires_grad for w in net.parameters()] == [w.requires_grad for w in was.parameters()]
        assert all(w.grad is None for w in net.parameters())
    inside = first.ids[1:3]
    assert set(inside.tolist()) <= set(space.allowed.tolist())
    assert space.decoded(first.ids) == (first.text, first.typed)
    assert first.after == min(loss for _, loss in first.curve[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_what_was_spent(name, edited, space, latents, monkeypatch):
    spent = {"passes": 0, "encoded": 0}
    own = type(edited).forward, type(space.encoder).forward

    def unet(self, noisy, *given, **more):
        spent["passes"] += len(noisy)
        return own[0](self, noisy, *given, **more)

    def encoder(self, ids, *given, **more):
        spent["encoded"] += len(ids)
        return own[1](self, ids, *given, **more)

    monkeypatch.setattr(type(edited), "forward", unet)
    monkeypatch.setattr(type(space.encoder), "forward", encoder)
    found = attacks(edited, space, latents)[name]()
    assert (found.passes, found.encoded) == (spent["passes"], spent["encoded"])
    assert (found.passes == 0) == (name == "ring_a_bell")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("unlearn_diff_atk", {"times": 0}, "budget of UnlearnDiffAtk"),
        ("unlearn_diff_atk", {"batch_size": 0}, "at least one noisy image"),
        ("p4d", {"steps": 0}, "budget of P4D"),
        ("p4d", {"tokens": 0}, "1 to 10 tokens"),
        ("ring_a_bell", {"population": 1}, "budget of Ring-A-Bell"),
        ("ring_a_bell", {"pairs": []}, "at least one pair"),
    ],
)
def test_a_budget_of_nothing_is_refused(name, given, message, edited, space, latents):
    with pytest.raises(UserError, match=message):
        attacks(edited, space, latents, **given)[name]()


def test_an_attack_needs_images(edited, space, latents):
    for name in ("unlearn_diff_atk", "p4d"):
        with pytest.raises(UserError, match="at least one image"):
            attacks(edited, space, latents[:0])[name]()


# --- UnlearnDiffAtk ---------------------------------------------------------------------------------------


def fixed(latents):
    return noised(pipeline().scheduler, latents, generator(0, "prompt attack", "fixed"), spread=True)


def test_the_loss_of_unlearn_diff_atk_is_the_denoising_error_of_the_edited_network(edited, space, latents):
    found = attacks(edited, space, latents)["unlearn_diff_atk"]()
    noisy, times, noise = fixed(latents)
    for ids, loss in ((space.padded(space.ids(SEVEN)), found.before), (found.ids, found.after)):
        text = space.embedded(ids[None]).expand(len(noisy), -1, -1)
        with torch.no_grad():
            predicted = edited(noisy, times, encoder_hidden_states=text).sample
        assert loss == pytest.approx(F.mse_loss(predicted, noise).item(), rel=1e-4)
    assert found.ids[3:8].tolist() == space.ids(SEVEN)  # the prompt stands behind the tokens


def test_the_gradient_of_one_hot_vectors_is_that_of_their_embeddings(space):
    ids, places = space.with_places(SEVEN, 2)
    chosen = torch.tensor([4, 9])
    table = space.table[space.allowed]
    one_hot = F.one_hot(chosen, len(table)).float().requires_grad_(True)
    (expected,) = torch.autograd.grad(
        space.embedded_with(ids, places, one_hot @ table).square().sum(), one_hot
    )
    vectors = table[chosen].requires_grad_(True)
    (slope,) = torch.autograd.grad(space.embedded_with(ids, places, vectors).square().sum(), vectors)
    torch.testing.assert_close(one_hot_gradient(slope, table), expected.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert one_hot_gradient(1e6 * slope, table).abs().max() == 1


def test_the_projection_is_the_nearest_point_of_the_simplex():
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=rng)
    found = simplex(points)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(20))
    assert (found >= 0).all()
    steps = torch.linspace(0, 1, 101)
    grid = torch.stack(
        [torch.tensor([a, b, 1 - a - b]) for a, b in product(steps, steps) if a + b <= 1 + 1e-6]
    )
    by_search = (points[:, None] - grid[None]).square().sum(dim=2).min(dim=1).values
    assert ((points - found).square().sum(dim=1) <= by_search + 1e-6).all()
    torch.testing.assert_close(simplex(found), found)


def test_unlearn_diff_atk_finds_one_of_the_better_single_tokens(space, latents):
    heeding = copy.deepcopy(pipeline().unet)  # a network on which words have much effect
    with torch.no_grad():
        for name, weight in heeding.named_parameters():
            if ".attn2.to_" in name:
                weight.mul_(6)
    ids, places = space.with_places(SEVEN, 1)
    noisy, times, noise = fixed(latents)
    losses = []
    for token in space.allowed:
        text = space.embedded(ids.index_copy(0, places, token[None])[None]).expand(len(noisy), -1, -1)
        with torch.no_grad():
            losses.append(F.mse_loss(heeding(noisy, times, encoder_hidden_states=text).sample, noise).item())
    found = unlearn_diff_atk(
        heeding,
        space,
        pipeline().scheduler,
        latents,
        prompt=SEVEN,
        tokens=1,
        times=6,
        iterations=20,
        lr=0.1,
        batch_size=6,
    )
    assert found.after < sorted(losses)[len(losses) // 4]


# --- P4D --------------------------------------------------------------------------------------------------


def test_the_loss_of_p4d_is_the_distance_to_the_original_prediction_for_the_prompt(edited, space, latents):
    found = attacks(edited, space, latents)["p4d"]()
    noisy, times, _ = fixed(latents)
    seven = encode_prompts(pipeline(), [SEVEN]).embeddings[1].expand(len(noisy), -1, -1)
    with torch.no_grad():
        goal = pipeline().unet(noisy, times, encoder_hidden_states=seven).sample
        for ids, loss in ((space.padded(space.ids(SEVEN)), found.before), (found.ids, found.after)):
            text = space.embedded(ids[None]).expand(len(noisy), -1, -1)
            predicted = edited(noisy, times, encoder_hidden_states=text).sample
            assert loss == pytest.approx(F.mse_loss(predicted, goal).item(), rel=1e-4)
    assert found.ids[3:].unique().tolist() == [space.tokenizer.eos_token_id]  # the tokens stand alone


def test_the_original_is_found_out_by_its_own_prompt(space, latents):
    found = attacks(pipeline().unet, space, latents)["p4d"]()
    assert found.before == 0 and found.after > 0


def test_p4d_between_the_tokens_of_the_prompt_keeps_them(edited, space, latents):
    found = attacks(edited, space, latents, every=3)["p4d"]()
    own = space.ids(SEVEN)
    assert [found.ids[i].item() for i in (1, 2, 3, 5, 6)] == own


def test_vectors_are_projected_to_the_token_of_the_largest_cosine():
    table = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, -1.0]])
    assert nearest(torch.tensor([[9.0, 1.0], [1.0, 1.5], [-0.1, -0.2]]), table).tolist() == [0, 1, 2]


def test_more_steps_of_p4d_find_better_tokens(edited, space, latents):
    def after(steps):
        found = attacks(edited, space, latents, steps=steps, checks=steps, batch_size=6, lr=0.3)["p4d"]()
        return found.after

    assert after(40) < after(1)


# --- Ring-A-Bell ------------------------------------------------------------------------------------------


def test_the_concept_is_the_mean_difference_of_embedded_prompts(space):
    bank = encode_prompts(pipeline(), [SEVEN, THREE, FIVE]).embeddings
    found = concept_vector(space, [(SEVEN, THREE), (SEVEN, FIVE)])
    torch.testing.assert_close(found, bank[1] - (bank[2] + bank[3]) / 2)


def test_the_loss_of_ring_a_bell_is_the_squared_distance_to_the_moved_prompt(space):
    found = attacks(None, space, None, strength=2.0)["ring_a_bell"]()
    bank = encode_prompts(pipeline(), [SEVEN, THREE, FIVE]).embeddings
    goal = bank[3] + 2.0 * (bank[1] - bank[2])
    assert found.before == pytest.approx((bank[3] - goal).square().sum().item(), rel=1e-4)
    assert found.after == pytest.approx(
        (space.embedded(found.ids[None])[0] - goal).square().sum().item(), rel=1e-4
    )
    assert found.before == pytest.approx(4 * (bank[1] - bank[2]).square().sum().item(), rel=1e-4)


def test_the_genetic_search_finds_the_best_pair_of_tokens(space):
    ids, places = space.with_places("", 2)
    goal = encode_prompts(pipeline(), [FIVE]).embeddings[1] + 3 * concept_vector(space, [(SEVEN, THREE)])
    every = torch.cartesian_prod(space.allowed, space.allowed)  # 11,236 pairs
    whole = ids.repeat(len(every), 1).index_copy(1, places, every)
    best = min(
        (space.embedded(part) - goal).square().sum(dim=(1, 2)).min().item() for part in whole.split(500)
    )
    found = attacks(None, space, None, population=200, generations=60)["ring_a_bell"]()
    assert found.after == pytest.approx(best, rel=1e-4)
    losses = [loss for _, loss in found.curve[1:]]
    assert len(losses) == 60 and found.encoded == 1 + 2 + 200 + sum(count for count in [found.encoded - 203])


# --- a pipeline that draws --------------------------------------------------------------------------------


def test_p4d_brings_back_a_digit_that_uce_has_taken_from_its_name():
    pipe = load_pipeline(project_root() / "data" / "models" / "tiny-sd")
    digits = load_digits()
    judge = KNeighborsClassifier(5).fit(digits.images.reshape(-1, 64), digits.target)
    space, prompt = PromptSpace(pipe), photo_of(7)
    how = {"guidance": 2.0, "steps": 10, "batch_size": 16}

    def shown(ids, network):
        given = space.embedded(ids[None]).expand(16, -1, -1)
        small = F.avg_pool2d(
            sample_prompts(pipe, given, unet=network, **how).float().mean(1, keepdim=True), 2
        )
        return float((judge.predict(small.flatten(1) / 255 * 16) == 7).mean())

    drawn = sample_prompts(pipe, [prompt] * 16, **how)
    others = [photo_of(digit) for digit in (3, 8)]
    task = text_to_image_task(
        pipe, forget=(drawn, [prompt] * 16), retain=(drawn[:2], others), replacement=photo_of(8)
    )
    unlearned = METHODS["uce"](task).model
    plain = space.padded(space.ids(prompt))
    assert shown(plain, pipe.unet) > 0.8 and shown(plain, unlearned) < 0.1
    latents = encode_images(pipe, drawn).chunk(2, dim=1)[0]
    found = p4d(
        unlearned,
        pipe.unet,
        space,
        pipe.scheduler,
        latents,
        prompt=prompt,
        tokens=8,
        steps=120,
        checks=12,
        batch_size=8,
    )
    assert found.after < 0.2 * found.before
    assert shown(found.ids, unlearned) > 0.5
