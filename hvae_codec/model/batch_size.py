"""How many images go through a model at once if nobody says so."""

from __future__ import annotations

from typing import Protocol

import torch

from ..config import ROW_GROUP_SIZE, ModelConfig

ON_CPU = 64
LARGEST = 64  # pixels on each side up to which a GPU takes a whole row group


class Sized(Protocol):
    """A model, or its decoder."""

    config: ModelConfig

    @property
    def device(self) -> torch.device:
        """The device of the weights."""


def batch_size_of(model: Sized, wanted: int | None, device: str | None = None) -> int:
    """Return the images per pass that are `wanted` or, if that is None, `default_batch_size`."""
    return default_batch_size(model, device) if wanted is None else wanted


def default_batch_size(model: Sized, device: str | None = None) -> int:
    """Choose the images per pass through `model`: 64 on a CPU, a whole row group of 256 on a GPU.

    There, images above 64 × 64 pixels are fewer, a power of two, so that batches have no more pixels than that.
    `device` is where the model will be, cpu or cuda, if that is elsewhere; nobody knows that of `auto`.
    """
    kind = model.device.type if device in (None, "auto") else device
    if kind == "cpu":
        return ON_CPU
    fitting = ROW_GROUP_SIZE * LARGEST**2 // model.config.image_size**2
    return min(ROW_GROUP_SIZE, 1 << max(fitting, 1).bit_length() - 1)
