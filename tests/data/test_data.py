import hashlib
import io
import os
import pickle
import shutil
import tarfile
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, IterableDataset
from torchvision import datasets as tv

from salun_core.data import from_datasets, load_dataset
from salun_core.data.augment import augmentation, crop_and_flip
from salun_core.data.batches import Batches
from salun_core.data.images import ImageData, fewer, only, resized
from salun_core.data.sources import digits as digits_source
from salun_core.data.sources.noisy_digits import with_noise
from salun_core.data.splits import ROLES, read_ids, split_data, validation_ids
from salun_core.errors import UserError
from salun_core.experiments.rehearsal.plan import folder_shape
from salun_core.models import build_model
from salun_core.tasks import RECIPES
from salun_core.tasks.classification_training import train_network


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def made(labels, n_train, *, classes=None, size=4):
    labels = torch.as_tensor(labels)
    names = tuple(f"c{k}" for k in range(classes or int(labels.max()) + 1))
    return ImageData("made", noise(len(labels), 3, size, size), labels, n_train, names)


# --- images in memory


def test_digits_are_those_of_scikit_learn_in_a_fixed_order(digits):
    raw = load_digits()
    as_given = {(im.astype(int) * 255 / 16).round().astype(np.uint8).tobytes() for im in raw.images}
    assert {im.numpy().tobytes() for im in digits.images} == as_given
    assert torch.bincount(digits.labels).tolist() == np.bincount(raw.target).tolist()
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.max() == 255 and not digits.flip
    share = digits.n_train / 1797
    for k in range(10):
        in_train = (digits.labels[: digits.n_train] == k).sum()
        assert abs(in_train - share * (raw.target == k).sum()) <= 1
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    assert load_dataset("digits").digest == digits.digest


@pytest.mark.parametrize("name", ["digits", "noisy_digits"])
def test_data_that_come_with_scikit_learn_take_no_folder(name, tmp_path):
    with pytest.raises(UserError, match=f"dataset {name} comes with scikit-learn: leave out data_dir"):
        load_dataset(name, tmp_path)


def test_noisy_digits_are_the_digits_with_noise_of_their_own():
    noisy, clean = load_dataset("noisy_digits"), digits_source.read(test=500)
    assert (noisy.n_train, len(noisy.labels)) == (1297, 1797)
    assert torch.equal(noisy.labels, clean.labels)
    wanted = torch.bincount(clean.labels) * 1297 / 1797
    assert ((torch.bincount(noisy.labels[:1297]) - wanted).abs() <= 1).all()
    # Where a pixel is half grey, hardly any noise is clipped.
    middle = (clean.images - 127.5).abs() < 20
    noise = (noisy.images.double() - clean.images)[middle]
    assert len(noise) > 5000
    assert noise.std() == pytest.approx(60, rel=0.05) and abs(noise.mean()) < 3
    # No two images share their noise: where two are black, it brightens both or neither half of the time.
    black, bright = clean.images == 0, noisy.images > 0
    both = black[1:] & black[:-1]
    agree = (bright[1:] == bright[:-1])[both].double().mean()
    assert both.sum() > 10_000 and agree == pytest.approx(0.5, abs=0.02)


def test_noise_does_not_depend_on_what_was_drawn_before():
    images = digits_source.read(test=500).images[:5]
    torch.manual_seed(1)
    forwards = [with_noise(image) for image in images]
    torch.manual_seed(2)
    backwards = [with_noise(image) for image in images.flip(0)]
    assert torch.equal(torch.stack(forwards), torch.stack(backwards).flip(0))


def test_moments_are_those_of_the_training_part():
    data = made(torch.arange(60) % 3, 40, size=5)
    mean, std = data.moments
    train = data.images[:40].double() / 255
    assert mean == pytest.approx(train.mean(dim=(0, 2, 3)).tolist())
    assert std == pytest.approx(train.std(dim=(0, 2, 3), correction=0).tolist())


def test_the_digest_sees_pixels_labels_and_boundary():
    data = made([0, 1, 0, 1], 2)
    pixel, label = data.images.clone(), data.labels.flip(0)
    pixel[0, 0, 0, 0] ^= 1
    others = [replace(data, images=pixel), replace(data, labels=label), replace(data, n_train=3)]
    assert len({data.digest, *(other.digest for other in others)}) == 4
    assert replace(data, note="elsewhere").digest == data.digest


def test_resizing_is_the_antialiased_one_of_pil():
    data = replace(made([0, 1], 1, size=32), pad=4)
    small = resized(data, 12)
    for before, after in zip(data.images, small.images, strict=True):
        by_pil = Image.fromarray(before.permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(by_pil).astype(int) - after.permute(1, 2, 0).numpy()).max() <= 1
    assert (small.pad, resized(data, None), resized(data, 32)) == (2, data, data)
    assert load_dataset("digits", size=16).images.shape == (1797, 1, 16, 16)


def test_fewer_training_images_keep_the_class_shares_and_every_test_image():
    data = made([0] * 30 + [1] * 60 + [2] * 10 + [0, 1, 2], 100)
    part, smaller = fewer(data, 50), fewer(data, 20)
    assert torch.bincount(part.labels[:50]).tolist() == [15, 30, 5]
    assert torch.bincount(smaller.labels[:20]).tolist() == [6, 12, 2]
    assert torch.equal(part.images[50:], data.images[100:]) and part.labels[50:].tolist() == [0, 1, 2]
    larger = {image.numpy().tobytes() for image in part.images[:50]}
    assert {image.numpy().tobytes() for image in smaller.images[:20]} <= larger
    # In the order of the whole set, but not its first images.
    where = [int((data.images == image).flatten(1).all(dim=1).nonzero()[0]) for image in part.images]
    assert where == sorted(where) and where[:15] != list(range(15))
    assert part.note == "50 of 100 training images"
    assert fewer(data, None) is data and fewer(data, 100) is data
    with pytest.raises(UserError, match="train_images 101 is asked for, and made has 100"):
        fewer(data, 101)


