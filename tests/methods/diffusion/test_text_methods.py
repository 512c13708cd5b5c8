import copy
from dataclasses import fields, replace
from importlib import resources

import pytest
import torch
import torch.nn.functional as F
from problems import same, trained_task
from text_problems import FIVE, SEVEN, THREE, images, pipeline, text_task

from salun_core.errors import UserError
from salun_core.experiments.text_to_image.class_forgetting import TextToImageParams
from salun_core.experiments.text_to_image.unsafe import UnsafeParams
from salun_core.methods import METHODS, methods_for
from salun_core.methods.contract import check_method
from salun_core.methods.diffusion.fmn import cross_attention
from salun_core.methods.diffusion.network_parts import PARTS, part_mask
from salun_core.methods.diffusion.uce import edited, edited_tokens, kept_tokens
from salun_core.methods.lora import Lora
from salun_core.rng import generator
from salun_core.saliency import least_salient_mask, random_mask, saliency_mask, saliency_scores
from salun_core.tasks.text_to_image import text_to_image_task

pytestmark = pytest.mark.long

DRIVEN = ["ft", "ga", "rl", "l1_sparse", "esd", "fmn", "ca", "advunlearn", "erasediff", "salun", "salun_soft"]
CLOSED_FORM = ["uce", "rece"]
QUICK = {name: {"steps": 2, "lr": 1e-3} for name in DRIVEN}
for driven in ("rl", "salun", "salun_soft"):
    QUICK[driven]["order"] = "joint"
QUICK["advunlearn"] |= {"warmup": 1, "attack_steps": 2}


def run(name, task=None, **more):
    return METHODS[name](task or text_task(), **{**QUICK.get(name, {}), **more})


def moved(model):
    before = dict(text_task().model.named_parameters())
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


def test_the_methods_of_text_to_image():
    assert set(methods_for("text_to_image")) == {*DRIVEN, *CLOSED_FORM, "original"}


@pytest.mark.parametrize("name", methods_for("text_to_image"))
def test_every_method_keeps_the_contract(name):
    check_method(METHODS[name], text_task(), maskable=name != "original", **QUICK.get(name, {}))
    assert same(run(name).model, text_task().model) == (name == "original")


@pytest.mark.parametrize("kind", ["random", "salient", "least"])
@pytest.mark.parametrize("name", [*DRIVEN, *CLOSED_FORM])
def test_weights_outside_the_mask_are_bit_identical(name, kind):
    task = text_task()
    weights = dict(task.model.named_parameters())
    if kind == "random":
        mask = random_mask(weights, keep=0.4, rng=torch.Generator().manual_seed(1))
    else:
        scores = saliency_scores(task.model, task.forget, task.loss)
        mask = (
            least_salient_mask(scores, keep=0.4)
            if kind == "least"
            else saliency_mask(task.model, task.forget, task.loss, keep=0.4)
        )
    changed = dict(run(name, mask=mask, seed=1).model.named_parameters())
    for key, weight in weights.items():
        assert torch.equal(changed[key][~mask[key]], weight[~mask[key]]), key
    assert any(not torch.equal(changed[key], weight) for key, weight in weights.items())


def test_salun_is_relabelling_with_a_saliency_mask_and_nothing_else():
    task = text_task()
    mask = saliency_mask(task.model, task.forget, task.loss, keep=0.3)
    assert same(run("salun", keep=0.3, seed=5).model, run("rl", mask=mask, seed=5).model)


def one_batch(task):
    """The same task with all images in one batch."""
    parts = {role: batches.resized(1000) for role, batches in task.parts.items()}
    return replace(task, parts=parts)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.0])
def test_esd_aims_away_from_the_prompt(eta):
    task = one_batch(text_task())
    found = METHODS["esd"](task, steps=1, lr=1e-9, eta=eta, seed=6).losses[0]
    rng = generator(6, "esd")
    latents, given = next(task.forget.shuffled(rng))
    noisy, times, _ = task.noised(latents, rng)
    none, seven = (task.prompts.embeddings[i].expand(len(given), -1, -1) for i in (0, 1))
    with torch.no_grad():
        of_none, of_it = (task.model(noisy, times, encoder_hidden_states=e).sample for e in (none, seven))
    goal = of_none - eta * (of_it - of_none)
    assert found == pytest.approx(F.mse_loss(of_it, goal).item(), rel=1e-3)


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_the_network_are_all_that_moves(part):
    names = moved(run("esd", part=part).model)
    every = set(dict(text_task().model.named_parameters()))
    cross = {n for n in every if ".attn2." in n}
    own = {n for n in every if ".attn1." in n}
    if part == "full":
        assert names == every
    elif part == "xattn":
        assert names == cross
    elif part == "selfattn":
        assert names == own
    elif part == "kv":
        assert names == {n for n in cross if "to_k" in n or "to_v" in n}
    else:
        assert not names & cross and own <= names and "conv_in.weight" in names
        assert not any(n.startswith(("conv_out", "time_embedding")) for n in names)


