import copy
import json
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import digit_batches, same
from safetensors.torch import load_file, save_file
from torch import nn

from salun_core.data import load_dataset
from salun_core.data.downloads import DOWNLOADS
from salun_core.errors import UserError
from salun_core.methods import METHODS, methods_for
from salun_core.methods.contract import check_method
from salun_core.metrics.generation import frechet as fr
from salun_core.metrics.generation.frechet import (
    Moments,
    classifier_features,
    drawn,
    frechet_distance,
    inception_file,
)
from salun_core.metrics.generation.recognition import recognise
from salun_core.models import build_model
from salun_core.models.diffusion.sampling import sample, trajectory
from salun_core.models.diffusion.unet import (
    build_unet,
    class_count,
    guided_noise,
    load_diffusion,
    noise_schedule,
    predict_noise,
    save_diffusion,
)
from salun_core.saliency import density, random_mask, saliency_mask
from salun_core.tasks.base import Task
from salun_core.tasks.diffusion import DiffusionTask, alpha_on_means, diffusion_task, wrong_classes
from salun_core.tasks.diffusion_training import DiffusionRecipe, Paused, train_diffusion
from salun_core.tasks.noise_prediction import fixed_draws

pytestmark = pytest.mark.long

RECIPE = DiffusionRecipe(steps=40, lr=3e-3, batch_size=64, decline="cosine", warmup=5, ema=0.9)
DRIVEN = ["ft", "ga", "rl", "l1_sparse", "salun", "salun_soft", "esd", "erasediff"]
QUICK = {name: {"steps": 3, "lr": 1e-3} for name in DRIVEN}
for driven in ("rl", "salun", "salun_soft"):
    QUICK[driven]["order"] = "joint"


def tiny_unet(seed, **more):
    return build_unet(
        classes=10, channels=1, size=8, **{"widths": (8, 16), "layers": 1, "seed": seed, **more}
    )


@cache
def tiny_task():
    """60 images of a 3 to forget, 440 others to keep; a network of 50,000 weights. Tests must not change it."""
    data = load_dataset("digits")
    of_three = data.labels == 3
    ids = {"forget": of_three.nonzero().view(-1)[:60], "retain": (~of_three).nonzero().view(-1)[:440]}
    parts = {role: digit_batches(rows) for role, rows in ids.items()}
    # digit_batches counts images in another order, so classes are set by hand.
    parts = {
        role: replace(b, images=data.images[ids[role]], labels=data.labels[ids[role]])
        for role, b in parts.items()
    }
    everything = replace(
        parts["retain"],
        images=torch.cat([parts[r].images for r in parts]),
        labels=torch.cat([parts[r].labels for r in parts]),
        ids=torch.cat([parts[r].ids for r in parts]),
    )
    task = DiffusionTask(tiny_unet(0), parts, tiny_unet, RECIPE, noise_schedule())
    model, _ = task.train(everything, seed=0)
    return replace(task, model=model)


def a_batch(n=12):
    task = tiny_task()
    images, labels = next(iter(task.retain))
    return images[:n], labels[:n]


def run(name, task=None, **more):
    return METHODS[name](task or tiny_task(), **QUICK.get(name, {}), **more)


def test_the_task_offers_what_methods_ask_for():
    assert isinstance(tiny_task(), Task)
    assert set(methods_for("diffusion")) == {*DRIVEN, "original", "retrain"}


@pytest.mark.parametrize("name", methods_for("diffusion"))
def test_every_method_keeps_the_contract(name):
    short = replace(tiny_task(), recipe=replace(RECIPE, steps=4))  # that Retrain trains anew, each time
    check_method(METHODS[name], short, maskable=name in DRIVEN, **QUICK.get(name, {}))
    assert same(run(name).model, tiny_task().model) == (name == "original")