def test_some_classes_only_in_the_order_asked_for():
    data = made([0, 1, 2, 3] * 5 + [3, 2, 1, 0], 20, classes=4)
    part = only(data, ["c3", "c1"])
    assert part.classes == ("c3", "c1") and part.n_train == 10
    assert part.labels.tolist() == [1, 0] * 5 + [0, 1]
    assert torch.equal(part.images, data.images[(data.labels == 1) | (data.labels == 3)])
    assert part.note == "2 of 4 classes" and only(data, ()) is data
    with pytest.raises(UserError, match="did you mean 'c1'"):
        only(data, ["c1", "c11"])
    with pytest.raises(UserError, match="only_classes names one class, c1"):
        only(data, ["c1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(4, 3, 4, 4)}, "must be uint8"),
        ({"images": noise(4, 16)}, "must be uint8 (N, C, H, W)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels must be int64 (4,)"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels go from 0 to 2, but there are 2 class names"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, "labels go from -1"),
        ({"n_train": 4}, "both a training and a test part"),
        ({"classes": ("a", "b\u202ec")}, r"the name 'b\u202ec' holds an unseen character"),
        ({"n_train": 0}, "both a training and a test part"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(UserError) as refusal:
        replace(made([0, 1, 0, 1], 2), **changes)
    assert message in str(refusal.value)


# --- batches


def test_batches_in_order_and_shuffled_hold_every_image_once():
    images, labels = noise(65, 3, 4, 4), torch.arange(65)
    batches = Batches(images, labels, labels, size=16)
    assert torch.equal(torch.cat([y for _, y in batches]), labels)
    assert torch.equal(torch.cat([x for x, _ in batches]), images / 255)
    epoch = list(batches.shuffled(torch.Generator().manual_seed(0)))
    seen = torch.cat([y for _, y in epoch])
    assert torch.equal(seen.sort().values, labels) and not torch.equal(seen, labels)
    assert all(torch.equal(x, images[y] / 255) for x, y in epoch)  # an image keeps its label
    assert len(epoch) == len(batches) == 5
    assert min(len(y) for _, y in epoch) > 1  # BatchNorm cannot train on one
    assert batches.subset(torch.tensor([3, 60])).ids.tolist() == [3, 60]


# --- augmentation


def slowly(images, rng, *, pad, flip):
    """One image after the other, with plain slices; the same draws in the same order."""
    n, channels, height, width = images.shape
    down, right = torch.randint(0, 2 * pad + 1, (2, n), generator=rng)
    mirror = torch.rand(n, generator=rng) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    out = []
    for i in range(n):
        frame = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=images.dtype)
        frame[:, pad : pad + height, pad : pad + width] = images[i]
        window = frame[:, down[i] : down[i] + height, right[i] : right[i] + width]
        out.append(window.flip(2) if mirror[i] else window)
    return torch.stack(out)


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(17, 1, 8, 8), (17, 3, 6, 9)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_augmentation_is_that_of_a_slow_loop(pad, flip, shape, dtype):
    images = noise(*shape).to(dtype)
    before = images.clone()
    fast = crop_and_flip(images, torch.Generator().manual_seed(5), pad=pad, flip=flip)
    assert torch.equal(fast, slowly(images, torch.Generator().manual_seed(5), pad=pad, flip=flip))
    assert fast.dtype == dtype and fast.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no accelerator")
def test_augmentation_is_the_same_on_every_device():
    images = noise(17, 3, 8, 8)
    here, there = (
        crop_and_flip(images.to(device), torch.Generator().manual_seed(5), pad=2, flip=True)
        for device in ("cpu", "cuda")
    )
    assert torch.equal(here, there.cpu())


def test_every_shift_and_both_orientations_occur():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 3] = 1
    many = crop_and_flip(image.expand(4000, 1, 9, 9), torch.Generator().manual_seed(0), pad=1, flip=True)
    places, counts = many.nonzero()[:, 2:].unique(dim=0, return_counts=True)
    # The pixel is in column 3, or in column 5 when mirrored, and moves by up to 1: column 4 is reached twice.
    assert {tuple(p) for p in places.tolist()} == {(y, x) for y in (3, 4, 5) for x in (2, 3, 4, 5, 6)}
    expected = torch.tensor([2 * 4000 / 18 if x == 4 else 4000 / 18 for _, x in places.tolist()])
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_only_what_the_data_set_allows_is_augmented(digits):
    still = replace(digits, pad=0, flip=False)
    assert augmentation(still) is None
    shifted = augmentation(replace(digits, pad=1, flip=False))(
        digits.images[:1].expand(500, 1, 8, 8), torch.Generator()
    )
    assert len(shifted.unique(dim=0)) == 9  # shifts only
    mirrored = augmentation(replace(still, flip=True))(
        digits.images[:1].expand(500, 1, 8, 8), torch.Generator()
    )
    assert len(mirrored.unique(dim=0)) == 2


# --- splits


SCENARIOS = [
    {"scenario": "random", "forget_fraction": 0.1},
    {"scenario": "random", "forget_fraction": 0.5},
    {"scenario": "class", "forget_class": 3},
    {"scenario": "indices", "forget_ids": list(range(0, 800, 7))},
    {"scenario": "class", "forget_class": [3, "7"]},
]


def split(data, seed=0, **how):
    return split_data(data, seed=seed, **how)


@pytest.mark.parametrize("how", SCENARIOS, ids=str)
def test_every_image_has_one_role(digits, how):
    parts = split(digits, **how)
    assert tuple(parts) == ROLES
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(1797))
    assert all(torch.equal(ids, ids.sort().values) and ids.dtype == torch.int64 for ids in parts.values())
    inside = torch.cat([parts[r] for r in ("forget", "retain", "validation", "validation_forgotten")])
    assert inside.max() < digits.n_train <= torch.cat([parts["test"], parts["test_forgotten"]]).min()
    assert torch.equal(parts.train, torch.cat([parts["forget"], parts["retain"]]).sort().values)


def test_one_seed_trains_one_original_whatever_is_forgotten(digits):
    trained = [split(digits, seed=4, **how).train for how in SCENARIOS if how["scenario"] != "indices"]
    assert all(torch.equal(ids, trained[0]) for ids in trained)
    assert not torch.equal(split(digits, seed=5, **SCENARIOS[0]).train, trained[0])


def test_listed_images_are_all_trained_on_whatever_the_seed(digits):
    listed = torch.arange(0, digits.n_train, 7)
    for seed in range(3):
        parts = split_data(digits, seed=seed, scenario="indices", forget_ids=listed)
        assert torch.equal(parts["forget"], listed)
        assert len(parts["validation"]) == round(0.1 * digits.n_train)


def test_a_split_depends_on_its_seed_alone(digits):
    torch.manual_seed(1)
    first = split(digits, **SCENARIOS[0])
    torch.manual_seed(2)
    again, other = split(digits, **SCENARIOS[0]), split(digits, seed=1, **SCENARIOS[0])
    assert all(torch.equal(first[role], again[role]) for role in ROLES)
    assert not torch.equal(first["forget"], other["forget"])
    larger = split(digits, **SCENARIOS[1])["forget"]
    assert torch.isin(first["forget"], larger).all()  # 10% lies within 50%


def test_a_split_is_the_same_for_ever():
    # Written down once: recorded results name images by these ids.
    parts = split_data(made(torch.arange(60) % 3, 40), scenario="random", seed=0, forget_fraction=0.1)
    assert parts["validation"].tolist() == [3, 13, 14, 15]
    assert parts["forget"].tolist() == [19, 25, 27, 33]


def test_a_class_is_forgotten_whole_and_held_out_apart(digits):
    parts = split(digits, **SCENARIOS[2])
    for role, of_class in zip(ROLES, (True, False, False, False, True, True), strict=True):
        assert ((digits.labels[parts[role]] == 3) == of_class).all() and len(parts[role])
    by_name = split_data(digits, scenario="class", seed=0, forget_class="3")
    assert torch.equal(by_name["forget"], parts["forget"])
    shifted = replace(digits, classes=tuple("1234567890"))  # a name comes before a number
    assert (
        split_data(shifted, scenario="class", seed=0, forget_class=3)["forget"][0]
        in (digits.labels == 2).nonzero()
    )


def test_several_classes_are_forgotten_together(digits):
    parts = split(digits, **SCENARIOS[4])
    alone = [split(digits, scenario="class", forget_class=c) for c in (3, 7)]
    for role in ("forget", "validation_forgotten", "test_forgotten"):
        assert torch.equal(parts[role], torch.cat([each[role] for each in alone]).sort().values)
    assert set(digits.labels[parts["retain"]].tolist()) == set(range(10)) - {3, 7}


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=8, max_size=120),
    share=st.floats(0.01, 0.99),
    validation=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    seed=st.integers(0, 2**40),
)
def test_splits_of_any_labels(labels, share, validation, seed):
    n_train = len(labels) - 2
    data = made(labels, n_train, classes=5, size=1)
    held = validation_ids(data, seed=seed, share=validation)
    counts = torch.bincount(data.labels[:n_train], minlength=5)
    taken = torch.bincount(data.labels[held], minlength=5)
    assert ((taken - validation * counts).abs() < 1 + 1e-9).all()  # stratified
    assert (taken < counts.clamp_min(1)).all()  # no class is used up
    left = n_train - len(held)
    try:
        parts = split_data(data, scenario="random", seed=seed, forget_fraction=share, validation=validation)
    except UserError:
        assert round(share * left) in (0, left)
        return
    assert len(parts["forget"]) == round(share * left) and len(parts["retain"])
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(len(labels)))
    assert torch.equal(parts["validation"], held)
    assert torch.equal(parts["test"], torch.arange(n_train, len(labels)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"scenario": "randon"}, "did you mean 'random'"),
        ({"scenario": "random", "forget_fraction": 0}, "forget_fraction must lie between 0 and 1"),
        ({"scenario": "random", "forget_fraction": 1}, "got 1"),
        ({"scenario": "random", "forget_fraction": 1.5}, "got 1.5"),
        ({"scenario": "random", "forget_fraction": float("nan")}, "got nan"),
        ({"scenario": "random", "forget_fraction": None}, "got None"),
        ({"scenario": "random", "forget_fraction": 0.001}, "leaves none to forget: choose a larger share"),
        ({"scenario": "random", "forget_fraction": 0.999}, "leaves none to keep: choose a smaller share"),
        ({"scenario": "random", "validation": 1}, "validation must lie in [0, 1), got 1"),
        ({"scenario": "class"}, "needs forget_class"),
        ({"scenario": "class", "forget_class": 5}, "out of range: made has classes 0 to 3"),
        ({"scenario": "class", "forget_class": -1}, "out of range"),
        ({"scenario": "class", "forget_class": "cc1"}, "unknown class of made 'cc1': did you mean 'c1'?"),
        ({"scenario": "class", "forget_class": True}, "unknown class of made 'True'"),
        ({"scenario": "class", "forget_class": "c3"}, "class 'c3' has no training images"),
        ({"scenario": "class", "forget_class": ["c0", "c3"]}, "class 'c3' has no training images"),
        ({"scenario": "class", "forget_class": ["c1", 1]}, "class 'c1' is to be forgotten twice"),
        ({"scenario": "class", "forget_class": []}, "list of classes to forget is empty"),
        ({"scenario": "class", "forget_class": [0, 1, 2]}, "leaves none to keep"),
        ({"scenario": "indices"}, "needs forget_ids"),
        ({"scenario": "indices", "forget_ids": []}, "is empty"),
        ({"scenario": "indices", "forget_ids": [0, 40]}, "sample id 40 is in the test part"),
        ({"scenario": "indices", "forget_ids": [-1]}, "sample id -1 is out of range"),
        ({"scenario": "indices", "forget_ids": [999]}, "sample id 999 is out of range"),
        ({"scenario": "indices", "forget_ids": [7, 1, 7]}, "sample id 7 is listed twice"),
        ({"scenario": "indices", "forget_ids": list(range(40))}, "leaves none to keep"),
        ({"scenario": "indices", "forget_ids": list(range(40)), "validation": 0}, "leaves none to keep"),
        ({"scenario": "indices", "forget_ids": "nowhere/ids.txt"}, "cannot read nowhere/ids.txt"),
    ],
    ids=str,
)
def test_impossible_splits_are_refused(how, message):
    data = made([*(torch.arange(40) % 3).tolist(), *[3] * 20], 40)
    with pytest.raises(UserError) as refusal:
        split_data(data, seed=0, **how)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.txt", b"4\n8\n15\n"),
        ("ids.txt", b"# to forget\n4, 8 # two\r\n\r\n15\n"),
        ("ids", b"\xef\xbb\xbf4 8\t15"),
        ("ids.csv", b"4\n8\n15\n"),
        ("ids.csv", b"anything\n4\n8\n15\n"),
        ("ids.csv", b'label,Id\ncat,4\n\ndog,8\n"a, b",15\n'),
        ("ids.npy", np.array([4, 8, 15])),
        ("ids.npy", np.array([4, 8, 15], dtype=np.uint16)),
    ],
)
def test_ids_are_read_from_many_files(name, content, tmp_path):
    assert read_ids(written(tmp_path / name, content)) == [4, 8, 15]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.txt", b"", "holds no sample ids"),
        ("ids.txt", b"4\neight\n", "holds 'eight'"),
        ("ids.txt", b"4.5\n", "holds '4.5'"),
        ("ids.txt", b"\xff\xfe\x00\x01", "is not a text file"),
        ("ids.csv", b"a,b\n1,2\n", "has the columns a, b"),
        ("ids.csv", b"1,2\n3,4\n", "several columns and no header"),
        ("ids.csv", b"label,id\ncat\n", "holds ''"),
        ("ids.csv", b'id\n"1\n2\n', "no CSV file"),
        ("ids.csv", b"id\n" + b"9" * 200_000, "no CSV file"),
        ("ids.csv", b"id\n" + b"9" * 5_000, "not a sample id"),
        ("ids.csv", b"id,index\n1,2\n", "and no other"),
        ("ids.npy", b"PK\x03\x04", "not a NumPy array"),
        ("ids.npy", b"not an array", "not a NumPy array"),
        ("ids.npy", np.array([0.5]), "whole numbers"),
        ("ids.npy", np.zeros((2, 2), dtype=int), "one-dimensional"),
        (".", None, "cannot read"),
    ],
)
def test_files_that_are_no_lists_of_ids_are_refused(name, content, message, tmp_path):
    path = tmp_path / name if content is None else written(tmp_path / name, content)
    with pytest.raises(UserError) as refusal:
        read_ids(path)
    assert message in str(refusal.value)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
    return path


