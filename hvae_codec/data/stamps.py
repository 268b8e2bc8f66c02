"""When the file of each image was changed last, by which images that need not be read again are told.

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

FileStamp = tuple[int, int | str]
"""Bytes of a file, and when it was changed last, in nanoseconds; of an object in a bucket, its ETag."""


@dataclass(frozen=True, eq=False)
class Stamps:
    """What the file system says of each image's file; the sizes of images are compared besides."""

    marks: NDArray[np.int64]  # another number if the file is another one, int64 [N]
    settled: NDArray[np.bool_]  # whether any later change must give it another mark, bool [N]

    @classmethod
    def of_times(cls, times: NDArray[np.int64], opened: int) -> Stamps:
        """Stamp images in files of their own by `times` of change, nanoseconds, looked at after the time `opened`."""
        return cls(times, times + SETTLED_AFTER <= opened)

    @classmethod
    def of_files(cls, files: Sequence[FileStamp], opened: int, file_of: NDArray[np.int64]) -> Stamps:
        """Stamp images of which several are in one of `files`; `file_of` says which, int64 [N]."""
        marks = np.array([_mark(repr(file)) for file in files], np.int64)
        settled = np.array([isinstance(time, str) or time + SETTLED_AFTER <= opened for _, time in files], bool)
        return cls(marks[file_of], settled[file_of])

    @classmethod
    def of_path(cls, path: Path, opened: int, images: int) -> Stamps | None:
        """Stamp `images` in the file at `path`, or in all files below it; None if one of them cannot be looked at."""
        try:
            found = [(name, status.st_size, status.st_mtime_ns) for name, status in _files_below(path)]
        except OSError:
            return None
        settled = all(time + SETTLED_AFTER <= opened for *_, time in found)
        return cls(np.full(images, _mark(repr(found)), np.int64), np.full(images, settled))


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
