"""Lists and counts in sentences."""

from collections.abc import Sequence

import pandas as pd

MASK_LABELS = {
    "none": "no mask",
    "salient": "salient mask",
    "random": "random mask",
    "random_per_layer": "random mask per layer",
    "least_salient": "least salient mask",
    "lora": "adapters",
}
"""Kinds of masks, as readers know them."""

SPELLED = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "tiny_imagenet": "Tiny ImageNet",
    "imagenette": "Imagenette",
    "noisy_digits": "noisy digits",
    "resnet6": "ResNet-6",
    "resnet9": "ResNet-9",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "vgg6": "VGG-6",
    "vgg16": "VGG-16",
    "swin_t": "Swin-T",
}
"""Data sets and networks whose names are spelled otherwise in the literature than as a parameter."""


def spelled(name: object) -> str:
    """The name of a data set or a network, as the literature spells it; any other name as it is."""
    return SPELLED.get(str(name), str(name))


def data_and_network(row: pd.Series) -> str:
    """Data set and network of a result, as the literature spells them: "CIFAR-10, ResNet-9"."""
    return f"{spelled(row['dataset'])}, {spelled(row['arch'])}"


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names in a sentence: "A, B and C"."""
    if len(names) < 2:
        return names[0] if names else none
    return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(n: int, one: str, several: str = "") -> str:
    """A number of things: "1 run", "2 runs"."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


def seeds(cells: pd.DataFrame) -> str:
    """How many seeds a table has: "5 training seeds", or "5 training seeds with 2 unlearning seeds each"."""
    own = cells[~cells["method"].isin(["retrain", "original"])] if "method" in cells else cells
    training = counted(own["seed"].nunique() if len(own) else cells["seed"].nunique(), "training seed")
    each = own["unlearning_seed"].nunique() if "unlearning_seed" in own else 1
    return f"{training} with {each} unlearning seeds each" if each > 1 else training


def diverged(cells: pd.DataFrame) -> str:
    """How many runs of a table diverged and are in none of its means, as a sentence; empty where none did."""
    lost = int(((cells["status"] != "done") & (cells["replica"] == 0)).sum()) if "status" in cells else 0
    return f" {counted(lost, 'run')} diverged and {'is' if lost == 1 else 'are'} in no mean." if lost else ""


def sample_size(cells: pd.DataFrame) -> str:
    """How many samples of each class a generator is measured by."""
    first = cells.iloc[0]
    mine, others = int(first["n_class"]), int(first.get("n_other", first["n_class"]))
    if mine == others:
        return f"{counted(mine, 'sample')} a class"
    return f"{counted(mine, 'sample')} of the forgotten class and {others:,} of each other"


def percent(share: float) -> str:
    """A share in percent with at least two digits."""
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def capital(text: str) -> str:
    """A text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
