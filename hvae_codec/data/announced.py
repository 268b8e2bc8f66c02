"""Announces what is read next, some MiB of it together, so that far-away images are on their way before their turn.

parts    |0 1|2 3|4 5|6 7|8|      positions of images that are read together
windows  |       |       | |      of 8 MiB; while the parts of one are used, the next one is fetched
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

WINDOW_BYTES = 8 * 2**20
WINDOW_IMAGES = 16_384  # of a window at most: what is kept of each announced image takes memory, too


def announced(
    positions: NDArray[np.int64],
    size: int,
    announce: Callable[[NDArray[np.int64]], None],
    file_bytes: NDArray[np.int64],
) -> Iterator[NDArray[np.int64]]:
    """Give `positions` in parts of `size`, the last one may be smaller; each window is announced one window early.

    `file_bytes` has the bytes of each image of the container.
    """
    size = min(size, len(positions)) or 1
    windows = _windows(np.cumsum(file_bytes[positions]), size)
    for window, following in itertools.pairwise([slice(0), *windows, slice(0)]):
        if following.stop:
            announce(positions[following])
        for start in range(window.start or 0, window.stop, size):
            yield positions[start : min(start + size, window.stop)]


def _windows(totals: NDArray[np.int64], size: int) -> list[slice]:
    """Cut images into windows of whole parts, from the bytes up to each of them."""
    ends = np.minimum(np.arange(size, len(totals) + size, size), len(totals))
    numbers = np.stack([totals[ends - 1] // WINDOW_BYTES, (ends - 1) // WINDOW_IMAGES])
    last = np.append((np.diff(numbers) > 0).any(axis=0), True)[: len(ends)]
    stops = ends[last].tolist()
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
