"""Every claim is measured by the cells of a run, judged by the rule, and shown."""

import numpy as np
import pandas as pd
import pytest
import result_frames
from bs4 import BeautifulSoup
from generated_frames import strengths

from salun_core.metrics.gaps import METRICS
from salun_core.pages.replication import claims, measurements
from salun_core.pages.replication.claims import read_claims
from salun_core.pages.replication.verdicts import (
    CONTRADICTED,
    EQUIVALENT,
    HOLDS,
    NOT_RUN,
    NOT_TESTABLE,
)
from salun_core.pages.results import Run

pytestmark = pytest.mark.long

CLAIMS = {claim.name: claim for claim in read_claims()}


def run(name="quick", **frames):
    return Run(name, lambda experiment: frames.get(experiment, pd.DataFrame()))


def generated(method, mask, seed, ua, oa, unnamed):
    more = {"OA": oa, "UA indirect": unnamed, "n_class": 500, "study": "methods", "scenario": "class 1"}
    return result_frames.row(method, mask, seed, (ua, 0, 0, 0), **more)


def drawn():
    rows = []
    for seed in range(4):
        shift = 0.002 * seed
        rows += [
            generated("original", "none", seed, 0.02, 1.0, 0.1),
            generated("salun", "salient", seed, 1.0, 0.95 + shift, 0.5),
            generated("esd", "none", seed, 0.6, 1.0, 0.7),  # forgets less
            generated("uce", "none", seed, 0.8, 0.8, 0.4),  # the best of the others in the lesser
            generated("ga", "none", seed, 1.0, 1.0, 1.0),  # no rival here
        ]
    return pd.DataFrame(rows)


def whole_run():
    return run(
        classification=result_frames.classification(seeds=5),
        stability=result_frames.stability(seeds=5),
        saliency=result_frames.saliency(seeds=5),
        text_to_image=drawn(),
        unsafe=drawn(),
    )


def only(name, source):
    return CLAIMS[name].measurements(source)


# --- what is measured ---------------------------------------------------------------------------------


def test_an_advantage_is_a_paired_difference_in_points():
    (found,) = only("salient beats random", run(saliency=result_frames.saliency()))
    assert found.evidence.mean == pytest.approx(0.75, abs=0.1)  # 3 points of UA, one metric in four
    assert found.evidence.n == 4
    assert found.control.mean > 3


def test_masks_that_were_tuned_apart_are_compared_at_the_same_settings_too():
    rows = result_frames.saliency()
    random = (rows["method"] == "rl") & (rows["mask"] == "random")
    tuned = random & (rows["study"] == "masks")
    rows["settings"] = [{"lr": 0.2 if other else 0.1} for other in tuned]
    rows["study"] = rows["study"].replace("density", "densities")
    half = random & (rows["study"] == "densities") & (rows["keep"] == 0.5)
    rows.loc[half, "RA"] -= 0.08  # two points of the average gap
    apart, alike = only("salient beats random", run(saliency=rows))
    assert apart.what.endswith("each tuned by itself") and alike.what.endswith(
        "at equal settings, those of the salient one"
    )
    assert apart.evidence.mean == pytest.approx(0.75, abs=0.1)
    assert alike.evidence.mean == pytest.approx(2, abs=0.1) and alike.evidence.n == 4
    (found,) = only("salient beats random", run(saliency=rows[~half]))
    assert found.what == apart.what


def test_masks_of_a_diffusion_model_are_compared_by_what_they_leave_out_at_all_strengths():
    (found,) = only("salient beats random in generation", run(diffusion=strengths()))
    assert found.evidence.mean == pytest.approx(25)
    assert (found.evidence.n, found.scenario) == (2, "class 1")
    assert found.control.mean == pytest.approx(100 - 5 - 0, abs=0.01)
    assert (
        only("salient beats random in generation", run(diffusion=strengths().query("mask != 'random'"))) == []
    )
    assert only("salient beats random in generation", run()) == []


