"""Where encode may write, and what writes there: a folder is built under another name, a bucket in place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from ..errors import StoreError
from ..progress import Progress
from ..storage.bucket import BucketLocation
from ..storage.folder import FolderLocation
from ..storage.location import Location, LocationLike, location_of
from .bucket_writer import BucketStoreWriter
from .folder_writer import FolderStoreWriter
from .metadata import fingerprint_in
from .spec import StoreSpec, spec_fingerprint
from .widening import begun_from, widen
from .workers import Worker
from .writer import StoreWriter

_WRITERS: dict[type[Location], type[StoreWriter]] = {
    FolderLocation: FolderStoreWriter,
    BucketLocation: BucketStoreWriter,
}


def writer_class(location: Location) -> type[StoreWriter]:
    """What writes at `location`, and knows what is there."""
    return _WRITERS[type(location)]


def check_location(path: LocationLike, overwrite: bool) -> None:
    """Raise `StoreError` if a store cannot go there: there is one, or something that may not be overwritten."""
    location = location_of(path)
    writer_class(location).check_target(location, overwrite)


def published_fingerprint(location: Location) -> str | None:
    """The fingerprint of the store that is at `location` now; None if there is none."""
    return fingerprint_in(location.uncached / "zarr.json")


def is_written(location: Location, spec: StoreSpec) -> bool:
    """Whether the finished store of `spec` is at `location`, also if its codes became wider on the way."""
    found = published_fingerprint(location)
    return found == spec_fingerprint(spec) or bool(found and begun_from(location / "zarr.json", spec))


def unfinished_fingerprint(location: Location) -> str | None:
    """The fingerprint of the unfinished store that is to be at `location`; None if there is none."""
    return fingerprint_in(writer_class(location).unfinished_file(location.uncached))


def locked(location: Location, worker: Worker) -> AbstractContextManager[None]:
    """Held while a worker that is alone writes the store at `location`; `StoreError` if another process has it.

    One of several has no lock: they write row groups of their own, and each of these is committed once.
    """
    if worker.count == 1:
        return writer_class(location).locked(location)
    writer_class(location).check_unlocked(location)
    return nullcontext()


def create_or_resume(
    location: Location,
    spec: StoreSpec,
    overwrite: bool,
    worker: Worker,
    widening: Progress | None = None,
    *,
    same_types: bool = False,
) -> tuple[StoreWriter, bool]:
    """The store of `spec` at `location`, new or as far as it was written before; raises like `StoreWriter`'s.

    If it was begun with wider codes, it keeps them; narrower ones are rewritten, unless there are several workers. With
    `same_types` a store of other types than those of `spec` is another store.
    Also whether it was begun before: then somebody may be writing it yet. Whoever is alone asks with the lock held.
    `widening` is called as by `widen`. Raises `StoreError` if several workers find it half rewritten.
    """
    kind, is_begun = writer_class(location), unfinished_fingerprint(location) is not None
    begun = begun_from(kind.unfinished_file(location), spec) if is_begun else None
    if begun and same_types and begun.spec.array_dtypes != spec.array_dtypes:
        begun = None
    wanted = begun.wanted(spec.array_dtypes) if begun else spec.array_dtypes
    is_alone = worker.count == 1
    if begun and begun.before and not is_alone:
        raise StoreError(
            f"codes in the unfinished store of {location} were being rewritten with 16 bits; run the same command "
            "without --worker, which finishes that, and then the workers"
        )
    if not begun or (wanted != begun.spec.array_dtypes and not is_alone):
        return kind.create_or_resume(location, spec, overwrite, worker), is_begun
    writer = kind.create_or_resume(location, begun.spec, overwrite, worker)
    if begun.before:  # first, as what is half rewritten has these types or those
        writer = widen(writer, begun.spec.array_dtypes, before=begun.before, progress=widening)
    if wanted != begun.spec.array_dtypes:
        writer = widen(writer, wanted, progress=widening)
    return writer, is_begun
