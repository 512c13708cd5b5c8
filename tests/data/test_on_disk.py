"""Image folders larger than memory: the same ids and numbers from a file of pixels as from memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import salun_core
from salun_core.data import image_files, load_dataset
from salun_core.data.augment import augmentation
from salun_core.data.images import fewer, only
from salun_core.data.on_disk import VARIABLE, is_mapped
from salun_core.errors import UserError
from salun_core.rng import generator

CPU = torch.device("cpu")
HERE = Path(salun_core.__file__).parents[1]


def folder_of(where, *, each, side, grey=False):
    rng = np.random.default_rng(0)
    for part, count in (("train", each), ("test", max(1, each // 5))):
        for name in ("bird", "cat", "dog"):
            (where / part / name).mkdir(parents=True)
            for i in range(count):
                corner = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
                picture = Image.fromarray(corner).resize((side, side), Image.Resampling.NEAREST)
                (picture.convert("L") if grey else picture).save(where / part / name / f"{i:05}.png")
    return where


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("pictures"), each=40, side=32)


@pytest.fixture
def both(folder, tmp_path, monkeypatch):
    """The folder in memory, and from a file."""
    monkeypatch.chdir(tmp_path)
    inside = load_dataset("imagefolder", folder, size=24)
    monkeypatch.setenv(VARIABLE, "0.01")
    outside = load_dataset("imagefolder", folder, size=24)
    assert is_mapped(outside.images) and not is_mapped(inside.images)
    return inside, outside


def same(one, other):
    return all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


def test_ids_numbers_and_batches_are_those_of_memory(both):
    inside, outside = both
    assert torch.equal(inside.images, outside.images) and torch.equal(inside.labels, outside.labels)
    assert inside.digest == outside.digest and inside.moments == outside.moments
    ids = torch.randperm(inside.n_train)[:70]
    parts = [d.batches(ids, device=CPU, size=16, augment=augmentation(d)) for d in both]
    assert parts[1].rows is not None
    assert same(*parts)
    assert same(*(part.shuffled(generator(3, "epoch")) for part in parts))
    rows = torch.tensor([5, 60, 2])
    assert same(*(part.subset(rows) for part in parts))
    assert torch.equal(parts[0].subset(rows).ids, parts[1].subset(rows).ids)
    chosen = [only(fewer(d, 60), ("dog", "bird")) for d in both]
    assert torch.equal(chosen[0].images, chosen[1].images) and chosen[0].digest == chosen[1].digest
    assert is_mapped(chosen[1].images)


def test_a_second_reading_decodes_nothing_unless_files_or_cache_changed(folder, both, monkeypatch, tmp_path):
    read = []
    picture = image_files._picture
    monkeypatch.setattr(
        image_files, "_picture", lambda file, *rest: read.append(file) or picture(file, *rest)
    )
    again = load_dataset("imagefolder", folder, size=24)
    assert len(read) == 1  # the first, for its size
    cache = max((tmp_path / "data/sets/cache").glob("*.pixels"), key=lambda path: path.stat().st_size)
    content = bytearray(cache.read_bytes())
    content[1000] ^= 255
    cache.write_bytes(content)
    mended = load_dataset("imagefolder", folder, size=24)
    assert len(read) > 100
    assert torch.equal(mended.images, both[0].images) and again.n_train == mended.n_train


def test_grey_sets_stay_grey_and_bad_limits_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "0.001")
    data = load_dataset("imagefolder", folder_of(tmp_path / "grey", each=5, side=16, grey=True))
    assert data.images.shape[1] == 1 and is_mapped(data.images)
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(UserError, match="give a number of MB"):
        load_dataset("imagefolder", tmp_path / "grey")


def test_nothing_is_left_of_a_cache_that_could_not_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "0.001")
    folder = folder_of(tmp_path / "some", each=5, side=16)
    (folder / "train" / "dog" / "00003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"00003\.png cannot be read"):
        load_dataset("imagefolder", folder)
    assert list((tmp_path / "data/sets/cache").iterdir()) == []


LIMITED = """
import resource, sys, torch
from pathlib import Path
from salun_core.data import load_dataset
from salun_core.rng import generator
torch.set_num_threads(1)
torch.ones(10).sum()
def of(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
room = int(sys.argv[2]) * 10**6
resource.setrlimit(resource.RLIMIT_DATA, (of("VmData") + room,) * 2)
Path("/proc/self/clear_refs").write_text("5")
before = of("VmRSS")
data = load_dataset("imagefolder", sys.argv[1], size=224)
for images, labels in data.batches(torch.arange(data.n_train), device=torch.device("cpu"), size=32).shuffled(generator(0)):
    pass
print(data.digest, data.images.numel(), data.moments[0][0], of("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_set_larger_than_the_memory_it_may_take(tmp_path):
    folder = folder_of(tmp_path / "large", each=700, side=224)
    room = 250  # MB, of 379 MB of pixels

    def run(limit):
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(folder), str(room)],
            cwd=tmp_path,
            env=os.environ | {VARIABLE: str(limit), "MALLOC_ARENA_MAX": "2", "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
        )

    mapped, held = run(20), run(10_000)
    assert mapped.returncode == 0, mapped.stderr
    assert held.returncode != 0 and "memory" in held.stderr.lower()
    _, pixels, _, grown = mapped.stdout.split()
    assert int(pixels) > 1.4 * room * 10**6
    assert int(grown) < room * 10**6