# --- image folders


def picture(path, *, mode="RGB", size=(6, 6), seed=0, **options):
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = noise(size[1], size[0], *channels, seed=seed).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return torch.from_numpy(pixels if mode != "L" else pixels[..., None]).permute(2, 0, 1)


@pytest.fixture
def animals(tmp_path):
    """Two classes, three training images and one test image each; returns the folder and its images by path."""
    root = tmp_path / "animals"
    paths = [
        f"{part}/{name}/{i}.png"
        for part, n in (("train", 3), ("test", 1))
        for name in ("cat", "ant")
        for i in range(n)
    ]
    return root, {path: picture(root / path, seed=i) for i, path in enumerate(paths)}


def test_a_folder_is_read_in_alphabetical_order(animals):
    root, images = animals
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"?")
    (root / "train" / "ant" / "Thumbs.db").write_bytes(b"?")
    data = load_dataset("imagefolder", root)
    order = [f"train/{c}/{i}.png" for c in ("ant", "cat") for i in range(3)] + [
        "test/ant/0.png",
        "test/cat/0.png",
    ]
    assert torch.equal(data.images, torch.stack([images[path] for path in order]))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert (data.n_train, data.classes, data.name) == (6, ("ant", "cat"), "animals")


@pytest.mark.parametrize("ending", ["bmp", "gif", "jpg", "png", "ppm", "tif", "webp"])
def test_any_format_is_read(animals, ending):
    root, _ = animals
    file = root / "train" / "ant" / f"9.{ending}"
    picture(file, seed=50)
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(load_dataset("imagefolder", root).images[3].permute(1, 2, 0), expected)


