"""Reads pieces of large files that have to stay as they were when they were listed: what has moved would be noise."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..errors import DataError
from .stamps import file_stamp

K = TypeVar("K")
V = TypeVar("V")

OPEN_FILES = 128  # held open at once by one container, as a system allows a process 1,024, or 256 (macOS)


@dataclass(frozen=True)
class _FileState:
    """A file as it was when it was looked at."""

    path: Path  # as it was given, for messages
    absolute: Path  # another process may have another working folder
    stamp: tuple[int, int, int]  # see `UnchangedFiles.stamps`

    @classmethod
    def of(cls, path: Path) -> _FileState:
        absolute = path.absolute()
        return cls(path, absolute, _stamp_of(path, absolute))


class UnchangedFiles:
    """Files as they are now; pieces read later, by many threads at once, are of these, or reading is an error."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises `DataError` if one of `paths` is not there, or not a regular file."""
        self.__setstate__([*map(_FileState.of, paths)])

    def __getstate__(self) -> Sequence[_FileState]:
        return self._states

    def __setstate__(self, states: Sequence[_FileState]) -> None:
        self._states, self.opened = states, time.time_ns()
        self.paths = tuple(state.path for state in states)
        self.stamps = tuple(state.stamp for state in states)
        """Bytes of each file, its mtime and its ctime, in nanoseconds."""
        self._open = functools.lru_cache(maxsize=OPEN_FILES)(_Descriptor)

    def select(self, numbers: Sequence[int]) -> UnchangedFiles:
        """Give the files at positions `numbers` in `paths`, as they were."""
        chosen = UnchangedFiles.__new__(UnchangedFiles)
        chosen.__setstate__([self._states[number] for number in numbers])
        return chosen

    def read(self, file: int, offset: int, count: int) -> bytes:
        """Read `count` bytes of the file at position `file` in `paths`.

        Raises `DataError` if it is another file than before, and `OSError` if it cannot be read or ends too early.
        """
        opened = self._open(self._states[file].absolute)
        if _is_changed(file_stamp(os.fstat(opened.number)), self.stamps[file]):
            raise DataError(_changed(self.paths[file]))
        pieces, missing = [], count
        while missing and (piece := opened.read(offset + count - missing, missing)):
            pieces.append(piece)
            missing -= len(piece)
        if missing:
            raise OSError(f"{self.paths[file].name} ends {missing:,} bytes too early")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check(self, file: int) -> None:
        """Raise `DataError` if the file at position `file` in `paths` is another one than before."""
        if _is_changed(_stamp_of(self.paths[file], self._states[file].absolute), self.stamps[file]):
            raise DataError(_changed(self.paths[file]))

    def open(self, file: int) -> BinaryIO:
        """Open the file at position `file` in `paths`, to read and seek in it; raises `DataError` if it cannot be."""
        try:
            return self._states[file].absolute.open("rb")
        except OSError as error:
            raise DataError(_unopened(self.paths[file], error)) from None

    def to_arrow(self, file: int) -> Path:
        """Give what pyarrow can open."""
        return self._states[file].absolute

    def prefetch(self, wanted: Iterable[tuple[int, int, int]]) -> None:
        """Do nothing: a piece is read when it is needed, and costs no journey."""

    def map(self, function: Callable[[K], V], items: Iterable[K]) -> Iterator[V]:
        """`function` of each item, one after the other."""
        return map(function, items)


class _Descriptor:
    """A file that is open until nobody reads from it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Read up to `count` bytes from `offset`."""
        if hasattr(os, "pread"):
            return os.pread(self.number, count, offset)
        with self._lock:  # Windows
            os.lseek(self.number, offset, os.SEEK_SET)
            return os.read(self.number, count)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


def _changed(path: Path) -> str:
    return f"{path} was changed while it was read; run the command again"


def _unopened(path: Path, error: OSError) -> str:
    return f"cannot open {path} ({error.strerror}); give a file that can be read"


def _is_changed(stamp: tuple[int, int, int], before: tuple[int, int, int]) -> bool:
    return stamp[:2] != before[:2]  # another ctime may be but another owner, or one more hard link


def _stamp_of(path: Path, absolute: Path) -> tuple[int, int, int]:
    try:
        status = absolute.stat()
    except OSError as error:
        raise DataError(_unopened(path, error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file; give one")
    return file_stamp(status)
