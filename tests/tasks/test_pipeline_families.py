import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pipeline_families import BUILDERS, family_task, sd3, sdxl
from problems import same
from text_problems import FIVE, SEVEN, THREE, images, pipeline

from salun_core.errors import UserError
from salun_core.methods import METHODS
from salun_core.methods.lora import Lora
from salun_core.metrics.generation.erasure import relearning_curve, search_embedding
from salun_core.models.diffusion.conditions import repeated, vectors
from salun_core.models.text_to_image.deltas import load_delta, save_delta
from salun_core.models.text_to_image.families import FAMILIES, family_of, network_of
from salun_core.models.text_to_image.pipelines import (
    check_pipeline,
    decode_latents,
    encode_prompts,
    load_pipeline,
    save_pipeline,
    with_network,
)
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.rng import generator
from salun_core.saliency import random_mask, saliency_mask
from salun_core.tasks.base import Task
from salun_core.tasks.text_to_image import text_to_image_task

pytestmark = pytest.mark.long

BOTH = pytest.mark.parametrize("name", BUILDERS)
RUNS = {
    "salun": {"order": "joint", "keep": 0.4},
    "ga": {},
    "ft": {},
    "rl": {"order": "joint"},
    "esd": {},
}


def run(method, name, **more):
    return METHODS[method](family_task(name), **{"steps": 2, "lr": 1e-3, **RUNS.get(method, {}), **more})


def named(name, model, noisy, times, condition):
    """What a network predicts, in the words of its own pipeline."""
    if name == "sdxl":
        added = {"text_embeds": condition.pooled, "time_ids": condition.sizes}
        return model(noisy, times, encoder_hidden_states=condition.tokens, added_cond_kwargs=added).sample
    return model(
        hidden_states=noisy,
        timestep=times,
        encoder_hidden_states=condition.tokens,
        pooled_projections=condition.pooled,
    ).sample


def test_the_families():
    assert set(FAMILIES) == {
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
    }
    assert list(family_of(sd3()).parts(sd3())) == [
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    ]
    assert "text_encoder_3" not in family_of(sd3(False)).parts(sd3(False))
    assert network_of(pipeline()) is pipeline().unet


@BOTH
def test_the_task_offers_what_methods_ask_for(name):
    task = family_task(name)
    assert isinstance(task, Task)
    assert task.prompts.texts == ("", SEVEN, THREE, FIVE)
    assert task.model is network_of(BUILDERS[name]())


@BOTH
def test_prompts_are_embedded_as_the_pipeline_does(name):
    pipe, bank = BUILDERS[name](), family_task(name).prompts
    given = {"prompt": [SEVEN], "device": "cpu"}
    if name == "sd3":
        given |= {"prompt_2": None, "prompt_3": None}
    tokens, of_none, pooled, pooled_of_none = pipe.encode_prompt(**given)
    torch.testing.assert_close(bank.given[1:2].tokens, tokens)
    torch.testing.assert_close(bank.given[1:2].pooled, pooled)
    torch.testing.assert_close(bank.given[0:1].tokens, of_none)
    torch.testing.assert_close(bank.given[0:1].pooled, pooled_of_none)
    if name == "sdxl":
        assert not of_none.any()
        assert bank.given.sizes.tolist() == [[8, 8, 0, 0, 8, 8]] * 4
        kept = encode_prompts(sdxl(zeros=False), [SEVEN])
        assert kept.given[0].tokens.any() and kept.given[0].pooled.any()


def test_the_third_text_encoder_may_be_missing(tmp_path):
    bank = encode_prompts(sd3(False), [SEVEN])
    assert bank.given.tokens[:, 12:].shape == (2, 256, 32)
    assert not bank.given.tokens[:, 12:].any() and bank.given.tokens[:, :12].any()
    folder = save_pipeline(sd3(False), sd3(False).transformer, tmp_path / "without")
    assert load_pipeline(folder).text_encoder_3 is None


