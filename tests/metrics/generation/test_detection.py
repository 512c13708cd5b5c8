import builtins
import math
from dataclasses import replace

import matplotlib.cbook
import numpy as np
import pytest
import torch
from torch import nn

from salun_core.errors import UserError
from salun_core.files import sha256
from salun_core.metrics.generation.detection import (
    EXPOSED,
    NUDENET_LABELS,
    Detections,
    Detector,
    DetectorCard,
    DistanceCard,
    EvaluationCard,
    SamplerCard,
    classifier_detector,
    detect,
    detection_counts,
    false_positives,
    joined,
    nudenet_detector,
    redacted,
    thresholds_of,
)
from salun_core.metrics.share import wilson

CARD = DetectorCard("boxes", "1", "0" * 64, ("arm", "leg"), 0.2, True)
FOUND = [  # image 0: two arms; image 1: nothing; image 2: a leg
    [(0, 0.9, (1, 1, 2, 2)), (0, 0.3, (4, 4, 2, 2))],
    [],
    [(1, 0.5, (0, 0, 3, 1))],
]


def boxes():
    return Detector(CARD, lambda images: FOUND[: len(images)])


def white(n=3, size=8):
    return torch.full((n, 3, size, size), 255, dtype=torch.uint8)


def found():
    return detect(boxes(), white())


@pytest.fixture(scope="module")
def nudenet():
    pytest.importorskip("nudenet")
    return nudenet_detector()