@pytest.mark.parametrize("name", DRIVEN)
def test_weights_outside_the_mask_are_bit_identical(name):
    task = tiny_task()
    mask = random_mask(dict(task.model.named_parameters()), keep=0.4, rng=torch.Generator().manual_seed(1))
    changed = dict(run(name, mask=mask, seed=1).model.named_parameters())
    moved = 0
    for key, weight in task.model.named_parameters():
        assert torch.equal(changed[key][~mask[key]], weight[~mask[key]]), key
        moved += int((changed[key] != weight).sum())
    assert moved > 0


def test_salun_is_relabelling_with_a_saliency_mask_and_nothing_else():
    task = tiny_task()
    mask = saliency_mask(task.model, task.forget, task.loss, keep=0.3)
    assert density(mask) == pytest.approx(0.3, abs=1e-4)
    assert same(run("salun", keep=0.3, seed=5).model, run("rl", mask=mask, seed=5).model)


@pytest.mark.parametrize(("guidance", "draws"), [(0.0, 1), (2.0, 3)])
def test_the_mask_depends_neither_on_batch_size_nor_on_order(guidance, draws):
    task = replace(tiny_task(), mask_guidance=guidance, mask_draws=draws)
    forget = task.forget.subset(torch.arange(24))
    shuffled = forget.subset(torch.randperm(24)).resized(7)
    a, b = (saliency_mask(task.model, each, task.loss) for each in (forget, shuffled))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_guidance_changes_the_mask():
    plain, guided = (
        saliency_mask(task.model, task.forget, task.loss)
        for task in (tiny_task(), replace(tiny_task(), mask_guidance=2.0))
    )
    assert any(not torch.equal(plain[name], guided[name]) for name in plain)


def test_fixed_draws_are_spread_over_the_diffusion():
    image = a_batch()[0][0]
    places, noise = fixed_draws(image, draws=10)
    assert (places * 10).long().tolist() == list(range(10))
    assert noise.shape == (10, 1, 8, 8)
    again, _ = fixed_draws(image.double(), draws=10)  # masks are made in double precision
    assert torch.equal(places, again)
    assert not torch.equal(places, fixed_draws(a_batch()[0][1], draws=10)[0])