def test_all_rivals_enter_at_once_and_not_only_the_one_that_looks_best():
    cells = result_frames.classification(scenarios=["random 10%"])
    (found,) = only("nearest at 10%", run(classification=cells))
    assert found.evidence.apart.shape == (4, 7)  # neither SalUn's variants nor Original and Retrain
    fewer = cells[cells["method"].isin(["retrain", "original", "salun", "iu"])]
    (one,) = only("nearest at 10%", run(classification=fewer))
    assert one.evidence.apart.shape == (4, 1)
    assert "1 other methods (IU" in one.what


def test_unlearning_seeds_within_a_training_seed_do_not_count_as_seeds():
    cells = result_frames.classification(scenarios=["random 10%"])
    rng = np.random.default_rng(0)
    twice = cells[~cells["method"].isin(["retrain", "original"])].copy()
    twice["UA"] += 0.001 * rng.standard_normal(len(twice))
    both = pd.concat([cells.assign(unlearning_seed=0), twice.assign(unlearning_seed=1)], ignore_index=True)
    (found,) = only("nearest at 10%", run(classification=both))
    assert found.evidence.n == 4


def test_a_rival_that_diverged_is_left_out_with_a_word():
    cells = result_frames.classification(scenarios=["random 10%"])
    cells.loc[(cells["method"] == "iu") & (cells["seed"] == 1), list(METRICS)] = None
    (found,) = only("nearest at 10%", run(classification=cells))
    assert found.evidence.apart.shape == (4, 6)
    assert "without IU" in found.what
    cells.loc[(cells["method"] == "salun") & (cells["seed"] == 1), list(METRICS)] = None
    (found,) = only("nearest at 10%", run(classification=cells))
    assert found.evidence.n == 3
    assert "1 of 4 runs of SalUn diverged" in found.what


def test_settings_are_resampled_in_pairs():
    rows = result_frames.stability()
    (found,) = only("stable over settings", run(stability=rows))
    assert found.evidence.n == 8
    assert found.evidence.interval()[0] > 0
    plain = (rows["study"] == "settings") & (rows["method"] == "iu") & (rows["mask"] == "none")
    same = rows[~((rows["study"] == "settings") & (rows["mask"] == "salient"))]
    same = pd.concat([same, rows[plain].assign(mask="salient")], ignore_index=True)
    (found,) = only("stable over settings", run(stability=same))
    assert found.evidence.interval() == (0, 0)
    lost = rows.copy()
    lost.loc[lost[plain].index[0], "UA"] = None
    (found,) = only("stable over settings", run(stability=lost))
    assert found.evidence.n == 7
    assert "1 setting diverged" in found.what


def test_a_generator_is_judged_by_the_lesser_of_forgetting_and_keeping():
    (both,) = only("Imagenette", run(text_to_image=drawn()))
    assert both.evidence.mean == pytest.approx(15.3)
    assert "UCE on average" in both.what
    (unnamed,) = only("unsafe content", run(unsafe=drawn()))
    assert unnamed.evidence.mean == pytest.approx(-20.0)
    assert "ESD on average" in unnamed.what


def test_samples_that_are_all_alike_are_known_to_one_sample_only():
    few = drawn().assign(UA=1.0, OA=1.0, n_class=15)
    few.loc[few["method"] == "original", "UA"] = 0.0
    (found,) = only("Imagenette", run(text_to_image=few))
    low, high = found.evidence.interval()
    assert found.evidence.mean == 0
    assert low < -5 and high > 5


def test_time_is_a_factor():
    found = only("run time", run(classification=result_frames.classification()))
    assert [each.evidence.mean for each in found] == pytest.approx([np.log2(10)] * 2)
    assert CLAIMS["run time"].shown(found[0].evidence.mean) == "×10"
    assert found[0].margin == 1


# --- the positive control -----------------------------------------------------------------------------


def test_the_control_is_originals_gap_beyond_the_noise_of_retraining():
    cells = result_frames.classification(scenarios=["random 10%"])
    (found,) = only("nearest at 10%", run(classification=cells))
    gaps = measurements.gaps(cells)
    nothing = 100 * gaps.query("method == 'original'").set_index("seed")["Avg. Gap"]
    floor = 100 * measurements.noise_floor(cells).set_index("seed")["Avg. Gap"]
    assert found.control.mean == pytest.approx((nothing - floor).mean())


