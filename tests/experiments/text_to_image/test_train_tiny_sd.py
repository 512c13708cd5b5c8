import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import same
from sklearn.neighbors import KNeighborsClassifier

from salun_core.data.captions import FACTS, KINDS, NAMES, captions, slips, words
from salun_core.errors import UserError
from salun_core.experiments.text_to_image import train_tiny_sd as tiny_sd
from salun_core.experiments.text_to_image.train_tiny_sd import (
    RECIPES_TINY,
    captions_by_digit,
    draw_captions,
    folder_digest,
    images_of,
    load_digits,
    make,
    measure,
    shares,
    train_judge,
    train_tiny_sd,
)
from salun_core.models.text_to_image.pipelines import encode_prompts, load_pipeline
from salun_core.models.text_to_image.sampling import sample_prompts
from salun_core.paths import project_root
from salun_core.rng import generator

FOLDER = project_root() / "data" / "models" / "tiny-sd"
SHORT = {name: replace(recipe, steps=3, warmup=0) for name, recipe in RECIPES_TINY.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_digit_is_asked_for_in_words_that_no_training_had(kind):
    train, test = (captions(kind, split) for split in ("train", "test"))
    assert {c.digit for c in train} == {c.digit for c in test} == set(range(10))
    assert not {c.text for c in train} & {c.text for k in KINDS for c in captions(k, "test")}
    counts = Counter(c.digit for c in test)
    assert max(counts.values()) == min(counts.values()) or kind == "misspelt"


def test_an_indirect_caption_names_no_digit_and_a_direct_one_names_its_own():
    for split in ("train", "test"):
        for caption in captions("indirect", split):
            assert not set(caption.text.split()) & set(NAMES)
        for caption in captions("direct", split) + captions("composed", split):
            assert set(caption.text.split()) & set(NAMES) == {NAMES[caption.digit]}
    facts = [fact for group in FACTS for fact in group]
    assert len(set(facts)) == len(facts)


def test_only_slips_are_in_words_the_tokenizer_has_not():
    known = set(words())
    for kind in KINDS:
        unknown = {w for c in captions(kind, "test") for w in c.text.split()} - known
        assert bool(unknown) == (kind == "misspelt")


def test_a_slip_can_be_read_in_one_way_only():
    meant = Counter(slip for name in NAMES for slip in slips(name))
    assert set(meant.values()) == {1}
    assert not meant.keys() & set(NAMES)
    assert "sevne" in slips("seven") and "seveen" in slips("seven") and "seve" in slips("seven")
    with pytest.raises(UserError, match="kind of caption"):
        captions("oblique")


def test_a_drawn_caption_asks_for_its_digit_and_all_kinds_come_up():
    pipe = load_pipeline(FOLDER)
    every = [c for kind in KINDS for c in captions(kind)]
    texts = encode_prompts(pipe, [c.text for c in every]).texts
    digits = torch.arange(10).repeat(40)
    drawn = draw_captions(captions_by_digit(pipe, every), digits, generator(0))
    asked = {c.text: c for c in every}
    found = [asked[texts[i]] for i in drawn]
    assert [c.digit for c in found] == digits.tolist()
    assert min(Counter(c.kind for c in found).values()) > 60


def test_training_repeats_and_goes_on_where_it_stopped(tmp_path):
    first, clip, _ = train_tiny_sd(seed=1, recipes=SHORT, checkpoints=tmp_path)
    again, again_clip, seconds = train_tiny_sd(seed=1, recipes=SHORT, checkpoints=tmp_path)
    assert not seconds  # nothing was trained
    other, _, _ = train_tiny_sd(seed=1, recipes=SHORT)
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(first, part), getattr(again, part))
        assert same(getattr(first, part), getattr(other, part))
    assert same(clip, again_clip)
    assert same(clip.text_model, first.text_encoder)
    assert first.vae.config.scaling_factor == other.vae.config.scaling_factor


def test_a_pipeline_that_draws_nothing_readable_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_sd, "RECIPES_TINY", SHORT)
    blind = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10))
    monkeypatch.setattr(tiny_sd, "train_judge", lambda: (blind, None))
    monkeypatch.setattr(tiny_sd, "measure", partial(measure, each=1, steps=2))
    with pytest.raises(UserError, match="of the images for direct captions show their digit"):
        make(tmp_path / "tiny", progress=False)
    assert not (tmp_path / "tiny" / "model_index.json").exists()


def test_the_committed_pipeline_is_what_its_record_says():
    record = json.loads((FOLDER / "provenance.json").read_text("utf8"))
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert folder_digest(FOLDER) == record["digest"]
    assert sum(p.stat().st_size for p in files) < 6e6
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    assert record["command"].startswith("python -m salun_core train-tiny-sd")
    assert record["seconds"]["training"] < 600
    pipe = load_pipeline(FOLDER)
    for part, count in record["weights"].items():
        assert sum(w.numel() for w in getattr(pipe, part).parameters()) == count
    assert record["judge"]["accuracy"] > 0.95
    assert all(record["shown"][kind]["value"] >= 0.9 for kind in ("direct", "indirect"))


def test_the_committed_pipeline_draws_the_digits_it_is_asked_for():
    data = load_digits()
    real = images_of(data, train=True)
    neighbours = KNeighborsClassifier(5).fit(real.images[:, 0].flatten(1), real.labels)
    for kind in ("direct", "indirect"):
        asked = [next(c for c in captions(kind, "test") if c.digit == d) for d in range(10)] * 2
        drawn = sample_prompts(
            load_pipeline(FOLDER), [c.text for c in asked], guidance=2.0, steps=15, batch_size=20
        )
        assert drawn.shape == (20, 3, 16, 16)
        seen = neighbours.predict(drawn.float().mean(1).flatten(1))
        assert sum(s == c.digit for s, c in zip(seen, asked, strict=True)) >= 17
        assert len({image.numpy().tobytes() for image in drawn}) == 20


@pytest.mark.slow
def test_training_again_gives_as_good_a_pipeline():
    record = json.loads((FOLDER / "provenance.json").read_text("utf8"))
    pipe, _, _ = train_tiny_sd(seed=record["seed"])
    judge, accuracy = train_judge()
    assert accuracy.value > 0.95
    found = shares(measure(pipe, judge))
    for kind in ("direct", "indirect"):
        assert found[kind].value >= 0.9
        assert found[kind].value == pytest.approx(record["shown"][kind]["value"], abs=0.05)
