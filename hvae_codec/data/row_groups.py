"""Images that are read a group at a time, as the row groups of Parquet files: which there are, and a cache of them.

Reading one image costs reading its group. Who reads in another order than the container's keeps to a few groups.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CACHE_BYTES = 256 * 2**20  # of groups that stay in memory, if nobody says how many


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Which images are read at once, and how many bytes that is."""

    of: NDArray[np.int64]  # number of each image's group, int64 [N]
    unpacked: NDArray[np.int64]  # bytes of each group in memory, int64 [groups]

    def select(self, positions: NDArray[np.int64]) -> RowGroups:
        """Give the groups of the images at `positions`, in that order."""
        return RowGroups(self.of[positions], self.unpacked)


class Files(Protocol):
    """The files of the images in a group, in memory."""

    @property
    def nbytes(self) -> int:
        """Count the bytes of memory that they take."""

    def __getitem__(self, row: int, /) -> bytes | None:
        """Give the file of the image at `row` of the group; None if it is not there."""


class RowGroupCache:
    """Groups that were read last, up to a number of bytes; each is read by one thread, and the others wait for it.

    Two stay in any case, as threads read on both sides of a border.
    """

    def __init__(self, read: Callable[[int], Files], on_leave: Callable[[int], object] = lambda group: None) -> None:
        """`read` reads a group; `on_leave` is called with each that leaves."""
        self._read, self._on_leave = read, on_leave
        self._lock = threading.Lock()  # of the table alone: who wants a group that is there never waits for a read
        self._groups: OrderedDict[int, Future[Files]] = OrderedDict()
        self._sizes: dict[int, int] = {}  # bytes of those that were read
        self._total = 0  # of these

    def __reduce__(self) -> tuple[Any, ...]:
        return RowGroupCache, (self._read, self._on_leave)  # another process begins with none

    def get(self, group: int, limit: int) -> Files:
        """Give a group, which is read if it is not there; the oldest ones leave if there are more than `limit` bytes.

        Raises whatever reading raises, to every thread that waits for this group; the next call reads again.
        """
        with self._lock:
            found = self._groups.get(group)
            mine: Future[Files] = found or Future()
            self._groups[group] = mine
            self._groups.move_to_end(group)
        if found is None:
            self._fill(group, mine, limit)
        return mine.result()

    def _fill(self, group: int, wanted: Future[Files], limit: int) -> None:
        try:
            wanted.set_result(self._read(group))
        except BaseException as error:
            with self._lock:
                self._groups.pop(group, None)
            wanted.set_exception(error)
            return
        with self._lock:
            self._sizes[group] = wanted.result().nbytes
            self._total += self._sizes[group]
            self._shrink(limit)

    def _shrink(self, limit: int) -> None:
        leaving = []
        for group in self._groups:  # from the oldest on
            if self._total <= limit or len(self._sizes) <= 2:
                break
            if group in self._sizes:
                self._total -= self._sizes.pop(group)
                leaving.append(group)
        for group in leaving:
            del self._groups[group]
            self._on_leave(group)


def shuffled_in_windows(groups: RowGroups, window_bytes: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Order all images so that at most about `window_bytes` of groups are needed at a time, int64 [N].

    groups in an order of their own     | c a      | d b      | ...     a window is some groups, one at least
    images                              | shuffled | shuffled | ...
    """
    used, of = np.unique(groups.of, return_inverse=True)
    turns = generator.permutation(len(used))
    window = np.empty(len(used), np.int64)
    window[turns] = windows(groups.unpacked[used][turns], window_bytes)
    return np.lexsort((generator.random(len(of)), window[of]))


def windows(sizes: Sequence[int] | NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Cut consecutive groups of `sizes` bytes into windows of equal size, each `limit` and a group at most.

    >>> windows([4, 4, 4, 4, 4], 10).tolist()
    [0, 0, 0, 1, 1]
    """
    ends = np.cumsum(sizes)
    if not len(ends) or ends[-1] == 0:
        return np.zeros(len(ends), np.int64)
    count = -(-int(ends[-1]) // max(limit, 1))
    # In floating point, as starts times count may be more than 64 bits hold.
    return ((ends - sizes) / ends[-1] * count).astype(np.int64)
