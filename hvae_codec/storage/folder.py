"""Stores in a folder: a path, and what stores need beyond what paths have."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from .files import create_atomically, link_or_copy, write_atomically

K = TypeVar("K")
V = TypeVar("V")

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # before Python 3.12 only the paths of one system can have subclasses


class _Readable(Protocol):
    """Where a copy comes from, if not from a folder."""

    @property
    def folder(self) -> Path | None: ...

    def read_bytes(self) -> bytes: ...


class FolderLocation(_Path):
    """A folder, or a file in it. `BucketLocation` has the same methods."""

    __slots__ = ()

    @property
    def folder(self) -> Path | None:
        """The path on this machine."""
        return self

    @property
    def uncached(self) -> Self:
        """The same: nothing of a folder is cached."""
        return self

    def write(self, key: str, content: bytes) -> None:
        """Write the file `key` below this, at once whole; it survives a power cut when this returns."""
        path = self / key
        write_atomically(path, content, root=self._root_of(key), unique=True, name_first=not path.exists())

    def create(self, key: str, content: bytes) -> bool:
        """Write the file `key` below this unless it is there; whether it was not. Of several processes, one succeeds.

        It survives a power cut when this returns.
        """
        return create_atomically(self / key, content, root=self._root_of(key))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the files `keys` below this, those that are there."""
        for key in keys:
            (self / key).unlink(missing_ok=True)

    def _root_of(self, key: str) -> Path:
        """The lowest folder of a file that was there for long: what is above it is synced.

        Raises `FileNotFoundError` if this folder is gone: who comes too late must not make it anew.
        """
        self.stat()
        array = self / key.partition("/")[0]
        return array if array.is_dir() else self

    def copy_from(self, source: _Readable, key: str) -> None:
        """Write what `source` has as the file `key` below this; a file on this machine is linked, and not synced."""
        if source.folder is None:
            self.write(key, source.read_bytes())
        else:
            link_or_copy(source.folder, self / key)

    def remove_partial_files(self) -> None:
        """Remove what killed writers of files below this have left: in this folder, and in those directly in it."""
        for leftover in (*self.glob("*.partial"), *self.glob("*/*.partial")):
            leftover.unlink(missing_ok=True)

    def drop_from_cache(self, key: str) -> None:
        """Make the system read the file `key` from the disk next time, if it can be asked to."""
        if not hasattr(os, "posix_fadvise"):
            return
        with open(self / key, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def files(self) -> Iterator[tuple[str, int]]:
        """Every file below this, by its name from here on, with slashes, and its bytes."""
        for folder, _, names in os.walk(self):
            prefix = Path(folder).relative_to(self).as_posix()
            for name in names:
                key = name if prefix == "." else f"{prefix}/{name}"
                yield key, (self / key).stat().st_size

    def entries(self) -> list[str]:
        """Names directly below this, in alphabetical order."""
        return sorted(os.listdir(self))

    def array_folders(self) -> list[str]:
        """Names directly below this that may be arrays, in alphabetical order."""
        return sorted(file.parent.name for file in self.glob("*/zarr.json"))

    def prefetch(self, keys: Iterable[str]) -> None:
        """Do nothing: reading the files when they are needed costs no journey."""

    def map(self, function: Callable[[K], V], items: Iterable[K]) -> Iterator[V]:
        """`function` of each item, one after the other."""
        return map(function, items)

    def contains(self, other: object) -> bool:
        """Whether `other` is a path inside of this folder, wherever links and .. lead."""
        return isinstance(other, Path) and Path(os.path.realpath(self)) in Path(os.path.realpath(other)).parents

    def zarr_location(self) -> Path:
        """What zarr opens, for reading."""
        return self

    def identify(self, key: str) -> tuple[Hashable, ...]:
        """Names the content of the file `key`: one that was replaced meanwhile is another one."""
        path = f"{self}/{key}"
        return _identity(path, os.stat(path))

    def open_ranges(self, key: str) -> _RangeFile:
        """Open the file `key`, to read parts of it."""
        return _RangeFile(f"{self}/{key}")


class _RangeFile:
    """An open file: what is read is of one content, whatever its name gets meanwhile."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self.identity = _identity(path, os.fstat(self._file.fileno()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read_end(self, length: int) -> bytes:
        """The last bytes; `ValueError` if the file is shorter."""
        return self._read(self._file.seek(0, os.SEEK_END) - length, length)

    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Bytes from each of `starts` on; `ValueError` if the file ends before."""
        return list(map(self._read, starts, lengths))

    def _read(self, start: int, length: int) -> bytes:
        if start < 0:
            raise ValueError("the file is too short to be a shard")
        self._file.seek(start)
        data: bytes = self._file.read(length)
        if len(data) != length:
            raise ValueError(f"the shard ends at byte {start + len(data)}, within a chunk")
        return data


def _identity(path: str, state: os.stat_result) -> tuple[Hashable, ...]:
    return (path, state.st_ino, state.st_mtime_ns, state.st_size)
