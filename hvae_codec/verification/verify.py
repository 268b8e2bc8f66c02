"""Whether a store is whole: every file there, every number what was written; names what is not, and whose images.

verify(PATH) ──> VerifyReport ── damages: file, what is wrong with it, row group, images
                              └─ notes:   what is no damage, such as files that are left over
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.per_process import PerProcess
from ..engine.tally import Tally
from ..errors import StoreError
from ..progress import Progress
from ..storage.location import Location, LocationLike
from ..store.arrays import row_group_digest, shard_key
from ..store.damage import Damage, UnreadableError, reading
from ..store.reader import open_damaged
from ..store.row_group_writer import RowGroupWriter
from .inspection import Inspection
from .row_group_check import CheckImages, check_row_groups

NAMED = 3  # images of a damage that are named; the others are counted


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    path: Location  # the store
    images: int  # how many the store holds
    row_groups: int  # how many these are in
    files: int  # files that were looked at
    damages: Sequence[Damage]  # none if the store is whole
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
    store_path: LocationLike,
    *,
    check_images: PerProcess[CheckImages] | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
) -> VerifyReport:
    """Read everything in the store at `store_path` and compare it with its checksums, digests and metadata.

    `check_images` looks at the images of each row group whose latents are whole. All damages are reported, not only
    the first. `progress` is called with the images done and the images in all. Row groups are read by `engine`, or on
    an `executor`, which `tally` counts for: by this process if neither is given. Who reads them does not show in the
    report.
    Raises `StoreError` if there is no store, if it is unfinished, of a newer format or of somebody else, if the group's
    own metadata are lost, without which nothing can be told, or if a worker does not see the store; `UsageError` if
    both an engine and an executor are given.
    """
    inspection = Inspection(open_damaged(store_path))
    damages = [*inspection.damages]
    with given_engine(engine, executor) as used:
        damages += check_row_groups(inspection, check_images=check_images, progress=progress, engine=used, tally=tally)
    return report(inspection, damages)


def report(inspection: Inspection, damages: Sequence[Damage]) -> VerifyReport:
    """`damages` of the inspected store, with names of the images."""
    store = inspection.store
    named = [replace(damage, names=inspection.names_of(damage.images[:NAMED])) for damage in damages]
    files = 1 + sum(len(files) for files in inspection.files.values())
    return VerifyReport(store.path, len(store), len(store.row_groups), files, named, list(inspection.notes()))


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


def _elements(array: Any, selection: Any) -> NDArray:
    return np.asarray(array[selection])
