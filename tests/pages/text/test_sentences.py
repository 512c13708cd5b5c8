"""Sentences say what the findings hold, and claim no more than the numbers do."""

import math
from dataclasses import replace

import generated_frames
import pandas as pd
import pytest
import result_frames
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from salun_core.pages import words
from salun_core.pages.figures import classification as figures
from salun_core.pages.figures import masks as mask_figures
from salun_core.pages.findings import classification as findings
from salun_core.pages.tables import classification as tables
from salun_core.pages.text import classification, generation, masks, stability, text_to_image, unsafe
from salun_core.pages.text import verdicts as rule

pytestmark = pytest.mark.long

CELLS = result_frames.classification()
SCENARIO = CELLS["scenario"].iloc[0]
STABILITY = result_frames.stability()
SCRIPT = "<img src=x onerror=alert(1)>"

CLASSES = result_frames.classification(
    scenarios=["class a", "class b"], methods=["original", "rl", "salun"], seeds=2
).assign(forgotten=lambda frame: frame["scenario"].str.removeprefix("class "))
TEXTS = {
    "classification": lambda: classification.sentences(CELLS),
    "one seed": lambda: classification.sentences(CELLS[CELLS["seed"] == 0]),
    "no replicas": lambda: classification.sentences(CELLS[CELLS["replica"] == 0]),
    "few methods": lambda: classification.sentences(CELLS[CELLS["method"].isin(["retrain", "ga"])]),
    "class by class": lambda: classification.class_sentences(CLASSES),
    "masks": lambda: masks.sentences(result_frames.masks()),
    "masks, one seed": lambda: masks.sentences(result_frames.masks(seeds=1)),
    "stability": lambda: stability.sentences(
        STABILITY[STABILITY["study"] == "shares"], STABILITY[STABILITY["study"] == "settings"], pd.DataFrame()
    ),
    "generation": lambda: generation.sentences(generated_frames.cells()),
    "counts": unsafe.published_counts,
}


@pytest.mark.parametrize("name", TEXTS)
def test_numbers_are_numbers(name):
    said = str(TEXTS[name]())
    assert any(letter.isdigit() for letter in said)
    assert not {"nan", "inf", "None"} & set(said.replace(",", " ").replace(".", " ").split())


def test_nearest_is_said_of_one_method_only_if_the_seeds_tell():
    open_ = findings.ranking(CELLS, SCENARIO)
    clear = replace(open_, nearest=("SalUn",))
    unclear = replace(open_, nearest=("SalUn", "IU"))
    assert "SalUn is the nearest" in classification.ranking(clear)
    assert "do not show" in classification.ranking(unclear)
    assert "the nearest to" not in classification.ranking(unclear)
    assert "the nearest to" not in classification.ranking(replace(open_, nearest=(), seeds=1))


def test_nearest_is_not_said_within_the_noise_of_retraining():
    found = replace(
        findings.ranking(CELLS, SCENARIO),
        gaps={"SalUn": 1.0, "IU": 1.2},
        nearest=("SalUn",),
        floor=findings.Floor(0.5, 0.9, 4),
    )
    assert found.within_noise
    assert "nearest" not in classification.ranking(found)
    far = replace(found, gaps={"SalUn": 1.0, "IU": 1.6})
    assert not far.within_noise
    assert "nearest" in classification.ranking(far)


def test_runs_that_diverged_are_counted_in_captions():
    lost = CELLS.copy()
    lost.loc[(lost["method"] == "iu") & (lost["seed"] < 2), "status"] = "diverged"
    lost.loc[lost["status"] != "done", ["UA", "RA", "TA", "MIA"]] = None
    for figure in (figures.gap_to_retrain, figures.trade_off):
        assert "2 runs diverged and are in no mean" in figure(lost, SCENARIO).caption
        assert "diverged" not in figure(CELLS, SCENARIO).caption


def test_seeds_of_training_and_of_unlearning_are_told_apart():
    assert words.seeds(CELLS) == "4 training seeds"
    nested = pd.concat([CELLS.assign(unlearning_seed=0), CELLS.assign(unlearning_seed=1)])
    assert words.seeds(nested) == "4 training seeds with 2 unlearning seeds each"
    assert words.seeds(nested) in tables.main_table(nested, SCENARIO).caption