@pytest.mark.parametrize(("name", "part"), [("esd", "xattn"), ("ca", "kv"), ("fmn", "xattn")])
def test_weights_outside_the_part_take_no_gradient_and_no_state(name, part):
    seen = []

    class Noting(type(text_task())):
        def optimizer(self, model, lr):
            optimizer = super().optimizer(model, lr)
            optimizer.register_step_post_hook(lambda *_: seen.append((model, optimizer)))
            return optimizer

    task = Noting(**{f.name: getattr(text_task(), f.name) for f in fields(Noting) if f.init})
    found = run(name, task, part=part)
    model, optimizer = seen[0]
    belongs = [w for n, w in model.named_parameters() if PARTS[part](n)]
    assert set(optimizer.state) <= set(belongs)
    assert len(optimizer.state) > len(belongs) / 2  # attention to the words does not reach every last layer
    assert model is found.model and all(w.requires_grad and w.grad is None for w in model.parameters())


def test_no_gradient_is_held_while_the_next_loss_is_computed(monkeypatch):
    held, predict = [], type(text_task()).predict

    def noting(self, model, *given, **more):
        held.append(sum(w.grad is not None for w in model.parameters()))
        return predict(self, model, *given, **more)

    monkeypatch.setattr(type(text_task()), "predict", noting)
    run("ft", steps=3)
    assert held == [0, 0, 0]


def test_a_part_and_a_mask_meet():
    weights = dict(text_task().model.named_parameters())
    mask = random_mask(weights, keep=0.5, rng=torch.Generator().manual_seed(0))
    both = part_mask(text_task().model, "xattn", mask)
    for name in weights:
        assert torch.equal(both[name], mask[name] if ".attn2." in name else torch.zeros_like(mask[name]))


def test_parts_need_a_network_that_attends_to_text():
    with pytest.raises(UserError, match="no cross-attention, so no part"):
        part_mask(trained_task().model, "xattn")
    with pytest.raises(UserError, match="part must be"):
        run("esd", part="crossattention")


def test_concept_ablation_on_the_images_of_the_anchor():
    task = one_batch(text_task())
    found = METHODS["ca"](task, steps=1, lr=1e-9, alpha=0.5, seed=2).losses[0]
    rng = generator(2, "ca")
    of_three = task.retain.subset((task.retain.labels == 2).nonzero().view(-1))
    latents, given = next(of_three.shuffled(rng))
    noisy, times, noise = task.noised(latents, rng)
    seven, three = (task.prompts.embeddings[i].expand(len(given), -1, -1) for i in (1, 2))
    with torch.no_grad():
        of_seven, of_three_ = (
            task.model(noisy, times, encoder_hidden_states=e).sample for e in (seven, three)
        )
    expected = F.mse_loss(of_seven, of_three_) + 0.5 * F.mse_loss(of_three_, noise)
    assert found == pytest.approx(expected.item(), rel=1e-3)


def test_concept_ablation_aims_at_what_the_weights_in_training_predict():
    task = one_batch(text_task())
    losses = {
        target: METHODS["ca"](task, steps=8, lr=1e-2, target=target, seed=2).losses
        for target in ("current", "original")
    }
    assert losses["current"][0] == pytest.approx(losses["original"][0], rel=1e-6)  # nothing has moved yet
    assert losses["current"][-1] != pytest.approx(losses["original"][-1], rel=1e-3)
    with pytest.raises(UserError, match="target must be"):
        run("ca", target="frozen")


def test_concept_ablation_as_released_moves_keys_and_values_of_cross_attention_in_100_steps():
    task = one_batch(text_task())
    found = METHODS["ca"](task, seed=2)
    assert len(found.losses) == 100
    assert moved(found.model) == {n for n in dict(found.model.named_parameters()) if PARTS["kv"](n)}
    # Adam's first steps are of the size of the learning rate: 100 of them reach 100 times as far at most.
    before = dict(task.model.named_parameters())
    far = max((w - before[n]).abs().max().item() for n, w in found.model.named_parameters())
    assert 1.6e-5 < far <= 100 * 1.6e-5 * 1.01


def test_concept_ablation_on_the_images_of_the_concept_is_relabelling_alone():
    task = one_batch(text_task())
    found = METHODS["ca"](task, steps=1, lr=1e-9, images="concept", seed=2).losses[0]
    rng = generator(2, "ca")
    batch = next(task.forget.shuffled(rng))
    assert found == pytest.approx(task.relabel_loss(task.model, batch, rng).item(), rel=1e-4)


