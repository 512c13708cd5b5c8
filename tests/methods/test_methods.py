import copy
import inspect
import math
import pydoc
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import accuracy, digit_batches, same, trained_task
from torch import nn

from salun_core.errors import Diverged, UserError
from salun_core.methods import METHODS, methods_for
from salun_core.methods.classification.be import classifier_head
from salun_core.methods.classification.bs import label_across
from salun_core.methods.contract import check_method, check_refusals
from salun_core.methods.engine import check_search, check_settings, descend, round_count, rounds
from salun_core.methods.search import Range, between, candidates, one_from
from salun_core.saliency import random_mask, saliency_mask
from salun_core.tasks.classification import classification_task, random_labels

QUICK = {"iu": {"samples": 20}, "ft": {"epochs": 1}, "rl": {"epochs": 1}, "salun": {"epochs": 1}}
QUICK |= {"scrub": {"epochs": 1}, "neggrad_plus": {"epochs": 2}}
QUICK |= {"salun_soft": {"epochs": 1}, "l1_sparse": {"epochs": 1}, "ga": {"lr": 1e-2}}
CLASSIFIER_METHODS = methods_for("classification")
MASKABLE = [name for name in CLASSIFIER_METHODS if name not in ("original", "retrain")]


def run(name, task=None, **more):
    return METHODS[name](task or trained_task(), **QUICK.get(name, {}), **more)


@pytest.mark.long
@pytest.mark.parametrize("name", CLASSIFIER_METHODS)
def test_every_method_keeps_the_contract(name):
    check_method(METHODS[name], trained_task(), maskable=name in MASKABLE, **QUICK.get(name, {}))
    assert same(run(name).model, trained_task().model) == (name == "original")  # and something was learned


@pytest.mark.parametrize("name", MASKABLE)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(keep=st.floats(0.01, 0.99), draw=st.integers(0, 9), adam=st.booleans())
def test_weights_outside_the_mask_are_bit_identical(name, keep, draw, adam):
    task = trained_task()
    if adam:
        task = WithAdam(**vars(task))
    mask = random_mask(
        dict(task.model.named_parameters()), keep=keep, rng=torch.Generator().manual_seed(draw)
    )
    changed = dict(run(name, task, mask=mask, seed=draw).model.named_parameters())
    moved = 0
    for key, weight in task.model.named_parameters():
        assert torch.equal(changed[key][~mask[key]], weight[~mask[key]]), key
        moved += int((changed[key] != weight).sum())
    assert moved > 0


class WithAdam(type(trained_task())):
    """The same task with an optimiser that has momentum of its own and decoupled weight decay."""

    def optimizer(self, model, lr):
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)


def test_before_2026_weight_decay_moved_weights_outside_the_mask():
    task = trained_task()
    mask = saliency_mask(task.model, task.forget, task.loss)
    moved = run("rl", mask=mask, decay_unmarked=True).model
    name, weight = next(iter(task.model.named_parameters()))
    assert not torch.equal(dict(moved.named_parameters())[name][~mask[name]], weight[~mask[name]])


def test_salun_is_random_labelling_with_a_saliency_mask_and_nothing_else():
    task = trained_task()
    mask = saliency_mask(task.model, task.forget, task.loss, keep=0.4)
    assert same(run("salun", keep=0.4, seed=5).model, run("rl", mask=mask, seed=5).model)


def test_random_labelling_unlearns_and_fine_tuning_keeps():
    task = trained_task()
    unlearned = METHODS["rl"](task, epochs=8, lr=0.05).model
    assert accuracy(unlearned, task.forget) < accuracy(task.model, task.forget) - 0.03
    assert accuracy(unlearned, task.retain) > accuracy(unlearned, task.forget) + 0.02
    assert accuracy(METHODS["ft"](task, epochs=2).model, task.retain) > 0.97


