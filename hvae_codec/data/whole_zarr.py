"""A zarr array of which every chunk is there: zarr itself reads a missing one as pixels of the fill value, silently.

A shard is a chunk here; within one, zarr leaves out what is blank, and no copy loses it.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .chosen_images import ChosenImages


class WholeZarr:
    """Reads slices of images of the zarr array `array` in the folder `path`, if no chunk of them is missing."""

    def __init__(self, path: Path, array: Any) -> None:
        self.path, self.shape, self.dtype = path, array.shape, array.dtype
        self._folder = path.absolute()  # another process may have another working folder
        self._array = array
        self._chunk = tuple(array.shards or array.chunks)
        self._whole: set[int] = set()  # rows of chunks that were seen to be there

    def __getitem__(self, images: slice) -> NDArray[np.uint8]:
        """Read images, [stop - start, ...]; raises `DataError` naming the images of the first chunk that is missing."""
        size = self._chunk[0]
        for row in range(images.start // size, -(-images.stop // size)):
            if row not in self._whole:
                self._check_row(row)
                self._whole.add(row)
        return np.asarray(self._array[images])

    def __reduce__(self) -> tuple[Any, ...]:
        return WholeZarr._at, (self.path, self._folder, self._array)

    @classmethod
    def _at(cls, path: Path, folder: Path, array: Any) -> WholeZarr:
        opened = cls(path, array)
        opened._folder = folder
        return opened

    def portion(self, positions: NDArray[np.int64]) -> ChosenImages:
        """Choose images, which stay in their chunks."""
        return ChosenImages(self, positions)

    def _check_row(self, row: int) -> None:
        """Raise `DataError` if one of the chunks that hold the same images as the `row`-th one is missing."""
        others = (range(-(-length // size)) for length, size in zip(self.shape[1:], self._chunk[1:], strict=True))
        for position in itertools.product((row,), *others):
            key = self._array.metadata.encode_chunk_key(position)
            if not (self._folder / key).is_file():
                first, last = row * self._chunk[0], min((row + 1) * self._chunk[0], self.shape[0]) - 1
                raise DataError(
                    f"{self.path} lacks the file {key}, so pixels of the images {first} to {last} are missing; copy "
                    "the array again, or if they are blank, so that zarr has left them out, write it again with "
                    'zarr.create_array(..., config={"write_empty_chunks": True})'
                )
