import pytest
import torch
from safetensors.torch import save_file
from text_problems import FIVE, SEVEN, THREE, pipeline

from salun_core.errors import UserError
from salun_core.metrics.generation.clip import (
    Clip,
    clip_accuracy,
    clip_scores,
    image_features,
    load_clip,
    text_features,
)
from salun_core.models.text_to_image.tiny_pipeline import build_clip

pytestmark = pytest.mark.long

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def clip():
    tokenizer = pipeline().tokenizer
    return Clip(build_clip(tokenizer, size=8, seed=3).eval(), tokenizer, "random", HALF, HALF)


def pixels(n, size=8, channels=3):
    return torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(1)).byte()


def test_the_score_is_the_cosine_by_hand(clip):
    images, texts = pixels(3), [SEVEN, THREE, SEVEN]
    model = clip.model
    with torch.no_grad():
        ids = clip.tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt")
        found = model(
            input_ids=ids.input_ids,
            attention_mask=ids.attention_mask,
            pixel_values=images.float() / 127.5 - 1,
        )
    cosine = (found.image_embeds * found.text_embeds).sum(1)  # of unit length already
    torch.testing.assert_close(
        clip_scores(clip, images, texts), 100 * cosine.clamp_min(0), atol=1e-3, rtol=1e-4
    )
    shown = clip_scores(clip, images, texts, batch_size=2)
    torch.testing.assert_close(shown, clip_scores(clip, images, texts), atol=1e-4, rtol=1e-4)


def test_features_have_length_one(clip):
    for found in (image_features(clip, pixels(4)), text_features(clip, [SEVEN, THREE])):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_accuracy_counts_the_nearest_prompt(clip):
    images, prompts = pixels(12), [SEVEN, THREE, FIVE]
    scores = torch.stack([image_features(clip, images) @ text_features(clip, [p])[0] for p in prompts], dim=1)
    nearest = scores.argmax(1)
    assert float(clip_accuracy(clip, images, nearest, prompts)) == 1
    assert float(clip_accuracy(clip, images, (nearest + 1) % 3, prompts)) == 0
    half = nearest.clone()
    half[:6] = (half[:6] + 1) % 3
    share = clip_accuracy(clip, images, half, prompts)
    assert (share.value, share.n) == (0.5, 12)


def test_other_sizes_and_grey_images_are_fitted(clip):
    assert clip_scores(clip, pixels(2, size=20, channels=1), [SEVEN, SEVEN]).shape == (2,)


def test_a_text_that_is_too_long_is_cut(clip):
    assert torch.isfinite(clip_scores(clip, pixels(1), [" ".join([SEVEN] * 20)])).all()


def test_a_folder_is_read(clip, tmp_path):
    clip.model.save_pretrained(tmp_path)
    again = load_clip(tmp_path, tokenizer=clip.tokenizer, mean=HALF, std=HALF)
    torch.testing.assert_close(
        clip_scores(again, pixels(2), [SEVEN, THREE]), clip_scores(clip, pixels(2), [SEVEN, THREE])
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: clip_scores(c, pixels(2), [SEVEN]), "2 images came with 1 texts"),
        (lambda c: clip_accuracy(c, pixels(2), [0], [SEVEN]), "2 images came with 1 labels"),
        (lambda c: clip_accuracy(c, pixels(2), [0, 1], [SEVEN]), "labels go from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(clip, call, message):
    with pytest.raises(UserError, match=message):
        call(clip)


def test_missing_weights_are_named_with_the_command(tmp_path, monkeypatch, clip):
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_clip(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="incomplete or damaged"):
        load_clip(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="hf download nobody/no-such-clip"):
        load_clip("nobody/no-such-clip")
