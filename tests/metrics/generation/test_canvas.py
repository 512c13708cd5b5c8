import pytest
import torch

from salun_core.data.prompts import crossed_prompts
from salun_core.errors import UserError
from salun_core.metrics.generation.canvas import retention
from salun_core.metrics.generation.recognition import Recognition

DOMAINS = {"style": ["Van_Gogh", "Sketch", "Crayon"], "object": ["Cats", "Dogs"]}


def test_prompts_for_every_combination():
    prompts, asked = crossed_prompts(DOMAINS)
    assert prompts.texts[:3] == (
        "A Cats image in Van Gogh style.",
        "A Dogs image in Van Gogh style.",
        "A Cats image in Sketch style.",
    )
    assert asked == {"style": (0, 0, 1, 1, 2, 2), "object": (0, 1, 0, 1, 0, 1)}
    with pytest.raises(UserError, match=r"must hold each of \{style\}, \{object\} once"):
        crossed_prompts(DOMAINS, "A {object} image.")
    with pytest.raises(UserError, match="holds no prompts"):
        crossed_prompts({"style": [], "object": ["Cats"]})


def test_axes_worked_out_by_hand():
    _, asked = crossed_prompts(DOMAINS)
    seen = {"style": [1, 0, 1, 2, 2, 0], "object": [1, 1, 0, 0, 0, 1]}
    found = retention(asked, seen, domain="style", forgotten=0)
    # Images 0 and 1 ask for style 0: only the first has lost it. Their objects count nowhere.
    assert (found.unlearned.value, found.unlearned.n) == (1 / 2, 2)
    # Of images 2 to 5 the styles of 2 and 4 are right, and all objects but that of 3.
    assert (found.in_domain.value, found.in_domain.n) == (2 / 4, 4)
    assert (found.cross_domain.value, found.cross_domain.n) == (3 / 4, 4)
    assert found.columns() == {"UA": 0.5, "IRA": 0.5, "CRA": 0.75}
    other = retention(asked, seen, domain="object", forgotten=1)
    # Images 1, 3, 5 ask for object 1, and 3 has lost it; of 0, 2, 4 one object is wrong, and one style.
    assert other.columns() == pytest.approx({"UA": 1 / 3, "IRA": 2 / 3, "CRA": 2 / 3})


def test_several_concepts_are_forgotten_together():
    _, asked = crossed_prompts(DOMAINS)
    seen = {"style": [1, 2, 0, 2, 2, 0], "object": [0, 1, 0, 1, 0, 0]}
    found = retention(asked, seen, domain="style", forgotten=[0, 1])
    # 1 in the place of 0, and 0 in the place of 1, are not forgotten: images 1 and 3 are.
    assert (found.unlearned.value, found.unlearned.n) == (2 / 4, 4)
    assert found.in_domain.value == 1 / 2 and found.cross_domain.value == 1 / 2


def test_all_other_domains_count():
    asked = {"style": [0, 1], "object": [0, 1], "place": [0, 1]}
    seen = {"style": [1, 1], "object": [0, 1], "place": [0, 0]}
    found = retention(asked, seen, domain="style", forgotten=0)
    assert (found.cross_domain.value, found.cross_domain.n) == (1 / 2, 2)


def test_what_does_not_fit_is_refused():
    asked = {"style": [0, 1], "object": [0, 1]}
    for wrong, message in (
        ({"asked": asked, "seen": {"style": [0, 1]}}, "give the same domains"),
        ({"asked": {"style": [0, 1]}, "seen": {"style": [0, 1]}}, "is the only domain"),
        ({"asked": asked, "seen": {"style": [0, 1], "object": [0]}}, "2 images came with 2 concepts"),
    ):
        with pytest.raises(UserError, match=message):
            retention(**wrong, domain="style", forgotten=0)
    with pytest.raises(UserError, match="unknown domain 'styles': did you mean 'style'"):
        retention(asked, asked, domain="styles", forgotten=0)


def test_recognition_of_several_forgotten_classes():
    counts = torch.tensor([[1, 2, 3, 4], [5, 0, 1, 0], [2, 0, 7, 1], [0, 1, 4, 5]])
    found = Recognition(counts)
    assert found.unlearning_accuracy([0, 1]).value == pytest.approx((3 + 4 + 1) / 16)
    assert found.other_accuracy([0, 1]).value == pytest.approx((7 + 5) / 20)
    assert found.strays((0, 1)).value == pytest.approx((2 + 1) / 20)
    for name in ("unlearning_accuracy", "other_accuracy", "strays"):
        assert getattr(found, name)([2]) == getattr(found, name)(2)
    assert found.unlearning_accuracy(2).value == pytest.approx(3 / 10)
