"""What each array of a store is: one description a kind, which creating, opening, verifying and repairing all read.

    store_schema ──> {"z16": ArraySchema, "step16": ArraySchema, "name": ArraySchema, "committed": ArraySchema, ...}
    schema.create(group, "z16")     the array, empty
    schema.faults(array)            what is wrong with its metadata
    chunk_files(array)              "c/0/0/0/0", "c/1/0/0/0", ...: the files that it must have

In zarr a file that is missing reads as fill values, without an error. So whoever verifies a store looks at its files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from .arrays import VECTOR_LEVEL, chunk_length
from .columns import Columns
from .compressors import BLOSC, compressor
from .quantiser import Codec, missing_value
from .rowgroups import RowGroups

NO_TEXT = "\uffff"
"""Fill value of names and labels, a character that text never holds. (Numpy takes NUL for an empty string.)"""

IMAGE_TABLES = ("name", "label", "split", "file_bytes")
"""Tables with an element per image, which are written whole when the store is created."""
RECORDS = ("split", "file_bytes", "checksum")
"""What the format has from version 4 on: what an image is for, the bytes of its file, their CRC-32."""
CHECKSUM = "checksum"

TABLE_CHUNK = 65536  # entries in a chunk of a table

WEIGHTS = "model"  # the array of the weights that the store carries of its model, as the bytes of a safetensors file
WEIGHTS_CHUNK = 4 * 2**20  # bytes in a chunk of weights, which do not compress

WRITE_ALL: Any = {"write_empty_chunks": True}
"""Without it zarr drops chunks that hold fill values only, and they read back as if they had never been written."""


@dataclass(frozen=True, kw_only=True)
class ArraySchema:
    """What an array must be."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str  # numpy's name; `str` for text
    fill_value: Any  # what elements read as that were never written, or are lost
    dimension_names: tuple[str, ...]
    compressors: Sequence[Any]
    filters: Sequence[Any] = ()
    serializer: Any = "auto"  # what makes bytes of elements
    shards: tuple[int, ...] | None = None
    write_all: bool = True  # whether chunks that hold fill values only are written

    def create(self, group: zarr.Group, name: str) -> zarr.Array:
        """Make the array in `group`, its elements not written yet."""
        return group.create_array(
            name,
            shape=self.shape,
            chunks=self.chunks,
            shards=self.shards,
            dtype=self.dtype,
            fill_value=self.fill_value,
            filters=self.filters or "auto" if self.shards is None else self.filters,
            serializer=self.serializer,
            compressors=self.compressors,
            dimension_names=self.dimension_names,
            overwrite=True,
            config=WRITE_ALL if self.write_all else None,
        )

    def faults(self, array: zarr.Array) -> Iterator[str]:
        """What is wrong with `array`'s metadata, each to be read after the name of its file."""
        dtype = "str" if array.dtype.kind == "T" else str(array.dtype)
        names = dimension_names(array)
        if array.shape != self.shape:
            yield f"has the shape {list(array.shape)}, not {list(self.shape)}"
        if dtype != self.dtype:
            yield f"holds {dtype}, not {self.dtype}"
        elif not _same(array.fill_value, self.fill_value):
            yield f"has the fill value {_shown(array.fill_value)}, not {_shown(self.fill_value)}"
        if names != self.dimension_names:
            yield f"has the dimensions {', '.join(map(str, names))}, not {', '.join(self.dimension_names)}"


def dimension_names(array: zarr.Array) -> tuple[str, ...]:
    """Names of the axes of `array`; none if its metadata name none."""
    return tuple(getattr(array.metadata, "dimension_names", None) or ())


def _shown(value: Any) -> str:
    return ascii(value) if isinstance(value, str) else f"{value}"


def _same(value: Any, other: Any) -> bool:
    if isinstance(other, str):
        return str(value) == other
    return bool(np.array_equal(np.asarray(value, np.float64), np.asarray(other, np.float64), equal_nan=True))


