"""Names that are numbers, such as `train/00000017`: computed, so that nothing is held per image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .sequence import Texts


class NumberedTexts(Texts):
    """A prefix and numbers from `first` on, in eight digits or more.

    >>> NumberedTexts("train/", 3, first=16)
    ('train/00000016', 'train/00000017', 'train/00000018')
    """

    def __init__(self, prefix: str, count: int, first: int = 0) -> None:
        self._prefix, self._count, self._first = prefix, count, first

    def __len__(self) -> int:
        return self._count

    def text(self, index: int) -> str:
        """Write the text at `index`."""
        return f"{self._prefix}{self._first + index:08d}"

    def at(self, indices: NDArray[np.int64]) -> list[str]:
        """Write the texts at `indices`."""
        prefix = self._prefix
        return [f"{prefix}{number:08d}" for number in (indices + self._first).tolist()]