def test_a_folder_is_grey_only_if_every_image_is(tmp_path):
    paths = [tmp_path / part / name / "0.png" for part in ("train", "test") for name in "ab"]
    grey = [picture(path, mode="L", seed=i) for i, path in enumerate(paths)]
    assert torch.equal(load_dataset("imagefolder", tmp_path).images, torch.stack(grey))
    colour = picture(paths[-1], mode="RGB", seed=9)
    data = load_dataset("imagefolder", tmp_path)
    assert torch.equal(data.images, torch.stack([*(g.expand(3, -1, -1) for g in grey[:-1]), colour]))


def test_transparent_sixteen_bit_and_rotated_images(animals):
    root, _ = animals
    clear = picture(root / "train" / "ant" / "0.png", mode="RGBA", seed=3)
    alpha = clear[3:].float() / 255
    Image.fromarray(np.full((6, 6), 257 * 200, dtype=np.uint16)).save(root / "train" / "ant" / "1.png")
    upright = picture(root / "train" / "ant" / "2.png", seed=5)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: the viewer turns it clockwise
    with Image.open(root / "train" / "ant" / "2.png") as image:
        image.save(root / "train" / "ant" / "2.png", exif=exif)
    images = load_dataset("imagefolder", root).images
    on_white = clear[:3] * alpha + 255 * (1 - alpha)
    assert (images[0] - on_white).abs().max() <= 1
    assert (images[1] == 200).all()
    assert torch.equal(images[2], upright.rot90(-1, dims=(1, 2)))


