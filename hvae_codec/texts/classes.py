"""Texts of which many are equal, such as labels: each distinct one once, and a small code per text.

classes   "cat", "dog"        codes   0 0 1 0 1 1        1 byte each up to 256 classes, 4 at most
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .sequence import Texts


class ClassTexts(Texts):
    """Texts by their codes, positions in `classes`."""

    def __init__(self, classes: Sequence[str], codes: NDArray[np.integer]) -> None:
        """Raises `ValueError` if a code is of no class."""
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(classes):
            raise ValueError(f"there are codes {codes.min()} to {codes.max()} of {len(classes)} classes")
        self.classes = classes
        self.codes = codes.astype(np.min_scalar_type(max(len(classes) - 1, 0)), copy=False)

    @classmethod
    def of(cls, texts: Iterable[str]) -> ClassTexts:
        """Find the classes of `texts`, in the order of first appearance."""
        if isinstance(texts, ClassTexts):
            return texts
        numbers: dict[str, int] = {}
        codes = array("i", (numbers.setdefault(text, len(numbers)) for text in texts))
        return cls([*numbers], np.frombuffer(codes, np.intc))

    @classmethod
    def same(cls, text: str, count: int) -> ClassTexts:
        """Make `count` texts that are all `text`."""
        return cls([text], np.zeros(count, np.uint8))

    @classmethod
    def joined(cls, parts: Sequence[ClassTexts]) -> ClassTexts:
        """Join texts, one after the other; classes of the same text become one."""
        numbers: dict[str, int] = {}
        codes = [part.renamed(part.classes, numbers) for part in parts]
        return cls([*numbers], np.concatenate(codes) if codes else np.zeros(0, np.uint8))

    def renamed(self, classes: Sequence[str], numbers: dict[str, int]) -> NDArray[np.intc]:
        """Give the codes if class i is called `classes[i]`, and its code is in `numbers`, to which new ones are added.

        int32 [N].
        """
        return np.array([numbers.setdefault(text, len(numbers)) for text in classes], np.intc)[self.codes]

    def __len__(self) -> int:
        return len(self.codes)

    def text(self, index: int) -> str:
        """Give the class of the text at `index`."""
        return self.classes[int(self.codes[index])]

    def at(self, indices: NDArray[np.int64]) -> list[str]:
        """Give the classes of the texts at `indices`."""
        return [*map(self.classes.__getitem__, self.codes[indices].tolist())]

    def take(self, indices: NDArray[np.int64]) -> ClassTexts:
        """Select the texts at `indices`, by copying their codes."""
        return ClassTexts(self.classes, self.codes[indices])

    def isascii(self) -> bool:
        """Whether all characters are ASCII, by the classes that some text is of."""
        return all(text.isascii() for text in self.distinct())

    def distinct(self) -> Collection[str]:
        """Give the classes that some text is of."""
        codes, first = np.unique(self.codes, return_index=True)
        return dict.fromkeys(self.classes[code] for code in codes[np.argsort(first)].tolist())
