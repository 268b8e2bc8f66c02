"""Writing a store: created whole, filled row group by row group, resumed after a kill, renamed when finished.

    create_or_resume ──> PATH.partial ── write(r) for r in pending() ──> publish ──> PATH

A row group is on disk before its digest is, so a digest in `committed` vouches for the row group. What a resumed encode
leaves is byte for byte what an unbroken one would.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr

from ..errors import StoreError
from .layout import (
    ATTRIBUTE,
    WRITE_ALL,
    StoreSpec,
    create_arrays,
    row_group_digest,
    shard_key,
    spec_fingerprint,
    store_attributes,
    unstorable,
    write_table,
)

_OUR_ENTRIES = re.compile(r"(z|step|dimension)\d+|name|label|committed|zarr(\.[0-9a-f]+)?\.(json|partial)")


@dataclass(frozen=True)
class StoreWriter:
    """An unfinished store. It can be pickled: several processes may each write row groups of their own."""

    path: Path
    """Where the finished store will be."""
    spec: StoreSpec
    """What the store is made from."""
    overwrite: bool = False
    """Whether `publish` may replace a store at `path`."""

    @classmethod
    def create_or_resume(cls, path: str | Path, spec: StoreSpec, overwrite: bool = False) -> StoreWriter:
        """A writer for a new store at `path`, going on with what an earlier, killed encode of `spec` has written.

        With `overwrite`, a store at `path` stays readable until the new one is published. Raises `StoreError` where
        `path` exists (or, with `overwrite`, is no store of this package), or where an unfinished store there holds
        row groups of another encode.
        """
        writer = cls(Path(path), spec, overwrite)
        check_target(writer.path, overwrite)
        found = _fingerprint_at(writer.partial)
        if found == spec_fingerprint(spec):
            _sweep(writer)
            return writer
        if found is not None and not overwrite and any(writer.partial.glob("committed/c/*")):
            raise StoreError(
                f"{writer.partial} is an unfinished store of other images, another model or other settings; "
                "remove it or pass --overwrite"
            )
        _remove_unfinished(writer.partial)
        _create(writer)
        return writer

    @property
    def partial(self) -> Path:
        """Where the store is until it is published."""
        return partial_path(self.path)

    @property
    def images_per_row_group(self) -> int:
        """Images in each row group but the last, which may have fewer."""
        return self.spec.shard

    @property
    def row_groups(self) -> int:
        """Row groups of the whole store."""
        return -(-len(self.spec.names) // self.spec.shard)

    def rows(self, row_group: int) -> range:
        """Indices of the images in a row group."""
        if not 0 <= row_group < self.row_groups:
            raise StoreError(f"there is no row group {row_group}; the store has {self.row_groups}, counted from 0")
        first = row_group * self.spec.shard
        return range(first, min(first + self.spec.shard, len(self.spec.names)))

    def pending(self) -> list[int]:
        """Row groups that are not yet committed."""
        markers = _open_array(self.partial, "committed")
        written = {path.name for path in self.partial.glob("committed/c/*")}
        return [r for r in range(self.row_groups) if str(r) not in written or not _marker(markers, r)]

    def write(self, row_group: int, stored: Mapping[int, np.ndarray]) -> None:
        """Write and commit a whole row group: resolution to stored numbers [rows, columns, ...].

        Raises `StoreError` where shapes or types are not the store's, or a number is NaN, infinite or out of range.
        An `OSError` (a full disk) leaves the row group uncommitted: the same encode can go on later.
        """
        rows = self.rows(row_group)
        self._check(rows, stored)
        for resolution in self.spec.resolutions:
            _open_array(self.partial, f"z{resolution}")[rows.start : rows.stop] = stored[resolution]
            key = shard_key(row_group, self.spec.columns.item(resolution))
            _sync_branch(self.partial / f"z{resolution}", key)
        digest = row_group_digest([stored[resolution] for resolution in self.spec.resolutions])
        _open_array(self.partial, "committed")[row_group] = np.uint32(digest)
        _sync_branch(self.partial / "committed", f"c/{row_group}")

    def write_images(self, name: str, values: np.ndarray) -> None:
        """Write a per-image float32 array such as `rate` or `distortion`, [images], whole."""
        values = np.asarray(values, dtype=np.float32)
        if values.shape != (len(self.spec.names),):
            raise StoreError(f"{name} has shape {values.shape}; it must be one number an image, {len(self.spec.names)}")
        if np.isnan(values).any():
            raise StoreError(f"{name} of image {int(np.isnan(values).argmax())} is not a number; check the image")
        if not re.fullmatch(r"[a-z][a-z_]*", name) or _OUR_ENTRIES.fullmatch(name):
            raise StoreError(f"a per-image array cannot be called {name!r}; choose another word of small letters")
        write_table(zarr.open_group(self.partial, mode="r+"), name, values, "image")

    def publish(self) -> None:
        """Rename the finished store to `path`; `StoreError` where row groups are missing or `path` was taken."""
        pending = self.pending()
        if pending:
            raise StoreError(f"{len(pending)} of {self.row_groups} row groups are not written yet; run encode again")
        check_target(self.path, self.overwrite)
        _sync_tree(self.partial)
        replaced = self.path.with_name(self.path.name + ".replaced")
        if self.path.exists():
            _remove_unfinished(replaced)
            self.path.rename(replaced)
        self.partial.rename(self.path)
        _sync(self.path.parent)
        _remove_unfinished(replaced)

    def _check(self, rows: range, stored: Mapping[int, np.ndarray]) -> None:
        if sorted(stored) != list(self.spec.resolutions):
            raise StoreError(f"latents are of resolutions {sorted(stored)}; the store's are {self.spec.resolutions}")
        for resolution, numbers in stored.items():
            shape = (len(rows), *self.spec.columns.item(resolution))
            if numbers.shape != shape or numbers.dtype != self.spec.codec.dtype:
                raise StoreError(
                    f"latents at resolution {resolution} are {numbers.dtype} {numbers.shape}; "
                    f"they must be {self.spec.codec.dtype} {shape}"
                )
            wrong = np.flatnonzero(unstorable(numbers))
            if len(wrong):
                image = rows[int(wrong[0])]
                raise StoreError(
                    f"image {image} ({self.spec.names[image]}) has a latent at resolution {resolution} that is not a "
                    "number or out of range; check the image and the model"
                )


def partial_path(path: Path) -> Path:
    """Where the store of `path` is until it is published."""
    return path.with_name(path.name + ".partial")


# --- folders ---------------------------------------------------------------------------------------------------------


def _create(writer: StoreWriter) -> None:
    writer.partial.mkdir(parents=True)
    group = zarr.open_group(writer.partial, mode="w-", zarr_format=3)
    create_arrays(group, writer.spec)
    # Last, so that a kill before it is seen as such: without the attribute the folder is made anew.
    group.update_attributes({ATTRIBUTE: store_attributes(writer.spec, group)})
    _sync_tree(writer.partial)
    _sync(writer.partial.parent)


def check_target(path: Path, overwrite: bool) -> None:
    """Raise `StoreError` where a store cannot go to `path`: it exists, or is no store that may be overwritten."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise StoreError(f"{path} exists; give another name or pass --overwrite")
    empty = path.is_dir() and not any(path.iterdir())
    if path.is_symlink() or not (empty or _fingerprint_at(path)):
        raise StoreError(f"{path} is no store of this package, so it is not overwritten; give another name")


