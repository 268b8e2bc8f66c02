"""Large files whose pieces are read, on this machine or in a bucket, and that have to stay as they were meanwhile.

paths ──pieces_of──> UnchangedFiles | UnchangedObjects ── read(file, offset, count), open(file), prefetch(...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from ..storage.bucket import BucketLocation
from ..storage.location import AnyPath
from .stamps import FileStamp
from .unchanged_files import UnchangedFiles
from .unchanged_objects import UnchangedObjects

K = TypeVar("K")
V = TypeVar("V")


class Pieces(Protocol):
    """Files as they were when this was made; what is read by many threads at once is of these, or is an error.

    Pickled, they are the same files in another process, which does not look at them again.
    """

    @property
    def paths(self) -> Sequence[AnyPath]:
        """Where the files are."""

    @property
    def stamps(self) -> Sequence[FileStamp]:
        """Bytes of each file, and what tells it from another one of its name: its times, or its ETag."""

    def select(self, numbers: Sequence[int]) -> Pieces:
        """Give the files at positions `numbers` in `paths`, as they were."""

    @property
    def opened(self) -> int:
        """When the files were looked at, in nanoseconds."""

    def read(self, file: int, offset: int, count: int) -> bytes:
        """Read `count` bytes of the file at position `file` in `paths`.

        Raises `DataError` if it is another file than before, and `OSError` if it cannot be read or ends too early.
        """

    def check(self, file: int) -> None:
        """Raise `DataError` if the file at position `file` in `paths` is another one than before."""

    def open(self, file: int) -> BinaryIO:
        """Open the file at position `file` in `paths`, to read and seek in it."""

    def to_arrow(self, file: int) -> Path | BinaryIO:
        """Give what pyarrow can open: a path, which it reads faster, or a file object."""

    def prefetch(self, wanted: Iterable[tuple[int, int, int]]) -> None:
        """Begin to read pieces (file, offset, count) that `read` will ask for, if they are far away."""

    def map(self, function: Callable[[K], V], items: Iterable[K]) -> Iterator[V]:
        """`function` of each item, in order; some at the same time if each is a journey."""


def pieces_of(paths: Sequence[AnyPath]) -> Pieces:
    """Give the files at `paths`; raises `DataError` if one is not there."""
    objects = [path for path in paths if isinstance(path, BucketLocation)]
    return UnchangedObjects(objects) if objects else UnchangedFiles([path for path in paths if isinstance(path, Path)])
