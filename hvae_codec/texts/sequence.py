"""Sequences of texts that are held as bytes, codes or a rule, and made as `str` when they are asked for.

texts[3], texts[:5], texts == ["a", "b"]     like a tuple
texts.take(positions)                        a selection that holds `positions` alone
texts.blocks()                               lists of up to 65,536 texts, one after the other
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

BLOCK = 65536  # texts that are made at once: a few MB
_SHOWN = 20  # texts in a `repr`, at most


class Texts(Sequence[str]):
    """Texts in a fixed order; equal to any sequence of the same texts."""

    @abstractmethod
    def text(self, index: int) -> str:
        """Give the text at `index`, which is not negative."""

    @abstractmethod
    def at(self, indices: NDArray[np.int64]) -> list[str]:
        """Give the texts at `indices`, int64 [n], none of them negative, in that order."""

    def take(self, indices: NDArray[np.int64]) -> Texts:
        """Select the texts at `indices`, int64 [n], in that order; the array is held and must not change."""
        return ChosenTexts(self, indices)

    def distinct(self) -> Collection[str]:
        """Give each text once, in the order of first appearance."""
        return dict.fromkeys(self)

    def isascii(self) -> bool:
        """Whether all characters are ASCII, as `str.isascii` has it."""
        return all("".join(block).isascii() for block in self.blocks())

    def blocks(self, size: int = BLOCK) -> Iterator[list[str]]:
        """Yield the texts in lists of `size`; the last may be shorter."""
        for first in range(0, len(self), size):
            yield self.at(np.arange(first, min(first + size, len(self))))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Texts: ...

    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        return self.text(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Find the first place of `value`; raises `ValueError` if it is not there."""
        first = range(len(self))[start:stop].start
        for block in self[start:stop].blocks():
            if value in block:
                return first + block.index(value)
            first += len(block)
        raise ValueError(f"{value!r} is not among these texts")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[str]) -> Texts:
        return JoinedTexts([self, other]) if isinstance(other, Texts) else NotImplemented

    def __repr__(self) -> str:
        if len(self) <= _SHOWN:
            return repr(tuple(self))
        return f"({', '.join(map(repr, self[:3]))}, ..., {self[-1]!r})"


class ChosenTexts(Texts):
    """Some of other texts, in an order of their own."""

    def __init__(self, texts: Texts, indices: NDArray[np.int64]) -> None:
        self._texts = texts
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def text(self, index: int) -> str:
        """Give the text at `index`."""
        return self._texts.text(int(self._indices[index]))

    def at(self, indices: NDArray[np.int64]) -> list[str]:
        """Give the texts at `indices`."""
        return self._texts.at(self._indices[indices])

    def isascii(self) -> bool:
        """Whether all characters are ASCII, mostly seen at once for all that was selected from."""
        return self._texts.isascii() or super().isascii()

    def take(self, indices: NDArray[np.int64]) -> Texts:
        """Select from what was selected."""
        return ChosenTexts(self._texts, self._indices[indices])


class JoinedTexts(Texts):
    """Texts of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Texts]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def text(self, index: int) -> str:
        """Give the text at `index`."""
        part = int(self._part_of(index))
        return self._parts[part].text(index - int(self._starts[part]))

    def at(self, indices: NDArray[np.int64]) -> list[str]:
        """Give the texts at `indices`, those of one part at once."""
        part_of = self._part_of(indices)
        found = np.empty(len(indices), object)
        for part in np.unique(part_of).tolist():
            here = part_of == part
            found[here] = self._parts[part].at(indices[here] - self._starts[part])
        return list(found)

    def isascii(self) -> bool:
        """Whether all characters are ASCII."""
        return all(part.isascii() for part in self._parts)

    def _part_of(self, indices: NDArray[np.int64] | int) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, indices, side="right") - 1


def blocks_of(texts: Sequence[str], size: int = BLOCK) -> Iterator[list[str]]:
    """Yield any texts in lists of `size`; the last may be shorter.

    >>> [*blocks_of(["a", "b", "c"], 2)]
    [['a', 'b'], ['c']]
    """
    if isinstance(texts, Texts):
        yield from texts.blocks(size)
        return
    for first in range(0, len(texts), size):
        yield list(texts[first : first + size])
