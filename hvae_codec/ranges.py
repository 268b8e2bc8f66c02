"""Numbers of what is kept, written as ranges that a person can read: `0-3 7`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranges_text(flags: NDArray[np.bool_]) -> str:
    """Write the numbers of the True ones as ranges.

    >>> ranges_text(np.array([True, True, False, True]))
    '0-1 3'
    """
    starts, ends = np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2).T.tolist()
    return " ".join(f"{a}" if a == b - 1 else f"{a}-{b - 1}" for a, b in zip(starts, ends, strict=True))


def flags_of(text: str, length: int, what: str) -> NDArray[np.bool_]:
    """Set the flags whose numbers `text` names, bool [length]; undoes `ranges_text`.

    >>> flags_of("0-1 3", 4, "variates").tolist()
    [True, True, False, True]

    Raises `ValueError` if a number is none or not below `length`; `what` says what is counted.
    """
    flags = np.zeros(length, dtype=bool)
    for part in text.split():
        first, dash, last = part.partition("-")
        start, stop = int(first), int(last if dash else first)
        if not 0 <= start <= stop < length:
            raise ValueError(f"kept {what} {start} to {stop} of {length}")
        flags[start : stop + 1] = True
    return flags