def store_schema(
    columns: Columns,
    codec: Codec,
    row_groups: RowGroups,
    chunk_bytes: int,
    per_image: Sequence[str] = (),
    weights: int = 0,
    *,
    has_records: bool = False,
    packing: str = BLOSC,
    dtypes: Mapping[int, str] | None = None,
) -> dict[str, ArraySchema]:
    """The arrays of a store by name, in the order in which they are made.

    `weights`: bytes of its model that it has; `has_records`: whether it has the arrays `RECORDS`; `packing`: how chunks
    of latents are packed (`compressors`); `dtypes`: types of latents by resolution, the codec's where there is none.
    """
    schema = {}
    for resolution in columns.resolutions:
        dtype = (dtypes or {}).get(resolution, codec.dtype)
        schema[f"z{resolution}"] = _latents(columns, resolution, dtype, row_groups, chunk_bytes, packing)
        shape, axes = (columns.count(resolution),), columns.dimension_names(resolution)
        schema[f"step{resolution}"] = table_schema(shape, "float32", axes[:1])
    for name, table in columns.tables().items():
        schema[name] = table_schema(table.shape, "int32", (name.replace("dimension", "d"), "place"))
    texts = IMAGE_TABLES[:3] if has_records else IMAGE_TABLES[:2]
    schema |= {name: table_schema((row_groups.images,), "str", ("image",)) for name in texts}
    if has_records:
        schema["file_bytes"] = table_schema((row_groups.images,), "int64", ("image",))
        # Wider than a CRC-32: each of its values is a legal one, so none could say that an element is missing.
        schema[CHECKSUM] = _vector(row_groups.images, row_groups.size, "int64", -1, "image")
    # In chunks that are row groups: who writes a row group shares no chunk with another.
    schema |= {name: _vector(row_groups.images, row_groups.size, "float32", np.nan, "image") for name in per_image}
    if weights:
        schema[WEIGHTS] = weights_schema(weights)
    return {**schema, "committed": _vector(len(row_groups), 1, "uint32", 0, "row_group")}


def _latents(
    columns: Columns, resolution: int, dtype: str, row_groups: RowGroups, chunk_bytes: int, packing: str
) -> ArraySchema:
    """A row group is exactly one shard, which one process writes whole."""
    item = columns.item(resolution)
    image_bytes = int(np.prod(item)) * np.dtype(dtype).itemsize
    return ArraySchema(
        shape=(row_groups.images, *item),
        shards=(row_groups.size, *item),
        chunks=(chunk_length(row_groups.size, chunk_bytes, image_bytes), *item),
        dtype=dtype,
        fill_value=missing_value(dtype),
        dimension_names=("image", *columns.dimension_names(resolution)),
        **compressor(packing).codecs(dtype, 1 + len(item)),
    )


def table_schema(shape: tuple[int, ...], dtype: str, axes: tuple[str, ...]) -> ArraySchema:
    """An array that is written whole when the store is created."""
    return ArraySchema(
        shape=shape,
        chunks=(min(shape[0], TABLE_CHUNK), *shape[1:]),
        dtype=dtype,
        fill_value=_FILL_VALUES[dtype],
        compressors=[ZstdCodec(level=9), Crc32cCodec()],
        dimension_names=axes,
    )


_FILL_VALUES: Mapping[str, Any] = {"float32": np.nan, "int32": -1, "int64": -1, "str": NO_TEXT}


def missing_records(name: str, values: NDArray) -> NDArray[np.bool_]:
    """Whether each element of one of `RECORDS` is what is read if it was never written, or cannot be right."""
    if name == "split":
        return np.asarray(values == NO_TEXT)
    return np.asarray((values < 0) | ((values >= 2**32) if name == CHECKSUM else False))


def weights_schema(length: int) -> ArraySchema:
    """The weights that the store carries of its model, `length` bytes."""
    chunk = min(length, WEIGHTS_CHUNK)
    return _vector(length, chunk, "uint8", 0, "byte")


def _vector(length: int, chunk: int, dtype: str, fill_value: Any, axis: str) -> ArraySchema:
    """An array of one axis, in chunks of its own."""
    return ArraySchema(
        shape=(length,),
        chunks=(chunk,),
        dtype=dtype,
        fill_value=fill_value,
        compressors=[ZstdCodec(level=VECTOR_LEVEL), Crc32cCodec()]
        if dtype in ("float32", "int64")
        else [Crc32cCodec()],
        dimension_names=(axis,),
        write_all=axis != "row_group",
    )


def chunk_files(array: zarr.Array) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Each file that `array` must have, relative to its folder, with the elements in it."""
    sizes = array.shards or array.chunks
    for index in itertools.product(*(range(n) for n in _grid(array))):
        spans = [slice(i * size, min((i + 1) * size, n)) for i, size, n in zip(index, sizes, array.shape, strict=True)]
        yield "/".join(["c", *map(str, index)]), tuple(spans)


def is_chunk_file(array: zarr.Array, key: str) -> bool:
    """Whether `key`, relative to the array's folder, is a file that it must have."""
    first, *index = key.split("/")
    sizes = _grid(array)
    numbers = [int(part) for part in index if part.isdecimal() and part == str(int(part))]
    return first == "c" and len(numbers) == len(index) == len(sizes) and all(map(int.__lt__, numbers, sizes))


def _grid(array: zarr.Array) -> tuple[int, ...]:
    """How many files `array` has along each axis."""
    return tuple(-(-n // size) for n, size in zip(array.shape, array.shards or array.chunks, strict=True))
