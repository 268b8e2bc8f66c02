"""Decoded chunks that are read again and again, as many as there is room for."""

from __future__ import annotations

import collections
import contextlib
import threading

from numpy.typing import NDArray

CACHE_BYTES = 64 * 2**20  # bytes in a cache if nobody says how many


class ChunkCache:
    """Decoded chunks and shard indices, the least recently used dropped first; at most `limit` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.nbytes = 0
        """Bytes in it now."""
        self._arrays: collections.OrderedDict[object, NDArray] = collections.OrderedDict()
        self._changing = threading.Lock()

    def get(self, key: object) -> NDArray | None:
        """The array of `key`; None if it is not there any more."""
        array = self._arrays.get(key)
        if array is not None:
            with contextlib.suppress(KeyError):  # another thread has dropped it meanwhile
                self._arrays.move_to_end(key)
        return array

    def put(self, key: object, array: NDArray) -> None:
        """Cache `array`, which nobody may change from now on."""
        # Nobody waits for the lock: not a thread, and not a forked process whose copy of it is never released.
        if array.nbytes > self.limit or not self._changing.acquire(blocking=False):
            return
        try:
            if key in self._arrays:
                self.nbytes -= self._arrays.pop(key).nbytes
            self._arrays[key] = array
            self.nbytes += array.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._arrays.popitem(last=False)[1].nbytes
        finally:
            self._changing.release()
