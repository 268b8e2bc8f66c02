"""Which images a step sees, as a function of seed and step alone, so that a resumed run goes on exactly."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.sources import ImageSource
from ..progress import Progress

CACHE_BYTES = 2 << 30
"""Sources up to this many pixel bytes are read once and kept; larger ones are read as the steps need them."""

AHEAD = 2
"""Batches read ahead of the one in use, besides one for each thread that reads."""


class BatchStream:
    """Shuffled batches of a source: every image once an epoch, each epoch in its own order.

        epochs   | 5 0 3 1 4 2 | 2 4 0 5 1 3 | ...      the order of each depends on the seed and its number
        batches  | 5 0 3 1 | 4 2 2 4 | 0 5 1 3 | ...    step 1, 2, 3, ...; each process takes its part of every one

    Threads read a few batches ahead, never more, so memory does not grow.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        seed: int,
        *,
        horizontal_flip: bool,
        part: tuple[int, int] = (0, 1),
        workers: int = 1,
        cache_bytes: int = CACHE_BYTES,
        on_read: Progress | None = None,
    ) -> None:
        """`part` (k, n) delivers the k-th of n equal parts of every batch; `workers` threads read ahead.

        `on_read` is called with the images read and in all, while a source of up to `cache_bytes` is read into memory.
        """
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        size = batch_size // part[1]
        self._slice = slice(part[0] * size, part[0] * size + size)
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._orders_lock = threading.Lock()
        pixels = len(source) * source.channels * source.size**2
        self._cache = _read_all(source, on_read) if pixels <= cache_bytes else None
        threads = 1 if self._cache is not None else workers
        self._ahead = AHEAD + threads - 1
        self._pool = ThreadPoolExecutor(threads, "read batches")
        self._pending: dict[int, Future[NDArray[np.uint8]]] = {}

    def batch(self, step: int) -> Tensor:
        """This process's part of the batch of `step` (from 1), uint8 [B, C, H, W]; the next ones are read meanwhile.

        Raises `DataError` naming the file where an image is missing or broken.
        """
        wanted = range(step, step + self._ahead + 1)
        for other in self._pending.keys() - set(wanted):
            self._pending.pop(other).cancel()
        for ahead in wanted:
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(self._read, ahead)
        return torch.from_numpy(self._pending.pop(step).result())

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> NDArray[np.uint8]:
        # NumPy only: torch in a second thread starts a second team of OpenMP threads, which then fight for the cores.
        indices = self.indices(step)[self._slice]
        images = self.source.read(indices) if self._cache is None else self._cache[indices]
        if self.horizontal_flip:
            flips = np.random.default_rng((self.seed, 1, step)).random(self.batch_size)[self._slice] < 0.5
            images[flips] = images[flips, :, :, ::-1]
        return images

    def name(self, step: int, position: int) -> str:
        """Name of the image at `position` in the whole batch of `step`."""
        return self.source.names[int(self.indices(step)[position])]

    def indices(self, step: int) -> NDArray[np.int64]:
        """Positions in the source of the images of `step`, of all processes: the stream of epochs, cut into batches."""
        count = len(self.source)
        start = (step - 1) * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        epochs = positions // count
        orders = {epoch: self._order(epoch) for epoch in map(int, np.unique(epochs))}
        return np.array([orders[int(epoch)][p % count] for epoch, p in zip(epochs, positions, strict=True)])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        with self._orders_lock:
            if epoch not in self._orders:
                # Batches are read out of order at the border of two epochs; older ones are over.
                self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
                self._orders[epoch] = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.source))
            return self._orders[epoch]


def default_workers(processes: int = 1) -> int:
    """Threads that read, for each of the `processes` on this machine: its share of the cores, 8 at most."""
    return max(1, min(8, (os.cpu_count() or 1) // processes))


def _read_all(source: ImageSource, on_read: Progress | None) -> NDArray[np.uint8]:
    pixels = np.empty((len(source), source.channels, source.size, source.size), np.uint8)
    done = 0
    for batch in source.batches(256):
        pixels[done : done + len(batch)] = batch
        done += len(batch)
        if on_read is not None:
            on_read(done, len(source))
    return pixels
