import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from problems import same, trained_task
from torch import nn

from salun_core import saliency
from salun_core.errors import UserError
from salun_core.saliency import (
    SCORES,
    check_mask,
    density,
    expected_iou,
    kth_largest,
    layer_table,
    least_salient_mask,
    load_mask,
    mask_iou,
    random_mask,
    saliency_mask,
    saliency_scores,
    save_mask,
    threshold_mask,
    top_mask,
)


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_a_dead_input_makes_no_weight_salient():
    batch = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0])  # d loss / d weight = (p - onehot) x
    mask = saliency_mask(nn.Linear(3, 2, bias=False), [batch], cross_entropy, keep=2 / 6)
    assert mask["weight"].tolist() == [[False, True, False], [False, True, False]]


def test_scores_agree_with_single_precision_autograd_written_out():
    task = trained_task()
    task.model.eval().zero_grad()
    images, labels = (torch.cat(parts) for parts in zip(*task.forget, strict=True))
    F.cross_entropy(task.model(images), labels, reduction="sum").backward()
    scores = saliency_scores(task.model, task.forget, task.loss)
    for name, weight in task.model.named_parameters():
        torch.testing.assert_close(scores[name], weight.grad.abs(), rtol=1e-3, atol=1e-4)
    task.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("size", [1, 7, 50, 120])
def test_the_scores_depend_on_batches_and_order_by_rounding_only(size):
    task = trained_task()
    rows = torch.randperm(task.forget.n, generator=torch.Generator().manual_seed(size))
    other = task.forget.subset(rows).resized(size)
    for dtype, rtol, least in ((None, 1e-5, 0.999), (torch.float64, 1e-7, 1.0)):
        a, b = (saliency_scores(task.model, each, task.loss, dtype=dtype) for each in (task.forget, other))
        largest = max(float(values.max()) for values in a.values())
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=rtol * largest)
        assert mask_iou(top_mask(a, keep=0.5), top_mask(b, keep=0.5)) >= least


def test_gradients_have_the_precision_of_the_model_and_sums_that_of_doubles():
    seen = set()

    def noted(model, batch):
        seen.add((batch[0].dtype, next(model.parameters()).dtype))
        return cross_entropy(model, batch)

    # 2^24 + 1 + 1 + ...: in single precision, adding one at a time adds nothing.
    net = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(net.weight)
    ones = [(torch.tensor([[2.0]]), torch.tensor([0]))] * 1000  # a gradient of 1 in each entry
    scores = saliency_scores(net, [(torch.tensor([[2.0**25]]), torch.tensor([0])), *ones], noted)
    assert scores["weight"].flatten().tolist() == [2.0**24 + 1000] * 2
    assert seen == {(torch.float32, torch.float32)}
    seen.clear()
    for own, asked, used in (
        (torch.float64, None, torch.float64),
        (torch.bfloat16, None, torch.float32),  # small gradients would vanish
        (torch.float32, torch.float64, torch.float64),
    ):
        saliency_scores(copy.deepcopy(net).to(own), ones[:1], noted, dtype=asked)
        assert seen == {(used, used)}
        seen.clear()


def test_the_model_is_not_copied_unless_it_must_be(monkeypatch):
    task = trained_task()
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("copied"))
    saliency_mask(task.model, task.forget, task.loss)
    saliency_mask(task.model, task.forget, task.loss, dtype=torch.float32)


def test_batch_means_do_depend_on_batches():
    # The released code's sum of batch means: the reason for the test above.
    task = trained_task()
    masks = [
        saliency_mask(task.model, task.forget.resized(size), task.loss, score="batch_means")
        for size in (64, 119)
    ]
    assert mask_iou(*masks) < 1


def test_clipped_batches_are_limited_each_by_itself():
    task = trained_task()
    batches = list(task.forget.resized(50))
    total = None
    for batch in batches:
        net = copy.deepcopy(task.model).double().eval()
        (1000 * task.loss(net, (batch[0].double(), batch[1]))).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        assert norm > 1
        grads = {name: weight.grad.clone() for name, weight in net.named_parameters()}
        total = grads if total is None else {name: total[name] + grads[name] for name in grads}
    found = saliency_scores(
        task.model,
        batches,
        lambda model, batch: 1000 * task.loss(model, batch),
        score="clipped_batches",
        dtype=torch.float64,
    )
    for name, values in found.items():
        torch.testing.assert_close(values, total[name].abs().float(), rtol=1e-4, atol=1e-7)
    gentle = {
        s: saliency_scores(task.model, batches, lambda m, b: 1e-6 * task.loss(m, b), score=s)
        for s in ("clipped_batches", "batch_means")
    }
    for name, values in gentle["clipped_batches"].items():
        torch.testing.assert_close(values, gentle["batch_means"][name])


def test_sums_of_large_networks_are_the_same(monkeypatch):
    task = trained_task()
    small = saliency_scores(task.model, task.forget.resized(50), task.loss)
    monkeypatch.setattr(saliency, "LARGE", 10)
    large = saliency_scores(task.model, task.forget.resized(50), task.loss)
    assert all(torch.equal(values, small[name]) for name, values in large.items())
    assert {values.device.type for values in large.values()} == {"cpu"}


