"""Where encode may write, and what writes there: a folder is built under another name, a bucket in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from .bucket_writer import PUBLISHED, BucketWriter, bucket_fingerprint, check_bucket_target
from .layout import StoreSpec, spec_fingerprint
from .places import Place, place_of
from .remote import RemotePath
from .unfinished import UnfinishedStore
from .workers import Worker, write_lock
from .writer import StoreWriter, check_target, fingerprint_at


def check_place(where: str | Place, overwrite: bool) -> None:
    """Raise `StoreError` where a store cannot go: there is one, or something that may not be overwritten."""
    place = place_of(where)
    if isinstance(place, RemotePath):
        check_bucket_target(place, overwrite)
    else:
        check_target(place, overwrite)


def is_written(place: Place, spec: StoreSpec) -> bool:
    """Whether the finished store of `spec` is at `place`."""
    found = bucket_fingerprint(place / PUBLISHED) if isinstance(place, RemotePath) else fingerprint_at(place)
    return found == spec_fingerprint(spec)


def locked(place: Place, worker: Worker) -> AbstractContextManager[None]:
    """Held while `worker` writes to the store at `place`; in a bucket there are no locks."""
    return nullcontext() if isinstance(place, RemotePath) else write_lock(place, worker)


@contextmanager
def writing(place: Place, spec: StoreSpec, overwrite: bool, worker: Worker) -> Iterator[UnfinishedStore]:
    """The store of `spec` at `place`, new or as far as it was written before; raises like its `create_or_resume`.

    In a folder, no other process may write row groups of `worker` meanwhile.
    """
    with locked(place, worker):
        if isinstance(place, RemotePath):
            yield BucketWriter.create_or_resume(place, spec, overwrite, worker)
        else:
            yield StoreWriter.create_or_resume(place, spec, overwrite, worker)
