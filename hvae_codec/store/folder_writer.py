"""Writing a store: created whole, filled row group by row group, resumed after a kill, renamed when finished.

    create_or_resume ──> PATH.partial ── write(r) for r in own_pending() ──> finish ──> PATH

A row group is on disk before its digest is, so a digest in `committed` vouches for the row group. What a resumed encode
leaves is byte for byte what an unbroken one would. Several workers do this at the same time: each writes the row groups
that it owns, and whoever finds all of them written publishes the store.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import zarr

from ..errors import StoreError, UsageError
from ..storage.files import sync, sync_tree
from ..storage.folder import FolderLocation
from ..storage.swap import FolderSwap
from .create import fill_group
from .locks import check_unlocked, lock_folder, publish_lock, remove_locks, write_lock
from .metadata import fingerprint_in
from .spec import StoreSpec
from .workers import Worker
from .writer import StoreWriter, check_name

OUR_ENTRIES = re.compile(
    r"(z|step|dimension)\d+|name|label|split|file_bytes|checksum|committed|model|rate|distortion|sketch"
    r"|zarr(\.[0-9a-f]+)?\.(json|partial)"
)
"""Names of what a store of this package has in its folder."""


@dataclass(frozen=True)
class FolderStoreWriter(StoreWriter):
    """An unfinished store in a folder."""

    path: FolderLocation

    @classmethod
    def create_or_resume(
        cls, path: str | Path, spec: StoreSpec, overwrite: bool = False, worker: Worker | None = None
    ) -> FolderStoreWriter:
        """See `StoreWriter`; with `overwrite`, a store at `path` stays readable until the new one is published."""
        writer = cls(FolderLocation(path), spec, overwrite, worker or Worker())
        writer.finish_swap(writer.path)
        writer.check_target(writer.path, overwrite)
        while fingerprint_at(writer.unfinished) != writer.fingerprint:
            if os.path.lexists(writer.unfinished):
                if (found := fingerprint_at(writer.unfinished)) == writer.fingerprint:
                    break  # another worker has created it between the two looks
                writer.check_replaceable(found is not None and any(writer.unfinished.glob("committed/c/*")))
                _remove_unfinished(writer.unfinished)  # only what was seen: another worker may create it right now
            _create(writer)
        return writer

    @staticmethod
    def check_target(path: Path, overwrite: bool) -> None:
        """Compare with `StoreWriter`, which says what each of these does."""
        check_name(FolderLocation(path))
        check_no_link(path)
        if not path.exists():
            return
        if not overwrite:
            raise StoreError(f"{path} exists; give another name or pass --overwrite")
        empty = path.is_dir() and not any(path.iterdir())
        if not (empty or fingerprint_at(path)):
            raise StoreError(f"{path} is no store of this package, so it is not overwritten; give another name")

    @staticmethod
    def is_taken(path: Path) -> bool:  # noqa: D102
        return os.path.lexists(path)

    @staticmethod
    def unfinished_file(path: Path) -> FolderLocation:  # noqa: D102
        return FolderLocation(_swap(path).partial / "zarr.json")

    @staticmethod
    def locked(path: Path) -> AbstractContextManager[None]:  # noqa: D102
        return write_lock(path)

    @staticmethod
    def check_unlocked(path: Path) -> None:  # noqa: D102
        check_unlocked(path)

    @staticmethod
    def finish_swap(path: Path) -> bool:  # noqa: D102
        if not _swap(path).is_unfinished:
            return False
        with publish_lock(path):
            return _swap(path).finish()

    @property
    def unfinished(self) -> FolderLocation:  # noqa: D102
        return FolderLocation(_swap(self.path).partial)

    def own_pending(self) -> list[int]:
        """Row groups of this worker that are not yet committed."""
        return list(self._uncommitted(range(self.worker.number, self.row_groups, self.worker.count)))

    def pending(self) -> list[int]:  # noqa: D102
        return list(self._uncommitted(range(self.row_groups)))

    def _uncommitted(self, row_groups: range) -> Iterator[int]:
        self.row_group_writer.check_ours()
        return (row_group for row_group in row_groups if not self.row_group_writer.digest(row_group))

    def finish(self) -> bool:
        """Rename the store if the row groups of all workers are written; whether it has its name now."""
        with publish_lock(self.path):
            if fingerprint_at(self.unfinished) != self.fingerprint == fingerprint_at(self.path):
                return True
            if next(self._uncommitted(range(self.row_groups)), None) is not None:
                return False
            self.check_target(self.path, self.overwrite)
            self.unfinished.remove_partial_files()  # of killed writers
            sync(self.unfinished)
            _swap(self.path).take_name()
        for leftover in _creations(self.path):
            with suppress(FileNotFoundError):  # a worker that was too late to create the store removes its own
                _remove_unfinished(leftover)
        remove_locks(self.path)
        return True

    def _discard(self) -> None:
        doomed = self.path.with_name(_creation_name(self.path))
        self.unfinished.rename(doomed)  # first: whoever still writes finds nothing to add to
        _remove_unfinished(doomed)

    def _sync(self, keys: Sequence[str]) -> None:
        files = [self.unfinished / key for key in keys]
        folders = {folder for file in files for folder in file.parents if folder.is_relative_to(self.unfinished)}
        for path in (*files, *folders):
            sync(path)


def check_no_link(path: Path) -> None:
    """Raise `UsageError` if `path` is a link: the store would replace it, not what it points to."""
    if path.is_symlink():
        raise UsageError(f"{path} is a link; give the folder that it points to, {path.resolve()}")


def _create(writer: FolderStoreWriter) -> None:
    """Create the unfinished store, unless another worker is faster: whole, under a name of its own, then renamed."""
    own = writer.path.with_name(_creation_name(writer.path))
    own.mkdir(parents=True)
    try:
        fill_group(zarr.open_group(own, mode="w-", zarr_format=3), writer.spec)
        sync_tree(own)
        try:
            own.rename(writer.unfinished)
        except OSError:
            if not writer.unfinished.exists():
                raise
        sync(writer.unfinished.parent)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _creation_name(path: Path) -> str:
    return f"{path.name}.{uuid.uuid4().hex}.creating"


def _creations(path: Path) -> list[Path]:
    """What workers killed while they created or discarded the store of `path` have left."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{32}\.creating")
    return [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]


def _swap(path: Path) -> FolderSwap:
    return FolderSwap(path, lock_folder(path) / "swap", _identity, _remove_unfinished)


def _identity(folder: Path) -> str | None:
    """Tell the store at `folder` from another one, also of the same fingerprint: of the same images, one edited."""
    fingerprint = fingerprint_at(folder)
    return fingerprint and f"{fingerprint} {folder.stat().st_ino}"  # which a renamed folder keeps


def fingerprint_at(folder: Path) -> str | None:
    """The fingerprint of the store at `folder`; None if there is none, or one killed while it was created."""
    return fingerprint_in(folder / "zarr.json")


def _remove_unfinished(folder: Path) -> None:
    """Remove a folder of ours; `StoreError` if it holds anything that no store of this package does."""
    if not os.path.lexists(folder):
        return
    ours = folder.is_dir() and not folder.is_symlink()
    if not ours or not (fingerprint_at(folder) or all(OUR_ENTRIES.fullmatch(e.name) for e in folder.iterdir())):
        raise StoreError(f"{folder} is in the way and is no store of this package; move it and run encode again")
    (folder / "zarr.json").unlink(missing_ok=True)  # first: what a kill leaves must not be taken for a store
    shutil.rmtree(folder)
