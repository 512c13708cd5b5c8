import copy
import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import same
from safetensors.torch import load_file, save_file
from text_problems import FIVE, SEVEN, THREE, images, pipeline, pipeline_with_clip_tokenizer, text_task
from torchvision.transforms.v2.functional import pil_to_tensor

from salun_core.errors import UserError
from salun_core.methods import METHODS
from salun_core.models.text_to_image.deltas import load_delta, save_delta, weights_digest
from salun_core.models.text_to_image.pipelines import (
    decode_latents,
    encode_images,
    encode_prompts,
    fitted,
    load_pipeline,
    save_pipeline,
    too_long,
    with_network,
)
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.models.text_to_image.tiny_pipeline import build_tokenizer
from salun_core.paths import project_root
from salun_core.rng import generator
from salun_core.saliency import random_mask, saliency_mask
from salun_core.tasks.base import Task
from salun_core.tasks.text_to_image import text_to_image_task

pytestmark = pytest.mark.long


def unlearned(**more):
    return METHODS["rl"](text_task(), steps=2, lr=1e-3, order="joint", **more).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(pipeline(), pipeline().unet, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "broken")


def noisy_of(task, batch, seed):
    return task.noised(batch[0], torch.Generator().manual_seed(seed))


def test_the_task_offers_what_methods_ask_for():
    task = text_task()
    assert isinstance(task, Task)
    assert task.kind == "text_to_image"
    assert task.prompts.texts == ("", SEVEN, THREE, FIVE)
    assert task.wrong(torch.tensor([1, 1]), generator(0)).tolist() == [2, 2]


