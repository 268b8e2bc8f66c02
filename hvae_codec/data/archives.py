"""Image files in archives that are read where they lie, in any order, without unpacking the archive."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..storage.location import AnyPath, real_path
from ..texts.classes import ClassTexts
from ..texts.order import sorted_order
from ..texts.packed import PackedTexts
from ..texts.sequence import JoinedTexts, Texts
from .archive_index import ArchiveIndex
from .containers import FileContainer
from .pieces import Pieces
from .pixels import EXTENSIONS, UnusableImageError
from .splits import StatedParts
from .stamps import Stamps

LARGEST_FILE = 2**29  # bytes of an image file, which is read whole: a small zip can unpack to more than there is memory


class ArchiveContainer(FileContainer):
    """The image files in one archive or several, in the order of their names in all of them."""

    def __init__(
        self,
        path: AnyPath,
        files: Pieces,
        indices: Sequence[ArchiveIndex],
        parts: StatedParts | None = None,
        *,
        size: int,
        channels: int,
    ) -> None:
        """`indices` are those of `files`; `parts` are of the images in the order of the files.

        Raises `DataError` if there is no image, or if one is there twice.
        """
        if not any(map(len, indices)):
            raise DataError(f"there are no images in {path}; files ending in {', '.join(EXTENSIONS)} are read")
        names, order = _merged([index.names for index in indices])
        self.files = files
        self._archive = np.repeat(np.arange(len(indices)), [len(index) for index in indices])[order]
        self._offsets, self._packed, self._sizes, self._checksums = (
            np.concatenate([getattr(index, name) for index in indices])[order]
            for name in ("offsets", "packed", "sizes", "checksums")
        )
        super().__init__(
            path,
            names,
            ClassTexts.joined([index.labels for index in indices]).take(order),
            self._sizes,
            size=size,
            channels=channels,
            passed_over=[folder for index in indices for folder in index.passed_over],
            other_files=dict(sum((Counter(index.others) for index in indices), Counter())),
            parts=None if parts is None else parts.of(order),
            by_folder=np.concatenate([index.by_folder for index in indices])[order],
            stamps=None if self.checksums_are_stated else Stamps.of_files(files.stamps, files.opened, self._archive),
        )
        self._check_unique()

    @abstractmethod
    def content_of(self, position: int) -> bytes:
        """Read the file of the image at `position`; raises `OSError` if it is damaged."""

    @abstractmethod
    def piece(self, position: int) -> tuple[int, int, int]:
        """Find the piece (archive, offset, count) that `content_of` reads."""

    def prefetch(self, positions: NDArray[np.int64]) -> None:
        """Begin to read the pieces that the images at `positions` are in."""
        self.files.prefetch(self.piece(position) for position in positions.tolist())

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

    def _narrow(self, positions: NDArray[np.int64]) -> None:
        super()._narrow(positions)
        archives, self._archive = np.unique(self._archive[positions], return_inverse=True)
        self.files = self.files.select(archives.tolist())
        self._offsets, self._packed = self._offsets[positions], self._packed[positions]
        self._sizes, self._checksums = self.file_bytes, self._checksums[positions]

    def where(self, position: int) -> AnyPath:
        """Say in which archive the image at `position` is."""
        return self.files.paths[self._archive[position]] / self.names[position]

    @property
    def roots(self) -> list[PurePath]:
        """The archives."""
        return [*map(real_path, self.files.paths)]

    def locations(self, positions: NDArray[np.int64]) -> list[str]:
        """Give the path of each image's archive, and its name in it."""
        real = self.roots
        return [f"{real[self._archive[i]]}/{self.names[i]}" for i in positions.tolist()]

    def _check_unique(self) -> None:
        previous = None
        for position, name in enumerate(self.names):  # names with the same beginning follow each other
            key = self.key(name)
            if key == previous:
                here, other = self.where(position), self.where(position - 1)
                raise DataError(f"{other} and {here} have the same key, {key}; keep one of them, or rename it")
            previous = key


def _merged(parts: Sequence[PackedTexts]) -> tuple[Texts, NDArray[np.int64]]:
    """Merge names, sorted in each of `parts`; and where each was in all parts joined, int64 [N]."""
    filled = [part for part in parts if part]
    if all(before[-1] < after[0] for before, after in pairwise(filled)):  # as shards mostly are
        names = filled[0] if len(filled) == 1 else JoinedTexts(filled)
        return names, np.arange(len(names))
    joined = PackedTexts.joined(filled)
    order = sorted_order(joined)
    return PackedTexts.of(joined.take(order)), order
