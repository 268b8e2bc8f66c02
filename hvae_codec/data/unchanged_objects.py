"""Reads pieces of large objects in a bucket that have to stay as they were when they were listed.

The sibling of `UnchangedFiles`: the same methods, each of which is a request or several.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import BinaryIO, TypeVar, cast

from ..errors import DataError
from ..lookahead import map_ahead
from ..storage.bucket import BucketLocation
from ..storage.object_state import ObjectState, ReplacedError
from ..storage.range_file import RangeFile
from ..storage.ranges_ahead import Range, RangesAhead

K = TypeVar("K")
V = TypeVar("V")

LISTED_AT_ONCE = 8  # objects that are looked through at the same time; each holds up to 16 MiB meanwhile


class UnchangedObjects:
    """Objects as they are now; pieces read later, by many threads at once, are of these, or reading is an error."""

    def __init__(self, locations: Sequence[BucketLocation]) -> None:
        """Raises `DataError` if there is no object at one of `locations`, `UnreachableError` without an answer."""
        self.__setstate__(_states(locations))

    def __getstate__(self) -> Sequence[ObjectState]:
        return self._states

    def __setstate__(self, states: Sequence[ObjectState]) -> None:
        self._states, self.opened = states, time.time_ns()
        self._ahead = RangesAhead(states)
        self.paths = tuple(state.location for state in states)
        self.stamps = tuple((state.size, state.tag, 0) for state in states)
        """Bytes of each object, its ETag, and 0."""

    def select(self, numbers: Sequence[int]) -> UnchangedObjects:
        """Give the objects at positions `numbers` in `paths`, as they were."""
        chosen = UnchangedObjects.__new__(UnchangedObjects)
        chosen.__setstate__([self._states[number] for number in numbers])
        return chosen

    def read(self, file: int, offset: int, count: int) -> bytes:
        """Read `count` bytes of the object at position `file` in `paths`; raises like `UnchangedFiles.read`."""
        with self._unchanged(file):
            content = self._ahead.read(Range(file, offset, count))
        if len(content) < count:
            raise OSError(f"{self.paths[file].name} ends {count - len(content):,} bytes too early")
        return content

    def check(self, file: int) -> None:
        """Do nothing: each request is for the object that was there."""

    def open(self, file: int) -> BinaryIO:
        """Open the object at position `file` in `paths`, to read and seek in it."""
        read, is_ahead = partial(self.read, file), lambda start, count: Range(file, start, count) in self._ahead
        return cast(BinaryIO, RangeFile(read, self.stamps[file][0], is_ahead))

    def to_arrow(self, file: int) -> BinaryIO:
        """Give what pyarrow can open."""
        return self.open(file)

    def prefetch(self, wanted: Iterable[tuple[int, int, int]]) -> None:
        """Begin to fetch pieces that `read` will ask for."""
        self._ahead.announce(Range(*piece) for piece in wanted)

    def map(self, function: Callable[[K], V], items: Iterable[K]) -> Iterator[V]:
        """`function` of each item, in order; several at the same time."""
        return map_ahead(function, items, threads=LISTED_AT_ONCE, waiting=LISTED_AT_ONCE, name="list objects")

    @contextlib.contextmanager
    def _unchanged(self, file: int) -> Iterator[None]:
        try:
            yield
        except ReplacedError:
            raise DataError(f"{self.paths[file]} was changed while it was read; run the command again") from None


def _states(locations: Sequence[BucketLocation]) -> list[ObjectState]:
    states = [*locations[0].map(_state_if_there, locations)]
    missing = [location for location, state in zip(locations, states, strict=True) if state is None]
    if missing:
        missing[0].is_dir()  # what the server answers to this tells a missing bucket from a missing object
        several = f"{len(missing):,} of {len(locations):,} objects are missing, such as {missing[0]}"
        problem = f"there is no {missing[0]}" if len(locations) == 1 else several
        raise DataError(f"{problem}; check the URL")
    return [state for state in states if state is not None]


def _state_if_there(location: BucketLocation) -> ObjectState | None:
    with contextlib.suppress(FileNotFoundError):
        return ObjectState.of(location)
    return None
