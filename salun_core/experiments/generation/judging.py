"""What is kept of generated images: answers of an independent judge, and moments of features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salun_core.data.images import ImageData
from salun_core.metrics.generation.frechet import Features, Moments, drawn
from salun_core.metrics.generation.outputs import GeneratedOutputs, Reference
from salun_core.rng import generator


def judged(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    kinds: Sequence[str],
    classes: int,
    forgotten: Sequence[int],
    features: Features,
    reference: Reference,
    batch_size: int = 256,
) -> GeneratedOutputs:
    """Show the images to the judge, and measure the features of those of the other classes.

    Parameters
    ----------
    images, labels : Tensor
        uint8 (n, C, H, W) and int64 (n,): equally many images for each of ``kinds``, one kind after the other.
    classes : int
        Rows of the confusion.
    reference : Reference
        The distance is that of as many images as it holds out.
    """
    device = next(classifier.parameters()).device
    with torch.no_grad():
        answers = [
            classifier(part.to(device).float() / 255).float().cpu() for part in images.split(batch_size)
        ]
    each = len(images) // len(kinds)
    others = images[:each][~torch.isin(labels[:each], torch.tensor(forgotten))]
    return GeneratedOutputs(
        torch.cat(answers),
        labels,
        torch.arange(len(kinds)).repeat_interleave(each),
        tuple(kinds),
        tuple(forgotten),
        classes,
        Moments.measured(features(drawn(others, reference.held_out.n))),
        reference,
    )


def reference_of(
    data: ImageData, forgotten: Sequence[int], features: Features, *, name: str, most: int, generated: int
) -> Reference:
    """Moments of real images of the other classes: training images, and as many held-out ones as are generated."""
    real, held_out = (real_images(data, forgotten, train=train, most=most) for train in (True, False))
    count = min(generated, len(held_out))
    return Reference(
        name, Moments.measured(features(real)), Moments.measured(features(drawn(held_out, count)))
    )


def real_images(data: ImageData, forgotten: Sequence[int], *, train: bool, most: int) -> Tensor:
    """Real images of the other classes, a balanced draw of at most ``most``."""
    ids = torch.arange(data.n_train) if train else torch.arange(data.n_train, len(data.labels))
    groups = [ids[data.labels[ids] == c] for c in range(len(data.classes)) if c not in forgotten]
    each = max(1, most // len(groups))
    rng = generator(0, "real images", train)
    chosen = [group[torch.randperm(len(group), generator=rng)[:each]] for group in groups]
    return data.images[torch.cat(chosen)]
