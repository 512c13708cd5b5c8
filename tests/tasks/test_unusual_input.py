"""Models and loaders of every kind: each works, or is refused in one sentence before anything is trained on it."""

import threading
import warnings

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn.utils import prune

from salun_core import METHODS, classification_task, diffusion_task, evaluate, saliency_mask
from salun_core.errors import UserError
from salun_core.models.diffusion.unet import build_unet, noise_schedule


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )


def batch(labels=(0, 1, 2, 0), size=6, channels=1):
    rng = torch.Generator().manual_seed(size)
    return torch.rand(len(labels), channels, size, size, generator=rng), torch.tensor(labels)


def spoilt(value):
    images, labels = batch()
    images[1, 0, 0, 0] = value
    return images, labels


WHOLE = [batch(), batch((2, 2, 1))]


def ten_lines(model=None, forget=WHOLE, retain=WHOLE, **settings):
    """Mask, unlearning and measuring, as in the README."""
    model = network() if model is None else model
    task = classification_task(model, forget=forget, retain=retain)
    mask = saliency_mask(model, forget, task.loss)
    unlearned = METHODS["salun"](task, mask=mask, epochs=1, **settings)
    evaluate(unlearned.model, forget=forget, retain=retain)
    return unlearned


LATER = {
    "label 7, but the model has classes 0 to 2": batch((0, 7)),
    "label -1, but the model has classes 0 to 2": batch((0, -1)),
    "label -100, but": batch((0, -100)),
    r"labels torch.float32 \(4,\)": (batch()[0], torch.rand(4)),
    r"labels torch.int64 \(4, 1\)": (batch()[0], torch.zeros(4, 1, dtype=torch.int64)),
    r"cannot read the images \(4 x 3 x 6 x 6\)": batch(channels=3),
    "images of int64: give bytes": ((batch()[0] * 255).long(), batch()[1]),
    "images of int16: give bytes": ((batch()[0] * 255).short(), batch()[1]),
    "NaN or infinite pixels": spoilt(float("nan")),
    "NaN or infinite": spoilt(float("inf")),
    "a batch without images": (torch.empty(0, 1, 6, 6), torch.empty(0, dtype=torch.int64)),
}


@pytest.mark.parametrize("message", LATER)
@pytest.mark.parametrize("role", ["forget", "retain"])
def test_a_bad_batch_is_refused_wherever_it_comes(message, role):
    with pytest.raises(UserError, match=message):
        ten_lines(**{role: [batch(), LATER[message]]})


@pytest.mark.parametrize("message", LATER)
def test_a_bad_first_batch_is_refused_when_the_task_is_made(message):
    with pytest.raises(UserError, match=message.replace("read the images ", "read the images of forget ")):
        classification_task(network(), forget=[LATER[message], batch()], retain=WHOLE)


def test_a_loader_that_gives_less_than_its_length_is_refused():
    class Short(list):
        def __len__(self):
            return 5

    task = classification_task(network(), forget=Short(WHOLE), retain=WHOLE)
    with pytest.raises(UserError, match=r"fewer batches than its len\(\) says"):
        METHODS["rl"](task, epochs=1, order="interleaved")


def weight_normed():
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many networks
        nn.utils.weight_norm(net[0])
    return net


def pruned():
    net = network()
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    return net


def spectral():
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.spectral_norm(net[0])
    return net


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.last = network(), None

    def forward(self, images):
        self.last = self.net(images)
        return self.last


@pytest.mark.parametrize("make", [weight_normed, pruned, spectral, Remembers])
def test_networks_that_keep_what_they_computed_from_their_weights_are_unlearned(make):
    model = make()
    model(batch()[0])
    before = {name: w.clone() for name, w in model.named_parameters()}
    after = dict(ten_lines(model).model.named_parameters())
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_by_the_caller(switch):
    model, expected = network(), ten_lines(network())
    with switch():
        found = ten_lines(model)
        assert not torch.is_grad_enabled()
    assert found.losses == expected.losses


def test_images_made_in_inference_mode_are_used():
    with torch.inference_mode():
        made = [batch(), batch((2, 2, 1))]
    assert ten_lines(forget=made).losses == ten_lines().losses


def made_in_inference_mode():
    with torch.inference_mode():
        return network()


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.lock = network(), threading.Lock()

    def forward(self, images):
        return self.net(images)


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, images):
        return self.net(images).detach()


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.phase = network(), nn.Parameter(torch.zeros(3, dtype=torch.complex64))

    def forward(self, images):
        return self.net(images) + self.phase.abs()


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(network())


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(network(), batch()[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (scripted, "traced or scripted by torch.jit"),
        (traced, "traced or scripted by torch.jit"),
        (made_in_inference_mode, "made under torch.inference_mode"),
        (Locked, "cannot be copied"),
        (Cut, "no gradient comes back"),
        (Complex, r"complex weights \(phase\)"),
    ],
)
def test_models_whose_copy_cannot_be_trained_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        ten_lines(make())


@pytest.mark.parametrize("make", [traced, made_in_inference_mode])
def test_such_models_can_be_measured(make):
    assert evaluate(make(), forget=WHOLE, retain=WHOLE)["UA"].n == 7


def test_one_image_and_batchnorm_are_refused_with_the_remedy_which_works():
    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    with pytest.raises(UserError, match=r"larger batches, or bn_stats='freeze'"):
        ten_lines(net(), forget=[batch((1,))])
    ten_lines(net(), forget=[batch((1,))], bn_stats="freeze")


