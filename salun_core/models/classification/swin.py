"""Swin-T for small images."""

from torch import nn

from salun_core.errors import UserError

DEPTHS = (2, 2, 6, 2)


def swin_tiny(classes: int, channels: int = 3, size: int = 32, width: int = 96) -> nn.Module:
    """Swin-T as torchvision has it, with patches and windows chosen by the size of the images.

    Patches are of 4 pixels from 64 on, of 2 from 16 on, of 1 below; windows are the largest up to 7
    patches that tile the first two stages. With 224 pixels and 96 features this is the published Swin-T.

    Parameters
    ----------
    classes : int
        K, number of logits.
    channels : int
        Channels of the images.
    size : int
        Height and width of the images: 8, 16, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, …
    width : int
        Features of the first stage, doubled in each of the three that follow.

    Raises
    ------
    UserError
        If no window fits the images.

    References
    ----------
    Liu et al., Swin transformer, ICCV 2021.
    """
    from torchvision.models.swin_transformer import SwinTransformer

    patch, window = patch_and_window(size)
    # Heads of about 32 features, as published, and a whole number of them.
    heads = next(h for h in range(max(1, round(width / 32)), 0, -1) if width % h == 0)
    net = SwinTransformer(
        patch_size=[patch, patch],
        embed_dim=width,
        depths=list(DEPTHS),
        num_heads=[heads * 2**stage for stage in range(len(DEPTHS))],
        window_size=[window, window],
        stochastic_depth_prob=0.2,
        num_classes=classes,
    )
    if channels != 3:
        net.features[0][0] = nn.Conv2d(channels, width, patch, patch)  # torchvision's takes colour only
    return net


def patch_and_window(size: int) -> tuple[int, int]:
    """Side of a patch in pixels and of a window in patches for images of ``size`` x ``size`` pixels.

    Raises
    ------
    UserError
        If none fits.
    """
    patch = 4 if size >= 64 else 2 if size >= 16 else 1
    if window := _window(size, patch):
        return patch, window
    near = min((s for s in range(8, size + 64) if _window(s, patch)), key=lambda s: abs(s - size))
    raise UserError(
        f"swin_t cannot divide images of {size} pixels into windows: set image_size, to {near} say"
    )


def _window(size: int, patch: int) -> int | None:
    patches, rest = divmod(size, patch)
    # The second stage sees half as many patches a side: windows must tile these too.
    fitting = [w for w in range(3, 8) if rest == 0 and patches % (2 * w) == 0]
    return fitting[-1] if fitting else None
