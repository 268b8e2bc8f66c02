"""A finished store that another one is made of: what is read of it is what was committed, or an error.

rows 200 ... 700 ── row groups 0 1 2, each read whole and compared with its digest ──> their rows, put together
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..store.open_writer import published_fingerprint
from ..store.reader import Store, Stored
from ..verification.row_group import Latents, read_row_group, row_group_damages, shard_file

PerImage = dict[str, NDArray]
"""Name of a per-image array to its numbers, [images]."""


class CheckedStore:
    """Rows of a store; one row group, the last that was read, is held in memory."""

    def __init__(self, store: Store, per_image: tuple[str, ...] = ()) -> None:
        self._store, self._per_image = store, per_image
        self._held: tuple[int, Stored] = (-1, {})

    def read(self, rows: range) -> tuple[Stored, PerImage]:
        """Stored numbers, and the per-image numbers, of consecutive images.

        Raises `StoreError` if they are not those that were committed, or if the store was replaced since it was opened.
        """
        size = self._store.row_groups.size
        parts = [self._rows_in(number, rows) for number in range(rows.start // size, -(-rows.stop // size))]
        stored = {r: parts[0][r] if len(parts) == 1 else np.concatenate([p[r] for p in parts]) for r in parts[0]}
        try:
            figures = {name: self._store.per_image(name, rows) for name in self._per_image}
        finally:
            check_not_replaced(self._store)  # what looks like damage may be another store
        return stored, figures

    def _rows_in(self, row_group: int, rows: range) -> Stored:
        """Those of `rows` that are in a row group."""
        if self._held[0] != row_group:
            self._held = row_group, _checked(self._store, row_group)
        first = self._store.row_groups.rows(row_group).start
        part = slice(max(rows.start - first, 0), rows.stop - first)
        return {resolution: numbers[part] for resolution, numbers in self._held[1].items()}


def checked_codes(store: Store, resolution: int, row_group: int) -> NDArray:
    """A row group's stored numbers in one array, by the checksums of its chunks; `StoreError` if they are damaged."""
    latents = read_row_group(store, resolution, row_group)
    if latents.problem:
        raise damaged(store, row_group, f"{shard_file(store, resolution, row_group)} {latents.problem}")
    return latents.numbers


def _checked(store: Store, row_group: int) -> Stored:
    latents: dict[int, Latents] = {}
    for damage in row_group_damages(store, row_group, found=latents):
        raise damaged(store, row_group, f"{damage.file} {damage.problem}")
    return {resolution: part.numbers for resolution, part in latents.items()}


def damaged(store: Store, row_group: int, problem: str) -> StoreError:
    """`problem` of a row group as an error; raises that the store was replaced, if that is why."""
    check_not_replaced(store)
    rows = store.row_groups.rows(row_group)
    return StoreError(
        f"{store.path}: row group {row_group} (images {rows.start} to {rows.stop - 1}) is damaged: {problem}; "
        f"`hvae-codec verify {store.path}` names all that is damaged, and repair encodes it again"
    )


def check_not_replaced(store: Store) -> None:
    """Raise `StoreError` if an open store is another one by now: nothing may be made of both."""
    if published_fingerprint(store.path) != store.metadata.fingerprint:
        raise StoreError(f"{store.path} was removed or replaced while it was read; run the command again")
