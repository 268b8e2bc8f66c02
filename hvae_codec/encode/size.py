"""What stored numbers take on disk, measured by compressing them as a store does, without writing one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from .coder import Stored
from .layout import CHUNK_BYTES, chunk_length, compressed_bytes

ROW_GROUP = 256


class SizeMeter:
    """Adds up the compressed bytes of batches of stored numbers, cut into a store's chunks."""

    def __init__(self) -> None:
        self._parts: dict[int, list[NDArray[np.generic]]] = {}
        self.images = 0

    def add(self, stored: Stored) -> None:
        """Take up one batch: latent resolution to [B, channels, y, x]."""
        for resolution, numbers in stored.items():
            self._parts.setdefault(resolution, []).append(numbers)
        self.images += len(next(iter(stored.values())))

    def bytes_per_image(self) -> float:
        """Compressed bytes an image, chunk by chunk; a store's metadata and names come on top."""
        arrays: Mapping[int, NDArray[np.generic]] = {r: np.concatenate(p) for r, p in self._parts.items()}
        return sum(compressed_bytes(chunk) for array in arrays.values() for chunk in _chunks(array)) / self.images


def _chunks(array: NDArray[np.generic]) -> Iterable[NDArray[np.generic]]:
    length = chunk_length(ROW_GROUP, CHUNK_BYTES, array[0].nbytes)
    return (array[first : first + length] for first in range(0, len(array), length))