def test_boundary_expanding_refuses_a_last_layer_whose_weight_is_computed():
    net = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(36, 3)))
    with pytest.raises(UserError, match="remove its weight_norm"):
        METHODS["be"](classification_task(net, forget=WHOLE, retain=WHOLE))


def no_task(value):
    return METHODS["salun"](value)


def no_mask(value):
    return METHODS["salun"](classification_task(network(), forget=WHOLE, retain=WHOLE), mask=value)


def no_seed(value):
    return METHODS["ft"](classification_task(network(), forget=WHOLE, retain=WHOLE), seed=value)


def no_reference(value):
    return evaluate(network(), forget=WHOLE, retain=WHOLE, reference=value)


def no_loss(value):
    return saliency_mask(network(), WHOLE, value)


def no_share(value):
    return saliency_mask(network(), WHOLE, lambda model, b: model(b[0]).sum(), keep=value)


def no_build(value):
    return classification_task(network(), forget=WHOLE, retain=WHOLE, build=value)


def no_recipe(value):
    return classification_task(network(), forget=WHOLE, retain=WHOLE, recipe=value)


@pytest.mark.parametrize(
    "call", [no_task, no_mask, no_seed, no_reference, no_loss, no_share, no_build, no_recipe]
)
@pytest.mark.parametrize("value", ["x", 2.5])
def test_arguments_of_another_type_are_refused(call, value):
    with pytest.raises(UserError):
        call(value)


@pytest.mark.parametrize("kind", [torch.float32, torch.int64, None])
def test_a_mask_that_is_not_boolean_is_refused(kind):
    with pytest.raises(UserError, match=r"0\.weight is .*, not boolean"):
        no_mask({n: torch.ones_like(w, dtype=kind) for n, w in network().named_parameters()})


def test_a_mask_that_marks_nothing_is_refused():
    with pytest.raises(UserError, match="marks no weight"):
        no_mask({n: torch.zeros_like(w).bool() for n, w in network().named_parameters()})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1], reduction="none"),
            r"gives a \(4,\)",
        ),
        (lambda model, b: 1.0, "gives a float"),
        (lambda model, b: torch.tensor(1.0), "no gradient comes back"),
        (lambda model: 1.0, r"loss\(model, batch\) cannot be computed"),
    ],
)
def test_a_loss_of_another_form_is_refused(loss, message):
    with pytest.raises(UserError, match=message):
        saliency_mask(network(), WHOLE, loss)


def test_a_builder_that_builds_nothing_is_refused():
    task = classification_task(
        network(), forget=WHOLE, retain=WHOLE, build=lambda seed: None, recipe="digits"
    )
    with pytest.raises(UserError, match="build returned a NoneType"):
        METHODS["retrain"](task)


def test_a_builder_that_takes_no_seed_is_refused_before_anything_is_computed():
    with pytest.raises(UserError, match=r"build cannot be called with a seed \(too many positional"):
        classification_task(network(), forget=WHOLE, retain=WHOLE, build=lambda: network(), recipe="digits")


def unlearn_class(forget=None, scheduler=None, **settings):
    unet = build_unet(classes=3, channels=1, size=8, widths=[8, 8], seed=0)
    good = [batch(size=8)]
    task = diffusion_task(
        unet,
        noise_schedule(steps=10) if scheduler is None else scheduler,
        forget=good + (forget or []),
        retain=good,
        **settings,
    )
    mask = saliency_mask(unet, good + (forget or []), task.loss)
    return METHODS["salun"](task, mask=mask, epochs=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scheduler": {}}, "the scheduler is a dict"),
        ({"scheduler": "ddpm"}, "the scheduler is a str"),
        ({"scheduler": DDPMScheduler}, "the scheduler is a type: .* such as DDPMScheduler\\(\\)"),
        ({"kind": "classification"}, "unknown setting of a diffusion task 'kind'"),
        ({"recipe": 3}, "recipe is a int"),
        ({"mask_draws": None}, "mask_draws must be at least 1"),
        ({"forget": [batch((0, 3), size=8)]}, "label 3, but"),
        ({"forget": [(batch(size=8)[0] - 1, batch()[1])]}, "instead of 0 to 1"),
        ({"forget": [(batch(size=8)[0] * float("nan"), batch()[1])]}, "NaN or infinite"),
        ({"forget": [batch(size=8, channels=3)]}, r"images .*\(4 x 3 x 8 x 8\)"),
    ],
)
def test_what_a_class_conditional_network_cannot_use_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        unlearn_class(**wrong)


def test_a_scheduler_that_is_missing_is_refused():
    unet = build_unet(classes=3, channels=1, size=8, widths=[8, 8], seed=0)
    with pytest.raises(UserError, match="the scheduler is a NoneType"):
        diffusion_task(unet, None, forget=WHOLE, retain=WHOLE)


def test_a_generator_unlearns_inside_no_grad():
    with torch.no_grad():
        assert unlearn_class().samples


@pytest.mark.parametrize("name", ["SalUn", "SALUN", "salum"])
def test_an_unknown_method_names_the_nearest_and_all(name):
    with pytest.raises(
        UserError, match=r"did you mean 'salun'\? there are original, retrain, .*salun_soft"
    ) as raised:
        METHODS[name]
    assert isinstance(raised.value, KeyError) and METHODS.get(name) is None
