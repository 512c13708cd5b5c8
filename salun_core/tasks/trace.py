"""The losses of a run, step by step."""

import torch
from torch import Tensor

BLOCK = 1024


class Trace:
    """Scalar losses in their order, on the device of the first; adding one does not wait for the device.

    They lie in blocks. Small tensors kept one by one, between the large ones of batches that come and go, would break
    up the memory of the process, and it would grow with every step (by 0.5 MB with batches of 32 images of 224 pixels).
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, value: Tensor) -> None:
        """Append a scalar; its graph is not kept."""
        if self._n % BLOCK == 0:
            self._blocks.append(torch.empty(BLOCK, dtype=value.dtype, device=value.device))
        self._blocks[-1][self._n % BLOCK] = value.detach()
        self._n += 1

    def values(self) -> Tensor:
        """All of them, as a tensor of their number; empty if none was added."""
        return torch.cat(self._blocks)[: self._n] if self._blocks else torch.empty(0)