@pytest.mark.parametrize("score", SCORES)
def test_scoring_leaves_the_model_alone(score):
    task = trained_task()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    for dtype in (torch.float64, None):
        scores = saliency_scores(task.model, task.forget, task.loss, score=score, dtype=dtype)
        assert all((s >= 0).all() and s.dtype == torch.float32 for s in scores.values())
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert all(weight.grad is None for weight in task.model.parameters())
    assert not task.model.training


@given(
    values=st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 1.0000001, 3.0, 1e30]), min_size=1, max_size=60),
    keep=st.floats(0.01, 1),
    cut=st.integers(0, 60),
    chunk=st.integers(1, 80),
)
def test_selection_agrees_with_a_full_sort(values, keep, cut, chunk):
    flat = torch.tensor(values)
    parts = {"a": flat[: cut // 2], "b": flat[cut // 2 : cut].reshape(1, -1), "c": flat[cut:]}
    scores = {name: s.clone() for name, s in parts.items() if s.numel()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saliency, "CHUNK", chunk)  # tensors joined, split, and looked at by themselves
        check_selection(flat, scores, keep)


def check_selection(flat, scores, keep):
    values = flat.tolist()
    count = round(keep * len(values))
    mask = torch.cat([m.flatten() for m in top_mask(scores, keep=keep).values()])
    order = np.argsort(-flat.numpy(), kind="stable")  # ties go to the earlier entry
    assert mask.nonzero().flatten().tolist() == sorted(order[:count].tolist())
    low = torch.cat([m.flatten() for m in least_salient_mask(scores, keep=keep).values()])
    assert int(low.sum()) == count
    if count < len(values):
        assert not count or flat[low].max() <= flat[~low].min()
    if count:
        assert kth_largest(scores, count) == flat.sort(descending=True).values[count - 1]


def test_threshold_form_keeps_at_least_half_and_matches_the_count_without_ties():
    scores = {"w": torch.rand(1001, generator=torch.Generator().manual_seed(1))}
    assert int(threshold_mask(scores)["w"].sum()) == 501
    assert torch.equal(threshold_mask(scores)["w"], top_mask(scores, keep=501 / 1001)["w"])
    assert threshold_mask({"w": torch.ones(4)})["w"].all()  # all tied with the median
    assert threshold_mask(scores, gamma=0.9)["w"].equal(scores["w"] >= 0.9)


def test_random_masks_match_the_count_and_differ_between_draws():
    like = dict(trained_task().model.named_parameters())
    total = sum(w.numel() for w in like.values())
    masks = [random_mask(like, keep=0.3, rng=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert [sum(int(m.sum()) for m in mask.values()) for mask in masks] == [round(0.3 * total)] * 3
    assert mask_iou(masks[0], masks[1]) == 1
    assert abs(mask_iou(masks[0], masks[2]) - expected_iou(0.3, 0.3)) < 0.02


def test_a_random_mask_can_take_its_counts_from_another_mask():
    task = trained_task()
    salient = saliency_mask(task.model, task.forget, task.loss, keep=0.2)
    control = random_mask(salient, keep=0.2, rng=torch.Generator().manual_seed(0), per_layer=salient)
    assert layer_table(control)["kept"].tolist() == layer_table(salient)["kept"].tolist()
    assert mask_iou(control, salient) < 0.7


def test_statistics_by_layer_add_up():
    task = trained_task()
    mask = saliency_mask(task.model, task.forget, task.loss, keep=0.25)
    table = layer_table(mask)
    assert table["weights"].sum() == sum(w.numel() for w in task.model.parameters())
    assert table["kept"].sum() == round(0.25 * table["weights"].sum())
    assert density(mask) == pytest.approx(0.25, abs=1e-4)


def test_a_saved_mask_comes_back_in_an_eighth_of_a_byte_a_weight(tmp_path):
    mask = random_mask({"w": torch.empty(333, 333), "b": torch.empty(5)}, keep=0.5, rng=torch.Generator())
    path = save_mask(mask, tmp_path / "mask.safetensors", note={"keep": "0.5"})
    assert path.stat().st_size < 333 * 333 / 8 + 1000
    loaded = load_mask(path)
    assert loaded.keys() == mask.keys()
    assert all(torch.equal(loaded[name], mask[name]) for name in mask)


@pytest.mark.parametrize("damage", ["truncated", "text", "other", "missing", "a bit"])
def test_a_damaged_mask_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "mask.safetensors"
    if damage != "missing":
        save_mask({"w": torch.ones(100, dtype=torch.bool)}, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "a bit":
        content = path.read_bytes()
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "text":
        path.write_text("not a mask")
    elif damage == "other":
        from safetensors.torch import save_file

        save_file({"w": torch.ones(3)}, path)
    with pytest.raises(UserError, match="mask.safetensors"):
        load_mask(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_masks_of_the_authors_code_are_read(tmp_path, legacy, prefix):
    """Written as generate_mask.py does: zeros and ones by weight name, whole numbers on a ranking."""
    task = trained_task()
    ours = saliency_mask(task.model, task.forget, task.loss, keep=0.5)
    theirs = {prefix + name: torch.zeros(m.shape).masked_fill(m, 1).long() for name, m in ours.items()}
    torch.save(theirs, tmp_path / "with_0.5.pt", _use_new_zipfile_serialization=not legacy)
    read = load_mask(tmp_path / "with_0.5.pt")
    check_mask(read, task.model)
    assert all(torch.equal(read[name], ours[name]) for name in ours)


def test_a_mask_in_the_official_format_is_what_the_authors_code_multiplies_gradients_with(tmp_path):
    mask = random_mask({"w": torch.empty(3, 4), "b": torch.empty(5)}, keep=0.5, rng=torch.Generator())
    path = save_mask(mask, tmp_path / "with_0.5.pt", format="official")
    found = torch.load(path, weights_only=True)
    assert {name: m.dtype for name, m in found.items()} == {"w": torch.int64, "b": torch.int64}
    assert torch.equal(torch.full((3, 4), 2.0) * found["w"], torch.where(mask["w"], 2.0, 0.0))
    assert all(torch.equal(load_mask(path)[name], mask[name]) for name in mask)
    with pytest.raises(UserError, match="no room for a note"):
        save_mask(mask, path, format="official", note={"keep": "0.5"})
    with pytest.raises(UserError, match="did you mean 'official'"):
        save_mask(mask, path, format="oficial")


def test_a_sparse_mask_is_read_and_what_is_no_mask_is_not_written(tmp_path):
    mask = {"w": torch.tensor([[True, False], [False, False]])}
    torch.save({"w": mask["w"].float().to_sparse()}, tmp_path / "mask.pt")
    assert torch.equal(load_mask(tmp_path / "mask.pt")["w"], mask["w"])
    for wrong in (None, {"w": mask["w"].float()}):
        with pytest.raises(UserError, match="saliency_mask or load_mask"):
            save_mask(wrong, tmp_path / "wrong.safetensors")
    assert not (tmp_path / "wrong.safetensors").exists()


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Runs(), "could run code"),
        ({"w": Runs()}, "could run code"),
        ([torch.ones(3)], "not a saliency mask"),
        ({1: torch.ones(3)}, "not a saliency mask"),
        ({}, "not a saliency mask"),
        ({"w": 1}, "not a saliency mask"),
        ({"w": torch.tensor([0.0, 0.3])}, "w holds other values than 0 and 1"),
        (None, "damaged"),
    ],
)
def test_a_pickle_that_is_no_mask_is_refused_and_never_run(tmp_path, capsys, content, message):
    path = tmp_path / "mask.pt"
    torch.save({"w": torch.ones(1000).long()} if content is None else content, path)
    if content is None:
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=f"mask.pt.*{message}"):
        load_mask(path)
    assert "code was run" not in capsys.readouterr().out


def test_a_mask_that_begins_like_a_pickle_is_read_all_the_same(tmp_path):
    mask, begins = {"w": torch.ones(3, dtype=torch.bool)}, []
    for size in range(
        380, 560, 8
    ):  # a safetensors file begins with the length of its header: here 0x280 once
        path = save_mask(mask, tmp_path / "mask.safetensors", note={"note": "x" * size})
        begins.append(path.read_bytes()[:2])
        assert torch.equal(load_mask(path)["w"], mask["w"])
    assert b"\x80\x02" in begins


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(keep):
    with pytest.raises(UserError, match="keep"):
        top_mask({"w": torch.ones(4)}, keep=keep)


def test_an_empty_forget_set_is_refused():
    with pytest.raises(UserError, match="no images"):
        saliency_mask(nn.Linear(2, 2), [], cross_entropy)


def test_a_gradient_that_is_not_finite_is_refused_by_name():
    batch = torch.tensor([[0.5, 1.0]]), torch.tensor([0])
    with pytest.raises(UserError, match="gradient of weight is not finite"):
        saliency_mask(nn.Linear(2, 2), [batch], lambda *given: cross_entropy(*given) * float("nan"))


def test_a_mask_of_another_network_is_refused():
    with pytest.raises(UserError, match="does not fit"):
        check_mask({"weight": torch.ones(2, 3, dtype=torch.bool)}, nn.Linear(2, 2, bias=False))


def test_a_frozen_weight_may_have_a_mask_and_needs_none():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    weight, bias = torch.ones(2, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    check_mask({"weight": weight}, net)
    check_mask({"weight": weight, "bias": bias}, net)
    for wrong in ({"bias": bias}, {"weight": weight, "bias": bias[:1]}, {"weight": weight, "other": bias}):
        with pytest.raises(UserError, match="does not fit"):
            check_mask(wrong, net)


def test_same_tells_models_apart():
    assert not same(nn.Linear(2, 2), nn.Linear(2, 2))