def test_latents_and_embeddings_are_those_of_the_pipeline():
    pipe, task = pipeline(), text_task()
    pixels = images(10).float().expand(-1, 3, -1, -1) / 127.5 - 1
    with torch.no_grad():
        found = pipe.vae.encode(pixels).latent_dist
        scale = pipe.vae.config.scaling_factor
        own, _ = pipe.encode_prompt(SEVEN, "cpu", 1, do_classifier_free_guidance=False)
    mean, std = task.forget.images.chunk(2, dim=1)
    torch.testing.assert_close(mean, found.mean * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, found.std * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(task.prompts.embeddings[1], own[0])
    again = decode_latents(pipe, mean)
    torch.testing.assert_close(again, pipe.vae.decode(found.mean).sample, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_noise_prediction_error_on_drawn_latents():
    task = text_task()
    batch = next(iter(task.retain))
    found = task.loss(task.model, batch, torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    times = torch.randint(0, 1000, (5,), generator=rng)
    mean, std = batch[0].chunk(2, dim=1)
    clean = mean + std * torch.randn(mean.shape, generator=rng)
    noise = torch.randn(mean.shape, generator=rng)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)[times].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    text = task.prompts.embeddings[batch[1]]
    expected = F.mse_loss(task.model(noisy, times, encoder_hidden_states=text).sample, noise)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_relabelling_aims_at_the_frozen_prediction_for_the_replacement():
    task = text_task()
    batch = next(iter(task.forget))
    model = unlearned()
    value = task.relabel_loss(model, batch, torch.Generator().manual_seed(2))
    noisy, times, _ = noisy_of(task, batch, 2)
    seven, three = (task.prompts.embeddings[i].expand(5, -1, -1) for i in (1, 2))
    goal = task.model(noisy, times, encoder_hidden_states=three).sample
    expected = F.mse_loss(model(noisy, times, encoder_hidden_states=seven).sample, goal)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_mask_depends_neither_on_batch_size_nor_on_order():
    task = replace(text_task(), mask_draws=2, mask_guidance=1.0)
    shuffled = task.forget.subset(torch.randperm(10)).resized(3)
    a, b = (saliency_mask(task.model, each, task.loss) for each in (task.forget, shuffled))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_only_training_drops_prompts():
    task = replace(text_task(), drop_share=0.999)
    batch = next(iter(task.retain))
    model = copy.deepcopy(task.model)
    values = [
        task.loss(model.train(mode), batch, torch.Generator().manual_seed(1)).item() for mode in (False, True)
    ]
    plain = text_task().loss(model, batch, torch.Generator().manual_seed(1)).item()
    assert values[0] == pytest.approx(plain)
    assert values[1] != pytest.approx(plain)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_masters_in_single_precision(precision):
    full = unlearned()
    task = replace(text_task(), precision=precision)
    model = METHODS["rl"](task, steps=2, lr=1e-3, order="joint").model
    assert {w.dtype for w in model.parameters()} == {torch.float32}
    assert not same(model, full)
    for a, b in zip(model.parameters(), full.parameters(), strict=True):
        assert (a - b).abs().max() < 5e-3  # Adam's steps of 1e-3, whichever way rounding turns them


def test_gradients_in_half_precision_are_those_of_the_loss():
    task = replace(text_task(), precision="fp16", clip=0.0)
    seen = []

    class Noted(type(task)):
        def optimizer(self, model, lr):
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            optimizer.register_step_pre_hook(
                lambda *_: seen.append([w.grad.clone() for w in model.parameters()])
            )
            return optimizer

    for precision in ("fp32", "fp16"):
        METHODS["ga"](Noted(**{**vars(task), "precision": precision}), steps=1, lr=1e-3)
    sizes = [torch.cat([g.flatten() for g in grads]) for grads in seen]
    assert F.cosine_similarity(*sizes, dim=0) > 0.99
    assert (sizes[0].norm() / sizes[1].norm()).item() == pytest.approx(1, abs=0.05)


def test_weights_in_half_precision_are_enough_to_start_from():
    half = copy.deepcopy(pipeline().unet).to(torch.bfloat16)
    task = replace(text_task(), model=half, precision="bf16")
    mask = random_mask(dict(half.named_parameters()), keep=0.5, rng=torch.Generator().manual_seed(0))
    model = METHODS["rl"](task, steps=2, lr=1e-3, order="joint", mask=mask).model
    for name, weight in half.named_parameters():
        found = dict(model.named_parameters())[name]
        assert found.dtype == torch.float32
        assert torch.equal(found[~mask[name]], weight.float()[~mask[name]])
    assert {w.dtype for w in half.parameters()} == {torch.bfloat16}


def test_checkpointed_gradients_change_nothing():
    plain = unlearned()
    pipe = with_network(pipeline(), copy.deepcopy(pipeline().unet))
    task = text_task()
    given = {
        role: (images(b.n, int(role == "retain")), [task.prompts.texts[i] for i in b.labels])
        for role, b in task.parts.items()
    }
    saving = text_to_image_task(pipe, **given, replacement=THREE, batch_size=5, gradient_checkpointing=True)
    model = METHODS["rl"](saving, steps=2, lr=1e-3, order="joint").model
    assert model.is_gradient_checkpointing
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_adafactor_keeps_almost_no_state():
    task = replace(text_task(), optimizer_name="adafactor")
    model = copy.deepcopy(task.model).requires_grad_(True)
    optimizer = task.optimizer(model, 1e-3)
    task.loss(model, next(iter(task.retain)), generator(0)).backward()
    optimizer.step()
    held = sum(v.numel() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))
    assert held < 0.3 * 2 * sum(w.numel() for w in model.parameters())  # Adam keeps two values a weight
    assert not same(model, task.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"optimizer_name": "sgd"}, "optimiser"),
        ({"mask_draws": 0}, "mask_draws"),
        ({"replacement": torch.full((4,), -1)}, "has no replacement"),
    ],
)
def test_a_task_refuses_what_makes_no_sense(change, message):
    with pytest.raises(UserError, match=message):
        replace(text_task(), **change)


