"""All stored numbers of an image in one row:

    z1   [B, columns, 1, 1] ───┐
    z8   [B, columns, 8, 8] ───┼── rows [B, all columns at all positions]
    z16  [B, columns, 16, 16] ─┘

A batch goes to a GPU, or comes from it, in one copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..store.columns import Columns

Rows = TypeVar("Rows", Tensor, NDArray[Any])
"""[B, numbers of an image], of the codec's type."""


class Packing:
    """Where the stored numbers of each latent resolution are in a row."""

    def __init__(self, columns: Columns) -> None:
        self._items = {resolution: columns.item(resolution) for resolution in columns.resolutions}

    def pack(self, stored: Mapping[int, NDArray[np.generic]]) -> NDArray[np.generic]:
        """Join stored numbers, [B, columns, ...] by resolution, to rows."""
        return np.concatenate([stored[r].reshape(len(stored[r]), -1) for r in self._items], axis=1)

    def unpack(self, rows: Rows) -> dict[int, Rows]:
        """Undo `pack`: views of `rows`, on their device."""
        found, start = {}, 0
        for resolution, item in self._items.items():
            stop = start + math.prod(item)
            found[resolution] = rows[:, start:stop].reshape(len(rows), *item)
            start = stop
        return found