def test_gradient_ascent_is_one_step_uphill_written_out():
    task = trained_task()
    one = replace(task, parts={**task.parts, "forget": task.forget.resized(1000)})
    stepped = METHODS["ga"](one, epochs=1, lr=0.01).model
    twin = copy.deepcopy(task.model).train()
    images, labels = next(iter(one.forget))
    F.cross_entropy(twin(images), labels).backward()
    for weight, expected in zip(stepped.parameters(), twin.parameters(), strict=True):
        with torch.no_grad():
            expected += 0.01 * (expected.grad - 5e-4 * expected)
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)


def test_l1_sparse_adds_the_penalty_that_falls_with_the_epochs():
    task = trained_task()
    one = replace(task, parts={**task.parts, "retain": task.retain.resized(10_000)})
    plain = METHODS["ft"](one, epochs=1, lr=1e-9)
    sparse = METHODS["l1_sparse"](one, epochs=2, lr=1e-9, alpha=0.01)
    size = sum(w.abs().sum().item() for w in task.model.parameters())
    assert sparse.losses[0] == pytest.approx(plain.losses[0] + 0.01 * size, rel=1e-4)
    assert sparse.losses[1] == pytest.approx(plain.losses[0] + 0.005 * size, rel=1e-3)


@pytest.mark.parametrize("length", [{"epochs": 1}, {"steps": 14}])
def test_l1_sparse_lets_the_penalty_fall_step_by_step_in_a_run_of_one_epoch(length):
    task = trained_task()
    assert len(task.retain) == 14
    plain, sparse = (
        METHODS[name](task, lr=1e-9, seed=4, **length, **more).losses
        for name, more in (("l1_sparse", {"alpha": 0.0}), ("l1_sparse", {"alpha": 0.01}))
    )
    size = sum(w.abs().sum().item() for w in task.model.parameters())
    penalties = [(b - a) / (0.01 * size) for a, b in zip(plain, sparse, strict=True)]
    assert penalties == pytest.approx([1 - step / 14 for step in range(14)], rel=1e-3)


def test_influence_unlearning_agrees_with_the_recursion_image_by_image():
    task = trained_task()
    net = copy.deepcopy(task.model).eval()

    def gradient(batches):
        total = None
        for images, labels in batches.resized(1):
            net.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            flat = torch.cat([w.grad.flatten() for w in net.parameters()]).double()
            yield flat
            total = flat if total is None else total + flat

    n_f, n_r = task.forget.n, task.retain.n
    v = sum(gradient(task.forget)) / (n_f + n_r) - n_f / ((n_f + n_r) * n_r) * sum(gradient(task.retain))
    from salun_core.rng import generator

    rows = torch.randperm(n_r, generator=generator(2, "iu"))[:16]
    k, o = v, None
    for g in gradient(task.retain.subset(rows)):
        if o is None:
            o = g
            continue
        s = float(o @ g)
        k = k - float(k @ g) / (15 + s) * o
        o = o - s / (15 + s) * o
    changed = METHODS["iu"](task, alpha=2.0, samples=15, seed=2).model
    before = torch.cat([w.detach().flatten() for w in task.model.parameters()])
    after = torch.cat([w.detach().flatten() for w in changed.parameters()])
    torch.testing.assert_close((after - before).double(), 2 * k, rtol=1e-2, atol=1e-6)


def test_boundary_shrink_labels_agree_with_one_adversarial_step_image_by_image():
    task = trained_task()
    images, labels = next(iter(task.forget))
    found = label_across(task, (images, labels), bound=0.3)
    for i in range(12):
        x = images[i : i + 1].clone().requires_grad_(True)
        F.cross_entropy(task.model(x), labels[i : i + 1]).backward()
        moved = torch.round((x.detach() + 0.3 * x.grad.sign()).clamp(0, 1) * 255) / 255
        assert task.model(moved).argmax() == found[i]
    task.model.zero_grad(set_to_none=True)
    assert (found != labels).any()


def test_boundary_expanding_takes_its_extra_class_away():
    task = trained_task()
    name, head = classifier_head(task)
    assert (name, head.out_features) == ("6", 10)
    removed, kept = (run("be", extra_logit=how, lr=0.05).model for how in ("removed", "kept"))
    assert removed[6].out_features == 10
    assert kept[6].out_features == 11
    assert torch.equal(removed[6].weight, kept[6].weight[:10])
    assert torch.equal(removed[0].weight, kept[0].weight)
    with torch.no_grad():  # and the forget images did go there
        images, _ = next(iter(task.forget))
        assert (kept(images).argmax(1) == 10).float().mean() > 0.5


