"""A file object over ranges that are read by requests: for programs that read a file from its end, or in leaps."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

FIRST_BYTES = 64 * 2**10  # read at first, and behind a leap: what is wanted there may be a few bytes
MOST_BYTES = 8 * 2**20  # read ahead at most: each time twice as much while the file is read from front to back
LEAP_BYTES = 2**20  # as long as it takes to read these, another request takes, too: what is nearer is read over


class RangeFile(io.RawIOBase):
    """An object to read and seek in; one thread at a time."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        size: int,
        is_ahead: Callable[[int, int], bool] = lambda start, count: False,
    ) -> None:
        """`read` gives so many bytes from a position on of the `size` bytes that there are.

        `is_ahead` says whether exactly these are on their way already; they are then read alone.
        """
        self._read, self._size, self._is_ahead = read, size, is_ahead
        self._position = 0
        self._buffer, self._start = b"", 0
        self._ahead = FIRST_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Give the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; nothing is read yet."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} is before the beginning")
        self._position = start + offset
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        """Read so many bytes, fewer at the end; all that are left by default."""
        left = max(self._size - self._position, 0)
        count = left if count is None or count < 0 else min(count, left)
        content = self._bytes(self._position, count)
        self._position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, less at the end."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _bytes(self, start: int, count: int) -> bytes:
        begin = start - self._start
        if begin >= 0 and begin + count <= len(self._buffer):
            return self._buffer[begin : begin + count]
        if count >= FIRST_BYTES or self._is_ahead(start, count):  # of a reader that knows what it wants
            return self._read(start, count)
        self._fill(start, count)
        return self._buffer[start - self._start :][:count]

    def _fill(self, start: int, count: int) -> None:
        gap = start - (self._start + len(self._buffer))
        goes_on = self._start <= start and gap <= LEAP_BYTES
        self._ahead = min(2 * self._ahead, MOST_BYTES) if goes_on and self._buffer else FIRST_BYTES
        # The end is read in small steps back: all of them are in what is read at once.
        self._start = min(start, max(self._size - FIRST_BYTES, 0))
        self._buffer = self._read(
            self._start, min(max(start - self._start + count, self._ahead), self._size - self._start)
        )
