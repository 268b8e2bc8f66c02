"""Image files in archives that are read where they lie, in any order, without unpacking the archive."""

from __future__ import annotations

import io
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import DataError
from .archive_index import ArchiveIndex
from .containers import FileContainer
from .pixels import EXTENSIONS, UnusableImageError
from .splits import StatedParts
from .stamps import Stamps
from .unchanged_files import UnchangedFiles

LARGEST_FILE = 2**29  # bytes of an image file, which is read whole: a small zip can unpack to more than there is memory


class ArchiveContainer(FileContainer):
    """The image files in one archive or several, in the order of their names in all of them."""

    def __init__(
        self,
        path: Path,
        files: UnchangedFiles,
        indices: Sequence[ArchiveIndex],
        parts: StatedParts | None = None,
        *,
        size: int,
        channels: int,
    ) -> None:
        """`indices` are those of `files`; `parts` are of the images in the order of the files.

        Raises `DataError` if there is no image, or if one is there twice.
        """
        names = [name for index in indices for name in index.names]
        if not names:
            raise DataError(f"there are no images in {path}; files ending in {', '.join(EXTENSIONS)} are read")
        order = np.array(sorted(range(len(names)), key=names.__getitem__))
        labels = [sys.intern(label) for index in indices for label in index.labels]  # one text per class, not per image
        self.files = files
        self._archive = np.repeat(np.arange(len(indices)), [len(index) for index in indices])[order]
        self._offsets, self._packed, self._sizes, self._checksums = (
            np.concatenate([getattr(index, name) for index in indices])[order]
            for name in ("offsets", "packed", "sizes", "checksums")
        )
        super().__init__(
            path,
            tuple(names[i] for i in order),
            tuple(labels[i] for i in order),
            self._sizes,
            size=size,
            channels=channels,
            passed_over=[folder for index in indices for folder in index.passed_over],
            parts=None if parts is None else parts.of(order),
            stamps=None if self.checksums_are_stated else Stamps.of_files(files.stamps, files.opened, self._archive),
        )
        self._check_unique()

    @abstractmethod
    def content_of(self, position: int) -> bytes:
        """Read the file of the image at `position`; raises `OSError` if it is damaged."""

    @abstractmethod
    def key(self, name: str) -> str:
        """What of a name must be unique: itself or its beginning."""

    def open(self, position: int) -> BinaryIO:
        """Read the file of the image at `position` into memory."""
        size = int(max(self._sizes[position], self._packed[position]))
        if size > LARGEST_FILE:
            problem = f"{self.where(position)} is of {size:,} bytes; at most {LARGEST_FILE:,} are read, so remove it"
            raise UnusableImageError(problem, "of too many bytes")
        return io.BytesIO(self.content_of(position))

    def where(self, position: int) -> Path:
        """Say in which archive the image at `position` is."""
        return self.files.paths[self._archive[position]] / self.names[position]

    def _bytes(self, position: int, offset: int, count: int) -> bytes:
        return self.files.read(int(self._archive[position]), offset, count)

    def _check_unique(self) -> None:
        previous = None
        for position, name in enumerate(self.names):  # names with the same beginning follow each other
            key = self.key(name)
            if key == previous:
                here, other = self.where(position), self.where(position - 1)
                raise DataError(f"{other} and {here} have the same key, {key}; keep one of them, or rename it")
            previous = key