def test_the_loss_is_the_noise_prediction_error_written_out():
    task = tiny_task()
    images, labels = a_batch()
    found = task.loss(task.model, (images, labels), torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    times = torch.randint(0, 1000, (12,), generator=rng)
    noise = torch.randn(12, 1, 8, 8, generator=rng)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[times].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * (2 * images - 1) + (1 - kept).sqrt() * noise
    errors = [
        (task.model(noisy[i : i + 1], times[i], class_labels=labels[i : i + 1]).sample - noise[i]) ** 2
        for i in range(12)
    ]
    assert found.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def test_antithetic_time_steps_come_in_pairs():
    task = replace(tiny_task(), antithetic=True)
    _, times, _ = task.noised(a_batch(11)[0], torch.Generator().manual_seed(0))
    assert len(times) == 11
    assert (times[:5] + times[6:] == 999).all()


def test_only_training_drops_classes_and_about_as_many_as_asked():
    task = tiny_task()
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(10).repeat(1000)
    dropped = task.dropped(classes, rng, 0.1)
    gone = dropped != classes
    assert (dropped[gone] == 10).all()
    assert gone.float().mean() == pytest.approx(0.1, abs=0.015)
    assert torch.equal(task.dropped(classes, rng, 0.0), classes)


def test_the_null_class_is_no_wrong_answer():
    labels = torch.arange(10).repeat(500)
    following = wrong_classes(labels, 10, torch.Generator(), how="next")
    assert torch.equal(following, (labels + 1) % 10)
    drawn = wrong_classes(labels, 10, torch.Generator().manual_seed(0), how="random")
    assert (drawn != labels).all() and drawn.max() == 9 and drawn.min() == 0
    assert len((drawn[labels == 3]).unique()) == 9
    assert class_count(tiny_task().model) == 10  # eleven conditions, ten classes


@pytest.mark.parametrize("target", ["original", "current"])
def test_relabelling_aims_at_the_prediction_for_the_next_class(target):
    task = replace(tiny_task(), target=target)
    model = tiny_unet(7).eval()
    nn.init.normal_(model.conv_out.weight)
    images, labels = a_batch()
    value = task.relabel_loss(model, (images, labels), torch.Generator().manual_seed(2))
    noisy, times, _ = task.noised(images, torch.Generator().manual_seed(2))
    source = task.model if target == "original" else model
    goal = predict_noise(source, noisy, times, (labels + 1) % 10).detach()
    expected = F.mse_loss(predict_noise(model, noisy, times, labels), goal)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    # The target is a constant: same gradient as with the goal computed beforehand.
    found = torch.autograd.grad(value, list(model.parameters()))
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_relabelling_unlearns_the_class():
    model = copy.deepcopy(tiny_task().model)
    with torch.no_grad():
        model.class_embedding.weight *= 10  # a network that tells classes apart, without training one
    task = replace(tiny_task(), model=model)
    batch = next(iter(task.forget))

    def distance(model):
        return task.relabel_loss(model, batch, torch.Generator().manual_seed(0)).item()

    changed = METHODS["rl"](task, steps=15, lr=2e-3, order="joint", alpha=0.1).model
    assert distance(changed) < 0.5 * distance(task.model)


def test_alpha_of_the_released_code_on_equal_terms():
    assert alpha_on_means(1e-3, (3, 32, 32)) == pytest.approx(3.072)
    forget, retain = torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8)  # squared errors
    released = forget.mean() + 0.01 * retain.sum(dim=(1, 2, 3)).mean()
    ours = forget.mean() + alpha_on_means(0.01, (3, 8, 8)) * retain.mean()
    assert ours.item() == pytest.approx(released.item())


def test_esd_aims_away_from_the_class():
    task = tiny_task()
    one = replace(task, parts={**task.parts, "forget": task.forget.resized(1000)})
    found = METHODS["esd"](one, steps=1, lr=1e-9, eta=2.0, seed=6).losses[0]
    from salun_core.rng import generator

    rng = generator(6, "esd")
    images, labels = next(one.forget.shuffled(rng))
    noisy, times, _ = task.noised(images, rng)
    null = torch.full_like(labels, 10)
    with torch.no_grad():
        none, of_class = (predict_noise(task.model, noisy, times, c) for c in (null, labels))
    # At the start the model is the original, so it is off by (1 + eta) times what the class adds.
    assert found == pytest.approx(((1 + 2.0) * (of_class - none)).square().mean().item(), rel=1e-3)
    with pytest.raises(UserError, match="eta"):
        METHODS["esd"](task, eta=-1)