def test_concept_ablation_without_images_of_the_anchor_is_refused():
    given = {"forget": (images(2), [SEVEN] * 2), "retain": (images(2), [FIVE] * 2), "replacement": THREE}
    with pytest.raises(UserError, match="no images of the anchor"):
        METHODS["ca"](text_to_image_task(pipeline(), **given), steps=1)


def test_attention_maps_are_those_the_network_computes():
    from diffusers.models.attention_processor import AttnProcessor

    task = text_task()
    latents, given = next(iter(task.forget))
    noisy, times, _ = task.noised(latents, generator(0))
    net, kept = copy.deepcopy(task.model), []

    class Spy(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **more):
            scores = attn.get_attention_scores
            attn.get_attention_scores = lambda *a: (
                kept.append((encoder_hidden_states, scores(*a))) or kept[-1][1]
            )
            try:
                return super().__call__(attn, hidden_states, encoder_hidden_states, **more)
            finally:
                del attn.get_attention_scores

    with torch.no_grad(), cross_attention(net) as maps:
        task.predict(net, noisy, times, given)
    net.set_attn_processor(Spy())
    with torch.no_grad():
        task.predict(net, noisy, times, given)
    expected = [probs for text, probs in kept if text is not None]
    assert len(maps) == len(expected) > 0
    for found, probs in zip(maps, expected, strict=True):
        torch.testing.assert_close(found.flatten(0, 1), probs)
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found.sum(-1)))
    assert not net.down_blocks[1].attentions[0].transformer_blocks[0].attn2._forward_pre_hooks


