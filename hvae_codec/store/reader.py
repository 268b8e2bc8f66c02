"""Reading a store: open, validate, and give stored numbers or latents.

    out.zarr ── open_store ──> Store ── latents(i) ──> {"z1": float32 [columns, ...], "z16": ...}
                                     └─ per_image("rate") ──> float32 [images]

Damage is an error, never a wrong number: chunks have checksums, and numbers that were never written are told by their
fill value. `open_damaged` opens a damaged store as far as it can be read; the rest is an error when it is asked for.
"""

from __future__ import annotations

import functools
import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from ..config import CHUNK_BYTES, LATEST_RUN
from ..errors import StoreError, UsageError
from ..storage.location import Location, LocationLike, each, location_of
from .arrays import unstorable
from .columns import Columns, read_columns
from .damage import UnreadableError, reading
from .group_file import GROUP_FILE, REMEDY, GroupFile, is_replaced, read_group, read_metadata
from .metadata import StoreMetadata, array_checksum
from .quantiser import Codec
from .rowgroups import RowGroups, runs
from .schema import NO_TEXT, WEIGHTS, ArraySchema, dimension_names, store_schema
from .shards import CACHE_BYTES, ChunkCache, ShardedArray
from .spec import StoreSpec, spec_of

if TYPE_CHECKING:
    import pandas

Stored = dict[int, NDArray[np.generic]]
"""Latent resolution to stored numbers, [images, columns, ...]; columns run through the resolution's groups in order."""
S = TypeVar("S", bound="Store")