def test_a_wrapped_network_and_a_misspelt_setting_are_refused():
    parts = {"forget": (images(2), [SEVEN] * 2), "retain": (images(2), [THREE] * 2), "replacement": THREE}
    with pytest.raises(
        UserError, match="setting of a text-to-image task 'precison': did you mean 'precision'"
    ):
        text_to_image_task(pipeline(), **parts, precison="bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline(), "unet", torch.nn.DataParallel(pipeline().unet))
        with pytest.raises(UserError, match="wrapped in DataParallel: give model.module"):
            text_to_image_task(pipeline(), **parts)


@pytest.mark.parametrize("form", ["pairs", "dicts", "floats"])
def test_a_loader_gives_the_task_that_the_same_images_in_memory_give(form):
    retained = [THREE, FIVE] * 8
    every = {"forget": (images(10), [SEVEN] * 10), "retain": (images(16, 1), retained)}

    def loader(pixels, texts):
        pixels = pixels / 255 if form == "floats" else pixels
        pairs = [(pixels[i : i + 3], texts[i : i + 3]) for i in range(0, len(texts), 3)]
        return [{"image": p, "text": t} for p, t in pairs] if form == "dicts" else pairs

    task = text_to_image_task(
        copy.copy(pipeline()),
        **{role: loader(*given) for role, given in every.items()},
        replacement=THREE,
        batch_size=5,
    )
    for role in every:
        torch.testing.assert_close(task.parts[role].images, text_task().parts[role].images)
        assert torch.equal(task.parts[role].labels, text_task().parts[role].labels)
        assert task.parts[role].size == 5
    mask = saliency_mask(pipeline().unet, task.forget, task.loss, keep=0.3)
    assert METHODS["salun"](task, mask=mask, steps=1, lr=1e-3).losses[0] > 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((images(2), torch.zeros(2)), "no images with prompts"),
        ({"pixel_values": images(2)}, "no images with prompts"),
        ((images(2) / 255 * 2 - 1, [SEVEN, SEVEN]), "leave out normalisation"),
        ((images(2), [SEVEN]), "2 images of the forget set came with 1 prompts"),
        ((images(2)[0], [SEVEN]), "give \\(N, C, H, W\\)"),
        ((images(2).expand(-1, 4, -1, -1), [SEVEN, SEVEN]), "with 1 or 3 channels"),
        ((images(2).long(), [SEVEN, SEVEN]), "images of int64: give bytes"),
        ((images(2) * torch.nan, [SEVEN, SEVEN]), "NaN or infinite pixels"),
        (([images(1)[0], torch.zeros(1, 3, 4)], [SEVEN, SEVEN]), "not tensors"),
    ],
)
def test_a_loader_of_something_else_is_refused(batch, message):
    with pytest.raises(UserError, match=message):
        text_to_image_task(pipeline(), forget=[batch], retain=[(images(1), [THREE])], replacement=THREE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"forget": None},
            "the forget set is a NoneType: give a DataLoader or another iterable; a batch is .images, prompts.",
        ),
        ({"replacement": None}, "replacement is None: give a prompt"),
        ({"replacement": [THREE]}, "replacement is .*give a prompt"),
        ({"replacement": {SEVEN: 3}}, "replacement is .*from prompt to prompt"),
        ({"batch_size": 0}, "batch_size must be .* got 0"),
        ({"batch_size": "3"}, "batch_size must be .* got '3'"),
    ],
)
def test_arguments_of_another_type_are_refused(wrong, message):
    given = {"forget": (images(2), [SEVEN] * 2), "retain": (images(2), [THREE] * 2), "replacement": THREE}
    with pytest.raises(UserError, match=message):
        text_to_image_task(pipeline(), **{**given, **wrong})


def test_prompts_and_images_must_fit():
    given = {"forget": (images(2), [SEVEN]), "retain": (images(1), [THREE]), "replacement": THREE}
    with pytest.raises(UserError, match="2 images of the forget set came with 1 prompts"):
        text_to_image_task(pipeline(), **given)
    given["forget"] = (images(1), [SEVEN])
    with pytest.raises(UserError, match="no replacement"):
        text_to_image_task(pipeline(), **{**given, "replacement": {FIVE: THREE}})
    with pytest.raises(UserError, match="has more than 12 tokens: shorten it"):
        text_to_image_task(pipeline(), **{**given, "replacement": "a photo of a " + "big " * 20})
    with pytest.raises(UserError, match="retain set"):
        text_to_image_task(pipeline(), **{**given, "retain": (images(0), [])})


def i2p_like_prompts():
    """4,703 prompts with the lengths of I2P: 185 have more than 77 tokens, the longest 249, one has no text."""
    rng = torch.Generator().manual_seed(0)
    words = ["photo", "of", "a", "dark", "castle", "highly", "detailed", "portrait", ",", "8", "k", "art"]
    lengths = torch.cat([torch.tensor([2, 249]), torch.randint(78, 250, (184,), generator=rng)])
    lengths = torch.cat([lengths, torch.randint(4, 78, (4703 - 186,), generator=rng)])
    lengths = lengths[torch.randperm(4703, generator=rng)].tolist()
    return [" ".join(words[i] for i in torch.randint(len(words), (n - 2,), generator=rng)) for n in lengths]