def test_a_folder_val_serves_as_the_test_part_where_there_is_no_other(animals):
    root, _ = animals
    before = load_dataset("imagefolder", root)
    (root / "test").rename(root / "val")
    after = load_dataset("imagefolder", root)
    assert after.digest == before.digest
    shutil.rmtree(root / "val" / "cat")
    with pytest.raises(UserError, match="class 'cat' has no folder in .*val"):
        load_dataset("imagefolder", root)


def test_images_of_many_sizes_are_resized(animals):
    root, _ = animals
    picture(root / "train" / "ant" / "0.png", size=(40, 30), seed=3)
    picture(root / "train" / "cat" / "0.jpg", size=(300, 200), seed=4)
    data = load_dataset("imagefolder", root, size=12)
    assert data.images.shape == (9, 3, 12, 12)
    with Image.open(root / "train" / "ant" / "0.png") as image:
        # 40 x 30 pixels: the shorter side becomes 12, the middle of the longer one is cut out.
        expected = np.asarray(image.resize((16, 12), Image.Resampling.BILINEAR).crop((2, 0, 14, 12)))
    assert np.array_equal(data.images[0].permute(1, 2, 0), expected)


def test_many_threads_keep_the_order(tmp_path):
    for part, n in (("train", 300), ("test", 2)):
        for name in "ab":
            for i in range(n):
                picture(tmp_path / part / name / f"{i:03}.bmp", mode="L", size=(2, 2), seed=i)
    data = load_dataset("imagefolder", tmp_path)
    assert torch.equal(data.images[:300], data.images[300:600])
    assert torch.equal(data.images[257], noise(2, 2, seed=257)[None])


def shortened(file):
    file.write_bytes(file.read_bytes()[:-40])


def emptied(folder):
    for file in folder.iterdir():
        file.unlink()


def removed(folder):
    emptied(folder)
    folder.rmdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: os.rename(d, d.parent / "elsewhere"), "there is no folder"),
        (lambda d: os.rename(d / "test", d / "tests"), "test: expected train/<class>/<image>"),
        (lambda d: [removed(f) for f in (d / "train").iterdir()], "holds no class folders"),
        (lambda d: removed(d / "test" / "cat"), "class 'cat' has no folder in"),
        (lambda d: removed(d / "train" / "cat"), "class 'cat' has no folder in"),
        (lambda d: emptied(d / "train" / "cat"), "class 'cat' has no images in"),
        (lambda d: [removed(d / p / "cat") for p in ("train", "test")], "at least two are needed"),
        (lambda d: shortened(d / "train" / "cat" / "1.png"), "cat/1.png cannot be read as an image"),
        (lambda d: (d / "train" / "cat" / "1.png").write_bytes(b""), "cat/1.png cannot be read"),
        (lambda d: (d / "train" / "cat" / "notes.txt").write_text("hello"), "cat/notes.txt cannot be read"),
        (lambda d: picture(d / "train" / "cat" / "1.png", size=(7, 7)), "cat/1.png is 7x7 pixels and"),
        (
            lambda d: picture(d / "train" / "ant" / "0.png", size=(7, 6)),
            "0.png is 7x6 pixels, not square: set image_size",
        ),
        (
            lambda d: Image.fromarray(np.zeros((6, 6), dtype=np.float32)).save(d / "train" / "cat" / "1.tif"),
            "1.tif has 32-bit pixels",
        ),
    ],
)
def test_folders_that_cannot_be_used_are_refused(animals, harm, message):
    root, _ = animals
    harm(root)
    with pytest.raises(UserError) as refusal:
        load_dataset("imagefolder", root)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_passed_over_is_said(animals, capsys):
    root, images = animals
    cat = root / "train" / "cat"
    (cat / "9.png").symlink_to(root / "nowhere.png")
    (cat / "8.png").symlink_to(root / "nowhere either.png")
    (cat / "more").mkdir()
    os.mkfifo(cat / "pipe.png")
    (cat / "zero.png").symlink_to("/dev/zero")
    (cat / ".hidden.png").write_bytes(b"")
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / "notes.txt").write_text("")
    (root / "test" / "a\n\x1b[31mred").write_text("")
    assert len(load_dataset("imagefolder", root).labels) == len(images)
    said = capsys.readouterr().err
    assert "2 dangling links (train/cat/8.png, train/cat/9.png)" in said
    assert "1 folder (train/cat/more)" in said
    assert "2 special files (train/cat/pipe.png, train/cat/zero.png)" in said
    assert "2 hidden files (train/__MACOSX, train/cat/.hidden.png)" in said
    assert r"2 files (train/notes.txt, test/a \x1b[31mred)" in said
    assert said.count("\n") == 5