def _fingerprint_at(folder: Path) -> str | None:
    """The fingerprint of the store at `folder`; None where there is none, or one killed while it was created."""
    if not (folder / "zarr.json").is_file():
        return None
    try:
        attributes: Any = zarr.open_group(folder, mode="r").attrs.get(ATTRIBUTE)
        return str(attributes["fingerprint"])
    except (ValueError, KeyError, TypeError, LookupError):
        return None


def _remove_unfinished(folder: Path) -> None:
    """Remove a folder of ours; `StoreError` where it holds anything that no store of this package does."""
    if not os.path.lexists(folder):
        return
    ours = folder.is_dir() and not folder.is_symlink()
    if not ours or not (_fingerprint_at(folder) or all(_OUR_ENTRIES.fullmatch(e.name) for e in folder.iterdir())):
        raise StoreError(f"{folder} is in the way and is no store of this package; move it and run encode again")
    shutil.rmtree(folder)


def _sweep(writer: StoreWriter) -> None:
    """Remove what a killed encode has left besides committed row groups."""
    for row_group in writer.pending():
        for resolution in writer.spec.resolutions:
            shard = writer.partial / f"z{resolution}" / "c" / str(row_group)
            if shard.exists():
                shutil.rmtree(shard)
        (writer.partial / "committed" / "c" / str(row_group)).unlink(missing_ok=True)
    for leftover in writer.partial.rglob("*.partial"):
        leftover.unlink()


def _open_array(folder: Path, name: str) -> zarr.Array:
    array = zarr.open_array(folder / name, mode="r+")
    return cast(zarr.Array, array.with_config(WRITE_ALL))


def _marker(markers: zarr.Array, row_group: int) -> int:
    try:
        return int(cast(Any, markers[row_group]))
    except ValueError:  # a power cut has left a torn file: the row group was not committed
        return 0


def _sync_branch(root: Path, key: str) -> None:
    """Flush the object `key` below `root`, and the folders between them, to the disk."""
    path = root / key
    _sync(path)
    while path != root:
        path = path.parent
        _sync(path)


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        _sync(path)
    _sync(root)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders, and flushes them itself
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
