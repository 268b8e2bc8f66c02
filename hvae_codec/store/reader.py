"""Reading a store: open, validate, and give stored numbers, latents or decoded images.

    out.zarr ── open_store ──> Store ── latents(i) ──> {"z1": float32 [columns, ...], "z16": ...}
                                     └─ decode(indices) ──> uint8 [n, C, H, W]

Nothing here needs torch but `Store.decode`. Damage is an error, never a wrong number: chunks have checksums, and
numbers that were never written are told by their fill value.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr

from ..errors import HvaeCodecError, StoreError, UnreachableError, UsageError
from ..storage.location import UNFINISHED, Location, array_folders, each, files_at, location_of, prefetch, zarr_location
from .arrays import (
    ATTRIBUTE,
    FORMAT_VERSION,
    NO_TEXT,
    StoreSpec,
    array_checksum,
    attributes_checksum,
    row_group_digest,
    unstorable,
)
from .bucket_shards import sharded_array
from .columns import Columns, VariateColumns, read_columns
from .folder_writer import FolderStoreWriter, partial_path
from .metadata_copy import find_copy
from .quantiser import Codec, codec_from_dict
from .shards import CACHE_BYTES, ChunkCache, ShardedArray

if TYPE_CHECKING:
    import pandas
    import torch
    import xarray

    from ..model.hvae import HVAE

__all__ = ["FORMAT_VERSION", "FolderStoreWriter", "Store", "StoreSpec", "open_store"]


def open_store(path: str | Location, *, cache_bytes: int = CACHE_BYTES) -> Store:
    """Open a finished store for reading; at most `cache_bytes` of decoded chunks are kept in memory.

    `path` is a folder or a URL, s3://, gs:// or file://. Raises `StoreError` where there is none, where it is
    unfinished, damaged, of a newer format, or of somebody else; `UnreachableError` where a bucket does not answer or
    does not let us in, also when something is read later.
    """
    path = location_of(path)
    for last in (False, False, True):
        group, metadata = open_metadata(path)
        try:
            store = _read_store(path, group, metadata, cache_bytes)
        except StoreError:
            if last or not _is_replaced(path, metadata):
                raise
            continue
        # A bucket would be asked once more, and its zarr.json is put last.
        if last or not isinstance(path, Path) or not _is_replaced(path, metadata):
            break
    return store


def _read_store(path: Location, group: zarr.Group, metadata: Mapping[str, Any], cache_bytes: int) -> Store:
    try:
        return _read_metadata(path, group, metadata, ChunkCache(cache_bytes))
    except UnreachableError:
        raise
    except HvaeCodecError as error:
        raise StoreError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError(f"{path} has damaged metadata ({error!r}); encode the images again") from None


def _is_replaced(path: Location, metadata: Mapping[str, Any]) -> bool:
    """Whether another store, such as a longer one, has been put in the place of the one with `metadata`."""
    try:
        now = json.loads((path / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError, HvaeCodecError):
        return False
    return bool(now != metadata.get("fingerprint"))


def open_metadata(path: Location) -> tuple[zarr.Group, Mapping[str, Any]]:
    """The zarr group at `path` and its `hvae_codec` attribute, of a version that is read; raises like `open_store`."""
    try:
        group, metadata = read_metadata(path)
        fault = metadata_fault(path, metadata)
    except StoreError as error:
        raise (_restorable(path) or error) from None
    if fault and (restorable := _restorable(path)):
        raise restorable
    check_version(path, metadata)
    if fault:
        raise StoreError(f"{path}: its metadata are damaged, they have another checksum; {_REMEDY}")
    return group, metadata


def _restorable(path: Location) -> StoreError | None:
    """What to say of damaged metadata of which there is a second copy; None where there is none."""
    if find_copy(path) is None:
        return None
    return StoreError(
        f"{path / 'zarr.json'} is missing or damaged; `hvae-codec repair {path}` restores it from its second copy"
    )


def metadata_fault(path: Location, metadata: Mapping[str, Any]) -> str:
    """What is wrong with the `hvae_codec` attribute of the store at `path`; empty where nothing is.

    Stores of older versions have no checksum, which is a fault only where there is a second copy, and it has one.
    """
    if "checksum" not in metadata:
        copy = find_copy(path)
        same = copy is not None and copy["fingerprint"] == metadata.get("fingerprint")
        return "has lost its checksum" if same else ""
    if metadata["checksum"] != attributes_checksum(metadata):
        return "does not match its checksum: the store's metadata were changed"
    return ""


def read_metadata(path: Location) -> tuple[zarr.Group, Mapping[str, Any]]:
    """The zarr group at `path` and its `hvae_codec` attribute as it stands there; `StoreError` where it has none."""
    group = _open_group(path)
    metadata = group.attrs.get(ATTRIBUTE)
    if not isinstance(metadata, Mapping):
        raise StoreError(f"{path} is a zarr group but no latent store of this package; give the folder encode wrote")
    return group, metadata


def check_version(path: Location, metadata: Mapping[str, Any]) -> None:
    """Raise `StoreError` where the store's format is newer than this package."""
    version = metadata.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version}, this package reads up to {FORMAT_VERSION}; update hvae-codec"
        )