def test_prompts_of_the_lengths_of_i2p_are_cut_off_as_the_pipeline_does():
    pipe, texts = pipeline_with_clip_tokenizer(), i2p_like_prompts()
    assert len(pipe.tokenizer) == 49_408
    longer = too_long(pipe, texts)
    assert len(longer) == 185
    bank = encode_prompts(pipe, texts)
    rows = bank.numbers(texts)
    padded = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(bank.ids[rows], padded)
    assert bank.lengths[rows[longer]].tolist() == [77] * 185
    for i in longer[:3]:
        own, _ = pipe.encode_prompt(texts[i], "cpu", 1, do_classifier_free_guidance=False)
        torch.testing.assert_close(bank.embeddings[rows[i]], own[0])
        cut = " ".join(texts[i].split()[:75])  # every word is one token
        assert torch.equal(sample_prompts(pipe, [texts[i]], steps=2), sample_prompts(pipe, [cut], steps=2))


def test_training_from_scratch_is_refused():
    with pytest.raises(UserError, match="not retrained"):
        text_task().train(text_task().retain, seed=0)


def test_tokens_of_the_concept_are_those_that_the_replacement_lacks():
    task = text_task()
    ids = pipeline().tokenizer.convert_ids_to_tokens(task.prompts.ids[1][task.tokens("concept")[1]])
    assert ids == ["seven</w>"]
    assert task.tokens("all")[1].sum() == 5
    assert task.tokens("padded")[1].sum() == 11


def test_sampling_agrees_with_the_pipeline_of_diffusers():
    from diffusers import DDIMScheduler

    pipe = copy.copy(pipeline())
    drawn = sample_prompts(pipe, [SEVEN], seed=3, guidance=2.0, steps=6)
    whole = with_network(pipe, pipe.unet)
    whole.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    whole.set_progress_bar_config(disable=True)
    noise = torch.randn((4, 4, 4), generator=generator(3, "sample", 0))[None]
    expected = whole(SEVEN, latents=noise, num_inference_steps=6, guidance_scale=3.0, output_type="pt").images
    assert ((expected * 255).round() - drawn.float()).abs().max() <= 1


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # the library's own pipeline
def test_sampling_with_lms_agrees_with_the_pipeline_of_diffusers():
    from diffusers import LMSDiscreteScheduler

    pipe = copy.copy(pipeline())
    drawn = sample_prompts(pipe, [SEVEN], seed=3, guidance=2.0, steps=8, sampler="lms")
    whole = with_network(pipe, pipe.unet)
    # As the released code builds it.
    whole.scheduler = LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    whole.set_progress_bar_config(disable=True)
    noise = torch.randn((4, 4, 4), generator=generator(3, "sample", 0))[None]
    expected = whole(SEVEN, latents=noise, num_inference_steps=8, guidance_scale=3.0, output_type="pt").images
    assert ((expected * 255).round() - drawn.float()).abs().max() <= 1
    other = sample_prompts(pipe, [SEVEN], seed=3, guidance=2.0, steps=8)
    assert not torch.equal(drawn, other)
    with pytest.raises(UserError, match="eta must be 0 for sampler lms"):
        sample_prompts(pipe, [SEVEN], sampler="lms", eta=0.5)
    with pytest.raises(UserError, match="unknown sampler"):
        sample_prompts(pipe, [SEVEN], sampler="euler")


def test_an_image_does_not_depend_on_its_batch():
    pipe = pipeline()
    texts = [SEVEN, THREE, FIVE, "", SEVEN]
    drawn = [sample_prompts(pipe, texts, seed=1, steps=3, batch_size=size) for size in (8, 8, 2)]
    assert drawn[0].shape == (5, 3, 8, 8) and drawn[0].dtype == torch.uint8
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0].int() - drawn[2].int()).abs().max() <= 1
    alone = sample_prompts(pipe, [SEVEN], streams=[4], seed=1, steps=3)
    assert (alone[0].int() - drawn[0][4].int()).abs().max() <= 1
    embedded = sample_prompts(
        pipe, encode_prompts(pipe, [THREE]).embeddings[1:], streams=[1], seed=1, steps=3
    )
    assert (embedded[0].int() - drawn[0][1].int()).abs().max() <= 1
    with pytest.raises(UserError, match="5 prompts"):
        sample_prompts(pipe, texts, streams=[1])


