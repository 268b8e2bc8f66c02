"""The order of packed texts, found without making them: by the bytes of UTF-8, as `sorted` has it by code points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .packed import PackedTexts

_WORD = 8  # bytes that are compared at once, as a number


def sorted_order(texts: PackedTexts) -> NDArray[np.int64]:
    """Find the positions of the texts in their order, int64 [N]; equal ones stay as they are. No text may end in NUL.

    >>> sorted_order(PackedTexts.of(["b", "a/1", "a.png", "a"])).tolist()
    [3, 2, 1, 0]
    """
    lengths = np.diff(texts.offsets)
    order = np.arange(len(texts))
    for first in reversed(range(0, int(lengths.max(initial=0)), _WORD)):  # by the last bytes first, as sorts are stable
        order = order[np.argsort(_words(texts, lengths, first)[order], kind="stable")]
    return order


def _words(texts: PackedTexts, lengths: NDArray[np.int64], first: int) -> NDArray[np.uint64]:
    """Read the bytes of each text from `first` on as a number, the first byte the highest; zeros follow the text."""
    buffer = np.frombuffer(texts.buffer, np.uint8)
    words = np.zeros(len(texts), np.uint64)
    for byte in range(first, first + _WORD):
        words <<= np.uint64(8)
        longer = np.flatnonzero(lengths > byte)
        words[longer] |= buffer[texts.offsets[longer] + byte]
    return words
