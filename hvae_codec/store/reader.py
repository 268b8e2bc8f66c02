"""Reading a store: open, validate, and give stored numbers or latents.

    out.zarr ── Store.open ──> Store ── latents(i) ──> {"z1": float32 [columns, ...], "z16": ...}
                                     └─ per_image("rate") ──> float32 [images]

Damage is an error, never a wrong number: chunks have checksums, and numbers that were never written are told by their
fill value. `open_damaged` opens a damaged store as far as it can be read; the rest is an error when it is asked for.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from ..config import CHUNK_BYTES, LATEST_RUN
from ..errors import StoreError, UsageError
from ..storage.cache import CACHE_BYTES, ChunkCache
from ..storage.location import Location, LocationLike, each, location_of
from ..texts.classes import ClassTexts
from ..texts.packed import PackedTexts
from ..texts.sequence import Texts
from .array_files import ArrayFiles, image_numbers
from .arrays import unstorable
from .columns import Columns, read_columns
from .compressors import compressor
from .group_file import GROUP_FILE, REMEDY, GroupFile, is_replaced, read_group, read_metadata, read_unfinished
from .layout import StoreLayout
from .metadata import StoreMetadata
from .quantiser import Codec
from .rowgroups import RowGroups, runs
from .schema import (
    CHECKSUM,
    IMAGE_TABLES,
    NO_TEXT,
    RECORDS,
    TABLE_CHUNK,
    WEIGHTS,
    ArraySchema,
    dimension_names,
    missing_records,
    store_schema,
)
from .shards import ShardedArray
from .spec import StoreSpec, spec_of

if TYPE_CHECKING:
    import pandas

Stored = dict[int, NDArray[np.generic]]
"""Latent resolution to stored numbers, [images, columns, ...]; columns run through the resolution's groups in order."""
_TEXTS_AT_ONCE = 8 * TABLE_CHUNK  # of a table, as those of a bucket are waited for together
S = TypeVar("S", bound="Store")


