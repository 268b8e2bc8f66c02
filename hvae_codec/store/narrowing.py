"""Codes in the types of a store's arrays: the coder computes int16, and an array of int8 has what fits into it.

    stored {16: int16, 4: int16} ── narrowed(stored, {16: "int8", 4: "int16"}) ──> {16: int8, 4: int16}

A code that does not fit is never clipped, since it would decode to something else: it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quantiser import ClippedError


class CodeRangeError(ClippedError):
    """A code that is too large for the type of its array: encoding it again gives the same."""

    def __init__(self, problem: str, resolution: int, remedy: str = "encode again with --code-bits 16") -> None:
        super().__init__(problem, resolution, remedy)  # with which it is pickled
        self.problem, self.resolution, self.remedy = problem, resolution, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"

    def for_store(self, path: object) -> CodeRangeError:
        """The same with the remedy of who writes more images into what the store at `path` has."""
        return self.with_remedy(f"`hvae-codec recode --code-bits 16 {path} OUT` makes a store with room")

    def with_remedy(self, remedy: str) -> CodeRangeError:
        """The same with another sentence on what to do."""
        return CodeRangeError(self.problem, self.resolution, remedy)


def narrowed(
    stored: Mapping[int, NDArray],
    dtypes: Mapping[int, str],
    rows: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> dict[int, NDArray]:
    """`stored`, [images, columns, ...] by resolution, in the types that `dtypes` has for their arrays.

    `rows` are the numbers of the images, and `names` theirs, for errors. Raises `CodeRangeError` if a code does not
    fit. Lost codes, the fill value of a wider type, must have been refused before.
    """
    fitting = {}
    for resolution, numbers in stored.items():
        dtype = np.dtype(dtypes[resolution])
        if numbers.dtype != dtype and dtype.kind == "i":
            _check_range(resolution, numbers, dtype, rows, names)
        fitting[resolution] = numbers.astype(dtype, copy=False)
    return fitting


def with_room(dtypes: Mapping[int, str], stored: Mapping[int, NDArray]) -> dict[int, str]:
    """`dtypes` by resolution, and the type of what is `stored` where that does not fit."""
    return {r: dtype if fits(stored[r], np.dtype(dtype)) else str(stored[r].dtype) for r, dtype in dtypes.items()}


def fits(numbers: NDArray[Any], dtype: np.dtype) -> bool:
    """Whether an array of `dtype` holds `numbers`: of int8, -127 to 127, as its least number says what is missing.

    >>> fits(np.array([-127, 127]), np.dtype("int8")), fits(np.array([-128]), np.dtype("int8"))
    (True, False)
    """
    if dtype.kind != "i" or not numbers.size:
        return True
    most = np.iinfo(dtype).max
    return bool(-most <= numbers.min() and numbers.max() <= most)


def _check_range(
    resolution: int, numbers: NDArray, dtype: np.dtype, rows: Sequence[int] | None, names: Sequence[str] | None
) -> None:
    if fits(numbers, dtype):
        return
    most, code = np.iinfo(dtype).max, int(numbers.max())
    code = code if code > most else int(numbers.min())
    index = int(np.argwhere(numbers == code)[0, 0])
    number = "" if rows is None else f" {rows[index]}"
    name = "" if names is None else f" ({names[index]})"
    raise CodeRangeError(
        f"image{number}{name} has the code {code} in z{resolution}, which is {dtype} in this store and holds -{most} "
        f"to {most}",
        resolution,
    )