@BOTH
def test_latents_are_those_of_the_pipeline(name):
    pipe, task = BUILDERS[name](), family_task(name)
    pixels = images(10).float().expand(-1, 3, -1, -1) / 127.5 - 1
    config = pipe.vae.config
    shift = 0.06 if name == "sd3" else 0.0
    with torch.no_grad():
        found = pipe.vae.encode(pixels).latent_dist
        mean, std = task.forget.images.chunk(2, dim=1)
        torch.testing.assert_close(mean, (found.mean - shift) * config.scaling_factor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(std, found.std * config.scaling_factor, rtol=1e-4, atol=1e-5)
        again = pipe.vae.decode(found.mean).sample
    torch.testing.assert_close(decode_latents(pipe, mean), again, rtol=1e-3, atol=1e-4)


@BOTH
def test_the_loss_is_the_training_objective_of_the_pipeline(name):
    task = family_task(name)
    images_, given = next(iter(task.retain))
    found = task.loss(task.model, (images_, given), torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    if name == "sdxl":
        times = torch.randint(0, 1000, (5,), generator=rng)
    else:
        u = torch.sigmoid(torch.distributions.Normal(0, 1).icdf(torch.rand(5, generator=rng)))
        sigma = 1 - (u * 1000).long() / 1000  # the grid falls from 1
        times = 1000 * 3 * sigma / (1 + 2 * sigma)
    mean, std = images_.chunk(2, dim=1)
    clean = mean + std * torch.randn(mean.shape, generator=rng)
    noise = torch.randn(mean.shape, generator=rng)
    if name == "sdxl":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        kept = torch.cumprod(1 - betas, 0)[times].view(-1, 1, 1, 1)
        noisy, target = kept.sqrt() * clean + (1 - kept).sqrt() * noise, noise
    else:
        sigma = (times / 1000).view(-1, 1, 1, 1)
        noisy, target = (1 - sigma) * clean + sigma * noise, noise - clean
    predicted = named(name, task.model, noisy, times, task.prompts.rows(given))
    assert found.item() == pytest.approx(F.mse_loss(predicted, target).item(), rel=1e-4)


@BOTH
def test_relabelling_aims_at_the_frozen_prediction_for_the_replacement(name):
    task, model = family_task(name), run("rl", name).model
    batch = next(iter(task.forget))
    value = task.relabel_loss(model, batch, torch.Generator().manual_seed(2))
    noisy, times, _ = task.noised(batch[0], torch.Generator().manual_seed(2))
    seven, three = (task.prompts.rows(torch.full((5,), i)) for i in (1, 2))
    goal = named(name, task.model, noisy, times, three)
    assert value.item() == pytest.approx(
        F.mse_loss(named(name, model, noisy, times, seven), goal).item(), rel=1e-4
    )
    assert value.item() > 0


@BOTH
@pytest.mark.parametrize("method", RUNS)
def test_methods_run_and_masks_are_exact(name, method):
    task = family_task(name)
    before = copy.deepcopy(task.model)
    weights = dict(task.model.named_parameters())
    mask = random_mask(weights, keep=0.4, rng=torch.Generator().manual_seed(1))
    changed = dict(run(method, name, mask=mask, seed=1).model.named_parameters())
    for key, weight in weights.items():
        assert torch.equal(changed[key][~mask[key]], weight[~mask[key]]), key
    assert any(not torch.equal(changed[key], weight) for key, weight in weights.items())
    assert same(task.model, before)


@BOTH
def test_salun_is_relabelling_with_a_saliency_mask_and_nothing_else(name):
    task = replace(family_task(name), mask_draws=2, mask_guidance=1.0)
    mask = saliency_mask(task.model, task.forget, task.loss, keep=0.4)
    shuffled = task.forget.subset(torch.randperm(10)).resized(3)
    again = saliency_mask(task.model, shuffled, task.loss, keep=0.4)
    assert all(torch.equal(mask[key], again[key]) for key in mask)
    settings = {"steps": 2, "lr": 1e-3, "order": "joint", "seed": 5}
    a, b = METHODS["salun"](task, keep=0.4, **settings), METHODS["rl"](task, mask=mask, **settings)
    assert same(a.model, b.model)


@BOTH
def test_esd_aims_away_from_the_prompt(name):
    task = replace(family_task(name), parts={r: b.resized(99) for r, b in family_task(name).parts.items()})
    found = METHODS["esd"](task, steps=1, lr=1e-9, eta=2.0, seed=6).losses[0]
    rng = generator(6, "esd")
    latents, given = next(task.forget.shuffled(rng))
    noisy, times, _ = task.noised(latents, rng)
    with torch.no_grad():
        of_none, of_it = (
            named(name, task.model, noisy, times, task.prompts.rows(torch.full_like(given, i)))
            for i in (0, 1)
        )
    goal = of_none - 2 * (of_it - of_none)
    assert found == pytest.approx(F.mse_loss(of_it, goal).item(), rel=1e-3)


@BOTH
def test_adapters_take_the_place_of_a_mask(name):
    before = dict(family_task(name).model.named_parameters())
    after = dict(run("rl", name, mask=Lora(rank=2), lr=1e-2).model.named_parameters())
    assert after.keys() == before.keys()
    changed = {key for key, weight in after.items() if not torch.equal(weight, before[key])}
    assert changed
    for key in changed:
        assert key.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
        assert torch.linalg.matrix_rank(after[key] - before[key], atol=1e-5) <= 2


@BOTH
@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"optimizer_name": "adafactor"}])
def test_settings_of_training_apply(name, settings):
    task = replace(family_task(name), **settings)
    model = METHODS["rl"](task, steps=1, lr=1e-3, order="joint").model
    assert {w.dtype for w in model.parameters()} == {torch.float32}
    assert not same(model, task.model)


