import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup

from salun_core.experiments.classification import saliency
from salun_core.experiments.classification.toy import ToyParams, run
from salun_core.metrics.gaps import METRICS as FOUR
from salun_core.pages.figures.interactive import SIDE, area, frame, keep, margins, plane, shares_by_layer

pytestmark = pytest.mark.long


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


# --- the share kept -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    given = {
        "epochs": 1,
        "methods": ["rl"],
        "seeds": [0, 1],
        "tune": False,
        "densities": [0.2, 0.5],
        "protocols": [],
    }
    given |= {"noise_floor": 0, "settings": {"rl": {"steps": 2}}, "out_dir": tmp_path_factory.mktemp("runs")}
    return saliency.run(saliency.MaskParams.load(given))


def test_every_mask_and_share_has_its_metrics_layers_and_answers(masks):
    made = keep(masks, pictures=5)
    data = data_of(made)
    states = {(s["rate"], s["mask"], s["keep"]): s for s in data["states"]}
    rows = masks.density[(masks.density["mask"] == "random") & (masks.density["keep"] == 0.2)]
    shown = states["the same for all masks", "random", 0.2]
    assert shown["TA"] == pytest.approx(100 * rows["TA"].astype(float).mean(), abs=0.01)
    assert shown["layers"] == [0.2] * len(data["layers"])
    assert {rate for rate, *_ in states} == set(data["rates"])
    assert len(shown["answers"]) == len(data["labels"]) == len(data["retrain"]["answers"]) == 5


def test_the_gap_is_the_one_that_the_table_of_the_page_prints(masks):
    from salun_core.pages.tables.classification import masks_table

    line = masks_table(masks.cells).frame.set_index("Method").loc["RL"]
    states = [s for s in data_of(keep(masks, pictures=3))["states"] if s["rate"] == "chosen for each mask"]
    assert {s["mask"] for s in states} == {"salient", "random", "least_salient"}
    for state in states:
        assert line[state["mask"].replace("_", " ")].startswith(f"{state['gap']:.2f} ±")
        assert (state["n"], state["lost"]) == (2, 0)


def test_gaps_of_seeds_do_not_cancel():
    from salun_core.pages.figures.interactive import gap_of

    split = {
        "dataset": "digits",
        "arch": "resnet6",
        "width": 8,
        "scenario": "random 10%",
        "keep": 0.5,
        "replica": 0,
    }
    retrain, method = (
        pd.DataFrame(
            [
                {**split, "seed": i, "method": name, "mask": mask, **dict.fromkeys(FOUR, v)}
                for i, v in enumerate(values)
            ]
        )
        for name, mask, values in (("retrain", "none", (0.5, 0.5)), ("rl", "salient", (0.4, 0.6)))
    )
    assert gap_of(method, retrain) == {"gap": pytest.approx(10), "n": 2, "lost": 0}  # the means are equal


def test_layers_of_a_mask_make_up_its_share():
    scores = {"a": torch.rand(30), "b": 2 * torch.rand(10)}
    by_layer = shares_by_layer(scores, 0.25)
    for kind in ("salient", "least_salient", "random"):
        marked = by_layer[kind][0] * 30 + by_layer[kind][1] * 10
        assert marked == pytest.approx(10, abs=0.05)


def test_a_diverged_mask_says_so(masks):
    from dataclasses import replace

    density = masks.density.copy()
    density.loc[density["mask"] == "random", ["UA", "RA", "TA", "MIA"]] = None
    made = keep(replace(masks, density=density), pictures=3)
    assert "random mask diverged and diverged" in made.caption
    assert {
        s["UA"] for s in data_of(made)["states"] if s["mask"] == "random" and s["rate"].startswith("the")
    } == {None}
