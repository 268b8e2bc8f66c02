"""Writing a store into a bucket, where nothing can be renamed, and an object is there whole or not at all.

    create_or_resume ──> unfinished.json, tables ── write(r) for r in own_pending() ──> finish ──> zarr.json

Objects have their last names from the start. What makes them a store is the group's `zarr.json`: until all row groups
are written, its content is called `unfinished.json`, which no reader takes for a store. The finished store has the same
objects as one in a folder, byte for byte. There are no locks: a digest is created once, whoever comes second reads back
what is there, and a process whose `unfinished.json` another encode has replaced stops. One that was stopped between its
last look for the digest and its write may still overwrite a published row group, with other bytes if it rounds
differently: `verify` finds that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..errors import StoreError
from ..storage.bucket import BucketLocation
from ..storage.location import UNFINISHED, Location, each
from .create import objects_of
from .metadata import fingerprint_in
from .spec import StoreSpec
from .workers import Worker
from .writer import StoreWriter, check_name

PUBLISHED = "zarr.json"


@dataclass(frozen=True)
class BucketStoreWriter(StoreWriter):
    """An unfinished store in a bucket."""

    path: BucketLocation

    @classmethod
    def create_or_resume(
        cls, path: BucketLocation, spec: StoreSpec, overwrite: bool = False, worker: Worker | None = None
    ) -> BucketStoreWriter:
        """See `StoreWriter`; with `overwrite`, a store at `path` is removed first.

        Only a single worker may do that: `StoreError` if there are several.
        """
        writer = cls(path, spec, overwrite, worker or Worker())
        cls.check_target(path, overwrite)
        if (path / PUBLISHED).is_file():
            if writer.worker.count > 1:
                raise StoreError(f"{path} exists, and several workers cannot replace it; remove it, or encode with one")
            _remove(path, PUBLISHED)
        objects = objects_of(spec)
        document = objects.pop(PUBLISHED)
        while (found := fingerprint_in(path / UNFINISHED)) != writer.fingerprint:
            if (path / UNFINISHED).is_file():
                started = next(iter((path / "committed/c").files()), None) is not None
                writer.check_replaceable(started, is_foreign=found is None)
                _remove(path, UNFINISHED)
            path.create(UNFINISHED, document)
        _write_missing(path, objects)
        metadata = {(path / key).key: content for key, content in objects.items() if key.endswith("zarr.json")}
        path.bucket.prefetched.update(metadata)  # read again and again with each row group
        return writer

    @staticmethod
    def check_target(path: BucketLocation, overwrite: bool) -> None:
        """Compare with `StoreWriter`, which says what each of these does."""
        check_name(path)
        if (path / PUBLISHED).is_file():
            if not overwrite:
                raise StoreError(f"{path} exists; give another name or pass --overwrite")
            ours = fingerprint_in(path / PUBLISHED) is not None
        else:
            ours = (path / UNFINISHED).is_file() or not path.is_dir()
        if not ours:
            raise StoreError(f"{path} is no store of this package, so it is not overwritten; give another name")

    @staticmethod
    def is_taken(path: BucketLocation) -> bool:  # noqa: D102
        return (path / PUBLISHED).is_file()

    @staticmethod
    def unfinished_file(path: BucketLocation) -> BucketLocation:  # noqa: D102
        return path / UNFINISHED

    @property
    def unfinished(self) -> BucketLocation:  # noqa: D102
        return self.path

    @staticmethod
    def locked(path: BucketLocation) -> AbstractContextManager[None]:
        """Nothing: there are no locks."""
        return nullcontext()

    @staticmethod
    def check_unlocked(path: BucketLocation) -> None:
        """Nothing: there are no locks."""

    @staticmethod
    def finish_swap(path: BucketLocation) -> bool:
        """Nothing to do: no store takes the name of another."""
        return False

    def pending(self) -> list[int]:  # noqa: D102
        committed = {key for key, _ in (self.path / "committed/c").files()}
        return [r for r in range(self.row_groups) if str(r) not in committed]

    def finish(self) -> bool:
        """Write `zarr.json` if the row groups of all workers are written; whether it is written now."""
        if fingerprint_in(self.path / PUBLISHED) == self.fingerprint:
            return True
        self._check_ours()
        if self.pending():
            return False
        if fingerprint_in(self.path / UNFINISHED) == self.fingerprint:
            # Two encodes that began at the same moment may have removed each other's tables.
            objects = objects_of(self.spec)
            _write_missing(self.path, {key: content for key, content in objects.items() if key != PUBLISHED})
            self.path.write(PUBLISHED, (self.path / UNFINISHED).read_bytes())
            self.path.delete([UNFINISHED])
        elif fingerprint_in(self.path / PUBLISHED) != self.fingerprint:  # nor has another worker just published it
            raise StoreError(f"{self.path} was removed or replaced while it was written; encode it again")
        return True

    def _check_ours(self) -> None:
        if all(fingerprint_in(self.path / name) != self.fingerprint for name in (UNFINISHED, PUBLISHED)):
            raise StoreError(f"{self.path} was removed or replaced while it was written; encode it again")

    def _copy(self, source: Location, keys: Mapping[str, str]) -> None:
        self._check_ours()
        super()._copy(source, keys)

    def _discard(self) -> None:
        self._check_ours()
        _remove(self.path, UNFINISHED)

    def _sync(self, keys: Sequence[str]) -> None:
        """Nothing to do: an object that was written survives."""


def _remove(path: BucketLocation, last: str) -> None:
    """Remove all objects below `path`, `last` at last: if it is killed before, the same call continues."""
    path.delete([key for key, _ in path.files() if key != last])
    path.delete([last])


def _write_missing(path: BucketLocation, objects: Mapping[str, bytes]) -> None:
    """Write those of `objects` that are not there."""
    location = path.uncached  # what was prefetched says nothing about that

    def write(key: str) -> None:
        if not (location / key).is_file():
            location.write(key, objects[key])

    each(location, write, objects)
