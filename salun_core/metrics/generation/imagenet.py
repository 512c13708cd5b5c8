"""A judge for classes of ImageNet: ResNet-50, asked whether a class comes first of all 1,000."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_core.data.downloads import DOWNLOADS, how_to_get
from salun_core.data.images import covering_size, middle
from salun_core.data.prompts import IMAGENETTE
from salun_core.errors import UserError, nearest
from salun_core.paths import expanded

if TYPE_CHECKING:
    from torchvision.models import ResNet

OTHER = "another class"
RESIZE, CROP = 232, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImagenetJudge(nn.Module):
    """Logits of some classes of ImageNet, and behind them the largest logit of all others.

    The largest one is a class exactly if that class comes first among all 1,000, so the accuracy of
    `metrics.generation.recognise` with K + 1 classes is the paper's top-1.

    Parameters
    ----------
    network : ResNet
        Normalised images (N, 3, 224, 224) to 1,000 logits.
    numbers : sequence of int
        Numbers in ImageNet of the K classes; see `imagenet_numbers`.
    """

    def __init__(self, network: "ResNet", numbers: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.classes = (*(imagenet_names()[number] for number in numbers), OTHER)
        chosen = torch.tensor(list(numbers))
        self.register_buffer("chosen", chosen)
        everything = torch.arange(network.fc.out_features)
        self.register_buffer("rest", everything[~torch.isin(everything, chosen)])

    def forward(self, images: Tensor) -> Tensor:
        """Floats in [0, 1] (N, 1 or 3, H, W) to logits (N, K + 1)."""
        logits = self.network(prepared(images))  # (N, 1000)
        others = logits[:, self.get_buffer("rest")].amax(dim=1, keepdim=True)
        return torch.cat([logits[:, self.get_buffer("chosen")], others], dim=1)


def imagenet_numbers(classes: Sequence[str], names: Sequence[str] = ()) -> tuple[int, ...]:
    """Numbers in ImageNet of the classes of a data set.

    Parameters
    ----------
    classes : sequence of str
        K classes as the data set names them: WordNet ids ("n03028079", as folders of Imagenette are called)
        or the names of ImageNet ("church"), in upper or lower case.
    names : sequence of str
        Other names of the same K classes, for those that ``classes`` leaves open; both must agree.

    Raises
    ------
    UserError
        If a class is not one of ImageNet, its two names contradict each other, or two classes are the same.
    """
    found: list[int] = []
    for k, own in enumerate(classes):
        other = names[k] if names else own
        first, second = imagenet_number(own), imagenet_number(other)
        if first is not None and second is not None and first != second:
            raise UserError(
                f"class {own!r} is {imagenet_names()[first]!r} in ImageNet, but class_names calls it {other!r}: "
                "list class_names in the order of the classes of the data, or set class_names to [], to name them as "
                "the data do"
            )
        number = first if first is not None else second
        if number is None:
            near = nearest(other, map(str.lower, imagenet_names()))
            hint = f"did you mean {near!r}? " if near else ""
            raise UserError(
                f"judge imagenet does not know class {other!r}: {hint}Name it by its WordNet id (n03028079) or "
                "its name in ImageNet (church), or choose a judge that is trained on the data, such as resnet34"
            )
        if number in found:
            raise UserError(
                f"classes {classes[found.index(number)]!r} and {own!r} are both {imagenet_names()[number]!r} in "
                "ImageNet: leave one out"
            )
        found.append(number)
    return tuple(found)


def imagenet_number(name: str) -> int | None:
    """Number in ImageNet of a class given by WordNet id or name; None if it is neither, or the name of two."""
    ids, names = imagenet_ids(), imagenet_names()
    given = name.strip().replace("_", " ")
    if given.lower() in ids:
        return ids.index(given.lower())
    if given in names:  # a cardigan is a garment, and a Cardigan a dog
        return names.index(given)
    alike = [number for number, known in enumerate(names) if known.lower() == given.lower()]
    return alike[0] if len(alike) == 1 else None


def spoken(name: str) -> str:
    """A class as a prompt calls it: by its name in ImageNet where it is a WordNet id, and with blanks for underscores."""
    ids = imagenet_ids()
    return imagenet_names()[ids.index(name)] if name in ids else name.replace("_", " ")


@functools.cache
def imagenet_ids() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1,000 classes, in their order, which is alphabetical."""
    return tuple(Path(__file__).with_name("imagenet_wordnet_ids.txt").read_text("utf8").split())


def imagenet_names() -> list[str]:
    """Names of ImageNet's 1,000 classes as torchvision lists them, in their order."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def prepared(images: Tensor) -> Tensor:
    """Images as ResNet-50 was evaluated with: 232 pixels, the middle 224 of them, normalised.

    References
    ----------
    torchvision, ``ResNet50_Weights.IMAGENET1K_V2.transforms()``.
    """
    size = covering_size(images.shape[2], images.shape[3], RESIZE)
    found = F.interpolate(images.expand(-1, 3, -1, -1), size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).to(found).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (middle(found, CROP) - mean) / std


def imagenet_judge(
    weights: Path | str | None = None,
    *,
    numbers: Sequence[int] = tuple(IMAGENETTE.values()),
    device: torch.device | str = "cpu",
) -> ImagenetJudge:
    """The judge of the paper's Table 2.

    Parameters
    ----------
    weights : path, optional
        ``resnet50-11ad3fa6.pth``; looked for in torch's cache by default. Nothing is fetched.
    numbers : sequence of int
        The classes to tell apart, by their numbers in ImageNet; those of Imagenette by default.
    device : torch.device
        Where it goes.

    Raises
    ------
    UserError
        If the file is missing or does not hold a ResNet-50 of 1,000 classes.
    """
    from torchvision.models import resnet50  # slow to import: an experiment of classifiers needs none of it

    path = DOWNLOADS["resnet50"].paths[0] if weights is None else expanded(weights)
    if not path.is_file():
        raise UserError(f"judge imagenet needs {path}, which is missing: {how_to_get('resnet50')}")
    network = resnet50(weights=None)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a truncated pickle can raise almost anything
        raise UserError(
            f"{path} does not hold the weights of torchvision's ResNet-50: delete it and "
            "run 'python -m salun_core fetch resnet50'"
        ) from error
    return ImagenetJudge(network.eval(), numbers).eval().to(device)
