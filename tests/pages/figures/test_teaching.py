import numpy as np
import pytest

from salun_core.experiments.classification.trajectories import TrajectoryParams, run
from salun_core.metrics import METRICS
from salun_core.pages.figures.interactive import beyond, is_within, near_cloud, trajectories
from salun_core.pages.figures.teaching import (
    coverage,
    coverage_chart,
    far_off,
    features,
    flagged,
    floor_chart,
    measured,
    models_of,
    paired_and_not,
    suspects,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return run(
        TrajectoryParams.load(
            {"epochs": 2, "steps": 4, "looks": 2, "retrained": 2, "methods": ["rl", "salun"], "out_dir": out}
        )
    )


def test_what_is_flagged_is_what_the_metric_counts(found):
    for seen in models_of(found).values():
        outside = flagged(seen, features(seen)["forget"])
        assert outside.mean() == pytest.approx(float(METRICS["MIA"](seen)))


def test_the_pictures_tell_how_many_are_flagged(found):
    seen = found.retrained[0]
    count = int(flagged(seen, features(seen)["forget"]).sum())
    assert f"{count} of {found.task.forget.n} forget images" in suspects(found, seen, "Retrain").caption


def test_the_floor_is_the_distance_of_retrained_models(found):
    table = measured(found)
    two = table[table["model"] == "retrain"].drop(columns="model").to_numpy(float)
    apart = 100 * np.abs(two[0] - two[1]).mean()
    assert f"{apart:.1f} points apart" in floor_chart(table).caption


def test_a_method_far_off_does_not_press_the_others_together():
    assert far_off([2, 4, 85, 5, 6]) == {2}
    assert far_off([2, 4, 6, 5]) == far_off([2, 90]) == set()


def test_words_above_the_pictures_are_within_the_figure(found):
    figure = suspects(found, found.retrained[0], "Retrain").figure
    figure.draw_without_rendering()
    for part in figure.subfigs:
        words = part._suptitle.get_window_extent()
        assert words.y1 <= figure.bbox.y1
        assert all(
            not words.overlaps(axis.title.get_window_extent()) for axis in part.axes if axis.get_title()
        )


def test_numbers_of_seeds_are_whole():
    (axis,) = coverage_chart(coverage((2, 3, 20), draws=10)).figure.axes
    assert axis.get_xticks().tolist() == [2, 3, 20]


def test_a_path_to_the_far_corner_leaves_the_picture_and_the_caption_says_so():
    start, near, far = ({"UA": u, "TA": t} for u, t in ((0, 91), (8, 88), (99, 6)))
    cloud = [{"UA": 7, "TA": 92}, {"UA": 12, "TA": 93}]
    paths = {"rl": [start, near], "ga": [start, near, far], "ft": [start, {"UA": 46, "TA": 54}, near]}
    x, y = near_cloud(paths, cloud)
    assert all(is_within(frame, x, y) for frame in (start, near, *cloud))
    assert x["high"] - x["low"] <= 30
    assert beyond(paths, x, y) == (
        " Paths leave the picture: GA as far as UA 99% and TA 6%; FT as far as UA 46% and TA 54%, and comes back."
    )
    assert beyond({"rl": paths["rl"]}, *near_cloud({"rl": paths["rl"]}, cloud)) == ""


def test_only_the_t_interval_holds_what_it_promises():
    table = coverage((3, 20), draws=5000).set_index("n")
    assert table.loc[3, "t"] == pytest.approx(0.95, abs=0.01)
    assert table.loc[3, "normal"] == pytest.approx(0.81, abs=0.02)
    assert table.loc[20, "normal"] > table.loc[3, "normal"]


def test_pairs_know_a_difference_better(found):
    seen = found.paths["rl"][-1]
    same = paired_and_not(seen, seen)
    assert same["difference"] == same["paired"] == 0
    assert same["apart"] > 0


def test_the_piece_shows_the_metrics_and_answers_of_every_look(found):
    data = trajectories(found, images=40).data
    assert [path["label"] for path in data["paths"]] == ["Retrain", "RL", "SalUn"]
    assert [frame["step"] for frame in data["paths"][1]["frames"]] == found.steps
    last = found.paths["rl"][-1]
    assert data["paths"][1]["frames"][-1]["UA"] == pytest.approx(100 * float(METRICS["UA"](last)), abs=0.01)
    assert {image["role"] for image in data["images"]} == {"forget", "test"}
    assert len(data["images"]) == 40
    first = data["paths"][1]["frames"][0]["answers"]
    assert first == data["original"]