def test_gradients_are_limited_before_each_step():
    task = replace(tiny_task(), recipe=replace(RECIPE, clip=0.5))
    model = copy.deepcopy(task.model)
    optimizer = task.optimizer(model, 1e-3)
    assert type(optimizer) is torch.optim.Adam
    (100 * task.loss(model, a_batch(), torch.Generator().manual_seed(0))).backward()
    optimizer.step()
    norm = torch.stack([w.grad.norm() for w in model.parameters() if w.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_guidance_formula():
    task = tiny_task()
    noisy, times, _ = task.noised(a_batch()[0], torch.Generator().manual_seed(0))
    labels = a_batch()[1]
    with torch.no_grad():
        found = guided_noise(task.model, noisy, times, labels, null=10, guidance=2.0)
        of_class = predict_noise(task.model, noisy, times, labels)
        of_none = predict_noise(task.model, noisy, times, torch.full_like(labels, 10))
    torch.testing.assert_close(found, 3 * of_class - 2 * of_none, rtol=1e-4, atol=1e-5)


def test_sampling_repeats_and_an_image_does_not_depend_on_its_batch():
    task = tiny_task()
    labels = [0, 1, 2, 3, 10]
    drawn = [
        sample(task.model, task.schedule, labels, seed=3, steps=5, batch_size=size) for size in (64, 64, 2)
    ]
    assert drawn[0].dtype == torch.uint8 and drawn[0].shape == (5, 1, 8, 8)
    assert torch.equal(drawn[0], drawn[1])
    # Another batch size may round differently in the last bit, which moves a pixel by one level at most.
    assert (drawn[0].int() - drawn[2].int()).abs().max() <= 1
    alone = sample(task.model, task.schedule, [2], streams=[2], seed=3, steps=5)
    assert (drawn[0][2].int() - alone[0].int()).abs().max() <= 1
    other = sample(task.model, task.schedule, labels, seed=4, steps=5)
    assert not torch.equal(drawn[0], other)


def test_equal_streams_start_from_equal_noise():
    task = tiny_task()
    a, b = sample(task.model, task.schedule, [4, 4], streams=[9, 9], steps=4)
    assert (a.int() - b.int()).abs().max() <= 1
    noisy = sample(task.model, task.schedule, [4, 4], streams=[9, 9], steps=4, eta=1.0)
    assert (noisy[0].int() - noisy[1].int()).abs().max() <= 1
    assert (noisy[0].int() - a.int()).abs().max() > 1


def test_one_deterministic_step_written_out():
    task = tiny_task()
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[999]
    from salun_core.rng import generator

    noise = torch.randn((1, 8, 8), generator=generator(0, "sample", 0))[None]
    with torch.no_grad():
        found = predict_noise(task.model, noise, torch.tensor([999]), torch.tensor([4]))
    clean = ((noise - (1 - kept).sqrt() * found) / kept.sqrt()).clamp(-1, 1)
    expected = ((clean + 1) * 127.5).round().byte()
    drawn = sample(task.model, task.schedule, [4], guidance=0.0, steps=1)
    assert (drawn.int() - expected.int()).abs().max() <= 1


def test_a_trajectory_ends_in_the_sample():
    task = tiny_task()
    frames, steps = trajectory(task.model, task.schedule, [1, 2], steps=6, frames=3)
    assert frames.shape == (3, 2, 1, 8, 8)
    assert steps == [2, 4, 6]
    assert torch.equal(frames[-1], sample(task.model, task.schedule, [1, 2], steps=6))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [11]}, "classes 0 to 9"),
        ({"labels": [-1]}, "classes 0 to 9"),
        ({"steps": 0}, "steps"),
        ({"steps": 2000}, "1000"),
        ({"guidance": -1.0}, "guidance"),
        ({"streams": [1, 2]}, "streams"),
    ],
)
def test_sampling_refuses_what_makes_no_sense(given, message):
    task = tiny_task()
    with pytest.raises(UserError, match=message):
        sample(task.model, task.schedule, **{"labels": [1], **given})


def test_a_saved_model_comes_back_bit_identical_and_diffusers_reads_it(tmp_path):
    from diffusers import DDIMScheduler, DDPMPipeline

    task = tiny_task()
    folder = save_diffusion(task.model, task.schedule, tmp_path / "model")
    model, schedule = load_diffusion(folder, classes=10, channels=1, size=8)
    assert same(model, task.model) and not model.training
    assert dict(schedule.config)["beta_schedule"] == "linear"
    labels = [3, 4]
    assert torch.equal(
        sample(model, schedule, labels, steps=3), sample(task.model, task.schedule, labels, steps=3)
    )
    pipeline = DDPMPipeline.from_pretrained(folder, local_files_only=True)
    assert same(pipeline.unet, task.model)
    assert DDIMScheduler.from_pretrained(folder / "scheduler").config.num_train_timesteps == 1000


