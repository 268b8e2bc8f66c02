"""Repairs a store: its metadata from their copy, damaged tables made anew, damaged row groups encoded again.

    metadata, tables ── repaired ──> row groups ── read once ──> those that are damaged: encoded again, read again

Only row groups and the tables of images (names, labels, splits, bytes of files) take the images.
The store stays readable, and a kill leaves it no worse: each file is replaced in one step, those that can still be read
before those that cannot, so that no image is read half old, half new. What is put in is proven: a table by the store's
fingerprint, a row group by its digest or by what can still be read of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..data.sources import ImageSource
from ..data.splits import PARTS
from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import HvaeCodecError, StoreError, UsageError
from ..model.hvae import HVAE
from ..progress import Progress
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..storage.location import Location, LocationLike, location_of
from ..store.damage import Damage
from ..store.group_file import is_replaced, read_group
from ..store.metadata import COPY_HOLDER, SourceRecord
from ..store.open_writer import locked
from ..store.reader import Store, open_damaged
from ..store.schema import IMAGE_TABLES, WEIGHTS
from ..store.spec import StoreSpec, spec_fingerprint, spec_of
from ..store.workers import Worker
from ..verification.inspection import Inspection
from ..verification.repair_metadata import may_copy, repair_arrays, repair_group, write_tables
from ..verification.row_group_check import check_row_groups, unread
from ..verification.verify import VerifyReport, report
from .coder import quantiser_steps, stored_columns
from .comparison import compare
from .embedded_model import weights_again
from .repair_images import GivenImages
from .repair_tasks import RepairOptions, repair_row_groups
from .stored_preprocessing import check_preprocessing


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did."""

    before: VerifyReport  # what was damaged
    after: VerifyReport  # what still is
    rewritten: Sequence[str] = ()  # files that were replaced, relative to the store
    notes: Sequence[str] = ()  # what could not be repaired and why, and what is not as it was, one sentence each


def repair(
    store_path: LocationLike,
    images: ImageSource | None = None,
    model: HVAE | None = None,
    *,
    stats: KLStats | None = None,
    options: RepairOptions | None = None,
    progress: Progress | None = None,
    comparing: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
) -> RepairReport:
    """Encode the damaged row groups of the store at `store_path` again from `images`, with the `model` that made it.

    `images` hold those that were encoded; they are found by name if others are among them. `model` is needed with
    `images`, or if what the store carries of it is damaged. Damaged tables are made anew, steps from `stats`.
    Without images, metadata and those tables are repaired that do not take them. With the batch size, machine and
    versions of the encode, the store is byte for byte what it was. `progress` is called with the images encoded and
    those to encode, `comparing` with those read and to read if `options.check` is set: then the report names an image
    that was changed since it was encoded, also if nothing is damaged. Row groups are read, and encoded, by `engine`
    or on an `executor`, which `tally` counts for: by this process if neither is given. Processes elsewhere load the
    model themselves, from its run or the store.
    Raises `StoreError` if there is no store, it is being written or `model` is another one; what cannot be repaired
    is in the report. `UsageError` if there are images and no model; `DataError` if the images were opened with other
    preprocessing than the store's.
    """
    if images is not None and model is None:
        raise UsageError("images cannot be encoded again without a model; give the one that encoded them")
    with given_engine(engine, executor) as used:
        job = _Repair(location_of(store_path), images, model, stats, used, tally)
        return _repair(job, options or RepairOptions(), progress, comparing)


def _repair(
    job: _Repair, options: RepairOptions, progress: Progress | None, comparing: Progress | None
) -> RepairReport:
    found = [*job.inspection.damages]
    if found:
        with locked(job.path, Worker()):
            job.repair_structure()
    found += job.find_damages()
    before = report(job.inspection, found)
    damaged = sorted({d.row_group for d in (*found, *job.inspection.damages) if d.row_group is not None})
    if damaged:
        job.repair_row_groups(damaged, options, progress)
    if options.check:
        job.note_changed_images(comparing)
    after = report(job.inspection, [*job.damages_left(damaged), *unread(found)]) if found else before
    return RepairReport(before, after, job.rewritten, job.notes)


