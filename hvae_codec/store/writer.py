"""A store from its creation to its name, wherever it is; see `row_group_writer` for what is written in between.

create_or_resume ──> unfinished store ── write(r) for r in own_pending() ──> finish ──> PATH
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np

from ..errors import StoreError
from ..storage.location import Location, each
from .arrays import marked_digest, shard_key
from .row_group_writer import RowGroupWriter
from .spec import StoreSpec, spec_fingerprint
from .workers import Worker

T = TypeVar("T")

_BESIDE = (".partial", ".replaced", ".locks")
"""What is beside a store of name PATH while it is written: PATH.partial and so on."""


def check_name(path: Location) -> None:
    """Raise `StoreError` if a store of this name would be taken for what another leaves while it is written."""
    if path.name.endswith(_BESIDE):
        raise StoreError(f"{path} has a name that encode needs for unfinished stores; give one without that ending")


@dataclass(frozen=True)
class StoreWriter(ABC):
    """A store that is being written. It can be pickled: several processes may each write row groups of their own."""

    path: Location  # where the finished store will be
    spec: StoreSpec  # what the store is made from
    overwrite: bool = False  # whether `publish` may replace a store at `path`
    worker: Worker = field(default_factory=Worker)  # which row groups are this process's

    @cached_property
    def fingerprint(self) -> str:
        """See `spec_fingerprint`."""
        return spec_fingerprint(self.spec)

    @property
    @abstractmethod
    def unfinished(self) -> Location:
        """Where the store's objects are until it is published."""

    @property
    def row_groups(self) -> int:
        """Row groups of the whole store."""
        return len(self.spec.row_groups)

    def rows(self, row_group: int) -> range:
        """Indices of the images in a row group."""
        return self.spec.row_groups.rows(row_group)

    def own_pending(self) -> list[int]:
        """Row groups of this worker that are not yet committed."""
        return [row_group for row_group in self.pending() if self.worker.owns(row_group)]

    @cached_property
    def row_group_writer(self) -> RowGroupWriter:
        """What writes its row groups, also in other processes."""
        return RowGroupWriter(self.unfinished, self.unfinished_file(self.path), self.fingerprint, self.spec.layout)

    def write(
        self, row_group: int, stored: Mapping[int, np.ndarray], per_image: Mapping[str, np.ndarray] | None = None
    ) -> bool:
        """Write and commit a whole row group, see `RowGroupWriter.write`."""
        rows = self.rows(row_group)
        return self.row_group_writer.write(row_group, stored, per_image, self.spec.names[rows.start : rows.stop])

    def write_per_image(self, row_group: int, per_image: Mapping[str, np.ndarray]) -> None:
        """Write a row group's part of the per-image arrays; `write` does, before it commits the row group."""
        self.row_group_writer.write_per_image(row_group, per_image)

    def take_over(self, source: Location, row_groups: Mapping[int, int], check_source: Callable[[], None]) -> None:
        """Commit row groups, by their number here and there, with their objects in the finished store at `source`.

        That must have the same images there, columns and codec; per-image arrays are not taken. `check_source` is
        called before the row groups are committed, to raise if the source was replaced while it was copied. Raises
        `StoreError` if an object is missing, a digest damaged, or another one after the copy than before. Latents are
        not read: the digests vouch for them here as they do there.
        """
        items = [(f"z{resolution}", self.spec.columns.item(resolution)) for resolution in self.spec.resolutions]
        shards = {
            f"{name}/{shard_key(new, item)}": f"{name}/{shard_key(old, item)}"
            for name, item in items
            for new, old in row_groups.items()
        }

        def digests() -> list[bytes]:
            return each(source, lambda old: _read_marker(source / f"committed/c/{old}"), row_groups.values())

        before = digests()
        self._copy(source, shards)
        check_source()
        if digests() != before:  # a repair may have replaced some of these shards before they were copied, others after
            raise StoreError(f"{source} was repaired while it was copied; run the command again")
        written = zip(row_groups, map(marked_digest, before), strict=True)
        each(self.unfinished, lambda row_group: self.row_group_writer.commit(*row_group), written)

    def _copy(self, source: Location, keys: Mapping[str, str]) -> None:
        """Copy objects, by their key here and in the store at `source`, synced when this returns."""

        def copy(pair: tuple[str, str]) -> None:
            key, original = pair
            _or_missing(source / original, lambda: self.unfinished.copy_from(source / original, key))

        each(self.unfinished if source.folder else source, copy, keys.items())
        self._sync([*keys])

    def publish(self) -> None:
        """Give the finished store its name; `StoreError` if row groups are missing or `path` was taken."""
        if not self.finish():
            missing = f"{len(self.pending())} of {self.row_groups} row groups"
            raise StoreError(f"{missing} are not written yet; run encode again")

    @contextmanager
    def discarded_on(self, error: type[Exception], unless: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Remove the unfinished store on this error, which the same encode meets again; not one of several workers."""
        try:
            yield
        except unless:
            raise
        except error:
            if self.worker.count == 1:
                self._discard()
            raise

    def anew(self) -> Self:
        """Remove what was written of the unfinished store, and begin it again."""
        self._discard()
        return self.create_or_resume(self.path, self.spec, self.overwrite, self.worker)

    # What differs between a folder and a bucket; `path` is the location of the finished store.

    @classmethod
    @abstractmethod
    def create_or_resume(
        cls, path: Any, spec: StoreSpec, overwrite: bool = False, worker: Worker | None = None
    ) -> Self:
        """A writer for a new store at `path`, which continues what an earlier, killed encode of `spec` has written.

        With `overwrite`, that replaces a store at `path`. Several workers may call this at the same time: the first
        creates the store, the others find it. Raises `StoreError` if `path` exists (or, with `overwrite`, is no store
        of this package), or if an unfinished store there is of another encode: a single worker replaces it if it holds
        no row group yet or `overwrite` says so, one of several never does.
        """

    @staticmethod
    @abstractmethod
    def check_target(path: Any, overwrite: bool) -> None:
        """Raise `StoreError` if a store cannot go to `path`: it exists, or is no store that may be overwritten."""

    @staticmethod
    @abstractmethod
    def is_taken(path: Any) -> bool:
        """Whether a store is at `path`, or in a folder anything."""

    @staticmethod
    @abstractmethod
    def unfinished_file(path: Any) -> Location:
        """What is the group's `zarr.json` of the store of `path` until it is published; its folder has the others."""

    @staticmethod
    @abstractmethod
    def locked(path: Any) -> AbstractContextManager[None]:
        """Held while a process writes all that is missing of the store at `path`; `StoreError` if another one does."""

    @staticmethod
    @abstractmethod
    def check_unlocked(path: Any) -> None:
        """Raise `StoreError` if another process writes all that is missing of the store at `path`."""

    @staticmethod
    @abstractmethod
    def finish_swap(path: Any) -> bool:
        """Repair what a kill has left while one store replaced another; whether the new one has the name `path` now."""

    @abstractmethod
    def pending(self) -> list[int]:
        """Row groups that are not yet committed, of all workers."""

    @abstractmethod
    def finish(self) -> bool:
        """Publish if the row groups of all workers are written; whether the store is published now.

        If two workers finish at the same time, one of them publishes and both give True.
        """

    @abstractmethod
    def _discard(self) -> None:
        """Remove the unfinished store."""

    @abstractmethod
    def _sync(self, keys: Sequence[str]) -> None:
        """Return when the objects `keys`, which were copied, survive a power cut."""

    def check_replaceable(self, is_started: bool, is_foreign: bool = False) -> None:
        """Raise `StoreError` if an unfinished store of something else is not to be replaced by this one."""
        if self.worker.count > 1:
            remedy = "give all workers of a store the same, or remove it"
        elif is_foreign or (is_started and not self.overwrite):
            remedy = "remove it" if is_foreign else "remove it or pass --overwrite"
        else:
            return
        raise StoreError(
            f"{self.unfinished} is an unfinished store of other images, another model or other settings; {remedy}"
        )


def _read_marker(marker: Location) -> bytes:
    """An object of `committed`; `StoreError` if it holds no digest."""
    content = _or_missing(marker, marker.read_bytes)
    if not marked_digest(content):
        raise StoreError(f"{marker} is damaged; repair the store first")
    return content


def _or_missing(source: Location, read: Callable[[], T]) -> T:
    """What `read` gives; `StoreError` if the object `source` is not there."""
    try:
        return read()
    except FileNotFoundError:
        raise StoreError(f"{source} is missing from the store; repair the store first") from None