def test_a_part_that_is_not_read_is_said_and_only_by_who_reads(animals, capsys):
    root, images = animals
    shutil.copytree(root / "test", root / "val")
    (root / ".git").mkdir()
    (root / "README.md").touch()
    folder_shape(root)  # a plan counts, and a run that follows says what it passes over
    assert capsys.readouterr().err == ""
    assert len(load_dataset("imagefolder", root).labels) == len(images)
    said = f"{root}: passed over 1 folder (val): only train/ and test/ are read\n"
    assert capsys.readouterr().err == said


def test_of_an_animation_the_first_picture_is_read_and_said(animals, capsys):
    root, images = animals
    place = root / "train" / "cat"
    side = next(iter(images.values())).shape[-1]
    shades = [Image.new("L", (side, side), 40 * i) for i in range(3)]
    (place / "0.png").unlink()
    shades[1].save(place / "0.gif", save_all=True, append_images=shades[2:])
    found = load_dataset("imagefolder", root).images
    assert capsys.readouterr().err == (
        f"1 of {len(images)} files hold several pictures, of which the first is read: {place / '0.gif'}\n"
    )
    assert any((image == 40).all() for image in found) and not any((image == 80).all() for image in found)


def test_a_picture_that_is_a_program_is_not_run(animals, monkeypatch):
    root, _ = animals
    monkeypatch.setattr("subprocess.Popen", None)  # no interpreter of PostScript can be called
    head = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    (root / "train" / "cat" / "5.png").write_text(head + "(%pipe%id) (r) file\n")
    with pytest.raises(UserError, match="5.png cannot be read as an image .cannot identify"):
        load_dataset("imagefolder", root)


def test_unreadable_pictures_are_counted_and_named(animals):
    root, images = animals
    for name in ("0", "2"):
        (root / "train" / "cat" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"2 of {len(images)} files.*cat/0.png.*cat/2.png"):
        load_dataset("imagefolder", root)


def test_a_broken_jpeg_is_named(tmp_path, animals):
    root, _ = animals
    picture(root / "train" / "cat" / "5.jpg")
    shortened(root / "train" / "cat" / "5.jpg")
    with pytest.raises(UserError, match="5.jpg"):
        load_dataset("imagefolder", root)


# --- published data sets, in the form they are published in