class TwoHeads(nn.Module):
    """A layer that is not the last one, and not used for classes, comes last."""

    def __init__(self):
        super().__init__()
        self.head, self.other = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, images):
        return self.head(images.flatten(1))


def test_boundary_expanding_widens_the_layer_that_gives_the_class_scores():
    data = [(torch.rand(8, 3, 2, 2), torch.arange(8) % 4)]
    task = classification_task(TwoHeads(), forget=data, retain=data)
    assert classifier_head(task)[0] == "head"
    model = METHODS["be"](task, steps=1, lr=0.1).model
    assert model.head.out_features == 4 and same(model.other, task.model.other)
    assert not torch.equal(model.head.weight, task.model.head.weight)


@pytest.mark.parametrize("name", ["iu", "ssd"])
def test_the_mask_may_lie_on_another_device_than_the_model(name):
    """As one from `load_mask` does, which is given to a model on an accelerator."""
    moved = []
    task = trained_task()
    mask = {n: torch.ones_like(w, dtype=torch.bool) for n, w in task.model.named_parameters()}

    class Elsewhere(torch.Tensor):
        def to(self, device):
            moved.append(device)
            return self.as_subclass(torch.Tensor)

    METHODS[name](task, mask={n: m.as_subclass(Elsewhere) for n, m in mask.items()}, **QUICK.get(name, {}))
    assert len(moved) >= len(mask)


def plain_steps(task):
    """The task in single batches with plain gradient descent, so that a step shows its gradient."""

    class Plain(type(task)):
        def optimizer(self, model, lr):
            return torch.optim.SGD(model.parameters(), lr=lr)

    whole = {role: batches.resized(1000) for role, batches in task.parts.items()}
    return Plain(**{**vars(task), "parts": whole})


def moved_by(task, expected, changed, lr):
    """Compare the change of the weights with minus ``lr`` times the gradients of an expected loss."""
    model = copy.deepcopy(task.model).train()
    expected(model).backward()
    for before, after in zip(model.parameters(), changed.parameters(), strict=True):
        torch.testing.assert_close(before - lr * before.grad, after, rtol=1e-4, atol=1e-6)


def whole(batches):
    return batches.images.float() / 255, batches.labels


def test_neggrad_plus_weighs_the_retain_loss_against_the_forget_loss():
    task = plain_steps(trained_task())
    changed = METHODS["neggrad_plus"](task, steps=1, lr=0.1, beta=0.7).model
    (x, y), (fx, fy) = whole(task.retain), whole(task.forget)
    moved_by(
        task,
        lambda net: 0.7 * F.nll_loss(net(x).log_softmax(1), y) - 0.3 * F.nll_loss(net(fx).log_softmax(1), fy),
        changed,
        0.1,
    )


def divergence_by_hand(task, net, images):
    """Sum over classes of p log(p / q), p of the original model in evaluation mode and q of another, mean over images."""
    p = copy.deepcopy(task.model).eval()(images).softmax(1).detach()
    return (p * (p / net(images).softmax(1)).log()).sum(1).mean()


def test_scrub_climbs_away_from_the_original_model_and_descends_towards_it():
    # At the original weights the divergence has no slope in evaluation mode; batch statistics give it one.
    task = plain_steps(trained_task())
    fx, _ = whole(task.forget)
    x, y = whole(task.retain)
    up = METHODS["scrub"](task, steps=1, lr=0.1).model
    moved_by(task, lambda net: -divergence_by_hand(task, net, fx), up, 0.1)
    back = METHODS["scrub"](task, steps=2, lr=0.1, alpha=0.3, gamma=0.6).model

    between = replace(task, model=up)
    moved_by(
        between,
        lambda net: 0.3 * divergence_by_hand(task, net, x) + 0.6 * F.cross_entropy(net(x), y),
        back,
        0.1,
    )