@dataclass(frozen=True, eq=False)
class Store:
    """A finished store, open for reading."""

    path: Location
    """Its folder, or where it is in a bucket."""
    group_file: GroupFile
    """The metadata, and what is wrong with the file that they are in."""
    columns: Columns
    """What is kept of each latent resolution: whole variates or single latent dimensions."""
    row_groups: RowGroups
    """Which images are in which row group."""
    schema: Mapping[str, ArraySchema]
    """What each array that was made with the store must be, by name."""
    cache: ChunkCache
    """Decoded chunks of the latents."""
    opened: dict[str, zarr.Array | UnreadableError] = field(default_factory=dict, repr=False)
    """The arrays opened so far, by name, or why they cannot be."""

    @classmethod
    def open(cls, path: LocationLike, *, cache_bytes: int = CACHE_BYTES) -> Self:
        """Open a finished store for reading; at most `cache_bytes` of decoded chunks are held in memory.

        `path` is a folder or a URL, s3://, gs:// or file://. Raises `StoreError` if there is none, or if it is
        unfinished, damaged, of a newer format, or of somebody else; `UnreachableError` if a bucket does not answer or
        does not let us in, also when something is read later.
        """
        location = location_of(path)
        for attempt in range(3):
            metadata = read_metadata(location)
            try:
                store = _opened(cls, location, GroupFile(metadata), cache_bytes)
                store.check_tables()
            except StoreError:
                if attempt == 2 or not is_replaced(location, metadata):
                    raise
                continue
            if not is_replaced(location, metadata):
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

    # Tables.

    @functools.cached_property
    def names(self) -> list[str]:
        """One per image; read on first use."""
        return [str(name) for name in self.per_image("name")]

    @functools.cached_property
    def labels(self) -> list[str]:
        """One per image; read on first use."""
        return [str(label) for label in self.per_image("label")]

    @functools.cached_property
    def steps(self) -> dict[int, NDArray[np.float32]]:
        """Latent resolution to quantiser steps, float32 [columns]."""
        return {resolution: self._steps(resolution) for resolution in self.resolutions}

    def _steps(self, resolution: int) -> NDArray[np.float32]:
        steps = self.read_array(f"step{resolution}")
        if not (np.isfinite(steps) & (steps > 0)).all():
            raise self.damaged(f"array step{resolution} holds elements that were never written or cannot be right")
        return steps

    def read_array(self, name: str) -> NDArray:
        """All of an array, as it is stored; `StoreError` if it is not there or damaged."""
        return self.read(name, slice(None))

    def per_image(self, name: str) -> NDArray:
        """A per-image array such as `rate`, float32 [images]; `StoreError` if it is not in the store or damaged.

        NaN is damage in an array that was made with the store. In one that a user added it means what the user likes.
        """
        values = self.read_array(name)
        if self._is_own(name):
            missing = np.isnan(values) if values.dtype.kind == "f" else values == NO_TEXT
            if missing.any():
                raise self.damaged(f"array {name} lacks image {int(missing.argmax())}")
        if values.shape != (len(self),):
            raise self.damaged(f"array {name} is of shape {list(values.shape)}, not {[len(self)]}")
        return values

    @functools.cached_property
    def per_image_names(self) -> tuple[str, ...]:
        """Names of the per-image arrays besides `name` and `label`, such as `rate`; in alphabetical order."""
        return tuple(name for name in self.path.array_folders() if self._is_figure(name))

    def _is_figure(self, name: str) -> bool:
        if self._is_own(name) and name in self.schema:
            return name not in ("name", "label") and self.schema[name].is_per_image and name not in self._latent_names
        array = self.find_array(name)
        if array is None and self._is_own(name):
            self.array(name)
        if array is None or not (self._is_own(name) or array.shape == (len(self),)):
            return False
        return dimension_names(array) == ("image",)

    @functools.cached_property
    def _latent_names(self) -> dict[str, int]:
        return {f"z{resolution}": resolution for resolution in self.resolutions}

    @functools.cached_property
    def frame(self) -> pandas.DataFrame:
        """One row per image: name, label and the other per-image arrays; read on first use."""
        import pandas

        columns: dict[str, Any] = {"name": self.names, "label": self.labels}
        return pandas.DataFrame(columns | {name: self.per_image(name) for name in self.per_image_names})

    # Latents.

    def stored(self, index: int | slice) -> Stored:
        """Stored numbers by resolution: [images, channels, y, x] for a slice, [channels, y, x] for one image.

        Of granularity position they are [images, dimensions] and [dimensions]; `columns` says which ones.
        Raises `UsageError` if there is no such image, `StoreError` if the store is damaged.
        """
        rows = self.rows(index)
        numbers = self._each_resolution(lambda resolution: self.read_latents(resolution, rows))
        return numbers if isinstance(index, slice) else {r: array[0] for r, array in numbers.items()}

    def gather(self, indices: Sequence[int]) -> Stored:
        """Stored numbers of the images at `indices`, in that order: resolution to [len(indices), columns, ...]."""
        rows = [self.rows(i)[0] for i in indices]
        return self._each_resolution(lambda resolution: self.read_latents(resolution, rows))

    def latents(self, index: int | slice) -> dict[str, NDArray]:
        """Latents z by array name (`z16`), float32, shaped and raising like `stored`."""
        latents = self._latents(self.rows(index))
        return latents if isinstance(index, slice) else {name: z[0] for name, z in latents.items()}

    def gather_latents(self, indices: Sequence[int]) -> dict[str, NDArray]:
        """Latents z of the images at `indices`, in that order: array name to float32 [len(indices), columns, ...]."""
        return self._latents([self.rows(i)[0] for i in indices])

    def _latents(self, rows: Sequence[int]) -> dict[str, NDArray]:
        latents = self._each_resolution(lambda resolution: self.latents_at(resolution, rows))
        return {f"z{resolution}": z for resolution, z in latents.items()}

    def _each_resolution(self, read: Callable[[int], NDArray]) -> Stored:
        return dict(zip(self.resolutions, each(self.path, read, self.resolutions), strict=True))

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
        self.array(name)
        stored = self._or_damage(name, _images(rows), lambda: self.raw_latents(resolution, rows))
        wrong = unstorable(stored)
        if wrong.any():
            raise self.damaged(f"array {name} lacks latents of image {rows[int(wrong.argmax())]}")
        return stored

    def raw_latents(self, resolution: int, rows: Sequence[int], cache: ChunkCache | None = None) -> NDArray:
        """What stands in the array at `rows`, fill values too, through `cache` or the store's own; raises anything."""
        sharded = self.sharded[resolution]
        if sharded is not None:
            return (sharded if cache is None else replace(sharded, cache=cache)).read(rows)
        # Run by run: indexing a sharded array with lists takes far more memory.
        array: Any = self.array(f"z{resolution}")
        parts = [np.asarray(array[first : last + 1]) for first, last in runs(rows)]
        return np.concatenate(parts or [np.asarray(array[:0])])

    @functools.cached_property
    def sharded(self) -> dict[int, ShardedArray | None]:
        """Latent arrays by resolution, for reading without zarr; None if that cannot be."""
        found = {resolution: self.find_array(name) for name, resolution in self._latent_names.items()}
        return {
            r: None if array is None else ShardedArray.of(array, self.path / f"z{r}", self.cache)
            for r, array in found.items()
        }

    # Arrays and their damage.

    def array(self, name: str) -> zarr.Array:
        """The array `name`; `StoreError` if it is not there or its metadata are damaged."""
        if name in self._sound:
            return cast(zarr.Array, self.opened[name])
        fault = self.array_fault(name)
        if fault == _MISSING:
            raise self.damaged(f"it has no array {name}")
        if fault:
            raise self.damaged(f"array {name}: its zarr.json {fault}")
        self._sound.add(name)
        return cast(zarr.Array, self.opened[name])

    @functools.cached_property
    def _sound(self) -> set[str]:
        """Arrays whose metadata were looked at and are whole: looking takes longer than reading an image."""
        return set()

    def find_array(self, name: str) -> zarr.Array | None:
        """The array `name` as it is; None if it is not there or cannot be opened."""
        if name not in self.opened:
            try:
                self.opened[name] = _open_array(self.path, name)
            except UnreadableError as error:
                self.opened[name] = error
        found = self.opened[name]
        return None if isinstance(found, UnreadableError) else found

    def array_fault(self, name: str) -> str:
        """What is wrong with the array's metadata, to be read after the name of its file; empty if nothing is."""
        array = self.find_array(name)
        if array is None:
            return str(self.opened[name])
        schema = self.schema.get(name)
        fault = next(schema.faults(array), "") if schema is not None else ""
        known = (self.metadata.arrays or {}).get(name)
        if not fault and known is not None and known != array_checksum(_document(self.path, name)):
            return "does not match its checksum"
        return fault

    def read(self, name: str, selection: Any) -> NDArray:
        """Elements of the array `name`; `StoreError` if they cannot be read."""
        array = self.array(name)
        return self._or_damage(name, _where(selection), lambda: np.asarray(array[selection]))

    def _or_damage(self, name: str, where: str, read: Callable[[], NDArray]) -> NDArray:
        try:
            return reading(read)
        except UnreadableError as error:
            raise self.damaged(f"array {name} is damaged at {where}: {error}") from error

    def damaged(self, damage: str) -> StoreError:
        """`damage` as an error, or that it is none: the store on the disk is another one than was opened."""
        if is_replaced(self.path, self.metadata):
            return StoreError(f"{self.path} has grown or was replaced since it was opened; open it again")
        return StoreError(f"{self.path}: {damage}; {REMEDY}")

    def _is_own(self, name: str) -> bool:
        """Whether `name` was made with the store; of any, in a store that does not say which were."""
        return self.metadata.arrays is None or name in self.metadata.arrays

    def check_tables(self) -> None:
        """Raise `StoreError` if an array's metadata, the steps or the columns are damaged."""
        for name in self.schema:
            if self._is_needed(name):
                self.array(name)
        for name, table in self.columns.tables().items():
            if not table.any():
                self.read_array(name)
                raise self.damaged(f"array {name} is empty or names positions outside of its latents")
        assert self.steps is not None

    def _is_needed(self, name: str) -> bool:
        return name in ("name", "label", "committed") or name[0] == "z" or name.startswith(("step", "dimension"))

    def spec(self) -> StoreSpec:
        """What the store was made from, by its own tables, but for the weights; `StoreError` if one is damaged."""
        return spec_of(
            self.metadata,
            names=self.names,
            labels=self.labels,
            columns=self.columns,
            steps=self.steps,
            per_image=self.own_figures,
        )

    @property
    def own_figures(self) -> tuple[str, ...]:
        """Per-image arrays besides `name` and `label` that were made with the store, in alphabetical order."""
        return tuple(sorted(name for name in self.schema if self._is_figure(name)))