@dataclass(frozen=True, eq=False)
class Store:
    """A finished store, open for reading."""

    path: Location  # its folder, or where it is in a bucket
    group_file: GroupFile  # the metadata, and what is wrong with the file that they are in
    columns: Columns  # what is kept of each latent resolution: whole variates or single latent dimensions
    row_groups: RowGroups  # which images are in which row group
    arrays: ArrayFiles  # its arrays, and what is wrong with them
    cache: ChunkCache  # decoded chunks of the latents

    @classmethod
    def open(cls, path: LocationLike, *, cache_bytes: int = CACHE_BYTES) -> Self:
        """Open a finished store for reading; at most `cache_bytes` of decoded chunks are held in memory.

        `path` is a folder or a URL, s3://, gs:// or file://. Raises `StoreError` if there is none, or if it is
        unfinished, damaged, of a newer format, or of somebody else; `UnreachableError` if a bucket does not answer or
        does not let us in, also when something is read later.
        """
        location = location_of(path)
        for attempt in range(3):  # another store may take this one's place meanwhile
            metadata = read_metadata(location)
            try:
                store = _open(cls, location, GroupFile(metadata), cache_bytes)
                store.check_tables()
            except StoreError:
                if attempt == 2 or not is_replaced(location, metadata):
                    raise
                continue
            if location.folder is None or not is_replaced(location, metadata):  # a bucket would be asked once more
                break
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self).open, cache_bytes=self.cache.limit), (self.path,)

    def __len__(self) -> int:
        return self.row_groups.images

    # What it is.

    @property
    def metadata(self) -> StoreMetadata:
        """What the store says of itself."""
        return self.group_file.metadata

    @property
    def codec(self) -> Codec:
        """How z became the stored numbers."""
        return self.metadata.codec

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Latent resolutions that something is kept of, ascending."""
        return self.columns.resolutions

    @property
    def dtypes(self) -> dict[int, str]:
        """Latent resolution to the type of its array, `int8`, `int16`, `float16` or `float32`."""
        return {r: self.metadata.dtypes.get(r, self.codec.dtype) for r in self.resolutions}

    @property
    def format_version(self) -> int:
        """Version of the store's format."""
        return self.metadata.format_version

    @property
    def model_hash(self) -> str:
        """SHA-256 of the model that encoded the images."""
        return self.metadata.model.hash

    @property
    def run(self) -> str:
        """The run whose model encoded the images, as it was given; what `decode` loads."""
        return self.metadata.model.run or LATEST_RUN

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration, plain data."""
        return dict(self.metadata.model.config)

    @property
    def mask(self) -> dict[str, Any]:
        """What the pruning kept, plain data."""
        return dict(self.metadata.mask)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What was done to the images before they were encoded, but for defaults: arguments of `open_images`."""
        return dict(self.metadata.source.preprocessing)

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.metadata.image.size

    @property
    def image_dims(self) -> int:
        """Colour values per image, C × H × W: what bits/dim is divided by."""
        return self.metadata.image.dims

    @property
    def kept_dims(self) -> int:
        """Latent dimensions stored per image."""
        return sum(math.prod(self.columns.item(resolution)) for resolution in self.resolutions)

    @property
    def group(self) -> zarr.Group:
        """The zarr group."""
        return zarr.open_group(self.path.zarr_location(), mode="r", zarr_format=3)

    def nbytes_on_disk(self) -> int:
        """Bytes of all files of the store."""
        return sum(size for _, size in self.path.files())

    def bits_per_dim(self) -> float:
        """Bits on disk per colour value of the images, metadata and names included."""
        return 8 * self.nbytes_on_disk() / (len(self) * self.image_dims)

    # Tables, read on first use.

    @functools.cached_property
    def names(self) -> Texts:
        """One per image."""
        return PackedTexts.of_blocks(self._texts("name"))

    @functools.cached_property
    def labels(self) -> Texts:
        """One per image."""
        return ClassTexts.of(label for block in self._texts("label") for label in block)

    def _texts(self, name: str) -> Iterator[list[str]]:
        """Read a table of texts, a few chunks at once; raises like `per_image`."""
        array = self.arrays[name]
        for first in range(0, array.shape[0], _TEXTS_AT_ONCE):
            rows = slice(first, first + _TEXTS_AT_ONCE)
            values = self.arrays.or_damage(name, "its entries", functools.partial(_elements, array, rows))
            self._check_elements(name, values == NO_TEXT, first)
            for start in range(0, len(values), TABLE_CHUNK):
                yield values[start : start + TABLE_CHUNK].tolist()
        self._check_length(name, array.shape)

    @functools.cached_property
    def splits(self) -> Texts | None:
        """What each image was for when it was encoded: "train", "val", "test", or "" if it was in no split.

        Of images without split folders, the tenth that is held out is "val". None if the store has no records.
        """
        if not self.metadata.has_records:
            return None
        return ClassTexts.of(split for block in self._texts("split") for split in block)

    @functools.cached_property
    def file_bytes(self) -> NDArray[np.int64] | None:
        """Bytes of each image file or, of an array, of its elements, int64 [images]; None if there are no records."""
        return self.per_image("file_bytes") if self.metadata.has_records else None

    @functools.cached_property
    def checksums(self) -> NDArray[np.uint32] | None:
        """CRC-32 of these bytes when the image was encoded, uint32 [images]; None if there are no records."""
        return self.per_image(CHECKSUM).astype(np.uint32) if self.metadata.has_records else None

    @functools.cached_property
    def steps(self) -> dict[int, NDArray[np.float32]]:
        """Latent resolution to quantiser steps, float32 [columns]."""
        steps = {resolution: self.arrays.read(f"step{resolution}") for resolution in self.resolutions}
        for resolution, numbers in steps.items():
            if not (np.isfinite(numbers) & (numbers > 0)).all():
                raise self.arrays.damaged(
                    f"array step{resolution} holds elements that were never written or cannot be right"
                )
        return steps

    def per_image(self, name: str, rows: range | None = None) -> NDArray:
        """A per-image array such as `rate`, float32 [images]; `StoreError` if it is not in the store or damaged.

        `rows` are consecutive images, to read these alone. NaN is damage in an array that was made with the store. In
        one that a user added it means what the user likes.
        """
        if rows is None:
            values = self.arrays.read(name)
        else:
            read = functools.partial(_elements, self.arrays[name], slice(rows.start, rows.stop))
            values = self.arrays.or_damage(name, image_numbers(rows), read)
        self._check_elements(name, self._missing(name, values), rows.start if rows else 0)
        self._check_length(name, self.arrays[name].shape)
        return values

    def _missing(self, name: str, values: NDArray) -> NDArray[np.bool_]:
        """Whether each element is what is read if it was never written, or cannot be right."""
        if self.metadata.has_records and name in RECORDS:
            return missing_records(name, values)
        return np.asarray(np.isnan(values) if values.dtype.kind == "f" else values == NO_TEXT)

    def _check_elements(self, name: str, missing: NDArray[np.bool_], first: int = 0) -> None:
        if missing.any() and self.arrays.is_own(name):
            raise self.arrays.damaged(f"array {name} lacks image {first + int(missing.argmax())}")

    def _check_length(self, name: str, shape: tuple[int, ...]) -> None:
        if shape != (len(self),):
            raise self.arrays.damaged(f"array {name} is of shape {list(shape)}, not {[len(self)]}")

    @functools.cached_property
    def per_image_names(self) -> tuple[str, ...]:
        """Names of the figures of images, such as `rate`; in alphabetical order."""
        return tuple(name for name in self.path.array_folders() if self._is_figure(name))

    @property
    def own_figures(self) -> tuple[str, ...]:
        """Those of `per_image_names` that were made with the store, as its metadata say."""
        return tuple(sorted(name for name in self.arrays.schema if self._is_figure(name)))

    def _is_figure(self, name: str) -> bool:
        schema = self.arrays.schema.get(name)
        if schema is not None:
            return schema.dimension_names == ("image",) and name not in (*IMAGE_TABLES, CHECKSUM)
        array = self.arrays[name] if self.arrays.is_own(name) else self.arrays.find(name)
        fits = array is not None and (self.arrays.is_own(name) or array.shape == (len(self),))
        return fits and dimension_names(cast(zarr.Array, array)) == ("image",)

    @functools.cached_property
    def frame(self) -> pandas.DataFrame:
        """One row per image: name, label and the other per-image arrays.

        From version 4 of the format on also split, file_bytes and checksum; see `splits`, `file_bytes`, `checksums`.
        """
        import pandas

        columns: dict[str, Any] = {"name": [*self.names], "label": [*self.labels]}
        if self.splits is not None:
            columns |= {"split": [*self.splits], "file_bytes": self.file_bytes, CHECKSUM: self.checksums}
        return pandas.DataFrame(columns | {name: self.per_image(name) for name in self.per_image_names})

    def check_tables(self) -> None:
        """Raise `StoreError` if the metadata of an array that reading takes, the steps or the columns are damaged."""
        for name, schema in self.arrays.schema.items():
            if name != WEIGHTS and (schema.dimension_names != ("image",) or name in ("name", "label")):
                self.arrays[name]
        for name, table in self.columns.tables().items():
            if not table.any():
                self.arrays.read(name)
                raise self.arrays.damaged(f"array {name} is empty or names positions outside of its latents")
        self.steps  # noqa: B018 - raises

    @property
    def layout(self) -> StoreLayout:
        """What of it its row groups depend on."""
        weights = self.arrays.schema.get(WEIGHTS)
        return StoreLayout(
            columns=self.columns,
            codec=self.codec,
            images=len(self),
            row_group_size=self.row_groups.size,
            chunk_bytes=self.metadata.chunk_bytes or CHUNK_BYTES,
            per_image=self.own_figures,
            weights=weights.shape[0] if weights is not None else 0,
            has_records=self.metadata.has_records,
            packing=self.metadata.packing,
            dtypes=self.dtypes,
        )

    def spec(self) -> StoreSpec:
        """What the store was made from, by its own tables, but for the weights; `StoreError` if one is damaged."""
        images: Any = {"names": self.names, "labels": self.labels, "splits": self.splits, "file_bytes": self.file_bytes}
        return spec_of(self.metadata, **images, columns=self.columns, steps=self.steps, per_image=self.own_figures)

    # Latents.

    def stored(self, index: int | slice) -> Stored:
        """Stored numbers by resolution: [images, channels, y, x] for a slice, [channels, y, x] for one image.

        Of granularity position they are [images, dimensions] and [dimensions]; `columns` says which ones.
        Raises `UsageError` if there is no such image, `StoreError` if the store is damaged.
        """
        numbers = self._each_resolution(self.read_latents, self.rows(index))
        return numbers if isinstance(index, slice) else {r: array[0] for r, array in numbers.items()}

    def gather(self, indices: Sequence[int]) -> Stored:
        """Stored numbers of the images at `indices`, in that order: resolution to [len(indices), columns, ...]."""
        return self._each_resolution(self.read_latents, [self.rows(i)[0] for i in indices])

    def latents(self, index: int | slice) -> dict[str, NDArray]:
        """Latents z by array name (`z16`), float32, shaped and raising like `stored`."""
        latents = self._latents(self.rows(index))
        return latents if isinstance(index, slice) else {name: z[0] for name, z in latents.items()}

    def gather_latents(self, indices: Sequence[int]) -> dict[str, NDArray]:
        """Latents z of the images at `indices`, in that order: array name to float32 [len(indices), columns, ...]."""
        return self._latents([self.rows(i)[0] for i in indices])

    def _latents(self, rows: Sequence[int]) -> dict[str, NDArray]:
        return {f"z{resolution}": z for resolution, z in self._each_resolution(self.latents_at, rows).items()}

    def _each_resolution(self, read: Callable[[int, Sequence[int]], NDArray], rows: Sequence[int]) -> Stored:
        return dict(zip(self.resolutions, each(self.path, lambda r: read(r, rows), self.resolutions), strict=True))

    def latents_at(self, resolution: int, rows: Sequence[int]) -> NDArray[np.float32]:
        """Latents z of one resolution of the images `rows`, counted from 0: float32 [len(rows), columns, ...]."""
        steps = self.columns.spread(self.steps[resolution])
        return cast("NDArray[np.float32]", self.codec.decode(self.read_latents(resolution, rows), steps))

    def rows(self, index: int | slice) -> range:
        """Numbers of the images that `index` means; `UsageError` if there is no such image."""
        if isinstance(index, slice):
            return range(len(self))[index]
        try:
            first = range(len(self))[operator.index(index)]
        except IndexError:
            raise UsageError(f"there is no image {index}; {self.path} has {len(self)}, counted from 0") from None
        return range(first, first + 1)

    def read_latents(self, resolution: int, rows: Sequence[int]) -> NDArray:
        """Stored numbers of the images at `rows`, [len(rows), columns, ...]; `StoreError` if they are damaged."""
        name = f"z{resolution}"
        stored = self.arrays.or_damage(name, image_numbers(rows), lambda: self.raw_latents(resolution, rows))
        wrong = unstorable(stored)
        if wrong.any():
            raise self.arrays.damaged(f"array {name} lacks latents of image {rows[int(wrong.argmax())]}")
        return stored

    def raw_latents(self, resolution: int, rows: Sequence[int], cache: ChunkCache | None = None) -> NDArray:
        """What stands in the array at `rows`, fill values too, through `cache` or the store's own; raises anything."""
        sharded = self._sharded[resolution]
        if sharded is not None:
            return (sharded if cache is None else replace(sharded, cache=cache)).read(rows)
        # Run by run: indexing a sharded array with lists takes far more memory.
        array = self.arrays[f"z{resolution}"]
        parts = [np.asarray(array[first : last + 1]) for first, last in runs(rows)]
        return np.concatenate(parts or [np.asarray(array[:0])])

    @functools.cached_property
    def _sharded(self) -> dict[int, ShardedArray | None]:
        """Latent arrays by resolution, for reading without zarr; None if that cannot be."""
        return {r: self._sharded_array(f"z{r}") for r in self.resolutions}

    def _sharded_array(self, name: str) -> ShardedArray | None:
        array = self.arrays.find(name)
        return None if array is None else ShardedArray.of(array, self.path / name, self.cache)


