"""A task from a model and loaders that know nothing of this project."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from problems import same, small_network, trained_task
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from transformers import ViTConfig, ViTForImageClassification

from salun_core.errors import UserError
from salun_core.methods import METHODS, methods_for
from salun_core.saliency import saliency_mask
from salun_core.tasks.classification import classification_task

FREE = [name for name in methods_for("classification") if name != "retrain"]
FEW = {"iu": {"samples": 5}, "original": {}, "ssd": {"alpha": 1.5}}


def as_dict(rows):
    return dict(zip(("pixel_values", "labels"), default_collate(rows), strict=True))


def loader(role, *, shuffle=False, of_dicts=False):
    part = trained_task().parts[role]
    data = TensorDataset(part._scaled(part.images), part.labels)
    return DataLoader(data, batch_size=50, shuffle=shuffle, collate_fn=as_dict if of_dicts else None)


def loaders(**more):
    return {role: loader(role, **more) for role in ("forget", "retain")}


class Output(dict):
    """As transformers return it: a mapping."""


class Wrapped(nn.Module):
    """A model of another library: parts in other modes, and an output with logits."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, pixel_values):
        logits = self.net(pixel_values)
        return {"mapping": Output(loss=None, logits=logits), "tuple": (logits,)}[self.form]


def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    return ViTForImageClassification(config)


@pytest.mark.parametrize("name", FREE)
def test_a_loader_gives_what_the_same_images_in_memory_give(name):
    given = FEW.get(name, {"steps": 2, "lr": 1e-3})
    parts = {role: part.resized(50) for role, part in trained_task().parts.items()}
    streamed = classification_task(trained_task().model, **loaders())
    found = METHODS[name](streamed, seed=1, **given)
    assert same(METHODS[name](streamed, seed=1, **given).model, found.model)
    if name in ("original", "iu", "ssd"):  # the methods that do not depend on the order of the batches
        memory = METHODS[name](
            classification_task(trained_task().model, forget=parts["forget"], retain=parts["retain"]),
            seed=1,
            **given,
        )
        for a, b in zip(found.model.parameters(), memory.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert same(found.model, trained_task().model) == (name == "original")


@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_outputs_of_other_libraries_are_read(form):
    net = copy.deepcopy(trained_task().model)
    plain = classification_task(net, **loaders())
    other = classification_task(Wrapped(net, form), **loaders(of_dicts=True))
    for name in FREE:
        given = FEW.get(name, {"steps": 1, "lr": 1e-3})
        if name == "be":  # looks for the last linear layer by name
            continue
        assert same(METHODS[name](plain, **given).model, METHODS[name](other, **given).model.net), name


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            Output(loss=None, scores=torch.ones(2, 3)),
            "returns a Output of loss, scores: .*under the name .logits",
        ),
        ({"logits": None}, "returns a dict of logits: give one that returns logits"),
        ({}, "returns a dict: give one that returns logits"),
        ((), "returns a tuple: give one that returns logits"),
        (None, "returns a NoneType: give one that returns logits"),
    ],
)
def test_what_holds_no_logits_is_named_by_what_it_holds(returned, message):
    class Other(nn.Linear):
        def forward(self, images):
            return returned

    with pytest.raises(UserError, match=message):
        classification_task(Other(2, 2), **loaders())


@pytest.mark.parametrize("name", FREE)
def test_every_method_runs_on_a_vision_transformer(name):
    model = vit()
    task = classification_task(model, **loaders(of_dicts=True, shuffle=True))
    mask = saliency_mask(model, loader("forget", of_dicts=True), task.loss, keep=0.3)
    result = METHODS[name](task, mask=mask, **FEW.get(name, {"steps": 2, "lr": 1e-2}))
    before, after = dict(model.named_parameters()), dict(result.model.named_parameters())
    assert all(torch.equal(before[key][~mask[key]], after[key][~mask[key]]) for key in mask)
    assert name == "original" or any(not torch.equal(before[key], after[key]) for key in mask)


def test_the_mask_of_a_raw_loader_is_that_of_the_task():
    task = classification_task(trained_task().model, **loaders(shuffle=True))
    raw = saliency_mask(task.model, loader("forget"), task.loss, keep=0.5)
    own = saliency_mask(task.model, task.forget, task.loss, keep=0.5)
    in_memory = saliency_mask(task.model, trained_task().forget, task.loss, keep=0.5)
    assert all(torch.equal(raw[name], own[name]) and torch.equal(raw[name], in_memory[name]) for name in raw)


def test_the_modes_of_all_parts_are_left_as_they_are():
    model = copy.deepcopy(trained_task().model).train()
    model[1].eval()  # a layer that someone froze
    task = classification_task(model, **loaders())
    saliency_mask(model, task.forget, task.loss, dtype=None)
    for name in FREE:
        METHODS[name](task, **FEW.get(name, {"steps": 1, "lr": 1e-3}))
    assert model.training and not model[1].training and model[0].training


