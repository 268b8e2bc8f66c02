"""Which images a step sees, as a function of seed and step alone, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..images import ImageSource

# Sources up to this many pixel bytes are read once and kept; larger ones are read as the steps need them.
CACHE_BYTES = 2 << 30


class BatchStream:
    """Shuffled batches of a source: every image once an epoch, each epoch in its own order."""

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        seed: int,
        *,
        horizontal_flip: bool,
        on_read: Callable[[int, int], None] | None = None,
    ) -> None:
        """`on_read` is called with the images read and in all, while a source that fits is read into memory."""
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self._orders: dict[int, NDArray[np.int64]] = {}
        pixels = len(source) * source.channels * source.size**2
        self._cache = _read_all(source, on_read) if pixels <= CACHE_BYTES else None
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._ahead: tuple[int, Future[NDArray[np.uint8]]] | None = None

    def batch(self, step: int) -> Tensor:
        """uint8 [batch_size, C, H, W] of `step` (from 1); the next step's batch is read meanwhile."""
        ahead = self._ahead
        images = ahead[1].result() if ahead and ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        return torch.from_numpy(images)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> NDArray[np.uint8]:
        # NumPy only: torch in a second thread starts a second team of OpenMP threads, which then fight for the cores.
        indices = self.indices(step)
        images = self.source.read(indices) if self._cache is None else self._cache[indices]
        if self.horizontal_flip:
            flips = np.random.default_rng((self.seed, 1, step)).random(len(images)) < 0.5
            images[flips] = images[flips, :, :, ::-1]
        return images

    def indices(self, step: int) -> NDArray[np.int64]:
        """Positions in the source of the images of `step`: the stream of epochs, cut into batches."""
        count = len(self.source)
        start = (step - 1) * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        epochs = positions // count
        self._orders = {e: self._orders.get(e, self._order(e)) for e in map(int, np.unique(epochs))}
        return np.array([self._orders[int(e)][p % count] for e, p in zip(epochs, positions, strict=True)])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.source))


def _read_all(source: ImageSource, on_read: Callable[[int, int], None] | None) -> NDArray[np.uint8]:
    pixels = np.empty((len(source), source.channels, source.size, source.size), np.uint8)
    done = 0
    for batch in source.batches(256):
        pixels[done : done + len(batch)] = batch
        done += len(batch)
        if on_read is not None:
            on_read(done, len(source))
    return pixels
