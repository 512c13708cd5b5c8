"""Low-rank adapters: another way to say which change a method may make, in the place of a mask."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from salun_core.errors import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Lora:
    r"""Change layers only by a product of two thin matrices, :math:`W + \frac{\alpha}{r} B A`.

    Given as ``mask`` to any method that descends (`engine.descend`), it takes the mask's place: the
    original weights are frozen, the adapters are trained, and the result has them added in.

    Parameters
    ----------
    rank : int
        r, rows of A and columns of B.
    alpha : float, optional
        r by default.
    targets : tuple of str
        Layers by the end of their names; the attention of a denoising network by default.

    References
    ----------
    Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022.
    """

    rank: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of adapters must be at least 1, got {self.rank}")

    def refuse_full_rank(self, model: nn.Module) -> None:
        """Refuse a rank that no change of some layer can have.

        Raises
        ------
        UserError
            If the rank is larger than the smaller side of a layer.
        """
        sides = {
            name: min(layer.weight.shape)
            for name, layer in model.named_modules()
            if name.endswith(self.targets) and isinstance(layer, nn.Linear)
        }
        if small := [name for name, side in sides.items() if side < self.rank]:
            first = min(small, key=sides.__getitem__)
            raise UserError(
                f"the rank of adapters is {self.rank}, and layer {first} has a side of {sides[first]}: give {sides[first]} "
                "or less, or train without adapters"
            )

    def attach(self, model: nn.Module) -> Any:
        """Freeze ``model`` and add adapters to it in place; `merge` undoes it. Initialised by the global generator."""
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]
            target_modules=list(self.targets),
            lora_dropout=0.0,
        )
        model.requires_grad_(False)
        try:
            return LoraModel(model, config, "default")
        except ValueError as error:
            raise UserError(
                f"the model has no layers named {', '.join(self.targets)}: name others as targets"
            ) from error

    @staticmethod
    def merge(attached: Any) -> nn.Module:
        """The model with its adapters added into the weights, all of them trainable again."""
        model: nn.Module = attached.merge_and_unload()
        return model.requires_grad_(True)
