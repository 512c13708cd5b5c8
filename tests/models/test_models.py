import math
import subprocess
import sys

import pytest
import torch
from problems import same
from torch import nn

from salun_core.data import load_dataset
from salun_core.errors import UserError
from salun_core.models import MODELS, build_model, check_arch, modules_of, takes_width
from salun_core.models.classification.external import check_output
from salun_core.models.classification.resnet import Pointwise, ResNet18
from salun_core.models.classification.resnet6 import ResNet6
from salun_core.models.classification.resnet9 import ResNet9
from salun_core.models.classification.swin import patch_and_window, swin_tiny
from salun_core.models.classification.vgg import VGG16
from salun_core.models.classification.vgg6 import VGG6

MINE = """
import torch
from torch import nn

def linear(num_classes, in_channels=3, size=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * size * size, num_classes))

def colour_only(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(num_classes))

def anything(**settings):
    return linear(settings["num_classes"], size=settings.get("size", 8))

def with_width(num_classes, width=7):
    return nn.Sequential(nn.Conv2d(3, width, 8), nn.Flatten(), nn.Linear(width, num_classes))

def one_short(num_classes):
    return linear(num_classes - 1)

def two_answers(num_classes):
    class Two(nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), num_classes)
            return (logits, logits) if self.training else logits
    return Two()

def large_images_only(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 20), nn.Flatten(), nn.LazyLinear(num_classes))

def no_network(num_classes):
    return "a network"

def breaks(num_classes):
    raise RuntimeError("out of wool")

def no_classes():
    return nn.Identity()

constant = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MINE)
    (tmp_path / "broken_networks.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)


def build(arch, *, classes=10, channels=3, size=8, seed=0, width=None, mean=None, std=None):
    mean, std = mean or [0.5] * channels, std or [0.25] * channels
    return build_model(
        arch, classes=classes, channels=channels, size=size, seed=seed, width=width, mean=mean, std=std
    )


def weights(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: ResNet18(10), 11_173_962),
        (lambda: ResNet18(100), 11_220_132),
        # Convolutions 144 + 4,608 + 14,336, BatchNorms 96 + 192, linear layer 330.
        (lambda: ResNet6(10, channels=1), 19_706),
        (lambda: ResNet9(10), 6_573_130),  # as its usual implementations print
        # Convolutions 9 x 32,128, BatchNorms 2 x 448, linear layer 1,290.
        (lambda: VGG6(10), 291_338),
        # 13 convolutions without bias, 13 BatchNorms, one linear layer; summed by hand.
        (lambda: VGG16(10), 14_710_464 + 2 * 4_224 + 5_130),
        (lambda: swin_tiny(1000, size=224), 28_288_354),  # as torchvision states for its Swin-T
    ],
)
def test_weights_are_as_many_as_published(make, count):
    with torch.device("meta"):
        assert weights(make()) == count


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_takes_every_size_and_trains_all_its_weights(arch, size, channels):
    net = build(arch, classes=5, channels=channels, size=size, width=8)
    logits = net(torch.rand(3, channels, size, size))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None]
    assert idle == []


@pytest.mark.parametrize("arch", MODELS)
def test_the_seed_alone_decides_the_weights(arch):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build(arch, seed=3, width=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, build(arch, seed=3, width=8))
    assert not same(first, build(arch, seed=4, width=8))


def test_normalisation_is_the_first_layer_and_no_weight():
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 0.4]
    model = build("resnet18", width=4, mean=mean, std=std).eval()
    images = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    assert torch.allclose(model(images), model.net(by_hand), atol=1e-6)
    assert {"mean", "std"} <= set(model.state_dict())
    assert not {"mean", "std"} & {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("size", "left"), [(2, 1), (8, 1), (16, 1), (28, 1), (32, 1), (64, 2)])
def test_vgg_pools_five_times_or_until_one_pixel_is_left(size, left):
    net = VGG16(10, size=size, width=1)
    assert net.features(torch.zeros(1, 3, size, size)).shape[2:] == (left, left)


def test_swin_windows_tile_the_image_and_its_half():
    refused = 0
    for size in range(4, 257):
        try:
            patch, window = patch_and_window(size)
        except UserError as error:
            refused += 1
            patch_and_window(int(str(error).split()[-2]))  # what the message advises is taken
        else:
            assert size % (2 * patch * window) == 0
    assert refused > 100
    assert patch_and_window(224) == (4, 7)  # as published


def test_channels_last_changes_nothing_but_the_layout():
    model = build("resnet18", width=4).eval()
    images = torch.rand(4, 3, 8, 8)
    expected = model(images)
    moved = model.to(memory_format=torch.channels_last)
    assert torch.allclose(moved(images.to(memory_format=torch.channels_last)), expected, atol=1e-5)


def test_a_network_of_ones_own(mine):
    assert (
        build("my_networks:linear", channels=1).net[1].in_features == 64
    )  # in_channels and size were handed on
    assert build("my_networks:anything").net[1].in_features == 192  # ** alone is given num_classes only
    assert build("my_networks:with_width", width=5).net[0].out_channels == 5
    assert weights(build("my_networks:linear", width=5)) == 1930  # has no such setting
    assert modules_of("my_networks:linear") == ("my_networks",)
    assert takes_width("my_networks:with_width") and not takes_width("my_networks:linear")


def test_grey_images_reach_a_network_for_colour(mine):
    model = build("my_networks:colour_only", channels=1, mean=[0.2], std=[0.1]).eval()
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(images), model.net(((images - 0.2) / 0.1).repeat(1, 3, 1, 1)))


def test_torchvision_by_name():
    model = build("torchvision:shufflenet_v2_x0_5", classes=7, size=32)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert "torchvision.models.shufflenetv2" in modules_of("torchvision:shufflenet_v2_x0_5")


def test_trying_a_network_leaves_its_statistics_alone():
    model = build("resnet18", width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_output(model, "resnet18", classes=10, channels=3, size=8)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("arch", MODELS)
def test_modules_are_named_for_the_digest_of_the_code(arch):
    assert any(module.startswith("salun_core.models.") for module in modules_of(arch))
    assert check_arch(arch) is MODELS[arch]
    assert takes_width(arch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "resnet81"}, "unknown arch 'resnet81': did you mean 'resnet18'?"),
        (
            {"arch": "perceptron"},
            "choose resnet6, resnet9, resnet18, resnet34, vgg16, vgg6, swin_t, torchvision:NAME or package.module:function",
        ),
        ({"arch": "torchvision:resnet81"}, "did you mean 'resnet18'"),
        ({"arch": "torchvision:fcn_resnet50"}, "unknown torchvision classifier"),
        ({"arch": "my_networks:large_images_only"}, "does not take 3x8x8 images"),
        ({"arch": "not_there.at_all:net"}, "cannot be imported"),
        ({"arch": "broken_networks:net"}, "No module named 'a_module_that_is_not_there'"),
        ({"arch": "my_networks:nothing"}, "no attribute 'nothing'"),
        ({"arch": "my_networks:constant"}, "is a int: name a callable"),
        ({"arch": "my_networks:no_network"}, "returned a str instead of an nn.Module"),
        ({"arch": "my_networks:breaks"}, "out of wool"),
        ({"arch": "my_networks:no_classes"}, "num_classes=10"),
        ({"arch": "my_networks:one_short"}, "must give logits (2, 10) for 2 images, got (2, 9)"),
        ({"arch": "my_networks:two_answers"}, "in training mode, got tuple"),
        ({"arch": "swin_t", "size": 30}, "set image_size, to 28 say"),
        ({"arch": "resnet18", "width": 0}, "width must be at least 1, got 0"),
        ({"arch": "resnet18", "mean": [0.5]}, "mean has 1 values for images with 3 channels"),
    ],
)
def test_refusals(settings, message, mine):
    with pytest.raises(UserError) as refusal:
        build(**settings)
    assert message in str(refusal.value)


def test_wider_networks_grow_with_the_square():
    narrow, wide = (weights(build("resnet18", width=w)) for w in (8, 16))
    assert math.isclose(wide / narrow, 4, rel_tol=0.02)
    assert isinstance(build("resnet18", width=8).net.fc, nn.Linear)


def test_every_weight_of_the_smallest_network_learns_from_the_smallest_images():
    data = load_dataset("noisy_digits")
    images, labels = data.images[:100].float() / 255, data.labels[:100]

    def idle(arch, width):
        net = build(arch, channels=1, size=8, width=width)
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        return sum(int((p.grad == 0).sum()) for p in net.parameters()) / weights(net)

    assert idle("resnet6", 16) == 0
    assert idle("resnet18", 8) > 0.6  # its last stages see one pixel: kernels meet little but padding


@pytest.mark.parametrize("entering", [4, 8, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_is_that_of_torch_in_two_steps_or_one(entering, stride):
    plain = nn.Conv2d(entering, 6, 1, stride, bias=False)
    ours = Pointwise(entering, 6, stride)
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(3, entering, 5, 6)  # rows of planes, where torch computes it safely
    outs = [net(images) for net in (plain, ours)]
    assert torch.allclose(*outs, atol=1e-6)
    grads = [
        torch.autograd.grad(out.square().sum(), net.weight)[0]
        for out, net in zip(outs, (plain, ours), strict=True)
    ]
    assert torch.allclose(*grads, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("width", "size"), [(4, 8), (4, 64), (8, 64), (12, 96)])
def test_a_narrow_residual_network_survives_training_with_channels_last(width, size):
    code = (
        "import torch; from salun_core.models.classification.resnet import ResNet18\n"
        f"net = ResNet18(10, 1, {width}).to(memory_format=torch.channels_last)\n"
        f"for n in (16, 13, 3) * 3: net(torch.randn(n, 1, {size}, {size})).sum().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