def test_forget_me_not_takes_the_same_steps_with_checkpointing():
    saving = checkpointed()
    plain, again = (METHODS["fmn"](task, steps=3, lr=1e-3, seed=4) for task in (text_task(), saving))
    assert again.model.is_gradient_checkpointing
    assert again.losses == pytest.approx(plain.losses, rel=1e-4)
    for a, b in zip(again.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def checkpointed(**settings):
    """The task of `text_task` on a network that computes its activations twice."""
    net = copy.deepcopy(pipeline().unet)
    net.enable_gradient_checkpointing()
    return replace(text_task(), model=net, **settings)


PRESETS = [
    (kind, preset)
    for kind in (TextToImageParams, UnsafeParams)
    for preset in sorted(
        file.name.removesuffix(".yaml")
        for file in (resources.files("salun_core.experiments") / "presets" / kind.experiment).iterdir()
    )
]


@pytest.mark.parametrize(("kind", "preset"), PRESETS, ids=lambda v: getattr(v, "experiment", v))
def test_every_method_of_every_preset_runs_with_checkpointing(kind, preset, tmp_path):
    params = kind.load({"preset": preset, "data_dir": tmp_path})
    how = params.forgetting
    task = checkpointed(
        mask_guidance=how.mask_guidance,
        mask_draws=how.mask_draws,
        antithetic=how.antithetic,
        target=how.target,
        relabel_drop=how.relabel_drop,
        precision=how.precision,
        optimizer_name=how.optimizer,
        clip=how.grad_clip,
    )
    masks = {
        "none": None,
        "lora": Lora(params.steps_of.lora_rank),
        "salient": saliency_mask(task.model, task.forget, task.loss, keep=params.masking.keep),
    }
    cells = [(name, METHODS[name].mask, params.steps_of.of(name)) for name in params.methods]
    cells += [("rl", mask, params.settings_under(mask)) for mask in params.masks if mask in masks]
    for name, mask, settings in cells:
        steps = {"steps": 2} if "steps" in settings else {}
        found = METHODS[name](task, mask=masks[mask], **{**settings, **steps})
        assert all(torch.isfinite(w).all() for w in found.model.parameters()), name
        assert same(found.model, task.model) == (name == "original"), name


def test_forget_me_not_is_the_mean_square_of_the_attention_to_the_concept():
    task = one_batch(text_task())
    found = METHODS["fmn"](task, steps=1, lr=1e-9, seed=4).losses[0]
    rng = generator(4, "fmn")
    latents, given = next(task.forget.shuffled(rng))
    noisy, times, _ = task.noised(latents, rng)
    with torch.no_grad(), cross_attention(task.model) as maps:
        task.predict(task.model, noisy, times, given)
    place = pipeline().tokenizer(SEVEN).input_ids.index(pipeline().tokenizer("seven").input_ids[1])
    expected = sum(attention[..., place].square().mean().item() for attention in maps) / len(maps)
    assert found == pytest.approx(expected, rel=1e-4)


def test_forget_me_not_lowers_the_attention():
    task = text_task()
    losses = METHODS["fmn"](task, steps=25, lr=3e-3, part="xattn").losses
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_closed_form_is_where_the_gradient_vanishes():
    rng = torch.Generator().manual_seed(0)
    w, c, a, k = (torch.randn(s, generator=rng).double() for s in ((3, 5), (4, 5), (4, 5), (7, 5)))
    found = edited(w, c, a, k, erase=1.3, preserve=0.2, ridge=0.05).requires_grad_(True)
    loss = (
        1.3 * (c @ found.T - a @ w.T).square().sum()
        + 0.2 * (k @ found.T - k @ w.T).square().sum()
        + 0.05 * (found - w).square().sum()
    )
    (slope,) = torch.autograd.grad(loss, found)
    assert slope.abs().max() < 1e-10


def test_uce_moves_keys_and_values_only_and_sends_the_concept_to_its_anchor():
    task = text_task()
    model = METHODS["uce"](task, erase=1.0, preserve=0.0, ridge=1e-6).model
    assert moved(model) == {n for n in dict(model.named_parameters()) if PARTS["kv"](n)}
    old, new = edited_tokens(task)
    before, after = (dict(m.named_parameters()) for m in (task.model, model))
    for name in moved(model):
        wanted = new @ before[name].T
        assert (old @ after[name].T - wanted).abs().max() < 1e-2 * wanted.abs().max()


def test_uce_keeps_what_it_is_told_to_keep():
    task = text_task()
    kept = kept_tokens(task)
    assert kept.shape == (2 * 12, 16)
    name = next(n for n in dict(task.model.named_parameters()) if PARTS["kv"](n))

    def change(preserve):
        after = dict(METHODS["uce"](task, preserve=preserve).model.named_parameters())[name]
        return (kept @ (after - dict(task.model.named_parameters())[name]).T).norm()

    assert change(100.0) < 0.1 * change(0.0)
    for wrong in ({"ridge": 0.0}, {"erase": -1.0}, {"preserve": -0.1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            METHODS["uce"](task, **wrong)


def test_edited_tokens_start_at_the_word_and_end_with_the_padding():
    old, new = edited_tokens(text_task())
    embedded = text_task().prompts.embeddings
    assert torch.equal(old, embedded[1, 5:]) and torch.equal(new, embedded[2, 5:])
    longer = text_to_image_task(
        pipeline(),
        forget=(images(1), [SEVEN]),
        retain=(images(1), [FIVE]),
        replacement="a big old picture of a three",
    )
    old, new = edited_tokens(longer)
    assert torch.equal(old, longer.prompts.embeddings[1, 5:10])
    assert torch.equal(new, longer.prompts.embeddings[2, 7:12])


@pytest.mark.parametrize("name", ["rl", "ga", "ft", "esd", "fmn", "erasediff", "advunlearn"])
def test_adapters_take_the_place_of_a_mask(name):
    task = text_task()
    first, again = (run(name, mask=Lora(rank=2), seed=1, lr=1e-2) for _ in range(2))
    assert same(first.model, again.model)
    before = dict(task.model.named_parameters())
    after = dict(first.model.named_parameters())
    assert after.keys() == before.keys() and all(w.requires_grad for w in after.values())
    changed = moved(first.model)
    assert changed
    for key in changed:
        assert key.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
        assert torch.linalg.matrix_rank(after[key] - before[key], atol=1e-5) <= 2


def test_adapters_of_full_rank_start_from_the_model_itself():
    task = one_batch(text_task())
    loss = METHODS["ft"](task, steps=1, lr=1e-9, seed=1).losses[0]
    assert METHODS["ft"](task, steps=1, lr=1e-9, seed=1, mask=Lora(rank=16)).losses[0] == pytest.approx(loss)


def test_adapters_are_refused_where_they_make_no_sense():
    with pytest.raises(UserError, match="not with adapters"):
        run("salun_soft", mask=Lora())
    with pytest.raises(UserError, match="rank"):
        Lora(rank=0)
    with pytest.raises(UserError, match="no layers named"):
        run("rl", mask=Lora(targets=("nothing",)))
    with pytest.raises(UserError, match="name their own layers"):
        run("esd", mask=Lora(), part="xattn")
    with pytest.raises(UserError, match="UCE"):
        run("uce", mask=Lora())


@pytest.mark.parametrize("name", ["fmn", "ca", "uce", "rece", "advunlearn"])
def test_methods_for_text_refuse_another_kind_of_task(name):
    with pytest.raises(UserError, match="text_to_image"):
        METHODS[name](trained_task())
    with pytest.raises(UserError, match="text-to-image"):
        METHODS[name].run(trained_task())
