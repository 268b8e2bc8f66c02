"""Writing a store into a bucket, where nothing can be renamed, and an object is there whole or not at all.

    create_or_resume ──> unfinished.json, tables ── write(r) for r in own_pending() ──> finish ──> zarr.json

Objects have their last names from the start. What makes them a store is the group's `zarr.json`: until all row groups
are written, its content is called `unfinished.json`, which no reader takes for a store. The finished store has the same
objects as one in a folder, byte for byte. There are no locks: two processes that write the same row group of one store
write the same bytes, and one whose `unfinished.json` another encode has replaced stops.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import zarr
from zarr.storage import MemoryStore

from ..errors import StoreError
from ..storage.bucket import AT_ONCE, RemotePath
from ..storage.location import UNFINISHED, Location
from .create import fill_group, write_table
from .metadata import ATTRIBUTE
from .schema import WRITE_ALL
from .spec import StoreSpec
from .workers import Worker
from .writer import StoreWriter, check_name

PUBLISHED = "zarr.json"


@dataclass(frozen=True)
class BucketWriter(StoreWriter):
    """An unfinished store in a bucket."""

    path: RemotePath

    @classmethod
    def create_or_resume(cls, path: RemotePath, spec: StoreSpec, overwrite: bool, worker: Worker) -> BucketWriter:
        """Like `FolderStoreWriter.create_or_resume`, but with `overwrite` a store at `path` is removed first.

        Only a single worker may do that: `StoreError` where there are several.
        """
        writer = cls(path, spec, overwrite, worker)
        check_bucket_target(path, overwrite)
        if (path / PUBLISHED).is_file():
            _check_alone(writer)
            _remove(path, PUBLISHED)
        objects = _objects(lambda group: fill_group(group, spec))
        document = objects.pop(PUBLISHED)
        while (found := bucket_fingerprint(path / UNFINISHED)) != writer.fingerprint:
            if (path / UNFINISHED).is_file():
                _check_replaceable(writer, found)
                _remove(path, UNFINISHED)
            (path / UNFINISHED).create(document)
        _write_missing(path, objects)
        metadata = {(path / key).key: content for key, content in objects.items() if key.endswith("zarr.json")}
        path.bucket.held.update(metadata)  # read again and again with each row group
        return writer

    def array(self, name: str) -> zarr.Array:
        """See `StoreWriter`; so are the others."""
        array = zarr.open_array(self.path.zarr_location(read_only=False) / name, mode="r+", zarr_format=3)
        return cast(zarr.Array, array.with_config(WRITE_ALL))

    def pending(self) -> list[int]:
        """Row groups that are not yet committed, of all workers."""
        committed = {key for key, _ in (self.path / "committed/c").files()}
        return [r for r in range(self.row_groups) if str(r) not in committed]

    def finish(self) -> bool:
        """Write `zarr.json` where the row groups of all workers are written; whether it is written now."""
        if bucket_fingerprint(self.path / PUBLISHED) == self.fingerprint:
            return True
        self._check_ours()
        if self.pending():
            return False
        if bucket_fingerprint(self.path / UNFINISHED) == self.fingerprint:
            # Two encodes that began at the same moment may have cleared the place of each other's tables.
            objects = _objects(lambda group: fill_group(group, self.spec))
            _write_missing(self.path, {key: content for key, content in objects.items() if key != PUBLISHED})
            (self.path / PUBLISHED).write_bytes((self.path / UNFINISHED).read_bytes())
            self.path.delete([UNFINISHED])
        elif bucket_fingerprint(self.path / PUBLISHED) != self.fingerprint:  # nor has another worker just published it
            raise StoreError(f"{self.path} was removed or replaced while it was written; encode it again")
        return True

    def write(
        self, row_group: int, stored: Mapping[int, np.ndarray], per_image: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """See `StoreWriter`; `StoreError` also where another encode has taken the place meanwhile."""
        self._check_ours()
        super().write(row_group, stored, per_image)

    def _check_ours(self) -> None:
        if all(bucket_fingerprint(self.path / name) != self.fingerprint for name in (UNFINISHED, PUBLISHED)):
            raise StoreError(f"{self.path} was removed or replaced while it was written; encode it again")

    def _write_object(self, name: str, key: str, content: bytes) -> None:
        if name == "committed":
            self._check_ours()  # whatever another encode was doing meanwhile, no digest vouches for it
        (self.path / name / key).write_bytes(content)

    def _keep(self, name: str, key: str) -> None:
        """Nothing to do: an object that was written is kept."""

    def _copy(self, source: Location, keys: Sequence[str]) -> None:
        self._check_ours()
        super()._copy(source, keys)

    def _copy_object(self, source: Location, key: str) -> None:
        (self.path / key).copy_from(source)

    def _keep_copies(self, keys: Sequence[str]) -> None:
        """Nothing to do, as in `_keep`."""

    def _write_table(self, name: str, values: np.ndarray) -> None:
        for key, content in _objects(lambda group: write_table(group, name, values, "image")).items():
            if key != PUBLISHED:
                (self.path / key).write_bytes(content)


def check_bucket_target(path: RemotePath, overwrite: bool) -> None:
    """Raise `StoreError` where a store cannot go to `path`: there is one, or there are objects of somebody else."""
    check_name(path)
    if (path / PUBLISHED).is_file():
        if not overwrite:
            raise StoreError(f"{path} exists; give another name or pass --overwrite")
        ours = bucket_fingerprint(path / PUBLISHED) is not None
    else:
        ours = (path / UNFINISHED).is_file() or not path.is_dir()
    if not ours:
        raise StoreError(f"{path} is no store of this package, so it is not overwritten; give another name")


def bucket_fingerprint(document: RemotePath) -> str | None:
    """The fingerprint in a store's `zarr.json` or `unfinished.json`; None where it is not there or of somebody else."""
    try:
        return str(json.loads(document.read_bytes())["attributes"][ATTRIBUTE]["fingerprint"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _check_alone(writer: BucketWriter) -> None:
    if writer.worker.count > 1:
        raise StoreError(f"{writer.path} exists, and several workers cannot replace it; remove it, or encode with one")


def _check_replaceable(writer: BucketWriter, found: str | None) -> None:
    """Raise `StoreError` where an unfinished store, of fingerprint `found`, is not to be replaced by the writer's."""
    started = next(iter((writer.path / "committed/c").files()), None) is not None
    if found is None or writer.worker.count > 1 or (started and not writer.overwrite):
        remedy = "give all workers of a store the same, or remove it" if writer.worker.count > 1 else "remove it"
        remedy += " or pass --overwrite" if found is not None and writer.worker.count == 1 else ""
        raise StoreError(
            f"{writer.path} is an unfinished store of other images, another model or other settings; {remedy}"
        )


def _remove(path: RemotePath, last: str) -> None:
    """Remove all objects below `path`, `last` at last: killed before, the same call goes on."""
    path.delete([key for key, _ in path.files() if key != last])
    path.delete([last])


def _objects(build: Callable[[zarr.Group], None]) -> dict[str, bytes]:
    """The objects, by key, of the group that `build` fills."""
    objects: dict[str, Any] = {}
    build(zarr.open_group(MemoryStore(objects), mode="w-", zarr_format=3))
    return {key: content.to_bytes() for key, content in objects.items()}


def _write_missing(path: RemotePath, objects: Mapping[str, bytes]) -> None:
    """Write those of `objects` that are not there; what was read ahead says nothing about that."""
    place = RemotePath.of(str(path))

    def write(key: str) -> None:
        if not (place / key).is_file():
            (place / key).write_bytes(objects[key])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(write, objects):
            pass
