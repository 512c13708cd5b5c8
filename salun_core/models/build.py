"""Building a classifier by the name of its architecture."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from salun_core.errors import UserError, one_of
from salun_core.models.classification.external import built, check_output, find_builder
from salun_core.models.classification.normalised import Normalised
from salun_core.plugins import modules_behind, settings_of
from salun_core.rng import isolated


def build_model(
    arch: str,
    *,
    classes: int,
    channels: int,
    size: int,
    seed: int,
    width: int | None = None,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Build a freshly initialised classifier.

    Parameters
    ----------
    arch : str
        A key of ``MODELS``; ``"torchvision:NAME"`` for a classifier of torchvision, without its trained
        weights; or ``"package.module:function"`` for any callable that returns an ``nn.Module``. The last
        two are called with ``num_classes=K`` and those of ``in_channels``, ``channels``, ``image_size``,
        ``size`` and ``width`` that their signature names; what takes no channels is given grey images
        three times.
    classes, channels, size : int
        K; channels and height (= width) of the images.
    seed : int
        Of the initialisation. The global random state is left as it was.
    width : int, optional
        Channels of the first stage; without meaning for a network that has no such setting
        (see `takes_width`).
    mean, std : sequence of float
        Normalisation by channel, becomes the first layer.

    Returns
    -------
    nn.Module
        Takes floats in [0, 1] (N, C, H, W), gives logits (N, K).

    Raises
    ------
    UserError
        If there is no such network, it does not take these images, or its output is not (N, K).
    """
    builder, own = check_arch(arch), is_own(arch)
    if width is not None and width < 1:
        raise UserError(f"width must be at least 1, got {width}")
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(f"{what} has {len(values)} values for images with {channels} channels")
    offered: dict[str, Any] = {"channels": channels, "size": size}
    if width is not None:
        offered["width"] = width
    if not own:
        offered |= {"in_channels": channels, "image_size": size}
    taken = settings_of(builder)
    given = {"classes" if own else "num_classes": classes}
    given |= {name: value for name, value in offered.items() if name in taken}
    with isolated(seed, "initial weights"):
        net = built(arch, builder, given)
        repeat = 1 if own or channels == 3 or {"channels", "in_channels"} & taken else 3
        model = Normalised(net, mean, std, repeat=repeat)
        if not own:
            check_output(model, arch, classes=classes, channels=channels, size=size)
    return model.train()


def check_arch(arch: str) -> Callable[..., nn.Module]:
    """The builder behind a name.

    Raises
    ------
    UserError
        If there is none.
    """
    if ":" in arch:
        return find_builder(arch)
    from salun_core.models import MODELS  # the table names this module's users, and not the other way round

    choice = f"{', '.join(MODELS)}, torchvision:NAME or package.module:function"
    return MODELS[one_of(arch, MODELS, "arch", choice=choice)]


def is_own(arch: str) -> bool:
    """Whether a network is one of this project, which takes other arguments than those of other packages."""
    from salun_core.models import MODELS

    return arch in list(MODELS)


def modules_of(arch: str) -> tuple[str, ...]:
    """Dotted names of the modules that a network's code comes from: the one its name states, and those that this leads to."""
    from salun_core.models import MODELS

    return tuple(sorted({*MODELS.stated(arch), *modules_behind(check_arch(arch))}))


def takes_width(arch: str) -> bool:
    """Whether ``width`` means anything to a network."""
    return "width" in settings_of(check_arch(arch))
