"""How settings are chosen, on tables made by hand."""

import pandas as pd
import pytest

from salun_core.errors import UserError
from salun_core.experiments.runs.tuning import Tuning, _beyond, judged, with_distance
from salun_core.methods.search import Range, between, one_from

SELECT = ("select_UA", "select_RA", "select_VA", "select_MIA")


def row(method, seed, value, **settings):
    known = {"scenario": "random 10%", "mask": "none", "keep": 1.0, "score": "abs_sum"}
    return {**known, "method": method, "seed": seed, "settings": settings, **dict.fromkeys(SELECT, value)}


def table(values, *, original=0.5):
    """A method's gap to Retrain by learning rate, a value for each of two tuning seeds."""
    rows = []
    for seed in (0, 1):
        rows += [row("retrain", seed, 0.0), row("original", seed, original)]
        rows += [row("ft", seed, pair[seed], lr=lr, epochs=5) for lr, pair in values.items()]
    return pd.DataFrame(rows)


def test_the_distance_is_the_mean_over_the_tuning_seeds():
    found = judged(with_distance(table({1e-3: (0.1, 0.4), 1e-2: (0.2, 0.2), 1e-1: (0.4, 0.1)})))
    mine = found[found["method"] == "ft"]
    rates = [settings["lr"] for settings in mine["settings"]]
    by_rate = mine["distance"].groupby(rates).first().round(6).to_dict()
    assert by_rate == {1e-3: 0.25, 1e-2: 0.2, 1e-1: 0.25}
    chosen = found[found["chosen"]]
    assert {s["lr"] for s in chosen["settings"]} == {1e-2}
    assert sorted(chosen["seed"]) == [0, 1]
    assert set(chosen["at_edge"]) == {""} and chosen["tuned"].all()


def test_settings_that_diverge_on_one_seed_are_never_chosen():
    nan = float("nan")
    found = judged(
        with_distance(table({1e-3: (0.3, 0.3), 1e-2: (0.0, nan), 1e-1: (0.2, 0.2), 1.0: (0.3, 0.3)}))
    )
    assert {s["lr"] for s in found[found["chosen"]]["settings"]} == {1e-1}
    with pytest.raises(UserError, match="every candidate setting of ft diverged"):
        judged(with_distance(table({1e-2: (nan, 0.1)})))


@pytest.mark.parametrize(
    ("values", "edge"), [((0.1, 0.2, 0.3), True), ((0.3, 0.2, 0.1), True), ((0.2, 0.1, 0.3), False)]
)
def test_the_best_at_an_end_of_what_was_tried_is_flagged(values, edge):
    found = judged(
        with_distance(table({lr: (v, v) for lr, v in zip((1e-3, 1e-2, 1e-1), values, strict=True)}))
    )
    assert set(found[found["method"] == "ft"]["at_edge"]) == {"lr" if edge else ""}


def test_settings_that_are_no_nearer_than_doing_nothing_are_not_tuned():
    found = judged(with_distance(table({1e-3: (0.5, 0.5), 1e-2: (0.6, 0.6), 1e-4: (0.7, 0.7)})))
    assert not found[found["method"] == "ft"]["tuned"].any()
    found = judged(with_distance(table({1e-3: (0.4, 0.4), 1e-2: (0.6, 0.6), 1e-4: (0.7, 0.7)})))
    assert found[found["method"] == "ft"]["tuned"].all()


def test_bounds_are_widened_beyond_the_edge_and_only_there():
    bounds = {"lr": between(1e-3, 1e-1), "epochs": Range(low=2, high=10, integer=True)}
    points = [{"lr": lr, "epochs": e} for lr, e in ((1e-3, 4), (1e-2, 2), (1e-1, 10))]
    best = pd.Series({"settings": {"lr": 1e-1, "epochs": 10, "steps": None}, "at_edge": "lr"})
    more = _beyond(bounds, points, best)
    assert [point["epochs"] for point in more] == [10, 10]
    assert 1e-1 < more[0]["lr"] < more[1]["lr"] <= 1.0
    below = _beyond(bounds, points, pd.Series({"settings": {"lr": 1e-3, "epochs": 4}, "at_edge": "lr"}))
    assert 0 < below[1]["lr"] < below[0]["lr"] < 1e-3
    choice = {"order": one_from("a", "b")}
    assert not _beyond(choice, [{"order": "a"}], pd.Series({"settings": {"order": "a"}, "at_edge": "order"}))
    assert not _beyond(bounds, points, pd.Series({"settings": points[1], "at_edge": ""}))


def test_fixed_settings_are_tried_as_they_are():
    tuning = Tuning(
        settings={"ft": {"epochs": 3}}, search={"ft": {"lr": between(1e-3, 1e-1)}}, tuning_budget=4
    )
    points = tuning.points("ft")
    assert len(points) == 4 and all(point["epochs"] == 3 for point in points)
    assert points[0]["lr"] == 1e-3 and points[-1]["lr"] == 1e-1
