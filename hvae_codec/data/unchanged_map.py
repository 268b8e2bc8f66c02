"""Arrays mapped from files that have to stay as they were: reading a page of one that was cut ends the process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .chosen_images import ChosenImages
from .unchanged_files import UnchangedFiles


class UnchangedMap(np.memmap):
    """A mapped array; reading a part of it raises `DataError` if its file is another one than when it was opened."""

    files: UnchangedFiles | None = None

    def __getitem__(self, index: Any) -> Any:
        """Read a part."""
        if self.files is not None:
            self.files.check(0)
        return np.asarray(super().__getitem__(index))

    def portion(self, positions: NDArray[np.int64]) -> ChosenImages:
        """Choose images, which stay in the file."""
        return ChosenImages(self if self.files is None else _MappedLater.of(self, self.files), positions)


def unchanged(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Give `array` as one of the file at `path` as it is now; an array that is not mapped stays as it is."""
    return _as_one_of(UnchangedFiles([path]), array) if isinstance(array, np.memmap) else array


def _as_one_of(files: UnchangedFiles, array: NDArray[Any]) -> UnchangedMap:
    checked = array.view(UnchangedMap)
    checked.files = files
    return checked


@dataclass(eq=False)
class _MappedLater:
    """Where a mapped array lies, to be mapped in another process once it is read."""

    files: UnchangedFiles
    dtype: np.dtype[Any]
    offset: int  # bytes before it
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    array: UnchangedMap | None = None

    @classmethod
    def of(cls, array: UnchangedMap, files: UnchangedFiles) -> _MappedLater:
        return cls(files, array.dtype, array.offset, array.shape, "C" if array.flags.c_contiguous else "F")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"array": None}

    def __getitem__(self, images: slice) -> NDArray[Any]:
        if self.array is None:
            self.array = self._map()
        found: NDArray[Any] = self.array[images]
        return found

    def _map(self) -> UnchangedMap:
        self.files.check(0)  # of a file that was cut, less could be mapped
        with self.files.open(0) as file:
            try:
                array = np.memmap(file, self.dtype, "r", self.offset, self.shape, self.order)
            except (OSError, ValueError) as error:
                raise DataError(f"cannot map {self.files.paths[0]} ({error}); give a file that can be read") from None
        return _as_one_of(self.files, array)
