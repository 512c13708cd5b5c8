from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import ResNet50_Weights, resnet50

from salun_core.data.downloads import DOWNLOADS
from salun_core.data.prompts import IMAGENETTE
from salun_core.errors import UserError
from salun_core.metrics.generation import imagenet
from salun_core.metrics.generation.recognition import recognise
from salun_core.rng import isolated

pytestmark = pytest.mark.long

RESNET_FILE = DOWNLOADS["resnet50"].files[0].name


def pixels(n, size=8, channels=3):
    return torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / RESNET_FILE
    with isolated(0, "resnet50"):
        torch.save(resnet50(weights=None).state_dict(), path)
    return path


def test_images_are_prepared_as_torchvision_does():
    images = pixels(2, size=300)[:, :, :, :260]
    expected = ResNet50_Weights.IMAGENET1K_V2.transforms()(images.float() / 255)
    torch.testing.assert_close(imagenet.prepared(images.float() / 255), expected, atol=1e-4, rtol=1e-4)


def test_a_class_wins_exactly_if_it_is_first_of_all_thousand(weights):
    judge = imagenet.imagenet_judge(weights)
    images = pixels(2, size=64).float() / 255
    with torch.no_grad():
        first = judge.network(imagenet.prepared(images)).argmax(1)
        for number in (566, int(first[0])):
            # Lift one class above all others, one of the ten or not.
            judge.network.fc.bias[number] += 1e9
            seen = judge(images).argmax(1)
            names = list(IMAGENETTE.values())
            assert (seen == (names.index(number) if number in names else 10)).all()
            judge.network.fc.bias[number] -= 1e9
    assert judge.classes[10] == imagenet.OTHER
    counts = recognise(judge, pixels(4, size=64), [3, 3, 0, 1], classes=11).counts
    assert counts.sum(1).tolist() == [1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0]


def test_classes_are_found_by_wordnet_id_or_name():
    numbers = tuple(IMAGENETTE.values())
    ids = [imagenet.imagenet_ids()[number] for number in numbers]
    assert imagenet.imagenet_numbers(list(IMAGENETTE)) == numbers
    assert imagenet.imagenet_numbers(ids) == imagenet.imagenet_numbers(ids, list(IMAGENETTE)) == numbers
    assert imagenet.imagenet_numbers(["golf_ball", "ENGLISH SPRINGER"]) == (574, 217)
    assert imagenet.imagenet_numbers(["class a", "class b"], ["church", "n01440764"]) == (497, 0)
    assert imagenet.imagenet_numbers(["cardigan", "Cardigan"]) == (474, 264)


def test_the_table_of_wordnet_ids_is_that_of_timm():
    file = Path(find_spec("timm").origin).with_name("data") / "_info" / "imagenet_synsets.txt"
    assert list(imagenet.imagenet_ids()) == file.read_text().split()
    assert list(imagenet.imagenet_ids()) == sorted(imagenet.imagenet_ids())
    assert len(set(imagenet.imagenet_names())) == len(imagenet.imagenet_ids()) == 1000


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (["church", "nude person"], [], "does not know class 'nude person'"),
        (["church", "gulf ball"], [], "did you mean 'golf ball'"),
        (["church", "CARDIGAN"], [], "did you mean 'cardigan'"),
        (["n03028079", "n99999999"], [], "does not know class 'n99999999'"),
        (
            ["n03028079", "n01440764"],
            ["tench", "church"],
            "'n03028079' is 'church' in ImageNet, but class_names",
        ),
        (["church", "n03028079"], [], "both 'church'"),
    ],
)
def test_classes_that_are_not_of_imagenet_are_refused(classes, names, message):
    with pytest.raises(UserError, match=message):
        imagenet.imagenet_numbers(classes, names)


def test_two_classes_are_judged_as_two(weights):
    judge = imagenet.imagenet_judge(weights, numbers=(574, 217))
    assert judge.classes == ("golf ball", "English springer", imagenet.OTHER)
    judge.network.fc.bias.data[574] += 1e9
    counts = recognise(judge, pixels(4, size=64), [0, 0, 1, 1], classes=3).counts
    assert counts.tolist() == [[2, 0, 0], [2, 0, 0], [0, 0, 0]]


def test_weights_are_looked_for_in_torchs_cache(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"resnet50-11ad3fa6\.pth, which is missing: run .*fetch resnet50"):
        imagenet.imagenet_judge()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / RESNET_FILE).write_bytes(weights.read_bytes())
    judge = imagenet.imagenet_judge()
    own = torch.load(weights, weights_only=True)["fc.weight"]
    assert torch.equal(F.normalize(judge.network.fc.weight), F.normalize(own))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"x": torch.zeros(1)}, path)
    for given in (path, tmp_path / "none.pth"):
        with pytest.raises(UserError, match=r"does not hold|is missing"):
            imagenet.imagenet_judge(given)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="does not hold"):
        imagenet.imagenet_judge(path)
