"""Results on their way from a GPU to the host, which meanwhile launches what comes next."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Arriving:
    """A copy of a tensor for the host, started at once; later work of the device may write over the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=tensor.is_cuda)
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            with torch.cuda.device(tensor.device):
                self._event = torch.cuda.Event()
                self._event.record()

    def numpy(self) -> NDArray[Any]:
        """Wait for the copy, and return it."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.numpy()
