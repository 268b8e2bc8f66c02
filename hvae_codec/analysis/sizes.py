"""Measures what stored numbers take on disk, by compressing them as a store does, without writing one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import CHUNK_BYTES, ROW_GROUP_SIZE
from ..store.arrays import chunk_length, compressed_bytes
from ..store.reader import Stored


class SizeMeter:
    """Adds up the compressed bytes of batches of stored numbers, cut into a store's chunks."""

    def __init__(self) -> None:
        self._waiting: dict[int, NDArray[np.generic]] = {}
        self._bytes = 0

    def add(self, stored: Stored) -> None:
        """Take up one batch: latent resolution to [B, columns, ...]."""
        for resolution, numbers in stored.items():
            waiting = self._waiting.get(resolution, numbers[:0])
            self._waiting[resolution] = self._compress_whole_chunks(np.concatenate([waiting, numbers]))

    def _compress_whole_chunks(self, numbers: NDArray[np.generic]) -> NDArray[np.generic]:
        """Count all chunks that are full; returns the rest."""
        length = chunk_length(ROW_GROUP_SIZE, CHUNK_BYTES, numbers[0].nbytes)
        whole = len(numbers) // length * length
        self._bytes += sum(compressed_bytes(numbers[first : first + length]) for first in range(0, whole, length))
        return numbers[whole:]

    def total_bytes(self) -> float:
        """Return the compressed bytes of all images so far; a store's metadata and names come on top."""
        return float(self._bytes + sum(compressed_bytes(n) for n in self._waiting.values() if len(n)))
