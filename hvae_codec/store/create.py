"""A new store without latents: its arrays, tables and metadata, in a group in a folder or in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import zarr
from zarr.storage import MemoryStore

from ..texts.sequence import blocks_of
from .metadata import ATTRIBUTE, COPY, COPY_HOLDER, StoreMetadata, array_checksum
from .schema import TABLE_CHUNK, WEIGHTS
from .spec import StoreSpec


def fill_group(group: zarr.Group, spec: StoreSpec) -> None:
    """Make the empty `group` a store without latents; the metadata come last, so what has them is complete."""
    _write_metadata(group, spec, create_arrays(group, spec))


def _write_metadata(group: zarr.Group, spec: StoreSpec, arrays: Mapping[str, zarr.Array]) -> None:
    metadata = spec.metadata({name: array_checksum(array.metadata.to_dict()) for name, array in arrays.items()})
    write_copy(group, metadata)
    group.update_attributes({ATTRIBUTE: metadata.to_attribute()})


def create_arrays(group: zarr.Group, spec: StoreSpec) -> dict[str, zarr.Array]:
    """Create all arrays, latents and digests empty, and write the tables; the arrays by name."""
    arrays = _create_empty(group, spec)
    for resolution in spec.resolutions:
        arrays[f"step{resolution}"][:] = np.asarray(spec.steps[resolution], np.float32)
    for name, table in spec.columns.tables().items():
        arrays[name][:] = table
    for name, texts in (("name", spec.names), ("label", spec.labels), ("split", spec.splits)):
        if texts is not None:
            _write_texts(arrays[name], texts)
    if spec.file_bytes is not None:
        arrays["file_bytes"][:] = spec.file_bytes
    if spec.weights:
        arrays[WEIGHTS][:] = np.frombuffer(spec.weights, np.uint8)
    return arrays


def _create_empty(group: zarr.Group, spec: StoreSpec) -> dict[str, zarr.Array]:
    return {name: schema.create(group, name) for name, schema in spec.schema.items()}


def write_copy(group: zarr.Group, metadata: StoreMetadata) -> None:
    """Write the second copy of the metadata: as text, which a reader of the array need not parse."""
    text = json.dumps(metadata.to_attribute(), separators=(",", ":"))
    zarr.open_array(group.store_path / COPY_HOLDER, mode="r+").update_attributes({COPY: text})


def _write_texts(table: zarr.Array, texts: Sequence[str]) -> None:
    """Chunk by chunk, so that few are copied."""
    for number, block in enumerate(blocks_of(texts, TABLE_CHUNK)):
        first = number * TABLE_CHUNK
        table[first : first + len(block)] = np.array(block, dtype=np.dtypes.StringDType())


def objects_of(spec: StoreSpec) -> dict[str, bytes]:
    """The objects of the store of `spec` without latents, by key."""
    return _in_memory(lambda group: fill_group(group, spec))


def documents_of(spec: StoreSpec) -> dict[str, bytes]:
    """Those of these objects that are metadata, `zarr.json` and `<array>/zarr.json`, without making the tables."""
    return _in_memory(lambda group: _write_metadata(group, spec, _create_empty(group, spec)))


def _in_memory(fill: Callable[[zarr.Group], None]) -> dict[str, bytes]:
    objects: dict[str, zarr.core.buffer.Buffer] = {}
    fill(zarr.open_group(MemoryStore(objects), mode="w-", zarr_format=3))
    return {key: content.to_bytes() for key, content in objects.items()}
