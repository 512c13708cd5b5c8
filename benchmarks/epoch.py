"""One epoch of SalUn: images in memory against a loader that opens, transforms and stacks them."""

import copy

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from benchmarks.measure import Row, in_turn
from benchmarks.problems import DEVICE, problem
from salun_core.data.batches import Batches
from salun_core.methods import METHODS
from salun_core.rng import generator
from salun_core.saliency import random_mask

PLAIN = transforms.Compose(
    [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
)


class Pictures(Dataset):  # type: ignore[type-arg]
    """The images one by one, as a data set on disk gives them once decoded."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = [to_pil_image(image) for image in images.cpu()]
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return PLAIN(self.images[index]), self.labels[index]


def run(*, small: bool) -> list[Row]:
    """Forget images with wrong labels, then retain images, weights outside the mask held."""
    width, count, batch = (4, 64, 32) if small else (16, 2048, 128)
    task = problem(width=width, images=count, batch=batch)
    mask = random_mask(dict(task.model.named_parameters()), keep=0.5, rng=generator(0, "mask"))
    parts = [
        Pictures(part.images, part.labels) for part in (task.forget, task.retain) if isinstance(part, Batches)
    ]

    def plain() -> None:
        model = copy.deepcopy(task.model).to(memory_format=torch.contiguous_format).train()
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for wrong, part in zip((True, False), parts, strict=True):
            for images, labels in DataLoader(part, batch_size=batch, shuffle=True):
                target = (labels + torch.randint(1, 10, labels.shape)) % 10 if wrong else labels
                loss = F.cross_entropy(model(images.to(DEVICE)), target.to(DEVICE))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for name, weight in model.named_parameters():
                        weight.copy_(torch.where(mask[name], weight, before[name]))

    def ours() -> None:
        METHODS["rl"](task, mask=mask, epochs=1, lr=0.01)

    seconds = in_turn(ours, plain, repeats=1 if small else 3)
    return [Row(f"ResNet-18 of width {width}, {count:,} images of 32 pixels", *seconds)]