@dataclass
class _Repair:
    """A store that is being repaired, and what was done to it."""

    path: Location
    images: ImageSource | None
    model: HVAE | None
    stats: KLStats | None
    engine: Engine
    tally: Tally | None
    rewritten: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inspection = Inspection(open_damaged(self.path))
        if self.images is not None:
            metadata = self.inspection.store.metadata
            check_preprocessing(self.images, metadata, self.path)
            self.images = _as_encoded(self.images, metadata.source)

    def _check_unchanged(self) -> None:
        """Raise `StoreError` if another store has this one's place: what was found is not said of that."""
        if is_replaced(self.path, self.inspection.store.metadata):
            raise StoreError(f"{self.path} was replaced while it was read; run repair again")

    def repair_structure(self) -> None:
        """Repair metadata and tables, as far as they can be."""
        self.inspection = Inspection(open_damaged(self.path))  # nobody writes from now on
        self.path.remove_partial_files()
        self._rewrote(repair_group(self.inspection))
        self._rewrote(repair_arrays(self.inspection))
        try:
            self._rewrote(self._repair_tables())
        except StoreError as error:
            self.notes.append(str(error))

    def _repair_tables(self) -> list[str]:
        """Replace what is damaged besides latents and digests; returns the files.

        Raises `StoreError` if the store's fingerprint or the model's hash does not prove what would be put in, or if
        what it would be made from is not given; nothing is replaced then.
        """
        store = self.inspection.store
        damaged = {damage.file.split("/")[0] for damage in self.inspection.damages if damage.row_group is None}
        wanted = sorted(damaged & store.arrays.schema.keys() - (set() if may_copy(self.inspection) else {COPY_HOLDER}))
        if not wanted:
            return []
        spec = self._proven_spec(store, wanted)
        if WEIGHTS in wanted:
            if self.model is None:
                what = "decoder" if store.metadata.model.embedded == "decoder" else "model"
                raise StoreError(
                    f"{store.path} carries a {what} that is damaged; give the run it was made with as --model"
                )
            spec = replace(spec, weights=weights_again(store, self.model))
        return write_tables(store, spec, wanted)

    def _proven_spec(self, store: Store, damaged: Sequence[str]) -> StoreSpec:
        shown, images = ", ".join(damaged), self.images
        try:
            if images is None and {*IMAGE_TABLES} & {*damaged}:
                raise StoreError("that takes the images that were encoded, which were not given")
            mask = LatentMask.from_dict(store.mask)
            spec = spec_of(
                store.metadata,
                names=images.names if images and "name" in damaged else store.names,
                labels=images.labels if images and "label" in damaged else store.labels,
                splits=images.split_names if images and "split" in damaged else store.splits,
                file_bytes=images.file_bytes if images and "file_bytes" in damaged else store.file_bytes,
                columns=stored_columns(mask),
                steps=self._steps(store, damaged, mask),
                per_image=store.own_figures,
            )
        except (LookupError, TypeError, ValueError, HvaeCodecError) as error:
            raise StoreError(f"{shown} cannot be made anew ({error}); restore them from a copy") from None
        if spec_fingerprint(spec) != store.metadata.fingerprint:
            raise StoreError(
                f"{shown} cannot be made anew: these are not the images, in their order, or not the ranking that the "
                "store was made with; give those, or restore the files from a copy"
            )
        return spec

    def _steps(self, store: Store, damaged: Sequence[str], mask: LatentMask) -> dict[int, NDArray[np.float32]]:
        whole = {r: store.arrays.read(f"step{r}") for r in store.resolutions if f"step{r}" not in damaged}
        if len(whole) == len(store.resolutions):
            return whole
        if self.stats is None:
            raise StoreError("its steps need the ranking that the store was made with")
        return {**quantiser_steps(mask, store.codec, self.stats), **whole}

    def _rewrote(self, files: Sequence[str]) -> None:
        """Note files that were replaced; the store is another one then."""
        self.rewritten += files
        if files:
            self.inspection = Inspection(open_damaged(self.path))

    def repair_row_groups(self, row_groups: Sequence[int], options: RepairOptions, progress: Progress | None) -> None:
        """Encode these row groups again, or note why they cannot be."""
        try:
            Store.open(self.path)
        except StoreError as error:  # metadata or tables that could not be repaired are among those it takes
            self.notes.append(str(error))
            return
        if self.images is None or self.model is None:
            self.notes.append("damaged row groups are encoded again from their images, which were not given")
            return
        given = GivenImages(self.inspection, self.images)
        with locked(self.path, Worker()):
            self._check_unchanged()
            self.path.remove_partial_files()
            repaired = repair_row_groups(given, self.model, row_groups, options, self.engine, self.tally, progress)
        for each in repaired:
            self.rewritten += each.files
            self.notes += [each.note] if each.note else []

    def find_damages(self, row_groups: Sequence[int] | None = None) -> list[Damage]:
        """What is wrong with the latents of `row_groups`, of all if None, beyond what the inspection says."""
        return check_row_groups(self.inspection, row_groups, engine=self.engine, tally=self.tally)

    def note_changed_images(self, progress: Progress | None) -> None:
        """Note which of the images given have other bytes than those that were encoded, if the store can tell."""
        if self.images is None:
            return
        try:
            changed = compare(self.images, Store.open(self.path), check=True, progress=progress).changed
        except StoreError as error:  # what is damaged yet is said anyway
            self.notes.append(f"the images given were not compared: {error}")
            return
        if len(changed):
            some = f"{len(changed):,} of the images given, such as {self.images.names[changed[0]]}"
            self.notes.append(f"{some}, have other bytes than those that were encoded; sync encodes them again")

    def damages_left(self, row_groups: Sequence[int]) -> list[Damage]:
        """What is wrong now; of the row groups, these alone were damaged and are read again."""
        del self.inspection  # names of a large store need not be there twice
        self.inspection = Inspection(open_damaged(self.path))
        return [*self.inspection.damages, *self.find_damages(row_groups)]


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
    splits = (images, *(images.split(part) for part in PARTS if images.has_split(part)))
    return next((split for split in splits if split.fingerprint in known), images)
