"""Forgetting a class with a class-conditional diffusion model: networks, training, losses, samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from salun_core.data.augment import crop_and_flip
from salun_core.data.batches import Batches
from salun_core.data.images import ImageData
from salun_core.data.splits import split_data
from salun_core.experiments.runs.cells import Scenario
from salun_core.models.diffusion.sampling import Kept, sample
from salun_core.models.diffusion.unet import build_unet, like, load_diffusion, noise_schedule
from salun_core.tasks.diffusion import DiffusionTask
from salun_core.tasks.diffusion_training import DiffusionRecipe

if TYPE_CHECKING:
    from salun_core.experiments.diffusion.params import DiffusionForgetting, Unet
    from salun_core.experiments.generation.params import Sampling

STREAMS = 1_000_000  # noise streams of one class, so that a larger sample contains the smaller


@dataclass
class Problem:
    """Everything that determines a trained model, the task of forgetting, and the samples.

    Parameters
    ----------
    data : ImageData
        All images, on the CPU. Class i of the data is class i of the network.
    unet, recipe, forgetting
        The network, its training from scratch, and the losses of forgetting.
    pretrained : path, optional
        A diffusers folder that takes the place of the original model.
    retrained : path, optional
        One that takes the place of Retrain.
    bf16, compile
        See ``DiffusionTask``.
    device : torch.device
        Where networks and images lie.
    """

    data: ImageData
    unet: "Unet"
    recipe: DiffusionRecipe
    forgetting: "DiffusionForgetting"
    pretrained: Path | None = None
    retrained: Path | None = None
    bf16: bool = False
    compile: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised denoising network, of the same kind as the one in ``pretrained`` where there is one."""
        if self.pretrained is not None:
            return like(self.brought[0], seed=seed).to(self.device)
        net = self.unet
        return build_unet(
            classes=len(self.data.classes),
            channels=self.data.images.shape[1],
            size=self.data.images.shape[-1],
            widths=net.widths,
            layers=net.layers,
            attention=net.attention,
            head=net.head,
            dropout=net.dropout,
            seed=seed,
        ).to(self.device)

    @cached_property
    def schedule(self) -> Any:
        """How images turn into noise."""
        if self.pretrained is not None:
            return self.brought[1]
        return noise_schedule(self.unet.schedule, steps=self.unet.diffusion_steps)

    @cached_property
    def brought(self) -> tuple[nn.Module, Any]:
        """Network and schedule of a model of the user's own."""
        assert self.pretrained is not None
        return self.read(self.pretrained)

    @property
    def width(self) -> int:
        """Channels of the network at the highest resolution."""
        if self.pretrained is None:
            return self.unet.widths[0]
        config: Any = self.brought[0].config
        return int(config.block_out_channels[0])

    def read(self, folder: Path) -> tuple[nn.Module, Any]:
        """Network and schedule of a folder, for these images."""
        _, channels, _, size = self.data.images.shape
        return load_diffusion(folder, classes=len(self.data.classes), channels=channels, size=size)

    def every_image(self) -> Batches:
        """All training images."""
        return self._batches(torch.arange(self.data.n_train))

    def parts(self, seed: int, scenario: Scenario) -> dict[str, Batches]:
        """Images to forget and to keep."""
        split = split_data(
            self.data, scenario="class", seed=seed, forget_class=scenario.numbers, validation=0
        )
        return {role: self._batches(split[role]) for role in ("forget", "retain")}

    def task(
        self,
        model: nn.Module,
        parts: Mapping[str, Batches],
        *,
        checkpoint: Callable[[int, Batches], Path] | None = None,
        deadline: float | None = None,
        progress: bool = False,
    ) -> DiffusionTask:
        """The losses of training and of forgetting around a model."""
        how = self.forgetting
        return DiffusionTask(
            model,
            parts,
            self.build,
            self.recipe,
            self.schedule,
            relabel=how.relabel,
            **how.losses(),
            bf16=self.bf16,
            compile=self.compile,
            checkpoint=checkpoint,
            deadline=deadline,
            progress=progress,
        )

    def drawn(
        self,
        model: nn.Module,
        how: "Sampling",
        counts: Sequence[int],
        *,
        progress: bool,
        kept: Kept | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As many samples of each class as ``counts`` says, uint8 (n, C, H, W), and their classes (n,).

        Image i of class c has the same noise for every model.
        """
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        within = torch.cat([torch.arange(count) for count in counts])
        images = sample(
            model,
            self.schedule,
            labels,
            seed=0,
            streams=(labels * STREAMS + within).tolist(),
            guidance=how.guidance,
            steps=how.sample_steps,
            eta=how.eta,
            batch_size=how.sample_batch,
            bf16=self.bf16,
            progress=progress,
            kept=kept,
        )
        return images, labels

    def _batches(self, ids: Tensor) -> Batches:
        # A shifted image with black borders would teach the model to draw borders: mirror images only.
        mirrored = partial(crop_and_flip, pad=0, flip=True) if self.data.flip else None
        return self.data.batches(ids, device=self.device, size=self.forgetting.batch_size, augment=mirrored)
