"""Where the images of an archive are, and a file that remembers it: listing a million members takes 8 to 27 s.

    zip, tar ──list──> ArchiveIndex <──> ~/.cache/hvae-codec/indices/HASH.npz     the hash is of path, size, time

Nothing is ever written beside an archive. A listing that is lost or damaged is made again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..storage.user_cache import read_cached, write_cached
from .pixels import EXTENSIONS

REMEMBERED_FROM = 1000  # images; fewer are listed in 0.1 s
_VERSION = 1  # of what is remembered


@dataclass(frozen=True, eq=False)
class ArchiveIndex:
    """The images of one archive in the order of their names."""

    names: Sequence[str]
    labels: Sequence[str]
    offsets: NDArray[np.int64]  # in a tar, of the image's first byte; in a zip, of the header before it
    packed: NDArray[np.int64]  # bytes of each image in the archive
    sizes: NDArray[np.int64]  # bytes of each image file
    checksums: NDArray[np.uint32]  # CRC-32 of each image file; of a tar, zeros
    passed_over: Sequence[str] = ()  # folders with results of this package, not images

    def __len__(self) -> int:
        return len(self.names)


_ARRAYS = ("offsets", "packed", "sizes", "checksums")
_TEXTS = ("names", "labels", "passed_over")


def remembered_index(path: Path, stamp: tuple[int, int], list_archive: Callable[[], ArchiveIndex]) -> ArchiveIndex:
    """Give the index of the archive at `path`, of that size and time: the remembered one, or a new one."""
    # Which files are images depends on the installed Pillow.
    key = f"{_VERSION}\0{EXTENSIONS}\0{path.absolute()}\0{stamp}"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError):
        return _unpacked(read_cached("indices", key))
    index = list_archive()
    if len(index) >= REMEMBERED_FROM:
        with contextlib.suppress(UnicodeError):  # a label that is not UTF-8
            write_cached("indices", key, _packed(index))
    return index


def _packed(index: ArchiveIndex) -> bytes:
    # No name has a zero byte. A label that has one does not fit what is read again.
    texts = {name: np.frombuffer("\0".join(getattr(index, name)).encode(), np.uint8) for name in _TEXTS}
    numbers = {name: getattr(index, name) for name in _ARRAYS}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **texts, **numbers)
    return content.getvalue()


def _unpacked(content: bytes) -> ArchiveIndex:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        texts = {name: arrays[name].tobytes().decode().split("\0") for name in _TEXTS}
        numbers = {name: arrays[name] for name in _ARRAYS}
    passed_over = [name for name in texts.pop("passed_over") if name]
    index = ArchiveIndex(**texts, **numbers, passed_over=passed_over)
    if any(len(values) != len(index) for values in (index.labels, *numbers.values())):
        raise ValueError("it is damaged")
    return index