def open_damaged(path: LocationLike) -> Store:
    """The store at `path` as far as it can be read; `StoreError` if its metadata do not say what must be in it."""
    location = location_of(path)
    return _open(Store, location, read_group(location), 0)


def open_unfinished(location: Location, document: Location) -> Store:
    """The store that is being written at `location`, by its metadata in `document` and its tables, from which its
    layout, mask and steps are read; `StoreError` if one of these is missing or damaged.
    """
    store = _open(Store, location.uncached, read_unfinished(document), 0)
    store.check_tables()
    return store


def _open(cls: type[S], location: Location, group: GroupFile, cache_bytes: int) -> S:
    """The store as far as its metadata go; its arrays are looked at when they are asked for."""
    metadata = group.metadata
    compressor(metadata.packing).check()
    location.prefetch(_needed_to_open(metadata))
    arrays = ArrayFiles(location, metadata)
    try:
        columns = read_columns(metadata, functools.partial(_table, arrays))
    except StoreError as error:
        raise StoreError(f"{location / GROUP_FILE} is damaged: {error}; {REMEDY}") from None
    row_groups = RowGroups(_count_images(arrays, columns), metadata.row_group_size)
    arrays.know(_schema(arrays, columns, row_groups))
    return cls(location, group, columns, row_groups, arrays, ChunkCache(cache_bytes))


