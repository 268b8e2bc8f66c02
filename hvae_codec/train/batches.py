"""Chooses the images of each step by seed and step alone, so that a resumed run continues exactly."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Generator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.row_groups import shuffled_in_windows
from ..data.sources import ImageSource
from ..lookahead import map_ahead
from ..progress import Progress

CACHE_BYTES = 2 << 30
"""Sources up to this many pixel bytes are read once and held in memory; larger ones are read as the steps need them."""

WINDOWS = 4
"""Of images that are read in groups, a window of the source has this part of the bytes that may be in memory; two stay
there, as threads read on both sides of a border."""

AHEAD = 2  # batches read ahead of the one in use, besides one for each thread that reads


class BatchStream:
    """Shuffled batches of a source: every image once per epoch, each epoch in its own order.

        epochs   | 5 0 3 1 4 2 | 2 4 0 5 1 3 | ...      the order of each depends on the seed and its number
        batches  | 5 0 3 1 | 4 2 2 4 | 0 5 1 3 | ...    step 1, 2, 3, ...; each process takes its part of every one

    A source whose images are read in groups, such as Parquet's row groups, is shuffled in windows of some groups if it
    is too large to be held in memory, so that each group is read about once per epoch.

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

        `on_read` is called with the images read and in all, while a source of up to `cache_bytes` is read into memory;
        of a larger one that is read in groups, half of `cache_bytes` of groups are held there. The order of its images
        depends on `cache_bytes`, too.
        """
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.horizontal_flip = horizontal_flip
        size = batch_size // part[1]
        self._slice = slice(part[0] * size, part[0] * size + size)
        pixels = len(source) * source.channels * source.size**2
        self._cache = _read_all(source, on_read) if pixels <= cache_bytes else None
        self._threads = 1 if self._cache is not None else workers
        self._next_step = 1
        """The step whose batch `_batches` gives next; 0 if none."""
        self._batches = self._batches_from(1)
        # Two, as threads read batches out of order at the border of two epochs.
        self._order = functools.lru_cache(maxsize=2)(self._order_of(cache_bytes))

    def _order_of(self, cache_bytes: int) -> Callable[[int], NDArray[np.int64]]:
        """Give what orders all images, int64 [N], by the number of the epoch."""
        groups, count = self.source.groups, len(self.source)
        if groups is None or self._cache is not None:
            return lambda epoch: self._generator(epoch).permutation(count)
        window = cache_bytes // WINDOWS
        self.source.container.group_cache_bytes = 2 * window
        return lambda epoch: shuffled_in_windows(groups, window, self._generator(epoch))

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, 0, epoch))

    def batch(self, step: int) -> Tensor:
        """Read this process's part of the batch of `step` (from 1), uint8 [B, C, H, W]; threads read the next ones.

        Raises `DataError` naming the file if an image is missing or broken.
        """
        if step != self._next_step:
            self.close()
            self._batches = self._batches_from(step)
        self._next_step = 0  # an error ends the generator
        images = next(self._batches)
        self._next_step = step + 1
        return torch.from_numpy(images)

    def _batches_from(self, step: int) -> Generator[NDArray[np.uint8]]:
        waiting = AHEAD + self._threads - 1
        return map_ahead(self._read, itertools.count(step), threads=self._threads, waiting=waiting, name="read batches")

    def close(self) -> None:
        """Stop reading ahead."""
        self._batches.close()

    def _read(self, step: int) -> NDArray[np.uint8]:
        # NumPy only: torch in a second thread starts a second team of OpenMP threads, which then fight for the cores.
        indices = self.indices(step)[self._slice]
        images = self.source.read(indices) if self._cache is None else self._cache[indices]
        if self.horizontal_flip:
            flips = np.random.default_rng((self.seed, 1, step)).random(self.batch_size)[self._slice] < 0.5
            images[flips] = images[flips, :, :, ::-1]
        return images

    def name(self, step: int, position: int) -> str:
        """Name the image at `position` in the whole batch of `step`."""
        return self.source.names[int(self.indices(step)[position])]

    def indices(self, step: int) -> NDArray[np.int64]:
        """Find the images of `step`, of all processes, int64 [batch_size]: the stream of epochs, cut into batches."""
        count = len(self.source)
        start = (step - 1) * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        return np.array([self._order(epoch)[i] for epoch, i in (divmod(p, count) for p in positions.tolist())])


def default_workers(processes: int = 1) -> int:
    """Count the threads that read in each of the `processes` on this machine: its share of the cores, 8 at most."""
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