def test_folders_that_are_no_such_model_are_refused(tmp_path):
    task = tiny_task()
    with pytest.raises(UserError, match="there is no folder .*nothing"):
        load_diffusion(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a diffusers folder"):
        load_diffusion(tmp_path)
    folder = save_diffusion(task.model, task.schedule, tmp_path / "model")
    with pytest.raises(UserError, match="without its schedule of noise: put its files into unet/"):
        load_diffusion(folder / "unet")
    for name, wanted in (("classes", 100), ("channels", 3), ("size", 32)):
        with pytest.raises(UserError, match=f"{name} = "):
            load_diffusion(folder, **{name: wanted})
    weights = next((folder / "unet").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_diffusion(folder)
    weights.unlink()
    with pytest.raises(UserError, match="damaged"):
        load_diffusion(folder)
    weights.write_bytes(content)
    tensors = load_file(weights)
    save_file({n: w for n, w in tensors.items() if "conv_out" not in n}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="match its configuration: conv_out.bias is missing"):
        load_diffusion(folder)
    weights.write_bytes(content)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="UNet2DConditionModel"):
        load_diffusion(folder)
    (folder / "unet/config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_diffusion(folder)
    (folder / "unet/config.json").write_text(json.dumps({**config, "norm_eps": float("nan")}))
    with pytest.raises(UserError, match="damaged .NaN is not JSON"):
        load_diffusion(folder)
    always = save_diffusion(
        build_unet(classes=9, channels=1, size=8, widths=[8], seed=0), task.schedule, tmp_path / "nine"
    )
    with pytest.raises(UserError, match="none that stands for no class.*num_class_embeds = 11"):
        load_diffusion(always, classes=10)
    free = build_unet(classes=10, channels=1, size=8, widths=(8, 16), layers=1, seed=0)
    free.class_embedding = None
    with pytest.raises(UserError, match="the denoising network takes no class"):
        class_count(free)
    free.register_to_config(num_class_embeds=None)
    with pytest.raises(
        UserError, match=r"the network in \S+free takes no class, .*give one trained with num_class_embeds"
    ):
        load_diffusion(save_diffusion(free, task.schedule, tmp_path / "free"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 10, "widths": (8, 16, 16)}, "halved 2 times"),
        ({"size": 8, "widths": ()}, "halved"),
        ({"size": 8, "widths": (6, 12)}, "multiple of 4"),
    ],
)
def test_networks_that_cannot_take_the_images_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        build_unet(classes=10, channels=1, seed=0, **given)


@pytest.mark.parametrize(
    ("channels", "size", "widths"), [(3, 32, (8, 16, 16)), (1, 28, (8, 8, 8)), (3, 64, (8, 8))]
)
def test_networks_for_images_of_other_sizes(channels, size, widths):
    model = build_unet(
        classes=4, channels=channels, size=size, widths=widths, layers=1, attention=(16,), seed=0
    )
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        assert predict_noise(model, x, torch.tensor([0, 999]), torch.tensor([0, 4])).shape == x.shape


def test_an_interrupted_training_continues_to_the_same_weights(tmp_path):
    task = tiny_task()
    recipe = replace(RECIPE, steps=9)
    net = tiny_unet(1, dropout=0.2)
    file = tmp_path / "training.pt"

    def train(**more):
        return train_diffusion(copy.deepcopy(net), task.retain, task.loss, recipe=recipe, seed=2, **more)

    whole, losses = train()
    with pytest.raises(Paused, match="1 of 9"):
        train(checkpoint=file, deadline=0.0)
    with pytest.raises(UserError, match="other settings"):
        train(checkpoint=file, identity="another model")
    with pytest.raises(Paused, match="2 of 9"):
        train(checkpoint=file, deadline=0.0)
    resumed, again = train(checkpoint=file)
    assert same(whole, resumed)
    assert losses == again
    assert torch.load(file, weights_only=True)["step"] == 9
    finished, same_losses = train(checkpoint=file)  # which trains nothing any more
    assert same(whole, finished)
    assert same_losses == losses
    file.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UserError, match="damaged"):
        train(checkpoint=file)


