"""What a store's own metadata say must be in its folder: arrays, their form, and their files.

    metadata ── expected_arrays ──> {"z16": Form, "step16": Form, "name": Form, ...}
    array    ── expected_keys   ──> "c/0/0/0/0", "c/1/0/0/0", ...

In zarr a file that is missing reads as fill values, without an error. So whoever verifies a store looks at its files.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from .arrays import NO_TEXT
from .columns import Columns
from .quantiser import Codec


@dataclass(frozen=True)
class ArraySchema:
    """What an array must be."""

    shape: tuple[int, ...]
    dtype: str
    """Numpy's name; `text` for strings."""
    fill_value: Any
    dimension_names: tuple[str, ...]
    row_group_size: int = 0
    """Images in a shard; 0 where the array is not sharded."""

    def faults(self, array: zarr.Array) -> Iterator[str]:
        """What is wrong with `array`'s metadata, one sentence each without the array's name."""
        dtype = "text" if array.dtype.kind == "T" else str(array.dtype)
        names = tuple(getattr(array.metadata, "dimension_names", None) or ())
        if array.shape != self.shape:
            yield f"has the shape {list(array.shape)}, not {list(self.shape)}"
        if dtype != self.dtype:
            yield f"holds {dtype}, not {self.dtype}"
        elif not _same(array.fill_value, self.fill_value):
            yield f"has the fill value {_shown(array.fill_value)}, not {_shown(self.fill_value)}"
        if names != self.dimension_names:
            yield f"has the dimensions {', '.join(map(str, names))}, not {', '.join(self.dimension_names)}"
        if self.row_group_size and array.shards != (self.row_group_size, *self.shape[1:]):
            yield f"has shards of {list(array.shards or ())}, not {[self.row_group_size, *self.shape[1:]]}"


def _shown(value: Any) -> str:
    return ascii(value) if isinstance(value, str) else f"{value}"


def _same(value: Any, other: Any) -> bool:
    if isinstance(other, str):
        return str(value) == other
    return bool(np.array_equal(np.asarray(value, np.float64), np.asarray(other, np.float64), equal_nan=True))


def expected_arrays(columns: Columns, codec: Codec, images: int, row_group_size: int) -> dict[str, ArraySchema]:
    """The arrays that every store has, by name. Per-image figures such as `rate` are not among them."""
    forms = {}
    for resolution in columns.resolutions:
        item, axes = columns.item(resolution), columns.dimension_names(resolution)
        latents = ArraySchema((images, *item), codec.dtype, codec.fill_value, ("image", *axes), row_group_size)
        forms[f"z{resolution}"] = latents
        forms[f"step{resolution}"] = ArraySchema(item[:1], "float32", np.nan, axes[:1])
    for name, (places, axes) in columns.tables().items():
        forms[name] = ArraySchema(places.shape, "int32", -1, axes)
    for name in ("name", "label"):
        forms[name] = ArraySchema((images,), "text", NO_TEXT, ("image",))
    forms["committed"] = ArraySchema((-(-images // row_group_size),), "uint32", 0, ("row_group",))
    return forms


def count_images(arrays: Mapping[str, zarr.Array], columns: Columns) -> int:
    """Images of the store by the length of most of its arrays: one may be damaged. 0 where there is none."""
    wanted = {"name", "label", *(f"z{resolution}" for resolution in columns.resolutions)}
    lengths = Counter(arrays[name].shape[0] for name in wanted & arrays.keys() if arrays[name].ndim)
    return max(lengths, key=lambda length: (lengths[length], length), default=0)


# --- files -----------------------------------------------------------------------------------------------------------


def grid(array: zarr.Array) -> tuple[int, ...]:
    """How many files `array` has along each axis."""
    return tuple(-(-n // size) for n, size in zip(array.shape, array.shards or array.chunks, strict=True))


def expected_keys(array: zarr.Array) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Each file that `array` must have, relative to its folder, with the elements in it."""
    sizes = array.shards or array.chunks
    for place in itertools.product(*(range(n) for n in grid(array))):
        spans = [slice(i * size, min((i + 1) * size, n)) for i, size, n in zip(place, sizes, array.shape, strict=True)]
        yield "/".join(["c", *map(str, place)]), tuple(spans)


def is_expected(array: zarr.Array, key: str) -> bool:
    """Whether `key`, relative to the array's folder, is a file that it must have."""
    first, *place = key.split("/")
    sizes = grid(array)
    numbers = [int(part) for part in place if part.isdecimal() and part == str(int(part))]
    return first == "c" and len(numbers) == len(place) == len(sizes) and all(map(int.__lt__, numbers, sizes))
