"""Writes row groups of an unfinished store, each checked, whole, and committed by its digest; needs no names.

    write(r, stored) ── check ── z1, z4, ... ── synced ── committed, unless it is there ── synced

A row group's objects are synced before its digest is written, so a digest in `committed` vouches for the row group. It
is written once: whoever comes second, such as a worker that was only thought dead, is notified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import zarr
from zarr.storage import MemoryStore

from ..errors import StoreError
from ..storage.location import Location, each
from .arrays import (
    marked_digest,
    marker_object,
    row_group_digest,
    shard_key,
    shard_object,
    unstorable,
    vector_object,
)
from .layout import StoreLayout
from .metadata import fingerprint_in
from .narrowing import narrowed
from .schema import CHECKSUM, ArraySchema, missing_records


@dataclass(frozen=True)
class RowGroupWriter:
    """Writes row groups of an unfinished store; other processes make one of an `UnfinishedReference`."""

    unfinished: Location  # where the store's objects are
    document: Location  # what has its fingerprint until it is published
    fingerprint: str
    layout: StoreLayout

    def rows(self, row_group: int) -> range:
        """Numbers of the images in a row group."""
        return self.layout.row_groups.rows(row_group)

    @property
    def is_ours(self) -> bool:
        """Whether the unfinished store is still there, and is not of something else."""
        return fingerprint_in(self.document.uncached) == self.fingerprint

    def check_ours(self) -> None:
        """Raise `StoreError` if the unfinished store is not there any more, so that nothing more may be written."""
        if not self.is_ours:
            raise StoreError(f"{self.unfinished} was removed or replaced while it was written; run the same again")

    def write(
        self,
        row_group: int,
        stored: Mapping[int, np.ndarray],
        per_image: Mapping[str, np.ndarray] | None = None,
        names: Sequence[str] | None = None,
    ) -> bool:
        """Write and commit a whole row group: resolution to stored numbers [rows, columns, ...].

        stored: in the type that the codec gives, or that of its array
        per_image: name to the numbers [rows] of each array that the layout says is `of_row_groups`
        names: of its images, for errors

        Returns False if it was committed before, when nothing is written, or meanwhile: then what is there now may be
        another's than what the digest is of. Raises `CodeRangeError` if a code is too large for the type of its array,
        `StoreError` if shapes or types are not the store's, a number is NaN, infinite or out of range, or the
        unfinished store is not there any more. An `OSError` (a full disk) or `UnreachableError` leaves the row group
        uncommitted: the same encode can continue later.
        """
        self.check_ours()
        rows = self.rows(row_group)
        self._check(rows, stored, names)
        stored = narrowed(stored, self.layout.dtypes, rows, names)
        if self.digest(row_group):  # who was only thought dead must not write over what is vouched for
            return False
        self.write_per_image(row_group, per_image or {})
        return self._write_latents(row_group, stored)

    def rewrite(self, row_group: int, stored: Mapping[int, np.ndarray]) -> None:
        """Write the latents of a committed row group anew; per-image arrays stay.

        A kill on the way leaves it uncommitted. Raises what `write` does.
        """
        self._check(self.rows(row_group), stored, None)
        self.uncommit(row_group)
        self._write_latents(row_group, narrowed(stored, self.layout.dtypes, self.rows(row_group)))

    def _write_latents(self, row_group: int, stored: Mapping[int, np.ndarray]) -> bool:
        each(self.unfinished, lambda resolution: self._write_shard(resolution, row_group, stored[resolution]), stored)
        return self.commit(row_group, row_group_digest([stored[resolution] for resolution in self.layout.resolutions]))

    def commit(self, row_group: int, digest: int) -> bool:
        """Write the digest of a row group whose objects are there; False, and nothing done, if it has one."""
        self.check_ours()  # whatever another encode was doing meanwhile, no digest vouches for it
        key, content = _marker_key(row_group), marker_object(digest)
        if self.unfinished.create(key, content):
            return True
        if self.digest(row_group):
            return False
        self.unfinished.write(key, content)  # in place of one that a power cut has torn
        return True

    def digest(self, row_group: int) -> int:
        """Read the digest of a row group; 0 if it was not committed."""
        try:
            return marked_digest((self.unfinished / _marker_key(row_group)).uncached.read_bytes())
        except FileNotFoundError:
            return 0

    def uncommit(self, row_group: int) -> None:
        """Remove the digest of a row group, so that it is written again; raises `StoreError` like `check_ours`."""
        self.check_ours()  # in a bucket, the published store has the same objects
        self.unfinished.delete([_marker_key(row_group)])

    def write_per_image(self, row_group: int, per_image: Mapping[str, np.ndarray]) -> None:
        """Write a row group's part of the per-image arrays; `write` does, before it commits the row group."""
        expected = sorted(self.layout.of_row_groups)
        if sorted(per_image) != expected:
            raise StoreError(f"per-image numbers are {sorted(per_image)}; the store's are {expected}")
        for name, values in per_image.items():
            _check_per_image(name, values, self.rows(row_group))
            schema = self.layout.schema[name]
            numbers = values.astype(schema.dtype)
            self.unfinished.write(f"{name}/c/{row_group}", vector_object(numbers, schema.chunks[0], schema.fill_value))

    def array(self, name: str) -> zarr.Array:
        """Open an array of the unfinished store, for reading."""
        return zarr.open_array(self.unfinished.zarr_location() / name, mode="r", zarr_format=3)

    def _write_shard(self, resolution: int, row_group: int, numbers: np.ndarray) -> None:
        """Write a row group's numbers in the array of one resolution, synced when this returns."""
        schema = self.layout.schema[f"z{resolution}"]
        if len(numbers) < self.layout.row_group_size:  # zarr knows what a shard has beyond the last image
            content = _short_shard(schema, numbers)
        else:
            content = shard_object(numbers, schema.chunks[0], self.layout.packing)
        self.unfinished.write(f"z{resolution}/{shard_key(row_group, numbers.shape[1:])}", content)

    def _check(self, rows: range, stored: Mapping[int, np.ndarray], names: Sequence[str] | None) -> None:
        if sorted(stored) != list(self.layout.resolutions):
            raise StoreError(f"latents are of resolutions {sorted(stored)}; the store's are {self.layout.resolutions}")
        for resolution, numbers in stored.items():
            shape, dtype = (len(rows), *self.layout.columns.item(resolution)), self.layout.codec.dtype
            if numbers.shape != shape or numbers.dtype not in (dtype, self.layout.dtypes[resolution]):
                raise StoreError(
                    f"latents at resolution {resolution} are {numbers.dtype} {numbers.shape}; they must be {dtype} "
                    f"{shape}"
                )
            wrong = np.flatnonzero(unstorable(numbers))
            if len(wrong):
                name = f" ({names[int(wrong[0])]})" if names is not None else ""
                raise StoreError(
                    f"image {rows[int(wrong[0])]}{name} has a latent at resolution {resolution} that is not a number "
                    "or out of range; check the image and the model"
                )


def _marker_key(row_group: int) -> str:
    return f"committed/c/{row_group}"


def _short_shard(schema: ArraySchema, numbers: np.ndarray) -> bytes:
    """What zarr writes for the last shard of an array, which has fewer images than the others."""
    objects: dict[str, zarr.core.buffer.Buffer] = {}
    group = zarr.open_group(MemoryStore(objects), mode="w-", zarr_format=3)
    replace(schema, shape=numbers.shape).create(group, "z")[:] = numbers
    return objects[f"z/{shard_key(0, numbers.shape[1:])}"].to_bytes()


def _check_per_image(name: str, values: np.ndarray, rows: range) -> None:
    if values.shape != (len(rows),):
        raise StoreError(f"{name} has shape {values.shape}; it must be one number per image, {len(rows)}")
    if name == CHECKSUM and (values.dtype.kind not in "iu" or missing_records(name, values).any()):
        raise StoreError(f"checksums are {values.dtype}, {values.min()} to {values.max()}; give CRC-32, uint32")
    if np.isnan(values).any():
        raise StoreError(f"{name} of image {rows[int(np.isnan(values).argmax())]} is not a number; check the image")