def test_scrub_uses_the_forget_set_in_the_first_epochs_only():
    task = trained_task()
    forget, retain = len(task.forget), len(task.retain)
    assert (forget, retain) == (2, 14)
    result = METHODS["scrub"](task, epochs=2, forget_epochs=1)
    assert len(result.losses) == forget + 2 * retain
    assert result.samples == task.forget.n + 2 * task.retain.n
    assert [loss < 0 for loss in result.losses] == [True] * forget + [False] * 2 * retain
    assert METHODS["scrub"](task, epochs=1, steps=20).losses == pytest.approx(result.losses[:20])
    assert len(METHODS["scrub"](task, epochs=2, forget_epochs=5).losses) == 2 * (forget + retain)


def test_dampening_agrees_with_squared_gradients_image_by_image():
    parts = trained_task().parts
    few = {
        "forget": parts["forget"].subset(torch.arange(20)),
        "retain": parts["retain"].subset(torch.arange(80)),
    }
    task = replace(trained_task(), parts=few)
    net = copy.deepcopy(task.model).eval()
    squares = {}
    for role in ("forget", "retain"):
        total = [torch.zeros_like(w, dtype=torch.float64) for w in net.parameters()]
        for images, labels in task.parts[role].resized(1):
            net.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            for held, weight in zip(total, net.parameters(), strict=True):
                held += weight.grad.double() ** 2
        squares[role] = total
    changed = METHODS["ssd"](task, alpha=3.0, lam=1.5).model
    chosen = halved = 0
    for w, after, f, r in zip(
        task.model.parameters(), changed.parameters(), squares["forget"], squares["retain"], strict=True
    ):
        f, every = f / 20, (f + r) / 100
        expected = torch.where(f > 3 * every, w * (1.5 * every / f).clamp(max=1), w.double())
        torch.testing.assert_close(after.double(), expected, rtol=1e-4, atol=1e-7)
        chosen += int((f > 3 * every).sum())
        halved += int((after.abs() < w.abs()).sum())
    assert 0 < halved <= chosen < 5000
    assert same(METHODS["ssd"](task, alpha=3.0, lam=5.0).model, task.model)
    assert same(METHODS["ssd"](task, alpha=5.01, lam=0.1).model, task.model)


def test_soft_thresholding_returns_most_weights_to_where_they_were():
    task = trained_task()
    soft = METHODS["salun_soft"](task, epochs=1, beta=5.0).model
    free = METHODS["rl"](task, epochs=1).model

    def unchanged(model):
        pairs = zip(model.parameters(), task.model.parameters(), strict=True)
        return sum(int((a == b).sum()) for a, b in pairs)

    assert unchanged(soft) > unchanged(free) + 1000
    assert same(METHODS["salun_soft"](task, epochs=1, beta=0.0).model, free)


def test_quantile_shrinkage_undoes_the_share_it_names():
    task = trained_task()
    shrunk = METHODS["salun_soft"](task, steps=1, beta=0.7, shrink="quantile").model
    pairs = zip(shrunk.parameters(), task.model.parameters(), strict=True)
    same_as_before = [(a == b).flatten() for a, b in pairs]
    assert torch.cat(same_as_before).float().mean() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("order", ["forget_then_retain", "interleaved", "joint", "forget", "retain"])
def test_an_epoch_visits_every_image_once(order):
    task = trained_task()
    seen = list(rounds(task, torch.Generator().manual_seed(0), order=order, epochs=2))
    assert len(seen) == round_count(task, order=order, epochs=2)
    for part, batches in (("forget", task.forget), ("retain", task.retain)):
        used = [getattr(r, part) for r in seen if getattr(r, part) is not None]
        if order == "joint" and part == "retain":
            assert len(used) == len(seen)  # a retain batch with every step
        elif used:
            images = torch.cat([b[0] for b in used]).flatten(1).sum(1).sort().values
            once = torch.cat([b[0] for b in batches]).flatten(1).sum(1)
            assert torch.allclose(images, once.repeat(2).sort().values)
    if order == "forget_then_retain":
        kinds = [r.forget is not None for r in seen[: len(task.forget) + len(task.retain)]]
        assert kinds == sorted(kinds, reverse=True)


