"""How far a concept is erased: a search for prompts that bring it back, relearning, and harm to neighbours.

Everything works on a denoising network of diffusers that is conditioned on embedded prompts, its noise
schedule, and clean latent images, whatever made them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.errors import Diverged, UserError
from salun_core.metrics.generation.recognition import Recognition
from salun_core.models.diffusion.conditions import Condition, bounded_, repeated, vectors, with_vectors
from salun_core.models.diffusion.objectives import objective_of
from salun_core.models.diffusion.unet import predict_noise
from salun_core.rng import generator

RELEARNING_BATCH = 4  # images in a step of relearning


@dataclass(frozen=True)
class Attack:
    """What a search in the embedding space found.

    Parameters
    ----------
    embedding : Condition
        The best one seen, the start included: float32 (L, D), or the same in several parts.
    curve : list of (int, float)
        Steps done, and the mean squared distance of the two predictions on the same fixed noise, each time.
    shift : float
        Largest change of a token relative to its length; at most the radius.
    """

    embedding: Condition = field(repr=False)
    curve: list[tuple[int, float]]
    shift: float

    @property
    def before(self) -> float:
        """Distance of the predictions for the start."""
        return self.curve[0][1]

    @property
    def after(self) -> float:
        """Distance of the predictions for what was found; never above `before`."""
        return min(loss for _, loss in self.curve)


def search_embedding(
    edited: nn.Module,
    original: nn.Module,
    schedule: Any,
    latents: Tensor,
    *,
    concept: Condition,
    start: Condition | None = None,
    steps: int = 100,
    lr: float = 0.02,
    radius: float = 1.0,
    batch_size: int = 8,
    checks: int = 10,
    seed: int = 0,
) -> Attack:
    r"""Look for an embedded prompt with which the edited network predicts what the original does for the concept.

    White box, with a bounded budget: Adam on

    .. math:: \min_{e'} \; E_{x, t, \epsilon} \| \epsilon_u(x_t, e') - \epsilon_o(x_t, e_c) \|^2
              \quad \text{subject to} \quad \|e'_l - e_l\|_2 \le r \, \|e_l\|_2 \;\; \text{for each token } l,

    where :math:`e` is the start. Both networks stay as they are. One embedding is sought for all images: if
    it exists, the edited network still knows the concept and has only lost its name.

    Parameters
    ----------
    edited, original : nn.Module
        Denoising networks conditioned on text.
    schedule : scheduler of diffusers
        Of both.
    latents : Tensor
        (N, C, h, w), clean and scaled, of images that show the concept.
    concept : Condition
        The embedded prompt that the original draws it for: (L, D), or the same in several parts, of which
        the pooled prompt counts as one more token.
    start : Condition, optional
        Where the search starts; at ``concept`` by default.
    steps, lr : int, float
        Of Adam. Embeddings of CLIP have elements of about 1.
    radius : float
        r.
    batch_size : int
        Noisy images in a step.
    checks : int
        How often the embedding is scored on fixed noise.
    seed : int
        Of the noise.

    Raises
    ------
    UserError
        If there are no images, shapes do not fit, or the budget is not positive.

    References
    ----------
    Chin et al., Prompting4Debugging, ICML 2024 (the two predictions matched). Pham et al., Circumventing
    concept erasure methods, ICLR 2024 (concept inversion in the embedding space).
    """
    first = concept if start is None else start
    if not len(latents):
        raise UserError("the search needs at least one image that shows the concept")
    shapes = [[tuple(v.shape) for v in vectors(each)] for each in (first, concept)]
    if shapes[0] != shapes[1]:
        raise UserError(f"start has shape {shapes[0][0]} and concept {shapes[1][0]}: give equal ones")
    if steps < 0 or checks < 1 or batch_size < 1 or not radius > 0 or not lr > 0:
        raise UserError(
            f"the budget of the search must be positive, got steps {steps}, lr {lr:g}, radius {radius:g}"
        )
    device = latents.device
    clean, goal_of = latents.float(), concept.to(device, torch.float32)
    first = first.to(device, torch.float32)
    origin = [v.detach() for v in vectors(first)]
    move = [torch.zeros_like(v, requires_grad=True) for v in origin]
    optimizer = torch.optim.Adam(move, lr=lr)
    rng = generator(seed, "embedding search")
    fixed = noised(schedule, clean, generator(seed, "embedding search", "fixed"), spread=True)

    def moved() -> list[Tensor]:
        return [v + m for v, m in zip(origin, move, strict=True)]

    def distance(embedding: Condition, noisy: Tensor, times: Tensor) -> Tensor:
        with torch.no_grad():
            goal = _predicted(original, noisy, times, goal_of)
        return F.mse_loss(_predicted(edited, noisy, times, embedding), goal)

    def score(embedding: Condition) -> float:
        parts = zip(*(part.split(batch_size) for part in fixed[:2]), strict=True)
        with torch.no_grad():
            return sum(float(distance(embedding, x, t)) * len(x) for x, t in parts) / len(clean)

    with frozen(edited, original):
        best, curve = [v.clone() for v in origin], [(0, score(first))]
        for step in range(1, steps + 1):
            rows = torch.randint(0, len(clean), (batch_size,), generator=rng).to(device)
            noisy, times, _ = noised(schedule, clean[rows], rng)
            optimizer.zero_grad()
            distance(with_vectors(first, moved()), noisy, times).backward()
            optimizer.step()
            with torch.no_grad():
                for part, whole in zip(move, origin, strict=True):
                    bounded_(part, whole, radius)
            if step == steps or step % max(1, steps // checks) == 0:
                now = [v.detach() for v in moved()]
                loss = score(with_vectors(first, now))
                if loss < min(value for _, value in curve):
                    best = now
                curve.append((step, loss))
    shifts = [
        ((b - v).norm(dim=1) / v.norm(dim=1).clamp_min(1e-12)).max()
        for b, v in zip(best, origin, strict=True)
    ]
    return Attack(with_vectors(first, best).to("cpu"), curve, float(max(shifts)))


def relearning_curve(
    model: nn.Module,
    schedule: Any,
    latents: Tensor,
    embeddings: Condition,
    measure: Callable[[nn.Module], float],
    *,
    steps: int = 50,
    lr: float = 1e-5,
    every: int = 10,
    batch_size: int = RELEARNING_BATCH,
    seed: int = 0,
) -> list[tuple[int, float]]:
    """Fine-tune on a few images of the concept and watch it come back.

    Parameters
    ----------
    model : nn.Module
        The unlearned denoising network; a copy in single precision is trained.
    schedule : scheduler of diffusers
        Its own.
    latents : Tensor
        (N, C, h, w), clean and scaled, of a few images that show the concept.
    embeddings : Condition
        The embedded prompts that should bring it back: (N, L, D), or (L, D) for all, or the same in parts.
    measure : callable
        Model to a number, such as the share of its images that show the concept.
    steps, lr : int, float
        Of Adam.
    every : int
        Steps between two measurements; also before the first and after the last step.
    batch_size : int
        Images in a step.
    seed : int
        Of order and noise.

    Returns
    -------
    list of (int, float)
        Steps done and what was measured; the first entry is that of ``model`` itself.

    Raises
    ------
    Diverged
        If the loss stops being finite.
    UserError
        If there are no images, or a setting is out of range.

    References
    ----------
    Pham et al., ICLR 2024; Lynch et al., Eight methods to evaluate robust unlearning in LLMs, 2024
    (relearning as a test of unlearning).
    """
    if not len(latents):
        raise UserError("relearning needs at least one image that shows the concept")
    if steps < 0 or every < 1 or batch_size < 1 or not lr > 0:
        raise UserError(f"relearning needs positive settings, got steps {steps}, every {every}, lr {lr:g}")
    curve = [(0, float(measure(model)))]
    if not steps:
        return curve
    net = copy.deepcopy(model).float()
    for weight in net.parameters():
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    rng = generator(seed, "relearning")
    clean = latents.float()
    asked = embeddings.to(clean.device, torch.float32)
    asked = repeated(asked, len(clean)) if vectors(asked)[0].ndim == 2 else asked
    size = min(batch_size, len(clean))
    for step in range(1, steps + 1):
        net.train()
        rows = torch.randperm(len(clean), generator=rng)[:size].to(clean.device)
        noisy, times, target = noised(schedule, clean[rows], rng)
        loss = F.mse_loss(predict_noise(net, noisy, times, asked[rows]).float(), target)
        if not torch.isfinite(loss):
            raise Diverged(f"relearning diverged at step {step}: lower its learning rate {lr:g}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == steps or step % every == 0:
            curve.append((step, float(measure(net.eval()))))
    return curve


def recovery(curve: Sequence[tuple[int, float]], share: float = 0.5) -> int | None:
    """Steps after which a recovery curve first reaches ``share``; None if it never does."""
    return next((step for step, value in curve if value >= share), None)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode whose weights take no gradients; as they were afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    weights = [(w, w.requires_grad) for module in modules for w in module.parameters()]
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for weight, trained in weights:
            weight.requires_grad_(trained)


def noised(
    schedule: Any,
    clean: Tensor,
    rng: torch.Generator,
    *,
    spread: bool = False,
    times: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, their time steps (N,) and what a network in training should predict of them.

    Parameters
    ----------
    schedule : scheduler of diffusers
        How images turn into noise.
    clean : Tensor
        (N, C, h, w).
    rng : torch.Generator
        On the CPU.
    spread : bool
        One time step from each of N equal parts of those in training, in place of N independent ones.
    times : Tensor, optional
        A time step for all of them instead.
    """
    objective = objective_of(schedule)
    n = len(clean)
    if times is not None:
        times = times.expand(n)
    elif spread:
        times = objective.at((torch.arange(n) + torch.rand(n, generator=rng)) / n)
    else:
        times = objective.drawn(n, rng)
    noise = torch.randn(tuple(clean.shape), generator=rng).to(clean)
    times = times.to(clean.device)
    return objective.noisy(clean, noise, times), times, objective.target(clean, noise, times)