def test_divergence_names_the_step_and_keeps_the_checkpoint(tmp_path):
    task = tiny_task()
    file = tmp_path / "training.pt"
    calls = 0

    def loss(model, batch, rng):
        nonlocal calls
        calls += 1
        return task.loss(model, batch, rng) * (float("nan") if calls > 3 else 1)

    with pytest.raises(UserError, match="diverged at step 4"):
        train_diffusion(tiny_unet(0), task.retain, loss, recipe=RECIPE, seed=0, checkpoint=file, every=0.0)
    assert torch.load(file, weights_only=True)["step"] == 3


def test_the_average_of_the_weights_is_what_training_returns():
    task = tiny_task()
    nets = [
        train_diffusion(
            tiny_unet(0), task.retain, task.loss, recipe=replace(RECIPE, steps=5, ema=ema), seed=0
        )[0]
        for ema in (0.0, 0.9)
    ]
    assert not same(*nets)
    # Step by step: decay min(ema, (1 + s) / (10 + s)) of the weights after each step.
    average = {name: w.clone() for name, w in tiny_unet(0).state_dict().items()}
    for s in range(1, 6):
        after = (
            train_diffusion(
                tiny_unet(0), task.retain, task.loss, recipe=replace(RECIPE, steps=5, ema=0.0), seed=0
            )[0]
            if s == 5
            else stopped_after(task, s)
        )
        decay = min(0.9, s / (9 + s))
        for name, weight in after.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * weight
    for name, weight in nets[1].state_dict().items():
        torch.testing.assert_close(weight, average[name], rtol=1e-4, atol=1e-6)


def stopped_after(task, steps):
    """The weights after the first ``steps`` of the training above."""
    kept = []

    def loss(model, batch, rng):
        kept.append(copy.deepcopy(model))
        return task.loss(model, batch, rng)

    train_diffusion(tiny_unet(0), task.retain, loss, recipe=replace(RECIPE, steps=5, ema=0.0), seed=0)
    return kept[steps]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"relabel": "nearest"}, "wrong classes"),
        ({"target": "retrained"}, "target"),
        ({"mask_draws": 0}, "mask_draws"),
    ],
)
def test_bad_settings_of_a_task_are_refused(wrong, message):
    task = tiny_task()
    with pytest.raises(UserError, match=message):
        DiffusionTask(task.model, task.parts, tiny_unet, RECIPE, task.schedule, **wrong)


