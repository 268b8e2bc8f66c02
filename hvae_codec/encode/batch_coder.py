"""Batches through a coder, both directions: on a GPU all of one size, so that they are recorded and rounded alike.

    images ─ filled up ─> coder ─> rows on the device ─ one copy ─> cut, by resolution
    by resolution ─ filled up ─> rows ─ one copy ─> decoder ─> pixels on the device ─ one copy ─> cut

Convolutions on a GPU round differently in batches of other sizes. Batches that are filled up with their last image and
cut afterwards have the codes of full ones. What was started is fetched later, when the device has more to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import StoreError
from ..lookahead import fetched_behind
from ..model.arriving import Arriving
from ..model.bottom_up import Activations
from ..model.precision import full_float32
from ..prune.sweep import MaskedElbo
from ..store.reader import Stored
from .coder import LatentCoder
from .latent_decoder import LatentDecoder

Result = TypeVar("Result")


@dataclass(frozen=True)
class EncodedBatch:
    """A batch whose codes are on their way; its tensors hold until the next batch is started."""

    images: Tensor  # uint8 [size, C, H, W], filled up, on the device
    activations: Activations  # of these
    stored: Callable[[], Stored]  # waits for the stored numbers of the images, without those that fill up


class BatchDecoder:
    """Decodes batches of at most `size` images."""

    def __init__(self, coder: LatentCoder | LatentDecoder, size: int) -> None:
        self.coder, self.size = coder, size
        self._device = coder.model.device

    @property
    def on_gpu(self) -> bool:
        """Whether batches are filled up, and the next one is started before one is fetched; a CPU's time is theirs."""
        return self._device.type != "cpu"

    @cached_property
    def _decode(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return self.coder.model.recording.of(self._pixels, self._device)

    @torch.no_grad()
    @full_float32()
    def _pixels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute uint8 [B, C, H, W] of packed stored numbers, and whether all pixels were finite."""
        likelihood = self.coder.model.likelihood
        images = likelihood.mean(self.coder.output(self.coder.packing.unpack(rows)))
        return likelihood.to_pixels(images), torch.isfinite(images).all()

    def start(self, stored: Stored, checked: bool = False) -> Callable[[], NDArray[np.uint8]]:
        """Start to decode a batch; the function returned waits for it, uint8 [B, C, H, W].

        If `checked`, that raises `StoreError` if a pixel is not finite.
        """
        rows = self.coder.packing.pack(stored)
        pixels, finite = self._decode(torch.from_numpy(self._filled(rows)))
        arriving, flag, count = Arriving(pixels), Arriving(finite), len(rows)

        def fetch() -> NDArray[np.uint8]:
            if checked and not flag.numpy():
                raise StoreError("pixels are not finite; the model or its latents are damaged")
            return arriving.numpy()[:count]

        return fetch

    def decode_checked(self, stored: Stored) -> NDArray[np.uint8]:
        """Decode any number of images, uint8 [B, C, H, W]; raises `StoreError` if a pixel is not finite."""
        images = len(next(iter(stored.values())))
        parts = (slice(first, first + self.size) for first in range(0, images, self.size))
        started = (self.start({r: numbers[part] for r, numbers in stored.items()}, checked=True) for part in parts)
        return np.concatenate(list(self.fetched(started)))

    def fetched(self, started: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """Fetch each of `started`, which starts batches when it is iterated over, while the device has more to do."""
        return fetched_behind(started, waiting=1 if self.on_gpu else 0)

    def _filled(self, batch: NDArray[Any]) -> NDArray[Any]:
        missing = self.size - len(batch) if self.on_gpu else 0
        return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch


class BatchCoder(BatchDecoder):
    """Encodes and decodes batches of at most `size` images."""

    coder: LatentCoder

    def __init__(self, coder: LatentCoder, size: int) -> None:
        super().__init__(coder, size)

    @cached_property
    def _encode(self) -> Callable[[Tensor], tuple[Tensor, Activations, Tensor]]:
        return self.coder.model.recording.of(self._rows, self._device)

    @torch.no_grad()
    @full_float32()
    def _rows(self, images: Tensor) -> tuple[Tensor, Activations, Tensor]:
        activations = self.coder.model.activations(images)
        return images, activations, self.coder.packed(activations)

    def start_encoding(self, pixels: NDArray[np.uint8]) -> EncodedBatch:
        """Start to encode uint8 `pixels` [B, C, H, W]."""
        images, activations, rows = self._encode(torch.from_numpy(self._filled(pixels)))
        arriving, count = Arriving(rows), len(pixels)
        return EncodedBatch(images, activations, lambda: self.coder.packing.unpack(arriving.numpy()[:count]))

    @cached_property
    def elbo(self) -> MaskedElbo:
        """Measures what is left of the bound with the coder's mask."""
        return MaskedElbo(self.coder.model, [self.coder.mask])
