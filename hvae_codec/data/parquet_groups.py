"""Row groups of Parquet files, numbered through all files: where each lies, and the column of images of one of them.

file     0               1
group    0   1   2       0   1       numbers 0 1 2 3 4
rows     ooo ooo o       ooo oo      rows 0 to 11; row 4 is in group 1
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..storage.location import AnyPath
from .pieces import Pieces
from .unchanged_files import OPEN_FILES

if TYPE_CHECKING:
    from pyarrow import ChunkedArray
    from pyarrow.parquet import ParquetFile


class GroupImages:
    """The files of the images in one row group."""

    def __init__(self, column: ChunkedArray) -> None:
        """`column` has the files as bytes."""
        self._column = column
        self.nbytes = int(column.nbytes)

    def __getitem__(self, row: int, /) -> bytes | None:
        content: bytes | None = self._column[row].as_py()
        return content


@dataclass(frozen=True, eq=False)
class ParquetFiles:
    """Parquet files whose images are read."""

    pieces: Pieces
    columns: Sequence[str]  # name of the column of images in each file
    digests: Sequence[bytes]  # of what the end of each file says

    def select(self, numbers: Sequence[int]) -> ParquetFiles:
        """Give the files at positions `numbers`."""
        columns, digests = [self.columns[number] for number in numbers], [self.digests[number] for number in numbers]
        return ParquetFiles(self.pieces.select(numbers), columns, digests)


@dataclass(frozen=True, eq=False)
class GroupTable:
    """Where row groups lie."""

    file: NDArray[np.int64]  # position of each one's file, int64 [groups]
    number: NDArray[np.int64]  # of each in its file, int64 [groups]
    starts: NDArray[np.int64]  # rows before each, and all rows, int64 [groups + 1]
    unpacked: NDArray[np.int64]  # bytes of the images of each in memory, about, int64 [groups]
    chunks: Sequence[Sequence[tuple[int, int]]]  # offsets and bytes of the parts of the images' column in each

    def group_of(self, rows: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Find the row group that rows are in."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def select(self, groups: NDArray[np.int64]) -> GroupTable:
        """Give the row groups `groups`; their files are numbered anew, those that have none are left out."""
        _, file = np.unique(self.file[groups], return_inverse=True)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[groups])])
        chunks = [self.chunks[group] for group in groups.tolist()]
        return GroupTable(file, self.number[groups], starts, self.unpacked[groups], chunks)


class ParquetGroups:
    """Reads row groups, for many threads; pickled, it is where they lie."""

    def __init__(
        self, files: ParquetFiles, table: GroupTable, open_file: Callable[[int], ParquetFile] | None = None
    ) -> None:
        """`open_file` gives each file, of those that are open already; see `opener`."""
        self.files, self.table = files, table
        self._open = open_file or opener(files.pieces)
        self._reading = threading.Lock()
        self._prefetched: set[int] = set()
        self._announcing = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetGroups, (self.files, self.table)

    def select(self, groups: NDArray[np.int64]) -> ParquetGroups:
        """Give the row groups `groups`, ascending, with those files alone that they are in."""
        files = self.files.select(np.unique(self.table.file[groups]).tolist())
        return ParquetGroups(files, self.table.select(groups))

    def read(self, group: int) -> GroupImages:
        """Read the images of a row group; raises `DataError` if its file is damaged, or another one than before."""
        file = int(self.table.file[group])
        self.files.pieces.check(file)
        path, column = self.files.pieces.paths[file], self.files.columns[file]
        with self._reading, readable_parquet(path):  # an open file is made for one thread
            opened = self._open(file)
            struct = is_struct(opened, column)
            wanted = [f"{column}.bytes"] if struct else [column]
            images = opened.read_row_group(int(self.table.number[group]), wanted, use_threads=False)[column]
            return GroupImages(images.flatten()[0] if struct else images)

    def prefetch(self, groups: NDArray[np.int64]) -> None:
        """Begin to read row groups, each once while it is kept."""
        wanted = {*np.unique(groups).tolist()}
        with self._announcing:
            new = sorted(wanted - self._prefetched)
            self._prefetched.update(new)
        self.files.pieces.prefetch((int(self.table.file[group]), *c) for group in new for c in self.table.chunks[group])

    def leave(self, group: int) -> None:
        """Note that a row group is not in memory any more, so that it may be prefetched again."""
        with self._announcing:
            self._prefetched.discard(group)


def opener(files: Pieces) -> Callable[[int], ParquetFile]:
    """Make a function that opens the file at a position, and holds the last ones open."""
    return functools.lru_cache(maxsize=OPEN_FILES)(functools.partial(_opened, files))


def _opened(files: Pieces, file: int) -> ParquetFile:
    import pyarrow.parquet

    with readable_parquet(files.paths[file]):
        return pyarrow.parquet.ParquetFile(files.to_arrow(file))


@contextmanager
def readable_parquet(path: AnyPath) -> Iterator[None]:
    """Turn errors of pyarrow into a `DataError` that names `path`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        problem = f"{path} cannot be read as Parquet: it is truncated or damaged ({reason})"
        raise DataError(f"{problem}; copy or make it again") from None


def is_struct(file: ParquetFile, column: str) -> bool:
    """Whether a column's values have fields."""
    from pyarrow import types

    return bool(types.is_struct(file.schema_arrow.field(column).type))