def open_damaged(path: LocationLike) -> Store:
    """The store at `path` as far as it can be read; `StoreError` if its metadata do not say what must be in it."""
    location = location_of(path)
    return _opened(Store, location, read_group(location), 0)


def _opened(cls: type[S], location: Location, group_file: GroupFile, cache_bytes: int) -> S:
    """The store as far as its metadata go; its arrays are looked at when they are asked for."""
    metadata = group_file.metadata
    location.prefetch(_needed_to_open(metadata))
    bare = cls(location, group_file, _NoColumns, RowGroups(0, metadata.row_group_size), {}, ChunkCache(cache_bytes))
    try:
        columns = read_columns(metadata, functools.partial(_table, bare))
    except StoreError as error:
        raise StoreError(f"{location / GROUP_FILE} is damaged: {error}; {REMEDY}") from None
    row_groups = RowGroups(_count_images(bare, columns), metadata.row_group_size)
    return replace(bare, columns=columns, row_groups=row_groups, schema=_schema(bare, columns, row_groups))


_NoColumns = cast(Columns, None)


def _table(store: Store, name: str) -> NDArray:
    """A table of columns; empty if it cannot be read, which is found out when it is looked at."""
    try:
        return store.read_array(name)
    except StoreError:
        return np.zeros(0, np.int32)


