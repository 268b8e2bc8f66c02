"""Wider codes in an unfinished store: its row groups are rewritten in place; a kill costs one at most.

    document    {16: int8}   {16: int16}, and that row groups were int8 ────────────────────> {16: int16}
    z16         int8         metadata of int16 ── row group 0 ── row group 1 ── ... int16 ──> int16

The document, which says whose store it is, comes first: whoever writes row groups of one byte stops then. A row group's
digest is of its elements in the type that they have, so it tells which ones are rewritten already. What is left in the
end is byte for byte the store that had the wider types from the start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from ..progress import Progress
from ..storage.location import Location
from .arrays import row_group_digest, shard_key
from .compressors import BLOSC
from .create import documents_of
from .damage import UnreadableError, reading
from .layout import StoreLayout
from .metadata import attribute_of, fingerprint_of
from .quantiser import CODE_TYPES
from .row_group_writer import RowGroupWriter
from .schema import ArraySchema
from .spec import StoreSpec, spec_fingerprint
from .writer import StoreWriter

Dtypes = Mapping[int, str]
"""Types of latent arrays by resolution."""

NOTE = "hvae_codec_widening"
"""Attribute of an unfinished store that is being rewritten: the types that its row groups had before."""


@dataclass(frozen=True)
class Begun:
    """A store that was begun from a specification, or from the same with other types of codes."""

    spec: StoreSpec  # with the types that it has
    before: Dtypes | None  # types of row groups that a kill left to be rewritten; None: all have those of `spec`

    def wanted(self, dtypes: Dtypes) -> Dtypes:
        """The wider of its type and that of `dtypes`, for each array."""
        return {r: max(own, dtypes[r], key=CODE_TYPES.index) for r, own in self.spec.array_dtypes.items()}


def begun_from(document: Location, spec: StoreSpec) -> Begun | None:
    """What was begun from `spec`, whose `zarr.json` or `unfinished.json` is at `document`; None if it is another store.

    Also None if there is none, or if its latents have types that never change.
    """
    try:
        content = document.uncached.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = attribute_of(content) or {}
    dtypes = _dtypes(found.get("dtypes"), spec)
    if dtypes is None or found.get("packing") != spec.packing or spec.packing == BLOSC:
        return None
    begun = replace(spec, dtypes=dtypes)
    if spec_fingerprint(begun) != fingerprint_of(content):
        return None
    return Begun(begun, _dtypes(json.loads(content)["attributes"].get(NOTE), spec))


def _dtypes(found: Any, spec: StoreSpec) -> Dtypes | None:
    """Types of codes as they stand in a store's metadata; None if they are not those of latents of `spec`."""
    if not isinstance(found, Mapping) or sorted(found) != sorted(map(str, spec.resolutions)):
        return None
    return {int(r): dtype for r, dtype in found.items()} if {*found.values()} <= {*CODE_TYPES} else None


def widen(
    writer: StoreWriter, dtypes: Dtypes, *, before: Dtypes | None = None, progress: Progress | None = None
) -> StoreWriter:
    """Rewrite the unfinished store with arrays of `dtypes`, which hold what they held; returns what goes on with it.

    `before` are types that a kill left row groups in. Row groups that are damaged are not committed any more.
    `progress` is called with the images looked at and those to look at. Raises `StoreError` if somebody else has
    replaced the store, `OSError` on a full disk: the same call, with `before`, continues. Nobody else may write it.
    """
    writer.row_group_writer.check_ours()
    was = before or writer.spec.array_dtypes
    wide: StoreWriter = replace(writer, spec=replace(writer.spec, dtypes=dict(dtypes)))
    documents = documents_of(wide.spec)
    document, name = documents.pop("zarr.json"), wide.unfinished_file(wide.path).name
    wide.unfinished.write(name, _noted(document, was))
    for key, content in documents.items():
        if (wide.unfinished / key).uncached.read_bytes() != content:
            wide.unfinished.write(key, content)
    _rewrite(wide, replace(wide.spec.layout, dtypes=was), progress)
    wide.row_group_writer.check_ours()  # in a bucket, another process may have done the rest, and published it
    wide.unfinished.write(name, document)
    return wide.create_or_resume(wide.path, wide.spec, wide.overwrite, wide.worker)


def _noted(document: bytes, dtypes: Dtypes) -> bytes:
    whole = json.loads(document)
    whole["attributes"][NOTE] = {str(r): dtype for r, dtype in dtypes.items()}
    return json.dumps(whole).encode()


def _rewrite(writer: StoreWriter, before: StoreLayout, progress: Progress | None) -> None:
    """Rewrite the committed row groups that are as the layout `before` says."""
    pending = {*writer.pending()}
    committed = [row_group for row_group in range(writer.row_groups) if row_group not in pending]
    done, total = 0, sum(len(writer.rows(row_group)) for row_group in committed)
    for row_group in committed:
        _rewrite_row_group(writer.row_group_writer, row_group, before)
        done += len(writer.rows(row_group))
        if progress is not None:
            progress(done, total)


def _rewrite_row_group(writer: RowGroupWriter, row_group: int, before: StoreLayout) -> None:
    numbers = _committed(writer, row_group, before)
    if numbers is not None:
        writer.rewrite(row_group, {r: part.astype(writer.layout.dtypes[r]) for r, part in numbers.items()})
    if _committed(writer, row_group, writer.layout) is None:
        writer.uncommit(row_group)  # damaged: it is encoded again


def _committed(writer: RowGroupWriter, row_group: int, layout: StoreLayout) -> dict[int, NDArray] | None:
    """Read the numbers of a row group as `layout` has them; None if they are not those that its digest is of."""
    rows, numbers = len(writer.rows(row_group)), {}
    for resolution in layout.resolutions:
        schema = layout.schema[f"z{resolution}"]
        shard = writer.unfinished / f"z{resolution}" / shard_key(row_group, schema.shape[1:])
        try:
            numbers[resolution] = reading(_read_shard, shard, replace(schema, shape=(rows, *schema.shape[1:])))
        except UnreadableError:
            return None
    return numbers if row_group_digest([*numbers.values()]) == writer.digest(row_group) else None


def _read_shard(file: Location, schema: ArraySchema) -> NDArray:
    """Read the only shard of an array, whose metadata are not those beside it."""
    objects: dict[str, Any] = {}
    array = schema.create(zarr.open_group(MemoryStore(objects), mode="w-", zarr_format=3), "z")
    objects[f"z/{shard_key(0, schema.shape[1:])}"] = Buffer.from_bytes(file.uncached.read_bytes())
    return np.asarray(array[:])
