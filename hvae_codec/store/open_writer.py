"""Where encode may write, and what writes there: a folder is built under another name, a bucket in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ..storage.bucket import RemotePath
from ..storage.location import UNFINISHED, Location, location_of
from .bucket_writer import PUBLISHED, BucketWriter, bucket_fingerprint, check_bucket_target
from .folder_writer import FolderStoreWriter, check_target, fingerprint_at, partial_path
from .spec import StoreSpec, spec_fingerprint
from .workers import Worker, write_lock
from .writer import StoreWriter


def check_location(where: str | Location, overwrite: bool) -> None:
    """Raise `StoreError` where a store cannot go: there is one, or something that may not be overwritten."""
    place = location_of(where)
    if isinstance(place, RemotePath):
        check_bucket_target(place, overwrite)
    else:
        check_target(place, overwrite)


def is_taken(place: Location) -> bool:
    """Whether a store is at `place`, or in a folder anything."""
    return (place / PUBLISHED).is_file() if isinstance(place, RemotePath) else os.path.lexists(place)


def is_written(place: Location, spec: StoreSpec) -> bool:
    """Whether the finished store of `spec` is at `place`."""
    return published_fingerprint(place) == spec_fingerprint(spec)


def published_fingerprint(place: Location) -> str | None:
    """The fingerprint of the store that is at `place` now; None where there is none."""
    if isinstance(place, RemotePath):
        return bucket_fingerprint(RemotePath.of(str(place)) / PUBLISHED)  # not what was read ahead
    return fingerprint_at(place)


def unfinished_fingerprint(place: Location) -> str | None:
    """The fingerprint of the unfinished store that is to be at `place`; None where there is none."""
    if isinstance(place, RemotePath):
        return bucket_fingerprint(RemotePath.of(str(place)) / UNFINISHED)
    return fingerprint_at(partial_path(place))


def locked(place: Location, worker: Worker) -> AbstractContextManager[None]:
    """Held while `worker` writes to the store at `place`; in a bucket there are no locks."""
    return nullcontext() if isinstance(place, RemotePath) else write_lock(place, worker)


@contextmanager
def open_writer(place: Location, spec: StoreSpec, overwrite: bool, worker: Worker) -> Iterator[StoreWriter]:
    """The store of `spec` at `place`, new or as far as it was written before; raises like its `create_or_resume`.

    In a folder, no other process may write row groups of `worker` meanwhile.
    """
    with locked(place, worker):
        if isinstance(place, RemotePath):
            yield BucketWriter.create_or_resume(place, spec, overwrite, worker)
        else:
            yield FolderStoreWriter.create_or_resume(place, spec, overwrite, worker)
