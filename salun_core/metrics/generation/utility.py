"""What a text-to-image model is still good for: images for ordinary captions, by CLIP score and FID."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from salun_core.data.image_files import read_images
from salun_core.errors import UserError
from salun_core.metrics.generation.clip import Clip, clip_scores
from salun_core.metrics.generation.frechet import Features, Moments, frechet_distance

CHUNK = 256  # files in memory at once


@dataclass(frozen=True)
class Utility:
    """Of images drawn for captions.

    Parameters
    ----------
    clip : float
        Mean CLIP score of the images with their captions, in [0, 100]; higher is better.
    clip_error : float
        Its standard error over the images.
    distance : float
        Squared Fréchet distance to real images, in the features that both moments were taken in (FID for
        Inception's); lower is better, and it falls with ``n``.
    n, n_real : int
        Images on each side.
    """

    clip: float
    clip_error: float
    distance: float
    n: int
    n_real: int

    def columns(self) -> dict[str, float]:
        """The values by their names in tables."""
        return {
            "caption CLIP": self.clip,
            "caption CLIP error": self.clip_error,
            "caption FD": self.distance,
            "n captions": self.n,
        }


def caption_utility(
    images: Tensor, captions: Sequence[str], *, clip: Clip, features: Features, real: Moments
) -> Utility:
    """Measure images that were drawn for captions, such as COCO's (`data.captions_coco`).

    Parameters
    ----------
    images : Tensor
        uint8 (N, C, H, W), at least 2.
    captions : sequence of str
        N, one for each image.
    clip : Clip
        From `load_clip`.
    features : callable
        What the distance is measured in: `inception_features` for a FID.
    real : Moments
        Of the features of real images (`moments_of_files`), those that the captions describe by custom.

    References
    ----------
    Hessel et al., CLIPScore, EMNLP 2021; Heusel et al., NeurIPS 2017 (FID).
    """
    if len(images) != len(captions):
        raise UserError(f"{len(images)} images came with {len(captions)} captions: give one each")
    drawn = Moments.measured(features(images))
    scores = clip_scores(clip, images, captions).double()
    return Utility(
        float(scores.mean()),
        float(scores.std() / len(scores) ** 0.5),
        frechet_distance(drawn, real),
        drawn.n,
        real.n,
    )


def moments_of_files(files: Sequence[Path], features: Features, *, size: int) -> Moments:
    """Moments of the features of image files, which are read a few at a time.

    Parameters
    ----------
    files : sequence of Path
        At least 2 images of any size and format.
    features : callable
        As in `caption_utility`.
    size : int
        Height (= width) in pixels, that of the images they are compared with: the shorter side is resized
        and the middle cut out.
    """
    parts = [
        features(read_images(files[start : start + CHUNK], size=size, colour=True))
        for start in range(0, len(files), CHUNK)
    ]
    return Moments.measured(np.concatenate(parts) if parts else np.empty((0, 1)))