def _count_images(store: Store, columns: Columns) -> int:
    """Images of the store by the length of most of its arrays: one may be damaged. 0 if there is none."""
    arrays = (store.find_array(name) for name in ("name", "label", *(f"z{r}" for r in columns.resolutions)))
    lengths = Counter(array.shape[0] for array in arrays if array is not None and array.ndim)
    return max(lengths, key=lambda length: (lengths[length], length), default=0)


def _schema(store: Store, columns: Columns, row_groups: RowGroups) -> dict[str, ArraySchema]:
    """What the arrays must be that were made with the store, by what its metadata say."""
    metadata = store.metadata
    chunk_bytes = metadata.chunk_bytes or CHUNK_BYTES
    every = store_schema(columns, metadata.codec, row_groups, chunk_bytes)
    more = sorted((metadata.arrays or {}).keys() - every.keys() - {WEIGHTS})
    per_image = [name for name in more if _axes(store, name) in ((), ("image",))]
    weights = store.find_array(WEIGHTS) if metadata.model.embedded else None
    length = weights.shape[0] if weights is not None and weights.ndim else int(metadata.model.embedded)
    return store_schema(columns, metadata.codec, row_groups, chunk_bytes, per_image, length)


def _axes(store: Store, name: str) -> tuple[str, ...]:
    array = store.find_array(name)
    return () if array is None else dimension_names(array)


_MISSING = "is missing"


def _open_array(location: Location, name: str) -> zarr.Array:
    """Array `name`; `UnreadableError` if its metadata cannot be read."""
    if not (location / name / "zarr.json").is_file():
        raise UnreadableError(_MISSING)
    # Not through the group, whose metadata may be damaged.
    return reading(lambda: zarr.open_array(location.zarr_location() / name, mode="r", zarr_format=3))


def _document(location: Location, name: str) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads((location / name / "zarr.json").read_bytes())
    return document


def _needed_to_open(metadata: StoreMetadata) -> list[str]:
    """Files that are read when a store is opened."""
    names = [name for name in metadata.arrays or {} if "/" not in name]
    tables = [name for name in names if name.startswith(("step", "dimension"))]
    files = [f"{name}/c/0/0" if name.startswith("dimension") else f"{name}/c/0" for name in tables]
    return [f"{name}/zarr.json" for name in names] + files


def _images(rows: Sequence[int]) -> str:
    if len(rows) <= 1:
        return f"image {rows[0]}" if rows else "no image"
    return f"images {min(rows)} to {max(rows)}"


def _where(selection: Any) -> str:
    if not isinstance(selection, slice):
        return f"{selection}"
    return "its entries" if selection.start is None else _images(range(selection.start, selection.stop))