def test_steps_end_a_run():
    task = trained_task()
    assert len(METHODS["rl"](task, steps=3).losses) == 3
    assert len(METHODS["ga"](task, steps=7, lr=1e-5).losses) == 7  # repeats the forget set


def test_wrong_labels_are_uniform_over_the_wrong_classes():
    labels = torch.arange(10).repeat(3000)
    drawn = random_labels(labels, 10, torch.Generator().manual_seed(0))
    assert (drawn != labels).all()
    counts = torch.bincount((drawn - labels) % 10, minlength=10)[1:].double()
    assert ((counts - 30000 / 9).abs() < 5 * (30000 / 9) ** 0.5).all()
    anything = random_labels(labels, 10, torch.Generator().manual_seed(0), wrong=False)
    assert (anything == labels).float().mean() == pytest.approx(0.1, abs=0.01)


def test_frozen_statistics_stay_and_others_move():
    task = trained_task()
    frozen, moved = (run("ga", bn_stats=how).model for how in ("freeze", "update"))
    assert torch.equal(frozen[1].running_mean, task.model[1].running_mean)
    assert not torch.equal(moved[1].running_mean, task.model[1].running_mean)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("rl", {"lr": 0}, "RL: lr must be positive, got 0: give one from 0.0005 to 0.05"),
        ("rl", {"lr": math.nan}, "RL: lr must be a finite number, got nan"),
        ("rl", {"lr": "abc"}, "RL: lr must be a number, got 'abc'"),
        ("rl", {"lr": True}, "RL: lr must be a number, got True"),
        ("salun", {"epochs": 0}, "SalUn: epochs must be at least 1, got 0: the default is 10"),
        ("salun", {"epochs": 1.5}, "SalUn: epochs must be a whole number, got 1.5"),
        ("salun", {"steps": 0}, "SalUn: steps must be at least 1, got 0"),
        ("salun", {"keep": 1.5}, "SalUn: keep must be at most 1, got 1.5"),
        ("rl", {"order": "joints"}, "RL: order must be .* got 'joints'"),
        ("rl", {"order": "joints"}, "did you mean 'joint'"),
        ("ga", {"bn_stats": "sometimes"}, "GA: bn_stats must be 'update' or 'freeze'"),
        ("l1_sparse", {"alpha": -1e-4}, "ℓ1-sparse: alpha must be at least 0, got -0.0001"),
        ("salun_soft", {"beta": 2.0, "shrink": "quantile"}, "SalUn-soft: beta must be at most 1"),
        ("retrain", {"replica": -1}, "Retrain: replica must be at least 0"),
        (
            "rl",
            {"lr": 1e300},
            r"RL: lr must be at most 3.4e\+38 in size, which single precision holds, got 1e\+300",
        ),
        ("rl", {"lr": 1e-300}, "RL: lr must be 0 or at least 1.2e-38 in size"),
        ("rl", {"epochs": 10**12}, "RL: epochs must be at most 1,000,000, got 1000000000000"),
        ("esd", {"eta": math.inf}, "ESD: eta must be a finite number"),
    ],
)
def test_a_setting_out_of_range_names_method_setting_value_and_remedy(name, wrong, message):
    with pytest.raises(UserError, match=message):
        check_settings(METHODS[name], wrong)


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_refuses_nonsense(name):
    method = METHODS[name]
    check_refusals(method, trained_task() if not method.tasks else SimpleNamespace(kind=method.tasks[0]))
    for number in (np.float64(0.01), np.float32(0.01)):
        if "lr" in method.defaults:
            check_settings(method, {"lr": number})
    if "epochs" in method.defaults:
        check_settings(method, {"epochs": np.int64(3)})


def test_a_seed_is_a_name_and_may_be_of_any_size():
    assert METHODS["rl"](trained_task(), epochs=1, seed=886_120_074).losses


