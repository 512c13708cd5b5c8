import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from salun_core.data.batches import Batches, Stream, as_loader
from salun_core.errors import UserError

CPU = torch.device("cpu")


def pictures(n=10):
    return torch.arange(n * 4).view(n, 1, 2, 2).float() / 100, torch.arange(n) % 3


def stream(source, **more):
    return Stream(source, CPU, **more)


def seen(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


class Noisy(TensorDataset):
    """Random transforms, as augmentation has them."""

    def __getitem__(self, row):
        image, label = super().__getitem__(row)
        return image + torch.rand(()), label


class Endless(IterableDataset):
    """A set without a length."""

    def __iter__(self):
        return iter(zip(*pictures(), strict=True))


@pytest.mark.parametrize(
    "batch",
    [
        pictures(),
        list(pictures()),
        (*pictures(), "a third thing"),
        dict(zip(("pixel_values", "labels"), pictures(), strict=True)),
        dict(zip(("image", "label"), pictures(), strict=True)),
        tuple(part.numpy() for part in pictures()),
        (pictures()[0], pictures()[1].int()),
        (pictures()[0], pictures()[1].tolist()),
    ],
)
def test_every_form_of_a_batch_gives_images_and_whole_numbers(batch):
    images, labels = next(iter(stream([batch])))
    assert torch.equal(images, pictures()[0])
    assert torch.equal(labels, pictures()[1]) and labels.dtype == torch.int64


def test_bytes_are_scaled_as_in_memory():
    bytes_ = torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8)
    images, _ = next(iter(stream([(bytes_, torch.tensor([0]))])))
    assert torch.allclose(images, torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]]))
    in_memory, _ = next(iter(Batches(bytes_, torch.tensor([0]), torch.tensor([0]))))
    assert torch.equal(images, in_memory)


def test_a_shuffling_and_augmenting_loader_is_repeatable_and_disturbs_nobody():
    loader = DataLoader(Noisy(*pictures()), batch_size=4, shuffle=True)
    data = as_loader(loader, device=CPU)
    state = torch.get_rng_state()
    plain = [seen(data)[0] for _ in range(2)]
    epochs = [seen(data.shuffled(torch.Generator().manual_seed(s)))[0] for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*plain)
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], plain[0])


def test_draws_between_two_batches_do_not_change_a_pass():
    loader = DataLoader(Noisy(*pictures()), batch_size=4, shuffle=True)
    once = [images for images, _ in stream(loader)]
    again = [(images, torch.rand(3))[0] for images, _ in stream(loader)]
    assert all(map(torch.equal, once, again))


def test_a_generator_given_to_the_loader_stays_as_it_is():
    own = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(*pictures()), batch_size=4, shuffle=True, generator=own)
    before = own.get_state()
    first, again = seen(stream(loader)), seen(stream(loader))
    assert torch.equal(own.get_state(), before)
    assert torch.equal(first[0], again[0])


def test_the_number_of_images_and_batches_is_found_where_the_loader_has_none():
    loader = DataLoader(Endless(), batch_size=4)
    data = stream(loader)
    assert (data.n, len(data)) == (10, 3)
    assert (data.resized(7).n, len(data.resized(7))) == (10, 2)


def test_batches_are_cut_anew_without_losing_an_image():
    data = stream(DataLoader(TensorDataset(*pictures()), batch_size=4))
    for size in (1, 3, 4, 9, 100):
        parts = list(data.resized(size))
        assert [len(images) for images, _ in parts][:-1] == [size] * (len(parts) - 1)
        assert len(parts) == len(data.resized(size))
        assert torch.equal(seen(parts)[0], pictures()[0])


def test_a_last_batch_of_one_image_borrows_one():
    data = stream(DataLoader(TensorDataset(*pictures(9)), batch_size=4))
    parts = list(data.shuffled(torch.Generator()))
    assert [len(images) for images, _ in parts] == [4, 3, 2]
    assert torch.equal(seen(parts)[1], pictures(9)[1])
    assert [len(images) for images, _ in data] == [4, 4, 1]  # measuring needs no such thing


def test_images_at_given_places_are_kept_in_that_order():
    rows = torch.tensor([7, 0, 5])
    part = stream(DataLoader(TensorDataset(*pictures()), batch_size=4)).subset(rows)
    assert torch.equal(part.images, pictures()[0][rows])
    assert torch.equal(part.labels, pictures()[1][rows])


def test_picked_images_are_held_once_and_a_loader_that_shrinks_is_named(monkeypatch):
    monkeypatch.setattr(torch, "stack", None)  # of single images, it would hold all of them twice
    images, labels = pictures()
    source = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    whole = stream(source)
    rows = torch.tensor([len(labels) - 1, 0])
    assert torch.equal(whole.subset(rows).labels, labels[rows])
    source.pop()
    with pytest.raises(UserError, match="gave 3 images, fewer than before"):
        whole.subset(rows)


def test_no_more_than_two_batches_are_held():
    alive = []

    class Counted(torch.Tensor):
        pass

    def batches():
        for _ in range(8):
            images = torch.zeros(3, 1, 2, 2).as_subclass(Counted)
            alive.append(weakref.ref(images))
            yield images, torch.zeros(3).long()

    class Source:
        def __iter__(self):
            return batches()

    for _ in stream(Source()).shuffled(torch.Generator()):
        assert sum(ref() is not None for ref in alive) <= 3  # the one in use, the one held, the one read


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "is a int"),
        (iter([pictures()]), "once only"),
        ([torch.zeros(2, 1, 2, 2)], "gives a Tensor"),
        ([{"pixels": 1}], "a dict with pixels"),
        ([(torch.zeros(1, 2, 2), 3)], "DataLoader"),
        ([(torch.zeros(1, 2, 2), torch.tensor(3))], "DataLoader"),
        ([(np.zeros((1, 2, 2)), np.int64(3))], "DataLoader"),
        ([(torch.zeros(2, 1, 2, 2), torch.zeros(3))], "2 images with 3 labels"),
        ([(torch.zeros(2, 1, 2, 2), [[1, 2], [3]])], "not tensors"),
        ([(torch.zeros(2, 1, 2, 2), ["cat", "dog"])], r"texts in place of class numbers: .* task\.forget"),
        (
            [{"pixel_values": torch.zeros(1, 1, 2, 2), "prompts": ["a cat"]}],
            "texts in place of class numbers",
        ),
    ],
)
def test_what_is_no_loader_of_batches_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        next(iter(as_loader(source, device=CPU)))


def test_a_data_set_that_counts_from_its_items_is_told_from_batches():
    with pytest.raises(UserError, match="DataLoader"):
        next(iter(as_loader(TensorDataset(*pictures()), device=CPU)))