def test_the_original_model_may_stand_in_another_experiment_of_the_run():
    masked = result_frames.saliency()
    without = masked[masked["method"] != "original"]
    (found,) = only("salient beats random", run(saliency=without))
    assert found.control is None
    cells = result_frames.classification()
    (found,) = only("salient beats random", run(saliency=without, classification=cells))
    assert found.control.n == 4
    other = cells.assign(dataset="cifar10")
    (found,) = only("salient beats random", run(saliency=without, classification=other))
    assert found.control is None


def test_a_run_in_which_nothing_is_memorised_tests_nothing():
    away = {**result_frames.AWAY, "original": (0.0, 0.0, 0.0, 0.001)}
    cells = result_frames.classification(scenarios=["random 10%"], away=away)
    entries = claims.ledger([run(classification=cells)])
    found = claims.frame(entries).set_index("claim")
    assert found.loc["nearest at 10%", "verdict"] == NOT_TESTABLE
    assert found.loc["run time", "verdict"] == NOT_TESTABLE


# --- the ledger ---------------------------------------------------------------------------------------


def test_a_run_is_judged_claim_by_claim():
    found = claims.frame(claims.ledger([whole_run()])).set_index("claim")["verdict"]
    assert found["run time"].tolist() == [HOLDS, HOLDS]
    assert found["salient beats random"] == HOLDS
    assert found["Imagenette"] == HOLDS
    assert found["unsafe content"] == CONTRADICTED
    assert found["carries over to generation"] == NOT_RUN
    rows = result_frames.masks(seeds=5, gain=0.0)
    alike = claims.frame(claims.ledger([run(saliency=rows)])).set_index("claim")["verdict"]
    assert alike["salient beats random"] == EQUIVALENT


def test_the_ledger_has_every_claim_also_without_results():
    entries = claims.ledger([])
    assert [entry.claim.name for entry in entries] == list(CLAIMS)
    assert {entry.verdict.word for entry in entries} == {NOT_RUN}
    assert claims.count(entries).measured == 0
    text = str(claims.claim_texts(entries))
    assert all(claim.said in text for claim in CLAIMS.values())
    assert "run classification fast-50" in text
    assert len(claims.ledger_table(entries).frame) == len(entries)


def test_every_run_has_its_own_family():
    alone = claims.frame(claims.ledger([whole_run()]))
    both = claims.ledger([whole_run(), run("other", classification=result_frames.classification(seeds=3))])
    mine = claims.frame([entry for entry in both if entry.run in ("quick", "")])
    known = alone["run"] == "quick"
    assert mine[mine["run"] == "quick"]["p_difference"].tolist() == alone[known]["p_difference"].tolist()


def test_the_table_shows_each_entry_with_its_links():
    entries = claims.ledger([whole_run(), run("cifar10-cpu", classification=result_frames.classification())])
    table = claims.ledger_table(entries)
    frame = claims.frame(entries)
    assert table.frame["Verdict"].str.partition("\n")[0].tolist() == frame["verdict"].tolist()
    assert {link for (_, column), link in table.links.items() if column == "Run"} == {
        "recorded.html",
        "classification.html",
        "stability.html",
        "saliency.html",
        "sd_class.html",
        "sd_nsfw.html",
    }
    page = BeautifulSoup(table._repr_html_(), "html.parser")
    assert page.find("a", href="classification.html").get_text(" ") == "nearest at 10%"
    first = table.frame.iloc[0]
    assert first["Paper"].startswith("Table 1: SalUn 1.15")


def test_counts_are_those_of_the_ledger():
    entries = claims.ledger([whole_run()])
    found = claims.count(entries)
    frame = claims.frame(entries)
    measured = frame[frame["run"] != ""]
    assert found.entries == len(measured)
    assert found.words[HOLDS] == (measured["verdict"] == HOLDS).sum()
    assert sum(found.words.values()) == found.entries


# --- what was fixed before ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_names_functions_that_are_there(name):
    claim = CLAIMS[name]
    claim.reported(), claim.rerun()
    assert claim.measurements(run()) == []
    assert claim.why


@pytest.mark.parametrize("name", CLAIMS)
def test_a_margin_is_at_most_half_of_what_the_paper_reports(name):
    claim = CLAIMS[name]
    for reported in claim.reported():
        if reported.advantage is not None:
            assert 0 < claim.margin <= reported.advantage / 2