@dataclass(frozen=True, eq=False)
class Store:
    """A finished store, open for reading."""

    path: Location
    """Its folder, or where it is in a bucket."""
    metadata: Mapping[str, Any]
    """The group's `hvae_codec` attribute."""
    codec: Codec
    """How z became the stored numbers."""
    columns: Columns
    """What is kept of each latent resolution: whole variates or single latent dimensions."""
    steps: Mapping[int, np.ndarray]
    """Latent resolution to quantiser steps, float32 [columns]."""
    group: zarr.Group
    """The zarr group."""
    cache: ChunkCache
    """Decoded chunks of the latents."""
    arrays: dict[str, zarr.Array] = field(default_factory=dict, repr=False)
    """The arrays opened so far, by name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(open_store, cache_bytes=self.cache.limit), (self.path,)

    def __len__(self) -> int:
        return int(self._array(f"z{self.resolutions[0]}").shape[0])

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Latent resolutions that something is kept of, ascending."""
        return self.columns.resolutions

    @property
    def format_version(self) -> int:
        """Version of the store's format."""
        return int(self.metadata["format_version"])

    @property
    def model_hash(self) -> str:
        """SHA-256 of the model that encoded the images."""
        return str(self.metadata["model"]["hash"])

    @property
    def run(self) -> str:
        """The run whose model encoded the images, as it was given; what `decode` loads."""
        return str(self.metadata["model"].get("run") or "runs/latest")

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration, plain data."""
        return dict(self.metadata["model"]["config"])

    @property
    def mask(self) -> dict[str, Any]:
        """What the pruning kept, plain data."""
        return dict(self.metadata["mask"])

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.metadata["image"]["size"])

    @property
    def image_dims(self) -> int:
        """Colour values of an image, C × H × W: what bits/dim is divided by."""
        return int(self.metadata["image"]["channels"]) * self.image_size**2

    @property
    def kept_dims(self) -> int:
        """Latent dimensions stored of each image."""
        return sum(math.prod(self.columns.item(resolution)) for resolution in self.resolutions)

    @property
    def row_group_size(self) -> int:
        """Images in each row group but the last."""
        return int(self.metadata["shard"])

    @property
    def row_groups(self) -> int:
        """Row groups of the store."""
        return -(-len(self) // self.row_group_size)

    @functools.cached_property
    def names(self) -> list[str]:
        """One per image; read on first use."""
        return [str(name) for name in self.per_image("name")]

    @functools.cached_property
    def labels(self) -> list[str]:
        """One per image; read on first use."""
        return [str(label) for label in self.per_image("label")]

    def read_array(self, name: str) -> np.ndarray:
        """All of an array, as it is stored; `StoreError` where it is not there or damaged."""
        return self._read(name, slice(None))

    def per_image(self, name: str) -> np.ndarray:
        """A per-image array such as `rate`, float32 [images]; `StoreError` where it is not in the store or damaged.

        NaN is damage in an array that was made with the store. In one that a user added it means what the user likes.
        """
        values = self._read(name, slice(None))
        if self._is_own(name):
            missing = np.isnan(values) if values.dtype.kind == "f" else values == NO_TEXT
            if missing.any():
                raise self._fault(f"array {name} lacks image {int(missing.argmax())}")
        if values.shape != (len(self),):
            raise self._fault(f"array {name} is of shape {list(values.shape)}, not {[len(self)]}")
        return values

    @functools.cached_property
    def per_image_names(self) -> tuple[str, ...]:
        """Names of the per-image arrays besides `name` and `label`, such as `rate`; in alphabetical order."""
        known = {"name", "label", "committed", *(f"{kind}{r}" for kind in ("z", "step") for r in self.resolutions)}
        known |= {name for name in array_folders(self.path) if name not in known and self._is_foreign(name)}
        return tuple(name for name in array_folders(self.path) if name not in known and self._is_per_image(name))

    @functools.cached_property
    def frame(self) -> pandas.DataFrame:
        """One row an image: name, label and the other per-image arrays; read on first use."""
        import pandas

        columns: dict[str, Any] = {"name": self.names, "label": self.labels}
        return pandas.DataFrame(columns | {name: self.per_image(name) for name in self.per_image_names})

    def stored(self, index: int | slice) -> dict[int, np.ndarray]:
        """Stored numbers by resolution: [images, channels, y, x] for a slice, [channels, y, x] for one image.

        Of granularity position they are [images, dimensions] and [dimensions]; `columns` says which ones.
        Raises `UsageError` where there is no such image, `StoreError` where the store is damaged.
        """
        rows = self._rows(index)
        numbers = self._each_resolution(lambda resolution: self._read_latents(resolution, rows))
        return numbers if isinstance(index, slice) else {r: array[0] for r, array in numbers.items()}

    def gather(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Stored numbers of the images at `indices`, in that order: resolution to [len(indices), columns, ...]."""
        rows = [self._rows(i)[0] for i in indices]
        return self._each_resolution(lambda resolution: self._read_latents(resolution, rows))

    def latents(self, index: int | slice) -> dict[str, np.ndarray]:
        """Latents z by array name (`z16`), float32, shaped and raising like `stored`."""
        rows = self._rows(index)
        latents = self._latents(rows)
        return latents if isinstance(index, slice) else {name: z[0] for name, z in latents.items()}

    def gather_latents(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Latents z of the images at `indices`, in that order: array name to float32 [len(indices), columns, ...]."""
        return self._latents([self._rows(i)[0] for i in indices])

    def _latents(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        latents = self._each_resolution(lambda resolution: self.latents_at(resolution, rows))
        return {f"z{resolution}": z for resolution, z in latents.items()}

    def _each_resolution(self, read: Callable[[int], np.ndarray]) -> dict[int, np.ndarray]:
        return dict(zip(self.resolutions, each(self.path, read, self.resolutions), strict=True))

    def latents_at(self, resolution: int, rows: Sequence[int]) -> np.ndarray:
        """Latents z of one resolution of the images `rows`, counted from 0: float32 [len(rows), columns, ...]."""
        steps = self.columns.spread(self.steps[resolution])
        return self.codec.decode(self._read_latents(resolution, rows), steps)

    def to_xarray(self) -> xarray.DataTree:
        """Names, labels and figures of the images, and below them a node for each latent resolution.

        Node `z16` has z, float32 [image, channel, y, x] with the latent group and variate of each channel, or of
        granularity position [image, dimension] with y and x as well. z is read when it is asked for. Raises
        `UsageError` where xarray is not installed.
        """
        try:
            from .xarray_view import data_tree
        except ImportError:
            raise UsageError("to_xarray needs xarray, which is not installed; pip install xarray") from None
        return data_tree(self)

    @functools.cached_property
    def named_model(self) -> HVAE:
        """`load_model` on the CPU, loaded on first use."""
        return self.load_model()

    def load_model(self, device: str | torch.device = "cpu") -> HVAE:
        """The model that the store carries or, where it carries none, that of the run it names.

        Raises `StoreError` where there is no such run, or where the model in the store is damaged.
        """
        from ..encode.embedded_model import load_embedded
        from ..model.checkpoint import load_model

        return load_embedded(self, device) or load_model(self.find_run(), device)

    def find_run(self) -> Path:
        """The run that the store names, seen from here or from the store's folder; `StoreError` where it is gone."""
        return find_run(self.path, self.run)

    def decode(self, indices: Sequence[int], model: HVAE | None = None) -> np.ndarray:
        """Images, uint8 [n, C, H, W], decoded by `model` or the one the store names."""
        return cast(np.ndarray, _coder().decode_rows(self, indices, model))

    def dense(self, index: int | slice, model: HVAE | None = None) -> list[np.ndarray]:
        """z of every latent group in top-down order, pruned ones filled with the prior's mean, float32.

        [variates, H, W] each for one image, [images, variates, H, W] for a slice. The prior's mean depends on the z of
        the groups before it, so this takes a model's top-down pass: `model`, or the one the store names. Raises as
        `stored` and `decode` do.
        """
        groups = _coder().dense_rows(self, self._rows(index), model)
        return groups if isinstance(index, slice) else [z[0] for z in groups]

    def check(self, row_group: int) -> dict[int, np.ndarray]:
        """A row group's stored numbers by resolution; `StoreError` where they are not the ones that were committed."""
        first = row_group * self.row_group_size
        rows = range(first, min(first + self.row_group_size, len(self)))
        nothing_kept = ChunkCache(0)  # what is on the disk is to be checked, not what was there once
        stored = {resolution: self._read_latents(resolution, rows, nothing_kept) for resolution in self.resolutions}
        if row_group_digest([*stored.values()]) != int(self._read("committed", row_group)):
            raise self._fault(f"the latents of {_images(rows)} are not what encode wrote")
        return stored

    def nbytes_on_disk(self) -> int:
        """Bytes of all files of the store."""
        return sum(size for _, size in files_at(self.path))

    def bits_per_dim(self) -> float:
        """Bits on disk per colour value of the images, metadata and names included."""
        return 8 * self.nbytes_on_disk() / (len(self) * self.image_dims)

    def _is_own(self, name: str) -> bool:
        """Whether `name` was made with the store; of any, in a store that does not say which were."""
        own = self.metadata.get("arrays")
        return own is None or name in own

    def _is_foreign(self, name: str) -> bool:
        """Whether `name` is a user's, and no figure of the images, in a store that says which arrays are its own."""
        if self._is_own(name):
            return False
        try:
            return self._array(name).shape != (len(self),)
        except StoreError:
            return True

    def _is_per_image(self, name: str) -> bool:
        metadata: Any = self._array(name).metadata
        return metadata.dimension_names == ("image",)

    def _rows(self, index: int | slice) -> range:
        if isinstance(index, slice):
            return range(len(self))[index]
        try:
            first = range(len(self))[operator.index(index)]
        except IndexError:
            raise UsageError(f"there is no image {index}; {self.path} has {len(self)}, counted from 0") from None
        return range(first, first + 1)

    def _read_latents(self, resolution: int, rows: Sequence[int], cache: ChunkCache | None = None) -> np.ndarray:
        """Stored numbers of the images at `rows`, [len(rows), columns, ...]."""
        name = f"z{resolution}"
        sharded = self._sharded[resolution]
        if sharded is None:
            stored = self._read_runs(name, rows)
        else:
            sharded = sharded if cache is None else dataclasses.replace(sharded, cache=cache)
            stored = self._or_damage(name, _images(rows), lambda: sharded.read(rows))
        wrong = unstorable(stored)
        if wrong.any():
            first = rows[int(wrong.argmax())]
            raise self._fault(f"array {name} lacks latents of image {first}")
        return stored

    def _read_runs(self, name: str, rows: Sequence[int]) -> np.ndarray:
        # Run by run: indexing a sharded array with lists takes far more memory.
        runs = [self._read(name, slice(first, last + 1)) for first, last in _runs(rows)]
        return np.concatenate(runs or [self._read(name, slice(0, 0))])

    def _read(self, name: str, selection: Any) -> np.ndarray:
        array = self._array(name)
        return self._or_damage(name, _where(selection), lambda: np.asarray(array[selection]))

    def _or_damage(self, name: str, where: str, read: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return read()
        # A flipped byte can surface at any layer: checksum, shard index, decompressor, text.
        except (ValueError, RuntimeError, IndexError, TypeError, OverflowError, MemoryError) as error:
            raise self._fault(f"array {name} is damaged at {where} ({error})") from error

    def _fault(self, damage: str) -> StoreError:
        """`damage`, or that it is none: the store on the disk is another one than was opened."""
        if _is_replaced(self.path, self.metadata):
            return StoreError(f"{self.path} has grown or was replaced since it was opened; open it again")
        return StoreError(f"{self.path}: {damage}; {_REMEDY}")

    def _array(self, name: str) -> zarr.Array:
        if name not in self.arrays:
            self.arrays[name] = _open_array(self.path, self.group, name, self.metadata.get("arrays", {}).get(name))
        return self.arrays[name]

    @functools.cached_property
    def _sharded(self) -> dict[int, ShardedArray | None]:
        """Latent arrays by resolution, for reading without zarr; None where that cannot be."""
        names = {resolution: f"z{resolution}" for resolution in self.resolutions}
        return {r: sharded_array(self._array(name), self.path / name, self.cache) for r, name in names.items()}


def find_run(path: Location, run: str) -> Path:
    """The `run` that the store at `path` names; see `Store.find_run`."""
    beside = [path.parent / run] if isinstance(path, Path) else []
    for place in (Path(run), *beside):
        if place.exists():
            return place
    raise StoreError(f"{path} was made with the run {run}, which is not here; give it as --model")


_REMEDY = "restore the store from a copy or encode the images again"


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of consecutive indices: one read each.

    >>> list(_runs([4, 5, 6, 2, 9, 10]))
    [(4, 6), (2, 2), (9, 10)]
    """
    starts = [k for k, i in enumerate(indices) if k == 0 or i != indices[k - 1] + 1]
    for start, end in itertools.pairwise([*starts, len(indices)]):
        yield indices[start], indices[end - 1]


def _images(rows: Sequence[int]) -> str:
    if len(rows) <= 1:
        return f"image {rows[0]}" if rows else "no image"
    return f"images {min(rows)} to {max(rows)}"


def _where(selection: Any) -> str:
    if not isinstance(selection, slice):
        return f"{selection}"
    return "its entries" if selection.start is None else _images(range(selection.start, selection.stop))


def _coder() -> Any:
    """The module that decodes; `UsageError` where torch is not installed."""
    try:
        from ..encode import coder
    except ModuleNotFoundError as error:
        raise UsageError(f"decoding needs {error.name}, which is not installed; pip install {error.name}") from None
    return coder


def _open_group(path: Location) -> zarr.Group:
    prefetch(path, ["zarr.json"])
    if path.name.endswith(".partial") or not (path / "zarr.json").is_file():
        raise StoreError(_why_no_store(path))
    try:
        return zarr.open_group(zarr_location(path), mode="r", zarr_format=3)
    except (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError) as error:
        raise StoreError(f"{path} is no readable zarr group ({error}); give the folder that encode wrote") from None


def _why_no_store(path: Location) -> str:
    if not path.exists():
        if isinstance(path, Path) and partial_path(path).exists():
            return f"{path} is unfinished; run the same encode command again to finish it"
        return f"there is no store {path}; check the path or run encode first"
    if path.name.endswith(".partial"):
        return f"{path} is an unfinished store; run the same encode command again to finish it"
    if (path / UNFINISHED).is_file():
        return f"{path} is unfinished; run the same encode command again to finish it"
    return f"{path} is no zarr store (it has no zarr.json); give the folder that encode wrote"


def _open_array(path: Location, group: zarr.Group, name: str, checksum: int | None) -> zarr.Array:
    """Array `name`, whose metadata have `checksum` where the store was written with one."""
    try:
        array = group[name]
        own = array_checksum(json.loads((path / name / "zarr.json").read_bytes())) if checksum is not None else None
    except KeyError:
        raise StoreError(f"{path} has no array {name}; {_REMEDY}") from None
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path}: the metadata of array {name} are damaged ({error}); {_REMEDY}") from None
    if own != checksum:
        raise StoreError(f"{path}: the metadata of array {name} are damaged; {_REMEDY}")
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{path}: {name} is a group, not an array; {_REMEDY}")
    return array


def _needed_to_open(metadata: Mapping[str, Any]) -> list[str]:
    """Files that are read when a store is opened."""
    names = [name for name in metadata.get("arrays", {}) if "/" not in name]
    tables = [name for name in names if name.startswith(("step", "dimension"))]
    files = [f"{name}/c/0/0" if name.startswith("dimension") else f"{name}/c/0" for name in tables]
    return [f"{name}/zarr.json" for name in names] + files


def _read_metadata(path: Location, group: zarr.Group, metadata: Mapping[str, Any], cache: ChunkCache) -> Store:
    prefetch(path, _needed_to_open(metadata))
    bare = Store(path, metadata, codec_from_dict(metadata["codec"]), VariateColumns({}), {}, group, cache)
    store = dataclasses.replace(bare, columns=read_columns(metadata, lambda name: bare._read(name, slice(None))))
    steps = {}
    for resolution in store.resolutions:
        shape = (len(store), *store.columns.item(resolution))
        array = store._array(f"z{resolution}")
        if array.shape != shape or array.dtype != store.codec.dtype:
            raise StoreError(f"array z{resolution} is {array.dtype} {array.shape}, not {store.codec.dtype} {shape}")
        steps[resolution] = store._read(f"step{resolution}", slice(None))
        if steps[resolution].shape != shape[1:2] or not np.isfinite(steps[resolution]).all():
            raise StoreError(f"array step{resolution} is empty or of another length than z{resolution}; {_REMEDY}")
    for name, length in (("name", len(store)), ("label", len(store)), ("committed", store.row_groups)):
        if store._array(name).shape != (length,):
            raise StoreError(f"array {name} is of shape {list(store._array(name).shape)}, not {[length]}; {_REMEDY}")
    return dataclasses.replace(store, steps=steps)
