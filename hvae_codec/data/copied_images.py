"""Finds held-out images whose content is that of a training image, whatever the two are called and lie in.

files of exact sizes     by size and CRC-32: only files of a size that both sources have can be copies
all others               by the pixels that the model gets: an array has no files, and Parquet no sizes, to compare

Files whose CRC-32 is known are not read, and of all others no more than `LIMIT_BYTES` and `LIMIT_IMAGES` of a source:
those of the rarest sizes first, or evenly spaced ones. So in large sets not every copy is found. Nor is one that was
written anew, in another format or size, where both are files; and nothing is read that lies in a bucket.
"""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..lookahead import map_ahead
from ..progress import Progress
from ..storage.bucket import BucketLocation
from .containers import FileContainer
from .content import content_checksums, is_content_known
from .name_digests import find_digests
from .seen import Seen
from .sources import ImageSource

LIMIT_BYTES = 256 * 2**20  # of files, or of an array's elements, that are read of a source
LIMIT_IMAGES = 65_536  # that are read of a source

_READ_TOGETHER = 64  # images that a thread reads at once
_DIGEST_BYTES = 16  # of an image's pixels
_UNREADABLE = b""  # in place of a digest

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Copies:
    """Held-out images with the content of a training image."""

    held_out: Numbers  # indices of the held-out images, ascending
    training: Numbers  # for each, the index of a training image that is the same
    is_complete: bool  # whether all were compared that may be copies; if not, there may be more


@dataclass(frozen=True, eq=False)
class _Content:
    """Numbers or digests that stand for the content of some images of a source."""

    indices: Numbers
    keys: NDArray[Any]
    is_complete: bool  # whether these are all that may have a copy in the other source


def find_copies(training: ImageSource, held_out: ImageSource, progress: Progress | None = None) -> Copies:
    """Find them, within the limits; `progress` is called with the images read and those to read, of each source anew.

    Raises `DataError` if a file cannot be read; one that cannot be decoded is no copy.
    """
    sources = (training, held_out)
    if all(isinstance(source.container, FileContainer) and source.container.sizes_are_exact for source in sources):
        sizes = _sizes_of_both(training, held_out)
        first, second = (_checksums(source, sizes, progress) for source in sources)
    else:
        first, second = (_pixels(source, progress) for source in sources)
    found = find_digests(second.keys, first.keys)
    at = np.flatnonzero(found >= 0)
    return Copies(second.indices[at], first.indices[found[at]], first.is_complete and second.is_complete)


def _sizes_of_both(training: ImageSource, held_out: ImageSource) -> Numbers:
    """Find the sizes of files that both have, rare ones first: few training images have to be read for one of these."""
    sizes, counts = np.unique(training.file_bytes, return_counts=True)
    shared = (sizes > 0) & np.isin(sizes, held_out.file_bytes)
    return sizes[shared][np.argsort(counts[shared], kind="stable")]


def _checksums(source: ImageSource, sizes: Numbers, progress: Progress | None) -> _Content:
    """Give size and CRC-32 of the files of `sizes`, as one number each; of the first sizes if these are too many."""
    indices = np.flatnonzero(np.isin(source.file_bytes, sizes))
    is_known = is_content_known(source)[indices]
    unknown = indices[~is_known]
    read = unknown[_first_ones(source, unknown, sizes)]
    chosen = np.sort(np.concatenate([indices[is_known], read]))
    checksums = content_checksums(source, chosen, progress=progress)
    keys = source.file_bytes[chosen].astype(np.uint64) << np.uint64(32) | checksums
    return _Content(chosen, keys, is_complete=len(chosen) == len(indices))


def _first_ones(source: ImageSource, indices: Numbers, sizes: Numbers) -> Numbers:
    """Choose positions in `indices`, within the limits, in the order of `sizes`."""
    if isinstance(source.container.path, BucketLocation):
        return np.zeros(0, np.int64)
    by_size = np.argsort(sizes)
    found = source.file_bytes[indices]
    order = np.argsort(by_size[np.searchsorted(sizes, found, sorter=by_size)], kind="stable")
    count = int(np.searchsorted(np.cumsum(found[order]), LIMIT_BYTES, side="right"))
    return order[: min(count, LIMIT_IMAGES)]


def _pixels(source: ImageSource, progress: Progress | None) -> _Content:
    """Give a digest of the pixels of each image, of some if these are too many."""
    indices, keys = _some(source), []
    read = _Reading(source)
    parts = (indices[first : first + _READ_TOGETHER] for first in range(0, len(indices), _READ_TOGETHER))
    threads = os.cpu_count() or 1
    for digests in map_ahead(read.digests, parts, threads=threads, waiting=4 * threads, name="compare images"):
        keys += digests
        if progress is not None:
            progress(len(keys), len(indices))
    found = np.array(keys, f"S{_DIGEST_BYTES}")
    is_read = found != _UNREADABLE
    return _Content(indices[is_read], found[is_read], is_complete=len(indices) == len(source))


def _some(source: ImageSource) -> Numbers:
    """Choose images within the limits, evenly spaced, and whole groups of images that are read at once."""
    if isinstance(source.container.path, BucketLocation):
        return np.zeros(0, np.int64)
    share = min(1.0, LIMIT_BYTES / max(source.source_bytes, 1), LIMIT_IMAGES / len(source))
    used, of = np.unique(np.arange(len(source)) if source.groups is None else source.groups.of, return_inverse=True)
    chosen = np.linspace(0, len(used) - 1, max(1, int(share * len(used)))).round().astype(np.int64)
    return np.flatnonzero(np.isin(of, chosen))


class _Reading:
    """Reads images of a source, which does not count them among those that were used."""

    def __init__(self, source: ImageSource) -> None:
        self._positions, self._container = source.positions, copy.copy(source.container)
        self._container.seen = Seen.nothing(len(self._container))

    def digests(self, indices: Numbers) -> list[bytes]:
        """Give a digest of each image's pixels; called by several threads at once."""
        return [self._digest(position) for position in self._positions[indices]]

    def _digest(self, position: np.int64) -> bytes:
        try:
            pixels = self._container.read(np.array([position]))
        except DataError:  # whoever needs the image says so
            return _UNREADABLE
        return hashlib.blake2b(pixels.data, digest_size=_DIGEST_BYTES).digest()
