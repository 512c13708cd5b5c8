import numpy as np
import pytest
import torch
from PIL import Image
from text_problems import SEVEN, THREE, pipeline

from salun_core.errors import UserError
from salun_core.metrics.generation.clip import Clip, clip_scores
from salun_core.metrics.generation.frechet import Moments, frechet_distance
from salun_core.metrics.generation.utility import caption_utility, moments_of_files
from salun_core.models.text_to_image.tiny_pipeline import build_clip


def features(images):
    """Mean brightness by channel, and its square."""
    means = images.double().mean(dim=(2, 3)).numpy()
    return np.concatenate([means, means[:, :1] ** 2 / 255], axis=1)


def pixels(n, seed=0, size=8):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.fixture(scope="module")
def clip():
    tokenizer = pipeline().tokenizer
    return Clip(build_clip(tokenizer, size=8, seed=3).eval(), tokenizer, "random")


def test_utility_is_the_clip_score_and_the_distance(clip):
    images, captions = pixels(6), [SEVEN, THREE] * 3
    real = Moments.measured(features(pixels(9, seed=1)))
    found = caption_utility(images, captions, clip=clip, features=features, real=real)
    scores = clip_scores(clip, images, captions).double()
    assert found.clip == pytest.approx(scores.mean().item())
    assert found.clip_error == pytest.approx((scores.var() / 6).sqrt().item())
    assert found.distance == pytest.approx(frechet_distance(Moments.measured(features(images)), real))
    assert (found.n, found.n_real) == (6, 9)
    assert found.columns()["caption FD"] == found.distance
    with pytest.raises(UserError, match="6 images came with 1 captions"):
        caption_utility(images, captions[:1], clip=clip, features=features, real=real)
    with pytest.raises(UserError, match="at least 2 images"):
        caption_utility(images[:1], captions[:1], clip=clip, features=features, real=real)


def test_moments_of_files_are_those_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr("salun_core.metrics.generation.utility.CHUNK", 2)
    images, files = pixels(5), []
    for i, image in enumerate(images):
        wide = torch.zeros((3, 8, 12), dtype=torch.uint8)  # the middle is what counts
        wide[:, :, 2:10] = image
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(wide.permute(1, 2, 0).numpy()).save(files[-1])
    found, expected = moments_of_files(files, features, size=8), Moments.measured(features(images))
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.covariance, expected.covariance)
    assert found.n == 5
    with pytest.raises(UserError, match="at least 2 images"):
        moments_of_files([], features, size=8)
