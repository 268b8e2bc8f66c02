"""More images into a finished store, under the same model, mask and codec.

    out.zarr          row groups 0 1 2 |3     the last one is partly filled
                                 | | | |
                             links     copied: its latents, then new images up to a whole row group
                                 | | | |
    out.zarr.partial  row groups 0 1 2  3  4  5      then the two swap names

Objects of a store never change, so the longer store shares them with the one that is read meanwhile; readers see the
old store or the new one, and a kill leaves the old one and, to go on from, the unfinished new one.

With `out`, the longer store gets a name of its own, and the old one is only read. That is how it goes in a bucket,
where nothing can be renamed: the server copies the objects of whole row groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.sources import ImageSource, as_source
from ..errors import StoreError, UsageError
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.bucket import RemotePath
from ..storage.location import Location, each, location_of
from ..store.folder_writer import FolderStoreWriter, finish_swap, partial_path
from ..store.open_writer import (
    check_location,
    is_taken,
    is_written,
    open_writer,
    published_fingerprint,
    unfinished_fingerprint,
)
from ..store.sketch import SKETCH
from ..store.spec import spec_fingerprint
from ..store.verify import checked_row_group
from ..store.workers import Worker, write_lock
from ..store.writer import StoreWriter
from .append_spec import EVALUATED, check_additions, extended_spec, measured_arrays
from .coder import LatentCoder
from .encoded_store import EncodedStore as Store
from .encoded_store import open_store
from .pipeline import EncodeJob, EncodeOptions, check_images

TAKEN_AT_ONCE = 256
"""Row groups that are copied, and then committed; what a killed append copies again."""


def append(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    path: str | Location,
    *,
    out: str | Location | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    copying: Progress | None = None,
) -> Store:
    """Add `images` (a source, or uint8 [N, C, H, W]) to the store at `path`, which stays readable; the longer store.

    With `out`, that is a new store there, and the one at `path` stays as it is; both may be folders or URLs. Without,
    it takes the place of the old one, which must be in a folder.
    Images of arrays have no names and are numbered on. Where the store has rate and distortion of its images, they
    are measured of these too, with noise of `seed`. Killed at any moment, the same call goes on. `progress` is called
    with the images done and the images to add, `copying` with those whose row groups are taken over and those to take.
    Damaged latents in whole row groups are taken over as they are, damage that is left to `verify` and `repair`.
    Raises `DataError` where these images, or others of their names, are in the store, or do not fit; `StoreError` where
    there is no store, its last row group or its tables are damaged, it is of another model or being written, where it
    has things that a user added and that are lost without `out`, or where `out` exists; `UsageError` where a store in a
    bucket is to be replaced.
    """
    # One worker owns all row groups, so there is a store.
    return cast(
        Store,
        append_worker(
            model,
            images,
            path,
            Worker(),
            out=out,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            copying=copying,
        ),
    )


def append_worker(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    path: str | Location,
    worker: Worker,
    *,
    out: str | Location | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    copying: Progress | None = None,
) -> Store | None:
    """Write the row groups that `worker` owns of the store at `out`, which several processes write in any order.

    See `append` and `encode_worker`: all give the same arguments but for `worker`, and whoever finds all row groups
    written publishes and returns the longer store. None: row groups of other workers are missing yet. `progress` and
    `copying` count this worker's images. Raises what `append` does, and `UsageError` where there are several workers
    and no `out`.
    """
    place, source = _to_append(path, out, worker), as_source(images)
    check_images(model, source)

    def addition_to(old: Store) -> _Addition:
        return _Addition.of(model, source, old, batch_size, seed)

    def write(addition: _Addition, writer: StoreWriter) -> None:
        addition.write(writer, progress, copying)

    if out is None:
        return _append_in_place(cast(Path, place), source.fingerprint, addition_to, write)
    return _append_beside(place, location_of(out), worker, addition_to, write)


def open_to_append(path: str | Location, out: str | Location | None = None, worker: Worker | None = None) -> Store:
    """The store at `path`, also after a kill at the one moment of `append` in which nothing has its name.

    Raises `UsageError` and `StoreError` where `append_worker` would, of these arguments, and what `open_store` does.
    """
    return _open(_to_append(path, out, worker or Worker()))


def _to_append(path: str | Location, out: str | Location | None, worker: Worker) -> Location:
    """The place of the store `path`; raises where nothing can be appended to it, or not in this way."""
    place = location_of(path)
    if out is not None:
        longer = location_of(out)
        if worker.count == 1:
            _check_free(longer)
        if _is_inside(longer, place):
            raise UsageError(f"{longer} is inside of the store; give a name beside it")
        return place
    if isinstance(place, RemotePath):
        raise UsageError(f"{place} is in a bucket, where no store can take another's name; give the longer one --out")
    if worker.count > 1:
        raise UsageError("several workers write the longer store under a name of its own; give it as --out")
    if place.is_symlink():
        raise UsageError(f"{place} is a link; give the folder that it points to, {place.resolve()}")
    return place


def _is_inside(place: Location, store: Location) -> bool:
    if isinstance(place, Path) and isinstance(store, Path):  # wherever links and .. lead
        return Path(os.path.realpath(store)) in Path(os.path.realpath(place)).parents
    return str(place).startswith(f"{store}/")


def _open(place: Location) -> Store:
    if isinstance(place, Path) and not place.exists():
        finish_swap(place)
    return open_store(place)


def _check_free(place: Location) -> None:
    if is_taken(place):
        raise StoreError(f"{place} exists; give another name")


# --- where it goes ---------------------------------------------------------------------------------------------------


def _append_in_place(
    path: Path,
    fingerprint: str,
    addition_to: Callable[[Store], _Addition],
    write: Callable[[_Addition, StoreWriter], None],
) -> Store:
    """`fingerprint` is that of the images to add."""
    with write_lock(path, Worker()):
        swapped, old = finish_swap(path), open_store(path)
        if swapped and old.metadata.source.parts_of(len(old))[-1].fingerprint == fingerprint:
            return old  # all that was left to do was to remove the shorter store
        check_additions(old)
        addition = addition_to(old)
        addition.check_unfinished(path)
        writer = FolderStoreWriter.create_or_resume(path, addition.encoding.spec, overwrite=True)
        write(addition, writer)
        writer.publish()
        return open_store(path)


def _append_beside(
    path: Location,
    out: Location,
    worker: Worker,
    addition_to: Callable[[Store], _Addition],
    write: Callable[[_Addition, StoreWriter], None],
) -> Store | None:
    addition = addition_to(_open(path))
    spec = addition.encoding.spec
    if worker.count > 1 and is_written(out, spec):
        return open_store(out)
    _check_free(out)
    check_location(out, overwrite=False)
    if worker.count == 1:
        addition.check_unfinished(out)
    with open_writer(out, spec, False, worker) as writer:
        write(addition, writer)
        return open_store(out) if writer.finish() else None


# --- what it is made from --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Addition:
    """A store, and the images that it gets."""

    old: Store
    encoding: EncodeJob
    """Of the new images; its specification is the longer store's."""

    @classmethod
    def of(cls, model: HVAE, source: ImageSource, old: Store, batch_size: int, seed: int) -> _Addition:
        """See `append`; raises what it does before anything is written."""
        coder, measured = LatentCoder.of_store(old, model), measured_arrays(old)
        if len(old) % old.row_groups.size:
            checked_row_group(
                old, len(old.row_groups) - 1
            )  # it gets a digest of its own, which must not vouch for damage
        options = EncodeOptions(
            batch_size,
            row_group_size=old.row_groups.size,
            evaluate=measured >= {*EVALUATED},
            seed=seed,
            verify=SKETCH in measured,
        )
        spec = extended_spec(old, source, options.per_image)
        return cls(old, EncodeJob(coder, source, spec, options, first=len(old)))

    def check_unfinished(self, place: Location) -> None:
        """Raise `StoreError` where an unfinished store is in the way of the one at `place`."""
        if unfinished_fingerprint(place) not in (None, spec_fingerprint(self.encoding.spec)):
            left = partial_path(place) if isinstance(place, Path) else place
            raise StoreError(f"{left} is left of another append or encode; finish that with its command, or remove it")

    def write(self, writer: StoreWriter, progress: Progress | None, copying: Progress | None) -> None:
        """Write the row groups that the writer's worker owns, and has not written."""
        try:
            pending = writer.own_pending()
            self._take_over(writer, pending, copying)
            joined = self._join(writer, pending)
            self.encoding.write(writer, progress and (lambda done, total: progress(done + joined, total + joined)))
        except StoreError:
            self._check_unchanged()  # what looks like damage may be another store
            raise
        self._check_unchanged()

    def _take_over(self, writer: StoreWriter, pending: Sequence[int], copying: Progress | None) -> None:
        """Commit whole row groups of the old store, with its own objects."""
        row_group_size = self.old.row_groups.size
        whole = [row_group for row_group in pending if row_group < len(self.old) // row_group_size]
        evaluated = self._evaluated(slice(None)) if whole else {}

        def write_per_image(row_group: int) -> None:
            rows = slice(row_group * row_group_size, (row_group + 1) * row_group_size)
            writer.write_per_image(row_group, {name: values[rows] for name, values in evaluated.items()})

        for first in range(0, len(whole), TAKEN_AT_ONCE):
            some = whole[first : first + TAKEN_AT_ONCE]
            each(writer.path, write_per_image, some)
            writer.take_over(self.old.path, some, self._check_unchanged)
            if copying is not None:
                copying((first + len(some)) * row_group_size, len(whole) * row_group_size)

    def _join(self, writer: StoreWriter, pending: Sequence[int]) -> int:
        """Write the rest of the old store's last row group with the first new images; how many these are."""
        row_group, kept = divmod(len(self.old), self.old.row_groups.size)
        if not kept or not writer.worker.owns(row_group):
            return 0
        joined = len(writer.rows(row_group)) - kept
        if row_group in pending:
            stored, measured = self.encoding.encoder.encode_range(range(joined))
            old_stored, old_measured = checked_row_group(self.old, row_group), self._evaluated(slice(-kept, None))
            self._check_unchanged()  # before what was read is committed, which the same call would keep
            writer.write(row_group, _joined(old_stored, stored), _joined(old_measured, measured))
        return joined

    def _evaluated(self, rows: slice) -> dict[str, NDArray]:
        """What was measured of the old store's images, where it has such arrays."""
        return {name: self.old.per_image(name)[rows] for name in self.encoding.spec.per_image}

    def _check_unchanged(self) -> None:
        """Raise `StoreError` where the old store is another one by now: nothing may be made of both."""
        if published_fingerprint(self.old.path) != self.old.metadata.fingerprint:
            raise StoreError(f"{self.old.path} was removed or replaced while it was read; run append again")


def _joined(old: Mapping[Any, NDArray], new: Mapping[Any, NDArray]) -> dict[Any, NDArray]:
    return {key: np.concatenate([old[key], numbers]) for key, numbers in new.items()}
