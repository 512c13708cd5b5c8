"""Audits over populations of models: known answers, a slow reference, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from salun_core.data.splits import ROLES
from salun_core.errors import UserError
from salun_core.metrics import POPULATION_METRICS, Evaluation
from salun_core.metrics.classification.population import FALSE_ALARMS, rmia, ulira

FORGET, TEST = 80, 300
CHANCE = {"U-LiRA": 0.5, "U-LiRA TPR": FALSE_ALARMS, "RMIA": 0.5}
rng = np.random.default_rng(0)
EASE = rng.normal(2, 1.5, FORGET + TEST)  # of each image, the same for all models


def model(draws, shift=0.0, noise=1.0, *, ids=None):
    """A model of two classes; ``shift`` moves the logit of the forget images only."""
    logit = EASE + noise * draws.standard_normal(len(EASE))
    logit[:FORGET] += shift
    logits = torch.zeros(len(EASE), 2)
    logits[:, 0] = torch.tensor(logit)
    roles = torch.tensor([ROLES.index("forget")] * FORGET + [ROLES.index("test")] * TEST, dtype=torch.uint8)
    ids = torch.arange(len(EASE)) if ids is None else ids
    return Evaluation(logits, torch.zeros(len(EASE), dtype=torch.int64), ids, roles)


def population(count, shift=0.0, *, seed, **how):
    draws = np.random.default_rng(seed)
    return [model(draws, shift, **how) for _ in range(count)]


@pytest.mark.parametrize("name", POPULATION_METRICS)
def test_populations_without_a_difference_give_chance(name):
    found = [POPULATION_METRICS[name](population(4, seed=s), population(4, seed=100 + s)) for s in range(12)]
    values = [float(audit) for audit in found]
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    assert np.mean(values) == pytest.approx(CHANCE[name], abs=4 * spread)
    # The interval over models is one that another draw of models falls into.
    inside = [audit.share.low <= CHANCE[name] <= audit.share.high for audit in found]
    assert np.mean(inside) >= 0.8


@pytest.mark.parametrize("counts", [(3, 8), (8, 3)])
def test_chance_does_not_depend_on_how_many_models_there_are(counts):
    """Judged by all other models, a model is nearer to the larger population: pairs are left out together."""
    values = [
        float(ulira(population(counts[0], seed=s), population(counts[1], seed=100 + s))) for s in range(20)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("name", POPULATION_METRICS)
def test_populations_far_apart_give_one(name):
    audit = POPULATION_METRICS[name](
        population(4, 30.0, seed=1, noise=0.1), population(4, -10.0, seed=2, noise=0.1)
    )
    assert float(audit) == pytest.approx(1, abs=0.03)
    assert audit.scores.shape == (FORGET,)
    assert audit.share.low > 0.9 and audit.share.n == FORGET


def test_equal_models_are_a_toss_up():
    same = [model(np.random.default_rng(0)) for _ in range(4)]
    assert set(ulira(same, same).scores) == {0.5}
    assert set(rmia(same, same).scores) == {0.5}
    assert set(POPULATION_METRICS["U-LiRA TPR"](same, same).scores) == {0.0}


def test_scores_say_which_images_are_betrayed():
    """Half of the images are remembered: U-LiRA and RMIA find those and no others."""
    shift = np.where(np.arange(FORGET) < FORGET // 2, 4.0, 0.0)
    unlearned, retrained = population(5, shift, seed=1), population(5, -shift, seed=2)
    for audit in (ulira(unlearned, retrained), rmia(unlearned, retrained)):
        assert audit.ids.tolist() == list(range(FORGET))
        remembered, forgotten = audit.scores[: FORGET // 2].mean(), audit.scores[FORGET // 2 :].mean()
        assert remembered > 0.9 > 0.6 > forgotten


def test_too_much_forgetting_is_found_out_too():
    """U-LiRA knows no direction; RMIA says that the images look less familiar than unseen ones."""
    unlearned, retrained = population(4, -6.0, seed=1), population(4, seed=2)
    assert float(ulira(unlearned, retrained)) > 0.95
    assert float(rmia(unlearned, retrained)) < 0.1


def test_the_likelihood_ratio_is_that_of_a_slow_loop():
    unlearned, retrained = population(3, 1.0, seed=1), population(4, seed=2)
    logit = [
        np.stack([m.logits[:FORGET, 0].double().numpy() for m in models]) for models in (unlearned, retrained)
    ]  # with two classes and the other logit 0, log p - log(1 - p) is the logit itself
    right = np.zeros(FORGET)
    for i in range(3):
        for j in range(4):
            fits = []
            for part, row in zip(logit, (i, j), strict=True):
                kept = np.array([values for k, values in enumerate(part) if k != row])
                pooled = math.sqrt(np.mean([np.var(column, ddof=1) for column in kept.T]))
                fits.append((kept.mean(axis=0), pooled))
            for x in range(FORGET):
                densities = [
                    [norm.logpdf(seen[x], mean[x], std) for mean, std in fits]
                    for seen in (logit[0][i], logit[1][j])
                ]
                right[x] += int(densities[0][0] > densities[0][1]) + int(densities[1][1] > densities[1][0])
    assert ulira(unlearned, retrained).scores == pytest.approx(right / 24)


def test_the_relative_score_is_that_of_a_slow_loop():
    unlearned, retrained = population(1, 1.0, seed=1), population(2, seed=2)
    a, gamma = 0.33, 2.0

    def p(evaluation):
        return evaluation.logits.double().softmax(dim=1)[:, 0].numpy()

    expected = np.zeros(FORGET)
    for out, target in ((0, 1), (1, 0)):
        mean = ((1 + a) * p(retrained[out]) + 1 - a) / 2
        scores = []
        for seen in (unlearned[0], retrained[target]):
            ratio = p(seen) / mean
            scores.append([np.mean([ratio[x] / z >= gamma for z in ratio[FORGET:]]) for x in range(FORGET)])
        expected += [0.5 if u == r else float(u > r) for u, r in zip(*scores, strict=True)]
    assert rmia(unlearned, retrained).scores == pytest.approx(expected / 2)


@pytest.mark.parametrize("name", POPULATION_METRICS)
def test_renumbering_the_images_moves_the_scores_with_them(name):
    new = torch.randperm(FORGET + TEST, generator=torch.Generator().manual_seed(0))
    before = POPULATION_METRICS[name](population(3, 1.0, seed=1), population(3, seed=2))
    after = POPULATION_METRICS[name](population(3, 1.0, seed=1, ids=new), population(3, seed=2, ids=new))
    assert after.ids.tolist() == new[:FORGET].sort().values.tolist()
    assert after.scores == pytest.approx(before.scores[new[:FORGET].argsort().numpy()])
    assert float(after) == pytest.approx(float(before))


@pytest.mark.parametrize("name", POPULATION_METRICS)
def test_models_with_other_images_are_refused(name):
    other = population(3, seed=2, ids=torch.arange(FORGET + TEST) + 1)
    with pytest.raises(UserError, match="of one split"):
        POPULATION_METRICS[name](population(3, seed=1), other)


@pytest.mark.parametrize(("name", "counts"), [("U-LiRA", (2, 5)), ("U-LiRA TPR", (5, 2)), ("RMIA", (3, 1))])
def test_too_few_models_give_nothing(name, counts):
    audit = POPULATION_METRICS[name](population(counts[0], seed=1), population(counts[1], seed=2))
    assert math.isnan(float(audit)) and audit.share.n == 0
    assert np.isnan(audit.scores).all() and len(audit.scores) == FORGET


def test_the_fewest_models_give_a_value_without_an_interval():
    audit = ulira(population(3, seed=1), population(3, seed=2))
    assert 0 <= float(audit) <= 1
    assert math.isnan(audit.share.low)


@pytest.mark.parametrize("name", POPULATION_METRICS)
def test_an_empty_population_gives_nothing(name):
    assert math.isnan(float(POPULATION_METRICS[name]([], population(3, seed=1))))
