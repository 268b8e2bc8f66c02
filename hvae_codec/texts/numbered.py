"""Names that are numbers, such as `train/00000017`: computed, so that nothing is held per image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .sequence import Texts

_LOWER = [f"{number:04d}" for number in range(10_000)]
"""The last four digits of numbers: joining texts takes a third of the time that writing a number does."""


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
        numbers, prefix = indices + self._first, self._prefix
        upper, lower = (part.tolist() for part in np.divmod(numbers, len(_LOWER)))
        uppers = {number: f"{prefix}{number:04d}" for number in {*upper}}
        return [uppers[a] + _LOWER[b] for a, b in zip(upper, lower, strict=True)]

    def isascii(self) -> bool:
        """Whether all characters are ASCII, by the prefix."""
        return self._prefix.isascii()
