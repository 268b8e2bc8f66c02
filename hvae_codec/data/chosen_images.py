"""Some images of an array, for a portion: their pixels if these are in memory, or else where they lie in its file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ChosenImages:
    """Images of `array` at `positions`, int64 [n], of which slices are read."""

    def __init__(self, array: Any, positions: NDArray[np.int64]) -> None:
        self._array, self._positions = array, positions
        self.dtype, self.shape = array.dtype, (len(positions), *array.shape[1:])

    def __getitem__(self, images: slice) -> NDArray[Any]:
        """Read images, [stop - start, ...]."""
        positions = self._positions[images]
        out = np.empty((len(positions), *self.shape[1:]), self.dtype)
        for run in runs(positions):
            start = int(positions[run[0]])
            out[run] = self._array[start : start + len(run)]
        return out

    def portion(self, positions: NDArray[np.int64]) -> Any:
        """Choose from what was chosen."""
        return portion_of(self._array, self._positions[positions])


def portion_of(array: Any, positions: NDArray[np.int64]) -> Any:
    """Take the images of `array` at `positions`, to be pickled: pixels of an array in memory, or what reads them."""
    return array.portion(positions) if hasattr(array, "portion") else array[positions]


def runs(positions: NDArray[np.int64], beside: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.int64]]:
    """Find runs of consecutive positions, those of `beside` consecutive as well; yields indices of each, in order.

    >>> [run.tolist() for run in runs(np.array([7, 3, 8, 4]))]
    [[1, 3], [0, 2]]
    """
    if not len(positions):
        return
    order = np.argsort(positions, kind="stable")
    ends = np.diff(positions[order]) != 1
    if beside is not None:
        ends |= np.diff(beside[order]) != 1
    yield from np.split(order, np.flatnonzero(ends) + 1)
