import json
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup

from salun_core.experiments.classification.toy import ToyParams, run
from salun_core.pages.figures.interactive import SIDE, area, frame, margins, plane


@pytest.fixture(scope="module")
def toy():
    return run(ToyParams(steps=4, retrained=2))


@pytest.fixture(scope="module")
def piece(toy):
    return plane(toy)


def data_of(piece) -> dict:
    page = BeautifulSoup(piece._repr_html_(), "html.parser")
    return json.loads(page.find("script", type="application/json").string)


def test_a_piece_carries_its_data_a_picture_and_a_finding(piece):
    page = BeautifulSoup(piece._repr_html_(), "html.parser")
    assert page.figure["data-piece"] == "plane"
    assert page.select_one(".still img")["alt"] in page.figcaption.get_text()
    assert json.dumps(data_of(piece)) == json.dumps(piece.data)


def test_nothing_in_the_data_can_end_their_element(piece):
    from dataclasses import replace

    evil = replace(piece, data={"name": "</script><!-- <b>"})
    assert data_of(evil) == evil.data


def test_every_model_and_step_is_there(toy, piece):
    paths = data_of(piece)["paths"]
    assert [len(path["frames"]) for path in paths] == [2, 5, 5, 5]
    assert paths[2]["frames"][3]["UA"] == pytest.approx(toy.paths["salient"][3].metrics()["UA"], abs=1e-4)


def test_wrong_answers_are_those_of_the_metrics(toy, piece):
    n = toy.points["forget"].n
    for snapshot in toy.retrained:
        shown = frame(snapshot)
        assert sum(i < n for i in shown["wrong"]) == round(shown["UA"] * n)
        assert sum(i >= n for i in shown["wrong"]) == round((1 - shown["RA"]) * toy.points["retain"].n)


def test_an_area_covers_what_its_class_wins(toy):
    """Points of the drawn path lie on the boundary, within a unit of the drawing."""
    line = np.linspace(-1, 1, 41)
    x, y = np.meshgrid(line, line)
    numbers = [int(n) for n in re.findall(r"-?\d+", area(0.5 - np.hypot(x, y)))]
    points = np.cumsum(np.array(numbers).reshape(-1, 2), axis=0)
    radius = np.hypot(*(points - SIDE / 2).T)
    assert radius.min() > SIDE / 4 - 1.5
    assert radius.max() < SIDE / 4 + 1.5


def test_a_lower_half_is_drawn_in_the_lower_half():
    line = np.linspace(-1, 1, 41)
    _, y = np.meshgrid(line, line)
    numbers = np.array([int(n) for n in re.findall(r"-?\d+", area(-y))]).reshape(-1, 2)
    assert np.cumsum(numbers, axis=0)[:, 1].min() == SIDE / 2


def test_margins_have_one_winner(toy):
    wins = sum((margin > 0).astype(int) for margin in margins(toy.retrained[0]))
    assert wins.max() == 1