def nearest_classes(
    classifier: nn.Module, images: Tensor, forgotten: int, *, batch_size: int = 256
) -> list[int]:
    """The other classes, the ones that real images of the forgotten class are most confused with first.

    Confusion is the mean softmax probability, which ranks classes also where no image is misclassified.

    Parameters
    ----------
    classifier : nn.Module
        Floats in [0, 1] (N, C, H, W) to logits (N, K), in evaluation mode.
    images : Tensor
        uint8 (N, C, H, W), real images of the forgotten class.
    forgotten : int
        Its number.
    batch_size : int
        Images at once.
    """
    if not len(images):
        raise UserError("neighbours need at least one real image of the forgotten class")
    device = next(classifier.parameters()).device
    with torch.no_grad():
        shares = [
            classifier(part.to(device).float() / 255).double().softmax(dim=1).cpu()
            for part in images.split(batch_size)
        ]
    mean = torch.cat(shares).mean(dim=0)
    return [k for k in mean.argsort(descending=True, stable=True).tolist() if k != forgotten]


def neighbour_damage(
    before: Recognition, after: Recognition, neighbours: Sequence[int], classes: Sequence[str]
) -> pd.DataFrame:
    """What unlearning did to each of the other classes, the neighbours of the forgotten one first.

    Parameters
    ----------
    before, after : Recognition
        Of the original and of the unlearned model, for equal prompts and noise.
    neighbours : sequence of int
        From `nearest_classes`.
    classes : sequence of str
        Names.

    Returns
    -------
    DataFrame
        Columns ``rank`` (1 is the nearest), ``class``, ``before``, ``after``, ``drop`` (shares of images
        recognised as asked for; a positive drop is damage), and ``n``.
    """
    old, new = before.class_accuracy(), after.class_accuracy()
    rows = [
        (rank, str(classes[k]), old[k].value, new[k].value, old[k].value - new[k].value, new[k].n)
        for rank, k in enumerate(neighbours, start=1)
    ]
    return pd.DataFrame(rows, columns=["rank", "class", "before", "after", "drop", "n"])


