"""Texts of any kind as UTF-8, one after the other in one buffer: their bytes, and 8 more per text.

buffer    a . p n g c a t s / 1 . p n g          "a.png", "cats/1.png"
offsets   0         5                   15
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .sequence import Texts, blocks_of

_ERRORS = "surrogatepass"  # a text that is not Unicode is given back as it was: whoever stores it says so
_SPAN = 4  # so many bytes are decoded at most for each one asked for, as decoding many at once is faster


class PackedTexts(Texts):
    """Texts in one buffer."""

    def __init__(self, buffer: bytes | bytearray, offsets: NDArray[np.int64]) -> None:
        """`offsets` are int64 [N + 1]: text i is UTF-8 from byte offsets[i] to offsets[i + 1].

        Raises `ValueError` if they are not ascending from 0 to the length of `buffer`.
        """
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(buffer) or (np.diff(offsets) < 0).any():
            raise ValueError(f"the offsets do not fit a buffer of {len(buffer):,} bytes")
        self.buffer = buffer
        self.offsets = offsets

    @classmethod
    def of(cls, texts: Sequence[str]) -> PackedTexts:
        """Pack texts."""
        return cls.of_blocks(blocks_of(texts))

    @classmethod
    def of_blocks(cls, blocks: Iterable[Sequence[str]]) -> PackedTexts:
        """Pack the texts of all `blocks`."""
        packer = TextPacker()
        for block in blocks:
            packer.extend(block)
        return packer.packed()

    @classmethod
    def joined(cls, parts: Sequence[PackedTexts]) -> PackedTexts:
        """Copy the texts of several sequences into one buffer."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.buffer) for part in parts)])
        ends = [part.offsets[1:] + start for part, start in zip(parts, starts.tolist(), strict=False)]
        return cls(b"".join(part.buffer for part in parts), np.concatenate([np.zeros(1, np.int64), *ends]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def text(self, index: int) -> str:
        """Give the text at `index`."""
        return self.buffer[self.offsets[index] : self.offsets[index + 1]].decode(errors=_ERRORS)

    def at(self, indices: NDArray[np.int64]) -> list[str]:
        """Give the texts at `indices`."""
        starts, ends = self.offsets[indices], self.offsets[indices + 1]
        if not len(starts):
            return []
        first, last = int(starts.min()), int(ends.max())
        if last - first <= _SPAN * int((ends - starts).sum()):
            span = self.buffer[first:last].decode(errors=_ERRORS)
            if len(span) == last - first:  # ASCII: a character is a byte
                pairs = zip((starts - first).tolist(), (ends - first).tolist(), strict=True)
                return [span[start:end] for start, end in pairs]
        buffer = self.buffer
        return [
            buffer[start:end].decode(errors=_ERRORS) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]

    def isascii(self) -> bool:
        """Whether all characters are ASCII, by the buffer."""
        return self.buffer.isascii()


class TextPacker:
    """Texts that are packed one by one, or block by block."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offsets = array("q", [0])

    def add(self, text: bytes) -> None:
        """Add a text, which must be UTF-8."""
        self._buffer += text
        self._offsets.append(len(self._buffer))

    def extend(self, texts: Sequence[str]) -> None:
        """Add texts."""
        joined = "".join(texts)
        if joined.isascii():
            lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        else:
            lengths = np.fromiter((len(text.encode(errors=_ERRORS)) for text in texts), np.int64, len(texts))
        self._offsets.frombytes((np.cumsum(lengths) + len(self._buffer)).tobytes())
        self._buffer += joined.encode(errors=_ERRORS)

    def packed(self) -> PackedTexts:
        """Give all texts; nothing can be added after that."""
        return PackedTexts(self._buffer, np.frombuffer(self._offsets, np.int64))


def as_texts(texts: Sequence[str]) -> Texts:
    """Return texts as they are, or pack them if they are of another kind."""
    return texts if isinstance(texts, Texts) else PackedTexts.of(texts)