@BOTH
def test_checkpointed_gradients_change_nothing(name):
    pipe = with_network(BUILDERS[name](), copy.deepcopy(network_of(BUILDERS[name]())))
    task = text_to_image_task(
        pipe,
        forget=(images(10), [SEVEN] * 10),
        retain=(images(16, 1), [THREE, FIVE] * 8),
        replacement=THREE,
        batch_size=5,
        gradient_checkpointing=True,
    )
    model = METHODS["rl"](task, steps=2, lr=1e-3, order="joint").model
    assert model.is_gradient_checkpointing
    for a, b in zip(model.parameters(), run("rl", name).model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def drawn_by_diffusers(pipe, name, *, seed, steps):
    """The same image by the pipeline itself, with the noise of our stream 0."""
    from diffusers import DDIMScheduler

    whole = with_network(pipe, network_of(pipe))
    if name == "sdxl":
        whole.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
        )
    whole.set_progress_bar_config(disable=True)
    noise = torch.randn((4, 4, 4), generator=generator(seed, "sample", 0))[None]
    drawn = whole(
        SEVEN, latents=noise, num_inference_steps=steps, guidance_scale=3.0, output_type="pt"
    ).images
    return (drawn * 255).round()


@BOTH
def test_sampling_agrees_with_the_pipeline_of_diffusers(name):
    pipe = BUILDERS[name]()
    drawn = sample_prompts(pipe, [SEVEN], seed=3, guidance=2.0, steps=6)
    assert (drawn_by_diffusers(pipe, name, seed=3, steps=6) - drawn.float()).abs().max() <= 1
    assert drawn.float().std() > 1


def test_a_shift_that_depends_on_the_size_is_that_of_the_pipeline():
    pipe = sd3(True, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=4)
    drawn = sample_prompts(pipe, [SEVEN], seed=3, guidance=2.0, steps=6)
    assert (drawn_by_diffusers(pipe, "sd3", seed=3, steps=6) - drawn.float()).abs().max() <= 1
    assert not torch.equal(drawn, sample_prompts(sd3(), [SEVEN], seed=3, guidance=2.0, steps=6))


@BOTH
def test_an_image_does_not_depend_on_its_batch(name):
    pipe, texts = BUILDERS[name](), [SEVEN, THREE, "", SEVEN]
    drawn = [sample_prompts(pipe, texts, seed=1, steps=3, batch_size=size) for size in (8, 3)]
    assert (drawn[0].int() - drawn[1].int()).abs().max() <= 1
    embedded = sample_prompts(pipe, encode_prompts(pipe, [THREE]).given[1:], streams=[1], seed=1, steps=3)
    assert (embedded[0].int() - drawn[0][1].int()).abs().max() <= 1


def test_a_flow_adds_no_noise_on_the_way():
    with pytest.raises(UserError, match="eta must be 0"):
        sample_prompts(sd3(), [SEVEN], steps=2, eta=1.0)


@BOTH
def test_a_folder_holds_the_unlearned_pipeline(name, tmp_path):
    import diffusers

    pipe, model = BUILDERS[name](), run("rl", name).model
    folder = save_pipeline(pipe, model, tmp_path / "unlearned")
    again = load_pipeline(folder)
    for part, network in family_of(pipe).parts(pipe).items():
        assert same(getattr(again, part), model if network is network_of(pipe) else network), part
    theirs = getattr(diffusers, type(pipe).__name__).from_pretrained(folder, local_files_only=True)
    assert same(network_of(theirs), model)
    drawn = sample_prompts(pipe, [SEVEN], unet=model, steps=3)
    assert torch.equal(sample_prompts(again, [SEVEN], steps=3), drawn)
    assert not torch.equal(sample_prompts(pipe, [SEVEN], steps=3), drawn)
    delta = save_delta(model, network_of(pipe), tmp_path / "delta.safetensors")
    assert same(load_delta(delta, network_of(pipe)), model)


