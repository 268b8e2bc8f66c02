"""The CRC-32 of each image's bytes, of as many as possible without reading them: has anything changed?

    known in this process, or to the container       ─┐
    remembered, and size and stamp are as they were   ├─> content_checksums(source)     uint32 [N]
    all others: read, by several threads             ─┘   remember_content(source)      what this process has read

As git's index does it: an image of the same size whose file has the same stamp (`stamps`) is the same. A file that was
changed less than two seconds before it was looked at may be changed again and keep its stamp, so it is not remembered.
On a disk without ctimes, whoever edits a file and sets its time back goes unnoticed, unless `check` asks for the bytes
of all.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..lookahead import map_ahead
from ..progress import Progress
from ..storage.user_cache import read_cached, write_cached
from .containers import Container
from .name_digests import DIGEST_BYTES, find_digests, name_digests
from .sources import ImageSource
from .stamps import Stamps

READ_TOGETHER = 64  # images that a thread reads at once

_VERSION = 2  # of what is remembered
_KIND = "checksums"


def content_checksums(
    source: ImageSource,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    check: bool = False,
    progress: Progress | None = None,
) -> NDArray[np.uint32]:
    """Find the CRC-32 (zlib) of the bytes of the images at `indices`, or of all: uint32 [B].

    Images are read that were not before in this process, and of which neither the container nor the user's cache knows
    it; with `check`, all are that were not read before. `progress` is called with the images read and those to read.
    Raises `DataError` naming an image that cannot be read.
    """
    container = source.container
    positions = source.positions if indices is None else source.positions[np.asarray(indices, np.int64)]
    if container.checksums_are_stated:
        _read(container, positions if check else positions[:0], progress)
        return container.seen.checksums[positions]
    remembered = _Remembered.of(container)
    known = container.seen.is_checked if check else container.seen.is_checked | remembered.is_known
    _read(container, positions[~known[positions]], progress)
    remembered.update(container)
    return np.where(container.seen.is_checked, container.seen.checksums, remembered.checksums)[positions]


def is_content_known(source: ImageSource) -> NDArray[np.bool_]:
    """Find out of which images `content_checksums` gives the CRC-32 without reading them, bool [N]."""
    container = source.container
    if container.checksums_are_stated:
        return np.ones(len(source), bool)
    return (container.seen.is_checked | _Remembered.of(container).is_known)[source.positions]


def remember_content(source: ImageSource) -> None:
    """Let later commands know the CRC-32s of all images of the source's container that were read in this process."""
    container = source.container
    if container.stamps is not None and container.seen.is_checked.any():
        _Remembered.of(container).update(container)


def _read(container: Container, positions: NDArray[np.int64], progress: Progress | None) -> None:
    """Read the images at `positions`, whose checksums the container then has."""

    def read(some: NDArray[np.int64]) -> int:
        for position in some.tolist():
            container.read_checksum(position)
        return len(some)

    parts = (positions[first : first + READ_TOGETHER] for first in range(0, len(positions), READ_TOGETHER))
    threads, done = os.cpu_count() or 1, 0
    for images in map_ahead(read, parts, threads=threads, waiting=4 * threads, name="read checksums"):
        done += images
        if progress is not None:
            progress(done, len(positions))


@dataclass(frozen=True, eq=False)
class _Remembered:
    """What is remembered of a container's images and is still to be trusted, by their positions."""

    names: NDArray[np.bytes_]  # digest of each name
    checksums: NDArray[np.uint32]
    is_known: NDArray[np.bool_]

    @classmethod
    def of(cls, container: Container) -> _Remembered:
        """Read it; nothing if it was never written, or is lost or damaged."""
        names, count, stamps = name_digests(container.names), len(container), container.stamps
        checksums, is_known = np.zeros(count, np.uint32), np.zeros(count, bool)
        saved = _unpacked(read_cached(_KIND, _key(container)))
        if stamps is not None and saved is not None:
            at = find_digests(names, saved["names"])
            same = (saved["sizes"][at] == container.file_bytes) & (saved["marks"][at] == stamps.marks)
            is_known = (at >= 0) & same
            checksums[is_known] = saved["checksums"][at[is_known]]
        return cls(names, checksums, is_known)

    def update(self, container: Container) -> None:
        """Remember what was read in this process, too, but for files that are too young."""
        if container.stamps is None:
            return
        read = container.seen.is_checked & container.stamps.settled
        if not (self.is_known[read] & (self.checksums[read] == container.seen.checksums[read])).all():
            self.checksums[read], self.is_known[read] = container.seen.checksums[read], True
            self._write(container, container.stamps)

    def _write(self, container: Container, stamps: Stamps) -> None:
        known, content = self.is_known, io.BytesIO()
        np.savez(
            content,
            allow_pickle=False,
            names=self.names[known],
            checksums=self.checksums[known],
            sizes=container.file_bytes[known],
            marks=stamps.marks[known],
        )
        write_cached(_KIND, _key(container), content.getbuffer())


def _key(container: Container) -> str:
    column = container.preprocessing.column or ""  # other images of the same names
    return f"{_VERSION}\0{type(container).__name__}\0{container.path.absolute()}\0{column}"


def _unpacked(content: bytes) -> dict[str, NDArray] | None:
    """Give the arrays that were written; None if they are not whole."""
    kinds = {"names": f"S{DIGEST_BYTES}", "checksums": "uint32", "sizes": "int64", "marks": "int64"}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in kinds}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    lengths = {array.shape for array in arrays.values()}
    whole = len(lengths) == 1 and all(arrays[name].dtype == kind for name, kind in kinds.items())
    return arrays if whole and lengths != {(0,)} else None