def pickled(content):
    return pickle.dumps(content, protocol=2)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 with three images a batch: the files as they are distributed, with their own checksums."""
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    pixels = noise(18, 3, 32, 32)
    labels = torch.arange(18) % 10
    files = {
        name: pickled(
            {"data": pixels[i : i + 3].reshape(3, -1).numpy(), "labels": labels[i : i + 3].tolist()}
        )
        for name, i in zip(batches, range(0, 18, 3), strict=True)
    }
    files["batches.meta"] = pickled({"label_names": [f"kind {k}" for k in range(10)]})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[name, sums[name]] for name in batches[:5]])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [[name, sums[name]] for name in batches[5:]])
    monkeypatch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": sums["batches.meta"]})
    for name, content in files.items():
        written(tmp_path / "cifar-10-batches-py" / name, content)
    return tmp_path, pixels, labels


def offline(*_, **__):
    raise urllib.error.URLError("no route to host")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", offline)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_its_batches(cifar, inner, no_network):
    root, pixels, labels = cifar
    data = load_dataset("cifar10", root / inner)
    assert torch.equal(data.images, pixels) and torch.equal(data.labels, labels)
    assert (data.n_train, data.classes[3], data.flip, data.pad) == (15, "kind 3", True, 4)
    assert load_dataset("cifar10", root, size=16).images.shape == (18, 3, 16, 16)


def test_cifar10_is_unpacked_from_its_archive(cifar, no_network):
    root, pixels, _ = cifar
    pack(root)
    assert torch.equal(load_dataset("cifar10", root, download=False).images, pixels)
    assert sorted(p.name for p in root.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def pack(root):
    """Put the batches into the archive of the distribution."""
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    removed(root / "cifar-10-batches-py")


def test_a_download_arrives_whole(cifar, monkeypatch, tmp_path):
    root, pixels, _ = cifar
    pack(root)
    archive = (root / "cifar-10-python.tar.gz").read_bytes()
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())

    class Answer(io.BytesIO):
        url = tv.CIFAR10.url
        length = len(archive)

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer(archive))
    fresh = tmp_path / "new" / "folder"
    assert torch.equal(load_dataset("cifar10", fresh).images, pixels)
    assert [p.name for p in fresh.iterdir()] == ["cifar-10-batches-py"]

    Answer.read = lambda self, size=-1: offline() if self.tell() else io.BytesIO.read(self, 100)
    broken = tmp_path / "broken"
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_dataset("cifar10", broken)
    assert list(broken.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "tiny_imagenet"])
def test_without_network_the_folder_and_what_belongs_there_are_named(name, tmp_path, no_network):
    wanted = {
        "cifar10": "cifar-10-batches-py (or cifar-10-python.tar.gz)",
        "cifar100": "cifar-100-python (or cifar-100-python.tar.gz)",
        "svhn": "train_32x32.mat and test_32x32.mat",
        "tiny_imagenet": "tiny-imagenet-200",
    }[name]
    for download in (True, False):
        with pytest.raises(UserError) as refusal:
            load_dataset(name, tmp_path, download=download)
        message = str(refusal.value)
        assert f"{name} is not in {tmp_path}" in message and wanted in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_copy_is_refused(cifar, no_network):
    root, _, _ = cifar
    pack(root)
    shortened(root / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"tar\.gz is damaged"):
        load_dataset("cifar10", root)
    written(root / "cifar-10-batches-py" / "data_batch_1", b"half a file")
    with pytest.raises(UserError, match="is damaged or incomplete: delete cifar-10-batches-py"):
        load_dataset("cifar10", root)


def test_an_archive_of_other_images_is_refused_and_leaves_nothing(cifar, no_network):
    root, _, _ = cifar
    written(root / "cifar-10-batches-py" / "data_batch_2", pickled({"data": [], "labels": []}))
    pack(root)
    with pytest.raises(UserError, match=r"tar\.gz is damaged"):
        load_dataset("cifar10", root)
    assert [p.name for p in root.iterdir()] == ["cifar-10-python.tar.gz"]


def test_class_folders_are_told_from_the_original_files(animals, no_network):
    root, _ = animals
    with pytest.raises(UserError, match="is dataset imagefolder"):
        load_dataset("cifar10", root)


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    pixels = noise(6, 3, 32, 32)
    files = {"meta": pickled({"fine_label_names": [f"kind {k}" for k in range(100)]})}
    for name, rows in (("train", range(4)), ("test", range(4, 6))):
        flat = pixels[list(rows)].reshape(len(rows), -1).numpy()
        files[name] = pickled(
            {"data": flat, "fine_labels": [90 + i for i in rows], "coarse_labels": [0 for _ in rows]}
        )
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(tv.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(tv.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(tv.CIFAR100, "meta", {**tv.CIFAR100.meta, "md5": sums["meta"]})
    for name, content in files.items():
        written(tmp_path / "cifar-100-python" / name, content)
    data = load_dataset("cifar100", tmp_path, download=False)
    assert torch.equal(data.images, pixels) and data.labels.tolist() == [90, 91, 92, 93, 94, 95]
    assert (data.n_train, len(data.classes)) == (4, 100)


def test_svhn_calls_zero_ten(tmp_path, monkeypatch):
    pixels, labels = noise(5, 3, 32, 32), torch.tensor([1, 0, 9, 0, 4])
    for name, rows in (("train", slice(0, 3)), ("test", slice(3, 5))):
        as_stored = labels[rows].numpy().astype(np.uint8)[:, None]
        as_stored[as_stored == 0] = 10
        file = tmp_path / f"{name}_32x32.mat"
        scipy.io.savemat(file, {"X": pixels[rows].permute(2, 3, 1, 0).numpy(), "y": as_stored})
        known = tv.SVHN.split_list[name]
        monkeypatch.setitem(
            tv.SVHN.split_list, name, [*known[:2], hashlib.md5(file.read_bytes()).hexdigest()]
        )
    data = load_dataset("svhn", tmp_path, download=False)
    assert torch.equal(data.images, pixels) and torch.equal(data.labels, labels)
    assert (data.n_train, augmentation(data)) == (3, None)


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n02", "n01"):
        for i in range(2):
            picture(root / "train" / name / "images" / f"{name}_{i}.JPEG", size=(64, 64), seed=i)
        (root / "train" / name / f"{name}_boxes.txt").write_text("boxes")
    picture(root / "val" / "images" / "val_0.JPEG", mode="L", size=(64, 64))
    picture(root / "val" / "images" / "val_1.JPEG", size=(64, 64), seed=8)
    (root / "val" / "val_annotations.txt").write_text(
        "val_1.JPEG\tn02\t0\t0\t9\t9\nval_0.JPEG\tn01\t0\t0\t9\t9\n"
    )
    picture(root / "test" / "images" / "test_0.JPEG", size=(64, 64))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tpug, pug-dog\nn03\tcrane\n")
    return root


def test_tiny_imagenet_is_tested_on_its_validation_part(tiny):
    data = load_dataset("tiny_imagenet", tiny)
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 0]
    assert (data.n_train, data.classes, data.pad, data.flip) == (4, ("goldfish", "pug"), 4, True)
    assert data.images.shape == (6, 3, 64, 64)
    assert torch.equal(data.images[5, 0], data.images[5, 2])  # the grey one
    assert load_dataset("tiny_imagenet", tiny.parent).digest == data.digest
    small = load_dataset("tiny_imagenet", tiny, size=32)
    assert (small.images.shape[-1], small.pad) == (32, 2)


def test_classes_of_one_name_keep_their_wordnet_ids(tiny):
    (tiny / "words.txt").write_text("n01\tcrane\nn02\tcrane, machine\n")
    assert load_dataset("tiny_imagenet", tiny).classes == ("n01", "n02")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: (d / "val" / "val_annotations.txt").unlink(), "val_annotations.txt is missing"),
        (lambda d: (d / "val" / "val_annotations.txt").write_text("val_0.JPEG n01"), "without a known class"),
        (lambda d: (d / "val" / "images" / "val_0.JPEG").unlink(), "val_0.JPEG cannot be read"),
        (lambda d: emptied(d / "train" / "n02" / "images"), "class 'n02' has no images"),
    ],
)
def test_an_incomplete_tiny_imagenet_is_refused(tiny, harm, message):
    harm(tiny)
    with pytest.raises(UserError) as refusal:
        load_dataset("tiny_imagenet", tiny)
    assert message in str(refusal.value)


def test_the_size_and_name_asked_for_are_checked():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_dataset("cifar-10")
    with pytest.raises(UserError, match="image_size must be at least 1"):
        load_dataset("digits", size=0)


# --- data sets given from Python


class Listed(Dataset):
    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


FORMS = {
    "PIL": lambda x: Image.fromarray(x.permute(1, 2, 0).numpy()),
    "uint8 tensor": lambda x: x,
    "float tensor": lambda x: x / 255,
    "uint8 array": lambda x: x.permute(1, 2, 0).numpy(),
    "float array": lambda x: x.permute(1, 2, 0).double().numpy() / 255,
    "array, channels first": lambda x: x.numpy(),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_come_in_many_forms(form):
    images = noise(6, 3, 5, 5)
    items = [
        (FORMS[form](x), torch.tensor(i % 2) if i % 3 else np.int64(i % 2)) for i, x in enumerate(images)
    ]
    data = from_datasets(Listed(items[:4], classes=["no", "yes"]), Listed(items[4:]), name="mine")
    assert torch.equal(data.images, images) and data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (data.n_train, data.classes, data.name, augmentation(data)) == (4, ("no", "yes"), "mine", None)


def test_channels_of_a_three_pixel_image_come_first_in_a_tensor_and_last_in_an_array():
    x = noise(3, 3, 3)
    data = from_datasets(Listed([(x, 0), (x.numpy(), 1)]), Listed([(x, 0)]), name="ambiguous")
    assert torch.equal(data.images[0], x) and torch.equal(data.images[1], x.permute(2, 0, 1))


def test_grey_images_and_sizes():
    items = [(noise(7, 7, seed=i), i) for i in range(2)]
    assert from_datasets(Listed(items), Listed(items), name="grey").images.shape == (4, 1, 7, 7)
    mixed = [(noise(3, 8, 8 + i), i) for i in range(2)]
    assert from_datasets(Listed(mixed), Listed(mixed), name="mixed", size=4).images.shape == (4, 3, 4, 4)


def test_without_a_test_set_a_fifth_of_each_class_is_used():
    items = [(noise(1, 2, 2, seed=i), 0 if i < 10 else 1) for i in range(40)]
    data, again = (from_datasets(Listed(items), name="mine", classes=("a", "b")) for _ in range(2))
    assert data.n_train == 32
    assert torch.bincount(data.labels[32:]).tolist() == [2, 6]
    assert data.digest == again.digest
    pixels = {x.numpy().tobytes() for x in data.images}
    assert pixels == {x.numpy().tobytes() for x, _ in items}


class Streamed(IterableDataset):
    def __iter__(self):
        return iter([])


class Random(Listed):
    def __getitem__(self, row):
        return torch.rand(1, 4, 4), row


GOOD = [(noise(3, 4, 4, seed=i), i % 2) for i in range(4)]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([], GOOD, "mine (train) holds no images"),
        (GOOD, [], "mine (test) holds no images"),
        (Streamed(), GOOD, "a Streamed cannot be indexed"),
        (Random([0] * 4), GOOD, "differs when read again: leave random transforms out"),
        ([(torch.randn(3, 4, 4) * 9, 0)], GOOD, "leave out normalisation"),
        ([(torch.full((3, 4, 4), float("nan")), 0)], GOOD, "instead of 0 to 1"),
        ([(torch.zeros(3, 4, 4, dtype=torch.int64), 0)], GOOD, "torch.int64 pixels"),
        ([(noise(2, 4, 4), 0)], GOOD, "give 1 or 3 channels"),
        ([(noise(3, 4, 5), 0)], GOOD, "3x4x5, not square"),
        ([(noise(3, 4, 4), 0), (noise(3, 5, 5), 1)], GOOD, "item 1 is 3x5x5, item 0 is 3x4x4"),
        ([(noise(1, 4, 4), 0)], GOOD, "training images are 1x4x4, test images 3x4x4"),
        ([noise(3, 4, 4)], GOOD, "is not (image, label)"),
        ([(noise(3, 4, 4), 0.5)], GOOD, "is not (image, label)"),
        ([(noise(3, 4, 4), -1)], GOOD, "is not (image, label)"),
        ([(noise(3, 4, 4), "cat")], GOOD, "is not (image, label)"),
        (GOOD[:3], None, "class 1 has one image only"),
        (Listed(GOOD, classes=["one"]), GOOD, "there are 1 class names"),
    ],
)
def test_data_sets_that_cannot_be_used_are_refused(train, test, message):
    train, test = (Listed(part) if isinstance(part, list) else part for part in (train, test))
    with pytest.raises(UserError) as refusal:
        from_datasets(train, test, name="mine")
    assert message in str(refusal.value)


@pytest.mark.long
def test_noisy_digits_are_learned_by_heart_and_not_easy():
    """The paper's regime: the original model is right on what it saw, a retrained one errs on what it did not see."""
    data = load_dataset("noisy_digits")
    split = split_data(data, scenario="random", seed=0, forget_fraction=0.1)
    mean, std = data.moments

    def trained(ids):
        net = build_model("resnet6", classes=10, channels=1, size=8, seed=0, mean=mean, std=std)
        batches = Batches(data.images[ids], data.labels[ids], ids)
        loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
        return train_network(net, batches, loss, recipe=RECIPES["digits_short"], seed=0)[0]

    def accuracy(model, role):
        ids = split[role]
        with torch.no_grad():
            return (model(data.images[ids].float() / 255).argmax(dim=1) == data.labels[ids]).double().mean()

    original, retrained = trained(split.train), trained(split["retain"])
    assert accuracy(original, "forget") == accuracy(original, "retain") == accuracy(retrained, "retain") == 1
    assert 0.01 < 1 - accuracy(retrained, "forget") < 0.12
    assert 0.9 < accuracy(original, "test") < 0.97 and 0.9 < accuracy(retrained, "test") < 0.97


def test_a_class_folder_whose_name_is_no_text_is_refused(tmp_path):
    (tmp_path / "train" / os.fsdecode(b"caf\xe9")).mkdir(parents=True)
    with pytest.raises(UserError, match=r"the name of the folder b'caf\\xe9' is not UTF-8: rename it"):
        load_dataset("imagefolder", tmp_path)


def test_a_class_folder_whose_name_is_shown_as_another_is_refused(tmp_path):
    (tmp_path / "train" / "gpj\u202etac").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the name 'gpj\\u202etac' holds an unseen character"):
        load_dataset("imagefolder", tmp_path)
