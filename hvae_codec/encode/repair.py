"""Mends a store: its metadata from their copy, damaged tables made anew, damaged row groups encoded again.

    verify ──> damages ──> files made elsewhere ── put in place one by one ──> verify

Only row groups, names and labels take the images.
The store stays readable, and a kill leaves it no worse: each file is replaced in one step, those that can still be read
before those that cannot, so that no image is read half old, half new. What is put in is proven: a table by the store's
fingerprint, a row group by its digest or by what can still be read of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.sources import ImageSource
from ..errors import HvaeCodecError, StoreError, UnreachableError, UsageError
from ..model.hvae import HVAE
from ..prune.kl_stats import KLStats
from ..storage.location import Location, location_of
from ..store.open_writer import locked
from ..store.reader import open_store
from ..store.subject import Subject, sound_metadata
from ..store.verify import Progress, VerifyReport, verify
from ..store.workers import Worker
from .repair_row_groups import RepairOptions, RowGroupRepairer
from .repair_tables import repair_arrays, repair_group, repair_tables

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
    store_path: str | Location,
    images: ImageSource | None = None,
    model: HVAE | None = None,
    *,
    stats: KLStats | None = None,
    options: RepairOptions | None = None,
    progress: Progress | None = None,
) -> RepairReport:
    """Encode the damaged row groups of the store at `store_path` again from `images`, with the `model` that made it.

    `images` hold those that were encoded; they are found by name where others are among them. `model` is needed with
    `images`, or where the one that the store carries is damaged. Damaged tables are made anew, steps from `stats`.
    Without images, metadata and those tables are mended that do not take them. With the batch size, machine and
    versions of the encode, the store is byte for byte what it was. `progress` is called with the images encoded and
    those to encode.
    Raises `StoreError` where there is no store, it is being written or `model` is another one; what cannot be repaired
    is in the report. `UsageError` where there are images and no model.
    """
    if images is not None and model is None:
        raise UsageError("images cannot be encoded again without a model; give the one that encoded them")
    path = location_of(store_path)
    before = verify(path)
    if before.ok:
        return RepairReport(before, before)
    with locked(path, Worker()):
        _sweep(path)
        metadata = [*repair_group(path), *repair_arrays(path, Subject.open(path))]
        subject, now = Subject.open(path), verify(path) if metadata else before
        images = _as_encoded(images, subject.metadata["source"]) if images is not None else None
        tables, notes = _repair_tables(path, subject, now, images, model, stats)
        tables = [*metadata, *tables]
        row_groups = (verify(path) if tables else before).damaged_row_groups
        obstacle = _obstacle(path)
        if not row_groups or obstacle:
            return RepairReport(before, verify(path), tables, [*notes, *obstacle])
        if images is None or model is None:
            return RepairReport(before, verify(path), tables, [*notes, _NO_IMAGES])
        repairer = RowGroupRepairer.open(path, images, model, options or RepairOptions())
        rewritten, more = _repair_row_groups(repairer, row_groups, progress)
        return RepairReport(before, verify(path), [*tables, *rewritten], [*notes, *more])


def restore_metadata(store_path: str | Location) -> list[str]:
    """Restore the group's `zarr.json` of the store at `store_path` where it is damaged, as `repair` does first.

    That is enough to open a store. Returns the files that were replaced; raises like `repair`, and where there is no
    second copy of the metadata.
    """
    path = location_of(store_path)
    if not sound_metadata(path)[1]:
        return []
    with locked(path, Worker()):
        return repair_group(path)


_NO_IMAGES = "damaged row groups are encoded again from their images, which were not given"


def _obstacle(path: Location) -> list[str]:
    """Why the store cannot be decoded, where metadata or tables that could not be mended are among those it takes."""
    try:
        open_store(path)
    except StoreError as error:
        return [str(error)]
    return []


def _sweep(path: Location) -> None:
    """Remove what a killed encode or repair has left in the store; in a bucket, objects are there whole or not."""
    for leftover in path.rglob("*.partial") if isinstance(path, Path) else ():
        leftover.unlink()


def _as_encoded(images: ImageSource, source: Mapping[str, Any]) -> ImageSource:
    """The split of `images` that was encoded; all of them where none is known to be."""
    known = {source.get("fingerprint"), *(part["fingerprint"] for part in source.get("parts", ()))}
    splits = (images, images.split("train"), images.split("val"))
    return next((split for split in splits if split.fingerprint in known), images)


def _repair_tables(
    path: Location,
    subject: Subject,
    report: VerifyReport,
    images: ImageSource | None,
    model: HVAE | None,
    stats: KLStats | None,
) -> tuple[list[str], list[str]]:
    """Files that were replaced, and why others were not."""
    try:
        return repair_tables(path, subject, report, images, model, stats), []
    except StoreError as error:
        return [], [str(error)]


def _repair_row_groups(
    repairer: RowGroupRepairer, row_groups: Sequence[int], progress: Progress | None
) -> tuple[list[str], list[str]]:
    """Files that were replaced, and what is to be said of them or of others that were not."""
    rewritten, notes = [], []
    lengths = [len(repairer.subject.rows(row_group)) for row_group in row_groups]
    for number, row_group in enumerate(row_groups, 1):
        try:
            files, note = repairer.repair(row_group)
        except UnreachableError:
            raise
        except HvaeCodecError as error:
            files, note = [], str(error)
        rewritten += files
        notes += [note] if note else []
        if progress is not None:
            progress(sum(lengths[:number]), sum(lengths))
    return rewritten, notes