def test_bounds_of_the_search_are_checked_like_settings():
    for method in METHODS.values():
        check_search(method, method.search)
    for wrong, message in (
        ({"lr": between(-1, 1, log=False)}, "RL: lr must be positive, got -1"),
        ({"epochs": between(1, 5)}, "RL: epochs must be a whole number"),
        ({"lr": one_from("a", "b")}, "RL: lr must be a number, got 'a'"),
        ({"speed": between(1, 2)}, "setting of RL 'speed'"),
    ):
        with pytest.raises(UserError, match=message):
            check_search(METHODS["rl"], wrong)
    for end in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite number"):
            between(0.1, end)


def test_a_mask_of_another_network_is_refused():
    with pytest.raises(UserError, match="does not fit"):
        METHODS["rl"](trained_task(), mask={"0.weight": torch.ones(1, dtype=torch.bool)})


@pytest.mark.parametrize("name", METHODS)
def test_help_shows_the_settings_of_the_method_and_their_defaults(name):
    method = METHODS[name]
    shown = pydoc.render_doc(method, renderer=pydoc.plaintext)
    call = re.search(rf"\n +{method.run.__name__}\(task, .*?\)\n", shown, re.DOTALL)[0]
    for setting, default in {**method.defaults, "mask": None, "seed": 0}.items():
        assert re.search(rf"\b{setting}={re.escape(repr(default))}[,)]", call)
    assert inspect.getdoc(method.run).splitlines()[0] in shown
    assert set(inspect.signature(method).parameters) >= {"task", "mask", "seed", *method.defaults}
    assert method.like is None or inspect.getdoc(method.like.run).splitlines()[0] in shown


@pytest.mark.parametrize("name", ["salun", "rl", "salun_soft", "iu", "retrain"])
def test_a_misspelt_setting_names_the_method_that_was_called(name):
    with pytest.raises(UserError, match=f"setting of {METHODS[name].label} 'epoches'"):
        METHODS[name](trained_task(), epoches=3)
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        METHODS["salun"](trained_task(), epoches=3)


def test_retraining_under_a_mask_is_refused():
    with pytest.raises(UserError, match="Retrain"):
        METHODS["retrain"](trained_task(), mask={})


def test_divergence_names_the_step():
    with pytest.raises(Diverged, match="step"):
        METHODS["rl"](trained_task(), lr=1e20, epochs=2)


def test_a_method_for_classifiers_refuses_another_kind_of_task():
    with pytest.raises(UserError, match="classification"):
        METHODS["be"](replace(trained_task(), kind="diffusion"))


def test_an_empty_forget_set_is_refused():
    task = trained_task()
    with pytest.raises(UserError, match="forget set holds no images"):
        replace(task, parts={**task.parts, "forget": digit_batches(torch.empty(0, dtype=torch.long))})


def test_descent_stops_where_a_network_cannot_be_expanded():
    task = replace(trained_task(), model=nn.Sequential(nn.Flatten(), nn.LazyLinear(10), nn.Softmax(1)))
    headless = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
    with pytest.raises(UserError, match="linear last layer"):
        classifier_head(replace(task, model=headless))


def test_candidates_fill_the_bounds_and_are_the_same_every_time():
    one = candidates({"lr": between(1e-4, 1e-2)}, 3)
    assert [c["lr"] for c in one] == pytest.approx([1e-4, 1e-3, 1e-2])
    space = {"lr": between(1e-4, 1e-2), "epochs": Range(low=1, high=10, integer=True, log=False)}
    two = candidates(space, 16)
    assert two == candidates(space, 16)
    assert all(1e-4 <= c["lr"] <= 1e-2 and 1 <= c["epochs"] <= 10 for c in two)
    assert len(two) >= 12
    assert candidates({"order": one_from("joint", "interleaved")}, 9) == [
        {"order": "joint"},
        {"order": "interleaved"},
    ]


def test_a_callable_stream_of_losses_is_all_that_descend_needs():
    task = trained_task()
    images, labels = next(iter(task.retain))

    def losses(model):
        for _ in range(2):
            yield task.loss(model, (images, labels)), len(images)

    assert descend(task, losses, lr=0.01, mask=None, seed=0).samples == 128