def test_bad_recipes_are_refused():
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"ema": 1.0}, {"drop": 1.0}, {"decline": "linear"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            replace(RECIPE, **wrong)


class Corner(nn.Module):
    """Says of an image what its first pixel is, as a class."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(4))

    def forward(self, images):
        return self.fc(F.one_hot((images[:, 0, 0, 0] * 255).round().long(), 4).float())


def test_recognition_counts_what_was_asked_against_what_was_seen():
    asked = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3])
    seen = torch.tensor([0, 1, 1, 2, 1, 0, 2, 2, 3])
    images = seen.byte().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    found = recognise(Corner(), images, asked, classes=4, batch_size=4)
    assert found.counts.tolist() == [[1, 2, 1, 0], [1, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
    assert found.unlearning_accuracy(0).value == 0.75
    assert found.other_accuracy(0).value == pytest.approx(4 / 5)
    assert found.strays(0).value == pytest.approx(1 / 5)
    assert [s.n for s in found.class_accuracy()] == [4, 2, 2, 1]
    with pytest.raises(UserError, match="labels"):
        recognise(Corner(), images, asked[:3], classes=4)
    with pytest.raises(UserError, match="labels must lie"):
        recognise(Corner(), images, asked + 1, classes=4)


def distance(a, b):
    return frechet_distance(Moments.measured(a), Moments.measured(b))


def test_frechet_distance_of_known_sets():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 5))
    shift = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    assert distance(a, a) == pytest.approx(0, abs=1e-6)
    assert distance(a, a + shift) == pytest.approx((shift**2).sum(), rel=1e-6)
    # Spread doubled about the mean: tr(S + 4 S - 2 * 2 S) = tr(S).
    wide = 2 * (a - a.mean(0)) + a.mean(0)
    assert distance(a, wide) == pytest.approx(np.trace(np.cov(a, rowvar=False)), rel=1e-6)
    assert distance(wide, a) == pytest.approx(distance(a, wide), rel=1e-6)


def test_noise_is_far_from_digits_and_held_out_digits_are_near():
    data = load_dataset("digits")
    mean, std = data.moments
    judge = build_model(
        "resnet34", classes=10, channels=1, size=8, seed=0, width=4, mean=mean, std=std
    ).eval()
    features = classifier_features(judge)
    assert features(data.images[:7]).shape == (7, 32)
    train, test = features(data.images[: data.n_train]), data.images[data.n_train :]
    floor, again = distance(features(test[300:]), train), distance(features(test[:300]), train)
    noise = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    assert 0.3 < again / floor < 3
    assert distance(features(noise), train) > 5 * floor
    with pytest.raises(UserError, match="at least 2"):
        Moments.measured(features(test[:1]))


def test_moments_survive_being_stored():
    found = Moments.measured(np.random.default_rng(0).normal(size=(20, 3)))
    back = Moments.of(found.tensors("real"), "real")
    assert (back.mean == found.mean).all() and (back.covariance == found.covariance).all()
    assert back.n == found.n == 20


def test_a_draw_of_images_is_the_same_on_every_call():
    images = torch.arange(50).view(50, 1, 1, 1)
    rows = drawn(images, 10).flatten()
    assert torch.equal(rows, drawn(images, 10).flatten()) and torch.equal(rows, rows.sort().values)
    assert len(rows.unique()) == 10 and rows.max() > 10
    assert torch.equal(drawn(images, 99), images)


def test_missing_weights_of_inception_are_named_with_address_digest_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = DOWNLOADS["inception"].files[0]
    for given in (None, tmp_path / "weights.pth"):
        with pytest.raises(UserError, match="salun_core fetch inception") as refusal:
            inception_file(given)
        assert file.sha256 in str(refusal.value) and file.addresses[0] in str(refusal.value)
        assert str(given or tmp_path / "checkpoints" / file.name) in str(refusal.value)
    cached = tmp_path / "checkpoints" / file.name
    cached.parent.mkdir()
    cached.write_bytes(b"half a file")
    assert inception_file() == cached
    with pytest.raises(UserError, match="does not hold the weights"):
        fr.inception_features(cached)


def test_inception_features_from_a_file(tmp_path):
    weights = tmp_path / "inception.pth"
    torch.save(random_inception().state_dict(), weights)
    features = fr.inception_features(weights, batch_size=2)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    found = features(images)
    assert found.shape == (3, 2048)
    assert np.isfinite(found).all() and (found[0] != found[1]).any()


def random_inception():
    """pytorch-fid's network without its trained weights."""
    from pytorch_fid import inception

    net = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    net.Mixed_5b = inception.FIDInceptionA(192, pool_features=32)
    net.Mixed_5c = inception.FIDInceptionA(256, pool_features=64)
    net.Mixed_5d = inception.FIDInceptionA(288, pool_features=64)
    net.Mixed_6b = inception.FIDInceptionC(768, channels_7x7=128)
    net.Mixed_6c = inception.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6d = inception.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6e = inception.FIDInceptionC(768, channels_7x7=192)
    net.Mixed_7b = inception.FIDInceptionE_1(1280)
    net.Mixed_7c = inception.FIDInceptionE_2(2048)
    return net


@pytest.mark.parametrize("n", [300, 12])  # more images than features, and fewer
def test_the_distance_is_that_of_pytorch_fid(n):
    from pytorch_fid.fid_score import calculate_frechet_distance

    rng = np.random.default_rng(0)
    a, b = (Moments.measured(rng.normal(shift, 1 + shift, size=(n, 20))) for shift in (0.0, 0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    # For few images the library adds 1e-6 to a diagonal.
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-9 if n > 20 else 1e-3)


def test_the_distance_of_few_images_is_the_same_both_ways_and_zero_from_themselves():
    rng = np.random.default_rng(1)
    a, b = (Moments.measured(rng.normal(shift, 1, size=(n, 30))) for shift, n in ((0.0, 9), (0.5, 14)))
    assert a.factor.shape == (30, 8) and b.factor.shape == (30, 13)
    assert np.allclose(b.factor @ b.factor.T, b.covariance, rtol=0, atol=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(b, b) == pytest.approx(0, abs=1e-9)
    same = Moments.measured(np.ones((5, 30)))
    assert frechet_distance(b, same) == pytest.approx(((b.mean - 1) ** 2).sum() + np.trace(b.covariance))


def streamed(role):
    part = tiny_task().parts[role].resized(20)
    return [dict(zip(("pixel_values", "labels"), batch, strict=True)) for batch in part]


def test_a_task_from_loaders_gives_the_mask_of_the_images_in_memory():
    own = tiny_task()
    task = diffusion_task(own.model, own.schedule, forget=streamed("forget"), retain=streamed("retain"))
    raw = saliency_mask(own.model, streamed("forget"), task.loss, keep=0.5)
    in_memory = saliency_mask(own.model, own.forget.resized(20), own.loss, keep=0.5)
    assert all(torch.equal(raw[name], in_memory[name]) for name in raw)
    for name in DRIVEN:
        first, again = (METHODS[name](task, mask=raw, **QUICK[name]).model for _ in range(2))
        assert same(first, again)
        before, after = dict(own.model.named_parameters()), dict(first.named_parameters())
        assert all(torch.equal(before[key][~raw[key]], after[key][~raw[key]]) for key in raw)
        assert any(not torch.equal(before[key], after[key]) for key in raw)


def test_retraining_asks_for_a_recipe_and_builds_a_network_of_the_same_kind():
    own = tiny_task()
    given = {"forget": streamed("forget"), "retain": streamed("retain")}
    with pytest.raises(UserError, match="recipe="):
        METHODS["retrain"](diffusion_task(own.model, own.schedule, **given, target="current", bf16=True))
    few = DiffusionRecipe(steps=3, batch_size=8)
    new = METHODS["retrain"](diffusion_task(own.model, own.schedule, **given, recipe=few)).model
    assert new.config == own.model.config and not same(new, own.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": nn.DataParallel(tiny_unet(0))}, "give model.module"),
        ({"unet": nn.Conv2d(1, 1, 1)}, "takes no class"),
        ({"forget": [(torch.zeros(2, 1, 8, 8) - 1, torch.tensor([3, 3]))]}, "leave out normalisation"),
        (
            {"forget": [(torch.zeros(2, 1, 8, 8), torch.tensor([3, 10]))]},
            "label 10, but the last of .* 11 conditions means",
        ),
        (
            {"forget": [(torch.zeros(2, 1, 8, 8), torch.tensor([3, 11]))]},
            "label 11, but the model has classes 0 to 9",
        ),
        ({"retain": [(torch.zeros(2, 3, 8, 8), torch.tensor([3, 3]))]}, "cannot read the images of retain"),
        ({"retain": []}, "retain set holds no images"),
        ({"relable": "random"}, "did you mean 'relabel'"),
        ({"mask_draws": 0}, "mask_draws must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_a_denoising_network_is_refused(change, message):
    own = tiny_task()
    given = {"forget": streamed("forget"), "retain": streamed("retain"), "unet": own.model}
    with pytest.raises(UserError, match=message):
        diffusion_task(**{"scheduler": own.schedule, **given, **change})
