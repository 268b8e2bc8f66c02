"""When the file of each image was changed last, by which images that need not be read again are told.

Two times are looked at: that of the content (mtime), which tools set back, as archives do when they are unpacked, and
that of the file itself (ctime), which only the system sets. Where there is no ctime, the first one alone counts.

a folder                          each image has a file of its own
tars, Parquet files               all images of a file have its stamp, of an object in a bucket its ETag
arrays, published sets            all images have the stamp of all the files together
zips, which have CRC-32s, data sets and arrays in memory have none
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SETTLED_AFTER = 2 * 10**9  # nanoseconds: the coarsest clock of a file system (FAT); what is younger may change unseen

FileStamp = tuple[int, int | str, int]
"""Bytes of a file, its mtime and its ctime in nanoseconds; of an object in a bucket, its ETag and 0."""

_ODD = 0x9E3779B97F4A7C15  # spreads an mtime over 64 bits, so that no difference of a ctime is one of an mtime


@dataclass(frozen=True, eq=False)
class Stamps:
    """What the file system says of each image's file; the sizes of images are compared besides."""

    marks: NDArray[np.int64]  # another number if the file is another one, int64 [N]
    settled: NDArray[np.bool_]  # whether any later change must give it another mark, bool [N]

    @classmethod
    def of_times(cls, mtimes: NDArray[np.int64], ctimes: NDArray[np.int64], opened: int) -> Stamps:
        """Stamp images in files of their own by their times, nanoseconds, looked at after the time `opened`."""
        marks = mtimes.astype(np.uint64) * np.uint64(_ODD) + ctimes.astype(np.uint64)
        return cls(marks.astype(np.int64), mtimes + SETTLED_AFTER <= opened)

    @classmethod
    def of_files(cls, files: Sequence[FileStamp], opened: int, file_of: NDArray[np.int64]) -> Stamps:
        """Stamp images of which several are in one of `files`; `file_of` says which, int64 [N]."""
        marks = np.array([_mark(repr(file)) for file in files], np.int64)
        settled = np.array([isinstance(time, str) or time + SETTLED_AFTER <= opened for _, time, _ in files], bool)
        return cls(marks[file_of], settled[file_of])

    @classmethod
    def of_path(cls, path: Path, opened: int, images: int) -> Stamps | None:
        """Stamp `images` in the file at `path`, or in all files below it; None if one of them cannot be looked at."""
        try:
            found = [(name, *file_stamp(status)) for name, status in _files_below(path)]
        except OSError:
            return None
        settled = all(mtime + SETTLED_AFTER <= opened for _, _, mtime, _ in found)
        return cls(np.full(images, _mark(repr(found)), np.int64), np.full(images, settled))


def file_stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Give bytes, mtime and ctime of a file, nanoseconds."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _mark(text: str) -> int:
    """Make a number of a text, from its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big", signed=True)


def _files_below(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    if not path.is_dir():
        yield "", path.stat()
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            yield os.path.relpath(os.path.join(folder, file), path), os.stat(os.path.join(folder, file))