def test_frozen_weights_stay_and_need_no_mask():
    model = copy.deepcopy(trained_task().model)
    model[0].requires_grad_(False)
    task = classification_task(model, **loaders())
    mask = saliency_mask(model, task.forget, task.loss, keep=0.5)
    assert not any(name.startswith("0.") for name in mask)
    for name in FREE:
        for given in ({}, {"mask": mask}):
            changed = METHODS[name](task, **given, **FEW.get(name, {"steps": 2, "lr": 1e-2})).model
            assert torch.equal(changed[0].weight, model[0].weight), name
            assert name == "original" or not torch.equal(changed[6].weight, model[6].weight), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_follow_the_precision_of_the_model(dtype):
    task = classification_task(copy.deepcopy(trained_task().model).to(dtype), **loaders())
    for name in FREE:
        found = METHODS[name](task, **FEW.get(name, {"steps": 1, "lr": 1e-3})).model
        expected = torch.float32 if dtype.itemsize < 4 and name != "original" else dtype
        assert {weight.dtype for weight in found.parameters()} == {expected}, name


def test_training_from_scratch_asks_for_what_it_needs_when_it_is_called():
    task = classification_task(trained_task().model, **loaders())
    with pytest.raises(UserError, match="build="):
        METHODS["retrain"](task)
    task = classification_task(
        trained_task().model, **loaders(shuffle=True), build=small_network, recipe=trained_task().recipe
    )
    new = METHODS["retrain"](task)
    assert len(new.losses) == trained_task().recipe.epochs
    assert new.losses[-1] < 0.2
    with pytest.raises(UserError, match="unknown recipe 'papers': did you mean 'paper'"):
        classification_task(trained_task().model, **loaders(), recipe="papers")


class Sharded(torch.Tensor):
    pass


Sharded.__name__ = "DTensor"


def sharded():
    net = small_network(0)
    net[0].weight = nn.Parameter(net[0].weight.data.as_subclass(Sharded))
    return net


SHARDED = """
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    from salun_core import classification_task
    from salun_core.errors import UserError

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    loader = [(torch.rand(9, 3, 2, 2), torch.arange(9) % 3)]
    whole, part, new = (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)) for _ in range(3))
    whole = FullyShardedDataParallel(whole, device_id=torch.device("cpu"))
    part[1] = FullyShardedDataParallel(part[1], device_id=torch.device("cpu"))
    fully_shard(new, mesh=init_device_mesh("cpu", (1,)))
    for model in (whole, part, new):
        try:
            classification_task(model, forget=loader, retain=loader)
        except UserError as error:
            print(error)
    dist.destroy_process_group()
"""


@pytest.mark.long
def test_networks_in_pieces_on_several_devices_are_refused_in_a_sentence():
    words = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SHARDED)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    remedy = "give the whole model, gathered on one device, and wrap the result again"
    assert said == [
        f"the model is wrapped in FullyShardedDataParallel: {remedy}",
        f"part 1 of the model is wrapped in FullyShardedDataParallel: {remedy}",
        f"the model is wrapped in FSDPModule: {remedy}",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.DataParallel(small_network(0)), "DataParallel: give model.module"),
        (sharded(), "DTensor"),
        (nn.Linear(3, 3, device="meta"), "not loaded"),
        (nn.Flatten(), "no weights"),
        ("resnet18", "is a str"),
        (nn.Linear(3, 3), "cannot read the images of forget"),
        (nn.Sequential(*small_network(0), nn.Softmax(1)), "softmax"),
        (nn.Sequential(*list(small_network(0))[:3]), r"gives \(50, 8, 4, 4\)"),
        (nn.Sequential(*list(small_network(0))[:6], nn.Linear(64, 5)), "classes 0 to 4"),
    ],
)
def test_what_is_no_classifier_of_these_images_is_refused_in_a_sentence(model, message):
    with pytest.raises(UserError, match=message):
        classification_task(model, **loaders())


def test_a_real_sharded_model_is_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        net = fully_shard(small_network(0), mesh=dist.init_device_mesh("cpu", (1,)))
        with pytest.raises(UserError, match="FSDPModule"):
            classification_task(net, **loaders())
    finally:
        dist.destroy_process_group()


def test_an_empty_loader_and_wrong_labels_are_refused():
    with pytest.raises(UserError, match="forget set holds no images"):
        classification_task(trained_task().model, forget=[], retain=loader("retain"))
    images, labels = next(iter(loader("forget")))
    for wrong, message in (
        (labels - 20, "label -"),
        (torch.eye(10)[labels], "class number"),
        (labels[0], "DataLoader"),
    ):
        with pytest.raises(UserError, match=message):
            classification_task(trained_task().model, forget=[(images, wrong)], retain=loader("retain"))


def test_boundary_shrink_refuses_images_that_are_no_pixels():
    images, labels = next(iter(loader("forget")))
    task = classification_task(
        trained_task().model, forget=[(images * 2 - 1, labels)], retain=loader("retain")
    )
    with pytest.raises(UserError, match="normalisation"):
        METHODS["bs"](task, steps=1)