def _elements(array: zarr.Array, rows: slice) -> NDArray:
    return np.asarray(array[rows])


def _needed_to_open(metadata: StoreMetadata) -> list[str]:
    """Files that are read when a store is opened."""
    names = [name for name in metadata.arrays or {} if "/" not in name]
    chunks = {"step": "c/0", "dimension": "c/0/0"}
    tables = [f"{name}/{chunk}" for name in names for kind, chunk in chunks.items() if name.startswith(kind)]
    return [f"{name}/zarr.json" for name in names] + tables


def _table(arrays: ArrayFiles, name: str) -> NDArray:
    """A table of columns; empty if it cannot be read, which is found out when it is looked at."""
    try:
        return arrays.read(name)
    except StoreError:
        return np.zeros(0, np.int32)


def _count_images(arrays: ArrayFiles, columns: Columns) -> int:
    """Images of the store by the length of most of its arrays: one may be damaged. 0 if there is none."""
    found = (arrays.find(name) for name in ("name", "label", *(f"z{r}" for r in columns.resolutions)))
    lengths = Counter(array.shape[0] for array in found if array is not None and array.ndim)
    return max(lengths, key=lambda length: (lengths[length], length), default=0)


def _schema(arrays: ArrayFiles, columns: Columns, row_groups: RowGroups) -> Mapping[str, ArraySchema]:
    """What the arrays must be that were made with the store, by what its metadata say."""
    metadata = arrays.metadata
    fixed = columns, metadata.codec, row_groups, metadata.chunk_bytes or CHUNK_BYTES
    packed: Any = {name: getattr(metadata, name) for name in ("has_records", "packing", "dtypes")}
    more = sorted((metadata.arrays or {}).keys() - store_schema(*fixed, **packed).keys() - {WEIGHTS})
    found = {name: arrays.find(name) for name in more}
    per_image = [name for name, array in found.items() if array is None or dimension_names(array) == ("image",)]
    embedded = bool(metadata.model.embedded)
    weights = arrays.find(WEIGHTS) if embedded else None
    length = weights.shape[0] if weights is not None and weights.ndim else int(embedded)
    return store_schema(*fixed, per_image, length, **packed)
