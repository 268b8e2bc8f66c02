"""Repairs a store: its metadata from their copy, damaged tables made anew, damaged row groups encoded again.

    metadata, tables ── repaired ──> row groups ── read once ──> those that are damaged: encoded again, read again

Only row groups, names and labels take the images.
The store stays readable, and a kill leaves it no worse: each file is replaced in one step, those that can still be read
before those that cannot, so that no image is read half old, half new. What is put in is proven: a table by the store's
fingerprint, a row group by its digest or by what can still be read of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data.sources import ImageSource
from ..errors import HvaeCodecError, StoreError, UnreachableError, UsageError
from ..model.hvae import HVAE
from ..progress import Progress
from ..prune.kl_stats import KLStats
from ..storage.location import Location, LocationLike, location_of
from ..store.damage import Damage
from ..store.group_file import read_group
from ..store.inspection import Inspection
from ..store.metadata import SourceRecord
from ..store.open_writer import locked
from ..store.reader import Store, open_damaged
from ..store.repair_metadata import repair_arrays, repair_group
from ..store.verify import VerifyReport, report, row_group_damages, verify_row_groups
from ..store.workers import Worker
from .repair_row_groups import RepairOptions, RowGroupRepairer
from .repair_tables import TableSources, repair_tables

__all__ = ["RepairOptions", "RepairReport", "repair", "restore_metadata"]


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did."""

    before: VerifyReport
    after: VerifyReport
    rewritten: Sequence[str] = ()
    """Files that were replaced, relative to the store."""
    notes: Sequence[str] = ()
    """What could not be repaired and why, and what is not as it was, one sentence each."""


def repair(
    store_path: LocationLike,
    images: ImageSource | None = None,
    model: HVAE | None = None,
    *,
    stats: KLStats | None = None,
    options: RepairOptions | None = None,
    progress: Progress | None = None,
) -> RepairReport:
    """Encode the damaged row groups of the store at `store_path` again from `images`, with the `model` that made it.

    `images` hold those that were encoded; they are found by name if others are among them. `model` is needed with
    `images`, or if the one that the store carries is damaged. Damaged tables are made anew, steps from `stats`.
    Without images, metadata and those tables are repaired that do not take them. With the batch size, machine and
    versions of the encode, the store is byte for byte what it was. `progress` is called with the images encoded and
    those to encode.
    Raises `StoreError` if there is no store, it is being written or `model` is another one; what cannot be repaired
    is in the report. `UsageError` if there are images and no model.
    """
    if images is not None and model is None:
        raise UsageError("images cannot be encoded again without a model; give the one that encoded them")
    job = _Repair(location_of(store_path), images, model, stats)
    found = [*job.inspection.damages]
    if found:
        with locked(job.path, Worker()):
            job.repair_structure()
    found += [damage for _, more in verify_row_groups(job.inspection) for damage in more]
    before = report(job.inspection, found)
    damaged = sorted({d.row_group for d in (*found, *job.inspection.damages) if d.row_group is not None})
    if damaged and job.can_encode():
        with locked(job.path, Worker()):
            job.repair_row_groups(damaged, options or RepairOptions(), progress)
    after = report(job.inspection, job.damages_left(damaged)) if found else before
    return RepairReport(before, after, job.rewritten, job.notes)


@dataclass
class _Repair:
    """A store that is being repaired, and what was done to it."""

    path: Location
    images: ImageSource | None
    model: HVAE | None
    stats: KLStats | None
    rewritten: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inspection = Inspection(open_damaged(self.path))
        if self.images is not None:
            self.images = _as_encoded(self.images, self.inspection.store.metadata.source)

    def repair_structure(self) -> None:
        """Repair metadata and tables, as far as they can be."""
        self.path.remove_partial_files()
        self._rewrote(repair_group(self.inspection))
        self._rewrote(repair_arrays(self.inspection))
        try:
            self._rewrote(repair_tables(self.inspection, TableSources(self.images, self.model, self.stats)))
        except StoreError as error:
            self.notes.append(str(error))

    def _rewrote(self, files: Sequence[str]) -> None:
        """Note files that were replaced; the store is another one then."""
        self.rewritten += files
        if files:
            self.inspection = Inspection(open_damaged(self.path))

    def can_encode(self) -> bool:
        """Whether row groups can be encoded again; notes why not."""
        try:
            Store.open(self.path)
        except StoreError as error:  # metadata or tables that could not be repaired are among those it takes
            self.notes.append(str(error))
            return False
        if self.images is None:
            self.notes.append("damaged row groups are encoded again from their images, which were not given")
        return self.images is not None

    def repair_row_groups(self, row_groups: Sequence[int], options: RepairOptions, progress: Progress | None) -> None:
        """Encode these row groups again."""
        assert self.images is not None
        assert self.model is not None
        self.path.remove_partial_files()
        repairer = RowGroupRepairer.open(self.inspection, self.images, self.model, options)
        lengths = [len(self.inspection.store.row_groups.rows(row_group)) for row_group in row_groups]
        for number, row_group in enumerate(row_groups, 1):
            self._repair_row_group(repairer, row_group)
            if progress is not None:
                progress(sum(lengths[:number]), sum(lengths))

    def _repair_row_group(self, repairer: RowGroupRepairer, row_group: int) -> None:
        try:
            files, note = repairer.repair(row_group)
        except UnreachableError:
            raise
        except HvaeCodecError as error:
            files, note = [], str(error)
        self.rewritten += files
        self.notes += [note] if note else []

    def damages_left(self, row_groups: Sequence[int]) -> list[Damage]:
        """What is wrong now; of the row groups, these alone were damaged and are read again."""
        self.inspection = Inspection(open_damaged(self.path))
        known = self.inspection.damages
        lost = {damage.file for damage in known}
        store = self.inspection.store
        return [*known, *(damage for r in row_groups for damage in row_group_damages(store, r, lost))]


def restore_metadata(store_path: LocationLike) -> list[str]:
    """Restore the group's `zarr.json` of the store at `store_path` if it is damaged, as `repair` does first.

    That is enough to open a store. Returns the files that were replaced; raises like `repair`, and if there is no
    second copy of the metadata.
    """
    location = location_of(store_path)
    if not read_group(location).fault:
        return []
    with locked(location, Worker()):
        return repair_group(Inspection(open_damaged(location)))


def _as_encoded(images: ImageSource, source: SourceRecord) -> ImageSource:
    """The split of `images` that was encoded; all of them if none is known to be."""
    known = {source.fingerprint, *(part.fingerprint for part in source.parts)}
    splits = (images, images.split("train"), images.split("val"))
    return next((split for split in splits if split.fingerprint in known), images)