def test_settings_that_differ_are_said_and_never_compared_with_the_noise():
    rows = findings.named(findings.gaps(CELLS[CELLS["scenario"] == SCENARIO]))
    found = findings.pair(rows, "RL", "SalUn")
    apart = classification.pair(replace(found, same_settings=False))
    assert "each at its own settings" in apart
    assert "noise" not in apart
    assert "at equal settings" in classification.pair(replace(found, same_settings=True))
    assert "interval" in classification.pair(replace(found, low=math.nan, high=math.nan))


@pytest.mark.parametrize(
    ("low", "high", "words_"),
    [(0.1, 0.9, "SalUn is nearer"), (-0.9, -0.1, "RL is nearer"), (-0.1, 0.9, "the sign is undetermined")],
)
def test_a_difference_has_a_direction_only_where_the_interval_has(low, high, words_):
    found = findings.Pair("RL", "SalUn", (1.0, 0.6), 0.4, low, high, 3, True)
    assert words_ in classification.pair(found)


def test_a_difference_smaller_than_the_noise_is_said_to_be():
    found = findings.Pair("RL", "SalUn", (1.0, 0.6), 0.4, 0.1, 0.9, 3, True)
    for floor, said in ((0.5, True), (0.3, False)):
        noise = findings.Floor(floor, 2 * floor, 3)
        assert ("two retrained models differ by more" in classification.pair(found, noise)) == said
        for other in (replace(found, low=-0.1), replace(found, same_settings=False)):
            assert "two retrained" not in classification.pair(other, noise)


def test_costs_say_from_which_request_tuning_has_paid():
    found = findings.costs(CELLS, SCENARIO, result_frames.tuning())
    assert "after 3" in classification.costs(found)
    assert "nothing was tuned" in classification.costs(findings.costs(CELLS, SCENARIO))


def test_lists_read_as_sentences():
    assert words.listed([]) == "none"
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.counted(1, "run") == "1 run" and words.counted(1200, "run") == "1,200 runs"


def test_a_rule_that_finds_nothing_says_so():
    from salun_core.pages.findings.verdicts import ErrorRates

    assert "3 find none" in rule.error_rates(ErrorRates(0.02, {3: math.inf, 5: 2.0}))


def test_kinds_of_prompts():
    found = text_to_image.ErasureByPrompt(
        {"direct": (), "indirect": ("ESD",)}, {"indirect": ("ESD", 80.0)}, {"UCE": 0.0, "ESD": 10.0}, "direct"
    )
    assert "direct prompts: no method; indirect prompts: ESD" in text_to_image.unerased(found)


def test_names_of_classes_and_data_sets_are_texts_on_every_way_into_a_page():
    """A class folder may have any name; it becomes part of scenarios, sentences, captions and tooltips."""
    cells = CLASSES.assign(
        dataset=SCRIPT,
        scenario=CLASSES["scenario"].str.replace("class a", f"class {SCRIPT}"),
        forgotten=CLASSES["forgotten"].replace("a", SCRIPT),
    )
    scenario = f"class {SCRIPT}"
    shown = [
        tables.main_table(cells, scenario),
        tables.shares_table(cells),
        figures.gap_to_retrain(cells, scenario),
        figures.trade_off(cells, scenario),
        figures.break_even(cells, scenario),
        figures.class_by_class(cells),
        mask_figures.masks_compared(result_frames.masks(scenario=scenario), scenario),
    ]
    pages = [each._repr_html_() for each in shown]
    markdown = MarkdownIt("commonmark", {"html": True})
    texts = [classification.sentences(cells), classification.class_sentences(cells)]
    pages += [markdown.render(text._repr_markdown_()) for text in texts]
    for page in pages:
        found = BeautifulSoup(page, "html.parser")
        assert not found.find_all(onerror=True)
        assert "onerror" in page  # it is there, as text


def test_a_low_rank_correlation_is_not_called_agreement():
    said = classification.agreement(findings.Agreement(0.15, ("SalUn", "RL", "FT")))
    assert "0.15" in said and "agrees" not in said
