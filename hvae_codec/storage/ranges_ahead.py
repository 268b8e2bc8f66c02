"""Ranges of objects that are asked for before they are needed: many at the same time, neighbours by one request.

    announced   [0..9) [12..30)      [900000..900040)     ranges, in any order
    requests    [0...........30)     [900000..900040)     under way at once, at most `AT_ONCE`
    read        each range once: it waits for its request, and lets go of it

A request costs 20 to 50 ms, whatever is asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ..errors import UnreachableError
from .object_state import ObjectState

AT_ONCE = 64  # requests under way at the same time
REQUEST_BYTES = 2 * 2**20  # of one request at most: larger ranges are read by several
GAP_BYTES = 64 * 2**10  # between neighbours that are joined: to read them takes about as long as another request
HELD_BYTES = 128 * 2**20  # of ranges that were announced and not read: beyond it, the oldest are forgotten
ANNOUNCED_BYTES = HELD_BYTES // 4  # that one call fetches at most; what is beyond is read when it is needed


class Range(NamedTuple):
    """Bytes of one of several objects."""

    file: int  # position of the object
    start: int
    length: int  # bytes

    @property
    def stop(self) -> int:
        """The byte behind it."""
        return self.start + self.length


class _Fetched(NamedTuple):
    """Requests for a stretch that a range is in."""

    start: int  # of the first request
    requests: Sequence[Future[bytes]]
    share: int  # bytes, of those that the requests hold


class RangesAhead:
    """Reads ranges of objects for many threads; those that were announced are under way or there."""

    def __init__(self, states: Sequence[ObjectState]) -> None:
        self._states = states
        self._pool = ThreadPoolExecutor(AT_ONCE, "read ranges")
        self._ahead: OrderedDict[Range, _Fetched] = OrderedDict()
        self._held = 0
        self._failure: UnreachableError | None = None
        self._lock = threading.Lock()

    def announce(self, wanted: Iterable[Range]) -> None:
        """Begin to fetch ranges, up to `ANNOUNCED_BYTES`, and return at once."""
        with self._lock:
            new = sorted({range_ for range_ in wanted if range_ not in self._ahead})
            left, self._failure = ANNOUNCED_BYTES, None
            for stretch in joined(new):
                size = stretch[-1].stop - stretch[0].start
                if size <= left:
                    left -= size
                    self._fetch(stretch)
            while self._held > HELD_BYTES:
                self._held -= self._ahead.popitem(last=False)[1].share

    def __contains__(self, wanted: Range) -> bool:
        with self._lock:
            return wanted in self._ahead

    def read(self, wanted: Range) -> bytes:
        """Read a range, fewer bytes at the end of the object; raises like `ObjectState.read`."""
        with self._lock:
            fetched = self._ahead.pop(wanted, None)
            self._held -= fetched.share if fetched else 0
        if fetched is None and wanted.length <= REQUEST_BYTES:
            return self._states[wanted.file].read(wanted.start, wanted.stop)
        start, requests, _ = fetched or _Fetched(wanted.start, self._ask(wanted.file, wanted.start, wanted.stop), 0)
        if len(requests) > 1:
            return b"".join(request.result() for request in requests)
        return requests[0].result()[wanted.start - start : wanted.stop - start]

    def _fetch(self, stretch: Sequence[Range]) -> None:
        start, stop = stretch[0].start, stretch[-1].stop
        requests, share = self._ask(stretch[0].file, start, stop), -(-(stop - start) // len(stretch))
        self._ahead.update((range_, _Fetched(start, requests, share)) for range_ in stretch)
        self._held += share * len(stretch)

    def _ask(self, file: int, start: int, stop: int) -> list[Future[bytes]]:
        state = self._states[file]
        state.location.bucket.check_process()  # a forked process has no threads that would answer
        cuts = range(start, max(stop, start + 1), REQUEST_BYTES)
        return [self._pool.submit(self._get, state, cut, min(cut + REQUEST_BYTES, stop)) for cut in cuts]

    def _get(self, state: ObjectState, start: int, stop: int) -> bytes:
        if self._failure:  # what waits behind a request that was made again for a minute would take hours to fail
            raise self._failure
        try:
            return state.read(start, stop)
        except UnreachableError as error:
            self._failure = error
            raise


def joined(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Join sorted ranges that one request can read: neighbours, together not longer than a request.

    >>> [len(stretch) for stretch in joined([Range(0, 0, 9), Range(0, 12, 18), Range(0, 900_000, 40), Range(1, 0, 9)])]
    [2, 1, 1]
    """
    stretch: list[Range] = []
    for range_ in ranges:
        if stretch and not _is_of_request(stretch, range_):
            yield stretch
            stretch = []
        stretch.append(range_)
    if stretch:
        yield stretch


def _is_of_request(stretch: Sequence[Range], following: Range) -> bool:
    first, last = stretch[0], stretch[-1]
    is_near = following.start - last.stop <= GAP_BYTES and following.stop >= last.stop
    return first.file == following.file and is_near and following.stop - first.start <= REQUEST_BYTES
