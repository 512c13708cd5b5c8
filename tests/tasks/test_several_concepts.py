"""Several classes or prompts forgotten together."""

import pytest
import torch
import torch.nn.functional as F
from problems import same
from text_problems import FIVE, SEVEN, THREE, images, pipeline

from salun_core.errors import UserError
from salun_core.methods import METHODS
from salun_core.models.diffusion.unet import build_unet, noise_schedule
from salun_core.rng import generator
from salun_core.saliency import saliency_mask
from salun_core.tasks.diffusion import diffusion_task, wrong_classes
from salun_core.tasks.text_to_image import text_to_image_task

pytestmark = pytest.mark.long

OLD = "a photo of a big old five"


def task(replacement=None):
    return text_to_image_task(
        pipeline(),
        forget=(images(9), [SEVEN, FIVE, FIVE] * 3),
        retain=(images(8, 1), [THREE, OLD] * 4),
        replacement=replacement or {SEVEN: THREE, FIVE: OLD},
        batch_size=4,
    )


def test_each_forgotten_prompt_goes_to_its_own_replacement():
    found = task()
    asked = found.prompts.numbers([SEVEN, FIVE])
    assert [found.prompts.texts[i] for i in found.wrong(asked, generator(0)).tolist()] == [THREE, OLD]
    batch = next(iter(found.forget))
    model = METHODS["rl"](found, steps=2, lr=1e-2, order="joint").model
    value = found.relabel_loss(model, batch, torch.Generator().manual_seed(1))
    noisy, times, _ = found.noised(batch[0], torch.Generator().manual_seed(1))
    own, other = (found.condition(c) for c in (batch[1], found.replacement[batch[1]]))
    with torch.no_grad():
        goal = found.model(noisy, times, encoder_hidden_states=other).sample
        now = model(noisy, times, encoder_hidden_states=own).sample
    assert value.item() == pytest.approx(F.mse_loss(now, goal).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("salun", {"order": "joint", "keep": 0.4}),
        ("ga", {}),
        ("esd", {}),
        ("fmn", {}),
        ("ca", {}),
        ("uce", None),
        ("rece", None),
        ("erasediff", {}),
        ("advunlearn", {"warmup": 0, "attack_steps": 2}),
    ],
)
def test_methods_forget_them_together(method, more):
    settings = {} if more is None else {"steps": 2, "lr": 1e-3, **more}
    found = METHODS[method](task(), **settings)
    assert not same(found.model, pipeline().unet)


def test_the_mask_is_that_of_both():
    found = task()
    both = saliency_mask(found.model, found.forget, found.loss)
    rows = (found.forget.labels == 1).nonzero().view(-1)
    one = saliency_mask(found.model, found.forget.subset(rows), found.loss)
    assert any(not torch.equal(both[name], one[name]) for name in both)


def test_what_is_forgotten_replaces_nothing():
    with pytest.raises(UserError, match="'a photo of a five' is to be forgotten and cannot replace one"):
        task({SEVEN: FIVE, FIVE: THREE})
    with pytest.raises(UserError, match="is to be forgotten and cannot replace one"):
        task(SEVEN)


def test_a_prompt_is_forgotten_or_kept():
    given = {"forget": (images(2), [SEVEN] * 2), "retain": (images(2), [THREE, SEVEN]), "replacement": THREE}
    with pytest.raises(
        UserError, match="'a photo of a seven' is both to be forgotten and to be kept: give it on"
    ):
        text_to_image_task(pipeline(), **given)


@pytest.mark.parametrize("relabel", ["next", "random"])
def test_a_loader_says_which_classes_are_forgotten_together(relabel):
    unet = build_unet(classes=5, channels=1, size=8, widths=[8, 8], layers=1, seed=0)
    parts = {"forget": [[1, 1], [2, 3]], "retain": [[0, 4]]}
    loaders = {role: [(torch.rand(2, 1, 8, 8), torch.tensor(y)) for y in ys] for role, ys in parts.items()}
    found = diffusion_task(unet, noise_schedule(steps=10), **loaders, relabel=relabel)
    drawn = found.wrong(torch.tensor([1, 2, 3] * 20), generator(0))
    assert set(drawn.tolist()) == ({4} if relabel == "next" else {0, 4})


def test_wrong_classes_are_among_those_that_stay():
    labels = torch.tensor([3, 4, 9, 3])
    gone = [3, 4, 9]
    assert wrong_classes(labels, 10, generator(0), gone=gone).tolist() == [5, 5, 0, 5]
    drawn = wrong_classes(labels.repeat(500), 10, generator(0), how="random", gone=gone)
    assert set(drawn.tolist()) == {0, 1, 2, 5, 6, 7, 8}
    for how in ("next", "random"):
        alone = wrong_classes(labels[:1].repeat(50), 10, generator(1), how=how, gone=[3])
        assert torch.equal(alone, wrong_classes(labels[:1].repeat(50), 10, generator(1), how=how))
    with pytest.raises(UserError, match="all 2 classes"):
        wrong_classes(torch.tensor([0, 1]), 2, generator(0), gone=[0, 1])
