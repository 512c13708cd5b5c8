"""The first page says what the ledger says."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import result_frames

from salun_core.metrics.statistics import PairedDifferences
from salun_core.pages.replication import claims, headline
from salun_core.pages.results import Run

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]


@pytest.fixture
def runs(monkeypatch):
    frames = {"saliency": result_frames.saliency(), "classification": result_frames.classification()}
    found = [Run(name, lambda e: frames.get(e, pd.DataFrame())) for name in ("quick", "kept")]
    monkeypatch.setattr(headline, "all_runs", lambda out_dir=None: found)
    monkeypatch.setattr(claims, "all_runs", lambda out_dir=None: found)
    return found


def test_every_number_of_a_finding_is_in_the_ledger(runs):
    entries = {
        entry.claim.name: entry for entry in claims.ledger(runs) if entry.run == "kept" and entry.found
    }
    said = str(headline.findings()).splitlines()
    assert len(said) == 3
    for line, name in zip(said, headline.QUESTIONS, strict=True):
        entry = entries[name]
        low, high = entry.found.evidence.interval()
        for value in (entry.found.evidence.mean, low, high):
            assert entry.claim.shown(value) in line
        assert entry.verdict.word in line.lower()
        assert "run kept" in line


def test_a_recorded_run_speaks_before_the_quick_one(runs):
    assert all("run kept" in said for _, _, said in headline.headline_findings(claims.ledger(runs)))


def test_what_came_out_at_other_settings_is_said_beside_it_and_nothing_else(runs):
    entry = headline.strongest(claims.ledger(runs), "salient beats random")
    other, elsewhere = (
        replace(entry, found=replace(entry.found, how=how, scenario=scenario))
        for how, scenario in (("at other settings", entry.found.scenario), ("at others still", "class 3"))
    )
    said = headline.otherwise(entry, [entry, other, elsewhere, replace(other, run="quick")])
    assert said == [f"At other settings {entry.verdict.word}: {headline.size_of(entry, unit=False)}."]


def test_of_equal_entries_the_one_against_most_rivals_is_told(runs):
    one = headline.strongest(claims.ledger(runs), "nearest at 10%")
    fewer = replace(
        one, found=replace(one.found, evidence=PairedDifferences(one.found.evidence.apart[:, :1]))
    )
    assert headline.strongest([fewer, one], "nearest at 10%") == one


def test_a_question_without_a_run_says_so(monkeypatch):
    monkeypatch.setattr(claims, "all_runs", lambda out_dir=None: [])
    assert str(headline.findings()).count("Not run.") == 3


def test_the_guide_links_each_measured_claim_to_the_page_that_shows_the_run(runs):
    text = headline.guide()._repr_markdown_()
    assert re.search(r"\[salient beats random\]\(\.\./notebooks/recorded\.ipynb\)", text)


def test_the_figure_shows_every_mask_and_the_papers_values(runs):
    chart = headline.figure()
    labels = [tick.get_text() for tick in chart.figure.axes[0].get_yticklabels()]
    assert labels[0] == "salient mask"
    hollow = [line for line in chart.figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert {round(float(line.get_xdata()[0]), 2) for line in hollow} == {1.15, 7.15}
    assert "run kept" in chart.caption


def test_the_card_has_the_size_that_links_show_and_the_first_answer(runs):
    card = headline.card()
    width, height = (int.from_bytes(card.png()[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1200, 630)
    assert str(headline.findings()).splitlines()[0].removeprefix("- ") == card.alt


def test_without_any_comparison_of_masks_there_is_no_figure(monkeypatch):
    monkeypatch.setattr(headline, "all_runs", lambda out_dir=None: [])
    with pytest.raises(LookupError, match="no run has compared masks"):
        headline.figure()


def test_the_readme_says_what_the_recorded_runs_say():
    text = (ROOT / "README.md").read_text("utf8")
    assert headline.readme(text) == text, "run `make notebooks`"


def test_the_readme_tells_each_finding_and_stays_as_it_is_around_them(runs):
    text = "\n".join(["before", *headline.MARKS, "after"])
    told = headline.readme(text, runs[1:])
    assert headline.readme(told, runs[1:]) == told
    lines = told.splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and len(lines) == 4 + len(headline.QUESTIONS)
    for line, said in zip(lines[2:-2], str(headline.findings()).splitlines(), strict=True):
        assert line.replace("**", "") == said
    assert "Nothing is recorded" in headline.readme(told, [])


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text("utf8").splitlines()) <= 72