def erasure_summary(probes: pd.DataFrame) -> pd.DataFrame:
    """Each model by its worst case: how often the concept appears where it appears most, against utility.

    Parameters
    ----------
    probes : DataFrame
        One row for each model and probe: ``method, mask, probe`` (direct prompts, adversarial search, …),
        ``shown`` (share of images that show the concept), ``utility`` (share of other things that are still
        drawn as asked for; the same in all rows of a model).

    Returns
    -------
    DataFrame
        One row per ``method, mask`` in order of appearance: a column for each probe, ``worst`` (the largest),
        ``weakest`` (the probe it comes from), ``erased`` = 1 - worst, ``utility``, and ``dominated``, whether
        another model but the original is at least as good in both and better in one.

    Raises
    ------
    UserError
        If a model lacks a probe: worst cases over different probes cannot be compared.
    """
    order = list(dict.fromkeys(zip(probes["method"], probes["mask"], strict=True)))
    names = list(dict.fromkeys(probes["probe"]))
    rows = []
    for method, mask in order:
        mine = probes[(probes["method"] == method) & (probes["mask"] == mask)]
        shown = mine.groupby("probe", sort=False)["shown"].mean()
        if missing := [name for name in names if name not in shown.index or pd.isna(shown[name])]:
            raise UserError(f"{method} was not probed by {missing[0]}: run every probe on every model")
        weakest = str(shown[names].idxmax())
        worst = float(shown[weakest])
        rows.append(
            {
                "method": method,
                "mask": mask,
                **{name: float(shown[name]) for name in names},
                "worst": worst,
                "weakest": weakest,
                "erased": 1 - worst,
                "utility": float(mine["utility"].mean()),
            }
        )
    points = [(row["erased"], row["utility"]) for row in rows if row["method"] != "original"]
    for row in rows:
        own = (row["erased"], row["utility"])
        row["dominated"] = any(other[0] >= own[0] and other[1] >= own[1] and other != own for other in points)
    return pd.DataFrame(rows)


def _predicted(model: nn.Module, noisy: Tensor, times: Tensor, embedding: Condition) -> Tensor:
    own = next(model.parameters()).dtype
    asked = repeated(embedding, len(noisy)).to(own)
    return predict_noise(model, noisy.to(own), times, asked).float()
