"""The judge of Imagenette images: ResNet-50 trained on ImageNet, asked whether a class comes first of all 1,000."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50

from salun_core.data.images import covering_size, middle
from salun_core.data.prompts import IMAGENETTE
from salun_core.errors import UserError

RESNET_FILE = "resnet50-11ad3fa6.pth"
FETCH = "python -c 'from torchvision.models import resnet50; resnet50(weights=\"IMAGENET1K_V2\")'"
OTHER = "another class"
RESIZE, CROP = 232, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImagenetteJudge(nn.Module):
    """Logits of some classes of ImageNet, and of the best of all others behind them.

    The largest one is a class exactly if that class comes first among all 1,000, so the accuracy of
    `metrics.generation.recognise` with K + 1 classes is the paper's top-1.

    Parameters
    ----------
    network : ResNet
        Normalised images (N, 3, 224, 224) to 1,000 logits.
    numbers : mapping of str to int
        Classes by name, with their numbers in ImageNet.
    """

    def __init__(self, network: ResNet, numbers: Mapping[str, int] = IMAGENETTE) -> None:
        super().__init__()
        self.network = network
        self.classes = (*numbers, OTHER)
        chosen = torch.tensor(list(numbers.values()))
        self.register_buffer("chosen", chosen)
        everything = torch.arange(network.fc.out_features)
        self.register_buffer("rest", everything[~torch.isin(everything, chosen)])

    def forward(self, images: Tensor) -> Tensor:
        """Floats in [0, 1] (N, 1 or 3, H, W) to logits (N, K + 1)."""
        logits = self.network(prepared(images))  # (N, 1000)
        others = logits[:, self.get_buffer("rest")].amax(dim=1, keepdim=True)
        return torch.cat([logits[:, self.get_buffer("chosen")], others], dim=1)


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
    weights: Path | str | None = None, *, device: torch.device | str = "cpu"
) -> ImagenetteJudge:
    """The judge of the paper's Table 2.

    Parameters
    ----------
    weights : path, optional
        ``resnet50-11ad3fa6.pth``; looked for in torch's cache by default. Nothing is fetched.
    device : torch.device
        Where it goes.

    Raises
    ------
    UserError
        If the file is missing or does not hold a ResNet-50 of 1,000 classes.
    """
    given = weights is not None
    path = Path(weights).expanduser() if weights is not None else _cached()
    if not path.is_file():
        where = "" if given else " (torch's cache)"
        raise UserError(
            f'{path}{where} is missing: run "{FETCH}" with a network, or give the file by its path'
        )
    network = resnet50(weights=None)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a truncated pickle can raise almost anything
        raise UserError(
            f"{path} does not hold the weights of torchvision's ResNet-50: fetch {RESNET_FILE} again"
        ) from error
    return ImagenetteJudge(network.eval()).eval().to(device)


def _cached() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / RESNET_FILE
