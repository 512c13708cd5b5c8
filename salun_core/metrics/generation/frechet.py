"""Fréchet distance between two sets of images, in the features of Inception or of the judge."""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salun_core.data.downloads import DOWNLOADS, how_to_get
from salun_core.errors import UserError
from salun_core.paths import expanded
from salun_core.rng import generator

if TYPE_CHECKING:
    Matrix = npt.NDArray[np.float64]

INCEPTION, JUDGE = FEATURES = ("inception", "judge")
"""Networks whose features a distance can be measured in."""
NAMES = {INCEPTION: "FID (Inception features)", JUDGE: "Fréchet distance (classifier features)"}
"""The distance in each; the second is never called FID, because features and scale are others."""

Features = Callable[[Tensor], "Matrix"]
"""uint8 images (N, C, H, W) to features (N, D)."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the features of some images.

    Parameters
    ----------
    mean : ndarray
        float64 (D,).
    covariance : ndarray
        float64 (D, D).
    n : int
        Images behind them.
    """

    mean: "Matrix"
    covariance: "Matrix"
    n: int

    @classmethod
    def measured(cls, features: "Matrix") -> "Moments":
        """The moments of features (n, D).

        Raises
        ------
        UserError
            If there are fewer than 2 rows.
        """
        if len(features) < 2:
            raise UserError("a Fréchet distance needs at least 2 images in each set: sample more")
        return cls(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))

    @cached_property
    def factor(self) -> "Matrix":
        """A matrix F (D, r) with F F^T the covariance; r is its rank, below both D and the number of images."""
        values, vectors = np.linalg.eigh(self.covariance)
        there = _not_rounding(values)
        return vectors[:, there] * np.sqrt(values[there])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The same as tensors for a file, their names beginning with ``name``.

        Of the covariance, which is symmetric to the last bit, rows of the upper triangle one after the other.
        """
        values = {"mean": self.mean, "covariance": self.covariance[np.triu_indices(len(self.covariance))]}
        found = {f"{name} {key}": torch.from_numpy(np.ascontiguousarray(v)) for key, v in values.items()}
        return found | {f"{name} n": torch.tensor(self.n)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str) -> "Moments":
        """Moments from what `tensors` made, or from an older file, which holds the whole covariance."""
        mean, stored = (tensors[f"{name} {key}"].double().numpy() for key in ("mean", "covariance"))
        if stored.ndim == 2:
            return cls(mean, stored, int(tensors[f"{name} n"]))
        covariance = np.zeros((len(mean), len(mean)))
        covariance[np.triu_indices(len(mean))] = stored
        return cls(mean, np.triu(covariance, 1).T + covariance, int(tensors[f"{name} n"]))


def drawn(images: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """``count`` of the images, the same ones on every call: the distance depends on the count."""
    order = torch.randperm(len(images), generator=generator(seed, "frechet"))
    return images[order[:count].sort().values]


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Squared Fréchet distance of the normal distributions fitted to two sets of features.

    :math:`\|\mu_a - \mu_b\|^2 + \mathrm{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})`. Lower is better, and
    it falls with the number of images. With :math:`\Sigma_b = F F^\top`, the last trace is that of the square root of
    :math:`F^\top \Sigma_a F`, whose eigenvalues are real also where there are fewer images than features.
    pytorch-fid, with which it agrees, takes a general square root, which is several times slower. What is kept of
    ``b`` serves the next distance from it, so let ``b`` be the set that others are compared with.

    References
    ----------
    Heusel et al., GANs trained by a two time-scale update rule, NeurIPS 2017; pytorch-fid 0.3.0.
    """
    values = np.linalg.eigvalsh(b.factor.T @ a.covariance @ b.factor)
    common = np.sqrt(values[_not_rounding(values)]).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    # Rounding can leave identical sets a hair below zero.
    return max(0.0, float(np.square(a.mean - b.mean).sum() + traces - 2 * common))


def _not_rounding(values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which eigenvalues of a positive semi-definite matrix, in ascending order, are more than rounding of 0."""
    return values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps


def classifier_features(model: nn.Module, *, batch_size: int = 256) -> Features:
    """What enters the last linear layer of a classifier.

    Parameters
    ----------
    model : nn.Module
        Float images in [0, 1] to logits, in evaluation mode.
    batch_size : int
        Images at once.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError("the classifier has no linear layer to take features from: choose another arch")
    device = next(model.parameters()).device

    @torch.no_grad()
    def features(images: Tensor) -> "Matrix":
        found: list[Tensor] = []
        hook = layers[-1].register_forward_pre_hook(lambda _, given: found.append(given[0].double().cpu()))
        try:
            for part in images.split(batch_size):
                model(part.to(device).float() / 255)
        finally:
            hook.remove()
        return torch.cat(found).numpy()

    return features


def inception_file(given: Path | str | None = None) -> Path:
    """Where Inception's weights lie: the file given, else torch's cache. Nothing is fetched.

    Raises
    ------
    UserError
        If the file is not there; with its address, its digest, and the command that fetches it.
    """
    path = DOWNLOADS["inception"].paths[0] if given is None else expanded(given)
    if not path.is_file():
        raise UserError(
            f"features: inception needs the file {path}, which is missing: {how_to_get('inception')}; or set "
            "features to judge, for a distance that is not a FID"
        )
    return path


def inception_features(
    weights: Path, *, device: torch.device | str = "cpu", batch_size: int = 64
) -> Features:
    """The 2,048 features of Inception that make the distance a FID.

    Parameters
    ----------
    weights : path
        From `inception_file`.
    device : torch.device
        Where to compute.
    batch_size : int
        Images at once, each resized to 299 x 299.
    """
    from pytorch_fid import inception

    original = inception.load_state_dict_from_url
    # The library names its file by an address; the file is here, and nothing may be fetched.
    inception.load_state_dict_from_url = lambda *_, **__: torch.load(
        weights, map_location="cpu", weights_only=True
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            model = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    except Exception as error:  # a truncated pickle can raise almost anything
        raise UserError(
            f"{weights} does not hold the weights of pytorch-fid's Inception: fetch it again"
        ) from error
    finally:
        inception.load_state_dict_from_url = original
    model = model.eval().to(device)

    @torch.no_grad()
    def features(images: Tensor) -> "Matrix":
        found = []
        for part in images.split(batch_size):
            colour = part.expand(-1, 3, -1, -1).to(device).float() / 255
            found.append(model(colour)[0].flatten(1).double().cpu())
        return torch.cat(found).numpy()

    return features
