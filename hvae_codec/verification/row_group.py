"""One row group of a finished store: its latents and digest as far as they can be read, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.cache import ChunkCache
from ..store.arrays import row_group_digest, shard_key, unstorable
from ..store.damage import Damage, UnreadableError, reading
from ..store.reader import Store, Stored


@dataclass(frozen=True, eq=False)
class Latents:
    """What can be read of a row group in one array."""

    numbers: NDArray  # stored numbers, [images, columns, ...]; fill values if they are lost
    lost: NDArray[np.bool_]  # which images are lost, [images]
    problem: str  # what is wrong, to be read after the file's name; empty if nothing is


def files_of(store: Store, row_group: int) -> Iterator[str]:
    """The files of a row group that its digest vouches for, and that of the digest."""
    yield from (shard_file(store, resolution, row_group) for resolution in store.resolutions)
    yield marker_file(row_group)


def shard_file(store: Store, resolution: int, row_group: int) -> str:
    """The file of a row group in the latents of one resolution, relative to the store."""
    return f"z{resolution}/{shard_key(row_group, store.columns.item(resolution))}"


def marker_file(row_group: int) -> str:
    """The file of a row group's digest, relative to the store."""
    return f"committed/c/{row_group}"


def row_group_damages(
    store: Store, row_group: int, lost: AbstractSet[str] = frozenset(), found: dict[int, Latents] | None = None
) -> Iterator[Damage]:
    """What is wrong with the latents of a row group and their digest, but for files in `lost`, known already.

    What was read is put into `found`, by resolution.
    """
    rows, whole, found = store.row_groups.rows(row_group), True, {} if found is None else found
    marker = marker_file(row_group)
    for resolution in store.resolutions:
        file = shard_file(store, resolution, row_group)
        if store.arrays.fault(f"z{resolution}") or file in lost:
            whole = False
            continue
        latents = found[resolution] = read_row_group(store, resolution, row_group)
        if latents.problem:
            whole = False
            yield Damage(file, latents.problem, [rows[i] for i in np.flatnonzero(latents.lost)], row_group)
    if store.arrays.fault("committed") or marker in lost:
        return
    try:
        digest = read_digest(store, row_group)
    except UnreadableError as error:
        yield Damage(marker, str(error), rows, row_group)
        return
    if not digest:
        yield Damage(marker, "says that the row group was never written", rows, row_group)
    elif whole and row_group_digest([part.numbers for part in found.values()]) != digest:
        problem = "is not the digest of the row group's latents: they are not what was written"
        yield Damage(marker, problem, rows, row_group)


def read_digest(store: Store, row_group: int) -> int:
    """The digest that was committed; `UnreadableError` if it cannot be read."""
    return int(reading(_elements, store.arrays["committed"], row_group))


def _elements(array: Any, selection: Any) -> NDArray:
    return np.asarray(array[selection])


def read_row_group(store: Store, resolution: int, row_group: int) -> Latents:
    """The latents of a row group from the disk, chunk by chunk if they cannot be read at once."""
    rows, cache = store.row_groups.rows(row_group), ChunkCache()
    try:
        numbers = reading(store.raw_latents, resolution, rows, cache)
    except UnreadableError as error:
        return _read_chunks(store, resolution, rows, str(error))
    lost = unstorable(numbers)
    return Latents(numbers, lost, "holds no latents of some images" if lost.any() else "")


def _read_chunks(store: Store, resolution: int, rows: range, problem: str) -> Latents:
    array, cache = store.arrays[f"z{resolution}"], ChunkCache()
    numbers = np.full((len(rows), *array.shape[1:]), array.fill_value, array.dtype)
    for first in range(0, len(rows), array.chunks[0]):
        chunk = rows[first : first + array.chunks[0]]
        try:
            numbers[first : first + len(chunk)] = reading(store.raw_latents, resolution, chunk, cache)
        except UnreadableError:
            continue
    return Latents(numbers, unstorable(numbers), problem)


def checked_row_group(store: Store, row_group: int) -> Stored:
    """A row group's stored numbers, from the disk; `StoreError` if they are not the ones that were committed."""
    rows = store.row_groups.rows(row_group)
    latents: dict[int, Latents] = {}
    for damage in row_group_damages(store, row_group, found=latents):
        raise store.arrays.damaged(f"images {rows.start} to {rows.stop - 1}: {damage.file} {damage.problem}")
    return {resolution: part.numbers for resolution, part in latents.items()}
