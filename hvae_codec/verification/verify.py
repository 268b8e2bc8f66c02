"""Whether a store is whole: every file there, every number what was written; names what is not, and whose images.

verify(PATH) ──> VerifyReport ── damages: file, what is wrong with it, row group, images
                              └─ notes:   what is no damage, such as files that are left over
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..progress import Progress
from ..storage.cache import ChunkCache
from ..storage.location import Location, LocationLike
from ..store.arrays import row_group_digest, shard_key, unstorable
from ..store.damage import Damage, UnreadableError, reading
from ..store.reader import Store, Stored, open_damaged
from ..store.row_group_writer import RowGroupWriter
from .inspection import Inspection

NAMED = 3  # images of a damage that are named; the others are counted

CheckImages = Callable[[range], Iterator[Damage]]
"""What is wrong with the images of a row group whose latents are whole, given their numbers."""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    path: Location  # the store
    images: int
    row_groups: int
    files: int  # files that were looked at
    damages: Sequence[Damage]
    notes: Sequence[str] = ()  # what is worth knowing but no damage, one sentence each

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages

    @property
    def damaged_row_groups(self) -> list[int]:
        """Row groups to encode again, ascending."""
        return sorted({damage.row_group for damage in self.damages if damage.row_group is not None})


def verify(
    store_path: LocationLike, *, check_images: CheckImages | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Read everything in the store at `store_path` and compare it with its checksums, digests and metadata.

    `check_images` looks at the images of each row group whose latents are whole. All damages are reported, not only
    the first. `progress` is called with the images done and the images in all. Raises `StoreError` if there is no
    store, if it is unfinished, of a newer format or of somebody else, or if the group's own metadata are lost, without
    which nothing can be told.
    """
    inspection = Inspection(open_damaged(store_path))
    damages = [*inspection.damages]
    for row_group, found in verify_row_groups(inspection, progress):
        damages += found
        if check_images is not None and not found and not _concerns(damages, row_group):
            damages += check_images(inspection.store.row_groups.rows(row_group))
    return report(inspection, damages)


def report(inspection: Inspection, damages: Sequence[Damage]) -> VerifyReport:
    """`damages` of the inspected store, with names of the images."""
    store = inspection.store
    named = [replace(damage, names=inspection.names_of(damage.images[:NAMED])) for damage in damages]
    files = 1 + sum(len(files) for files in inspection.files.values())
    return VerifyReport(store.path, len(store), len(store.row_groups), files, named, list(inspection.notes()))


def _concerns(damages: Sequence[Damage], row_group: int) -> bool:
    return any(damage.row_group == row_group for damage in damages)


def verify_row_groups(inspection: Inspection, progress: Progress | None = None) -> Iterator[tuple[int, list[Damage]]]:
    """Each row group, with what is wrong with its latents and digest beyond what the inspection says of their files."""
    store, lost = inspection.store, {damage.file for damage in inspection.damages}
    for row_group in range(len(store.row_groups)):
        yield row_group, list(row_group_damages(store, row_group, lost))
        if progress is not None:
            progress(store.row_groups.rows(row_group).stop, len(store))


@dataclass(frozen=True, eq=False)
class Latents:
    """What can be read of a row group in one array."""

    numbers: NDArray  # stored numbers, [images, columns, ...]; fill values if they are lost
    lost: NDArray[np.bool_]  # which images are lost, [images]
    problem: str  # what is wrong, to be read after the file's name; empty if nothing is


def row_group_damages(
    store: Store, row_group: int, lost: AbstractSet[str] = frozenset(), found: dict[int, Latents] | None = None
) -> Iterator[Damage]:
    """What is wrong with the latents of a row group and their digest, but for files in `lost`, known already.

    What was read is put into `found`, by resolution.
    """
    rows, whole, found = store.row_groups.rows(row_group), True, {} if found is None else found
    for resolution in store.resolutions:
        file = f"z{resolution}/{shard_key(row_group, store.columns.item(resolution))}"
        if store.arrays.fault(f"z{resolution}") or file in lost:
            whole = False
            continue
        latents = found[resolution] = read_row_group(store, resolution, row_group)
        if latents.problem:
            whole = False
            yield Damage(file, latents.problem, [rows[i] for i in np.flatnonzero(latents.lost)], row_group)
    file = f"committed/c/{row_group}"
    if store.arrays.fault("committed") or file in lost:
        return
    try:
        digest = read_digest(store, row_group)
    except UnreadableError as error:
        yield Damage(file, str(error), rows, row_group)
        return
    if not digest:
        yield Damage(file, "says that the row group was never written", rows, row_group)
    elif whole and row_group_digest([part.numbers for part in found.values()]) != digest:
        problem = "is not the digest of the row group's latents: they are not what was written"
        yield Damage(file, problem, rows, row_group)


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


def check_written(writer: RowGroupWriter, row_group: int) -> None:
    """Read back a row group of an unfinished store; `StoreError` if it is not what was committed.

    In a folder, its files are dropped from the system's cache first, if it can be asked to, so that the disk is what
    is read.
    """
    rows, where = writer.rows(row_group), f"row group {row_group} of the unfinished {writer.unfinished}"
    try:
        for resolution in writer.layout.resolutions:
            key = shard_key(row_group, writer.layout.columns.item(resolution))
            writer.unfinished.drop_from_cache(f"z{resolution}/{key}")
        stored = [
            reading(_elements, writer.array(f"z{resolution}"), slice(rows.start, rows.stop))
            for resolution in writer.layout.resolutions
        ]
    except (UnreadableError, OSError) as error:
        problem = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise StoreError(f"{where} {problem}; check the disk") from None
    if row_group_digest(stored) != writer.digest(row_group):
        raise StoreError(f"{where} is not read back as it was written; check memory and disk")