@pytest.fixture(scope="module")
def portrait():
    """A uint8 (1, 3, H, W) portrait that comes with matplotlib."""
    from PIL import Image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = np.asarray(Image.open(file).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def test_counts_at_each_threshold_by_hand():
    table = detection_counts(found(), thresholds=[0.2, 0.4, 0.95])
    rows = {(t, c): (k, i) for t, c, k, i, _ in table.itertuples(index=False)}
    assert rows[0.2, "arm"] == (2, 1) and rows[0.2, "leg"] == (1, 1) and rows[0.2, "any"] == (3, 2)
    assert rows[0.4, "arm"] == (1, 1) and rows[0.4, "any"] == (2, 2)
    assert rows[0.95, "any"] == (0, 0)
    assert (table["n"] == 3).all()


def test_a_score_at_the_threshold_counts():
    counts = detection_counts(found(), thresholds=[0.3])
    assert counts.set_index("category").loc["arm", "count"] == 2


def test_the_whole_range_is_the_default_and_counts_never_rise():
    table = detection_counts(found())
    assert sorted(table["threshold"].unique()) == thresholds_of(CARD)
    assert table["threshold"].min() == CARD.floor and table["threshold"].max() < 1
    for _, mine in table.groupby("category"):
        assert (mine.sort_values("threshold")["count"].diff().dropna() <= 0).all()


def test_categories_join_classes():
    table = detection_counts(found(), thresholds=[0.2], categories={"limb": ("arm", "leg")})
    assert table[["category", "count"]].to_numpy().tolist() == [["limb", 3], ["any", 3]]


def test_false_positives_are_shares_of_images_with_their_interval():
    row = false_positives(found(), thresholds=[0.2]).set_index("category").loc["any"]
    expected = wilson(2, n=3)
    assert (row["value"], row["low"], row["high"], row["n"]) == pytest.approx(
        (2 / 3, expected.low, expected.high, 3)
    )


def test_no_images_have_no_share():
    nothing = detect(boxes(), white(0))
    assert nothing.n == 0 and nothing.boxes.shape == (0, 4)
    assert math.isnan(false_positives(nothing, thresholds=[0.5])["value"].iloc[0])


def test_stored_detections_come_back(tmp_path):
    path = found().save(tmp_path / "found.safetensors")
    again = Detections.load(path)
    assert again.card == CARD and again.n == 3
    assert detection_counts(again).equals(detection_counts(found()))


def test_sets_searched_one_after_the_other_join():
    both = joined([found(), found()])
    assert both.n == 6 and both.images.tolist() == [0, 0, 2, 3, 3, 5]
    with pytest.raises(UserError, match="one detector"):
        joined([found(), replace(found(), card=replace(CARD, version="2"))])


def test_detections_of_some_classes():
    arms = found().only(["arm"])
    assert arms.images.tolist() == [0, 0] and arms.n == 3 and arms.card == CARD
    assert redacted(white(), arms).covered.tolist() == [True, False, False]


@pytest.mark.parametrize("change", ["truncated", "score", "card"])
def test_stored_detections_that_were_changed_are_refused(tmp_path, change):
    path = found().save(tmp_path / "found.safetensors")
    content = bytearray(path.read_bytes())
    if change == "truncated":
        content = content[:-5]
    elif change == "score":
        content[-1] ^= 1
    else:
        content = bytearray(bytes(content).replace(b'name\\": \\"boxes', b'name\\": \\"foxes'))
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"damaged|changed"):
        Detections.load(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: detection_counts(found(), thresholds=[0.1]), "below 0.2"),
        (lambda: detection_counts(found(), categories={"x": ("arms",)}), "did you mean 'arm'"),
        (lambda: detection_counts(found(), categories={"any": ("arm",)}), "cannot be called 'any'"),
        (lambda: detect(boxes(), white().float()), "uint8"),
        (lambda: redacted(white(2), found()), "3 images were searched and 2"),
        (lambda: redacted(white(), found(), margin=-1), "may not shrink"),
        (lambda: redacted(white(), found(), threshold=1.5), "no score reaches"),
        (lambda: replace(found(), labels=torch.tensor([0, 0, 7])), "label 7"),
        (lambda: Detections.load("/nowhere"), "cannot read"),
        (lambda: classifier_detector(nn.Linear(1, 2), ["a", "b"], floor=1.0), "floor must lie"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


# --- covering -------------------------------------------------------------------------------------------


def test_every_detection_is_black_by_default():
    images = white()
    shown = redacted(images, found(), margin=0)
    for row, each in enumerate(FOUND):
        for _, _, (left, top, w, h) in each:
            assert (shown.images[row, :, top : top + h, left : left + w] == 0).all()
    assert (images == 255).all()  # the given images are left alone
    assert (shown.images[1] == 255).all()
    assert shown.covered.tolist() == [True, False, True]


def test_boxes_grow_by_their_margin_and_one_pixel():
    card = replace(CARD, floor=0.0)
    one = Detections(
        card,
        1,
        torch.tensor([0]),
        torch.tensor([0]),
        torch.tensor([0.1]),
        torch.tensor([[4, 4, 10, 4]]),
    )
    black = (redacted(white(1, 20), one, margin=0.2).images[0, 0] == 0).nonzero()
    assert black.amin(0).tolist() == [3, 1] and black.amax(0).tolist() == [8, 16]


def test_a_raised_threshold_covers_less_and_says_so():
    shown = redacted(white(), found(), threshold=0.6)
    assert shown.covered.tolist() == [True, False, False]
    assert "0.6" in shown.note and "0.6" not in redacted(white(), found()).note


def test_without_a_place_the_whole_image_is_covered():
    given = found()
    blind = replace(given, card=replace(CARD, localises=False))
    shown = redacted(white(), blind)
    assert (shown.images[[0, 2]] == 0).all() and (shown.images[1] == 255).all()


# --- a classifier as detector ---------------------------------------------------------------------------


class Brightness(nn.Module):
    """Logits whose softmax is (mean brightness, 1 - mean brightness)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        p = images.flatten(1).mean(1).clamp(1e-6, 1 - 1e-6)
        return self.scale * torch.stack([p.log(), (1 - p).log()], dim=1)


def test_a_classifier_reports_its_probabilities():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(-1, 1, 4, 4)
    seen = detect(classifier_detector(Brightness(), ["bright", "dark"], watched=["bright"]), images)
    assert seen.images.tolist() == [1, 2]
    assert seen.scores.tolist() == pytest.approx([0.2, 1.0], abs=1e-5)
    assert seen.boxes.tolist() == [[0, 0, 4, 4]] * 2
    assert not seen.card.localises
    assert (redacted(images, seen).images == 0).all()


def test_the_card_names_the_weights():
    a, b = Brightness(), Brightness()
    with torch.no_grad():
        b.scale += 1
    digests = [classifier_detector(m, ["x", "y"]).card.weights for m in (a, Brightness(), b)]
    assert digests[0] == digests[1] != digests[2]


# --- NudeNet --------------------------------------------------------------------------------------------


def test_the_list_of_nudenets_classes_is_the_packages(nudenet):
    import nudenet.nudenet as package

    assert tuple(package.__labels) == NUDENET_LABELS
    assert sorted(c for group in EXPOSED.values() for c in group) == sorted(
        c for c in NUDENET_LABELS if c.endswith("_EXPOSED")
    )


def test_nudenet_finds_the_face_of_a_portrait(nudenet, portrait):
    seen = detect(nudenet, portrait)
    names = [NUDENET_LABELS[k] for k in seen.labels.tolist()]
    assert "FACE_FEMALE" in names
    left, top, w, h = seen.boxes[names.index("FACE_FEMALE")].tolist()
    assert left < 260 < left + w and top < 170 < top + h  # the nose
    shown = redacted(portrait, seen).images[0]
    assert (shown[:, top : top + h, left : left + w] == 0).all()
    assert (shown != 0).any()


def test_nudenet_sees_an_array_as_it_sees_the_file(nudenet, portrait, tmp_path):
    from nudenet import NudeDetector
    from PIL import Image

    path = tmp_path / "portrait.png"
    Image.fromarray(portrait[0].permute(1, 2, 0).numpy()).save(path)
    of_file = NudeDetector().detect(str(path))
    of_array = detect(nudenet, portrait)
    assert len(of_file) > 0
    assert of_array.scores.tolist() == pytest.approx([f["score"] for f in of_file], rel=1e-6)
    assert of_array.boxes.tolist() == [f["box"] for f in of_file]


def test_nudenet_reports_nothing_below_its_floor(nudenet, portrait):
    import nudenet.nudenet as package

    # Scores of all its 2,100 places, made up: 0.0, 0.01, …, each in a box of its own.
    raw = np.zeros((1, 4 + len(NUDENET_LABELS), 100), dtype=np.float32)
    raw[0, 0] = 3 * np.arange(100)
    raw[0, 2:4] = 1
    raw[0, 4] = np.arange(100) / 100
    kept = package._postprocess([raw], 0, 0, 1, 1, 320, 320, 320, 320)
    assert min(f["score"] for f in kept) == pytest.approx(nudenet.card.floor, abs=0.011)


def test_nudenets_card_names_version_and_weights(nudenet):
    import nudenet as package

    assert nudenet.card.version.count(".") == 2
    assert nudenet.card.weights == sha256(package.__path__[0] + "/320n.onnx")


def test_without_the_package_the_message_says_what_to_run(monkeypatch):
    genuine = builtins.__import__

    def absent(name, *rest, **more):
        if name == "nudenet":
            raise ImportError(name)
        return genuine(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match="pip install nudenet"):
        nudenet_detector()


# --- the card -------------------------------------------------------------------------------------------


def test_the_evaluation_card_names_what_a_number_depends_on():
    sampler = SamplerCard("DDIM", 50, 6.5, 0.0, "0 to 9", True)
    distance = DistanceCard("Inception", 2048, 500, "299 x 299", "real images", 900, 1.25)
    card = EvaluationCard(CARD, (0.2, 0.5), sampler, distance)
    shown = dict(card.rows())
    assert shown["Detector"] == "boxes 1"
    assert shown["Safety checker"] == "on"
    assert shown["Real against real"] == "1.25"
    assert card.as_dict()["detector"]["classes"] == ["arm", "leg"]
    assert "Resized" not in dict(EvaluationCard(CARD, (0.2,), sampler).rows())
