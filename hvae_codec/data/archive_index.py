"""Where the images of an archive are, and a file that remembers it: listing a million members takes 8 to 27 s.

    zip, tar ──list──> ArchiveIndex <──> ~/.cache/hvae-codec/indices/HASH.npz     the hash is of path, size, time
                                                                       (of an object: its URL, size, ETag)

Nothing is ever written beside an archive. A listing that is lost or damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..storage.files import replaced_atomically
from ..storage.location import AnyPath
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


def remembered_index(
    path: AnyPath, stamp: tuple[int, int | str], list_archive: Callable[[], ArchiveIndex]
) -> ArchiveIndex:
    """Give the index of the archive at `path`, of that size and time or ETag: the remembered one, or a new one."""
    # Which files are images depends on the installed Pillow.
    about = f"{_VERSION}\0{EXTENSIONS}\0{path.absolute()}\0{stamp}"
    key = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError):
        return _unpacked((_cache_folder() / f"{key}.npz").read_bytes())
    index = list_archive()
    if len(index) >= REMEMBERED_FROM:
        # A full or read-only disk, or a user without a home, costs time and not the command.
        with contextlib.suppress(OSError, UnicodeError, RuntimeError):
            file = _cache_folder() / f"{key}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(file, unique=True) as partial:
                partial.write_bytes(_packed(index))
    return index


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "hvae-codec" / "indices"


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