def test_the_safety_checker_sees_the_images_and_blackens_what_it_flags(caplog):
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 1}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    seen = []

    class Noting(CLIPImageProcessor):
        def __call__(self, images, **more):
            seen.extend(images)
            return super().__call__(images, **more)

    size = {"height": 8, "width": 8}
    processor = Noting(size=size, crop_size=size, do_center_crop=False)
    parts = {**pipeline().components, "safety_checker": checker, "feature_extractor": processor}
    pipe = type(pipeline())(**parts)
    kept = sample_prompts(pipeline(), [SEVEN, THREE], steps=2)
    checker.concept_embeds_weights.fill_(2.0)  # no cosine reaches that
    assert torch.equal(sample_prompts(pipe, [SEVEN, THREE], steps=2), kept)
    looked_at = torch.stack([pil_to_tensor(image) for image in seen])
    assert (looked_at.int() - kept.int()).abs().max() <= 1  # the pictures as drawn, neither paler nor darker
    checker.concept_embeds_weights.fill_(-2.0)  # and every one is above this
    assert not sample_prompts(pipe, [SEVEN, THREE], steps=2).any()
    assert not caplog.records


def test_a_folder_holds_the_pipeline(folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    model = unlearned()
    written = save_pipeline(pipeline(), model, tmp_path / "new")
    again = load_pipeline(written)
    assert same(again.unet, model)
    assert same(again.vae, pipeline().vae) and same(again.text_encoder, pipeline().text_encoder)
    assert again.tokenizer(SEVEN).input_ids == pipeline().tokenizer(SEVEN).input_ids
    assert again.safety_checker is None
    assert same(StableDiffusionPipeline.from_pretrained(written, local_files_only=True).unet, model)
    assert same(pipeline().unet, load_pipeline(folder).unet)


def test_half_precision_is_read_as_such(folder):
    assert load_pipeline(folder, dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_a_delta_restores_the_weights_to_the_last_bit(tmp_path):

    task = text_task()
    mask = random_mask(dict(task.model.named_parameters()), keep=0.5, rng=torch.Generator().manual_seed(0))
    model = unlearned(mask=mask)
    file = save_delta(model, task.model, tmp_path / "delta.safetensors", note={"method": "rl"})
    again = load_delta(file, task.model)
    assert same(again, model) and weights_digest(again) == weights_digest(model)
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    values = sum(w.numel() for w in model.parameters())
    assert (
        file.stat().st_size < (0.5 * 4 + 1 / 8) * values + 60_000
    )  # and names, which a small network has many of
    full = save_delta(unlearned(), task.model, tmp_path / "full.safetensors")
    assert same(load_delta(full, task.model), unlearned())


def test_a_delta_of_another_model_is_refused(tmp_path):
    file = save_delta(unlearned(), text_task().model, tmp_path / "delta.safetensors")
    with pytest.raises(UserError, match="another network"):
        load_delta(file, unlearned())
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_delta(file, text_task().model)
    file.write_bytes(content[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_delta(file, text_task().model)
    with pytest.raises(UserError, match="no file"):
        load_delta(tmp_path / "none.safetensors", text_task().model)


def test_deltas_keep_signed_zeros(tmp_path):
    before, after = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        before.weight.copy_(torch.tensor([[0.0, 1.0]]))
        after.weight.copy_(torch.tensor([[-0.0, 1.0]]))
    found = load_delta(save_delta(after, before, tmp_path / "d"), before)
    assert torch.signbit(found.weight).tolist() == [[True, False]]


SCHEDULE = "scheduler/scheduler_config.json"


def without(file, part):
    kept = {name: w for name, w in load_file(file).items() if part not in name}
    save_file(kept, file, metadata={"format": "pt"})


def test_a_network_without_its_pipeline_is_named_as_such(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(
        UserError, match="holds a UNet2DConditionModel alone and no pipeline: give the folder"
    ):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda f: (f / "unet/config.json").unlink(), "unet/config.json is missing"),
        (lambda f: (f / "unet/config.json").write_text("{"), "unet/config.json is damaged"),
        (
            lambda f: says(f / "unet/config.json", "norm_eps", "NaN"),
            r"config.json is damaged \(NaN is not JSON",
        ),
        (lambda f: says(f / "vae/config.json", "scaling_factor", "Infinity"), "vae/config.json is damaged"),
        (lambda f: says(f / "text_encoder/config.json", "dropout", "-1e999"), r"\(-1e999 is not JSON"),
        (lambda f: says(f / SCHEDULE, "beta_end", "NaN"), "scheduler_config.json is damaged"),
        (lambda f: says(f / SCHEDULE, "beta_end", "Infinity"), "schedule of noise in .* is not finite"),
        (
            lambda f: without(f / "unet/diffusion_pytorch_model.safetensors", "conv_out"),
            "UNet2DConditionModel .*conv_out",
        ),
        (
            lambda f: without(f / "text_encoder/model.safetensors", "layers.0.mlp.fc1.bias"),
            "weights in .*text_encoder do not match .*layers.0.mlp.fc1.bias is missing",
        ),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), "vae/diffusion_pytorch_model"),
        (lambda f: cut(f / "unet/diffusion_pytorch_model.safetensors"), "truncated"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer/vocab.json is missing"),
        (lambda f: rename(f, "_class_name", "KandinskyPipeline"), "is a KandinskyPipeline"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(broken, harm, message):
    harm(broken)
    with pytest.raises(UserError, match=message):
        load_pipeline(broken)


def says(path, name, value):
    config = json.loads(path.read_text()) | {name: "HERE"}
    path.write_text(json.dumps(config).replace('"HERE"', value))


def test_infinity_where_diffusers_writes_it_is_no_damage(broken):
    says(broken / SCHEDULE, "lambda_min_clipped", "-Infinity")
    assert load_pipeline(broken).scheduler


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def rename(folder, key, value):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, key: value}))


def test_pickles_are_read_on_request_only_and_without_a_remark(broken, monkeypatch):
    file = broken / "unet/diffusion_pytorch_model.safetensors"
    torch.save(pipeline().unet.state_dict(), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(UserError, match=r"\.bin is a pickle"):
        load_pipeline(broken)
    remarks: list[str] = []
    heard = logging.Handler()
    monkeypatch.setattr(heard, "emit", lambda record: remarks.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [heard])
    assert same(load_pipeline(broken, pickle=True).unet, pipeline().unet)
    assert remarks == []


class Trap:
    def __reduce__(self):
        return (print, ("code of a pickle ran",))


def test_a_pickle_with_code_in_it_runs_nothing(broken, capsys):
    file = broken / "unet/diffusion_pytorch_model.safetensors"
    torch.save({"weight": Trap()}, file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(UserError, match="damaged"):
        load_pipeline(broken, pickle=True)
    assert "ran" not in capsys.readouterr().out


def test_a_model_that_is_not_here_names_the_command(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="hf download nobody/no-such-model"):
        load_pipeline("nobody/no-such-model")
    with pytest.raises(UserError, match="there is no folder"):
        load_pipeline("./nowhere/at/all")


def predicting(what):
    pipe = with_network(pipeline(), pipeline().unet)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=what)
    given = {"forget": (images(1), [SEVEN]), "retain": (images(1), [THREE]), "replacement": THREE}
    return text_to_image_task(pipe, **given)


def test_a_network_that_predicts_velocities_is_trained_on_velocities():
    task = predicting("v_prediction")
    batch = next(iter(task.retain))
    noisy, times, target = task.noised(batch[0], torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    torch.randint(0, 1000, (1,), generator=rng)
    clean = task.clean(batch[0], rng)
    noise = torch.randn(clean.shape, generator=rng)
    torch.testing.assert_close(target, task.schedule.get_velocity(clean, noise, times))
    found = task.loss(task.model, batch, torch.Generator().manual_seed(3))
    predicted = task.model(noisy, times, encoder_hidden_states=task.condition(batch[1])).sample
    assert found.item() == pytest.approx(F.mse_loss(predicted, target).item(), rel=1e-4)


def test_a_network_that_predicts_images_is_refused():
    with pytest.raises(UserError, match="'sample'"):
        predicting("sample")


def test_grey_images_are_resized_to_three_channels():
    assert fitted(images(2), 16).shape == (2, 3, 16, 16)
    assert encode_images(pipeline(), images(0)).shape == (0, 8, 4, 4)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (5, 9)])
def test_pictures_are_cut_to_a_square_and_not_squashed(shape):
    from torchvision.transforms.v2.functional import center_crop, resize

    picture = torch.randint(0, 256, (3, 3, *shape), generator=torch.Generator().manual_seed(0)).byte()
    expected = center_crop(resize(picture, 6, antialias=True), [6, 6])
    assert (fitted(picture, 6).int() - expected.int()).abs().max() <= 1
    # A square in the middle stays a square: squashed, it would become a rectangle.
    square = torch.zeros(1, 3, 16, 32, dtype=torch.uint8)
    square[:, :, 4:12, 12:20] = 255
    marked = fitted(square, 8)[0, 0] > 127
    assert marked.any(0).sum() == marked.any(1).sum() == 4


def test_large_pictures_are_encoded_and_decoded_a_few_at_a_time(monkeypatch):
    pipe, seen = pipeline(), []
    whole = encode_images(pipe, images(7))
    drawn = decode_latents(pipe, whole.chunk(2, dim=1)[0])
    monkeypatch.setattr("salun_core.models.text_to_image.pipelines.PIXELS", 2 * 8 * 8)
    for name in ("encode", "decode"):
        own = getattr(pipe.vae, name)

        def noting(given, *more, own=own, **named):
            seen.append(len(given))
            return own(given, *more, **named)

        monkeypatch.setattr(pipe.vae, name, noting)
    torch.testing.assert_close(encode_images(pipe, images(7)), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decode_latents(pipe, whole.chunk(2, dim=1)[0]), drawn, rtol=1e-4, atol=1e-5)
    assert seen == [2, 2, 2, 1] * 2


def test_the_tokenizer_keeps_its_words_whole_and_cuts_others():
    tokenizer = build_tokenizer(["seven", "even", "of"], length=10)
    cut_up = [
        tokenizer.convert_ids_to_tokens(tokenizer(t).input_ids)[1:-1] for t in ("seven of even", "sevne")
    ]
    assert cut_up[0] == ["seven</w>", "of</w>", "even</w>"]
    assert "".join(cut_up[1]) == "sevne</w>" and len(cut_up[1]) > 1
    assert build_tokenizer(["of", "even", "seven"], length=10).get_vocab() == tokenizer.get_vocab()


DAMAGED = {
    "model_index.json": ({"vae": {"a": 1}}, {"text_encoder": -1}, {"tokenizer": [None, None]}),
    "unet/config.json": (
        {"sample_size": None},
        {"block_out_channels": "x"},
        {"layers_per_block": 10**9},
        {"attention_head_dim": 0},
        {"mid_block_scale_factor": [1]},
    ),
    "vae/config.json": ({"block_out_channels": []}, {"scaling_factor": "x"}, {"layers_per_block": -1}),
    "scheduler/scheduler_config.json": ({"beta_start": "x"}, {"num_train_timesteps": [1]}),
    "tokenizer/tokenizer_config.json": ({"model_max_length": "x"}, {"pad_token": None}),
}
TEXTS = ("", "[]", "3", "{", "[" * 5000, "\ufeff{}")


@pytest.mark.parametrize(
    ("file", "damage"), [(file, d) for file, each in DAMAGED.items() for d in (*each, *TEXTS)]
)
def test_a_damaged_configuration_of_a_pipeline_is_one_sentence(file, damage, tmp_path):
    folder = shutil.copytree(project_root() / "data" / "models" / "tiny-sd", tmp_path / "sd")
    text = (folder / file).read_text()
    (folder / file).write_text(damage if isinstance(damage, str) else json.dumps(json.loads(text) | damage))
    with pytest.raises(UserError) as caught:
        load_pipeline(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