def test_in_half_precision_an_autoencoder_that_would_overflow_stays_in_single(tmp_path):
    folder = save_pipeline(sdxl(), sdxl().unet, tmp_path / "whole")
    half = load_pipeline(folder, dtype=torch.float16)
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.float16
    assert half.vae.dtype == torch.float32
    assert load_pipeline(folder, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["text_encoder_2", "transformer", "text_encoder_3"])
def test_a_part_that_is_missing_is_named(part, tmp_path):
    folder = save_pipeline(sd3(), sd3().transformer, tmp_path / "whole")
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"{part}/config.json is missing"):
        load_pipeline(folder)


def test_only_optional_parts_may_be_left_out(tmp_path):
    folder = save_pipeline(sd3(False), sd3(False).transformer, tmp_path / "whole")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": [None, None]}))
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(UserError, match="model_index.json names no text_encoder_2"):
        load_pipeline(folder)


def test_a_scheduler_of_another_kind_is_refused():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    for pipe, scheduler in ((sd3(), DDIMScheduler()), (sdxl(), FlowMatchEulerDiscreteScheduler())):
        wrong = with_network(pipe, network_of(pipe))
        wrong.scheduler = scheduler
        with pytest.raises(UserError, match=f"comes with a {type(scheduler).__name__}"):
            check_pipeline(wrong)


def test_methods_on_cross_attention_know_sdxl_and_refuse_a_joint_transformer():
    for method, more in (("fmn", {"steps": 1, "lr": 1e-3}), ("ca", {"steps": 1, "lr": 1e-3}), ("uce", {})):
        assert not same(METHODS[method](family_task("sdxl"), **more).model, sdxl().unet)
    from diffusers import SD3Transformer2DModel

    # Version 3.5 has layers of the same name as cross-attention's, which are none.
    config = {name: value for name, value in sd3().transformer.config.items() if name[0] != "_"}
    newer = SD3Transformer2DModel(**{**config, "dual_attention_layers": (0,), "qk_norm": "rms_norm"})
    assert any(".attn2." in name for name, _ in newer.named_parameters())
    for model in (sd3().transformer, newer):
        task = replace(family_task("sd3"), model=model)
        for method in ("fmn", "uce", "rece"):
            with pytest.raises(UserError, match="no cross-attention"):
                METHODS[method](task)
        with pytest.raises(UserError, match="no cross-attention, so no part 'xattn': choose 'full'"):
            METHODS["esd"](task, part="xattn")
        assert METHODS["esd"](task, steps=1, lr=1e-3, mask=Lora(rank=2)).samples == 5


@BOTH
def test_a_search_for_embeddings_moves_every_part_within_its_radius(name):
    pipe, task = BUILDERS[name](), family_task(name)
    start, concept = (task.condition(torch.tensor([number]))[0] for number in (2, 1))
    attack = search_embedding(
        task.model,
        task.model,
        pipe.scheduler,
        task.clean(task.forget.images),
        concept=concept,
        start=start,
        steps=30,
        lr=0.05,
        radius=0.5,
    )
    assert attack.after < 0.5 * attack.before
    assert 0 < attack.shift <= 0.5 + 1e-5
    moved = [not torch.equal(a, b) for a, b in zip(vectors(attack.embedding), vectors(start), strict=True)]
    assert moved == [True, True]
    drawn = sample_prompts(pipe, repeated(attack.embedding, 2), steps=2)
    assert drawn.shape == (2, 3, 8, 8)


@BOTH
def test_relearning_minimises_the_training_objective(name):
    task = family_task(name)
    clean, batch = task.clean(task.forget.images), (task.forget.images, task.forget.labels)
    concept = task.condition(torch.tensor([1]))[0]

    def loss(net):
        with torch.no_grad():
            return task.loss(net.eval(), batch).item()

    curve = relearning_curve(
        task.model, task.schedule, clean, concept, loss, steps=40, lr=3e-3, every=40, batch_size=10
    )
    assert curve[-1][1] < 0.9 * curve[0][1]
