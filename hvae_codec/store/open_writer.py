"""Where encode may write, and what writes there: a folder is built under another name, a bucket in place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from ..storage.bucket import BucketLocation
from ..storage.folder import FolderLocation
from ..storage.location import Location, LocationLike, location_of
from .bucket_writer import BucketStoreWriter
from .folder_writer import FolderStoreWriter
from .metadata import fingerprint_in
from .spec import StoreSpec, spec_fingerprint
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
    """Whether the finished store of `spec` is at `location`."""
    return published_fingerprint(location) == spec_fingerprint(spec)


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


def create_or_resume(location: Location, spec: StoreSpec, overwrite: bool, worker: Worker) -> tuple[StoreWriter, bool]:
    """The store of `spec` at `location`, new or as far as it was written before; raises like `StoreWriter`'s.

    Also whether it was begun before: then somebody may be writing it yet. Whoever is alone asks with the lock held.
    """
    is_begun = unfinished_fingerprint(location) is not None
    return writer_class(location).create_or_resume(location, spec, overwrite, worker), is_begun
